"""Four synthetic audio-visual corpora, in the layouts of CREMA-D, RAVDESS, Lombard GRID and AudioSet.

They stand in for the genuine corpora in the demo and in the tests of 06: two of acted emotions, one of speech in
noise, and one of videos "in the wild" to pretrain on. Nobody's voice or face is in them: the speech is eSpeak NG's,
the faces are drawn, the sentences are those that the genuine speakers were given.

The generative model
  1. Actor. A voice with base settings, a face with its looks, an expression at rest (HABIT), EXPRESSIVENESS of the
     voice and of the face, a way to open the mouth: constant, so a recording tells who it is at any time.
  2. Acting. Voice and face each show the emotion asked for with the chance SHOWS, else one that it is mistaken for,
     and each with a strength of its own. Given the emotion they are independent: neither decides alone, both
     together know more.
  3. Time. The expression of a recording builds up, wavers slowly and fades (`expression_curve`), in the voice and
     in the face at once: it scales what voice and face show and, by EFFORT_DB, the loudness. With the loudness the
     mouth opens and the head rises. A gain control evens the syllables out and an echoing room blurs them, since they
     are what no neighbour tells. So a lost clip can be told from its neighbours and from the other modality.
  4. Lombard speech. LOMBARD_VOICE makes the voice louder, higher, slower and brighter, FACES["lombard"] opens the
     mouth wider, each with the chance and the strength of 2.
  5. AudioSet. Faces that talk in a mood, a new one in each video, and tones with a moving shape: its height is the
     pitch, its size the loudness.
The frames are smaller than the genuine ones, so that the demo is fast; AudioSet's videos last AUDIOSET_S, not 10 s.
"""

import json
import math
import string
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import uniform_filter1d
from scipy.signal import fftconvolve, lfilter, resample_poly

from common.corpora.readers import RAVDESS_CLASSES, RAVDESS_STATEMENTS
from common.demo.iemocap import AUDIO_RATE_HZ, HAIRS, SKINS, Looks, draw_face
from common.demo.iemocap import FACES as IEMOCAP_FACES
from common.demo.sentences import AMBIGUOUS, SENTENCES, fill
from common.demo.speech import (
    EXPRESSIVENESS,
    MEN,
    MISTAKEN,
    STRENGTH,
    WOMEN,
    Speaker,
    draw_speaker,
    ended,
    finish,
    set_voice,
    write_corpus,
    write_pcm,
)

# ---- The generative model's parameters ---------------------------------------------------
FACES = {  # as in demo_iemocap; `open`: how far the mouth opens in speech
    "neutral": IEMOCAP_FACES["neu"] | {"open": 1.0},
    "calm": {"brow_tilt": 0.3, "brow_lift": 0.1, "eyes": -0.5, "smile": 0.4, "width": -0.1, "open": 0.7},
    "happy": IEMOCAP_FACES["hap"] | {"open": 1.1},
    "sad": IEMOCAP_FACES["sad"] | {"open": 0.6},
    "angry": IEMOCAP_FACES["ang"] | {"open": 1.3},
    "fearful": {"brow_tilt": 0.8, "brow_lift": 0.9, "eyes": 0.9, "smile": -0.3, "width": 0.5, "open": 1.0},
    "disgust": {
        "brow_tilt": -0.6,
        "brow_lift": -0.3,
        "eyes": -0.7,
        "smile": -0.9,
        "width": -0.4,
        "open": 0.8,
    },
    "surprised": {"brow_tilt": 0.1, "brow_lift": 1.3, "eyes": 1.0, "smile": 0.0, "width": -0.5, "open": 1.5},
    "lombard": {"brow_tilt": 0.0, "brow_lift": 1.2, "eyes": 0.6, "smile": 0.0, "width": 1.0, "open": 2.6},
}
LOMBARD_VOICE = {
    "pitch": 24,
    "range": 12,
    "rate": 0.85,
    "gain_db": 14.0,
    "tilt": 0.80,
}  # as demo_speech.STYLES
SHOWS = {"voice": 0.92, "face": 0.84}
STRONGER = {
    "voice": 1.6,
    "face": 1.4,
}  # than in demo_speech: here an expression is at its height only for a while
WEAK = 0.6  # of the strength of CREMA-D's level LO
HABIT, FACE_JITTER = 0.12, 0.18  # standard deviation of a face's features, of an actor and of a recording
ARTICULATION = (0.85, 1.15)  # of an actor: how far the mouth opens, drawn evenly
ARTICULATION_JITTER = 0.12  # of a recording
LEVEL_DB = 1.0  # standard deviation of the level of an actor's recordings
EFFORT_DB = 14.0  # between an expression at rest and at its height
LEVEL_SAMPLES = 4800  # window of the gain control
ROOM_S, DIRECT = 1.5, 0.6  # time in which a room's sound falls by 60 dB; the direct sound against it
CURVE_HZ = 50  # rate at which an expression is described
SWAY_PX = (0.8, 0.5)  # of heads, across and up
LIFT_PX = 8.0  # how far a head rises with the voice, at its loudest
LIGHT = (0.85, 1.1)  # of a recording

