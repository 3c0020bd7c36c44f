"""The training loop of every script, on accelerate: one process or several, CPU or GPU, killed or not.

A run is repeatable: the order of batches depends on (seed, epoch) alone, and every step seeds its randomness
from (seed, epoch, step, process), so that a resumed run needs no generator state. A step's gradient is that
of the mean loss over `batch_size` samples, however many processes and micro-batches share them.
"""

import dataclasses
import gc
import math
import os
import random
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.errors import UserError
from common.files import as_json, atomic_path, hash_of, make_folder, read_json, write_json

POOL_BATCHES = 32  # batches that are sorted by length together: more pads less but shuffles less
CHECK_EVERY_STEPS = 20  # the loss is looked at this often; looking at each step would stall a GPU
MACHINE = ("workers", "save_every_s", "micro_batch")  # of a Recipe: how the machine is used
ALLOCATION_FAILED = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass
class Recipe:
    """How a model is trained."""

    learning_rate: float  # peak
    epochs: int
    batch_size: int  # samples per step, over all processes and micro-batches
    weight_decay: float = 0.0  # not on biases and normalisation weights
    schedule: str = "linear"  # to zero: "linear", "cosine"; or "constant"; or "inverse_sqrt" of the step
    warmup_share: float = 0.0  # share of all steps with a rising rate
    rate_per: str = "step"  # the rate changes from "step" to step or from "epoch" to epoch
    betas: tuple = (0.9, 0.999)  # of AdamW
    clip_norm: float = 1.0  # 0 = off
    select_by: str = "accuracy"  # the figure of `evaluate` that chooses the epoch
    higher_is_better: bool = True
    patience: int = 0  # epochs without a better figure before stopping; 0 = off
    keep: str = "best"  # the weights that are left: "best" by select_by, or "last"
    best_before: float | None = None  # where this continues an earlier run, with keep="last": its best figure
    epochs_since_best: int = 0  # ... and for how many epochs it had not improved
    micro_batch: int = 0  # samples per forward pass to start with; 0 = as many as a step has
    seed: int = 0
    workers: int = 0  # processes that prepare batches; 0 = this one
    save_every_s: float = 600.0  # seconds; a state is written at the end of the first epoch after so long
    warmup_steps: int = 0  # steps with a rising rate, of "inverse_sqrt" alone
    eps: float = 1e-8  # of AdamW

    def __post_init__(self):
        if (self.schedule == "inverse_sqrt") != (self.warmup_steps > 0):
            raise ValueError("warmup_steps of 1 or more go with schedule='inverse_sqrt', and with no other")
        if self.keep == "best" and self.best_before is not None:
            raise ValueError("best_before goes with keep='last': there may be no better epoch to keep")

    def identity(self):
        """What must be the same to resume a run: all but how the machine is used."""
        return {name: x for name, x in dataclasses.asdict(self).items() if name not in MACHINE}


@dataclass
class State:
    """What a killed run needs to resume, besides model and optimiser."""

    epoch: int = 0
    micro_batch: int = 0  # samples per forward pass and process
    best: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0
    log: list = field(default_factory=list)


@cache
def make_accelerator(precision):
    """The device context of this process; precision "auto" = bf16 or fp16 on a GPU, fp32 on a CPU."""
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp16" if torch.cuda.is_available() else "no"
    torch.use_deterministic_algorithms(True, warn_only=True)  # with several threads sums would differ
    gc.freeze()  # free_memory collects after every training: faster where it passes over what imports left
    accelerator = Accelerator(mixed_precision=precision)
    if not accelerator.is_main_process:
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
    return accelerator


# ---- Order of samples ----------------------------------------------------------------------


