"""CMU-MOSEI, opinions spoken into a camera, with six emotion scores a segment: Zadeh et al. 2018 (FORMATS 2).

As Khare et al. use it (Sec. 3.1). Labels and words come from the SDK's .csd files, which are HDF5;
transcripts and recordings from the raw release, where it is there. A turn is a segment of a longer recording
that stays where it lies: its audio and video name the full recording, its start_s and end_s are times in it.
"""

import csv
import io
import math
import re
from collections import Counter, defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from common.corpora.release import (
    Release,
    SourceTurn,
    decode,
    files_in,
    need_folder,
    number_turns,
    read_lines,
)
from common.files import UserError, read_csv
from common.manifest import Turn
from common.media import LFS_POINTER
from common.splits import OFFICIAL

FOLDERS = ("CMU_MOSEI", "CMU-MOSEI", "MOSEI", "mosei")
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # order of the csd and the paper
SCORES = ("sentiment", *EMOTIONS)  # columns of the labels csd
LOWEST, HIGHEST = np.array([-3, 0, 0, 0, 0, 0, 0]), 3
SEGMENT_COUNTS = {"train": 16327, "dev": 1871, "test": 4662}
VIDEO_COUNTS = {"train": 2249, "dev": 300, "test": 678}  # two of the last have no labels
LABELS_CSD, WORDS_CSD = "CMU_MOSEI_Labels.csd", "CMU_MOSEI_TimestampedWords.csd"
FOLDS_FILE = "cmu_mosei_std_folds.py"
SDK = "CMU-MultiComp-Lab/CMU-MultimodalSDK on GitHub"
DOWNLOAD = f"download it with the SDK ({SDK}) or set CORPUS_ROOT to a folder above it"
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "validation", "val", "dev"), "dev")
TRANSCRIPT_LINE = re.compile(r"^(.+?)___(\d+)___([-\d.]+)___([-\d.]+)___(.*)$")  # an id may end with _
TRANSCRIPT_FORM = "<video>___<clip>___<start>___<end>___<text>"
TRANSCRIPT_MAX_BYTES = 1 << 20  # other text files below the root, such as word vectors, are not read
SILENCE = "sp"
WORD = re.compile(r"[\w-]+")  # ids are words in this sense, quoted or not
JOIN_TOLERANCE_S = 0.05  # label rows and transcript lines state the same times with different digits
Line = namedtuple("Line", "clip start_s end_s text")  # of a transcript
WORD_COLUMNS = ("utterance_id", "word", "start_s", "end_s")


@dataclass
class Segment:
    """A labelled part of a video: scores (7,) as SCORES, k its row in the csd, clip its number."""

    video_id: str
    k: int
    start_s: float
    end_s: float
    scores: np.ndarray
    clip: str = ""
    text: str = ""

    @property
    def name(self):
        return f"{self.video_id}[{self.k}]"


def read(root, folds=""):
    """Read CMU-MOSEI in place, from whatever of it lies below `root`; mirrors rename its folders.

    root   any folder above the .csd files and the raw release (Transcript, WAV_16000, Combined)
    folds  file or folder with the official folds, see read_folds; "" = looked for below root
    Needs CMU_MOSEI_TimestampedWords.csd, and CMU_MOSEI_Labels.csd or the label tables of the raw release
    (then with its transcripts, which hold the times). The utterance id is <video>[k], k the row in the labels
    csd, which is neither the order in time nor the transcript's clip number. `label` stays "": a segment can
    have several emotions. Extra columns: the emotions (means over the annotators, 0 to 3), sentiment (-3 to
    3), split ("" for the videos in no fold), video_id, clip (the transcript's number, "" if unknown).
    Raises UserError for a file that is missing or damaged.
    """
    root = need_folder(root, "CMU-MOSEI").resolve()
    files = defaultdict(list)
    for path in files_in(root):
        files[path.suffix.lower()].append(path)
    release = Release(emotions=EMOTIONS, media_in_place=True)
    split_of = _official_folds(folds, files, root, release)
    transcripts = _read_transcripts(files[".txt"], release)
    csd = {path.name: path for path in reversed(files[".csd"])}
    if LABELS_CSD in csd:
        segments = _csd_segments(csd[LABELS_CSD], release)
        if transcripts:
            _join_transcripts(segments, transcripts, release)
    else:
        segments = _table_segments(root, files[".csv"], transcripts, release)
    if WORDS_CSD not in csd:
        what = f"no {WORDS_CSD} in it or below, which says when each word is spoken"
        raise UserError(f"{root}: {what}; {DOWNLOAD}")
    _add_turns(segments, read_words_csd(csd[WORDS_CSD]), split_of, release)
    _add_recordings(files, release)
    if not any(source.turn.extra["split"] for source in release.turns):
        what = f"none of the {len(release.turns):,} segments is in the official folds read from it"
        raise UserError(f"{folds or root}: {what}; give those of CMU-MOSEI ({FOLDS_FILE}) as MOSEI_FOLDS")
    _compare(release)
    return release


