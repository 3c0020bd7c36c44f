"""Corpora that users bring: a folder of recordings, with or without a manifest.csv of one row per turn."""

import codecs
import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import PurePosixPath

from common.corpora import release
from common.files import UserError
from common.manifest import COLUMNS, Turn
from common.media import MediaError, MediaInfo, probe

EMPTY = ("nan", "NaN", "null", "NULL", "None", "N/A", "#N/A", "<NA>")  # what programs write for no value
NAMES = ("speaker", "session", "dialogue_id", "audio", "video")  # columns where that can be no value
NO_LABELS = ("nan", "none", "null", "na", "n/a", "#n/a")  # what programs write for an empty cell
SPLITS = {"training": "train", "valid": "dev", "val": "dev", "validation": "dev", "testing": "test"}
SPLITS |= {name: name for name in ("train", "dev", "test")}
LONGEST_S = 1e6  # seconds
LONGEST_ID = 150  # bytes; it becomes a part of file names
SAME_S = 0.5  # a recording that is longer than its turn by more is a longer one that the turn is cut from


def read(root):
    """Read a folder with a manifest.csv: speaker, label, and any of audio, video, text, one row per turn.

    audio, video are paths relative to the folder. Optional: utterance_id (else numbered), dialogue_id (else
    each row stands alone), turn, session, start_s and end_s in the dialogue, split (train, dev or test).
    Where several rows name one recording, or it is longer than its row says, start_s and end_s are times in
    it, and the turn is cut out. An empty label marks a turn that is context only; without any label all turns
    wait for models of another corpus. Other columns are kept. The classes are the labels in alphabetical
    order. Cells may be separated by commas, semicolons or tabs. No manifest.csv: see `read_recordings`.
    Raises UserError with the row's line number for an absolute path, one that leaves the folder or is no
    file, a repeated id, a missing column or speaker, more cells than columns, or a number that is none.
    """
    root = release.need_folder(root, "corpus")
    path = next((path for path in root.iterdir() if path.name.lower() == "manifest.csv"), None)
    if path is None:
        return read_recordings(root)
    header, rows = _read_rows(path)
    if not rows:
        raise UserError(f"{path}: has no rows; write one for each turn")
    corpus, lines = release.Release(), {}
    for number, (line, row) in enumerate(rows, start=1):
        source = _turn(root, f"{path}:{line}", number, row)
        name = source.turn.utterance_id
        if (as_file := name.casefold()) in lines:  # on Windows and macOS a.wav is A.wav
            what = f"utterance_id {name} is already on line {lines[as_file]}, in upper or lower case"
            raise UserError(f"{path}:{line}: {what}; make it unique")
        lines[as_file] = line
        corpus.turns.append(source)
    for kind in ("audio", "video"):
        _find_parts(corpus, kind)
    labels = Counter(source.turn.label for source in corpus.turns if source.turn.label)
    corpus.classes = tuple(sorted(labels))
    corpus.warnings += _slips(labels, corpus.turns)
    if not labels:
        where = "no row has a label" if "label" in header else f"no column label among {', '.join(header)}"
        corpus.warnings.append(f"{where}: nothing can be trained or tested on this corpus")
    numbered = [bool(row.get("turn", "").strip()) for _, row in rows]
    if not any(numbered):
        corpus.number_turns()
    elif not all(numbered):
        line, _ = rows[numbered.index(False)]
        raise UserError(f"{path}:{line}: no turn, though others have one; number all rows, or none")
    return corpus


def read_recordings(root):
    """Read a folder without a manifest.csv: each recording in or below it is a turn without a label.

    Sound and picture whose names differ in their endings alone are one turn, and so is its text, a .txt of
    that name. The speaker is the folder below root that a recording lies in.
    """
    corpus, by_name, names = release.Release(), defaultdict(list), {}
    for path in release.files_in(root, *release.AUDIO_ENDINGS, *release.VIDEO_ENDINGS):
        by_name[path.relative_to(root).with_suffix("").as_posix()].append(path)
    if not by_name:
        endings = " ".join((*release.AUDIO_ENDINGS, *release.VIDEO_ENDINGS))
        raise UserError(f"{root}: neither a manifest.csv nor recordings ({endings}) in it or below")
    for name, paths in sorted(by_name.items()):
        video = next((path for path in paths if path.suffix.lower() in release.VIDEO_ENDINGS), None)
        sound = video if video and _info(video).rate_hz else None
        audio = next((path for path in paths if path != video), sound)
        text = root / f"{name}.txt"
        words = " ".join(" ".join(release.read_lines(text)).split()) if text.is_file() else ""
        speaker = name.split("/")[0] if "/" in name else root.resolve().name
        utterance_id = release.file_name(name.replace("/", "-"))
        if len(utterance_id.encode()) > LONGEST_ID:
            raise UserError(f"{root}: {name}: a name of more than {LONGEST_ID} bytes; shorten it")
        if (as_file := utterance_id.casefold()) in names:  # as in `read`
            what = f"{name} and {names[as_file]} would both be called {utterance_id}"
            raise UserError(f"{root}: {what}; rename one of them")
        names[as_file] = name
        corpus.turns.append(release.single(utterance_id, speaker, audio, video, words))
        if len(paths) > 1 + bool(video and audio != video):
            corpus.warnings.append(f"{name}: several recordings of this name; {audio or video} is taken")
    corpus.notes.append(f"no manifest.csv: {len(corpus.turns):,} recordings without labels, one turn each")
    return corpus


