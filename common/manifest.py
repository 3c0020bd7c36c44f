"""The prepared corpus: one row per turn, the same columns whatever the corpus was.

`<DATA_ROOT>/prepared/<corpus>/manifest.csv` is written by 01 and read by every later script.
All turns are in it, since context needs them; a turn outside the label set has an empty label.
"""

import csv
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from common.files import UserError, file_hash, open_csv, read_json, write_csv, write_json

AGAIN = "run 01_prepare_data.py again"


@dataclass(slots=True)  # VoxCeleb2 has a million of them
class Turn:
    """One utterance of one speaker; `audio` and `video` are relative to the prepared folder, "" = none.

    Where a corpus is used in place (VoxCeleb2, CREMA-D, ...), they are absolute paths of its own files.
    VoxCeleb2 is not even opened: start_s = end_s = 0 there. Turns of CMU-MOSEI are spans of such a file.
    """

    utterance_id: str
    dialogue_id: str
    turn: int  # position in the dialogue by start time, from 0
    speaker: str
    session: str  # "" where the corpus has none
    start_s: float  # within the dialogue; 0 where turns stand alone
    end_s: float
    text: str = ""
    label: str = ""  # "" = outside the label set: context only, never scored
    audio: str = ""
    video: str = ""
    extra: dict = field(default_factory=dict)  # further columns, such as raw_label or split

    @property
    def duration_s(self):
        return self.end_s - self.start_s

    @property
    def gender(self):
        """ "female" or "male", where a column or IEMOCAP's names of speakers tell; else ""."""
        in_name = re.fullmatch(r"Ses\d\d([FM])", self.speaker)
        known = self.extra.get("gender") or self.extra.get("sex") or (in_name and in_name[1]) or ""
        return {"f": "female", "m": "male"}.get(known[:1].lower(), "")


COLUMNS = tuple(f.name for f in fields(Turn) if f.name != "extra")


@dataclass
class Problem:
    """Something that a user should know about one turn or file; a row of problems.csv."""

    utterance_id: str
    file: str
    problem: str
    remedy: str = ""


@dataclass
class Manifest:
    """A prepared corpus: its name, folder, class names in reporting order, and turns."""

    corpus: str
    folder: Path
    classes: tuple
    turns: list
    complete: bool = False  # a genuine release with its published counts: comparable with papers
    root: str = ""  # the folder of the release

    @property
    def labelled(self):
        """The turns that are trained on and scored."""
        return [turn for turn in self.turns if turn.label]

    def fingerprint(self):
        """A hash of manifest.csv: what was made from other turns, texts or labels is not resumed."""
        return file_hash(self.folder / "manifest.csv")

    def path(self, relative):
        """Where a media file named in a turn lies; an absolute name stays as it is."""
        return self.folder / relative


def corpus_name(corpus):
    """ "iemocap" for "iemocap", the folder's own name for a folder with a manifest.csv."""
    return Path(corpus).resolve().name if "/" in corpus else corpus


def prepared_folder(data_root, corpus):
    return Path(data_root) / "prepared" / corpus_name(corpus)


def write_manifest(manifest):
    """Write manifest.csv, sorted by dialogue and turn, and classes.json beside it."""
    extra = sorted({name for turn in manifest.turns for name in turn.extra})
    turns = sorted(manifest.turns, key=lambda t: (t.dialogue_id, t.turn, t.start_s, t.utterance_id))
    rows = ({name: getattr(turn, name) for name in COLUMNS} | turn.extra for turn in turns)
    about = {name: getattr(manifest, name) for name in ("corpus", "classes", "complete", "root")}
    write_json(manifest.folder / "classes.json", about)
    write_csv(manifest.folder / "manifest.csv", rows, COLUMNS + tuple(extra))


def read_manifest(data_root, corpus):
    """Read what 01 wrote for a corpus; UserError where it is absent, damaged, or made of another folder."""
    name, folder = corpus_name(corpus), prepared_folder(data_root, corpus)
    path = folder / "manifest.csv"
    if not path.exists():
        remedy = f"run 01_prepare_data.py with CORPUS={corpus} first"
        raise UserError(f"{path}: the corpus is not prepared; {remedy}")
    about = read_json(folder / "classes.json")
    root, complete = about.get("root", ""), about.get("complete", False)
    if root and "/" in corpus and Path(root).resolve() != Path(corpus).resolve():
        raise UserError(f"{folder}: prepared from {root}, not {corpus}; rename a folder or change DATA_ROOT")
    with open_csv(path) as file:
        turns = list(read_turns(csv.reader(file), path))
    if not turns:
        raise UserError(f"{path}: no rows; {AGAIN}")
    return Manifest(name, folder, tuple(about["classes"]), turns, complete, root)


def read_turns(lines, path):
    """The Turns of a manifest's lines, the first of which names the columns; UserError that names `path`."""
    header = next(lines, [])
    if absent := [column for column in COLUMNS if column not in header]:
        raise UserError(f"{path}: lacks the columns {', '.join(absent)}; {AGAIN}")
    at = [header.index(column) for column in COLUMNS]
    more = [(name, i) for i, name in enumerate(header) if name not in COLUMNS]
    for line in filter(None, lines):
        try:
            name, dialogue, turn, speaker, session, start_s, end_s, *rest = (line[i] for i in at)
            numbers = int(turn), sys.intern(speaker), session, float(start_s), float(end_s)
            yield Turn(name, dialogue, *numbers, *rest, {column: line[i] for column, i in more})
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}: turn {line[0]}: {error}; {AGAIN}") from error
