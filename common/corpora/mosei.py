"""Reader of CMU-MOSEI: segments with six emotion scores, their words with times, the official folds.

Zadeh et al. 2018, as Khare et al. use it (Sec. 3.1). Labels and words come from the SDK's .csd files, which are HDF5;
transcripts and recordings from the raw release, where it is there. A turn is a segment of a longer recording that stays
where it lies: its audio and video name the full recording, its start_s and end_s are times in it.
"""

import ast
import csv
import io
import json
import math
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from common.corpora.release import (
    Problem,
    Release,
    SourceTurn,
    compare_counts,
    number_turns,
    read_lines,
    require_folder,
)
from common.errors import UserError
from common.files import read_csv, write_csv
from common.manifest import Turn
from common.media import LFS_POINTER, MediaError, check_rate, probe
from common.splits import OFFICIAL

CORPORA = ("mosei", "demo_mosei")  # names that 01 prepares in this layout
EMOTIONS = (
    "happy",
    "sad",
    "anger",
    "surprise",
    "disgust",
    "fear",
)  # order of the labels csd and of the paper
SCORES = ("sentiment", *EMOTIONS)  # columns of the labels csd
SCORE_RANGES = np.array([[-3, 3]] + [[0, 3]] * len(EMOTIONS))
SEGMENT_COUNTS = {"train": 16327, "dev": 1871, "test": 4662}
VIDEO_COUNTS = {"train": 2249, "dev": 300, "test": 678}  # two of the last have no labels
LABELS_CSD, WORDS_CSD = "CMU_MOSEI_Labels.csd", "CMU_MOSEI_TimestampedWords.csd"
FOLDS_FILE = "cmu_mosei_std_folds.py"
SDK = "CMU-MultiComp-Lab/CMU-MultimodalSDK on GitHub"
SPLIT_NAMES = {
    "train": "train",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "dev": "dev",
    "test": "test",
}
TRANSCRIPT_LINE = re.compile(
    r"^(.+?)___(\d+)___([-\d.]+)___([-\d.]+)___(.*)$"
)  # an id may hold or end with _
TRANSCRIPT_MAX_BYTES = 1 << 20  # other text files below the root, such as word vectors, are not read
SILENCE = "sp"
JOIN_TOLERANCE_S = 0.05  # label rows and transcript lines state the same times with different digits
END_TOLERANCE_S = 0.5  # a segment may end this much after its recording before it is a problem
PROBE_THREADS = 8  # headers are waited for, not computed
ID = r"[\w-]+"


@dataclass
class MoseiRelease(Release):
    """A Release with the words of all turns: dicts utterance_id, word, start_s, end_s, on the clip's own clock."""

    words: list = field(default_factory=list)


@dataclass
class Segment:
    """A labelled stretch of a video: `scores` (7,) as SCORES; k is its row in the labels csd, clip the transcript's."""

    video_id: str
    k: int
    start_s: float
    end_s: float
    scores: np.ndarray
    clip: str = ""
    text: str = ""


@dataclass
class Line:
    """A line of a transcript."""

    clip: str
    start_s: float
    end_s: float
    text: str


@dataclass
class Words:
    """The words of a video by start time: words (W,), start_s (W,), end_s (W,)."""

    words: list
    start_s: np.ndarray
    end_s: np.ndarray


