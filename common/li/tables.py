"""Tables 1 and 2 and Figure 4 of Li et al., and beyond them: tests, dialogue styles, context sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from common import metrics, plots
from common.comparison import paired_test_cells
from common.encoders import short_name
from common.li.training import FROZEN, PHASES, TUNED
from common.panels import confusion_maps
from common.results import Cell, paper_figures, prediction_rows

PAPER = paper_figures(Path(__file__).with_name("paper.csv"))  # rows of Table 1: "<system> <phase>"
TABLE_2_SYSTEMS = (("LF", FROZEN), ("MMT", FROZEN), ("MMT", TUNED))  # whose figures may stand there
COLUMNS = {"WA": metrics.accuracy, "UA": metrics.unweighted_recall}
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
        note += f" {max(cuts):,} neighbours lie across the border of a test part and are not used."
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
        cells += scores.cells(row, COLUMNS | F1, predictions, paper=paper)
    note = f"Means over folds, as in the paper. A audio, T text. {note_of(scores)}"
    run.table("li_table_1", "Table 1. Unimodal and multimodal systems", cells, note)


def table_2(scores, run):
    """Table 2: the last session and all folds beside published systems."""
    cells, rows = [], rows_of(scores)
    for setting, turns in (("Session 5", scores.tested[-1]), ("5-fold CV", scores.scored)):
        printed = [key for key in PAPER if key[0] == "2" and key[1][0] == "[" and key[1].endswith(setting)]
        cells += [Cell(row, column, paper=PAPER["2", row, column]) for _, row, column in printed]
        for system, phase in (key for key in TABLE_2_SYSTEMS if key in rows):
            paper = {column: PAPER["2", f"ours {phase}, {setting}", column] for column in COLUMNS}
            row = f"ours, {name_of(scores, system, phase)}, {setting}"
            ours = scores.cells(row, COLUMNS, rows[system, phase], turns, paper)
            if len(set(scores.speakers[turns])) < MIN_SPEAKERS:
                ours = [replace(cell, low=None, high=None) for cell in ours]
            cells += ours
    note = (
        "Figures of others as the paper quotes them. It does not name the system of its frozen rows: in five "
        "folds the figures are those of system 15 (LF), in Session 5 they may be of LF or MMT. Session 5: "
        f"the last session; it has too few speakers for an interval. {note_of(scores)}"
    )
    if set(TABLE_2_SYSTEMS) & set(rows):
        run.table("li_table_2", "Table 2. Comparison with published systems, audio and text", cells, note)


def figure_4(scores, run):
    """Figure 4: confusion matrices of the last session, audio, text and multimodal system, by phase."""
    rows, found = scores.tested[-1], rows_of(scores)
    keys = [(system, phase) for phase in PHASES for system in FIGURE_4 if (system, phase) in found]
    if not keys:
        return
    y, n_classes = scores.y[rows], len(scores.classes)
    panels = {name_of(scores, *key): metrics.confusion(y, found[key][0, rows], n_classes) for key in keys}
    caption = (
        f"Figure 4. Confusion matrices on the test turns of {scores.folds[-1].name} ({scores.corpus}), "
        f"n = {len(rows):,}, seed {scores.seeds[0]}; {run.protocol}. The paper shows systems 4, 8, 18 and 7, "
        "of Session 5; colour and second line: share of the true class."
    )
    fig = confusion_maps(panels, scores.classes, len({system for system, _ in keys}))
    plots.save(fig, run.folder, "li_fig_4_confusion", caption)


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
        return
    for (system, phase), predictions in rows_of(scores).items():
        for kind in kinds:
            columns = {f"{kind} {column}": metric for column, metric in COLUMNS.items()}
            turns = np.flatnonzero(styles == kind)
            cells += scores.cells(name_of(scores, system, phase), columns, predictions, turns)
    note = (
        "Not in the paper. IEMOCAP's scripts are played in every session, so that a text system has met the "
        "words of scripted test turns, or nearly, in training; their figures say less about new speech. "
        f"{note_of(scores)}"
    )
    run.table("li_table_styles", "Improvised and scripted dialogues apart", cells, note)


def context_table(scores, run, systems, sizes, how):
    """How much context on which side is worth; how: what differs from Table 1's trainings."""
    cells = []
    for system in systems:
        found, rows = {size: scores.predicted[system, FROZEN, size] for size in sizes}, {}
        for size, predictions in found.items():
            past_only = " (past only)" if size[0] and not size[1] else ""
            rows[size] = f"{system}: {context_text(size)}{past_only}"
            cells += scores.cells(rows[size], COLUMNS | F1, predictions)
        more = {rows[size]: (found[size], found[0, 0]) for size in sizes if (0, 0) in found and any(size)}
        if more:
            cells += paired_test_cells("gain in WA", *scores.pairs(more))[0]
    note = (
        "Not in the paper, which takes 4 before and 4 after; frozen. Rows without utterances after are what "
        "a live system could have. Gain: over the same system without context; Holm: over the rows of a "
        f"system. {how}{note_of(scores, sizes)}"
    )
    run.table("li_table_context", "Context sizes", cells, note)


def named_predictions(scores, contexts):
    """Rows of li_predictions.csv; contexts: the Scores of the trainings for context sizes, or None."""
    for part, what in ((scores, ""), (contexts, " (context sizes)")):
        if part:
            named = {
                f"{system} {phase}, context {before}+{after}{what}": labels
                for (system, phase, (before, after)), labels in part.predicted.items()
            }
            yield from prediction_rows(part.turns, part.classes, part.runs(), named)
