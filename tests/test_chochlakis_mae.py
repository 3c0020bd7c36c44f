"""06's method against torch's own layers, a plain masked autoencoder written by loops over samples, numpy,
and hand-worked numbers; and its promises: what is hidden is never read, exact counts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load_script
from networks import noise, seeded, uneven
from torch import nn
from torch.nn import functional as F

from common.chochlakis import imputation
from common.chochlakis.backbones import load_cavmae
from common.chochlakis.clips import Part
from common.files import UserError
from common.layers import build, count_parameters, sinusoidal
from common.manifest import Turn
from common.training import make_accelerator

pytestmark = pytest.mark.usefixtures("one_thread")

D, N = 6, 5
SMALL = {"MAE_WIDTH": 16, "MAE_DEPTH": 2, "MAE_JOINT_DEPTH": 1, "MAE_HEADS": 4, "MLP_RATIO": 2}
SMALL |= {"DECODER_WIDTH": 8, "DECODER_DEPTH": 2, "DECODER_HEADS": 2, "GRU_WIDTH": 4}
CHANGED = {}  # what tests/test_gpu_rules.py puts in place of the script's own in small_seed
PAPER = load_script("06_mae_imputation.py")  # with its defaults, CAV-MAE's sizes
script = load_script("06_mae_imputation.py")
vars(script).update(SMALL)
# Recordings of five clips: nothing hidden, ragged counts, no audio, no video, nothing at all, one clip of
# either.
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
NOTHING = torch.zeros_like(GAPS)


def impute_zeros(x, hidden, mean):
    return script.impute_constant(x, hidden, torch.zeros_like(mean))


def impute_last(x, hidden, mean):
    return imputation.impute_in_time(x, hidden, mean, share=0.0)


IMPUTERS = (impute_zeros, script.impute_constant, impute_last, imputation.impute_in_time)


def features(n, n_clips=N, seed=0):
    """Features (n, 2, N, D) of unequal scale, as those of a backbone are."""
    return 5 + torch.linspace(0.1, 30, D) * noise(n, 2, n_clips, D, seed=seed)


def impute(model, x, hidden):
    return model.impute(x, hidden, script.visible_first(hidden))


def loss_of(model, x, lost, missing):
    hidden = lost | missing
    return model(x, hidden, script.visible_first(hidden), lost & ~missing)


def avmae(x=None):
    model, x = uneven(build(0, script.AVMAE, D)), features(20, seed=7) if x is None else x
    model.standardise(x, torch.zeros(x.shape[:3], dtype=torch.bool))
    return model


def masks(n_samples, n_clips, n_hidden, seed=0):
    return script.draw_masks(n_samples, n_clips, n_hidden, 1, seeded(seed))[0]


# ---- Which clips are lost ------------------------------------------------------------------


@pytest.mark.parametrize("n_hidden", [0, 1, 7, 9, 10])
def test_exactly_as_many_clips_are_lost_as_asked_for(n_hidden):
    hidden = script.draw_masks(40, 10, n_hidden, 3, seeded())
    assert hidden.shape == (3, 40, 2, 10) and hidden.dtype == torch.bool
    assert (hidden.sum(3) == n_hidden).all()
    assert torch.equal(hidden, script.draw_masks(40, 10, n_hidden, 3, seeded()))


def test_masks_differ_between_recordings_masks_and_modalities():
    hidden = script.draw_masks(2000, 5, 2, 2, seeded()).float()
    assert (hidden.mean((0, 1)) - 0.4).abs().max() < 0.03  # every clip as often: four standard errors
    audio, video = hidden[0, :, 0], hidden[0, :, 1]
    for other in (video, hidden[1, :, 0], audio.roll(1, 0)):
        both = (audio[:, :, None] * other[:, None, :]).mean(
            0
        )  # independent: 0.4 * 0.4 for every pair of clips
        assert (both - 0.16).abs().max() < 0.035


def test_counts_of_every_recording_can_differ():
    counts = torch.arange(12).view(3, 4) % 6
    hidden = script.draw_masks(4, 5, counts, 3, seeded())
    assert torch.equal(hidden.sum(3), counts[..., None].expand(-1, -1, 2))
    counts = script.draw_mixture(500, 10, (4, 7), 2, seeded()).sum(3)
    assert torch.equal(counts[..., 0], counts[..., 1]) and set(counts.unique().tolist()) == {4, 7}
    assert (((counts == 4).float().mean((1, 2)) - 0.5).abs() < 0.1).all()  # in either mask


def test_the_curriculum_goes_from_one_clip_to_all_but_one():
    found = [script.n_hidden_at(epoch, 5, 10) for epoch in (0, 4, 5, 9, 10, 39, 40, 45, 49)]
    assert found == [1, 1, 2, 2, 3, 8, 9, 9, 9]
    found = [script.n_hidden_at(epoch, 10, 5) for epoch in (0, 9, 10, 29, 30, 39, 49)]
    assert found == [1, 1, 2, 3, 4, 4, 4]


def test_counts_nearest_to_a_share():
    """Section 4.4: 70 % of ten clips are seven; of five, 3.5, halves upwards."""
    shares = ((0.7, 10), (0.7, 5), (0.4, 10), ("0.4", 5), (0.01, 10), (0.99, 10), (0.5, 5))
    assert [script.count_of(share, n) for share, n in shares] == [7, 4, 4, 2, 1, 9, 3]
    assert script.mixtures(5) == ["2", "4", "2+4"] and script.mixtures(10) == ["4", "7", "4+7"]


def test_masks_of_the_test_are_exact_and_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(script, "N_MASKS", 2)
    found, again = script.draw_test_masks(11, 5), script.draw_test_masks(11, 5)
    assert list(found) == [1, 2, 3, 4] and found[2].shape == (2, 11, 2, 5)
    for k, hidden in found.items():
        assert (hidden.sum(3) == k).all() and torch.equal(hidden, again[k])
    assert not torch.equal(*found[2])  # one mask and the other


# ---- The network against a plain one -------------------------------------------------------


def torch_layer(weights, heads):
    """torch's own layer with the weights of one block, named as in CAV-MAE."""
    width, hidden = weights["norm1.weight"].shape[0], weights["mlp.fc1.weight"].shape[0]
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    layer = nn.TransformerEncoderLayer(width, heads, hidden, **options)
    theirs = {"self_attn.in_proj_weight": "attn.qkv.weight", "self_attn.in_proj_bias": "attn.qkv.bias"}
    names = {"self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}
    for ours, name in {**names, "norm1": "norm1", "norm2": "norm2"}.items():
        theirs |= {f"{ours}.{part}": f"{name}.{part}" for part in ("weight", "bias")}
    layer.load_state_dict({ours: weights[name] for ours, name in theirs.items()})
    return layer


def run_blocks(checkpoint, prefix, x, heads):
    """All blocks `prefix`.0, .1, ... of a checkpoint of CAV-MAE, one sample x (S, w)."""
    number = 0
    while f"module.{prefix}.{number}.norm1.weight" in checkpoint:
        start = f"module.{prefix}.{number}."
        weights = {name.removeprefix(start): w for name, w in checkpoint.items() if name.startswith(start)}
        x = torch_layer(weights, heads)(x[None])[0]
        number += 1
    return x


def norm(checkpoint, name, x):
    parts = (checkpoint[f"module.{name}.{part}"] for part in ("weight", "bias"))
    return F.layer_norm(x, x.shape[-1:], *parts)


def plain_encoder(model, checkpoint, x, hidden):
    """The visible clips of one sample, x (2, N, D), hidden (2, N), in CAV-MAE's weights -> (V_a + V_v, w)."""
    tokens, positions = [], sinusoidal(x.shape[1], 16, "cpu")
    for m, letter in enumerate("av"):
        embed, seen = getattr(model, f"embed_{letter}"), [n for n in range(x.shape[1]) if not hidden[m, n]]
        modality = checkpoint[f"module.modality_{letter}"][0, 0]
        if seen:
            part = torch.stack([embed.weight @ x[m, n] + embed.bias + positions[n] + modality for n in seen])
            tokens.append(run_blocks(checkpoint, f"blocks_{letter}", part, 4))
    if not tokens:
        return torch.zeros(0, 16)
    return norm(checkpoint, "norm", run_blocks(checkpoint, "blocks_u", torch.cat(tokens), 4))


def plain_prediction(model, checkpoint, x, hidden):
    """All clips of one sample as the decoder makes them -> (2, N, D)."""
    encoded = iter(plain_encoder(model, checkpoint, x, hidden))
    positions, tokens = sinusoidal(x.shape[1], 8, "cpu"), []
    embed = [checkpoint[f"module.decoder_embed.{part}"] for part in ("weight", "bias")]
    for m, letter in enumerate("av"):
        for n in range(x.shape[1]):
            mask = checkpoint["module.mask_token"][0, 0]
            token = mask if hidden[m, n] else F.linear(next(encoded), *embed)
            tokens.append(token + positions[n] + checkpoint[f"module.decoder_modality_{letter}"][0, 0])
    tokens = run_blocks(checkpoint, "decoder_blocks", torch.stack(tokens), 2)
    audio, video = norm(checkpoint, "decoder_norm", tokens).chunk(2)
    return torch.stack([model.output_a(audio), model.output_v(video)])


def cavmae_shapes(c):
    """The names and shapes of all tensors in a checkpoint of CAV-MAE, of the sizes of a script."""
    w, d = c.MAE_WIDTH, c.DECODER_WIDTH
    layers = {"patch_embed_a.proj": (w, 1, 16, 16), "patch_embed_v.proj": (w, 3, 16, 16)}
    layers |= {"decoder_embed": (d, w), "decoder_norm": (d,), "norm": (w,), "norm_a": (w,), "norm_v": (w,)}
    layers |= {"decoder_pred_a": (256, d), "decoder_pred_v": (768, d)}
    stacks = {"blocks_a": (c.MAE_DEPTH, w), "blocks_v": (c.MAE_DEPTH, w), "blocks_u": (c.MAE_JOINT_DEPTH, w)}
    stacks["decoder_blocks"] = (c.DECODER_DEPTH, d)
    for name, (depth, width) in stacks.items():
        block = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        block |= {"mlp.fc1": (c.MLP_RATIO * width, width), "mlp.fc2": (width, c.MLP_RATIO * width)}
        block |= {f"norm{i}{end}": (width,) for i in (1, 2) for end in ("", "_a", "_v")}
        layers |= {f"{name}.{i}.{part}": shape for i in range(depth) for part, shape in block.items()}
    shapes = {f"module.{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"module.{name}.bias": shape[:1] for name, shape in layers.items()}
    for start, width in (("", w), ("decoder_", d)):
        shapes |= {f"module.{start}modality_{letter}": (1, 1, width) for letter in "av"}
        shapes |= {f"module.{start}pos_embed_{x}": (1, n, width) for x, n in (("a", 512), ("v", 196))}
    return shapes | {"module.mask_token": (1, 1, d)}


def cavmae_checkpoint(seed=3):
    generator = seeded(seed)
    return {n: 0.3 * torch.randn(shape, generator=generator) for n, shape in cavmae_shapes(script).items()}


@pytest.mark.parametrize("heads", [4, 1])
def test_a_block_is_torchs_transformer_layer(heads):
    block, x = uneven(script.Block(16, heads)), noise(3, 7, 16)
    theirs = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    weights = {}
    for name, tensor in block.state_dict().items():
        layer, part = name.split(".")
        weights[f"{theirs.get(layer, layer)}.{part}"] = tensor
    lost = torch.arange(7) >= torch.tensor([[7], [3], [1]])
    found, expected = block(x, ~lost), torch_layer(weights, heads)(x, src_key_padding_mask=lost)
    torch.testing.assert_close(found[~lost], expected[~lost], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [GAPS, GAPS[1:2], GAPS[2:3], GAPS[4:5], masks(6, 5, 3), masks(6, 5, 4)])
def test_encoder_and_decoder_are_plain_ones_on_the_visible_clips(tmp_path, hidden):
    """Uniform and ragged masks, a modality or all of it hidden, against a loop over samples without
    padding.
    """
    checkpoint, model = cavmae_checkpoint(), uneven(build(0, script.AVMAE, D))
    torch.save(checkpoint, tmp_path / "cavmae.pth")
    load_cavmae(model, tmp_path / "cavmae.pth")
    x = noise(len(hidden), 2, N, D)  # the model's mean is 0, its deviation 1
    at = script.visible_first(hidden)
    encoded = model.encode(x.masked_fill(hidden[..., None], 0.0), hidden, at)
    predicted = model.predict(x, hidden, at)
    assert encoded.shape[1] == 2 * (~hidden).sum(2).amax().clamp(min=1)
    for sample in range(len(hidden)):
        found = encoded[sample][~hidden[sample].gather(1, at[sample]).flatten()]
        expected = plain_encoder(model, checkpoint, x[sample], hidden[sample])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
        expected = plain_prediction(model, checkpoint, x[sample], hidden[sample])
        torch.testing.assert_close(predicted[sample], expected, atol=5e-5, rtol=1e-4)


def test_visible_clips_come_first_in_their_order():
    at = script.visible_first(GAPS[1:4])
    assert at[:, 0].tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [0, 1, 2, 4]]
    assert at[:, 1].tolist() == [[0, 1, 3, 4], [0, 2, 1, 3], [0, 1, 2, 3]]
    assert script.visible_first(GAPS[4:5]).shape == (1, 2, 1)


def test_parameters_at_the_papers_size():
    """190.1 M are CAV-MAE's; here its patch layers and contrastive norms are gone, and clips have small
    layers.

    A block has 12 w^2 + 13 w. Besides: last norms, the layer between the widths, one mask and four modality
    vectors, and the layers that read and write clips.
    """
    with torch.device("meta"):
        model = PAPER.AVMAE(512)
    blocks = 23 * (12 * 768**2 + 13 * 768) + 8 * (12 * 512**2 + 13 * 512)
    others = 2 * (768 + 512) + 768 * 512 + 512 + 512 + 2 * (768 + 512)
    assert count_parameters(model) == blocks + others + 2 * (512 * 768 + 768) + 2 * (512 * 512 + 512)
    assert count_parameters(model) == 189_952_768


# ---- Loss and imputation -------------------------------------------------------------------


def test_features_are_standardised_per_modality_and_dimension():
    x, missing = features(20), torch.zeros(20, 2, N, dtype=torch.bool)
    x[:, 1, :, 2] = 4.0  # a feature that never varies
    model = avmae(x)
    np.testing.assert_allclose(model.mean[:, 0], x.numpy().mean((0, 2)), rtol=1e-5)
    expected = x.numpy().std((0, 2))
    np.testing.assert_allclose(model.std[:, 0], np.where(expected > 1e-6, expected, 1), rtol=1e-5)
    missing[3:, 0, 1:], missing[:, 1] = True, True
    model.standardise(x.masked_fill(missing[..., None], torch.nan), missing)
    seen = x[:, 0][~missing[:, 0]]
    torch.testing.assert_close(model.mean[0, 0], seen.mean(0))
    torch.testing.assert_close(model.std[0, 0], seen.std(0, correction=0))
    assert torch.isfinite(model.mean).all() and torch.isfinite(model.std).all()


def constant_outputs(model, values):
    for layer, value in zip((model.output_a, model.output_v), values):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, value)


