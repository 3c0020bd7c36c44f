"""Tables of 07: rows and what they are tested on, published numbers, choice by dev, paired gains, cases."""

from types import SimpleNamespace

import numpy as np
import pytest

from common.corpora.mosei import EMOTIONS
from common.khare import figures, tables
from common.khare.data import Part
from common.khare.features import ARRAYS
from common.khare.tables import Results, Row, averaged, conditions, named, plan

MODALITIES = tuple(ARRAYS)
WHOLE = named(MODALITIES)


def rows_of(inputs=MODALITIES, anchor="text", methods=("softmax", "nce"), beyond_paper=True):
    return plan(inputs, anchor, methods, beyond_paper)


def results_of(rows=None, n=40, inputs=MODALITIES, emotions=EMOTIONS):
    """Random logits of three initialisations, the second of which is the best on dev."""
    generator, outcomes = np.random.default_rng(0), {}
    videos = np.array([f"v{i // 4}" for i in range(n)])
    part = Part([f"v{i // 4}[{i % 4}]" for i in range(n)], videos, generator.random((n, 6)) < 0.4)
    for row in rows or rows_of(inputs):
        tests = [named(condition) for condition in conditions(row, inputs)]
        outcomes[row] = [
            {
                "history": {"best": dev},
                "tests": {name: {"outputs": {"logits": generator.normal(size=(n, 6))}} for name in tests},
            }
            for dev in (0.5, 0.7, 0.6)
        ]
    parts, vectors = {"train": part, "test": part}, SimpleNamespace(note="")
    corpus = SimpleNamespace(emotions=emotions, parts=parts, inputs=inputs, vectors=vectors)
    return Results(corpus, "text", (0, 1, 2), 200, outcomes)


def set_logit(results, row, condition, i, emotion, value):
    """Of the initialisation that dev chooses."""
    results.outcomes[row][1]["tests"][named(condition)]["outputs"]["logits"][i, emotion] = value


def test_the_printed_averages_of_table_1_are_those_of_its_emotions():
    """All but the WA of Graph-MFN and the like would be slips of the paper or ours; rounding allows 0.1."""
    rows = {row for table, row, _ in tables.PAPER if table == "1"}
    assert len(rows) == 5
    for row in rows:
        for kind in ("WA", "F1"):
            mean = np.mean([tables.PAPER["1", row, f"{name} {kind}"] for name in EMOTIONS])
            assert mean == pytest.approx(tables.PAPER["1", row, f"average {kind}"], abs=0.11)


def test_the_whole_of_table_2_is_the_baseline_of_table_1():
    for kind in ("WA", "F1"):
        whole = tables.PAPER["2", "text + audio + video", kind]
        assert whole == tables.PAPER["1", "baseline", f"average {kind}"]


def test_rows():
    rows = rows_of()
    assert [row.first for row in rows[:3]] == ["scratch", "softmax", "nce"]
    assert [row.slug() for row in rows[3:]] == [
        "scratch_text_anchor-text",
        "scratch_text+audio_anchor-text",
        "scratch_text+video_anchor-text",
        "scratch_text+audio+video_anchor-audio",
        "scratch_text+audio+video_anchor-video",
        "scratch_text+audio+video_anchor-text_robust",
    ]
    assert rows_of(beyond_paper=False) == rows[:3]
    assert rows_of(("text",), methods=()) == [Row("scratch", ("text",), "text")]
    audio = rows_of(("text", "audio"), "audio", ())
    own = [row.inputs for row in audio if row.anchor == "audio" and not row.robust]
    assert own == [("text", "audio"), ("audio",)] and len({row.slug() for row in rows}) == 9


def test_conditions():
    baseline, softmax, *_ = rows = rows_of()
    some = [("text",), ("text", "audio"), ("text", "video"), MODALITIES]
    assert conditions(baseline, MODALITIES) == some and conditions(softmax, MODALITIES) == [MODALITIES]
    robust = next(row for row in rows if row.robust)
    assert len(conditions(robust, MODALITIES)) == 7
    assert conditions(rows[4], MODALITIES) == [("text", "audio")]
    anchored = conditions(rows[7], MODALITIES)
    assert len(anchored) == 4 and all("video" in inputs for inputs in anchored)
    assert all(conditions(row, MODALITIES)[-1] == row.inputs for row in rows)


def test_dev_chooses_the_best_and_all_make_the_mean():
    results = results_of()
    row, true = results.main[0], results.test.targets
    cells = results.averages("x", row, WHOLE, {"WA": 66.6, "F1": 78.5})
    each = [100 * averaged("WA", true, run > 0) for run in results.logits(row, WHOLE)]
    assert cells[0].values == [pytest.approx(each[1])] and cells[0].sd is None and cells[0].paper == 66.6
    assert cells[2].values == [pytest.approx(x) for x in each] and cells[2].paper is None
    assert cells[0].low < cells[0].values[0] < cells[0].high


def test_gains_are_paired():
    """A system that is another one but for clips that it gets right has a gain above zero."""
    results = results_of(n=400)
    theirs = results.predicted(results.main[0], kind="best")
    better = theirs.copy()
    better[:, ::4] = results.test.targets[::4]
    columns = results.columns()
    cells = {cell.column: cell for cell in results.cells("x", better, columns, None, theirs)}
    assert all(cell.low > 0 and cell.low < cell.values[0] < cell.high for cell in cells.values())
    alone = results.cells("x", better, columns)[-2]
    assert cells["average WA"].high - cells["average WA"].low < alone.high - alone.low
    none = results.cells("x", theirs, columns, None, theirs)
    assert all(cell.values == [0.0] and cell.low == cell.high == 0 for cell in none)


