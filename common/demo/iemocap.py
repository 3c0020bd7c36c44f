"""A synthetic corpus in the layout of IEMOCAP_full_release: 5 sessions, 10 speakers, speech, text and video.

It stands in for the licensed corpus in the demo and in the tests. Nobody's voice or face is in it: the
speech is eSpeak NG's, the faces are drawn, the sentences come from demo_sentences.py. Nothing but the
annotated labels leaves this module; the latent emotions are not written anywhere.

The generative model
  1. Emotion. Each turn t of a dialogue has a latent emotion z_t in EMOTIONS. With probability KEEPS_OWN it
     is that of the speaker's own last turn, with CATCHES_OTHER that of the other speaker's last turn, else
     it is drawn anew from the dialogue's mood (MOOD_SHARE on one emotion, the rest spread evenly). So
     neighbouring turns tell something.
  2. Expression. Each modality m shows an emotion x_m. With probability SHOWS[m][z] (more for an expressive
     speaker) x_m = z, else x_m is drawn from the row CONFUSIONS[m][z]: speech confuses by arousal, text and
     faces look neutral. Given z and the speaker the modalities are independent, so each adds something and
     none decides alone.
  3. Text. A line from the bank of x_text, or with probability AMBIGUOUS_SHARE[x_text] one that fits any
     mood.
  4. Speech. PROSODY[x_speech] moves the speaker's base pitch, pitch range, speaking rate, loudness and
     spectral tilt, scaled by a strength ~ Beta(STRENGTH_BETA), plus jitter.
  5. Video. FACES[x_video] moves brows, eyes and mouth, scaled by a strength of its own; the lips follow the
     loudness of the speech; the listener's face mirrors MIRRORING of it; heads sway.
  6. Annotation. With probability OTHER_SHARE the label lies outside the four classes (OTHER_LABELS[z]),
     with LABEL_NOISE it is a neighbouring class (CONFUSIONS["label"][z]), else it is z; half of happy is
     called excited.
"""

import ctypes
import math
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image, ImageDraw
from scipy.signal import lfilter, resample_poly

from common.demo.sentences import AMBIGUOUS, FRAGMENTS, SENTENCES, fill
from common.errors import UserError
from common.files import atomic_path

# ---- The generative model's parameters ---------------------------------------------------
EMOTIONS = ("neu", "hap", "sad", "ang")
KEEPS_OWN = 0.40
CATCHES_OTHER = 0.25
MOOD_SHARE = 0.55
SHOWS = {  # chance that a modality shows the true emotion, in the order of EMOTIONS
    "text": (0.82, 0.88, 0.88, 0.88),
    "speech": (0.74, 0.80, 0.83, 0.83),
    "video": (0.58, 0.70, 0.68, 0.68),
}
CONFUSIONS = {  # what it shows otherwise: weights over EMOTIONS, a row per true emotion
    "text": ((0, 3, 4, 3), (8, 0, 1, 1), (7, 1, 0, 2), (6, 1, 3, 0)),
    "speech": ((0, 4, 4, 2), (4, 0, 1, 5), (8, 1, 0, 1), (3, 6, 1, 0)),
    "video": ((0, 4, 3, 3), (6, 0, 2, 2), (6, 1, 0, 3), (6, 2, 2, 0)),
    "label": ((0, 1, 1, 1), (1, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)),
}
AMBIGUOUS_SHARE = {"neu": 0.20, "hap": 0.10, "sad": 0.10, "ang": 0.10}
OPENER_SHARE = 0.15  # turns that start with one more line that fits any mood
STRENGTH_BETA = (6.0, 2.0)
MIRRORING = 0.25
LABEL_NOISE = 0.02
OTHER_SHARE = 0.13
OTHER_LABELS = {  # labels outside the four classes, with weights
    "neu": {"xxx": 6, "fru": 3, "oth": 1},
    "hap": {"xxx": 5, "sur": 4, "fea": 1},
    "sad": {"fru": 6, "xxx": 4, "fea": 1},
    "ang": {"fru": 7, "xxx": 3, "dis": 1},
}
PROSODY = {  # pitch, range: eSpeak's 0-99 scale; rate: factor; gain: dB; tilt: filter tap
    "neu": {"pitch": 0, "range": 0, "rate": 1.00, "gain_db": 0.0, "tilt": 0.00},
    "hap": {"pitch": 36, "range": 42, "rate": 1.06, "gain_db": 2.5, "tilt": 0.10},
    "sad": {"pitch": -22, "range": -40, "rate": 0.70, "gain_db": -5.0, "tilt": -0.70},
    "ang": {"pitch": 2, "range": 20, "rate": 1.30, "gain_db": 6.0, "tilt": 0.90},
}
PROSODY_JITTER = {"pitch": 4.0, "range": 6.0, "rate": 0.04, "gain_db": 1.5, "tilt": 0.08}  # standard dev.
FACES = {  # inner brows up, brows up, eyes open, mouth corners up, mouth width
    "neu": {"brow_tilt": 0.0, "brow_lift": 0.0, "eyes": 0.0, "smile": 0.0, "width": 0.0},
    "hap": {"brow_tilt": 0.1, "brow_lift": 0.7, "eyes": -0.3, "smile": 1.0, "width": 0.6},
    "sad": {"brow_tilt": 1.0, "brow_lift": 0.3, "eyes": -0.5, "smile": -0.8, "width": -0.4},
    "ang": {"brow_tilt": -1.0, "brow_lift": -0.8, "eyes": 0.5, "smile": -0.4, "width": 0.2},
}
FACE_JITTER = 0.15  # standard deviation of each face feature from turn to turn

