"""The networks of Sadok et al. against torch's own layers and losses, the paper's parameter counts, hand-worked
numbers, and their promises: what is hidden is not read, all of it counts, each can learn eight samples."""

from dataclasses import replace

import pytest
import torch
from networks import noise, seeded, uneven
from torch import nn
from torch.nn import functional as F

from common.errors import UserError
from common.sadok import vqmae as sadok_vqmae
from common.sadok.vqmae import (
    HEADS,
    POWER_FLOOR,
    VQMAE,
    Block,
    Decoder,
    EmotionClassifier,
    Grid,
    Linear,
    LinearCrossEntropy,
    Query2Emo,
    Sizes,
    SpecMAE,
    asymmetric_loss,
    build,
    count_parameters,
    mask_tokens,
    patchify,
    places,
    sinusoidal,
    unpatchify,
)

PAPER = Grid(200, 64, 10, 4)
SMALL = Grid(12, 8, 3, 2)  # 4 x 4 tokens of 6 codes
SIZES = Sizes(width=0, depth=2, decoder_depth=2, heads=2, mlp_ratio=2)
K, E = 16, 4  # codes and their width in the small models
STRATEGY_GRIDS = [
    ("patch-tf", PAPER),
    ("patch-t", PAPER),
    ("patch-f", PAPER),
    ("frame", Grid(200, 64, 1, 64)),
    ("patch-tf", Grid(200, 64, 20, 8)),
    ("patch-t", Grid(200, 64, 10, 16)),
    ("patch-tf", Grid(200, 513, 10, 27)),
]


def codes_of(n, grid=SMALL, n_codes=K, seed=0):
    return torch.randint(n_codes, (n, grid.n_frames, grid.codes_per_frame), generator=seeded(seed)).to(
        torch.uint8
    )


def vqmae(grid=SMALL, sizes=SIZES, codebook=None, train_codebook=True):
    return build(0, VQMAE, grid, K, E, sizes, codebook, train_codebook)


# ---- Tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid",
    [
        PAPER,
        Grid(200, 64, 5, 4),
        Grid(200, 64, 20, 8),
        Grid(200, 64, 10, 16),
        Grid(200, 64, 1, 64),
        Grid(200, 513, 10, 27),
        SMALL,
    ],
)
def test_unpatchify_is_the_inverse_of_patchify(grid):
    x = torch.arange(2 * grid.n_frames * grid.codes_per_frame).view(2, grid.n_frames, grid.codes_per_frame)
    tokens = patchify(x, grid)
    assert tokens.shape == (2, grid.n_time * grid.n_freq, grid.t * grid.d)
    assert torch.equal(unpatchify(tokens, grid), x)


def test_tokens_are_patches_in_time_major_order():
    """A 4 x 4 array in patches of 2 x 2, written down by hand."""
    tokens = patchify(torch.arange(16).view(1, 4, 4), Grid(4, 4, 2, 2))
    assert tokens.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_sizes_that_do_not_fit_are_refused():
    for sizes in ((200, 64, 7, 4), (200, 64, 10, 5), (200, 64, 0, 4)):
        with pytest.raises(UserError, match="does not divide.*choose one of"):
            Grid(*sizes)
    with pytest.raises(ValueError, match="200, 64"):
        patchify(torch.zeros(2, 100, 64), PAPER)
    with pytest.raises(UserError, match="model width 6: 4 attention heads"):
        build(0, VQMAE, Grid(4, 4, 1, 2), K, 3, replace(SIZES, heads=4), None, True)
    with pytest.raises(UserError, match="model width 24: 5 heads of Query2Emo"):
        Query2Emo(24, 3, (1, 1), 5, 2)


