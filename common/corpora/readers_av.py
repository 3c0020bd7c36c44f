"""Readers of the audio-visual corpora of Chochlakis et al.: CREMA-D, Lombard GRID, AudioSet (their Sec. 4.1).

As in common.corpora, which names them in READERS, but the recordings stay where they are: the papers' audio networks
hear up to 12 kHz, and 01's conversion to 16 kHz would take the top octave away. 01 asks the files for their lengths.
"""

import csv
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.corpora.release import (
    Problem,
    Release,
    SourceTurn,
    compare_counts,
    read_lines,
    require_folder,
    visible_files,
)
from common.errors import UserError
from common.files import read_csv
from common.manifest import Turn

AUDIO_ENDINGS = (".wav", ".flac", ".m4a", ".ogg", ".opus", ".mp3")
VIDEO_ENDINGS = (".flv", ".mp4", ".mkv", ".webm", ".mov", ".avi")


def _by_stem(folder, endings):
    """{stem: path} of the files in or below a folder; of copies in nested folders the outermost counts."""
    found = {}
    for path in sorted(visible_files(folder, recursive=True), key=lambda p: (len(p.parts), p)):
        if path.suffix.lower() in endings:
            found.setdefault(path.stem, path)
    return found


# ---- CREMA-D (FORMATS 6): Cao et al. 2014 -----------------------------------------------------

CREMAD_CLASSES = ("neutral", "happy", "sad", "angry", "fearful", "disgust")  # RAVDESS's names and order
CREMAD_EMOTIONS = dict(zip(("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"), CREMAD_CLASSES, strict=True))
CREMAD_LEVELS = {
    "LO": "low",
    "MD": "medium",
    "HI": "high",
    "XX": "unspecified",
}  # the first three with IEO only
CREMAD_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
CREMAD_COUNTS = {"neutral": 1087, "happy": 1271, "sad": 1271, "angry": 1271, "fearful": 1271, "disgust": 1271}
CREMAD_ACTORS = 91
CREMAD_NAME = re.compile(r"^(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)$")  # some copies end one name in _X
# Recordings that the release's own README calls bad.
CREMAD_SILENT = "1076_MTI_SAD_XX"
CREMAD_BAD_VIDEOS = {
    "1076_MTI_NEU_XX": "is shorter than its recording",
    "1064_TIE_SAD_XX": "has no duration",
    "1064_IEO_DIS_MD": "lasts a minute and holds all six emotions",
}


def read_cremad(root):
    """Read CREMA-D in place: sound from AudioWAV, pictures from VideoFlash (FLV, or converted with the same stems).

    root  the folder that holds AudioWAV, or the one above it
    The label is the emotion that was acted, the text the sentence, which carries no label. 1076_MTI_SAD_XX, which has
    no sound, is left out; three videos that the release calls bad are not used.
    Extra columns: sentence (its code), level, and sex and age where VideoDemographics.csv is there.
    Raises UserError if there is no AudioWAV or nothing in it.
    """
    root = _cremad_root(require_folder(root, "CREMA-D"))
    release = Release(CREMAD_CLASSES, [], media_in_place=True)
    sounds = _cremad_files(root / "AudioWAV", (".wav",), release)
    has_video = (root / "VideoFlash").is_dir()
    videos = _cremad_files(root / "VideoFlash", VIDEO_ENDINGS, release) if has_video else {}
    if not sounds:
        raise UserError(
            f"{root / 'AudioWAV'}: no CREMA-D recordings such as 1001_DFA_ANG_XX.wav in it; unpack the "
            "release completely"
        )
    actors = _cremad_actors(root)
    release.turns = [
        _cremad_turn(name, sounds, videos, has_video, actors, release)
        for name in sorted({*sounds, *videos} - {CREMAD_SILENT})
    ]
    if CREMAD_SILENT in {*sounds, *videos}:
        path = sounds.get(CREMAD_SILENT) or videos[CREMAD_SILENT]
        release.problems.append(
            Problem(CREMAD_SILENT, str(path), "has no sound, as its README says; left out", "none")
        )
    found = Counter(CREMAD_EMOTIONS[name[9:12]] for name in sounds)
    release.notes.append(compare_counts("recordings", found.total(), sum(CREMAD_COUNTS.values())))
    release.notes += [
        compare_counts(label, found[label], count)
        for label, count in CREMAD_COUNTS.items()
        if found[label] != count
    ]
    release.notes.append(compare_counts("actors", len({name[:4] for name in sounds}), CREMAD_ACTORS))
    if not has_video:
        release.notes.append(f"no folder VideoFlash in {root}: no turn has video")
    return release


