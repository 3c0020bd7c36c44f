"""01 end to end on miniatures of genuine releases: what it writes, what it refuses, what survives a kill."""

import errno
import json
import os
import re
import signal

import numpy as np
import pytest
import soundfile
from conftest import FRESH, execute, figures, load_script, shared_data
from miniature import luma, write_avi, write_clip, write_iemocap, write_tone

from common import files, settings
from common.corpora import emodb
from common.files import read_csv, read_json
from common.manifest import read_manifest
from common.media import read_audio
from common.pictures import count_frames

SCRIPT = "01_prepare_data.py"


def prepare(tmp_path, corpus, root, *more, drawn=False):
    """Run 01 in this process and return the manifest it wrote; SystemExit carries its error line."""
    module = vars(load_script(SCRIPT))
    with figures(drawn):
        settings.run(module["main"], module, arguments(tmp_path, corpus, root, *more))
    return read_manifest(tmp_path / "data", corpus)


def arguments(tmp_path, corpus, root, *more):
    return [
        f"--CORPUS={corpus}",
        f"--CORPUS_ROOT={root}",
        f"--DATA_ROOT={tmp_path / 'data'}",
        f"--RESULTS_ROOT={tmp_path / 'results'}",
        "--WORKERS=0",
        *more,
    ]


def refusal(capsys, *args):
    """The one line that ends a refused run."""
    with pytest.raises(SystemExit) as stopped:
        prepare(*args)
    line = str(stopped.value.code)
    assert line.startswith("error: ") and "\n" not in line and "Traceback" not in capsys.readouterr().err
    return line


def test_a_release_without_a_single_turn_is_refused(tmp_path, capsys):
    root = write_iemocap(tmp_path / "raw")
    for path in root.glob("Session?/dialog/EmoEvaluation/Ses*.txt"):
        path.write_text("[6.2901 - 8.2357]\tSes01F_impro01_F000\n")
    line = refusal(capsys, tmp_path, "iemocap", root)
    assert "not a turn can be read in it" in line and ".txt:1: not a line of EmoEvaluation" in line


def problems_of(tmp_path, corpus="iemocap"):
    return read_csv(tmp_path / "data" / "prepared" / corpus / "problems.csv")


def write_emodb(root, n_speakers=2, seconds=0.2):
    names = [
        f"{speaker:02d}{text}{letter}a"
        for speaker in range(3, 3 + n_speakers)
        for text in emodb.TEXTS
        for letter in emodb.LETTERS
    ]
    for name in names:
        write_tone(root / "wav" / f"{name}.wav", seconds)
    return root


# ---- What it writes ---------------------------------------------------------------------------


def test_iemocap_end_to_end(tmp_path, capsys):
    manifest = prepare(tmp_path, "iemocap", write_iemocap(tmp_path / "raw"))
    printed = capsys.readouterr().out
    assert [t.utterance_id for t in manifest.turns] == [
        "Ses01F_impro01_F000",
        "Ses01F_impro01_M000",
        "Ses01F_impro01_F001",
        "Ses03F_script01_1b_F000",
        "Ses03M_impro05a_M000",
        "Ses03M_impro05a_F000",
        "Ses03M_impro05b_M000",
    ]
    assert len(manifest.labelled) == 5 and manifest.classes == ("angry", "happy", "neutral", "sad")
    assert "Session2, Session4, Session5" in printed and "5,532" in printed and "problems  none" in printed
    assert problems_of(tmp_path) == []
    for turn in manifest.turns:
        info = soundfile.info(str(manifest.path(turn.audio)))
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.duration == pytest.approx(turn.duration_s, abs=0.01)
        assert abs(count_frames(manifest.path(turn.video)) - turn.duration_s * 30000 / 1001) <= 1
    # the woman of a dialogue recorded for the man is on the right: luma 220 - i from frame 57 (1.9 s) on
    values = luma(manifest.path("video/Ses03M_impro05a_F000.mp4"))
    assert np.abs(values - (220 - np.arange(57, 57 + len(values)))).max() < 2
    results = tmp_path / "results" / "01_prepare_data" / "iemocap"
    names = {
        "babaali_fig_1_labels.csv",
        "babaali_fig_1_labels.pdf",
        "babaali_fig_1_labels.png",
        "metrics.json",
    }
    assert names <= {path.name for path in results.iterdir()}
    drawn = {
        (row["session"], row["label"]): int(row["turns"])
        for row in read_csv(results / "babaali_fig_1_labels.csv")
    }
    assert len(drawn) == 8 and sum(drawn.values()) == 5 and drawn["Session3", "happy"] == 1
    assert read_json(results / "metrics.json")["labelled"] == 5


