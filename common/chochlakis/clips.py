"""Recordings to clips, and clips to features, which are stored once (Chochlakis et al. 2024, Sec. 3.1, 3.2).

A recording is cut into N clips that follow each other from its start. What is hidden from the autoencoder
must not show in a neighbour, so nothing is computed across clips: audio is resampled clip by clip, and what
lies beyond the end of a recording is silence and its last frame. Every file is decoded once.

R recordings, N clips of each, S samples and F frames of a clip, D features. Modality 0 is audio, 1 is video.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torchaudio.functional import resample

from common.chochlakis.backbones import FPS, MODALITIES
from common.extraction import extract
from common.files import UserError, hash_of
from common.media import MediaError, Silence, check_rate, open_video, read_mono
from common.pictures import read_pictures
from common.store import rows_of

PAD_TOLERANCE_S = 1e-3  # a clip that lacks no more than this is whole
MEASURED_BATCHES = 16  # of clips that statistics are taken of


# ---- One recording -------------------------------------------------------------------------


@dataclass
class Clips:
    """The clips of one recording; zeros where it lacks the modality altogether."""

    audio: np.ndarray  # (N, S) float32
    video: np.ndarray  # (N, F, H, W, 3) uint8 RGB
    audio_s: np.ndarray  # (N,) float32, how many seconds of each clip are recorded, the rest being padding
    video_s: np.ndarray


def read_clips(audio_path, video_path, n_clips, clip_s, rate_hz, size):
    """Cut a recording into Clips, decoding it once.

    audio_path  audio file or container; None = the recording has no sound
    video_path  container; None = the recording has no video
    n_clips     N; clip n lasts from n * clip_s to (n + 1) * clip_s seconds
    rate_hz     sampling rate of the clips; S = round(clip_s * rate_hz)
    size        side of a frame in pixels; F = round(clip_s * FPS), each what a player shows at that time
    Raises MediaError where there is no file, or one that cannot be used.
    """
    n_frames = max(1, round(clip_s * FPS))
    audio = np.zeros((n_clips, round(clip_s * rate_hz)), np.float32)
    video = np.zeros((n_clips, n_frames if video_path else 0, size, size, 3), np.uint8)
    audio_s, video_s = np.zeros((2, n_clips), np.float32)
    if video_path:
        wanted_s = np.add.outer(np.arange(n_clips) * clip_s, np.arange(n_frames) / FPS).ravel()
        with open_video(video_path) as opened:
            pictures, *span_s = read_pictures(*opened, wanted_s, n_clips * clip_s, size)
        video, video_s = pictures.reshape(video.shape), covered_s(*span_s, n_clips, clip_s)
    if audio_path:
        audio_s = covered_s(0.0, fill_audio(audio, audio_path, clip_s, rate_hz), n_clips, clip_s)
    if not (audio_s.any() or video_s.any()):
        path = audio_path or video_path or ""
        raise MediaError(path, "neither sound nor picture in it", "leave it out of the corpus")
    return Clips(audio, video, audio_s, video_s)


def covered_s(start_s, end_s, n_clips, clip_s):
    """Seconds of each clip (N,) that lie between start_s and end_s."""
    edges_s = np.clip(np.arange(n_clips + 1) * clip_s, start_s, max(start_s, end_s))
    return np.diff(edges_s).astype(np.float32)


def fill_audio(audio, path, clip_s, rate_hz):
    """Write a recording's mono sound into audio (N, S); returns its seconds up to the last clip, 0 if silent.

    Each clip is resampled by itself, so that the filter, half a millisecond long, does not carry sound over.
    """
    n_clips, n_samples = audio.shape
    try:
        samples, source_hz = read_mono(path, n_clips * clip_s)  # (T,)
    except Silence:
        return 0.0
    check_rate(path, source_hz, rate_hz)
    padded = np.zeros(n_clips * round(clip_s * source_hz), np.float32)
    padded[: len(samples)] = samples[: len(padded)]
    pieces = resample(torch.from_numpy(padded).view(n_clips, -1), source_hz, rate_hz).numpy()
    audio[:, : pieces.shape[1]] = pieces[:, :n_samples]
    return len(samples) / source_hz


def read_turn(manifest, turn, backbone, n_clips, clip_s):
    """The Clips of a turn as a backbone takes them."""
    audio, video = (manifest.path(name) if name else None for name in (turn.audio, turn.video))
    return read_clips(audio, video, n_clips, clip_s, backbone.rate_hz, backbone.size)


def clip_batches(manifest, turns, backbone, n_clips, clip_s, batch_size, name):
    """Yield batches (B, S) or (B, F, H, W, 3) of clips without padding, some 1,000, to measure on.

    name  "audio" or "video"
    """
    size, whole_s = max(1, batch_size // n_clips), clip_s - PAD_TOLERANCE_S
    turns = turns[:: max(1, len(turns) // 256)][: MEASURED_BATCHES * size]
    for start in range(0, len(turns), size):
        found = []
        for turn in turns[start : start + size]:
            with suppress(Exception):  # it is named as a problem when its features are extracted
                clips = read_turn(manifest, turn, backbone, n_clips, clip_s)
                found += list(getattr(clips, name)[getattr(clips, f"{name}_s") > whole_s])
        if found:
            yield np.stack(found)


# ---- Recordings to a store of features -----------------------------------------------------


def clip_features(manifest, turns, backbone, folder, n_clips, clip_s, how):
    """The store of the features of all clips of some recordings, extracted once; how: Extraction.

    It has a row for each recording: "audio" and "video" (N, D) float32, NaN where it lacks the modality.
    """

    def read(turn):
        return read_turn(manifest, turn, backbone, n_clips, clip_s)

    def compute(found):
        return {name: features_of(name, found, backbone) for name in MODALITIES}, None

    identity = {"manifest": manifest.fingerprint(), "n_clips": n_clips, "clip_s": clip_s}
    identity |= backbone.identity()
    items, need_bytes = {turn.utterance_id: turn for turn in turns}, len(turns) * n_clips * 8 * backbone.dim
    return extract(items, read, compute, folder, identity, how, "clip features", need_bytes)


def features_of(name, found, backbone):
    """Features (recordings, N, D) of the "audio" or "video" of some Clips."""
    has = np.array([getattr(clips, f"{name}_s").any() for clips in found])
    features = np.full((len(found), len(found[0].audio), backbone.dim), np.nan, np.float32)
    if has.any():
        there = np.concatenate([getattr(found[i], name) for i in has.nonzero()[0]])
        features[has] = backbone(name, there).cpu().numpy().reshape(-1, *features.shape[1:])
    if not np.isfinite(features[has]).all():
        raise UserError(f"the {name} features hold NaN; check the checkpoint")
    return features


# ---- Features as tensors -------------------------------------------------------------------


@dataclass
class Part:
    """Recordings of one part of a split, or of an unlabelled corpus."""

    turns: list  # their Turns, in the order of the rows
    x: torch.Tensor  # (R, 2, N, D) float32, audio and video; 0 where the recording lacks the modality
    missing: torch.Tensor  # (R, 2, N) bool, clips of a modality that the recording lacks
    labels: torch.Tensor  # (R,) int64, -1 without
    meta: dict  # what made the features

    def __len__(self):
        return len(self.turns)

    @property
    def n_clips(self):
        return self.x.shape[2]

    @property
    def speakers(self):
        return np.array([turn.speaker for turn in self.turns])

    def identity(self):
        return hash_of([self.meta, [(turn.utterance_id, turn.label) for turn in self.turns]])

    def mean(self):
        """Mean (2, D) of the clips that are there; 0 for a modality that nobody has."""
        there = (~self.missing)[..., None]  # (R, 2, N, 1)
        return (self.x * there).sum((0, 2)) / there.sum((0, 2)).clamp(min=1)


def read_part(store, turns, classes=()):
    """The Part of those of the turns that a store of clip features has. Raises UserError if it has none."""
    turns, at = rows_of(store, turns)
    if not turns:
        raise UserError(f"{store.folder}: none of the recordings could be read; see problems.csv there")
    x = torch.from_numpy(np.stack([store[name][at] for name in MODALITIES], 1))  # (R, 2, N, D)
    labels = torch.tensor([classes.index(turn.label) if classes else -1 for turn in turns])
    return Part(turns, x.nan_to_num(0.0), x[..., 0].isnan(), labels, store.meta)


def generator_of(*numbers):
    """A torch.Generator seeded from a tuple of integers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
