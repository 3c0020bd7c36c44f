"""Three synthetic speech corpora, in the layouts of RAVDESS, EMO-DB and VoxCeleb2, spoken by eSpeak NG.

They stand in for the genuine corpora in the demo and in the tests of 05: two that are acted and labelled, and a
larger one without labels "in the wild" to pretrain on. Nobody's voice is in them.

The generative model
  1. Speaker. An eSpeak voice with a base pitch, range, rate and spectral tilt of its own, and EXPRESSIVENESS: how
     far this speaker goes for any emotion.
  2. Acting. The emotion asked for is acted with a strength ~ Beta(STRENGTH[intensity]) times the expressiveness,
     and with probability OVERACTED comes out as one that it is mistaken for (MISTAKEN). STYLES[emotion] times the
     strength moves the base, plus JITTER. Since speakers differ as much as moods do, an unknown voice is hard to read.
  3. Song. The same words on a melody, a word per note, each note flat and slow: pitch tells the melody, so that
     only its height, the pace, the tilt, the breath and the tremor are left to the emotion.
  4. Recording. Acted clips: silence before and after, a quiet room. VoxCeleb2: running speech of a video whose mood
     wanders, cut into clips anywhere, with the video's reverberation, band limit and noise, coded as AAC.
"""

import string
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import soundfile
from scipy.signal import butter, fftconvolve, lfilter, resample_poly, sosfilt

from common.corpora.readers import (
    EMODB_COUNTS,
    EMODB_LETTERS,
    EMODB_TEXTS,
    RAVDESS_CLASSES,
    RAVDESS_STATEMENTS,
)
from common.demo.iemocap import AUDIO_RATE_HZ, speak
from common.demo.sentences import AMBIGUOUS, SENTENCES, fill
from common.files import atomic_path

# ---- The generative model's parameters ---------------------------------------------------
# pitch, range: added to eSpeak's 0-99 scale (5 are a semitone); rate: factor; gain: dB; tilt: filter tap; tremor: depth
# of the loudness's wavering; breath: level of noise that follows the voice
STYLES = {
    "neutral": {
        "pitch": 0,
        "range": 0,
        "rate": 1.00,
        "gain_db": 0.0,
        "tilt": 0.00,
        "tremor": 0.0,
        "breath": 0.00,
    },
    "calm": {
        "pitch": -6,
        "range": -25,
        "rate": 0.84,
        "gain_db": -3.0,
        "tilt": -0.35,
        "tremor": 0.0,
        "breath": 0.05,
    },
    "happy": {
        "pitch": 22,
        "range": 40,
        "rate": 1.08,
        "gain_db": 2.5,
        "tilt": 0.15,
        "tremor": 0.0,
        "breath": 0.00,
    },
    "sad": {
        "pitch": -12,
        "range": -40,
        "rate": 0.70,
        "gain_db": -5.0,
        "tilt": -0.60,
        "tremor": 0.2,
        "breath": 0.08,
    },
    "angry": {
        "pitch": 6,
        "range": 20,
        "rate": 1.20,
        "gain_db": 6.0,
        "tilt": 0.80,
        "tremor": 0.0,
        "breath": 0.00,
    },
    "fearful": {
        "pitch": 26,
        "range": -15,
        "rate": 1.25,
        "gain_db": 0.0,
        "tilt": 0.00,
        "tremor": 0.7,
        "breath": 0.08,
    },
    "disgust": {
        "pitch": -18,
        "range": 15,
        "rate": 0.80,
        "gain_db": 1.0,
        "tilt": 0.40,
        "tremor": 0.3,
        "breath": 0.02,
    },
    "surprised": {
        "pitch": 36,
        "range": 49,
        "rate": 0.95,
        "gain_db": 3.0,
        "tilt": 0.30,
        "tremor": 0.0,
        "breath": 0.04,
    },
    "bored": {
        "pitch": -8,
        "range": -45,
        "rate": 0.76,
        "gain_db": -2.0,
        "tilt": -0.20,
        "tremor": 0.0,
        "breath": 0.00,
    },
}
JITTER = {
    "pitch": 5.0,
    "range": 8.0,
    "rate": 0.06,
    "gain_db": 2.0,
    "tilt": 0.12,
    "tremor": 0.05,
    "breath": 0.01,
}
STRENGTH = {"normal": (5.0, 3.0), "strong": (8.0, 2.0)}  # of Beta distributions
OVERACTED = 0.08
MISTAKEN = {  # what an emotion is mistaken for
    "neutral": ("calm", "sad", "bored"),
    "calm": ("neutral", "sad"),
    "happy": ("surprised", "angry"),
    "sad": ("calm", "neutral", "bored"),
    "angry": ("disgust", "happy"),
    "fearful": ("sad", "surprised"),
    "disgust": ("angry", "sad"),
    "surprised": ("happy", "fearful"),
    "bored": ("neutral", "sad"),
}
ENDINGS = {"surprised": "?", "happy": "!", "angry": "!"}  # eSpeak's melody follows the punctuation mark
EXPRESSIVENESS = (0.80, 1.15)  # of a speaker, drawn evenly
TREMOR_HZ = 6.0

