"""What runs leave behind: tables, metrics.json, log.jsonl, figures."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from common import metrics, panels, plots, results
from common.babaali.tables import scatter
from common.files import UserError, append_json
from common.manifest import Manifest, Turn
from common.results import Cell
from common.settings import read_constants

TURNS = [Turn("u1", "d", 0, "s", "", 0, 1, label="sad")]
MANIFEST = Manifest("toy", Path("toy"), ("sad",), TURNS, complete=True)
SOURCE = """# ---- Roots ----
DATA_ROOT = "data"        # here
RUN = ""                  # name

# ---- Corpus and protocol ----
CORPUS = "toy"            # which
SEEDS = (0, 1, 2)         # runs

# ---- Training ----
EPOCHS = 20               # long

# ---- Beyond the paper ----
BEYOND_PAPER = True       # more

# ---- Machine ----
WORKERS = 4               # threads

DEMO = {"SEEDS": (0,), "EPOCHS": 3}
"""
SETTINGS = {"RESULTS_ROOT": "results", "SEEDS": (0, 1), "WORKERS": 0, "EPOCHS": 20}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start_run of a script 04_x.py in a folder, with other settings or another manifest."""
    (tmp_path / "04_x.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["/elsewhere/04_x.py", f"--DATA_ROOT={tmp_path}/data"])

    def start(manifest=MANIFEST, paper="", **settings):
        settings = SETTINGS | {"DATA_ROOT": str(tmp_path / "data")} | settings
        return results.start_run(tmp_path / "04_x.py", settings, manifest, "5-fold", paper=paper)

    return start


@pytest.fixture
def run(start):
    return start()


def test_the_header_counts_the_speakers_of_a_corpus_without_labels(start, capsys):
    start()
    assert "toy: 1 turns, 1 labelled (sad 1), 1 speakers\n" in capsys.readouterr().out
    turns = [Turn(f"u{i}", "d", i, speaker, "", 0, 1) for i, speaker in enumerate("aab")]
    start(Manifest("toy", Path("toy"), (), turns))
    assert "toy: 3 turns, no labels, 2 speakers\n" in capsys.readouterr().out


CELLS = [
    Cell("sum", "SVM", [70.0, 72.0], [(0, "fold1"), (1, "fold1")], 75.42, 65.0, 77.0, 5531),
    Cell("sum", "NN", [71.0]),
    Cell("product", "SVM"),
    Cell("sum", "p", [0.00001], unit="", digits=3),
    Cell("the paper's own", "SVM", paper=80),
]


def test_the_table_holds_paper_ours_interval_and_provenance(run):
    run.table("babaali_table_5", "Table 5", CELLS, "A note.")
    text = (run.folder / "babaali_table_5.md").read_text()
    assert "| | SVM (%) | NN (%) | p |" in text
    assert "| sum | 71.00 ± 1.41 [65.00, 77.00] (paper 75.42) | 71.00 | < 0.001 |" in text
    assert "| product | – | | |" in text and "| the paper's own | – (paper 80) | | |" in text
    words = ["toy", "5-fold", "n = 5,531", "A note.", "`python 04_x.py --DATA_ROOT=data`", "seeds 0, 1"]
    assert [word for word in words if word not in text] == []
    rows = list(csv.DictReader(open(run.folder / "babaali_table_5.csv", encoding="utf-8")))
    assert rows[0]["paper"] == "75.42" and rows[0]["n_runs"] == "2" and float(rows[0]["sd"]) == 1.414214
    assert rows[1]["paper"] == rows[1]["sd"] == "" and rows[2]["mean"] == ""


@pytest.mark.parametrize(
    "settings, complete, reason",
    [
        ({"SEEDS": (0,), "WORKERS": 9, "BEYOND_PAPER": False, "CORPUS": "other"}, True, ""),
        ({"EPOCHS": 3}, True, "run with other values of EPOCHS"),
        ({}, False, "toy is not the complete genuine release"),
    ],
)
def test_the_papers_number_is_shown_only_where_it_can_be_compared(start, settings, complete, reason):
    run = start(Manifest("toy", Path("toy"), ("sad",), TURNS, complete), **settings)
    run.table("babaali_table_5", "Table 5", CELLS)
    text = (run.folder / "babaali_table_5.md").read_text()
    assert ("75.42" in text) == ("the paper's own" in text) == (reason == "")
    assert reason == "" or f"The paper's numbers are left out: {reason}." in text
    assert ("75.42" in (run.folder / "babaali_table_5.csv").read_text()) == (reason == "")
    assert (run.cells["babaali_table_5/sum/SVM"].paper is None) == (reason != "")


def pages(n_rows, n_columns):
    """(columns of every grid, their first line) of a table of so many rows and columns."""
    cells = [Cell(f"r{i}", f"c{j}", [10.0 * i + j]) for i in range(n_rows) for j in range(n_columns)]
    grids = [grid.split("\n") for grid in results.grids(cells)]
    return [grid[0].count("|") - 1 for grid in grids], [grid[2] for grid in grids]


def test_no_table_on_a_page_is_wider_than_eight_columns():
    assert pages(9, 7) == ([8], ["| r0 | 0.00 | 1.00 | 2.00 | 3.00 | 4.00 | 5.00 | 6.00 |"])
    assert pages(2, 9) == ([3], ["| c0 (%) | 0.00 | 10.00 |"])  # transposed
    widths, lines = pages(8, 16)  # three below each other
    assert widths == [7, 7, 5] and lines[2] == "| r0 | 12.00 | 13.00 | 14.00 | 15.00 |"


def test_metrics_json_and_log_tell_how_it_was_made(run, tmp_path):
    run.table("babaali_table_5", "Table 5", CELLS)
    run.finish()
    found = json.loads((run.folder / "metrics.json").read_text())
    cell = found["metrics"]["babaali_table_5/sum/SVM"]
    assert (
        [run["value"] for run in cell["per_run"]] == [70.0, 72.0]
        and cell["mean"] == 71.0
        and cell["paper"] == 75.42
    )
    assert found["settings"]["SEEDS"] == [0, 1] and found["settings"]["DATA_ROOT"] == "data"
    assert {"commit", "dirty", "versions", "device", "seconds"} <= set(found)
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [record["event"] for record in log] == ["started", "finished"]
    for name in ("metrics.json", "log.jsonl"):
        assert str(tmp_path) not in (run.folder / name).read_text()


def test_two_papers_of_a_script_do_not_write_over_each_other(start):
    """Each has its own predictions and metrics; the log is one, its records name the paper."""
    first = dict(zip(results.PREDICTION_COLUMNS, ("u1", "s", "fold1", 0, "a", "sad", "sad")))
    run = start()
    run.table("babaali_table_5", "Table 5", CELLS)
    run.predictions([first])
    run.finish()
    shared = ("log.jsonl", "index.html")
    kept = {path: path.read_bytes() for path in run.folder.iterdir() if path.name not in shared}
    second = start(paper="li")
    second.table("li_table_1", "Table 1", [Cell("A + T", "WA", [81.0], paper=80.36)])
    second.predictions([first | {"system": "b"}])
    second.finish()
    assert second.folder == run.folder and all(path.read_bytes() == old for path, old in kept.items())
    names = {"babaali_table_5.csv", "babaali_table_5.md", "li_table_1.csv", "li_table_1.md", "log.jsonl"}
    names |= {"predictions.csv", "metrics.json", "li_predictions.csv", "li_metrics.json", "index.html"}
    assert {path.name for path in run.folder.iterdir()} == names
    found = json.loads((run.folder / "li_metrics.json").read_text())
    assert list(found["metrics"]) == ["li_table_1/A + T/WA"]
    assert ",b,sad,sad" in (run.folder / "li_predictions.csv").read_text()
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [(record.get("paper"), record["event"]) for record in log] == [
        (None, "started"),
        (None, "finished"),
        ("li", "started"),
        ("li", "finished"),
    ]


def test_the_log_survives_a_line_cut_off_by_a_kill(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st')
    append_json(tmp_path / "log.jsonl", {"step": 2})
    assert (tmp_path / "log.jsonl").read_text().splitlines()[-1] == '{"step": 2}'


def test_score_cells_give_fold_values_and_the_pooled_interval():
    y = np.array([0, 0, 1, 1, 0, 1])
    predicted = np.array([[0, 0, 1, 0, -1, -1], [0, 0, 1, 1, -1, -1]])  # the last two are not scored
    speakers = np.array(list("aabbcc"))
    runs = {
        (seed, name): (slice(i, None, 2), np.array(rows))
        for i, seed in enumerate((0, 1))
        for name, rows in (("fold1", [0, 1]), ("fold2", [2, 3]))
    }
    given = y, predicted, speakers, runs, 500
    cell = results.score_cell("r", "c", metrics.accuracy, *given)
    assert cell.values == [100, 50, 100, 100] and cell.n == 4
    assert (cell.low, cell.high) == (75, 100)  # speaker b alone: (50 + 100) / 2; speaker a alone: 100
    only = results.score_cell("r", "c", lambda n: metrics.recall(n)[..., 1], *given, needs=1)
    assert only.runs == [(0, "fold2"), (1, "fold2")]
    row = results.score_cells("r", metrics.METRICS, *given, paper={"UAR": 70.0})
    assert [c.column for c in row] == list(metrics.METRICS) and row[0].values == cell.values
    assert [c.paper for c in row] == [None, 70.0, None, None]


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("0*.py")))
def test_a_demo_does_not_write_over_real_results(script):
    _, presets = read_constants((ROOT / script).read_text(encoding="utf-8"))
    assert presets["DEMO"].value["RESULTS_ROOT"] == "results/mine"


