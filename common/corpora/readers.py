"""Readers of genuine corpus releases: where each turn's words, label, speaker and media are.

One function per corpus turns a folder as downloaded into a Release (common.release). Readers look at names and
text only; media are opened later, by common.media. What a release is known to hold (file names, counts) is
compared and said, never assumed: anything odd becomes a Problem with the file's name. To add a corpus, write
`read_<name>(root)` and name it in READERS. The corpora of the paper on missing modalities are in
common.corpora_av, CMU-MOSEI is in common.corpora.mosei.
"""

import os
import random
import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from common.corpora.mosei import read_mosei
from common.corpora.readers_av import read_audioset, read_cremad, read_lombard
from common.corpora.release import (
    Problem,
    Release,
    SourceTurn,
    compare_counts,
    number_turns,
    read_lines,
    require_folder,
    visible_files,
)
from common.errors import UserError
from common.files import read_csv
from common.manifest import Turn

# ---- IEMOCAP (FORMATS 1): Busso et al. 2008 ---------------------------------------------------

IEMOCAP_CLASSES = ("angry", "happy", "neutral", "sad")
IEMOCAP_LABELS = {"ang": "angry", "hap": "happy", "neu": "neutral", "sad": "sad"}
# Turns per session in the release, counted from its summary lines: all, then by raw label.
IEMOCAP_COUNTS = {
    "Session1": {"all": 1819, "neu": 384, "hap": 135, "exc": 143, "sad": 194, "ang": 229},
    "Session2": {"all": 1811, "neu": 362, "hap": 117, "exc": 210, "sad": 197, "ang": 137},
    "Session3": {"all": 2136, "neu": 320, "hap": 135, "exc": 151, "sad": 305, "ang": 240},
    "Session4": {"all": 2103, "neu": 258, "hap": 65, "exc": 238, "sad": 143, "ang": 327},
    "Session5": {"all": 2170, "neu": 384, "hap": 143, "exc": 299, "sad": 245, "ang": 170},
}
EVALUATION_LINE = re.compile(r"^\[(\d+\.?\d*)\s*-\s*(\d+\.?\d*)\]\s+(\S+)\s+([A-Za-z]{3})\s+\[([^\]]*)\]\s*$")
UTTERANCE_ID = re.compile(r"^(Ses\d\d)([FM])_\S+_([FM])\d{3}$")
BRACKET_TOKEN = re.compile(r"\[[A-Z_ ]+\]")


def read_iemocap(root, merge_excited, keep_brackets):
    """Read IEMOCAP_full_release, with or without its video, or any subset of its sessions.

    root           the folder that holds Session1 .. Session5, or the one above it
    merge_excited  True labels excited turns happy, as the papers do; False leaves them out of the label set
    keep_brackets  False removes tokens such as [LAUGHTER] from the transcripts
    Extra columns: raw_label, valence, activation, dominance (rater means, clipped to the scale's 1..5),
    style.
    Raises UserError if no session with labels is found.
    """
    root = _iemocap_root(require_folder(root, "IEMOCAP"))
    labels = {**IEMOCAP_LABELS, **({"exc": "happy"} if merge_excited else {})}
    release = Release(IEMOCAP_CLASSES, [])
    sessions = [f"Session{k}" for k in range(1, 6)]
    with_labels = [
        name for name in sessions if visible_files(root / name / "dialog" / "EmoEvaluation", "Ses*.txt")
    ]
    if not with_labels:
        raise UserError(
            f"{root}: its sessions hold no dialog/EmoEvaluation/Ses*.txt; unpack the release completely"
        )
    for name in with_labels:
        _read_iemocap_session(root / name, labels, keep_brackets, release)
    missing = [name for name in sessions if name not in with_labels]
    if missing:
        expected = ", ".join(f"{name} {IEMOCAP_COUNTS[name]['all']:,}" for name in missing)
        release.notes.append(f"missing from {root}: {', '.join(missing)} (turns in the release: {expected})")
    release.notes += _iemocap_counts(release.turns, with_labels, labels)
    number_turns(release.turns)
    return release


