"""CREMA-D, Lombard GRID and AudioSet: small trees with the releases' traps, and what 01 makes of them."""

import json
import os

import av
import numpy as np
import pytest
import soundfile
from conftest import shared_data
from miniature import write_avi, write_tone
from test_01_prepare_data import prepare, problems_of, refusal

from common.corpora import cremad, lombard
from common.corpora.audioset import read as read_audioset
from common.corpora.cremad import read as read_cremad
from common.corpora.lombard import grid_sentence
from common.corpora.lombard import read as read_lombard
from common.files import UserError
from common.media import read_audio
from common.pictures import count_frames

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 82260\n"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def by_id(release):
    return {source.turn.utterance_id: source for source in release.turns}


def reported(release):
    """{(utterance or file, first words of the problem)}."""
    return {(p.utterance_id or os.path.basename(p.file), p.problem.split(";")[0]) for p in release.problems}


def write_video(path, codec="mpeg4", n_frames=12, rate=24, sound=False):
    """A small video of moving grey; its container by the ending of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        track = container.add_stream("aac", rate=48000, layout="mono") if sound else None
        for i in range(n_frames):
            picture = np.full((72, 64), 40 + i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
        if track:
            frame = av.AudioFrame.from_ndarray(
                0.1 * np.ones((1, 48000 * n_frames // rate), np.float32), "fltp", "mono"
            )
            frame.sample_rate = 48000
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return path


def without_moov(path):
    """Cut a MOV off before its moov atom, as an interrupted recording is."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])


# ---- CREMA-D ----------------------------------------------------------------------------------

CREMAD_BAD = ("1076_MTI_SAD_XX", "1076_MTI_NEU_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD")


def cremad_names(*stems):
    places = (("AudioWAV", "wav"), ("VideoFlash", "flv"), ("AudioMP3", "mp3"))
    return [f"{folder}/{stem}.{ending}" for stem in stems for folder, ending in places]


def test_cremad_labels_texts_and_files(tmp_path):
    touch(
        tmp_path,
        *cremad_names("1001_IEO_FEA_LO", "1001_DFA_HAP_XX"),
        "AudioWAV/._1001_IEO_FEA_LO.wav",
        "processedResults/summaryTable.csv",
    )
    table = '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","X","Y"\n'
    (tmp_path / "VideoDemographics.csv").write_text(table)
    release = read_cremad(tmp_path)
    assert release.media_in_place and not release.problems
    assert release.classes == ("neutral", "happy", "sad", "angry", "fearful", "disgust")
    source = by_id(release)["1001_IEO_FEA_LO"]
    turn = source.turn
    assert (turn.speaker, turn.label, turn.text) == ("1001", "fearful", "It's eleven o'clock.")
    assert turn.extra == {"sentence": "IEO", "level": "low", "sex": "male", "age": "51"}
    assert source.audio == tmp_path / "AudioWAV/1001_IEO_FEA_LO.wav"
    assert source.video == tmp_path / "VideoFlash/1001_IEO_FEA_LO.flv"
    assert sorted(by_id(release)) == ["1001_DFA_HAP_XX", "1001_IEO_FEA_LO"]
    assert "recordings: 2 (the full release has 7,442)" in release.notes
    assert "actors: 1 (the full release has 91)" in release.notes


@pytest.mark.parametrize(
    "code, label",
    [
        ("NEU", "neutral"),
        ("HAP", "happy"),
        ("SAD", "sad"),
        ("ANG", "angry"),
        ("FEA", "fearful"),
        ("DIS", "disgust"),
    ],
)
def test_cremad_emotions(tmp_path, code, label):
    [source] = read_cremad(touch(tmp_path, f"AudioWAV/1002_TSI_{code}_XX.wav")).turns
    assert source.turn.label == label and source.turn.extra == {
        "sentence": "TSI",
        "level": "unspecified",
        "sex": "",
        "age": "",
    }


