"""A corpus of two kinds of tones, prepared, and sizes with which all of 05 takes seconds on it."""

import numpy as np

from common.files import make_folder
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav

SIZES = "--N_GROUPS=3 --SEEDS=0 --N_RESAMPLES=50 --WORKERS=0 --PRECISION=no --DECODER_DEPTH=1 --RATIO=0.5"
SIZES += " --N_CODES=16"
SIZES += " --VQVAE_EPOCHS=1 --VQVAE_STEPS=4 --VQVAE_BATCH_SIZE=4 --VQVAE_FRAMES=4 --N_FRAMES=20 --WIDTH=16"
SIZES += " --TOKEN_SIZE=10x32 --DEPTH=1 --SPEC_PATCH=10x171 --SPEC_WIDTH=16 --PRETRAIN_BATCH_SIZE=16"
SIZES += " --PRETRAIN_EPOCHS=1 --PRETRAIN_WARMUP_EPOCHS=0 --FINETUNE_EPOCHS=1 --FINETUNE_WARMUP_EPOCHS=0"


def write_corpus(root, name, n_speakers, n_clips):
    """<root>/data/prepared/<name>: clips of half a second, labelled "low" or "high"."""
    folder, turns, time = make_folder(root / "data" / "prepared" / name), [], np.arange(8000) / 16000
    for speaker, clip in np.ndindex(n_speakers, n_clips):
        noise = np.random.default_rng((speaker, clip)).normal(0, 0.05, len(time))
        samples = 0.3 * np.sin(2 * np.pi * (200 + 150 * (clip % 2)) * time) + noise
        file, label = f"{name}_s{speaker}_{clip}", ("low", "high")[clip % 2]
        write_wav(folder / f"{file}.wav", samples.astype(np.float32), 16000)
        turns.append(Turn(file, file, 0, f"s{speaker}", "", 0.0, 0.5, label=label, audio=f"{file}.wav"))
    write_manifest(Manifest(name, folder, ("low", "high"), turns))


def options(corpus="tiny", pretrain="speech"):
    """Words of 05's command line for a run in a folder that has data/prepared/<corpus> and <pretrain>."""
    where = f"--DATA_ROOT=data --RESULTS_ROOT=results --CORPUS={corpus} --TABLE_5_CORPORA={corpus}"
    return [*where.split(), f"--PRETRAIN_CORPORA={pretrain}", *SIZES.split()]
