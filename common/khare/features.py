"""Audio, video and words of clips as numbers, computed once and stored (Khare et al. 2021, Sections 2.2 and 3.1).

Read it from the top: filterbank energies, VGG-16, words with their times, what becomes of one recording, the store and
how it is written, statistics, the data set that training reads, and the masking of words. A store is a folder, made for
VoxCeleb2's 1.1 million clips; everything in it opens with numpy.load or a spreadsheet:

    shard_00000/     audio.npy (N, 200) and video.npy (M, 4096) float16, words.csv, clips.csv: some clips, one after the
                     other. A shard is there as a whole or not at all, and a killed run goes on with the next one
    index.csv        a line per clip: which rows of which shard, its words, seconds, score of the recogniser
    words.npy        (n,) int32 into vocabulary.csv (word,count, the most frequent first), all words of all clips
    word_times.npy   (n, 2) float32, start and end of each word in seconds on its clip's own clock
    problems.csv     the clips that are left out, with their files, shards and what to do
    meta.json        identity and counts; "complete" is true when the last shard is in

Audio step k covers [0.05 k, 0.05 (k + 1)) seconds of its clip, video frame k [k / fps, (k + 1) / fps).
B clips, W words, T_a audio steps, T_v video frames, V words that have a vector, n clips of a store.
"""

import csv
import hashlib
import json
import re
import shutil
import time
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

import av
import numpy as np
import torch
from torch import nn
from torchaudio.compliance.kaldi import fbank
from torchvision.models import VGG16_Weights, vgg16
from tqdm import tqdm
from transformers import AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from common import media
from common.chochlakis.backbones import DTYPES, IMAGENET, normalise_frames, read_checkpoint
from common.chochlakis.clips import STAMP_TOLERANCE_S, find_tracks, read_pictures
from common.corpora.release import Problem
from common.encoders import _pretrained
from common.errors import UserError
from common.files import atomic_path, free_bytes, make_folder, read_csv, read_json, write_csv, write_json
from common.media import MediaError, read_audio
from common.sadok.codes import count_seconds

N_BANDS, WINDOW_MS, HOP_MS, STACKED = 40, 25.0, 10.0, 5  # of the filterbank (Sec. 3.1)
AUDIO_DIM = N_BANDS * STACKED
AUDIO_STEP_S = STACKED * HOP_MS / 1000
VIDEO_DIM = 4096
VGG_SIZE = 224  # side in pixels of the pictures that VGG-16 was trained with
FULL_SCALE = 32768  # Kaldi hears 16-bit samples as whole numbers
END_TOLERANCE_S = 0.1  # a word may begin this much after its clip and still belong to it
EDGE_TOLERANCE = (
    1e-3  # of a step: times are rounded, and a word that ends where a step begins does not touch it
)
AHEAD = 2  # recordings that each worker decodes ahead of the networks
MANY_PROBLEMS = 100  # with fewer, all clips are tried before a run is stopped for its problems
WORDS_PER_S = 3  # of fast speech, to estimate the disk
WORD_BYTES, CLIP_BYTES = 60, 250  # ... of a word and of a clip in both indices
MAX_OPEN = 256  # memory maps that a store holds open, each a file to the operating system
MAX_F16 = 65504.0
PUNCTUATION = ".,;:!?\"'`()[]{}<>*-_/\\\u2018\u2019\u201c\u201d\u2026\u2013\u2014"
WORD_COLUMNS = ["utterance_id", "word", "start_s", "end_s"]
COLUMNS = (
    "clip_id",
    "audio_start",
    "audio_rows",
    "video_start",
    "video_rows",
    "word_start",
    "words",
    "seconds",
    "score",
    "not_finite",
    "outside",
    "file",
    "problem",
    "remedy",
)
INDEX = ("clip_id", "shard", *COLUMNS[1:9])


@dataclass(slots=True)
class Source:
    """A clip to be: where its sound, picture and words are; "" = none.

    audio         file; "" = the sound of the video's container, where it has any
    start_s       where in both files the clip begins; before 0 s is 0 s
    end_s         where it ends, None = with the recording
    words         [(word, start_s, end_s)] on the clip's own clock, times None = not known; None = `extract` is given
                  something that has them
    """

    clip_id: str
    audio: str = ""
    video: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    words: list | None = None


@dataclass
class Extraction:
    """How clips become features; the first three are part of a store's identity, the others concern the machine.

    shard_clips      clips per shard: a kill loses one, and one is held in memory. 1,000 of VoxCeleb2 are 190 MB
    fps              video frames per second. The paper gives none; with 2, a word has about one frame, and VoxCeleb2
                     takes 144 GB
    batch_frames     pictures that VGG-16 gets at a time
    workers          threads that decode; 0 = decode and compute in turn
    max_problem_share  stop where more than this share of the clips has to be left out
    """

    rate_hz: int
    fps: float
    shard_clips: int
    batch_frames: int
    workers: int
    max_problem_share: float


@dataclass
class ClipFeatures:
    """What the store keeps of one clip; a problem = it is left out.

    audio (T_a, D), video (T_v, D) arrays, None = it has none; words [(word, start_s, end_s)]; score of the recogniser
    """

    clip_id: str
    seconds: float = 0.0
    audio: np.ndarray | None = None
    video: np.ndarray | None = None
    words: list = field(default_factory=list)
    score: float = float("nan")
    not_finite: int = 0  # numbers that were NaN or infinite and are 0 now
    outside: int = 0  # words that were not spoken within the clip and are left out
    file: str = ""
    problem: str = ""
    remedy: str = ""
    samples: np.ndarray | None = None  # until a recogniser has heard them
    pictures: np.ndarray | None = None  # until VGG-16 has seen them


# ---- Audio: filterbank energies (Sec. 3.1) --------------------------------------------------