def test_a_run_with_other_constants_than_its_preset_has_a_folder_of_its_own(start, monkeypatch):
    """Blocks Roots and Machine and CORPUS do not count; RUN names the folder; names are short."""
    folder = Path("results/04_x")
    assert start(RUN="").folder == folder / "toy+SEEDS=0,1"
    assert start(RUN="", SEEDS=(0, 1, 2), WORKERS=3, CORPUS="elsewhere/toy").folder == folder / "toy"
    assert start(RUN="", SEEDS=(0, 1, 2), EPOCHS='a:b/c"').folder == folder / "toy+EPOCHS=a-b-c-"
    assert start(RUN="mine").folder == folder / "mine" and start().folder == folder / "toy"
    long = [start(RUN="", SEEDS=tuple(range(n))).folder.name for n in (60, 61)]
    assert len(set(long)) == 2 and all(len(name) < 80 and name.startswith("toy+SEEDS=0,1,2") for name in long)
    monkeypatch.setattr("sys.argv", ["04_x.py", "--demo", "--RESULTS_ROOT=results", "--EPOCHS=9"])
    assert start(RUN="", SEEDS=(0,), EPOCHS=3).folder == folder / "toy"  # all as DEMO sets it
    assert start(RUN="", SEEDS=(0,), EPOCHS=9).folder == folder / "toy+EPOCHS=9"


