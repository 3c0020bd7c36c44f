"""Tables 1-5 of Sadok et al. 2023 in the paper's shape, and what goes beyond it.

`rows` lists what each table compares, once; 05 fine-tunes it; `write` draws the tables from the outcomes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from common import metrics
from common.comparison import paired_test_cells
from common.errors import UserError
from common.results import Cell, paper_figures, prediction_rows, score_cell, score_cells
from common.sadok import figures
from common.sadok.data import Row, size_of
from common.sadok.vqvae import N_ROWS, Frames, evaluate_vqvae

PAPER = Path(__file__).with_name("paper.csv")  # its numbers as printed
MASKINGS = {
    "frame": "Random frame masking (Frame)",
    "patch-f": "Random frequency masking (Patch-f)",
    "patch-t": "Random time masking (Patch-t)",
    "patch-tf": "Random time-frequency masking (Patch-tf)",
}  # names in Table 2
TITLES = {
    "1": "Table 1. Pretraining, frozen encoder, SpecMAE",
    "2": "Table 2. Masking strategies",
    "3": "Table 3. Continuous embedding sizes",
    "4": "Table 4. Encoder depths",
    "fig2": "Figure 2 in numbers",
    "fig3": "Figure 3 in numbers",
    "equal": "Frame and patch masking at one width",
    "mean": "Emotion from the mean of all tokens",
}
POOLED = {
    "accuracy pooled": metrics.accuracy,
    "UAR": metrics.unweighted_recall,
    "weighted F1": metrics.weighted_f1,
    "macro F1": metrics.macro_f1,
}
BEST_TEST = "accuracy, best TEST epoch"

# ---- What the tables compare ---------------------------------------------------------------


def masked_by(network, strategy):
    """The same network under another masking; frames are hidden of tokens (1, 64)."""
    size = {"t": 1, "d": N_ROWS} if strategy == "frame" else {}
    return replace(network, strategy=strategy, **size)


def rows(patch, strategy, spectra, strategies, ratios, code_widths, depths, token_sizes):
    """{table: {label: Row}}; those of Table 5 are for each of its corpora.

    patch     Network of patches that the others vary; strategy: the masking where it is not varied
    spectra   {"" or " on log power": Network} of SpecMAE
    """
    base, frame = masked_by(patch, strategy), masked_by(patch, "frame")
    narrow = replace(frame, width=patch.width or patch.token_width)
    name, found = f"VQ-MAE-S-{base.depth}", {}
    found["1"] = {
        f"{name}, not pretrained": Row(base, pretrained=False),
        f"{name}, pretrained, frozen": Row(base, freeze=True),
        f"{name}, pretrained, fine-tuned": Row(base),
        **{f"SpecMAE-{base.depth}{label}, pretrained, fine-tuned": Row(n) for label, n in spectra.items()},
    }
    found["2"] = {MASKINGS.get(s, s): Row(masked_by(patch, s)) for s in strategies}
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
    found["mean"] = {
        "random and frozen": Row(base, pretrained=False, freeze=True, head="mean"),
        "pretrained, frozen": Row(base, freeze=True, head="mean"),
        "not pretrained, trained": Row(base, pretrained=False, head="mean"),
        "pretrained, fine-tuned": Row(base, head="mean"),
    }
    return found


def choose(found, *names):
    """Those of `rows` that some constants name; UserError for an unknown name."""
    for name in (name for part in names for name in part):
        if name not in found:
            raise UserError(f"TABLES, BEYOND_PAPER: no table {name}; choose among {', '.join(found)}")
    return {name: found[name] for part in names for name in part}


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
    base, frame = masked_by(patch, strategy), masked_by(patch, "frame")
    narrow = replace(frame, width=patch.width or patch.token_width)
    mean, scratch = Row(base, head="mean"), {"pretrained": False}
    changes = {  # (Row, what differs in the other one)
        "pretrained against not, Patch-tf": (Row(patch), scratch),
        "pretrained against not, Frame": (Row(frame), scratch),
        "pretrained against not, mean of tokens": (mean, scratch),
        "pretrained against not, mean of tokens, frozen": (replace(mean, freeze=True), scratch),
        "mean of tokens against CLS": (mean, {"head": "cls"}),
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
class Outcome:
    """Fine-tunings of one row on one corpus."""

    predicted: np.ndarray  # (seeds, N) class numbers, -1 where a clip has no codes
    best_test: list = field(default_factory=list)  # accuracy of the best test epoch in %, one per run
    runs: dict = field(default_factory=dict)  # {(seed, fold name): (row of predicted, turn numbers tested)}


@dataclass
class Report:
    """What tables are made of."""

    run: object  # results.Run
    corpora: dict  # {name: Corpus}, the first of Tables 1-4
    pretraining: object  # data.Pretraining
    pretrain_epochs: int
    leave_out: str
    seeds: tuple
    n_resamples: int
    outcomes: dict = field(default_factory=dict)  # {(Row, Corpus.name): Outcome}

    @property
    def corpus(self):
        return next(iter(self.corpora.values()))

    @property
    def data(self):
        """What a caption says of it."""
        return f"{self.corpus.name}, n = {len(self.corpus.turns):,}, seeds {', '.join(map(str, self.seeds))}"

    def gather(self, runs, kept):
        """Sort what fine-tunings `kept` by row and corpus; runs: (row, corpus, fold number, seed, ...)."""
        for (row, name, k, seed, *_), found in zip(runs, kept):
            corpus, i, test = self.corpora[name], self.seeds.index(seed), found["tests"]["test"]
            nothing = Outcome(np.full((len(self.seeds), len(corpus.turns)), -1))
            outcome = self.outcomes.setdefault((row, corpus.name), nothing)
            at = np.array([corpus.row[utterance_id] for utterance_id in test["ids"]])
            assert (outcome.predicted[i, at] == -1).all(), "a turn is in two test sets"
            outcome.predicted[i, at] = np.argmax(test["outputs"]["logits"], axis=1)
            epochs, fold = found["history"]["log"], corpus.folds[k].name
            outcome.best_test.append(100 * max(epoch["test_accuracy"] for epoch in epochs))
            outcome.runs[seed, fold] = (slice(i, i + 1), np.sort(at))
            what = {"corpus": corpus.name, "network": row.network.slug(), "row": row.slug(), "fold": fold}
            self.run.log({"event": "fine-tuned", **what, "seed": seed, "epochs": epochs})
        by_corpus = {name: outcome.predicted[0] for (_, name), outcome in self.outcomes.items()}
        for name, predicted in by_corpus.items():
            if n := int((predicted < 0).sum()):
                print(f"  {name}: {n:,} of {len(predicted):,} labelled turns have no codes, hence no score")

    def scores(self, label, row, corpus, paper):
        """Accuracy by fold, then of all test turns together: see `note`; paper {column: number}."""
        outcome = self.outcomes[row, corpus.name]
        data = corpus.y, outcome.predicted, corpus.speakers
        pooled = {
            (seed, "all folds"): (slice(i, i + 1), np.flatnonzero(outcome.predicted[i] >= 0))
            for i, seed in enumerate(self.seeds)
        }
        number = paper.get("accuracy")
        return [
            score_cell(label, "accuracy", metrics.accuracy, *data, outcome.runs, self.n_resamples, number),
            *score_cells(label, POOLED, *data, pooled, self.n_resamples, paper=paper),
            Cell(label, BEST_TEST, outcome.best_test, list(outcome.runs), n=len(corpus.turns)),
        ]

    def note(self):
        """What every table says: which speech pretrained, what a run is, chance, the authors' protocol."""
        corpora, corpus = self.pretraining.corpora, self.corpus
        majority, uniform = metrics.chance(corpus.y, len(corpus.manifest.classes))
        whose = "no speaker of it is tested"
        if corpus.base in corpora:
            whose = "speakers of a fold's test part are left out of its VQ-VAE and pretraining"
            if self.leave_out == "nobody":
                whose = "test speakers are read, unlabelled, in pretraining"
        return (
            f"Pretrained on {', '.join(corpora)} ({self.pretrain_epochs} epochs; {whose}), once, with the "
            "first seed; seeds and folds vary the fine-tuning. accuracy: mean over folds; pooled, UAR (mean "
            "of class recalls) and F1: of all test turns together. Last column: the authors' protocol on the "
            "same trainings, the best epoch on the test fold; beside the first it shows what that is worth. "
            f"Chance {100 * majority:.1f} % (majority class), {100 * uniform:.1f} % (1 / C)."
        )


