"""Files that are either whole or absent, written to a temporary one and renamed; errors of one line."""

import csv
import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

ELSEWHERE = "choose another DATA_ROOT or RESULTS_ROOT"
IN_THE_WAY = "a file stands where a folder is needed; remove it or choose another folder"
REMEDIES = {
    errno.ENOSPC: f"the disk is full; free some space or {ELSEWHERE}",
    errno.EDQUOT: f"the disk quota is used up; free some space or {ELSEWHERE}",
    errno.EACCES: f"no permission to write there; {ELSEWHERE}",
    errno.EPERM: f"writing there is not permitted; {ELSEWHERE}",
    errno.EROFS: f"the file system is read-only; {ELSEWHERE}",
    errno.ENAMETOOLONG: "the name is too long; shorten the names of folders and ids",
    errno.ENOTDIR: IN_THE_WAY,
    errno.EEXIST: IN_THE_WAY,
}
ABSENT = "no such file; run the script that writes it first"


class UserError(Exception):
    """Something the user can mend: one line that names the file or constant and what to change."""


def faults_of(check, items):
    """The messages of the UserErrors of check(item), each once, so that all that is wrong is told at once."""
    faults = []
    for item in items:
        try:
            check(item)
        except UserError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


@contextmanager
def writing(path):
    """Turn the operating system's refusals to write `path` into a UserError with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise UserError(f"{error.filename or path}: {REMEDIES[error.errno]}") from error


def make_folder(path):
    """Create a folder and its parents and return it as a Path; UserError where that is refused."""
    path = Path(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def free_bytes(folder):
    """What is free on the disk of a folder, which need not be there yet."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def atomic_path(path):
    """Give a temporary path beside `path`; rename it onto `path` if the block succeeds, else remove it."""
    path = Path(path)
    make_folder(path.parent)
    # The suffix stays last: encoders and savers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        with writing(path):
            yield temporary
            if path.is_dir() and temporary.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write a UTF-8 text file whole."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write a value as indented JSON; paths and tuples become strings and lists."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def append_json(path, record):
    """Append one record to a .jsonl file; a line cut off by a kill does not swallow the next one."""
    make_folder(path.parent)
    with writing(path), open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write((json.dumps(record, ensure_ascii=False, default=str) + "\n").encode())


def read_json(path):
    """Read a JSON file; UserError names a file that is absent or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: {ABSENT}") from error
    except ValueError as error:
        remedy = "delete it and run the script that writes it"
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from error


def as_json(value):
    """A value as it comes back from JSON: tuples are lists, paths are strings."""
    return json.loads(json.dumps(value, default=str))


def hash_of(content):
    """A short hash of what is JSON-ready or can be written as text: the identity of data and trainings."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_hash(path):
    """A short hash of a file's bytes, as long as that of `hash_of`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_csv(path, rows, columns):
    """Write dicts as UTF-8 CSV with the given columns; absent keys become empty cells."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """Read a CSV file with a header line into a list of dicts of strings (UTF-8, with or without a mark)."""
    with open_csv(path) as file:
        return list(csv.DictReader(file))


@contextmanager
def open_csv(path):
    """A CSV file to read from; UserError where it is absent or not UTF-8."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: {ABSENT}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


def check_finite(source, weights):
    """UserError where one of the weights {name: tensor} read from `source` holds NaN or infinity."""
    if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise UserError(f"{source}: NaN or infinity in its weights ({bad[0]}); download it again")
