"""The synthetic audio-visual corpora: genuine names and media, sound and picture that agree."""

import csv
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from demo_corpora import file_bytes, planned, write_all

from common.corpora import ravdess
from common.corpora.cremad import SENTENCES
from common.demo import av as demo_av
from common.demo.faces import draw_actor, set_face
from common.demo.sounds import loudness
from common.media import MediaError, probe, read_audio, read_frames

pytest.importorskip("espeakng_loader")
SIZES = {  # small, but both sexes, several emotions, both exceptions of Lombard GRID
    "demo_cremad": {"n_actors": 2, "clips_per_actor": 7},
    "demo_ravdess_av": {"n_actors": 2, "clips_per_emotion": 1},
    "demo_lombard": {"n_talkers": 3, "sentences_per_condition": 2},
    "demo_audioset": {"n_clips": 8},
}
# As in FORMATS.md, sections 6 and 7.
CREMAD_STEM = re.compile(r"\d{4}_[A-Z]{3}_(ANG|DIS|FEA|HAP|NEU|SAD)_(LO|MD|HI|XX)")
GRID_CODE = "[blps][bgrw][abiw][a-vx-z][z1-9][anps]"
GRID_STEM = re.compile(rf"s\d{{1,2}}_[lp]_{GRID_CODE}(_WRONG_{GRID_CODE})?")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return write_all(demo_av, tmp_path_factory.mktemp("raw"), SIZES)


def codecs(path):
    with av.open(str(path)) as container:
        return {stream.type: stream.codec_context.name for stream in container.streams}


def stems(folder, pattern):
    return sorted(path.stem for path in folder.glob(pattern))


# ---- CREMA-D ----------------------------------------------------------------------------------


def test_cremad_has_the_names_and_side_files_of_the_release(corpora):
    root = corpora / "demo_cremad"
    names = stems(root, "AudioWAV/*.wav")
    assert len(names) == 14 and names == stems(root, "VideoFlash/*.flv")
    assert all(CREMAD_STEM.fullmatch(name) for name in names)
    assert all(name.endswith("_XX") or "_IEO_" in name for name in names)
    assert Counter(name[:4] for name in names) == {"1001": 7, "1002": 7}
    assert {name[9:12] for name in names} == {"ANG", "DIS", "FEA", "HAP", "NEU", "SAD"}
    tables = {
        path: list(csv.DictReader((root / path).open()))
        for path in ("VideoDemographics.csv", "processedResults/summaryTable.csv")
    }
    people, votes = tables.values()
    assert [(row["ActorID"], row["Sex"]) for row in people] == [("1001", "Female"), ("1002", "Male")]
    assert list(people[0]) == ["ActorID", "Age", "Sex", "Race", "Ethnicity"]
    assert list(votes[0]) == ["", "FileName", "MultiModalVote"]
    assert sorted(row["FileName"] for row in votes) == names
    assert all(set(row["MultiModalVote"].split(":")) <= set("ADFHNS") for row in votes)


def test_a_complete_cremad_has_82_clips_per_actor(monkeypatch):
    scenes = planned(monkeypatch, demo_av, "demo_cremad", 0, n_actors=91, clips_per_actor=82)
    places = [scene.place for scene in scenes]
    assert len(set(places)) == len(places) == 91 * 82
    assert Counter(place[5:8] for place in places[:82]) == {
        "IEO": 16,
        **dict.fromkeys(set(SENTENCES) - {"IEO"}, 6),
    }
    assert Counter(place[9:12] for place in places[:82]) == {
        "NEU": 12,
        **dict.fromkeys(("ANG", "DIS", "FEA", "HAP", "SAD"), 14),
    }


def test_cremad_is_flv_at_ntsc_rate_some_without_sound(corpora):
    found = Counter()
    for path in (corpora / "demo_cremad" / "VideoFlash").glob("*.flv"):
        info, sound = probe(path), soundfile.info(str(path.parent.parent / "AudioWAV" / f"{path.stem}.wav"))
        assert codecs(path)["video"] == "flv" and (info.width, info.height) == (160, 120)
        assert info.fps == pytest.approx(30000 / 1001, abs=0.01)
        assert (sound.samplerate, sound.channels, sound.subtype) == (16000, 1, "PCM_16")
        assert 1.5 <= sound.duration <= 3.0
        pictures, times_s = read_frames(path)
        assert len(pictures) / float(demo_av.NTSC_FPS) == pytest.approx(sound.duration, abs=0.02)
        assert np.diff(times_s) == pytest.approx(1001 / 30000, abs=1.1e-3)  # FLV counts milliseconds
        found[info.rate_hz] += 1
    assert found == {22050: 11, 0: 3}


def test_flv_and_wav_have_the_same_sound(corpora):
    path = next(
        path for path in sorted((corpora / "demo_cremad" / "VideoFlash").glob("*.flv")) if probe(path).rate_hz
    )
    wav, flv = (read_audio(file) for file in (path.parent.parent / "AudioWAV" / f"{path.stem}.wav", path))
    n = min(len(wav), len(flv))
    spectrum = np.fft.rfft(wav[:n], 2 * n) * np.conj(np.fft.rfft(flv[:n], 2 * n))
    correlation = np.fft.irfft(spectrum) / np.linalg.norm(wav) / np.linalg.norm(flv)
    assert correlation.max() > 0.95  # MP3 delays it by some milliseconds


