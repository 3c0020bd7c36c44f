"""Pretrained transformers as encoders: one vector of D numbers per turn, the same in every batch.

Said once here, for whoever loads a pretrained model: where it comes from, which families can be read, how its
tokens become one vector, and that padding never changes a result. common/inputs.py makes the inputs.

Text: any encoder of transformers' Auto classes. Audio: waveforms (wav2vec 2.0, HuBERT, WavLM), spectrograms
(AST), log-mel (Whisper's encoder). Video: VideoMAE. Decoders (GPT and the like) are refused: their first
tokens do not see the last ones.

B batch, T time steps, S tokens, D feature, L layers, C classes.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto import modeling_auto
from transformers.utils import logging

from common.files import UserError, check_finite, file_hash, hash_of, read_json, write_json
from common.training import load_best

logging.disable_progress_bar()  # a bar and a report per loaded checkpoint would drown the training lines
logging.set_verbosity_error()
# transformers gives WavLM's attention a bool mask and a float bias; torch joins them rightly and complains
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")

# Classes by name: to import the one for pictures takes two seconds
PROCESSORS = {"text": "AutoTokenizer", "audio": "AutoFeatureExtractor", "video": "AutoImageProcessor"}
POOLINGS = ("paper", "cls", "mean", "attention")
WEIGHTS = (".safetensors", ".bin")  # endings of files of weights
RATE_HZ = 16000  # of every checkpoint used here
SHORTEST_S = 0.4  # of a waveform: SpecAugment's spans of 10 frames must fit in
# Families whose blocks need the states before them and a mask, no more
CONTINUED = "bert camembert distilbert electra hubert mpnet roberta wav2vec2 whisper xlm-roberta".split()


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


def load_pretrained(auto_class, source, **options):
    """auto_class.from_pretrained(source), or a UserError in one line."""
    try:
        return auto_class.from_pretrained(source, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = f"cannot be loaded with {auto_class.__name__} ({str(error).strip().splitlines()[0]})"
        remedy = "check the name and the network, or name a local folder written by save_pretrained"
        raise UserError(f"{source}: {reason}; {remedy}") from error


def weights_fingerprint(source):
    """What identifies the weights at `source`: their hash if they lie in a folder, else the hub's name."""
    if not Path(source).is_dir():
        return str(source)
    return hash_of([file_hash(path) for path in sorted(Path(source).glob("*")) if path.suffix in WEIGHTS])


def load_config(source):
    """The configuration at `source`; UserError for a decoder."""
    config = load_pretrained(AutoConfig, source)
    kind, masked = config.model_type, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decodes = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in masked
    if decodes and not config.is_encoder_decoder:
        raise UserError(f"{source}: {kind} is a decoder; name an encoder such as BERT, RoBERTa or MPNet")
    return config


def load_processor(source, modality):
    """The tokenizer, feature extractor or image processor that belongs to a checkpoint."""
    processor = load_pretrained(getattr(transformers, PROCESSORS[modality]), source)
    processor.padding_side = "right"
    return processor


def load_backbone(source):
    """The pretrained encoder at `source`, a hub name or a folder; padding does not change its outputs."""
    config = load_config(source)
    model, found = load_pretrained(AutoModel, source, output_loading_info=True)
    parts = ("pooler.", "decoder.") if config.is_encoder_decoder else ("pooler.",)  # which nobody reads
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith(parts)):
        listed = f"{len(missing)} weights are missing ({', '.join(missing[:3])}, ...)"
        raise UserError(f"{source}: {listed}; they are not those of its config.json, name another model")
    check_finite(source, model.state_dict())
    if found["unexpected_keys"]:
        say_once(f"{source}: {len(found['unexpected_keys'])} weights of other heads or parts are not read")
    return as_encoder(model)


@cache
def say_once(line):
    print(f"  {line}")


def as_encoder(model):
    """The encoder of a transformers model, with outputs that padding does not change."""
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return WhisperEncoder(model) if model.config.model_type == "whisper" else ignore_padding(model)


def is_spectrogram(config):
    """Whether a model is AST, which takes spectrograms of one length."""
    return config.model_type == "audio-spectrogram-transformer"


