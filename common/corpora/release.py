"""What a reader of a corpus release returns, and the helpers that all readers share.

Readers look at names and text only; recordings are opened later. What a release is known to hold is compared
and said, never assumed: anything odd becomes a Problem with the file's name.
"""

import csv
import io
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.files import UserError
from common.manifest import Problem, Turn
from common.media import LFS_POINTER

AUDIO_ENDINGS = (".wav", ".flac", ".m4a", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".aac", ".wma", ".amr")
VIDEO_ENDINGS = (".flv", ".mp4", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".m4v", ".3gp")


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


def single(name, speaker, audio=None, video=None, text="", label="", **extra):
    """The SourceTurn of a recording that stands alone and is as long as its file says."""
    turn = Turn(name, name, 0, speaker, "", 0.0, 0.0, text, label, extra=extra)
    return SourceTurn(turn, audio, video=video)


@dataclass
class Release:
    """What a reader found: class names in reporting order, turns, problems, and lines to print about it.

    emotions        columns with the scores of emotions that may be present together, instead of classes
    media_in_place  True where the recordings are read where they lie. Their headers are asked for lengths,
                    but not where the reader fills in the turn's own absolute `audio` (VoxCeleb2)
    tables          {file name: (rows, columns)}: what else is kept beside the manifest
    checks          one bool per published count that was held against what is there
    """

    classes: tuple = ()
    turns: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    emotions: tuple = ()
    media_in_place: bool = False
    tables: dict = field(default_factory=dict)
    checks: list = field(default_factory=list)

    @property
    def complete(self):
        """True if the release has all of its published counts."""
        return bool(self.checks) and all(self.checks)

    def problem(self, name, file, problem, remedy="none"):
        """Note a Problem of a turn or, with the name "", of a file."""
        self.problems.append(Problem(name, str(file), problem, remedy))

    def read_table(self, path):
        """The rows {column: cell} of a csv file; none, which is a Problem, of one that was not pulled."""
        data = Path(path).read_bytes()
        if data.startswith(LFS_POINTER):
            self.problem("", path, "a git-lfs pointer, not the table", "run git lfs pull in its repository")
            return []
        return list(csv.DictReader(io.StringIO(decode(data), newline="")))

    def expect(self, *counts, before="", after=""):
        """Add a note that holds counts, each (what, found, published), against those of the release."""
        parts = []
        for what, found, published in counts:
            self.checks.append(found == published)
            verdict = "as in the release" if found == published else f"the full release has {published:,}"
            parts.append(f"{what}: {found:,} ({verdict})")
        self.notes.append(before + "; ".join(parts) + after)

    def expect_labels(self, found, published):
        """Hold a Counter of recordings by label against {label: published}; labels that differ get a line."""
        self.expect(("recordings", found.total(), sum(published.values())))
        for label, count in published.items():
            if found[label] != count:
                self.expect((label, found[label], count))

    def number_turns(self):
        """Number the turns of each dialogue by start time, from 0."""
        position = Counter()
        for source in sorted(self.turns, key=lambda s: (s.turn.dialogue_id, s.turn.start_s)):  # stable
            source.turn.turn = position[source.turn.dialogue_id]
            position[source.turn.dialogue_id] += 1


def decode(data):
    """Bytes as text in UTF-8, or UTF-16 with its mark, or else in Latin-1."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_lines(path):
    """The lines of a text file in UTF-8 or Latin-1."""
    return decode(Path(path).read_bytes()).replace("\r\n", "\n").split("\n")


def need_folder(root, corpus):
    """`root` as a Path; UserError where there is no such folder."""
    if not Path(root).is_dir():
        remedy = f"put the {corpus} release there or set CORPUS_ROOT to where it is"
        raise UserError(f"{root}: no such folder; {remedy}")
    return Path(root)


def nothing_in(root, what, remedy):
    """The UserError where a folder holds nothing of a release; remedy: what CORPUS_ROOT should be."""
    return UserError(f"{root}: no {what} in it or below; set CORPUS_ROOT to {remedy}")


def walk(root):
    """os.walk in order of names without hidden ones and macOS' twins; links are followed, each one once."""
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        shown = sorted(name for name in below if not name.startswith((".", "__MACOSX")))
        below[:] = [] if real in seen else shown
        if real not in seen:
            seen.add(real)
            yield Path(folder), below, sorted(name for name in names if not name.startswith("."))


def files_in(root, *endings):
    """Visible files in or below a folder, with these endings where any are given, the outermost first."""
    paths = (folder / name for folder, _, names in walk(root) for name in names)
    found = (path for path in paths if (not endings or path.suffix.lower() in endings) and path.is_file())
    return sorted(found, key=lambda path: (len(path.parts), path))


def by_stem(paths):
    """{name without its last ending: path}; of several the first."""
    found = {}
    for path in paths:
        found.setdefault(path.stem, path)
    return found


def named(paths, patterns, corpus, remedy, release):
    """{stem: path} of those paths whose stem matches a pattern, sorted; other names are Problems."""
    found = by_stem(paths)
    for stem in [stem for stem in found if not any(pattern.fullmatch(stem) for pattern in patterns)]:
        release.problem("", found.pop(stem), f"not a name of {corpus}; left out", remedy)
    return dict(sorted(found.items()))


def file_name(text):
    """A text as an utterance id, which becomes a file name."""
    return re.sub(r"[^\w.+=@-]", "-", text)
