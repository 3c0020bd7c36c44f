"""Tables 1 and 2 and Figure 4 of Li et al., and beyond them: tests, dialogue styles, context sizes."""

from pathlib import Path

import numpy as np

from common import metrics, plots
from common.comparison import compare, holm, paired_test_cells
from common.encoders import short_name
from common.li.training import FROZEN, PHASES, TUNED
from common.panels import confusion_grid
from common.results import Cell, paper_figures

PAPER = paper_figures(Path(__file__).with_name("paper.csv"))  # rows of Table 1: "<system> <phase>"
PUBLISHED = {  # Table 2
    "Session 5": ("[23] Wu et al. 2021",),
    "5-fold CV": ("[19] Siriwardhana et al. 2020", "[20] Makiuchi et al. 2021", "[23] Wu et al. 2021"),
}
TABLE_2_SYSTEMS = {FROZEN: ("LF", "MMT"), TUNED: ("MMT",)}  # whose figures may stand in Table 2
COLUMNS = {"WA": metrics.accuracy, "UA": metrics.unweighted_recall}
POOLED = {"WA pooled": metrics.accuracy, "UA pooled": metrics.unweighted_recall}
F1 = {"weighted F1": metrics.weighted_f1}
MIN_SPEAKERS = 5  # fewer give no interval of a single session
SINGLES = ("WavLM+FC", "WavLM+TE", "BERT+FC", "BERT+TE")
FIGURE_4 = ("WavLM+TE", "BERT+TE", "MMT")


def context_text(window):
    return f"{window[0]} before, {window[1]} after"


def note_of(scores, sizes=None):
    """What every table says: models, context, chance; sizes: contexts of its rows, where they differ."""
    majority, uniform = metrics.chance(scores.y[scores.scored], len(scores.classes))
    utterances = scores.study.utterances
    silent = utterances["audio"].n_silent() if "audio" in utterances else 0
    windows = sizes or [scores.window]
    cut = max(sum(scores.study.windows(fold, "test", w)[2] for fold in scores.folds) for w in windows)
    parts = [
        f"{' and '.join(short_name(u.source) for u in utterances.values())}; context "
        f"{'as in each row' if sizes else context_text(scores.window)}. WA = accuracy, UA = mean of class "
        f"recalls; chance {100 * majority:.1f} % (majority class), {100 * uniform:.1f} % (1 / C)."
    ]
    if silent:
        parts.append(f"{silent:,} turns lack audio, which is taken as silence.")
    if cut:
        most = "Up to " if sizes else ""
        parts.append(f"{most}{cut:,} neighbours lie across the border of a test part and are not used.")
    return " ".join(parts)


# ---- Tables and figure of the paper --------------------------------------------------------


def table_1(scores, run):
    """Table 1: every system, frozen and fine-tuned."""
    cells = []
    for system, phase, predictions in scores.rows():
        letters = " + ".join({"audio": "A", "text": "T"}[m] for m in scores.study.systems[system])
        row = f"{scores.name(system, phase)}, {letters}"
        paper = {column: PAPER.get(("1", f"{system} {phase}", column)) for column in COLUMNS}
        cells += scores.cells(row, COLUMNS, predictions, paper)
        more = F1 | (POOLED if len(scores.folds) > 1 else {})
        cells += scores.cells(row, more, predictions, runs=scores.pooled())
    note = (
        "WA and UA: means over folds, as in the paper; pooled: of all test turns together. A audio, T text. "
        + note_of(scores)
    )
    run.table("li_table_1", "Table 1. Unimodal and multimodal systems", cells, note)


def table_2(scores, run):
    """Table 2: the last session and all folds beside published systems."""
    cells, rows = [], {(system, phase): predictions for system, phase, predictions in scores.rows()}
    last = {key: part for key, part in scores.runs().items() if key[1] == scores.folds[-1].name}
    for setting, published in PUBLISHED.items():
        runs = last if setting == "Session 5" else scores.runs()
        for name in published:
            row = f"{name}, {setting}"
            cells += [Cell(row, column, paper=PAPER.get(("2", row, column))) for column in COLUMNS]
        for phase in PHASES:
            paper = {column: PAPER["2", f"ours {phase}, {setting}", column] for column in COLUMNS}
            for system in (s for s in TABLE_2_SYSTEMS[phase] if (s, phase) in rows):
                row = f"ours, {scores.name(system, phase)}, {setting}"
                cells += without_interval(
                    scores, scores.cells(row, COLUMNS, rows[system, phase], paper, runs), runs
                )
    note = (
        "Figures of others as the paper quotes them. It does not name the system of its frozen rows: in five "
        "folds the figures are those of system 15 (LF), in Session 5 they may be of LF or MMT. Session 5: "
        f"the last session; it has too few speakers for an interval. {note_of(scores)}"
    )
    if any(cell.values for cell in cells):
        run.table("li_table_2", "Table 2. Comparison with published systems, audio and text", cells, note)


def without_interval(scores, cells, runs):
    """The cells, without an interval where the runs have fewer than MIN_SPEAKERS speakers."""
    turns = np.concatenate([part for _, part in runs.values()])
    if len(set(scores.speakers[turns])) < MIN_SPEAKERS:
        for cell in cells:
            cell.low = cell.high = None
    return cells