# ---- The speakers: two per session, (woman, man) -------------------------------------------
VOICES = (("f1", "m2"), ("f3", "m5"), ("f4", "m1"), ("f2", "m4"), ("f5", "m3"))
BASE_PITCH = ((52, 46), (50, 49), (48, 52), (46, 50), (51, 47))
BASE_RATE_WPM = ((172, 164), (160, 176), (180, 168), (164, 172), (175, 158))
EXPRESSIVENESS = ((0.03, -0.03), (0.00, 0.05), (-0.05, 0.02), (0.04, 0.00), (0.00, -0.04))  # added to SHOWS
SKINS = ((232, 196, 168), (204, 158, 126), (222, 178, 146), (182, 136, 106), (240, 208, 184))
HAIRS = ((92, 60, 34), (40, 32, 28), (176, 132, 70), (64, 44, 36), (122, 70, 40))

# ---- Layout and media -----------------------------------------------------------------------
SESSIONS = (1, 2, 3, 4, 5)
DIALOGUE_KINDS = (  # marker wearer and scene, in the order in which dialogues are added
    "F_impro01",
    "M_impro01",
    "F_script01_1",
    "M_script01_1",
    "F_impro02",
    "M_impro05a",
    "F_script02_2",
    "M_script01_1b",
    "F_impro03",
    "M_impro05b",
    "F_script03_1",
    "M_script02_2",
    "F_impro04",
    "M_impro07",
    "F_script01_2",
    "M_script03_2",
)
AUDIO_RATE_HZ = 16000
ESPEAK_RATE_HZ = 22050
VIDEO_RATE_HZ = 15
HALF_PX = 120  # each speaker's half of the split screen is HALF_PX x HALF_PX
SPEECH_RMS = 0.05  # of neutral speech, full scale = 1
CROSSTALK = 0.15  # how much of a speaker the other one's microphone picks up
NOISE_RMS = 0.001
RATER_NAMES = {
    "neu": "Neutral",
    "hap": "Happiness",
    "exc": "Excited",
    "sad": "Sadness",
    "ang": "Anger",
    "fru": "Frustration",
    "sur": "Surprise",
    "fea": "Fear",
    "dis": "Disgust",
    "oth": "Other",
}
VAD = {  # typical valence, activation, dominance on the raters' scale 1-5
    "neu": (3, 2, 3),
    "hap": (4, 3, 3),
    "exc": (4, 4, 3),
    "sad": (2, 2, 2),
    "ang": (2, 4, 4),
    "fru": (2, 3, 3),
    "sur": (3, 4, 3),
    "fea": (2, 4, 2),
    "dis": (2, 3, 3),
    "oth": (3, 3, 3),
    "xxx": (3, 3, 3),
}
APPLE_DOUBLE = bytes.fromhex("00051607000200004d6163204f532058") + bytes(66)  # macOS leaves "._*" files


