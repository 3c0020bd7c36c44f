"""Tables and Figure 4 of Li et al., from the predictions that common/li/fusion.py collected in its Study.

In the paper's shape with its numbers beside ours: Tables 1 and 2, Figure 4. Beyond it: paired tests of the multimodal
Transformer, context sizes, improvised and scripted dialogues apart.
"""

import numpy as np

from common import metrics, plots
from common.encoders import short_name
from common.li.model import BRANCHES, PHASES, modalities_of
from common.manifest import corpus_name
from common.results import Cell, paired_test_cells

# The paper's own numbers in %, as printed: (WA, UA). In Table 1 frozen comes first in each pair.
PAPER_TABLE_1 = {
    "WavLM+FC": {"frozen": (66.15, 65.35), "fine-tuned": (66.70, 66.71)},
    "WavLM+TE": {"frozen": (63.51, 64.67), "fine-tuned": (67.99, 68.24)},
    "BERT+FC": {"frozen": (74.33, 76.57), "fine-tuned": (77.67, 78.76)},
    "BERT+TE": {"frozen": (74.55, 76.41), "fine-tuned": (76.09, 76.57)},
    "CMT(A→T)": {"frozen": (67.76, 69.37), "fine-tuned": (68.07, 67.93)},
    "CMT(T→A)": {"frozen": (74.98, 76.85), "fine-tuned": (77.75, 78.60)},
    "EF": {"frozen": (77.61, 77.85), "fine-tuned": (79.80, 80.65)},
    "LF": {"frozen": (79.91, 81.88), "fine-tuned": (79.91, 81.15)},
    "MMT": {"frozen": (78.58, 80.72), "fine-tuned": (80.36, 81.70)},
}
PAPER_TABLE_2 = {  # test setting: published systems, then the paper's own by phase
    "Session 5": {
        "[23] Wu et al. 2021": (83.08, 83.22),
        "frozen": (78.32, 80.56),
        "fine-tuned": (84.45, 84.39),
    },
    "5-fold CV": {
        "[19] Siriwardhana et al. 2020": (None, 75.46),
        "[20] Makiuchi et al. 2021": (73.5, 73.0),
        "[23] Wu et al. 2021": (77.57, 78.41),
        "frozen": (79.91, 81.88),
        "fine-tuned": (80.36, 81.70),
    },
}
TABLE_2_SYSTEMS = {"frozen": ("LF", "MMT"), "fine-tuned": ("MMT",)}  # whose figures may stand in Table 2
MIN_SPEAKERS = 5  # fewer give no interval of a single session
SINGLES = ("WavLM+FC", "WavLM+TE", "BERT+FC", "BERT+TE")


def write(study, run):
    """The tables and the figure of a run, all but the table of context sizes."""
    table_1(study, run)
    if {"LF", "MMT"} & set(study.systems) and shown_paper(study, True):
        table_2(study, run)
    if "MMT" in study.systems and set(SINGLES) & set(study.systems):
        tests_table(study, run)
    styles_table(study, run)
    confusion_figure(study, run)


def number_of(name, phase):
    """The system's number in Table 1."""
    return 2 * list(BRANCHES).index(name) + PHASES.index(phase) + 1


def letters(name):
    return " + ".join({"audio": "A", "text": "T"}[m] for m in modalities_of(name))


def context_text(window):
    return f"{window[0]} before, {window[1]} after"


def common_note(study, sizes=None):
    """What every table says: models, context, chance; sizes: contexts of its rows, where they differ."""
    majority, uniform = metrics.chance(study.y[study.scored], len(study.manifest.classes))
    models = " and ".join(short_name(u.source) for u in study.utterances.values())
    silent = len(study.utterances["audio"].absent) if "audio" in study.utterances else 0
    cut = max(
        sum(study.n_cut[fold.name, "test", window] for fold in study.folds)
        for window in sizes or [study.window]
    )
    context = "as in each row" if sizes else context_text(study.window)
    return (
        f"{models}; context {context}. WA = accuracy, UA = mean of class recalls; chance "
        f"{100 * majority:.1f} % (majority class), {100 * uniform:.1f} % (1 / C)."
        + f" {silent:,} turns lack audio and are heard as silence." * bool(silent)
        + f" {'Up to ' * bool(sizes)}{cut:,} neighbours lie across the border of a test part and are not used."
        * bool(cut)
    )


def shown_paper(study, number):
    """The paper's figure where the corpus is IEMOCAP or the demo's stand-in: of others it has none."""
    return number if corpus_name(study.manifest.corpus).endswith("iemocap") else None


