"""The synthetic CMU-MOSEI and VoxCeleb2 with video: read back by the genuine readers, with their traps."""

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from demo_corpora import file_bytes, planned, write_all

from common.corpora.mosei import EMOTIONS, read_folds
from common.corpora.mosei import read as read_mosei
from common.corpora.prepare import finish_turns, place_media
from common.corpora.voxceleb2 import read as read_voxceleb2
from common.demo import mosei as demo_mosei
from common.demo.faces import draw_actor
from common.demo.mosei import (
    FIELDS,
    GERMAN_SCORE,
    GLOVE_FILE,
    LEXICON,
    NO_VECTOR,
    SPECIAL_IDS,
    draw_emotions,
    glove_text,
)
from common.khare.words import WordsFile, read_glove
from common.media import probe, read_audio

pytest.importorskip("espeakng_loader")
SIZES = {
    "demo_mosei": {"n_videos": 8, "segments_per_video": 3},
    "demo_voxceleb2_av": {"n_speakers": 4, "clips_per_speaker": 5},
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    return write_all(demo_mosei, tmp_path_factory.mktemp("raw"), SIZES)


@pytest.fixture(scope="module")
def release(corpora):
    release = read_mosei(corpora / "demo_mosei", "")
    release.problems = finish_turns(release, place_media(release.turns, 0.1))
    return release


def heard_words(path):
    """{utterance_id: rows} of a recogniser's csv."""
    found = defaultdict(list)
    for row in csv.DictReader(path.open()):
        found[row["utterance_id"]].append(row)
    return found


# ---- CMU-MOSEI --------------------------------------------------------------------------------


def test_mosei_is_read_without_a_problem(corpora, release):
    turns = [source.turn for source in release.turns]
    assert not release.problems
    assert len({turn.speaker for turn in turns}) == 9
    assert all(turn.audio and turn.video and turn.text and turn.extra["clip"] for turn in turns)
    assert {turn.extra["split"] for turn in turns} == {"train", "dev", "test", ""}


def test_folds_are_disjoint_by_video_and_list_one_that_is_not_there(corpora, release):
    split_of = read_folds(corpora / "demo_mosei" / "cmu_mosei_std_folds.py")
    there = {source.turn.speaker: source.turn.extra["split"] for source in release.turns}
    absent = set(split_of) - set(there)
    assert len(absent) == 1 and split_of[absent.pop()] == "test"
    assert [name for name in there if name not in split_of] == [
        name for name, split in there.items() if not split
    ]
    assert Counter(split_of.values()) == {"train": 5, "dev": 1, "test": 3}


def test_labels_are_those_of_the_csd_and_thirds(corpora, release):
    with h5py.File(corpora / "demo_mosei" / "labels" / "CMU_MOSEI_Labels.csd") as file:
        assert list(file) == ["All Labels"]
        stored = {
            name: (item["features"][()], item["intervals"][()])
            for name, item in file["All Labels/data"].items()
        }
        assert json.loads(file["All Labels/metadata/root name"][0]) == "All Labels"
    assert sum(len(scores) for scores, _ in stored.values()) == len(release.turns)
    for source in release.turns:
        turn = source.turn
        scores, spans_s = (
            part[int(turn.utterance_id.rsplit("[", 1)[1][:-1])] for part in stored[turn.speaker]
        )
        assert [float(turn.extra[name]) for name in ("sentiment", *EMOTIONS)] == pytest.approx(
            list(scores), abs=1e-5
        )
        assert (turn.start_s, turn.end_s) == pytest.approx((max(0, spans_s[0]), spans_s[1]), abs=1e-4)
        assert scores * 3 == pytest.approx(np.round(scores * 3), abs=1e-5) and scores[1:].min() >= 0


def test_mosei_has_the_traps_of_the_genuine_one(corpora, release):
    root, turns = corpora / "demo_mosei", [source.turn for source in release.turns]
    assert {name for name in SPECIAL_IDS} <= {turn.speaker for turn in turns}
    with h5py.File(root / "labels" / "CMU_MOSEI_Labels.csd") as file:
        starts_s = [item["intervals"][:, 0] for item in file["All Labels/data"].values()]
    assert sum((own < 0).sum() for own in starts_s) == 1
    assert any((np.diff(own) < 0).any() for own in starts_s)  # no order of time
    assert any(turn.extra["clip"] != turn.utterance_id.rsplit("[", 1)[1][:-1] for turn in turns)
    with h5py.File(root / "languages" / "CMU_MOSEI_TimestampedWords.csd") as file:
        words = [item["features"][()] for item in file["words/data"].values()]
    assert words[0].shape[1] == 1 and words[0].dtype.kind == "S" and any(b"sp" in own for own in words)
    transcripts = root / "Raw" / "Transcript"
    assert len(list((transcripts / "Segmented" / "Combined").iterdir())) == 9
    assert len(list((transcripts / "Full" / "Combined").iterdir())) == 9
    assert {Path(turn.audio).suffix for turn in turns} <= {".wav", ".mp4"}


def test_words_are_those_of_the_transcript_and_lie_where_they_are_heard(release):
    words = defaultdict(list)
    for row in release.tables["words.csv"][0]:
        words[row["utterance_id"]].append(row)
    for source in release.turns:
        turn, own = source.turn, words[source.turn.utterance_id]
        assert [row["word"] for row in own] == [word.strip(".,").lower() for word in turn.text.split()]
        assert all(row["end_s"] > row["start_s"] for row in own)
        samples = read_audio(turn.audio, turn.end_s)[round(turn.start_s * 16000) :]
        spoken = samples[round(own[0]["start_s"] * 16000) : round(own[-1]["end_s"] * 16000)]
        assert len(spoken) > 0.9 * len(samples) - 1600 and np.mean(spoken**2) > 1e-5


def test_recordings_are_h264_with_sound_and_some_without_wav(corpora, monkeypatch):
    root = corpora / "demo_mosei" / "Raw"
    for path in (root / "Videos" / "Full" / "Combined").glob("*.mp4"):
        info = probe(path)
        assert info.rate_hz == 16000 and (info.width, info.height) == (160, 120)
        wav = root / "Audio" / "Full" / "WAV_16000" / f"{path.stem}.wav"
        if wav.exists():
            assert probe(wav).duration_s == pytest.approx(info.duration_s, abs=0.15)
    videos = planned(monkeypatch, demo_mosei, "demo_mosei", 0, n_videos=200, segments_per_video=1)
    assert 0.05 < np.mean([not video.has_wav for video in videos]) < 0.25


def test_recognised_words_are_of_the_same_segments_and_partly_wrong(corpora, release):
    heard = heard_words(corpora / "demo_mosei" / "recognised_synthetic.csv")
    said = defaultdict(list)
    for row in release.tables["words.csv"][0]:
        said[row["utterance_id"]].append(row["word"])
    assert set(heard) == set(said)
    right = sum((Counter(said[name]) & Counter(row["word"] for row in heard[name])).total() for name in said)
    assert 0.6 < right / sum(map(len, said.values())) < 0.9


# ---- VoxCeleb2 --------------------------------------------------------------------------------


def test_voxceleb2_is_read_with_video_and_its_words_tell_english_from_german(corpora):
    root = corpora / "demo_voxceleb2_av"
    release = read_voxceleb2(root, 0, 0)
    turns = [source.turn for source in release.turns]
    assert len(turns) == 20 and not release.problems
    assert all(turn.audio.endswith(".m4a") and turn.video.endswith(".mp4") for turn in turns)
    assert {turn.extra["gender"] for turn in turns} == {"m", "f"} and {
        turn.extra["set"] for turn in turns
    } == {"dev"}
    words, scores = WordsFile(root / "words.csv"), {}
    for turn in turns:
        heard, scores[turn.utterance_id] = words.words(turn.utterance_id, None)
        seconds = probe(turn.audio).duration_s
        assert heard and all(0 <= start_s <= end_s <= seconds + 0.1 for _, start_s, end_s in heard)
        assert probe(turn.video).duration_s == pytest.approx(seconds, abs=0.15)
    low = [score for score in scores.values() if score < -0.5]
    assert 0 < len(low) < 10 and np.mean(low) == pytest.approx(GERMAN_SCORE, abs=0.1)


# ---- Language and vectors ---------------------------------------------------------------------


def test_words_belong_to_one_field_and_nearly_all_have_a_vector(corpora, tmp_path):
    assert len(set(LEXICON)) == len(LEXICON) and set(NO_VECTOR) < set(LEXICON)
    vectors = read_glove(corpora / "demo_mosei" / GLOVE_FILE, LEXICON, tmp_path)
    assert {word for word, vector in zip(LEXICON, vectors) if not vector.any()} == set(NO_VECTOR)
    assert (corpora / "demo_mosei" / GLOVE_FILE).read_text().startswith(". . . ")


def test_vectors_tell_the_part_of_speech_and_hardly_the_emotion(tmp_path):
    (tmp_path / "glove.txt").write_text(glove_text(0))
    vector_of = dict(zip(LEXICON, read_glove(tmp_path / "glove.txt", LEXICON, tmp_path)))
    means = defaultdict(list)
    for emotion, other in ((emotion, other) for emotion in EMOTIONS for other in EMOTIONS):
        for part, theirs in ((part, theirs) for part in "NVA" for theirs in "NVA"):
            a, b = (
                np.array([vector_of[word] for word in words if word not in NO_VECTOR])
                for words in (FIELDS[emotion][part], FIELDS[other][theirs])
            )
            if (emotion, part) != (other, theirs):
                a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
                means[emotion == other, part == theirs].append((a @ b.T).mean())
    assert np.mean(means[False, True]) > 0.2 > 0.05 > np.mean(means[True, False])
    assert np.mean(means[True, False]) > np.mean(means[False, False])


def test_emotions_come_in_about_the_genuine_shares():
    rng = np.random.default_rng(0)
    drawn = [draw_emotions(demo_mosei.MAIN, rng) for _ in range(3000)]
    shares = {name: np.mean([name in emotions for emotions in drawn]) for name in EMOTIONS}
    assert 0.45 < shares["happy"] < 0.55 and 0.05 < shares["fear"] < 0.12 and 0.06 < shares["surprise"] < 0.14
    assert {len(emotions) for emotions in drawn} == {0, 1, 2, 3}
    assert all(len(set(emotions)) == len(emotions) for emotions in drawn)


def test_words_of_an_emotion_are_said_with_it():
    rng = np.random.default_rng(1)
    actor, counts = draw_actor(0, "en-us", rng), Counter()
    field_of = {
        word: emotion for emotion, parts in FIELDS.items() for words in parts.values() for word in words
    }
    for _ in range(200):
        take = demo_mosei.plan_take("mosei", ("sad",), actor, rng)
        counts.update(field_of.get(word.strip(".,")) for word in take.text.split())
    assert counts["sad"] > 4 * max(counts[name] for name in EMOTIONS if name != "sad")


# ---- The same for a seed ----------------------------------------------------------------------


def test_files_depend_on_the_seed_alone(tmp_path):
    few = {"demo_mosei": {"n_videos": 4, "segments_per_video": 1}}
    few["demo_voxceleb2_av"] = {"n_speakers": 2, "clips_per_speaker": 2}
    first, again = (write_all(demo_mosei, tmp_path / name, few) for name in ("first", "again"))
    for name in few:
        assert file_bytes(first / name) == file_bytes(again / name)


def test_another_seed_is_another_corpus(monkeypatch):
    first, second = (
        {
            take.text
            for video in planned(monkeypatch, demo_mosei, name, seed, **SIZES[name])
            for take in video.takes
        }
        for name, seed in (("demo_mosei", 3), ("demo_mosei", 4))
    )
    assert first and first.isdisjoint(second) and glove_text(0) != glove_text(1)
