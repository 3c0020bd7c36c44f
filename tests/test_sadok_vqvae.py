"""The VQ-VAE: spectrogram, codebook, independence of frames, losses, data, training."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import shared_data
from scipy.signal import stft
from torch import nn

from common.files import UserError
from common.manifest import Turn
from common.media import read_audio, write_wav
from common.sadok import vqvae as vq
from common.sadok.vqvae import VQVAE, Codebook, Frames, power_spectrogram
from common.training import Recipe, make_accelerator

RECIPE = Recipe(3e-3, 3, 4, schedule="cosine", select_by="lowest itakura_saito", seed=5)


def noise(n, seed=0):
    """Samples of noise whose level rises and falls, with a tone in them."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(n) / vq.RATE_HZ
    level = 0.02 + torch.sin(2 * math.pi * (2 + seed) * time).square()
    tone = torch.sin(2 * math.pi * 300 * (1 + seed) * time)
    samples = level * (torch.randn(n, generator=generator) + tone)
    return samples / samples.abs().max()


def divergence(power, reconstruction):
    return vq.itakura_saito(vq.log_power(power), vq.log_power(reconstruction))


def small_model(power, seed=0):
    """A VQ-VAE with weights at random and codes spread over what its encoder makes of `power`."""
    torch.manual_seed(seed)
    model = VQVAE(256, 8)
    model.standardise(power)
    with torch.no_grad():
        model.codebook.vectors.copy_(vq.some_rows(model.embed(power).flatten(0, 1), 256))
    return model.eval()


@pytest.fixture(scope="module")
def power():
    return power_spectrogram(noise(320 * 150))


@pytest.fixture(scope="module")
def model(power):
    return small_model(power)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for k in range(6):
        write_wav(folder / f"{k}.wav", noise(8000 + 700 * k, k).numpy())
    return sorted(folder.glob("*.wav"))


# ---- Power spectrogram


