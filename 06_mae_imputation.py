"""Impute audio and video clips that got lost by a masked autoencoder trained with a curriculum, and classify.

Paper: G. Chochlakis, C. Lavania, P. Mathur, K. J. Han, "Tackling missing modalities in audio-visual
representation learning using masked autoencoders", Interspeech 2024: Figures 2, 3 and 4. common/chochlakis/
has backbones, clips, features, the split and tables.

    python 06_mae_imputation.py --CORPUS=cremad   # and ravdess, lombard: each prepared by 01, audioset first
    python 06_mae_imputation.py --demo            # after 01 --demo --CORPUS=demo_audioset and demo_cremad
    python 06_mae_imputation.py --scratch --CORPUS=ravdess   # without the authors' weights and AudioSet

Stages, each kept in <DATA_ROOT> and resumed after a kill, for each of BACKBONES: features of all clips; an
autoencoder trained on PRETRAIN_CORPUS at a fixed rate, fine-tuned on CORPUS with the curriculum and at the
fixed rate; classifiers on whole features, then on imputed ones. Writes results/06_mae_imputation/<corpus>/:
chochlakis_fig_2, _3, _4 and their numbers as tables, table_cases (where the method wins, ties or loses),
beyond the paper table_imputation, table_epochs, fig_baselines. Speed: tests/benchmarks/bench_mae_step.py.

DEVIATIONS and what the paper leaves open; constants in capitals
1. One linear layer per modality leads into CAV-MAE's encoder and one out of its decoder, in place of those
   for patches. Targets are features less their mean and over their standard deviation, of training clips.
2. Clips follow each other from the start of a recording. Beyond its end are silence and its last frame.
3. The fixed rate is 7 of 10 clips (Section 4.4 says 70 %); of 5 clips, 4 are nearest to that.
4. Epochs of all trainings are chosen on validation speakers, by the loss over all levels and by accuracy, of
   which it says nothing. Its RAVDESS has 4,230 clips of seven emotions, not neutral; ours the release's.
5. AdamW has CAV-MAE's settings. Batches, epochs, GRU's width and batch normalisation are ours. A classifier
   is fine-tuned on TRAIN_MASKS masks of each recording, imputed once; each epoch draws another.
6. CrissCross's networks pool their last maps by the mean, AVID-CMA's by the maximum, as their authors do.
7. The paper has -ft (fine-tuned at the largest rate) for the linear head, -ft-all for the GRU; here both.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import re
from collections import namedtuple
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from common.chochlakis import imputation, tables
from common.chochlakis.backbones import RATES_HZ, load_backbone, load_cavmae, measure
from common.chochlakis.clips import clip_batches, clip_features, generator_of, read_part
from common.chochlakis.imputation import classify, impute, probabilities, together, visible_first, whole
from common.chochlakis.splits import corpus_of, fold_of, protocol_text
from common.chochlakis.tables import LAST, WHOLE, System
from common.extraction import Extraction
from common.files import UserError, file_hash, hash_of
from common.jobs import side_by_side
from common.layers import TOKEN_STD, build, initialise, sinusoidal, take, vectors
from common.manifest import corpus_name, prepared_folder, read_manifest
from common.results import start_run
from common.training import Recipe, best_weights, load_best, make_accelerator

# fmt: off
# ---- Roots ---------------------------------------------------------------------------------
DATA_ROOT = "data"            # folder of corpora, clip features, models
RESULTS_ROOT = "results"      # tables and figures go to <RESULTS_ROOT>/06_mae_imputation/<corpus>/
RUN = ""                      # name of its folder; "" = the corpus and what differs from the preset

# ---- Corpus and protocol -------------------------------------------------------------------
CORPUS = "cremad"             # "cremad", "ravdess", "lombard", or a folder with a manifest.csv: from 01
PRETRAIN_CORPUS = "audioset"  # unlabelled recordings (Sec. 3.3); "" = none
BACKBONES = ("avid-cma", "crisscross")   # Figures 2 and 3
SEEDS = (0, 1, 2)             # one autoencoder of each kind for each. Not in the paper
N_MASKS = 10                  # random masks of each test recording and level (Sec. 4.3), alike in all seeds
N_RESAMPLES = 10000           # of speakers, behind every interval

# ---- Clips and backbones (Sec. 3.2 and 4.2) ------------------------------------------------
N_CLIPS = 0                   # N; 0 = the paper's: 5 of CREMA-D and Lombard, 10 of RAVDESS and AudioSet
CLIP_S = 0.0                  # seconds; 0 = the paper's: 0.4 of CREMA-D and RAVDESS, 0.5 of the others
AVID_CHECKPOINT = "data/checkpoints/AVID-CMA_Audioset_InstX-N1024-PosW-N64-Top32_checkpoint.pth.tar"  # a file
AVID_STATS = "data/checkpoints/audio-spectDB-24k-513-norm-stats.npz"  # "" = measured on PRETRAIN_CORPUS
CRISSCROSS_VIDEO = "data/checkpoints/vid_crisscross_audioset.pth.tar"  # the authors' file
CRISSCROSS_AUDIO = "data/checkpoints/aud_crisscross_audioset.pth.tar"  # the authors' file
RANDOM_BACKBONES = False      # random weights, calibrated on PRETRAIN_CORPUS, or on training clips of CORPUS
BACKBONE_WIDTH = 64           # of the first layer; features have 8 times as many dimensions
FRAME_SIZE = 0                # side of a frame in pixels; 0 = the backbone's own, 224 or 112

# ---- Masked autoencoder (Sec. 3.3 and 4.2) -------------------------------------------------
CAVMAE_CHECKPOINT = "data/checkpoints/audio_model.21.pth"  # first weights; "" = random
MAE_WIDTH = 768               # CAV-MAE's
MAE_DEPTH = 11                # blocks of each modality; CAV-MAE's
MAE_JOINT_DEPTH = 1           # blocks of both together; CAV-MAE's
MAE_HEADS = 12                # CAV-MAE's
DECODER_WIDTH = 512           # CAV-MAE's
DECODER_DEPTH = 8             # CAV-MAE's
DECODER_HEADS = 16            # CAV-MAE's
MLP_RATIO = 4                 # CAV-MAE's
FIXED_SHARE = 0.7             # of the clips, hidden in pretraining and by Figure 4's fixed-rate autoencoder
PRETRAIN_EPOCHS = 50          # on PRETRAIN_CORPUS (Sec. 4.2)
PRETRAIN_LEARNING_RATE = 1e-4  # on PRETRAIN_CORPUS (Sec. 4.2)
MAE_EPOCHS = 50               # on CORPUS (Sec. 4.2)
MAE_LEARNING_RATE = 0.0       # on CORPUS; 0 = the paper's: 5e-4 on RAVDESS, else 1e-4
CURRICULUM_STEP = 0           # epochs until one more clip is hidden; 0 = MAE_EPOCHS // N, the paper's 5 or 10
MAE_BATCH_SIZE = 64           # recordings per step. Not in the paper
BETAS = (0.95, 0.999)         # of AdamW (CAV-MAE's), of classifiers too
WEIGHT_DECAY = 5e-7           # CAV-MAE's

# ---- Classifiers (Sec. 3.4, 3.5 and 4.2) ---------------------------------------------------
CLASSIFIERS = ("linear", "gru")  # Figures 2 and 3, (a) and (b)
GRU_WIDTH = 512               # not in the paper
CLASSIFIER_LEARNING_RATE = 1e-3  # (Sec. 4.2)
CLASSIFIER_EPOCHS = 30        # of training on whole features. Not in the paper
FINETUNE_EPOCHS = 30          # of fine-tuning on imputed ones. Not in the paper
CLASSIFIER_BATCH_SIZE = 64    # recordings per step. Not in the paper
CLASSIFIER_SEEDS = ()         # of those trained on one autoencoder; () = its own seed. Not in the paper
TRAIN_MASKS = 5               # of each recording for fine-tuning. Not in the paper
MIXTURES = ("0.4", "0.7", "0.4+0.7")  # Figure 4: shares of hidden clips that a classifier is fine-tuned on

# ---- Beyond the paper ----------------------------------------------------------------------
BEYOND_PAPER = True           # other baselines, errors of what is imputed

# ---- Machine -------------------------------------------------------------------------------
PRECISION = "auto"            # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"; features are fp32
DETERMINISTIC = True          # the same numbers again on the same machine; False is faster on a GPU
JOBS = 1                      # seeds and backbones trained side by side
TRACKER = ""                  # "tensorboard" (in data/models) or "wandb" sees every epoch; "" = none
WORKERS = 4                   # threads that decode recordings, 0 = none
BACKBONE_BATCH_SIZE = 64      # clips per forward pass of a backbone
EVAL_BATCH_SIZE = 512         # recordings per forward pass outside training
MAX_PROBLEM_SHARE = 0.05      # stop where more than this share of the recordings cannot be read

# ---- Presets -------------------------------------------------------------------------------
DEMO = {"RESULTS_ROOT": "results/mine", "CORPUS": "demo_cremad", "PRETRAIN_CORPUS": "demo_audioset",
        "SEEDS": (0,), "CLASSIFIER_SEEDS": (0, 1, 2), "N_MASKS": 5, "N_RESAMPLES": 1000, "JOBS": 2,
        "RANDOM_BACKBONES": True, "BACKBONE_WIDTH": 16, "FRAME_SIZE": 48, "CAVMAE_CHECKPOINT": "",
        "MAE_WIDTH": 64, "MAE_DEPTH": 1, "MAE_HEADS": 4, "DECODER_WIDTH": 64, "DECODER_DEPTH": 1,
        "DECODER_HEADS": 4, "PRETRAIN_EPOCHS": 40, "PRETRAIN_LEARNING_RATE": 2e-3, "MAE_EPOCHS": 30,
        "MAE_LEARNING_RATE": 2e-3, "MAE_BATCH_SIZE": 32, "GRU_WIDTH": 32, "CLASSIFIER_LEARNING_RATE": 4e-3,
        "CLASSIFIER_EPOCHS": 8, "FINETUNE_EPOCHS": 3, "CLASSIFIER_BATCH_SIZE": 32, "TRAIN_MASKS": 3}
SCRATCH = {"PRETRAIN_CORPUS": "", "FRAME_SIZE": 112, "RANDOM_BACKBONES": True, "BACKBONE_WIDTH": 8,
           "CAVMAE_CHECKPOINT": "", "MAE_WIDTH": 64, "MAE_DEPTH": 2, "MAE_HEADS": 4, "DECODER_WIDTH": 64,
           "DECODER_DEPTH": 1, "DECODER_HEADS": 4, "MAE_LEARNING_RATE": 1e-3, "MAE_BATCH_SIZE": 16,
           "GRU_WIDTH": 64, "CLASSIFIER_BATCH_SIZE": 16}  # two CPU cores, from random weights, no AudioSet
SETTINGS = {}                 # filled by settings.run: what this run used

# The paper's clips (Sec. 4.2): number, seconds; and the autoencoder's learning rate.
PAPER = {"cremad": (5, 0.4, 1e-4), "ravdess": (10, 0.4, 5e-4), "lombard": (5, 0.5, 1e-4),
         "audioset": (10, 0.5, 1e-4)}
# fmt: on

# Parts of a split, the names of the classes; a seed, its device, and where its models go.
Data = namedtuple("Data", "train valid test classes folder seed accelerator")

# B recordings (R: all of a part) of 2 modalities, audio first, N clips of each, D features of a clip, M masks
# of each recording, V visible clips, w width of a token, C classes, H classifiers of a kind. `hidden` is True
# where a clip is lost: what stands there is never read.


# ---- Which clips are lost (Sections 3.3, 4.2 and 4.3) --------------------------------------


def draw_masks(n_samples, n_clips, n_hidden, n_masks, generator):
    """Lose clips at random, for every recording, mask and modality on its own; "equal" ratios (Sec. 4.2).

    n_hidden  clips of either modality to hide, 0 to N: an integer, or a tensor (M, B)
    Returns hidden (M, B, 2, N) bool, with exactly as many True.
    """
    rank = torch.rand(n_masks, n_samples, 2, n_clips, generator=generator).argsort(3).argsort(3)
    return rank < torch.as_tensor(n_hidden).expand(n_masks, n_samples)[..., None, None]


def draw_mixture(n_samples, n_clips, levels, n_masks, generator):
    """Masks of one of `levels` each: "for each sample, we randomly sample the level of dropout" (4.2)."""
    drawn = torch.randint(len(levels), (n_masks, n_samples), generator=generator)
    return draw_masks(n_samples, n_clips, torch.as_tensor(levels)[drawn], n_masks, generator)


def n_hidden_at(epoch, step, n_clips):
    """The curriculum: "from one masked chunk to all but one" (Sec. 3.3), one more every `step` epochs."""
    return min(1 + epoch // step, n_clips - 1)


def count_of(share, n_clips):
    """The number of clips nearest to a share, halves upwards, at least one and not all: 0.7 of 5 -> 4."""
    return min(max(1, int(float(share) * n_clips + 0.5)), n_clips - 1)


def mixtures(n_clips):
    """MIXTURES as counts of hidden clips: "0.4+0.7" of five are "2+4"."""
    return ["+".join(str(count_of(share, n_clips)) for share in mix.split("+")) for mix in MIXTURES]


def draw_test_masks(n, n_clips):
    """{k: hidden (M, R, 2, N)} of R = n test recordings, "10 random masks applied to each" (Sec. 4.3)."""
    levels = range(1, n_clips)
    return {k: draw_masks(n, n_clips, k, N_MASKS, generator_of(0, n_clips, 0, k)) for k in levels}


# ---- The masked autoencoder (Section 3.3) --------------------------------------------------


class Block(nn.Module):
    """A Transformer block of CAV-MAE: LayerNorm before attention and MLP, GELU, no dropout."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)

    def forward(self, x, is_key):
        """x (B, S, w), is_key (B, S) True where to look -> (B, S, w)."""
        is_key = is_key | ~is_key.any(1, keepdim=True)  # with no key at all the result would be NaN
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))  # (B, S, 3, heads, w / heads)
        attended = F.scaled_dot_product_attention(*qkv.transpose(1, 3).unbind(2), is_key[:, None, None])
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class AVMAE(nn.Module):
    """Predicts the features of hidden clips from the visible ones of both modalities, after CAV-MAE [9].

    Each modality's visible clips go through blocks of their own, then both through the joint ones; a light
    decoder gets these, and a mask token for every hidden clip. Positions are fixed sinusoids of a clip's
    index; a trained vector tells the modalities apart. There is no contrastive loss (Sec. 4.2). Layers are
    named as in CAV-MAE's file, but `embed` and `output`, which stand in place of those for patches.
    """

    def __init__(self, n_features):
        super().__init__()
        w, d = MAE_WIDTH, DECODER_WIDTH

        def blocks(depth, width, heads):
            return nn.ModuleList(Block(width, heads) for _ in range(depth))

        self.embed_a, self.embed_v = nn.Linear(n_features, w), nn.Linear(n_features, w)
        self.modality_a, self.modality_v = vectors(TOKEN_STD, 1, 1, w), vectors(TOKEN_STD, 1, 1, w)
        self.blocks_a, self.blocks_v = (blocks(MAE_DEPTH, w, MAE_HEADS) for _ in "av")
        self.blocks_u, self.norm = blocks(MAE_JOINT_DEPTH, w, MAE_HEADS), nn.LayerNorm(w)
        self.decoder_embed, self.mask_token = nn.Linear(w, d), vectors(TOKEN_STD, 1, 1, d)
        self.decoder_modality_a, self.decoder_modality_v = (vectors(TOKEN_STD, 1, 1, d) for _ in "av")
        self.decoder_blocks, self.decoder_norm = blocks(DECODER_DEPTH, d, DECODER_HEADS), nn.LayerNorm(d)
        self.output_a, self.output_v = nn.Linear(d, n_features), nn.Linear(d, n_features)
        self.register_buffer("mean", torch.zeros(2, 1, n_features))
        self.register_buffer("std", torch.ones(2, 1, n_features))
        self.apply(initialise)

    @torch.no_grad()
    def standardise(self, x, missing):
        """Take mean and deviation of features from training clips x (R, 2, N, D) that are not missing."""
        for m in range(2):
            if len(there := x[:, m][~missing[:, m]]):  # (clips, D)
                std, self.mean[m] = torch.std_mean(there, 0, correction=0)
                self.std[m] = torch.where(std > 1e-6, std, 1.0)

    def encode(self, x, hidden, at):
        """Tokens (B, 2 V, w) of the visible clips of x; at (B, 2, V): `visible_first` of hidden."""
        found, positions = [], sinusoidal(x.shape[2], MAE_WIDTH, x.device)
        is_visible = ~hidden.gather(2, at)  # (B, 2, V)
        ways = (self.embed_a, self.modality_a, self.blocks_a), (self.embed_v, self.modality_v, self.blocks_v)
        for m, (embed, modality, blocks) in enumerate(ways):
            tokens = embed(take(x[:, m], at[:, m])) + positions[at[:, m]] + modality  # (B, V, w)
            for block in blocks:
                tokens = block(tokens, is_visible[:, m])
            found.append(tokens)
        tokens = torch.cat(found, 1)
        for block in self.blocks_u:
            tokens = block(tokens, is_visible.flatten(1))
        return self.norm(tokens)

    def decode(self, tokens, hidden, at):
        """Features of all clips (B, 2, N, D), of which only those of hidden clips are trained."""
        tokens, is_key = self.decoder_embed(tokens), torch.ones_like(hidden.flatten(1))
        every = tokens.new_zeros(*is_key.shape, DECODER_WIDTH)  # (B, 2 N, w')
        at = torch.cat([at[:, 0], at[:, 1] + hidden.shape[2]], 1)[..., None]  # (B, 2 V, 1)
        every = every.scatter(1, at.expand_as(tokens), tokens)  # in order again
        every = torch.where(hidden.flatten(1)[..., None], self.mask_token, every)
        modality = torch.cat([self.decoder_modality_a, self.decoder_modality_v])  # (2, 1, w')
        every = every + (sinusoidal(hidden.shape[2], DECODER_WIDTH, every.device) + modality).flatten(0, 1)
        for block in self.decoder_blocks:
            every = block(every, is_key)
        audio, video = self.decoder_norm(every).chunk(2, 1)  # (B, N, w') each
        return torch.stack([self.output_a(audio), self.output_v(video)], 1)

    def predict(self, x, hidden, at):
        """Standardised features of all clips from the visible ones of x, both (B, 2, N, D)."""
        x = ((x - self.mean) / self.std).masked_fill(hidden[..., None], 0.0)
        return self.decode(self.encode(x, hidden, at), hidden, at).float()

    def forward(self, x, hidden, at, learned):
        """The loss of features x (B, 2, N, D): mean squared error of hidden clips, summed over modalities.

        learned  (B, 2, N) bool, those of the hidden clips that are there
        """
        error = (self.predict(x, hidden, at) - (x - self.mean) / self.std).square().mean(3)  # (B, 2, N)
        error = torch.where(learned, error, 0.0).sum((0, 2))  # (2,)
        return (error / learned.sum((0, 2)).clamp(min=1)).sum()

    @torch.no_grad()
    def impute(self, x, hidden, at):
        """x (B, 2, N, D) with its hidden clips predicted: "we reconstruct only missing inputs" (Sec. 3.1)."""
        return torch.where(hidden[..., None], self.predict(x, hidden, at) * self.std + self.mean, x)


