"""What Chochlakis et al. do with features of clips, against torch's own layers, a plain masked autoencoder written by
loops over samples, numpy, and hand-worked numbers; and its promises: what is hidden is never read, exact counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import noise, seeded, uneven
from torch import nn
from torch.nn import functional as F

from common.chochlakis import mae as chochlakis_mae
from common.chochlakis.mae import (
    AVMAE,
    Block,
    GRUHead,
    Linear,
    LinearHead,
    Sizes,
    backoff,
    draw_bursts,
    draw_masks,
    draw_mixture,
    impute_last,
    impute_linear,
    impute_mean,
    impute_zeros,
    load_cavmae,
    n_hidden_at,
    overlap,
    own_name,
    visible_first,
)
from common.errors import UserError
from common.sadok.vqmae import build, count_parameters, sinusoidal

pytestmark = pytest.mark.usefixtures("one_thread")

D, N = 6, 5
SIZES = Sizes(
    width=16, depth=2, joint_depth=1, heads=4, decoder_width=8, decoder_depth=2, decoder_heads=2, mlp_ratio=2
)
CAVMAE = Sizes(
    width=768,
    depth=11,
    joint_depth=1,
    heads=12,
    decoder_width=512,
    decoder_depth=8,
    decoder_heads=16,
    mlp_ratio=4,
)
# Recordings of five clips: nothing hidden, ragged counts, no audio, no video, nothing at all, one clip of either left.
GAPS = torch.tensor(
    [
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
        [[1, 0, 0, 1, 0], [0, 0, 1, 0, 0]],
        [[1, 1, 1, 1, 1], [0, 1, 0, 1, 1]],
        [[0, 0, 0, 1, 0], [1, 1, 1, 1, 1]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
        [[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]],
    ]
).bool()
BASELINES = (impute_zeros, impute_mean, impute_last, impute_linear)


def features_of(n, n_clips=N, seed=0):
    """Features of unequal scale, as those of a backbone are: (audio, video)."""
    scale = torch.linspace(0.1, 30, D)
    return [5 + scale * noise(n, n_clips, D, seed=2 * seed + m) for m in range(2)]


def avmae(sizes=SIZES, features=None):
    model = uneven(build(0, AVMAE, D, sizes))
    model.standardise(*(features or features_of(20, seed=7)))
    return model


def spoiled(features, hidden, value):
    """A pair of features in which hidden clips (B, 2, N) have other values."""
    return [x.masked_fill(hidden[:, m, :, None], value) for m, x in enumerate(features)]


# ---- Which clips are lost ------------------------------------------------------------------


@pytest.mark.parametrize("n_audio, n_video", [(0, 0), (1, 1), (9, 9), (10, 10), (7, 2), (0, 10)])
def test_exactly_as_many_clips_are_lost_as_asked_for(n_audio, n_video):
    hidden = draw_masks(40, 10, n_audio, n_video, 3, seeded())
    assert hidden.shape == (3, 40, 2, 10) and hidden.dtype == torch.bool
    assert (hidden.sum(3) == torch.tensor([n_audio, n_video])).all()
    assert torch.equal(hidden, draw_masks(40, 10, n_audio, n_video, 3, seeded()))


def test_masks_differ_between_recordings_masks_and_modalities():
    hidden = draw_masks(2000, 5, 2, 2, 2, seeded()).float()
    assert (hidden.mean((0, 1)) - 0.4).abs().max() < 0.03  # every clip as often: four standard errors
    audio, video = hidden[0, :, 0], hidden[0, :, 1]
    for other in (video, hidden[1, :, 0], audio.roll(1, 0)):
        both = (audio[:, :, None] * other[:, None, :]).mean(
            0
        )  # independent: 0.4 * 0.4 for every pair of clips
        assert (both - 0.16).abs().max() < 0.035


def test_counts_of_every_recording_can_differ():
    counts = torch.arange(12).view(3, 4) % 6
    hidden = draw_masks(4, 5, counts, 5 - counts, 3, seeded())
    assert torch.equal(hidden.sum(3), torch.stack([counts, 5 - counts], 2))
    counts = draw_mixture(500, 10, (4, 7), 2, seeded()).sum(3)
    assert torch.equal(counts[..., 0], counts[..., 1]) and set(counts.unique().tolist()) == {4, 7}
    assert (((counts == 4).float().mean((1, 2)) - 0.5).abs() < 0.1).all()  # in either mask


@pytest.mark.parametrize("count", [-1, 11, 7.5, torch.tensor([3, 12])])
def test_counts_that_make_no_sense_are_refused(count):
    with pytest.raises(UserError, match="whole numbers from 0 to 10"):
        draw_masks(2, 10, count, 1, 1, seeded())
    with pytest.raises(UserError, match="whole numbers from 0 to 10"):
        draw_masks(2, 10, 1, count, 1, seeded())


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("n_hidden", [0, 1, 3, 5])
def test_bursts_are_one_run(n_hidden, together):
    hidden = draw_bursts(400, 5, n_hidden, 2, together, seeded())
    assert hidden.shape == (2, 400, 2, 5) and (hidden.sum(3) == n_hidden).all()
    starts = (hidden.float().diff(dim=3) > 0).sum(3) + hidden[..., 0]
    assert (starts == (n_hidden > 0)).all()
    places = {tuple(row) for row in hidden.flatten(0, 2).tolist()}
    assert len(places) == (6 - n_hidden if n_hidden else 1), "not every place where the run fits"
    if 0 < n_hidden < 5:
        assert torch.equal(hidden[:, :, 0], hidden[:, :, 1]) == together


def test_the_curriculum_goes_from_one_clip_to_all_but_one():
    assert [n_hidden_at(epoch, 5, 10) for epoch in (0, 4, 5, 9, 10, 39, 40, 45, 49)] == [
        1,
        1,
        2,
        2,
        3,
        8,
        9,
        9,
        9,
    ]
    assert [n_hidden_at(epoch, 10, 5) for epoch in (0, 9, 10, 29, 30, 39, 49)] == [1, 1, 2, 3, 4, 4, 4]
    with pytest.raises(UserError, match="two or more"):
        n_hidden_at(0, 5, 1)


# ---- The network against a plain one -------------------------------------------------------


def torch_layer(weights, heads):
    """torch's own layer with the weights of one block, named as in CAV-MAE."""
    width, hidden = weights["norm1.weight"].shape[0], weights["mlp.fc1.weight"].shape[0]
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = {"self_attn.in_proj_weight": "attn.qkv.weight", "self_attn.in_proj_bias": "attn.qkv.bias"}
    for ours, name in (
        ("self_attn.out_proj", "attn.proj"),
        ("linear1", "mlp.fc1"),
        ("linear2", "mlp.fc2"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
    ):
        theirs |= {f"{ours}.{part}": f"{name}.{part}" for part in ("weight", "bias")}
    layer.load_state_dict({ours: weights[name] for ours, name in theirs.items()})
    return layer


def run_blocks(checkpoint, prefix, x, heads):
    """All blocks `prefix`.0, .1, ... of a checkpoint of CAV-MAE, one sample x (S, w)."""
    number = 0
    while f"module.{prefix}.{number}.norm1.weight" in checkpoint:
        start = f"module.{prefix}.{number}."
        x = torch_layer(
            {name.removeprefix(start): w for name, w in checkpoint.items() if name.startswith(start)}, heads
        )(x[None])[0]
        number += 1
    return x


def norm(checkpoint, name, x):
    return F.layer_norm(
        x, x.shape[-1:], checkpoint[f"module.{name}.weight"], checkpoint[f"module.{name}.bias"]
    )


def plain_encoder(model, checkpoint, sizes, x, hidden):
    """The visible clips of one sample, x (2, N, D) and hidden (2, N), in CAV-MAE's weights -> (V_a + V_v, w)."""
    tokens = []
    for m, letter in enumerate("av"):
        seen = [n for n in range(x.shape[1]) if not hidden[m, n]]
        if seen:
            part = torch.stack(
                [
                    model.embed[m].weight @ x[m, n]
                    + model.embed[m].bias
                    + sinusoidal(x.shape[1], sizes.width, "cpu")[n]
                    + checkpoint[f"module.modality_{letter}"][0, 0]
                    for n in seen
                ]
            )
            tokens.append(run_blocks(checkpoint, f"blocks_{letter}", part, sizes.heads))
    if not tokens:
        return torch.zeros(0, sizes.width)
    return norm(checkpoint, "norm", run_blocks(checkpoint, "blocks_u", torch.cat(tokens), sizes.heads))


def plain_prediction(model, checkpoint, sizes, x, hidden):
    """All clips of one sample as the decoder makes them -> (2, N, D)."""
    encoded = iter(plain_encoder(model, checkpoint, sizes, x, hidden))
    positions, tokens = sinusoidal(x.shape[1], sizes.decoder_width, "cpu"), []
    for m, letter in enumerate("av"):
        for n in range(x.shape[1]):
            token = (
                checkpoint["module.mask_token"][0, 0]
                if hidden[m, n]
                else F.linear(
                    next(encoded), *(checkpoint[f"module.decoder_embed.{p}"] for p in ("weight", "bias"))
                )
            )
            tokens.append(token + positions[n] + checkpoint[f"module.decoder_modality_{letter}"][0, 0])
    tokens = run_blocks(checkpoint, "decoder_blocks", torch.stack(tokens), sizes.decoder_heads)
    tokens = norm(checkpoint, "decoder_norm", tokens).unflatten(0, (2, -1))
    return torch.stack([tokens[m] @ model.outputs[m].weight.T + model.outputs[m].bias for m in range(2)])


def block_shapes(prefix, width, mlp_ratio):
    shapes = {f"attn.{part}": (times * width, width) for part, times in (("qkv", 3), ("proj", 1))}
    shapes |= {"mlp.fc1": (mlp_ratio * width, width), "mlp.fc2": (width, mlp_ratio * width)}
    for name in ("norm1", "norm1_a", "norm1_v", "norm2", "norm2_a", "norm2_v"):
        shapes[name] = (width,)
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def cavmae_shapes(sizes):
    """The names and shapes of all tensors in a checkpoint of CAV-MAE of some sizes."""
    w, decoder = sizes.width, sizes.decoder_width
    layers = {
        "patch_embed_a.proj": (w, 1, 16, 16),
        "patch_embed_v.proj": (w, 3, 16, 16),
        "decoder_embed": (decoder, w),
        "decoder_norm": (decoder,),
        "decoder_pred_a": (256, decoder),
        "decoder_pred_v": (768, decoder),
        **{name: (w,) for name in ("norm", "norm_a", "norm_v")},
    }
    for name, depth, width in (
        ("blocks_a", sizes.depth, w),
        ("blocks_v", sizes.depth, w),
        ("blocks_u", sizes.joint_depth, w),
        ("decoder_blocks", sizes.decoder_depth, decoder),
    ):
        for number in range(depth):
            layers |= block_shapes(f"{name}.{number}", width, sizes.mlp_ratio)
    shapes = {f"module.{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"module.{name}.bias": shape[:1] for name, shape in layers.items()}
    for start, width in (("", w), ("decoder_", decoder)):
        shapes |= {f"module.{start}modality_{letter}": (1, 1, width) for letter in "av"}
        shapes |= {
            f"module.{start}pos_embed_a": (1, 512, width),
            f"module.{start}pos_embed_v": (1, 196, width),
        }
    return shapes | {"module.mask_token": (1, 1, decoder)}


def cavmae_checkpoint(sizes, seed=3):
    generator = seeded(seed)
    return {
        name: 0.3 * torch.randn(shape, generator=generator) for name, shape in cavmae_shapes(sizes).items()
    }


def loaded_avmae(folder, sizes=SIZES):
    """A model that has read a checkpoint, and that checkpoint."""
    checkpoint, model = cavmae_checkpoint(sizes), avmae(sizes)
    torch.save(checkpoint, folder / "cavmae.pth")
    load_cavmae(model, folder / "cavmae.pth")
    return model, checkpoint


@pytest.mark.parametrize("heads", [4, 1])
def test_a_block_is_torchs_transformer_layer(heads):
    block, x = uneven(Block(16, heads, 2)), noise(3, 7, 16)
    theirs = {
        "qkv": "attn.qkv",
        "out": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.2": "mlp.fc2",
        "norm_attention": "norm1",
        "norm_mlp": "norm2",
    }
    state = block.state_dict()
    layer = torch_layer(
        {
            f"{name}.{part}": state[f"{ours}.{part}"]
            for ours, name in theirs.items()
            for part in ("weight", "bias")
        },
        heads,
    )
    torch.testing.assert_close(block(x, None), layer(x), atol=1e-5, rtol=1e-5)
    lost = torch.arange(7) >= torch.tensor([[7], [3], [1]])
    found, expected = block(x, ~lost[:, None, None]), layer(x, src_key_padding_mask=lost)
    torch.testing.assert_close(found[~lost], expected[~lost], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_samples, n_tokens", [(1, 9), (7, 5), (33, 5), (64, 2), (64, 9), (48, 10)])
def test_linear_is_torchs_with_its_gradients(n_samples, n_tokens):
    theirs, ours = nn.Linear(16, 24), Linear(16, 24)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (ours, theirs):
        x = noise(n_samples, n_tokens + 2, 16).requires_grad_()
        y = layer(x[:, 2:])  # not contiguous
        (y * noise(*y.shape, seed=1)).sum().backward()
        results.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "hidden",
    [
        GAPS,
        GAPS[1:2],
        GAPS[2:3],
        GAPS[4:5],
        draw_masks(6, 5, 3, 3, 1, seeded())[0],
        draw_masks(6, 5, 4, 1, 1, seeded())[0],
    ],
)
def test_encoder_and_decoder_are_plain_ones_on_the_visible_clips(tmp_path, hidden):
    """Uniform and ragged masks, a modality or all of it hidden, against a loop over samples without any padding."""
    model, checkpoint = loaded_avmae(tmp_path)
    x = noise(len(hidden), 2, N, D)
    encoded, at = model.encode(x.masked_fill(hidden[..., None], 0.0), hidden, *visible_first(hidden, "cpu"))
    predicted = model.predict(x, hidden)
    assert encoded.shape[:2] == at.shape == (len(hidden), (~hidden).sum(2).amax(0).clamp(min=1).sum())
    for sample in range(len(hidden)):
        found = encoded[sample][~hidden[sample].flatten()[at[sample]]]
        expected = plain_encoder(model, checkpoint, SIZES, x[sample], hidden[sample])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        expected = plain_prediction(model, checkpoint, SIZES, x[sample], hidden[sample])
        torch.testing.assert_close(predicted[sample], expected, atol=5e-5, rtol=1e-4)


def test_visible_clips_come_first_in_their_order():
    at, ragged = visible_first(GAPS[1:4], "cpu")
    assert at[0].tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [0, 1, 2, 4]] and ragged
    assert at[1][:2].tolist() == [[0, 1, 3, 4], [0, 2, 1, 3]]
    assert not visible_first(GAPS[1:2], "cpu")[1] and not visible_first(GAPS[:1], "cpu")[1]
    assert visible_first(GAPS[4:5], "cpu")[1], "one clip is read although it is hidden"


def test_attention_is_the_softmax_of_the_paper(monkeypatch):
    """The benchmark's unfused attention is the same function."""

    def unfused(q, k, v, is_key):
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        return (scores if is_key is None else scores.masked_fill(~is_key, -torch.inf)).softmax(3) @ v

    model, features = avmae(), features_of(6)
    fused = model(*features, GAPS)["loss"]
    monkeypatch.setattr(chochlakis_mae, "attention", unfused)
    torch.testing.assert_close(model(*features, GAPS)["loss"], fused)


def test_parameters_at_the_papers_size():
    """190.1 M are CAV-MAE's; here its patch layers and contrastive norms are gone, and clips have small layers.

    A block has 12 w^2 + 13 w. Besides: last norms, the layer between the widths, one mask and four modality vectors,
    and the layers that read and write clips.
    """
    with torch.device("meta"):
        model = AVMAE(512, CAVMAE)
    blocks = 23 * (12 * 768**2 + 13 * 768) + 8 * (12 * 512**2 + 13 * 512)
    others = (
        2 * (768 + 512)
        + 768 * 512
        + 512
        + 512
        + 2 * (768 + 512)
        + 2 * (512 * 768 + 768)
        + 2 * (512 * 512 + 512)
    )
    assert count_parameters(model) == blocks + others == 189_952_768
    with pytest.raises(UserError, match="model width 16: 5 attention heads"):
        Block(16, 5, 4)


# ---- Loss and imputation -------------------------------------------------------------------


def test_features_are_standardised_per_modality_and_dimension():
    features, missing = features_of(20), torch.zeros(20, 2, N, dtype=torch.bool)
    features[1][..., 2] = 4.0  # a feature that never varies
    model = avmae(features=features)
    for m, x in enumerate(features):
        np.testing.assert_allclose(model.mean[m], x.numpy().mean((0, 1)), rtol=1e-5)
        expected = x.numpy().std((0, 1))
        np.testing.assert_allclose(model.std[m], np.where(expected > 1e-6, expected, 1), rtol=1e-5)
    assert model.scale(*features)[:, 1, :, 2].abs().max() == 0
    missing[3:, 0, 1:], missing[:, 1] = True, True
    model.standardise(*features)
    model.standardise(*spoiled(features, missing, torch.nan), missing)
    seen = features[0][~missing[:, 0]]
    torch.testing.assert_close(model.mean[0], seen.mean(0))
    torch.testing.assert_close(model.std[0], seen.std(0, correction=0))
    assert torch.isfinite(model.mean).all() and torch.isfinite(model.std).all()


def test_the_loss_is_that_of_hidden_clips_by_hand():
    """With no weights at its end the model predicts a bias; audio hides three clips, video one."""
    model = avmae()
    for m, head in enumerate(model.outputs):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, float(m))
    hidden = torch.zeros(2, 2, N, dtype=torch.bool)
    hidden[0, 0, [1, 4]], hidden[1, 0, 0], hidden[1, 1, 2] = True, True, True
    features = features_of(2)
    z = [(x - model.mean[m]) / model.std[m] for m, x in enumerate(features)]
    audio = torch.stack([z[0][0, 1], z[0][0, 4], z[0][1, 0]]).square().mean()
    video = (z[1][1, 2] - 1).square().mean()
    torch.testing.assert_close(model(*features, hidden)["loss"], audio + video)
    hidden[:, 1] = False
    torch.testing.assert_close(model(*features, hidden)["loss"], audio)
    assert model(*features, torch.zeros_like(hidden))["loss"] == 0


