"""Extraction in batches of similar length against one turn at a time, and how long training waits for data.

    python tests/benchmarks/bench_extract.py [folder of wav files]

Prints, for a small wav2vec 2.0 on the device at hand, turns per second both ways and their ratio; then the
share of an epoch that passes in fetching batches from the cache, first epoch and second.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest adds the root

from conftest import load_script

from common.demo.checkpoints import write_checkpoints
from common.encoders import RATE_HZ
from common.inputs import Clipping, read_inputs
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav
from common.training import Recipe, make_accelerator, predict

N_CLIPS = 256
RUNS = 3
BATCH_SIZE = 32


def corpus(folder, wavs):
    """A prepared corpus of N_CLIPS turns: links to recordings, or noise of RAVDESS' durations."""
    folder = Path(folder) / "prepared"
    paths = sorted(Path(wavs).rglob("*.wav"))[:N_CLIPS] if wavs else []
    rng = np.random.default_rng(0)
    turns = []
    for i in range(N_CLIPS):
        name = str(paths[i].resolve()) if paths else f"audio/{i}.wav"
        if not paths:
            write_wav(
                folder / name, rng.normal(0, 0.1, int(rng.normal(3.7, 0.34) * RATE_HZ)).astype(np.float32)
            )
        turns.append(Turn(f"u{i:04}", "d", i, "s", "", 0.0, 3.7, label="x", audio=name))
    manifest = Manifest("bench", folder, ("x", "y"), turns)
    write_manifest(manifest)
    return manifest


def main():
    accelerator = make_accelerator("auto")
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder), ["a few words"], "small", 0)
        source = str(Path(folder) / "wav2vec2-base")
        manifest = corpus(folder, sys.argv[1] if len(sys.argv) > 1 else "")
        data = read_inputs(manifest, "audio", source, Clipping(10.0, 10.0, 30.0, 4), folder, 0)
        print(f"device {accelerator.device}, {torch.get_num_threads()} threads")
        model = load_script("02_finetune_unimodal.py").EmotionClassifier(source, "audio", 2)
        model.to(accelerator.device)
        throughput(accelerator, model, data)
        waiting(accelerator, model, data)


def throughput(accelerator, model, data):
    def forward(m, batch):
        return {"logits": m(batch["inputs"])}

    rates = {}
    for size in (1, BATCH_SIZE):
        seconds = []
        for _ in range(RUNS):
            started = time.monotonic()
            predict(accelerator, model, forward, data, Recipe(1e-4, 1, size, eval_batch_size=size))
            seconds.append(time.monotonic() - started)
        rates[size] = len(data) / statistics.median(seconds)
        print(f"batches of {size:3d}: {rates[size]:8.1f} turns/s")
    print(f"ratio {rates[BATCH_SIZE] / rates[1]:.2f} (aim on a GPU: 3)")


def waiting(accelerator, model, data):
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4, weight_decay=0.01)
    for epoch in range(2):
        started, fetching = time.monotonic(), 0.0
        for start in range(0, len(data), 16):
            before = time.monotonic()
            batch = data.collate([data[i, (0, epoch, i)] for i in range(start, min(start + 16, len(data)))])
            fetching += time.monotonic() - before
            batch = send_to_device(batch, accelerator.device)
            loss = torch.nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total = time.monotonic() - started
        share = f"{fetching:.2f} s ({fetching / total:.1%}) in fetching batches"
        print(f"epoch {epoch + 1}: {total:.2f} s, of which {share}")


if __name__ == "__main__":
    main()