def test_the_loss_is_that_of_hidden_clips_by_hand():
    """With no weights at its end the model predicts a bias; audio hides three clips, video one."""
    model, nothing = avmae(), torch.zeros(2, 2, N, dtype=torch.bool)
    constant_outputs(model, (0.0, 1.0))
    hidden = nothing.clone()
    hidden[0, 0, [1, 4]], hidden[1, 0, 0], hidden[1, 1, 2] = True, True, True
    x = features(2)
    z = (x - model.mean) / model.std
    audio = torch.stack([z[0, 0, 1], z[0, 0, 4], z[1, 0, 0]]).square().mean()
    video = (z[1, 1, 2] - 1).square().mean()
    torch.testing.assert_close(loss_of(model, x, hidden, nothing), audio + video)
    hidden[:, 1] = False
    torch.testing.assert_close(loss_of(model, x, hidden, nothing), audio)
    assert loss_of(model, x, nothing, nothing) == 0


def test_missing_clips_are_hidden_and_not_learned():
    model, x = avmae(), features(3)
    hidden, missing = masks(3, N, 2), torch.zeros(3, 2, N, dtype=torch.bool)
    missing[0, 1], missing[1, 0, :2] = True, True
    z = (x - model.mean) / model.std
    error = (model.predict(x, hidden | missing, script.visible_first(hidden | missing)) - z).square()
    learned = hidden & ~missing
    expected = sum(error[:, m][learned[:, m]].mean() for m in range(2))
    loss = loss_of(model, x.masked_fill(missing[..., None], 1e4), hidden, missing)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert loss_of(model, x, hidden, torch.ones_like(hidden)) == 0


