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

MIN_GROUPS = 3  # of speakers: one each to train, to validate and to test
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
    (24 speakers in 5 groups: 5, 5, 5, 5, 4). Raises UserError below MIN_GROUPS groups.
    """
    kind = "session" if by_session(turns) else "speaker"
    units = sorted({getattr(turn, kind) for turn in turns})
    if min(len(units), n_groups) < MIN_GROUPS:
        need = f"give {MIN_GROUPS} {kind}s or more and N_GROUPS of at least {MIN_GROUPS}"
        raise UserError(f"manifest.csv: {len(units)} {kind}(s) in {n_groups} groups; {need}")
    parts = [set(units[i::n_groups]) for i in range(min(n_groups, len(units)))]
    return [speakers_of(turn for turn in turns if getattr(turn, kind) in part) for part in parts]


def make_folds(manifest, n_groups, validate_on, select_on, seed):
    """The folds of cross-validation, one per group of speakers, or the one fold of an official split.

    validate_on  "group": the next group (cyclically) validates, the others train;
                 "speaker": one random speaker of the other groups validates
    select_on    "validation", or "test": nobody validates, all other groups train and `valid` is the
                 test set: the paper's way, optimistic
    seed         draws the validation speaker
    Raises UserError for too few speakers and for a class that some fold cannot learn.
    """
    check_choice("VALIDATE_ON", validate_on, ("group", "speaker"))
    check_choice("SELECT_ON", select_on, ("validation", "test"))
    check_labels(manifest)
    if has_official_split(manifest):
        return check_classes(manifest, [official_fold(manifest, "fold1", select_on)])
    groups, folds = speaker_groups(manifest.labelled, n_groups), []
    for k, group in enumerate(groups):
        if select_on == "test":
            valid = group
        elif validate_on == "group":
            valid = groups[(k + 1) % len(groups)]
        else:
            valid = draw_speaker(groups[:k] + groups[k + 1 :], [seed, k])
        folds.append(make_fold(manifest, f"fold{k + 1}", group, valid))
    return check_classes(manifest, folds)


def model_choice_split(manifest, n_groups):
    """The single split on which models are compared before cross-validation (Babaali, Sec. 3.2).

    Sessions 1-3 train, 4 validates, 5 tests; of other groups the last tests, the last but one validates.
    """
    check_labels(manifest)
    if has_official_split(manifest):
        fold = official_fold(manifest, "choice", "validation")
    else:
        *_, valid, test = speaker_groups(manifest.labelled, n_groups)
        fold = make_fold(manifest, "choice", test, valid)
    return check_classes(manifest, [fold])[0]


def leave_two_out(manifest, n_groups, seed):
    """Folds "out_i_j" that test groups i and j together, from which out-of-fold outputs are taken.

    For test group k, the outputs of group j by the model that saw neither j nor k are out of fold, so
    5 groups need 10 models. One random speaker of the remaining groups validates.
    """
    check_labels(manifest)
    if has_official_split(manifest):
        raise UserError(f"{manifest.corpus}: an official split has no groups; set OUT_OF_FOLD=false")
    groups, folds = speaker_groups(manifest.labelled, n_groups), []
    for i, j in combinations(range(len(groups)), 2):
        valid = draw_speaker([group for k, group in enumerate(groups) if k not in (i, j)], [seed, i, j])
        folds.append(make_fold(manifest, f"out_{i + 1}_{j + 1}", groups[i] + groups[j], valid))
    return check_classes(manifest, folds)


def make_fold(manifest, name, test_speakers, valid_speakers):
    """The Fold in which all other speakers train."""
    held_out, turns = {*test_speakers, *valid_speakers}, manifest.labelled
    train = [turn for turn in turns if turn.speaker not in held_out]
    valid = [turn for turn in turns if turn.speaker in valid_speakers]
    return Fold(name, train, valid, [turn for turn in turns if turn.speaker in test_speakers])


def official_fold(manifest, name, select_on):
    """The Fold of the manifest's column `split`."""
    parts = {part: [t for t in manifest.labelled if t.extra["split"] == part] for part in OFFICIAL}
    if empty := [part for part in OFFICIAL if not parts[part]]:
        remedy = "prepare the whole corpus, or remove the column `split` to use speaker groups"
        raise UserError(f"{manifest.folder}/manifest.csv: no labelled turn has split={empty[0]}; {remedy}")
    train, dev, test = parts.values()
    return Fold(name, train + dev, test, test) if select_on == "test" else Fold(name, train, dev, test)


def draw_speaker(groups, seed):
    """One random speaker, as a list, who does not leave the others with nobody to train on."""
    speakers = sorted(speaker for group in groups for speaker in group)
    if len(speakers) < 2:
        remedy = "add speakers, or set VALIDATE_ON=group and OUT_OF_FOLD=false"
        raise UserError(f"manifest.csv: only {speakers[0]} is left to train and to validate; {remedy}")
    return [speakers[np.random.default_rng(seed).integers(len(speakers))]]


def is_selected_on_test(fold):
    """True where the fold has no validation speakers of its own."""
    return {turn.utterance_id for turn in fold.valid} == {turn.utterance_id for turn in fold.test}


def divide(fold, turns):
    """The Parts of a fold in `turns`; without validation speakers every fourth training speaker chooses."""
    row = {turn.utterance_id: i for i, turn in enumerate(turns)}
    fit, choose = fold.train, fold.valid
    if is_selected_on_test(fold):
        held_out = speakers_of(fold.train)[::4]
        fit = [turn for turn in fold.train if turn.speaker not in held_out]
        choose = [turn for turn in fold.train if turn.speaker in held_out]
    parts = fit, choose, fit + choose, fold.test
    return Parts(*(np.array([row[turn.utterance_id] for turn in part]) for part in parts))