def test_missing_clips_are_hidden_and_not_learned():
    model, features = avmae(), features_of(3)
    hidden, missing = draw_masks(3, N, 2, 2, 1, seeded())[0], torch.zeros(3, 2, N, dtype=torch.bool)
    missing[0, 1], missing[1, 0, :2] = True, True
    x = model.scale(*features)
    error = (model.predict(x, hidden | missing) - x).square()
    asked = hidden & ~missing
    expected = sum(error[:, m][asked[:, m]].mean() for m in range(2))
    loss = model(*spoiled(features, missing, torch.nan), hidden, missing)["loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    everything = torch.ones_like(hidden)
    assert model(*features, hidden, everything)["loss"] == 0


@pytest.mark.parametrize("hidden", [GAPS, GAPS[4:5], GAPS[2:4], GAPS[5:]])
def test_gradients_are_finite_whatever_is_hidden(hidden):
    model = avmae()
    loss = model(*features_of(len(hidden)), hidden)["loss"]
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30])
def test_imputation_never_reads_what_is_hidden(value, training):
    """Not in the encoder, the decoder or the statistics; and visible clips come back to the last bit."""
    features = features_of(len(GAPS))
    results = []
    for given in (features, spoiled(features, GAPS, value)):
        model = build(0, AVMAE, D, SIZES).train(training)
        uneven(model).standardise(*given, GAPS)
        results.append(model.impute(*given, GAPS))
    for m in range(2):
        assert torch.equal(results[0][m], results[1][m]) and torch.isfinite(results[0][m]).all()
        assert torch.equal(results[0][m][~GAPS[:, m]], features[m][~GAPS[:, m]])
        assert (results[0][m] - features[m])[GAPS[:, m]].abs().min() > 0