def test_paths_of_this_machine_are_not_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    assert results.public({"A": f"{tmp_path}/data", "B": ["/home/somebody/x", 3, "text/plain"]}) == {
        "A": "data",
        "B": ["~/x", 3, "text/plain"],
    }


def test_paper_figures_are_read_from_a_csv(tmp_path):
    (tmp_path / "paper.csv").write_text('table,row,column,value\n5,"sum, all",SVM,75.42\n')
    assert results.paper_figures(tmp_path / "paper.csv") == {("5", "sum, all", "SVM"): 75.42}


def test_unwritable_results_are_one_line(start, tmp_path):
    (tmp_path / "results").write_text("a file stands here")
    with pytest.raises(UserError, match="another folder"):
        start()


def test_figures_are_written_twice_and_reproducibly(tmp_path):
    counts = np.array([[5, 1], [0, 7]])
    for folder in ("a", "b"):
        fig = panels.confusion_maps({"": counts}, ("sad", "angry"))
        plots.save(fig, tmp_path / folder, "fig", "Figure 12. n = 13.")
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["fig.pdf", "fig.png"]
    assert (tmp_path / "a" / "fig.pdf").read_bytes() == (tmp_path / "b" / "fig.pdf").read_bytes()
    assert (tmp_path / "a" / "fig.png").read_bytes() == (tmp_path / "b" / "fig.png").read_bytes()


def test_classes_have_different_colours_and_markers():
    names = ("neutral", "calm", "happy", "sad", "angry", "fear", "disgust", "surprise")
    style = plots.class_style(names)
    assert len({colour for colour, _ in style.values()}) == len({marker for _, marker in style.values()}) == 8


def test_curves_bars_and_scatter_draw_what_they_are_given():
    curve = plots.learning_curves(
        {"fold1": {"train": ([1, 2], [0.9, 0.5]), "valid": ([1, 2], [1.0, 0.8])}},
        "epoch",
        "loss",
        chance=1.39,
    )
    assert len(curve.axes[0].lines) == 3
    bars = plots.grouped_bars(("Ses01", "Ses02"), {"sad": [3, 4], "happy": [5, 6]}, "turns")
    assert [bar.get_height() for bar in bars.axes[0].patches] == [3, 4, 5, 6]
    cloud = scatter(np.zeros((3, 2)), ["sad", "sad", "happy"], ("sad", "happy"), "x", "y")
    assert [len(points.get_offsets()) for points in cloud.axes[0].collections] == [2, 1]


