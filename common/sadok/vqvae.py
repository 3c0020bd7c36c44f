"""The VQ-VAE of Sadok et al., "A vector quantized masked autoencoder for speech emotion recognition", Section 2.1.

Read it from the top beside Sections 3.1.1 and 2.1: power spectrogram, codebook, network, losses, then its data and
training. Sizes that the paper leaves out are those of the authors' public code.

One thing is otherwise, because the paper says it and its code does not do it: the code of a frame depends on that
frame alone. Their network normalises by the statistics of whatever is encoded together, so a frame's codes change with
its neighbours; with stored statistics it collapses, since raw power spans ten orders of magnitude. Here the network
reads log power, standardised per frequency bin by constants of the training set, and has no normalisation layer.

N frames, T frames of a clip, D = 513 frequency bins, D' = 64 codes of a frame, K codebook size, e size of a code.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchaudio
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from common.errors import UserError
from common.files import atomic_path, make_folder, read_json, write_json
from common.media import MediaError, read_audio
from common.training import fit, load_trained, predict, seed_step, trained_state

RATE_HZ = 16000
N_FFT = 1024  # also the Hann window: 64 ms
HOP = 320  # 20 ms, an overlap of 68.75 %: "70 %" in the paper
N_BINS = 513  # D
CODES_PER_FRAME = 64  # D'
N_CODES = 256  # K

POWER_FLOOR = 1e-10  # added to every power: a clip at full scale and 16 bits has noise of about 3e-8
EMA_DECAY = 0.99  # of the codebook's running sums
EMA_SMOOTHING = 1e-5  # Laplace smoothing of the running counts
COMMITMENT = 0.25  # weight of the commitment loss
RESTART_BELOW = 0.03  # a code with less than this part of a fair share (1 / K) starts anew. Not in the paper
RESTART_SHARE = 0.1  # part of a fair share that it is then credited with
CHUNK_FRAMES = {
    "cpu": 256,
    "cuda": 1 << 14,
}  # encoded or decoded at once: bounds the memory at any length ...
CHUNK_VECTORS = {
    "cpu": 1 << 12,
    "cuda": 1 << 20,
}  # ... and compared with the codebook; on a CPU what a cache holds
STATISTICS_CLIPS = 256  # their frames give the constants of the input
MAX_UNREADABLE = 100  # so many clips in a row that cannot be read end a run


# ---- Power spectrogram (Section 3.1.1) -----------------------------------------------------


def normalise_peak(samples):
    """Samples divided by their largest magnitude; silence stays as it is."""
    return samples / max(float(abs(samples).max()), 1e-20)


def power_spectrogram(samples, frames=None):
    """Power spectrogram x of Section 2: the squared magnitude of the short-time Fourier transform.

    samples  (n,) float tensor at RATE_HZ, n >= 1
    frames   (N,) integer tensor: only these frames; None = all of them
    Returns (1 + n // 320, 513) or (N, 513). Frame t is centred on sample 320 t; before and after the clip is silence.
    """
    padded = F.pad(samples, (N_FFT // 2, N_FFT // 2))
    pieces = padded.unfold(0, N_FFT, HOP)  # (T, 1024), a view
    pieces = pieces if frames is None else pieces[frames]
    window = torch.hann_window(N_FFT, dtype=samples.dtype, device=samples.device)
    spectrum = torch.view_as_real(torch.fft.rfft(pieces * window))  # (T, 513, 2)
    return spectrum.square().sum(2)


def griffin_lim(power, n_iterations, seed):
    """Samples whose spectrogram comes close to a power spectrogram, for listening; the phase is estimated.

    power  (T, 513), T >= 2
    seed   of the phases that it starts from
    Returns (320 (T - 1),) samples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torchaudio.functional.griffinlim(
            power.T.cpu().contiguous(),
            torch.hann_window(N_FFT),
            N_FFT,
            HOP,
            N_FFT,
            power=2.0,
            n_iter=n_iterations,
            momentum=0.99,
            length=None,
            rand_init=True,
        )


# ---- Codebook ------------------------------------------------------------------------------


class Codebook(nn.Module):
    """K vectors of size e, each the running mean of the encoder outputs nearest to it (van den Oord et al. 2017).

    A code that nearly nothing is assigned to starts anew from an encoder output of the current batch; in the first step
    that is every code but one. In training every process must call it once per step.
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
            scores = (
                torch.addmm(offset, part, self.vectors.T) for part in z.split(CHUNK_VECTORS[z.device.type])
            )
            return torch.cat([score.max(1).indices for score in scores])

    def forward(self, z):
        """z (M, e) -> quantised (M, e), codes (M,); the gradient passes straight through to z. Learns in training."""
        codes = self.nearest(z.detach())
        quantised = F.embedding(codes, self.vectors)
        if self.training:
            self.learn(z.detach(), codes)
        return z + (quantised - z).detach(), codes

    def learn(self, z, codes):
        """One step of the exponential moving averages; codes that are hardly used are replaced."""
        n_codes = len(self.vectors)
        counts = torch.bincount(codes, minlength=n_codes).to(z.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, z)
        sum_over_processes(counts, sums)
        self.counts.lerp_(counts, 1 - EMA_DECAY)
        self.sums.lerp_(sums, 1 - EMA_DECAY)
        fair = counts.sum() / n_codes
        unused = self.counts < RESTART_BELOW * fair
        if unused.any():
            replacement = some_rows(z, n_codes)
            self.counts[unused] = RESTART_SHARE * fair
            self.sums[unused] = RESTART_SHARE * fair * replacement[unused]
        total = self.counts.sum()
        size = (self.counts + EMA_SMOOTHING) / (total + n_codes * EMA_SMOOTHING) * total
        self.vectors.copy_(self.sums / size[:, None])


def some_rows(z, n):
    """n rows of z (M, e) at random, the same in every process. training.fit has seeded the step."""
    rows = z[torch.randint(len(z), (n,)).to(z.device)]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(rows, 0)
    return rows


def sum_over_processes(*tensors):
    """Replace tensors by their sums over all processes."""
    if torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


# ---- Network (Section 2.1) -----------------------------------------------------------------


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        y = (x * 2).sigmoid_().mul_(2).sub_(1)
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context, gradient):
        return torch.ops.aten.tanh_backward(gradient, *context.saved_tensors)


class Tanh(nn.Module):
    """tanh(x), computed as 2 sigmoid(2 x) - 1: a fifth of torch.tanh's time on a CPU, where it is the largest part."""

    def forward(self, x):
        return _Tanh.apply(x)


class Residual(nn.Module):
    """x + 1-conv(tanh(3-conv(tanh(x))))."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            Tanh(),
            conv(channels, channels, 3, 1, 1, bias=False),
            Tanh(),
            conv(channels, channels, 1, 1, 0, bias=False),
        )

    def forward(self, x):
        return x + self.body(x)


def conv(n_in, n_out, kernel, stride, padding, bias=True):
    """Convolution along frequency. As a row of a 2-D convolution it is about five times faster than nn.Conv1d."""
    return nn.Conv2d(n_in, n_out, (1, kernel), (1, stride), (0, padding), bias=bias)


def deconv(n_in, n_out, kernel, stride, padding):
    """Transposed convolution along frequency."""
    return nn.ConvTranspose2d(n_in, n_out, (1, kernel), (1, stride), (0, padding))


class VQVAE(nn.Module):
    """Frames of a power spectrogram <-> 64 codes each; every frame is an item of its own.

    code_size  e, the size of a code
    Frames x are (N, 513) power, codes (N, 64). Maps inside are (N, channels, 1, frequency).
    """

    def __init__(self, code_size):
        super().__init__()
        self.register_buffer(
            "mean", torch.zeros(N_BINS)
        )  # of log power in the training set; see `standardise`
        self.register_buffer("sd", torch.ones(N_BINS))
        self.codebook = Codebook(N_CODES, code_size)
        self.encoder = nn.Sequential(
            conv(1, 16, 4, 2, 1),
            Tanh(),
            conv(16, 32, 4, 2, 1),
            Tanh(),
            conv(32, 32, 3, 2, 1),  # 256, 128, 64
            Residual(32),
            Residual(32),
            Tanh(),
            conv(32, code_size, 1, 1, 0),
        )
        self.decoder = nn.Sequential(
            conv(code_size, 32, 3, 1, 1),
            Residual(32),
            Residual(32),
            Tanh(),  # 64
            deconv(32, 32, 4, 2, 1),
            Tanh(),
            deconv(32, 16, 4, 2, 1),
            Tanh(),
            deconv(16, 1, 3, 2, 0),
        )  # 128, 256, 513
        self.to(memory_format=torch.channels_last)

    def standardise(self, power):
        """Set the constants of the input from frames (N, 513) of the training set.

        The log power of stationary noise has a standard deviation of 1.28 already. A bin with less than 1 is empty, as
        all above 4 kHz in telephone speech, and must not be blown up where a later clip does have something there.
        """
        logs = log_power(power)
        self.mean.copy_(logs.mean(0))
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
        """power (N, 513) -> codes (N, 64) uint8."""
        codes = [
            self.codebook.nearest(self.embed(part).flatten(0, 1)).view(-1, CODES_PER_FRAME).to(torch.uint8)
            for part in power.split(CHUNK_FRAMES[power.device.type])
        ]
        return torch.cat(codes)

    @torch.inference_mode()
    def decode(self, codes):
        """codes (N, 64), any integer type -> power (N, 513)."""
        return torch.cat(
            [
                self.reconstruct(F.embedding(part.long(), self.codebook.vectors)).exp()
                for part in codes.split(CHUNK_FRAMES[codes.device.type])
            ]
        )


# ---- Losses and figures --------------------------------------------------------------------


def log_power(power):
    """Natural logarithm of power plus its floor, so that silence (zero power) has one, about -23."""
    return (power + POWER_FLOOR).log()


def itakura_saito(power, reconstruction):
    """Itakura-Saito divergence, the mean over bins of x/y - log(x/y) - 1: (N, 513), (N, 513) -> (N,)

    Both are raised by POWER_FLOOR: zero power costs nothing where the reconstruction is far below the floor too.
    """
    return itakura_saito_of_logs(log_power(power), log_power(reconstruction))


def itakura_saito_of_logs(log_x, log_y):
    """The same from logarithms, where training does not overflow."""
    difference = log_x - log_y
    return (difference.exp() - difference - 1).mean(-1)


def log_spectral_distance(power, reconstruction):
    """Root mean square over bins of the difference of two spectra in dB: (N, 513), (N, 513) -> (N,)"""
    decibels = 10 * torch.log10((power + POWER_FLOOR) / (reconstruction + POWER_FLOOR))
    return decibels.square().mean(-1).sqrt()


def perplexity(counts):
    """exp of the entropy of how often each of K codes is used, counts (K,): 1 = always the same, K = all alike."""
    share = np.asarray(counts, float) / np.sum(counts)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def usage(counts):
    """Share of the K codes that are used at all, counts (K,)."""
    return float((np.asarray(counts) > 0).mean())


def vqvae_loss(model, batch):
    """Loss of Section 3.1.1 for training.fit: Itakura-Saito divergence and commitment; batch["power"] (B, F, 513)."""
    power = batch["power"].flatten(0, 1)  # (B * F, 513)
    log_y, _, commitment = model(power)
    n_clips = len(batch["power"])
    return (
        itakura_saito_of_logs(log_power(power), log_y).mean() + COMMITMENT * commitment
    ) * n_clips, n_clips


def evaluate_vqvae(accelerator, model, dataset, batch_size, workers):
    """Figures on the frames of a data set: itakura_saito, log_spectral_distance (dB), perplexity and usage of codes."""

    def forward(model, batch):
        power = batch["power"].flatten(0, 1)
        codes = model.encode(power)
        reconstruction = model.decode(codes)
        n_clips = len(batch["power"])
        return {
            "itakura_saito": itakura_saito(power, reconstruction).view(n_clips, -1).mean(1),
            "log_spectral_distance": log_spectral_distance(power, reconstruction).view(n_clips, -1).mean(1),
            "counts": torch.stack(
                [torch.bincount(clip, minlength=N_CODES) for clip in codes.view(n_clips, -1)]
            ),
        }

    found = predict(accelerator, model, forward, dataset, batch_size, workers)
    counts = found.pop("counts").sum(0)
    return {
        **{name: float(values.mean()) for name, values in found.items()},
        "perplexity": perplexity(counts),
        "usage": usage(counts),
    }


# ---- Data ----------------------------------------------------------------------------------


class Frames:
    """Frames of clips as a data set for training.fit and training.predict; an item is some frames of one clip.

    paths            audio files
    frames_per_clip  F; a seed draws them, without one they are spread evenly over the clip
    n_items          items of an epoch, for each of which the seed draws a clip; 0 = every clip once
    memory_gb        clips are kept decoded (230 MB per hour) up to this; the others are read whenever they are drawn
    A clip that cannot be read is reported, counted in the batch, and the next one taken.
    """

    def __init__(self, paths, frames_per_clip, n_items, memory_gb):
        self.paths, self.frames_per_clip = [Path(path) for path in paths], frames_per_clip
        self.draw = bool(n_items)
        self.lengths = [1] * (n_items or len(self.paths))
        self.memory_gb, self.kept = memory_gb, {}

    def read(self):
        """Decode the clips that are kept in memory; worker processes share them."""
        n_bytes = 0
        for i, path in enumerate(tqdm(self.paths, desc="reading clips", disable=None, leave=False)):
            if n_bytes >= self.memory_gb * 1e9:
                break
            samples = self.samples(i)
            if samples is not None:
                self.kept[i] = samples
                n_bytes += samples.nbytes

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, key):
        """key: (index, seed), seed None = evenly spread -> (power (F, 513), clips that could not be read)."""
        index, seed = key
        generator = np.random.default_rng(seed)
        first = int(generator.integers(len(self.paths))) if self.draw else index
        for n_unread in range(min(MAX_UNREADABLE, len(self.paths))):
            samples = self.samples((first + n_unread) % len(self.paths))
            if samples is not None:
                break
        else:
            raise UserError(
                f"{self.paths[first]}: this clip and the {n_unread} after it cannot be read; run "
                "01_prepare_data.py again"
            )
        n_frames = 1 + len(samples) // HOP
        chosen = (
            np.linspace(0, n_frames - 1, self.frames_per_clip).round().astype(int)
            if seed is None
            else generator.integers(n_frames, size=self.frames_per_clip)
        )
        return power_spectrogram(torch.from_numpy(samples), torch.from_numpy(chosen)), n_unread

    def samples(self, i):
        """Samples of a clip, its peak at 1; None, with a line that says why, if it cannot be read."""
        if i in self.kept:
            return self.kept[i]
        try:
            return normalise_peak(read_audio(self.paths[i]))
        except MediaError as error:
            print(f"passed over: {error}", file=sys.stderr)
            return None

    def collate(self, items):
        return {
            "power": torch.stack([power for power, _ in items]),  # (B, F, 513)
            "n_unread": torch.tensor([n for _, n in items]),
        }

    def fingerprint(self):
        """A hash of the clips' names."""
        names = "\n".join("/".join(path.parts[-2:]) for path in self.paths)
        return hashlib.sha256(names.encode()).hexdigest()[:16]


# ---- Training ------------------------------------------------------------------------------


def train_vqvae(accelerator, train_set, valid_set, code_size, recipe, folder, identity):
    """Train a VQ-VAE, or take the one that the same call has left in a folder; a killed run goes on.

    train_set  Frames with n_items a multiple of recipe.batch_size: every process then takes part in every step
    valid_set  Frames of other speakers; its Itakura-Saito divergence chooses the epoch
    code_size  e
    recipe     training.Recipe, its batch_size in clips
    identity   JSON-ready dict: what else must be the same for a run to be gone on with or reused
    Leaves vqvae.safetensors and vqvae.json in the folder. Returns the model in evaluation mode.
    """
    if len(train_set) % recipe.batch_size or not train_set.draw:
        raise ValueError("train_set needs n_items, a multiple of recipe.batch_size")
    identity = {
        "code_size": code_size,
        "constants": constants(),
        "recipe": recipe.identity(),
        "items": len(train_set),
        "frames_per_clip": train_set.frames_per_clip,
        "clips": train_set.fingerprint(),
        "validation_clips": valid_set.fingerprint(),
        **identity,
    }
    identity = json.loads(json.dumps(identity, default=str))
    folder = make_folder(folder)
    if (folder / "vqvae.json").exists() and read_json(folder / "vqvae.json")["identity"] == identity:
        print(f"VQ-VAE: already trained, in {folder}")
        return load_vqvae(folder).to(accelerator.device)
    train_set.read()
    valid_set.read()
    seed_step(recipe.seed)
    model = VQVAE(code_size)
    model.standardise(first_frames(train_set, recipe.seed))
    n_unread = []

    def loss(model, batch):
        n_unread.append(batch["n_unread"].sum())
        return vqvae_loss(model, batch)

    def evaluate(model):
        return evaluate_vqvae(accelerator, model, valid_set, recipe.batch_size, recipe.workers)

    history = fit(accelerator, model, loss, train_set, evaluate, recipe, folder, identity, "VQ-VAE")
    if n_passed_over := int(sum(n_unread)):
        print(f"VQ-VAE: {n_passed_over:,} draws met clips that cannot be read and took the next one")
    model.eval()
    if accelerator.is_main_process:
        save_vqvae(
            folder,
            model,
            {
                "identity": identity,
                "code_size": code_size,
                "seconds": history["seconds"],
                "best_epoch": history["best_epoch"],
                "steps_per_epoch": history["steps_per_epoch"],
                "figures": figures_of(history),
            },
        )
    accelerator.wait_for_everyone()
    return model


def constants():
    """What the codes depend on besides the weights."""
    return {
        "rate_hz": RATE_HZ,
        "n_fft": N_FFT,
        "hop": HOP,
        "n_codes": N_CODES,
        "power_floor": POWER_FLOOR,
        "ema_decay": EMA_DECAY,
        "commitment": COMMITMENT,
        "restart_below": RESTART_BELOW,
        "restart_share": RESTART_SHARE,
    }


def first_frames(dataset, seed):
    """Frames (N, 513) of STATISTICS_CLIPS items of a training set."""
    items = [dataset[i % len(dataset), (seed, i)][0] for i in range(STATISTICS_CLIPS)]
    return torch.cat(items)


def figures_of(history):
    """The validation figures of the chosen epoch."""
    best = history["log"][history["best_epoch"] - 1]
    return {name.removeprefix("valid_"): value for name, value in best.items() if name.startswith("valid_")}


def save_vqvae(folder, model, about):
    """Write vqvae.safetensors, then vqvae.json: where the second is, the first is whole and belongs to it."""
    (folder / "vqvae.json").unlink(missing_ok=True)
    with atomic_path(folder / "vqvae.safetensors") as temporary:
        save_file(trained_state(model), temporary)
    digest = hashlib.sha256((folder / "vqvae.safetensors").read_bytes()).hexdigest()[:16]
    write_json(folder / "vqvae.json", {**about, "weights": digest})


def load_vqvae(folder):
    """The VQ-VAE that `train_vqvae` left in a folder, on the CPU, in evaluation mode."""
    about = read_json(Path(folder) / "vqvae.json")
    model = VQVAE(about["code_size"])
    load_trained(model, load_file(Path(folder) / "vqvae.safetensors"))
    return model.eval()
