"""The frozen backbones of Chochlakis et al., "Tackling missing modalities in audio-visual representation learning using
masked autoencoders", Section 3.2: AVID-CMA [1] and CrissCross [3], one vector per clip and modality.

Read it from the top beside Section 3.2: the video network, the two audio networks, what they read, the pair of them
that a script works with, checkpoints, and what networks without any need instead. The layers bear the names that the
authors' checkpoints have, everything else is our own; torchvision's Kinetics-400 network is a third choice for video.

Three things make a feature belong to its clip alone. Every clip has a spectrogram of its own, so that neither the
window nor the floor 100 dB below the loudest bin knows its neighbours. BatchNorm uses the statistics it was stored
with. No gradient and no statistic ever moves.

B clips, S samples, F frames of H x W pixels, T frames of a spectrogram, w width of a network, D = 8 w features.
"""

import copy
import hashlib
import pickle
import re
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchaudio.functional import amplitude_to_DB, melscale_fbanks
from torchvision.models.resnet import BasicBlock
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18

from common.errors import UserError
from common.files import atomic_path, make_folder, read_json, write_json

NAMES = ("avid-cma", "crisscross", "kinetics")
RATES_HZ = {"avid-cma": 24000, "crisscross": 16000, "kinetics": 24000}
SIZES_PX = {"avid-cma": 224, "crisscross": 112, "kinetics": 112}  # side of a frame in the published networks
FPS = 16  # of both papers; torchvision's was trained at 15 and takes the same frames here
CROP_SHARE = 0.875  # side of the central crop, as a share of the short side that a picture is scaled to
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and sd of pixels, RGB
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # ... of torchvision's network
N_FFT = 1024  # also the Hann window, in both
AVID_HOP, AVID_BINS = 240, 257
TOP_DB, POWER_FLOOR, STD_FLOOR = 100.0, 1e-10, 1e-5
MIN_STD_DB = 1.0  # of a bin, where we measure it
MEL_HOP, MEL_BINS, MEL_TOP_HZ = 160, 80, 8000.0
MEL_FLOOR, MEL_MEAN, MEL_STD = 1.19e-7, -5.3688107, 4.410007
# Standard deviations by which BatchNorm lifts what random networks compute. With 0, half of all values are cut off in
# every layer, and like clips get unlike features: a linear map of them explained 0.05 of the variance of the colour of
# moving squares in new clips, and 0.52 with 2 (0.64 with 4, where the features hardly vary; mean of three seeds).
RANDOM_BIAS = 2.0
COST_CLIPS = 8  # in a step of which the time is taken
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AVID_FILE = "AVID-CMA_Audioset_InstX-N1024-PosW-N64-Top32_checkpoint.pth.tar"  # names of the authors' files
STATS_FILE = "audio-spectDB-24k-513-norm-stats.npz"
CRISSCROSS_FILES = {"video": "vid_crisscross_audioset.pth.tar", "audio": "aud_crisscross_audioset.pth.tar"}


# ---- Video network -------------------------------------------------------------------------


def spatial(n_in, n_out, stride):
    return nn.Conv3d(n_in, n_out, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)


def temporal(n_channels, stride):
    return nn.Conv3d(n_channels, n_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)


