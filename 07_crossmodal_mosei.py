"""Pretrain a cross-modal transformer on masked words with sound and pictures, and fine-tune it for emotions.

Paper: A. Khare, S. Parthasarathy, S. Sundaram, "Self-supervised learning with cross-modal transformers for
emotion recognition", IEEE SLT 2021: Tables 1 and 2, the ASR experiment and case studies of Sections 4.1, 4.2.
Model and losses stand here; common/khare/ has features, words, data, tables (with the scores) and figures.

    python 07_crossmodal_mosei.py         # after 01 --CORPUS=mosei and --CORPUS=voxceleb2
    python 07_crossmodal_mosei.py --demo  # after 01 --demo --CORPUS=demo_mosei and demo_voxceleb2_av
    python 07_crossmodal_mosei.py --scratch --CORPUS=meld     # words of MELD alone, sizes for two CPU cores
    python 07_crossmodal_mosei.py --scratch --CORPUS=ravdess --PRETRAIN_CORPUS= --MODALITIES=audio \\
        --ANCHOR=audio
    python 07_crossmodal_mosei.py --PREPARE_ONLY=true && accelerate launch 07_crossmodal_mosei.py    # GPUs

Three stages, each kept in <DATA_ROOT> and resumed after a kill:
1. filterbanks, VGG-16 and words of all clips of both corpora, once     -> clips/<corpus>/khare
2. masked language model with full softmax and with NCE      -> models/<pretraining corpus>/khare/<method>
3. fine-tuning of every row of a table with each of SEEDS    -> models/<corpus>/khare/<row>/seed<n>
Writes results/07_crossmodal_mosei/<corpus>/: khare_table_1, khare_table_2 (as in the paper), khare_table_asr
and khare_fig_cases (its Sections 4.1 and 4.2), khare_table_corpus, _gain, _f1, _classes, _cost and
khare_fig_pretraining (beyond it); predictions.csv, metrics.json, log.jsonl.

DEVIATIONS and what the paper leaves open; constants in capitals
1. Transcripts of VoxCeleb2 and their times come from wav2vec 2.0, not from Kaldi's TDNN, so that MIN_SCORE,
   which chooses English clips, is on another scale than the paper's heuristic threshold.
2. Pictures are seen FPS times a second, and features are standardised by the training clips of each corpus,
   up to 10,000 of them; the paper says neither. The last step of 50 ms repeats its last frame of 10 ms.
3. Schedule of [27], Adam with betas (0.9, 0.98) and eps 1e-9; its k (LEARNING_RATE_SCALE), WARMUP_STEPS,
   batch, dropout, and whether gradients are clipped (CLIP_NORM) are not in the paper.
4. The held-out set of pretraining is HELD_OUT of its speakers. Clips of videos that MOSEI validates or tests
   on are left out: both corpora are from YouTube.
5. NCE draws NOISE_WORDS for every hidden word, as [22]; how many is not in the paper. Held-out loss is that
   of the full softmax for both, so that the two can be compared.
6. Fine-tuning: learning rate, epochs and batch are not in the paper; the epoch is chosen on dev, by the same
   mean of WA and F1 that chooses among the initialisations. For pretrained models SEEDS vary the last layer,
   the order and the dropout; each pretraining is done once, with the first of them.
7. Words without a vector are left out: "which we ignore". MAX_S cuts very long clips.
8. The paper counts 23,453 segments; the release's label file has 23,259, its official folds 22,860.
9. Not in the paper: means over all initialisations, paired intervals, macro and positive F1, TF-IDF, models
   trained without a modality, and one with trained substitutes, which is robust to missing modalities.
10. "!", "?" and "..." are words of their own where a text has them: they carry emotion.
11. Corpora with one label per clip (MELD, RAVDESS) are trained in the same way, as many yes-or-no emotions as
   classes; with PRETRAIN_CORPUS = CORPUS the masked language model sees its training part alone.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from common import splits
from common.extraction import Extraction
from common.files import UserError, hash_of, read_json
from common.jobs import side_by_side
from common.khare import data, features, figures, tables
from common.khare.data import NO_TARGET, Clips
from common.khare.features import ARRAYS
from common.khare.words import is_there, look_up, open_words
from common.layers import TOKEN_STD, build, count_parameters, initialise, sinusoidal, take, vectors
from common.manifest import corpus_name, prepared_folder, read_manifest
from common.results import start_run
from common.training import Place, Recipe, Task, best_weights, load_best, make_accelerator, train_and_test

# fmt: off
# ---- Roots ---------------------------------------------------------------------------------
DATA_ROOT = "data"              # folder of corpora, clip features, models
RESULTS_ROOT = "results"        # tables and figures go to <RESULTS_ROOT>/07_crossmodal_mosei/<corpus>/
RUN = ""                        # name of its folder; "" = the corpus and what differs from the preset

# ---- Corpus and protocol -------------------------------------------------------------------
CORPUS = "mosei"                # "mosei", or any corpus that 01 has prepared
PRETRAIN_CORPUS = "voxceleb2"   # unlabelled clips (Sec. 3.1); CORPUS itself: its training part; "" = none
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)    # ten initialisations of every row (Sec. 4)
METHODS = ("softmax", "nce")    # pretraining with full softmax, with noise-contrastive estimation
CASES = ()                      # test clips to study; () = the paper's (Sec. 4.2) if they are there
N_GROUPS = 5                    # groups of speakers, one tests, one validates, without an official split
N_RESAMPLES = 10000             # of videos behind every interval

# ---- Features (Sec. 3.1) -------------------------------------------------------------------
MODALITIES = ("text", "audio", "video")   # that are used at all
TRANSCRIPTS = "facebook/wav2vec2-large-960h"      # words of clips without a text: CTC or Whisper model,
                                # folder of <clip>.txt, csv utterance_id,word,start_s,end_s; "" = none
MIN_SCORE = -0.3                # English: mean log-probability of letters; transcripts without a score stay
ASR_TRANSCRIPTS = "facebook/wav2vec2-large-960h"  # recognised test clips (Sec. 4.1), likewise; "" = none
GLOVE = "data/raw/glove.840B.300d.txt"    # vectors of any width, .gz too; "" = random ones, without a file
VGG_WEIGHTS = ""                # file of torchvision's VGG-16; "" = torchvision downloads it
RANDOM_VGG = False              # random weights instead, where none are at hand
FRAME_SIZE = 0                  # side of a picture in pixels; 0 = VGG-16's, 224
FPS = 2.0                       # pictures per second. Not in the paper
MAX_S = 60.0                    # seconds of a clip that are taken; 0 = all
MAX_PROBLEM_SHARE = 0.05        # stop where more than this share of the clips cannot be read
PREPARE_ONLY = False            # True: stop when the features are there, before several processes train

# ---- Model (Sec. 2.1 and 3.1) --------------------------------------------------------------
ANCHOR = "text"                 # the query modality; masked words need text
WIDTH = 512                     # of keys, queries and values
DEPTH = 4                       # layers of every encoder
HEADS = 4                       # of attention
FEED_FORWARD = 200              # units
DROPOUT = 0.1                   # of every part before its residual and of the inputs ([19]). Not in the paper
TERM_WEIGHTS = (0.33, 0.33, 0.33)         # w_1, w_2, w_3 of Eq. 5; 0 = without that term

# ---- Pretraining (Sec. 2.2 and 3.1) --------------------------------------------------------
HIDDEN_SHARE = 0.15             # of the words, with their audio and video
PRETRAIN_EPOCHS = 20            # of which the one with the least held-out loss is taken
PRETRAIN_BATCH_SIZE = 64        # clips per step. Not in the paper
LEARNING_RATE_SCALE = 1.0       # k of [27]. Not in the paper
WARMUP_STEPS = 4000             # not in the paper
BETAS = (0.9, 0.98)             # of Adam ([27])
EPS = 1e-9                      # of Adam ([27])
CLIP_NORM = 1.0                 # largest norm of a gradient, in fine-tuning too; 0 = off. Not in the paper
NOISE_WORDS = 25                # per hidden word. Not in the paper
HELD_OUT = 0.05                 # share of the speakers. Not in the paper

# ---- Fine-tuning (Sec. 3.1) ----------------------------------------------------------------
FINETUNE_LEARNING_RATE = 1e-4   # of Adam; rises over the first tenth, then falls to zero. Not in the paper
FINETUNE_EPOCHS = 20            # not in the paper
FINETUNE_BATCH_SIZE = 32        # clips per step. Not in the paper

# ---- Beyond the paper ----------------------------------------------------------------------
BEYOND_PAPER = True             # also models trained without a modality, with other anchors, with substitutes
N_SUBSTITUTES = 8               # trained vectors for a missing modality, in the model that is robust to it
DROP_RATE = 0.3                 # share of modalities that its training clips lose

# ---- Machine -------------------------------------------------------------------------------
PRECISION = "auto"              # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"
DETERMINISTIC = True            # the same numbers again on the same machine; False is faster on a GPU
JOBS = 1                        # trainings side by side
TRACKER = ""                    # "tensorboard" (in data/models) or "wandb" sees every epoch; "" = none
WORKERS = 4                     # threads that decode recordings, processes that prepare batches; 0 = none
VGG_BATCH = 64                  # pictures per forward pass of VGG-16
EVAL_BATCH_SIZE = 64            # clips per forward pass outside training

# ---- Presets -------------------------------------------------------------------------------
DEMO = {"JOBS": 2, "CORPUS": "demo_mosei", "PRETRAIN_CORPUS": "demo_voxceleb2_av", "SEEDS": (0, 1),
        "TRANSCRIPTS": "raw/demo_voxceleb2_av/words.csv", "MIN_SCORE": -0.5,
        "ASR_TRANSCRIPTS": "raw/demo_mosei/recognised_synthetic.csv",
        "GLOVE": "raw/demo_mosei/glove.demo.300d.txt", "RANDOM_VGG": True, "FRAME_SIZE": 32, "FPS": 0.5,
        "WIDTH": 64, "DEPTH": 1, "FEED_FORWARD": 64, "DROPOUT": 0.0, "N_SUBSTITUTES": 4,
        "PRETRAIN_EPOCHS": 60, "LEARNING_RATE_SCALE": 0.5, "WARMUP_STEPS": 150, "HELD_OUT": 0.1,
        "FINETUNE_LEARNING_RATE": 5e-3, "FINETUNE_EPOCHS": 4, "FINETUNE_BATCH_SIZE": 16, "N_RESAMPLES": 1000,
        "WORKERS": 0, "RESULTS_ROOT": "results/mine"}     # synthetic corpora, VGG-16 with random weights
SCRATCH = {"PRETRAIN_CORPUS": "meld", "SEEDS": (0, 1, 2), "TRANSCRIPTS": "", "ASR_TRANSCRIPTS": "",
           "GLOVE": "", "RANDOM_VGG": True, "FRAME_SIZE": 64, "WIDTH": 128, "DEPTH": 2, "PRETRAIN_EPOCHS": 10,
           "LEARNING_RATE_SCALE": 0.25, "WARMUP_STEPS": 500, "FINETUNE_LEARNING_RATE": 3e-4,
           "FINETUNE_EPOCHS": 5, "FINETUNE_BATCH_SIZE": 64,
           "WORKERS": 0}        # two CPU cores, from random weights: no GloVe, VGG-16 or VoxCeleb2
SETTINGS = {}                   # filled by settings.run: what this run used
# fmt: on

# B clips, W words, T_a steps of audio, T_v frames of video, S any of the three, w WIDTH, V words of the
# vocabulary, H hidden words of a clip, k noise words, E emotions. A batch (data.Clips.collate) is a dict of
# "text" (B, W, 300), "audio" (B, T_a, 200), "video" (B, T_v, 4096), 0 where hidden or padded, and
# "text_length", "audio_length", "video_length" (B,): steps that are there, 0 = the clip lacks it.


# ---- 1. One layer (Section 2.1, Equations 1 to 4) ------------------------------------------


class Layer(nn.Module):
    """A layer of a unimodal encoder, or of a cross-modal one, with a residual as the paper prints it.

    Eq. 3 adds what was attended to the values V, not to the layer's input as in [19]. A of several heads goes
    through a linear layer as in [19]. In a cross-modal layer (Eq. 4) queries come from one modality, keys and
    values from another, and "identical, with one exception" cannot hold to the letter: V has the other
    modality's length. Our choice is LayerNorm(Q + A): of the three projections Q alone has the length of A.
    It also keeps which word a query came from, as the residual does in [15].
    """

    def __init__(self, cross):
        super().__init__()
        self.cross, self.heads = cross, HEADS
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        parts = nn.Linear(WIDTH, FEED_FORWARD), nn.ReLU(), nn.Linear(FEED_FORWARD, WIDTH)
        self.feed_forward, self.dropout = nn.Sequential(*parts), nn.Dropout(DROPOUT)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x, source, is_step):
        """x (B, S, w) is the query, source (B, S', w), x itself in a unimodal encoder, answers -> (B, S, w).

        is_step  (B, S') bool, the steps of source that are there; without any the output means nothing
        """
        q, k, v = self.query(x), self.key(source), self.value(source)  # Eq. 1: (B, S, w), twice (B, S', w)
        is_key = is_step | ~is_step.any(1, keepdim=True)  # (B, S'); without a key all would be NaN
        heads = self.split(q), self.split(k), self.split(v)
        a = F.scaled_dot_product_attention(*heads, attn_mask=is_key[:, None, None])  # Eq. 2
        a = self.out(a.transpose(1, 2).flatten(2))  # (B, heads, S, w / heads) -> (B, S, w)
        o = self.norm_attention((q if self.cross else v) + self.dropout(a))  # Eq. 3
        return self.norm_feed_forward(o + self.dropout(self.feed_forward(o)))

    def split(self, x):
        """(B, S, w) -> (B, heads, S, w / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


# ---- 2. The model (Section 2.1, Equation 5) ------------------------------------------------


class CrossModalTransformer(nn.Module):
    """Features of three modalities -> one vector for each step of the anchor modality (Figure 1).

    Each modality goes through a linear layer (our choice), positions are added, and then its own encoder
    gives S_T, S_A, S_V. Two cross-modal encoders let every step of the anchor look at the two others. Queries
    of a layer after the first are the output of the layer before; keys and values are always S_A's or S_V's.

    A term of Eq. 5 is 0 where the clip lacks its modality. Where the anchor is missing, all is 0, the paper's
    limitation (Sec. 4.2): no words, no queries. `robust` is our way out: a missing modality is a sequence of
    N_SUBSTITUTES trained vectors, learnt from clips that lose some (`drop_modalities`). The rest stays as it
    is: averaging models with an anchor each would take three times the encoders.
    """

    def __init__(self, widths, anchor, robust=False):
        """widths: {modality: how many numbers a step of it has}, of those that the corpora have."""
        super().__init__()
        self.anchor, self.dropout, self.substitutes = anchor, nn.Dropout(DROPOUT), None
        self.project = nn.ModuleDict({name: nn.Linear(n, WIDTH) for name, n in widths.items()})
        if robust:
            trained = {name: vectors(TOKEN_STD, N_SUBSTITUTES, WIDTH) for name in widths}
            self.substitutes = nn.ParameterDict(trained)
        others = [name for name in widths if name != anchor]
        self.unimodal = nn.ModuleDict({name: self.layers(cross=False) for name in widths})
        self.cross = nn.ModuleDict({name: self.layers(cross=True) for name in others})
        self.apply(initialise)

    def layers(self, cross):
        return nn.ModuleList(Layer(cross) for _ in range(DEPTH))

    def forward(self, batch):
        """The output of Eq. 5 (B, S, w), 0 at steps that the anchor lacks, and is_step (B, S) bool."""
        states, is_step = {}, {}
        for name in self.unimodal:
            x, is_step[name] = self.embed(batch[name], batch[f"{name}_length"], name)
            for layer in self.unimodal[name]:
                x = layer(x, x, is_step[name])
            states[name] = x  # S_T, S_A, S_V
        weights = dict(zip(sorted(ARRAYS, key=lambda name: name != self.anchor), TERM_WEIGHTS))
        encoded = weights[self.anchor] * states[self.anchor]  # Eq. 5: w_1 E_T, E_T = S_T
        for name in self.cross:
            x = states[self.anchor]
            for layer in self.cross[name]:
                x = layer(x, states[name], is_step[name])  # Eq. 4: E_A->T, E_V->T
            x = x.masked_fill(~is_step[name].any(1)[:, None, None], 0.0)
            encoded = encoded + weights[name] * x
        return encoded.masked_fill(~is_step[self.anchor][..., None], 0.0), is_step[self.anchor]

    def embed(self, x, length, name):
        """A modality as vectors with positions (B, S, w), and which of its steps are there (B, S) bool."""
        x = self.project[name](x)
        if self.substitutes is not None:
            x, length = self.substitute(x, length, name)
        is_step = torch.arange(x.shape[1], device=x.device) < length[:, None]
        return self.dropout(x + sinusoidal(x.shape[1], WIDTH, x.device)), is_step

    def substitute(self, x, length, name):
        """x (B, S, w) and length (B,) with trained vectors for the clips that lack the modality."""
        n_steps, lacks = max(x.shape[1], N_SUBSTITUTES), length == 0
        x = F.pad(x, (0, 0, 0, n_steps - x.shape[1]))
        trained = F.pad(self.substitutes[name], (0, 0, 0, n_steps - N_SUBSTITUTES)).to(x.dtype)
        return torch.where(lacks[:, None, None], trained, x), length.masked_fill(lacks, N_SUBSTITUTES)


def drop_modalities(clip, generator, rate):
    """An item of data.Clips that loses each of its modalities with probability `rate`, but never all."""
    there = [name for name in ARRAYS if len(clip[name])]
    left = [name for name in there if generator.random() >= rate] or there
    return clip | {name: clip[name][:0] for name in there if name not in left}


# ---- 3. Masked words with their audio and video (Section 2.2) ------------------------------


def mask_words(clip, generator, share):
    """A clip with some words hidden, and all audio and video while they are spoken: zeros everywhere.

    A `share` of its words, and at least one. They are drawn from those in the vocabulary (word_ids >= 0),
    since others cannot be predicted; a clip without any keeps all it has.
    clip       an item of data.Clips, whose arrays are changed
    generator  numpy's, the only randomness used
    Returns it with "hidden" (H,), the places of the hidden words, and "targets" (H,), their numbers.
    """
    can_hide = np.flatnonzero(clip["word_ids"] >= 0)
    n_hidden = max(1, int(share * len(can_hide) + 0.5))
    hidden = np.sort(generator.permutation(can_hide)[:n_hidden])
    clip["text"][hidden] = 0
    for name, step_s in clip["step_s"].items():
        for start_s, end_s in clip["word_times"][hidden]:
            clip[name][steps_of(start_s, end_s, step_s)] = 0
    return clip | {"hidden": hidden, "targets": clip["word_ids"][hidden]}


def steps_of(start_s, end_s, step_s):
    """The steps, as a slice, during which a word is spoken, even if only for a part.

    A word of no length lies in the step that contains it; one without times in none.
    """
    if math.isnan(start_s):
        return slice(0, 0)
    first = math.floor(start_s / step_s + features.EDGE_TOLERANCE)
    return slice(first, max(first + 1, math.ceil(end_s / step_s - features.EDGE_TOLERANCE)))


# ---- 4. Masked language model: full softmax and NCE (Section 2.2) --------------------------


class MaskedLM(nn.Module):
    """Predicts hidden words, of V = n_words, from the words around them, and from audio and video."""

    def __init__(self, widths, n_words):
        super().__init__()
        self.encoder, self.output = CrossModalTransformer(widths, "text"), nn.Linear(WIDTH, n_words)
        initialise(self.output)

    def forward(self, batch):
        """A batch of masked clips -> (B, H, w), what stands at the hidden words."""
        return take(self.encoder(batch)[0], batch["hidden"])


def softmax_loss(output, x, targets):
    """Cross-entropy over the whole vocabulary of x (B, H, w) and targets (B, H), NO_TARGET = none: (B, H)."""
    logits = output(x).float().flatten(0, 1)  # (B * H, V)
    return F.cross_entropy(logits, targets.flatten(), reduction="none").view_as(targets)


class Noise:
    """The noise of NCE: words drawn from their frequencies in the training transcripts, counts (V,) > 0."""

    def __init__(self, counts, device):
        counts = torch.as_tensor(counts, dtype=torch.int64)
        self.total, self.cumulative = int(counts.sum()), counts.cumsum(0).to(device)
        self.log_k_p = (counts.double() / counts.sum() * NOISE_WORDS).log().float().to(device)  # ln(k P(w))

    def draw(self, n):
        """k words for each of n positions (n, k): a running word is drawn, and looked up in the counts."""
        running = torch.randint(self.total, (n, NOISE_WORDS), device=self.cumulative.device)
        return torch.searchsorted(self.cumulative, running, right=True)


def nce_loss(output, x, targets, noise):
    """Noise-contrastive estimation after [22]: tell each hidden word from k noise words; (B, H), 0 = none.

    -ln sigma(D(w)) - sum_k ln sigma(-D(w_k)),  D(w) = s(w) - ln Z - ln(k P_noise(w)),  Z = V

    s(w) is the score of a word, the logit of the softmax: `output` of x (B, H, w). [22] fixes Z to 1; "we use
    a normalization factor of vocabulary size which we found to be critical" (Sec. 2.2): fresh scores are
    about 0, so that exp(s) sums to V.
    """
    x, words = x.flatten(0, 1), targets.flatten().clamp(min=0)[:, None]  # (N, w), (N, 1); N = B * H

    def difference(words):  # (N, k) -> (N, k)
        s = torch.einsum("nw,nkw->nk", x, F.embedding(words, output.weight)) + output.bias[words]
        return s.float() - math.log(len(output.weight)) - noise.log_k_p[words]

    others = -difference(noise.draw(len(x)))  # (N, k)
    loss = -F.logsigmoid(difference(words)).sum(1) - F.logsigmoid(others).sum(1)  # (N,)
    return loss.view_as(targets).masked_fill(targets == NO_TARGET, 0.0)


def learning_rate(step):
    """The schedule of [27] at step n = 1, 2, ...: k * w^-0.5 * min(n^-0.5, n * WARMUP_STEPS^-1.5)."""
    return LEARNING_RATE_SCALE * WIDTH**-0.5 * min(step**-0.5, step * WARMUP_STEPS**-1.5)


# ---- 5. Emotions (Sections 2.1 and 3.1) ----------------------------------------------------


class EmotionClassifier(nn.Module):
    """Average pooling over the steps of the anchor, then a linear layer with a sigmoid for each emotion."""

    def __init__(self, widths, n_emotions, anchor, robust=False):
        super().__init__()
        self.encoder = CrossModalTransformer(widths, anchor, robust)
        self.output = nn.Linear(WIDTH, n_emotions)
        initialise(self.output)

    def forward(self, batch):
        """batch -> logits (B, E); those of the bias alone where there is nothing to pool."""
        encoded, is_step = self.encoder(batch)
        return self.output(encoded.sum(1) / is_step.sum(1, keepdim=True).clamp(min=1))


def balance(labels):
    """Weights (2, E) with which "the positive and negative examples ... contribute equally" (Sec. 3.1).

    labels (N, E) bool of the training part. With P_e of N clips positive for emotion e, a positive one weighs
    N / (2 P_e), a negative one N / (2 (N - P_e)): positives and negatives of every emotion then weigh N / 2.
    """
    positive = torch.as_tensor(labels).sum(0)  # (E,)
    return len(labels) / (2.0 * torch.stack([len(labels) - positive, positive]).clamp(min=1))


def balanced_loss(logits, labels, weights):
    """Binary cross-entropy of logits and labels (bool), both (B, E): mean over emotions, sum over clips."""
    weights = torch.where(labels, weights[1], weights[0])  # (B, E)
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), weights, reduction="none")
    return losses.mean(1).sum()


# ---- 6. Features and words of both corpora (Section 3.1) -----------------------------------


def prepare(manifest, fold, device):
    """The Corpus of CORPUS, that of PRETRAIN_CORPUS or None, and a store of recognised test words or None."""
    recogniser, unlabelled, recognised = open_words(ASR_TRANSCRIPTS, DATA_ROOT, device), None, None
    manifests = [manifest]
    if PRETRAIN_CORPUS and corpus_name(PRETRAIN_CORPUS) != manifest.corpus:
        manifests.append(read_manifest(DATA_ROOT, PRETRAIN_CORPUS))
    stores = side_by_side(clip_store, [(each, each.turns, TRANSCRIPTS) for each in manifests], JOBS)
    parts = {"train": fold.train, "valid": fold.valid}
    corpus = data.corpus_of(manifest, stores[0], parts | {"test": fold.test}, MODALITIES)
    if ANCHOR not in corpus.inputs:
        raise UserError(f"ANCHOR={ANCHOR}: no training clip of {CORPUS} has {ANCHOR}; choose another anchor")
    has_sound = any(turn.audio or turn.video for turn in fold.test)
    if recogniser and "text" in corpus.inputs and (has_sound or not recogniser.needs_sound):  # Sec. 4.1
        recognised = clip_store(manifest, fold.test, ASR_TRANSCRIPTS, recognised=True)
    if PRETRAIN_CORPUS:
        if len(manifests) > 1:
            parts = data.other_turns(manifests[1], HELD_OUT, SEEDS[0], fold)
        parts = data.english(stores[-1], parts, MIN_SCORE)
        unlabelled = data.corpus_of(manifests[-1], stores[-1], parts, MODALITIES)
    corpora = [corpus, unlabelled] if unlabelled else [corpus]
    glove, cache = GLOVE and look_up(GLOVE, DATA_ROOT), Path(DATA_ROOT) / "cache" / "glove"
    data.give_vectors(corpora, recognised, glove, cache)
    if unlabelled and not unlabelled.numbers:
        raise UserError(f"PRETRAIN_CORPUS={PRETRAIN_CORPUS}: none of its words has a vector in {GLOVE}")
    return corpus, unlabelled, recognised


def clip_store(manifest, turns, transcripts, recognised=False):
    """The features of some turns. `transcripts` are for turns without words; with `recognised` for all."""
    device, vgg = str(make_accelerator(PRECISION, DETERMINISTIC, TRACKER).device), None
    if "video" in MODALITIES and not recognised:
        vgg = features.VGG(None if RANDOM_VGG else VGG_WEIGHTS, FRAME_SIZE, VGG_BATCH, device)
    words = open_words(transcripts, DATA_ROOT, device)
    sources = data.sources_of(manifest, turns, vgg is not None, with_words=not recognised)
    how = Extraction(workers=WORKERS, max_problem_share=MAX_PROBLEM_SHARE)
    folder = Path(DATA_ROOT) / "clips" / manifest.corpus / ("khare_recognised" if recognised else "khare")
    return features.extract_clips(sources, words, vgg, FPS, folder, how)


# ---- 7. Pretraining (Sections 2.2 and 3.1) -------------------------------------------------


def pretrain(method, corpus):
    """Train a masked language model ("softmax" or "nce") where it is not there; returns its history."""
    accelerator = make_accelerator(PRECISION, DETERMINISTIC, TRACKER)
    hide = partial(mask_words, share=HIDDEN_SHARE)  # others in each step, always the same in evaluations
    clips = {name: Clips(corpus, name, corpus.inputs, MAX_S, hide) for name in ("train", "valid")}
    criterion = softmax_loss
    if method == "nce":
        criterion = partial(nce_loss, noise=Noise(corpus.counts, accelerator.device))

    def loss(model, batch):
        targets = batch["targets"]
        return criterion(model.output, model(batch), targets).sum(), (targets != NO_TARGET).sum()

    how = {"schedule": "inverse_sqrt", "warmup": WARMUP_STEPS, **adam()}
    peak, size = learning_rate(WARMUP_STEPS), (PRETRAIN_EPOCHS, PRETRAIN_BATCH_SIZE)
    recipe = Recipe(peak, *size, select_by="lowest loss", seed=SEEDS[0], **how)
    noise_words = NOISE_WORDS if method == "nce" else 0
    identity = {**identity_on(corpus), "method": [method, HIDDEN_SHARE, noise_words]}
    make_model = partial(build, SEEDS[0], MaskedLM, corpus.widths, len(corpus.numbers))
    task = Task(make_model, loss, held_out_outputs, held_out_figures)
    place = Place(model_folder(PRETRAIN_CORPUS, method), identity, f"pretraining {method}")
    history = train_and_test(accelerator, task, clips, recipe, place, keep_weights=True)["history"]
    return history | {"parameters": count_parameters(make_model())}


def held_out_outputs(model, batch):
    """Of each clip (B,): loss of its hidden words under the full softmax, how many are found, how many."""
    logits, targets = model.output(model(batch)), batch["targets"]  # (B, H, V), (B, H)
    found = {"loss": softmax_loss(nn.Identity(), logits, targets), "right": logits.argmax(2) == targets}
    return {name: each.float().sum(1) for name, each in (found | {"n": targets != NO_TARGET}).items()}


def held_out_figures(found, clips):
    """Loss per hidden word, and the share of words found."""
    loss, right, n = (float(found[name].sum(dtype=float)) for name in ("loss", "right", "n"))
    return {"loss": loss / max(1.0, n), "accuracy": right / max(1.0, n)}


def adam():
    """What both trainings share."""
    how = {"eval_batch_size": EVAL_BATCH_SIZE, "workers": WORKERS}
    return {"betas": BETAS, "eps": EPS, "clip_norm": CLIP_NORM, **how}


def identity_on(corpus):
    """What trainings on a Corpus depend on besides their recipe; JSON-ready."""
    sizes = [WIDTH, DEPTH, HEADS, FEED_FORWARD, DROPOUT, *TERM_WEIGHTS]
    return {"sizes": sizes, "widths": corpus.widths, "corpus": corpus.identity(), "max_s": MAX_S}


def model_folder(corpus, *names):
    return Path(DATA_ROOT).joinpath("models", corpus_name(corpus), "khare", *names)


# ---- 8. Fine-tuning (Section 3.1) ----------------------------------------------------------


def finetune(row, seed, corpus, recognised):
    """Fine-tune a tables.Row with one initialisation and test it, if it is not done; returns its outcome."""
    accelerator = make_accelerator(PRECISION, DETERMINISTIC, TRACKER)
    main = tables.is_main(row, corpus.inputs, ANCHOR)
    change = partial(drop_modalities, rate=DROP_RATE) if row.robust else None
    clips = {"train": Clips(corpus, "train", row.inputs, MAX_S, change)}
    clips["valid"] = Clips(corpus, "valid", row.inputs, MAX_S)
    for inputs in tables.conditions(row, corpus.inputs):
        clips["+".join(inputs)] = Clips(corpus, "test", inputs, MAX_S)
    if recognised is not None and main:
        clips[tables.RECOGNISED] = Clips(corpus, "test", row.inputs, MAX_S, words_from=recognised)
    weights = balance(corpus.parts["train"].targets).to(accelerator.device)

    def loss(model, batch):
        return balanced_loss(model(batch), batch["labels"], weights), len(batch["labels"])

    def score(found, clips):
        return {"score": tables.selection_score(clips.labels, found["logits"] > 0)}

    peak, size = FINETUNE_LEARNING_RATE, (FINETUNE_EPOCHS, FINETUNE_BATCH_SIZE)
    recipe = Recipe(peak, *size, warmup=0.1, select_by="highest score", seed=seed, **adam())
    pretrained = None if row.first == "scratch" else model_folder(PRETRAIN_CORPUS, row.first)
    identity = {**identity_on(corpus), "row": asdict(row), "robust": [N_SUBSTITUTES, DROP_RATE] * row.robust}
    identity["pretrained"] = pretrained and read_json(pretrained / "outcome.json")["history"]["identity"]
    identity["recognised"] = hash_of(recognised.meta) if tables.RECOGNISED in clips else ""
    make_model = partial(build, seed, classifier, row, corpus, pretrained)
    task = Task(make_model, loss, lambda model, batch: {"logits": model(batch)}, score)
    place = Place(model_folder(CORPUS, row.slug(), f"seed{seed}"), identity, f"{row.slug()} seed {seed}")
    keep_weights = main and row.first == "scratch"  # for the case studies
    return train_and_test(accelerator, task, clips, recipe, place, keep_weights)


def classifier(row, corpus, pretrained=None):
    """A Row's model with fresh weights, or those of a pretrained encoder in a folder."""
    model = EmotionClassifier(corpus.widths, len(corpus.emotions), row.anchor, row.robust)
    if pretrained:
        own = {name: x for name, x in load_file(best_weights(pretrained)).items() if "encoder." in name}
        model.encoder.load_state_dict({name.removeprefix("encoder."): x for name, x in own.items()})
    return model


# ---- Main ----------------------------------------------------------------------------------


def check_constants():
    """Refuse what would fail after hours; single values are checked by `settings`."""
    choices = {"MODALITIES": tuple(ARRAYS), "ANCHOR": MODALITIES, "METHODS": ("softmax", "nce")}
    settings.check_choices(SETTINGS, choices)
    weights = DEPTH * WIDTH * (WIDTH + FEED_FORWARD)
    settings.refuse(
        (PRETRAIN_CORPUS and ANCHOR != "text", f"ANCHOR={ANCHOR}: masked words need ANCHOR=text"),
        (ANCHOR not in MODALITIES, f"ANCHOR={ANCHOR}: none of MODALITIES={','.join(MODALITIES)}"),
        (WIDTH % HEADS, f"WIDTH={WIDTH}, HEADS={HEADS}: the heads do not divide the width"),
        (DEPTH > 100 or weights > 1e9, "WIDTH, DEPTH, FEED_FORWARD: the model would not fit into memory"),
        (max(NOISE_WORDS, N_SUBSTITUTES) > 1e5, "NOISE_WORDS, N_SUBSTITUTES: give up to 100,000"),
        (N_RESAMPLES > 1e5, "N_RESAMPLES: give up to 100,000"),
        (max(JOBS, WORKERS) > 256, "JOBS, WORKERS: give up to 256"),
        (len(TERM_WEIGHTS) != 3, "TERM_WEIGHTS: give three weights"),
        (len(BETAS) != 2 or max(BETAS) >= 1, "BETAS: give two numbers below 1"),
        (FRAME_SIZE and not 32 <= FRAME_SIZE <= 1024, f"FRAME_SIZE={FRAME_SIZE}: give 0 or 32 to 1024"),
        (FPS > 240, f"FPS={FPS}: give up to 240"),
    )


def check_files():
    """Name all corpora, word vectors and weights that are not there, before anything slow."""
    c, missing = globals(), []
    for name in ("CORPUS", "PRETRAIN_CORPUS"):
        if c[name] and not (prepared_folder(DATA_ROOT, c[name]) / "manifest.csv").exists():
            missing.append(f"{name}={c[name]} (not prepared: run 01_prepare_data.py --CORPUS={c[name]})")
    if GLOVE and not look_up(GLOVE, DATA_ROOT):
        missing.append(f"GLOVE={GLOVE} (no such file here or in {DATA_ROOT})")
    for name in ("TRANSCRIPTS", "ASR_TRANSCRIPTS"):
        if c[name] and not is_there(c[name], DATA_ROOT):
            missing.append(f"{name}={c[name]} (no file here or in {DATA_ROOT}, and no model that can be had)")
    weights = "" if RANDOM_VGG else VGG_WEIGHTS
    if weights and not Path(weights).is_file():
        missing.append(f"VGG_WEIGHTS={weights} (no such file)")
    if missing:
        remedy = "get these, or run with --scratch, which needs no word vectors or weights, or --demo"
        raise UserError(f"{'; '.join(missing)}; {remedy}")
    if weights:
        features.vgg_weights(weights)  # refuses those that do not fit


def main():
    check_constants()
    check_files()
    accelerator = make_accelerator(PRECISION, DETERMINISTIC, TRACKER)
    manifest = read_manifest(DATA_ROOT, CORPUS)
    fold, protocol = data.fold_of(manifest, N_GROUPS), data.protocol_text(manifest)
    cases = data.find_cases(CASES, fold.test)
    is_first = accelerator.is_main_process
    run = start_run(__file__, SETTINGS, manifest, protocol, accelerator.device) if is_first else None
    print(*splits.check_folds([fold], manifest), sep="\n")

    with accelerator.main_process_first():
        corpus, unlabelled, recognised = prepare(manifest, fold, str(accelerator.device))
    if PREPARE_ONLY:
        return

    methods = METHODS if unlabelled else ()
    histories = side_by_side(pretrain, [(method, unlabelled) for method in methods], JOBS)
    rows = tables.plan(corpus.inputs, ANCHOR, methods, BEYOND_PAPER)
    tasks = [(row, seed, corpus, recognised) for row in rows for seed in SEEDS]
    outcomes = side_by_side(finetune, tasks, JOBS)
    if not is_first:
        return

    for (row, seed, *_), found in zip(tasks, outcomes):
        run.log({"event": "fine-tuned", "row": row.slug(), "seed": seed, "epochs": found["history"]["log"]})
    outcomes = {row: [found for task, found in zip(tasks, outcomes) if task[0] == row] for row in rows}
    results = tables.Results(corpus, ANCHOR, SEEDS, N_RESAMPLES, outcomes, dict(zip(methods, histories)))
    if "text" in corpus.inputs:
        results.tfidf = data.tfidf_logits(corpus)
    if unlabelled:
        results.pretraining = data.vocabulary_facts(unlabelled)
    if recognised:
        error_rate = data.word_error_rate(corpus.parts["test"].ids, corpus.store, recognised)
        results.recognised = error_rate, f"words of {Path(ASR_TRANSCRIPTS).name}"
    tables.write(run, results, data.is_multilabel(manifest))
    if unlabelled:
        figures.pretraining_figure(run, results)
    best = model_folder(CORPUS, rows[0].slug(), f"seed{SEEDS[results.best(rows[0])]}")
    model = load_best(classifier(rows[0], corpus), best).to(accelerator.device).eval()
    figures.cases_figure(run, results, model, Clips(corpus, "test", corpus.inputs, MAX_S), cases)
    run.predictions(tables.prediction_rows(results))
    run.finish()


if __name__ == "__main__":
    settings.run(main, globals())