def _info(path):
    """What a recording says about itself; nothing where it is unreadable, which is found when it is read."""
    with suppress(MediaError):
        return probe(path)
    return MediaInfo()


def _read_rows(path):
    """(column names, [(line, {column: cell})]) of a table as spreadsheets write it, without empty rows."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as CSV in UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}:{line}: holds a NUL character; delete it or save the table again")
    delimiter = max(",;\t|", key=text.lstrip().split("\n")[0].count)
    header, rows = None, []
    for line, cells in _csv_lines(path, text, delimiter):
        if header is None and re.match("sep=.?$", "".join(cells)):
            continue  # a hint that spreadsheets understand
        if header is None:
            names, known = [cell.strip() for cell in cells], (*COLUMNS, "split")  # these in any letters
            header = [name.lower() if name.lower() in known else name for name in names]
            _check_header(f"{path}:{line}", header)
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            what = f"{len(cells)} cells, the header has {len(header)}"
            raise UserError(f"{path}:{line}: {what}; put a text with {delimiter!r} in it in double quotes")
        cells += [""] * (len(header) - len(cells))
        rows.append((line, {name: cell for name, cell in zip(header, cells) if name}))
    return header or [], rows


def _csv_lines(path, text, delimiter):
    """Yield (number of its first line, cells) of the rows that are not empty."""
    lines, end = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 0
    try:
        for cells in lines:
            line, end = end + 1, lines.line_num  # quoted cells may go over several lines
            if any(cell.strip() for cell in cells):
                yield line, cells
    except csv.Error as error:
        what = f"a quotation mark is opened and not closed, or doubled ({error})"
        remedy = "quote the whole cell, and double marks within it"
        raise UserError(f"{path}:{end + 1}: {what}; {remedy}") from error


def _check_header(where, header):
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise UserError(f"{where}: column {twice[0]} is there twice; rename one of them")
    absent = [] if "speaker" in header else ["speaker"]
    absent += [] if {"text", "audio", "video"} & {*header} else ["text, audio or video"]
    if absent:
        there = f"the columns are {', '.join(filter(None, header))}; known ones are {', '.join(COLUMNS)}"
        raise UserError(f"{where}: lacks the column {absent[0]}; {there}")


def _turn(root, where, number, row):
    """The turn of one row of a user's manifest; `where` is its file and line."""
    row = {key: "" if key in NAMES and cell.strip() in EMPTY else cell for key, cell in row.items()}
    audio, video = (_recording(root, row.get(kind, ""), f"{where}: {kind}") for kind in ("audio", "video"))
    row = {key: unicodedata.normalize("NFC", cell.strip()) for key, cell in row.items()}
    if not row["speaker"]:
        raise UserError(f"{where}: no speaker; the splits need one on every row")
    name = row.get("utterance_id") or f"utt{number:06d}"
    if not re.fullmatch(r"[\w.+=@-]+", name) or name.startswith(".") or len(name.encode()) > LONGEST_ID:
        what = f"utterance_id {name[:40]!r} becomes a file name"
        raise UserError(f"{where}: {what}; use letters, digits, - and _, at most {LONGEST_ID} bytes of UTF-8")
    if "split" in row:
        row["split"] = SPLITS.get(row["split"].lower(), row["split"])
        if row["split"] not in SPLITS and row.get("label"):
            raise UserError(f"{where}: split {row['split']!r}; write train, dev or test on every row")
    try:
        start_s, end_s = float(row.get("start_s") or 0), float(row.get("end_s") or 0)
        position = float(row.get("turn") or 0)
        if not position.is_integer():
            raise ValueError(f"turn {position:g}")
        if not 0 <= start_s <= max(start_s, end_s) < LONGEST_S or 0 < end_s <= start_s:
            raise ValueError(f"start_s {start_s:g}, end_s {end_s:g}")
    except ValueError as error:
        times = "start_s and end_s are seconds such as 1.5, the later one last"
        raise UserError(f"{where}: {error}; turn is a whole number, {times}") from error
    dialogue_id, session = row.get("dialogue_id") or name, row.get("session", "")
    turn = Turn(name, dialogue_id, int(position), row["speaker"], session, start_s, end_s)
    turn.text, turn.label = row.get("text", ""), row.get("label", "")
    turn.extra = {key: cell for key, cell in row.items() if key not in COLUMNS}
    return release.SourceTurn(turn, audio=audio, video=video)