def test_threads_write_the_same(tmp_path):
    root = write_iemocap(tmp_path / "raw")
    one = prepare(tmp_path / "one", "iemocap", root)
    two = prepare(tmp_path / "two", "iemocap", root, "--WORKERS=2")
    for path in ("manifest.csv", *(t.audio for t in one.turns), *(t.video for t in one.turns)):
        assert one.path(path).read_bytes() == two.path(path).read_bytes()


def test_real_audio_video_clip_end_to_end(tmp_path):
    manifest = prepare(tmp_path, "ravdess", shared_data("ravdess_av"))
    [turn] = manifest.turns
    assert count_frames(manifest.path(turn.video)) == 99
    assert turn.duration_s == pytest.approx(99 * 1001 / 30000, abs=0.02)
    assert len(read_audio(manifest.path(turn.audio))) == pytest.approx(16000 * turn.duration_s, abs=1)


def test_meld_text_only(tmp_path, capsys):
    manifest = prepare(tmp_path, "meld", shared_data("meld"))
    assert len(manifest.turns) == len(manifest.labelled) == 13708 and not any(t.audio for t in manifest.turns)
    assert len(problems_of(tmp_path, "meld")) == 1
    assert capsys.readouterr().out.count("text only") == 3


def test_own_folder(tmp_path, capsys):
    root = tmp_path / "mine"
    write_tone(root / "a.wav", 0.5, rate_hz=8000)
    write_avi(root / "a.avi", n_frames=15)
    (root / "manifest.csv").write_text(
        "audio,video,text,label,speaker\na.wav,a.avi,Hi,sad,A\na.wav,,Ho,glad,A\n"
    )
    manifest = prepare(tmp_path, str(root), "")
    assert manifest.corpus == "mine" and manifest.classes == ("glad", "sad")
    assert [t.duration_s for t in manifest.turns] == [0.5, 0.5]
    assert [bool(t.video) for t in manifest.turns] == [True, False]
    assert count_frames(manifest.path(manifest.turns[0].video)) == 15
    assert "only one speaker" in capsys.readouterr().out


def test_own_turns_are_cut_from_one_long_recording(tmp_path, capsys):
    """Sound and picture; the AVI has luma 20 + i on its left half and 220 - i on its right one."""
    root, lines = tmp_path / "mine", ["utterance_id,dialogue_id,speaker,label,start_s,end_s,audio,video"]
    tone = np.concatenate([np.full(16000, level) for level in (0.1, 0.2, 0.3, 0.4)])
    tone[::2] += 3e-4  # not a constant
    root.mkdir()
    soundfile.write(str(root / "a.wav"), tone, 16000)
    write_avi(root / "a.avi")
    lines += [f"u{k},d,{'AB'[k % 2]},{'xy'[k % 2]},{k}.0,{k}.9,a.wav,a.avi" for k in range(4)]
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    manifest = prepare(tmp_path, str(root), "")
    for k, turn in enumerate(manifest.turns):
        samples = read_audio(manifest.path(turn.audio))
        assert len(samples) == 14400 and samples == pytest.approx(0.1 * (k + 1), abs=1e-3)
        assert abs(count_frames(manifest.path(turn.video)) - 27) <= 1
        assert (turn.turn, turn.start_s, turn.end_s) == (k, k, k + 0.9)
    assert "audio: 4 turns are parts of 1 longer recordings" in capsys.readouterr().out
    assert "must be cut" in refusal(capsys, tmp_path / "placed", str(root), "", "--MEDIA_IN_PLACE=true")


