"""The network of Li et al. against torch's attention and convolution, hand-worked numbers and its promises:
padding never leaks, only the bottom of the pretrained models is trained, every system can learn."""

import math
from functools import partial

import networks
import numpy as np
import pytest
import torch
from conftest import load_script
from networks import TINY_SPEECH, noise
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from common.encoders import collate_waveforms, ignore_padding
from common.layers import build
from common.li.extractor import (
    BOTTOM,
    ContextConvolution,
    FeatureExtractor,
    Projector,
    SqueezeExcite,
    average,
)

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # see encoders.py

SMALL = {
    "WIDTH": 8,
    "PROJECTOR_HIDDEN": 12,
    "FEED_FORWARD": 16,
    "CLASSIFIER_HIDDEN": 10,
    "DROPOUT": 0.0,
    "BLOCK_DROPOUT": 0.0,
}
SHAPES = {"audio": (4, 6), "text": (3, 5)}  # (L, D)
WINDOW = (1, 2)
SYSTEMS = list(load_script("04_fuse_classify.py").BRANCHES)
uneven = partial(networks.uneven, scale=0.5)


def script(**constants):
    """04 with small sizes and some other constants."""
    module = load_script("04_fuse_classify.py")
    vars(module).update(SMALL | constants)
    return module


def seen(*counts, longest):
    """(len(counts), longest) bool: True for the first counts[i] steps of row i."""
    return torch.arange(longest) < torch.tensor(counts)[:, None]


# ---- Attention against torch ---------------------------------------------------------------


def torch_attention(block, heads):
    attention = nn.MultiheadAttention(8, heads, batch_first=True)
    parts = block.query, block.key, block.value
    state = {
        "in_proj_weight": torch.cat([p.weight for p in parts]),
        "in_proj_bias": torch.cat([p.bias for p in parts]),
        "out_proj.weight": block.out.weight,
        "out_proj.bias": block.out.bias,
    }
    attention.load_state_dict(state)
    return attention