def _iemocap_root(root):
    """The folder that holds the sessions: the one given, or one just below it; says so if it is above."""
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if any((folder / f"Session{k}").is_dir() for k in range(1, 6)):
            return folder
    above = [
        path for path in root.resolve().parents if (path / "Session1").is_dir() or path.name[:7] == "Session"
    ]
    if re.fullmatch(r"Session\d", root.resolve().name) or above:
        session = next(
            (path for path in (root.resolve(), *above) if re.fullmatch(r"Session\d", path.name)), above[-1]
        )
        raise UserError(f"{root}: this lies inside a session; set CORPUS_ROOT to {session.parent}")
    raise UserError(
        f"{root}: no folders Session1 to Session5 in it; set CORPUS_ROOT to the folder that holds them "
        "(IEMOCAP_full_release)"
    )


def _read_iemocap_session(folder, labels, keep_brackets, release):
    has_video = (folder / "dialog" / "avi").is_dir()
    if not has_video:
        release.notes.append(
            f"{folder.name}: no dialog/avi, the release without video; its turns have no video"
        )
    videos = {path.stem: path for path in visible_files(folder / "dialog" / "avi", "*.avi", recursive=True)}
    seen = {source.turn.utterance_id for source in release.turns}
    for path in visible_files(folder / "dialog" / "EmoEvaluation", "Ses*.txt"):
        texts = _read_iemocap_transcripts(folder / "dialog" / "transcriptions" / path.name, release)
        for number, line in enumerate(read_lines(path), start=1):
            if not re.match(r"\[\s*\d", line):
                continue  # the header, raters' lines, blank lines
            turn = _iemocap_turn(line, folder.name, labels)
            if turn is None or turn.utterance_id in seen:
                release.problems.append(
                    Problem(
                        turn.utterance_id if turn else "",
                        f"{path}:{number}",
                        "turn listed twice" if turn else "not a line of EmoEvaluation",
                        "compare the file with the release",
                    )
                )
                continue
            seen.add(turn.utterance_id)
            turn.text = texts.get(turn.utterance_id, "")
            if not keep_brackets:
                turn.text = " ".join(BRACKET_TOKEN.sub(" ", turn.text).split())
            release.turns.append(_iemocap_media(turn, folder, videos, has_video, release))


def _iemocap_turn(line, session, labels):
    """The turn of one summary line, or None if the line does not read as one."""
    match = EVALUATION_LINE.match(line.strip())
    parts = UTTERANCE_ID.match(match[3]) if match else None
    ratings = re.findall(r"\d+\.?\d*", match[5]) if match else []
    if not parts or len(ratings) != 3:
        return None
    dialogue_id = match[3].rsplit("_", 1)[0]
    scale = {
        name: f"{min(5.0, max(1.0, float(value))):.4f}"
        for name, value in zip(("valence", "activation", "dominance"), ratings, strict=True)
    }
    raw_label = match[4].lower()
    return Turn(
        match[3],
        dialogue_id,
        0,
        parts[1] + parts[3],
        session,
        float(match[1]),
        float(match[2]),
        label=labels.get(raw_label, ""),
        extra={
            "raw_label": raw_label,
            **scale,
            "style": "improvised" if "_impro" in dialogue_id else "scripted",
        },
    )


def _read_iemocap_transcripts(path, release):
    """Text by utterance id; remarks ("M: ...") and fragments without a label (_MXX0) are left out."""
    if not path.is_file():
        release.problems.append(
            Problem("", str(path), "transcript file missing", "unpack the release completely")
        )
        return {}
    texts = {}
    for line in read_lines(path):
        head, colon, text = line.partition("]:")
        name = head.split()[0] if head.split() else ""
        if colon and UTTERANCE_ID.match(name):
            texts[name] = text.strip()
    return texts


