"""Two synthetic corpora of people who talk into a camera, in the layouts of CMU-MOSEI and VoxCeleb2, and word vectors.

They stand in for the genuine corpora in the demo and in the tests of 07: a small one with emotions, of which a segment
can have several, and a larger one without labels to pretrain on. Nobody's voice or face is in them: the speech is
eSpeak NG's, the faces are drawn, the sentences are PATTERNS filled with the words of FIELDS.

The generative model
  1. Emotions. A segment has a main emotion or none and at times others that go with it (COMPANIONS), in about the
     shares of the genuine corpus: happy is common, surprise and fear are rare. Three annotators score each emotion
     from 0 to 3 and see some that are not there. In VoxCeleb2 all emotions are equally frequent.
  2. Words. A sentence is a pattern, the same for every emotion, with blanks for nouns, verbs and adjectives. These
     come from the field of what the sentence is about (ABOUT), with the chance IN_FIELD, else from the plain words. So
     words of a field keep each other's company, as words do, and many are rare in the labelled corpus. Its segments
     also tell less of what is felt than the larger corpus does, so that every word that is understood counts.
  3. Vectors. Words of a part of speech are alike, those of a field hardly (SHARED): genuine vectors too say less of
     the emotion than of the use of a word, and put "happy" close to "sad". What else there is to know about a word is
     its company, and the voice and face that it is said with: that is what pretraining can find out.
  4. Voice and face. Each shows one of the segment's emotions with the chance SHOWS, else none, and with a strength of
     its own, as in demo_speech and demo_av.
  5. Recogniser. Words of VoxCeleb2 come with errors, most of them in short words, and a score; clips in German become
     words at random with a low score, so that a threshold on the score tells them apart.
Frames are smaller and fewer than the genuine ones, so that the demo is fast.
"""

import csv
import io
import json
import string
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import av
import h5py
import numpy as np
from PIL import Image
from scipy.signal import lfilter

from common.corpora.mosei import EMOTIONS, FOLDS_FILE, LABELS_CSD, SILENCE, WORDS_CSD
from common.corpora.readers import EMODB_TEXTS
from common.demo.av import (
    X264,
    Actor,
    add_sound,
    draw_actor,
    draw_seed,
    encode_sound,
    loudness,
    set_face,
    write_movie,
)
from common.demo.iemocap import AUDIO_RATE_HZ, draw_face, speak_words
from common.demo.speech import STRENGTH, finish, set_voice, write_pcm
from common.files import atomic_path