def torch_layer(block, heads, norm_first):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": norm_first}
    layer = nn.TransformerEncoderLayer(8, heads, 16, **options)
    layer.self_attn = torch_attention(block, heads)
    first, _, second = block.feed_forward
    norms = (block.norm_attention, layer.norm1), (block.norm_feed_forward, layer.norm2)
    for ours, theirs in ((first, layer.linear1), (second, layer.linear2), *norms):
        theirs.load_state_dict(ours.state_dict())
    return layer


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("norm_first", [True, False])
def test_self_attention_is_torchs_transformer_encoder(heads, blocks, norm_first):
    s = script(
        HEADS=heads, BLOCKS=blocks, NORM_FIRST=norm_first, CMT_RESIDUAL=False
    )  # TE heeds no such thing
    ours = uneven(s.Transformer(cross_modal=False))
    x, visible = noise(3, 7, 8), seen(7, 4, 1, longest=7)
    expected = s.place(x)
    for block in ours.blocks:
        expected = torch_layer(block, heads, norm_first)(expected, src_key_padding_mask=~visible)
    if norm_first:
        expected = F.layer_norm(expected, (8,), ours.norm.weight, ours.norm.bias)
    found = ours(x, x, visible)
    assert len(ours.blocks) == blocks
    torch.testing.assert_close(found[visible], expected[visible], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads, blocks", [(1, 1), (4, 2)])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_cross_modal_transformer_is_torchs_attention(heads, blocks, residual, norm_first):
    """Queries from the target; keys and values from the source, the same in every block."""
    s = script(HEADS=heads, BLOCKS=blocks, NORM_FIRST=norm_first, CMT_RESIDUAL=residual)
    ours = uneven(s.Transformer(cross_modal=True))
    target, source, visible = noise(3, 4, 8), noise(3, 9, 8, seed=1), seen(9, 5, 1, longest=9)
    x, keys = s.place(target), s.place(source)
    for block in ours.blocks:
        norms = (block.norm_attention, block.norm_feed_forward)
        first, second = norms if norm_first else (nn.Identity(),) * 2
        given = first(x), first(keys), first(keys)
        attended, _ = torch_attention(block, heads)(*given, key_padding_mask=~visible)
        x = x + attended if residual else attended
        x = x if norm_first else block.norm_attention(x)
        x = x + block.feed_forward(second(x))
        x = x if norm_first else block.norm_feed_forward(x)
    x = F.layer_norm(x, (8,), ours.norm.weight, ours.norm.bias) if norm_first else x
    torch.testing.assert_close(ours(target, source, visible), x, atol=1e-5, rtol=1e-5)


def test_equation_1_by_hand():
    """softmax(Q K^T / sqrt(d_k)) V: scores ln 3 and 0 give 3/4 and 1/4; the third step is padding."""
    block = script(WIDTH=2, NORM_FIRST=False).Block(residual=False)
    block.norm_attention = block.norm_feed_forward = nn.Identity()
    for linear in (block.query, block.key, block.out):
        linear.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    block.value.load_state_dict({"weight": torch.tensor([[4.0, 0], [8, 0]]), "bias": torch.tensor([0.0, 4])})
    nn.init.zeros_(block.feed_forward[2].weight), nn.init.zeros_(block.feed_forward[2].bias)
    target = torch.tensor([[[math.sqrt(2) * math.log(3), 5.0]]])
    source = torch.tensor([[[1.0, 0], [0, 0], [9, 9]]])
    visible = torch.tensor([[True, True, False]])
    found = block(target, source, visible)
    torch.testing.assert_close(found, torch.tensor([[[3.0, 10.0]]]))  # 3/4 (4, 12) + 1/4 (0, 4)
    block.residual = True
    torch.testing.assert_close(block(target, source, visible), found + target)


def test_without_the_residual_the_target_is_only_a_query():
    """With one step to attend to, every query has the same answer; the residual tells the targets apart."""
    targets, source, visible = noise(2, 5, 8), noise(1, 1, 8, seed=1).expand(2, 1, 8), seen(1, 1, longest=1)
    for residual in (False, True):
        found = uneven(script(CMT_RESIDUAL=residual).Transformer(cross_modal=True))(targets, source, visible)
        assert torch.allclose(found, found[:1, :1].expand_as(found), atol=1e-6) is not residual


# ---- Feature extractor ---------------------------------------------------------------------


def test_average_counts_visible_steps_only():
    x = torch.tensor([[[1.0, 2], [3, 6], [100, 100]], [[7, 8], [100, 100], [100, 100]]])
    assert average(x, seen(2, 1, longest=3)).tolist() == [[2, 4], [7, 8]]
    assert average(x[None], seen(2, 0, longest=3)[None]).tolist() == [[[2, 4], [0, 0]]]


def test_squeeze_and_excitation_by_hand():
    gate = SqueezeExcite(2, 0)
    gate.squeeze.load_state_dict({"weight": torch.tensor([[1.0, 0.2]]), "bias": torch.tensor([-1.0])})
    gate.excite.load_state_dict({"weight": torch.tensor([[0.5], [-1.0]]), "bias": torch.tensor([0.0, 1.0])})
    # 2, 5 -> relu(2 + 1 - 1) = 2 -> sigmoid(1), sigmoid(-2 + 1)
    # -2, -5 -> relu(-2 - 1 - 1) = 0 -> sigmoid(0), sigmoid(1)
    up, down = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))
    found = gate(torch.tensor([[2.0, 5], [-2, -5]]))
    assert found[0].tolist() == pytest.approx([up, down]) and found[1].tolist() == pytest.approx([0.5, up])