def _iemocap_media(turn, folder, videos, has_video, release):
    """Where the turn's sound and picture are: its own wav, and its half of the dialogue's split screen.

    The wearer of the markers, whose letter is in the dialogue's name, is on the left.
    """
    source = SourceTurn(turn, times_known=True)
    wav = folder / "sentences" / "wav" / turn.dialogue_id / f"{turn.utterance_id}.wav"
    dialogue_wav = folder / "dialog" / "wav" / f"{turn.dialogue_id}.wav"
    if wav.is_file() or not dialogue_wav.is_file():
        source.audio = wav  # if absent, found missing when it is read
    else:
        source.audio, source.audio_span = dialogue_wav, (turn.start_s, turn.end_s)
        release.problems.append(
            Problem(
                turn.utterance_id,
                str(wav),
                "sentence wav missing; cut from the dialogue's recording, where both actors are heard",
                "unpack sentences/wav",
            )
        )
    if has_video:
        source.video = videos.get(
            turn.dialogue_id, folder / "dialog" / "avi" / "DivX" / f"{turn.dialogue_id}.avi"
        )
        source.video_span = (turn.start_s, turn.end_s)
        source.half = "left" if turn.speaker[-1] == turn.dialogue_id[5] else "right"
    return source


def _iemocap_counts(turns, sessions, labels):
    """Lines that hold the counts per session against the release's."""
    lines = []
    for name in (*sessions, *(["all sessions"] if len(sessions) == 5 else [])):
        names = sessions if name == "all sessions" else [name]
        mine = [s.turn for s in turns if s.turn.session in names]
        expected = Counter()
        for session in names:
            expected.update(IEMOCAP_COUNTS[session])
        of_class = Counter()
        for raw, label in labels.items():
            of_class[label] += expected[raw]
        found = Counter(turn.label for turn in mine if turn.label)
        lines.append(
            compare_counts(f"{name} turns", len(mine), expected["all"])
            + "; "
            + compare_counts("labelled", found.total(), of_class.total())
            + ", "
            + ", ".join(
                f"{label} {found[label]:,}"
                + (f" [{of_class[label]:,}]" if found[label] != of_class[label] else "")
                for label in IEMOCAP_CLASSES
            )
        )
    return lines


# ---- RAVDESS (FORMATS 4): Livingstone and Russo 2018 ------------------------------------------

RAVDESS_CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
RAVDESS_STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
RAVDESS_NAME = re.compile(r"^(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)$")
RAVDESS_CHANNELS = {"speech": ("01",), "song": ("02",), "both": ("01", "02")}
RAVDESS_COUNTS = {"speech": 1440, "song": 1012, "both": 2452}


def read_ravdess(root, channel):
    """Read RAVDESS: the audio-only files (03-*), the audio-video files (01-*), or both.

    root     any folder above the files; copies of a file in nested folders count once
    channel  "speech", "song" or "both"
    A recording that is there as wav and as mp4 is one turn with audio from the wav and video from the mp4.
    Video-only files (02-*) serve where the audio-video file is absent. The text carries no label.
    Extra columns: channel, intensity, statement, repetition.
    """
    root = require_folder(root, "RAVDESS")
    if channel not in RAVDESS_CHANNELS:
        raise UserError(f"RAVDESS_CHANNEL={channel}: choose one of {', '.join(RAVDESS_CHANNELS)}")
    release, recordings = Release(RAVDESS_CLASSES, []), {}
    files = [path for ending in ("*.wav", "*.mp4") for path in visible_files(root, ending, recursive=True)]
    for path in sorted(files, key=lambda p: (len(p.parts), p)):  # the outermost copy of a file counts
        match = RAVDESS_NAME.match(path.stem)
        if match is None:
            release.problems.append(
                Problem("", str(path), "not a RAVDESS name; left out", "names are seven two-digit fields")
            )
        elif match[2] in RAVDESS_CHANNELS[channel]:
            recordings.setdefault(path.stem[3:], {}).setdefault(match[1] + path.suffix.lower(), path)
    if not recordings:
        raise UserError(
            f"{root}: no RAVDESS files such as Actor_01/03-01-01-01-01-01-01.wav in it or below for "
            f"RAVDESS_CHANNEL={channel}; set CORPUS_ROOT to the folder that holds Actor_01 ..."
        )
    release.turns = [_ravdess_turn(name, copies) for name, copies in sorted(recordings.items())]
    release.notes.append(compare_counts(f"recordings ({channel})", len(recordings), RAVDESS_COUNTS[channel]))
    actors = {source.turn.speaker for source in release.turns}
    missing = [f"{k:02d}" for k in range(1, 25) if f"Actor_{k:02d}" not in actors]
    if missing:
        release.notes.append(f"no recordings of actors {', '.join(missing)}")
    return release


