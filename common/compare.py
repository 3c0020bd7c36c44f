"""Two runs of a script side by side: settings that differ, the cells of their tables, a test on common turns.

    python -m common.compare results results/mine      # all runs that both folders have, a line each

    python -m common.compare results/02_finetune_unimodal/iemocap results/02_finetune_unimodal/iemocap+SEEDS=0

The test pairs systems of one name, or the only system of each run, on the turns that both have predicted.
"""

import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from common.comparison import compare
from common.files import UserError, read_csv, read_json

N_RESAMPLES = 10000  # of the speakers behind an interval


def read_run(folder):
    """The parsed metrics.json of a folder of results; those of several papers become one."""
    paths = sorted(Path(folder).glob("*metrics.json"))
    if not paths:
        raise UserError(f"{folder}: no metrics.json; name one such as results/02_finetune_unimodal/iemocap")
    first, *others = [read_json(path) for path in paths]
    for other in others:
        first["settings"] |= other["settings"]
        first["metrics"] |= other["metrics"]
    return first


def read_predictions(folder):
    """{system: {(utterance, seed): line of predictions.csv}}."""
    systems = {}
    for path in sorted(Path(folder).glob("*predictions.csv")):
        for line in read_csv(path):
            systems.setdefault(line["system"], {})[line["utterance_id"], line["seed"]] = line
    return systems


def different_settings(a, b):
    """Lines "NAME: value of a | value of b"."""
    names = dict.fromkeys([*a["settings"], *b["settings"]])
    pairs = {name: [run["settings"].get(name, "absent") for run in (a, b)] for name in names}
    return [f"{name}: {x} | {y}" for name, (x, y) in pairs.items() if x != y]


def cell_lines(a, b):
    """Lines of the cells that both runs have, "table / row / column: a | b (difference)"."""
    lines = []
    for name, cell in a["metrics"].items():
        x, y = cell["mean"], b["metrics"].get(name, {}).get("mean")
        if x is not None and y is not None:
            text = f"{name.replace('/', ' / ')}: {x:.4g} | {y:.4g} ({y - x:+.3g}) {cell['unit']}"
            lines.append(text.rstrip())
    return lines


def paired_lines(a, b):
    """Lines of the paired test of each system that both have predicted; a, b: of read_predictions."""
    names = {name: (name, name) for name in a if name in b}
    if not names and len(a) == len(b) == 1:
        names = {f"{next(iter(b))} against {next(iter(a))}": (next(iter(a)), next(iter(b)))}
    return [line for title, (x, y) in names.items() for line in [paired_line(title, a[x], b[y])] if line]


def paired_line(title, a, b):
    """Accuracy of b minus that of a on the turns and seeds that both have, or None where there are none."""
    common = [key for key in a if key in b and a[key]["y_true"] == b[key]["y_true"]]
    seeds = sorted({seed for _, seed in common})
    turns = [turn for turn, n in Counter(turn for turn, _ in common).items() if n == len(seeds)]
    if not turns:
        return None
    first = [a[turn, seeds[0]] for turn in turns]
    y_true, speakers = (np.array([line[key] for line in first]) for key in ("y_true", "speaker"))
    theirs, ours = (np.array([[run[t, s]["y_pred"] for t in turns] for s in seeds]) for run in (a, b))
    gain, low, high, _, p = compare(y_true, ours, theirs, speakers, N_RESAMPLES)
    interval = f"{100 * gain:+.2f} [{100 * low:.2f}, {100 * high:.2f}] points"
    return f"{title}: {interval}, p = {p:.4f} by speaker (n = {len(turns):,}, {len(set(speakers))} speakers)"


def compare_roots(roots):
    """Print a line for each run that both folders have: how many cells moved, and which most."""
    a, b = ({p.parent.relative_to(root) for p in Path(root).glob("0*/*/*metrics.json")} for root in roots)
    for name in sorted(a & b):
        x, y = (read_run(Path(root, name))["metrics"] for root in roots)
        pairs = {key: (x[key]["mean"], y[key]["mean"]) for key in x if key in y and x[key]["unit"] != "s"}
        moved = {key: abs(m - n) for key, (m, n) in pairs.items() if None not in (m, n) and m != n}
        most = max(moved, key=moved.get, default=None)
        text = f", most {most}: {pairs[most][0]:.4g} | {pairs[most][1]:.4g}" if most else ""
        print(f"{name}: {len(moved)} of {len(pairs)} cells moved{text}")
    return bool(a & b)


def main(folders):
    """Print the comparison of two folders of results."""
    if len(folders) != 2:
        raise UserError("name two folders: python -m common.compare results/A results/B")
    if compare_roots(folders):
        return
    a, b = (read_run(folder) for folder in folders)
    if a["script"] != b["script"]:
        raise UserError(f"one is of {a['script']}, one of {b['script']}; name two folders of one script")
    print(f"A  {a['command']}\nB  {b['command']}")
    parts = {
        "Settings that differ (A | B)": different_settings(a, b),
        "Cells (A | B, B minus A)": cell_lines(a, b),
        "Accuracy, B minus A, on common turns": paired_lines(*map(read_predictions, folders)),
    }
    for title, lines in parts.items():
        print(f"\n{title}", *(lines or ["none"]), sep="\n  ")
    for name, own, other in (("A", a, b), ("B", b, a)):
        if alone := set(own["metrics"]) - set(other["metrics"]):
            tables = ", ".join(sorted({cell.split("/")[0] for cell in alone}))
            print(f"\nonly in {name}: {len(alone)} cells of {tables}")


if __name__ == "__main__":
    signal.signal(getattr(signal, "SIGPIPE", signal.SIGTERM), signal.SIG_DFL)  # `... | head`
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