def filterbanks(samples, rate_hz):
    """40 log-filterbank energies every 10 ms, five of which make a step of 50 ms with 200 numbers (Section 3.1).

    Kaldi's, as torchaudio.compliance.kaldi.fbank computes them, because the paper's recogniser is Kaldi's: windows of
    25 ms (Povey's), preemphasis 0.97, mean removed, power, 40 triangles on the mel scale from 20 Hz to half the rate,
    natural logarithm; no dither, so that they are the same each time. Frames are centred (snip_edges False): frame k
    belongs to [0.01 k, 0.01 (k + 1)) seconds, and recordings are mirrored at both ends.

    samples  (S,) float, full scale = 1; fewer than a window's are followed by silence
    Returns float32 (T_a, 200), T_a = ceil(frames / 5); what the last step lacks of five frames is 0.
    """
    window, hop = (round(rate_hz * ms / 1000) for ms in (WINDOW_MS, HOP_MS))
    samples = torch.as_tensor(samples, dtype=torch.float32)
    n_frames = max(1, (len(samples) + hop // 2) // hop)
    if len(samples) < window:
        samples = nn.functional.pad(samples, (0, window - len(samples)))
    frames = fbank(
        samples[None] * FULL_SCALE,
        num_mel_bins=N_BANDS,
        sample_frequency=rate_hz,
        frame_length=WINDOW_MS,
        frame_shift=HOP_MS,
        dither=0.0,
        snip_edges=False,
    )[:n_frames]  # (frames, 40)
    frames = nn.functional.pad(frames, (0, 0, 0, -len(frames) % STACKED))
    return frames.reshape(-1, AUDIO_DIM).numpy()  # (T_a, 200)


# ---- Video: VGG-16 (Sec. 3.1) ---------------------------------------------------------------


class VGG:
    """VGG-16 up to its second layer of 4096 units, fc7, after the ReLU.

    The paper says "4096-dimensional features extracted from the VGG-16 model": fc7 is the last layer with 4096, and
    its output after the ReLU is what the classifier reads. A masked frame of zeros is then one in which nothing was
    found.

    size      side of the pictures that it takes
    name      which weights: "torchvision", "random" or the hash of a file
    """

    def __init__(self, network, size, name, device, precision):
        layers = (
            network.features,
            network.avgpool,
            nn.Flatten(),
            network.classifier[:5],
        )  # fc6, fc7 and ReLUs
        self.network = (
            nn.Sequential(*layers).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        )
        self.size, self.name, self.device, self.precision = size, name, torch.device(device), precision

    def identity(self):
        return {"vgg": self.name, "size": self.size, "precision": self.precision}

    def features(self, pictures):
        """pictures (B, size, size, 3) uint8 -> (B, 4096) float32 numpy."""
        x = normalise_frames(torch.as_tensor(pictures).to(self.device)[:, None], *IMAGENET)[
            :, :, 0
        ]  # (B, 3, H, W)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "no"),
        ):
            return self.network(x).float().cpu().numpy()


def load_vgg(weights, size, random_seed, device, precision):
    """VGG-16 (Section 3.1) for `extract`.

    weights      file of torchvision's vgg16; "" = torchvision's own download (ImageNet)
    size         side of a picture in pixels, 0 = 224. The last pooling gives fc6 the same 7 x 7 places for any size, so
                 that the demo takes 32 px with random weights: 30 times as fast, and still 4096 numbers per frame
    random_seed  seed of random weights (He's), where no real ones are wanted; None = real ones
    precision    "no" (fp32), "bf16" or "fp16"
    Raises UserError where a file is missing, damaged, or not VGG-16's.
    """
    with torch.device("meta"):
        network = vgg16(weights=None, init_weights=False)
    network.classifier[6] = nn.Identity()  # the classes of ImageNet: not needed, and other files have others
    if random_seed is not None:
        network.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(random_seed)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        return VGG(network, size or VGG_SIZE, f"random {random_seed}", device, precision)
    if weights:
        state = read_checkpoint(weights, allow_pickle=False)
        name = file_hash(weights)
    else:
        try:
            state, name = (
                VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True),
                "torchvision",
            )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"torchvision's VGG-16: cannot be downloaded ({error}); download "
                f"{VGG16_Weights.IMAGENET1K_V1.url} elsewhere and name the file"
            ) from error
    wanted = network.state_dict()
    bad = [key for key in wanted if getattr(state.get(key), "shape", None) != wanted[key].shape]
    if bad:
        raise UserError(
            f"{weights}: {bad[0]} is missing or has another shape, and so {len(bad)} of {len(wanted)} "
            "weights; name a file of torchvision's vgg16"
        )
    network.load_state_dict({key: state[key].float() for key in wanted}, assign=True)
    return VGG(network, size or VGG_SIZE, name, device, precision)


def file_hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ---- Words and their times (Sec. 2.2 and 3.1) -----------------------------------------------


class WordsFile:
    """Words from a CSV file utterance_id,word,start_s,end_s; the lines of a clip follow each other.

    A fifth column `score`, of a recogniser's words, gives a clip the mean of its words' scores, without the empty ones.
    Only the place of each clip in the file is kept in memory. Clips that it lacks have no words.
    """

    hears = False

    def __init__(self, path):
        self.path, self.spans = Path(path), {}
        try:
            with open(self.path, "rb") as file:
                self._find(file)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be opened ({error.strerror}); correct the path of the words"
            ) from error

    def _find(self, file):
        header, last, start = file.readline(), None, 0
        columns = next(csv.reader([header.decode("utf-8-sig", errors="replace")]), [])
        self.has_score = columns[4:] == ["score"]
        if columns[:4] != WORD_COLUMNS:
            raise UserError(
                f"{self.path}: its first line is not {','.join(WORD_COLUMNS)}; give it that header"
            )
        end = len(header)
        for line in file:
            name = line.partition(b",")[0]
            if name.startswith(b'"'):
                name = next(csv.reader([line.decode("utf-8", errors="replace")]), [""])[0].encode()
            if name != last:
                self._close(last, start, end)
                last, start = name, end
            end += len(line)
        self._close(last, start, end)

    def _close(self, name, start, end):
        name = (name or b"").decode("utf-8", errors="replace").strip()
        if name in self.spans:
            raise UserError(
                f"{self.path}: the words of {name} stand in two places; sort the file by utterance_id"
            )
        if name:
            self.spans[name] = (start, end - start)

    def identity(self):
        return {"words": file_hash(self.path)}

    def words(self, clip_id, samples, seconds):
        """([(word, start_s, end_s)], score); without scores in the file that is NaN."""
        if clip_id not in self.spans:
            return [], float("nan")
        start, length = self.spans[clip_id]
        with open(self.path, "rb") as file:
            file.seek(start)
            lines = file.read(length).decode("utf-8", errors="replace").split("\n")
        place, rows = f"{self.path}: {clip_id}", [row for row in csv.reader(lines) if row]
        scores = (
            [_number(row[4], place) for row in rows if len(row) > 4 and row[4].strip()]
            if self.has_score
            else []
        )
        return [_timed(row[1:4], place) for row in rows], sum(scores) / len(scores) if scores else float(
            "nan"
        )


def _timed(row, place):
    """(word, start_s, end_s) of three cells; empty times are not known."""
    try:
        word, start, end = row
        return word, *(float(x) if x.strip() else None for x in (start, end))
    except ValueError as error:
        raise UserError(f"{place}: {','.join(row)!r} is not word,start_s,end_s; correct that line") from error


def _number(cell, place):
    try:
        return float(cell)
    except ValueError as error:
        raise UserError(f"{place}: {cell!r} is no score; correct that line") from error