def emotions_of(turn):
    """The names of the emotions whose score is above 0, which counts as present (Khare et al., Sec. 3.1)."""
    return [name for name in EMOTIONS if float(turn.extra[name]) > 0]


def recording_span(turn):
    """(start_s, end_s) of a turn within its audio and video files; (None, None) where it is all of them."""
    return (turn.start_s, turn.end_s) if turn.extra.get("video_id") else (None, None)


# ---- Computational sequences (.csd) -----------------------------------------------------------


def read_csd(path):
    """Yield (entry, features (T, D...), intervals (T, 2) seconds in the full video) of a csd as stored.

    entry  a video id, or <video id>[k] in an aligned csd: see video_of
    The root name is the only key at the top and need not be the file's name: MOSI's COVAREP is misspelt.
    Raises UserError for a damaged file, and where features and intervals are not of one length.
    """
    again = f"download it again with the SDK ({SDK})"
    with open(path, "rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: a git-lfs pointer; run git lfs pull in its repository, or {again}")
    try:
        with h5py.File(path, "r", locking=False) as file:  # some network drives refuse locks
            for entry, item in next(iter(file.values()))["data"].items():
                features, intervals = item["features"][()], np.asarray(item["intervals"][()], np.float64)
                if intervals.shape != (len(features), 2):
                    shapes = f"{len(features)} features and intervals of shape {intervals.shape}"
                    raise UserError(f"{path}: entry {entry} has {shapes}; {again}")
                yield entry, features, intervals
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise UserError(f"{path}: HDF5, but not a csd ({error!r}); {again}") from error
    except (OSError, RuntimeError) as error:  # what HDF5 raises for a truncated or damaged file
        what = str(error).splitlines()[0]
        raise UserError(f"{path}: empty, truncated or not HDF5 ({what}); {again}") from error


def video_of(entry):
    """ "abc" for the entry "abc" and for "abc[3]" of an aligned csd."""
    return entry[: entry.rindex("[")] if re.search(r"\[\d+\]$", entry) else entry


def read_words_csd(path):
    """{video id: (start_s, end_s, word) by time} of a csd of time-stamped words, without silences.

    In an aligned csd the segments of a video overlap, so that a word can be there twice: it is kept once.
    """
    found = defaultdict(set)
    for entry, features, intervals in read_csd(path):
        for row, (start_s, end_s) in zip(features, intervals.tolist(), strict=True):
            word = np.ravel(row)[0]  # bytes, shape (T, 1), or text
            word = (decode(word) if isinstance(word, bytes) else str(word)).strip("\0 ")
            if word not in (SILENCE, "") and math.isfinite(start_s + end_s):
                found[video_of(entry)].add((start_s, end_s, word))
    return {video_id: sorted(rows) for video_id, rows in found.items()}


# ---- Segments and their scores ----------------------------------------------------------------


def _csd_segments(path, release):
    """The Segments of the labels csd."""
    segments, n_clamped = {}, 0
    for entry, features, intervals in read_csd(path):
        if np.ndim(features) != 2 or features.shape[1] != len(SCORES):
            what = f"scores of shape {np.shape(features)}, not (rows, {len(SCORES)}) for {', '.join(SCORES)}"
            raise UserError(f"{path}: entry {entry} has {what}; use the {LABELS_CSD} of all labels")
        video_id = video_of(entry)
        first = int(entry[len(video_id) + 1 : -1]) if entry != video_id else 0
        for k, (scores, (start_s, end_s)) in enumerate(zip(features, intervals.tolist(), strict=True), first):
            segment = Segment(video_id, k, max(0.0, start_s), end_s, np.asarray(scores, np.float64))
            if _is_sound(segment, segment.name in segments, path, release):
                segments[segment.name] = segment
                n_clamped += start_s < 0
    if n_clamped:
        release.notes.append(f"{n_clamped:,} segments start before their video does: set to 0 s")
    return list(segments.values())


