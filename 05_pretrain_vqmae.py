"""Pretrain VQ-MAE-S on the codes of unlabelled speech and fine-tune it to recognise emotions.

Paper: S. Sadok, S. Leglaive, R. Seguier, "A vector quantized masked autoencoder for speech emotion
recognition", ICASSP 2023 workshop SASB: Tables 1-5, Figures 2 and 3. common/sadok/ has VQ-VAE and tables.

    python 05_pretrain_vqmae.py               # VoxCeleb2 and emotional corpora, each prepared by 01
    python 05_pretrain_vqmae.py --demo        # after 01 --demo --CORPUS=demo_voxceleb2, _ravdess, _emodb
    python 05_pretrain_vqmae.py --scratch     # RAVDESS and EMO-DB alone, sizes for two CPU cores
    accelerate launch 05_pretrain_vqmae.py    # several GPUs

VQ-VAE and pretraining of each network are kept in <DATA_ROOT>/models/<pretraining>/sadok, codes in codes/,
fine-tuning for each row of a table, fold and seed in models/<corpus>/sadok; a killed run resumes.
Writes results/05_pretrain_vqmae/<corpus>/: Tables 1 to 5, Figures 2 and 3; beyond the paper tables equal,
mean, row, tests, codes, a reconstructed clip; masked clips to listen to in <DATA_ROOT>/listen/<corpus>.

DEVIATIONS and what the paper leaves open; constants in capitals
1. The epoch is chosen on validation speakers. The authors' code reports the best epoch on the test fold: that
   figure of the same trainings has a column of its own, and SELECT_ON = "test" runs their whole protocol.
2. Nobody is left out: 24 actors make folds of 5, 5, 5, 5 and 4 (theirs leave four untested).
3. Where a corpus serves pretraining and testing, the speakers that a fold tests are left out of its VQ-VAE
   and its pretraining too. With VoxCeleb2 there is nothing to leave out.
4. The code of a frame depends on that frame alone, as the paper says; in the authors' code on the clip,
   through BatchNorm. Ours reads standardised log power (more in common/sadok/vqvae.py).
5. round(ratio * N) tokens are hidden and all of them are in the loss; whole lines along time or frequency.
6. Frame masking has tokens of (1, 64), hence 512 units instead of 320; sadok_table_equal has one size.
7. First positions are drawn from N(0, 1), as large as the first embeddings of codes (0.02 in MAE).
8. Epochs are not in the paper. The authors' public configuration: 2,000 in all, a warm-up of 200, batches of
   32, decay of all parameters, one schedule for both trainings, a cosine from epoch 0. Ours: 400 and 100, the
   paper's batch and warm-ups, decay of matrices, a cosine after the warm-up, one pretraining for all SEEDS.
9. Query2Emo: 1 + 1 blocks (paper), LayerNorm first, GELU, MLP_RATIO * width units, weights for each class as
   Query2Label [21]. Theirs: 1 + 2, LayerNorm last, ReLU, 2,048, dropout 0.1, a linear layer over all queries.
10. "iemocap:disgust": two turns are "disgusted", in effect three classes; the usual four stand beside it.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

from dataclasses import asdict, replace
from functools import cache, partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common import splits
from common.files import UserError, file_hash, hash_of, read_json
from common.jobs import side_by_side
from common.layers import TOKEN_STD, build, initialise, sinusoidal, take, vectors
from common.results import start_run
from common.sadok import data, figures, tables
from common.sadok.codes import Masked, StatisticsHead, classify_by_svm, crops_of, extract_codes, fold_sets
from common.sadok.vqvae import N_BINS, N_ROWS, PowerLinear, load_vqvae, train_vqvae
from common.training import Place, Recipe, Task, best_weights, load_best, make_accelerator, train_and_test

# fmt: off
# ---- Roots ---------------------------------------------------------------------------------
DATA_ROOT = "data"                # folder of corpora, codes, models
RESULTS_ROOT = "results"          # tables and figures go to <RESULTS_ROOT>/05_pretrain_vqmae/<corpus>/
RUN = ""                          # name of its folder; "" = the corpus and what differs from the preset

# ---- Corpus and protocol -------------------------------------------------------------------
CORPUS = "ravdess:speech"         # of Tables 1-4, Figures 2-3; or "ravdess:song", "iemocap:disgust", "emodb"
TABLE_5_CORPORA = ("ravdess:speech", "ravdess:song", "iemocap:disgust", "iemocap", "emodb")  # if prepared
PRETRAIN_CORPORA = ("voxceleb2",) # unlabelled speech for VQ-VAE and pretraining (Sec. 3.1.1)
SEEDS = (0, 1, 2)                 # one fine-tuning each; tables show mean ± sd over them. Not in the paper
N_GROUPS = 5                      # folds (Sec. 3.1.3), where the corpus has no sessions
VALIDATE_ON = "group"             # "group" or "speaker": who validates. Not in the paper
SELECT_ON = "validation"          # "test": the authors' protocol, optimistic; tables name the one used
N_RESAMPLES = 10000               # of speakers for every interval; sign patterns of the permutation test

# ---- Tables and figures --------------------------------------------------------------------
TABLES = ("1", "2", "3", "4", "5", "fig2", "fig3")  # which to make; () = none
RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9)     # Figure 2
CODE_WIDTHS = (4, 8, 16)          # Table 3, e
DEPTHS = (6, 12, 16, 20)          # Table 4
TOKEN_SIZES = ("5x4", "10x2", "10x4", "10x8", "20x4", "20x8")  # Figure 3, t x d; the paper's own are lost

# ---- VQ-VAE (Sec. 2.1 and 3.1.1) -----------------------------------------------------------
N_CODES = 256                     # k, vectors in the codebook; at most 256, so that a code takes a byte
CODE_SIZE = 8                     # e, of a codebook vector
VQVAE_LEARNING_RATE = 1e-3        # authors' code; the paper gives none
VQVAE_BATCH_SIZE = 16             # clips per step ...
VQVAE_FRAMES = 64                 # ... and frames of each: 1,024 frames, as in the authors' code
VQVAE_EPOCHS = 50                 # of VQVAE_STEPS each. Not in the paper
VQVAE_STEPS = 2000                # steps per epoch. Not in the paper

# ---- VQ-MAE-S (Sec. 2.2 and 2.3) -----------------------------------------------------------
N_FRAMES = 200                    # T, 4 s (authors' code)
TOKEN_SIZE = "10x4"               # t x d of a token (Figure 3)
STRATEGY = "patch-tf"             # a name in STRATEGIES: of all rows that do not vary it
RATIO = 0.8                       # share of hidden tokens
CODE_WIDTH = 8                    # e of the embedding (Table 3)
TRAIN_CODEBOOK = True             # Sec. 2.2: "held frozen or fine-tuned"
DEPTH = 12                        # blocks of the encoder
DECODER_DEPTH = 4                 # ... of the decoder
HEADS = 4                         # of attention
MLP_RATIO = 4                     # units of an MLP by units of the model (authors' code)
WIDTH = 0                         # units of the model; 0 = t * d * e as in the paper, without projection
SPEC_PATCH = "10x27"              # SpecMAE: frames x bins of a patch (authors' code)
SPEC_WIDTH = 320                  # SpecMAE: units of the model (authors' code)
POSITION_STD = 1.0                # of first positions: with 0.02 (MAE) small models learn more slowly

# ---- Pretraining (Sec. 3.1.1) --------------------------------------------------------------
PRETRAIN_BASE_LEARNING_RATE = 1e-3     # AdamW; the learning rate is this * PRETRAIN_BATCH_SIZE / 256
PRETRAIN_BATCH_SIZE = 512         # crops per step
BETAS = (0.9, 0.95)               # of AdamW; also in fine-tuning
WEIGHT_DECAY = 0.05               # of weight matrices, 0 = none; also in fine-tuning
PRETRAIN_WARMUP_EPOCHS = 100      # of rising rate, 0 = none; then a cosine
PRETRAIN_EPOCHS = 400             # not in the paper
CROPS_PER_CLIP = 1                # random crops of a clip per epoch: more for small corpora

# ---- Fine-tuning (Sec. 3.1.2) --------------------------------------------------------------
FINETUNE_LEARNING_RATE = 1e-4     # AdamW
FINETUNE_BATCH_SIZE = 16          # clips per step (authors' code)
FINETUNE_WARMUP_EPOCHS = 40       # of rising rate, 0 = none; then a cosine
FINETUNE_EPOCHS = 100             # not in the paper
LOSS = "asymmetric"               # or "cross_entropy"
GAMMA_POS = 0.0                   # asymmetric loss: focus on the label (authors' code)
GAMMA_NEG = 4.0                   # ... and on the other classes, 0 = none (authors' code)
SMOOTHING = 0.1                   # of labels (authors' code)
FINETUNE_CROPS = "first"          # "first" frames of a clip (authors' code) or "random", anew in each epoch
REFIT = False                     # train anew on validation speakers too, for the epochs that they chose
SPEAKER_NORMALISE = False         # subtract each speaker's mean; test speakers' unlabelled speech is used
QUERY_BLOCKS = (1, 1)             # Query2Emo: blocks of its encoder and decoder; (1, 2) in the authors' code
QUERY_HEADS = 8                   # Query2Emo: heads of attention (authors' code)

# ---- Beyond the paper ----------------------------------------------------------------------
BEYOND_PAPER = ("equal", "mean", "row")  # at one width; by mean, row head; () = none

# ---- Machine -------------------------------------------------------------------------------
SPECMAE = True                    # whether SpecMAE's rows are made: False saves its trainings
MAX_PROBLEM_SHARE = 0.05          # stop where more than this share of clips gives no codes
EVAL_BATCH_SIZE = 64              # clips per forward pass outside training
PRECISION = "auto"                # "auto" (bf16 or fp16 on a GPU), "no" (fp32, as the authors), "bf16" ...
DETERMINISTIC = True              # the same numbers again on the same machine; False is faster on a GPU
WORKERS = 4                       # processes or threads that read audio and prepare batches, 0 = none
COMPILE = False                   # torch.compile the pretraining: slow to start, faster steps on a GPU
JOBS = 1                          # trainings side by side, on this machine
TRACKER = ""                      # "tensorboard" (in data/models) or "wandb" sees every epoch; "" = none
PREPARE_ONLY = False              # True: stop when VQ-VAEs and codes are there

# ---- Presets -------------------------------------------------------------------------------
DEMO = {  # synthetic corpora, models of 32 units; with RATIO=0.8 three of 16 tokens would be visible
    "CORPUS": "demo_ravdess:speech", "SEEDS": (0,), "N_GROUPS": 3, "PRETRAIN_CORPORA": ("demo_voxceleb2",),
    "TABLE_5_CORPORA": ("demo_ravdess:speech", "demo_emodb"), "RATIOS": (0.5, 0.8), "CODE_WIDTHS": (4, 8),
    "DEPTHS": (1, 2), "TOKEN_SIZES": ("10x8", "20x8"), "BEYOND_PAPER": ("equal", "row"), "N_CODES": 32,
    "VQVAE_LEARNING_RATE": 3e-3, "VQVAE_BATCH_SIZE": 4, "VQVAE_FRAMES": 8, "VQVAE_EPOCHS": 2,
    "VQVAE_STEPS": 160, "N_FRAMES": 40, "TOKEN_SIZE": "20x8", "RATIO": 0.5, "TRAIN_CODEBOOK": False,
    "DEPTH": 2, "DECODER_DEPTH": 1, "WIDTH": 32, "SPEC_PATCH": "20x57", "SPEC_WIDTH": 32,
    "PRETRAIN_BASE_LEARNING_RATE": 96e-3, "PRETRAIN_BATCH_SIZE": 8, "PRETRAIN_WARMUP_EPOCHS": 2,
    "PRETRAIN_EPOCHS": 10, "FINETUNE_LEARNING_RATE": 4e-3, "FINETUNE_WARMUP_EPOCHS": 2,
    "FINETUNE_EPOCHS": 6, "WORKERS": 0, "JOBS": 2, "RESULTS_ROOT": "results/mine"}
SCRATCH = {  # two CPU cores, from random weights: RAVDESS and EMO-DB without VoxCeleb2
    "SEEDS": (0,), "PRETRAIN_CORPORA": ("ravdess", "emodb"), "TABLE_5_CORPORA": ("ravdess:speech", "emodb"),
    "TABLES": ("1",), "BEYOND_PAPER": ("row",), "VQVAE_LEARNING_RATE": 3e-3, "VQVAE_BATCH_SIZE": 8,
    "VQVAE_FRAMES": 16, "VQVAE_EPOCHS": 4, "VQVAE_STEPS": 500, "N_FRAMES": 160, "TOKEN_SIZE": "20x8",
    "DEPTH": 4, "DECODER_DEPTH": 2, "WIDTH": 128, "SPECMAE": False, "PRETRAIN_BASE_LEARNING_RATE": 16e-3,
    "PRETRAIN_BATCH_SIZE": 16, "PRETRAIN_WARMUP_EPOCHS": 2, "PRETRAIN_EPOCHS": 40, "WORKERS": 0,
    "FINETUNE_LEARNING_RATE": 5e-4, "FINETUNE_WARMUP_EPOCHS": 2, "FINETUNE_EPOCHS": 20,
    "LOSS": "cross_entropy", "FINETUNE_CROPS": "random"}
SETTINGS = {}                     # filled by settings.run: what this run used
# fmt: on

LOSS_CROPS = 64  # whose logits are held at once in training: 512 of the paper's have 5 GB in fp32
POWER_FLOOR = 1e-7  # added before the logarithm: 12 decades below the largest power that a clip can have


# ---- Discrete index tokens (Section 2.2) ---------------------------------------------------
# B samples, T frames, D' codes per frame, S = n_t * n_d tokens of t * d codes, V of them visible, H hidden,
# K codes of width e, w units of a token inside the model, C classes. `hidden`: True where a token is masked.


def patchify(x, network):
    """Divide x (B, T, D') into tokens (B, n_t * n_d, t * d), numbered time-major."""
    n_t, n_d = network.grid
    x = x.reshape(-1, n_t, network.t, n_d, network.d).transpose(2, 3)  # (B, n_t, n_d, t, d)
    return x.reshape(-1, n_t * n_d, network.t * network.d)  # (B, S, t * d)


def unpatchify(tokens, network):
    """The inverse of `patchify`: tokens (B, S, t * d) -> (B, T, D')."""
    n_t, n_d = network.grid
    x = tokens.reshape(-1, n_t, n_d, network.t, network.d).transpose(2, 3)  # (B, n_t, t, n_d, d)
    return x.reshape(-1, network.n_frames, network.n_rows)  # (B, T, D')


def tokens_of(x, network):
    """What a network reads: codes (B, T, D') or powers (B, T, D) -> tokens (B, S, t * d)."""
    if network.kind == "specmae-log":
        x = torch.log10(x + POWER_FLOOR)
    return patchify(x.long() if network.kind == "vqmae" else x, network)


# ---- Masking (Section 2.2) -----------------------------------------------------------------


def hide_tokens(n_t, n_d, ratio, rng):
    """Patch-tf: tokens anywhere in time and frequency. Frame: the same, where a token is a whole frame."""
    return some_of(n_t * n_d, ratio, rng).reshape(n_t, n_d)


def hide_columns(n_t, n_d, ratio, rng):
    """Patch-t: all tokens of some columns, along time."""
    return np.repeat(some_of(n_t, ratio, rng)[:, None], n_d, axis=1)


def hide_rows(n_t, n_d, ratio, rng):
    """Patch-f: all tokens of some rows, along frequency."""
    return np.repeat(some_of(n_d, ratio, rng)[None, :], n_t, axis=0)


# strategy(n_t, n_d, ratio, rng) -> hidden (n_t, n_d) bool, as many in each call
STRATEGIES = {"frame": hide_tokens, "patch-f": hide_rows, "patch-t": hide_columns, "patch-tf": hide_tokens}


def some_of(n, ratio, rng):
    """(n,) bool, True for round(ratio * n) at random; rng is a numpy Generator, the only randomness used."""
    count = round(ratio * n)
    if not 0 < count < n:
        raise UserError(f"RATIO, RATIOS: {ratio} hides {count} of {n}; some must be hidden, some visible")
    hidden = np.zeros(n, bool)
    hidden[rng.permutation(n)[:count]] = True
    return hidden


def random_masking(network, rng):
    """Numbers of the visible (V,) and of the hidden tokens (H,) of one sample, in the order of the grid."""
    hidden = STRATEGIES[network.strategy](*network.grid, network.ratio, rng).reshape(-1)  # (S,)
    return np.flatnonzero(~hidden), np.flatnonzero(hidden)


# ---- Encoder and decoder (Section 2.3) -----------------------------------------------------


class CodeEmbedding(nn.Module):
    """Continuous embedding tokens: t * d indices -> their t * d vectors of width e in a row."""

    def __init__(self, network, codebook):
        super().__init__()
        shape = N_CODES, network.code_width
        fits = codebook is not None and codebook.shape == shape
        table = codebook.clone() if fits else torch.randn(*shape)  # starts from the VQ-VAE's, where it fits
        self.table = nn.Parameter(table, requires_grad=TRAIN_CODEBOOK)
        self.project = nn.Linear(network.token_width, network.width) if network.width else nn.Identity()

    def forward(self, tokens):
        """tokens (B, V, t * d) -> (B, V, w)."""
        return self.project(F.embedding(tokens, self.table).flatten(2))


class Block(nn.Module):
    """A Transformer block as in ViT: LayerNorm first, GELU, no dropout, no bias on Q, K and V."""

    def __init__(self, width):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        units = MLP_RATIO * width
        self.mlp = nn.Sequential(nn.Linear(width, units), nn.GELU(), nn.Linear(units, width))

    def forward(self, x):
        """x (B, S, w) -> (B, S, w)."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(2, (3, HEADS, -1))  # (B, S, 3, heads, w / heads)
        q, k, v = qkv.transpose(1, 3).unbind(2)  # (B, heads, S, w / heads) each
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


class Encoder(nn.Module):
    """CLS and the visible tokens, with trained positions, through L blocks and a last LayerNorm."""

    def __init__(self, embed, network):
        super().__init__()
        self.embed, self.network, self.width = embed, network, network.units
        self.cls = vectors(TOKEN_STD, self.width)
        self.positions = vectors(POSITION_STD, network.n_tokens, self.width)
        self.blocks = nn.Sequential(*(Block(self.width) for _ in range(network.depth)))
        self.norm = nn.LayerNorm(self.width)

    def forward(self, tokens, visible_at=None):
        """tokens (B, S, t * d), of which those at visible_at (B, V) are read, or all -> (B, 1 + V, w)."""
        positions = self.positions
        if visible_at is not None:
            tokens, positions = take(tokens, visible_at), F.embedding(visible_at, positions)
        x = self.embed(tokens) + positions  # (B, V, w)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], 1)  # (B, 1 + V, w), CLS first
        return self.norm(self.blocks(x))


class Decoder(nn.Module):
    """Visible and masked tokens, with positions of their own, through L' blocks."""

    def __init__(self, network, width):
        super().__init__()
        self.mask = vectors(TOKEN_STD, width)
        self.positions = vectors(POSITION_STD, 1 + network.n_tokens, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(DECODER_DEPTH)))

    def forward(self, encoded, visible_at, hidden_at):
        """encoded (B, 1 + V, w) -> all tokens in the order of the grid (B, S, w)."""
        x = torch.cat([encoded[:, 1:], self.mask.expand(*hidden_at.shape, -1)], 1)  # the visible ones first
        x = take(x, torch.cat([visible_at, hidden_at], 1).argsort(1))  # restored to the grid's order
        x = torch.cat([encoded[:, :1], x], 1) + self.positions  # (B, 1 + S, w)
        return self.blocks(x)[:, 1:]


