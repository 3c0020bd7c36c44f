"""Who trains, validates and tests: the same speaker-disjoint folds for every script.

A corpus is cut into groups of speakers: its sessions where it has them, else `n_groups` groups that
leave nobody out. Each group is the test set of one fold. An official split (a manifest column
`split` with train, dev and test, as in MELD) is used instead where there is one.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from common.files import UserError

MIN_GROUPS = 3  # of speakers: one each to train, to validate and to test
OFFICIAL = ("train", "dev", "test")


@dataclass
class Fold:
    """One division of the labelled turns; under SELECT_ON = "test" `valid` holds the test turns."""

    name: str  # "fold1", "choice", "out_1_2"
    train: list
    valid: list
    test: list

    @property
    def is_selected_on_test(self):
        return self.valid == self.test


def speakers_of(turns):
    """The speakers of some turns, sorted."""
    return sorted({turn.speaker for turn in turns})


def has_official_split(manifest):
    """True where every labelled turn says which of train, dev and test it belongs to."""
    return all(turn.extra.get("split") in OFFICIAL for turn in manifest.labelled)


def has_sessions(turns):
    """True where every turn names its session and no speaker is in two, so that sessions can be folds."""
    pairs = {(turn.speaker, turn.session) for turn in turns}
    return all(session for _, session in pairs) and len(pairs) == len(speakers_of(turns))


def speaker_groups(turns, n_groups):
    """Lists of speakers: one per session, else every n_groups-th speaker (24 in 5 groups: 5, 5, 5, 5, 4).

    There are fewer than n_groups where sessions or speakers are fewer; UserError below MIN_GROUPS.
    """
    unit = "session" if has_sessions(turns) else "speaker"
    names = sorted({getattr(turn, unit) for turn in turns})
    n = min(n_groups, len(names))
    if n < MIN_GROUPS:
        need = f"give {MIN_GROUPS} {unit}s or more and N_GROUPS of at least {MIN_GROUPS}"
        raise UserError(f"manifest.csv: {len(names)} {unit}(s), N_GROUPS={n_groups}; {need}")
    return [speakers_of(turn for turn in turns if getattr(turn, unit) in names[i::n]) for i in range(n)]


def make_folds(manifest, n_groups, validate_on, select_on, seed, leave_out=1, train_on_validation=True):
    """The folds of cross-validation, one per group of speakers, or the one fold of an official split.

    validate_on  "group": the next group (cyclically) validates, the others train;
                 "speaker": one random speaker of the other groups, drawn with `seed`, validates
    select_on    "validation", or "test": `valid` is the test set, and those who would have validated train
                 too, the paper's way (optimistic), unless train_on_validation is False
    leave_out    2: folds "out_i_j" test groups i and j together; what a model that saw neither j nor k
                 gives for group j is out of fold for test group k: 5 groups need 10 models
    Raises UserError for too few speakers and for a class that some fold cannot learn.
    """
    check_labels(manifest)
    if has_official_split(manifest):
        if leave_out > 1:
            raise UserError(f"{manifest.corpus}: an official split has no groups; set OUT_OF_FOLD=false")
        return [official_fold(manifest, "fold1", select_on, train_on_validation)]
    groups, folds = speaker_groups(manifest.labelled, n_groups), []
    for held_out in combinations(range(len(groups)), leave_out):
        test = sum((groups[k] for k in held_out), [])
        valid = groups[(held_out[-1] + 1) % len(groups)]
        if validate_on == "speaker":
            others = sorted(set(sum(groups, [])) - set(test))
            valid = [others[np.random.default_rng([seed, *held_out]).integers(len(others))]]
        unused = [] if train_on_validation or select_on == "validation" else valid
        name = ("fold{}", "out_{}_{}")[leave_out - 1].format(*(k + 1 for k in held_out))
        folds.append(make_fold(manifest, name, test, test if select_on == "test" else valid, unused))
    return folds


def model_choice_split(manifest, n_groups):
    """The split on which models are compared (Babaali, Sec. 3.2): session 5 tests, 4 validates, 1-3 train."""
    check_labels(manifest)
    if has_official_split(manifest):
        return official_fold(manifest, "choice", "validation")
    *_, valid, test = speaker_groups(manifest.labelled, n_groups)
    return make_fold(manifest, "choice", test, valid)


def make_fold(manifest, name, test, valid, unused=()):
    """The Fold in which these speakers test and validate and all others but the unused ones train."""
    train = set(speakers_of(manifest.labelled)) - {*test, *valid, *unused}
    parts = [[turn for turn in manifest.labelled if turn.speaker in part] for part in (train, valid, test)]
    return check_classes(manifest, Fold(name, *parts))


def official_fold(manifest, name, select_on, train_on_validation=True):
    """The Fold of the manifest's column `split`."""
    train, dev, test = ([t for t in manifest.labelled if t.extra["split"] == part] for part in OFFICIAL)
    if empty := [part for part, turns in zip(OFFICIAL, (train, dev, test)) if not turns]:
        remedy = "prepare the whole corpus, or remove the column `split` to use speaker groups"
        raise UserError(f"{manifest.folder}/manifest.csv: no labelled turn has split={empty[0]}; {remedy}")
    parts = (train, dev, test)
    if select_on == "test":
        parts = train + dev if train_on_validation else train, test, test
    return check_classes(manifest, Fold(name, *parts))


