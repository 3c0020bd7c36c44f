"""What 07 reads: clips of a prepared corpus, who trains and tests, emotions, words and their vectors, inputs left out.

CMU-MOSEI has several emotions per clip and official folds. Any other prepared corpus has one label per clip, which is
one emotion of as many as it has classes, present or not; its folds are its official split, else one by speaker.
N clips, E emotions, V words.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import splits
from common.corpora import mosei
from common.errors import UserError
from common.khare.features import PUNCTUATION, Recogniser, Source, Transcripts, WordsFile, find_row
from common.khare.glove import coverage, read_glove
from common.khare.model import MODALITIES

WORD_DIM = 300  # of GloVe (Sec. 3.1)


# ---- Emotions and folds --------------------------------------------------------------------


def is_multilabel(manifest):
    """Whether turns carry a score for each of MOSEI's emotions instead of one label."""
    return all(name in manifest.turns[0].extra for name in mosei.EMOTIONS)


def emotions_of(manifest):
    """Names (E,) of the emotions that are told apart."""
    return mosei.EMOTIONS if is_multilabel(manifest) else tuple(manifest.classes)


def targets_of(manifest, turns):
    """(N, E) bool: which emotions are present; of MOSEI those with a score above 0 (Sec. 3.1)."""
    names = emotions_of(manifest)
    found = [mosei.emotions_of(turn) if is_multilabel(manifest) else [turn.label] for turn in turns]
    return np.array([[name in present for name in names] for present in found], bool).reshape(-1, len(names))


def fold_of(manifest, n_groups):
    """The splits.Fold: official, else the last of n_groups groups of speakers tests and the last but one validates."""
    if not is_multilabel(manifest):
        return splits.model_choice_split(manifest, n_groups)
    parts = [[turn for turn in manifest.turns if turn.extra.get("split") == name] for name in splits.OFFICIAL]
    for name, turns in zip(splits.OFFICIAL, parts):
        if not turns:
            raise UserError(
                f"{manifest.folder}/manifest.csv: no segment of the {name} fold; prepare the whole corpus"
            )
    seen = Counter(video for turns in parts for video in splits.speakers_of(turns))
    assert max(seen.values()) == 1, "a video is in two folds"
    return splits.Fold("official", *parts)


def protocol_text(manifest, n_groups):
    """The protocol in one phrase, for tables."""
    if is_multilabel(manifest):
        return "official folds by video, epoch chosen on the dev fold"
    return splits.choice_protocol_text(manifest, n_groups)


# ---- Pretraining ---------------------------------------------------------------------------


def own_turns(manifest, fold):
    """(training, held-out) turns of a corpus that is pretrained on itself: those of its train and dev parts.

    Turns without a label train too, but only of speakers (in an official split: of the part) that the fold trains on.
    """
    labelled = {turn.utterance_id for part in (fold.train, fold.valid, fold.test) for turn in part}
    train, rest = list(fold.train), [turn for turn in manifest.turns if turn.utterance_id not in labelled]
    if splits.has_official_split(manifest):
        train += [turn for turn in rest if turn.extra.get("split") == "train"]
    else:
        speakers = set(splits.speakers_of(fold.train))
        train += [turn for turn in rest if turn.speaker in speakers]
    return train, list(fold.valid)


def other_turns(manifest, share, seed, kept_out):
    """(training, held-out) turns of another corpus to pretrain on, `share` of its speakers being held out.

    kept_out  names of videos that are validated and tested: a clip of one of them is left out. VoxCeleb2 and CMU-MOSEI
              are both from YouTube, and their ids hold YouTube's
    """
    turns = [
        turn for turn in manifest.turns if turn.dialogue_id.removeprefix(f"{turn.speaker}_") not in kept_out
    ]
    if len(turns) < len(manifest.turns):
        print(
            f"  {manifest.corpus}: {len(manifest.turns) - len(turns):,} clips of videos that validate or test are "
            "left out"
        )
    speakers = splits.speakers_of(turns)
    if len(speakers) < 2:
        raise UserError(
            f"{manifest.folder}/manifest.csv: {len(speakers)} speakers to pretrain on; two are needed"
        )
    n_aside = min(max(1, round(share * len(speakers))), len(speakers) - 1)
    aside = {speakers[i] for i in np.random.default_rng((seed, 7)).permutation(len(speakers))[:n_aside]}
    return (
        [turn for turn in turns if turn.speaker not in aside],
        [turn for turn in turns if turn.speaker in aside],
    )


# ---- Clips ---------------------------------------------------------------------------------


def sources_of(manifest, turns, with_video):
    """The Source of each turn: its span of the recording, and the words that 01 has prepared.

    These are words.csv (with times) where the corpus has one, else the turn's own text (without); a turn of a corpus
    that has neither gets None, and is left to a recogniser or a transcript.
    """
    path = manifest.folder / "words.csv"
    timed = mosei.read_words(manifest.folder) if path.exists() else None
    has_text = any(turn.text for turn in manifest.turns)
    sources = []
    for turn in turns:
        start_s, end_s = mosei.recording_span(turn)
        if start_s is None:
            start_s, end_s = 0.0, None if turn.audio or turn.video else max(0.0, turn.duration_s)
        words = (
            timed.get(turn.utterance_id, [])
            if timed is not None
            else ([(word, None, None) for word in turn.text.split()] if has_text else None)
        )
        audio, video = (str(manifest.path(path)) if path else "" for path in (turn.audio, turn.video))
        keeps_video = with_video or not audio  # else its sound would be lost with it
        sources.append(Source(turn.utterance_id, audio, video if keeps_video else "", start_s, end_s, words))
    return sources


