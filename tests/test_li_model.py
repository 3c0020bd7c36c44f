"""The network of Li et al. against torch's own attention and convolution, hand-worked numbers and its promises:
padding never leaks, only the bottom of the pretrained models is trained, every system can learn."""

import math
from dataclasses import replace
from functools import partial

import networks
import numpy as np
import pytest
import torch
from networks import noise
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from common.encoders import ignore_padding
from common.inputs import collate_waveforms
from common.li.hidden_states import Steps
from common.li.model import (
    BOTTOM,
    BRANCHES,
    Block,
    ContextConvolution,
    Design,
    FeatureExtractor,
    Projector,
    SqueezeExcite,
    Transformer,
    average,
    build_system,
    modalities_of,
    positions,
)

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
SHAPES = {"audio": (4, 6), "text": (3, 5)}  # (L, D)
WINDOW = (1, 2)
SYSTEMS = list(BRANCHES)
uneven = partial(networks.uneven, scale=0.5)


def seen(*counts, longest):
    """(len(counts), longest) bool: True for the first counts[i] steps of row i."""
    return torch.arange(longest) < torch.tensor(counts)[:, None]


# ---- Attention against torch ---------------------------------------------------------------


def torch_attention(block, width):
    attention = nn.MultiheadAttention(width, block.heads, batch_first=True)
    parts = block.query, block.key, block.value
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([p.weight for p in parts]),
            "in_proj_bias": torch.cat([p.bias for p in parts]),
            "out_proj.weight": block.out.weight,
            "out_proj.bias": block.out.bias,
        }
    )
    return attention


def torch_layer(block, width, feed_forward):
    layer = nn.TransformerEncoderLayer(
        width, block.heads, feed_forward, dropout=0.0, batch_first=True, norm_first=block.norm_first
    )
    layer.self_attn = torch_attention(block, width)
    first, _, second = block.feed_forward
    for ours, theirs in (
        (first, layer.linear1),
        (second, layer.linear2),
        (block.norm_attention, layer.norm1),
        (block.norm_feed_forward, layer.norm2),
    ):
        theirs.load_state_dict(ours.state_dict())
    return layer


def placed(x):
    """A sequence as a Transformer gets it: sqrt(d) times as large, with its positions."""
    return math.sqrt(x.shape[2]) * x + positions(x.shape[1], x.shape[2], x)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("norm_first", [True, False])