class Transcripts:
    """Words from a folder of transcripts, <clip id>.csv (word,start_s,end_s) or <clip id>.txt.

    A text has no times: its words are spread evenly over the clip, which is right within a second or so in fluent
    speech, and masks sound and picture of other words with those of the masked one. Clips without a file have no words.
    """

    hears = False

    def __init__(self, folder):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder; name the folder of the transcripts")

    def identity(self):
        return {"transcripts": str(self.folder)}

    def words(self, clip_id, samples, seconds):
        """([(word, start_s, end_s)], score); this has no score, which is NaN."""
        path = self.folder / f"{clip_id}.csv"
        if path.is_file():
            rows = read_csv(path)
            cells = [[row.get(name) or "" for name in ("word", "start_s", "end_s")] for row in rows]
            return [_timed(row, path) for row in cells], float("nan")
        path = self.folder / f"{clip_id}.txt"
        text = path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""
        return [(word, None, None) for word in text.split()], float("nan")


class Recogniser:
    """Words from a CTC model of transformers, such as wav2vec 2.0 (in the paper: Kaldi's TDNN).

    A clip is recognised by itself: wav2vec 2.0's first layer normalises over time, so that padding would change what
    it hears. The most likely letter of each frame of 20 ms is taken; the score of a clip is the mean log-probability
    of those that are not blank, which silence does not raise, and speech in another language lowers.

    name  hub name such as "facebook/wav2vec2-base-960h" or a local folder
    """

    hears = True

    def __init__(self, name, device, precision):
        self.name, self.device, self.precision = str(name), torch.device(device), precision
        self.model = _pretrained(AutoModelForCTC, name).to(device).eval().requires_grad_(False)
        self.tokenizer = _pretrained(Wav2Vec2CTCTokenizer, name)
        self.extractor = _pretrained(Wav2Vec2FeatureExtractor, name)
        self.rate_hz = self.extractor.sampling_rate
        self.step_s = self.model.config.inputs_to_logits_ratio / self.rate_hz

    def identity(self):
        state = self.model.state_dict()
        digest = hashlib.sha256()
        for key in sorted(state):
            digest.update(key.encode() + state[key].cpu().contiguous().numpy().tobytes())
        return {"recogniser": digest.hexdigest()[:16], "recogniser_precision": self.precision}

    def words(self, clip_id, samples, seconds):
        """([(word, start_s, end_s)], score) of samples (S,) at rate_hz, in lower case; no letter: ([], NaN)."""
        if samples is None or self.model._get_feat_extract_output_lengths(torch.tensor(len(samples))) < 1:
            return [], float("nan")
        inputs = self.extractor(samples, sampling_rate=self.rate_hz, return_tensors="pt").input_values
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "no"),
        ):
            logits = self.model(inputs.to(self.device)).logits[0].float()  # (T, letters)
        best, letters = logits.log_softmax(-1).max(-1)  # (T,)
        spoken = letters != self.tokenizer.pad_token_id
        if not spoken.any():
            return [], float("nan")
        offsets = self.tokenizer.decode(letters.cpu(), output_word_offsets=True).word_offsets
        return [
            (word["word"].lower(), word["start_offset"] * self.step_s, word["end_offset"] * self.step_s)
            for word in offsets
        ], float(best[spoken].mean())


def tidy_words(words, seconds):
    """Words as the store keeps them: in the order of speaking, within their clip.

    words    [(word, start_s, end_s)] on the clip's clock. Where a time of one is None or not finite, all are spread
             evenly over the clip
    seconds  length of the clip; 0 = not known, and then words without times get NaN
    Returns (words, how many were left out because they lie outside the clip). Those across its edges are cut there.
    """
    words = [(str(word).strip(), start, end) for word, start, end in words if str(word).strip()]
    if not words:
        return [], 0
    if not all(x is not None and np.isfinite(x) for word in words for x in word[1:]):
        step_s = seconds / len(words) if seconds else float("nan")
        return [(word, k * step_s, (k + 1) * step_s) for k, (word, *_) in enumerate(words)], 0
    limit_s = seconds or float("inf")
    inside = [
        (word, min(max(start, 0.0), limit_s), min(max(end, start, 0.0), limit_s))
        for word, start, end in words
        if start <= limit_s + END_TOLERANCE_S and max(start, end) >= 0
    ]
    return sorted(inside, key=lambda word: word[1]), len(words) - len(inside)


# ---- One recording --------------------------------------------------------------------------


def read_recording(sources, settings, size, keep_samples):
    """Decode the clips of one recording, each of its files once; a list of ClipFeatures with pictures to be seen.

    sources       of the same files
    size          side of the pictures in pixels, 0 = none are wanted
    keep_samples  whether somebody wants to hear them
    """
    clips = [ClipFeatures(source.clip_id, file=str(source.video or source.audio)) for source in sources]
    try:
        sounds = read_sounds(sources, settings.rate_hz)
        pictures = read_views(sources, settings.fps, size) if size else [(None, 0.0)] * len(sources)
    except MediaError as error:
        for clip in clips:
            clip.file, clip.problem, clip.remedy = str(error.path), error.reason, error.remedy
        return clips
    except (
        Exception
    ) as error:  # whatever a decoder makes of one damaged file in a million must not end the run
        for clip in clips:
            clip.problem = f"cannot be read ({type(error).__name__}: {error})"
            clip.remedy = "download it again, or leave it out of the corpus"
        return clips
    for source, clip, samples, (seen, seen_s) in zip(sources, clips, sounds, pictures):
        heard_s = 0.0 if samples is None else len(samples) / settings.rate_hz
        asked_s = float("inf") if source.end_s is None else max(0.0, source.end_s - max(0.0, source.start_s))
        has_media = heard_s or seen_s
        if has_media:
            clip.seconds = min(asked_s, max(heard_s, seen_s))
        else:  # text alone, whose length may be known
            clip.seconds = asked_s if source.end_s is not None else 0.0
        if samples is not None and len(samples):
            put(clip, "audio", filterbanks(samples, settings.rate_hz))
            clip.samples = samples if keep_samples else None
        clip.pictures = seen
        if not has_media and (source.audio or source.video and size):
            clip.problem, clip.remedy = (
                f"nothing is recorded from {source.start_s:.2f} s on",
                "correct its times",
            )
    return clips


def read_sounds(sources, rate_hz):
    """Samples (S,) of each clip of a recording, None where there are none."""
    path, start_s = sources[0].audio or sources[0].video, 0.0
    if not path:
        return [None] * len(sources)
    if not sources[0].audio or sources[0].audio == sources[0].video:
        with media._container(path) as container:
            tracks = find_tracks(container, path)
        if not tracks.rate_hz:
            return [None] * len(sources)
        start_s = tracks.audio_start_s
    ends_s = [source.end_s for source in sources]
    last_s = None if None in ends_s else max(ends_s) - start_s
    if last_s is not None and last_s <= 0:
        return [None] * len(sources)
    samples, found = read_audio(path, 0.0, last_s, rate_hz), []
    for source in sources:
        first = round((max(0.0, source.start_s) - start_s) * rate_hz)
        end = len(samples) if source.end_s is None else max(0, round((source.end_s - start_s) * rate_hz))
        piece = samples[max(0, first) : end]
        found.append(
            np.pad(piece, (max(0, -first), 0)) if len(piece) else None
        )  # silence until the sound starts
    return found


