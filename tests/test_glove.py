"""GloVe text files with every oddity that the official and the repackaged ones have."""

import os
from collections import Counter

import numpy as np
import pytest

from common.errors import UserError
from common.khare import words
from common.khare.words import coverage, read_glove


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


def firsts(path, words):
    """{word: which line its vector came from}, None where it has none."""
    vectors = read_glove(path, words, 4)
    return {
        word: round(float(v[0] - 0.25)) if v.any() else None for word, v in zip(words, vectors, strict=True)
    }


def test_only_wanted_words_each_with_its_vector(tmp_path):
    path = write(tmp_path / "glove.txt", [",", "the", "cat", "dog"])
    found = read_glove(path, ["absent", "dog", "the"], 4)
    assert found.dtype == np.float32 and found.tolist() == [[0] * 4, [3.25] * 4, [1.25] * 4]
    assert read_glove(path, [], 4).shape == (0, 4)


def test_the_published_dimension_is_the_default(tmp_path):
    assert read_glove(write(tmp_path / "glove.txt", ["a", "b"], 300), ["b"]).shape == (1, 300)


def test_exact_case_goes_before_lower_case(tmp_path):
    path = write(tmp_path / "glove.txt", ["us", "US", "apple", "Bob"])
    assert firsts(path, ["US", "us", "APPLE", "bob", "Us"]) == {
        "US": 1,
        "us": 0,
        "APPLE": 2,
        "bob": None,
        "Us": 0,
    }


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
        (b"PK\x03\x04 the archive", "packed or"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"the 1 2 3\ncat 1 2 3\n", "3 numbers after the token, not 4"),
        (b"the 1 2 3 4 5\ncat 1 2 3 4 5\n", "5 numbers after the token, not 4"),
        (b"2 300\nthe 1 2 3\n", "3 numbers after the token, not 4"),
        (
            b"the 1 2 3 4\n" * 12 + b"cat 1 2",
            "glove.txt:13: 2 numbers after the token, not 4; the file is cut off",
        ),
        (b"dog 1 2 3 4\n" * 12 + b"the 1 2 x 4\n", "glove.txt:13: could not convert"),
        (b"dog 1 2 3 4\n" * 12 + b"the 1 2 nan 4\n", "glove.txt:13: a number is not finite"),
        (b"<html><body>404 not found</body></html>\n", "0 numbers after the token"),
    ],
)
def test_bad_files_are_named(tmp_path, content, what):
    (tmp_path / "glove.txt").write_bytes(content)
    with pytest.raises(UserError, match="glove.txt.*; ") as error:
        read_glove(tmp_path / "glove.txt", ["the"], 4)
    assert what in str(error.value) and "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="glove.txt: no such file; unpack"):
        read_glove(tmp_path / "glove.txt", ["the"], 4)


# ---- What is kept -----------------------------------------------------------------------------


def test_a_second_reading_does_not_open_the_file(tmp_path, monkeypatch):
    path, cache = write(tmp_path / "glove.txt", ["one", "two"]), tmp_path / "prepared" / "glove"
    first = read_glove(path, ["none", "two"], 4, cache)

    def opened(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(words, "read_vectors", opened)
    assert (read_glove(path, ["none", "two"], 4, cache) == first).all()
    with pytest.raises(AssertionError, match="read again"):  # other words
        read_glove(path, ["none", "one"], 4, cache)
    os.utime(path, ns=(0, 0))
    with pytest.raises(AssertionError, match="read again"):  # another file
        read_glove(path, ["none", "two"], 4, cache)


def test_a_damaged_cache_is_read_again(tmp_path):
    path, cache = write(tmp_path / "glove.txt", ["one", "two"]), tmp_path / "glove"
    expected = read_glove(path, ["none", "two"], 4, cache)
    np.save(tmp_path / "other.npy", np.zeros((3, 4), np.float32))
    for content in (b"half", b"", (tmp_path / "other.npy").read_bytes()):
        [file] = cache.iterdir()
        file.write_bytes(content)
        for _ in range(2):
            assert (read_glove(path, ["none", "two"], 4, cache) == expected).all()


# ---- Coverage ---------------------------------------------------------------------------------


def test_coverage_counts_types_and_running_words(tmp_path):
    path = write(tmp_path / "glove.txt", ["one", "two"])
    counts = Counter({"one": 5, "Two": 2, "umm": 3, "uhh": 3, "zzz": 7})
    found = coverage(list(counts), read_glove(path, list(counts), 4), counts)
    assert found == (
        "2 of 5 words have a GloVe vector (40.0%), 7 of 20 running words (35.0%); "
        "most frequent without: zzz 7, uhh 3, umm 3"
    )
    assert "0 of 0 words" in coverage([], read_glove(path, [], 4), Counter())