def test_cremad_known_bad_files(tmp_path):
    touch(tmp_path, *cremad_names(*CREMAD_BAD, "1064_IEO_DIS_HI"))
    release = read_cremad(tmp_path)
    sources = by_id(release)
    assert "1076_MTI_SAD_XX" not in sources and len(sources) == 4
    assert {name for name, source in sources.items() if source.video is None} == set(CREMAD_BAD[1:])
    assert all(source.audio for source in sources.values()) and sources["1064_IEO_DIS_HI"].video
    assert len(release.problems) == 4 and {p.utterance_id for p in release.problems} == set(CREMAD_BAD)
    assert all(p.remedy for p in release.problems)


def test_cremad_missing_and_odd_files(tmp_path):
    touch(
        tmp_path,
        "AudioWAV/1003_WSI_ANG_XX.wav",
        "VideoFlash/1004_WSI_ANG_XX.flv",
        "AudioWAV/1003_WSI_XYZ_XX.wav",
        "AudioWAV/1003_ABC_ANG_XX.wav",
        "AudioWAV/copy of 1003.wav",
        "AudioWAV/1040_ITH_SAD_X.wav",
        "VideoFlash/1040_ITH_SAD_XX.flv",
        "AudioWAV/1005_WSI_ANG_LOX.wav",
    )
    release = read_cremad(tmp_path)
    assert reported(release) == {
        ("1003_WSI_XYZ_XX.wav", "not a name of CREMA-D"),
        ("1003_ABC_ANG_XX.wav", "not a name of CREMA-D"),
        ("copy of 1003.wav", "not a name of CREMA-D"),
        ("1005_WSI_ANG_LOX.wav", "not a name of CREMA-D"),
        ("1003_WSI_ANG_XX", "no video in VideoFlash"),
        ("1004_WSI_ANG_XX", "no wav in AudioWAV"),
    }
    sources = by_id(release)
    assert sources["1004_WSI_ANG_XX"].audio is None and sources["1004_WSI_ANG_XX"].video
    assert sources["1040_ITH_SAD_XX"].audio.name == "1040_ITH_SAD_X.wav" and sources["1040_ITH_SAD_XX"].video
    assert len(sources) == 3


def test_cremad_tables_that_were_not_pulled_or_are_in_latin_1(tmp_path):
    touch(tmp_path, *cremad_names("1001_IEO_FEA_LO"), "processedResults/summaryTable.csv")
    (tmp_path / "processedResults/summaryTable.csv").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    )
    (tmp_path / "VideoDemographics.csv").write_bytes(
        "ActorID,Age,Sex,Name\n1001,51,Male,Zoë\n".encode("latin-1")
    )
    release = read_cremad(tmp_path)
    assert release.turns[0].turn.extra["age"] == "51"
    assert [(p.file[-16:], p.remedy) for p in release.problems] == [
        ("summaryTable.csv", "run git lfs pull in its repository")
    ]


def test_cremad_roots_and_audio_alone(tmp_path):
    touch(tmp_path / "a", "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav")
    os.renames(tmp_path / "a", tmp_path / "up/a")
    for root in ("up", "up/a", "up/a/CREMA-D", "up/a/CREMA-D/AudioWAV"):
        release = read_cremad(tmp_path / root)
        assert list(by_id(release)) == ["1001_DFA_ANG_XX"] and not release.problems
        assert any("no folder VideoFlash" in note for note in release.notes)
    with pytest.raises(UserError, match="no folder AudioWAV"):
        read_cremad(touch(tmp_path / "b", "1001_DFA_ANG_XX.wav"))
    with pytest.raises(UserError, match="no CREMA-D recordings"):
        read_cremad(touch(tmp_path / "c", "AudioWAV/readme.txt"))
    with pytest.raises(UserError, match="no such folder"):
        read_cremad(tmp_path / "absent")


def test_cremad_facts():
    assert sum(cremad.COUNTS.values()) == 7442 and len(cremad.SENTENCES) == 12
    assert sum(lombard.COUNTS.values()) == 54 * 100 - 10


