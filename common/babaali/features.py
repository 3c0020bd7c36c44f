"""Stored features and logits of every modality, seed and fold, in the order of a corpus' labelled turns.

    <root>/<modality>/[seed<k>/][<fold>/]{index.csv, features.npy[, logits.npy][, meta.json]}

A level in brackets that is absent is shared: the same features serve all seeds, or all folds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import UserError
from common.manifest import Manifest, corpus_name
from common.splits import has_official_split, speakers_of
from common.store import Store

ROUNDING = 1e-6  # of a float32 number, as a share of it
# Of a network's outputs, as a share of their size: ten times what differs between batches, by precision
BATCH_ROUNDING = {"no": 1e-4, "fp16": 5e-3, "bf16": 4e-2}


def features_folder(data_root, corpus, trained_on=""):
    """Where 03 stores the features of a corpus by its own models, or by those trained on another one."""
    name = corpus_name(corpus) + (f"_by_{corpus_name(trained_on)}" if trained_on else "")
    return Path(data_root) / "features" / name


@dataclass
class Parts:
    """Row numbers of the labelled turns that a classifier of a fold uses for what."""

    fit: np.ndarray  # it is fitted here while its settings are chosen
    choose: np.ndarray  # ... by the score here
    refit: np.ndarray  # fit and choose together: the final classifier
    test: np.ndarray


def divide(fold, turns):
    """The Parts of a fold in `turns`; without validation speakers every fourth training speaker chooses."""
    parts = {"fit": fold.train, "choose": fold.valid}
    if fold.is_selected_on_test:
        chosen = speakers_of(fold.train)[::4]
        parts = {"fit": [t for t in fold.train if t.speaker not in chosen]}
        parts["choose"] = [t for t in fold.train if t.speaker in chosen]
    parts |= {"refit": parts["fit"] + parts["choose"], "test": fold.test}
    row = {turn.utterance_id: i for i, turn in enumerate(turns)}
    return Parts(**{k: np.array([row[turn.utterance_id] for turn in part]) for k, part in parts.items()})


@dataclass
class StoredFeatures:
    """Where features lie, and what they must fit."""

    root: Path
    manifest: Manifest
    folds: list
    protocol: dict  # {"select_on": ..., "validate_on": ...}, as 03 wrote them
    out_of_fold: bool  # whether late fusion is also fitted on out-of-fold logits
    modalities: tuple  # of these, those without features are left out

    def __post_init__(self):
        wanted, self.modalities = self.modalities, self.having("index.csv")
        for absent in (m for m in wanted if m not in self.modalities):
            print(f"{absent}: no features in {self.root / absent}; left out")
        if not self.modalities:
            remedy = "run 03_extract_features.py on it, name another FEATURES_ROOT, or set PAPERS=li"
            raise UserError(f"{self.root}: no features of {', '.join(wanted)}; {remedy}")
        for m in (m for m in self.modalities if m not in self.having("meta.json")):
            print(f"{m}: not made by 03; from which texts or recordings, and by whose model, cannot be known")
        self.noises = sorted(path.name for path in self.root.glob("audio_*dB") if "audio" in self.modalities)
        self.with_logits = self.having("logits.npy")
        self.out_of_fold = self.out_of_fold and len(self.folds) > 1 and len(self.with_logits) > 1

    def having(self, name):
        return tuple(m for m in self.modalities if any((self.root / m).rglob(name)))

    def open(self, modality, seed, fold_name):
        """The store of a seed and fold, or the one that is shared; UserError where there is none."""
        base = self.root / modality
        for folder in (base / f"seed{seed}" / fold_name, base / fold_name, base / f"seed{seed}", base):
            if (folder / "index.csv").exists():
                return Store(folder)
        remedy = "run 03_extract_features.py for all SEEDS and folds"
        if fold_name.startswith("out_"):
            remedy = "run 02 and 03 with OUT_OF_FOLD=true, or 04 with OUT_OF_FOLD=false"
        raise UserError(f"{base}/seed{seed}/{fold_name}: absent; {remedy}")

    def weights(self, seed):
        """{modality: what identifies the weights that its encoders began with}, "" for a user's features."""
        return {m: self.open(m, seed, self.folds[0].name).meta.get("weights", "") for m in self.modalities}

    def read(self, seed, k):
        """What fold k knows: {"early", "late", "out-of-fold": {modality: (N, D)}}, NaN for absent turns.

        Where 03 added noise to the test turns' sound: "early audio_20dB" too, and so on.
        """
        data, tested = {"early": {}, "late": {}, "out-of-fold": {}}, self.folds[k].test
        for m in self.modalities:
            store = self.open(m, seed, self.folds[k].name)
            check_store(store, self.manifest, tested, self.protocol)
            data["early"][m] = read_rows(store, "features", self.manifest.labelled)
            if "trained" in store.meta:  # made by 03
                data["early"][m] = without_rounding(data["early"][m], store.meta["precision"])
            if m in self.with_logits:
                data["late"][m] = read_rows(store, "logits", self.manifest.labelled)
            if m in self.with_logits and self.out_of_fold:
                data["out-of-fold"][m] = self.out_of_fold_logits(m, seed, k, data["late"][m])
        for noise in self.noises:
            audio = self.in_noise(noise, seed, k, data["early"]["audio"])
            data[f"early {noise}"] = {**data["early"], "audio": audio}
        return data

    def in_noise(self, noise, seed, k, features):
        """Audio features (N, D), those of the test turns of fold k in noise."""
        store, clean = (self.open(name, seed, self.folds[k].name) for name in (noise, "audio"))
        check_same_model(store, clean, "run 03 with NOISE_SNR_DB again, or delete it")
        turns, mixed = self.manifest.labelled, features.copy()
        rows = divide(self.folds[k], turns).test
        mixed[rows] = read_rows(store, "features", [turns[i] for i in rows])
        return mixed

    def out_of_fold_logits(self, modality, seed, k, logits):
        """Logits (N, C) of which no turn's encoder saw the turn's group or test group k.

        Turns of group j get those of the encoder that left out j and k; test turns keep the fold's own.
        """
        turns, mixed = self.manifest.labelled, logits.copy()
        for j, other in enumerate(self.folds):
            if j != k:
                store = self.open(modality, seed, f"out_{min(j, k) + 1}_{max(j, k) + 1}")
                check_store(store, self.manifest, other.test + self.folds[k].test, {})
                own = {turn.utterance_id for turn in other.test}
                rows = [i for i, turn in enumerate(turns) if turn.utterance_id in own]
                mixed[rows] = read_rows(store, "logits", turns)[rows]
        return mixed