def figure_4(scores, run):
    """Figure 4: confusion matrices of the last session, audio, text and multimodal system, by phase."""
    fold, rows, panels = scores.folds[-1], scores.tested[-1], {}
    found = sorted(scores.rows(), key=lambda row: PHASES.index(row[1]))
    for system, phase, predictions in (row for row in found if row[0] in FIGURE_4):
        counts = metrics.confusion(scores.y[rows], predictions[0, rows], len(scores.classes))
        panels[f"{scores.name(system, phase)}"] = counts
    if not panels:
        return
    caption = (
        f"Figure 4. Confusion matrices on the test turns of {fold.name} ({scores.study.manifest.corpus}), "
        f"n = {len(rows):,}, seed {scores.seeds[0]}; {run.protocol}. The paper shows systems 4, 8, 18 and 7, "
        "of Session 5; colour and second line: share of the true class."
    )
    n_columns = len(panels) // len({phase for _, phase, _ in found})
    fig = confusion_grid(panels, scores.classes, n_columns)
    run.figure(plots.save(fig, run.folder, "li_fig_4_confusion", caption))


# ---- Beyond the paper ----------------------------------------------------------------------


def best_single(scores, phase):
    """Predictions (seeds, N) of the single modality of the lowest development loss on each fold; which."""
    keys = [(s, phase, scores.window) for s in SINGLES if (s, phase, scores.window) in scores.predicted]
    losses = np.stack([scores.valid_loss[key] for key in keys])  # (systems, seeds, folds)
    predictions, wins = np.full_like(scores.predicted[keys[0]], -1), dict.fromkeys(SINGLES, 0)
    for i, k in np.ndindex(losses.shape[1:]):
        best = keys[int(losses[:, i, k].argmin())]
        predictions[i, scores.tested[k]] = scores.predicted[best][i, scores.tested[k]]
        wins[best[0]] += 1
    return predictions, ", ".join(f"{name} {count}" for name, count in wins.items() if count)


def tests_table(scores, run):
    """The multimodal Transformer against early fusion, late fusion and the best single modality, by phase."""
    rows = {(system, phase): predictions for system, phase, predictions in scores.rows()}
    pairs = {}
    for phase in (phase for phase in PHASES if ("MMT", phase) in rows):
        ours = rows["MMT", phase]
        for rival in (name for name in ("EF", "LF") if (name, phase) in rows):
            pairs[f"MMT against {rival}, {phase}"] = ours, rows[rival, phase]
        if any((name, phase) in rows for name in SINGLES):
            single, wins = best_single(scores, phase)
            row = f"MMT against the best single modality, {phase} (chosen on development: {wins})"
            pairs[row] = ours, single
    if not pairs:
        return
    scored = scores.scored
    pairs = {row: (ours[:, scored], theirs[:, scored]) for row, (ours, theirs) in pairs.items()}
    data = (scores.y[scored], scores.speakers[scored], scores.n_resamples)
    cells, note = paired_test_cells("gain in WA", pairs, *data)
    title = "The multimodal Transformer against its rivals"
    run.table("li_table_tests", title, cells, f"Not in the paper. {note} {note_of(scores)}")


def styles_table(scores, run):
    """Improvised and scripted dialogues apart."""
    styles = np.array([turn.extra.get("style", "") for turn in scores.turns])
    kinds, cells = sorted(set(styles[scores.scored]) - {""}), []
    if len(kinds) < 2:
        print("the corpus does not tell improvised from scripted dialogues: no table of styles")
        return
    for system, phase, predictions in scores.rows():
        for kind in kinds:
            runs = scores.runs(np.flatnonzero(styles == kind))
            columns = {f"{kind} {column}": metric for column, metric in COLUMNS.items()}
            cells += scores.cells(scores.name(system, phase), columns, predictions, runs=runs)
    counts = ", ".join(f"{kind} {int((styles[scores.scored] == kind).sum()):,}" for kind in kinds)
    note = (
        f"Not in the paper. Turns: {counts}. IEMOCAP's scripts are played in every session, so that a text "
        "system has met the words of scripted test turns, or nearly, in training; their figures say less "
        f"about new speech. {note_of(scores)}"
    )
    run.table("li_table_styles", "Improvised and scripted dialogues apart", cells, note)


def context_table(scores, run, systems, sizes, phases, how):
    """How much context on which side is worth; how: what differs from Table 1's trainings."""
    cells = [
        cell for phase in phases for system in systems for cell in context_rows(scores, system, phase, sizes)
    ]
    note = (
        "Not in the paper, which takes 4 before and 4 after. Rows without utterances after are what a live "
        "system could have. Gain: over the same system without context; by speaker: the two are swapped for "
        f"whole speakers, Holm's correction over the rows of a system. {how}{note_of(scores, sizes)}"
    )
    run.table("li_table_context", "Context sizes", cells, note)


def context_rows(scores, system, phase, sizes):
    """WA, UA and weighted F1 of one system by context size, with the gain over no context and its test."""
    found, cells = {size: scores.predicted[system, phase, size] for size in sizes}, []
    gains, n = context_gains(scores, found), len(scores.scored)
    for size, predictions in found.items():
        past_only = " (past only)" if size[0] and not size[1] else ""
        row = f"{system} {phase}: {context_text(size)}{past_only}"
        cells += scores.cells(row, COLUMNS | F1, predictions)
        if size in gains:
            gain, low, high, p = gains[size]
            cells.append(Cell(row, "gain in WA", [gain], low=low, high=high, n=n, unit="points"))
            cells.append(Cell(row, "by speaker, Holm", [p], n=n, unit="", digits=4))
    return cells


def context_gains(scores, found):
    """{size: gain in points over no context, its interval, p by speaker with Holm's correction}."""
    rows, others = scores.scored, [size for size in found if sum(size)]
    if (0, 0) not in found or not others:
        return {}
    data, base = (scores.speakers[rows], scores.n_resamples), found[0, 0][:, rows]
    tests = np.array([compare(scores.y[rows], found[size][:, rows], base, *data) for size in others])
    return dict(zip(others, np.column_stack([100 * tests[:, :3], holm(tests[:, 4])])))
