"""Tables of 07: rows and what they are tested on, published numbers, the choice by dev, paired gains, case studies."""

from types import SimpleNamespace

import numpy as np
import pytest

from common.corpora.mosei import EMOTIONS
from common.errors import UserError
from common.khare import figures as khare_figures
from common.khare import metrics as khare_metrics
from common.khare import tables as khare_tables
from common.khare.data import Part
from common.khare.model import MODALITIES
from common.khare.tables import Row, plan
from common.manifest import Turn

C = SimpleNamespace(
    ANCHOR="text",
    METHODS=("softmax", "nce"),
    PRETRAIN_CORPUS="voxceleb2",
    EXTRA=True,
    SEEDS=(0, 1, 2),
    N_RESAMPLES=200,
    CASES=(),
    DROP_RATE=0.3,
)


def constants(**changes):
    return SimpleNamespace(**{**vars(C), **changes})


def study_of(c=C, n=40, present=MODALITIES, seed=0):
    generator = np.random.default_rng(seed)
    turns = [Turn(f"v{i // 4}[{i % 4}]", f"v{i // 4}", i % 4, f"v{i // 4}", "", 0.0, 1.0) for i in range(n)]
    part = Part(turns, np.arange(n), generator.random((n, 6)) < 0.4)
    outcomes = {
        row: SimpleNamespace(
            dev=[0.5, 0.7, 0.6],
            logits={
                inputs: generator.normal(size=(3, n, 6))
                for inputs in khare_tables.conditions(row, c, present)
            },
        )
        for row in plan(c, present)
    }
    return SimpleNamespace(
        c=c,
        outcomes=outcomes,
        emotions=EMOTIONS,
        present=present,
        parts={"test": part},
        vectors=SimpleNamespace(note="no vectors"),
        pretrained={},
        recognised=None,
        main_rows=[row for row in outcomes if khare_tables.is_main(row, c, present)],
    )


def test_the_printed_averages_of_table_1_are_those_of_its_emotions():
    """All but the WA of Graph-MFN and the like would be slips of the paper or of ours; rounding allows 0.1."""
    for scores in khare_tables.PUBLISHED.values():
        for numbers in scores.values():
            assert len(numbers) == 7 and np.mean(numbers[:6]) == pytest.approx(numbers[6], abs=0.11)


def test_the_whole_of_table_2_is_the_baseline_of_table_1():
    assert khare_tables.ABLATION[MODALITIES] == tuple(
        khare_tables.PUBLISHED["baseline"][s][6] for s in ("WA", "F1")
    )


def test_rows():
    rows = plan(C, MODALITIES)
    assert [row.first for row in rows[:3]] == ["scratch", "softmax", "nce"] and len(rows) == len(
        set(rows)
    ) == 9
    assert [row.slug() for row in rows[3:]] == [
        "scratch_text_anchor-text",
        "scratch_text+audio_anchor-text",
        "scratch_text+video_anchor-text",
        "scratch_text+audio+video_anchor-text_survives",
        "scratch_text+audio+video_anchor-audio",
        "scratch_text+audio+video_anchor-video",
    ]
    assert plan(constants(EXTRA=False), MODALITIES) == rows[:3]
    assert plan(constants(PRETRAIN_CORPUS=""), ("text",)) == [Row("scratch", ("text",), "text")]
    audio = constants(ANCHOR="audio", PRETRAIN_CORPUS="")
    assert [
        row.inputs for row in plan(audio, ("text", "audio")) if row.anchor == "audio" and not row.survives
    ] == [("text", "audio"), ("audio",)]
    assert len({row.slug() for row in rows}) == 9


def test_conditions():
    baseline, softmax, *_ = rows = plan(C, MODALITIES)
    assert khare_tables.conditions(baseline, C, MODALITIES) == [
        ("text",),
        ("text", "audio"),
        ("text", "video"),
        MODALITIES,
    ]
    assert khare_tables.conditions(softmax, C, MODALITIES) == [MODALITIES]
    survives = next(row for row in rows if row.survives)
    assert len(khare_tables.conditions(survives, C, MODALITIES)) == 7
    assert khare_tables.conditions(rows[4], C, MODALITIES) == [("text", "audio")]
    anchored = khare_tables.conditions(rows[-1], C, MODALITIES)
    assert len(anchored) == 4 and all("video" in inputs for inputs in anchored)
    assert all(khare_tables.conditions(row, C, MODALITIES)[-1] == row.inputs for row in rows)


def test_dev_chooses_the_best_and_all_make_the_mean():
    study = study_of()
    row = study.main_rows[0]
    logits, true = study.outcomes[row].logits[MODALITIES], study.parts["test"].targets
    cells = khare_tables.average_cells(study, "x", row, MODALITIES, (66.6, 78.5))
    each = [
        100 * khare_metrics.scores(khare_metrics.confusion(true, logits[k] > 0))["WA"][-1] for k in range(3)
    ]
    assert cells[0].values == [pytest.approx(each[1])] and cells[0].sd is None and cells[0].paper == 66.6
    assert cells[2].values == [pytest.approx(x) for x in each] and cells[2].paper is None
    assert cells[0].low < cells[0].values[0] < cells[0].high


