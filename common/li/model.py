"""The network of Li et al., "Context-aware Multimodal Fusion for Emotion Recognition", Interspeech 2022, Section 2.

Read it from the top beside the paper: layer calibration and projection (Figure 2, Sec. 2.1), context, cross-modal
attention (Eq. 1), and the nine systems of Table 1 as lists of branches (Figure 3).

B samples, U utterances of a batch, T audio frames or text tokens, L layers of a pretrained model and D its width,
N utterances of a context window, d width after the projector. `visible` is True where a step is not padding; every
mean, convolution and attention leaves the other steps out, so that a result does not depend on the batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from common.encoders import count_tokens

# Table 1: each branch is (target, source) and ends in one vector. No source: the target is averaged over time as it
# is ("FC"); source = target: a Transformer encoder ("TE"); else the cross-modal Transformer, CMT(source -> target).
BRANCHES = {
    "WavLM+FC": [("audio", None)],
    "WavLM+TE": [("audio", "audio")],
    "BERT+FC": [("text", None)],
    "BERT+TE": [("text", "text")],
    "CMT(A→T)": [("text", "audio")],
    "CMT(T→A)": [("audio", "text")],
    "EF": [("audio", None), ("text", None)],
    "LF": [("audio", "audio"), ("text", "text")],
    "MMT": [("text", "audio"), ("audio", "text")],
}
PHASES = ("frozen", "fine-tuned")  # Sec. 2.4: of the pretrained models
BOTTOM = {"audio": "feature_extractor", "text": "embeddings"}  # Sec. 2.4: the part that is fine-tuned


@dataclass
class Design:
    """The sizes and choices of a system, from the constants of 04."""

    width: int  # d after the projector, for both modalities
    reduction: int  # of squeeze-and-excitation; 0 = the number of layers
    layer_merge: str  # "mean" of the calibrated layers, or "concatenate"
    projector_hidden: int  # units of the projector's first layer; 0 = a single layer
    context_over: str  # what the context convolution slides over: "utterances" or "tokens"
    heads: int
    blocks: int  # Transformer blocks in a row
    feed_forward: int  # units of a block's feed-forward part
    norm_first: bool  # LayerNorm before attention and feed-forward part, else after them
    target_residual: bool  # whether a cross-modal block adds its target to what it attends to
    classifier_hidden: int
    dropout: float  # between every two modules
    block_dropout: float  # inside a Transformer block


def average(x, visible):
    """Mean over the visible steps: x (B, T, ...), visible (B, T) with one True at least -> (B, ...)."""
    weight = visible.view(*visible.shape, *[1] * (x.dim() - 2)).to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1)


def unpack(x, visible):
    """Spread the rows of x (P, ...) over the True places of visible (U, T), row by row: (U, T, ...), else zero."""
    places = visible.view(*visible.shape, *[1] * (x.dim() - 1))
    return x.new_zeros(*visible.shape, *x.shape[1:]).masked_scatter(places, x)


# ---- High-level feature extractor (Section 2.1, Figure 2) ----------------------------------


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al.) whose channels are the layers of a pretrained model.

    With the reduction ratio of the paper, the number of layers, the bottleneck is a single unit.
    """

    def __init__(self, n_layers, reduction):
        super().__init__()
        hidden = max(1, n_layers // (reduction or n_layers))
        self.squeeze, self.excite = nn.Linear(n_layers, hidden), nn.Linear(hidden, n_layers)
        nn.init.ones_(self.squeeze.bias)  # a single unit that starts below zero would stay dead

    def forward(self, level):
        """level (U, L): mean of each layer over steps and width -> a factor between 0 and 1 for every layer (U, L)."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(level))))


class Projector(nn.Module):
    """All hidden layers of an utterance -> d numbers per step: calibration, then an MLP with LayerNorm."""

    def __init__(self, n_layers, n_inputs, design):
        super().__init__()
        self.merge = design.layer_merge
        self.gate = SqueezeExcite(n_layers, design.reduction)
        n_inputs *= n_layers if self.merge == "concatenate" else 1
        hidden = design.projector_hidden
        layers = [nn.Linear(n_inputs, hidden), nn.ReLU()] if hidden else []
        self.mlp = nn.Sequential(
            *layers, nn.Linear(hidden or n_inputs, design.width), nn.LayerNorm(design.width)
        )

    def forward(self, states, visible):
        """states (U, T, L, D), visible (U, T) -> (U, T, d), zero where not visible."""
        packed = states[
            visible
        ].float()  # (P, L, D): the many numbers of padded steps cost nothing from here on
        gate = self.gate(average(unpack(packed.mean(-1), visible), visible))  # (U, L)
        gate = gate[visible.nonzero()[:, 0]]  # (P, L), of each step's utterance
        if self.merge == "concatenate":
            x = (packed * gate[..., None]).flatten(1)  # (P, L * D)
        else:
            x = torch.einsum("pld,pl->pd", packed, gate / gate.shape[1])
        return unpack(self.mlp(x), visible)


class ContextConvolution(nn.Module):
    """Adds to a text what the utterances around it say, by a convolution of kernel 3 and stride 1 (Sec. 2.1).

    Each of the N utterances of the window is first one embedding, the mean of its tokens.
    over "utterances"  slides over these embeddings in the order of the dialogue; their average, one context-aware
                       embedding, is added to every token of the target
    over "tokens"      slides over the target's tokens, where each neighbour has channels of its own with its embedding
    """

    def __init__(self, n_window, width, over):
        super().__init__()
        self.over = over
        self.convolution = nn.Conv1d(n_window * width if over == "tokens" else width, width, 3, padding=1)
        nn.init.zeros_(self.convolution.weight)  # training starts from the target alone
        nn.init.zeros_(self.convolution.bias)

    def forward(self, x, present, target):
        """x (B, N, S, d), zero where there is nothing; present (B, N, S); target: place of the target among the N.

        Returns the target's tokens (B, S, d) with their context, and which of them are visible (B, S).
        """
        own, visible = x[:, target], present[:, target]  # (B, S, d), (B, S)
        utterances = x.sum(2) / present.sum(2, keepdim=True).clamp(min=1)  # (B, N, d)
        if self.over == "utterances":
            sequence = self.convolution(utterances.transpose(1, 2)).transpose(1, 2)  # (B, N, d)
            context = average(sequence, present.any(2))[:, None]  # (B, 1, d)
        else:
            channels = utterances[:, :, None].repeat(1, 1, x.shape[2], 1)  # (B, N, S, d)
            channels[:, target] = own
            channels = (channels * visible[:, None, :, None]).transpose(2, 3).flatten(1, 2)  # (B, N * d, S)
            context = self.convolution(channels).transpose(1, 2)  # (B, S, d)
        return (own + context) * visible[..., None], visible


class FeatureExtractor(nn.Module):
    """One modality, from hidden states (or a pretrained model's inputs) to a sequence of width d (Figure 2).

    modality  "audio" or "text"; only text has context
    shape     (L, D) of the pretrained model
    window    (utterances before, after) that the text convolution sees
    """

    def __init__(self, modality, shape, window, design):
        super().__init__()
        self.modality, self.target = modality, window[0]
        self.backbone = None  # the pretrained model, where its states do not come with the batch
        self.projector = Projector(*shape, design)
        self.context = None
        if modality == "text":
            self.context = ContextConvolution(sum(window) + 1, design.width, design.context_over)

    def train(self, mode=True):
        """The pretrained model stays in evaluation mode: no LayerDrop, SpecAugment or dropout inside it."""
        super().train(mode)
        if self.backbone is not None:
            self.backbone.eval()
        return self

    def forward(self, steps):
        """steps: hidden_states.Steps of B samples. Returns x (B, T, d) and visible (B, T)."""
        states, visible = self.states(steps.inputs)
        x = self.projector(states, visible)  # (U, T, d)
        if self.context is None:
            return x[steps.window[:, 0]], visible[steps.window[:, 0]]
        # A place in a window that holds no utterance (-1) picks the row of zeros at the end.
        x = torch.cat([x, x.new_zeros(1, *x.shape[1:])])[steps.window]  # (B, N, T, d)
        present = torch.cat([visible, visible.new_zeros(1, visible.shape[1])])[steps.window]
        return self.context(x, present, self.target)

    def states(self, inputs):
        """All hidden layers (U, T, L, D) and visible (U, T), as they come or from the pretrained model."""
        if "states" in inputs:
            return inputs["states"], inputs["visible"]
        return hidden_states(self.backbone, self.modality, inputs)


def hidden_states(backbone, modality, inputs):
    """All L layers of a pretrained model, the input of the first one included: (U, T, L, D), visible (U, T)."""
    layers = backbone(**inputs, output_hidden_states=True).hidden_states
    states = torch.stack(layers, dim=2)
    counts = count_tokens(backbone, modality, states.shape[1], inputs)
    return states, torch.arange(states.shape[1], device=states.device) < counts[:, None]


# ---- Cross-modal fusion (Section 2.2, Figure 3) --------------------------------------------


def positions(n_steps, width, like):
    """Sinusoidal position vectors (n_steps, width) of the vanilla Transformer."""
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    angle = torch.arange(n_steps, device=like.device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width].to(like.dtype)


class Block(nn.Module):
    """A Transformer block whose queries come from the target, keys and values from the source (Eq. 1)."""

    def __init__(self, design, residual):
        super().__init__()
        d, self.heads, self.residual, self.norm_first = (
            design.width,
            design.heads,
            residual,
            design.norm_first,
        )
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.feed_forward = nn.Sequential(
            nn.Linear(d, design.feed_forward), nn.ReLU(), nn.Linear(design.feed_forward, d)
        )
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(design.block_dropout)

    def forward(self, target, source, source_visible):
        """target (B, T_t, d), source (B, T_s, d), source_visible (B, T_s) -> (B, T_t, d)."""
        own = target if self.residual else 0
        if self.norm_first:
            x = own + self.attend(self.norm_attention(target), self.norm_attention(source), source_visible)
            return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        x = self.norm_attention(own + self.attend(target, source, source_visible))
        return self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))

    def attend(self, target, source, source_visible):
        """softmax(Q_t K_s^T / sqrt(d_k)) V_s, its heads joined: (B, T_t, d)."""
        q, k, v = (self.split(part) for part in (self.query(target), self.key(source), self.value(source)))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=source_visible[:, None, None])
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2)))

    def split(self, x):
        """(B, T, d) -> (B, heads, T, d / heads)"""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Transformer(nn.Module):
    """Blocks in a row: a Transformer encoder where source and target are one, else the cross-modal Transformer."""

    def __init__(self, design, cross_modal):
        super().__init__()
        self.cross_modal = cross_modal
        residual = design.target_residual or not cross_modal
        self.blocks = nn.ModuleList(Block(design, residual) for _ in range(design.blocks))
        self.norm = nn.LayerNorm(design.width) if design.norm_first else nn.Identity()

    def forward(self, target, source, source_visible):
        """target (B, T_t, d), source (B, T_s, d), source_visible (B, T_s) -> (B, T_t, d)."""
        scale = math.sqrt(target.shape[2])  # against the positions, as in the vanilla Transformer
        x = scale * target + positions(target.shape[1], target.shape[2], target)
        source = scale * source + positions(source.shape[1], source.shape[2], source)
        for block in self.blocks:
            x = block(x, source if self.cross_modal else x, source_visible)
        return self.norm(x)


class System(nn.Module):
    """One of the nine systems of Table 1.

    name        key of BRANCHES
    shapes      {modality: (L, D)} of the pretrained models
    window      (utterances before, after) for text
    """

    def __init__(self, name, shapes, window, design, n_classes):
        super().__init__()
        self.branches = BRANCHES[name]
        self.extractors = nn.ModuleDict(
            {m: FeatureExtractor(m, shapes[m], window, design) for m in modalities_of(name)}
        )
        self.transformers = nn.ModuleList(
            nn.Identity() if source is None else Transformer(design, source != target)
            for target, source in self.branches
        )
        self.dropout = nn.Dropout(design.dropout)
        self.classifier = nn.Sequential(
            nn.Linear(design.width * len(self.branches), design.classifier_hidden),
            nn.ReLU(),
            nn.Linear(design.classifier_hidden, n_classes),
        )  # Sec. 2.3

    def forward(self, batch):
        """batch: {modality: Steps, ...} -> logits (B, C)."""
        streams = {}
        for modality, extractor in self.extractors.items():
            x, visible = extractor(batch[modality])
            streams[modality] = self.dropout(x), visible
        pooled = []
        for (target, source), transformer in zip(self.branches, self.transformers):
            x, visible = streams[target]
            if source is not None:
                x = transformer(x, *streams[source])
            pooled.append(average(x, visible))  # (B, d)
        return self.classifier(self.dropout(torch.cat(pooled, 1)))

    def attach(self, backbones, parts):
        """Put pretrained models in place, of which `parts` are trained: "none", "bottom" (Sec. 2.4) or "all"."""
        for modality, extractor in self.extractors.items():
            backbone = backbones.get(modality)
            extractor.backbone = backbone
            if backbone is not None:
                backbone.requires_grad_(parts == "all")
                if parts == "bottom":
                    getattr(backbone, BOTTOM[modality]).requires_grad_(True)
        return self.train(self.training)


def modalities_of(name):
    """The modalities that a system of Table 1 reads, audio first."""
    return tuple(m for m in ("audio", "text") if any(m in branch for branch in BRANCHES[name]))


def build_system(name, shapes, window, design, n_classes, seed):
    """A System whose first weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return System(name, shapes, window, design, n_classes)