def test_cremad_end_to_end(tmp_path, capsys):
    """What 01 makes of it: lengths from headers, FLV without sound, pointers and broken files reported."""
    root = tmp_path / "raw"
    for stem in ("1001_DFA_ANG_XX", "1001_DFA_HAP_XX", "1002_DFA_SAD_XX", "1002_DFA_NEU_XX"):
        write_tone(root / "AudioWAV" / f"{stem}.wav", 0.75)
        write_video(root / "VideoFlash" / f"{stem}.flv", "flv1")  # no sound: it is in the wav
    (root / "VideoFlash/1001_DFA_HAP_XX.flv").write_bytes(POINTER)
    (root / "AudioWAV/1002_DFA_SAD_XX.wav").write_bytes(POINTER)
    (root / "VideoFlash/1002_DFA_NEU_XX.flv").write_bytes(b"FLV\1 broken")
    manifest = prepare(tmp_path, "cremad", root, "--MAX_PROBLEM_SHARE=1")
    turns = {turn.utterance_id: turn for turn in manifest.turns}
    whole = turns["1001_DFA_ANG_XX"]
    assert (whole.start_s, whole.end_s) == (0.0, 0.75)
    assert manifest.path(whole.audio) == root / "AudioWAV/1001_DFA_ANG_XX.wav" and os.path.isabs(whole.video)
    assert count_frames(manifest.path(whole.video)) == 12
    assert turns["1001_DFA_HAP_XX"].video == "" and turns["1001_DFA_HAP_XX"].end_s == 0.75
    silent = turns["1002_DFA_SAD_XX"]
    assert silent.audio == "" and silent.video and silent.end_s == pytest.approx(0.5, abs=0.05)
    assert turns["1002_DFA_NEU_XX"].video == "" and turns["1002_DFA_NEU_XX"].audio
    rows = problems_of(tmp_path, "cremad")
    pointers = [row for row in rows if "git-lfs pointer" in row["problem"]]
    assert len(rows) == 3 and len(pointers) == 2 and all("git lfs pull" in row["remedy"] for row in pointers)
    printed = capsys.readouterr().out
    assert "media     not copied" in printed and "3 with audio" in printed and "2 with video" in printed
    folder = tmp_path / "data/prepared/cremad"
    assert {path.name for path in folder.iterdir()} == {"manifest.csv", "classes.json", "problems.csv"}
    assert "run git lfs pull" in refusal(capsys, tmp_path, "cremad", root)  # 3 of 4 turns: more than 5 %


# ---- Lombard GRID -----------------------------------------------------------------------------


def lombard_names(*stems, views=("audio", "front", "side")):
    return [
        f"lombardgrid/{view}/{stem}.{'wav' if view == 'audio' else 'mov'}" for stem in stems for view in views
    ]


def test_lombard_conditions_sentences_and_files(tmp_path):
    touch(
        tmp_path,
        *lombard_names("s2_l_bbim3a", "s2_p_swwzzs", "s10_p_lgat0n"),
        "lombardgrid/json/s2.json",
        "lombardgrid/alignment/s2_l_bbim3a.json",
        "lombardgrid/front/._s2_l_bbim3a.mov",
    )
    touch(tmp_path, "lombardgrid/lombardgrid_Side/s9_l_bbim3a.mov")
    for root in (tmp_path, tmp_path / "lombardgrid"):
        release = read_lombard(root)
        assert release.classes == ("plain", "lombard") and release.media_in_place and not release.problems
        sources = by_id(release)
        assert list(sources) == ["s2_l_bbim3a", "s2_p_swwzzs", "s10_p_lgat0n"]
        turn = sources["s2_l_bbim3a"].turn
        assert (turn.speaker, turn.label, turn.text) == ("s2", "lombard", "bin blue in M three again")
        assert turn.extra == {"sentence": "bbim3a", "status": "correct"}
        assert sources["s2_l_bbim3a"].video == tmp_path / "lombardgrid/front/s2_l_bbim3a.mov"  # not the side
        assert sources["s2_p_swwzzs"].turn.text == "set white with Z zero soon"
        assert sources["s10_p_lgat0n"].turn.text == "lay green at T zero now"
    assert "talkers: 2 (the full release has 54)" in release.notes


