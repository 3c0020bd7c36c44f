"""The training loop of every script, on accelerate: one process or several, CPU or GPU, killed or not.

A run is repeatable: the order of batches depends on (seed, epoch) alone, a sample's draws on (seed, epoch,
sample), and those of a forward pass, such as dropout, on (seed, epoch, step, its first sample), so that a
resumed run needs no generator state and no process depends on another. A step's gradient is that of the mean
loss over `batch_size` samples. Micro-batches of another size, by memory or by the number of processes, change
the draws of forward passes and the rounding, nothing else.
"""

import gc
import math
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast, find_batch_size, gather_object, send_to_device, slice_tensors
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.files import UserError, as_json, atomic_path, hash_of, make_folder, read_json, write_json

COMPILER = "inductor"
POOL_BATCHES = 32  # batches that are sorted by length together: more pads less but shuffles less
CHECK_EVERY_STEPS = 20  # the loss is looked at this often; looking at each step would stall a GPU
# No part of a run's identity
MACHINE = ("eval_batch_size", "workers", "save_every_s", "micro_batch", "compile")
NO_MEMORY = "out of memory with one sample; choose a smaller model or shorter inputs"
MEMORY_SHARE = 0.7  # of a GPU's free memory, for what a forward pass keeps; backward needs more
ALLOCATION_FAILED = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass
class Recipe:
    """How a model is trained."""

    learning_rate: float  # peak
    epochs: int
    batch_size: int  # samples per step, over all processes and micro-batches
    weight_decay: float = 0.0  # not on biases and normalisation weights
    schedule: str = "linear"  # to zero: "linear", "cosine"; or "constant"; or "inverse_sqrt" of the step
    warmup: float = 0.0  # share of all steps with a rising rate; of "inverse_sqrt" the number of steps
    rate_per: str = "step"  # the rate changes from "step" to step or from "epoch" to epoch
    betas: tuple = (0.9, 0.999)  # of AdamW
    eps: float = 1e-8  # of AdamW
    clip_norm: float = 1.0  # 0 = off
    select_by: str = "highest accuracy"  # the best epoch, by a figure of `evaluate`; or "lowest loss"
    patience: int = 0  # epochs without a better figure before stopping; 0 = off
    keep: str = "best"  # the weights that are left: of the "best" epoch, the "last", or "both"
    best_before: float | None = None  # where this continues an earlier run, with keep="last": its best figure
    epochs_since_best: int = 0  # ... and for how many epochs it had not improved
    seed: int = 0
    eval_batch_size: int = 64  # samples per forward pass outside training
    micro_batch: int = 0  # samples per forward pass to start with; 0 = as many as a step has
    compile: bool = False  # let torch.compile make the forward pass faster: minutes before the first step
    workers: int = 0  # processes that prepare batches; 0 = this one
    save_every_s: float = 600.0  # seconds; a state is written at the end of the first epoch after so long

    def identity(self):
        """What must be the same to resume a run: all but how the machine is used."""
        return {name: x for name, x in asdict(self).items() if name not in MACHINE}


@dataclass
class Task:
    """What a model learns, and how it is measured."""

    make_model: Callable  # () -> nn.Module; called only if there is something to train
    loss: Callable  # (model, batch) -> (sum of the losses, what to divide it by)
    outputs: Callable  # (model, batch) -> {"logits": (B, ...), ...}
    figures: Callable  # ({"logits": array, ...}, data set) -> {name: figure}, recipe.select_by among them


@dataclass
class Place:
    """Where a training is kept, and under which name."""

    folder: Path
    identity: dict  # JSON-ready: what, besides recipe and precision, must be the same to resume
    title: str  # for the progress bar and the lines printed


@dataclass
class State:
    """What a killed run needs to resume, besides model and optimiser."""

    micro_batch: int  # samples per forward pass and process
    best: float | None
    epochs_since_best: int
    best_epoch: int = 0  # from 1; 0: an earlier run's was better
    epoch: int = 0  # how many are done
    seconds: float = 0.0
    log: list = field(default_factory=list)  # one dict per epoch


