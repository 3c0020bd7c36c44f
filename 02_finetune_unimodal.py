"""Fine-tune one transformer per modality for emotion classification.

Paper: B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using Pretrained
Transformers", Sections 3.2, 3.3 (its 15 models) and 4.1.
Replicates Tables 1-3 (which text, speech and video model), Table 4 (the chosen three, five-fold) and Figures 2-7
(loss and accuracy curves).

    python 02_finetune_unimodal.py                          # after 01_prepare_data.py
    python 02_finetune_unimodal.py --demo                   # 3 minutes on 2 CPU cores
    python 02_finetune_unimodal.py --scratch --CORPUS=ravdess     # small models from random weights, on a CPU
    accelerate launch 02_finetune_unimodal.py               # several GPUs

Writes results/02_finetune_unimodal/<corpus>/: babaali_table_1..4, babaali_fig_2..7, predictions.csv, metrics.json,
log.jsonl; and the models to <DATA_ROOT>/models/<corpus>/<modality>/seed<k>/<fold>/. A run that was killed goes on
where it stopped.

DEVIATIONS
1. The paper chooses the epoch on the set it reports in its five-fold runs (it names no other). Here one session
   validates: train on three, validate on one, test on one. SELECT_ON = "test" gives the paper's way.
2. The paper does not say which RoBERTa, wav2vec 2.0, HuBERT, AST or VideoMAE checkpoint; its reference for RoBERTa
   is XLM-R's. We take the English base models without emotion fine-tuning.
3. "Batch sizes for training and validation are set to eight and four" for speech: read as 8 to train, 4 to evaluate.
   The evaluation batch changes only the run time here, since padding changes nothing.
4. "Sampled at 30 frames per second": VideoMAE takes 16 frames; as in its authors' fine-tuning on short clips every
   4th of 30 per second is taken, 2.1 s, at a random place in training and in the middle otherwise.
5. "A fully connected layer and a softmax layer on top": dropout and one linear layer on the CLS token (text), the mean
   over time (wav2vec 2.0, HuBERT), the mean of AST's two class tokens, the mean over tokens (VideoMAE).
6. Not in the paper: optimiser and schedule. AdamW, linear decay, gradient norm clipped at 1, as transformers' Trainer
   does by default, whose three evaluation figures (loss, accuracy, run time) are the columns of the paper's tables.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from common.encoders import (
    build_encoder,
    checkpoints_folder,
    describe_encoder,
    input_shape,
    load_processor,
    locate,
    short_name,
)
from common.errors import UserError
from common.files import write_json
from common.inputs import Clipping, TurnInputs, cache_inputs, has_modality
from common.manifest import read_manifest
from common.metrics import accuracy, chance, confusion, unweighted_recall
from common.plots import learning_curves, save
from common.results import Cell, prediction_rows, score_cell, start_run
from common.splits import (
    check_folds,
    choice_protocol_text,
    leave_two_out,
    make_folds,
    model_choice_split,
    protocol_text,
)
from common.training import Recipe, best_weights, fit, kept_outcome, make_accelerator, predict

# ---- Constants to tweak --------------------------------------------------------------------
DATA_ROOT = "data"  # folder of corpora, checkpoints, models
RESULTS_ROOT = "results"  # tables and figures go to <RESULTS_ROOT>/<script>/<corpus>/
CORPUS = "iemocap"  # what 01 prepared: "iemocap", "ravdess", "emodb", "meld", or a folder
SEEDS = (0, 1, 2)  # one full run each; tables show mean ± sd over them. Not in the paper
CHECKPOINTS = "hub"  # "hub", "local" (what 01 wrote to <DATA_ROOT>/checkpoints/<corpus>), or a folder
# with one sub-folder per model
MODALITIES = ("text", "audio", "video")  # those the corpus lacks are left out, and said so
STAGES = ("choice", "folds")  # "choice": Tables 1-3; "folds": Table 4 and Figures 2-7

# Models (Sec. 3.2); the hub names are not in the paper
TEXT_MODELS = ("bert-base-uncased", "roberta-base", "distilbert-base-uncased")  # candidates of Table 1
AUDIO_MODELS = (
    "facebook/wav2vec2-base",
    "facebook/hubert-base-ls960",
    "MIT/ast-finetuned-audioset-10-10-0.4593",
)  # candidates of Table 2
VIDEO_MODELS = ("MCG-NJU/videomae-base",)  # the one of Table 3
CHOSEN_MODELS = (
    "bert-base-uncased",
    "facebook/wav2vec2-base",
    "MCG-NJU/videomae-base",
)  # Sec. 3.3; empty = the best
# of each modality on the validation speakers of the choice stage

# Training (Sec. 3.2)
TEXT_LEARNING_RATE = 2e-5  # peak
TEXT_EPOCHS = (20, 20, 20)  # one for each of TEXT_MODELS
TEXT_BATCH_SIZE = 32  # samples per step, over all processes
AUDIO_LEARNING_RATE = 3e-5  # peak
AUDIO_EPOCHS = (15, 15, 30)  # one for each of AUDIO_MODELS
AUDIO_BATCH_SIZE = 8  # samples per step
VIDEO_LEARNING_RATE = 5e-5  # peak
VIDEO_EPOCHS = (10,)  # one for each of VIDEO_MODELS
VIDEO_BATCH_SIZE = 8  # samples per step
TEXT_EVAL_BATCH_SIZE = 32  # changes the run time, not the result
AUDIO_EVAL_BATCH_SIZE = 4  # likewise
VIDEO_EVAL_BATCH_SIZE = 8  # likewise. Not in the paper
WEIGHT_DECAY = 0.01  # of AdamW, on weight matrices
DROPOUT = 0.1  # in front of the linear layer. Not in the paper
SCHEDULE = "linear"  # "linear", "cosine", "constant". Not in the paper
WARMUP_SHARE = 0.0  # share of the steps. Not in the paper
CLIP_NORM = 1.0  # gradient norm, 0 = off. Not in the paper

# Inputs (Sec. 3.2)
AUDIO_MAX_S = 10.0  # seconds; longer turns are cut
VIDEO_MAX_S = 10.0  # seconds kept of a turn for random clips. Not in the paper
VIDEO_FPS = 30.0  # frames per second at which clips are sampled
VIDEO_STRIDE = 4  # every 4th of these. Not in the paper
MIRROR_PROBABILITY = 0.5  # of a training video

# Protocol
SELECT_ON = (
    "validation"  # what chooses the epoch; "test" is the paper's way (optimistic), tables name the one used
)
VALIDATE_ON = "group"  # "group": the next session or speaker group; "speaker": one random training speaker
N_GROUPS = 5  # folds, where the corpus has neither sessions nor an official split (Sec. 3.3)
OUT_OF_FOLD = True  # also train the ten leave-two-groups-out models for 04's out-of-fold late fusion

# Machine
PRECISION = "auto"  # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"
WORKERS = 4  # processes that prepare batches, 0 = none; as many decode once, 0 = one per core
N_RESAMPLES = 10000  # of the speaker bootstrap behind every interval

DEMO = {
    "CORPUS": "demo_iemocap",
    "SEEDS": (0,),
    "CHECKPOINTS": "local",
    "OUT_OF_FOLD": False,
    "WORKERS": 0,
    "TEXT_LEARNING_RATE": 1e-3,
    "TEXT_EPOCHS": (8, 8, 8),
    "TEXT_BATCH_SIZE": 16,
    "AUDIO_LEARNING_RATE": 1e-3,
    "AUDIO_EPOCHS": (8, 8, 12),
    "AUDIO_BATCH_SIZE": 16,
    "VIDEO_LEARNING_RATE": 1e-3,
    "VIDEO_EPOCHS": (10,),
    "VIDEO_BATCH_SIZE": 16,
    "AUDIO_EVAL_BATCH_SIZE": 32,
    "VIDEO_EVAL_BATCH_SIZE": 32,
    "AUDIO_MAX_S": 5.0,
    "WARMUP_SHARE": 0.1,
    "DROPOUT": 0.3,
}  # tiny models, synthetic corpus
SCRATCH = {
    "SEEDS": (0,),
    "CHECKPOINTS": "local",
    "OUT_OF_FOLD": False,
    "WORKERS": 0,
    "TEXT_LEARNING_RATE": 5e-4,
    "TEXT_EPOCHS": (6, 6, 6),
    "AUDIO_LEARNING_RATE": 5e-4,
    "AUDIO_EPOCHS": (15, 15, 25),
    "AUDIO_BATCH_SIZE": 16,
    "AUDIO_EVAL_BATCH_SIZE": 32,
    "DROPOUT": 0.3,
    "WARMUP_SHARE": 0.1,
}  # models that 01 wrote with random
# weights, small enough to train without pretraining on a CPU

# The paper's own numbers, as printed: loss, accuracy, run time in seconds. Tables 1-3 by model, Table 4 by modality.
PAPER_CHOICE = {
    "bert-base-uncased": (1.19, 0.68, 4.28),
    "distilbert-base-uncased": (0.91, 0.65, 2.22),
    "roberta-base": (1.48, 0.65, 4.32),
    "wav2vec2-base": (0.95, 0.68, 90.60),
    "hubert-base-ls960": (1.07, 0.625, 73.84),
    "ast-finetuned-audioset-10-10-0.4593": (3.07, 0.61, None),
    "videomae-base": (1.32, 0.38, 629.72),
}
PAPER_FOLDS = {
    "bert-base-uncased": (1.27, 67.50, 3.75),
    "wav2vec2-base": (1.41, 67.55, 81.46),
    "videomae-base": (1.35, 33.22, 562.62),
}
TABLES = {"text": (1, "Text models"), "audio": (2, "Speech models"), "video": (3, "Video model")}
SETTINGS = {}  # filled by settings.run: what this run used


# ---- Models and their settings -------------------------------------------------------------


def models_of(modality):
    """The candidates of a modality, Sec. 3.2."""
    return {"text": TEXT_MODELS, "audio": AUDIO_MODELS, "video": VIDEO_MODELS}[modality]


def recipe_for(modality, model, seed):
    """Sec. 3.2: learning rate, batch size and epochs of a model."""
    rate, size, epochs = {
        "text": (TEXT_LEARNING_RATE, TEXT_BATCH_SIZE, TEXT_EPOCHS),
        "audio": (AUDIO_LEARNING_RATE, AUDIO_BATCH_SIZE, AUDIO_EPOCHS),
        "video": (VIDEO_LEARNING_RATE, VIDEO_BATCH_SIZE, VIDEO_EPOCHS),
    }[modality]
    if len(epochs) != len(models_of(modality)):
        raise UserError(
            f"{modality.upper()}_EPOCHS={epochs}: give one number for each of {modality.upper()}_MODELS"
        )
    names = [short_name(name) for name in models_of(modality)]
    position = names.index(short_name(model)) if short_name(model) in names else 0
    return Recipe(
        learning_rate=rate,
        batch_size=size,
        epochs=epochs[position],
        weight_decay=WEIGHT_DECAY,
        schedule=SCHEDULE,
        warmup_share=WARMUP_SHARE,
        clip_norm=CLIP_NORM,
        seed=seed,
        workers=WORKERS,
    )


def eval_batch_size(modality):
    return {"text": TEXT_EVAL_BATCH_SIZE, "audio": AUDIO_EVAL_BATCH_SIZE, "video": VIDEO_EVAL_BATCH_SIZE}[
        modality
    ]


# ---- Data ----------------------------------------------------------------------------------


class Inputs:
    """The labelled turns of a corpus as inputs of one checkpoint; decoded once, then cut into folds."""

    def __init__(self, accelerator, manifest, modality, model):
        self.source = locate(model, checkpoints_folder(CHECKPOINTS, DATA_ROOT, manifest.corpus))
        self.classes, self.modality = manifest.classes, modality
        self.shape = input_shape(self.source, modality)
        self.processor = load_processor(self.source, modality)
        turns = [t for t in manifest.labelled if has_modality(t, modality)]
        clipping = Clipping(AUDIO_MAX_S, VIDEO_MAX_S, VIDEO_FPS, VIDEO_STRIDE)
        with accelerator.main_process_first():
            self.store, problems = cache_inputs(
                manifest,
                turns,
                self.shape,
                self.processor,
                clipping,
                Path(DATA_ROOT) / "cache" / manifest.corpus,
                WORKERS,
            )
        self.usable = {t.utterance_id for t in turns} - {utterance_id for utterance_id, _ in problems}
        self.identity = {
            "manifest": manifest.fingerprint(),
            "source": self.source,
            "clipping": asdict(clipping),
            "mirror": MIRROR_PROBABILITY,
            "dropout": DROPOUT,
            "classes": list(manifest.classes),
        }

    def of(self, turns, mirror=0.0):
        """A dataset of those turns that have the modality."""
        turns = [t for t in turns if t.utterance_id in self.usable]
        return TurnInputs(turns, self.classes, self.shape, self.processor, self.store, mirror)


def modalities_of(manifest):
    """MODALITIES of which the corpus has at least one labelled turn; prints how many it has."""
    present = []
    for modality in MODALITIES:
        n = sum(has_modality(t, modality) for t in manifest.labelled)
        print(
            f"  {modality:<9} {n:,} of {len(manifest.labelled):,} labelled turns{'' if n else ': left out'}"
        )
        present += [modality] if n else []
    return present


# ---- Train and test ------------------------------------------------------------------------


def cross_entropy(model, batch):
    """Sum of the cross-entropy over the batch, and its size (Sec. 3.2)."""
    _, logits = model(batch["inputs"])
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum"), len(logits)


def outputs(model, batch):
    return {"logits": model(batch["inputs"])[1]}


def figures(logits, labels, n_classes):
    """Mean cross-entropy, accuracy and mean recall of the classes, as fractions."""
    counts = confusion(labels, logits.argmax(1), n_classes)
    loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return {"loss": loss, "accuracy": float(accuracy(counts)), "recall": float(unweighted_recall(counts))}


def model_folder(corpus, modality, seed, fold, model):
    """Where 03 finds the model of a fold; candidates of the choice stage lie apart, by name."""
    folder = Path(DATA_ROOT) / "models" / corpus / modality / f"seed{seed}" / fold.name
    return folder / short_name(model) if fold.name == "choice" else folder


def train_and_test(accelerator, manifest, inputs, model, fold, seed):
    """Fine-tune one model on one fold, choosing the epoch on fold.valid, and test it once.

    Returns {"history", "test": loss, accuracy, recall, seconds, "ids", "logits"}; kept in test.json, so that a
    second run does not train again.
    """
    folder = model_folder(manifest.corpus, inputs.modality, seed, fold, model)
    recipe = recipe_for(inputs.modality, model, seed)
    parts = {
        name: inputs.of(turns, MIRROR_PROBABILITY if name == "train" else 0.0)
        for name, turns in (("train", fold.train), ("valid", fold.valid), ("test", fold.test))
    }
    identity = {
        **inputs.identity,
        **{name: sorted(t.utterance_id for t in part.turns) for name, part in parts.items()},
    }
    done = kept_outcome(folder, recipe, identity)
    if done:
        print(f"{short_name(model)} {fold.name} seed {seed}: already trained and tested")
        return done
    encoder = build_encoder(inputs.source, inputs.modality, len(manifest.classes), DROPOUT, seed)

    def logits_of(part):
        return predict(accelerator, encoder, outputs, part, eval_batch_size(inputs.modality), WORKERS)[
            "logits"
        ]

    def evaluate(_):
        return figures(logits_of(parts["valid"]), parts["valid"].labels, len(manifest.classes))

    history = fit(
        accelerator,
        encoder,
        cross_entropy,
        parts["train"],
        evaluate,
        recipe,
        folder,
        identity,
        f"{short_name(model)[:16]} {fold.name} seed {seed}",
    )
    started = time.monotonic()
    logits = logits_of(parts["test"])
    seconds = time.monotonic() - started
    outcome = {
        "history": history,
        "ids": [t.utterance_id for t in parts["test"].turns],
        "logits": logits.tolist(),
        "test": {**figures(logits, parts["test"].labels, len(manifest.classes)), "seconds": seconds},
    }
    if accelerator.is_main_process:
        keep_outcome(folder, outcome, encoder, inputs, fold, model)
    accelerator.wait_for_everyone()
    return outcome


def keep_outcome(folder, outcome, encoder, inputs, fold, model):
    """Write test.json and what 03 needs to load the model; a candidate's weights are not needed again."""
    if fold.name == "choice":
        best_weights(folder).unlink()
    else:
        speakers = {
            f"{name}_speakers": sorted({t.speaker for t in getattr(fold, name)})
            for name in ("train", "valid", "test")
        }
        describe_encoder(
            folder,
            encoder,
            inputs.processor,
            {
                "modality": inputs.modality,
                "model": short_name(model),
                "classes": list(inputs.classes),
                "dropout": DROPOUT,
                "fold": fold.name,
                **speakers,
                "select_on": SELECT_ON,
                "validate_on": VALIDATE_ON,
                "clipping": inputs.identity["clipping"],
                "best_epoch": outcome["history"]["best_epoch"],
            },
        )
    write_json(folder / "test.json", outcome)