@pytest.mark.parametrize("hidden", [GAPS, GAPS[4:5], GAPS[2:4], GAPS[5:]])
def test_gradients_are_finite_whatever_is_hidden(hidden):
    model = avmae()
    loss = loss_of(model, features(len(hidden)), hidden, torch.zeros_like(hidden))
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30])
def test_imputation_never_reads_what_is_hidden(value):
    """Not in the encoder, the decoder or the statistics; and visible clips come back to the last bit."""
    x, found = features(len(GAPS)), []
    for given in (x, x.masked_fill(GAPS[..., None], value)):
        model = uneven(build(0, script.AVMAE, D))
        model.standardise(given, GAPS)
        found.append(impute(model, given, GAPS))
    assert torch.equal(*found) and torch.isfinite(found[0]).all()
    assert torch.equal(found[0][~GAPS], x[~GAPS]) and (found[0] - x)[GAPS].abs().min() > 0


def test_imputation_reads_every_visible_clip_of_both_modalities():
    model, x = avmae(), features(1)
    hidden = torch.zeros(1, 2, N, dtype=torch.bool)
    hidden[0, 0, 1] = True
    before = impute(model, x, hidden)[0, 0, 1]
    for m, n in np.ndindex(2, N):
        changed = x.clone()
        changed[0, m, n] += 5
        assert torch.equal(impute(model, changed, hidden)[0, 0, 1], before) == bool(hidden[0, m, n])


