"""Tables 1-5 and Figures 2-3 of Sadok et al. 2023 in the paper's shape, what goes beyond it, and the paper's figures.

`plan` lists every row that the tables need, once; 05 fine-tunes them; `write` draws the tables from their outcomes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from common import metrics, plots
from common.media import read_audio, write_wav
from common.results import Cell, paired_test_cells, score_cell
from common.sadok.vqmae import mask_tokens
from common.sadok.vqvae import CODES_PER_FRAME, HOP, RATE_HZ, griffin_lim, normalise_peak, power_spectrogram

PARTS = ("1", "2", "3", "4", "5", "fig2", "fig3", "equal", "mean")

# ---- The paper's figures, as printed -------------------------------------------------------
PAPER_TABLE_1 = {"scratch": 26.8, "frozen": 57.6, "fine-tuned": 76.7, "SpecMAE": 52.2}
PAPER_TABLE_2 = {
    "frame": (80.8, 80.5),
    "patch-f": (65.7, 65.0),
    "patch-t": (68.5, 68.7),
    "patch-tf": (76.7, 75.9),
}
PAPER_TABLE_3 = {4: (5, 70.9, 70.1), 8: (20, 76.7, 75.9), 16: (80, 75.4, 75.3)}  # e: millions, accuracy, F1
PAPER_TABLE_4 = {6: (12, 65.8, 65.3), 12: (20, 76.7, 75.9), 16: (25, 79.2, 79.4), 20: (30, 76.8, 76.2)}
PAPER_TABLE_5_COLUMNS = ("RAVDESS-Speech", "RAVDESS-Song", "IEMOCAP", "EMODB")
PAPER_TABLE_5 = {
    "Self-attention audio [26]": ((58.3, None), None, None, None),
    "SSAST [5] (Patch-tf)": (None, None, (54.3, None), None),
    "MAE-AST [13] (Patch-tf)": (None, None, (58.6, None), None),
    "SpecMAE (Patch-tf)": ((52.2, 52.0), (54.5, 53.9), (46.7, 45.9), (57.2, 57.0)),
    "VQ-MAE-S (Patch-tf)": ((76.7, 75.9), (84.0, 84.0), (61.9, 61.2), (85.7, 85.8)),
    "VQ-MAE-S (Patch-tf) + Query2Emo": ((78.2, 77.5), (83.7, 83.4), (63.1, 62.5), (88.4, 88.3)),
    "VQ-MAE-S (Frame)": ((80.8, 80.5), (84.2, 84.3), (65.2, 64.9), (87.0, 87.0)),
    "VQ-MAE-S (Frame) + Query2Emo": ((84.1, 84.4), (85.8, 85.7), (66.4, 65.8), (90.2, 89.1)),
}
LISTEN_ITERATIONS = 60  # of Griffin-Lim


# ---- Rows ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A masked autoencoder to pretrain.

    kind  "vqmae", "specmae" (the authors') or "specmae-log"; width 0 = t * d * code_width
    """

    kind: str
    strategy: str
    ratio: float
    t: int
    d: int
    code_width: int
    depth: int
    width: int

    def slug(self):
        """Name of its folder, such as patch-tf_0.8_10x4_e8_12"""
        name = self.strategy if self.kind == "vqmae" else self.kind
        embedding = f"_e{self.code_width}" if self.kind == "vqmae" else ""
        return f"{name}_{self.ratio:g}_{self.t}x{self.d}{embedding}_{self.depth}" + f"_w{self.width}" * bool(
            self.width
        )


@dataclass(frozen=True)
class Row:
    """One line of a table: a network, pretrained or not, its encoder frozen or not, and the head on it."""

    network: Network
    pretrained: bool = True
    freeze: bool = False
    head: str = "cls"

    def slug(self):
        state = (
            ("frozen" if self.pretrained else "random")
            if self.freeze
            else "finetuned"
            if self.pretrained
            else "scratch"
        )
        return f"{state}_{self.head}"