# ---- Stages --------------------------------------------------------------------------------


def choose_models(accelerator, manifest, modalities):
    """Sec. 3.2: every candidate on sessions 1-3 / 4 / 5. Returns {modality: {model: [(seed, fold, outcome)]}}."""
    fold = model_choice_split(manifest, N_GROUPS)
    print("\nModel choice: Tables 1-3\n" + "\n".join(check_folds([fold], manifest, times_tested=None)))
    found = {}
    for modality in modalities:
        found[modality] = {}
        for model in models_of(modality):
            inputs = Inputs(accelerator, manifest, modality, model)
            found[modality][model] = [
                (seed, fold, train_and_test(accelerator, manifest, inputs, model, fold, seed))
                for seed in SEEDS
            ]
    return found


def chosen_models(modalities, candidates):
    """The model of each modality that goes on: CHOSEN_MODELS, or the best on the validation speakers."""
    chosen = {}
    for modality in modalities:
        named = [m for m in CHOSEN_MODELS if short_name(m) in {short_name(x) for x in models_of(modality)}]
        if named:
            chosen[modality] = named[0]
        elif CHOSEN_MODELS:
            raise UserError(
                f"CHOSEN_MODELS: names none of {', '.join(models_of(modality))} for {modality}; "
                "add one, or leave it empty"
            )
        elif candidates:
            chosen[modality] = max(
                candidates[modality], key=lambda m: validation_accuracy(candidates[modality][m])
            )
        else:
            raise UserError(
                "CHOSEN_MODELS is empty and STAGES lacks choice: name the models or add the stage"
            )
    return chosen


