"""VoxCeleb2, a million clips of celebrities in interviews: Chung et al. 2018 (FORMATS 3)."""

import os
import random
import re
from collections import Counter, defaultdict

from tqdm import tqdm

from common.corpora.release import Release, SourceTurn, need_folder, nothing_in, read_lines, walk
from common.manifest import Turn

FOLDERS = ("VoxCeleb2", "voxceleb2", "VoxCeleb2_dev")
COUNTS = {"dev": (5994, 1092009), "test": (118, 36237)}  # speakers, clips
SPEAKER = re.compile(r"id\d{5}")
VIDEO = re.compile(r"[\w-]{11}", re.ASCII)  # YouTube's id; may start with - or _
CLIP = re.compile(r"(\d{5})\.(m4a|wav|mp4)")
ENDINGS = ("m4a", "wav", "mp4")  # the first that is there is the source of a clip's audio
META = "vox2_meta.csv"
SETS = {"dev": "dev", "train": "dev", "test": "test"}  # folder names, where vox2_meta.csv is absent


def read(root, n_speakers=0, seed=0):
    """Read VoxCeleb2 in place: a turn per clip, a dialogue per video, no labels and no classes.

    root        any folder above idXXXXX/<video>/NNNNN.m4a (or .wav, .mp4), such as dev/ or aac/
    n_speakers  take this many speakers, drawn with `seed` from all that are there; 0 = all
    A clip that is there more than once (same speaker, video and number) counts once. No file is opened and no
    size asked for, since the release has 1.1 million of them. Extra columns: gender and set (dev, test), ""
    where vox2_meta.csv is absent and no folder says.
    """
    root = need_folder(root, "VoxCeleb2").resolve()
    folders = _speaker_folders(root)
    chosen = sorted(folders)
    if 0 < n_speakers < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, n_speakers))
    facts, release = _facts(root, folders), Release(media_in_place=True)
    for speaker in tqdm(chosen, desc="  reading", unit="speaker", delay=2, disable=None):
        release.turns += _turns(speaker, _clips(folders[speaker], release), facts[speaker])
    n_clips = len(release.turns)
    if not n_clips:
        clips = "VoxCeleb2 clips such as id00012/21Uxsk56VDQ/00001.m4a"
        raise nothing_in(root, clips, "the folder that holds dev or aac")
    if len(chosen) < len(folders):
        drawn = f"{len(chosen):,} of {len(folders):,} speakers, drawn with seed {seed}: {n_clips:,} clips"
        release.notes.append(drawn)
    else:
        _compare(release)
    return release


def _speaker_folders(root):
    """{speaker: its folders} in or below root; copies and parts of the archives may hold several."""
    folders = defaultdict(list)
    for folder, below, _ in walk(root):
        if SPEAKER.fullmatch(folder.name):
            folders[folder.name].append(folder)
            below.clear()
    return folders


def _facts(root, folders):
    """{speaker: {"gender", "set"}} from vox2_meta.csv near root, else from the folders' names."""
    near = (root, *root.absolute().parents[:3])
    places = (path for folder in near for path in [folder / META, *folder.glob(f"*/{META}")])
    tables = [path for path in places if path.is_file()]
    rows = [re.split(r"[,\t]", line) for line in read_lines(tables[0])] if tables else [[""]]
    rows = [[cell.strip() for cell in row] for row in rows]  # names and values carry trailing blanks
    named = {row[0]: dict(zip(rows[0], row)) for row in rows}
    facts = {}
    for speaker, places in folders.items():
        parts = (root.name, *places[0].relative_to(root).parts)
        by_folder = next((SETS[part] for part in parts if part in SETS), "")
        row = named.get(speaker, {})
        facts[speaker] = {"gender": row.get("Gender", ""), "set": row.get("Set") or by_folder}
    return facts


def _entries(folder):
    """The entries of a folder that are not hidden, without asking for more than their names."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)


def _clips(folders, release):
    """{video: {number: {ending: path}}} of one speaker; other names are Problems."""
    clips = defaultdict(lambda: defaultdict(dict))
    for video in (entry for folder in folders for entry in _entries(folder)):
        if not (VIDEO.fullmatch(video.name) and video.is_dir()):
            what = "not a YouTube id of 11 characters; left out"
            release.problem("", video.path, what, "paths end in idXXXXX/<video>/NNNNN.m4a")
            continue
        for clip in _entries(video.path):
            match = CLIP.fullmatch(clip.name)
            if match:
                copies = clips[video.name][match[1]]
                copies[match[2]] = min(clip.path, copies.get(match[2], clip.path))
            elif clip.name.endswith(ENDINGS):
                what = "not a VoxCeleb2 name; left out"
                release.problem("", clip.path, what, "clips are numbered with five digits")
    return clips


def _turns(speaker, clips, extra):
    """The turns of one speaker, by video and number; they share the dict `extra`."""
    turns = []
    for video, numbers in sorted(clips.items()):
        dialogue_id = f"{speaker}_{video}"
        for position, (number, copies) in enumerate(sorted(numbers.items())):
            turn = Turn(f"{dialogue_id}_{number}", dialogue_id, position, speaker, "", 0.0, 0.0, extra=extra)
            turn.audio = next(copies[ending] for ending in ENDINGS if ending in copies)
            turn.video = copies.get("mp4", "")
            turns.append(SourceTurn(turn))
    return turns


def _compare(release):
    """Notes that hold speakers and clips of each set against the release's."""
    clips = Counter(source.turn.extra["set"] for source in release.turns)
    speakers = Counter(name for name, _ in {(s.turn.extra["set"], s.turn.speaker) for s in release.turns})
    for name in sorted(clips):
        n_speakers, n_clips = COUNTS.get(name, (0, 0))
        what = f"{name} speakers" if name else "speakers of no known set"
        release.expect((what, speakers[name], n_speakers), ("clips", clips[name], n_clips))