# ---- RAVDESS ----------------------------------------------------------------------------------


def test_ravdess_is_read_as_the_genuine_one(corpora):
    root = corpora / "demo_ravdess_av"
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    assert len(paths) == 16 and all(path.suffix == ".mp4" for path in paths)
    for path in paths:
        match = ravdess.NAME.fullmatch(path.stem)
        assert match[1] == match[2] == "01" and path.parent.name == f"Actor_{match[7]}"
    release = ravdess.read(root, "speech")
    assert not release.problems and all(source.audio == source.video for source in release.turns)
    assert Counter(source.turn.label for source in release.turns) == dict.fromkeys(ravdess.CLASSES, 2)


def test_ravdess_is_h264_with_stereo_sound(corpora):
    for path in (corpora / "demo_ravdess_av").glob("*/*.mp4"):
        info = probe(path)
        assert codecs(path) == {"video": "h264", "audio": "aac"}
        assert info.rate_hz == 48000 and 3.4 < info.duration_s < 4.6
        assert info.width * 9 == info.height * 16
        with av.open(str(path)) as container:
            assert container.streams.video[0].average_rate == Fraction(30000, 1001)
            assert container.streams.audio[0].channels == 2
        samples = read_audio(path)
        assert np.mean(samples[:3200] ** 2) < 0.1 * np.mean(samples**2)  # silence before the sentence


# ---- Lombard GRID -----------------------------------------------------------------------------


def test_lombard_has_the_names_of_the_release(corpora):
    root = corpora / "demo_lombard" / "lombardgrid"
    names = stems(root, "audio/*.wav")
    assert len(names) == 12 and names == stems(root, "front/*.mov")
    assert all(GRID_STEM.fullmatch(name) for name in names)
    assert Counter(name.split("_")[:2][0] + name.split("_")[1] for name in names) == dict.fromkeys(
        [f"s{k}{condition}" for k in (2, 3, 4) for condition in "lp"], 2
    )


def test_lombard_has_a_misread_sentence_and_a_video_without_moov(corpora):
    root = corpora / "demo_lombard" / "lombardgrid"
    [wrong] = [name for name in stems(root, "audio/*.wav") if "WRONG" in name]
    stem, said = wrong.split("_WRONG_")
    assert stem.startswith("s3_p_") and said[:-1] == stem[5:-1] and said[-1] != stem[-1]
    broken = []
    for path in root.glob("front/*.mov"):
        try:
            probe(path)
        except MediaError:
            broken.append(path)
    assert len(broken) == 1 and broken[0].name.startswith("s4_l_")
    assert b"moov" not in broken[0].read_bytes() and b"mdat" in broken[0].read_bytes()
    assert probe(root / "audio" / f"{broken[0].stem}.wav").duration_s > 1.9


def test_lombard_is_silent_mov_with_frames_at_irregular_times(corpora):
    root = corpora / "demo_lombard" / "lombardgrid"
    for path in (root / "front").glob("s[23]*.mov"):
        assert codecs(path) == {"video": "h264"}
        info, (_, times_s) = soundfile.info(str(root / "audio" / f"{path.stem}.wav")), read_frames(path)
        assert (info.samplerate, info.channels) == (48000, 1) and 2.0 <= info.duration <= 2.7
        steps_s = np.diff(times_s)
        assert steps_s.mean() == pytest.approx(1 / 24, rel=0.1) and steps_s.std() > 0.003
        assert times_s[0] == 0 and info.duration - 0.1 < times_s[-1] < info.duration


def test_command_code():
    assert demo_av.command_code(("bin", "blue", "in", "m", "three", "again")) == "bbim3a"  # s2_l_bbim3a
    assert demo_av.command_code(("set", "white", "with", "z", "zero", "please")) == "swwzzp"


def test_lombard_speech_is_louder_higher_slower_and_opens_the_mouth(monkeypatch):
    scenes = planned(monkeypatch, demo_av, "demo_lombard", 0, n_talkers=20, sentences_per_condition=10)
    values = {
        condition: np.array(
            [
                (
                    scene.voice["gain_db"],
                    scene.lines[0][1]["pitch"],
                    scene.lines[0][1]["rate_wpm"],
                    scene.face["open"],
                )
                for scene in scenes
                if scene.place.split("_")[1] == condition
            ]
        )
        for condition in "lp"
    }
    gain_db, pitch, rate_wpm, opening = values["l"].mean(axis=0) - values["p"].mean(axis=0)
    assert gain_db > 5 and pitch > 8 and rate_wpm < -5 and opening > 0.5
    assert all(
        (values["p"][:, k] > np.median(values["l"][:, k])).any() for k in (0, 1, 3)
    )  # none decides alone


# ---- AudioSet ---------------------------------------------------------------------------------


