"""Tables 5 to 7 and Figures 8 to 12 of Babaali & Shayaninasab, and what goes beyond them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA

from common import metrics, plots, splits
from common.babaali.features import fill_absent, standardise
from common.comparison import paired_test_cells
from common.panels import confusion_map
from common.results import Cell, paper_figures, score_cell

PAPER = paper_figures(Path(__file__).with_name("paper.csv"))
PAPERS_CLASSIFIERS = ("SVM", "NN", "XGBoost")  # of which Tables 5 and 6 give the average
PUBLISHED = (  # Sec. 4.3
    "[2] Poria et al. 2018, without context",
    "[2] Poria et al. 2018, with context",
)
WITHOUT_FIGURES = "[6] Siriwardhana et al. 2020 (no figure given)"


@dataclass(frozen=True)
class System:
    """One way from stored outputs to a label."""

    level: str  # "early" features, "late" logits, or "out-of-fold" logits
    fusion: str
    classifier: str
    modalities: tuple

    def __str__(self):
        return f"{self.level} {self.fusion} {self.classifier} {'+'.join(self.modalities)}"


class Scores:
    """The predictions of all systems on the labelled turns of a corpus.

    features  StoredFeatures; its manifest, folds and modalities are those of the run
    """

    def __init__(self, features, seeds, n_resamples):
        self.features, self.seeds, self.n_resamples = features, seeds, n_resamples
        self.turns, self.classes = features.manifest.labelled, features.manifest.classes
        self.y = np.array([self.classes.index(turn.label) for turn in self.turns])
        self.speakers = np.array([turn.speaker for turn in self.turns])
        self.parts = [splits.divide(fold, self.turns) for fold in features.folds]
        self.scored = np.sort(np.concatenate([parts.test for parts in self.parts]))
        self.runs = {
            (seed, fold.name): (slice(i, None, len(seeds)), parts.test)
            for i, seed in enumerate(seeds)
            for fold, parts in zip(features.folds, self.parts)
        }
        self.predicted = {}  # System -> (seeds, N) class numbers, -1 where not scored
        self.chosen = {}  # (System, seed number, fold number) -> accuracy on the turns that chose

    def add(self, i, k, outcome):
        """Take in {System: (labels of the test turns, accuracy that chose)} of the i-th seed and fold k."""
        for system, (labels, accuracy) in outcome.items():
            empty = np.full((len(self.seeds), len(self.turns)), -1)
            row = self.predicted.setdefault(system, empty)[i]
            assert (row[self.parts[k].test] == -1).all(), "a turn is in two test sets"
            row[self.parts[k].test] = labels
            self.chosen[system, i, k] = accuracy

    def right(self, system, i, k):
        """Accuracy on the test turns of fold k."""
        rows = self.parts[k].test
        return float(np.mean(self.predicted[system][i, rows] == self.y[rows]))

    def check(self):
        """Every labelled turn is scored exactly once by each system and seed."""
        for system, labels in self.predicted.items():
            assert (labels[:, self.scored] >= 0).all(), f"{system}: a labelled turn was not scored"
        print(
            f"pooled n = {len(self.scored):,}: every labelled turn is scored exactly once by each of "
            f"{len(self.predicted)} systems and {len(self.seeds)} seed(s)"
        )

    def final(self, *modalities):
        """Predictions of the final model, the SVM on concatenated features, of some modalities or all."""
        return self.predicted[System("early", "concatenation", "SVM", modalities or self.features.modalities)]

    def cell(self, row, column, metric, predictions, paper=None, needs=None):
        """One table cell in %, of predictions (seeds, N), or of several below each other: their mean."""
        data = (self.y, predictions, self.speakers, self.runs, self.n_resamples)
        return score_cell(row, column, metric, *data, paper, needs)

    def note(self):
        """What every table says: modalities, gaps, chance."""
        majority, uniform = metrics.chance(self.y[self.scored], len(self.classes))
        gaps = "".join(
            f" {count:,} turns lack {m} and got its training mean."
            for m, count in self.features.missing(self.seeds[0]).items()
            if count
        )
        return (
            f"Modalities: {', '.join(self.features.modalities)}. Chance: {100 * majority:.1f} % (majority "
            f"class), {100 * uniform:.1f} % (1 / C).{gaps}"
        )


def described(scores):
    modalities = scores.features.modalities
    return f"SVM on {'concatenated ' * (len(modalities) > 1)}{' + '.join(modalities)}"


# ---- Tables of the paper -------------------------------------------------------------------


def fusion_tables(scores, run, fusions, classifiers):
    """Tables 5 and 6: fusion by classifier, accuracy; late fusion on out-of-fold logits below."""
    early, late = scores.features.modalities, scores.features.with_logits
    if len(early) > 1:
        note = "The paper's text gives 75.42 % to concatenation with SVM, its Table 5 to the sum."
        fusion_table(scores, run, "5", "early", early, fusions, classifiers, note)
    else:
        print(f"only features of {early[0]}: no Table 5 and no tests of fusion")
    if len(late) > 1:
        fusion_table(scores, run, "6", "late", late, fusions, classifiers, f"Logits of {', '.join(late)}.")
    else:
        print(f"logits of {', '.join(late) or 'no modality'}: late fusion needs two, no Table 6")


def fusion_table(scores, run, number, level, modalities, fusions, classifiers, note):
    kinds = {level: ""} | ({"out-of-fold": ", out of fold"} if scores.features.out_of_fold else {})
    cells = []
    for kind in kinds if level == "late" else [level]:
        for fusion in fusions:
            row = fusion + kinds[kind]
            found = {c: scores.predicted[System(kind, fusion, c, modalities)] for c in classifiers}
            if set(PAPERS_CLASSIFIERS) <= set(found):
                found["average"] = np.concatenate([found[c] for c in PAPERS_CLASSIFIERS])
            for column, predictions in found.items():
                paper = PAPER.get((number, row, column))
                cells.append(scores.cell(row, column, metrics.accuracy, predictions, paper))
    title = f"Table {number}. Results for {level} fusion, accuracy"
    run.table(f"babaali_table_{number}", title, cells, f"{note} {scores.note()}")


def final_model_tables(scores, run):
    """Table 7, precision, recall and F1 of the final model; Section 4.3, published systems beside it."""
    measures = {"Precision": metrics.precision, "Recall": metrics.recall, "F1-score": metrics.f1}
    final, cells = scores.final(), []
    for number, name in enumerate(scores.classes):
        for column, measure in measures.items():
            metric, paper = partial(one_class, measure, number), PAPER.get(("7", name, column))
            cells.append(scores.cell(name, column, metric, final, paper, needs=number))
    for column, measure in measures.items():
        row, metric = "all (weighted by class size)", partial(all_classes, measure)
        cells.append(scores.cell(row, column, metric, final, PAPER["7", "all", column]))
    note = (
        "Means over folds, as the paper's seem to be: its F1 is not the harmonic mean of its precision and "
        f"recall. Its last row has no name; its recall equals the accuracy. {scores.note()}"
    )
    title = f"Table 7. Precision, recall and F1 of {described(scores)}"
    run.table("babaali_table_7", title, cells, note)

    cells = [Cell(name, "accuracy", paper=PAPER["sec4_3", name, "accuracy"]) for name in PUBLISHED]
    cells.append(Cell(WITHOUT_FIGURES, "accuracy"))
    row, paper = f"final model: {described(scores)}", PAPER["sec4_3", "final model", "accuracy"]
    cells.append(scores.cell(row, "accuracy", metrics.accuracy, final, paper))
    title = "Section 4.3. Comparison with published systems"
    run.table(
        "babaali_table_sec4_3", title, cells, f"Figures of others as the paper quotes them. {scores.note()}"
    )


def one_class(measure, number, counts):
    return measure(counts)[..., number]


def all_classes(measure, counts):
    return metrics.weighted(measure(counts), counts)


# ---- Beyond the paper ----------------------------------------------------------------------


def subsets_table(scores, run):
    """Every subset of modalities, from features and from logits, and chance."""
    columns = {"WA": metrics.accuracy, "UA": metrics.unweighted_recall, "weighted F1": metrics.weighted_f1}
    majority = np.bincount(scores.y[scores.scored]).argmax()
    rows = [("chance (majority class)", "early", np.full((len(scores.seeds), len(scores.turns)), majority))]
    rows += [
        ("+".join(system.modalities), system.level, predictions)
        for system, predictions in scores.predicted.items()
        if (system.fusion, system.classifier) == ("concatenation", "SVM") and system.level != "out-of-fold"
    ]
    rows.sort(key=lambda row: (row[1], row[0].count("+")))
    cells = [
        scores.cell(name, f"{level} {column}", metric, predictions)
        for name, level, predictions in rows
        for column, metric in columns.items()
    ]
    note = f"Not in the paper. WA = accuracy, UA = mean of class recalls. {scores.note()}"
    title = "Every subset of modalities: SVM on features (early) or logits"
    run.table("babaali_table_subsets", title, cells, note)


def best_single(scores):
    """Predictions (seeds, N) of the single modality that was best on each fold's own validation turns."""
    singles = [System("early", "concatenation", "SVM", (m,)) for m in scores.features.modalities]
    predictions, wins = np.full_like(scores.final(), -1), dict.fromkeys(scores.features.modalities, 0)
    for i in range(len(scores.seeds)):
        for k, parts in enumerate(scores.parts):
            best = max(singles, key=lambda s: scores.chosen[s, i, k])
            predictions[i, parts.test] = scores.predicted[best][i, parts.test]
            wins[best.modalities[0]] += 1
    return predictions, ", ".join(f"{m} {count}" for m, count in wins.items() if count)


