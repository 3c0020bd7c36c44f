"""Training the multimodal Transformer of Li et al.: its attention against torch's module, cached against recomputed states.

    python tests/benchmarks/bench_li_fusion.py

Prints, for the device at hand and the sizes it says,
(a) a training step (forward, backward, AdamW) of MMT at batch 32 on cached hidden states against the same model written
    with torch.nn.MultiheadAttention without the fused kernel (need_weights=True), and the attention part of both alone;
(b) an epoch of the frozen phase with hidden states kept in memory against recomputing them at every step.
Seconds are medians of runs, in (a) taken in turn. Peak memory is what torch allocated on a GPU; on a CPU it is how far the
resident memory of a process of its own rises while it trains above where it stood after the imports, data and model included.
A GPU takes the sizes of the paper (WavLM-Large, BERT-base, 5 s), a CPU smaller ones. Weights and recordings are random.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from measure import forget_peak, machine, peak_gb, resident_gb, seconds_of
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import BertConfig, BertModel, BertTokenizer, WavLMConfig, WavLMModel

from common.demo.checkpoints import SIZES, make_bert, make_wavlm, train_wordpiece, waveform_processor
from common.encoders import load_backbone
from common.inputs import RATE_HZ
from common.li.fusion import design_of
from common.li.hidden_states import Steps, Utterances, Windows, context_windows
from common.li.model import Block, build_system
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav
from common.settings import read_constants
from common.training import Recipe, fit, make_accelerator, parameter_groups, to_device

ROOT = Path(__file__).resolve().parents[2]
CONSTANTS = {
    c.name: c.value for c in read_constants((ROOT / "04_fuse_classify.py").read_text(encoding="utf-8"))
}
DESIGN = replace(design_of(SimpleNamespace(**CONSTANTS)), dropout=0.0, block_dropout=0.0)  # 04's, repeatable
BATCH_SIZE = CONSTANTS["BATCH_SIZE"]
WINDOW = CONSTANTS["CONTEXT_BEFORE"], CONSTANTS["CONTEXT_AFTER"]
N_FRAMES, N_TOKENS = 250, 32  # 5 s of audio; longest text of a batch
PAPER = {"audio": (25, 1024), "text": (13, 768)}  # (L, D)
SMALL = {"audio": (25, 256), "text": (13, 192)}
RUNS = {"cuda": 20, "cpu": 5}
N_TURNS = {"cuda": 256, "cpu": 48}  # of (b)
EPOCHS = 3
WORDS = "well i do not know what you want me to say but it is fine".split()


# ---- The same model with torch's own attention ---------------------------------------------


class PlainBlock(Block):
    """A block of li_model.py around torch.nn.MultiheadAttention, which returns its weights and so cannot be fused."""

    def __init__(self, block):
        super().__init__(DESIGN, block.residual)
        self.load_state_dict(block.state_dict())
        parts = self.query, self.key, self.value
        self.attention = nn.MultiheadAttention(DESIGN.width, DESIGN.heads, batch_first=True)
        self.attention.load_state_dict(
            {
                "in_proj_weight": torch.cat([part.weight for part in parts]),
                "in_proj_bias": torch.cat([part.bias for part in parts]),
                "out_proj.weight": self.out.weight,
                "out_proj.bias": self.out.bias,
            }
        )
        del self.query, self.key, self.value, self.out

    def attend(self, target, source, source_visible):
        return self.attention(target, source, source, key_padding_mask=~source_visible, need_weights=True)[0]


def build(shapes, plain, device):
    """MMT with the same first weights whichever attention it has; `plain`: torch's module without the fused kernel."""
    model = build_system("MMT", shapes, WINDOW, DESIGN, 4, 0)
    if plain:
        for transformer in model.transformers:
            transformer.blocks = nn.ModuleList(PlainBlock(block) for block in transformer.blocks)
    return model.to(device).train()


# ---- (a) A training step -------------------------------------------------------------------