def test_imputation_reads_every_visible_clip_of_both_modalities():
    model, features = avmae(), features_of(1)
    hidden = torch.zeros(1, 2, N, dtype=torch.bool)
    hidden[0, 0, 1] = True
    before = model.impute(*features, hidden)[0][0, 1]
    for m in range(2):
        for n in range(N):
            changed = [x.clone() for x in features]
            changed[m][0, n] += 5
            assert torch.equal(model.impute(*changed, hidden)[0][0, 1], before) == bool(hidden[0, m, n])


def test_imputed_features_are_on_the_original_scale():
    model, features = avmae(), features_of(2)
    for m, head in enumerate(model.outputs):
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, m - 0.5)
    hidden = draw_masks(2, N, 2, 3, 1, seeded())[0]
    for m, x in enumerate(model.impute(*features, hidden)):
        expected = (model.mean[m] + (m - 0.5) * model.std[m]).expand_as(x[hidden[:, m]])
        torch.testing.assert_close(x[hidden[:, m]], expected)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_many_masks_and_small_batches_are_the_same_as_one_by_one(batch_size):
    model, features = avmae(), features_of(6)
    hidden = torch.stack([GAPS, draw_mixture(6, N, range(N), 1, seeded())[0], torch.zeros_like(GAPS)])
    before = [x.clone() for x in features]
    found = model.impute(*features, hidden, batch_size)
    assert found[0].shape == found[1].shape == (3, 6, N, D)
    assert all(torch.equal(x, y) for x, y in zip(features, before)), "the caller's features have changed"
    for mask in range(3):
        for sample in range(6):
            alone = model.impute(
                *(x[sample : sample + 1] for x in features), hidden[mask, sample : sample + 1]
            )
            for x, y in zip(found, alone):
                torch.testing.assert_close(x[mask, sample], y[0], atol=1e-3, rtol=1e-4)