# ---- Tables --------------------------------------------------------------------------------


def write(report, planned, compared, parameters, vqvae_figures):
    """All tables and figures.

    planned, compared  from `rows` and `tests`
    parameters         {Network: count}; vqvae_figures: {label: figures of a VQ-VAE}
    """
    paper = paper_figures(PAPER)
    for part, labelled in planned.items():
        if part == "5":
            table_5(report, labelled, paper)
        else:
            cells = table(report, part, labelled, parameters, paper)
            if part.startswith("fig"):
                figures.DRAW[part](report, labelled, cells)
    tests_table(report, compared)
    vqvae_table(report, vqvae_figures)
    write_predictions(report)


def table(report, part, labelled, parameters, paper):
    """Tables 1 to 4, Figures 2 and 3 in numbers, and those beyond the paper; returns the cells."""
    corpus, cells = report.corpus, []
    for label, row in labelled.items():
        printed = {c: x for (t, name, c), x in paper.items() if (t, name) == (part, label)}
        printed = printed if corpus.name == "ravdess_speech" else {}  # of no other are Tables 1-4
        if part in ("3", "4", "equal"):
            count = [parameters[row.network] / 1e6]
            cells.append(Cell(label, "parameters", count, unit="M", paper=printed.get("parameters")))
        cells += report.scores(label, row, corpus, printed)
    network = next(iter(labelled.values())).network
    about = {
        "equal": "Not in the paper, whose Frame row has tokens of 512 units beside 320 of Patch-tf.",
        "mean": "Not in the paper, which reads CLS (Table 1).",
    }.get(part, "")
    if part in ("1", "3", "4", "mean"):
        about = f"{about} Masking {network.strategy}, {100 * network.ratio:g} % of the tokens hidden."
    stem = f"sadok_table_{part.replace('fig', 'fig_')}"
    report.run.table(stem, f"{TITLES[part]}, {corpus.name}", cells, f"{about} {report.note()}".strip())
    return cells


