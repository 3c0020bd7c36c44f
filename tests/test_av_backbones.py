"""The backbones against torchvision, torch's own layers and naive spectra; their checkpoints, good and
bad."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from networks import noise, seeded
from torch.nn import functional as F

from common.chochlakis.backbones import (
    AVID_BINS,
    Backbone,
    R2Plus1D,
    R2Plus1DBlock,
    load_backbone,
    log_mel,
    log_spectrogram,
    measure,
    read_bins,
)
from common.files import UserError
from common.layers import count_parameters
from tests.conftest import shared_data

AVID_FILE = "AVID-CMA_Audioset_InstX-N1024-PosW-N64-Top32_checkpoint.pth.tar"  # names of the authors' files
STATS_FILE = "audio-spectDB-24k-513-norm-stats.npz"
CRISSCROSS_FILES = {"video": "vid_crisscross_audioset.pth.tar", "audio": "aud_crisscross_audioset.pth.tar"}
NO_FILES = {"bins": "", "audio": "", "video": ""}
SIZE = 32  # of a frame: 1 x 1 is left of it at the end


def backbone_of(name="avid-cma", width=4, files=NO_FILES, size=SIZE):
    files = {
        part: file for part, file in {**NO_FILES, **files}.items() if part != "bins" or name == "avid-cma"
    }
    return load_backbone(name, files, width, size)


def write_checkpoints(folder, backbone):
    """Write the networks of a backbone as the authors publish theirs; returns the files of `load_backbone`.

    AVID-CMA: one file with epoch, model (both networks and their projection heads), optimizer and
    train_criterion with its memory banks, and the npz of the log spectrogram's statistics. CrissCross: a file
    per network.
    """
    folder.mkdir(exist_ok=True)
    weights = {part: inner(backbone, part).state_dict() for part in ("video", "audio")}
    if backbone.name == "crisscross":
        paths = {part: folder / file for part, file in CRISSCROSS_FILES.items()}
        for part, path in paths.items():
            torch.save(weights[part], path)
        return paths
    model = {f"module.{part}_model.{key}": value for part in weights for key, value in weights[part].items()}
    model |= {f"module.{part}_proj.0.weight": torch.zeros(8, backbone.dim) for part in weights}
    banks = {"nce_average.view1_mem": torch.zeros(16, 8), "nce_average.view2_mem": torch.zeros(16, 8)}
    content = {"epoch": 0, "model": model, "optimizer": {"state": {}}, "train_criterion": banks}
    torch.save(content, folder / AVID_FILE)
    mean, std = backbone.bins.running_mean.numpy(), backbone.bins.running_var.sqrt().numpy() - 1e-5
    np.savez(folder / STATS_FILE, mean=mean, std=std)
    return {"video": folder / AVID_FILE, "audio": folder / AVID_FILE, "bins": folder / STATS_FILE}


def inner(backbone, part):
    """A network without what standardises the features of random ones."""
    network = getattr(backbone, part)
    return network[0] if isinstance(network, torch.nn.Sequential) else network


def clips(n, rate_hz, seed=0, seconds=0.4, n_frames=6):
    """Tones of n pitches with noise, and squares of n colours that move over a dim noisy ground."""
    generator = seeded(seed)
    time_s = torch.arange(round(seconds * rate_hz)) / rate_hz
    pitch_hz = 100 * 2 ** (4 * torch.rand(n, 1, generator=generator))
    audio = 0.1 * torch.sin(2 * torch.pi * pitch_hz * time_s) + 0.003 * noise(n, len(time_s), seed=seed)
    video = torch.randint(60, (n, n_frames, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    for i, colour in enumerate(torch.randint(60, 256, (n, 3), dtype=torch.uint8, generator=generator)):
        at = int(torch.randint(SIZE // 2, (), generator=generator))
        for f in range(n_frames):
            video[i, f, at : at + 8, 2 * f : 2 * f + 10] = colour
    return audio, video


def calibrated(name="avid-cma", **changes):
    """A narrow backbone of random weights, ready for use."""
    backbone = backbone_of(name, **changes)
    calibrate(backbone, [clips(24, backbone.rate_hz, seed=5)])
    return backbone


def calibrate(backbone, batches):
    """As `measure` does, and without a file; batches of (audio, video), None where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        measure(backbone, of_each(batches), Path(folder) / "measured.pt", "")