def open_words(name, data_root, device, precision):
    """What gives words to clips that have none: a csv, a folder of transcripts, or a recogniser; None for "".

    name  a CSV file utterance_id,word,start_s,end_s; a folder of <clip>.csv or .txt; else a CTC model of transformers,
          a hub name or its folder (which holds a config.json). A path is looked for here, then in data_root
    Raises UserError where a CSV file is not there; what is no file at all is taken for a hub name.
    """
    if not name:
        return None
    path = next((place for place in (Path(name), Path(data_root) / name) if place.exists()), None)
    if path is not None and path.is_file():
        return WordsFile(path)
    if path is not None and not (path / "config.json").exists():
        return Transcripts(path)
    if path is None and name.endswith(".csv"):
        raise UserError(f"{name}: no such file, neither here nor in {data_root}; correct the path")
    return Recogniser(name if path is None else str(path), device, precision)


@dataclass
class Part:
    """Clips of one part of the split that the store has: turns, their rows in it, emotions (N, E) bool."""

    turns: list
    rows: np.ndarray
    targets: np.ndarray

    def __len__(self):
        return len(self.turns)

    @property
    def speakers(self):
        return np.array([turn.speaker for turn in self.turns])


def modalities_of(store, rows):
    """Those of MODALITIES that any of some clips has."""
    counts = {"text": store.n_words, "audio": store.audio_rows, "video": store.video_rows}
    return tuple(name for name in MODALITIES if counts[name][rows].any())


def only(batch, inputs):
    """A batch without the modalities that are not in `inputs`, features and lengths."""
    out = [name for name in MODALITIES if name not in inputs]
    return {
        key: value
        for key, value in batch.items()
        if key not in out and key.removesuffix("_length") not in out
    }


# ---- Words and their vectors ---------------------------------------------------------------


def word_form(word):
    """The spelling by which words are looked up and counted: lower case, without punctuation around it."""
    return word.strip(PUNCTUATION).lower()


class Vectors:
    """Vectors (words, 300) of all words of some stores, and `row_of` {word: row} for khare_features.Clips.

    glove  file of GloVe vectors; "" = a random vector for every word, seeded by its spelling, where GloVe is not at
           hand: a word then has no neighbours in meaning
    cache  folder for what is read from the file
    """

    def __init__(self, stores, glove, cache):
        counts = Counter()
        for store in stores:
            for word, count in zip(store.vocabulary, store.counts.tolist()):
                counts[word_form(word)] += count
        counts.pop("", None)
        self.words = tuple(sorted(counts))
        if glove:
            found = read_glove(glove, self.words, WORD_DIM, cache)
            self.vectors, self.note = found.vectors, str(coverage(found, counts))
        else:
            self.vectors = (
                np.stack([random_vector(word) for word in self.words])
                if self.words
                else np.zeros((1, WORD_DIM), np.float32)
            )
            self.note = "word vectors are random, without GloVe"
        self.row_of = {word: row for row, word in enumerate(self.words) if self.vectors[row].any()}

    def identity(self, store):
        """A hash of the vectors of one store's words."""
        rows = sorted({find_row(word, self.row_of) for word in store.vocabulary} - {-1})
        digest = hashlib.sha256(repr([self.words[row] for row in rows]).encode())
        digest.update(np.ascontiguousarray(self.vectors[rows]).tobytes())
        return digest.hexdigest()[:16]


def random_vector(word):
    """(300,) float32 for a word, seeded by its spelling; its numbers have a deviation of 0.4, about that of GloVe's."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).normal(0, 0.4, WORD_DIM).astype(np.float32)


def count_vocabulary(store, rows, vectors):
    """(words, counts (V,)) that occur in some clips and have a vector, the most frequent first (Section 3.1)."""
    counts = np.zeros(len(store.vocabulary), np.int64)
    for i in rows:
        np.add.at(counts, store.word_ids(i)[0], 1)
    found = Counter()
    for number in np.flatnonzero(counts):
        row = find_row(store.vocabulary[number], vectors.row_of)
        if row >= 0:
            found[vectors.words[row]] += int(counts[number])
    order = sorted(found, key=lambda word: (-found[word], word))
    return order, np.array([found[word] for word in order], np.int64)


def spoken_words(store, clip_ids):
    """The words of clips as lists in one spelling, for the word error rate; [] where the store lacks a clip."""
    found = []
    for clip_id in clip_ids:
        try:
            words = store.words(store.row_of(str(clip_id)))
        except KeyError:
            words = []
        found.append([form for form in (word_form(word) for word, *_ in words) if form])
    return found
