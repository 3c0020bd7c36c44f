"""Rows of numbers on disk, memory-mapped and resumable: features, logits, decoded audio and frames.

A store is a folder:

    index.csv    utterance_id,start,rows    where each utterance's rows lie, in the order of writing
    <name>.npy   (N, ...)                   one array per name, all with the same N; opens with numpy.load
    meta.json    what made it; "complete" is true when the last utterance is in

One row per utterance for features and logits; as many as there are samples or frames for media. A store that
somebody else wrote needs only index.csv with the column utterance_id (row i of the arrays is line i) and the
arrays.
"""

import csv
import shutil
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import make_folder, read_csv, read_json, write_json, writing

HEADER_BYTES = 128  # fixed, so that the header can be rewritten as rows are appended


class Store:
    """A finished store: `ids`, `meta`, `store[name]` (N, ...) memory-mapped, `rows(id)` as a slice of it."""

    def __init__(self, folder):
        self.folder = Path(folder)
        index = read_csv(self.folder / "index.csv")
        if not index or "utterance_id" not in index[0]:
            raise UserError(
                f"{self.folder / 'index.csv'}: needs a header line with utterance_id and a line "
                "per row of the arrays"
            )
        self.ids = [line["utterance_id"] for line in index]
        self.slices = {line["utterance_id"]: _slice(line, i) for i, line in enumerate(index)}
        if len(self.slices) != len(self.ids):
            raise UserError(
                f"{self.folder / 'index.csv'}: an utterance_id stands there twice; keep one row each"
            )
        meta = self.folder / "meta.json"
        self.meta = read_json(meta) if meta.exists() else {}
        if not self.meta.get("complete", True):
            raise UserError(
                f"{self.folder}: unfinished; run the script that writes it again, it goes on where it stopped"
            )
        self.arrays = {path.stem: _open_array(path) for path in sorted(self.folder.glob("*.npy"))}
        end = max(s.stop for s in self.slices.values())
        short = [name for name, array in self.arrays.items() if len(array) < end]
        if short:
            raise UserError(
                f"{self.folder / short[0]}.npy: fewer rows than index.csv names; write the store again"
            )

    def __getitem__(self, name):
        return self.arrays[name]

    def __contains__(self, name):
        return name in self.arrays

    def rows(self, utterance_id, name):
        """The rows of one utterance, shape (rows, ...)."""
        return self.arrays[name][self.slices[utterance_id]]

    def length(self, utterance_id):
        piece = self.slices[utterance_id]
        return piece.stop - piece.start


def _slice(line, position):
    start = int(line.get("start") or position)
    return slice(start, start + int(line.get("rows") or 1))


def _open_array(path):
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: not a plain numpy array ({error}); write it with numpy.save") from error


class StoreWriter:
    """Append rows to a store; a killed writer goes on where it stopped if `meta` is what it was.

    folder   where the store lies
    meta     JSON-ready dict that identifies the contents; another one makes the store start afresh
    Use `done` to skip utterances that are in, `add` for each, `finish` at the end; a finished store can be extended.
    """

    def __init__(self, folder, meta):
        self.folder = Path(folder)
        self.meta = meta
        self.files, self.shapes, self.ids, self.total = {}, {}, [], 0
        self.complete = False
        if self._matches():
            self._resume()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            make_folder(self.folder)
            write_json(self.folder / "meta.json", {**meta, "complete": False})
            with writing(self.folder):
                (self.folder / "index.csv").write_text("utterance_id,start,rows\n", encoding="utf-8")
        self.done = set(self.ids)

    def _matches(self):
        try:
            found = read_json(self.folder / "meta.json")
        except UserError:
            return False
        self.complete = found.pop("complete", False)
        return found == _as_json(self.meta)

    def _resume(self):
        """Trust the index up to its last whole line; arrays are cut back to it."""
        text = (self.folder / "index.csv").read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines = list(csv.DictReader(whole.splitlines()))
        (self.folder / "index.csv").write_text(whole, encoding="utf-8")
        self.ids = [line["utterance_id"] for line in lines]
        self.total = int(lines[-1]["start"]) + int(lines[-1]["rows"]) if lines else 0
        for path in self.folder.glob("*.npy"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            self._attach(path.stem, array.dtype, array.shape[1:])
            self.files[path.stem].truncate(
                HEADER_BYTES + self.total * _row_bytes(array.dtype, array.shape[1:])
            )
            self.files[path.stem].seek(0, 2)

    def _attach(self, name, dtype, shape):
        path = self.folder / f"{name}.npy"
        self.shapes[name] = (np.dtype(dtype), tuple(shape))
        with writing(path):
            self.files[name] = open(path, "r+b" if path.exists() else "w+b")
            if path.stat().st_size < HEADER_BYTES:
                self.files[name].write(_header(dtype, (0, *shape)))

    def add(self, ids, arrays, rows=None):
        """Append utterances.

        ids     list of n utterance ids
        arrays  name -> array (sum of rows, ...), the same names each time
        rows    how many rows each utterance has; None = one each
        """
        rows = rows or [1] * len(ids)
        for name, array in arrays.items():
            array = np.ascontiguousarray(array)
            if name not in self.files:
                self._attach(name, array.dtype, array.shape[1:])
            if self.shapes[name] != (array.dtype, array.shape[1:]) or len(array) != sum(rows):
                raise ValueError(f"{name}: {array.dtype} {array.shape} does not fit {self.shapes[name]}")
            with writing(self.folder / f"{name}.npy"):
                self.files[name].write(array.data if array.size else b"")
                self.files[name].flush()
        with (
            writing(self.folder / "index.csv"),
            open(self.folder / "index.csv", "a", encoding="utf-8") as index,
        ):
            for utterance_id, count in zip(ids, rows):
                index.write(f"{utterance_id},{self.total},{count}\n")
                self.total += count
        # The header is rewritten last: a reader of an unfinished array sees no row that is not indexed.
        for name, (dtype, shape) in self.shapes.items():
            self.files[name].seek(0)
            self.files[name].write(_header(dtype, (self.total, *shape)))
            self.files[name].flush()
            self.files[name].seek(0, 2)
        self.ids += ids
        self.done.update(ids)

    def finish(self):
        """Close the arrays, mark the store complete and return it opened for reading."""
        for file in self.files.values():
            file.close()
        write_json(self.folder / "meta.json", {**self.meta, "complete": True})
        return Store(self.folder)


def open_store(folder):
    """Open a finished store for reading; UserError names what is wrong with it."""
    return Store(folder)


def _as_json(value):
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _row_bytes(dtype, shape):
    return np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))


def _header(dtype, shape):
    """A version-1.0 .npy header of exactly HEADER_BYTES."""
    fields = f"{{'descr': {np.lib.format.dtype_to_descr(np.dtype(dtype))!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return (
        b"\x93NUMPY\x01\x00"
        + (HEADER_BYTES - 10).to_bytes(2, "little")
        + fields.ljust(HEADER_BYTES - 11).encode()
        + b"\n"
    )


def rows_of(store, turns):
    """(turns that a store of clips has, their rows (N,)); clips that could not be read or coded are not in it."""
    kept = []
    for turn in turns:
        try:
            kept.append((turn, store.row_of(turn.utterance_id)))
        except KeyError:
            continue
    return [turn for turn, _ in kept], np.array([row for _, row in kept], np.int64)
