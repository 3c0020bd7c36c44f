"""IEMOCAP, dialogues of ten actors in five sessions: Busso et al. 2008 (FORMATS 1)."""

import re
from collections import Counter

from common.corpora.release import Release, SourceTurn, files_in, need_folder, nothing_in, read_lines, walk
from common.files import UserError
from common.manifest import Turn

FOLDERS = ("IEMOCAP_full_release", "IEMOCAP", "iemocap")
CLASSES = ("angry", "happy", "neutral", "sad")
LABELS = {"ang": "angry", "hap": "happy", "neu": "neutral", "sad": "sad"}
# Turns per session in the release, counted from its summary lines: all, then by raw label.
COUNTS = {
    "Session1": {"all": 1819, "neu": 384, "hap": 135, "exc": 143, "sad": 194, "ang": 229},
    "Session2": {"all": 1811, "neu": 362, "hap": 117, "exc": 210, "sad": 197, "ang": 137},
    "Session3": {"all": 2136, "neu": 320, "hap": 135, "exc": 151, "sad": 305, "ang": 240},
    "Session4": {"all": 2103, "neu": 258, "hap": 65, "exc": 238, "sad": 143, "ang": 327},
    "Session5": {"all": 2170, "neu": 384, "hap": 143, "exc": 299, "sad": 245, "ang": 170},
}
SUMMARY = re.compile(r"^\[(\d+\.?\d*)\s*-\s*(\d+\.?\d*)\]\s+(\S+)\s+([A-Za-z]{3})\s+\[([^\]]*)\]\s*$")
RATER = re.compile(r"^C-E\d+:\s*([^(]*)")  # what somebody heard who is none of the two speakers
EVALUATIONS = "dialog/EmoEvaluation/Ses*.txt"  # not their hidden "._" twins of macOS, nor what lies deeper
UTTERANCE_ID = re.compile(r"^(Ses\d\d)([FM])_\S+_([FM])\d{3}$")
BRACKET_TOKEN = re.compile(r"\[[A-Z_ ]+\]")


def read(root, merge_excited=True, keep_brackets=True, crop_speaker=True):
    """Read IEMOCAP_full_release, with or without its video, or any subset of its sessions.

    root           the folder that holds Session1 .. Session5, or the one above it
    merge_excited  True labels excited turns happy, as the papers do; False leaves them out of the label set
    keep_brackets  False removes tokens such as [LAUGHTER] from the transcripts
    crop_speaker   False keeps the whole split screen, where the listener is seen too
    Extra columns: raw_label, valence, activation, dominance (rater means, clipped to the scale's 1..5),
    style, agreement (share of raters who heard raw_label). Raises UserError if no session is found.
    """
    root = _release_root(need_folder(root, "IEMOCAP"))
    labels = {**LABELS, **({"exc": "happy"} if merge_excited else {})}
    release = Release(CLASSES)
    found = [name for name in COUNTS if any((root / name).glob(EVALUATIONS))]
    if not found:
        raise UserError(f"{root}: its sessions hold no {EVALUATIONS}; unpack the release completely")
    for name in found:
        _read_session(root / name, labels, keep_brackets, crop_speaker, release)
    missing = [name for name in COUNTS if name not in found]
    if missing:
        counts = ", ".join(f"{COUNTS[name]['all']:,}" for name in missing)
        release.notes.append(f"missing from {root}: {', '.join(missing)} (of {counts} turns)")
        release.checks.append(False)
    for name in found:
        _compare(name, [name], labels, release)
    if not missing:
        _compare("all sessions", found, labels, release)
    release.number_turns()
    return release


def _release_root(root):
    """The folder that holds the sessions, the one given or one below it; says so if it is above."""
    found = [folder for folder, below, _ in walk(root) if not COUNTS.keys().isdisjoint(below)]
    if found:  # features of others may lie in such folders too
        return max(found, key=lambda folder: any(folder.glob(f"Session?/{EVALUATIONS}")))
    inside = next((path for path in (root.resolve(), *root.resolve().parents) if path.name in COUNTS), None)
    if inside:
        raise UserError(f"{root}: this lies inside a session; set CORPUS_ROOT to {inside.parent}")
    raise nothing_in(root, "folders Session1 to Session5", "the one that holds them, IEMOCAP_full_release")


