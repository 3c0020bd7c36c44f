"""Clips of recordings per second: every file decoded once against every clip decoded on its own; and peak
memory.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_clip_features.py [folder of mp4, mov or flv files]

The first N_FILES files of a folder, or 720p H.264 with AAC that is written to a temporary folder in the two
ways that recordings are found: a key frame every second (as RAVDESS) and where x264 puts them, every 250
frames. Clips as for AVID-CMA: 10 of 0.4 s, 6 frames of 224 x 224 and 9,600 samples; those beyond the end of a
file are not counted.
- decoded once     common.chochlakis.clips.read_clips
- per clip         open, seek to the clip, decode it, for the picture and again for the sound; scaled as above
- per clip, PIL    the same as the published loaders of AVID-CMA scale: whole RGB pictures, by Pillow, then
                   cropped
- extract, 2 threads   the way to the store with a backbone that takes no time
All on one thread save the last, taking turns; the median of RUNS runs by the clock, and in seconds of
processor time, which other programs on the machine disturb less. The aim is five times the clips per second.

The genuine recording of RAVDESS (H.264, 720p, 30 frames per second, a key frame every 29, 9 clips) stays
below that in processor time, at about three times, and must: decoding is nearly all there is to win. A clip
of its own decodes what lies between the key frame and its end, 203 frames in all. Once decodes 67 of 99,
those wanted (51) and those that they are predicted from; that takes 0.24 of 0.32 s, opening the file twice
for sound and picture 0.02, scaling 0.04, sound 0.02. If all but decoding were free it would be under four
times. Several threads shorten the clock alone and are better spent on several recordings, as extract does; to
decode less (no deblocking, lower resolution) changes the pictures.
"""

import contextlib
import io
import resource
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.chochlakis.backbones import FPS
from common.chochlakis.clips import clip_features, read_clips
from common.extraction import Extraction
from common.manifest import Manifest, Turn
from common.media import probe
from common.pictures import STAMP_TOLERANCE_S, central_square

RUNS = 5
N_FILES = 4
N_CLIPS, CLIP_S, RATE_HZ, SIZE = 10, 0.4, 24000, 224
SHORT_SIDE = 256
REPEATS = 4  # times that extract takes each file, since its threads must start
ENDINGS = (".mp4", ".mov", ".flv")
SCALER = VideoReformatter()


class NoBackbone:
    """Takes no time and remembers nothing."""

    rate_hz, size, dim = RATE_HZ, SIZE, 512

    def identity(self):
        return {}

    def __call__(self, name, clips):
        return torch.zeros(len(clips), self.dim)


# ---- Files ---------------------------------------------------------------------------------


def write_mp4(path, gop, seconds=4.2):
    """Pictures that move smoothly under a little noise, and a tone: as hard to decode as a face before a
    wall.
    """
    rng, rate = np.random.default_rng(0), 30
    coarse = Image.fromarray(rng.integers(40, 200, (64, 110, 3), dtype=np.uint8))
    scene = np.asarray(coarse.resize((1760, 1024), Image.BICUBIC)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264",
            rate=rate,
            options={"crf": "20", "preset": "veryfast", "g": str(gop), "bf": "2", "sc_threshold": "0"},
        )
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        track = container.add_stream("aac", rate=48000, layout="mono")
        for i in range(int(seconds * rate)):
            grain = np.kron(rng.integers(-4, 5, (360, 640, 1)), np.ones((2, 2, 1), np.int64))
            picture = (scene[2 * i : 2 * i + 720, 3 * i : 3 * i + 1280] + grain).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        tone = 0.3 * np.sin(np.arange(int(seconds * 48000)) / 20).astype(np.float32)
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, start, Fraction(1, 48000)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


# ---- One clip at a time --------------------------------------------------------------------


def once(path, n_clips):
    found = read_clips(path, path, N_CLIPS, CLIP_S, RATE_HZ, SIZE)
    return found.audio[:n_clips], found.video[:n_clips]


def per_clip(path, n_clips, scale):
    parts = [(clip_audio(path, n * CLIP_S), clip_video(path, n * CLIP_S, scale)) for n in range(n_clips)]
    return tuple(map(np.stack, zip(*parts, strict=True)))


def clip_video(path, start_s, scale):
    """Frames (F, SIZE, SIZE, 3) of one clip."""
    wanted_s = start_s + np.arange(round(CLIP_S * FPS)) / FPS
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        container.seek(int(start_s * av.time_base))
        frames = []
        for frame in container.decode(video=0):
            if frames and frame.time > wanted_s[-1] + STAMP_TOLERANCE_S:
                break
            frames.append(frame)
        times_s = [frame.time for frame in frames]
        shown = np.searchsorted(times_s, wanted_s + STAMP_TOLERANCE_S, side="right") - 1
        return np.stack([scale(frames[k]) for k in shown.clip(min=0)])