def read_mosei(root, folds):
    """Read CMU-MOSEI in place, from whatever of it lies below `root`; mirrors rename its folders.

    root   any folder above the .csd files and, where it is there, the raw release (Transcript, WAV_16000, Combined)
    folds  file or folder with the official folds, see read_folds; "" = looked for below root
    Needs CMU_MOSEI_TimestampedWords.csd, and CMU_MOSEI_Labels.csd or the label tables of the raw release (then with
    its transcripts, which hold the times). The utterance id is <video>[k], k the row in the labels csd, which is
    neither the order in time nor the transcript's clip number. `label` stays "": a segment can have several emotions.
    Extra columns: happy, sad, anger, surprise, disgust, fear (means over the annotators, 0 to 3), sentiment (-3 to 3),
    split (train, dev, test, "" for the videos in no fold), video_id, clip (the transcript's number, "" if unknown).
    Returns a MoseiRelease. Raises UserError for a file that is missing or damaged.
    """
    root = require_folder(root, "CMU-MOSEI").resolve()
    files = _list_files(root)
    split_of, folds_note = _official_folds(folds, files, root)
    release = MoseiRelease((), [], notes=[folds_note], media_in_place=True)
    transcripts = _read_transcripts(files[".txt"], release.problems)
    labels = _csd_path(files, LABELS_CSD)
    segments = (
        _csd_segments(labels, release) if labels else _table_segments(root, files, transcripts, release)
    )
    if labels and transcripts:
        _join_transcripts(segments, transcripts, release)
    path = _csd_path(files, WORDS_CSD)
    if path is None:
        raise UserError(
            f"{root}: no {WORDS_CSD} in it or below, which says when each word is spoken; download it with "
            f"the SDK ({SDK}) or set CORPUS_ROOT to a folder above it"
        )
    _add_turns(segments, read_words_csd(path), split_of, release)
    _add_recordings(release, files)
    if not any(source.turn.extra["split"] for source in release.turns):
        raise UserError(
            f"{folds or root}: none of the {len(release.turns):,} segments is in the official folds read "
            f"from it; give the folds of CMU-MOSEI ({FOLDS_FILE}) as MOSEI_FOLDS"
        )
    release.notes += _counts(release.turns)
    return release


def emotions_of(turn):
    """The names of the emotions whose score is above 0, which counts as present (Khare et al., Sec. 3.1)."""
    return [name for name in EMOTIONS if float(turn.extra[name]) > 0]


def recording_span(turn):
    """(start_s, end_s) of a turn within its own audio and video files; (None, None) where it is the whole of them."""
    return (turn.start_s, turn.end_s) if turn.extra.get("video_id") else (None, None)


# ---- Files below the root ---------------------------------------------------------------------


def _list_files(root):
    """{ending: paths} of all visible files in or below root, the outermost first; links are followed, once each."""
    files, seen = defaultdict(list), set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            for name in names:
                if not name.startswith("."):
                    files[os.path.splitext(name)[1].lower()].append(Path(folder, name))
    for paths in files.values():
        paths.sort(key=lambda path: (len(path.parts), path))
    return files


def _csd_path(files, name):
    return next((path for path in files[".csd"] if path.name.lower() == name.lower()), None)


def _by_video(paths, folder):
    """{stem: path}, of several the one below a folder of this name; not those of the release's cut segments."""
    found = {}
    for path in sorted(paths, key=lambda path: folder not in [part.lower() for part in path.parts]):
        if "segmented" not in [part.lower() for part in path.parts]:
            found.setdefault(path.stem, path)
    return found


# ---- Computational sequences (.csd) -----------------------------------------------------------


@contextmanager
def _open_csd(path):
    """(root name, its group) of a csd; UserError where it cannot be read.

    The root name is the only key at the top and need not be the file's name: MOSI's COVAREP is misspelt.
    """
    remedy = f"download it again with the SDK ({SDK})"
    with open(path, "rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise UserError(
            f"{path}: a git-lfs pointer, not the file itself; run git lfs pull in its repository, or {remedy}"
        )
    try:
        with h5py.File(path, "r", locking=False) as file:  # some network drives refuse locks
            name = next(iter(file), None)
            if name is None or not isinstance(file[name], h5py.Group) or "data" not in file[name]:
                raise UserError(f"{path}: HDF5, but not a csd: no <root name>/data in it; {remedy}")
            yield name, file[name]
    except (OSError, RuntimeError) as error:  # what HDF5 raises for a truncated or damaged file
        raise UserError(
            f"{path}: empty, truncated or not HDF5 ({str(error).splitlines()[0]}); {remedy}"
        ) from error


