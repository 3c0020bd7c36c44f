"""VoxCeleb2's reader on empty files in the layouts that are about, and its AAC audio on real files."""

import os
import re
from fractions import Fraction

import av
import numpy as np
import pytest

from common.corpora import voxceleb2
from common.corpora.voxceleb2 import read as read_voxceleb2
from common.files import UserError
from common.manifest import Manifest, read_manifest, write_manifest
from common.media import MediaError, read_audio

META = "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid00012 ,n000012 ,f ,dev \nid00017 ,n000017 ,m ,test \n"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def turns_of(root, n_speakers=0, seed=0):
    return {s.turn.utterance_id: s.turn for s in read_voxceleb2(root, n_speakers, seed).turns}


# ---- Layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder, ending, split",
    [
        ("dev/aac", "m4a", "dev"),  # the archive of the development set
        ("aac", "m4a", ""),  # that of the test set
        ("test/aac", "m4a", "test"),
        ("dev/mp4", "mp4", "dev"),  # the video archives
        ("train/part3", "wav", "dev"),  # a copy in parts, coded again
        ("", "wav", ""),
    ],
)
def test_layouts(tmp_path, folder, ending, split):
    root = tmp_path / "VoxCeleb2"
    names = [
        f"id00012/-6kGfBX1234/00003.{ending}",
        f"id00012/-6kGfBX1234/00001.{ending}",
        f"id00012/_a-B_c-D_e-/00007.{ending}",
        f"id00017/21Uxsk56VDQ/00001.{ending}",
    ]
    touch(root / folder, *names)
    turns = turns_of(root)
    assert list(turns) == [
        "id00012_-6kGfBX1234_00001",
        "id00012_-6kGfBX1234_00003",
        "id00012__a-B_c-D_e-_00007",
        "id00017_21Uxsk56VDQ_00001",
    ]
    turn = turns["id00012_-6kGfBX1234_00003"]
    assert (turn.dialogue_id, turn.turn, turn.speaker) == ("id00012_-6kGfBX1234", 1, "id00012")
    assert (turn.label, turn.text, turn.start_s, turn.end_s) == ("", "", 0.0, 0.0)
    assert turn.video == (turn.audio if ending == "mp4" else "")
    assert turn.audio == str(root / folder / names[0]) and turn.extra == {"gender": "", "set": split}
    release = read_voxceleb2(root, 0, 0)
    assert release.classes == () and release.media_in_place and not release.problems


def test_any_folder_above_the_videos_is_a_root(tmp_path):
    touch(tmp_path, "VoxCeleb2/dev/aac/id00012/21Uxsk56VDQ/00001.m4a")
    for root in ("", "VoxCeleb2", "VoxCeleb2/dev", "VoxCeleb2/dev/aac", "VoxCeleb2/dev/aac/id00012"):
        [turn] = turns_of(tmp_path / root).values()
        assert turn.utterance_id == "id00012_21Uxsk56VDQ_00001"
        assert turn.extra["set"] == ("dev" if root.count("/") < 2 else "")
    with pytest.raises(UserError, match="no VoxCeleb2 clips such as"):
        read_voxceleb2(touch(tmp_path, "other/id00012/readme.txt") / "other", 0, 0)
    with pytest.raises(UserError, match="no such folder"):
        read_voxceleb2(tmp_path / "absent", 0, 0)


def test_a_clip_counts_once_and_m4a_goes_before_wav_before_mp4(tmp_path):
    clip = "id00012/21Uxsk56VDQ/0000"
    touch(
        tmp_path,
        f"dev/mp4/{clip}1.mp4",
        f"dev/aac/{clip}1.m4a",
        f"a/{clip}1.wav",
        f"dev/mp4/{clip}2.mp4",
        f"wav/{clip}2.wav",
        f"dev/mp4/{clip}3.mp4",
        f"b/{clip}1.m4a",
    )
    turns = turns_of(tmp_path)
    assert [turn.audio.removeprefix(f"{tmp_path}/") for turn in turns.values()] == [
        f"b/{clip}1.m4a",
        f"wav/{clip}2.wav",
        f"dev/mp4/{clip}3.mp4",
    ]
    assert [turn.turn for turn in turns.values()] == [0, 1, 2]