def table_1(study, run):
    """Table 1: every system, frozen and fine-tuned."""
    cells, window = [], study.window
    for name in study.systems:
        for phase in study.phases:
            row = f"{number_of(name, phase)} {name} {phase}, {letters(name)}"
            predictions = study.predicted[name, phase, window]
            wa, ua = (shown_paper(study, number) for number in PAPER_TABLE_1[name][phase])
            cells += [
                study.cell(row, "WA", metrics.accuracy, predictions, wa),
                study.cell(row, "UA", metrics.unweighted_recall, predictions, ua),
            ]
            if len(study.folds) > 1:
                cells += [
                    study.cell(row, "WA pooled", metrics.accuracy, predictions, runs=study.pooled()),
                    study.cell(row, "UA pooled", metrics.unweighted_recall, predictions, runs=study.pooled()),
                ]
            cells.append(
                study.cell(row, "weighted F1", metrics.weighted_f1, predictions, runs=study.pooled())
            )
    run.table(
        "li_table_1",
        "Table 1. Unimodal and multimodal systems",
        cells,
        "WA and UA: means over folds, as in the paper; pooled: of all test turns together. A audio, T text. "
        + common_note(study),
    )


def table_2(study, run):
    """Table 2: the last session and all folds beside published systems."""
    cells = []
    last = {(seed, fold): part for (seed, fold), part in study.runs().items() if fold == study.folds[-1].name}
    for setting, published in PAPER_TABLE_2.items():
        here = last if setting == "Session 5" else study.runs()
        for system, (wa, ua) in published.items():
            if system not in PHASES:
                cells += [
                    Cell(f"{system}, {setting}", "WA", paper=wa),
                    Cell(f"{system}, {setting}", "UA", paper=ua),
                ]
                continue
            for name in TABLE_2_SYSTEMS[system]:
                predictions = study.predicted.get((name, system, study.window))
                if predictions is not None:
                    row = f"ours, {number_of(name, system)} {name} {system}, {setting}"
                    cells += session_cells(study, row, restrict(predictions, here), here, wa, ua)
    run.table(
        "li_table_2",
        "Table 2. Comparison with published systems, audio and text",
        cells,
        "Figures of others as the paper quotes them. It does not name the system of its frozen rows: in five folds "
        "the figures are those of system 15 (LF), in Session 5 they may be of LF or MMT. Session 5: the last "
        f"session; it has too few speakers for an interval. {common_note(study)}",
    )


def session_cells(study, row, predictions, runs, wa, ua):
    """WA and UA of some runs; no interval where they have fewer than MIN_SPEAKERS speakers."""
    cells = [
        study.cell(row, "WA", metrics.accuracy, predictions, wa, runs),
        study.cell(row, "UA", metrics.unweighted_recall, predictions, ua, runs),
    ]
    turns = np.concatenate([part for _, part in runs.values()])
    if len(set(study.speakers[turns])) < MIN_SPEAKERS:
        for cell in cells:
            cell.low = cell.high = None
    return cells


def restrict(predictions, runs):
    """Predictions (seeds, N) with -1 outside the turns of `runs`."""
    only = np.full_like(predictions, -1)
    for rows, turns in runs.values():
        only[rows, turns] = predictions[rows, turns]
    return only


def best_single(study, phase, window):
    """Predictions (seeds, N) of the single modality with the lowest development loss on each fold; how often which."""
    singles = [name for name in SINGLES if name in study.systems]
    predictions, wins = np.full((len(study.c.SEEDS), len(study.turns)), -1), dict.fromkeys(singles, 0)
    for i in range(len(study.c.SEEDS)):
        for k, tested in enumerate(study.tested):
            best = min(singles, key=lambda name: study.valid_loss[name, phase, window, i, k])
            predictions[i, tested] = study.predicted[best, phase, window][i, tested]
            wins[best] += 1
    return predictions, ", ".join(f"{name} {count}" for name, count in wins.items() if count)


def tests_table(study, run):
    """Beyond the paper: MMT against early fusion, late fusion and the best single modality, in each phase."""
    window, pairs = study.window, {}
    for phase in study.phases:
        ours = study.predicted["MMT", phase, window]
        for rival in (name for name in ("EF", "LF") if name in study.systems):
            pairs[f"MMT against {rival}, {phase}"] = ours, study.predicted[rival, phase, window]
        single, wins = best_single(study, phase, window)
        pairs[f"MMT against the best single modality, {phase} (chosen on development: {wins})"] = ours, single
    rows = study.scored
    cells, note = paired_test_cells(
        "gain in WA",
        {row: (ours[:, rows], theirs[:, rows]) for row, (ours, theirs) in pairs.items()},
        study.y[rows],
        study.speakers[rows],
        study.c.N_RESAMPLES,
    )
    run.table(
        "li_table_tests",
        "The multimodal Transformer against its rivals",
        cells,
        f"Not in the paper. {note} {common_note(study)}",
    )


