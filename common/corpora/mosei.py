"""CMU-MOSEI, opinions spoken into a camera, with six emotion scores a segment: Zadeh et al. 2018 (FORMATS 2).

As Khare et al. use it (Sec. 3.1). Labels and words come from the SDK's .csd files, which are HDF5;
transcripts and recordings from the raw release, where it is there. A turn is a segment of a longer recording
that stays where it lies: its audio and video name the full recording, its start_s and end_s are times in it.
"""

import csv
import math
import re
from collections import Counter, defaultdict, namedtuple
from pathlib import Path

import h5py
import numpy as np

from common.corpora.release import Release, SourceTurn, by_stem, decode, files_in, need_folder, read_lines
from common.files import UserError
from common.manifest import Turn
from common.media import LFS_POINTER
from common.splits import OFFICIAL

FOLDERS = ("CMU_MOSEI", "CMU-MOSEI", "MOSEI", "mosei")
EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")  # order of the csd and the paper
SCORES = ("sentiment", *EMOTIONS)  # columns of the labels csd
THEIRS = {"happy": "happiness", "sad": "sadness"}  # in the raw release's label tables
LOWEST, HIGHEST = np.array([-3, 0, 0, 0, 0, 0, 0]), 3
SEGMENT_COUNTS = {"train": 16327, "dev": 1871, "test": 4662}
VIDEO_COUNTS = {"train": 2249, "dev": 300, "test": 678}  # two of the last have no labels
LABELS_CSD, WORDS_CSD = "CMU_MOSEI_Labels.csd", "CMU_MOSEI_TimestampedWords.csd"
FOLDS_FILE = "cmu_mosei_std_folds.py"
SDK = "CMU-MultiComp-Lab/CMU-MultimodalSDK on GitHub"
DOWNLOAD = f"download it with the SDK ({SDK}) or set CORPUS_ROOT to a folder above it"
FOLD = re.compile(r"^standard_(train|valid|test)_fold\s*=\s*\[(.*?)\]", re.DOTALL | re.MULTILINE)
VIDEO_ID = re.compile(r"[\w-]+")  # quoted or not
SECONDS = r"(-?(?:\d+\.?|\.\d)\d*(?:e-?\d+)?)"
TRANSCRIPT_LINE = re.compile(rf"(.+?)___(\d+)___{SECONDS}___{SECONDS}___(.*)")  # an id may end with _
TRANSCRIPT_FORM = "<video>___<clip>___<start>___<end>___<text>"
TRANSCRIPT_MAX_BYTES = 1 << 20  # other text files below the root, such as word vectors, are not read
WHOLE = {"wav": "wav_16000", "mp4": "combined"}  # the folders of recordings that are not cut
SILENCE = "sp"
JOIN_TOLERANCE_S = 0.05  # label rows and transcript lines state the same times with different digits
Line = namedtuple("Line", "clip start_s end_s text")  # of a transcript
WORD_COLUMNS = ("utterance_id", "word", "start_s", "end_s")


