"""The media of a release made ready: 16 kHz mono wav and muted MP4 per turn, by several threads, resumable.

What is finished is noted turn by turn in `media.jsonl`, with the size and time of the files it came from; a
rerun after a kill makes only what is missing or came from other files or settings. Recordings that are read
where they lie are only asked for their lengths.
"""

import json
import os
import re
from collections import Counter, defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial

import numpy as np
import soundfile
from tqdm import tqdm

from common import media
from common.corpora.cut import Cut, copy_muted, cut_turns
from common.extraction import check_problems, kind_of
from common.files import append_json, hash_of, write_csv
from common.manifest import Problem
from common.media import MediaError, probe
from common.pictures import count_frames

PROBE_THREADS = 8  # headers are waited for, not computed
TOLERANCE_S = 0.5  # label times and recordings may differ by this much before it is a problem
RATE_HZ = 16000  # of the prepared audio
KINDS = ("audio", "video")
COMPARE = "compare the file with the release"
KEPT = "kept; play it"  # the remedy of what is only odd, and not counted as a problem
VERSION = 2  # of the files made here; those of an earlier one are made again
CUT_SHORT_S = 0.1  # that a recording may be shorter than its header says
STATED_IN = ("mov", "avi")  # containers whose header states how long the sound is; others leave it to a guess
STREAMED = 2**31 - 2**16  # bytes from which a wav's length stands for "not known yet"
MAX_OFFSET = 0.02  # of full scale, between the mean of a recording and 0
MAX_BEYOND = 1e-3  # share of samples beyond full scale; a few are what lossy coding makes of loud sound
FEW_FRAMES = 2  # a codec's delay: frames that a container may count, or store, and not show


# What the prepared files depend on besides their sources; folder: prepared/<corpus>.
MediaSettings = namedtuple("MediaSettings", "folder crf min_turn_s")


@dataclass
class Outcome:
    """What became of one turn's media: paths in the prepared folder or absolute ("" = none), and lengths."""

    utterance_id: str
    fingerprint: str = ""
    audio: str = ""
    video: str = ""
    audio_s: float = 0.0
    video_s: float = 0.0
    problems: list = field(default_factory=list)  # of dicts, as Problem

    def report(self, path, problem, remedy=COMPARE):
        self.problems.append(asdict(Problem(self.utterance_id, str(path), problem, remedy)))


def fingerprint(source, settings):
    """A hash of the files that a turn comes from (name, size, time) and of how it is cut and coded."""
    files = []
    for path in (source.audio, source.video):
        facts = path.stat() if path and os.path.exists(path) else None
        files.append([path.name, facts.st_size, facts.st_mtime_ns] if facts else str(path))
    cut = [source.audio_span, source.video_span, source.half, source.times_known]
    times = [source.turn.start_s, source.turn.end_s]
    return hash_of([files, cut, times, [settings.crf, settings.min_turn_s, VERSION]])


def prepare_media(sources, settings, workers):
    """Make the audio and video of all turns that have any; what an earlier run finished is kept.

    sources   list of SourceTurn
    workers   threads
    Returns {utterance_id: Outcome}. Raises UserError where the disk fails.
    """
    for leftover in settings.folder.glob("*/.*.tmp.*"):
        leftover.unlink()  # of a killed run
    log = settings.folder / "media.jsonl"
    done, todo, outcomes = _read_done(log, settings.folder), [], {}
    for source in sources:
        if source.audio or source.video:
            name, mark = source.turn.utterance_id, fingerprint(source, settings)
            if name in done and done[name].fingerprint == mark:
                outcomes[name] = done[name]
            else:
                todo.append((source, Outcome(name, mark)))
    if outcomes:
        print(f"  kept      {len(outcomes):,} turns that an earlier run prepared")
    if not todo:
        return outcomes
    (settings.folder / "manifest.csv").unlink(missing_ok=True)  # it comes back when its media are whole
    import torch  # here: where recordings stay in place nothing needs it

    pool = ThreadPoolExecutor(max(1, workers), initializer=torch.set_num_threads, initargs=(1,))
    with pool, tqdm(total=len(todo), desc="  media", unit="turn", disable=None) as bar:
        for batch in pool.map(partial(_prepare_batch, settings=settings), _batches(todo)):
            for _, outcome in batch:
                append_json(log, asdict(outcome))
                outcomes[outcome.utterance_id] = outcome
            bar.update(len(batch))
    return outcomes


def _read_done(log, folder):
    """Outcomes of earlier runs whose files are still there; a line cut off by a kill is passed over."""
    done = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        with suppress(ValueError, TypeError):
            outcome = Outcome(**json.loads(line))
            done[outcome.utterance_id] = outcome
    files = {name: [folder / path for path in (o.audio, o.video) if path] for name, o in done.items()}
    return {name: outcome for name, outcome in done.items() if all(path.is_file() for path in files[name])}


def _batches(todo):
    """Turns of one recording together, so that it is decoded once; the others alone."""
    batches = defaultdict(list)
    for source, outcome in todo:
        shared = source.video if source.video_span else source.audio if source.audio_span else None
        batches[shared or outcome.utterance_id].append((source, outcome))
    return batches.values()