def table_5(report, labelled, paper):
    """Table 5: all corpora, with the published systems that the paper quotes."""
    cells = []
    for corpus in report.corpora.values():
        for (table_, label, column), number in paper.items():
            if table_ == "5" and "[" in label and column == f"{corpus.name} accuracy":
                cells.append(Cell(label, column, paper=number))
        for label, row in labelled.items():
            columns = {column: f"{corpus.name} {column}" for column in ("accuracy", "weighted F1")}
            printed = {own: paper.get(("5", label, column)) for own, column in columns.items()}
            for cell in report.scores(label, row, corpus, printed):
                if cell.column in ("accuracy", "UAR", "weighted F1", BEST_TEST):
                    cells.append(replace(cell, column=f"{corpus.name} {cell.column}"))
    about = []
    for c in report.corpora.values():
        n, names = f"{len(c.turns):,} turns, {len(set(c.speakers))} speakers", ", ".join(c.manifest.classes)
        about.append(f"{c.name}: {n}, {names}; {c.protocol}.")
    note = " ".join([*about, report.note()])
    report.run.table("sadok_table_5", "Table 5. Overall results", cells, note, "of each corpus below")


def tests_table(report, compared):
    """Beyond the paper: what pretraining, frame masking, codes instead of spectra and Query2Emo gain."""
    corpus, done = report.corpus, {}
    for (row, name), outcome in report.outcomes.items():
        if name == corpus.name:
            done[row] = outcome.predicted
    compared = {label: (a, b) for label, (a, b) in compared.items() if a in done and b in done and a != b}
    pairs = {label: (done[a], done[b]) for label, (a, b) in compared.items()}
    if not pairs:
        return
    scored = np.flatnonzero(np.all([p >= 0 for pair in pairs.values() for p in pair], axis=(0, 1)))
    pairs = {label: (a[:, scored], b[:, scored]) for label, (a, b) in pairs.items()}
    data = corpus.y[scored], corpus.speakers[scored]
    cells, note = paired_test_cells("gain in accuracy", pairs, *data, report.n_resamples)
    report.run.table("sadok_table_tests", f"Paired tests, {corpus.name}", cells, f"Not in the paper. {note}")


def score_vqvaes(accelerator, vqvaes, corpus, frames_per_clip, batch_size):
    """{label: figures} of VQ-VAEs {Pretraining: VQVAE} on speakers of a corpus that they have not read."""
    found = {}
    for pretraining, vqvae in vqvaes.items():
        turns = [turn for turn in corpus.turns if (corpus.base, turn.speaker) in pretraining.left_out]
        frames = Frames([corpus.manifest.path(turn.audio) for turn in turns or corpus.turns], frames_per_clip)
        label = pretraining.name.replace("_", " ") or "all speakers"
        found[label] = evaluate_vqvae(accelerator, vqvae, frames, batch_size, 0)
    return found


def vqvae_table(report, found):
    """Beyond the paper: how well the VQ-VAE reconstructs, and how much of its codebook is used."""
    cells = []
    for row, values in found.items():
        cells += [
            Cell(row, "Itakura-Saito divergence", [values["itakura_saito"]], unit="", digits=3),
            Cell(row, "log-spectral distance", [values["log_spectral_distance"]], unit="dB"),
            Cell(row, "codebook perplexity (of 256)", [values["perplexity"]], unit="", digits=1),
            Cell(row, "codes used", [100 * values["usage"]], digits=1),
        ]
        shown = ", ".join(f"{cell.column} {cell.mean:.3g}" for cell in cells[-4:])
        print(f"  VQ-VAE, {row}: {shown}")
    note = (
        "Not in the paper. The authors' model as they use it, on other speech: 0.63, 6.7 dB, perplexity 191."
    )
    report.run.table("sadok_table_vqvae", f"VQ-VAE on {report.corpus.name}", cells, note)


def write_predictions(report):
    """predictions.csv of the first corpus; clips without codes are left out of every row alike."""
    corpus, systems, runs = report.corpus, {}, {}
    for (row, name), outcome in report.outcomes.items():
        if name == corpus.name:
            systems[f"{row.slug()} {row.network.slug()}"], runs = outcome.predicted, outcome.runs
    report.run.predictions(prediction_rows(corpus.turns, corpus.manifest.classes, runs, systems))