def cached_batch(shapes, device):
    """Hidden states of 32 turns and of the nine texts around each, all lengths from a tenth of the longest upwards."""
    generator = torch.Generator().manual_seed(0)

    def states(n, longest, shape):
        values = torch.randn(n, longest, *shape, generator=generator, dtype=torch.float32).half()
        counts = torch.randint(longest // 10, longest + 1, (n,), generator=generator)
        counts[0] = longest
        return {"states": values, "visible": torch.arange(longest) < counts[:, None]}

    n_window = sum(WINDOW) + 1
    audio = Steps(states(BATCH_SIZE, N_FRAMES, shapes["audio"]), torch.arange(BATCH_SIZE)[:, None])
    texts = states(BATCH_SIZE * n_window, N_TOKENS, shapes["text"])
    text = Steps(texts, torch.arange(BATCH_SIZE * n_window).view(BATCH_SIZE, n_window))
    labels = torch.randint(4, (BATCH_SIZE,), generator=generator)
    return to_device({"labels": labels, "audio": audio, "text": text}, device)


class WholeStep:
    """Forward, backward and AdamW of a model on one batch."""

    def __init__(self, accelerator, plain, shapes):
        self.accelerator, self.batch = accelerator, cached_batch(shapes, accelerator.device)
        self.model = build(shapes, plain, accelerator.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, 1e-3), lr=1e-3)

    def __call__(self):
        with self.accelerator.autocast():
            loss = F.cross_entropy(self.model(self.batch).float(), self.batch["labels"])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class AttentionStep:
    """Forward and backward of the two cross-modal Transformers alone, on sequences of the width after the projector."""

    def __init__(self, accelerator, plain, shapes):
        self.accelerator = accelerator
        self.transformers = build(shapes, plain, accelerator.device).transformers
        batch = cached_batch({"audio": (1, 16), "text": (1, 16)}, accelerator.device)
        text = (
            batch["text"].inputs["states"][:: sum(WINDOW) + 1],
            batch["text"].inputs["visible"][:: sum(WINDOW) + 1],
        )
        audio = batch["audio"].inputs["states"], batch["audio"].inputs["visible"]
        self.streams = [(x[:, :, 0].float().requires_grad_(), visible) for x, visible in (text, audio)]

    def __call__(self):
        (text, read), (audio, heard) = self.streams
        with self.accelerator.autocast():
            loss = (
                self.transformers[0](text, audio, heard).float().square().mean()
                + self.transformers[1](audio, text, read).float().square().mean()
            )
        loss.backward()


def check_equal(device, shapes):
    """Both models give the same logits with the same weights, and still do after two steps of gradient descent, in float32."""
    batch, logits = cached_batch(shapes, device), []
    for plain in (False, True):
        model = build(shapes, plain, device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            logits.append(model(batch))
            F.cross_entropy(logits[-1], batch["labels"]).backward()
            optimizer.step()
            optimizer.zero_grad()
    ours, theirs = torch.stack(logits[:3]).detach(), torch.stack(logits[3:]).detach()
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours[0] - ours[2]).abs().max() > 1e-3, "nothing was learnt in between"
    print(
        f"    same logits with the same weights, before and after two steps: largest difference "
        f"{(ours - theirs).abs().max():.1e}"
    )


def compare_steps(accelerator, shapes):
    device, what = (
        accelerator.device,
        ", ".join(f"{m} {layers} x {width}" for m, (layers, width) in shapes.items()),
    )
    n_gb = (
        sum(s.inputs["states"].nbytes for s in cached_batch(shapes, "cpu").values() if isinstance(s, Steps))
        / 1e9
    )
    full = "as in the paper" if shapes == PAPER else "the paper's are 25 x 1024 and 13 x 768"
    print(
        f"(a) training step of MMT, batch {BATCH_SIZE}, {N_FRAMES} frames and {sum(WINDOW) + 1} x {N_TOKENS} tokens at most; "
        f"layers x width: {what} ({full}), {n_gb:.2f} GB of states"
    )
    check_equal(device, shapes)
    for title, kind in (("whole step", WholeStep), ("attention part alone", AttentionStep)):
        steps = {plain: kind(accelerator, plain, shapes) for plain in (False, True)}
        seconds = in_turn(steps, RUNS[device.type] * (1 if kind is WholeStep else 4), device)
        del steps
        peaks = {
            plain: measured(accelerator, ("step", kind.__name__, plain, shapes))["peak_gb"]
            for plain in (False, True)
        }
        report(
            title, "fused", "nn.MultiheadAttention", seconds[False], seconds[True], peaks[False], peaks[True]
        )


