"""Readers of corpora, one file per release.

A file `<corpus>.py` here is all that a corpus needs. It declares
    FOLDERS              the usual names of the release's folder, the first of them for messages
    read(root, ...)      its reader, which returns a Release; its options are keyword arguments with defaults
and, as constants, what the release is known to hold, which the reader compares (Release.expect).
A folder with a manifest.csv is read by own.py, whatever it is called.
"""

import pkgutil
from importlib import import_module
from pathlib import Path

from common.files import UserError

HELPERS = ("cut", "own", "prepare", "release")  # files here that are no corpora


def corpus_names():
    """The corpora that are known by name."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS]


def reader_of(corpus):
    """The module of a named corpus, own.py for a folder; UserError for a name that is neither."""
    if "/" in corpus:
        return import_module("common.corpora.own")
    if corpus not in corpus_names():
        folder = f"a folder with a manifest.csv, written with a slash (./{corpus})"
        raise UserError(f"CORPUS={corpus}: choose one of {', '.join(corpus_names())}, or {folder}")
    return import_module(f"common.corpora.{corpus}")


def find_root(corpus, data_root):
    """Where a corpus is looked for: the first of its FOLDERS below <data_root>/raw, or the folder given."""
    if "/" in corpus:
        return Path(corpus)
    places = [Path(data_root) / "raw" / name for name in reader_of(corpus).FOLDERS]
    return next((place for place in places if place.is_dir()), places[0])