class VQMAE(nn.Module):
    """VQ-MAE-S: predicts codes of hidden tokens from the visible ones (Figure 1); codebook (K, e) or None."""

    def __init__(self, network, codebook=None):
        super().__init__()
        self.network, self.encoder = network, Encoder(CodeEmbedding(network, codebook), network)
        self.decoder = Decoder(network, self.encoder.width)
        self.project = nn.Linear(network.width, network.token_width) if network.width else nn.Identity()
        self.head = nn.Linear(network.code_width, N_CODES)
        self.apply(initialise)

    def forward(self, x, visible_at, hidden_at):
        """x (B, T, D') codes -> {"loss": Equation 1}, in evaluation also the share of indices found."""
        tokens = tokens_of(x, self.network)  # (B, S, t * d)
        decoded, target = self.decode(tokens, visible_at, hidden_at), take(tokens, hidden_at)
        if self.training and len(x) > LOSS_CROPS:
            return {"loss": self.loss_in_parts(decoded, target)}
        logits = self.logits(decoded)
        loss = F.cross_entropy(logits.flatten(0, 2), target.flatten())  # Equation 1
        if self.training:
            return {"loss": loss}
        return {"loss": loss, "codes_found": (logits.argmax(3) == target).float().mean()}

    def loss_in_parts(self, decoded, target):
        """The same for many crops: logits are made again for the gradients, of LOSS_CROPS at a time."""
        parts = zip(decoded.split(LOSS_CROPS), target.split(LOSS_CROPS))
        how = {"use_reentrant": False, "preserve_rng_state": False}
        return sum(checkpoint(self.summed_loss, *part, **how) for part in parts) / target.numel()

    def summed_loss(self, decoded, target):
        return F.cross_entropy(self.logits(decoded).flatten(0, 2), target.flatten(), reduction="sum")

    def decode(self, tokens, visible_at, hidden_at):
        """What the decoder makes of the hidden tokens (B, H, w)."""
        return take(self.decoder(self.encoder(tokens, visible_at), visible_at, hidden_at), hidden_at)

    def logits(self, decoded):
        """Of the indices of the hidden tokens (B, H, t * d, K)."""
        return self.head(self.project(decoded).unflatten(2, (-1, self.network.code_width)))

    @torch.no_grad()
    def reconstruct(self, codes, visible_at, hidden_at):
        """codes (B, T, D') with those of the hidden tokens replaced by the most likely ones."""
        tokens = tokens_of(codes, self.network)
        best = self.logits(self.decode(tokens, visible_at, hidden_at)).argmax(3)  # (B, H, t * d)
        tokens = tokens.scatter(1, hidden_at[..., None].expand_as(best), best)
        return unpatchify(tokens, self.network).to(codes.dtype)