@pytest.mark.parametrize(
    "n_layers, reduction, units", [(25, 0, 1), (13, 13, 1), (25, 5, 5), (25, 8, 3), (3, 8, 1)]
)
def test_a_reduction_of_the_number_of_layers_leaves_one_unit(n_layers, reduction, units):
    gate = SqueezeExcite(n_layers, reduction)
    assert gate.squeeze.weight.shape == (units, n_layers) and gate.excite.weight.shape == (n_layers, units)


@pytest.mark.parametrize("merge", ["mean", "concatenate"])
@pytest.mark.parametrize("hidden", [0, 12])
def test_the_projector_written_out(merge, hidden):
    projector = uneven(Projector(3, 5, 8, 0, merge, hidden))
    states, visible = noise(1, 2, 4, 3, 5), seen(4, 2, longest=4)[None]  # one window of two utterances
    level = torch.stack(
        [states[0, 0].mean((0, 2)), states[0, 1, :2].mean((0, 2))]
    )  # of layers, without padding
    row, place, _ = in_a_row(states, visible, 0)
    gate, found = projector.gate(level), projector(row, place[:, None] == torch.arange(2)[:, None])
    assert found.shape == (1, 6, 8)
    for u, t in ((0, 0), (0, 3), (1, 1)):
        layers = [gate[u, layer] * states[0, u, t, layer] for layer in range(3)]
        x = torch.cat(layers) if merge == "concatenate" else sum(layers) / 3
        *linears, norm = [m for m in projector.mlp if not isinstance(m, nn.ReLU)]
        for i, linear in enumerate(linears):
            x = F.linear(F.relu(x) if i else x, linear.weight, linear.bias)
        assert len(linears) == 1 + bool(hidden)
        expected = (x - x.mean()) / torch.sqrt(x.var(correction=0) + norm.eps) * norm.weight + norm.bias
        torch.testing.assert_close(found[0, 4 * u + t], expected, atol=1e-5, rtol=1e-5)


def test_the_projector_may_standardise_its_states():
    """By mean and sd of every number of every layer, as if that had been done before."""
    plain, own = (Projector(3, 5, 8, 0, "mean", 12, standardise) for standardise in (False, True))
    own.load_state_dict({**plain.state_dict(), "mean": noise(3, 5), "sd": noise(3, 5).abs() + 0.5})
    states, shown = 100 * noise(2, 4, 3, 5), torch.ones(2, 1, 4, dtype=torch.bool)
    assert torch.equal(own(states, shown), plain((states - own.mean) / own.sd, shown))
    assert not torch.allclose(own(states, shown), plain(states, shown))


def in_a_row(x, visible, target, fill=100.0):
    """What an extractor takes of padded utterances x (B, N, T, ...), visible (B, N, T): the target first.

    Returns x (B, S, ...), `place` (B, S) and the target's own visible (B, T); padding holds `fill`.
    """
    order = sorted(range(x.shape[1]), key=lambda n: n != target)
    rows = [torch.cat([x[b, n, visible[b, n]] for n in order]) for b in range(len(x))]
    places = [torch.cat([torch.full((int(visible[b, n].sum()),), n) for n in order]) for b in range(len(x))]
    longest = int(visible[:, target].sum(1).max())
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    return pad(rows, padding_value=fill), pad(places, padding_value=x.shape[1]), visible[:, target, :longest]


def with_context(layer, x, visible, target=1):
    """A ContextConvolution on padded utterances: the target's tokens, zero where they are padding."""
    row, place, own = in_a_row(x, visible, target)
    return layer(row, place[:, None] == torch.arange(x.shape[1])[:, None], own.shape[1]) * own[..., None]


def window_of_texts():
    """Two samples of four utterances; the first lacks its last one. x (2, 4, 5, 8), visible (2, 4, 5)."""
    visible = torch.stack([seen(3, 5, 2, 0, longest=5), seen(1, 2, 4, 3, longest=5)])
    return noise(2, 4, 5, 8) * visible[..., None], visible


