"""Fine-tune one transformer per modality for emotion classification.

Paper: B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using
Pretrained Transformers", Sections 3.2, 3.3 (its 15 models) and 4.1.
Replicates Tables 1-3 (which text, speech and video model), Table 4 (the chosen three, five-fold) and
Figures 2-7 (loss and accuracy curves).

    python 02_finetune_unimodal.py                          # after 01_prepare_data.py
    python 02_finetune_unimodal.py --demo                   # 2 minutes on 2 CPU cores
    python 02_finetune_unimodal.py --scratch --CORPUS=ravdess     # small models from random weights, on a CPU
    accelerate launch 02_finetune_unimodal.py               # several GPUs

Writes results/02_finetune_unimodal/<corpus>/: babaali_table_1..4, babaali_fig_2..7, predictions.csv,
metrics.json, log.jsonl; and <DATA_ROOT>/models/<corpus>/<modality>/seed<k>/<fold>/: a folder for each model
and chosen.json, which names the one that 03 takes. A run that was killed resumes.

DEVIATIONS
1. The paper chooses the epoch on the set it reports in its five-fold runs (it names no other). Here one
   session validates: train on three, validate on one, test on one. SELECT_ON = "test" gives the paper's way;
   with TRAIN_ON_VALIDATION = False too, only the choice of the epoch differs from ours.
2. The paper does not say which RoBERTa, wav2vec 2.0, HuBERT, AST or VideoMAE checkpoint; its reference for
   RoBERTa is XLM-R's. We take the English base models without emotion fine-tuning.
3. "Batch sizes for training and validation are set to eight and four" for speech: read as 8 to train, 4 to
   evaluate. The evaluation batch changes only the run time here, since padding changes nothing.
4. "Sampled at 30 frames per second": VideoMAE takes 16 frames; as in its authors' fine-tuning on short clips
   every 4th of 30 per second is taken, 2.1 s, at a random place in training and in the middle otherwise.
5. "A fully connected layer and a softmax layer on top": dropout and one linear layer on the CLS token (text),
   the mean over time (wav2vec 2.0, HuBERT), the mean of two class tokens (AST), of all tokens (VideoMAE). The
   class of transformers for VideoMAE, probably the paper's, reads the first patch: VIDEO_POOLING = "cls".
6. Not in the paper: optimiser and schedule. AdamW, linear decay, gradient norm clipped at 1, as the Trainer
   of transformers does by default, whose figures (loss, accuracy, run time) are the columns of the tables.
7. Not in the paper: a training batch holds turns of similar length, so that less of it is padding.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common import encoders, plots, splits
from common.encoders import TurnEncoder, load_backbone, locate, short_name
from common.files import UserError, faults_of, hash_of, write_json
from common.inputs import Clipping, cache_states, read_inputs
from common.jobs import side_by_side
from common.manifest import corpus_name, read_manifest
from common.metrics import accuracy, chance, unweighted_recall, weighted_f1
from common.results import Cell, paper_figures, prediction_rows, score_cells, start_run
from common.training import Place, Recipe, Task, loss_and_accuracy, make_accelerator, train_and_test

# fmt: off
# ---- Roots ---------------------------------------------------------------------------------
DATA_ROOT = "data"                  # folder of corpora, checkpoints, models
RESULTS_ROOT = "results"            # tables and figures go to <RESULTS_ROOT>/<script>/<corpus>/
RUN = ""                            # name of its folder; "" = the corpus and what differs from the preset

# ---- Corpus and protocol -------------------------------------------------------------------
CORPUS = "iemocap"                  # what 01 prepared: "iemocap", "ravdess", "emodb", "meld", or a folder
MODALITIES = ("text", "audio", "video")     # those the corpus lacks are left out, and said so
STAGES = ("choice", "folds")        # "choice": Tables 1-3; "folds": Table 4 and Figures 2-7
SEEDS = (0, 1, 2)                   # one full run each; tables show mean ± sd over them. Not in the paper
N_GROUPS = 5                        # folds, where a corpus has neither sessions nor an official split
SELECT_ON = "validation"            # chooses the epoch; "test" is the paper's way (optimistic)
TRAIN_ON_VALIDATION = True          # the validation speakers too, with SELECT_ON = "test": the paper's way
VALIDATE_ON = "group"               # "group": the next session or speaker group; "speaker": a random speaker

# ---- Models (Sec. 3.2); the hub names are not in the paper -----------------------------------
CHECKPOINTS = "hub"                 # "hub", "local" (what 01 wrote to <DATA_ROOT>/checkpoints/<corpus>), or a
                                    # folder with one sub-folder per model
TEXT_MODELS = ("bert-base-uncased", "roberta-base", "distilbert-base-uncased")  # candidates of Table 1
AUDIO_MODELS = ("facebook/wav2vec2-base", "facebook/hubert-base-ls960",
                "MIT/ast-finetuned-audioset-10-10-0.4593")      # candidates of Table 2
VIDEO_MODELS = ("MCG-NJU/videomae-base",)   # the one of Table 3
CHOSEN_MODELS = ("bert-base-uncased", "facebook/wav2vec2-base", "MCG-NJU/videomae-base")    # Sec. 3.3; () =
                                    # each fold trains all and takes the best on its validation speakers

# ---- Training (Sec. 3.2) -------------------------------------------------------------------
TEXT_LEARNING_RATE = 2e-5           # peak
TEXT_EPOCHS = (20,)                 # one for each of TEXT_MODELS; where there are fewer, the first
TEXT_BATCH_SIZE = 32                # samples per step, over all processes
TEXT_EVAL_BATCH_SIZE = 32           # changes the run time, not the result
AUDIO_LEARNING_RATE = 3e-5          # peak
AUDIO_EPOCHS = (15, 15, 30)         # of AUDIO_MODELS, as above
AUDIO_BATCH_SIZE = 8                # samples per step
AUDIO_EVAL_BATCH_SIZE = 4           # changes the run time, not the result
VIDEO_LEARNING_RATE = 5e-5          # peak
VIDEO_EPOCHS = (10,)                # of VIDEO_MODELS, as above
VIDEO_BATCH_SIZE = 8                # samples per step
VIDEO_EVAL_BATCH_SIZE = 8           # changes the run time, not the result. Not in the paper
WEIGHT_DECAY = 0.01                 # of AdamW, on weight matrices
DROPOUT = 0.1                       # in front of the linear layer. Not in the paper
WARMUP_SHARE = 0.0                  # share of the steps with a rising rate. Not in the paper

# ---- Inputs (Sec. 3.2) ---------------------------------------------------------------------
AUDIO_MAX_S = 10.0                  # seconds; longer turns are cut
VIDEO_MAX_S = 10.0                  # seconds kept of a turn for random clips. Not in the paper
VIDEO_FPS = 30.0                    # frames per second at which clips are sampled
VIDEO_STRIDE = 4                    # every 4th of these. Not in the paper
MIRROR_PROBABILITY = 0.5            # of a training video

# ---- Encoders (Sec. 3.2): how they are read, and how much of them is trained ------------------
TEXT_POOLING = "paper"              # "paper" (CLS), "cls", "mean" of the tokens, "attention" (trained mean)
AUDIO_POOLING = "paper"             # "paper" (mean over time; AST: its class tokens), or as above
VIDEO_POOLING = "paper"             # "paper" (mean), "cls" (the first patch), or as above
TEXT_LAYER = "last"                 # "last"; a number, 0 = before the first block; "weighted": the sum of all
                                    # by trained weights; "chosen": the best on a fold's validation speakers
AUDIO_LAYER = "last"                # likewise; "chosen" needs the modality in FREEZE
VIDEO_LAYER = "last"                # likewise
FREEZE = ()                         # modalities whose encoder is not trained, the linear layer alone
UNFREEZE_BLOCKS = 0                 # of the others: 0 = train all; N = the last N blocks up to LAYER

# ---- Beyond the paper ----------------------------------------------------------------------
OUT_OF_FOLD = True                  # also train ten leave-two-groups-out models, for 04's out-of-fold fusion
N_RESAMPLES = 10000                 # of the speaker bootstrap behind every interval

# ---- Machine -------------------------------------------------------------------------------
PRECISION = "auto"                  # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"
DETERMINISTIC = True                # the same numbers again on the same machine; False is faster on a GPU
WORKERS = 4                         # that decode media (threads) and prepare batches (processes), 0 = none
JOBS = 1                            # trainings side by side
TRACKER = ""                        # "tensorboard" (in data/models) or "wandb" sees every epoch; "" = none

# ---- Presets -------------------------------------------------------------------------------
DEMO = {"CORPUS": "demo_iemocap", "SEEDS": (0,), "CHECKPOINTS": "local", "OUT_OF_FOLD": False, "WORKERS": 0,
        "JOBS": 2, "TEXT_LEARNING_RATE": 1.5e-3, "TEXT_EPOCHS": (6,), "TEXT_BATCH_SIZE": 16,
        "AUDIO_LEARNING_RATE": 1.5e-3, "AUDIO_EPOCHS": (4, 4, 6), "AUDIO_BATCH_SIZE": 16,
        "VIDEO_LEARNING_RATE": 1e-3, "VIDEO_EPOCHS": (6,), "VIDEO_BATCH_SIZE": 16,
        "AUDIO_EVAL_BATCH_SIZE": 32, "VIDEO_EVAL_BATCH_SIZE": 32, "AUDIO_MAX_S": 3.0, "WARMUP_SHARE": 0.1,
        "DROPOUT": 0.3, "RESULTS_ROOT": "results/mine"}     # tiny models, synthetic corpus
SCRATCH = {"SEEDS": (0,), "CHECKPOINTS": "local", "OUT_OF_FOLD": False, "WORKERS": 0, "JOBS": 2,
           "TEXT_LEARNING_RATE": 5e-4, "TEXT_EPOCHS": (6,),
           "AUDIO_LEARNING_RATE": 5e-4, "AUDIO_EPOCHS": (15, 15, 25), "AUDIO_BATCH_SIZE": 16,
           "AUDIO_EVAL_BATCH_SIZE": 32, "DROPOUT": 0.3, "WARMUP_SHARE": 0.1}    # two CPU cores, from random
                                    # weights: models that 01 wrote with --scratch
FROZEN = {"FREEZE": ("text", "audio", "video"), "TEXT_LEARNING_RATE": 1e-3, "TEXT_EPOCHS": (30,),
          "AUDIO_LEARNING_RATE": 1e-3, "AUDIO_EPOCHS": (50,), "AUDIO_BATCH_SIZE": 32,
          "VIDEO_LEARNING_RATE": 1e-3, "VIDEO_EPOCHS": (50,), "VIDEO_BATCH_SIZE": 32,
          "OUT_OF_FOLD": False}     # the linear layer alone: minutes on two CPU cores
SETTINGS = {}                       # filled by settings.run: what this run used
# fmt: on

# Columns of the tables; the last is the measure that papers on MELD give
MEASURES = {"Accuracy": accuracy, "Mean recall": unweighted_recall, "Weighted F1": weighted_f1}
TABLES = {"text": ("1", "Text models"), "audio": ("2", "Speech models"), "video": ("3", "Video model")}
CURVES = {"text": (2, 5, "text"), "audio": (3, 6, "speech"), "video": (4, 7, "video")}


# ---- Data ----------------------------------------------------------------------------------


def modalities_of(manifest):
    """MODALITIES of which the corpus has at least one labelled turn; prints how many it has."""
    counts = {m: sum(bool(getattr(turn, m)) for turn in manifest.labelled) for m in MODALITIES}
    for modality, n in counts.items():
        left_out = "" if n else ": left out"
        print(f"  {modality:<9} {n:,} of {len(manifest.labelled):,} labelled turns{left_out}")
    return [modality for modality, n in counts.items() if n]


def constant(modality, name):
    """The constant <MODALITY>_<name>: TEXT_EPOCHS of ("text", "EPOCHS")."""
    return globals()[f"{modality.upper()}_{name}"]


def readings_of(modality, source):
    """How an encoder is read and how much of it is trained: the arguments of TurnEncoder, for each layer."""
    n_trained, layers = 0 if modality in FREEZE else UNFREEZE_BLOCKS or None, [constant(modality, "LAYER")]
    if layers == ["chosen"]:
        layers = [str(i) for i in range(encoders.load_config(source).num_hidden_layers + 1)]
    how = {"pooling": constant(modality, "POOLING"), "n_trained": n_trained}
    return [{**how, "layer": layer} for layer in layers]


def chosen_models(modality):
    """The models of a modality to cross-validate: one of CHOSEN_MODELS; if it is empty, all candidates."""
    models, wanted = constant(modality, "MODELS"), {short_name(name) for name in CHOSEN_MODELS}
    named = tuple(model for model in models if short_name(model) in wanted)
    if CHOSEN_MODELS and not named:
        remedy = "add one, or leave it empty"
        raise UserError(f"CHOSEN_MODELS: names none of {', '.join(models)} for {modality}; {remedy}")
    return named[:1] or models


def open_models(manifest, needed):
    """{(modality, model): TurnEncoder}: all are there and whole before anything slow; lists all faults."""
    found = {}

    def open_model(pair):
        modality, model = pair
        source = locate(model, CHECKPOINTS, DATA_ROOT, manifest.corpus)
        found[pair] = TurnEncoder(load_backbone(source), modality, **readings_of(modality, source)[-1])

    if faults := faults_of(open_model, needed):
        raise UserError(f"{'; '.join(faults)}; --demo needs no download, 01 --demo writes its models")
    return found


def inputs_of(manifest, modality, model, encoder):
    """The turns as the model reads them; media are decoded once, and what is frozen is computed once."""
    source = locate(model, CHECKPOINTS, DATA_ROOT, manifest.corpus)
    clipping = Clipping(AUDIO_MAX_S, VIDEO_MAX_S, VIDEO_FPS, VIDEO_STRIDE)
    inputs = read_inputs(manifest, modality, source, clipping, DATA_ROOT, WORKERS)
    accelerator = make_accelerator(PRECISION, DETERMINISTIC, TRACKER)
    batch_size = constant(modality, "EVAL_BATCH_SIZE")
    return cache_states(inputs, encoder, accelerator, DATA_ROOT, manifest.corpus, batch_size)


# ---- Model ---------------------------------------------------------------------------------


class EmotionClassifier(nn.Module):
    """A pretrained transformer with "a fully connected layer and a softmax layer on top" (Sec. 3.2).

    source  checkpoint: hub name or folder; n_classes: C; reading: of TurnEncoder
    """

    def __init__(self, source, modality, n_classes, **reading):
        super().__init__()
        self.encoder = TurnEncoder(load_backbone(source), modality, **reading)
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(self.encoder.width, n_classes)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, inputs):
        """inputs: a batch of common/inputs.py. Returns logits (B, C); the softmax is in the loss."""
        representation = self.encoder(inputs)  # (B, D): one pooled vector
        return self.linear(self.dropout(representation))


# ---- Train and test ------------------------------------------------------------------------


def cross_entropy(classifier, batch):
    """Sum of the cross-entropy over the batch, and its size (Sec. 3.2)."""
    logits = classifier(batch["inputs"]).float()
    return F.cross_entropy(logits, batch["labels"], reduction="sum"), len(logits)


def outputs(classifier, batch):
    return {"logits": classifier(batch["inputs"])}


def recipe_of(modality, model, seed):
    """The Recipe of a model (Sec. 3.2); one without an entry in EPOCHS trains as long as the first."""
    models, epochs = constant(modality, "MODELS"), constant(modality, "EPOCHS")
    how = {"weight_decay": WEIGHT_DECAY, "warmup": WARMUP_SHARE, "seed": seed}
    how["eval_batch_size"] = constant(modality, "EVAL_BATCH_SIZE")
    how["workers"] = 0 if modality in FREEZE else WORKERS
    sizes = dict(zip(models, epochs)).get(model, epochs[0]), constant(modality, "BATCH_SIZE")
    return Recipe(constant(modality, "LEARNING_RATE"), *sizes, **how)


def folder_of(modality, model, fold, seed, reading):
    """<DATA_ROOT>/models/<corpus>/<modality>/seed<k>/<fold>/<model>, with the layer where one is chosen."""
    root = Path(DATA_ROOT) / "models" / corpus_name(CORPUS) / modality
    ending = f"_layer{reading['layer']}" if constant(modality, "LAYER") == "chosen" else ""
    return root / f"seed{seed}" / fold.name / f"{short_name(model)}{ending}"


@dataclass
class Trial:
    """A model that is fine-tuned on a fold, and what came of it; all data, since it travels to a process."""

    modality: str
    model: str
    fold: splits.Fold
    seed: int
    reading: dict  # arguments of TurnEncoder
    folder: Path
    recipe: Recipe
    outcome: dict | None = None  # of train_and_test

    @property
    def valid_accuracy(self):
        return self.outcome["history"]["best"]

    @property
    def test(self):
        return self.outcome["tests"]["test"]


def fine_tune(inputs, trial):
    """Train a model on fold.train, keep the epoch with the best accuracy on fold.valid, test it on fold.test.

    inputs  TurnInputs of the whole corpus
    Returns the outcome of train_and_test, which trains nothing twice.
    """
    accelerator, fold, folder = make_accelerator(PRECISION, DETERMINISTIC, TRACKER), trial.fold, trial.folder
    parts = {"train": fold.train, "valid": fold.valid, "test": fold.test}
    data = {name: inputs.of(turns, MIRROR_PROBABILITY * (name == "train")) for name, turns in parts.items()}
    identity = {**inputs.made_of, "encoder": trial.reading, "classes": list(inputs.classes)}
    identity |= {"dropout": DROPOUT, "mirror": MIRROR_PROBABILITY}
    identity["turns"] = hash_of([part.ids for part in data.values()])

    def make_model():
        torch.manual_seed(trial.seed)  # before loading too: a checkpoint may lack weights, such as a pooler
        network = EmotionClassifier(inputs.source, trial.modality, len(inputs.classes), **trial.reading)
        if network.encoder.is_frozen:
            train = data["train"]
            states = np.concatenate([train.states.rows(i, "states") for i in train.ids])  # (tokens, L, D)
            network.encoder.standardise(states)
        return network

    place = Place(folder, identity, f"{folder.name} {fold.name} seed {trial.seed}")
    task, is_kept = Task(make_model, cross_entropy, outputs, loss_and_accuracy), fold.name != "choice"
    outcome = train_and_test(accelerator, task, data, trial.recipe, place, keep_weights=is_kept)
    if is_kept and accelerator.is_main_process:
        about = {"modality": trial.modality, "model": folder.name, "source": inputs.source, "fold": fold.name}
        speakers = {f"{name}_speakers": splits.speakers_of(turns) for name, turns in parts.items()}
        names = ("SELECT_ON", "VALIDATE_ON", "TRAIN_ON_VALIDATION")
        protocol = {name.lower(): SETTINGS[name] for name in names}
        description = {**identity, **about, **speakers, **protocol}
        encoders.save_finetuned(folder, inputs.source, inputs.processor, description)  # for 03
    return outcome


# ---- Stages --------------------------------------------------------------------------------


def train_all(inputs, models, folds):
    """Every model {modality: models} with every seed on every fold; a list of Trial."""
    trials = [
        Trial(m, model, fold, seed, how, folder_of(m, model, fold, seed, how), recipe_of(m, model, seed))
        for m, names in models.items()
        for model in names
        for how in readings_of(m, inputs[m, model].source)
        for seed in SEEDS
        for fold in folds
    ]
    outcomes = side_by_side(fine_tune, [(inputs[t.modality, t.model], t) for t in trials], JOBS)
    return [replace(trial, outcome=outcome) for trial, outcome in zip(trials, outcomes)]


def best_of(trials, key):
    """Of the trials that have the same key(trial) the one with the best validation accuracy."""
    groups = {}
    for trial in trials:
        groups.setdefault(key(trial), []).append(trial)
    return [max(group, key=lambda trial: trial.valid_accuracy) for group in groups.values()]


def compare_candidates(manifest, inputs, candidates):
    """Sec. 3.2: every candidate on sessions 1-3 / 4 / 5."""
    fold = splits.model_choice_split(manifest, N_GROUPS)
    print("\nModel choice: Tables 1-3", *splits.check_folds([fold], manifest), sep="\n")
    return best_of(train_all(inputs, candidates, [fold]), lambda t: (t.modality, t.model, t.seed))


def cross_validate(inputs, models, folds):
    """Sec. 3.3: one model per fold. Of several candidates a fold takes the best on its validation part."""
    best = best_of(train_all(inputs, models, folds), lambda t: (t.modality, t.seed, t.fold.name))
    for t in best:
        write_json(t.folder.parent / "chosen.json", {"model": t.folder.name})  # for 03
    return best


# ---- Tables and figures --------------------------------------------------------------------


class Pooled:
    """Predictions of trials of one kind pooled over folds, in the order of the labelled turns."""

    def __init__(self, manifest, trials):
        self.turns = manifest.labelled
        row = {turn.utterance_id: i for i, turn in enumerate(self.turns)}
        self.y_true = np.array([manifest.classes.index(turn.label) for turn in self.turns])
        self.speakers = np.array([turn.speaker for turn in self.turns])
        self.y_pred = np.full((len(SEEDS), len(self.turns)), -1)  # -1 = not tested
        self.runs = {}
        for t in trials:
            seed, tested = SEEDS.index(t.seed), np.array([row[i] for i in t.test["ids"]])
            self.y_pred[seed, tested] = np.argmax(t.test["outputs"]["logits"], axis=1)
            self.runs[t.seed, t.fold.name] = (slice(seed, seed + 1), tested)
        tested = self.y_true[(self.y_pred >= 0).all(0)]
        self.n = len(tested)
        self.chance = [100 * level for level in chance(tested, len(manifest.classes))]  # of MEASURES


def row_cells(manifest, number, row, trials):
    """A row of Table `number`: the paper's three columns, and ours."""
    pool, printed = Pooled(manifest, trials), printed_figures(manifest, number, row)

    def cell(column, values, unit, n=pool.n):
        return Cell(row, column, values, list(pool.runs), printed.get(column), unit=unit, n=n)

    data = pool.y_true, pool.y_pred, pool.speakers, pool.runs, N_RESAMPLES
    return [
        cell("Loss", [t.test["figures"]["loss"] for t in trials], ""),
        *score_cells(row, MEASURES, *data, paper=printed),
        cell("Runtime", [t.outcome["test_seconds"] for t in trials], "s"),
        cell("Validation accuracy", [100 * t.valid_accuracy for t in trials], "%", None),
        cell("Training", [t.outcome["history"]["seconds"] for t in trials], "s"),
    ]


