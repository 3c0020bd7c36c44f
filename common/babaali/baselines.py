"""What anyone would compare with, under the same folds: features of a toolkit and a turn's words."""

from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from common.babaali.features import fill_absent, read_rows
from common.files import UserError
from common.store import Store

WORDS = "words"
TOKENS = r"\w+|[!?.]+"  # marks tell of emotion too


def baseline_vectors(name, manifest, root, rows):
    """Vectors (N, D) of the labelled turns, scaled by some rows of them.

    name  WORDS: TF-IDF of words and pairs of words; else a folder of features below root, which 03 or the
          user wrote, standardised and divided by the square root of D
    """
    turns = manifest.labelled
    if name == WORDS:
        texts = [turn.text for turn in turns]
        if not any(texts):
            raise UserError(f"BASELINES={WORDS}: {manifest.corpus} has no text; leave it out")
        vectorizer = TfidfVectorizer(token_pattern=TOKENS, ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        return vectorizer.fit([texts[i] for i in rows]).transform(texts)
    vectors = fill_absent(read_rows(Store(Path(root) / name), "features", turns), rows)
    vectors = vectors.astype(np.float64)  # columns of a toolkit differ by ten orders of magnitude
    return StandardScaler().fit(vectors[rows]).transform(vectors) / np.sqrt(vectors.shape[1])


def linear_svm(vectors, y, parts, penalties):
    """Linear support vector machine on vectors(rows), which is scaled by these rows; as 04's classifiers."""

    def fitted(rows, penalty):
        return LinearSVC(C=penalty, random_state=0).fit(x[rows], y[rows])

    x = vectors(parts.fit)
    scores = [fitted(parts.fit, c).score(x[parts.choose], y[parts.choose]) for c in penalties]
    x = vectors(parts.refit)
    return fitted(parts.refit, penalties[int(np.argmax(scores))]).predict(x[parts.test]), max(scores)
