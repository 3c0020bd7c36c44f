"""Clips per second: each feature of Khare et al. by itself, the way to the store, and reading it at random.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_khare_features.py [mp4 file, such as one of VoxCeleb2]

A clip is as long as VoxCeleb2's on average, 7.8 s: 224 x 224 pixels, 25 frames per second, H.264, and
sound of 16 kHz, written to a temporary folder. All on one thread; the median of RUNS runs by the clock
and in processor time, which other programs on the machine disturb less, and for how long 1.1 million such
clips would keep one processor busy. Weights are random: they take as long as real ones.
- filterbanks       40 bands every 10 ms, five stacked; beside it the sound's decoding
- frames            2 per second, the video decoded once; beside it one read_frames of them all, scaled
  the same
- VGG-16            these frames at 224 and at the demo's 32 pixels
- wav2vec 2.0       a recogniser of the size of wav2vec2-base
- extract           sound and frames to a store without networks
- read              clips drawn at random, in batches of 32 as training gets them; then the masking of
  words
"""

import contextlib
import io
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from measure import clock_and_processor
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from conftest import load_script

from common.extraction import Extraction
from common.khare.data import Clips, Corpus, Part
from common.khare.features import VGG, Source, extract_clips, filterbanks, read_views
from common.khare.words import Recogniser, Vectors
from common.media import read_audio, read_frames
from common.store import StoreWriter

RUNS = 3
SECONDS, RATE_HZ, FPS, WORDS_PER_S = 7.8, 16000, 2, 2.5
N_VOXCELEB2 = 1_092_009
N_STORED, BATCH = 320, 32


def write_faces(path):
    """Pictures that move smoothly under a little noise, with sound, as large and long as VoxCeleb2's."""
    rng, rate, side = np.random.default_rng(0), 25, 224
    coarse = torch.from_numpy(rng.uniform(40, 200, (1, 3, 40, 60)))
    scene = torch.nn.functional.interpolate(coarse, (640, 960), mode="bicubic")[0].permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        track = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for i in range(round(SECONDS * rate)):
            picture = scene[2 * i : 2 * i + side, 3 * i : 3 * i + side] + rng.normal(0, 3, (side, side, 3))
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        samples = rng.normal(0, 0.1, round(SECONDS * RATE_HZ)).astype(np.float32)
        for start in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(
                samples[None, start : start + 1024], format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = RATE_HZ, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return path


class NoNetwork:
    """Takes no time."""

    size, identity = 224, "none"

    def features(self, pictures):
        return np.zeros((len(pictures), 4096), np.float32)


def report(what, run, n_clips=1, runs=RUNS):
    """Print clips per second of run(), which takes n_clips, by the clock and per second of processor time."""
    run()
    took = []
    for _ in range(runs):
        took.append(clock_and_processor(run))
    clock, processor = (statistics.median(column) / n_clips for column in zip(*took, strict=True))
    print(
        f"{what:<40}{1 / clock:9.2f} clips/s   {1 / processor:9.2f} per s of processor, "
        f"{processor * 1e3:8.2f} ms   "
        f"VoxCeleb2: {processor * N_VOXCELEB2 / 3600:7.1f} h",
        flush=True,
    )


def recogniser(folder):
    """A CTC model as large as wav2vec2-base."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (folder / "vocab.json").write_text(
        repr({x: i for i, x in enumerate(letters)})
        .replace('"\'"', "#")
        .replace("'", '"')
        .replace("#", '"\'"'),
        encoding="utf-8",
    )
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=len(letters))).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return Recogniser(folder, "cpu")


def features(folder, video):
    """Each feature by itself."""
    samples = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * RATE_HZ)).astype(np.float32)
    soundfile.write(folder / "a.wav", samples.clip(-1, 1), RATE_HZ)
    report("filterbanks", lambda: filterbanks(samples), runs=20)
    report("sound of the mp4 decoded", lambda: read_audio(video))
    source = Source("a", video=str(video))
    pictures = read_views([source], FPS, 224)[0][0]
    report(f"{len(pictures)} frames", lambda: read_views([source], FPS, 224))
    report("... by read_frames, every frame scaled", lambda: read_frames(video, short_side=224))
    for size in (32, 224):
        vgg, scaled = VGG(None, size, 64, "cpu"), np.ascontiguousarray(pictures[:, :size, :size])
        report(f"VGG-16, {len(scaled)} frames of {size} px", lambda vgg=vgg, x=scaled: vgg.features(x))
        del vgg
    (folder / "ctc").mkdir()
    asr = recogniser(folder / "ctc")
    report("wav2vec 2.0 base", lambda: asr.words("a", samples))


def whole(folder, video):
    """The way to the store, and back."""
    copies = [shutil.copy(video, folder / f"{k}.mp4") for k in range(8)]  # of one file, each clip is a part
    sources = [Source(f"{k}", video=str(path), words=[("word", None, None)]) for k, path in enumerate(copies)]
    count = iter(range(100))

    def run():
        with contextlib.redirect_stdout(io.StringIO()):
            extract_clips(sources, None, NoNetwork(), FPS, folder / f"s{next(count)}", Extraction(batch=4))

    report("extract without networks", run, len(sources))
    rng = np.random.default_rng(0)
    n_words, n_audio, n_video = round(SECONDS * WORDS_PER_S), round(SECONDS * 20), round(SECONDS * FPS)
    audio, video = rng.normal(size=(n_audio, 200)), rng.normal(size=(n_video, 4096))
    arrays = {
        "audio": audio.astype(np.float16),
        "video": video.astype(np.float16),
        "words": np.frombuffer("".join(f"w{k}\n" for k in range(n_words)).encode(), np.uint8),
        "word_times": (np.arange(n_words)[:, None] + [0, 1]).astype(np.float32) / WORDS_PER_S,
        "facts": np.float32([[SECONDS, 0, 0]]),
    }
    writer, rows = (
        StoreWriter(folder / "store", {"video_step_s": 1 / FPS}),
        {name: [len(x)] for name, x in arrays.items()},
    )
    for k in range(N_STORED):
        writer.add([f"{k}"], arrays, rows)
    store, forms = writer.finish(), Counter(f"w{k}" for k in range(n_words))
    part = Part(store.ids, np.array(store.ids), np.zeros((N_STORED, 6), bool))
    stats = {"audio": (audio.mean(0), audio.std(0)), "video": (video.mean(0), video.std(0))}
    inputs, numbers = ("text", "audio", "video"), {form: k for k, form in enumerate(forms)}
    vectors = Vectors(forms, "", None)
    corpus = Corpus("x", (), store, {"train": part}, inputs, stats, vectors, numbers)
    data = Clips(corpus, "train", inputs, 0)

    def batch():
        return data.collate([data[i, None] for i in rng.integers(N_STORED, size=BATCH)])

    report(f"read at random, batches of {BATCH}", batch, BATCH, 20)
    data.change = partial(load_script("07_crossmodal_mosei.py").mask_words, share=0.15)
    report("... with words masked", batch, BATCH, 20)
    print(f"store: {sum(p.stat().st_size for p in store.folder.rglob('*')) / N_STORED / 1e3:.1f} kB per clip")


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        video = Path(sys.argv[1]) if len(sys.argv) > 1 else write_faces(folder / "clip.mp4")
        features(folder, video)
        whole(folder, video)


if __name__ == "__main__":
    main()