def printed_figures(manifest, number, row):
    """The paper's numbers {column: value} for a row of Table `number`; in %, where it prints fractions."""
    found = paper_figures(Path(__file__).parent / "common" / "babaali" / "paper.csv")
    printed = {column: value for (*where, column), value in found.items() if where == [number, row]}
    if number in "123" and printed:
        printed["Accuracy"] *= 100
    return printed if manifest.corpus == "iemocap" else {}


def write_table(run, manifest, number, title, rows, note="", protocol=None):
    """Table `number` of rows {name: list of Trial}, with a row for chance."""
    cells = [cell for row, trials in rows.items() for cell in row_cells(manifest, number, row, trials)]
    pool = Pooled(manifest, next(iter(rows.values())))
    most_frequent = "always the most frequent class"
    cells += [Cell(most_frequent, c, [level], n=pool.n) for c, level in zip(MEASURES, pool.chance)]
    columns = (
        "Loss: mean cross-entropy on the test turns. Runtime: seconds to evaluate them once (the paper gives "
        "no unit or hardware; read as transformers' eval_runtime). Training: seconds for all epochs. "
    )
    run.table(f"babaali_table_{number}", f"Table {number}. {title}", cells, columns + note, protocol)


def write_choice_tables(run, manifest, compared, chosen):
    """Tables 1-3."""
    for modality in dict.fromkeys(t.modality for t in compared):
        number, title = TABLES[modality]
        own = [t for t in compared if t.modality == modality]
        rows = {short_name(t.model): [u for u in own if u.model == t.model] for t in own}
        note = "The interval resamples the speakers of a single test group, two in IEMOCAP: it says little."
        if modality in chosen:
            note += f" To be cross-validated: {row_name(modality, chosen[modality])}."
        write_table(run, manifest, number, title, rows, note, splits.protocol_text(manifest))


