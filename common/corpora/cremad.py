"""CREMA-D, twelve sentences acted by 91 actors, as sound and as video: Cao et al. 2014 (FORMATS 6).

The recordings stay where they are: the audio networks of Chochlakis et al. read up to 12 kHz, and a
conversion to 16 kHz would take the top octave away.
"""

import re
from collections import Counter

from common.corpora.release import VIDEO_ENDINGS, Release, files_in, named, need_folder, nothing_in, single

FOLDERS = ("CREMA-D", "cremad", "CREMAD")
CLASSES = ("neutral", "happy", "sad", "angry", "fearful", "disgust")  # RAVDESS's names and order
EMOTIONS = dict(zip(("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"), CLASSES, strict=True))
LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "unspecified"}  # the first three with IEO only
SENTENCES = {
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
COUNTS = {label: 1087 if label == "neutral" else 1271 for label in CLASSES}
N_ACTORS = 91
# Some copies end one name in _X.
NAME = re.compile(rf"\d{{4}}_({'|'.join(SENTENCES)})_({'|'.join(EMOTIONS)})_(LO|MD|HI|XX?)")
# Recordings that the release's own README calls bad.
SILENT = "1076_MTI_SAD_XX"
BAD_VIDEOS = {
    "1076_MTI_NEU_XX": "is shorter than its recording",
    "1064_TIE_SAD_XX": "has no duration",
    "1064_IEO_DIS_MD": "lasts a minute and holds all six emotions",
}


def read(root):
    """Read CREMA-D in place: sound from AudioWAV, pictures from VideoFlash (FLV, or converted).

    root  the folder that holds AudioWAV, or the one above it
    The label is the emotion that was acted, the text the sentence, which carries no label. 1076_MTI_SAD_XX,
    which has no sound, is left out; three videos that the release calls bad are not used.
    Extra columns: sentence (its code), level; sex and age where VideoDemographics.csv is there; agreement, 1
    where most raters saw and heard what was acted, else 0, where processedResults/summaryTable.csv is there.
    """
    root = _release_root(need_folder(root, "CREMA-D"))
    release = Release(CLASSES, media_in_place=True)
    sounds = _recordings(root / "AudioWAV", (".wav",), release)
    if not sounds:
        what = "CREMA-D recordings such as 1001_DFA_ANG_XX.wav"
        raise nothing_in(root / "AudioWAV", what, "a release that is unpacked completely")
    has_video = (root / "VideoFlash").is_dir()
    videos = _recordings(root / "VideoFlash", VIDEO_ENDINGS, release)
    tables = root / "VideoDemographics.csv", root / "processedResults" / "summaryTable.csv"
    people, rows = (release.read_table(path) if path.is_file() else [] for path in tables)
    actors = _read_actors(people)
    # What most raters saw and heard, "A:D" for a tie
    votes = {(row.get("FileName") or "").strip(): (row.get("MultiModalVote") or "").strip() for row in rows}
    for name in sorted({*sounds, *videos}):
        if name == SILENT:
            path = sounds.get(name) or videos[name]
            release.problem(name, path, "has no sound, as its README says; left out")
        else:
            video = _usable_video(name, sounds, videos, has_video, release)
            release.turns.append(_turn(name, sounds.get(name), video, actors, votes))
    release.expect_labels(Counter(EMOTIONS[name[9:12]] for name in sounds), COUNTS)
    release.expect(("actors", len({name[:4] for name in sounds}), N_ACTORS))
    if not has_video:
        release.notes.append(f"no folder VideoFlash in {root}: no turn has video")
    return release


def _release_root(root):
    """The folder that holds AudioWAV: the one given, one below it, or the one above."""
    if root.name in ("AudioWAV", "VideoFlash"):
        root = root.absolute().parent
    found = sorted(path.parent for path in root.rglob("AudioWAV") if path.is_dir())
    if found:
        return min(found, key=lambda folder: len(folder.parts))
    raise nothing_in(root, "folder AudioWAV", "the one that holds AudioWAV and VideoFlash")


def _recordings(folder, endings, release):
    """{release's name: path} of a folder's recordings; other names are Problems."""
    remedy = "names are actor, sentence, emotion, level: 1001_DFA_ANG_XX"
    found = named(files_in(folder, *endings), [NAME], "CREMA-D", remedy, release)
    return {re.sub("_X$", "_XX", stem): path for stem, path in found.items()}


def _read_actors(rows):
    """{actor: {"sex", "age"}}."""
    actors = {}
    for row in rows:
        actor, sex, age = ((row.get(name) or "").strip() for name in ("ActorID", "Sex", "Age"))
        actors[actor] = {"sex": sex.lower(), "age": age}
    return actors


def _usable_video(name, sounds, videos, has_video, release):
    """The video of a recording, None where it is absent or bad; Problems say what is missing."""
    audio, video = sounds.get(name), videos.get(name)
    if audio is None:
        release.problem(name, video, "no wav in AudioWAV; kept without sound", "unpack AudioWAV completely")
    if video and name in BAD_VIDEOS:
        what = f"the video {BAD_VIDEOS[name]}, as its README says; not used"
        release.problem(name, video, what, "none; its sound is kept")
        return None
    if video is None and has_video:
        what = "no video in VideoFlash; kept without pictures"
        release.problem(name, audio, what, "unpack VideoFlash completely")
    return video


def _turn(name, audio, video, actors, votes):
    actor, sentence, emotion, level = name.split("_")
    facts = {"sentence": sentence, "level": LEVELS[level], **actors.get(actor, {"sex": "", "age": ""})}
    if name in votes:
        facts["agreement"] = str(int(votes[name] == emotion[0]))
    return single(name, actor, audio, video, SENTENCES[sentence], EMOTIONS[emotion], **facts)