# ---- Classifiers and baselines (Sections 3.4 and 3.5) --------------------------------------


class LinearClassifier(nn.Module):
    """A linear classifier of clips, after batch normalisation."""

    def __init__(self, n_features, n_classes):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(n_features), nn.Linear(n_features, n_classes)

    def forward(self, x):
        """x (B, N, 2 D), audio and video side by side, or (B, N, D) of one -> logits of clips (B, N, C)."""
        return self.linear(self.norm(x.flatten(0, 1))).unflatten(0, x.shape[:2]).float()


class GRUClassifier(nn.Module):
    """A GRU [32] of one layer over the clips, after batch normalisation; its final state is classified."""

    def __init__(self, n_features, n_classes):
        super().__init__()
        self.norm, self.gru = nn.BatchNorm1d(n_features), nn.GRU(n_features, GRU_WIDTH, batch_first=True)
        self.linear = nn.Linear(GRU_WIDTH, n_classes)

    def forward(self, x):
        """x (B, N, 2 D) or (B, N, D) -> logits of recordings (B, 1, C)."""
        _, final = self.gru(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))  # (1, B, GRU_WIDTH)
        return self.linear(final[0])[:, None].float()


NETWORKS = {"linear": LinearClassifier, "gru": GRUClassifier}


def classifier_loss(logits, labels):
    """Cross-entropy of each clip, or recording, on its own: logits (B, N or 1, C), labels (B,)."""
    return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))