class Collected:
    """In place of a run: the cells of its tables."""

    corpus = "x"

    def table(self, stem, title, cells, note=""):
        setattr(self, stem, {(cell.row, cell.column): cell for cell in cells})


def test_the_papers_gain_is_that_of_its_table():
    run = Collected()
    tables.gain_table(run, results_of())
    best = {
        c: cell.paper
        for (r, c), cell in run.khare_table_gain.items()
        if r == "pretrained, full softmax, best"
    }
    names = "fear WA", "surprise WA", "average WA", "anger WA"
    assert tuple(best[name] for name in names) == (3.0, 2.2, 0.8, -1.2)
    means = [cell.paper for (row, _), cell in run.khare_table_gain.items() if row.endswith("mean")]
    assert means and not any(means)


def test_papers_stand_beside_its_own_models_alone():
    run = Collected()
    tables.table_2(run, results_of())
    shown = {row for (row, _), cell in run.khare_table_2.items() if cell.paper is not None}
    assert shown == {f"baseline: text{more}" for more in ("", " + audio", " + video", " + audio + video")}
    tables.table_1(run, results_of(emotions=("joy", "fear", "a", "b", "c", "d")))
    assert not any(cell.paper for cell in run.khare_table_1.values())


def test_the_counts_of_the_paper_stand_beside_those_of_the_corpus():
    run = Collected()
    tables.corpus_table(run, results_of(n=8))
    papers = [cell.paper for (_, column), cell in run.khare_table_corpus.items() if column == "all"]
    assert papers == [23453, 12135, 5856, 4903, 2262, 4208, 1850]
    assert (
        run.khare_table_corpus["clips", "all"].values == [16]
        and not run.khare_table_corpus["sad", "test"].paper
    )


def test_classes_are_chosen_by_their_true_odds():
    """Balanced logits are alike for two classes, of which one has nine times as many clips."""
    results, run = results_of(rows_of(("text",), methods=()), n=40, inputs=("text",)), Collected()
    for part in results.corpus.parts.values():
        part.targets = np.eye(6, dtype=bool)[[0] * 36 + [1] * 4]
    for outcome in results.outcomes[results.main[0]]:
        outcome["tests"]["text"]["outputs"]["logits"] = np.zeros((40, 6)) - 9 * (np.arange(6) > 1)
    results.tfidf = np.eye(6)[None, [1] * 40] * 9.0
    results.outcomes[Row("nce", ("text",), "text")] = results.outcomes[results.main[0]]
    with np.errstate(divide="ignore"):
        tables.classes_table(run, results)
    assert run.khare_table_classes["scratch_text_anchor-text", "accuracy"].values == [90.0] * 3
    assert run.khare_table_classes[tables.TFIDF, "accuracy"].values == [10.0]
    assert run.khare_table_classes["pretrained, NCE - baseline", "gain in accuracy"].values == [0.0] * 3


def test_one_video_gives_no_interval():
    results = results_of(n=4)
    cell = results.averages("x", results.main[0], WHOLE)[0]
    assert np.isnan(cell.low) and cell.values


def test_predictions_hold_all_runs_of_table_1_and_the_chosen_one_of_others():
    results, systems = results_of(n=4), {}
    rows = list(tables.prediction_rows(results))
    for row in rows:
        systems.setdefault(row["system"], set()).add(row["seed"])
    whole = {f"{first}_{WHOLE}_anchor-text: {WHOLE}" for first in ("scratch", "softmax", "nce")}
    assert {name for name, seeds in systems.items() if seeds == {0, 1, 2}} == whole
    assert all(seeds == {1} for name, seeds in systems.items() if name not in whole) and len(systems) == 24
    found = results.logits(results.main[0], "text")[1, 2] > 0
    own = [row for row in rows if row["system"] == f"scratch_{WHOLE}_anchor-text: text"]
    row = next(row for row in own if row["utterance_id"] == "v0[2]")
    assert row["y_pred"] == "+".join(name for name, x in zip(EMOTIONS, found) if x)


# ---- Case studies --------------------------------------------------------------------------


@pytest.mark.parametrize("lost", MODALITIES)
def test_cases_are_clips_where_a_modality_decides(lost):
    """The emotion that loses most without a modality; without text the model whose anchor is audio tells."""
    results = results_of()
    results.test.targets[:] = False
    results.test.targets[7, 2] = results.test.targets[9, 4] = True
    for name in MODALITIES:  # clip 7 is found without all but one modality, clip 9 with that one alone
        rest = tuple(other for other in MODALITIES if other != name)
        row = Row("scratch", MODALITIES, "audio" if name == "text" else "text")
        for i, emotion, without in (
            (7, 2, -5.0 if name == lost else 5.0),
            (9, 4, 5.0 if name == lost else -5.0),
        ):
            set_logit(results, row, MODALITIES, i, emotion, 5.0)
            set_logit(results, row, rest, i, emotion, without)
    assert figures.chosen_cases(results)[7] == f" (anger needs {lost})"


def test_without_missing_inputs_the_first_clip_is_shown():
    results = results_of(rows_of(("text",), methods=(), beyond_paper=False), inputs=("text",))
    assert figures.chosen_cases(results) == {0: ""}
