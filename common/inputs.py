"""Turns as the inputs of a checkpoint: tokens, waveforms, spectrograms or video frames.

Media are decoded once. `cache_inputs` writes what a checkpoint reads of each turn (int16 samples, a spectrogram,
frames at the model's size and rate) into a memory-mapped store; from then on no step waits for a decoder.
"""

import hashlib
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from common.errors import UserError
from common.files import make_folder
from common.media import MediaError, probe, read_audio, read_frames
from common.store import StoreWriter

# Batches are prepared in forked processes; the tokenizer's own threads would only warn there.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

RATE_HZ = 16000  # of every checkpoint used here
SHORTEST_S = 0.4  # waveforms are padded to this at least: SpecAugment's spans of 10 frames must fit in
CHUNK = 64  # turns written to the cache at a time


@dataclass
class Clipping:
    """How much of a turn a model sees."""

    audio_max_s: float  # longer turns are cut at the end
    video_max_s: float
    video_fps: float  # frame rate at which a clip is sampled ...
    video_stride: int  # ... of which every n-th frame is taken


def has_modality(turn, modality):
    """True where a turn has text, audio or video."""
    return bool({"text": turn.text, "audio": turn.audio, "video": turn.video}[modality])


# ---- Decode once ---------------------------------------------------------------------------


def cache_inputs(manifest, turns, shape, processor, clipping, cache_root, workers):
    """Decode what a checkpoint reads of some turns, unless that is done already.

    turns       turns that have the medium
    shape       encoders.InputShape of the checkpoint; processor: its feature extractor or image processor
    clipping    Clipping
    cache_root  folder for the stores of this corpus
    workers     decoding processes, 0 = one per core
    Returns (store or None for text, list of (utterance_id, reason) that could not be decoded). The store holds
    "inputs": int16 (samples,), float16 (frames, mel) or uint8 (frames, size, size, 3), rows per turn.
    Raises UserError if the disk is too small.
    """
    if shape.kind == "tokens":
        return None, []
    decode, name, row_bytes, rows_per_s = _plan(shape, processor, clipping)
    writer = StoreWriter(make_folder(cache_root) / name, {"manifest": manifest.fingerprint(), "inputs": name})
    missing = [turn for turn in turns if turn.utterance_id not in writer.done]
    if missing or not writer.complete:
        _announce(writer.folder, missing, row_bytes, rows_per_s, clipping, shape)
    problems = _decode_all(manifest, missing, decode, writer, workers)
    return writer.finish(), problems


def _plan(shape, processor, clipping):
    """(decoder, name of the store, bytes per row, rows per second or per turn)"""
    if shape.kind == "waveform":
        return (
            partial(decode_waveform, max_s=clipping.audio_max_s),
            f"waveforms_{clipping.audio_max_s:g}s",
            2,
            RATE_HZ,
        )
    if shape.kind == "spectrogram":
        decode = partial(decode_spectrogram, processor=processor, max_s=clipping.audio_max_s)
        key = hashlib.sha256(repr(sorted(processor.to_dict().items())).encode()).hexdigest()[:8]
        return decode, f"spectrograms_{clipping.audio_max_s:g}s_{key}", 2 * processor.num_mel_bins, 0
    step_s = clipping.video_stride / clipping.video_fps
    decode = partial(
        decode_frames, step_s=step_s, n_frames=shape.frames, size=shape.size, max_s=clipping.video_max_s
    )
    name = f"frames_{shape.frames}x{shape.size}px_{step_s * 1000:.0f}ms_{clipping.video_max_s:g}s"
    return decode, name, 3 * shape.size**2, 1 / step_s


def _announce(folder, turns, row_bytes, rows_per_s, clipping, shape):
    longest = clipping.video_max_s if shape.kind == "frames" else clipping.audio_max_s
    rows = sum(max(shape.frames, min(longest, t.duration_s) * rows_per_s) for t in turns)
    need, free = rows * row_bytes, shutil.disk_usage(folder).free
    print(
        f"decoding {len(turns):,} turns into {folder.name}: about {need / 1e9:.2f} GB, {free / 1e9:.0f} GB free"
    )
    if need > free:
        raise UserError(
            f"{folder}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another DATA_ROOT, "
            "or lower VIDEO_MAX_S"
        )


