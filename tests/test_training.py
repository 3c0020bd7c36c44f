"""The training loop: order of samples, resume, out-of-memory, processes, stopping."""

import contextlib
import gc
import json
import socket
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate import tracking
from conftest import FRESH, execute
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from common import training
from common.files import UserError
from common.training import Place, Recipe, Task, length_batches, load_best, make_accelerator, rate_factor

RECIPE = Recipe(
    learning_rate=1e-2, epochs=4, batch_size=8, weight_decay=0.01, warmup=0.1, seed=3, save_every_s=0.0
)


class Toy:
    """30 points of three classes; noise is drawn from the sample's seed, as augmentation would."""

    def __init__(self, n=30):
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(n) % 3
        self.x = torch.randn(n, 5, generator=generator) + 2 * F.one_hot(self.y, 5)
        self.lengths = [int(v) for v in np.random.default_rng(0).integers(1, 50, n)]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, key):
        index, seed = key
        noise = 0 if seed is None else np.random.default_rng(seed).normal(size=5) * 0.1
        return self.x[index] + torch.as_tensor(noise, dtype=torch.float32), self.y[index]

    def collate(self, items):
        return {
            "inputs": {"x": torch.stack([x for x, _ in items])},
            "labels": torch.stack([y for _, y in items]),
        }


def model(dropout=0.2):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def loss(net, batch):
    return F.cross_entropy(net(batch["inputs"]["x"]), batch["labels"], reduction="sum"), len(batch["labels"])


def outputs(net, batch):
    return {"logits": net(batch["inputs"]["x"])}


def predict(net, data, forward=outputs, batch_size=7):
    recipe = replace(RECIPE, eval_batch_size=batch_size)
    return training.predict(make_accelerator("no"), net, forward, data, recipe)


def train(folder, recipe, task, data, **options):
    place = Place(folder, {"task": "toy"}, "toy")
    return training.train_and_test(make_accelerator("no"), task, data, recipe, place, **options)


def run(folder, recipe=RECIPE, net=None, loss=loss, stop_after=None, data=None):
    """Train on points that also validate: the history, and the network with the weights that were kept."""
    net, data, calls = net or model(), data or Toy(), []

    def figures(found, data):
        calls.append(1)
        if stop_after and len(calls) > stop_after:
            raise KeyboardInterrupt
        accuracy = (found["logits"].argmax(1) == data.y.numpy()).mean()
        return {"loss": F.cross_entropy(torch.from_numpy(found["logits"]), data.y), "accuracy": accuracy}

    task, sets = Task(lambda: net, loss, outputs, figures), {"train": data, "valid": data}
    history = train(folder, recipe, task, sets, keep_weights=True)["history"]
    return history, load_best(net, folder)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def curves(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history["log"]]


def test_every_sample_once_and_similar_lengths():
    lengths = np.random.default_rng(1).integers(1, 1000, 1003)
    batches = length_batches(lengths, 16, 0, 2)
    assert sorted(np.concatenate(batches)) == list(range(1003)) and len(batches) == 63
    spread = np.mean([np.ptp(lengths[b]) for b in batches])
    assert spread < 0.1 * np.ptp(lengths)
    assert all(np.array_equal(a, b) for a, b in zip(batches, length_batches(lengths, 16, 0, 2)))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, length_batches(lengths, 16, 0, 3)))