@dataclass
class Turn:
    """One turn before it is placed in time."""

    letter: str  # "F" or "M": who speaks
    label: str  # annotated label, one of IEMOCAP's eleven
    text: str  # transcript
    voice: dict  # eSpeak voice, pitch, range, rate_wpm and our gain_db, tilt
    face: dict  # features as in FACES
    pause_s: float  # after the turn before, negative where they overlap
    name: str = ""  # utterance id
    start: int = 0  # first sample in the dialogue
    end: int = 0  # one past the last


@dataclass
class Looks:
    """What a speaker looks like: colours, and lengths in pixels of a head that fits HALF_PX."""

    skin: tuple
    hair: tuple
    width: int  # half the width of the head
    height: int  # from the middle of the face to the chin
    hair_down: int  # how far the hair reaches below the middle of the face
    eye_x: int  # from the middle of the face to an eye


@dataclass
class Dialogue:
    """One recording: its id such as Ses01F_impro01, its turns in order, a seed for everything drawn later."""

    name: str
    session: int
    turns: list
    seed: tuple


def write_demo_iemocap(root, seed, n_dialogues_per_session=8, turns_per_dialogue=18, workers=2):
    """Write the synthetic corpus below `root` (the folder IEMOCAP_full_release), replacing what is there.

    root                     Path of the release folder; it appears whole or not at all
    seed                     int; the same seed gives the same text, the same samples and the same frames
    n_dialogues_per_session  at most len(DIALOGUE_KINDS)
    turns_per_dialogue       about OTHER_SHARE of them have a label outside the four classes
    workers                  processes that render dialogues; the result does not depend on it
    Raises UserError where eSpeak NG cannot be loaded or the folder cannot be written.
    """
    if not 1 <= n_dialogues_per_session <= len(DIALOGUE_KINDS):
        raise ValueError(f"n_dialogues_per_session must be 1 to {len(DIALOGUE_KINDS)}")
    dialogues = [
        plan_dialogue(session, number, turns_per_dialogue, seed)
        for session in SESSIONS
        for number in range(n_dialogues_per_session)
    ]
    spoken = [(remove_tokens(turn.text), turn.voice) for dialogue in dialogues for turn in dialogue.turns]
    # eSpeak's noise and pitch flutter depend on all that it said before: one fresh process says everything.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        speech = iter(pool.submit(speak, spoken).result())
    with atomic_path(Path(root)) as temporary, ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        temporary.mkdir()
        (temporary / "README.txt").write_text("A synthetic imitation of the layout of IEMOCAP.\n")
        jobs = [
            pool.submit(render_dialogue, temporary, dialogue, [next(speech) for _ in dialogue.turns])
            for dialogue in dialogues
        ]
        for job in jobs:
            job.result()


# ---- Who feels and says what ------------------------------------------------------------------
def plan_dialogue(session, number, n_turns, seed):
    """Draw the latent emotions of a dialogue and what each modality shows of them; returns a Dialogue."""
    rng = np.random.default_rng((seed, session, number))
    name = f"Ses{session:02d}{DIALOGUE_KINDS[number]}"
    # Every fourth dialogue of a session has the same mood, so that each session has all four.
    mood = np.full(4, (1 - MOOD_SHARE) / 3)
    mood[(number + session) % 4] = MOOD_SHARE
    turns, last, letter = [], {}, "FM"[rng.integers(2)]
    for _ in range(n_turns):
        latent = next_emotion(last, letter, mood, rng)
        turns.append(plan_turn(session, letter, latent, rng))
        last[letter] = latent
        if rng.random() > 0.15:
            letter = "M" if letter == "F" else "F"
    for letter in "FM":
        for index, turn in enumerate(turn for turn in turns if turn.letter == letter):
            turn.name = f"{name}_{letter}{index:03d}"
    return Dialogue(name, session, turns, (seed, session, number, 1))