class SpecMAE(nn.Module):
    """The baseline of Section 3.2 on patches of the power spectrogram, as the authors have it, or its log."""

    def __init__(self, network):
        super().__init__()
        self.network, width = network, network.units
        self.encoder = Encoder(PowerLinear(network.token_width, width), network)
        self.decoder, self.head = Decoder(network, width), PowerLinear(width, network.token_width)
        self.apply(initialise)

    def forward(self, x, visible_at, hidden_at):
        """x (B, T, D) power -> {"loss": mean squared error over the hidden patches}."""
        tokens = tokens_of(x, self.network)  # (B, S, t * d)
        decoded = self.decoder(self.encoder(tokens, visible_at), visible_at, hidden_at)  # (B, S, w)
        return {"loss": F.mse_loss(self.head(take(decoded, hidden_at)), take(tokens, hidden_at))}


def build_network(network, codebook=None):
    """A VQMAE or SpecMAE with first weights that depend on the first of SEEDS alone."""
    made_of = (VQMAE, network, codebook) if network.kind == "vqmae" else (SpecMAE, network)
    return build(SEEDS[0], *made_of)


# ---- Emotion from the encoder (Section 3.1.2) ----------------------------------------------


class ClsHead(nn.Linear):
    """A linear layer on CLS, the paper's first approach."""

    def __init__(self, network, n_classes):
        super().__init__(network.units, n_classes)

    def forward(self, x):
        return super().forward(x[:, 0])


