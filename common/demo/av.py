"""Four synthetic audio-visual corpora, like CREMA-D, RAVDESS, Lombard GRID and AudioSet (README.md)."""

import json
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
from scipy.signal import fftconvolve

from common.corpora.cremad import SENTENCES
from common.demo.faces import Actor, draw_actor, film, lit, set_face
from common.demo.sounds import RATE_HZ, draw_echoes, draw_noise, level_out, loudness, resampled, tilted
from common.demo.speech import RAVDESS_EMOTIONS, RAVDESS_RATE_HZ, ravdess_takes
from common.demo.text import all_sentences, draw_name, fill, sentences
from common.demo.voices import MISTAKEN, STRENGTH, STYLES, set_voice, with_ending, with_tremor
from common.demo.writing import FLV1, MP3, Sound, draw_seed, write_corpus, write_movie, write_wav

# ---- The generative model's parameters ---------------------------------------------------
SHOWS = {"voice": 0.92, "face": 0.84}
STRONGER = {"voice": 1.6, "face": 1.4}  # than in speech.py: here an expression is at its height for a while
WEAK = 0.6  # of the strength of CREMA-D's level LO
EFFORT_DB = 14.0  # between an expression at rest and at its height
ROOM_S, DIRECT = 1.5, 0.6  # time in which a room's sound falls by 60 dB; the direct sound against it
CURVE_HZ = 50  # rate at which an expression is described
SWAY_PX = (0.8, 0.5)  # of heads, across and up
LIFT_PX = 8.0  # how far a head rises with the voice, at its loudest
LIGHT = (0.85, 1.1)  # of a recording
# fmt: off
# Share of the speaking rate; length of a recording, silence before and after the speech, seconds.
TIMES = {
    "cremad":   (0.70, (1.5, 3.0), (0.05, 0.20), (0.05, 0.30)),
    "ravdess":  (0.52, (3.5, 4.5), (0.25, 0.35), (0.50, 1.00)),
    "lombard":  (0.80, (2.0, 2.7), (0.05, 0.20), (0.05, 0.30)),
    "audioset": (0.90, (6.0, 6.0), (0.00, 0.50), None),
}
# fmt: on
SLOWEST_WPM = 80
NTSC_FPS = Fraction(30000, 1001)  # CREMA-D and RAVDESS
FRAME_4_3, FRAME_16_9 = (160, 120), (224, 126)

# ---- CREMA-D (FORMATS 6) --------------------------------------------------------------------
CREMAD_EMOTIONS = {name[:3].upper(): name for name in "angry disgust fearful happy neutral sad".split()}
LEVELS = {"LO": "weak", "MD": "normal", "HI": "strong", "XX": "normal"}
CLASSES = dict.fromkeys(("ravdess", "audioset"), RAVDESS_EMOTIONS) | {"cremad": CREMAD_EMOTIONS.values()}
N_MUTE_FLV = 3  # videos without sound, as 28 of the release before December 2020
FLV_RATE_HZ = 22050

# ---- Lombard GRID and AudioSet (FORMATS 7, 8) -----------------------------------------------
# Command, colour, preposition, letter, digit, adverb.
GRID_WORDS = [line.split() for line in sentences()["grid"]]
GRID_RATE_HZ = 48000
WRONG_TALKER, BROKEN_TALKER = 3, 4  # s3 says something else in one recording, a .mov of s4 has no moov atom
MOV_TICKS = 600  # time stamps per second of Lombard GRID's videos
MOV_FPS, MOV_JITTER_S = 24, 0.006  # mean rate of their frames, and standard deviation of the time between two
AUDIOSET_S, AUDIOSET_FPS = 6, 15
AUDIOSET_LABELS = {"m": "/m/09x0r,/m/05zppz", "f": "/m/09x0r,/m/02zsn"}  # speech, of a man or a woman


@dataclass
class Scene:
    """One recording before it is spoken and drawn."""

    place: str  # its path below the corpus, without folder of the medium and ending
    actor: Actor
    seed: tuple  # of everything drawn after speaking
    lines: list  # of one (text, voice) for `speak`
    voice: dict  # gain_db, tilt, tremor, breath at the height of the expression
    face: dict  # features as FACES at the height of the expression
    seconds: tuple
    lead_s: float  # silence before the speech
    tail_s: float  # and after it, where `seconds` allows
    flaw: str = ""  # "mute": no audio track; "no moov": the atom is missing