def read_views(sources, fps, size):
    """(pictures (T_v, size, size, 3) uint8, seconds) of each clip of a recording, (None, 0) where there are none.

    Frame k is what a player shows in the middle of [k / fps, (k + 1) / fps) of the clip, as far as that reaches;
    torchvision's crop for VGG-16, the central 224 of 256 pixels (`clips.central_square`).
    """
    path = sources[0].video
    if not path:
        return [(None, 0.0)] * len(sources)
    with media._open_video(path, 1) as (container, stream):
        tracks = find_tracks(container, path)
        end_s = (container.duration or 0) / av.time_base or media.count_frames(path) / float(
            stream.average_rate or 25
        )
        times_s, spans_s = [], []
        for source in sources:
            start, end = max(0.0, source.start_s), end_s if source.end_s is None else min(source.end_s, end_s)
            spans_s.append((start, end))
            edges = np.minimum(
                start + np.arange(np.ceil(max(0.0, end - start) * fps - EDGE_TOLERANCE) + 1) / fps, end
            )
            times_s.append((edges[:-1] + edges[1:]) / 2)  # (T_v,)
        wanted_s = np.concatenate(times_s)
        order = np.argsort(wanted_s, kind="stable")
        pictures = np.zeros((len(order), size, size, 3), np.uint8)
        first_s, shown_to_s = (
            read_pictures(
                container,
                stream,
                tracks.video_start_s,
                wanted_s[order],
                max(end for _, end in spans_s),
                pictures,
            )
            if len(order)
            else (0.0, 0.0)
        )
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    parts = np.split(place, np.cumsum([len(t) for t in times_s])[:-1])
    # A clip that ends before the pictures start has none; one that they start in has the first of them from its start.
    kept = [
        part[(t < shown_to_s + STAMP_TOLERANCE_S) & (end > first_s)]
        for part, t, (_, end) in zip(parts, times_s, spans_s)
    ]
    return [
        (pictures[part], min(end, shown_to_s) - start) if len(part) else (None, 0.0)
        for part, (start, end) in zip(kept, spans_s)
    ]


def put(clip, name, values):
    """Give a clip its "audio" or "video" as float16; what is not finite, or too large for that, becomes 0."""
    values = np.asarray(values)
    bad = ~(np.abs(values) <= MAX_F16)
    if bad.any():
        clip.not_finite += int(bad.sum())
        values = np.where(bad, 0, values)
    setattr(clip, name, values.astype(np.float16))


def read_ahead(read, items, workers):
    """Yield read(item) of all items in order; at most AHEAD * workers results wait in memory."""
    if not workers:
        yield from map(read, items)
        return
    waiting = deque()
    # Threads, not processes: FFmpeg and torch work without Python's lock, and nothing is copied between processes.
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for result in waiting:
                result.cancel()


# ---- Clips to a store -----------------------------------------------------------------------


def extract(sources, words, vgg, folder, identity, settings):
    """Write features and words of clips into a store (Section 3.1), or go on with one that was interrupted.

    For one process: where several train, the others wait.

    sources   list of Source, each clip_id once; clips of the same files should follow each other: these are then
              decoded once
    words     WordsFile, Transcripts or Recogniser, for sources that have none of their own; None = these have none
    vgg       of `load_vgg`; None = no video
    folder    where the store lies; what it holds of another identity is replaced
    identity  JSON-ready dict: what the features depend on besides the arguments above, such as a manifest's hash
    settings  Extraction
    Returns ClipStore. A shard is computed as a whole from its own clips alone, so that a run that was killed and is
    started again leaves the same bytes as one that was not.
    Raises UserError if the disk is too small, before anything is written, or too many clips have problems.
    """
    folder, sources = Path(folder), list(sources)
    if words is not None and words.hears and words.rate_hz != settings.rate_hz:
        raise ValueError(f"the recogniser hears {words.rate_hz} Hz, not {settings.rate_hz} Hz")
    check_ids([source.clip_id for source in sources], folder)
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source}\n".encode())
    meta = {
        **identity,
        "sources": digest.hexdigest()[:16],
        "clips": len(sources),
        "shard_clips": settings.shard_clips,
        "rate_hz": settings.rate_hz,
        "audio_step_s": AUDIO_STEP_S,
        "video_step_s": 1 / settings.fps,
        "audio_dim": AUDIO_DIM,
        "video_dim": VIDEO_DIM,
        **(vgg.identity() if vgg else {"vgg": None}),
        **(words.identity() if words else {}),
    }
    shards = Shards(folder, meta, settings)
    if shards.complete:
        store = ClipStore(folder)
        print(
            f"{folder}: already extracted, {len(store):,} clips; {store.meta['left_out']:,} left out, see "
            "problems.csv"
        )
        return store
    announce(sources, vgg, shards, settings)
    shards.begin()
    run(sources, words, vgg, shards, settings)
    return shards.finish()


def write_store(clips, folder, identity, audio_step_s, video_step_s, audio_dim, video_dim, shard_clips):
    """Write a store of features that somebody else has computed, or of words alone.

    clips  list of ClipFeatures, each clip_id once
    Returns ClipStore.
    """
    folder, clips = Path(folder), list(clips)
    check_ids([clip.clip_id for clip in clips], folder)
    shards = Shards(
        folder,
        {
            **identity,
            "clips": len(clips),
            "shard_clips": shard_clips,
            "audio_step_s": audio_step_s,
            "video_step_s": video_step_s,
            "audio_dim": audio_dim,
            "video_dim": video_dim,
        },
        None,
    )
    if shards.complete:
        return ClipStore(folder)
    shards.begin()
    for number in shards.missing():
        part = clips[number * shard_clips : (number + 1) * shard_clips]
        for clip in part:
            clip.words, clip.outside = tidy_words(clip.words, clip.seconds)
            for name in ("audio", "video"):
                if getattr(clip, name) is not None:
                    put(clip, name, getattr(clip, name))
        shards.write(number, part)
    return shards.finish()


def check_ids(ids, folder):
    if not ids:
        raise UserError(f"{folder}: there are no clips to extract; check the corpus and its selection")
    clip_id, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise UserError(f"{clip_id}: {times} clips have this id; ids must differ")
    broken = next((clip_id for clip_id in ids if not clip_id or "\n" in clip_id or "\r" in clip_id), None)
    if broken is not None:
        raise UserError(f"{broken!r}: not an id of a clip; an id is one line and not empty")


