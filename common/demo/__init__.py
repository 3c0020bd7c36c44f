"""Synthetic corpora and checkpoints for the demos and the tests; README.md tells how they are made."""

import math
from pathlib import Path

from common.files import read_json, write_json

SIZES = {  # {corpus: {argument of write_demo_<corpus>: (usual, least, most)}}
    # Of five sessions; about a fifth of the turns are outside the four classes.
    "demo_iemocap": {"n_dialogues_per_session": (8, 1, 16), "turns_per_dialogue": (18, 1, 100)},
    # Clips of an actor, in speech and in song; neutral, which is never strong, has at most 4.
    "demo_ravdess": {"n_actors": (18, 1, 24), "clips_per_emotion": (2, 1, 8)},
    "demo_emodb": {"clips_per_speaker": (12, 1, 70)},  # of ten speakers
    "demo_voxceleb2": {"n_speakers": (40, 1, 10000), "clips_per_speaker": (3, 1, 10000)},  # 4 to 8 s long
    "demo_cremad": {"n_actors": (24, 1, 91), "clips_per_actor": (18, 1, 82)},  # spread evenly over emotions
    "demo_ravdess_av": {"n_actors": (8, 1, 24), "clips_per_emotion": (2, 1, 8)},
    # Sentences of a talker, plain and again in noise.
    "demo_lombard": {"n_talkers": (8, 1, 54), "sentences_per_condition": (10, 1, 50)},
    "demo_audioset": {"n_clips": (96, 1, 20000)},
    # Three folds need 8 videos, one more is in no fold; segments per video on average, 1 to 8 s long.
    "demo_mosei": {"n_videos": (80, 8, 10000), "segments_per_video": (8, 1, 100)},
    "demo_voxceleb2_av": {"n_speakers": (60, 1, 10000), "clips_per_speaker": (8, 1, 10000)},  # 2 to 8 s long
}
# Whose layout a corpus has: a module of common/corpora.
SYNTHETIC = {corpus: corpus.removeprefix("demo_").removesuffix("_av") for corpus in SIZES}


def sizes(corpus, size):
    """{argument: number} of a corpus with about `size` times its usual recordings, within the limits."""
    factor = size ** (1 / len(SIZES[corpus]))
    scaled = {name: math.floor(factor * usual + 0.5) for name, (usual, _, _) in SIZES[corpus].items()}
    return {name: min(max(scaled[name], least), most) for name, (_, least, most) in SIZES[corpus].items()}


def write(corpus, root, seed, size=1.0, workers=0):
    """Write a synthetic corpus where it is absent or was made with other settings, as <root>.json tells.

    corpus   key of SYNTHETIC
    root     its folder, in the layout of the genuine release
    size     how many recordings there are, as a factor
    workers  processes, 0 = none; the files do not depend on it
    Raises UserError where eSpeak NG cannot be loaded or the folder cannot be written.
    """
    root, numbers = Path(root), sizes(corpus, size)
    note, made_with = root.with_name(f"{root.name}.json"), {"corpus": corpus, "seed": seed, **numbers}
    if root.is_dir() and note.exists() and read_json(note) == made_with:
        return
    print(f"writing the synthetic corpus to {root} ...", flush=True)
    from common.demo import av, iemocap, mosei, speech  # here: a genuine corpus needs none

    writers = vars(iemocap) | vars(speech) | vars(av) | vars(mosei)
    writers[f"write_{corpus}"](root, seed, **numbers, workers=workers)
    write_json(note, made_with)


def write_checkpoints(folder, texts, size, seed):
    """Write models with random weights, "tiny" or "small" ones, that know the words of these texts."""
    from common.demo import checkpoints  # imports transformers

    checkpoints.write_checkpoints(folder, texts, size, seed)
