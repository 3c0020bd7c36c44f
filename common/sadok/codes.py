"""Speech as codes, extracted once, and crops of codes or of spectrograms as data sets.

VQ-MAE-S is pretrained on indices of a VQ-VAE's codebook, 64 per frame of 20 ms (Sadok et al. 2023, Sec. 2.1).
They take 3.2 kB per second, 11.5 GB for 1,000 hours: extracted once, so that pretraining never touches audio.
N frames, T frames of a crop, B batch, S tokens, V of them visible and H hidden.
"""

import functools

import numpy as np
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from torchaudio.functional import melscale_fbanks

from common.extraction import Extraction, extract
from common.files import file_hash
from common.sadok.data import audio_paths, read_part
from common.sadok.vqvae import HOP, N_BINS, N_ROWS, RATE_HZ, cached_clip, power_spectrogram, read_clip
from common.store import Store
from common.training import best_weights

SVM_C = (0.1, 1.0, 10.0, 100.0)
COUNTED_CLIPS = 2000  # whose codes are counted for guesses

open_codes = functools.cache(Store)  # a folder's, once in this process

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
    identity = {"vqvae": weights, "manifest": manifest.fingerprint(), "precision": "fp32 without TF32"}

    def compute(batch):
        codes = [vqvae.encode(power_spectrogram(x.to(vqvae.mean.device))).cpu() for x in batch]
        return {"codes": torch.cat(codes).numpy()}, [len(clip) for clip in codes]

    folder, how = pretraining.codes_folder(base), Extraction(64, workers, max_problem_share)
    return extract(clips, read_clip, compute, folder, identity, how, f"codes of {base}", need_bytes)


# ---- Crops ---------------------------------------------------------------------------------


class Crops:
    """Crops of codes "x" (T, 64) and "labels", a data set for training.fit and training.predict.

    clips     [(Store, utterance id)]
    n_frames  T; a shorter clip is repeated (the authors' wrap padding)
    random    True: from anywhere in the clip, where depends on the key's seed alone; False: from its start
    labels    (n,) class numbers; None = all 0
    """

    collate = staticmethod(default_collate)

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
        codes = self.codes(index)
        spare = max(0, len(codes) - self.n_frames)
        start = np.random.default_rng(seed).integers(spare + 1) if self.random else 0
        frames = (start + np.arange(self.n_frames)) % len(codes)
        return {"x": self.read(index, codes, frames), "labels": int(self.labels[index])}

    def codes(self, index):
        """Those of a whole clip (N, 64)."""
        store, name = self.clips[index]
        return np.asarray(store.rows(name, "codes"))  # a view of a memory map is slow to index

    def read(self, index, codes, frames):
        return torch.from_numpy(codes[frames])  # (T, 64)

    def features(self, index):
        """How often each code occurs in every four rows of a whole clip, for an SVM: (16 * 256,)."""
        groups = self.codes(index).reshape(-1, 16, 4).swapaxes(0, 1)
        return np.concatenate([np.bincount(group.ravel(), minlength=256) / group.size for group in groups])


class Powers(Crops):
    """The same crops of power spectrograms, what SpecMAE reads: "x" (T, 513)."""

    def __init__(self, paths, *crops):
        super().__init__(*crops)
        self.paths = paths

    def read(self, index, codes, frames):
        return power_spectrogram(cached_clip(self.paths[index]), torch.from_numpy(frames))

    def features(self, index):
        """Statistics over time of the log-mel spectrum of a whole clip, for an SVM: (200,)."""
        power = power_spectrogram(cached_clip(self.paths[index]))
        mel = (power @ melscale_fbanks(N_BINS, 0, 8000, 40, RATE_HZ) + 1e-5).log()  # (N, 40)
        quantiles = mel.quantile(torch.tensor([0.1, 0.9]), 0).flatten()
        return torch.cat([mel.mean(0), mel.std(0), quantiles, mel.diff(dim=0).std(0)]).numpy()


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

    collate = staticmethod(default_collate)  # x (B, T, D'), visible_at (B, V), hidden_at (B, H)

    def __init__(self, crops, mask, times=1):
        self.crops, self.mask, self.lengths = crops, mask, np.ones(times * len(crops), np.uint8)

    def __getitem__(self, key):
        number, seed = key  # seed None outside training: the same mask each time
        visible_at, hidden_at = self.mask(np.random.default_rng(seed or (0, number)))
        x = self.crops[number % len(self.crops), seed]["x"]
        return {"x": x, "visible_at": visible_at, "hidden_at": hidden_at}