# ---- CREMA-D (FORMATS 6) --------------------------------------------------------------------
CREMAD_EMOTIONS = {
    "ANG": "angry",
    "DIS": "disgust",
    "FEA": "fearful",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
CREMAD_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
CREMAD_S = (1.5, 3.0)
N_MUTE_FLV = 3  # videos without sound, as 28 of the release before December 2020
FLV_RATE_HZ = 22050

# ---- RAVDESS, Lombard GRID and AudioSet (FORMATS 4, 7, 8) -----------------------------------
RAVDESS_S = (3.5, 4.5)
RAVDESS_RATE_HZ = 48000
GRID_WORDS = (  # command, colour, preposition, letter, digit, adverb: the code has their initials
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple("abcdefghijklmnopqrstuvxyz"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)
GRID_S = (2.0, 2.7)
GRID_RATE_HZ = 48000
WRONG_TALKER, BROKEN_TALKER = 3, 4  # s3 says something else in one recording, s4 has a .mov without moov atom
MOV_TICKS = 600  # time stamps per second of Lombard GRID's videos
MOV_STEP_S = (1 / 24, 0.006)  # between frames: mean and standard deviation
AUDIOSET_S = 6.0
AUDIOSET_FPS = 15
TALKING_SHARE = 0.7
AUDIOSET_CLASSES = {  # the classes of the genuine list that occur here: {mid: display_name}
    "/m/09x0r": "Speech",
    "/m/05zppz": "Male speech, man speaking",
    "/m/02zsn": "Female speech, woman speaking",
    "/m/03kmc9": "Siren",
    "/m/01v_m0": "Sine wave",
    "/m/0chx_": "White noise",
}
TONES = ("/m/03kmc9", "/m/01v_m0", "/m/0chx_")
NTSC_FPS = Fraction(30000, 1001)  # CREMA-D and RAVDESS
FRAME_4_3, FRAME_16_9 = (160, 120), (224, 126)
PACE = {"cremad": 0.70, "ravdess": 0.52, "lombard": 0.80, "audioset": 0.90}  # of the speaking rate
SLOWEST_WPM = 80
X264 = ("libx264", {"preset": "ultrafast", "crf": "20"})
FLV1 = ("flv", {"qmin": "2", "qmax": "5"})


@dataclass
class Actor:
    """A voice with a face, and all that stays the same in every recording of theirs."""

    speaker: Speaker
    sex: str  # "m" or "f"
    looks: Looks
    backdrop: tuple
    habit: dict  # features of the face at rest
    face_expressiveness: float
    articulation: float
    level_db: float
    room_seed: int  # of the room in which they are recorded
    noise_rms: float
    noise_colour: float  # 0 is white, towards 1 it grows dull


@dataclass
class Scene:
    """One recording before it is spoken and drawn."""

    place: str  # its path below the corpus, without folder of the medium and ending
    actor: Actor | None  # None: a tone and a shape
    seed: tuple  # of everything drawn after speaking
    lines: list = field(default_factory=list)  # (text, voice) for `speak`
    voice: dict | None = None  # gain_db, tilt, tremor, breath at the height of the expression
    face: dict | None = None  # features as FACES at the height of the expression
    seconds: tuple = (0.0, math.inf)
    lead_s: float = 0.0  # silence before the speech
    tail_s: float = 0.0  # and after it, where `seconds` allows
    kind: str = ""  # of a tone: its mid
    flaw: str = ""  # "mute": no audio track; "no moov": the atom is missing


# ---- The four corpora ---------------------------------------------------------------------


def write_demo_cremad(root, seed, n_actors, clips_per_actor, workers):
    """Write acted emotions with CREMA-D's names below `root`, replacing what is there.

    root             Path of the corpus; it appears whole or not at all
    seed             int; the same seed gives the same files
    n_actors         1 to 91; every other one is a woman
    clips_per_actor  1 to 82, spread evenly over the emotions
    workers          threads that write files; the result does not depend on it
    Writes AudioWAV, VideoFlash (N_MUTE_FLV of them without sound), VideoDemographics.csv, SentenceFilenames.csv and
    processedResults/summaryTable.csv, whose votes are what voice and face show.
    Raises UserError where eSpeak NG cannot be loaded or the folder cannot be written.
    """
    scenes, people, votes = [], ['"ActorID","Age","Sex","Race","Ethnicity"'], []
    for number in range(1001, 1001 + n_actors):
        rng = np.random.default_rng((seed, 4, number))
        actor = draw_actor(number - 1001, "en-us", rng)
        sex = {"m": "Male", "f": "Female"}[actor.sex]
        people.append(f'{number},{rng.integers(20, 75)},"{sex}","Unknown","Not Hispanic"')
        for sentence, emotion, level in draw_takes(clips_per_actor, rng):
            scene, shown = plan_emotion(
                f"{number}_{sentence}_{emotion}_{level}",
                actor,
                CREMAD_EMOTIONS[emotion],
                {"LO": "weak", "HI": "strong"}.get(level, "normal"),
                CREMAD_SENTENCES[sentence],
                tuple(CREMAD_EMOTIONS.values()),
                rng,
            )
            slow_down(scene, PACE["cremad"])
            scene.seconds, scene.lead_s, scene.tail_s = (
                CREMAD_S,
                rng.uniform(0.05, 0.20),
                rng.uniform(0.05, 0.30),
            )
            scenes.append(scene)
            votes.append(vote(scene.place, shown, rng))
    for k in np.random.default_rng((seed, 4)).permutation(len(scenes))[:N_MUTE_FLV]:
        scenes[k].flaw = "mute"
    names = ['"Stimulus_Number","Filename"', *(f'{k},"{scene.place}"' for k, scene in enumerate(scenes, 1))]
    columns = ",".join(
        f'"{whose}{what}"' for whose in ("Voice", "Face", "MultiModal") for what in ("Vote", "Level")
    )
    table = [f'"","FileName",{columns}', *(f'"{k}",{row}' for k, row in enumerate(votes, 1))]
    texts = {
        "VideoDemographics.csv": people,
        "SentenceFilenames.csv": names,
        "processedResults/summaryTable.csv": table,
    }
    write_corpus(
        root, scenes, write_cremad, workers, {name: "\n".join(rows) + "\n" for name, rows in texts.items()}
    )


def write_demo_ravdess_av(root, seed, n_actors, clips_per_emotion, workers):
    """Write acted speech with picture and sound in RAVDESS's layout, Actor_NN/01-01-*.mp4; no song, no wav.

    n_actors           1 to 24; odd numbers are men
    clips_per_emotion  of each actor: at most 8; neutral, which is never strong, has at most 4
    Other arguments and errors as write_demo_cremad.
    """
    scenes = []
    for number in range(1, n_actors + 1):
        rng = np.random.default_rng((seed, 5, number))
        actor = draw_actor(number, "en-us", rng)
        for code, emotion in enumerate(RAVDESS_CLASSES, 1):
            takes = list(
                product(("01",) if emotion == "neutral" else ("01", "02"), ("01", "02"), ("01", "02"))
            )
            for k in sorted(rng.permutation(len(takes))[:clips_per_emotion]):
                intensity, statement, repetition = takes[k]
                place = (
                    f"Actor_{number:02d}/01-01-{code:02d}-{intensity}-{statement}-{repetition}-{number:02d}"
                )
                scene, _ = plan_emotion(
                    place,
                    actor,
                    emotion,
                    {"01": "normal", "02": "strong"}[intensity],
                    RAVDESS_STATEMENTS[statement],
                    RAVDESS_CLASSES,
                    rng,
                )
                slow_down(scene, PACE["ravdess"])
                scene.seconds, scene.lead_s, scene.tail_s = (
                    RAVDESS_S,
                    rng.uniform(0.25, 0.35),
                    rng.uniform(0.5, 1.0),
                )
                scenes.append(scene)
    write_corpus(root, scenes, write_ravdess, workers)


def write_demo_lombard(root, seed, n_talkers, sentences_per_condition, workers):
    """Write plain and Lombard speech in the layout of Lombard GRID: lombardgrid/{audio,front,json} below `root`.

    n_talkers                1 to 54: s2, s3, ...; every other one is a woman
    sentences_per_condition  of each talker, all different
    Among the names are two of the release's exceptions: a `..._WRONG_...` of s3, and a video of s4 without moov
    atom. There is no side view and no alignment. Other arguments and errors as write_demo_cremad.
    """
    scenes, texts = [], {}
    for number in range(2, 2 + n_talkers):
        rng = np.random.default_rng((seed, 6, number))
        actor, entries, codes = draw_actor(number, "en", rng), [], set()
        for k, condition in product(range(sentences_per_condition), "lp"):
            words = draw_command(codes, rng)
            code = command_code(words)
            wrong = number == WRONG_TALKER and (k, condition) == (0, "p")
            asked = (
                command_code((*words[:-1], GRID_WORDS[-1][GRID_WORDS[-1].index(words[-1]) - 1]))
                if wrong
                else code
            )
            stem = f"s{number}_{condition}_{asked}" + (f"_WRONG_{code}" if wrong else "")
            scenes.append(plan_lombard(stem, actor, condition == "l", " ".join(words) + ".", rng))
            if number == BROKEN_TALKER and (k, condition) == (0, "l"):
                scenes[-1].flaw = "no moov"
            entries.append(
                {
                    "SPKR": f"s{number}",
                    "COND": condition,
                    "UTTERANCE": asked,
                    "STATUS": "WRONG" if wrong else "CORRECT",
                }
            )
        texts[f"lombardgrid/json/s{number}.json"] = json.dumps(entries, indent=1) + "\n"
    write_corpus(root, scenes, write_lombard, workers, texts)


def write_demo_audioset(root, seed, n_clips, workers):
    """Write videos in which sound and picture go together, with a CAV-MAE manifest: audioset_20k.json below `root`.

    n_clips  each of AUDIOSET_S; TALKING_SHARE are talking faces, each another, the others tones with a shape
    The manifest has absolute paths, as the genuine ones: `wav` is a file, `video_path` the folder of <video_id>.mp4.
    class_labels_indices.csv lists the classes that occur. Other arguments and errors as write_demo_cremad.
    """
    rng = np.random.default_rng((seed, 7))
    scenes, entries, place = [], [], Path(root).resolve()
    for number in range(n_clips):
        name = "".join(rng.choice(list(string.ascii_letters + string.digits + "-_"), 11))
        if rng.random() < TALKING_SHARE:
            scene = plan_talk(name, number, rng)
            labels = ["/m/09x0r", {"m": "/m/05zppz", "f": "/m/02zsn"}[scene.actor.sex]]
        else:
            scene = Scene(name, None, draw_seed(rng), kind=TONES[rng.integers(len(TONES))])
            labels = [scene.kind]
        scenes.append(scene)
        entries.append(
            {
                "video_id": name,
                "wav": str(place / "audio" / f"{name}.wav"),
                "video_path": str(place / "video"),
                "labels": ",".join(labels),
            }
        )
    classes = [f'{k},{mid},"{name}"' for k, (mid, name) in enumerate(AUDIOSET_CLASSES.items())]
    write_corpus(
        root,
        scenes,
        write_audioset,
        workers,
        {
            "audioset_20k.json": json.dumps({"data": entries}, indent=1) + "\n",
            "class_labels_indices.csv": "\n".join(["index,mid,display_name", *classes]) + "\n",
        },
    )


# ---- Who acts, and what is shown ----------------------------------------------------------


def draw_actor(number, language, rng):
    """A new Actor; even numbers are women, the voice is the next one of the actor's sex."""
    sex = "m" if number % 2 else "f"
    voices = MEN if number % 2 else WOMEN
    speaker = draw_speaker(f"{language}+{voices[number // 2 % len(voices)]}", rng)
    skin, hair = (
        lit(colours[rng.integers(len(colours))], rng.uniform(0.85, 1.1)) for colours in (SKINS, HAIRS)
    )
    hair_down = rng.integers(30, 46) if sex == "f" else rng.integers(4, 14)
    looks = Looks(
        skin,
        hair,
        int(rng.integers(34, 43)),
        int(rng.integers(47, 53)),
        int(hair_down),
        int(rng.integers(15, 20)),
    )
    return Actor(
        speaker,
        sex,
        looks,
        backdrop=tuple(int(value) for value in rng.integers(70, 200, 3)),
        habit={name: HABIT * rng.standard_normal() for name in IEMOCAP_FACES["neu"]},
        face_expressiveness=rng.uniform(*EXPRESSIVENESS),
        articulation=rng.uniform(*ARTICULATION),
        level_db=LEVEL_DB * rng.standard_normal(),
        room_seed=int(rng.integers(2**31)),
        noise_rms=10 ** rng.uniform(-2.8, -2.0),
        noise_colour=rng.uniform(0, 0.95),
    )


def lit(colour, light):
    """An RGB colour in more or less light than 1."""
    return tuple(min(255, int(light * value)) for value in colour)


def draw_takes(n_clips, rng):
    """(sentence, emotion, level) of an actor's clips in CREMA-D: levels only of IEO, a neutral one has none."""
    takes = {
        emotion: [("IEO", emotion, level) for level in (("XX",) if emotion == "NEU" else ("LO", "MD", "HI"))]
        + [(sentence, emotion, "XX") for sentence in CREMAD_SENTENCES if sentence != "IEO"]
        for emotion in CREMAD_EMOTIONS
    }
    chosen = []
    for of_emotion in takes.values():
        rng.shuffle(of_emotion)
    while len(chosen) < n_clips and any(takes.values()):
        chosen += [takes[emotion].pop() for emotion in rng.permutation(list(takes)) if takes[emotion]]
    return sorted(chosen[:n_clips], key=lambda take: (list(CREMAD_SENTENCES).index(take[0]), take[1:]))


def show(emotion, modality, classes, rng):
    """The emotion that comes out in the "voice" or the "face" of one who acts this emotion."""
    if rng.random() < SHOWS[modality]:
        return emotion
    others = [other for other in MISTAKEN[emotion] if other in classes]
    return others[rng.integers(len(others))]


def plan_emotion(place, actor, emotion, intensity, text, classes, rng):
    """A Scene of acted emotion, and what it shows: {"voice": (emotion, strength), "face": (emotion, strength)}."""
    shown = {}
    for modality, expressiveness in (
        ("voice", actor.speaker.expressiveness),
        ("face", actor.face_expressiveness),
    ):
        strength = (
            WEAK * rng.beta(*STRENGTH["normal"]) if intensity == "weak" else rng.beta(*STRENGTH[intensity])
        )
        shown[modality] = (
            show(emotion, modality, classes, rng),
            STRONGER[modality] * expressiveness * strength,
        )
    voice = set_voice(actor.speaker, *shown["voice"], rng)
    face = set_face(actor, *shown["face"], rng)
    scene = Scene(
        place, actor, draw_seed(rng), [(ended(text, shown["voice"][0]), said(actor, voice))], voice, face
    )
    return scene, shown


def plan_lombard(place, actor, is_lombard, text, rng):
    """A Scene of a command, plain or as if in noise."""
    strengths = {}
    for modality, sure in SHOWS.items():
        is_shown = is_lombard == (rng.random() < sure)
        strengths[modality] = rng.beta(*STRENGTH["strong"]) if is_shown else 0.0
    voice, strength = set_voice(actor.speaker, "neutral", 1.0, rng), strengths["voice"]
    for name in ("pitch", "range"):
        voice[name] = round(np.clip(voice[name] + strength * LOMBARD_VOICE[name], 0, 99))
    voice["rate_wpm"] = round(voice["rate_wpm"] * (1 + strength * (LOMBARD_VOICE["rate"] - 1)))
    voice["gain_db"] += strength * LOMBARD_VOICE["gain_db"]
    voice["tilt"] = min(voice["tilt"] + strength * LOMBARD_VOICE["tilt"], 0.95)
    scene = Scene(
        place,
        actor,
        draw_seed(rng),
        [(text, said(actor, voice))],
        voice,
        set_face(actor, "lombard", strengths["face"], rng),
    )
    slow_down(scene, PACE["lombard"])
    scene.seconds, scene.lead_s, scene.tail_s = GRID_S, rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.3)
    return scene


def plan_talk(place, number, rng):
    """A Scene of AudioSet in which a new actor talks in some mood."""
    actor = draw_actor(number, "en-us", rng)
    mood = RAVDESS_CLASSES[rng.integers(len(RAVDESS_CLASSES))]
    bank = [*AMBIGUOUS, *(line for lines in SENTENCES.values() for line in lines)]
    text = " ".join(fill(bank[k], rng) for k in rng.choice(len(bank), 5, replace=False))
    scene, _ = plan_emotion(place, actor, mood, "strong", text, RAVDESS_CLASSES, rng)
    slow_down(scene, PACE["audioset"])
    scene.seconds, scene.lead_s = (AUDIOSET_S, AUDIOSET_S), rng.uniform(0, 0.5)
    return scene


def set_face(actor, emotion, strength, rng):
    """Features of a face at the height of an expression, from FACES, without the actor's habit."""
    face = {
        name: strength * value + FACE_JITTER * rng.standard_normal()
        for name, value in FACES[emotion].items()
        if name != "open"
    }
    wider = 1 + strength * (FACES[emotion]["open"] - 1) + ARTICULATION_JITTER * rng.standard_normal()
    return face | {"open": actor.articulation * max(wider, 0.2)}


def said(actor, voice):
    """The voice that eSpeak speaks with: level and tilt follow the expression and are set afterwards."""
    return {**voice, "gain_db": actor.level_db, "tilt": 0.0}


def slow_down(scene, pace):
    """Let the scene be spoken at this share of its speaking rate, or as slowly as eSpeak can."""
    scene.lines = [
        (text, {**voice, "rate_wpm": max(SLOWEST_WPM, round(pace * voice["rate_wpm"]))})
        for text, voice in scene.lines
    ]


def draw_seed(rng):
    return tuple(int(number) for number in rng.integers(2**31, size=2))


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


def vote(name, shown, rng):
    """A row of CREMA-D's summaryTable: raters hear the voice's emotion, see the face's, and may tie on both."""
    letters = {emotion: code[0] for code, emotion in CREMAD_EMOTIONS.items()}
    heard, seen = (letters[shown[modality][0]] for modality in ("voice", "face"))
    # Who shows more decides; close calls are ties.
    lead = shown["voice"][1] - shown["face"][1] + 0.1 * rng.standard_normal()
    both = ":".join(sorted({heard, seen})) if abs(lead) < 0.05 else heard if lead > 0 else seen
    levels = [
        ":".join(f"{rng.uniform(40, 90):.4g}" for _ in votes.split(":")) for votes in (heard, seen, both)
    ]
    cells = [cell for pair in zip((heard, seen, both), levels, strict=True) for cell in pair]
    return ",".join(f'"{cell}"' for cell in (name, *cells))


# ---- Acting in time -----------------------------------------------------------------------


def expression_curve(seconds, rng):
    """How far an expression is out, 0 to about 1, at CURVE_HZ: it builds up, wavers slowly and fades; (T,)."""
    time_s = np.arange(math.ceil(seconds * CURVE_HZ) + 1) / CURVE_HZ
    start_s, end_s, rest = (
        rng.uniform(0.08, 0.25) * seconds,
        rng.uniform(0.7, 0.95) * seconds,
        rng.uniform(0.3, 0.6),
    )
    builds_up = 1 / (1 + np.exp(-(time_s - start_s) / 0.15))
    fades = 1 - (1 - rest) / (1 + np.exp(-(time_s - end_s) / 0.2))
    speeds_hz, phases = rng.uniform(0.2, 0.7, 2), rng.uniform(0, 2 * np.pi, 2)
    wavers = 1 + 0.12 * np.sin(2 * np.pi * speeds_hz * time_s[:, None] + phases).sum(axis=1)
    return np.clip(builds_up * fades * wavers, 0, 1.3)


def at(curve, times_s):
    """The values of an expression curve at these times."""
    return np.interp(times_s, np.arange(len(curve)) / CURVE_HZ, curve)


def record_voice(scene, speech, rng):
    """The sound of a scene in its room, the voice alone, (T,) each at AUDIO_RATE_HZ, and the expression curve."""
    seconds = np.clip(scene.lead_s + len(speech) / AUDIO_RATE_HZ + scene.tail_s, *scene.seconds)
    curve = expression_curve(seconds, rng)
    track = np.zeros(round(seconds * AUDIO_RATE_HZ))
    first, voice = round(scene.lead_s * AUDIO_RATE_HZ), scene.voice
    spoken = finish(level_out(speech), voice, rng)[: len(track) - first]
    track[first : first + len(spoken)] = spoken
    tilt = voice["tilt"]
    tilted = lfilter([1, -tilt], 1, track) if tilt > 0 else lfilter([1], [1, tilt], track)
    tilted *= np.sqrt(np.mean(track**2) / np.mean(tilted**2))
    out = at(curve, np.arange(len(track)) / AUDIO_RATE_HZ)
    gain_db = voice["gain_db"] * out + EFFORT_DB * (out - 0.7)
    voice = 10 ** (gain_db / 20) * ((1 - out) * track + out * tilted)
    noise = lfilter([1], [1, -scene.actor.noise_colour], rng.standard_normal(len(track)))
    return (
        in_a_room(voice, scene.actor.room_seed) + scene.actor.noise_rms * noise / np.std(noise),
        voice,
        curve,
    )


def at_rate(track, rate_hz):
    """A track (T,) at another sampling rate."""
    common = math.gcd(rate_hz, AUDIO_RATE_HZ)
    return resample_poly(track, rate_hz // common, AUDIO_RATE_HZ // common)


def level_out(speech):
    """Speech (T,) without most of its ups and downs from syllable to syllable, as behind an automatic gain control."""
    power = uniform_filter1d(speech**2, LEVEL_SAMPLES)
    steady = speech / (power + 0.05 * power.max()) ** 0.4
    return steady * np.sqrt(np.mean(speech**2) / np.mean(steady**2))


def in_a_room(voice, seed):
    """A voice (T,) with the echoes of a room, at the same level."""
    n_room = round(ROOM_S * AUDIO_RATE_HZ)
    room = np.random.default_rng(seed).standard_normal(n_room) * 10 ** (-3 * np.arange(n_room) / n_room)
    room /= np.sqrt(np.sum(room**2))
    room[0] += DIRECT
    return fftconvolve(voice, room / np.sqrt(np.sum(room**2)))[: len(voice)]


def loudness(track, times_s, window_s):
    """Root mean square of a track around these times, relative to the loudest; (F,)."""
    energy = np.concatenate([[0], np.cumsum(track**2)])
    edges = (np.asarray(times_s)[:, None] + (-window_s / 2, window_s / 2)) * AUDIO_RATE_HZ
    first, last = np.clip(edges.astype(int), 0, len(track)).T
    rms = np.sqrt((energy[last] - energy[first]) / np.maximum(last - first, 1))
    return rms / max(rms.max(), 1e-9)


def act_face(scene, voice, curve, times_s, rng):
    """The face of a scene at these times: a list of dicts of features, as draw_face wants them."""
    out, n_frames = at(curve, times_s), len(times_s)
    features = {name: rest + out * scene.face[name] for name, rest in scene.actor.habit.items()}
    features["eyes"] = np.maximum(features["eyes"], -1.0)  # closed
    features["open"] = scene.face["open"] * loudness(voice, times_s, 0.10)
    speed_hz, phase = rng.uniform(0.15, 0.45, 2), rng.uniform(0, 2 * np.pi, 2)
    sway = np.sin(2 * np.pi * speed_hz * np.asarray(times_s)[:, None] + phase)  # (F, 2)
    sway = SWAY_PX * sway + 0.1 * rng.standard_normal((n_frames, 2)) + rng.normal(0, 1.5, 2)
    features["sway_x"], features["sway_y"] = (
        sway[:, 0],
        sway[:, 1] - LIFT_PX * (loudness(voice, times_s, 0.4) - 0.5),
    )
    return [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]


def film_face(scene, faces, size, rng):
    """Images of a face, one after the other, in this recording's light."""
    actor, light = scene.actor, rng.uniform(*LIGHT)
    looks = replace(actor.looks, skin=lit(actor.looks.skin, light), hair=lit(actor.looks.hair, light))
    backdrop = lit(actor.backdrop, light)
    for face in faces:
        image = Image.new("RGB", size, backdrop)
        draw_face(image, looks, face)
        yield image


# ---- Tones and shapes ---------------------------------------------------------------------


def wander(rng, time_s):
    """A slow random curve between 0 and 1 at these times."""
    speeds_hz, phases = rng.uniform(0.05, 0.35, 3), rng.uniform(0, 2 * np.pi, 3)
    return 0.5 + np.sin(2 * np.pi * speeds_hz * time_s[:, None] + phases).sum(axis=1) / 6


def record_tone(kind, pitch, loud, rng):
    """A sine wave, a siren or a noise (T,) whose pitch and loudness follow two curves between 0 and 1."""
    frequency_hz = 150 * 2 ** (3.5 * pitch)
    if kind == "/m/0chx_":
        white = rng.standard_normal(len(pitch))
        dull = 3 * lfilter([0.1], [1, -0.9], white)
        tone = pitch * white + (1 - pitch) * dull
    else:
        if kind == "/m/03kmc9":
            frequency_hz = frequency_hz * 2 ** (
                0.3 * np.sin(2 * np.pi * 3 * np.arange(len(pitch)) / AUDIO_RATE_HZ)
            )
        phase = 2 * np.pi * np.cumsum(frequency_hz) / AUDIO_RATE_HZ
        overtones = (1,) if kind == "/m/01v_m0" else (1, 0.5, 0.3)
        tone = sum(share * np.sin(k * phase) for k, share in enumerate(overtones, 1))
    return 0.02 * 10**loud * tone + 10 ** rng.uniform(-3.7, -2.7) * rng.standard_normal(len(pitch))


def film_shape(kind, pitch, loud, size, rng):
    """Images of a disc (sine wave), a square (siren) or a triangle (noise): its height is the pitch, its size the
    loudness."""
    backdrop, colour = (
        tuple(int(value) for value in rng.integers(*span, 3)) for span in ((40, 160), (120, 256))
    )
    x = size[0] / 2 + rng.normal(0, 8)
    corners = {"/m/03kmc9": ((-1, -1), (1, -1), (1, 1), (-1, 1)), "/m/0chx_": ((-1, 1), (1, 1), (0, -1))}
    for height, largeness in zip(pitch, loud, strict=True):
        image, radius = Image.new("RGB", size, backdrop), 6 + 26 * largeness
        draw, y = ImageDraw.Draw(image), size[1] * (0.85 - 0.7 * height)
        if kind in corners:
            draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in corners[kind]], fill=colour)
        else:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        yield image