class Query2Emo(nn.Module):
    """One trained query per class that attends to all tokens, and weights per class (Query2Label [21])."""

    def __init__(self, network, n_classes):
        super().__init__()
        width = network.units
        sizes = {"d_model": width, "nhead": QUERY_HEADS, "dim_feedforward": MLP_RATIO * width, "dropout": 0.0}
        sizes |= {"activation": "gelu", "batch_first": True, "norm_first": True}
        block = nn.TransformerEncoderLayer(**sizes), nn.TransformerDecoderLayer(**sizes)
        self.encoder = nn.TransformerEncoder(block[0], QUERY_BLOCKS[0], nn.LayerNorm(width), False)
        self.decoder = nn.TransformerDecoder(block[1], QUERY_BLOCKS[1], nn.LayerNorm(width))
        self.queries, self.weight = vectors(1.0, n_classes, width), vectors(TOKEN_STD, n_classes, width)
        self.bias = nn.Parameter(torch.zeros(n_classes))

    def forward(self, x):
        x = self.encoder(x + sinusoidal(x.shape[1], x.shape[2], x.device))
        x = self.decoder(self.queries.expand(len(x), -1, -1), x)  # (B, C, w)
        return (x * self.weight).sum(2) + self.bias


# head(network, number of classes): all tokens, CLS first (B, 1 + S, w) -> logits (B, C)
CLASSIFICATION_HEADS = {
    "cls": ClsHead,
    "query2emo": Query2Emo,
    "mean": partial(StatisticsHead, False, 0.0),  # not in the paper
    "row": partial(StatisticsHead, True, 0.3),
}


