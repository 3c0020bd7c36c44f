"""Two synthetic corpora of people who talk into a camera, like CMU-MOSEI and VoxCeleb2 (README.md)."""

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from common.corpora.emodb import TEXTS
from common.demo.faces import Actor, draw_actor, film, set_face
from common.demo.sounds import RATE_HZ, draw_noise, loudness
from common.demo.speech import vox2_meta
from common.demo.text import choose, draw_name, sentences
from common.demo.voices import STRENGTH, set_voice, with_tremor
from common.demo.writing import Sound, draw_seed, write_corpus, write_m4a, write_movie, write_text, write_wav
from common.files import read_csv

# ---- The language -------------------------------------------------------------------------
FIELDS = defaultdict(dict)  # {emotion, "" = plain words: {"N", "V" or "A": words, the most frequent first}}
for _row in read_csv(Path(__file__).with_name("words.csv")):
    FIELDS[_row["field"]][_row["part"]] = _row["words"].split()
EMOTIONS = tuple(field for field in FIELDS if field)
PATTERNS = sentences()["pattern"]
OPENERS = ("well", "so", "um", "but", "okay", "zlatka", "and", "vlogwise")
FUNCTION_WORDS = sorted({*OPENERS, *(word for line in PATTERNS for word in line.split() if word[0] != "{")})
LEXICON = FUNCTION_WORDS + [word for parts in FIELDS.values() for words in parts.values() for word in words]
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
STYLE = dict(zip(("", *EMOTIONS), "neutral happy sad angry surprised disgust fearful".split(), strict=True))
SHOWS = {"voice": 0.75, "face": 0.70}
PACE = 1.30  # of the speaking rate
GERMAN_SHARE = 0.12  # clips of VoxCeleb2 in another language
SCORE, GERMAN_SCORE, SCORE_SD = -0.12, -0.9, 0.08  # mean log-probability of a word's letters
MISHEARD = {"voxceleb2": 0.08, "mosei": 0.29}  # word error rate; the paper's in MOSEI (Sec. 4.1)
SHORT_LETTERS, SHORT_ERRORS = 4, 3.0  # words of so many letters are misheard this much more often

# ---- Layout and media (FORMATS 2, 3) --------------------------------------------------------
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
    voice: dict  # for `speak`
    face: dict  # features at the height of the expression
    is_german: bool = False
    start_s: float = 0.0  # in its recording, once it is spoken
    end_s: float = 0.0
    words: tuple = ()  # (word, start_s, end_s), on the take's own clock


@dataclass
class Video:
    """One recording with all its takes; of VoxCeleb2 each take has files of its own."""

    place: str  # CMU-MOSEI: the id; VoxCeleb2: id00012/21Uxsk56VDQ
    actor: Actor
    takes: list
    seed: tuple  # of everything drawn after speaking
    has_wav: bool = True
    starts_early: bool = False  # its first segment begins with the recording

    @property
    def lines(self):
        return [(take.text, take.voice) for take in self.takes]


# ---- The two corpora --------------------------------------------------------------------------
def write_demo_mosei(root, seed, n_videos, segments_per_video, workers):
    """Write segments with emotions in CMU-MOSEI's layout below `root`; one video more is in no fold.

    Labels and languages (.csd), the SDK's folds, Raw with recordings and transcripts, GLOVE_FILE, and
    recognised_synthetic.csv: the words that a recogniser would hear, with times and a score.
    """
    rng = np.random.default_rng((seed, 8))
    ids = [*SPECIAL_IDS, *(draw_name(rng) for _ in range(n_videos + 1 - len(SPECIAL_IDS)))]
    videos = []
    for number, name in enumerate(ids):
        own = np.random.default_rng((seed, 8, number))
        actor = draw_actor(number, "en-us", own)
        n_segments = max(1, segments_per_video + int(own.integers(-2, 3)))
        takes = [plan_take("mosei", draw_emotions(MAIN, own), actor, own) for _ in range(n_segments)]
        video_seed, has_wav = draw_seed(own), bool(own.random() > WITHOUT_WAV)
        videos.append(Video(name, actor, takes, video_seed, has_wav, starts_early=number == 1))
    texts = {"cmu_mosei_std_folds.py": folds_text(ids[:-1], draw_name(rng)), GLOVE_FILE: glove_text(seed)}
    finish = partial(write_labels, rng=np.random.default_rng((seed, 11)))
    write_corpus(root, videos, write_mosei_video, workers, texts, finish)


