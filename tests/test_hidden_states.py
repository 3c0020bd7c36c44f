"""Hidden states of frozen models and windows of dialogue: who is whose neighbour, that labels are never an input,
and that it makes no difference where the states come from."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from dialogues import CLASSES, MODELS, write_checkpoints, write_corpus
from torch.utils.data import DataLoader

from common.encoders import load_backbone
from common.errors import UserError
from common.files import free_bytes
from common.li import hidden_states
from common.li.hidden_states import Steps, Utterances, Windows, choose_place, context_windows
from common.li.model import Design, build_system
from common.manifest import Manifest, Turn
from common.training import cut, make_accelerator, predict, size_of, to_device

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # see encoders.py

DESIGN = Design(
    width=8,
    reduction=0,
    layer_merge="mean",
    projector_hidden=12,
    context_over="tokens",
    heads=1,
    blocks=1,
    feed_forward=16,
    norm_first=True,
    target_residual=True,
    classifier_hidden=10,
    dropout=0.0,
    block_dropout=0.0,
)
WINDOW = (2, 1)


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


def in_test_part(turn):
    return turn.speaker == "x"


def windows_of(before, after):
    windows, n_cut = context_windows(TALKS, TALKS.labelled, before, after, in_test_part)
    return dict(zip((t.utterance_id for t in TALKS.labelled), windows)), n_cut


def test_context_windows_by_hand():
    """In the order of the dialogue, unlabelled neighbours among them, none from another dialogue or the other part."""
    found, n_cut = windows_of(2, 1)
    assert found == {
        "a0": [None, None, "a0", "a1"],
        "a2": ["a0", "a1", "a2", None],  # a3 is tested
        "a3": [None, None, "a3", None],  # tested: sees no training turn
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


def read(corpus, modality, cache="cache", manifest=None, **changes):
    root, original, checkpoints = corpus
    manifest = manifest or original
    turns = manifest.turns if modality == "text" else manifest.labelled
    limits = {"max_s": 0.7, "max_tokens": 9} | changes
    return Utterances(
        manifest,
        modality,
        str(checkpoints / MODELS[modality]),
        turns,
        limits["max_s"],
        limits["max_tokens"],
        root / cache,
        1,
    )


def prepared(corpus, place, cache="cache", modalities=("audio", "text"), **changes):
    """{modality: Utterances} whose states come from `place`."""
    found = {m: read(corpus, m, cache, **changes) for m in modalities}
    for utterances in found.values():
        utterances.prepare(make_accelerator("no"), place, 1.0, 1.0, 5, 0)
    return found


def data_of(corpus, utterances, live=(), manifest=None, window=WINDOW, by_length=False):
    manifest = manifest or corpus[1]
    windows, _ = context_windows(manifest, manifest.labelled, *window, lambda turn: False)
    return Windows(manifest.labelled, CLASSES, utterances, windows, set(live), by_length)


def leaves(batch):
    """The tensors of a batch; of hidden states what is not padding, the rest is never written."""
    for value in batch.values():
        if isinstance(value, Steps):
            yield value.window
            for name, tensor in value.inputs.items():
                yield (
                    tensor[value.inputs["visible"]]
                    if name == "states" and tensor.device.type != "meta"
                    else tensor
                )
        else:
            yield value


@pytest.fixture(scope="module")
def kept(corpus):
    return prepared(corpus, "memory")


def test_a_batch_holds_each_utterance_once_in_windows_of_the_dialogue(corpus, kept):
    data = data_of(corpus, kept)
    indices = [0, 2, 3]  # turns 0, 2 and 4 of the first dialogue; 3 is unlabelled
    batch = data.collate(indices)
    assert batch["labels"].tolist() == [CLASSES.index(corpus[1].labelled[i].label) for i in indices]
    text = batch["text"]
    order = ["0", "1", "2", "3", "4", "5"]  # numbered as they come in the windows
    assert text.window.tolist() == [[-1, -1, 0, 1], [0, 1, 2, 3], [2, 3, 4, 5]]
    for number, end in enumerate(order):
        rows = kept["text"].kept[f"Ses01_imp_{end}"]
        assert torch.equal(text.inputs["states"][number, : len(rows)], torch.from_numpy(rows))
        assert text.inputs["visible"][number].sum() == len(rows) <= 9
    assert batch["audio"].window.tolist() == [[0], [1], [2]]
    assert set(data.lengths) == {1}  # batches at random
    lengths = data_of(corpus, kept, by_length=True).lengths
    assert lengths[:2] == [6400, int(min(0.7 * 16000, kept["audio"].store.length("Ses01_imp_1")))]


def test_kept_states_are_those_of_transformers(corpus, kept):
    """Each utterance alone, without padding, through the plain model."""
    model = load_backbone(str(corpus[2] / MODELS["text"])).eval()
    tokenizer = kept["text"].processor
    for turn in corpus[1].turns[:4]:
        inputs = tokenizer([turn.text], truncation=True, max_length=9, return_tensors="pt")
        with torch.no_grad():
            layers = model(**inputs, output_hidden_states=True).hidden_states
        expected = torch.stack(layers, 2)[0].numpy()
        assert kept["text"].kept[turn.utterance_id].shape == expected.shape
        assert np.allclose(kept["text"].kept[turn.utterance_id], expected, atol=3e-3)
    assert len(kept["audio"].kept["Ses01_imp_0"]) == 8  # 50 ms, lasting SHORTEST_S with silence


def test_labels_are_never_an_input(corpus, kept):
    manifest, other = corpus[1], {c: CLASSES[(i + 1) % 4] for i, c in enumerate(CLASSES)}
    changed = Manifest(
        manifest.corpus,
        manifest.folder,
        CLASSES,
        [replace(turn, label=other.get(turn.label, ""), extra={}) for turn in manifest.turns],
    )
    before, after = (data_of(corpus, kept, manifest=m).collate(list(range(9))) for m in (manifest, changed))
    assert not (before["labels"] == after["labels"]).any()
    rest = [[leaf for leaf in leaves({m: batch[m] for m in ("audio", "text")})] for batch in (before, after)]
    assert len(rest[0]) == 6 and all(torch.equal(a, b) for a, b in zip(*rest))


def test_an_unlabelled_neighbour_stays_one(corpus, kept):
    """Giving a label to the fourth turn makes it a sample of its own and changes no other."""
    manifest = corpus[1]
    turns = [
        replace(turn, label="sad") if turn.utterance_id == "Ses01_imp_3" else turn for turn in manifest.turns
    ]
    labelled = Manifest(manifest.corpus, manifest.folder, CLASSES, turns)
    text = {"text": kept["text"]}
    before, after = (data_of(corpus, text, manifest=m) for m in (manifest, labelled))
    assert len(after) == len(before) + 1
    for old, new in ((2, 2), (3, 4)):
        a, b = before.collate([old]), after.collate([new])
        assert all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b)))


# ---- Steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [(), ("audio", "text")])
def test_a_part_of_a_batch_gives_the_outputs_of_that_part(corpus, kept, live):
    """As `training` cuts a batch after an out-of-memory error: with the neighbours that the part needs."""
    batch, model = data_of(corpus, kept, live).collate(list(range(12))), system(kept)
    if live:
        model.attach({m: load_backbone(u.source) for m, u in kept.items()}, "none")
    with torch.no_grad():
        whole = model.eval()(batch)
        for start, stop in ((0, 5), (5, 10), (10, 15)):
            part = cut(batch, start, stop)
            assert size_of(part) == len(part["text"]) == min(stop, 12) - start
            torch.testing.assert_close(model(part), whole[start:stop], atol=1e-4, rtol=1e-4)
    few = cut(batch, 0, 1)["text"]  # turns 0 and 1 of the dialogue
    assert len(next(iter(few.inputs.values()))) == 2 and few.window.tolist() == [[-1, -1, 0, 1]]


def test_moving_a_batch_changes_nothing(corpus, kept):
    batch = data_of(corpus, kept).collate([0, 3, 7])
    moved = to_device(batch, torch.device("cpu"))
    meta = to_device(batch, torch.device("meta"))
    assert all(torch.equal(a, b) for a, b in zip(leaves(batch), leaves(moved)))
    assert all(leaf.device.type == "meta" for leaf in leaves(meta))
    if torch.cuda.is_available():
        pinned = {name: value.pin_memory() for name, value in batch.items()}
        assert all(leaf.is_pinned() for leaf in leaves(pinned))
        assert all(torch.equal(a, b) for a, b in zip(leaves(batch), leaves(pinned)))


def test_pinning_reaches_every_tensor(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    pinned = Steps({"a": torch.zeros(2), "b": torch.ones(2)}, torch.zeros(1, 1)).pin_memory()
    assert (
        pinned.inputs["a"].tolist() == [1, 1]
        and pinned.inputs["b"].tolist() == [2, 2]
        and pinned.window.item() == 1
    )


def test_worker_processes_bring_the_same_batches(corpus, kept):
    data = data_of(corpus, kept)
    sampler = [[(i, None) for i in part] for part in ([0, 5], [3, 1, 2])]
    for workers in (0, 1):
        batches = list(DataLoader(data, batch_sampler=sampler, collate_fn=data.collate, num_workers=workers))
        assert all(
            torch.equal(a, b)
            for batch, part in zip(batches, sampler)
            for a, b in zip(leaves(batch), leaves(data.collate([i for i, _ in part])))
        )


# ---- Memory, disk or recomputed ------------------------------------------------------------


def system(utterances, name="MMT"):
    return build_system(name, {m: u.shape for m, u in utterances.items()}, WINDOW, DESIGN, 4, 0)


def logits_of(corpus, place, cache):
    utterances = prepared(corpus, place, cache)
    live = utterances if place == "recompute" else ()
    model = system(utterances)
    model.attach({m: load_backbone(utterances[m].source) for m in live}, "none")
    data = data_of(corpus, utterances, live)
    return predict(make_accelerator("no"), model, lambda m, b: {"logits": m(b)}, data, 7, 0)["logits"]


def test_memory_disk_and_recompute_agree(corpus):
    memory, disk, anew = (
        logits_of(corpus, place, "cache_places") for place in ("memory", "disk", "recompute")
    )
    assert memory.shape == (42, 4) and memory.std(0).min() > 1e-3
    assert np.array_equal(memory, disk)
    assert np.allclose(memory, anew, atol=5e-3) and not np.array_equal(
        memory, anew
    )  # float16 against float32


def test_a_store_that_was_cut_short_is_gone_on_with(corpus, monkeypatch):
    whole = prepared(corpus, "memory", "cache_cut", ("text",))["text"]
    real, computed = hidden_states.predict_batches, []

    def stops_after(n_batches):
        def predict_batches(*args):
            for number, (indices, outputs) in enumerate(real(*args)):
                if number == n_batches:
                    raise KeyboardInterrupt
                computed.extend(indices)
                yield indices, outputs

        return predict_batches

    monkeypatch.setattr(hidden_states, "predict_batches", stops_after(3))
    with pytest.raises(KeyboardInterrupt):
        prepared(corpus, "disk", "cache_cut", ("text",))
    assert len(computed) == 15
    monkeypatch.setattr(hidden_states, "predict_batches", stops_after(99))
    again = prepared(corpus, "disk", "cache_cut", ("text",))["text"]
    assert sorted(computed) == list(range(48))  # each once
    for i in whole.ids:
        assert np.allclose(again.kept.rows(i, "states"), whole.kept[i], atol=2e-3)
    prepared(corpus, "disk", "cache_cut", ("text",))
    assert len(computed) == 48  # finished: nothing is computed again


def test_a_finished_store_is_used_though_the_disk_is_full_now(corpus, monkeypatch):
    """What is there already needs no more room."""
    prepared(corpus, "disk", "cache_full", ("text",))
    monkeypatch.setattr(hidden_states, "free_bytes", lambda folder: 0)
    assert prepared(corpus, "disk", "cache_full", ("text",))["text"].place == "disk"
    monkeypatch.setattr(hidden_states, "free_memory_gb", lambda: 0.0)
    assert prepared(corpus, "auto", "cache_full", ("text",))["text"].place == "disk"


def test_other_weights_or_clipping_are_not_mistaken_for_these(corpus, tmp_path):
    first = prepared(corpus, "disk", "cache_other", ("text",))["text"]
    longer = prepared(corpus, "disk", "cache_other", ("text",), max_tokens=12)["text"]
    assert max(len(first.kept.rows(i, "states")) for i in first.ids) == 9
    assert max(len(longer.kept.rows(i, "states")) for i in first.ids) > 9
    root, manifest, checkpoints = corpus
    model = load_backbone(str(checkpoints / MODELS["text"]))
    with torch.no_grad():
        model.embeddings.LayerNorm.bias += 1
    model.save_pretrained(tmp_path / MODELS["text"])
    first.processor.save_pretrained(tmp_path / MODELS["text"])
    other = prepared((root, manifest, tmp_path), "disk", "cache_other", ("text",))["text"]
    assert other.weights != first.weights
    assert not np.allclose(
        other.kept.rows(first.ids[0], "states"), longer.kept.rows(first.ids[0], "states"), atol=0.1
    )


def test_the_cost_that_is_printed_is_what_is_kept(corpus, capsys):
    """Turns, steps x layers x width x 2 bytes, against the arrays themselves."""
    utterances = {m: read(corpus, m) for m in ("audio", "text")}
    for modality, n_turns in (("audio", 42), ("text", 48)):
        capsys.readouterr()
        taken = utterances[modality].prepare(make_accelerator("no"), "memory", 1.0, 1.0, 5, 0)
        shown = capsys.readouterr().out
        counts = re.search(
            r"([\d,]+) turns, ([\d,]+) steps x (\d+) layers x (\d+) x 2 bytes = ([\d.]+) GB; kept in memory",
            shown,
        )
        turns, steps, layers, width = (int(text.replace(",", "")) for text in counts.groups()[:4])
        n_bytes = sum(rows.nbytes for rows in utterances[modality].kept.values())
        assert (turns, layers, width) == (n_turns, 3, 64) and steps * layers * width * 2 == n_bytes
        assert taken == pytest.approx((n_bytes / 1e9, 0.0)) and counts[5] == f"{n_bytes / 1e9:.2f}"
        assert steps == sum(len(rows) for rows in utterances[modality].kept.values())


@pytest.mark.parametrize(
    "need_gb, memory_gb, disk_gb, free_memory, free_disk, place",
    [
        (5, 8, 30, 20, 50, "memory"),
        (9, 8, 30, 20, 50, "disk"),
        (5, 8, 30, 4, 50, "disk"),
        (8, 8, 30, 8, 50, "memory"),
        (31, 8, 30, 20, 50, "recompute"),
        (20, 8, 30, 20, 10, "recompute"),
        (1, 0, 0, 20, 50, "recompute"),
    ],
)
def test_auto_takes_memory_then_disk_as_far_as_allowed_and_free(
    monkeypatch, tmp_path, need_gb, memory_gb, disk_gb, free_memory, free_disk, place
):
    monkeypatch.setattr(hidden_states, "free_memory_gb", lambda: free_memory)
    monkeypatch.setattr(hidden_states, "free_bytes", lambda folder: free_disk * 1e9)
    assert choose_place("auto", need_gb, memory_gb, disk_gb, tmp_path, 0.0) == place


def test_a_place_asked_for_is_taken_or_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(hidden_states, "free_memory_gb", lambda: 10.0)
    monkeypatch.setattr(hidden_states, "free_bytes", lambda folder: 40e9)
    assert [choose_place(p, 9.9, 0, 0, tmp_path, 0.0) for p in hidden_states.PLACES] == list(
        hidden_states.PLACES
    )
    assert choose_place("recompute", 1e9, 0, 0, tmp_path, 0.0) == "recompute"
    for wanted, need, said in (
        ("memory", 12, "12.0 GB needed, 10.0 GB free"),
        ("disk", 50, "50.0 GB needed, 40.0 GB free"),
    ):
        with pytest.raises(
            UserError, match=f"HIDDEN_STATES={wanted}: {said}; set HIDDEN_STATES=recompute"
        ) as caught:
            choose_place(wanted, need, 100, 100, tmp_path, 0.0)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="HIDDEN_STATES=ram: choose one of auto, memory, disk, recompute"):
        choose_place("ram", 1, 8, 8, tmp_path, 0.0)


def test_free_space_is_that_of_the_machine(tmp_path):
    assert 0.1 < hidden_states.free_memory_gb() < 1e5
    assert 0 < free_bytes(tmp_path) == pytest.approx(free_bytes(tmp_path / "not" / "there"), rel=0.1)


# ---- Odd turns -----------------------------------------------------------------------------


def test_a_turn_without_audio_is_heard_as_silence(corpus):
    manifest = corpus[1]
    turns = [
        replace(turn, audio="") if turn.utterance_id == "Ses01_imp_1" else turn for turn in manifest.turns
    ]
    (manifest.folder / "audio" / "Ses01_imp_2.wav").rename(manifest.folder / "audio" / "aside.wav")
    (manifest.folder / "audio" / "Ses01_imp_2.wav").write_bytes(b"RIFF not a wave file")
    try:
        utterances = prepared(
            corpus,
            "memory",
            "cache_silent",
            ("audio",),
            manifest=Manifest(manifest.corpus, manifest.folder, CLASSES, turns),
        )["audio"]
    finally:
        (manifest.folder / "audio" / "aside.wav").rename(manifest.folder / "audio" / "Ses01_imp_2.wav")
    assert utterances.absent == {"Ses01_imp_1", "Ses01_imp_2"}  # none, and one that cannot be read
    inputs = utterances.collate_inputs(["Ses01_imp_0", "Ses01_imp_1"])
    assert inputs["input_values"].shape == (2, 6400) and not inputs["input_values"][1].any()  # 0.4 s
    assert inputs["attention_mask"].sum(1).tolist() == [6400, 6400] and inputs["input_values"][0].any()
    rows = utterances.kept["Ses01_imp_1"]
    assert np.array_equal(rows, utterances.kept["Ses01_imp_2"]) and np.isfinite(rows).all() and len(rows) > 1
    assert data_of(corpus, {"audio": utterances}, by_length=True).lengths[1] == 6400


def test_a_model_that_gives_no_layers_over_time_is_refused(corpus, tmp_path):
    from common.demo.checkpoints import SIZES, make_ast

    model, processor = make_ast(SIZES["tiny"], [])
    model.save_pretrained(tmp_path / "ast"), processor.save_pretrained(tmp_path / "ast")
    with pytest.raises(UserError, match="ast: takes spectrogram.*WavLM, wav2vec 2.0 or HuBERT"):
        Utterances(
            corpus[1], "audio", str(tmp_path / "ast"), corpus[1].labelled, 1.0, 9, tmp_path / "cache", 1
        )


def test_states_that_do_not_fit_float16_are_refused(corpus, monkeypatch):
    def huge(model, modality, inputs):
        states, visible = real(model, modality, inputs)
        return states * 1e6, visible

    real = hidden_states.hidden_states
    monkeypatch.setattr(hidden_states, "hidden_states", huge)
    with pytest.raises(UserError, match="do not fit float16; set HIDDEN_STATES=recompute"):
        prepared(corpus, "memory", "cache_huge", ("text",))