def row_name(modality, models):
    """What the cross-validated models of a modality are called."""
    return short_name(models[0]) if len(models) == 1 else f"best {modality} model of each fold"


def write_fold_results(run, manifest, tested, chosen):
    """Table 4, Figures 2-7 and predictions.csv."""
    rows = {row_name(m, models): [t for t in tested if t.modality == m] for m, models in chosen.items()}
    chosen_layers = [m for m in chosen if constant(m, "LAYER") == "chosen"]
    layers = {m: ", ".join(t.reading["layer"] for t in tested if t.modality == m) for m in chosen_layers}
    note = " ".join(f"Layers of {m} chosen on validation: {found}." for m, found in layers.items())
    write_table(run, manifest, "4", "Uni-modal performance", rows, note)
    predictions = []
    for modality, (name, trials) in zip(chosen, rows.items()):
        pool = Pooled(manifest, trials)
        draw_curves(run, manifest, modality, name, [t for t in trials if t.seed == SEEDS[0]], pool.chance[0])
        predictions += prediction_rows(pool.turns, manifest.classes, pool.runs, {name: pool.y_pred})
    run.predictions(predictions)


def draw_curves(run, manifest, modality, name, trials, level):
    """Figures 2-4 (loss) and 5-7 (accuracy) of one modality over training steps: a curve per fold."""
    loss_figure, accuracy_figure, what = CURVES[modality]
    losses, hits = {}, {}
    for t in trials:
        log = t.outcome["history"]["log"]
        steps, parts = [epoch["step"] for epoch in log], ("train", "valid")
        losses[t.fold.name] = {part: (steps, [epoch[f"{part}_loss"] for epoch in log]) for part in parts}
        hits[t.fold.name] = {"valid": (steps, [100 * epoch["valid_accuracy"] for epoch in log])}
    n = sum(len(t.fold.valid) for t in trials)
    caption = (
        f"{name} on {manifest.corpus}, {what}; {run.protocol}; seed {SEEDS[0]}. Validation curves: n = {n:,} "
        "turns over all folds; training loss: mean of the epoch, with dropout."
    )
    for number, measure, drawn in (
        (loss_figure, "loss", plots.learning_curves(losses, "training step", "cross-entropy")),
        (accuracy_figure, "accuracy", plots.learning_curves(hits, "training step", "accuracy (%)", level)),
    ):
        plots.save(drawn, run.folder, f"babaali_fig_{number}_{what}_{measure}", f"Figure {number}. {caption}")