def test_mixed_precision_is_close():
    model, features = build(0, AVMAE, D, SIZES), features_of(6)
    model.standardise(*features)
    exact = [model(*features, GAPS)["loss"], *model.impute(*features, GAPS)]
    with torch.autocast("cpu", torch.bfloat16):
        rough = [model(*features, GAPS)["loss"], *model.impute(*features, GAPS)]
    assert all(x.dtype == torch.float32 for x in rough)
    torch.testing.assert_close(rough, exact, atol=0.5, rtol=0.05)
    assert torch.equal(rough[1][~GAPS[:, 0]], features[0][~GAPS[:, 0]])


def train(model, loss, steps, rate):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_it_learns_eight_samples():
    """New masks at every step: the visible clips must tell which of the eight samples it is."""
    sizes = replace(SIZES, width=32, depth=1, decoder_width=16, decoder_depth=1)
    model, features, generator = build(0, AVMAE, D, sizes), features_of(8), seeded()
    model.standardise(*features)
    train(model, lambda: model(*features, draw_masks(8, N, 3, 3, 1, generator)[0])["loss"], 600, 5e-3)
    hidden = draw_masks(8, N, 3, 3, 10, seeded(99))
    for m, x in enumerate(model.impute(*features, hidden)):
        error = ((x - features[m]) / model.std[m])[hidden[:, :, m]].square().mean()
        assert error < 0.1  # of the 1 that the mean has