class EmotionClassifier(nn.Module):
    """A pretrained encoder, or a fresh one, under a classification head; nothing is hidden."""

    def __init__(self, encoder, head, n_classes, freeze):
        super().__init__()
        self.encoder = encoder.requires_grad_(False) if freeze else encoder
        self.head = CLASSIFICATION_HEADS[head](encoder.network, n_classes)

    def forward(self, x):
        """x (B, T, D') codes, or powers for SpecMAE -> logits (B, C)."""
        return self.head(self.encoder(tokens_of(x, self.encoder.network)))


def asymmetric_loss(logits, labels):
    """The asymmetric loss of Ridnik et al. [22], adapted to a single label per sample; mean over the batch.

    -sum_c y_c (1 - q_c)^gamma log p_c, where p = softmax(logits) (B, C) and y is the smoothed one-hot label.
    For the label q_c = p_c and gamma = GAMMA_POS, for every other class q_c = 1 - p_c and gamma = GAMMA_NEG;
    gammas of 0 give cross-entropy, GAMMA_NEG 4 presses down only classes that are still probable.
    """
    gamma_pos, gamma_neg = (GAMMA_POS, GAMMA_NEG) if LOSS == "asymmetric" else (0.0, 0.0)
    log_p = F.log_softmax(logits.float(), 1)  # (B, C)
    p, one_hot = log_p.exp(), F.one_hot(labels, logits.shape[1])
    focus = torch.where(one_hot.bool(), (1 - p) ** gamma_pos, p**gamma_neg)
    target = one_hot * (1 - SMOOTHING) + SMOOTHING / logits.shape[1]
    return -(target * focus * log_p).sum(1).mean()


