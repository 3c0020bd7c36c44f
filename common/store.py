"""Rows of numbers on disk, memory-mapped and resumable: features, codes, logits, decoded audio and frames.

A store is a folder:

    index.csv     utterance_id,start,rows: where each utterance's rows lie, in the order of writing. Arrays
                  of different lengths have their own columns: audio_start,audio_rows,words_start, ...
    <name>.npy    (N, ...), one array per name; opens with numpy.load
    problems.csv  the utterances that could not be read, with their files and what to do
    meta.json     what made it; "complete" is true when the last utterance is in

A store that somebody else wrote needs only index.csv with the column utterance_id (row i of the arrays is
line i) and the arrays.
"""

import csv
import shutil
from array import array as Numbers  # as small as numpy's, and it grows
from functools import cached_property
from pathlib import Path

import numpy as np

from common.files import UserError, as_json, make_folder, open_csv, read_csv, read_json, write_json, writing
from common.manifest import Problem


class Store:
    """A finished store: `ids`, `positions` {id: i}, `meta`, and `store[name]` (N, ...) memory-mapped."""

    def __init__(self, folder):
        self.folder = Path(folder)
        meta = self.folder / "meta.json"
        self.meta = read_json(meta) if meta.exists() else {}
        if not self.meta.get("complete", True):
            raise UserError(f"{self.folder}: unfinished; run the script that writes it again, it resumes")
        self.ids, self.columns = read_index(self.folder / "index.csv")
        self.positions = {utterance_id: i for i, utterance_id in enumerate(self.ids)}
        if len(self.positions) < len(self.ids):
            raise UserError(f"{self.folder}/index.csv: an utterance_id stands there twice; keep one row each")
        self.arrays = {path.stem: open_array(path) for path in sorted(self.folder.glob("*.npy"))}
        for name, array in self.arrays.items():
            if len(array) < np.add(*self.spans(name)).max():
                raise UserError(f"{self.folder}/{name}.npy: fewer rows than index.csv names; write it again")

    def __reduce__(self):
        return Store, (self.folder,)  # a worker opens the files; pickled, the arrays would be copied

    def __getitem__(self, name):
        return self.arrays[name]

    def __contains__(self, utterance_id):
        return utterance_id in self.positions

    def __len__(self):
        return len(self.ids)

    @cached_property
    def problems(self):
        """{utterance_id: Problem} of what could not be read."""
        path = self.folder / "problems.csv"
        return {row["utterance_id"]: Problem(**row) for row in read_csv(path)} if path.exists() else {}

    def spans(self, name):
        """First row (n,) and number of rows (n,) of every utterance in an array, int64."""
        own = f"{name}_" if f"{name}_start" in self.columns else ""
        return self.columns[f"{own}start"], self.columns[f"{own}rows"]

    def rows(self, utterance_id, name):
        """The rows of one utterance, (rows, ...)."""
        first, count = (part[self.positions[utterance_id]] for part in self.spans(name))
        return self.arrays[name][first : first + count]

    def length(self, utterance_id, name=""):
        """How many rows an utterance has in an array, or in all where they have as many."""
        return int(self.spans(name)[1][self.positions[utterance_id]])


def read_index(path):
    """The ids of an index.csv and its columns of numbers {name: (n,) int64}."""
    with open_csv(path) as file:
        rows = csv.DictReader(file)
        names = [name for name in rows.fieldnames or () if name.endswith(("start", "rows"))]
        ids, columns = [], {name: Numbers("q") for name in names}
        for row in rows:
            ids.append(row.get("utterance_id"))
            for name, numbers in columns.items():
                numbers.append(int(row[name]))
    if not ids or ids[0] is None:
        raise UserError(f"{path}: needs a header with utterance_id and a line per row of the arrays")
    plain = {"start": np.arange(len(ids)), "rows": np.ones(len(ids), np.int64)}  # one row each
    return ids, {name: np.array(numbers) for name, numbers in columns.items()} or plain


def open_array(path):
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: not a plain numpy array ({error}); write it with numpy.save") from error