# ---- From scenes to files -----------------------------------------------------------------


def write_cremad(folder, scene, speech):
    """AudioWAV/<name>.wav at 16 kHz and VideoFlash/<name>.flv."""
    rng = np.random.default_rng(scene.seed)
    track, voice, curve = record_voice(scene, speech[0], rng)
    write_pcm(folder / "AudioWAV" / f"{scene.place}.wav", track, AUDIO_RATE_HZ)
    times_s = np.arange(round(len(track) / AUDIO_RATE_HZ * NTSC_FPS)) / float(NTSC_FPS)
    images = film_face(scene, act_face(scene, voice, curve, times_s, rng), FRAME_4_3, rng)
    sound = None if scene.flaw == "mute" else (at_rate(track, FLV_RATE_HZ), FLV_RATE_HZ, "mono", "libmp3lame")
    write_movie(folder / "VideoFlash" / f"{scene.place}.flv", images, FRAME_4_3, NTSC_FPS, FLV1, sound)


def write_ravdess(folder, scene, speech):
    """Actor_NN/<name>.mp4 with stereo sound at 48 kHz."""
    rng = np.random.default_rng(scene.seed)
    track, voice, curve = record_voice(scene, speech[0], rng)
    times_s = np.arange(round(len(track) / AUDIO_RATE_HZ * NTSC_FPS)) / float(NTSC_FPS)
    images = film_face(scene, act_face(scene, voice, curve, times_s, rng), FRAME_16_9, rng)
    sound = at_rate(track, RAVDESS_RATE_HZ), RAVDESS_RATE_HZ, "stereo", "aac"
    write_movie(folder / f"{scene.place}.mp4", images, FRAME_16_9, NTSC_FPS, X264, sound)


