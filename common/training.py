"""The training loop of every script, on accelerate: one process or several, CPU or GPU, killed or not.

Three rules make a run repeatable. The order of batches depends on (seed, epoch) alone. Every step seeds its own
randomness from (seed, epoch, step, process), so that going on after a kill needs no generator state. A step's
gradient is that of the mean loss over its `batch_size` samples, however many processes and micro-batches share
the work.
"""

import dataclasses
import gc
import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.errors import UserError
from common.files import atomic_path, make_folder, read_json, write_json

POOL_BATCHES = 32  # batches that are sorted by length together: more pads less but shuffles less
CHECK_EVERY_STEPS = 20  # the loss is looked at this often; looking at each step would stall a GPU
LATER = {
    "warmup_steps": 0,
    "eps": 1e-8,
}  # came to Recipe later: with these values identities stay what they were


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
    best_before: float | None = (
        None  # where this goes on with an earlier run, with keep="last": its best figure ...
    )
    epochs_since_best: int = 0  # ... and for how many epochs it had not improved
    micro_batch: int = 0  # samples per forward pass to start with; 0 = as many as a step has
    seed: int = 0
    workers: int = 0  # processes that prepare batches; 0 = this one
    save_every_s: float = 600.0  # a state is written at each epoch's end and this often within
    warmup_steps: int = 0  # steps with a rising rate, of "inverse_sqrt" alone
    eps: float = 1e-8  # of AdamW

    def __post_init__(self):
        if (self.schedule == "inverse_sqrt") != (self.warmup_steps > 0):
            raise ValueError("warmup_steps of 1 or more go with schedule='inverse_sqrt', and with no other")
        if self.keep == "best" and self.best_before is not None:
            raise ValueError("best_before goes with keep='last': there may be no better epoch to keep")

    def identity(self):
        """What must be the same for a run to be gone on with: all but how the machine is used."""
        machine = ("workers", "save_every_s", "micro_batch")
        return {
            name: list(value) if isinstance(value, tuple) else value  # as it comes back from JSON
            for name, value in dataclasses.asdict(self).items()
            if name not in machine and not (name in LATER and value == LATER[name])
        }


@dataclass
class State:
    """What a killed run needs to go on, besides model and optimiser."""

    epoch: int = 0
    step: int = 0  # steps done in this epoch
    loss_sum: float = 0.0  # over the samples of this epoch so far
    loss_count: float = 0.0
    micro_batch: int = 0  # samples per forward pass and process
    best: float | None = None
    best_epoch: int = -1
    seconds: float = 0.0
    log: list = field(default_factory=list)


def make_accelerator(precision):
    """The device context; precision "auto" = bf16 on a GPU that has it, fp16 on others, fp32 on a CPU."""
    if precision == "auto":
        on_gpu = torch.cuda.is_available()
        precision = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "no"
    torch.use_deterministic_algorithms(
        True, warn_only=True
    )  # with two threads sums would differ from run to run
    gc.freeze()  # free_memory collects after every training: 0.2 s less where it passes over what imports left
    accelerator = Accelerator(mixed_precision=precision)
    if not accelerator.is_main_process:
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
    return accelerator


# ---- Order of samples ----------------------------------------------------------------------


def length_batches(lengths, batch_size, seed, epoch):
    """Shuffled batches of samples of similar length.

    lengths     (N,) any measure of size; None = plain shuffling
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
    """Batch sampler: this process's share of each step's samples as (index, seed) pairs."""

    def __init__(self, dataset, recipe, accelerator):
        self.lengths, self.recipe = dataset.lengths, recipe
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.begin(0, 0)

    def begin(self, epoch, step):
        """Set the epoch and the first of its steps to give out."""
        self.epoch, self.first_step = epoch, step
        self.batches = length_batches(self.lengths, self.recipe.batch_size, self.recipe.seed, epoch)

    def counts(self, step):
        """Whether this process has a share of a step; a small last batch may be too small for all."""
        return len(self.batches[step]) > self.rank

    def __len__(self):
        return len(self.batches) - self.first_step

    def __iter__(self):
        for step in range(self.first_step, len(self.batches)):
            batch = self.batches[step]
            share = batch[self.rank :: self.world] if self.counts(step) else batch[:1]
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
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[
        recipe.schedule
    ]


def parameter_groups(model, weight_decay):
    """Weight decay on matrices only, as transformers' Trainer does it."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


