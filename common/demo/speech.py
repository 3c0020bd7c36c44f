"""Three synthetic speech corpora, in the layouts of RAVDESS, EMO-DB and VoxCeleb2 (README.md)."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

from common.corpora.emodb import TEXTS
from common.corpora.ravdess import STATEMENTS
from common.demo.sounds import RATE_HZ, draw_echoes, resampled
from common.demo.text import all_sentences, draw_name, fill
from common.demo.voices import MISTAKEN, STRENGTH, VOICES, draw_speaker, set_voice, with_ending, with_tremor
from common.demo.writing import Sound, draw_seed, write_corpus, write_m4a, write_wav

# ---- RAVDESS (FORMATS 4) ----------------------------------------------------------------------
EMOTIONS = tuple(MISTAKEN)
RAVDESS_EMOTIONS = EMOTIONS[:8]  # in the order of their codes, 01 to 08
RAVDESS_INTENSITIES = {"01": "normal", "02": "strong"}
RAVDESS_FOLDERS = {"01": "Audio_Speech_Actors_01-24", "02": "Audio_Song_Actors_01-24"}
RAVDESS_RATE_HZ = 48000
# fmt: off
MELODIES = {  # of what is sung: semitones above the speaker's base, a note per word
    "neutral": (0, 0, 2, 2, -1, 0),   "calm":  (0, 0, 2, 2, -1, 0), "happy":   (0, 2, 4, 5, 4, 2),
    "sad":     (2, 0, -1, -3, -1, -3), "angry": (0, 0, 3, 3, 1, 0), "fearful": (2, 3, 2, 3, 5, 3),
}
# ---- EMO-DB (FORMATS 5): {letter: (emotion, how many recordings of it are in the genuine corpus)} ----
EMODB_EMOTIONS = {
    "W": ("angry", 127), "L": ("bored", 81), "E": ("disgust", 46), "A": ("fearful", 69), "F": ("happy", 71),
    "T": ("sad", 62), "N": ("neutral", 79),
}
# fmt: on
EMODB_SPEAKERS = dict(zip("03 08 09 10 11 12 13 14 15 16".split(), "mffmmmffmf", strict=True))
UNITS_PER_SEMITONE = 5.0
SONG_RATE = 0.70  # of the speaking rate
N_STEREO = 2  # recordings of demo_ravdess with two channels, as a few genuine ones have
OVERACTED = 0.08
SILENCE_S = (0.1, 0.3)  # before and after an acted clip; about 1 s in the genuine ones
ROOM_NOISE_RMS = 0.0005
# ---- VoxCeleb2 (FORMATS 3) --------------------------------------------------------------------
CLIP_S = (4.0, 8.0)  # length of a clip
CLIPS_PER_VIDEO = 3
MOOD_LASTS = 0.6  # chance that the next sentence of a video has the mood of the last one
NOISE_DB = (-60.0, -40.0)  # of a video, against its speech
REVERBERATION_S = (0.05, 0.2)  # time in which the sound of a video's room falls by 60 dB
BAND_HZ = (3400, 7600)  # upper limit of what a video's microphone picks up
VOXCELEB2_AAC = ("aac", {"b": "64000"})


@dataclass
class Recording:
    """What is spoken for one file, or for the video that several clips are cut from."""

    place: str  # path below the corpus; for a video without the clips' numbers
    lines: list  # (text, voice), spoken one after the other
    seed: tuple  # of everything drawn after speaking
    n_channels: int = 1
    clips_s: dict | None = None  # of a video: {clip number: length}


# ---- The three corpora: n_actors and so on as in common.demo.SIZES, the rest as in write_corpus ----
def write_demo_ravdess(root, seed, n_actors, clips_per_emotion, workers):
    """Write acted speech and song with RAVDESS's names below `root`; odd actors are men."""
    recordings = []
    for actor in range(1, n_actors + 1):
        rng = np.random.default_rng((seed, 1, actor))
        speaker = draw_speaker(f"en-us+{VOICES['fm'[actor % 2]][(actor - 1) // 2]}", rng)
        for channel, emotions in (("01", RAVDESS_EMOTIONS), ("02", MELODIES)):
            for emotion in emotions:
                takes = ravdess_takes(f"03-{channel}", emotion, actor, clips_per_emotion, rng)
                for name, intensity, text in takes:
                    shown, voice = act(emotion, intensity, speaker, rng)
                    spoken = [(with_ending(text, shown), voice)]
                    lines = spoken if channel == "01" else sing(text, emotion, voice, speaker)
                    place = f"{RAVDESS_FOLDERS[channel]}/Actor_{actor:02d}/{name}.wav"
                    recordings.append(Recording(place, lines, draw_seed(rng)))
    for k in np.random.default_rng((seed, 1)).permutation(len(recordings))[:N_STEREO]:
        recordings[k].n_channels = 2
    write_corpus(root, recordings, write_acted, workers)