def announce(sources, vgg, shards, settings):
    """Count what there is to do and print what it takes; UserError if the disk is too small."""
    unknown = [
        (source.clip_id, source.audio or source.video)
        for source in sources
        if source.end_s is None and (source.audio or source.video)
    ]
    unknown_s, n_counted = count_seconds(unknown) if unknown else (0.0, 0)
    known_s = sum(max(0.0, s.end_s - max(0.0, s.start_s)) for s in sources if s.end_s is not None)
    seconds, n = known_s + unknown_s, len(sources)
    heard, seen = (
        sum(map(bool, x)) / n for x in ((s.audio or s.video for s in sources), (s.video for s in sources))
    )
    audio = heard * (seconds / AUDIO_STEP_S + n) * AUDIO_DIM * 2
    video = seen * (seconds * settings.fps + n) * VIDEO_DIM * 2 if vgg else 0.0
    text = seconds * WORDS_PER_S * WORD_BYTES + n * CLIP_BYTES
    there = sum(path.stat().st_size for path in shards.folder.glob("shard_*/*")) if shards.kept else 0
    free, need = free_bytes(shards.folder), audio + video + text
    print(
        f"extracting {n:,} clips into {shards.folder}: {seconds / 3600:,.2f} h"
        + (f" (estimated from {n_counted:,} clips)" if n_counted < len(unknown) else "")
        + f", {need / 1e9:.3g} GB (audio {audio / 1e9:.3g}, video {video / 1e9:.3g}, words, index {text / 1e9:.3g})"
        + (f", of which {there / 1e9:.3g} GB are there" if there else "")
        + f"; {free / 1e9:.1f} GB free",
        flush=True,
    )
    if need - there > free:
        raise UserError(
            f"{shards.folder}: needs {(need - there) / 1e9:.3g} GB more, {free / 1e9:.3g} GB are free; "
            "choose another DATA_ROOT, a lower FPS or fewer clips"
        )


def run(sources, words, vgg, shards, settings):
    """Compute the shards that are missing."""
    size, todo = settings.shard_clips, shards.missing()
    recordings = {
        number: [
            list(group)
            for _, group in groupby(
                sources[number * size : (number + 1) * size], key=lambda source: (source.audio, source.video)
            )
        ]
        for number in todo
    }
    if len(todo) < shards.count:
        print(f"going on: {shards.count - len(todo):,} of {shards.count:,} shards are there")
    hears = words is not None and words.hears
    read = read_ahead(
        lambda group: read_recording(group, settings, vgg.size if vgg else 0, hears),
        [group for number in todo for group in recordings[number]],
        settings.workers,
    )
    seconds, started, spent = 0.0, time.monotonic(), Counter()
    with tqdm(
        total=sum(len(g) for number in todo for g in recordings[number]),
        desc="extracting",
        unit="clip",
        disable=None,
        leave=False,
    ) as bar:
        for number in todo:
            clips, waiting = [], []
            for group in recordings[number]:
                for source, clip in zip(group, next(read)):
                    hear(source, clip, words, spent)
                    clips.append(clip)
                    waiting += [clip] if clip.pictures is not None else []
                    seconds += clip.seconds
                bar.update(len(group))
                bar.set_postfix_str(f"{seconds / (time.monotonic() - started):,.1f} s of recording per s")
                if sum(len(clip.pictures) for clip in waiting) >= settings.batch_frames:
                    waiting = look(waiting, vgg, settings.batch_frames, spent)
            look(waiting, vgg, settings.batch_frames, spent)
            shards.write(number, clips)
            shards.check_problems(len(sources), final=False)
    took = time.monotonic() - started
    if todo:
        print(
            f"extracted in {took:.1f} s: {bar.total / took:,.1f} clips and {seconds / took:,.1f} s of recording per "
            f"s; VGG-16 took {spent['vgg'] / took:.0%} of the time, words {spent['words'] / took:.0%}",
            flush=True,
        )


def hear(source, clip, words, spent):
    """Give a clip its words, and let go of its samples."""
    if not clip.problem:
        before = time.monotonic()
        found = source.words
        if found is None and words is not None:
            found, clip.score = words.words(source.clip_id, clip.samples, clip.seconds)
        clip.words, clip.outside = tidy_words(found or [], clip.seconds)
        spent["words"] += time.monotonic() - before
        if clip.audio is None and clip.pictures is None and not clip.words:
            clip.problem, clip.remedy = "neither sound, picture nor words", "leave it out of the corpus"
    clip.samples = None


def look(clips, vgg, batch_frames, spent):
    """Turn the pictures of some clips into "video", in batches over all of them; returns an empty list."""
    if clips:
        before = time.monotonic()
        pictures = np.concatenate([clip.pictures for clip in clips])
        features = np.concatenate(
            [vgg.features(pictures[k : k + batch_frames]) for k in range(0, len(pictures), batch_frames)]
        )  # (frames, 4096)
        for clip, part in zip(
            clips, np.split(features, np.cumsum([len(clip.pictures) for clip in clips])[:-1])
        ):
            put(clip, "video", part)
            clip.pictures = None
        spent["vgg"] += time.monotonic() - before
    return []