def _cremad_root(root):
    """The folder that holds AudioWAV: the one given, one just below it, or the one above where AudioWAV is given."""
    if root.name in ("AudioWAV", "VideoFlash"):
        root = root.absolute().parent
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if (folder / "AudioWAV").is_dir():
            return folder
    raise UserError(
        f"{root}: no folder AudioWAV in it; set CORPUS_ROOT to the one that holds AudioWAV and VideoFlash"
    )


def _cremad_files(folder, endings, release):
    """{release's name: path} of a folder's recordings; other names are Problems."""
    found = {}
    for stem, path in _by_stem(folder, endings).items():
        match = CREMAD_NAME.match(stem)
        if match and match[2] in CREMAD_SENTENCES and match[3] in CREMAD_EMOTIONS:
            found.setdefault("_".join((*match.groups()[:3], "XX" if match[4] == "X" else match[4])), path)
        else:
            release.problems.append(
                Problem(
                    "",
                    str(path),
                    "not a CREMA-D name; left out",
                    "names are actor, sentence, emotion, level: 1001_DFA_ANG_XX",
                )
            )
    return found


def _cremad_actors(root):
    """{actor: {"sex", "age"}} from VideoDemographics.csv, empty where it is absent."""
    table = root / "VideoDemographics.csv"
    rows = read_csv(table) if table.is_file() else []
    return {
        (row.get("ActorID") or "").strip(): {
            "sex": (row.get("Sex") or "").strip().lower(),
            "age": (row.get("Age") or "").strip(),
        }
        for row in rows
    }


def _cremad_turn(name, sounds, videos, has_video, actors, release):
    actor, sentence, emotion, level = name.split("_")
    audio, video = sounds.get(name), videos.get(name)
    if audio is None:
        release.problems.append(
            Problem(name, str(video), "no wav in AudioWAV; kept without sound", "unpack AudioWAV completely")
        )
    if video and name in CREMAD_BAD_VIDEOS:
        release.problems.append(
            Problem(
                name,
                str(video),
                f"the video {CREMAD_BAD_VIDEOS[name]}, as its README says; not used",
                "none; its sound is kept",
            )
        )
        video = None
    elif video is None and has_video:
        release.problems.append(
            Problem(
                name,
                str(audio),
                "no video in VideoFlash; kept without pictures",
                "unpack VideoFlash completely",
            )
        )
    turn = Turn(
        name,
        name,
        0,
        actor,
        "",
        0.0,
        0.0,
        text=CREMAD_SENTENCES[sentence],
        label=CREMAD_EMOTIONS[emotion],
        extra={
            "sentence": sentence,
            "level": CREMAD_LEVELS[level],
            **actors.get(actor, {"sex": "", "age": ""}),
        },
    )
    return SourceTurn(turn, audio=audio, video=video)


# ---- Lombard GRID (FORMATS 7): Alghamdi et al. 2018 -------------------------------------------

LOMBARD_CLASSES = ("plain", "lombard")
LOMBARD_COUNTS = {"plain": 2691, "lombard": 2699}  # 50 each of 54 talkers, save s14 (51, 49) and s51 (40, 50)
LOMBARD_TALKERS = 54  # s2 to s55
LOMBARD_NAME = re.compile(r"^(s\d{1,2})_([lp])_([^_]+)(?:_WRONG_(.+))?$")
LOMBARD_LEGACY = re.compile(r"^(s\d{1,2})_\d+_\d+_\d+_r_([^_]+)$")  # one plain recording kept an older name
LOMBARD_SILENCE = "#sil"
GRID_WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter.upper() for letter in "abcdefghijklmnopqrstuvxyz"},  # no w
    {
        "z": "zero",
        "0": "zero",
        "1": "one",
        "2": "two",
        "3": "three",
        "4": "four",
        "5": "five",
        "6": "six",
        "7": "seven",
        "8": "eight",
        "9": "nine",
    },
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


