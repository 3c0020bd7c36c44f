"""Tables 1-5 of Sadok et al. 2023 in the paper's shape, and what goes beyond it.

`rows` lists what each table compares, once; 05 fine-tunes it; `write` draws the tables from the outcomes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common import metrics
from common.comparison import Scores, paired_test_cells
from common.files import UserError, read_json
from common.layers import count_parameters
from common.results import Cell, paper_figures, prediction_rows, score_cells
from common.sadok import figures
from common.sadok.codes import guess_codes
from common.sadok.data import Row, size_of
from common.sadok.vqvae import N_ROWS

PAPER = Path(__file__).with_name("paper.csv")  # its numbers as printed, {(table, row, "<corpus> <column>")}
MASKED = "Masking {masking}, {ratio:g} % of the tokens hidden. "
TABLES = {  # title, what a reader must know
    "1": ("Table 1. Pretraining, frozen encoder, SpecMAE", MASKED),
    "2": ("Table 2. Masking strategies", ""),
    "3": ("Table 3. Continuous embedding sizes", MASKED),
    "4": ("Table 4. Encoder depths", MASKED),
    "5": ("Table 5. Overall results", ""),
    "fig2": ("Figure 2 in numbers", ""),
    "fig3": ("Figure 3 in numbers", ""),
    "equal": ("Frames and patches at one width", "Not in the paper: its tokens of frames have 512 units. "),
    "mean": ("Emotion from the mean of all tokens", f"Not in the paper, which reads CLS. {MASKED}"),
    "row": ("Emotion from mean and sd of each row", f"Not in the paper, which reads CLS. {MASKED}"),
}
POOLED = {
    "accuracy pooled": metrics.accuracy,
    "UAR": metrics.unweighted_recall,
    "weighted F1": metrics.weighted_f1,
}
BEST_TEST = "accuracy, best TEST epoch"
IN_TABLE_5 = ("accuracy", "UAR", "weighted F1", BEST_TEST)

# ---- What the tables compare ---------------------------------------------------------------


def masked_by(network, strategy):
    """The same network under another masking; frames are hidden of tokens (1, 64)."""
    size = {"t": 1, "d": N_ROWS} if strategy == "frame" else {}
    return replace(network, strategy=strategy, **size)


def networks(patch, strategy):
    """patch masked by `strategy`; by frames; and by frames at the width of patches."""
    frame = masked_by(patch, "frame")
    return masked_by(patch, strategy), frame, replace(frame, width=patch.units)


def rows(patch, strategy, spectra, power, strategies, ratios, code_widths, depths, token_sizes):
    """{table: {label: Row}}; those of Table 5 are for each of its corpora.

    patch     Network of patches that the others vary; strategy: the masking where it is not varied
    spectra   {"" or " on log power": Network} of SpecMAE; power: one of them, for log-mel statistics
    """
    (base, frame, narrow), found = networks(patch, strategy), {}
    name = f"VQ-MAE-S-{base.depth}"
    found["1"] = {
        f"{name}, not pretrained": Row(base, pretrained=False),
        f"{name}, pretrained, frozen": Row(base, freeze=True),
        f"{name}, pretrained, fine-tuned": Row(base),
        **{f"SpecMAE-{base.depth}{label}, pretrained, fine-tuned": Row(n) for label, n in spectra.items()},
    }
    found["2"] = {s.capitalize(): Row(masked_by(patch, s)) for s in strategies}
    widths = {e: f"(t·d·(e={e})) = {base.t * base.d * e}" for e in code_widths}
    found["3"] = {label: Row(replace(base, code_width=e)) for e, label in widths.items()}
    found["4"] = {f"VQ-MAE-S-{depth}": Row(replace(base, depth=depth)) for depth in depths}
    found["5"] = {f"SpecMAE (Patch-tf){label}": Row(network) for label, network in spectra.items()}
    for label, network in (("VQ-MAE-S (Patch-tf)", patch), ("VQ-MAE-S (Frame)", frame)):
        found["5"][f"{label}, not pretrained"] = Row(network, pretrained=False)
        found["5"] |= {label: Row(network), f"{label} + Query2Emo": Row(network, head="query2emo")}
    both = [(network, ratio) for network in (patch, frame) for ratio in ratios]
    found["fig2"] = {f"{n.strategy} {r:g}": Row(replace(n, ratio=r)) for n, r in both}
    sizes = {text: size_of("TOKEN_SIZES", text) for text in token_sizes}
    found["fig3"] = {text: Row(replace(patch, t=t, d=d)) for text, (t, d) in sizes.items()}
    units = f"{narrow.width} units"
    found["equal"] = {f"Patch-tf, {units}": Row(patch), f"Frame, {units}": Row(narrow)}
    for head in ("mean", "row"):
        found[head] = {
            "random and frozen": Row(base, pretrained=False, freeze=True, head=head),
            "pretrained, frozen": Row(base, freeze=True, head=head),
            "not pretrained, trained": Row(base, pretrained=False, head=head),
            "pretrained, fine-tuned": Row(base, head=head),
        }
    svm = {"Codes' histogram + SVM": patch, "Log-mel statistics + SVM": power}
    svm = {label: Row(network, pretrained=False, freeze=True, head="svm") for label, network in svm.items()}
    return {table: labelled | svm for table, labelled in found.items()}


def choose(found, *names):
    """Those of `rows` that some constants name; UserError for an unknown name."""
    names = [name for part in names for name in part]
    if not names:
        raise UserError("TABLES, BEYOND_PAPER: name a table")
    if unknown := [name for name in names if name not in found]:
        raise UserError(f"TABLES, BEYOND_PAPER: no table {unknown[0]}; choose among {', '.join(found)}")
    return {name: found[name] for name in names}


def runs(planned, corpora, seeds, serving):
    """(Row, corpus, fold number, seed, Pretraining) of all fine-tunings; Table 5 is of all corpora."""
    first = next(iter(corpora))
    wanted = [(row, first) for table, rows in planned.items() if table != "5" for row in rows.values()]
    wanted += [(row, name) for name in corpora for row in planned.get("5", {}).values()]
    wanted = [(*pair, seed) for pair in dict.fromkeys(wanted) for seed in seeds]
    folds = {name: range(len(corpus.folds)) for name, corpus in corpora.items()}
    return [(row, name, k, seed, serving[name, k]) for row, name, seed in wanted for k in folds[name]]


def tests(patch, strategy, spectra):
    """{what is gained: (Row, Row without it)}, as far as the tables have both; arguments as for `rows`."""
    base, frame, narrow = networks(patch, strategy)
    heads, scratch = {"mean of tokens": "mean", "rows of tokens": "row"}, {"pretrained": False}
    read = {label: Row(base, head=head) for label, head in heads.items()}
    changes = {  # (Row, what differs in the other one)
        "pretrained against not, Patch-tf": (Row(patch), scratch),
        "pretrained against not, Frame": (Row(frame), scratch),
        **{f"pretrained against not, {label}": (row, scratch) for label, row in read.items()},
        **{f"... {label}, frozen": (replace(row, freeze=True), scratch) for label, row in read.items()},
        **{f"{label} against CLS": (row, {"head": "cls"}) for label, row in read.items()},
        "fine-tuned against frozen": (Row(patch), {"freeze": True}),
        "Frame against Patch-tf": (Row(frame), {"network": patch}),
        "Frame against Patch-tf, one width": (Row(narrow), {"network": patch}),
        **{f"codes against SpecMAE{label}": (Row(patch), {"network": n}) for label, n in spectra.items()},
        "Query2Emo against CLS, Patch-tf": (Row(patch, head="query2emo"), {"head": "cls"}),
        "Query2Emo against CLS, Frame": (Row(frame, head="query2emo"), {"head": "cls"}),
    }
    return {label: (row, replace(row, **change)) for label, (row, change) in changes.items()}


# ---- From fine-tunings to cells ------------------------------------------------------------


@dataclass
class Report:
    """What tables are made of; a clip without codes has no score."""

    run: object  # results.Run
    corpora: dict  # {name: Corpus}, the first of Tables 1-4
    pretraining: object  # data.Pretraining
    pretrain_epochs: int
    seeds: tuple
    n_resamples: int
    refit: bool = False
    best_test: dict = field(default_factory=dict)  # {(Row, corpus): accuracies in %, one per run}
    scored: dict = field(default_factory=dict)  # {(Row, corpus): cells}, which several tables show

    def __post_init__(self):
        how = self.seeds, self.n_resamples
        self.found = {name: Scores(c.manifest, c.folds, *how, c) for name, c in self.corpora.items()}
        self.first = next(iter(self.found.values()))

    @property
    def corpus(self):
        return self.first.source

    def gather(self, runs, kept):
        """Sort what fine-tunings `kept` by row and corpus; runs: (row, corpus, fold number, seed, ...)."""
        for (row, name, k, seed, *_), found in zip(runs, kept):
            corpus, test, epochs = self.corpora[name], found["tests"]["test"], found["history"]["log"]
            labels = dict(zip(test["ids"], np.argmax(test["outputs"]["logits"], axis=1)))
            of_fold = [labels.get(turn.utterance_id, -1) for turn in corpus.folds[k].test]
            self.found[name].add(row, seed, k, of_fold)
            best = 100 * max(epoch["test_accuracy"] for epoch in epochs)
            self.best_test.setdefault((row, name), []).append(best)
            what = {"corpus": corpus.name, "network": row.network.slug(), "row": row.slug()}
            self.run.log({"event": "fine-tuned", **what, "fold": k + 1, "seed": seed, "epochs": epochs})

    def scores(self, label, row, name, paper):
        """Accuracy by fold, then of all test turns together: see `note`; paper {column: number}."""
        key, own = (row, name), self.found[name]
        if key not in self.scored:
            predicted = own.predicted[row]
            scored = np.flatnonzero(predicted[0] >= 0)  # those with codes
            pooled = {(seed, "all folds"): (slice(i, i + 1), scored) for i, seed in enumerate(self.seeds)}
            self.scored[key] = [
                *own.cells("", {"accuracy": metrics.accuracy}, predicted, scored),
                *score_cells("", POOLED, own.y, predicted, own.speakers, pooled, self.n_resamples),
                Cell("", BEST_TEST, self.best_test[key], list(own.runs()), n=len(own.turns)),
            ]
        return [replace(cell, row=label, paper=paper.get(cell.column)) for cell in self.scored[key]]

    def note(self):
        """What every table says: which speech pretrained, what a run is, chance, the authors' protocol."""
        corpus, corpora = self.corpus, ", ".join(self.pretraining.corpora)
        whose = "no speaker of it is tested"
        if corpus.base in self.pretraining.corpora:
            whose = "speakers of a fold's test part are left out of its VQ-VAE and pretraining"
        how = "Trained again on training and validation speakers. " if self.refit else ""
        if corpus.speaker_normalise:
            how += "Each speaker's mean is subtracted: the test speakers' unlabelled speech is used. "
        return (
            f"{how}Pretrained on {corpora} ({self.pretrain_epochs} epochs; {whose}), once, with the "
            "first seed; seeds and folds vary the fine-tuning. accuracy: mean over folds; pooled, UAR (mean "
            "of class recalls) and F1: of all test turns together. Last column: the authors' protocol on the "
            f"same trainings. {self.first.chance()}"
        )