def validation_accuracy(runs):
    return float(np.mean([outcome["history"]["best"] for _, _, outcome in runs]))


def cross_validate(accelerator, manifest, chosen, folds):
    """Sec. 3.3: one model per fold of each chosen one. Returns {modality: [(seed, fold, outcome)]}."""
    found = {}
    for modality, model in chosen.items():
        inputs = Inputs(accelerator, manifest, modality, model)
        found[modality] = [
            (seed, fold, train_and_test(accelerator, manifest, inputs, model, fold, seed))
            for seed in SEEDS
            for fold in folds
        ]
    return found


# ---- Tables and figures --------------------------------------------------------------------


class Pooled:
    """Predictions of some runs pooled over folds, in the order of the labelled turns."""

    def __init__(self, manifest, runs):
        self.turns, self.classes = manifest.labelled, manifest.classes
        row = {turn.utterance_id: i for i, turn in enumerate(self.turns)}
        self.y_true = np.array([manifest.classes.index(turn.label) for turn in self.turns])
        self.speakers = np.array([turn.speaker for turn in self.turns])
        self.y_pred = np.full((len(SEEDS), len(self.turns)), -1)  # -1 = not tested
        self.runs = {}
        for seed, fold, outcome in runs:
            tested = np.array([row[utterance_id] for utterance_id in outcome["ids"]])
            self.y_pred[SEEDS.index(seed), tested] = np.argmax(outcome["logits"], axis=1)
            self.runs[seed, fold.name] = (slice(SEEDS.index(seed), SEEDS.index(seed) + 1), tested)
        self.tested = self.y_true[(self.y_pred >= 0).all(0)]

    def score(self, row, column, metric, paper, fraction):
        """A cell with its speaker-clustered interval: in %, or as a fraction where the paper prints one."""
        cell = score_cell(
            row, column, metric, self.y_true, self.y_pred, self.speakers, self.runs, N_RESAMPLES, paper
        )
        return as_fraction(cell) if fraction else cell


