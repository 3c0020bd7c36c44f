"""Two result folders side by side."""

import subprocess
import sys

import pytest
from conftest import ROOT

from common.compare import main
from common.files import UserError, write_csv, write_json
from common.results import PREDICTION_COLUMNS


def write_run(folder, script="02_finetune_unimodal", right=8, **settings):
    """Results of a run on twenty turns of four speakers that gets the first `right` of each five right."""
    cell = {"mean": 10.0 * right, "unit": "%"}
    content = {"script": script, "command": f"python {script}.py", "settings": settings}
    write_json(folder / "metrics.json", {**content, "metrics": {"table_4/bert/Accuracy": cell}})
    rows = []
    for i in range(20):
        y_true = "sad" if i % 2 else "happy"
        y_pred = y_true if i % 5 < right else "neutral"
        rows.append(dict(zip(PREDICTION_COLUMNS, (f"u{i}", f"s{i % 4}", "fold1", 0, "bert", y_true, y_pred))))
    write_csv(folder / "predictions.csv", rows, PREDICTION_COLUMNS)
    return folder


def compare(*folders):
    command = [sys.executable, "-m", "common.compare", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_two_runs_are_shown_with_settings_cells_and_a_paired_test(tmp_path):
    a = write_run(tmp_path / "a", right=3, SEEDS=[0], SCHEDULE="linear")
    b = write_run(tmp_path / "b", right=4, SEEDS=[0], SCHEDULE="cosine")
    shown = compare(a, b)
    assert shown.returncode == 0, shown.stderr
    assert "SCHEDULE: linear | cosine" in shown.stdout and "SEEDS" not in shown.stdout
    assert "table_4 / bert / Accuracy: 30 | 40 (+10) %" in shown.stdout
    # one more of five is right for each of four speakers: +20 points, and 2 of 2 ** 4 swaps are as large
    assert "bert: +20.00 [20.00, 20.00] points, p = 0.1250 by speaker (n = 20, 4 speakers)" in shown.stdout


def test_two_folders_of_all_results_give_a_line_for_each_run(tmp_path, capsys):
    for root, right in (("mine", 4), ("theirs", 3)):
        write_run(tmp_path / root / "02_finetune_unimodal" / "toy", right=right)
        write_run(tmp_path / root / "02_finetune_unimodal" / "same")
    main([tmp_path / "theirs", tmp_path / "mine"])
    shown = capsys.readouterr().out.splitlines()
    same, toy = (
        f"02_finetune_unimodal/{name}: {n} of 1 cells moved" for name, n in (("same", 0), ("toy", 1))
    )
    assert shown == [same, f"{toy}, most table_4/bert/Accuracy: 30 | 40"]


def test_a_refusal_is_one_line_and_no_success(tmp_path):
    shown = compare(tmp_path)
    assert shown.returncode != 0 and shown.stderr.startswith("error: ") and shown.stderr.count("\n") == 1


@pytest.mark.parametrize("case", ["one folder", "no results", "two scripts"])
def test_what_cannot_be_compared_is_one_line(tmp_path, case):
    a = write_run(tmp_path / "a")
    b = {"no results": tmp_path / "none"}.get(case) or write_run(tmp_path / "b", script="04_fuse_classify")
    with pytest.raises(UserError) as error:
        main([a] if case == "one folder" else [a, b])
    assert "\n" not in str(error.value)
