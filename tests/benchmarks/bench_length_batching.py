"""A training epoch on RAVDESS durations: batches of similar length against padding everything to the longest.

    python tests/benchmarks/bench_length_batching.py [folder of wav files]

Trains a small wav2vec 2.0 from the same weights both ways for EPOCHS epochs, RUNS times in turn, and prints
the median seconds per epoch, their ratio and the training loss of the last epoch. Without a folder the
samples are noise, their durations normal with RAVDESS' mean, sd and range (3.7, 0.34, 2.9 to 5.3 s).
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest adds the root

from conftest import load_script

from common.demo.checkpoints import write_checkpoints
from common.encoders import RATE_HZ, collate_waveforms, load_processor
from common.media import read_audio
from common.training import length_batches, seed_step

N_CLIPS = 192
BATCH_SIZE = 16
EPOCHS = 2
RUNS = 3


def clips(folder):
    if folder:
        paths = sorted(Path(folder).rglob("*.wav"))
        paths = paths[:: max(1, len(paths) // N_CLIPS)][:N_CLIPS]
        return [read_audio(path) for path in paths], np.array([int(p.stem.split("-")[2]) - 1 for p in paths])
    rng = np.random.default_rng(0)
    seconds = rng.normal(3.7, 0.34, N_CLIPS).clip(2.9, 5.3)
    return [rng.normal(size=int(s * RATE_HZ)).astype(np.float32) for s in seconds], rng.integers(
        8, size=N_CLIPS
    )


def epochs(source, waveforms, labels, by_length):
    """Train EPOCHS epochs; returns (seconds per epoch, loss of the last one)."""
    torch.manual_seed(0)
    model = load_script("02_finetune_unimodal.py").EmotionClassifier(source, "audio", 8)
    processor = load_processor(source, "audio")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    longest = max(len(w) for w in waveforms)
    seconds = []
    model.train()
    for epoch in range(EPOCHS):
        started, losses = time.monotonic(), []
        lengths = [len(w) for w in waveforms] if by_length else [0] * len(waveforms)
        for step, batch in enumerate(length_batches(lengths, BATCH_SIZE, 0, epoch)):
            seed_step(0, epoch, step)
            inputs = collate_waveforms(processor, [waveforms[i] for i in batch])
            if not by_length:
                inputs = {k: torch.nn.functional.pad(v, (0, longest - v.shape[1])) for k, v in inputs.items()}
            loss = torch.nn.functional.cross_entropy(model(inputs), torch.from_numpy(labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds), float(np.mean(losses))


def main():
    waveforms, labels = clips(sys.argv[1] if len(sys.argv) > 1 else "")
    durations = np.array([len(w) for w in waveforms]) / RATE_HZ
    print(
        f"{len(waveforms)} clips, {durations.mean():.2f} ± {durations.std():.2f} s, longest "
        f"{durations.max():.2f} s; batch {BATCH_SIZE}, {torch.get_num_threads()} threads"
    )
    print(
        f"samples computed, longest / by length: {len(durations) * durations.max() / padded(durations):.2f}"
    )
    found = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoints(Path(folder), ["a few words"], "small", 0)
        source = str(Path(folder) / "wav2vec2-base")
        for _ in range(RUNS):
            for by_length in (True, False):
                found[by_length].append(epochs(source, waveforms, labels, by_length))
    for by_length, name in ((False, "padded to the longest"), (True, "batches by length")):
        seconds, losses = zip(*found[by_length])
        print(
            f"{name:<22} {statistics.median(seconds):6.2f} s per epoch "
            f"({min(seconds):.2f}-{max(seconds):.2f}), loss {statistics.median(losses):.3f}"
        )
    ratio = statistics.median(s for s, _ in found[False]) / statistics.median(s for s, _ in found[True])
    print(f"ratio {ratio:.2f} (aim: 1.3)")


def padded(durations):
    """Seconds computed in one epoch when each batch is padded to its own longest."""
    batches = length_batches(durations * RATE_HZ, BATCH_SIZE, 0, 0)
    return sum(len(batch) * durations[batch].max() for batch in batches)


if __name__ == "__main__":
    main()
