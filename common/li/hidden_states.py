"""Dialogue turns as all hidden layers of a frozen pretrained model, from memory, disk or computed anew, with context.

All 25 layers of WavLM-Large are 12.8 MB per 5 s in float16, about 50 GB for IEMOCAP: `Utterances.prepare` counts
what a corpus needs, says it, and chooses. `Windows` is the data set of labelled turns with the turns around them.

B samples, U utterances of a batch, T steps, L layers, D width, N utterances of a context window.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm import tqdm

from common.encoders import (
    RATE_HZ,
    SHORTEST_S,
    collate_waveforms,
    input_shape,
    load_backbone,
    load_processor,
    short_name,
)
from common.errors import UserError
from common.files import free_bytes, read_json
from common.inputs import Clipping, cache_inputs
from common.li.model import hidden_states
from common.store import StoreWriter
from common.training import forward_batch, predict_batches, to_device

PLACES = ("memory", "disk", "recompute")


# ---- Batches -------------------------------------------------------------------------------


@dataclass
class Steps:
    """Some utterances, each once, and which of them make up the samples of a batch.

    inputs  tensors (U, ...): "states" (U, T, L, D) and "visible" (U, T), or the pretrained model's arguments
    window  (B, N) numbers of utterances in the order of the dialogue, -1 where there is none
    """

    inputs: dict
    window: torch.Tensor

    def __len__(self):
        return len(self.window)

    def __getitem__(self, samples):
        """Some of the samples, with the utterances that they need."""
        window = self.window[samples]
        used, window = torch.unique(
            torch.cat([window.flatten(), window.new_tensor([-1])]), return_inverse=True
        )
        inputs = {name: tensor[used[1:]] for name, tensor in self.inputs.items()}  # used[0] is the -1
        return Steps(inputs, (window[:-1] - 1).view(-1, self.window.shape[1]))

    def to(self, device, non_blocking=False):
        return Steps(
            {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.inputs.items()},
            self.window.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self):
        return Steps(
            {name: tensor.pin_memory() for name, tensor in self.inputs.items()}, self.window.pin_memory()
        )


def context_windows(manifest, turns, before, after, tested):
    """The utterances around each of some turns, in the order of their dialogue (Sec. 2.1).

    turns          Turn list, labelled or not; every turn of the dialogue can be context, labelled or not
    before, after  how many utterances
    tested         tested(turn) -> whether a turn belongs to the test part; context never crosses that border
    Returns (one list of before + 1 + after ids or None per turn, how many neighbours the border cut off).
    """
    dialogues = {}
    for turn in manifest.turns:  # sorted by dialogue and time
        dialogues.setdefault(turn.dialogue_id, []).append(turn)
    place = {turn.utterance_id: i for dialogue in dialogues.values() for i, turn in enumerate(dialogue)}
    windows, n_cut = [], 0
    for turn in turns:
        dialogue, i = dialogues[turn.dialogue_id], place[turn.utterance_id]
        window = [dialogue[j] if 0 <= j < len(dialogue) else None for j in range(i - before, i + after + 1)]
        crossing = [t is not None and tested(t) != tested(turn) for t in window]
        n_cut += sum(crossing)
        windows.append([None if t is None or cut else t.utterance_id for t, cut in zip(window, crossing)])
    return windows, n_cut


class Windows:
    """Labelled turns with their context as a data set for training.fit and training.predict.

    turns       Turn list; classes: names, for the label's index
    utterances  {modality: Utterances} that the system reads
    windows     of context_windows, for text; audio has no context
    live        modalities of which the batches hold the pretrained model's inputs instead of hidden states
    by_length   batches of turns of similar length, for fine-tuning, where padding costs most; else at random: in a small
                corpus batches by length are the same ones in every epoch, each of them all short or all long texts
    """

    def __init__(self, turns, classes, utterances, windows, live, by_length):
        self.turns, self.utterances, self.live = turns, utterances, live
        self.labels = np.array([classes.index(turn.label) for turn in turns])
        alone = [[turn.utterance_id] for turn in turns]
        self.windows = {m: alone if m == "audio" else windows for m in utterances}
        modality, first = next(iter(utterances.items()))  # audio, where it is read
        self.lengths = [
            max(first.steps[u] for u in window if u is not None) if by_length else 1
            for window in self.windows[modality]
        ]

    def __len__(self):
        return len(self.turns)

    def __getitem__(self, key):
        """key: (index, seed) -> the index; all else is done once for the batch, in `collate`."""
        return key[0]

    def collate(self, indices):
        """A batch: labels (B,) and Steps for every modality."""
        batch = {"labels": torch.from_numpy(self.labels[indices])}
        for modality, utterances in self.utterances.items():
            windows = [self.windows[modality][i] for i in indices]
            number = {}
            for utterance_id in (u for window in windows for u in window if u is not None):
                number.setdefault(utterance_id, len(number))
            collate = utterances.collate_inputs if modality in self.live else utterances.collate_states
            batch[modality] = Steps(
                collate(list(number)),
                torch.tensor([[number.get(u, -1) for u in window] for window in windows]),
            )
        return batch


# ---- Inputs and hidden states of one modality ----------------------------------------------


class Utterances:
    """What a pretrained model reads of the turns of a corpus, and the hidden states that it gives while frozen.

    manifest     Manifest
    modality     "audio" or "text"
    source       checkpoint: hub name or folder
    turns        the turns that may be asked for; of audio the labelled ones suffice
    max_s        seconds of audio that are kept; max_tokens: tokens of text, at most what the model takes
    """

    def __init__(self, manifest, modality, source, turns, max_s, max_tokens, cache_root, workers):
        self.modality, self.source, self.cache_root = modality, source, Path(cache_root)
        self.processor = load_processor(source, modality)
        shape = input_shape(source, modality)
        if shape.kind not in ("waveform", "tokens"):
            raise UserError(
                f"{short_name(source)}: takes {shape.kind}, which have no {modality} layers over time; "
                "name a model such as WavLM, wav2vec 2.0 or HuBERT"
            )
        self.tokens, self.store = {}, None
        if modality == "text":
            ids = self.processor(
                [t.text for t in turns], truncation=True, max_length=min(max_tokens, shape.max_tokens)
            )["input_ids"]
            self.tokens = {t.utterance_id: np.array(i) for t, i in zip(turns, ids)}
        else:
            clipping = Clipping(max_s, 0, 0, 0)
            self.store = cache_inputs(manifest, "audio", shape, self.processor, clipping, cache_root, workers)
        self.ids = [t.utterance_id for t in turns]
        self.absent = {i for i in self.ids if self.store and i not in self.store.slices}
        self.steps = {i: len(self.tokens[i]) if modality == "text" else self.samples(i) for i in self.ids}
        self.name = f"states_{short_name(source)}_" + (
            f"{max_s:g}s" if modality == "audio" else f"{max_tokens}tokens"
        )
        self.weights = weights_fingerprint(source)
        self.manifest_fingerprint = manifest.fingerprint()
        self.place, self.kept, self.shape = "recompute", {}, None

    def samples(self, utterance_id):
        """Audio samples of a turn; one without audio is heard as silence of the shortest length."""
        length = 0 if utterance_id in self.absent else self.store.length(utterance_id)
        return max(length, int(SHORTEST_S * RATE_HZ))

    def collate_inputs(self, ids):
        """The pretrained model's arguments for some utterances, padded: tensors (U, S)."""
        if self.modality == "text":
            longest = max(len(self.tokens[i]) for i in ids)
            tokens = torch.full((len(ids), longest), self.processor.pad_token_id)
            visible = torch.zeros(len(ids), longest, dtype=torch.long)
            for row, i in enumerate(ids):
                tokens[row, : len(self.tokens[i])] = torch.from_numpy(self.tokens[i])
                visible[row, : len(self.tokens[i])] = 1
            return {"input_ids": tokens, "attention_mask": visible}
        return collate_waveforms(self.processor, [self.waveform(i) for i in ids])

    def waveform(self, utterance_id):
        if utterance_id in self.absent:
            return np.zeros(self.samples(utterance_id), np.float32)
        return self.store.rows(utterance_id, "inputs").astype(np.float32) / 32768

    def collate_states(self, ids):
        """Hidden states of some utterances, padded: "states" (U, T, L, D) float16 and "visible" (U, T)."""
        rows = [self.kept[i] if self.place == "memory" else self.kept.rows(i, "states") for i in ids]
        longest = max(len(r) for r in rows)
        states = torch.empty(
            len(rows), longest, *rows[0].shape[1:], dtype=torch.float16
        )  # padding is never read
        visible = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, r in enumerate(rows):
            states[row, : len(r)].numpy()[...] = r  # r may be memory-mapped and read-only
            visible[row, : len(r)] = True
        return {"states": states, "visible": visible}

    # ---- Where the frozen states are kept

    def prepare(self, accelerator, wanted, memory_gb, disk_gb, batch_size, workers):
        """Count and print what the states cost, choose where they are kept, and compute them if they are kept.

        wanted            "auto" or one of PLACES; "auto" takes memory up to memory_gb, else disk up to disk_gb
        Returns the GB that it took of (memory, disk).
        Raises UserError for a place that is too small.
        """
        backbone = load_backbone(self.source).to(accelerator.device).eval()
        config = backbone.config
        self.shape = config.num_hidden_layers + 1, config.hidden_size
        per_step = self.steps
        if self.modality == "audio":
            per_step = {
                i: max(1, int(backbone._get_feat_extract_output_lengths(n))) for i, n in self.steps.items()
            }
        n_steps = sum(per_step.values())
        need_gb = n_steps * self.shape[0] * self.shape[1] * 2 / 1e9
        self.folder = self.cache_root / self.name
        self.meta = {
            "manifest": self.manifest_fingerprint,
            "weights": self.weights,
            "precision": accelerator.mixed_precision,
        }
        self.place = choose_place(wanted, need_gb, memory_gb, disk_gb, self.folder, self.stored_gb())
        pass_s = self.time_pass(accelerator, backbone, batch_size)
        print(
            f"hidden states of {short_name(self.source)}: {len(self.ids):,} turns, {n_steps:,} steps x {self.shape[0]} "
            f"layers x {self.shape[1]} x 2 bytes = {need_gb:.2f} GB; "
            + {
                "memory": "kept in memory",
                "disk": f"kept in {self.folder}",
                "recompute": "not kept: computed anew at every step",
            }[self.place]
            + f"; computing them takes about {pass_s:,.0f} s here"
            + " in every frozen epoch, several times that in one of fine-tuning"
            * (self.place == "recompute"),
            flush=True,
        )
        if self.place != "recompute":
            self.compute(accelerator, backbone, batch_size, workers)
        return need_gb * (self.place == "memory"), need_gb * (self.place == "disk")

    def time_pass(self, accelerator, backbone, batch_size):
        """Seconds that the model takes for all utterances, estimated from one batch of middling length."""
        ids = sorted(self.ids, key=self.steps.get)
        start = max(0, (len(ids) - batch_size) // 2)
        batch = {"inputs": self.collate_inputs(ids[start : start + batch_size])}

        def forward(model, batch):
            return {"level": hidden_states(model, self.modality, batch["inputs"])[0].mean((1, 2, 3))}

        for _ in range(2):  # the first one warms up
            started = time.monotonic()
            forward_batch(accelerator, backbone, forward, to_device(batch, accelerator.device))
        return (time.monotonic() - started) * len(ids) / min(batch_size, len(ids))

    def stored_gb(self):
        """GB that an earlier run of the same states has put on the disk."""
        note, states = self.folder / "meta.json", self.folder / "states.npy"
        if not (note.exists() and states.exists()):
            return 0.0
        made_with = {name: value for name, value in read_json(note).items() if name != "complete"}
        return states.stat().st_size / 1e9 if made_with == self.meta else 0.0

    def compute(self, accelerator, backbone, batch_size, workers):
        """Run the frozen model over all utterances and keep its states, float16."""
        writer = StoreWriter(self.folder, self.meta) if self.place == "disk" else None
        done = {k for k, i in enumerate(self.ids) if writer and i in writer.done}

        def forward(model, batch):
            states, visible = hidden_states(model, self.modality, batch["inputs"])
            return {"states": states, "steps": visible.sum(1)}

        with tqdm(total=len(self.ids) - len(done), desc="hidden states", disable=None, leave=False) as bar:
            batches = predict_batches(accelerator, backbone, forward, _Raw(self), batch_size, workers, done)
            for indices, found in batches:
                with np.errstate(over="ignore"):  # refused below, in one line
                    rows = [
                        found["states"][k, : int(n)].astype(np.float16) for k, n in enumerate(found["steps"])
                    ]
                if not all(np.isfinite(r).all() for r in rows):
                    raise UserError(
                        f"{short_name(self.source)}: hidden states do not fit float16; set "
                        "HIDDEN_STATES=recompute"
                    )
                ids = [self.ids[k] for k in indices]
                if writer:
                    writer.add(ids, {"states": np.concatenate(rows)}, [len(r) for r in rows])
                else:
                    self.kept.update(zip(ids, rows))
                bar.update(len(ids))
        if writer:
            self.kept = writer.finish()


class _Raw:
    """All utterances as a data set of the pretrained model's inputs."""

    def __init__(self, utterances):
        self.utterances = utterances
        self.lengths = [utterances.steps[i] for i in utterances.ids]

    def __getitem__(self, key):
        return self.utterances.ids[key[0]]

    def collate(self, ids):
        return {"inputs": self.utterances.collate_inputs(ids)}


def choose_place(wanted, need_gb, memory_gb, disk_gb, folder, stored_gb):
    """Where need_gb of hidden states are kept: one of PLACES; UserError if the place asked for is too small.

    folder  on the disk in question; stored_gb: what lies there already of these states
    """
    if wanted not in ("auto", *PLACES):
        raise UserError(f"HIDDEN_STATES={wanted}: choose one of auto, {', '.join(PLACES)}")
    free_gb = {"memory": free_memory_gb(), "disk": free_bytes(folder) / 1e9 + stored_gb, "recompute": np.inf}
    if wanted == "auto":
        fits = {
            "memory": need_gb <= min(memory_gb, free_gb["memory"]),
            "disk": need_gb <= min(disk_gb, free_gb["disk"]),
        }
        return next((place for place in ("memory", "disk") if fits[place]), "recompute")
    if need_gb > free_gb[wanted]:
        raise UserError(
            f"HIDDEN_STATES={wanted}: {need_gb:.1f} GB needed, {free_gb[wanted]:.1f} GB free; set "
            "HIDDEN_STATES=recompute, or a smaller model or AUDIO_MAX_S"
        )
    return wanted


def free_memory_gb():
    """Memory that can be had without swapping, in GB; where the system does not say, no limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6
    except (OSError, StopIteration):
        return np.inf


def weights_fingerprint(source):
    """What hidden states depend on: a hash of a local checkpoint's weights, or the hub's name, and transformers."""
    digest = hashlib.sha256()
    for path in sorted(p for pattern in ("*.safetensors", "*.bin") for p in Path(source).glob(pattern)):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    local = Path(source).is_dir()
    return f"{digest.hexdigest()[:16] if local else source}, transformers {transformers.__version__}"