def tests_table(scores, run):
    """Is the final model better than single modalities and late fusion, by how much, and is it chance?"""
    if len(scores.features.modalities) < 2:
        return
    predictions, wins = best_single(scores)
    rivals = {f"best single modality, chosen on validation ({wins})": predictions}
    rivals |= {f"{m} alone": scores.final(m) for m in scores.features.modalities}
    late = System("late", "concatenation", "SVM", scores.features.with_logits)
    if len(late.modalities) > 1:
        rivals["late fusion, concatenation, SVM"] = scores.predicted[late]
    rows, ours = scores.scored, scores.final()
    pairs = {name: (ours[:, rows], rival[:, rows]) for name, rival in rivals.items()}
    data = (scores.y[rows], scores.speakers[rows], scores.n_resamples)
    cells, note = paired_test_cells("gain of the final model", pairs, *data)
    title = "The final model against single modalities and late fusion"
    run.table("babaali_table_tests", title, cells, f"Not in the paper. {note}")


# ---- Figures -------------------------------------------------------------------------------

# view -> (number of its figure in the paper, word in the file's name)
FIGURES = {"text": (8, "text"), "audio": (9, "speech"), "video": (10, "video"), "fused": (11, "fused")}


def figures(scores, run):
    """Figures 8 to 11, test turns of one fold in the plane of their training turns' PCA; Figure 12."""
    fold, parts, corpus = scores.features.folds[0], scores.parts[0], scores.features.manifest.corpus
    views = scores.features.read(scores.seeds[0], 0)["early"]
    views = {m: fill_absent(x, parts.fit) for m, x in views.items()}
    if len(views) > 1:
        views["fused"] = np.concatenate(list(views.values()), axis=1)
    for name, x in views.items():
        z = standardise(x, parts.refit)
        plane = PCA(2, random_state=0).fit(z[parts.refit])
        share = 100 * plane.explained_variance_ratio_
        fig = plots.scatter(
            plane.transform(z[parts.test]),
            [scores.turns[i].label for i in parts.test],
            scores.classes,
            f"component 1 ({share[0]:.0f} % of the variance)",
            f"component 2 ({share[1]:.0f} %)",
        )
        number, word = FIGURES.get(name, (8, name))
        caption = (
            f"Figure {number}. {word.capitalize()} representations of the test turns of {fold.name} "
            f"({corpus}), n = {len(parts.test):,}, seed {scores.seeds[0]}; PCA fitted on the standardised "
            f"vectors ({x.shape[1]} wide) of the other turns."
        )
        run.figure(plots.save(fig, run.folder, f"babaali_fig_{number}_{word}", caption))
    rows, labels = scores.scored, scores.final()[0]
    counts = metrics.confusion(scores.y[rows], labels[rows], len(scores.classes))
    caption = (
        f"Figure 12. Confusion matrix of {described(scores)}; {corpus}; {run.protocol}. Test turns of all "
        f"folds pooled, n = {len(rows):,}, seed {scores.seeds[0]}."
    )
    fig = confusion_map(counts, scores.classes)
    run.figure(plots.save(fig, run.folder, "babaali_fig_12_confusion", caption))
