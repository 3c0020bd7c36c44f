"""Clips cut from videos and written as muted MP4s, which 01 needs for corpora whose dialogues are recorded whole."""

from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from common.files import atomic_path, writing
from common.media import MediaError
from common.media import _open_video as open_video
from common.media import _timed_frames as timed_frames

END_TOLERANCE_S = 0.1  # a clip may end this much after its video before it is a problem


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


class _ClipWriter:
    """One muted MP4 in the making; frames keep the time stamps of the source, from 0."""

    def __init__(self, path, stream, crf, preset):
        self.path, self.stream, self.crf, self.preset = path, stream, crf, preset
        self.stack, self.first_pts, self.n_frames = ExitStack(), None, 0

    def add(self, frame, pts):
        """Encode one yuv420p frame shown at `pts` of the source."""
        with writing(self.path):
            if self.first_pts is None:
                temporary = self.stack.enter_context(atomic_path(self.path))
                self.container = self.stack.enter_context(av.open(str(temporary), "w", format="mp4"))
                self.encoder, self.first_pts = self._encoder(frame), pts
            frame.pts, frame.time_base = pts - self.first_pts, self.stream.time_base
            self.container.mux(self.encoder.encode(frame))
        self.n_frames += 1

    def _encoder(self, frame):
        name, options = "libx264", {"crf": str(self.crf), "preset": self.preset}
        if name not in av.codecs_available:  # near-lossless MPEG-4
            name, options = "mpeg4", {"flags": "+qscale", "global_quality": str(2 * 118)}
        encoder = self.container.add_stream(name, rate=self.stream.average_rate or 30, options=options)
        encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuv420p"
        encoder.codec_context.time_base = self.stream.time_base
        encoder.codec_context.thread_count = self.stream.codec_context.thread_count
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
    width, height = (frame.width // 2 if half else frame.width) // 2 * 2, frame.height // 2 * 2
    x = frame.width // 4 * 2 if half == "right" else 0
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
    Returns a CutResult per cut, in order. A damaged video gives what decodes. Raises MediaError if nothing does.
    """
    writers, results = {}, [CutResult() for _ in cuts]
    waiting = deque(sorted(range(len(cuts)), key=lambda k: cuts[k].start_s or 0.0))
    time_s = None
    with open_video(path, n_threads) as (container, stream):
        step_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
        try:
            for frame, pts in timed_frames(container, stream):
                time_s = float(pts * stream.time_base)
                while waiting and (cuts[waiting[0]].start_s or 0.0) <= time_s:
                    k = waiting.popleft()
                    writers[k] = _ClipWriter(cuts[k].output, stream, crf, preset)
                _finish(writers, results, cuts, time_s, step_s)
                if not writers and not waiting:
                    break
                _encode(frame, pts, writers, cuts)
            if time_s is None:
                raise MediaError(path, "no video frame could be decoded", "download it again")
            _finish(writers, results, cuts, None, step_s)
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
    halves = {half: crop_half(frame, half) for half in {cuts[k].half for k in writers}}
    for k, writer in writers.items():
        writer.add(halves[cuts[k].half], pts)


def _finish(writers, results, cuts, time_s, step_s):
    """Close the clips that end at or before time_s, None = all."""
    for k in list(writers):
        if time_s is None or (cuts[k].end_s is not None and time_s >= cuts[k].end_s):
            writers[k].close()
            n_frames = writers.pop(k).n_frames
            results[k].n_frames, results[k].seconds = n_frames, n_frames * step_s


def _note_ends(cuts, results, end_s):
    """Say which clips the video is too short for."""
    for cut, result in zip(cuts, results, strict=True):
        ends = f"the end of the video at {end_s:.2f} s"
        if not result.n_frames:
            result.problem = f"no frame from {cut.start_s or 0:.2f} s on: the video ends at {end_s:.2f} s"
        elif cut.end_s is not None and cut.end_s > end_s + END_TOLERANCE_S:
            result.problem = f"clip to {cut.end_s:.2f} s is past {ends}; cut there"


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
