"""What Chochlakis et al., "Tackling missing modalities in audio-visual representation learning using masked
autoencoders", 2024, do with the features of clips: hide them, impute them, classify them.

Read it from the top beside the paper: which clips are lost (Sec. 4.2, 4.3), the curriculum and the masked autoencoder
after CAV-MAE [9] (Sec. 3.3), the classifiers (Sec. 3.4), the baselines (Sec. 3.5) and the rule by which two results are
compared (Sec. 4.3). What the paper leaves open, such as the projections of a clip's features, is marked as our choice.

B recordings, N clips of each, D features of a clip and modality, M masks per recording, V visible clips, w width of a
token inside the model, C classes. `hidden` (B, 2, N) is True where a clip is lost; modality 0 is audio, 1 is video.
A hidden clip's features are never read: they may be anything, NaN too.
"""

import pickle
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.sadok import vqmae as sadok_vqmae
from common.sadok.vqmae import TOKEN_STD, initialise, sinusoidal, take, vectors

MODALITIES = ("audio", "video")  # their order in `hidden` and in every pair of lists below
STD_FLOOR = 1e-6  # a feature that varies less is not divided by its deviation
CONV_GROUPS, CONV_ROWS = 16, 128  # see Linear


# ---- Which clips are lost (Sections 4.2 and 4.3) -------------------------------------------


def draw_masks(n_samples, n_clips, n_hidden_audio, n_hidden_video, n_masks, generator):
    """Lose clips at random, for every recording, mask and modality on its own.

    n_samples, n_clips   B, N
    n_hidden_audio, n_hidden_video   clips to hide, 0 to N: whole numbers, or integer tensors that broadcast to (M, B).
                         Counts and not rates, for int(10 * (1 - 0.9)) is 0
    n_masks              M
    generator            torch.Generator, the only randomness used
    Returns hidden (M, B, 2, N) bool, with exactly as many True as asked for.
    Raises UserError for a count that is no whole number or not within 0 and N.
    """
    counts = [
        whole_counts(count, n_clips).expand(n_masks, n_samples) for count in (n_hidden_audio, n_hidden_video)
    ]
    noise = torch.rand(n_masks, n_samples, 2, n_clips, generator=generator)
    rank = noise.argsort(3).argsort(3)
    return rank < torch.stack(counts, 2)[..., None]  # (M, B, 2, N)


def draw_mixture(n_samples, n_clips, levels, n_masks, generator):
    """`draw_masks` with a count drawn from `levels` for every recording and mask, the same in both modalities.

    "For each sample, we randomly sample the level of dropout (which is equal for both modalities) [...] and then sample
    a dropout mask" (Sec. 4.2): how heads are fine-tuned, and the mixtures of Figure 4.
    levels  counts of hidden clips, for example (4, 7)
    """
    levels = torch.as_tensor(levels)
    counts = levels[torch.randint(len(levels), (n_masks, n_samples), generator=generator)]
    return draw_masks(n_samples, n_clips, counts, counts, n_masks, generator)


def draw_bursts(n_samples, n_clips, n_hidden, n_masks, together, generator):
    """Lose clips as a network does: one run of `n_hidden` neighbours in each modality, at a random place.

    together  whether both modalities lose the same clips; else their places are independent
    Every place where the run fits is equally likely, so that the first and the last clip are lost least often.
    Returns hidden (M, B, 2, N) bool. Not in the paper.
    """
    n_hidden = int(whole_counts(n_hidden, n_clips))
    first = torch.randint(
        n_clips - n_hidden + 1, (n_masks, n_samples, 1 if together else 2, 1), generator=generator
    )
    place = torch.arange(n_clips) - first
    return ((place >= 0) & (place < n_hidden)).expand(-1, -1, 2, -1)  # (M, B, 2, N)


