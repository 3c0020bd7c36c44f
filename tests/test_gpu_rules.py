"""A GPU's rules on a machine without one: autocast of CUDA, mixed devices, waits within a step.

Each check runs in a process of its own, since torch is told of a device that is not there.
"""

import json

import dialogues
import numpy as np
import pytest
import test_finetune
import tiny_speech
from conftest import ROOT, run_fresh, run_here

from common.files import make_folder

STEPS = '''
import tempfile
from itertools import product
import numpy as np, torch
import pretend_cuda
pretend_cuda.patch_torch()
from common import training
from accelerate.utils import send_to_device
from common.training import Place, Recipe, Training
from conftest import load_script

training.DataLoader = lambda *args, **kwargs: None  # the batch is given
PRECISIONS = "bf16", "fp16"  # fp32: the tests on a device; PRECISION is the one at hand


def once_more_in_fp16(cases):
    """(precision, case): all in bf16, every third in fp16 too, which casts the same operations."""
    cases = list(cases)
    return [*product(PRECISIONS[:1], cases), *product(PRECISIONS[1:], cases[::3])]


class Samples:
    lengths = np.ones(8, np.uint8)

    def collate(self, items):
        return items


def step(model, loss, batch, recipe):
    """An optimiser step on the pretended GPU; the accelerator asserts that losses are fp32."""
    accelerator = pretend_cuda.Accelerator(PRECISION)
    with pretend_cuda.PretendCuda():
        place = Place(tempfile.mkdtemp(), {}, "")
        run = Training(accelerator, model.train(), loss, Samples(), recipe, place)
        totals = run.step(0, send_to_device(batch, accelerator.device))
        assert totals.device.type == "cuda" and totals.shape == (2,)


def outputs(model, forward, batch):
    """What evaluation makes of a batch on the pretended GPU."""
    accelerator = pretend_cuda.Accelerator(PRECISION)
    with pretend_cuda.PretendCuda():
        batch = send_to_device(batch, accelerator.device)
        return training.forward_batch(accelerator, model.to(accelerator.device).eval(), forward, batch)
'''

SADOK = """
m = load_script("05_pretrain_vqmae.py")
vars(m).update(DECODER_DEPTH=1, N_FRAMES=40, TABLES=("5",))
torch.backends.mha.set_fastpath_enabled(False)  # a kernel of evaluation without a form for fake tensors
recipe = Recipe(1e-3, 2, 8, 0.05, "cosine", 0.0, "epoch", (0.9, 0.95), clip_norm=0.0)
rng = np.random.default_rng(0)
planned, _ = m.plan()
rows = [row for rows in planned.values() for row in rows.values() if row.head != "svm"]
# One row of each kind of step: rates and token sizes change no dtype
kinds = {(row.network.kind, row.network.strategy, row.head, row.freeze): row for row in rows}
networks = dict.fromkeys(m.replace(row.network, depth=1) for row in kinds.values())


def samples(network):
    if network.kind == "vqmae":
        return torch.from_numpy(rng.integers(0, 256, (8, m.N_FRAMES, 64)).astype(np.uint8))
    return torch.from_numpy(rng.random((8, m.N_FRAMES, 513), dtype=np.float32) * 1e5)  # full-scale speech


for PRECISION, network in once_more_in_fp16(networks):
    masks = [m.random_masking(network, rng) for _ in range(8)]
    visible_at, hidden_at = (torch.from_numpy(np.stack(part)) for part in zip(*masks))
    batch = {"x": samples(network), "visible_at": visible_at, "hidden_at": hidden_at}

    def loss(model, batch):
        return model(**batch)["loss"] * len(batch["x"]), len(batch["x"])

    def forward(model, batch):
        rebuilt = {"codes": model.reconstruct(*batch.values())} if network.kind == "vqmae" else {}
        return {"loss": model(**batch)["loss"][None], **rebuilt}

    step(m.build_network(network), loss, batch, recipe)
    outputs(m.build_network(network), forward, batch)

for PRECISION, row in once_more_in_fp16(kinds.values()):
    network = m.replace(row.network, depth=1)
    batch = {"x": samples(network), "labels": torch.arange(8) % 4}

    def loss(model, batch):
        logits = model(batch["x"])
        return m.asymmetric_loss(logits, batch["labels"]) * len(logits), len(logits)

    made_of = m.build_network(network).encoder, row.head, 4, row.freeze
    step(m.EmotionClassifier(*made_of), loss, batch, recipe)
    made_of = m.build_network(network).encoder, row.head, 4, row.freeze
    outputs(m.EmotionClassifier(*made_of), lambda model, batch: {"logits": model(batch["x"])}, batch)
from common.sadok import vqvae
batch = {"power": torch.rand(8, 4, 513) * 1e5}
for PRECISION in PRECISIONS:
    step(vqvae.VQVAE(256, 8), vqvae.vqvae_loss, batch, m.replace(recipe, clip_norm=1.0))
    outputs(vqvae.VQVAE(256, 8), vqvae.vqvae_outputs, batch)
print("passed")
"""