def fold_sets(network, corpus, fold, pretraining, random):
    """{"train", "valid", "test": labelled crops} of a fold; random: whether those to train on are."""
    sets = {}
    for part in ("train", "valid", "test"):
        turns = [(corpus.base, turn) for turn in getattr(fold, part)]
        sets[part] = crops_of(network, turns, pretraining, random and part == "train", corpus.class_of)
    return sets


def guess_codes(network, pretraining):
    """Guesses of the codes of held-out speakers that need no network: (nats, share found).

    The nats are of how often training speakers have each code in each row; the share, of those that are
    the same as in the frame before.
    """
    clips = []
    for turns in pretraining.turns():
        crops = crops_of(network, turns[:: 1 + len(turns) // COUNTED_CLIPS], pretraining)
        clips.append([crops.codes(i) + 256 * np.arange(N_ROWS) for i in range(len(crops))])  # by row and code
    train, held_out = clips
    counts = 1 + np.bincount(np.concatenate(train).ravel(), minlength=256 * N_ROWS).reshape(N_ROWS, 256)
    log_p = np.log(counts / counts.sum(1, keepdims=True)).ravel()
    found = np.concatenate([(codes[1:] == codes[:-1]).ravel() for codes in held_out])
    return -log_p[np.concatenate(held_out)].mean(), found.mean()


# ---- A head and baselines that are not in the paper -----------------------------------------


class StatisticsHead(nn.Module):
    """Statistics of all tokens but CLS, standardised, then dropout and a linear layer.

    by_row  False: their mean, after MAE [10]; True: mean and sd over time of each row along frequency
    """

    def __init__(self, by_row, dropout, network, n_classes):
        super().__init__()
        n = 2 * network.grid[1] * network.units if by_row else network.units
        self.by_row, self.dropout, self.grid = by_row, dropout, network.grid
        self.norm, self.linear = nn.BatchNorm1d(n, affine=False), nn.Linear(n, n_classes)

    def forward(self, x):
        """x (B, 1 + S, w), CLS first -> logits (B, C)."""
        x, norm = x[:, 1:].unflatten(1, self.grid), self.norm  # (B, n_t, n_d, w)
        sd = (x.var(1, unbiased=False) + 1e-6).sqrt()  # (B, n_d, w)
        x = torch.stack([x.mean(1), sd], 1).flatten(1) if self.by_row else x.mean((1, 2))
        if len(x) == 1:  # has no variance: standardised by what has been kept so far
            x = F.batch_norm(x, norm.running_mean, norm.running_var, eps=norm.eps)
        else:
            x = norm(x)
        return self.linear(F.dropout(x, self.dropout, self.training))


def classify_by_svm(sets, corpus, refit):
    """An SVM on `features` of {"train", "valid", "test": Crops}, whose C is chosen on "valid".

    refit  whether the chosen one is then fitted on "train" and "valid"
    Returns an outcome such as that of training.train_and_test; its "epochs" are the values of C.
    """
    x = {part: np.stack([crops.features(i) for i in range(len(crops))]) for part, crops in sets.items()}
    x = {part: corpus.normalised(found, sets[part].ids) for part, found in x.items()}
    y = {part: crops.labels for part, crops in sets.items()}
    models = [make_pipeline(StandardScaler(), SVC(C=c)).fit(x["train"], y["train"]) for c in SVM_C]
    score = {part: [model.score(x[part], y[part]) for model in models] for part in ("valid", "test")}
    best = models[int(np.argmax(score["valid"]))]
    if refit:
        best.fit(*(np.concatenate([of["train"], of["valid"]]) for of in (x, y)))
    logits = np.eye(len(corpus.manifest.classes))[best.predict(x["test"])]
    epochs = [{"accuracy": valid, "test_accuracy": test} for valid, test in zip(*score.values())]
    tested = {"ids": sets["test"].ids, "outputs": {"logits": logits.tolist()}}
    return {"history": {"log": epochs}, "tests": {"test": tested}}