def next_emotion(last, letter, mood, rng):
    """One step of the dialogue's Markov chain; `last` maps the letters of speakers to their last emotions."""
    other = "M" if letter == "F" else "F"
    chance = rng.random()
    if chance < KEEPS_OWN and letter in last:
        return last[letter]
    if KEEPS_OWN <= chance < KEEPS_OWN + CATCHES_OTHER and other in last:
        return last[other]
    return EMOTIONS[rng.choice(4, p=mood)]


def plan_turn(session, letter, latent, rng):
    """Draw what text, voice and face show of a latent emotion, and the annotated label."""
    person = "FM".index(letter)
    shown = {
        modality: show(modality, latent, EXPRESSIVENESS[session - 1][person], rng)
        for modality in ("text", "speech", "video")
    }
    return Turn(
        letter=letter,
        label=draw_label(latent, rng),
        text=draw_text(shown["text"], rng),
        voice=draw_voice(shown["speech"], session, person, rng),
        face={
            feature: value * rng.beta(*STRENGTH_BETA) + FACE_JITTER * rng.standard_normal()
            for feature, value in FACES[shown["video"]].items()
        },
        pause_s=rng.uniform(-0.6, -0.1) if rng.random() < 0.25 else rng.uniform(0.1, 0.5),
    )


def show(modality, latent, expressiveness, rng):
    """The emotion that one modality shows: mostly the latent one, else one it is confused with."""
    index = EMOTIONS.index(latent)
    if rng.random() < SHOWS[modality][index] + expressiveness:
        return latent
    return confuse(modality, latent, rng)


def confuse(source, latent, rng):
    weights = np.array(CONFUSIONS[source][EMOTIONS.index(latent)], float)
    return EMOTIONS[rng.choice(4, p=weights / weights.sum())]


def draw_label(latent, rng):
    """The annotated label of a turn with this latent emotion, one of IEMOCAP's eleven."""
    chance = rng.random()
    if chance < OTHER_SHARE:
        labels = OTHER_LABELS[latent]
        weights = np.array(list(labels.values()), float)
        return list(labels)[rng.choice(len(labels), p=weights / weights.sum())]
    label = confuse("label", latent, rng) if chance < OTHER_SHARE + LABEL_NOISE else latent
    return "exc" if label == "hap" and rng.random() < 0.5 else label


def draw_text(shown, rng):
    """One sentence of the bank; now and then with the transcribers' tokens for laughter and breath."""
    bank = AMBIGUOUS if rng.random() < AMBIGUOUS_SHARE[shown] else SENTENCES[shown]
    text = fill(bank[rng.integers(len(bank))], rng)
    if rng.random() < OPENER_SHARE:
        text = f"{fill(AMBIGUOUS[rng.integers(len(AMBIGUOUS))], rng)} {text}"
    if rng.random() < (0.12 if shown == "hap" else 0.02):
        return f"[LAUGHTER] {text}"
    return f"[BREATHING] {text}" if rng.random() < 0.02 else text


def draw_voice(shown, session, person, rng):
    """eSpeak's settings and our gain and tilt for one turn, from the speaker's base and the emotion shown."""
    strength = rng.beta(*STRENGTH_BETA)
    change = {
        name: (value - (name == "rate")) * strength + PROSODY_JITTER[name] * rng.standard_normal()
        for name, value in PROSODY[shown].items()
    }
    return {
        "name": f"en-us+{VOICES[session - 1][person]}",
        "pitch": round(np.clip(BASE_PITCH[session - 1][person] + change["pitch"], 0, 99)),
        "range": round(np.clip(50 + change["range"], 0, 99)),
        "rate_wpm": round(BASE_RATE_WPM[session - 1][person] * (1 + change["rate"])),
        "gain_db": change["gain_db"],
        "tilt": np.clip(change["tilt"], -0.85, 0.95),
    }


def remove_tokens(text):
    """The words that are spoken: the transcript without [LAUGHTER] and the like."""
    return " ".join(word for word in text.split() if not word.startswith("["))


