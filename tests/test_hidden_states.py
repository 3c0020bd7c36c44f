"""Hidden states of frozen models and windows of dialogue: who is whose neighbour, labels are never an input,
and it makes no difference where the states come from."""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import find_batch_size, slice_tensors
from conftest import load_script
from dialogues import CLASSES, MODELS, write_checkpoints, write_corpus
from test_finetune import write_whisper
from torch.utils.data import DataLoader

from common.encoders import collate_waveforms, load_backbone, load_processor
from common.extraction import Extraction
from common.files import UserError
from common.layers import build
from common.li import hidden_states
from common.li.extractor import FeatureExtractor
from common.li.hidden_states import Windows, context_windows, keep_states, read_utterances
from common.manifest import Manifest, Turn, write_manifest
from common.training import Recipe, make_accelerator, predict

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # see encoders.py

WINDOW = (2, 1)
RECIPE = Recipe(1e-3, 1, 7, eval_batch_size=7)


# ---- Neighbours ----------------------------------------------------------------------------


def talk(dialogue, speakers, labels):
    return [
        Turn(f"{dialogue}{i}", dialogue, i, speaker, "", i, i + 1, "hello", label)
        for i, (speaker, label) in enumerate(zip(speakers, labels))
    ]


# Two dialogues; x speaks in the test part; a1 and a4 are outside the label set.
TALKS = Manifest(
    "toy",
    None,
    ("happy", "sad"),
    talk("a", "mfmxfm", ["sad", "", "happy", "sad", "", "happy"]) + talk("b", "mf", ["sad", "happy"]),
)


def windows_of(before, after):
    windows, n_cut = context_windows(TALKS, TALKS.labelled, before, after, lambda turn: turn.speaker == "x")
    return dict(zip((t.utterance_id for t in TALKS.labelled), windows)), n_cut


def test_context_windows_by_hand():
    """In the order of the dialogue, unlabelled ones too, none from another dialogue or the other part."""
    found, n_cut = windows_of(2, 1)
    assert found == {
        "a0": [None, None, "a0", "a1"],
        "a2": ["a0", "a1", "a2", None],  # a3 is tested
        "a3": [None, None, "a3", None],  # tested: gets no training turn
        "a5": [None, "a4", "a5", None],
        "b0": [None, None, "b0", "b1"],
        "b1": [None, "b0", "b1", None],
    }
    assert n_cut == 1 + 3 + 1  # around a2, a3 and a5


def test_past_only_and_no_context():
    past, n_cut = windows_of(2, 0)
    assert past == {
        "a0": [None, None, "a0"],
        "a2": ["a0", "a1", "a2"],
        "a3": [None, None, "a3"],
        "a5": [None, "a4", "a5"],
        "b0": [None, None, "b0"],
        "b1": [None, "b0", "b1"],
    }
    assert n_cut == 2 + 1
    assert windows_of(0, 0) == ({t.utterance_id: [t.utterance_id] for t in TALKS.labelled}, 0)


def test_without_a_border_nothing_is_cut():
    windows, n_cut = context_windows(TALKS, TALKS.turns[3:4], 9, 9, lambda turn: False)
    assert windows == [[None] * 6 + [f"a{i}" for i in range(6)] + [None] * 7] and n_cut == 0


# ---- Utterances ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("dialogues")
    return root, write_corpus(root), write_checkpoints(root / "checkpoints")


def read(corpus, modality, limits=None, manifest=None):
    _, original, checkpoints = corpus
    limit = ({"audio": 0.7, "text": 9} | (limits or {}))[modality]
    return read_utterances(manifest or original, modality, str(checkpoints / MODELS[modality]), limit)


def prepared(
    corpus,
    cache="cache",
    modalities=("audio", "text"),
    cache_gb=1.0,
    manifest=None,
    limits=None,
    states="auto",
):
    """{modality: Utterances} with their states on disk, or computed anew where cache_gb is 0."""
    found = {m: read(corpus, m, limits, manifest) for m in modalities}
    for utterances in found.values():
        where = (manifest or corpus[1], make_accelerator("no"), corpus[0] / cache)
        keep_states(utterances, *where, cache_gb, states, Extraction(batch=5, max_problem_share=0.5))
    return found