def write_demo_emodb(root, seed, clips_per_speaker, workers):
    """Write acted German speech with EMO-DB's names below `root`, emotions in the genuine shares."""
    recordings, pairs = [], list(product(TEXTS, EMODB_EMOTIONS))
    shares = np.array([EMODB_EMOTIONS[letter][1] for _, letter in pairs], float)
    for number, (code, sex) in enumerate(EMODB_SPEAKERS.items()):
        rng = np.random.default_rng((seed, 2, number))
        speaker = draw_speaker(f"de+{VOICES[sex][number]}", rng)
        for k in sorted(rng.choice(len(pairs), clips_per_speaker, replace=False, p=shares / shares.sum())):
            sentence, letter = pairs[k]
            shown, voice = act(EMODB_EMOTIONS[letter][0], "strong", speaker, rng)
            lines = [(with_ending(TEXTS[sentence], shown), voice)]
            place = f"wav/{code}{sentence}{letter}a.wav"
            recordings.append(Recording(place, lines, (seed, 2, number, int(k))))
    write_corpus(root, recordings, write_short, workers)


def write_demo_voxceleb2(root, seed, n_speakers, clips_per_speaker, workers):
    """Write running speech without labels in VoxCeleb2's layout below `root`, with its vox2_meta.csv."""
    recordings, sexes = [], {}
    for number in range(n_speakers):
        rng = np.random.default_rng((seed, 3, number))
        identity = f"id{12 + 7 * number:05d}"
        voices = VOICES[sexes.setdefault(identity, "fm"[number % 2])]
        speaker = draw_speaker(f"en-us+{voices[rng.integers(len(voices))]}", rng)
        for first in range(0, clips_per_speaker, CLIPS_PER_VIDEO):
            n_clips = min(CLIPS_PER_VIDEO, clips_per_speaker - first)
            recordings.append(plan_video(identity, speaker, n_clips, (seed, 3, number, first), rng))
    write_corpus(root, recordings, write_video_clips, workers, {"vox2_meta.csv": vox2_meta(sexes)})


def vox2_meta(sexes):
    """The lines of vox2_meta.csv, with the genuine one's blanks, from {identity: "m" or "f"}."""
    lines = [f"{name} ,n{number:06d} ,{sex} ,dev \n" for number, (name, sex) in enumerate(sexes.items(), 1)]
    return "".join(["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \n", *lines])


# ---- How it is spoken -------------------------------------------------------------------------
def act(emotion, intensity, speaker, rng):
    """(the emotion that comes out, the voice) where a speaker acts this emotion."""
    if rng.random() < OVERACTED:
        emotion = MISTAKEN[emotion][rng.integers(len(MISTAKEN[emotion]))]
    strength = speaker.expressiveness * rng.beta(*STRENGTH[intensity])
    return emotion, set_voice(speaker, emotion, strength, rng)


def ravdess_takes(medium, emotion, actor, n_takes, rng):
    """[(name, intensity, statement)] of some of an actor's takes; medium such as "03-01", see FORMATS 4."""
    intensities = ("01",) if emotion == "neutral" else ("01", "02")  # neutral is never strong
    codes = list(product(intensities, ("01", "02"), ("01", "02")))
    takes = []
    for k in sorted(rng.permutation(len(codes))[:n_takes]):
        name = f"{medium}-{RAVDESS_EMOTIONS.index(emotion) + 1:02d}-{'-'.join(codes[k])}-{actor:02d}"
        takes.append((name, RAVDESS_INTENSITIES[codes[k][0]], STATEMENTS[codes[k][1]]))
    return takes


def sing(text, emotion, voice, speaker):
    """The words of a text as lines, a note each; half of the emotion's height of pitch is left."""
    base = speaker.base["pitch"] + 0.5 * (voice["pitch"] - speaker.base["pitch"])
    flat, lines = {**voice, "range": 0, "rate_wpm": round(SONG_RATE * voice["rate_wpm"])}, []
    for word, note in zip(text.rstrip(".").split(), MELODIES[emotion], strict=True):
        lines.append((word, {**flat, "pitch": round(np.clip(base + UNITS_PER_SEMITONE * note, 0, 99))}))
    return lines


