"""The networks of 05 against torch's own layers and losses, the paper's parameter counts, hand-worked
numbers, and their promises: what is hidden is not read, all of it counts, each can learn eight samples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import load_script
from networks import noise, seeded, uneven
from torch import nn
from torch.nn import functional as F

from common.files import UserError
from common.layers import build, count_parameters
from common.sadok.codes import Masked
from common.sadok.data import Network, Row

PAPER = Network("vqmae", "patch-tf", 0.8, 200, 64, 10, 4, 8, 12, 0)
FRAMES = replace(PAPER, strategy="frame", t=1, d=64)
SPECTRA = Network("specmae", "patch-tf", 0.8, 200, 513, 10, 27, 1, 12, 320)
SMALL = Network("vqmae", "patch-tf", 0.5, 12, 8, 3, 2, 4, 2, 0)  # 4 x 4 tokens of 6 codes
SPECTRUM = Network("specmae", "patch-tf", 0.5, 4, 6, 2, 3, 1, 2, 8)  # 2 x 2 patches of 6 powers
K = 16  # codes of the small models
PLANNED = [
    PAPER,
    replace(PAPER, strategy="patch-t"),
    replace(PAPER, strategy="patch-f"),
    FRAMES,
    replace(PAPER, t=20, d=8),
    SPECTRA,
]


@pytest.fixture(scope="module")
def paper():
    """05 with its default constants."""
    return load_script("05_pretrain_vqmae.py")


@pytest.fixture(scope="module")
def script():
    """05 with small sizes."""
    module = load_script("05_pretrain_vqmae.py")
    module.HEADS, module.MLP_RATIO, module.DECODER_DEPTH, module.N_CODES, module.QUERY_HEADS = 2, 2, 2, K, 2
    return module


def codes_of(n, network=SMALL, seed=0):
    shape = n, network.n_frames, network.n_rows
    return torch.randint(K, shape, generator=seeded(seed)).to(torch.uint8)


def masked(script, n, network=SMALL, seed=0):
    """visible_at (n, V), hidden_at (n, H) of n samples, and hidden (n, S)."""
    at = [script.random_masking(network, np.random.default_rng((seed, i))) for i in range(n)]
    visible_at, hidden_at = (torch.from_numpy(np.stack(part)) for part in zip(*at, strict=True))
    hidden = torch.zeros(n, visible_at.shape[1] + hidden_at.shape[1], dtype=torch.bool)
    return visible_at, hidden_at, hidden.scatter(1, hidden_at, True)


# ---- Tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [*PLANNED, SMALL], ids=lambda network: network.slug())
def test_unpatchify_is_the_inverse_of_patchify(paper, network):
    x = torch.arange(2 * network.n_frames * network.n_rows).view(2, network.n_frames, network.n_rows)
    tokens = paper.patchify(x, network)
    assert tokens.shape == (2, np.prod(network.grid), network.t * network.d)
    assert torch.equal(paper.unpatchify(tokens, network), x)


def test_tokens_are_patches_in_time_major_order(paper):
    """A 4 x 4 array in patches of 2 x 2, written down by hand."""
    tokens = paper.patchify(torch.arange(16).view(1, 4, 4), replace(SMALL, n_frames=4, n_rows=4, t=2, d=2))
    assert tokens.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_sizes_that_do_not_fit_are_refused(paper):
    for t, d in ((7, 4), (10, 5), (0, 4)):
        with pytest.raises(UserError, match="TOKEN_SIZE.*does not divide"):
            _ = replace(PAPER, t=t, d=d).grid
    for row in (Row(replace(PAPER, width=6)), Row(replace(PAPER, width=20), head="query2emo")):
        with pytest.raises(UserError, match="HEADS=4, QUERY_HEADS=8: must divide"):
            paper.check_constants([row])


# ---- Masking -------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("network", PLANNED, ids=lambda network: network.slug())
def test_exactly_the_wanted_tokens_are_hidden(paper, network, ratio):
    network = replace(network, ratio=ratio)
    visible_at, hidden_at, hidden = masked(paper, 6, network)
    assert torch.equal(torch.cat([visible_at, hidden_at], 1).sort(1).values[0], torch.arange(hidden.shape[1]))
    n_t, n_d = network.grid
    cells = hidden.view(6, n_t, n_d)
    if network.strategy == "patch-t":
        assert (
            torch.equal(cells.all(2), cells.any(2))
            and cells.all(2).sum(1).tolist() == [round(ratio * n_t)] * 6
        )
    elif network.strategy == "patch-f":
        assert (
            torch.equal(cells.all(1), cells.any(1))
            and cells.all(1).sum(1).tolist() == [round(ratio * n_d)] * 6
        )
    else:
        assert hidden.sum(1).tolist() == [round(ratio * n_t * n_d)] * 6
    assert len({tuple(row) for row in hidden.tolist()}) > 1, "all samples hide the same"
    assert torch.equal(hidden, masked(paper, 6, network)[2])
    assert not torch.equal(hidden, masked(paper, 6, network, seed=1)[2])


def test_counts_of_the_paper(paper):
    counts = [len(paper.random_masking(network, np.random.default_rng(0))[1]) for network in PLANNED[:4]]
    assert counts == [256, 16 * 16, 13 * 20, 160]


@pytest.mark.parametrize("strategy", ["patch-tf", "patch-t", "patch-f"])
def test_every_token_is_hidden_equally_often(paper, strategy):
    share = masked(paper, 4000, replace(SMALL, strategy=strategy))[2].float().mean(0)
    assert (share - 0.5).abs().max() < 0.04  # five standard errors


def test_masks_that_make_no_sense_are_refused(paper):
    for ratio, strategy in ((0.01, "patch-t"), (0.99, "patch-f"), (0.0, "patch-tf"), (1.3, "patch-tf")):
        with pytest.raises(UserError, match=f"RATIO, RATIOS: {ratio} hides"):
            paper.random_masking(replace(PAPER, ratio=ratio, strategy=strategy), np.random.default_rng(0))


def test_crops_and_masks_depend_on_the_key_alone(script):
    class Clips:
        def __len__(self):
            return 5

        def __getitem__(self, key):
            return {"x": torch.full((12, 8), key[0], dtype=torch.uint8)}

    data = Masked(Clips(), lambda rng: script.random_masking(SMALL, rng), times=2)
    assert len(data.lengths) == 10
    batch = data.collate([data[i, (0, 3, i)] for i in range(10)])
    assert batch["x"][:, 0, 0].tolist() == [*range(5), *range(5)]
    assert not torch.equal(batch["hidden_at"][1], batch["hidden_at"][6])  # the same crop twice in an epoch
    part = data.collate([data[i, (0, 3, i)] for i in (6, 2)])  # in another batch
    assert all(torch.equal(part[name], batch[name][[6, 2]]) for name in batch)
    assert (data[3, None]["hidden_at"] == data[3, None]["hidden_at"]).all()


# ---- Blocks --------------------------------------------------------------------------------


def torch_layer(block, width, heads, mlp_ratio):
    """torch's own layer with the block's weights; it has biases on Q, K and V, which are zero here."""
    kind = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    layer = nn.TransformerEncoderLayer(width, heads, mlp_ratio * width, **kind)
    names = {"self_attn.out_proj": block.out, "linear1": block.mlp[0], "linear2": block.mlp[2]}
    names |= {"norm1": block.norm_attention, "norm2": block.norm_mlp}
    state = {
        f"{name}.{part}": getattr(ours, part) for name, ours in names.items() for part in ("weight", "bias")
    }
    state["self_attn.in_proj_weight"] = block.qkv.weight
    layer.load_state_dict({**state, "self_attn.in_proj_bias": torch.zeros(3 * width)})
    return layer


@pytest.mark.parametrize("heads, mlp_ratio", [(4, 4), (1, 2)])
def test_a_block_is_torchs_transformer_layer(paper, monkeypatch, heads, mlp_ratio):
    monkeypatch.setattr(paper, "HEADS", heads)
    monkeypatch.setattr(paper, "MLP_RATIO", mlp_ratio)
    block, x = uneven(paper.Block(16)), noise(3, 7, 16)
    layer = torch_layer(block, 16, heads, mlp_ratio)
    torch.testing.assert_close(block(x), layer(x), atol=1e-5, rtol=1e-5)


def test_the_decoder_is_a_plain_transformer_over_the_grid(script):
    """Written anew: every hidden token is the mask vector, every visible one what the encoder made of it."""
    decoder = uneven(script.Decoder(SMALL, 8))
    visible_at, hidden_at, hidden = masked(script, 2, replace(SMALL, ratio=0.7))
    encoded = noise(2, 1 + visible_at.shape[1], 8)
    x = decoder.mask.expand(2, 16, 8).clone()
    x[~hidden] = encoded[:, 1:].flatten(0, 1)
    x = torch.cat([encoded[:, :1], x], 1) + decoder.positions
    for block in decoder.blocks:
        x = torch_layer(block, 8, 2, 2)(x)
    torch.testing.assert_close(decoder(encoded, visible_at, hidden_at), x[:, 1:], atol=1e-5, rtol=1e-5)


def test_the_encoder_is_a_plain_transformer_on_the_visible_tokens(script):
    encoder, codes = uneven(script.VQMAE(SMALL)).encoder, codes_of(2)
    visible_at, _, hidden = masked(script, 2, replace(SMALL, strategy="patch-f"))
    tokens = script.tokens_of(codes, SMALL)
    x = encoder.embed.table[tokens].flatten(2) + encoder.positions
    x = x[~hidden].view(2, -1, encoder.width)
    x = torch.cat([encoder.cls.expand(2, 1, -1), x], 1)
    for block in encoder.blocks:
        x = torch_layer(block, encoder.width, 2, 2)(x)
    expected = F.layer_norm(x, (encoder.width,), encoder.norm.weight, encoder.norm.bias)
    torch.testing.assert_close(encoder(tokens, visible_at), expected, atol=1e-4, rtol=1e-4)
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(encoder(tokens), encoder(tokens, everything), atol=1e-5, rtol=1e-5)


# ---- VQ-MAE-S ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, millions",
    [
        ({"code_width": 4}, 5.05),  # Table 3
        ({}, 19.9),
        ({"code_width": 16}, 79.2),
        ({"depth": 6}, 12.5),  # Table 4
        ({"depth": 16}, 24.9),
        ({"depth": 20}, 29.8),
        ({"strategy": "frame", "t": 1, "d": 64}, 50.6),  # authors' code
    ],
)
def test_parameters_of_the_paper(paper, changes, millions):
    with torch.device("meta"):
        assert count_parameters(paper.VQMAE(replace(PAPER, **changes))) == pytest.approx(
            1e6 * millions, rel=0.01
        )


def test_frames_at_equal_parameters(paper, script):
    """Two projections bring tokens of a frame, 512 wide, to the width of the patches' model."""
    with torch.device("meta"):
        frames, patches = paper.VQMAE(replace(FRAMES, width=320)), paper.VQMAE(PAPER)
    assert isinstance(patches.project, nn.Identity)
    assert count_parameters(frames) == pytest.approx(count_parameters(patches), rel=0.02)
    network = replace(SMALL, strategy="frame", t=1, d=8, width=10)
    small, codes = script.VQMAE(network), codes_of(2, network)
    visible_at, hidden_at, _ = masked(script, 2, network)
    assert small.encoder(script.tokens_of(codes, network)).shape == (2, 13, 10)
    small(codes, visible_at, hidden_at)["loss"].backward()
    assert small.reconstruct(codes, visible_at, hidden_at).shape == codes.shape


