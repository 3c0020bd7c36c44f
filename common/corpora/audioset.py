"""AudioSet, ten seconds each of YouTube videos: Gemmeke et al. 2017, with CAV-MAE's manifests (FORMATS 8).

The recordings stay where they are, at the rates they have.
"""

import csv
import json
import os
import re
from collections import Counter, namedtuple
from pathlib import Path

from common.corpora import release
from common.files import UserError

FOLDERS = ("AudioSet", "audioset", "AudioSet-20K")
N_BALANCED = 18691  # segments of the balanced set that CAV-MAE still found; all of them are nowhere any more
NAME = re.compile(r"Y?([\w-]{11})(?:_\d+(?:\.\d+)?){0,2}", re.ASCII)  # copies add Y, start, end to the id

# A row of a manifest or table; stem: the name of its recordings; set: the manifest's; wav, folder: its paths.
Segment = namedtuple("Segment", "name stem labels set wav folder", defaults=("", ""))


def read(root):
    """Read AudioSet segments in place: a turn per segment, no classes; the speaker is the YouTube video.

    root  a folder with CAV-MAE manifests ({"data": [{"video_id", "wav", "video_path", "labels"}]}), or with
          the official segment tables (csv) and media that are named by the YouTube id, with or without a "Y"
          before and the times after it. Paths of a manifest that lead nowhere are looked for by name
    Pictures come from a video with the same stem, beside the sound or in a folder `video`; CAV-MAE's ten JPEG
    frames are no video. Segments without media are counted, since videos vanish from YouTube.
    Extra columns: labels (comma-joined ids), set (the manifest's name).
    """
    root = release.need_folder(root, "AudioSet").resolve()
    corpus, files = release.Release(media_in_place=True), release.files_in(root)
    sounds = release.by_stem(path for path in files if path.suffix.lower() in release.AUDIO_ENDINGS)
    videos = release.by_stem(path for path in files if path.suffix.lower() in release.VIDEO_ENDINGS)
    segments = _all_segments(files, {*sounds, *videos}, corpus)
    if not segments:
        what = 'CAV-MAE manifest (json with a list "data") and no segment table'
        raise release.nothing_in(root, what, "the folder that holds one")
    turns, absent = {}, []
    for segment in segments:
        source = _turn(segment, sounds, videos)
        if source.audio is None:
            absent.append(segment.wav or segment.name)
        else:
            turns.setdefault(source.turn.utterance_id, source)
    if not turns:
        what = f"none of its {len(segments):,} segments is there, for example {absent[0]}"
        raise UserError(f"{root}: {what}; put the recordings below it, or correct the manifest")
    corpus.turns = [turns[name] for name in sorted(turns)]
    corpus.checks.append(len(turns) >= N_BALANCED)
    corpus.notes += _notes(corpus.turns, segments, absent)
    return corpus


def _all_segments(files, stems, corpus):
    """The Segments of all manifests, and of all tables those that no manifest lists."""
    segments = []
    for path in files:  # .info.json is of a downloader, one per video
        if path.suffix.lower() == ".json" and not path.name.endswith(".info.json"):
            segments += _manifest_segments(path, corpus)
    listed = {_youtube_id(segment.name) for segment in segments}
    names = {_youtube_id(stem): stem for stem in sorted(stems, reverse=True)}
    for path in files:
        if path.suffix.lower() == ".csv":
            segments += [s for s in _table_segments(path, names, corpus) if s.name not in listed]
    return segments


def _youtube_id(name):
    """The YouTube id in a file's or segment's name, the whole name where there is none."""
    match = NAME.fullmatch(name)
    return match[1] if match else name


def _manifest_segments(path, corpus):
    """The rows of a CAV-MAE manifest; none of another json file, such as the ontology."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        corpus.problem("", path, f"not valid JSON ({error})", "download it again")
        return []
    rows = data.get("data") if isinstance(data, dict) else None
    segments = []
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        row = {key: str(value) for key, value in row.items()} if isinstance(row, dict) else {}
        wav = row.get("wav", "")
        stem = os.path.splitext(os.path.basename(wav))[0]  # ids may hold dots: abc_40.000.flac
        name = row.get("video_id") or stem
        if name:
            folder, labels = row.get("video_path", ""), row.get("labels", "")
            segments.append(Segment(name, stem or name, labels, path.stem, wav, folder))
        else:
            what = f"entry {number} has neither video_id nor wav; left out"
            corpus.problem("", path, what, "compare the manifest with CAV-MAE's")
    return segments


def _table_segments(path, names, corpus):
    """The rows of an official segment table (YTID, start, end, quoted labels); none of another csv file.

    names  {YouTube id: stem of the media that are there}
    """
    lines = release.read_lines(path)
    if not lines[0].startswith("#"):
        return []  # class_labels_indices.csv and the like
    segments = []
    rows = (line for line in lines if line and not line.startswith("#"))
    try:
        for row in csv.reader(rows, skipinitialspace=True):
            if len(row) == 4:
                segments.append(Segment(row[0], names.get(row[0], row[0]), row[3], path.stem))
            else:
                what = f"row {','.join(row)!r} cannot be read; left out"
                corpus.problem("", path, what, "rows are YTID, start, end, labels")
    except csv.Error as error:
        corpus.problem("", path, f"a quotation mark is not closed ({error})", "download it again")
    return segments


def _turn(segment, sounds, videos):
    """The turn of a segment; its source has no audio where nothing of it is there."""
    name, stem, listed = segment.name, segment.stem, Path(segment.wav)
    is_there = listed.is_absolute() and listed.is_file()
    audio = listed if is_there else sounds.get(stem) or sounds.get(name)
    video = videos.get(stem) or videos.get(name) or _video_beside(audio, segment)
    facts = {"labels": segment.labels, "set": segment.set}
    return release.single(release.file_name(name), _youtube_id(name), audio or video, video, **facts)


def _video_beside(audio, segment):
    """The video of a segment outside of root: in its manifest's folder, beside its sound, or in `video`."""
    folders = [Path(segment.folder)] if segment.folder else []
    folders += [audio.parent, audio.parent / "video", audio.parent.parent / "video"] if audio else []
    paths = (folder / f"{segment.stem}{ending}" for folder in folders for ending in release.VIDEO_ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def _notes(turns, segments, absent):
    """Lines on what of the segments is there."""
    listed, there = Counter(segment.set for segment in segments), {s.turn.utterance_id for s in turns}
    found = Counter(segment.set for segment in segments if release.file_name(segment.name) in there)
    lines = [f"{name}: {n:,} of {listed[name]:,} segments are there" for name, n in sorted(found.items())]
    if absent:
        lines.append(f"{len(absent):,} segments without a recording are left out, for example {absent[0]}")
    return lines