def test_self_attention_is_torchs_transformer_encoder(heads, blocks, norm_first):
    design = replace(
        DESIGN, heads=heads, blocks=blocks, norm_first=norm_first, target_residual=False
    )  # TE heeds no such thing
    ours = uneven(Transformer(design, cross_modal=False))
    x, visible = noise(3, 7, 8), seen(7, 4, 1, longest=7)
    expected = placed(x)
    for block in ours.blocks:
        expected = torch_layer(block, 8, 16)(expected, src_key_padding_mask=~visible)
    if norm_first:
        expected = F.layer_norm(expected, (8,), ours.norm.weight, ours.norm.bias)
    found = ours(x, x, visible)
    assert len(ours.blocks) == blocks
    torch.testing.assert_close(found[visible], expected[visible], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_the_cross_modal_transformer_is_torchs_attention(heads, blocks, residual, norm_first):
    """Queries from the target; keys and values from the source, the same in every block."""
    design = replace(DESIGN, heads=heads, blocks=blocks, norm_first=norm_first, target_residual=residual)
    ours = uneven(Transformer(design, cross_modal=True))
    target, source, visible = noise(3, 4, 8), noise(3, 9, 8, seed=1), seen(9, 5, 1, longest=9)
    x, keys = placed(target), placed(source)
    for block in ours.blocks:
        first, second = (
            (block.norm_attention, block.norm_feed_forward) if norm_first else (nn.Identity(),) * 2
        )
        attended, _ = torch_attention(block, 8)(first(x), first(keys), first(keys), key_padding_mask=~visible)
        x = x + attended if residual else attended
        x = x if norm_first else block.norm_attention(x)
        x = x + block.feed_forward(second(x))
        x = x if norm_first else block.norm_feed_forward(x)
    x = F.layer_norm(x, (8,), ours.norm.weight, ours.norm.bias) if norm_first else x
    torch.testing.assert_close(ours(target, source, visible), x, atol=1e-5, rtol=1e-5)


def test_equation_1_by_hand():
    """softmax(Q K^T / sqrt(d_k)) V: scores ln 3 and 0 give the weights 3/4 and 1/4; the third step is not visible."""
    block = Block(replace(DESIGN, width=2, norm_first=False), residual=False)
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


def test_without_the_residual_the_target_only_asks():
    """With one step to attend to, every question has the same answer; the residual tells the targets apart."""
    targets, source, visible = noise(2, 5, 8), noise(1, 1, 8, seed=1).expand(2, 1, 8), seen(1, 1, longest=1)
    for residual in (False, True):
        cmt = uneven(Transformer(replace(DESIGN, target_residual=residual), cross_modal=True))
        found = cmt(targets, source, visible)
        assert torch.allclose(found, found[:1, :1].expand_as(found), atol=1e-6) is not residual


def test_positions_are_those_of_the_vanilla_transformer():
    for width in (6, 5):
        found = positions(50, width, torch.zeros(1))
        for step in (0, 1, 37, 49):
            expected = [
                (math.sin, math.cos)[j % 2](step / 10000 ** ((j - j % 2) / width)) for j in range(width)
            ]
            assert found[step].tolist() == pytest.approx(expected, abs=1e-5)
    assert positions(3, 4, torch.zeros(1, dtype=torch.float16)).dtype == torch.float16


# ---- Feature extractor ---------------------------------------------------------------------


def test_average_counts_visible_steps_only():
    x = torch.tensor([[[1.0, 2], [3, 6], [100, 100]], [[7, 8], [100, 100], [100, 100]]])
    assert average(x, seen(2, 1, longest=3)).tolist() == [[2, 4], [7, 8]]
    assert average(x[..., 0], seen(2, 1, longest=3)).tolist() == [2, 7]


def test_squeeze_and_excitation_by_hand():
    gate = SqueezeExcite(2, 0)
    gate.squeeze.load_state_dict({"weight": torch.tensor([[1.0, 0.2]]), "bias": torch.tensor([-1.0])})
    gate.excite.load_state_dict({"weight": torch.tensor([[0.5], [-1.0]]), "bias": torch.tensor([0.0, 1.0])})
    # means 2 and 5 -> relu(2 + 1 - 1) = 2 -> sigmoid(1), sigmoid(-2 + 1); -2 and -5 -> relu(-4) = 0 -> sigmoid(0), sigmoid(1)
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
    projector = uneven(Projector(3, 5, replace(DESIGN, layer_merge=merge, projector_hidden=hidden)))
    states, visible = noise(2, 4, 3, 5), seen(4, 2, longest=4)
    level = torch.stack([states[0].mean((0, 2)), states[1, :2].mean((0, 2))])  # of each layer, padding apart
    gate, found = projector.gate(level), projector(states, visible)
    assert found.shape == (2, 4, 8) and not found[1, 2:].any()
    for u, t in ((0, 0), (0, 3), (1, 1)):
        layers = [gate[u, layer] * states[u, t, layer] for layer in range(3)]
        x = torch.cat(layers) if merge == "concatenate" else sum(layers) / 3
        *linears, norm = [m for m in projector.mlp if not isinstance(m, nn.ReLU)]
        for i, linear in enumerate(linears):
            x = F.linear(F.relu(x) if i else x, linear.weight, linear.bias)
        assert len(linears) == 1 + bool(hidden)
        expected = (x - x.mean()) / torch.sqrt(x.var(correction=0) + norm.eps) * norm.weight + norm.bias
        torch.testing.assert_close(found[u, t], expected, atol=1e-5, rtol=1e-5)


def window_of_texts():
    """Two samples of four utterances; the first lacks its last one. x (2, 4, 5, 8), present (2, 4, 5)."""
    present = torch.stack([seen(3, 5, 2, 0, longest=5), seen(1, 2, 4, 3, longest=5)])
    return noise(2, 4, 5, 8) * present[..., None], present


def test_context_over_tokens_is_a_convolution_with_channels_for_each_utterance():
    """At every token of the target: its own numbers, and the mean over the tokens of each neighbour."""
    layer, (x, present) = uneven(ContextConvolution(4, 8, "tokens")), window_of_texts()
    found, visible = layer(x, present, target=1)
    assert layer.convolution.weight.shape == (8, 32, 3) and torch.equal(visible, present[:, 1])
    for b, n_tokens in ((0, 5), (1, 2)):
        channels = torch.zeros(1, 4, 8, n_tokens)
        for n in range(4):
            own = x[b, n, present[b, n]]
            if n == 1:
                channels[0, n] = own.T
            elif len(own):
                channels[0, n] = own.mean(0)[:, None]
        added = F.conv1d(channels.flatten(1, 2), layer.convolution.weight, layer.convolution.bias, padding=1)[
            0
        ].T
        torch.testing.assert_close(found[b, :n_tokens], x[b, 1, :n_tokens] + added, atol=1e-5, rtol=1e-5)
    assert not found[~visible].any()


@pytest.mark.parametrize("over", ["tokens", "utterances"])
def test_every_word_of_a_neighbour_counts_however_short_the_target(over):
    layer, (x, present) = uneven(ContextConvolution(4, 8, over)), window_of_texts()
    changed = x.clone()
    changed[1, 2, 3] += 1.0  # the fourth token of a neighbour; the target has two
    assert present[1, 2, 3] and present[1, 1].sum() == 2
    before, after = (layer(each, present, target=1)[0] for each in (x, changed))
    assert (before[1] - after[1]).abs().max() > 1e-2 and torch.equal(before[0], after[0])


@pytest.mark.parametrize("over", ["tokens", "utterances"])
def test_what_only_a_neighbour_tells_is_learned_with_context_alone(over):
    """The target's states are noise, those of the utterance before it tell the class: chance without, right with it."""
    torch.manual_seed(0)
    labels, accuracy = torch.arange(96) % 4, {}
    told = F.one_hot(labels, 4).float().repeat(1, 4)[:, None, None] + 0.3 * torch.randn(96, 3, 2, 16)
    states = torch.stack([told, torch.randn(96, 3, 2, 16)], 1).flatten(
        0, 1
    )  # neighbour, target, neighbour ...
    inputs = {"states": states, "visible": torch.ones(192, 3, dtype=torch.bool)}
    for window in ((0, 0), (1, 0)):
        numbers = torch.arange(192).view(96, 2)[:, 1 - window[0] :]
        model = build_system("BERT+FC", {"text": (2, 16)}, window, replace(DESIGN, context_over=over), 4, 0)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        train, test = ({"text": Steps(inputs, numbers)[part]} for part in (slice(0, 48), slice(48, 96)))
        for _ in range(60):
            loss = F.cross_entropy(model(train), labels[:48])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        accuracy[window] = (model.eval()(test).argmax(1) == labels[48:]).float().mean().item()
    assert accuracy[1, 0] > 0.9 and accuracy[0, 0] < 0.5


def test_the_layers_of_wavlm_are_those_before_its_final_norm():
    """transformers 5 leaves the final LayerNorm out of hidden_states; another version would change every result."""
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(5, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        do_stable_layer_norm=True,
        feat_extract_norm="layer",
    )
    model = WavLMModel(config).eval()
    output = model(
        torch.randn(2, 800), attention_mask=torch.ones(2, 800, dtype=torch.long), output_hidden_states=True
    )
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(model.encoder.layer_norm(output.hidden_states[-1]), output.last_hidden_state)


def test_context_over_utterances_is_the_average_of_a_convolution_over_their_means():
    layer, (x, present) = uneven(ContextConvolution(4, 8, "utterances")), window_of_texts()
    found, visible = layer(x, present, target=1)
    assert torch.equal(visible, present[:, 1]) and layer.convolution.weight.shape == (8, 8, 3)
    for b, n_utterances in ((0, 3), (1, 4)):
        means = torch.zeros(4, 8)
        for n in range(n_utterances):
            means[n] = x[b, n, present[b, n]].mean(0)
        padded = F.pad(means.T[None], (1, 1))
        added = F.conv1d(padded, layer.convolution.weight, layer.convolution.bias)[0].T[:n_utterances].mean(0)
        torch.testing.assert_close(found[b, visible[b]], x[b, 1, visible[b]] + added, atol=1e-5, rtol=1e-5)
    assert not found[~visible].any()


@pytest.mark.parametrize("over", ["tokens", "utterances"])
def test_the_order_of_neighbours_matters(over):
    layer, (x, present) = uneven(ContextConvolution(4, 8, over)), window_of_texts()
    order = [2, 1, 0, 3]
    before, after = (layer(*pair, target=1)[0] for pair in ((x, present), (x[:, order], present[:, order])))
    assert (before - after).flatten(1).abs().amax(1).min() > 1e-2


def test_absent_neighbours_add_nothing():
    """The first sample lacks its last utterance: whatever weights it would meet, or a window without it."""
    (x, present), layer = window_of_texts(), uneven(ContextConvolution(4, 8, "tokens"))
    before, _ = layer(x, present, target=1)
    with torch.no_grad():
        layer.convolution.weight[:, 24:] = 1e6
    after, _ = layer(x, present, target=1)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])
    layer = uneven(ContextConvolution(4, 8, "utterances"))
    torch.testing.assert_close(layer(x[:1], present[:1], 1)[0], layer(x[:1, :3], present[:1, :3], 1)[0])


