"""Context-aware audio-text fusion with WavLM and BERT: experiments of the second paper that 04 replicates.

Paper: J. Li, S. Wang, Y. Chao, X. Liu, H. Meng, "Context-aware Multimodal Fusion for Emotion Recognition",
Interspeech 2022, Sections 2.4, 3 and 4. The network (Sections 2.1-2.3) is common/li/model.py, hidden states and
context windows are common/li/hidden_states.py, tables and Figure 4 are common/li/tables.py.

Writes results/04_fuse_classify/<corpus>/: li_table_1, li_table_2, li_fig_4_confusion (as in the paper);
li_table_tests, li_table_context, li_table_styles (beyond it); li_predictions.csv, li_metrics.json, log.jsonl. Each
trained system leaves <DATA_ROOT>/models/<corpus>/li/<system>/<context>/seed<k>/<fold>/<phase>/, so that a killed run
goes on. `c` holds the constants of 04.

DEVIATIONS and what the paper leaves open; constants of 04 in capitals
1. What the context convolution of kernel 3 slides over, and how its output is one embedding, is not said. Here
   (CONTEXT_OVER = "utterances") over the nine utterances, each the mean of its tokens; the average of its output is
   added to every token of the target ("enhance"), since the CMT needs the target's tokens. "tokens" slides over the
   target's tokens with channels for each neighbour: nine times the weights. Both start at zero, so that training
   starts from the target alone.
2. How 25 calibrated layers become one sequence is not said: their mean (LAYER_MERGE), or all of them side by side.
3. Not in the paper: hidden units of projector and classifier, heads (Eq. 1 has one), blocks, feed-forward width,
   dropout inside a block, sinusoidal positions (of "the vanilla Transformer"), the order Linear-ReLU-Linear-LayerNorm.
   LayerNorm comes before attention, as in the cross-modal Transformer that it cites (Tsai et al.), or after it, as in
   the vanilla one (NORM_FIRST).
4. A Transformer block adds its input, here the target, to what it attends to. The paper's CMT(A→T), with text as
   target, is nearly as weak as audio alone (67.76 against 66.15): perhaps theirs adds nothing. CMT_RESIDUAL = False
   tries that.
5. "25 layers" are the input of the first Transformer layer (the projected CNN output with WavLM's position
   convolution) and 24 outputs, all without WavLM's final LayerNorm; 13 for BERT. The pretrained models stay in
   evaluation mode in both phases.
6. Squeezing takes the mean over time and width, as squeeze-and-excitation does. Behind a LayerNorm that mean hardly
   varies, so that for BERT the gate comes close to one fixed weight per layer. Its single unit starts alive (bias 1).
7. The weights after the last epoch are tested, as in the paper, or the best of each phase (KEEP_EPOCH). Fine-tuning starts from those of the
   frozen phase and counts on: 5 epochs without a lower loss on the development speaker start it, 10 end it. The frozen
   systems are the weights at that start. MAX_EPOCHS bounds both phases; in the presets it ends most of them.
8. Weight decay is on matrices only; AdamW starts afresh for fine-tuning. Neither is in the paper.
9. "Voiced 5 seconds": the first 5 s. Shorter turns are padded and masked instead of seen as silence.
10. The development speaker is drawn anew for each seed. The interlocutor is a training speaker, so that each sees the
    other's words as context. The test session shares nothing with either; context never crosses that border.
11. Slips of the paper: 1,626 happy turns (1,636 make its total of 5,531); 84.35 in its conclusion is 84.45 in Table 2.
"""

import hashlib
import time
from copy import copy
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from common import splits
from common.encoders import load_backbone, locate
from common.errors import UserError
from common.files import write_json
from common.inputs import has_modality
from common.li import tables as li_tables
from common.li.hidden_states import Utterances, Windows, context_windows
from common.li.model import BRANCHES, PHASES, Design, build_system, modalities_of
from common.results import prediction_rows, score_cell, start_run
from common.training import Recipe, best_weights, fit, kept_outcome, make_accelerator, predict

# ---- What a run works on -------------------------------------------------------------------