def in_turn(steps, n_runs, device):
    """{key: seconds of each call}, the calls of different keys taking turns; the first two of each do not count."""
    seconds = {key: [] for key in steps}
    for run in range(n_runs + 2):
        for key, step in steps.items():
            took = seconds_of(step, device)
            if run >= 2:
                seconds[key].append(took)
    return seconds


def report(title, ours, theirs, our_seconds, their_seconds, our_peak, their_peak):
    for name, seconds, peak in ((ours, our_seconds, our_peak), (theirs, their_seconds, their_peak)):
        print(
            f"    {f'{title}, {name}':<46} {1000 * statistics.median(seconds):9.2f} ms "
            f"({1000 * min(seconds):.2f}-{1000 * max(seconds):.2f}, {len(seconds)} runs), peak memory {peak:.3f} GB"
        )
    print(
        f"    {title}: time ratio {statistics.median(their_seconds) / statistics.median(our_seconds):.2f}, "
        f"memory ratio {their_peak / our_peak:.2f}"
    )


# ---- Peak memory ---------------------------------------------------------------------------


class Peak:
    """The most memory in use since `restart`, in GB above what was in use when this was made."""

    def __init__(self, device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            self.before = torch.cuda.memory_allocated() / 1e9
        else:
            self.before = resident_gb("VmRSS")
        self.restart()

    def restart(self):
        forget_peak(self.device)

    def gb(self):
        return peak_gb(self.device) - self.before


def measured(accelerator, what):
    """What `measure` returns: here on a GPU, in a fresh process on a CPU, whose memory would tell of all that came before."""
    if accelerator.device.type == "cuda":
        return measure(accelerator, what)
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(what)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(accelerator, what):
    """One measurement by its name and arguments: ("step", class, plain, shapes) or ("epoch", place, folder)."""
    peak = Peak(accelerator.device)
    if what[0] == "epoch":
        return run_epochs(accelerator, what[1], Path(what[2]), peak)
    step = globals()[what[1]](accelerator, *what[2:])
    for _ in range(3):
        step()
    return {"peak_gb": peak.gb()}


# ---- (b) An epoch of the frozen phase ------------------------------------------------------


def write_models(folder, full):
    """Random WavLM and BERT: of the published sizes, or "small" ones; returns their folders and layers x width."""
    if full:
        vocabulary = train_wordpiece(WORDS, 1000)
        text = BertModel(BertConfig(vocab_size=len(vocabulary))), BertTokenizer(vocab=vocabulary)
        audio = (
            WavLMModel(
                WavLMConfig(
                    hidden_size=1024,
                    num_hidden_layers=24,
                    num_attention_heads=16,
                    intermediate_size=4096,
                    do_stable_layer_norm=True,
                    feat_extract_norm="layer",
                )
            ),
            waveform_processor(True),
        )
    else:
        text, audio = make_bert(SIZES["small"], WORDS), make_wavlm(SIZES["small"], WORDS)
    for name, (model, processor) in (("text", text), ("audio", audio)):
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)


def write_corpus(folder, n_turns):
    """Dialogues of 16 turns with noise of 2 to 6 s and 3 to 24 words."""
    rng, turns = np.random.default_rng(0), []
    for i in range(n_turns):
        seconds, name = rng.uniform(2, 6), f"audio/{i}.wav"
        write_wav(folder / "prepared" / name, rng.normal(0, 0.1, int(seconds * RATE_HZ)).astype(np.float32))
        turns.append(
            Turn(
                f"u{i:04}",
                f"d{i // 16}",
                i,
                "s",
                "",
                i,
                i + 1,
                " ".join(rng.choice(WORDS, rng.integers(3, 25))),
                "abcd"[i % 4],
                audio=name,
            )
        )
    manifest = Manifest("bench", folder / "prepared", tuple("abcd"), turns)
    write_manifest(manifest)
    return manifest