def _prepare_batch(batch, settings):
    """Make the audio, then the video of a batch of (SourceTurn, Outcome); returns it."""
    read = lru_cache(maxsize=4)(media.read_audio)  # of a recording that several turns are parts of
    for source, outcome in batch:
        if source.audio:
            _prepare_audio(source, outcome, settings, read)
        if source.video and not source.video_span:
            _copy_video(source, outcome, settings)
    cut = [(source, outcome) for source, outcome in batch if source.video and source.video_span]
    if cut:
        _cut_videos(cut, settings)
    return batch


def _prepare_audio(source, outcome, settings, read):
    turn, relative = source.turn, f"audio/{source.turn.utterance_id}.wav"
    first_s, last_s = source.audio_span or (0.0, 1e6)
    try:
        whole = read(source.audio)
    except MediaError as error:
        return outcome.report(source.audio, error.reason, error.remedy)
    samples = whole[round(first_s * RATE_HZ) : round(last_s * RATE_HZ)]
    seconds = len(samples) / RATE_HZ
    if not seconds:
        what = f"begins at {first_s:,.2f} s, where the recording is over ({len(whole) / RATE_HZ:,.2f} s)"
        return outcome.report(source.audio, what, "times are seconds in the recording")
    if not source.audio_span:
        _check_length(source.audio, seconds, outcome)
    if seconds < settings.min_turn_s:
        what = f"too short: {seconds:.3f} s; its audio is left out"
        return outcome.report(source.audio, what, "MIN_TURN_S")
    if source.times_known and abs(seconds - turn.duration_s) > TOLERANCE_S:
        what = f"lasts {seconds:.2f} s, its label times say {turn.duration_s:.2f} s"
        outcome.report(source.audio, what)
    peak, offset, beyond = np.abs(samples).max(), samples.mean(), (np.abs(samples) > 1).sum()
    if np.ptp(samples) <= media.SILENCE:
        return outcome.report(source.audio, "silence; its audio is left out", "leave its audio cell empty")
    if abs(offset) > MAX_OFFSET * max(1.0, peak):
        outcome.report(source.audio, f"constant offset: {offset:+.2f} of full scale", KEPT)
    if beyond > MAX_BEYOND * len(samples):
        what = f"beyond full scale: {beyond:,} of {len(samples):,} samples, up to {peak:.4g}; scaled down"
        outcome.report(source.audio, what, KEPT)
        samples = samples / peak
    media.write_wav(settings.folder / relative, samples, RATE_HZ)
    outcome.audio, outcome.audio_s = relative, seconds


def _check_length(path, seconds, outcome):
    """Report a recording that is shorter than its header says: a download or a disk broke off."""
    stated_s = _stated_seconds(path)
    if seconds < stated_s - CUT_SHORT_S:
        what = f"breaks off: {seconds:.2f} s of the {stated_s:.2f} s that its header states"
        outcome.report(path, what, "what is there is used; download it again")


def _stated_seconds(path):
    """Length of a recording's sound by its header, more perhaps than is there; 0 where it does not say."""
    if path.suffix.lower() in media.AUDIO_FILES:
        with suppress(soundfile.SoundFileError):
            info = soundfile.info(str(path))
            # libsndfile's log of a wav; its own length is that of what is there.
            data = re.search(r"data : (\d+) \(should be (\d+)\)", info.extra_info)
            stated, there = map(int, data.groups()) if data else (1, 1)
            return info.duration * (stated / there if there and stated < STREAMED else 1)
    with media.open_container(path) as container:
        stream = media.first_track(container, "audio", path)
        stated = stream.duration if container.format.name.startswith(STATED_IN) else 0
        return float((stated or 0) * stream.time_base)


def _cut_videos(cut, settings):
    """Cut the clips of several turns from the one video they share."""
    path, cuts = cut[0][0].video, []
    for source, outcome in cut:
        output = settings.folder / f"video/{outcome.utterance_id}.mp4"
        cuts.append(Cut(output, *source.video_span, source.half))
    try:
        results = cut_turns(path, cuts, settings.crf)
    except MediaError as error:
        for _, outcome in cut:
            outcome.report(path, error.reason, error.remedy)
        return
    for (_, outcome), result in zip(cut, results, strict=True):
        if result.problem:
            outcome.report(path, result.problem)
        if result.n_frames:
            outcome.video, outcome.video_s = f"video/{outcome.utterance_id}.mp4", result.seconds


def _copy_video(source, outcome, settings):
    """The whole video of a file, muted: copied if it is H.264, else encoded."""
    relative = f"video/{outcome.utterance_id}.mp4"
    output = settings.folder / relative
    try:
        info, n_frames = probe(source.video), copy_muted(source.video, output)
        fps = info.fps or 25.0
        seconds, stored = n_frames / fps, n_frames
        if not n_frames:
            [result] = cut_turns(source.video, [Cut(output)], settings.crf)
            n_frames, seconds, stored = result.n_frames, result.seconds, count_frames(source.video)
        lost = max(stored - n_frames, round(info.n_frames - seconds * fps))
    except MediaError as error:
        return outcome.report(source.video, error.reason, error.remedy)
    if lost > FEW_FRAMES:
        what = f"holds {n_frames} frames, {lost} fewer than it states or stores"
        outcome.report(source.video, what, "what is there is used; download it again")
    outcome.video, outcome.video_s = relative, seconds