def _ravdess_turn(name, copies):
    """name: the six fields after the modality; copies: path by modality and ending, such as "03.wav"."""
    channel, emotion, intensity, statement, repetition, actor = name.split("-")
    video = copies.get("01.mp4") or copies.get("02.mp4")
    turn = Turn(
        name,
        name,
        0,
        f"Actor_{actor}",
        "",
        0.0,
        0.0,
        text=RAVDESS_STATEMENTS[statement],
        label=RAVDESS_CLASSES[int(emotion) - 1],
        extra={
            "channel": {"01": "speech", "02": "song"}[channel],
            "repetition": repetition,
            "intensity": {"01": "normal", "02": "strong"}[intensity],
            "statement": statement,
        },
    )
    return SourceTurn(
        turn, audio=copies.get("03.wav") or copies.get("01.wav") or copies.get("01.mp4"), video=video
    )


# ---- EMO-DB (FORMATS 5): Burkhardt et al. 2005 ------------------------------------------------

EMODB_CLASSES = ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral")
# German initials: Ärger/Wut, Langeweile, Ekel, Angst, Freude, Trauer. F is not fear, A is not anger.
EMODB_LETTERS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
EMODB_COUNTS = {
    "anger": 127,
    "boredom": 81,
    "disgust": 46,
    "fear": 69,
    "happiness": 71,
    "sadness": 62,
    "neutral": 79,
}
EMODB_NAME = re.compile(r"^(\d\d)([ab]\d\d)([WLEAFTN])([a-z])$")
EMODB_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read_emodb(root):
    """Read EMO-DB; root is the folder with wav/, or the wav folder itself.

    The text is the German sentence and carries no label. Extra columns: sentence (its code), version.
    """
    root = require_folder(root, "EMO-DB")
    folder = root / "wav" if (root / "wav").is_dir() else root
    release = Release(EMODB_CLASSES, [])
    for path in visible_files(folder, "*.wav"):
        match = EMODB_NAME.match(path.stem)
        if match is None or match[2] not in EMODB_TEXTS:
            release.problems.append(
                Problem(
                    "",
                    str(path),
                    "not an EMO-DB name; left out",
                    "names are speaker, sentence, emotion letter, version: 03a01Fa.wav",
                )
            )
            continue
        speaker, sentence, letter, version = match.groups()
        turn = Turn(
            path.stem,
            path.stem,
            0,
            speaker,
            "",
            0.0,
            0.0,
            text=EMODB_TEXTS[sentence],
            label=EMODB_LETTERS[letter],
            extra={"sentence": sentence, "version": version},
        )
        release.turns.append(SourceTurn(turn, audio=path))
    if not release.turns:
        raise UserError(
            f"{root}: no EMO-DB files such as wav/03a01Fa.wav in it; set CORPUS_ROOT to the folder "
            "that holds wav/"
        )
    found = Counter(source.turn.label for source in release.turns)
    release.notes.append(compare_counts("recordings", found.total(), sum(EMODB_COUNTS.values())))
    release.notes += [
        compare_counts(label, found[label], count)
        for label, count in EMODB_COUNTS.items()
        if found[label] != count
    ]
    return release


# ---- MELD (FORMATS 10): Poria et al. 2019 -----------------------------------------------------

MELD_CLASSES = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
MELD_COUNTS = {"train": 9989, "dev": 1109, "test": 2610}
MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
MELD_TIME = re.compile(r"^(\d+):(\d\d):(\d\d)[,.](\d+)$")


def read_meld(root):
    """Read MELD's three csv files and, where they are unpacked, the clips of MELD.Raw.

    root  any folder above {train,dev,test}_sent_emo.csv
    Turns keep the order of Utterance_ID, since the times in the csv are positions in the episode and a few
    are wrong; where a clip is there, its length decides how long a turn is. Extra columns: split (the
    official one), sentiment, season, episode.
    """
    root = require_folder(root, "MELD")
    release, no_clips = Release(MELD_CLASSES, []), []
    for split in MELD_COUNTS:
        tables = visible_files(root, f"{split}_sent_emo.csv", recursive=True)
        if not tables:
            release.notes.append(f"{split}_sent_emo.csv is missing from {root}: no {split} turns")
            continue
        clips = next((path for path in sorted(root.rglob(MELD_FOLDERS[split])) if path.is_dir()), None)
        if clips is None:
            no_clips.append(split)
        turns = [_meld_turn(row, split, clips, tables[0], release) for row in read_csv(tables[0])]
        release.turns += [source for source in turns if source]
        release.notes.append(compare_counts(f"{split} turns", len(turns), MELD_COUNTS[split]))
    if not release.turns:
        raise UserError(
            f"{root}: no train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv with turns in it or "
            "below; set CORPUS_ROOT to the MELD folder"
        )
    if no_clips:
        folders = ", ".join(MELD_FOLDERS[split] for split in no_clips)
        release.notes.append(
            f"text only for {', '.join(no_clips)}: no folder {folders} of MELD.Raw below {root}"
        )
    return release


