"""The media of a release made ready: 16 kHz mono wav and muted MP4 per turn, in parallel, resumable.

What is finished is noted turn by turn in `media.jsonl`, with the size and time of the files it came from; a
rerun after a kill makes only what is missing or came from other files or settings. Recordings that are read where
they lie are only asked for their lengths.
"""

import hashlib
import json
import multiprocessing
import os
import signal
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from common.corpora.release import Problem
from common.errors import UserError
from common.media import (
    Cut,
    MediaError,
    check_rate,
    copy_muted,
    count_frames,
    cut_turns,
    probe,
    read_audio,
    write_wav,
)
from common.results import append_log
from common.shares import end_with_parent

TURNS_PER_BATCH = 16  # of turns that have files of their own; turns cut from one video stay together
PROBE_THREADS = 8  # headers are waited for, not computed
LENGTH_TOLERANCE_S = 0.5  # label times and recordings may differ by this much before it is a problem


@dataclass
class MediaSettings:
    """What the prepared files depend on besides their sources."""

    folder: Path  # prepared/<corpus>
    rate_hz: int
    crf: int
    preset: str
    min_turn_s: float  # shorter recordings are left out


@dataclass
class Outcome:
    """What became of one turn's media: paths in the prepared folder or absolute ("" = none), length, problems."""

    utterance_id: str
    fingerprint: str
    audio: str = ""
    video: str = ""
    audio_s: float = 0.0
    video_s: float = 0.0
    problems: list = field(default_factory=list)  # of dicts, as Problem


