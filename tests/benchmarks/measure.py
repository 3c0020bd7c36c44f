"""What the benchmarks share: options, seconds by the clock, peak memory, and what the machine can do."""

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def step_options(description, threads, batch, steps):
    """A parser with what every benchmark of a training step can be told; the numbers are the defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--steps", type=int, default=steps, help="timed steps of everything that is compared")
    return parser


# ---- Time ----------------------------------------------------------------------------------


def on_gpu(device):
    """device  its name or a torch.device"""
    return torch.device(device).type == "cuda"


def synchronize(device):
    if on_gpu(device):
        torch.cuda.synchronize()


def seconds_of(call, device):
    """Seconds that a call takes, with all that it leaves a GPU to do."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def seconds_of_runs(call, device, runs):
    """Seconds of each of `runs` calls, after two that do not count."""
    return [seconds_of(call, device) for _ in range(runs + 2)][2:]


def clock_and_processor(call, *arguments):
    """Seconds of a call by the clock, and in processor time, which other programs disturb less."""
    clock, processor = time.perf_counter(), time.process_time()
    call(*arguments)
    return time.perf_counter() - clock, time.process_time() - processor


# ---- Peak memory ---------------------------------------------------------------------------


def forget_peak(device):
    """Let the peak start anew; where the system does not allow it, it stays that since the process began."""
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed
        pass


def peak_gb(device):
    """Highest memory since `forget_peak`, of a GPU's allocator or of the process; 0 if unknown."""
    return torch.cuda.max_memory_allocated() / 1e9 if on_gpu(device) else resident_gb("VmHWM")


def resident_gb(name):
    """VmRSS (now) or VmHWM (peak) of this process; elsewhere than on Linux the peak; 0 if unknown."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e9
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    )


# ---- The machine ---------------------------------------------------------------------------


def machine(device):
    """The GPU's name, or how many threads the CPU gives."""
    return torch.cuda.get_device_name() if on_gpu(device) else f"CPU, {torch.get_num_threads()} threads"


def load_before():
    """How busy the machine is, to be put at the end of a line; "" where the system does not say."""
    return f", load average before {os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else ""


def product_rate(device, dtype, sizes):
    """FLOP/s of the fastest square matrix product of some sizes, each the median of ten."""
    rates = []
    for n in sizes:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        product = partial(torch.mm, a, b, out=torch.empty_like(a))
        rates.append(2 * n**3 / statistics.median(seconds_of_runs(product, device, 10)))
    return max(rates)