def test_imputed_features_are_on_the_original_scale():
    model, x = avmae(), features(2)
    constant_outputs(model, (-0.5, 0.5))
    hidden = masks(2, N, 3)
    for m in range(2):
        found = impute(model, x, hidden)[:, m][hidden[:, m]]
        torch.testing.assert_close(found, (model.mean[m] + (m - 0.5) * model.std[m]).expand_as(found))


@pytest.mark.parametrize("batch_size", [1, 4, 512])
def test_many_masks_and_small_batches_are_the_same_as_one_by_one(batch_size):
    model, x = avmae().eval(), features(6)
    hidden = torch.stack([GAPS, script.draw_mixture(6, N, range(N), 1, seeded())[0], NOTHING])
    before = x.clone()
    found = imputation.impute_by_model(make_accelerator("no"), model, batch_size, x, hidden)
    assert found.shape == (3, 6, 2, N, D) and torch.equal(x, before), "the caller's features have changed"
    for mask, sample in np.ndindex(3, 6):
        alone = impute(model, x[sample : sample + 1], hidden[mask, sample : sample + 1])[0]
        torch.testing.assert_close(found[mask, sample], alone, atol=1e-3, rtol=1e-4)


def test_mixed_precision_is_close():
    model, x = build(0, script.AVMAE, D), features(6)
    model.standardise(x, NOTHING)
    exact = [loss_of(model, x, GAPS, NOTHING), impute(model, x, GAPS)]
    with torch.autocast("cpu", torch.bfloat16):
        rough = [loss_of(model, x, GAPS, NOTHING), impute(model, x, GAPS)]
    assert all(y.dtype == torch.float32 for y in rough)
    torch.testing.assert_close(rough, exact, atol=0.5, rtol=0.05)
    assert torch.equal(rough[1][~GAPS], x[~GAPS])