class R2Plus1DBlock(nn.Module):
    """Two (2+1)D convolutions, each in space and then in time [26], and what they are added to."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.spt_conv1, self.spt_bn1 = spatial(n_in, n_out, stride), nn.BatchNorm3d(n_out)
        self.tmp_conv1, self.tmp_bn1 = temporal(n_out, stride), nn.BatchNorm3d(n_out)
        self.spt_conv2, self.spt_bn2 = spatial(n_out, n_out, 1), nn.BatchNorm3d(n_out)
        self.tmp_conv2, self.out_bn = temporal(n_out, 1), nn.BatchNorm3d(n_out)
        is_same = n_in == n_out and stride == 1
        self.res_conv = None if is_same else nn.Conv3d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x):
        y = self.spt_bn1(self.spt_conv1(x)).relu_()
        y = self.tmp_bn1(self.tmp_conv1(y)).relu_()
        y = self.spt_bn2(self.spt_conv2(y)).relu_()
        y = self.tmp_conv2(y) + (x if self.res_conv is None else self.res_conv(x))
        return self.out_bn(y).relu_()


class R2Plus1D(nn.Module):
    """R(2+1)D-18 of AVID-CMA and CrissCross: (B, 3, F, H, W) -> (B, 8 w).

    It is not torchvision's: the stem is one 3-D convolution, and what lies between the two halves of a (2+1)D
    convolution is as wide as what comes out of it.

    width  w, 64 in the papers
    pool   over all of space and time: "max" (AVID-CMA) or "average" (CrissCross)
    """

    def __init__(self, width, pool):
        super().__init__()
        self.pool = {"max": torch.amax, "average": torch.mean}[pool]
        self.conv1 = nn.Sequential(
            nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
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
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu_()
        return self.bn2(self.conv2(x)).relu_()


def audio_stem(width, *more):
    return nn.Sequential(
        nn.Conv2d(1, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), *more
    )


class AVIDAudio(nn.Module):
    """The CNN of AVID-CMA on the log spectrogram: (B, 1, T, 257) -> (B, 8 w), w = 64 in the paper."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = audio_stem(width)
        self.block1, self.block2 = AudioBlock(width, width, 2), AudioBlock(width, 2 * width, 2)
        self.block3, self.block4 = AudioBlock(2 * width, 4 * width, 2), AudioBlock(4 * width, 8 * width, 1)

    def forward(self, x):
        x = self.block2(self.block1(self.conv1(x)))  # (B, 2 w, T / 8, 33)
        return self.block4(self.block3(x)).amax((2, 3))  # (B, 8 w)


def residual_blocks(n_in, n_out, stride):
    """A stage of ResNet-18, of torchvision's blocks."""
    shortcut = None
    if (n_in, stride) != (n_out, 1):
        shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
    return nn.Sequential(BasicBlock(n_in, n_out, stride, shortcut), BasicBlock(n_out, n_out))