# ---- The four corpora -------------------------------------------------------------------------
def write_demo_cremad(root, seed, n_actors, clips_per_actor, workers):
    """Write acted emotions with CREMA-D's names below `root`: AudioWAV, VideoFlash and two tables.

    N_MUTE_FLV videos have no sound; the votes of summaryTable.csv are what voice and face show.
    """
    scenes, people = [], ['"ActorID","Age","Sex","Race","Ethnicity"']
    votes = ['"","FileName","MultiModalVote"']
    for number in range(1001, 1001 + n_actors):
        rng = np.random.default_rng((seed, 4, number))
        actor = draw_actor(number - 1001, "en-us", rng)
        sex = {"m": "Male", "f": "Female"}[actor.sex]
        people.append(f'{number},{rng.integers(20, 75)},"{sex}","Unknown","Not Hispanic"')
        for sentence, emotion, level in cremad_takes(clips_per_actor, rng):
            place, intensity = f"{number}_{sentence}_{emotion}_{level}", LEVELS[level]
            asked, text = (CREMAD_EMOTIONS[emotion], intensity), SENTENCES[sentence]
            scene, shown = plan_emotion("cremad", place, actor, asked, text, rng)
            scenes.append(scene)
            votes.append(f'"{len(scenes)}","{place}","{vote(shown, rng)}"')
    for k in np.random.default_rng((seed, 4)).permutation(len(scenes))[:N_MUTE_FLV]:
        scenes[k].flaw = "mute"
    texts = {
        "VideoDemographics.csv": "\n".join(people) + "\n",
        "processedResults/summaryTable.csv": "\n".join(votes) + "\n",
    }
    write_corpus(root, scenes, write_cremad, workers, texts)


def write_demo_ravdess_av(root, seed, n_actors, clips_per_emotion, workers):
    """Write acted speech with picture and sound in RAVDESS's layout: Actor_NN/01-01-*.mp4."""
    scenes = []
    for number in range(1, n_actors + 1):
        rng = np.random.default_rng((seed, 5, number))
        actor = draw_actor(number, "en-us", rng)
        for emotion in RAVDESS_EMOTIONS:
            for name, intensity, text in ravdess_takes("01-01", emotion, number, clips_per_emotion, rng):
                place, asked = f"Actor_{number:02d}/{name}", (emotion, intensity)
                scenes.append(plan_emotion("ravdess", place, actor, asked, text, rng)[0])
    write_corpus(root, scenes, write_ravdess, workers)


def write_demo_lombard(root, seed, n_talkers, sentences_per_condition, workers):
    """Write plain and Lombard speech in Lombard GRID's layout: lombardgrid/{audio,front} below `root`.

    With two of the release's exceptions, a `..._WRONG_...` of s3 and a video of s4 without moov atom, but no
    side views, lists and alignments.
    """
    scenes = []
    for number in range(2, 2 + n_talkers):
        rng = np.random.default_rng((seed, 6, number))
        actor, codes = draw_actor(number, "en", rng), set()
        for k, condition in product(range(sentences_per_condition), "lp"):
            words = draw_command(codes, rng)
            asked, wrong = command_code(words), ""
            if number == WRONG_TALKER and (k, condition) == (0, "p"):
                other = GRID_WORDS[-1][GRID_WORDS[-1].index(words[-1]) - 1]
                wrong, asked = f"_WRONG_{asked}", command_code((*words[:-1], other))
            stem = f"s{number}_{condition}_{asked}{wrong}"
            scenes.append(plan_lombard(stem, actor, condition == "l", " ".join(words) + ".", rng))
            if number == BROKEN_TALKER and (k, condition) == (0, "l"):
                scenes[-1].flaw = "no moov"
    write_corpus(root, scenes, write_lombard, workers)


def write_demo_audioset(root, seed, n_clips, workers):
    """Write videos in which sound and picture go together, with a CAV-MAE manifest, audioset_20k.json.

    Its paths are absolute, as genuine ones: `wav` is a file, `video_path` the folder of <video_id>.mp4.
    """
    rng, place, bank = np.random.default_rng((seed, 7)), Path(root).resolve(), all_sentences()
    scenes, entries = [], []
    for number in range(n_clips):
        name, actor = draw_name(rng), draw_actor(number, "en-us", rng)
        mood = RAVDESS_EMOTIONS[rng.integers(8)], "strong"
        text = " ".join(fill(bank[k], rng) for k in rng.choice(len(bank), 5, replace=False))
        scenes.append(plan_emotion("audioset", name, actor, mood, text, rng)[0])
        files = {"wav": str(place / "audio" / f"{name}.wav"), "video_path": str(place / "video")}
        entries.append({"video_id": name, **files, "labels": AUDIOSET_LABELS[actor.sex]})
    texts = {"audioset_20k.json": json.dumps({"data": entries}, indent=1) + "\n"}
    write_corpus(root, scenes, write_audioset, workers, texts)