def train(model, loss, steps, rate):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_it_learns_eight_samples(monkeypatch):
    """New masks at every step: the visible clips must tell which of the eight samples it is."""
    for name, value in {"MAE_WIDTH": 32, "MAE_DEPTH": 1, "DECODER_WIDTH": 16, "DECODER_DEPTH": 1}.items():
        monkeypatch.setattr(script, name, value)
    model, x, generator = build(0, script.AVMAE, D), features(8), seeded()
    missing = torch.zeros(8, 2, N, dtype=torch.bool)
    model.standardise(x, missing)
    train(model, lambda: loss_of(model, x, script.draw_masks(8, N, 3, 1, generator)[0], missing), 400, 5e-3)
    hidden = masks(8, N, 3, seed=99)
    error = ((impute(model, x, hidden) - x) / model.std)[hidden].square().mean()
    assert error < 0.2  # of the 1 that the mean has


# ---- Checkpoints of CAV-MAE ----------------------------------------------------------------


def test_names_of_the_authors_checkpoint(tmp_path):
    """647 tensors, of which 383 have a place in the model of the paper's size; here with few features of
    16.
    """
    sizes = {"MAE_WIDTH": 16, "DECODER_WIDTH": 8, "MAE_HEADS": 4, "DECODER_HEADS": 2}
    deep = load_script("06_mae_imputation.py")
    vars(deep).update(sizes)
    shapes, model = cavmae_shapes(deep), build(0, deep.AVMAE, D)
    assert len(cavmae_shapes(PAPER)) == len(shapes) == 647
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, tmp_path / "audio_model.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_cavmae(model, tmp_path / "audio_model.pth")
    checkpoint, state = torch.load(tmp_path / "audio_model.pth"), model.state_dict()
    names = {n.removeprefix("module.").replace("attn.", "").replace("mlp.", ""): n for n in checkpoint}
    own = [name for name in state if not name.startswith(("embed", "output", "mean", "std"))]
    assert len(own) == 383 and all(torch.equal(state[name], checkpoint[names[name]]) for name in own)
    assert all(torch.equal(state[name], before[name]) for name in set(state) - set(own))
    assert report.startswith("383 tensors of audio_model.pth loaded, skipped 88 of blocks_a, 8 of blocks_u, ")
    assert "2 of decoder_pred_a" in report and "2 of patch_embed_v" in report
    left = "2 of embed_a, 2 of embed_v, 1 of mean, 2 of output_a, 2 of output_v, 1 of std"
    assert report.endswith(f"left as they were: {left}")