def write_demo_voxceleb2_av(root, seed, n_speakers, clips_per_speaker, workers):
    """Write speech without labels in VoxCeleb2's layout below `root`: dev/aac, dev/mp4 and vox2_meta.csv.

    words.csv is no part of the genuine release: what a recogniser would hear, with times and a score.
    """
    videos, sexes = [], {}
    moods = dict.fromkeys(("", *EMOTIONS), 1)
    for number in range(n_speakers):
        rng = np.random.default_rng((seed, 9, number))
        identity = f"id{15 + 7 * number:05d}"
        actor = draw_actor(number, "en-us", rng)
        sexes[identity] = actor.sex
        for first in range(0, clips_per_speaker, CLIPS_PER_VIDEO):
            n_clips = min(CLIPS_PER_VIDEO, clips_per_speaker - first)
            drawn = [draw_emotions(moods, rng) for _ in range(n_clips)]
            takes = [plan_take("voxceleb2", emotions, actor, rng) for emotions in drawn]
            videos.append(Video(f"{identity}/{draw_name(rng)}", actor, takes, draw_seed(rng)))

    def finish(folder, heard):  # by video
        write_words(folder / "words.csv", [row for _, rows in sorted(heard) for row in rows])

    write_corpus(root, videos, write_clips, workers, {"vox2_meta.csv": vox2_meta(sexes)}, finish)


# ---- What is said and shown -------------------------------------------------------------------
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
    is_labelled, n_sentences = corpus == "mosei", SENTENCES_PER_CLIP
    if is_labelled:
        n_sentences = max(len(emotions), 1 + (rng.random() < TWO_SENTENCES))
    asked = [emotions[k % len(emotions)] if emotions else "" for k in range(n_sentences)]
    sentences = [draw_sentence(corpus, emotion, rng) for emotion in asked]
    shown = dict.fromkeys(SHOWS, "")  # none
    for modality, chance in SHOWS.items():
        if emotions and rng.random() < chance:
            shown[modality] = emotions[rng.integers(len(emotions))]
    expressiveness = actor.speaker.expressiveness, actor.face_expressiveness
    loud, strong = (own * rng.beta(*STRENGTH["strong"]) for own in expressiveness)
    voice = set_voice(actor.speaker, STYLE[shown["voice"]], loud, rng)
    voice["rate_wpm"] = round(PACE * voice["rate_wpm"])
    face = set_face(actor, STYLE[shown["face"]], strong, rng)
    is_german = not is_labelled and rng.random() < GERMAN_SHARE
    if is_german:
        bank = list(TEXTS.values())
        sentences = [bank[rng.integers(len(bank))].rstrip(".")]
        voice["name"] = voice["name"].replace("en-us", "de")
    return Take(emotions, ", ".join(sentences) + ".", voice, face, is_german)


def draw_sentence(corpus, emotion, rng):
    """A sentence of one who feels this emotion, "" = none; it is not always about that."""
    about = choose(ABOUT[corpus], rng)
    if about != "own":
        emotion = "" if about == "plain" else EMOTIONS[rng.integers(len(EMOTIONS))]
    pattern = PATTERNS[rng.integers(len(PATTERNS))]
    if rng.random() < OPENER_SHARE:
        pattern = f"{OPENERS[rng.integers(len(OPENERS))]} {pattern}"
    words = pattern.split()
    for k, blank in enumerate(words):
        if blank[0] == "{":  # {N}, {V} or {A}: a word of that part of speech
            field = FIELDS[emotion if rng.random() < IN_FIELD[corpus] else ""][blank[1]]
            words[k] = choose({word: 1 / (rank + RARITY) for rank, word in enumerate(field)}, rng)
    return " ".join(words)


# ---- Word vectors -----------------------------------------------------------------------------
def glove_text(seed):
    """The lines of a GloVe file with a vector for all words but NO_VECTOR, and two of the oddities of 840B.

    A vector is the sum of what its part of speech shares, what its field shares, and what is its own.
    """
    rng = np.random.default_rng((seed, 10))
    kinds = {(field, part): words for field, parts in FIELDS.items() for part, words in parts.items()}
    kinds["", "function"] = FUNCTION_WORDS
    of_part = {part: draw_direction(rng) for part in ("N", "V", "A", "function")}
    of_field = {field: draw_direction(rng) for field in FIELDS}
    own = 1 - sum(SHARED.values())
    vectors = {
        word: np.sqrt(SHARED["part"]) * of_part[part]
        + np.sqrt(SHARED["field"]) * of_field[field]
        + np.sqrt(own) * draw_direction(rng)
        for (field, part), words in kinds.items()
        for word in words
    }
    lines = [(word, vector) for word, vector in vectors.items() if word not in NO_VECTOR]
    order = rng.permutation(len(lines))
    # A token with blanks, and one that is there twice, of which the first counts.
    lines = [(". . .", draw_direction(rng)), *(lines[k] for k in order), ("happy", draw_direction(rng))]
    rows = ((word, *(f"{value:.4f}" for value in GLOVE_NORM * vector)) for word, vector in lines)
    return "".join(" ".join(row) + "\n" for row in rows)