@pytest.mark.parametrize(
    "code", ["bbim3", "bbim3aa", "xbim3a", "bxim3a", "bbxm3a", "bbiw3a", "bbimxa", "bbim3x", ""]
)
def test_codes_that_are_no_sentence(code):
    assert grid_sentence(code) == ""


def test_lombard_misread_silent_and_legacy_names(tmp_path):
    touch(
        tmp_path,
        *lombard_names(
            "s46_p_gbszs_WRONG_sgbszs",
            "s3_l_bbim3a_WRONG_bbim3",
            "s27_l_bah2s_WRONG_#sil",
            "s4_p_pwip9p_WRONG_pw#ip9",
            "s14_p_prwr3a",
            "s14_1_50_15_r_prwr3a",
            "s15_1_2_3_r_bbim3a",
            "s5_x_bbim3a",
            "extra",
        ),
    )
    release = read_lombard(tmp_path)
    sources = by_id(release)
    assert list(sources) == [
        "s3_l_bbim3a_WRONG_bbim3",
        "s4_p_pwip9p_WRONG_pw-ip9",
        "s14_p_prwr3a",
        "s15_1_2_3_r_bbim3a",
        "s46_p_gbszs_WRONG_sgbszs",
    ]
    said = sources["s46_p_gbszs_WRONG_sgbszs"].turn
    assert (said.speaker, said.label, said.extra) == (
        "s46",
        "plain",
        {"sentence": "sgbszs", "status": "wrong"},
    )
    assert said.text == "set green by S zero soon"
    assert sources["s3_l_bbim3a_WRONG_bbim3"].turn.text == ""
    assert sources["s15_1_2_3_r_bbim3a"].turn.label == "plain"
    assert sources["s4_p_pwip9p_WRONG_pw-ip9"].audio.name == "s4_p_pwip9p_WRONG_pw#ip9.wav"
    assert {(name, words) for name, words in reported(release) if "." not in name} == {
        ("s27_l_bah2s_WRONG_-sil", "a recording of silence"),
        ("s14_1_50_15_r_prwr3a", "an older name of s14_p_prwr3a, which is there"),
    }
    assert {name for name, words in reported(release) if words.startswith("not a")} == {
        "s5_x_bbim3a.wav",
        "s5_x_bbim3a.mov",
        "extra.wav",
        "extra.mov",
    }
    assert "4 recordings of a sentence that was misread" in release.notes


def test_lombard_missing_files_and_copies(tmp_path):
    touch(
        tmp_path,
        *lombard_names("s2_p_bbim3a", views=("audio",)),
        *lombard_names("s2_p_bbim5a"),
        *lombard_names("s2_p_bbim4a", views=("front", "side")),
        "lombardgrid/lombardgrid/audio/s2_p_bbim5a.wav",
    )
    release = read_lombard(tmp_path)
    assert reported(release) == {("s2_p_bbim3a", "no mov of the front view"), ("s2_p_bbim4a", "no wav")}
    sources = by_id(release)
    assert sources["s2_p_bbim3a"].video is None and sources["s2_p_bbim4a"].audio is None
    assert sources["s2_p_bbim5a"].audio == tmp_path / "lombardgrid/audio/s2_p_bbim5a.wav"
    alone = read_lombard(touch(tmp_path / "sound", "audio/s2_p_bbim3a.wav", "side/s2_p_bbim3a.mov"))
    assert not alone.problems and any("no turn has video" in note for note in alone.notes)
    with pytest.raises(UserError, match="no Lombard GRID recordings"):
        read_lombard(touch(tmp_path / "none", "a.txt"))