def test_rate_schedules():
    recipe = replace(RECIPE, warmup=0.2)
    assert [round(rate_factor(recipe, s, 10), 3) for s in (0, 1, 2, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.125]
    assert rate_factor(replace(recipe, schedule="cosine"), 6, 10) == pytest.approx(0.5)
    assert rate_factor(replace(recipe, schedule="constant"), 9, 10) == 1.0


def test_inverse_square_root_is_the_schedule_of_khare():
    """Peak times factor is k * width^-0.5 * min(n^-0.5, n * warmup^-1.5) of [27], n counted from 1."""
    k, width, warmup = 2.5, 64, 7
    recipe = Recipe(k * width**-0.5 * warmup**-0.5, 1, 8, schedule="inverse_sqrt", warmup=warmup)
    for n in (1, 4, 7, 8, 31, 501):
        rate = k * width**-0.5 * min(n**-0.5, n * warmup**-1.5)
        for total in (10, 1000):
            assert recipe.learning_rate * rate_factor(recipe, n - 1, total) == pytest.approx(rate)


def test_one_step_is_adamw_on_the_mean_loss(tmp_path):
    """One full-batch step without dropout against torch.optim.AdamW written out."""
    recipe = replace(RECIPE, epochs=1, batch_size=30, warmup=0.0, schedule="constant", clip_norm=0.5)
    data = Toy()
    data.__class__ = type(
        "Plain", (Toy,), {"__getitem__": lambda self, key: (self.x[key[0]], self.y[key[0]])}
    )
    _, ours = run(tmp_path, recipe, model(0.0), data=data)
    theirs = model(0.0)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.01},
            {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    F.cross_entropy(theirs(data.x), data.y).backward()
    nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    optimizer.step()
    assert torch.allclose(weights(ours), weights(theirs), atol=1e-6)


def test_learns_and_keeps_the_best_epoch(tmp_path):
    history, net = run(tmp_path, replace(RECIPE, epochs=15))
    accuracies = [entry["valid_accuracy"] for entry in history["log"]]
    assert history["best"] == max(accuracies) > 0.9 and history["best_epoch"] == 1 + int(
        np.argmax(accuracies)
    )
    assert not (tmp_path / "last.pt").exists()


def test_resume_equals_an_uninterrupted_run(tmp_path):
    whole, net = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=2)
    again, resumed = run(tmp_path / "cut")
    assert curves(again) == curves(whole) and torch.equal(weights(net), weights(resumed))


def test_worker_processes_change_nothing(tmp_path):
    one, net = run(tmp_path / "one")
    two, same = run(tmp_path / "two", replace(RECIPE, workers=2))
    assert curves(one) == curves(two) and torch.equal(weights(net), weights(same))


def test_a_run_killed_within_an_epoch_repeats_that_epoch(tmp_path):
    whole, net = run(tmp_path / "whole")
    steps = []

    def killed(m, batch):
        steps.append(1)
        if len(steps) == 7:  # the third step of the second epoch
            raise KeyboardInterrupt
        return loss(m, batch)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", loss=killed)
    again, resumed = run(tmp_path / "cut")
    assert curves(again) == curves(whole) and torch.equal(weights(net), weights(resumed))


def test_a_state_of_other_settings_is_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=2)
    history, _ = run(tmp_path, replace(RECIPE, learning_rate=2e-2))
    fresh, _ = run(tmp_path / "fresh", replace(RECIPE, learning_rate=2e-2))
    assert curves(history) == curves(fresh)


def test_finished_run_is_not_trained_again(tmp_path):
    _, net = run(tmp_path)

    def forbidden(m, batch):
        raise AssertionError("trained again")

    _, loaded = run(tmp_path, loss=forbidden)
    assert torch.equal(weights(net), weights(loaded))


def test_out_of_memory_halves_the_micro_batch_not_the_step(tmp_path, capsys):
    def small_memory(m, batch):
        if m.training and len(batch["labels"]) > 3:
            raise torch.OutOfMemoryError("no memory")
        return loss(m, batch)

    whole, net = run(tmp_path / "whole", net=model(0.0))
    cut, small = run(tmp_path / "cut", net=model(0.0), loss=small_memory)
    assert cut["micro_batch"] == 2 and "8 per step" in capsys.readouterr().out
    assert torch.allclose(weights(net), weights(small), atol=1e-5)


WIDTHS = (100, 400, 200, 3)


