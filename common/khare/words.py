"""Words of clips with their times, and GloVe vectors of words (Khare et al. 2021, Sections 2.2, 3.1 and 4.1).

A word is (word, start_s, end_s) on its clip's clock, times None = not known. Words come from a CSV file, a
folder of transcripts, or a recogniser; each has `words(clip_id, samples)` -> (words, score), score NaN where
there is none, `identity`, and `needs_sound`: whether samples are read at all.
"""

import csv
import gzip
import hashlib
import re
import zlib
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, pipeline

from common.files import UserError, atomic_path, check_finite, file_hash, hash_of
from common.layers import weights_hash
from common.training import exact

RATE_HZ = 16000  # of all sound
TASK = "automatic-speech-recognition"
RANDOM_WIDTH = 300  # of vectors without GloVe, as wide as the paper's (Sec. 3.1)
COLUMNS = ["utterance_id", "word", "start_s", "end_s"]
PUNCTUATION = ".,;:\"'`()[]{}<>*-_/\\\u2018\u201c\u201d\u2013\u2014"
MARKS = ("!", "?", "...")  # punctuation that carries emotion
AT_MARKS = re.compile(r"(\.\.\.|[!?])")
CLITICS = re.compile(r"(?=n't$)|(?='(?:s|m|d|re|ve|ll)$)")
END_TOLERANCE_S = 0.1  # a word may begin this much after its clip and still belong to it
SHORTEST_S = 0.025  # one frame of wav2vec 2.0
NUMBERS = re.compile(rb"( [-+]?\d*\.?\d+(e[-+]?\d+)?)*$", re.IGNORECASE)  # at the end of a line


@cache
def tokens_of(word):
    """What a word is looked up and counted as: "No!" is "no" and "!"; other punctuation around it goes."""
    pieces = AT_MARKS.split(word.replace("\u2019", "'").replace("\u2026", "..."))
    tokens = (x if x in MARKS else x.strip(PUNCTUATION).lower() for x in pieces)
    return tuple(token for token in tokens if token)


# ---- Where words come from (Sections 2.2 and 3.1) ------------------------------------------


def look_up(name, data_root):
    """A path that is looked for here, then in data_root; None where it is in neither."""
    return next((place for place in (Path(name), Path(data_root) / name) if place.exists()), None)


def is_there(name, data_root):
    """Whether there is a file or folder of this name, or a model of transformers (hub)."""
    if look_up(name, data_root):
        return True
    try:
        return bool(try_to_load_from_cache(name, "config.json") or HfApi().model_info(name, timeout=5))
    except Exception:  # no such model, no network, or none wanted (HF_HUB_OFFLINE)
        return False


@cache
def open_words(name, data_root, device):
    """What gives words to clips that have none: a CSV file, a folder, else a recogniser; None for ""."""
    if not name:
        return None
    path = look_up(name, data_root)
    if path and path.is_file():
        return WordsFile(path)
    if path and not (path / "config.json").exists():
        return Transcripts(path)
    with loading(path or name):
        is_whisper = AutoConfig.from_pretrained(path or name).model_type == "whisper"
    return (WhisperRecogniser if is_whisper else Recogniser)(path or name, device)


class WordsFile:
    """Words from a CSV file utterance_id,word,start_s,end_s[,score]; the mean of the scores is the clip's."""

    needs_sound = False

    def __init__(self, path):
        self.identity, self.rows_of = file_hash(path), {}
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            lines = csv.reader(file)
            if next(lines, [])[:4] != COLUMNS:
                raise UserError(f"{path}: its first line is not {','.join(COLUMNS)}; give it that header")
            for name, own in groupby(filter(None, lines), key=itemgetter(0)):
                if name in self.rows_of:
                    raise UserError(f"{path}: words of {name} stand in two places; sort it by utterance_id")
                self.rows_of[name] = [parsed(cells, f"{path}:{lines.line_num}") for cells in own]

    def words(self, clip_id, samples=None):
        rows = self.rows_of.get(clip_id, [])
        scores = [score for *_, score in rows if score is not None]
        return [row[:3] for row in rows], float(np.mean(scores)) if scores else np.nan


def parsed(cells, place):
    """(word, start_s, end_s, score) of a line; an empty or absent number is None."""
    try:
        _, word, *numbers = cells
        start_s, end_s, score = [float(x) if x.strip() else None for x in [*numbers, ""][:3]]
        return word, start_s, end_s, score
    except ValueError as error:
        raise UserError(f"{place}: not {','.join(COLUMNS)}; correct that line") from error