# ---- What both trainings share -------------------------------------------------------------


def recipe_of(rate, epochs, batch_size, warmup_epochs, seed, **how):
    """AdamW, a warm-up and a cosine from epoch to epoch (Sections 3.1.1 and 3.1.2); how: more of a Recipe."""
    how |= {"betas": BETAS, "clip_norm": 0.0, "seed": seed, "eval_batch_size": EVAL_BATCH_SIZE}
    return Recipe(rate, epochs, batch_size, WEIGHT_DECAY, "cosine", warmup_epochs / epochs, "epoch", **how)


def load_network(network, pretraining, pretrained=True):
    """A network with the weights that `pretrain` left, or with fresh ones."""
    model = build_network(network, load_vqvae(pretraining.folder / "vqvae").codebook.vectors)
    return load_best(model, pretraining.folder / network.slug()) if pretrained else model


def settings_of(network):
    """What a network depends on besides its training; JSON-ready."""
    rest = [DECODER_DEPTH, HEADS, MLP_RATIO, POSITION_STD, TRAIN_CODEBOOK]
    return {"network": asdict(network), "rest": rest}


# ---- 1. VQ-VAE (Section 2.1); 2. codes: see common/sadok/codes.py --------------------------


def pretrain_vqvae(accelerator, pretraining):
    """The VQ-VAE of a pretraining, trained where it is not there yet."""
    how = {"schedule": "cosine", "seed": SEEDS[0], "select_by": "lowest itakura_saito", "workers": WORKERS}
    recipe = Recipe(VQVAE_LEARNING_RATE, VQVAE_EPOCHS, VQVAE_BATCH_SIZE, **how)
    return train_vqvae(accelerator, pretraining, recipe, (N_CODES, CODE_SIZE), VQVAE_FRAMES, VQVAE_STEPS)


# ---- 3. Pretraining (Sections 2.2, 2.3 and 3.1.1) ------------------------------------------