def read_csd(path):
    """Yield (entry, features (T, D...), intervals (T, 2) seconds in the full video) of a csd, as they are stored.

    entry  a video id, or <video id>[k] in an aligned csd: see video_of
    Raises UserError for a damaged file, and where features and intervals are not of one length.
    """
    with _open_csd(path) as (_, group):
        for entry in group["data"]:
            item = group["data"][entry]
            if not isinstance(item, h5py.Group) or not {"features", "intervals"} <= set(item):
                raise UserError(f"{path}: entry {entry} lacks features or intervals; download it again")
            features, intervals = item["features"][()], np.asarray(item["intervals"][()], np.float64)
            if intervals.shape != (len(features), 2):
                raise UserError(
                    f"{path}: entry {entry} has {len(features)} features and intervals of shape "
                    f"{intervals.shape}; download it again"
                )
            yield entry, features, intervals


def read_features(path):
    """read_csd for numbers: features float32, -inf, inf and NaN replaced by 0 (COVAREP holds them)."""
    for entry, features, intervals in read_csd(path):
        yield entry, np.nan_to_num(features.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0), intervals


def read_metadata(path):
    """(root name, {key: value}) of a csd; values are JSON where they can be read so, else text."""
    with _open_csd(path) as (name, group):
        found = {key: np.ravel(group["metadata"][key][()]) for key in group.get("metadata", ())}
    return name, {key: _json_or_text(values[0]) for key, values in found.items() if len(values)}


def _json_or_text(value):
    text = _text(value)
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value):
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")


def video_of(entry):
    """ "abc" for the entry "abc" and for "abc[3]" of an aligned csd."""
    return entry[: entry.rindex("[")] if re.search(r"\[\d+\]$", entry) else entry


def read_words_csd(path):
    """{video id: Words} of a csd of time-stamped words, without its silences; raises UserError as read_csd.

    In an aligned csd the segments of a video overlap, so that a word can be there twice: it is kept once.
    """
    found = defaultdict(set)
    for entry, features, intervals in read_csd(path):
        words = [_text(np.ravel(row)[0]).strip("\0 ") for row in features]  # bytes, shape (T, 1)
        found[video_of(entry)].update(
            (start_s, end_s, word)
            for (start_s, end_s), word in zip(intervals.tolist(), words, strict=True)
            if word not in (SILENCE, "") and math.isfinite(start_s + end_s)
        )
    return {
        video_id: Words(
            [word for _, _, word in sorted(rows)],
            np.array([row[0] for row in sorted(rows)]),
            np.array([row[1] for row in sorted(rows)]),
        )
        for video_id, rows in found.items()
        if rows
    }


# ---- Segments and their scores ----------------------------------------------------------------


def _csd_segments(path, release):
    """The Segments of the labels csd."""
    segments, n_clamped = {}, 0
    for entry, features, intervals in read_csd(path):
        if np.ndim(features) != 2 or features.shape[1] != len(SCORES):
            raise UserError(
                f"{path}: entry {entry} has scores of shape {np.shape(features)}, not (rows, {len(SCORES)})"
                f" for {', '.join(SCORES)}; use the {LABELS_CSD} of all labels"
            )
        video_id = video_of(entry)
        first = int(entry[len(video_id) + 1 : -1]) if entry != video_id else 0
        for k, (scores, (start_s, end_s)) in enumerate(zip(features, intervals.tolist(), strict=True), first):
            segment = Segment(video_id, k, max(0.0, start_s), end_s, np.asarray(scores, np.float64))
            if _is_sound(segment, (video_id, k) in segments, path, release.problems):
                segments[video_id, k] = segment
                n_clamped += start_s < 0
    name, facts = read_metadata(path)
    release.notes.append(
        f"labels from {path.name}: root name {name!r}, version "
        f"{facts.get('computational sequence version', 'not stated')}"
    )
    if n_clamped:
        release.notes.append(f"{n_clamped:,} segments start before their video does: set to 0 s")
    return list(segments.values())


def _is_sound(segment, is_repeated, path, problems):
    """False, with a Problem, for a label row that cannot be used."""
    scores, times = segment.scores, (segment.start_s, segment.end_s)
    problem = ""
    if is_repeated:
        problem = "listed twice; the second is left out"
    elif not np.isfinite([*scores, *times]).all():
        problem = "a score or time is not a number; left out"
    elif ((scores < SCORE_RANGES[:, 0]) | (scores > SCORE_RANGES[:, 1])).any():
        problem = "a score lies outside its scale (sentiment -3 to 3, emotions 0 to 3); left out"
    elif segment.end_s <= segment.start_s:
        problem = f"ends at {segment.end_s:.2f} s, not after its start; left out"
    if problem:
        problems.append(
            Problem(f"{segment.video_id}[{segment.k}]", str(path), problem, "compare with the release")
        )
    return not problem