def _read_session(folder, labels, keep_brackets, crop_speaker, release):
    """Add the turns of a session."""
    videos = {path.stem: path for path in files_in(folder / "dialog" / "avi", ".avi")}
    if not videos:
        what = "no video in dialog/avi, the release without; its turns have no video"
        release.notes.append(f"{folder.name}: {what}")
    seen = set()
    for path in sorted(folder.glob(EVALUATIONS)):
        texts = _read_transcripts(folder / "dialog" / "transcriptions" / path.name, release)
        turn, heard = None, []
        for number, line in enumerate(read_lines(path), start=1):
            if turn and turn.extra["raw_label"] != "xxx" and (rater := RATER.match(line)):
                heard.append(turn.extra["raw_label"] in re.findall(r"([a-z]{3})[a-z]*;", rater[1].lower()))
                turn.extra["agreement"] = f"{sum(heard) / len(heard):.2f}"
            if not re.match(r"\[\s*\d", line):
                continue  # the header, raters' lines, blank lines
            turn, heard = _turn(line, folder.name, labels), []
            if turn is None or turn.utterance_id in seen:
                what = "turn listed twice" if turn else "not a line of EmoEvaluation"
                name = turn.utterance_id if turn else ""
                release.problem(name, f"{path}:{number}", what, "compare the file with the release")
                turn = None
                continue
            seen.add(turn.utterance_id)
            turn.text = texts.get(turn.utterance_id, "")
            if not keep_brackets:
                turn.text = " ".join(BRACKET_TOKEN.sub(" ", turn.text).split())
            release.turns.append(_add_media(turn, folder, videos, crop_speaker))


def _turn(line, session, labels):
    """The turn of one summary line, or None if the line does not read as one."""
    match = SUMMARY.match(line.strip())
    parts = UTTERANCE_ID.match(match[3]) if match else None
    ratings = re.findall(r"\d+\.?\d*", match[5]) if match else []
    if not parts or len(ratings) != 3:
        return None
    dialogue_id, raw_label = match[3].rsplit("_", 1)[0], match[4].lower()
    extra = {"raw_label": raw_label, "style": "improvised" if "_impro" in dialogue_id else "scripted"}
    for name, value in zip(("valence", "activation", "dominance"), ratings, strict=True):
        extra[name] = f"{min(5.0, max(1.0, float(value))):.4f}"
    speaker, times, label = parts[1] + parts[3], (float(match[1]), float(match[2])), labels.get(raw_label, "")
    return Turn(match[3], dialogue_id, 0, speaker, session, *times, label=label, extra=extra)


def _read_transcripts(path, release):
    """Text by utterance id; remarks ("M: ...") and fragments without a label (_MXX0) are left out."""
    if not path.is_file():
        release.problem("", path, "transcript file missing", "unpack the release completely")
        return {}
    texts = {}
    for line in read_lines(path):
        head, colon, text = line.partition("]:")
        name = head.split()[0] if head.split() else ""
        if colon and UTTERANCE_ID.match(name):
            texts[name] = text.strip()
    return texts


def _add_media(turn, folder, videos, crop_speaker):
    """Where the turn's sound and picture are: its own wav, and its half of the dialogue's split screen.

    The wearer of the markers, whose letter is in the dialogue's name, is on the left.
    """
    dialogue = turn.dialogue_id  # a file that is absent is found missing when it is read
    wav = folder / "sentences" / "wav" / dialogue / f"{turn.utterance_id}.wav"
    source = SourceTurn(turn, wav, times_known=True)
    if videos:
        source.video = videos.get(dialogue, folder / "dialog" / "avi" / "DivX" / f"{dialogue}.avi")
        source.video_span = turn.start_s, turn.end_s
        if crop_speaker:
            source.half = "left" if turn.speaker[-1] == dialogue[5] else "right"
    return source


def _compare(what, sessions, labels, release):
    """A note that holds the turns of sessions, and those of each class, against the release's."""
    turns = [source.turn for source in release.turns if source.turn.session in sessions]
    found, published = Counter(turn.label for turn in turns if turn.label), Counter()
    for session in sessions:
        for raw, label in labels.items():
            published[label] += COUNTS[session][raw]
    n_turns = sum(COUNTS[session]["all"] for session in sessions)
    of = {name: "" if found[name] == published[name] else f" [{published[name]:,}]" for name in CLASSES}
    classes = ", ".join(f"{name} {found[name]:,}{of[name]}" for name in CLASSES)
    labelled = ("labelled", found.total(), published.total())
    release.expect((f"{what} turns", len(turns), n_turns), labelled, after=f", {classes}")