def test_a_smaller_model_takes_what_fits(tmp_path, monkeypatch):
    checkpoint = cavmae_checkpoint()
    torch.save(checkpoint, tmp_path / "cavmae.pth")
    monkeypatch.setattr(script, "MAE_DEPTH", 1)
    model = build(0, script.AVMAE, D)
    assert "of blocks_a" in load_cavmae(model, tmp_path / "cavmae.pth")
    assert torch.equal(model.blocks_v[0].fc2.bias, checkpoint["module.blocks_v.0.mlp.fc2.bias"])


def test_files_that_are_no_checkpoint_of_cavmae_are_refused(tmp_path):
    model, path = build(0, script.AVMAE, D), tmp_path / "cavmae.pth"
    with pytest.raises(UserError, match="cavmae.pth: no such file"):
        load_cavmae(model, path)
    contents = ({"epoch": 3, "model": {}}, {"blocks.0.norm1.weight": torch.zeros(16)}, {})
    wide = {n: torch.zeros([2 * size for size in x.shape]) for n, x in cavmae_checkpoint().items()}
    for content in (*contents, nn.Linear(2, 2).state_dict(), wide):
        torch.save(content, path)
        with pytest.raises(
            UserError, match="3 weights are absent .* its sizes in MAE_WIDTH and DECODER_WIDTH"
        ):
            load_cavmae(model, path)


# ---- Classifiers ---------------------------------------------------------------------------


def test_the_linear_classifier_reads_every_clip_alone():
    head, x, labels = (
        uneven(script.LinearClassifier(2 * D, 3)).train(),
        noise(8, N, 2 * D),
        torch.arange(8) % 3,
    )
    clips = x.reshape(-1, 2 * D)
    scaled = (clips - clips.mean(0)) / (clips.var(0, correction=0) + 1e-5).sqrt()
    scaled = scaled * head.norm.weight + head.norm.bias
    logits = (scaled @ head.linear.weight.T + head.linear.bias).view(8, N, 3)
    wanted = -torch.stack([logits[b, n].log_softmax(0)[labels[b]] for b, n in np.ndindex(8, N)]).mean()
    torch.testing.assert_close(script.classifier_loss(head(x), labels), wanted, atol=1e-4, rtol=1e-4)
    expected = sum(head.eval()(x[:, n : n + 1])[:, 0].softmax(1) for n in range(N)) / N
    assert (imputation.classify([head], x[None])[0, 0] == expected.argmax(1).numpy()).all()


def test_the_gru_classifier_reads_the_final_state():
    head, x = uneven(script.GRUClassifier(D, 3)).eval(), noise(6, N, D)
    head.norm.running_mean.uniform_(-1, 1)
    inputs = (x - head.norm.running_mean) / (1 + head.norm.eps) ** 0.5 * head.norm.weight + head.norm.bias
    state, cell = torch.zeros(6, 4), nn.GRUCell(D, 4)
    cell.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in head.gru.state_dict().items()})
    for n in range(N):
        state = cell(inputs[:, n], state)
    expected, labels = head.linear(state), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(head(x)[:, 0], expected, atol=1e-5, rtol=1e-5)
    assert (imputation.classify([head], x[None])[0, 0] == expected.argmax(1).numpy()).all()
    loss = script.classifier_loss(head(x), labels)
    torch.testing.assert_close(loss, F.cross_entropy(expected, labels), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "gru"])
def test_classifiers_learn_eight_samples(monkeypatch, name):
    monkeypatch.setattr(script, "GRU_WIDTH", 16)
    head, x, labels = uneven(script.NETWORKS[name](64, 4)), noise(8, N, 64), torch.arange(8) % 4
    train(head, lambda: script.classifier_loss(head(x), labels), 200, 2e-2)
    several = torch.stack([x, x])
    assert (imputation.classify([head.eval()], several)[0] == labels.numpy()).all()


def test_audio_and_video_stand_side_by_side():
    x = features(4)
    assert torch.equal(imputation.together(x), torch.cat([x[:, 0], x[:, 1]], 2))


# ---- Baselines -----------------------------------------------------------------------------


def test_backoff_by_hand():
    """Three clips: both present, audio lost, both lost. Two masks more: only video lost, and nothing left."""
    both, audio, video = (torch.tensor([[[p, 1 - p]] * 3]) for p in (0.9, 0.6, 0.2))
    hidden = [[[[0, 1, 1], [0, 0, 1]]], [[[0, 0, 0], [1, 1, 0]]], [[[1, 1, 1], [1, 1, 1]]]]
    found = script.backoff(both, audio, video, torch.tensor(hidden).bool(), torch.tensor([0.3, 0.7]))
    assert found.shape == (3, 1, 2)
    assert found[:, 0, 0].tolist() == pytest.approx([(0.9 + 0.2) / 2, (0.6 + 0.6 + 0.9) / 3, 0.3])
    torch.testing.assert_close(found.sum(2), torch.ones(3, 1))