def test_lombard_end_to_end(tmp_path, capsys):
    """A MOV without moov atom costs its turn the picture, not the sound; unequal lengths are named."""
    root = tmp_path / "raw" / "lombardgrid"
    for stem in ("s32_l_pwip9p", "s33_p_sgwq2s", "s33_l_sgwq2s"):
        write_tone(root / "audio" / f"{stem}.wav", 0.6, rate_hz=48000)
        write_video(root / "front" / f"{stem}.mov", n_frames=48 if "33_l" in stem else 14)
    without_moov(root / "front" / "s32_l_pwip9p.mov")
    manifest = prepare(tmp_path, "lombard", tmp_path / "raw", "--MAX_PROBLEM_SHARE=1")
    turns = {turn.utterance_id: turn for turn in manifest.turns}
    assert turns["s32_l_pwip9p"].video == "" and turns["s32_l_pwip9p"].audio and turns["s33_p_sgwq2s"].video
    assert all(turn.end_s == pytest.approx(0.6) for turn in turns.values())
    broken, longer = problems_of(tmp_path, "lombard")
    assert broken["utterance_id"] == "s32_l_pwip9p" and broken["problem"].startswith(
        "not a readable recording"
    )
    what = "sound and picture of different length"
    assert longer["utterance_id"] == "s33_l_sgwq2s" and longer["problem"] == f"{what}: 0.60 s, 2.00 s"
    assert f"odd       1 × {what}, kept" in capsys.readouterr().out


# ---- AudioSet ---------------------------------------------------------------------------------


