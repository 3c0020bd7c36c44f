"""Training of Li et al., Sections 2.4 and 3.2: all systems, frozen, then fine-tuned, on all folds and seeds.

Paper: J. Li, S. Wang, Y. Chao, X. Liu, H. Meng, "Context-aware Multimodal Fusion for Emotion Recognition",
Interspeech 2022. Section 2.1 is common/li/extractor.py; Sections 2.2 and 2.3 and all constants are in
04_fuse_classify.py. Each trained system leaves <DATA_ROOT>/models/<corpus>/li/<system>/<context>/seed<k>/
<fold>/<phase>/, so that a killed run resumes.

DEVIATIONS and what the paper leaves open; constants of 04 in capitals
1. "Several embeddings from consecutive utterances ... aggregated into a context-aware textual embedding using
   a convolutional layer with the stride of 1 and kernel size of 3": how nine outputs become one embedding is
   not said. Here each utterance is the mean of its tokens, the layer slides over the nine, and its outputs
   are added up by a trained weight for each place. In their mean order would not matter; the output at the
   target alone would know one neighbour on each side. Since the CMT needs the target's tokens, the result is
   added to each of them ("enhance"); it starts at zero, so that training starts from the target alone.
2. How 25 calibrated layers become one sequence is not said: their mean, or all side by side (LAYER_MERGE).
3. Not in the paper: hidden units of projector and classifier, heads (Eq. 1 has one), blocks, feed-forward
   width, dropout inside a block, sinusoidal positions (of "the vanilla Transformer"), the order
   Linear-ReLU-Linear-LayerNorm, and NORM_FIRST: LayerNorm before attention, as in the cross-modal Transformer
   that it cites (Tsai et al.), or after it, as in the vanilla one.
4. A Transformer block adds its input, here the target, to what it attends to. The paper's CMT(A→T), with text
   as target, is nearly as weak as audio alone (67.76 against 66.15): perhaps theirs adds nothing, which
   CMT_RESIDUAL = False tries.
5. "25 layers" are the input of the first Transformer layer (the projected CNN output with WavLM's position
   convolution) and 24 outputs, all without WavLM's final LayerNorm; 13 for BERT. The pretrained models stay
   in evaluation mode in both phases.
6. Squeezing takes the mean over time and width, as squeeze-and-excitation does. Behind a LayerNorm that mean
   hardly varies: for BERT the gate is nearly a fixed weight per layer. Its single unit starts alive (bias 1).
7. The weights after the last epoch are tested, as in the paper, or the best of each phase (KEEP_EPOCH).
   Fine-tuning starts from those of the frozen phase and counts on: 5 epochs without a lower loss on the
   development speaker start it, 10 end it. FROZEN_EPOCHS and FINETUNE_EPOCHS bound the phases; in the presets
   they end most of them.
8. STANDARDISE gives every number of every layer mean 0 and deviation 1 in training. Of Whisper's 512 numbers
   a few are a hundred times as large as the rest: behind the projector's LayerNorm all steps look alike.
9. Weight decay is on matrices only; AdamW starts afresh for fine-tuning. Neither is in the paper.
10. "Voiced 5 seconds": the first 5 s. Shorter turns are padded and masked, not treated as silence.
11. The development speaker is drawn anew for each seed. The interlocutor is a training speaker, so that each
    has the other's words as context. The context of a test turn is of its own session.
12. Slips of the paper: 1,626 happy turns (1,636 make its total of 5,531); 84.35 in its conclusion is 84.45 in
    Table 2.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from common.comparison import Scores
from common.files import UserError, hash_of
from common.jobs import side_by_side
from common.layers import build
from common.li.hidden_states import Windows, context_windows
from common.manifest import Manifest
from common.splits import has_official_split, speakers_of
from common.training import Place, Task, best_weights, loss_and_accuracy, make_accelerator, train_and_test

FROZEN, TUNED = PHASES = ("frozen", "fine-tuned")  # Sec. 2.4: of the pretrained models


@dataclass
class Study:
    """What every training needs; it travels to the processes of JOBS."""

    manifest: Manifest
    systems: dict  # {system: its modalities}
    numbered: list  # names of all systems in the order of Table 1
    window: tuple  # utterances (before, after) in Table 1
    folds: dict  # {seed: list of Fold}; a seed draws its own development speakers
    utterances: dict  # {modality: Utterances}
    network: type  # network(system, shapes, window, n_classes) -> nn.Module
    loss: callable  # loss(model, batch) -> (sum, count)
    design: dict  # the network's constants, for identities
    recipes: dict  # {phase: Recipe}
    finetuned_parts: str  # "bottom" or "all"
    device: tuple  # precision and determinism, for make_accelerator
    folder: Path  # for trained systems

    def windows(self, fold, part, window):
        """(turns of a part of a fold, their windows, neighbours across the border of the test part)."""
        official, tested = has_official_split(self.manifest), set(speakers_of(fold.test))

        def is_tested(turn):
            return turn.extra.get("split") == "test" if official else turn.speaker in tested

        turns = getattr(fold, part)
        return turns, *context_windows(self.manifest, turns, *window, is_tested)


def possible_systems(systems, manifest):
    """Those of {system: modalities} whose modalities most labelled turns have; prints which are left out."""
    turns, found = manifest.labelled, {}
    having = {m for m in ("audio", "text") if 2 * sum(bool(getattr(t, m)) for t in turns) > len(turns)}
    for system, needs in systems.items():
        if having.issuperset(needs):
            found[system] = needs
        else:
            print(f"  {system}: needs {' and '.join(needs)}; left out")
    if not found:
        path = f"{manifest.folder}/manifest.csv"
        raise UserError(f"{path}: none of SYSTEMS={','.join(systems)} has its modalities there")
    return found


def train_system(study, system, window, phases, seed, k):
    """Train one system on fold k, frozen, then fine-tuned, and test it after each phase.

    window  (utterances before, after); phases: PHASES or the first of them
    Returns {phase: outcome of train_and_test}, kept on disk, so that a second run does not train again.
    """
    fold, outcomes = study.folds[seed][k], {}
    slug = system.replace("+", "_").replace("(", "_").replace(")", "").replace("→", "_to_").lower()
    folder = study.folder / slug / f"{window[0]}+{window[1]}" / f"seed{seed}" / fold.name
    utterances = {m: study.utterances[m] for m in study.systems[system]}
    for phase in phases:
        recipe, live = next_recipe(study, phase, seed, outcomes), live_modalities(study, system, phase)
        data = {}
        for part in ("train", "valid", "test"):
            turns, windows, _ = study.windows(fold, part, window)
            how = windows, window[0], live, phase == TUNED
            data[part] = Windows(turns, study.manifest.classes, utterances, *how)
        # Kept states are collated here: worker processes would pass them through shared memory, often 64 MB.
        recipe = replace(recipe, workers=recipe.workers if len(live) == len(utterances) else 0)
        make_model = partial(start_network, study, system, window, seed, phase, folder, data["train"].ids)
        task = Task(make_model, study.loss, lambda net, batch: {"logits": net(batch)}, loss_and_accuracy)
        identity = identity_of(study, system, window, data, phase, seed)
        place = Place(folder / phase, identity, f"{system} {fold.name} {phase}")
        is_kept = phase == FROZEN  # fine-tuning starts from these weights
        outcomes[phase] = train_and_test(make_accelerator(*study.device), task, data, recipe, place, is_kept)
    return outcomes


def next_recipe(study, phase, seed, outcomes):
    """The recipe of a phase; fine-tuning counts the epochs without a lower loss on, but from the best."""
    recipe = replace(study.recipes[phase], seed=seed)
    if phase == FROZEN:
        return recipe
    before = outcomes[FROZEN]["history"]
    if recipe.keep == "last":
        return replace(recipe, best_before=before["best"], epochs_since_best=before["epochs_since_best"])
    return replace(recipe, patience=recipe.patience - study.recipes[FROZEN].patience)


def live_modalities(study, system, phase):
    """Those whose pretrained model a phase runs: all in fine-tuning, else where its states are not kept."""
    return {m for m in study.systems[system] if phase == TUNED or study.utterances[m].states is None}


def start_network(study, system, window, seed, phase, folder, train_ids=()):
    """A fresh network; for fine-tuning with the weights that the frozen phase left."""
    shapes = {m: study.utterances[m].shape for m in study.systems[system]}
    model = build(seed, study.network, system, shapes, window, len(study.manifest.classes))
    if phase == TUNED:
        weights = load_file(best_weights(folder / FROZEN))
        model.load_state_dict({name: tensor for name, tensor in weights.items() if ".backbone." not in name})
    live, parts = live_modalities(study, system, phase), study.finetuned_parts if phase == TUNED else "none"
    for m, extractor in model.extractors.items():
        projector = extractor.projector
        if phase == FROZEN and projector.mean is not None:
            projector.mean, projector.sd = study.utterances[m].moments(train_ids)
        extractor.kept = study.utterances[m].on_device
        if m in live:
            extractor.attach(study.utterances[m].backbone(), parts)
    return model


def identity_of(study, system, window, data, phase, seed):
    """What a phase of training depends on besides its recipe; JSON-ready."""
    inputs = {m: study.utterances[m] for m in study.systems[system]}
    how = {m: [u.weights, u.limit, "kept" if u.states else "anew"] for m, u in inputs.items()}
    identity = {"system": system, "window": list(window), "design": study.design, "inputs": how}
    identity["manifest"] = study.manifest.fingerprint()
    identity["turns"] = hash_of({part: turns.ids for part, turns in data.items()})
    if phase == TUNED:
        identity["parts"] = study.finetuned_parts
        identity["frozen"] = replace(study.recipes[FROZEN], seed=seed).identity()
    return identity


# ---- All trainings -------------------------------------------------------------------------


def train_all(study, systems, windows, phases, n_resamples, jobs, run):
    """Train systems with contexts of some sizes, `jobs` side by side: Scores of (system, phase, window)."""
    seeds = list(study.folds)
    scores = Scores(study.manifest, study.folds[seeds[0]], seeds, n_resamples, study)
    parts = [(seed, k) for seed in seeds for k in range(len(scores.folds))]
    tasks = [(study, s, w, phases, seed, k) for s in systems for w in windows for seed, k in parts]
    for task, outcomes in zip(tasks, side_by_side(train_system, tasks, jobs)):
        _, system, window, _, seed, k = task
        for phase, outcome in outcomes.items():
            labels = np.argmax(outcome["tests"]["test"]["outputs"]["logits"], axis=1)
            history = outcome["history"]
            is_best = study.recipes[phase].keep == "best"
            loss = history["best"] if is_best else history["log"][-1]["valid_loss"]  # of the tested weights
            scores.add((system, phase, window), seed, k, labels, loss)
            what = {"system": system, "context": window, "fold": scores.folds[k].name, "seed": seed}
            run.log({"event": "trained", **what, "phase": phase, "epochs": history["log"]})
    scores.check()
    return scores
