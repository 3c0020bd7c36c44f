"""Clips cut from videos and written as muted MP4s, for corpora whose dialogues are recorded whole."""

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type

from common.files import atomic_path, writing
from common.media import MediaError, open_video, timed_frames, upright
from common.pictures import crop

PRESET = "ultrafast"  # of x264: speed against file size, at about the same quality
END_TOLERANCE_S = 0.1  # a clip may end this much after its video before it is a problem


@dataclass
class Cut:
    """One clip to cut: [start_s, end_s) of a video."""

    output: Path
    start_s: float = 0.0
    end_s: float = math.inf
    half: str = ""  # the part of a split screen to keep: "left", "right", or "" for the whole frame


@dataclass
class CutResult:
    """What became of a Cut: frames written (0 = no file), their length, and what is amiss if anything."""

    n_frames: int = 0
    seconds: float = 0.0
    problem: str = ""


@contextmanager
def _clip_writer(path, first, first_pts, stream, crf):
    """A function that adds a yuv420p frame, shown at `pts` of the source, to an MP4; it is whole on leaving.

    first, first_pts  the frame that the clip begins with, and its time in the source
    """
    options = {"crf": str(crf), "preset": PRESET}
    with writing(path), atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as target:
        encoder = target.add_stream("libx264", rate=stream.average_rate or 30, options=options)
        encoder.width, encoder.height, encoder.pix_fmt = first.width, first.height, "yuv420p"
        encoder.codec_context.time_base = stream.time_base
        encoder.codec_context.thread_count = stream.codec_context.thread_count

        def add(frame, pts):
            frame.pts, frame.time_base = pts - first_pts, stream.time_base
            target.mux(encoder.encode(frame))

        yield add
        target.mux(encoder.encode(None))


def _plain(frame):
    """A frame in yuv420p, upright: what its display matrix turns is turned in its pixels."""
    if Type.DISPLAYMATRIX in frame.side_data:
        picture = upright(frame.to_ndarray(format="rgb24"), frame)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame if frame.format.name == "yuv420p" else frame.reformat(format="yuv420p")


def crop_half(frame, half):
    """The left or right half of a yuv420p frame, or ("") all of it, with even sides as H.264 needs."""
    width, height = (frame.width // 2 if half else frame.width) // 2 * 2, frame.height // 2 * 2
    x = frame.width // 4 * 2 if half == "right" else 0
    return crop(frame, x, 0, width, height)


def cut_turns(path, cuts, crf):
    """Cut all clips of one video in a single sequential pass, however they overlap, each to a muted MP4.

    cuts       list of Cut
    crf        constant rate factor of H.264: 18 is visually lossless, lower is larger
    Frames keep their times; a frame belongs to a clip if start_s <= its time < end_s.
    Returns a CutResult per cut, in order. A damaged video gives what decodes. Raises MediaError if nothing
    does.
    """
    results, clips, time_s = [CutResult() for _ in cuts], {}, None
    spans = [(cut.start_s, cut.end_s) for cut in cuts]
    with open_video(path) as (container, stream), ExitStack() as unfinished:
        step_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
        for frame, pts in timed_frames(container.demux(stream), stream):
            time_s = float(pts * stream.time_base)
            for k in [k for k in clips if time_s >= spans[k][1]]:
                clips.pop(k)[0].close()
                spans[k] = (math.inf, -math.inf)  # done, wherever later time stamps lead
            if not any(time_s < end_s for _, end_s in spans):
                break
            shown = [k for k, (start_s, end_s) in enumerate(spans) if start_s <= time_s < end_s]
            if shown:
                frame = _plain(frame)
            halves = {half: crop_half(frame, half) for half in {cuts[k].half for k in shown}}
            for k in shown:
                half = halves[cuts[k].half]
                if k not in clips:
                    clip = unfinished.enter_context(ExitStack())
                    writer = _clip_writer(cuts[k].output, half, pts, stream, crf)
                    clips[k] = clip, clip.enter_context(writer), time_s
                clips[k][1](half, pts)
                results[k].n_frames += 1
                results[k].seconds = time_s + step_s - clips[k][2]
        if time_s is None:
            raise MediaError(path, "no video frame could be decoded", "download it again")
    for cut, result in zip(cuts, results, strict=True):
        result.problem = _short_of(cut, result, time_s + step_s)
    return results


def _short_of(cut, result, end_s):
    """What a clip lacks of a video that ends at end_s; "" for nothing."""
    if not result.n_frames:
        return f"no frame from {cut.start_s:.2f} s on: the video ends at {end_s:.2f} s"
    if end_s + END_TOLERANCE_S < cut.end_s < math.inf:
        return f"clip to {cut.end_s:.2f} s is past the end of the video at {end_s:.2f} s; cut there"
    return ""


def copy_muted(path, output):
    """Copy the H.264 video of a recording into an MP4 without its sound and without encoding it again.

    Returns the number of frames, 0 if the video is not H.264 and must be encoded. Raises MediaError.
    """
    with open_video(path) as (source, stream):
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
