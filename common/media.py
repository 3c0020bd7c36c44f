"""Recordings in and out: soundfile for audio files, PyAV for anything in a container.

Every reader raises MediaError for a file that cannot be used, so that callers can count it and go on.
T samples or frames, H height, W width.
"""

import io
import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import numpy as np
import soundfile
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from common.files import atomic_path

AUDIO_FILES = (".wav", ".flac", ".ogg", ".aif", ".aiff")  # libsndfile opens these ten times as fast
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # what an MP4 begins with, after a length
MAX_HIDDEN_FRAMES = 2  # an edit list that is off by the encoder's delay hides no more than these
MAX_RATE_FACTOR = 1000  # largest source_hz / gcd(source_hz, rate_hz) resampled; 44100 to 16000 Hz has 441
SILENCE = 1e-4  # full scale = 1: samples that differ by no more are silence
CANCELLED = 1e-3  # power of the mean of all channels over their own, below which they cancel each other
LFS_POINTER = b"version https://git-lfs"
NO_RECORDINGS = {  # how files begin that stand where a recording should: what they are, and what to do
    LFS_POINTER: ("a git-lfs pointer, not the recording", "run git lfs pull in its repository"),
    b"<": ("a web page, not the recording behind it", "download the recording itself"),
    b"PK\3\4": ("a zip archive", "unpack it"),
}


class MediaError(Exception):
    """A file that cannot be used: `path` and `reason`, and `remedy` where one is known."""

    def __init__(self, path, reason, remedy=""):
        super().__init__(str(path), reason, remedy)
        self.path, self.reason, self.remedy = Path(path), reason, remedy

    def __str__(self):
        return f"{self.path}: {self.reason}" + (f"; {self.remedy}" if self.remedy else "")


class Silence(MediaError):
    """A recording without any sound in it."""


@dataclass
class MediaInfo:
    """What a file says about itself; 0 where it has no such track or does not say."""

    duration_s: float = 0.0
    rate_hz: int = 0
    width: int = 0
    height: int = 0
    fps: float = 0.0
    n_frames: int = 0


# ---- Files ------------------------------------------------------------------------------------


def first_bytes(path):
    """How a file begins; MediaError where it is absent, empty or evidently something else."""
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError as error:
        raise MediaError(path, error.strerror or "cannot be opened", "check the download") from error
    if not start:
        raise MediaError(path, "the file is empty", "download it again")
    for beginning, what in NO_RECORDINGS.items():
        if start.startswith(beginning):
            raise MediaError(path, *what)
    return start


@contextmanager
def open_container(path, **options):
    """Open a container for reading; FFmpeg's complaints become MediaError."""
    first_bytes(path)
    try:
        with av.open(str(path), options=options) as container:
            yield container
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "a name in it is not text"
        remedy = "play it: if that works convert it to wav or mp4, else replace it"
        raise MediaError(path, f"not a readable recording ({reason})", remedy) from error


def first_track(container, kind, path):
    """The first "audio" or "video" track that decodes; MediaError says what a file without one is."""
    for stream in getattr(container.streams, kind):
        is_cover = stream.disposition & Disposition.attached_pic
        if stream.codec_context and not is_cover and (kind == "video" or stream.rate):
            return stream
    other = {"audio": "video", "video": "audio"}[kind]
    what = f"no {kind} track in it ({container.format.long_name})"
    raise MediaError(path, what, f"name it as {other} alone, or replace it")


def start_of(container, stream):
    """When a track starts, in seconds on the clock of its container, which starts with its first track."""
    zero_s = (container.start_time or 0) / av.time_base
    return max(0.0, float((stream.start_time or 0) * stream.time_base) - zero_s)


def probe(path):
    """What a recording says about itself, as MediaInfo, without decoding it. Raises MediaError."""
    with open_container(path) as container:
        info = MediaInfo((container.duration or 0) / av.time_base)
        with suppress(MediaError):
            info.rate_hz = first_track(container, "audio", path).rate
        with suppress(MediaError):
            video = first_track(container, "video", path)
            info.width, info.height, info.n_frames = video.width, video.height, video.frames
            info.fps = float(video.average_rate or 0)
    if not (info.rate_hz or info.width):
        raise MediaError(path, "not a readable recording (neither sound nor picture in it)", "replace it")
    return info


# ---- Sound ------------------------------------------------------------------------------------


def check_rate(path, source_hz, rate_hz):
    """Raise MediaError for a sampling rate that nobody records at, as damaged headers have.

    The resampling filter grows with source_hz / gcd: 44101 to 16000 Hz would take gigabytes.
    """
    if source_hz <= 0 or source_hz // math.gcd(source_hz, rate_hz) > MAX_RATE_FACTOR:
        raise MediaError(path, f"an odd sampling rate ({source_hz} Hz)", "its header may be damaged")


def read_audio(path, end_s=None, rate_hz=16000):
    """The sound of a recording at a sampling rate: float32 (T,), full scale = 1.

    rate_hz  the rate wanted; others are resampled (torchaudio's windowed sinc), odd ones are a MediaError
    """
    mono, source_hz = read_mono(path, end_s)
    check_rate(path, source_hz, rate_hz)
    if source_hz != rate_hz:
        import torch  # here: 01 seldom needs it, and it takes longer than all else to import
        from torchaudio.functional import resample

        mono = resample(torch.from_numpy(mono), source_hz, rate_hz).numpy()
    return mono


