"""What a player shows of a video at given times, decoded once and in order, as pictures for a network.

Sound and picture of a container share a clock that starts where the container does, as in a player.
"""

from itertools import chain

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from common.media import MediaError, open_container, open_video, start_of, timed_frames, upright

CROP_SHARE = 224 / 256  # of the short side: torchvision and AVID-CMA scale it to 256 and take the central 224
STAMP_TOLERANCE_S = 1e-3  # FLV and others round the times of frames to milliseconds
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
    """What a player shows of an open video at the wanted times: the newest frame by then, or the first.

    wanted_s  sorted times
    end_s     of the last clip: a video that starts later is not looked at, its pictures are black
    Returns pictures (len(wanted_s), size, size, 3) uint8 RGB, when the first frame is shown and when the last
    one that begins before end_s ends. Raises MediaError where no frame decodes.
    """
    pictures, scaler = np.zeros((len(wanted_s), size, size, 3), np.uint8), VideoReformatter()
    start_s = picture_start(container, stream)
    if start_s >= end_s:
        return pictures, start_s, start_s
    tick_s, step_s = float(stream.time_base), float(1 / stream.average_rate) if stream.average_rate else 0.0
    frames = timed_frames(container.demux(stream), stream)
    frame, _ = next(frames, (None, 0))
    if frame is None:
        raise MediaError(container.name, "no video frame could be decoded", "download it again")
    is_known = frame.pts is not None and stream.start_time is not None
    late_s = (frame.pts - stream.start_time) * tick_s if is_known else 0.0
    # Frames at the start may be damaged; what is less late may be a swapped stamp.
    first_s = last_s = start_s + late_s if late_s > 2 * step_s else start_s
    k = 0
    for next_frame, pts in chain(frames, [(None, np.inf)]):
        next_s = first_s + pts * tick_s
        n = np.searchsorted(wanted_s + STAMP_TOLERANCE_S, next_s)  # up to here `frame` is shown
        if n > k:
            pictures[k:n], k = central_square(frame, size, scaler), n
        if next_s >= end_s and k == len(wanted_s):
            break
        frame, last_s = next_frame, next_s
    return pictures, start_s, last_s + step_s if next_frame is None else next_s


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
    share = frames / 255
    return ((share - share.new_tensor(mean)) / share.new_tensor(std)).permute(0, 4, 1, 2, 3)
