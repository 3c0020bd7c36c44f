"""Words of clips with their times, and GloVe vectors of words (Khare et al. 2021, Sections 2.2, 3.1 and 4.1).

A word is (word, start_s, end_s) on its clip's clock, times None = not known. Words come from a CSV file, a
folder of transcripts, or a recogniser; each has `words(clip_id, samples)` -> (words, score), score NaN where
there is none, `identity()`, and `needs_sound`: whether samples are read at all.
"""

import csv
import hashlib
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torchaudio.functional import edit_distance
from transformers import AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

from common.errors import UserError
from common.files import atomic_path, file_hash, hash_of, read_csv
from common.media import LFS_POINTER

WORD_DIM = 300  # of GloVe (Sec. 3.1)
COLUMNS = ["utterance_id", "word", "start_s", "end_s"]
PUNCTUATION = ".,;:!?\"'`()[]{}<>*-_/\\\u2018\u2019\u201c\u201d\u2026\u2013\u2014"
END_TOLERANCE_S = 0.1  # a word may begin this much after its clip and still belong to it
NUMBERS = re.compile(rb"( [-+]?\d*\.?\d+(e[-+]?\d+)?)*$", re.IGNORECASE)  # at the end of a line
NAN = float("nan")


def word_form(word):
    """The spelling by which words are looked up and counted: lower case, without punctuation around it."""
    return word.strip(PUNCTUATION).lower()


# ---- Where words come from (Sections 2.2 and 3.1) ------------------------------------------


def look_up(name, data_root):
    """A path that is looked for here, then in data_root; None where it is in neither."""
    return next((place for place in (Path(name), Path(data_root) / name) if place.exists()), None)


def open_words(name, data_root, device):
    """What gives words to clips that have none; None for "".

    name  a CSV file utterance_id,word,start_s,end_s[,score]; a folder of <clip>.csv or .txt; else a CTC model
          of transformers, a hub name or its folder. A path is looked for here, then in data_root
    Raises UserError where a CSV file is not there; what is no file at all is taken for a hub name.
    """
    if not name:
        return None
    path = look_up(name, data_root)
    if path and path.is_file():
        return WordsFile(path)
    if path and not (path / "config.json").exists():
        return Transcripts(path)
    if not path and name.endswith(".csv"):
        raise UserError(f"{name}: no such file, neither here nor in {data_root}; correct the path")
    return Recogniser(path or name, device)


class WordsFile:
    """Words from a CSV file utterance_id,word,start_s,end_s[,score]; the lines of a clip follow each other.

    The score of a clip is the mean of its words' scores, without the empty ones. Only where each clip stands
    in the file is kept in memory. Clips that it lacks have no words.
    """

    needs_sound = False

    def __init__(self, path):
        self.path, self.spans = path, {}
        with open(path, "rb") as file:
            first = file.readline()
            columns = next(csv.reader([first.decode("utf-8-sig", "replace")]), [])
            if columns[:4] != COLUMNS:
                raise UserError(f"{path}: its first line is not {','.join(COLUMNS)}; give it that header")
            at, self.n_cells = len(first), 4 + (columns[4:] == ["score"])
            for name, lines in groupby(file, key=first_cell):
                if name and name in self.spans:
                    raise UserError(f"{path}: words of {name} stand in two places; sort it by utterance_id")
                self.spans[name] = (at, sum(map(len, lines)))
                at += self.spans[name][1]

    def identity(self):
        return file_hash(self.path)

    def words(self, clip_id, samples):
        at, length = self.spans.get(clip_id, (0, 0))
        with open(self.path, "rb") as file:
            file.seek(at)
            lines = file.read(length).decode("utf-8", "replace").split("\n")
        rows = [row[1 : self.n_cells] for row in csv.reader(lines) if row]
        found = [parsed(row, f"{self.path}: {clip_id}") for row in rows]
        scores = [score[0] for *_, score in found if score and score[0] is not None]
        return [word[:3] for word in found], float(np.mean(scores)) if scores else NAN


def first_cell(line):
    """The first cell of a line of a CSV file, as bytes in and text out."""
    text = (line if line.startswith(b'"') else line.partition(b",")[0]).decode("utf-8", "replace")
    return next(csv.reader([text]), [""])[0].strip()


def parsed(cells, place):
    """(word, start_s, end_s, [score]) of the cells of a line; an empty number is None."""
    try:
        word, start, end, *score = cells
        start, end, *score = (float(cell) if cell.strip() else None for cell in (start, end, *score))
        return word, start, end, score
    except ValueError as error:
        line = ",".join(cells)
        raise UserError(f"{place}: {line!r} is not word,start_s,end_s; correct that line") from error