def read(root, folds=""):
    """Read CMU-MOSEI in place, from whatever of it lies below `root`; mirrors rename its folders.

    root   any folder above the .csd files and the raw release (Transcript, WAV_16000, Combined)
    folds  the SDK's file of official folds; "" = looked for below root
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
    transcripts = _read_transcripts(root, files[".txt"], release)
    csd = {path.name: path for path in reversed(files[".csd"])}
    if LABELS_CSD in csd:
        _read_labels_csd(csd[LABELS_CSD], release)
        if transcripts:
            _join_transcripts(transcripts, release)
    else:
        _read_label_tables(root, files[".csv"], transcripts, release)
    if WORDS_CSD not in csd:
        what = f"no {WORDS_CSD} in it or below, which says when each word is spoken"
        raise UserError(f"{root}: {what}; {DOWNLOAD}")
    _add_words(read_words_csd(csd[WORDS_CSD]), release)
    _add_recordings(root, files, release)
    for source in release.turns:
        source.turn.extra["split"] = split_of.get(source.turn.speaker, "")
    if release.turns and not any(source.turn.extra["split"] for source in release.turns):
        what = f"none of the {len(release.turns):,} segments is in the official folds read from it"
        raise UserError(f"{folds or root}: {what}; give those of CMU-MOSEI ({FOLDS_FILE}) as MOSEI_FOLDS")
    _compare(release)
    return release


def emotions_of(turn):
    """The names of the emotions whose score is above 0, which counts as present (Khare et al., Sec. 3.1)."""
    return [name for name in EMOTIONS if float(turn.extra[name]) > 0]


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


def _read_labels_csd(path, release):
    """Add the segments of the labels csd."""
    names, n_early = set(), 0
    for entry, features, intervals in read_csd(path):
        if np.ndim(features) != 2 or features.shape[1] != len(SCORES):
            what = f"scores of shape {np.shape(features)}, not (rows, {len(SCORES)}) for {', '.join(SCORES)}"
            raise UserError(f"{path}: entry {entry} has {what}; use the {LABELS_CSD} of all labels")
        video_id = video_of(entry)
        first = int(entry[len(video_id) + 1 : -1]) if entry != video_id else 0
        for k, (scores, (start_s, end_s)) in enumerate(zip(features, intervals.tolist(), strict=True), first):
            name = f"{video_id}[{k}]"
            if name in names:
                what = "listed twice; the second is left out"
                release.problem(name, path, what, "compare with the release")
                continue
            names.add(name)
            n_early += start_s < 0
            _add_segment(release, path, video_id, k, (max(0.0, start_s), end_s), scores)
    if n_early:
        release.notes.append(f"{n_early:,} segments start before their video does: set to 0 s")


def _add_segment(release, path, video_id, k, span_s, scores, clip="", text=""):
    """Add the turn of a row of labels; one that cannot be used becomes a Problem."""
    name, (start_s, end_s), problem = f"{video_id}[{k}]", span_s, ""
    if not np.isfinite([*scores, start_s, end_s]).all():
        problem = "a score or time is not a number; left out"
    elif (scores < LOWEST).any() or (scores > HIGHEST).any():
        problem = "a score lies outside its scale (sentiment -3 to 3, emotions 0 to 3); left out"
    elif end_s <= start_s:
        problem = f"ends at {end_s:.2f} s, not after its start; left out"
    if problem:
        return release.problem(name, path, problem, "compare with the release")
    extra = {key: f"{value:.6g}" for key, value in zip(SCORES, scores, strict=True)}
    extra |= {"split": "", "video_id": video_id, "clip": clip}
    turn = Turn(name, video_id, 0, video_id, "", round(start_s, 4), round(end_s, 4), text, extra=extra)
    release.turns.append(SourceTurn(turn, audio_span=span_s, video_span=span_s, times_known=True))


def _read_label_tables(root, paths, transcripts, release):
    """Add the segments of the raw release's label tables (a row per annotator), with the transcripts' times.

    A clip's score is the mean over its annotators, as in the csd; k is the clip number.
    """
    answers, columns = defaultdict(list), [f"Answer.{THEIRS.get(name, name)}" for name in SCORES]
    tables = [lines for path in paths if "Input.VIDEO_ID" in (lines := read_lines(path))[0]]
    for row in (row for lines in tables for row in csv.DictReader(lines)):
        if row.get("Input.VIDEO_ID") and row.get("Input.CLIP"):
            video_id = row["Input.VIDEO_ID"].strip().rsplit("/", 1)[-1]
            scores = [_number(row.get(column)) for column in columns]
            answers[video_id, row["Input.CLIP"].strip().lstrip("0")].append(scores)
    if not answers or not transcripts:
        what = "label tables (csv with Input.VIDEO_ID, Answer.happiness) and the transcripts with their times"
        raise UserError(f"{root}: neither {LABELS_CSD} nor {what} ({TRANSCRIPT_FORM}) below it; {DOWNLOAD}")
    release.notes.append(f"no {LABELS_CSD}: scores are means over the annotators of the label tables")
    lines = {(name, line.clip.lstrip("0")): line for name, own in transcripts.items() for line in own}
    for (video_id, clip), rows in sorted(answers.items()):
        if line := lines.get((video_id, clip)):
            n_answers = np.isfinite(rows).sum(0)
            scores = np.nansum(rows, 0) / np.where(n_answers, n_answers, np.nan)  # of those who answered
            span_s = line.start_s, line.end_s
            _add_segment(release, root, video_id, int(line.clip), span_s, scores, line.clip, line.text)
        else:
            what = "no transcript line of this clip, so no times; left out"
            release.problem(f"{video_id}[{clip or 0}]", root, what, "unpack Transcript completely")


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.nan


# ---- Transcripts ------------------------------------------------------------------------------


def _read_transcripts(root, paths, release):
    """{video id: Lines} of the files that hold transcript lines; full transcripts are passed over."""
    found = {}
    for path in sorted(paths, key=lambda path: not _lies_in(path, root, "segmented")):
        if path.stem in found or path.stat().st_size > TRANSCRIPT_MAX_BYTES:
            continue
        rows = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
        matches = [(number, TRANSCRIPT_LINE.fullmatch(line.strip())) for number, line in rows]
        if not any(match for _, match in matches):
            continue
        for number, match in matches:
            if match and match[1] == path.stem:
                line = Line(match[2], max(0.0, float(match[3])), float(match[4]), match[5].strip())
                found.setdefault(path.stem, []).append(line)
            else:
                what = "not a transcript line of this video; left out"
                release.problem("", f"{path}:{number}", what, f"lines are {TRANSCRIPT_FORM}")
    return found


def _lies_in(path, root, name):
    """Whether a folder on the way from root to a file has this name."""
    return name in [part.lower() for part in path.relative_to(root).parts]


def _join_transcripts(transcripts, release):
    """Give segments the text and clip number of the transcript line at the same times.

    By time, since the rows of the csd are in no order: of several candidates the nearest, each line once.
    """
    by_video = defaultdict(list)
    for source in release.turns:
        by_video[source.turn.speaker].append(source)
    for video_id, own in by_video.items():
        lines, used = transcripts.get(video_id, []), set()
        pairs = [(_distance_s(s, line), i, j) for i, s in enumerate(own) for j, line in enumerate(lines)]
        for distance_s, i, j in sorted(pairs):
            turn = own[i].turn
            if distance_s <= JOIN_TOLERANCE_S and not turn.extra["clip"] and j not in used:
                used.add(j)
                turn.extra["clip"], turn.text = lines[j].clip, lines[j].text
    alone = [source.turn.utterance_id for source in release.turns if not source.turn.extra["clip"]]
    joined = f"{len(release.turns) - len(alone):,} of {len(release.turns):,}"
    release.notes.append(f"transcripts: {joined} segments have a line at their times")
    for name in alone:
        what = "no transcript line at its times; text from the words csd"
        release.problem(name, "", what, "unpack Transcript completely")


def _distance_s(source, line):
    """How far the times of a segment and a line are apart."""
    start_s, end_s = source.audio_span
    return max(abs(start_s - line.start_s), abs(end_s - line.end_s))


# ---- Official folds ---------------------------------------------------------------------------


def _official_folds(folds, files, root, release):
    """{video id: split}, from the file given or found below root."""
    path = Path(folds) if folds else next((path for path in files[".py"] if path.name == FOLDS_FILE), None)
    if path is None or not path.is_file():
        what = f"{path}: no such file" if path else f"{root}: no official folds in it or below"
        source = f"mmsdk/mmdatasdk/dataset/standard_datasets/CMU_MOSEI/{FOLDS_FILE} of the SDK ({SDK})"
        raise UserError(f"{what}; copy {source} and set MOSEI_FOLDS to it")
    split_of = read_folds(path)
    counts = Counter(split_of.values())
    videos = [(f"{name} videos", counts[name], VIDEO_COUNTS[name]) for name in OFFICIAL]
    release.expect(*videos, before=f"folds from {path.name}: ")
    return split_of


def read_folds(path):
    """{video id: "train", "dev" or "test"} of the SDK's official folds, a file that is read and never run.

    Ids are text, however numeric. Raises UserError for a fold without ids and an id in two folds.
    """
    split_of, remedy = {}, f"copy the SDK's {FOLDS_FILE} again"
    for fold, ids in FOLD.findall("\n".join(read_lines(path))):
        split = fold.replace("valid", "dev")
        for video_id in VIDEO_ID.findall(ids):
            if split_of.setdefault(video_id, split) != split:
                both = f"in {split_of[video_id]} and in {split}"
                raise UserError(f"{path}: video {video_id} is {both}; {remedy}")
    if absent := [split for split in OFFICIAL if split not in split_of.values()]:
        raise UserError(f"{path}: no ids of the {absent[0]} fold in it; {remedy}")
    return split_of


# ---- Words and recordings ---------------------------------------------------------------------


def _add_words(words_of, release):
    """Words for words.csv, and texts for turns without a transcript."""
    rows = []
    for source in release.turns:
        turn = source.turn
        words = clip_words(words_of.get(turn.speaker, ()), *source.audio_span)
        rows += [dict(zip(WORD_COLUMNS, (turn.utterance_id, *word), strict=True)) for word in words]
        turn.text = turn.text or " ".join(word for word, _, _ in words)
    release.number_turns()
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


def _add_recordings(root, files, release):
    """Name each turn's full recordings; where a wav is missing, its sound is taken from the mp4."""
    sounds, videos = (_by_video(root, files[f".{kind}"], name) for kind, name in WHOLE.items())
    for source in release.turns:
        source.video = videos.get(source.turn.speaker)
        source.audio = sounds.get(source.turn.speaker, source.video)
    ids = {source.turn.speaker for source in release.turns}
    heard, seen = ids & sounds.keys(), ids & videos.keys()
    there = f"{len(heard):,} wav, {len(seen):,} mp4; sound from the mp4 of {len(seen - heard):,}"
    release.notes.append(f"recordings of {len(ids):,} videos: {there}")
    expected = seen or heard  # nothing, where the raw release is not there at all
    for video_id in sorted(ids - expected) if expected else ():
        lacks = "mp4" if video_id in heard else "recording"
        what = f"no {lacks} of this video; its segments are kept without"
        release.problem("", f"{video_id}.mp4", what, "unpack the raw release completely")


def _by_video(root, paths, folder):
    """{stem: path}, of several the one below a folder of this name; not those of cut segments."""
    whole = [path for path in paths if not _lies_in(path, root, "segmented")]
    return by_stem(sorted(whole, key=lambda path: not _lies_in(path, root, folder)))


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