# ---- The speakers -------------------------------------------------------------------------
WOMEN = (
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "Annie",
    "linda",
    "steph",
    "belinda",
    "Alicia",
    "grandma",
    "Andrea",
    "aunty",
)
MEN = (
    "m1",
    "m2",
    "m3",
    "m4",
    "m5",
    "m6",
    "m7",
    "m8",
    "Alex",
    "Reed",
    "john",
    "max",
    "adam",
    "Marco",
    "victor",
)
EMODB_SPEAKERS = {
    "03": "m",
    "08": "f",
    "09": "f",
    "10": "m",
    "11": "m",
    "12": "m",
    "13": "f",
    "14": "f",
    "15": "m",
    "16": "f",
}
EMODB_STYLES = {
    "anger": "angry",
    "boredom": "bored",
    "disgust": "disgust",
    "fear": "fearful",
    "happiness": "happy",
    "sadness": "sad",
    "neutral": "neutral",
}

# ---- Song, media and places ---------------------------------------------------------------
UNITS_PER_SEMITONE = 5.0
MELODIES = {  # semitones above the speaker's base, a note per word
    "neutral": (0, 0, 2, 2, -1, 0),
    "calm": (0, 0, 2, 2, -1, 0),
    "happy": (0, 2, 4, 5, 4, 2),
    "sad": (2, 0, -1, -3, -1, -3),
    "angry": (0, 0, 3, 3, 1, 0),
    "fearful": (2, 3, 2, 3, 5, 3),
}
SONG_RATE = 0.70  # of the speaking rate
RAVDESS_RATE_HZ = 48000
RAVDESS_FOLDERS = {"01": "Audio_Speech_Actors_01-24", "02": "Audio_Song_Actors_01-24"}
N_STEREO = 2  # recordings of demo_ravdess with two channels, as a few genuine ones have
SILENCE_S = (0.1, 0.3)  # before and after an acted clip; about 1 s in the genuine ones
ROOM_NOISE_RMS = 0.0005
CLIP_S = (4.0, 8.0)  # length of VoxCeleb2's clips
CLIPS_PER_VIDEO = 3
MOOD_LASTS = 0.6  # chance that the next sentence of a video has the mood of the last one
NOISE_DB = (-60.0, -40.0)  # of a video, against its speech
REVERBERATION_S = (0.05, 0.2)  # time in which the sound of a video's room falls by 60 dB
BAND_HZ = (3400, 7600)  # upper limit of what a video's microphone picks up
AAC_BIT_RATE = 64000


@dataclass
class Speaker:
    """A voice: its eSpeak name, its base settings, and how far it goes for an emotion."""

    name: str
    base: dict  # as STYLES: pitch, range, rate_wpm, tilt
    expressiveness: float


@dataclass
class Recording:
    """What is spoken for one file, or for the video that several clips are cut from."""

    place: str  # path below the corpus; for a video without the clips' numbers
    lines: list  # (text, voice), spoken one after the other
    seed: tuple  # of everything drawn after speaking
    n_channels: int = 1
    clips_s: dict | None = None  # of a video: {clip number: length}


# ---- The three corpora --------------------------------------------------------------------