def _is_sound(segment, is_repeated, path, release):
    """False, with a Problem, for a label row that cannot be used."""
    scores, problem = segment.scores, ""
    if is_repeated:
        problem = "listed twice; the second is left out"
    elif not np.isfinite([*scores, segment.start_s, segment.end_s]).all():
        problem = "a score or time is not a number; left out"
    elif (scores < LOWEST).any() or (scores > HIGHEST).any():
        problem = "a score lies outside its scale (sentiment -3 to 3, emotions 0 to 3); left out"
    elif segment.end_s <= segment.start_s:
        problem = f"ends at {segment.end_s:.2f} s, not after its start; left out"
    if problem:
        release.problem(segment.name, path, problem, "compare with the release")
    return not problem


def _table_segments(root, paths, transcripts, release):
    """The Segments of the raw release's label tables (one row per annotator), with the transcripts' times.

    A clip's score is the mean over its annotators, as in the csd; k is the clip number.
    """
    answers, sources = defaultdict(list), {}
    for path in paths:
        for video_id, clip, scores in _answers(path):
            answers[video_id, clip].append(scores)
            sources[video_id, clip] = path
    if not answers:
        what = f"neither {LABELS_CSD} nor label tables (csv with Input.VIDEO_ID, Answer.happiness)"
        raise UserError(f"{root}: {what} in it or below; {DOWNLOAD}")
    if not transcripts:
        what = f"label tables, but no transcripts (<video>.txt with lines {TRANSCRIPT_FORM})"
        raise UserError(f"{root}: {what}, which hold the clips' times; unpack Transcript or add {LABELS_CSD}")
    release.notes.append(f"no {LABELS_CSD}: scores are means over the annotators of the label tables")
    segments = []
    for (video_id, clip), rows in sorted(answers.items()):
        path, own = sources[video_id, clip], transcripts.get(video_id, ())
        line = next((line for line in own if line.clip.lstrip("0") == clip.lstrip("0")), None)
        if line is None or not clip.isdigit():
            what = "no transcript line of this clip, so no times; left out"
            release.problem(f"{video_id}[{clip}]", path, what, "unpack Transcript completely")
            continue
        n_answers = np.isfinite(rows).sum(0)
        scores = np.nansum(rows, 0) / np.where(n_answers, n_answers, np.nan)  # of those who answered
        start_s = max(0.0, line.start_s)
        segment = Segment(video_id, int(clip), start_s, line.end_s, scores, line.clip, line.text)
        if _is_sound(segment, False, path, release):
            segments.append(segment)
    return segments


def _answers(path):
    """(video id, clip, scores as SCORES) of the rows of a label table; none of any other csv."""
    rows = csv.DictReader(io.StringIO("\n".join(read_lines(path)), newline=""))
    if not {"Input.VIDEO_ID", "Input.CLIP"} <= set(rows.fieldnames or ()):
        return
    theirs = {"happy": "happiness", "sad": "sadness"}
    for row in rows:
        video_id, clip = row["Input.VIDEO_ID"], row["Input.CLIP"]
        if video_id and clip:
            scores = [_number(row.get(f"Answer.{theirs.get(name, name)}")) for name in SCORES]
            yield video_id.strip().rsplit("/", 1)[-1], clip.strip(), scores


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.nan


# ---- Transcripts ------------------------------------------------------------------------------


def _read_transcripts(paths, release):
    """{video id: Lines} of the files that hold transcript lines; full transcripts are passed over."""
    found = {}
    for path in sorted(paths, key=lambda path: not _has_part(path, "segmented")):
        if path.stem in found or path.stat().st_size > TRANSCRIPT_MAX_BYTES:
            continue
        rows = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
        if not any(TRANSCRIPT_LINE.match(text) for _, text in rows):
            continue
        lines = [(number, _transcript_line(text, path.stem)) for number, text in rows]
        found[path.stem] = [line for _, line in lines if line]
        for number in (number for number, line in lines if line is None):
            what = "not a transcript line of this video; left out"
            release.problem("", f"{path}:{number}", what, f"lines are {TRANSCRIPT_FORM}")
    return found


def _has_part(path, name):
    return name in [part.lower() for part in path.parts]


