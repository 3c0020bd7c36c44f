"""Audio and video in and out: soundfile for audio files, PyAV for anything in a container.

Every reader raises MediaError for a file that cannot be used, so that callers can count it and go on.
Legend: T samples or frames, H height, W width.
"""

import heapq
import io
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from torchaudio.functional import resample
from tqdm import tqdm

from common.files import atomic_path

AUDIO_FILES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}  # what libsndfile reads by itself
HEADED_FILES = {".wav", ".flac"}  # ... of which it need read no more than the header to know the length
LFS_POINTER = b"version https://git-lfs"
MAX_HIDDEN_FRAMES = 2  # an edit list that is off by the encoder's delay hides no more than these
COUNT_ALL = 20_000  # up to this many recordings the length of each is read from its header ...
COUNT_SAMPLE = 2_000  # ... of more, that of so many, drawn at random
COUNT_THREADS = 16  # reading headers waits for the disk, not for a processor
MAX_RATE_FACTOR = (
    1000  # largest source_hz / gcd(source_hz, rate_hz) that is resampled; 44100 to 16000 Hz has 441
)


class MediaError(Exception):
    """A file that cannot be used: `path` and `reason`, and `remedy` where one is known."""

    def __init__(self, path, reason, remedy=""):
        super().__init__(str(path), reason, remedy)
        self.path, self.reason, self.remedy = Path(path), reason, remedy

    def __str__(self):
        return f"{self.path}: {self.reason}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass
class MediaInfo:
    """What a file says about itself; 0 where it has no such stream or does not say."""

    duration_s: float = 0.0
    rate_hz: int = 0
    channels: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    n_frames: int = 0


def check_file(path):
    """Raise MediaError for a file that is absent, empty or a git-lfs pointer."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise MediaError(path, error.strerror or "cannot be opened", "check the download") from error
    if not start:
        raise MediaError(path, "the file is empty", "download it again")
    if start == LFS_POINTER:
        raise MediaError(path, "a git-lfs pointer, not the recording", "run git lfs pull in its repository")


@contextmanager
def open_container(path, **options):
    """Open a container for reading; FFmpeg's complaints become MediaError."""
    check_file(path)
    try:
        with av.open(str(path), options=options) as container:
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "a name in it is not text"
        raise MediaError(path, f"not a readable recording ({reason})", "download it again") from error


def probe(path):
    """What a recording says about itself, as MediaInfo, without decoding it. Raises MediaError."""
    if Path(path).suffix.lower() in HEADED_FILES:
        return _probe_audio_file(path)
    with open_container(path) as container:
        info = MediaInfo(duration_s=(container.duration or 0) / av.time_base)
        if container.streams.audio:
            stream = container.streams.audio[0]
            info.rate_hz, info.channels = stream.rate or 0, stream.channels or 0
        if container.streams.video:
            stream = container.streams.video[0]
            info.width, info.height, info.n_frames = stream.width, stream.height, stream.frames
            info.fps = float(stream.average_rate or 0)
    return info


def _probe_audio_file(path):
    check_file(path)
    try:
        info = soundfile.info(str(path))
    except soundfile.SoundFileError as error:
        raise _unreadable(path, error) from error
    return MediaInfo(info.frames / info.samplerate, info.samplerate, info.channels)


def _unreadable(path, error):
    reason = str(error).split(": ", 1)[-1].strip().rstrip(".")
    return MediaError(path, f"not a readable recording ({reason})", "download it again")


# ---- Audio ------------------------------------------------------------------------------------


def header_seconds(path):
    """Length of a recording as its header states it; 0 for one that cannot be opened."""
    try:
        return probe(path).duration_s
    except MediaError:
        return 0.0


