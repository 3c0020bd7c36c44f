"""Everything a script leaves behind: tables, predictions, metrics.json, log.jsonl, and the README's tables.

    run = start_run(__file__, SETTINGS, manifest, protocol)      # prints what runs and what will be written
    cells = [Cell("concatenation", "SVM", values=[...], paper=75.451, low=72.0, high=78.1, n=5531)]
    run.table("babaali_table_5", "Early fusion", cells, note="...")
    run.finish()                                                  # metrics.json with all cells of all tables

Values are given in the unit shown (percent as 75.4, not 0.754). Nothing written names this machine's
folders: paths are made relative to the working directory, the home folder becomes "~".
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import make_folder, read_csv, write_csv, write_json, write_text, writing
from common.manifest import corpus_name
from common.metrics import cluster_bootstrap, compare, confusion, holm

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "torch", "transformers", "accelerate", "scikit-learn", "xgboost")
TABLE_COLUMNS = (
    "row",
    "column",
    "unit",
    "paper",
    "mean",
    "sd",
    "ci_low",
    "ci_high",
    "n",
    "n_runs",
    "corpus",
    "protocol",
    "command",
)
PREDICTION_COLUMNS = ("utterance_id", "speaker", "fold", "seed", "system", "y_true", "y_pred")
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass
class Cell:
    """One number of a table, with all that stands beside it."""

    row: str
    column: str
    values: list = field(default_factory=list)  # one per fold and seed; empty: only the paper has a number
    runs: list = field(default_factory=list)  # (seed, fold name) of each value, for metrics.json
    paper: float | None = None  # as printed in the paper, same unit
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
        """Sample standard deviation over folds and seeds; None for a single run."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


def score_cell(row, column, metric, y_true, y_pred, speakers, runs, n_resamples, paper=None, needs=None):
    """A cell in %: a score by fold and seed, with the interval of the pooled predictions by speaker.

    metric       function of confusion counts (..., C, C), such as metrics.accuracy
    y_true       (N,) integers; speakers (N,)
    y_pred       (P, N): one row per seed, or more whose scores are averaged; -1 = not scored
    runs         {(seed, fold name): (rows of y_pred, turn numbers tested there)}
    n_resamples  bootstrap resamples of speakers
    needs        a class without which a fold has no such score
    """
    n_classes, values, names = int(max(y_true.max(), y_pred.max())) + 1, [], []
    for name, (rows, turns) in runs.items():
        if needs is None or (y_true[turns] == needs).any():
            scores = [metric(confusion(y_true[turns], labels[turns], n_classes)) for labels in y_pred[rows]]
            values.append(100 * float(np.mean(scores)))
            names.append(name)
    scored = (y_pred >= 0).all(0)
    low, high = cluster_bootstrap(
        metric, y_true[scored], y_pred[:, scored], speakers[scored], n_resamples, 0, n_classes=n_classes
    )
    return Cell(row, column, values, names, paper, 100 * low, 100 * high, int(scored.sum()))


