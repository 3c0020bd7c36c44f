"""A GPU's rules on a machine without one: autocast of CUDA, mixed devices, waits within a step.

Each check runs in a process of its own, since torch is told of a device that is not there.
"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

STEPS = '''
import sys, tempfile
sys.path[:0] = [{root!r}, {tests!r}, {gpu!r}]
import numpy as np, torch
import pretend_cuda
pretend_cuda.patch_torch()
from common import training
from accelerate.utils import send_to_device
from common.training import Place, Recipe, Training
from conftest import load_script

training.DataLoader = lambda *args, **kwargs: None  # the batch is given
PRECISION = {precision!r}


class Samples:
    lengths = np.ones(8, np.uint8)

    def collate(self, items):
        return items


def step(model, loss, batch, recipe):
    """Two optimiser steps on the pretended GPU; the accelerator asserts that losses are fp32."""
    accelerator = pretend_cuda.Accelerator(PRECISION)
    with pretend_cuda.PretendCuda():
        model.to(accelerator.device).train()
        run = Training(accelerator, model, loss, Samples(), recipe, Place(tempfile.mkdtemp(), {{}}, ""))
        for number in range(2):
            totals = run.step(0, send_to_device(batch, accelerator.device))
            assert totals.device.type == "cuda" and totals.shape == (2,)
'''

SADOK = """
m = load_script("05_pretrain_vqmae.py")
vars(m).update(DECODER_DEPTH=1, N_FRAMES=40, TABLES=("5",))
recipe = Recipe(1e-3, 2, 8, 0.05, "cosine", 0.0, "epoch", (0.9, 0.95), clip_norm=0.0)
rng = np.random.default_rng(0)
planned, _ = m.plan()
for row in {{row for rows in planned.values() for row in rows.values()}}:
    network = m.replace(row.network, depth=1)
    if network.kind == "vqmae":
        x = torch.from_numpy(rng.integers(0, 256, (8, m.N_FRAMES, 64)).astype(np.uint8))
    else:
        x = torch.from_numpy(rng.random((8, m.N_FRAMES, 513), dtype=np.float32) * 1e5)  # full-scale speech
    masks = [m.random_masking(network, rng) for _ in range(8)]
    visible_at, hidden_at = (torch.from_numpy(np.stack(part)) for part in zip(*masks))
    batch = {{"x": x, "visible_at": visible_at, "hidden_at": hidden_at}}

    def loss(model, batch):
        return model(**batch)["loss"] * len(batch["x"]), len(batch["x"])

    step(m.build_network(network), loss, batch, recipe)
    classifier = m.EmotionClassifier(m.build_network(network).encoder, row.head, 4, row.freeze)

    def loss(model, batch):
        logits = model(batch["x"])
        return m.asymmetric_loss(logits, batch["labels"]) * len(logits), len(logits)

    step(classifier, loss, {{"x": x, "labels": torch.arange(8) % 4}}, recipe)
print("passed")
"""


def run(code, precision):
    """What a piece of code prints under CUDA's rules of autocast."""
    paths = {"root": str(ROOT), "tests": str(ROOT / "tests"), "gpu": str(ROOT / "tests" / "gpu")}
    source = (STEPS + code).format(precision=precision, **paths)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_of_05_under_the_autocast_of_cuda(precision):
    assert "passed" in run(SADOK, precision)


TOY = """
import collections, json, sys, tempfile
sys.path[:0] = [{root!r}, {tests!r}, {gpu!r}]
import pretend_device, torch
library, steps = pretend_device.register(), {{"steps": 0, "waits": collections.Counter()}}
torch.inference_mode = torch.no_grad
torch.set_num_threads(1)
pretend_device.patch_training(steps)
import test_training as toy

toy.make_accelerator = toy.training.make_accelerator
with pretend_device.PretendDevice():
    history, _ = toy.run(tempfile.mkdtemp(), toy.RECIPE, toy.model(0.0))
print(json.dumps([toy.curves(history), steps]))
"""


def test_the_training_loop_on_a_device(tmp_path):
    """The same figures as on the CPU, nothing on two devices, and no wait within a step."""
    import test_training as toy

    paths = {"root": str(ROOT), "tests": str(ROOT / "tests"), "gpu": str(ROOT / "tests" / "gpu")}
    done = subprocess.run([sys.executable, "-c", TOY.format(**paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, steps = json.loads(done.stdout.splitlines()[-1])
    history, _ = toy.run(tmp_path, toy.RECIPE, toy.model(0.0))
    for ours, theirs in zip(found, toy.curves(history), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert steps == {"steps": 16, "waits": {}}