class Transcripts:
    """Words from a folder of transcripts, <clip id>.csv (word,start_s,end_s) or <clip id>.txt.

    A text has no times: `tidy_words` spreads its words over the clip. Clips without a file have no words.
    """

    needs_sound = False

    def __init__(self, folder):
        self.folder = folder

    def identity(self):
        return str(self.folder)

    def words(self, clip_id, samples):
        path, text = self.folder / f"{clip_id}.csv", self.folder / f"{clip_id}.txt"
        if path.is_file():
            rows = ([row.get(name) or "" for name in COLUMNS[1:]] for row in read_csv(path))
            return [parsed(row, path)[:3] for row in rows], NAN
        words = text.read_text(encoding="utf-8-sig", errors="replace").split() if text.is_file() else []
        return [(word, None, None) for word in words], NAN


class Recogniser:
    """Words from a CTC model of transformers such as wav2vec 2.0, in fp32 (in the paper: Kaldi's TDNN).

    A clip is recognised by itself: wav2vec 2.0's first layer normalises over time, so that padding would
    change its words. The most likely letter of each frame of 20 ms is taken; the score of a clip is the mean
    log-probability of those that are not blank, which silence does not raise, and another language lowers.
    """

    needs_sound = True

    def __init__(self, source, device):
        kinds = AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor
        try:
            model, self.tokenizer, self.extractor = (kind.from_pretrained(source) for kind in kinds)
        except (OSError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"{source}: cannot be loaded ({reason}); check the name or the folder") from error
        self.model, self.device = model.to(device).eval().requires_grad_(False), torch.device(device)
        self.rate_hz, config, self.shortest = self.extractor.sampling_rate, model.config, 1
        self.step_s = config.inputs_to_logits_ratio / self.rate_hz
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride)):
            self.shortest = (self.shortest - 1) * stride + kernel  # samples of one frame

    def identity(self):
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.inference_mode()
    def words(self, clip_id, samples):
        if len(samples) < self.shortest:
            return [], NAN
        inputs = self.extractor(samples, sampling_rate=self.rate_hz, return_tensors="pt").input_values
        logits = self.model(inputs.to(self.device)).logits[0]  # (T, letters)
        best, letters = logits.log_softmax(-1).max(-1)  # (T,)
        spoken = letters != self.tokenizer.pad_token_id
        if not spoken.any():
            return [], NAN
        found, step_s = (
            self.tokenizer.decode(letters.cpu(), output_word_offsets=True).word_offsets,
            self.step_s,
        )
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
        step_s = seconds / len(words) if seconds else NAN
        return [(word, k * step_s, (k + 1) * step_s) for k, (word, *_) in enumerate(words)], 0
    limit_s = seconds or float("inf")
    inside = [
        (word, min(max(start, 0.0), limit_s), min(max(end, start, 0.0), limit_s))
        for word, start, end in words
        if start <= limit_s + END_TOLERANCE_S and max(start, end) >= 0
    ]
    return sorted(inside, key=lambda word: word[1]), len(words) - len(inside)


def word_error_rate(references, hypotheses):
    """Word edits by the number of words in the references (Section 4.1); it can exceed 1.

    references, hypotheses  lists of transcripts, each a list of words, in the same spelling and case
    """
    pairs, n_words = list(zip(references, hypotheses, strict=True)), sum(map(len, references))
    if not n_words:
        raise ValueError("no word in the reference transcripts")
    return sum(edit_distance(*pair) for pair in pairs) / n_words


# ---- Word vectors (Section 3.1) ------------------------------------------------------------


class Vectors:
    """Vectors (n, 300) of words, and `row_of` {word form: its row} of those that have one.

    counts  Counter of all words as they are written
    glove   file of GloVe vectors; "" = random ones, seeded by the spelling, where GloVe is not at hand: no
            word then has neighbours in meaning
    cache   folder for what is read from the file
    keep_unknown  words without a vector: True keeps them as zeros, which look like masked ones
    """

    def __init__(self, counts, glove, cache, keep_unknown):
        forms = Counter()
        for word, count in counts.items():
            forms[word_form(word)] += count
        forms.pop("", None)
        self.words, self.keep_unknown = sorted(forms), keep_unknown
        if glove:
            self.vectors = read_glove(glove, self.words, WORD_DIM, cache)
            self.note = coverage(self.words, self.vectors, forms)
        else:
            self.vectors = np.array([random_vector(word) for word in self.words]).reshape(-1, WORD_DIM)
            self.note = "word vectors are random, without GloVe"
        known = self.vectors.any(1)
        self.row_of = {word: row for row, word in enumerate(self.words) if known[row]}

    def rows(self, words):
        """The row (W,) of each word, -1 = it has no vector."""
        return np.array([self.row_of.get(word_form(word), -1) for word in words], np.int64)

    def of(self, words):
        """Vectors (W, 300) of words, zeros where they have none."""
        rows, found = self.rows(words), np.zeros((len(words), WORD_DIM), np.float32)
        found[rows >= 0] = self.vectors[rows[rows >= 0]]
        return found

    def identity(self, words):
        """A hash of the vectors of some words."""
        rows = sorted(set(self.rows(words).tolist()) - {-1})
        digest = hashlib.sha256(repr([self.words[row] for row in rows]).encode())
        digest.update(np.ascontiguousarray(self.vectors[rows]).tobytes())
        return digest.hexdigest()[:16]


