"""Wav to codes: seconds of audio per second, the whole way and its parts.

    OMP_NUM_THREADS=2 python tests/benchmarks/bench_tokenise.py [folder of audio files]

Clips of 4 to 12 s, the first 512 of a folder or synthetic ones, on 2 threads:
- reading         common.media.read_audio and the peak
- spectrogram     the power of the short-time Fourier transform
- encoder         VQVAE.encode with random weights, in batches as tokenise makes them
- all, 1 process  common.sadok.codes.tokenise: reading, spectrogram, encoder, writing, one after the other
- all, 1 worker   the same, with another process that reads and transforms; timed from the first batch on, since the
                  start of the process is paid once
Prints the median of RUNS runs, and at the end how fast Crops reads: crops per second of one process from 2 GB of codes.
Reference: the authors' code turns 77 to 95 s of audio per second into codes on 2 threads; the aim is five times that.
"""

import contextlib
import io
import json
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

from common.media import read_audio, write_wav
from common.sadok.codes import Codes, Crops, Tokenising, on_all_cores, read_clip, tokenise
from common.sadok.vqvae import CODES_PER_FRAME, HOP, N_FFT, RATE_HZ, VQVAE, power_spectrogram

RUNS = 3
N_SYNTHETIC = 48
N_FILES = 512
BATCH_FRAMES = 8192
CROP_FRAMES = 200
CROP_BATCH = 512


def settings(workers):
    return Tokenising(
        RATE_HZ, HOP, N_FFT, CODES_PER_FRAME, 4, 1e-4, power_spectrogram, 0.05, BATCH_FRAMES, workers
    )


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
    model = VQVAE(code_size=8).eval()
    model.codebook.vectors.normal_(0, 0.1)
    return model


def report(name, seconds, rates):
    rate = statistics.median(rates)
    print(
        f"{name:<16} {rate:9,.0f} s of audio per s   ({min(rates):,.0f} to {max(rates):,.0f} in {len(rates)} runs of "
        f"{seconds:,.0f} s of audio)",
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
    n_threads = torch.get_num_threads()
    samples = [read_audio(path, rate_hz=RATE_HZ) for path in paths]
    seconds = sum(map(len, samples)) / RATE_HZ
    tensors = [torch.from_numpy(x / np.abs(x).max()) for x in samples]
    power = torch.cat([power_spectrogram(x) for x in tensors])
    torch.set_num_threads(1)  # as tokenise has it: these two do not gain from threads
    report("reading", seconds, timed(seconds, lambda: [np.abs(read_audio(path)).max() for path in paths]))
    report("spectrogram", seconds, timed(seconds, lambda: [power_spectrogram(x) for x in tensors]))
    torch.set_num_threads(n_threads)
    with on_all_cores(model.encode, "cpu") as encode:
        report(
            "encoder", seconds, timed(seconds, lambda: [encode(part) for part in power.split(BATCH_FRAMES)])
        )
    return seconds


def whole(paths, model, seconds, folder):
    """tokenise as a whole, in one process and with a worker."""
    clips = [(str(i), path) for i, path in enumerate(paths)]
    lengths = [read_clip(*clip, settings(0)).seconds for clip in clips]
    started = []

    def encode(power):
        started.append(time.monotonic())
        return model.encode(power)

    for name, workers in (("all, 1 process", 0), ("all, 1 worker", 1)):
        rates = []
        for _ in range(RUNS):
            shutil.rmtree(folder, ignore_errors=True)
            started[:] = [] if workers else [time.monotonic()]
            with contextlib.redirect_stdout(io.StringIO()):
                codes = tokenise(clips, encode, folder, {}, settings(workers))
            rates.append(sum(lengths) / (time.monotonic() - started[0]))
        assert int(codes.n_frames.sum()) == sum(1 + round(length * RATE_HZ) // HOP for length in lengths)
        report(name, seconds, rates)


def crops(folder):
    """Crops per second from a sparse file of 2 GB, which costs no disk."""
    n_clips, n_frames = 80_000, 400
    folder.mkdir()
    with open(folder / "codes.u8", "wb") as file:
        file.truncate(n_clips * n_frames * CODES_PER_FRAME)
    lines = "".join(f"{i},{i * n_frames},{n_frames},8.0000,,\n" for i in range(n_clips))
    (folder / "clips.csv").write_text(
        "id,first_frame,frames,seconds,problem,remedy\n" + lines, encoding="utf-8"
    )
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "complete": True,
                "clips": n_clips,
                "frames": n_clips * n_frames,
                "codes_per_frame": CODES_PER_FRAME,
                "hours": 177.8,
                "left_out": 0,
            }
        )
    )
    codes = Codes(folder)
    data = Crops([(codes, np.arange(n_clips))], CROP_FRAMES, random=True)
    rng = np.random.default_rng(0)
    keys = [[(int(i), (0, 0, int(i))) for i in rng.integers(n_clips, size=CROP_BATCH)] for _ in range(40)]
    for run in range(RUNS):
        started = time.monotonic()
        for batch in keys:
            data.collate([data[key] for key in batch])
        took = time.monotonic() - started
        print(
            f"crops            {len(keys) * CROP_BATCH / took:9,.0f} crops of {CROP_FRAMES} frames per s"
            f"   ({'pages read for the first time' if run == 0 else 'again'})",
            flush=True,
        )


def main():
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, matrix product {matrix_product_rate():.0f} "
        "GFLOP/s before"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = (
            sorted(Path(sys.argv[1]).rglob("*.wav"))[:N_FILES] if len(sys.argv) > 1 else write_clips(folder)
        )
        model = random_vqvae()
        seconds = parts(paths, model)
        whole(paths, model, seconds, folder / "codes")
        print(f"matrix product   {matrix_product_rate():9,.0f} GFLOP/s after")
        crops(folder / "crops")


if __name__ == "__main__":
    main()