class Wide(Toy):
    """Points of a hundred numbers: what a network keeps of them is large enough to be counted."""

    def __init__(self, n=32):
        super().__init__(n)
        self.x = torch.randn(n, WIDTHS[0], generator=torch.Generator().manual_seed(0))

    def __getitem__(self, key):
        return self.x[key[0]], self.y[key[0]]


def wide_model(*more):
    """more  classes of layers to put in, each with its argument"""
    torch.manual_seed(1)
    layers, extra = [nn.Linear(m, n) for m, n in zip(WIDTHS, WIDTHS[1:])], [make(x) for make, x in more]
    return nn.Sequential(layers[0], *extra, nn.ReLU(), layers[1], nn.ReLU(), layers[2])


# Bytes of a sample: both ReLUs and the log-probabilities. The batch is not counted
KEPT = 4 * sum(WIDTHS[1:])


def test_what_a_forward_pass_keeps_is_counted():
    data, accelerator = Wide(), make_accelerator("no")
    batches = [data.collate([data[i, None] for i in range(n)]) for n in (2, 3)]
    two, three = (training.kept_bytes(accelerator, wide_model(), loss, batch) for batch in batches)
    assert three - two == pytest.approx(KEPT, rel=0.02) and two == pytest.approx(2 * KEPT, rel=0.02)


def test_of_a_gpu_that_jobs_share_each_counts_on_its_part(monkeypatch):
    """80 bytes, 10 of them this process' (4 in use), 30 another's: 46 alone, 36 as one of two jobs."""
    figures = {"mem_get_info": (40, 80), "memory_reserved": 10, "memory_allocated": 4}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert training.free_memory(torch.device("cuda")) == 46
    monkeypatch.setenv("JOBS_PER_GPU", "2")
    assert training.free_memory(torch.device("cuda")) == 36
    assert training.free_memory(torch.device("cpu")) is None


@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_gpu_with_little_memory_takes_small_micro_batches_at_once(tmp_path, monkeypatch, capsys, n):
    """Memory for n samples and half another one; what else is counted leaves the training as it is."""
    layers = [(nn.BatchNorm1d, 400)] * (n > 1)  # it needs two samples
    recipe, net = replace(RECIPE, epochs=2), partial(wide_model, *layers, (nn.Dropout, 0.2))
    kept = KEPT + 4 * 400 * (len(layers) + 1)  # what BatchNorm reads, and the mask of Dropout
    states = 12 * sum(p.numel() for p in net().parameters())
    once = 2 * 4 * 400 * len(layers)  # mean and deviation of BatchNorm
    free = states + (once + (n + 0.5) * kept) / training.MEMORY_SHARE
    plain, ours = run(tmp_path / "plain", replace(recipe, micro_batch=n), net(), data=Wide())
    assert capsys.readouterr().out.count("per forward pass") == 0
    monkeypatch.setattr(training, "free_memory", lambda device: free)
    found, theirs = run(tmp_path / "little", recipe, net(), data=Wide())
    assert found["micro_batch"] == plain["micro_batch"] == n
    assert curves(found) == curves(plain) and torch.equal(weights(ours), weights(theirs))
    assert all(map(torch.equal, ours.buffers(), theirs.buffers()))
    assert capsys.readouterr().out.count(f"{n} samples per forward pass") == (n < recipe.batch_size)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    def bad(m, batch):
        total, count = loss(m, batch)
        return total * float("nan"), count

    with pytest.raises(UserError, match="not finite in epoch 1"):
        run(tmp_path, loss=bad)
    assert not (tmp_path / "best.safetensors").exists()


def test_patience(tmp_path):
    history, _ = run(tmp_path, replace(RECIPE, epochs=50, learning_rate=0.0, patience=3))
    assert len(history["log"]) == 4 and history["best_epoch"] == 1