def read_mono(path, end_s=None):
    """Read the mean of all channels of an audio file, or of the audio in a container, as it was recorded.

    end_s  seconds to read, None = all; sound that starts later than its container is preceded by silence
    Returns float32 (T,), full scale = 1, and its sampling rate in Hz.
    Raises MediaError for a file that is unreadable, or whose sound is absent, silent or of no use.
    """
    samples = ()
    if Path(path).suffix.lower() in AUDIO_FILES:
        with suppress(soundfile.SoundFileError), soundfile.SoundFile(str(path)) as file:
            source_hz, last = file.samplerate, -1 if end_s is None else round(end_s * file.samplerate)
            samples = file.read(last, dtype="float32", always_2d=True)  # (T, channels)
    if not len(samples):  # another format under this name, or a header that was never finished
        samples, source_hz = _decode_audio(path, end_s)
    mono = samples.mean(axis=1, dtype=np.float32)  # (T,)
    if not len(mono):
        raise MediaError(path, "no audio samples")
    if not np.isfinite(mono).all():
        raise MediaError(path, "samples that are not finite (NaN or infinity)")
    if np.vdot(mono, mono) * samples.shape[1] < CANCELLED * np.vdot(samples, samples):
        raise MediaError(path, "its channels cancel each other", "keep one of them, or invert one")
    if np.ptp(mono) <= SILENCE:
        raise Silence(path, f"silence: its samples differ by no more than {SILENCE:g}")
    return mono, source_hz


def _decode_audio(path, end_s):
    """(samples (T, channels), their rate) of the audio in a container, by FFmpeg."""
    with open_container(path) as container:
        stream = first_track(container, "audio", path)
        to_float = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        n = round(start_of(container, stream) * stream.rate)
        last = None if end_s is None else round(end_s * stream.rate)
        parts = [np.zeros((stream.channels, n), np.float32)]
        for frame in decoded_frames(container.demux(stream)):
            parts += [part.to_ndarray() for part in to_float.resample(frame)]
            n += frame.samples
            if last is not None and n >= last:
                break
        return np.concatenate(parts, axis=1).T[:last], stream.rate


def write_wav(path, samples, rate_hz=16000):
    """Write float samples (T,) as 16-bit mono PCM, whole or not at all, clipped to full scale."""
    coded = io.BytesIO()  # libsndfile does not say why it cannot write, the operating system does
    soundfile.write(coded, np.clip(samples, -1.0, 1.0), rate_hz, subtype="PCM_16", format="WAV")
    with atomic_path(path) as temporary:
        temporary.write_bytes(coded.getvalue())


# ---- Pictures ---------------------------------------------------------------------------------


def decoded_frames(packets):
    """All frames that decode, in the decoder's order; damaged packets are passed over."""
    with suppress(av.error.InvalidDataError):  # the container breaks off here: what came before counts
        for packet in packets:
            with suppress(av.error.InvalidDataError):
                yield from packet.decode()


def _edit_list_loses_frames(path):
    """True if an MP4's edit list hides frames that lie within the duration the file states.

    RAVDESS's MP4s start their pictures one frame late against the edit list, so that FFmpeg drops the last.
    Frames that an editor has trimmed are more, or lie outside of the stated duration: these stay hidden.
    """
    if first_bytes(path)[4:8] not in MP4_BOXES:
        return False
    with open_container(path) as container:
        stream, hidden = first_track(container, "video", path), 0
        for packet in container.demux(stream):
            if packet.is_discard and packet.pts is not None:
                hidden += 0 <= packet.pts * packet.time_base * av.time_base < (container.duration or 0)
    return 0 < hidden <= MAX_HIDDEN_FRAMES


@contextmanager
def open_video(path):
    """The container and its first video track, with every frame the recording has."""
    options = {"ignore_editlist": "1"} if _edit_list_loses_frames(path) else {}
    with open_container(path, **options) as container:
        stream = first_track(container, "video", path)
        stream.codec_context.thread_count = 1  # recordings are read side by side
        yield container, stream


def timed_frames(packets, stream):
    """(frame, pts) in display order, pts counted from the first in the stream's time base.

    The decoder's order is right where time stamps of neighbours are swapped (seen in RAVDESS) or absent
    (AVI with B-frames), so stamps are sorted over two frames and gaps are filled at the frame rate.
    """
    step = round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 1
    waiting, stamps, first, newest = None, [], None, -step
    for frame in chain(decoded_frames(packets), [None]):
        if frame is not None:
            newest = newest + step if frame.pts is None else frame.pts
            stamps = sorted([*stamps, newest])
        if waiting is not None:
            pts = stamps.pop(0)
            first = pts if first is None else first
            yield waiting, pts - first
        waiting = frame


def upright(picture, frame):
    """A picture (H, W, 3) of a frame as it is to be shown: phones film lying, with a matrix that turns it."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return picture
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]  # (x, y) is shown at (a x + c y, b x + d y)
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def read_frames(path, end_s=math.inf, short_side=None):
    """Decode a video from its start up to end_s, in order, and return frames with their times.

    short_side  pixels that the short side is scaled to, None = as recorded
    Returns (frames (T, H, W, 3) uint8 RGB, times_s (T,) float64 from the first frame of the video).
    Raises MediaError for a file of which no frame can be decoded.
    """
    frames, times_s, scaler = [], [], VideoReformatter()  # one for all: each sets up its own tables
    with open_video(path) as (container, stream):
        for frame, pts in timed_frames(container.demux(stream), stream):
            time_s = float(pts * stream.time_base)
            if time_s >= end_s:
                break
            scale = short_side / min(frame.width, frame.height) if short_side else 1
            size = {"width": round(scale * frame.width), "height": round(scale * frame.height)}
            picture = scaler.reformat(frame, format="rgb24", threads=1, **size).to_ndarray()
            frames.append(upright(picture, frame))
            times_s.append(time_s)
    if not frames:
        raise MediaError(path, "no video frame could be decoded")
    return np.stack(frames), np.array(times_s)