def on_a_device(*words):
    """Source that runs a numbered script on the make-believe device."""
    return f"import sys, pretend_device\nsys.argv[1:] = {list(words)}\npretend_device.main()"


def test_steps_of_05_under_the_autocast_of_cuda():
    """Steps of the VQ-VAE, of all networks and heads of Table 5; evaluation, tokenising, reconstruction."""
    assert "passed" in run_fresh(STEPS + SADOK)


def test_all_of_05_on_a_device(tmp_path):
    """Table 5 and the row head: the same figures as on the CPU, and no wait within a step."""
    found, words = [], [*tiny_speech.options(), "--TABLES=5", "--BEYOND_PAPER=row"]
    for on_device in (False, True):
        folder = tmp_path / str(on_device)
        for name, n_speakers in (("tiny", 3), ("speech", 2)):
            tiny_speech.write_corpus(folder, name, n_speakers, 4)
        if on_device:
            printed = run_fresh(on_a_device("05_pretrain_vqmae.py", *words), folder)
        else:
            run_here(folder, "05_pretrain_vqmae.py", *words)
        outcomes = sorted((folder / "data" / "models").rglob("outcome.json"))
        logs = {
            str(path.relative_to(folder)): json.loads(path.read_text())["history"]["log"] for path in outcomes
        }
        found.append({(path, key): x for path, (log,) in logs.items() for key, x in log.items()})
    cpu, device = ({key: x for key, x in part.items() if key[1] != "seconds"} for part in found)
    assert device == pytest.approx(cpu, rel=1e-3) and len({path for path, _ in cpu}) > 30
    assert json.loads(printed.splitlines()[-1])["waits"] == {}


# ---- 02 and 03 -----------------------------------------------------------------------------

FINETUNE = """
from pathlib import Path
from common import encoders, inputs
from common.demo.checkpoints import write_checkpoints
from test_finetune import write_whisper

root, rng = Path(ROOT_FOLDER), np.random.default_rng(0)
write_checkpoints(root, ["what a sad day", "i am so happy"] * 5, "tiny", 0)
write_whisper(root / "whisper-base")
m, features = load_script("02_finetune_unimodal.py"), load_script("03_extract_features.py")
recipe, labels = Recipe(1e-3, 2, 8, 0.01), torch.arange(8) % 4
names = {"text": ("bert-base-uncased",), "video": ("videomae-base",)}
names["audio"] = "wav2vec2-base whisper-base ast-finetuned-audioset-10-10-0.4593".split()


def inputs_of(source, modality):
    shape, processor = encoders.input_shape(source, modality), encoders.load_processor(source, modality)
    if modality == "text":
        return inputs.collate_text(processor, ["a sad day", "happy"] * 4, 16)
    if modality == "video":
        clips = rng.integers(0, 255, (8, shape.frames, shape.size, shape.size, 3), dtype=np.uint8)
        return inputs.collate_frames(processor, list(clips))
    if shape.kind == "spectrogram":
        return {"input_values": torch.randn(8, shape.frames, encoders.load_config(source).num_mel_bins)}
    sounds = [rng.normal(size=9000 + 99 * i).astype(np.float32) for i in range(8)]
    return encoders.collate_waveforms(processor, sounds)


hows = [{"n_trained": None}, {"n_trained": 1, "pooling": "attention"}]
hows += [{"n_trained": 0, "layer": "weighted"}]
models = [(modality, name) for modality in names for name in names[modality]]
cases = [("bf16", *pair) for pair in product(models, hows)]
cases += [("fp16", model, hows[i % 3]) for i, model in enumerate(models)]  # each way and each family again
for PRECISION, (modality, name), how in cases:
    source, cuda = str(root / name), pretend_cuda.Accelerator(PRECISION)
    batch = {"inputs": inputs_of(source, modality), "labels": labels}
    step(m.EmotionClassifier(source, modality, 4, **how), m.cross_entropy, batch, recipe)
    found = outputs(m.EmotionClassifier(source, modality, 4, **how), m.outputs, batch)
    assert found["logits"].shape == (8, 4)
    network = m.EmotionClassifier(source, modality, 4, **how).eval()
    with pretend_cuda.PretendCuda():
        model = network.encoder.to(cuda.device), network.linear.to(cuda.device)
        found = training.forward_batch(cuda, model, features.represent, send_to_device(batch, cuda.device))
    assert found["features"].shape == (8, network.encoder.width) and found["features"].dtype == np.float32
print("passed")
"""


