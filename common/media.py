"""Audio and video in and out: soundfile for audio files, PyAV for anything in a container.

Every reader raises MediaError for a file that cannot be used, so that callers can count it and go on.
Legend: T samples or frames, H height, W width.
"""

import heapq
import io
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from torchaudio.functional import resample
from tqdm import tqdm

from common.files import atomic_path, writing

AUDIO_FILES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}  # what libsndfile reads by itself
HEADED_FILES = {".wav", ".flac"}  # ... of which it need read no more than the header to know the length
LFS_POINTER = b"version https://git-lfs"
MAX_HIDDEN_FRAMES = 2  # an edit list that is off by the encoder's delay hides no more than these
COUNT_ALL = 20_000  # up to this many recordings the length of each is read from its header ...
COUNT_SAMPLE = 2_000  # ... of more, that of so many, drawn at random
COUNT_THREADS = 16  # reading headers waits for the disk, not for a processor
END_TOLERANCE_S = 0.1  # a clip may end this much after its video before it is a problem
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


@dataclass
class Cut:
    """One clip to cut: [start_s, end_s) of a video, None = from its start or to its end.

    half is the part of a split screen to keep: "left", "right", or "" for the whole frame.
    """

    output: Path
    start_s: float | None = None
    end_s: float | None = None
    half: str = ""


@dataclass
class CutResult:
    """What became of a Cut: frames written (0 = no file), their length, and what is amiss if anything."""

    n_frames: int = 0
    seconds: float = 0.0
    problem: str = ""


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


# ---- Video out --------------------------------------------------------------------------------


class _ClipWriter:
    """One muted MP4 in the making; frames keep the time stamps of the source, from 0."""

    def __init__(self, path, stream, crf, preset):
        self.path, self.stream, self.crf, self.preset = path, stream, crf, preset
        self.n_threads = stream.codec_context.thread_count
        self.stack, self.first_pts, self.n_frames = ExitStack(), None, 0

    def add(self, frame, pts):
        """Encode one yuv420p frame shown at `pts` of the source."""
        with writing(self.path):
            if self.first_pts is None:
                temporary = self.stack.enter_context(atomic_path(self.path))
                self.container = self.stack.enter_context(av.open(str(temporary), "w", format="mp4"))
                self.encoder = self._encoder(frame)
                self.first_pts = pts
            frame.pts, frame.time_base = pts - self.first_pts, self.stream.time_base
            self.container.mux(self.encoder.encode(frame))
        self.n_frames += 1

    def _encoder(self, frame):
        has_x264 = "libx264" in av.codecs_available
        options = (
            {"crf": str(self.crf), "preset": self.preset}
            if has_x264
            else {"flags": "+qscale", "global_quality": str(2 * 118)}
        )  # near-lossless MPEG-4
        encoder = self.container.add_stream(
            "libx264" if has_x264 else "mpeg4", rate=self.stream.average_rate or 30, options=options
        )
        encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
        encoder.codec_context.time_base = self.stream.time_base
        encoder.codec_context.thread_count = self.n_threads
        return encoder

    def close(self):
        """Finish the file and rename it into place."""
        with writing(self.path):
            if self.first_pts is not None:
                self.container.mux(self.encoder.encode(None))
            self.stack.close()

    def abandon(self):
        """Drop the unfinished file."""
        with suppress(Exception):  # closing it fails again where writing it failed
            self.stack.__exit__(InterruptedError, InterruptedError(), None)


def crop_half(frame, half):
    """The left or right half of a yuv420p frame, or ("") all of it, with even sides as H.264 needs."""
    x = frame.width // 2 if half == "right" else 0
    width = (frame.width // 2 if half else frame.width) // 2 * 2
    height = frame.height // 2 * 2
    x = x // 2 * 2
    cropped = av.VideoFrame(width, height, "yuv420p")
    for source, target, scale in zip(frame.planes, cropped.planes, (1, 2, 2), strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)
        into = np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)
        into[:, : width // scale] = rows[: height // scale, x // scale : (x + width) // scale]
    return cropped


def cut_turns(path, cuts, crf, preset, n_threads=1):
    """Cut all clips of one video in a single sequential pass, however they overlap, each to a muted MP4.

    cuts       list of Cut
    crf        constant rate factor of H.264: 18 is visually lossless, lower is larger
    preset     speed preset of x264, "ultrafast" to "veryslow"
    n_threads  of the decoder and of every encoder, 0 = as many as FFmpeg likes
    Frames keep their times; a frame belongs to a clip if start_s <= its time < end_s.
    Returns a CutResult per cut, in order. A damaged video gives what decodes. Raises MediaError if nothing
    does.
    """
    writers = {}
    results = [CutResult() for _ in cuts]
    waiting = deque(sorted(range(len(cuts)), key=lambda k: cuts[k].start_s or 0.0))
    time_s = step_s = 0.0
    with open_video(path, n_threads) as (container, stream):
        step_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
        try:
            n_decoded = 0
            for frame, pts in timed_frames(container, stream):
                time_s, n_decoded = float(pts * stream.time_base), n_decoded + 1
                while waiting and (cuts[waiting[0]].start_s or 0.0) <= time_s:
                    k = waiting.popleft()
                    writers[k] = _ClipWriter(cuts[k].output, stream, crf, preset)
                _finish(writers, results, cuts, time_s, step_s)
                if not writers and not waiting:
                    break
                _encode(frame, pts, writers, cuts)
            if not n_decoded:
                raise MediaError(path, "no video frame could be decoded", "download it again")
            _finish(writers, results, cuts, float("inf"), step_s)
        except BaseException:
            for writer in writers.values():
                writer.abandon()
            raise
    _note_ends(cuts, results, time_s + step_s)
    return results


def _encode(frame, pts, writers, cuts):
    """Give a frame to every clip that is open, cropped once per half."""
    if writers and frame.format.name != "yuv420p":
        frame = frame.reformat(format="yuv420p")
    halves = {}
    for k, writer in writers.items():
        half = cuts[k].half
        if half not in halves:
            halves[half] = crop_half(frame, half)
        writer.add(halves[half], pts)


def _finish(writers, results, cuts, time_s, step_s):
    """Close the clips that end at or before time_s."""
    for k in [k for k in writers if time_s >= (float("inf") if cuts[k].end_s is None else cuts[k].end_s)]:
        writers[k].close()
        writer = writers.pop(k)
        results[k].n_frames, results[k].seconds = writer.n_frames, writer.n_frames * step_s


def _note_ends(cuts, results, end_s):
    for cut, result in zip(cuts, results, strict=True):
        if not result.n_frames:
            result.problem = f"no frame from {cut.start_s or 0:.2f} s on: the video ends at {end_s:.2f} s"
        elif cut.end_s is not None and cut.end_s > end_s + END_TOLERANCE_S:
            result.problem = (
                f"clip to {cut.end_s:.2f} s is past the end of the video at {end_s:.2f} s; cut there"
            )


def copy_muted(path, output):
    """Copy the H.264 video of a recording into an MP4 without its sound and without encoding it again.

    Returns the number of frames, 0 if the video is not H.264 and must be encoded. Raises MediaError.
    """
    with open_video(path, 1) as (source, stream):
        if stream.codec_context.name != "h264":
            return 0
        with atomic_path(output) as temporary, av.open(str(temporary), "w", format="mp4") as target:
            copy, n_frames = target.add_stream_from_template(stream), 0
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
                    n_frames += 1
        return n_frames


# Until their last users are gone.
_container, _open_video, _timed_frames = open_container, open_video, timed_frames
