"""Who trains, validates and tests in Chochlakis et al. 2024, Sec. 4.1: one speaker-independent split.

The paper gives sizes and no names: CREMA-D 70-15-15 at random, RAVDESS and Lombard GRID at random with 4 and
8 test speakers. It does not say who validates for the last two: here as many as test. Where other speakers
are there (a part of a corpus, a demo, a folder of one's own), the same rule draws the same share of them.
"""

import hashlib
import math
import re
from fractions import Fraction

from common import splits
from common.splits import speakers_of

SPLIT_SEED = 2024
# The share of the speakers that tests, as many validate, and whose rule that is.
RULES = {
    "cremad": (Fraction(15, 100), "the paper's 70-15-15"),
    "ravdess": (Fraction(4, 24), "the paper's 4 test speakers of 24, whose 4,230 clips have no neutral ones"),
    "lombard": (Fraction(8, 54), "the paper's 8 test speakers of 54"),
}
OTHERS = (Fraction(15, 100), "15 % each")


def corpus_of(name):
    """ "ravdess" for "ravdess", "demo_ravdess" and "demo_ravdess_av": whose rule a corpus follows."""
    return name.removeprefix("demo_").removesuffix("_av")


def draw_speakers(speakers, share):
    """Draw (test, validation speakers), sorted lists of a share of the speakers each, rounded up.

    RAVDESS's actors, whose sex is in their number, are drawn as many men as women. A speaker's rank is the
    SHA-256 of seed and name, so that it depends on neither the other speakers nor a library's random numbers.
    """
    ranked = sorted(speakers, key=lambda name: hashlib.sha256(f"{SPLIT_SEED} {name}".encode()).digest())
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
        return splits.official_fold(manifest, "split", "validation")
    share, _ = RULES.get(corpus_of(name), OTHERS)
    fold = splits.make_fold(manifest, "split", *draw_speakers(speakers_of(manifest.labelled), share))
    splits.check_folds([fold], manifest)
    return fold


def protocol_text(manifest, name, fold):
    """The protocol of fold_of in one line, for tables."""
    if splits.has_official_split(manifest):
        return splits.protocol_text(manifest)
    train, valid, test = (len(speakers_of(turns)) for turns in (fold.train, fold.valid, fold.test))
    _, rule = RULES.get(corpus_of(name), OTHERS)
    return (
        f"one speaker-independent split by {rule}: {train} speakers train, {valid} validate, {test} test "
        f"(seed {SPLIT_SEED}, common/chochlakis/splits.py)"
    )