def plan_video(identity, speaker, n_clips, seed, rng):
    """A video of demo_voxceleb2: its name, enough sentences for its clips, and where these begin and end."""
    name = draw_name(rng)
    numbers = np.cumsum(rng.integers(1, 4, n_clips))  # clip numbers have gaps
    clips_s = {f"{number:05d}": rng.uniform(*CLIP_S) for number in numbers}
    bank, lines, mood, planned_s = all_sentences(), [], "neutral", 0.0
    while planned_s < 1.5 * sum(clips_s.values()):  # short words are spoken faster than planned
        if rng.random() > MOOD_LASTS:
            mood = EMOTIONS[rng.integers(len(EMOTIONS))]
        strength = speaker.expressiveness * rng.beta(*STRENGTH["strong"])
        voice = set_voice(speaker, mood, strength, rng)
        text = fill(bank[rng.integers(len(bank))], rng)
        lines.append((with_ending(text, mood), voice))
        planned_s += 60 * len(text.split()) / voice["rate_wpm"]
    return Recording(f"dev/aac/{identity}/{name}", lines, seed, clips_s=clips_s)


# ---- From speech to files ---------------------------------------------------------------------
def write_acted(folder, recording, speech):
    """A clip of demo_ravdess: silence, the sentence or the notes, silence; 48 kHz."""
    rng = np.random.default_rng(recording.seed)
    parts = [with_tremor(part.samples, part.voice, rng) for part in speech]
    before, after = (np.zeros(round(rng.uniform(*SILENCE_S) * RATE_HZ)) for _ in range(2))
    samples = np.concatenate([before, *parts, after])
    samples += ROOM_NOISE_RMS * rng.standard_normal(len(samples))
    samples = np.tile(resampled(samples, RATE_HZ, RAVDESS_RATE_HZ)[:, None], recording.n_channels)
    write_wav(folder / recording.place, samples, RAVDESS_RATE_HZ)


def write_short(folder, recording, speech):
    """A clip of demo_emodb: the sentence alone, 16 kHz."""
    rng = np.random.default_rng(recording.seed)
    samples = with_tremor(speech[0].samples, speech[0].voice, rng)
    write_wav(folder / recording.place, samples + ROOM_NOISE_RMS * rng.standard_normal(len(samples)))


def write_video_clips(folder, recording, speech):
    """The clips of a video of demo_voxceleb2, cut from its running speech one after the other."""
    rng = np.random.default_rng(recording.seed)
    pauses = [np.zeros(round(rng.uniform(0.05, 0.4) * RATE_HZ)) for _ in speech]
    parts = [with_tremor(part.samples, part.voice, rng) for part in speech]
    samples = in_the_wild(np.concatenate([x for pair in zip(parts, pauses, strict=True) for x in pair]), rng)
    start = 0
    for number, seconds in recording.clips_s.items():
        end = start + round(seconds * RATE_HZ)
        write_m4a(folder / recording.place / f"{number}.m4a", Sound(samples[start:end], codec=VOXCELEB2_AAC))
        start = end


def in_the_wild(samples, rng):
    """Running speech (T,) as heard in a video: a room, a microphone's band, noise or voices, a level."""
    room = draw_echoes(rng.uniform(*REVERBERATION_S), rng)
    room[0] = rng.uniform(1, 3) * np.sqrt(np.sum(room**2))  # the direct sound
    heard = fftconvolve(samples, room)[: len(samples)]
    if rng.random() < 0.5:  # voices: the speech itself, backwards and shifted
        noise = sum(np.roll(samples[::-1], shift) for shift in rng.integers(len(samples), size=4))
    else:  # a steady noise, from white to dull
        noise = lfilter([1], [1, -rng.uniform(0, 0.98)], rng.standard_normal(len(samples)))
    heard = sosfilt(butter(4, rng.uniform(*BAND_HZ), fs=RATE_HZ, output="sos"), heard)
    level = 10 ** (rng.uniform(*NOISE_DB) / 20)
    mixed = heard / np.sqrt(np.mean(heard**2)) + level * noise / np.sqrt(np.mean(noise**2))
    return rng.uniform(0.2, 0.95) * mixed / np.abs(mixed).max()