# ---- Speech -------------------------------------------------------------------------------------
class Event(ctypes.Structure):
    """What eSpeak NG reports with its samples (espeak_EVENT of its speak_lib.h)."""

    _fields_ = [
        *(
            (name, ctypes.c_int)
            for name in ("type", "unique", "text_position", "length", "time_ms", "sample")
        ),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_void_p),
    ]


def load_espeak():
    """eSpeak NG's library, ready to speak."""
    try:
        import espeakng_loader

        library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
    except (ImportError, OSError) as error:
        message = f"espeakng-loader: cannot be loaded ({error}); pip install espeakng-loader"
        raise UserError(message) from error
    synchronous, keep_running = 2, 0x8000
    if library.espeak_Initialize(synchronous, 0, str(data).encode(), keep_running) != ESPEAK_RATE_HZ:
        raise UserError(f"{data}: eSpeak NG cannot read it; install espeakng-loader in a shorter path")
    return library


def speak(lines):
    """Say lines one after the other; call it once per process.

    lines  list of (text, voice) with voice as draw_voice gives it
    Returns a list of float32 arrays (T,) at AUDIO_RATE_HZ, silence trimmed, at the loudness asked for.
    Raises UserError naming the package where eSpeak NG cannot be loaded.
    """
    return [samples for samples, _ in speak_words(lines)]


def speak_words(lines):
    """speak, but returns a list of (samples (T,), starts_s (W,)): when each blank-separated word of a line begins."""
    library = load_espeak()
    chunks, heard = [], []
    end_of_list, word = 0, 1

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(Event))
    def keep(samples, n_samples, events):
        if samples and n_samples:
            chunks.append(ctypes.string_at(samples, 2 * n_samples))
        for event in events:
            if event.type == end_of_list:
                return 0
            if event.type == word:
                heard.append((event.text_position - 1, event.sample))

    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    library.espeak_SetSynthCallback(keep)
    spoken = []
    for text, voice in lines:
        chunks.clear()
        heard.clear()
        say(library, text, voice)
        said = np.frombuffer(b"".join(chunks), "<i2")
        samples, first = finish_speech(said, voice)
        starts_s = word_starts(text, heard, len(said)) / ESPEAK_RATE_HZ - first / AUDIO_RATE_HZ
        spoken.append((samples, np.clip(starts_s, 0, len(samples) / AUDIO_RATE_HZ)))
    return spoken


def word_starts(text, heard, n_samples):
    """The sample at which each word of a text begins, from the (place in the text, sample) that eSpeak reported; (W,).

    Words that eSpeak runs together, such as "of the", it reports as one, whose time they share.
    """
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    known = {0: 0, len(ends): n_samples}
    for place, sample in heard:
        known.setdefault(next((k for k, end in enumerate(ends) if end > place), len(ends)), sample)
    return np.interp(np.arange(len(ends)), *zip(*sorted(known.items())))


def say(library, text, voice):
    """Synthesise one line; the samples arrive in the library's callback before this returns."""
    if library.espeak_SetVoiceByName(voice["name"].encode()) != 0:
        raise UserError(f"espeakng-loader: no voice {voice['name']}; install the version in requirements.txt")
    for parameter, value in ((1, voice["rate_wpm"]), (2, 60), (3, voice["pitch"]), (4, voice["range"])):
        library.espeak_SetParameter(parameter, value, 0)
    encoded = text.encode() + b"\0"
    utf8 = 1
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 1, 0, utf8, None, None)
    library.espeak_Synchronize()