def count_seconds(paths):
    """(seconds in all recordings, number of headers read for that): of many, a random sample will do."""
    n, paths = len(paths), list(paths)
    if n > COUNT_ALL:
        paths = [paths[i] for i in np.random.default_rng(0).choice(n, COUNT_SAMPLE, replace=False)]
    with ThreadPoolExecutor(COUNT_THREADS) as pool:
        seconds = list(tqdm(pool.map(header_seconds, paths), "counting", len(paths), False, disable=None))
    return sum(seconds) / max(1, len(paths)) * n, len(paths)


def check_rate(path, source_hz, rate_hz):
    """Raise MediaError for a sampling rate that nobody records at, as damaged headers have.

    The resampling filter grows with source_hz / gcd(source_hz, rate_hz): 44101 to 16000 Hz would take
    gigabytes.
    """
    if source_hz <= 0 or source_hz // math.gcd(source_hz, rate_hz) > MAX_RATE_FACTOR:
        raise MediaError(
            path, f"an odd sampling rate ({source_hz} Hz)", "its header may be damaged; download it again"
        )


def read_audio(path, start_s=None, end_s=None, rate_hz=16000):
    """Read the mean of all channels of an audio file, or of the audio in a container.

    start_s, end_s  the part to read in seconds, None = from the start, to the end; an end past the file is
                    clamped
    rate_hz         sampling rate wanted; other rates are resampled (torchaudio's windowed sinc)
    Returns float32 (T,), full scale = 1.
    Raises MediaError if the file is unreadable, holds no audio in that span, has NaN or infinite samples, or
    a sampling rate that nobody records at.
    """
    check_file(path)
    read = _read_audio_file if Path(path).suffix.lower() in AUDIO_FILES else _read_audio_stream
    samples, source_hz = read(path, start_s or 0.0, end_s)  # (T, channels)
    check_rate(path, source_hz, rate_hz)
    if not len(samples):
        raise MediaError(path, "no audio samples" + (f" from {start_s:.2f} s on" if start_s else ""))
    if not np.isfinite(samples).all():
        raise MediaError(path, "samples that are not finite (NaN or infinity)")
    mono = samples.mean(axis=1, dtype=np.float32)  # (T,)
    if source_hz != rate_hz:
        mono = resample(torch.from_numpy(mono), source_hz, rate_hz).numpy()
    return mono


def _read_audio_file(path, start_s, end_s):
    try:
        with soundfile.SoundFile(str(path)) as file:
            first = min(round(start_s * file.samplerate), file.frames)
            last = file.frames if end_s is None else min(round(end_s * file.samplerate), file.frames)
            file.seek(first)
            return file.read(max(0, last - first), dtype="float32", always_2d=True), file.samplerate
    except soundfile.SoundFileError as error:
        raise _unreadable(path, error) from error


def _read_audio_stream(path, start_s, end_s):
    with open_container(path) as container:
        if not container.streams.audio:
            raise MediaError(path, "no audio track")
        stream = container.streams.audio[0]
        source_hz = stream.rate
        to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=source_hz)
        parts = [
            part.to_ndarray()
            for frame in decoded_frames(container, stream)
            for part in to_float.resample(frame)
        ]
    samples = np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), np.float32)
    return samples[
        round(start_s * source_hz) : None if end_s is None else round(end_s * source_hz)
    ], source_hz


def write_wav(path, samples, rate_hz=16000):
    """Write float samples (T,) as 16-bit mono PCM, whole or not at all, clipped to full scale."""
    coded = io.BytesIO()  # libsndfile does not say why it cannot write, the operating system does
    soundfile.write(coded, np.clip(samples, -1.0, 1.0), rate_hz, subtype="PCM_16", format="WAV")
    with atomic_path(path) as temporary:
        temporary.write_bytes(coded.getvalue())


# ---- Video in ---------------------------------------------------------------------------------


