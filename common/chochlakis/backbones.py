"""The frozen networks of Chochlakis et al. 2024, Sec. 3.2: AVID-CMA [1] and CrissCross [3].

Layers bear the names that they have in the authors' files. A feature belongs to its clip alone: every clip
has a spectrogram of its own, and BatchNorm uses its stored statistics.

B clips, S samples, F frames of H x W pixels, T frames of a spectrogram, w width of a network, D = 8 w.
"""

from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torchaudio.functional import amplitude_to_DB
from torchaudio.transforms import MelSpectrogram, Spectrogram
from torchvision.models.resnet import BasicBlock

from common.files import UserError, atomic_path, check_finite
from common.layers import build, read_checkpoint, weights_hash
from common.pictures import IMAGENET, normalise_frames
from common.training import exact

RATES_HZ = {"avid-cma": 24000, "crisscross": 16000}
SIZES_PX = {"avid-cma": 224, "crisscross": 112}  # side of a frame in the published networks
FPS = 16  # of both papers
MODALITIES = ("audio", "video")
N_FFT = 1024  # also the Hann window, in both
AVID_HOP, AVID_BINS = 240, 257
TOP_DB, POWER_FLOOR, STD_FLOOR = 100.0, 1e-10, 1e-5
MIN_STD_DB = 1.0  # of a bin, where we measure it: noise has 4 dB, an empty bin less than 1
MEL_HOP, MEL_BINS = 160, 80
MEL_FLOOR = float(np.finfo(np.float32).eps)  # as CrissCross has it
MEL_MEAN, MEL_STD = -5.3688107, 4.410007
# Standard deviations by which BatchNorm lifts what random networks compute: with 0, where half is cut off in
# every layer, a linear map of the features explained 0.05 of the colours of new clips, with 2 it was 0.52.
RANDOM_BIAS = 2.0


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

    pool  over all of space and time: torch.amax (AVID-CMA) or torch.mean (CrissCross)
    """

    def __init__(self, width, pool):
        super().__init__()
        self.pool = pool
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
    """A CNN on spectrograms -> (B, 8 w): a stem, four stages of make_stage(n_in, n_out, stride), a pool.

    AVID-CMA's reads the log spectrogram (B, 1, T, 257), CrissCross's, a ResNet-18, log-mel (B, 1, 80, T).
    """

    def __init__(self, width, make_stage, strides, pool, *after_stem):
        super().__init__()
        self.pool, n = pool, (width, width, 2 * width, 4 * width, 8 * width)
        stem = conv(1, width, (7, 7), 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv1 = nn.Sequential(*stem, *after_stem)
        self.block1, self.block2, self.block3, self.block4 = map(make_stage, n[:4], n[1:], strides)

    def forward(self, x):
        x = self.block2(self.block1(self.conv1(x)))
        return self.pool(self.block4(self.block3(x)), (2, 3))


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


def log_mel(samples):
    """What CrissCross's audio network reads, of samples (B, S) at 16 kHz: (B, 1, 80, 1 + S // 160).

    Slaney's triangles of equal area between 0 and 8 kHz.
    """
    slaney = {"norm": "slaney", "mel_scale": "slaney"}
    mel = MelSpectrogram(16000, N_FFT, hop_length=MEL_HOP, n_mels=MEL_BINS, **slaney)
    mel = mel.to(samples.device)(samples)  # (B, 80, T)
    return (((mel + MEL_FLOOR).log() - MEL_MEAN) / MEL_STD)[:, None]


# ---- The pair of networks ------------------------------------------------------------------


class Backbone(nn.Module):
    """A frozen audio network and a frozen video network, as `load_backbone` makes them.

    name   "avid-cma" or "crisscross"; width: w, 64 in the papers; size: side of a frame in pixels
    """

    def __init__(self, name, width, size):
        super().__init__()
        self.name, self.rate_hz, self.size, self.dim = name, RATES_HZ[name], size, 8 * width
        if name == "crisscross":
            shape = residual_blocks, (1, 2, 2, 2), torch.mean, nn.MaxPool2d(3, 2, 1)
        else:
            shape = AudioBlock, (2, 2, 2, 1), torch.amax
        self.audio, self.video = AudioNetwork(width, *shape), R2Plus1D(width, shape[2])
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, _BatchNorm):
                nn.init.constant_(module.bias, RANDOM_BIAS)
        self.bins = nn.BatchNorm1d(AVID_BINS, eps=1e-20, affine=False)  # of AVID-CMA's spectrogram
        self.unmeasured = []  # names of parts whose BatchNorms know nothing of the clips

    def identity(self):
        """What features depend on besides their clips, JSON-ready."""
        return {"backbone": self.name, "size": self.size, "weights": weights_hash(self.state_dict())}

    def read(self, part, clips):
        """What a part reads of clips.

        part   "video", of frames (B, F, size, size, 3) uint8 at FPS; or "audio", of samples (B, S) float32 at
               rate_hz, S > 512; or "bins", of the same
        """
        clips = torch.as_tensor(clips).to(next(self.parameters()).device)
        if part == "video":
            return normalise_frames(clips, *IMAGENET)  # (B, 3, F, size, size)
        if self.name == "crisscross":
            return log_mel(clips)  # (B, 1, 80, T)
        bins = log_spectrogram(clips)  # (B, 1, T, 257)
        return bins.flatten(0, 2) if part == "bins" else self.bins(bins.flatten(0, 2)).view_as(bins)

    @torch.no_grad()
    def forward(self, part, clips):
        """Features (B, D) of the "audio" or "video" of clips, in float32; see `read` (Section 3.2)."""
        with exact():
            return getattr(self, part)(self.read(part, clips))


def load_backbone(name, files, width, size):
    """The frozen networks of Section 3.2 as a Backbone; prints where their weights come from.

    files  {"audio", "video": checkpoint, "bins": npz}; AVID-CMA's checkpoint has both networks. "": random
           weights, or statistics that are to be measured; `measure` must follow
    size   side of a frame in pixels, 0 = the papers'
    """
    backbone = build(0, Backbone, name, width, size or SIZES_PX[name])
    backbone.unmeasured = [part for part, file in files.items() if not file]
    for part in MODALITIES:
        network, told = getattr(backbone, part), "random weights"
        if file := files[part]:
            weights = network_weights(read_checkpoint(file), part)
            needed = [key for key in network.state_dict() if not key.endswith("num_batches_tracked")]
            told = load_fitting(network, weights, needed, file, "BACKBONE_WIDTH")
        else:
            setattr(backbone, part, nn.Sequential(network, nn.BatchNorm1d(backbone.dim, affine=False)))
        print(f"  {name}, {part}: {told}")
    if files.get("bins"):
        backbone.bins.running_mean, backbone.bins.running_var = read_bins(files["bins"])
    return backbone.eval().requires_grad_(False)


# ---- The authors' checkpoints --------------------------------------------------------------


def network_weights(content, part):
    """The weights of a network by its own names, and all else, from what `read_checkpoint` gives.

    AVID-CMA's file has "model" with module.video_model.*, module.audio_model.* and heads; CrissCross's files
    are the weights of one network.
    """
    model = content["model"] if isinstance(content.get("model"), dict) else content
    return {str(k).removeprefix("module.").removeprefix(f"{part}_model."): x for k, x in model.items()}


def load_cavmae(model, path):
    """Start 06's autoencoder from CAV-MAE [9]: "results in better downstream performance" (Sec. 3.3).

    model  has CAV-MAE's names of layers, without "attn." and "mlp."; of fewer blocks it takes the first ones
    path   a state dict as the authors saved it, 647 tensors, of which a model of their sizes takes 383: what
           belongs to patches or to the contrastive loss has no place in it
    """
    weights = {}
    for name, tensor in read_checkpoint(path).items():
        weights[str(name).removeprefix("module.").replace(".attn.", ".").replace(".mlp.", ".")] = tensor
    needed = ["blocks_a.0.qkv.weight", "blocks_u.0.qkv.weight", "mask_token"]
    return load_fitting(model, weights, needed, path, "MAE_WIDTH and DECODER_WIDTH")


def load_fitting(network, weights, needed, path, sizes):
    """Copy weights into a network where name and shape agree; returns what was loaded, skipped and left.

    Raises UserError for a name in `needed` that does not fit; sizes: the constants that it depends on.
    """
    own = network.state_dict()
    loaded = {k: x for k, x in weights.items() if k in own and getattr(x, "shape", None) == own[k].shape}
    if absent := [name for name in needed if name not in loaded]:
        what = f"{len(absent)} of {len(needed)} weights are absent or of another shape, first {absent[0]}"
        raise UserError(f"{path}: {what}; name the authors' file for this network, and its sizes in {sizes}")
    check_finite(path, loaded)
    network.load_state_dict(own | loaded)
    skipped, left = listed(weights.keys() - loaded.keys()), listed(own.keys() - loaded.keys())
    return f"{len(loaded)} tensors of {Path(path).name} loaded, skipped {skipped}; left as they were: {left}"


def listed(keys):
    """Names of tensors by the module that they belong to: "54 of audio_model, 1 of audio_proj"."""
    counts = Counter(key.partition(".")[0] for key in keys)
    return ", ".join(f"{n} of {name}" for name, n in sorted(counts.items())) or "none"


def read_bins(path):
    """Mean and variance (257,) of the bins of the log spectrogram from AVID-CMA's npz file."""
    with suppress(Exception), np.load(path) as file:  # numpy and zipfile raise many kinds
        mean, std = torch.from_numpy(np.array([file["mean"], file["std"]], np.float32))
        if mean.shape == (AVID_BINS,) and (mean.isfinite() & (std >= 0)).all():
            return mean, (std + STD_FLOOR).square()
    what = f"not an npz file with {AVID_BINS} finite numbers in mean and in std"
    remedy = 'name audio-spectDB-24k-513-norm-stats.npz of AVID-CMA, or AVID_STATS="" to have them measured'
    raise UserError(f"{path}: {what}; {remedy}")


# ---- Without the authors' files ------------------------------------------------------------


@torch.no_grad()
def measure(backbone, batches, path, identity):
    """Measure on training clips what a backbone lacks, or read what was measured on the same ones before.

    That is mean and sd of the log spectrogram's bins without AVID-CMA's file, and BatchNorm's statistics in
    random networks, so that every channel, and every feature at the end, has mean 0 and sd 1. A bin that
    hardly varies, as all above 8 kHz in what was once recorded at 16 kHz, must not be blown up.
    batches         batches("audio" or "video") gives batches of whole clips
    path, identity  file to keep the outcome in; JSON-ready, which clips these are
    """
    kept = read_checkpoint(path) if backbone.unmeasured and Path(path).exists() else {}
    if kept.get("identity") == identity:
        backbone.load_state_dict(kept["state"])
    elif backbone.unmeasured:
        for part in backbone.unmeasured:
            clips = batches("video" if part == "video" else "audio")
            update_bn((backbone.read(part, x) for x in clips), getattr(backbone, part))
            backbone.bins.running_var.clamp_(min=MIN_STD_DB**2)
        with atomic_path(path) as temporary:
            torch.save({"identity": identity, "state": backbone.state_dict()}, temporary)
