"""A few seconds of invented recordings in the layout of the genuine IEMOCAP release, with its traps."""

import struct
from fractions import Fraction

import av
import numpy as np
import soundfile

RATE = Fraction(30000, 1001)
WIDTH, HEIGHT = 96, 64
N_FRAMES = 120  # 4.004 s

# dialogue: (session, [(start_s, end_s, utterance, label, ratings)]) in the release's order, first F, then M
DIALOGUES = {
    "Ses01F_impro01": (
        1,
        [
            (0.3000, 1.6000, "F000", "neu", "[2.5000, 2.5000, 2.5000]"),
            (2.1000, 3.1000, "F001", "exc", "[5.5000, 0.5000, 3.0000]"),
            (1.2000, 2.4000, "M000", "fru", "[1.0000, 4.0000, 4.0000]"),
        ],
    ),
    "Ses03M_impro05a": (
        3,
        [
            (1.9000, 3.0000, "F000", "sad", "[2.0000, 2.0000, 2.0000]"),
            (0.5000, 1.5000, "M000", "ang", "[1.5000, 4.5000, 4.0000]"),
        ],
    ),
    "Ses03M_impro05b": (3, [(0.5000, 1.5000, "M000", "xxx", "[1.5000, 4.5000, 4.0000]")]),
    "Ses03F_script01_1b": (3, [(0.2000, 1.2000, "F000", "hap", "[4.0000, 3.0000, 3.0000]")]),
}
TEXTS = {
    "Ses01F_impro01_F000": "Excuse me.",
    "Ses01F_impro01_F001": "Well: yes [LAUGHTER] of course.",
    "Ses01F_impro01_M000": "Do you have your forms?",
    "Ses03M_impro05a_F000": "A caf\u00e9.",
    "Ses03M_impro05a_M000": "No.",
    "Ses03M_impro05b_M000": "What?",
    "Ses03F_script01_1b_F000": "Hello.",
}
RATERS = "C-E2:\tNeutral; Anger;\t(hm)\nC-F1:\tOther;\t()\nA-E3:\tval 2; act 4; dom  4;\t()\n"


def write_iemocap(root, video=True):
    """Write the miniature release below `root` and return it."""
    for name, (session, turns) in DIALOGUES.items():
        folder = root / f"Session{session}"
        header = "% " if session == 1 else ""
        _write_evaluation(folder / "dialog" / "EmoEvaluation", name, turns, header)
        _write_transcript(folder / "dialog" / "transcriptions", name, turns)
        for start_s, end_s, utterance, _, _ in turns:
            write_tone(folder / "sentences" / "wav" / name / f"{name}_{utterance}.wav", end_s - start_s)
        if video:
            write_avi(folder / "dialog" / "avi" / "DivX" / f"{name}.avi")
            (folder / "dialog" / "avi" / "DivX" / f"._{name}.avi").write_bytes(b"\0\5\26\7")
    return root


def _write_evaluation(folder, name, turns, header):
    blocks = [
        f"[{start:.4f} - {end:.4f}]\t{name}_{utterance}\t{label}\t{ratings}\n{RATERS}"
        for start, end, utterance, label, ratings in turns
    ]
    head = f"{header}[START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    _write(folder / f"{name}.txt", head + "\n".join(blocks))
    _write(folder / f"._{name}.txt", "\0\5\26\7 not text")
    _write(folder / "Categorical" / f"{name}_e1_cat.txt", f"{name}_F000 :Neutral state; ()\n")
    _write(folder / "Attribute" / f"{name}.txt", f"[9.0 - 9.9]\t{name}_F099\tneu\t[1.0, 1.0, 1.0]\n")


def _write_transcript(folder, name, turns):
    lines = [
        f"{name}_{utterance} [{start:08.4f}-{end:08.4f}]: {TEXTS[f'{name}_{utterance}']}"
        for start, end, utterance, _, _ in reversed(turns)
    ]  # not in order of time
    lines += [f"{name}_MXX0 [003.1000-003.2000]: Mhm.", "M: (to himself) F000 what?"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_bytes("\n".join(lines).encode("latin-1"))


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_tone(path, seconds, rate_hz=16000):
    """A 16-bit mono wav of a 200 Hz tone at half of full scale."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.5 * np.sin(2 * np.pi * 200 * np.arange(round(seconds * rate_hz)) / rate_hz)
    soundfile.write(str(path), samples, rate_hz, subtype="PCM_16")


def write_avi(path, n_frames=N_FRAMES, gop=60, b_frames=0):
    """A split-screen MPEG-4 AVI: frame i has luma 20 + i on the left and 220 - i on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"bf": str(b_frames)})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        stream.bit_rate = 4_000_000
        for i in range(n_frames):
            picture = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            picture[:HEIGHT, : WIDTH // 2], picture[:HEIGHT, WIDTH // 2 :] = 20 + i, 220 - i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def luma(path):
    """The mean luma of every frame of a video, in display order."""
    with av.open(str(path)) as container:
        return np.array([frame.to_ndarray()[: frame.height].mean() for frame in container.decode(video=0)])


def write_clip(path, codec="libx264", stamps=range(0, 1000, 40), pixels="yuv420p", sound=None, late_s=0.0):
    """A recording of 64 x 48 pixels, red above, blue below, a frame at each of `stamps` ms (none: no track).

    sound  (T,) at 48 kHz, from late_s on, in the codec that belongs to the ending; None = no track
    """
    sound_codec, rate_hz = {".mpg": ("mp2", 48000), ".webm": ("libopus", 48000)}.get(
        path.suffix, ("aac", 48000)
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25) if stamps else None
        track = None if sound is None else container.add_stream(sound_codec, rate=rate_hz, layout="mono")
        if stamps:
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            if path.suffix not in (".mpg", ".avi"):
                stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in stamps:
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[:24, :, 0], picture[24:, :, 2] = 250, 250
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None) if stamps else [])
        for start in range(0, len(sound) if track else 0, 1152):
            part = sound[None, start : start + 1152].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate_hz, round(late_s * rate_hz) + start
            frame.time_base = Fraction(1, rate_hz)
            container.mux(track.encode(frame))
        container.mux(track.encode(None) if track else [])
    return path


def turn_lying(path, *matrix):
    """Write a display matrix (a, b, c, d) into an MP4, as phones do."""
    data, (a, b, c, d) = bytearray(path.read_bytes()), matrix
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