def test_predictions_do_not_depend_on_batch_or_memory():
    net, data = model(), Toy()

    def forward(m, batch):
        if len(batch["labels"]) > 5:
            raise torch.OutOfMemoryError
        return {"y": m(batch["inputs"]["x"])}

    found = predict(net, data, forward, 16)["y"]
    assert np.allclose(found, net.eval()(data.x).detach().numpy(), atol=1e-6)


def test_batches_of_predictions_do_not_follow_the_order_of_the_corpus():
    """Float noise of a batch must not tell neighbours of the corpus, which often share a label."""
    data, spans = Toy(64), []
    data.lengths, data.y = [1] * 64, torch.arange(64)

    def forward(m, batch):
        spans.append(np.ptp(batch["labels"].numpy()))
        return outputs(m, batch)

    found = predict(model(), data, forward, 8)["logits"]
    assert min(spans) > 16
    assert np.allclose(found, model().eval()(data.x).detach().numpy(), atol=1e-6)


def test_two_processes_train_the_same_model(tmp_path):
    """Two CPU processes against one; the last batch has fewer samples than both need."""
    source = (
        "import test_training as t, torch\nfrom pathlib import Path\n"
        "recipe = t.replace(t.RECIPE, epochs=3, batch_size=29)\n"
        f"history, net = t.run(Path({str(tmp_path / 'two')!r}), recipe, t.model(0.0))\n"
        f"path = {str(tmp_path)!r} + '/weights' + str(t.make_accelerator('no').process_index) + '.pt'\n"
        "torch.save(t.weights(net), path)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2"}
    told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    processes = []
    for rank in "01":  # as `accelerate launch` starts them; test_05_pretrain_vqmae.py calls it
        place = told | {"RANK": rank, "LOCAL_RANK": rank}
        words = f"import os; os.environ |= {place}\n{source}", tmp_path, tmp_path / f"printed{rank}.txt"
        processes.append(FRESH.Process(target=execute, args=words))
        processes[-1].start()
    for process in processes:
        process.join()
    printed = [path.read_text() for path in tmp_path.glob("printed*.txt")]
    assert [process.exitcode for process in processes] == [0, 0], printed
    history, net = run(tmp_path / "one", replace(RECIPE, epochs=3, batch_size=29), model(0.0))
    for rank in (0, 1):
        assert torch.allclose(
            torch.load(tmp_path / f"weights{rank}.pt", weights_only=True), weights(net), atol=1e-5
        )
    two = json.loads((tmp_path / "two" / "outcome.json").read_text())["history"]
    assert np.allclose(
        [e["train_loss"] for e in two["log"]], [e["train_loss"] for e in history["log"]], atol=1e-5
    )


# ---- Which epoch is kept, going on with an earlier run, frozen parts -------------------------

LOSS_RECIPE = replace(RECIPE, select_by="lowest loss")


def scripted(folder, recipe, values, net=None, stop_after=None):
    """Train with `values` as the loss of each epoch; returns (history, net, weights after each epoch)."""
    net, data, seen = net or model(), Toy(), []

    def figures(found, data):
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(weights(net).clone())
        return {"loss": values[len(seen) - 1]}

    task, sets = Task(lambda: net, loss, outputs, figures), {"train": data, "valid": data}
    history = train(folder, recipe, task, sets, keep_weights=True)["history"]
    return history, load_best(net, folder), seen


@pytest.mark.parametrize("keep, epoch", [("best", 2), ("last", 4), ("both", 2)])
def test_the_weights_of_the_best_or_of_the_last_epoch_are_kept(tmp_path, keep, epoch):
    recipe = replace(LOSS_RECIPE, keep=keep)
    history, net, after = scripted(tmp_path, recipe, [1.0, 0.5, 0.7, 0.6])
    assert history["best_epoch"] == 2 and history["best"] == 0.5 and history["epochs_since_best"] == 2
    assert torch.equal(weights(net), after[epoch - 1]) and not torch.equal(after[1], after[3])
    _, loaded, none = scripted(tmp_path, recipe, [])
    assert torch.equal(weights(loaded), after[epoch - 1]) and not none  # from the file, without training
    if keep == "both":
        assert torch.equal(weights(load_best(net, tmp_path, "last")), after[3])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_resumed_run_keeps_the_same_epoch(tmp_path, keep):
    recipe, values = replace(LOSS_RECIPE, keep=keep, epochs=5), [1.0, 0.5, 0.7, 0.8, 0.6]
    _, whole, _ = scripted(tmp_path / "whole", recipe, values)
    with pytest.raises(KeyboardInterrupt):
        scripted(tmp_path / "cut", recipe, values, stop_after=3)
    history, resumed, _ = scripted(tmp_path / "cut", recipe, values[3:])
    assert torch.equal(weights(whole), weights(resumed)) and history["best_epoch"] == 2