# ---- The language -------------------------------------------------------------------------
FIELDS = {  # nouns, verbs and adjectives, the most frequent first
    "happy": (
        "party holiday gift wedding birthday laughter joy victory cake festival picnic hug",
        "laughed smiled danced celebrated cheered won sang played hugged kissed relaxed grinned",
        "happy lovely wonderful sweet beautiful proud sunny cheerful delightful fantastic joyful bright",
    ),
    "sad": (
        "loss funeral tears farewell grief grave divorce sorrow illness heartbreak loneliness widow",
        "cried lost missed wept mourned suffered sighed sobbed parted grieved faded withered",
        "sad lonely broken gloomy hopeless empty tragic tearful weary miserable dying forgotten",
    ),
    "anger": (
        "lie fight insult fraud fault betrayal quarrel war injustice traitor bully robbery",
        "shouted argued fought yelled cheated accused cursed attacked protested threatened raged slammed",
        "angry unfair furious rude mad cruel selfish outrageous hostile corrupt violent arrogant",
    ),
    "surprise": (
        "miracle secret trick twist magic stranger jackpot coincidence discovery riddle comet revelation",
        "gasped wondered stared discovered jumped guessed appeared stumbled blinked vanished exclaimed marveled",
        "sudden strange amazing unexpected incredible weird shocking mysterious curious unbelievable astonishing "
        "bizarre",
    ),
    "disgust": (
        "garbage dirt mold stench vomit rot toilet filth slime sewer cockroach maggot",
        "gagged spat puked stank rotted dripped smelled recoiled leaked oozed smeared retched",
        "disgusting dirty nasty filthy gross rotten smelly greasy slimy sticky foul stale",
    ),
    "fear": (
        "danger nightmare monster darkness ghost storm threat panic shadow horror knife spider",
        "feared screamed fled trembled hid froze panicked escaped shivered ran shook crept",
        "afraid dark scary dangerous terrifying creepy nervous horrible frightened haunted deadly anxious",
    ),
    "": (  # plain words
        "report movie market table office price meeting camera phone chapter budget street number train kitchen "
        "window bottle recipe letter garden paper shop teacher computer",
        "talked worked looked waited walked called listened answered counted paid stopped started moved drove read "
        "sat stood arrived",
        "new small long simple regular early blue local average square wooden plain second quick digital yearly round "
        "narrow",
    ),
}
FIELDS = {
    emotion: dict(zip("NVA", (words.split() for words in parts), strict=True))
    for emotion, parts in FIELDS.items()
}
PATTERNS = (
    "the {A} {N} {V} and {V}",
    "that {N} was {A} and {A} so i {V}",
    "we {V} and {V} about the {A} {N}",
    "my {A} {N} and that {A} {N} {V}",
    "this {N} and the {N} {V}",
    "then a {A} and {A} {N} came",
)
OPENERS = ("well", "so", "um", "but", "okay", "zlatka", "and", "vlogwise")
FUNCTION_WORDS = sorted(
    {word for pattern in PATTERNS for word in pattern.split() if word[0] != "{"} | {*OPENERS}
)
LEXICON = (
    *FUNCTION_WORDS,
    *(word for parts in FIELDS.values() for words in parts.values() for word in words),
)
NO_VECTOR = ("zlatka", "vlogwise", "puked", "retched", "hid")
OPENER_SHARE = 0.3
IN_FIELD = {"mosei": 0.65, "voxceleb2": 0.90}  # chance that a blank gets a word of the sentence's field
ABOUT = {  # what a sentence is about: an emotion that is there, none, any
    "mosei": {"own": 0.80, "plain": 0.12, "other": 0.08},
    "voxceleb2": {"own": 0.95, "plain": 0.03, "other": 0.02},
}
RARITY = 4.0  # the r-th word of a list is as frequent as 1 / (r + RARITY)
TWO_SENTENCES = 0.45  # share of segments with one emotion or none that have two sentences
SENTENCES_PER_CLIP = 2  # of VoxCeleb2

# ---- The vectors --------------------------------------------------------------------------
GLOVE_FILE = "glove.demo.300d.txt"
GLOVE_DIM = 300
SHARED = {"part": 0.30, "field": 0.015}  # of a vector's square: what a part of speech and what a field shares
GLOVE_NORM = 6.0

# ---- Emotions, voices and faces -----------------------------------------------------------
MAIN = {"": 0.12, "happy": 0.44, "sad": 0.13, "anger": 0.11, "disgust": 0.09, "surprise": 0.05, "fear": 0.06}
COMPANIONS = {  # weights of what goes with a main emotion
    "happy": {"surprise": 2, "sad": 3, "anger": 1, "disgust": 1},
    "sad": {"anger": 3, "happy": 3, "disgust": 2, "fear": 2},
    "anger": {"disgust": 5, "sad": 3, "happy": 2},
    "disgust": {"anger": 5, "sad": 2, "happy": 1},
    "surprise": {"happy": 3, "fear": 1, "anger": 1},
    "fear": {"sad": 3, "anger": 1, "surprise": 1},
}
SECOND, THIRD = 0.35, 0.25  # chance of another emotion, and of one more
SEEN_WHERE_NONE = 0.01  # chance that one annotator sees an emotion that is not there
STYLE = {
    "": "neutral",
    "happy": "happy",
    "sad": "sad",
    "anger": "angry",
    "surprise": "surprised",
    "disgust": "disgust",
    "fear": "fearful",
}  # in demo_speech and demo_av
SHOWS = {"voice": 0.75, "face": 0.70}
PACE = 1.30  # of the speaking rate
GERMAN_SHARE = 0.12  # clips of VoxCeleb2 in another language
SCORE, GERMAN_SCORE, SCORE_SD = -0.12, -0.9, 0.08  # mean log-probability of a word's letters
MISHEARD = {"voxceleb2": 0.08, "mosei": 0.29}  # word error rate; the paper's in MOSEI (Sec. 4.1)
SHORT_LETTERS, SHORT_ERRORS = 4, 3.0  # words of so many letters are misheard this much more often

