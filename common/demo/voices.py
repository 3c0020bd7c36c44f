"""The voices of the synthetic speakers, the styles in which they act, and eSpeak's samples made speech."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from common.demo.espeak import ESPEAK_RATE_HZ
from common.demo.sounds import RATE_HZ, resampled, tilted
from common.files import read_csv

TREMOR_HZ = 6.0
SPEECH_RMS = 0.05  # of neutral speech, full scale = 1
VOICES = {
    "f": "f1 f2 f3 f4 f5 Annie linda steph belinda Alicia grandma Andrea aunty".split(),
    "m": "m1 m2 m3 m4 m5 m6 m7 m8 Alex Reed john max adam Marco victor".split(),
}
SETTINGS = ("pitch", "range", "rate", "gain_db", "tilt", "tremor", "breath")  # see README.md
FEATURES = ("brow_tilt", "brow_lift", "eyes", "smile", "width", "open")
STYLES, FACES, MISTAKEN = {}, {}, {}  # of styles.csv, by style; MISTAKEN: what an emotion is mistaken for
for _row in read_csv(Path(__file__).with_name("styles.csv")):
    STYLES[_row["style"]] = {name: float(_row[name]) for name in SETTINGS if _row[name]}
    FACES[_row["style"]] = {name: float(_row[name]) for name in FEATURES if _row[name]}
    if _row["mistaken_for"]:
        MISTAKEN[_row["style"]] = _row["mistaken_for"].split()
STRENGTH = {"normal": (5.0, 3.0), "strong": (8.0, 2.0)}  # of Beta distributions
EXPRESSIVENESS = (0.80, 1.15)  # of a speaker, drawn evenly: how far this one goes for any emotion
ENDINGS = {"surprised": "?", "happy": "!", "angry": "!"}  # eSpeak's melody follows the punctuation mark


@dataclass
class Speaker:
    """A voice: its eSpeak name, its base settings, and how far it goes for an emotion."""

    name: str
    base: dict  # pitch, range, rate_wpm, tilt
    expressiveness: float


@dataclass
class Speech:
    """A line as it was spoken."""

    samples: np.ndarray  # (T,) at RATE_HZ
    starts_s: np.ndarray  # (W,): when each blank-separated word begins
    voice: dict  # the settings that it was spoken with

    @property
    def seconds(self):
        return len(self.samples) / RATE_HZ


def draw_speaker(voice, rng):
    """A speaker with this eSpeak voice, base settings around its own and an expressiveness."""
    spread = {"pitch": (46, 7), "range": (48, 7), "rate_wpm": (170, 11), "tilt": (0, 0.12)}
    base = {name: rng.normal(mean, deviation) for name, (mean, deviation) in spread.items()}
    return Speaker(voice, base, rng.uniform(*EXPRESSIVENESS))


def set_voice(speaker, style, strength, rng, jitter="jitter"):
    """The settings of `speak` for one line, and gain, tilt, tremor and breath, which are added afterwards."""
    change = {
        name: (value - (name == "rate")) * strength + STYLES[jitter][name] * rng.standard_normal()
        for name, value in STYLES[style].items()
    }
    base = speaker.base
    voice = {"name": speaker.name, "rate_wpm": round(base["rate_wpm"] * (1 + change["rate"]))}
    voice |= {name: round(np.clip(base[name] + change[name], 0, 99)) for name in ("pitch", "range")}
    voice |= {"gain_db": change["gain_db"], "tilt": np.clip(base["tilt"] + change["tilt"], -0.85, 0.95)}
    tremor, breath = change.get("tremor", 0.0), change.get("breath", 0.0)
    return voice | {"tremor": np.clip(tremor, 0, 0.9), "breath": max(breath, 0.0)}


def with_ending(text, emotion):
    """The sentence with the punctuation mark of an emotion."""
    return text.rstrip(".?!") + ENDINGS.get(emotion, ".")


def make_speech(line, spoken):
    """The Speech of a line (text, voice) that was spoken: trimmed, tilted, at its loudness."""
    (text, voice), (said, heard) = line, spoken
    said = np.frombuffer(said, "<i2")
    samples = resampled(said / 32768, ESPEAK_RATE_HZ, RATE_HZ)
    loud, margin = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max()), RATE_HZ // 20
    first = max(0, loud[0] - margin)
    samples = tilted(samples[first : loud[-1] + margin], voice["tilt"])
    samples *= SPEECH_RMS * 10 ** (voice["gain_db"] / 20) / np.sqrt(np.mean(samples**2))
    samples = np.clip(samples, -0.99, 0.99).astype(np.float32)
    starts_s = word_starts(text, heard, len(said)) / ESPEAK_RATE_HZ - first / RATE_HZ
    return Speech(samples, np.clip(starts_s, 0, len(samples) / RATE_HZ), voice)


def word_starts(text, heard, n_samples):
    """The sample at which each word of a text begins, from eSpeak's (place in the text, sample); (W,).

    Words that eSpeak runs together, such as "of the", it reports as one, whose time they share.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    known = {0: 0, len(ends): n_samples}
    for place, sample in heard:
        known.setdefault(next((k for k, end in enumerate(ends) if end > place), len(ends)), sample)
    return np.interp(np.arange(len(ends)), *zip(*sorted(known.items()), strict=True))


def with_tremor(samples, voice, rng):
    """Speech with its voice's tremor and breath."""
    time_s = np.arange(len(samples)) / RATE_HZ
    wavering = 1 + voice["tremor"] * np.sin(2 * np.pi * (TREMOR_HZ * time_s + rng.random()))
    level = np.sqrt(lfilter([0.005], [1, -0.995], samples**2))
    return wavering * (samples + voice["breath"] * 4 * level * rng.standard_normal(len(samples)))