def pretrain(network, pretraining):
    """Pretrain a network, or take what an earlier run left in its folder; a task for side_by_side."""
    accelerator, mask = make_accelerator(PRECISION, DETERMINISTIC, TRACKER), partial(random_masking, network)
    train, held_out = pretraining.turns()
    train_set = Masked(crops_of(network, train, pretraining, random=True), mask, CROPS_PER_CLIP)
    held_out_set = Masked(crops_of(network, held_out[: 4 * EVAL_BATCH_SIZE], pretraining), mask)
    rate = PRETRAIN_BASE_LEARNING_RATE * PRETRAIN_BATCH_SIZE / 256
    how = {"select_by": "lowest loss", "keep": "last", "workers": WORKERS, "compile": COMPILE}
    recipe = recipe_of(rate, PRETRAIN_EPOCHS, PRETRAIN_BATCH_SIZE, PRETRAIN_WARMUP_EPOCHS, SEEDS[0], **how)

    def loss(model, batch):
        return model(**batch)["loss"] * len(batch["x"]), len(batch["x"])

    def outputs(model, batch):
        return {name: mean.expand(len(batch["x"])) for name, mean in model(**batch).items()}

    def figures(found, _):
        return {name: values.mean() for name, values in found.items()}

    identity = {"speech": pretraining.identity(), "crops": CROPS_PER_CLIP, **settings_of(network)}
    identity["vqvae"] = file_hash(best_weights(pretraining.folder / "vqvae"))
    title = f"pretraining {network.slug()} {pretraining.name}"
    task = Task(partial(load_network, network, pretraining, False), loss, outputs, figures)
    place = Place(pretraining.folder / network.slug(), identity, title)
    train_and_test(accelerator, task, {"train": train_set, "valid": held_out_set}, recipe, place, True)


# ---- 4. Fine-tuning (Section 3.1.2) --------------------------------------------------------


def finetune(row, name, k, seed, pretraining):
    """Fine-tune a row on fold k of a corpus and test it; test accuracy is logged but chooses nothing."""
    corpus = corpus_of(name)
    fold = pretraining.checked(corpus.base, corpus.folds_of[seed][k])
    if row.head == "svm":
        return classify_by_svm(fold_sets(row.network, corpus, fold, pretraining, False), corpus, REFIT)
    kept = finetune_fold(row, corpus, fold, FINETUNE_EPOCHS, seed, pretraining)
    if REFIT:
        fold = replace(fold, name=f"{fold.name}_refit", train=[*fold.train, *fold.valid])
        kept = finetune_fold(row, corpus, fold, kept["history"]["best_epoch"], seed, pretraining, "last")
    test = kept["tests"]["test"]
    test["outputs"]["logits"] = corpus.normalised(test["outputs"]["logits"], test["ids"])
    return kept


def finetune_fold(row, corpus, fold, epochs, seed, pretraining, keep="best"):
    """Train a row on one division of the turns, and test the weights of the best or the last epoch."""
    sets = fold_sets(row.network, corpus, fold, pretraining, FINETUNE_CROPS == "random")
    sizes = epochs, FINETUNE_BATCH_SIZE, min(FINETUNE_WARMUP_EPOCHS, epochs - 1)
    recipe = recipe_of(FINETUNE_LEARNING_RATE, *sizes, seed, keep=keep)
    before = pretraining.folder / (row.network.slug() if row.pretrained else "vqvae")
    identity = {
        **settings_of(row.network),
        "row": [asdict(row), *QUERY_BLOCKS, QUERY_HEADS],
        "loss": [LOSS, GAMMA_POS, GAMMA_NEG, SMOOTHING, FINETUNE_CROPS, SELECT_ON, SPEAKER_NORMALISE],
        "manifest": corpus.manifest.fingerprint(),
        "before": hash_of(read_json(before / "outcome.json")["history"]["identity"]),
        "clips": {part: hash_of(clips.ids) for part, clips in sets.items()},
    }

    def make_model():
        encoder = load_network(row.network, pretraining, row.pretrained).encoder
        return build(seed, EmotionClassifier, encoder, row.head, len(corpus.manifest.classes), row.freeze)

    def loss(model, batch):
        return asymmetric_loss(model(batch["x"]), batch["labels"]) * len(batch["x"]), len(batch["x"])

    def accuracy(found, clips):
        return {"accuracy": np.mean(corpus.normalised(found["logits"], clips.ids).argmax(1) == clips.labels)}

    folder = corpus.folder / row.network.slug() / row.slug() / f"seed{seed}" / fold.name
    title = f"{corpus.name} {row.network.slug()} {row.slug()} {fold.name} seed {seed}"
    task = Task(make_model, loss, lambda model, batch: {"logits": model(batch["x"])}, accuracy)
    accelerator = make_accelerator(PRECISION, DETERMINISTIC, TRACKER)
    return train_and_test(accelerator, task, sets, recipe, Place(folder, identity, title), watch=("test",))


# ---- Main ----------------------------------------------------------------------------------


def corpus_of(name):
    return data.Corpus(DATA_ROOT, name, N_GROUPS, VALIDATE_ON, SELECT_ON, SEEDS, SPEAKER_NORMALISE)


