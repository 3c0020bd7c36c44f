"""Extract the representations and logits of every turn with the fine-tuned models of every fold.

Paper: B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using
Pretrained Transformers", Section 3.3: "the data passes through these transformers and the representations are
saved to be fused". Early fusion takes the representation before the classification layer (768 numbers for the
base models), late fusion the output of that layer.

    python 03_extract_features.py                           # after 02_finetune_unimodal.py
    python 03_extract_features.py --demo                    # 30 s on 2 CPU cores

Writes a feature store per fold, for 04 and whatever else (common/store.py says how it lies on disk):
    <DATA_ROOT>/features/<corpus>/<modality>/seed<k>/<fold>/
        index.csv     the utterances, in the order of the arrays' rows
        features.npy  (N, D) float32, the representation before the classification layer
        logits.npy    (N, C) float32, the output of that layer, before the softmax
        hidden.npy    (tokens, L, D) float16, all layers, only with HIDDEN_STATES
        meta.json     the model, the speakers it was trained, validated and tested on, the class names
and results/03_extract_features/<corpus>/metrics.json. Turns that have the modality are extracted, labelled or
not. A killed run resumes; what is there and matches is skipped.

DEVIATIONS none known; the paper says no more than the sentence above.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device

from common.babaali.baselines import extract_opensmile
from common.encoders import load_finetuned, weights_fingerprint
from common.extraction import Extraction, extract
from common.files import UserError, read_json
from common.inputs import Clipping, cache_states, read_inputs
from common.manifest import read_manifest
from common.results import start_run
from common.training import by_length, forward_batch, make_accelerator

# fmt: off
# ---- Roots ---------------------------------------------------------------------------------
DATA_ROOT = "data"                  # folder of corpora, models, features
RESULTS_ROOT = "results"            # metrics.json goes to <RESULTS_ROOT>/<script>/<corpus>/
RUN = ""                            # name of its folder; "" = the corpus and what differs from the preset

# ---- Corpus and protocol -------------------------------------------------------------------
CORPUS = "iemocap"                  # as given to 02
SEEDS = (0, 1, 2)                   # those of 02's models to use. Not in the paper
MODALITIES = ("text", "audio", "video")     # those without fine-tuned models are left out, and said so

# ---- Beyond the paper ----------------------------------------------------------------------
OPENSMILE = ()                      # feature sets of openSMILE, an optional package, for BASELINES of 04:
                                    # "eGeMAPSv02", "ComParE_2016"
HIDDEN_STATES = False               # also store all hidden layers, some GB per modality and fold at full size
TOLERANCE = 0.01                    # share of test turns that may be decided otherwise than by 02 (in bf16)

# ---- Machine -------------------------------------------------------------------------------
EVAL_BATCH_SIZE = 32                # turns per forward pass; changes the speed, not the result
PRECISION = "no"                    # "no" (fp32), "bf16", "fp16", "auto"; stored as float32 all the same
WORKERS = 4                         # threads that decode and read ahead, 0 = none

# ---- Presets -------------------------------------------------------------------------------
DEMO = {"CORPUS": "demo_iemocap", "SEEDS": (0,), "WORKERS": 0,      # the models of 02 --demo
        "RESULTS_ROOT": "results/mine"}
SCRATCH = {"SEEDS": (0,), "WORKERS": 0}     # the models of 02 --scratch
SETTINGS = {}                       # filled by settings.run: what this run used
# fmt: on


def model_folders(corpus, modality):
    """The model that 02 chose for each seed and fold."""
    root = Path(DATA_ROOT) / "models" / corpus / modality
    notes = [path for seed in SEEDS for path in sorted(root.glob(f"seed{seed}/*/chosen.json"))]
    return [path.parent / read_json(path)["model"] for path in notes]


def represent(model, batch):
    """Representation (B, D) and logits (B, C) of a batch; all hidden layers (B, S, L, D) if asked for."""
    encoder, linear = model
    features = encoder(batch["inputs"])
    found = {"features": features, "logits": linear(features)}
    if HIDDEN_STATES:
        layers, visible = encoder.hidden(batch["inputs"])
        found |= {"hidden": torch.stack(layers, dim=2), "tokens": visible.sum(1)}
    return found


def as_rows(found):
    """(arrays, rows of each turn) for the store; of hidden layers only the tokens that are not padding."""
    if "hidden" not in found:
        return found, None
    counts = found.pop("tokens").astype(int).tolist()
    tokens = [layers[:n] for layers, n in zip(found["hidden"], counts)]
    ones = [1] * len(counts)
    arrays = {**found, "hidden": np.concatenate(tokens).astype(np.float16)}  # (tokens, L, D)
    return arrays, {"features": ones, "logits": ones, "hidden": counts}


def extract_features(accelerator, manifest, folder):
    """The Store of the features and logits of all turns by the model in `folder`."""
    encoder, linear, description = load_finetuned(folder)
    if description["manifest"] != manifest.fingerprint():
        raise UserError(f"{folder}: trained on another manifest.csv; run 02_finetune_unimodal.py again")
    model = encoder.to(accelerator.device), linear.to(accelerator.device)
    modality, clipping = description["modality"], Clipping(**description["clipping"])
    source = str(folder) if encoder.n_trained is None else description["source"]
    inputs = read_inputs(manifest, modality, source, clipping, DATA_ROOT, WORKERS)
    if not HIDDEN_STATES:
        inputs = cache_states(inputs, encoder, accelerator, DATA_ROOT, manifest.corpus, EVAL_BATCH_SIZE)

    def compute(turns):
        batch = send_to_device(inputs.collate(turns), accelerator.device)
        return as_rows(forward_batch(accelerator, model, represent, batch))

    made_by = {"trained": weights_fingerprint(str(folder)), "precision": PRECISION}
    made_by["hidden_states"] = HIDDEN_STATES
    order = by_length(inputs.lengths)
    middle, _ = compute([inputs[order[len(order) // 2], None]])
    return extract(
        items={inputs.ids[i]: i for i in order},
        read=lambda i: inputs[i, None],
        compute=compute,
        folder=store_folder(folder),
        identity={**description, **made_by},
        how=Extraction(EVAL_BATCH_SIZE, WORKERS),
        what=f"{modality} features",
        need_bytes=len(order) * sum(array.nbytes for array in middle.values()),
    )


def store_folder(model_folder):
    """The feature store of a fold: the same path below features/ as that of its models below models/."""
    return Path(DATA_ROOT) / "features" / model_folder.parent.relative_to(Path(DATA_ROOT) / "models")


def compare_with_02(store, folder):
    """Share of the test turns that are decided otherwise than by 02; UserError beyond TOLERANCE."""
    test = read_json(folder / "outcome.json")["tests"]["test"]
    here = store["logits"][[store.row_of(i) for i in test["ids"]]].argmax(1)
    differ = float(np.mean(here != np.argmax(test["outputs"]["logits"], axis=1)))
    if differ > TOLERANCE:
        raise UserError(
            f"{folder}: {differ:.1%} of the test turns are decided otherwise than by 02; run both again, "
            "or raise TOLERANCE if the precisions differ"
        )
    return differ


def check_constants():
    settings.check_choices(SETTINGS, {"MODALITIES": ("text", "audio", "video")})


def main():
    check_constants()
    manifest = read_manifest(DATA_ROOT, CORPUS)
    accelerator = make_accelerator(PRECISION)
    if accelerator.num_processes > 1:
        raise UserError("a store has one writer; start 03 with python, not accelerate launch")
    protocol = "features of the models of 02, every turn"
    run = start_run(__file__, SETTINGS, manifest, protocol, accelerator.device)
    stores = {}
    for modality in MODALITIES:
        folders = model_folders(manifest.corpus, modality)
        if not folders:
            print(f"  {modality}: no fine-tuned models of seeds {', '.join(map(str, SEEDS))}; left out")
        for folder in folders:
            store = extract_features(accelerator, manifest, folder)
            differ, width = compare_with_02(store, folder), store["features"].shape[1]
            print(f"  {len(store):,} turns x {width}; test decisions as in 02: {1 - differ:.2%}", flush=True)
            stores[str(folder)] = {"turns": len(store), "width": width, "differ_from_02": differ}
    for feature_set in OPENSMILE:
        folder = Path(DATA_ROOT) / "features" / manifest.corpus
        store = extract_opensmile(manifest, feature_set, folder, WORKERS)
        stores[feature_set] = {"turns": len(store), "width": store["features"].shape[1]}
    if not stores:
        raise UserError(f"{DATA_ROOT}/models/{manifest.corpus}: empty; run 02_finetune_unimodal.py first")
    run.finish(stores=stores)


if __name__ == "__main__":
    settings.run(main, globals())