def cavmae(path, rows, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": rows, **more}))


def test_audioset_manifest_with_paths_here_and_elsewhere(tmp_path):
    media, root = tmp_path / "disk", tmp_path / "root"
    touch(media, "a/-kGfBX12345.flac", "a/video/-kGfBX12345.mp4", "frames/frame_0/-kGfBX12345.jpg")
    touch(root, "audio/__cDefghijk_40.000.wav", "video/__cDefghijk_40.000.webm", "Yabcdefghij.mkv")
    cavmae(
        root / "train.json",
        [
            {
                "video_id": "-kGfBX12345",
                "wav": str(media / "a/-kGfBX12345.flac"),
                "video_path": str(media / "frames"),
                "labels": "/m/03v3yw,/m/0k4j",
            },
            {"video_id": "__cDefghijk_40.000", "wav": "/gone/__cDefghijk_40.000.wav", "labels": "/m/1"},
            {"wav": "/gone/Yabcdefghij.flac", "labels": ""},
            {
                "video_id": "vanished0000",
                "wav": "/gone/vanished0000.flac",
                "video_path": "/gone",
                "labels": "",
            },
        ],
    )
    release = read_audioset(root)
    assert release.classes == () and release.media_in_place and not release.problems
    sources = by_id(release)
    assert sorted(sources) == ["-kGfBX12345", "Yabcdefghij", "__cDefghijk_40.000"]
    first = sources["-kGfBX12345"]
    assert first.audio == media / "a/-kGfBX12345.flac" and first.video == media / "a/video/-kGfBX12345.mp4"
    assert first.turn.extra == {"labels": "/m/03v3yw,/m/0k4j", "set": "train"}
    assert (first.turn.speaker, first.turn.label, first.turn.text) == ("-kGfBX12345", "", "")
    dotted = sources["__cDefghijk_40.000"]
    assert dotted.audio == root / "audio/__cDefghijk_40.000.wav" and dotted.turn.speaker == "__cDefghijk"
    assert dotted.video == root / "video/__cDefghijk_40.000.webm"
    mkv = sources["Yabcdefghij"]
    assert mkv.audio == mkv.video == root / "Yabcdefghij.mkv" and mkv.turn.speaker == "Yabcdefghij"
    assert release.notes == [
        "train: 3 of 4 segments are there",
        "1 segments without a recording are left out, for example /gone/vanished0000.flac",
    ]


def test_audioset_frames_are_no_video(tmp_path):
    """A frame may be missing (CAV-MAE steps down); frames without sound are no turn."""
    touch(tmp_path, "wav/abcdefghijk.wav", "frames/frame_3/abcdefghijk.jpg", "frames/frame_0/zbcdefghijk.jpg")
    rows = [{"video_id": f"{letter}bcdefghijk", "video_path": "/x/frames"} for letter in "az"]
    cavmae(tmp_path / "m.json", rows)
    [source] = read_audioset(tmp_path).turns
    assert source.turn.utterance_id == "abcdefghijk" and source.video is None


def test_audioset_video_in_the_manifests_folder(tmp_path):
    touch(tmp_path, "disk/v/abcdefghijk.mp4", "disk/a/abcdefghijk.wav", "root/readme.txt")
    cavmae(
        tmp_path / "root/m.json",
        [
            {
                "video_id": "abcdefghijk",
                "wav": str(tmp_path / "disk/a/abcdefghijk.wav"),
                "video_path": str(tmp_path / "disk/v"),
                "labels": "",
            }
        ],
    )
    [source] = read_audioset(tmp_path / "root").turns
    assert source.video == tmp_path / "disk/v/abcdefghijk.mp4"


def test_audioset_official_tables(tmp_path):
    (tmp_path / "balanced_train_segments.csv").write_text(
        "# Segments csv created Sun Mar  5\n# num_ytids=4\n# YTID, start_seconds, end_seconds, labels\n"
        '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n-kGfBX12345, 0.000, 10.000, "/m/04rlf"\n'
        'Yabcdefghij, 20.000, 30.000, "/m/04rlf"\nvanished000, 0.000, 10.000, "/m/04rlf"\n'
        'listed_here, 0.000, 10.000, "/m/1"\ncut off\n'
    )
    (tmp_path / "class_labels_indices.csv").write_text(
        'index,mid,display_name\n0,/m/09x0r,"Speech, speech"\n'
    )
    (tmp_path / "ontology.json").write_text("[]")
    touch(
        tmp_path,
        "a/Y--PJHxphWEs.wav",
        "a/-kGfBX12345_0.000_10.000.flac",
        "v/-kGfBX12345_0.000_10.000.mp4",
        "a/YYabcdefghij_20000_30000.wav",
        "a/listed_here.wav",
        "a/other.info.json",
    )
    cavmae(
        tmp_path / "own.json", [{"video_id": "listed_here", "wav": "/x/listed_here.wav", "labels": "/m/2"}]
    )
    release = read_audioset(tmp_path)
    sources = by_id(release)
    assert sorted(sources) == ["--PJHxphWEs", "-kGfBX12345", "Yabcdefghij", "listed_here"]
    assert sources["--PJHxphWEs"].audio.name == "Y--PJHxphWEs.wav"
    assert sources["--PJHxphWEs"].turn.extra["labels"] == "/m/09x0r,/t/dd00088"
    assert sources["-kGfBX12345"].video == tmp_path / "v/-kGfBX12345_0.000_10.000.mp4"
    assert sources["Yabcdefghij"].audio.name == "YYabcdefghij_20000_30000.wav"
    assert sources["listed_here"].turn.extra["set"] == "own"  # a manifest goes before a table
    assert [p.problem for p in release.problems] == ["row 'cut off' cannot be read; left out"]
    assert "balanced_train_segments: 3 of 4 segments are there" in release.notes


def test_audioset_of_several_manifests_and_a_table_that_breaks_off(tmp_path):
    touch(tmp_path, "x.wav", "y.wav")
    for name, ids in (("20k", "x"), ("2m", "xyz")):
        cavmae(tmp_path / f"{name}.json", [{"video_id": i, "wav": f"/gone/{i}.wav"} for i in ids])
    rows = "".join(f"{k:011d}, 0.000, 10.000, /m/04rlf\n" for k in range(4000))
    (tmp_path / "cut.csv").write_text(f'# YTID\n00000000000, 0.000, 10.000, "/m/04\n{rows}')
    release = read_audioset(tmp_path)
    assert {"20k: 1 of 1 segments are there", "2m: 2 of 3 segments are there"} <= {*release.notes}
    assert any(p.file.endswith("cut.csv") for p in release.problems)


def test_audioset_refusals_and_odd_manifests(tmp_path):
    with pytest.raises(UserError, match="no CAV-MAE manifest"):
        read_audioset(touch(tmp_path / "a", "x.wav"))
    cavmae(tmp_path / "b/m.json", [{"video_id": "x", "wav": "/gone/x.wav"}])
    with pytest.raises(UserError, match="none of its 1 segments is there, for example /gone/x.wav"):
        read_audioset(tmp_path / "b")
    touch(tmp_path / "b", "x.wav")
    (tmp_path / "b/broken.json").write_text("{")
    cavmae(tmp_path / "b/n.json", ["text", {}, {"video_id": "x", "wav": "/gone/x.wav"}])
    release = read_audioset(tmp_path / "b")
    assert len(release.turns) == 1 and release.turns[0].turn.extra["set"] == "m"  # listed twice, counts once
    assert sorted(p.problem.split(" (")[0] for p in release.problems) == [
        "entry 0 has neither video_id nor wav; left out",
        "entry 1 has neither video_id nor wav; left out",
        "not valid JSON",
    ]


def test_audioset_links_are_followed_but_not_in_circles(tmp_path, monkeypatch):
    touch(tmp_path, "disk/abcdefghijk.wav", "root/a/readme")
    cavmae(tmp_path / "root/m.json", [{"video_id": "abcdefghijk", "wav": "/gone/abcdefghijk.wav"}])
    (tmp_path / "root/a/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/media").symlink_to(tmp_path / "disk")
    walked, walk = [], os.walk
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: (walked.append(step[0]) or step for step in walk(*a, **k))
    )
    [source] = read_audioset(tmp_path / "root").turns
    assert source.audio == tmp_path / "root/media/abcdefghijk.wav"
    assert len(walked) == 4  # root, a, up (already seen, nothing below it is), media