# ---- Layout and media ---------------------------------------------------------------------
FOLDS = {"train": 0.655, "valid": 0.10, "test": 0.245}
SPECIAL_IDS = ("-demo_id-a1", "10219", "demo__id__")  # begins with -, is numeric, ends with _: all in train
GAP_S = (0.15, 0.6)  # silence between segments
MARGIN_S = 0.04  # of a segment before and after its words
WITHOUT_WAV = 0.15  # share of videos that have only an mp4
CLIPS_PER_VIDEO = 4  # of demo_voxceleb2_av
NOISE_RMS = 0.0008
FPS = Fraction(8)
MOSEI_FRAME, VOXCELEB2_FRAME = (160, 120), (120, 120)


@dataclass
class Take:
    """What is said in one go: a segment of CMU-MOSEI or a clip of VoxCeleb2."""

    emotions: tuple  # those of EMOTIONS that are there
    text: str
    voice: dict  # for `speak_words`
    face: dict  # features at the height of the expression
    language: str = "en"
    samples: np.ndarray | None = None  # once it is spoken
    words: tuple = ()  # (word, start_s, end_s), on the take's own clock


@dataclass
class Video:
    """One recording with all its takes; of VoxCeleb2 each take has files of its own."""

    place: str  # CMU-MOSEI: the id; VoxCeleb2: id00012/21Uxsk56VDQ
    actor: Actor
    takes: list
    seed: tuple  # of everything drawn after speaking
    has_wav: bool = True
    starts_s: tuple = ()  # of the takes


# ---- The two corpora ----------------------------------------------------------------------


def write_demo_mosei(root, seed, n_videos, segments_per_video, workers):
    """Write segments with emotions in CMU-MOSEI's layout below `root`, replacing what is there.

    root                Path of the corpus; it appears whole or not at all
    seed                int; the same seed gives the same files
    n_videos            at least 8, for three folds; one more is in no fold
    segments_per_video  mean; a video has up to 2 more or fewer
    workers             threads that write files; the result does not depend on it
    Writes labels and languages (.csd), the SDK's folds, Raw with recordings and transcripts, GLOVE_FILE, and
    recognised_synthetic.csv: the words that a recogniser would hear, as the columns of words.csv with a score.
    Raises UserError where eSpeak NG cannot be loaded or the folder cannot be written.
    """
    rng = np.random.default_rng((seed, 8))
    ids = [*SPECIAL_IDS, *(draw_name(rng) for _ in range(n_videos + 1 - len(SPECIAL_IDS)))]
    videos = []
    for number, name in enumerate(ids):
        own = np.random.default_rng((seed, 8, number))
        actor = draw_actor(number, "en-us", own)
        n_segments = max(1, segments_per_video + int(own.integers(-2, 3)))
        takes = [plan_take("mosei", draw_emotions(MAIN, own), actor, own) for _ in range(n_segments)]
        videos.append(Video(name, actor, takes, draw_seed(own), has_wav=bool(own.random() > WITHOUT_WAV)))
    speak_takes(videos)
    for video in videos:
        place_takes(video, starts_early=video is videos[1])
    texts = {FOLDS_FILE: folds_text(ids[:-1], draw_name(rng)), GLOVE_FILE: glove_text(seed)}
    write_files(
        root, videos, write_mosei_video, workers, texts, partial(write_labels, videos=videos, seed=seed)
    )


def write_demo_voxceleb2_av(root, seed, n_speakers, clips_per_speaker, workers):
    """Write speech without labels in VoxCeleb2's layout below `root`: dev/aac, dev/mp4 and vox2_meta.csv.

    clips_per_speaker  spread over videos of at most CLIPS_PER_VIDEO; other arguments as write_demo_mosei
    words.csv is no part of the genuine release: what a recogniser would hear, with the times of the words and a score
    that is low where the clip is not English (columns utterance_id, word, start_s, end_s, score).
    """
    videos, rows = [], ["VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set "]
    for number in range(n_speakers):
        rng = np.random.default_rng((seed, 9, number))
        identity = f"id{15 + 7 * number:05d}"
        actor = draw_actor(number, "en-us", rng)
        rows.append(f"{identity} ,n{number + 1:06d} ,{actor.sex} ,dev ")
        for first in range(0, clips_per_speaker, CLIPS_PER_VIDEO):
            n_clips = min(CLIPS_PER_VIDEO, clips_per_speaker - first)
            moods = [draw_emotions(dict.fromkeys(("", *EMOTIONS), 1), rng) for _ in range(n_clips)]
            takes = [plan_take("voxceleb2", mood, actor, rng) for mood in moods]
            videos.append(Video(f"{identity}/{draw_name(rng)}", actor, takes, draw_seed(rng)))
    speak_takes(videos)
    heard = [row for video in sorted(videos, key=lambda video: video.place) for row in heard_in_clips(video)]
    texts = {"vox2_meta.csv": "\n".join(rows) + "\n", "words.csv": words_text(heard)}
    write_files(root, videos, write_clips, workers, texts)