class Study:
    """The labelled turns, folds, hidden states and outcomes of a run."""

    def __init__(self, c, manifest, accelerator):
        self.c, self.manifest, self.accelerator, self.turns = c, manifest, accelerator, manifest.labelled
        self.name = "li"  # of the folder for trained systems
        self.folds_of = self.draw_folds()
        self.folds = self.folds_of[c.SEEDS[0]]
        self.row = {turn.utterance_id: i for i, turn in enumerate(self.turns)}
        self.y = np.array([manifest.classes.index(turn.label) for turn in self.turns])
        self.speakers = np.array([turn.speaker for turn in self.turns])
        self.tested = [np.array([self.row[turn.utterance_id] for turn in fold.test]) for fold in self.folds]
        self.scored = np.sort(np.concatenate(self.tested))
        self.window = c.CONTEXT_BEFORE, c.CONTEXT_AFTER
        self.phases = PHASES if c.FINETUNED_PARTS != "none" else PHASES[:1]
        self.systems = possible_systems(c.SYSTEMS, manifest)
        self.utterances = {
            m: self.read(m) for m in sorted({m for s in self.systems for m in modalities_of(s)})
        }
        self.frozen_backbones = {}
        self.micro_batch = {}  # (system, phase) -> samples per forward pass that fitted into memory
        self.predicted = {}  # (system, phase, context) -> (seeds, N) class numbers, -1 where not scored
        self.n_cut = {}  # (fold, part, context) -> neighbours that lie across the border of the test part
        self.valid_loss = {}  # (system, phase, context, seed number, fold number) -> on the development speaker

    def draw_folds(self):
        """{seed: folds}: a seed draws its own development speakers; the test parts are those of every seed."""
        c = self.c
        return {
            seed: splits.make_folds(self.manifest, c.N_GROUPS, c.DEVELOP_ON, "validation", seed)
            for seed in c.SEEDS
        }

    def for_contexts(self):
        """The study of context sizes: the same turns and hidden states under STUDY_SEEDS and STUDY_EPOCHS.

        This very study where these are the run's own, so that nothing is trained twice.
        """
        c = self.c
        own = {
            "SEEDS": c.STUDY_SEEDS or c.SEEDS,
            "MAX_EPOCHS": (c.STUDY_EPOCHS or c.MAX_EPOCHS[0], c.MAX_EPOCHS[1]),
        }
        if all(tuple(getattr(c, name)) == tuple(value) for name, value in own.items()):
            return self
        other = copy(self)
        other.c, other.name = SimpleNamespace(**{**vars(c), **own}), "li_contexts"
        other.folds_of = other.draw_folds()
        other.predicted, other.n_cut, other.valid_loss = {}, {}, {}
        return other

    def read(self, modality):
        """The Utterances of a modality: of audio the labelled turns, of text all, since any can be context."""
        c, corpus = self.c, self.manifest.corpus
        name = {"audio": c.AUDIO_MODEL, "text": c.TEXT_MODEL}[modality]
        source = locate(name, c.CHECKPOINTS, c.DATA_ROOT, corpus)
        turns = self.manifest.turns if modality == "text" else self.turns
        return Utterances(
            self.manifest,
            modality,
            source,
            turns,
            c.AUDIO_MAX_S,
            c.TEXT_MAX_TOKENS,
            Path(c.DATA_ROOT) / "cache" / corpus,
            c.WORKERS,
        )

    def keep_states(self):
        """Choose where the frozen hidden states come from; text first, since it is small."""
        memory_gb, disk_gb = self.c.MEMORY_GB, self.c.DISK_GB
        for modality in sorted(self.utterances, reverse=True):
            utterances = self.utterances[modality]
            taken = utterances.prepare(
                self.accelerator,
                self.c.HIDDEN_STATES,
                memory_gb,
                disk_gb,
                self.c.EVAL_BATCH_SIZE,
                self.c.WORKERS,
            )
            memory_gb, disk_gb = memory_gb - taken[0], disk_gb - taken[1]
            if utterances.place == "recompute":
                self.frozen_backbones[modality] = load_backbone(utterances.source).to(self.accelerator.device)

    def runs(self, rows=None):
        """{(seed, fold): (rows of the predictions, turns)} for score_cell; rows: only these turns."""
        chosen = [t if rows is None else np.intersect1d(t, rows) for t in self.tested]
        return {
            (seed, fold.name): (slice(i, i + 1), part)
            for i, seed in enumerate(self.c.SEEDS)
            for fold, part in zip(self.folds, chosen)
            if len(part)
        }

    def pooled(self):
        """As `runs`, all folds taken together."""
        return {(seed, "pooled"): (slice(i, i + 1), self.scored) for i, seed in enumerate(self.c.SEEDS)}

    def cell(self, row, column, metric, predictions, paper=None, runs=None):
        """One table cell in %, from predictions (seeds, N)."""
        return score_cell(
            row,
            column,
            metric,
            self.y,
            predictions,
            self.speakers,
            runs or self.runs(),
            self.c.N_RESAMPLES,
            paper,
        )


