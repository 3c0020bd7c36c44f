"""Scores of emotions against scikit-learn, and intervals against resampling by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from common.khare.tables import SCORES, confusion, interval, resampled, scores, selection_score

SHARES = (0.6, 0.3, 0.2, 0.1, 0.15, 0.08)


@pytest.fixture(scope="module")
def labels():
    """300 clips of 40 videos with six emotions, and the predictions of three runs."""
    rng = np.random.default_rng(0)
    y = (rng.random((300, 6)) < SHARES).astype(int)
    return y, np.where(rng.random((3, 300, 6)) < 0.75, y, 1 - y), rng.integers(0, 40, 300)


def by_scikit_learn(y, p):
    """name -> (E + 1,), one emotion at a time."""
    found = {
        "WA": [sk.balanced_accuracy_score(y[:, e], p[:, e]) for e in range(y.shape[1])],
        "F1": [sk.f1_score(y[:, e], p[:, e], average="weighted") for e in range(y.shape[1])],
        "macro F1": [sk.f1_score(y[:, e], p[:, e], average="macro") for e in range(y.shape[1])],
        "positive F1": [sk.f1_score(y[:, e], p[:, e], zero_division=0) for e in range(y.shape[1])],
    }
    return {name: [*values, np.mean(values)] for name, values in found.items()}


def test_scores_equal_scikit_learn(labels):
    y, runs, _ = labels
    counts = confusion(y, runs)
    assert counts.shape == (3, 6, 2, 2)
    for run in range(3):
        np.testing.assert_array_equal(counts[run], sk.multilabel_confusion_matrix(y, runs[run]))
        expected = by_scikit_learn(y, runs[run])
        assert set(expected) == set(SCORES)
        for name, values in scores(counts).items():
            np.testing.assert_allclose(values[run], expected[name])
        chosen = (expected["WA"][-1] + expected["F1"][-1]) / 2
        assert selection_score(y, runs[run]) == pytest.approx(chosen)


def test_weighted_accuracy_is_the_formula_of_mosei(labels):
    y, runs, _ = labels
    for emotion in range(6):
        (tn, fp), (fn, tp) = confusion(y, runs[0])[emotion]
        positive, negative = tp + fn, tn + fp
        expected = (tp * negative / positive + tn) / (2 * negative)
        assert scores(confusion(y, runs[0]))["WA"][emotion] == pytest.approx(expected)


def test_saying_no_has_a_high_weighted_f1_for_a_rare_emotion():
    y = np.zeros((100, 2), int)
    y[:50, 0] = y[:5, 1] = 1
    found = scores(confusion(y, np.zeros_like(y)))
    assert found["WA"].tolist() == [0.5, 0.5, 0.5] and found["positive F1"].tolist() == [0, 0, 0]
    assert found["F1"].tolist() == pytest.approx(
        [0.5 * 2 / 3, 0.95 * 190 / 195, (1 / 3 + 0.95 * 190 / 195) / 2]
    )
    assert found["macro F1"].tolist()[:2] == pytest.approx([1 / 3, 95 / 195])


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_labels_of_any_type(labels, dtype):
    y, runs, _ = labels
    np.testing.assert_array_equal(confusion(y.astype(dtype), runs.astype(dtype)), confusion(y, runs))


@pytest.mark.filterwarnings("ignore")
def test_resamples_equal_gathering_the_clips(labels):
    y, runs, videos = labels
    found = resampled(y, runs, videos, 8, 7)
    names = np.unique(videos)
    draws = np.random.default_rng(7).multinomial(len(names), np.full(len(names), 1 / len(names)), 8)
    for number, draw in enumerate(draws):
        rows = np.concatenate(
            [np.repeat(np.flatnonzero(videos == name), times) for name, times in zip(names, draw)]
        )
        expected = [by_scikit_learn(y[rows], run[rows]) for run in runs]
        for name, values in found.items():
            assert values.shape == (8, 7)
            np.testing.assert_allclose(values[number], np.mean([each[name] for each in expected], 0))


def test_one_run_and_names_of_videos(labels):
    y, runs, videos = labels
    named = np.array([f"-video{number:02d}" for number in videos])
    one, same = resampled(y, runs[:1], named, 50, 1), resampled(y, runs[:1], videos, 50, 1)
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
    assert resampled(y, runs, np.zeros(300), 10, 0) == {}


def test_intervals_and_paired_differences(labels):
    y, runs, videos = labels
    found, point = resampled(y, runs[:1], videos, 2000), scores(confusion(y, runs[0]))["WA"]
    for place in range(7):
        low, high = interval(found["WA"][:, place])
        np.testing.assert_allclose([low, high], 100 * np.percentile(found["WA"][:, place], [2.5, 97.5]))
        assert low < 100 * point[place] < high
    again = resampled(y, runs[:1], videos, 2000)
    assert all((found[name] == again[name]).all() for name in found)
    better = runs[:1].copy()
    better[:, :30] = y[:30]
    difference = resampled(y, better, videos, 2000)["WA"] - found["WA"]
    assert difference[:, -1].std() < 0.75 * found["WA"][:, -1].std(), "not paired"


def test_clips_of_one_video_are_not_independent():
    videos = np.repeat(np.arange(20), 30)
    y = np.tile(np.arange(600) % 2, (6, 1)).T
    right = np.random.default_rng(0).random((600, 6)) < np.repeat(np.linspace(0.4, 0.9, 20), 30)[:, None]
    p = np.where(right, y, 1 - y)[None]
    by_video, by_clip = (
        np.ptp(interval(resampled(y, p, who, 1000)["WA"][:, -1])) for who in (videos, np.arange(600))
    )
    assert by_video > 2 * by_clip
