"""Tables 1 and 2 and Figure 4 of Li et al., and beyond them: tests, dialogue styles, context sizes."""

from pathlib import Path

import numpy as np

from common import metrics, plots
from common.comparison import compare, holm, paired_test_cells
from common.encoders import short_name
from common.li.training import FROZEN, PHASES, TUNED
from common.panels import confusion_grid
from common.results import Cell, paper_figures, prediction_rows, score_cells

PAPER = paper_figures(Path(__file__).with_name("paper.csv"))  # rows of Table 1: "<system> <phase>"
PUBLISHED = {  # Table 2
    "Session 5": ("[23] Wu et al. 2021",),
    "5-fold CV": ("[19] Siriwardhana et al. 2020", "[20] Makiuchi et al. 2021", "[23] Wu et al. 2021"),
}
TABLE_2_SYSTEMS = (("LF", FROZEN), ("MMT", FROZEN), ("MMT", TUNED))  # whose figures may stand there
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
    study, utterances = scores.source, scores.source.utterances
    models = " and ".join(short_name(u.source) for u in utterances.values())
    context = "as in each row" if sizes else context_text(study.window)
    note = f"{models}; context {context}. WA = accuracy, UA = mean of class recalls. {scores.chance()}"
    silent = utterances["audio"].n_silent() if "audio" in utterances else 0
    cuts = [sum(study.windows(f, "test", size)[2] for f in scores.folds) for size in sizes or [study.window]]
    if silent:
        note += f" {silent:,} turns lack audio, which is taken as silence."
    if max(cuts):
        most = "Up to " if sizes else ""
        note += f" {most}{max(cuts):,} neighbours lie across the border of a test part and are not used."
    return note


def rows_of(scores):
    """{(system, phase): predictions (seeds, N)} of Table 1, in its order."""
    study = scores.source
    order = [(system, phase) for system in study.numbered for phase in PHASES]
    found = {key: scores.predicted.get((*key, study.window)) for key in order}
    return {key: predictions for key, predictions in found.items() if predictions is not None}


def name_of(scores, system, phase):
    """ "18 MMT fine-tuned": its number in Table 1 first."""
    return f"{2 * scores.source.numbered.index(system) + PHASES.index(phase) + 1} {system} {phase}"


# ---- Tables and figure of the paper --------------------------------------------------------


def table_1(scores, run):
    """Table 1: every system, frozen and fine-tuned."""
    cells = []
    for (system, phase), predictions in rows_of(scores).items():
        letters = " + ".join({"audio": "A", "text": "T"}[m] for m in scores.source.systems[system])
        row = f"{name_of(scores, system, phase)}, {letters}"
        paper = {column: PAPER.get(("1", f"{system} {phase}", column)) for column in COLUMNS}
        cells += score_cells(row, COLUMNS, *scores.data(predictions), paper=paper)
        more = F1 | (POOLED if len(scores.folds) > 1 else {})
        cells += score_cells(row, more, *scores.data(predictions, scores.pooled()))
    note = (
        "WA and UA: means over folds, as in the paper; pooled: of all test turns together. A audio, T text."
    )
    title = "Table 1. Unimodal and multimodal systems"
    run.table("li_table_1", title, cells, f"{note} {note_of(scores)}")


def table_2(scores, run):
    """Table 2: the last session and all folds beside published systems."""
    cells, rows = [], rows_of(scores)
    last = {key: part for key, part in scores.runs().items() if key[1] == scores.folds[-1].name}
    for setting, published in PUBLISHED.items():
        runs = last if setting == "Session 5" else scores.runs()
        for name in published:
            row = f"{name}, {setting}"
            cells += [Cell(row, column, paper=PAPER.get(("2", row, column))) for column in COLUMNS]
        for system, phase in (key for key in TABLE_2_SYSTEMS if key in rows):
            paper = {column: PAPER["2", f"ours {phase}, {setting}", column] for column in COLUMNS}
            row, data = (
                f"ours, {name_of(scores, system, phase)}, {setting}",
                scores.data(rows[system, phase], runs),
            )
            cells += score_cells(row, COLUMNS, *data, paper=paper)
            if len(set(scores.speakers[(data[1] >= 0).all(0)])) < MIN_SPEAKERS:
                for cell in cells[-len(COLUMNS) :]:
                    cell.low = cell.high = None
    note = (
        "Figures of others as the paper quotes them. It does not name the system of its frozen rows: in five "
        "folds the figures are those of system 15 (LF), in Session 5 they may be of LF or MMT. Session 5: "
        f"the last session; it has too few speakers for an interval. {note_of(scores)}"
    )
    if set(TABLE_2_SYSTEMS) & set(rows):
        run.table("li_table_2", "Table 2. Comparison with published systems, audio and text", cells, note)