def _meld_turn(row, split, clips, table, release):
    """The turn of a csv row, or None with a Problem if the row cannot be read."""
    try:
        dialogue, utterance = int(row["Dialogue_ID"]), int(row["Utterance_ID"])
        start_s, end_s = (_meld_seconds(row[name]) for name in ("StartTime", "EndTime"))
        text, label = row["Utterance"].strip(), row["Emotion"].strip().lower()
    except (KeyError, TypeError, ValueError) as error:
        release.problems.append(
            Problem(
                "",
                str(table),
                f"row {row.get('Sr No.', '?')} cannot be read ({error})",
                "download the csv again",
            )
        )
        return None
    name = f"{split}_dia{dialogue:04d}_utt{utterance:02d}"
    if end_s <= start_s:
        release.problems.append(
            Problem(name, str(table), "the csv gives it no length", "none; its clip decides")
        )
        end_s = start_s
    turn = Turn(
        name,
        f"{split}_dia{dialogue:04d}",
        utterance,
        row["Speaker"].strip(),
        "",
        start_s,
        end_s,
        text=text,
        label=label if label in MELD_CLASSES else "",
        extra={
            "split": split,
            **{key.lower(): row.get(key, "") for key in ("Sentiment", "Season", "Episode")},
        },
    )
    clip = clips / f"dia{dialogue}_utt{utterance}.mp4" if clips else None
    return SourceTurn(turn, audio=clip, video=clip)


def _meld_seconds(text):
    """ "0:10:44,769" in seconds."""
    match = MELD_TIME.match(text.strip())
    if match is None:
        raise ValueError(f"time {text!r}")
    hours, minutes, seconds, fraction = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


# ---- VoxCeleb2 (FORMATS 3): Chung et al. 2018 -------------------------------------------------

VOXCELEB2_COUNTS = {"dev": (5994, 1092009), "test": (118, 36237)}  # speakers, clips
VOXCELEB2_SPEAKER = re.compile(r"id\d{5}")
VOXCELEB2_VIDEO = re.compile(r"[\w-]{11}", re.ASCII)  # YouTube's id; may start with - or _
VOXCELEB2_CLIP = re.compile(r"(\d{5})\.(m4a|wav|mp4)")
VOXCELEB2_ENDINGS = ("m4a", "wav", "mp4")  # the first that is there is the source of a clip's audio
VOXCELEB2_SETS = {"dev": "dev", "train": "dev", "test": "test"}  # folder names, where vox2_meta.csv is absent


def read_voxceleb2(root, n_speakers, seed, with_video=False):
    """Read VoxCeleb2 in place: a turn per clip, a dialogue per video, no labels and no classes.

    root        any folder above idXXXXX/<video>/NNNNN.m4a, such as dev/ or aac/ of the archives; in copies with
                wav or mp4 files, these are the source of the audio
    n_speakers  take this many speakers, drawn from all that are there; 0 = all
    seed        of the drawing
    with_video  True also names a clip's mp4, where it is there, as its video; sound still comes from the m4a first
    A clip that is there more than once (same speaker, video and number) counts once. No file is opened and no
    size asked for, since the release has 1.1 million of them. Extra columns: gender and set (dev, test), "" where
    vox2_meta.csv is absent and no folder says.
    Raises UserError if no clip is found.
    """
    root = require_folder(root, "VoxCeleb2").resolve()
    folders = _voxceleb2_speakers(root)
    chosen = sorted(folders)
    if 0 < n_speakers < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, n_speakers))
    facts = _voxceleb2_facts(root, folders)
    release = Release((), [], media_in_place=True)
    for speaker in tqdm(chosen, desc="  reading", unit="speaker", delay=2):
        release.turns += _voxceleb2_turns(
            speaker, folders[speaker], facts[speaker], with_video, release.problems
        )
    if not release.turns:
        raise UserError(
            f"{root}: no VoxCeleb2 clips such as id00012/21Uxsk56VDQ/00001.m4a in it or below; set CORPUS_ROOT "
            "to the folder that holds dev or aac"
        )
    if len(chosen) < len(folders):
        release.notes.append(
            f"{len(chosen):,} of {len(folders):,} speakers, drawn with seed {seed}: {len(release.turns):,} clips"
        )
    else:
        release.notes += _voxceleb2_counts(release.turns)
    if with_video:
        n_videos = sum(bool(source.turn.video) for source in release.turns)
        release.notes.append(f"video: an mp4 of {n_videos:,} of the {len(release.turns):,} clips")
    return release