def test_spectrogram_is_scipys():
    samples = noise(5000).double()
    ours = power_spectrogram(samples)
    _, _, theirs = stft(
        samples.numpy(),
        window="hann",
        nperseg=1024,
        noverlap=1024 - 320,
        boundary="zeros",
        padded=True,
        scaling="spectrum",
    )
    theirs = np.abs(theirs * 512).T ** 2  # scipy divides by the window's sum, 512
    assert ours.shape == (1 + 5000 // 320, 513)
    assert np.allclose(ours, theirs[: len(ours)], rtol=1e-9, atol=1e-9)
    assert torch.equal(power_spectrogram(samples, torch.tensor([7, 0, 7])), ours[[7, 0, 7]])


def test_spectrogram_of_a_sine():
    time = torch.arange(16000, dtype=torch.float64) / 16000
    frame = power_spectrogram(torch.sin(2 * math.pi * 1000 * time))[25]  # bin 64 = 1000 Hz
    assert int(frame.argmax()) == 64
    assert float(frame[64]) == pytest.approx((512 / 2) ** 2, rel=1e-6)  # (sum of the window / 2)^2
    assert float(frame[65]) == pytest.approx((256 / 2) ** 2, rel=1e-6)  # next to it: half of it


@pytest.mark.parametrize("n", [1, 319, 320, 512, 513, 1023])
def test_clips_shorter_than_a_window(n):
    found = power_spectrogram(torch.ones(n))
    assert found.shape == (1 + n // 320, 513) and torch.isfinite(found).all()


# ---- Codebook


def two_codes():
    codebook = Codebook(2, 2).train()
    codebook.vectors.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    codebook.counts.copy_(torch.tensor([2.0, 1.0]))
    codebook.sums.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    return codebook


def test_moving_averages_by_hand():
    codebook = two_codes()
    _, codes = codebook(torch.tensor([[1.0, 1.0], [3.0, 1.0], [9.0, 4.0]]))
    assert codes.tolist() == [0, 0, 1]
    counts = [0.99 * 2 + 0.01 * 2, 0.99 * 1 + 0.01 * 1]  # 2, 1
    assert codebook.counts.tolist() == pytest.approx(counts)
    assert codebook.sums.tolist() == [pytest.approx([0.04, 0.02]), pytest.approx([9.99, 0.04])]
    sizes = [(c + 1e-5) / (3 + 2e-5) * 3 for c in counts]
    assert codebook.vectors[0].tolist() == pytest.approx([0.04 / sizes[0], 0.02 / sizes[0]])
    assert codebook.vectors[1].tolist() == pytest.approx([9.99 / sizes[1], 0.04 / sizes[1]])


def test_evaluation_leaves_the_codebook_alone():
    codebook = two_codes().eval()
    before = {name: tensor.clone() for name, tensor in codebook.state_dict().items()}
    codebook(torch.randn(50, 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in codebook.state_dict().items())


def test_unused_code_starts_anew():
    codebook = two_codes()
    codebook.counts[1] = 1e-3
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    codebook(z)
    assert any(torch.allclose(codebook.vectors[1], row, atol=1e-4) for row in z)
    assert float(codebook.counts[1]) == pytest.approx(0.1)  # of a fair share, two vectors over two codes


def test_starts_from_encoder_outputs():
    codebook, z = Codebook(16, 3).train(), torch.randn(400, 3) + 5
    torch.manual_seed(0)
    codebook(z)
    distance = (codebook.vectors[:, None] - z).norm(dim=2).min(1).values
    assert (distance < 1e-3).sum() == 15  # the last one is the mean of all, to which they were assigned
    assert (
        torch.allclose(codebook.vectors[0], z.mean(0), rtol=1e-3) and len(codebook.vectors.unique(dim=0)) > 12
    )


def test_moving_averages_are_of_all_processes(monkeypatch):
    z, codes = torch.randn(20, 2), torch.randint(2, (20,))
    alone, shared = two_codes(), two_codes()
    alone.learn(z, codes)
    count = torch.bincount(codes[12:], minlength=2)[:, None]
    others = torch.cat([count, torch.zeros(2, 2).index_add_(0, codes[12:], z[12:])], 1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(others))
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: None)
    shared.learn(z[:12], codes[:12])
    assert torch.allclose(alone.vectors, shared.vectors) and torch.allclose(alone.counts, shared.counts)


def test_nearest_is_brute_force():
    codebook, z = Codebook(256, 8), torch.randn(5000, 8)
    codebook.vectors.normal_()
    assert torch.equal(codebook.nearest(z), torch.cdist(z.double(), codebook.vectors.double()).argmin(1))


def test_gradient_passes_straight_through():
    codebook = two_codes()
    z = torch.tensor([[1.0, 1.0], [9.0, 4.0]], requires_grad=True)
    quantised, _ = codebook(z)
    assert torch.allclose(quantised, torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    (quantised * weight).sum().backward()
    assert torch.equal(z.grad, weight)


# ---- Network


def test_parameters_and_shapes(power):
    model = VQVAE(256, 8)
    n = sum(p.numel() for p in model.parameters())
    # The authors' 33,305 hold 256 of five batch normalisations, the codebook and its sums
    assert n == 33305 - 256 - 2 * 256 * 8
    z = model.embed(power[:3])
    assert z.shape == (3, 64, 8) and model.reconstruct(z).shape == (3, 513)
    codes = model.encode(power[:3])
    assert codes.shape == (3, 64) and codes.dtype == torch.uint8
    assert model.decode(codes).shape == (3, 513) and (model.decode(codes) > 0).all()
    assert VQVAE(256, 4).embed(power[:3]).shape == (3, 64, 4)
    assert model.encode(power[:0]).shape == (0, 64)


def test_network_is_the_one_of_conv1d(model, power):
    """The row-shaped 2-D convolutions against nn.Conv1d, written out."""
    x = (vq.log_power(power) - model.mean) / model.sd
    x = x[:, None]  # (N, 1, 513)

    def conv1d(layer, x):
        return nn.functional.conv1d(x, layer.weight[:, :, 0], layer.bias, layer.stride[1], layer.padding[1])

    def residual(layer, x):
        return x + conv1d(layer.body[3], conv1d(layer.body[1], x.tanh()).tanh())

    c = model.encoder
    x = conv1d(c[4], conv1d(c[2], conv1d(c[0], x).tanh()).tanh())
    expected = conv1d(c[8], residual(c[6], residual(c[5], x)).tanh()).transpose(1, 2)
    assert torch.allclose(model.embed(power), expected, atol=1e-5)


def same_codes(model, power, codes, other):
    """Codes are equal, but where two codes are nearest within rounding."""
    differ = (codes != other).nonzero()
    z, rounding = model.embed(power), 1e-5 * model.codebook.vectors.var(0).sum()
    for frame, place in differ.tolist():
        distance = (z[frame, place] - model.codebook.vectors).square().sum(1)
        if abs(distance[codes[frame, place].long()] - distance[other[frame, place].long()]) > rounding:
            return False
    return len(differ) <= 1e-4 * codes.numel()


@torch.no_grad()
def check_independence(model, power):
    model.eval()
    whole = model.encode(power)
    assert len(whole.unique()) > 200  # a collapsed codebook would pass what follows
    half = len(power) // 2
    order = torch.randperm(len(power), generator=torch.Generator().manual_seed(0))
    shuffled = torch.empty_like(whole)
    shuffled[order] = model.encode(power[order])
    loud = torch.cat([power, power * 1e4])
    ways = {
        "halves": torch.cat([model.encode(power[:half]), model.encode(power[half:])]),
        "one by one": torch.cat([model.encode(frame[None]) for frame in power]),
        "shuffled": shuffled,
        "among others": model.encode(loud)[: len(power)],
        "in training mode": model.train().encode(power),
    }
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        ways["in a bfloat16 run"] = model.encode(power)
    for way, codes in ways.items():
        assert same_codes(model, power, whole, codes), way
    assert torch.equal(whole, model.encode(power))


def test_code_depends_on_its_frame_alone(model, power):
    check_independence(model, power)


def test_code_depends_on_its_frame_alone_in_real_speech():
    path = sorted((shared_data("ravdess") / "Actor_12").glob("*.wav"))[30]
    power = power_spectrogram(vq.read_clip(path))
    check_independence(small_model(power), power)


def test_independence_test_sees_batch_normalisation(model, power):
    """With the authors' normalisation over the batch the same check fails."""
    theirs = VQVAE(256, 8)
    theirs.load_state_dict(model.state_dict())
    theirs.encoder[0] = nn.Sequential(theirs.encoder[0], nn.BatchNorm2d(16, track_running_stats=False))
    with pytest.raises(AssertionError):
        check_independence(theirs, power)


def test_codes_do_not_depend_on_the_chunk(model, power, monkeypatch):
    whole = model.encode(power), model.decode(model.encode(power))
    monkeypatch.setitem(vq.CHUNK_FRAMES, "cpu", 7)
    assert same_codes(model, power, whole[0], model.encode(power))
    assert torch.allclose(vq.log_power(whole[1]), vq.log_power(model.decode(whole[0])), atol=1e-4)


def test_codes_are_computed_without_tf32(model, power, monkeypatch):
    seen, embed = [], model.embed
    monkeypatch.setattr(model, "embed", lambda x: seen.append(torch.backends.cudnn.allow_tf32) or embed(x))
    model.encode(power[:3])
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_silence_is_encoded_and_decoded(model):
    codes = model.encode(torch.zeros(4, 513))
    assert (codes == codes[0]).all() and torch.isfinite(model.decode(codes)).all()
    assert torch.isfinite(divergence(torch.zeros(4, 513), model.decode(codes))).all()


def test_bins_that_were_empty_in_training(power):
    telephone = power.clone()
    telephone[:, 256:] = 0
    model = small_model(telephone)
    assert float(model.sd[256:].max()) == 1.0 < float(model.sd[:200].min())
    assert float(((vq.log_power(power) - model.mean) / model.sd).abs().max()) < 40
    assert torch.isfinite(divergence(power, model.decode(model.encode(power)))).all()


# ---- Losses and figures


def test_itakura_saito_by_hand():
    x, y = torch.tensor([[2.0, 1.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    assert float(divergence(x, y)) == pytest.approx(
        ((1 - math.log(2)) + (math.log(2) - 0.5) + 0) / 3, rel=1e-5
    )
    assert float(divergence(x, x)) == 0
    assert float(divergence(100 * x, 100 * y)) == pytest.approx(float(divergence(x, y)), rel=1e-5)
    silence = torch.zeros(1, 3)
    assert float(divergence(silence, silence)) == 0
    assert float(divergence(silence, y)) == pytest.approx(-1 + (np.log([1e10, 2e10, 3e10])).mean(), rel=1e-5)


def test_perplexity_by_hand():
    for counts, expected in (([5, 5, 5, 5], 4), ([0, 9], 1), ([2, 1, 1], 2**0.5 * 4**0.5)):
        assert vq.perplexity(np.array(counts)) == pytest.approx(expected)


def test_loss_is_its_parts(power):
    model = small_model(power)
    loss, n = vq.vqvae_loss(model, {"power": power[:6].view(2, 3, 513)})
    z = model.embed(power[:6])
    codes = model.encode(power[:6])
    chosen = model.codebook.vectors[codes.long()]
    expected = divergence(power[:6], model.decode(codes)).mean() + 0.25 * (z - chosen).square().mean()
    assert n == 2 and float(loss.detach() / n) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_commitment_pulls_the_encoder_to_its_codes(power):
    model = small_model(power)
    model.codebook.vectors.add_(0.1)
    _, codes, commitment = model(power[:5])
    commitment.backward()
    z = model.embed(power[:5])
    expected = (
        2 * (z - model.codebook.vectors[codes]).sum((0, 1)) / z.numel()
    )  # of the bias of the last layer
    assert torch.allclose(model.encoder[8].bias.grad, expected, rtol=1e-3, atol=1e-7)


def test_overfits_a_few_frames(power):
    torch.manual_seed(0)
    model, few = VQVAE(256, 8), power[40:72:4]
    model.standardise(power)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(250):
        loss, _ = vq.vqvae_loss(model, {"power": few[None]})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    found = float(divergence(few, model.decode(model.encode(few))).mean())
    flat = float(divergence(few, few.mean(0, keepdim=True)).mean())
    assert found < 0.4 < flat  # an envelope without detail reaches 0.58 on noise: Euler's constant


# ---- Data


def test_items_are_frames_of_clips(clips):
    data, every_clip = Frames(clips, 5, 8), Frames(clips, 5)
    whole = power_spectrogram(vq.read_clip(clips[2]))
    chosen = np.linspace(0, len(whole) - 1, 5).round().astype(int)
    assert torch.equal(every_clip[2, None], whole[chosen]) and len(every_clip) == 6 and len(data) == 8
    first, again, other = data[0, (1, 2, 0)], data[0, (1, 2, 0)], data[0, (1, 3, 0)]
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert data.collate([data[i, (0, 0, i)] for i in range(3)])["power"].shape == (3, 5, 513)


def test_clips_are_read_once(clips, monkeypatch):
    reads = []
    monkeypatch.setattr(vq, "read_audio", lambda path, **how: reads.append(path) or read_audio(path, **how))
    vq.cached_clip.cache_clear()
    for epoch in range(3):
        _ = [Frames(clips, 5)[i, (0, epoch, i)] for i in range(6)]
    assert sorted(reads) == clips


def test_unreadable_clips_are_reported_and_the_next_one_taken(clips, tmp_path, capsys):
    bad = tmp_path / "pointer.wav"
    bad.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert torch.equal(Frames([bad, clips[0]], 5)[0, None], Frames(clips[:1], 5)[0, None])
    assert "git-lfs pointer" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        _ = Frames([bad, bad], 5)[0, None]


# ---- Training


def train(folder, clips, recipe=RECIPE, code_size=8):
    """Two steps an epoch on four clips; the others are held out."""
    torch.manual_seed(len(str(folder)))  # what came before must not matter
    turns = [("clips", Turn(path.stem, "", 0, "", "", 0.0, 0.0, audio=str(path))) for path in clips]
    parts = {"turns": lambda: (turns[:4], turns[4:]), "identity": lambda: [turn[0] for turn in turns]}
    pretraining = SimpleNamespace(data_root="", folder=folder, **parts)
    return vq.train_vqvae(make_accelerator("no"), pretraining, recipe, (256, code_size), 6, 2)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_saved_model_gives_the_same_codes_and_is_reused(tmp_path, clips, power, monkeypatch):
    model = train(tmp_path, clips)
    assert not model.training and model.codebook.counts.sum() > 1
    loaded = vq.load_vqvae(tmp_path / "vqvae")
    assert same(state(model), state(loaded)) and torch.equal(model.encode(power), loaded.encode(power))
    with monkeypatch.context() as patched:
        patched.setattr(Frames, "__getitem__", lambda *_: pytest.fail("read the audio of a finished model"))
        assert same(state(model), state(train(tmp_path, clips)))
    other = train(tmp_path, clips, code_size=4)
    assert other.codebook.vectors.shape == (256, 4)


def test_resumed_training_equals_uninterrupted(tmp_path, clips, monkeypatch):
    whole = state(train(tmp_path / "whole", clips))
    figures, calls = vq.vqvae_figures, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return figures(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(vq, "vqvae_figures", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", clips)
    assert not (tmp_path / "killed" / "vqvae" / "outcome.json").exists()
    assert same(whole, state(train(tmp_path / "killed", clips)))


def test_seed_decides(tmp_path, clips):
    one = state(train(tmp_path / "a", clips, replace(RECIPE, epochs=1)))
    other = state(train(tmp_path / "b", clips, replace(RECIPE, epochs=1, seed=6)))
    assert not torch.equal(one["encoder.0.weight"], other["encoder.0.weight"])
    assert not torch.equal(one["codebook.vectors"], other["codebook.vectors"])
