"""Pretrain VQ-MAE-S on the codes of unlabelled speech and fine-tune it to recognise emotions.

Paper: S. Sadok, S. Leglaive, R. Seguier, "A vector quantized masked autoencoder for speech emotion recognition",
ICASSP 2023 workshop SASB: Tables 1-5, Figures 2 and 3. The VQ-VAE is common/sadok/vqvae.py, the masked autoencoders,
heads and the asymmetric loss are common/sadok/vqmae.py, the store of codes is common/sadok/codes.py, tables and figures are
common/sadok/tables.py.

    python 05_pretrain_vqmae.py                     # VoxCeleb2 and four emotional corpora, each prepared by 01
    python 05_pretrain_vqmae.py --demo              # after 01 --demo --CORPUS=demo_voxceleb2, demo_ravdess, demo_emodb
    python 05_pretrain_vqmae.py --cpu               # RAVDESS and EMO-DB alone, sizes for two CPU cores
    accelerate launch 05_pretrain_vqmae.py          # several GPUs

Four stages, each kept in <DATA_ROOT> and gone on with after a kill:
1. VQ-VAE on the power spectra of PRETRAIN_CORPORA            -> models/<pretraining>/sadok/vqvae
2. every clip of every corpus as codes, once                  -> codes/<corpus>
3. masked pretraining of each network that a table needs      -> models/<pretraining>/sadok/<network>
4. fine-tuning, for each row of a table, fold and seed        -> models/<corpus>/sadok/<network>/<row>
Writes results/05_pretrain_vqmae/<corpus>/: sadok_table_1 ... 5, sadok_fig_2_ratio, sadok_fig_3_token_size (as in the
paper); sadok_table_mean, sadok_table_equal, sadok_table_tests, sadok_table_vqvae, sadok_fig_reconstruction (beyond it);
predictions.csv, metrics.json, log.jsonl. What a masked clip sounds like: <DATA_ROOT>/listen/<corpus>/*.wav.

DEVIATIONS and what the paper leaves open; constants in capitals
1. The epoch is chosen on validation speakers. The authors' code reports the best epoch on the test fold: that figure
   of the same trainings stands in a column of its own, and SELECT_ON = "test" runs their protocol as a whole.
2. Nobody is left out: 24 actors make folds of 5, 5, 5, 5 and 4 (theirs leave four untested). IEMOCAP's folds are its
   sessions.
3. Where a corpus serves pretraining and testing, the speakers that a fold tests are kept from its VQ-VAE and its
   pretraining too (LEAVE_OUT). With VoxCeleb2 there is nothing to leave out.
4. The code of a frame depends on that frame alone, as the paper says. In the authors' code it depends on the clip,
   through BatchNorm; ours reads log power, standardised for each bin, and has no normalisation layer. Codes start from
   encoded frames, and one that is used less than 3 % of its fair share starts anew; the rate falls by a cosine,
   gradients are clipped to norm 1, and the Itakura-Saito divergence on held-out speakers chooses the epoch.
5. round(ratio * N) tokens are hidden and all of them are in the loss; whole lines along time or frequency.
6. Frame masking has tokens of a whole frame, (1, 64), hence a model of 512 instead of 320 units: the paper compares
   50.6 with 19.9 million parameters. sadok_table_equal has both at one size.
7. First positions are drawn from N(0, 1), as large as the first embeddings of codes (0.02 in MAE).
8. Not in the paper: epochs of both trainings, batch of fine-tuning, gammas and smoothing of the asymmetric loss, first
   200 frames in fine-tuning (facts of the authors' code). Query2Emo has 1 + 1 blocks as in the paper (1 + 2 in the
   code). SEEDS repeat the fine-tuning; each network is pretrained once, with the first of them.
9. "disgusted" of IEMOCAP ("iemocap:disgust"): two turns of the release have that label, in sessions 1 and 3, so that
   this is a task of three classes in effect; the usual four stand beside it. "happy" is without "excited" there.
10. Slips of the paper: 28.6 % in its text is 26.8 % in Table 1; the gains by time and frequency masking are swapped
   between text and Table 2. F1 is not defined there: ours is weighted by class size, macro F1 beside it.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file

from common import splits
from common.errors import UserError
from common.files import hash_of, read_json, write_json
from common.manifest import prepared_folder
from common.results import prediction_rows, start_run
from common.sadok import tables as sadok_tables
from common.sadok.codes import Crops, Tokenising, tokenise
from common.sadok.data import Corpus, Memory, Powers, Repeated, read_part
from common.sadok.vqmae import (
    STRATEGIES,
    VQMAE,
    EmotionClassifier,
    Grid,
    Sizes,
    SpecMAE,
    asymmetric_loss,
    build,
    count_parameters,
    mask_tokens,
)
from common.sadok.vqvae import (
    CODES_PER_FRAME,
    HOP,
    N_BINS,
    N_CODES,
    N_FFT,
    RATE_HZ,
    Frames,
    evaluate_vqvae,
    power_spectrogram,
    train_vqvae,
)
from common.shares import follow_parent, read_share, run_shares
from common.store import rows_of
from common.training import Recipe, best_weights, fit, kept_outcome, load_trained, make_accelerator, predict

# ---- Constants to tweak: corpora and protocol ----------------------------------------------
DATA_ROOT = "data"  # folder of corpora, codes, models
RESULTS_ROOT = "results"  # tables and figures go to <RESULTS_ROOT>/05_pretrain_vqmae/<corpus>/
CORPUS = "ravdess:speech"  # of Tables 1-4 and Figures 2-3: a prepared corpus, or a part of one after a colon:
# "ravdess:speech", "ravdess:song", "iemocap", "iemocap:disgust", "emodb", ...
TABLE_5_CORPORA = (
    "ravdess:speech",
    "ravdess:song",
    "iemocap:disgust",
    "iemocap",
    "emodb",
)  # those not prepared are
# left out, and said so
PRETRAIN_CORPORA = ("voxceleb2",)  # unlabelled speech for VQ-VAE and pretraining (Sec. 3.1.1)
LEAVE_OUT = "tested"  # "tested": pretraining never hears the speakers that a fold tests; "nobody"
SEEDS = (0, 1, 2)  # one fine-tuning each; tables show mean ± sd over them. Not in the paper
N_GROUPS = 5  # folds (Sec. 3.1.3), where the corpus has no sessions
VALIDATE_ON = "group"  # "group" or "speaker": who validates. Not in the paper
SELECT_ON = "validation"  # "test": the authors' protocol, optimistic; tables name the one used
N_RESAMPLES = 10000  # of speakers behind every interval; sign patterns of the permutation test

# ---- Tables and figures --------------------------------------------------------------------
TABLES = (
    "1",
    "2",
    "3",
    "4",
    "5",
    "fig2",
    "fig3",
    "equal",
    "mean",
)  # which to make; "equal": frames and patches
# in models of one width; "mean": Table 1 read from the mean of tokens, not CLS
RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9)  # Figure 2
CODE_WIDTHS = (4, 8, 16)  # Table 3, e
DEPTHS = (6, 12, 16, 20)  # Table 4
TOKEN_SIZES = (
    "5x4",
    "10x2",
    "10x4",
    "10x8",
    "20x4",
    "20x8",
)  # Figure 3, t x d; the paper's own values are lost

# ---- VQ-VAE (Sec. 2.1 and 3.1.1) -----------------------------------------------------------
CODE_SIZE = 8  # of a codebook vector
VQVAE_LEARNING_RATE = 1e-3  # authors' code; the paper gives none
VQVAE_CLIPS = 16  # clips per step ...
VQVAE_FRAMES = 64  # ... and frames of each: 1,024 frames, as in the authors' code
VQVAE_EPOCHS = 50  # of VQVAE_STEPS each. Not in the paper
VQVAE_STEPS = 2000  # steps per epoch. Not in the paper

# ---- VQ-MAE-S (Sec. 2.2 and 2.3) -----------------------------------------------------------
N_FRAMES = 200  # T, 4 s (authors' code)
TOKEN_SIZE = "10x4"  # t x d of a token (Figure 3)
STRATEGY = "patch-tf"  # "patch-tf", "patch-t", "patch-f", "frame": of all rows that do not vary it
RATIO = 0.8  # share of hidden tokens
CODE_WIDTH = 8  # e of the embedding (Table 3)
TRAIN_CODEBOOK = True  # Sec. 2.2: "held frozen or fine-tuned"
DEPTH = 12  # blocks of the encoder
DECODER_DEPTH = 4  # ... of the decoder
HEADS = 4  # of attention
MLP_RATIO = 4  # units of an MLP by units of the model (authors' code)
WIDTH = 0  # units of the model; 0 = t * d * e, which needs no projection, as in the paper
SPECMAE = True  # whether SpecMAE's rows are made: False saves its trainings
SPEC_PATCH = "10x27"  # SpecMAE: frames x bins of a patch (authors' code)
SPEC_WIDTH = 320  # SpecMAE: units of the model (authors' code)

# ---- Pretraining (Sec. 3.1.1) --------------------------------------------------------------
BASE_RATE = 1e-3  # AdamW; learning rate = BASE_RATE * PRETRAIN_BATCH / 256
PRETRAIN_BATCH = 512  # crops per step
BETAS = (0.9, 0.95)  # of AdamW; also in fine-tuning
WEIGHT_DECAY = 0.05  # of weight matrices; also in fine-tuning
PRETRAIN_WARMUP = 100  # epochs of rising rate, then a cosine
PRETRAIN_EPOCHS = 400  # not in the paper
CROPS_PER_CLIP = 1  # random crops of a clip per epoch: more for small corpora

# ---- Fine-tuning (Sec. 3.1.2) --------------------------------------------------------------
FINETUNE_RATE = 1e-4  # AdamW
FINETUNE_BATCH = 16  # clips per step (authors' code)
FINETUNE_WARMUP = 40  # epochs of rising rate, then a cosine
FINETUNE_EPOCHS = 100  # not in the paper
GAMMA_POS = 0.0  # asymmetric loss: focus on the label (authors' code)
GAMMA_NEG = 4.0  # ... and on the other classes (authors' code)
SMOOTHING = 0.1  # of labels (authors' code)
QUERY_BLOCKS = (1, 1)  # Query2Emo: blocks of its encoder and decoder; (1, 2) in the authors' code
QUERY_HEADS = 8  # Query2Emo: heads of attention (authors' code)
KEEP_MODELS = False  # also keep fine-tuned weights

# ---- Machine -------------------------------------------------------------------------------
MEMORY_GB = 2.0  # GB that VQ-VAE and SpecMAE keep of decoded audio; the rest is read whenever drawn
MAX_PROBLEM_SHARE = 0.05  # stop where more than this share of clips cannot be tokenised
EVAL_BATCH_SIZE = 64  # clips per forward pass outside training
PRECISION = "auto"  # "auto" (bf16 or fp16 on a GPU), "no" (fp32, as the authors), "bf16", "fp16"
WORKERS = 4  # processes that read audio and prepare batches, 0 = none
JOBS = 1  # processes that train networks side by side, on this machine; 1 = in turn
SHARE = ""  # "2/3": train the second of three shares of the networks and make no tables, on one
# of three machines that share DATA_ROOT; before that CODES_ONLY, after it neither
CODES_ONLY = False  # True: stop when VQ-VAEs and codes are there

# ---- Presets -------------------------------------------------------------------------------
DEMO = {
    "CORPUS": "demo_ravdess:speech",
    "SEEDS": (0,),
    "N_GROUPS": 3,
    "PRETRAIN_CORPORA": ("demo_voxceleb2",),
    "TABLE_5_CORPORA": ("demo_ravdess:speech", "demo_emodb"),
    "RATIOS": (0.5, 0.8),
    "CODE_WIDTHS": (4, 8),
    "DEPTHS": (1, 2),
    "TOKEN_SIZES": ("10x8", "20x8"),
    "VQVAE_LEARNING_RATE": 3e-3,
    "VQVAE_CLIPS": 8,
    "VQVAE_FRAMES": 16,
    "VQVAE_EPOCHS": 2,
    "VQVAE_STEPS": 250,
    "N_FRAMES": 60,
    "TOKEN_SIZE": "10x8",
    "DEPTH": 2,
    "DECODER_DEPTH": 1,
    "WIDTH": 64,
    "SPEC_PATCH": "20x27",
    "SPEC_WIDTH": 64,
    "BASE_RATE": 64e-3,
    "PRETRAIN_BATCH": 16,
    "PRETRAIN_WARMUP": 3,
    "PRETRAIN_EPOCHS": 28,
    "FINETUNE_RATE": 3e-3,
    "FINETUNE_WARMUP": 3,
    "FINETUNE_EPOCHS": 16,
    "WORKERS": 0,
    "JOBS": 2,
}  # synthetic corpora, models of 64 units
CPU = {
    "SEEDS": (0,),
    "PRETRAIN_CORPORA": ("ravdess", "emodb"),
    "TABLE_5_CORPORA": ("ravdess:speech", "emodb"),
    "TABLES": ("1", "mean"),
    "VQVAE_LEARNING_RATE": 3e-3,
    "VQVAE_CLIPS": 8,
    "VQVAE_FRAMES": 16,
    "VQVAE_EPOCHS": 4,
    "VQVAE_STEPS": 500,
    "N_FRAMES": 160,
    "TOKEN_SIZE": "20x8",
    "DEPTH": 4,
    "DECODER_DEPTH": 2,
    "WIDTH": 128,
    "SPECMAE": False,
    "BASE_RATE": 16e-3,
    "PRETRAIN_BATCH": 16,
    "PRETRAIN_WARMUP": 2,
    "PRETRAIN_EPOCHS": 40,
    "FINETUNE_RATE": 3e-4,
    "FINETUNE_WARMUP": 2,
    "FINETUNE_EPOCHS": 20,
    "WORKERS": 0,
}
# RAVDESS and EMO-DB without VoxCeleb2, on two CPU cores
SETTINGS = {}  # filled by settings.run: what this run used


# ---- What a run works on -------------------------------------------------------------------


def table_5_corpora(c, first):
    """{name: Corpus} of TABLE_5_CORPORA, those that are prepared and can be divided; CORPUS comes first.

    They are here without Table 5 too: the speakers that they test are kept from pretraining, so that runs with another
    CORPUS or other TABLES share it.
    """
    found = {CORPUS: first}
    for name in TABLE_5_CORPORA:
        if not (prepared_folder(DATA_ROOT, name.partition(":")[0]) / "manifest.csv").exists():
            print(f"  {name}: not prepared by 01, left out of Table 5")
            continue
        try:
            found.setdefault(name, Corpus(c, name))
        except UserError as error:
            print(f"  {name}: left out of Table 5: {error}")
    return found


@dataclass
class Outcome:
    """Fine-tunings of one row on one corpus: predictions (seeds, N), and accuracies of the best test epoch in %."""

    predicted: np.ndarray  # -1 where a clip could not be tokenised
    best_test: list  # one per run, as in the authors' protocol
    runs: list  # (seed, fold name) of each


class Study:
    """Corpora, codes and networks of a run."""

    def __init__(self, c, accelerator, corpora):
        self.c, self.accelerator, self.corpora, self.outcomes = c, accelerator, corpora, {}
        self.sources = {name: read_part(DATA_ROOT, name) for name in PRETRAIN_CORPORA}
        self.vqvaes, self.stores, self.pretrained, self.memory = {}, {}, {}, Memory(MEMORY_GB)

    def left_out(self, part):
        """{(corpus, speaker)} kept from the pretraining `part`: "all", or the number of a fold."""
        if part == "all":
            return set()
        return {
            (corpus.base, turn.speaker)
            for corpus in self.corpora.values()
            if corpus.base in PRETRAIN_CORPORA
            for turn in (corpus.folds[part].test if part < len(corpus.folds) else ())
        }

    def part_of(self, corpus, k):
        """The pretraining that serves fold k of a corpus: "all" where it hears none of its tested speakers anyway."""
        return k if LEAVE_OUT == "tested" and corpus.base in PRETRAIN_CORPORA else "all"

    def pretraining_turns(self, part):
        """(training, held-out) turns of PRETRAIN_CORPORA as (corpus, Turn); about 5 % of the speakers are held out."""
        left_out = self.left_out(part)
        turns = [
            (base, turn)
            for base, manifest in self.sources.items()
            for turn in manifest.turns
            if (base, turn.speaker) not in left_out
        ]
        speakers = sorted({(base, turn.speaker) for base, turn in turns})
        if len(speakers) < 2:
            raise UserError(
                f"PRETRAIN_CORPORA={','.join(PRETRAIN_CORPORA)}: {len(speakers)} speakers are left; two or "
                "more are needed"
            )
        chosen = np.random.default_rng((SEEDS[0], 5)).permutation(len(speakers))[
            : max(1, len(speakers) // 20)
        ]
        aside = {speakers[i] for i in chosen}
        return (
            [(base, turn) for base, turn in turns if (base, turn.speaker) not in aside],
            [(base, turn) for base, turn in turns if (base, turn.speaker) in aside],
        )

    def paths(self, turns):
        return [self.sources[base].path(turn.audio) for base, turn in turns]

    def load_pretrained(self, network, part):
        """A network with the weights that pretraining left."""
        model = build_network(network, vqvae_of(self, part)[0].codebook.vectors)
        load_trained(model, load_file(best_weights(pretrain(self, network, part)[0])))
        return model

    def pretraining_folder(self, part):
        """<DATA_ROOT>/models/voxceleb2/sadok, or .../ravdess+emodb/sadok/without_fold2"""
        folder = Path(DATA_ROOT) / "models" / "+".join(PRETRAIN_CORPORA) / "sadok"
        return folder if part == "all" else folder / f"without_fold{part + 1}"


# ---- 1. VQ-VAE (Section 2.1) ---------------------------------------------------------------


def vqvae_of(study, part):
    """The VQ-VAE of a pretraining and a hash of its weights; trained first where it is not there."""
    if part not in study.vqvaes:
        train, aside = (study.paths(turns) for turns in study.pretraining_turns(part))
        recipe = Recipe(
            VQVAE_LEARNING_RATE,
            VQVAE_EPOCHS,
            VQVAE_CLIPS,
            schedule="cosine",
            select_by="itakura_saito",
            higher_is_better=False,
            seed=SEEDS[0],
            workers=WORKERS,
        )
        folder = study.pretraining_folder(part) / "vqvae"
        model = train_vqvae(
            study.accelerator,
            Frames(train, VQVAE_FRAMES, VQVAE_CLIPS * VQVAE_STEPS, MEMORY_GB),
            Frames(aside, VQVAE_FRAMES, 0, MEMORY_GB),
            CODE_SIZE,
            recipe,
            folder,
            {},
        )
        study.vqvaes[part] = (
            model.to(study.accelerator.device).eval(),
            read_json(folder / "vqvae.json")["weights"],
        )
    return study.vqvaes[part]


# ---- 2. Codes ------------------------------------------------------------------------------


def codes_of(study, base, part):
    """The store of codes of a corpus under the VQ-VAE of a pretraining; clips are tokenised once."""
    if (base, part) not in study.stores:
        model, weights = vqvae_of(study, part)
        manifest = study.sources[base] if base in study.sources else read_part(DATA_ROOT, base)
        clips = [(turn.utterance_id, manifest.path(turn.audio)) for turn in manifest.turns]
        settings_ = Tokenising(
            RATE_HZ,
            HOP,
            N_FFT,
            CODES_PER_FRAME,
            1,
            1e-4,
            power_spectrogram,
            MAX_PROBLEM_SHARE,
            8192,
            WORKERS,
            str(study.accelerator.device),
        )
        with study.accelerator.main_process_first():
            study.stores[base, part] = tokenise(
                clips,
                model.encode,
                codes_folder(base, part),
                {"weights": weights, "manifest": manifest.fingerprint()},
                settings_,
            )
    return study.stores[base, part]


def codes_folder(base, part):
    """<DATA_ROOT>/codes/ravdess/voxceleb2, or .../ravdess+emodb_without_fold2"""
    name = "+".join(PRETRAIN_CORPORA) + ("" if part == "all" else f"_without_fold{part + 1}")
    return Path(DATA_ROOT) / "codes" / base / name


def stores_needed(study):
    """(corpus, pretraining) of all stores that this run reads."""
    return dict.fromkeys(
        (base, study.part_of(corpus, k))
        for corpus in study.corpora.values()
        for k in range(len(corpus.folds))
        for base in (*study.sources, corpus.base)
    )


# ---- 3. Pretraining (Sections 2.2, 2.3 and 3.1.1) ------------------------------------------


def grid_of(network):
    return Grid(N_FRAMES, CODES_PER_FRAME if network.kind == "vqmae" else N_BINS, network.t, network.d)


def build_network(network, codebook):
    """A VQMAE or SpecMAE with fresh weights."""
    grid, sizes = grid_of(network), Sizes(network.width, network.depth, DECODER_DEPTH, HEADS, MLP_RATIO)
    if network.kind == "vqmae":
        return build(SEEDS[0], VQMAE, grid, N_CODES, network.code_width, sizes, codebook, TRAIN_CODEBOOK)
    return build(SEEDS[0], SpecMAE, grid, sizes, network.kind == "specmae-log")


def what_it_reads(network):
    return "codes" if network.kind == "vqmae" else "power"


def crops(study, network, turns, part, random, labels=None):
    """Crops of (corpus, Turn) pairs for a network, and the turns without codes left out: (data set, turns)."""
    by_base = {base: [turn for b, turn in turns if b == base] for base in dict.fromkeys(b for b, _ in turns)}
    found = {base: rows_of(codes_of(study, base, part), chosen) for base, chosen in by_base.items()}
    kept = [(base, turn) for base, (chosen, _) in found.items() for turn in chosen]
    labels = None if labels is None else np.array([labels[turn.utterance_id] for _, turn in kept])
    if what_it_reads(network) == "codes":
        parts = [(study.stores[base, part], rows) for base, (_, rows) in found.items()]
        return Crops(parts, N_FRAMES, random, labels), kept
    folders = {base: prepared_folder(DATA_ROOT, base) for base in by_base}
    return Powers(
        [folders[base] / turn.audio for base, turn in kept], N_FRAMES, random, labels, study.memory
    ), kept


def masked_loss(network):
    """The loss of pretraining for training.fit: Eq. 1 with masks drawn anew for each step."""
    grid = grid_of(network)

    def loss(model, batch):
        x = batch[what_it_reads(network)]
        hidden = mask_tokens(grid, network.strategy, network.ratio, len(x), torch.default_generator)
        return model(x, hidden)["loss"] * len(x), len(x)

    return loss


def held_out_figures(study, network, dataset):
    """evaluate(model) for training.fit: loss and share of hidden codes found on held-out speakers, under fixed masks."""
    grid, n = grid_of(network), min(len(dataset.lengths), 4 * EVAL_BATCH_SIZE)
    batches = [range(i, min(i + EVAL_BATCH_SIZE, n)) for i in range(0, n, EVAL_BATCH_SIZE)]

    @torch.no_grad()
    def evaluate(model):
        model.eval()
        generator, sums = torch.Generator().manual_seed(0), {}
        for rows in batches:
            x = dataset.collate([dataset[i, (0, i)] for i in rows])[what_it_reads(network)].to(
                study.accelerator.device
            )
            hidden = mask_tokens(grid, network.strategy, network.ratio, len(x), generator)
            with study.accelerator.autocast():
                for name, value in model(x, hidden).items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(x) / n
        return sums

    return evaluate


def pretrain(study, network, part):
    """Pretrain a network, or take what an earlier run left; returns (folder of its weights, history)."""
    if (network, part) not in study.pretrained:
        train, aside = study.pretraining_turns(part)
        train_set, used = crops(study, network, train, part, True)
        aside_set, _ = crops(study, network, aside, part, False)
        recipe = Recipe(
            BASE_RATE * PRETRAIN_BATCH / 256,
            PRETRAIN_EPOCHS,
            PRETRAIN_BATCH,
            WEIGHT_DECAY,
            "cosine",
            PRETRAIN_WARMUP / PRETRAIN_EPOCHS,
            "epoch",
            BETAS,
            clip_norm=0.0,
            select_by="loss",
            higher_is_better=False,
            keep="last",
            seed=SEEDS[0],
            workers=WORKERS,
        )
        vqvae, weights = vqvae_of(study, part)
        identity = {
            **sizes_identity(network),
            "vqvae": weights,
            "clips": ids_hash([turn for _, turn in used]),
        }
        folder = study.pretraining_folder(part) / network.slug()
        model = build_network(network, vqvae.codebook.vectors)
        history = fit(
            study.accelerator,
            model,
            masked_loss(network),
            Repeated(train_set, CROPS_PER_CLIP),
            held_out_figures(study, network, aside_set),
            recipe,
            folder,
            identity,
            network.slug(),
            epoch_lines=False,
        )
        last = history["log"][-1]
        print(
            f"  pretrained {network.slug():<36} {'' if part == 'all' else f'without fold {part + 1} '}"
            f"{history['seconds']:7.1f} s  held-out loss {last['valid_loss']:.3f}"
            + (f"  codes found {100 * last['valid_accuracy']:.1f} %" if "valid_accuracy" in last else ""),
            flush=True,
        )
        study.pretrained[network, part] = folder, history
    return study.pretrained[network, part]


def sizes_identity(network):
    """What a network depends on besides its training; JSON-ready."""
    return {
        "network": asdict(network),
        "frames": N_FRAMES,
        "decoder_depth": DECODER_DEPTH,
        "heads": HEADS,
        "mlp_ratio": MLP_RATIO,
        "train_codebook": TRAIN_CODEBOOK,
        "code_size": CODE_SIZE,
        "crops": CROPS_PER_CLIP,
    }


def ids_hash(turns):
    return hashlib.sha256(repr([turn.utterance_id for turn in turns]).encode()).hexdigest()[:16]


# ---- 4. Fine-tuning (Section 3.1.2) --------------------------------------------------------


def classifier_of(study, row, n_classes, part, seed):
    """The encoder of a row, pretrained or fresh, under its head."""
    autoencoder = (
        study.load_pretrained(row.network, part)
        if row.pretrained
        else build_network(row.network, vqvae_of(study, part)[0].codebook.vectors)
    )
    return build(
        seed,
        EmotionClassifier,
        autoencoder.encoder,
        row.head,
        n_classes,
        row.freeze,
        QUERY_BLOCKS,
        QUERY_HEADS,
        MLP_RATIO,
    )


def finetune_recipe(seed):
    return Recipe(
        FINETUNE_RATE,
        FINETUNE_EPOCHS,
        FINETUNE_BATCH,
        WEIGHT_DECAY,
        "cosine",
        FINETUNE_WARMUP / FINETUNE_EPOCHS,
        "epoch",
        BETAS,
        clip_norm=0.0,
        seed=seed,
        workers=0,
    )


def finetune(study, row, corpus, k, seed):
    """Fine-tune a row on one fold and test it; returns what is kept in test.json."""
    fold, part = corpus.folds_of[seed][k], study.part_of(corpus, k)
    labels = {turn.utterance_id: corpus.y[i] for i, turn in enumerate(corpus.turns)}
    data, kept = {}, {}
    for name in ("train", "valid", "test"):
        turns = [(corpus.base, turn) for turn in getattr(fold, name)]
        data[name], pairs = crops(study, row.network, turns, part, False, labels)
        kept[name] = [turn for _, turn in pairs]
    recipe, identity = finetune_recipe(seed), finetune_identity(study, row, corpus, kept, part)
    folder = Path(DATA_ROOT) / "models" / corpus.name / "sadok" / row.network.slug() / row.slug()
    folder = folder / f"seed{seed}" / fold.name
    outcome = kept_outcome(folder, recipe, identity)
    return outcome or train_and_test(study, row, corpus, data, kept["test"], recipe, folder, identity, part)


def finetune_identity(study, row, corpus, kept, part):
    """What a fine-tuning depends on besides its recipe; JSON-ready."""
    before = pretrain(study, row.network, part)[1]["identity"] if row.pretrained else vqvae_of(study, part)[1]
    return {
        "row": asdict(row),
        **sizes_identity(row.network),
        "select_on": SELECT_ON,
        "loss": [GAMMA_POS, GAMMA_NEG, SMOOTHING],
        "query": [*QUERY_BLOCKS, QUERY_HEADS],
        "classes": list(corpus.manifest.classes),
        "precision": study.accelerator.mixed_precision,
        "before": hash_of(before),
        "turns": {name: ids_hash(turns) for name, turns in kept.items()},
    }


def train_and_test(study, row, corpus, data, test_turns, recipe, folder, identity, part):
    """One fine-tuning; the accuracy on the test fold is logged after each epoch, but chooses nothing."""
    accelerator, reads = study.accelerator, what_it_reads(row.network)
    model = classifier_of(study, row, len(corpus.manifest.classes), part, recipe.seed)

    def loss(model, batch):
        logits = model(batch[reads])
        return asymmetric_loss(logits, batch["labels"], GAMMA_POS, GAMMA_NEG, SMOOTHING) * len(logits), len(
            logits
        )

    def accuracy_and_logits(name):
        logits = predict(
            accelerator, model, lambda m, batch: {"logits": m(batch[reads])}, data[name], EVAL_BATCH_SIZE, 0
        )["logits"]
        return float(np.mean(logits.argmax(1) == data[name].labels)), logits

    def evaluate(_):
        return {"accuracy": accuracy_and_logits("valid")[0], "test_accuracy": accuracy_and_logits("test")[0]}

    title = f"{corpus.name} {row.network.slug()} {row.slug()} {folder.name}"
    history = fit(
        accelerator, model, loss, data["train"], evaluate, recipe, folder, identity, title, epoch_lines=False
    )
    accuracy, logits = accuracy_and_logits("test")
    outcome = {
        "history": history,
        "ids": [turn.utterance_id for turn in test_turns],
        "logits": logits.tolist(),
    }
    if accelerator.is_main_process:
        write_json(folder / "test.json", outcome)
        if not KEEP_MODELS:
            best_weights(folder).unlink()
    accelerator.wait_for_everyone()
    print(
        f"  {title:<72} seed {recipe.seed} {history['seconds']:6.1f} s  validation {100 * history['best']:5.1f}  "
        f"test {100 * accuracy:5.1f} %",
        flush=True,
    )
    return outcome


def run_row(study, run, row, corpus):
    """All folds and seeds of a row; fills study.outcomes. run: None in all processes but the first."""
    if (row, corpus.name) in study.outcomes:
        return
    outcome = Outcome(np.full((len(SEEDS), len(corpus.turns)), -1), [], [])
    for i, seed in enumerate(SEEDS):
        for k, fold in enumerate(corpus.folds):
            kept = finetune(study, row, corpus, k, seed)
            rows = np.array([corpus.row[name] for name in kept["ids"]])
            assert (outcome.predicted[i, rows] == -1).all(), "a turn is in two test sets"
            outcome.predicted[i, rows] = np.argmax(kept["logits"], axis=1)
            outcome.best_test.append(100 * max(epoch["test_accuracy"] for epoch in kept["history"]["log"]))
            outcome.runs.append((seed, fold.name))
            if run:
                run.log(
                    {
                        "event": "fine-tuned",
                        "corpus": corpus.name,
                        "network": row.network.slug(),
                        "row": row.slug(),
                        "fold": fold.name,
                        "seed": seed,
                        "epochs": kept["history"]["log"],
                    }
                )
    n_missing = int((outcome.predicted[0] < 0).sum())
    if n_missing:
        print(
            f"  {corpus.name}: {n_missing:,} of {len(corpus.turns):,} labelled turns have no codes, hence no score"
        )
    study.outcomes[row, corpus.name] = outcome


# ---- Main ----------------------------------------------------------------------------------


def share_out(entries):
    """The entries of this run's SHARE: a network with all its rows is one process's, those with most rows first."""
    number, n_shares = read_share(SHARE)
    networks = Counter(
        row.network for row, _ in {(entry.row, entry.corpus): None for entry in entries}
    ).most_common()
    own = {network for network, _ in networks[number::n_shares]}
    return [entry for entry in entries if entry.row.network in own]


def check_codes(study):
    """Refuse a SHARE whose VQ-VAEs and codes are not there: all shares would make them at once."""
    for base, part in stores_needed(study):
        found = (
            study.pretraining_folder(part) / "vqvae" / "vqvae.json",
            codes_folder(base, part) / "meta.json",
        )
        for path in found:
            if not path.exists():
                raise UserError(
                    f"{path}: not there, and SHARE={SHARE} does not make it; first run with "
                    "CODES_ONLY=true and without SHARE"
                )


def check_constants():
    """Refuse what would fail after hours."""
    read_share(SHARE)
    for name, choices in (("LEAVE_OUT", ("tested", "nobody")), ("STRATEGY", STRATEGIES)):
        if globals()[name] not in choices:
            raise UserError(f"{name}={globals()[name]}: choose one of {', '.join(choices)}")
    unknown = set(TABLES) - set(sadok_tables.PARTS)
    if unknown or not TABLES:
        raise UserError(f"TABLES={','.join(unknown)}: choose among {', '.join(sadok_tables.PARTS)}")
    if not 0 <= PRETRAIN_WARMUP < PRETRAIN_EPOCHS or not 0 <= FINETUNE_WARMUP < FINETUNE_EPOCHS:
        raise UserError(
            "PRETRAIN_WARMUP and FINETUNE_WARMUP must be shorter than PRETRAIN_EPOCHS and FINETUNE_EPOCHS"
        )


def vqvae_figures(study):
    """{part: figures} of each VQ-VAE: on held-out speakers, and on the speakers of CORPUS that it never heard."""
    corpus, figures = next(iter(study.corpora.values())), {}
    for part, (model, _) in study.vqvaes.items():
        turns = corpus.turns if part == "all" else corpus.folds[part].test
        frames = Frames([corpus.manifest.path(turn.audio) for turn in turns], VQVAE_FRAMES, 0, 0.0)
        figures[part] = evaluate_vqvae(study.accelerator, model, frames, EVAL_BATCH_SIZE, 0)
    return figures


def main():
    follow_parent()
    check_constants()
    c, accelerator = SimpleNamespace(**SETTINGS), make_accelerator(PRECISION)
    corpus = Corpus(c, CORPUS)
    is_main, makes_tables = accelerator.is_main_process, accelerator.is_main_process and not SHARE
    run = (
        start_run(__file__, SETTINGS, corpus.manifest, corpus.protocol, accelerator.device)
        if makes_tables
        else None
    )
    lines = splits.check_folds(corpus.folds, corpus.manifest)
    print(*(lines if not SHARE else [f"share {SHARE} of the networks"]), sep="\n")
    study = Study(c, accelerator, table_5_corpora(c, corpus))
    entries = share_out(sadok_tables.plan(c, tuple(study.corpora)))
    if SHARE:
        check_codes(study)
    for base, part in stores_needed(study):
        codes_of(study, base, part)
    if CODES_ONLY:
        return
    n_jobs = min(JOBS, len({entry.row.network for entry in entries}))
    if n_jobs > 1 and not SHARE and accelerator.num_processes == 1:
        run_shares(n_jobs)
    for entry in entries:
        run_row(study, run, entry.row, study.corpora[entry.corpus])
    if SHARE:
        return
    figures = vqvae_figures(study)  # by all processes together
    if not is_main:
        return
    networks = {
        network: count_parameters(build_network(network, None))
        for network in {row.network for row, _ in study.outcomes}
    }
    sadok_tables.write(study, run, networks, figures)
    predicted = {
        f"{row.slug()} {row.network.slug()}": outcome.predicted
        for (row, name), outcome in study.outcomes.items()
        if name == corpus.name
    }
    have_codes = np.flatnonzero(np.all([labels[0] >= 0 for labels in predicted.values()], axis=0))
    runs = {
        (seed, fold.name): (slice(i, i + 1), np.intersect1d(tested, have_codes))
        for i, seed in enumerate(SEEDS)
        for fold, tested in zip(corpus.folds, corpus.tested)
    }
    run.predictions(prediction_rows(corpus.turns, corpus.manifest.classes, runs, predicted))
    run.finish()


if __name__ == "__main__":
    settings.run(main, globals())
