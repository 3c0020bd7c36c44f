"""RAVDESS, acted speech and song of 24 actors, sound and video: Livingstone and Russo 2018 (FORMATS 4)."""

import re

from common.corpora.release import Release, files_in, need_folder, nothing_in, single
from common.files import UserError

FOLDERS = ("RAVDESS", "ravdess")
CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
NAME = re.compile(r"^(0[1-3])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)$")
CHANNELS = {"speech": ("01",), "song": ("02",), "both": ("01", "02")}
COUNTS = {"speech": 1440, "song": 1012, "both": 2452}


def read(root, channel="speech"):
    """Read the audio-only files (03-*), the audio-video files (01-*), or both.

    root     any folder above the files; copies of a file in nested folders count once
    channel  "speech", "song" or "both"
    A recording that is there as wav and as mp4 is one turn with audio from the wav and video from the mp4.
    Video-only files (02-*) serve where the audio-video file is absent. The text carries no label.
    Extra columns: channel, intensity, statement, repetition, gender.
    """
    root = need_folder(root, "RAVDESS")
    if channel not in CHANNELS:
        raise UserError(f"RAVDESS_CHANNEL={channel}: choose one of {', '.join(CHANNELS)}")
    release, recordings = Release(CLASSES), {}
    for path in files_in(root, ".wav", ".mp4"):
        match = NAME.match(path.stem)
        if match is None:
            release.problem("", path, "not a RAVDESS name; left out", "names are seven two-digit fields")
        elif match[2] in CHANNELS[channel]:
            recordings.setdefault(path.stem[3:], {}).setdefault(match[1] + path.suffix.lower(), path)
    if not recordings:
        what = f"RAVDESS files such as 03-01-01-01-01-01-01.wav of RAVDESS_CHANNEL={channel}"
        raise nothing_in(root, what, "the folder that holds Actor_01 ...")
    release.turns = [_turn(name, copies) for name, copies in sorted(recordings.items())]
    release.expect((f"recordings ({channel})", len(recordings), COUNTS[channel]))
    actors = {source.turn.speaker for source in release.turns}
    missing = [f"{k:02d}" for k in range(1, 25) if f"Actor_{k:02d}" not in actors]
    if missing:
        release.notes.append(f"no recordings of actors {', '.join(missing)}")
    return release


def _turn(name, copies):
    """name: the six fields after the modality; copies: path by modality and ending, such as "03.wav"."""
    channel, emotion, intensity, statement, repetition, actor = name.split("-")
    audio = copies.get("03.wav") or copies.get("01.wav") or copies.get("01.mp4")
    video = copies.get("01.mp4") or copies.get("02.mp4")
    extra = {"channel": {"01": "speech", "02": "song"}[channel]}
    extra |= {"intensity": {"01": "normal", "02": "strong"}[intensity]}
    extra |= {"statement": statement, "repetition": repetition}
    extra |= {"gender": "male" if int(actor) % 2 else "female"}
    text, label = STATEMENTS[statement], CLASSES[int(emotion) - 1]
    return single(name, f"Actor_{actor}", audio, video, text, label, **extra)
