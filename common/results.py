"""Everything a script leaves behind: tables, predictions, metrics.json, log.jsonl.

    run = start_run(__file__, SETTINGS, manifest, protocol)      # prints what runs and what will be written
    cells = [Cell("concatenation", "SVM", values=[...], paper=75.451, low=72.0, high=78.1, n=5531)]
    run.table("babaali_table_5", "Early fusion", cells, note="...")
    run.finish()                                                  # metrics.json with all cells of all tables

Values are given in the unit shown (percent as 75.4, not 0.754). A paper's number is shown only where the run
can be held against it: a complete genuine release and the paper's constants. Nothing written names this
machine's folders: paths are made relative to the working directory, the home folder becomes "~".
"""

import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import jinja2
import numpy as np

from common.files import append_json, hash_of, read_csv, read_json, write_csv, write_json, write_text
from common.metrics import cluster_bootstrap, confusion
from common.settings import changed, show

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "torch", "transformers", "accelerate", "scikit-learn", "xgboost")
PREDICTION_COLUMNS = ("utterance_id", "speaker", "fold", "seed", "system", "y_true", "y_pred")
TABLE_COLUMNS = "row column unit paper mean sd ci_low ci_high n n_runs corpus protocol command".split()
MAX_COLUMNS = 8  # of a table on a page, with that of the rows' names
# Constants, and blocks of them, that say what is run and where: a run that changes them is still the paper's.
FREE = ("CORPUS", "RUN", "SEEDS", "N_RESAMPLES", "PAPERS", "STAGES", "TABLES", "PREPARE_ONLY")
FREE_BLOCKS = "Roots|Beyond the paper|Machine"
# The tables and figures of the papers, by the script that makes them; what a run lacks is said on its page.
ARTEFACTS = {
    "01_prepare_data": ["babaali_fig_1"],
    "02_finetune_unimodal": [f"babaali_table_{i}" for i in range(1, 5)]
    + [f"babaali_fig_{i}" for i in range(2, 8)],
    "04_fuse_classify": [f"babaali_table_{i}" for i in range(5, 8)]
    + [f"babaali_fig_{i}" for i in range(8, 13)]
    + ["li_table_1", "li_table_2", "li_fig_4"],
    "05_pretrain_vqmae": [f"sadok_table_{i}" for i in range(1, 6)] + ["sadok_fig_2", "sadok_fig_3"],
    "06_mae_imputation": [f"chochlakis_fig_{i}" for i in range(2, 5)],
    "07_crossmodal_mosei": ["khare_table_1", "khare_table_2"],
}