def backoff(both, audio, video, hidden, prior):
    """The linear classifier where both modalities are present, a unimodal one where only one is -> (M, R, C).

    "Clips with no modality present are discarded." Where no clip is left, of which the paper does not speak,
    the recording gets the prior (C,), the shares of the classes in training.
    both, audio, video  (R, N, C) probabilities of clips by three classifiers; hidden (M, R, 2, N)
    """
    has_audio, has_video = (~hidden)[..., None].unbind(2)  # (M, R, N, 1)
    chosen = torch.where(has_audio & has_video, both, torch.where(has_audio, audio, video))  # (M, R, N, C)
    n_left = (has_audio | has_video).sum(2)  # (M, R, 1)
    total = torch.where(has_audio | has_video, chosen, 0.0).sum(2)  # (M, R, C)
    return torch.where(n_left > 0, total / n_left.clamp(min=1), prior)


def impute_constant(x, hidden, constant):
    """Constant imputation by a vector (2, D): zeros, the paper's Regular, or the training mean (Sec. 4.2)."""
    return torch.where(hidden[..., None], constant[:, None], x)


# ---- Clips and their features (Sections 3.1 and 3.2) ---------------------------------------


def clips_of(corpus):
    """(N, seconds of a clip) of a corpus."""
    n_clips, clip_s, _ = PAPER.get(corpus_of(corpus), PAPER["cremad"])
    return (N_CLIPS or n_clips, CLIP_S or clip_s) if corpus == corpus_name(CORPUS) else (n_clips, clip_s)


