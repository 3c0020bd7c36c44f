"""A synthetic corpus in the layout of IEMOCAP_full_release (README.md): 5 sessions, 10 speakers."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from PIL import Image

from common.demo.faces import HAIRS, SKINS, Looks, film
from common.demo.sounds import RATE_HZ
from common.demo.text import choose, fill, sentences
from common.demo.voices import FACES, FEATURES, Speaker, set_voice
from common.demo.writing import DIVX, write_corpus, write_movie, write_wav
from common.files import write_text

EMOTIONS = ("neutral", "happy", "sad", "angry")  # a label is the first three letters
KEEPS_OWN, CATCHES_OTHER = 0.40, 0.25
MOOD_SHARE = 0.55  # of a mood on one emotion, the rest is spread evenly
# fmt: off
SHOWS = {  # chance that a modality shows the true emotion, in the order of EMOTIONS
    "text":   (0.82, 0.88, 0.88, 0.88),
    "speech": (0.74, 0.80, 0.83, 0.83),
    "video":  (0.58, 0.70, 0.68, 0.68),
}
CONFUSIONS = {  # what it shows otherwise: weights over EMOTIONS, a row per true emotion
    "text":   ((0, 3, 4, 3), (8, 0, 1, 1), (7, 1, 0, 2), (6, 1, 3, 0)),
    "speech": ((0, 4, 4, 2), (4, 0, 1, 5), (8, 1, 0, 1), (3, 6, 1, 0)),
    "video":  ((0, 4, 3, 3), (6, 0, 2, 2), (6, 1, 0, 3), (6, 2, 2, 0)),
    "label":  ((0, 1, 1, 1), (1, 0, 0, 0), (1, 0, 0, 0), (1, 0, 0, 0)),
}
OTHER_LABELS = {  # labels outside the four classes, with weights
    "neutral": {"xxx": 6, "fru": 3, "oth": 1}, "happy": {"xxx": 5, "sur": 4, "fea": 1},
    "sad": {"fru": 6, "xxx": 4, "fea": 1}, "angry": {"fru": 7, "xxx": 3, "dis": 1},
}
RATER_NAMES = {
    "neu": "Neutral", "hap": "Happiness", "exc": "Excited", "sad": "Sadness", "ang": "Anger",
    "fru": "Frustration", "sur": "Surprise", "fea": "Fear", "dis": "Disgust", "oth": "Other",
}
VAD = {  # typical valence, activation, dominance on the raters' scale 1-5
    "neu": (3, 2, 3), "hap": (4, 3, 3), "exc": (4, 4, 3), "sad": (2, 2, 2), "ang": (2, 4, 4),
    "fru": (2, 3, 3), "sur": (3, 4, 3), "fea": (2, 4, 2), "dis": (2, 3, 3), "oth": (3, 3, 3),
    "xxx": (3, 3, 3),
}
# fmt: on
FACE_JITTER = 0.15
STRENGTH = (6.0, 2.0)  # of a Beta distribution
MIRRORING = 0.25
AMBIGUOUS_SHARE = {"neutral": 0.20, "happy": 0.10, "sad": 0.10, "angry": 0.10}  # lines that fit any mood
OPENER_SHARE = 0.15  # turns that start with one more of them
LABEL_NOISE, OTHER_SHARE = 0.02, 0.13
# The speakers: (woman, man) of each session.
VOICES = (("f1", "m2"), ("f3", "m5"), ("f4", "m1"), ("f2", "m4"), ("f5", "m3"))
BASE_PITCH = ((52, 46), (50, 49), (48, 52), (46, 50), (51, 47))
BASE_RATE_WPM = ((172, 164), (160, 176), (180, 168), (164, 172), (175, 158))
EXPRESSIVENESS = ((0.03, -0.03), (0.00, 0.05), (-0.05, 0.02), (0.04, 0.00), (0.00, -0.04))  # added to SHOWS

SESSIONS = (1, 2, 3, 4, 5)
DIALOGUE_KINDS = (  # marker wearer and scene, in the order in which dialogues are added
    "F_impro01 M_impro01 F_script01_1 M_script01_1 F_impro02 M_impro05a F_script02_2 M_script01_1b "
    "F_impro03 M_impro05b F_script03_1 M_script02_2 F_impro04 M_impro07 F_script01_2 M_script03_2"
).split()
OTHER = {"F": "M", "M": "F"}
FPS = 15
HALF_PX = 120  # each speaker's half of the split screen is HALF_PX x HALF_PX
BACKDROP = (112, 128, 140)
CROSSTALK = 0.15  # how much of a speaker the other one's microphone picks up
NOISE_RMS = 0.001
APPLE_DOUBLE = bytes.fromhex("00051607000200004d6163204f532058") + bytes(66)  # macOS leaves "._*" files


@dataclass
class Turn:
    """One turn before it is placed in time."""

    letter: str  # "F" or "M": who speaks
    label: str  # annotated label, one of IEMOCAP's eleven
    text: str  # transcript
    voice: dict  # as set_voice gives it
    face: dict  # of FEATURES
    pause_s: float  # after the turn before, negative where they overlap
    name: str = ""  # utterance id
    start: int = 0  # first sample in the dialogue
    end: int = 0  # one past the last


@dataclass
class Dialogue:
    """One recording: its id such as Ses01F_impro01, its turns in order, a seed for everything drawn later."""

    name: str
    session: int
    turns: list
    seed: tuple

    @property
    def lines(self):
        """What is spoken: the transcripts without [LAUGHTER] and the like."""
        return [(" ".join(w for w in turn.text.split() if w[0] != "["), turn.voice) for turn in self.turns]


def write_demo_iemocap(root, seed, n_dialogues_per_session, turns_per_dialogue, workers):
    """Write the synthetic corpus below `root`, the folder IEMOCAP_full_release; see write_corpus."""
    dialogues = [
        plan_dialogue(session, number, turns_per_dialogue, seed)
        for session in SESSIONS
        for number in range(n_dialogues_per_session)
    ]
    texts = {"README.txt": "A synthetic imitation of the layout of IEMOCAP.\n"}
    write_corpus(root, dialogues, write_dialogue, workers, texts)


# ---- Who feels and says what ------------------------------------------------------------------
def plan_dialogue(session, number, n_turns, seed):
    """Draw the latent emotions of a dialogue and what each modality shows of them; returns a Dialogue."""
    rng = np.random.default_rng((seed, session, number))
    name = f"Ses{session:02d}{DIALOGUE_KINDS[number]}"
    mood = np.full(4, (1 - MOOD_SHARE) / 3)
    mood[(number + session) % 4] = MOOD_SHARE  # so that four dialogues of a session have all four moods
    turns, last, letter = [], {}, "FM"[rng.integers(2)]
    for _ in range(n_turns):
        latent = next_emotion(last, letter, mood, rng)
        turns.append(plan_turn(session, letter, latent, rng))
        last[letter] = latent
        if rng.random() > 0.15:
            letter = OTHER[letter]
    for letter in "FM":
        for index, turn in enumerate(turn for turn in turns if turn.letter == letter):
            turn.name = f"{name}_{letter}{index:03d}"
    return Dialogue(name, session, turns, (seed, session, number, 1))


def next_emotion(last, letter, mood, rng):
    """One step of the dialogue's Markov chain; `last` maps the letters of speakers to their last emotions."""
    chance = rng.random()
    if chance < KEEPS_OWN and letter in last:
        return last[letter]
    if KEEPS_OWN <= chance < KEEPS_OWN + CATCHES_OTHER and OTHER[letter] in last:
        return last[OTHER[letter]]
    return EMOTIONS[rng.choice(4, p=mood)]