# ---- Who acts, and what is shown --------------------------------------------------------------
def cremad_takes(n_clips, rng):
    """(sentence, emotion, level) of an actor's clips: levels only of IEO, a neutral one has none."""
    codes, takes, chosen = list(SENTENCES), {}, []
    for emotion in CREMAD_EMOTIONS:
        levels = ["XX"] if emotion == "NEU" else ["LO", "MD", "HI"]
        takes[emotion] = [("IEO", emotion, level) for level in levels]
        takes[emotion] += [(code, emotion, "XX") for code in codes if code != "IEO"]
        rng.shuffle(takes[emotion])
    while len(chosen) < n_clips and any(takes.values()):
        chosen += [takes[emotion].pop() for emotion in rng.permutation(list(takes)) if takes[emotion]]
    return sorted(chosen[:n_clips], key=lambda take: (codes.index(take[0]), take[1:]))


def show(emotion, modality, corpus, rng):
    """The emotion that comes out in the "voice" or the "face" of one who acts this emotion."""
    if rng.random() < SHOWS[modality]:
        return emotion
    others = [other for other in MISTAKEN[emotion] if other in CLASSES[corpus]]
    return others[rng.integers(len(others))]


def plan_emotion(corpus, place, actor, asked, text, rng):
    """A Scene where (emotion, intensity) is asked for, and what shows, {modality: (emotion, strength)}."""
    (emotion, intensity), shown = asked, {}
    for modality, own in (("voice", actor.speaker.expressiveness), ("face", actor.face_expressiveness)):
        if intensity == "weak":
            strength = WEAK * rng.beta(*STRENGTH["normal"])
        else:
            strength = rng.beta(*STRENGTH[intensity])
        shown[modality] = show(emotion, modality, corpus, rng), STRONGER[modality] * own * strength
    (heard, strength), seen = shown["voice"], shown["face"]
    voice = set_voice(actor.speaker, heard, strength, rng)
    face, seed = set_face(actor, *seen, rng), draw_seed(rng)
    return make_scene(corpus, place, actor, seed, with_ending(text, heard), voice, face, rng), shown


def plan_lombard(place, actor, is_lombard, text, rng):
    """A Scene of a command, plain or as if in noise."""
    strengths = {}
    for modality, sure in SHOWS.items():
        is_shown = is_lombard == (rng.random() < sure)
        strengths[modality] = rng.beta(*STRENGTH["strong"]) if is_shown else 0.0
    voice, style = set_voice(actor.speaker, "neutral", 1.0, rng), STYLES["lombard"]
    strength = strengths["voice"]
    for name in ("pitch", "range"):
        voice[name] = round(np.clip(voice[name] + strength * style[name], 0, 99))
    voice["rate_wpm"] = round(voice["rate_wpm"] * (1 + strength * (style["rate"] - 1)))
    voice["gain_db"] += strength * style["gain_db"]
    voice["tilt"] = min(voice["tilt"] + strength * style["tilt"], 0.95)
    seed, face = draw_seed(rng), set_face(actor, "lombard", strengths["face"], rng)
    return make_scene("lombard", place, actor, seed, text, voice, face, rng)


def make_scene(corpus, place, actor, seed, text, voice, face, rng):
    """A Scene of a text said with this voice and face, as fast and as long as scenes of the corpus are."""
    pace, seconds, lead_s, tail_s = TIMES[corpus]
    rate_wpm = max(SLOWEST_WPM, round(pace * voice["rate_wpm"]))  # or as slowly as eSpeak can
    # The level and the tilt follow the expression and are set after speaking.
    said = {**voice, "gain_db": actor.level_db, "tilt": 0.0, "rate_wpm": rate_wpm}
    silence_s = rng.uniform(*lead_s), rng.uniform(*tail_s) if tail_s else 0.0
    return Scene(place, actor, seed, [(text, said)], voice, face, seconds, *silence_s)


