"""What 06 trains on: stored features of clips as tensors, with the clips that were never there, batches, test masks."""

from dataclasses import dataclass

import numpy as np
import torch

from common.chochlakis.clips import read_features
from common.chochlakis.mae import draw_bursts, draw_masks, draw_mixture, n_hidden_at
from common.errors import UserError
from common.files import atomic_path, make_folder


@dataclass
class Part:
    """Recordings of one part of a split, or of an unlabelled corpus.

    turns         their Turns, in the order of the rows
    audio, video  (R, N, D) float32
    missing       (R, 2, N) bool, clips that were never there: the recording lacks the modality
    labels        (R,) int64; empty where the corpus has none
    """

    turns: list
    audio: torch.Tensor
    video: torch.Tensor
    missing: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.turns)

    @property
    def n_clips(self):
        return self.audio.shape[1]

    @property
    def speakers(self):
        return np.array([turn.speaker for turn in self.turns])

    @property
    def size(self):
        """D."""
        return self.audio.shape[2]

    @property
    def mean(self):
        """Mean (2, D) of the clips that are there; 0 for a modality that nobody has."""
        there = ~self.missing  # (R, 2, N)
        return torch.stack(
            [
                features[there[:, m]].mean(0) if there[:, m].any() else torch.zeros(self.size)
                for m, features in enumerate((self.audio, self.video))
            ]
        )


def read_part(store, turns, classes):
    """The Part of those of the turns that a store of clip features has. Raises UserError if there are none."""
    found = read_features(store, turns)
    if not found.turns:
        raise UserError(
            f"{store.folder}: none of {len(turns):,} recordings could be read; see problems.csv there"
        )
    missing = np.stack([~found.has_audio, ~found.has_video], 1)[..., None].repeat(found.audio.shape[1], 2)
    labels = [classes.index(turn.label) for turn in found.turns] if classes else []
    return Part(
        found.turns,
        torch.from_numpy(found.audio),
        torch.from_numpy(found.video),
        torch.from_numpy(missing),
        torch.tensor(labels, dtype=torch.int64),
    )


class Hiding:
    """Batches for the masked autoencoder: features and which of their clips are hidden, drawn anew in every epoch.

    part  Part
    levels_at  epoch -> counts of hidden clips, of which each recording gets one for both modalities
    """

    def __init__(self, part, levels_at):
        self.part, self.levels_at, self.lengths = part, levels_at, np.ones(len(part), np.uint8)

    def __getitem__(self, key):
        return key

    def collate(self, keys):
        rows, (seed, epoch, _) = torch.tensor([index for index, _ in keys]), keys[0][1]
        part, generator = self.part, generator_of(seed, epoch, int(rows[0]))
        hidden = draw_mixture(len(rows), part.n_clips, self.levels_at(epoch), 1, generator)[0]
        return {
            "audio": part.audio[rows],
            "video": part.video[rows],
            "hidden": hidden,
            "missing": part.missing[rows],
        }


class Imputed:
    """Batches for a classifier: features of which some were imputed, under another of the stored masks in every epoch.

    x       (M, R, N, n) features under M masks; M = 1 where nothing is hidden
    labels  (R,)
    """

    def __init__(self, x, labels):
        self.x, self.labels, self.lengths = x, labels, np.ones(len(labels), np.uint8)

    def __getitem__(self, key):
        return key

    def collate(self, keys):
        rows, (seed, epoch, _) = torch.tensor([index for index, _ in keys]), keys[0][1]
        masks = torch.randint(len(self.x), (len(rows),), generator=generator_of(seed, epoch, int(rows[0])))
        return {"x": self.x[masks, rows], "labels": self.labels[rows]}


def draw_test_masks(n, n_clips, n_masks, seed, beyond):
    """{setting: hidden (M, R, 2, N)}, the masks of R = n test recordings, each drawn by itself.

    A setting is ("level", k), k clips of each modality; `beyond` the paper also ("unequal", k_audio, k_video) and
    ("burst", k), neighbours.
    """

    def generator(*numbers):
        return generator_of(seed, n_clips, *numbers)

    masks = {}
    for k in range(1, n_clips):
        masks["level", k] = draw_masks(n, n_clips, k, k, n_masks, generator(0, k))
        if beyond:
            masks["burst", k] = draw_bursts(n, n_clips, k, n_masks, True, generator(1, k))
    if beyond:
        for audio in range(n_clips):
            for video in range(n_clips):
                masks["unequal", audio, video] = draw_masks(
                    n, n_clips, audio, video, n_masks, generator(2, audio, video)
                )
    return masks


def write_masks(path, turns, masks):
    """Write masks of `draw_test_masks` as npz: "ids" of the turns, and "level_2" etc. with packed bits of clips."""
    make_folder(path.parent)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            ids=np.array([turn.utterance_id for turn in turns]),
            **{
                "_".join(map(str, name)): np.packbits(hidden.numpy(), axis=-1)
                for name, hidden in masks.items()
            },
        )


def generator_of(*numbers):
    """A torch.Generator seeded from a tuple of integers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def curriculum(step, n_clips):
    """levels_at of Hiding for Section 3.3: one level per epoch, from one clip to all but one."""
    return lambda epoch: (n_hidden_at(epoch, step, n_clips),)


def count_of(share, n_clips):
    """The number of clips nearest to a share of them, halves upwards, at least one and not all: 0.7 of 5 -> 4."""
    return min(max(1, int(share * n_clips + 0.5)), n_clips - 1)