def protocol_text(manifest, folds=(), validate_on="group", select_on="validation", use="epoch chosen on"):
    """The protocol in one phrase for tables: "5-fold by session, epoch chosen on a validation session"."""
    unit = "session" if has_sessions(manifest.labelled) else "speaker group"
    kind = f"{len(folds)}-fold by {unit}" if len(folds) > 1 else f"one split, the last {unit} tests"
    who = f"a validation {unit}" if validate_on == "group" else "one validation speaker"
    if has_official_split(manifest):
        kind, who = "official train/dev/test split", "the dev part"
    if select_on == "test":
        who = "the TEST set (the paper's way, optimistic)"
        if folds and len(folds[0].train + folds[0].test) < len(manifest.labelled):
            who += ", validation speakers unused"
    return f"{kind}, {use} {who}"


def check_labels(manifest):
    """UserError for labels or speakers with which no fold can be made."""
    path, labels = f"{manifest.folder}/manifest.csv", {turn.label for turn in manifest.labelled}
    if not labels:
        raise UserError(f"{path}: no labelled turn; check the column `label`")
    if unknown := sorted(labels - set(manifest.classes)):
        known = ", ".join(manifest.classes)
        raise UserError(f"{path}: label {unknown[0]!r} is not among the classes {known}; correct or empty it")
    if nameless := sum(not turn.speaker for turn in manifest.labelled):
        raise UserError(f"{path}: {nameless} labelled turns have no speaker; fill in the column `speaker`")


def check_classes(manifest, fold):
    """The fold; UserError where a class does not occur in training."""
    if absent := sorted(set(manifest.classes) - {turn.label for turn in fold.train}):
        who = ", ".join(speakers_of(t for t in manifest.labelled if t.label == absent[0])[:4]) or "nobody"
        found = f"class {absent[0]!r} is absent from the training turns of {fold.name} (only {who} has it)"
        remedy = "add speakers with it, change N_GROUPS, or empty the label to exclude the class"
        raise UserError(f"{manifest.folder}/manifest.csv: {found}; {remedy}")
    return fold


def check_folds(folds, manifest):
    """Lines to print of folds; asserts that no speaker is in two parts and that each turn is tested once."""
    official, lines = has_official_split(manifest), []
    for fold in folds:
        parts = {"train": fold.train, "valid": fold.valid, "test": fold.test}
        texts = [f"{k} {len(part):,} turns, {len(speakers_of(part))} speakers" for k, part in parts.items()]
        if fold.is_selected_on_test:
            texts.append("(valid is the TEST set)")
            del parts["valid"]
        counts = Counter(speaker for turns in parts.values() for speaker in speakers_of(turns))
        shared = sorted(speaker for speaker, n in counts.items() if n > 1)
        assert official or not shared, f"{fold.name}: speakers {shared} are in two parts"
        texts += [f"({len(shared)} speakers in two parts, by the corpus' own split)"] * official
        lines.append(f"{fold.name:<8} {'   '.join(texts)}")
    if len(folds) > 1:
        tested = Counter(turn.utterance_id for fold in folds for turn in fold.test)
        assert tested == Counter(t.utterance_id for t in manifest.labelled), "turns not tested exactly once"
        once = "every labelled turn is tested exactly once; no speaker is in two parts"
        lines.append(f"pooled n = {len(tested):,}: {once}")
    return lines
