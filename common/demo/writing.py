"""From plans to files: one process speaks a corpus, others make the recordings of what was said."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import soundfile
from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor

from common.demo.espeak import speak
from common.demo.sounds import RATE_HZ
from common.demo.voices import make_speech
from common.files import atomic_path, write_text

AAC = ("aac", {"aac_coder": "fast"})  # encoders: codec and options
MP3 = ("libmp3lame", {"compression_level": "9"})  # the fastest
X264 = ("libx264", {"preset": "ultrafast", "crf": "20"})
FLV1 = ("flv", {"qmin": "2", "qmax": "5"})
DIVX = ("mpeg4", {"qmin": "2", "qmax": "5"})


def draw_seed(rng):
    """A seed of its own for what is drawn after speaking."""
    return tuple(int(number) for number in rng.integers(2**31, size=2))


def write_corpus(root, items, write, workers, texts=None, finish=None):
    """Write a corpus below `root`, replacing what is there; it appears whole or not at all.

    items    what is spoken, each with lines: list of (text, voice)
    write    write(folder, item, speech) makes the files of an item, speech: the Speech of each of its lines
    workers  processes that make files, 0 = none; the files do not depend on it
    texts    {name of a file: its content}
    finish   called at the end as finish(folder, what write returned for each item)
    Raises UserError where eSpeak NG cannot be loaded or the folder cannot be written.
    """
    with atomic_path(Path(root)) as folder, ProcessPoolExecutor(1, timeout=60) as fresh:  # see `speak`
        for name, content in (texts or {}).items():
            write_text(folder / name, content)
        spoken = [fresh.submit(speak, item.lines) for item in items]
        made = Parallel(max(1, workers), pre_dispatch="all", max_nbytes=None)(
            delayed(write_item)(write, folder, item, future.result())  # as soon as it is spoken
            for item, future in zip(items, spoken, strict=True)
        )
        if finish:
            finish(folder, made)


def write_item(write, folder, item, spoken):
    """Make the files of an item from what `speak` returned for its lines."""
    return write(folder, item, [make_speech(*pair) for pair in zip(item.lines, spoken, strict=True)])


def write_wav(path, samples, rate_hz=RATE_HZ, peak=0.99):
    """Write samples (T,) or (T, channels) with 16 bits, clipped at a peak, with the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -peak, peak), rate_hz, subtype="PCM_16")


@dataclass
class Sound:
    """What is heard in a container: samples (T,), and how they are coded."""

    samples: np.ndarray
    rate_hz: int = RATE_HZ
    layout: str = "mono"  # or "stereo"
    codec: tuple = AAC


def write_movie(path, images, fps, encoder=X264, sound=None, ticks=None, tick_s=None):
    """Write a video, with its folder.

    images   Images of one size
    fps      Fraction, frame rate, nominal where there are ticks
    sound    Sound or None
    ticks    when each image is shown, in units of tick_s; None = at the frame rate
    """
    (codec, options), tick_s, images = encoder, tick_s or 1 / fps, iter(images)
    first = next(images)
    with new_container(path) as container:
        video = container.add_stream(codec, rate=fps, options=options)
        (video.width, video.height), video.pix_fmt = first.size, "yuv420p"
        video.codec_context.thread_count, video.codec_context.time_base = 1, tick_s
        if codec == "mpeg4":
            video.codec_context.codec_tag = "DIVX"
        audio = add_sound(container, sound) if sound else None
        for number, image in enumerate(chain([first], images)):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = ticks[number] if ticks else number, tick_s
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:
            container.mux(encode_sound(audio, sound))


def write_m4a(path, sound):
    """Write a Sound in an MP4 container, with the folder."""
    with new_container(path, format="mp4") as container:
        container.mux(encode_sound(add_sound(container, sound), sound))


def new_container(path, **options):
    """A container that has the same bytes whenever it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return av.open(str(path), "w", container_options={"fflags": "+bitexact"}, **options)


def add_sound(container, sound):
    codec, options = sound.codec
    return container.add_stream(codec, rate=sound.rate_hz, layout=sound.layout, options=options)


def encode_sound(stream, sound):
    """All packets of a Sound."""
    samples = np.clip(sound.samples, -0.99, 0.99).astype(np.float32)
    planes = np.ascontiguousarray(np.tile(samples, (2 if sound.layout == "stereo" else 1, 1)))
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=sound.layout)
    # Without a time stamp the container counts the encoder's delay as sound.
    frame.sample_rate, frame.pts, frame.time_base = sound.rate_hz, 0, Fraction(1, sound.rate_hz)
    return stream.encode(frame) + stream.encode(None)