def _visible_entries(folder):
    """The entries of a folder that are not hidden, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted(
            (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name
        )


def _voxceleb2_speakers(root):
    """{speaker: its folders} in or below root; copies and parts of the archives may hold several."""
    folders, waiting, seen = defaultdict(list), [str(root)], set()
    while waiting:
        folder = waiting.pop()
        if VOXCELEB2_SPEAKER.fullmatch(os.path.basename(folder)):
            folders[os.path.basename(folder)].append(folder)
        elif (real := os.path.realpath(folder)) not in seen:  # links may lead back
            seen.add(real)
            waiting += [entry.path for entry in _visible_entries(folder) if entry.is_dir()]
    return folders


def _voxceleb2_facts(root, folders):
    """{speaker: {"gender", "set"}} from vox2_meta.csv in root or beside it, else from the folders' names."""
    tables = [path for folder in (root, root.parent) for path in visible_files(folder, "vox2_meta.csv")]
    rows = [re.split(r"[,\t]", line) for line in read_lines(tables[0])] if tables else [[""]]
    rows = [[cell.strip() for cell in row] for row in rows]  # names and values carry trailing blanks
    named = {row[0]: dict(zip(rows[0], row)) for row in rows}
    facts = {}
    for speaker, places in folders.items():
        parts = (root.name, *Path(places[0]).relative_to(root).parts)
        by_folder = next((VOXCELEB2_SETS[part] for part in parts if part in VOXCELEB2_SETS), "")
        row = named.get(speaker, {})
        facts[speaker] = {"gender": row.get("Gender", ""), "set": row.get("Set") or by_folder}
    return facts


def _voxceleb2_turns(speaker, folders, extra, with_video, problems):
    """The turns of one speaker, by video and number; they share the dict `extra`."""
    videos = defaultdict(lambda: defaultdict(dict))  # {video: {number: {ending: path}}}
    for folder in folders:
        for video in _visible_entries(folder):
            if not (VOXCELEB2_VIDEO.fullmatch(video.name) and video.is_dir()):
                problems.append(
                    Problem(
                        "",
                        video.path,
                        "not a YouTube id of 11 characters; left out",
                        "paths end in idXXXXX/<video>/NNNNN.m4a",
                    )
                )
                continue
            for clip in _visible_entries(video.path):
                match = VOXCELEB2_CLIP.fullmatch(clip.name)
                if match:
                    copies = videos[video.name][match[1]]
                    copies[match[2]] = min(clip.path, copies.get(match[2], clip.path))
                elif clip.name.endswith(VOXCELEB2_ENDINGS):
                    problems.append(
                        Problem(
                            "",
                            clip.path,
                            "not a VoxCeleb2 name; left out",
                            "clips are numbered with five digits",
                        )
                    )
    turns = []
    for video, clips in sorted(videos.items()):
        dialogue_id = f"{speaker}_{video}"
        turns += [
            SourceTurn(
                Turn(
                    f"{dialogue_id}_{number}",
                    dialogue_id,
                    position,
                    speaker,
                    "",
                    0.0,
                    0.0,
                    audio=next(copies[ending] for ending in VOXCELEB2_ENDINGS if ending in copies),
                    video=copies.get("mp4", "") if with_video else "",
                    extra=extra,
                )
            )
            for position, (number, copies) in enumerate(sorted(clips.items()))
        ]
    return turns


