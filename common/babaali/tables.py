"""Tables 5 to 7 and Figures 8 to 12 of Babaali & Shayaninasab, and what goes beyond them."""

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.decomposition import PCA

from common import metrics, plots
from common.babaali.features import divide, fill_absent, standardise
from common.comparison import paired_test_cells
from common.panels import confusion_maps
from common.results import Cell, paper_figures, score_cell

PAPER = paper_figures(Path(__file__).with_name("paper.csv"))
BINS = 10  # of confidence
MEASURES = {"accuracy": metrics.accuracy, "mean recall": metrics.unweighted_recall}
PAPERS_CLASSIFIERS = ("SVM", "NN", "XGBoost")  # of which Tables 5 and 6 give the average


@dataclass(frozen=True)
class System:
    """One way from stored outputs to a label."""

    level: str  # "early" features, "late" logits, or "out-of-fold" logits
    fusion: str
    classifier: str
    modalities: tuple

    def __str__(self):
        return f"{self.level} {self.fusion} {self.classifier} {'+'.join(self.modalities)}"


def list_systems(features, fusions, classifiers):
    """All systems, each once: fusions x classifiers, and the SVM on every subset of modalities."""
    systems, levels = [], {"early": features.modalities, "late": features.with_logits}
    if features.out_of_fold:
        levels["out-of-fold"] = features.with_logits
    for level, modalities in levels.items():
        if len(modalities) > 1:
            systems += [System(level, fusion, name, modalities) for fusion in fusions for name in classifiers]
        for size in range(1, len(modalities) + 1) if level != "out-of-fold" else ():
            subsets = combinations(modalities, size)
            systems += [System(level, "concatenation", "SVM", some) for some in subsets]
    systems += [final_model(m, f"early {noise}") for noise in features.noises for m in heard(features)]
    return list(dict.fromkeys(systems))


def heard(features):
    """The modalities of the models that are tried in noise: the sound alone, and all."""
    return dict.fromkeys((("audio",), features.modalities))


def final_model(modalities, level="early"):
    """The paper's: the SVM on concatenated features of some modalities or all; "late": on their logits.

    "early audio_20dB": on features of test turns whose sound is that of this store.
    """
    return System(level, "concatenation", "SVM", tuple(modalities))


def baseline(name):
    """The linear SVM on the vectors of one of BASELINES."""
    return System("baseline", "", "linear SVM", (name,))


def final(scores, *modalities):
    """Predictions (seeds, N) of the final model."""
    return scores.predicted[final_model(modalities or scores.source.modalities)]


def note_of(scores):
    """What every table says: modalities, gaps, chance."""
    early = scores.source.read(scores.seeds[0], 0)["early"]
    absent = {m: int(np.isnan(x[:, 0]).sum()) for m, x in early.items()}
    gaps = [f" {n:,} turns lack {m} and got its training mean." for m, n in absent.items() if n]
    return f"Modalities: {', '.join(early)}. {scores.chance()}{''.join(gaps)}"


def described(scores):
    modalities = scores.source.modalities
    return f"SVM on {'concatenated ' * (len(modalities) > 1)}{' + '.join(modalities)}"


def write(scores, run, fusions, classifiers, probabilities, beyond_paper):
    """All tables and figures; probabilities (seeds, N, C) of the final model."""
    fusion_tables(scores, run, fusions, classifiers)
    final_model_tables(scores, run)
    figures(scores, run)
    if beyond_paper:
        subsets_table(scores, run)
        tests_table(scores, run)
        groups_table(scores, run)
        calibration(scores, run, probabilities)
        noise_table(scores, run)


# ---- Tables of the paper -------------------------------------------------------------------


def fusion_tables(scores, run, fusions, classifiers):
    """Table 5, early fusion by classifier, accuracy; Table 6, late fusion, on out-of-fold logits too."""
    early, late = scores.source.modalities, scores.source.with_logits
    note = "The paper's text gives 75.42 % to concatenation with SVM, its Table 5 to the sum."
    fusion_table(scores, run, "5", {"early": ""}, early, fusions, classifiers, note)
    levels = {"late": ""} | ({"out-of-fold": ", out of fold"} if scores.source.out_of_fold else {})
    fusion_table(scores, run, "6", levels, late, fusions, classifiers, f"Logits of {', '.join(late)}.")