def plan():
    """{table: {label: Row}} of TABLES and BEYOND_PAPER, and {what is gained: (Row, Row without it)}."""
    token, patch = data.size_of("TOKEN_SIZE", TOKEN_SIZE), data.size_of("SPEC_PATCH", SPEC_PATCH)
    codes = data.Network("vqmae", "patch-tf", RATIO, N_FRAMES, N_ROWS, *token, CODE_WIDTH, DEPTH, WIDTH)
    power = data.Network("specmae", "patch-tf", RATIO, N_FRAMES, N_BINS, *patch, 1, DEPTH, SPEC_WIDTH)
    spectra = {"": power, " on log power": replace(power, kind="specmae-log")} if SPECMAE else {}
    rows = tables.rows(codes, STRATEGY, spectra, power, STRATEGIES, RATIOS, CODE_WIDTHS, DEPTHS, TOKEN_SIZES)
    return tables.choose(rows, TABLES, BEYOND_PAPER), tables.tests(codes, STRATEGY, spectra)


def check_constants(rows):
    """Refuse what would fail after hours; every network is built without memory and hides tokens once."""
    settings.check_choices({"STRATEGY": STRATEGY}, {"STRATEGY": STRATEGIES})
    blocks = max(DEPTH, *DEPTHS, DECODER_DEPTH, *QUERY_BLOCKS)
    settings.refuse(
        (PRETRAIN_WARMUP_EPOCHS >= PRETRAIN_EPOCHS, "PRETRAIN_WARMUP_EPOCHS: less than PRETRAIN_EPOCHS"),
        (FINETUNE_WARMUP_EPOCHS >= FINETUNE_EPOCHS, "FINETUNE_WARMUP_EPOCHS: less than FINETUNE_EPOCHS"),
        (len(BETAS) != 2 or max(BETAS) >= 1, "BETAS: two numbers below 1"),
        (len(QUERY_BLOCKS) != 2, "QUERY_BLOCKS: two numbers"),
        (REFIT and SELECT_ON == "test", "REFIT: would train on the test speakers of SELECT_ON=test"),
        (not 2 <= N_CODES <= 256, "N_CODES: from 2 to 256"),
        (blocks > 100, "DEPTH, DEPTHS, DECODER_DEPTH, QUERY_BLOCKS: at most 100 blocks"),
        (VQVAE_BATCH_SIZE * VQVAE_FRAMES > 1e5, "VQVAE_BATCH_SIZE * VQVAE_FRAMES: at most 100,000"),
    )
    with torch.device("meta"):
        net = cache(build_network)
        for row in (row for row in rows if row.head != "svm"):
            data.check_network(row, HEADS, QUERY_HEADS)
            data.check_size(row.network, EmotionClassifier(net(row.network).encoder, row.head, 2, row.freeze))
            random_masking(row.network, np.random.default_rng(0))


def main():
    planned, compared = plan()
    check_constants({row for rows in planned.values() for row in rows.values()})
    data.check_prepared(DATA_ROOT, (CORPUS, *PRETRAIN_CORPORA))
    accelerator, corpus, run = make_accelerator(PRECISION, DETERMINISTIC, TRACKER), corpus_of(CORPUS), None
    if accelerator.is_main_process:
        run = start_run(__file__, SETTINGS, corpus.manifest, corpus.protocol, accelerator.device)

    # Corpora, and who is left out of the pretraining that serves each of their folds
    print(*splits.check_folds(corpus.folds, corpus.manifest), sep="\n")
    corpora = data.read_corpora(corpus_of, CORPUS, TABLE_5_CORPORA)
    everyone = data.Pretraining(DATA_ROOT, PRETRAIN_CORPORA, SEEDS[0])
    serving = data.plan_pretrainings(corpora, everyone)  # {(corpus, fold number): Pretraining}

    # VQ-VAEs, and the codes of every corpus
    vqvaes = {left_out: pretrain_vqvae(accelerator, left_out) for left_out in dict.fromkeys(serving.values())}
    for base, pretraining in data.stores_needed(corpora, serving):
        with accelerator.main_process_first():
            extract_codes(pretraining, base, vqvaes[pretraining], WORKERS, MAX_PROBLEM_SHARE)
    if PREPARE_ONLY:
        return

    # Pretraining and fine-tuning, each network, row, fold and seed once
    runs = tables.runs(planned, corpora, SEEDS, serving)  # (Row, corpus, fold number, seed, Pretraining)
    networks = dict.fromkeys((row.network, pretraining) for row, *_, pretraining in runs if row.pretrained)
    side_by_side(pretrain, list(networks), JOBS)
    kept = side_by_side(finetune, runs, JOBS)

    # Tables and figures
    if run is None:
        return
    report = tables.Report(run, corpora, everyone, PRETRAIN_EPOCHS, SEEDS, N_RESAMPLES, REFIT)
    report.gather(runs, kept)
    of_codes = [pair for pair in networks if pair[0].kind == "vqmae"]
    tables.write(report, planned, compared, of_codes, build_network)
    for network, pretraining in of_codes[:1]:
        model, mask = load_network(network, pretraining), random_masking(network, np.random.default_rng(0))
        figures.reconstruction_figure(report, vqvaes[pretraining], model, mask, DATA_ROOT)
    run.finish()


if __name__ == "__main__":
    settings.run(main, globals())