def test_context_over_utterances_adds_up_a_convolution_over_their_means():
    layer, (x, visible) = uneven(ContextConvolution(4, 8)), window_of_texts()
    found = with_context(layer, x, visible)
    assert layer.convolution.weight.shape == (8, 8, 3) and layer.convolution.stride == (1,)
    for b, n_utterances in ((0, 3), (1, 4)):
        means = torch.zeros(4, 8)
        for n in range(n_utterances):
            means[n] = x[b, n, visible[b, n]].mean(0)
        padded = F.pad(means.T[None], (1, 1))
        sequence = F.conv1d(padded, layer.convolution.weight, layer.convolution.bias)[0].T  # (4, 8)
        added = sum(layer.place[n] * sequence[n] for n in range(n_utterances))
        own = visible[b, 1]
        torch.testing.assert_close(found[b, own], x[b, 1, own] + added, atol=1e-5, rtol=1e-5)
    assert not found[~visible[:, 1]].any()


def test_order_and_distance_of_neighbours_matter():
    """Two neighbours that change places, and one that stands one place farther off."""
    layer, (x, visible) = uneven(ContextConvolution(4, 8)), window_of_texts()
    before = with_context(layer, x, visible)
    for order in ([2, 1, 0, 3], [0, 1, 3, 2]):
        after = with_context(layer, x[:, order], visible[:, order])
        assert (before - after).flatten(1).abs().amax(1).min() > 1e-2


def test_order_is_learned():
    """Which of two neighbours comes first tells the class; a mean of the window could not know."""
    torch.manual_seed(0)
    kinds, labels = torch.randn(2, 8), torch.arange(64) % 2
    first, second = kinds[labels], kinds[1 - labels]
    x = torch.stack([first, second, torch.zeros(64, 8)], 1)[:, :, None] + 0.1 * torch.randn(64, 3, 1, 8)
    visible = torch.ones(64, 3, 1, dtype=torch.bool)
    layer, classify = ContextConvolution(3, 8), nn.Linear(8, 2)
    optimizer = torch.optim.AdamW([*layer.parameters(), *classify.parameters()], lr=3e-2)
    for _ in range(100):
        loss = F.cross_entropy(classify(with_context(layer, x, visible, 2)[:, 0]), labels)
        if loss.item() < 0.1:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"order is not learnt: loss {loss.item()}")


def test_every_word_of_a_neighbour_counts_however_short_the_target():
    layer, (x, visible) = uneven(ContextConvolution(4, 8)), window_of_texts()
    changed = x.clone()
    changed[1, 2, 3] += 1.0  # the fourth token of a neighbour; the target has two
    assert visible[1, 2, 3] and visible[1, 1].sum() == 2
    before, after = (with_context(layer, each, visible) for each in (x, changed))
    assert (before[1] - after[1]).abs().max() > 1e-2 and torch.equal(before[0], after[0])


def test_absent_neighbours_add_nothing():
    """The first sample lacks its last utterance, whatever weights it would meet."""
    (x, visible), layer = window_of_texts(), uneven(ContextConvolution(4, 8))
    before = with_context(layer, x, visible)
    with torch.no_grad():
        layer.place[3] = 1e6
    after = with_context(layer, x, visible)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


