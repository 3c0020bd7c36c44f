"""Scores, intervals and paired tests against scikit-learn, scipy and numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from common import comparison, metrics


@pytest.fixture(params=[2, 4, 8])
def labels(request):
    rng = np.random.default_rng(request.param)
    y = rng.integers(0, request.param, 300)
    return y, np.where(rng.random(300) < 0.6, y, rng.integers(0, request.param, 300))


def test_scores_equal_scikit_learn(labels):
    y, p = labels
    counts = metrics.confusion(y, p)
    assert (counts == sk.confusion_matrix(y, p)).all()
    precision, recall, f1, _ = sk.precision_recall_fscore_support(y, p)
    for ours, theirs in (
        (metrics.precision(counts), precision),
        (metrics.recall(counts), recall),
        (metrics.f1(counts), f1),
        (metrics.accuracy(counts), sk.accuracy_score(y, p)),
        (metrics.unweighted_recall(counts), sk.balanced_accuracy_score(y, p)),
        (metrics.macro_f1(counts), sk.f1_score(y, p, average="macro")),
        (metrics.weighted_f1(counts), sk.f1_score(y, p, average="weighted")),
        (metrics.weighted(metrics.precision(counts), counts), sk.precision_score(y, p, average="weighted")),
    ):
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_absent_classes_count_as_in_scikit_learn():
    y, p = np.array([0, 0, 3, 3]), np.array([0, 1, 3, 3])  # class 1 only predicted, class 2 nowhere
    counts = metrics.confusion(y, p, 5)
    assert metrics.unweighted_recall(counts) == sk.balanced_accuracy_score(y, p) == 0.75
    np.testing.assert_allclose(metrics.macro_f1(counts), sk.f1_score(y, p, average="macro"))


def test_scores_of_stacked_counts_are_those_of_each():
    counts = np.random.default_rng(0).integers(0, 9, (3, 2, 4, 4))
    for metric in (metrics.accuracy, metrics.unweighted_recall, metrics.macro_f1, metrics.weighted_f1):
        np.testing.assert_allclose(metric(counts)[1, 1], metric(counts[1, 1]))


def test_bootstrap_equals_one_that_gathers_the_turns():
    rng = np.random.default_rng(0)
    y, who = rng.integers(0, 3, 120), rng.integers(0, 6, 120)
    p = np.where(rng.random(120) < 0.5, y, 0)
    found = metrics.cluster_bootstrap(metrics.unweighted_recall, y, p, who, 400, 7)
    draws = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), 400)
    scores = []
    for draw in draws:
        rows = np.concatenate([np.repeat(np.flatnonzero(who == k), times) for k, times in enumerate(draw)])
        scores.append(sk.balanced_accuracy_score(y[rows], p[rows]))
    np.testing.assert_allclose(found, np.quantile(scores, [0.025, 0.975]))


def test_bootstrap_averages_seeds_within_a_resample():
    rng = np.random.default_rng(1)
    y, who = rng.integers(0, 2, 100), rng.integers(0, 5, 100)
    right = np.stack([y, y, 1 - y])  # accuracies 1, 1, 0 in every resample
    assert metrics.cluster_bootstrap(metrics.accuracy, y, right, who, 200, 0) == pytest.approx((2 / 3, 2 / 3))


def test_bootstrap_is_wider_by_speaker_than_by_turn_when_speakers_differ():
    who = np.repeat(np.arange(10), 50)
    y = np.ones(500, int)
    p = (np.random.default_rng(0).random(500) < np.repeat(np.linspace(0.4, 0.9, 10), 50)).astype(int)
    by_speaker = np.diff(metrics.cluster_bootstrap(metrics.accuracy, y, p, who, 2000, 0))
    by_turn = np.diff(metrics.cluster_bootstrap(metrics.accuracy, y, p, np.arange(500), 2000, 0))
    assert by_speaker > 1.8 * by_turn
    low, high = metrics.cluster_bootstrap(metrics.accuracy, y, p, np.zeros(500), 100, 0)
    assert np.isnan(low) and np.isnan(high)


def test_gain_is_the_difference_in_accuracy():
    a, b = np.array([1, 1, 1, 0]), np.array([1, 0, 0, 1])
    assert comparison.gain(metrics.confusion(a, b)) == pytest.approx(a.mean() - b.mean())


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (9, 2), (30, 30), (400, 330)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    a = np.array([True] * only_a + [False] * only_b + [True] * 5)
    b = np.array([False] * only_a + [True] * only_b + [True] * 5)
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    assert comparison.mcnemar(a, b) == pytest.approx(min(1, 2 * tail))


def test_sign_flips_by_hand():
    # Gains of three speakers: +2, +1, -1. Of the 8 sign patterns 6 have a sum of at least 2 in absolute value
    # (4, 2, 2, 0 and their mirror images), and the observed difference is 2 of 6 turns.
    who = np.array([0, 0, 1, 1, 2, 2])
    a, b = np.array([1, 1, 1, 0, 0, 1]), np.array([0, 0, 0, 0, 1, 1])
    assert comparison.paired_permutation(a, b, who, 10, 0) == (pytest.approx(2 / 6), 6 / 8)


def test_ten_speakers_cannot_go_below_2_in_1024():
    who = np.repeat(np.arange(10), 7)
    assert comparison.paired_permutation(np.ones(70), np.zeros(70), who, 10, 0)[1] == 2 / 1024


def test_drawn_sign_flips_agree_with_scipy():
    rng = np.random.default_rng(2)
    a, b = rng.random(400) < 0.60, rng.random(400) < 0.55
    who = rng.integers(0, 20, 400)
    sums = np.array([(a[who == k].astype(float) - b[who == k]).sum() for k in range(20)])
    test = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=20000, rng=0)
    assert comparison.paired_permutation(a, b, who, 20000, 0)[1] == pytest.approx(test.pvalue, abs=0.02)
    assert comparison.paired_permutation(a, b, who, 20000, 0)[0] == pytest.approx(a.mean() - b.mean())


def test_where_there_are_sessions_they_are_swapped_too():
    """Ten speakers in five sessions, one system always better: p by session is 2 / 2**5."""
    speakers, y = np.repeat(np.arange(10), 8), np.ones(80, int)
    right = np.ones((1, 80), int)
    wrong = np.where(np.arange(80) % 8 < 1 + speakers // 2, 0, 1)[
        None
    ]  # sessions differ, speakers within do not
    pairs = {"a": (right, wrong)}
    cells, note = comparison.paired_test_cells("gain", pairs, y, speakers, 2000, speakers // 2)
    found = {cell.column: cell for cell in cells}
    assert found["by speaker p"].mean == 2 / 1024 and found["by session p"].mean == 0.0625
    assert "5 sessions give no p below 0.0625" in note and len(found) == 7
    by_speaker, by_session = found["gain"], found["gain, sessions resampled"]
    assert by_session.mean == by_speaker.mean == 37.5
    assert by_session.high - by_session.low > 1.2 * (by_speaker.high - by_speaker.low)
    cells, note = comparison.paired_test_cells("gain", pairs, y, speakers, 200)
    assert len(cells) == 5 and "session" not in note


def test_holm_by_hand():
    # Sorted .01 .02 .04 times 3 2 1: .03 .04 .04
    np.testing.assert_allclose(comparison.holm([0.04, 0.01, 0.02]), [0.04, 0.03, 0.04])
    np.testing.assert_allclose(comparison.holm([0.6, 0.5]), [1, 1])


def test_chance_is_the_majority_and_one_in_c():
    assert metrics.chance([0, 0, 0, 1], 4) == (0.75, 0.25)


def test_ten_speakers_cover_a_little_less_than_the_nominal_95_percent():
    rng, hits = np.random.default_rng(0), 0
    who, y = np.repeat(np.arange(10), 50), np.ones(500, int)
    for trial in range(200):
        accuracy = np.clip(rng.normal(0.7, 0.06, 10), 0, 1)
        p = (rng.random(500) < accuracy[who]).astype(int)
        low, high = metrics.cluster_bootstrap(metrics.accuracy, y, p, who, 400, trial)
        hits += low <= 0.7 <= high
    assert 0.82 <= hits / 200 <= 0.95