# ---- Masking -------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("strategy, grid", STRATEGY_GRIDS)
def test_exactly_the_wanted_tokens_are_hidden(strategy, grid, ratio):
    hidden = mask_tokens(grid, strategy, ratio, 6, seeded())
    assert hidden.shape == (6, grid.n_tokens) and hidden.dtype == torch.bool
    cells = hidden.view(6, grid.n_time, grid.n_freq)
    if strategy == "patch-t":
        assert torch.equal(cells.all(2), cells.any(2))
        assert cells.all(2).sum(1).tolist() == [round(ratio * grid.n_time)] * 6
    elif strategy == "patch-f":
        assert torch.equal(cells.all(1), cells.any(1))
        assert cells.all(1).sum(1).tolist() == [round(ratio * grid.n_freq)] * 6
    else:
        assert hidden.sum(1).tolist() == [round(ratio * grid.n_tokens)] * 6
    assert len({tuple(row) for row in hidden.tolist()}) > 1, "all samples hide the same"
    assert torch.equal(hidden, mask_tokens(grid, strategy, ratio, 6, seeded()))
    assert not torch.equal(hidden, mask_tokens(grid, strategy, ratio, 6, seeded(1)))


def test_counts_of_the_paper():
    counts = {
        strategy: int(mask_tokens(grid, strategy, 0.8, 1, seeded()).sum())
        for strategy, grid in STRATEGY_GRIDS[:4]
    }
    assert counts == {"patch-tf": 256, "patch-t": 16 * 16, "patch-f": 13 * 20, "frame": 160}


@pytest.mark.parametrize(
    "strategy, grid",
    [("patch-tf", SMALL), ("patch-t", SMALL), ("patch-f", SMALL), ("frame", Grid(12, 8, 1, 8))],
)
def test_every_token_is_hidden_equally_often(strategy, grid):
    share = mask_tokens(grid, strategy, 0.5, 4000, seeded()).float().mean(0)
    assert (share - 0.5).abs().max() < 0.04  # five standard errors


def test_masks_that_make_no_sense_are_refused():
    for ratio, strategy in (
        (0.01, "patch-t"),
        (0.99, "patch-f"),
        (0.0, "frame"),
        (1.0, "patch-tf"),
        (1.3, "patch-tf"),
    ):
        with pytest.raises(UserError, match=f"masking ratio {ratio}"):
            mask_tokens(Grid(200, 64, 1, 64) if strategy == "frame" else PAPER, strategy, ratio, 1, seeded())
    with pytest.raises(UserError, match=r"set their size to \(1, 64\)"):
        mask_tokens(PAPER, "frame", 0.8, 1, seeded())
    with pytest.raises(UserError, match="unknown"):
        mask_tokens(PAPER, "patch", 0.8, 1, seeded())


def test_places_are_those_of_the_mask():
    hidden = torch.tensor([[True, False, True, False], [False, False, True, True]])
    visible_at, hidden_at = places(hidden, "cpu")
    assert visible_at.tolist() == [[1, 3], [0, 1]] and hidden_at.tolist() == [[0, 2], [2, 3]]
    for bad in ([[True, False], [True, True]], [[False, False]], [[True, True]]):
        with pytest.raises(ValueError, match="every sample must hide as many"):
            places(torch.tensor(bad), "cpu")


# ---- Blocks --------------------------------------------------------------------------------


def torch_layer(block, width, mlp_ratio):
    """torch's own layer with the block's weights; it has biases on Q, K and V, which are zero here."""
    layer = nn.TransformerEncoderLayer(
        width,
        block.heads,
        mlp_ratio * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    first, _, second = block.mlp
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([block.query.weight, block.key_value.weight]),
            "self_attn.in_proj_bias": torch.zeros(3 * width),
            **{
                f"{theirs}.{part}": getattr(ours, part)
                for theirs, ours in (
                    ("self_attn.out_proj", block.out),
                    ("linear1", first),
                    ("linear2", second),
                    ("norm1", block.norm_attention),
                    ("norm2", block.norm_mlp),
                )
                for part in ("weight", "bias")
            },
        }
    )
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_samples", [1, 3])
def test_linear_is_torchs_with_its_gradients(bias, n_samples):
    theirs, ours = nn.Linear(16, 24, bias), Linear(16, 24, bias)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (ours, theirs):
        x = noise(n_samples, 9, 16).requires_grad_()
        y = layer(x[:, 2:])  # not contiguous
        (y * noise(*y.shape, seed=1)).sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads, mlp_ratio", [(4, 4), (1, 2)])