def random_vector(word):
    """(300,) float32 for a word; its numbers have a deviation of 0.4, about that of GloVe's."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(0, 0.4, WORD_DIM).astype(np.float32)


def coverage(words, vectors, counts):
    """How many words have a vector, as types and as running words, and the most frequent ones without."""
    missing = sorted((-counts[word], word) for word, row in zip(words, vectors) if not row.any())
    types, tokens = len(counts), counts.total()
    n_types, n_tokens = types - len(missing), tokens + sum(count for count, _ in missing)
    shown = ", ".join(f"{word} {-count:,}" for count, word in missing[:5])
    return (
        f"{n_types:,} of {types:,} words have a GloVe vector ({n_types / max(1, types):.1%}), "
        f"{n_tokens:,} of {tokens:,} running words ({n_tokens / max(1, tokens):.1%})"
        + (f"; most frequent without: {shown}" if shown else "")
    )


def read_glove(path, words, dim=WORD_DIM, cache=None):
    """Vectors (n, dim) of `words` from a GloVe text file in one pass, zeros for a word that it lacks.

    path   a file of lines <token> <dim numbers>; the largest, 840B.300d, has 5.6 GB and 2.2 million tokens
    words  each is looked up as it is written, then in lower case
    cache  folder where the result is kept for the same file and words; None = nowhere
    Raises UserError for a file that is missing, packed, cut off or of vectors of another length.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; unpack GloVe's archive there, or name the file of its vectors"
        )
    stat = path.stat()
    key = hash_of([path.name, stat.st_size, stat.st_mtime_ns, dim, list(words)])
    kept = Path(cache) / f"glove_{key}.npy" if cache else None
    try:
        vectors = np.load(kept, mmap_mode="r", allow_pickle=False) if kept else np.zeros(0)
        if vectors.shape == (len(words), dim):
            return vectors
    except (OSError, ValueError, EOFError):  # not there, or damaged
        pass
    found = read_vectors(path, {form.encode() for word in words for form in (word, word.lower())}, dim)
    vectors = np.zeros((len(words), dim), np.float32)
    for row, word in zip(vectors, words):
        row[:] = found.get(word.encode(), found.get(word.lower().encode(), 0))
    if kept:
        with atomic_path(kept) as temporary:
            np.save(temporary, vectors)
    return vectors


def read_vectors(path, wanted, dim):
    """{token: vector (dim,)} of the wanted tokens (bytes); of repeated tokens the first counts.

    Lines end with a newline and nothing else, and fields are parted by plain blanks: tokens may hold other
    blanks (U+00A0, U+0085), and in 840B plain ones too (". . ."), so that a line is parsed from the right.
    Most lines are passed over by their first piece, without parsing their numbers.
    """
    firsts, vectors, n_lines = {token.split(b" ", 1)[0] for token in wanted}, {}, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip(b" \r\n")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.startswith((LFS_POINTER, b"PK\x03\x04", b"\x1f\x8b")):
                    raise UserError(
                        f"{path}: packed or a git-lfs pointer, not the text file; unpack or pull it"
                    )
                if re.fullmatch(rb"\d+ \d+", line):
                    continue  # "<vocabulary> <dim>" of a repackaged file
            n = line.count(b" ") if n_lines else NUMBERS.search(line).group().count(b" ")
            if line and (n < dim or not n_lines and n != dim):
                raise UserError(
                    f"{path}:{number}: {n} numbers after the token, not {dim}; the file is cut off or has "
                    f"vectors of another length: unpack it again, or choose that of {dim} dimensions"
                )
            n_lines += bool(line)
            if line.split(b" ", 1)[0] in firsts:
                token, *fields = line.rsplit(b" ", dim)
                if token in wanted and token not in vectors:
                    vectors[token] = parse_vector(fields, f"{path}:{number}")
    if not n_lines:
        raise UserError(f"{path}: no vectors in it; unpack it again")
    return vectors


def parse_vector(fields, place):
    try:
        vector = np.array([float(field) for field in fields], np.float32)
    except ValueError as error:
        raise UserError(f"{place}: {error}; unpack the file again") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{place}: a number is not finite; unpack the file again")
    return vector
