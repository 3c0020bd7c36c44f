"""GloVe text files with every oddity that the official and the repackaged ones have."""

import gzip
import os
from collections import Counter

import numpy as np
import pytest

from common.files import UserError
from common.khare import words
from common.khare.words import Vectors


def read_glove(path, tokens):
    return words.read_glove(path, tokens, path.parent / "cache")


def write(path, lines, dim=4, header="", end="\n"):
    """lines: tokens (text or bytes); the vector of the i-th is i + 0.25 in all dimensions."""
    content = [header.encode()] if header else []
    content += [
        (token if isinstance(token, bytes) else token.encode())
        + b" "
        + b" ".join([b"%.2f" % (i + 0.25)] * dim)
        for i, token in enumerate(lines)
    ]
    path.write_bytes(end.encode().join(content) + end.encode())
    return path


def firsts(path, tokens):
    """{word: which line its vector came from}, None where it has none."""
    vectors = zip(tokens, read_glove(path, tokens), strict=True)
    return {token: round(float(v[0] - 0.25)) if v.any() else None for token, v in vectors}


def test_only_wanted_words_each_with_its_vector(tmp_path):
    path = write(tmp_path / "glove.txt", [",", "the", "cat", "dog"])
    found = read_glove(path, ["absent", "dog", "the"])
    assert found.dtype == np.float32 and found.tolist() == [[0] * 4, [3.25] * 4, [1.25] * 4]
    assert read_glove(path, []).shape == (0, 4)


@pytest.mark.parametrize("width", [2, 50, 300])
def test_the_width_is_that_of_the_file_packed_or_not(tmp_path, width):
    path = write(tmp_path / "glove.txt", ["a", "b"], width)
    packed = tmp_path / "glove.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        assert read_glove(file, ["b"]).tolist() == [[1.25] * width]


def test_contractions_are_looked_up_whole_in_parts_and_without_apostrophe(tmp_path):
    path = write(tmp_path / "glove.txt", ["do", "n't", "it", "its", "we're", "we", "'re", "\u2026"])
    tokens = ["don't", "it's", "we're", "he's", "...", "we-it", "do's"]
    expected = (0.75, 3.25, 4.25, 0, 7.25, 3.75, 0.25)
    assert read_glove(path, tokens).tolist() == [[x] * 4 for x in expected]


def test_tokens_with_blanks_repeated_tokens_and_numbers(tmp_path):
    path = write(
        tmp_path / "glove.txt", [".", ". . .", "at name@domain.com", "the", "the", "5", "3 1/2", "."]
    )
    assert firsts(path, [".", ". . .", "at", "the", "5", "3", "at name@domain.com"]) == {
        ".": 0,
        ". . .": 1,
        "at": None,
        "the": 3,
        "5": 5,
        "3": None,
        "at name@domain.com": 2,
    }
    assert firsts(path, [". . .", "3 1/2"]) == {". . .": 1, "3 1/2": 6}


def test_other_blanks_are_part_of_a_token(tmp_path):
    odd = ["a\u00a0b", "c\u0085d", "e\u2028f", "g\x0bh", "i\x1cj", "k\rl", "caf\u00e9"]
    path = write(tmp_path / "glove.txt", ["x", *odd, b"\xff\xfe", "last"])
    found = firsts(path, [*odd, "last", "b", "a"])
    assert found == {**{token: i for i, token in enumerate(odd, start=1)}, "last": 9, "b": None, "a": None}


@pytest.mark.parametrize(
    "header, end, before, after",
    [
        ("3 4", "\n", b"", b""),
        ("", "\r\n", b"", b""),
        ("3 4", "\r\n", b"", b""),
        ("", " \n", b"", b""),
        ("", "\n", b"", b"\n\n"),
        ("", "\n", b"\xef\xbb\xbf", b""),
        ("3 4", "\n", b"\xef\xbb\xbf", b""),
    ],
)
def test_repackaged_files(tmp_path, header, end, before, after):
    path = write(tmp_path / "glove.txt", ["one", "two", "three"], header=header, end=end)
    path.write_bytes(before + path.read_bytes() + after)
    assert firsts(path, ["one", "three", "3"]) == {"one": 0, "three": 2, "3": None}


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "no vectors in it"),
        (b"PK\x03\x04 the archive", "unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pull it by git lfs"),
        (b"the 1 2 3 4\n" * 12 + b"cat 1 2", "glove.txt:13: cut off, fewer than 4 numbers"),
        (b"dog 1 2 3 4\n" * 12 + b"the 1 2 x 4\n", "glove.txt:13: could not convert"),
        (b"dog 1 2 3 4\n" * 12 + b"the 1 2 nan 4\n", "a number that is not finite"),
        (b"<html><body>404 not found</body></html>\n", "no vectors in its first line"),
    ],
)
def test_bad_files_are_named(tmp_path, content, what):
    (tmp_path / "glove.txt").write_bytes(content)
    with pytest.raises(UserError, match="glove.txt.*; ") as error:
        read_glove(tmp_path / "glove.txt", ["the"])
    assert what in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_archive_is_named(tmp_path):
    packed = gzip.compress(write(tmp_path / "glove.txt", ["a", "b"] * 500).read_bytes())
    for content in (packed[:-20], b"the 1 2 3 4\n", packed[:40] + b"\0" * 40 + packed[80:]):
        (tmp_path / "glove.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match="glove.txt.gz: .*; "):
            read_glove(tmp_path / "glove.txt.gz", ["z"])


# ---- What is kept -----------------------------------------------------------------------------


def test_a_second_reading_does_not_open_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "glove.txt", ["one", "two"])
    first = read_glove(path, ["none", "two"])

    def opened(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(words, "read_vectors", opened)
    assert (read_glove(path, ["none", "two"]) == first).all()
    with pytest.raises(AssertionError, match="read again"):  # other words
        read_glove(path, ["none", "one"])
    os.utime(path, ns=(0, 0))
    with pytest.raises(AssertionError, match="read again"):  # another file
        read_glove(path, ["none", "two"])


# ---- Coverage ---------------------------------------------------------------------------------


def test_coverage_counts_types_and_running_words(tmp_path):
    path = write(tmp_path / "glove.txt", ["one", "two"])
    counts = Counter({"one": 5, "two": 2, "umm": 3, "uhh": 3, "zzz": 7})
    assert Vectors(counts, path, tmp_path).note == ("2 of 5 words, 7 of 20 running words have a GloVe vector")
    assert "0 of 0 words" in Vectors(Counter(), path, tmp_path).note