def _transcript_line(text, video_id):
    match = TRANSCRIPT_LINE.match(text)
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
        lines, used = transcripts.get(video_id, []), set()
        pairs = [(_distance_s(s, line), i, j) for i, s in enumerate(own) for j, line in enumerate(lines)]
        for distance_s, i, j in sorted(pairs):
            if distance_s <= JOIN_TOLERANCE_S and not own[i].clip and j not in used:
                used.add(j)
                own[i].clip, own[i].text = lines[j].clip, lines[j].text
    alone = [segment for segment in segments if not segment.clip]
    joined = f"{len(segments) - len(alone):,} of {len(segments):,}"
    release.notes.append(f"transcripts: {joined} segments have a line at their times")
    for segment in alone:
        what = "no transcript line at its times; text from the words csd"
        release.problem(segment.name, "", what, "unpack Transcript completely")


def _distance_s(segment, line):
    """How far the times of a label row and a line are apart; both may start before 0."""
    return max(abs(segment.start_s - max(0.0, line.start_s)), abs(segment.end_s - line.end_s))


# ---- Official folds ---------------------------------------------------------------------------


def _official_folds(folds, files, root, release):
    """{video id: split}, from the file or folder given or found below root."""
    found = [path for path in files[".py"] if path.name == FOLDS_FILE]
    found += [path.parent for path in files[".txt"] + files[".csv"] if path.stem == "standard_train_fold"]
    path = Path(folds) if folds else next(iter(found), None)
    if path is None or not path.exists():
        what = f"{path}: no such file" if path else f"{root}: no official folds in it or below"
        source = f"mmsdk/mmdatasdk/dataset/standard_datasets/CMU_MOSEI/{FOLDS_FILE} of the SDK ({SDK})"
        raise UserError(f"{what}; copy {source} and set MOSEI_FOLDS to it")
    split_of = read_folds(path)
    counts = Counter(split_of.values())
    videos = [(f"{name} videos", counts[name], VIDEO_COUNTS[name]) for name in OFFICIAL]
    release.expect(*videos, before=f"folds from {path.name}: ")
    return split_of


def read_folds(path):
    """{video id: "train", "dev" or "test"} of the official folds; ids are text, however numeric.

    path  the SDK's cmu_mosei_std_folds.py, which is read as text and never run; or a folder with a text or
          csv file of ids per fold (standard_train_fold.txt, train.csv, ...); or one csv with a video id and a
          split on each row
    Raises UserError for a file that cannot be read so, a fold without ids and an id in two folds.
    """
    path, split_of = Path(path), {}
    for name, text in _fold_lists(path):
        split = next((SPLIT_NAMES[w] for w in re.split(r"[^a-z]+", name.lower()) if w in SPLIT_NAMES), None)
        for video_id in WORD.findall(text) if split else ():
            if video_id not in ("id", "video_id") and split_of.setdefault(video_id, split) != split:
                both = f"in {split_of[video_id]} and in {split}"
                raise UserError(f"{path}: video {video_id} is {both}; copy the SDK's {FOLDS_FILE} again")
    absent = [split for split in OFFICIAL if split not in split_of.values()]
    if absent:
        forms = f"the SDK's {FOLDS_FILE}, a folder with standard_{{train,valid,test}}_fold.txt"
        what = f"no ids of the {absent[0]} fold in it; use {forms}, or a csv with video id and split"
        raise UserError(f"{path}: {what}")
    return split_of


def _fold_lists(path):
    """(a name that tells the split, a text that holds ids) of all lists in a file or folder."""
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.suffix in (".txt", ".csv")]
        return [(file.stem, "\n".join(read_lines(file))) for file in files]
    if path.suffix == ".py":
        return re.findall(r"^(\w+)\s*=\s*\[(.*?)\]", "\n".join(read_lines(path)), re.DOTALL | re.MULTILINE)
    lists = []
    for number, line in enumerate(read_lines(path), 1):
        words = WORD.findall(line)
        splits = [word for word in words if word.lower() in SPLIT_NAMES]
        ids = [word for word in words if word.lower() not in SPLIT_NAMES]
        if splits and ids:
            lists.append((splits[0], ids[0]))
        elif words and number > 1:  # the first line may name the columns
            what = "no video id with train, valid or test; write one of each per line"
            raise UserError(f"{path}:{number}: {what}")
    return lists