def read_lombard(root):
    """Read Lombard GRID in place: sound from audio/, the front view from front/; the side view is not used.

    root  any folder above the files; copies of a file in nested folders count once
    The label is the condition, "plain" or "lombard". The text is decoded from the six letters of the sentence; of a
    misread one (<asked>_WRONG_<said>) from what was said, and "" where these letters are none of GRID. Recordings of
    silence (_WRONG_#sil) are left out, and so is the one with an older name that repeats another.
    Extra columns: sentence (the letters of what was said), status (correct, wrong).
    Raises UserError if no recording is found.
    """
    root = require_folder(root, "Lombard GRID")
    release = Release(LOMBARD_CLASSES, [], media_in_place=True)
    sounds = _lombard_files(root, (".wav", ".flac"), release)
    videos = _lombard_files(root, (".mov", ".mp4"), release)
    if not (sounds or videos):
        raise UserError(
            f"{root}: no Lombard GRID recordings such as audio/s2_l_bbim3a.wav in it or below; set "
            "CORPUS_ROOT to the folder that holds audio and front"
        )
    for what, found in (("wav", sounds), ("mov of the front view", videos)):
        if not found:
            release.notes.append(f"no {what} in {root}: no turn has {'sound' if what == 'wav' else 'video'}")
    stems = sorted({*sounds, *videos}, key=_lombard_order)
    turns = [_lombard_turn(stem, sounds, videos, stems, release) for stem in stems]
    release.turns = [source for source in turns if source]
    release.notes += _lombard_counts(stems)
    return release


def _lombard_files(root, endings, release):
    found = {}
    for stem, path in _by_stem(root, endings).items():
        if "side" in path.relative_to(root).parts[:-1]:
            continue
        if LOMBARD_NAME.match(stem) or LOMBARD_LEGACY.match(stem):
            found[stem] = path
        else:
            release.problems.append(
                Problem(
                    "",
                    str(path),
                    "not a Lombard GRID name; left out",
                    "names are talker, condition, sentence: s2_l_bbim3a",
                )
            )
    return found


def _lombard_order(stem):
    return int(stem[1:].split("_")[0]), stem


def _lombard_facts(stem):
    """(talker, condition, what was asked for, what was said) of a recording, from its name."""
    match = LOMBARD_NAME.match(stem)
    if match:
        return match[1], {"p": "plain", "l": "lombard"}[match[2]], match[3], match[4] or match[3]
    match = LOMBARD_LEGACY.match(stem)
    return match[1], "plain", match[2], match[2]


def grid_sentence(code):
    """ "bbim3a" as "bin blue in M three again"; "" where the letters are not a sentence of GRID."""
    words = [table.get(letter) for letter, table in zip(code, GRID_WORDS)]
    return " ".join(words) if len(code) == len(GRID_WORDS) and all(words) else ""


def _lombard_turn(stem, sounds, videos, stems, release):
    """The turn of a recording, or None with a Problem if it is left out."""
    talker, condition, asked, said = _lombard_facts(stem)
    name = re.sub(r"[^\w.+=@-]", "-", stem)
    path = str(sounds.get(stem) or videos[stem])
    if said == LOMBARD_SILENCE:
        release.problems.append(Problem(name, path, "a recording of silence; left out", "none"))
        return None
    if LOMBARD_LEGACY.match(stem) and f"{talker}_p_{asked}" in stems:
        release.problems.append(
            Problem(name, path, f"an older name of {talker}_p_{asked}, which is there; left out", "none")
        )
        return None
    if sounds and videos and not (stem in sounds and stem in videos):
        lacks = "wav" if stem not in sounds else "mov of the front view"
        release.problems.append(
            Problem(name, path, f"no {lacks}; kept without it", "unpack the release completely")
        )
    turn = Turn(
        name,
        name,
        0,
        talker,
        "",
        0.0,
        0.0,
        text=grid_sentence(said),
        label=condition,
        extra={"sentence": said, "status": "correct" if "_WRONG_" not in stem else "wrong"},
    )
    return SourceTurn(turn, audio=sounds.get(stem), video=videos.get(stem))