def of_each(batches):
    """{"audio", "video"} -> batches of it."""
    return lambda name: [x for x in (pair[name == "video"] for pair in batches) if x is not None]


def features(backbone, audio, video):
    return backbone("audio", audio), backbone("video", video)


# ---- Networks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, n_parameters, n_keys, examples",
    [
        (
            lambda: R2Plus1D(64, torch.amax),
            15_379_136,
            201,
            {
                "conv1.0.weight": (64, 3, 3, 7, 7),
                "conv3x.0.res_conv.weight": (128, 64, 1, 1, 1),
                "conv5x.1.out_bn.weight": (512,),
                "conv2x.1.tmp_conv2.weight": (64, 64, 3, 1, 1),
                "conv4x.0.spt_conv1.weight": (256, 128, 1, 3, 3),
                "conv1.1.running_mean": (64,),
            },
        ),
        (
            lambda: Backbone("avid-cma", 64, SIZE).audio,
            4_725_696,
            54,
            {
                "conv1.0.weight": (64, 1, 7, 7),
                "block1.conv1.weight": (64, 64, 3, 3),
                "block4.conv2.weight": (512, 512, 3, 3),
                "block2.bn2.weight": (128,),
            },
        ),
        (
            lambda: Backbone("crisscross", 64, SIZE).audio,
            11_170_240,
            120,
            {
                "conv1.0.weight": (64, 1, 7, 7),
                "conv1.1.weight": (64,),
                "block2.0.downsample.0.weight": (128, 64, 1, 1),
                "block4.1.conv2.weight": (512, 512, 3, 3),
            },
        ),
    ],
)
def test_parameters_and_keys_of_the_published_networks(make, n_parameters, n_keys, examples):
    network = make()
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == n_parameters
    assert len(state) == n_keys
    assert {key: tuple(state[key].shape) for key in examples} == examples
    assert not [
        key for key in state if key.endswith("bias") and state[key.replace("bias", "weight")].ndim > 1
    ]


def test_a_block_is_what_the_paper_composes_it_of():
    """The same on torch's functions: 2-D convolutions of each frame, 1-D convolutions of each pixel."""
    block, x = uneven(R2Plus1DBlock(3, 5, 2)), noise(2, 3, 6, 8, 8)

    def in_space(x, weight, stride):
        y = F.conv2d(x.transpose(1, 2).flatten(0, 1), weight[:, :, 0], stride=stride, padding=1)
        return y.unflatten(0, (len(x), -1)).transpose(1, 2)

    def in_time(x, weight, stride):
        b, _, _, h, w = x.shape
        y = F.conv1d(x.permute(0, 3, 4, 1, 2).flatten(0, 2), weight[:, :, :, 0, 0], stride=stride, padding=1)
        return y.view(b, h, w, y.shape[1], -1).permute(0, 3, 4, 1, 2)

    def norm(x, name):
        state = [
            getattr(getattr(block, name), key) for key in ("running_mean", "running_var", "weight", "bias")
        ]
        return F.batch_norm(x, *state)

    y = norm(in_space(x, block.spt_conv1.weight, 2), "spt_bn1").relu()
    y = norm(in_time(y, block.tmp_conv1.weight, 2), "tmp_bn1").relu()
    y = norm(in_space(y, block.spt_conv2.weight, 1), "spt_bn2").relu()
    y = in_time(y, block.tmp_conv2.weight, 1)
    shortcut = torch.einsum("oi,bithw->bothw", block.res_conv.weight[:, :, 0, 0, 0], x[:, :, ::2, ::2, ::2])
    expected = norm(y + shortcut, "out_bn").relu()
    assert expected.shape == (2, 5, 3, 4, 4)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)
    same = uneven(R2Plus1DBlock(5, 5, 1))
    assert same.res_conv is None and (same(expected) > 0).any()