def write_demo_ravdess(root, seed, n_actors, clips_per_emotion, workers):
    """Write acted speech and song with RAVDESS's names below `root`, replacing what is there.

    root               Path of the corpus; it appears whole or not at all
    seed               int; the same seed gives the same files
    n_actors           1 to 24; odd numbers are men
    clips_per_emotion  of each actor and channel: at most 8; neutral, which is never strong, has at most 4
    workers            threads that write files; the result does not depend on it
    Raises UserError where eSpeak NG cannot be loaded or the folder cannot be written.
    """
    recordings = []
    for actor in range(1, n_actors + 1):
        rng = np.random.default_rng((seed, 1, actor))
        voices = MEN if actor % 2 else WOMEN
        speaker = draw_speaker(f"en-us+{voices[(actor - 1) // 2]}", rng)
        for channel, emotions in (("01", RAVDESS_CLASSES), ("02", RAVDESS_CLASSES[:6])):
            for emotion in emotions:
                takes = list(
                    product(("01",) if emotion == "neutral" else ("01", "02"), ("01", "02"), ("01", "02"))
                )
                chosen = rng.permutation(len(takes))[:clips_per_emotion]
                recordings += [
                    plan_acted(channel, emotion, takes[k], actor, speaker, rng) for k in sorted(chosen)
                ]
    for k in np.random.default_rng((seed, 1)).permutation(len(recordings))[:N_STEREO]:
        recordings[k].n_channels = 2
    write_corpus(root, recordings, write_acted, workers)


def write_demo_emodb(root, seed, clips_per_speaker, workers):
    """Write acted German speech with EMO-DB's names below `root`, emotions in the shares of the genuine corpus.

    clips_per_speaker  1 to 70, each another pair of sentence and emotion; other arguments as write_demo_ravdess
    """
    recordings = []
    letters = {label: letter for letter, label in EMODB_LETTERS.items()}
    pairs = list(product(EMODB_TEXTS, EMODB_COUNTS))
    shares = np.array([EMODB_COUNTS[label] for _, label in pairs], float)
    for number, (code, sex) in enumerate(EMODB_SPEAKERS.items()):
        rng = np.random.default_rng((seed, 2, number))
        speaker = draw_speaker(f"de+{(MEN if sex == 'm' else WOMEN)[number]}", rng)
        for k in sorted(rng.choice(len(pairs), clips_per_speaker, replace=False, p=shares / shares.sum())):
            sentence, label = pairs[k]
            style = act(EMODB_STYLES[label], "strong", speaker, rng)
            line = (ended(EMODB_TEXTS[sentence], style[0]), set_voice(speaker, *style, rng))
            name = f"{code}{sentence}{letters[label]}a.wav"
            recordings.append(Recording(f"wav/{name}", [line], (seed, 2, number, int(k))))
    write_corpus(root, recordings, write_short, workers)


def write_demo_voxceleb2(root, seed, n_speakers, clips_per_speaker, workers):
    """Write running speech without labels in VoxCeleb2's layout below `root`, with its vox2_meta.csv.

    clips_per_speaker  spread over videos of at most CLIPS_PER_VIDEO; other arguments as write_demo_ravdess
    """
    recordings, rows = [], ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set "]
    for number in range(n_speakers):
        rng = np.random.default_rng((seed, 3, number))
        identity = f"id{12 + 7 * number:05d}"
        voices = MEN if number % 2 else WOMEN
        speaker = draw_speaker(f"en-us+{voices[rng.integers(len(voices))]}", rng)
        rows.append(f"{identity} ,n{number + 1:06d} ,{'m' if number % 2 else 'f'} ,dev ")
        for first in range(0, clips_per_speaker, CLIPS_PER_VIDEO):
            n_clips = min(CLIPS_PER_VIDEO, clips_per_speaker - first)
            recordings.append(plan_video(identity, speaker, n_clips, (seed, 3, number, first), rng))
    write_corpus(root, recordings, write_video_clips, workers, {"vox2_meta.csv": "\n".join(rows) + "\n"})


def write_corpus(root, recordings, write, workers, texts=None):
    """Speak all recordings and let write(folder, recording, speech) make the files of each; texts: {name: content}."""
    # eSpeak's noise and pitch flutter depend on all that it said before: one fresh process says everything.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        speech = iter(
            pool.submit(speak, [line for recording in recordings for line in recording.lines]).result()
        )
    spoken = [[next(speech) for _ in recording.lines] for recording in recordings]
    with atomic_path(Path(root)) as temporary, ThreadPoolExecutor(workers) as pool:
        temporary.mkdir()
        for name, content in (texts or {}).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(content, encoding="utf-8")
        for _ in pool.map(partial(write, temporary), recordings, spoken):
            pass  # an error in a thread is raised here


# ---- Who speaks, and how ------------------------------------------------------------------