class Training:
    """One training run; `fit` drives it.

    model     nn.Module on the accelerator's device
    loss      loss(model, batch) -> (sum of the losses, what to divide it by); both scalars
    recipe    Recipe
    folder    for the state while it runs, best.safetensors and history.json when it is done
    identity  JSON-ready dict; a state of another identity is not gone on with
    """

    def __init__(self, accelerator, model, loss, train_set, recipe, folder, identity):
        self.accelerator, self.model, self.loss, self.recipe = accelerator, model, loss, recipe
        self.folder = make_folder(folder)
        self.identity = json.loads(json.dumps({"recipe": recipe.identity(), **identity}, default=str))
        self.keys = StepKeys(train_set, recipe, accelerator)
        self.steps = len(self.keys)
        self.loader = DataLoader(
            train_set,
            batch_sampler=self.keys,
            collate_fn=train_set.collate,
            num_workers=recipe.workers,
            persistent_workers=False,
            pin_memory=accelerator.device.type == "cuda",
        )
        if (
            accelerator.scaler
        ):  # fp16: a scale that an earlier run had come to would make this one depend on it
            accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
        groups = parameter_groups(model, recipe.weight_decay)
        self.optimizer = accelerator.prepare(
            torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)
        )
        self.parameters = [p for group in groups for p in group["params"]]
        self.state = State(
            micro_batch=recipe.micro_batch or -(-recipe.batch_size // accelerator.num_processes),
            best=recipe.best_before,
            best_epoch=-1 - recipe.epochs_since_best,
        )
        self.saved_at = time.monotonic()

    def train_epoch(self, bar):
        """Run what is left of the current epoch and return its mean training loss."""
        state = self.state
        self.keys.begin(state.epoch, state.step)
        self.model.train()
        pending = []
        for batch in self.loader:
            pending.append(self.step(to_device(batch, self.accelerator.device)))
            state.step += 1
            bar.update()
            if len(pending) >= CHECK_EVERY_STEPS or state.step == self.steps:
                self.count_losses(pending)
                pending = []
            if time.monotonic() - self.saved_at > self.recipe.save_every_s and not pending:
                self.save()
        return state.loss_sum / max(1.0, state.loss_count)

    def count_losses(self, pending):
        """Add the (sum, count) pairs of some steps to the epoch's; stop if one is not finite."""
        sums = torch.stack(pending).double().cpu()  # (steps, 2)
        if not torch.isfinite(sums).all():
            raise UserError(
                f"{self.folder}: the loss is not finite in epoch {self.state.epoch + 1}, within the last "
                f"{len(pending)} steps; lower the learning rate or set PRECISION=no"
            )
        self.state.loss_sum += float(sums[:, 0].sum())
        self.state.loss_count += float(sums[:, 1].sum())

    def step(self, batch):
        """One optimiser step; after an out-of-memory error it is repeated in smaller micro-batches."""
        while True:
            try:
                totals = self.accumulate(batch)
                break
            except torch.OutOfMemoryError:
                self.optimizer.zero_grad()
                if self.state.micro_batch <= 1:
                    raise UserError(
                        "out of memory with one sample per forward pass; choose a smaller model or shorter "
                        "inputs"
                    ) from None
                self.state.micro_batch = -(-self.state.micro_batch // 2)
                torch.cuda.empty_cache()
                print(
                    f"out of memory: going on with {self.state.micro_batch} samples per forward pass, "
                    f"still {self.recipe.batch_size} per step"
                )
        totals = self.share_gradients(totals)
        recipe, steps = self.recipe, self.steps if self.recipe.rate_per == "step" else 1
        number = self.state.epoch * steps + (self.state.step if recipe.rate_per == "step" else 0)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor(recipe, number, steps * recipe.epochs)
        if self.recipe.clip_norm:
            self.accelerator.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return totals

    def accumulate(self, batch):
        """Gradients of the summed loss over this process's share; returns (loss sum, count) as a tensor (2,)."""
        totals = torch.zeros(2, device=self.accelerator.device)
        if not self.keys.counts(self.state.step):
            return totals
        for start in range(0, size_of(batch), self.state.micro_batch):
            seed_step(self.recipe.seed, self.state.epoch, self.state.step, self.keys.rank, start)
            with self.accelerator.autocast():
                total, count = self.loss(self.model, cut(batch, start, start + self.state.micro_batch))
            # Divided by a constant only to stay within fp16's range; share_gradients divides by the true count.
            self.accelerator.backward(total / self.recipe.batch_size)
            totals += torch.stack(
                [total.detach().float(), torch.as_tensor(count, device=totals.device).float()]
            )
        return totals

    def share_gradients(self, totals):
        """Sum gradients and totals over processes, then divide the gradients by the step's count.

        Done by hand after the last micro-batch, not by DistributedDataParallel: processes may need different
        numbers of micro-batches, and LayerDrop leaves layers without a gradient.
        """
        gradients = [p.grad for p in self.parameters]
        if self.accelerator.num_processes > 1:
            used = torch.tensor([float(g is not None) for g in gradients], device=totals.device)
            flat = torch.cat(
                [
                    torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                    for p in self.parameters
                ]
            )
            used, flat, totals = (self.accelerator.reduce(x, "sum") for x in (used, flat, totals))
            for p, piece, u in zip(
                self.parameters, flat.split([p.numel() for p in self.parameters]), used.tolist()
            ):
                p.grad = piece.view_as(p) if u else None
            gradients = [p.grad for p in self.parameters]
        torch._foreach_mul_(
            [g for g in gradients if g is not None], self.recipe.batch_size / totals[1].clamp(min=1e-8)
        )
        return totals

    # ---- State on disk

    def end_epoch(self, train_loss, figures, seconds):
        """Log an epoch, keep its weights if it is the best so far, move on to the next."""
        state, value = self.state, figures[self.recipe.select_by]
        better = state.best is None or (
            value > state.best if self.recipe.higher_is_better else value < state.best
        )
        state.log.append(
            {
                "epoch": state.epoch + 1,
                "step": (state.epoch + 1) * self.steps,
                "train_loss": train_loss,
                **{
                    name if name.startswith("test_") else f"valid_{name}": float(x)
                    for name, x in figures.items()
                },
                "seconds": seconds,
            }
        )
        state.seconds += seconds
        if better:
            state.best, state.best_epoch = float(value), state.epoch
            if self.recipe.keep == "best":
                self.keep_weights()
        state.epoch, state.step, state.loss_sum, state.loss_count = state.epoch + 1, 0, 0.0, 0.0
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

    def stopped_early(self):
        return (
            bool(self.recipe.patience)
            and self.state.epoch - 1 - self.state.best_epoch >= self.recipe.patience
        )


def frozen_names(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def trained_state(model):
    """A copy of a model's state_dict without its frozen parameters, which a run cannot change."""
    frozen = frozen_names(model)
    return {
        name: tensor.detach().clone().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in frozen
    }


def load_trained(model, state):
    """Put a `trained_state` back; every parameter that is not frozen must be in it."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    needed = set(missing) - frozen_names(model)
    if needed or unexpected:
        raise ValueError(
            f"weights do not fit the model: missing {sorted(needed)[:3]}, unexpected {unexpected[:3]}"
        )


def best_weights(folder):
    """Where `fit` leaves the weights of the chosen epoch (the last one with keep="last")."""
    return Path(folder) / "best.safetensors"


def fit(accelerator, model, loss, train_set, evaluate, recipe, folder, identity, title, epoch_lines=True):
    """Train a model, choose its epoch by `evaluate`, and leave the weights of that epoch in it.

    model      nn.Module; moved to the accelerator's device
    loss       loss(model, batch) -> (sum, count)
    train_set  has `lengths`, `__getitem__((index, seed))` and `collate(items) -> batch`
    evaluate   evaluate(model) -> dict of figures, with recipe.select_by among them; logged as "valid_<name>", or as
               they are where their names begin with "test_"
    folder     state, best.safetensors and history.json go there; a run that was killed goes on from it
    identity   JSON-ready dict: what else, besides the recipe, must be the same to go on
    title      one word or two for the progress bar and the lines printed
    epoch_lines  False prints no line per epoch
    Returns the history: best_epoch (from 1), seconds, steps_per_epoch, log (one dict per epoch).
    Raises UserError on a loss that is not finite.
    """
    model.to(accelerator.device)
    if accelerator.num_processes > 1:  # every process starts from the weights of the first
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, 0)
    run = Training(accelerator, model, loss, train_set, recipe, folder, identity)
    finished = run.folder / "history.json"
    if (
        finished.exists()
        and best_weights(folder).exists()
        and read_json(finished)["identity"] == run.identity
    ):
        run.load_kept()
        print(f"{title}: already trained")
        accelerator.free_memory()
        return read_json(finished)
    if (
        accelerator.is_main_process
    ):  # what is there was made otherwise, and its weights go with the first epoch
        for outdated in (finished, run.folder / "test.json"):
            outdated.unlink(missing_ok=True)
    if run.resume():
        print(f"{title}: going on after epoch {run.state.epoch}, step {run.state.step}")
    with tqdm(
        total=run.steps * recipe.epochs,
        initial=run.state.epoch * run.steps + run.state.step,
        desc=title,
        disable=None if accelerator.is_main_process else True,
        leave=False,
    ) as bar:
        while run.state.epoch < recipe.epochs and not run.stopped_early():
            started = time.monotonic()
            train_loss = run.train_epoch(bar)
            figures = evaluate(model)
            better = run.end_epoch(train_loss, figures, time.monotonic() - started)
            bar.clear()
            if epoch_lines:
                print(_epoch_line(title, run.state.log[-1], better), flush=True)
    if recipe.keep == "last":
        run.keep_weights()
    run.load_kept()
    history = {
        "identity": run.identity,
        "best_epoch": run.state.best_epoch + 1,
        "best": run.state.best,
        "epochs_since_best": run.state.epoch - 1 - run.state.best_epoch,
        "seconds": run.state.seconds,
        "steps_per_epoch": run.steps,
        "micro_batch": run.state.micro_batch,
        "log": run.state.log,
    }
    if accelerator.is_main_process:
        write_json(finished, history)
        (run.folder / "last.pt").unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    accelerator.free_memory()  # else it would hold on to this model's weights and optimiser state
    return history


def kept_outcome(folder, recipe, identity):
    """What a script left in <folder>/test.json, if it was made with the same recipe and identity, else None."""
    path = Path(folder) / "test.json"
    if not path.exists():
        return None
    outcome = read_json(path)
    found = outcome["history"]["identity"]
    same = found["recipe"] == recipe.identity() and all(
        found[name] == value for name, value in identity.items()
    )
    return outcome if same else None


def _epoch_line(title, entry, better):
    figures = "  ".join(
        f"{name.removeprefix('valid_')} {value:7.4f}"
        for name, value in entry.items()
        if name.startswith("valid_")
    )
    return (
        f"{title:<28} epoch {entry['epoch']:3d}  train loss {entry['train_loss']:7.4f}  valid: {figures}  "
        f"{entry['seconds']:6.1f} s{'  best' if better else ''}"
    )


# ---- Prediction ----------------------------------------------------------------------------


def predict_batches(accelerator, model, forward, dataset, batch_size, workers, skip=()):
    """Yield (indices, outputs) over a dataset, in batches of similar length, on this process's share of it.

    forward  forward(model, batch) -> dict of tensors (B, ...)
    skip     indices to leave out
    Outputs are numpy arrays; results do not depend on the batch, so a smaller one is used after out-of-memory.
    """
    model.eval()
    wanted = np.setdiff1d(np.arange(len(dataset.lengths)), np.fromiter(skip, int, len(skip)))
    # Rounding differs a little from batch to batch. In the order of the corpus, which often goes by label, a classifier
    # could read the label off that noise (seen on RAVDESS' two sentences); in a random order it cannot.
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
    """Outputs of one batch on the accelerator's device as numpy arrays; halved where it does not fit into memory."""
    try:
        with torch.inference_mode(), accelerator.autocast():
            return {name: value.float().cpu().numpy() for name, value in forward(model, batch).items()}
    except torch.OutOfMemoryError:
        n = size_of(batch)
        if n == 1:
            raise UserError(
                "out of memory with one sample; choose a smaller model or shorter inputs"
            ) from None
        torch.cuda.empty_cache()
        halves = [
            forward_batch(accelerator, model, forward, cut(batch, *part))
            for part in ((0, n // 2), (n // 2, n))
        ]
        return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}


def predict(accelerator, model, forward, dataset, batch_size, workers):
    """Outputs over a whole dataset in its order: name -> array (N, ...), the same on every process."""
    pieces = list(predict_batches(accelerator, model, forward, dataset, batch_size, workers))
    if accelerator.num_processes > 1:
        pieces = gather_object(pieces)
    order = np.argsort(np.concatenate([indices for indices, _ in pieces]))
    return {name: np.concatenate([outputs[name] for _, outputs in pieces])[order] for name in pieces[0][1]}