def uneven(network):
    """Evaluation mode, with BatchNorms whose weights and statistics are nobody's default."""
    state = {
        key: 0.5 + torch.rand(value.shape, generator=seeded(i)) if value.ndim == 1 else value
        for i, (key, value) in enumerate(network.state_dict().items())
    }
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.parametrize("pool", [torch.amax, torch.mean])
def test_the_video_network_is_its_stages_and_a_global_pool(pool):
    network, x = uneven(R2Plus1D(4, pool)), noise(2, 3, 8, 64, 64)
    seen = []
    for name in ("conv1", "conv2x", "conv3x", "conv4x", "conv5x"):
        getattr(network, name).register_forward_hook(lambda *call: seen.append(call[2]))
    found = network(x)
    assert [tuple(y.shape[1:]) for y in seen] == [
        (4, 8, 16, 16),
        (4, 8, 16, 16),
        (8, 4, 8, 8),
        (16, 2, 4, 4),
        (32, 1, 2, 2),
    ]
    pooled = seen[-1].flatten(2)
    torch.testing.assert_close(found, pool(pooled, 2))


def test_the_audio_network_of_crisscross_is_torchvisions_resnet18():
    network = uneven(Backbone("crisscross", 64, SIZE).audio)
    reference = torchvision.models.resnet18(weights=None)
    reference.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    reference.fc = torch.nn.Identity()
    names = {"conv1.0.": "conv1.", "conv1.1.": "bn1.", **{f"block{i}.": f"layer{i}." for i in (1, 2, 3, 4)}}
    mapped = {}
    for key, value in network.state_dict().items():
        old = next(old for old in names if key.startswith(old))
        mapped[names[old] + key.removeprefix(old)] = value
    reference.load_state_dict(mapped)
    x = noise(2, 1, 80, 41)
    torch.testing.assert_close(network(x), reference.eval()(x), atol=1e-4, rtol=1e-4)


def test_the_audio_network_of_avid_by_torchs_functions():
    network, x = uneven(Backbone("avid-cma", 3, SIZE).audio), noise(2, 1, 40, AVID_BINS)
    state = network.state_dict()

    def layer(x, conv, norm, stride, padding):
        y = F.conv2d(x, state[conv + ".weight"], stride=stride, padding=padding)
        statistics = (state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(y, *statistics).relu()

    y = layer(x, "conv1.0", "conv1.1", 2, 3)
    for i, stride in enumerate((2, 2, 2, 1), 1):
        y = layer(y, f"block{i}.conv1", f"block{i}.bn1", stride, 1)
        y = layer(y, f"block{i}.conv2", f"block{i}.bn2", 1, 1)
    torch.testing.assert_close(network(x), F.adaptive_max_pool2d(y, 1).flatten(1), atol=1e-5, rtol=1e-5)


# ---- Inputs --------------------------------------------------------------------------------


def naive_power(samples, hop, n_frames):
    """|DFT|^2 of Hann windows centred on every hop-th sample of the mirrored signal, by a matrix: (frames,
    513).
    """
    n = np.arange(1024)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 1024)
    dft = np.exp(-2j * np.pi * np.outer(np.arange(513), n) / 1024)
    mirrored = np.concatenate([samples[512:0:-1], samples, samples[-2:-514:-1]])
    frames = np.stack([mirrored[t * hop : t * hop + 1024] * window for t in range(n_frames)])
    return np.abs(frames @ dft.T) ** 2