def clip_audio(path, start_s):
    """Samples (S,) of one clip."""
    n_samples = round(CLIP_S * RATE_HZ)
    mono, parts, first_s = av.AudioResampler(format="fltp", layout="mono", rate=RATE_HZ), [], None
    with av.open(str(path)) as container:
        container.seek(int(start_s * av.time_base))
        for frame in container.decode(audio=0):
            if frame.time + frame.samples / frame.rate < start_s:
                continue
            if frame.time > start_s + CLIP_S:
                break
            first_s = frame.time if first_s is None else first_s
            parts += [part.to_ndarray()[0] for part in mono.resample(frame)]
    if not parts:
        return np.zeros(n_samples, np.float32)
    skip = max(0, round((start_s - first_s) * RATE_HZ))
    samples = np.concatenate(parts)[skip : skip + n_samples]
    return np.pad(samples, (0, n_samples - len(samples)))


def scale_as_ours(frame):
    return central_square(frame, SIZE, SCALER)


def scale_by_pillow(frame):
    image = frame.to_image()
    by = SHORT_SIDE / min(image.size)
    image = image.resize((round(image.width * by), round(image.height * by)), Image.BILINEAR)
    x, y = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.asarray(image.crop((x, y, x + SIZE, y + SIZE)))


# ---- Timing --------------------------------------------------------------------------------


def timed(ways, files):
    """{way: (median seconds by the clock, median seconds of processor time)} for all files, taking turns."""
    took = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, read in ways.items():
            clock, processor = time.perf_counter(), time.process_time()
            for path, n_clips in files:
                read(path, n_clips)
            took[way].append((time.perf_counter() - clock, time.process_time() - processor))
    return {
        way: tuple(statistics.median(column) for column in zip(*runs, strict=True))
        for way, runs in took.items()
    }


def check(path, n_clips):
    """All ways must give the same clips, but for a last one cut short by an edit list and for shifts below a
    pixel.
    """
    reference = once(path, n_clips)
    for scale, most in ((scale_as_ours, 0.01), (scale_by_pillow, 5.0)):
        audio, video = per_clip(path, n_clips, scale)
        off = np.abs(video[:-1].astype(int) - reference[1][:-1]).mean()
        sound = np.abs(audio - reference[0])[:-1, 50:-50].max()
        assert off <= most and sound < 0.02, f"{path}: pictures differ by {off:.2f}, samples by {sound:.3f}"


def compare(name, paths):
    files = [(path, min(N_CLIPS, int(np.ceil(probe(path).duration_s / CLIP_S)))) for path in paths]
    n_clips = sum(n for _, n in files)
    check(*files[0])
    ways = {
        "decoded once": once,
        "per clip": lambda path, n: per_clip(path, n, scale_as_ours),
        "per clip, PIL": lambda path, n: per_clip(path, n, scale_by_pillow),
    }
    medians = timed(ways, files)
    print(f"{name}: {len(files)} files, {n_clips} clips, median of {RUNS}")
    base = medians["decoded once"]
    for way, (clock, processor) in medians.items():
        print(
            f"  {way:<20} {n_clips / clock:7.1f} clips/s by the clock   "
            f"{n_clips / processor:7.1f} per s of processor   "
            f"ratio {clock / base[0]:5.2f} and {processor / base[1]:5.2f}",
            flush=True,
        )
    seconds = statistics.median(whole(paths) for _ in range(RUNS))
    print(
        f"  {'extract, 2 threads':<20} {n_clips / seconds:7.1f} clips/s by the clock   "
        f"ratio of per clip, PIL to it {medians['per clip, PIL'][0] / seconds:.2f}",
        flush=True,
    )


def whole(paths):
    """Seconds that extract takes to go through these files once."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        turns = [
            Turn(
                f"{k}-{i}", "d", 0, "s", "", 0.0, 0.0, audio=str(path.absolute()), video=str(path.absolute())
            )
            for k in range(REPEATS)
            for i, path in enumerate(paths)
        ]
        manifest, how = Manifest("bench", Path(folder), (), turns), Extraction(64 // N_CLIPS, 2, 0.0)
        (manifest.folder / "manifest.csv").write_text("the fingerprint is taken of this")
        started = time.perf_counter()
        clip_features(manifest, turns, NoBackbone(), Path(folder) / "s", N_CLIPS, CLIP_S, how)
        return (time.perf_counter() - started) / REPEATS


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    torch.set_num_threads(1)
    print(f"PyAV {av.__version__}; peak memory before: {peak_mb():,.0f} MB")
    if len(sys.argv) > 1:
        paths = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in ENDINGS)
        compare(sys.argv[1], paths[:N_FILES])
    else:
        with tempfile.TemporaryDirectory() as folder:
            for gop in (30, 250):
                path = write_mp4(Path(folder) / f"{gop}.mp4", gop)
                compare(f"key frames at most {gop} frames apart, {path.stat().st_size / 1e6:.1f} MB", [path])
    print(f"peak memory: {peak_mb():,.0f} MB")


if __name__ == "__main__":
    main()
