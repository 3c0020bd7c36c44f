"""The faces of the synthetic speakers: how they look, what an emotion does to them, how they are drawn."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from common.demo.voices import EXPRESSIVENESS, FACES, FEATURES, VOICES, Speaker, draw_speaker

SKINS = ((232, 196, 168), (204, 158, 126), (222, 178, 146), (182, 136, 106), (240, 208, 184))
HAIRS = ((92, 60, 34), (40, 32, 28), (176, 132, 70), (64, 44, 36), (122, 70, 40))
HABIT, FACE_JITTER = 0.12, 0.18  # standard deviation of a face's features, of an actor and of a recording
ARTICULATION = (0.85, 1.15)  # of an actor: how far the mouth opens, drawn evenly
ARTICULATION_JITTER = 0.12  # of a recording
LEVEL_DB = 1.0  # standard deviation of the level of an actor's recordings
LIPS = np.linspace(-1, 1, 9)  # from corner to corner


@dataclass
class Looks:
    """What a speaker looks like: colours, and lengths in pixels of a head that fits 120 x 120."""

    skin: tuple
    hair: tuple
    backdrop: tuple
    hair_down: int  # how far the hair reaches below the middle of the face
    width: int  # half the width of the head
    height: int  # from the middle of the face to the chin
    eye_x: int  # from the middle of the face to an eye


@dataclass
class Actor:
    """A voice with a face, and all that stays the same in every recording of theirs."""

    speaker: Speaker
    sex: str  # "m" or "f"
    looks: Looks
    habit: dict  # features of the face at rest
    face_expressiveness: float
    articulation: float
    level_db: float
    room_seed: int  # of the room in which they are recorded
    noise_rms: float
    noise_colour: float  # 0 is white, towards 1 it grows dull


def draw_actor(number, language, rng):
    """A new Actor; even numbers are women, the voice is the next one of the actor's sex."""
    sex = "fm"[number % 2]
    speaker = draw_speaker(f"{language}+{VOICES[sex][number // 2 % len(VOICES[sex])]}", rng)
    skin = lit(SKINS[rng.integers(len(SKINS))], rng.uniform(0.85, 1.1))
    hair = lit(HAIRS[rng.integers(len(HAIRS))], rng.uniform(0.85, 1.1))
    spans = ((30, 46) if sex == "f" else (4, 14), (34, 43), (47, 53), (15, 20))
    lengths = [int(rng.integers(*span)) for span in spans]
    backdrop = tuple(int(value) for value in rng.integers(70, 200, 3))
    return Actor(
        speaker,
        sex,
        Looks(skin, hair, backdrop, *lengths),
        habit={name: HABIT * rng.standard_normal() for name in FEATURES[:-1]},
        face_expressiveness=rng.uniform(*EXPRESSIVENESS),
        articulation=rng.uniform(*ARTICULATION),
        level_db=LEVEL_DB * rng.standard_normal(),
        room_seed=int(rng.integers(2**31)),
        noise_rms=10 ** rng.uniform(-2.8, -2.0),
        noise_colour=rng.uniform(0, 0.95),
    )


def set_face(actor, emotion, strength, rng):
    """Features of a face at the height of an expression, without the actor's habit."""
    *features, mouth = FACES[emotion].items()
    face = {name: strength * value + FACE_JITTER * rng.standard_normal() for name, value in features}
    wider = 1 + strength * (mouth[1] - 1) + ARTICULATION_JITTER * rng.standard_normal()
    return face | {"open": actor.articulation * max(wider, 0.2)}


def lit(colour, light):
    """An RGB colour in more or less light than 1."""
    return tuple(min(255, int(light * value)) for value in colour)


def film(looks, features, size):
    """Images of a face; features: {each of FEATURES, "sway_x", "sway_y": (frames,)}."""
    for values in zip(*features.values(), strict=True):
        image = Image.new("RGB", size, looks.backdrop)
        draw_face(image, looks, dict(zip(features, values, strict=True)))
        yield image


def draw_face(image, looks, face):
    """Draw a speaker with this face into the middle of an Image."""
    draw = ImageDraw.Draw(image)
    x, y = image.width / 2 + face["sway_x"], image.height / 2 + 4 + face["sway_y"]
    width, height = looks.width, looks.height
    draw.ellipse((x - width - 5, y - height - 6, x + width + 5, y + looks.hair_down), fill=looks.hair)
    draw.ellipse((x - width, y - height + 8, x + width, y + height), fill=looks.skin)
    for side in (-1, 1):
        draw_eye_and_brow(draw, x + side * looks.eye_x, y - 10, side, looks.hair, face)
    draw.line((x, y - 4, x - 3, y + 10, x + 3, y + 10), fill=lit(looks.skin, 0.8), width=2)
    draw_mouth(draw, x, y + 28, face)


def draw_eye_and_brow(draw, x, y, side, hair, face):
    """One eye with its brow; side -1 is the left of the picture, so the inner end is at x - side * 11."""
    opening = 6 + 5 * face["eyes"]
    draw.ellipse((x - 9, y - opening, x + 9, y + opening), fill=(250, 250, 250), outline=(60, 50, 45))
    pupil = min(4, opening)
    draw.ellipse((x - 4, y - pupil, x + 4, y + pupil), fill=(40, 30, 25))
    lift, tilt = y - 15 - 4 * face["brow_lift"], 7 * face["brow_tilt"]
    draw.line((x - side * 11, lift - tilt, x + side * 11, lift + tilt), fill=lit(hair, 0.5), width=6)


def draw_mouth(draw, x, y, face):
    """Lips as a band between two parabolas: the corners rise with `smile`, the gap grows with `open`."""
    across = (x + (18 + 7 * face["width"]) * LIPS).tolist()
    corner, gap = -13 * face["smile"] * (LIPS**2 - 0.5), (1.5 + 6 * face["open"]) * (1 - LIPS**2)
    upper = list(zip(across, (y + corner - gap).tolist(), strict=True))
    lower = list(zip(across, (y + corner + gap).tolist(), strict=True))
    draw.polygon(upper + lower[::-1], fill=(70, 20, 25))
    for edge in (upper, lower):
        draw.line(edge, fill=(170, 60, 65), width=4)