def write_lombard(folder, scene, speech):
    """lombardgrid/audio/<name>.wav at 48 kHz and front/<name>.mov, silent, its frames at irregular times."""
    rng = np.random.default_rng(scene.seed)
    track, voice, curve = record_voice(scene, speech[0], rng)
    folder = folder / "lombardgrid"
    write_pcm(folder / "audio" / f"{scene.place}.wav", at_rate(track, GRID_RATE_HZ), GRID_RATE_HZ)
    seconds, (step_s, jitter_s) = len(track) / AUDIO_RATE_HZ, MOV_STEP_S
    steps_s = np.clip(rng.normal(step_s, jitter_s, round(2 * seconds / step_s)), 0.5 * step_s, 2 * step_s)
    ticks = np.round(MOV_TICKS * np.cumsum(steps_s)).astype(int)
    ticks = [0, *(int(tick) for tick in ticks if tick < MOV_TICKS * (seconds - 0.5 * step_s))]
    images = film_face(scene, act_face(scene, voice, curve, np.array(ticks) / MOV_TICKS, rng), FRAME_4_3, rng)
    path = folder / "front" / f"{scene.place}.mov"
    write_movie(
        path, images, FRAME_4_3, Fraction(round(1 / step_s)), X264, None, ticks, Fraction(1, MOV_TICKS)
    )
    if scene.flaw == "no moov":
        path.write_bytes(without_moov(path.read_bytes()))


