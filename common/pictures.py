"""What a player shows of a video at given times, decoded once and in order, as pictures for a network.

Sound and picture of a container share a clock that starts where the container does, as in a player.
"""

from contextlib import suppress
from itertools import chain

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from common.media import MediaError, open_container, open_video, start_of, timed_frames, upright

CROP_SHARE = 224 / 256  # of the short side: torchvision and AVID-CMA scale it to 256 and take the central 224
STAMP_TOLERANCE_S = 1e-3  # FLV and others round the times of frames to milliseconds
SWAPPED_STAMPS = 3  # at the end of RAVDESS's videos, stamps of neighbouring frames are swapped
DECODER_DELAY = 32  # packets that are read after the last clip; H.264 gives a frame up to 16 packets late
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and sd of pixels, RGB


def count_frames(path):
    """The number of video frames stored in a recording, read without decoding. Raises MediaError."""
    with open_video(path) as (container, stream):
        return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)


def picture_start(container, stream):
    """When a video's first picture is shown, in seconds on the clock of its container."""
    if "ignore_editlist" in container.options:  # its times are then not those at which it is played
        with open_container(container.name) as played:
            return picture_start(played, played.streams[stream.index])
    return start_of(container, stream)


def read_pictures(container, stream, wanted_s, end_s, size):
    """What a player shows of an open video at the wanted times, decoded up to the last of them.

    wanted_s  sorted times; before the first frame it is shown, after the last the last one
    end_s     of the last clip: a video that starts later is not looked at, its pictures are black
    Returns pictures (len(wanted_s), size, size, 3) uint8 RGB, and when the first frame is shown and the last
    one that was read ends. Raises MediaError where no frame decodes.
    """
    start_s = picture_start(container, stream)
    if start_s >= end_s:
        return np.zeros((len(wanted_s), size, size, 3), np.uint8), start_s, start_s
    tick_s = float(stream.time_base)
    step_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
    packets, n_frames, stamps = packets_until(container, stream, (end_s - start_s) / tick_s)
    needed, last_s = None, start_s + (n_frames - 1) * step_s
    if stamps is not None:
        times_s = start_s + (stamps - stamps[0]) * tick_s
        shown = np.searchsorted(times_s, wanted_s + STAMP_TOLERANCE_S, side="right") - 1
        needed = {*stamps[shown.clip(min=0)].tolist(), *stamps[-SWAPPED_STAMPS:].tolist()}
        last_s = times_s[-1]
    frames = timed_frames(only_needed(packets, needed, stream.codec_context), stream)
    first, _ = head = next(frames, (None, 0))
    if first is None:
        raise MediaError(container.name, "no video frame could be decoded", "download it again")
    known = stamps is not None and first.pts is not None
    late_s = float((first.pts - stamps[0]) * tick_s) if known else 0.0
    # Frames at the start may be damaged; what is less late may be a swapped stamp.
    zero_s = start_s + late_s if late_s > 2 * step_s else start_s
    timed = ((frame, zero_s + pts * tick_s) for frame, pts in chain([head], frames))
    return pictures_at(wanted_s + STAMP_TOLERANCE_S, timed, size), start_s, last_s + step_s


def packets_until(container, stream, end):
    """The packets of a video that are decoded before `end`, in its time base after its first frame.

    Returns (packets, how many frames they hold, the sorted pts of these; None where one has none, as in AVI).
    """
    packets, first, n_late = [], None, 0
    with suppress(av.error.InvalidDataError):  # the container breaks off here: what came before counts
        for packet in container.demux(stream):
            packets.append(packet)
            first = packet.dts if first is None else first
            n_late += packet.dts is not None and packet.dts - first > end
            if n_late > DECODER_DELAY:
                break
    stamps = [packet.pts for packet in packets if packet.size and not packet.is_discard]
    return packets, len(stamps), np.array(sorted(stamps)) if stamps and None not in stamps else None


def only_needed(packets, needed, decoder):
    """The packets, the decoder told to pass over those whose pts is not needed, where no frame is predicted
    from theirs: this changes nothing in the rest, and with two B-frames in a row saves a third of the work.
    """
    for packet in packets:
        needless = needed is not None and packet.pts is not None and packet.pts not in needed
        decoder.skip_frame = "NONREF" if needless else "DEFAULT"
        yield packet


def pictures_at(wanted_s, frames, size):
    """For each of the sorted times, the newest of the (frame, time) by then, or the first, as a picture."""
    pictures, scaler = np.empty((len(wanted_s), size, size, 3), np.uint8), VideoReformatter()
    held, k = None, 0
    for frame, time_s in chain(frames, [(None, np.inf)]):
        n = np.searchsorted(wanted_s, time_s)  # up to here `held` is shown
        if held is not None and n > k:
            pictures[k:n] = central_square(held, size, scaler)
            k = n
        if k == len(wanted_s):
            break
        held = frame
    return pictures


def central_square(frame, size, scaler):
    """The centre of a picture as (size, size, 3) uint8: a square of 224 / 256 of its short side, bilinear.

    AVID-CMA scales the short side to 256 pixels and crops 224 then. To crop first, at whole pixels that have
    their own colour, shifts the result by at most a third of a pixel at 720 lines, in a third of the time.
    """
    pixels = frame if frame.format.name in ("yuv420p", "yuvj420p") else frame.reformat(format="yuv420p")
    side = max(2, round(min(frame.width, frame.height) * CROP_SHARE / 2) * 2)
    x, y = (round((length - side) / 4) * 2 for length in (frame.width, frame.height))
    # Without full chroma, FFmpeg takes short cuts that shift colours, and other ones for other sizes.
    bilinear = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT
    square = crop(pixels, x, y, side, side)
    square = scaler.reformat(square, size, size, "rgb24", interpolation=bilinear, threads=1)
    return upright(square.to_ndarray(), frame)


def crop(frame, x, y, width, height):
    """A part of a frame in yuv420p, whose colours are of 2 x 2 pixels; all four numbers are even."""
    part = av.VideoFrame(width, height, frame.format.name)
    part.colorspace, part.color_range = frame.colorspace, frame.color_range
    for source, target, n in zip(frame.planes, part.planes, (1, 2, 2), strict=True):
        rows, into = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size) for p in (source, target))
        into[:, : width // n] = rows[y // n : (y + height) // n, x // n : (x + width) // n]
    return part


def normalise_frames(frames, mean, std):
    """Frames (B, F, H, W, 3) uint8 -> (B, 3, F, H, W) float, less the mean and over the sd of each colour."""
    mean, std = (torch.tensor(x, device=frames.device) for x in (mean, std))  # (3,)
    return ((frames / 255 - mean) / std).permute(0, 4, 1, 2, 3)
