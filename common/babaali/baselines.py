"""What anyone would compare with, under the same folds: openSMILE's functionals and a turn's words."""

from functools import partial
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from common.babaali.features import fill_absent, read_rows
from common.encoders import RATE_HZ
from common.extraction import Extraction, extract
from common.files import UserError
from common.media import read_audio
from common.store import Store

WORDS = "words"
TOKENS = r"\w+|[!?.]+"  # marks tell of emotion too


def extract_opensmile(manifest, feature_set, folder, workers):
    """The Store of openSMILE's functionals of every turn with sound; feature_set such as "ComParE_2016"."""
    try:
        import opensmile
    except ImportError as error:
        raise UserError("OPENSMILE: needs the optional package; pip install opensmile") from error
    if feature_set not in opensmile.FeatureSet.__members__:
        raise UserError(f"OPENSMILE={feature_set}: choose from {', '.join(opensmile.FeatureSet.__members__)}")
    smile = opensmile.Smile(opensmile.FeatureSet[feature_set], opensmile.FeatureLevel.Functionals)

    def compute(sounds):
        rows = [smile.process_signal(samples, RATE_HZ).to_numpy(np.float32) for samples in sounds]
        return {"features": np.concatenate(rows)}, None

    items = {turn.utterance_id: manifest.path(turn.audio) for turn in manifest.turns if turn.audio}
    made_by = {"opensmile": opensmile.__version__, "feature_set": feature_set}
    identity = {"manifest": manifest.fingerprint(), **made_by}
    need_bytes = 4 * len(items) * len(smile.feature_names)
    place, how, what = Path(folder) / feature_set, Extraction(workers=workers), f"openSMILE's {feature_set}"
    read = partial(read_audio, rate_hz=RATE_HZ)
    return extract(items, read, compute, place, identity, how, what, need_bytes)


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
    x, scores = vectors(parts.fit), []
    for penalty in penalties:
        machine = LinearSVC(C=penalty, random_state=0).fit(x[parts.fit], y[parts.fit])
        scores.append(machine.score(x[parts.choose], y[parts.choose]))
    x = vectors(parts.refit)
    machine = LinearSVC(C=penalties[int(np.argmax(scores))], random_state=0).fit(
        x[parts.refit], y[parts.refit]
    )
    return machine.predict(x[parts.test]), max(scores)
