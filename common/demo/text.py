"""What the speakers say, drawn from sentences.csv, of which each line has several readings."""

import re
import string
from functools import cache
from pathlib import Path

import numpy as np

from common.files import read_csv

EMOTIONS = ("angry", "happy", "sad", "neutral")
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)|\{(\w+)\}")


@cache
def sentences():
    """{kind: lines of sentences.csv}."""
    bank = {}
    for row in read_csv(Path(__file__).with_name("sentences.csv")):
        bank.setdefault(row["kind"], []).append(row["text"])
    return bank


def all_sentences():
    """The lines that fit any mood, then those of each emotion."""
    return [line for kind in ("any", *EMOTIONS) for line in sentences()[kind]]


def fill(line, rng):
    """Choose among the alternatives and fillers of a line; returns it as it is said."""

    def pick(match):
        options = match[1].split("|") if match[1] else sentences()[match[2]]
        return options[rng.integers(len(options))]

    return CHOICE.sub(pick, line)


def choose(weights, rng):
    """A key of {key: weight}."""
    shares = np.array(list(weights.values()), float)
    return list(weights)[rng.choice(len(shares), p=shares / shares.sum())]


def draw_name(rng):
    """An id as YouTube's: 11 characters."""
    return "".join(rng.choice(list(string.ascii_letters + string.digits + "-_"), 11))