def test_what_only_a_neighbour_tells_is_learned_with_context_alone():
    """The target's states are noise, those of the utterance before it tell the class."""
    torch.manual_seed(0)
    labels, accuracy = torch.arange(96) % 4, {}
    told = F.one_hot(labels, 4).float().repeat(1, 4)[:, None, None] + 0.3 * torch.randn(96, 3, 2, 16)
    states = torch.stack([told, torch.randn(96, 3, 2, 16)], 1)  # (B, N, T, L, D): neighbour, target
    for window in ((0, 0), (1, 0)):
        own = states[:, 1 - window[0] :]
        visible = torch.ones(own.shape[:3], dtype=torch.bool)
        batch = dict(zip(("states", "place", "visible"), in_a_row(own, visible, window[0])))
        network = script().FusionNetwork
        model = build(0, network, "BERT+FC", {"text": (2, 16)}, window, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        parts = (slice(0, 48), slice(48, 96))
        train, test = ({"text": {name: x[part] for name, x in batch.items()}} for part in parts)
        for _ in range(60):
            loss = F.cross_entropy(model(train), labels[:48])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy[window] = (model.eval()(test).argmax(1) == labels[48:]).float().mean().item()
    assert accuracy[1, 0] > 0.9 and accuracy[0, 0] < 0.5


def test_the_layers_of_wavlm_are_those_before_its_final_norm(backbones):
    """transformers 5 leaves it out of hidden_states; another version would change every result."""
    model = backbones["audio"].eval()
    inputs = {"attention_mask": torch.ones(2, 800, dtype=torch.long), "output_hidden_states": True}
    output = model(torch.randn(2, 800), **inputs)
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(model.encoder.layer_norm(output.hidden_states[-1]), output.last_hidden_state)


# ---- Systems -------------------------------------------------------------------------------


def cached(samples, seed=0):
    """A batch of hidden states, whose padding holds large numbers: they must not count.

    samples  list of (audio steps, tokens of each utterance of the window, None = no utterance)
    """
    generator = torch.Generator().manual_seed(seed)

    def padded(windows, modality):
        longest = max(filter(None, sum(windows, [])))
        visible = torch.stack([seen(*(n or 0 for n in window), longest=longest) for window in windows])
        states = torch.randn(*visible.shape, *SHAPES[modality], generator=generator)
        found = in_a_row(states.half(), visible, WINDOW[0] if modality == "text" else 0)
        return dict(zip(("states", "place", "visible"), found))

    return {
        "audio": padded([[n] for n, _ in samples], "audio"),
        "text": padded([window for _, window in samples], "text"),
    }


def one_of(batch, k):
    """Sample k of a cached batch without the padding that the others brought."""
    found = {}
    for modality, parts in batch.items():
        longest = int((parts["place"][k] < (4 if modality == "text" else 1)).sum())
        found[modality] = {name: tensor[k : k + 1, :longest] for name, tensor in parts.items()}
        found[modality]["visible"] = found[modality]["visible"][:, : int(parts["visible"][k].sum())]
    return found


SAMPLES = [(9, [2, 3, 4, 1]), (2, [None, 1, 2, None]), (30, [5, 12, 2, 20]), (1, [None, 7, None, None])]


def system(name, shapes=SHAPES, seed=0, **constants):
    return uneven(build(seed, script(**constants).FusionNetwork, name, shapes, WINDOW, 4), seed + 1).eval()


@pytest.mark.parametrize(
    "constants",
    [
        {},
        {"HEADS": 4, "BLOCKS": 2, "CMT_RESIDUAL": False},
        {"LAYER_MERGE": "concatenate", "NORM_FIRST": False},
    ],
)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_cached_sample_gives_the_same_logits_in_every_batch(name, constants):
    model, batch = system(name, **constants), cached(SAMPLES)
    together = model(batch)
    assert together.shape == (4, 4) and len(set(together[:, 0].tolist())) == 4
    for k in range(4):
        torch.testing.assert_close(model(one_of(batch, k))[0], together[k], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def backbones():
    torch.manual_seed(0)
    wavlm = WavLMModel(
        WavLMConfig(
            **{**TINY_SPEECH, "num_hidden_layers": 3},
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            layerdrop=0.5,
            mask_time_prob=0.5,
        )
    )
    bert = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=40,
        )
    )
    return {"audio": ignore_padding(wavlm), "text": ignore_padding(bert)}


LIVE_SHAPES = {"audio": (4, 32), "text": (3, 16)}
LIVE = [(9000, [2, 3, 4, 3]), (20001, [None, 9, 12, 20]), (7000, [None, 7, None, None])]  # samples, tokens