def figure_4(scores, run):
    """Figure 4: confusion matrices of the last session, audio, text and multimodal system, by phase."""
    rows, panels, found = scores.tested[-1], {}, rows_of(scores)
    phases = [phase for phase in PHASES if any((system, phase) in found for system in FIGURE_4)]
    for system, phase in ((s, p) for p in phases for s in FIGURE_4 if (s, p) in found):
        counts = metrics.confusion(scores.y[rows], found[system, phase][0, rows], len(scores.classes))
        panels[name_of(scores, system, phase)] = counts
    if not panels:
        return
    caption = (
        f"Figure 4. Confusion matrices on the test turns of {scores.folds[-1].name} ({scores.corpus}), "
        f"n = {len(rows):,}, seed {scores.seeds[0]}; {run.protocol}. The paper shows systems 4, 8, 18 and 7, "
        "of Session 5; colour and second line: share of the true class."
    )
    fig = confusion_grid(panels, scores.classes, len(panels) // len(phases))
    run.figure(plots.save(fig, run.folder, "li_fig_4_confusion", caption))


# ---- Beyond the paper ----------------------------------------------------------------------


def tests_table(scores, run):
    """The multimodal Transformer against early fusion, late fusion and the best single modality, by phase."""
    rows, pairs = rows_of(scores), {}
    for phase in (phase for phase in PHASES if ("MMT", phase) in rows):
        ours = rows["MMT", phase]
        for rival in (name for name in ("EF", "LF") if (name, phase) in rows):
            pairs[f"MMT against {rival}, {phase}"] = ours, rows[rival, phase]
        singles = [(name, phase, scores.source.window) for name in SINGLES if (name, phase) in rows]
        if singles:
            single, wins = scores.best(singles)
            wins = ", ".join(f"{key[0]} {count}" for key, count in wins.items())
            row = f"MMT against the best single modality, {phase} (chosen on development: {wins})"
            pairs[row] = ours, single
    if pairs:
        cells, note = paired_test_cells("gain in WA", *scores.pairs(pairs))
        title = "The multimodal Transformer against its rivals"
        run.table("li_table_tests", title, cells, f"Not in the paper. {note} {note_of(scores)}")


def styles_table(scores, run):
    """Improvised and scripted dialogues apart."""
    styles = np.array([turn.extra.get("style", "") for turn in scores.turns])
    kinds, cells = sorted(set(styles[scores.scored]) - {""}), []
    if len(kinds) < 2:
        print("the corpus does not tell improvised from scripted dialogues: no table of styles")
        return
    for (system, phase), predictions in rows_of(scores).items():
        for kind in kinds:
            data = scores.data(predictions, scores.runs(np.flatnonzero(styles == kind)))
            columns = {f"{kind} {column}": metric for column, metric in COLUMNS.items()}
            cells += score_cells(name_of(scores, system, phase), columns, *data)
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
        cells += score_cells(row, COLUMNS | F1, *scores.data(predictions))
        if size in gains:
            gain, low, high, p = gains[size]
            cells.append(Cell(row, "gain in WA", [gain], low=low, high=high, n=n, unit="points"))
            cells.append(Cell(row, "by speaker, Holm", [p], n=n, unit="", digits=4))
    return cells


def context_gains(scores, found):
    """{size: gain in points over no context, its interval, p by speaker with Holm's correction}."""
    others = [size for size in found if sum(size)]
    if (0, 0) not in found or not others:
        return {}
    pairs, y, *data = scores.pairs({size: (found[size], found[0, 0]) for size in others})
    tests = np.array([compare(y, *pair, *data) for pair in pairs.values()])
    return dict(zip(others, np.column_stack([100 * tests[:, :3], holm(tests[:, 4])])))


# ---- Predictions ---------------------------------------------------------------------------


def named_predictions(scores, contexts):
    """Rows of li_predictions.csv; contexts: the Scores of the trainings for context sizes, or None."""
    apart = contexts is not None and contexts.source.folder != scores.source.folder
    for part in filter(None, (scores, contexts)):
        of_contexts = " (context sizes)" if apart and part is contexts else ""
        named = {
            f"{system} {phase}, context {w[0]}+{w[1]}{of_contexts}": labels
            for (system, phase, w), labels in part.predicted.items()
            if part is scores or apart or (system, phase, w) not in scores.predicted
        }
        yield from prediction_rows(part.turns, part.classes, part.runs(), named)