@pytest.mark.parametrize(
    "values, n_epochs, best",
    [
        ([2.0] * 30, 5, 1.0),  # 5 + 5 without improvement
        ([2.0, 2, 0.9] + [2.0] * 30, 13, 0.9),  # an improvement in epoch 3 gives 10 more
        ([1.0] * 30, 5, 1.0),  # equal is not better
        ([2.0] * 4 + [0.5] + [2.0] * 30, 15, 0.5),  # in the last epoch before the end
    ],
)
def test_patience_counts_on_from_an_earlier_run(tmp_path, values, n_epochs, best):
    recipe = replace(LOSS_RECIPE, epochs=30, patience=10, keep="last", best_before=1.0, epochs_since_best=5)
    history, _, _ = scripted(tmp_path, recipe, values)
    assert len(history["log"]) == n_epochs and history["best"] == best
    assert history["epochs_since_best"] == 10
    with pytest.raises(KeyboardInterrupt):
        scripted(tmp_path / "cut", recipe, values, stop_after=2)
    resumed, _, _ = scripted(tmp_path / "cut", recipe, values[2:])
    assert len(resumed["log"]) == n_epochs and resumed["best"] == best


def half_frozen():
    net = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    net[0].requires_grad_(False)
    return net


def test_what_is_frozen_is_not_saved_and_not_changed(tmp_path):
    net = half_frozen()
    state = training.trained_state(net)
    assert set(state) == {
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "3.weight",
        "3.bias",
    }
    with torch.no_grad():
        net[3].bias += 1
    assert not torch.equal(state["3.bias"], net[3].bias)  # a copy, not a view
    _, trained, _ = scripted(tmp_path, LOSS_RECIPE, [1.0, 0.9, 0.8, 0.7], half_frozen())
    assert torch.equal(trained[0].weight, half_frozen()[0].weight)
    assert not torch.equal(trained[3].weight, half_frozen()[3].weight)
    assert set(load_file(tmp_path / "best.safetensors")) == set(state)


def test_resume_with_frozen_parts_equals_an_uninterrupted_run(tmp_path):
    whole, net = run(tmp_path / "whole", net=half_frozen())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", net=half_frozen(), stop_after=2)
    assert "0.weight" not in torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["model"]
    again, resumed = run(tmp_path / "cut", net=half_frozen())
    assert curves(again) == curves(whole)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), resumed.state_dict().values()))


def test_weights_that_do_not_fit_are_refused():
    net = half_frozen()
    state = training.trained_state(net)
    training.load_trained(half_frozen(), state)
    with pytest.raises(ValueError, match=r"missing \['3.bias'\]"):
        training.load_trained(net, {k: v for k, v in state.items() if k != "3.bias"})
    with pytest.raises(ValueError, match=r"unexpected \['4.bias'\]"):
        training.load_trained(net, {**state, "4.bias": torch.zeros(3)})
    with pytest.raises(RuntimeError, match="size mismatch for 3.bias"):
        training.load_trained(net, {**state, "3.bias": torch.zeros(4)})
    net[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"missing \['0.bias', '0.weight'\]"):
        training.load_trained(net, state)  # trained here, but not in what was saved


