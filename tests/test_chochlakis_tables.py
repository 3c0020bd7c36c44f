"""Tables of Chochlakis et al. on made-up predictions, counted by hand: cases, baselines, means, what is
drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.chochlakis import tables
from common.chochlakis.tables import System

MIXTURES = ["4", "7", "4+7"]
METHOD = System("linear", "curri-MAE", "largest")
BACKOFF, AUDIO, VIDEO = (System("linear", imputer) for imputer in ("backoff", "audio", "video"))


def right(*counts):
    """Predictions (masks, 10) with so many right by mask: those of the first recordings."""
    return np.stack([(np.arange(10) < count).astype(int) for count in counts])


class Sized(SimpleNamespace):
    def __len__(self):
        return 10


def outcome(predicted, seeds=(0,), errors=None, classifiers=()):
    """predicted {(System, setting): predictions (masks, 10), or a list of them by seed}, of ten recordings.

    All are of class 1, by three speakers; two have no video.
    """
    missing = torch.zeros(10, 2, 4, dtype=torch.bool)
    missing[:2, 1] = True
    test = Sized(labels=torch.ones(10, dtype=torch.int64), missing=missing, n_clips=4)
    test.speakers = np.array(list("aaaabbbccc"))
    test.turns = [SimpleNamespace(utterance_id=i, speaker="", label="") for i in range(10)]
    predicted = {
        key: np.stack(found if isinstance(found, list) else [found] * len(seeds) * max(1, len(classifiers)))
        for key, found in predicted.items()
    }
    settings = {
        "SEEDS": seeds,
        "CLASSIFIER_SEEDS": classifiers,
        "N_RESAMPLES": 200,
        "RANDOM_BACKBONES": True,
        "PRETRAIN_CORPUS": "",
    }
    return tables.Outcome("avid-cma", settings, test, predicted, errors or {}, {})


class FakeRun:
    """Keeps what it is given."""

    corpus = "demo_cremad"

    def __init__(self, folder):
        self.folder, self.tables, self.notes = folder, {}, {}

    def table(self, stem, title, cells, note=""):
        self.tables[stem], self.notes[stem] = cells, note

    def predictions(self, rows):
        self.rows = list(rows)


# ---- Systems -------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond, n", [(False, 20), (True, 31)])
def test_every_system_is_trained_once_and_after_those_it_starts_from(beyond, n):
    plan = tables.plan(("linear", "gru"), MIXTURES, beyond)
    assert len(plan) == len(set(plan)) == n
    assert {s.imputer for s in plan[:6]} == set(tables.WHOLE) and {s.imputer for s in plan[6:]}.isdisjoint(
        tables.WHOLE
    )
    for name in ("linear", "gru"):
        assert {*tables.curves_of(name), tables.baseline(name)} <= set(plan)
        assert set(tables.simple(name)) <= set(plan) or not beyond
    assert set(tables.figure_4(MIXTURES)) <= set(plan)
    assert not any(system.imputer == "MAE" for system in tables.plan(("linear",), MIXTURES, True))


def test_names_tell_all_systems_apart():
    """Names are keys: of folders, of curves in a panel, of systems in predictions.csv."""
    plan = tables.plan(("linear", "gru"), MIXTURES, True)
    assert len(set(plan)) == len(plan)
    assert len({(system.classifier, tables.label(system, 10)) for system in plan}) == len(plan)
    assert tables.label(System("gru", "MAE", "4+7"), 10) == "MAE-ft (40 %+70 %)"
    assert (
        tables.label(System("gru", "MAE", "4"), 5) == "MAE-ft (80 %)"
    )  # what was hidden, not what was asked for
    names = (
        ("none",),
        ("zeros",),
        ("zeros", "all"),
        ("curri-MAE",),
        ("curri-MAE", "largest"),
        ("curri-MAE", "all"),
    )
    labels = [tables.label(System("gru", *name), 5) for name in names]
    assert labels == [
        "Pristine",
        "Regular",
        "Regular-ft-all",
        "curri-MAE",
        "curri-MAE-ft",
        "curri-MAE-ft-all",
    ]


# ---- Scores --------------------------------------------------------------------------------


def test_the_sd_of_a_score_is_over_masks():
    """Accuracies 50, 70 with one seed and 60, 100 with the other: 55 and 85 by mask, sd 21.2."""
    found = outcome({(METHOD, 2): [right(5, 7), right(6, 10)]}, seeds=(0, 5))
    cell = found.score(METHOD, 2)
    assert cell.values == pytest.approx([55, 85]) and cell.n == 10
    assert cell.runs == [("", "mask 1"), ("", "mask 2")]
    assert (cell.mean, cell.sd) == pytest.approx((70, np.sqrt(450)))
    assert (cell.row, cell.column) == ("linear: curri-MAE-ft", "50 % lost")
    assert found.score(METHOD, 2) is cell, "scored twice"


def test_the_sd_of_what_loses_nothing_and_of_a_gain_is_over_seeds():
    found = outcome({(AUDIO, 0): [right(6), right(8)]}, seeds=(0, 5)).score(AUDIO, 0)
    assert found.values == pytest.approx([60, 80]) and found.runs == [(0, ""), (5, "")]
    predicted = {(METHOD, k): [right(10, 10), right(4, 4)] for k in (1, 2, 3)}
    predicted |= {(BACKOFF, k): right(5, 5) for k in (1, 2, 3)}
    gain = case(predicted, seeds=(0, 5))["gain, all levels"]
    assert gain.values == pytest.approx([50, -10]) and gain.runs == [(0, ""), (5, "")]


def test_the_classifiers_of_one_autoencoder_are_runs_of_their_own(tmp_path):
    """Of two autoencoders with two classifiers each; an error of imputation belongs to an autoencoder."""
    predicted = {(METHOD, k): [right(10, 10), right(4, 4), right(6, 6), right(8, 8)] for k in (1, 2, 3)}
    predicted |= {(BACKOFF, k): right(5, 5) for k in (1, 2, 3)} | {(AUDIO, 0): right(6)}
    errors = {("curri-MAE", k, "audio"): np.array([50.0, 60.0]) for k in (1, 2, 3)}
    found = outcome(predicted, seeds=(0, 5), classifiers=(1, 2), errors=errors)
    runs = [(0, "classifier 1"), (0, "classifier 2"), (5, "classifier 1"), (5, "classifier 2")]
    gain = {cell.column: cell for cell in tables.case(found, "demo_cremad", "linear")}["gain, all levels"]
    assert gain.values == pytest.approx([50, -10, 10, 30]) and gain.runs == runs
    assert found.score(METHOD, 2).values == pytest.approx([70, 70])  # by mask
    assert found.score(AUDIO, 0).runs == runs
    fake = FakeRun(tmp_path)
    tables.write_errors(fake, found)
    (cells,) = fake.tables.values()
    assert cells[0].values == [50, 60] and cells[0].runs == [(0, ""), (5, "")]
    tables.write_predictions(fake, [found], "split", ("no", "yes"))
    seeds = {line["seed"] for line in fake.rows}
    assert seeds == {"0 classifier 1", "0 classifier 2", "5 classifier 1", "5 classifier 2"}
    assert "means over seeds 0, 5 and classifiers 1, 2; 10 test" in found.note()


def test_an_interval_is_that_of_all_classes():
    """Right and wrong have the accuracy and the resampled accuracies of the classes themselves."""
    predicted = right(3, 5)
    found = outcome({(METHOD, 1): predicted})
    cell, speakers = found.score(METHOD, 1), found.test.speakers
    bounds = tables.metrics.cluster_bootstrap(
        tables.metrics.accuracy, np.ones(10, int), predicted, speakers, 200, 0, n_classes=2
    )
    assert (cell.low, cell.high) == pytest.approx([100 * bound for bound in bounds]) and cell.low < cell.high


def test_a_system_that_nothing_is_hidden_from_is_the_same_at_all_levels():
    found = outcome({(AUDIO, 0): right(6)})
    x, y, low, high = found.series(AUDIO)
    assert x == [25, 50, 75] and y.tolist() == low.tolist() == high.tolist() == [60, 60, 60]
    assert found.score(AUDIO, 0).column == "none lost"


def test_bars_are_one_standard_deviation():
    x, y, low, high = outcome({(METHOD, k): right(5, 5 + k) for k in (1, 2, 3)}).series(METHOD)
    assert x == [25, 50, 75] and y == pytest.approx([55, 60, 65])
    assert high - y == pytest.approx(np.sqrt([50, 200, 450])) and y - low == pytest.approx(high - y)


def test_the_note_says_what_is_missing():
    note = outcome({}).note()
    assert "10 test recordings, 2 of them without video; majority class 100.0 %" in note
    assert "without audio" not in note and note.startswith(
        "avid-cma, random weights; autoencoder first trained on nothing else; 4 clips"
    )


# ---- The cases -----------------------------------------------------------------------------

# The method is right in 90 ± 0, 80 ± 14.1, 30 ± 0 %, backoff in 70 ± 28.3, 60 and 40 %.
MEAN = System("linear", "mean", "largest")
PREDICTED = {
    (METHOD, 1): right(9, 9),
    (METHOD, 2): right(7, 9),
    (METHOD, 3): right(3, 3),
    (BACKOFF, 1): right(5, 9),
    (BACKOFF, 2): right(6, 6),
    (BACKOFF, 3): right(4, 4),
}


def case(predicted, **more):
    return {cell.column: cell for cell in tables.case(outcome(predicted, **more), "demo_cremad", "linear")}


def test_a_case_by_hand():
    """Level 1: 90 ± 0 against backoff's 70 ± 28.3, a tie. 2: 80 ± 14.1 against 60, a win. 3: a loss.

    The gain is (20 + 20 - 10) / 3. Over the six masks the method is right in -2 recordings more of speaker a,
    4 of b and 4 of c: one speaker drawn three times gives -2 of 6 * 4 and 4 of 6 * 3 decisions.
    """
    found = case(PREDICTED)
    assert [found[f"levels that {word}"].values for word in ("win", "tie", "lose")] == [[1], [1], [1]]
    gain = found["gain, all levels"]
    assert gain.row == "demo_cremad, avid-cma, linear" and gain.values == pytest.approx([10]) and gain.n == 10
    assert -100 / 12 <= gain.low < gain.mean < gain.high <= 400 / 18
    assert found["by ranges"].word == found["by speaker"].word == "ties"


def test_the_best_of_what_loses_the_same_clips_is_the_rival():
    """A single modality, which loses nothing, is none; an imputation by the mean is, where it is tried."""
    whole = {(system, 0): right(10, 10) for system in (AUDIO, VIDEO)}
    better = {(METHOD, k): right(8, 8) for k in (1, 2, 3)} | {(BACKOFF, k): right(0, 0) for k in (1, 2, 3)}
    found = case(whole | better)
    assert (found["by ranges"].word, found["by speaker"].word) == ("wins", "wins")
    assert found["gain, all levels"].values == [80]
    found = case(whole | better | {(MEAN, k): right(10, 10) for k in (1, 2, 3)})
    assert (found["by ranges"].word, found["by speaker"].word) == ("loses", "ties")  # speaker a is equal
    assert found["gain, all levels"].values == pytest.approx([-20])


def test_every_verdict_can_come_out():
    """With the three speakers of a small corpus, too: issue 15, section 7."""
    always, never = ({(METHOD, k): right(n, n) for k in (1, 2, 3)} for n in (10, 0))
    rivals = [{(BACKOFF, k): right(n, n) for k in (1, 2, 3)} for n in (0, 0, 10)]
    found = [case(ours | theirs) for ours, theirs in zip((always, never, never), rivals)]
    assert [cells["by speaker"].word for cells in found] == ["wins", "ties", "loses"]
    assert [cells["by ranges"].word for cells in found] == ["wins", "ties", "loses"]


def test_the_papers_rule():
    def score(mean, sd):
        return SimpleNamespace(mean=mean, sd=sd)

    theirs = (0.5, 0.51, 0.52, 0.6, 0.68, 0.7)
    found = [tables.compare(score(0.6, 0.05), score(mean, 0.04)) for mean in theirs]
    assert found == [1, 0, 0, 0, 0, -1]
    assert tables.compare(score(0.5, None), score(0.5, None)) == 0
    assert tables.compare(score(0.75, 0.125), score(0.5, 0.125)) == 0  # they touch


# ---- Beyond the paper ----------------------------------------------------------------------


def test_errors_of_a_modality_that_nobody_has_are_left_out(tmp_path):
    errors = {("zeros", 1, "audio"): np.array([150.0]), ("curri-MAE", 1, "audio"): np.array([80.0])}
    fake = FakeRun(tmp_path)
    tables.write_errors(fake, outcome({}, errors=errors))
    found = {(c.row, c.column): c.values for c in fake.tables["chochlakis_table_imputation_avid-cma"]}
    assert found == {("zeros", "audio, 25 % lost"): [150.0], ("curri-MAE", "audio, 25 % lost"): [80.0]}


def test_the_last_epoch_beside_the_best_by_hand(tmp_path):
    """Right in 6, 8, 7 and in 4, 6, 5 of ten recordings, by level; no video has an error."""
    last = System("linear", tables.LAST, "largest")
    predicted = {(METHOD, 1): right(6, 6), (METHOD, 2): right(8, 8), (METHOD, 3): right(7, 7)}
    predicted |= {(last, 1): right(4, 4), (last, 2): right(6, 6), (last, 3): right(5, 5)}
    errors = {("curri-MAE", k, "audio"): np.array([x]) for k, x in ((1, 50.0), (2, 70.0), (3, 60.0))}
    errors |= {(tables.LAST, k, "audio"): np.array([x]) for k, x in ((1, 60.0), (2, 90.0), (3, 75.0))}
    fake = FakeRun(tmp_path)
    tables.write_epochs(fake, outcome(predicted, errors=errors), ("linear",))
    found = {(c.row, c.column): c.mean for c in fake.tables["chochlakis_table_epochs_avid-cma"]}
    best, other = "linear: curri-MAE-ft", "linear: curri-MAE-last-ft"
    assert found == pytest.approx(
        {
            (best, "accuracy"): 70,
            (best, "error of audio"): 60,
            (other, "accuracy"): 50,
            (other, "error of audio"): 75,
        }
    )


def test_predictions_are_those_of_the_first_mask_of_the_middle_level(tmp_path):
    predicted = {(METHOD, k): [right(k, 9), right(k + 5, 9)] for k in (1, 2, 3)}
    predicted |= {(AUDIO, 0): right(6)}
    fake, found = FakeRun(tmp_path), {}
    tables.write_predictions(fake, [outcome(predicted, seeds=(0, 1))], "split", ("no", "yes"))
    for line in fake.rows:
        found.setdefault(line["system"], []).append(line["y_pred"] == "yes")
    assert set(found) == {"avid-cma linear: curri-MAE-ft, 50 % lost", "avid-cma linear: Audio only"}
    assert np.array_equal(found["avid-cma linear: curri-MAE-ft, 50 % lost"], right(2, 7).ravel())
    assert np.array_equal(found["avid-cma linear: Audio only"], right(6, 6).ravel())