class CrissCrossAudio(nn.Module):
    """ResNet-18 of CrissCross on the log-mel spectrogram: (B, 1, 80, T) -> (B, 8 w), w = 64 in the paper."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = audio_stem(width, nn.MaxPool2d(3, 2, 1))
        self.block1, self.block2 = residual_blocks(width, width, 1), residual_blocks(width, 2 * width, 2)
        self.block3, self.block4 = (
            residual_blocks(2 * width, 4 * width, 2),
            residual_blocks(4 * width, 8 * width, 2),
        )

    def forward(self, x):
        x = self.block2(self.block1(self.conv1(x)))  # (B, 2 w, 10, T / 8)
        return self.block4(self.block3(x)).mean((2, 3))  # (B, 8 w)


# ---- What the networks read ----------------------------------------------------------------


def power_spectra(samples, hop):
    """samples (B, S) -> power (B, 513, 1 + S // hop); before and after a clip is its mirror image, so S > 512."""
    window = torch.hann_window(N_FFT, device=samples.device)
    spectrum = torch.stft(
        samples, N_FFT, hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    return torch.view_as_real(spectrum).square().sum(-1)


def log_spectrogram(samples):
    """What AVID-CMA's audio network reads, before it is normalised by bin.

    samples  (B, S) at 24 kHz
    Returns dB (B, 1, S // 240, 257), 100 frames per second: the lowest bin, and pairs of the other 512 averaged. What
    lies more than 100 dB below the loudest bin of its clip is raised to that.
    """
    power = power_spectra(samples, AVID_HOP)[..., : samples.shape[1] // AVID_HOP]  # (B, 513, T)
    pairs = power[:, 1:].unflatten(1, (AVID_BINS - 1, 2)).mean(2)  # (B, 256, T)
    power = torch.cat([power[:, :1], pairs], 1).transpose(1, 2)  # (B, T, 257)
    return amplitude_to_DB(power[:, None], 10.0, POWER_FLOOR, 0.0, TOP_DB)  # per clip of (B, 1, T, 257)


@cache
def mel_filters(device):
    """Slaney's 80 triangles of equal area between 0 and 8 kHz: (513, 80)."""
    filters = melscale_fbanks(
        N_FFT // 2 + 1, 0.0, MEL_TOP_HZ, MEL_BINS, 16000, norm="slaney", mel_scale="slaney"
    )
    return filters.to(device)


def log_mel(samples):
    """What CrissCross's audio network reads: samples (B, S) at 16 kHz -> (B, 1, 80, 1 + S // 160), normalised."""
    power = power_spectra(samples, MEL_HOP).transpose(1, 2)  # (B, T, 513)
    mel = (power @ mel_filters(samples.device)).transpose(1, 2)  # (B, 80, T)
    return (((mel + MEL_FLOOR).log() - MEL_MEAN) / MEL_STD)[:, None]  # (B, 1, 80, T)


def normalise_frames(frames, mean, std):
    """Frames (B, F, H, W, 3) uint8 -> (B, 3, F, H, W) float, of zero mean and unit variance where mean and sd hold.

    The result lies in memory as the frames did, with channels last, and so does then whatever the video network makes
    of it: on a CPU that is as fast at a width of 64 and 1.3 to 1.6 times as fast at 8 or 16.
    """
    mean, std = (torch.tensor(x, device=frames.device).repeat(frames.shape[3]) for x in (mean, std))  # (3 W,)
    lines = (frames.flatten(3) * (1 / (255 * std))).sub_(
        mean / std
    )  # whole lines: 4 times as fast as by channel
    return lines.view(frames.shape).permute(0, 4, 1, 2, 3)


# ---- The pair of networks ------------------------------------------------------------------


@dataclass
class Backbone:
    """A frozen video network and a frozen audio network, as `load_backbone` makes them.

    rate_hz, fps, size  what `features` takes: samples and frames per second, side of a frame in pixels
    dim                 D
    audio_stats         (mean (257,), sd (257,)) of the log spectrogram's bins; None = not measured yet
    untrained           those of "video", "audio" that have random weights
    report              a line per network: which of its weights come from where
    """

    name: str
    rate_hz: int
    fps: int
    size: int
    dim: int
    video: nn.Module
    audio: nn.Module
    audio_stats: tuple | None
    untrained: tuple
    precision: str
    report: list

    @property
    def short_side(self):
        """What the short side of a picture is scaled to before the central crop of size x size."""
        return round(self.size / CROP_SHARE)

    @property
    def device(self):
        return next(self.video.parameters()).device

    @property
    def n_parameters(self):
        """Of both networks: 26.5 million for CrissCross, 20.1 for AVID-CMA ("25M" in Section 4.2)."""
        return sum(p.numel() for network in (self.video, self.audio) for p in network.parameters())

    def identity(self):
        """What features depend on besides their clips, JSON-ready: the pair, its sizes, and hashes of its weights."""
        found = {"backbone": self.name, "size": self.size, "dim": self.dim, "precision": self.precision}
        for part in ("video", "audio"):
            state = getattr(self, part).state_dict()
            digest = hashlib.sha256()
            for key in sorted(state):
                digest.update(key.encode() + state[key].cpu().contiguous().numpy().tobytes())
            found[part] = digest.hexdigest()[:16]
        stats = b"".join(np.asarray(x, np.float32).tobytes() for x in self.audio_stats or ())
        return found | {"audio_stats": hashlib.sha256(stats).hexdigest()[:16]}

    def video_input(self, frames):
        """frames (B, F, size, size, 3) uint8, tensor or array -> (B, 3, F, size, size) on the device."""
        frames = torch.as_tensor(frames)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[2:] != (self.size, self.size, 3):
            raise ValueError(
                f"frames {frames.dtype} {tuple(frames.shape)}: {self.name} reads uint8 "
                f"(B, F, {self.size}, {self.size}, 3)"
            )
        return normalise_frames(frames.to(self.device), *(KINETICS if self.name == "kinetics" else IMAGENET))

    def audio_input(self, samples):
        """samples (B, S) float at rate_hz, tensor or array -> (B, 1, T, 257) or (B, 1, 80, T) on the device."""
        samples = torch.as_tensor(samples).to(self.device, torch.float32)
        if self.name == "crisscross":
            return log_mel(samples)
        if self.audio_stats is None:
            raise ValueError(
                f"{self.name}: statistics of the log spectrogram are neither read from a file nor "
                "measured; call measure_audio_stats first"
            )
        mean, std = (torch.as_tensor(x, dtype=torch.float32, device=self.device) for x in self.audio_stats)
        return (log_spectrogram(samples) - mean) / (std + STD_FLOOR)

    def apply(self, network, x):
        with (
            torch.no_grad(),
            torch.autocast(x.device.type, DTYPES[self.precision], enabled=self.precision != "no"),
        ):
            return network(x).float()

    def features(self, audio, video):
        """Features of clips (Section 3.2), each of which depends on its own clip alone.

        audio  (B, S) float samples at rate_hz, S > 512; None = not wanted
        video  (B, F, size, size, 3) uint8 frames at fps; None = not wanted
        Returns audio (B, D), video (B, D) float32 on the device; None for what was None.
        Raises ValueError for frames of another kind, or without statistics of the log spectrogram.
        """
        return (
            None if audio is None else self.apply(self.audio, self.audio_input(audio)),
            None if video is None else self.apply(self.video, self.video_input(video)),
        )


def load_backbone(
    name,
    width,
    size,
    video_checkpoint,
    audio_checkpoint,
    audio_stats,
    random_seed,
    allow_pickle,
    device,
    precision,
):
    """The frozen networks of Section 3.2.

    name              "avid-cma", "crisscross"; "kinetics": torchvision's R(2+1)D-18 for video, AVID-CMA's audio network
    width             w, 64 in the papers; D = 8 w
    size              side of a frame in pixels; 0 = the papers', 224, 112 and 112
    video_checkpoint  file; "" = random weights; "" for "kinetics" without random_seed = torchvision's own download
    audio_checkpoint  file; "" = random weights, but AVID-CMA's one file has both networks and need not be named twice
    audio_stats       npz file with mean and std (257,) of the log spectrogram; "" = to be measured; CrissCross has none
    random_seed       seed of random weights, which `calibrate` must follow; None = random weights are refused
    allow_pickle      load checkpoints that hold more than tensors, which lets them run code of their own
    device            where the networks go
    precision         "no" (fp32), "bf16" or "fp16", as accelerator.mixed_precision says
    Returns a Backbone. Raises UserError where a file is missing, is not a checkpoint, or does not fit the networks.
    """
    if name not in NAMES:
        raise UserError(f"backbone {name!r}: unknown; choose one of {', '.join(NAMES)}")
    if name == "kinetics" and width != 64:
        raise UserError(
            f"backbone 'kinetics' with a width of {width}: torchvision's network is 64 wide; set the width "
            "to 64"
        )
    if name == "avid-cma":
        audio_checkpoint = audio_checkpoint or video_checkpoint
    networks, report, untrained = build_networks(name, width, random_seed or 0), [], []
    files, opened = {"video": video_checkpoint, "audio": audio_checkpoint}, {}
    for part, network in networks.items():
        weights = None
        if file := str(files[part] or ""):
            opened[file] = content = opened.get(file) or read_checkpoint(file, allow_pickle)
            weights = network_weights(content, part)
        elif name == "kinetics" and part == "video" and random_seed is None:
            file, weights = "torchvision", downloaded_weights()
        if weights is not None:
            report.append(f"{name}, {part}: " + load_weights(network, weights, part, width, file))
        elif random_seed is None:
            raise UserError(
                f"backbone {name!r}: no checkpoint named for its {part} network; name the file of the "
                "authors' weights, or allow random ones"
            )
        else:
            untrained.append(part)
            report.append(f"{name}, {part}: random weights of seed {random_seed}")
    networks = {part: network.to(device).eval().requires_grad_(False) for part, network in networks.items()}
    stats = read_audio_stats(audio_stats) if audio_stats and name != "crisscross" else None
    return Backbone(
        name,
        RATES_HZ[name],
        FPS,
        size or SIZES_PX[name],
        8 * width,
        **networks,
        audio_stats=stats,
        untrained=tuple(untrained),
        precision=precision,
        report=report,
    )


def build_networks(name, width, seed):
    """{"video": network, "audio": network} with He's first weights, which depend on the seed alone.

    BatchNorm starts from a bias of RANDOM_BIAS, so that nearly every value passes its ReLU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "kinetics":
            video = r2plus1d_18(weights=None)
            video.fc = nn.Identity()
        else:
            video = R2Plus1D(width, "average" if name == "crisscross" else "max")
        networks = {
            "video": video,
            "audio": CrissCrossAudio(width) if name == "crisscross" else AVIDAudio(width),
        }
        for module in nn.ModuleDict(networks).modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, _BatchNorm):
                nn.init.constant_(module.bias, RANDOM_BIAS)
    return networks


# ---- Checkpoints ---------------------------------------------------------------------------


def read_checkpoint(path, allow_pickle):
    """The dict in a checkpoint; its tensors stay on disk until they are used, where the file's format allows.

    AVID-CMA's files hold memory banks of up to 1.8 GB that nobody needs here. Those of before PyTorch 1.6 are read
    whole.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path of the checkpoint")
    try:
        content = torch.load(
            path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=not allow_pickle
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AttributeError, ImportError) as error:
        if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path}: holds an object of {found[1]} besides tensors, and loading it could run any "
                "code; set ALLOW_PICKLE=True if you trust where the file comes from"
            ) from error
        raise UserError(
            f"{path}: not a whole PyTorch checkpoint ({first_words(path, error)}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not a dict of weights; name the authors' checkpoint"
        )
    return content


def first_words(path, error):
    """What is wrong with a file, in a few words."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, whose file is not there"
    if not head or head.lstrip().startswith(b"<"):
        return "a web page" if head else "an empty file"
    return str(error).strip().partition("\n")[0][:80] or type(error).__name__


def network_weights(content, part):
    """The weights of one network, by its own names, and the names of everything else, from any of the authors' files.

    content  of `read_checkpoint`. AVID-CMA's has "model" with keys module.video_model.*, module.audio_model.* and
             heads; CrissCross's and torchvision's are the weights of one network and nothing else
    part     "video" or "audio"
    Returns (weights {name: tensor}, others [name]).
    """
    model = content["model"] if isinstance(content.get("model"), dict) else content
    model = {str(key).removeprefix("module."): value for key, value in model.items()}
    prefix = f"{part}_model."
    if not any(key.startswith(("video_model.", "audio_model.")) for key in model):
        return model, []
    return (
        {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)},
        [key for key in model if not key.startswith(prefix)],
    )


def load_weights(network, weights, part, width, file):
    """Copy weights into a network; all that it has must be there and fit, but BatchNorm's counters of batches.

    weights  of `network_weights`
    Returns a line that says what was loaded, skipped and missing. Raises UserError.
    """
    weights, others = weights
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
        if getattr(value, "shape", None) != wanted[key].shape:
            raise UserError(
                f"{file}: {key} is {tuple(getattr(value, 'shape', ()))} where a network of width {width} "
                f"has {tuple(wanted[key].shape)}; change the width or name another checkpoint"
            )
    network.load_state_dict(wanted | loaded)
    skipped = Counter(
        key.partition(".")[0] for key in [*others, *(key for key in weights if key not in wanted)]
    )
    listed = ", ".join(f"{n} of {name}" for name, n in sorted(skipped.items())) or "none"
    return f"{len(loaded)} keys loaded from {Path(file).name}, skipped {listed}, {len(wanted) - len(loaded)} missing"


def downloaded_weights():
    """Torchvision's R(2+1)D-18 trained on Kinetics-400, from its own address or the local cache of it."""
    try:
        return R2Plus1D_18_Weights.KINETICS400_V1.get_state_dict(progress=False, check_hash=True), []
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's R(2+1)D-18: cannot be downloaded ({error}); download "
            f"{R2Plus1D_18_Weights.KINETICS400_V1.url} elsewhere and name the file"
        ) from error