def data_of(corpus, utterances, live=(), manifest=None, by_length=False):
    manifest = manifest or corpus[1]
    windows, _ = context_windows(manifest, manifest.labelled, *WINDOW, lambda turn: False)
    return Windows(manifest.labelled, CLASSES, utterances, windows, WINDOW[0], set(live), by_length)


def leaves(batch):
    """The tensors of a batch."""
    for value in batch.values():
        yield from leaves(value) if isinstance(value, dict) else [value]


@pytest.fixture(scope="module")
def kept(corpus):
    return prepared(corpus)


def test_a_batch_holds_the_windows_of_the_dialogue(corpus, kept):
    data = data_of(corpus, kept)
    indices = [0, 2, 3]  # turns 0, 2 and 4 of the first dialogue; 3 is unlabelled
    batch = data.collate(indices)
    assert batch["labels"].tolist() == [CLASSES.index(corpus[1].labelled[i].label) for i in indices]
    text, states = batch["text"], kept["text"].states
    for b, window in enumerate(([None, None, 0, 1], [0, 1, 2, 3], [2, 3, 4, 5])):
        for n, number in enumerate(window):
            rows = [] if number is None else states.rows(f"Ses01_imp_{number}", "states")
            assert (text["place"][b] == n).sum() == len(rows) <= 9
            if len(rows):
                assert torch.equal(text["states"][b, text["place"][b] == n], torch.from_numpy(np.array(rows)))
        n_target = int((text["place"][b] == 2).sum())  # the target comes first
        assert (text["place"][b, :n_target] == 2).all()
        assert text["visible"][b].tolist() == [t < n_target for t in range(text["visible"].shape[1])]
    assert set(batch["audio"]["place"].unique().tolist()) <= {0, 1}
    assert set(data.lengths) == {1}  # batches at random
    lengths = data_of(corpus, kept, by_length=True).lengths
    assert lengths[0] == 0.7 * 16000  # at most, of turns that last 1 s


def test_kept_states_are_those_of_transformers(corpus, kept):
    """Each utterance alone, without padding, through the plain model."""
    model = load_backbone(str(corpus[2] / MODELS["text"])).eval()
    for turn in corpus[1].turns[:4]:
        inputs = kept["text"].processor([turn.text], truncation=True, max_length=9, return_tensors="pt")
        with torch.no_grad():
            expected = torch.stack(model(**inputs, output_hidden_states=True).hidden_states, 2)[0].numpy()
        found = kept["text"].states.rows(turn.utterance_id, "states")
        assert found.shape == expected.shape and np.allclose(found, expected, atol=3e-3)


def test_labels_are_never_an_input(corpus, kept):
    manifest, other = corpus[1], {c: CLASSES[(i + 1) % 4] for i, c in enumerate(CLASSES)}
    turns = [replace(turn, label=other.get(turn.label, ""), extra={}) for turn in manifest.turns]
    changed = Manifest(manifest.corpus, manifest.folder, CLASSES, turns)
    before, after = (data_of(corpus, kept, manifest=m).collate(list(range(9))) for m in (manifest, changed))
    assert not (before.pop("labels") == after.pop("labels")).any()
    assert all(torch.equal(a, b) for a, b in zip(leaves(before), leaves(after), strict=True))


