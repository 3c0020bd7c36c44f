"""What 07 reads: folds, targets, who is pretrained on, words and their vectors, inputs left out."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.corpora.mosei import EMOTIONS
from common.errors import UserError
from common.khare import data as khare_data
from common.khare.features import ClipFeatures, Transcripts, WordsFile, write_store
from common.manifest import Manifest, Turn

SCORES = {
    "train": ("1", "0", "0", "0.333", "0", "0"),
    "dev": ("0",) * 6,
    "test": ("0", "0", "0", "0", "0", "3"),
}


def mosei(tmp_path, videos=(("a", "train"), ("b", "train"), ("c", "dev"), ("d", "test"), ("e", ""))):
    turns = [
        Turn(
            f"{video}[{k}]",
            video,
            k,
            video,
            "",
            2.0 * k,
            2.0 * k + 1.5,
            text="Yes, it is!",
            audio="/wav",
            extra={
                **dict(zip(EMOTIONS, SCORES.get(split, SCORES["dev"]))),
                "split": split,
                "video_id": video,
            },
        )
        for video, split in videos
        for k in range(2)
    ]
    return Manifest("mosei", tmp_path, (), turns)


def labelled(tmp_path, split=True):
    turns = [
        Turn(
            f"u{i}",
            f"d{i // 4}",
            i % 4,
            f"s{i // 4}",
            "",
            0.0,
            2.0,
            text="so so",
            label=("x", "y", "")[i % 3],
            extra={"split": ("train", "dev", "test")[i // 8]} if split else {},
        )
        for i in range(24)
    ]
    return Manifest("meld", tmp_path, ("x", "y"), turns)


def store_of(tmp_path, words):
    clips = [
        ClipFeatures(name, 2.0, words=[(word, None, None) for word in text.split()])
        for name, text in words.items()
    ]
    return write_store(clips, tmp_path / "store", {}, 0.05, 0.5, 200, 4096, 10)


def test_emotions_of_mosei_are_several_at_once(tmp_path):
    manifest = mosei(tmp_path)
    assert khare_data.emotions_of(manifest) == EMOTIONS
    found = khare_data.targets_of(manifest, manifest.turns)
    assert found[0].tolist() == [True, False, False, True, False, False] and not found[4].any()
    assert found.shape == (10, 6) and khare_data.targets_of(manifest, []).shape == (0, 6)
    fold = khare_data.fold_of(manifest, 5)
    assert [[turn.speaker for turn in part] for part in (fold.train, fold.valid, fold.test)] == [
        ["a", "a", "b", "b"],
        ["c", "c"],
        ["d", "d"],
    ]
    with pytest.raises(UserError, match="no segment of the dev fold"):
        khare_data.fold_of(mosei(tmp_path, (("a", "train"), ("d", "test"))), 5)


def test_a_video_in_two_folds_is_an_error(tmp_path):
    manifest = mosei(tmp_path)
    manifest.turns[0].extra["split"] = "test"
    with pytest.raises(AssertionError, match="in two folds"):
        khare_data.fold_of(manifest, 5)


def test_one_label_is_one_emotion_of_as_many_as_classes(tmp_path):
    manifest = labelled(tmp_path)
    assert khare_data.emotions_of(manifest) == ("x", "y")
    assert khare_data.targets_of(manifest, manifest.labelled)[:2].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("split", [True, False])
def test_a_corpus_pretrained_on_itself_gives_no_turn_of_its_test_part(tmp_path, split):
    manifest = labelled(tmp_path, split)
    fold = khare_data.fold_of(manifest, 3)
    train, held_out = khare_data.own_turns(manifest, fold)
    speakers = {turn.speaker for turn in fold.train}
    assert {turn.utterance_id for turn in train} == {
        turn.utterance_id for turn in manifest.turns if turn.speaker in speakers
    }
    assert any(not turn.label for turn in train) and held_out == fold.valid
    assert not speakers & {turn.speaker for turn in (*fold.test, *held_out)}


def voxceleb(tmp_path):
    return Manifest(
        "voxceleb2",
        tmp_path,
        (),
        [
            Turn(f"id{s}_v{s}{v}_{k}", f"id{s}_v{s}{v}", k, f"id{s}", "", 0.0, 0.0)
            for s in range(10)
            for v in range(2)
            for k in range(3)
        ],
    )


def test_held_out_speakers_of_another_corpus(tmp_path):
    manifest = voxceleb(tmp_path)
    train, held_out = khare_data.other_turns(manifest, 0.3, 0, set())
    assert len({turn.speaker for turn in held_out}) == 3 and len(train) + len(held_out) == 60
    assert not {turn.speaker for turn in train} & {turn.speaker for turn in held_out}
    assert khare_data.other_turns(manifest, 0.3, 0, set()) == (train, held_out)
    assert khare_data.other_turns(manifest, 0.3, 1, set())[1] != held_out
    assert len({turn.speaker for turn in khare_data.other_turns(manifest, 0.001, 0, set())[1]}) == 1


def test_clips_of_videos_that_are_tested_are_left_out(tmp_path, capsys):
    """Both corpora are from YouTube: a VoxCeleb2 dialogue is <speaker>_<video>, a MOSEI dialogue the video."""
    manifest = voxceleb(tmp_path)
    used = [
        turn for part in khare_data.other_turns(manifest, 0.3, 0, {"v00", "v91", "else"}) for turn in part
    ]
    gone = {turn.dialogue_id for turn in manifest.turns} - {turn.dialogue_id for turn in used}
    assert (
        gone == {"id0_v00", "id9_v91"}
        and "6 clips of videos that validate or test" in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="1 speakers to pretrain on"):
        khare_data.other_turns(Manifest("v", tmp_path, (), manifest.turns[:6]), 0.3, 0, set())


def test_sources_have_the_words_that_were_prepared(tmp_path):
    manifest = mosei(tmp_path)
    source = khare_data.sources_of(manifest, manifest.turns[1:2], True)[0]
    assert (source.start_s, source.end_s, source.audio) == (2.0, 3.5, "/wav")
    assert source.words == [("Yes,", None, None), ("it", None, None), ("is!", None, None)]
    (tmp_path / "words.csv").write_text("utterance_id,word,start_s,end_s\na[1],yes,0.1,0.4\n")
    with_times = khare_data.sources_of(manifest, manifest.turns[:2], True)
    assert [source.words for source in with_times] == [[], [("yes", 0.1, 0.4)]]  # none is not unknown
    silent = khare_data.sources_of(voxceleb(tmp_path / "other"), voxceleb(tmp_path).turns[:1], True)[0]
    assert silent.words is None and (silent.start_s, silent.end_s) == (0.0, 0.0)


def test_a_video_without_other_sound_is_kept_for_it(tmp_path):
    turn = Turn("u", "d", 0, "s", "", 0.0, 0.0, video="clip.mp4", audio="clip.wav")
    manifest = Manifest("v", tmp_path, (), [turn])
    assert khare_data.sources_of(manifest, [turn], False)[0].video == ""
    turn.audio = ""
    assert khare_data.sources_of(manifest, [turn], False)[0].video == str(tmp_path / "clip.mp4")


def test_where_words_come_from(tmp_path):
    (tmp_path / "words.csv").write_text("utterance_id,word,start_s,end_s\n")
    (tmp_path / "texts").mkdir()
    assert khare_data.open_words("", tmp_path, "cpu", "no") is None
    assert isinstance(khare_data.open_words("words.csv", tmp_path, "cpu", "no"), WordsFile)
    assert isinstance(khare_data.open_words(str(tmp_path / "texts"), "/nowhere", "cpu", "no"), Transcripts)
    with pytest.raises(UserError):
        khare_data.open_words("no/such/recogniser", tmp_path, "cpu", "no")
    with pytest.raises(UserError, match="other.csv: no such file"):
        khare_data.open_words("other.csv", tmp_path, "cpu", "no")


def test_random_vectors_depend_on_the_spelling_alone(tmp_path):
    store = store_of(tmp_path, {"u": "Hello, world! -- hello", "v": "other"})
    vectors = khare_data.Vectors([store], "", None)
    assert vectors.words == ("hello", "other", "world") and set(vectors.row_of) == set(vectors.words)
    again = khare_data.Vectors([store_of(tmp_path / "b", {"u": "zero hello"})], "", None)
    assert np.array_equal(vectors.vectors[0], again.vectors[again.row_of["hello"]])
    assert not np.allclose(*vectors.vectors[:2]) and 0.35 < vectors.vectors.std() < 0.45


def test_the_vocabulary_is_of_some_clips_and_has_vectors(tmp_path):
    store = store_of(tmp_path, {"u": "Hello hello strange", "v": "world", "w": "Hello, secret"})
    path = tmp_path / "glove.txt"
    numbers = " ".join(["0.5"] * 300)
    path.write_text(f"hello {numbers}\nworld {numbers}\nsecret {numbers}\n")
    vectors = khare_data.Vectors([store], path, None)
    rows = [store.row_of("u"), store.row_of("v")]
    words, counts = khare_data.count_vocabulary(store, rows, vectors)
    assert (words, counts.tolist()) == (["hello", "world"], [2, 1]) and "3 of 4 words have" in vectors.note
    assert Counter(map(len, khare_data.spoken_words(store, ["w", "absent"]))) == {2: 1, 0: 1}
    assert khare_data.spoken_words(store, ["w"]) == [["hello", "secret"]]


def test_the_identity_of_vectors_is_that_of_the_stores_own_words(tmp_path):
    a, b = (store_of(tmp_path / name, {"u": text}) for name, text in (("a", "hello"), ("b", "world wide")))
    alone, both = khare_data.Vectors([a], "", None), khare_data.Vectors([a, b], "", None)
    assert alone.identity(a) == both.identity(a) != both.identity(b)
    assert set(both.row_of) == {"hello", "world", "wide"}


def test_inputs_left_out():
    batch = {
        "text": torch.ones(2, 3, 300),
        "text_length": torch.tensor([3, 1]),
        "audio": torch.ones(2, 1, 200),
        "audio_length": torch.tensor([1, 0]),
        "video": torch.ones(2, 1, 9),
        "video_length": torch.tensor([1, 1]),
        "labels": torch.ones(2, 6),
        "word_ids": torch.ones(2, 3),
    }
    assert set(khare_data.only(batch, ("text", "video"))) == set(batch) - {"audio", "audio_length"}
    assert set(khare_data.only(batch, ())) == {"labels", "word_ids"}


def test_modalities_that_some_clips_have():
    store = SimpleNamespace(
        n_words=np.array([0, 2]), audio_rows=np.array([1, 1]), video_rows=np.array([0, 0])
    )
    assert khare_data.modalities_of(store, [0]) == ("audio",)
    assert khare_data.modalities_of(store, [0, 1]) == ("text", "audio")