def draw_speaker(voice, rng):
    """A speaker with this eSpeak voice, base settings around its own and an expressiveness."""
    base = {
        "pitch": rng.normal(46, 7),
        "range": rng.normal(48, 7),
        "rate_wpm": rng.normal(170, 11),
        "tilt": rng.normal(0, 0.12),
    }
    return Speaker(voice, base, rng.uniform(*EXPRESSIVENESS))


def act(emotion, intensity, speaker, rng):
    """(the emotion that comes out, its strength) where a speaker acts this emotion."""
    if rng.random() < OVERACTED:
        emotion = MISTAKEN[emotion][rng.integers(len(MISTAKEN[emotion]))]
    return emotion, speaker.expressiveness * rng.beta(*STRENGTH[intensity])


def set_voice(speaker, emotion, strength, rng):
    """The settings of `speak` for one line, and the tremor and breath that `finish` adds."""
    style = {
        name: (value - (name == "rate")) * strength + JITTER[name] * rng.standard_normal()
        for name, value in STYLES[emotion].items()
    }
    return {
        "name": speaker.name,
        "pitch": round(np.clip(speaker.base["pitch"] + style["pitch"], 0, 99)),
        "range": round(np.clip(speaker.base["range"] + style["range"], 0, 99)),
        "rate_wpm": round(speaker.base["rate_wpm"] * (1 + style["rate"])),
        "gain_db": style["gain_db"],
        "tilt": np.clip(speaker.base["tilt"] + style["tilt"], -0.85, 0.95),
        "tremor": np.clip(style["tremor"], 0, 0.9),
        "breath": max(style["breath"], 0.0),
    }


def ended(text, emotion):
    """The sentence with the punctuation mark of an emotion."""
    return text.rstrip(".?!") + ENDINGS.get(emotion, ".")


def plan_acted(channel, emotion, take, actor, speaker, rng):
    """One clip of demo_ravdess; take: intensity, statement and repetition as in the file's name."""
    intensity, statement, repetition = take
    shown, strength = act(emotion, {"01": "normal", "02": "strong"}[intensity], speaker, rng)
    voice = set_voice(speaker, shown, strength, rng)
    text = RAVDESS_STATEMENTS[statement]
    lines = (
        [(ended(text, shown), voice)] if channel == "01" else sing(text, MELODIES[emotion], voice, speaker)
    )
    code = RAVDESS_CLASSES.index(emotion) + 1
    name = f"03-{channel}-{code:02d}-{intensity}-{statement}-{repetition}-{actor:02d}.wav"
    return Recording(
        f"{RAVDESS_FOLDERS[channel]}/Actor_{actor:02d}/{name}",
        lines,
        tuple(int(number) for number in rng.integers(2**31, size=2)),
    )


def sing(text, melody, voice, speaker):
    """The words of a text as lines of their own, a note each; half of the emotion's height of pitch is left."""
    base = speaker.base["pitch"] + 0.5 * (voice["pitch"] - speaker.base["pitch"])
    rate_wpm = round(SONG_RATE * voice["rate_wpm"])
    return [
        (
            word,
            {
                **voice,
                "pitch": round(np.clip(base + UNITS_PER_SEMITONE * note, 0, 99)),
                "range": 0,
                "rate_wpm": rate_wpm,
            },
        )
        for word, note in zip(text.rstrip(".").split(), melody, strict=True)
    ]


def plan_video(identity, speaker, n_clips, seed, rng):
    """A video of demo_voxceleb2: its name, enough sentences for its clips, and where these begin and end."""
    letters = list(string.ascii_letters + string.digits + "-_")
    name = "".join(rng.choice(letters, 11))
    numbers = np.cumsum(rng.integers(1, 4, n_clips))  # clip numbers have gaps
    clips_s = {f"{number:05d}": rng.uniform(*CLIP_S) for number in numbers}
    bank = [*AMBIGUOUS, *(line for lines in SENTENCES.values() for line in lines)]
    lines, mood, planned_s = [], "neutral", 0.0
    while planned_s < 1.5 * sum(clips_s.values()):  # short words are spoken faster than planned
        if rng.random() > MOOD_LASTS:
            mood = list(STYLES)[rng.integers(len(STYLES))]
        voice = set_voice(speaker, mood, speaker.expressiveness * rng.beta(*STRENGTH["strong"]), rng)
        text = fill(bank[rng.integers(len(bank))], rng)
        lines.append((ended(text, mood), voice))
        planned_s += 60 * len(text.split()) / voice["rate_wpm"]
    return Recording(f"dev/aac/{identity}/{name}", lines, seed, clips_s=clips_s)


