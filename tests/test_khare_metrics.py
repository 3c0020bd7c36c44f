"""Scores of emotions against scikit-learn, and intervals against resampling by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from common.khare.tables import averaged, resampled, selection_score

SHARES = (0.6, 0.3, 0.2, 0.1, 0.15, 0.08)
BY_SCIKIT_LEARN = {
    "WA": sk.balanced_accuracy_score,
    "F1": lambda y, p: sk.f1_score(y, p, average="weighted"),
    "macro F1": lambda y, p: sk.f1_score(y, p, average="macro"),
    "positive F1": lambda y, p: sk.f1_score(y, p, zero_division=0),
}


@pytest.fixture(scope="module")
def labels():
    """300 clips of 40 videos with six emotions, and the predictions of three runs."""
    rng = np.random.default_rng(0)
    y = rng.random((300, 6)) < SHARES
    return y, np.where(rng.random((3, 300, 6)) < 0.75, y, ~y), rng.integers(0, 40, 300)


def mean_of(score, y, p):
    return np.mean([BY_SCIKIT_LEARN[score](y[:, e], p[:, e]) for e in range(y.shape[1])])


def test_scores_equal_scikit_learn(labels):
    y, runs, _ = labels
    for run in runs:
        for score in BY_SCIKIT_LEARN:
            assert averaged(score, y, run) == pytest.approx(mean_of(score, y, run))
            assert averaged(score, y[:, [3]], run[:, [3]]) == pytest.approx(
                mean_of(score, y[:, [3]], run[:, [3]])
            )
        chosen = (mean_of("WA", y, run) + mean_of("F1", y, run)) / 2
        assert selection_score(y, run) == pytest.approx(chosen)


def test_weighted_accuracy_is_the_formula_of_mosei(labels):
    y, runs, _ = labels
    for e in range(6):
        (tn, fp), (fn, tp) = sk.confusion_matrix(y[:, e], runs[0][:, e])
        positive, negative = tp + fn, tn + fp
        expected = (tp * negative / positive + tn) / (2 * negative)
        assert averaged("WA", y[:, [e]], runs[0][:, [e]]) == pytest.approx(expected)


def test_saying_no_has_a_high_weighted_f1_for_a_rare_emotion():
    y = np.zeros((100, 1), bool)
    y[:5] = True
    found = {score: averaged(score, y, np.zeros_like(y)) for score in BY_SCIKIT_LEARN}
    weighted, macro = pytest.approx(0.95 * 190 / 195), pytest.approx(95 / 195)
    assert found == {"WA": 0.5, "F1": weighted, "macro F1": macro, "positive F1": 0.0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("score", ["WA", "F1"])
def test_resamples_equal_gathering_the_clips(labels, score):
    y, runs, videos = labels
    names = np.unique(videos)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), 8)
    for draw, found in zip(draws, resampled(score, y, runs[:1], videos, 8)):
        rows = [np.flatnonzero(videos == name) for name, times in zip(names, draw) for _ in range(times)]
        rows = np.concatenate(rows)
        assert found == pytest.approx(mean_of(score, y[rows], runs[0][rows]))


def test_a_mean_carries_the_spread_of_its_runs():
    """All videos are alike, so that nothing but the runs varies: their standard error, even of two."""
    y, accuracies = np.tile([[False], [True]], (500, 1)), (0.5, 0.6, 0.9, 0.7)
    right = np.arange(1000) // 2 % 10
    for n in (2, 4):
        runs = np.array([np.where((right < 10 * x)[:, None], y, ~y) for x in accuracies[:n]])
        drawn = resampled("WA", y, runs, np.arange(1000) // 20, 20000)
        assert drawn.mean() == pytest.approx(np.mean(accuracies[:n]), abs=0.005)
        assert drawn.std() == pytest.approx(np.std(accuracies[:n], ddof=1) / n**0.5, rel=0.05)
        same = resampled("WA", y, runs, np.arange(1000) // 20, 20000)
        assert (drawn == same).all(), "systems are not paired"


def test_names_of_videos_and_a_single_one(labels):
    y, runs, videos = labels
    named = np.array([f"-video{number:02d}" for number in videos])
    assert (resampled("WA", y, runs, named, 50) == resampled("WA", y, runs, videos, 50)).all()
    assert np.isnan(resampled("WA", y, runs, np.zeros(300), 10)).all()


def test_differences_are_paired(labels):
    y, runs, videos = labels
    better = runs[:1].copy()
    better[:, :30] = y[:30]
    alone, other = (resampled("WA", y, x, videos, 2000) for x in (better, runs[:1]))
    assert (alone - other).std() < 0.75 * alone.std()


def test_clips_of_one_video_are_not_independent():
    videos = np.repeat(np.arange(20), 30)
    y = np.tile(np.arange(600) % 2, (6, 1)).T == 1
    right = np.random.default_rng(0).random((600, 6)) < np.repeat(np.linspace(0.4, 0.9, 20), 30)[:, None]
    p = np.where(right, y, ~y)[None]
    by_video, by_clip = (resampled("WA", y, p, who, 1000).std() for who in (videos, np.arange(600)))
    assert by_video > 2 * by_clip
