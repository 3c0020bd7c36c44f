"""Pretrained transformers, and utterance encoders made of them: one vector of D numbers per turn, a linear layer on it.

"These models are fine-tuned by adding a fully connected layer and a softmax layer on top of each of them"
(Babaali & Shayaninasab, Sec. 3.2). What is said once here, for whoever loads a pretrained model: how token outputs
become one vector, and that padding never changes a result. common/inputs.py makes the inputs.

B batch, T time steps, S tokens, D feature, C classes.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from common.errors import UserError
from common.files import read_json, write_json
from common.training import best_weights

disable_progress_bar()  # a bar per loaded checkpoint would drown the training lines
# transformers gives WavLM's attention a bool mask and a float bias; torch joins them rightly and complains
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")

PROCESSORS = {"text": AutoTokenizer, "audio": AutoFeatureExtractor, "video": AutoImageProcessor}
SPECTROGRAM = (
    "audio-spectrogram-transformer"  # the audio architecture that takes a spectrogram of fixed length
)


def checkpoints_folder(checkpoints, data_root, corpus):
    """What the constant CHECKPOINTS means to `locate`: "" for "hub", else the folder of one checkpoint per model."""
    if checkpoints == "hub":
        return ""
    return Path(data_root) / "checkpoints" / corpus if checkpoints == "local" else Path(checkpoints)


def locate(name, checkpoints):
    """Where a checkpoint is loaded from.

    name         hub name such as "bert-base-uncased", or a local folder
    checkpoints  "" for the hub (or the local cache of it); else a folder with one sub-folder per model,
                 called by the last part of the hub name
    """
    if not checkpoints:
        return name
    folder = Path(checkpoints) / Path(name).name
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: no checkpoint there; write one with 01_prepare_data.py --WRITE_CHECKPOINTS=tiny "
            "or small, or set CHECKPOINTS=hub"
        )
    return str(folder)


def short_name(name):
    """ "wav2vec2-base" for "facebook/wav2vec2-base" or a folder of that name."""
    return Path(name).name


def _pretrained(auto_class, source, **options):
    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"{source}: cannot be loaded with {auto_class.__name__} ({first}); check the name, the network "
            "or name a local folder written by save_pretrained"
        ) from error


def load_processor(source, modality):
    """The tokenizer, feature extractor or image processor that belongs to a checkpoint."""
    return _pretrained(PROCESSORS[modality], source)


@dataclass
class InputShape:
    """What a checkpoint expects of its input; read once from its configuration."""

    kind: str  # "tokens", "waveform", "spectrogram" or "frames"
    frames: int = 0  # video frames per clip, or spectrogram frames
    size: int = 0  # side of a video frame in pixels
    max_tokens: int = 0


def input_shape(source, modality):
    """The InputShape of the checkpoint at `source`."""
    config = _pretrained(AutoConfig, source)
    if modality == "text":
        return InputShape("tokens", max_tokens=min(512, config.max_position_embeddings))
    if modality == "video":
        return InputShape("frames", frames=config.num_frames, size=config.image_size)
    if config.model_type == SPECTROGRAM:
        return InputShape("spectrogram", frames=config.max_length)
    return InputShape("waveform")


class EmotionEncoder(nn.Module):
    """A pretrained transformer, pooled to one vector per turn, with a linear classification layer on it.

    backbone   a transformers model, of load_backbone
    modality   "text", "audio" or "video"
    n_classes  C
    dropout    probability in front of the linear layer
    """

    def __init__(self, backbone, modality, n_classes, dropout):
        super().__init__()
        self.backbone = backbone
        self.modality = modality
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(backbone.config.hidden_size, n_classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, inputs, hidden_states=False):
        """inputs: what a collator of this module made.

        Returns representation (B, D), logits (B, C) and, if asked for, all L hidden layers (B, S, L, D).
        """
        output = self.backbone(**inputs, output_hidden_states=hidden_states)
        representation = self.pool(output, inputs)  # (B, D)
        logits = self.classifier(self.dropout(representation))  # (B, C)
        if hidden_states:
            return representation, logits, torch.stack(output.hidden_states, dim=2)
        return representation, logits

    def pool(self, output, inputs):
        """One vector per turn: the CLS token where the architecture has one, else the mean over valid tokens."""
        tokens = output.last_hidden_state  # (B, S, D)
        if self.modality == "text":
            return tokens[:, 0]
        if self.backbone.config.model_type == SPECTROGRAM:
            return output.pooler_output  # mean of AST's CLS and distillation tokens
        counts = count_tokens(self.backbone, self.modality, tokens.shape[1], inputs)[:, None]  # (B, 1)
        visible = torch.arange(tokens.shape[1], device=tokens.device) < counts  # (B, S)
        return (tokens * visible[..., None]).sum(1) / counts.to(tokens.dtype)


# ---- Padding -------------------------------------------------------------------------------


def count_tokens(backbone, modality, n_tokens, inputs):
    """How many of a model's output tokens are not padding; padding is at the end.

    backbone  a transformers model; modality: "text", "audio" or "video"
    n_tokens  S, tokens of each turn that the model gives
    inputs    its keyword arguments, of a collator of common/inputs.py
    Returns (B,) int64 on the inputs' device, each >= 1.
    """
    mask = inputs.get("attention_mask")
    if mask is None:
        values = next(iter(inputs.values()))
        return torch.full((len(values),), n_tokens, device=values.device)
    if modality == "text":
        return mask.sum(1)
    return backbone._get_feat_extract_output_lengths(mask.sum(1)).clamp(min=1)


def ignore_padding(backbone):
    """Make a transformers model give each turn the same outputs in every batch; returns the model.

    Text models do so by their attention mask alone, spectrograms and videos have one length. For waveforms
    (wav2vec 2.0, HuBERT, WavLM) the attention mask hides padded steps from the position convolution and from
    attention, but not padded samples from normalisation over time, nor a turn of no whole step from anything.
    """
    if hasattr(backbone.config, "conv_kernel"):
        show_first_step(backbone)
    if getattr(backbone.config, "feat_extract_norm", "") == "group":
        ignore_padding_in_group_norm(backbone)
    return backbone


def show_first_step(backbone):
    """Let a turn that is shorter than one step of a waveform model last for one step, with silence.

    transformers would take the last step of the batch for its end, and show it all the padding.
    """
    samples, hop = 1, 1
    for kernel, stride in zip(backbone.config.conv_kernel, backbone.config.conv_stride):
        samples, hop = samples + (kernel - 1) * hop, hop * stride

    def lengthen(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        mask[:, :samples] = 1
        return args, {**kwargs, "attention_mask": mask}

    backbone.register_forward_pre_hook(lengthen, with_kwargs=True)


def ignore_padding_in_group_norm(backbone):
    """Make the first convolution of the base models (wav2vec 2.0, HuBERT, WavLM) blind to padding.

    Its GroupNorm has one group per channel, that is, it takes mean and variance over time, padding included, so
    a turn's features would depend on the longest turn of its batch. Here only frames that see no padding count.
    """
    layer = backbone.feature_extractor.conv_layers[0]
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    n_samples = {}  # set at each forward pass of the backbone, read by its first layer

    def remember(module, args, kwargs):
        n_samples["now"] = kwargs["attention_mask"].sum(1)  # (B,)

    def masked(module, args, output):
        x = args[0].float()  # (B, channels, frames)
        n_frames = torch.div(n_samples["now"] - kernel, stride, rounding_mode="floor") + 1
        n_frames = n_frames.clamp(1, x.shape[-1])[:, None]  # (B, 1)
        valid = (torch.arange(x.shape[-1], device=x.device) < n_frames)[:, None].float()
        mean = (x * valid).sum(-1, keepdim=True) / n_frames[:, None]
        variance = ((x - mean).square() * valid).sum(-1, keepdim=True) / n_frames[:, None]
        normed = (x - mean) * torch.rsqrt(variance + module.eps)
        return (normed * module.weight[:, None] + module.bias[:, None]).to(args[0].dtype)

    backbone.register_forward_pre_hook(remember, with_kwargs=True)
    layer.layer_norm.register_forward_hook(masked)


# ---- Load and describe ---------------------------------------------------------------------


def load_backbone(source):
    """The pretrained model at `source`, a hub name or a folder, with outputs that padding does not change."""
    return ignore_padding(_pretrained(AutoModel, source))


def build_encoder(source, modality, n_classes, dropout, seed):
    """A fresh EmotionEncoder on the checkpoint at `source`; the new layer's weights depend on `seed` alone."""
    torch.manual_seed(seed)  # before loading too: a checkpoint may lack weights, such as BERT's pooler
    return EmotionEncoder(load_backbone(source), modality, n_classes, dropout)


def describe_encoder(folder, encoder, processor, description):
    """Complete a folder of `training.fit` so that load_encoder can read it: configuration, processor, description.

    description  JSON-ready dict with at least modality, classes and dropout
    """
    encoder.backbone.config.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(Path(folder) / "encoder.json", description)


def load_encoder(folder):
    """Read a fine-tuned encoder: (encoder in eval mode, processor, description)."""
    folder = Path(folder)
    if not (folder / "encoder.json").exists():
        raise UserError(f"{folder}: no fine-tuned model there; run 02_finetune_unimodal.py first")
    description = read_json(folder / "encoder.json")
    backbone = ignore_padding(AutoModel.from_config(_pretrained(AutoConfig, str(folder))))
    encoder = EmotionEncoder(
        backbone, description["modality"], len(description["classes"]), description["dropout"]
    )
    encoder.load_state_dict(load_file(best_weights(folder)))
    return encoder.eval(), load_processor(str(folder), description["modality"]), description
