"""Wav to codes: seconds of audio per second, the whole way and its parts.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_tokenise.py [folder of audio files]

Clips of 4 to 12 s, the first 512 of a folder or synthetic ones, on 2 threads:
- reading         common.sadok.vqvae.read_clip
- spectrogram     the power of the short-time Fourier transform
- encoder         VQVAE.encode with random weights
- all             common.sadok.codes.extract_codes: the three and writing, one after the other
- all, 1 worker   the same, with a thread that reads ahead
Prints the median of RUNS runs, and how fast Crops reads: crops per second of one process, from 2 GB of codes.
Reference: the authors' code turns 77 to 95 s of audio per second into codes on 2 threads.
"""

import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import product_rate

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.files import make_folder
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav
from common.sadok.codes import Crops, extract_codes
from common.sadok.data import Pretraining
from common.sadok.vqvae import RATE_HZ, VQVAE, power_spectrogram, read_clip
from common.store import StoreWriter
from common.training import best_weights

RUNS = 3
N_SYNTHETIC = 48
N_FILES = 512
CROP_FRAMES = 200
CROP_BATCH = 512


def write_clips(folder):
    """Noise whose level and colour change several times a second, 16-bit wav."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(N_SYNTHETIC):
        n = int(rng.uniform(4, 12) * RATE_HZ)
        level = np.interp(np.arange(n), np.arange(0, n + 4000, 4000), rng.uniform(0, 0.3, n // 4000 + 2))
        samples = np.convolve(rng.normal(0, 1, n) * level, rng.normal(0, 0.3, 16), "same")
        paths.append(folder / f"{i}.wav")
        write_wav(paths[-1], samples.astype(np.float32), RATE_HZ)
    return paths


def random_vqvae():
    torch.manual_seed(0)
    model = VQVAE(256, 8).eval()
    model.codebook.vectors.normal_(0, 0.1)
    return model


def report(name, seconds, rates):
    rate = statistics.median(rates)
    print(
        f"{name:<16} {rate:9,.0f} s of audio per s   ({min(rates):,.0f} to {max(rates):,.0f} in {len(rates)} "
        f"runs of {seconds:,.0f} s of audio)",
        flush=True,
    )
    return rate


def matrix_product_rate():
    """GFLOP/s of a float32 matrix product, for comparing machines and seeing whether this one is busy."""
    return product_rate("cpu", torch.float32, (2048,)) / 1e9


def timed(seconds, work):
    """Seconds of audio per second of `work`, for each run."""
    rates = []
    for _ in range(RUNS):
        started = time.monotonic()
        work()
        rates.append(seconds / (time.monotonic() - started))
    return rates


def parts(paths, model):
    """Each part by itself; returns the seconds of audio."""
    samples = [read_clip(path) for path in paths]
    seconds = sum(map(len, samples)) / RATE_HZ
    power = [power_spectrogram(x) for x in samples]
    report("reading", seconds, timed(seconds, lambda: [read_clip(path) for path in paths]))
    report("spectrogram", seconds, timed(seconds, lambda: [power_spectrogram(x) for x in samples]))
    report("encoder", seconds, timed(seconds, lambda: [model.encode(x) for x in power]))
    return seconds


def whole(paths, model, seconds, root):
    """extract_codes as a whole, in one thread and with one that reads ahead."""
    turns = [Turn(str(i), str(i), 0, "s", "", 0.0, 0.0, audio=str(path)) for i, path in enumerate(paths)]
    write_manifest(Manifest("clips", make_folder(root / "prepared" / "clips"), (), turns))
    pretraining = Pretraining(str(root), ("clips",), 0)
    make_folder(pretraining.folder / "vqvae")
    best_weights(pretraining.folder / "vqvae").write_bytes(b"")

    def run(workers):
        shutil.rmtree(root / "codes", ignore_errors=True)
        with contextlib.redirect_stdout(io.StringIO()):
            extract_codes(pretraining, "clips", model, workers, 0.0)

    for name, workers in (("all", 0), ("all, 1 worker", 1)):
        report(name, seconds, timed(seconds, lambda workers=workers: run(workers)))


def crops(folder):
    """Crops per second from 2 GB of codes."""
    n_clips, n_frames = 80_000, 400
    writer, part = StoreWriter(folder, {}), 2000
    codes = np.zeros((part * n_frames, 64), np.uint8)
    for first in range(0, n_clips, part):
        ids = [str(i) for i in range(first, first + part)]
        writer.add(ids, {"codes": codes}, [n_frames] * part)
    store = writer.finish()
    data = Crops([(store, name) for name in store.ids], CROP_FRAMES, random=True)
    rng = np.random.default_rng(0)
    keys = [[(int(i), (0, 0, int(i))) for i in rng.integers(n_clips, size=CROP_BATCH)] for _ in range(40)]
    for run in range(RUNS):
        started = time.monotonic()
        for batch in keys:
            data.collate([data[key] for key in batch])
        took, pages = time.monotonic() - started, "again" if run else "first run"
        rate = len(keys) * CROP_BATCH / took
        print(f"crops            {rate:9,.0f} crops of {CROP_FRAMES} frames per s   ({pages})", flush=True)


def main():
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, matrix product "
        f"{matrix_product_rate():.0f} GFLOP/s before"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = (
            sorted(Path(sys.argv[1]).rglob("*.wav"))[:N_FILES] if len(sys.argv) > 1 else write_clips(folder)
        )
        model = random_vqvae()
        seconds = parts(paths, model)
        whole(paths, model, seconds, folder / "data")
        print(f"matrix product   {matrix_product_rate():9,.0f} GFLOP/s after")
        crops(folder / "crops")


if __name__ == "__main__":
    main()
