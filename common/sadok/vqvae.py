"""The VQ-VAE that VQ-MAE-S builds on (Sadok et al. 2023, Section 2.1) and its training.

Sizes that the paper leaves out are those of the authors' public code. Their network normalises by statistics
of whatever is encoded together, so that a frame's codes change with its neighbours. In the paper the code of
a frame depends on that frame alone: this network reads log power, standardised for each frequency bin by
constants of the training set, and has no normalisation layer.

N frames, T frames of a clip, D = 513 frequency bins, D' = 64 codes of a frame, K codes of size e.
"""

import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from common.files import UserError
from common.media import MediaError, read_audio
from common.sadok.data import audio_paths
from common.training import Place, Task, best_weights, exact, load_trained, seed_step, train_and_test

RATE_HZ = 16000
N_FFT = 1024  # also the Hann window: 64 ms
HOP = 320  # 20 ms, an overlap of 68.75 %: "70 %" in the paper
N_BINS = 513  # D
N_ROWS = 64  # D', codes per frame

POWER_FLOOR = 1e-10  # added to every power: a clip at full scale and 16 bits has noise of about 3e-8
EMA_DECAY = 0.99  # of the codebook's running sums
EMA_SMOOTHING = 1e-5  # Laplace smoothing of the running counts
COMMITMENT = 0.25  # weight of the commitment loss
RESTART_BELOW = 0.03  # a code with less than this part of a fair share (1 / K) starts anew. Not in the paper
RESTART_SHARE = 0.1  # part of a fair share that it is then credited with
CHUNK_FRAMES = {"cpu": 256}  # encoded at once, which bounds the memory at any length; elsewhere 1 << 14
SILENCE_PEAK = 1e-4  # full scale = 1
CACHED_CLIPS = 8192  # kept decoded in memory: 2 GB where they last 4 s
STATISTICS_CLIPS = 256  # their frames give the constants of the input
MAX_UNREADABLE = 100  # so many clips in a row that cannot be read end a run


# ---- Power spectrogram (Section 3.1.1) -----------------------------------------------------


def read_clip(path):
    """Samples (n,) of a clip with their peak at 1; MediaError where it is too short or silent."""
    samples = read_audio(path, rate_hz=RATE_HZ)
    peak, remedy = float(abs(samples).max()), "leave it out of the corpus, or ignore"
    if len(samples) < N_FFT:
        what = f"too short: {len(samples) / RATE_HZ:.3f} s, less than {N_FFT / RATE_HZ} s"
        raise MediaError(path, what, remedy)
    if peak <= SILENCE_PEAK:  # no emotion, and the logarithm of zero
        raise MediaError(path, f"silence: no sample above {SILENCE_PEAK:g}", remedy)
    return torch.from_numpy(samples / peak)


cached_clip = lru_cache(CACHED_CLIPS)(read_clip)


