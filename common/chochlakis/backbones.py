"""The frozen networks of Chochlakis et al. 2024, Sec. 3.2: AVID-CMA [1] and CrissCross [3].

The video network, the two audio networks, what they read, the pair of them, the authors' checkpoints, and
what random networks need instead. Layers bear the names that they have in the authors' files. A feature
belongs to its clip alone: every clip has a spectrogram of its own, and BatchNorm uses its stored statistics.

B clips, S samples, F frames of H x W pixels, T frames of a spectrogram, w width of a network, D = 8 w
features.
"""

import copy
import hashlib
import timeit
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torchaudio.functional import amplitude_to_DB
from torchaudio.transforms import MelSpectrogram, Spectrogram
from torchvision.models.resnet import BasicBlock

from common.errors import UserError
from common.files import atomic_path
from common.layers import build, count_parameters, read_checkpoint
from common.pictures import IMAGENET, normalise_frames

RATES_HZ = {"avid-cma": 24000, "crisscross": 16000}
SIZES_PX = {"avid-cma": 224, "crisscross": 112}  # side of a frame in the published networks
FPS = 16  # of both papers
MODALITIES = ("audio", "video")
N_FFT = 1024  # also the Hann window, in both
AVID_HOP, AVID_BINS = 240, 257
TOP_DB, POWER_FLOOR, STD_FLOOR = 100.0, 1e-10, 1e-5
MIN_STD_DB = 1.0  # of a bin, where we measure it: noise has 4 dB, an empty bin less than 1
MEL_HOP, MEL_BINS, MEL_TOP_HZ = 160, 80, 8000.0
MEL_FLOOR = float(np.finfo(np.float32).eps)  # as CrissCross has it
MEL_MEAN, MEL_STD = -5.3688107, 4.410007
# Standard deviations by which BatchNorm lifts what random networks compute. With 0, half of all values are
# cut off in every layer: a linear map of the features explained 0.05 of the variance of the colour of moving
# squares in new clips, and 0.52 with 2 (0.64 with 4, where the features hardly vary; mean of three seeds).
RANDOM_BIAS = 2.0
COST_CLIPS = 8  # in a step of which the time is taken


# ---- Video network -------------------------------------------------------------------------