def plan_turn(session, letter, latent, rng):
    """Draw what text, voice and face show of a latent emotion, and the annotated label."""
    person = "FM".index(letter)
    more = EXPRESSIVENESS[session - 1][person]
    text, speech, video = (show(modality, latent, more, rng) for modality in ("text", "speech", "video"))
    label, words = draw_label(latent, rng), draw_text(text, rng)
    voice = draw_voice(speech, session, person, rng)
    moves = [(name, value) for name, value in FACES[video].items() if name != "open"]
    face = {n: x * rng.beta(*STRENGTH) + FACE_JITTER * rng.standard_normal() for n, x in moves}
    pause_s = rng.uniform(-0.6, -0.1) if rng.random() < 0.25 else rng.uniform(0.1, 0.5)
    return Turn(letter, label, words, voice, face, pause_s=pause_s)


def show(modality, latent, expressiveness, rng):
    """The emotion that one modality shows: mostly the latent one, else one it is confused with."""
    if rng.random() < SHOWS[modality][EMOTIONS.index(latent)] + expressiveness:
        return latent
    return confuse(modality, latent, rng)


def confuse(source, latent, rng):
    return choose(dict(zip(EMOTIONS, CONFUSIONS[source][EMOTIONS.index(latent)], strict=True)), rng)


