"""Extract the representations and logits of every turn with the fine-tuned models of every fold.

Paper: B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using
Pretrained Transformers", Section 3.3: "the data passes through these transformers and the representations are
saved to be fused". Early fusion takes the representation before the classification layer (768 numbers for the
base models), late fusion the output of that layer.

    python 03_extract_features.py                           # after 02_finetune_unimodal.py
    python 03_extract_features.py --demo                    # 30 s on 2 CPU cores
    python 03_extract_features.py --CORPUS=my_clips/ --TRAINED_ON=iemocap   # by the models of another corpus

Writes a feature store per fold, for 04 and whatever else (common/store.py says how it lies on disk):
    <DATA_ROOT>/features/<corpus>/<modality>/seed<k>/<fold>/
        index.csv     the utterances, in the order of the arrays' rows
        features.npy  (N, D) float32, the representation before the classification layer
        logits.npy    (N, C) float32, the output of that layer, before the softmax
        meta.json     the model, the speakers it was trained, validated and tested on, the class names
and results/03_extract_features/<corpus>/metrics.json. Turns that have the modality are extracted, labelled or
not. A killed run resumes; what is there and matches is skipped. By models of another corpus it is the folder
<corpus>_by_<that corpus>; NOISE_SNR_DB adds audio_<n>dB beside audio, of the test turns.

DEVIATIONS none known; the paper says no more than the sentence above.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import re
from functools import partial
from pathlib import Path

import numpy as np
from accelerate.utils import send_to_device

from common.babaali.features import features_folder
from common.encoders import RATE_HZ, load_finetuned, weights_fingerprint
from common.extraction import Extraction, extract
from common.files import UserError, read_json
from common.inputs import Clipping, cache_states, read_inputs
from common.manifest import corpus_name, read_manifest
from common.media import read_audio
from common.results import start_run
from common.training import by_length, exact, forward_batch, make_accelerator

# fmt: off
# ---- Roots ---------------------------------------------------------------------------------
DATA_ROOT = "data"                  # folder of corpora, models, features
RESULTS_ROOT = "results"            # metrics.json goes to <RESULTS_ROOT>/<script>/<corpus>/
RUN = ""                            # name of its folder; "" = the corpus and what differs from the preset

# ---- Corpus and protocol -------------------------------------------------------------------
CORPUS = "iemocap"                  # as given to 02
TRAINED_ON = ""                     # corpus of the models; "" = CORPUS
SEEDS = (0, 1, 2)                   # those of 02's models to use. Not in the paper
MODALITIES = ("text", "audio", "video")     # those without fine-tuned models are left out, and said so

# ---- Beyond the paper ----------------------------------------------------------------------
OPENSMILE = ()                      # feature sets of openSMILE, an optional package, for BASELINES of 04:
                                    # "eGeMAPSv02", "ComParE_2016"
NOISE_SNR_DB = ()                   # such as 20,10,0: test audio in white noise too, at these ratios, for 04
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


def model_folders(modality):
    """The model that 02 chose for each seed and fold; of another corpus those of its plain folds alone."""
    root = Path(DATA_ROOT) / "models" / corpus_name(TRAINED_ON or CORPUS) / modality
    folds = "fold*" if TRAINED_ON else "*"
    notes = [path for seed in SEEDS for path in sorted(root.glob(f"seed{seed}/{folds}/chosen.json"))]
    return [path.parent / read_json(path)["model"] for path in notes]


def represent(model, batch):
    """Representation (B, D) and logits (B, C) of a batch."""
    encoder, linear = model
    features = encoder(batch["inputs"])
    return {"features": features, "logits": linear(features)}


def extract_features(accelerator, manifest, folder, trained_on, snr_db=None):
    """The Store of all turns' features and logits by the model in `folder`, or of its test turns in noise.

    trained_on  fingerprint of the manifest that the models' corpus has now
    """
    encoder, linear, description = load_finetuned(folder)
    if description["manifest"] != trained_on:
        raise UserError(f"{folder}: trained on another manifest.csv; run 02_finetune_unimodal.py again")
    model = encoder.to(accelerator.device), linear.to(accelerator.device)
    modality, clipping = description["modality"], Clipping(**description["clipping"])
    source = str(folder) if encoder.n_trained is None else description["source"]
    inputs = read_inputs(manifest, modality, source, clipping, DATA_ROOT, WORKERS)
    if snr_db is not None:
        tested = set(read_json(folder / "outcome.json")["tests"]["test"]["ids"])  # by 02
        inputs = inputs.of([turn for turn in manifest.turns if turn.utterance_id in tested])
    else:
        inputs = cache_states(inputs, encoder, accelerator, DATA_ROOT, manifest.corpus, EVAL_BATCH_SIZE)

    def read(i):
        return inputs[i, None] if snr_db is None else in_noise(inputs, i, manifest, snr_db)

    def compute(turns):
        batch = send_to_device(inputs.collate(turns), accelerator.device)
        with exact():  # fp32 without TF32
            return forward_batch(accelerator, model, represent, batch), None

    made_by = {"trained": weights_fingerprint(str(folder)), "precision": accelerator.mixed_precision}
    identity = {**description, **made_by, "snr_db": snr_db, "turns_of": manifest.fingerprint()}
    order, place = by_length(inputs.lengths), store_folder(manifest, folder, snr_db)
    middle, _ = compute([inputs[order[len(order) // 2], None]])
    need_bytes = len(order) * sum(array.nbytes for array in middle.values())
    items, how = {inputs.ids[i]: i for i in order}, Extraction(EVAL_BATCH_SIZE, WORKERS)
    return extract(items, read, compute, place, identity, how, f"{modality} features", need_bytes)


def in_noise(inputs, index, manifest, snr_db):
    """A turn of `inputs` read anew, white noise added: its power is that of the turn less snr_db decibels."""
    max_s = inputs.made_of["clipping"]["audio_max_s"]
    samples = read_audio(manifest.path(inputs.turns[index].audio), max_s, RATE_HZ)
    noise = np.random.default_rng(index).standard_normal(len(samples), np.float32)
    noisy = samples + noise * samples.std() * 10 ** (-snr_db / 20)
    if inputs.shape.kind == "spectrogram":
        noisy = inputs.processor(noisy, sampling_rate=RATE_HZ, return_tensors="np")["input_values"][0]
    return noisy, inputs.labels[index]


def store_folder(manifest, model_folder, snr_db):
    """The feature store of a fold: the same path below features/ as that of its models below models/."""
    modality, seed, fold = model_folder.parent.parts[-3:]
    name = modality if snr_db is None else f"{modality}_{snr_db:g}dB"
    return features_folder(DATA_ROOT, manifest.corpus, TRAINED_ON) / name / seed / fold


def compare_with_02(store, folder):
    """Share of the test turns that are decided otherwise than by 02; UserError beyond TOLERANCE."""
    test = read_json(folder / "outcome.json")["tests"]["test"]
    here = store["logits"][[store.positions[i] for i in test["ids"]]].argmax(1)
    differ = float(np.mean(here != np.argmax(test["outputs"]["logits"], axis=1)))
    if differ > TOLERANCE:
        remedy = "run both again, or raise TOLERANCE if the precisions differ"
        raise UserError(f"{folder}: {differ:.1%} of test turns are decided otherwise than by 02; {remedy}")
    return differ


def extract_opensmile(manifest, feature_set, folder, workers):
    """The Store of openSMILE's functionals of every turn with sound; feature_set such as "ComParE_2016"."""
    try:
        import opensmile
    except ImportError as error:
        raise UserError("OPENSMILE: needs the optional package; pip install opensmile") from error
    if feature_set not in opensmile.FeatureSet.__members__:
        raise UserError(f"OPENSMILE={feature_set}: choose from {', '.join(opensmile.FeatureSet.__members__)}")
    smile = opensmile.Smile(opensmile.FeatureSet[feature_set], opensmile.FeatureLevel.Functionals)

    def compute(sounds):
        rows = [smile.process_signal(samples, RATE_HZ).to_numpy(np.float32) for samples in sounds]
        return {"features": np.concatenate(rows)}, None

    items = {turn.utterance_id: manifest.path(turn.audio) for turn in manifest.turns if turn.audio}
    made_by = {"opensmile": opensmile.__version__, "feature_set": feature_set}
    identity = {"manifest": manifest.fingerprint(), **made_by}
    need_bytes = 4 * len(items) * len(smile.feature_names)
    place, how, what = Path(folder) / feature_set, Extraction(workers=workers), f"openSMILE's {feature_set}"
    read = partial(read_audio, rate_hz=RATE_HZ)
    return extract(items, read, compute, place, identity, how, what, need_bytes)