def test_backoff_does_not_read_what_is_hidden():
    prior, parts = torch.full((3,), 1 / 3), [noise(6, N, 3, seed=seed).softmax(2) for seed in range(3)]
    lost_a, lost_v = GAPS[:, 0, :, None], GAPS[:, 1, :, None]
    spoilt = [x.masked_fill(lost, torch.nan) for x, lost in zip(parts, (lost_a | lost_v, lost_a, lost_v))]
    found = script.backoff(*parts, GAPS[None], prior)
    assert torch.equal(found, script.backoff(*spoilt, GAPS[None], prior))
    whole = script.backoff(*parts, NOTHING[None], prior)
    torch.testing.assert_close(whole[0], parts[0].mean(1))


def test_imputation_without_a_model_by_hand():
    """Audio 10 ? ? 40 50, then ? 20 ? ? ?; video ? ? ? ? ?, then 1 2 ? 4 ?, in a single feature."""
    audio = [[10.0, -1, -1, 40, 50], [-1, 20, -1, -1, -1]]
    video = [[-1.0, -1, -1, -1, -1], [1, 2, -1, 4, -1]]
    x = torch.tensor([audio, video]).transpose(0, 1)[..., None]  # (2, 2, 5, 1)
    expected = (
        ([[10, 0, 0, 40, 50], [0, 20, 0, 0, 0]], [[0, 0, 0, 0, 0], [1, 2, 0, 4, 0]]),
        ([[10, 7, 7, 40, 50], [7, 20, 7, 7, 7]], [[9, 9, 9, 9, 9], [1, 2, 9, 4, 9]]),
        ([[10, 10, 10, 40, 50], [20, 20, 20, 20, 20]], [[9, 9, 9, 9, 9], [1, 2, 2, 4, 4]]),
        ([[10, 20, 30, 40, 50], [20, 20, 20, 20, 20]], [[9, 9, 9, 9, 9], [1, 2, 3, 4, 4]]),
    )
    for imputer, wanted in zip(IMPUTERS, expected):
        found = imputer(x, (x[..., 0] < 0)[None], torch.tensor([[7.0], [9.0]]))[0]
        assert found[..., 0].transpose(0, 1).tolist() == list(wanted), imputer.__name__


def test_linear_interpolation_is_numpys():
    x, hidden = features(30, 10), script.draw_mixture(30, 10, range(10), 4, seeded())
    found = imputation.impute_in_time(x, hidden, torch.zeros(2, D))
    for mask, sample, m in np.ndindex(4, 30, 2):
        seen = (~hidden[mask, sample, m]).nonzero()[:, 0]
        for d in range(D):
            wanted = np.interp(np.arange(10), seen, x[sample, m, seen, d])
            np.testing.assert_allclose(found[mask, sample, m, :, d], wanted, atol=1e-4)


@pytest.mark.parametrize("imputer", IMPUTERS)
def test_no_imputer_reads_what_is_hidden(imputer):
    x, mean = features(len(GAPS)), noise(2, D)
    found = imputer(x, GAPS[None], mean)
    for value in (torch.nan, torch.inf):
        again = imputer(x.masked_fill(GAPS[..., None], value), GAPS[None], mean)
        assert torch.equal(again, found) and torch.isfinite(again).all()
        assert torch.equal(again[0][~GAPS], x[~GAPS])
    assert torch.equal(imputer(x, torch.stack([~GAPS, GAPS]), mean)[1], found[0])


# ---- A whole seed --------------------------------------------------------------------------


def part_of(n, seed):
    """A Part of n recordings of two classes whose features tell them apart; the first has no video."""
    labels = torch.arange(n) % 2
    x = noise(n, 2, N, D, seed=seed) + 2 * labels[:, None, None, None]
    missing = torch.zeros(n, 2, N, dtype=torch.bool)
    x[0, 1], missing[0, 1] = 0.0, True
    turns = [Turn(f"{seed}-{i}", "d", i, f"{i % 3}", "", 0.0, 1.0, label="ab"[i % 2]) for i in range(n)]
    return Part(turns, x, missing, labels, {})


