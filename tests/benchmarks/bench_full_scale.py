"""VoxCeleb2 at its full size without its recordings: reading the manifest, opening a store, drawing batches.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_full_scale.py [--clips=1092009] [--folder=.]

Writes a manifest and sparse stores (zeros, which take no room on the disk, and random words) and takes them
through what 05 and 07 do before and between their steps. Prints seconds, memory, crops or clips per second of
one process, and the disk and the hours that the papers' runs need.
"""

import argparse
import sys
import tempfile
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from measure import clock_and_processor, load_before, resident_gb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest adds the root

from conftest import load_script

from common import splits
from common.files import make_folder, write_csv, write_json
from common.khare import data as khare_data
from common.khare.features import AUDIO_DIM, AUDIO_STEP_S, FACTS, VIDEO_DIM
from common.manifest import Manifest, Turn, read_manifest, write_manifest
from common.sadok import data
from common.sadok.codes import Masked, crops_of
from common.store import Store

SPEAKERS, CLIPS = 5994, 1_092_009  # of VoxCeleb2's development part
CLIP_S = 7.8  # on average
WORDS_PER_CLIP, VOCABULARY = 20, 88_000
H100_CROPS = 12_000  # per second, at 400 TFLOP/s and the operations that bench_memory.py counts


def timed(what, call):
    """Call, and print the seconds and the memory that the process gains."""
    found, before = [], resident_gb("VmRSS")
    clock, processor = clock_and_processor(lambda: found.append(call()))
    gained = resident_gb("VmRSS") - before
    print(f"{what:<40} {clock:5.1f} s, of the processor {processor:5.1f} s, {gained:5.2f} GB")
    return found[0]


def write(root, n_clips):
    """A prepared corpus; returns the names of its clips."""
    names = [f"id{i % SPEAKERS:05d}_{i // SPEAKERS:06d}" for i in range(n_clips)]
    turns = [Turn(name, name, 0, name[:7], "", 0.0, CLIP_S, audio=f"{name}.wav") for name in names]
    write_manifest(Manifest("voxceleb2", make_folder(root / "prepared" / "voxceleb2"), (), turns))
    return names


def write_store(folder, names, rows, meta):
    """The index of a store in which every clip has as many rows: {"": number}, or {"<array>_": number}."""
    header = ("utterance_id", *(f"{array}{end}" for array in rows for end in ("start", "rows")))
    places = ([(i * n, n) for n in rows.values()] for i in range(len(names)))
    lines = (dict(zip(header, (name, *chain(*place)))) for name, place in zip(names, places))
    write_csv(make_folder(folder) / "index.csv", lines, header)
    write_json(folder / "meta.json", {**meta, "complete": True})


