"""Folds: nobody is left out, nobody is in two parts, and impossible corpora end with one clear line."""

from collections import Counter
from pathlib import Path

import pytest

from common import splits
from common.files import UserError
from common.manifest import Manifest, Turn

CLASSES = ("neutral", "happy")


def corpus(speakers, per_speaker=4, sessions=None, split=None):
    """A manifest of labelled turns; sessions: speaker -> session; split: turn number -> train, dev, test."""
    turns = []
    for speaker in speakers:
        session = sessions(speaker) if sessions else ""
        for i in range(per_speaker):
            extra = {"split": split(i)} if split else {}
            turns.append(
                Turn(
                    f"{speaker}_{i}",
                    speaker,
                    i,
                    speaker,
                    session,
                    i,
                    i + 1,
                    label=CLASSES[i % 2],
                    extra=extra,
                )
            )
        turns.append(Turn(f"{speaker}_context", speaker, 99, speaker, session, 99, 100))
    return Manifest("toy", Path("toy"), CLASSES, turns)


def iemocap(n_sessions=5):
    speakers = [f"Ses0{s}{g}" for s in range(1, n_sessions + 1) for g in "FM"]
    return corpus(speakers, sessions=lambda name: name[:5])


def actors(n):
    return corpus([f"{i:02d}" for i in range(1, n + 1)])


def test_24_actors_make_groups_of_5_5_5_5_4():
    groups = splits.speaker_groups(actors(24).labelled, 5)
    assert [len(group) for group in groups] == [5, 5, 5, 5, 4]
    assert sorted(sum(groups, [])) == [f"{i:02d}" for i in range(1, 25)]
    assert groups[0] == ["01", "06", "11", "16", "21"]


def test_sessions_stay_together_and_fix_the_number_of_folds():
    groups = splits.speaker_groups(iemocap(4).labelled, 5)
    assert groups == [[f"Ses0{s}F", f"Ses0{s}M"] for s in range(1, 5)]


def test_a_speaker_in_two_sessions_makes_folds_by_speaker():
    manifest = corpus(["a", "b", "c"], sessions=lambda name: name)
    manifest.turns[0].session = "b"
    assert not splits.has_sessions(manifest.labelled)
    assert splits.speaker_groups(manifest.labelled, 5) == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("manifest", [iemocap(), actors(24), actors(7)], ids=["sessions", "24", "7 actors"])