# ---- Tables --------------------------------------------------------------------------------


def write(report, planned, compared, pretrained, build_network):
    """All tables and figures.

    planned, compared  from `rows` and `tests`
    pretrained         (Network, Pretraining) pairs of the networks of codes
    build_network      build_network(Network) -> model
    """
    paper = paper_figures(PAPER)
    networks = {row.network for rows in planned.values() for row in rows.values()}
    parameters = {network: count_parameters(build_network(network)) for network in networks}
    for part, labelled in planned.items():
        cells = table(report, part, labelled, parameters, paper)
        if part in figures.DRAW:
            trained = {label: row for label, row in labelled.items() if row.head != "svm"}
            figures.DRAW[part](report, trained, cells)
    tests_table(report, compared)
    if pretrained:
        codes_table(report, pretrained)
    write_predictions(report)


def table(report, part, labelled, parameters, paper):
    """A table, Table 5 of all corpora and with the systems that the paper quotes; returns the cells."""
    network, is_overall, (title, about) = next(iter(labelled.values())).network, part == "5", TABLES[part]
    cells, about = [], about.format(masking=network.strategy, ratio=100 * network.ratio)
    for key in [*report.corpora][: None if is_overall else 1]:
        corpus, name = report.corpora[key], report.corpora[key].name
        for label, row in labelled.items():
            columns = "accuracy", "weighted F1", "parameters"
            printed = {column: paper.get((part, label, f"{name} {column}")) for column in columns}
            if part in ("3", "4", "equal") and row.head != "svm":
                millions = [parameters[row.network] / 1e6]
                cells.append(Cell(label, "parameters", millions, unit="M", paper=printed["parameters"]))
            found = report.scores(label, row, key, printed)
            if is_overall:
                found = [replace(c, column=f"{name} {c.column}") for c in found if c.column in IN_TABLE_5]
            cells += found
        if is_overall:
            quoted = {key: number for key, number in paper.items() if "[" in key[1]}
            cells += [Cell(row, c, paper=x) for (_, row, c), x in quoted.items() if c == f"{name} accuracy"]
            classes, n_speakers = ", ".join(corpus.manifest.classes), len(set(report.found[key].speakers))
            size = f"{len(corpus.turns):,} turns, {n_speakers} speakers"
            about += f"{name}: {size}, {classes}; {corpus.protocol}. "
    stem = f"sadok_table_{part.replace('fig', 'fig_')}"
    protocol = "of each corpus below" if is_overall else None
    report.run.table(stem, title, cells, about + report.note(), protocol)
    return cells