def test_steps_of_02_and_features_of_03_under_the_autocast_of_cuda(tmp_path):
    """Each family of encoders, trained as a whole, in its last block, and frozen."""
    assert "passed" in run_fresh(STEPS + FINETUNE.replace("ROOT_FOLDER", repr(str(tmp_path))))


FINETUNE_ON_A_DEVICE = """
import json
from pathlib import Path
import pretend_device
steps = pretend_device.begin()
import test_gpu_rules

with pretend_device.PretendDevice():
    found = test_gpu_rules.finetune_and_extract(Path(CORPUS), Path(FOLDER))
print(json.dumps({name: array.tolist() for name, array in found.items()}))
print(json.dumps(steps))
"""


def finetune_and_extract(corpus, folder):
    """02, whose text model is frozen, then 03; the outputs on test turns and the features {file: array}."""
    options = [f"--{m}_{x}" for m in ("TEXT", "AUDIO", "VIDEO") for x in ("EPOCHS=2", "LEARNING_RATE=1e-3")]
    options += ["--FREEZE=text", "--TEXT_LAYER=weighted", "--TEXT_POOLING=attention"]
    options += [
        "--AUDIO_MODELS=wav2vec2-base",
        "--CHOSEN_MODELS=bert-base-uncased,wav2vec2-base,videomae-base",
    ]
    folder.mkdir()
    test_finetune.run_02(corpus, folder, *options)
    run_here(folder, "03_extract_features.py", *test_finetune.words(corpus, folder))
    found = {path: np.load(path) for path in folder.glob("data/features/**/*.npy")}
    for path in folder.rglob("outcome.json"):
        found[path] = np.array(json.loads(path.read_text())["tests"]["test"]["outputs"]["logits"])
    return {str(path.relative_to(folder)): array for path, array in found.items()}


def test_02_and_03_on_a_device(tmp_path):
    """Figures of the CPU, and no wait in a step but where wav2vec 2.0 puts its vector for masked frames."""
    corpus, device = test_finetune.write_corpus(tmp_path / "corpus"), tmp_path / "device"
    code = FINETUNE_ON_A_DEVICE.replace("CORPUS", repr(str(corpus))).replace("FOLDER", repr(str(device)))
    found, steps = (json.loads(line) for line in run_fresh(code).splitlines()[-2:])
    expected = finetune_and_extract(corpus, tmp_path / "cpu")
    assert len(expected) == 3 * 3 * 3 and found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4, err_msg=name)
    assert steps["steps"] == 2 * 3 * 3 and waits_outside_models(steps, "common/encoders.py") == []


