"""Lombard GRID, sentences spoken plainly and against noise by 54 talkers: Alghamdi et al. 2018 (FORMATS 7).

The recordings stay where they are, at the rates they have.
"""

import re
from collections import Counter

from common.corpora.release import Release, file_name, files_in, named, need_folder, nothing_in, single

FOLDERS = ("lombardgrid", "LombardGRID", "Lombard-GRID", "lombard")
CLASSES = ("plain", "lombard")
COUNTS = {"plain": 2691, "lombard": 2699}  # 50 each of 54 talkers, save s14 (51, 49) and s51 (40, 50)
N_TALKERS = 54  # s2 to s55
NAME = re.compile(r"^(s\d{1,2})_([lp])_([^_]+)(?:_WRONG_(.+))?$")
LEGACY_NAME = re.compile(r"^(s\d{1,2})_\d+_\d+_\d+_r_([^_]+)$")  # one plain recording kept an older name
SILENCE = "#sil"
DIGITS = "zero one two three four five six seven eight nine".split()
GRID_WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter.upper() for letter in "abcdefghijklmnopqrstuvxyz"},  # no w
    {"z": "zero", **{str(value): word for value, word in enumerate(DIGITS)}},
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)


def read(root):
    """Read Lombard GRID in place: sound from audio/, the front view from front/; the side view is not used.

    root  any folder above the files; copies of a file in nested folders count once
    The label is the condition, "plain" or "lombard". The text is decoded from the six letters of the
    sentence; of a misread one (<asked>_WRONG_<said>) from what was said, and "" where these letters are none
    of GRID. Recordings of silence (_WRONG_#sil) are left out, and so is the one with an older name that
    repeats another. Extra columns: sentence (the letters of what was said), status (correct, wrong).
    """
    root = need_folder(root, "Lombard GRID")
    release = Release(CLASSES, media_in_place=True)
    sounds, videos = (_recordings(root, ends, release) for ends in ((".wav", ".flac"), (".mov", ".mp4")))
    stems = sorted({*sounds, *videos}, key=lambda stem: (int(stem[1:].split("_")[0]), stem))
    if not stems:
        what = "Lombard GRID recordings such as audio/s2_l_bbim3a.wav"
        raise nothing_in(root, what, "the folder that holds audio and front")
    if not sounds:
        release.notes.append(f"no wav in {root}: no turn has sound")
    if not videos:
        release.notes.append(f"no mov of the front view in {root}: no turn has video")
    for stem in stems:
        if _is_usable(stem, sounds, videos, stems, release):
            release.turns.append(_turn(stem, sounds.get(stem), videos.get(stem)))
    release.expect_labels(Counter(_facts(stem)[1] for stem in stems), COUNTS)
    release.expect(("talkers", len({stem.split("_")[0] for stem in stems}), N_TALKERS))
    wrong = sum("_WRONG_" in stem for stem in stems)
    if wrong:
        release.notes.append(f"{wrong:,} recordings of a sentence that was misread")
    return release


def _recordings(root, endings, release):
    """{stem: path} of what lies below root, without side views; other names are Problems."""
    paths = files_in(root, *endings)
    paths = [path for path in paths if "side" not in path.parent.relative_to(root).as_posix().lower()]
    remedy = "names are talker, condition, sentence: s2_l_bbim3a"
    return named(paths, [NAME, LEGACY_NAME], "Lombard GRID", remedy, release)


def _facts(stem):
    """(talker, condition, what was asked for, what was said) of a recording, from its name."""
    match = NAME.match(stem)
    if match:
        return match[1], {"p": "plain", "l": "lombard"}[match[2]], match[3], match[4] or match[3]
    talker, code = LEGACY_NAME.match(stem).groups()
    return talker, "plain", code, code


def grid_sentence(code):
    """ "bbim3a" as "bin blue in M three again"; "" where the letters are not a sentence of GRID."""
    words = [table.get(letter) for letter, table in zip(code, GRID_WORDS)]
    return " ".join(words) if len(code) == len(GRID_WORDS) and all(words) else ""


def _is_usable(stem, sounds, videos, stems, release):
    """False, with a Problem, for a recording that is left out; a missing sound or picture is one too."""
    talker, _, asked, said = _facts(stem)
    name, path = file_name(stem), sounds.get(stem) or videos[stem]
    if said == SILENCE:
        release.problem(name, path, "a recording of silence; left out")
        return False
    if LEGACY_NAME.match(stem) and f"{talker}_p_{asked}" in stems:
        release.problem(name, path, f"an older name of {talker}_p_{asked}, which is there; left out")
        return False
    if sounds and videos and not (stem in sounds and stem in videos):
        lacks = "wav" if stem not in sounds else "mov of the front view"
        release.problem(name, path, f"no {lacks}; kept without it", "unpack the release completely")
    return True


def _turn(stem, audio, video):
    talker, condition, _, said = _facts(stem)
    facts = {"sentence": said, "status": "correct" if "_WRONG_" not in stem else "wrong"}
    return single(file_name(stem), talker, audio, video, grid_sentence(said), condition, **facts)