def check_constants():
    settings.check_choices(SETTINGS, {"MODALITIES": ("text", "audio", "video")})
    for text in NOISE_SNR_DB:
        if not re.fullmatch(r"-?\d+(\.\d+)?", text):
            raise UserError(f"NOISE_SNR_DB={text}: give numbers of decibels such as 20,10,0")
    if TRAINED_ON and NOISE_SNR_DB:
        raise UserError("NOISE_SNR_DB: for the test turns of the models' own corpus; leave TRAINED_ON out")


def main():
    check_constants()
    manifest = read_manifest(DATA_ROOT, CORPUS)
    accelerator = make_accelerator(PRECISION)
    if accelerator.num_processes > 1:
        raise UserError("a store has one writer; start 03 with python, not accelerate launch")
    protocol = f"features of the models of 02{f' on {TRAINED_ON}' * bool(TRAINED_ON)}, every turn"
    run = start_run(__file__, SETTINGS, manifest, protocol, accelerator.device)
    stores, trained_on = {}, read_manifest(DATA_ROOT, TRAINED_ON or CORPUS).fingerprint()
    for modality in MODALITIES:
        folders = model_folders(modality)
        if not folders:
            print(f"  {modality}: no fine-tuned models of seeds {', '.join(map(str, SEEDS))}; left out")
        elif not any(getattr(turn, modality) for turn in manifest.turns):
            print(f"  {modality}: {manifest.corpus} has none; left out")
            continue
        for folder in folders:
            store = extract_features(accelerator, manifest, folder, trained_on)
            about = {"turns": len(store), "width": store["features"].shape[1]}
            if not TRAINED_ON:
                about["differ_from_02"] = compare_with_02(store, folder)
                print(f"  test decisions as in 02: {1 - about['differ_from_02']:.2%}", flush=True)
            stores[str(folder)] = about
            for snr_db in NOISE_SNR_DB if modality == "audio" else ():
                extract_features(accelerator, manifest, folder, trained_on, float(snr_db))
    for feature_set in OPENSMILE:
        folder = features_folder(DATA_ROOT, manifest.corpus, TRAINED_ON)
        store = extract_opensmile(manifest, feature_set, folder, WORKERS)
        stores[feature_set] = {"turns": len(store), "width": store["features"].shape[1]}
    if not stores:
        where = f"{DATA_ROOT}/models/{corpus_name(TRAINED_ON or CORPUS)}"
        raise UserError(f"{where}: no models for {manifest.corpus}; run 02_finetune_unimodal.py first")
    run.finish(stores=stores)


if __name__ == "__main__":
    settings.run(main, globals())