def test_an_unlabelled_neighbour_stays_one(corpus, kept):
    """Giving a label to the fourth turn makes it a sample of its own and changes no other."""
    manifest = corpus[1]
    turns = [replace(t, label="sad") if t.utterance_id == "Ses01_imp_3" else t for t in manifest.turns]
    labelled = Manifest(manifest.corpus, manifest.folder, CLASSES, turns)
    before, after = (data_of(corpus, {"text": kept["text"]}, manifest=m) for m in (manifest, labelled))
    assert len(after) == len(before) + 1
    for old, new in ((2, 2), (3, 4)):
        a, b = before.collate([old]), after.collate([new])
        assert all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_worker_processes_bring_the_same_batches(corpus, kept):
    data = data_of(corpus, kept, live=("audio",))
    sampler = [[(i, None) for i in part] for part in ([0, 5], [3, 1, 2])]
    batches = list(DataLoader(data, batch_sampler=sampler, collate_fn=data.collate, num_workers=1))
    for batch, part in zip(batches, sampler, strict=True):
        expected = data.collate([i for i, _ in part])
        assert all(torch.equal(a, b) for a, b in zip(leaves(batch), leaves(expected), strict=True))


# ---- On disk or computed anew --------------------------------------------------------------


def network(utterances, live=()):
    """A small MMT with random weights, on states or on what pretrained models make of inputs."""
    script = load_script("04_fuse_classify.py")
    script.DROPOUT = script.BLOCK_DROPOUT = 0.0
    shapes = {m: u.shape for m, u in utterances.items()}
    model = build(0, script.FusionNetwork, "MMT", shapes, WINDOW, 4)
    for m in live:
        model.extractors[m].attach(utterances[m].backbone(), "none")
    return model.eval()


def logits_of(corpus, cache_gb):
    utterances = prepared(corpus, cache_gb=cache_gb)
    live = [m for m, u in utterances.items() if u.states is None]
    assert len(live) == (0 if cache_gb else 2)
    model, data = network(utterances, live), data_of(corpus, utterances, live)
    return predict(make_accelerator("no"), model, lambda m, b: {"logits": m(b)}, data, RECIPE)["logits"]


def test_states_on_disk_and_computed_anew_agree(corpus):
    disk, anew = logits_of(corpus, 1.0), logits_of(corpus, 0.0)
    assert disk.shape == (42, 4) and disk.std(0).min() > 1e-3
    assert np.allclose(disk, anew, atol=5e-3) and not np.array_equal(disk, anew)  # float16 against float32


@pytest.mark.parametrize("live", [(), ("audio", "text")])
def test_a_part_of_a_batch_gives_the_outputs_of_that_part(corpus, kept, live):
    """As `training` cuts a batch after an out-of-memory error."""
    batch, model = data_of(corpus, kept, live).collate(list(range(12))), network(kept, live)
    with torch.no_grad():
        whole = model(batch)
        for start, stop in ((0, 5), (5, 10), (10, 15)):
            part = slice_tensors(batch, slice(start, stop))
            assert find_batch_size(part) == min(stop, 12) - start
            torch.testing.assert_close(model(part), whole[start:stop], atol=1e-4, rtol=1e-4)


def test_states_that_were_cut_short_are_resumed(corpus, monkeypatch):
    whole, real, computed = (
        prepared(corpus, "cache_whole", ("text",))["text"].states,
        hidden_states.forward_batch,
        [],
    )

    def stops_after(n_batches, *arguments):
        if len(computed) == n_batches:
            raise KeyboardInterrupt
        computed.append(find_batch_size(arguments[-1]))
        return real(*arguments)

    monkeypatch.setattr(hidden_states, "forward_batch", partial(stops_after, 3))
    with pytest.raises(KeyboardInterrupt):
        prepared(corpus, "cache_cut", ("text",))
    monkeypatch.setattr(hidden_states, "forward_batch", partial(stops_after, 99))
    again = prepared(corpus, "cache_cut", ("text",))["text"].states
    assert sum(computed) == 48 and again.ids == whole.ids  # each once
    assert np.array_equal(again["states"], whole["states"])
    prepared(corpus, "cache_cut", ("text",))
    assert sum(computed) == 48  # finished: nothing is computed again


def test_a_finished_store_is_used_though_the_disk_is_full_now(corpus, monkeypatch):
    """What is there already needs no more room; what is not is computed anew at every step."""
    prepared(corpus, "cache_full", ("text",))
    monkeypatch.setattr(hidden_states, "free_bytes", lambda folder: 0)
    assert prepared(corpus, "cache_full", ("text",))["text"].states is not None
    assert prepared(corpus, "cache_empty", ("text",))["text"].states is None