def draw_command(codes, rng):
    """The six words of a GRID command whose code is not among `codes` yet; it is added."""
    while True:
        words = tuple(choices[rng.integers(len(choices))] for choices in GRID_WORDS)
        if command_code(words) not in codes:
            codes.add(command_code(words))
            return words


def command_code(words):
    """Six characters: initials, the digit as a figure, zero as z."""
    digit = GRID_WORDS[4].index(words[4])
    return "".join(word[0] for word in words[:4]) + (str(digit) if digit else "z") + words[5][0]


def vote(shown, rng):
    """What raters see and hear: the emotion of what shows more, voice or face; "A:D" where both are close."""
    letters = {emotion: code[0] for code, emotion in CREMAD_EMOTIONS.items()}
    heard, seen = (letters[shown[modality][0]] for modality in ("voice", "face"))
    lead = shown["voice"][1] - shown["face"][1] + 0.1 * rng.standard_normal()
    return ":".join(sorted({heard, seen})) if abs(lead) < 0.05 else heard if lead > 0 else seen


# ---- Acting in time ---------------------------------------------------------------------------
def expression_curve(seconds, rng):
    """(times, how far an expression is out then, 0 to about 1): it builds up, wavers slowly and fades."""
    time_s = np.arange(math.ceil(seconds * CURVE_HZ) + 1) / CURVE_HZ
    start_s, end_s = rng.uniform(0.08, 0.25) * seconds, rng.uniform(0.7, 0.95) * seconds
    rest = rng.uniform(0.3, 0.6)
    builds_up = 1 / (1 + np.exp(-(time_s - start_s) / 0.15))
    fades = 1 - (1 - rest) / (1 + np.exp(-(time_s - end_s) / 0.2))
    speeds_hz, phases = rng.uniform(0.2, 0.7, 2), rng.uniform(0, 2 * np.pi, 2)
    wavers = 1 + 0.12 * np.sin(2 * np.pi * speeds_hz * time_s[:, None] + phases).sum(axis=1)
    return time_s, np.clip(builds_up * fades * wavers, 0, 1.3)


def perform(scene, speech, size, draw_times):
    """(the sound of a scene (T,), its Images, when each is shown by draw_times(seconds, rng))."""
    rng = np.random.default_rng(scene.seed)
    track, voice, curve = record_voice(scene, speech[0].samples, rng)
    times_s = draw_times(len(track) / RATE_HZ, rng)
    face = act_face(scene, voice, curve, times_s, rng)
    looks, light = scene.actor.looks, rng.uniform(*LIGHT)
    colours = {name: lit(getattr(looks, name), light) for name in ("skin", "hair", "backdrop")}
    return track, film(replace(looks, **colours), face, size), times_s


def record_voice(scene, spoken, rng):
    """The sound of a scene in its room, the voice alone, (T,) each, and the expression curve."""
    seconds = np.clip(scene.lead_s + len(spoken) / RATE_HZ + scene.tail_s, *scene.seconds)
    curve, voice, actor = expression_curve(seconds, rng), scene.voice, scene.actor
    track, first = np.zeros(round(seconds * RATE_HZ)), round(scene.lead_s * RATE_HZ)
    spoken = with_tremor(level_out(spoken), voice, rng)[: len(track) - first]
    track[first : first + len(spoken)] = spoken
    pressed = tilted(track, voice["tilt"])
    pressed *= np.sqrt(np.mean(track**2) / np.mean(pressed**2))
    out = np.interp(np.arange(len(track)) / RATE_HZ, *curve)
    gain_db = voice["gain_db"] * out + EFFORT_DB * (out - 0.7)
    sound = 10 ** (gain_db / 20) * ((1 - out) * track + out * pressed)
    noise = draw_noise(len(track), actor.noise_colour, actor.noise_rms, rng)
    return in_a_room(sound, actor.room_seed) + noise, sound, curve


def in_a_room(voice, seed):
    """A voice (T,) with the echoes of a room, at the same level."""
    room = draw_echoes(ROOM_S, np.random.default_rng(seed))
    room /= np.sqrt(np.sum(room**2))
    room[0] += DIRECT
    return fftconvolve(voice, room / np.sqrt(np.sum(room**2)))[: len(voice)]