def possible_systems(names, manifest):
    """Those of SYSTEMS whose modalities most labelled turns have; prints which are left out."""
    unknown = [name for name in names if name not in BRANCHES]
    if unknown:
        raise UserError(f"SYSTEMS={unknown[0]}: choose among {', '.join(BRANCHES)}")
    counts = {m: sum(has_modality(t, m) for t in manifest.labelled) for m in ("audio", "text")}
    present = {m for m, count in counts.items() if 2 * count > len(manifest.labelled)}
    found = [name for name in names if set(modalities_of(name)) <= present]
    print(
        f"  audio {counts['audio']:,}, text {counts['text']:,} of {len(manifest.labelled):,} labelled turns"
    )
    for name in (n for n in names if n not in found):
        print(f"  {name}: needs {' and '.join(modalities_of(name))}; left out")
    if not found:
        raise UserError(
            f"{manifest.folder}/manifest.csv: none of SYSTEMS={','.join(names)} has its modalities there"
        )
    return found


# ---- Training (Sections 2.4 and 3.2) -------------------------------------------------------


def design_of(c):
    """The network's sizes and choices from the constants."""
    return Design(
        c.WIDTH,
        c.SE_REDUCTION,
        c.LAYER_MERGE,
        c.PROJECTOR_HIDDEN,
        c.CONTEXT_OVER,
        c.HEADS,
        c.BLOCKS,
        c.FEED_FORWARD,
        c.NORM_FIRST,
        c.CMT_RESIDUAL,
        c.CLASSIFIER_HIDDEN,
        c.DROPOUT,
        c.BLOCK_DROPOUT,
    )


def recipe_of(c, phase, seed, before=None):
    """Sec. 3.2: AdamW at 1e-3 while frozen, then at 1e-5; before: history of the frozen phase."""
    shared = {
        "batch_size": c.BATCH_SIZE,
        "weight_decay": c.WEIGHT_DECAY,
        "schedule": "constant",
        "clip_norm": 0.0,
        "select_by": "loss",
        "higher_is_better": False,
        "keep": c.KEEP_EPOCH,
        "seed": seed,
    }
    if phase == "frozen":
        return Recipe(c.FROZEN_LEARNING_RATE, c.MAX_EPOCHS[0], patience=c.FINETUNE_PATIENCE, **shared)
    if c.KEEP_EPOCH == "best":  # starts afresh from the best epoch, with the epochs that are left
        return Recipe(
            c.FINETUNE_LEARNING_RATE,
            c.MAX_EPOCHS[1],
            patience=c.STOP_PATIENCE - c.FINETUNE_PATIENCE,
            **shared,
        )
    return Recipe(
        c.FINETUNE_LEARNING_RATE,
        c.MAX_EPOCHS[1],
        patience=c.STOP_PATIENCE,
        best_before=before["best"],
        epochs_since_best=before["epochs_since_best"],
        **shared,
    )


def cross_entropy(model, batch):
    """Sum of the cross-entropy over the batch, and its size (Sec. 2.4)."""
    logits = model(batch)
    return F.cross_entropy(logits.float(), batch["labels"], reduction="sum"), len(logits)


def outputs(model, batch):
    return {"logits": model(batch)}