@cache
def make_accelerator(precision, deterministic=True, tracker=""):
    """The device context of this process; precision "auto" = bf16 or fp16 on a GPU, fp32 on a CPU.

    deterministic  sums in the same order each time: the same command gives the same numbers on the same
                   machine; free on a CPU, slower on a GPU (index_add, scatter), where it says so
    tracker        of accelerate, which gets the figures of each epoch; "" = none
    """
    if tracker and tracker not in map(str, get_available_trackers()):
        raise UserError(f"TRACKER={tracker}: not installed; run pip install {tracker}")
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp16" if torch.cuda.is_available() else "no"
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    if deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not
        print("repeatable to the digit, at the cost of some speed on a GPU; DETERMINISTIC=False is faster")
    if apple := torch.backends.mps.is_available():
        print("Apple's GPU has never been tried: the CPU is used")
    gc.freeze()  # free_memory collects after every training: faster where it passes over what imports left
    accelerator = Accelerator(mixed_precision=precision, cpu=apple, log_with=tracker or None, project_dir=".")
    if not accelerator.is_main_process:
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
    return accelerator


@contextmanager
def exact():
    """Without TF32, which on a GPU would change what is kept of recordings; `@exact()` before a function."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, value in zip(places, before):
            place.allow_tf32 = value


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

    def share(self, step):
        """The samples of a step that this process computes; none where there are fewer than processes."""
        n = -(-len(self.batches[step]) // self.world)
        return self.batches[step][self.rank * n : (self.rank + 1) * n].tolist()

    def __iter__(self):
        for step, batch in enumerate(self.batches):
            share = self.share(step) or batch[:1].tolist()  # a sample that does not count
            yield [(i, (self.recipe.seed, self.epoch, i)) for i in share]


def loader_of(accelerator, dataset, batches, recipe):
    """DataLoader of a data set; batches: lists of its keys."""
    how = {"num_workers": recipe.workers, "persistent_workers": recipe.workers > 0}
    how["pin_memory"] = accelerator.device.type == "cuda"
    return DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate, **how)


# ---- One step ------------------------------------------------------------------------------


def seed_step(*numbers):
    """Seed Python, numpy and torch from a tuple of integers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes milliseconds where there is no GPU
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def rate_factor(recipe, step, total):
    """Learning rate at a step, or epoch, of `total` as a share of the peak."""
    if recipe.schedule == "inverse_sqrt":  # min(n^-0.5, n * warmup^-1.5) over its peak, n = step + 1
        n = (step + 1) / recipe.warmup
        return min(n**-0.5, n)
    warmup = int(recipe.warmup * total + 1e-9)
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


def free_memory(device):
    """Bytes that are left on a GPU, of this process' share where JOBS put several there; None elsewhere."""
    if device.type != "cuda":
        return None
    (free, total), reserved = torch.cuda.mem_get_info(device), torch.cuda.memory_reserved(device)
    share = total / int(os.environ.get("JOBS_PER_GPU", 1))  # set by jobs.side_by_side
    return min(free, share - reserved) + reserved - torch.cuda.memory_allocated(device)


def kept_bytes(accelerator, model, loss, batch):
    """Bytes that a forward pass keeps for the backward pass, besides the model and the batch."""
    kept, owned = {}, [*model.parameters(), *model.buffers(), *tree_leaves(batch)]

    def pack(x):
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return x

    seed_step(0)  # LayerDrop leaves out the same layers each time
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), accelerator.autocast():
        # `total` is held to the end, so that no storage is freed and its address used again
        total, _ = loss(model, batch)
    for x in owned:
        kept.pop(x.untyped_storage()._cdata, None)
    return sum(kept.values())