def waits_outside_models(steps, file):
    """Those that are not within a pretrained model, which a line of `file` calls.

    wav2vec 2.0 and WavLM draw the spans that they mask on the host, and put vectors at boolean indices (zeros
    are a fill on CUDA, which does not wait); "elsewhere" are the gradients of that.
    """
    lines = [n for n, line in enumerate((ROOT / file).read_text().splitlines(), 1) if "backbone(" in line]
    allowed = {"boolean index elsewhere"}
    allowed |= {f"{kind} {file}:{n}" for kind in ("boolean index", "_local_scalar_dense") for n in lines}
    return sorted(steps["waits"].keys() - allowed)


# ---- 06 ------------------------------------------------------------------------------------

CHOCHLAKIS = """
from copy import deepcopy
import test_chochlakis_mae as toy
from common.chochlakis.backbones import Backbone

kept = []
torch.nn.GRU.forward, torch.nn.GRU.flatten_parameters = toy.plain_gru, lambda self: None


def train_and_test(accelerator, task, data, recipe, place, **more):
    kept.append((task, data))
    return {"history": {"identity": ""}}


cpu = pretend_cuda.Accelerator("no")
cpu.device = torch.device("cpu")
untrained = {"load_best": lambda model, *place: model}
toy.CHANGED.update(make_accelerator=lambda *precision: cpu, **untrained)
vars(toy.imputation).update(train_and_test=train_and_test, **untrained)
toy.small_seed(tempfile.mkdtemp())
models = {type(task.make_model()).__name__ for task, _ in kept}
assert models == {"AVMAE", "LinearClassifier", "GRUClassifier"}
items, recipe = [(i, (0, 1, i)) for i in range(8)], Recipe(1e-3, 2, 8, 0.05, "constant", clip_norm=0.0)
for PRECISION, (task, data) in product(PRECISIONS, kept[::4]):
    step(deepcopy(task.make_model()), task.loss, data["train"].collate(items), recipe)

for PRECISION in PRECISIONS:
    cuda, c, part = pretend_cuda.Accelerator(PRECISION), toy.script, toy.part_of(8, 1)
    with pretend_cuda.PretendCuda():
        autoencoder = c.AVMAE(toy.D).to(cuda.device)
        hidden = c.draw_mixture(8, toy.N, [1, 3], 2, toy.seeded())
        imputed = toy.imputation.impute_by_model(cuda, autoencoder, 64, part.x, hidden)
        assert imputed.dtype == torch.float32 and imputed.device.type == "cpu"
        for task, data in kept[::4]:
            batch = data["valid"].collate([(i, None) for i in range(8)])
            batch = {name: x.to(cuda.device) for name, x in batch.items()}
            model = deepcopy(task.make_model()).to(cuda.device)
            assert len(training.forward_batch(cuda, model, task.outputs, batch)) == 1
        for make in c.NETWORKS.values():
            head = make(2 * toy.D, 2).to(cuda.device)
            assert toy.imputation.classify([head], toy.imputation.together(imputed)).shape == (1, 2, 8)
        for name, rate_hz in (("avid-cma", 24000), ("crisscross", 16000)):
            backbone = Backbone(name, 2, 32).eval().to(cuda.device)
            frames = torch.zeros(3, 8, 32, 32, 3, dtype=torch.uint8)
            found = backbone("audio", torch.randn(3, rate_hz // 2)), backbone("video", frames)
            assert [x.dtype for x in found] == [torch.float32] * 2 and found[0].device.type == "cuda"
print("passed")
"""


def test_steps_of_06_under_the_autocast_of_cuda():
    """Autoencoder and classifiers forward and backward; validation, imputation, evaluation, features."""
    assert "passed" in run_fresh(STEPS + CHOCHLAKIS)


SEED_OF_06 = """
import json, tempfile
import pretend_device, torch
steps = pretend_device.begin()
import test_chochlakis_mae as toy
from common.chochlakis.backbones import Backbone, log_mel
from common.layers import build

toy.N, torch.nn.GRU.forward = 3, toy.plain_gru  # clips
toy.CHANGED.update(MAE_EPOCHS=2, CLASSIFIER_EPOCHS=1, FINETUNE_EPOCHS=1)
with pretend_device.PretendDevice():
    _, predicted, errors, _ = toy.small_seed(tempfile.mkdtemp())
    backbone = build(0, Backbone, "crisscross", 2, 32).eval().to(pretend_device.GPU)
    mel = log_mel(toy.clips()[0]).to(pretend_device.GPU)  # the pretended device has no Fourier transform
    features = [backbone.audio(mel), backbone("video", toy.clips()[1])]
    features = [x.detach().cpu().tolist() for x in features]
predicted = [labels.tolist() for labels in predicted.values()]
print(json.dumps([predicted, list(errors.values()), features, steps]))
"""