def _recording(root, cell, where):
    """The path in a cell, None for ""; UserError if it is absolute, leaves root or is no file."""
    text = cell.strip()
    if not text:
        return None
    relative = PurePosixPath(text.replace("\\", "/"))
    if relative.is_absolute() or re.match(r"[A-Za-z]:", text):
        raise UserError(f"{where} {text} is absolute; write it relative to {root}")
    accents = [unicodedata.normalize(form, str(relative)) for form in ("NFC", "NFD")]  # as macOS writes them
    spellings = (root / name for name in (cell, *accents))  # a name may begin with a blank
    path = next((spelling for spelling in spellings if spelling.is_file()), root / relative)
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{where} {text} leaves the folder {root}; keep the recordings inside it")
    if path.exists() and not path.is_file():
        raise UserError(f"{where} {text} is not a file but a folder or a pipe; name a recording")
    return path


def _find_parts(corpus, kind):
    """Give turns that are parts of a longer recording their span in it."""
    by_path, parts = defaultdict(list), set()
    for source in corpus.turns:
        if getattr(source, kind):
            by_path[getattr(source, kind)].append(source)
    for path, own in by_path.items():
        spans = {(source.turn.start_s, source.turn.end_s) for source in own}
        whole = [source.turn.utterance_id for source in own if source.turn.end_s <= source.turn.start_s]
        if whole and len(spans) > 1:
            what = f"several rows name it, of which {whole[0]} has no end_s"
            raise UserError(f"{path}: {what}; give each start_s and end_s in seconds")
        start_s, end_s = min(spans)
        longest_s = max(end_s - SAME_S, end_s - start_s + SAME_S)
        # Several turns lie in it, or one that is shorter than it.
        if not whole and (len(spans) > 1 or _info(path).duration_s > longest_s):
            parts.add(path)
            for source in own:
                setattr(source, f"{kind}_span", (max(0.0, source.turn.start_s), source.turn.end_s))
                source.times_known = True
    if parts:
        n_turns = sum(len(by_path[path]) for path in parts)
        corpus.notes.append(f"{kind}: {n_turns:,} turns are parts of {len(parts):,} longer recordings")


def _slips(labels, turns):
    """Warnings: names that may be one (a speaker would be trained on and tested), cells that may be empty."""
    lines = [f"classes that may be one: {names}" for names in _alike(labels)]
    none = [f"{label} {count:,}" for label, count in sorted(labels.items()) if label.lower() in NO_LABELS]
    if none:
        lines.append(f"a class of this name may be an empty cell: {', '.join(none)}; leave it empty if so")
    speakers = Counter(source.turn.speaker for source in turns)
    lines += [f"speakers that may be one: {names}" for names in _alike(speakers)]
    media = Counter((s.audio or s.video, s.turn.start_s, s.turn.end_s) for s in turns if s.audio or s.video)
    if extra := media.total() - len(media):
        lines.append(f"{extra:,} rows name a recording that another row has, with the same times")
    empty = Counter(s.turn.text for s in turns if s.turn.text.lower() in ("nan", "#n/a", "#value!"))
    return lines + [f"{count:,} texts are {text!r}; leave them empty" for text, count in empty.items()]


def _alike(counts):
    """ "a 3, A 1" of names that differ in case, blanks and marks only, or in how a number is written."""
    spellings = defaultdict(list)
    for name, count in sorted(counts.items()):
        try:
            plain = float(name)
        except ValueError:
            plain = re.sub(r"[\W_]", "", name).casefold() or name
        spellings[plain].append(f"{name} {count:,}")
    return [", ".join(names) for names in spellings.values() if len(names) > 1]