def train_system(study, name, window, phases, k, seed):
    """Train one system on one fold, frozen, then fine-tuned, and test it after each phase.

    window  (utterances before, after); phases: PHASES or the first of them
    Returns {phase: {"history", "ids", "logits", "valid_loss"}}; kept in test.json, so that a second run does not
    train again.
    """
    c, fold = study.c, study.folds_of[seed][k]
    parts = fold_parts(study, window, fold)
    folder = system_folder(study, name, window, fold, seed)
    model, outcomes, history = None, {}, None
    for phase in phases:
        recipe = recipe_of(c, phase, seed, history)
        identity = identity_of(study, name, window, parts, phase, seed)
        outcomes[phase] = kept_outcome(folder / phase, recipe, identity)
        if outcomes[phase] is None:
            model = model or starting_model(
                study, name, window, seed, folder / PHASES[0] if history else None
            )
            live = set_phase(study, model, phase)
            data = {
                part: Windows(
                    turns,
                    study.manifest.classes,
                    pick(study, name),
                    windows,
                    live,
                    by_length=phase != PHASES[0],
                )
                for part, (turns, windows) in parts.items()
            }
            # Kept states are collated here: worker processes would pass them through shared memory, often 64 MB.
            recipe = replace(
                recipe,
                workers=c.WORKERS if len(live) == len(model.extractors) else 0,
                micro_batch=study.micro_batch.get((name, phase), 0),
            )
            outcomes[phase] = fit_and_test(
                study, model, data, recipe, folder / phase, identity, f"{name} {fold.name} {phase}"
            )
            study.micro_batch[name, phase] = outcomes[phase]["history"]["micro_batch"]
        history = outcomes[phase]["history"]
    return outcomes


def fold_parts(study, window, fold):
    """{part: (turns, windows)} of a fold; context never crosses the border of the test part."""
    official = splits.has_official_split(study.manifest)
    test_speakers = set(splits.speakers_of(fold.test))

    def tested(turn):
        return turn.extra.get("split") == "test" if official else turn.speaker in test_speakers

    parts = {}
    for part in ("train", "valid", "test"):
        windows, n_cut = context_windows(study.manifest, getattr(fold, part), *window, tested)
        parts[part] = getattr(fold, part), windows
        study.n_cut[fold.name, part, window] = n_cut
    return parts


def identity_of(study, name, window, parts, phase, seed):
    """What a phase of training depends on besides its recipe; JSON-ready."""
    c, ids = study.c, {part: [t.utterance_id for t in turns] for part, (turns, _) in parts.items()}
    identity = {
        "system": name,
        "window": list(window),
        "design": asdict(design_of(c)),
        "manifest": study.manifest.fingerprint(),
        "precision": study.accelerator.mixed_precision,
        "weights": {m: study.utterances[m].weights for m in modalities_of(name)},
        "kept": {"audio": c.AUDIO_MAX_S, "text": c.TEXT_MAX_TOKENS},
        "turns": hashlib.sha256(repr(ids).encode()).hexdigest()[:16],
    }
    identity["kept"] = {m: identity["kept"][m] for m in modalities_of(name)}
    if phase == PHASES[0]:
        return identity
    return {**identity, "parts": c.FINETUNED_PARTS, "frozen": recipe_of(c, PHASES[0], seed).identity()}


def system_folder(study, name, window, fold, seed):
    """<DATA_ROOT>/models/<corpus>/li/cmt_a_to_t/4+4/seed0/fold1"""
    slug = name.replace("+", "_").replace("(", "_").replace(")", "").replace("→", "_to_").lower()
    root = Path(study.c.DATA_ROOT) / "models" / study.manifest.corpus / study.name
    return root / slug / f"{window[0]}+{window[1]}" / f"seed{seed}" / fold.name


def pick(study, name):
    return {m: study.utterances[m] for m in modalities_of(name)}


def starting_model(study, name, window, seed, frozen):
    """A fresh system; with `frozen`, the folder of a finished frozen phase, the weights that it left."""
    shapes = {m: study.utterances[m].shape for m in modalities_of(name)}
    model = build_system(name, shapes, window, design_of(study.c), len(study.manifest.classes), seed)
    if frozen:
        weights = load_file(best_weights(frozen))
        model.load_state_dict({key: tensor for key, tensor in weights.items() if ".backbone." not in key})
    return model


def set_phase(study, model, phase):
    """Attach the pretrained models that a phase runs; returns the modalities whose batches hold their inputs."""
    for backbone in study.frozen_backbones.values():  # out of the way of those that are fine-tuned
        backbone.to(study.accelerator.device if phase == "frozen" else "cpu")
    if phase == "frozen":
        backbones = {m: b for m, b in study.frozen_backbones.items() if m in model.extractors}
        model.attach(backbones, "none")
    else:
        backbones = {m: load_backbone(study.utterances[m].source) for m in model.extractors}
        model.attach(backbones, study.c.FINETUNED_PARTS)
    return set(backbones)