def _voxceleb2_counts(turns):
    """Lines that hold speakers and clips of each set against the release's."""
    clips = Counter(source.turn.extra["set"] for source in turns)
    speakers = Counter(name for name, _ in {(s.turn.extra["set"], s.turn.speaker) for s in turns})
    return [
        f"{compare_counts(f'{name} speakers', speakers[name], VOXCELEB2_COUNTS[name][0])}; "
        f"{compare_counts('clips', clips[name], VOXCELEB2_COUNTS[name][1])}"
        if name in VOXCELEB2_COUNTS
        else f"{speakers[name]:,} speakers, {clips[name]:,} clips of no known set"
        for name in sorted(clips)
    ]


# ---- Bring your own: a folder with manifest.csv -----------------------------------------------

REQUIRED_COLUMNS = ("speaker", "label")
OPTIONAL_COLUMNS = (
    "utterance_id",
    "dialogue_id",
    "turn",
    "session",
    "start_s",
    "end_s",
    "text",
    "audio",
    "video",
)


def read_folder(root):
    """Read a folder with a manifest.csv: speaker and label, and any of audio, video, text, one row per turn.

    audio, video are paths relative to the folder. Optional: utterance_id (else numbered), dialogue_id (else
    each row stands alone), turn, session, start_s and end_s in the dialogue, split ("train", "dev", "test").
    An empty label marks a turn that is context only. Other columns are kept. The classes are the labels in
    alphabetical order.
    Raises UserError with the row's line number for an absolute path, one that leaves the folder, a repeated
    id, a missing column or speaker, or a number that is none.
    """
    root = require_folder(root, "corpus")
    path = root / "manifest.csv"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; CORPUS must be the name of a corpus or a folder with a manifest.csv"
        )
    rows = read_csv(path)
    absent = [name for name in REQUIRED_COLUMNS if not rows or name not in rows[0]]
    if absent:
        raise UserError(
            f"{path}: {'lacks the column ' + absent[0] if rows else 'has no rows'}; it needs "
            f"{', '.join(REQUIRED_COLUMNS)} and some of {', '.join(OPTIONAL_COLUMNS)}"
        )
    turns, lines = [], {}
    for number, row in enumerate(rows, start=2):
        source = _folder_turn(
            root, path, number, {key: (value or "").strip() for key, value in row.items() if key}
        )
        name = source.turn.utterance_id
        if name in lines:
            raise UserError(
                f"{path}:{number}: utterance_id {name} is already on line {lines[name]}; make it unique"
            )
        lines[name] = number
        turns.append(source)
    classes = tuple(sorted({source.turn.label for source in turns if source.turn.label}))
    if not classes:
        raise UserError(f"{path}: no row has a label; fill in the column label")
    if "turn" not in rows[0]:
        number_turns(turns)
    return Release(classes, turns)


def _folder_turn(root, path, number, row):
    """The turn of one row of a user's manifest (a dict of stripped strings)."""
    if not row["speaker"]:
        raise UserError(f"{path}:{number}: no speaker; the splits need one on every row")
    name = row.get("utterance_id") or f"utt{number - 1:06d}"
    if not re.fullmatch(r"[\w.+=@-]+", name) or name.startswith("."):
        raise UserError(
            f"{path}:{number}: utterance_id {name!r} becomes a file name; use letters, digits, - and _"
        )
    try:
        start_s, end_s = float(row.get("start_s") or 0), float(row.get("end_s") or 0)
        position = int(row.get("turn") or 0)
    except ValueError as error:
        raise UserError(
            f"{path}:{number}: {error}; turn is a whole number, start_s and end_s are seconds"
        ) from error
    known = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS}
    turn = Turn(
        name,
        row.get("dialogue_id") or name,
        position,
        row["speaker"],
        row.get("session", ""),
        start_s,
        end_s,
        text=row.get("text", ""),
        label=row["label"],
        extra={key: value for key, value in row.items() if key not in known},
    )
    audio, video = (_inside(root, row.get(key, ""), f"{path}:{number}: {key}") for key in ("audio", "video"))
    return SourceTurn(turn, audio=audio, video=video)