def write_audioset(folder, scene, speech):
    """audio/<name>.wav at 16 kHz and video/<name>.mp4 with the same sound."""
    rng = np.random.default_rng(scene.seed)
    times_s = np.arange(round(AUDIOSET_S * AUDIOSET_FPS)) / AUDIOSET_FPS
    if scene.actor:
        track, voice, curve = record_voice(scene, speech[0], rng)
        images = film_face(scene, act_face(scene, voice, curve, times_s, rng), FRAME_4_3, rng)
    else:
        sample_s = np.arange(round(AUDIOSET_S * AUDIO_RATE_HZ)) / AUDIO_RATE_HZ
        pitch, loud = wander(rng, sample_s), wander(rng, sample_s)
        track = record_tone(scene.kind, pitch, loud, rng)
        frames = np.round(times_s * AUDIO_RATE_HZ).astype(int)
        images = film_shape(scene.kind, pitch[frames], loud[frames], FRAME_4_3, rng)
    write_pcm(folder / "audio" / f"{scene.place}.wav", track, AUDIO_RATE_HZ)
    write_movie(
        folder / "video" / f"{scene.place}.mp4",
        images,
        FRAME_4_3,
        Fraction(AUDIOSET_FPS),
        X264,
        (track, AUDIO_RATE_HZ, "mono", "aac"),
    )