def plain_gru(self, x):
    """nn.GRU's forward by linear layers, where there is no fused one: on the devices of test_gpu_rules."""
    state = torch.zeros_like(x[:, 0, :1]).expand(-1, self.hidden_size)
    for clip in x.unbind(1):
        given = F.linear(clip, self.weight_ih_l0, self.bias_ih_l0).chunk(3, 1)
        held = F.linear(state, self.weight_hh_l0, self.bias_hh_l0).chunk(3, 1)
        reset, update = (given[0] + held[0]).sigmoid(), (given[1] + held[1]).sigmoid()
        state = (1 - update) * (given[2] + reset * held[2]).tanh() + update * state
    return None, state[None]


def clips():
    """Audio (B, S) and video (B, F, H, W, 3) of some clips of half a second."""
    video = torch.randint(256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=seeded(1))
    return 0.1 * noise(3, 8000), video


def small_seed(folder, **more):
    """What run_seed of 06 gives on made-up features: (test Part, predictions, errors, imputed features)."""
    c = load_script("06_mae_imputation.py")
    sizes = {
        "MAE_EPOCHS": 4,
        "CLASSIFIER_EPOCHS": 2,
        "FINETUNE_EPOCHS": 2,
        "TRAIN_MASKS": 2,
        "N_MASKS": 2,
        "MAE_BATCH_SIZE": 8,
    }
    sizes |= {"CLASSIFIER_BATCH_SIZE": 8, "CLASSIFIER_LEARNING_RATE": 0.03}
    vars(c).update(SMALL | sizes | {"DATA_ROOT": str(folder), "PRECISION": "no"} | CHANGED | more)
    parts = {"train": part_of(24, 1), "valid": part_of(8, 2), "test": part_of(8, 3)}
    c.read_part = lambda store, turns, classes: parts[turns]
    fold = SimpleNamespace(train="train", valid="valid", test="test")
    return c.run_seed("avid-cma", 0, None, fold, ("a", "b"), "")


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    return small_seed(tmp_path_factory.mktemp("seed"))


def test_a_seed_learns_what_is_easy(seed):
    test, predicted, errors, _ = seed
    assert len(predicted) == 6 + 25 * (N - 1) and len(errors) == 8 * (N - 1) * 2
    right = {key: (labels == test.labels.numpy()).mean() for key, labels in predicted.items()}
    assert np.mean(list(right.values())) > 0.7 and np.isfinite(list(errors.values())).all()


def test_the_recording_that_is_shown_keeps_what_was_not_lost(seed):
    """Of the first, which has no video, sound is "lost"; every method leaves the rest and fills it in."""
    test, _, _, imputed = seed
    lost = np.isnan(imputed.pop("lost")[0])  # (2, N, D)
    assert lost.any(2).sum(1).tolist() == [N // 2, N] and np.array_equal(lost.any(2), lost.all(2))
    for name, (x,) in imputed.items():
        assert np.array_equal(x[~lost], test.x[0].numpy()[~lost]) and np.isfinite(x).all(), name
    assert {"zeros", "ridge", "curri-MAE"} < imputed.keys() and not imputed["zeros"][0][lost].any()


def test_several_classifiers_share_an_autoencoder(seed, tmp_path):
    """Each finds what it finds alone; there is one autoencoder, whose errors are given once."""
    _, both, errors, _ = small_seed(tmp_path, CLASSIFIER_SEEDS=(3, 0))
    _, alone, same, _ = seed
    assert errors == same and both.keys() == alone.keys()
    assert all(np.array_equal(both[key][1:], alone[key]) for key in alone)
    assert any(not np.array_equal(labels[0], labels[1]) for labels in both.values())


def test_ridge_finds_what_depends_linearly_on_what_is_seen():
    """All video is lost, and is a linear function of the audio: ridge recovers it, the mean cannot."""
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(200, 1, D, generator=generator).expand(-1, N, -1)  # the same in all clips
    x = torch.stack([audio, audio @ torch.randn(D, D, generator=generator)], 1)  # (R, 2, N, D)
    train = SimpleNamespace(x=x, missing=torch.zeros(x.shape[:3], dtype=torch.bool))
    mean = x.mean((0, 2))
    hidden = torch.zeros(1, *x.shape[:3], dtype=torch.bool)
    hidden[:, :, 1] = True
    ridge = imputation.fit_ridge(train, hidden, mean)
    found = ridge(x, hidden)
    left = (found[0, :, 1] - x[:, 1]).square().mean() / (mean[1] - x[:, 1]).square().mean()
    assert left < 0.05 and torch.equal(found[0, :, 0], x[:, 0])
    assert torch.equal(ridge(x.masked_fill(hidden[0][..., None], torch.nan), hidden), found)