def test_the_embedding_starts_from_the_codebook_and_may_be_held(script, monkeypatch):
    codebook = noise(K, 4)
    for train in (True, False):
        monkeypatch.setattr(script, "TRAIN_CODEBOOK", train)
        model = script.VQMAE(SMALL, codebook)
        assert torch.equal(model.encoder.embed.table, codebook)
        model(codes_of(2), *masked(script, 2)[:2])["loss"].backward()
        assert (model.encoder.embed.table.grad is not None) == train
    with torch.no_grad():
        script.VQMAE(SMALL, codebook).encoder.embed.table.zero_()
    assert codebook.abs().sum() > 0, "the model has changed the VQ-VAE's codebook"
    assert script.VQMAE(SMALL, noise(K, 5)).encoder.embed.table.shape == (K, 4)


def test_a_model_depends_on_its_seed_alone(script, monkeypatch):
    first = script.build_network(SMALL).state_dict()
    torch.rand(3)
    second = script.build_network(SMALL).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    monkeypatch.setattr(script, "SEEDS", (1,))
    assert not torch.equal(first["head.weight"], script.build_network(SMALL).state_dict()["head.weight"])


@pytest.mark.parametrize(
    "network",
    [
        SMALL,
        replace(SMALL, n_frames=20, t=5, d=4, depth=1),
        replace(SMALL, n_frames=40, n_rows=16, t=20, d=8, width=16, depth=3, strategy="patch-t"),
        replace(SMALL, strategy="patch-f"),
    ],
    ids=lambda network: network.slug(),
)
def test_what_is_hidden_is_not_read_and_what_is_visible_is(script, network):
    model, codes = uneven(script.VQMAE(network)), codes_of(2, network)
    visible_at, hidden_at, hidden = masked(script, 2, network)
    is_hidden = script.unpatchify(hidden[..., None].expand(-1, -1, network.t * network.d), network)
    other = (codes + 1) % K
    changed = codes, torch.where(is_hidden, other, codes), torch.where(is_hidden, codes, other)
    found = [model.logits(model.decode(script.tokens_of(x, network), visible_at, hidden_at)) for x in changed]
    assert found[0].shape == (*hidden_at.shape, network.t * network.d, K)
    assert torch.equal(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-3


def test_equation_1_is_the_mean_over_all_hidden_indices(script):
    network = replace(SMALL, strategy="patch-f")
    model, codes = uneven(script.VQMAE(network)), codes_of(3)
    visible_at, hidden_at, hidden = masked(script, 3, network)
    tokens = script.tokens_of(codes, network)
    target = tokens[hidden]
    assert target.numel() == 3 * 2 * 4 * 6  # samples, rows hidden of 4, columns, codes of a token
    logits = model.logits(model.decode(tokens, visible_at, hidden_at)).view(-1, 6, K)
    log_p = logits.log_softmax(2).gather(2, target[..., None])
    assert list(model.train()(codes, visible_at, hidden_at)) == ["loss"]
    found = model.eval()(codes, visible_at, hidden_at)
    torch.testing.assert_close(found["loss"], -log_p.mean())
    assert found["codes_found"].item() == pytest.approx((logits.argmax(2) == target).float().mean().item())


def test_a_large_batch_keeps_no_logits_and_has_the_same_gradients(script, monkeypatch):
    """512 crops have 5 GB of logits: made again in parts for the gradients, they are never held at once."""
    codes, at = codes_of(6), masked(script, 6)[:2]
    n_logits = 6 * 8 * 6  # samples, hidden tokens, codes of each

    def step(at_once):
        """Loss, gradients, and whether logits were kept for them."""
        monkeypatch.setattr(script, "LOSS_CROPS", at_once)
        kept, model = [], script.build_network(SMALL)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
            loss = model(codes, *at)["loss"]
        loss.backward()
        return (n_logits, K) in kept, loss, model.head.weight.grad, model.encoder.embed.table.grad

    (whole_kept, *whole), (parts_kept, *parts) = step(64), step(4)
    assert whole_kept and not parts_kept
    torch.testing.assert_close(whole, parts)


def test_reconstruction_changes_hidden_codes_only(script):
    network = replace(SMALL, strategy="patch-t")
    model, codes = uneven(script.VQMAE(network)).eval(), codes_of(4)
    visible_at, hidden_at, hidden = masked(script, 4, network)
    rebuilt = model.reconstruct(codes, visible_at, hidden_at)
    assert rebuilt.dtype == torch.uint8
    tokens, before = (script.tokens_of(x, network) for x in (rebuilt, codes))
    assert torch.equal(tokens[~hidden], before[~hidden])
    right = (tokens[hidden] == before[hidden]).float().mean().item()
    assert right == pytest.approx(model(codes, visible_at, hidden_at)["codes_found"].item()) and right < 0.5


def train(parameters, loss, steps, rate):
    optimizer = torch.optim.AdamW(parameters, rate)
    for step in range(steps):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()


def test_it_learns_eight_samples(script):
    """New masks at every step: the visible tokens must tell which of the eight samples it is."""
    model, codes = build(0, script.VQMAE, SMALL), codes_of(8)
    loss = lambda step: model(codes, *masked(script, 8, seed=step)[:2])["loss"]  # noqa: E731
    train(model.parameters(), loss, 600, 3e-3)
    at = masked(script, 8, seed=9999)[:2]
    assert model.eval()(codes, *at)["codes_found"] > 0.98
    assert (model.reconstruct(codes, *at) == codes).float().mean() > 0.98


# ---- Heads ---------------------------------------------------------------------------------

HEADS = ("cls", "query2emo", "mean", "row")


def classifier(script, head, freeze=False, network=SMALL, n_classes=3):
    encoder = script.build_network(network).encoder
    return build(1, script.EmotionClassifier, encoder, head, n_classes, freeze)


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_train_or_hold_the_encoder(script, head):
    assert set(script.CLASSIFICATION_HEADS) == set(HEADS)
    for freeze in (False, True):
        model = classifier(script, head, freeze).train()
        logits = model(codes_of(5))
        assert logits.shape == (5, 3)
        F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1])).backward()
        assert all(p.grad.abs().sum() > 0 for p in model.head.parameters() if p.ndim > 1)
        assert {p.grad is None for p in model.encoder.parameters()} == {freeze}