def test_a_block_is_torchs_transformer_layer(heads, mlp_ratio):
    block, x = uneven(Block(16, heads, mlp_ratio)), noise(3, 7, 16)
    torch.testing.assert_close(block(x, 7), torch_layer(block, 16, mlp_ratio)(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_last", [1, 3, 7])
def test_the_last_tokens_are_the_same_when_only_they_are_wanted(n_last):
    block, x = uneven(Block(16, 4, 4)), noise(3, 7, 16)
    torch.testing.assert_close(block(x, n_last), block(x, 7)[:, -n_last:], atol=1e-5, rtol=1e-5)


def test_the_decoder_is_a_plain_transformer_over_the_grid():
    """Written anew in the order of the grid, with all tokens through every block and none left out at the end."""
    decoder = uneven(Decoder(SMALL, 8, replace(SIZES, decoder_depth=3)))
    hidden = mask_tokens(SMALL, "patch-tf", 0.7, 2, seeded())
    visible_at, hidden_at = places(hidden, "cpu")
    encoded = noise(2, 1 + visible_at.shape[1], 8)
    x = decoder.mask.expand(2, SMALL.n_tokens, 8).clone()
    x[~hidden] = encoded[:, 1:].flatten(0, 1)
    x = torch.cat([encoded[:, :1], x], 1) + decoder.positions
    for block in decoder.blocks:
        x = torch_layer(block, 8, 2)(x)
    expected = x[:, 1:][hidden].view(2, -1, 8)
    torch.testing.assert_close(decoder(encoded, visible_at, hidden_at), expected, atol=1e-5, rtol=1e-5)


def test_the_encoder_is_a_plain_transformer_on_the_visible_tokens():
    model, codes = uneven(vqmae()), codes_of(2)
    encoder, hidden = model.encoder, mask_tokens(SMALL, "patch-f", 0.5, 2, seeded())
    x = torch.stack(
        [
            torch.cat([encoder.embed.table[code] for code in token])
            for sample in patchify(codes.long(), SMALL)
            for token in sample
        ]
    ).view(2, SMALL.n_tokens, -1)
    x = (x + encoder.positions)[~hidden].view(2, -1, encoder.width)
    x = torch.cat([encoder.cls.expand(2, 1, -1), x], 1)
    for block in encoder.blocks:
        x = torch_layer(block, encoder.width, 2)(x)
    expected = F.layer_norm(x, (encoder.width,), encoder.norm.weight, encoder.norm.bias)
    found = encoder(encoder.tokens(codes), places(hidden, "cpu")[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    everything = torch.arange(SMALL.n_tokens).expand(2, -1)
    torch.testing.assert_close(
        encoder.encode(codes), encoder(encoder.tokens(codes), everything), atol=1e-5, rtol=1e-5
    )


# ---- VQ-MAE-S ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid, code_width, depth, millions",
    [
        (PAPER, 4, 12, 5.05),
        (PAPER, 8, 12, 19.9),
        (PAPER, 16, 12, 79.2),  # Table 3
        (PAPER, 8, 6, 12.5),
        (PAPER, 8, 16, 24.9),
        (PAPER, 8, 20, 29.8),  # Table 4
        (Grid(200, 64, 1, 64), 8, 12, 50.6),
    ],
)  # frames, authors' code
def test_parameters_of_the_paper(grid, code_width, depth, millions):
    with torch.device("meta"):
        model = VQMAE(grid, 256, code_width, Sizes(0, depth, 4, 4, 4), None, True)
    assert count_parameters(model) == pytest.approx(1e6 * millions, rel=0.01)


def test_frames_at_equal_parameters():
    """Two projections bring tokens of a frame, 512 wide, to the width of the patches' model."""
    with torch.device("meta"):
        frames = VQMAE(Grid(200, 64, 1, 64), 256, 8, Sizes(320, 12, 4, 4, 4), None, True)
        patches = VQMAE(PAPER, 256, 8, Sizes(320, 12, 4, 4, 4), None, True)
    assert isinstance(patches.project, nn.Identity)
    assert count_parameters(frames) == pytest.approx(count_parameters(patches), rel=0.02)
    codes, hidden = codes_of(2, Grid(12, 8, 1, 8)), mask_tokens(Grid(12, 8, 1, 8), "frame", 0.5, 2, seeded())
    small = vqmae(Grid(12, 8, 1, 8), replace(SIZES, width=10))
    assert small.encoder.encode(codes).shape == (2, 13, 10)
    small(codes, hidden)["loss"].backward()
    assert small.reconstruct(codes, hidden).shape == codes.shape


def test_the_embedding_starts_from_the_codebook_and_may_be_held():
    codebook = noise(K, E)
    for train in (True, False):
        model = vqmae(codebook=codebook, train_codebook=train)
        assert torch.equal(model.encoder.embed.table, codebook)
        model(codes_of(2), mask_tokens(SMALL, "patch-tf", 0.5, 2, seeded()))["loss"].backward()
        assert (model.encoder.embed.table.grad is not None) == train
    with torch.no_grad():
        vqmae(codebook=codebook).encoder.embed.table.zero_()
    assert codebook.abs().sum() > 0, "the model has changed the VQ-VAE's codebook"
    assert vqmae(codebook=noise(K, E + 1)).encoder.embed.table.shape == (K, E)


def test_a_model_depends_on_its_seed_alone():
    first, state = vqmae().state_dict(), torch.get_rng_state()
    torch.rand(3)
    second = vqmae().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build(1, VQMAE, SMALL, K, E, SIZES, None, True).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    "grid, sizes",
    [(SMALL, SIZES), (Grid(20, 8, 5, 4), Sizes(0, 1, 1, 4, 4)), (Grid(40, 16, 20, 8), Sizes(16, 3, 2, 4, 1))],
)
@pytest.mark.parametrize("strategy", ["patch-tf", "patch-t"])
def test_what_is_hidden_is_not_read_and_what_is_visible_is(grid, sizes, strategy):
    model, codes = uneven(vqmae(grid, sizes)), codes_of(2, grid)
    hidden = mask_tokens(grid, strategy, 0.5, 2, seeded())
    is_hidden = unpatchify(hidden[..., None].expand(-1, -1, grid.token_size), grid)
    predicted = [
        model.predict(model.encoder.tokens(x), hidden)[0]
        for x in (
            codes,
            torch.where(is_hidden, (codes + 1) % K, codes),
            torch.where(is_hidden, codes, (codes + 1) % K),
        )
    ]
    assert len(predicted[0]) == hidden.sum() * grid.token_size
    assert torch.equal(predicted[0], predicted[1])
    assert (predicted[0] - predicted[2]).abs().max() > 1e-3


def test_equation_1_is_the_mean_over_all_hidden_indices():
    model, codes = uneven(vqmae()), codes_of(3)
    hidden = mask_tokens(SMALL, "patch-f", 0.5, 3, seeded())
    tokens = patchify(codes.long(), SMALL)
    slices, _ = model.predict(tokens, hidden)
    target = tokens[hidden].flatten()
    assert len(target) == 3 * 2 * 4 * 6  # samples, rows hidden of 4, columns, codes of a token
    logits = model.head(slices)
    found = model(codes, hidden)
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, target))
    assert found["accuracy"].item() == pytest.approx((logits.argmax(1) == target).float().mean().item())


