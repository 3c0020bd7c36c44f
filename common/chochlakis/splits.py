"""Who trains, validates and tests in Chochlakis et al. 2024, Sec. 4.1: one speaker-independent split.

The paper gives sizes and no names: CREMA-D 70-15-15 at random, RAVDESS and Lombard GRID at random with 4 and
8 test speakers. It does not say who validates for the last two: here as many as test. Speakers are drawn by
`draw_speakers`, the same on every machine; where others are there (a part of a corpus, a demo, a folder of
one's own), the same rule draws the same share of those.
"""

import hashlib
import math
import re
from fractions import Fraction

from common import splits
from common.errors import UserError
from common.splits import speakers_of

SPLIT_SEED = 2024
MIN_SPEAKERS = 3  # one each to train, to validate and to test
ALL_SPEAKERS = {
    "cremad": [f"{number}" for number in range(1001, 1092)],
    "ravdess": [f"Actor_{number:02d}" for number in range(1, 25)],
    "lombard": [f"s{number}" for number in range(2, 56)],
}
# The share of the speakers that tests, and the share that validates; of other corpora 15 %.
SHARES = {"cremad": Fraction(15, 100), "ravdess": Fraction(4, 24), "lombard": Fraction(8, 54)}
SOURCES = {
    "cremad": "the paper's 70-15-15",
    "ravdess": "the paper's 4 test speakers, validation ours",
    "lombard": "the paper's 8 test speakers, validation ours",
}


def corpus_of(name):
    """ "ravdess" for "ravdess", "demo_ravdess" and "demo_ravdess_av": whose rule a corpus follows."""
    return name.removeprefix("demo_").removesuffix("_av")


def share_of(name):
    return SHARES.get(corpus_of(name), Fraction(15, 100))


def draw_speakers(speakers, share, seed):
    """Draw (test, validation speakers), sorted lists of a share of the speakers each, rounded up.

    RAVDESS's actors, whose sex is in their number, are drawn as many men as women. A speaker's rank is the
    SHA-256 of seed and name, so that it depends on neither the other speakers nor a library's random numbers.
    """
    ranked = sorted(speakers, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
    if all(re.fullmatch(r"Actor_\d\d", name) for name in ranked):
        men, women = ([name for name in ranked if int(name[-2:]) % 2 == odd] for odd in (1, 0))
        both = min(len(men), len(women))
        ranked = [name for pair in zip(men, women) for name in pair] + men[both:] + women[both:]
    n = math.ceil(share * len(ranked))
    return sorted(ranked[:n]), sorted(ranked[n : 2 * n])


def fold_of(manifest, name):
    """The Fold of a corpus, by the rule of the corpus `name`; an official split (a column `split`) is kept.

    Raises UserError for too few speakers, a labelled turn without one, or a class that nobody who trains has.
    """
    splits.check_labels(manifest)
    if splits.has_official_split(manifest):
        return splits.model_choice_split(manifest, MIN_SPEAKERS)
    speakers = speakers_of(manifest.labelled)
    if len(speakers) < MIN_SPEAKERS:
        raise UserError(
            f"{manifest.folder}/manifest.csv: labelled turns of {len(speakers)} speaker(s); training, "
            f"validation and test take one each: give {MIN_SPEAKERS} or more"
        )
    fold = splits.make_fold(manifest, "split", *draw_speakers(speakers, share_of(name), SPLIT_SEED))
    splits.check_folds([fold], manifest)
    return fold


def protocol_text(manifest, name, fold):
    """The protocol of fold_of in one line, for tables."""
    if splits.has_official_split(manifest):
        return splits.protocol_text(manifest)
    train, valid, test = (len(speakers_of(turns)) for turns in (fold.train, fold.valid, fold.test))
    source = f"drawn from the speakers at hand, {float(share_of(name)):.0%} each, rounded up"
    if speakers_of(manifest.labelled) == sorted(ALL_SPEAKERS.get(corpus_of(name), ())):
        source = SOURCES[corpus_of(name)]
    return (
        f"one speaker-independent split, {train} speakers train, {valid} validate, {test} test ({source}; "
        f"seed {SPLIT_SEED}, common/chochlakis/splits.py)"
    )