def draw_label(latent, rng):
    """The annotated label of a turn with this latent emotion, one of IEMOCAP's eleven."""
    chance = rng.random()
    if chance < OTHER_SHARE:
        return choose(OTHER_LABELS[latent], rng)
    label = confuse("label", latent, rng) if chance < OTHER_SHARE + LABEL_NOISE else latent
    return "exc" if label == "happy" and rng.random() < 0.5 else label[:3]


def draw_text(shown, rng):
    """One sentence of the bank; now and then with the transcribers' tokens for laughter and breath."""
    anything = sentences()["any"]
    bank = anything if rng.random() < AMBIGUOUS_SHARE[shown] else sentences()[shown]
    text = fill(bank[rng.integers(len(bank))], rng)
    if rng.random() < OPENER_SHARE:
        text = f"{fill(anything[rng.integers(len(anything))], rng)} {text}"
    if rng.random() < (0.12 if shown == "happy" else 0.02):
        return f"[LAUGHTER] {text}"
    return f"[BREATHING] {text}" if rng.random() < 0.02 else text


def draw_voice(shown, session, person, rng):
    """The voice of one turn, from the speaker's base and the emotion shown."""
    pitch, rate_wpm = BASE_PITCH[session - 1][person], BASE_RATE_WPM[session - 1][person]
    base = {"pitch": pitch, "range": 50, "rate_wpm": rate_wpm, "tilt": 0.0}
    speaker = Speaker(f"en-us+{VOICES[session - 1][person]}", base, expressiveness=1.0)
    return set_voice(speaker, f"iemocap {shown}", rng.beta(*STRENGTH), rng, "iemocap jitter")


# ---- One dialogue on disk ---------------------------------------------------------------------
def write_dialogue(root, dialogue, speech):
    """Place the turns in time and write every file of one dialogue below the release folder `root`."""
    rng = np.random.default_rng(dialogue.seed)
    place_turns(dialogue.turns, speech)
    folder = root / f"Session{dialogue.session}"
    tracks = mix_tracks(dialogue.turns, speech, rng)
    write_audio(folder, dialogue, tracks, rng)
    write_texts(folder, dialogue, rng)
    write_video(folder / "dialog" / "avi" / "DivX" / f"{dialogue.name}.avi", dialogue, tracks, rng)


