"""One training step of the masked autoencoder on clip features, and the latency of imputing a clip.

    python tests/benchmarks/bench_mae_step.py --threads=1
    python tests/benchmarks/bench_mae_step.py --device=cuda --precision=bf16 --batch=64 [--small]

A step is forward, backward and Adam on random features of ten clips, seven of each modality hidden, masks drawn anew.
Three versions of the same model take turns, so that a busy machine slows all of them alike: as it is; with attention as
softmax(Q K^T / sqrt(d)) V in separate operations; and, on a CPU, with torch's own linear layer too. Prints medians in
ms, ratios, samples/s and peak memory (of the process on a CPU, of each version on a GPU); the part of a step that is
Adam; then the latency of imputing the last clip of both modalities, for one recording and for a batch. Of 20 tokens,
attention is less than 1 % of the operations: fusing it can save memory traffic and launches, and no more.
"""

import statistics
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from measure import DTYPES, load_before, machine, peak_gb, seconds_of, step_options
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.chochlakis import mae as chochlakis_mae
from common.chochlakis.mae import AVMAE, Linear, Sizes, draw_masks
from common.sadok.vqmae import build, count_parameters

PAPER = Sizes(
    width=768,
    depth=11,
    joint_depth=1,
    heads=12,
    decoder_width=512,
    decoder_depth=8,
    decoder_heads=16,
    mlp_ratio=4,
)
SMALL = Sizes(
    width=128,
    depth=2,
    joint_depth=1,
    heads=4,
    decoder_width=64,
    decoder_depth=2,
    decoder_heads=4,
    mlp_ratio=4,
)
N_CLIPS, N_HIDDEN, N_FEATURES = 10, 7, 512
VERSIONS = {
    "as it is": (),
    "unfused attention": ("attention",),
    "unfused, torch's linear": ("attention", "linear"),
}


def read_arguments():
    parser = step_options(__doc__, threads=1, batch=64, steps=5)
    parser.add_argument(
        "--small", action="store_true", help="a model of 1 M parameters instead of the paper's 190 M"
    )
    return parser.parse_args()


# ---- Versions ------------------------------------------------------------------------------


def unfused(q, k, v, is_key):
    """What the fused attention computes, with all of its weights written to memory."""
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5  # (B, heads, S, S)
    return (scores if is_key is None else scores.masked_fill(~is_key, -torch.inf)).softmax(3) @ v


@contextmanager
def replaced(parts):
    """The module with some of its parts replaced by plain ones."""
    before = chochlakis_mae.attention, Linear.forward
    try:
        if "attention" in parts:
            chochlakis_mae.attention = unfused
        if "linear" in parts:
            Linear.forward = nn.Linear.forward
        yield
    finally:
        chochlakis_mae.attention, Linear.forward = before


class Step:
    """Forward, backward and Adam on a batch of random features."""

    def __init__(self, arguments):
        self.device, self.dtype = arguments.device, DTYPES[arguments.precision]
        self.model = build(0, AVMAE, N_FEATURES, SMALL if arguments.small else PAPER).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=5e-7, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(2, arguments.batch, N_CLIPS, N_FEATURES, generator=self.generator).to(
            self.device
        )

    def __call__(self):
        hidden = draw_masks(self.features.shape[1], N_CLIPS, N_HIDDEN, N_HIDDEN, 1, self.generator)[0]
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(*self.features, hidden)["loss"]
        loss.backward()
        self.adam_s = seconds_of(self.optimizer.step, self.device)
        self.optimizer.zero_grad()

    def impute(self, n_samples):
        """The last clip of both modalities; features come from main memory and go back there."""
        hidden = torch.zeros(n_samples, 2, N_CLIPS, dtype=torch.bool)
        hidden[:, :, -1] = True
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            self.model.impute(*self.features[:, :n_samples].cpu(), hidden)


# ---- Reports -------------------------------------------------------------------------------


def report_steps(step, arguments):
    versions = list(VERSIONS) if arguments.device == "cpu" else list(VERSIONS)[:2]
    seconds, peak, adam = {name: [] for name in versions}, {}, []
    for number in range(arguments.steps + 1):  # the first step of each does not count
        for name in versions:
            with replaced(VERSIONS[name]):
                if arguments.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                took = seconds_of(step, arguments.device)
            peak[name] = peak_gb(arguments.device)
            if number:
                seconds[name].append(took)
                adam.append(step.adam_s)
    ours = statistics.median(seconds[versions[0]])
    for name in versions:
        median = statistics.median(seconds[name])
        memory = f"; peak memory {peak[name]:.2f} GB" if arguments.device == "cuda" else ""
        print(
            f"{name:<24} {1000 * median:8.1f} ms a step ({1000 * min(seconds[name]):.1f}-"
            f"{1000 * max(seconds[name]):.1f}); {arguments.batch / median:8.1f} samples/s; "
            f"{median / ours:.2f} times the first{memory}"
        )
    print(f"of which Adam {1000 * statistics.median(adam):.1f} ms", end="")
    print(f"; peak memory of the process {peak[versions[0]]:.2f} GB" if arguments.device == "cpu" else "")


def report_latency(step, arguments):
    for n_samples in (1, arguments.batch):
        runs = [
            seconds_of(lambda n=n_samples: step.impute(n), arguments.device)
            for _ in range(3 * arguments.steps)
        ]
        median = statistics.median(runs[2:])
        print(
            f"imputing the last clip of {n_samples:>3}: {1000 * median:8.2f} ms ({1000 * min(runs[2:]):.2f}-"
            f"{1000 * max(runs[2:]):.2f}), {1000 * median / n_samples:.2f} ms a recording"
        )


def main():
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    load, step = load_before(), Step(arguments)
    print(
        f"{machine(arguments.device)}, torch {torch.__version__}, {arguments.precision}, batch {arguments.batch}, "
        f"{count_parameters(step.model) / 1e6:.1f} M parameters, {N_HIDDEN} of {N_CLIPS} clips hidden{load}"
    )
    report_steps(step, arguments)
    report_latency(step, arguments)


if __name__ == "__main__":
    main()
