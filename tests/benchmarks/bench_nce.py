"""One pretraining step of the cross-modal transformer: full softmax against NCE.

    python tests/benchmarks/bench_nce.py --threads=1 --batch=16
    python tests/benchmarks/bench_nce.py --device=cuda --precision=bf16 --batch=256
    python tests/benchmarks/bench_nce.py --threads=1 --text-only

The model has the paper's size, 27.5 M parameters and 45.1 M in the output layer for 88,000 words. A batch
is random clips of 8 s, complete or half as long, 15 % of the words hidden. Versions of the same model
take turns, so that a busy machine slows all of them alike. Printed for each: forward and backward pass,
the ratio to the full softmax, the share of the loss alone (output layer and loss, without the encoder),
the step with Adam, clips/s, and peak memory during its steps (of the allocator on a GPU; of the process
on Linux). Then Adam: torch's default, which `training` uses, and the fused one. Paper: Sec. 2.2 quotes a
reduction by "up to 50 %" from [22], whose model was little more than its softmax.
"""

import statistics
import sys
from pathlib import Path

import torch
from measure import DTYPES, forget_peak, load_before, machine, peak_gb, seconds_of, step_options
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from conftest import load_script

from common.khare.data import NO_TARGET
from common.layers import build, count_parameters

script = load_script("07_crossmodal_mosei.py")
N_VOCABULARY, HIDDEN_SHARE = 88_000, 0.15
WIDTHS = {"text": 300, "audio": 200, "video": 4096}
FULL = "full softmax"


def read_arguments():
    parser = step_options(__doc__, threads=1, batch=16, steps=5)
    parser.add_argument("--words", type=int, default=24, help="words of a clip; 3 a second")
    parser.add_argument("--audio", type=int, default=160, help="steps of 50 ms")
    parser.add_argument("--video", type=int, default=40, help="frames; 5 a second")
    parser.add_argument("--noise", type=int, default=25, help="noise words for each position")
    parser.add_argument(
        "--text-only", action="store_true", help="no audio and video: the output layer weighs most"
    )
    return parser.parse_args()


# ---- Versions ------------------------------------------------------------------------------


def versions_of(arguments):
    """name -> noise words, None for the full softmax."""
    return {FULL: None, f"NCE, {arguments.noise} noise words": arguments.noise}


class Step:
    """Forward and backward pass on a batch of random clips, and Adam."""

    def __init__(self, arguments):
        self.device, self.dtype = arguments.device, DTYPES[arguments.precision]
        self.model = build(0, script.MaskedLM, WIDTHS, N_VOCABULARY).to(self.device)
        self.batch = {name: x.to(self.device) for name, x in random_batch(arguments).items()}
        self.targets = self.batch["targets"]
        self.n_words = int((self.targets != NO_TARGET).sum())
        self.x = torch.randn(*self.targets.shape, script.WIDTH, device=self.device, requires_grad=True)

    def choose(self, version):
        """Frequencies of noise words as of rank 1 / r (Zipf)."""
        self.noise = None
        if version:
            script.NOISE_WORDS = version
            self.noise = script.Noise(1 + 1_000_000 // torch.arange(1, N_VOCABULARY + 1), self.device)

    def loss(self, x):
        if self.noise:
            return script.nce_loss(self.model.output, x, self.targets, self.noise).sum()
        return script.softmax_loss(self.model.output, x, self.targets).sum()

    def backward(self):
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(self.model(self.batch)) / self.n_words
        loss.backward()

    def loss_alone(self):
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(self.x)
        loss.backward()

    def clear(self):
        self.model.zero_grad()
        self.x.grad = None


def random_batch(arguments):
    """Clips of which every other one has half the steps; as many words hidden in each."""
    n, generator = arguments.batch, torch.Generator().manual_seed(0)
    media = (
        {"audio": 0, "video": 0}
        if arguments.text_only
        else {"audio": arguments.audio, "video": arguments.video}
    )
    n_steps = {"text": arguments.words} | media
    batch = {}
    for name, steps in n_steps.items():
        length = torch.where(torch.arange(n) % 2 == 0, steps, steps // 2)
        x, beyond = (
            torch.randn(n, max(1, steps), WIDTHS[name], generator=generator),
            torch.arange(max(1, steps)) >= length[:, None],
        )
        batch |= {name: x.masked_fill(beyond[..., None], 0.0), f"{name}_length": length}
    counts = [max(1, round(HIDDEN_SHARE * int(length))) for length in batch["text_length"]]
    hidden = [torch.randperm(int(x), generator=generator)[:n] for n, x in zip(counts, batch["text_length"])]
    targets = [torch.randint(N_VOCABULARY, (n,), generator=generator) for n in counts]
    batch["hidden"], batch["targets"] = pad_sequence(hidden, True), pad_sequence(targets, True, NO_TARGET)
    return batch


# ---- Reports -------------------------------------------------------------------------------


def adam_seconds(step, fused, runs):
    """Adam on all parameters, the median of some runs; NCE's gradient is dense here: all versions need it."""
    optimizer = torch.optim.AdamW(
        step.model.parameters(), lr=1e-6, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0, fused=fused
    )
    return statistics.median([seconds_of(optimizer.step, step.device) for _ in range(runs + 1)][1:])


def measure(step, versions, n_steps):
    """name -> (seconds of forward and backward passes, seconds of the loss alone, peak memory in GB)."""
    passes, losses, peak = ({name: [] for name in versions} for _ in range(3))
    for _ in range(n_steps + 1):
        for name, version in versions.items():
            step.choose(version)
            losses[name].append(seconds_of(step.loss_alone, step.device))
            step.clear()
            forget_peak(step.device)
            passes[name].append(seconds_of(step.backward, step.device))
            peak[name].append(peak_gb(step.device))
            step.clear()
    return {name: (passes[name][1:], losses[name][1:], max(peak[name][1:])) for name in versions}


def report(step, arguments):
    found = measure(step, versions_of(arguments), arguments.steps)
    step.backward()
    plain, fused = (adam_seconds(step, fused, arguments.steps) for fused in (False, True))
    full = statistics.median(found[FULL][0])
    for name, (passes, losses, peak) in found.items():
        passed, loss = statistics.median(passes), statistics.median(losses)
        print(
            f"{name:<26} {1000 * passed:8.1f} ms ({1000 * min(passes):.1f}-{1000 * max(passes):.1f}), "
            f"{passed / full:.2f} times the full softmax; loss alone {1000 * loss:.1f} ms; with fused Adam "
            f"{1000 * (passed + fused):.1f} ms, {(passed + fused) / (full + fused):.2f} times, "
            f"{arguments.batch / (passed + fused):.1f} clips/s; peak memory {peak:.2f} GB"
        )
    print(f"Adam: torch's default {1000 * plain:.1f} ms, fused {1000 * fused:.1f} ms")


def main():
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    load, step = load_before(), Step(arguments)
    print(
        f"{machine(arguments.device)}, torch {torch.__version__}, {arguments.precision}, "
        f"batch {arguments.batch}, "
        f"{count_parameters(step.model) / 1e6:.1f} M parameters, {step.n_words} hidden words, "
        f"{'text only' if arguments.text_only else 'text, audio and video'}{load}"
    )
    report(step, arguments)


if __name__ == "__main__":
    main()