def draw_direction(rng):
    """A random vector of length 1 or nearly so."""
    return rng.standard_normal(GLOVE_DIM) / np.sqrt(GLOVE_DIM)


# ---- The recogniser ---------------------------------------------------------------------------
def mishear(take, error_rate, rng):
    """[(word, start_s, end_s, score)]: what a recogniser makes of a take, most errors in short words."""
    heard = []
    if take.is_german:
        for _, start_s, end_s in take.words:
            word = LEXICON[rng.integers(len(LEXICON))]
            heard.append((word, start_s, end_s, GERMAN_SCORE + SCORE_SD * rng.standard_normal()))
        return heard
    is_short = np.array([len(word) <= SHORT_LETTERS for word, _, _ in take.words])
    weights = np.where(is_short, SHORT_ERRORS, 1.0)
    chances = np.minimum(error_rate * weights / weights.mean(), 0.9)
    for (word, start_s, end_s), short, chance in zip(take.words, is_short, chances, strict=True):
        wrong, score = rng.random() < chance, SCORE - abs(SCORE_SD * rng.standard_normal())
        if wrong and short and rng.random() < 0.3:
            continue  # not heard at all
        if wrong:
            alike = [other for other in LEXICON if other != word and (len(other) <= SHORT_LETTERS) == short]
            word, score = alike[rng.integers(len(alike))], 3 * score
        heard.append((word, start_s, end_s, score))
    return heard


def write_words(path, rows):
    """Write words.csv with a score: rows (utterance_id, word, start_s, end_s, score)."""
    lines = ["{},{},{:.3f},{:.3f},{:.4f}\n".format(*row) for row in rows]
    write_text(path, "".join(["utterance_id,word,start_s,end_s,score\n", *lines]))


# ---- Labels, words and transcripts of CMU-MOSEI -----------------------------------------------
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


def write_labels(folder, videos, rng):
    """The csd files, whose label rows are not in order of time, transcripts and recognised_synthetic.csv."""
    labels, words, heard = {}, {}, []
    for video in videos:
        takes = video.takes
        spans_s = [(take.start_s - MARGIN_S, take.end_s + MARGIN_S) for take in takes]
        scores = [annotate(take.emotions, rng) for take in takes]
        order = rng.permutation(len(takes))
        labels[video.place] = np.array([scores[k] for k in order]), np.array([spans_s[k] for k in order])
        words[video.place] = words_with_silence(takes)
        write_transcripts(folder / "Raw" / "Transcript", video, spans_s)
        for row, k in enumerate(order):
            shift_s = takes[k].start_s - max(0.0, spans_s[k][0])
            for word, start_s, end_s, score in mishear(takes[k], MISHEARD["mosei"], rng):
                heard.append((f"{video.place}[{row}]", word, start_s + shift_s, end_s + shift_s, score))
    write_csd(folder / "labels" / "CMU_MOSEI_Labels.csd", "All Labels", labels)
    write_csd(folder / "languages" / "CMU_MOSEI_TimestampedWords.csd", "words", words)
    write_words(folder / "recognised_synthetic.csv", heard)


def words_with_silence(takes):
    """(features (W, 1) bytes, intervals (W, 2)) of a video's words and the silences between its segments."""
    rows, now_s = [], 0.0
    for take in takes:
        if take.start_s > now_s:
            rows.append((b"sp", now_s, take.start_s))
        for word, start_s, end_s in take.words:
            rows.append((word.encode(), take.start_s + start_s, take.start_s + end_s))
        now_s = rows[-1][2]
    return np.array([[word] for word, _, _ in rows]), np.array([times for _, *times in rows])