def test_a_seed_of_06_on_a_device(tmp_path, monkeypatch):
    """Training, evaluation, imputation and features: the figures of the CPU, and no wait within a step."""
    import numpy as np
    import test_chochlakis_mae as toy

    from common.chochlakis.backbones import Backbone
    from common.layers import build

    monkeypatch.setattr(toy, "N", 3)
    fewer = {"MAE_EPOCHS": 2, "CLASSIFIER_EPOCHS": 1, "FINETUNE_EPOCHS": 1}
    monkeypatch.setattr(toy, "CHANGED", toy.CHANGED | fewer)
    predicted, errors, features, steps = json.loads(run_fresh(SEED_OF_06).splitlines()[-1])
    _, expected, wanted, _ = toy.small_seed(tmp_path)
    same = [np.mean(np.array(a) == b) for a, b in zip(predicted, expected.values(), strict=True)]
    assert np.mean(same) > 0.98
    assert np.allclose(errors, list(wanted.values()), rtol=1e-3)
    backbone = build(0, Backbone, "crisscross", 2, 32).eval()
    for found, part, clips in zip(features, ("audio", "video"), toy.clips()):
        assert np.allclose(found, backbone(part, clips), atol=1e-4)
    assert steps["steps"] == 93 and steps["waits"] == {}


TOY = """
import json, tempfile
import pretend_device
steps = pretend_device.begin()
import test_training as toy

toy.make_accelerator = toy.training.make_accelerator
toy.training.free_memory = lambda device: 1e12  # so that what a micro-batch needs is counted there too
with pretend_device.PretendDevice():
    history, _ = toy.run(tempfile.mkdtemp(), toy.RECIPE, toy.model(0.0))
print(json.dumps([toy.curves(history), steps]))
"""