def _lombard_counts(stems):
    """Lines that hold the recordings of each condition, and the talkers, against the release's."""
    found = Counter(_lombard_facts(stem)[1] for stem in stems)
    lines = [
        compare_counts(f"{label} recordings", found[label], count) for label, count in LOMBARD_COUNTS.items()
    ]
    lines.append(compare_counts("talkers", len({stem.split("_")[0] for stem in stems}), LOMBARD_TALKERS))
    wrong = sum("_WRONG_" in stem for stem in stems)
    return [*lines, f"{wrong:,} recordings of a sentence that was misread"] if wrong else lines


# ---- AudioSet (FORMATS 8): Gemmeke et al. 2017, with CAV-MAE's manifests ----------------------

AUDIOSET_VIDEO = re.compile(
    r"Y?([\w-]{11})(?:_\d+(?:\.\d+)?){0,2}", re.ASCII
)  # copies add Y, start, end to the id
AUDIOSET_FRAMES = re.compile(r"frame_\d")


@dataclass
class AudioSetFiles:
    """What lies below the root, by stem (a name without its last ending)."""

    audio: dict = field(default_factory=dict)
    video: dict = field(default_factory=dict)
    frames: dict = field(default_factory=dict)  # to the folder that holds frame_0 .. frame_9
    manifests: list = field(default_factory=list)  # json
    tables: list = field(default_factory=list)  # csv


def read_audioset(root):
    """Read AudioSet segments in place: a turn per segment, no classes; the speaker is the YouTube video.

    root  a folder with CAV-MAE manifests ({"data": [{"video_id", "wav", "video_path", "labels"}]}), or with the
          official segment tables (csv) beside the media, whose names are the YouTube id, with or without a "Y" before
          and the times after it. The paths of a manifest that lead nowhere are looked for by name below root.
    Pictures come from a video with the same stem, beside the sound or in a folder `video`. CAV-MAE's ten JPEG frames
    are no video: their folder is named in a column, and `video` stays "". Segments without media are counted, since
    videos vanish from YouTube. Extra columns: labels (comma-joined ids), set (the manifest's name), frames_folder.
    Raises UserError if there is no manifest and no table, or if none of their segments is there.
    """
    root = require_folder(root, "AudioSet").resolve()
    files, release = _audioset_files(root), Release((), [], media_in_place=True)
    segments = [row for path in files.manifests for row in _cavmae_segments(path, release)]
    listed = {_youtube_id(row["name"]) for row in segments}
    names = {_youtube_id(stem): stem for stem in sorted({*files.audio, *files.video}, reverse=True)}
    segments += [
        row
        for path in files.tables
        for row in _official_segments(path, names, release)
        if row["name"] not in listed
    ]
    if not segments:
        raise UserError(
            f'{root}: neither a CAV-MAE manifest (json with a list "data") nor a segment table in it; '
            "set CORPUS_ROOT to the folder that holds one"
        )
    turns, absent = {}, []
    for row in segments:
        source = _audioset_turn(row, files)
        if source.audio is None:
            absent.append(row["wav"] or row["name"])
        else:
            turns.setdefault(source.turn.utterance_id, source)
    if not turns:
        raise UserError(
            f"{root}: none of its {len(segments):,} segments is there, for example {absent[0]}; put the "
            "recordings below this folder, or correct the manifest"
        )
    release.turns = [turns[name] for name in sorted(turns)]
    release.notes = _audioset_notes(release.turns, segments, absent)
    return release


def _audioset_files(root):
    """Everything below root that a segment may be made of; hidden folders and links in a circle are passed over."""
    files, seen = AudioSetFiles(), set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(name for name in below if not name.startswith("."))
        names = [] if real in seen else sorted(name for name in names if not name.startswith("."))
        seen.add(real)
        is_frames = AUDIOSET_FRAMES.fullmatch(os.path.basename(folder))
        for name in names:
            stem, ending = os.path.splitext(name)  # ids may hold dots: abc_40.000.flac
            path = Path(folder, name)
            for kind, endings in ((files.audio, AUDIO_ENDINGS), (files.video, VIDEO_ENDINGS)):
                if ending.lower() in endings:
                    kind.setdefault(stem, path)
            if is_frames and ending.lower() == ".jpg":
                files.frames.setdefault(stem, path.parent.parent)
            elif ending.lower() == ".json" and not name.endswith(
                ".info.json"
            ):  # of a downloader, one per video
                files.manifests.append(path)
            elif ending.lower() == ".csv":
                files.tables.append(path)
    return files


