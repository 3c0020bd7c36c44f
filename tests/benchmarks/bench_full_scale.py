"""VoxCeleb2 at its full size without its recordings: reading the manifest, opening the codes, drawing crops.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_full_scale.py [--clips=1092009] [--folder=.]

Writes a manifest and a sparse store of codes (zeros, which take no room on the disk) and takes them through
what 05 does before and between its steps. Prints seconds, memory, crops per second of one process, and the
disk and the hours that the paper's run needs.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import clock_and_processor, load_before, resident_gb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest adds the root

from conftest import load_script

from common.files import make_folder, write_csv, write_json
from common.manifest import Manifest, Turn, write_manifest
from common.sadok import data
from common.sadok.codes import Masked, crops_of

SPEAKERS, CLIPS = 5994, 1_092_009  # of VoxCeleb2's development part
CLIP_S = 7.8  # on average
H100_CROPS = 12_000  # per second, at 400 TFLOP/s and the operations that bench_memory.py counts


def timed(what, call):
    """Call, and print the seconds and the memory that the process gains."""
    found, before = [], resident_gb("VmRSS")
    clock, processor = clock_and_processor(lambda: found.append(call()))
    gained = resident_gb("VmRSS") - before
    print(f"{what:<40} {clock:5.1f} s, of the processor {processor:5.1f} s, {gained:5.2f} GB")
    return found[0]


def write(root, n_clips, seconds, n_rows):
    """A prepared corpus and its store of codes; returns the number of frames."""
    names = [f"id{i % SPEAKERS:05d}_{i // SPEAKERS:06d}" for i in range(n_clips)]
    turns = [Turn(name, name, 0, name[:7], "", 0.0, seconds, audio=f"{name}.wav") for name in names]
    write_manifest(Manifest("voxceleb2", make_folder(root / "prepared" / "voxceleb2"), (), turns))
    pretraining = data.Pretraining(str(root), ("voxceleb2",), 0)
    folder, frames = make_folder(pretraining.codes_folder("voxceleb2")), int(seconds * 50)
    rows = ({"utterance_id": name, "start": i * frames, "rows": frames} for i, name in enumerate(names))
    write_csv(folder / "index.csv", rows, ("utterance_id", "start", "rows"))
    write_json(folder / "meta.json", {"complete": True})
    with open(folder / "codes.npy", "wb") as file:
        shape = n_clips * frames, n_rows
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + shape[0] * shape[1])
    return pretraining, shape[0]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--folder", help="where a temporary folder is made")
    parser.add_argument("--batches", type=int, default=20)
    args = parser.parse_args()
    busy, script = load_before(), load_script("05_pretrain_vqmae.py")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        pretraining, n_frames = write(Path(folder), args.clips, CLIP_S, script.N_ROWS)
        timed("manifest of 05", lambda: data.read_part(pretraining.data_root, "voxceleb2"))
        train, _ = timed("speakers, training and held out", pretraining.turns)
        script.TABLES, script.BEYOND_PAPER = ("2",), ()
        network = script.plan()[0]["2"]["Patch-tf"].network
        what = "codes and crops of all training clips"
        crops = timed(what, lambda: crops_of(network, train, pretraining, True))
        masked = Masked(crops, lambda rng: script.random_masking(network, rng))
        order, size = np.random.default_rng(0).permutation(len(crops)), script.PRETRAIN_BATCH_SIZE

        def draw():
            for at in order[: args.batches * size].reshape(-1, size):
                masked.collate([masked[int(i), (0, 0, int(i))] for i in at])

        draw()  # so that the pages are in memory, as after a first epoch
        seconds, processor = clock_and_processor(draw)
    rates = [f"{args.batches * size / s:,.0f}" for s in (seconds, processor)]
    print(f"crops per second of one process: {rates[0]} (of its processor time {rates[1]}){busy}")
    epochs, crops_per_epoch = script.PRETRAIN_EPOCHS, len(crops) * script.CROPS_PER_CLIP
    print(
        f"codes on the disk: {n_frames * script.N_ROWS / 1e9:.0f} GB; {epochs} epochs: "
        f"{epochs * crops_per_epoch / H100_CROPS / 3600:.0f} hours at {H100_CROPS:,} crops per second"
    )


if __name__ == "__main__":
    main()
