"""Turns as the inputs of a checkpoint: tokens, waveforms, spectrograms or video frames.

Media are decoded once: `cache_inputs` stores what a checkpoint reads of each turn, as int16 samples, a
spectrogram, or frames of the model's size and rate.
"""

import os
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.nn.utils.rnn import pad_sequence

from common import encoders
from common.encoders import RATE_HZ, InputShape, collate_waveforms, short_name
from common.extraction import Extraction, extract
from common.files import UserError, hash_of
from common.media import read_audio, read_frames
from common.store import Store
from common.training import by_length, exact, forward_batch

# Batches are prepared in forked processes; the tokenizer's own threads would only warn there.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DECODED_TOGETHER = 64  # turns written to the cache at a time
MAX_PROBLEM_SHARE = 0.5  # more turns than this that cannot be decoded are an error


@dataclass
class Clipping:
    """How much of a turn a model sees."""

    audio_max_s: float  # longer turns are cut at the end
    video_max_s: float
    video_fps: float  # frame rate at which a clip is sampled ...
    video_stride: int  # ... of which every n-th frame is taken


# ---- Decode once ---------------------------------------------------------------------------


def cache_inputs(manifest, modality, shape, processor, clipping, cache_root, workers):
    """Decode what a checkpoint reads of all turns of a corpus, unless that is done already.

    shape       InputShape of the checkpoint; processor: its feature extractor or image processor
    cache_root  folder for the stores of this corpus; workers: threads that decode, 0 = none
    Returns None for text, else a Store of the turns that could be decoded, with the rows "inputs" of each:
    int16 (samples,), float16 (frames, mel) or uint8 (frames, size, size, 3).
    """
    if shape.kind == "tokens":
        return None
    turns = [turn for turn in manifest.turns if getattr(turn, modality)]
    longest_s = clipping.video_max_s if modality == "video" else clipping.audio_max_s
    seconds = np.array([min(longest_s, turn.duration_s) for turn in turns])
    if shape.kind == "waveform":
        decode, name = decode_waveform, f"waveforms_{longest_s:g}s"
        need_bytes = 2 * RATE_HZ * seconds.sum()
    elif shape.kind == "spectrogram":
        decode = partial(decode_spectrogram, processor=processor)
        name = f"spectrograms_{longest_s:g}s_{hash_of(processor.to_dict())}"
        need_bytes = 2 * processor.num_mel_bins * shape.frames * len(turns)
    else:
        step_s = clipping.video_stride / clipping.video_fps
        decode = partial(decode_frames, step_s=step_s, n_frames=shape.frames, size=shape.size)
        name = f"frames_{shape.frames}x{shape.size}px_{1000 * step_s:.0f}ms_{longest_s:g}s"
        need_bytes = 3 * shape.size**2 * np.maximum(shape.frames, seconds / step_s).sum()
    items = {turn.utterance_id: manifest.path(getattr(turn, modality)) for turn in turns}
    what = {"frames": "video frames"}.get(shape.kind, f"{shape.kind}s")
    identity = {"manifest": manifest.fingerprint(), "inputs": name}
    how = Extraction(DECODED_TOGETHER, workers, MAX_PROBLEM_SHARE)

    def compute(decoded):
        return {"inputs": np.concatenate(decoded)}, [len(rows) for rows in decoded]

    read = partial(decode, max_s=longest_s)
    return extract(items, read, compute, Path(cache_root) / name, identity, how, what, int(need_bytes))


def decode_waveform(path, max_s):
    """int16 samples (T,) at 16 kHz, the first max_s seconds."""
    return (read_audio(path, max_s, RATE_HZ) * 32768).round().clip(-32768, 32767).astype(np.int16)


def decode_spectrogram(path, max_s, processor):
    """float16 (frames, mel), as AST's feature extractor makes it."""
    waveform = read_audio(path, max_s, RATE_HZ)
    features = processor(waveform, sampling_rate=RATE_HZ, return_tensors="np")["input_values"][0]
    return features.astype(np.float16)


def decode_frames(path, max_s, step_s, n_frames, size):
    """uint8 RGB (T, size, size, 3): a frame every step_s seconds, or n_frames evenly from a shorter turn.

    The short side is scaled to `size` and the middle square kept.
    """
    frames, times_s = read_frames(path, max_s, size)  # (T, H, W, 3)
    span_s = min(max_s, times_s[-1] + (times_s[-1] / max(1, len(times_s) - 1)))
    wanted_s = np.arange(max(1, int(span_s / step_s))) * step_s
    if len(wanted_s) < n_frames:
        wanted_s = np.linspace(0, times_s[-1], n_frames)
    nearest = np.abs(times_s[None] - wanted_s[:, None]).argmin(1)
    top, left = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return frames[nearest, top : top + size, left : left + size]


# ---- Batches -------------------------------------------------------------------------------


