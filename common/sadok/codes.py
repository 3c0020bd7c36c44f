"""Speech as codes, extracted once, and crops of codes or of spectrograms as data sets.

VQ-MAE-S is pretrained on indices of a VQ-VAE's codebook, 64 per frame of 20 ms (Sadok et al. 2023, Sec. 2.1).
They take 3.2 kB per second, 11.5 GB for 1,000 hours: extracted once, so that pretraining never touches audio.
N frames, T frames of a crop, B batch, S tokens, V of them visible and H hidden.
"""

import functools

import numpy as np
import torch

from common.extraction import Extraction, extract
from common.files import file_hash
from common.sadok.data import audio_paths, read_part
from common.sadok.vqvae import HOP, N_ROWS, RATE_HZ, cached_clip, power_spectrogram, read_clip
from common.store import Store
from common.training import best_weights

# ---- Extraction ----------------------------------------------------------------------------


def extract_codes(pretraining, base, vqvae, workers, max_problem_share):
    """Extract `codes` (N, 64) uint8 of all clips of a corpus, where they are not there yet.

    vqvae  VQVAE of the pretraining, on the device that computes
    workers, max_problem_share  as in extraction.Extraction
    """
    manifest = read_part(pretraining.data_root, base)
    clips = {turn.utterance_id: manifest.path(turn.audio) for turn in manifest.turns}
    seconds = sum(turn.duration_s for turn in manifest.turns)
    need_bytes = (seconds * RATE_HZ / HOP + len(clips)) * N_ROWS
    weights = file_hash(best_weights(pretraining.folder / "vqvae"))
    identity = {"vqvae": weights, "manifest": manifest.fingerprint()}

    def compute(batch):
        device = vqvae.mean.device
        codes = [vqvae.encode(power_spectrogram(samples.to(device))).cpu() for samples in batch]
        return {"codes": torch.cat(codes).numpy()}, [len(clip) for clip in codes]

    folder, how = pretraining.codes_folder(base), Extraction(64, workers, max_problem_share)
    return extract(clips, read_clip, compute, folder, identity, how, f"codes of {base}", need_bytes)


@functools.cache
def open_codes(folder):
    """The finished Store in a folder, opened once in this process."""
    return Store(folder)


# ---- Crops ---------------------------------------------------------------------------------


class Crops:
    """Crops of codes, a data set for training.fit and training.predict; an item is (codes (T, 64), label).

    clips     [(Store, utterance id)]
    n_frames  T; a shorter clip is repeated (the authors' wrap padding)
    random    True: from anywhere in the clip, where depends on the key's seed alone; False: from its start
    labels    (n,) class numbers; None = all 0
    """

    def __init__(self, clips, n_frames, random, labels=None):
        self.clips, self.n_frames, self.random = clips, n_frames, random
        self.ids = [name for _, name in clips]
        self.labels = np.zeros(len(clips), np.int64) if labels is None else np.asarray(labels)
        self.lengths = np.ones(len(clips), np.uint8)  # all crops are equally long

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, key):
        """key: (index, seed); the seed, a tuple of integers, is read where crops are random."""
        index, seed = key
        store, name = self.clips[index]
        codes = store.rows(name, "codes")
        spare = max(0, len(codes) - self.n_frames)
        start = np.random.default_rng(seed).integers(spare + 1) if self.random else 0
        frames = (start + np.arange(self.n_frames)) % len(codes)
        return self.read(index, codes, frames), int(self.labels[index])

    def read(self, index, codes, frames):
        return torch.from_numpy(codes[frames])  # (T, 64)

    def collate(self, items):
        """A batch: "x" (B, T, 64) codes or (B, T, 513) powers, and "labels" (B,)."""
        crops, labels = zip(*items)
        return {"x": torch.stack(crops), "labels": torch.tensor(labels)}


class Powers(Crops):
    """The same crops of power spectrograms, what SpecMAE reads; an item is (power (T, 513), label)."""

    def __init__(self, paths, *crops):
        super().__init__(*crops)
        self.paths = paths

    def read(self, index, codes, frames):
        return power_spectrogram(cached_clip(self.paths[index]), torch.from_numpy(frames))


def crops_of(network, turns, pretraining, random=False, label_of=None):
    """Crops of (corpus, Turn) pairs for a network; clips without codes are left out, for SpecMAE too.

    label_of  {utterance id: class number}
    """
    stores = {base: open_codes(pretraining.codes_folder(base)) for base in {base for base, _ in turns}}
    turns = [(base, turn) for base, turn in turns if turn.utterance_id in stores[base]]
    clips = [(stores[base], turn.utterance_id) for base, turn in turns]
    labels = label_of and [label_of[turn.utterance_id] for _, turn in turns]
    if network.kind == "vqmae":
        return Crops(clips, network.n_frames, random, labels)
    return Powers(audio_paths(pretraining.data_root, turns), clips, network.n_frames, random, labels)


class Masked:
    """Crops, `times` over in an epoch, and their masks; both depend on the key's seed and number alone.

    mask  mask(rng) -> numbers of the visible (V,) and of the hidden tokens (H,); rng a numpy Generator
    """

    def __init__(self, crops, mask, times=1):
        self.crops, self.mask, self.lengths = crops, mask, np.ones(times * len(crops), np.uint8)

    def __getitem__(self, key):
        number, seed = key  # seed None outside training: the same mask each time
        x, _ = self.crops[number % len(self.crops), seed]
        return x, *map(torch.from_numpy, self.mask(np.random.default_rng(seed or (0, number))))

    def collate(self, items):
        x, visible_at, hidden_at = (torch.stack(part) for part in zip(*items))
        return {"x": x, "visible_at": visible_at, "hidden_at": hidden_at}  # (B, T, D'), (B, V), (B, H)