class StoreWriter:
    """Append rows to a store; a killed writer resumes where it stopped if `meta` is what it was.

    meta  JSON-ready dict that identifies the content; another one makes the store start afresh
    Use `done` to skip utterances that are in, `add` for each, `finish` at the end.
    """

    def __init__(self, folder, meta):
        self.folder, self.meta, self.index = Path(folder), as_json(meta), Path(folder) / "index.csv"
        self.files, self.shapes, self.totals, self.done = {}, {}, {}, set()
        try:
            found = read_json(self.folder / "meta.json")
        except UserError:  # absent or damaged
            found = {}
        self.complete = found.pop("complete", False)
        if found != self.meta or not self._resume():
            self.complete, self.files, self.shapes, self.totals, self.done = False, {}, {}, {}, set()
            shutil.rmtree(self.folder, ignore_errors=True)
            make_folder(self.folder)
            write_json(self.folder / "meta.json", {**self.meta, "complete": False})

    def _resume(self):
        """Trust the index up to its last whole line, cut the arrays back to it; False if they lack rows."""
        text = self.index.read_text(encoding="utf-8") if self.index.exists() else ""
        if text.count("\n") < 2:  # of the header and the first utterance
            return False
        self.index.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        ids, columns = read_index(self.index)
        self.totals = {n.removesuffix("rows"): int(x.sum()) for n, x in columns.items() if n.endswith("rows")}
        self.done = set(ids)
        return all([self._cut_back(path) for path in self.folder.glob("*.npy")])

    def _cut_back(self, path):
        """Open an array and forget the rows that are not in the index; False if it lacks some."""
        self.files[path.stem] = file = open(path, "r+b")
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        self.shapes[path.stem] = dtype, shape[1:]
        end = file.tell() + self._total(path.stem) * dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        if path.stat().st_size < end:
            return False
        file.truncate(end)
        file.seek(end)
        return True

    def _total(self, name):
        return self.totals.get(f"{name}_", self.totals.get("", 0))

    def _write_header(self, name):
        """Numpy leaves room in a header for the number of rows to grow, so that it can be written again."""
        (dtype, shape), file = self.shapes[name], self.files[name]
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (self._total(name), *shape)})

    def add(self, ids, arrays, rows=None):
        """Append utterances.

        ids     list of n utterance ids
        arrays  name -> array (sum of rows, ...), the same names each time
        rows    how many rows each utterance has: None = one each, a list, or a list for each array
        """
        rows = [1] * len(ids) if rows is None else rows
        counts = {f"{name}_": rows[name] for name in arrays} if isinstance(rows, dict) else {"": rows}
        with writing(self.folder):
            for name, array in arrays.items():
                n_rows = sum(counts.get(f"{name}_", counts.get("", ())))
                if name not in self.files:
                    self.files[name] = open(self.folder / f"{name}.npy", "w+b")
                    self.shapes[name] = array.dtype, array.shape[1:]
                    self._write_header(name)
                if self.shapes[name] != (array.dtype, array.shape[1:]) or len(array) != n_rows:
                    raise ValueError(f"{name}: {array.dtype} {array.shape} does not fit {self.shapes[name]}")
                self.files[name].write(np.ascontiguousarray(array).data if array.size else b"")
                self.files[name].flush()
            self._add_to_index(ids, counts)
        self.done.update(ids)

    def _add_to_index(self, ids, counts):
        columns = {"utterance_id": ids}
        for name, numbers in counts.items():
            ends = self.totals.get(name, 0) + np.cumsum(numbers, dtype=np.int64)
            columns |= {f"{name}start": (ends - numbers).tolist(), f"{name}rows": numbers}
            self.totals[name] = int(ends[-1])
        with open(self.index, "a", newline="", encoding="utf-8") as file:
            write = csv.writer(file, lineterminator="\n")
            if not file.tell():
                write.writerow(columns)
            write.writerows(zip(*columns.values()))

    def finish(self):
        """Close the arrays, mark the store complete and return it opened for reading."""
        for name, file in self.files.items():
            with writing(self.folder / f"{name}.npy"):
                self._write_header(name)
                file.close()
        write_json(self.folder / "meta.json", {**self.meta, "complete": True})
        return Store(self.folder)


def rows_of(store, turns):
    """(turns that a store has, their positions (N,)): those that could not be read are not in it."""
    kept = [turn for turn in turns if turn.utterance_id in store]
    return kept, np.array([store.positions[turn.utterance_id] for turn in kept], np.int64)
