"""Text, speech and video fused by classical classifiers: the second half of the first paper, run by 04.

Paper: B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using
Pretrained Transformers", Sections 3.3, 3.4, 4.2 and 4.3.
The representations (early fusion) and logits (late fusion) that 03 stored for every fold are concatenated,
summed or multiplied and classified by an SVM, a two-layer network and XGBoost: Tables 5-7, Figures 8-12.

Reads <FEATURES_ROOT>/<modality>/[seed<k>/][<fold>/]{index.csv, features.npy[, logits.npy]}; folders in
brackets may be absent: the same features then serve all seeds or all folds.
Writes results/04_fuse_classify/<corpus>/: babaali_table_5, 6, 7 and sec4_3 (as in the paper), subsets and
tests (beyond it), babaali_fig_8_text, 9_speech, 10_video, 11_fused, 12_confusion, predictions.csv,
metrics.json, log.jsonl.

Throughout, `c` holds the constants of 04_fuse_classify.py (c.SVM_C, c.SEEDS, ...), command line applied.

DEVIATIONS
1. The paper does not say how it set its classifiers. Here C, the network's epochs and XGBoost's rounds are
   chosen on the fold's validation speakers, then the classifier is fitted again on training and validation
   turns. Where SELECT_ON = "test" leaves no such speakers, every fourth training speaker is set aside.
2. Vectors are fused as they are; the fused ones are standardised by the turns that fit the classifier.
3. Kernel, C, network and XGBoost settings are not in the paper; they are constants of 04.
4. Late fusion takes logits ("the classification results from the last layer"). An encoder is more certain of
   its own training turns than of new speakers; OUT_OF_FOLD adds, beside the paper's way, classifiers fitted
   on logits of encoders that saw neither the turn's session nor the test session (ten per modality).
5. A turn that a modality lacks gets that modality's training mean and is counted below the tables, so that
   every labelled turn is scored. The paper does not mention any.
"""

import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import xgboost
from sklearn.decomposition import PCA
from sklearn.svm import SVC

from common import metrics, plots, splits
from common.babaali.features import (
    check_store,
    fill_absent,
    find_modalities,
    find_store,
    read_rows,
    standardise,
)
from common.errors import UserError
from common.results import Cell, paired_test_cells, prediction_rows, score_cell, start_run

# ---- The paper's own numbers in %, as printed; the rows of multiplication have lost theirs ----
PAPER_TABLE_5 = {
    "concatenation": {"SVM": 75.451, "NN": 75.31, "XGBoost": 73.28, "average": 74.68},
    "sum": {"SVM": 75.42, "NN": 75.16, "XGBoost": 73.95, "average": 74.84},
    "product": {},
}
PAPER_TABLE_6 = {
    "concatenation": {"SVM": 73.97, "NN": 74.36, "XGBoost": 74.45, "average": 74.26},
    "sum": {"SVM": 72.10, "NN": 72.56, "XGBoost": 72.75, "average": 72.47},
    "product": {},
}
PAPER_TABLE_7 = {
    "angry": (79.52, 85.66, 82.33),
    "happy": (77.75, 75.72, 76.46),
    "neutral": (70.19, 69.41, 69.27),
    "sad": (78.41, 74.35, 75.69),
    "all": (76.10, 75.42, 75.35),
}
PAPER_SEC_4_3 = {
    "[2] Poria et al. 2018, without context": 71.59,
    "[2] Poria et al. 2018, with context": 76.1,
    "[6] Siriwardhana et al. 2020 (no figure given)": None,
    "final model": 75.42,
}


# ---- Data ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """One way from stored outputs to a label."""

    level: str  # "early" features, "late" logits, or "out-of-fold" logits
    fusion: str
    classifier: str
    modalities: tuple

    def __str__(self):
        return f"{self.level} {self.fusion} {self.classifier} {'+'.join(self.modalities)}"


