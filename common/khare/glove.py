"""GloVe word vectors read from their text files (Pennington et al. 2014): only the words that are asked for.

The largest file, 840B.300d, is 5.6 GB of text with 2.2 million cased tokens, so it is read once, line by line, and what
was found is kept beside the prepared corpus.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_path, read_json, write_json
from common.media import LFS_POINTER

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b")  # zip, gzip
SAMPLE_LINES = 10  # enough lines to see how many numbers a vector has
REMEDY = "unpack glove.840B.300d.txt again from the archive of the GloVe project"


@dataclass
class Glove:
    """Vectors of some words: words (N,) sorted, vectors (N, D) float32, found (N,) bool; a word not found is zeros."""

    words: tuple
    vectors: np.ndarray
    found: np.ndarray

    def __post_init__(self):
        self.row = {word: i for i, word in enumerate(self.words)}


@dataclass
class Coverage:
    """How many of a corpus's words have a vector: as types, as running words, and the most frequent without one."""

    types: int
    types_found: int
    tokens: int
    tokens_found: int
    missing: list  # (word, count), the most frequent first

    def __str__(self):
        shown = ", ".join(f"{word} {count:,}" for word, count in self.missing[:5])
        return (
            f"{self.types_found:,} of {self.types:,} words have a GloVe vector "
            f"({self.types_found / max(1, self.types):.1%}), {self.tokens_found:,} of {self.tokens:,} running "
            f"words ({self.tokens_found / max(1, self.tokens):.1%})"
            + (f"; most frequent without: {shown}" if shown else "")
        )


def read_glove(path, words, dim=300, cache=None):
    """Read the vectors of `words` from a GloVe text file in one pass; of repeated tokens the first counts.

    path   a file of lines <token> <dim numbers>, separated by blanks; a first line "<vocabulary> <dim>" is passed over
    words  the words wanted, each looked up as it is written, then in lower case (840B is cased, 6B is not)
    cache  folder where the result is kept, as glove_<key>.npy and .json, for the same file and words; None = nowhere
    Returns a Glove. Raises UserError for a file that is missing, packed, cut off or of vectors of another length.
    """
    path, words = Path(path), tuple(sorted(set(words)))
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; {REMEDY.replace(' again', '')}, or set the path to where it is"
        )
    facts = {"file": path.name, "bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "dim": dim}
    key = hashlib.sha256(json.dumps([facts, words]).encode()).hexdigest()[:16]
    note = Path(cache) / f"glove_{key}.json" if cache else None
    kept = _read_cache(note, words, dim) if note else None
    if kept:
        return kept
    wanted = {form.encode() for word in words for form in (word, word.lower())}
    glove = _look_up(words, _read_vectors(path, wanted, dim), dim)
    if note:
        with atomic_path(note.with_suffix(".npy")) as temporary:
            np.save(temporary, glove.vectors[glove.found])
        write_json(
            note,
            {**facts, "words": len(words), "missing": [w for w in words if not glove.found[glove.row[w]]]},
        )
    return glove


def coverage(glove, counts):
    """The Coverage of a corpus by the words that were read for it.

    counts  {word: how often}; every word must have been asked for in read_glove
    """
    without = Counter({word: count for word, count in counts.items() if not glove.found[glove.row[word]]})
    tokens = sum(counts.values())
    missing = sorted(without.items(), key=lambda item: (-item[1], item[0]))
    return Coverage(len(counts), len(counts) - len(without), tokens, tokens - without.total(), missing)


# ---- The file ---------------------------------------------------------------------------------


def _read_vectors(path, wanted, dim):
    """{token: vector (dim,)} of the wanted tokens (bytes).

    Lines end with a newline and nothing else, and fields are parted by plain blanks only: tokens may hold other kinds
    of blanks (U+00A0, U+0085), and in 840B plain ones too (". . ."), so that a line is parsed from the right. Most
    lines are passed over by their first piece, without parsing their numbers.
    """
    firsts = {token.split(b" ", 1)[0] for token in wanted}
    vectors, n_lines = {}, 0
    with open(path, "rb") as file:
        _check_start(path, file, dim)
        for number, line in enumerate(file, start=1):
            line = line.rstrip(b" \r\n")
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
                if _header(line):
                    continue
            if not line:
                continue
            n_lines += 1
            if line.count(b" ") < dim:
                raise UserError(
                    f"{path}:{number}: {line.count(b' ')} numbers after the token, not {dim}; the file is "
                    f"cut off or of another length of vectors: {REMEDY}"
                )
            if line.split(b" ", 1)[0] in firsts:
                token, *fields = line.rsplit(b" ", dim)
                if token in wanted and token not in vectors:
                    vectors[token] = _numbers(fields, path, number)
    if not n_lines:
        raise UserError(f"{path}: no vectors in it; {REMEDY}")
    return vectors


def _header(line):
    """[vocabulary, dim] of the first line of a repackaged file, else None."""
    fields = line.split(b" ")
    return (
        [int(field) for field in fields]
        if len(fields) == 2 and all(field.isdigit() for field in fields)
        else None
    )


def _check_start(path, file, dim):
    """UserError where the first lines are not those of vectors of this length; leaves the file at its start."""
    lines = [file.readline(1 << 20).rstrip(b" \r\n") for _ in range(SAMPLE_LINES)]
    file.seek(0)
    if lines[0].startswith((LFS_POINTER, *ARCHIVES)):
        what = "a git-lfs pointer" if lines[0].startswith(LFS_POINTER) else "still packed"
        raise UserError(f"{path}: {what}, not the text file itself; {REMEDY}")
    lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)
    header = _header(lines[0])
    lengths = [_trailing_numbers(line) for line in lines[1 if header else 0 :] if line]
    # A token can look like a number itself, so the shortest counts.
    found = header[1] if header else min(lengths, default=dim)
    if found != dim or min(lengths, default=dim) < dim:
        raise UserError(
            f"{path}: its vectors have {min([found, *lengths])} numbers, not {dim}; choose the file of "
            f"{dim} dimensions, or another dimension"
        )


def _trailing_numbers(line):
    fields = line.split(b" ")[1:]
    n_numbers = 0
    for field in reversed(fields):
        try:
            float(field)
        except ValueError:
            break
        n_numbers += 1
    return n_numbers


def _numbers(fields, path, number):
    try:
        vector = np.array([float(field) for field in fields], np.float32)
    except ValueError as error:
        raise UserError(f"{path}:{number}: {error}; {REMEDY}") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{path}:{number}: a number is not finite; {REMEDY}")
    return vector


def _look_up(words, vectors, dim):
    """The Glove of words: each as written, else in lower case, else zeros."""
    rows = [vectors.get(word.encode(), vectors.get(word.lower().encode())) for word in words]
    found = np.array([row is not None for row in rows], bool)
    matrix = np.zeros((len(words), dim), np.float32)
    if found.any():
        matrix[found] = [row for row in rows if row is not None]
    return Glove(words, matrix, found)


def _read_cache(note, words, dim):
    """The Glove kept by an earlier run, or None where there is none or it is damaged."""
    try:
        missing, kept = set(read_json(note)["missing"]), np.load(note.with_suffix(".npy"), allow_pickle=False)
    except (UserError, KeyError, TypeError, OSError, ValueError, EOFError):
        return None
    found = np.array([word not in missing for word in words], bool)
    if kept.shape != (found.sum(), dim):
        return None
    vectors = np.zeros((len(words), dim), np.float32)
    vectors[found] = kept
    return Glove(words, vectors, found)
