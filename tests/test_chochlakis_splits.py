"""The committed splits are those that the seed draws; nobody is in two parts, whoever is there."""

from fractions import Fraction
from pathlib import Path

import pytest

from common.chochlakis import splits as cs
from common.files import UserError
from common.manifest import Manifest, Turn
from common.splits import speakers_of

# Drawn once: another version of the code must draw the same.
VALID = {
    "cremad": "1006 1010 1027 1029 1032 1049 1051 1055 1068 1077 1079 1080 1090 1091",
    "ravdess": "Actor_06 Actor_09 Actor_10 Actor_21",
    "lombard": "s12 s13 s23 s24 s37 s48 s50 s53",
}
TEST = {
    "cremad": "1001 1014 1016 1021 1042 1043 1050 1054 1057 1064 1066 1076 1083 1085",
    "ravdess": "Actor_07 Actor_12 Actor_13 Actor_20",
    "lombard": "s16 s18 s19 s2 s21 s22 s36 s54",
}
SPEAKERS = {
    "cremad": [f"{number}" for number in range(1001, 1092)],
    "ravdess": [f"Actor_{number:02d}" for number in range(1, 25)],
    "lombard": [f"s{number}" for number in range(2, 56)],
}
N_TEST = {"cremad": 14, "ravdess": 4, "lombard": 8}


def corpus(speakers, classes=("sad", "happy"), **extra):
    """Two labelled turns and one without a label of every speaker."""
    turns = [
        Turn(f"{name}_{i}", f"{name}_{i}", 0, name, "", 0.0, 1.0, label=label, extra=dict(extra))
        for name in speakers
        for i, label in enumerate((*classes, ""))
    ]
    return Manifest("toy", Path("toy"), classes, turns)


@pytest.mark.parametrize("name", SPEAKERS)
def test_the_whole_corpus_gets_the_split_that_was_drawn_once(name):
    manifest = corpus(SPEAKERS[name])
    fold = cs.fold_of(manifest, name)
    test, valid = speakers_of(fold.test), speakers_of(fold.valid)
    assert test == TEST[name].split() and valid == VALID[name].split()
    assert len(test) == len(valid) == N_TEST[name] and not set(test) & set(valid)
    parts = [turn.utterance_id for part in (fold.train, fold.valid, fold.test) for turn in part]
    assert sorted(parts) == sorted(turn.utterance_id for turn in manifest.labelled)


def test_men_and_women_of_ravdess_in_every_part():
    for speakers in (TEST["ravdess"].split(), VALID["ravdess"].split()):
        assert sorted(int(name[-2:]) % 2 for name in speakers) == [0, 0, 1, 1]
    first_twelve = SPEAKERS["ravdess"][:12]
    for speakers in cs.draw_speakers(first_twelve, Fraction(4, 24)):
        assert sorted(int(name[-2:]) % 2 for name in speakers) == [0, 1]
    men = [name for name in first_twelve if int(name[-2:]) % 2]
    test, valid = cs.draw_speakers(men, Fraction(1, 3))  # no women to balance with
    assert len(test) == len(valid) == 2 and {*test, *valid} < set(men)


@pytest.mark.parametrize(
    "name, speakers, n_test",
    [
        ("ravdess", [f"Actor_{k:02d}" for k in range(1, 13)], 2),
        ("demo_ravdess_av", [f"Actor_{k:02d}" for k in range(1, 9)], 2),
        ("demo_cremad", [str(k) for k in range(1001, 1013)], 2),
        ("demo_lombard", [f"s{k}" for k in range(2, 10)], 2),
        ("lombard", [f"s{k}" for k in range(2, 55)], 8),  # one talker short of the whole corpus
        ("my_folder", [f"p{k}" for k in range(20)], 3),
        ("my_folder", ["a", "b", "c"], 1),
    ],
)
def test_other_speakers_are_drawn_by_the_same_rule(name, speakers, n_test):
    fold = cs.fold_of(corpus(speakers), name)
    train, valid, test = (set(speakers_of(part)) for part in (fold.train, fold.valid, fold.test))
    assert len(test) == len(valid) == n_test and len(train) == len(speakers) - 2 * n_test
    assert not (train & test or train & valid or valid & test)
    again = cs.fold_of(corpus(reversed(speakers)), name)  # the order of the manifest does not matter
    assert set(speakers_of(again.test)) == test


def test_ranks_do_not_depend_on_who_else_is_there(monkeypatch):
    names = [f"p{k}" for k in range(40)]
    test, _ = cs.draw_speakers(names, Fraction(1, 4))
    fewer, _ = cs.draw_speakers([name for name in names if name not in ("p3", "p4")], Fraction(1, 4))
    assert set(test) - {"p3", "p4"} <= set(fewer)
    monkeypatch.setattr(cs, "SPLIT_SEED", 8)
    assert cs.draw_speakers(names, Fraction(1, 4))[0] != test


def test_refusals():
    absent = "class 'happy' is absent from the training turns"
    for speakers, message in ((["a", "b"], absent), (["a", "", "b"], "no speaker")):
        with pytest.raises(UserError, match=message):
            cs.fold_of(corpus(speakers), "mine")
    unlabelled = corpus(["a", "b", "c"])
    for turn in unlabelled.turns:
        turn.label = ""
    with pytest.raises(UserError, match="no labelled turn"):
        cs.fold_of(unlabelled, "demo_audioset")
    manifest = corpus(["a", "b", "c"])
    only = cs.fold_of(manifest, "mine").test[0].speaker
    manifest.turns = [t for t in manifest.turns if t.label != "sad" or t.speaker == only]
    with pytest.raises(UserError, match="class 'sad' is absent from the training"):
        cs.fold_of(manifest, "mine")


def test_an_official_split_is_kept():
    manifest = corpus([f"p{k}" for k in range(9)])
    for turn in manifest.turns:
        turn.extra["split"] = ("train", "dev", "test")[int(turn.speaker[1:]) // 3]
    fold = cs.fold_of(manifest, "mine")
    assert speakers_of(fold.test) == ["p6", "p7", "p8"] and speakers_of(fold.valid) == ["p3", "p4", "p5"]
    assert cs.protocol_text(manifest, "mine", fold).startswith("official")


def test_protocol_text_says_whose_split_it_is():
    def text(name, speakers):
        manifest = corpus(speakers)
        return cs.protocol_text(manifest, name, cs.fold_of(manifest, name))

    cremad, ravdess = (text(name, SPEAKERS[name]) for name in ("cremad", "ravdess"))
    assert "split by the paper's 70-15-15: 63 speakers train, 14 validate, 14 test (seed 2024" in cremad
    assert "4 test speakers of 24, whose 4,230 clips have no neutral ones: 16 speakers train, 4" in ravdess
    assert "by 15 % each: 36 speakers train, 9 validate" in text("mine", SPEAKERS["lombard"])
