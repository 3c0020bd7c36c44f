"""The training steps of a numbered script as it runs: time, waiting for data, syncs, memory, operations.

    python tests/benchmarks/bench_steps.py 02_finetune_unimodal.py --demo --DATA_ROOT=/where/01/wrote
    python tests/benchmarks/bench_steps.py 05_pretrain_vqmae.py --RESULTS_ROOT=/tmp/results

Takes a script (02, 04, 05, 06 or 07; 03 trains nothing, see bench_extract.py) and its options, and prints a
line per training: steps, median ms of a step, share of the time that passes in waiting for batches, points
per step where a GPU waits for the host ("-" on a CPU, where tests/gpu/pretend_device.py counts them), peak
memory (of a GPU's allocator, or of the process), parameters, operations of a step (forward and backward, two
for a multiplication with its addition). The first two steps of a training are not timed.
"""

import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from measure import forget_peak, machine, on_gpu, peak_gb, synchronize
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest adds the root

from conftest import load_script

from common import settings, training
from common.layers import count_parameters

NOT_TIMED = 2  # steps; the first is counted, and slower by that


def watch_syncs(device, mode):
    if on_gpu(device):
        torch.cuda.set_sync_debug_mode(mode)


class TimedLoader:
    """A loader that notes how long each batch was waited for."""

    def __init__(self, loader):
        self.loader, self.seconds = loader, []

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __iter__(self):
        batches, end = iter(self.loader), object()
        while True:
            started = time.perf_counter()
            if (batch := next(batches, end)) is end:
                return
            self.seconds.append(time.perf_counter() - started)
            yield batch


class TimedTraining(training.Training):
    """A training that prints what its steps took."""

    def __init__(self, accelerator, *arguments):
        super().__init__(accelerator, *arguments)
        self.loader, self.seconds, self.syncs = TimedLoader(self.loader), [], 0

    def step(self, step, batch):
        device = self.accelerator.device
        if not self.seconds:
            forget_peak(device)
            self.counter = FlopCounterMode(display=False)
            with self.counter:
                found = super().step(step, batch)
            self.seconds.append(0.0)
            return found
        synchronize(device)
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch_syncs(device, "warn")
            found = super().step(step, batch)
            watch_syncs(device, "default")
        synchronize(device)
        self.seconds.append(time.perf_counter() - started)
        self.syncs += sum("synchronizing" in str(warning.message) for warning in caught)
        return found

    def train(self, evaluate):
        history, device = super().train(evaluate), self.accelerator.device
        seconds, waited = self.seconds[NOT_TIMED:], sum(self.loader.seconds[NOT_TIMED:])
        if seconds:
            syncs = f"{self.syncs / (len(self.seconds) - 1):.1f}" if on_gpu(device) else "-"
            share, n, flop = (
                waited / (waited + sum(seconds)),
                len(self.seconds),
                self.counter.get_total_flops(),
            )
            print(
                f"{self.place.title:<40} {n:>6} steps {1e3 * statistics.median(seconds):8.1f} ms"
                f"  data {share:4.0%}  syncs {syncs:>4}  {peak_gb(device):6.2f} GB"
                f"  {count_parameters(self.model) / 1e6:7.2f} M  {flop / 1e9:.3g} GFLOP"
            )
        return history


def main():
    name, words = sys.argv[1], sys.argv[2:]
    sys.argv = [name, *words]  # what the script prints as its command
    training.Training = TimedTraining
    script = load_script(name)
    if hasattr(script, "JOBS"):
        words.append("--JOBS=1")  # other processes would not be timed
    print(machine("cuda" if torch.cuda.is_available() else "cpu"))
    settings.run(script.main, vars(script), words)


if __name__ == "__main__":
    main()