@dataclass
class TurnInputs:
    """Some turns as a data set for training.train_and_test and training.predict.

    classes  names, for the label's index (-1 = unlabelled)
    shape    InputShape; processor: of the checkpoint; store: of cache_inputs; states: of cache_states
    mirror   probability that a training clip is mirrored left to right
    source   hub name or folder of the checkpoint; made_of: what else identifies the inputs
    """

    turns: list
    classes: tuple
    shape: InputShape
    processor: object
    store: Store | None
    mirror: float = 0.0
    source: str = ""
    made_of: dict = field(default_factory=dict)
    states: Store | None = None
    ids: list = field(init=False)
    labels: np.ndarray = field(init=False)
    lengths: list = field(init=False)  # batches hold turns of similar length

    def __post_init__(self):
        self.ids = [turn.utterance_id for turn in self.turns]
        self.labels = np.array([self.classes.index(t.label) if t.label else -1 for t in self.turns])
        if self.states:
            self.lengths = [self.states.length(i) for i in self.ids]
        elif self.shape.kind == "tokens":
            self.lengths = [len(turn.text) for turn in self.turns]
        else:
            self.lengths = [self.store.length(i) if self.shape.kind == "waveform" else 1 for i in self.ids]

    def of(self, turns, mirror=0.0):
        """The data set of those of some turns that are in this one."""
        here = set(self.ids)
        return replace(self, turns=[t for t in turns if t.utterance_id in here], mirror=mirror)

    def __len__(self):
        return len(self.turns)

    def __getitem__(self, key):
        """key: (index, seed); a seed of None means evaluation. Returns (input, label)."""
        index, seed = key
        if self.states:
            return self.states.rows(self.ids[index], "states"), self.labels[index]
        if self.shape.kind == "tokens":
            return self.turns[index].text, self.labels[index]
        rows = self.store.rows(self.ids[index], "inputs")
        if self.shape.kind == "waveform":
            rows = rows.astype(np.float32) / 32768
        elif self.shape.kind == "frames":
            generator = None if seed is None else np.random.default_rng(seed)
            rows = rows[choose_frames(len(rows), self.shape.frames, generator)]  # (T, H, W, 3)
            if generator and generator.random() < self.mirror:
                rows = rows[:, :, ::-1]
        return rows, self.labels[index]

    def collate(self, items):
        """A batch: inputs as the backbone's keyword arguments, labels (B,)."""
        inputs, labels = zip(*items)
        if self.states:
            batch = collate_states(inputs)
        elif self.shape.kind == "tokens":
            batch = collate_text(self.processor, list(inputs), self.shape.max_tokens)
        elif self.shape.kind == "waveform":
            batch = collate_waveforms(self.processor, inputs)
        elif self.shape.kind == "spectrogram":
            batch = {"input_values": torch.from_numpy(np.stack(inputs).astype(np.float32))}  # (B, T, mel)
        else:
            batch = collate_frames(self.processor, inputs)
        return {"inputs": batch, "labels": torch.tensor(labels)}


def read_inputs(manifest, modality, source, clipping, data_root, workers):
    """TurnInputs of all turns of a corpus that the checkpoint at `source` can read, decoded once."""
    shape, processor = encoders.input_shape(source, modality), encoders.load_processor(source, modality)
    cache = Path(data_root) / "cache" / manifest.corpus
    store = cache_inputs(manifest, modality, shape, processor, clipping, cache, workers)
    turns = [t for t in manifest.turns if (t.text if store is None else t.utterance_id in store)]
    made_of = {"manifest": manifest.fingerprint(), "weights": encoders.weights_fingerprint(source)}
    made_of["clipping"] = asdict(clipping)
    return TurnInputs(turns, manifest.classes, shape, processor, store, 0.0, source, made_of)


def cache_states(inputs, encoder, accelerator, data_root, corpus, batch_size):
    """The inputs with the frozen states of a TurnEncoder for each turn: "states" (tokens, L, D) on disk.

    float32 where they are pooled, else float16. Without them where training cannot start from states alone.
    """
    if not encoder.is_cacheable:
        return inputs
    dtype = np.float32 if encoder.is_pooled else np.float16
    name = encoder.pooling if encoder.is_pooled else f"tokens_{encoder.layer}_{encoder.first}"
    folder = Path(data_root) / "cache" / corpus / f"states_{short_name(inputs.source)}_{name}"
    encoder.to(accelerator.device).eval()

    def forward(model, batch):  # fp32 whatever the training's precision, without TF32
        with torch.autocast(accelerator.device.type, enabled=False), exact():
            states, visible = model.frozen_states(batch["inputs"])
        return {"states": states, "tokens": visible.sum(1)}

    def compute(turns):
        batch = send_to_device(inputs.collate(turns), accelerator.device)
        found = forward_batch(accelerator, encoder, forward, batch)
        counts = found["tokens"].astype(int).tolist()
        rows = np.concatenate([x[:n] for x, n in zip(found["states"], counts)]).astype(dtype)
        if not np.isfinite(rows).all():
            raise UserError(f"{inputs.source}: its states do not fit {dtype.__name__}; train all blocks")
        return {"states": rows}, counts

    order, identity = by_length(inputs.lengths), {**inputs.made_of, "states": name}
    middle, _ = compute([inputs[order[len(order) // 2], None]])
    need, what = len(order) * middle["states"].nbytes, f"states of {short_name(inputs.source)}"
    items, how = {inputs.ids[i]: (i, None) for i in order}, Extraction(batch_size)
    states = extract(items, inputs.__getitem__, compute, folder, identity, how, what, need)
    return replace(inputs, states=states)


def collate_states(inputs):
    """Frozen states (S, L, D) padded to the most tokens: states (B, S, L, D) and visible (B, S)."""
    counts = torch.tensor([len(x) for x in inputs])
    states = pad_sequence([torch.from_numpy(np.array(x)) for x in inputs], batch_first=True)
    return {"states": states, "visible": torch.arange(states.shape[1]) < counts[:, None]}


def collate_text(processor, texts, max_tokens):
    """Token ids padded to the longest text: input_ids and attention_mask (B, S)."""
    max_tokens = min(max_tokens, processor.model_max_length)  # positions of RoBERTa's begin behind padding's
    options = dict(padding=True, truncation=True, max_length=max_tokens, return_token_type_ids=False)
    return dict(processor(texts, return_tensors="pt", **options))


def collate_frames(processor, clips):
    """Clips of frames (T, H, W, 3) uint8, normalised: pixel_values (B, T, 3, H, W)."""
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