def as_fraction(cell):
    """A cell in % with its values divided by 100."""
    return replace(
        cell,
        values=[v / 100 for v in cell.values],
        low=cell.low / 100,
        high=cell.high / 100,
        unit="",
        digits=3,
    )


def table_rows(manifest, row, runs, paper, fraction):
    """The cells of one model: the paper's three columns, then mean recall and training time."""
    pool = Pooled(manifest, runs)
    loss, hits, seconds = paper if manifest.corpus.endswith("iemocap") and paper else (None, None, None)

    def cell(column, values, unit, printed=None):
        return Cell(row, column, values, list(pool.runs), printed, unit=unit, n=len(pool.tested))

    outcomes = [outcome for _, _, outcome in runs]
    return [
        cell("Loss", [o["test"]["loss"] for o in outcomes], "", loss),
        pool.score(row, "Accuracy", accuracy, hits, fraction),
        cell("Runtime", [o["test"]["seconds"] for o in outcomes], "s", seconds),
        pool.score(row, "Mean recall", unweighted_recall, None, fraction),
        cell("Training", [o["history"]["seconds"] for o in outcomes], "s"),
    ]


def chance_row(manifest, runs, fraction):
    """The scores of always answering the most frequent class, on the same turns."""
    pool, row = Pooled(manifest, runs), "always the most frequent class"
    majority, uniform = chance(pool.tested, len(manifest.classes))
    scale, unit, digits = (1, "", 3) if fraction else (100, "%", 2)
    return [
        Cell(row, "Accuracy", [majority * scale], n=len(pool.tested), unit=unit, digits=digits),
        Cell(row, "Mean recall", [uniform * scale], n=len(pool.tested), unit=unit, digits=digits),
    ]