def finish_speech(samples, voice):
    """Resample int16 (T,) to AUDIO_RATE_HZ, trim, tilt the spectrum and set the loudness.

    Returns float32 (T,), and the sample of the untrimmed speech that is its first.
    """
    divisor = math.gcd(AUDIO_RATE_HZ, ESPEAK_RATE_HZ)
    speech = resample_poly(samples / 32768, AUDIO_RATE_HZ // divisor, ESPEAK_RATE_HZ // divisor)
    loud = np.flatnonzero(np.abs(speech) > 0.02 * np.abs(speech).max())
    margin = AUDIO_RATE_HZ // 20
    first = max(0, loud[0] - margin)
    speech = speech[first : loud[-1] + margin]
    # tilt > 0 brightens like a pressed voice, tilt < 0 darkens like a soft one.
    tilt = voice["tilt"]
    speech = lfilter([1, -tilt], 1, speech) if tilt > 0 else lfilter([1], [1, tilt], speech)
    speech *= SPEECH_RMS * 10 ** (voice["gain_db"] / 20) / np.sqrt(np.mean(speech**2))
    return np.clip(speech, -0.99, 0.99).astype(np.float32), first


# ---- One dialogue on disk -----------------------------------------------------------------------
def render_dialogue(root, dialogue, speech):
    """Place the turns in time and write every file of one dialogue below the release folder `root`."""
    rng = np.random.default_rng(dialogue.seed)
    place_turns(dialogue.turns, speech)
    folder = root / f"Session{dialogue.session}"
    tracks = mix_tracks(dialogue.turns, speech, rng)
    write_audio(folder, dialogue, tracks, rng)
    write_texts(folder, dialogue, rng)
    avi = folder / "dialog" / "avi" / "DivX" / f"{dialogue.name}.avi"
    avi.parent.mkdir(parents=True, exist_ok=True)
    write_video(avi, dialogue, tracks, rng)


def place_turns(turns, speech):
    """Set start and end (samples) of each turn; only turns of different speakers may overlap."""
    now = AUDIO_RATE_HZ
    own_end = {"F": 0, "M": 0}
    for turn, samples in zip(turns, speech):
        earliest = own_end[turn.letter] + AUDIO_RATE_HZ // 5
        turn.start = max(now + round(turn.pause_s * AUDIO_RATE_HZ), earliest)
        turn.end = turn.start + len(samples)
        own_end[turn.letter] = turn.end
        now = max(now, turn.end)


def mix_tracks(turns, speech, rng):
    """Each speaker's microphone: returns {"F": (T,), "M": (T,)}, the other speaker leaking in faintly."""
    n_samples = max(turn.end for turn in turns) + AUDIO_RATE_HZ
    clean = {letter: np.zeros(n_samples, np.float32) for letter in "FM"}
    for turn, samples in zip(turns, speech):
        clean[turn.letter][turn.start : turn.end] += samples
    noise = {letter: NOISE_RMS * rng.standard_normal(n_samples, np.float32) for letter in "FM"}
    return {
        letter: clean[letter] + CROSSTALK * clean[other] + noise[letter]
        for letter, other in (("F", "M"), ("M", "F"))
    }


def write_audio(folder, dialogue, tracks, rng):
    """The dialogue as a 2-channel wav, each turn as a mono wav, and sometimes an AppleDouble twin."""
    path = folder / "dialog" / "wav" / f"{dialogue.name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([tracks["F"], tracks["M"]], axis=1), AUDIO_RATE_HZ, subtype="PCM_16")
    sentences = folder / "sentences" / "wav" / dialogue.name
    sentences.mkdir(parents=True, exist_ok=True)
    for turn in dialogue.turns:
        samples = tracks[turn.letter][turn.start : turn.end]
        soundfile.write(sentences / f"{turn.name}.wav", samples, AUDIO_RATE_HZ, subtype="PCM_16")
    if rng.random() < 0.1:
        (path.parent / f"._{path.name}").write_bytes(APPLE_DOUBLE)
        (sentences / f"._{dialogue.turns[0].name}.wav").write_bytes(APPLE_DOUBLE)


# ---- Text files -----------------------------------------------------------------------------------
def write_texts(folder, dialogue, rng):
    """EmoEvaluation (all F turns, then all M turns) and transcription of one dialogue."""
    by_letter = sorted(dialogue.turns, key=lambda turn: turn.letter)
    blocks = [evaluation_block(turn, rng) for turn in by_letter]
    header = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    evaluation = folder / "dialog" / "EmoEvaluation" / f"{dialogue.name}.txt"
    evaluation.parent.mkdir(parents=True, exist_ok=True)
    evaluation.write_text(header + "\n".join(blocks), encoding="utf-8")
    # The transcripts of the real Session 2 are not in order of time either.
    turns = by_letter if dialogue.session == 2 else dialogue.turns
    lines = [line for turn in turns for line in transcript_lines(dialogue.name, turn, rng)]
    transcription = folder / "dialog" / "transcriptions" / f"{dialogue.name}.txt"
    transcription.parent.mkdir(parents=True, exist_ok=True)
    transcription.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if rng.random() < 0.1:
        (evaluation.parent / f"._{evaluation.name}").write_bytes(APPLE_DOUBLE)


def evaluation_block(turn, rng):
    """One turn of an EmoEvaluation file: the summary line, three raters and the speaker's own rating."""
    typical = np.array(VAD[turn.label])
    ratings = np.clip(typical + rng.integers(-1, 2, size=(3, 3)), 1, 5)  # (rater, dimension)
    valence, activation, dominance = ratings[:2].mean(axis=0)
    start_s, end_s = turn.start / AUDIO_RATE_HZ, turn.end / AUDIO_RATE_HZ
    votes = rater_votes(turn.label, rng)
    lines = [
        f"[{start_s:.4f} - {end_s:.4f}]\t{turn.name}\t{turn.label}\t"
        f"[{valence:.4f}, {activation:.4f}, {dominance:.4f}]"
    ]
    lines += [f"C-E{rater}:\t{RATER_NAMES[vote]};\t()" for rater, vote in zip((2, 3, 4), votes)]
    lines += [f"C-{turn.letter}1:\t{RATER_NAMES[votes[0]]};\t()"]
    for rater, (val, act, dom) in zip(("E3", "E4", f"{turn.letter}1"), ratings):
        lines += [f"A-{rater}:\tval {val}; act {act}; dom  {dom};\t()"]
    return "\n".join(lines) + "\n"


def rater_votes(label, rng):
    """Three raters' labels: two or three agree on the label, all differ where there is no majority (xxx)."""
    names = list(RATER_NAMES)
    if label == "xxx":
        return [names[index] for index in rng.permutation(6)[:3]]
    third = names[rng.integers(6)] if rng.random() < 0.4 else label
    return [[label, label, third][index] for index in rng.permutation(3)]


def transcript_lines(dialogue_name, turn, rng):
    """The transcript of one turn, at times followed by a remark or a fragment without label and audio."""
    start_s, end_s = turn.start / AUDIO_RATE_HZ, turn.end / AUDIO_RATE_HZ
    lines = [f"{turn.name} [{start_s:08.4f}-{end_s:08.4f}]: {turn.text}"]
    other = "M" if turn.letter == "F" else "F"
    if rng.random() < 0.03:
        lines.append(f"{other}: {FRAGMENTS[rng.integers(len(FRAGMENTS))]}")
    if rng.random() < 0.03:
        fragment = FRAGMENTS[rng.integers(len(FRAGMENTS))]
        lines.append(f"{dialogue_name}_{other}XX0 [{end_s:08.4f}-{end_s + 0.3:08.4f}]: {fragment}")
    return lines


# ---- Video --------------------------------------------------------------------------------------
def write_video(path, dialogue, tracks, rng):
    """A split-screen DivX AVI: the marker wearer (fifth letter of the name before the scene) on the left."""
    wearer = dialogue.name[5]
    halves = (wearer, "M" if wearer == "F" else "F")
    n_frames = math.ceil(len(tracks["F"]) / AUDIO_RATE_HZ * VIDEO_RATE_HZ)
    features = {
        letter: face_track(dialogue.turns, letter, tracks[letter], n_frames, rng) for letter in halves
    }
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=VIDEO_RATE_HZ)
        stream.width, stream.height, stream.pix_fmt = 2 * HALF_PX, HALF_PX, "yuv420p"
        context = stream.codec_context
        context.codec_tag, context.thread_count, context.qmin, context.qmax = "DIVX", 1, 2, 5
        for index in range(n_frames):
            screen = Image.new("RGB", (2 * HALF_PX, HALF_PX))
            for side, letter in enumerate(halves):
                half = Image.new("RGB", (HALF_PX, HALF_PX), (112, 128, 140))
                draw_face(half, speaker_looks(dialogue.session, "FM".index(letter)), features[letter][index])
                screen.paste(half, (side * HALF_PX, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(screen)))
        container.mux(stream.encode())