def paired_test_cells(column, pairs, y_true, speakers, n_resamples):
    """A table of paired tests: (its cells, what to say beneath).

    column    heading of the gain; pairs: {row: (ours, theirs)}, each (S, N) predictions of the same S seeds
    y_true    (N,) integers; speakers (N,): of the scored turns alone
    """
    found = np.array(
        [compare(y_true, ours, theirs, speakers, n_resamples) for ours, theirs in pairs.values()]
    )
    tests = {
        "McNemar p": found[:, 3],
        "McNemar, Holm": holm(found[:, 3]),
        "by speaker p": found[:, 4],
        "by speaker, Holm": holm(found[:, 4]),
    }
    cells, n, n_speakers = [], len(y_true), len(set(speakers))
    for j, row in enumerate(pairs):
        gain, low, high = 100 * found[j, :3]
        cells.append(Cell(row, column, [gain], low=low, high=high, n=n, unit="points"))
        cells += [Cell(row, name, [float(p[j])], n=n, unit="", digits=4) for name, p in tests.items()]
    return cells, (
        "McNemar: exact, as if turns were independent, the largest p of the seeds. By speaker: the two systems "
        f"are swapped for whole speakers; with {n_speakers} of them p is at least "
        f"{2 / 2 ** min(n_speakers, 30):.2g}. Holm's correction over the rows of this table."
    )


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
    started: float = field(default_factory=time.monotonic)
    written: list = field(default_factory=list)
    cells: dict = field(default_factory=dict)  # "<stem>/<row>/<column>" -> Cell

    def table(self, stem, title, cells, note="", protocol=None):
        """Write <stem>.csv and <stem>.md and keep the cells for metrics.json; protocol: where not the run's."""
        provenance = {"command": self.command, "seeds": self.settings.get("SEEDS", ()), "device": self.device}
        self.written += write_table(
            self.folder, stem, title, cells, self.corpus, protocol or self.protocol, note, provenance
        )
        self.cells.update({f"{stem}/{cell.row}/{cell.column}": cell for cell in cells})

    def figure(self, paths):
        """Count the files of a figure among those written."""
        self.written += [Path(path) for path in paths]

    def predictions(self, rows):
        """Write [<paper>_]predictions.csv, a row per utterance, seed and system, with PREDICTION_COLUMNS."""
        self.written.append(self.own("predictions.csv"))
        write_csv(self.written[-1], rows, PREDICTION_COLUMNS)

    def log(self, record):
        """Append one record to log.jsonl, which all papers of a script share."""
        append_log(self.folder / "log.jsonl", {"paper": self.paper, **record} if self.paper else record)

    def own(self, name):
        """The path of a file that another paper's run of the same script must not overwrite."""
        return self.folder / (f"{self.paper}_{name}" if self.paper else name)

    def finish(self, **more):
        """Write [<paper>_]metrics.json (every cell, `more`, how it was made) and print this run's files."""
        path = self.own("metrics.json")
        commit, dirty = git_state()
        write_json(
            path,
            {
                "script": self.script,
                "corpus": self.corpus,
                "protocol": self.protocol,
                "command": self.command,
                "metrics": {name: _metric(cell) for name, cell in self.cells.items()},
                **more,
                "settings": public(self.settings),
                "commit": commit,
                "dirty": dirty,
                "versions": versions(),
                "device": self.device,
                "seconds": round(time.monotonic() - self.started, 1),
            },
        )
        self.log({"event": "finished", "seconds": round(time.monotonic() - self.started, 1)})
        names = sorted({p.name for p in [*self.written, path]})
        print(
            f"wrote {len(names)} files to {public(str(self.folder))}/ in "
            f"{time.monotonic() - self.started:.0f} s: {', '.join(names)}"
        )


def start_run(script, settings, manifest, protocol, device=None, paper=""):
    """Print what is run on what, make the results folder and start the log.

    script    path of the script; settings: its constants with RESULTS_ROOT; manifest: the prepared corpus
    protocol  splits.protocol_text, repeated in every table
    device    "cpu", "cuda:0", ... where the script computes; None reads as "cpu"
    paper     prefix of predictions.csv and metrics.json where the script serves several papers: "li"
              gives li_metrics.json; the first paper's have none
    Raises UserError where --demo is combined with a corpus whose real results it would overwrite.
    """
    stem = Path(script).stem
    refuse_demo_on_real(manifest.corpus, sys.argv[1:])
    folder = make_folder(results_folder(settings["RESULTS_ROOT"], stem, manifest.corpus))
    run = Run(
        stem,
        paper,
        manifest.corpus,
        protocol,
        folder,
        dict(settings),
        hardware(device),
        command_line(sys.argv),
    )
    labelled = manifest.labelled
    per_class = ", ".join(f"{name} {sum(t.label == name for t in labelled):,}" for name in manifest.classes)
    print(
        f"{run.command}\n  device    {run.device}\n"
        f"  corpus    {manifest.corpus}: {len(manifest.turns):,} turns, "
        f"{f'{len(labelled):,} labelled ({per_class})' if labelled else 'no labels'}, "
        f"{len({t.speaker for t in labelled or manifest.turns}):,} speakers\n"
        f"  protocol  {protocol}\n  results   {public(str(folder))}/"
    )
    run.log({"event": "started", "command": run.command, "settings": public(settings)})
    return run


def results_folder(results_root, script_stem, corpus):
    """<RESULTS_ROOT>/<script>/<corpus>: the corpus in the path keeps demo and real results apart."""
    return Path(results_root) / script_stem / corpus_name(corpus)


def refuse_demo_on_real(corpus, argv):
    """UserError where the demo's small settings would write over the results of a real corpus."""
    own_root = any(word.startswith("--RESULTS_ROOT") for word in argv)
    if "--demo" in argv and not corpus.startswith("demo") and not own_root:
        raise UserError(
            f"--demo with CORPUS={corpus}: would write over the results of a real corpus; "
            "leave --demo out, or give another --RESULTS_ROOT"
        )