def column_note():
    """What the columns of Tables 1-4 are."""
    return (
        "Loss: mean cross-entropy on the test turns. Runtime: seconds to evaluate them once (the paper gives no unit or "
        "hardware; read as transformers' eval_runtime). Training: seconds for all epochs."
    )


def write_choice_tables(run, manifest, candidates, chosen):
    """Tables 1-3."""
    for modality, models in candidates.items():
        number, title = TABLES[modality]
        cells = []
        for model, runs in models.items():
            cells += table_rows(
                manifest, short_name(model), runs, PAPER_CHOICE.get(short_name(model)), fraction=True
            )
            cells.append(
                Cell(
                    short_name(model),
                    "Validation accuracy",
                    [o["history"]["best"] for _, _, o in runs],
                    [(s, f.name) for s, f, _ in runs],
                    unit="",
                    digits=3,
                )
            )
        cells += chance_row(manifest, next(iter(models.values())), fraction=True)
        note = column_note() + (
            " The interval resamples the speakers of one test group only (two in IEMOCAP), so it says "
            f"little. Goes on to the folds: {short_name(chosen[modality])}."
        )
        run.table(
            f"babaali_table_{number}",
            f"Table {number}. {title}",
            cells,
            note,
            choice_protocol_text(manifest, N_GROUPS),
        )


