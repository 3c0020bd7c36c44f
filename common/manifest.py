"""The prepared corpus: one row per turn, the same columns whatever the corpus was.

`<DATA_ROOT>/prepared/<corpus>/manifest.csv` is written by 01 and read by every later script.
All turns are in it, since context needs them; a turn outside the label set has an empty label.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from common.errors import UserError
from common.files import file_hash, read_csv, read_json, write_csv, write_json


@dataclass
class Turn:
    """One utterance of one speaker; `audio` and `video` are relative to the prepared folder, "" = none.

    Where a corpus is used in place (VoxCeleb2, CREMA-D, ...), they are absolute paths of its own files. VoxCeleb2 is
    not even opened, so that start_s = end_s = 0 there. Turns of CMU-MOSEI lie at start_s to end_s of such a file.
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
    complete: bool = False  # a genuine release that has its published counts: comparable with papers

    @property
    def labelled(self):
        """The turns that are trained on and scored."""
        return [turn for turn in self.turns if turn.label]

    def fingerprint(self):
        """A hash of manifest.csv: what was made from other turns, texts or labels is not gone on with."""
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
    """Write manifest.csv, sorted by dialogue and turn, and classes.json beside it.

    Turns are numbered by start time, save where the corpus numbers them itself (MELD, whose times are not all in order).
    """
    extra = sorted({name for turn in manifest.turns for name in turn.extra})
    turns = sorted(manifest.turns, key=lambda t: (t.dialogue_id, t.turn, t.start_s, t.utterance_id))
    rows = ({**{name: getattr(turn, name) for name in COLUMNS}, **turn.extra} for turn in turns)
    about = {"corpus": manifest.corpus, "classes": manifest.classes, "complete": manifest.complete}
    write_json(manifest.folder / "classes.json", about)
    write_csv(manifest.folder / "manifest.csv", rows, COLUMNS + tuple(extra))


def read_manifest(data_root, corpus):
    """Read what 01 wrote for a corpus; UserError says how to make it where it is absent or damaged."""
    folder = prepared_folder(data_root, corpus)
    path = folder / "manifest.csv"
    if not path.exists():
        raise UserError(
            f"{path}: the corpus is not prepared; run 01_prepare_data.py with CORPUS={corpus} first"
        )
    about = read_json(folder / "classes.json")
    rows = read_csv(path)
    absent = [name for name in COLUMNS if rows and name not in rows[0]]
    if absent or not rows:
        raise UserError(
            f"{path}: {'no rows' if not rows else 'lacks the columns ' + ', '.join(absent)}; "
            "run 01_prepare_data.py again"
        )
    turns = [_turn(row, path) for row in rows]
    return Manifest(corpus_name(corpus), folder, tuple(about["classes"]), turns, about.get("complete", False))


def _turn(row, path):
    try:
        return Turn(
            turn=int(row["turn"]),
            start_s=float(row["start_s"]),
            end_s=float(row["end_s"]),
            extra={name: value for name, value in row.items() if name not in COLUMNS},
            **{name: row[name] for name in COLUMNS if name not in ("turn", "start_s", "end_s")},
        )
    except ValueError as error:
        raise UserError(
            f"{path}: turn {row['utterance_id']}: {error}; run 01_prepare_data.py again"
        ) from error