@dataclass
class Cell:
    """One number of a table, with all that stands beside it."""

    row: str
    column: str
    values: list = field(default_factory=list)  # one per fold and seed; empty: only the paper has a number
    runs: list = field(default_factory=list)  # (seed, fold name) of each value
    paper: float | None = None  # as printed in the paper, same unit; None where its model is another
    low: float | None = None  # 95 % interval of the pooled predictions
    high: float | None = None
    n: int | None = None  # utterances scored
    unit: str = "%"
    digits: int = 2
    word: str = ""  # shown in place of the number, such as a verdict

    @property
    def mean(self):
        return float(np.mean(self.values)) if self.values else None

    @property
    def sd(self):
        """Sample standard deviation over `runs`; None for a single one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def summary(self):
        """What tables and metrics.json say of it."""
        numbers = {"mean": self.mean, "sd": self.sd, "ci_low": self.low, "ci_high": self.high}
        finite = {k: None if v is None or not np.isfinite(v) else round(v, 6) for k, v in numbers.items()}
        return {"unit": self.unit, "paper": self.paper, **finite, "n": self.n, "n_runs": len(self.values)}


def score_cell(row, column, metric, y_true, y_pred, speakers, runs, n_resamples, paper=None, needs=None):
    """A cell in %: a score by fold and seed, with the interval of the pooled predictions by speaker.

    metric       function of confusion counts (..., C, C), such as metrics.accuracy
    y_true       (N,) integers; speakers (N,)
    y_pred       (P, N): one row per seed, or more whose scores are averaged; -1 = not scored
    runs         {(seed, fold name): (rows of y_pred, turn numbers tested there)}
    n_resamples  bootstrap resamples of speakers
    needs        a class without which a fold has no such score
    """
    n_classes, values = int(max(y_true.max(), y_pred.max())) + 1, {}
    for name, (rows, turns) in runs.items():
        if needs is None or (y_true[turns] == needs).any():
            scores = [metric(confusion(y_true[turns], labels[turns], n_classes)) for labels in y_pred[rows]]
            values[name] = 100 * float(np.mean(scores))
    scored = (y_pred >= 0).all(0)
    data = y_true[scored], y_pred[:, scored], speakers[scored]
    low, high = cluster_bootstrap(metric, *data, n_resamples, 0, n_classes=n_classes)
    return Cell(row, column, [*values.values()], [*values], paper, 100 * low, 100 * high, len(data[0]))


def score_cells(row, metrics, *predictions, paper=None):
    """A `score_cell` for each of metrics {column: metric}, such as METRICS; paper: {column: its number}."""
    paper = paper or {}
    return [score_cell(row, name, score, *predictions, paper.get(name)) for name, score in metrics.items()]


def prediction_rows(turns, classes, runs, predicted):
    """Rows for predictions.csv.

    runs       {(seed, fold name): (row or rows of a system's predictions, turn numbers tested there)}
    predicted  {system: (seeds, N) class numbers}, of which each run takes the first row it names
    """
    for system, labels in predicted.items():
        for (seed, fold), (rows, tested) in runs.items():
            for i in tested:
                turn, y_pred = turns[i], classes[np.atleast_2d(labels[rows])[0, i]]
                row = (turn.utterance_id, turn.speaker, fold, seed, str(system), turn.label, y_pred)
                yield dict(zip(PREDICTION_COLUMNS, row))


def paper_figures(path):
    """The numbers that a paper prints, {(table, row, column): value}, from a csv with these columns."""
    return {(line["table"], line["row"], line["column"]): float(line["value"]) for line in read_csv(path)}


# ---- Run: header, log, tables, metrics ------------------------------------------------------


@dataclass
class Run:
    """One execution of a script on one corpus; `folder` is where its results go."""

    script: str  # stem of the script's file
    paper: str  # prefix of predictions.csv and metrics.json, "" for none
    corpus: str
    protocol: str
    folder: Path
    settings: dict
    device: str
    command: str
    incomparable: str  # why its figures cannot be held against the paper's, "" where they can
    started: float = field(default_factory=time.monotonic)
    cells: dict = field(default_factory=dict)  # "<stem>/<row>/<column>" -> Cell

    def table(self, stem, title, cells, note="", protocol=None):
        """Write <stem>.csv (a line per number) and <stem>.md (the paper's grid); keep the cells.

        cells     in reading order; rows and columns appear in the order of their first cell
        note      what a reader must know; protocol: where it is not the run's
        """
        protocol = protocol or self.protocol
        if self.incomparable and any(cell.paper is not None for cell in cells):
            cells = [replace(c, paper=None) for c in cells if c.values or c.word or c.paper is None]
            note = f"{note} The paper's numbers are left out: {self.incomparable}.".strip()
        about = {"corpus": self.corpus, "protocol": protocol, "command": self.command}
        rows = [{"row": c.row, "column": c.column, **c.summary(), **about} for c in cells]
        write_csv(self.folder / f"{stem}.csv", rows, TABLE_COLUMNS)
        sizes = sorted({cell.n for cell in cells if cell.n is not None})
        n = f", n = {' to '.join(f'{size:,}' for size in sizes[:: max(1, len(sizes) - 1)])}" if sizes else ""
        commit, dirty = git_state()
        state = f"commit {commit[:10]}{' with local changes' * dirty}" if commit else "no commit"
        seeds = show(self.settings.get("SEEDS", ())).replace(",", ", ") or "–"
        made = f"Made by `{self.command}`, seeds {seeds}, {state}, {self.device}."
        parts = [f"**{title}.** Corpus {self.corpus}{n}; {protocol}.", *grids(cells)]
        parts += [f"{legend(cells)} {note}".strip(), made]
        write_text(self.folder / f"{stem}.md", "\n\n".join(filter(None, parts)) + "\n")
        self.cells |= {f"{stem}/{cell.row}/{cell.column}": cell for cell in cells}

    def predictions(self, rows):
        """Write [<paper>_]predictions.csv, a row per utterance, seed and system, with PREDICTION_COLUMNS."""
        write_csv(self.folder / self.own("predictions.csv"), rows, PREDICTION_COLUMNS)

    def log(self, record):
        """Append one record to log.jsonl, which all papers of a script share."""
        record = {"paper": self.paper, **record} if self.paper else record
        append_json(self.folder / "log.jsonl", public(record))

    def own(self, name):
        """A file's name that another paper's run of the same script does not have."""
        return f"{self.paper}_{name}" if self.paper else name

    def finish(self, **more):
        """Write [<paper>_]metrics.json (every cell, `more`, how it was made) and the page of this run."""
        seconds, (commit, dirty) = round(time.monotonic() - self.started, 1), git_state()
        metrics = {}
        for name, c in self.cells.items():
            runs = [{"seed": s, "fold": fold, "value": v} for (s, fold), v in zip(c.runs, c.values)]
            metrics[name] = {"per_run": runs, **c.summary()}
        about = {name: getattr(self, name) for name in ("script", "corpus", "protocol", "command", "device")}
        about |= {"commit": commit, "dirty": dirty, "seconds": seconds, "python": platform.python_version()}
        about |= {"versions": {name: version(name) for name in PACKAGES}}
        content = {**about, **more, "settings": public(self.settings), "metrics": metrics}
        write_json(self.folder / self.own("metrics.json"), content)
        self.log({"event": "finished", "seconds": seconds})
        print(f"finished in {seconds:.0f} s; see {public(write_page(self.folder))}")


def start_run(script, settings, manifest, protocol, device=None, paper=""):
    """Print what is run on what, make the results folder and start the log.

    script    path of the script; settings: its constants with RESULTS_ROOT; manifest: the prepared corpus
    protocol  splits.protocol_text, repeated in every table
    device    "cpu", "cuda:0", ... where the script computes; None reads as "cpu"
    paper     prefix of predictions.csv and metrics.json where the script serves several papers: "li"
              gives li_metrics.json; the first paper's have none
    """
    corpus, command = manifest.corpus, " ".join(["python", Path(script).name, *map(public, sys.argv[1:])])
    source = (ROOT / Path(script).name).read_text(encoding="utf-8")
    name = settings.get("RUN") or run_name(corpus, settings, source, sys.argv)
    folder = Path(settings["RESULTS_ROOT"], Path(script).stem, name)
    about = dict(settings), hardware(str(device or "cpu")), command, incomparable(source, settings, manifest)
    run, labelled = Run(Path(script).stem, paper, corpus, protocol, folder, *about), manifest.labelled
    counts = Counter(turn.label for turn in labelled)
    labels = ", ".join(f"{name} {counts[name]:,}" for name in manifest.classes)
    labels = f"{len(labelled):,} labelled ({labels})" if labelled else "no labels"
    n_speakers = len({turn.speaker for turn in labelled or manifest.turns})
    print(
        f"{command}\n  device    {run.device}\n"
        f"  corpus    {corpus}: {len(manifest.turns):,} turns, {labels}, {n_speakers:,} speakers\n"
        f"  protocol  {protocol}\n  results   {public(folder)}/"
    )
    run.log({"event": "started", "command": command, "settings": settings})
    return run


def run_name(corpus, settings, source, argv):
    """The corpus and what differs from the preset, which no other run may overwrite: "iemocap+SEEDS=0".

    01 describes the corpus that it prepared last, however it was called: its results are the corpus' own.
    """
    blocks = changed(source, settings, argv) if "RUN" in settings else {}
    other = [name for name, block in blocks.items() if name != "CORPUS" and block not in ("Roots", "Machine")]
    text = "".join(f"+{name}={public(show(settings[name]))}" for name in other)
    safe = re.sub(r"[^\w.=,+-]+", "-", text).rstrip(".")  # on Windows too
    return corpus + (safe if len(safe) < 80 else f"{safe[:60]}-{hash_of(text)[:8]}")


def incomparable(source, settings, manifest):
    """Why figures of a run cannot be held against the paper's; "" where they can."""
    if not manifest.complete:
        return f"{manifest.corpus} is not the complete genuine release"
    blocks = changed(source, settings)
    other = [n for n, block in blocks.items() if n not in FREE and not re.search(FREE_BLOCKS, block)]
    more = f" and {len(other) - 3} more" if len(other) > 3 else ""
    return f"run with other values of {', '.join(other[:3])}{more}" if other else ""


# ---- A table on a page ----------------------------------------------------------------------


def shown(cell):
    """A cell as text: "75.42 ± 1.31 [72.10, 78.40] (paper 75.42)"."""
    text = cell.word or ("–" if cell.mean is None else f"{cell.mean:.{cell.digits}f}")
    if not cell.word and cell.unit == "" and cell.mean and abs(cell.mean) < 10**-cell.digits:
        text = f"< {10**-cell.digits:g}"  # a p-value is never zero
    if cell.sd is not None:
        text += f" ± {cell.sd:.{cell.digits}f}"
    if cell.low is not None and np.isfinite(cell.low):
        text += f" [{cell.low:.{cell.digits}f}, {cell.high:.{cell.digits}f}]"
    return text + (f" (paper {cell.paper:g})" if cell.paper is not None else "")


def grids(cells):
    """Cells as Markdown tables of at most MAX_COLUMNS: one, one transposed, or several below each other."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    heads = {cell.column: f"{cell.column} ({cell.unit})" if cell.unit else cell.column for cell in cells}
    texts = {(cell.row, heads[cell.column]): shown(cell) for cell in cells}
    columns, width = list(heads.values()), MAX_COLUMNS - 1
    if len(columns) > width >= len(rows):
        return [grid(columns, rows, {(column, row): text for (row, column), text in texts.items()})]
    step = -(-len(columns) // -(-len(columns) // width)) if columns else 1
    return [grid(rows, columns[i : i + step], texts) for i in range(0, len(columns), step)]


def grid(rows, columns, texts):
    """One Markdown table of the rows that have some text; texts: {(row, column): text}."""
    body = [[row, *(texts.get((row, column), "") for column in columns)] for row in rows]
    return markdown([["", *columns], *(line for line in body if any(line[1:]))])


def markdown(rows):
    """Rows of texts as a Markdown table, the first row as its head."""
    head, *body = ["".join(f"| {text} ".replace("  ", " ") for text in row) + "|" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def legend(cells):
    """What "±", brackets and "paper" mean where they occur."""
    spreads, parts = dict.fromkeys(spread(cell) for cell in cells if cell.sd is not None), []
    if spreads:
        parts.append(f"mean ± sd over {' or '.join(spreads)}")
    if any(cell.low is not None and np.isfinite(cell.low) for cell in cells):
        parts.append("[95 % interval of pooled predictions, speakers resampled]")
    if any(cell.paper is not None for cell in cells):
        parts.append("(paper: as printed there)")
    return f"{' '.join(parts)}." if parts else ""


def spread(cell):
    """What a cell's sd is taken over: "5 folds x 3 seeds", "10 masks", "3 seeds"."""
    seeds, names = ({run[i] for run in cell.runs} for i in (0, 1))
    kinds = {re.match("[a-z]*", min(names))[0]: len(names)} if names else {}
    kinds["seed"] = len(seeds)
    return " × ".join(f"{n} {kind}s" for kind, n in kinds.items() if n > 1) or f"{len(cell.values)} runs"


# ---- A page to look at ----------------------------------------------------------------------


def write_page(folder):
    """Write <folder>/index.html, and the page of all runs two folders above it; returns the first path."""
    root, script = folder.parent.parent, folder.parent.name
    names = {path.name.removesuffix("metrics.json"): path for path in sorted(folder.glob("*metrics.json"))}
    runs = [{**read_json(path), "paper": name.rstrip("_")} for name, path in names.items()]
    figures = (path.name for path in folder.glob("*_fig_*.png"))
    figures = sorted(figures, key=lambda name: re.sub(r"_(\d)_", r"_0\1_", name))  # fig_9 before fig_10
    tables = [page_table(path) for path in sorted(folder.glob("*_table_*.md"))]
    made = " ".join([*figures, *(f"{table['stem']}." for table in tables)])
    missing = [name for name in ARTEFACTS.get(script, ()) if not re.search(rf"\b{name}[._]", made)]
    content = {"runs": runs, "figures": figures, "tables": tables, "missing": missing}
    write_text(folder / "index.html", fill_page(f"{script} on {folder.name}", **content))
    pages = sorted(root.glob("0*/*/index.html"), key=lambda path: path.parent.name.startswith("demo"))
    others = []
    for path in (page.parent for page in pages):
        figure = next((f.name for f in sorted(path.glob("*.png"))), "")
        others.append({"script": path.parent.name, "name": path.name, "figure": figure})
    write_text(root / "index.html", fill_page("Results", all_runs=others))
    return folder / "index.html"


def fill_page(title, **content):
    """The text of common/page.html with its places filled."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return jinja2.Template(text, autoescape=True, trim_blocks=True).render(title=title, **content)


def page_table(path):
    """A table's <stem>.md as the page shows it."""
    head, *parts = path.read_text(encoding="utf-8").strip().split("\n\n")
    title, _, about = head.removeprefix("**").partition(".** ")
    shown = [
        {"rows": [[text.strip() for text in line.strip("|").split("|")] for line in part.split("\n")]}
        if part.startswith("|")
        else {"text": part.replace("`", "")}
        for part in parts
    ]
    numbered = bool(re.search(r"_table_\d", path.stem))
    return {"stem": path.stem, "title": title, "about": about, "parts": shown, "numbered": numbered}


# ---- Provenance -----------------------------------------------------------------------------


def public(value):
    """The value without this machine's folders: absolute paths relative to the working directory or "~"."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    if not isinstance(value, (str, Path)):
        return value
    option, path = re.fullmatch(r"(--\w+=)?(.*)", str(value), re.DOTALL).groups(default="")
    parents, home = Path(path).parents, Path.home()
    if home in parents and home != Path("/") and Path.cwd() not in (Path(path), *parents):
        return f"{option}~/{Path(path).relative_to(home)}"
    return option + (os.path.relpath(path) if path.startswith("/") else path)


def git_state():
    """(commit, dirty): the hash and whether tracked files differ from it; (None, None) outside git."""
    git = {"cwd": ROOT, "check": True, "capture_output": True, "text": True}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **git).stdout.strip()
        changes = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "*.py"], **git).stdout
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changes.strip())


def hardware(device):
    """The processor or GPU by its model name: "cpu: Intel Xeon ..., 2 cores"."""
    if device.startswith("cuda"):
        import torch

        return f"{device}: {torch.cuda.get_device_name(device)}"
    try:
        models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        models = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{device}: {models[0] if models else platform.processor() or platform.machine()}, {cores} cores"
