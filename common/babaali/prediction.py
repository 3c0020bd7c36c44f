"""What the models of one corpus make of another: probabilities per turn, and scores where it is labelled."""

import re
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from common import metrics, plots
from common.babaali.features import check_same_model, divide, fill_absent, read_rows
from common.babaali.tables import MEASURES
from common.files import UserError, read_json, write_csv
from common.panels import confusion_maps
from common.results import Cell, score_cells
from common.store import Store

MOST_SHOWN = 40  # turns in the table and on the screen; the csv has all
MOST_BARS = 20
SUBSET = r"(text|audio|video)( \+ (audio|video))*"  # row of a subset of modalities, not of a baseline


@dataclass
class OtherCorpus:
    """Turns of a corpus, and where 03 stored what the models of another one make of them."""

    manifest: object
    root: object  # of their features
    features: object  # StoredFeatures of the models' own corpus, with the modalities that both have
    seeds: list  # those whose models have seen the turns

    def read(self, seed, k, level):
        """Fold k of both corpora, the other's turns last: ({modality: (N, D)}, Parts, with these as test)."""
        array, turns, own = {"early": "features", "late": "logits"}[level], self.manifest.turns, {}
        fold, known = self.features.folds[k], self.features.manifest.labelled
        parts = divide(fold, known)
        for m, x in self.features.read(seed, k)[level].items():
            store = Store(self.root / m / f"seed{seed}" / fold.name)
            again = "run 03 again on both corpora"
            check_same_model(store, self.features.open(m, seed, fold.name), again)
            if store.meta["turns_of"] != self.manifest.fingerprint():
                raise UserError(f"{store.folder}: made from another manifest.csv than there is now; {again}")
            both = np.concatenate([x, read_rows(store, array, turns, least=0)])
            own[m] = fill_absent(both, parts.fit)
        return own, replace(parts, test=len(known) + np.arange(len(turns)))


def stored_by(features, root, manifest, seeds):
    """The OtherCorpus of a manifest below root; says which modalities are missing there."""
    found = tuple(m for m in features.modalities if (root / m).exists())
    for absent in (m for m in features.modalities if m not in found):
        print(f"{absent}: no features of {manifest.corpus} in {root / absent}; decided without")
    seeds = [s for s in seeds if found and (root / found[0] / f"seed{s}").exists()]
    if not seeds:
        remedy = "run 03_extract_features.py with the same CORPUS and TRAINED_ON first"
        raise UserError(f"{root}: no features of {', '.join(features.modalities)}; {remedy}")
    with_logits = tuple(m for m in found if m in features.with_logits)
    features.modalities, features.with_logits = found, with_logits
    return OtherCorpus(manifest, root, features, seeds)


def decide(other, probabilities):
    """Probabilities {system: (seeds, folds, N, C)} of the turns, the model on all features first.

    probabilities  probabilities({modality: (N, D)}, y, parts) -> (n, C) of the test turns
    """
    features, found = other.features, {}
    y = np.array([features.manifest.classes.index(turn.label) for turn in features.manifest.labelled])
    every, late = features.modalities, features.with_logits
    systems = {f"SVM on {' + '.join(every)}": ("early", every)}
    if len(every) > 1:
        systems |= {"late fusion": ("late", late)} if len(late) > 1 else {}
        systems |= {m: ("early", (m,)) for m in every}
    for seed, k in ((seed, k) for seed in other.seeds for k in range(len(features.folds))):
        read = {level: other.read(seed, k, level) for level in {level for level, _ in systems.values()}}
        for name, (level, modalities) in systems.items():
            vectors, parts = read[level]
            found.setdefault(name, []).append(probabilities({m: vectors[m] for m in modalities}, y, parts))
    return {name: np.stack(p).reshape(len(other.seeds), -1, *p[0].shape) for name, p in found.items()}


def class_scores(machine, z):
    """Of an SVC with decisions one against one: the sum of each class' margins over the others (N, C)."""
    margins, n = machine.decision_function(z).reshape(len(z), -1), len(machine.classes_)
    scores = np.zeros((len(z), n))
    for (i, j), margin in zip(combinations(range(n), 2), margins.T, strict=True):
        scores[:, i] += margin
        scores[:, j] -= margin
    return scores if n > 2 else -scores  # the margin of two classes is that of the second


def tempered(scores, y, new):
    """Softmax of new scores (n, C), divided by the temperature that fits others (N, C) to y (Guo 2017)."""

    def loss(log_scale):
        return -log_softmax(np.exp(log_scale) * scores, axis=1)[np.arange(len(y)), y].mean()

    log_scale = minimize_scalar(loss, bounds=(-5, 5), method="bounded").x
    return softmax(np.exp(log_scale) * new, axis=1)


def lacking(other):
    """ "3 turns lack text. " for every modality that some turns lack."""
    turns = other.manifest.turns
    counts = {m: sum(not getattr(turn, m) for turn in turns) for m in other.features.modalities}
    return "".join(f"{n:,} turns lack {m} and got its training mean. " for m, n in counts.items() if n)