def test_odd_recordings_are_named_and_what_is_usable_is_kept(tmp_path, capsys):
    root = tmp_path / "mine"
    root.mkdir()
    tone = 0.5 * np.sin(np.arange(16000) / 20)

    def write(name, samples, **how):
        soundfile.write(str(root / f"{name}.wav"), samples, 16000, **how)
        return f"{name}.wav"

    audio = [
        write("plain", tone),
        write("silent", 0 * tone),
        write("against", np.stack([tone, -tone], 1)),
        write("offset", 0.4 * tone + 0.3),
        write("loud", 20000 * tone, subtype="FLOAT"),  # 16-bit numbers as floats
        write("peaks", np.where(np.arange(16000) == 99, 1.2, tone), subtype="FLOAT"),  # as lossy coding has
        write("cut", tone),
        write_clip(root / "late.mp4", sound=0.5 * np.sin(np.arange(48000) / 20), late_s=0.4).name,
    ]
    (root / "cut.wav").write_bytes((root / "cut.wav").read_bytes()[:16044])
    video = [
        write_clip(root / "late.avi", "mpeg4", [*range(0, 960, 40), 1000]).name,  # 25 frames in 26 places
        write_clip(root / "broken.avi", "mpeg4").name,
        write_clip(root / "broken.mp4", "libx264").name,
    ]
    data = (root / "broken.avi").read_bytes()
    (root / "broken.avi").write_bytes(data[: data.index(b"movi") + 900])
    rows = [f"{name.replace('.', '_')},S{k % 2},{'xy'[k % 2]},{name}," for k, name in enumerate(audio)]
    rows += [f"{name.replace('.', '_')}_v,S1,x,,{name}" for name in video]
    (root / "manifest.csv").write_text("\n".join(["utterance_id,speaker,label,audio,video", *rows, ""]))
    manifest = prepare(tmp_path, str(root), "", "--MAX_PROBLEM_SHARE=0.4")
    found = {row["file"]: row["problem"] for row in problems_of(tmp_path, "mine")}
    assert found.pop("broken.avi").startswith("holds ")
    assert found == {
        "silent.wav": "silence: its samples differ by no more than 0.0001",
        "against.wav": "its channels cancel each other",
        "offset.wav": "constant offset: +0.30 of full scale",
        "loud.wav": "beyond full scale: 15,997 of 16,000 samples, up to 1e+04; scaled down",
        "cut.wav": "breaks off: 0.50 s of the 1.00 s that its header states",
    }
    printed = capsys.readouterr().out
    assert "1 × constant offset, 1 × beyond full scale, kept" in printed and "4 of 11 turns" in printed
    turns = {turn.utterance_id: turn for turn in manifest.turns}
    assert not turns["silent_wav"].audio and not turns["against_wav"].audio
    sound = {name: read_audio(manifest.path(turn.audio)) for name, turn in turns.items() if turn.audio}
    assert sound["loud_wav"] == pytest.approx(2 * tone, abs=1e-3) and len(sound["cut_wav"]) == 8000
    assert sound["peaks_wav"][[98, 100]] == pytest.approx(tone[[98, 100]], abs=1e-3)
    assert np.flatnonzero(abs(sound["late_mp4"]) > 0.05)[0] == pytest.approx(6400, abs=400)
    assert turns["late_avi_v"].end_s == pytest.approx(1.04)


