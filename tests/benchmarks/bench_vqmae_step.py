"""One pretraining step of VQ-MAE-S (forward, backward, AdamW), beside the matrix products that the machine can do.

    python tests/benchmarks/bench_vqmae_step.py --threads=2
    python tests/benchmarks/bench_vqmae_step.py --device=cuda --precision=bf16 --batch=512 --peak=989 [--compile]

Prints, for frame and patch-tf masking of 80 % at depth 12, samples per second (median of steps, all of them timed after
the first two), the operations of a step, and what share of the rate of this machine's own matrix products they reach;
with --peak, also the share of that many TFLOP/s (989: dense bf16 of an H100 SXM), called model FLOP utilisation. A step
takes codes as they lie in the store (uint8 in main memory), draws its masks and includes the copy to the device.
Operations are those of linear layers and attention, two for a multiplication with its addition, three times the forward
pass. What is left out of the last block, because nobody reads it, is not counted. The rate of the machine is that of
torch.mm; in fp32 on a CPU the share can pass 100 %, for the model's linear layers go by way of another library.
"""

import statistics
import sys
from pathlib import Path

import torch
from measure import DTYPES, load_before, machine, product_rate, seconds_of_runs, step_options

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.sadok.vqmae import VQMAE, Grid, Sizes, build, count_parameters, mask_tokens
from common.training import parameter_groups

GRIDS = {"frame": Grid(200, 64, 1, 64), "patch-tf": Grid(200, 64, 10, 4)}
RATIO = 0.8
N_CODES, CODE_WIDTH = 256, 8
DECODER_DEPTH, HEADS, MLP_RATIO = 4, 4, 4
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


def block_operations(width, n_tokens, n_out):
    """A block whose n_tokens are keys and values, and whose queries, MLP and output are n_out tokens."""
    linear = 2 * width**2 * (2 * n_tokens + (2 + 2 * MLP_RATIO) * n_out)  # K, V; Q, output, MLP
    return linear + 2 * 2 * n_out * n_tokens * width  # Q K^T and the weighted sum of V


def step_operations(grid, depth):
    """Of one sample in one step: forward, and twice as much backward."""
    width, n_hidden = grid.token_size * CODE_WIDTH, round(RATIO * grid.n_tokens)
    n_visible, n_all = 1 + grid.n_tokens - n_hidden, 1 + grid.n_tokens
    forward = (
        depth * block_operations(width, n_visible, n_visible)
        + (DECODER_DEPTH - 1) * block_operations(width, n_all, n_all)
        + block_operations(width, n_all, n_hidden)
        + 2 * CODE_WIDTH * N_CODES * n_hidden * grid.token_size
    )
    return 3 * forward


# ---- A step --------------------------------------------------------------------------------


class Step:
    """Forward, backward and AdamW on a batch of random codes."""

    def __init__(self, strategy, arguments):
        self.strategy, self.arguments, self.grid = strategy, arguments, GRIDS[strategy]
        sizes = Sizes(0, arguments.depth, DECODER_DEPTH, HEADS, MLP_RATIO)
        self.model = build(0, VQMAE, self.grid, N_CODES, CODE_WIDTH, sizes, None, True).to(arguments.device)
        if arguments.compile:
            for block in (*self.model.encoder.blocks, *self.model.decoder.blocks):
                block.compile()
        groups = parameter_groups(self.model, 0.05)
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
        self.generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(
            N_CODES, (arguments.batch, 200, 64), dtype=torch.uint8, generator=self.generator
        )

    def __call__(self):
        hidden = mask_tokens(self.grid, self.strategy, RATIO, len(self.codes), self.generator)
        device, dtype = self.arguments.device, DTYPES[self.arguments.precision]
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = self.model(self.codes.to(device), hidden)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def report(strategy, arguments, rate):
    step = Step(strategy, arguments)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of_runs(step, arguments.device, arguments.steps)
    median, operations = (
        statistics.median(seconds),
        step_operations(step.grid, arguments.depth) * arguments.batch,
    )
    million = count_parameters(step.model) / 1e6
    print(
        f"{strategy:<9} {million:5.1f} M parameters: {arguments.batch / median:8.2f} samples/s; "
        f"{1000 * median:.1f} ms a step ({1000 * min(seconds):.1f}-{1000 * max(seconds):.1f}, {len(seconds)} steps); "
        f"{operations / 1e9:.0f} GFLOP a step = {operations / median / 1e9:.0f} GFLOP/s, "
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
            f"          {arguments.batch / median / AUTHORS[strategy]:.2f} times the authors' {AUTHORS[strategy]} "
            "samples/s, on a machine with a matrix product of 150-255 GFLOP/s"
        )


def main():
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    dtype = DTYPES[arguments.precision]
    load, sizes = load_before(), PRODUCT_SIZES[arguments.device]
    before = product_rate(arguments.device, dtype, sizes)
    print(
        f"{machine(arguments.device)}, torch {torch.__version__}, {dtype}, batch {arguments.batch}, "
        f"encoder depth {arguments.depth}, {RATIO:.0%} hidden{load}; matrix product {before / 1e9:.0f} GFLOP/s"
    )
    for strategy in GRIDS:
        report(strategy, arguments, before)
    print(f"matrix product afterwards {product_rate(arguments.device, dtype, sizes) / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