def test_cls_is_a_linear_layer_on_the_first_token(script):
    model, codes = classifier(script, "cls"), codes_of(2)
    encoded = model.encoder(script.tokens_of(codes, SMALL))
    torch.testing.assert_close(model(codes), F.linear(encoded[:, 0], model.head.weight, model.head.bias))


def test_emotion_from_the_mean_of_tokens_by_hand(script):
    """Values are standardised over the batch in training, by what was kept in evaluation; CLS has no part."""
    model, x = classifier(script, "mean"), codes_of(6)
    encoded = model.encoder(script.tokens_of(x, SMALL))[:, 1:].mean(1)
    norm, linear = model.head.norm, model.head.linear
    standard = (encoded - encoded.mean(0)) / (encoded.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(model.train()(x), standard @ linear.weight.T + linear.bias)
    kept = (encoded - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(model.eval()(x), kept @ linear.weight.T + linear.bias)
    torch.testing.assert_close(model.train()(x[:1]), model.eval()(x[:1]))  # one sample has no variance


def test_emotion_from_rows_by_hand(script):
    """Mean and sd over time of the tokens of each row; a frame is one row."""
    model, x = classifier(script, "row").eval(), codes_of(3)
    tokens = model.encoder(script.tokens_of(x, SMALL))[:, 1:].view(3, 4, 4, -1).detach().numpy()
    read = np.stack([tokens.mean(1), tokens.std(1)], 1).reshape(3, -1)
    assert model.head.linear.in_features == read.shape[1] == 2 * 4 * SMALL.units
    torch.testing.assert_close(model(x), model.head.linear(torch.from_numpy(read)), atol=1e-4, rtol=1e-4)
    frames = classifier(script, "row", network=replace(SMALL, strategy="frame", t=1, d=8))
    assert frames.head.linear.in_features == 2 * 8 * 4


def test_cross_entropy_instead_of_the_asymmetric_loss(script, monkeypatch):
    logits, labels = 3 * noise(20, 5), torch.arange(20) % 5
    expected = F.cross_entropy(logits, labels, label_smoothing=script.SMOOTHING)
    assert abs(script.asymmetric_loss(logits, labels) - expected) > 0.1
    monkeypatch.setattr(script, "LOSS", "cross_entropy")
    torch.testing.assert_close(script.asymmetric_loss(logits, labels), expected)


def test_query2emo_has_one_query_and_one_logit_per_class(script, monkeypatch):
    """Classes trade places with their queries and weights, and every token is looked at."""
    monkeypatch.setattr(script, "QUERY_BLOCKS", (1, 2))
    head = uneven(script.Query2Emo(replace(SMALL, width=8), 3)).eval()
    x = noise(2, 5, 8).requires_grad_()
    logits = head(x)
    logits.square().sum().backward()
    assert (x.grad.abs().sum((0, 2)) > 0).all()
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in (head.queries, head.weight, head.bias):
            parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(head(x), logits[:, order], atol=1e-5, rtol=1e-5)
    assert (head(x) - head(x[:, [0, 2, 1, 3, 4]])).abs().max() > 1e-4, "positions of tokens are lost"
    assert (len(head.encoder.layers), len(head.decoder.layers)) == (1, 2)


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_learn_eight_samples(script, head):
    model, codes, labels = classifier(script, head, n_classes=4), codes_of(8), torch.arange(8) % 4
    train(model.parameters(), lambda _: script.asymmetric_loss(model(codes), labels), 60, 3e-3)
    assert torch.equal(model(codes).argmax(1), labels)


# ---- Asymmetric loss -----------------------------------------------------------------------


def set_loss(monkeypatch, script, gamma_pos, gamma_neg, smoothing):
    for name, value in (("GAMMA_POS", gamma_pos), ("GAMMA_NEG", gamma_neg), ("SMOOTHING", smoothing)):
        monkeypatch.setattr(script, name, value)


def test_asymmetric_loss_by_hand(script, monkeypatch):
    """p = (1/2, 1/4, 1/4), label 0, gammas 1 and 2, smoothing 0.3: y = (0.8, 0.1, 0.1).

    0.8 (1 - 1/2) ln 2 + 2 * 0.1 (1/4)^2 ln 4 = 0.4 ln 2 + 0.025 ln 2
    """
    set_loss(monkeypatch, script, 1, 2, 0.3)
    found = script.asymmetric_loss(torch.tensor([[2.0, 1.0, 1.0]]).log(), torch.tensor([0]))
    assert found.item() == pytest.approx(0.425 * 0.693147, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_asymmetric_loss_without_focus_is_cross_entropy(script, monkeypatch, smoothing):
    logits, labels = 3 * noise(20, 5), torch.arange(20) % 5
    set_loss(monkeypatch, script, 0, 0, smoothing)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(script.asymmetric_loss(logits, labels), expected)


def test_asymmetric_loss_stays_finite_when_sure(script):
    logits = torch.tensor([[300.0, -300, 0], [-300, 300, 0]], requires_grad=True)
    loss = script.asymmetric_loss(logits, torch.tensor([0, 0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


# ---- SpecMAE -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["specmae", "specmae-log"])
def test_specmae_loss_of_one_patch_by_hand(script, kind):
    """With no weights at its end it predicts its bias: the loss is its distance to the hidden patch."""
    network = replace(SPECTRUM, kind=kind)
    model = script.build_network(network)
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    power = torch.zeros(1, 4, 6)
    power[0, 2:, :3] = torch.tensor([[1.0, 10, 100], [1000, 1e4, 1e5]])  # the third patch
    expected = [0, 1, 2, 3, 4, 5] if kind == "specmae-log" else [1, 10, 100, 1e3, 1e4, 1e5]
    wanted = sum((x - y) ** 2 for x, y in zip(expected, range(1, 7), strict=True)) / 6
    found = model(power, torch.tensor([[0, 1, 3]]), torch.tensor([[2]]))["loss"]
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    lowest = script.tokens_of(torch.zeros(1, 4, 6), network).unique().item()
    assert lowest == pytest.approx(np.log10(script.POWER_FLOOR) if kind == "specmae-log" else 0)


def test_specmae_reads_the_visible_patches_only_and_learns(script):
    model, power = script.build_network(SPECTRUM), noise(8, 4, 6).square()
    changed, visible_at = power.clone(), torch.tensor([[0, 1]] * 8)
    changed[:, 2:] += 1  # the third and the fourth patch
    encoded = [model.encoder(script.tokens_of(x, SPECTRUM), visible_at) for x in (power, changed, power + 1)]
    assert encoded[0].shape == (8, 3, 8) and torch.equal(encoded[0], encoded[1])
    assert not torch.allclose(encoded[0], encoded[2])
    loss = lambda step: model(power, *masked(script, 8, SPECTRUM, step)[:2])["loss"]  # noqa: E731
    before = loss(999).item()
    train(model.parameters(), loss, 200, 1e-2)
    assert loss(999).item() < before / 4


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_on_specmaes_encoder(script, head):
    model = classifier(script, head, network=replace(SPECTRUM, kind="specmae-log"))
    assert model(noise(2, 4, 6).square()).shape == (2, 3)


def test_specmae_under_fp16_holds_the_power_of_loud_speech(script):
    """A full-scale tone has 65,536, more than fp16's largest number: the layers at its ends stay in fp32."""
    model, power = script.build_network(SPECTRUM), torch.full((4, 4, 6), 2.6e5)
    with torch.autocast("cpu", torch.float16):
        loss = model(power, *masked(script, 4, SPECTRUM)[:2])["loss"]
        logits = classifier(script, "cls", network=SPECTRUM)(power)
    (loss * 2**-16).backward()  # the scale that a GradScaler comes to
    assert torch.isfinite(loss) and torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_sizes_of_the_authors_specmae(paper):
    with torch.device("meta"):
        model = paper.SpecMAE(SPECTRA)
    assert model.encoder.positions.shape == (380, 320) and model.head.out_features == 270