def write_fold_results(run, manifest, results, chosen, protocol):
    """Table 4 and Figures 2-7."""
    cells = []
    for modality, runs in results.items():
        name = short_name(chosen[modality])
        cells += table_rows(manifest, name, runs, PAPER_FOLDS.get(name), fraction=False)
    cells += chance_row(manifest, next(iter(results.values())), fraction=False)
    run.table("babaali_table_4", "Table 4. Uni-modal performance", cells, column_note())
    for modality, runs in results.items():
        for path in learning_figures(
            run.folder, manifest, modality, runs, short_name(chosen[modality]), protocol
        ):
            run.figure([path])


def learning_figures(folder, manifest, modality, runs, model, protocol):
    """Figures 2-4 (loss) and 5-7 (accuracy) of one modality: a curve per fold, over steps; of the first seed."""
    position, what = {"text": (0, "text"), "audio": (1, "speech"), "video": (2, "video")}[modality]
    logs = {fold.name: outcome["history"]["log"] for seed, fold, outcome in runs if seed == SEEDS[0]}
    n_valid = sum(len(fold.valid) for seed, fold, _ in runs if seed == SEEDS[0])
    caption = (
        f"{model} on {manifest.corpus}, {what}; {protocol}; seed {SEEDS[0]}. "
        f"Validation curves: n = {n_valid:,} turns over all folds; training loss: mean of the epoch, with dropout."
    )
    level = chance([manifest.classes.index(t.label) for t in manifest.labelled], len(manifest.classes))[0]

    def curve(log, key, scale):
        return [entry["step"] for entry in log], [scale * entry[key] for entry in log]

    losses = {
        name: {"train": curve(log, "train_loss", 1), "valid": curve(log, "valid_loss", 1)}
        for name, log in logs.items()
    }
    hits = {name: {"valid": curve(log, "valid_accuracy", 100)} for name, log in logs.items()}
    return [
        *save(
            learning_curves(losses, "training step", "cross-entropy"),
            folder,
            f"babaali_fig_{2 + position}_{what}_loss",
            f"Figure {2 + position}. {caption}",
        ),
        *save(
            learning_curves(hits, "training step", "accuracy (%)", 100 * level),
            folder,
            f"babaali_fig_{5 + position}_{what}_accuracy",
            f"Figure {5 + position}. {caption}",
        ),
    ]