@dataclass
class InputShape:
    """What a checkpoint expects of its input; read once from its configuration."""

    kind: str  # "tokens", "waveform", "spectrogram" or "frames"
    frames: int = 0  # video frames per clip, or spectrogram frames
    size: int = 0  # side of a video frame in pixels
    max_tokens: int = 0


def input_shape(source, modality):
    """The InputShape of the checkpoint at `source`."""
    config = load_config(source)
    if modality == "text":
        return InputShape("tokens", max_tokens=min(512, getattr(config, "max_position_embeddings", 512)))
    if modality == "video":
        if not hasattr(config, "num_frames"):
            raise UserError(f"{source}: {config.model_type} takes no video frames; name one like VideoMAE")
        return InputShape("frames", frames=config.num_frames, size=config.image_size)
    if is_spectrogram(config):
        return InputShape("spectrogram", frames=config.max_length)
    return InputShape("waveform")


# ---- One vector per turn -------------------------------------------------------------------


class TurnEncoder(nn.Module):
    """A pretrained transformer, read at a layer and pooled to one vector of `width` numbers per turn.

    backbone   of load_backbone
    modality   "text", "audio" or "video"
    pooling    "cls": the first token (AST: the mean of its two class tokens); "mean" over tokens that are not
               padding; "attention": their mean by trained weights; "paper": CLS for text and AST, else mean
    layer      "last", a number (0 = before the first block), or "weighted": the sum of all by trained weights
    n_trained  so many of the last blocks up to the layer are trained, 0 = none; None = the whole model with
               its embeddings. What is not trained runs without dropout, so that it can be computed once:
               `frozen_states`
    """

    def __init__(self, backbone, modality, pooling="paper", layer="last", n_trained=None):
        super().__init__()
        self.backbone, self.modality, self.layer, config = backbone, modality, layer, backbone.config
        self.n_trained = n_trained
        self.width, n_blocks, is_ast = config.hidden_size, config.num_hidden_layers, is_spectrogram(config)
        self.n_class = 2 if is_ast else 1  # tokens
        if pooling == "paper":
            pooling = "cls" if modality == "text" or is_ast else "mean"
        self.pooling = pooling
        self.is_frozen = n_trained == 0
        self.is_pooled = self.is_frozen and pooling != "attention"  # states: one vector per turn and layer
        self.is_cacheable = self.is_frozen or n_trained and config.model_type in CONTINUED
        self.read = int(layer) if str(layer).isdecimal() else n_blocks
        lowest = 1 if n_trained else 0
        if not lowest <= self.read <= n_blocks or layer not in ("last", "weighted", str(self.read)):
            choices = f"choose last, weighted, or a number from {lowest} to {n_blocks}"
            raise UserError(f"{modality.upper()}_LAYER={layer}: {choices}")
        if layer != "last":
            config.layerdrop = 0.0  # a layer that is left out would be missing
        if layer == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(n_blocks + 1))
        if pooling == "attention":
            self.attention = nn.Linear(self.width, 1)
        self.first = n_blocks if self.is_frozen else 0  # block that is trained
        if n_trained:
            self.first = max(0, self.read - n_trained)
        if n_trained is not None:
            backbone.requires_grad_(False)
            blocks_of(backbone)[self.first : self.read].requires_grad_(True)
        # Frozen states are layers `lowest` to `first`; pooled ones, which serve every LAYER, are all
        is_whole = layer == "weighted" or self.is_pooled
        self.lowest = 0 if is_whole else min(self.first, self.read)
        if self.is_frozen:  # standardised by those of the training turns
            self.register_buffer("mean", torch.zeros(n_blocks + 1 - self.lowest, self.width))
            self.register_buffer("sd", torch.ones(n_blocks + 1 - self.lowest, self.width))

    def train(self, mode=True):
        """What is not trained stays in evaluation mode: no LayerDrop, SpecAugment or dropout inside it."""
        super().train(mode)
        if self.n_trained is not None:
            self.backbone.eval()
            blocks_of(self.backbone)[self.first : self.read].train(mode)
        return self

    def forward(self, inputs):
        """inputs: keyword arguments of the backbone, or frozen "states" and "visible". Returns (B, D)."""
        if not self.is_frozen and "states" not in inputs:
            layers, visible = self.hidden(inputs)
            return self.pool(self.mix(layers), visible)
        if "states" in inputs:
            states, visible = inputs["states"].float(), inputs["visible"]
        else:
            states, visible = self.frozen_states(inputs)
        if self.is_frozen:
            states = (states - self.mean) / self.sd
        layers = [*states.unbind(2)]
        if not self.is_frozen:
            layers += run_blocks(self.backbone, layers[-1], visible, self.first, self.read)
        return self.pool(self.mix(layers, self.lowest), visible)

    def hidden(self, inputs):
        """All layers [(B, S, D)], the input of the first block too, and which tokens are visible (B, S)."""
        output = self.backbone(**inputs, output_hidden_states=True)
        last = output.last_hidden_state
        counts = count_tokens(self.backbone, self.modality, last.shape[1], inputs)
        visible = torch.arange(last.shape[1], device=last.device) < counts[:, None]
        return [*output.hidden_states[:-1], last], visible

    def frozen_states(self, inputs):
        """What the frozen part makes of a batch: states (B, S, L, D) and visible (B, S).

        Of a model that is frozen as a whole all layers, pooled (S = 1) unless trained attention pools them.
        """
        layers, visible = self.hidden(inputs)
        layers = layers[self.lowest : self.first + 1]
        if self.is_pooled:
            layers, visible = [self.pool(x, visible)[:, None] for x in layers], visible[:, :1]
        return torch.stack(layers, dim=2), visible

    def standardise(self, states):
        """Mean and deviation of the training turns' frozen states (tokens, L, D), an array."""
        states = torch.from_numpy(states).float()
        self.mean.copy_(states.mean(0))
        self.sd.copy_(states.std(0).clamp(min=1e-5))

    def mix(self, layers, lowest=0):
        """The layer that is read (B, S, D), or the weighted sum of all; layers from the `lowest` on."""
        if self.layer != "weighted":
            return layers[self.read - lowest]
        return sum(weight * x for weight, x in zip(self.layer_weights.softmax(0), layers, strict=True))

    def pool(self, tokens, visible):
        """tokens (B, S, D), visible (B, S) -> (B, D)."""
        if self.pooling == "cls":
            return tokens[:, : self.n_class].mean(1)
        if self.pooling == "attention":
            scores = self.attention(tokens)[..., 0].float().masked_fill(~visible, float("-inf"))  # (B, S)
            return (tokens * scores.softmax(1)[..., None]).sum(1)
        return (tokens * visible[..., None]).sum(1) / visible.sum(1, keepdim=True).to(tokens.dtype)