def read_audio_stats(path):
    """(mean, std), (257,) each, of the bins of the log spectrogram from an npz file. Raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            stats = tuple(np.asarray(file[key], np.float32) for key in ("mean", "std"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not an npz file with mean and std ({error}); name {STATS_FILE} of AVID-CMA, or "
            "none to have them measured"
        ) from error
    if any(x.shape != (AVID_BINS,) or not np.isfinite(x).all() for x in stats) or (stats[1] < 0).any():
        raise UserError(
            f"{path}: mean and std must be {AVID_BINS} finite numbers each, these have shapes "
            f"{stats[0].shape} and {stats[1].shape}; name {STATS_FILE} of AVID-CMA"
        )
    return stats


# ---- What it would cost to train them ------------------------------------------------------


def training_seconds(backbone, clip_s, accelerator):
    """Seconds of forward and backward pass per clip of clip_s seconds, the median of three steps on copies."""
    video, audio = (
        copy.deepcopy(network).train().requires_grad_(True) for network in (backbone.video, backbone.audio)
    )
    frames = torch.randint(
        0,
        256,
        (COST_CLIPS, max(1, round(clip_s * backbone.fps)), backbone.size, backbone.size, 3),
        dtype=torch.uint8,
    )
    samples, seconds = 0.1 * torch.randn(COST_CLIPS, round(clip_s * backbone.rate_hz)), []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        with accelerator.autocast():
            out = video(backbone.video_input(frames)).sum() + audio(backbone.audio_input(samples)).sum()
        out.backward()
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:])) / COST_CLIPS


# ---- Without the authors' files ------------------------------------------------------------


def measure_audio_stats(backbone, batches, path):
    """Measure mean and sd of every bin of the log spectrogram, where the authors' file is not at hand; write them.

    Noise has an sd of 4 dB here. A bin with less than MIN_STD_DB is empty, as all above 8 kHz are in recordings that
    once had 16 kHz, and must not be blown up where a later clip does have something there.

    batches  iterable of (audio (B, S), video), of training clips that are not mere padding: silence is 100 dB below
             speech; None for audio is passed over
    path     npz file to write, which `load_backbone` then takes as audio_stats
    """
    count, total, squares = 0, 0.0, 0.0
    for samples in (audio for audio, _ in batches if audio is not None):
        bins = (
            log_spectrogram(torch.as_tensor(samples).to(backbone.device, torch.float32))
            .double()
            .flatten(0, 2)
        )
        count, total, squares = count + len(bins), total + bins.sum(0), squares + bins.square().sum(0)
    if not count:
        raise ValueError("no clips to measure statistics of")
    mean = total / count  # (257,)
    std = (squares / count - mean.square()).clamp(min=MIN_STD_DB**2).sqrt()
    backbone.audio_stats = tuple(x.float().cpu().numpy() for x in (mean, std))
    with atomic_path(path) as temporary:
        np.savez(temporary, mean=backbone.audio_stats[0], std=backbone.audio_stats[1])


def measure_stats(backbone, batches, path):
    """`measure_audio_stats` of batches some of which lack audio; UserError where nobody who trains has any."""
    audio = [audio for audio, _ in batches if audio is not None]  # no pictures: they would fill the memory
    if not audio:
        raise UserError(
            f"{backbone.name}: no training recording has audio to measure its spectrograms on; name "
            "AVID_STATS and the checkpoints, or leave it out of BACKBONES"
        )
    make_folder(path.parent)
    measure_audio_stats(backbone, [(samples, None) for samples in audio], path)


@torch.no_grad()
def calibrate(backbone, batches):
    """Give the untrained networks of a backbone the BatchNorm statistics of some clips.

    With the statistics of a new BatchNorm, 0 and 1, the features of random weights grow from layer to layer. After this
    every BatchNorm brings its channels to zero mean and unit variance over these clips, before RANDOM_BIAS is added.
    That is what the demo and a run without the authors' weights work with; loaded networks stay as they are.

    batches  iterable of (audio (B, S), video (B', F, size, size, 3)) of training clips, None for either is passed over,
             B and B' >= 8 or so: the statistics are the mean of those of the batches
    """
    parts = [(getattr(backbone, part), part) for part in backbone.untrained]
    norms = [module for network, _ in parts for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return  # nothing to do, and no clip to decode for it
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    try:
        for audio, video in batches:
            for network, part in parts:
                if (audio if part == "audio" else video) is not None:
                    network(backbone.audio_input(audio) if part == "audio" else backbone.video_input(video))
    finally:
        for norm in norms:
            norm.momentum = 0.1
            norm.eval()
    if not all(norm.num_batches_tracked for norm in norms):
        raise ValueError("no clips to calibrate on")


def random_checkpoints(folder, load, seed, clips, batches_of):
    """Files in the authors' formats with random networks, calibrated on clips; written once for these clips.

    folder      where they lie; load: {"name", "width", "size", "device", "precision"} of `load_backbone`; seed: weights
    clips       what the clips are, as a hash: others make other networks
    batches_of  backbone -> batches of clips as `calibrate` takes them
    Returns {"video_checkpoint", "audio_checkpoint", "audio_stats": path} as `load_backbone` takes them.
    """
    note = folder / "files.json"
    if not note.exists() or read_json(note).get("clips") != clips:
        backbone = load_backbone(
            **load,
            video_checkpoint="",
            audio_checkpoint="",
            audio_stats="",
            random_seed=seed,
            allow_pickle=False,
        )
        batches = list(batches_of(backbone))
        if backbone.name != "crisscross":
            measure_stats(backbone, batches, folder / "measured.npz")
        # A network whose modality nobody has will read nothing: there is no clip to calibrate it on, and no need.
        has = {part for batch in batches for part, clip in zip(("audio", "video"), batch) if clip is not None}
        backbone.untrained = tuple(part for part in backbone.untrained if part in has)
        calibrate(backbone, batches)
        files = write_checkpoints(folder, backbone)
        names = {key: Path(path).name if path else "" for key, path in files.items()}
        write_json(note, {"clips": clips, "files": names})
    return {key: str(folder / name) if name else "" for key, name in read_json(note)["files"].items()}


def write_checkpoints(folder, backbone):
    """Write the networks of a backbone as the authors publish theirs, for the demo and the tests.

    AVID-CMA: one file with epoch, model (both networks and their projection heads), optimizer and train_criterion with
    its memory banks, all of them small, and the npz of the log spectrogram's statistics. CrissCross: a file per
    network.
    Returns {"video_checkpoint", "audio_checkpoint", "audio_stats": path} as `load_backbone` takes them.
    """
    folder, weights = (
        make_folder(folder),
        {part: getattr(backbone, part).state_dict() for part in ("video", "audio")},
    )
    if backbone.name == "crisscross":
        paths = {part: folder / file for part, file in CRISSCROSS_FILES.items()}
        for part, path in paths.items():
            save(weights[part], path)
        return {"video_checkpoint": paths["video"], "audio_checkpoint": paths["audio"], "audio_stats": ""}
    if backbone.name != "avid-cma" or backbone.audio_stats is None:
        raise ValueError(
            f"{backbone.name}: only AVID-CMA, with its statistics, and CrissCross have files of their own"
        )
    model = {f"module.{part}_model.{key}": value for part in weights for key, value in weights[part].items()}
    heads = {f"module.{part}_proj.0.weight": torch.zeros(8, backbone.dim) for part in weights}
    banks = {"nce_average.view1_mem": torch.zeros(16, 8), "nce_average.view2_mem": torch.zeros(16, 8)}
    save(
        {
            "epoch": 0,
            "model": model | heads,
            "optimizer": {"state": {}, "param_groups": []},
            "train_criterion": banks,
        },
        folder / AVID_FILE,
    )
    with atomic_path(folder / STATS_FILE) as temporary:
        np.savez(temporary, mean=backbone.audio_stats[0], std=backbone.audio_stats[1])
    return {
        "video_checkpoint": folder / AVID_FILE,
        "audio_checkpoint": folder / AVID_FILE,
        "audio_stats": folder / STATS_FILE,
    }


def save(content, path):
    with atomic_path(path) as temporary:
        torch.save(content, temporary)
