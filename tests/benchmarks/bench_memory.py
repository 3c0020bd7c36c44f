"""What a training of each script needs of a GPU's memory, by counts: nothing is run on a GPU.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_memory.py

Prints a table in Markdown. Networks have the papers' sizes; tensors have shapes and dtypes alone, and follow
CUDA's rules of autocast in bf16 (tests/gpu/pretend_cuda.py), attention is fused. What a sample keeps for the
backward pass is the difference between forward passes of two samples and of one. Weights take 4 bytes each,
gradients and AdamW's state 12 more for each that is trained. The micro-batch is the one that `training` would
choose, which gives what is kept no more than MEMORY_SHARE of the memory left.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    ASTConfig,
    ASTModel,
    BertConfig,
    BertModel,
    VideoMAEConfig,
    VideoMAEModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest adds the root
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))

import pretend_cuda
from accelerate.utils import send_to_device
from conftest import load_script

from common import training
from common.encoders import RATE_HZ, TurnEncoder, as_encoder
from common.layers import count_parameters

CARDS_GB = (24, 80)
WAVLM_LARGE = dict(hidden_size=1024, num_hidden_layers=24, intermediate_size=4096, num_attention_heads=16)
WAVLM_LARGE |= dict(do_stable_layer_norm=True, feat_extract_norm="layer")
AUDIO_S, TEXT_TOKENS, WORDS = 10, 100, 30  # of a turn of 02; words of an utterance of 04
MOSEI = {"text": (24, 300), "audio": (160, 200), "video": (16, 4096)}  # steps of a clip of 8 s, and widths
VOCABULARY, HIDDEN_WORDS = 88_000, 4


# ---- Inputs of n samples -------------------------------------------------------------------


def tokens(n, length):
    return {"input_ids": torch.zeros(n, length, dtype=torch.long), "attention_mask": torch.ones(n, length)}


def sound(n, seconds):
    length = int(seconds * RATE_HZ)
    return {"input_values": torch.randn(n, length), "attention_mask": torch.ones(n, length, dtype=torch.long)}


def window(inputs, n_utterances):
    """Inputs (B * N, ...) of a dialogue's N utterances as 04's networks take them."""
    inputs = {name: x.unflatten(0, (-1, n_utterances)) for name, x in inputs.items()}
    n = len(next(iter(inputs.values())))
    return {"place": torch.arange(n_utterances).expand(n, -1), **inputs}


# ---- Networks of the scripts: (model, n -> inputs, batch size) --------------------------------


def finetuned(modality, backbone, inputs):
    encoder = TurnEncoder(as_encoder(backbone), modality)
    size = getattr(load_script("02_finetune_unimodal.py"), f"{modality.upper()}_BATCH_SIZE")
    return nn.Sequential(encoder, nn.Linear(encoder.width, 4)), lambda n: (inputs(n),), size


def fusion():
    """The multimodal Transformer while it is fine-tuned, with what the default trains."""
    script = load_script("04_fuse_classify.py")
    models = {"audio": WavLMModel(WavLMConfig(**WAVLM_LARGE)), "text": BertModel(BertConfig())}
    shapes = {m: (x.config.num_hidden_layers + 1, x.config.hidden_size) for m, x in models.items()}
    context = script.CONTEXT_BEFORE, script.CONTEXT_AFTER
    model, n_utterances = script.FusionNetwork("MMT", shapes, context, 4), sum(context) + 1
    for modality, extractor in model.extractors.items():
        extractor.attach(as_encoder(models[modality]), script.FINETUNED_PARTS)

    def inputs(n):
        text = window(tokens(n * n_utterances, WORDS), n_utterances)
        return ({"audio": window(sound(n, script.AUDIO_MAX_S), 1), "text": text},)

    return model, inputs, script.BATCH_SIZE


def pretraining(label):
    """The network of a row of Table 5 in 05."""
    script, rng = load_script("05_pretrain_vqmae.py"), np.random.default_rng(0)
    network = script.plan()[0]["5"][label].network

    def inputs(n):
        masks = zip(*(script.random_masking(network, rng) for _ in range(n)))
        dtype = torch.uint8 if network.kind == "vqmae" else torch.float32
        x = torch.zeros(n, network.n_frames, network.n_rows, dtype=dtype)
        return x, *(torch.from_numpy(np.stack(part)) for part in masks)

    return script.build_network(network), inputs, script.PRETRAIN_BATCH_SIZE


def imputation():
    script = load_script("06_mae_imputation.py")
    n_clips = script.PAPER["cremad"][0]
    n_hidden = script.count_of(script.FIXED_SHARE, n_clips)

    def inputs(n):
        hidden = script.draw_mixture(n, n_clips, [n_hidden], 1, torch.Generator().manual_seed(0))[0]
        return torch.randn(n, 2, n_clips, 512), hidden, script.visible_first(hidden), hidden

    return script.AVMAE(512), inputs, script.MAE_BATCH_SIZE


def masked_words():
    script = load_script("07_crossmodal_mosei.py")
    widths = {name: width for name, (_, width) in MOSEI.items()}

    class Pretraining(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = script.MaskedLM(widths, VOCABULARY)

        def forward(self, batch):
            return script.softmax_loss(self.model.output, self.model(batch), batch["targets"])

    def inputs(n):
        batch = {name: torch.randn(n, *shape) for name, shape in MOSEI.items()}
        batch |= {f"{name}_length": torch.full((n,), steps) for name, (steps, _) in MOSEI.items()}
        places = torch.zeros(n, HIDDEN_WORDS, dtype=torch.long)
        return ({**batch, "hidden": places, "targets": places},)

    return Pretraining(), inputs, script.PRETRAIN_BATCH_SIZE


CASES = {
    f"`02` BERT-base, {TEXT_TOKENS} tokens": lambda: finetuned(
        "text", BertModel(BertConfig()), partial(tokens, length=TEXT_TOKENS)
    ),
    f"`02` wav2vec2-base, as HuBERT-base, {AUDIO_S} s": lambda: finetuned(
        "audio",
        Wav2Vec2Model(Wav2Vec2Config(layerdrop=0.0, apply_spec_augment=False)),
        partial(sound, seconds=AUDIO_S),
    ),
    "`02` AST, its 1,024 frames": lambda: finetuned(
        "audio", ASTModel(ASTConfig()), lambda n: {"input_values": torch.randn(n, 1024, 128)}
    ),
    "`02` VideoMAE-base, 16 frames": lambda: finetuned(
        "video", VideoMAEModel(VideoMAEConfig()), lambda n: {"pixel_values": torch.randn(n, 16, 3, 224, 224)}
    ),
    "`04` WavLM-Large 5 s, BERT, 9 utterances": fusion,
    "`05` VQ-MAE-S-12, 4 s": lambda: pretraining("VQ-MAE-S (Patch-tf)"),
    "`05` SpecMAE-12, 4 s": lambda: pretraining("SpecMAE (Patch-tf)"),
    "`06` autoencoder, 10 clips": imputation,
    "`07` masked words, 8 s": masked_words,
}


# ---- Counts --------------------------------------------------------------------------------


def mean_of(model, inputs):
    """Stands for the loss: the mean of what a network gives, or its own loss."""
    found = model(*inputs)
    return (found["loss"] if isinstance(found, dict) else found).float().mean(), len(inputs[0])


def fused_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
    """The kernels that a GPU takes; tensors without numbers would be sent through plain products."""
    if attn_mask is None:
        kernel, more = torch.ops.aten._scaled_dot_product_flash_attention, (dropout_p, is_causal)
    else:
        bias = attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
        kernel, more = torch.ops.aten._scaled_dot_product_efficient_attention, (bias, True, dropout_p)
    return kernel(q, k, v, *more, scale=scale)[0]


def kept_by(model, inputs):
    """Of forward passes of one and of two samples: the bytes that they keep, and their operations."""
    accelerator = pretend_cuda.Accelerator("bf16")
    with pretend_cuda.PretendCuda():
        model = model.to(accelerator.device).train()
        batches = [send_to_device(inputs(n), accelerator.device) for n in (1, 2)]
        kept, operations = [], []
        for batch in batches:
            with FlopCounterMode(display=False) as counter:
                kept.append(training.kept_bytes(accelerator, model, mean_of, batch))
            operations.append(counter.get_total_flops())
        return kept, operations


def row(name, make):
    """A line of the table."""
    model, inputs, batch_size = make()
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    (one, two), operations = kept_by(model, inputs)
    each, once = two - one, 2 * one - two
    states = 4 * count_parameters(model) + 12 * n_trained
    cells = [
        name,
        f"{count_parameters(model) / 1e6:.0f} M",
        f"{n_trained / 1e6:.0f} M",
        f"{states / 1e9:.1f}",
    ]
    cells += [f"{each / 1e6:,.0f}", f"{(states + once + batch_size * each) / 1e9:.1f}", str(batch_size)]
    cells.append(f"{3 * batch_size * (operations[1] - operations[0]) / 1e12:.2g}")  # backward: twice forward
    rooms = [training.MEMORY_SHARE * (1e9 * gb - states) for gb in CARDS_GB]
    cells += [str(training.fitting(batch_size, once, each, room)) for room in rooms]
    return "| " + " | ".join(cells) + " |"


def main():
    pretend_cuda.patch_torch()
    F.scaled_dot_product_attention = fused_attention
    columns = [
        "training",
        "weights",
        "trained",
        "states, GB",
        "MB a sample",
        "whole batch, GB",
        "batch",
        "TFLOP a step",
    ]
    columns += [f"micro-batch in {gb} GB" for gb in CARDS_GB]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name, make in CASES.items():
        print(row(name, make), flush=True)


if __name__ == "__main__":
    main()