def test_curves_of_panels_can_be_told_apart():
    """Ten that vary, two of them a pair, and two levels: each has its own style, the same in both panels."""
    names = [*(f"system {i}" for i in range(8)), "pair, here", "pair, there"]
    varying = {name: ([10, 20], [i, i + 1], [i - 1, i], [i + 1, i + 2]) for i, name in enumerate(names)}
    levels = {name: ([10, 20], [5, 5], [5, 5], [5, 5]) for name in ("all", "none")}
    fig = panels.curve_panels({"a": levels | varying, "b": dict(reversed(varying.items()))}, "x", "y", 50)
    styles = [
        {
            bars.get_label(): (bars[0].get_color(), bars[0].get_marker(), bars[0].get_linestyle())
            for bars in axes.containers
        }
        for axes in fig.axes
    ]
    assert list(styles[0]) == ["all", "none", *names] and len(set(styles[0].values())) == 12
    assert all(styles[1][name] == styles[0][name] for name in names)
    here, there = styles[0]["pair, here"], styles[0]["pair, there"]
    assert here[:2] == there[:2] and here[2] != there[2] and styles[0]["all"][:2] == ("black", "")
    assert [bars.has_yerr for bars in fig.axes[0].containers] == [False] * 2 + [True] * 10
    assert (
        ":" not in {style[2] for style in styles[0].values()} and fig.axes[0].lines[0].get_linestyle() == ":"
    )
    first = [bars[0].get_xdata()[0] for bars in fig.axes[0].containers]
    assert first[:2] == [10, 10] and np.allclose(np.diff(first[2:]), 10 * panels.DODGE)
    plots.plt.close(fig)


def test_maps_share_one_scale():
    a = np.array([[1.0, 2.0], [3.0, np.nan]]), {(0, 0): "1.0", (0, 1): "2.0", (1, 0): "3.0"}, [0, 5], [0, 5]
    maps = {"a": a, "b": (np.array([[9.0]]), {}, [0], [0])}
    fig = panels.heat_maps(maps, ("r", "c", "v"), (1, 9), (5.6, 4.2), 2)
    a, b, bar = fig.axes
    assert a.images[0].get_clim() == b.images[0].get_clim() == (1, 9) and bar.get_ylabel() == "v"
    assert [text.get_text() for text in a.texts] == ["1.0", "2.0", "3.0"] and b.get_title() == "b"
    assert a.images[0].get_array().tolist()[0] == [1, 2] and a.get_ylabel() == "r" and a.get_xlabel() == "c"
    plots.plt.close(fig)


def test_a_word_is_shown_in_place_of_its_number():
    assert results.shown(results.Cell("r", "c", [0], unit="", word="ties")) == "ties"
    assert (
        results.shown(results.Cell("r", "c", [3.0], unit="", paper=10, word="wins in 3"))
        == "wins in 3 (paper 10)"
    )


def test_a_grid_of_confusion_matrices():
    """A panel per matrix in rows of n_columns: title, counts, row shares as text, one colour bar for all."""
    counts = {f"{n} system": np.array([[n, 1], [3, n]]) for n in range(1, 7)}
    fig = panels.confusion_maps(counts, ("sad", "angry"), 3)
    *maps, bar = fig.axes
    assert [axes.get_title() for axes in maps] == list(counts)
    assert {axes.get_subplotspec().rowspan.start for axes in maps} == {0, 1}
    assert maps[5].get_subplotspec().colspan.start == 2
    for n, axes in enumerate(maps, 1):
        shares = [[100 * n / (n + 1), 100 / (n + 1)], [300 / (3 + n), 100 * n / (3 + n)]]
        assert np.allclose(axes.images[0].get_array(), shares) and axes.images[0].get_clim() == (0, 100)
        assert axes.texts[1].get_text() == f"1\n{shares[0][1]:.0f} %" and axes.texts[1].get_position() == (
            1,
            0,
        )
        assert axes.get_ylabel() == "true class"
    assert bar.get_ylabel() == "share of the true class (%)"
    plots.plt.close(fig)


def browser():
    """A headless browser's name, or None."""
    return next(
        (name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None
    )


@pytest.fixture
def page(start, monkeypatch):
    """The index.html of a run with one table and one figure."""
    run = start(RUN="toy")
    run.table("x_table_1", "Accuracy", [Cell("svm", "accuracy", [75.4])], note="A <note>.")
    curves = plots.learning_curves({"fold1": {"train": ([1, 2], [2.0, 1.0])}}, "step", "loss")
    plots.save(curves, run.folder, "x_fig_2_loss", "Figure 2")
    monkeypatch.setitem(results.ARTEFACTS, "04_x", ["x_table_1", "x_table_3", "x_fig_2"])
    run.finish()
    return run.folder / "index.html"


def test_a_page_shows_tables_figures_and_what_is_missing(page):
    text = page.read_text()
    assert "75.40" in text and "x_fig_2_loss.png" in text and "A &lt;note&gt;." in text
    assert "lacks: x_table_3." in text and "http" not in text
    assert "04_x/toy/index.html" in (page.parent.parent.parent / "index.html").read_text()


@pytest.mark.skipif(not browser(), reason="no Chromium on this machine")
def test_a_page_opens_from_the_disk_in_a_browser(page):
    command = [
        browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        page.absolute().as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert "<td>75.40</td>" in shown and "lacks: x_table_3" in shown