def length_batches(lengths, batch_size, seed, epoch):
    """Shuffled batches of samples of similar length.

    lengths     (N,) any measure of size
    batch_size  samples per batch; the last one of an epoch may be smaller
    Returns a list of index arrays that holds each of 0..N-1 once, the same for the same (seed, epoch).
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    pool = batch_size * POOL_BATCHES
    batches = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    # The short batch must be the same one everywhere, else steps per epoch would vary; the order is shuffled.
    return [batches[i] for i in generator.permutation(len(batches))]


class StepKeys:
    """Batch sampler: this process's share of each step's samples in an epoch, as (index, seed) pairs."""

    def __init__(self, dataset, recipe, accelerator):
        self.lengths, self.recipe = dataset.lengths, recipe
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.begin(0)

    def begin(self, epoch):
        self.epoch = epoch
        self.batches = length_batches(self.lengths, self.recipe.batch_size, self.recipe.seed, epoch)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:  # a small last one may not reach all processes: the others' do not count
            share = batch[self.rank :: self.world] if self.rank < len(batch) else batch[:1]
            yield [(int(i), (self.recipe.seed, self.epoch, int(i))) for i in share]


# ---- One step ------------------------------------------------------------------------------


def seed_step(*numbers):
    """Seed Python, numpy and torch from a tuple of integers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def cut(batch, start, stop):
    """Samples start..stop of a batch: what it holds, in nested dicts too, is sliced along its first axis."""
    if isinstance(batch, dict):
        return {key: cut(value, start, stop) for key, value in batch.items()}
    return batch[start:stop]


def size_of(batch):
    """Number of samples in a batch."""
    while isinstance(batch, dict):
        batch = next(iter(batch.values()))
    return len(batch)


def to_device(batch, device):
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch.to(device, non_blocking=True) if hasattr(batch, "to") else batch


def rate_factor(recipe, step, total):
    """Learning rate at a step, or epoch, of `total` as a share of the peak."""
    if recipe.schedule == "inverse_sqrt":  # min(n^-0.5, n * warmup^-1.5) over its peak, n = step + 1
        n = (step + 1) / recipe.warmup_steps
        return min(n**-0.5, n)
    warmup = int(recipe.warmup_share * total + 1e-9)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": cosine}[recipe.schedule]