class Transcripts:
    """Words without times from a folder of transcripts, <clip id>.txt."""

    needs_sound = False

    def __init__(self, folder):
        self.folder, self.identity = folder, str(folder)

    def words(self, clip_id, samples=None):
        path = self.folder / f"{clip_id}.txt"
        words = path.read_text(encoding="utf-8-sig", errors="replace").split() if path.is_file() else []
        return [(word, None, None) for word in words], np.nan


@contextmanager
def loading(source):
    """Turn what transformers raises while it loads a model into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{source}: cannot be loaded ({reason}); check the name or the folder") from error


def identity_of(source, model):
    """A short hash of a recogniser's weights; UserError where one is NaN or infinite."""
    weights = dict(sorted(model.state_dict().items()))
    check_finite(source, weights)
    return weights_hash(weights)


class WhisperRecogniser:
    """Words and their times from Whisper by transformers' pipeline, in fp32; not in the paper. No score.

    Punctuation stays at its word. Times are read off the attention: a word's begin with the pause before it.
    """

    needs_sound = True

    def __init__(self, source, device):
        with loading(source):
            self.pipeline = pipeline(TASK, str(source), device=device, dtype=torch.float32)
        if not getattr(self.pipeline.model.generation_config, "no_timestamps_token_id", None):
            raise UserError(f"{source}: its generation_config.json knows no times; download it again")
        self.identity = identity_of(source, self.pipeline.model)
        self.how = {"language": "en"} if self.pipeline.model.generation_config.is_multilingual else {}

    @exact()
    def words(self, clip_id, samples=None):
        if len(samples) < SHORTEST_S * RATE_HZ:
            return [], np.nan
        found = self.pipeline(samples, return_timestamps="word", generate_kwargs=self.how)
        words = [(chunk["text"].strip(), *chunk["timestamp"]) for chunk in found["chunks"]]
        seconds = len(samples) / RATE_HZ  # the last word may have no end
        return [(word, start, seconds if end is None else end) for word, start, end in words], np.nan


class Recogniser:
    """Words from a CTC model of transformers such as wav2vec 2.0, in fp32 (in the paper: Kaldi's TDNN).

    A clip is recognised by itself: wav2vec 2.0's first layer normalises over time, so that padding would
    change its words. The score of a clip is the mean log-probability of its letters, which silence does not
    raise, and another language lowers.
    """

    needs_sound = True

    def __init__(self, source, device):
        kinds = Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor
        with loading(source):
            model, found = AutoModelForCTC.from_pretrained(source, output_loading_info=True)
            self.tokenizer, self.extractor = (kind.from_pretrained(source) for kind in kinds)
        if missing := [name for name in found["missing_keys"] if "masked_spec" not in name]:  # not read here
            raise UserError(f"{source}: {missing[0]} is missing; name a model that was trained to transcribe")
        if self.extractor.sampling_rate != RATE_HZ:
            raise UserError(f"{source}: not for sound of {RATE_HZ} Hz; name a model that is")
        self.identity = identity_of(source, model)
        self.model = model.to(device).eval().requires_grad_(False)
        self.step_s = model.config.inputs_to_logits_ratio / RATE_HZ

    @exact()
    @torch.inference_mode()
    def words(self, clip_id, samples=None):
        if len(samples) < SHORTEST_S * RATE_HZ:
            return [], np.nan
        inputs = self.extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt").input_values
        logits = self.model(inputs.to(self.model.device)).logits[0]  # (T, letters)
        best, letters = logits.log_softmax(-1).cpu().max(-1)  # (T,)
        spoken = letters != self.tokenizer.pad_token_id
        if not spoken.any():
            return [], np.nan
        found, step_s = self.tokenizer.decode(letters, output_word_offsets=True).word_offsets, self.step_s
        words = [(x["word"].lower(), x["start_offset"] * step_s, x["end_offset"] * step_s) for x in found]
        return words, float(best[spoken].mean())


def tidy_words(words, seconds):
    """Words as a store keeps them: in the order of speaking, within their clip.

    words    where a time of one is None or not finite, all are spread evenly over the clip: right within a
             second or so in fluent speech, but the masks of sound and pictures then fall on neighbours too
    seconds  length of the clip; 0 = not known, and then words without times get NaN
    Returns (words, how many were left out because they lie outside the clip). Those across its edges are cut.
    """
    words = [(text, start, end) for word, start, end in words if (text := " ".join(str(word).split()))]
    if not all(x is not None and np.isfinite(x) for word in words for x in word[1:]):
        step_s = seconds / len(words) if seconds else np.nan
        return [(word, k * step_s, (k + 1) * step_s) for k, (word, *_) in enumerate(words)], 0
    limit_s = seconds or float("inf")
    inside = [
        (word, min(max(start, 0.0), limit_s), min(max(end, start, 0.0), limit_s))
        for word, start, end in words
        if start <= limit_s + END_TOLERANCE_S and max(start, end) >= 0
    ]
    return sorted(inside, key=lambda word: word[1]), len(words) - len(inside)