def _table_segments(root, files, transcripts, release):
    """The Segments of the raw release's label tables (Mechanical Turk: one row per annotator), with transcripts' times.

    A clip's score is the mean over its annotators, as in the csd; k is the clip number, since the csd's is not known.
    """
    answers, sources = defaultdict(list), {}
    for path in files[".csv"]:
        for row in _answer_rows(path):
            video_id, clip = row["Input.VIDEO_ID"].strip().rsplit("/", 1)[-1], row["Input.CLIP"].strip()
            answers[video_id, clip].append([_number(row.get(f"Answer.{name}")) for name in SCORES])
            sources[video_id, clip] = path
    if not answers:
        raise UserError(
            f"{root}: neither {LABELS_CSD} nor label tables (csv with Input.VIDEO_ID, Answer.happiness) in "
            f"it or below; download the csd with the SDK ({SDK}) or set CORPUS_ROOT to a folder above it"
        )
    if not transcripts:
        raise UserError(
            f"{root}: label tables, but no transcripts (<video>.txt with lines <video>___<clip>___<start>"
            f"___<end>___<text>), which hold the times of the clips; unpack Transcript or add {LABELS_CSD}"
        )
    release.notes.append(f"no {LABELS_CSD}: scores are means over the annotators of the label tables")
    segments = []
    for (video_id, clip), rows in sorted(answers.items()):
        lines = [line for line in transcripts.get(video_id, ()) if line.clip.lstrip("0") == clip.lstrip("0")]
        if not lines or not clip.isdigit():
            release.problems.append(
                Problem(
                    f"{video_id}[{clip}]",
                    str(sources[video_id, clip]),
                    "no transcript line of this clip, so no times; left out",
                    "unpack Transcript completely",
                )
            )
            continue
        scores = _mean_scores(rows)
        segment = Segment(
            video_id,
            int(clip),
            max(0.0, lines[0].start_s),
            lines[0].end_s,
            scores,
            lines[0].clip,
            lines[0].text,
        )
        if _is_sound(segment, False, sources[video_id, clip], release.problems):
            segments.append(segment)
    return segments


# The tables' names of SCORES.
ANSWERS = dict(
    zip(SCORES, ("sentiment", "happiness", "sadness", "anger", "surprise", "disgust", "fear"), strict=True)
)


def _answer_rows(path):
    """The rows of a label table as dicts whose answers go by SCORES' names; [] for any other csv."""
    rows = csv.DictReader(io.StringIO("\n".join(read_lines(path)), newline=""))
    if not {"Input.VIDEO_ID", "Input.CLIP"} <= set(rows.fieldnames or ()):
        return []
    renamed = {f"Answer.{theirs}": f"Answer.{ours}" for ours, theirs in ANSWERS.items()}
    rows = ({renamed.get(key, key): value for key, value in row.items()} for row in rows)
    return [row for row in rows if row["Input.VIDEO_ID"] and row["Input.CLIP"]]


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.nan


def _mean_scores(rows):
    """Mean over annotators (7,), of those who answered; NaN where nobody did."""
    rows = np.array(rows)
    answered = np.isfinite(rows)
    return np.where(answered, rows, 0).sum(0) / np.where(answered.any(0), answered.sum(0), np.nan)


# ---- Transcripts ------------------------------------------------------------------------------


def _read_transcripts(paths, problems):
    """{video id: Lines} of the files that hold transcript lines; others, such as full transcripts, are passed over."""
    found = {}
    for path in sorted(paths, key=lambda path: "segmented" not in [part.lower() for part in path.parts]):
        if path.stem in found or path.stat().st_size > TRANSCRIPT_MAX_BYTES:
            continue
        rows = [
            (number, line, _transcript_line(line, path.stem))
            for number, line in enumerate(read_lines(path), 1)
            if line.strip()
        ]
        if any(TRANSCRIPT_LINE.match(line) for _, line, _ in rows):
            found[path.stem] = [line for _, _, line in rows if line]
            problems += [
                Problem(
                    "",
                    f"{path}:{number}",
                    "not a transcript line of this video; left out",
                    "lines are <video>___<clip>___<start>___<end>___<text>",
                )
                for number, _, line in rows
                if line is None
            ]
    return found


