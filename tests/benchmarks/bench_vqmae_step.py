"""One pretraining step of VQ-MAE-S (forward, backward, AdamW), beside the matrix products of the machine.

    python tests/benchmarks/bench_vqmae_step.py --threads=2
    python tests/benchmarks/bench_vqmae_step.py --device=cuda --precision=bf16 --batch=512 --peak=989

Prints, for frame and patch-tf masking of 80 % at depth 12, samples per second (median of steps after the
first two), the operations of a step, and what share of the rate of this machine's own matrix products they
reach; with --peak, also the share of that many TFLOP/s (989: dense bf16 of an H100 SXM), called model FLOP
utilisation. A step takes codes and masks as a loader hands them over and includes their copy to the device.
Operations are those of linear layers and attention, two for a multiplication with its addition, three times
the forward pass. The rate of the machine is that of torch.mm.
"""

import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from measure import DTYPES, load_before, machine, product_rate, seconds_of_runs, step_options

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import load_script

from common.layers import count_parameters
from common.sadok.data import Network

vqmae = load_script("05_pretrain_vqmae.py")
TOKENS = {"frame": (1, 64), "patch-tf": (10, 4)}
RATIO, N_CODES, CODE_WIDTH = 0.8, 256, 8
AUTHORS = {
    "frame": 4.0,
    "patch-tf": 5.1,
}  # samples/s of the authors' code: depth 12, batch 16, 2 threads, fp32
EPOCH_SAMPLES = 1000 * 3600 // 4  # crops of 4 s in 1,000 hours
PRODUCT_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


def read_arguments():
    parser = step_options(__doc__, threads=2, batch=16, steps=8)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument(
        "--peak", type=float, default=0.0, help="TFLOP/s that the maker states, for the utilisation"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile on every block")
    return parser.parse_args()


# ---- What a step needs ---------------------------------------------------------------------


def block_operations(width, n_tokens):
    """A block: Q, K, V and output (4), MLP (2 x MLP_RATIO), Q K^T and the weighted sum of V."""
    linear = 2 * width**2 * (4 + 2 * vqmae.MLP_RATIO) * n_tokens
    return linear + 2 * 2 * n_tokens**2 * width


def step_operations(network):
    """Of one sample in one step: forward, and twice as much backward."""
    n_tokens, width = network.grid[0] * network.grid[1], network.token_width
    n_hidden = round(RATIO * n_tokens)
    forward = network.depth * block_operations(width, 1 + n_tokens - n_hidden)
    forward += vqmae.DECODER_DEPTH * block_operations(width, 1 + n_tokens)
    return 3 * (forward + 2 * N_CODES * width * n_hidden)


# ---- A step --------------------------------------------------------------------------------


class Step:
    """Forward, backward and AdamW on a batch of random codes."""

    def __init__(self, strategy, arguments):
        self.arguments, rng = arguments, np.random.default_rng(0)
        t, d = TOKENS[strategy]
        self.network = Network("vqmae", strategy, RATIO, 200, 64, t, d, CODE_WIDTH, arguments.depth, 0)
        self.model = vqmae.build_network(self.network).to(arguments.device)
        if arguments.compile:
            for block in (*self.model.encoder.blocks, *self.model.decoder.blocks):
                block.compile()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
        masks = [vqmae.random_masking(self.network, rng) for _ in range(arguments.batch)]
        codes = torch.from_numpy(rng.integers(N_CODES, size=(arguments.batch, 200, 64), dtype=np.uint8))
        self.batch = codes, *(torch.from_numpy(np.stack(part)) for part in zip(*masks, strict=True))

    def __call__(self):
        device, dtype = self.arguments.device, DTYPES[self.arguments.precision]
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = self.model(*(x.to(device) for x in self.batch))["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def report(strategy, arguments, rate):
    step = Step(strategy, arguments)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of_runs(step, arguments.device, arguments.steps)
    median, operations = statistics.median(seconds), step_operations(step.network) * arguments.batch
    million = count_parameters(step.model) / 1e6
    print(
        f"{strategy:<9} {million:5.1f} M parameters: {arguments.batch / median:8.2f} samples/s; "
        f"{1000 * median:.1f} ms a step ({1000 * min(seconds):.1f}-{1000 * max(seconds):.1f}, {len(seconds)} "
        f"steps); {operations / 1e9:.0f} GFLOP a step = {operations / median / 1e9:.0f} GFLOP/s, "
        f"{operations / median / rate:.0%} of the matrix product"
    )
    if arguments.device == "cuda":
        print(
            f"          peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB; an epoch of 1,000 h: "
            f"{EPOCH_SAMPLES * median / arguments.batch / 3600:.3f} h",
            end="",
        )
        share = f"{operations / median / arguments.peak / 1e12:.1%}" if arguments.peak else ""
        print(f"; model FLOP utilisation {share} of {arguments.peak:.0f} TFLOP/s" if arguments.peak else "")
    elif (arguments.depth, arguments.batch, arguments.threads) == (12, 16, 2):
        print(
            f"          {arguments.batch / median / AUTHORS[strategy]:.2f} times the authors' "
            f"{AUTHORS[strategy]} samples/s, on a machine with a matrix product of 150-255 GFLOP/s"
        )


def main():
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    dtype = DTYPES[arguments.precision]
    load, sizes = load_before(), PRODUCT_SIZES[arguments.device]
    before = product_rate(arguments.device, dtype, sizes)
    print(
        f"{machine(arguments.device)}, torch {torch.__version__}, {dtype}, batch {arguments.batch}, "
        f"encoder depth {arguments.depth}, {RATIO:.0%} hidden{load}; "
        f"matrix product {before / 1e9:.0f} GFLOP/s"
    )
    for strategy in TOKENS:
        report(strategy, arguments, before)
    print(f"matrix product afterwards {product_rate(arguments.device, dtype, sizes) / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
