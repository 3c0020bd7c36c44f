"""Dialogue turns as the inputs and all hidden layers of a pretrained model, with the turns around them.

While the pretrained models are frozen, what they make of an utterance never changes. It is computed once and
kept on disk, memory-mapped, where that takes at most CACHE_GB; else anew at every step. All 25 layers of
WavLM-Large are 12.8 MB per 5 s in float16, about 50 GB for IEMOCAP.

B samples, N utterances of a context window, U utterances, T steps (audio frames or tokens) of one, S of all
that a window holds, L layers, D width.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig

from common.encoders import (
    RATE_HZ,
    SHORTEST_S,
    collate_waveforms,
    input_shape,
    load_backbone,
    load_pretrained,
    load_processor,
    short_name,
    weights_fingerprint,
)
from common.errors import UserError
from common.extraction import extract
from common.files import free_bytes
from common.li.extractor import hidden_states
from common.media import MediaError, read_audio
from common.store import Store
from common.training import forward_batch

SILENCE = "(silence)"  # stands for turns without audio, or whose audio cannot be read

load_once = lru_cache(load_backbone)


# ---- What a pretrained model reads of a corpus ---------------------------------------------


@dataclass
class Utterances:
    """What a pretrained model reads of the turns of a corpus, and its hidden states where they are kept."""

    modality: str  # "audio" or "text"
    source: str  # checkpoint: hub name or folder
    limit: float  # seconds of audio or tokens of text that are kept
    inputs: dict  # {id: token numbers (S,), or path of an audio file, None = silence}
    lengths: dict  # {id: S, of audio about}
    states: Store | None = None  # "states" (T, L, D) float16 per turn; None = computed anew at every step

    def __post_init__(self):
        config = load_pretrained(AutoConfig, self.source)
        self.shape = config.num_hidden_layers + 1, config.hidden_size  # (L, D)
        self.weights = weights_fingerprint(self.source)
        self.processor = load_processor(self.source, self.modality)

    def backbone(self):
        """A copy of the pretrained model, which fine-tuning will change."""
        return deepcopy(load_once(self.source))

    def read(self, item):
        """Token numbers, or samples (S,); MediaError where a file cannot be read. None: silence, a token."""
        if item is None:
            return [0] if self.modality == "text" else np.zeros(int(SHORTEST_S * RATE_HZ), np.float32)
        return item if self.modality == "text" else read_audio(item, self.limit, RATE_HZ)

    def pad(self, inputs):
        """The pretrained model's arguments for a list of what `read` gave: tensors (U, S)."""
        if self.modality == "audio":
            return collate_waveforms(self.processor, inputs)
        batch = self.processor.pad({"input_ids": inputs}, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def collate_inputs(self, windows, target):
        """The arguments for B windows of N ids or None, and the "place" (B, N) of each, N for None.

        target  where the target stands in a window; it comes first in the batch
        """
        order, found = target_first(windows[0], target), []
        for i in (window[n] for window in windows for n in order):
            try:
                found.append(self.read(self.inputs.get(i)))
            except MediaError:
                found.append(self.read(None))
        place = torch.tensor([[len(order) if window[n] is None else n for n in order] for window in windows])
        return {"place": place, **{name: x.unflatten(0, place.shape) for name, x in self.pad(found).items()}}

    def collate_states(self, windows, target):
        """Hidden states "states" (B, S, L, D) float16 of B windows, "place" (B, S), "visible" (B, T)."""
        (first, count), rows, places = self.states.spans("states"), [], []
        for window in windows:
            there = [n for n in target_first(window, target) if window[n] is not None]
            at = [self.row_of(window[n]) for n in there]
            spans = [torch.arange(first[i], first[i] + count[i]) for i in at]
            rows.append(torch.cat(spans))
            places.append(torch.tensor(there).repeat_interleave(torch.tensor([len(span) for span in spans])))
        rows, place = pad_sequence(rows, True), pad_sequence(places, True, len(windows[0]))
        shown = place == target
        visible = shown[:, : shown.sum(1).max()]
        return {
            "states": torch.from_numpy(self.states["states"][rows.numpy()]),
            "place": place,
            "visible": visible,
        }

    def row_of(self, utterance_id):
        return self.states.row_of(utterance_id if utterance_id in self.states else SILENCE)

    def n_silent(self):
        """How many turns are taken as silence."""
        unread = len(self.states.problems) if self.states else 0
        return unread + sum(item is None for name, item in self.inputs.items() if name != SILENCE)


def target_first(window, target):
    """The places of a window, the target's first."""
    return sorted(range(len(window)), key=lambda n: n != target)


def read_utterances(manifest, modality, source, limit):
    """The Utterances of a modality: of audio the labelled turns, of text all, since any can be context.

    limit  seconds of audio, or tokens of text, at most what the model takes
    """
    shape = input_shape(source, modality)
    if shape.kind not in ("waveform", "tokens"):
        raise UserError(
            f"{short_name(source)}: takes {shape.kind}, which have no {modality} layers over time; "
            "name a model such as WavLM, wav2vec 2.0 or HuBERT"
        )
    if modality == "audio":
        turns = manifest.labelled
        inputs = {t.utterance_id: manifest.path(t.audio) if t.audio else None for t in turns}
        lengths = {t.utterance_id: int(RATE_HZ * max(SHORTEST_S, min(limit, t.duration_s))) for t in turns}
        return Utterances(modality, source, limit, {SILENCE: None, **inputs}, {SILENCE: 0, **lengths})
    texts, most = [turn.text for turn in manifest.turns], min(limit, shape.max_tokens)
    numbers = load_processor(source, modality)(texts, truncation=True, max_length=most)["input_ids"]
    inputs = {turn.utterance_id: own for turn, own in zip(manifest.turns, numbers)}
    return Utterances(modality, source, limit, inputs, {name: len(own) for name, own in inputs.items()})


# ---- Hidden states on disk -----------------------------------------------------------------


def keep_states(u, manifest, accelerator, cache_root, cache_gb, how):
    """Compute the frozen model's states of all Utterances `u` once, if cache_gb and the disk allow.

    how  Extraction: size of batches, threads
    Returns the GB that they take, 0 where they do not fit and are computed anew at every step.
    """
    what, n_layers, width = f"hidden states of {short_name(u.source)}", *u.shape
    backbone = u.backbone().to(accelerator.device).eval()
    n_steps = sum(count_steps(backbone, u.modality, length) for length in u.lengths.values())
    need = n_steps * n_layers * width * 2
    folder = Path(cache_root) / f"states_{short_name(u.source)}_{u.limit:g}"
    there = sum(path.stat().st_size for path in folder.glob("*.npy"))
    fits = need <= min(cache_gb * 1e9, free_bytes(folder) + there)
    size = f"{n_steps:,} steps x {n_layers} layers x {width} x 2 bytes = {need / 1e9:.2f} GB"
    anew = "" if fits else ": more than CACHE_GB or the disk allows, computed anew at every step"
    print(f"{what}: {size}{anew}", flush=True)
    if not fits:
        return 0.0

    def forward(model, batch):
        states, visible = hidden_states(model, u.modality, batch["inputs"])
        return {"states": states, "steps": visible.sum(1)}

    def compute(inputs):
        batch = send_to_device({"inputs": u.pad(inputs)}, accelerator.device)
        found = forward_batch(accelerator, backbone, forward, batch)
        counts = found["steps"].astype(int).tolist()
        with np.errstate(over="ignore"):  # refused below, in one line
            rows = np.concatenate([s[:n] for s, n in zip(found["states"], counts)]).astype(np.float16)
        if not np.isfinite(rows).all():
            raise UserError(f"{short_name(u.source)}: its states do not fit float16; set CACHE_GB=0")
        return {"states": rows}, counts

    identity = {"manifest": manifest.fingerprint(), "weights": u.weights, "limit": u.limit}
    identity["precision"] = accelerator.mixed_precision
    # By length, since padding costs time; at random within a length, since rounding must not tell the label.
    order = np.random.default_rng(0).permutation(list(u.inputs)).tolist()
    items = {name: u.inputs[name] for name in sorted(order, key=u.lengths.get)}
    u.states = extract(items, u.read, compute, folder, identity, how, what, need)
    return need / 1e9


def count_steps(backbone, modality, length):
    """How many steps a model makes of an input of some length."""
    return length if modality == "text" else max(1, int(backbone._get_feat_extract_output_lengths(length)))


# ---- Windows of a dialogue -----------------------------------------------------------------


def context_windows(manifest, turns, before, after, tested):
    """The utterances around each of some turns, in the order of their dialogue (Sec. 2.1).

    turns          Turn list, labelled or not; every turn of the dialogue can be context, labelled or not
    before, after  how many utterances
    tested         tested(turn) -> whether a turn belongs to the test part; context never crosses that border
    Returns (one list of before + 1 + after ids or None per turn, how many neighbours the border cut off).
    """
    dialogues, place, windows, n_cut = {}, {}, [], 0
    for turn in manifest.turns:  # sorted by dialogue and time
        dialogue = dialogues.setdefault(turn.dialogue_id, [])
        place[turn.utterance_id] = len(dialogue)
        dialogue.append(turn)
    for turn in turns:
        dialogue, i = dialogues[turn.dialogue_id], place[turn.utterance_id]
        window = [dialogue[j] if 0 <= j < len(dialogue) else None for j in range(i - before, i + after + 1)]
        crossing = [t is not None and tested(t) != tested(turn) for t in window]
        n_cut += sum(crossing)
        windows.append([None if t is None or cut else t.utterance_id for t, cut in zip(window, crossing)])
    return windows, n_cut


class Windows:
    """Labelled turns with their context as a data set of common.training.

    turns       Turn list; classes: names, for the label's index
    utterances  {modality: Utterances} that the system reads
    windows     of context_windows, for text; audio has no context; before: utterances before the target
    live        modalities of which the batches hold the pretrained model's inputs, not its hidden states
    by_length   batches of turns of similar length, for fine-tuning, where padding costs most; else at random:
                in a small corpus batches by length are the same in every epoch, all short or all long texts
    """

    def __init__(self, turns, classes, utterances, windows, before, live, by_length):
        self.utterances, self.live, self.ids = utterances, live, [turn.utterance_id for turn in turns]
        self.targets = {"audio": 0, "text": before}
        self.labels = np.array([classes.index(turn.label) for turn in turns])
        self.windows = {m: windows if m == "text" else [[i] for i in self.ids] for m in utterances}
        modality, first = next(iter(utterances.items()))  # audio, where it is read
        longest = [max(first.lengths[i] for i in window if i) for window in self.windows[modality]]
        self.lengths = longest if by_length else [1] * len(turns)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, key):
        """key: (index, seed) -> the index; all else is done once for the batch, in `collate`."""
        return key[0]

    def collate(self, indices):
        """A batch: labels (B,) and for every modality what its FeatureExtractor takes."""
        batch = {"labels": torch.from_numpy(self.labels[indices])}
        for modality, utterances in self.utterances.items():
            collate = utterances.collate_inputs if modality in self.live else utterances.collate_states
            batch[modality] = collate([self.windows[modality][i] for i in indices], self.targets[modality])
        return batch