# ---- Main ----------------------------------------------------------------------------------


def check_constants():
    """Refuse misspelt choices before anything slow."""
    choices = {f"{modality.upper()}_POOLING": encoders.POOLINGS for modality in TABLES}
    choices |= dict.fromkeys(("MODALITIES", "FREEZE"), tuple(TABLES)) | {"STAGES": ("choice", "folds")}
    settings.check_choices(SETTINGS, choices)
    for modality in TABLES:
        name, layer = f"{modality.upper()}_LAYER", constant(modality, "LAYER")
        if layer not in ("last", "weighted", "chosen") and not layer.isdigit():
            raise UserError(f"{name}={layer}: choose from last, weighted, chosen, or the number of a layer")
        if layer == "chosen" and modality not in FREEZE:
            raise UserError(f"{name}=chosen: only of a frozen encoder; add it to FREEZE or choose weighted")


def main():
    check_constants()
    manifest = read_manifest(DATA_ROOT, CORPUS)
    accelerator = make_accelerator(PRECISION, DETERMINISTIC, TRACKER)
    folds = splits.make_folds(manifest, N_GROUPS, VALIDATE_ON, SELECT_ON, 0, 1, TRAIN_ON_VALIDATION)
    protocol = splits.protocol_text(manifest, folds, VALIDATE_ON, SELECT_ON)
    if accelerator.is_main_process:
        run = start_run(__file__, SETTINGS, manifest, protocol, accelerator.device)

    modalities = modalities_of(manifest)
    chosen = {m: chosen_models(m) for m in modalities} if "folds" in STAGES else {}
    candidates = {m: constant(m, "MODELS") for m in modalities} if "choice" in STAGES else chosen
    needed = [(m, model) for m, models in candidates.items() for model in models]
    models = open_models(manifest, needed)
    with accelerator.main_process_first():
        inputs = {pair: inputs_of(manifest, *pair, models.pop(pair)) for pair in needed}

    compared, tested = [], []
    if "choice" in STAGES:  # Tables 1-3
        compared = compare_candidates(manifest, inputs, candidates)
    if "folds" in STAGES:  # Table 4, Figures 2-7
        print("\nCross-validation: Table 4\n" + "\n".join(splits.check_folds(folds, manifest)))
        tested = cross_validate(inputs, chosen, folds)
        if OUT_OF_FOLD and len(folds) > 1:
            pairs = splits.make_folds(manifest, N_GROUPS, "speaker", "validation", 0, leave_out=2)
            cross_validate(inputs, chosen, pairs)

    if accelerator.is_main_process:
        if compared:
            write_choice_tables(run, manifest, compared, chosen)
        if tested:
            write_fold_results(run, manifest, tested, chosen)
        for t in compared + tested:
            about = {"model": short_name(t.model), "fold": t.fold.name, "seed": t.seed}
            for entry in t.outcome["history"]["log"]:
                run.log({"event": "epoch", **about, **entry})
        run.finish()


if __name__ == "__main__":
    settings.run(main, globals())