# ---- The protocol in words ------------------------------------------------------------------


def unit_text(manifest):
    return "session" if by_session(manifest.labelled) else "speaker group"


def choice_protocol_text(manifest, n_groups):
    """The protocol of model_choice_split in one phrase: "sessions 1 to 3 train, 4 validates, 5 tests"."""
    if has_official_split(manifest):
        return "official train/dev/test split, epoch chosen on the dev part"
    n, unit = len(speaker_groups(manifest.labelled, n_groups)), unit_text(manifest)
    return f"one split: {unit}s 1 to {n - 2} train, {n - 1} validates and chooses the epoch, {n} tests"


def folds_text(manifest, folds):
    """ "5-fold by session", "5-fold by speaker group" or "official train/dev/test split"."""
    if has_official_split(manifest):
        return "official train/dev/test split"
    return f"{len(folds)}-fold by {unit_text(manifest)}"


def validators_text(manifest, validate_on):
    """Who validates: "a validation session", "one validation speaker", "the dev part"."""
    if has_official_split(manifest):
        return "the dev part"
    return f"a validation {unit_text(manifest)}" if validate_on == "group" else "one validation speaker"


def protocol_text(manifest, folds, validate_on, select_on):
    """The protocol in one phrase for tables: "5-fold by session, epoch chosen on a validation session"."""
    chosen_on = validators_text(manifest, validate_on)
    if select_on == "test":
        chosen_on = "the TEST set (the paper's way, optimistic)"
    return f"{folds_text(manifest, folds)}, epoch chosen on {chosen_on}"


# ---- Checks ---------------------------------------------------------------------------------


def check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f"{name}={value}: choose one of {', '.join(choices)}")


def check_labels(manifest):
    """UserError for labels or speakers with which no fold can be made."""
    path = f"{manifest.folder}/manifest.csv"
    counts = Counter(turn.label for turn in manifest.labelled)
    if not counts:
        raise UserError(f"{path}: no labelled turn; check the column `label`")
    if unknown := sorted(counts.keys() - set(manifest.classes)):
        known = ", ".join(manifest.classes)
        raise UserError(f"{path}: label {unknown[0]!r} is not among the classes {known}; correct or empty it")
    if nameless := sum(not turn.speaker for turn in manifest.labelled):
        raise UserError(f"{path}: {nameless} labelled turns have no speaker; fill in the column `speaker`")
    if rare := [name for name in manifest.classes if counts[name] < MIN_TURNS]:
        found = f"class {rare[0]!r} has {counts[rare[0]]} labelled turn(s) of at least {MIN_TURNS}"
        raise UserError(f"{path}: {found}; add turns, or empty the label to exclude the class")


def check_classes(manifest, folds):
    """The folds; UserError where one cannot learn a class."""
    for fold in folds:
        if absent := sorted(set(manifest.classes) - {turn.label for turn in fold.train}):
            who = ", ".join(speakers_of(turn for turn in manifest.labelled if turn.label == absent[0])[:4])
            found = (
                f"class {absent[0]!r} is absent from the training turns of {fold.name} (only {who} have it)"
            )
            remedy = "add speakers with it, change N_GROUPS, or empty the label to exclude the class"
            raise UserError(f"{manifest.folder}/manifest.csv: {found}; {remedy}")
    return folds


def check_folds(folds, manifest, times_tested=1):
    """Assert that no speaker is in two parts of a fold and that every labelled turn is tested as planned.

    times_tested  how often each labelled turn is in a test set: 1 for make_folds, n_groups - 1 for
                  leave_two_out, None for a single split
    Returns lines to print: speakers and turns of every part. In an official split the same actors are in
    all parts, which the line says, and the turns of its test part count as the labelled ones.
    """
    official, lines = has_official_split(manifest), []
    for fold in folds:
        parts = {"train": fold.train, "valid": fold.valid, "test": fold.test}
        line = f"{fold.name:<8} " + "   ".join(part_text(name, turns) for name, turns in parts.items())
        if is_selected_on_test(fold):
            line += "   (valid is the TEST set)"
            del parts["valid"]
        counts = Counter(speaker for turns in parts.values() for speaker in speakers_of(turns))
        shared = sorted(speaker for speaker, n in counts.items() if n > 1)
        assert official or not shared, f"{fold.name}: speakers {shared} are in two parts"
        line += f"   ({len(shared)} speakers in two parts, by the corpus' own split)" if official else ""
        lines.append(line)
    if times_tested is None:
        return lines
    due = [t.utterance_id for t in manifest.labelled if not official or t.extra["split"] == "test"]
    tested = Counter(turn.utterance_id for fold in folds for turn in fold.test)
    wrong = [i for i in due if tested[i] != times_tested]
    assert not wrong and len(tested) == len(due), f"{len(wrong)} turns not tested {times_tested} time(s)"
    often = "exactly once" if times_tested == 1 else f"{times_tested} times each"
    text = f"labelled turn is tested {often}; no speaker is in two parts"
    text = f"labelled turn of the test part is tested {often}" if official else text
    return [*lines, f"pooled n = {len(due):,}: every {text}"]


def part_text(name, turns):
    speakers = speakers_of(turns)
    shown = ",".join(speakers) if len(speakers) <= 6 else f"{speakers[0]}..{speakers[-1]}"
    return f"{name} {len(turns):,} turns, {len(speakers)} speakers ({shown})"
