"""MELD, dialogues of the series Friends: Poria et al. 2019 (FORMATS 10)."""

import re

from common.corpora.release import Release, SourceTurn, files_in, need_folder, nothing_in, walk
from common.manifest import Turn

FOLDERS = ("MELD", "MELD.Raw", "meld")
CLASSES = ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear")
COUNTS = {"train": 9989, "dev": 1109, "test": 2610}
CLIP_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
CUT_AGAIN = "final_videos_test"  # before the name of 132 test clips, whose first cuts show other scenes
TIME = re.compile(r"^(\d+):(\d\d):(\d\d)[,.](\d+)$")


def read(root):
    """Read the three csv files and, where they are unpacked, the clips of MELD.Raw.

    root  any folder above {train,dev,test}_sent_emo.csv
    Turns keep the order of Utterance_ID, since the times in the csv are positions in the episode and a few
    are wrong; where a clip is there, its length decides how long a turn is.
    Extra columns: split (the official one), sentiment, season, episode.
    """
    root = need_folder(root, "MELD")
    release = Release(CLASSES)
    tables = {path.name: path for path in reversed(files_in(root, ".csv"))}
    folders = {folder.name: folder for folder in reversed([folder for folder, _, _ in walk(root)])}
    for split, published in COUNTS.items():
        table = tables.get(f"{split}_sent_emo.csv")
        if table is None:
            release.notes.append(f"{split}_sent_emo.csv is missing from {root}: no {split} turns")
            release.checks.append(False)
            continue
        clips = folders.get(CLIP_FOLDERS[split])
        if clips is None:
            folder = f"no folder {CLIP_FOLDERS[split]} of MELD.Raw below {root}"
            release.notes.append(f"{split}: {folder}; its turns have text only")
        turns, found = [_turn(row, split, clips, table, release) for row in release.read_table(table)], {}
        for source in filter(None, turns):
            if found.setdefault(source.turn.utterance_id, source) is not source:
                what = "turn listed twice; the first is kept"
                release.problem(source.turn.utterance_id, table, what, "download the csv again")
        release.turns += found.values()
        release.expect((f"{split} turns", len(turns), published))
        if n := sum(source.video is not None and CUT_AGAIN in source.video.name for source in found.values()):
            release.notes.append(f"{split}: the clips of {n:,} turns are those called {CUT_AGAIN}...")
    if not release.turns:
        tables = "train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv with turns"
        raise nothing_in(root, tables, "the MELD folder")
    return release


def _turn(row, split, clips, table, release):
    """The turn of a csv row, or None with a Problem if the row cannot be read."""
    try:
        dialogue, utterance = int(row["Dialogue_ID"]), int(row["Utterance_ID"])
        start_s, end_s = (_seconds(row[name]) for name in ("StartTime", "EndTime"))
        text, label = row["Utterance"].strip(), row["Emotion"].strip().lower()
    except (KeyError, TypeError, ValueError) as error:
        problem = f"row {row.get('Sr No.', '?')} cannot be read ({error})"
        release.problem("", table, problem, "download the csv again")
        return None
    dialogue_id = f"{split}_dia{dialogue:04d}"
    name = f"{dialogue_id}_utt{utterance:02d}"
    if end_s <= start_s:
        release.problem(name, table, "the csv gives it no length", "none; its clip decides")
        end_s = start_s
    extra = {"split": split, **{key.lower(): row.get(key, "") for key in ("Sentiment", "Season", "Episode")}}
    speaker, label = row["Speaker"].strip(), label if label in CLASSES else ""
    turn = Turn(name, dialogue_id, utterance, speaker, "", start_s, end_s, text, label, extra=extra)
    if clips is None:
        return SourceTurn(turn)
    clip = clips / f"dia{dialogue}_utt{utterance}.mp4"
    again = clip.with_name(CUT_AGAIN + clip.name)
    clip = again if again.exists() else clip
    return SourceTurn(turn, audio=clip, video=clip)


def _seconds(text):
    """ "0:10:44,769" in seconds."""
    match = TIME.match(text.strip())
    if match is None:
        raise ValueError(f"time {text!r}")
    hours, minutes, seconds, fraction = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")