def make_optimizer(model, recipe, device):
    """AdamW with weight decay on matrices only, as transformers' Trainer has it."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    options = {"betas": recipe.betas, "eps": recipe.eps, "fused": device.type in ("cpu", "cuda")}
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, **options)


def attempt(function, *arguments):
    """function(*arguments), or None where memory did not suffice; nothing of it is then kept alive."""
    try:
        return function(*arguments)
    except RuntimeError as error:  # cuBLAS and cuDNN have none of their own
        known = any(words in str(error) for words in ALLOCATION_FAILED)
        if not (known or isinstance(error, torch.OutOfMemoryError)):
            raise
    torch.cuda.empty_cache()  # here the error is gone, and with it its traceback, which held the activations
    return None


class Training:
    """One training run; `fit` drives it.

    model     nn.Module on the accelerator's device
    loss      loss(model, batch) -> (sum of the losses, what to divide it by); both scalars
    recipe    Recipe
    folder    for the state while it runs, best.safetensors and history.json when it is done
    identity  JSON-ready dict; a state of another identity is not resumed
    """

    def __init__(self, accelerator, model, loss, train_set, recipe, folder, identity):
        self.accelerator, self.model, self.loss, self.recipe = accelerator, model, loss, recipe
        self.folder = make_folder(folder)
        self.identity = whole_identity(accelerator, recipe, identity)
        self.keys = StepKeys(train_set, recipe, accelerator)
        self.steps = len(self.keys)
        self.loader = DataLoader(
            train_set,
            batch_sampler=self.keys,
            collate_fn=train_set.collate,
            num_workers=recipe.workers,
            persistent_workers=recipe.workers > 0,
            pin_memory=accelerator.device.type == "cuda",
        )
        if accelerator.scaler:  # fp16: the scale that an earlier run came to would make this one depend on it
            accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
        self.optimizer = accelerator.prepare(make_optimizer(model, recipe, accelerator.device))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.state = State(
            micro_batch=recipe.micro_batch or -(-recipe.batch_size // accelerator.num_processes),
            best=recipe.best_before,
            best_epoch=-1 - recipe.epochs_since_best,
        )
        self.saved_at = time.monotonic()

    def train_epoch(self, bar):
        """Train for an epoch and return its mean loss."""
        self.keys.begin(self.state.epoch)
        self.model.train()
        sums, pending = np.zeros(2), []
        for step, batch in enumerate(self.loader):
            pending.append(self.step(step, to_device(batch, self.accelerator.device)))
            bar.update()
            if len(pending) >= CHECK_EVERY_STEPS or step + 1 == self.steps:
                sums += self.checked(pending)
                pending = []
        return float(sums[0] / max(1.0, sums[1]))

    def checked(self, pending):
        """The sum (2,) of the (loss, count) pairs of some steps; UserError if one is not finite."""
        sums = torch.stack(pending).cpu().double().numpy()  # (steps, 2)
        if not np.isfinite(sums).all():
            raise UserError(
                f"{self.folder}: the loss is not finite in epoch {self.state.epoch + 1}, within the last "
                f"{len(pending)} steps; lower the learning rate or set PRECISION=no"
            )
        return sums.sum(0)

    def step(self, step, batch):
        """One optimiser step; after an out-of-memory error it is repeated in smaller micro-batches."""
        while (totals := attempt(self.accumulate, step, batch)) is None:
            self.halve_micro_batch()
        totals, recipe = self.share_gradients(totals), self.recipe
        number, total = self.state.epoch, recipe.epochs
        if recipe.rate_per == "step":
            number, total = number * self.steps + step, total * self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor(recipe, number, total)
        if recipe.clip_norm:
            self.accelerator.clip_grad_norm_(self.parameters, recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return totals

    def halve_micro_batch(self):
        self.optimizer.zero_grad()
        if self.state.micro_batch <= 1:
            raise UserError("out of memory with one sample; choose a smaller model or shorter inputs")
        self.state.micro_batch = n = -(-self.state.micro_batch // 2)
        print(f"out of memory: {n} samples per forward pass from now on, {self.recipe.batch_size} per step")

    def accumulate(self, step, batch):
        """Gradients of the summed loss over this process's share; returns (loss sum, count) as (2,)."""
        totals = torch.zeros(2, device=self.accelerator.device)
        if self.keys.rank >= len(self.keys.batches[step]):
            return totals
        for start in range(0, size_of(batch), self.state.micro_batch):
            seed_step(self.recipe.seed, self.state.epoch, step, self.keys.rank, start)
            with self.accelerator.autocast():
                total, count = self.loss(self.model, cut(batch, start, start + self.state.micro_batch))
            # Divided by a constant only to stay within fp16's range; share_gradients divides by the count.
            self.accelerator.backward(total / self.recipe.batch_size)
            if not torch.is_tensor(count):
                count = torch.full_like(totals[1], count)  # a copy from the host would wait for the device
            totals += torch.stack([total.detach().float(), count.float()])
        return totals

    def share_gradients(self, totals):
        """Sum gradients and totals over processes, then divide the gradients by the step's count.

        Done by hand after the last micro-batch, not by DistributedDataParallel: processes may need different
        numbers of micro-batches, and LayerDrop leaves layers without a gradient.
        """
        if self.accelerator.num_processes > 1:
            used = torch.tensor([float(p.grad is not None) for p in self.parameters], device=totals.device)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            used, flat, totals = (self.accelerator.reduce(x, "sum") for x in (used, flat, totals))
            pieces = flat.split([p.numel() for p in self.parameters])
            for p, piece, u in zip(self.parameters, pieces, used.tolist()):
                p.grad = piece.view_as(p) if u else None
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.recipe.batch_size / totals[1].clamp(min=1e-8))
        return totals

    # ---- State on disk

    def end_epoch(self, train_loss, figures, seconds):
        """Log an epoch, keep its weights if it is the best so far, move on to the next."""
        state, value, higher = self.state, figures[self.recipe.select_by], self.recipe.higher_is_better
        better = state.best is None or (value > state.best if higher else value < state.best)
        names = {name: name if name.startswith("test_") else f"valid_{name}" for name in figures}
        entry = {"epoch": state.epoch + 1, "step": (state.epoch + 1) * self.steps, "train_loss": train_loss}
        entry |= {names[name]: float(x) for name, x in figures.items()}
        state.log.append({**entry, "seconds": seconds})
        state.seconds += seconds
        if better:
            state.best, state.best_epoch = float(value), state.epoch
            if self.recipe.keep == "best":
                self.keep_weights()
        state.epoch += 1
        if time.monotonic() - self.saved_at >= self.recipe.save_every_s:
            self.save()
        return better

    def keep_weights(self):
        self.write(best_weights(self.folder), lambda path: save_file(trained_state(self.model), path))

    def save(self):
        scaler = self.accelerator.scaler
        content = {
            "identity": self.identity,
            "state": dataclasses.asdict(self.state),
            "model": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        self.write(self.folder / "last.pt", lambda path: torch.save(content, path))
        self.saved_at = time.monotonic()

    def write(self, path, writer):
        if self.accelerator.is_main_process:
            with atomic_path(path) as temporary:
                writer(temporary)

    def resume(self):
        """Load the last state if it is of the same identity; returns whether it was."""
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["identity"] != self.identity:
            return False
        load_trained(self.model, content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.state = State(**content["state"])
        return True

    def load_kept(self):
        self.accelerator.wait_for_everyone()
        load_trained(self.model, load_file(best_weights(self.folder)))

    def epochs_since_best(self):
        return self.state.epoch - 1 - self.state.best_epoch

    def is_over(self):
        stopped_early = 0 < self.recipe.patience <= self.epochs_since_best()
        return stopped_early or self.state.epoch >= self.recipe.epochs

    def history(self):
        """What is known of a finished run; JSON-ready."""
        known = {name: getattr(self.state, name) for name in ("best", "seconds", "micro_batch", "log")}
        known |= {"best_epoch": self.state.best_epoch + 1, "epochs_since_best": self.epochs_since_best()}
        return {"identity": self.identity, "steps_per_epoch": self.steps, **known}


def whole_identity(accelerator, recipe, identity):
    """What a training depends on, as it comes back from JSON."""
    own = {"recipe": recipe.identity(), "precision": accelerator.mixed_precision}
    return as_json({**identity, **own})


def frozen_names(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def trained_state(model):
    """A copy of a model's state_dict without its frozen parameters, which a run cannot change."""
    frozen, state = frozen_names(model), model.state_dict()
    return {name: x.detach().clone().contiguous() for name, x in state.items() if name not in frozen}


def load_trained(model, state):
    """Put a `trained_state` back; every parameter that is not frozen must be in it."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    needed = sorted(set(missing) - frozen_names(model))
    if needed or unexpected:
        raise ValueError(f"weights do not fit: missing {needed[:3]}, unexpected {unexpected[:3]}")


def best_weights(folder):
    """Where `fit` leaves the weights of the chosen epoch (the last one with keep="last")."""
    return Path(folder) / "best.safetensors"


def fit(accelerator, model, loss, train_set, evaluate, recipe, folder, identity, title, epoch_lines=True):
    """Train a model, choose its epoch by `evaluate`, and leave the weights of that epoch in it.

    model      nn.Module; moved to the accelerator's device
    loss       loss(model, batch) -> (sum, count)
    train_set  has `lengths`, `__getitem__((index, seed))` and `collate(items) -> batch`
    evaluate   evaluate(model) -> dict of figures, with recipe.select_by among them; logged as "valid_<name>",
               or as they are where their names begin with "test_"
    folder     state, best.safetensors and history.json go there; a run that was killed is resumed from it
    identity   JSON-ready dict: what else, besides recipe and precision, must be the same to resume
    title      one word or two for the progress bar and the lines printed
    Returns the history: best_epoch (from 1), seconds, steps_per_epoch, log (one dict per epoch).
    Raises UserError on a loss that is not finite.
    """
    model.to(accelerator.device)
    if accelerator.num_processes > 1:  # every process starts from the weights of the first
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, 0)
    run = Training(accelerator, model, loss, train_set, recipe, folder, identity)
    finished = run.folder / "history.json"
    kept = read_json(finished) if finished.exists() and best_weights(folder).exists() else {}
    if kept.get("identity") == run.identity:
        run.load_kept()
        print(f"{title}: already trained")
        accelerator.free_memory()
        return kept
    if accelerator.is_main_process:  # made otherwise, and its weights go with the first epoch
        for outdated in (finished, run.folder / "test.json"):
            outdated.unlink(missing_ok=True)
    if run.resume():
        print(f"{title}: resumed after epoch {run.state.epoch}")
    train_epochs(run, evaluate, title, epoch_lines)
    if recipe.keep == "last":
        run.keep_weights()
    run.load_kept()
    if accelerator.is_main_process:
        write_json(finished, run.history())
        (run.folder / "last.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    accelerator.free_memory()  # else it would hold on to this model's weights and optimiser state
    return run.history()


def train_epochs(run, evaluate, title, epoch_lines):
    """The epochs that are left of a Training."""
    state, recipe, quiet = run.state, run.recipe, not run.accelerator.is_main_process
    done, total = state.epoch * run.steps, run.steps * recipe.epochs
    with tqdm(total=total, initial=done, desc=title, disable=quiet or None, leave=False) as bar:
        while not run.is_over():
            started = time.monotonic()
            train_loss = run.train_epoch(bar)
            figures = evaluate(run.model)
            better = run.end_epoch(train_loss, figures, time.monotonic() - started)
            bar.clear()
            if epoch_lines:
                print(epoch_line(title, state.log[-1], recipe.epochs, better), flush=True)


def epoch_line(title, entry, epochs, better):
    figures = "  ".join(f"{name} {entry[name]:7.4f}" for name in entry if "_" in name)
    end = f"{entry['seconds']:6.1f} s{'  best' if better else ''}"
    return f"{title:<28} epoch {entry['epoch']:3d}/{epochs}  {figures}  {end}"


# ---- Train, then test ----------------------------------------------------------------------


def train_and_test(
    accelerator,
    make_model,
    loss,
    outputs,
    data,
    figures,
    recipe,
    folder,
    identity,
    title,
    batch_size=64,
    keep_weights=False,
    watch=(),
    epoch_lines=False,
):
    """Train a model on data["train"], choose its epoch on data["valid"], then score the test sets once.

    make_model    make_model() -> nn.Module; called only if there is something to train
    loss          loss(model, batch) -> (sum, count)
    outputs       outputs(model, batch) -> {"logits": (B, ...), ...}
    data          {"train", "valid" and one or more test sets: data sets}; a test set has `ids`
    figures       figures({"logits": array, ...}, data set) -> {name: figure}, recipe.select_by among them
    folder        <folder>/test.json keeps the outcome, so that a second run does not train again
    batch_size    samples per forward pass outside training
    keep_weights  whether the weights stay on disk
    watch         test sets that are also scored after every epoch, logged as "test_<figure>", for no choice
    Returns {"history", "test_seconds", "tests": {name: {"ids", "figures", "outputs": {name: list}}}}.
    """
    tests = {name: part for name, part in data.items() if name not in ("train", "valid")}
    identity = {**identity, "tested": {name: hash_of(list(part.ids)) for name, part in tests.items()}}
    kept = kept_outcome(folder, recipe, {**identity, "precision": accelerator.mixed_precision})
    if kept and (best_weights(folder).exists() or not keep_weights):
        return kept
    model = make_model()

    def run(part):
        return predict(accelerator, model, outputs, part, batch_size, recipe.workers)

    def evaluate(_):
        watched = [figures(run(data[name]), data[name]) for name in watch]
        test = {f"test_{name}": value for found in watched for name, value in found.items()}
        return {**figures(run(data["valid"]), data["valid"]), **test}

    args = (data["train"], evaluate, recipe, folder, identity, title, epoch_lines)
    history = fit(accelerator, model, loss, *args)
    started = time.monotonic()
    found = {name: run(part) for name, part in tests.items()}
    outcome = {"history": history, "test_seconds": time.monotonic() - started, "tests": {}}
    for name, part in tests.items():
        lists = {key: array.tolist() for key, array in found[name].items()}
        scores = {key: float(value) for key, value in figures(found[name], part).items()}
        outcome["tests"][name] = {"ids": list(part.ids), "figures": scores, "outputs": lists}
    if accelerator.is_main_process:
        write_json(Path(folder) / "test.json", outcome)
        if not keep_weights:
            best_weights(folder).unlink()
    accelerator.wait_for_everyone()
    print(outcome_line(title, outcome, recipe), flush=True)
    return outcome


def kept_outcome(folder, recipe, identity):
    """What `train_and_test` left in a folder, if made with the same recipe and identity, else None."""
    path = Path(folder) / "test.json"
    outcome = read_json(path) if path.exists() else None
    found = outcome["history"]["identity"] if outcome else {}
    wanted = as_json({**identity, "recipe": recipe.identity()})
    return outcome if all(found.get(name) == value for name, value in wanted.items()) else None


def outcome_line(title, outcome, recipe):
    history, name = outcome["history"], recipe.select_by
    tests = "  ".join(f"{part} {found['figures'][name]:.3f}" for part, found in outcome["tests"].items())
    best = max(0, history["best_epoch"])  # 0: an earlier run's was better
    epoch = f"{history['seconds']:7.1f} s  epoch {best:>3}/{recipe.epochs}"
    return f"  {title:<60} {epoch}  {name}: valid {history['best']:.3f}  {tests}"


# ---- Prediction ----------------------------------------------------------------------------


def predict_batches(accelerator, model, forward, dataset, batch_size, workers, skip=()):
    """Yield (indices, outputs) over a dataset, in batches of similar length, on this process's share of it.

    forward  forward(model, batch) -> dict of tensors (B, ...)
    skip     indices to leave out
    Outputs are numpy arrays; they do not depend on the batch, so a smaller one is used after out-of-memory.
    """
    model.eval()
    wanted = np.setdiff1d(np.arange(len(dataset.lengths)), np.fromiter(skip, int, len(skip)))
    # Rounding differs a little from batch to batch. In the order of the corpus, which often goes by label, a
    # classifier could read the label off that noise (seen on RAVDESS); in a random order it cannot.
    wanted = np.random.default_rng(0).permutation(wanted)
    order = wanted[np.argsort(np.asarray(dataset.lengths)[wanted], kind="stable")]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    loader = DataLoader(
        dataset,
        batch_sampler=[[(int(i), None) for i in batch] for batch in batches],
        collate_fn=dataset.collate,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    for indices, batch in zip(batches, loader):
        yield indices, forward_batch(accelerator, model, forward, to_device(batch, accelerator.device))


def forward_batch(accelerator, model, forward, batch):
    """Outputs of one batch as numpy arrays; the batch is halved where it does not fit into memory."""

    def run():
        with torch.inference_mode(), accelerator.autocast():
            return {name: value.float().cpu().numpy() for name, value in forward(model, batch).items()}

    found, n = attempt(run), size_of(batch)
    if found is not None:
        return found
    if n == 1:
        raise UserError("out of memory with one sample; choose a smaller model or shorter inputs")
    parts = cut(batch, 0, n // 2), cut(batch, n // 2, n)
    halves = [forward_batch(accelerator, model, forward, part) for part in parts]
    return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}


def predict(accelerator, model, forward, dataset, batch_size, workers):
    """Outputs over a whole dataset in its order: name -> array (N, ...), the same on every process."""
    pieces = list(predict_batches(accelerator, model, forward, dataset, batch_size, workers))
    if accelerator.num_processes > 1:
        pieces = gather_object(pieces)
    order = np.argsort(np.concatenate([indices for indices, _ in pieces]))
    return {name: np.concatenate([outputs[name] for _, outputs in pieces])[order] for name in pieces[0][1]}