def fusion_table(scores, run, number, levels, modalities, fusions, classifiers, note):
    """A table of fusion by classifier; levels: {level of System: what the names of its rows end with}."""
    if len(modalities) < 2:
        print(f"no Table {number}: it needs two modalities, there is {', '.join(modalities) or 'none'}")
        return
    cells = []
    for level, fusion in ((level, fusion) for level in levels for fusion in fusions):
        found = {c: scores.predicted[System(level, fusion, c, modalities)] for c in classifiers}
        if set(PAPERS_CLASSIFIERS) <= set(found):
            found["average"] = np.concatenate([found[c] for c in PAPERS_CLASSIFIERS])
        row = fusion + levels[level]
        for column, predictions in found.items():
            paper = {column: PAPER.get((number, row, column))}
            cells += scores.cells(row, {column: metrics.accuracy}, predictions, paper=paper)
    title = f"Table {number}. Results for {next(iter(levels))} fusion, accuracy"
    run.table(f"babaali_table_{number}", title, cells, f"{note} {note_of(scores)}")


def final_model_tables(scores, run):
    """Table 7, precision, recall and F1 of the final model; Section 4.3, published systems beside it."""
    measures = {"Precision": metrics.precision, "Recall": metrics.recall, "F1-score": metrics.f1}
    data, cells = scores.data(final(scores)), []
    for number, name in enumerate(scores.classes):
        for column, measure in measures.items():
            metric, paper = partial(of_class, measure, number), PAPER.get(("7", name, column))
            cells.append(score_cell(name, column, metric, *data, paper, needs=number))
    overall = {column: partial(of_class, measure, None) for column, measure in measures.items()}
    paper = {column: PAPER["7", "all", column] for column in measures}
    cells += scores.cells("all (weighted by class size)", overall, final(scores), paper=paper)
    note = (
        "Means over folds, as the paper's seem to be: its F1 is not the harmonic mean of its precision and "
        f"recall. Its last row has no name; its recall equals the accuracy. {note_of(scores)}"
    )
    run.table("babaali_table_7", f"Table 7. Precision, recall and F1 of {described(scores)}", cells, note)
    if run.incomparable:
        return
    others = [key for key in PAPER if key[0] == "sec4_3" and key[1] != "final model"]
    cells = [Cell(row, column, paper=PAPER[table, row, column]) for table, row, column in others]
    row, paper = f"final model: {described(scores)}", {"accuracy": PAPER["sec4_3", "final model", "accuracy"]}
    cells += scores.cells(row, {"accuracy": metrics.accuracy}, final(scores), paper=paper)
    note = f"Figures of others as the paper quotes them; of [6] it gives none. {note_of(scores)}"
    run.table("babaali_table_sec4_3", "Section 4.3. Comparison with published systems", cells, note)


def of_class(measure, number, counts):
    """A measure of one class, or (None) of all, weighted by how often each occurs."""
    scores = measure(counts)
    return metrics.weighted(scores, counts) if number is None else scores[..., number]


# ---- Beyond the paper ----------------------------------------------------------------------


def subsets_table(scores, run):
    """Every subset of modalities, from features and from logits, and chance."""
    columns = {"WA": metrics.accuracy, "UA": metrics.unweighted_recall, "weighted F1": metrics.weighted_f1}
    majority = np.bincount(scores.y[scores.scored]).argmax()
    rows = [("chance (majority class)", "early", np.full((len(scores.seeds), len(scores.turns)), majority))]
    for system, predictions in scores.predicted.items():
        name = "+".join(system.modalities)
        if system.level == "baseline":
            rows.append((f"{name}, {system.classifier}", "early", predictions))
        elif system in (final_model(system.modalities, level) for level in ("early", "late")):
            rows.append((name, system.level, predictions))
    cells = []
    for name, level, predictions in sorted(rows, key=lambda row: (row[1], row[0].count("+"))):
        by_level = {f"{level} {column}": metric for column, metric in columns.items()}
        cells += scores.cells(name, by_level, predictions)
    note = f"Not in the paper. WA = accuracy, UA = mean of class recalls. {note_of(scores)}"
    title = "Every subset of modalities: SVM on features (early) or logits"
    run.table("babaali_table_subsets", title, cells, note)