@pytest.mark.parametrize("rows", [7, 1000])  # of 50: with a shorter last part, and all at once
def test_the_loss_in_parts_has_the_gradients_of_cross_entropy(rows, monkeypatch):
    monkeypatch.setattr(sadok_vqmae, "CPU_ROWS", rows)
    target, results = torch.randint(9, (50,), generator=seeded()), []
    for ours in (True, False):
        parts = [noise(*shape).double().requires_grad_() for shape in ((50, 4), (9, 4), (9,))]
        plain = F.cross_entropy(F.linear(*parts), target, reduction="sum")
        loss = LinearCrossEntropy.apply(*parts, target)[0] if ours else plain
        (3 * loss).backward()
        results.append([loss.detach().float()] + [part.grad.float() for part in parts])
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_reconstruction_changes_hidden_codes_only():
    model, codes = uneven(vqmae()), codes_of(4)
    hidden = mask_tokens(SMALL, "patch-t", 0.5, 4, seeded())
    rebuilt = model.reconstruct(codes, hidden)
    assert rebuilt.dtype == torch.uint8
    tokens, before = patchify(rebuilt.long(), SMALL), patchify(codes.long(), SMALL)
    assert torch.equal(tokens[~hidden], before[~hidden])
    right = (tokens[hidden] == before[hidden]).float().mean().item()
    assert right == pytest.approx(model(codes, hidden)["accuracy"].item()) and right < 0.5