def speak_takes(videos):
    """Let eSpeak say all takes, and note when it said which word."""
    takes = [take for video in videos for take in video.takes]
    # eSpeak's noise and pitch flutter depend on all that it said before: one fresh process says everything.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        spoken = pool.submit(speak_words, [(take.text, take.voice) for take in takes]).result()
    for take, (samples, starts_s) in zip(takes, spoken, strict=True):
        take.samples = samples
        ends_s = [*starts_s[1:], len(samples) / AUDIO_RATE_HZ]
        take.words = tuple(
            (word.strip(".,?!").lower(), float(start_s), float(end_s))
            for word, start_s, end_s in zip(take.text.split(), starts_s, ends_s, strict=True)
        )


def write_files(root, videos, write, workers, texts, finish_folder=None):
    """Make the files of each video by write(folder, video), and the texts: {name: content}."""
    with atomic_path(Path(root)) as temporary, ThreadPoolExecutor(workers) as pool:
        temporary.mkdir()
        for name, content in texts.items():
            (temporary / name).write_text(content, encoding="utf-8")
        if finish_folder:
            finish_folder(temporary)
        for _ in pool.map(partial(write, temporary), videos):
            pass  # an error in a thread is raised here


# ---- What is said and shown ---------------------------------------------------------------


def draw_name(rng):
    """An id as YouTube's: 11 characters."""
    return "".join(rng.choice(list(string.ascii_letters + string.digits + "-_"), 11))


def choose(weights, rng):
    """A key of {key: weight}."""
    shares = np.array(list(weights.values()), float)
    return list(weights)[rng.choice(len(shares), p=shares / shares.sum())]


def draw_emotions(main, rng):
    """The emotions of a take: none, or a main one and at most two that go with it."""
    found = [choose(main, rng)]
    if not found[0]:
        return ()
    others = dict(COMPANIONS[found[0]])
    for chance in (SECOND, THIRD):
        if rng.random() > chance:
            break
        found.append(choose(others, rng))
        del others[found[-1]]
    return tuple(found)


def plan_take(corpus, emotions, actor, rng):
    """A Take of "mosei" or "voxceleb2" with these emotions; in MOSEI it has a sentence for each of them."""
    is_labelled = corpus == "mosei"
    n_sentences = (
        max(len(emotions), 1 + (rng.random() < TWO_SENTENCES)) if is_labelled else SENTENCES_PER_CLIP
    )
    sentences = [
        draw_sentence(corpus, emotions[k % len(emotions)] if emotions else "", rng)
        for k in range(n_sentences)
    ]
    shown = {name: choose_shown(emotions, SHOWS[name], rng) for name in SHOWS}
    strengths = {"voice": actor.speaker.expressiveness, "face": actor.face_expressiveness}
    strengths = {name: value * rng.beta(*STRENGTH["strong"]) for name, value in strengths.items()}
    voice = set_voice(actor.speaker, STYLE[shown["voice"]], strengths["voice"], rng)
    voice["rate_wpm"] = round(PACE * voice["rate_wpm"])
    face = set_face(actor, STYLE[shown["face"]], strengths["face"], rng)
    is_german = not is_labelled and rng.random() < GERMAN_SHARE
    if is_german:
        sentences = [list(EMODB_TEXTS.values())[rng.integers(len(EMODB_TEXTS))].rstrip(".")]
        voice["name"] = voice["name"].replace("en-us", "de")
    return Take(emotions, ", ".join(sentences) + ".", voice, face, "de" if is_german else "en")


def draw_sentence(corpus, emotion, rng):
    """A sentence of one who feels this emotion, "" = none; it is not always about that."""
    about = choose(ABOUT[corpus], rng)
    if about != "own":
        emotion = "" if about == "plain" else EMOTIONS[rng.integers(len(EMOTIONS))]
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    if rng.random() < OPENER_SHARE:
        pattern = f"{OPENERS[rng.integers(len(OPENERS))]} {pattern}"
    return " ".join(
        draw_word(piece[1], emotion if rng.random() < IN_FIELD[corpus] else "", rng)
        if piece.startswith("{")
        else piece
        for piece in pattern.split()
    )


