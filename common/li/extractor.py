"""The feature extractor of Li et al., Section 2.1, Figure 2: layer calibration, projection, dialogue context.

B samples, N utterances of a context window (1 for audio), T audio frames or tokens of the target, S those of
the whole window, utterance after utterance, the target first; L layers of a pretrained model and D its width,
d width after the projector. Where a step belongs comes with the batch, so that no GPU waits for it: `place`
(B, S) is the number of its utterance in the window, N for padding. Every mean and convolution leaves padding
out, so that a result does not depend on the batch.
"""

import torch
from torch import nn
from torch.nn import functional as F

from common.encoders import count_tokens

# Sec. 2.4: the parts that are fine-tuned, by their names in the pretrained models; the last two are Whisper's
BOTTOM = {"audio": ("feature_extractor", "encoder.conv1", "encoder.conv2"), "text": ("embeddings",)}


def average(x, visible):
    """Mean over the visible steps: x (..., T, w), visible (..., T) -> (..., w), zero where none is."""
    weight = visible[..., None].to(x.dtype)
    return (x * weight).sum(-2) / weight.sum(-2).clamp(min=1)


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

    merge        "mean" of the calibrated layers, or "concatenate"
    hidden       units of the MLP's first layer, 0 = a single layer
    standardise  whether states are taken less `mean` and over `sd` (L, D), which are to be filled in
    """

    def __init__(self, n_layers, n_inputs, width, reduction, merge, hidden, standardise=False):
        super().__init__()
        self.merge, self.gate = merge, SqueezeExcite(n_layers, reduction)
        for name in ("mean", "sd"):
            self.register_buffer(name, torch.ones(n_layers, n_inputs) if standardise else None)
        n_inputs *= n_layers if merge == "concatenate" else 1
        first = [nn.Linear(n_inputs, hidden), nn.ReLU()] if hidden else []
        self.mlp = nn.Sequential(*first, nn.Linear(hidden or n_inputs, width), nn.LayerNorm(width))

    def forward(self, states, shown):
        """states (B, S, L, D), shown (B, N, S): the steps of each utterance -> (B, S, d)."""
        states = states if self.mean is None else (states - self.mean) / self.sd
        gate = self.gate(average(states.mean(-1, dtype=torch.float32)[:, None], shown))  # (B, N, L)
        gate = shown.transpose(1, 2).to(gate.dtype) @ gate  # (B, S, L), that of each step's utterance
        if self.merge == "concatenate":
            x = (states * gate[..., None]).flatten(2)  # (B, S, L * D)
        else:
            x = torch.einsum("bsld,bsl->bsd", states.to(gate.dtype), gate) / gate.shape[2]
        return self.mlp(x)


class ContextConvolution(nn.Module):
    """Adds to a text what the utterances around it say, by a convolution of kernel 3 and stride 1.

    It slides over the N utterances in the order of the dialogue, each the mean of its tokens; its outputs are
    added up by a trained weight for each place, since in a mean of them order and distance would not matter.
    """

    def __init__(self, n_window, width):
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size=3, stride=1, padding=1)
        nn.init.zeros_(self.convolution.weight)  # training starts from the target alone
        nn.init.zeros_(self.convolution.bias)
        self.place = nn.Parameter(torch.full((n_window,), 1 / n_window))

    def forward(self, x, shown, n_target):
        """x (B, S, d), shown (B, N, S) -> the target's tokens, which come first, in context (B, T, d)."""
        utterances = average(x[:, None], shown)  # (B, N, d)
        sequence = self.convolution(utterances.transpose(1, 2))  # (B, d, N)
        context = (sequence * (self.place * shown.any(2))[:, None]).sum(2)  # (B, d)
        return x[:, :n_target] + context[:, None]


class FeatureExtractor(nn.Module):
    """One modality, from hidden states (or a pretrained model's inputs) to a sequence of width d.

    shape   (L, D) of the pretrained model
    window  (utterances before, after) that the text sees; audio has no context
    choices of the Projector: width, reduction, merge, hidden, standardise
    """

    def __init__(self, modality, shape, window, *choices):
        super().__init__()
        before, after = window if modality == "text" else (0, 0)
        self.modality, self.n_window = modality, before + 1 + after
        self.backbone = None  # the pretrained model, where its states do not come with the batch
        self.kept = None  # all states (P, L, D), where they are on the device and the batch has their rows
        self.projector = Projector(*shape, *choices)
        self.context = ContextConvolution(self.n_window, choices[0]) if modality == "text" else None

    def attach(self, backbone, parts):
        """Put the pretrained model in place; trained `parts`: "none", "bottom" (Sec. 2.4) or "all"."""
        self.backbone = backbone.requires_grad_(parts == "all")
        if parts == "bottom":
            for name, module in backbone.named_modules():
                if name in BOTTOM[self.modality]:
                    module.requires_grad_(True)
        self.train(self.training)

    def train(self, mode=True):
        """The pretrained model stays in evaluation mode: no LayerDrop, SpecAugment or dropout inside it."""
        super().train(mode)
        if self.backbone is not None:
            self.backbone.eval()
        return self

    def forward(self, batch):
        """batch: of Utterances.collate_states or .collate_inputs -> (x (B, T, d), visible (B, T))."""
        if self.backbone is None:
            states, place, visible = batch["states"], batch["place"], batch["visible"]
            states = states if self.kept is None else self.kept[states]  # (B, S, L, D)
        else:
            states, place, visible = self.run_backbone(**batch)
        numbers = torch.arange(self.n_window, device=place.device)
        shown = place[:, None] == numbers[:, None]  # (B, N, S)
        x = self.projector(states, shown)
        if self.context is not None:
            x = self.context(x, shown, visible.shape[1])
        return x, visible

    def run_backbone(self, place, **inputs):
        """States (B, S, L, D), place (B, S), visible (B, T) of inputs (B, N, ...) with the target first."""
        inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        states, shown = hidden_states(self.backbone, self.modality, inputs)  # (B * N, T, L, D), (B * N, T)
        shown, states = shown.unflatten(0, place.shape), states.unflatten(0, place.shape)
        place = torch.where(shown, place[..., None], self.n_window)  # (B, N, T)
        return states.flatten(1, 2), place.flatten(1), shown[:, 0]


def hidden_states(backbone, modality, inputs):
    """All L layers of a pretrained model, the input of the first included: (U, T, L, D), visible (U, T)."""
    given = dict(inputs)
    if modality == "text" and backbone.config._attn_implementation == "sdpa":
        # transformers would look whether any token is masked, and a GPU would wait for the answer
        given["attention_mask"] = inputs["attention_mask"][:, None, None].bool()
    states = torch.stack(backbone(**given, output_hidden_states=True).hidden_states, dim=2)
    counts = count_tokens(backbone, modality, states.shape[1], inputs)
    return states, torch.arange(states.shape[1], device=states.device) < counts[:, None]