def tests_table(scores, run):
    """Is the final model better than single modalities and late fusion, by how much, and is it chance?"""
    modalities = scores.source.modalities
    found = scores.predicted.items()
    rivals = {f"{s.modalities[0]}, {s.classifier}": rival for s, rival in found if s.level == "baseline"}
    if len(modalities) > 1:
        single, wins = scores.best([final_model((m,)) for m in modalities])
        wins = ", ".join(f"{system.modalities[0]} {count}" for system, count in wins.items())
        rivals[f"best single modality, chosen on validation ({wins})"] = single
        rivals |= {f"{m} alone": final(scores, m) for m in modalities}
    late = final_model(scores.source.with_logits, "late")
    if len(late.modalities) > 1:
        rivals["late fusion, concatenation, SVM"] = scores.predicted[late]
    if not rivals:
        return
    pairs = {name: (final(scores), rival) for name, rival in rivals.items()}
    cells, note = paired_test_cells("gain of the final model", *scores.pairs(pairs))
    title = "The final model against single modalities and late fusion"
    run.table("babaali_table_tests", title, cells, f"Not in the paper. {note}")


def groups_table(scores, run):
    """The final model by gender, where it is known, and by speaker."""
    cells = []
    for kind, attribute in (("", "gender"), ("speaker ", "speaker")):
        values = np.array([getattr(turn, attribute) for turn in scores.turns])
        for name in sorted(set(values[scores.scored]) - {""}):
            cells += scores.cells(kind + name, MEASURES, final(scores), np.flatnonzero(values == name))
    title = f"{described(scores)} by gender and speaker"
    run.table("babaali_table_groups", title, cells, "Not in the paper. One speaker has no interval.")


def calibration(scores, run, probabilities):
    """Are probabilities right as often as they say? Expected calibration error in BINS bins, and a figure.

    probabilities  (seeds, N, C) of the final model; those of single modalities are the softmax of 02's logits
    """
    systems = {f"{described(scores)}, temperature": probabilities}
    for i, k in np.ndindex(len(scores.seeds), len(scores.folds)):
        for m, logits in scores.source.read(scores.seeds[i], k)["late"].items():
            if logits.shape[1] == probabilities.shape[2]:  # a user's may be of other classes
                p = systems.setdefault(f"{m}, softmax", np.full_like(probabilities, np.nan))
                p[i, scores.tested[k]] = softmax(logits[scores.tested[k]], axis=1)
    cells, (fig, axes) = [], plots.plt.subplots()
    axes.plot([0, 100], [0, 100], color="black", linestyle=":", linewidth=1, label="calibrated")
    for (name, p), colour, marker in zip(systems.items(), plots.OKABE_ITO, plots.MARKERS):
        found = [reliability(x[~np.isnan(x[:, 0])], scores.y[~np.isnan(x[:, 0])]) for x in p]
        columns = "accuracy", "mean confidence", "calibration error"
        cells += [Cell(name, c, [100 * seed[j] for seed in found]) for j, c in enumerate(columns)]
        axes.plot(*(100 * found[0][3]), color=colour, marker=marker, label=name)
    axes.set(xlabel="confidence (%)", ylabel="accuracy (%)")
    fig.legend(loc="outside upper center", ncols=2)
    note = f"Not in the paper. Error: mean |accuracy - confidence| over {BINS} bins, weighted by their turns."
    left_out = [m for m in scores.source.with_logits if f"{m}, softmax" not in systems]
    note += f" Logits of {', '.join(left_out)} are of other classes." * bool(left_out)
    run.table("babaali_table_calibration", "Calibration of probabilities", cells, note)
    caption = f"Reliability of probabilities; {scores.corpus}; {run.protocol}; seed {scores.seeds[0]}. {note}"
    plots.save(fig, run.folder, "babaali_fig_calibration", caption)