@pytest.mark.parametrize("validate_on", ["group", "speaker"])
def test_every_turn_is_tested_once_and_no_speaker_is_in_two_parts(manifest, validate_on):
    folds = splits.make_folds(manifest, 5, validate_on, "validation", 3)
    tested = sorted(turn.utterance_id for fold in folds for turn in fold.test)
    assert tested == sorted(turn.utterance_id for turn in manifest.labelled)
    for fold in folds:
        parts = [set(splits.speakers_of(turns)) for turns in (fold.train, fold.valid, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(splits.speakers_of(manifest.labelled))
        assert validate_on == "group" or len(parts[1]) == 1
        assert all(turn.label for turns in (fold.train, fold.valid, fold.test) for turn in turns)
    assert "exactly once" in splits.check_folds(folds, manifest)[-1]


def test_the_next_group_validates():
    folds = splits.make_folds(iemocap(), 5, "group", "validation", 0)
    assert [fold.valid[0].session[-1] for fold in folds] == ["2", "3", "4", "5", "1"]


def test_the_validation_speaker_follows_the_seed():
    def drawn(seed):
        folds = splits.make_folds(actors(24), 5, "speaker", "validation", seed)
        return [fold.valid[0].speaker for fold in folds]

    assert drawn(0) == drawn(0) != drawn(1)


def test_select_on_test_trains_on_all_other_groups_and_says_so():
    manifest = iemocap()
    folds = splits.make_folds(manifest, 5, "group", "test", 0)
    assert all(fold.valid == fold.test and len(splits.speakers_of(fold.train)) == 8 for fold in folds)
    assert all("TEST" in line for line in splits.check_folds(folds, manifest)[:-1])
    assert "TEST" in splits.protocol_text(manifest, folds, "group", "test")


def test_the_choice_of_the_epoch_is_apart_from_who_trains():
    """Chosen on the test set, but trained on the same speakers as where the next group validates."""
    for manifest in (iemocap(), corpus(["a", "b"], 9, split=lambda i: ("train", "dev", "test")[i // 3])):
        honest = splits.make_folds(manifest, 5, "group", "validation", 0)
        folds = splits.make_folds(manifest, 5, "group", "test", 0, train_on_validation=False)
        assert [fold.train for fold in folds] == [fold.train for fold in honest]
        assert all(fold.valid == fold.test for fold in folds)
        assert "validation speakers unused" in splits.protocol_text(manifest, folds, "group", "test")
        folds = splits.make_folds(manifest, 5, "group", "test", 0)
        assert "unused" not in splits.protocol_text(manifest, folds, "group", "test")


def test_model_choice_trains_on_three_sessions():
    fold = splits.model_choice_split(iemocap(), 5)
    parts = [sorted({turn.session for turn in turns}) for turns in (fold.train, fold.valid, fold.test)]
    assert parts == [["Ses01", "Ses02", "Ses03"], ["Ses04"], ["Ses05"]]


def test_leave_two_out_covers_every_pair():
    manifest = iemocap()
    folds = splits.make_folds(manifest, 5, "speaker", "validation", 0, leave_out=2)
    assert len(folds) == 10 and folds[0].name == "out_1_2" and folds[-1].name == "out_4_5"
    assert {turn.session for turn in folds[0].test} == {"Ses01", "Ses02"}
    tested = Counter(turn.utterance_id for fold in folds for turn in fold.test)
    assert set(tested.values()) == {4} and len(tested) == len(manifest.labelled)
    for fold in folds:
        assert not set(splits.speakers_of(fold.train + fold.valid)) & set(splits.speakers_of(fold.test))


def test_an_official_split_is_one_fold_that_says_speakers_are_shared():
    manifest = corpus(["Joey", "Ross"], 9, split=lambda i: ("train", "dev", "test")[i // 3])
    (fold,) = splits.make_folds(manifest, 5, "group", "validation", 0)
    assert [len(part) for part in (fold.train, fold.valid, fold.test)] == [6, 6, 6]
    (line,) = splits.check_folds([fold], manifest)
    assert "2 speakers in two parts" in line
    assert "official" in splits.protocol_text(manifest, [fold], "group", "validation")


def test_check_folds_notices_leaks_and_omissions():
    manifest = iemocap()
    folds = splits.make_folds(manifest, 5, "group", "validation", 0)
    with pytest.raises(AssertionError, match="not tested"):
        splits.check_folds(folds[1:], manifest)
    folds[0].train.append(folds[0].test[0])
    with pytest.raises(AssertionError, match="Ses01F"):
        splits.check_folds(folds, manifest)


def drop_class(manifest, keep):
    for turn in manifest.labelled:
        if turn.label == "happy" and not keep(turn):
            turn.label = ""
    return manifest


@pytest.mark.parametrize(
    "manifest, words",
    [
        (corpus(["a"], 8), "1 speaker"),
        (actors(2), "2 speaker"),
        (iemocap(2), "2 session"),
        (
            drop_class(actors(5), lambda t: t.utterance_id == "01_1"),
            "'happy' is absent from .* fold1",
        ),
        (drop_class(actors(5), lambda t: t.speaker == "01"), "absent from the training"),
        (
            drop_class(corpus(["1", "2", "3", "4"], 8), lambda t: t.speaker == "2"),
            "is absent from the training",
        ),
        (Manifest("toy", Path("toy"), ("angry",), actors(5).turns), "not among the classes"),
        (corpus(["", "a", "b"]), "no speaker"),
        (Manifest("toy", Path("toy"), CLASSES, [Turn("u", "d", 0, "s", "", 0, 1)]), "no labelled turn"),
        (corpus(["a", "b", "c"], split=lambda i: ("train", "dev")[i % 2]), "split=test"),
    ],
)
def test_impossible_corpora_are_one_line(manifest, words):
    with pytest.raises(UserError, match=words) as caught:
        splits.make_folds(manifest, 5, "group", "validation", 0)
    assert "\n" not in str(caught.value)
