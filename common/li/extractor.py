"""The feature extractor of Li et al., Section 2.1, Figure 2: layer calibration, projection, dialogue context.

B samples, N utterances of a context window (1 for audio), T audio frames or text tokens, L layers of a
pretrained model and D its width, d width after the projector. `visible` is True where a step is not padding;
every mean and convolution leaves the other steps out, so that a result does not depend on the batch.
"""

import torch
from torch import nn
from torch.nn import functional as F

from common.encoders import count_tokens

BOTTOM = {"audio": "feature_extractor", "text": "embeddings"}  # Sec. 2.4: the part that is fine-tuned


def average(x, visible):
    """Mean over the visible steps: x (..., T, w), visible (..., T) -> (..., w), zero where none is."""
    weight = visible[..., None].to(x.dtype)
    return (x * weight).sum(-2) / weight.sum(-2).clamp(min=1)


def spread(x, places):
    """Put the rows of x (P, ...) at the P True places (...): zero at the others."""
    out = x.new_zeros(*places.shape, *x.shape[1:])
    out[places] = x
    return out


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al.) whose channels are the layers of a pretrained model.

    With the reduction ratio of the paper, the number of layers (0 here), the bottleneck is a single unit.
    """

    def __init__(self, n_layers, reduction):
        super().__init__()
        hidden = max(1, n_layers // (reduction or n_layers))
        self.squeeze, self.excite = nn.Linear(n_layers, hidden), nn.Linear(hidden, n_layers)
        nn.init.ones_(self.squeeze.bias)  # a single unit that starts below zero would stay dead

    def forward(self, level):
        """level (..., L): mean of each layer over steps and width -> a factor between 0 and 1 for each."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(level))))


class Projector(nn.Module):
    """All hidden layers of an utterance -> d numbers per step: calibration, then an MLP with LayerNorm.

    merge   "mean" of the calibrated layers, or "concatenate"
    hidden  units of the MLP's first layer, 0 = a single layer
    """

    def __init__(self, n_layers, n_inputs, width, reduction, merge, hidden):
        super().__init__()
        self.merge, self.gate = merge, SqueezeExcite(n_layers, reduction)
        n_inputs *= n_layers if merge == "concatenate" else 1
        first = [nn.Linear(n_inputs, hidden), nn.ReLU()] if hidden else []
        self.mlp = nn.Sequential(*first, nn.Linear(hidden or n_inputs, width), nn.LayerNorm(width))

    def forward(self, states, visible):
        """states (..., T, L, D), visible (..., T) -> (..., T, d), zero where not visible."""
        steps = states[visible].float()  # (P, L, D): padding, which is most of a batch of texts, is left out
        gate = self.gate(average(spread(steps.mean(-1), visible), visible))  # (..., L)
        gate = gate[visible.nonzero(as_tuple=True)[:-1]]  # (P, L), of each step's utterance
        if self.merge == "concatenate":
            x = (steps * gate[..., None]).flatten(1)  # (P, L * D)
        else:
            x = torch.einsum("pld,pl->pd", steps, gate) / gate.shape[1]
        return spread(self.mlp(x), visible)


class ContextConvolution(nn.Module):
    """Adds to a text what the utterances around it say, by a convolution of kernel 3 and stride 1.

    over "utterances"  slides over the N utterances in the order of the dialogue, each the mean of its tokens;
                       the outputs are added up by a trained weight for each place, since in a mean of them
                       order and distance would not matter
    over "tokens"      slides over the target's tokens; each neighbour has channels of its own with its mean
    """

    def __init__(self, n_window, width, over):
        super().__init__()
        n_channels = n_window * width if over == "tokens" else width
        self.convolution = nn.Conv1d(n_channels, width, kernel_size=3, stride=1, padding=1)
        nn.init.zeros_(self.convolution.weight)  # training starts from the target alone
        nn.init.zeros_(self.convolution.bias)
        self.place = nn.Parameter(torch.full((n_window,), 1 / n_window)) if over == "utterances" else None

    def forward(self, x, visible, target):
        """x (B, N, T, d), zero where not visible (B, N, T); target: its place among the N.

        Returns the target's tokens (B, T, d) with their context.
        """
        own, shown, utterances = x[:, target], visible[:, target, :, None], average(x, visible)  # (B, N, d)
        if self.place is not None:
            sequence = self.convolution(utterances.transpose(1, 2))  # (B, d, N)
            context = (sequence * (self.place * visible.any(2))[:, None]).sum(2)[:, None]  # (B, 1, d)
        else:
            channels = utterances[:, :, None].repeat(1, 1, x.shape[2], 1)  # (B, N, T, d)
            channels[:, target] = own
            channels = (channels * shown[:, None]).permute(0, 1, 3, 2).flatten(1, 2)  # (B, N * d, T)
            context = self.convolution(channels).transpose(1, 2)  # (B, T, d)
        return (own + context) * shown


class FeatureExtractor(nn.Module):
    """One modality, from hidden states (or a pretrained model's inputs) to a sequence of width d.

    modality  "audio" or "text"; only text has context
    shape     (L, D) of the pretrained model
    window    (utterances before, after) that the text sees
    others    width, reduction, merge, hidden: of the Projector; over: of the ContextConvolution
    """

    def __init__(self, modality, shape, window, width, reduction, merge, hidden, over):
        super().__init__()
        self.modality, self.target = modality, window[0] if modality == "text" else 0
        self.backbone = None  # the pretrained model, where its states do not come with the batch
        self.projector = Projector(*shape, width, reduction, merge, hidden)
        self.context = ContextConvolution(sum(window) + 1, width, over) if modality == "text" else None

    def attach(self, backbone, parts):
        """Put the pretrained model in place; trained `parts`: "none", "bottom" (Sec. 2.4) or "all"."""
        self.backbone = backbone.requires_grad_(parts == "all")
        if parts == "bottom":
            getattr(backbone, BOTTOM[self.modality]).requires_grad_(True)
        self.train(self.training)

    def train(self, mode=True):
        """The pretrained model stays in evaluation mode: no LayerDrop, SpecAugment or dropout inside it."""
        super().train(mode)
        if self.backbone is not None:
            self.backbone.eval()
        return self

    def forward(self, batch):
        """batch: "states" (B, N, T, L, D), "visible" (B, N, T), or the pretrained model's inputs (B, N, S).

        Returns x (B, T, d) and visible (B, T) of the target utterance.
        """
        if self.backbone is None:
            x, visible = self.projector(batch["states"], batch["visible"]), batch["visible"]  # (B, N, T, d)
        else:
            present = batch["attention_mask"].any(-1)  # (B, N): the places of a window that hold an utterance
            inputs = {name: tensor[present] for name, tensor in batch.items()}
            states, shown = hidden_states(self.backbone, self.modality, inputs)
            x, visible = spread(self.projector(states, shown), present), spread(shown, present)
        x = x[:, 0] if self.context is None else self.context(x, visible, self.target)
        return x, visible[:, self.target]


def hidden_states(backbone, modality, inputs):
    """All L layers of a pretrained model, the input of the first included: (U, T, L, D), visible (U, T)."""
    layers = backbone(**inputs, output_hidden_states=True).hidden_states
    states = torch.stack(layers, dim=2)
    counts = count_tokens(backbone, modality, states.shape[1], inputs)
    return states, torch.arange(states.shape[1], device=states.device) < counts[:, None]
