"""Dialogue turns as the inputs and all hidden layers of a pretrained model, with the turns around them.

While the pretrained models are frozen, what they make of an utterance never changes. It is computed once and kept on
disk, memory-mapped, where that takes at most CACHE_GB; else anew at every step. All 25 layers of WavLM-Large are
12.8 MB per 5 s in float16, about 50 GB for IEMOCAP.

B samples, N utterances of a context window, U some utterances, S samples or tokens, T steps, L layers, D width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from common.encoders import input_shape, load_backbone, load_processor, short_name
from common.errors import UserError
from common.extraction import Extraction, extract
from common.files import file_hash, free_bytes, hash_of
from common.inputs import RATE_HZ, SHORTEST_S, Clipping, cache_inputs, collate_waveforms
from common.li.extractor import hidden_states
from common.store import Store
from common.training import forward_batch, to_device

# ---- What a pretrained model reads of a corpus ---------------------------------------------


@dataclass
class Utterances:
    """What a pretrained model reads of the turns of a corpus, and its hidden states where they are kept."""

    modality: str  # "audio" or "text"
    source: str  # checkpoint: hub name or folder
    limit: float  # seconds of audio or tokens of text that are kept
    ids: list  # of the turns that can be asked for
    processor: object  # the checkpoint's tokenizer or feature extractor
    tokens: dict  # of text: {id: (S,) token numbers}
    waveforms: Store | None  # of audio
    states: Store | None = None  # "states" (T, L, D) float16 per turn; None = computed anew at every step

    def __post_init__(self):
        config = load_backbone(self.source).config
        self.shape = config.num_hidden_layers + 1, config.hidden_size  # (L, D)
        self.weights = weights_fingerprint(self.source)
        self.absent = {i for i in self.ids if self.waveforms is not None and i not in self.waveforms}

    def length(self, utterance_id):
        """S; a turn without audio is silence of the shortest length."""
        if self.modality == "text":
            return len(self.tokens[utterance_id])
        if utterance_id in self.absent:
            return int(SHORTEST_S * RATE_HZ)
        return self.waveforms.length(utterance_id)

    def read(self, utterance_id):
        """Token numbers or samples (S,)."""
        if self.modality == "text":
            return self.tokens[utterance_id]
        if utterance_id in self.absent:
            return np.zeros(self.length(utterance_id), np.float32)
        return self.waveforms.rows(utterance_id, "inputs").astype(np.float32) / 32768

    def pad(self, inputs):
        """The pretrained model's arguments for a list of what `read` gave: tensors (U, S)."""
        if self.modality == "audio":
            return collate_waveforms(self.processor, inputs)
        tokens = torch.full((len(inputs), max(map(len, inputs))), self.processor.pad_token_id)
        for row, own in zip(tokens, inputs):
            row[: len(own)] = torch.from_numpy(own)
        n_tokens = torch.tensor([len(own) for own in inputs])[:, None]
        return {"input_ids": tokens, "attention_mask": (torch.arange(tokens.shape[1]) < n_tokens).long()}

    def collate_inputs(self, windows):
        """The arguments for B windows of N ids or None: tensors (B, N, S), zero where there is no utterance."""
        padded = self.pad([self.read(i) for window in windows for i in window if i is not None])
        present = torch.tensor([[i is not None for i in window] for window in windows])
        found = {}
        for name, tensor in padded.items():
            found[name] = tensor.new_zeros(*present.shape, tensor.shape[1])
            found[name][present] = tensor
        return found

    def collate_states(self, windows):
        """Hidden states of B windows: "states" (B, N, T, L, D) float16 and "visible" (B, N, T)."""
        longest = max(self.states.length(i) for window in windows for i in window if i is not None)
        states = torch.zeros(len(windows), len(windows[0]), longest, *self.shape, dtype=torch.float16)
        visible = torch.zeros(states.shape[:3], dtype=torch.bool)
        for b, window in enumerate(windows):
            for n, i in enumerate(window):
                if i is not None:
                    rows = self.states.rows(i, "states")
                    states[b, n, : len(rows)].numpy()[...] = rows
                    visible[b, n, : len(rows)] = True
        return {"states": states, "visible": visible}