def test_log_spectrogram_of_avid_against_a_naive_one():
    audio = clips(3, 24000)[0]
    audio[1] *= 1e-3  # soft: its floor is 100 dB below its own loudest bin
    audio[2, 4000:] = 0
    found = log_spectrogram(audio)
    assert found.shape == (3, 1, 40, 257)  # 100 frames per second
    for i in range(3):
        power = naive_power(audio[i].double().numpy(), 240, 40)
        bins = np.column_stack([power[:, 0], power[:, 1:].reshape(40, 256, 2).mean(2)])
        expected = 10 * np.log10(np.maximum(bins, 1e-10))
        expected = np.maximum(expected, expected.max() - 100)
        np.testing.assert_allclose(found[i, 0].numpy(), expected, atol=0.02)
    assert found[2].min() == pytest.approx(found[2].max().item() - 100, abs=1e-3)


def test_log_mel_of_crisscross_against_a_naive_one():
    audio = clips(2, 16000)[0]

    def to_mel(hz):  # Slaney's: linear to 1 kHz, then 27 steps for a factor of 6.4
        return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1) / 1000) / np.log(6.4))

    def to_hz(mel):
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    edges = to_hz(np.linspace(0, to_mel(np.array(8000.0)), 82))
    hz = np.arange(513) * 16000 / 1024
    up = (hz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - hz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(up, down)) * 2 / (edges[2:] - edges[:-2])  # (513, 80)
    found = log_mel(audio)
    assert found.shape == (2, 1, 80, 41)
    for i in range(2):
        mel = naive_power(audio[i].double().numpy(), 160, 41) @ filters
        expected = (np.log(mel + 1.19e-7) + 5.3688107) / 4.410007
        np.testing.assert_allclose(found[i, 0].numpy(), expected.T, atol=2e-3)