def _youtube_id(name):
    """The YouTube id in a file's or segment's name, the whole name where there is none."""
    match = AUDIOSET_VIDEO.fullmatch(name)
    return match[1] if match else name


def _cavmae_segments(path, release):
    """The rows of a CAV-MAE manifest; none of another json file, such as the ontology."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        release.problems.append(Problem("", str(path), f"not valid JSON ({error})", "download it again"))
        return []
    rows = data.get("data") if isinstance(data, dict) else None
    segments = []
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        row = {key: str(value) for key, value in row.items()} if isinstance(row, dict) else {}
        wav = row.get("wav", "")
        name = row.get("video_id") or os.path.splitext(os.path.basename(wav))[0]
        if name:
            segments.append(
                {
                    "name": name,
                    "stem": os.path.splitext(os.path.basename(wav))[0] or name,
                    "wav": wav,
                    "folder": row.get("video_path", ""),
                    "labels": row.get("labels", ""),
                    "set": path.stem,
                }
            )
        else:
            release.problems.append(
                Problem(
                    "",
                    str(path),
                    f"entry {number} has neither video_id nor wav; left out",
                    "compare the manifest with CAV-MAE's",
                )
            )
    return segments


def _official_segments(path, names, release):
    """The rows of an official segment table (YTID, start, end, quoted labels); none of another csv file.

    names  {YouTube id: stem of the media that are there}
    """
    lines = read_lines(path)
    if not lines[0].startswith("#"):
        return []  # class_labels_indices.csv and the like
    segments = []
    for row in csv.reader(
        (line for line in lines if line and not line.startswith("#")), skipinitialspace=True
    ):
        if len(row) == 4:
            segments.append(
                {
                    "name": row[0],
                    "stem": names.get(row[0], row[0]),
                    "wav": "",
                    "folder": "",
                    "labels": row[3],
                    "set": path.stem,
                }
            )
        else:
            release.problems.append(
                Problem(
                    "",
                    str(path),
                    f"row {','.join(row)!r} cannot be read; left out",
                    "rows are YTID, start, end, labels",
                )
            )
    return segments


def _audioset_turn(row, files):
    """The turn of a segment; its source has no audio where nothing of it is there."""
    name, stem = row["name"], row["stem"]
    listed = Path(row["wav"])
    audio = (
        listed
        if listed.is_absolute() and listed.is_file()
        else files.audio.get(stem) or files.audio.get(name)
    )
    video = files.video.get(stem) or files.video.get(name) or _video_beside(audio, row)
    frames = files.frames.get(name, "")
    if row["folder"] and not frames:
        pictures = (Path(row["folder"], f"frame_{k}", f"{name}.jpg") for k in range(10))
        frames = row["folder"] if any(path.is_file() for path in pictures) else ""
    utterance_id = re.sub(r"[^\w.+=@-]", "-", name)
    turn = Turn(
        utterance_id,
        utterance_id,
        0,
        _youtube_id(name),
        "",
        0.0,
        0.0,
        extra={"labels": row["labels"], "set": row["set"], "frames_folder": str(frames)},
    )
    return SourceTurn(turn, audio=audio or video, video=video)


def _video_beside(audio, row):
    """The video of a segment outside of root: in its manifest's folder, beside its sound, or in a folder `video`."""
    folders = [Path(row["folder"])] if row["folder"] else []
    folders += [audio.parent, audio.parent / "video", audio.parent.parent / "video"] if audio else []
    paths = (folder / f"{row['stem']}{ending}" for folder in folders for ending in VIDEO_ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _audioset_notes(turns, segments, absent):
    lines = [
        f"{name}: {count:,} of {sum(row['set'] == name for row in segments):,} segments are there"
        for name, count in sorted(Counter(source.turn.extra["set"] for source in turns).items())
    ]
    if absent:
        lines.append(f"{len(absent):,} segments without a recording are left out, for example {absent[0]}")
    frames = sum(bool(source.turn.extra["frames_folder"] and not source.video) for source in turns)
    if frames:
        lines.append(f"{frames:,} segments have single frames (JPEG) and no video: column frames_folder")
    return lines