# ---- Recordings that stay where they are ------------------------------------------------------


def place_media(sources, min_turn_s):
    """Name the recordings where they lie, with the lengths that their headers state; nothing is decoded.

    sources     list of SourceTurn; those without files are passed over
    min_turn_s  shorter audio is left out
    Returns {utterance_id: Outcome} with absolute paths; a file that cannot be opened is a problem, and "".
    """
    sources = [source for source in sources if source.audio or source.video]
    files = [(getattr(source, kind), kind) for source in sources for kind in KINDS if getattr(source, kind)]
    files = list(dict.fromkeys(files))  # several turns may lie in one recording
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        answers = pool.map(_stated_length, files)
        answers = tqdm(answers, "  media", len(files), unit="file", delay=2, disable=None)
        lengths = dict(zip(files, answers))
    return {source.turn.utterance_id: _place_turn(source, lengths, min_turn_s) for source in sources}


def _stated_length(item):
    """Seconds of (path, "audio" or "video"), or the MediaError; frames are counted where it states none."""
    path, kind = item
    try:
        info = probe(path)
        if not (info.rate_hz if kind == "audio" else info.width):
            raise MediaError(path, f"no {kind} track")
        if kind == "audio":
            media.check_rate(path, info.rate_hz, RATE_HZ)
        elif not info.duration_s and info.fps:
            return count_frames(path) / info.fps
    except MediaError as error:
        return error
    return info.duration_s


def _place_turn(source, lengths, min_turn_s):
    outcome = Outcome(source.turn.utterance_id)
    for kind in KINDS:
        path, span = getattr(source, kind), getattr(source, f"{kind}_span")
        seconds = lengths.get((path, kind))
        if isinstance(seconds, MediaError):
            outcome.report(path, seconds.reason, seconds.remedy)
        elif span and path:
            if 0 < seconds < span[1] - TOLERANCE_S:
                outcome.report(path, f"lasts {seconds:.2f} s, the segment ends at {span[1]:.2f} s")
            if not 0 < seconds <= span[0]:
                setattr(outcome, kind, os.path.abspath(path))
        elif path and kind == "audio" and seconds < min_turn_s:
            outcome.report(path, f"too short: {seconds:.3f} s; its audio is left out", "MIN_TURN_S")
        elif path:
            setattr(outcome, kind, os.path.abspath(path))
            setattr(outcome, f"{kind}_s", seconds)
    if outcome.audio_s and outcome.video_s and abs(outcome.audio_s - outcome.video_s) > TOLERANCE_S:
        what = f"sound and picture of different length: {outcome.audio_s:.2f} s, {outcome.video_s:.2f} s"
        outcome.report(source.video, what, KEPT)
    return outcome


# ---- Turns with their media, and what is wrong with them --------------------------------------


def finish_turns(release, outcomes):
    """Fill in audio, video and missing times; returns all problems, of the reader and of the media."""
    problems = list(release.problems)
    has_text = 2 * sum(bool(source.turn.text) for source in release.turns) > len(release.turns)
    for source in release.turns:
        turn, outcome = source.turn, outcomes.get(source.turn.utterance_id)
        if has_text and not turn.text:
            what, remedy = "no transcript; kept with an empty text", "add its text, or ignore"
            problems.append(Problem(turn.utterance_id, "", what, remedy))
        if outcome:
            turn.audio, turn.video = outcome.audio, outcome.video
            if not source.times_known and (outcome.audio_s or outcome.video_s):
                turn.end_s = turn.start_s + round(outcome.audio_s or outcome.video_s, 4)
            problems += [Problem(**row) for row in outcome.problems]
    return problems


def report_problems(problems, release, folder, root, max_share):
    """Write problems.csv and print a summary; UserError if too many turns are affected.

    What is odd and kept is said, and is no problem.
    """
    path = folder / "problems.csv"
    rows = [{**asdict(problem), "file": problem.file.removeprefix(f"{root}/")} for problem in problems]
    write_csv(path, rows, ("utterance_id", "file", "problem", "remedy"))
    if odd := Counter(kind_of(problem) for problem in problems if problem.remedy == KEPT):
        print(f"  odd       {', '.join(f'{n:,} × {kind}' for kind, n in odd.items())}, kept; see {path}")
    problems = [problem for problem in problems if problem.remedy != KEPT]
    if not problems:
        return print("  problems  none")
    (folder / "manifest.csv").unlink(missing_ok=True)  # it comes back if these are few enough
    ids = [source.turn.utterance_id for source in release.turns]
    check_problems(path, problems, ids, max_share, "turns or files have problems")