def test_sound_and_picture_of_a_clip_are_one_turn(tmp_path):
    clip = "id00012/-1Uxsk56VDQ/0000"
    touch(
        tmp_path,
        f"dev/aac/{clip}1.m4a",
        f"dev/mp4/{clip}1.mp4",
        f"dev/aac/{clip}2.m4a",
        f"dev/mp4/{clip}3.mp4",
        f"copy/mp4/{clip}1.mp4",
    )
    release = read_voxceleb2(tmp_path, 0, 0)
    names = [
        tuple(path.removeprefix(f"{tmp_path}/") for path in (s.turn.audio, s.turn.video))
        for s in release.turns
    ]
    assert names == [
        (f"dev/aac/{clip}1.m4a", f"copy/mp4/{clip}1.mp4"),
        (f"dev/aac/{clip}2.m4a", ""),
        (f"dev/mp4/{clip}3.mp4", f"dev/mp4/{clip}3.mp4"),
    ]
    assert not release.problems


def test_hidden_files_and_odd_names(tmp_path):
    video = "dev/aac/id00012/21Uxsk56VDQ"
    touch(
        tmp_path,
        f"{video}/00001.m4a",
        f"{video}/._00001.m4a",
        f"{video}/00001.txt",
        f"{video}/1.m4a",
        "dev/aac/id00012/short/00001.m4a",
        "dev/aac/id00012/._21Uxsk56VDQ",
        "dev/aac/.trash/id00017/21Uxsk56VDQ/00001.m4a",
        "dev/aac/id00012/elevenchars",
        "dev/aac/id123456/21Uxsk56VDQ/00001.m4a",
        "list.txt",
    )
    release = read_voxceleb2(tmp_path, 0, 0)
    assert [source.turn.utterance_id for source in release.turns] == ["id00012_21Uxsk56VDQ_00001"]
    assert sorted(p.file.rsplit("/", 1)[1] for p in release.problems) == ["1.m4a", "elevenchars", "short"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "disk2/part1/id00012/21Uxsk56VDQ/00001.m4a", "root/dev/id00017/21Uxsk56VDQ/00001.m4a")
    (tmp_path / "root" / "part1").symlink_to(tmp_path / "disk2" / "part1")
    (tmp_path / "root" / "dev" / "up").symlink_to(tmp_path / "root")
    assert len(turns_of(tmp_path / "root")) == 2


def test_no_clip_is_opened_or_asked_for_its_size(tmp_path):
    """A million files on a network drive: a name must be enough. These names lead nowhere."""
    folder = tmp_path / "dev/aac/id00012/21Uxsk56VDQ"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number:05d}.m4a").symlink_to("nowhere")
    (folder / "00000.mp4").symlink_to("nowhere")
    assert len(turns_of(tmp_path)) == 3
    assert [bool(s.turn.video) for s in read_voxceleb2(tmp_path, 0, 0).turns] == [
        True,
        False,
        False,
    ]


# ---- Facts about speakers ---------------------------------------------------------------------


@pytest.mark.parametrize("text", [META, META.replace(",", "\t"), META.replace("\n", "\r\n")])
def test_meta_with_trailing_blanks_or_tabs(tmp_path, text):
    touch(tmp_path, *(f"aac/id000{k}/21Uxsk56VDQ/00001.m4a" for k in (12, 17, 19)))
    (tmp_path / "vox2_meta.csv").write_text(text, newline="")
    for root in (tmp_path, tmp_path / "aac"):
        facts = {turn.speaker: turn.extra for turn in turns_of(root).values()}
        assert facts == {
            "id00012": {"gender": "f", "set": "dev"},
            "id00017": {"gender": "m", "set": "test"},
            "id00019": {"gender": "", "set": ""},
        }


