"""A training step of the masked autoencoder and of a backbone (Section 4.2), and the latency of imputation.

    python tests/benchmarks/bench_mae_step.py --threads=1
    python tests/benchmarks/bench_mae_step.py --device=cuda --precision=bf16 --batch=64 [--small]

A step is forward, backward and Adam on random features of ten clips, seven of each modality hidden, masks
drawn anew. Prints the median in ms, samples/s and peak memory (of the process on a CPU, of the step on a
GPU); the part of a step that is Adam; what a step of AVID-CMA on as many recordings takes, forward and
backward, were it trained, which the paper's autoencoder is 14 times faster than; then the latency of imputing
the last clip of both modalities, for one recording and for a batch, in the precision of imputation.
"""

import importlib.util
import statistics
import sys
from pathlib import Path

import torch
from measure import DTYPES, load_before, machine, peak_gb, seconds_of, step_options

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.chochlakis.backbones import Backbone
from common.layers import build, count_parameters

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"MAE_WIDTH": 128, "MAE_DEPTH": 2, "MAE_HEADS": 4}
SMALL |= {"DECODER_WIDTH": 64, "DECODER_DEPTH": 2, "DECODER_HEADS": 4}
N_CLIPS, N_HIDDEN, N_FEATURES = 10, 7, 512
COST_CLIPS = 4  # in a pass of the backbone of which the time is taken


def read_arguments():
    parser = step_options(__doc__, threads=1, batch=64, steps=5)
    parser.add_argument(
        "--small", action="store_true", help="a model of 1 M parameters instead of the paper's 190 M"
    )
    return parser.parse_args()


def load_script(sizes):
    """06, whose constants are the paper's sizes, or others."""
    spec = importlib.util.spec_from_file_location("script_06", ROOT / "06_mae_imputation.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    vars(script).update(sizes)
    return script


class Step:
    """Forward, backward and Adam on a batch of random features."""

    def __init__(self, arguments):
        self.device, self.dtype = arguments.device, DTYPES[arguments.precision]
        self.script = load_script(SMALL if arguments.small else {})
        self.model = build(0, self.script.AVMAE, N_FEATURES).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=5e-7, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)
        shape = arguments.batch, 2, N_CLIPS, N_FEATURES
        self.x = torch.randn(shape, generator=self.generator).to(self.device)

    def autocast(self):
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def __call__(self):
        hidden = self.script.draw_masks(len(self.x), N_CLIPS, N_HIDDEN, 1, self.generator)[0]
        at, hidden = (x.to(self.device) for x in (self.script.visible_first(hidden), hidden))
        with self.autocast():
            loss = self.model(self.x, hidden, at, hidden)
        loss.backward()
        self.adam_s = seconds_of(self.optimizer.step, self.device)
        self.optimizer.zero_grad()

    def impute(self, n_samples):
        """The last clip of both modalities; features come from main memory and go back there."""
        hidden = torch.zeros(n_samples, 2, N_CLIPS, dtype=torch.bool)
        hidden[:, :, -1] = True
        batch = self.x[:n_samples].cpu(), hidden, self.script.visible_first(hidden)
        with self.autocast():
            self.model.impute(*(x.to(self.device) for x in batch)).cpu()


# ---- Reports -------------------------------------------------------------------------------


def report_steps(step, arguments):
    step()  # the first one does not count
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, adam = [], []
    for _ in range(arguments.steps):
        seconds.append(seconds_of(step, arguments.device))
        adam.append(step.adam_s)
    median, peak = statistics.median(seconds), peak_gb(arguments.device)
    print(
        f"{1000 * median:8.1f} ms a step ({1000 * min(seconds):.1f}-{1000 * max(seconds):.1f}); "
        f"{arguments.batch / median:8.1f} samples/s; of which Adam {1000 * statistics.median(adam):.1f} ms; "
        f"peak memory {peak:.2f} GB"
    )


def report_backbone(step, arguments):
    """Forward and backward pass of AVID-CMA on a few clips of 0.4 s, times those of a batch."""
    backbone = Backbone("avid-cma", 64, 224).to(step.device)
    frames = torch.randint(0, 256, (COST_CLIPS, 6, 224, 224, 3), dtype=torch.uint8)
    clips = {"audio": torch.randn(COST_CLIPS, 9600), "video": frames}

    def pass_():
        with step.autocast():
            found = [getattr(backbone, part)(backbone.read(part, x)).mean() for part, x in clips.items()]
        sum(found).backward()

    seconds = min(seconds_of(pass_, arguments.device) for _ in range(3))
    whole = seconds / COST_CLIPS * arguments.batch * N_CLIPS
    million = count_parameters(backbone) / 1e6
    print(f"{1000 * whole:8.1f} ms a step of the backbone, {million:.1f} M parameters, were it trained")


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
        f"{machine(arguments.device)}, torch {torch.__version__}, {arguments.precision}, "
        f"batch {arguments.batch}, {count_parameters(step.model) / 1e6:.1f} M parameters, "
        f"{N_HIDDEN} of {N_CLIPS} clips hidden{load}"
    )
    report_steps(step, arguments)
    report_backbone(step, arguments)
    report_latency(step, arguments)


if __name__ == "__main__":
    main()