def power_spectrogram(samples, frames=None):
    """Squared magnitude of the short-time Fourier transform: samples (n,) -> (1 + n // 320, 513).

    Frame t is centred on sample 320 t; silence surrounds the clip. frames (N,): only these, (N, 513).
    """
    pieces = F.pad(samples, (N_FFT // 2, N_FFT // 2)).unfold(0, N_FFT, HOP)  # (T, 1024), a view
    pieces = pieces if frames is None else pieces[frames]
    window = torch.hann_window(N_FFT, dtype=samples.dtype, device=samples.device)
    spectrum = torch.fft.rfft(pieces * window)
    return spectrum.real.square() + spectrum.imag.square()


class PowerLinear(nn.Linear):
    """A linear layer from or to power, always in fp32: loud speech has more than fp16's 65,504."""

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


# ---- Codebook ------------------------------------------------------------------------------


class Codebook(nn.Module):
    """K vectors of size e, each the running mean of the encoder outputs nearest to it.

    A code that nearly nothing is assigned to starts anew from an encoder output of the batch; in the first
    step that is every code but one. In training every process must call it once per step.
    """

    def __init__(self, n_codes, code_size):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(n_codes, code_size))  # (K, e)
        self.register_buffer("counts", torch.zeros(n_codes))  # assignments per step, running
        self.register_buffer("sums", torch.zeros(n_codes, code_size))  # of the vectors assigned, running

    def nearest(self, z):
        """Number of the code with the least squared distance to each row of z (M, e): (M,) int64."""
        offset = -0.5 * self.vectors.square().sum(1)
        with torch.autocast(z.device.type, enabled=False):  # codes must not depend on the precision of a run
            return torch.addmm(offset, z, self.vectors.T).argmax(1)

    def forward(self, z):
        """z (M, e) -> quantised (M, e), codes (M,); the gradient passes straight through to z."""
        codes = self.nearest(z.detach())
        quantised = F.embedding(codes, self.vectors)
        if self.training:
            self.learn(z.detach(), codes)
        return z + (quantised - z).detach(), codes

    def learn(self, z, codes):
        """One step of the exponential moving averages; codes that are hardly used are replaced."""
        n_codes = len(self.vectors)
        found = torch.zeros(n_codes, 1 + z.shape[1], device=z.device)  # of each code: count, sum of vectors
        found.index_add_(0, codes, F.pad(z, (1, 0), value=1.0))
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(found)
        self.counts.lerp_(found[:, 0], 1 - EMA_DECAY)
        self.sums.lerp_(found[:, 1:], 1 - EMA_DECAY)
        fair = found[:, 0].sum() / n_codes
        unused, anew = self.counts < RESTART_BELOW * fair, RESTART_SHARE * fair
        self.counts.copy_(torch.where(unused, anew, self.counts))  # an index by `unused` would wait for a GPU
        self.sums.copy_(torch.where(unused[:, None], anew * some_rows(z, n_codes), self.sums))
        total = self.counts.sum()
        size = (self.counts + EMA_SMOOTHING) / (total + n_codes * EMA_SMOOTHING) * total
        self.vectors.copy_(self.sums / size[:, None])


def some_rows(z, n):
    """n rows of z (M, e) at random, the same in every process; training.fit has seeded the step."""
    rows = z[torch.randint(len(z), (n,)).to(z.device)]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(rows, 0)
    return rows


# ---- Network (Section 2.1) -----------------------------------------------------------------


def conv(n_in, n_out, kernel, stride, padding, bias=True, kind=nn.Conv2d):
    """Convolution along frequency; as a row of a 2-D convolution about five times faster than nn.Conv1d."""
    return kind(n_in, n_out, (1, kernel), (1, stride), (0, padding), bias=bias)


deconv = partial(conv, kind=nn.ConvTranspose2d)


class Residual(nn.Module):
    """x + 1-conv(tanh(3-conv(tanh(x))))."""

    def __init__(self, n):
        super().__init__()
        three, one = conv(n, n, 3, 1, 1, bias=False), conv(n, n, 1, 1, 0, bias=False)
        self.body = nn.Sequential(nn.Tanh(), three, nn.Tanh(), one)

    def forward(self, x):
        return x + self.body(x)


class VQVAE(nn.Module):
    """Frames of a power spectrogram (N, 513) <-> 64 codes each (N, 64); inside (N, channels, 1, bins)."""

    def __init__(self, n_codes, code_size):
        super().__init__()
        self.register_buffer("mean", torch.zeros(N_BINS))  # of log power in the training set
        self.register_buffer("sd", torch.ones(N_BINS))
        self.codebook = Codebook(n_codes, code_size)
        # Lengths along frequency: 513 -> 256 -> 128 -> 64, and back
        down = conv(1, 16, 4, 2, 1), nn.Tanh(), conv(16, 32, 4, 2, 1), nn.Tanh(), conv(32, 32, 3, 2, 1)
        code = Residual(32), Residual(32), nn.Tanh(), conv(32, code_size, 1, 1, 0)
        self.encoder = nn.Sequential(*down, *code)
        decode = conv(code_size, 32, 3, 1, 1), Residual(32), Residual(32), nn.Tanh()
        up = deconv(32, 32, 4, 2, 1), nn.Tanh(), deconv(32, 16, 4, 2, 1), nn.Tanh(), deconv(16, 1, 3, 2, 0)
        self.decoder = nn.Sequential(*decode, *up)
        self.to(memory_format=torch.channels_last)

    def standardise(self, power):
        """Set the constants of the input from frames (N, 513) of the training set."""
        logs = log_power(power)
        self.mean.copy_(logs.mean(0))
        # Stationary noise has 1.28; less than 1 is an empty bin, as above 4 kHz in telephone speech
        self.sd.copy_(logs.std(0).clamp(min=1.0))

    def embed(self, power):
        """Encoder: (N, 513) -> (N, 64, e)."""
        with torch.autocast(power.device.type, enabled=False):
            x = (log_power(power.float()) - self.mean) / self.sd
            return self.encoder(x[:, None, None])[:, :, 0].transpose(1, 2)

    def reconstruct(self, quantised):
        """Decoder: (N, 64, e) -> log power (N, 513)."""
        with torch.autocast(quantised.device.type, enabled=False):
            y = self.decoder(quantised.float().transpose(1, 2)[:, :, None])[:, 0, 0]
            return y * self.sd + self.mean

    def forward(self, power):
        """power (N, 513) -> log power of the reconstruction (N, 513), codes (N, 64), commitment loss."""
        z = self.embed(power)  # (N, 64, e)
        quantised, codes = self.codebook(z.flatten(0, 1))
        quantised = quantised.view_as(z)
        commitment = F.mse_loss(z, quantised.detach())
        return self.reconstruct(quantised), codes.view(z.shape[:2]), commitment

    @torch.inference_mode()
    def encode(self, power):
        """power (N, 513) -> codes (N, 64) uint8, in fp32 without TF32: that would change every 800th code."""
        parts = power.split(CHUNK_FRAMES.get(power.device.type, 1 << 14))
        with exact():
            codes = [self.codebook.nearest(self.embed(part).flatten(0, 1)) for part in parts]
        return torch.cat(codes).view(-1, N_ROWS).to(torch.uint8)

    @torch.inference_mode()
    def decode(self, codes):
        """codes (N, 64), any integer type -> power (N, 513)."""
        return self.reconstruct(F.embedding(codes.long(), self.codebook.vectors)).exp()


# ---- Losses and figures --------------------------------------------------------------------


def log_power(power):
    """Natural logarithm of power plus its floor, so that silence (zero power) has one, about -23."""
    return (power + POWER_FLOOR).log()


def itakura_saito(log_x, log_y):
    """Itakura-Saito divergence, mean over bins of x/y - log(x/y) - 1, of log powers (N, 513) twice -> (N,)"""
    difference = log_x - log_y
    return (difference.exp() - difference - 1).mean(-1)


def perplexity(counts):
    """exp of the entropy of how often each code is used, counts (K,): 1 = always the same, K = all alike."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def vqvae_loss(model, batch):
    """Itakura-Saito divergence and commitment, for training.fit; batch["power"] (B, F, 513)."""
    power, n_clips = batch["power"].flatten(0, 1), len(batch["power"])  # (B * F, 513)
    log_y, _, commitment = model(power)
    loss = itakura_saito(log_power(power), log_y).mean() + COMMITMENT * commitment
    return loss * n_clips, n_clips


def vqvae_outputs(model, batch):
    """Divergence of each clip (B,), and how often it has each code (B, K), for training.predict."""
    power, n_clips = batch["power"].flatten(0, 1), len(batch["power"])
    codes = model.encode(power)
    divergence = itakura_saito(log_power(power), log_power(model.decode(codes))).view(n_clips, -1).mean(1)
    codes = codes.long().view(n_clips, -1)
    counts = torch.zeros(n_clips, len(model.codebook.vectors), device=power.device)
    return {"divergence": divergence, "counts": counts.scatter_add_(1, codes, torch.ones_like(codes).float())}


def vqvae_figures(found, dataset):
    used = perplexity(found["counts"].sum(0))
    return {"itakura_saito": float(found["divergence"].mean()), "perplexity": used}


# ---- Data ----------------------------------------------------------------------------------


class Frames:
    """A data set: power (F, 513) of some frames of a clip; a clip that cannot be read gives way to the next.

    n_items  of an epoch, whose seeds draw clip and frames; 0 = every clip, its frames spread evenly
    """

    def __init__(self, paths, frames_per_clip, n_items=0):
        self.paths, self.frames_per_clip = [Path(path) for path in paths], frames_per_clip
        self.draw, self.lengths = bool(n_items), [1] * (n_items or len(paths))

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, key):
        index, seed = key
        generator = np.random.default_rng(seed)
        first = int(generator.integers(len(self.paths))) if self.draw else index
        samples = self.first_readable(first)
        n_frames = 1 + len(samples) // HOP
        chosen = np.linspace(0, n_frames - 1, self.frames_per_clip).round().astype(int)
        if self.draw:
            chosen = generator.integers(n_frames, size=self.frames_per_clip)
        return power_spectrogram(samples, torch.from_numpy(chosen))

    def first_readable(self, first):
        """Samples of clip `first`, or of the next one that can be read."""
        for i in range(first, first + min(MAX_UNREADABLE, len(self.paths))):
            try:
                return cached_clip(self.paths[i % len(self.paths)])
            except MediaError as error:
                print(f"passed over: {error}", file=sys.stderr)
        remedy = "cannot be read; run 01_prepare_data.py again"
        raise UserError(f"{self.paths[first]}: this clip and the {i - first} after it {remedy}")

    def collate(self, items):
        return {"power": torch.stack(items)}  # (B, F, 513)


# ---- Training ------------------------------------------------------------------------------


def train_vqvae(accelerator, pretraining, recipe, codebook, frames_per_clip, steps):
    """The VQ-VAE that the same call has left in the folder of a Pretraining, or a new one.

    An epoch has `steps` steps; the Itakura-Saito divergence on held-out speakers chooses it.
    codebook  how many codes it has, and their size
    """
    folder = pretraining.folder / "vqvae"
    identity = {
        "spectrogram": [RATE_HZ, N_FFT, HOP, POWER_FLOOR],
        "codebook": [*codebook, EMA_DECAY, COMMITMENT, RESTART_BELOW, RESTART_SHARE],
        "frames": [steps, frames_per_clip],
        "speech": pretraining.identity(),
    }
    train, held_out = (audio_paths(pretraining.data_root, turns) for turns in pretraining.turns())
    train_set = Frames(train, frames_per_clip, recipe.batch_size * steps)

    def make_model():
        seed_step(recipe.seed)
        model = VQVAE(*codebook)
        items = [train_set[i % len(train_set), (recipe.seed, i)] for i in range(STATISTICS_CLIPS)]
        model.standardise(torch.cat(items))
        return model

    data = {"train": train_set, "valid": Frames(held_out, frames_per_clip)}
    task = Task(make_model, vqvae_loss, vqvae_outputs, vqvae_figures)
    train_and_test(accelerator, task, data, recipe, Place(folder, identity, "VQ-VAE"), keep_weights=True)
    return load_vqvae(folder).to(accelerator.device)


def load_vqvae(folder):
    """The VQ-VAE that `train_vqvae` left in a folder, on the CPU, in evaluation mode."""
    state = load_file(best_weights(folder))
    model = VQVAE(*state["codebook.vectors"].shape)
    load_trained(model, state)
    return model.eval()
