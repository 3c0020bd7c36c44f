"""Who trains, validates and tests in Chochlakis et al., Sec. 4.1: one speaker-independent split per corpus.

The paper gives sizes and no names: CREMA-D 70-15-15 at random, RAVDESS and Lombard GRID at random with 4 and 8 test
speakers. It does not say who validates for the last two: here as many as test. The speakers below were drawn once, by
draw_speakers with SPLIT_SEED, and tests/test_chochlakis_splits.py draws them again. Where other speakers are there (a
part of a corpus, a demo, a folder of one's own), the same rule and seed draw the same share of those.
"""

import hashlib
import math
import re
from fractions import Fraction

from common.errors import UserError
from common.splits import Fold, check_folds, has_official_split, model_choice_split, speakers_of

SPLIT_SEED = 2024
MIN_SPEAKERS = 3  # one each to train, to validate and to test
ALL_SPEAKERS = {
    "cremad": tuple(f"{number}" for number in range(1001, 1092)),
    "ravdess": tuple(f"Actor_{number:02d}" for number in range(1, 25)),
    "lombard": tuple(f"s{number}" for number in range(2, 56)),
}
# The share of the speakers that tests, and the share that validates.
SHARES = {"cremad": Fraction(15, 100), "ravdess": Fraction(4, 24), "lombard": Fraction(8, 54)}
OTHER_SHARE = Fraction(15, 100)  # of a corpus that the paper does not have
SOURCES = {
    "cremad": "the paper's 70-15-15",
    "ravdess": "the paper's 4 test speakers, validation ours",
    "lombard": "the paper's 8 test speakers, validation ours",
}
# By VideoDemographics.csv, 7 of CREMA-D's 14 validation speakers and 4 of its 14 test speakers are women.
VALID_SPEAKERS = {
    "cremad": (
        "1006",
        "1010",
        "1027",
        "1029",
        "1032",
        "1049",
        "1051",
        "1055",
        "1068",
        "1077",
        "1079",
        "1080",
        "1090",
        "1091",
    ),
    "ravdess": ("Actor_06", "Actor_09", "Actor_10", "Actor_21"),
    "lombard": ("s12", "s13", "s23", "s24", "s37", "s48", "s50", "s53"),
}
TEST_SPEAKERS = {
    "cremad": (
        "1001",
        "1014",
        "1016",
        "1021",
        "1042",
        "1043",
        "1050",
        "1054",
        "1057",
        "1064",
        "1066",
        "1076",
        "1083",
        "1085",
    ),
    "ravdess": ("Actor_07", "Actor_12", "Actor_13", "Actor_20"),
    "lombard": ("s16", "s18", "s19", "s2", "s21", "s22", "s36", "s54"),
}


def corpus_of(name):
    """ "ravdess" for "ravdess", "demo_ravdess" and "demo_ravdess_av": whose rule a corpus follows."""
    return name.removeprefix("demo_").removesuffix("_av")


def draw_speakers(speakers, share, seed):
    """Draw test and validation speakers, the same for the same speakers on every machine.

    speakers  names; RAVDESS's actors, whose sex is in their number, are drawn as many men as women
    share     Fraction of the speakers that test, and that validate, rounded up
    Returns (test, valid), sorted tuples. Each speaker's rank is the SHA-256 of seed and name, so that it depends on
    neither the other speakers nor a library's random numbers.
    """
    ranked = sorted(speakers, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    if all(re.fullmatch(r"Actor_\d\d", name) for name in ranked):
        men, women = ([name for name in ranked if int(name[-2:]) % 2 == odd] for odd in (1, 0))
        both = min(len(men), len(women))
        ranked = [name for pair in zip(men, women) for name in pair] + men[both:] + women[both:]
    n = math.ceil(share * len(ranked))
    return tuple(sorted(ranked[:n])), tuple(sorted(ranked[n : 2 * n]))


def fold_of(manifest, name):
    """The split of a corpus: the committed speakers where all of a corpus's are there, else drawn by the same rule.

    manifest  with labelled turns; an official split (a column `split`) is kept
    name      the corpus whose rule counts: "cremad", "ravdess", "lombard", their demos, or any other
    Returns a splits.Fold, checked by splits.check_folds: no speaker is in two parts.
    Raises UserError for fewer than MIN_SPEAKERS speakers, a labelled turn without one, or a class that nobody who
    trains has.
    """
    path, corpus = f"{manifest.folder}/manifest.csv", corpus_of(name)
    if has_official_split(manifest) and manifest.labelled:
        return model_choice_split(manifest, MIN_SPEAKERS)
    speakers = speakers_of(manifest.labelled)
    if "" in speakers:
        raise UserError(f"{path}: labelled turns have no speaker; fill in the column `speaker`")
    if len(speakers) < MIN_SPEAKERS:
        raise UserError(
            f"{path}: labelled turns of {len(speakers)} speaker(s) ({', '.join(speakers)}); training, "
            f"validation and test take one each: give {MIN_SPEAKERS} or more"
        )
    if set(speakers) == set(ALL_SPEAKERS.get(corpus, ())):
        test, valid = TEST_SPEAKERS[corpus], VALID_SPEAKERS[corpus]
    else:
        test, valid = draw_speakers(speakers, SHARES.get(corpus, OTHER_SHARE), SPLIT_SEED)
    parts = {"test": [], "valid": [], "train": []}
    for turn in manifest.labelled:
        parts["test" if turn.speaker in test else "valid" if turn.speaker in valid else "train"].append(turn)
    fold = Fold("split", **parts)
    check_folds([fold], manifest, times_tested=None)
    absent = sorted(set(manifest.classes) - {turn.label for turn in fold.train})
    if absent:
        raise UserError(
            f"{path}: nobody of the {len(speakers_of(fold.train))} training speakers has class "
            f"{absent[0]!r}; add speakers with it, or leave the label empty to exclude it"
        )
    return fold


def protocol_text(manifest, name, fold):
    """The protocol of fold_of in one line, for tables."""
    if has_official_split(manifest):
        return "official train/dev/test split, epoch chosen on the dev part"
    train, valid, test = (len(speakers_of(turns)) for turns in (fold.train, fold.valid, fold.test))
    corpus = corpus_of(name)
    if set(speakers_of(manifest.labelled)) == set(ALL_SPEAKERS.get(corpus, ())):
        source = SOURCES[corpus]
    else:
        source = (
            f"drawn from the speakers at hand, {float(SHARES.get(corpus, OTHER_SHARE)):.0%} each, rounded up"
        )
    return (
        f"one speaker-independent split, {train} speakers train, {valid} validate, {test} test "
        f"({source}; seed {SPLIT_SEED}, common/chochlakis/splits.py)"
    )
