"""Tables of Chochlakis et al. on made-up predictions, counted by hand: cases, baselines, means, what is drawn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.chochlakis import tables
from common.chochlakis.tables import System
from common.files import write_json
from common.results import Cell, shown

MIXTURES = ("0.4", "0.7", "0.4+0.7")
METHOD = System("linear", "curri-MAE", "all")
BACKOFF, AUDIO, VIDEO = (System("linear", imputer) for imputer in ("backoff", "audio", "video"))


class FakeTest:
    """Ten test recordings of class 1, by three speakers; eight have video."""

    labels, speakers = torch.ones(10, dtype=torch.int64), np.array(list("aaaabbbccc"))
    missing = torch.zeros(10, 2, 4, dtype=torch.bool)
    missing[:2, 1] = True

    def __len__(self):
        return 10


def right(*counts):
    """Predictions (masks, 10) with so many right by mask: those of the first recordings."""
    return np.stack([(np.arange(10) < count).astype(int) for count in counts])


def make_study(predicted, seeds=(0,), n_clips=4, **more):
    """predicted {(System, setting): predictions (masks, 10), or a list of them by seed}"""
    predicted = {
        key: found if isinstance(found, list) else [found] * len(seeds) for key, found in predicted.items()
    }
    c = SimpleNamespace(
        SEEDS=seeds,
        N_MASKS=2,
        N_RESAMPLES=200,
        HEADS=("linear",),
        PRETRAIN_CORPUS="",
        BEYOND=True,
        RANDOM_BACKBONES=False,
        MIXTURES=MIXTURES,
        FIXED_SHARE=0.7,
    )
    return SimpleNamespace(
        c=c,
        name="avid-cma",
        n_clips=n_clips,
        test=FakeTest(),
        predicted=predicted,
        errors={},
        curves={},
        manifest=SimpleNamespace(classes=("zero", "one"), corpus="demo_cremad"),
        **more,
    )


class FakeRun:
    """Keeps what it is given."""

    corpus = "demo_cremad"

    def __init__(self, folder):
        self.folder, self.tables, self.notes = folder, {}, {}

    def table(self, stem, title, cells, note=""):
        self.tables[stem], self.notes[stem] = cells, note

    def figure(self, paths):
        pass


def cells_of(cells):
    return {(cell.row, cell.column): cell for cell in cells}


# ---- Systems -------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond, n", [(False, 20), (True, 27)])
def test_every_system_is_trained_once_and_after_those_it_starts_from(beyond, n):
    plan = tables.plan(("linear", "gru"), MIXTURES, beyond)
    assert len(plan) == len(set(plan)) == n
    for i, system in enumerate(plan):
        needs = [
            *[System(system.head, "none")] * bool(system.imputer not in tables.WHOLE),
            *[System("linear", whole) for whole in tables.WHOLE] * (system.imputer == "backoff"),
        ]
        assert all(other in plan[:i] for other in needs), system


def test_the_plan_has_all_that_the_figures_draw():
    plan = set(tables.plan(("linear", "gru"), MIXTURES, True))
    for head in ("linear", "gru"):
        assert {*tables.curves_of(head), *tables.baselines(head), *tables.strong_baselines(head)} <= plan
    assert set(tables.figure_4(MIXTURES)) <= plan
    assert not any(system.imputer == "MAE" for system in tables.plan(("linear",), MIXTURES, True))


def test_names_tell_all_systems_apart():
    """Names are keys: of folders, of curves in a panel, of systems in predictions.csv."""
    for head in ("linear", "gru"):
        own = [system for system in tables.plan(("linear", "gru"), MIXTURES, True) if system.head == head]
        assert len({system.slug() for system in own}) == len({system.label() for system in own}) == len(own)
    assert System("gru", "MAE", (0.4, 0.7)).slug() == "MAE_0.4+0.7"
    labels = [
        System("gru", *rest).label()
        for rest in (
            ("none",),
            ("zeros",),
            ("zeros", "all"),
            ("curri-MAE",),
            ("curri-MAE", "largest"),
            ("curri-MAE", "all"),
        )
    ]
    assert labels == [
        "Pristine",
        "Regular",
        "Regular-ft-all",
        "curri-MAE",
        "curri-MAE-ft",
        "curri-MAE-ft-all",
    ]
    assert System("gru", "MAE", (0.4, 0.7)).label() == "MAE-ft (40 %+70 %)"


def test_what_is_tested_under_which_masks():
    assert all(tables.is_tested(system, ("level", 2)) for system in tables.plan(("gru",), MIXTURES, True))
    assert tables.is_tested(METHOD, ("burst", 2)) and tables.is_tested(METHOD, ("unequal", 0, 3))
    assert not tables.is_tested(System("gru", "curri-MAE", "largest"), ("burst", 2))
    assert not tables.is_tested(System("gru", "zeros", "all"), ("unequal", 0, 3))


# ---- Scores --------------------------------------------------------------------------------


def test_a_score_is_the_mean_over_masks_and_seeds():
    """Accuracies 50, 70 with one seed and 60, 100 with the other: mean 70, sample variance 1400 / 3."""
    study = make_study({(METHOD, ("level", 2)): [right(5, 7), right(6, 10)]}, seeds=(0, 5))
    cell = tables.score(study, METHOD, ("level", 2), "row", "column")
    assert cell.values == pytest.approx([50, 70, 60, 100]) and cell.n == 10
    assert cell.runs == [(0, "mask 1"), (0, "mask 2"), (5, "mask 1"), (5, "mask 2")]
    assert (cell.mean, cell.sd) == pytest.approx(tables.mean_and_sd(study, METHOD, ("level", 2)))
    assert (cell.mean, cell.sd) == pytest.approx((70, np.sqrt(1400 / 3)))


def test_an_interval_is_that_of_all_classes_and_found_once(monkeypatch):
    """Right and wrong have the accuracy and the resampled accuracies of the classes themselves."""
    study = make_study({(METHOD, ("level", k)): right(2 + k, 5) for k in (1, 2, 3)})
    cells = tables.curve(study, METHOD)
    for k, cell in zip((1, 2, 3), cells):
        bounds = tables.metrics.cluster_bootstrap(
            tables.metrics.accuracy,
            tables.truth(study),
            right(2 + k, 5),
            study.test.speakers,
            200,
            0,
            n_classes=2,
        )
        assert (cell.low, cell.high) == pytest.approx(
            tuple(100 * bound for bound in bounds)
        ) and cell.low < cell.high
    monkeypatch.setattr(tables, "score_cell", None)
    assert tables.curve(study, METHOD) is cells and tables.as_series(study, [METHOD])


def test_a_system_that_nothing_is_hidden_from_is_the_same_at_all_levels():
    study = make_study({(AUDIO, ("level", 0)): right(6)})
    assert tables.mean_and_sd(study, AUDIO, ("level", 3)) == (60, 0)
    (cell,) = tables.curve(study, AUDIO)
    assert cell.column == "none lost" and cell.mean == 60
    ((x, y, low, high),) = tables.as_series(study, [AUDIO]).values()
    assert x == [25, 50, 75] and y == low == high == [60, 60, 60]


def test_bars_are_one_standard_deviation():
    study = make_study({(METHOD, ("level", k)): right(5, 5 + k) for k in (1, 2, 3)})
    ((x, y, low, high),) = tables.as_series(study, [METHOD]).values()
    assert x == [25, 50, 75] and y == pytest.approx([55, 60, 65])
    assert np.subtract(high, y) == pytest.approx([np.sqrt(50), np.sqrt(200), np.sqrt(450)])
    assert np.subtract(y, low) == pytest.approx(np.subtract(high, y))


def test_the_note_says_what_is_missing():
    note = tables.note_of(make_study({}))
    assert "10 test recordings, 2 of them without video; majority class 100.0 %" in note
    assert "without audio" not in note and "not pretrained" in note


# ---- The cases -----------------------------------------------------------------------------

# The method is right in 90 ± 0, 80 ± 14.1 and 30 ± 0 %, backoff in 70 ± 28.3, 60 and 0 %, the others in 60 and 50 %.
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


def test_the_best_baseline_is_chosen_level_by_level():
    study = make_study({**PREDICTED, (VIDEO, ("level", 0)): right(6)})
    assert [tables.best_baseline(study, "linear", k) for k in (1, 2, 3)] == [BACKOFF, BACKOFF, AUDIO]
    gru = [System("gru", *rest) for rest in (("zeros", "all"), ("audio",), ("video",))]
    study = make_study(
        {
            **{(gru[0], ("level", k)): right(k, 9) for k in (1, 2, 3)},
            (gru[1], ("level", 0)): right(3),
            (gru[2], ("level", 0)): right(6),
        }
    )
    assert [tables.best_baseline(study, "gru", k) for k in (1, 2, 3)] == [gru[2], gru[2], gru[0]]


def test_a_case_by_hand():
    """Level 1: 90 ± 0 against backoff's 70 ± 28.3, a tie. 2: 80 ± 14.1 against 60, a win. 3: 30 against 60, a loss.

    The gain is (20 + 20 - 30) / 3. Over the six masks the method is right in -2 recordings more of speaker a, 0 of b
    and 4 of c; no swap of speakers brings that closer to 0 than 2.
    """
    found = cells_of(tables.case(make_study(PREDICTED), "linear"))
    counts = [
        found["demo_cremad, avid-cma, linear", f"levels that {word}"].values
        for word in ("win", "tie", "lose")
    ]
    assert counts == [[1], [1], [1]]
    gain = found["demo_cremad, avid-cma, linear", "gain in accuracy, all levels"]
    assert gain.values == pytest.approx([10 / 3]) and gain.n == 10
    # One speaker drawn three times: -2 of 6 * 4 and 4 of 6 * 3 decisions.
    assert -100 / 12 <= gain.low < gain.mean < gain.high <= 400 / 18
    assert found["demo_cremad, avid-cma, linear", "by speaker p"].values == [1]
    # Against backoff alone the third level, 30 % against 0, is won too.
    assert found["demo_cremad, avid-cma, linear", "by ranges, lossy baseline"].word == "wins"


def test_a_method_that_always_wins_and_one_that_is_never_right():
    """All signs agree in 2 of the 2^3 swaps of three speakers."""
    always = {(METHOD, ("level", k)): right(10, 10) for k in (1, 2, 3)}
    never = {
        (System("linear", imputer), ("level", k)): right(0, 0)
        for imputer in ("backoff", "audio", "video")
        for k in (0, 1, 2, 3)
    }
    cells = [cell.values for cell in tables.case(make_study(always | never), "linear")]
    assert cells == [[3], [0], [0], [100], [0.25], [1]]
    both = {(METHOD, ("level", k)): right(0, 0) for k in (1, 2, 3)} | never
    assert [cell.values for cell in tables.case(make_study(both), "linear")] == [[0], [3], [0], [0], [1], [0]]


def test_seeds_of_a_unimodal_baseline_meet_those_of_the_method():
    """Two seeds with two masks each against one prediction per seed: 4 rows against 2."""
    ours = {(METHOD, ("level", k)): [right(10, 10), right(4, 4)] for k in (1, 2, 3)}
    theirs = {(BACKOFF, ("level", k)): right(0, 0) for k in (1, 2, 3)}
    whole = {(AUDIO, ("level", 0)): [right(8), right(6)], (VIDEO, ("level", 0)): right(5)}
    win, tie, loss, gain, p, _ = tables.case(make_study(ours | theirs | whole, seeds=(0, 1)), "linear")
    # 70 ± 34.6 against 70 ± 14.1. Of 4 rows, the method is right in 0 more of a's, -4 of b's and 4 of c's.
    assert (win.values, tie.values, loss.values) == ([0], [3], [0])
    assert gain.values == [0] and p.values == [1]


def write_metrics(folder, cases, dirty=False):
    """metrics.json of another run; cases: {row: (levels won, tied, lost, gain, p)}."""
    metric = {"ci_low": None, "ci_high": None, "n": 5, "unit": ""}
    columns = [*tables.CASE_COLUMNS, "by speaker, Holm", "by test"]
    found = {
        f"chochlakis_table_cases/{row}/{column}": {**metric, "mean": mean}
        for row, means in cases.items()
        for column, mean in zip(columns, [*means, 1, means[-1], 1])
    }
    write_json(
        folder / "metrics.json",
        {
            "metrics": found | {"chochlakis_table_cost/x/ratio": {}},
            "dirty": dirty,
            "commit": "0123456789ab",
            "command": "python 06 --x",
            "device": "cpu: y",
            "settings": {"SEEDS": [0, 3]},
        },
    )


def cases_of(tmp_path, corpus="demo_cremad"):
    """The cases of AVID-CMA (one level won, one tied, one lost) and CrissCross (all won), by a run with both."""
    studies = {
        "avid-cma": make_study(PREDICTED),
        "crisscross": make_study(
            {(METHOD, ("level", k)): right(10, 10) for k in (1, 2, 3)}
            | {
                (system, ("level", k)): right(0, 0)
                for system in (BACKOFF, AUDIO, VIDEO)
                for k in (0, 1, 2, 3)
            }
        ),
    }
    studies["crisscross"].name = "crisscross"
    fake = FakeRun(tmp_path / corpus)
    fake.corpus = studies["avid-cma"].manifest.corpus = studies["crisscross"].manifest.corpus = corpus
    tables.cases_table(fake, studies)
    return cells_of(fake.tables["chochlakis_table_cases"]), fake.notes["chochlakis_table_cases"]


def test_the_table_of_cases_corrects_for_their_number(tmp_path):
    """p-values 1 and 0.25 become 1 and 0.5: with three speakers no test can be won."""
    found, note = cases_of(tmp_path)
    rows = ["demo_cremad, avid-cma, linear", "demo_cremad, crisscross, linear"]
    assert len(found) == 2 * 9 + 3
    assert [found[row, "by speaker, Holm"].values for row in rows] == [[1], [0.5]]
    assert [found[row, "by ranges"].word for row in rows] == ["ties", "wins"]
    assert [found[row, "by test"].word for row in rows] == ["ties", "ties"]
    assert [found["of 2 cases", f"by {rule}"].word for rule in ("ranges", "test")] == [
        "wins in 1",
        "wins in 0",
    ]
    assert found["of 2 cases", "by ranges"].paper is None
    assert "No results of other corpora" in note and "10 wins in 12 cases" in note and "at least 0.25" in note


def test_the_table_of_cases_has_those_of_other_corpora(tmp_path):
    """Its own alone: neither what their tables had from others, nor a real corpus beside a demo, nor an older self."""
    lombard = {
        "demo_lombard, avid-cma, gru": (4, 0, 0, 9.0, 1e-4),
        "demo_lombard, crisscross, gru": (0, 2, 2, -9.0, 2e-4),
    }
    not_its_own = {"demo_cremad, avid-cma, linear": (9, 9, 9, 9.0, 9.0)}
    write_metrics(tmp_path / "demo_lombard", lombard | not_its_own, dirty=True)
    write_metrics(tmp_path / "lombard", {"lombard, avid-cma, gru": (4, 0, 0, 9.0, 1e-4)})
    write_metrics(tmp_path / "demo_cremad", {"demo_cremad, kinetics, gru": (4, 0, 0, 9.0, 1e-4)})
    write_metrics(tmp_path / "demo_old", {"avid-cma, gru": (4, 0, 0, 9.0, 1e-4)})
    unfinished = {"metrics": {"chochlakis_table_cases/demo_part, avid-cma, gru/levels that win": {"mean": 4}}}
    write_json(tmp_path / "demo_part" / "metrics.json", unfinished)
    (tmp_path / "demo_torn").mkdir()
    (tmp_path / "demo_torn" / "metrics.json").write_text("{")
    found, note = cases_of(tmp_path)
    assert [row for row, column in found if column == "by ranges"] == [
        "demo_cremad, avid-cma, linear",
        "demo_cremad, crisscross, linear",
        *lombard,
        "of 4 cases",
    ]
    assert found["demo_lombard, avid-cma, gru", "gain in accuracy, all levels"].mean == 9
    assert [found[row, "by speaker, Holm"].mean for row in lombard] == pytest.approx([4e-4, 6e-4])
    assert [found[row, "by test"].word for row in lombard] == ["wins", "loses"]
    assert [found[row, "by ranges"].word for row in lombard] == ["wins", "loses"]
    assert found["demo_lombard, crisscross, gru", "by ranges, lossy baseline"].word == "wins"
    assert found["of 4 cases", "by ranges, lossy baseline"].word == "wins in 4"
    assert (
        found["of 4 cases", "by ranges"].word == "wins in 2"
        and found["of 4 cases", "by test"].word == "wins in 1"
    )
    assert note.endswith(
        "demo_lombard by `python 06 --x`, seeds 0, 3, commit 0123456789 with local changes, cpu: y."
    )


def test_the_papers_count_stands_beside_its_twelve_cases_alone(tmp_path):
    for corpus in ("ravdess", "lombard"):
        write_metrics(
            tmp_path / corpus,
            {
                f"{corpus}, {backbone}, {head}": (1, 0, 0, 1.0, 0.5)
                for backbone in tables.FIGURES
                for head in ("linear", "gru")
            },
        )
    write_metrics(tmp_path / "cremad", {})
    assert cases_of(tmp_path, "cremad")[0]["of 10 cases", "by ranges"].paper is None
    names = {
        f"{corpus}, {backbone}, {head}": None
        for corpus in ("cremad", "ravdess", "lombard")
        for backbone in tables.FIGURES
        for head in ("linear", "gru")
    }
    cells = {(row, column): Cell(row, column, [1.0], n=1) for row in names for column in tables.CASE_COLUMNS}
    *_, lossy, ranges, test = tables.verdicts(cells, list(names))
    assert (ranges.word, ranges.paper, test.paper) == ("wins in 0", 10, None)  # one level lost in each
    assert (lossy.word, lossy.paper) == ("wins in 12", 10)
    assert shown(ranges) == "wins in 0 (paper 10)"


# ---- Beyond the paper ----------------------------------------------------------------------


def test_the_maps_of_unequal_rates_have_audio_in_their_rows(tmp_path, monkeypatch):
    """One for each classifier."""
    drawn = {}
    monkeypatch.setattr(
        tables.plots,
        "value_maps",
        lambda panels, row, column, what: drawn.update(panels=panels, row=row, column=column),
    )
    monkeypatch.setattr(tables.plots, "save", lambda *args: [])
    predicted = {(METHOD, ("unequal", a, v)): right(a, 2 * v) for a in range(4) for v in range(4)}
    gru = {(System("gru", "curri-MAE", "all"), setting): right(9, 9) for _, setting in predicted}
    study = make_study(predicted | gru)
    study.c.HEADS = ("linear", "gru")
    tables.unequal_figure(FakeRun(tmp_path), study)
    assert (drawn["row"], drawn["column"]) == ("lost audio clips (%)", "lost video clips (%)")
    linear, gru = drawn["panels"].values()
    assert linear == {(25 * a, 25 * v): pytest.approx(5 * a + 10 * v) for a in range(4) for v in range(4)}
    assert set(gru.values()) == {90} and len(gru) == 16


def test_errors_of_a_modality_that_nobody_has_are_left_out(tmp_path):
    study = make_study({})
    study.errors = {("zeros", 1): [[150.0, float("nan")]], ("curri-MAE", 1): [[80.0, float("nan")]]}
    fake = FakeRun(tmp_path)
    tables.imputation_table(fake, study)
    found = cells_of(fake.tables["chochlakis_table_imputation_avid-cma"])
    assert {key: cell.values for key, cell in found.items()} == {
        ("zeros", "audio, 25 % lost"): [150.0],
        ("MAE, curriculum", "audio, 25 % lost"): [80.0],
    }


def test_costs_are_those_of_what_was_extracted(tmp_path):
    """A run that went on after a kill has extracted 20 of 40 recordings in 10 s; the training part has 30."""
    study = make_study(
        {},
        costs={
            "backbone": 28.0,
            "autoencoder": 2.0,
            "backbone_parameters": 20e6,
            "autoencoder_parameters": 160e6,
            "latency_ms": 3.0,
        },
        extracted={"seconds": 10.0, "new": 20, "recordings": 40},
        parts={"train": range(30)},
    )
    fake = FakeRun(tmp_path)
    tables.cost_table(fake, {"avid-cma": study})
    found = {cell.column: (*cell.values, cell.paper) for cell in fake.tables["chochlakis_table_cost"]}
    assert found["decoding and features, once"] == (15.0, None)
    assert found["ratio"] == (14.0, 14.0)
    assert found["backbone"] == (20.0, 25.0) and found["autoencoder"] == (160.0, 180.0)


def test_predictions_are_those_of_the_first_mask_of_the_middle_level():
    study = make_study(
        {(METHOD, ("level", k)): [right(k, 9), right(k + 5, 9)] for k in (1, 2, 3)}
        | {(AUDIO, ("level", 0)): right(6), (METHOD, ("burst", 2)): right(1, 1)},
        seeds=(0, 1),
    )
    found = tables.first_masks({"avid-cma": study})
    assert set(found) == {"avid-cma linear: curri-MAE-ft-all, 50 % lost", "avid-cma linear: Audio only"}
    assert np.array_equal(found["avid-cma linear: curri-MAE-ft-all, 50 % lost"], right(2, 7))
    assert np.array_equal(found["avid-cma linear: Audio only"], right(6, 6))