def styles_table(study, run):
    """Beyond the paper: improvised and scripted dialogues apart."""
    styles = np.array([turn.extra.get("style", "") for turn in study.turns])
    kinds, cells, window = sorted(set(styles[study.scored]) - {""}), [], study.window
    if len(kinds) < 2:
        print("the corpus does not tell improvised from scripted dialogues: no table of styles")
        return
    for name in study.systems:
        for phase in study.phases:
            for kind in kinds:
                rows = np.flatnonzero(styles == kind)
                runs, row = study.runs(rows), f"{number_of(name, phase)} {name} {phase}"
                only = restrict(study.predicted[name, phase, window], runs)
                cells += [
                    study.cell(row, f"{kind} WA", metrics.accuracy, only, runs=runs),
                    study.cell(row, f"{kind} UA", metrics.unweighted_recall, only, runs=runs),
                ]
    counts = ", ".join(f"{kind} {int((styles[study.scored] == kind).sum()):,}" for kind in kinds)
    run.table(
        "li_table_styles",
        "Improvised and scripted dialogues apart",
        cells,
        f"Not in the paper. Turns: {counts}. IEMOCAP's scripts are played in every session, so that a text system "
        "has met the words of scripted test turns, or nearly, in training; their figures say less about new speech. "
        + common_note(study),
    )


def context_table(study, run, names, sizes, phases):
    """Beyond the paper: how much context on which side is worth, past-only included."""
    cells = [cell for phase in phases for name in names for cell in context_rows(study, name, phase, sizes)]
    c = study.c
    trained = (
        f"Trained apart from Table 1: {c.MAX_EPOCHS[0]} epochs at most, seeds {', '.join(map(str, c.SEEDS))}. "
        if study.name == "li_contexts"
        else ""
    )
    run.table(
        "li_table_context",
        "Context sizes",
        cells,
        "Not in the paper, which takes 4 before and 4 after. Rows without utterances after are what a live system "
        "could have. Gain: over the same system without context; by speaker: the two are swapped for whole speakers, "
        f"Holm's correction over the rows of a system. {trained}{common_note(study, sizes)}",
    )


def context_rows(study, name, phase, sizes):
    """WA, UA and weighted F1 of one system by context size, with the gain over no context and its test."""
    found, cells = {window: study.predicted[name, phase, window] for window in sizes}, []
    gains = context_gains(study, found)
    for window, predictions in found.items():
        row = f"{name} {phase}: {context_text(window)}{' (past only)' if window[0] and not window[1] else ''}"
        cells += [
            study.cell(row, "WA", metrics.accuracy, predictions),
            study.cell(row, "UA", metrics.unweighted_recall, predictions),
            study.cell(row, "weighted F1", metrics.weighted_f1, predictions),
        ]
        if window in gains:
            gain, low, high, p = gains[window]
            cells += [
                Cell(row, "gain in WA", [gain], low=low, high=high, n=len(study.scored), unit="points"),
                Cell(row, "by speaker, Holm", [p], n=len(study.scored), unit="", digits=4),
            ]
    return cells


def context_gains(study, found):
    """{size: gain in points over no context, its interval, p by speaker with Holm's correction}."""
    rows, others = study.scored, [window for window in found if sum(window)]
    if (0, 0) not in found or not others:
        return {}
    compare = np.array(
        [
            metrics.compare(
                study.y[rows],
                found[window][:, rows],
                found[0, 0][:, rows],
                study.speakers[rows],
                study.c.N_RESAMPLES,
            )
            for window in others
        ]
    )
    return dict(zip(others, np.column_stack([100 * compare[:, :3], metrics.holm(compare[:, 4])])))


# ---- Figure 4 ------------------------------------------------------------------------------


def confusion_figure(study, run):
    """Figure 4: confusion matrices on the last session of the audio, text and multimodal system, in both phases."""
    window, fold, panels = study.window, study.folds[-1], {}
    rows = study.tested[-1]
    for phase in study.phases:
        for name in (n for n in ("WavLM+TE", "BERT+TE", "MMT") if n in study.systems):
            labels = study.predicted[name, phase, window][0, rows]
            panels[f"{number_of(name, phase)} {name}, {phase}"] = metrics.confusion(
                study.y[rows], labels, len(study.manifest.classes)
            )
    if not panels:
        return
    caption = (
        f"Figure 4. Confusion matrices on the test turns of {fold.name} ({study.manifest.corpus}), n = "
        f"{len(rows):,}, seed {study.c.SEEDS[0]}; {run.protocol}. The paper shows systems 4, 8, 18 and 7, of "
        "Session 5; colour and second line: share of the true class."
    )
    figure = plots.confusion_grid(panels, study.manifest.classes, len(panels) // len(study.phases))
    run.figure(plots.save(figure, run.folder, "li_fig_4_confusion", caption))
