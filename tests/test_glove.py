"""GloVe text files with every oddity that the official and the repackaged ones have."""

import os

import numpy as np
import pytest

from common.errors import UserError
from common.khare import glove
from common.khare.glove import coverage, read_glove


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


def firsts(found):
    """{word: which line its vector came from}, None where it has none."""
    return {
        word: round(float(found.vectors[row, 0] - 0.25)) if found.found[row] else None
        for word, row in found.row.items()
    }


def test_only_wanted_words_each_with_its_vector(tmp_path):
    path = write(tmp_path / "glove.txt", [",", "the", "cat", "dog"])
    found = read_glove(path, ["dog", "the", "dog", "absent"], 4)
    assert found.words == ("absent", "dog", "the") and found.found.tolist() == [False, True, True]
    assert found.vectors.dtype == np.float32 and found.vectors.tolist() == [[0] * 4, [3.25] * 4, [1.25] * 4]
    empty = read_glove(path, [], 4)
    assert empty.vectors.shape == (0, 4) and empty.words == ()


def test_the_published_dimension_is_the_default(tmp_path):
    assert read_glove(write(tmp_path / "glove.txt", ["a", "b"], 300), ["b"]).vectors.shape == (1, 300)


def test_exact_case_goes_before_lower_case(tmp_path):
    path = write(tmp_path / "glove.txt", ["us", "US", "apple", "Bob"])
    assert firsts(read_glove(path, ["US", "us", "APPLE", "bob", "Us"], 4)) == {
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
    assert firsts(read_glove(path, [".", ". . .", "at", "the", "5", "3", "at name@domain.com"], 4)) == {
        ".": 0,
        ". . .": 1,
        "at": None,
        "the": 3,
        "5": 5,
        "3": None,
        "at name@domain.com": 2,
    }
    assert firsts(read_glove(path, [". . .", "3 1/2"], 4)) == {". . .": 1, "3 1/2": 6}


def test_other_blanks_are_part_of_a_token(tmp_path):
    odd = ["a\u00a0b", "c\u0085d", "e\u2028f", "g\x0bh", "i\x1cj", "k\rl", "caf\u00e9"]
    path = write(tmp_path / "glove.txt", ["x", *odd, b"\xff\xfe", "last"])
    found = firsts(read_glove(path, [*odd, "last", "b", "a"], 4))
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
    assert firsts(read_glove(path, ["one", "three", "3"], 4)) == {"one": 0, "three": 2, "3": None}


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "no vectors in it"),
        (b"PK\x03\x04 the archive", "still packed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"the 1 2 3\ncat 1 2 3\n", "its vectors have 3 numbers, not 4"),
        (b"the 1 2 3 4 5\ncat 1 2 3 4 5\n", "its vectors have 5 numbers, not 4"),
        (b"2 300\nthe 1 2 3 4\n", "not 4; choose the file of 4 dimensions"),
        (
            b"the 1 2 3 4\n" * 12 + b"cat 1 2",
            "glove.txt:13: 2 numbers after the token, not 4; the file is cut off",
        ),
        (b"dog 1 2 3 4\n" * 12 + b"the 1 2 x 4\n", "glove.txt:13: could not convert"),
        (b"dog 1 2 3 4\n" * 12 + b"the 1 2 nan 4\n", "glove.txt:13: a number is not finite"),
        (b"<html><body>404 not found</body></html>\n", "its vectors have 0 numbers"),
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
    first = read_glove(path, ["two", "none"], 4, cache)
    assert sorted(file.suffix for file in cache.iterdir()) == [".json", ".npy"]

    def opened(*_):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr(glove, "_read_vectors", opened)
        again = read_glove(path, ["none", "two"], 4, cache)
        assert again.words == first.words and (again.vectors == first.vectors).all()
        assert (again.found == first.found).all()
        with pytest.raises(AssertionError, match="read again"):  # other words
            read_glove(path, ["one", "none"], 4, cache)
        os.utime(path, ns=(0, 0))
        with pytest.raises(AssertionError, match="read again"):  # another file
            read_glove(path, ["none", "two"], 4, cache)


def test_a_damaged_cache_is_read_again(tmp_path):
    path, cache = write(tmp_path / "glove.txt", ["one", "two"]), tmp_path / "glove"
    expected = read_glove(path, ["two", "none"], 4, cache).vectors
    np.save(tmp_path / "other.npy", np.zeros((2, 4), np.float32))
    other = (tmp_path / "other.npy").read_bytes()
    for suffix, content in (
        (".npy", b"half"),
        (".npy", other),
        (".npy", b""),
        (".json", b"{"),
        (".json", b"{}"),
        (".npy", None),
    ):
        [file] = cache.glob(f"*{suffix}")
        file.unlink() if content is None else file.write_bytes(content)
        assert (read_glove(path, ["two", "none"], 4, cache).vectors == expected).all()
        assert (read_glove(path, ["two", "none"], 4, cache).vectors == expected).all()


# ---- Coverage ---------------------------------------------------------------------------------


def test_coverage_counts_types_and_running_words(tmp_path):
    path = write(tmp_path / "glove.txt", ["one", "two"])
    counts = {"one": 5, "Two": 2, "umm": 3, "uhh": 3, "zzz": 7}
    found = coverage(read_glove(path, counts, 4), counts)
    assert (found.types, found.types_found, found.tokens, found.tokens_found) == (5, 2, 20, 7)
    assert found.missing == [("zzz", 7), ("uhh", 3), ("umm", 3)]
    assert str(found) == (
        "2 of 5 words have a GloVe vector (40.0%), 7 of 20 running words (35.0%); "
        "most frequent without: zzz 7, uhh 3, umm 3"
    )
    assert "0 of 0 words" in str(coverage(read_glove(path, [], 4), {}))