def read_utterances(manifest, modality, source, limit, cache_root, workers):
    """The Utterances of a modality: of audio the labelled turns, of text all, since any can be context.

    limit  seconds of audio, or tokens of text, at most what the model takes
    """
    shape, processor = input_shape(source, modality), load_processor(source, modality)
    if shape.kind not in ("waveform", "tokens"):
        raise UserError(
            f"{short_name(source)}: takes {shape.kind}, which have no {modality} layers over time; "
            "name a model such as WavLM, wav2vec 2.0 or HuBERT"
        )
    turns = manifest.turns if modality == "text" else manifest.labelled
    ids, tokens, waveforms = [turn.utterance_id for turn in turns], {}, None
    if modality == "text":
        texts, most = [turn.text for turn in turns], min(limit, shape.max_tokens)
        numbers = processor(texts, truncation=True, max_length=most)["input_ids"]
        tokens = {i: np.array(own) for i, own in zip(ids, numbers)}
    else:
        clipping = Clipping(limit, 0, 0, 0)
        waveforms = cache_inputs(manifest, modality, shape, processor, clipping, cache_root, workers)
    return Utterances(modality, source, limit, ids, processor, tokens, waveforms)


def weights_fingerprint(source):
    """What hidden states depend on: a hash of a local checkpoint's weights, or the hub's name, and transformers."""
    files = sorted(p for pattern in ("*.safetensors", "*.bin") for p in Path(source).glob(pattern))
    weights = hash_of([file_hash(path) for path in files]) if Path(source).is_dir() else source
    return f"{weights}, transformers {transformers.__version__}"


# ---- Hidden states on disk -----------------------------------------------------------------


def keep_states(utterances, manifest, accelerator, cache_root, cache_gb, batch_size):
    """Compute the frozen model's states of all utterances into <cache_root>/states_*/, if they fit into cache_gb.

    Returns the GB that they take, 0 where they do not fit and are computed anew at every step.
    """
    u, backbone = utterances, load_backbone(utterances.source).to(accelerator.device).eval()
    n_steps = sum(count_steps(backbone, u.modality, u.length(i)) for i in u.ids)
    need = n_steps * u.shape[0] * u.shape[1] * 2
    folder = Path(cache_root) / f"states_{short_name(u.source)}_{u.limit:g}{'s' * (u.modality == 'audio')}"
    there = sum(path.stat().st_size for path in folder.glob("*.npy"))
    size = f"{n_steps:,} steps x {u.shape[0]} layers x {u.shape[1]} x 2 bytes = {need / 1e9:.2f} GB"
    if need > min(cache_gb * 1e9, free_bytes(folder) + there):
        print(f"hidden states of {short_name(u.source)}: {size}: not kept, computed anew at every step")
        return 0.0
    print(f"hidden states of {short_name(u.source)}: {size}", flush=True)

    def forward(model, batch):
        states, visible = hidden_states(model, u.modality, batch["inputs"])
        return {"states": states, "steps": visible.sum(1)}

    def compute(inputs):
        batch = to_device({"inputs": u.pad(inputs)}, accelerator.device)
        found = forward_batch(accelerator, backbone, forward, batch)
        counts = found["steps"].astype(int).tolist()
        with np.errstate(over="ignore"):  # refused below, in one line
            rows = np.concatenate([s[:n] for s, n in zip(found["states"], counts)]).astype(np.float16)
        if not np.isfinite(rows).all():
            raise UserError(f"{short_name(u.source)}: its states do not fit float16; set CACHE_GB=0")
        return {"states": rows}, counts

    identity = {
        "manifest": manifest.fingerprint(),
        "weights": u.weights,
        "limit": u.limit,
        "precision": accelerator.mixed_precision,
    }
    # Batches of similar length, else in a random order: padding costs time, and rounding must not tell the label.
    order = np.random.default_rng(0).permutation(u.ids).tolist()
    items = {i: i for i in sorted(order, key=u.length)}
    what = f"hidden states of {short_name(u.source)}"
    u.states = extract(items, u.read, compute, folder, identity, Extraction(batch_size), what, need)
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
    """Labelled turns with their context as a data set of common.training.

    turns       Turn list; classes: names, for the label's index
    utterances  {modality: Utterances} that the system reads
    windows     of context_windows, for text; audio has no context
    live        modalities of which the batches hold the pretrained model's inputs instead of its hidden states
    by_length   batches of turns of similar length, for fine-tuning, where padding costs most; else at random: in
                a small corpus batches by length are the same in every epoch, all short or all long texts
    """

    def __init__(self, turns, classes, utterances, windows, live, by_length):
        self.utterances, self.live, self.ids = utterances, live, [turn.utterance_id for turn in turns]
        self.labels = np.array([classes.index(turn.label) for turn in turns])
        self.windows = {m: windows if m == "text" else [[i] for i in self.ids] for m in utterances}
        modality, first = next(iter(utterances.items()))  # audio, where it is read
        longest = [max(first.length(i) for i in window if i is not None) for window in self.windows[modality]]
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
            batch[modality] = collate([self.windows[modality][i] for i in indices])
        return batch