def train(parameters, loss, steps, rate):
    optimizer = torch.optim.AdamW(parameters, rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_it_learns_eight_samples():
    """New masks at every step: the visible tokens must tell which of the eight samples it is."""
    model, codes, generator = vqmae(), codes_of(8), seeded()

    def loss():
        return model(codes, mask_tokens(SMALL, "patch-tf", 0.5, 8, generator))["loss"]

    train(model.parameters(), loss, 800, 5e-3)
    hidden = mask_tokens(SMALL, "patch-tf", 0.5, 8, seeded(99))
    assert model(codes, hidden)["accuracy"] > 0.98
    assert (model.reconstruct(codes, hidden) == codes).float().mean() > 0.98


# ---- Heads ---------------------------------------------------------------------------------


def classifier(head, freeze=False, encoder=None, n_classes=3, query_blocks=(1, 2)):
    return build(
        1, EmotionClassifier, encoder or vqmae().encoder, head, n_classes, freeze, query_blocks, 2, 2
    )


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_train_or_hold_the_encoder(head):
    for freeze in (False, True):
        model = classifier(head, freeze).train()
        logits = model(codes_of(5))
        assert logits.shape == (5, 3)
        F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1])).backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in model.head.parameters() if p.ndim > 1
        )
        assert {p.grad is None for p in model.encoder.parameters()} == {freeze}
        assert model.encoder.training != freeze and model.head.training
    with pytest.raises(UserError, match="head 'CLS': unknown"):
        classifier("CLS")


def test_cls_is_a_linear_layer_on_the_first_token():
    model, codes = classifier("cls"), codes_of(2)
    torch.testing.assert_close(
        model(codes), model.encoder.encode(codes)[:, 0] @ model.head.weight.T + model.head.bias
    )