class Study:
    """The constants, labelled turns, folds and modalities of a run, and every system's predictions."""

    def __init__(self, c, manifest, folds):
        self.c, self.manifest, self.folds, self.turns = c, manifest, folds, manifest.labelled
        self.y = np.array([manifest.classes.index(turn.label) for turn in self.turns])
        self.speakers = np.array([turn.speaker for turn in self.turns])
        self.parts = [splits.divide(fold, self.turns) for fold in folds]
        self.scored = np.sort(np.concatenate([parts.test for parts in self.parts]))
        self.runs = {
            (seed, fold.name): (slice(i, None, len(c.SEEDS)), parts.test)
            for i, seed in enumerate(c.SEEDS)
            for fold, parts in zip(folds, self.parts)
        }
        self.root = Path(c.FEATURES_ROOT or Path(c.DATA_ROOT) / "features" / manifest.corpus)
        self.modalities = find_modalities(self.root, c.MODALITIES)
        self.with_logits = tuple(m for m in self.modalities if any((self.root / m).rglob("logits.npy")))
        self.out_of_fold = c.OUT_OF_FOLD and len(folds) > 1 and len(self.with_logits) > 1
        self.predicted = {}  # System -> (seeds, N) class numbers, -1 where not scored
        self.chosen = {}  # (System, seed number, fold number) -> accuracy on the turns that chose
        self.missing = {}  # modality -> labelled turns that it lacks

    def early_svm(self, *modalities):
        """The paper's final model, on some of the modalities or all."""
        return System("early", "concatenation", "SVM", modalities or self.modalities)


def read_fold(study, seed, k):
    """What fold k knows: {level: {modality: (N, D)}}, absent turns filled with the training mean."""
    protocol = {"select_on": study.c.SELECT_ON, "validate_on": study.c.VALIDATE_ON}
    data = {"early": {}, "late": {}, "out-of-fold": {}}
    for m in study.modalities:
        store = find_store(study.root, m, seed, study.folds[k].name)
        check_store(store, study.manifest, splits.speakers_of(study.folds[k].test), protocol)
        data["early"][m] = read_rows(store, "features", study.turns)
        study.missing[m] = int(np.isnan(data["early"][m][:, 0]).sum())
        if m in study.with_logits:
            data["late"][m] = read_rows(store, "logits", study.turns)
            if study.out_of_fold:
                data["out-of-fold"][m] = out_of_fold_logits(study, m, seed, k, data["late"][m])
    return {
        level: {m: fill_absent(array, study.parts[k].fit) for m, array in arrays.items()}
        for level, arrays in data.items()
    }


def out_of_fold_logits(study, modality, seed, k, logits):
    """Logits (N, C) of which no turn's encoder saw the turn's group or test group k.

    Turns of group j get those of the encoder that left out groups j and k; test turns keep the fold's own.
    """
    mixed = logits.copy()
    for j, other in enumerate(study.folds):
        if j != k:
            store = find_store(study.root, modality, seed, f"out_{min(j, k) + 1}_{max(j, k) + 1}")
            check_store(store, study.manifest, splits.speakers_of(other.test + study.folds[k].test), {})
            mixed[study.parts[j].test] = read_rows(store, "logits", study.turns)[study.parts[j].test]
    return mixed


# ---- Fusion (Section 3.3) ------------------------------------------------------------------


def fuse(arrays, fusion):
    """Join the modalities' vectors: {modality: (N, D_m)} -> (N, sum of D_m); sum and product: (N, D)."""
    stack = list(arrays.values())
    if fusion == "concatenation":
        return np.concatenate(stack, axis=1)
    widths = {m: a.shape[1] for m, a in arrays.items()}
    if len(set(widths.values())) > 1:
        raise UserError(
            f"FUSIONS={fusion}: needs vectors of equal width, but they are "
            + ", ".join(f"{m} {width}" for m, width in widths.items())
            + "; set FUSIONS=concatenation, or extract features of equal width"
        )
    return np.sum(stack, axis=0) if fusion == "sum" else np.prod(stack, axis=0)


# ---- Classifiers (Section 3.4) -------------------------------------------------------------
# Each takes x (N, D), y (N,) and returns (class of every test turn, accuracy on the turns that chose).


def svm(x, y, parts, n_classes, seed, c):
    """Support vector machine, its C chosen among SVM_C."""
    z = standardise(x, parts.fit)
    inner = kernel(z[parts.fit], z[parts.fit], c.SVM_KERNEL)
    outer = kernel(z[parts.choose], z[parts.fit], c.SVM_KERNEL)
    scores = []
    for penalty in c.SVM_C:
        machine = SVC(C=penalty, kernel="precomputed").fit(inner, y[parts.fit])
        scores.append(np.mean(machine.predict(outer) == y[parts.choose]))
    z = standardise(x, parts.refit)
    machine = SVC(C=c.SVM_C[int(np.argmax(scores))], kernel="precomputed")
    machine.fit(kernel(z[parts.refit], z[parts.refit], c.SVM_KERNEL), y[parts.refit])
    return machine.predict(kernel(z[parts.test], z[parts.refit], c.SVM_KERNEL)), max(scores)


