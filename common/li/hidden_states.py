"""Dialogue turns as the inputs and all hidden layers of a pretrained model, with the turns around them.

While the pretrained models are frozen, what they make of an utterance never changes: it is computed once and
kept. All 25 layers of WavLM-Large are 12.8 MB per 5 s in float16, about 50 GB for IEMOCAP.

B samples, N utterances of a context window, U utterances, T steps (audio frames or tokens) of one, S of all
that a window holds, L layers, D width.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from timeit import timeit

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.nn.utils.rnn import pad_sequence

from common import encoders
from common.encoders import RATE_HZ, SHORTEST_S, short_name
from common.extraction import extract
from common.files import UserError, free_bytes
from common.li.extractor import hidden_states
from common.media import MediaError, read_audio
from common.store import Store
from common.training import by_length, exact, forward_batch

SILENCE = "(silence)"  # stands for turns without audio, or whose audio cannot be read
DEVICE_SHARE = 0.7  # of a GPU's free memory that hidden states may take
MEASURED = 512  # turns whose states give mean and deviation
COPY_STEPS = 4096  # of hidden states that are copied to it together: all would not fit in memory

load_once = lru_cache(encoders.load_backbone)


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
    on_device: torch.Tensor | None = None  # all of them (P, L, D), where HIDDEN_STATES asks for it

    def __post_init__(self):
        config = load_once(self.source).config
        self.shape = config.num_hidden_layers + 1, config.hidden_size  # (L, D)
        self.weights = encoders.weights_fingerprint(self.source)
        self.processor = encoders.load_processor(self.source, self.modality)

    def backbone(self):
        """A copy of the pretrained model, which fine-tuning may change."""
        return deepcopy(load_once(self.source))

    def read(self, item):
        """Token numbers, or samples (S,); of None one token, or silence. MediaError for a broken file."""
        if self.modality == "text":
            return item or [0]
        return read_audio(item, self.limit, RATE_HZ) if item else np.zeros(int(SHORTEST_S * RATE_HZ), "f4")

    def pad(self, inputs):
        """The pretrained model's arguments for a list of what `read` gave: tensors (U, S)."""
        if self.modality == "audio":
            return encoders.collate_waveforms(self.processor, inputs)
        batch = self.processor.pad({"input_ids": inputs}, return_tensors="pt")
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def collate_inputs(self, windows, target):
        """The arguments (B, N, ...) for windows of ids or None, and the "place" (B, N) of each, N for None.

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
        """Hidden states "states" (B, S, L, D) of B windows, or their rows (B, S) where the device has them.

        With them come "place" (B, S) and "visible" (B, T), as FeatureExtractor takes them.
        """
        (first, count), rows, places, longest = self.states.spans("states"), [], [], 0
        for window in windows:
            there = [n for n in target_first(window, target) if window[n] is not None]
            ids = [window[n] if window[n] in self.states else SILENCE for n in there]
            at = [self.states.positions[i] for i in ids]
            n, total = count[at], count[at].sum()
            rows.append(torch.from_numpy(np.arange(total) + np.repeat(first[at] - n.cumsum() + n, n)))
            places.append(torch.from_numpy(np.repeat(there, n)))
            longest = max(longest, *n)  # as long as in collate_inputs, for equal draws of dropout
        rows, place = pad_sequence(rows, True), pad_sequence(places, True, len(windows[0]))
        states = rows if self.on_device is not None else torch.from_numpy(self.states["states"][rows.numpy()])
        return {"states": states, "place": place, "visible": (place == target)[:, :longest]}

    def moments(self, ids):
        """Mean and standard deviation (L, D) over the steps of up to MEASURED of some turns' kept states."""
        if self.states is None:
            raise UserError("STANDARDISE: is measured on kept hidden states; set HIDDEN_STATES=disk")
        kept = [i for i in ids if i in self.states]
        some = [self.states.rows(i, "states") for i in kept[:: -(-len(kept) // MEASURED)]]
        n = sum(map(len, some))
        mean = sum(x.sum(0, dtype=np.float64) for x in some) / n
        sd = np.sqrt(sum(((x - mean) ** 2).sum(0) for x in some) / n)
        return tuple(torch.from_numpy(x).float() for x in (mean, np.where(sd > 0, sd, 1)))

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
    shape = encoders.input_shape(source, modality)
    if shape.kind not in ("waveform", "tokens"):
        what = f"takes {shape.kind}, which have no {modality} layers over time"
        raise UserError(f"{short_name(source)}: {what}; name a model such as WavLM, wav2vec 2.0 or HuBERT")
    if modality == "audio":
        turns = manifest.labelled
        inputs = {t.utterance_id: manifest.path(t.audio) if t.audio else None for t in turns}
        lengths = {t.utterance_id: int(RATE_HZ * max(SHORTEST_S, min(limit, t.duration_s))) for t in turns}
        return Utterances(modality, source, limit, {SILENCE: None, **inputs}, {SILENCE: 0, **lengths})
    texts, most = [turn.text for turn in manifest.turns], min(limit, shape.max_tokens)
    tokens = encoders.load_processor(source, modality)(texts, truncation=True, max_length=most)["input_ids"]
    inputs = {turn.utterance_id: own for turn, own in zip(manifest.turns, tokens)}
    return Utterances(modality, source, limit, inputs, {name: len(own) for name, own in inputs.items()})


# ---- Hidden states that are kept -----------------------------------------------------------


def keep_states(u, manifest, accelerator, cache_root, cache_gb, where, how):
    """Compute the frozen model's states of all Utterances `u` once, in fp32, and keep them in float16.

    where  HIDDEN_STATES: "disk", "device", "anew" or "auto"; how: Extraction
    Returns the GB that they take on disk, 0 where they are computed anew at every step.
    """
    name, device, (n_layers, width) = short_name(u.source), accelerator.device, u.shape
    backbone = u.backbone().to(device).eval()
    n_steps = sum(count_steps(backbone, u.modality, length) for length in u.lengths.values())
    need, folder = n_steps * n_layers * width * 2, Path(cache_root) / f"states_{name}_{u.limit:g}"
    there = sum(path.stat().st_size for path in folder.glob("*.npy"))
    anew = "HIDDEN_STATES=anew" if where == "anew" else ""
    if need > min(cache_gb * 1e9, free_bytes(folder) + there):
        anew = "more than CACHE_GB or the disk allows"
    elif where == "auto" and device.type != "cpu" and not there:
        reading, running = seconds_per_batch(u, backbone, accelerator, how.batch)
        anew = f"{running:.3f} s a batch, to read them {reading:.3f} s" if running < reading else ""
    what = f"{n_steps:,} steps x {n_layers} layers x {width} x 2 bytes = {need / 1e9:.2f} GB"
    print(f"hidden states of {name}: {what}{anew and f', computed anew at every step: {anew}'}", flush=True)
    if anew:
        return 0.0

    def forward(model, batch):
        with torch.autocast(device.type, enabled=False), exact():
            states, visible = hidden_states(model, u.modality, batch["inputs"])
        rows = states[visible].half()  # (P, L, D)
        finite = rows.isfinite().flatten(1).all(1)
        return {"bits": rows.view(torch.int16), "finite": finite, "steps": visible.sum(1)}

    def compute(inputs):
        batch = send_to_device({"inputs": u.pad(inputs)}, device)
        found = forward_batch(accelerator, backbone, forward, batch)
        if not found["finite"].all():
            raise UserError(f"{name}: its states do not fit float16; set HIDDEN_STATES=anew")
        return {"states": found["bits"].view(np.float16)}, found["steps"].tolist()

    identity = {"manifest": manifest.fingerprint(), "weights": u.weights, "precision": "fp32 without TF32"}
    ids = list(u.inputs)
    items = {ids[k]: u.inputs[ids[k]] for k in by_length([u.lengths[i] for i in ids])}
    u.states = extract(items, u.read, compute, folder, identity, how, f"hidden states of {name}", need)
    u.on_device = copy_to(device, u.states["states"]) if where == "device" else None
    return need / 1e9


def count_steps(backbone, modality, length):
    """How many steps a model makes of an input of some length."""
    return length if modality == "text" else max(1, int(backbone._get_feat_extract_output_lengths(length)))


def seconds_per_batch(u, backbone, accelerator, n):
    """How long it takes to read the kept states of n long utterances, and to compute them."""
    longest = sorted(u.inputs, key=u.lengths.get)[-n:]
    batch = send_to_device(u.pad([u.read(u.inputs[i]) for i in longest]), accelerator.device)

    def run():
        with torch.inference_mode(), accelerator.autocast():
            return hidden_states(backbone, u.modality, batch)[0]

    kept = torch.zeros(run().shape, dtype=torch.float16)
    reading = timeit(lambda: kept.clone().to(accelerator.device).sum().item(), number=1)  # .item() waits
    return reading, timeit(lambda: run().sum().item(), number=1)


def copy_to(device, array):
    """A copy of an array (P, ...) on a GPU that has room, else None."""
    if device.type == "cuda" and array.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        print("  more than the GPU has room for: read from the disk")
        return None
    copy = torch.empty(array.shape, dtype=torch.float16, device=device)
    for start in range(0, len(array), COPY_STEPS):
        copy[start : start + COPY_STEPS] = torch.from_numpy(array[start : start + COPY_STEPS].copy())
    return copy


# ---- Windows of a dialogue -----------------------------------------------------------------


def context_windows(manifest, turns, before, after, is_tested):
    """The utterances around each of some turns, labelled or not, in the order of their dialogue (Sec. 2.1).

    is_tested  is_tested(turn) -> whether it belongs to the test part; context never crosses that border
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
        crossing = [t is not None and is_tested(t) != is_tested(turn) for t in window]
        n_cut += sum(crossing)
        windows.append([None if t is None or cut else t.utterance_id for t, cut in zip(window, crossing)])
    return windows, n_cut


class Windows:
    """Labelled turns with their context as a data set of common.training.

    windows    of context_windows, for text; audio has no context; before: utterances before the target
    live       modalities of which the batches hold the pretrained model's inputs, not its hidden states
    by_length  batches of turns of similar length, for fine-tuning, where padding costs most; else at random:
               in a small corpus batches by length are the same in every epoch, all short or all long texts
    """

    def __init__(self, turns, classes, utterances, windows, before, live, by_length):
        self.utterances, self.live, self.ids = utterances, live, [turn.utterance_id for turn in turns]
        self.labels = np.array([classes.index(turn.label) for turn in turns])
        self.windows = {"audio": ([[i] for i in self.ids], 0), "text": (windows, before)}
        modality, first = next(iter(utterances.items()))  # audio, where it is read
        longest = [max(first.lengths[i] for i in window if i) for window in self.windows[modality][0]]
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
            windows, target = self.windows[modality]
            batch[modality] = collate([windows[i] for i in indices], target)
        return batch
