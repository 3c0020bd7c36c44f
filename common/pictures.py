"""What a player shows of a video at given times, decoded once and in order, as pictures for a network.

Sound and picture of a container share a clock that starts where the container does, as in a player.
"""

from dataclasses import dataclass

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from common.media import MediaError, open_container, timed_frames

CROP_SHARE = 224 / 256  # of the short side: torchvision and AVID-CMA scale it to 256 and take the central 224
STAMP_TOLERANCE_S = 1e-3  # FLV and others round the times of frames to milliseconds
SWAPPED_STAMPS = 3  # at the end of RAVDESS's videos, stamps of neighbouring frames are swapped
DECODER_DELAY = 32  # packets that are read after the last clip; H.264 gives a frame up to 16 packets late
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and sd of pixels, RGB


@dataclass
class Tracks:
    """When the tracks of a container start, on its clock, and the sampling rate, 0 = no sound."""

    video_start_s: float = 0.0
    audio_start_s: float = 0.0
    rate_hz: int = 0


def find_tracks(container, path):
    """The Tracks of an open container."""
    if "ignore_editlist" in container.options:  # its times are then not those at which it is played
        with open_container(path) as played:
            return find_tracks(played, path)
    zero_s = (container.start_time or 0) / av.time_base
    starts_s = []
    for streams in (container.streams.video, container.streams.audio):
        known = streams and streams[0].start_time is not None
        start_s = float(streams[0].start_time * streams[0].time_base) - zero_s if known else 0.0
        starts_s.append(max(0.0, start_s))
    audio = container.streams.audio
    return Tracks(*starts_s, audio[0].rate or 0 if audio else 0)


class Packets:
    """The packets of a video up to the end of the last clip, in place of the container when they are decoded.

    stream  of the container; end: from so long after the first frame on frames are of no use, in its time
            base
    stamps  pts of the frames that they hold, sorted; None where a packet has none (AVI)
    wanted  pts of the frames that are looked at, None = all. The decoder passes over others from which no
            frame is predicted, which changes nothing in the rest: with two B-frames in a row, a third of the
            work
    """

    def __init__(self, container, stream, end):
        self.packets, self.wanted, first, n_late = [], None, None, 0
        try:
            for packet in container.demux(stream):
                self.packets.append(packet)
                first = packet.dts if first is None else first
                n_late += packet.dts is not None and packet.dts - first > end
                if n_late > DECODER_DELAY:
                    break
        except av.error.InvalidDataError:
            pass  # the container breaks off here: what came before counts
        self.n_frames = sum(1 for packet in self.packets if packet.size and not packet.is_discard)
        stamps = sorted(p.pts for p in self.packets if p.size and not p.is_discard and p.pts is not None)
        self.stamps = np.array(stamps) if stamps and len(stamps) == self.n_frames else None

    def demux(self, stream):
        """Yield the packets in the order of decoding, as a container would."""
        for packet in self.packets:
            needless = self.wanted is not None and packet.pts is not None and packet.pts not in self.wanted
            stream.codec_context.skip_frame = "NONREF" if needless else "DEFAULT"
            yield packet


def read_pictures(container, stream, start_s, wanted_s, end_s, pictures):
    """Write what a player shows at the wanted times into pictures (len(wanted_s), size, size, 3) uint8.

    start_s   when the first frame is shown
    wanted_s  times, sorted; before the first frame it is shown, after the last the last one
    end_s     end of the last clip: a video that starts later is not looked at
    Returns (start_s, when the last frame that was read ends). Raises MediaError where no frame decodes.
    """
    if start_s >= end_s:
        return start_s, start_s
    tick_s = float(stream.time_base)
    step_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
    packets = Packets(container, stream, (end_s - start_s) / tick_s)
    if packets.stamps is None:
        last_s = start_s + (packets.n_frames - 1) * step_s
    else:
        times_s = start_s + (packets.stamps - packets.stamps[0]) * tick_s
        shown = np.searchsorted(times_s, wanted_s + STAMP_TOLERANCE_S, side="right") - 1
        ends = packets.stamps[-SWAPPED_STAMPS:]
        packets.wanted = {*packets.stamps[shown.clip(min=0)].tolist(), *ends.tolist()}
        last_s = times_s[-1]
    scaler, previous = VideoReformatter(), None
    for k, frame in enumerate(frames_at(wanted_s, shown_frames(packets, stream, start_s, step_s))):
        if frame is None:
            raise MediaError(container.name, "no video frame could be decoded", "download it again")
        again = frame is previous
        pictures[k] = pictures[k - 1] if again else central_square(frame, pictures.shape[1], scaler)
        previous = frame
    return start_s, last_s + step_s


def shown_frames(packets, stream, start_s, step_s):
    """Yield (frame, time_s) in the order of display; the first frame of the packets is shown at start_s."""
    tick_s = float(stream.time_base)
    for i, (frame, pts) in enumerate(timed_frames(packets, stream)):
        if i == 0 and packets.stamps is not None and frame.pts is not None:
            late_s = float((frame.pts - packets.stamps[0]) * tick_s)
            if late_s > 2 * step_s:  # frames at the start are damaged; less may be a swapped stamp
                start_s += late_s
        yield frame, start_s + pts * tick_s


def frames_at(wanted_s, frames):
    """For each of the sorted times yield the newest frame by then, or the first; None = there is none."""
    held, k = None, 0
    for frame, time_s in frames:
        while held is not None and k < len(wanted_s) and wanted_s[k] + STAMP_TOLERANCE_S < time_s:
            yield held
            k += 1
        if k == len(wanted_s):
            return
        held = frame
    for _ in range(k, len(wanted_s)):
        yield held


def central_square(frame, size, scaler):
    """The centre of a picture as (size, size, 3) uint8 RGB: a square of 224 / 256 of its short side,
    bilinear.

    AVID-CMA scales the short side to 256 pixels and crops 224 then. To crop first, at whole pixels that have
    their own colour, shifts the result by a third of a pixel at most at 720 lines and takes a third of the
    time.
    """
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        frame = frame.reformat(format="yuv420p")
    side = max(2, round(min(frame.width, frame.height) * CROP_SHARE / 2) * 2)
    x, y = (round((length - side) / 4) * 2 for length in (frame.width, frame.height))
    square = av.VideoFrame(side, side, frame.format.name)
    square.colorspace, square.color_range = frame.colorspace, frame.color_range
    for source, target, scale in zip(frame.planes, square.planes, (1, 2, 2), strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)
        into = np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)
        into[:, : side // scale] = rows[y // scale : (y + side) // scale, x // scale : (x + side) // scale]
    # Without full chroma, FFmpeg takes short cuts that shift colours, and other ones for other sizes.
    bilinear = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT
    return scaler.reformat(square, size, size, "rgb24", interpolation=bilinear, threads=1).to_ndarray()


def normalise_frames(frames, mean, std):
    """Frames (B, F, H, W, 3) uint8 -> (B, 3, F, H, W) float, less the mean and over the sd of each colour."""
    mean, std = (torch.tensor(x, device=frames.device) for x in (mean, std))  # (3,)
    return ((frames / 255 - mean) / std).permute(0, 4, 1, 2, 3)