def kernel(a, b, name):
    """Kernel values (A, B) of standardised vectors (A, D) and (B, D), as one matrix product."""
    product = a @ b.T
    if name == "linear":
        return product / a.shape[1]
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * product
    return np.exp(-squared / a.shape[1])


def network(x, y, parts, n_classes, seed, c):
    """Two-layer network, its number of epochs chosen."""
    z = torch.from_numpy(standardise(x, parts.fit)).float()
    target = torch.from_numpy(y)
    losses, accuracies = [], []
    for model in train_network(z[parts.fit], target[parts.fit], n_classes, c.NN_EPOCHS, seed, c):
        with torch.no_grad():
            logits = model(z[parts.choose])
        losses.append(torch.nn.functional.cross_entropy(logits, target[parts.choose]).item())
        accuracies.append((logits.argmax(1) == target[parts.choose]).float().mean().item())
        if len(losses) - np.argmin(losses) > c.NN_PATIENCE:
            break
    epochs = int(np.argmin(losses)) + 1
    z = torch.from_numpy(standardise(x, parts.refit)).float()
    *_, model = train_network(z[parts.refit], target[parts.refit], n_classes, epochs, seed, c)
    with torch.no_grad():
        return model(z[parts.test]).argmax(1).numpy(), accuracies[epochs - 1]