def fit_and_test(study, model, data, recipe, folder, identity, title):
    """Train one phase until the development speaker's loss says stop, test it, and keep the outcome."""
    c, accelerator = study.c, study.accelerator

    def logits_of(part):
        return predict(accelerator, model, outputs, data[part], c.EVAL_BATCH_SIZE, recipe.workers)["logits"]

    def evaluate(_):
        logits, labels = logits_of("valid"), data["valid"].labels
        return {
            "loss": F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item(),
            "accuracy": float(np.mean(logits.argmax(1) == labels)),
        }

    history = fit(
        accelerator,
        model,
        cross_entropy,
        data["train"],
        evaluate,
        recipe,
        folder,
        identity,
        title,
        epoch_lines=False,
    )
    logits = logits_of("test")
    outcome = {
        "history": history,
        "ids": [t.utterance_id for t in data["test"].turns],
        "logits": logits.tolist(),
        "valid_loss": history["best"] if c.KEEP_EPOCH == "best" else history["log"][-1]["valid_loss"],
    }
    write_json(folder / "test.json", outcome)
    if folder.name != PHASES[0] and not c.KEEP_MODELS:
        best_weights(folder).unlink()
    wa = 100 * np.mean(logits.argmax(1) == data["test"].labels)
    print(
        f"  {title:<28} seed {recipe.seed}  {len(history['log']):3d} epochs {history['seconds']:7.1f} s  "
        f"development loss {outcome['valid_loss']:.3f}  test WA {wa:5.1f}",
        flush=True,
    )
    return outcome


def train_and_collect(study, run, name, window, phases):
    """Train a system on all seeds and folds; fills study.predicted and study.valid_loss."""
    predicted = {phase: np.full((len(study.c.SEEDS), len(study.turns)), -1) for phase in phases}
    for i, seed in enumerate(study.c.SEEDS):
        for k, fold in enumerate(study.folds):
            for phase, outcome in train_system(study, name, window, phases, k, seed).items():
                rows = np.array([study.row[u] for u in outcome["ids"]])
                assert (predicted[phase][i, rows] == -1).all(), "a turn is in two test sets"
                predicted[phase][i, rows] = np.argmax(outcome["logits"], axis=1)
                study.valid_loss[name, phase, window, i, k] = outcome["valid_loss"]
                run.log(
                    {
                        "event": "trained",
                        "system": name,
                        "context": window,
                        "fold": fold.name,
                        "seed": seed,
                        "phase": phase,
                        "epochs": outcome["history"]["log"],
                        "seconds": outcome["history"]["seconds"],
                    }
                )
    for phase, labels in predicted.items():
        assert (labels[:, study.scored] >= 0).all(), f"{name} {phase}: a labelled turn was not scored"
        study.predicted[name, phase, window] = labels


def study_contexts(study, run):
    """Train STUDY_SYSTEMS with each of STUDY_SIZES.

    Returns the Study that holds the outcomes, and (systems, sizes, phases) of the table, empty where there is none.
    """
    c, turns = study.c, study.manifest.turns
    names = [name for name in c.STUDY_SYSTEMS if name in study.systems]
    phases = [phase for phase in study.phases if phase in c.STUDY_PHASES]
    if len({t.dialogue_id for t in turns}) == len(turns) or not (names and c.STUDY_SIZES and phases):
        print(
            "no table of context sizes: no dialogues, or nothing in STUDY_SYSTEMS, STUDY_SIZES, STUDY_PHASES"
        )
        return study, ([], [], [])
    study = study.for_contexts()
    sizes = [parse_size(text) for text in c.STUDY_SIZES]
    for name in names:
        for window in sizes:
            if any((name, phase, window) not in study.predicted for phase in phases):
                train_and_collect(study, run, name, window, PHASES[: 1 + PHASES.index(phases[-1])])
    return study, (names, sizes, phases)


def parse_size(text):
    """ "4+0" -> (4, 0): utterances before and after."""
    parts = text.split("+")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"STUDY_SIZES={text}: write utterances before and after, such as 4+4 or 4+0")
    return int(parts[0]), int(parts[1])