def _decode_all(manifest, turns, decode, writer, workers):
    problems = []
    paths = [manifest.path(t.video if decode.func is decode_frames else t.audio) for t in turns]
    workers = min(workers or os.cpu_count(), max(1, len(turns) // 16))
    # One thread each: a forked process must not enter its parent's thread pool.
    with (
        ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        if workers > 1
        else _Here() as pool
    ):
        with tqdm(total=len(turns), desc="decoding", disable=None, leave=False) as bar:
            for start in range(0, len(turns), CHUNK):
                ids = [t.utterance_id for t in turns[start : start + CHUNK]]
                decoded = list(pool.map(partial(_try, decode), paths[start : start + CHUNK]))
                good = [(i, x) for i, x in zip(ids, decoded) if not isinstance(x, str)]
                problems += [(i, x) for i, x in zip(ids, decoded) if isinstance(x, str)]
                if good:
                    writer.add(
                        [i for i, _ in good],
                        {"inputs": np.concatenate([x for _, x in good])},
                        [len(x) for _, x in good],
                    )
                bar.update(len(ids))
    for utterance_id, reason in problems[:5]:
        print(f"  cannot be decoded, skipped: {utterance_id}: {reason}")
    if len(problems) > 5:
        print(f"  and {len(problems) - 5} more; run 01_prepare_data.py again")
    return problems


class _Here:
    """A pool of no processes: `map` in this one."""

    map = staticmethod(map)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def _try(decode, path):
    try:
        return decode(path)
    except MediaError as error:
        return str(error)


def decode_waveform(path, max_s):
    """int16 samples (T,) at 16 kHz, the first max_s seconds."""
    waveform = read_audio(path, 0.0, max_s, RATE_HZ)
    return (waveform * 32768).round().clip(-32768, 32767).astype(np.int16)


def decode_spectrogram(path, processor, max_s):
    """float16 (frames, mel), as AST's feature extractor makes it."""
    waveform = read_audio(path, 0.0, max_s, RATE_HZ)
    features = processor(waveform, sampling_rate=RATE_HZ, return_tensors="np")["input_values"][0]
    return features.astype(np.float16)


def decode_frames(path, step_s, n_frames, size, max_s):
    """uint8 RGB (T, size, size, 3), T >= 1: a frame every step_s seconds, or n_frames evenly from a shorter turn.

    The short side is scaled to `size` and the middle square kept.
    """
    info = probe(path)
    scale = size / min(info.width, info.height)
    height, width = max(size, round(info.height * scale)), max(size, round(info.width * scale))
    frames, times_s = read_frames(path, 0.0, max_s, size=(height, width))  # (T, H, W, 3)
    span_s = min(max_s, times_s[-1] + (times_s[-1] / max(1, len(times_s) - 1)))
    wanted_s = np.arange(max(1, int(span_s / step_s))) * step_s
    if len(wanted_s) < n_frames:
        wanted_s = np.linspace(0, times_s[-1], n_frames)
    nearest = np.abs(times_s[None] - wanted_s[:, None]).argmin(1)
    top, left = (height - size) // 2, (width - size) // 2
    return frames[nearest, top : top + size, left : left + size]


# ---- Batches -------------------------------------------------------------------------------


class TurnInputs:
    """Some turns as a dataset for training.fit and training.predict.

    turns      Turn list; classes: names, for the label's index (-1 = unlabelled)
    shape      InputShape; processor: of the checkpoint; store: from cache_inputs (None for text)
    mirror     probability that a training clip is mirrored left to right
    """

    def __init__(self, turns, classes, shape, processor, store, mirror=0.0):
        self.turns, self.shape, self.processor, self.store, self.mirror = (
            turns,
            shape,
            processor,
            store,
            mirror,
        )
        self.labels = np.array([classes.index(t.label) if t.label else -1 for t in turns])
        self.lengths = [self._length(turn) for turn in turns]

    def _length(self, turn):
        if self.shape.kind == "tokens":
            return len(turn.text)
        return self.store.length(turn.utterance_id) if self.shape.kind == "waveform" else 1

    def __len__(self):
        return len(self.turns)

    def __getitem__(self, key):
        """key: (index, seed); a seed of None means evaluation. Returns (input, mirrored, label)."""
        index, seed = key
        turn, label = self.turns[index], self.labels[index]
        if self.shape.kind == "tokens":
            return turn.text, False, label
        rows = self.store.rows(turn.utterance_id, "inputs")
        if self.shape.kind == "waveform":
            return rows.astype(np.float32) / 32768, False, label
        if self.shape.kind == "spectrogram":
            return rows, False, label
        generator = None if seed is None else np.random.default_rng(seed)
        clip = rows[choose_frames(len(rows), self.shape.frames, generator)]  # (T, H, W, 3)
        return clip, generator is not None and generator.random() < self.mirror, label

    def collate(self, items):
        """A batch: inputs as the backbone's keyword arguments, labels (B,)."""
        inputs, mirrored, labels = zip(*items)
        if self.shape.kind == "tokens":
            batch = collate_text(self.processor, list(inputs), self.shape.max_tokens)
        elif self.shape.kind == "waveform":
            batch = collate_waveforms(self.processor, inputs)
        elif self.shape.kind == "spectrogram":
            batch = {"input_values": torch.from_numpy(np.stack(inputs).astype(np.float32))}  # (B, T, mel)
        else:
            batch = collate_frames(self.processor, inputs, mirrored)
        return {"inputs": batch, "labels": torch.tensor(labels)}


def collate_text(processor, texts, max_tokens):
    """Token ids padded to the longest text: input_ids and attention_mask (B, S)."""
    return dict(
        processor(
            texts,
            padding=True,
            truncation=True,
            max_length=max_tokens,
            return_tensors="pt",
            return_token_type_ids=False,
        )
    )


def collate_waveforms(processor, waveforms):
    """Waveforms (T,) zero-padded at the end to the longest: input_values (B, T) and attention_mask (B, T).

    Each turn is normalised to zero mean and unit variance on its own where the checkpoint asks for it.
    """
    longest = max(int(SHORTEST_S * RATE_HZ), max(len(w) for w in waveforms))
    values = torch.zeros(len(waveforms), longest)
    mask = torch.zeros(len(waveforms), longest, dtype=torch.long)
    for row, waveform in enumerate(waveforms):
        if processor.do_normalize:
            waveform = (waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7)
        values[row, : len(waveform)] = torch.from_numpy(waveform)
        mask[row, : len(waveform)] = 1
    return {"input_values": values, "attention_mask": mask}


def collate_frames(processor, clips, mirrored):
    """Clips of frames (T, H, W, 3) uint8, mirrored where asked: pixel_values (B, T, 3, H, W), normalised."""
    clips = [clip[:, :, ::-1] if mirror else clip for clip, mirror in zip(clips, mirrored)]
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).float() / 255  # (B, T, 3, H, W)
    mean = torch.tensor(processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_std).view(3, 1, 1)
    return {"pixel_values": (pixels - mean) / std}


def choose_frames(n_available, n_wanted, generator=None):
    """Which of the stored frames make a clip: a run of neighbours, random in training, else the middle one.

    n_available  frames stored for the turn, already at the clip's frame rate
    n_wanted     frames the model takes
    generator    np.random.Generator for a random start, None for the middle
    Returns indices (n_wanted,); a turn shorter than the clip is sampled evenly, repeating frames.
    """
    if n_available <= n_wanted:
        return np.linspace(0, n_available - 1, n_wanted).round().astype(int)
    spare = n_available - n_wanted
    start = spare // 2 if generator is None else int(generator.integers(spare + 1))
    return np.arange(start, start + n_wanted)
