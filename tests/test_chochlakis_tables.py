"""Tables of Chochlakis et al. on made-up predictions, counted by hand: cases, baselines, means, what is
drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.chochlakis import tables
from common.chochlakis.tables import System

MIXTURES = [(4,), (7,), (4, 7)]
METHOD = System("linear", "curri-MAE", "all")
BACKOFF, AUDIO, VIDEO = (System("linear", imputer) for imputer in ("backoff", "audio", "video"))


def right(*counts):
    """Predictions (masks, 10) with so many right by mask: those of the first recordings."""
    return np.stack([(np.arange(10) < count).astype(int) for count in counts])


class Sized(SimpleNamespace):
    def __len__(self):
        return 10


def outcome(predicted, seeds=(0,), errors=None):
    """predicted {(System, setting): predictions (masks, 10), or a list of them by seed}, of ten recordings.

    All are of class 1, by three speakers; two have no video.
    """
    missing = torch.zeros(10, 2, 4, dtype=torch.bool)
    missing[:2, 1] = True
    test = Sized(labels=torch.ones(10, dtype=torch.int64), missing=missing, n_clips=4)
    test.speakers = np.array(list("aaaabbbccc"))
    test.turns = [SimpleNamespace(utterance_id=i, speaker="", label="") for i in range(10)]
    predicted = {
        key: np.stack(found if isinstance(found, list) else [found] * len(seeds))
        for key, found in predicted.items()
    }
    return tables.Outcome("avid-cma", test, 2, seeds, 200, predicted, errors or {}, (), "random weights")


class FakeRun:
    """Keeps what it is given."""

    corpus = "demo_cremad"

    def __init__(self, folder):
        self.folder, self.tables, self.notes, self.figures = folder, {}, {}, []

    def table(self, stem, title, cells, note=""):
        self.tables[stem], self.notes[stem] = cells, note

    def figure(self, paths):
        self.figures += paths

    def predictions(self, rows):
        self.rows = list(rows)


# ---- Systems -------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond, n", [(False, 20), (True, 27)])
def test_every_system_is_trained_once_and_after_those_it_starts_from(beyond, n):
    plan = tables.plan(("linear", "gru"), MIXTURES, beyond)
    assert len(plan) == len(set(plan)) == n
    assert {s.imputer for s in plan[:6]} == set(tables.WHOLE) and {s.imputer for s in plan[6:]}.isdisjoint(
        tables.WHOLE
    )
    inputs = [(system.imputer, system.tuned) for system in plan]
    changes = sum(a != b for a, b in zip(inputs, inputs[1:]))
    assert changes == len(set(inputs)) - 1, "what one input serves does not follow each other"
    for name in ("linear", "gru"):
        assert {*tables.curves_of(name), tables.baseline(name)} <= set(plan)
        assert set(tables.simple(name)) <= set(plan) or not beyond
    assert set(tables.figure_4(MIXTURES)) <= set(plan)
    assert not any(system.imputer == "MAE" for system in tables.plan(("linear",), MIXTURES, True))


def test_names_tell_all_systems_apart():
    """Names are keys: of folders, of curves in a panel, of systems in predictions.csv."""
    plan = tables.plan(("linear", "gru"), MIXTURES, True)
    assert len({system.slug() for system in plan}) == len(plan)
    assert len({(system.classifier, system.label(10)) for system in plan}) == len(plan)
    assert System("gru", "MAE", (4, 7)).slug() == "gru_MAE_4+7"
    assert System("gru", "MAE", (4, 7)).label(10) == "MAE-ft (40 %+70 %)"
    assert System("gru", "MAE", (4,)).label(5) == "MAE-ft (80 %)"  # what was hidden, not what was asked for
    names = (
        ("none",),
        ("zeros",),
        ("zeros", "all"),
        ("curri-MAE",),
        ("curri-MAE", "largest"),
        ("curri-MAE", "all"),
    )
    labels = [System("gru", *name).label(5) for name in names]
    assert labels == [
        "Pristine",
        "Regular",
        "Regular-ft-all",
        "curri-MAE",
        "curri-MAE-ft",
        "curri-MAE-ft-all",
    ]


def test_what_is_tested_under_which_masks():
    plan = tables.plan(("gru",), MIXTURES, True)
    assert [s for s in plan if not tables.is_tested(s, ("level", 2))] == plan[:3]
    assert tables.is_tested(METHOD, ("burst", 2)) and tables.is_tested(METHOD, ("unequal", 0, 3))
    assert not tables.is_tested(System("gru", "curri-MAE", "largest"), ("burst", 2))
    assert not tables.is_tested(System("gru", "zeros", "all"), ("unequal", 0, 3))


# ---- Scores --------------------------------------------------------------------------------


def test_a_score_is_the_mean_over_masks_and_seeds():
    """Accuracies 50, 70 with one seed and 60, 100 with the other: mean 70, sample variance 1400 / 3."""
    found = outcome({(METHOD, ("level", 2)): [right(5, 7), right(6, 10)]}, seeds=(0, 5))
    cell = found.score(METHOD, ("level", 2))
    assert cell.values == pytest.approx([50, 70, 60, 100]) and cell.n == 10
    assert cell.runs == [(0, "mask 1"), (0, "mask 2"), (5, "mask 1"), (5, "mask 2")]
    assert (cell.mean, cell.sd) == pytest.approx((70, np.sqrt(1400 / 3)))
    assert (cell.row, cell.column) == ("linear: curri-MAE-ft-all", "50 % lost")
    assert found.score(METHOD, ("level", 2)) is cell, "scored twice"


def test_an_interval_is_that_of_all_classes():
    """Right and wrong have the accuracy and the resampled accuracies of the classes themselves."""
    predicted = right(3, 5)
    found = outcome({(METHOD, ("level", 1)): predicted})
    cell, speakers = found.score(METHOD, ("level", 1)), found.test.speakers
    bounds = tables.metrics.cluster_bootstrap(
        tables.metrics.accuracy, found.truth, predicted, speakers, 200, 0, n_classes=2
    )
    assert (cell.low, cell.high) == pytest.approx([100 * bound for bound in bounds]) and cell.low < cell.high


def test_a_system_that_nothing_is_hidden_from_is_the_same_at_all_levels():
    found = outcome({(AUDIO, ("level", 0)): right(6)})
    x, y, low, high = found.series(AUDIO)
    assert x == [25, 50, 75] and y.tolist() == low.tolist() == high.tolist() == [60, 60, 60]
    assert (
        list(found.scored) == [(AUDIO, ("level", 0))]
        and found.score(AUDIO, ("level", 3)).column == "none lost"
    )


def test_bars_are_one_standard_deviation():
    x, y, low, high = outcome({(METHOD, ("level", k)): right(5, 5 + k) for k in (1, 2, 3)}).series(METHOD)
    assert x == [25, 50, 75] and y == pytest.approx([55, 60, 65])
    assert high - y == pytest.approx(np.sqrt([50, 200, 450])) and y - low == pytest.approx(high - y)


def test_the_note_says_what_is_missing():
    note = outcome({}).note()
    assert "10 test recordings, 2 of them without video; majority class 100.0 %" in note
    assert "without audio" not in note and "avid-cma, random weights; 4 clips" in note


# ---- The cases -----------------------------------------------------------------------------

# The method is right in 90 ± 0, 80 ± 14.1, 30 ± 0 %, backoff in 70 ± 28.3, 60 and 0 %, the others in 60 and
# 50 %.
PREDICTED = {
    (METHOD, ("level", 1)): right(9, 9),
    (METHOD, ("level", 2)): right(7, 9),
    (METHOD, ("level", 3)): right(3, 3),
    (BACKOFF, ("level", 1)): right(5, 9),
    (BACKOFF, ("level", 2)): right(6, 6),
    (BACKOFF, ("level", 3)): right(0, 0),
    (AUDIO, ("level", 0)): right(6),
    (VIDEO, ("level", 0)): right(5),
}


def case(predicted, **more):
    return {cell.column: cell for cell in tables.case(outcome(predicted, **more), "demo_cremad", "linear")}


def test_a_case_by_hand():
    """Level 1: 90 ± 0 against backoff's 70 ± 28.3, a tie. 2: 80 ± 14.1 against 60, a win. 3: 30 against 60,
    a loss.

    The gain is (20 + 20 - 30) / 3. Over the six masks the method is right in -2 recordings more of speaker a,
    0 of b and 4 of c; no swap of speakers brings that closer to 0 than 2.
    """
    found = case(PREDICTED)
    assert [found[f"levels that {word}"].values for word in ("win", "tie", "lose")] == [[1], [1], [1]]
    gain = found["gain, all levels"]
    assert (
        gain.row == "demo_cremad, avid-cma, linear"
        and gain.values == pytest.approx([10 / 3])
        and gain.n == 10
    )
    # One speaker drawn three times: -2 of 6 * 4 and 4 of 6 * 3 decisions.
    assert -100 / 12 <= gain.low < gain.mean < gain.high <= 400 / 18
    assert found["by speaker p"].values == [1] and found["by ranges"].word == "ties"
    # Against backoff alone the third level, 30 % against 0, is won too.
    assert found["by ranges, lossy baseline"].word == "wins"


def test_a_method_that_always_wins_and_one_that_is_never_right():
    """All signs agree in 2 of the 2^3 swaps of three speakers."""
    always = {(METHOD, ("level", k)): right(10, 10) for k in (1, 2, 3)}
    never = {(s, ("level", k)): right(0, 0) for s in (BACKOFF, AUDIO, VIDEO) for k in (0, 1, 2, 3)}
    assert [cell.values for cell in case(always | never).values()] == [[3], [0], [0], [1], [1], [100], [0.25]]
    both = {(METHOD, ("level", k)): right(0, 0) for k in (1, 2, 3)} | never
    assert [cell.values for cell in case(both).values()] == [[0], [3], [0], [0], [0], [0], [1]]


def test_seeds_of_a_unimodal_baseline_meet_those_of_the_method():
    """Two seeds with two masks each against one prediction per seed: 4 rows against 2."""
    predicted = {(METHOD, ("level", k)): [right(10, 10), right(4, 4)] for k in (1, 2, 3)}
    predicted |= {(BACKOFF, ("level", k)): right(0, 0) for k in (1, 2, 3)}
    predicted |= {(AUDIO, ("level", 0)): [right(8), right(6)], (VIDEO, ("level", 0)): right(5)}
    found = case(predicted, seeds=(0, 1))
    # 70 ± 34.6 against 70 ± 14.1. Of 4 rows, the method is right in 0 more of a's, -4 of b's and 4 of c's.
    assert [found[f"levels that {word}"].values for word in ("win", "tie", "lose")] == [[0], [3], [0]]
    assert found["gain, all levels"].values == [0] and found["by speaker p"].values == [1]


def test_the_papers_rule():
    def score(mean, sd):
        return SimpleNamespace(mean=mean, sd=sd)

    theirs = (0.5, 0.51, 0.52, 0.6, 0.68, 0.7)
    found = [tables.compare(score(0.6, 0.05), score(mean, 0.04)) for mean in theirs]
    assert found == [1, 0, 0, 0, 0, -1]
    assert tables.compare(score(0.5, None), score(0.5, None)) == 0
    assert tables.compare(score(0.75, 0.125), score(0.5, 0.125)) == 0  # they touch


# ---- Beyond the paper ----------------------------------------------------------------------


def test_the_maps_of_unequal_rates_have_audio_in_their_rows(tmp_path, monkeypatch):
    """One for each classifier."""
    drawn = {}
    monkeypatch.setattr(
        tables, "value_maps", lambda panels, *labels: drawn.update(panels=panels, labels=labels)
    )
    monkeypatch.setattr(tables.plots, "save", lambda *args: [])
    predicted = {(METHOD, ("unequal", a, v)): right(a, 2 * v) for a, v in np.ndindex(4, 4)}
    gru = {(System("gru", "curri-MAE", "all"), setting): right(9, 9) for _, setting in predicted}
    tables.draw_unequal(FakeRun(tmp_path), outcome(predicted | gru), ("linear", "gru"))
    assert drawn["labels"][:2] == ("lost audio clips (%)", "lost video clips (%)")
    linear, gru = drawn["panels"].values()
    assert linear == {(25 * a, 25 * v): pytest.approx(5 * a + 10 * v) for a, v in np.ndindex(4, 4)}
    assert set(gru.values()) == {90} and len(gru) == 16


def test_errors_of_a_modality_that_nobody_has_are_left_out(tmp_path):
    errors = {("zeros", 1): np.array([[150.0, np.nan]]), ("curri-MAE", 1): np.array([[80.0, np.nan]])}
    fake = FakeRun(tmp_path)
    tables.write_errors(fake, outcome({}, errors=errors))
    found = {(c.row, c.column): c.values for c in fake.tables["chochlakis_table_imputation_avid-cma"]}
    assert found == {("zeros", "audio, 25 % lost"): [150.0], ("curri-MAE", "audio, 25 % lost"): [80.0]}


def test_costs_of_an_epoch(tmp_path):
    fake = FakeRun(tmp_path)
    tables.write_costs(fake, {"avid-cma": (28.0, 20e6, 2.0, 160e6, 0.003)})
    found = {cell.column: (*cell.values, cell.paper) for cell in fake.tables["chochlakis_table_cost"]}
    assert found["ratio"] == (14.0, 14.0) and found["to impute one clip"] == (3.0, None)
    assert found["backbone"] == (20.0, 25.0) and found["autoencoder"] == (160.0, 180.0)


def test_predictions_are_those_of_the_first_mask_of_the_middle_level(tmp_path):
    predicted = {(METHOD, ("level", k)): [right(k, 9), right(k + 5, 9)] for k in (1, 2, 3)}
    predicted |= {(AUDIO, ("level", 0)): right(6), (METHOD, ("burst", 2)): right(1, 1)}
    fake, found = FakeRun(tmp_path), {}
    tables.write_predictions(fake, [outcome(predicted, seeds=(0, 1))], "split", ("no", "yes"))
    for line in fake.rows:
        found.setdefault(line["system"], []).append(line["y_pred"] == "yes")
    assert set(found) == {"avid-cma linear: curri-MAE-ft-all, 50 % lost", "avid-cma linear: Audio only"}
    assert np.array_equal(found["avid-cma linear: curri-MAE-ft-all, 50 % lost"], right(2, 7).ravel())
    assert np.array_equal(found["avid-cma linear: Audio only"], right(6, 6).ravel())
