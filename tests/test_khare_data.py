"""What 07 reads: folds, targets, who is pretrained on, words and their vectors, inputs left out."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from common.corpora.mosei import EMOTIONS
from common.files import UserError
from common.khare import data as khare_data
from common.khare.words import Vectors, tokens_of
from common.manifest import Manifest, Turn
from common.store import StoreWriter

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


def store_of(folder, words, scores=None):
    writer = StoreWriter(folder, {"video_step_s": 0.5})
    for name, text in words.items():
        n, content = len(text.split()), "".join(f"{word}\n" for word in text.split()).encode()
        arrays = {
            "audio": np.zeros((4, 200), np.float16),
            "video": np.zeros((0, 4096), np.float16),
            "words": np.frombuffer(content, np.uint8),
            "word_times": np.arange(2 * n, dtype=np.float32).reshape(n, 2),
            "facts": np.float32([[2.0, (scores or {}).get(name, np.nan), 0]]),
        }
        writer.add([name], arrays, {key: [len(array)] for key, array in arrays.items()})
    return writer.finish()


def test_emotions_of_mosei_are_several_at_once(tmp_path):
    manifest = mosei(tmp_path)
    assert khare_data.emotions_of(manifest) == EMOTIONS
    found = khare_data.targets_of(manifest, manifest.turns)
    assert found[0].tolist() == [True, False, False, True, False, False] and not found[4].any()
    assert found.shape == (10, 6)
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


def fold_of_videos(*videos):
    turns = [Turn("x", video, 0, video, "", 0.0, 0.0) for video in videos]
    return SimpleNamespace(valid=turns[:1], test=turns[1:])


def test_held_out_speakers_of_another_corpus(tmp_path):
    manifest = voxceleb(tmp_path)
    parts = khare_data.other_turns(manifest, 0.3, 0, fold_of_videos())
    train, held_out = parts["train"], parts["valid"]
    assert len({turn.speaker for turn in held_out}) == 3 and len(train) + len(held_out) == 60
    assert not {turn.speaker for turn in train} & {turn.speaker for turn in held_out}
    assert khare_data.other_turns(manifest, 0.3, 0, fold_of_videos()) == parts
    assert khare_data.other_turns(manifest, 0.3, 1, fold_of_videos())["valid"] != held_out
    few = khare_data.other_turns(manifest, 0.001, 0, fold_of_videos())["valid"]
    assert len({turn.speaker for turn in few}) == 1


def test_clips_of_videos_that_are_tested_are_left_out(tmp_path, capsys):
    """Both are from YouTube: a VoxCeleb2 dialogue is <speaker>_<video>, a MOSEI dialogue the video."""
    manifest = voxceleb(tmp_path)
    for turn in manifest.turns[12:18]:
        turn.extra["set"] = "test"  # VoxCeleb2's own; the paper uses its development part
    parts = khare_data.other_turns(manifest, 0.3, 0, fold_of_videos("v00", "v91", "else"))
    used = {turn.dialogue_id for part in parts.values() for turn in part}
    gone = {turn.dialogue_id for turn in manifest.turns} - used
    assert gone == {"id0_v00", "id9_v91", "id2_v20", "id2_v21"}
    assert "left out 6 test clips, 6 of videos that validate or test" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 speakers to pretrain on"):
        khare_data.other_turns(Manifest("v", tmp_path, (), manifest.turns[:6]), 0.3, 0, fold_of_videos())


def test_english_clips_are_those_with_words_and_a_high_score(tmp_path, capsys):
    store = store_of(tmp_path / "s", {"a": "yes", "b": "nein", "c": "", "d": "well"}, {"a": -0.2, "b": -0.9})
    turns = {name: SimpleNamespace(utterance_id=name) for name in "abcde"}
    parts = {"train": [turns[name] for name in "abce"], "valid": [turns["d"]]}
    found = khare_data.english(store, parts, -0.3)
    assert [turn.utterance_id for part in found.values() for turn in part] == ["a", "d"]
    with pytest.raises(UserError, match="MIN_SCORE=0: no clip with words is left to"):
        khare_data.english(store, parts, 0.0)


def test_cases_are_ids_or_numbers_of_the_transcripts(tmp_path):
    manifest = mosei(tmp_path, (("-HeZS2-Prhc", "test"), ("b", "test")))
    for turn, clip in zip(manifest.turns, "8391"):
        turn.extra["clip"] = clip
    turns = manifest.turns
    assert khare_data.find_cases((), turns) == ["-HeZS2-Prhc[0]"]  # the paper's [8], less its dash
    assert khare_data.find_cases(("b[1]", "b[9]", "HeZS2-Prhc[3]"), turns) == [
        "b[1]",
        "b[0]",
        "-HeZS2-Prhc[1]",
    ]
    with pytest.raises(UserError, match=r"CASES=10219\[11\]: no such clip"):
        khare_data.find_cases(("10219[11]", "b[1]"), turns)


def test_sources_have_the_words_that_were_prepared(tmp_path):
    manifest = mosei(tmp_path)
    source = khare_data.sources_of(manifest, manifest.turns[1:2], True)[0]
    assert (source.start_s, source.end_s, source.audio) == (2.0, 3.5, "/wav")
    assert source.words == [("Yes,", None, None), ("it", None, None), ("is!", None, None)]
    (tmp_path / "words.csv").write_text("utterance_id,word,start_s,end_s\na[1],yes,0.1,0.4\n")
    turns = manifest.turns[:2]
    with_times = khare_data.sources_of(manifest, turns, True)
    assert [source.words for source in with_times] == [[], [("yes", 0.1, 0.4)]]  # none is not unknown
    assert [s.words for s in khare_data.sources_of(manifest, turns, True, with_words=False)] == [None, None]
    silent = khare_data.sources_of(voxceleb(tmp_path / "other"), voxceleb(tmp_path).turns[:1], True)[0]
    assert silent.words is None and (silent.start_s, silent.end_s) == (0.0, 0.0)


def test_a_video_without_other_sound_is_kept_for_it(tmp_path):
    turn = Turn("u", "d", 0, "s", "", 0.0, 0.0, video="clip.mp4", audio="clip.wav")
    manifest = Manifest("v", tmp_path, (), [turn])
    assert khare_data.sources_of(manifest, [turn], False)[0].video == ""
    turn.audio = ""
    assert khare_data.sources_of(manifest, [turn], False)[0].video == str(tmp_path / "clip.mp4")


@pytest.mark.parametrize(
    "word, tokens",
    [
        ("Hello,", ["hello"]),
        ("\u201cNo!\u201d", ["no", "!"]),
        ("What?!", ["what", "?", "!"]),
        ("well....", ["well", "..."]),
        ("oh\u2026", ["oh", "..."]),
        ("Don\u2019t!!", ["don't", "!", "!"]),
        ("O.K.", ["o.k"]),
        ("--", []),
        ("!", ["!"]),
        ("", []),
    ],
)
def test_marks_that_carry_emotion_are_tokens(word, tokens):
    assert list(tokens_of(word)) == tokens


def test_marks_end_with_their_word_and_are_counted(tmp_path):
    store = store_of(tmp_path / "s", {"u": "No! no?!", "v": "you"})
    corpus = corpus_of(store, train=["u"], valid=["v"])
    khare_data.give_vectors([corpus], None, "", None)
    assert corpus.numbers == {"!": 0, "no": 1, "?": 2} and corpus.counts.tolist() == [2, 2, 1]
    clips = khare_data.Clips(corpus, "train", ("text",), 0)
    words, times = clips.words(0)
    assert words == ["no", "!", "no", "?", "!"]
    assert times.tolist() == [[0, 1], [1, 1], [2, 3], [3, 3], [3, 3]]


def test_random_vectors_depend_on_the_spelling_alone():
    vectors, again = (Vectors(Counter(x), "", None) for x in (["world", "hello", "other"], ["zero", "hello"]))
    assert vectors.row_of == {"hello": 0, "other": 1, "world": 2}
    assert np.array_equal(vectors.vectors[0], again.vectors[0])
    assert not np.allclose(*vectors.vectors[:2]) and 0.35 < vectors.vectors.std() < 0.45


def corpus_of(store, **parts):
    turns = {
        name: [SimpleNamespace(utterance_id=i, speaker=i, label="", extra={}) for i in ids]
        for name, ids in parts.items()
    }
    manifest = SimpleNamespace(corpus="x", turns=turns["train"], classes=("x",))
    return khare_data.corpus_of(manifest, store, turns, ("text", "video"))


def test_the_vocabulary_is_of_training_clips_and_has_vectors(tmp_path, capsys):
    texts = {"u": "Hello hello strange", "v": "world", "w": "Hello, secret"}
    corpus = corpus_of(store_of(tmp_path / "s", texts), train=["u", "v", "gone"], valid=["w"])
    assert corpus.inputs == ("text",) and corpus.parts["train"].ids == ["u", "v"]
    path, numbers = tmp_path / "glove.txt", " ".join(["0.5"] * 300)
    path.write_text(f"hello {numbers}\nworld {numbers}\nsecret {numbers}\n")
    khare_data.give_vectors([corpus], None, path, tmp_path)
    assert corpus.numbers == {"hello": 0, "world": 1} and corpus.counts.tolist() == [2, 1]
    assert "3 of 4 words, 5 of 6" in capsys.readouterr().out and corpus.widths == {"text": 300}
    facts = khare_data.vocabulary_facts(corpus)
    assert (facts["clips"], facts["held_out"], facts["vocabulary"], facts["majority"]) == (2, 1, 2, 1.0)
    assert facts["unigram_perplexity"] == pytest.approx(1.5)
    assert khare_data.tokens_in(corpus.store, "w") == ["hello", "secret"]
    assert khare_data.tokens_in(corpus.store, "absent") == []
    with pytest.raises(UserError, match="no clip of the valid part could be read"):
        corpus_of(corpus.store, train=["u"], valid=["gone"])


def test_recognised_words_leave_the_identity_of_a_corpus(tmp_path):
    corpora = [
        corpus_of(store_of(tmp_path / n, {"u": "hello", "v": "you"}), train=["u"], valid=["v"]) for n in "ab"
    ]
    khare_data.give_vectors(corpora[:1], None, "", None)
    khare_data.give_vectors(corpora[1:], store_of(tmp_path / "c", {"u": "halo"}), "", None)
    assert corpora[0].identity() == corpora[1].identity()


# ---- Word error rate -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference, recognised, edits",
    [
        ("a b c", "A b, c!", 0),  # punctuation and case do not count
        ("a b", "", 2),
        ("a b c", "a x c", 1),
        ("a b c d", "b c d e", 2),
        ("a", "b c d a", 3),
    ],
)
def test_word_edits_by_hand(tmp_path, reference, recognised, edits):
    pairs = ("reference", reference), ("recognised", recognised)
    stores = [store_of(tmp_path / name, {"u": text, "v": "e"}) for name, text in pairs]
    found = khare_data.word_error_rate(["u", "v"], *stores)
    assert found == pytest.approx(edits / (len(reference.split()) + 1))  # of words, not of clips