def test_other_weights_or_clipping_are_not_mistaken_for_these(corpus, tmp_path):
    first = prepared(corpus, "cache_other", ("text",))["text"]
    longer = prepared(corpus, "cache_other", ("text",), limits={"text": 12})["text"]
    longest = [max(u.states.length(i) for i in u.inputs) for u in (first, longer)]
    assert longest[0] == 9 < longest[1]
    root, manifest, checkpoints = corpus
    model = load_backbone(str(checkpoints / MODELS["text"]))
    with torch.no_grad():
        model.embeddings.LayerNorm.bias += 1
    model.save_pretrained(tmp_path / MODELS["text"])
    first.processor.save_pretrained(tmp_path / MODELS["text"])
    before = np.array(first.states.rows("Ses01_imp_0", "states"))
    other = prepared((root, manifest, tmp_path), "cache_other", ("text",))["text"]
    assert other.weights != first.weights
    assert not np.allclose(other.states.rows("Ses01_imp_0", "states"), before, atol=0.1)


@pytest.mark.parametrize("change", [{"text": "something else"}, {"label": ""}])
def test_states_of_other_texts_or_labels_are_made_again(corpus, change, monkeypatch, tmp_path):
    """Kept states say which manifest they were made from."""
    turns = [replace(corpus[1].turns[0], **change), *corpus[1].turns[1:]]
    changed = Manifest(corpus[1].corpus, tmp_path, CLASSES, turns)
    write_manifest(changed)
    cache, made, real = f"cache_{next(iter(change))}", [], hidden_states.forward_batch
    monkeypatch.setattr(hidden_states, "forward_batch", lambda *given: made.append(1) or real(*given))
    for manifest, is_made in ((corpus[1], True), (corpus[1], False), (changed, True)):
        prepared(corpus, cache, ("text",), manifest=manifest)
        assert bool(made) is is_made
        made.clear()


def test_a_gpu_that_computes_faster_than_it_reads_keeps_nothing(corpus, monkeypatch, capsys):
    """By measured times, and only where nothing is kept yet."""
    u, times = read(corpus, "text"), [1.0, 0.1]
    monkeypatch.setattr(hidden_states, "seconds_per_batch", lambda *given: times)
    cpu = make_accelerator("no")
    gpu = SimpleNamespace(device=SimpleNamespace(type="gpu"), autocast=cpu.autocast)
    monkeypatch.setattr(type(load_backbone(u.source)), "to", lambda self, device: self)
    where = corpus[0] / "cache_auto", 1.0, "auto", Extraction(5)
    assert keep_states(u, corpus[1], gpu, *where) == 0 and u.states is None
    assert "computed anew at every step: 0.100 s a batch, to read them 1.000 s" in capsys.readouterr().out
    assert keep_states(u, corpus[1], cpu, *where) > 0 and u.states is not None  # a CPU keeps them


def test_the_cost_that_is_printed_is_what_is_kept(corpus, capsys):
    """Steps x layers x width x 2 bytes, against the arrays themselves; of audio by the turns' durations."""
    for modality in ("audio", "text"):
        capsys.readouterr()
        states = prepared(corpus, f"cache_{modality}", (modality,))[modality].states["states"]
        found = re.search(r"([\d,]+) steps x (\d+) layers x (\d+) x 2 bytes = ", capsys.readouterr().out)
        steps, layers, width = (int(text.replace(",", "")) for text in found.groups())
        assert (layers, width) == states.shape[1:] and states.dtype == np.float16
        assert steps == (len(states) if modality == "text" else pytest.approx(len(states), rel=0.5))


# ---- Odd turns -----------------------------------------------------------------------------