def decoded_frames(container, stream):
    """All frames that decode, in the decoder's order; damaged packets are passed over."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                continue
    except av.error.InvalidDataError:
        return  # the container breaks off here: what came before counts


def _edit_list_loses_frames(path):
    """True if an MP4's edit list hides frames that lie within the duration the file states.

    RAVDESS's MP4s start their pictures one frame late against the edit list, so that FFmpeg drops one of them
    at the end. Frames that an editor has trimmed are more, or lie outside of the stated duration: these stay
    hidden.
    """
    if Path(path).suffix.lower() not in (".mp4", ".mov", ".m4v"):
        return False
    with open_container(path) as container:
        end = (container.duration or 0) / av.time_base
        hidden = sum(
            packet.is_discard and packet.pts is not None and 0 <= packet.pts * packet.time_base < end
            for packet in container.demux(video=0)
        )
    return 0 < hidden <= MAX_HIDDEN_FRAMES


@contextmanager
def open_video(path, n_threads):
    """The container and its first video stream, with every frame the recording has."""
    check_file(path)
    with open_container(
        path, **({"ignore_editlist": "1"} if _edit_list_loses_frames(path) else {})
    ) as container:
        if not container.streams.video:
            raise MediaError(path, "no video track")
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", n_threads
        yield container, stream


def timed_frames(container, stream):
    """(frame, pts) in display order, pts counted from the first frame in units of the stream's time base.

    The decoder's order is right where time stamps of neighbours are swapped (seen in RAVDESS) or absent
    (AVI with B-frames), so stamps are sorted over a window of two frames and gaps are filled at the frame
    rate.
    """
    step = round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 1
    waiting, stamps, first, last = deque(), [], None, None
    for frame in decoded_frames(container, stream):
        newest = frame.pts if frame.pts is not None else (0 if last is None else last + step)
        last = newest
        waiting.append(frame)
        heapq.heappush(stamps, newest)
        if len(waiting) > 1:
            pts = heapq.heappop(stamps)
            first = pts if first is None else first
            yield waiting.popleft(), pts - first
    if waiting:
        pts = heapq.heappop(stamps)
        yield waiting.popleft(), pts - (pts if first is None else first)


def count_frames(path):
    """The number of video frames stored in a recording, read without decoding. Raises MediaError."""
    with open_video(path, 1) as (container, stream):
        return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)


def read_frames(path, start_s=None, end_s=None, n_frames=None, size=None, n_threads=1):
    """Decode a video from its start, in order, and return frames with their times.

    start_s, end_s  the part to read in seconds, None = from the first frame, to the last
    n_frames        return this many frames, spread evenly over the whole video (the middles of equal parts, a
                    frame repeated where there are fewer); not together with start_s or end_s. None = every
                    frame
    size            (height, width) to scale to, None = as recorded
    Returns (frames (T, H, W, 3) uint8 RGB, times_s (T,) float64 from the first frame of the video).
    Raises MediaError for an unreadable file, or if no frame lies in that span.
    """
    wanted = None
    if n_frames is not None:
        total = max(1, count_frames(path))
        wanted = ((np.arange(n_frames) + 0.5) * total / n_frames).astype(int)
    pictures, times = [], []
    with open_video(path, n_threads) as (container, stream):
        for i, (frame, pts) in enumerate(timed_frames(container, stream)):
            time_s = float(pts * stream.time_base)
            if end_s is not None and time_s >= end_s:
                break
            if (start_s is not None and time_s < start_s) or (wanted is not None and i not in wanted):
                continue
            height, width = size or (frame.height, frame.width)
            pictures.append(frame.to_ndarray(format="rgb24", width=width, height=height))
            times.append(time_s)
    if not pictures:
        raise MediaError(
            path, "no video frame could be decoded" + (f" from {start_s:.2f} s on" if start_s else "")
        )
    if wanted is not None:  # frames asked for twice, or lost at a damaged end
        order = np.searchsorted(np.unique(wanted), wanted).clip(max=len(pictures) - 1)
        return np.stack([pictures[k] for k in order]), np.array([times[k] for k in order])
    return np.stack(pictures), np.array(times)
