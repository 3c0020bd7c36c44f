"""Who trains, validates and tests: the same speaker-disjoint folds for every script.

A corpus is cut into groups of speakers: its sessions where it has them, else `n_groups` groups that
leave nobody out. Each group is the test set of one fold. An official split (a manifest column
`split` with train, dev and test, as in MELD) is used instead where there is one.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from common.errors import UserError

MIN_GROUPS = 3  # one each to train, to validate and to test
MIN_TURNS = 2  # of a class: one to train on, one to test
OFFICIAL = ("train", "dev", "test")


@dataclass
class Fold:
    """One division of the labelled turns; under SELECT_ON = "test" `valid` holds the test turns."""

    name: str  # "fold1", "choice", "out_1_2"
    train: list
    valid: list
    test: list


@dataclass
class Parts:
    """Row numbers of the labelled turns that a classifier of a fold uses for what."""

    fit: np.ndarray  # it is fitted here while its settings are chosen
    choose: np.ndarray  # ... by the score here
    refit: np.ndarray  # fit and choose together: the final classifier
    test: np.ndarray


def speakers_of(turns):
    """The speakers of some turns, sorted."""
    return sorted({turn.speaker for turn in turns})


def has_official_split(manifest):
    """True where every labelled turn says which of train, dev and test it belongs to."""
    return all(turn.extra.get("split") in OFFICIAL for turn in manifest.labelled)


def by_session(turns):
    """True where every turn names its session and no speaker is in two, so that sessions can be folds."""
    pairs = {(turn.speaker, turn.session) for turn in turns}
    return all(session for _, session in pairs) and len(pairs) == len({speaker for speaker, _ in pairs})


def speaker_groups(turns, n_groups):
    """Divide the speakers into groups that leave nobody out.

    turns     labelled turns; speakers of one session stay together where the corpus has sessions
    n_groups  groups wanted; fewer are made where there are fewer sessions or speakers
    Returns lists of speakers, deterministic: one group per session, else every n_groups-th speaker
    (24 speakers in 5 groups: 5, 5, 5, 5, 4).
    Raises UserError below MIN_GROUPS groups.
    """
    whole = by_session(turns)
    units = sorted({turn.session if whole else turn.speaker for turn in turns})
    if min(len(units), n_groups) < MIN_GROUPS:
        kind = "session" if whole else "speaker"
        raise UserError(
            f"manifest.csv: {len(units)} {kind}(s) ({', '.join(units[:4])}), {n_groups} groups; "
            f"training, validation and test take one each: give {MIN_GROUPS} {kind}s or more "
            f"and N_GROUPS of at least {MIN_GROUPS}"
        )
    n_groups = min(n_groups, len(units))
    group_of = {unit: i % n_groups for i, unit in enumerate(units)}
    groups = [set() for _ in range(n_groups)]
    for turn in turns:
        groups[group_of[turn.session if whole else turn.speaker]].add(turn.speaker)
    return [sorted(group) for group in groups]


def make_folds(manifest, n_groups, validate_on, select_on, seed):
    """The folds of cross-validation, one per group of speakers, or the one fold of an official split.

    validate_on  "group": the next group (cyclically) validates, the others train;
                 "speaker": one random speaker of the other groups validates
    select_on    "validation", or "test": nobody validates, all other groups train and `valid` is the
                 test set: the paper's way, optimistic
    seed         draws the validation speaker
    Raises UserError for too few speakers and for a class that some fold cannot learn.
    """
    _check_choice("VALIDATE_ON", validate_on, ("group", "speaker"))
    _check_choice("SELECT_ON", select_on, ("validation", "test"))
    _check_labels(manifest)
    if has_official_split(manifest):
        folds = [_official_fold(manifest, "fold1", select_on)]
    else:
        groups = speaker_groups(manifest.labelled, n_groups)
        folds = []
        for k, group in enumerate(groups):
            rest = [g for i, g in enumerate(groups) if i != k]
            if select_on == "test":
                valid = group
            elif validate_on == "group":
                valid = groups[(k + 1) % len(groups)]
            else:
                valid = _draw_speaker(rest, [seed, k])
            folds.append(_fold(manifest, f"fold{k + 1}", group, valid))
    _check_classes(manifest, folds)
    return folds


def model_choice_split(manifest, n_groups):
    """The single split on which models are compared before cross-validation (Babaali, Sec. 3.2).

    Sessions 1-3 train, 4 validates, 5 tests; of other groups the last tests, the last but one validates.
    """
    _check_labels(manifest)
    if has_official_split(manifest):
        fold = _official_fold(manifest, "choice", "validation")
    else:
        groups = speaker_groups(manifest.labelled, n_groups)
        fold = _fold(manifest, "choice", groups[-1], groups[-2])
    _check_classes(manifest, [fold])
    return fold


def leave_two_out(manifest, n_groups, seed):
    """Folds "out_i_j" that test groups i and j together, from which out-of-fold outputs are taken.

    For test group k, the outputs of group j by the model that saw neither j nor k are out of fold, so
    5 groups need 10 models. One random speaker of the remaining groups validates.
    """
    _check_labels(manifest)
    if has_official_split(manifest):
        raise UserError(
            f"{manifest.corpus}: an official split has no groups to leave out; set OUT_OF_FOLD=false"
        )
    groups = speaker_groups(manifest.labelled, n_groups)
    folds = []
    for i, j in combinations(range(len(groups)), 2):
        rest = [g for k, g in enumerate(groups) if k not in (i, j)]
        valid = _draw_speaker(rest, [seed, i, j])
        folds.append(_fold(manifest, f"out_{i + 1}_{j + 1}", groups[i] + groups[j], valid))
    _check_classes(manifest, folds)
    return folds


def check_folds(folds, manifest, times_tested=1):
    """Assert that no speaker is in two parts of a fold and that every labelled turn is tested as planned.

    times_tested  how often each labelled turn is in a test set: 1 for make_folds, n_groups - 1 for
                  leave_two_out, None for a single split
    Returns lines to print: speakers and turns of every part. In an official split the same actors are in
    all parts, which the line says, and the turns of its test part count as the labelled ones.
    """
    official = has_official_split(manifest)
    lines = []
    for fold in folds:
        parts = {"train": fold.train, "valid": fold.valid, "test": fold.test}
        shared = set(speakers_of(fold.train)) & set(speakers_of(fold.test))
        shared |= set(speakers_of(fold.train)) & set(speakers_of(fold.valid))
        if not is_selected_on_test(fold):
            shared |= set(speakers_of(fold.valid)) & set(speakers_of(fold.test))
        assert official or not shared, f"{fold.name}: speakers {sorted(shared)} are in two parts"
        line = f"{fold.name:<8} " + "   ".join(_part(name, turns) for name, turns in parts.items())
        line += "   (valid is the TEST set)" if is_selected_on_test(fold) else ""
        line += f"   ({len(shared)} speakers in two parts, by the corpus' own split)" if official else ""
        lines.append(line)
    if times_tested is not None:
        lines.append(_check_coverage(folds, manifest, official, times_tested))
    return lines


def is_selected_on_test(fold):
    """True where the fold has no validation speakers of its own."""
    return {turn.utterance_id for turn in fold.valid} == {turn.utterance_id for turn in fold.test}


def divide(fold, turns):
    """The Parts of a fold in `turns`; without validation speakers every fourth training speaker chooses."""
    row = {turn.utterance_id: i for i, turn in enumerate(turns)}
    fit, choose = fold.train, fold.valid
    if is_selected_on_test(fold):
        aside = set(speakers_of(fold.train)[::4])
        fit = [turn for turn in fold.train if turn.speaker not in aside]
        choose = [turn for turn in fold.train if turn.speaker in aside]
    return Parts(
        *(
            np.array([row[turn.utterance_id] for turn in part])
            for part in (fit, choose, fit + choose, fold.test)
        )
    )


def choice_protocol_text(manifest, n_groups):
    """The protocol of model_choice_split in one phrase: "sessions 1 to 3 train, 4 validates, 5 tests"."""
    if has_official_split(manifest):
        return "official train/dev/test split, epoch chosen on the dev part"
    n = len(speaker_groups(manifest.labelled, n_groups))
    unit = "sessions" if by_session(manifest.labelled) else "speaker groups"
    return f"one split: {unit} 1 to {n - 2} train, {n - 1} validates and chooses the epoch, {n} tests"


def folds_text(manifest, folds):
    """ "5-fold by session", "5-fold by speaker group" or "official train/dev/test split"."""
    if has_official_split(manifest):
        return "official train/dev/test split"
    return f"{len(folds)}-fold by {'session' if by_session(manifest.labelled) else 'speaker group'}"


def validators_text(manifest, validate_on):
    """Who validates: "a validation session", "one validation speaker", "the dev part"."""
    if has_official_split(manifest):
        return "the dev part"
    unit = "session" if by_session(manifest.labelled) else "speaker group"
    return f"a validation {unit}" if validate_on == "group" else "one validation speaker"


def protocol_text(manifest, folds, validate_on, select_on):
    """The protocol in one phrase for tables: "5-fold by session, epoch chosen on a validation session"."""
    kind = folds_text(manifest, folds)
    if select_on == "test":
        return f"{kind}, epoch chosen on the TEST set (the paper's way, optimistic)"
    return f"{kind}, epoch chosen on {validators_text(manifest, validate_on)}"


def _fold(manifest, name, test_speakers, valid_speakers):
    turns = manifest.labelled
    held_out = set(test_speakers) | set(valid_speakers)
    return Fold(
        name,
        [t for t in turns if t.speaker not in held_out],
        [t for t in turns if t.speaker in valid_speakers],
        [t for t in turns if t.speaker in test_speakers],
    )


def _official_fold(manifest, name, select_on):
    train, dev, test = ([t for t in manifest.labelled if t.extra["split"] == part] for part in OFFICIAL)
    for part, turns in zip(OFFICIAL, (train, dev, test)):
        if not turns:
            raise UserError(
                f"{manifest.folder}/manifest.csv: no labelled turn has split={part}; prepare the "
                "whole corpus, or remove the column `split` to use speaker groups"
            )
    return Fold(name, train + dev, test, test) if select_on == "test" else Fold(name, train, dev, test)


def _draw_speaker(groups, seed):
    """One random speaker who does not leave the others with nobody to train on."""
    speakers = sorted(speaker for group in groups for speaker in group)
    if len(speakers) < 2:
        raise UserError(
            f"manifest.csv: only speaker {speakers[0]} is left to train and to validate; "
            "add speakers, or set VALIDATE_ON=group and OUT_OF_FOLD=false"
        )
    return [speakers[np.random.default_rng(seed).integers(len(speakers))]]


def _check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f"{name}={value}: choose one of {', '.join(choices)}")


def _check_labels(manifest):
    path = f"{manifest.folder}/manifest.csv"
    counts = Counter(turn.label for turn in manifest.labelled)
    if not counts:
        raise UserError(f"{path}: no labelled turn; check the column `label`")
    unknown = sorted(set(counts) - set(manifest.classes))
    if unknown:
        raise UserError(
            f"{path}: label {unknown[0]!r} is not among the classes "
            f"{', '.join(manifest.classes)}; correct it or leave it empty"
        )
    nameless = sum(not turn.speaker for turn in manifest.labelled)
    if nameless:
        raise UserError(f"{path}: {nameless} labelled turns have no speaker; fill in the column `speaker`")
    for label in manifest.classes:
        if counts[label] < MIN_TURNS:
            raise UserError(
                f"{path}: class {label!r} has {counts[label]} labelled turn(s), training and test need "
                f"{MIN_TURNS}; add turns, or leave the label empty to exclude the class"
            )


def _check_classes(manifest, folds):
    """Every fold must be able to learn every class."""
    for fold in folds:
        absent = sorted(set(manifest.classes) - {turn.label for turn in fold.train})
        if absent:
            speakers = sorted({t.speaker for t in manifest.labelled if t.label == absent[0]})
            raise UserError(
                f"{manifest.folder}/manifest.csv: class {absent[0]!r} is absent from the training"
                f" turns of {fold.name} (only {', '.join(speakers[:4])} have it); add speakers "
                "with it, change N_GROUPS, or leave the label empty to exclude it"
            )


def _part(name, turns):
    speakers = speakers_of(turns)
    shown = ",".join(speakers) if len(speakers) <= 6 else f"{speakers[0]}..{speakers[-1]}"
    return f"{name} {len(turns):,} turns, {len(speakers)} speakers ({shown})"


def _check_coverage(folds, manifest, official, times_tested):
    due = [t.utterance_id for t in manifest.labelled if not official or t.extra["split"] == "test"]
    tested = Counter(turn.utterance_id for fold in folds for turn in fold.test)
    wrong = [i for i in due if tested[i] != times_tested]
    assert not wrong and len(tested) == len(due), (
        f"{len(wrong)} turns not tested {times_tested} time(s): {wrong[:3]}"
    )
    times = "exactly once" if times_tested == 1 else f"{times_tested} times each"
    if official:
        return f"pooled n = {len(due):,}: every labelled turn of the test part is tested {times}"
    return f"pooled n = {len(due):,}: every labelled turn is tested {times}; no speaker is in two parts"
