"""Pretrained transformers as encoders: one vector of D numbers per turn, the same in every batch.

Said once here, for whoever loads a pretrained model: where it comes from, how its tokens become one vector,
and that padding never changes a result. common/inputs.py makes the inputs.

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
from common.files import file_hash, hash_of, read_json, write_json
from common.training import best_weights

disable_progress_bar()  # a bar per loaded checkpoint would drown the training lines
# transformers gives WavLM's attention a bool mask and a float bias; torch joins them rightly and complains
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")

PROCESSORS = {"text": AutoTokenizer, "audio": AutoFeatureExtractor, "video": AutoImageProcessor}
WEIGHTS = (".safetensors", ".bin")  # endings of files of weights
RATE_HZ = 16000  # of every checkpoint used here
SHORTEST_S = 0.4  # of a waveform: SpecAugment's spans of 10 frames must fit in
SPECTROGRAM = "audio-spectrogram-transformer"  # the audio architecture that takes spectrograms of one length


# ---- Load ----------------------------------------------------------------------------------


def locate(name, checkpoints, data_root, corpus):
    """Where a model is loaded from: its hub name, or the folder of its short name.

    checkpoints  "hub", "local" (the folders that 01 wrote for the corpus), or a folder of such folders
    """
    if checkpoints == "hub":
        return name
    root = Path(data_root) / "checkpoints" / corpus if checkpoints == "local" else Path(checkpoints)
    folder = root / short_name(name)
    if not (folder / "config.json").exists():
        remedy = "write one with 01_prepare_data.py --WRITE_CHECKPOINTS=tiny or small, or set CHECKPOINTS=hub"
        raise UserError(f"{folder}: no checkpoint there; {remedy}")
    return str(folder)


def short_name(name):
    """ "wav2vec2-base" for "facebook/wav2vec2-base" or a folder of that name."""
    return Path(name).name


def load_pretrained(auto_class, source):
    """auto_class.from_pretrained(source), or a UserError in one line."""
    try:
        return auto_class.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = f"cannot be loaded with {auto_class.__name__} ({str(error).strip().splitlines()[0]})"
        remedy = "check the name and the network, or name a local folder written by save_pretrained"
        raise UserError(f"{source}: {reason}; {remedy}") from error


def weights_fingerprint(source):
    """What identifies the weights at `source`: their hash if they lie in a folder, else the hub's name."""
    if not Path(source).is_dir():
        return str(source)
    return hash_of([file_hash(path) for path in sorted(Path(source).glob("*")) if path.suffix in WEIGHTS])


def load_processor(source, modality):
    """The tokenizer, feature extractor or image processor that belongs to a checkpoint."""
    return load_pretrained(PROCESSORS[modality], source)


def load_backbone(source):
    """The pretrained model at `source`, a hub name or a folder, with outputs that padding does not change."""
    return ignore_padding(load_pretrained(AutoModel, source))


@dataclass
class InputShape:
    """What a checkpoint expects of its input; read once from its configuration."""

    kind: str  # "tokens", "waveform", "spectrogram" or "frames"
    frames: int = 0  # video frames per clip, or spectrogram frames
    size: int = 0  # side of a video frame in pixels
    max_tokens: int = 0


def input_shape(source, modality):
    """The InputShape of the checkpoint at `source`."""
    config = load_pretrained(AutoConfig, source)
    if modality == "text":
        return InputShape("tokens", max_tokens=min(512, config.max_position_embeddings))
    if modality == "video":
        return InputShape("frames", frames=config.num_frames, size=config.image_size)
    if config.model_type == SPECTROGRAM:
        return InputShape("spectrogram", frames=config.max_length)
    return InputShape("waveform")


# ---- One vector per turn -------------------------------------------------------------------


class TurnEncoder(nn.Module):
    """A pretrained transformer, pooled to one vector of `width` numbers per turn.

    backbone  of load_backbone
    modality  "text", "audio" or "video"
    """

    def __init__(self, backbone, modality):
        super().__init__()
        self.backbone, self.modality, self.width = backbone, modality, backbone.config.hidden_size

    def forward(self, inputs):
        """inputs: keyword arguments of the backbone, made by common/inputs.py. Returns (B, D)."""
        return self.pool(self.backbone(**inputs), inputs)

    def pool(self, output, inputs):
        """The CLS token where the architecture has one, else the mean over tokens that are not padding."""
        tokens = output.last_hidden_state  # (B, S, D)
        if self.modality == "text":
            return tokens[:, 0]
        if self.backbone.config.model_type == SPECTROGRAM:
            return output.pooler_output  # mean of AST's CLS and distillation tokens
        counts = count_tokens(self.backbone, self.modality, tokens.shape[1], inputs)[:, None]  # (B, 1)
        visible = torch.arange(tokens.shape[1], device=tokens.device) < counts  # (B, S)
        return (tokens * visible[..., None]).sum(1) / counts.to(tokens.dtype)


def save_finetuned(folder, source, processor, description):
    """Put what load_finetuned needs beside the weights of a model that began as the checkpoint at `source`.

    description  JSON-ready dict with at least modality and classes
    """
    load_pretrained(AutoConfig, source).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(Path(folder) / "encoder.json", description)


def load_finetuned(folder):
    """What 02 left in a folder, in evaluation mode: (TurnEncoder, classification layer, description)."""
    description = read_json(Path(folder) / "encoder.json")
    backbone = ignore_padding(AutoModel.from_config(load_pretrained(AutoConfig, str(folder))))
    encoder = TurnEncoder(backbone, description["modality"])
    linear = nn.Linear(encoder.width, len(description["classes"]))
    nn.ModuleDict({"encoder": encoder, "linear": linear}).load_state_dict(load_file(best_weights(folder)))
    return encoder.eval(), linear.eval(), description


# ---- Padding -------------------------------------------------------------------------------


def collate_waveforms(processor, waveforms):
    """Waveforms (T,) zero-padded at the end to the longest: input_values (B, T) and attention_mask (B, T).

    Each is normalised to zero mean and unit variance where the checkpoint asks for it; those shorter than
    SHORTEST_S last that long, with silence.
    """
    shortest = int(SHORTEST_S * RATE_HZ)
    longest = max(shortest, max(len(waveform) for waveform in waveforms))
    options = dict(padding="max_length", max_length=longest, return_attention_mask=True, return_tensors="pt")
    batch = dict(processor(list(waveforms), sampling_rate=RATE_HZ, **options))
    batch["attention_mask"][:, :shortest] = 1
    return batch


def count_tokens(backbone, modality, n_tokens, inputs):
    """How many of the n_tokens that a model gives per turn are not padding, which is at the end: (B,) int64.

    inputs  the keyword arguments of the model, from common/inputs.py
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

    For text the attention mask is enough; spectrograms and clips have one length. But base models for
    waveforms (wav2vec 2.0, HuBERT, WavLM) begin with a GroupNorm of one group per channel, which takes mean
    and variance over time, padding included. Here only frames without padding count.
    """
    if getattr(backbone.config, "feat_extract_norm", "") != "group":
        return backbone
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
    return backbone