class Shards:
    """The shards of a store in the making. `kept`: what is there is of the same identity; `complete`: all of it."""

    def __init__(self, folder, meta, settings):
        self.folder, self.settings = folder, settings
        self.meta = json.loads(json.dumps(meta, default=str))
        self.count = -(-meta["clips"] // meta["shard_clips"])
        self.found, self.n_problems = False, 0
        try:
            there = read_json(folder / "meta.json")
        except UserError:
            there = {}
        self.found, self.kept = bool(there), there.get("identity") == self.meta
        self.complete = bool(self.kept and there.get("complete") and not self.missing())

    def path(self, number):
        return self.folder / f"shard_{number:05d}"

    def missing(self):
        return [
            number
            for number in range(self.count)
            if not (self.kept and (self.path(number) / "clips.csv").exists())
        ]

    def begin(self):
        """Clear away what is of another identity or unfinished."""
        if not self.kept:
            if self.found:
                print(f"{self.folder}: was made from other clips, networks or settings; starting over")
                shutil.rmtree(self.folder)
            make_folder(self.folder)
        for unfinished in self.folder.glob(".shard_*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        write_json(self.folder / "meta.json", {"identity": self.meta, "complete": False})
        done = set(range(self.count)) - set(self.missing())
        self.kept = True
        self.n_problems = sum(
            bool(row["problem"]) for number in done for row in read_csv(self.path(number) / "clips.csv")
        )

    def write(self, number, clips):
        """Write a shard whole."""
        rows, total = [], Counter()
        for clip in clips:
            row = {name: getattr(clip, name) for name in COLUMNS if hasattr(clip, name)}
            kept = not clip.problem
            counts = {
                "audio_rows": 0 if clip.audio is None or not kept else len(clip.audio),
                "video_rows": 0 if clip.video is None or not kept else len(clip.video),
                "words": len(clip.words) if kept else 0,
            }
            row |= counts | {
                "audio_start": total["audio_rows"],
                "video_start": total["video_rows"],
                "word_start": total["words"],
                "seconds": f"{clip.seconds:.4f}",
                "score": f"{clip.score:.5f}",
                "problem": " ".join(clip.problem.split()),
                "remedy": " ".join(clip.remedy.split()),
            }
            rows.append(row)
            total.update(counts)
            self.n_problems += not kept
        kept = [clip for clip in clips if not clip.problem]
        with atomic_path(self.path(number)) as temporary:
            temporary.mkdir()
            for name in ("audio", "video"):
                arrays = [getattr(clip, name) for clip in kept if getattr(clip, name) is not None]
                empty = np.zeros((0, self.meta[f"{name}_dim"]), np.float16)
                np.save(temporary / f"{name}.npy", np.concatenate([empty, *arrays]))
            write_csv(
                temporary / "words.csv",
                (
                    {"word": word, "start_s": f"{start:.4f}", "end_s": f"{end:.4f}"}
                    for clip in kept
                    for word, start, end in clip.words
                ),
                ("word", "start_s", "end_s"),
            )
            write_csv(temporary / "clips.csv", rows, COLUMNS)

    def check_problems(self, n_clips, final):
        """UserError if too many clips have problems; before the end, only if that can no longer change."""
        most = self.settings.max_problem_share
        if (
            self.n_problems > max(0 if final else MANY_PROBLEMS, most * n_clips)
            or final
            and self.n_problems == n_clips
        ):
            row = next(
                row
                for n in range(self.count)
                if (self.path(n) / "clips.csv").exists()
                for row in read_csv(self.path(n) / "clips.csv")
                if row["problem"]
            )
            raise UserError(
                f"{self.folder}: {self.n_problems:,} of {n_clips:,} clips cannot be used, the first one: "
                f"{row['clip_id']}: {row['file']}: {row['problem']}; mend them, delete their shards (see "
                f"problems.csv) and run again, or raise MAX_PROBLEM_SHARE ({most:g})"
            )

    def finish(self):
        """Join the indices of all shards, report, mark the store complete and open it."""
        sums, problems = Counter(), []
        with (
            atomic_path(self.folder / "index.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(INDEX)
            for number in range(self.count):
                writer.writerows(self.index_rows(number, sums, problems))
        write_csv(
            self.folder / "problems.csv", problems, ("utterance_id", "file", "problem", "remedy", "shard")
        )
        if self.settings is not None:
            self.check_problems(self.meta["clips"], final=True)
        self.join_words(sums["words"])
        n_clips = self.meta["clips"] - len(problems)
        write_json(
            self.folder / "meta.json",
            {"identity": self.meta, "complete": True, "clips": n_clips, "left_out": len(problems), **sums},
        )
        report(n_clips, sums, problems, self.folder)
        return ClipStore(self.folder)

    def index_rows(self, number, sums, problems):
        """Yield the lines of the index for the clips of a shard; adds to the sums over all shards and the problems."""
        for row in read_csv(self.path(number) / "clips.csv"):
            if row["problem"]:
                problem = Problem(row["clip_id"], row["file"], row["problem"], row["remedy"])
                problems.append(asdict(problem) | {"shard": self.path(number).name})
                continue
            row["word_start"] = sums["words"]  # words of all shards follow each other
            yield [row["clip_id"], number, *(row[name] for name in INDEX[2:])]
            sums.update({name: int(row[name]) for name in ("words", "not_finite", "outside")})
            sums.update(
                {
                    f"without_{name}": row[column] == "0"
                    for name, column in (("audio", "audio_rows"), ("video", "video_rows"), ("words", "words"))
                }
            )

    def join_words(self, n_words):
        """words.npy, word_times.npy and vocabulary.csv from the words of all shards."""
        ids, times, end = np.empty(n_words, np.int32), np.empty((n_words, 2), np.float32), 0
        number_of, counts = {}, Counter()
        for number in range(self.count):
            with open(self.path(number) / "words.csv", newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            words = [row[0] for row in rows]
            counts.update(words)
            ids[end : end + len(rows)] = [number_of.setdefault(word, len(number_of)) for word in words]
            times[end : end + len(rows)] = np.array([row[1:] for row in rows], np.float32).reshape(-1, 2)
            end += len(rows)
        order = sorted(number_of, key=lambda word: (-counts[word], word))
        place = np.empty(len(order), np.int32)
        place[[number_of[word] for word in order]] = np.arange(len(order))
        write_csv(
            self.folder / "vocabulary.csv",
            ({"word": word, "count": counts[word]} for word in order),
            ("word", "count"),
        )
        for name, array in (("words", place[ids] if n_words else ids), ("word_times", times)):
            with atomic_path(self.folder / f"{name}.npy") as temporary:
                np.save(temporary, array)


def report(n_clips, sums, problems, folder):
    """Print what became of the clips."""
    print(
        f"{folder}: {n_clips:,} clips, {sums['words']:,} words; without audio {sums['without_audio']:,}, without "
        f"video {sums['without_video']:,}, without words {sums['without_words']:,}"
    )
    if sums["outside"]:
        print(f"words outside their clips, left out: {sums['outside']:,}")
    if sums["not_finite"]:
        print(f"features that were NaN or infinite and are 0 now: {sums['not_finite']:,} numbers")
    if problems:
        kinds = Counter(re.split("[;:(]", problem["problem"])[0].strip() for problem in problems).most_common(
            4
        )
        print(
            f"left out: {len(problems):,} clips: "
            + ", ".join(f"{count:,} x {kind}" for kind, count in kinds)
            + f"; see {folder / 'problems.csv'}; to try some again delete their shards"
        )


# ---- Reading a store ------------------------------------------------------------------------


class ClipStore:
    """A finished store: clips are read from the disk as they are asked for; the index takes about 150 bytes per clip.

    ids (n,) strings, seconds (n,), score (n,) of the recogniser (NaN = none), audio_rows, video_rows, n_words (n,);
    audio_step_s, video_step_s; vocabulary, a list of words, and counts (words,), the most frequent first.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.meta = read_json(self.folder / "meta.json")
        if not self.meta.get("complete"):
            raise UserError(
                f"{self.folder}: unfinished; run the script that writes it again, it goes on where it stopped"
            )
        identity = self.meta["identity"]
        self.audio_step_s, self.video_step_s = identity["audio_step_s"], identity["video_step_s"]
        self.dims = {name: identity[f"{name}_dim"] for name in ("audio", "video")}
        n = self.meta["clips"]
        self.ids = np.empty(n, np.dtypes.StringDType())  # one block of text instead of a million objects
        numbers = np.empty((n, 7), np.int64)
        self.seconds, self.score = np.empty(n, np.float32), np.empty(n, np.float32)
        with open(self.folder / "index.csv", newline="", encoding="utf-8") as file:
            reader, row = csv.reader(file), -1
            next(reader, None)
            for row, cells in enumerate(reader):
                if row < n:
                    self.ids[row], numbers[row] = cells[0], [int(x) for x in cells[1:8]]
                    self.seconds[row], self.score[row] = cells[8:]
        if row + 1 != n:
            raise UserError(
                f"{self.folder / 'index.csv'}: {row + 1:,} clips, meta.json says {n:,}; delete the file "
                "meta.json and run the script that writes it again"
            )
        self.shard, self._first = numbers[:, 0], {"audio": numbers[:, 1], "video": numbers[:, 3]}
        self.audio_rows, self.video_rows = numbers[:, 2], numbers[:, 4]
        self._word_start, self.n_words = numbers[:, 5], numbers[:, 6]
        words = read_csv(self.folder / "vocabulary.csv")
        self.vocabulary, self.counts = (
            [row["word"] for row in words],
            np.array([int(row["count"]) for row in words]),
        )
        self._open, self._rows = OrderedDict(), None

    def __reduce__(self):
        return ClipStore, (self.folder,)  # a worker opens the files; pickled, the features would be copied

    def __len__(self):
        return len(self.ids)

    def row_of(self, clip_id):
        """The row of a clip; KeyError if it is not in the store, for example because it was left out."""
        if self._rows is None:
            self._rows = {str(name): row for row, name in enumerate(self.ids)}
        return self._rows[clip_id]

    def _map(self, name):
        """A memory-mapped file; of the shards, those used last stay open."""
        if name in self._open:
            self._open.move_to_end(name)
        else:
            try:
                self._open[name] = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self.folder / name}: cannot be mapped ({error}); delete its folder and run the "
                    "script that writes it again"
                ) from error
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return self._open[name]

    def _features(self, name, i, n_rows):
        if not n_rows:
            return np.zeros((0, self.dims[name]), np.float16)
        first = self._first[name][i]
        return np.array(self._map(f"shard_{self.shard[i]:05d}/{name}.npy")[first : first + n_rows])

    def audio(self, i):
        """Filterbanks of clip i, (T_a, 200) float16, T_a = 0 where it has no sound."""
        return self._features("audio", i, self.audio_rows[i])

    def video(self, i):
        """VGG-16 features of clip i, (T_v, 4096) float16, T_v = 0 where it has no picture."""
        return self._features("video", i, self.video_rows[i])

    def word_ids(self, i):
        """Words of clip i as numbers (W,) of the vocabulary, and their times (W, 2) in seconds."""
        if not self.n_words[i]:
            return np.zeros(0, np.int32), np.zeros((0, 2), np.float32)
        part = slice(self._word_start[i], self._word_start[i] + self.n_words[i])
        return np.array(self._map("words.npy")[part]), np.array(self._map("word_times.npy")[part])

    def words(self, i):
        """Words of clip i: [(word, start_s, end_s)]."""
        return [(self.vocabulary[k], float(start), float(end)) for k, (start, end) in zip(*self.word_ids(i))]


def english_rows(store, min_score):
    """Rows of the clips that the recogniser is sure enough of (Section 3.1); those without a score stay.

    min_score  mean log-probability; the paper's threshold on another recogniser's scores left 978 k of 1,092 k clips
    """
    kept = np.flatnonzero(~(store.score < min_score))
    print(
        f"score of at least {min_score:g}: {len(kept):,} of {len(store):,} clips, {np.isnan(store.score).sum():,} of "
        "them without a score"
    )
    return kept


@dataclass
class FeatureStats:
    """Mean and standard deviation of every number of a step: audio (200,), video (4096,) float32."""

    audio_mean: np.ndarray
    audio_std: np.ndarray
    video_mean: np.ndarray
    video_std: np.ndarray

    def save(self, path):
        with atomic_path(path) as temporary:
            np.savez(temporary, **vars(self))

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. Raises UserError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: not the statistics of features ({error}); delete it and run again"
            ) from error


def measure_stats(store, rows):
    """FeatureStats of some clips of a store, those of training, in one pass over the disk.

    A number that never varies, as of a unit of VGG-16 that is never active, gets a deviation of 1; so does everything
    of a modality that no clip has, with mean 0.
    """
    stats = {}
    rows = np.asarray(rows)
    rows = rows[np.lexsort((store._first["audio"][rows], store.shard[rows]))]  # in the order of the disk
    for name, read in (("audio", store.audio), ("video", store.video)):
        count, total, squares = 0, np.zeros(store.dims[name]), np.zeros(store.dims[name])
        for i in tqdm(rows, desc=f"statistics, {name}", unit="clip", disable=None, leave=False):
            x = read(i).astype(np.float64)
            count, total, squares = count + len(x), total + x.sum(0), squares + np.einsum("td,td->d", x, x)
        mean = total / max(1, count)
        std = np.sqrt(np.maximum(0, squares / max(1, count) - mean**2))
        stats[f"{name}_mean"] = mean.astype(np.float32)
        stats[f"{name}_std"] = np.where(std > 1e-4, std, 1).astype(np.float32)
    return FeatureStats(**stats)


# ---- The data set that training reads -------------------------------------------------------


def find_row(word, row_of):
    """The number of a word in a mapping {word: number}: as it is, in lower case, or without punctuation; else -1."""
    bare = word.strip(PUNCTUATION)
    return next((row_of[form] for form in (word, word.lower(), bare, bare.lower()) if form in row_of), -1)


class Clips:
    """Clips of a store as a data set for training.fit and training.predict.

    store         ClipStore
    rows          numbers of the clips in it that this data set has, in its order
    vectors       (V, 300) float32, GloVe; one of zeros counts as none
    row_of        {word: row of vectors}; see `find_row`
    targets       {word: number} of the vocabulary that the masked language model predicts; None = row_of
    labels        (len(rows), E) or None
    stats         FeatureStats by which audio and video become of zero mean and unit variance. It is done here, so that
                  the zeros of padding and of masked words are what a model sees; None = as they are stored
    keep_unknown  words without a vector: True keeps them as zeros, which look like masked ones, False leaves them out
    max_s         seconds of a clip that are taken, so that one long clip does not fill the memory; None = all
    words_from    another ClipStore to take the words from, by clip_id, such as recognised ones; None = store. A clip
                  that it lacks has no words
    """

    def __init__(
        self,
        store,
        rows,
        vectors,
        row_of,
        targets=None,
        labels=None,
        stats=None,
        keep_unknown=True,
        max_s=None,
        words_from=None,
    ):
        self.store, self.rows, self.vectors = store, np.asarray(rows, np.int64), vectors
        self.word_store = words_from or store
        self.word_rows = (
            self.rows
            if words_from is None
            else np.array([_row_or_none(words_from, store.ids[i]) for i in self.rows], np.int64)
        )
        known = np.any(np.asarray(vectors) != 0, axis=1)  # (V,)
        row_of, self.stats = {word: row for word, row in row_of.items() if known[row]}, stats
        self.vector_row = np.array([find_row(word, row_of) for word in self.word_store.vocabulary], np.int64)
        self.target = (
            self.vector_row
            if targets is None
            else np.array([find_row(word, targets) for word in self.word_store.vocabulary], np.int64)
        )
        self.labels = None if labels is None else np.asarray(labels, np.float32)
        if self.labels is not None and len(self.labels) != len(self.rows):
            raise ValueError(f"{len(self.labels)} labels for {len(self.rows)} clips")
        self.keep_unknown, self.max_s = keep_unknown, max_s
        self.limits = {
            name: self._limit(step_s)
            for name, step_s in (("audio", store.audio_step_s), ("video", store.video_step_s))
        }
        n_words = np.where(self.word_rows < 0, 0, self.word_store.n_words[self.word_rows])
        self.lengths = (
            np.minimum(store.audio_rows[self.rows], self.limits["audio"])
            + np.minimum(store.video_rows[self.rows], self.limits["video"])
            + n_words
        )

    def _limit(self, step_s):
        return np.iinfo(np.int64).max if self.max_s is None else max(1, round(self.max_s / step_s))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        """key: (index, seed) -> dict of the arrays of one clip; nothing here is random."""
        index, i, j = key[0], self.rows[key[0]], self.word_rows[key[0]]
        words, times = (
            self.word_store.word_ids(j) if j >= 0 else (np.zeros(0, np.int64), np.zeros((0, 2), np.float32))
        )
        kept = np.full(len(words), True) if self.keep_unknown else self.vector_row[words] >= 0
        if self.max_s is not None:
            kept &= ~(times[:, 0] >= self.max_s)
        item = {"words": words[kept], "times": times[kept]}
        for name, read in (("audio", self.store.audio), ("video", self.store.video)):
            item[name] = read(i)[: self.limits[name]]
            if self.stats is not None:
                mean, std = (getattr(self.stats, f"{name}_{what}") for what in ("mean", "std"))
                item[name] = (item[name] - mean) / std
        if self.labels is not None:
            item["labels"] = self.labels[index]
        return item

    def collate(self, items):
        """A batch of clips, padded with zeros to the longest and to one step at least.

        "text" (B, W, 300), "audio" (B, T_a, 200), "video" (B, T_v, 4096) float32, with "text_length", "audio_length",
        "video_length" (B,), 0 = the clip lacks it; "word_ids" (B, W) int64, -1 = outside the vocabulary or padding;
        "word_start_s", "word_end_s" (B, W), NaN for padding; "audio_step_s", "video_step_s" (B,); "labels" (B, E).
        """
        batch = {}
        for name in ("audio", "video"):
            batch[name] = _padded([item[name] for item in items], self.store.dims[name], 0.0)
            batch[f"{name}_length"] = torch.tensor([len(item[name]) for item in items])
            batch[f"{name}_step_s"] = torch.full((len(items),), getattr(self.store, f"{name}_step_s"))
        known = [self.vector_row[item["words"]] for item in items]
        vectors = [np.where(rows[:, None] >= 0, self.vectors[np.maximum(rows, 0)], 0) for rows in known]
        batch["text"] = _padded(vectors, self.vectors.shape[1], 0.0)  # (B, W, 300)
        batch["text_length"] = torch.tensor([len(rows) for rows in known])
        batch["word_ids"] = _padded([self.target[item["words"]][:, None] for item in items], 1, -1)[..., 0]
        times = _padded([item["times"] for item in items], 2, float("nan"))  # (B, W, 2)
        batch["word_start_s"], batch["word_end_s"] = times.unbind(-1)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(np.stack([item["labels"] for item in items]))
        return batch


def _row_or_none(store, clip_id):
    try:
        return store.row_of(str(clip_id))
    except KeyError:
        return -1


def _padded(arrays, dim, value):
    """Arrays (T, dim) -> (B, longest T, dim), int64 where `value` is an integer, else float32."""
    longest = max(1, *(len(array) for array in arrays)) if arrays else 1
    dtype = torch.int64 if isinstance(value, int) else torch.float32
    padded = torch.full((len(arrays), longest, dim), value, dtype=dtype)
    for row, array in zip(padded, arrays):
        if len(array):
            row[: len(array)] = torch.from_numpy(np.ascontiguousarray(array))
    return padded


# ---- Masked words (Sec. 2.2) ----------------------------------------------------------------


def mask_words(batch, share, generator):
    """Hide some words with all that is heard and seen while they are spoken (Section 2.2): zeros in all modalities.

    batch      of `Clips.collate`; its "text", "audio" and "video" are replaced by copies with zeros, and "hidden",
               "audio_hidden" (B, T_a) and "video_hidden" (B, T_v) are added
    share      of the words of each clip: round(share * words), and at least one. Drawn from those in the vocabulary,
               since others cannot be predicted; a clip without any keeps all it has
    generator  torch.Generator on the CPU; None = torch's own, which training.fit seeds for every step
    Returns hidden (B, W) bool, True = hidden; batch["hidden"] is the same.
    """
    device = batch["text"].device
    can_hide = batch["word_ids"] >= 0  # (B, W)
    draws = torch.rand(can_hide.shape, generator=generator).to(device).masked_fill(~can_hide, 2.0)
    n_words = can_hide.sum(1, keepdim=True)
    n_hidden = (share * n_words + 0.5).floor().clamp(min=1)  # (B, 1)
    hidden = (draws.argsort(1).argsort(1) < n_hidden) & can_hide
    batch["hidden"], batch["text"] = hidden, batch["text"].masked_fill(hidden[..., None], 0)
    for name in ("audio", "video"):
        steps = hidden_steps(batch, hidden, name)
        batch[name], batch[f"{name}_hidden"] = batch[name].masked_fill(steps[..., None], 0), steps
    return hidden


def hidden_steps(batch, hidden, name):
    """Steps (B, T) of "audio" or "video" during which a hidden word (B, W) is spoken, even if only for a part.

    A word of no length lies in the step that contains it; one whose times are NaN, or outside the clip, in none.
    """
    step_s = batch[f"{name}_step_s"].double()[:, None]  # (B, 1)
    first = (batch["word_start_s"].double() / step_s + EDGE_TOLERANCE).floor()  # (B, W)
    end = (batch["word_end_s"].double() / step_s - EDGE_TOLERANCE).ceil()
    end = torch.maximum(end, first + 1)
    k = torch.arange(batch[name].shape[1], device=hidden.device)
    spoken = (k >= first[..., None]) & (k < end[..., None]) & hidden[..., None]  # (B, W, T)
    return spoken.any(1)