def test_gains_are_paired():
    """A system that is another one but for clips that it gets right has a gain whose interval is above zero."""
    study = study_of(n=400)
    true = study.parts["test"].targets
    theirs = study.outcomes[study.main_rows[0]].logits[MODALITIES][:1] > 0
    better = theirs.copy()
    better[:, ::4] = true[::4]
    columns = khare_tables.emotion_columns(study)
    cells = {cell.column: cell for cell in khare_tables.gain_cells(study, "x", better, theirs, columns, {})}
    assert all(cell.low > 0 and cell.low < cell.values[0] < cell.high for cell in cells.values())
    alone = khare_tables.cells_of(study, "x", better, columns)[-2]
    assert cells["average WA"].high - cells["average WA"].low < alone.high - alone.low
    none = khare_tables.gain_cells(study, "x", theirs, theirs, columns, {})
    assert all(cell.values == [0.0] and cell.low == cell.high == 0 for cell in none)


def test_the_papers_gain_is_that_of_its_table():
    study = study_of()
    cells = khare_tables.gain_cells(
        study,
        "x",
        *[np.zeros((1, 40, 6), bool)] * 2,
        khare_tables.emotion_columns(study),
        khare_tables.published(study, "pretrained, full softmax"),
    )
    paper = {cell.column: cell.paper for cell in cells}
    assert (paper["fear WA"], paper["surprise WA"], paper["average WA"], paper["anger WA"]) == (
        3.0,
        2.2,
        0.8,
        -1.2,
    )


def test_other_emotions_have_no_published_numbers():
    study = study_of()
    study.emotions = ("joy", "fear")
    assert khare_tables.published(study, "baseline") == {}
    cells = khare_tables.average_cells(study, "x", study.main_rows[0], MODALITIES, (1, 2))
    assert all(cell.paper is None for cell in cells)


def test_one_video_gives_no_interval():
    study = study_of(n=4)
    cell = khare_tables.average_cells(study, "x", study.main_rows[0], MODALITIES)[0]
    assert cell.low is None and cell.values


def test_predictions_hold_all_runs_of_table_1_and_the_chosen_one_of_others():
    study = study_of(n=4)
    rows = list(khare_tables.prediction_rows(study))
    systems = {}
    for row in rows:
        systems.setdefault(row["system"], set()).add(row["seed"])
    whole = {
        f"{first}_text+audio+video_anchor-text: text+audio+video" for first in ("scratch", "softmax", "nce")
    }
    assert {name for name, seeds in systems.items() if seeds == {0, 1, 2}} == whole
    assert all(seeds == {1} for name, seeds in systems.items() if name not in whole) and len(systems) == 24
    found = study.outcomes[study.main_rows[0]].logits[("text",)][1, 2] > 0
    row = next(
        row for row in rows if row["system"].endswith("anchor-text: text") and row["utterance_id"] == "v0[2]"
    )
    assert row["y_pred"] == "+".join(name for name, x in zip(EMOTIONS, found) if x)


# ---- Case studies --------------------------------------------------------------------------


@pytest.mark.parametrize("lost", MODALITIES)
def test_cases_are_clips_where_a_modality_decides(lost):
    """Emotion 2 of clip 7 is found with all inputs and not without one; a larger fall elsewhere changes no decision."""
    study = study_of()
    study.parts["test"].targets[:] = False
    study.parts["test"].targets[7, 2] = study.parts["test"].targets[9, 4] = True
    rest = tuple(name for name in MODALITIES if name != lost)
    row = next(
        row
        for row in study.outcomes
        if row.survives == (lost == "text")
        and row.first == "scratch"
        and row.anchor == "text"
        and row.inputs == MODALITIES
    )
    logits = study.outcomes[row].logits
    logits[MODALITIES][1, 7, 2], logits[rest][1, 7, 2] = 0.5, -0.5
    logits[MODALITIES][1, 9, 4], logits[rest][1, 9, 4] = 5.0, 0.5
    assert khare_figures.case_of(study, lost) == khare_figures.Case(7, f"anger needs {lost}")


def test_named_cases():
    study = study_of(constants(CASES=("v1[2]", "v0[0]")))
    assert [case.i for case in khare_figures.chosen_cases(study)] == [6, 0]
    study.c.CASES = ("v1[2]", "HeZS2-Prhc[8]")
    with pytest.raises(UserError, match=r"CASES=HeZS2-Prhc\[8\]: no such clip"):
        khare_figures.chosen_cases(study)


def test_without_missing_inputs_the_first_clip_is_shown():
    study = study_of(constants(PRETRAIN_CORPUS="", EXTRA=False), present=("text",))
    assert [case.i for case in khare_figures.chosen_cases(study)] == [0]