def blocks_of(backbone):
    """A transformer's blocks: of the lists of as many modules as it has layers the one with most weights."""
    lists = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    lists = [blocks for blocks in lists if len(blocks) == backbone.config.num_hidden_layers]
    return max(lists, key=lambda blocks: sum(weights.numel() for weights in blocks.parameters()))


def run_blocks(backbone, x, visible, first, last):
    """The layers [(B, S, D)] that blocks first .. last - 1 make of x (B, S, D); of families in CONTINUED."""
    mask = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, torch.finfo(x.dtype).min)
    kind, layers = backbone.config.model_type, []
    more = [backbone.encoder.compute_position_bias(x)] if kind == "mpnet" else []
    for block in blocks_of(backbone)[first:last]:
        x = block(x, mask[:, None, None], *more)
        x = x[0] if isinstance(x, tuple) else x
        layers.append(x)
    has_norm = kind == "whisper" or getattr(backbone.config, "do_stable_layer_norm", False)
    if layers and has_norm and last == backbone.config.num_hidden_layers:
        layers[-1] = backbone.encoder.layer_norm(x)
    return layers


class WhisperEncoder(nn.Module):
    """Whisper's encoder on turns of any length up to its 30 s.

    transformers' own computes 30 s of every turn, and the turn attends to the silence behind it. Here the
    trained positions are cut to the longest turn of a batch and padding is not attended to: a turn's states
    are those of the turn alone, in every batch. (They differ from those with 30 s of silence.)
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(self, input_features, attention_mask, output_hidden_states=False):
        """input_features (B, mel, 2 S), zero where padding; attention_mask (B, S). Returns all layers."""
        encoder = self.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(input_features)))).transpose(1, 2)  # (B, S, D)
        x = F.dropout(x + encoder.embed_positions.weight[: x.shape[1]], self.config.dropout, self.training)
        layers = (x, *run_blocks(self, x, attention_mask.bool(), 0, self.config.num_hidden_layers))
        return BaseModelOutput(last_hidden_state=layers[-1], hidden_states=layers)

    def _get_feat_extract_output_lengths(self, n_samples):
        """As the other speech models': tokens of a waveform, one for each 20 ms begun, up to its 30 s."""
        return min(-(-n_samples // 320), self.config.max_source_positions)


# ---- Fine-tuned models -----------------------------------------------------------------------


def save_finetuned(folder, source, processor, description):
    """Put what load_finetuned needs beside the weights of a model that began as the checkpoint at `source`.

    description  JSON-ready dict with modality, classes, source, encoder (pooling, layer, n_trained) and more
    """
    load_config(source).save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(Path(folder) / "encoder.json", description)


def load_finetuned(folder):
    """What 02 left in a folder, in evaluation mode: (TurnEncoder, classification layer, description)."""
    description = read_json(Path(folder) / "encoder.json")
    how, source = description["encoder"], description["source"]
    if how["n_trained"] is None:
        backbone = as_encoder(AutoModel.from_config(load_config(str(folder))))
    elif weights_fingerprint(source) == description["weights"]:
        backbone = load_backbone(source)  # what was not trained lies there
    else:
        raise UserError(f"{source}: not the weights that 02 started from; run 02_finetune_unimodal.py again")
    encoder = TurnEncoder(backbone, description["modality"], **how)
    linear = nn.Linear(encoder.width, len(description["classes"]))
    load_best(nn.ModuleDict({"encoder": encoder, "linear": linear}), folder)
    return encoder.eval(), linear.eval(), description


# ---- Padding -------------------------------------------------------------------------------


def collate_waveforms(processor, waveforms):
    """Waveforms (T,) zero-padded at the end to the longest: input_values (B, T) and attention_mask (B, T).

    Each is normalised to zero mean and unit variance where the checkpoint asks for it; those shorter than
    SHORTEST_S last that long, with silence. For Whisper: `collate_log_mel`.
    """
    if hasattr(processor, "chunk_length"):
        return collate_log_mel(processor, waveforms)
    shortest = int(SHORTEST_S * RATE_HZ)
    longest = max(shortest, max(len(waveform) for waveform in waveforms))
    options = dict(padding="max_length", max_length=longest, return_attention_mask=True, return_tensors="pt")
    batch = dict(processor(list(waveforms), sampling_rate=RATE_HZ, **options))
    batch["attention_mask"][:, :shortest] = 1
    return batch


def collate_log_mel(processor, waveforms):
    """Waveforms (T,) as Whisper reads them: input_features (B, mel, 2 S) and attention_mask (B, S).

    The frames of a turn are those that Whisper's own 30 s begin with; behind them are zeros, not its silence.
    """
    step, parts = 2 * processor.hop_length, []  # samples of a token
    for waveform in (waveform[: processor.n_samples] for waveform in waveforms):
        n_tokens = -(-len(waveform) // step)
        padded = np.pad(waveform, (0, step * (n_tokens + 1) - len(waveform)))  # one token of it is cut off
        options = dict(padding="longest", truncation=False, return_tensors="pt")
        found = processor(padded, sampling_rate=RATE_HZ, **options)["input_features"][0]
        parts.append(found[:, : 2 * n_tokens].T)  # (frames, mel)
    counts = torch.tensor([len(part) // 2 for part in parts])
    features = nn.utils.rnn.pad_sequence(parts, batch_first=True).transpose(1, 2)
    return {"input_features": features, "attention_mask": torch.arange(counts.max()) < counts[:, None]}


def count_tokens(backbone, modality, n_tokens, inputs):
    """How many of the n_tokens that a model gives per turn are not padding, which is at the end: (B,) int64.

    inputs  the keyword arguments of the model, from common/inputs.py
    """
    mask = inputs.get("attention_mask")
    if mask is None:
        values = next(iter(inputs.values()))
        return torch.full((len(values),), n_tokens, device=values.device)
    if modality == "text" or mask.shape[1] == n_tokens:
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