# ---- Word vectors (Section 3.1) ------------------------------------------------------------


class Vectors:
    """Vectors (n, width) of tokens, and `row_of` {token: its row} of those that have one.

    counts  Counter of all tokens
    glove   file of GloVe vectors; "" = random ones, seeded by the spelling, where GloVe is not at hand: no
            word then has neighbours in meaning
    cache   folder for what is read from the file
    """

    def __init__(self, counts, glove, cache):
        words = sorted(counts)
        if glove:
            self.vectors = read_glove(glove, words, cache)
        else:
            self.vectors = np.array([random_vector(word) for word in words]).reshape(-1, RANDOM_WIDTH)
        known = self.vectors.any(1)
        self.row_of = {word: row for row, word in enumerate(words) if known[row]}
        self.identity = glove and [glove.name, glove.stat().st_size]  # JSON-ready
        n, n_known = counts.total(), sum(counts[word] for word in self.row_of)
        self.note = f"{len(self.row_of):,} of {len(counts):,} words, {n_known:,} of {n:,} running words have "
        self.note += "a GloVe vector" if glove else "a random vector, without GloVe"


def random_vector(word):
    """(300,) float32 for a word; its numbers have a deviation of 0.4, about that of GloVe's."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(0, 0.4, RANDOM_WIDTH).astype(np.float32)


def spellings(word):
    """What a token may stand as in a file, the best first; of several pieces the mean is taken."""
    whole = [word], CLITICS.split(word), [word.replace("'", "")], [word.replace("...", "\u2026")]
    return *whole, [piece for piece in re.split("-+|'s$", word) if piece] or [word]


def read_glove(path, words, cache):
    """Vectors (n, width) of tokens, by the first of their `spellings` that the file has; zeros for others.

    cache  folder where the result is kept for the same file and words (840B.300d has 5.6 GB)
    """
    stat = path.stat()
    kept = Path(cache) / f"glove_{hash_of([path.name, stat.st_size, stat.st_mtime_ns, words])}.npy"
    if kept.exists():
        return np.load(kept, mmap_mode="r")
    wanted = {piece.encode() for word in words for pieces in spellings(word) for piece in pieces}
    try:
        found, width = read_vectors(path, wanted)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); download it again") from error
    vectors = np.zeros((len(words), width), np.float32)
    for row, word in zip(vectors, words):
        several = ([found.get(piece.encode()) for piece in pieces] for pieces in spellings(word))
        row[:] = next((np.mean(x, 0) for x in several if all(piece is not None for piece in x)), 0.0)
    with atomic_path(kept) as temporary:
        np.save(temporary, vectors)
    return vectors


def read_vectors(path, wanted):
    """({token: vector (width,)} of the wanted tokens (bytes), width); of repeated tokens the first counts.

    The first line tells the width. Lines end with a newline and nothing else, and fields are parted by plain
    blanks: tokens may hold other blanks (U+00A0, U+0085), and in 840B plain ones too (". . ."), so that a
    line is parsed from the right. Most lines are passed over by their first piece, without their numbers.
    Raises UserError for a file that is no such text or is cut off.
    """
    firsts, vectors, width = {token.split(b" ", 1)[0] for token in wanted}, {}, 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip(b" \r\n").removeprefix(b"\xef\xbb\xbf")
            if not line or not width and re.fullmatch(rb"\d+ \d+", line):
                continue  # "<vocabulary> <width>" of a repackaged file
            width = width or NUMBERS.search(line).group().count(b" ")
            if not width:
                raise UserError(f"{path}: no vectors in its first line; unpack it, or pull it by git lfs")
            if line.count(b" ") < width:
                raise UserError(f"{path}:{number}: cut off, fewer than {width} numbers; unpack it again")
            if line.split(b" ", 1)[0] in firsts:
                token, *fields = line.rsplit(b" ", width)
                if token in wanted and token not in vectors:
                    try:
                        vectors[token] = np.array(fields).astype(np.float32)
                    except ValueError as error:
                        raise UserError(f"{path}:{number}: {error}; unpack it again") from error
    if not width or not all(np.isfinite(vector).all() for vector in vectors.values()):
        raise UserError(f"{path}: no vectors in it, or a number that is not finite; unpack it again")
    return vectors, width