def draw_word(part, emotion, rng):
    """A word of a part of speech ("N", "V", "A") from an emotion's field, "" = a plain one."""
    words = FIELDS[emotion][part]
    return choose({word: 1 / (rank + RARITY) for rank, word in enumerate(words)}, rng)


def choose_shown(emotions, chance, rng):
    """The emotion that a voice or a face shows, "" = none."""
    return emotions[rng.integers(len(emotions))] if emotions and rng.random() < chance else ""


# ---- Word vectors -------------------------------------------------------------------------


def glove_text(seed):
    """The lines of a GloVe file with a vector for all words but NO_VECTOR, and two of the oddities of 840B.

    A vector is the sum of what its part of speech shares, what its field shares, and what is its own.
    """
    rng = np.random.default_rng((seed, 10))
    kinds = {(emotion, part): words for emotion, parts in FIELDS.items() for part, words in parts.items()}
    kinds["", "function"] = FUNCTION_WORDS
    of_part = {part: draw_direction(rng) for part in ("N", "V", "A", "function")}
    of_field = {emotion: draw_direction(rng) for emotion in FIELDS}
    own = 1 - sum(SHARED.values())
    vectors = {
        word: np.sqrt(SHARED["part"]) * of_part[part]
        + np.sqrt(SHARED["field"]) * of_field[emotion]
        + np.sqrt(own) * draw_direction(rng)
        for (emotion, part), words in kinds.items()
        for word in words
    }
    lines = [(word, vector) for word, vector in vectors.items() if word not in NO_VECTOR]
    order = rng.permutation(len(lines))
    # A token with blanks, and one that is there twice, of which the first counts.
    lines = [(". . .", draw_direction(rng)), *(lines[k] for k in order), ("happy", draw_direction(rng))]
    return "".join(
        f"{word} {' '.join(f'{value:.4f}' for value in GLOVE_NORM * vector)}\n" for word, vector in lines
    )


def draw_direction(rng):
    """A random vector of length 1 or nearly so."""
    return rng.standard_normal(GLOVE_DIM) / np.sqrt(GLOVE_DIM)


# ---- The recogniser -----------------------------------------------------------------------


def mishear(take, error_rate, rng):
    """[(word, start_s, end_s, score)]: what a recogniser makes of a take, most errors in short words."""
    if take.language != "en":
        return [
            (
                LEXICON[rng.integers(len(LEXICON))],
                start_s,
                end_s,
                GERMAN_SCORE + SCORE_SD * rng.standard_normal(),
            )
            for _, start_s, end_s in take.words
        ]
    is_short = np.array([len(word) <= SHORT_LETTERS for word, _, _ in take.words])
    weights = np.where(is_short, SHORT_ERRORS, 1.0)
    chances = np.minimum(error_rate * weights / weights.mean(), 0.9)
    heard = []
    for (word, start_s, end_s), short, chance in zip(take.words, is_short, chances, strict=True):
        wrong, score = rng.random() < chance, SCORE - abs(SCORE_SD * rng.standard_normal())
        if wrong and short and rng.random() < 0.3:
            continue  # not heard at all
        if wrong:
            alike = [other for other in LEXICON if other != word and (len(other) <= SHORT_LETTERS) == short]
            word, score = alike[rng.integers(len(alike))], 3 * score
        heard.append((word, start_s, end_s, score))
    return heard


def heard_in_clips(video):
    """Rows of words.csv for the clips of a video of VoxCeleb2."""
    rng = np.random.default_rng((*video.seed, 1))
    return [
        (f"{video.place.replace('/', '_')}_{number:05d}", *word)
        for number, take in enumerate(video.takes, 1)
        for word in mishear(take, MISHEARD["voxceleb2"], rng)
    ]