def write_csd(path, root_name, entries):
    """Write a computational sequence: {video id: (features, intervals)}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for entry, (features, intervals) in entries.items():
            file[f"{root_name}/data/{entry}/features"] = features
            file[f"{root_name}/data/{entry}/intervals"] = intervals
        file[f"{root_name}/metadata/root name"] = np.array([f'"{root_name}"'], dtype=h5py.string_dtype())


def write_transcripts(folder, video, spans_s):
    """Segmented/Combined/<id>.txt, a line per segment with clip number and times; Full/Combined/<id>.txt."""
    texts = [take.text[0].upper() + take.text[1:] for take in video.takes]
    lines = [
        f"{video.place}___{clip}___{start_s:.4f}___{end_s:.4f}___{text}"
        for clip, ((start_s, end_s), text) in enumerate(zip(spans_s, texts, strict=True))
    ]
    write_text(folder / "Segmented" / "Combined" / f"{video.place}.txt", "\n".join(lines) + "\n")
    write_text(folder / "Full" / "Combined" / f"{video.place}.txt", " ".join(texts) + "\n")


def folds_text(ids, absent):
    """The SDK's file of folds; the test fold lists one video that is not there, as the genuine one does."""
    ends = np.round(len(ids) * np.cumsum(list(FOLDS.values()))).astype(int)
    parts = [part.tolist() for part in np.split(np.array(ids, object), ends[:-1])]
    parts[-1].append(absent)
    return "".join(f"standard_{name}_fold={part!r}\n" for name, part in zip(FOLDS, parts, strict=True))


# ---- Recordings -------------------------------------------------------------------------------
def place_take(take, said, start_s):
    """Note when a take and its words are said, from its Speech."""
    take.start_s, take.end_s = start_s, start_s + said.seconds
    words, starts_s = [word.strip(".,?!").lower() for word in take.text.split()], said.starts_s.tolist()
    take.words = tuple(zip(words, starts_s, [*starts_s[1:], said.seconds], strict=True))


def render(takes, speech, seconds, actor, rng):
    """(the sound (T,), the face as `film` wants it) of takes placed in a recording."""
    track = np.zeros(round(seconds * RATE_HZ))
    n_frames = max(1, round(seconds * FPS))
    times_s = np.arange(n_frames) / float(FPS)
    face = {name: np.full(n_frames, rest) for name, rest in (*actor.habit.items(), ("open", 1.0))}
    for take, said in zip(takes, speech, strict=True):
        first = round(take.start_s * RATE_HZ)
        samples = with_tremor(said.samples, said.voice, rng)[: len(track) - first]
        track[first : first + len(samples)] = samples
        shown = (times_s >= take.start_s) & (times_s < take.end_s)
        for name, value in take.face.items():
            face[name][shown] = value + actor.habit.get(name, 0.0)
    face["open"] *= loudness(track, times_s, 0.10)
    face["eyes"] = np.maximum(face["eyes"], -1.0)
    sway = np.cumsum(0.4 * rng.standard_normal((n_frames, 2)), axis=0)
    face["sway_x"], face["sway_y"] = np.clip(sway + rng.normal(0, 1.5, 2), -6, 6).T
    return track + draw_noise(len(track), actor.noise_colour, NOISE_RMS, rng), face


def write_mosei_video(folder, video, speech):
    """Raw/Videos/Full/Combined/<id>.mp4 with sound, and most Raw/Audio/Full/WAV_16000/<id>.wav; the Video."""
    rng, gaps, now_s = np.random.default_rng(video.seed), np.random.default_rng((*video.seed, 2)), 0.0
    for number, (take, said) in enumerate(zip(video.takes, speech, strict=True)):
        now_s += 0.0 if video.starts_early and number == 0 else gaps.uniform(*GAP_S)
        place_take(take, said, now_s)
        now_s += said.seconds
    track, face = render(video.takes, speech, take.end_s + GAP_S[0], video.actor, rng)
    if video.has_wav:
        write_wav(folder / "Raw" / "Audio" / "Full" / "WAV_16000" / f"{video.place}.wav", track)
    path = folder / "Raw" / "Videos" / "Full" / "Combined" / f"{video.place}.mp4"
    write_movie(path, film(video.actor.looks, face, MOSEI_FRAME), FPS, sound=Sound(track))
    return video


def write_clips(folder, video, speech):
    """dev/aac/<place>/NNNNN.m4a and dev/mp4/<place>/NNNNN.mp4, silent, of each clip; (place, words heard)."""
    rng, ears, heard = np.random.default_rng(video.seed), np.random.default_rng((*video.seed, 1)), []
    for number, (take, said) in enumerate(zip(video.takes, speech, strict=True), 1):
        place_take(take, said, 0.0)
        track, face = render([take], [said], take.end_s, video.actor, rng)
        write_m4a(folder / "dev" / "aac" / video.place / f"{number:05d}.m4a", Sound(track))
        path = folder / "dev" / "mp4" / video.place / f"{number:05d}.mp4"
        write_movie(path, film(video.actor.looks, face, VOXCELEB2_FRAME), FPS)
        name = f"{video.place.replace('/', '_')}_{number:05d}"
        heard += [(name, *row) for row in mishear(take, MISHEARD["voxceleb2"], ears)]
    return video.place, heard