def tests_table(report, compared):
    """Beyond the paper: what pretraining, frame masking, codes instead of spectra and Query2Emo gain."""
    own, done = report.first, report.first.predicted
    both = {label: pair for label, pair in compared.items() if set(pair) <= set(done) and len(set(pair)) > 1}
    if not both:
        return
    scored = np.flatnonzero(next(iter(done.values()))[0] >= 0)
    pairs = {label: (done[ours][:, scored], done[other][:, scored]) for label, (ours, other) in both.items()}
    data = own.y[scored], own.speakers[scored]
    cells, note = paired_test_cells("gain in accuracy", pairs, *data, report.n_resamples)
    report.run.table("sadok_table_tests", "Paired tests", cells, f"Not in the paper. {note}")


def codes_table(report, pretrained):
    """Beyond the paper: hidden codes of held-out speakers as pretraining finds them, and as guesses do."""
    loss, share, first = {}, {}, pretrained[0][0]  # {row: a figure for each pretraining}
    for network, pretraining in pretrained:
        last = read_json(pretraining.folder / network.slug() / "outcome.json")["history"]["log"][-1]
        loss.setdefault(network.slug(), []).append(last["valid_loss"])
        share.setdefault(network.slug(), []).append(100 * last["valid_codes_found"])
    for pretraining in (pretraining for network, pretraining in pretrained if network == first):
        nats, copied = guess_codes(first, pretraining)
        loss.setdefault("each row's code frequencies", []).append(nats)
        share.setdefault("the code of the frame before", []).append(100 * copied)
    cells = [Cell(row, "loss", values, unit="nats") for row, values in loss.items()]
    cells += [Cell(row, "codes found", values) for row, values in share.items()]
    note = "Not in the paper. Hidden codes of speakers held out of pretraining; guesses need no network."
    report.run.table("sadok_table_codes", "What pretraining finds", cells, note)


def write_predictions(report):
    """predictions.csv of the first corpus."""
    own = report.first
    systems = {f"{row.slug()} {row.network.slug()}": predicted for row, predicted in own.predicted.items()}
    scored = np.flatnonzero(next(iter(own.predicted.values()))[0] >= 0)
    report.run.predictions(prediction_rows(own.turns, own.classes, own.runs(scored), systems))