def live(samples):
    """A batch of the pretrained models' inputs; what a text or waveform holds depends on its length alone."""
    waveforms = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n, _ in samples]
    audio = collate_waveforms(Wav2Vec2FeatureExtractor(), waveforms)
    mask = torch.stack([seen(*(n or 0 for n in window), longest=20) for _, window in samples]).long()
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    for b, (_, window) in enumerate(samples):
        for n, count in enumerate(window):
            if count:
                tokens[b, n, :count] = torch.from_numpy(np.random.default_rng(count).integers(1, 50, count))
    longest = int(mask.sum(2).max())
    text = {"input_ids": tokens[..., :longest], "attention_mask": mask[..., :longest]}
    place = torch.where(mask.any(2), torch.arange(4), 4)
    text["attention_mask"][..., 0] = 1  # where there is no utterance a token stands in
    order = [1, 0, 2, 3]  # the target first
    text = {name: tensor[:, order] for name, tensor in {**text, "place": place}.items()}
    audio = {name: tensor[:, None] for name, tensor in audio.items()}
    return {"audio": {**audio, "place": torch.zeros(len(samples), 1, dtype=torch.long)}, "text": text}


def attach(model, backbones, parts):
    for modality, extractor in model.extractors.items():
        extractor.attach(backbones[modality], parts)
    return model


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_sample_gives_the_same_logits_in_every_batch_through_wavlm_and_bert(backbones, name):
    model = attach(system(name, LIVE_SHAPES), backbones, "bottom").eval()
    with torch.no_grad():
        together = model(live(LIVE))
        assert len(set(together[:, 0].tolist())) == 3
        for k, sample in enumerate(LIVE):
            torch.testing.assert_close(model(live([sample]))[0], together[k], atol=1e-4, rtol=1e-4)