@dataclass(frozen=True)
class Entry:
    """Where a row stands: in `part` of PARTS, on a corpus, under a label; paper: (accuracy, F1) or ()."""

    part: str
    corpus: str
    label: str
    row: Row
    paper: tuple = ()


def size(text):
    """ "10x4" -> (10, 4)"""
    t, _, d = text.partition("x")
    return int(t), int(d)


def base_network(c):
    """The network that all rows vary: Patch-tf at 80 % in the paper."""
    network = Network("vqmae", "patch-tf", c.RATIO, *size(c.TOKEN_SIZE), c.CODE_WIDTH, c.DEPTH, c.WIDTH)
    return with_strategy(network, c.STRATEGY)


def with_strategy(network, strategy):
    """The same network under another masking; frames are hidden of tokens (1, 64)."""
    if strategy == "frame":
        return replace(network, strategy=strategy, t=1, d=CODES_PER_FRAME)
    return replace(network, strategy=strategy)


def spec_network(c, kind):
    return Network(kind, "patch-tf", c.RATIO, *size(c.SPEC_PATCH), 0, c.DEPTH, c.SPEC_WIDTH)


def plan(c, corpora):
    """The Entry of every row of TABLES, in the order of the tables; corpora: names, the first of Tables 1-4."""
    makers = {
        "1": plan_1,
        "2": plan_2,
        "3": plan_3,
        "4": plan_4,
        "fig2": plan_ratios,
        "fig3": plan_token_sizes,
        "equal": plan_equal,
        "mean": plan_mean,
    }
    entries = [
        Entry(part, corpora[0], *row)
        for part in PARTS
        if part in c.TABLES and part != "5"
        for row in makers[part](c)
    ]
    if paper_column(corpora[0]) != 0:  # the paper's Tables 1-4 are of RAVDESS-Speech alone
        entries = [replace(entry, paper=()) for entry in entries]
    return entries + [entry for corpus in corpora if "5" in c.TABLES for entry in plan_5(c, corpus)]


def plan_1(c):
    network = base_network(c)
    name = f"VQ-MAE-S-{c.DEPTH}"
    return [
        (f"{name}, not pretrained", Row(network, pretrained=False), (PAPER_TABLE_1["scratch"],)),
        (f"{name}, pretrained, frozen", Row(network, freeze=True), (PAPER_TABLE_1["frozen"],)),
        (f"{name}, pretrained, fine-tuned", Row(network), (PAPER_TABLE_1["fine-tuned"],)),
        *(
            [
                (
                    f"SpecMAE-{c.DEPTH}, pretrained, fine-tuned",
                    Row(spec_network(c, "specmae")),
                    (PAPER_TABLE_1["SpecMAE"],),
                ),
                (
                    f"SpecMAE-{c.DEPTH} on log power, pretrained, fine-tuned",
                    Row(spec_network(c, "specmae-log")),
                ),
            ]
            if c.SPECMAE
            else []
        ),
    ]


def plan_2(c):
    names = {
        "frame": "Random frame masking (Frame)",
        "patch-f": "Random frequency masking (Patch-f)",
        "patch-t": "Random time masking (Patch-t)",
        "patch-tf": "Random time-frequency masking (Patch-tf)",
    }
    return [(names[s], Row(with_strategy(base_patch(c), s)), paper) for s, paper in PAPER_TABLE_2.items()]


def base_patch(c):
    """The base network with patches, where STRATEGY is "frame"."""
    return replace(base_network(c), strategy="patch-tf", t=size(c.TOKEN_SIZE)[0], d=size(c.TOKEN_SIZE)[1])


def plan_3(c):
    network = base_network(c)
    return [
        (
            f"(t·d·(e={e})) = {network.t * network.d * e}",
            Row(replace(network, code_width=e)),
            PAPER_TABLE_3.get(e, ())[1:],
        )
        for e in c.CODE_WIDTHS
    ]