# ---- From speech to files -----------------------------------------------------------------


def finish(speech, voice, rng):
    """Add a line's tremor and breath to its speech (T,)."""
    time_s = np.arange(len(speech)) / AUDIO_RATE_HZ
    wavering = 1 + voice["tremor"] * np.sin(2 * np.pi * (TREMOR_HZ * time_s + rng.random()))
    loudness = np.sqrt(lfilter([0.005], [1, -0.995], speech**2))
    return wavering * (speech + voice["breath"] * 4 * loudness * rng.standard_normal(len(speech)))


def write_acted(folder, recording, speech):
    """A clip of demo_ravdess: silence, the sentence or the notes, silence; 48 kHz."""
    rng = np.random.default_rng(recording.seed)
    voices = [voice for _, voice in recording.lines]
    parts = [finish(part, voice, rng) for part, voice in zip(speech, voices, strict=True)]
    before, after = (np.zeros(round(rng.uniform(*SILENCE_S) * AUDIO_RATE_HZ)) for _ in range(2))
    samples = np.concatenate([before, *parts, after])
    samples += ROOM_NOISE_RMS * rng.standard_normal(len(samples))
    samples = resample_poly(samples, RAVDESS_RATE_HZ // AUDIO_RATE_HZ, 1)
    write_pcm(folder / recording.place, np.tile(samples[:, None], recording.n_channels), RAVDESS_RATE_HZ)


def write_short(folder, recording, speech):
    """A clip of demo_emodb: the sentence alone, 16 kHz."""
    rng = np.random.default_rng(recording.seed)
    [(_, voice)] = recording.lines
    samples = finish(speech[0], voice, rng)
    write_pcm(
        folder / recording.place, samples + ROOM_NOISE_RMS * rng.standard_normal(len(samples)), AUDIO_RATE_HZ
    )


def write_pcm(path, samples, rate_hz):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -0.99, 0.99), rate_hz, subtype="PCM_16")


def write_video_clips(folder, recording, speech):
    """The clips of a video of demo_voxceleb2, cut from its running speech one after the other."""
    rng = np.random.default_rng(recording.seed)
    pauses = [np.zeros(round(rng.uniform(0.05, 0.4) * AUDIO_RATE_HZ)) for _ in speech]
    parts = [finish(part, voice, rng) for part, (_, voice) in zip(speech, recording.lines, strict=True)]
    samples = in_the_wild(np.concatenate([x for pair in zip(parts, pauses, strict=True) for x in pair]), rng)
    start = 0
    for number, seconds in recording.clips_s.items():
        end = start + round(seconds * AUDIO_RATE_HZ)
        write_m4a(folder / recording.place / f"{number}.m4a", samples[start:end], AUDIO_RATE_HZ)
        start = end


def in_the_wild(samples, rng):
    """Running speech (T,) as heard in a video: a room, a microphone's band, noise or other voices, a level."""
    n_room = round(rng.uniform(*REVERBERATION_S) * AUDIO_RATE_HZ)
    room = rng.standard_normal(n_room) * 10 ** (-3 * np.arange(n_room) / n_room)
    room[0] = rng.uniform(1, 3) * np.sqrt(np.sum(room**2))  # the direct sound
    heard = fftconvolve(samples, room)[: len(samples)]
    if rng.random() < 0.5:  # voices: the speech itself, backwards and shifted
        noise = sum(np.roll(samples[::-1], shift) for shift in rng.integers(len(samples), size=4))
    else:  # a steady noise, from white to dull
        noise = lfilter([1], [1, -rng.uniform(0, 0.98)], rng.standard_normal(len(samples)))
    heard = sosfilt(butter(4, rng.uniform(*BAND_HZ), fs=AUDIO_RATE_HZ, output="sos"), heard)
    level = 10 ** (rng.uniform(*NOISE_DB) / 20)
    mixed = heard / np.sqrt(np.mean(heard**2)) + level * noise / np.sqrt(np.mean(noise**2))
    return rng.uniform(0.2, 0.95) * mixed / np.abs(mixed).max()


def write_m4a(path, samples, rate_hz):
    """Write samples (T,), full scale = 1, as AAC in an MP4 container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("aac", rate=rate_hz, layout="mono")
        stream.bit_rate = AAC_BIT_RATE
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        # Without a time stamp the container counts the encoder's delay as sound.
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