def test_a_turn_without_audio_is_silence(corpus, tmp_path):
    manifest = corpus[1]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF not a wave file")
    odd = {"Ses01_imp_1": "", "Ses01_imp_2": str(broken)}  # none, and one that cannot be read
    turns = [replace(turn, audio=odd.get(turn.utterance_id, turn.audio)) for turn in manifest.turns]
    changed = Manifest(manifest.corpus, manifest.folder, CLASSES, turns)
    utterances = prepared(corpus, "cache_silent", ("audio",), manifest=changed)
    audio = utterances["audio"]
    assert audio.n_silent() == 2 and list(audio.states.problems) == ["Ses01_imp_2"]
    inputs = audio.collate_inputs([["Ses01_imp_0"], ["Ses01_imp_1"], ["Ses01_imp_2"]], 0)
    assert inputs["input_values"].shape == (3, 1, 6400) and inputs["attention_mask"].all()  # 0.4 s
    assert inputs["input_values"][0].any() and not inputs["input_values"][1:].any()
    states = audio.collate_states([["Ses01_imp_0"], ["Ses01_imp_1"], ["Ses01_imp_2"]], 0)["states"]
    assert (
        torch.equal(states[1], states[2])
        and not torch.equal(states[0], states[1])
        and states.isfinite().all()
    )


def test_a_model_that_gives_no_layers_over_time_is_refused(corpus, tmp_path):
    from common.demo.checkpoints import SIZES, make_ast

    model, processor = make_ast(SIZES["tiny"], [])
    model.save_pretrained(tmp_path / "ast"), processor.save_pretrained(tmp_path / "ast")
    with pytest.raises(UserError, match="ast: takes spectrogram.*WavLM, wav2vec 2.0 or HuBERT"):
        read_utterances(corpus[1], "audio", str(tmp_path / "ast"), 1.0)


def test_whisper_is_kept_whole_and_its_convolutions_are_the_bottom(corpus, tmp_path, capsys):
    """As many steps as were announced, each turn's states those of the turn alone; one in 20 ms."""
    write_whisper(tmp_path / "whisper")
    u = read_utterances(corpus[1], "audio", str(tmp_path / "whisper"), 0.7)
    keep_states(u, corpus[1], make_accelerator("no"), tmp_path, 1.0, "disk", Extraction(batch=5))
    announced = int(re.search(r"([\d,]+) steps x 4 layers x 32", capsys.readouterr().out)[1].replace(",", ""))
    assert announced == pytest.approx(len(u.states["states"]), rel=0.5)
    alone = u.pad([u.read(u.inputs["Ses01_imp_2"])])
    with torch.no_grad():
        layers = u.backbone().eval()(**alone, output_hidden_states=True).hidden_states
    expected, found = torch.stack(layers, 2)[0].numpy(), u.states.rows("Ses01_imp_2", "states")
    assert found.shape == expected.shape and np.allclose(found, expected, rtol=2**-10, atol=1e-3)
    extractor = FeatureExtractor("audio", u.shape, (0, 0), 8, 0, "mean", 12)
    extractor.attach(u.backbone(), "bottom")
    trained = {name for name, p in extractor.backbone.named_parameters() if p.requires_grad}
    assert trained == {f"encoder.conv{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}


@pytest.mark.parametrize("n_samples", [6400, 6401, 6719, 480000, 500000])
def test_tokens_of_whisper_are_those_of_its_input(tmp_path, n_samples):
    write_whisper(tmp_path / "whisper")
    source = str(tmp_path / "whisper")
    batch = collate_waveforms(load_processor(source, "audio"), [np.ones(n_samples, np.float32)])
    backbone = load_backbone(source)
    assert hidden_states.count_steps(backbone, "audio", n_samples) == batch["attention_mask"].sum()


def test_states_that_do_not_fit_float16_are_refused(corpus, monkeypatch):
    real = hidden_states.hidden_states

    def huge(*arguments):
        states, visible = real(*arguments)
        return states * 1e6, visible

    monkeypatch.setattr(hidden_states, "hidden_states", huge)
    with pytest.raises(UserError, match="do not fit float16; set HIDDEN_STATES=anew"):
        prepared(corpus, "cache_huge", ("text",))