def run_epochs(accelerator, place, folder, peak):
    """Train MMT for EPOCHS epochs on states from `place`.

    Returns {"seconds": of each epoch, "preparing": seconds until the states are there, "kept_gb": their size in memory,
    "peak_gb": while training, "train_loss": of the last epoch}.
    """
    n_turns = N_TURNS[accelerator.device.type]
    manifest = write_corpus(folder / place, n_turns)
    utterances = {
        m: Utterances(manifest, m, str(folder / m), manifest.turns, 5.0, 512, folder / place / "cache", 1)
        for m in ("audio", "text")
    }
    started = time.monotonic()
    kept_gb = sum(u.prepare(accelerator, place, 1e3, 0.0, BATCH_SIZE, 0)[0] for u in utterances.values())
    preparing = time.monotonic() - started
    windows, _ = context_windows(manifest, manifest.turns, *WINDOW, lambda turn: False)
    live = set(utterances) if place == "recompute" else set()
    data = Windows(manifest.turns, manifest.classes, utterances, windows, live, by_length=False)
    model = build_system("MMT", {m: u.shape for m, u in utterances.items()}, WINDOW, DESIGN, 4, 0)
    model.attach({m: load_backbone(str(folder / m)) for m in live}, "none")

    def loss(model, batch):
        logits = model(batch)
        return F.cross_entropy(logits.float(), batch["labels"], reduction="sum"), len(logits)

    peak.restart()
    recipe = Recipe(
        1e-3, EPOCHS, BATCH_SIZE, weight_decay=1e-3, schedule="constant", clip_norm=0.0, select_by="loss"
    )
    history = fit(
        accelerator,
        model,
        loss,
        data,
        lambda model: {"loss": 0.0},
        recipe,
        folder / place / "run",
        {},
        place,
        epoch_lines=False,
    )
    return {
        "seconds": [entry["seconds"] for entry in history["log"]],
        "preparing": preparing,
        "kept_gb": kept_gb,
        "peak_gb": peak.gb(),
        "train_loss": history["log"][-1]["train_loss"],
    }


def compare_epochs(accelerator):
    on_gpu = accelerator.device.type == "cuda"
    size = (
        "published sizes"
        if on_gpu
        else f"'small': {SIZES['small']['layers'] + 1} x {SIZES['small']['hidden']}"
    )
    print(
        f"(b) frozen-phase epoch of MMT, {N_TURNS[accelerator.device.type]} turns of 2 to 5 s; WavLM and BERT of {size}"
    )
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), on_gpu)
        kept, anew = (measured(accelerator, ("epoch", place, folder)) for place in ("memory", "recompute"))
    report(
        "epoch", "cached", "recomputed", kept["seconds"], anew["seconds"], kept["peak_gb"], anew["peak_gb"]
    )
    computing = kept["preparing"] - anew["preparing"]
    saved = statistics.median(anew["seconds"]) - statistics.median(kept["seconds"])
    print(
        f"    {kept['kept_gb']:.3f} GB of states in main memory, computed once in {computing:.2f} s, "
        + (
            f"saved again after {int(np.ceil(computing / saved))} epochs"
            if saved > 0
            else "which is never saved again"
        )
        + f"; training loss of the last epoch {kept['train_loss']:.4f} and {anew['train_loss']:.4f}"
    )


def main():
    if len(sys.argv) > 1:
        print(json.dumps(measure(make_accelerator("auto"), json.loads(sys.argv[1]))))
        return
    accelerator = make_accelerator("auto")
    print(
        f"{machine(accelerator.device)}, precision {accelerator.mixed_precision}, torch {torch.__version__}"
    )
    compare_steps(accelerator, PAPER if accelerator.device.type == "cuda" else SMALL)
    compare_epochs(accelerator)


if __name__ == "__main__":
    main()
