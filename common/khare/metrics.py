"""The scores of CMU-MOSEI in Khare et al., 2021 (Sec. 4), for one emotion at a time, and the word error rate.

Emotions are not exclusive: each is a binary task of its own, with its own 2 x 2 confusion counts, to which the scores
of `metrics` apply. WA is what that literature calls weighted accuracy, (TP * N / P + TN) / (2 N) = (TPR + TNR) / 2 for
P positive and N negative clips. Its F1 is weighted by how often each class occurs, which flatters rare emotions: saying
"no" to every clip has a high one. The macro and the positive class's F1, and that baseline, are therefore given too.

N clips, E emotions, S runs (seeds), K videos, R resamples.
"""

import numpy as np

from common import metrics

SCORES = {  # name -> score of confusion counts (..., 2, 2), true class by row
    "WA": metrics.unweighted_recall,
    "F1": metrics.weighted_f1,
    "macro F1": metrics.macro_f1,
    "positive F1": lambda counts: metrics.f1(counts)[..., 1],
}


def confusion(y_true, y_pred):
    """Counts (..., E, 2, 2) of true class (row) against predicted class of y_true (N, E), y_pred (..., N, E), 0/1."""
    return _video_counts(y_true, y_pred, np.zeros(len(y_true), int), 1)[0]


def scores(counts):
    """All SCORES of counts (..., E, 2, 2): name -> (..., E + 1), the last one being the average over emotions."""
    found = {}
    for name, score in SCORES.items():
        each = score(counts)  # (..., E)
        found[name] = np.concatenate([each, each.mean(-1, keepdims=True)], -1)
    return found


def selection_score(y_true, y_pred):
    """What chooses among runs on the dev set (Sec. 4): "the average of the weighted accuracy and F1-scores over all the
    emotions"; y_true (N, E), y_pred (..., N, E) -> (...)."""
    found = scores(confusion(y_true, y_pred))
    return (found["WA"][..., -1] + found["F1"][..., -1]) / 2


def all_negative(y_true):
    """The scores of a classifier that finds no emotion in any clip: name -> (E + 1,)."""
    return scores(confusion(y_true, np.zeros_like(y_true)))


def resampled(y_true, y_pred, videos, n_resamples, seed):
    """All scores on resamples of whole videos, drawn with replacement, for clips of one video are not independent.

    y_true  (N, E) 0/1
    y_pred  (N, E) 0/1, or (S, N, E): the scores of runs are averaged within each resample
    videos  (N,) name of each clip's video
    Returns name -> (R, E + 1), the average over emotions last. The same seed draws the same resamples: the difference
    of two systems' results is that of a paired bootstrap. Raises ValueError with a single video.
    """
    names, member = np.unique(np.asarray(videos), return_inverse=True)
    if len(names) < 2:
        raise ValueError("one video gives no interval")
    y_pred = np.asarray(y_pred)
    per_video = _video_counts(y_true, y_pred[None] if y_pred.ndim == 2 else y_pred, member, len(names))
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), n_resamples
    )
    counts = draws.astype(np.float64) @ per_video.reshape(len(names), -1)  # (R, S * E * 4)
    found = scores(counts.reshape(n_resamples, *per_video.shape[1:]))  # (R, S, E + 1)
    return {name: values.mean(1) for name, values in found.items()}


def interval(values, level=0.95):
    """Percentile interval of resampled scores (R, ...) -> (2, ...), low and high."""
    tail = (1 - level) / 2
    return np.quantile(values, [tail, 1 - tail], axis=0)


# ---- Word error rate (Section 4.1) ---------------------------------------------------------


def word_edits(reference, hypothesis):
    """The fewest substitutions, deletions and insertions from one list of words to another (Levenshtein)."""
    number = {word: i for i, word in enumerate({*reference, *hypothesis})}
    heard, steps = np.array([number[word] for word in hypothesis], int), np.arange(len(hypothesis) + 1)
    edits = steps
    for row, word in enumerate(reference, 1):
        best = np.concatenate([[row], np.minimum(edits[1:] + 1, edits[:-1] + (heard != number[word]))])
        # An insertion costs 1 for every word further right: the running minimum does all of them at once.
        edits = np.minimum.accumulate(best - steps) + steps
    return int(edits[-1])


def word_error_rate(references, hypotheses):
    """Edits of all pairs by the number of words in all references; it can exceed 1.

    references, hypotheses  lists of transcripts, each a list of words, in the same spelling and case
    Raises ValueError if there is no word in the references or not one hypothesis for each.
    """
    pairs, n_words = list(zip(references, hypotheses, strict=True)), sum(map(len, references))
    if not n_words:
        raise ValueError("no word in the reference transcripts")
    return sum(word_edits(*pair) for pair in pairs) / n_words


def _video_counts(y_true, y_pred, member, n_videos):
    """Counts (K, ..., E, 2, 2) of each video, from its number in `member` (N,)."""
    y_true, y_pred = np.asarray(y_true).astype(bool), np.asarray(y_pred).astype(bool)
    n_emotions, runs = y_true.shape[1], y_pred.shape[:-2]
    cell = ((member[:, None] * n_emotions + np.arange(n_emotions)) * 2 + y_true) * 2 + y_pred  # (..., N, E)
    size = n_videos * n_emotions * 4
    counts = np.stack([np.bincount(run, minlength=size) for run in cell.reshape(-1, y_true.size)])
    counts = counts.reshape(*runs, n_videos, n_emotions, 2, 2)
    return np.moveaxis(counts, len(runs), 0).astype(np.float64)