def test_an_outcome_is_used_again_only_if_it_was_made_the_same_way(tmp_path):
    first, _ = run(tmp_path)
    seconds = first["seconds"]  # of the clock: no two trainings have the same
    assert run(tmp_path)[0]["seconds"] == seconds
    assert run(tmp_path, replace(RECIPE, workers=1, eval_batch_size=3))[0]["seconds"] == seconds
    assert run(tmp_path, replace(RECIPE, keep="last"))[0]["seconds"] != seconds


def test_a_finished_run_leaves_no_model_behind(tmp_path):
    """Hundreds of models are trained with one accelerator; their optimisers must not pile up."""
    alive = []
    for i in range(3):
        net = model()
        alive.append(weakref.ref(net[0].weight))
        run(tmp_path / str(i), replace(RECIPE, epochs=1), net)
    del net
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_what_another_recipe_left_is_gone_once_training_starts(tmp_path):
    """Else its outcome would stand beside weights that a killed run has written over."""
    run(tmp_path, replace(RECIPE, epochs=1))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(RECIPE, learning_rate=1e-3), stop_after=1)
    assert not (tmp_path / "outcome.json").exists()


def test_a_smaller_first_micro_batch_changes_no_identity(tmp_path):
    assert replace(RECIPE, micro_batch=2).identity() == RECIPE.identity()
    history, _ = run(tmp_path, replace(RECIPE, micro_batch=2, epochs=1))
    assert history["micro_batch"] == 2


class ScoredToy(Toy):
    ids = [f"u{i}" for i in range(30)]


def test_train_and_test_keeps_its_outcome(tmp_path, capsys):
    data, made = ScoredToy(), []
    parts = {"train": data, "valid": data, "test": data, "other": data}

    def make_model():
        made.append(1)
        return model()

    def figures(found, part):
        return {"accuracy": (found["logits"].argmax(1) == part.y.numpy()).mean()}

    task = Task(make_model, loss, outputs, figures)
    first = train(tmp_path, RECIPE, task, parts, watch=("test",))
    assert set(first["tests"]) == {"test", "other"} and first["tests"]["test"]["ids"] == data.ids
    assert first["tests"]["test"]["figures"]["accuracy"] > 0.4 and "toy" in capsys.readouterr().out
    assert all(entry["test_accuracy"] == entry["valid_accuracy"] for entry in first["history"]["log"])
    assert not training.best_weights(tmp_path).exists()
    assert train(tmp_path, RECIPE, task, parts) == json.loads(json.dumps(first)) and len(made) == 1
    again = train(tmp_path, RECIPE, task, parts, keep_weights=True)  # wanted now: trained again, to the same
    assert len(made) == 2 and again["tests"] == first["tests"] and training.best_weights(tmp_path).exists()
    train(tmp_path, RECIPE, task, {**parts, "third": data})
    assert len(made) == 3