def conv(n_in, n_out, kernel, stride):
    """A convolution in two or three dimensions without bias, which keeps the size but for its stride."""
    make = {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
    return make(n_in, n_out, kernel, stride, [size // 2 for size in kernel], bias=False)


class R2Plus1DBlock(nn.Module):
    """Two (2+1)D convolutions, each in space and then in time [26], and what they are added to."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        space, time, across = (1, 3, 3), (3, 1, 1), (1, stride, stride)
        self.spt_conv1, self.spt_bn1 = conv(n_in, n_out, space, across), nn.BatchNorm3d(n_out)
        self.tmp_conv1, self.tmp_bn1 = conv(n_out, n_out, time, (stride, 1, 1)), nn.BatchNorm3d(n_out)
        self.spt_conv2, self.spt_bn2 = conv(n_out, n_out, space, 1), nn.BatchNorm3d(n_out)
        self.tmp_conv2, self.out_bn = conv(n_out, n_out, time, 1), nn.BatchNorm3d(n_out)
        is_same = n_in == n_out and stride == 1
        self.res_conv = None if is_same else conv(n_in, n_out, (1, 1, 1), stride)

    def forward(self, x):
        y = self.spt_bn1(self.spt_conv1(x)).relu_()
        y = self.tmp_bn1(self.tmp_conv1(y)).relu_()
        y = self.spt_bn2(self.spt_conv2(y)).relu_()
        y = self.tmp_conv2(y) + (x if self.res_conv is None else self.res_conv(x))
        return self.out_bn(y).relu_()


class R2Plus1D(nn.Module):
    """R(2+1)D-18 of both papers: (B, 3, F, H, W) -> (B, 8 w). It is not torchvision's: the stem is one 3-D
    convolution, and between the halves of a (2+1)D convolution are as many channels as come out of it.

    width  w, 64 in the papers
    pool   over all of space and time: "max" (AVID-CMA) or "average" (CrissCross)
    """

    def __init__(self, width, pool):
        super().__init__()
        self.pool = {"max": torch.amax, "average": torch.mean}[pool]
        self.conv1 = nn.Sequential(
            conv(3, width, (3, 7, 7), (1, 2, 2)),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.conv2x = nn.Sequential(R2Plus1DBlock(width, width, 1), R2Plus1DBlock(width, width, 1))
        self.conv3x, self.conv4x, self.conv5x = (
            nn.Sequential(R2Plus1DBlock(n // 2, n, 2), R2Plus1DBlock(n, n, 1))
            for n in (2 * width, 4 * width, 8 * width)
        )

    def forward(self, x):
        x = self.conv2x(self.conv1(x))  # (B, w, F, H / 4, W / 4)
        x = self.conv5x(self.conv4x(self.conv3x(x)))  # (B, 8 w, F / 8, H / 32, W / 32)
        return self.pool(x, (2, 3, 4))  # (B, 8 w)


# ---- Audio networks ------------------------------------------------------------------------


class AudioBlock(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNorm and ReLU."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(n_in, n_out, (3, 3), stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = conv(n_out, n_out, (3, 3), 1), nn.BatchNorm2d(n_out)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu_()
        return self.bn2(self.conv2(x)).relu_()


def residual_blocks(n_in, n_out, stride):
    """A stage of ResNet-18, of torchvision's blocks."""
    shortcut = None
    if (n_in, stride) != (n_out, 1):
        shortcut = nn.Sequential(conv(n_in, n_out, (1, 1), stride), nn.BatchNorm2d(n_out))
    return nn.Sequential(BasicBlock(n_in, n_out, stride, shortcut), BasicBlock(n_out, n_out))


class AudioNetwork(nn.Module):
    """A CNN on spectrograms -> (B, 8 w): a stem, four stages of make_stage(n_in, n_out, stride), a pool."""

    def __init__(self, width, make_stage, strides, pool, *after_stem):
        super().__init__()
        self.pool, n = pool, (width, width, 2 * width, 4 * width, 8 * width)
        stem = conv(1, width, (7, 7), 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv1 = nn.Sequential(*stem, *after_stem)
        self.block1, self.block2, self.block3, self.block4 = map(make_stage, n[:4], n[1:], strides)

    def forward(self, x):
        x = self.block2(self.block1(self.conv1(x)))
        return self.pool(self.block4(self.block3(x)), (2, 3))


def avid_audio(width):
    """AVID-CMA's network on the log spectrogram (B, 1, T, 257), w = 64 in the paper."""
    return AudioNetwork(width, AudioBlock, (2, 2, 2, 1), torch.amax)


def crisscross_audio(width):
    """CrissCross's ResNet-18 on the log-mel spectrogram (B, 1, 80, T), w = 64 in the paper."""
    return AudioNetwork(width, residual_blocks, (1, 2, 2, 2), torch.mean, nn.MaxPool2d(3, 2, 1))


# ---- What the audio networks read ----------------------------------------------------------


def log_spectrogram(samples):
    """What AVID-CMA's audio network reads, before it is normalised by bin.

    samples  (B, S) at 24 kHz, S > 512; a clip is mirrored at its ends
    Returns dB (B, 1, S // 240, 257), 100 frames per second: the lowest bin, and pairs of the other 512
    averaged. What lies more than 100 dB below the loudest bin of its clip is raised to that.
    """
    power = Spectrogram(N_FFT, hop_length=AVID_HOP).to(samples.device)(samples)
    power = power[..., : samples.shape[1] // AVID_HOP]  # (B, 513, T)
    pairs = power[:, 1:].unflatten(1, (AVID_BINS - 1, 2)).mean(2)  # (B, 256, T)
    power = torch.cat([power[:, :1], pairs], 1).transpose(1, 2)  # (B, T, 257)
    return amplitude_to_DB(power[:, None], 10.0, POWER_FLOOR, 0.0, TOP_DB)  # per clip of (B, 1, T, 257)


@cache
def mel_spectrogram():
    """Slaney's 80 triangles of equal area between 0 and 8 kHz."""
    slaney = {"norm": "slaney", "mel_scale": "slaney"}
    return MelSpectrogram(16000, N_FFT, hop_length=MEL_HOP, f_max=MEL_TOP_HZ, n_mels=MEL_BINS, **slaney)


def log_mel(samples):
    """What CrissCross's audio network reads, of samples (B, S) at 16 kHz: (B, 1, 80, 1 + S // 160)."""
    mel = mel_spectrogram().to(samples.device)(samples)  # (B, 80, T)
    return (((mel + MEL_FLOOR).log() - MEL_MEAN) / MEL_STD)[:, None]


# ---- The pair of networks ------------------------------------------------------------------


@dataclass
class Backbone:
    """A frozen video network and a frozen audio network, as `load_backbone` makes them."""

    name: str
    rate_hz: int  # of the samples that `features` takes
    fps: int  # of the frames
    size: int  # side of a frame in pixels
    dim: int  # D
    video: nn.Module
    audio: nn.Module
    stats: torch.Tensor | None  # mean and sd (2, 257) of AVID-CMA's log spectrogram; None = not measured
    untrained: list  # those of MODALITIES whose network has random weights
    report: list  # a line per network: which of its weights come from where

    @property
    def device(self):
        return next(self.video.parameters()).device

    @property
    def n_parameters(self):
        """Of both networks: 26.5 million for CrissCross, 20.1 for AVID-CMA ("25M" in Section 4.2)."""
        return count_parameters(self.video) + count_parameters(self.audio)

    def identity(self):
        """What features depend on besides their clips, JSON-ready."""
        digest = hashlib.sha256(b"" if self.stats is None else self.stats.numpy().tobytes())
        for network in (self.video, self.audio):
            for key, tensor in sorted(network.state_dict().items()):
                digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
        sizes = {name: getattr(self, name) for name in ("rate_hz", "fps", "size", "dim")}
        return {"backbone": self.name, **sizes, "weights": digest.hexdigest()[:16], "precision": "fp32"}

    def video_input(self, frames):
        """frames (B, F, size, size, 3) uint8, tensor or array -> (B, 3, F, size, size) on the device."""
        return normalise_frames(torch.as_tensor(frames).to(self.device), *IMAGENET)

    def audio_input(self, samples):
        """samples (B, S) float at rate_hz, tensor or array -> (B, 1, T, 257) or (B, 1, 80, T)."""
        samples = torch.as_tensor(samples).to(self.device, torch.float32)
        if self.name == "crisscross":
            return log_mel(samples)
        mean, std = self.stats.to(self.device)
        return (log_spectrogram(samples) - mean) / (std + STD_FLOOR)

    @torch.no_grad()
    def features(self, audio, video):
        """Features of clips (Section 3.2), each of which depends on its own clip alone, in float32.

        audio  (B, S) float samples at rate_hz, S > 512; None = not wanted
        video  (B, F, size, size, 3) uint8 frames at fps; None = not wanted
        Returns audio (B, D), video (B, D) on the device; None for what was None.
        """
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return (
                None if audio is None else self.audio(self.audio_input(audio)),
                None if video is None else self.video(self.video_input(video)),
            )


def load_backbone(name, files, width, size, device, random_seed=None, allow_pickle=False):
    """The frozen networks of Section 3.2, as a Backbone.

    name          "avid-cma" or "crisscross"
    files         {"video", "audio": checkpoint, "stats": npz}; AVID-CMA's checkpoint has both networks. ""
                  for a network: random weights; "" for stats: to be measured
    width, size   w (D = 8 w), 64 in the papers; side of a frame in pixels, 0 = the papers'
    random_seed   seed of random weights, which `measure` must follow; None = they are refused
    allow_pickle  load checkpoints that hold more than tensors, which lets them run code of their own
    Raises UserError where a file is missing, no checkpoint, or does not fit the networks.
    """
    networks, report, untrained = build(random_seed or 0, new_networks, name, width), [], []
    for part, network in networks.items():
        if file := files[part] or (files["video"] if name == "avid-cma" else ""):
            weights = network_weights(read_checkpoint(file, allow_pickle), part)
            report.append(f"{name}, {part}: {load_weights(network, *weights, part, width, file)}")
        elif random_seed is None:
            raise UserError(
                f"backbone {name!r}: no checkpoint for its {part} network; name the authors' file"
            )
        else:
            untrained.append(part)
            report.append(f"{name}, {part}: random weights of seed {random_seed}")
        network.to(device).eval().requires_grad_(False)
    stats = read_audio_stats(files["stats"]) if files["stats"] and name != "crisscross" else None
    sizes = RATES_HZ[name], FPS, size or SIZES_PX[name], 8 * width
    return Backbone(name, *sizes, **networks, stats=stats, untrained=untrained, report=report)


def new_networks(name, width):
    """{"video", "audio": network} with He's first weights, and RANDOM_BIAS in every BatchNorm."""
    if name == "crisscross":
        networks = {"video": R2Plus1D(width, "average"), "audio": crisscross_audio(width)}
    else:
        networks = {"video": R2Plus1D(width, "max"), "audio": avid_audio(width)}
    for module in nn.ModuleDict(networks).modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, _BatchNorm):
            nn.init.constant_(module.bias, RANDOM_BIAS)
    return networks


# ---- The authors' checkpoints --------------------------------------------------------------


def network_weights(content, part):
    """Of any authors' file: (weights {name: tensor} of one network by its own names, names of all else).

    content  of `read_checkpoint`. AVID-CMA's has "model" with keys module.video_model.*, module.audio_model.*
             and heads; CrissCross's are the weights of one network and nothing else
    """
    model = content["model"] if isinstance(content.get("model"), dict) else content
    model = {str(key).removeprefix("module."): value for key, value in model.items()}
    prefix = f"{part}_model."
    if not any(key.startswith(("video_model.", "audio_model.")) for key in model):
        return model, []
    own = {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
    return own, [key for key in model if not key.startswith(prefix)]


def load_weights(network, weights, others, part, width, file):
    """Copy weights, of `network_weights`, into a network; all but BatchNorm's counters must be there and fit.

    Returns a line that says what was loaded, skipped and missing. Raises UserError.
    """
    wanted = network.state_dict()
    missing = [key for key in wanted if key not in weights and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"{file}: {len(missing)} of {len(wanted)} weights of the {part} network are missing, first "
            f"{missing[0]}; the file has {len(weights) + len(others)} others such as "
            f"{next(iter([*weights, *others]), 'none')}; name the checkpoint of that network"
        )
    loaded = {key: value for key, value in weights.items() if key in wanted}
    for key, value in loaded.items():
        if (shape := getattr(value, "shape", ())) != wanted[key].shape:
            raise UserError(
                f"{file}: {key} is {tuple(shape)} where a network of width {width} has "
                f"{tuple(wanted[key].shape)}; change the width or name another checkpoint"
            )
    network.load_state_dict(wanted | loaded)
    skipped = listed([*others, *(key for key in weights if key not in wanted)])
    n_missing = len(wanted) - len(loaded)
    return f"{len(loaded)} keys loaded from {Path(file).name}, skipped {skipped}, {n_missing} missing"


def listed(keys):
    """Names of tensors by the module that they belong to: "54 of audio_model, 1 of audio_proj"."""
    counts = Counter(key.partition(".")[0] for key in keys)
    return ", ".join(f"{n} of {name}" for name, n in sorted(counts.items())) or "none"


def load_cavmae(model, path):
    """Start 06's autoencoder from CAV-MAE [9]: "results in better downstream performance" (Sec. 3.3).

    model  has CAV-MAE's names of layers, without "attn." and "mlp."; of fewer blocks it takes the first ones
    path   a state dict as the authors saved it, 647 tensors, of which a model of their sizes takes 383: what
           belongs to patches or to the contrastive loss has no place in it
    Returns a line that says what was loaded, skipped and left as it was. Raises UserError if nothing fits.
    """
    own, weights = model.state_dict(), {}
    for name, tensor in read_checkpoint(path).items():
        weights[str(name).removeprefix("module.").replace(".attn.", ".").replace(".mlp.", ".")] = tensor
    loaded = {n: x for n, x in weights.items() if n in own and getattr(x, "shape", None) == own[n].shape}
    if not {"blocks_a.0.qkv.weight", "blocks_u.0.qkv.weight", "mask_token"} <= set(loaded):
        raise UserError(
            f"{path}: not a checkpoint of CAV-MAE, or of other sizes than MAE_WIDTH and DECODER_WIDTH; give "
            "audio_model.21.pth or a relative of it and its sizes, 768 and 512"
        )
    model.load_state_dict(loaded, strict=False)
    skipped, left = weights.keys() - loaded.keys(), own.keys() - loaded.keys() - {"mean", "std"}
    report = f"{len(loaded)} of {len(weights)} tensors of CAV-MAE loaded, skipped {listed(skipped)}"
    return f"{report}; left as they were: {listed(left)}"


def read_audio_stats(path):
    """Mean and sd (2, 257) of the bins of the log spectrogram from an npz file. Raises UserError."""
    remedy = "name audio-spectDB-24k-513-norm-stats.npz of AVID-CMA, or none to have them measured"
    try:
        with np.load(path, allow_pickle=False) as file:
            stats = np.stack([np.asarray(file[key], np.float32) for key in ("mean", "std")])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an npz file with mean and std ({error}); {remedy}") from error
    if stats.shape != (2, AVID_BINS) or not np.isfinite(stats).all() or (stats[1] < 0).any():
        raise UserError(f"{path}: needs {AVID_BINS} finite numbers each, not {stats[0].shape}; {remedy}")
    return torch.from_numpy(stats)


# ---- Without the authors' files ------------------------------------------------------------


@torch.no_grad()
def measure(backbone, batches, path, identity):
    """Measure on training clips what a backbone lacks, or read what was measured on the same ones before.

    That is mean and sd of the log spectrogram's bins without AVID-CMA's file, and BatchNorm's statistics in
    random networks, whose features would otherwise grow from layer to layer.
    batches         () -> iterable of (audio (B, S), video (B', F, size, size, 3)) of whole clips, None = none
    path, identity  file to keep the outcome in; JSON-ready, which clips these are
    """
    needs_stats = backbone.name != "crisscross" and backbone.stats is None
    networks = {part: getattr(backbone, part) for part in backbone.untrained}
    if not needs_stats and not networks:
        return backbone
    kept = read_checkpoint(path) if Path(path).exists() else {}
    if kept.get("identity") == identity:
        backbone.stats = kept["stats"] if needs_stats else backbone.stats
        for part, network in networks.items():
            network.load_state_dict(kept[part])
        return backbone
    if needs_stats:
        backbone.stats = measure_audio_stats(backbone, batches())
    for part, network in networks.items():  # every channel then has zero mean and unit variance
        read, m = getattr(backbone, f"{part}_input"), MODALITIES.index(part)
        update_bn((read(batch[m]) for batch in batches() if batch[m] is not None), network)
    states = {part: network.state_dict() for part, network in networks.items()}
    with atomic_path(path) as temporary:
        torch.save({"identity": identity, "stats": backbone.stats, **states}, temporary)
    return backbone


def measure_audio_stats(backbone, batches):
    """Mean and sd (2, 257) of the log spectrogram's bins.

    A bin with an sd below MIN_STD_DB, as all above 8 kHz in what was once recorded at 16 kHz, must not be
    blown
    up where a later clip has something there.
    """
    count, total, squares = 0, 0.0, 0.0
    for samples in (audio for audio, _ in batches if audio is not None):
        bins = log_spectrogram(torch.as_tensor(samples)).double().flatten(0, 2)
        count, total, squares = count + len(bins), total + bins.sum(0), squares + bins.square().sum(0)
    if not count:
        raise UserError(f"BACKBONES={backbone.name}: no training recording has audio; leave it out")
    mean = total / count  # (257,)
    std = (squares / count - mean.square()).clamp(min=MIN_STD_DB**2).sqrt()
    return torch.stack([mean, std]).float()


def training_seconds(backbone, clip_s, accelerator):
    """Seconds of forward and backward pass per clip, were it trained: the median of three steps on copies."""
    video, audio = (copy.deepcopy(n).train().requires_grad_(True) for n in (backbone.video, backbone.audio))
    shape = (COST_CLIPS, max(1, round(clip_s * backbone.fps)), backbone.size, backbone.size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    samples = 0.1 * torch.randn(COST_CLIPS, round(clip_s * backbone.rate_hz))

    def step():
        with accelerator.autocast():
            out = video(backbone.video_input(frames)).sum() + audio(backbone.audio_input(samples)).sum()
        out.backward()
        float(out.detach())  # waits for a GPU

    return (
        float(np.median(timeit.repeat(step, number=1, repeat=4)[1:])) / COST_CLIPS
    )  # the first one warms up