def append_log(path, record):
    """Append one record to a .jsonl file; a line cut off by a kill does not swallow the next one."""
    path = Path(path)
    make_folder(path.parent)
    with writing(path), open(path, "a+b") as file:
        if file.tell() and _last_byte(file) != b"\n":
            file.write(b"\n")
        file.write((json.dumps(public(record), ensure_ascii=False, default=str) + "\n").encode())


def prediction_rows(turns, classes, runs, predicted):
    """Rows for predictions.csv.

    runs       {(seed, fold name): (row or rows of a system's predictions, turn numbers tested there)}
    predicted  {system: (seeds, N) class numbers}, of which each run takes the first row it names
    """
    for system, labels in predicted.items():
        for (seed, fold), (rows, tested) in runs.items():
            for i in tested:
                yield {
                    "utterance_id": turns[i].utterance_id,
                    "speaker": turns[i].speaker,
                    "fold": fold,
                    "seed": seed,
                    "system": str(system),
                    "y_true": turns[i].label,
                    "y_pred": classes[np.atleast_2d(labels[rows])[0, i]],
                }


def _last_byte(file):
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _metric(cell):
    per_seed = defaultdict(list)
    for (seed, _), value in zip(cell.runs, cell.values):
        per_seed[str(seed)].append(value)
    return {
        "per_seed": {seed: float(np.mean(v)) for seed, v in per_seed.items()},
        "per_run": [{"seed": s, "fold": f, "value": v} for (s, f), v in zip(cell.runs, cell.values)],
        "mean": cell.mean,
        "sd": cell.sd,
        "ci_low": cell.low,
        "ci_high": cell.high,
        "n": cell.n,
        "unit": cell.unit,
        "paper": cell.paper,
    }


# ---- Tables ---------------------------------------------------------------------------------


def write_table(folder, stem, title, cells, corpus, protocol, note, provenance):
    """Write a table as <stem>.csv (one line per number) and <stem>.md (the paper's own grid).

    cells       in reading order; rows and columns appear in the order of their first cell
    note        what a reader must know, "" for nothing
    provenance  {"command", "seeds", "device"}; the commit is added here
    Returns the two paths.
    """
    folder = Path(folder)
    rows = [
        {
            "row": c.row,
            "column": c.column,
            "unit": c.unit,
            "paper": c.paper,
            "mean": _plain(c.mean),
            "sd": _plain(c.sd),
            "ci_low": _plain(c.low),
            "ci_high": _plain(c.high),
            "n": c.n,
            "n_runs": len(c.values),
            "corpus": corpus,
            "protocol": protocol,
            "command": provenance["command"],
        }
        for c in cells
    ]
    write_csv(folder / f"{stem}.csv", rows, TABLE_COLUMNS)
    caption = _caption(title, cells, corpus, protocol, note, provenance)
    write_text(folder / f"{stem}.md", caption[0] + "\n\n" + _grid(cells) + "\n\n" + caption[1] + "\n")
    return [folder / f"{stem}.csv", folder / f"{stem}.md"]


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


def _grid(cells):
    rows = list(dict.fromkeys(c.row for c in cells))
    columns = list(dict.fromkeys(c.column for c in cells))
    units = {c.column: c.unit for c in cells}
    at = {(c.row, c.column): shown(c) for c in cells}
    heads = [f"{name} ({units[name]})" if units[name] else name for name in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {row} | " + " | ".join(at.get((row, column), "") for column in columns) + " |" for row in rows
    ]
    return "\n".join(lines)


def _caption(title, cells, corpus, protocol, note, provenance):
    """(line above the table, lines below it)"""
    sizes = sorted({c.n for c in cells if c.n is not None})
    n = f", n = {' to '.join(f'{size:,}' for size in dict.fromkeys((sizes[0], sizes[-1])))}" if sizes else ""
    meaning = []
    if any(c.sd is not None for c in cells):
        counts = sorted({len(c.values) for c in cells if c.sd is not None})
        meaning.append(
            f"mean ± sd over {' or '.join(map(str, counts))} runs (folds × seeds"
            + ", where pooled: seeds)" * (len(counts) > 1)
            + ")" * (len(counts) == 1)
        )
    if any(c.low is not None and np.isfinite(c.low) for c in cells):
        meaning.append("[95 % interval of the pooled predictions, speakers resampled]")
    if any(c.paper is not None for c in cells):
        meaning.append("(paper: as printed there)")
    commit, dirty = git_state()
    state = f"commit {commit[:10]}{' with local changes' * dirty}" if commit else "no commit"
    seeds = ", ".join(map(str, provenance["seeds"])) or "–"
    source = f"`{provenance['command']}`, seeds {seeds}, {state}, {provenance['device']}"
    below = [f"{' '.join(meaning)}."] if meaning else []
    below += [note] if note else []
    return f"**{title}.** Corpus {corpus}{n}; {protocol}.", "\n\n".join([*below, f"Made by {source}."])


