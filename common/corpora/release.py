"""What a reader of a corpus release returns, and the helpers that all readers share."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.manifest import Problem, Turn  # noqa: F401


@dataclass
class SourceTurn:
    """A turn and where its recordings are in the release; its own audio and video are still "".

    audio_span, video_span  (start_s, end_s) of the turn within the file, None = the whole file
    half                    "left" or "right" of a split-screen video, "" = the whole frame
    times_known             True if turn.start_s and end_s come from the corpus and can be held against the
                            media; otherwise the media's length decides end_s
    """

    turn: Turn
    audio: Path | None = None
    audio_span: tuple | None = None
    video: Path | None = None
    video_span: tuple | None = None
    half: str = ""
    times_known: bool = False


@dataclass
class Release:
    """What a reader found: class names in reporting order, turns, problems, and lines to print about it.

    media_in_place  True where the recordings are read where they lie and nothing is copied. Only the lengths that
                    their headers state are then asked for; not even these where the reader has filled in the turn's
                    own `audio` with the absolute path (VoxCeleb2, a million files)
    """

    classes: tuple
    turns: list
    problems: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    media_in_place: bool = False


def read_lines(path):
    """The lines of a text file in UTF-8, or in Latin-1 where it is not UTF-8."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").split("\n")


def visible_files(folder, pattern="*", recursive=False):
    """Files that match, sorted by path, without hidden ones such as the "._" twins of macOS archives."""
    found = folder.rglob(pattern) if recursive else folder.glob(pattern)
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def require_folder(root, corpus):
    """`root` as a Path; UserError where there is no such folder."""
    if not Path(root).is_dir():
        raise UserError(
            f"{root}: no such folder; put the {corpus} release there or set CORPUS_ROOT to where it is"
        )
    return Path(root)


def number_turns(turns):
    """Number the turns of each dialogue by start time, from 0."""
    position = Counter()
    for source in sorted(turns, key=lambda s: (s.turn.dialogue_id, s.turn.start_s)):  # ties keep their order
        source.turn.turn = position[source.turn.dialogue_id]
        position[source.turn.dialogue_id] += 1
    return turns


def compare_counts(what, found, expected):
    """One line that says whether a count is that of the release, for the notes of a Release."""
    verdict = "as in the release" if found == expected else f"the full release has {expected:,}"
    return f"{what}: {found:,} ({verdict})"