def reliability(p, y):
    """(accuracy, mean confidence, expected calibration error, (2, bins): confidence and accuracy of each)."""
    confidence, right = p.max(1), p.argmax(1) == y
    member = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = np.array([np.bincount(member, x, BINS) for x in (np.ones(len(y)), confidence, right)])
    n, confident, correct = sums[:, sums[0] > 0]
    error = np.abs(correct - confident).sum() / len(y)
    return right.mean(), confidence.mean(), error, np.stack([confident / n, correct / n])


def noise_table(scores, run):
    """Accuracy where white noise was added to the sound of the test turns alone, by ratio."""
    noises, cells = sorted(scores.source.noises, key=lambda name: -float(name[6:-2])), []
    for noise in (*noises, "") if noises else ():
        for modalities in heard(scores.source):
            row = f"{noise[6:-2]} dB" if noise else "no noise added"
            system = final_model(modalities, f"early {noise}".strip())
            cells += scores.cells(row, {"+".join(modalities): metrics.accuracy}, scores.predicted[system])
    if not cells:
        return
    note = "Not in the paper. Trained without noise; the signal-to-noise ratio is that of each turn."
    run.table("babaali_table_noise", "Accuracy of the SVM in white noise", cells, note)


# ---- Figures -------------------------------------------------------------------------------

# view -> (number of its figure in the paper, word in the file's name)
FIGURES = {"text": (8, "text"), "audio": (9, "speech"), "video": (10, "video"), "fused": (11, "fused")}


def scatter(points, labels, classes, xlabel, ylabel):
    """Points (N, 2) coloured and marked by their label; `labels` holds names out of `classes`."""
    fig, axes = plots.plt.subplots()
    labels = np.asarray(labels)
    look = {"s": 16, "alpha": 0.75, "linewidths": 0.3, "edgecolors": "black"}
    for name, (colour, marker) in plots.class_style(classes).items():
        chosen = labels == name
        label = f"{name} ({chosen.sum():,})"
        axes.scatter(*points[chosen].T, c=colour, marker=marker, label=label, **look)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend()
    return fig


def figures(scores, run):
    """Figures 8 to 11, test turns of one fold in the plane of their training turns' PCA; Figure 12."""
    fold, parts = scores.folds[0], divide(scores.folds[0], scores.turns)
    views = scores.source.read(scores.seeds[0], 0)["early"]
    views = {m: fill_absent(x, parts.fit) for m, x in views.items()}
    if len(views) > 1:
        views["fused"] = np.concatenate(list(views.values()), axis=1)
    for name, x in views.items():
        z = standardise(x, parts.refit)
        plane = PCA(2, random_state=0).fit(z[parts.refit])
        share = 100 * plane.explained_variance_ratio_
        names = f"component 1 ({share[0]:.0f} % of the variance)", f"component 2 ({share[1]:.0f} %)"
        labels = [scores.turns[i].label for i in parts.test]
        fig = scatter(plane.transform(z[parts.test]), labels, scores.classes, *names)
        number, word = FIGURES.get(name, (8, name))
        caption = (
            f"Figure {number}. {word.capitalize()} representations of the test turns of {fold.name} "
            f"({scores.corpus}), n = {len(parts.test):,}, seed {scores.seeds[0]}; PCA fitted on the "
            f"standardised vectors ({x.shape[1]} wide) of the other turns."
        )
        plots.save(fig, run.folder, f"babaali_fig_{number}_{word}", caption)
    rows = scores.scored
    counts = metrics.confusion(scores.y[rows], final(scores)[0, rows], len(scores.classes))
    caption = (
        f"Figure 12. Confusion matrix of {described(scores)}; {scores.corpus}; {run.protocol}. Test turns of "
        f"all folds pooled, n = {len(rows):,}, seed {scores.seeds[0]}."
    )
    plots.save(confusion_maps({"": counts}, scores.classes), run.folder, "babaali_fig_12_confusion", caption)