def test_nothing_of_an_attempt_without_memory_is_kept():
    alive = []

    def fails():
        activations = torch.zeros(10)
        alive.append(weakref.ref(activations))
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")

    assert training.attempt(fails) is None and alive[0]() is None
    with pytest.raises(RuntimeError, match="another"):
        training.attempt(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_determinism_is_one_constant(monkeypatch):
    for wanted in (False, True):
        make_accelerator.cache_clear()
        make_accelerator("no", wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted


def test_a_tracker_sees_each_epoch_of_each_training(tmp_path, monkeypatch):
    """By accelerate's own way to add a tracker: TensorBoard and wandb are not among the requirements."""
    runs = []

    class Kept(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "kept", True, None

        def __init__(self, name, folder):
            super().__init__()
            self.folder, self.seen, self.is_open = folder, [], True
            runs.append(self)

        def log(self, values, step, **_):
            self.seen.append((step, values))

        def finish(self):
            self.is_open = False

    monkeypatch.setattr(training, "get_available_trackers", lambda: ["kept"])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "kept", Kept)
    accelerator = make_accelerator("no", True, "kept")
    monkeypatch.setitem(globals(), "make_accelerator", lambda _: accelerator)
    histories = [run(tmp_path / name)[0] for name in "ab"]
    run(tmp_path / "b")  # trained already: nothing to follow
    assert [found.folder for found in runs] == [str(tmp_path / name) for name in "ab"]
    for found, history in zip(runs, histories):
        names = ("train_loss", "valid_loss", "valid_accuracy")
        log = [(entry["epoch"], {name: entry[name] for name in names}) for entry in history["log"]]
        assert not found.is_open and found.seen == log


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(training, "get_available_trackers", list)
    with pytest.raises(UserError, match="TRACKER=wandb: not installed; run pip install wandb"):
        make_accelerator("no", True, "wandb")


def test_a_compiled_model_trains_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "COMPILER", "eager")
    one, net = run(tmp_path / "plain")
    two, compiled = run(tmp_path / "compiled", replace(RECIPE, compile=True))
    assert compiled._compiled_call_impl is not None and curves(one) == curves(two)
    assert torch.equal(weights(net), weights(compiled))


def test_gradients_are_unscaled_before_they_are_clipped(tmp_path, monkeypatch):
    """fp16 multiplies losses by 65,536; clipped as they are, all steps would be the same size."""
    accelerator = make_accelerator("no")
    recipe = replace(RECIPE, clip_norm=0.5)
    _, plain = run(tmp_path / "plain", recipe, model(0.0))
    monkeypatch.setattr(accelerator, "scaler", torch.amp.GradScaler("cpu"))
    monkeypatch.setattr(accelerator, "native_amp", True)
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    monkeypatch.setattr(accelerator, "autocast", contextlib.nullcontext)
    _, scaled = run(tmp_path / "scaled", recipe, model(0.0))
    assert torch.allclose(weights(plain), weights(scaled), atol=1e-5)


def test_a_process_draws_what_one_alone_would(tmp_path):
    """Seeds follow the samples: two shares are the two micro-batches of one process."""

    class Rank:
        num_processes = 2

        def __init__(self, rank):
            self.process_index = rank

    alone = training.StepKeys(Toy(), RECIPE, make_accelerator("no"))
    shares = [training.StepKeys(Toy(), RECIPE, Rank(rank)) for rank in (0, 1)]
    for step, batch in enumerate(alone.batches):
        assert shares[0].share(step) + shares[1].share(step) == batch.tolist() == alone.share(step)
    drawn = [key for part in zip(*shares) for keys in part for key in keys]
    assert drawn == [key for keys in alone for key in keys]


@pytest.mark.parametrize("content", [b"", b"not a state", "truncated"])
def test_a_damaged_state_starts_afresh(tmp_path, content, capsys):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=2)
    last = tmp_path / "cut" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000] if content == "truncated" else content)
    again, _ = run(tmp_path / "cut")
    assert "last.pt: damaged; the training starts afresh" in capsys.readouterr().out
    assert curves(again) == curves(whole)


def test_damaged_weights_and_a_full_disk_are_one_line(tmp_path, monkeypatch):
    run(tmp_path, replace(RECIPE, epochs=1))
    training.best_weights(tmp_path).write_bytes(b"x")
    with pytest.raises(UserError, match="best.safetensors: damaged or absent; delete"):
        load_best(model(), tmp_path)

    def full(content, path):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(training, "save_file", full)
    with pytest.raises(UserError, match="cannot be written .*No space.*free some space"):
        run(tmp_path / "full", replace(RECIPE, epochs=1))


def test_exact_is_without_tf32_and_gives_it_back():
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    with pytest.raises(KeyError), training.exact():
        assert not any(place.allow_tf32 for place in places)
        raise KeyError
    assert [place.allow_tf32 for place in places] == before == [False, True]  # torch's defaults
    assert training.exact()(lambda: places[1].allow_tf32)() is False