def test_audioset_has_a_cav_mae_manifest(corpora):
    root = corpora / "demo_audioset"
    entries = json.loads((root / "audioset_20k.json").read_text())["data"]
    assert len({entry["video_id"] for entry in entries}) == len(entries) == 8
    for entry in entries:
        assert set(entry) == {"video_id", "wav", "video_path", "labels"}
        assert re.fullmatch(r"[\w-]{11}", entry["video_id"])
        assert re.fullmatch("/m/09x0r,/m/0(5zppz|2zsn)", entry["labels"])
        wav, video = Path(entry["wav"]), Path(entry["video_path"]) / f"{entry['video_id']}.mp4"
        assert wav.is_absolute() and wav.stem == entry["video_id"]
        sound, info = soundfile.info(str(wav)), probe(video)
        assert (sound.samplerate, sound.channels) == (16000, 1) and codecs(video) == {
            "video": "h264",
            "audio": "aac",
        }
        assert sound.duration == demo_av.AUDIOSET_S and info.fps == demo_av.AUDIOSET_FPS
        assert info.n_frames == demo_av.AUDIOSET_S * demo_av.AUDIOSET_FPS


def test_audioset_has_many_speakers(monkeypatch):
    scenes = planned(monkeypatch, demo_av, "demo_audioset", 0, n_clips=60)
    assert len({str(scene.actor.looks) for scene in scenes}) == 60
    assert 20 < len({scene.actor.speaker.name for scene in scenes})


# ---- Acting -----------------------------------------------------------------------------------


def test_an_expression_builds_up_and_fades():
    rng = np.random.default_rng(0)
    curves = [demo_av.expression_curve(3.0, rng)[1] for _ in range(200)]
    assert all(len(curve) == 151 and 0 <= curve.min() and curve.max() <= 1.3 for curve in curves)
    start, height, end = (
        np.mean([curve[part].mean() for curve in curves])
        for part in (slice(0, 10), slice(60, 100), slice(-10, None))
    )
    assert start < 0.3 < end < height - 0.2 and height > 0.85
    assert max(np.abs(np.diff(curve)).max() for curve in curves) < 0.1  # slowly: 20 ms change little


def test_mouth_and_head_follow_the_voice():
    rng = np.random.default_rng(0)
    actor = draw_actor(0, "en-us", rng)
    voice = np.concatenate(
        [np.zeros(16000), 0.2 * rng.standard_normal(16000), 0.05 * rng.standard_normal(16000)]
    )
    scene = demo_av.Scene("x", actor, (0,), [], {}, set_face(actor, "happy", 1.0, rng), (0.0, 3.0), 0.0, 0.0)
    face = demo_av.act_face(scene, voice, (np.arange(151) / 50, np.ones(151)), (0.5, 1.5, 2.5), rng)
    mouth, head = face["open"], face["sway_y"]
    assert mouth[0] == 0 and mouth[1] > 3 * mouth[2] > 0
    assert mouth[1] == pytest.approx(scene.face["open"], rel=0.05)
    assert head[1] < head[2] - 3 < head[0] - 3  # y grows downwards
    assert face["smile"] == pytest.approx(np.full(3, actor.habit["smile"] + scene.face["smile"]))


def test_each_modality_shows_another_emotion_now_and_then():
    rng = np.random.default_rng(0)
    classes = tuple(demo_av.CREMAD_EMOTIONS.values())
    for modality, sure in demo_av.SHOWS.items():
        shown = Counter(demo_av.show("angry", modality, "cremad", rng) for _ in range(2000))
        assert shown["angry"] / 2000 == pytest.approx(sure, abs=0.03) and set(shown) == {
            "angry",
            "disgust",
            "happy",
        }
    for emotion in classes:  # none is mistaken for a class that the corpus lacks
        assert {demo_av.show(emotion, "face", "cremad", rng) for _ in range(200)} <= set(classes)


def test_picture_and_sound_of_a_file_go_together(corpora):
    """How far the mouth is open, seen as dark pixels below the nose, follows the loudness of the wav."""
    found = []
    for path in sorted((corpora / "demo_ravdess_av").glob("*/*.mp4")):
        pictures, times_s = read_frames(path)
        mouth = (pictures[:, 75:112, 92:132].astype(int).sum(axis=3) < 150).sum(axis=(1, 2))
        loud = loudness(read_audio(path), times_s, 0.3)
        found.append(np.corrcoef(np.convolve(mouth, np.ones(9) / 9, "same"), loud)[0, 1])
    assert np.median(found) > 0.5


# ---- All four ---------------------------------------------------------------------------------


def test_same_seed_same_files_from_any_number_of_processes(corpora, tmp_path):
    """To the byte, save the folder's name."""
    write_all(demo_av, tmp_path, {name: SIZES[name] for name in ("demo_lombard", "demo_audioset")}, workers=2)
    for again in tmp_path.iterdir():
        assert file_bytes(again) == file_bytes(corpora / again.name)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", SIZES)
def test_another_seed_another_corpus(monkeypatch, name):
    first, again, other = (
        [repr(scene) for scene in planned(monkeypatch, demo_av, name, seed, **SIZES[name])]
        for seed in (3, 3, 4)
    )
    assert first == again and not set(first) & set(other)