def write_zeros(path, dtype, shape):
    """An array of zeros that takes no room; returns its bytes."""
    with open(path, "wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        size = shape[0] * shape[1] * np.dtype(dtype).itemsize
        file.truncate(file.tell() + size)
    return size


# ---- 05 ------------------------------------------------------------------------------------


def sadok(root, names, n_batches):
    script = load_script("05_pretrain_vqmae.py")
    pretraining, frames = data.Pretraining(str(root), ("voxceleb2",), 0), int(CLIP_S * 50)
    folder = pretraining.codes_folder("voxceleb2")
    write_store(folder, names, {"": frames}, {})
    size = write_zeros(folder / "codes.npy", "|u1", (len(names) * frames, script.N_ROWS))
    timed("manifest of 05", lambda: data.read_part(pretraining.data_root, "voxceleb2"))
    train, _ = timed("speakers, training and held out", pretraining.turns)
    script.TABLES, script.BEYOND_PAPER = ("2",), ()
    network = script.plan()[0]["2"]["Patch-tf"].network
    crops = timed(
        "codes and crops of all training clips", lambda: crops_of(network, train, pretraining, True)
    )
    masked = Masked(crops, lambda rng: script.random_masking(network, rng))
    report("crops", masked, len(crops), script.PRETRAIN_BATCH_SIZE, n_batches, size)
    hours = script.PRETRAIN_EPOCHS * len(crops) * script.CROPS_PER_CLIP / H100_CROPS / 3600
    print(f"{script.PRETRAIN_EPOCHS} epochs: {hours:.0f} hours at {H100_CROPS:,} crops per second")


def report(what, clips, n, batch_size, n_batches, size):
    """Draw batches of n items and print how many a second one process makes; size: bytes on the disk."""
    order = np.random.default_rng(0).permutation(n)

    def draw():
        for at in order[: n_batches * batch_size].reshape(-1, batch_size):
            clips.collate([clips[int(i), (0, 0, int(i))] for i in at])

    draw()  # so that the pages are in memory, as after a first epoch
    rates = [f"{n_batches * batch_size / s:,.0f}" for s in clock_and_processor(draw)]
    print(f"{what} per second of one process: {rates[0]} (of its processor time {rates[1]})")
    print(f"on the disk: {size / 1e9:.0f} GB")


# ---- 07 ------------------------------------------------------------------------------------


def khare(root, names, n_batches):
    script = load_script("07_crossmodal_mosei.py")
    folder, n, rng = root / "clips" / "voxceleb2" / "khare", len(names), np.random.default_rng(0)
    spelt = (
        np.array([f"w{i:05d}\n".encode() for i in range(VOCABULARY)]).view(np.uint8).reshape(VOCABULARY, -1)
    )
    words = spelt[np.minimum(rng.zipf(1.3, (n, WORDS_PER_CLIP)), VOCABULARY) - 1]  # (n, words, letters)
    times = CLIP_S / WORDS_PER_CLIP * np.arange(WORDS_PER_CLIP)[:, None] + (0, 0.3)
    arrays = {"words": words.reshape(-1), "word_times": np.tile(times.astype(np.float32), (n, 1))}
    arrays["facts"] = np.tile(np.array([CLIP_S, -0.1, 0], np.float32), (n, 1))
    assert len(FACTS) == arrays["facts"].shape[1]
    rows = {f"{name}_": len(array) // n for name, array in arrays.items()}
    rows |= {"audio_": round(CLIP_S / AUDIO_STEP_S), "video_": round(CLIP_S * script.FPS)}
    write_store(folder, names, rows, {"video_step_s": 1 / script.FPS})
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    widths = {"audio": AUDIO_DIM, "video": VIDEO_DIM}
    size = sum(
        write_zeros(folder / f"{name}.npy", "<f2", (n * rows[f"{name}_"], d)) for name, d in widths.items()
    )
    del words, arrays
    manifest = timed("manifest of 07", lambda: read_manifest(str(root), "voxceleb2"))
    store = timed("opening its store", lambda: Store(folder))
    nobody = splits.Fold("none", [], [], [])
    parts = timed("speakers", lambda: khare_data.other_turns(manifest, script.HELD_OUT, 0, nobody))
    parts = timed("English clips", lambda: khare_data.english(store, parts, script.MIN_SCORE))
    corpus = timed(
        "parts and statistics", lambda: khare_data.corpus_of(manifest, store, parts, script.MODALITIES)
    )
    timed("vocabulary and vectors", lambda: khare_data.give_vectors([corpus], None, "", root / "cache"))
    hide = partial(script.mask_words, share=script.HIDDEN_SHARE)
    clips = khare_data.Clips(corpus, "train", corpus.inputs, script.MAX_S, hide)
    report("clips", clips, len(clips), script.PRETRAIN_BATCH_SIZE, n_batches, size)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--folder", help="where a temporary folder is made")
    parser.add_argument("--batches", type=int, default=20)
    args = parser.parse_args()
    print(f"{args.clips:,} clips{load_before()}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        names = write(Path(folder), args.clips)
        sadok(Path(folder), names, args.batches)
        khare(Path(folder), names, args.batches)


if __name__ == "__main__":
    main()