def face_track(turns, letter, track, n_frames, rng):
    """The face of one speaker over time: a list of n_frames dicts of features, `open` and sway among them."""
    frames = [dict.fromkeys(FACES["neu"], 0.0) | {"open": 0.0} for _ in range(n_frames)]
    hop = AUDIO_RATE_HZ / VIDEO_RATE_HZ
    for turn in sorted(turns, key=lambda turn: turn.letter == letter):  # own turns last: they win overlaps
        share = 1.0 if turn.letter == letter else MIRRORING
        for index in range(math.floor(turn.start / hop), min(n_frames, math.ceil(turn.end / hop))):
            frames[index] |= {feature: share * value for feature, value in turn.face.items()}
            if turn.letter == letter:
                samples = track[int(index * hop) : int((index + 1) * hop)]
                frames[index]["open"] = float(np.sqrt(np.mean(samples**2)))
    loudest = max(frame["open"] for frame in frames) or 1.0
    speed, phase = rng.uniform(0.15, 0.35, 2), rng.uniform(0, 2 * np.pi, 2)
    for index, frame in enumerate(frames):
        frame["open"] = min(1.0, 1.5 * frame["open"] / loudest)
        sway = np.sin(2 * np.pi * speed * index / VIDEO_RATE_HZ + phase) + 0.2 * rng.standard_normal(2)
        frame["sway_x"], frame["sway_y"] = 1.5 * sway[0], sway[1]
    return frames