def test_counts_are_held_against_the_release(tmp_path, monkeypatch):
    touch(
        tmp_path,
        *(f"dev/aac/id{k:05d}/21Uxsk56VDQ/{n:05d}.m4a" for k in range(3) for n in range(2)),
        "test/aac/id00009/21Uxsk56VDQ/00001.m4a",
    )
    assert sum(clips for _, clips in voxceleb2.COUNTS.values()) == 1128246
    assert sum(speakers for speakers, _ in voxceleb2.COUNTS.values()) == 6112
    notes = read_voxceleb2(tmp_path, 0, 0).notes
    assert notes == [
        "dev speakers: 3 (the full release has 5,994); clips: 6 (the full release has 1,092,009)",
        "test speakers: 1 (the full release has 118); clips: 1 (the full release has 36,237)",
    ]
    monkeypatch.setattr(voxceleb2, "COUNTS", {"dev": (3, 6), "test": (1, 1)})
    assert all(note.count("as in the release") == 2 for note in read_voxceleb2(tmp_path, 0, 0).notes)


def test_some_speakers_drawn_by_seed(tmp_path):
    touch(tmp_path, *(f"dev/aac/id{k:05d}/21Uxsk56VDQ/{n:05d}.m4a" for k in range(40) for n in range(2)))
    first, again, other = (turns_of(tmp_path, 10, seed) for seed in (0, 0, 1))
    speakers = [sorted({turn.speaker for turn in turns.values()}) for turns in (first, other)]
    assert list(first) == list(again) == sorted(first) and len(first) == 20
    assert len(speakers[0]) == len(speakers[1]) == 10 and speakers[0] != speakers[1]
    assert speakers[0] != [f"id{k:05d}" for k in range(10)]  # drawn, not the first ones
    assert "10 of 40 speakers, drawn with seed 1: 20 clips" in read_voxceleb2(tmp_path, 10, 1).notes
    assert len(turns_of(tmp_path, 41)) == len(turns_of(tmp_path)) == 80


# ---- In the manifest --------------------------------------------------------------------------


def test_paths_hold_from_any_working_directory(tmp_path, monkeypatch):
    touch(tmp_path, "raw/aac/id00012/-1Uxsk56VDQ/00001.m4a")
    monkeypatch.chdir(tmp_path)
    [source] = read_voxceleb2("raw", 0, 0).turns
    write_manifest(Manifest("voxceleb2", tmp_path / "prepared" / "voxceleb2", (), [source.turn]))
    monkeypatch.chdir("/")
    manifest = read_manifest(tmp_path, "voxceleb2")
    [turn] = manifest.turns
    assert manifest.path(turn.audio) == tmp_path / "raw/aac/id00012/-1Uxsk56VDQ/00001.m4a"
    assert manifest.path(turn.audio).exists() and manifest.labelled == [] and manifest.classes == ()
    assert re.fullmatch(r"[\w-]+", turn.utterance_id) and not turn.utterance_id.startswith("-")


# ---- AAC in an MP4 container ------------------------------------------------------------------


def write_aac(path, samples, rate_hz):
    """samples (channels, T) as AAC."""
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate_hz, layout=layout)
        stream.bit_rate = 96000
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("rate_hz, n_channels", [(16000, 1), (16000, 2), (44100, 2)])
def test_m4a_is_read_as_16_khz_mono(tmp_path, rate_hz, n_channels):
    """2.5 s of a 440 Hz tone of 0.3, louder and softer on the two channels."""
    seconds = 2.5
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)
    write_aac(tmp_path / "00001.m4a", np.stack([1.2 * tone, 0.8 * tone][:n_channels]), rate_hz)
    samples = read_audio(tmp_path / "00001.m4a")
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) / 16000 == pytest.approx(seconds, abs=1024 / rate_hz)  # within a frame of AAC
    middle = samples[8000:24000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440  # one second: bins of 1 Hz
    expected = 0.3 * (1.2 if n_channels == 1 else 1.0)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(expected, rel=0.03)


def test_damaged_m4a_is_a_media_error(tmp_path):
    write_aac(tmp_path / "a.m4a", 0.1 * np.ones((1, 16000)), 16000)
    whole = (tmp_path / "a.m4a").read_bytes()
    for content in (b"", b"not audio at all", whole[:200], b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "b.m4a").write_bytes(content)
        with pytest.raises(MediaError):
            read_audio(tmp_path / "b.m4a")
    os.remove(tmp_path / "b.m4a")
    with pytest.raises(MediaError):
        read_audio(tmp_path / "b.m4a")