def write_predictions(run, manifest, results, chosen):
    """predictions.csv: every tested turn of every modality, fold and seed."""
    rows = []
    for modality, runs in results.items():
        pool = Pooled(manifest, runs)
        rows += prediction_rows(
            pool.turns, pool.classes, pool.runs, {short_name(chosen[modality]): pool.y_pred}
        )
    run.predictions(rows)


def write_results(run, manifest, candidates, results, chosen, protocol):
    """All tables, figures and logs of the stages that ran."""
    everything = [
        (model, *found) for models in candidates.values() for model, runs in models.items() for found in runs
    ]
    everything += [(chosen[modality], *found) for modality, runs in results.items() for found in runs]
    for model, seed, fold, outcome in everything:
        for entry in outcome["history"]["log"]:
            run.log({"event": "epoch", "model": short_name(model), "fold": fold.name, "seed": seed, **entry})
    if candidates:
        write_choice_tables(run, manifest, candidates, chosen)
    if results:
        write_fold_results(run, manifest, results, chosen, protocol)
        write_predictions(run, manifest, results, chosen)
    run.finish()


# ---- Main ----------------------------------------------------------------------------------


def main():
    manifest = read_manifest(DATA_ROOT, CORPUS)
    accelerator = make_accelerator(PRECISION)
    folds = make_folds(manifest, N_GROUPS, VALIDATE_ON, SELECT_ON, 0)
    protocol = protocol_text(manifest, folds, VALIDATE_ON, SELECT_ON)
    run = (
        start_run(__file__, SETTINGS, manifest, protocol, accelerator.device)
        if accelerator.is_main_process
        else None
    )
    modalities = modalities_of(manifest)
    chosen = chosen_models(modalities, {}) if CHOSEN_MODELS else {}
    candidates = choose_models(accelerator, manifest, modalities) if "choice" in STAGES else {}
    chosen = chosen or chosen_models(modalities, candidates)
    print("\nGoing on with " + ", ".join(short_name(model) for model in chosen.values()))
    results = {}
    if "folds" in STAGES:
        print("\n".join(check_folds(folds, manifest)))
        results = cross_validate(accelerator, manifest, chosen, folds)
        if OUT_OF_FOLD and len(folds) > 1:
            cross_validate(accelerator, manifest, chosen, leave_two_out(manifest, N_GROUPS, 0))
    if accelerator.is_main_process:
        write_results(run, manifest, candidates, results, chosen, protocol)


if __name__ == "__main__":
    settings.run(main, globals())