def _transcript_line(text, video_id):
    match = TRANSCRIPT_LINE.match(text.strip())
    start_s, end_s = (_number(match[i]) for i in (3, 4)) if match else (np.nan, np.nan)
    if not match or match[1] != video_id or not np.isfinite([start_s, end_s]).all():
        return None
    return Line(match[2], start_s, end_s, match[5].strip())


def _join_transcripts(segments, transcripts, release):
    """Give segments the text and clip number of the transcript line at the same times.

    By time, since the rows of the csd are in no order: of several candidates the nearest, each line once.
    """
    by_video = defaultdict(list)
    for segment in segments:
        by_video[segment.video_id].append(segment)
    for video_id, own in by_video.items():
        lines = transcripts.get(video_id, [])
        pairs = sorted(
            (_distance_s(segment, line), i, j)
            for i, segment in enumerate(own)
            for j, line in enumerate(lines)
        )
        rows, used = set(), set()
        for distance_s, i, j in pairs:
            if distance_s <= JOIN_TOLERANCE_S and i not in rows and j not in used:
                rows.add(i)
                used.add(j)
                own[i].clip, own[i].text = lines[j].clip, lines[j].text
    joined = sum(bool(segment.clip) for segment in segments)
    release.notes.append(f"transcripts: {joined:,} of {len(segments):,} segments have a line at their times")
    release.problems += [
        Problem(
            f"{s.video_id}[{s.k}]",
            "",
            "no transcript line at its times; text from the words csd",
            "unpack Transcript completely",
        )
        for s in segments
        if not s.clip
    ]


def _distance_s(segment, line):
    """How far the times of a label row and a line are apart; both may start before 0."""
    return max(abs(segment.start_s - max(0.0, line.start_s)), abs(segment.end_s - line.end_s))


# ---- Official folds ---------------------------------------------------------------------------


def _official_folds(folds, files, root):
    """({video id: split}, a note), from the file or folder given or found below root."""
    path = (
        Path(folds)
        if folds
        else next(
            (path for path in files[".py"] if path.name == FOLDS_FILE),
            next(
                (
                    path.parent
                    for path in (*files[".txt"], *files[".csv"])
                    if path.stem == "standard_train_fold"
                ),
                None,
            ),
        )
    )
    if path is None or not path.exists():
        raise UserError(
            f"{path or root}: {'no such file' if path else 'no official folds in it or below'}; copy "
            f"mmsdk/mmdatasdk/dataset/standard_datasets/CMU_MOSEI/{FOLDS_FILE} of the SDK ({SDK}) and set "
            "MOSEI_FOLDS to it"
        )
    split_of = read_folds(path)
    counts = Counter(split_of.values())
    return split_of, f"folds from {path.name}: " + "; ".join(
        compare_counts(f"{name} videos", counts[name], VIDEO_COUNTS[name]) for name in OFFICIAL
    )


def read_folds(path):
    """{video id: "train", "dev" or "test"} of the official folds; ids are text, however numeric.

    path  the SDK's cmu_mosei_std_folds.py, which is parsed and never run; or a folder with a text or csv file of ids
          per fold (standard_train_fold.txt, train.csv, ...); or one csv with a video id and a split on each row
    Raises UserError for a file that cannot be read so, a fold without ids and an id in two folds.
    """
    path = Path(path)
    if path.is_dir():
        pairs = _folds_of_folder(path)
    else:
        pairs = _folds_of_python(path) if path.suffix == ".py" else _folds_of_csv(path)
    split_of = {}
    for video_id, split in pairs:
        if split_of.setdefault(video_id, split) != split:
            raise UserError(
                f"{path}: video {video_id} is in {split_of[video_id]} and in {split}; copy the SDK's "
                f"{FOLDS_FILE} again"
            )
    for split in OFFICIAL:
        if split not in split_of.values():
            raise UserError(
                f"{path}: no ids of the {split} fold in it; use the SDK's {FOLDS_FILE}, a folder with "
                "standard_{train,valid,test}_fold.txt, or a csv with video id and split"
            )
    return split_of