def test_statistics_are_those_of_all_training_frames():
    backbone, audio = backbone_of(), clips(8, 24000)[0]
    calibrate(backbone, [(audio[:4], None), (None, None), (audio[4:], None)])
    bins = log_spectrogram(audio).flatten(0, 2)
    halves = [part.var(0) for part in bins.split(len(bins) // 2)]
    torch.testing.assert_close(backbone.bins.running_mean, bins.mean(0), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(backbone.bins.running_var, sum(halves) / 2, atol=1e-4, rtol=1e-4)
    standardised = backbone.read("audio", audio).flatten(0, 2)
    assert standardised.mean(0).abs().max() < 1e-3 and (standardised.std(0) - 1).abs().max() < 0.2
    calibrate(backbone, [(torch.zeros_like(audio), None)])
    assert (backbone.bins.running_mean == -100).all() and (backbone.bins.running_var == 1).all()


@pytest.mark.parametrize("name", ["avid-cma", "crisscross"])
def test_what_a_backbone_lacks_is_measured_once_on_the_same_clips(tmp_path, name):
    batch, path = clips(8, 24000 if name == "avid-cma" else 16000), tmp_path / "new" / "measured.pt"

    def measured(batches, identity, **files):
        backbone = backbone_of(name, **files)
        measure(backbone, batches, path, identity)
        return backbone

    first = measured(of_each([batch]), "these clips")
    assert first.identity() != backbone_of(name).identity()
    unread = measured(lambda name: pytest.fail("measured again"), "these clips")
    assert unread.identity() == first.identity()
    halved = measured(of_each([tuple(x[:4] for x in batch)]), "other clips")
    assert halved.identity() != first.identity()
    files = write_checkpoints(tmp_path / "files", first)
    assert measured(lambda name: pytest.fail("nothing is missing"), "", files=files).unmeasured == []


@pytest.mark.parametrize(
    "content, problem",
    [
        ({"mean": np.zeros(257)}, "not an npz file with 257 finite numbers in mean and in std"),
        ({"mean": np.zeros(513), "std": np.ones(513)}, "not an npz file"),
        ({"mean": np.full(257, np.nan), "std": np.ones(257)}, "not an npz file"),
        ({"mean": np.array([{}]), "std": np.ones(257)}, "not an npz file"),
        (b"version https://git-lfs", "not an npz file"),
        (None, "not an npz file"),
    ],
)
def test_bad_statistics_are_refused(tmp_path, content, problem):
    path = tmp_path / "stats.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(UserError, match=problem) as error:
        read_bins(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


# ---- Features ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, width, n_parameters",
    [
        ("avid-cma", 64, 15_379_136 + 4_725_696),
        ("crisscross", 64, 26_549_376),
        ("crisscross", 4, None),
        ("avid-cma", 16, None),
    ],
)
def test_what_each_pair_reads_and_gives(tmp_path, name, width, n_parameters):
    backbone = backbone_of(name, width)
    assert backbone.dim == 8 * width
    assert backbone.rate_hz == (16000 if name == "crisscross" else 24000)
    assert n_parameters is None or count_parameters(backbone) == n_parameters
    assert inner(backbone, "video").pool is (torch.mean if name == "crisscross" else torch.amax)
    assert backbone_of(name, width, size=0).size == (224 if name == "avid-cma" else 112)
    audio, video = features(backbone, *clips(2, backbone.rate_hz))
    assert audio.shape == video.shape == (2, 8 * width) and audio.dtype == video.dtype == torch.float32
    assert not audio.requires_grad and not [p for p in backbone.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", ["avid-cma", "crisscross"])
def test_features_belong_to_their_clip_alone_and_nothing_moves(tmp_path, name):
    backbone = calibrated(name)
    audio, video = clips(6, backbone.rate_hz, seed=2)
    before = {
        part: {key: value.clone() for key, value in getattr(backbone, part).state_dict().items()}
        for part in ("audio", "video")
    }
    first = features(backbone, audio, video)
    again = features(backbone, audio.numpy(), video.numpy())
    assert all(torch.equal(x, y) for x, y in zip(first, again))
    assert all(
        torch.equal(value, before[part][key])
        for part in before
        for key, value in getattr(backbone, part).state_dict().items()
    )
    assert not backbone.audio.training and not backbone.video.training
    louder = features(
        backbone, torch.cat([audio[:1], 100 * audio[1:]]), torch.cat([video[:1], 255 - video[1:]])
    )
    for x, y in zip(first, louder):
        torch.testing.assert_close(x[0], y[0], atol=1e-4, rtol=1e-4)
        assert (x[1] - y[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["avid-cma", "crisscross"])
def test_calibrated_random_networks_tell_clips_apart(name):
    """On clips that they were not calibrated on: neither faded, nor exploded, nor all the same."""
    backbone = calibrated(name, width=8)
    for x in features(backbone, *clips(16, backbone.rate_hz, seed=9)):
        distance = torch.cdist(x, x) + 1e9 * torch.eye(16)
        assert torch.isfinite(x).all() and distance.min() > 0.05 * x.norm(dim=1).mean()


@pytest.mark.parametrize("name", ["avid-cma", "crisscross"])
def test_zeros_lie_among_the_features_of_random_networks(name):
    """ "An all-zeros vector performs ... equivalently to an average feature vector" (Section 4.2)."""
    backbone = calibrated(name, width=8)
    for x in features(backbone, *clips(64, backbone.rate_hz, seed=9)):
        assert (x.mean(0).abs() / x.std(0)).median() < 1 and 0.3 < x.std(0).median() < 3


def explained(x, y):
    """Share of the variance of y (N, n) that a ridge regression on features x (N, D) explains in the last
    third.
    """
    n = 2 * len(x) // 3
    x = torch.cat([(x - x[:n].mean(0)) / x[:n].std(0), torch.ones(len(x), 1)], 1).double()
    weight = torch.linalg.solve(
        x[:n].T @ x[:n] + 30 * torch.eye(x.shape[1]).double(), x[:n].T @ y[:n].double()
    )
    return 1 - ((x[n:] @ weight - y[n:]).square().mean() / y[n:].double().var(0).mean()).item()


def test_features_of_random_networks_can_be_read_linearly():
    """As a classifier, and whatever imputes them, must; without RANDOM_BIAS the colour explains itself 0.05
    or less.
    """
    backbone = calibrated("crisscross", width=8)
    audio, video = clips(360, backbone.rate_hz, seed=9)
    loudness = torch.linspace(-1.5, 0, 360)[torch.randperm(360, generator=seeded(3))][:, None]
    colour = video.amax((1, 2, 3)).float()  # of the square: the ground is dim
    heard, seen = features(backbone, 10**loudness * audio, video)
    assert explained(heard, loudness) > 0.9
    assert explained(seen, colour) > 0.3


def test_calibration_takes_the_statistics_of_the_clips(tmp_path):
    """The stem's, by hand; the mean over batches; not a network with weights of its own."""
    backbone = calibrated("crisscross")
    _, video = clips(24, 16000, seed=5)
    stem = inner(backbone, "video").conv1[0](backbone.read("video", video))
    norm = inner(backbone, "video").conv1[1]
    torch.testing.assert_close(norm.running_mean, stem.mean((0, 2, 3, 4)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(norm.running_var, stem.var((0, 2, 3, 4)), atol=1e-4, rtol=1e-4)
    assert not norm.training
    paths = write_checkpoints(tmp_path, backbone)
    mixed = backbone_of("crisscross", files={"video": paths["video"]})
    assert mixed.unmeasured == ["audio"]
    calibrate(mixed, [clips(8, 16000, seed=1), clips(8, 16000, seed=2)])
    torch.testing.assert_close(mixed.video.conv1[1].running_mean, norm.running_mean)
    audio = inner(mixed, "audio")
    halves = [audio.conv1[0](mixed.read("audio", clips(8, 16000, seed=s)[0])) for s in (1, 2)]
    expected = sum(half.mean((0, 2, 3)) for half in halves) / 2
    torch.testing.assert_close(audio.conv1[1].running_mean, expected, atol=1e-5, rtol=1e-4)
    calibrate(mixed, [(None, clips(8, 16000)[1])])  # nobody has audio: it will not be read
    assert not audio.conv1[1].training


def test_random_weights_are_always_the_same():
    state = torch.get_rng_state()
    first, second = (backbone_of().state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_identity_changes_with_whatever_changes_features(tmp_path):
    backbone = calibrated("avid-cma")
    first = backbone.identity()
    assert json.loads(json.dumps(first)) == first == backbone.identity()
    seen = [first]
    calibrate(backbone, [clips(24, 24000, seed=6)])
    seen.append(backbone.identity())
    backbone.bins.running_mean += 1
    seen.append(backbone.identity())
    backbone.size = 64
    seen.append(backbone.identity())
    assert len({entry["weights"] for entry in seen}) == 3 and seen[2] != seen[3]


# ---- Checkpoints ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["avid-cma", "crisscross"])
def test_checkpoints_as_the_authors_write_them_come_back(tmp_path, name, capsys):
    backbone = calibrated(name)
    paths = write_checkpoints(tmp_path / "files", backbone)
    given = clips(3, backbone.rate_hz, seed=4)
    loaded = backbone_of(name, files=paths)
    told = capsys.readouterr().out.splitlines()[-2:]
    for part, found in zip(("audio", "video"), features(loaded, *given)):
        expected = inner(backbone, part)(backbone.read(part, dict(zip(("audio", "video"), given))[part]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert loaded.unmeasured == [] and "random" not in "".join(told)
    if name == "avid-cma":
        content = torch.load(paths["video"], weights_only=True)
        assert set(content) == {"epoch", "model", "optimizer", "train_criterion"}
        assert told[1] == (
            f"  avid-cma, video: 201 tensors of {AVID_FILE} loaded, skipped "
            "54 of audio_model, 1 of audio_proj, 1 of video_proj; left as they were: none"
        )
    else:
        bare = torch.load(paths["audio"], weights_only=True)
        assert len(bare) == 120 and "block1.0.conv1.weight" in bare
        name = "aud_crisscross_audioset.pth.tar"
        assert told[0] == (
            f"  crisscross, audio: 120 tensors of {name} loaded, skipped none; left as they were: none"
        )


def test_the_old_format_of_files_is_read_too(tmp_path, capsys):
    """Files of before PyTorch 1.6 are no archives, and BatchNorms of before 0.4 counted no batches."""
    backbone = calibrated("crisscross")
    paths = write_checkpoints(tmp_path, backbone)
    state = {
        key: value
        for key, value in inner(backbone, "video").state_dict().items()
        if not key.endswith("batches_tracked")
    }
    torch.save(
        {"model": {"module." + key: value for key, value in state.items()}},
        paths["video"],
        _use_new_zipfile_serialization=False,
    )
    loaded = backbone_of("crisscross", files=paths)
    given = clips(2, 16000)
    expected = inner(backbone, "video")(backbone.read("video", given[1]))
    torch.testing.assert_close(loaded("video", given[1]), expected)
    assert "video: 168 tensors" in capsys.readouterr().out


def damage(path, kind):
    """Replace a checkpoint by something that is none of AVID-CMA's; tests/test_layers.py has broken files."""
    content = torch.load(path, weights_only=True)
    if kind == "absent":
        path.unlink()
    elif kind == "object":
        torch.save(content | {"args": argparse.Namespace(lr=1)}, path)
    elif kind == "other":
        torch.save({"model": {"module.audio_model.conv1.0.weight": torch.zeros(1)}}, path)
    else:
        content["model"].pop("module.video_model.conv4x.1.tmp_conv1.weight")
        torch.save(content, path)


@pytest.mark.parametrize(
    "kind, problem",
    [
        ("absent", "no such file"),
        (
            "object",
            "holds an object of argparse.Namespace.*; if you trust its source, save its weights alone",
        ),
        ("other", "45 of 45 weights are absent or of another shape, first conv1.0.weight"),
        ("one short", "1 of 168 weights are absent or of another shape, first conv4x.1.tmp_conv1.weight"),
    ],
)
def test_bad_checkpoints_are_refused_in_one_line(tmp_path, kind, problem):
    backbone = backbone_of()
    paths = write_checkpoints(tmp_path, backbone)
    damage(paths["video"], kind)
    with pytest.raises(UserError, match=problem) as error:
        backbone_of(files=paths)
    assert str(error.value).startswith(str(paths["video"])) and "\n" not in str(error.value)


def test_a_checkpoint_of_another_width_is_refused(tmp_path):
    backbone = backbone_of("crisscross", 4)
    paths = write_checkpoints(tmp_path, backbone)
    with pytest.raises(UserError, match="conv1.0.weight; name .* and its sizes in BACKBONE_WIDTH"):
        backbone_of("crisscross", 8, files=paths)


# ---- Real recordings -----------------------------------------------------------------------


def test_real_clips_have_finite_features(tmp_path):
    from common.media import read_audio, read_frames

    folder = shared_data("ravdess_av")
    path = next(iter(sorted(folder.rglob("*.mp4"))))
    backbone = calibrated("avid-cma")
    audio = torch.from_numpy(read_audio(path, rate_hz=backbone.rate_hz))
    frames = read_frames(path, short_side=SIZE)[0][2::4, :, :SIZE][:24]
    found = features(backbone, audio[: 4 * 9600].view(4, 9600), frames.reshape(4, 6, SIZE, SIZE, 3))
    assert all(torch.isfinite(x).all() and x.std(0).max() > 0.01 for x in found)