def test_audioset_end_to_end(tmp_path, capsys):
    root = tmp_path / "raw"
    (root / "audio").mkdir(parents=True)
    soundfile.write(str(root / "audio/abcdefghijk.flac"), 0.1 * np.ones((44100, 2)), 44100)
    write_video(root / "video/abcdefghijk.mp4", sound=True, n_frames=24)
    write_video(root / "video/bbcdefghijk.mp4", sound=True)
    write_video(root / "video/cbcdefghijk.mp4")
    cavmae(
        root / "audioset_20k.json",
        [{"video_id": f"{letter}bcdefghijk", "wav": f"/x/{letter}bcdefghijk.flac"} for letter in "abc"],
    )
    manifest = prepare(tmp_path, "audioset", root, "--MAX_PROBLEM_SHARE=1")
    turns = {turn.utterance_id[0]: turn for turn in manifest.turns}
    assert [os.path.basename(turns[letter].audio) for letter in "abc"] == [
        "abcdefghijk.flac",
        "bbcdefghijk.mp4",
        "",
    ]
    assert all(turn.video for turn in turns.values()) and turns["a"].end_s == 1.0
    assert turns["b"].end_s == pytest.approx(0.5, abs=0.05) and turns["c"].end_s == pytest.approx(
        0.5, abs=0.05
    )
    assert [row["problem"] for row in problems_of(tmp_path, "audioset")] == ["no audio track"]
    printed = capsys.readouterr().out
    assert "3 turns, no labels, 3 speakers" in printed and "no Figure 1" in printed


# ---- MEDIA_IN_PLACE ---------------------------------------------------------------------------