def test_live_logits_are_those_of_all_hidden_layers(backbones):
    """What transformers itself returns for one unpadded sample, given as cached states."""
    model, batch, states = system("MMT", LIVE_SHAPES), live(LIVE[:1]), {}
    with torch.no_grad():
        for modality, inputs in batch.items():
            parts, places = [], inputs["place"][0].tolist()
            for u in range(len(places)):
                n = int(inputs["attention_mask"][0, u].sum())
                alone = {key: tensor[:, u, :n] for key, tensor in inputs.items() if key != "place"}
                layers = backbones[modality].eval()(**alone, output_hidden_states=True).hidden_states
                parts.append(torch.stack(layers, 2)[0])
            place = torch.cat([torch.full((len(p),), n) for p, n in zip(parts, places)])
            visible = torch.ones(1, len(parts[0]), dtype=torch.bool)
            states[modality] = {"states": torch.cat(parts)[None], "place": place[None], "visible": visible}
        expected = model(states)
        found = attach(model, backbones, "none").eval()(batch)
        assert states["audio"]["states"].shape[2:] == (4, 32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_multimodal_transformer_goes_both_ways():
    """Queries from the target, keys and values from the source; then both averages over time."""
    place = script().place
    model, batch, given = system("MMT"), cached(SAMPLES), {}
    for i, transformer in enumerate(model.transformers):
        for part in ("query", "key", "value"):
            layer = getattr(transformer.blocks[0], part)
            layer.register_forward_hook(
                lambda module, args, output, at=(i, part): given.update({at: args[0]})
            )
    model.classifier.register_forward_hook(lambda module, args, output: given.update(fused=args[0]))
    model(batch)
    (audio, voiced), (text, read) = (model.extractors[m](batch[m]) for m in ("audio", "text"))
    for i, (target, source) in enumerate(((text, audio), (audio, text))):
        norm = model.transformers[i].blocks[0].norm_attention
        torch.testing.assert_close(given[i, "query"], norm(place(target)))
        torch.testing.assert_close(given[i, "key"], norm(place(source)))
        torch.testing.assert_close(given[i, "value"], norm(place(source)))
    first, second = model.transformers
    halves = average(first(text, audio, voiced), read), average(second(audio, text, read), voiced)
    torch.testing.assert_close(given["fused"], torch.cat(halves, 1))


@pytest.mark.parametrize(
    "name, target, source", [("CMT(A→T)", "text", "audio"), ("CMT(T→A)", "audio", "text")]
)
def test_a_cross_modal_system_reads_its_source(name, target, source):
    """It has one branch, whose answer changes with the source alone."""
    model, batch, other = system(name), cached(SAMPLES), cached(SAMPLES, seed=5)
    assert model.branches == [(target, source)]
    before, after = model(batch), model({**batch, source: other[source]})
    assert (before - after).abs().amax(1).min() > 1e-3


def test_table_1_by_branches():
    module = script()
    modalities = [module.modalities_of(name) for name in SYSTEMS]
    assert modalities == [("audio",)] * 2 + [("text",)] * 2 + [("audio", "text")] * 5
    branches = module.BRANCHES
    assert branches["MMT"] == branches["CMT(A→T)"] + branches["CMT(T→A)"]
    assert branches["LF"] == branches["WavLM+TE"] + branches["BERT+TE"]
    assert branches["EF"] == branches["WavLM+FC"] + branches["BERT+FC"]


@pytest.mark.parametrize("parts", ["none", "bottom", "all"])
def test_what_is_trained_of_the_pretrained_models(backbones, parts):
    """Sec. 2.4: of WavLM the CNN encoder, of BERT the input embeddings; the fusion network always."""
    model = build(0, script(DROPOUT=0.5).FusionNetwork, "MMT", LIVE_SHAPES, WINDOW, 4)
    own = {name for name, _ in model.named_parameters()}
    attach(model, backbones, parts).train()
    for modality, backbone in backbones.items():
        bottom, names = f"{BOTTOM[modality][0]}.", {name for name, _ in backbone.named_parameters()}
        expected = {n for n in names if parts == "all" or (parts == "bottom" and n.startswith(bottom))}
        assert {name for name, p in backbone.named_parameters() if p.requires_grad} == expected
        assert bool(expected) is (parts != "none")
        assert not any(module.training for module in backbone.modules())
    assert all(p.requires_grad for name, p in model.named_parameters() if name in own)
    assert model.training and model.dropout.training and model.transformers[0].blocks[0].dropout.training


def test_gradients_reach_the_bottom_and_the_bottom_only(backbones):
    model = build(0, script().FusionNetwork, "MMT", LIVE_SHAPES, WINDOW, 4)
    attach(model, backbones, "bottom").train().zero_grad()
    F.cross_entropy(model(live(LIVE)), torch.tensor([0, 1, 2])).backward()
    for modality, backbone in backbones.items():
        gradients = {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}
        assert {name.split(".")[0] for name, g in gradients.items() if g.any()} == {BOTTOM[modality][0]}
    model.zero_grad()


def test_audio_has_no_context():
    extractor = FeatureExtractor("audio", (4, 6), WINDOW, 8, 0, "mean", 12)
    assert extractor.context is None and extractor.n_window == 1


@pytest.mark.parametrize("name", SYSTEMS)
def test_overfits_eight_samples(name):
    rng = np.random.default_rng(0)

    def tokens(n):
        return int(rng.integers(1, 6)) if n == 1 or rng.random() < 0.8 else None

    batch = cached([(int(rng.integers(2, 9)), [tokens(n) for n in range(4)]) for _ in range(8)])
    labels = torch.arange(8) % 4
    model = build(0, script(CMT_RESIDUAL=False).FusionNetwork, name, SHAPES, WINDOW, 4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(model(batch), labels)
        if loss.item() < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"{name} learns too slowly: loss {loss.item()}")
