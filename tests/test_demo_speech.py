"""The synthetic speech corpora: genuine names, read by the genuine readers, the same for the same seed."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from demo_corpora import file_bytes, planned, write_all
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchaudio.transforms import MelSpectrogram

from common.corpora import emodb, ravdess, voxceleb2
from common.demo import speech as demo_speech
from common.demo.voices import FACES, FEATURES, MISTAKEN, SETTINGS, STYLES, Speaker
from common.demo.writing import Sound, write_m4a
from common.media import probe, read_audio

pytest.importorskip("espeakng_loader")
SIZES = {  # small, but more than one speaker of each sex and more than one video
    "demo_ravdess": {"n_actors": 5, "clips_per_emotion": 2},
    "demo_emodb": {"clips_per_speaker": 4},
    "demo_voxceleb2": {"n_speakers": 3, "clips_per_speaker": 4},
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return write_all(demo_speech, tmp_path_factory.mktemp("raw"), SIZES)


def levels(samples, n):
    """Mean square of n equal parts."""
    return np.array([np.mean(part**2) for part in np.array_split(samples, n)])


# ---- RAVDESS ----------------------------------------------------------------------------------


def test_ravdess_is_read_as_the_genuine_one(corpora):
    speech, song, both = (
        ravdess.read(corpora / "demo_ravdess", channel) for channel in ("speech", "song", "both")
    )
    assert not both.problems and len(both.turns) == len(speech.turns) + len(song.turns)
    assert Counter(s.turn.label for s in speech.turns) == dict.fromkeys(ravdess.CLASSES, 5 * 2)
    assert Counter(s.turn.label for s in song.turns) == dict.fromkeys(ravdess.CLASSES[:6], 5 * 2)
    assert {s.turn.speaker for s in both.turns} == {f"Actor_{k:02d}" for k in range(1, 6)}
    assert {s.turn.extra["channel"] for s in both.turns} == {"speech", "song"}
    assert all(s.turn.extra["intensity"] == "normal" for s in both.turns if s.turn.label == "neutral")
    folders = {"speech": "Audio_Speech_Actors_01-24", "song": "Audio_Song_Actors_01-24"}
    for source in both.turns:
        folder = folders[source.turn.extra["channel"]]
        assert source.audio.parent == corpora / "demo_ravdess" / folder / source.turn.speaker
        assert source.audio.name == f"03-{source.turn.utterance_id}.wav"


def test_ravdess_audio_is_48_khz_with_silence_at_both_ends(corpora):
    channels = Counter()
    for source in ravdess.read(corpora / "demo_ravdess", "both").turns:
        info = soundfile.info(str(source.audio))
        assert (info.samplerate, info.subtype) == (48000, "PCM_16") and 1.2 < info.duration < 8
        channels[info.channels] += 1
        samples = read_audio(source.audio)
        edge, power = 16000 // 12, np.mean(samples**2)
        assert max(np.mean(samples[:edge] ** 2), np.mean(samples[-edge:] ** 2)) < 1e-2 * power
    assert channels == {1: 138, 2: 2}


def test_all_takes_of_an_actor_differ_and_neutral_has_four(monkeypatch):
    recordings = planned(monkeypatch, demo_speech, "demo_ravdess", 0, n_actors=24, clips_per_emotion=8)
    names = [Path(recording.place).name for recording in recordings]
    assert len(set(names)) == len(names) == 24 * (60 + 44)  # a complete RAVDESS, save that Actor_18 sings
    assert len({recording.lines[0][1]["name"] for recording in recordings}) == 24


def test_song_has_a_word_per_note():
    speaker = Speaker("en-us+f1", {"pitch": 50, "range": 50, "rate_wpm": 170, "tilt": 0}, 1.0)
    voice = {"name": "en-us+f1", "pitch": 60, "range": 80, "rate_wpm": 200}
    lines = demo_speech.sing("Kids are talking by the door.", "calm", voice, speaker)
    assert [word for word, _ in lines] == ["Kids", "are", "talking", "by", "the", "door"]
    assert [voice["pitch"] for _, voice in lines] == [
        55,
        55,
        65,
        65,
        50,
        55,
    ]  # half of the emotion's 10 units
    assert {(voice["range"], voice["rate_wpm"]) for _, voice in lines} == {(0, 140)}


# ---- EMO-DB -----------------------------------------------------------------------------------


def test_emodb_is_read_as_the_genuine_one(corpora):
    release = emodb.read(corpora / "demo_emodb")
    assert not release.problems and len(release.turns) == 40
    assert Counter(s.turn.speaker for s in release.turns) == dict.fromkeys(demo_speech.EMODB_SPEAKERS, 4)
    assert {s.turn.label for s in release.turns} == set(emodb.CLASSES)
    for source in release.turns:
        info = soundfile.info(str(source.audio))
        assert (info.samplerate, info.channels, info.subtype) == (
            16000,
            1,
            "PCM_16",
        ) and 1 < info.duration < 9


# ---- VoxCeleb2 --------------------------------------------------------------------------------


def test_voxceleb2_is_read_as_the_genuine_one(corpora):
    release = voxceleb2.read(corpora / "demo_voxceleb2", 0, 0)
    assert not release.problems and release.media_in_place
    assert Counter(s.turn.speaker for s in release.turns) == {"id00012": 4, "id00019": 4, "id00026": 4}
    assert len({s.turn.dialogue_id for s in release.turns}) == 6  # videos of three clips and of one
    assert [
        {s.turn.extra["gender"] for s in release.turns if s.turn.speaker == name}
        for name in ("id00012", "id00019", "id00026")
    ] == [{"f"}, {"m"}, {"f"}]
    for source in release.turns:
        path = Path(source.turn.audio)
        assert re.fullmatch(
            r"dev/aac/id\d{5}/[\w-]{11}/\d{5}\.m4a", str(path.relative_to(corpora / "demo_voxceleb2"))
        )
        info = probe(path)
        samples = read_audio(path)
        assert info.rate_hz == 16000 and 4.0 <= len(samples) / 16000 <= 8.0 + 1024 / 16000
        assert (
            0.1 < np.abs(samples).max() < 1.1 and (levels(samples, 8) > 1e-6).all()
        )  # no stretch of nothing


def test_vox2_meta_has_the_trailing_blanks_of_the_genuine_one(corpora):
    lines = (corpora / "demo_voxceleb2" / "vox2_meta.csv").read_text().splitlines()
    assert lines[:2] == ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set ", "id00012 ,n000001 ,f ,dev "]


def test_m4a_does_not_count_the_encoders_delay(tmp_path):
    write_m4a(tmp_path / "a.m4a", Sound(0.1 * np.ones(40000)))
    assert probe(tmp_path / "a.m4a").duration_s == pytest.approx(2.5, abs=1e-3)


def test_in_the_wild_adds_noise_at_the_level_drawn(monkeypatch):
    monkeypatch.setattr(demo_speech, "REVERBERATION_S", (0.001, 0.001))
    monkeypatch.setattr(demo_speech, "NOISE_DB", (-20.0, -20.0))
    speech = np.random.default_rng(0).standard_normal(64000)
    speech[:32000] = 0
    heard = demo_speech.in_the_wild(speech, np.random.default_rng(1))
    noise, both = levels(heard, 2)  # -20 dB against the mean of silence and speech: 1 to 2 / 100
    assert 10 * np.log10(noise / (both - noise)) == pytest.approx(-23, abs=3.5)
    assert 0.2 <= np.abs(heard).max() <= 0.95


# ---- All three --------------------------------------------------------------------------------


def test_same_seed_same_files_from_any_number_of_processes(corpora, tmp_path):
    """To the byte."""
    write_all(demo_speech, tmp_path, {"demo_voxceleb2": SIZES["demo_voxceleb2"]}, workers=2)
    assert file_bytes(tmp_path / "demo_voxceleb2") == file_bytes(corpora / "demo_voxceleb2")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", SIZES)
def test_another_seed_another_corpus(monkeypatch, name):
    first, again, other = (
        [recording.lines for recording in planned(monkeypatch, demo_speech, name, seed, **SIZES[name])]
        for seed in (3, 3, 4)
    )
    assert first == again and not any(lines in other for lines in first)


def test_every_emotion_has_a_style_a_face_and_a_mistake():
    acted = {emotion for emotion, _ in demo_speech.EMODB_EMOTIONS.values()}
    assert set(MISTAKEN) == acted | set(ravdess.CLASSES) and demo_speech.RAVDESS_EMOTIONS == ravdess.CLASSES
    assert all(emotion not in others and set(others) < set(MISTAKEN) for emotion, others in MISTAKEN.items())
    assert all(list(STYLES[emotion]) == list(SETTINGS) for emotion in MISTAKEN)
    assert all(list(FACES[emotion]) == list(FEATURES) for emotion in {*ravdess.CLASSES, "lombard"})


def test_emotion_can_be_told_from_unknown_voices_but_not_always(corpora):
    """Log-mel statistics and a linear classifier, actors held out: well above 1 in 8, well below all."""
    mel = MelSpectrogram(16000, n_fft=512, hop_length=160, n_mels=40)
    turns = ravdess.read(corpora / "demo_ravdess", "speech").turns
    features = []
    for source in turns:
        samples = torch.from_numpy(read_audio(source.audio))
        frames = torch.log(mel(samples / samples.abs().max()) + 1e-6).numpy()  # (mel, T)
        features.append(np.concatenate([frames.mean(1), frames.std(1)]))
    labels = np.array([source.turn.label for source in turns])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
    guessed = cross_val_predict(
        model, np.stack(features), labels, groups=[s.turn.speaker for s in turns], cv=GroupKFold(5)
    )
    assert 0.25 < np.mean(guessed == labels) < 0.85
