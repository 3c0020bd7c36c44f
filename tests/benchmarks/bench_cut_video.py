"""How much faster cutting all turns of a dialogue in one pass is than one seek-and-encode per turn.

    python tests/benchmarks/bench_cut_video.py [runs]

A synthetic dialogue of 3 minutes as IEMOCAP has them (720x480 split screen, 29.97 fps, MPEG-4 AVI, 45 turns
of two speakers that overlap a little) is cut `runs` times (default 3) in each of these ways, taken in turn:
- one pass        common.corpora.cut.cut_turns with the settings of 01_prepare_data.py
- seek per turn   for each turn: open, seek to the key frame before it, decode to its end, crop, encode; with
                  the same encoder settings, and with x264's own defaults as one gets without asking
- from the start  for each turn: open, decode from the first frame (the way out where DivX seeks badly)
Key frames come every 12 frames, or every 300 as DivX places them. Every way must write equally many frames
per turn. Prints median wall-clock and processor seconds, and how many times those of the one pass they are.
Most of the time of every way is encoding, since every frame of a turn must be coded once: the one pass saves
the repeated decoding, the conversions to RGB and back, and (against x264's defaults) a slow preset that a
clip read a few times never repays. "PSNR" is the luma fidelity of the clips to the AVI, so that speed is not
bought with quality.
"""

import statistics
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from measure import clock_and_processor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from common.corpora.cut import PRESET, Cut, cut_turns
from common.media import read_frames
from common.pictures import count_frames
from common.settings import read_constants

SECONDS, RATE, N_TURNS = 180, Fraction(30000, 1001), 45
WIDTH, HEIGHT = 720, 480


def usual_crf():
    """VIDEO_CRF of 01_prepare_data.py."""
    return read_constants((ROOT / "01_prepare_data.py").read_text(encoding="utf-8"))[0]["VIDEO_CRF"].value


def write_dialogue(path, gop):
    """A split-screen AVI: two textured halves that sway, with camera noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 190, (HEIGHT // 24 + 2, WIDTH // 24 + 2)).astype(np.float32)
    texture = np.kron(coarse, np.ones((24, 24), np.float32))
    for axis in (0, 1):  # soft edges, as a camera makes them
        texture = sum(np.roll(texture, shift, axis) for shift in range(-4, 5)) / 9
    noise = rng.normal(0, 2, (8, HEIGHT, WIDTH)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        stream.bit_rate = 1_500_000
        for i in range(round(SECONDS * RATE)):
            y, x = (round(10 + 10 * np.sin(i / period)) for period in (23, 31))
            picture = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            picture[:HEIGHT] = (texture[y : y + HEIGHT, x : x + WIDTH] + noise[i % 8]).clip(0, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))


def plan_turns(folder):
    """45 turns of 2.6 to 5.4 s that take the floor from each other, so that neighbours overlap."""
    rng = np.random.default_rng(1)
    starts = np.arange(N_TURNS) * SECONDS / N_TURNS
    return [
        Cut(
            folder / f"turn{k:02d}.mp4",
            float(start),
            float(min(start + rng.uniform(2.6, 5.4), SECONDS)),
            ("left", "right")[k % 2],
        )
        for k, start in enumerate(starts)
    ]


def cut_one_by_one(path, cuts, options, seek):
    """The straightforward way: one open, one seek, one decode and one encode per turn."""
    for cut in cuts:
        with av.open(str(path)) as source, av.open(str(cut.output), "w") as target:
            stream = source.streams.video[0]
            stream.thread_type = "AUTO"
            if seek:
                source.seek(round(cut.start_s / stream.time_base), stream=stream)
            encoder = target.add_stream("libx264", rate=RATE, options=options)
            encoder.width, encoder.height, encoder.pix_fmt = WIDTH // 2, HEIGHT, "yuv420p"
            x = 0 if cut.half == "left" else WIDTH // 2
            for frame in source.decode(stream):
                if frame.time >= cut.end_s:
                    break
                if frame.time >= cut.start_s:
                    picture = np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:, x : x + WIDTH // 2])
                    target.mux(encoder.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            target.mux(encoder.encode(None))


def ways(path, folder):
    """{name: (function, its cuts)}"""
    crf = usual_crf()
    same = {"crf": str(crf), "preset": PRESET}
    plans = {
        name: plan_turns(folder / name.replace(" ", "_"))
        for name in ("one pass", "seek per turn", "seek per turn x264 defaults", "from the start")
    }
    for cuts in plans.values():
        cuts[0].output.parent.mkdir()
    return {
        "one pass": (lambda cuts: cut_turns(path, cuts, crf), plans["one pass"]),
        "seek per turn": (lambda cuts: cut_one_by_one(path, cuts, same, True), plans["seek per turn"]),
        "seek per turn x264 defaults": (
            lambda cuts: cut_one_by_one(path, cuts, {"crf": str(crf)}, True),
            plans["seek per turn x264 defaults"],
        ),
        "from the start": (lambda cuts: cut_one_by_one(path, cuts, same, False), plans["from the start"]),
    }


def psnr(path, cuts):
    """Mean luma fidelity (dB) of the clips' first frames to the same frames of the dialogue."""
    values = []
    for cut in cuts[1::9]:
        frames, times_s = read_frames(path, cut.start_s + 0.5)
        original = frames[times_s >= cut.start_s]  # (T, H, W, 3)
        x = 0 if cut.half == "left" else WIDTH // 2
        clip = read_frames(cut.output, 0.5)[0][: len(original)]
        error = (original[: len(clip), :, x : x + WIDTH // 2].astype(float) - clip) @ (0.299, 0.587, 0.114)
        values.append(10 * np.log10(255**2 / np.mean(error**2)))
    return statistics.mean(values)


def measure(gop, runs, folder):
    """Time every way in alternation and print medians and ratios."""
    path = folder / "dialogue.avi"
    write_dialogue(path, gop)
    methods, wall, processor, frames = ways(path, folder), {}, {}, {}
    for run in range(runs):
        for name, (function, cuts) in methods.items():
            if name == "from the start" and run:
                continue  # by far the slowest: once is enough
            for times, seconds in zip((wall, processor), clock_and_processor(function, cuts), strict=True):
                times.setdefault(name, []).append(seconds)
            frames[name] = [count_frames(cut.output) for cut in cuts]
            assert frames[name] == frames["one pass"], f"{name} wrote other frames"
    print(
        f"key frame every {gop}: {sum(frames['one pass']):,} frames in {N_TURNS} turns, "
        f"{path.stat().st_size / 1e6:.0f} MB AVI"
    )
    print(f"  {'':28s}    wall             processor        clips    PSNR")
    for name, (_, cuts) in methods.items():
        columns = [
            f"{statistics.median(times[name]):6.2f} s {statistics.median(times[name]) / base:5.1f} x"
            for times in (wall, processor)
            for base in [statistics.median(times["one pass"])]
        ]
        size = sum(cut.output.stat().st_size for cut in cuts) / 1e6
        print(f"  {name:28s} {'   '.join(columns)}  {size:6.1f} MB  {psnr(path, cuts):4.1f} dB", flush=True)


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for gop in (12, 300):
        with tempfile.TemporaryDirectory() as folder:
            measure(gop, runs, Path(folder))


if __name__ == "__main__":
    main()
