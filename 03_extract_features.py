"""Extract the representations and logits of every turn with the fine-tuned models of every fold.

Paper: B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using Pretrained
Transformers", Section 3.3: "the data passes through these transformers and the representations are saved to be
fused". Early fusion takes the representation before the classification layer (768 numbers for the base models), late
fusion the output of that layer.

    python 03_extract_features.py                           # after 02_finetune_unimodal.py
    python 03_extract_features.py --demo                    # 30 s on 2 CPU cores

Writes a feature store per fold, which 04 reads and anything else can (common/store.py says how it lies on disk):
    <DATA_ROOT>/features/<corpus>/<modality>/seed<k>/<fold>/
        index.csv     utterance_id,start,rows; line i belongs to row i of the arrays
        features.npy  (N, D) float32, the representation before the classification layer
        logits.npy    (N, C) float32, the output of that layer, before the softmax
        meta.json     the model, the speakers it was trained, validated and tested on, the class names
    .../<fold>/hidden/hidden.npy  (tokens, L, D) float16, all layers, only with HIDDEN_STATES
and results/03_extract_features/<corpus>/metrics.json with counts and speed. All turns that have the modality are
extracted, not only the labelled ones. A killed run goes on where it stopped; what is there and matches is skipped.

DEVIATIONS none known; the paper says no more than the sentence above.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import hashlib
import time
from pathlib import Path

import numpy as np

from common.encoders import count_tokens, input_shape, load_encoder
from common.errors import UserError
from common.files import read_json
from common.inputs import Clipping, TurnInputs, cache_inputs, has_modality
from common.manifest import read_manifest
from common.results import start_run
from common.store import StoreWriter
from common.training import best_weights, make_accelerator, predict_batches

# ---- Constants to tweak --------------------------------------------------------------------
DATA_ROOT = "data"  # folder of corpora, models, features
RESULTS_ROOT = "results"  # metrics.json goes to <RESULTS_ROOT>/<script>/<corpus>/
CORPUS = "iemocap"  # as given to 02
SEEDS = (0, 1, 2)  # those of 02's models to use. Not in the paper
MODALITIES = ("text", "audio", "video")  # those without fine-tuned models are left out, and said so
HIDDEN_STATES = False  # also store all hidden layers, float16: some GB per modality and fold at full size.
# Not in the paper
BATCH_SIZE = 32  # turns per forward pass; changes the speed, not the result
PRECISION = "no"  # "no" (fp32), "bf16", "fp16", "auto"; features are stored as float32 all the same
WORKERS = 4  # processes that prepare batches, 0 = none; as many decode once, 0 = one per core
TOLERANCE = 0.01  # share of test turns whose decision may differ from 02's (bf16 there, fp32 here)

DEMO = {"CORPUS": "demo_iemocap", "SEEDS": (0,), "WORKERS": 0}  # the models of 02 --demo
SCRATCH = {"SEEDS": (0,), "WORKERS": 0}  # the models of 02 --scratch
SETTINGS = {}  # filled by settings.run: what this run used


# ---- Which models --------------------------------------------------------------------------


def model_folders(corpus, modality):
    """The fine-tuned models of a modality that 02 finished, in the order of seed and fold."""
    root = Path(DATA_ROOT) / "models" / corpus / modality
    folders = [
        path.parent for seed in SEEDS for path in sorted((root / f"seed{seed}").glob("*/encoder.json"))
    ]
    return [folder for folder in folders if (folder / "test.json").exists()]


def store_folder(model_folder):
    """The feature store that belongs to a model: the same path below features/ instead of models/."""
    return Path(DATA_ROOT) / "features" / model_folder.relative_to(Path(DATA_ROOT) / "models")


# ---- Extraction ----------------------------------------------------------------------------


def represent(model, batch):
    """Representation (B, D) and logits (B, C) of a batch."""
    features, logits = model(batch["inputs"])
    return {"features": features, "logits": logits}


def represent_all_layers(model, batch):
    """As `represent`, with all hidden layers (B, S, L, D) and the number of valid tokens (B,)."""
    features, logits, hidden = model(batch["inputs"], hidden_states=True)
    return {
        "features": features,
        "logits": logits,
        "hidden": hidden,
        "tokens": count_tokens(model.backbone, model.modality, hidden.shape[1], batch["inputs"]),
    }


def extract(accelerator, manifest, folder):
    """Write the feature store of one model, or what is missing of it. Returns (store, turns written, seconds)."""
    encoder, processor, description = load_encoder(folder)
    encoder.to(accelerator.device)
    modality = description["modality"]
    turns = [t for t in manifest.turns if has_modality(t, modality)]
    shape = input_shape(str(folder), modality)
    cache, problems = cache_inputs(
        manifest,
        turns,
        shape,
        processor,
        Clipping(**description["clipping"]),
        Path(DATA_ROOT) / "cache" / manifest.corpus,
        WORKERS,
    )
    bad = {utterance_id for utterance_id, _ in problems}
    turns = [t for t in turns if t.utterance_id not in bad]
    inputs = TurnInputs(turns, manifest.classes, shape, processor, cache)
    meta = {**description, "weights": fingerprint(best_weights(folder)), "precision": PRECISION}
    writer = StoreWriter(store_folder(folder), meta)
    hidden = StoreWriter(store_folder(folder) / "hidden", meta) if HIDDEN_STATES else None
    done = {
        i
        for i, t in enumerate(turns)
        if t.utterance_id in writer.done and (hidden is None or t.utterance_id in hidden.done)
    }
    started = time.monotonic()
    forward = represent_all_layers if HIDDEN_STATES else represent
    for indices, found in predict_batches(
        accelerator, encoder, forward, inputs, BATCH_SIZE, WORKERS, skip=done
    ):
        write_batch(writer, hidden, [turns[i].utterance_id for i in indices], found)
    if hidden:
        hidden.finish()
    return writer.finish(), len(turns) - len(done), time.monotonic() - started


def write_batch(writer, hidden, ids, found):
    """Append one batch; the turns of it that a killed run had already written to one of the stores are left out."""
    new = [k for k, i in enumerate(ids) if i not in writer.done]
    if new:
        writer.add([ids[k] for k in new], {name: found[name][new] for name in ("features", "logits")})
    new = [k for k, i in enumerate(ids) if hidden and i not in hidden.done]
    if new:
        counts = [int(found["tokens"][k]) for k in new]
        rows = np.concatenate([found["hidden"][k, :n] for k, n in zip(new, counts)])  # (tokens, L, D)
        hidden.add([ids[k] for k in new], {"hidden": rows.astype(np.float16)}, counts)


def fingerprint(path):
    """First 16 hex digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def compare_with_02(store, folder):
    """Share of the test turns that the stored logits decide otherwise than 02's did; UserError beyond TOLERANCE."""
    outcome = read_json(folder / "test.json")
    row = {utterance_id: i for i, utterance_id in enumerate(store.ids)}
    here = store["logits"][[row[i] for i in outcome["ids"]]].argmax(1)
    differ = float(np.mean(here != np.argmax(outcome["logits"], axis=1)))
    if differ > TOLERANCE:
        raise UserError(
            f"{folder}: {differ:.1%} of the test turns are decided otherwise than by 02; run 02 and 03 again, "
            "or raise TOLERANCE if the precisions differ"
        )
    return differ


