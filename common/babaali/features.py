"""Stored features and logits of every modality, seed and fold, in the order of a corpus' labelled turns.

    <root>/<modality>/[seed<k>/][<fold>/]{index.csv, features.npy[, logits.npy][, meta.json]}

A level in brackets that is absent is shared: the same features serve all seeds, or all folds.
"""

import numpy as np

from common.errors import UserError
from common.splits import has_official_split
from common.store import open_store

ROUNDING = 1e-4  # ten times the differences seen between batches of different composition


def find_modalities(root, modalities):
    """Those of `modalities` with stored features in `root`, in order; prints which are left out."""
    found = tuple(m for m in modalities if any((root / m).rglob("index.csv")))
    for absent in (m for m in modalities if m not in found):
        print(f"{absent}: no features in {root / absent}; left out")
    if not found:
        raise UserError(
            f"{root}: no features of {', '.join(modalities)}; run 03_extract_features.py on this "
            "corpus, name another folder with FEATURES_ROOT, or set PAPERS=li, which needs none"
        )
    return found


def find_store(root, modality, seed, fold_name):
    """Open the store of a seed and fold, or the one that is shared; UserError where there is none."""
    base = root / modality
    for folder in (base / f"seed{seed}" / fold_name, base / fold_name, base / f"seed{seed}", base):
        if (folder / "index.csv").exists():
            return open_store(folder)
    remedy = "run 03_extract_features.py for all SEEDS and folds"
    if fold_name.startswith("out_"):
        remedy = "run 02 and 03 with OUT_OF_FOLD=true, or 04 with OUT_OF_FOLD=false"
    raise UserError(f"{base}/seed{seed}/{fold_name}: absent; {remedy}")


def check_store(store, manifest, test_speakers, protocol):
    """Refuse features of other classes, another protocol, or an encoder that learned from test speakers.

    test_speakers  speakers whose turns are to be scored, or must be out of fold
    protocol       {"select_on": ..., "validate_on": ...} that meta.json, where it says so, must agree with
    Features without meta.json are taken as they are.
    """
    meta = store.meta
    if meta.get("classes") and list(meta["classes"]) != list(manifest.classes):
        raise UserError(
            f"{store.folder}: its classes {meta['classes']} are not the manifest's; run 02 and 03 again"
        )
    for name, value in protocol.items():
        if meta.get(name, value) != value:
            raise UserError(
                f"{store.folder}: made with {name.upper()}={meta[name]}; run this with "
                f"--{name.upper()}={meta[name]}, or 02 and 03 again"
            )
    seen = set(meta.get("train_speakers", ())) & set(test_speakers)
    if seen and not has_official_split(manifest):
        raise UserError(
            f"{store.folder}: its encoder was trained with test speakers "
            f"({', '.join(sorted(seen)[:4])}); run 02 and 03 again"
        )


def read_rows(store, name, turns):
    """The array `name` of a store in the order of `turns` (N, D), NaN for turns that it lacks.

    Raises UserError where the ids hardly match, or where a stored value is NaN or infinite.
    """
    if name not in store:
        raise UserError(f"{store.folder}/{name}.npy: absent; run 03_extract_features.py again")
    rows = [
        (i, store.slices[turn.utterance_id].start)
        for i, turn in enumerate(turns)
        if turn.utterance_id in store.slices
    ]
    if 2 * len(rows) < len(turns):
        raise UserError(
            f"{store.folder}/index.csv: holds only {len(rows)} of {len(turns)} labelled turns; "
            "its utterance_id must be those of manifest.csv"
        )
    here, there = np.array(rows).T
    if store[name].ndim != 2:
        raise UserError(f"{store.folder}/{name}.npy: has shape {store[name].shape}; give one vector per turn")
    array = np.full((len(turns), store[name].shape[1]), np.nan, np.float32)
    array[here] = store[name][there]
    bad = [turns[i].utterance_id for i in here[~np.isfinite(array[here]).all(1)]]
    if bad:
        raise UserError(
            f"{store.folder}/{name}.npy: {len(bad)} turns hold NaN or infinity ({bad[0]}); "
            "extract them again, or leave them out of index.csv"
        )
    return array


def standardise(x, rows):
    """Zero mean and unit variance by the statistics of some rows of x (N, D); constant columns become 0.

    A column that varies less than ROUNDING of the size of all values holds float noise and counts as constant.
    """
    mean, sd = x[rows].mean(0), x[rows].std(0)
    varies = sd > ROUNDING * np.sqrt(np.mean(np.square(x[rows])))
    return np.where(varies, (x - mean) / np.where(varies, sd, 1), 0)


def fill_absent(array, train_rows):
    """Give turns that a modality lacks (NaN rows of array (N, D)) the training turns' mean, in place."""
    absent = np.isnan(array[:, 0])
    if np.isnan(array[train_rows, 0]).all():
        raise UserError("a modality lacks every training turn of a fold; leave it out of MODALITIES")
    array[absent] = np.nanmean(array[train_rows], axis=0)
    return array