@pytest.mark.parametrize("over", ["tokens", "utterances"])
def test_a_window_of_the_target_alone(over):
    layer, x, present = uneven(ContextConvolution(1, 8, over)), noise(1, 1, 3, 8), seen(3, longest=3)[:, None]
    found, _ = layer(x, present, target=0)
    sequence = x[:, 0] if over == "tokens" else x.mean(2)  # (1, 3 or 1, 8)
    expected = x[:, 0] + F.conv1d(
        sequence.transpose(1, 2), layer.convolution.weight, layer.convolution.bias, padding=1
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_each_utterance_of_a_window_is_found_by_its_number():
    extractor = uneven(FeatureExtractor("text", (3, 5), (1, 1), DESIGN))
    states, visible = noise(3, 4, 3, 5), seen(4, 2, 3, longest=4)
    found, steps = extractor(
        Steps({"states": states, "visible": visible}, torch.tensor([[2, 0, 1], [-1, 2, 0]]))
    )
    x = extractor.projector(states, visible)
    for row, numbers in enumerate(([2, 0, 1], [None, 2, 0])):
        parts = torch.stack([torch.zeros(4, 8) if n is None else x[n] for n in numbers])[None]
        present = torch.stack(
            [torch.zeros(4, dtype=torch.bool) if n is None else visible[n] for n in numbers]
        )[None]
        expected, shown = extractor.context(parts, present, 1)
        torch.testing.assert_close(found[row], expected[0])
        assert torch.equal(steps[row], shown[0])


# ---- Systems -------------------------------------------------------------------------------


def cached(samples, seed=0):
    """A batch of hidden states: samples is a list of (audio steps, tokens of the window's utterances, None = none).

    Padding holds NaN, as memory that was never written may: it must not be looked at.
    """
    generator = torch.Generator().manual_seed(seed)

    def padded(counts, modality):
        n_layers, width = SHAPES[modality]
        states = torch.full((len(counts), max(counts), n_layers, width), float("nan"))
        for row, count in enumerate(counts):
            states[row, :count] = torch.randn(count, n_layers, width, generator=generator)
        return {"states": states.half(), "visible": seen(*counts, longest=max(counts))}

    texts = [count for _, window in samples for count in window if count]
    numbers = iter(range(len(texts)))
    window = torch.tensor([[next(numbers) if count else -1 for count in window] for _, window in samples])
    return {
        "audio": Steps(padded([n for n, _ in samples], "audio"), torch.arange(len(samples))[:, None]),
        "text": Steps(padded(texts, "text"), window),
    }


def one_of(batch, k):
    """Sample k of a cached batch without the padding that the others brought."""
    found = {}
    for modality, steps in batch.items():
        used = steps.window[k][steps.window[k] >= 0]
        longest = int(steps.inputs["visible"][used].sum(1).max())
        window = torch.tensor([[-1 if n < 0 else used.tolist().index(int(n)) for n in steps.window[k]]])
        found[modality] = Steps(
            {name: tensor[used, :longest] for name, tensor in steps.inputs.items()}, window
        )
    return found


SAMPLES = [(9, [2, 3, 4, 1]), (2, [None, 1, 2, None]), (30, [5, 12, 2, 20]), (1, [None, 7, None, None])]


def system(name, shapes=SHAPES, seed=0, **changes):
    return uneven(build_system(name, shapes, WINDOW, replace(DESIGN, **changes), 4, seed), seed + 1).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"context_over": "utterances", "heads": 4, "blocks": 2, "target_residual": False},
        {"layer_merge": "concatenate", "norm_first": False},
    ],
)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_cached_sample_gives_the_same_logits_in_every_batch(name, changes):
    model, batch = system(name, **changes), cached(SAMPLES)
    together = model(batch)
    assert together.shape == (4, 4) and len(set(together[:, 0].tolist())) == 4
    for k in range(4):
        torch.testing.assert_close(model(one_of(batch, k))[0], together[k], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def backbones():
    torch.manual_seed(0)
    wavlm = WavLMModel(
        WavLMConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=[16] * 3,
            conv_kernel=[10, 8, 8],
            conv_stride=[5, 8, 8],
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
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
LIVE = [
    (9000, [2, 3, 4, 3]),
    (20001, [None, 9, 12, 20]),
    (100, [None, 7, None, None]),
]  # audio samples, tokens


def live(samples):
    """A batch of the pretrained models' inputs; the values of a text or waveform depend on its length alone."""
    waveforms = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n, _ in samples]
    texts = [count for _, window in samples for count in window if count]
    tokens = torch.zeros(len(texts), max(texts), dtype=torch.long)
    for row, count in enumerate(texts):
        tokens[row, :count] = torch.from_numpy(np.random.default_rng(count).integers(1, 50, count))
    numbers = iter(range(len(texts)))
    window = torch.tensor([[next(numbers) if count else -1 for count in window] for _, window in samples])
    return {
        "audio": Steps(
            collate_waveforms(Wav2Vec2FeatureExtractor(), waveforms), torch.arange(len(samples))[:, None]
        ),
        "text": Steps(
            {"input_ids": tokens, "attention_mask": seen(*texts, longest=max(texts)).long()}, window
        ),
    }


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_sample_gives_the_same_logits_in_every_batch_through_wavlm_and_bert(backbones, name):
    model = system(name, LIVE_SHAPES)
    model.attach(backbones, "bottom").eval()
    with torch.no_grad():
        together = model(live(LIVE))
        assert len(set(together[:, 0].tolist())) == 3
        for k, sample in enumerate(LIVE):
            torch.testing.assert_close(model(live([sample]))[0], together[k], atol=1e-4, rtol=1e-4)


def test_live_logits_are_those_of_all_hidden_layers(backbones):
    """What transformers itself returns for one unpadded sample, given as cached states."""
    model, batch = system("MMT", LIVE_SHAPES), live(LIVE[:1])
    with torch.no_grad():
        cached_batch = {}
        for modality, steps in batch.items():
            parts = []
            for u in range(len(steps.inputs["attention_mask"])):
                n = int(steps.inputs["attention_mask"][u].sum())
                alone = {key: tensor[u : u + 1, :n] for key, tensor in steps.inputs.items()}
                parts.append(
                    torch.stack(
                        backbones[modality].eval()(**alone, output_hidden_states=True).hidden_states, 2
                    )[0]
                )
            visible = seen(*(len(p) for p in parts), longest=max(map(len, parts)))
            cached_batch[modality] = Steps(
                {"states": nn.utils.rnn.pad_sequence(parts, batch_first=True), "visible": visible},
                steps.window,
            )
        expected = model(cached_batch)
        found = model.attach(backbones, "none").eval()(batch)
        assert cached_batch["audio"].inputs["states"].shape[2:] == (4, 32)
        model.attach({}, "none")
        torch.testing.assert_close(model(cached_batch), expected)  # the backbones are out again
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_multimodal_transformer_goes_both_ways():
    """Queries from the target, keys and values from the source; then both averages over time, side by side."""
    model, batch, given = system("MMT"), cached(SAMPLES), {}
    for i, transformer in enumerate(model.transformers):
        for part in ("query", "key", "value"):
            layer = getattr(transformer.blocks[0], part)
            layer.register_forward_hook(
                lambda module, args, output, at=(i, part): given.update({at: args[0]})
            )
    model.classifier.register_forward_hook(lambda module, args, output: given.update(fused=args[0]))
    model(batch)
    (audio, heard), (text, read) = (model.extractors[m](batch[m]) for m in ("audio", "text"))
    for i, (target, source) in enumerate(((text, audio), (audio, text))):
        norm = model.transformers[i].blocks[0].norm_attention
        torch.testing.assert_close(given[i, "query"], norm(placed(target)))
        torch.testing.assert_close(given[i, "key"], norm(placed(source)))
        torch.testing.assert_close(given[i, "value"], norm(placed(source)))
    first, second = model.transformers
    halves = average(first(text, audio, heard), read), average(second(audio, text, read), heard)
    torch.testing.assert_close(given["fused"], torch.cat(halves, 1))


@pytest.mark.parametrize("name", ["CMT(A→T)", "CMT(T→A)"])
def test_a_cross_modal_system_reads_its_source(name):
    """It has one branch, whose answer changes with the source alone."""
    model, batch = system(name, target_residual=True), cached(SAMPLES)
    source = {"CMT(A→T)": "audio", "CMT(T→A)": "text"}[name]
    other = cached(SAMPLES, seed=5)
    assert model.branches == [({"audio": "text", "text": "audio"}[source], source)]
    before, after = model(batch), model({**batch, source: other[source]})
    assert (before - after).abs().amax(1).min() > 1e-3


def test_table_1_by_branches():
    assert len(BRANCHES) == 9
    assert [modalities_of(name) for name in SYSTEMS] == [("audio",)] * 2 + [("text",)] * 2 + [
        ("audio", "text")
    ] * 5
    assert BRANCHES["MMT"] == BRANCHES["CMT(A→T)"] + BRANCHES["CMT(T→A)"]
    assert BRANCHES["LF"] == BRANCHES["WavLM+TE"] + BRANCHES["BERT+TE"]
    assert BRANCHES["EF"] == BRANCHES["WavLM+FC"] + BRANCHES["BERT+FC"]


def test_the_first_weights_depend_on_the_seed_alone():
    def weights(seed):
        return torch.cat(
            [p.flatten() for p in build_system("MMT", SHAPES, WINDOW, DESIGN, 4, seed).parameters()]
        )

    torch.manual_seed(3)
    before, state = weights(1), torch.random.get_rng_state()
    torch.manual_seed(4)
    assert torch.equal(before, weights(1)) and not torch.equal(before, weights(2))
    torch.manual_seed(3)
    assert torch.equal(torch.random.get_rng_state(), state)  # and they do not disturb anyone else's draws


@pytest.mark.parametrize("parts", ["none", "bottom", "all"])
def test_what_is_trained_of_the_pretrained_models(backbones, parts):
    """Sec. 2.4: of WavLM the CNN encoder, of BERT the input embeddings; the fusion network always."""
    model = build_system("MMT", LIVE_SHAPES, WINDOW, replace(DESIGN, dropout=0.5), 4, 0)
    own = {name for name, _ in model.named_parameters()}
    model.attach(backbones, parts)
    model.train()
    for modality, backbone in backbones.items():
        expected = {
            name
            for name, _ in backbone.named_parameters()
            if parts == "all" or (parts == "bottom" and name.startswith(BOTTOM[modality] + "."))
        }
        assert {name for name, p in backbone.named_parameters() if p.requires_grad} == expected
        assert bool(expected) is (parts != "none")
        assert not any(module.training for module in backbone.modules())
    assert BOTTOM == {"audio": "feature_extractor", "text": "embeddings"}
    assert all(p.requires_grad for name, p in model.named_parameters() if name in own)
    assert model.training and model.dropout.training and model.transformers[0].blocks[0].dropout.training


def test_gradients_reach_the_bottom_and_the_bottom_only(backbones):
    model = build_system("MMT", LIVE_SHAPES, WINDOW, DESIGN, 4, 0).attach(backbones, "bottom").train()
    model.zero_grad()
    F.cross_entropy(model(live(LIVE)), torch.tensor([0, 1, 2])).backward()
    for modality, backbone in backbones.items():
        touched = {
            name.split(".")[0]
            for name, p in backbone.named_parameters()
            if p.grad is not None and p.grad.any()
        }
        assert touched == {BOTTOM[modality]}
    model.zero_grad()


@pytest.mark.parametrize("name", SYSTEMS)
def test_overfits_eight_samples(name):
    rng = np.random.default_rng(0)
    batch = cached(
        [
            (
                int(rng.integers(2, 9)),
                [int(rng.integers(1, 6)) if rng.random() < 0.8 or n == 1 else None for n in range(4)],
            )
            for _ in range(8)
        ]
    )
    labels = torch.arange(8) % 4
    model = build_system(name, SHAPES, WINDOW, replace(DESIGN, target_residual=False), 4, 0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