def speaker_looks(session, person):
    """The Looks of one of the ten speakers; person 0 is the woman."""
    return Looks(
        SKINS[session - 1],
        HAIRS[session - 1],
        36 + 2 * (session % 3) + 3 * person,
        50 + session % 2,
        10 if person else 40,
        17 + (session + person) % 2,
    )  # the women wear it long


def draw_face(image, looks, face):
    """Draw a speaker with this face into the middle of an Image at least HALF_PX wide and high."""
    draw = ImageDraw.Draw(image)
    x, y = image.width / 2 + face["sway_x"], image.height / 2 + 4 + face["sway_y"]
    width, height = looks.width, looks.height
    draw.ellipse((x - width - 5, y - height - 6, x + width + 5, y + looks.hair_down), fill=looks.hair)
    draw.ellipse((x - width, y - height + 8, x + width, y + height), fill=looks.skin)
    for side in (-1, 1):
        draw_eye_and_brow(draw, x + side * looks.eye_x, y - 10, side, looks.hair, face)
    shade = tuple(int(0.8 * value) for value in looks.skin)
    draw.line((x, y - 4, x - 3, y + 10, x + 3, y + 10), fill=shade, width=2)
    draw_mouth(draw, x, y + 28, face)


def draw_eye_and_brow(draw, x, y, side, hair, face):
    """One eye with its brow; side -1 is the left of the picture, so the inner end is at x - side * 11."""
    opening = 6 + 5 * face["eyes"]
    draw.ellipse((x - 9, y - opening, x + 9, y + opening), fill=(250, 250, 250), outline=(60, 50, 45))
    pupil = min(4, opening)
    draw.ellipse((x - 4, y - pupil, x + 4, y + pupil), fill=(40, 30, 25))
    lift, tilt = y - 15 - 4 * face["brow_lift"], 7 * face["brow_tilt"]
    brow = tuple(int(0.5 * value) for value in hair)
    draw.line((x - side * 11, lift - tilt, x + side * 11, lift + tilt), fill=brow, width=6)


def draw_mouth(draw, x, y, face):
    """Lips as a band between two parabolas: the corners rise with `smile`, the gap grows with `open`."""
    half_width = 18 + 7 * face["width"]
    position = np.linspace(-1, 1, 9)
    corner = -13 * face["smile"] * (position**2 - 0.5)
    gap = (1.5 + 6 * face["open"]) * (1 - position**2)
    upper = list(zip(x + half_width * position, y + corner - gap))
    lower = list(zip(x + half_width * position, y + corner + gap))
    draw.polygon(upper + lower[::-1], fill=(70, 20, 25))
    draw.line(upper, fill=(170, 60, 65), width=4)
    draw.line(lower, fill=(170, 60, 65), width=4)