def _inside(root, text, where):
    """A path of a user's manifest, None for ""; UserError if it is absolute or leaves root."""
    if not text:
        return None
    relative = PurePosixPath(text.replace("\\", "/"))
    if relative.is_absolute() or re.match(r"[A-Za-z]:", text):
        raise UserError(f"{where} {text} is absolute; write it relative to {root}")
    if not (root / relative).resolve().is_relative_to(root.resolve()):
        raise UserError(f"{where} {text} leaves the folder {root}; keep the recordings inside it")
    return root / relative


# ---- By name ----------------------------------------------------------------------------------

# Reader of each named corpus and the options it takes.
READERS = {
    "iemocap": (read_iemocap, ("merge_excited", "keep_brackets")),
    "demo_iemocap": (read_iemocap, ("merge_excited", "keep_brackets")),
    "ravdess": (read_ravdess, ("channel",)),
    "emodb": (read_emodb, ()),
    "meld": (read_meld, ()),
    "voxceleb2": (read_voxceleb2, ("n_speakers", "seed", "with_video")),
    "demo_ravdess": (read_ravdess, ("channel",)),
    "demo_emodb": (read_emodb, ()),
    "demo_voxceleb2": (read_voxceleb2, ("n_speakers", "seed")),
    "cremad": (read_cremad, ()),
    "lombard": (read_lombard, ()),
    "audioset": (read_audioset, ()),
    "mosei": (read_mosei, ("folds",)),
    "demo_cremad": (read_cremad, ()),
    "demo_ravdess_av": (read_ravdess, ("channel",)),
    "demo_lombard": (read_lombard, ()),
    "demo_audioset": (read_audioset, ()),
    "demo_mosei": (read_mosei, ("folds",)),
    "demo_voxceleb2_av": (partial(read_voxceleb2, with_video=True), ("n_speakers", "seed")),
}
USUAL_FOLDERS = {
    "iemocap": ("IEMOCAP_full_release", "IEMOCAP", "iemocap"),
    "demo_iemocap": ("demo_iemocap/IEMOCAP_full_release",),
    "ravdess": ("RAVDESS", "ravdess"),
    "emodb": ("EMO-DB", "EMODB", "emodb", "emoDB"),
    "meld": ("MELD", "MELD.Raw", "meld"),
    "voxceleb2": ("VoxCeleb2", "voxceleb2", "VoxCeleb2_dev"),
    "demo_ravdess": ("demo_ravdess",),
    "demo_emodb": ("demo_emodb",),
    "demo_voxceleb2": ("demo_voxceleb2",),
    "cremad": ("CREMA-D", "cremad", "CREMAD"),
    "lombard": ("lombardgrid", "LombardGRID", "Lombard-GRID", "lombard"),
    "audioset": ("AudioSet", "audioset", "AudioSet-20K"),
    "mosei": ("CMU_MOSEI", "CMU-MOSEI", "MOSEI", "mosei"),
    "demo_cremad": ("demo_cremad",),
    "demo_ravdess_av": ("demo_ravdess_av",),
    "demo_lombard": ("demo_lombard",),
    "demo_audioset": ("demo_audioset",),
    "demo_mosei": ("demo_mosei",),
    "demo_voxceleb2_av": ("demo_voxceleb2_av",),
}


def find_root(corpus, data_root):
    """Where a corpus is looked for under DATA_ROOT/raw: the first usual folder name that is there.

    A corpus given as a folder is that folder. Raises UserError for a name that is neither.
    """
    if corpus in USUAL_FOLDERS:
        places = [Path(data_root) / "raw" / name for name in USUAL_FOLDERS[corpus]]
        return next((place for place in places if place.is_dir()), places[0])
    if "/" not in corpus:
        raise UserError(
            f"CORPUS={corpus}: choose one of {', '.join(READERS)}, or a folder with a manifest.csv, "
            f"written with a slash (./{corpus})"
        )
    return Path(corpus)


def read_corpus(corpus, root, **options):
    """Read the release of a named corpus, or a folder with a manifest.csv, from `root`.

    options  arguments of all readers by name; each takes its own
    """
    reader, wanted = READERS.get(corpus, (read_folder, ()))
    return reader(root, **{name: options[name] for name in wanted})