def act_face(scene, sound, curve, times_s, rng):
    """The face of a scene at these times, as `film` wants it."""
    out, n_frames = np.interp(times_s, *curve), len(times_s)
    features = {name: rest + out * scene.face[name] for name, rest in scene.actor.habit.items()}
    features["eyes"] = np.maximum(features["eyes"], -1.0)  # closed
    features["open"] = scene.face["open"] * loudness(sound, times_s, 0.10)
    speed_hz, phase = rng.uniform(0.15, 0.45, 2), rng.uniform(0, 2 * np.pi, 2)
    sway = np.sin(2 * np.pi * speed_hz * np.asarray(times_s)[:, None] + phase)  # (F, 2)
    sway = SWAY_PX * sway + 0.1 * rng.standard_normal((n_frames, 2)) + rng.normal(0, 1.5, 2)
    lift = LIFT_PX * (loudness(sound, times_s, 0.4) - 0.5)
    return features | {"sway_x": sway[:, 0], "sway_y": sway[:, 1] - lift}


# ---- From scenes to files ---------------------------------------------------------------------
def write_cremad(folder, scene, speech):
    """AudioWAV/<name>.wav at 16 kHz and VideoFlash/<name>.flv."""
    track, images, _ = perform(scene, speech, FRAME_4_3, ntsc_times)
    write_wav(folder / "AudioWAV" / f"{scene.place}.wav", track)
    sound = Sound(resampled(track, RATE_HZ, FLV_RATE_HZ), FLV_RATE_HZ, codec=MP3)
    path = folder / "VideoFlash" / f"{scene.place}.flv"
    write_movie(path, images, NTSC_FPS, FLV1, None if scene.flaw == "mute" else sound)


def write_ravdess(folder, scene, speech):
    """Actor_NN/<name>.mp4 with stereo sound at 48 kHz."""
    track, images, _ = perform(scene, speech, FRAME_16_9, ntsc_times)
    sound = Sound(resampled(track, RATE_HZ, RAVDESS_RATE_HZ), RAVDESS_RATE_HZ, "stereo")
    write_movie(folder / f"{scene.place}.mp4", images, NTSC_FPS, sound=sound)


def ntsc_times(seconds, _rng):
    return np.arange(round(seconds * NTSC_FPS)) / float(NTSC_FPS)


def write_lombard(folder, scene, speech):
    """lombardgrid/audio/<name>.wav at 48 kHz and front/<name>.mov, silent, its frames at irregular times."""
    track, images, times_s = perform(scene, speech, FRAME_4_3, mov_times)
    folder = folder / "lombardgrid"
    write_wav(folder / "audio" / f"{scene.place}.wav", resampled(track, RATE_HZ, GRID_RATE_HZ), GRID_RATE_HZ)
    path, ticks = folder / "front" / f"{scene.place}.mov", np.round(times_s * MOV_TICKS).astype(int).tolist()
    write_movie(path, images, Fraction(MOV_FPS), ticks=ticks, tick_s=Fraction(1, MOV_TICKS))
    if scene.flaw == "no moov":
        path.write_bytes(without_moov(path.read_bytes()))


def mov_times(seconds, rng):
    """Times of frames at irregular steps, the first 0, the last half a step before the end; whole ticks."""
    step_s = 1 / MOV_FPS
    steps_s = np.clip(rng.normal(step_s, MOV_JITTER_S, round(2 * seconds / step_s)), 0.5 * step_s, 2 * step_s)
    ticks = np.round(MOV_TICKS * np.cumsum(steps_s))
    return np.array([0, *ticks[ticks < MOV_TICKS * (seconds - 0.5 * step_s)]]) / MOV_TICKS


def write_audioset(folder, scene, speech):
    """audio/<name>.wav at 16 kHz and video/<name>.mp4 with the same sound."""
    times_s = np.arange(AUDIOSET_S * AUDIOSET_FPS) / AUDIOSET_FPS
    track, images, _ = perform(scene, speech, FRAME_4_3, lambda seconds, rng: times_s)
    write_wav(folder / "audio" / f"{scene.place}.wav", track)
    path = folder / "video" / f"{scene.place}.mp4"
    write_movie(path, images, Fraction(AUDIOSET_FPS), sound=Sound(track))


def without_moov(data):
    """The bytes of a QuickTime file up to its moov atom, as where the recorder was stopped too early."""
    start = 0
    while data[start + 4 : start + 8] != b"moov":
        start += int.from_bytes(data[start : start + 4], "big")
    return data[:start]