# ---- Checkpoints of CAV-MAE ----------------------------------------------------------------


def test_names_of_the_authors_checkpoint():
    """647 tensors, of which 383 have a place of the same size in the model of the paper's size."""
    shapes = cavmae_shapes(CAVMAE)
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in AVMAE(512, CAVMAE).state_dict().items()}
    used = {name for name, shape in shapes.items() if own.get(own_name(name)) == shape}
    assert len(shapes) == 647 and len(used) == 383
    assert {own_name(name) for name in used} == {
        name for name in own if not name.startswith(("embed", "outputs", "mean", "std"))
    }


def test_a_checkpoint_of_cavmae_is_loaded(tmp_path):
    sizes = replace(SIZES, depth=11, decoder_depth=8)
    checkpoint, model = cavmae_checkpoint(sizes), avmae(sizes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(checkpoint, tmp_path / "audio_model.pth")
    report = load_cavmae(model, tmp_path / "audio_model.pth")
    state = model.state_dict()
    assert len(report.loaded) == 383 and len(report.skipped) == 264
    assert all(torch.equal(state[own_name(name)], checkpoint[name]) for name in report.loaded)
    assert report.missing == [
        f"{name}.{m}.{part}" for name in ("embed", "outputs") for m in (0, 1) for part in ("bias", "weight")
    ]
    assert all(torch.equal(state[name], before[name]) for name in [*report.missing, "mean", "std"])
    assert str(report) == (
        "383 of 647 tensors of CAV-MAE loaded; skipped: reading of patches (4), prediction of "
        "patches (4), contrastive loss (252), positions of patches (4); left as they were: "
        + ", ".join(report.missing)
    )


def test_a_smaller_model_takes_what_fits(tmp_path):
    torch.save(cavmae_checkpoint(SIZES), tmp_path / "cavmae.pth")
    fewer = replace(SIZES, depth=1, decoder_width=12)
    report = load_cavmae(avmae(fewer), tmp_path / "cavmae.pth")
    assert report.skipped["module.blocks_a.1.attn.qkv.weight"] == "not in the model"
    assert report.skipped["module.decoder_embed.weight"] == "of another size"
    assert "module.blocks_v.0.mlp.fc2.bias" in report.loaded and "decoder_blocks.1.qkv.bias" in report.missing


class Code:
    """Something that would run on loading."""

    def __reduce__(self):
        return pytest.fail, ("code in a checkpoint was run",)


def test_files_that_are_no_checkpoint_of_cavmae_are_refused(tmp_path):
    model, path = avmae(), tmp_path / "cavmae.pth"
    with pytest.raises(UserError, match="cavmae.pth: no such file"):
        load_cavmae(model, path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(UserError, match="cavmae.pth: not a checkpoint of weights") as error:
        load_cavmae(model, path)
    assert "\n" not in str(error.value)
    for content in (b"", b"PK\x03\x04" + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a checkpoint of weights"):
            load_cavmae(model, path)
    torch.save({"weights": Code()}, path)
    with pytest.raises(UserError, match="not a checkpoint of weights"):
        load_cavmae(model, path)
    for content in (
        [torch.zeros(2)],
        {"epoch": 3, "model": {}},
        {"blocks.0.norm1.weight": torch.zeros(16)},
        {},
        nn.Linear(2, 2).state_dict(),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match="not a checkpoint of CAV-MAE"):
            load_cavmae(model, path)
    torch.save(cavmae_checkpoint(replace(SIZES, width=24, decoder_width=12)), path)
    with pytest.raises(UserError, match="sizes"):
        load_cavmae(model, path)


# ---- Classifiers ---------------------------------------------------------------------------


def test_the_linear_head_classifies_every_clip_alone():
    head = uneven(LinearHead(2 * D, 3)).train()
    x, labels = torch.cat(features_of(8), 2), torch.arange(8) % 3
    clips = x.reshape(-1, 2 * D)
    scaled = (clips - clips.mean(0)) / (
        clips.var(0, correction=0) + 1e-5
    ).sqrt() * head.norm.weight + head.norm.bias
    logits = (scaled @ head.linear.weight.T + head.linear.bias).view(8, N, 3)
    wanted = -torch.stack([logits[b, n].log_softmax(0)[labels[b]] for b in range(8) for n in range(N)]).mean()
    torch.testing.assert_close(head.loss(x, labels), wanted, atol=1e-4, rtol=1e-4)
    probabilities = head.eval().predict(x)
    expected = sum(head(x[:, n]).softmax(1) for n in range(N)) / N
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(head.predict(torch.stack([x, x.flip(0)]))[1], expected.flip(0))


def test_the_gru_head_reads_the_final_state():
    head, x = uneven(GRUHead(D, 4, 3)).eval(), noise(6, N, D)
    head.norm.running_mean.uniform_(-1, 1)
    inputs = (x - head.norm.running_mean) / (1 + head.norm.eps) ** 0.5 * head.norm.weight + head.norm.bias
    state, cell = torch.zeros(6, 4), nn.GRUCell(D, 4)
    cell.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in head.gru.state_dict().items()})
    for n in range(N):
        state = cell(inputs[:, n], state)
    expected = head.linear(state)
    torch.testing.assert_close(head(x), expected, atol=1e-5, rtol=1e-5)
    several = head.predict(x.view(2, 3, N, D)).flatten(0, 1)
    torch.testing.assert_close(several, expected.softmax(1), atol=1e-5, rtol=1e-5)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(head.loss(x, labels), F.cross_entropy(expected, labels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", [LinearHead(64, 4), GRUHead(64, 16, 4)])
def test_heads_learn_eight_samples(head):
    x, labels = noise(8, N, 64), torch.arange(8) % 4
    uneven(head)
    train(head, lambda: head.loss(x, labels), 200, 2e-2)
    assert torch.equal(head.eval().predict(x).argmax(1), labels)


# ---- Baselines -----------------------------------------------------------------------------


def test_backoff_by_hand():
    """Three clips: both present, audio lost, both lost. Two masks more: only video lost, and nothing left."""
    both, audio, video = (torch.tensor([[[p, 1 - p]] * 3]) for p in (0.9, 0.6, 0.2))
    hidden = torch.tensor(
        [[[[0, 1, 1], [0, 0, 1]]], [[[0, 0, 0], [1, 1, 0]]], [[[1, 1, 1], [1, 1, 1]]]]
    ).bool()
    found = backoff(both, audio, video, hidden, torch.tensor([0.3, 0.7]))
    assert found.shape == (3, 1, 2)
    assert found[:, 0, 0].tolist() == pytest.approx([(0.9 + 0.2) / 2, (0.6 + 0.6 + 0.9) / 3, 0.3])
    torch.testing.assert_close(found.sum(2), torch.ones(3, 1))
    torch.testing.assert_close(backoff(both, audio, video, hidden[1], torch.tensor([0.3, 0.7])), found[1])


def test_backoff_does_not_read_what_is_hidden():
    prior, parts = torch.full((3,), 1 / 3), [noise(6, N, 3, seed=seed).softmax(2) for seed in range(3)]
    lost_a, lost_v = GAPS[:, 0, :, None], GAPS[:, 1, :, None]
    spoilt = [x.masked_fill(lost, torch.nan) for x, lost in zip(parts, (lost_a | lost_v, lost_a, lost_v))]
    assert torch.equal(backoff(*parts, GAPS, prior), backoff(*spoilt, GAPS, prior))


def test_backoff_with_nothing_hidden_is_the_linear_classifier():
    head, x = uneven(LinearHead(2 * D, 3)).eval(), torch.cat(features_of(4), 2)
    nothing = torch.zeros(4, 2, N, dtype=torch.bool)
    found = backoff(head.clip_probabilities(x), *(torch.zeros(4, N, 3),) * 2, nothing, torch.zeros(3))
    torch.testing.assert_close(found, head.predict(x))


def test_baselines_of_imputation_by_hand():
    """Audio 10 ? ? 40 50, then ? 20 ? ? ?; video ? ? ? ? ?, then 1 2 ? 4 ?, in a single feature."""
    audio = torch.tensor([[10.0, -1, -1, 40, 50], [-1, 20, -1, -1, -1]])[..., None]
    video = torch.tensor([[-1.0, -1, -1, -1, -1], [1, 2, -1, 4, -1]])[..., None]
    hidden = torch.stack([audio[..., 0] < 0, video[..., 0] < 0], 1)
    expected = {
        impute_zeros: ([[10, 0, 0, 40, 50], [0, 20, 0, 0, 0]], [[0, 0, 0, 0, 0], [1, 2, 0, 4, 0]]),
        impute_mean: ([[10, 7, 7, 40, 50], [7, 20, 7, 7, 7]], [[9, 9, 9, 9, 9], [1, 2, 9, 4, 9]]),
        impute_last: ([[10, 10, 10, 40, 50], [20, 20, 20, 20, 20]], [[9, 9, 9, 9, 9], [1, 2, 2, 4, 4]]),
        impute_linear: ([[10, 20, 30, 40, 50], [20, 20, 20, 20, 20]], [[9, 9, 9, 9, 9], [1, 2, 3, 4, 4]]),
    }
    for impute, wanted in expected.items():
        found = impute(audio, video, hidden, torch.tensor([[7.0], [9.0]]))
        assert [x[..., 0].tolist() for x in found] == list(wanted), impute.__name__


def test_linear_interpolation_is_numpys():
    features, hidden = features_of(30, 10), draw_mixture(30, 10, range(10), 4, seeded())
    for m, x in enumerate(impute_linear(*features, hidden, torch.zeros(2, D))):
        for mask in range(4):
            for sample in range(30):
                seen = (~hidden[mask, sample, m]).nonzero()[:, 0]
                for d in range(D):
                    wanted = np.interp(np.arange(10), seen, features[m][sample, seen, d])
                    np.testing.assert_allclose(x[mask, sample, :, d], wanted, atol=1e-4)


@pytest.mark.parametrize("impute", BASELINES)
def test_baselines_never_read_what_is_hidden(impute):
    features, mean = features_of(len(GAPS)), noise(2, D)
    found = impute(*features, GAPS, mean)
    for value in (torch.nan, torch.inf):
        for m, x in enumerate(impute(*spoiled(features, GAPS, value), GAPS, mean)):
            assert torch.equal(x, found[m]) and torch.isfinite(x).all()
            assert torch.equal(x[~GAPS[:, m]], features[m][~GAPS[:, m]])
    many = impute(*features, torch.stack([~GAPS, GAPS]), mean)
    assert all(torch.equal(x[1], y) for x, y in zip(many, found))


def test_the_papers_rule():
    assert [overlap(0.6, 0.05, b, 0.04) for b in (0.5, 0.51, 0.52, 0.6, 0.68, 0.7)] == [
        "win",
        "tie",
        "tie",
        "tie",
        "tie",
        "loss",
    ]
    assert overlap(0.5, 0.0, 0.5, 0.0) == "tie" and overlap(0.75, 0.125, 0.5, 0.125) == "tie"