def fitting(n, once, each, room):
    """n samples, halved until what they keep, `once` and for `each` of them, is no more than `room` bytes."""
    while n > 1 and once + n * each > room:
        n = -(-n // 2)
    return n


class Training:
    """One training run; `train_and_test` drives it.

    model  nn.Module on the accelerator's device
    loss   loss(model, batch) -> (sum of the losses, what to divide it by); both scalars
    """

    def __init__(self, accelerator, model, loss, train_set, recipe, place):
        self.accelerator, self.model, self.loss = accelerator, model.to(accelerator.device), loss
        self.recipe, self.place, self.folder = recipe, place, make_folder(place.folder)
        broadcast(self.model.state_dict())  # in place: every process starts from the weights of the first
        self.keys = StepKeys(train_set, recipe, accelerator)
        self.steps, self.loader = len(self.keys), loader_of(accelerator, train_set, self.keys, recipe)
        if accelerator.scaler:  # fp16: the scale that an earlier run came to would make this one depend on it
            accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
        self.optimizer = accelerator.prepare(make_optimizer(model, recipe, accelerator.device))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        micro_batch = recipe.micro_batch or -(-recipe.batch_size // accelerator.num_processes)
        self.state = State(micro_batch, recipe.best_before, recipe.epochs_since_best)
        self.saved_at = time.monotonic()
        if recipe.compile:
            model.compile(backend=COMPILER)

    def train(self, evaluate):
        """Train the epochs that are left, with the figures {"valid_<name>": x} of evaluate() after each.

        The model ends with the weights of the chosen epoch, which stay in the folder. Returns the history.
        """
        (self.folder / "outcome.json").unlink(missing_ok=True)  # its weights go with the first epoch
        self.resume()
        self.fit_micro_batch()
        run = str(self.folder)  # name of the tracker's run; TensorBoard's lies in that folder
        self.accelerator.project_configuration.logging_dir = run
        self.accelerator.init_trackers("multimodal-emotion", init_kwargs={"wandb": {"name": run}})
        total, done = self.steps * self.recipe.epochs, self.steps * self.state.epoch
        hidden = None if self.accelerator.is_main_process else True
        with tqdm(total=total, initial=done, desc=self.place.title, disable=hidden, leave=False) as bar:
            while not self.is_over():
                started = time.monotonic()
                self.end_epoch(self.train_epoch(bar), evaluate(), started)
        if self.recipe.keep != "best":
            self.keep_weights("best" if self.recipe.keep == "last" else "last")
        while self.accelerator.trackers:
            self.accelerator.trackers.pop().finish()
        self.accelerator.wait_for_everyone()
        load_best(self.model, self.folder)
        return {"identity": self.place.identity, "steps_per_epoch": self.steps, **asdict(self.state)}

    def fit_micro_batch(self):
        """Where a GPU's memory is too small for a step, take a smaller micro-batch from the start.

        Judged by what forward passes of the longest samples, 2 and 3 of them, keep for the backward pass.
        """
        recipe, state, data = self.recipe, self.state, self.loader.dataset
        free, longest = free_memory(self.accelerator.device), np.argsort(data.lengths)[-3:].tolist()
        if free is None or recipe.micro_batch or state.epoch or len(longest) < 3:
            return
        batch = data.collate([data[i, (recipe.seed, 0, i)] for i in longest])
        batch = send_to_device(batch, self.accelerator.device)
        how, buffers = (self.accelerator, self.model.train(), self.loss), [*self.model.buffers()]
        before = [x.clone() for x in buffers]
        with torch.compiler.set_stance("force_eager"):
            two, three = (attempt(kept_bytes, *how, slice_tensors(batch, slice(k))) for k in (2, 3))
        for buffer, x in zip(buffers, before):  # such as BatchNorm's
            buffer.copy_(x)
        if not two or not three:
            return  # `step` will find out
        room = MEMORY_SHARE * (free - 12 * sum(p.numel() for p in self.parameters))  # gradients and AdamW
        n = fitting(state.micro_batch, 3 * two - 2 * three, three - two, room)
        if n < state.micro_batch:
            print(f"{self.place.title}: {free / 1e9:.1f} GB are free: {n} samples per forward pass")
        state.micro_batch = n

    def train_epoch(self, bar):
        """Train for an epoch and return its mean loss; UserError if one is not finite."""
        self.keys.begin(self.state.epoch)
        self.model.train()
        sums, pending = np.zeros(2), []
        for step, batch in enumerate(self.loader):
            pending.append(self.step(step, send_to_device(batch, self.accelerator.device, non_blocking=True)))
            bar.update()
            if len(pending) >= CHECK_EVERY_STEPS or step + 1 == self.steps:
                sums += torch.stack(pending).cpu().double().numpy().sum(0)  # (loss, count)
                pending = []
            if not np.isfinite(sums).all():
                where = f"{self.folder}: the loss is not finite in epoch {self.state.epoch + 1}"
                raise UserError(f"{where}; lower the learning rate or set PRECISION=no")
        return float(sums[0] / max(1.0, sums[1]))

    def step(self, step, batch):
        """One optimiser step; after an out-of-memory error it is repeated in smaller micro-batches."""
        recipe, state = self.recipe, self.state
        while (totals := attempt(self.accumulate, step, batch)) is None:
            self.optimizer.zero_grad()
            if state.micro_batch <= 1:
                raise UserError(NO_MEMORY)
            state.micro_batch = n = -(-state.micro_batch // 2)
            print(f"out of memory: {n} samples per forward pass from now on, {recipe.batch_size} per step")
        totals, number, total = self.share_gradients(totals), state.epoch, recipe.epochs
        if recipe.rate_per == "step":
            number, total = number * self.steps + step, total * self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate_factor(recipe, number, total)
        if recipe.clip_norm:
            self.accelerator.clip_grad_norm_(self.parameters, recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return totals

    def accumulate(self, step, batch):
        """Gradients of the summed loss over this process's share; returns (loss sum, count) as (2,)."""
        totals = torch.zeros(2, device=self.accelerator.device)
        samples = self.keys.share(step)
        for start in range(0, len(samples), self.state.micro_batch):
            seed_step(self.recipe.seed, self.state.epoch, step, samples[start])
            part = slice_tensors(batch, slice(start, start + self.state.micro_batch))
            with self.accelerator.autocast():
                total, count = self.loss(self.model, part)
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
            used, gradients, totals = self.accelerator.reduce([used, gradients, totals], "sum")
            for p, gradient, n in zip(self.parameters, gradients, used.tolist()):
                p.grad = gradient if n else None
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, self.recipe.batch_size / totals[1].clamp(min=1e-8))
        return totals

    # ---- State on disk

    def end_epoch(self, train_loss, figures, started):
        """Log an epoch, keep its weights if it is the best so far, move on to the next."""
        state, (which, name) = self.state, self.recipe.select_by.split()
        value, state.epoch, seconds = figures[f"valid_{name}"], state.epoch + 1, time.monotonic() - started
        entry = {"epoch": state.epoch, "step": state.epoch * self.steps, "train_loss": train_loss}
        state.log.append({**entry, **figures, "seconds": seconds})
        self.accelerator.log({"train_loss": train_loss, **figures}, state.epoch)
        state.seconds += seconds
        state.epochs_since_best += 1
        if state.best is None or (value > state.best if which == "highest" else value < state.best):
            state.best, state.best_epoch, state.epochs_since_best = value, state.epoch, 0
            if self.recipe.keep != "last":
                self.keep_weights()
        if time.monotonic() - self.saved_at >= self.recipe.save_every_s:
            self.save()
            done = f"epoch {state.epoch}/{self.recipe.epochs}"
            tqdm.write(f"{self.place.title}: {done}, train_loss {train_loss:.4f}")

    def keep_weights(self, epoch="best"):
        self.write(best_weights(self.folder, epoch), save_file, trained_state(self.model))

    def save(self):
        """Write what `resume` reads."""
        scaler = self.accelerator.scaler
        content = {"identity": self.place.identity, "state": asdict(self.state)}
        content |= {"model": trained_state(self.model), "optimizer": self.optimizer.state_dict()}
        content["scaler"] = scaler.state_dict() if scaler else None
        self.write(self.folder / "last.pt", torch.save, content)
        self.saved_at = time.monotonic()

    def write(self, path, writer, content):
        if self.accelerator.is_main_process:
            try:
                with atomic_path(path) as temporary:
                    writer(content, temporary)
            except (SafetensorError, RuntimeError) as error:  # what both make of a full disk
                reason = f"cannot be written ({str(error).splitlines()[0]})"
                raise UserError(f"{path}: {reason}; free some space or choose another DATA_ROOT") from error

    def resume(self):
        """Load the last state if there is one of the same identity."""
        path = self.folder / "last.pt"
        try:
            content = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}
        except Exception:  # whatever torch.load makes of a damaged file
            print(f"{path}: damaged; the training starts afresh")
            return
        if content.get("identity") != self.place.identity:
            return
        load_trained(self.model, content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.state = State(**content["state"])
        print(f"{self.place.title}: resumed after epoch {self.state.epoch}")

    def is_over(self):
        stopped_early = 0 < self.recipe.patience <= self.state.epochs_since_best
        return stopped_early or self.state.epoch >= self.recipe.epochs


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


def best_weights(folder, epoch="best"):
    """Where a training leaves the weights of the chosen epoch (the last one with keep="last").

    epoch  "last" with keep="both": those of the last epoch
    """
    return Path(folder) / f"{epoch}.safetensors"


def load_best(model, folder, epoch="best"):
    """The model, with the weights of `best_weights`."""
    path = best_weights(folder, epoch)
    try:
        load_trained(model, load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or absent; delete {folder} and run again") from error
    return model


# ---- Train, then test ----------------------------------------------------------------------


def train_and_test(accelerator, task, data, recipe, place, keep_weights=False, watch=()):
    """Train on data["train"], choose the epoch on data["valid"], then score the other data sets once.

    data          {name: data set} with `lengths`, `__getitem__((index, seed))` and `collate(items) -> batch`;
                  those to be tested have `ids` too; there may be none
    keep_weights  whether the weights of the chosen epoch stay in `best_weights`
    watch         tested sets that are also scored after every epoch, as "<name>_<figure>", for no choice
    Returns {"history", "test_seconds", "tests": {name: {"ids", "figures", "outputs": {name: list}}}}, kept in
    <folder>/outcome.json, so that a second run does not train again. The history has best_epoch (from 1),
    seconds, steps_per_epoch and log, one dict per epoch. Raises UserError on a loss that is not finite.
    """
    tests = {name: part for name, part in data.items() if name not in ("train", "valid")}
    made_of = {"recipe": recipe.identity(), "precision": accelerator.mixed_precision}
    made_of["tested"] = {name: hash_of(list(part.ids)) for name, part in tests.items()}
    place = replace(place, identity=as_json({**place.identity, **made_of}))
    if kept := kept_outcome(place, keep_weights):
        print(f"  {place.title}: already trained")
        return kept
    run = Training(accelerator, task.make_model(), task.loss, data["train"], recipe, place)

    def score(name):
        found = predict(accelerator, run.model, task.outputs, data[name], recipe)
        return found, {figure: float(value) for figure, value in task.figures(found, data[name]).items()}

    def evaluate():
        found = {name: score(name)[1] for name in ("valid", *watch)}
        return {f"{name}_{figure}": value for name, part in found.items() for figure, value in part.items()}

    outcome, started = {"history": run.train(evaluate), "tests": {}}, time.monotonic()
    for name, part in tests.items():
        found, scores = score(name)
        lists = {key: array.tolist() for key, array in found.items()}
        outcome["tests"][name] = {"ids": list(part.ids), "figures": scores, "outputs": lists}
    outcome["test_seconds"] = time.monotonic() - started
    finish(accelerator, outcome, recipe, place, keep_weights)
    return outcome


def loss_and_accuracy(found, data):
    """Figures of a Task: mean cross-entropy and accuracy of logits (N, C); data: with `labels` (N,)."""
    logits, labels = torch.from_numpy(found["logits"]), torch.from_numpy(data.labels)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return {"loss": F.cross_entropy(logits, labels).item(), "accuracy": accuracy.item()}


def kept_outcome(place, keep_weights):
    """What an equal training left, or None."""
    path, weights = Path(place.folder) / "outcome.json", best_weights(place.folder)
    if not path.exists() or keep_weights and not weights.exists():
        return None
    outcome = read_json(path)
    return outcome if outcome["history"]["identity"] == place.identity else None


def finish(accelerator, outcome, recipe, place, keep_weights):
    """Keep an outcome, remove what is of no use any more, and print a line."""
    if accelerator.is_main_process:
        write_json(Path(place.folder) / "outcome.json", outcome)
        (Path(place.folder) / "last.pt").unlink(missing_ok=True)
        if not keep_weights:
            best_weights(place.folder).unlink()
    accelerator.wait_for_everyone()
    accelerator.free_memory()  # else it would hold on to this model's weights and optimiser state
    history, name = outcome["history"], recipe.select_by.split()[1]
    tests = "  ".join(f"{part} {found['figures'][name]:.3f}" for part, found in outcome["tests"].items())
    epoch = f"{history['seconds']:7.1f} s  epoch {history['best_epoch']:>3}/{recipe.epochs}"
    print(f"  {place.title:<60} {epoch}  {name}: valid {history['best']:.3f}  {tests}", flush=True)


# ---- Prediction ----------------------------------------------------------------------------


def by_length(lengths):
    """The order in which samples are computed: similar lengths together, so that little is padding.

    Those of one length come in random order. Rounding differs a little from batch to batch: in the order of
    the corpus, which often goes by label, a classifier could read the label off it (seen on RAVDESS).
    """
    order = np.random.default_rng(0).permutation(len(lengths))
    return order[np.argsort(np.asarray(lengths)[order], kind="stable")].tolist()


def predict(accelerator, model, forward, dataset, recipe):
    """Outputs over a whole dataset in its order: name -> array (N, ...), the same on every process.

    forward  forward(model, batch) -> dict of tensors (B, ...)
    Outputs do not depend on the batch, so a smaller one is used after an out-of-memory error.
    """
    model.eval()
    size, order = recipe.eval_batch_size, by_length(dataset.lengths)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    batches = batches[accelerator.process_index :: accelerator.num_processes]
    keys = [[(i, None) for i in batch] for batch in batches]
    loader, pieces = loader_of(accelerator, dataset, keys, recipe), []
    for indices, batch in zip(batches, loader):
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        pieces.append((indices, forward_batch(accelerator, model, forward, batch)))
    if accelerator.num_processes > 1:
        pieces = gather_object(pieces)
    order = np.argsort(np.concatenate([indices for indices, _ in pieces]))
    return {name: np.concatenate([outputs[name] for _, outputs in pieces])[order] for name in pieces[0][1]}


def forward_batch(accelerator, model, forward, batch):
    """Outputs of one batch as numpy arrays; the batch is halved where it does not fit into memory."""

    def run():
        with torch.inference_mode(), accelerator.autocast():
            found = forward(model, batch).items()
            return {name: (x.float() if x.is_floating_point() else x).cpu().numpy() for name, x in found}

    found, n = attempt(run), find_batch_size(batch)
    if found is not None:
        return found
    if n == 1:
        raise UserError(NO_MEMORY)
    parts = [slice_tensors(batch, slice(*half)) for half in ((0, n // 2), (n // 2, n))]
    halves = [forward_batch(accelerator, model, forward, part) for part in parts]
    return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