def words_text(rows):
    """words.csv with a score: rows (utterance_id, word, start_s, end_s, score)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("utterance_id", "word", "start_s", "end_s", "score"))
    writer.writerows(
        (name, word, f"{start_s:.3f}", f"{end_s:.3f}", f"{score:.4f}")
        for name, word, start_s, end_s, score in rows
    )
    return text.getvalue()


# ---- Labels, words and transcripts of CMU-MOSEI -------------------------------------------


def place_takes(video, starts_early):
    """Set where the takes of a video begin; in one that starts early, the first begins with the recording."""
    rng = np.random.default_rng((*video.seed, 2))
    starts_s, now_s = [], 0.0
    for take in video.takes:
        now_s += 0.0 if starts_early and not starts_s else rng.uniform(*GAP_S)
        starts_s.append(now_s)
        now_s += len(take.samples) / AUDIO_RATE_HZ
    video.starts_s = tuple(starts_s)


def annotate(emotions, rng):
    """Scores (7,) of a segment, sentiment first: means over three annotators, so thirds."""
    answers = np.zeros((3, len(EMOTIONS)))
    for column, emotion in enumerate(EMOTIONS):
        if emotion in emotions:
            strength = rng.uniform(0.7, 2.2)
            answers[:, column] = np.clip(np.round(strength + 0.7 * rng.standard_normal(3)), 0, 3)
            answers[0, column] = max(1, answers[0, column])
        elif rng.random() < SEEN_WHERE_NONE:
            answers[rng.integers(3), column] = 1
    valence = answers @ np.array([1, -1, -1, 0, -1, -0.5])
    sentiment = np.clip(np.round(valence + 0.5 * rng.standard_normal(3)), -3, 3)
    return np.array([sentiment.mean(), *answers.mean(axis=0)], np.float32)


def write_labels(folder, videos, seed):
    """The csd files, transcripts and recognised_synthetic.csv of a demo_mosei; label rows are in no order of time."""
    rng = np.random.default_rng((seed, 11))
    labels, words, heard = {}, {}, []
    for video in videos:
        spans_s = [
            (start_s - MARGIN_S, start_s + len(take.samples) / AUDIO_RATE_HZ + MARGIN_S)
            for take, start_s in zip(video.takes, video.starts_s, strict=True)
        ]
        scores = [annotate(take.emotions, rng) for take in video.takes]
        order = rng.permutation(len(video.takes))
        labels[video.place] = np.array([scores[k] for k in order]), np.array([spans_s[k] for k in order])
        words[video.place] = words_with_silence(video)
        write_transcripts(folder / "Raw" / "Transcript", video, spans_s)
        for row, k in enumerate(order):
            shift_s = video.starts_s[k] - max(0.0, spans_s[k][0])
            heard += [
                (f"{video.place}[{row}]", word, start_s + shift_s, end_s + shift_s, score)
                for word, start_s, end_s, score in mishear(video.takes[k], MISHEARD["mosei"], rng)
            ]
    write_csd(folder / "labels" / LABELS_CSD, "All Labels", labels)
    write_csd(folder / "languages" / WORDS_CSD, "words", words)
    (folder / "recognised_synthetic.csv").write_text(words_text(heard), encoding="utf-8")


def words_with_silence(video):
    """(features (W, 1) bytes, intervals (W, 2)) of a video's words and the silences between its segments."""
    rows, now_s = [], 0.0
    for take, start_s in zip(video.takes, video.starts_s, strict=True):
        if start_s > now_s:
            rows.append((SILENCE, now_s, start_s))
        rows += [(word, start_s + own_s, start_s + end_s) for word, own_s, end_s in take.words]
        now_s = rows[-1][2]
    return np.array([[word.encode()] for word, _, _ in rows]), np.array([times for _, *times in rows])


def write_csd(path, root_name, entries):
    """Write a computational sequence: {video id: (features, intervals)}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "root name": root_name,
        "computational sequence version": 1.0,
        "dimension names": [root_name],
        "computational sequence description": "synthetic",
    }
    with h5py.File(path, "w") as file:
        for entry, (features, intervals) in entries.items():
            file[f"{root_name}/data/{entry}/features"] = features
            file[f"{root_name}/data/{entry}/intervals"] = intervals
        for key, value in facts.items():
            file[f"{root_name}/metadata/{key}"] = np.array([json.dumps(value)], dtype=h5py.string_dtype())


def write_transcripts(folder, video, spans_s):
    """Segmented/Combined/<id>.txt, a line per segment with clip number and times, and Full/Combined/<id>.txt."""
    texts = [take.text[0].upper() + take.text[1:] for take in video.takes]
    lines = [
        f"{video.place}___{clip}___{start_s:.4f}___{end_s:.4f}___{text}"
        for clip, ((start_s, end_s), text) in enumerate(zip(spans_s, texts, strict=True))
    ]
    for version, content in (("Segmented", "\n".join(lines)), ("Full", " ".join(texts))):
        path = folder / version / "Combined" / f"{video.place}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")


def folds_text(ids, absent):
    """The SDK's file of folds, by video; the test fold lists one video that is not there, as the genuine one does."""
    ends = np.round(len(ids) * np.cumsum(list(FOLDS.values()))).astype(int)
    parts = dict(zip(FOLDS, np.split(np.array(ids, object), ends[:-1]), strict=True))
    return "".join(
        f"standard_{name}_fold={[*own, *((absent,) if name == 'test' else ())]!r}\n"
        for name, own in parts.items()
    )