def test_ravdess_in_place(tmp_path, capsys, monkeypatch):
    """Sound from the 03 wav, or from the MP4's own track; names are absolute, rates stay."""
    actor = tmp_path / "raw" / "Actor_01"
    write_video(actor / "01-01-01-01-01-01-01.mp4", sound=True)
    write_tone(actor / "03-01-01-01-01-01-01.wav", 0.5, rate_hz=48000)
    write_video(actor / "01-01-03-01-01-01-01.mp4", sound=True)
    write_tone(actor / "03-01-04-01-01-01-01.wav", 0.5, rate_hz=48000)
    write_tone(actor / "03-01-05-01-01-01-01.wav", 0.05, rate_hz=48000)
    monkeypatch.chdir(tmp_path)
    manifest = prepare(tmp_path, "ravdess", "raw", "--MEDIA_IN_PLACE=true", "--MAX_PROBLEM_SHARE=1")
    turns = {turn.utterance_id[3:5]: turn for turn in manifest.turns}
    assert turns["01"].audio == str(actor / "03-01-01-01-01-01-01.wav")
    assert turns["01"].video == turns["01"].audio.replace(
        "03-01-01-01-01-01-01.wav", "01-01-01-01-01-01-01.mp4"
    )
    assert turns["03"].audio == turns["03"].video == str(actor / "01-01-03-01-01-01-01.mp4")
    assert turns["04"].video == "" and turns["04"].end_s == 0.5 and turns["05"].audio == ""
    assert [row["problem"] for row in problems_of(tmp_path, "ravdess")] == [
        "too short: 0.050 s; its audio is left out"
    ]
    assert len(read_audio(manifest.path(turns["03"].audio), rate_hz=24000)) == pytest.approx(12000, abs=1100)
    assert not list((tmp_path / "data/prepared/ravdess").glob("*/"))
    converted = prepare(tmp_path, "ravdess", "raw", "--MAX_PROBLEM_SHARE=1")  # the default
    assert (
        converted.turns[0].audio.startswith("audio/") and (tmp_path / "data/prepared/ravdess/audio").is_dir()
    )


def test_turns_cut_from_a_video_cannot_stay_in_place(tmp_path, capsys):
    from miniature import write_iemocap

    line = refusal(capsys, tmp_path, "iemocap", write_iemocap(tmp_path / "raw"), "--MEDIA_IN_PLACE=true")
    assert "MEDIA_IN_PLACE: Ses01F_impro01_F000 is a part of a longer recording" in line


def test_own_folder_in_place(tmp_path):
    root = tmp_path / "mine"
    write_tone(root / "a.wav", 0.5, rate_hz=8000)
    write_avi(root / "a.avi", n_frames=15)
    (root / "manifest.csv").write_text("audio,video,label,speaker\na.wav,a.avi,sad,A\n")
    [turn] = prepare(tmp_path, str(root), "", "--MEDIA_IN_PLACE=true").turns
    assert (turn.audio, turn.video, turn.end_s) == (str(root / "a.wav"), str(root / "a.avi"), 0.5)


def test_damaged_rate_is_a_problem(tmp_path):
    root = tmp_path / "raw"
    write_tone(root / "AudioWAV/1001_DFA_ANG_XX.wav", 0.5, rate_hz=44101)
    write_tone(root / "AudioWAV/1002_DFA_SAD_XX.wav", 0.5)
    manifest = prepare(tmp_path, "cremad", root, "--MAX_PROBLEM_SHARE=1")
    assert [bool(turn.audio) for turn in manifest.turns] == [False, True]
    assert "odd sampling rate (44101 Hz)" in problems_of(tmp_path, "cremad")[0]["problem"]


def test_real_clip_and_audio_without_video_in_place(tmp_path):
    root = shared_data("ravdess_av")
    [turn] = prepare(tmp_path, "ravdess", root, "--MEDIA_IN_PLACE=true").turns
    assert turn.audio == turn.video and turn.duration_s == pytest.approx(99 * 1001 / 30000, abs=0.05)
    heard = prepare(tmp_path, "ravdess", shared_data("ravdess") / "Actor_12", "--MEDIA_IN_PLACE=true")
    assert len(heard.turns) == 60 and not any(turn.video for turn in heard.turns)
    assert all(turn.audio.endswith(".wav") and turn.duration_s > 2 for turn in heard.turns)