def test_emotion_from_the_mean_of_tokens_by_hand():
    """CLS has no part in it; values are standardised over the batch in training, by what was kept in evaluation."""
    model, x = classifier("mean"), codes_of(6)
    encoded = model.encoder.encode(x)[:, 1:].mean(1)
    norm, linear = model.head
    standard = (encoded - encoded.mean(0)) / (encoded.var(0, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(model.train()(x), standard @ linear.weight.T + linear.bias)
    kept = (encoded - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(model.eval()(x), kept @ linear.weight.T + linear.bias)
    torch.testing.assert_close(model.train()(x[:1]), model.eval()(x[:1]))  # one sample has no variance


def test_query2emo_has_one_query_and_one_logit_per_class():
    """Classes trade places with their queries and weights, and every token is looked at."""
    head, x = uneven(Query2Emo(8, 3, (1, 2), 2, 2)).eval(), noise(2, 5, 8).requires_grad_()
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


def test_sinusoidal_positions_by_hand():
    found = sinusoidal(2, 4, "cpu")
    expected = torch.tensor(
        [[0.0, 1.0, 0.0, 1.0], [0.841471, 0.540302, 0.0099998, 0.99995]]
    )  # rates 1 and 1/100
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_learn_eight_samples(head):
    model, codes, labels = classifier(head, n_classes=4), codes_of(8), torch.arange(8) % 4
    train(model.parameters(), lambda: asymmetric_loss(model(codes), labels, 0, 4, 0.1), 60, 3e-3)
    assert torch.equal(model(codes).argmax(1), labels)


# ---- Asymmetric loss -----------------------------------------------------------------------


def test_asymmetric_loss_by_hand():
    """p = (1/2, 1/4, 1/4), label 0, gammas 1 and 2, smoothing 0.3: y = (0.8, 0.1, 0.1).

    0.8 (1 - 1/2) ln 2 + 2 * 0.1 (1/4)^2 ln 4 = 0.4 ln 2 + 0.025 ln 2
    """
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    found = asymmetric_loss(logits, torch.tensor([0]), 1, 2, 0.3)
    assert found.item() == pytest.approx(0.425 * 0.693147, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_asymmetric_loss_without_focus_is_cross_entropy(smoothing):
    logits, labels = 3 * noise(20, 5), torch.arange(20) % 5
    torch.testing.assert_close(
        asymmetric_loss(logits, labels, 0, 0, smoothing),
        F.cross_entropy(logits, labels, label_smoothing=smoothing),
    )
    assert asymmetric_loss(logits, labels, 0, 4, 0.1) < F.cross_entropy(logits, labels, label_smoothing=0.1)


def test_asymmetric_loss_stays_finite_when_sure():
    logits = torch.tensor([[300.0, -300, 0], [-300, 300, 0]], requires_grad=True)
    loss = asymmetric_loss(logits, torch.tensor([0, 0]), 0, 4, 0.1)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


# ---- SpecMAE -------------------------------------------------------------------------------

SPECTRUM = Grid(4, 6, 2, 3)  # 2 x 2 patches of 6 powers


@pytest.mark.parametrize("log", [False, True])
def test_specmae_loss_of_one_patch_by_hand(log):
    """With no weights at its end it predicts its bias; the loss is its mean squared distance to the hidden patch."""
    model = build(0, SpecMAE, SPECTRUM, replace(SIZES, width=8), log)
    nn.init.zeros_(model.head.weight)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, 2, 3, 4, 5, 6]))
    power = torch.zeros(1, 4, 6)
    power[0, 2:, :3] = torch.tensor([[1.0, 10, 100], [1000, 1e4, 1e5]])  # the third patch
    hidden = torch.tensor([[False, False, True, False]])
    expected = [0, 1, 2, 3, 4, 5] if log else [1, 10, 100, 1e3, 1e4, 1e5]
    wanted = sum((x - y) ** 2 for x, y in zip(expected, range(1, 7))) / 6
    assert model(power, hidden)["loss"].item() == pytest.approx(wanted, rel=1e-5)
    lowest = model.encoder.tokens(torch.zeros(1, 4, 6)).unique().item()
    assert lowest == pytest.approx(torch.tensor(POWER_FLOOR).log10().item() if log else 0)


def test_specmae_reads_the_visible_patches_only_and_learns():
    model, generator = build(0, SpecMAE, SPECTRUM, replace(SIZES, width=8), False), seeded()
    power = noise(8, 4, 6).square()
    changed, at = power.clone(), places(torch.tensor([[False, False, True, True]] * 8), "cpu")
    changed[:, 2:] += 1  # the third and the fourth patch
    encoded = [model.encoder(model.encoder.tokens(x), at[0]) for x in (power, changed, power + 1)]
    assert encoded[0].shape == (8, 3, 8) and torch.equal(encoded[0], encoded[1])
    assert not torch.allclose(encoded[0], encoded[2])

    def loss(generator=generator):
        return model(power, mask_tokens(SPECTRUM, "patch-tf", 0.5, 8, generator))["loss"]

    before = loss(seeded(9)).item()
    train(model.parameters(), loss, 200, 1e-2)
    assert loss(seeded(9)).item() < before / 4


@pytest.mark.parametrize("head", HEADS)
def test_classifiers_on_specmaes_encoder(head):
    encoder = build(0, SpecMAE, SPECTRUM, replace(SIZES, width=8), True).encoder
    assert classifier(head, encoder=encoder)(noise(2, 4, 6).square()).shape == (2, 3)


def test_sizes_of_the_authors_specmae():
    with torch.device("meta"):
        model = SpecMAE(Grid(200, 513, 10, 27), Sizes(320, 12, 4, 4, 4), False)
    assert model.encoder.positions.shape == (380, 320) and model.head.out_features == 270
    with pytest.raises(UserError, match="model width 270"):
        SpecMAE(Grid(200, 513, 10, 27), Sizes(0, 12, 4, 4, 4), False)