def plan_4(c):
    return [
        (f"VQ-MAE-S-{depth}", Row(replace(base_network(c), depth=depth)), PAPER_TABLE_4.get(depth, ())[1:])
        for depth in c.DEPTHS
    ]


def plan_ratios(c):
    return [
        (f"{strategy} {ratio:g}", Row(replace(with_strategy(base_patch(c), strategy), ratio=ratio)))
        for strategy in ("patch-tf", "frame")
        for ratio in c.RATIOS
    ]


def plan_token_sizes(c):
    return [(text, Row(replace(base_patch(c), t=size(text)[0], d=size(text)[1]))) for text in c.TOKEN_SIZES]


def plan_equal(c):
    """Frame and patch masking in models of one width, hence of nearly as many parameters."""
    patch, frame = base_patch(c), frame_of_patch_width(c)
    return [(f"Patch-tf, {frame.width} units", Row(patch)), (f"Frame, {frame.width} units", Row(frame))]


def frame_of_patch_width(c):
    """Frame masking in a model as wide as that of patches, with a projection from its larger tokens."""
    patch = base_patch(c)
    return replace(with_strategy(patch, "frame"), width=patch.width or patch.t * patch.d * patch.code_width)


def plan_mean(c):
    """Table 1 read from the mean of all tokens: CLS, which the paper reads, has no part in the loss of pretraining."""
    network = base_network(c)
    return [
        ("random and frozen", Row(network, pretrained=False, freeze=True, head="mean")),
        ("pretrained, frozen", Row(network, freeze=True, head="mean")),
        ("not pretrained, trained", Row(network, pretrained=False, head="mean")),
        ("pretrained, fine-tuned", Row(network, head="mean")),
    ]


def plan_5(c, corpus):
    """Table 5's rows of one corpus; the paper's own figures where it has this corpus."""
    patch, frame = base_patch(c), with_strategy(base_patch(c), "frame")
    spectra = {
        "SpecMAE (Patch-tf)": Row(spec_network(c, "specmae")),
        "SpecMAE (Patch-tf) on log power": Row(spec_network(c, "specmae-log")),
    }
    rows = {
        **(spectra if c.SPECMAE else {}),
        "VQ-MAE-S (Patch-tf), not pretrained": Row(patch, pretrained=False),
        "VQ-MAE-S (Patch-tf)": Row(patch),
        "VQ-MAE-S (Patch-tf) + Query2Emo": Row(patch, head="query2emo"),
        "VQ-MAE-S (Frame), not pretrained": Row(frame, pretrained=False),
        "VQ-MAE-S (Frame)": Row(frame),
        "VQ-MAE-S (Frame) + Query2Emo": Row(frame, head="query2emo"),
    }
    column = paper_column(corpus)
    printed = (
        {label: numbers[column] for label, numbers in PAPER_TABLE_5.items()} if column is not None else {}
    )
    return [Entry("5", corpus, label, row, printed.get(label) or ()) for label, row in rows.items()]


def paper_column(corpus):
    """Where Table 5 has a corpus, or its synthetic stand-in; None if it has not."""
    name = corpus.removeprefix("demo_")
    known = {
        "ravdess": 0,
        "ravdess:speech": 0,
        "ravdess:song": 1,
        "iemocap": 2,
        "iemocap:disgust": 2,
        "emodb": 3,
    }
    return known.get(name)


# ---- Cells ---------------------------------------------------------------------------------