# ---- Turns ------------------------------------------------------------------------------------


def _add_turns(segments, words_of, split_of, release):
    """The turns of the segments, and their words for words.csv."""
    rows = []
    for segment in segments:
        words = clip_words(words_of.get(segment.video_id, ()), segment.start_s, segment.end_s)
        rows += [dict(zip(WORD_COLUMNS, (segment.name, *word), strict=True)) for word in words]
        extra = {key: f"{value:.6g}" for key, value in zip(SCORES, segment.scores, strict=True)}
        extra["split"] = split_of.get(segment.video_id, "")
        extra |= {"video_id": segment.video_id, "clip": segment.clip}
        span = round(segment.start_s, 4), round(segment.end_s, 4)
        text = segment.text or " ".join(word for word, _, _ in words)
        turn = Turn(segment.name, segment.video_id, 0, segment.video_id, "", *span, text, extra=extra)
        release.turns.append(SourceTurn(turn, audio_span=span, video_span=span, times_known=True))
    number_turns(release.turns)
    release.tables["words.csv"] = rows, WORD_COLUMNS


def clip_words(words, start_s, end_s):
    """The words (word, start_s, end_s) of a segment, on its own clock: those that lie in it by half or more.

    words  (start_s, end_s, word) of the video
    Segments overlap a little; by its middle a word at a border belongs to the side where most of it is heard.
    """
    return [
        (word, round(max(0.0, first_s - start_s), 4), round(min(last_s, end_s) - start_s, 4))
        for first_s, last_s, word in words
        if start_s <= (first_s + last_s) / 2 < end_s
    ]


def read_words(folder):
    """{utterance_id: [(word, start_s, end_s)]} of a prepared folder's words.csv, where there are any."""
    path, words = Path(folder) / "words.csv", defaultdict(list)
    try:
        for row in read_csv(path):
            words[row["utterance_id"]].append((row["word"], float(row["start_s"]), float(row["end_s"])))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run 01_prepare_data.py again") from error
    return dict(words)


def _add_recordings(files, release):
    """Name each turn's full recordings; where a wav is missing, its sound is taken from the mp4."""
    sounds, videos = _by_video(files[".wav"], "wav_16000"), _by_video(files[".mp4"], "combined")
    for source in release.turns:
        source.video = videos.get(source.turn.speaker)
        source.audio = sounds.get(source.turn.speaker, source.video)
    ids = sorted({source.turn.speaker for source in release.turns})
    n_sounds, n_videos = (sum(video_id in found for video_id in ids) for found in (sounds, videos))
    from_mp4 = sum(video_id in videos and video_id not in sounds for video_id in ids)
    there = f"{n_sounds:,} wav, {n_videos:,} mp4; sound from the mp4 of {from_mp4:,}"
    release.notes.append(f"recordings of {len(ids):,} videos: {there}")
    for video_id in ids:
        if video_id not in videos and (n_videos or n_sounds and video_id not in sounds):
            lacks = "mp4" if video_id in sounds else "recording"
            what = f"no {lacks} of this video; its segments are kept without"
            release.problem("", f"{video_id}.mp4", what, "unpack the raw release completely")


def _by_video(paths, folder):
    """{stem: path}, of several the one below a folder of this name; not those of cut segments."""
    found = {}
    for path in sorted(paths, key=lambda path: not _has_part(path, folder)):
        if not _has_part(path, "segmented"):
            found.setdefault(path.stem, path)
    return found


def _compare(release):
    """Notes that hold the segments of each fold against the release's, and the emotions in them."""
    for split in (*OFFICIAL, ""):
        own = [source.turn for source in release.turns if source.turn.extra["split"] == split]
        n_videos = f"{len({turn.speaker for turn in own}):,} videos"
        if not split:
            release.notes.append(f"in no fold: {len(own):,} segments of {n_videos}")
            continue
        present = Counter(name for turn in own for name in emotions_of(turn))
        counts = [f"{name} {present[name]:,}" for name in EMOTIONS]
        counts.append(f"none {sum(not emotions_of(turn) for turn in own):,}")
        after = f" of {n_videos}: {', '.join(counts)}"
        release.expect((f"{split} segments", len(own), SEGMENT_COUNTS[split]), after=after)
    columns = ", ".join(EMOTIONS)
    release.notes.append(f"labels: several emotions at once, in the columns {columns}; `label` stays empty")