def test_the_training_loop_on_a_device(tmp_path):
    """The same figures as on the CPU, nothing on two devices, and no wait within a step."""
    import test_training as toy

    found, steps = json.loads(run_fresh(TOY).splitlines()[-1])
    history, _ = toy.run(tmp_path, toy.RECIPE, toy.model(0.0))
    for ours, theirs in zip(found, toy.curves(history), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert steps == {"steps": 16, "waits": {}}


# ---- 07 ------------------------------------------------------------------------------------

KHARE = """
from functools import partial
from torch import nn
m = load_script("07_crossmodal_mosei.py")
vars(m).update(DEPTH=1, WIDTH=32, HEADS=2, FEED_FORWARD=16, N_SUBSTITUTES=2, NOISE_WORDS=5)
recipe, widths = Recipe(1e-3, 2, 8, betas=(0.9, 0.98), eps=1e-9), {"text": 300, "audio": 200, "video": 4096}
batch = {name: torch.randn(8, 6, n) for name, n in widths.items()}
batch |= {f"{name}_length": torch.arange(8) % 7 for name in widths}
batch |= {"hidden": torch.arange(16).view(8, 2) % 6, "targets": torch.arange(16).view(8, 2) * 3}
batch["targets"][3] = m.NO_TARGET
for PRECISION, method in product(PRECISIONS, m.METHODS):

    def loss(model, batch):
        targets, more = batch["targets"], {}
        if method == "nce":
            more["noise"] = m.Noise(np.arange(1, 51), targets.device)
        criterion = m.nce_loss if more else m.softmax_loss
        return criterion(model.output, model(batch), targets, **more).sum(), (targets != m.NO_TARGET).sum()

    step(m.MaskedLM(widths, 50), loss, batch, recipe)
batch["labels"] = torch.rand(8, 6) < 0.5
weights = m.balance(batch["labels"])
for PRECISION, (anchor, robust) in product(PRECISIONS, (("text", False), ("text", True), ("audio", False))):

    def loss(model, batch):
        logits = model(batch)
        return m.balanced_loss(logits, batch["labels"], weights.to(logits.device)), len(logits)

    step(m.EmotionClassifier(widths, 6, anchor, robust), loss, batch, recipe)
for PRECISION in PRECISIONS:
    accelerator, model = pretend_cuda.Accelerator(PRECISION), m.MaskedLM(widths, 50)
    with pretend_cuda.PretendCuda():
        model, on_device = model.to(accelerator.device), send_to_device(batch, accelerator.device)
        found = training.forward_batch(accelerator, model, m.held_out_outputs, on_device)
    assert all(x.shape == (8,) and x.dtype == np.float32 for x in found.values())
print("passed")
"""


def test_steps_of_07_under_the_autocast_of_cuda():
    assert "passed" in run_fresh(STEPS + KHARE)


KHARE_ON_A_DEVICE = """
import contextlib, json, tempfile
import torch
torch.set_num_threads(1)
if ON_DEVICE:
    import pretend_device
    steps = pretend_device.begin()
import dialogues
import numpy as np
import test_khare_features as toy
from conftest import load_script

m = load_script("07_crossmodal_mosei.py")
folder, place = tempfile.mkdtemp(), pretend_device.PretendDevice if ON_DEVICE else contextlib.nullcontext
vars(m).update(DATA_ROOT=folder, CORPUS="x", PRETRAIN_CORPUS="x", SEEDS=(0,), DROPOUT=0.0, WORKERS=0, EPS=1.0)
vars(m).update(DEPTH=1, WIDTH=16, HEADS=2, FEED_FORWARD=8, N_SUBSTITUTES=2, NOISE_WORDS=5, WARMUP_STEPS=4)
vars(m).update(PRETRAIN_EPOCHS=2, FINETUNE_EPOCHS=2, PRETRAIN_BATCH_SIZE=4, FINETUNE_BATCH_SIZE=4)
labels = np.arange(54).reshape(9, 6) % 4 == 0
corpus = toy.corpus_of(toy.made_up(folder + "/store", 9), np.arange(9), labels=labels)
corpus.parts |= {"valid": corpus.parts["train"], "test": corpus.parts["train"]}
corpus.counts = np.array([5, 3])
whole, curves = corpus.inputs, []
with place():
    for method in m.METHODS:
        curves.append([[e["train_loss"], e["valid_loss"]] for e in m.pretrain(method, corpus)["log"]])
    for first, robust in (("scratch", False), ("softmax", False), ("scratch", True)):
        found = m.finetune(m.tables.Row(first, whole, "text", robust), 0, corpus, None)
        curves.append(found["tests"]["text+audio+video"]["outputs"]["logits"])
    toy.features.vgg16 = toy.small_vgg
    vgg = toy.VGG(None, 16, 2, "gpu:0" if ON_DEVICE else "cpu")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    curves.append(vgg.features(pictures)[:, :50].tolist())
    recogniser = toy.Recogniser(toy.tiny_ctc(folder + "/ctc"), vgg.device)
    words, score = recogniser.words("a", toy.noise(1, 2))
    curves.append([score, len(words)])
print(json.dumps([curves, steps if ON_DEVICE else None]))
"""


def test_07_on_a_device():
    """Both trainings, tests, VGG-16: figures of the CPU, nothing on two devices, no wait within a step."""
    runs = [run_fresh(f"ON_DEVICE = {on_device}\n{KHARE_ON_A_DEVICE}") for on_device in (True, False)]
    found = [json.loads(printed.splitlines()[-1]) for printed in runs]
    (ours, steps), (theirs, _) = found
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # EPS: Adam would amplify rounding
    assert steps == {"steps": 2 * 2 * 3 + 3 * 2 * 3, "waits": {}}


# ---- Second paper of 04 --------------------------------------------------------------------

LI = (
    "--PAPERS=li",
    "--CORPUS=demo_iemocap",
    "--CHECKPOINTS=local",
    "--SEEDS=0",
    "--SYSTEMS=BERT+FC,MMT",
    "--FROZEN_EPOCHS=1",
    "--FINETUNE_EPOCHS=1",
    "--N_RESAMPLES=20",
    "--PROJECTOR_HIDDEN=8",
    "--CONTEXT_BEFORE=1",
    "--CONTEXT_AFTER=1",
    "--BEYOND_PAPER=false",
    "--WORKERS=0",
    "--PRECISION=no",
    "--AUDIO_MAX_S=0.6",
)


@pytest.mark.parametrize("states", ["device", "anew"])
def test_the_second_paper_of_04_on_a_device(tmp_path, states):
    """Figures of the CPU, frozen and fine-tuned, and no wait in a step but where WavLM itself masks.

    Its `hidden_states[~mask] = 0` is a boolean index here; CUDA fills by the mask without waiting.
    """
    logits, script = {}, "04_fuse_classify.py"
    for on_device in (False, True):
        root = make_folder(tmp_path / str(on_device))
        manifest = dialogues.write_corpus(root)
        dialogues.write_checkpoints(root / "checkpoints" / manifest.corpus)
        words = (*LI, f"--HIDDEN_STATES={states}", f"--DATA_ROOT={root}", f"--RESULTS_ROOT={root}/results")
        if on_device:
            printed = run_fresh(on_a_device(script, *words))
        else:
            run_here(root, script, *words)
        logits[on_device] = {
            path.relative_to(root): json.loads(path.read_text())["tests"]["test"]["outputs"]["logits"]
            for path in sorted(root.rglob("outcome.json"))
        }
    assert len(logits[True]) == 2 * 2 * 3 and logits[True].keys() == logits[False].keys()
    for name, found in logits[True].items():
        assert np.allclose(found, logits[False][name], atol=5e-3), name
    steps = json.loads(printed.splitlines()[-1])
    assert steps["steps"] > 0 and waits_outside_models(steps, "common/li/extractor.py") == []


LI_STEPS = """
from pathlib import Path
import dialogues
from common import settings
from common.extraction import Extraction
from common.li import hidden_states, training as li

root = Path(ROOT_FOLDER)
manifest = dialogues.write_corpus(root)
dialogues.write_checkpoints(root / "checkpoints" / manifest.corpus)
m = load_script("04_fuse_classify.py")
settings.apply(vars(m), [*WORDS, f"--DATA_ROOT={root}", "--SYSTEMS="])
study = m.make_study(manifest)
on_cpu = pretend_cuda.Accelerator("no")
on_cpu.device = torch.device("cpu")
for u in study.utterances.values():
    m.keep_states(u, manifest, on_cpu, root, 60.0, "disk", Extraction(8))
li.load_file = lambda path: {}
m.FusionNetwork.load_state_dict = lambda self, state: None  # what the frozen phase left
kept = {name: u.states for name, u in study.utterances.items()}
turns, windows, _ = study.windows(study.folds[0][0], "train", study.window)
cases = [(system, "frozen", "", 0) for system in study.systems]  # on kept states
cases += [("MMT", "frozen", "", 1), ("MMT", "fine-tuned", "bottom", 0), ("MMT", "fine-tuned", "all", 0)]
for PRECISION, (system, phase, parts, anew) in once_more_in_fp16(cases):
    study.finetuned_parts = parts
    for name, u in study.utterances.items():
        u.states = None if anew else kept[name]
    live, utterances = li.live_modalities(study, system, phase), study.utterances
    utterances = {name: utterances[name] for name in study.systems[system]}
    data = hidden_states.Windows(turns, manifest.classes, utterances, windows, 1, live, True)
    batch = data.collate(list(range(8)))
    start = study, system, study.window, 0, phase, root
    step(li.start_network(*start), study.loss, batch, study.recipes[phase])
    model = li.start_network(*start)
    found = outputs(model, lambda model, batch: {"logits": model(batch)}, batch)
    assert found["logits"].shape == (8, 4)
print("passed")
"""


def test_steps_of_the_second_paper_of_04_under_the_autocast_of_cuda(tmp_path):
    """Every system on kept states; MMT also on computed ones and fine-tuned; losses in fp32."""
    code = LI_STEPS.replace("ROOT_FOLDER", repr(str(tmp_path))).replace("WORDS", repr(LI))
    assert "passed" in run_fresh(STEPS + code)