def _folds_of_python(path):
    try:
        nodes = ast.parse("\n".join(read_lines(path))).body
        lists = {
            target.id: ast.literal_eval(node.value)
            for node in nodes
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and _split_in(target.id)
        }
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not lists of ids ({error}); copy the SDK's {FOLDS_FILE} again") from error
    return [(str(video_id), _split_in(name)) for name, ids in lists.items() for video_id in ids]


def _split_in(name):
    """ "dev" for "standard_valid_fold"; "" where no split is named."""
    return next((SPLIT_NAMES[part] for part in re.split(r"[^a-z]+", name.lower()) if part in SPLIT_NAMES), "")


def _folds_of_folder(path):
    files = [
        file for file in sorted(path.iterdir()) if file.suffix in (".txt", ".csv") and _split_in(file.stem)
    ]
    return [
        (video_id, _split_in(file.stem))
        for file in files
        for line in read_lines(file)
        for video_id in re.findall(ID, line)
        if video_id not in ("id", "video_id")
    ]


def _folds_of_csv(path):
    pairs = []
    for number, line in enumerate(read_lines(path), 1):
        cells = [cell.strip(" \"'") for cell in re.split(r"[,;\t]", line)]
        splits = [SPLIT_NAMES[cell.lower()] for cell in cells if cell.lower() in SPLIT_NAMES]
        ids = [cell for cell in cells if cell and cell.lower() not in SPLIT_NAMES]
        if splits and ids:
            pairs.append((ids[0], splits[0]))
        elif line.strip() and number > 1:  # the first line may name the columns
            raise UserError(
                f"{path}:{number}: no video id with train, valid or test; write one of each per line"
            )
    return pairs


# ---- Turns ------------------------------------------------------------------------------------


def _add_turns(segments, words_of, split_of, release):
    """The turns of the segments, and their words."""
    for segment in segments:
        name = f"{segment.video_id}[{segment.k}]"
        words = clip_words(words_of.get(segment.video_id), segment.start_s, segment.end_s)
        scores = {key: f"{value:.6g}" for key, value in zip(SCORES, segment.scores, strict=True)}
        turn = Turn(
            name,
            segment.video_id,
            0,
            segment.video_id,
            "",
            round(segment.start_s, 4),
            round(segment.end_s, 4),
            text=segment.text or " ".join(word for word, _, _ in words),
            extra={
                **scores,
                "split": split_of.get(segment.video_id, ""),
                "video_id": segment.video_id,
                "clip": segment.clip,
            },
        )
        release.turns.append(SourceTurn(turn))
        release.words += [
            {"utterance_id": name, "word": word, "start_s": start_s, "end_s": end_s}
            for word, start_s, end_s in words
        ]
    number_turns(release.turns)


def clip_words(words, start_s, end_s):
    """The words (word, start_s, end_s) of a segment, on its own clock: those that lie in it by half or more.

    words  Words of the video, or None
    Segments overlap a little; by its middle a word at a border belongs to the side where most of it is heard.
    """
    if words is None:
        return []
    middle_s = (words.start_s + words.end_s) / 2
    return [
        (
            words.words[i],
            round(max(0.0, float(words.start_s[i]) - start_s), 4),
            round(min(float(words.end_s[i]), end_s) - start_s, 4),
        )
        for i in np.flatnonzero((start_s <= middle_s) & (middle_s < end_s))
    ]


def _add_recordings(release, files):
    """Name each turn's full recordings; where a wav is missing, its sound is taken from the mp4."""
    sounds, videos = _by_video(files[".wav"], "wav_16000"), _by_video(files[".mp4"], "combined")
    ids = sorted({source.turn.speaker for source in release.turns})
    for source in release.turns:
        turn = source.turn
        turn.audio = str(sounds.get(turn.speaker) or videos.get(turn.speaker) or "")
        turn.video = str(videos.get(turn.speaker) or "")
    n_sounds, n_videos = (sum(video_id in found for video_id in ids) for found in (sounds, videos))
    release.notes.append(
        f"recordings of {len(ids):,} videos: {n_sounds:,} wav, {n_videos:,} mp4; sound from the mp4 "
        f"of {sum(i in videos and i not in sounds for i in ids):,}"
    )
    for video_id in ids:
        lacks = "recording" if video_id not in {**sounds, **videos} else "mp4"
        if n_sounds or n_videos if lacks == "recording" else n_videos and video_id not in videos:
            release.problems.append(
                Problem(
                    "",
                    f"{video_id}.mp4",
                    f"no {lacks} of this video; its segments are kept without",
                    "unpack the raw release completely",
                )
            )