def whole_counts(count, n_clips):
    """A number of hidden clips, or a tensor of them, as a checked integer tensor."""
    count = torch.as_tensor(count)
    if count.is_floating_point() or count.min() < 0 or count.max() > n_clips:
        raise UserError(
            f"{count.tolist()} hidden clips: choose whole numbers from 0 to {n_clips}, the clips there are"
        )
    return count


def n_hidden_at(epoch, step, n_clips):
    """The curriculum: "from one masked chunk to all but one" (Sec. 3.3), one more every `step` epochs (Sec. 4.2).

    epoch  from 0
    Returns the number of clips to hide in each modality.
    """
    if n_clips < 2:
        raise UserError(
            f"{n_clips} clip per recording: none can be hidden and one be left; cut into two or more"
        )
    return min(1 + epoch // step, n_clips - 1)


# ---- The masked autoencoder (Section 3.3) --------------------------------------------------


@dataclass
class Sizes:
    """The sizes of the masked autoencoder, from the constants of 06; those of CAV-MAE in brackets."""

    width: int  # w (768)
    depth: int  # blocks of either modality alone (11)
    joint_depth: int  # blocks of both together (1)
    heads: int  # (12)
    decoder_width: int  # (512)
    decoder_depth: int  # (8)
    decoder_heads: int  # (16)
    mlp_ratio: int  # hidden units of a block's MLP, as a multiple of the width (4)


class Linear(sadok_vqmae.Linear):
    """nn.Linear on a batch of very short sequences, by the faster library on a CPU where that pays.

    With one thread, torch hands a convolution to oneDNN from 16 images on only, and three visible clips are too small
    an image. All rows are the same to a linear layer, so they are dealt into 16 sequences as long as can be: 1.4 to 1.9
    times MKL's rate from 128 rows on. With fewer rows MKL is faster, above all with one recording.
    """

    def forward(self, x):
        """x (B, S, n) -> (B, S, m)."""
        rows = x.shape[0] * x.shape[1]
        if x.device.type != "cpu" or rows < CONV_ROWS or rows % CONV_GROUPS:
            return nn.Linear.forward(self, x)
        return super().forward(x.reshape(CONV_GROUPS, -1, x.shape[2])).reshape(*x.shape[:2], -1)


def attention(q, k, v, is_key):
    """Fused softmax(Q K^T / sqrt(d)) V of q, k, v (B, heads, S, d); is_key (B, 1, 1, S) is True where to look."""
    return F.scaled_dot_product_attention(q, k, v, is_key)


class Block(nn.Module):
    """A Transformer block of CAV-MAE: LayerNorm before attention and MLP, GELU, no dropout, biases on Q, K and V."""

    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        if width % heads:
            raise UserError(
                f"model width {width}: {heads} attention heads do not divide it; change one of them"
            )
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.mlp = nn.Sequential(
            Linear(width, mlp_ratio * width), nn.GELU(), Linear(mlp_ratio * width, width)
        )

    def forward(self, x, is_key):
        """x (B, S, w), is_key (B, 1, 1, S) or None for all -> (B, S, w)."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(
            2, (3, self.heads, -1)
        )  # (B, S, 3, heads, w / heads)
        attended = attention(*qkv.transpose(1, 3).unbind(2), is_key)  # (B, heads, S, w / heads)
        x = x + self.out(attended.transpose(1, 2).flatten(2))  # (B, S, w)
        return x + self.mlp(self.norm_mlp(x))


def visible_first(hidden, device):
    """For each modality, where its visible clips are, as many as the recording with most of them has.

    hidden  (B, 2, N) bool, on any device; on a CPU the count costs a GPU no waiting
    device  where the indices are needed
    Returns a pair of at (B, V), indices of clips: the visible ones in their order, then hidden ones where a recording
    has fewer than V, which is at least 1; and whether there are such recordings.
    """
    n_visible = (~hidden).sum(2)  # (B, 2)
    most = n_visible.amax(0).clamp(min=1)
    ragged, *most = torch.cat([(n_visible != most).any()[None], most]).tolist()
    order = hidden.to(device, torch.uint8, non_blocking=True).argsort(dim=2, stable=True)
    return [order[:, m, :n] for m, n in enumerate(most)], bool(ragged)


def keys_of(is_visible):
    """is_visible (B, S) as a mask of attention (B, 1, 1, S); all True in a row that has none, whose result is not read.

    With no key at all it would be NaN, and that would spread through the gradient.
    """
    return (is_visible | ~is_visible.any(1, keepdim=True))[:, None, None]


def through(blocks, x, is_key):
    for block in blocks:
        x = block(x, is_key)
    return x


class AVMAE(nn.Module):
    """Predicts the features of hidden clips from the visible ones of both modalities, after CAV-MAE [9].

    Each modality's visible clips go through blocks of their own, then both through the joint ones; a light decoder
    gets these, and one mask token for every hidden clip. Positions are fixed sinusoids of the clip's index, the same
    for both modalities; a trained vector tells the modalities apart. There is no contrastive loss (Sec. 4.2).
    Our choice: one linear layer per modality in place of CAV-MAE's patch embedding, and one in place of its prediction
    of patches; both see features less their mean and over their standard deviation, so that no dimension outweighs
    another in the loss. `impute` returns them on their own scale.

    n_features  D
    sizes       Sizes
    """

    def __init__(self, n_features, sizes):
        super().__init__()

        def blocks(depth):
            return nn.ModuleList(Block(sizes.width, sizes.heads, sizes.mlp_ratio) for _ in range(depth))

        self.width = sizes.width
        self.embed = nn.ModuleList(Linear(n_features, sizes.width) for _ in MODALITIES)
        self.modality = nn.ParameterList(vectors(TOKEN_STD, 1, 1, sizes.width) for _ in MODALITIES)
        self.blocks = nn.ModuleList(blocks(sizes.depth) for _ in MODALITIES)
        self.joint_blocks, self.norm = blocks(sizes.joint_depth), nn.LayerNorm(sizes.width)
        self.decoder_embed = Linear(sizes.width, sizes.decoder_width)
        self.mask = vectors(TOKEN_STD, 1, 1, sizes.decoder_width)
        self.decoder_modality = nn.ParameterList(
            vectors(TOKEN_STD, 1, 1, sizes.decoder_width) for _ in MODALITIES
        )
        self.decoder_blocks = nn.ModuleList(
            Block(sizes.decoder_width, sizes.decoder_heads, sizes.mlp_ratio)
            for _ in range(sizes.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(sizes.decoder_width)
        self.outputs = nn.ModuleList(Linear(sizes.decoder_width, n_features) for _ in MODALITIES)
        self.register_buffer("mean", torch.zeros(2, n_features))
        self.register_buffer("std", torch.ones(2, n_features))
        self.apply(initialise)

    # ---- Scale of the features

    @torch.no_grad()
    def standardise(self, audio, video, missing=None):
        """Set mean and deviation of every feature from the clips of the training recordings.

        audio, video  (B, N, D)
        missing       (B, 2, N) bool, clips that do not count because they are not there; None = all are there
        A modality without a single clip keeps its features as they are.
        """
        for m, features in enumerate((audio, video)):
            seen = features.flatten(0, 1) if missing is None else features[~missing[:, m]]
            if len(seen):
                std, mean = torch.std_mean(seen.float(), 0, correction=0)
                self.mean[m] = mean
                self.std[m] = torch.where(std > STD_FLOOR, std, 1.0)

    def scale(self, audio, video):
        """audio, video (B, N, D) -> standardised (B, 2, N, D)."""
        return (torch.stack([audio, video], 1) - self.mean[:, None]) / self.std[:, None]

    # ---- Encoder and decoder

    def encode(self, x, hidden, at, ragged):
        """The visible clips of standardised x (B, 2, N, D), whose hidden ones are of no account but must not be NaN.

        at, ragged  from `visible_first`
        Returns encoded (B, V_a + V_v, w), and which of the 2 N clips, audio first, each of them is (B, V_a + V_v). What
        fills up the recordings with fewer visible clips is among them; no visible clip has attended to it.
        """
        n_clips = x.shape[2]
        positions = sinusoidal(n_clips, self.width, x.device)
        is_visible = [~hidden[:, m].gather(1, at[m]) for m in range(2)]
        encoded = []
        for m, blocks in enumerate(self.blocks):
            tokens = self.embed[m](take(x[:, m], at[m])) + positions[at[m]] + self.modality[m]  # (B, V, w)
            encoded.append(through(blocks, tokens, keys_of(is_visible[m]) if ragged else None))
        is_key = keys_of(torch.cat(is_visible, 1)) if ragged else None
        tokens = through(self.joint_blocks, torch.cat(encoded, 1), is_key)  # (B, V_a + V_v, w)
        return self.norm(tokens), torch.cat([at[0], n_clips + at[1]], 1)

    def decode(self, encoded, at, hidden):
        """The standardised features of all clips (B, 2, N, D), of which only those of hidden clips are trained."""
        n_clips = hidden.shape[2]
        tokens = self.decoder_embed(encoded)  # (B, V_a + V_v, w')
        tokens = tokens.new_zeros(len(at), 2 * n_clips, tokens.shape[2]).scatter(
            1, at[..., None].expand_as(tokens), tokens
        )  # (B, 2 N, w'), in order again
        tokens = torch.where(hidden.flatten(1)[..., None], self.mask, tokens)
        places = sinusoidal(n_clips, tokens.shape[2], tokens.device) + torch.cat(list(self.decoder_modality))
        tokens = through(self.decoder_blocks, tokens + places.flatten(0, 1), None)
        audio, video = self.decoder_norm(tokens).unflatten(1, (2, -1)).unbind(1)  # (B, N, w') each
        return torch.stack([self.outputs[0](audio), self.outputs[1](video)], 1)

    def predict(self, x, hidden):
        """Standardised features of all clips, from the visible ones of x (B, 2, N, D) -> (B, 2, N, D)."""
        at, ragged = visible_first(hidden, x.device)
        hidden = hidden.to(x.device, non_blocking=True)
        return self.decode(*self.encode(x.masked_fill(hidden[..., None], 0.0), hidden, at, ragged), hidden)

    def forward(self, audio, video, hidden, missing=None):
        """The loss of one batch: what was hidden against what was predicted.

        audio, video  (B, N, D)
        hidden        (B, 2, N) bool, from `draw_masks`
        missing       (B, 2, N) bool, clips that were never there: hidden as well, but not to be learned; None = none
        Returns {"loss": mean squared error of the standardised features of hidden clips, the mean of either modality,
        summed over both}. A modality with no clip to predict adds 0.
        """
        asked = hidden if missing is None else hidden & ~missing
        x = self.scale(audio, video)
        predicted = self.predict(x, hidden if missing is None else hidden | missing).float()
        asked = asked.to(x.device, non_blocking=True)
        # What is not asked for is taken out before it is squared: a NaN there would come back through the gradient.
        error = (predicted - x).masked_fill(~asked[..., None], 0.0).square().mean(3)  # (B, 2, N)
        return {"loss": (error.sum((0, 2)) / asked.sum((0, 2)).clamp(min=1)).sum()}

    # ---- Imputation

    @torch.no_grad()
    def impute(self, audio, video, hidden, batch_size=None):
        """Replace hidden clips, and only those, by predicted ones (Sec. 3.1: "we reconstruct only missing inputs").

        audio, video  (B, N, D), where they lie: a batch at a time goes to the model's device
        hidden        (B, 2, N) or, for several masks per recording, (M, B, 2, N) bool
        batch_size    recordings at a time; None = all of them
        Returns audio and video as they came, (B, N, D) or (M, B, N, D), visible clips to the last bit.
        """
        hidden = hidden.to(audio.device)
        every = hidden.reshape(-1, *hidden.shape[-2:])  # (M * B, 2, N)
        filled = [spread(x, hidden).clone(memory_format=torch.contiguous_format) for x in (audio, video)]
        flat = [x.view(-1, *x.shape[-2:]) for x in filled]  # (M * B, N, D), the same memory
        rows = by_visible_clips(every)
        batch_size = batch_size or max(1, len(rows))
        for start in range(0, len(rows), batch_size):
            at = rows[start : start + batch_size]
            x = self.scale(*(features[at].to(self.mean.device) for features in flat))
            predicted = self.predict(x, every[at]) * self.std[:, None] + self.mean[:, None]  # (B, 2, N, D)
            for m, features in enumerate(flat):
                features[at] = torch.where(every[at, m, :, None], predicted[:, m].to(features), features[at])
        return tuple(filled)


def spread(features, hidden):
    """features (B, N, D) as often as there are masks: (B, N, D) or (M, B, N, D), without a copy."""
    return features.expand(*hidden.shape[:-2], *features.shape[-2:])


def by_visible_clips(hidden):
    """The rows of hidden (B, 2, N) that hide anything, those with as many visible clips beside each other.

    Batches of one length need no filling up; with counts from `draw_mixture` most of them are.
    """
    rows = hidden.flatten(1).any(1).nonzero()[:, 0]
    n_visible = (~hidden[rows]).sum(2)  # (B, 2)
    return rows[(n_visible[:, 0] * (hidden.shape[2] + 1) + n_visible[:, 1]).argsort(stable=True)]


# ---- The weights of CAV-MAE (Section 3.3) --------------------------------------------------

RENAMED = (
    ("blocks_a.", "blocks.0."),
    ("blocks_v.", "blocks.1."),
    ("blocks_u.", "joint_blocks."),
    (".norm1.", ".norm_attention."),
    (".norm2.", ".norm_mlp."),
    (".attn.qkv.", ".qkv."),
    (".attn.proj.", ".out."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.2."),
    ("mask_token", "mask"),
    ("modality_a", "modality.0"),
    ("modality_v", "modality.1"),
)
NOT_FOR_CLIPS = (
    ("patch_embed_", "reading of patches"),
    ("(decoder_)?pos_embed_", "positions of patches"),
    ("decoder_pred_", "prediction of patches"),
    (r"(.*\.)?norm\d?_[av]\.", "contrastive loss"),
)


@dataclass
class Loaded:
    """What `load_cavmae` did."""

    loaded: list  # names in the file
    skipped: dict  # name in the file -> why it was not used
    missing: list  # names in the model that keep the weights they had; mean and std are none

    def __str__(self):
        reasons = ", ".join(f"{reason} ({count})" for reason, count in Counter(self.skipped.values()).items())
        return (
            f"{len(self.loaded)} of {len(self.loaded) + len(self.skipped)} tensors of CAV-MAE loaded; skipped: "
            f"{reasons or 'none'}; left as they were: {', '.join(self.missing) or 'none'}"
        )


def load_cavmae(model, path):
    """Start an AVMAE from a checkpoint of CAV-MAE [9]: "results in better downstream performance" (Sec. 3.3).

    model  AVMAE, changed in place; where it has fewer blocks than the file, it takes the first ones
    path   a state dict as the authors saved it, 647 tensors, of which a model of their sizes takes 383: what belongs to
           patches or to the contrastive loss has no place in it
    Returns Loaded. Raises UserError if the file is none of CAV-MAE or if nothing in it fits.
    """
    weights, own, skipped, names = read_cavmae(path), model.state_dict(), {}, {}
    for name, tensor in weights.items():
        ours = own_name(name)
        reason = next(
            (reason for pattern, reason in NOT_FOR_CLIPS if re.match(pattern, name.removeprefix("module."))),
            "not in the model"
            if ours not in own
            else "of another size"
            if own[ours].shape != tensor.shape
            else "",
        )
        if reason:
            skipped[name] = reason
        else:
            names[name] = ours
    if not names:
        raise UserError(
            f"{path}: no tensor of it has the model's sizes; set those of CAV-MAE, width 768 and 512"
        )
    model.load_state_dict({ours: weights[name] for name, ours in names.items()}, strict=False)
    return Loaded(list(names), skipped, sorted(set(own) - set(names.values()) - {"mean", "std"}))


def own_name(name):
    """The name in AVMAE of a tensor in CAV-MAE's checkpoint."""
    name = name.removeprefix("module.")
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name


def read_cavmae(path):
    """The tensors of a checkpoint of CAV-MAE, by name. Raises UserError if there is none or it is of another kind."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the checkpoint of CAV-MAE, or none")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a checkpoint of weights ({first}); download it again") from error
    tensors = isinstance(weights, dict) and all(
        isinstance(tensor, torch.Tensor) for tensor in weights.values()
    )
    needed = {f"blocks.0.0.qkv.{part}" for part in ("weight", "bias")} | {"joint_blocks.0.qkv.weight", "mask"}
    if not tensors or not needed <= {own_name(name) for name in weights}:
        raise UserError(
            f"{path}: not a checkpoint of CAV-MAE, whose blocks_a, blocks_u and mask_token it lacks; "
            "give audio_model.21.pth or a relative of it"
        )
    return weights


# ---- Classifiers (Section 3.4) -------------------------------------------------------------
#
# Both take features (..., N, n): audio and video side by side, torch.cat([audio, video], -1), n = 2 D, or one modality
# alone, n = D. In front of N there may be recordings, or masks and recordings.


class LinearHead(nn.Module):
    """A linear classifier of clips, after batch normalisation; a recording is the mean of its clips.

    n_features  n
    n_classes   C
    """

    def __init__(self, n_features, n_classes):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(n_features), nn.Linear(n_features, n_classes)

    def forward(self, x):
        """x (..., N, n) -> logits of every clip (..., N, C)."""
        return self.linear(self.norm(x.flatten(0, -2))).unflatten(0, x.shape[:-1])

    def loss(self, x, labels):
        """Cross-entropy of each clip on its own, x (B, N, n) and labels (B,) int64 -> mean over all clips."""
        logits = self(x)
        return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))

    def clip_probabilities(self, x):
        """x (..., N, n) -> (..., N, C)."""
        return self(x).float().softmax(-1)

    def predict(self, x):
        """x (..., N, n) -> probabilities of the classes (..., C)."""
        return self.clip_probabilities(x).mean(-2)


class GRUHead(nn.Module):
    """A GRU [32] of one layer over the clips; its final hidden state is classified by a linear layer.

    Batch normalisation comes first, as in the linear classifier: features whose mean is far from 0 would saturate the
    gates. The paper says nothing of it.

    n_features  n
    width       of the hidden state
    n_classes   C
    """

    def __init__(self, n_features, width, n_classes):
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features)
        self.gru, self.linear = nn.GRU(n_features, width, batch_first=True), nn.Linear(width, n_classes)

    def forward(self, x):
        """x (..., N, n) -> logits (..., C)."""
        x_normal = self.norm(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        _, final = self.gru(x_normal.flatten(0, -3))  # (1, B, width)
        return self.linear(final[0]).unflatten(0, x.shape[:-2])

    def loss(self, x, labels):
        """Cross-entropy of x (B, N, n) and labels (B,) int64 -> mean over the batch."""
        return F.cross_entropy(self(x), labels)

    def predict(self, x):
        """x (..., N, n) -> probabilities of the classes (..., C)."""
        return self(x).float().softmax(-1)


# ---- Baselines (Section 3.5) ---------------------------------------------------------------


def backoff(both, audio, video, hidden, prior):
    """The linear classifier where both modalities are present, a unimodal one where only one is.

    "Clips with no modality present are discarded." The paper does not say what becomes of a recording of which no clip
    is left; it gets the prior, the shares of the classes in training.

    both, audio, video  (B, N, C) `clip_probabilities` of three LinearHeads on the real features; what they say of clips
                        that they could not see is not read, so that all masks share them
    hidden              (B, 2, N) or (M, B, 2, N) bool
    prior               (C,)
    Returns probabilities (B, C) or (M, B, C).
    """
    has_audio, has_video = (~hidden).unsqueeze(-1).unbind(-3)  # (..., N, 1)
    chosen = torch.where(has_audio & has_video, both, torch.where(has_audio, audio, video))  # (..., N, C)
    chosen = chosen.masked_fill(~(has_audio | has_video), 0.0)
    n_left = (has_audio | has_video).sum(-2)  # (..., 1)
    return torch.where(n_left > 0, chosen.sum(-2) / n_left.clamp(min=1), prior)


# The four functions below take the arguments of AVMAE.impute, and the training mean, and return what it returns.
# audio, video (B, N, D); hidden (B, 2, N) or (M, B, 2, N) bool; mean (2, D) of the training clips.


def impute_zeros(audio, video, hidden, mean):
    """The paper's constant imputation: "an all-zeros vector performs favorably" (Sec. 4.2). `mean` is not used."""
    return impute_mean(audio, video, hidden, torch.zeros_like(mean))


def impute_mean(audio, video, hidden, mean):
    """The other constant of Sec. 4.2, "an average feature vector for each modality"."""
    return tuple(
        torch.where(hidden[..., m, :, None], mean[m], spread(x, hidden)) for m, x in enumerate((audio, video))
    )


def impute_last(audio, video, hidden, mean):
    """The last clip that was seen of the modality, the next one before any was, the mean where none is."""
    return between(audio, video, hidden, mean, lambda share: torch.zeros_like(share))


def impute_linear(audio, video, hidden, mean):
    """On a straight line in time between the neighbours that were seen, the nearest one at the ends; or the mean."""
    return between(audio, video, hidden, mean, lambda share: share)


def between(audio, video, hidden, mean, weight):
    """Hidden clips from the visible ones before and after them.

    weight  weight(share) is that of the clip after, where share is how far the clip is on the way to it
    """
    filled = []
    n_clips = hidden.shape[-1]
    place = torch.arange(n_clips, device=hidden.device)
    for m, features in enumerate((audio, video)):
        lost = hidden[..., m, :]  # (..., N)
        before = place.where(~lost, -1).cummax(-1).values  # -1: none
        after = place.where(~lost, n_clips).flip(-1).cummin(-1).values.flip(-1)  # N: none
        share = weight((place - before) / (after - before).clamp(min=1))
        before, after = before.where(before >= 0, after), after.where(after < n_clips, before)
        # Where none is visible at all, both are out of range; the mean takes that place in the end.
        x = spread(features, hidden)
        first, second = (x.take_along_dim(at.clamp(0, n_clips - 1)[..., None], -2) for at in (before, after))
        line = torch.lerp(first, second, share[..., None].to(x.dtype))
        line = torch.where(lost.all(-1)[..., None, None], mean[m], line)
        filled.append(torch.where(lost[..., None], line, x))
    return tuple(filled)


# ---- The paper's rule (Section 4.3) --------------------------------------------------------


def overlap(mean_a, sd_a, mean_b, sd_b):
    """What a is to b: "we consider the performance of two models equivalent when ranges overlap", mean ± sd.

    Returns "tie", also where the ranges just touch, else "win" or "loss" of a.
    """
    if abs(mean_a - mean_b) <= sd_a + sd_b:
        return "tie"
    return "win" if mean_a > mean_b else "loss"