def write(study, run, parameters, vqvae_figures):
    """All tables and figures. parameters: {Network: count}; vqvae_figures: {pretraining: figures of its VQ-VAE}."""
    entries = plan(study.c, tuple(study.corpora))
    by_part = {part: [entry for entry in entries if entry.part == part] for part in PARTS}
    for part, title in (
        ("1", "Table 1. Pretraining, frozen encoder, SpecMAE"),
        ("2", "Table 2. Masking strategies"),
        ("3", "Table 3. Continuous embedding sizes"),
        ("4", "Table 4. Encoder depths"),
        ("equal", "Frame and patch masking at one width"),
        ("mean", "Emotion from the mean of all tokens"),
    ):
        if by_part[part]:
            table(study, run, part, title, by_part[part], parameters)
    if by_part["5"]:
        table_5(study, run, by_part["5"])
    if by_part["fig2"]:
        ratio_figure(study, run, by_part["fig2"])
    if by_part["fig3"]:
        token_size_figure(study, run, by_part["fig3"])
    tests_table(study, run, entries)
    vqvae_table(study, run, vqvae_figures)
    reconstructions(study, run)


def scores(study, entry):
    """Accuracy by fold, then of all test turns together: accuracy, UAR, weighted and macro F1; the authors' figure."""
    corpus = study.corpora[entry.corpus]
    outcome = study.outcomes[entry.row, corpus.name]
    paper = (*entry.paper, None, None)
    by_fold = {
        run: (slice(i // len(corpus.folds), i // len(corpus.folds) + 1), scored(outcome, corpus, i))
        for i, run in enumerate(outcome.runs)
    }
    pooled = {
        (seed, "all folds"): (slice(i, i + 1), np.flatnonzero(outcome.predicted[i] >= 0))
        for i, seed in enumerate(study.c.SEEDS)
    }

    def cell(column, metric, runs, number=None):
        return score_cell(
            entry.label,
            column,
            metric,
            corpus.y,
            outcome.predicted,
            corpus.speakers,
            runs,
            study.c.N_RESAMPLES,
            number,
        )

    return [
        cell("accuracy", metrics.accuracy, by_fold, paper[0]),
        cell("accuracy pooled", metrics.accuracy, pooled),
        cell("UAR", metrics.unweighted_recall, pooled),
        cell("weighted F1", metrics.weighted_f1, pooled, paper[1]),
        cell("macro F1", metrics.macro_f1, pooled),
        Cell(entry.label, "accuracy, best TEST epoch", outcome.best_test, outcome.runs, n=len(corpus.turns)),
    ]


def scored(outcome, corpus, i):
    """The turns that run i tested."""
    tested = corpus.tested[i % len(corpus.folds)]
    return tested[outcome.predicted[i // len(corpus.folds), tested] >= 0]


def note_of(study, corpus):
    """What every table says: which speech pretrained, what a run is, chance, the column of the authors' protocol."""
    majority, uniform = metrics.chance(corpus.y, len(corpus.manifest.classes))
    kept = (
        "speakers of a fold's test part are kept from its VQ-VAE and pretraining"
        if corpus.base in study.c.PRETRAIN_CORPORA and study.c.LEAVE_OUT == "tested"
        else "test speakers are heard, unlabelled, in pretraining"
        if corpus.base in study.c.PRETRAIN_CORPORA
        else "no speaker of it is tested"
    )
    return (
        f"Pretrained on {', '.join(study.c.PRETRAIN_CORPORA)} ({study.c.PRETRAIN_EPOCHS} epochs; {kept}), once, with "
        "the first seed; seeds and folds vary the fine-tuning. accuracy: mean over folds; pooled, UAR (mean of class "
        "recalls) and F1: of all test turns together. Last column: the authors' protocol on the same trainings, the "
        "best epoch on the test fold; beside the first it shows what that is worth. Chance "
        f"{100 * majority:.1f} % (majority class), {100 * uniform:.1f} % (1 / C)."
    )


def table(study, run, part, title, entries, parameters):
    """Tables 1 to 4 and the one at equal width."""
    corpus, cells = study.corpora[entries[0].corpus], []
    printed = {
        "3": {e: row[0] for e, row in PAPER_TABLE_3.items()},
        "4": {depth: row[0] for depth, row in PAPER_TABLE_4.items()},
    }
    for entry in entries:
        if part in ("3", "4", "equal"):
            key = {"3": entry.row.network.code_width, "4": entry.row.network.depth}.get(part)
            cells.append(
                Cell(
                    entry.label,
                    "parameters",
                    [parameters[entry.row.network] / 1e6],
                    unit="M",
                    paper=printed.get(part, {}).get(key),
                )
            )
        cells += scores(study, entry)
    network = base_network(study.c)
    hidden = f"{100 * network.ratio:g} % of the tokens hidden."
    about = {
        "1": f"Masking {network.strategy}, {hidden}",
        "2": hidden,
        "3": f"Masking {network.strategy}. Parameters with the decoder.",
        "4": f"Masking {network.strategy}. Parameters with the decoder.",
        "equal": "Not in the paper, whose Frame row has tokens of 512 units beside 320 of Patch-tf.",
        "mean": f"Not in the paper, which reads CLS (Table 1). Masking {network.strategy}, {hidden}",
    }[part]
    run.table(f"sadok_table_{part}", f"{title}, {corpus.name}", cells, f"{about} {note_of(study, corpus)}")


def table_5(study, run, entries):
    """Table 5: all corpora; a column each for accuracy and F1, and the published systems that the paper quotes."""
    cells = []
    for corpus in dict.fromkeys(entry.corpus for entry in entries):
        column = paper_column(corpus)
        for label, numbers in PAPER_TABLE_5.items():
            if "[" in label and column is not None and numbers[column]:
                cells.append(Cell(label, f"{study.corpora[corpus].name} accuracy", paper=numbers[column][0]))
        for entry in (entry for entry in entries if entry.corpus == corpus):
            for cell in scores(study, entry):
                if cell.column in ("accuracy", "UAR", "weighted F1", "accuracy, best TEST epoch"):
                    cells.append(replace(cell, column=f"{study.corpora[corpus].name} {cell.column}"))
    parts = [
        f"{c.name}: {len(c.turns):,} turns, {len(set(c.speakers))} speakers, {', '.join(c.manifest.classes)}; "
        f"{c.protocol}."
        for c in study.corpora.values()
    ]
    run.table(
        "sadok_table_5",
        "Table 5. Overall results",
        cells,
        " ".join(parts) + " " + note_of(study, next(iter(study.corpora.values()))),
        protocol="of each corpus below",
    )


def tests_table(study, run, entries):
    """Beyond the paper: what pretraining, frame masking, codes instead of spectra and Query2Emo gain, with tests."""
    main, c = next(iter(study.corpora.values())), study.c
    patch, from_mean = base_patch(c), Row(base_network(c), head="mean")
    frame, same_width = Row(with_strategy(patch, "frame")), Row(frame_of_patch_width(c))
    wanted = {
        "pretrained against not, Patch-tf": (Row(patch), Row(patch, pretrained=False)),
        "pretrained against not, Frame": (frame, replace(frame, pretrained=False)),
        "pretrained against not, mean of tokens": (from_mean, replace(from_mean, pretrained=False)),
        "pretrained against not, mean of tokens, frozen": (
            replace(from_mean, freeze=True),
            replace(from_mean, freeze=True, pretrained=False),
        ),
        "mean of tokens against CLS": (from_mean, replace(from_mean, head="cls")),
        "fine-tuned against frozen": (Row(patch), Row(patch, freeze=True)),
        "Frame against Patch-tf": (frame, Row(patch)),
        "Frame against Patch-tf, one width": (same_width, Row(patch)),
        "codes against SpecMAE": (Row(patch), Row(spec_network(c, "specmae"))),
        "codes against SpecMAE on log power": (Row(patch), Row(spec_network(c, "specmae-log"))),
        "Query2Emo against CLS, Patch-tf": (Row(patch, head="query2emo"), Row(patch)),
        "Query2Emo against CLS, Frame": (replace(frame, head="query2emo"), frame),
    }
    done = {
        row: study.outcomes[row, main.name].predicted
        for row in {entry.row for entry in entries}
        if (row, main.name) in study.outcomes
    }
    pairs = {
        label: (done[ours], done[theirs])
        for label, (ours, theirs) in wanted.items()
        if ours in done and theirs in done and ours != theirs
    }
    if not pairs:
        return
    rows = np.flatnonzero(np.all([p >= 0 for pair in pairs.values() for p in pair], axis=(0, 1)))
    scored_pairs = {label: (ours[:, rows], theirs[:, rows]) for label, (ours, theirs) in pairs.items()}
    cells, note = paired_test_cells(
        "gain in accuracy", scored_pairs, main.y[rows], main.speakers[rows], c.N_RESAMPLES
    )
    run.table("sadok_table_tests", f"Paired tests, {main.name}", cells, f"Not in the paper. {note}")


def vqvae_table(study, run, figures):
    """Beyond the paper: how well the VQ-VAE reconstructs, and how much of its codebook is used."""
    columns = {
        "itakura_saito": ("Itakura-Saito divergence", "", 3),
        "log_spectral_distance": ("log-spectral distance", "dB", 2),
        "perplexity": ("codebook perplexity (of 256)", "", 1),
        "usage": ("codes used", "%", 1),
    }
    cells = []
    for part, found in figures.items():
        row = "all speakers" if part == "all" else f"without the speakers of fold {part + 1}"
        for name, (column, unit, digits) in columns.items():
            value = found[name] * (100 if unit == "%" else 1)
            cells.append(Cell(row, column, [value], unit=unit, digits=digits))
        print(f"  VQ-VAE, {row}: " + ", ".join(f"{columns[name][0]} {found[name]:.3g}" for name in columns))
    corpus = next(iter(study.corpora.values()))
    run.table(
        "sadok_table_vqvae",
        f"VQ-VAE on {corpus.name}, which it has not heard",
        cells,
        "Not in the paper. The authors' model as they use it: Itakura-Saito 0.63, 6.7 dB, perplexity 191, on other "
        "speech.",
    )


# ---- Figures -------------------------------------------------------------------------------


def ratio_figure(study, run, entries):
    """Figure 2: accuracy by masking ratio, patches and frames."""
    corpus, series, cells = study.corpora[entries[0].corpus], {}, []
    for entry in entries:
        found = scores(study, entry)
        cells += found
        name = "frame masking" if entry.row.network.strategy == "frame" else "patch masking (tf)"
        series.setdefault(name, []).append((100 * entry.row.network.ratio, found[1]))
    run.table("sadok_table_fig_2", f"Figure 2 in numbers, {corpus.name}", cells, note_of(study, corpus))
    drawn = {
        name: (
            [x for x, _ in points],
            [c.mean for _, c in points],
            [c.low for _, c in points],
            [c.high for _, c in points],
        )
        for name, points in series.items()
    }
    figure = plots.curves(
        drawn,
        "hidden tokens (%)",
        "accuracy, pooled (%)",
        100 * metrics.chance(corpus.y, len(corpus.manifest.classes))[0],
    )
    run.figure(
        plots.save(
            figure,
            run.folder,
            "sadok_fig_2_ratio",
            f"Figure 2. Impact of the masking ratio, {corpus.name}, n = {len(corpus.turns):,}, seeds "
            f"{', '.join(map(str, study.c.SEEDS))}; bars: 95 % interval, speakers resampled; dotted: "
            "majority class. The paper finds the best of patch masking near 80 %, frame masking nearly flat.",
        )
    )


def token_size_figure(study, run, entries):
    """Figure 3: accuracy by token size."""
    corpus, cells, values = study.corpora[entries[0].corpus], [], {}
    for entry in entries:
        found = scores(study, entry)
        cells += found
        values[entry.row.network.t, entry.row.network.d] = found[1].mean
    run.table("sadok_table_fig_3", f"Figure 3 in numbers, {corpus.name}", cells, note_of(study, corpus))
    figure = plots.value_map(
        values, "t, frames per token", "d, codes of a frame per token", "accuracy, pooled (%)"
    )
    run.figure(
        plots.save(
            figure,
            run.folder,
            "sadok_fig_3_token_size",
            f"Figure 3. Impact of the token size (t, d), {corpus.name}, n = {len(corpus.turns):,}, seeds "
            f"{', '.join(map(str, study.c.SEEDS))}. The paper's best is (10, 4).",
        )
    )


def reconstructions(study, run):
    """Beyond the paper: a test clip as it is, masked, and as VQ-VAE and VQ-MAE-S reconstruct it; and to listen to."""
    from_pretraining = [
        (network, part) for network, part in study.pretrained if network == base_network(study.c)
    ]
    if not from_pretraining:
        return
    network, part = from_pretraining[0]
    corpus = next(iter(study.corpora.values()))
    turn = corpus.folds[0 if part == "all" else part].test[0]
    panels = reconstruct(study, network, part, corpus.manifest.path(turn.audio))
    folder = Path(study.c.DATA_ROOT) / "listen" / corpus.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, power in panels.items():
        path = folder / f"{turn.utterance_id}_{name.split(',')[0].replace(' ', '_')}.wav"
        write_wav(
            path,
            0.9 * normalise_peak(griffin_lim(power.nan_to_num(0.0), LISTEN_ITERATIONS, 0).numpy()),
            RATE_HZ,
        )
    print(f"  listen    {folder}/{turn.utterance_id}_*.wav (phase by Griffin-Lim)")
    decibels = {name: 10 * torch.log10(power + 1e-10).T.numpy() for name, power in panels.items()}
    figure = plots.spectrograms(decibels, HOP / RATE_HZ, RATE_HZ / 2000)
    run.figure(
        plots.save(
            figure,
            run.folder,
            "sadok_fig_reconstruction",
            f"A test clip of {corpus.name} ({turn.utterance_id}), not in the paper. Masking "
            f"{network.strategy}, {100 * network.ratio:g} % of the tokens hidden (white); the codes found for "
            "them are decoded by the VQ-VAE.",
        )
    )


@torch.no_grad()
def reconstruct(study, network, part, path):
    """{title: power (T, 513)} of a clip: original, masked, VQ-VAE, VQ-MAE-S."""
    vqvae, model = study.vqvaes[part][0], study.load_pretrained(network, part)
    device, grid = study.accelerator.device, model.encoder.grid
    model = model.to(device).eval()
    power = power_spectrogram(torch.from_numpy(normalise_peak(read_audio(path))))
    power = power[torch.arange(grid.n_frames) % len(power)]
    codes = vqvae.encode(power.to(device)).clone()[None].long()  # (1, T, 64)
    hidden = mask_tokens(grid, network.strategy, network.ratio, 1, torch.Generator().manual_seed(0))
    found = model.reconstruct(codes, hidden.to(device))
    shares = (
        hidden.view(1, grid.n_time, grid.n_freq).repeat_interleave(grid.t, 1).repeat_interleave(grid.d, 2)[0]
    )
    # 513 bins stand above 64 codes: 8 bins each, the last bin with the last code.
    bins = shares.repeat_interleave(8, 1)[:, torch.arange(power.shape[1]).clamp(max=511)]
    right = (found == codes).view(-1)[shares.reshape(-1).to(device)].float().mean()
    return {
        "original": power,
        "masked": power.masked_fill(bins, float("nan")),
        "VQ-VAE": vqvae.decode(codes[0]).cpu(),
        f"VQ-MAE-S, {100 * float(right):.0f} % of hidden codes found": vqvae.decode(found[0]).cpu(),
    }