def _counts(turns):
    """Lines that hold the segments of each fold against the release's, and the emotions in them."""
    lines = []
    for split in OFFICIAL:
        own = [source.turn for source in turns if source.turn.extra["split"] == split]
        present = Counter(name for turn in own for name in emotions_of(turn))
        lines.append(
            f"{compare_counts(f'{split} segments', len(own), SEGMENT_COUNTS[split])} of "
            f"{len({turn.speaker for turn in own}):,} videos: "
            + ", ".join(f"{name} {present[name]:,}" for name in EMOTIONS)
            + f", none {sum(not emotions_of(turn) for turn in own):,}"
        )
    outside = [source.turn for source in turns if not source.turn.extra["split"]]
    lines.append(
        f"in no fold: {len(outside):,} segments of {len({turn.speaker for turn in outside}):,} videos"
    )
    lines.append(
        "labels: several emotions at once, in the columns " + ", ".join(EMOTIONS) + "; `label` stays empty"
    )
    return lines


# ---- Recordings, asked for their lengths -------------------------------------------------------


def check_recordings(turns, rate_hz):
    """Open the header of every recording once, and hold the segments against its length.

    turns    those of read_mosei; a turn's audio or video becomes "" where the file cannot be used or ends too soon
    rate_hz  sampling rate that the later scripts will ask for
    Returns a list of Problem.
    """
    problems, using = [], defaultdict(list)
    for turn in turns:
        for kind in ("audio", "video"):
            if getattr(turn, kind):
                using[getattr(turn, kind), kind].append(turn)
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        lengths = pool.map(partial(_length_s, rate_hz=rate_hz), using)
        for ((path, kind), own), length_s in zip(using.items(), lengths, strict=True):
            if isinstance(length_s, MediaError):
                problems.append(
                    Problem("", path, f"{length_s.reason}; its turns have no {kind}", length_s.remedy)
                )
            for turn in own:
                if isinstance(length_s, MediaError) or 0 < length_s <= turn.start_s:
                    setattr(turn, kind, "")
                if not isinstance(length_s, MediaError) and 0 < length_s < turn.end_s - END_TOLERANCE_S:
                    problems.append(
                        Problem(
                            turn.utterance_id,
                            path,
                            f"lasts {length_s:.2f} s, the segment ends at {turn.end_s:.2f} s",
                            "compare the file with the release",
                        )
                    )
    return problems


def _length_s(item, rate_hz):
    """Seconds of a recording's (path, "audio" or "video"), 0 where it does not say; or the MediaError."""
    path, kind = item
    try:
        info = probe(path)
        if not (info.rate_hz if kind == "audio" else info.width):
            raise MediaError(path, f"no {kind} track", "download it again")
        if kind == "audio":
            check_rate(path, info.rate_hz, rate_hz)
    except MediaError as error:
        return error
    return info.duration_s


# ---- Words beside the manifest ----------------------------------------------------------------


def write_words(folder, words):
    """Write words.csv into a prepared folder: dicts utterance_id, word, start_s, end_s, on each clip's own clock."""
    write_csv(Path(folder) / "words.csv", words, ("utterance_id", "word", "start_s", "end_s"))


def read_words(folder):
    """{utterance_id: [(word, start_s, end_s)]} of a prepared folder's words.csv; a clip without words is not in it."""
    path = Path(folder) / "words.csv"
    words = defaultdict(list)
    try:
        for row in read_csv(path):
            words[row["utterance_id"]].append((row["word"], float(row["start_s"]), float(row["end_s"])))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run 01_prepare_data.py again") from error
    return dict(words)