def write_movie(path, images, size, fps, encoder, sound, ticks=None, tick_s=None):
    """Write a video with or without an audio track.

    images   Images of this size
    fps      Fraction, frame rate, nominal where there are ticks
    encoder  (codec, its options)
    sound    (samples (T,), rate_hz, "mono" or "stereo", codec), or None
    ticks    when each image is shown, in units of tick_s; None = at the frame rate
    """
    tick_s = tick_s or 1 / fps
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
        video = container.add_stream(encoder[0], rate=fps, options=encoder[1])
        (video.width, video.height), video.pix_fmt = size, "yuv420p"
        video.codec_context.thread_count, video.codec_context.time_base = 1, tick_s
        audio = add_sound(container, *sound[1:]) if sound else None
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = ticks[number] if ticks else number, tick_s
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio:
            container.mux(encode_sound(audio, *sound[:3]))


def add_sound(container, rate_hz, layout, codec):
    options = {"aac_coder": "fast"} if codec == "aac" else {}
    return container.add_stream(codec, rate=rate_hz, layout=layout, options=options)


def encode_sound(stream, samples, rate_hz, layout):
    """All packets of a sound."""
    planes = np.tile(np.clip(samples, -0.99, 0.99).astype(np.float32), (2 if layout == "stereo" else 1, 1))
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="fltp", layout=layout)
    # Without a time stamp the container counts the encoder's delay as sound.
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
    return stream.encode(frame) + stream.encode(None)


def without_moov(data):
    """The bytes of a QuickTime file up to its moov atom, as where the recorder was stopped too early."""
    start = 0
    while data[start + 4 : start + 8] != b"moov":
        start += int.from_bytes(data[start : start + 4], "big")
    return data[:start]