def train_network(z, target, n_classes, epochs, seed, c):
    """Train Linear, ReLU, dropout, Linear; give the model after every epoch, in evaluation mode. z (N, D)"""
    with torch.random.fork_rng(devices=[]):  # dropout and the first weights know no other generator
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            torch.nn.Linear(z.shape[1], c.NN_HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Dropout(c.NN_DROPOUT),
            torch.nn.Linear(c.NN_HIDDEN, n_classes),
        )
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=c.NN_LEARNING_RATE, weight_decay=0.01, fused=True
        )
        for _ in range(epochs):
            model.train()
            for batch in torch.randperm(len(z)).split(c.NN_BATCH):
                loss = torch.nn.functional.cross_entropy(model(z[batch]), target[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            yield model.eval()


def boosted_trees(x, y, parts, n_classes, seed, c):
    """XGBoost, its number of rounds chosen."""
    fit, choose, refit, test = (
        xgboost.DMatrix(x[rows], y[rows], nthread=c.XGB_THREADS)
        for rows in (parts.fit, parts.choose, parts.refit, parts.test)
    )
    options = {
        "objective": "multi:softprob",
        "num_class": n_classes,
        "tree_method": "hist",
        "seed": seed,
        "max_depth": c.XGB_DEPTH,
        "eta": c.XGB_LEARNING_RATE,
        "nthread": c.XGB_THREADS,
        "colsample_bytree": max(c.XGB_COLUMNS, min(1, 16 / x.shape[1])),
    }
    trial = xgboost.train(
        options,
        fit,
        c.XGB_ROUNDS,
        evals=[(choose, "choose")],
        verbose_eval=False,
        early_stopping_rounds=c.XGB_PATIENCE,
    )
    rounds = trial.best_iteration + 1
    chosen = trial.predict(choose, iteration_range=(0, rounds)).argmax(1)
    final = xgboost.train(options, refit, rounds, verbose_eval=False)
    return final.predict(test).argmax(1), np.mean(chosen == y[parts.choose])


CLASSIFY = {"SVM": svm, "NN": network, "XGBoost": boosted_trees}


# ---- Evaluation ----------------------------------------------------------------------------


def list_systems(study):
    """All systems of all tables, each once."""
    systems = []
    for level, modalities in (
        ("early", study.modalities),
        ("late", study.with_logits),
        ("out-of-fold", study.with_logits if study.out_of_fold else ()),
    ):
        if len(modalities) > 1:
            systems += [
                System(level, fusion, name, modalities) for fusion in study.c.FUSIONS for name in CLASSIFY
            ]
        if level != "out-of-fold":
            systems += [System(level, "concatenation", "SVM", subset) for subset in subsets(modalities)]
    return list(dict.fromkeys(systems))


def subsets(modalities):
    """Every non-empty subset, small ones first: 7 for three modalities."""
    return [subset for size in range(1, len(modalities) + 1) for subset in combinations(modalities, size)]


def evaluate(study, results):
    """Fit and test every system on every seed and fold; fills study.predicted and study.chosen."""
    systems, seeds, n_classes = list_systems(study), study.c.SEEDS, len(study.manifest.classes)
    study.predicted = {system: np.full((len(seeds), len(study.turns)), -1) for system in systems}
    for i, seed in enumerate(seeds):
        for k, parts in enumerate(study.parts):
            started, data = time.monotonic(), read_fold(study, seed, k)
            for system in systems:
                x = fuse({m: data[system.level][m] for m in system.modalities}, system.fusion)
                classify = CLASSIFY[system.classifier]
                labels, accuracy = classify(x, study.y, parts, n_classes, seed, study.c)
                assert (study.predicted[system][i, parts.test] == -1).all(), "a turn is in two test sets"
                study.predicted[system][i, parts.test] = labels
                study.chosen[system, i, k] = accuracy
            report_fold(study, results, i, k, time.monotonic() - started)
    for system, labels in study.predicted.items():
        assert (labels[:, study.scored] >= 0).all(), f"{system}: a labelled turn was not scored"
    print(
        f"pooled n = {len(study.scored):,}: every labelled turn is scored exactly once by each of "
        f"{len(systems)} systems and {len(seeds)} seed(s)"
    )


def report_fold(study, results, i, k, seconds):
    """Print and log the accuracies of the single modalities and the final model on one fold."""
    rows, found = study.parts[k].test, {}
    for name, system in [
        *((f"{m} alone", study.early_svm(m)) for m in study.modalities),
        ("final model", study.early_svm()),
    ]:
        found[name] = 100 * float(np.mean(study.predicted[system][i, rows] == study.y[rows]))
    where = {"seed": study.c.SEEDS[i], "fold": study.folds[k].name}
    shown = "  ".join(f"{name} {value:5.1f}" for name, value in found.items())
    print(f"seed {where['seed']} {where['fold']:<6} {shown}   {seconds:.1f} s", flush=True)
    results.log({"event": "fold", **where, "accuracy": found, "seconds": seconds})


def cell(study, row, column, metric, predictions, paper=None, needs=None):
    """One table cell in %; `predictions` lists arrays (seeds, N) whose scores are averaged."""
    return score_cell(
        row,
        column,
        metric,
        study.y,
        np.concatenate(predictions),
        study.speakers,
        study.runs,
        study.c.N_RESAMPLES,
        shown_paper(study, paper),
        needs,
    )


def shown_paper(study, number):
    """The paper's figure where the corpus is IEMOCAP or the demo's stand-in: of others it has none."""
    return number if study.manifest.corpus.endswith("iemocap") else None


# ---- Tables --------------------------------------------------------------------------------


def common_note(study):
    """What every table says: modalities, gaps, chance."""
    majority, uniform = metrics.chance(study.y[study.scored], len(study.manifest.classes))
    gaps = [
        f" {count:,} turns lack {m} and got its training mean." for m, count in study.missing.items() if count
    ]
    return (
        f"Modalities: {', '.join(study.modalities)}. Chance: {100 * majority:.1f} % (majority class), "
        f"{100 * uniform:.1f} % (1 / C)." + "".join(gaps)
    )


def fusion_table(study, results, number, level, modalities, paper, note):
    """Tables 5 and 6: fusion by classifier, accuracy; late fusion on out-of-fold logits beside it."""
    cells = []
    for fusion in study.c.FUSIONS:
        for kind in [level] + ["out-of-fold"] * (level == "late" and study.out_of_fold):
            found = {name: [study.predicted[System(kind, fusion, name, modalities)]] for name in CLASSIFY}
            found["average"] = [array for arrays in found.values() for array in arrays]
            for name, predictions in found.items():
                column = name if kind == level else f"{name}, out of fold"
                cells.append(
                    cell(study, fusion, column, metrics.accuracy, predictions, paper[fusion].get(column))
                )
    results.table(
        f"babaali_table_{number}",
        f"Table {number}. Results for {level} fusion, accuracy",
        cells,
        f"{note} {common_note(study)}",
    )


def per_class_table(study, results):
    """Table 7: precision, recall and F1 of the final model."""
    predictions, cells = [study.predicted[study.early_svm()]], []
    measures = {"Precision": metrics.precision, "Recall": metrics.recall, "F1-score": metrics.f1}
    for number, name in enumerate(study.manifest.classes):
        for i, (column, measure) in enumerate(measures.items()):
            cells.append(
                cell(
                    study,
                    name,
                    column,
                    lambda n, f=measure, k=number: f(n)[..., k],
                    predictions,
                    PAPER_TABLE_7[name][i] if name in PAPER_TABLE_7 else None,
                    needs=number,
                )
            )
    for (column, measure), printed in zip(measures.items(), PAPER_TABLE_7["all"]):
        cells.append(
            cell(
                study,
                "all (weighted by class size)",
                column,
                lambda n, f=measure: metrics.weighted(f(n), n),
                predictions,
                printed,
            )
        )
    results.table(
        "babaali_table_7",
        f"Table 7. Precision, recall and F1 of {described(study)}",
        cells,
        "Means over folds, as the paper's seem to be: its F1 is not the harmonic mean of its "
        "precision and recall. Its last row has no name; its recall equals the accuracy. "
        f"{common_note(study)}",
    )


def described(study):
    return f"SVM on {'concatenated ' * (len(study.modalities) > 1)}{' + '.join(study.modalities)}"


def comparison_table(study, results):
    """Section 4.3: the final model beside the published systems it names."""
    cells = [
        Cell(name, "accuracy", paper=shown_paper(study, number)) for name, number in PAPER_SEC_4_3.items()
    ]
    cells[-1] = cell(
        study,
        f"final model: {described(study)}",
        "accuracy",
        metrics.accuracy,
        [study.predicted[study.early_svm()]],
        PAPER_SEC_4_3["final model"],
    )
    results.table(
        "babaali_table_sec4_3",
        "Section 4.3. Comparison with published systems",
        cells,
        f"Figures of others as the paper quotes them. {common_note(study)}",
    )


def subsets_table(study, results):
    """Beyond the paper: every subset of modalities, and chance."""
    scores = {"WA": metrics.accuracy, "UA": metrics.unweighted_recall, "weighted F1": metrics.weighted_f1}
    majority = np.full((len(study.c.SEEDS), len(study.turns)), np.bincount(study.y[study.scored]).argmax())
    rows = [("chance (majority class)", "early", majority)]
    rows += [
        ("+".join(s.modalities), s.level, predictions)
        for s, predictions in study.predicted.items()
        if (s.fusion, s.classifier) == ("concatenation", "SVM") and s.level != "out-of-fold"
    ]
    order = ["chance (majority class)", *("+".join(subset) for subset in subsets(study.modalities))]
    rows.sort(key=lambda row: (row[1], order.index(row[0])))
    cells = [
        cell(study, name, f"{level} {column}", score, [predictions])
        for name, level, predictions in rows
        for column, score in scores.items()
    ]
    results.table(
        "babaali_table_subsets",
        "Every subset of modalities: SVM on features (early) or logits",
        cells,
        f"Not in the paper. WA = accuracy, UA = mean of class recalls. {common_note(study)}",
    )


def best_single(study):
    """Predictions (seeds, N) of the single modality that was best on each fold's own validation turns."""
    singles = [study.early_svm(m) for m in study.modalities]
    predictions = np.full_like(study.predicted[study.early_svm()], -1)
    wins = dict.fromkeys(study.modalities, 0)
    for i in range(len(study.c.SEEDS)):
        for k, parts in enumerate(study.parts):
            best = max(singles, key=lambda s: study.chosen[s, i, k])
            predictions[i, parts.test] = study.predicted[best][i, parts.test]
            wins[best.modalities[0]] += 1
    return predictions, ", ".join(f"{m} {count}" for m, count in wins.items() if count)


def tests_table(study, results):
    """Beyond the paper: is the final model better than single modalities, by how much, and is it chance?"""
    predictions, wins = best_single(study)
    rivals = {f"best single modality, chosen on validation ({wins})": predictions}
    rivals |= {f"{m} alone": study.predicted[study.early_svm(m)] for m in study.modalities}
    if len(study.with_logits) > 1 and "concatenation" in study.c.FUSIONS:
        rivals["late fusion, concatenation, SVM"] = study.predicted[
            System("late", "concatenation", "SVM", study.with_logits)
        ]
    rows, ours = study.scored, study.predicted[study.early_svm()]
    cells, note = paired_test_cells(
        "gain of the final model",
        {name: (ours[:, rows], rival[:, rows]) for name, rival in rivals.items()},
        study.y[rows],
        study.speakers[rows],
        study.c.N_RESAMPLES,
    )
    results.table(
        "babaali_table_tests",
        "The final model against single modalities and late fusion",
        cells,
        f"Not in the paper. {note}",
    )


# ---- Figures -------------------------------------------------------------------------------

# view -> (number of its figure in the paper, word in the file's name)
FIGURES = {"text": (8, "text"), "audio": (9, "speech"), "video": (10, "video"), "fused": (11, "fused")}


def pca_figures(study, results):
    """Figures 8-11: test turns of one fold in the plane of the training turns' first two components."""
    parts, fold, seed = study.parts[0], study.folds[0], study.c.SEEDS[0]
    arrays = read_fold(study, seed, 0)["early"]
    views = {m: arrays[m] for m in study.modalities}
    if len(views) > 1:
        views["fused"] = fuse(arrays, "concatenation")
    for name, x in views.items():
        z = standardise(x, parts.refit)
        plane = PCA(2, random_state=0).fit(z[parts.refit])
        share = 100 * plane.explained_variance_ratio_
        fig = plots.scatter(
            plane.transform(z[parts.test]),
            [study.turns[i].label for i in parts.test],
            study.manifest.classes,
            f"component 1 ({share[0]:.0f} % of the variance)",
            f"component 2 ({share[1]:.0f} %)",
        )
        number, word = FIGURES.get(name, (8, name))
        caption = (
            f"Figure {number}. {word.capitalize()} representations of the test turns of {fold.name} "
            f"({study.manifest.corpus}), n = {len(parts.test):,}, seed {seed}; PCA fitted on the "
            f"standardised vectors ({x.shape[1]} wide) of the other turns."
        )
        results.figure(plots.save(fig, results.folder, f"babaali_fig_{number}_{word}", caption))


def confusion_figure(study, results):
    """Figure 12: confusion matrix of the final model, all folds pooled, first seed."""
    rows, labels = study.scored, study.predicted[study.early_svm()][0]
    counts = metrics.confusion(study.y[rows], labels[rows], len(study.manifest.classes))
    caption = (
        f"Figure 12. Confusion matrix of {described(study)}; {study.manifest.corpus}; "
        f"{results.protocol}. Test turns of all folds pooled, n = {len(rows):,}, "
        f"seed {study.c.SEEDS[0]}."
    )
    results.figure(
        plots.save(
            plots.confusion_map(counts, study.manifest.classes),
            results.folder,
            "babaali_fig_12_confusion",
            caption,
        )
    )


# ---- Run -----------------------------------------------------------------------------------


def run(c, manifest):
    """Everything 04 does for this paper: evaluate all systems, write all tables and figures.

    c         constants of 04_fuse_classify.py, as attributes
    manifest  the prepared corpus
    Raises UserError for features that are absent, damaged or made with another protocol.
    """
    folds = splits.make_folds(manifest, c.N_GROUPS, c.VALIDATE_ON, c.SELECT_ON, 0)
    protocol = splits.protocol_text(manifest, folds, c.VALIDATE_ON, c.SELECT_ON)
    results = start_run("04_fuse_classify.py", vars(c), manifest, protocol)
    print(*splits.check_folds(folds, manifest), sep="\n")
    study = Study(c, manifest, folds)
    evaluate(study, results)
    if len(study.modalities) > 1:
        fusion_table(
            study,
            results,
            5,
            "early",
            study.modalities,
            PAPER_TABLE_5,
            "The paper's text gives 75.42 % to concatenation with SVM, its Table 5 to the sum.",
        )
        tests_table(study, results)
    else:
        print(f"only features of {study.modalities[0]}: no Table 5 and no tests of fusion")
    if len(study.with_logits) > 1:
        fusion_table(
            study,
            results,
            6,
            "late",
            study.with_logits,
            PAPER_TABLE_6,
            f"Logits of {', '.join(study.with_logits)}.",
        )
    else:
        print(f"logits of {', '.join(study.with_logits) or 'no modality'}: late fusion needs two, no Table 6")
    per_class_table(study, results)
    comparison_table(study, results)
    subsets_table(study, results)
    pca_figures(study, results)
    confusion_figure(study, results)
    results.predictions(prediction_rows(study.turns, manifest.classes, study.runs, study.predicted))
    results.finish()