def write_probabilities(run, other, found):
    """{system: probabilities (seeds, folds, N, C)} of the turns: their mean over seeds and folds as a csv.

    Of the first system also a table, a figure and lines on the screen.
    """
    classes, turns = other.features.manifest.classes, other.manifest.turns
    means = {name: p.mean((0, 1)) for name, p in found.items()}  # (N, C)
    columns, rows = ("utterance_id", "system", "decision", *classes), []
    for name, mean in means.items():
        for turn, p in zip(turns, mean):
            shares = [f"{share:.4f}" for share in p]
            rows.append(dict(zip(columns, (turn.utterance_id, name, classes[p.argmax()], *shares))))
    write_csv(run.folder / "probabilities.csv", rows, columns)
    first, ids = next(iter(found)), [turn.utterance_id for turn in turns]
    width, cells = max(map(len, ids[:MOST_SHOWN])), []
    for i, name in enumerate(ids[:MOST_SHOWN]):
        order = np.argsort(-means[first][i])
        print(f"  {name:<{width}}  " + "  ".join(f"{classes[c]} {means[first][i, c]:.2f}" for c in order))
        values = 100 * found[first][:, :, i].reshape(-1, len(classes))  # (models, C)
        cells += [Cell(name, c, values[:, j].tolist(), n=len(ids)) for j, c in enumerate(classes)]
    more = f"The first {MOST_SHOWN} of {len(ids):,} turns; probabilities.csv has all. "
    more = more * (len(ids) > MOST_SHOWN) + lacking(other)
    print(f"  {more}".rstrip())
    n_models = len(other.seeds) * len(other.features.folds)
    note = f"Probabilities by {first}, over {n_models} models of seeds and folds. {more}"
    run.table("babaali_table_clips", "Emotion of every turn", cells, note)
    bars = {c: 100 * means[first][:MOST_BARS, j] for j, c in enumerate(classes)}
    fig = plots.grouped_bars(ids[:MOST_BARS], bars, "probability (%)")
    fig.axes[0].tick_params(axis="x", rotation=60)
    shown = f"{min(MOST_BARS, len(ids))} of {len(ids):,} turns"
    caption = f"Probabilities of {shown} by {first}; {run.protocol}."
    plots.save(fig, run.folder, "babaali_fig_clips", caption)


# ---- Scores, where there are labels --------------------------------------------------------


def label_map(pairs, manifest, classes):
    """{label of the manifest: class of the models, "" = left out}; pairs: those that differ, "joy=happy"."""
    known = {turn.label for turn in manifest.labelled}
    given = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := [f"{a}={b}" for a, b in given.items() if a not in known or b and b not in classes]:
        choices = f"{manifest.corpus} has {', '.join(sorted(known))}; the models know {', '.join(classes)}"
        raise UserError(f"LABELS={wrong[0]}: {choices}")
    labels = {label: given.get(label, label if label in classes else "") for label in sorted(known)}
    left_out = [label for label, name in labels.items() if not name]
    absent = [name for name in classes if name not in labels.values()]
    for label, name in labels.items():
        if name and name != label:
            print(f"{label} is scored as {name}")
    lines = [f"left out: {', '.join(left_out)}"] * bool(left_out)
    lines += [f"{manifest.corpus} has no {', '.join(absent)}"] * bool(absent)
    return labels, "; ".join(lines)


def write_scores(run, other, found, pairs, n_resamples):
    """Accuracy and mean recall of every system on the labelled turns, a confusion matrix, train by test."""
    turns, classes = other.manifest.turns, other.features.manifest.classes
    labels, said = label_map(pairs, other.manifest, classes)
    print(said)
    rows = [i for i, turn in enumerate(turns) if labels.get(turn.label)]
    if not rows:
        raise UserError(f"LABELS: no label of {other.manifest.corpus} is a class of the models; map some")
    y = np.array([classes.index(labels[turns[i].label]) for i in rows])
    speakers, cells = np.array([turns[i].speaker for i in rows]), []
    runs = {(s, "all folds"): (slice(j, j + 1), np.arange(len(y))) for j, s in enumerate(other.seeds)}
    for name, p in found.items():
        predicted = p.mean(1)[:, rows].argmax(2)  # (seeds, n)
        cells += score_cells(name, MEASURES, y, predicted, speakers, runs, n_resamples)
    note = f"{said}. {metrics.chance_text(y, len(classes))} {lacking(other)}".strip()
    run.table("babaali_table_transfer", "Models of another corpus", cells, note)
    first = next(iter(found))
    counts = metrics.confusion(y, found[first].mean((0, 1))[rows].argmax(1), len(classes))
    caption = f"Confusion matrix of {first} on {run.corpus}; {run.protocol}. n = {len(y):,}. {said}"
    plots.save(confusion_maps({"": counts}, classes), run.folder, "babaali_fig_transfer", caption)
    train_by_test(run, other.features, other.seeds[0], cells[1].mean)


def train_by_test(run, features, seed, mean_recall):
    """A table of mean recall, training by test corpus, of results side by side whose encoders began alike."""
    pairs, weights = {(features.manifest.corpus, run.corpus): mean_recall}, features.weights(seed)
    for path in sorted(run.folder.parent.glob("*/metrics.json")):
        kept = read_json(path)
        if kept.get("weights") != weights:
            continue
        trained, metric = kept["settings"].get("TRAINED_ON"), kept["metrics"]
        own = [key for key in metric if re.fullmatch(rf"babaali_table_subsets/{SUBSET}/early UA", key)]
        across = [key for key in metric if key.startswith("babaali_table_transfer/") and "recall" in key]
        if keys := across[:1] if trained else sorted(own, key=lambda key: key.count("+"))[-1:]:
            pairs.setdefault((trained or kept["corpus"], kept["corpus"]), metric[keys[0]]["mean"])
    if len(pairs) > 1:
        found = sorted(pairs.items())
        cells = [Cell(f"trained on {a}", f"tested on {b}", [value]) for (a, b), value in found]
        note = "Mean recall of early fusion. On the corpus of the models themselves: by cross-validation."
        run.table("babaali_table_train_test", "Trained on one corpus, tested on another", cells, note)