def files_of(name):
    """The authors' files of a backbone, "" where there are none."""
    avid = {"bins": AVID_STATS, "audio": AVID_CHECKPOINT, "video": AVID_CHECKPOINT}
    files = avid if name == "avid-cma" else {"audio": CRISSCROSS_AUDIO, "video": CRISSCROSS_VIDEO}
    return dict.fromkeys(files, "") if RANDOM_BACKBONES else files


def features_of(manifest, turns, backbone):
    """The store of clip features of a corpus under a backbone."""
    n_clips, clip_s = clips_of(manifest.corpus)
    folder = Path(DATA_ROOT) / "clips" / manifest.corpus / f"{backbone.name}_{n_clips}x{clip_s:g}"
    how = Extraction(max(1, BACKBONE_BATCH_SIZE // n_clips), WORKERS, MAX_PROBLEM_SHARE)
    return clip_features(manifest, turns, backbone, folder, n_clips, clip_s, how)


def extract_features(backbone, corpora, manifest, turns):
    """The stores of corpora [(manifest, turns)] under a backbone, measured on turns of a manifest."""
    backbone.to(make_accelerator(PRECISION, DETERMINISTIC, TRACKER).device)
    clips, root = clips_of(manifest.corpus), Path(DATA_ROOT) / "checkpoints" / manifest.corpus / "chochlakis"
    batches = partial(clip_batches, manifest, turns, backbone, *clips, BACKBONE_BATCH_SIZE)
    identity = hash_of([manifest.fingerprint(), len(turns), clips, backbone.identity()])
    measure(backbone, batches, root / backbone.name / "measured.pt", identity)
    return [features_of(*corpus, backbone) for corpus in corpora]


# ---- Training the autoencoder (Section 3.3) ------------------------------------------------


def recipe_of(rate, epochs, batch_size, seed, **more):
    more |= {"betas": BETAS, "clip_norm": 0.0, "seed": seed, "eval_batch_size": EVAL_BATCH_SIZE}
    return Recipe(rate, epochs, batch_size, WEIGHT_DECAY, "constant", **more)


def masked(part, rows, lost):
    """What an AVMAE takes of some recordings of a Part, of whose clips some get lost; lost (B, 2, N)."""
    missing = part.missing[rows]
    hidden = lost | missing
    return {"x": part.x[rows], "hidden": hidden, "at": visible_first(hidden), "learned": lost & ~missing}


def first_autoencoder(data, first):
    """An AVMAE with the weights of CAV-MAE, or in the file of an AVMAE, or random ones for ""."""
    model = build(data.seed, AVMAE, data.train.x.shape[3])
    if first and first == CAVMAE_CHECKPOINT:
        print(f"  CAV-MAE: {load_cavmae(model, first)}")
    elif first:
        load_best(model, Path(first).parent)
    model.standardise(data.train.x, data.train.missing)
    return model


def train_autoencoder(data, name, rate, first, levels, keep="best"):
    """An AVMAE, trained with new masks in every epoch, of the epoch with the lowest loss on data.valid.

    first   file of the first weights; levels: counts of hidden clips of either modality, by epoch
    keep    "both" leaves the weights of the last epoch, too
    """
    n_clips, model = data.train.n_clips, first_autoencoder(data, first)
    valid_lost = draw_mixture(len(data.valid), n_clips, range(1, n_clips), 1, generator_of(data.seed, 3))[0]

    def train_batch(rows, epoch, generator):
        return masked(data.train, rows, draw_mixture(len(rows), n_clips, [levels[epoch]], 1, generator)[0])

    def valid_batch(rows, *_):
        return masked(data.valid, rows, valid_lost[rows])

    def loss(model, batch):
        return model(**batch) * len(batch["x"]), len(batch["x"])

    def outputs(model, batch):
        return {"loss": model(**batch).expand(len(batch["x"]))}

    recipe = recipe_of(rate, len(levels), MAE_BATCH_SIZE, data.seed, select_by="lowest loss", keep=keep)
    identity = {"levels": levels, "heads": [MAE_HEADS, DECODER_HEADS], "first": first and file_hash(first)}
    return imputation.train(data, name, model, loss, outputs, (train_batch, valid_batch), recipe, identity)


def pretrain(name, store, turns):
    """Weights of an autoencoder trained on PRETRAIN_CORPUS at a fixed rate; one recording in 20 validates."""
    order, n_valid = torch.randperm(len(turns), generator=generator_of(SEEDS[0], 4)), max(1, len(turns) // 20)
    rows = order[n_valid:].sort().values, order[:n_valid].sort().values
    train, valid = (read_part(store, [turns[i] for i in at]) for at in rows)
    folder = Path(DATA_ROOT) / "models" / corpus_name(PRETRAIN_CORPUS) / "chochlakis" / name
    data = Data(train, valid, None, (), folder, SEEDS[0], make_accelerator(PRECISION, DETERMINISTIC, TRACKER))
    levels = [count_of(FIXED_SHARE, train.n_clips)] * PRETRAIN_EPOCHS
    train_autoencoder(data, "pretrained", PRETRAIN_LEARNING_RATE, CAVMAE_CHECKPOINT, levels)
    return best_weights(data.folder / "pretrained")


def fine_tune_autoencoders(data, first):
    """{"curri-MAE", "MAE", LAST: AVMAE}: with the curriculum, and at the fixed rate (Section 4.4)."""
    n_clips = data.train.n_clips
    step = CURRICULUM_STEP or max(1, MAE_EPOCHS // n_clips)
    rate = MAE_LEARNING_RATE or PAPER.get(corpus_of(CORPUS), PAPER["cremad"])[2]
    curriculum = [n_hidden_at(epoch, step, n_clips) for epoch in range(MAE_EPOCHS)]
    plan = {"curri-MAE": (curriculum, "both"), "MAE": ([count_of(FIXED_SHARE, n_clips)] * MAE_EPOCHS,)}
    found = {name: train_autoencoder(data, name, rate, first, *how) for name, how in plan.items()}
    if BEYOND_PAPER:
        last = build(data.seed, AVMAE, data.train.x.shape[3]).to(data.accelerator.device).eval()
        found[LAST] = load_best(last, data.folder / "curri-MAE", "last")
    return found


# ---- Imputing, classifying and testing (Sections 3.4, 3.5, 4.2 and 4.3) --------------------


def imputers_of(data, autoencoders):
    """{name: (x, hidden) -> x}: the constants of Section 3.5, others beyond the paper, the autoencoders."""
    mean, n_clips = data.train.mean(), data.train.n_clips
    found = {"zeros": partial(impute_constant, constant=torch.zeros_like(mean))}
    if BEYOND_PAPER:
        lost = draw_mixture(len(data.train), n_clips, range(1, n_clips), 1, generator_of(data.seed, 6))
        found["mean"] = partial(impute_constant, constant=mean)
        found["last"] = partial(imputation.impute_in_time, mean=mean, share=0.0)
        found["linear"] = partial(imputation.impute_in_time, mean=mean)
        found["ridge"] = imputation.fit_ridge(data.train, lost, mean)
    for name, model in autoencoders.items():
        found[name] = partial(imputation.impute_by_model, data.accelerator, model, EVAL_BATCH_SIZE)
    return found


def training_inputs(data, system, imputers):
    """[training, validation inputs (M, R, N, n)] of a System: whole, or imputed on drawn masks (Sec. 4.2)."""
    if not system.tuned:
        return [whole(part, system.imputer) for part in (data.train, data.valid)]
    n_clips, inputs = data.train.n_clips, []
    levels = {"all": [*range(1, n_clips)], "largest": [n_clips - 1]}
    levels = levels.get(system.tuned) or [int(k) for k in system.tuned.split("+")]
    for number, part in enumerate((data.train, data.valid)):
        hidden = draw_mixture(len(part), n_clips, levels, TRAIN_MASKS, generator_of(data.seed, 5, number))
        inputs.append(together(impute(imputers[system.imputer], data.train, part, hidden)))
    return inputs


def train_classifier(data, system, seed, first, inputs):
    """The classifier of a System, on a mask of `training_inputs` each epoch; fine-tuned from `first`."""
    (x, x_valid), y, y_valid = inputs, data.train.labels, data.valid.labels
    model = build(seed, NETWORKS[system.classifier], x.shape[3], len(data.classes))
    if system.tuned:
        model.load_state_dict(first.state_dict())

    def train_batch(rows, epoch, generator):
        return {"x": x[torch.randint(len(x), rows.shape, generator=generator), rows], "labels": y[rows]}

    def valid_batch(rows, *_):
        return {"x": x_valid[:, rows].transpose(0, 1), "labels": y_valid[rows]}  # x (B, M, N, n)

    def loss(model, batch):
        return classifier_loss(model(batch["x"]), batch["labels"]) * len(batch["x"]), len(batch["x"])

    def outputs(model, batch):
        classes = model(batch["x"].flatten(0, 1)).softmax(2).mean(1).argmax(1)
        return {"accuracy": (classes.view(len(batch["x"]), -1) == batch["labels"][:, None]).float()}

    epochs = FINETUNE_EPOCHS if system.tuned else CLASSIFIER_EPOCHS
    recipe = recipe_of(CLASSIFIER_LEARNING_RATE, epochs, CLASSIFIER_BATCH_SIZE, seed)
    name, epoch = ("curri-MAE", "last") if system.imputer == LAST else (system.imputer, "best")
    autoencoder = best_weights(data.folder / name, epoch)
    identity = {"classes": data.classes, "masks": TRAIN_MASKS}
    identity["imputed_by"] = file_hash(autoencoder) if autoencoder.exists() else ""
    name = "_".join([*filter(None, system), str(seed)])  # of its folder, such as linear_curri-MAE_all_0
    return imputation.train(data, name, model, loss, outputs, (train_batch, valid_batch), recipe, identity)


def train_classifiers(data, systems, imputers, seeds):
    """{System: a classifier for each seed}: trained on whole features, then fine-tuned on imputed, or not."""
    trained = {}
    for system in systems:
        trained[system] = first = trained.get(System(system.classifier, "none"), [None] * len(seeds))
        if system.tuned or system.imputer in WHOLE:
            inputs = training_inputs(data, system, imputers)
            trained[system] = [train_classifier(data, system, *pair, inputs) for pair in zip(seeds, first)]
    return trained


def predict(data, classifiers, imputers):
    """{(System, k): classes (H, M, R)} of the test part, k clips lost; {(imputer, k, modality): [error]}; and
    {imputer: (1, 2, N, D)}, the first recording with half of its clips imputed, NaN where they are "lost"."""
    test, predicted, errors = data.test, {}, {}
    masks = draw_test_masks(len(test), test.n_clips)
    middle = sorted(masks)[(len(masks) - 1) // 2]
    gone = (masks[middle] | test.missing)[0, :1, ..., None]  # (1, 2, N, 1)
    imputed = {"lost": torch.where(gone, torch.nan, test.x[:1]).numpy()}
    for system in (s for s in classifiers if s.imputer in WHOLE):
        predicted[system, 0] = classify(classifiers[system], whole(test, system.imputer))
    for k, hidden in masks.items():
        for name, imputer in imputers.items():
            x = impute(imputer, data.train, test, hidden)
            shares = imputation.unexplained(data.train, test, x, hidden)
            if k == middle:
                imputed[name] = x[0, :1].numpy()
            errors |= {(name, k, modality): [share] for modality, share in shares.items()}
            for system in (s for s in classifiers if s.imputer == name):
                predicted[system, k] = classify(classifiers[system], together(x))
        if "linear" in CLASSIFIERS:
            predicted[System("linear", "backoff"), k] = predict_backoff(data, classifiers, hidden)
    return predicted, errors, imputed


def predict_backoff(data, classifiers, hidden):
    """Classes (H, M, R) of the test part by `backoff` where clips are hidden (M, R, 2, N)."""
    found, prior = [], data.train.labels.bincount(minlength=len(data.classes)) / len(data.train)
    for models in zip(*(classifiers[System("linear", name)] for name in WHOLE)):
        clips = [probabilities(m, whole(data.test, name)[0]) for name, m in zip(WHOLE, models)]
        found.append(backoff(*clips, hidden | data.test.missing, prior))  # (M, R, C)
    return torch.stack(found).argmax(3).numpy()


def run_seed(name, seed, store, fold, classes, first):
    """Train and test all of one backbone and seed, from its store of clip features; see outcomes_of."""
    parts = (read_part(store, turns, classes) for turns in (fold.train, fold.valid, fold.test))
    folder = Path(DATA_ROOT) / "models" / corpus_name(CORPUS) / "chochlakis" / name / f"seed{seed}"
    data = Data(*parts, classes, folder, seed, make_accelerator(PRECISION, DETERMINISTIC, TRACKER))
    imputers = imputers_of(data, fine_tune_autoencoders(data, first))
    systems = tables.plan(CLASSIFIERS, mixtures(data.test.n_clips), BEYOND_PAPER)
    classifiers = train_classifiers(data, systems, imputers, CLASSIFIER_SEEDS or [seed])
    return data.test, *predict(data, classifiers, imputers)


# ---- Main ----------------------------------------------------------------------------------


def check_constants():
    """Refuse what would fail after hours; single values are checked by `settings`."""
    settings.check_choices(SETTINGS, {"BACKBONES": tuple(RATES_HZ), "CLASSIFIERS": tuple(NETWORKS)})
    is_share = [re.fullmatch(r"0?\.\d+(\+0?\.\d+)*", mixture) for mixture in MIXTURES]
    n = MLP_RATIO * ((2 * MAE_DEPTH + MAE_JOINT_DEPTH) * MAE_WIDTH**2 + DECODER_DEPTH * DECODER_WIDTH**2)
    settings.refuse(
        (N_CLIPS and not 2 <= N_CLIPS <= 1000, f"N_CLIPS={N_CLIPS}: give 2 to 1,000, 0 = the paper's"),
        (CLIP_S and not 0.1 <= CLIP_S <= 60, f"CLIP_S={CLIP_S}: give 0.1 to 60 seconds, 0 = the paper's"),
        (FRAME_SIZE and not 32 <= FRAME_SIZE <= 1024, f"FRAME_SIZE={FRAME_SIZE}: give 0 or 32 to 1024"),
        (not all(is_share), f"MIXTURES={','.join(MIXTURES)}: give shares of the clips, such as 0.4,0.4+0.7"),
        (max(N_MASKS, TRAIN_MASKS) > 1000, "N_MASKS, TRAIN_MASKS: give up to 1,000"),
        (len(BETAS) != 2 or max(BETAS) >= 1, "BETAS: give two numbers below 1"),
        (corpus_name(PRETRAIN_CORPUS) == corpus_name(CORPUS), "PRETRAIN_CORPUS: has the test recordings"),
        (MAE_WIDTH % MAE_HEADS, f"MAE_HEADS={MAE_HEADS}: does not divide MAE_WIDTH={MAE_WIDTH}"),
        (DECODER_WIDTH % DECODER_HEADS, f"DECODER_HEADS={DECODER_HEADS}: does not divide DECODER_WIDTH"),
        (max(GRU_WIDTH, BACKBONE_WIDTH) > 4096, "GRU_WIDTH, BACKBONE_WIDTH: give up to 4096"),
        (n > 1e10, "MAE_DEPTH, MAE_JOINT_DEPTH, MAE_WIDTH, DECODER_DEPTH, DECODER_WIDTH, MLP_RATIO: lower"),
    )


def check_files():
    """Name all corpora and weights that are not there, before anything slow."""
    files = {CAVMAE_CHECKPOINT} | {file for name in BACKBONES for file in files_of(name).values()}
    missing = [f"{file} (no such file)" for file in sorted(files - {""}) if not Path(file).is_file()]
    for name in (CORPUS, PRETRAIN_CORPUS):
        if name and not (prepared_folder(DATA_ROOT, name) / "manifest.csv").exists():
            missing.append(f"{name} (not prepared: run 01_prepare_data.py --CORPUS={name})")
    if missing:
        raise UserError(f"{'; '.join(missing)}; get these, or run --scratch or --demo, which need no weights")
    if CAVMAE_CHECKPOINT:  # opened here too, so that one that does not fit is refused before anything slow
        load_cavmae(build(0, AVMAE, 8 * BACKBONE_WIDTH), CAVMAE_CHECKPOINT)


def main():
    check_constants()
    check_files()
    backbones = [load_backbone(name, files_of(name), BACKBONE_WIDTH, FRAME_SIZE) for name in BACKBONES]
    manifest = read_manifest(DATA_ROOT, CORPUS)
    fold = fold_of(manifest, CORPUS)
    corpora, unlabelled = [(manifest, [*fold.train, *fold.valid, *fold.test])], (manifest, fold.train)
    if PRETRAIN_CORPUS:
        other = read_manifest(DATA_ROOT, PRETRAIN_CORPUS)
        unlabelled = other, [turn for turn in other.turns if turn.audio or turn.video]
        corpora.append(unlabelled)
    device = make_accelerator(PRECISION, DETERMINISTIC, TRACKER).device
    run = start_run(__file__, SETTINGS, manifest, protocol_text(manifest, CORPUS, fold), device)

    tasks = [(network, corpora, *unlabelled) for network in backbones]
    stores = dict(zip(BACKBONES, side_by_side(extract_features, tasks, JOBS)))
    first = dict.fromkeys(BACKBONES, CAVMAE_CHECKPOINT)
    if PRETRAIN_CORPUS:
        tasks = [(name, found[1], unlabelled[1]) for name, found in stores.items()]
        first = dict(zip(BACKBONES, side_by_side(pretrain, tasks, JOBS)))
    pairs = [(name, seed) for name in BACKBONES for seed in SEEDS]
    tasks = [(name, seed, stores[name][0], fold, manifest.classes, first[name]) for name, seed in pairs]
    outcomes = tables.outcomes_of(dict(zip(pairs, side_by_side(run_seed, tasks, JOBS))), SETTINGS)
    tables.write(run, outcomes, CLASSIFIERS, mixtures(outcomes[0].test.n_clips), BEYOND_PAPER)
    tables.write_predictions(run, outcomes, fold.name, manifest.classes)
    run.finish()


if __name__ == "__main__":
    settings.run(main, globals())