def check_store(store, manifest, tested, protocol):
    """Refuse features of another manifest or protocol, or of an encoder that learned from test speakers.

    tested    turns that are to be scored, or must be out of fold
    protocol  what meta.json must agree with; what it does not say is not compared
    """
    meta, again = store.meta, "run 02 and 03 again"
    if "manifest" in meta and meta["manifest"] != manifest.fingerprint():
        raise UserError(f"{store.folder}: made from another manifest.csv than there is now; {again}")
    for name, value in protocol.items():
        if meta.get(name, value) != value:
            made = f"{name.upper()}={meta[name]}"
            raise UserError(f"{store.folder}: made with {made}; run this with --{made}, or 02 and 03 again")
    seen = sorted(set(meta.get("train_speakers", ())) & set(speakers_of(tested)))
    if seen and not has_official_split(manifest):
        who = ", ".join(seen[:4])
        raise UserError(f"{store.folder}: its encoder was trained with test speakers ({who}); {again}")


def check_same_model(store, own, remedy):
    """UserError where 03 made one of two stores by other weights than the other."""
    if store.meta.get("trained") != own.meta.get("trained"):
        raise UserError(f"{store.folder}: by another model than {own.folder}; {remedy}")


def read_rows(store, name, turns, least=0.5):
    """The array `name` of a store in the order of `turns` (N, D), NaN for turns that it lacks.

    Raises UserError where less than a share of the ids match, or where a stored value is NaN or infinite.
    """
    if name not in store.arrays:
        raise UserError(f"{store.folder}/{name}.npy: absent; run 03_extract_features.py again")
    here = [i for i, turn in enumerate(turns) if turn.utterance_id in store]
    if len(here) < least * len(turns):
        what = f"holds only {len(here)} of {len(turns)} labelled turns"
        raise UserError(f"{store.folder}/index.csv: {what}; its utterance_id must be those of manifest.csv")
    if store[name].ndim != 2:
        raise UserError(f"{store.folder}/{name}.npy: has shape {store[name].shape}; give one vector per turn")
    first, _ = store.spans(name)
    array = np.full((len(turns), store[name].shape[1]), np.nan, np.float32)
    array[here] = store[name][first[[store.positions[turns[i].utterance_id] for i in here]]]
    if bad := [turns[i].utterance_id for i in here if not np.isfinite(array[i]).all()]:
        what = f"{len(bad)} turns hold NaN or infinity ({bad[0]})"
        remedy = "extract them again, or leave them out of index.csv"
        raise UserError(f"{store.folder}/{name}.npy: {what}; {remedy}")
    return array


def fill_absent(array, train_rows):
    """Give turns that a modality lacks (NaN rows of array (N, D)) the training turns' mean, in place."""
    absent = np.isnan(array[:, 0])
    if np.isnan(array[train_rows, 0]).all():
        raise UserError("a modality lacks every training turn of a fold; leave it out of MODALITIES")
    array[absent] = np.nanmean(array[train_rows], axis=0)
    return array


def without_rounding(array, precision):
    """Outputs of a network (N, D), constant where a column varies less than BATCH_ROUNDING of their size."""
    mean, size = np.nanmean(array, axis=0), np.sqrt(np.nanmean(np.square(array)))
    is_noise = np.nanstd(array, axis=0) <= BATCH_ROUNDING[precision] * size
    return np.where(is_noise & ~np.isnan(array), mean, array)


def standardise(x, rows):
    """Zero mean and unit variance by the statistics of some rows of x (N, D); constant columns become 0.

    Each column is judged by itself, since those of a user's table may differ by many orders of magnitude.
    """
    mean, sd = x[rows].mean(0), x[rows].std(0)
    varies = sd > ROUNDING * np.sqrt(np.mean(np.square(x[rows]), axis=0))
    return np.where(varies, (x - mean) / np.where(varies, sd, 1), 0)
