"""A prepared corpus of invented dialogues with tiny random WavLM and BERT: six speakers, 48 turns."""

from pathlib import Path

import numpy as np
import torch

from common.demo.checkpoints import SIZES, makers
from common.inputs import RATE_HZ
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav

CLASSES = ("neutral", "happy", "angry", "sad")
WORDS = ("well fine", "great news today", "stop that now will you", "i miss her")  # by class
MODELS = {"audio": "wavlm-large", "text": "bert-base-uncased"}
N_TURNS = 8  # per dialogue, of which the fourth is outside the classes


def write_checkpoints(folder):
    """Tiny WavLM and BERT in <folder>/<last part of the hub name>/; returns the folder."""
    for number, name in enumerate(MODELS.values()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            model, processor = makers()[name](SIZES["tiny"], list(WORDS))
        model.save_pretrained(Path(folder) / name)
        processor.save_pretrained(Path(folder) / name)
    return Path(folder)


def write_corpus(root, audio=True, corpus="demo_iemocap"):
    """The corpus below <root>/prepared/<corpus>: per session an improvised and a scripted dialogue.

    audio  whether there is any; the very first turn lasts 50 ms, less than one step of the tiny WavLM
    Returns the Manifest.
    """
    folder, rng, turns = Path(root) / "prepared" / corpus, np.random.default_rng(0), []
    for dialogue in range(6):
        session, style = f"Ses0{dialogue // 2 + 1}", ("improvised", "scripted")[dialogue % 2]
        for i in range(N_TURNS):
            c = int(rng.integers(4)) if i > 3 else (i + dialogue) % 4  # every class in every dialogue
            text = f"{WORDS[c]} {WORDS[int(rng.integers(4))]}"[: 8 + 3 * i]
            turn = Turn(
                f"{session}_{style[:3]}_{i}",
                f"{session}_{style}",
                i,
                f"{session}_{'FM'[(i // 2) % 2]}",
                session,
                i,
                i + 1,
                text,
                "" if i == 3 else CLASSES[c],
                extra={"style": style},
            )
            if audio:
                turn.audio = f"audio/{turn.utterance_id}.wav"
                seconds = 0.05 if not turns else rng.uniform(0.45, 0.9)
                write_wav(
                    folder / turn.audio,
                    rng.normal(0, 0.05 * (1 + c), int(seconds * RATE_HZ)).astype(np.float32),
                )
            turns.append(turn)
    manifest = Manifest(corpus, folder, CLASSES, turns)
    write_manifest(manifest)
    return manifest