def test_two_folders_of_one_name_are_kept_apart(tmp_path, capsys):
    for name, label in (("A/clips", "sad"), ("B/clips", "glad"), ("C/iemocap", "sad")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.csv").write_text(f"text,label,speaker\nHi,{label},S\n")
    prepare(tmp_path, str(tmp_path / "A/clips"), "")
    line = refusal(capsys, tmp_path, str(tmp_path / "B/clips"), "")
    assert f"prepared/clips: holds the corpus of {tmp_path / 'A/clips'}" in line
    assert read_manifest(tmp_path / "data", str(tmp_path / "A/clips")).classes == ("sad",)
    assert "known by name" in refusal(capsys, tmp_path, str(tmp_path / "C/iemocap"), "")


def test_demo_small(tmp_path):
    """--demo from eSpeak to checkpoints, at its smallest."""
    pytest.importorskip("espeakng_loader")
    manifest = prepare(tmp_path, "demo_iemocap", "", "--demo", "--DEMO_SIZE=0.02")
    assert len({t.session for t in manifest.turns}) == 5 and len({t.speaker for t in manifest.turns}) >= 5
    assert all(t.audio and t.video and t.text for t in manifest.turns)
    data = tmp_path / "data"
    assert (data / "checkpoints" / "demo_iemocap" / "bert-base-uncased" / "config.json").exists()
    assert not list((data / "raw" / "demo_iemocap").glob("*.json"))  # the note of its size lies beside it


def write_voxceleb2(root, n_speakers=3):
    """Empty clips: 01 does not open them."""
    for speaker in range(n_speakers):
        for number in (1, 4):
            path = root / f"dev/aac/id{speaker:05d}/-1Uxsk56VDQ/{number:05d}.m4a"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def test_voxceleb2_stays_where_it_is(tmp_path, capsys, monkeypatch):
    root = write_voxceleb2(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    manifest = prepare(tmp_path, "voxceleb2", "raw")  # a relative folder
    printed = capsys.readouterr().out
    assert "media     not copied" in printed and "no Figure 1" in printed and "problems  none" in printed
    assert (
        "6 with audio, 0 with video" in printed and "dev speakers: 3 (the full release has 5,994)" in printed
    )
    assert "only one speaker" not in printed  # of those with labels: there are none to split by
    assert len(manifest.turns) == 6 and manifest.labelled == [] and manifest.classes == ()
    assert {manifest.path(turn.audio) for turn in manifest.turns} == set(root.rglob("*.m4a"))
    folder = tmp_path / "data" / "prepared" / "voxceleb2"
    assert {path.name for path in folder.iterdir()} == {"manifest.csv", "classes.json", "problems.csv"}
    results = tmp_path / "results" / "01_prepare_data" / "voxceleb2"
    look = {f"data_table_overview.{ending}" for ending in ("csv", "md")}
    look |= {f"data_fig_overview.{ending}" for ending in ("png", "pdf")}
    assert {path.name for path in results.iterdir()} == {"metrics.json", "log.jsonl", "index.html"} | look
    some = prepare(tmp_path, "voxceleb2", root, "--VOXCELEB2_SPEAKERS=2")
    assert len({turn.speaker for turn in some.turns}) == 2
    assert "2 of 3 speakers, drawn with seed 0: 4 clips" in capsys.readouterr().out


def test_voxceleb2_odd_names_count_as_problems(tmp_path, capsys):
    root = write_voxceleb2(tmp_path / "raw")
    (root / "dev/aac/id00000/-1Uxsk56VDQ/copy of 00001.m4a").touch()
    line = refusal(capsys, tmp_path, "voxceleb2", root)
    assert "problems.csv: 1 of 7 turns" in line and "not a VoxCeleb2 name" in line
    assert len(prepare(tmp_path, "voxceleb2", root, "--MAX_PROBLEM_SHARE=0.5").turns) == 6


def test_demo_of_the_other_synthetic_corpora(tmp_path, capsys):
    """--demo --CORPUS=...: written once per size, both channels of RAVDESS, no checkpoints."""
    pytest.importorskip("espeakng_loader")
    sizes = ("--demo", "--DEMO_SIZE=0.01")
    ravdess = prepare(tmp_path, "demo_ravdess", "", *sizes)
    assert len(ravdess.turns) == 2 * (8 + 6) and {t.extra["channel"] for t in ravdess.turns} == {
        "speech",
        "song",
    }
    assert all(soundfile.info(str(ravdess.path(t.audio))).samplerate == 16000 for t in ravdess.turns)
    voxceleb2 = prepare(tmp_path, "demo_voxceleb2", "", *sizes)
    assert (
        len(voxceleb2.turns) == 4 and len(read_audio(voxceleb2.path(voxceleb2.turns[0].audio))) >= 4 * 16000
    )
    printed = capsys.readouterr().out
    assert (
        printed.count("writing the synthetic corpus") == 2
        and "synthetic, in the layout of voxceleb2" in printed
    )
    assert not (tmp_path / "data" / "checkpoints").exists()
    song = prepare(tmp_path, "demo_ravdess", "", *sizes, "--RAVDESS_CHANNEL=song")
    assert {t.extra["channel"] for t in song.turns} == {"song"}
    assert "writing the synthetic corpus" not in capsys.readouterr().out
    prepare(tmp_path, "demo_voxceleb2", "", *sizes, "--DEMO_SIZE=0.02")
    assert "writing the synthetic corpus" in capsys.readouterr().out


# ---- Problems ---------------------------------------------------------------------------------


def test_problems_are_listed_and_turns_kept(tmp_path, capsys):
    root = write_iemocap(tmp_path / "raw")
    wavs = root / "Session1" / "sentences" / "wav" / "Ses01F_impro01"
    (wavs / "Ses01F_impro01_F000.wav").write_bytes(b"RIFF corrupt")
    (wavs / "Ses01F_impro01_F001.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    write_tone(wavs / "Ses01F_impro01_M000.wav", 0.05)
    write_tone(root / "Session3/sentences/wav/Ses03M_impro05b/Ses03M_impro05b_M000.wav", 2.0)
    avi = root / "Session3/dialog/avi/DivX/Ses03M_impro05a.avi"
    data = avi.read_bytes()
    avi.write_bytes(data[: len(data) // 3])
    (root / "Session3/dialog/avi/DivX/Ses03F_script01_1b.avi").unlink()
    transcript = root / "Session3/dialog/transcriptions/Ses03F_script01_1b.txt"
    transcript.write_text("Ses03F_script01_1b_F000 [000.2000-001.2000]: \n")
    manifest = prepare(tmp_path, "iemocap", root, "--MAX_PROBLEM_SHARE=1")
    found = {
        (row["utterance_id"], re.split(r": |; | \(| at ", row["problem"])[0]) for row in problems_of(tmp_path)
    }
    assert found == {
        ("Ses01F_impro01_F000", "not a readable recording"),
        ("Ses01F_impro01_F001", "a git-lfs pointer, not the recording"),
        ("Ses01F_impro01_M000", "too short"),
        ("Ses03M_impro05b_M000", "lasts 2.00 s, its label times say 1.00 s"),
        ("Ses03M_impro05a_F000", "no frame from 1.90 s on"),
        ("Ses03M_impro05a_M000", "clip to 1.50 s is past the end of the video"),
        ("Ses03F_script01_1b_F000", "No such file or directory"),
        ("Ses03F_script01_1b_F000", "no transcript"),
    }
    assert len(manifest.turns) == 7
    turns = {t.utterance_id: t for t in manifest.turns}
    assert not turns["Ses01F_impro01_F000"].audio and turns["Ses01F_impro01_F000"].video
    assert turns["Ses03M_impro05a_M000"].video and not turns["Ses03M_impro05a_F000"].video
    assert "7 of 7 turns" in capsys.readouterr().out


def test_problems_count_turns_once_and_show_the_commonest_kind(tmp_path, capsys):
    root = write_emodb(tmp_path / "raw", 1)
    for path in sorted((root / "wav").iterdir())[1:]:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (root / "wav" / "03a01Aa.wav").write_bytes(b"")  # the first one has another problem
    for k in range(30):
        write_tone(root / "wav" / f"copy{k}.wav", 0.1)
    line = refusal(capsys, tmp_path, "emodb", root)
    assert "100 of 100 turns or files have problems (69 × a git-lfs pointer" in line
    assert "a git-lfs pointer" in line and "run git lfs pull" in line


def test_too_many_problems_stop_the_run(tmp_path, capsys):
    root = write_iemocap(tmp_path / "raw", video=False)
    prepare(tmp_path, "iemocap", root)
    (root / "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav").write_bytes(b"")
    line = refusal(capsys, tmp_path, "iemocap", root)
    assert (
        "problems.csv: 1 of 7 turns" in line and "the file is empty" in line and "MAX_PROBLEM_SHARE" in line
    )
    assert len(problems_of(tmp_path)) == 1
    assert not (tmp_path / "data/prepared/iemocap/manifest.csv").exists()  # the old one would be wrong now


# ---- Refusals ---------------------------------------------------------------------------------


def test_missing_and_wrong_root(tmp_path, capsys):
    line = refusal(capsys, tmp_path, "iemocap", tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: no such folder" in line and "CORPUS_ROOT" in line
    line = refusal(capsys, tmp_path, "emodb", "")
    assert "data/raw/EMO-DB: no such folder" in line
    assert "no folders Session1 to Session5" in refusal(capsys, tmp_path, "iemocap", tmp_path)
    assert "choose one of" in refusal(capsys, tmp_path, "imocap", "")
    assert not (tmp_path / "data").exists() and not (tmp_path / "results").exists()


def test_bad_settings(tmp_path, capsys):
    for word in (
        "--VIDEO_CRF=99",
        "--MAX_PROBLEM_SHARE=5",
        "--WRITE_CHECKPOINTS=huge",
        "--SEEDS=",
        "--VOXCELEB2_SPEAKERS=-1",
        "--DEMO_SIZE=0",
        "--WORKERS=-1",
    ):
        assert word[2:].split("=")[0] in refusal(capsys, tmp_path, "emodb", tmp_path, word)


def test_manifest_with_absolute_or_escaping_path(tmp_path, capsys):
    root = tmp_path / "mine"
    root.mkdir()
    for path, message in (("/tmp/a.wav", "is absolute"), ("../a.wav", "leaves the folder")):
        (root / "manifest.csv").write_text(f"audio,text,label,speaker\n{path},Hi,sad,A\n")
        line = refusal(capsys, tmp_path, str(root), "")
        assert f"manifest.csv:2: audio {path} {message}" in line
    assert not (tmp_path / "data").exists()


def test_unwritable_results_are_noticed_before_the_work(tmp_path, capsys):
    (tmp_path / "results").write_text("a file where a folder is needed")
    line = refusal(capsys, tmp_path, "emodb", write_emodb(tmp_path / "raw", 1))
    assert f"{tmp_path / 'results'}" in line and "choose another" in line
    assert not list((tmp_path / "data").rglob("*.wav"))


def after_40_files(monkeypatch, act):
    """Have `act` called before the 41st file gets its name, with that name."""
    replace, left = os.replace, [40]

    def counted(source, target):
        left[0] -= 1
        if left[0] < 0:
            act(target)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", counted)


def test_full_disk(tmp_path, capsys, monkeypatch):
    def full(target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    root = write_emodb(tmp_path / "raw", 1)
    after_40_files(monkeypatch, full)
    assert "the disk is full" in refusal(capsys, tmp_path, "emodb", root)
    monkeypatch.undo()
    folder = tmp_path / "data" / "prepared" / "emodb"
    assert not (folder / "manifest.csv").exists() and not list(folder.rglob(".*"))
    assert len(list(folder.rglob("*.wav"))) == 40
    assert len(prepare(tmp_path, "emodb", root).turns) == 70  # with room again, it goes on


# ---- Resuming ---------------------------------------------------------------------------------


def test_rerun_keeps_what_matches_and_remakes_what_changed(tmp_path, capsys):
    root = write_emodb(tmp_path / "raw", 1)
    manifest = prepare(tmp_path, "emodb", root)
    before = {t.utterance_id: manifest.path(t.audio).stat().st_mtime_ns for t in manifest.turns}
    write_tone(root / "wav" / "03a01Wa.wav", 0.4)
    again = prepare(tmp_path, "emodb", root)
    assert "kept      69 turns" in capsys.readouterr().out
    changed = [t for t in again.turns if again.path(t.audio).stat().st_mtime_ns != before[t.utterance_id]]
    assert [(t.utterance_id, t.duration_s) for t in changed] == [("03a01Wa", 0.4)]
    again.path(again.turns[3].audio).unlink()
    prepare(tmp_path, "emodb", root)
    assert again.path(again.turns[3].audio).exists()
    prepare(tmp_path, "emodb", root, "--MIN_TURN_S=0.05")  # another setting: all of them anew
    assert "kept" not in capsys.readouterr().out.rsplit("python", 1)[1]


def prepare_and_die(folder, root):
    """01, whose process is killed when it has finished 40 files."""
    with pytest.MonkeyPatch.context() as patch:
        after_40_files(patch, lambda target: os.kill(os.getpid(), signal.SIGKILL))
        prepare(folder, "emodb", root)


def test_killed_run_goes_on(tmp_path):
    """SIGKILL in the middle; the rerun keeps what was done and ends with the same manifest."""
    root = write_emodb(tmp_path / "raw", 1)
    calm = prepare(tmp_path / "calm", "emodb", root)
    source = "from pathlib import Path; import test_01_prepare_data as t\n"
    source += f"t.prepare_and_die(Path({str(tmp_path / 'killed')!r}), {str(root)!r})"
    run = FRESH.Process(target=execute, args=(source, tmp_path, tmp_path / "printed.txt"))
    run.start()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    folder = tmp_path / "killed" / "data" / "prepared" / "emodb"
    assert not (folder / "manifest.csv").exists()
    log = folder / "media.jsonl"
    with open(log, "a", encoding="utf-8") as file:
        file.write('{"utterance_id": "03a0')  # as a kill in the middle of a line leaves it
    assert list((folder / "audio").glob(".*.tmp*"))  # and half a recording
    noted = [json.loads(line)["audio"] for line in log.read_text().splitlines() if line.endswith("}")]
    made = {name: (folder / name).stat().st_mtime_ns for name in noted}
    resumed = prepare(tmp_path / "killed", "emodb", root)
    assert not list(folder.rglob("*.tmp*"))
    assert (folder / "manifest.csv").read_bytes() == calm.path("manifest.csv").read_bytes()
    assert len(resumed.turns) == 70 and len(made) > 10
    assert all((folder / name).stat().st_mtime_ns == when for name, when in made.items())


def test_the_data_at_a_glance(tmp_path):
    """Six turns of two speakers: lengths, words, genders, agreement and one copy, counted by hand."""
    samples = [
        np.sin(np.arange(n) / 20).astype(np.float32) * 0.3 for n in (16000, 32000, 48000, 16000, 64000)
    ]
    lines = ["utterance_id,speaker,audio,text,label,gender,agreement"]
    facts = [("a", "f", "one two", "sad", 0.5), ("a", "f", "one two three", "sad", 1.0)]
    facts += [("b", "m", "", "happy", 0.25), ("b", "m", "one", "happy", ""), ("b", "m", "one two", "", "")]
    for i, (speaker, gender, text, label, agreement) in enumerate(facts):
        soundfile.write(files.make_folder(tmp_path / "mine") / f"{i}.wav", samples[i], 16000)
        lines.append(f"u{i},{speaker},{i}.wav,{text},{label},{gender},{agreement}")
    (tmp_path / "mine" / "manifest.csv").write_text("\n".join(lines) + "\n")
    prepare(tmp_path, str(tmp_path / "mine"), "", "--MAX_PROBLEM_SHARE=1", drawn=True)
    folder = tmp_path / "results" / "01_prepare_data" / "mine"
    table = read_csv(folder / "data_table_overview.csv")
    found = {(line["row"], line["column"]): float(line["mean"]) for line in table}
    names = "turns", "speakers", "median duration", "longest", "median words", "without text"
    names += "repeated recordings", "by women", "raters who agree"
    assert {row: [found.get((row, name)) for name in names] for row, _ in found} == {
        "happy": [2, 1, 2.0, 3.0, 1, 1, 1, 0, 25],
        "sad": [2, 1, 1.5, 2.0, 2.5, 0, 0, 100, 75],
        "no label": [1, 1, 4.0, 4.0, 2, 0, 0, 0, None],
        "all turns": [5, 2, 2.0, 4.0, 2, 1, 1, 40, pytest.approx(58.3333, abs=1e-3)],
    }
    assert (folder / "data_fig_overview.png").stat().st_size > 5000