# ---- Main ----------------------------------------------------------------------------------


def main():
    manifest = read_manifest(DATA_ROOT, CORPUS)
    accelerator = make_accelerator(PRECISION)
    if accelerator.num_processes > 1:
        raise UserError(
            "03_extract_features.py: a store has one writer; start it with python, not accelerate launch"
        )
    run = start_run(
        __file__, SETTINGS, manifest, "features of the models of 02, every turn", accelerator.device
    )
    speeds = {}
    for modality in MODALITIES:
        folders = model_folders(manifest.corpus, modality)
        if not folders:
            print(f"  {modality}: no fine-tuned models of seeds {', '.join(map(str, SEEDS))}; left out")
        for folder in folders:
            store, n_new, seconds = extract(accelerator, manifest, folder)
            differ = compare_with_02(store, folder)
            speed = f"{n_new / seconds:7.1f} turns/s" if n_new else "already there"
            print(
                f"{modality:<6} {folder.parent.name} {folder.name:<8} {len(store.ids):6,} turns x {store['features'].shape[1]}"
                f"  {speed}   test decisions as in 02: {1 - differ:.2%}",
                flush=True,
            )
            speeds[f"{modality}/{folder.parent.name}/{folder.name}"] = {
                "turns": len(store.ids),
                "new": n_new,
                "seconds": round(seconds, 2),
                "differ_from_02": differ,
            }
    if not speeds:
        raise UserError(
            f"{DATA_ROOT}/models/{manifest.corpus}: no fine-tuned models; run 02_finetune_unimodal.py first"
        )
    run.finish(stores=speeds)


if __name__ == "__main__":
    settings.run(main, globals())