def place_turns(turns, speech):
    """Set start and end (samples) of each turn; only turns of different speakers may overlap."""
    now, own_end = RATE_HZ, {"F": 0, "M": 0}
    for turn, spoken in zip(turns, speech, strict=True):
        turn.start = max(now + round(turn.pause_s * RATE_HZ), own_end[turn.letter] + RATE_HZ // 5)
        turn.end = own_end[turn.letter] = turn.start + len(spoken.samples)
        now = max(now, turn.end)


def mix_tracks(turns, speech, rng):
    """Each speaker's microphone: returns {"F": (T,), "M": (T,)}, the other speaker leaking in faintly."""
    n_samples = max(turn.end for turn in turns) + RATE_HZ
    clean = {letter: np.zeros(n_samples, np.float32) for letter in "FM"}
    for turn, spoken in zip(turns, speech, strict=True):
        clean[turn.letter][turn.start : turn.end] += spoken.samples
    noise = {letter: NOISE_RMS * rng.standard_normal(n_samples, np.float32) for letter in "FM"}
    return {letter: clean[letter] + CROSSTALK * clean[OTHER[letter]] + noise[letter] for letter in "FM"}


def write_audio(folder, dialogue, tracks, rng):
    """The dialogue as a 2-channel wav, each turn as a mono wav, and sometimes an AppleDouble twin."""
    path = folder / "dialog" / "wav" / f"{dialogue.name}.wav"
    own = folder / "sentences" / "wav" / dialogue.name
    write_wav(path, np.stack([tracks["F"], tracks["M"]], axis=1), peak=1.0)
    for turn in dialogue.turns:
        write_wav(own / f"{turn.name}.wav", tracks[turn.letter][turn.start : turn.end], peak=1.0)
    if rng.random() < 0.1:
        (path.parent / f"._{path.name}").write_bytes(APPLE_DOUBLE)
        (own / f"._{dialogue.turns[0].name}.wav").write_bytes(APPLE_DOUBLE)


def write_texts(folder, dialogue, rng):
    """EmoEvaluation (all F turns, then all M turns) and transcription of one dialogue."""
    by_letter = sorted(dialogue.turns, key=lambda turn: turn.letter)
    blocks = [evaluation_block(turn, rng) for turn in by_letter]
    header = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    evaluation = folder / "dialog" / "EmoEvaluation" / f"{dialogue.name}.txt"
    write_text(evaluation, header + "\n".join(blocks))
    # The transcripts of the real Session 2 are not in order of time either.
    turns = by_letter if dialogue.session == 2 else dialogue.turns
    lines = [line for turn in turns for line in transcript_lines(dialogue.name, turn, rng)]
    write_text(folder / "dialog" / "transcriptions" / f"{dialogue.name}.txt", "\n".join(lines) + "\n")
    if rng.random() < 0.1:
        (evaluation.parent / f"._{evaluation.name}").write_bytes(APPLE_DOUBLE)


def evaluation_block(turn, rng):
    """One turn of an EmoEvaluation file: the summary line, three raters and the speaker's own rating."""
    ratings = np.clip(VAD[turn.label] + rng.integers(-1, 2, size=(3, 3)), 1, 5)  # (rater, dimension)
    vad = ", ".join(f"{mean:.4f}" for mean in ratings[:2].mean(axis=0))
    start_s, end_s = turn.start / RATE_HZ, turn.end / RATE_HZ
    lines = [f"[{start_s:.4f} - {end_s:.4f}]\t{turn.name}\t{turn.label}\t[{vad}]"]
    votes, raters = rater_votes(turn.label, rng), ("E2", "E3", "E4", f"{turn.letter}1")
    for rater, vote in zip(raters, [*votes, votes[0]], strict=True):
        lines.append(f"C-{rater}:\t{RATER_NAMES[vote]};\t()")
    for rater, (val, act, dom) in zip(raters[1:], ratings, strict=True):
        lines.append(f"A-{rater}:\tval {val}; act {act}; dom  {dom};\t()")
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
    start_s, end_s = turn.start / RATE_HZ, turn.end / RATE_HZ
    lines = [f"{turn.name} [{start_s:08.4f}-{end_s:08.4f}]: {turn.text}"]
    other, fragments = OTHER[turn.letter], sentences()["fragment"]
    for head in (other, f"{dialogue_name}_{other}XX0 [{end_s:08.4f}-{end_s + 0.3:08.4f}]"):
        if rng.random() < 0.03:
            lines.append(f"{head}: {fragments[rng.integers(len(fragments))]}")
    return lines


def write_video(path, dialogue, tracks, rng):
    """A split-screen DivX AVI: the marker wearer (fifth letter of the name before the scene) on the left."""
    letters, halves = (dialogue.name[5], OTHER[dialogue.name[5]]), []
    for letter in letters:
        features = face_track(dialogue.turns, letter, tracks[letter], rng)
        session, person = dialogue.session, "FM".index(letter)  # the woman is 0 and has long hair
        lengths = (10 if person else 40, 36 + 2 * (session % 3) + 3 * person, 50 + session % 2)
        colours = SKINS[session - 1], HAIRS[session - 1], BACKDROP
        looks = Looks(*colours, *lengths, 17 + (session + person) % 2)
        halves.append(film(looks, features, (HALF_PX, HALF_PX)))
    side_by_side = (Image.fromarray(np.hstack(pair)) for pair in zip(*halves, strict=True))
    write_movie(path, side_by_side, Fraction(FPS), DIVX)


def face_track(turns, letter, track, rng):
    """The face of one speaker over time: {each of FEATURES, "sway_x", "sway_y": (frames,)}."""
    n_frames, hop = math.ceil(len(track) / RATE_HZ * FPS), RATE_HZ / FPS
    frames = {name: np.zeros(n_frames) for name in FEATURES}
    for turn in sorted(turns, key=lambda turn: turn.letter == letter):  # own turns last: they win overlaps
        is_own, span = turn.letter == letter, range(math.floor(turn.start / hop), math.ceil(turn.end / hop))
        for name, value in turn.face.items():
            frames[name][span.start : span.stop] = (1.0 if is_own else MIRRORING) * value
        for index in span[: n_frames - span.start] if is_own else ():
            frames["open"][index] = np.sqrt(np.mean(track[int(index * hop) : int((index + 1) * hop)] ** 2))
    frames["open"] = np.minimum(1.0, 1.5 * frames["open"] / (frames["open"].max() or 1.0))
    speed, phase = rng.uniform(0.15, 0.35, 2), rng.uniform(0, 2 * np.pi, 2)
    sway = np.sin(2 * np.pi * speed * np.arange(n_frames)[:, None] / FPS + phase)
    sway += 0.2 * rng.standard_normal((n_frames, 2))
    return frames | {"sway_x": 1.5 * sway[:, 0], "sway_y": sway[:, 1]}