def fingerprint(source, settings):
    """A hash of the files that a turn comes from (name, size, time) and of how it is cut and coded."""
    files = []
    for path in (source.audio, source.video):
        try:
            stat = path.stat() if path else None
            files.append([path.name, stat.st_size, stat.st_mtime_ns] if stat else None)
        except OSError:
            files.append([path.name, None, None])
    facts = [
        files,
        source.audio_span,
        source.video_span,
        source.half,
        source.times_known,
        source.turn.start_s,
        source.turn.end_s,
        settings.rate_hz,
        settings.crf,
        settings.preset,
        settings.min_turn_s,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def prepare_media(sources, settings, workers):
    """Make the audio and video of all turns that have any; what an earlier run finished is kept.

    sources   list of SourceTurn
    workers   processes, 0 = one per core
    Returns {utterance_id: Outcome}. Raises UserError where the disk or a process fails.
    """
    for leftover in settings.folder.glob("*/.*.tmp.*"):
        leftover.unlink()  # of a killed run
    log = settings.folder / "media.jsonl"
    done = _read_done(log, settings.folder)
    todo, outcomes = [], {}
    for source in sources:
        if not (source.audio or source.video):
            continue
        mark = fingerprint(source, settings)
        kept = done.get(source.turn.utterance_id)
        if kept and kept.fingerprint == mark:
            outcomes[kept.utterance_id] = kept
        else:
            todo.append((source, mark))
    if outcomes:
        print(f"  kept      {len(outcomes):,} turns that an earlier run prepared")
    if todo:
        (settings.folder / "manifest.csv").unlink(missing_ok=True)  # it comes back when its media are whole
    with tqdm(total=len(todo), desc="  media", unit="turn", disable=not todo) as bar:
        for batch in _run(_batches(todo), settings, workers):
            for outcome in batch:
                append_log(log, asdict(outcome))
                outcomes[outcome.utterance_id] = outcome
            bar.update(len(batch))
    return outcomes


def _read_done(log, folder):
    """Outcomes of earlier runs whose files are still there; a line cut off by a kill is passed over."""
    done = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        try:
            outcome = Outcome(**json.loads(line))
        except (ValueError, TypeError):
            continue
        done[outcome.utterance_id] = outcome
    return {
        name: outcome
        for name, outcome in done.items()
        if all((folder / path).is_file() for path in (outcome.audio, outcome.video) if path)
    }


def _batches(todo):
    """Turns of one video together, so that it is decoded once; the others in small groups."""
    by_video, alone = defaultdict(list), []
    for item in todo:
        source = item[0]
        if source.video and source.video_span:
            by_video[source.video].append(item)
        else:
            alone.append(item)
    return [
        *by_video.values(),
        *(alone[i : i + TURNS_PER_BATCH] for i in range(0, len(alone), TURNS_PER_BATCH)),
    ]


def _run(batches, settings, workers):
    """Yield the outcomes of each batch as it is finished, from worker processes or from this one."""
    workers = min(workers or os.cpu_count() or 1, len(batches))
    if workers <= 1:
        yield from (prepare_batch(batch, settings, os.cpu_count() or 1) for batch in batches)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )
    try:
        jobs = [pool.submit(prepare_batch, batch, settings, 1) for batch in batches]
        for job in as_completed(jobs):
            yield job.result()
    except BrokenProcessPool as error:
        raise UserError(
            "WORKERS: a worker process was killed, perhaps for lack of memory; choose fewer and run "
            "again, what is finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent):
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    end_with_parent(parent)


def prepare_batch(batch, settings, n_threads):
    """Make the audio, then the video of a batch of (SourceTurn, fingerprint); returns an Outcome for each."""
    outcomes = [Outcome(source.turn.utterance_id, mark) for source, mark in batch]
    for (source, _), outcome in zip(batch, outcomes, strict=True):
        if source.audio:
            _prepare_audio(source, outcome, settings)
    cut = [
        (source, outcome)
        for (source, _), outcome in zip(batch, outcomes, strict=True)
        if source.video and source.video_span
    ]
    if cut:
        _cut_videos(cut, settings, n_threads)
    for (source, _), outcome in zip(batch, outcomes, strict=True):
        if source.video and not source.video_span:
            _copy_video(source, outcome, settings, n_threads)
    return outcomes


def _report(outcome, path, problem, remedy=""):
    outcome.problems.append(asdict(Problem(outcome.utterance_id, str(path), problem, remedy)))


def _prepare_audio(source, outcome, settings):
    turn, relative = source.turn, f"audio/{source.turn.utterance_id}.wav"
    try:
        samples = read_audio(source.audio, *(source.audio_span or (None, None)), rate_hz=settings.rate_hz)
    except MediaError as error:
        return _report(outcome, source.audio, error.reason, error.remedy)
    seconds = len(samples) / settings.rate_hz
    if seconds < settings.min_turn_s:
        return _report(
            outcome, source.audio, f"too short: {seconds:.3f} s; its audio is left out", "MIN_TURN_S"
        )
    if source.times_known and abs(seconds - turn.duration_s) > LENGTH_TOLERANCE_S:
        _report(
            outcome,
            source.audio,
            f"lasts {seconds:.2f} s, its label times say {turn.duration_s:.2f} s",
            "compare the file with the release",
        )
    write_wav(settings.folder / relative, samples, settings.rate_hz)
    outcome.audio, outcome.audio_s = relative, seconds


def _cut_videos(cut, settings, n_threads):
    """Cut the clips of several turns from the one video they share."""
    path = cut[0][0].video
    cuts = [
        Cut(settings.folder / "video" / f"{source.turn.utterance_id}.mp4", *source.video_span, source.half)
        for source, _ in cut
    ]
    try:
        results = cut_turns(path, cuts, settings.crf, settings.preset, n_threads)
    except MediaError as error:
        for _, outcome in cut:
            _report(outcome, path, error.reason, error.remedy)
        return
    for (source, outcome), result in zip(cut, results, strict=True):
        if result.problem:
            _report(outcome, path, result.problem, "compare the file with the release")
        if result.n_frames:
            outcome.video = f"video/{outcome.utterance_id}.mp4"
            outcome.video_s = result.seconds


def _copy_video(source, outcome, settings, n_threads):
    """The whole video of a file, muted: copied if it is H.264, else encoded."""
    output = settings.folder / "video" / f"{outcome.utterance_id}.mp4"
    try:
        info = probe(source.video)
        n_frames = copy_muted(source.video, output)
        if not n_frames:
            [result] = cut_turns(source.video, [Cut(output)], settings.crf, settings.preset, n_threads)
            n_frames = result.n_frames
    except MediaError as error:
        return _report(outcome, source.video, error.reason, error.remedy)
    if n_frames < info.n_frames:
        _report(
            outcome,
            source.video,
            f"holds {n_frames} of the {info.n_frames} frames it states",
            "download it again",
        )
    outcome.video, outcome.video_s = f"video/{outcome.utterance_id}.mp4", n_frames / (info.fps or 25.0)


# ---- Recordings that stay where they are ------------------------------------------------------


def place_media(sources, rate_hz, min_turn_s):
    """Name the recordings where they lie, with the lengths that their headers state; nothing is decoded.

    sources     list of SourceTurn; those without files are passed over
    rate_hz     sampling rate that the later scripts will ask for
    min_turn_s  shorter audio is left out
    Returns {utterance_id: Outcome} with absolute paths; a file that cannot be opened is a problem, and "".
    Raises UserError where a turn is only a part of a recording.
    """
    part = next((s for s in sources if s.audio_span or s.video_span or s.half), None)
    if part:
        raise UserError(
            f"MEDIA_IN_PLACE: {part.turn.utterance_id} is a part of a longer recording and must be cut; "
            "leave it false for this corpus"
        )
    sources = [source for source in sources if source.audio or source.video]
    ask = partial(_place_turn, rate_hz=rate_hz, min_turn_s=min_turn_s)
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        outcomes = list(
            tqdm(pool.map(ask, sources), desc="  media", total=len(sources), unit="turn", delay=2)
        )
    return {outcome.utterance_id: outcome for outcome in outcomes}


def _place_turn(source, rate_hz, min_turn_s):
    outcome = Outcome(source.turn.utterance_id, "")
    if source.audio:
        try:
            seconds = _stated_length(source.audio, "audio", rate_hz)
            if seconds >= min_turn_s:
                outcome.audio, outcome.audio_s = os.path.abspath(source.audio), seconds
            else:
                _report(
                    outcome, source.audio, f"too short: {seconds:.3f} s; its audio is left out", "MIN_TURN_S"
                )
        except MediaError as error:
            _report(outcome, source.audio, error.reason, error.remedy)
    if source.video:
        try:
            outcome.video_s = _stated_length(source.video, "video", rate_hz)
            outcome.video = os.path.abspath(source.video)
        except MediaError as error:
            _report(outcome, source.video, error.reason, error.remedy)
    return outcome


def _stated_length(path, kind, rate_hz):
    """Seconds of a recording that has a track of this kind; a video that states none has its frames counted."""
    info = probe(path)
    if not (info.rate_hz if kind == "audio" else info.width):
        raise MediaError(path, f"no {kind} track")
    if kind == "audio":
        check_rate(path, info.rate_hz, rate_hz)
    return info.duration_s or (count_frames(path) / info.fps if kind == "video" and info.fps else 0.0)
