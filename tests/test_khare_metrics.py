"""Scores of emotions against scikit-learn, and intervals against resampling by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from common.khare.tables import SCORES, averaged, interval, selection_score

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
    assert set(SCORES) == set(BY_SCIKIT_LEARN)
    for run in runs:
        for score in SCORES:
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
    found = {score: averaged(score, y, np.zeros_like(y)) for score in SCORES}
    weighted, macro = pytest.approx(0.95 * 190 / 195), pytest.approx(95 / 195)
    assert found == {"WA": 0.5, "F1": weighted, "macro F1": macro, "positive F1": 0.0}


def resampled_by_hand(score, y, runs, videos, n_resamples):
    """Mean over the runs on each resample of videos, clips gathered one by one."""
    names = np.unique(videos)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples)
    for draw in draws:
        rows = [np.flatnonzero(videos == name) for name, times in zip(names, draw) for _ in range(times)]
        rows = np.concatenate(rows)
        yield 100 * np.mean([mean_of(score, y[rows], run[rows]) for run in runs])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("score", ["WA", "F1"])
def test_intervals_equal_gathering_the_clips(labels, score):
    y, runs, videos = labels
    ours = np.array(list(resampled_by_hand(score, y, runs, videos, 20)))
    np.testing.assert_allclose(interval(score, y, runs, videos, 20), np.quantile(ours, [0.025, 0.975]))
    other = np.where(np.arange(300)[:, None] % 3 == 0, y, runs)
    gain = ours - list(resampled_by_hand(score, y, other, videos, 20))
    found = interval(score, y, runs, videos, 20, other)
    np.testing.assert_allclose(found, np.quantile(gain, [0.025, 0.975]))


def test_names_of_videos_and_a_single_one(labels):
    y, runs, videos = labels
    named = np.array([f"-video{number:02d}" for number in videos])
    assert interval("WA", y, runs[:1], named, 50) == interval("WA", y, runs[:1], videos, 50)
    assert np.isnan(interval("WA", y, runs, np.zeros(300), 10)).all()


def test_differences_are_paired(labels):
    y, runs, videos = labels
    better = runs[:1].copy()
    better[:, :30] = y[:30]
    alone = interval("WA", y, better, videos, 2000)
    low, high = interval("WA", y, better, videos, 2000, runs[:1])
    gain = averaged("WA", y, better[0]) - averaged("WA", y, runs[0])
    assert low < 100 * gain < high and high - low < 0.75 * np.ptp(alone)


def test_clips_of_one_video_are_not_independent():
    videos = np.repeat(np.arange(20), 30)
    y = np.tile(np.arange(600) % 2, (6, 1)).T == 1
    right = np.random.default_rng(0).random((600, 6)) < np.repeat(np.linspace(0.4, 0.9, 20), 30)[:, None]
    p = np.where(right, y, ~y)[None]
    by_video, by_clip = (np.ptp(interval("WA", y, p, who, 1000)) for who in (videos, np.arange(600)))
    assert by_video > 2 * by_clip