def _plain(value):
    return None if value is None or not np.isfinite(value) else round(value, 6)


# ---- README ---------------------------------------------------------------------------------


def fill_tables(readme):
    """Replace what stands between `<!-- table: results/.../x.md -->` and `<!-- end -->` by that file."""
    readme = Path(readme)
    text = readme.read_text(encoding="utf-8")
    write_text(readme, BLOCK.sub(lambda m: m[1] + _table_text(readme.parent / m[2]) + m[4], text))


def stale_tables(readme):
    """The table files whose text in the README differs from the file; [] where all are equal."""
    readme = Path(readme)
    found = BLOCK.findall(readme.read_text(encoding="utf-8"))
    return [name for _, name, body, _ in found if body != _table_text(readme.parent / name)]


def write_overview(results_root, paper, corpus, stem="overview"):
    """Collect all numbers that the paper prints: "paper | ours | gap | command" in one table.

    Reads every <results_root>/<script>/<corpus>/<paper>_table_*.csv and writes
    <results_root>/<paper>_<stem>_<corpus>.md; returns its path, or None where the paper prints no number.
    """
    lines = [
        "| table | row | column | paper | ours mean ± sd [95 % interval] | gap | command |",
        "|---" * 7 + "|",
    ]
    for path in sorted(Path(results_root).glob(f"*/{corpus}/{paper}_table_*.csv")):
        for row in read_csv(path):
            if row["paper"] and row["mean"]:
                low, high = (float(row[k]) if row[k] else None for k in ("ci_low", "ci_high"))
                cell = Cell(row["row"], row["column"], [float(row["mean"])], low=low, high=high)
                ours = shown(cell).replace(" [", f" ± {float(row['sd']):.2f} [" if row["sd"] else " [", 1)
                gap = float(row["mean"]) - float(row["paper"])
                unit = f" ({row['unit']})" if row["unit"] else ""
                name = f"{path.stem.split('_table_')[1]} | {row['row']} | {row['column']}{unit}"
                lines.append(
                    f"| {name} | {float(row['paper']):g} | {ours} | {gap:+.2f} | `{row['command']}` |"
                )
    path = Path(results_root) / f"{paper}_{stem}_{corpus}.md"
    if len(lines) == 2:
        return None  # a corpus of which the paper says nothing
    write_text(path, "\n".join(lines) + "\n")
    return path


def _table_text(path):
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: named in the README but absent; run the script that writes it") from error


# ---- Provenance -----------------------------------------------------------------------------


def public(value):
    """The value without this machine's folders: absolute paths relative to the working directory or "~"."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    if isinstance(value, Path):
        return public(str(value))
    return _public_text(value) if isinstance(value, str) else value


def _public_text(text):
    name, equals, path = text.partition("=")
    if equals and name.startswith("--"):
        return f"{name}={_public_text(path)}"
    home = str(Path.home())
    if text.startswith("/"):
        inside = Path(text).is_relative_to(Path.cwd())
        if not inside and len(home) > 1 and Path(text).is_relative_to(home):
            return "~" + text[len(home) :]
        text = os.path.relpath(text)
    return text


def command_line(argv):
    """The command that made a result, such as "python 04_fuse_classify.py --demo"."""
    return " ".join(["python", Path(argv[0]).name, *(public(str(word)) for word in argv[1:])])


def git_state():
    """(commit, dirty): the hash and whether tracked files differ from it; (None, None) outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no", "--", "*.py"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*words):
    done = subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def versions():
    """Python and the installed versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device=None):
    """The processor or GPU by its model name: "cpu: Intel Xeon ..., 2 cores"."""
    device = str(device or "cpu")
    if device.startswith("cuda"):
        import torch

        return f"{device}: {torch.cuda.get_device_name(device)}"
    try:
        models = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        models = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{device}: {models[0] if models else platform.processor() or platform.machine()}, {cores} cores"


def main(readme):
    """Write the overview of every paper and corpus in results/, then bring the README's tables up to date."""
    tables = [path for path in (ROOT / "results").glob("*/*/*_table_*.csv")]
    for paper, corpus in sorted({(path.name.split("_table_")[0], path.parent.name) for path in tables}):
        write_overview(ROOT / "results", paper, corpus)
    fill_tables(readme)
    print(f"filled the tables of {readme}")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")
