"""What 05 reads: prepared corpora and parts of them, their folds, and crops of spectrograms beside those of codes."""

from dataclasses import replace

import numpy as np
import torch

from common import splits
from common.errors import UserError
from common.manifest import Manifest, read_manifest
from common.media import read_audio
from common.sadok.vqvae import HOP, normalise_peak, power_spectrogram

# ---- Corpora -------------------------------------------------------------------------------

PARTS = ("speech", "song", "disgust")
DISGUST = {"neu": "neutral", "hap": "happy", "ang": "angry", "dis": "disgusted"}  # Sec. 3.1.3


def read_part(data_root, name):
    """The Manifest of a prepared corpus, or of a part of it: "ravdess:song", "iemocap:disgust"; turns with audio only.

    Its corpus is named with an underscore, "ravdess_song", as a folder. Raises UserError where there is no such turn.
    """
    base, _, part = name.partition(":")
    if part and part not in PARTS:
        raise UserError(f"{name}: unknown part; choose {', '.join(PARTS)} after the colon, or nothing")
    whole = read_manifest(data_root, base)
    turns, classes = [turn for turn in whole.turns if turn.audio], whole.classes
    if part in ("speech", "song"):
        turns = [turn for turn in turns if turn.extra.get("channel") == part]
        classes = tuple(label for label in classes if any(turn.label == label for turn in turns))
    elif part == "disgust":
        turns = [replace(turn, label=DISGUST.get(turn.extra.get("raw_label"), "")) for turn in turns]
        classes = tuple(DISGUST.values())
    if not turns:
        raise UserError(
            f"{whole.folder}/manifest.csv: no turn with audio for {name}; prepare it by 01_prepare_data.py"
        )
    return Manifest(name.replace(":", "_"), whole.folder, classes, turns)


class Corpus:
    """An emotional corpus: labelled turns with audio, and who trains, validates and tests; c: the constants of 05."""

    def __init__(self, c, name):
        self.base, self.manifest = name.partition(":")[0], read_part(c.DATA_ROOT, name)
        self.turns, self.name = self.manifest.labelled, self.manifest.corpus
        self.folds_of = {
            seed: splits.make_folds(self.manifest, c.N_GROUPS, c.VALIDATE_ON, c.SELECT_ON, seed)
            for seed in c.SEEDS
        }
        self.folds = self.folds_of[c.SEEDS[0]]
        self.protocol = splits.protocol_text(self.manifest, self.folds, c.VALIDATE_ON, c.SELECT_ON)
        self.row = {turn.utterance_id: i for i, turn in enumerate(self.turns)}
        self.y = np.array([self.manifest.classes.index(turn.label) for turn in self.turns])
        self.speakers = np.array([turn.speaker for turn in self.turns])
        self.tested = [np.array([self.row[turn.utterance_id] for turn in fold.test]) for fold in self.folds]


# ---- Clips ---------------------------------------------------------------------------------


class Memory:
    """Tensors kept up to a number of GB, here decoded clips and their first powers; all data sets of a run share it."""

    def __init__(self, memory_gb):
        self.left_bytes, self.kept = memory_gb * 1e9, {}

    def get(self, key, make):
        """The tensor kept under a key, else what make() returns, which is kept where there is room for it."""
        if key in self.kept:
            return self.kept[key]
        tensor = make()
        if tensor.nbytes <= self.left_bytes:
            self.kept[key] = tensor
            self.left_bytes -= tensor.nbytes
        return tensor


def read_samples(path):
    """Samples (n,) of a clip with their peak at 1. Raises MediaError."""
    return torch.from_numpy(normalise_peak(read_audio(path)))


class Powers:
    """Power spectra of clips, what SpecMAE reads; a data set as codes.Crops.

    paths     audio files; n_frames, random, labels as for Crops
    memory    Memory
    """

    def __init__(self, paths, n_frames, random, labels, memory):
        self.paths, self.n_frames, self.random, self.labels, self.memory = (
            paths,
            n_frames,
            random,
            labels,
            memory,
        )
        self.lengths = np.ones(len(paths), np.uint8)

    def __getitem__(self, key):
        index, seed = key
        path = self.paths[index]
        power = (
            self.crop(path, seed)
            if self.random
            else self.memory.get((path, self.n_frames), lambda: self.crop(path, None))
        )
        return power, 0 if self.labels is None else int(self.labels[index])

    def crop(self, path, seed):
        """(T, 513) powers from a random frame on, or, without a seed, from the first."""
        samples = self.memory.get(path, lambda: read_samples(path))
        n_frames = 1 + len(samples) // HOP
        spare = max(0, n_frames - self.n_frames)
        start = 0 if seed is None else int(np.random.default_rng(seed).integers(spare + 1))
        return power_spectrogram(samples, (start + torch.arange(self.n_frames)) % n_frames)  # (T, 513)

    def collate(self, items):
        return {
            "power": torch.stack([power for power, _ in items]),  # (B, T, 513)
            "labels": torch.tensor([label for _, label in items]),
        }


class Repeated:
    """A data set that is gone through several times in an epoch, for corpora of few clips."""

    def __init__(self, dataset, times):
        self.dataset, self.times, self.collate = dataset, times, dataset.collate
        self.lengths = np.tile(dataset.lengths, times)

    def __getitem__(self, key):
        index, seed = key
        return self.dataset[index % len(self.dataset.lengths), seed]