# ---- Recordings ---------------------------------------------------------------------------


def render(takes, starts_s, seconds, actor, rng):
    """(the sound (T,), the face at each frame) of takes that begin at these times."""
    track = np.zeros(round(seconds * AUDIO_RATE_HZ))
    n_frames = max(1, round(seconds * FPS))
    times_s = np.arange(n_frames) / float(FPS)
    frames = {name: np.full(n_frames, rest) for name, rest in actor.habit.items()} | {
        "open": np.ones(n_frames)
    }
    for take, start_s in zip(takes, starts_s, strict=True):
        first, end_s = round(start_s * AUDIO_RATE_HZ), start_s + len(take.samples) / AUDIO_RATE_HZ
        spoken = finish(take.samples, take.voice, rng)[: len(track) - first]
        track[first : first + len(spoken)] = spoken
        shown = (times_s >= start_s) & (times_s < end_s)
        for name, value in take.face.items():
            frames[name][shown] = value + (actor.habit[name] if name != "open" else 0.0)
    frames["open"] *= loudness(track, times_s, 0.10)
    frames["eyes"] = np.maximum(frames["eyes"], -1.0)
    sway = np.cumsum(0.4 * rng.standard_normal((n_frames, 2)), axis=0)
    frames["sway_x"], frames["sway_y"] = np.clip(sway + rng.normal(0, 1.5, 2), -6, 6).T
    noise = lfilter([1], [1, -actor.noise_colour], rng.standard_normal(len(track)))
    faces = [dict(zip(frames, values, strict=True)) for values in zip(*frames.values(), strict=True)]
    return track + NOISE_RMS * noise / np.std(noise), faces


def film(faces, actor, size):
    """Images of a face, one after the other."""
    for face in faces:
        image = Image.new("RGB", size, actor.backdrop)
        draw_face(image, actor.looks, face)
        yield image


def write_mosei_video(folder, video):
    """Raw/Videos/Full/Combined/<id>.mp4 with sound, and most Raw/Audio/Full/WAV_16000/<id>.wav."""
    rng = np.random.default_rng(video.seed)
    seconds = video.starts_s[-1] + len(video.takes[-1].samples) / AUDIO_RATE_HZ + GAP_S[0]
    track, faces = render(video.takes, video.starts_s, seconds, video.actor, rng)
    if video.has_wav:
        write_pcm(
            folder / "Raw" / "Audio" / "Full" / "WAV_16000" / f"{video.place}.wav", track, AUDIO_RATE_HZ
        )
    write_movie(
        folder / "Raw" / "Videos" / "Full" / "Combined" / f"{video.place}.mp4",
        film(faces, video.actor, MOSEI_FRAME),
        MOSEI_FRAME,
        FPS,
        X264,
        (track, AUDIO_RATE_HZ, "mono", "aac"),
    )


def write_clips(folder, video):
    """dev/aac/<place>/NNNNN.m4a and dev/mp4/<place>/NNNNN.mp4, silent, of each clip."""
    rng = np.random.default_rng(video.seed)
    for number, take in enumerate(video.takes, 1):
        track, faces = render([take], [0.0], len(take.samples) / AUDIO_RATE_HZ, video.actor, rng)
        write_aac(folder / "dev" / "aac" / video.place / f"{number:05d}.m4a", track)
        write_movie(
            folder / "dev" / "mp4" / video.place / f"{number:05d}.mp4",
            film(faces, video.actor, VOXCELEB2_FRAME),
            VOXCELEB2_FRAME,
            FPS,
            X264,
            None,
        )


def write_aac(path, track):
    """Write a track (T,) as AAC in an MP4 container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = add_sound(container, AUDIO_RATE_HZ, "mono", "aac")
        container.mux(encode_sound(stream, track, AUDIO_RATE_HZ, "mono"))