def named_predictions(study):
    """{"MMT frozen, context 4+4": (seeds, N)} for li_predictions.csv."""
    where = " (study of contexts)" if study.name == "li_contexts" else ""
    return {
        f"{name} {phase}, context {window[0]}+{window[1]}{where}": labels
        for (name, phase, window), labels in study.predicted.items()
    }


# ---- Main ----------------------------------------------------------------------------------


def protocol_of(study):
    """The protocol in one phrase for tables."""
    kept = "last epoch kept" if study.c.KEEP_EPOCH == "last" else "best epoch kept"
    what = {"bottom": "", "all": ", all weights fine-tuned", "none": ""}[study.c.FINETUNED_PARTS]
    return (
        f"{splits.folds_text(study.manifest, study.folds)}, training stopped by the loss of "
        f"{splits.validators_text(study.manifest, study.c.DEVELOP_ON)}, {kept}{what}"
    )


def check_constants(c):
    """Refuse what would fail later or mean nothing."""
    unknown = [name for name in c.STUDY_SYSTEMS if name not in BRANCHES]
    if unknown:
        raise UserError(f"STUDY_SYSTEMS={unknown[0]}: choose among {', '.join(BRANCHES)}")
    for name, choices in (
        ("DEVELOP_ON", ("speaker", "group")),
        ("KEEP_EPOCH", ("last", "best")),
        ("FINETUNED_PARTS", ("bottom", "all", "none")),
        ("LAYER_MERGE", ("mean", "concatenate")),
        ("CONTEXT_OVER", ("tokens", "utterances")),
    ):
        if getattr(c, name) not in choices:
            raise UserError(f"{name}={getattr(c, name)}: choose one of {', '.join(choices)}")
    if c.WIDTH % c.HEADS:
        raise UserError(f"HEADS={c.HEADS}: does not divide WIDTH={c.WIDTH}")
    if min(c.CONTEXT_BEFORE, c.CONTEXT_AFTER) < 0:
        raise UserError("CONTEXT_BEFORE and CONTEXT_AFTER: give 0 or more utterances")
    if not 0 < c.FINETUNE_PATIENCE < c.STOP_PATIENCE:
        raise UserError(
            f"FINETUNE_PATIENCE={c.FINETUNE_PATIENCE}: must lie between 0 and STOP_PATIENCE={c.STOP_PATIENCE}"
        )
    if len(c.MAX_EPOCHS) != 2 or min(c.MAX_EPOCHS) < 1:
        raise UserError(
            f"MAX_EPOCHS={c.MAX_EPOCHS}: give two numbers, for the frozen phase and for fine-tuning"
        )
    if c.STUDY_EPOCHS < 0:
        raise UserError(f"STUDY_EPOCHS={c.STUDY_EPOCHS}: give 0 or more epochs")
    unknown = [phase for phase in c.STUDY_PHASES if phase not in PHASES]
    if unknown:
        raise UserError(f"STUDY_PHASES={unknown[0]}: choose among {', '.join(PHASES)}")
    for text in c.STUDY_SIZES:
        parse_size(text)


def run(c, manifest):
    """The second paper, on a prepared corpus; c: the constants of 04."""
    check_constants(c)
    accelerator = make_accelerator(c.PRECISION)
    if accelerator.num_processes > 1:
        raise UserError(
            "04_fuse_classify.py: systems are trained one after the other; start it with python, not "
            "accelerate launch"
        )
    study = Study(c, manifest, accelerator)
    results = start_run(
        "04_fuse_classify.py", vars(c), manifest, protocol_of(study), accelerator.device, paper="li"
    )
    print(*splits.check_folds(study.folds, manifest), sep="\n")
    study.keep_states()
    started = time.monotonic()
    for name in study.systems:
        train_and_collect(study, results, name, study.window, study.phases)
    print(
        f"{len(study.systems)} systems x {len(study.folds)} folds x {len(c.SEEDS)} seeds in "
        f"{time.monotonic() - started:.0f} s; pooled n = {len(study.scored):,}: every labelled turn is scored exactly "
        "once by each"
    )
    contexts, rows = study_contexts(study, results)
    li_tables.write(study, results)
    if rows[0]:
        li_tables.context_table(contexts, results, *rows)
    results.predictions(
        chain.from_iterable(
            prediction_rows(part.turns, manifest.classes, part.runs(), named_predictions(part))
            for part in ([study] if contexts is study else [study, contexts])
        )
    )
    results.finish()
