"""What 07 reads: parts of a prepared corpus, emotions, clips as a data set, statistics, vocabulary.

CMU-MOSEI has several emotions per clip and official folds. Any other prepared corpus has one label per clip,
which is one emotion of as many as it has classes, present or not; its folds are its official split, else by
speaker. B clips, W words, T_a audio steps, T_v video frames, E emotions; N clips of a part.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import edit_distance

from common import splits
from common.corpora import mosei
from common.files import UserError, hash_of
from common.khare.features import ARRAYS, AUDIO_DIM, AUDIO_STEP_S, FACTS, VIDEO_DIM, Source
from common.khare.words import MARKS, Vectors, WordsFile, tokens_of
from common.store import Store, rows_of

PAPER_CASES = ("HeZS2-Prhc[8]", "10219[11]", "-9y-fZ3swSY[1]")  # of Sec. 4.2: video[number in its transcript]
NO_TARGET = -100  # what cross-entropy passes over
MEASURED = 10_000  # clips whose features give mean and deviation


# ---- Emotions and parts --------------------------------------------------------------------


def is_multilabel(manifest):
    """Whether turns carry a score for each of MOSEI's emotions instead of one label."""
    return all(name in manifest.turns[0].extra for name in mosei.EMOTIONS)


def emotions_of(manifest):
    """Names (E,) of the emotions that are told apart."""
    return mosei.EMOTIONS if is_multilabel(manifest) else tuple(manifest.classes)


def targets_of(manifest, turns):
    """(N, E) bool: which emotions are present; of MOSEI those with a score above 0 (Sec. 3.1)."""
    several, names = is_multilabel(manifest), emotions_of(manifest)
    present = [mosei.emotions_of(turn) if several else [turn.label] for turn in turns]
    return np.array([[name in those for name in names] for those in present])


def fold_of(manifest, n_groups):
    """The splits.Fold: official, else the last of n_groups groups of speakers tests, one validates."""
    if not is_multilabel(manifest):
        return splits.model_choice_split(manifest, n_groups)
    parts = [[turn for turn in manifest.turns if turn.extra.get("split") == name] for name in splits.OFFICIAL]
    if empty := [name for name, turns in zip(splits.OFFICIAL, parts) if not turns]:
        path = f"{manifest.folder}/manifest.csv"
        raise UserError(f"{path}: no segment of the {empty[0]} fold; prepare the whole corpus")
    seen = Counter(video for turns in parts for video in splits.speakers_of(turns))
    assert max(seen.values()) == 1, "a video is in two folds"
    return splits.Fold("official", *parts)


def protocol_text(manifest):
    """The protocol in one phrase, for tables."""
    if is_multilabel(manifest):
        return "official folds by video, epoch chosen on the dev fold"
    return splits.protocol_text(manifest)


def find_cases(names, turns):
    """The ids of the clips that CASES names, or of those of the paper's three that are among the turns.

    Raises UserError for a name that is neither a clip's id nor <video>[its number in the transcript].
    """
    numbers = {turn.utterance_id: turn.utterance_id for turn in turns} if names else {}
    for turn in turns:  # the paper leaves out a dash at the beginning
        video, number = turn.extra.get("video_id", ""), turn.extra.get("clip", "")
        for name in (video, video.removeprefix("-")):
            numbers.setdefault(f"{name}[{number}]", turn.utterance_id)
    if unknown := [name for name in names if name not in numbers]:
        raise UserError(f"CASES={','.join(unknown)}: no such clip in the test part; see predictions.csv")
    return [numbers[name] for name in names or PAPER_CASES if name in numbers]


# ---- Pretraining (Section 3.1) ------------------------------------------------------------


def other_turns(manifest, share, seed, fold):
    """{"train", "valid": turns} of another corpus to pretrain on, `share` of its speakers being held out.

    Only the development part of VoxCeleb2 is used (Sec. 3.1). Clips of videos that the fold validates or
    tests on are left out: VoxCeleb2 and CMU-MOSEI are both from YouTube, and their ids hold YouTube's.
    """
    tested = {turn.dialogue_id for part in (fold.valid, fold.test) for turn in part}
    turns = [turn for turn in manifest.turns if turn.extra.get("set") != "test"]
    kept = [turn for turn in turns if turn.dialogue_id.removeprefix(f"{turn.speaker}_") not in tested]
    n_test, n_same = len(manifest.turns) - len(turns), len(turns) - len(kept)
    print(f"  {manifest.corpus}: left out {n_test:,} test clips, {n_same:,} of videos that validate or test")
    speakers = splits.speakers_of(kept)
    if len(speakers) < 2:
        path = f"{manifest.folder}/manifest.csv"
        raise UserError(f"{path}: {len(speakers)} speakers to pretrain on; two are needed")
    n_held_out = min(max(1, round(share * len(speakers))), len(speakers) - 1)
    order = np.random.default_rng((seed, 7)).permutation(len(speakers))
    held_out = {speakers[i] for i in order[:n_held_out]}
    train = [turn for turn in kept if turn.speaker not in held_out]
    return {"train": train, "valid": [turn for turn in kept if turn.speaker in held_out]}


def english(store, parts, min_score):
    """Parts {name: turns} without clips that have no words, or whose words are not English (Section 3.1).

    min_score  mean log-probability; clips without a score stay. The paper's threshold, on another scale, left
               978 k of 1,092 k clips
    """
    kept = ~(store["facts"][:, FACTS.index("score")] < min_score)
    print(f"  {kept.sum():,} of {len(store):,} clips score {min_score:g} or more, or have no score")
    kept &= store.spans("word_times")[1] > 0
    ids = {name for name, keep in zip(store.ids, kept) if keep}
    found = {name: [turn for turn in turns if turn.utterance_id in ids] for name, turns in parts.items()}
    if not all(found.values()):
        what = f"MIN_SCORE={min_score:g}: no clip with words is left to the masked language model"
        raise UserError(f"{what}; give TRANSCRIPTS, or lower MIN_SCORE")
    return found


# ---- Clips ---------------------------------------------------------------------------------


def sources_of(manifest, turns, with_video, with_words=True):
    """The Source of each of some turns: its span of the recording, and its words.

    These are words.csv (with times) where the corpus has one, else the turn's own text (without). A turn of a
    corpus that has neither, and all without `with_words`, are left to a recogniser or a transcript.
    """
    path, has_text, sources = manifest.folder / "words.csv", any(t.text for t in manifest.turns), []
    timed = WordsFile(path) if path.exists() else None
    for turn in turns:
        words, start_s, end_s = None, 0.0, None
        if with_words and timed:
            words, _ = timed.words(turn.utterance_id)
        elif with_words and has_text:
            words = [(word, None, None) for word in turn.text.split()]
        if turn.extra.get("video_id"):  # of CMU-MOSEI: a part of a longer recording
            start_s, end_s = turn.start_s, turn.end_s
        elif not turn.audio and not turn.video:
            end_s = max(0.0, turn.duration_s)
        audio, video = (str(manifest.path(path)) if path else "" for path in (turn.audio, turn.video))
        keeps_video = with_video or not audio  # else its sound would be lost with it
        sources.append(Source(turn.utterance_id, audio, video if keeps_video else "", start_s, end_s, words))
    return sources


def words_of(store, clip_id):
    """The words of a clip as they are written; [] where the store lacks it."""
    text = store.rows(clip_id, "words").tobytes().decode() if clip_id in store else ""
    return text.split("\n")[:-1]


def tokens_in(store, clip_id):
    """The tokens of a clip; [] where the store lacks it."""
    return [token for word in words_of(store, clip_id) for token in tokens_of(word)]


def count_tokens(store, ids):
    """How often each token occurs in some clips."""
    return Counter(token for clip_id in ids for token in tokens_in(store, clip_id))


def word_error_rate(ids, reference, recognised):
    """Word edits by the number of words (Section 4.1), without punctuation, of clips in two stores."""
    edits = n_words = 0
    for clip_id in ids:
        tokens = (tokens_in(store, clip_id) for store in (reference, recognised))
        spoken, found = ([token for token in own if token not in MARKS] for own in tokens)
        edits, n_words = edits + edit_distance(spoken, found), n_words + len(spoken)
    return edits / max(1, n_words)


@dataclass
class Part:
    """Clips of one part of a split: their ids, speakers, and emotions (N, E) bool."""

    ids: list
    speakers: np.ndarray
    targets: np.ndarray


@dataclass
class Corpus:
    """The features of a corpus and who trains on them."""

    name: str
    emotions: tuple  # names (E,)
    store: Store
    parts: dict  # {"train", "valid", "test": Part}, without "test" where nothing is tested
    inputs: tuple  # the modalities that its training clips have
    stats: dict  # `statistics` of its training clips
    vectors: Vectors | None = None
    numbers: dict = field(default_factory=dict)  # {token: its number} of the V that are predicted
    counts: np.ndarray | None = None  # (V,) of these, falling
    widths: dict = field(default_factory=dict)  # {modality: numbers of a step}, of any corpus of the run

    def identity(self):
        """What trainings on it depend on; JSON-ready."""
        parts = {name: hash_of([part.ids, part.targets.tolist()]) for name, part in self.parts.items()}
        words = hash_of([self.numbers, self.counts.tolist()]), self.vectors.identity
        return [hash_of(self.store.meta), parts, words]

    def count_known(self, part):
        """How often each token with a vector occurs in a part."""
        counts = count_tokens(self.store, self.parts[part].ids)
        return Counter({token: n for token, n in counts.items() if token in self.vectors.row_of})


def give_vectors(corpora, recognised, glove, cache):
    """Give Corpora the vectors of all their words, and the vocabulary of their training clips (Section 3.1).

    recognised  a store of more words, or None; glove, cache: see words.Vectors
    """
    stores = [corpus.store for corpus in corpora] + [recognised] * bool(recognised)
    vectors = Vectors(sum((count_tokens(store, store.ids) for store in stores), Counter()), glove, cache)
    print(f"  words     {vectors.note}")
    widths = {"text": vectors.vectors.shape[1], "audio": AUDIO_DIM, "video": VIDEO_DIM}
    there = {name for corpus in corpora for name in corpus.inputs}
    for corpus in corpora:
        corpus.widths = {name: n for name, n in widths.items() if name in there}
        corpus.vectors = vectors
        found = corpus.count_known("train")
        order = sorted(found, key=lambda token: (-found[token], token))
        corpus.numbers = {token: number for number, token in enumerate(order)}
        corpus.counts = np.array([found[token] for token in order], np.int64)


def tfidf_logits(corpus):
    """(1, N, E) for the test part, by a linear classifier of TF-IDF words, balanced as the loss of 07 is."""
    train, test = ([tokens_in(corpus.store, i) for i in corpus.parts[name].ids] for name in ("train", "test"))
    each = OneVsRestClassifier(LogisticRegression(class_weight="balanced", max_iter=1000))
    model = make_pipeline(TfidfVectorizer(analyzer=list, sublinear_tf=True), each)
    return model.fit(train, corpus.parts["train"].targets.astype(int)).decision_function(test)[None]


def vocabulary_facts(corpus):
    """What tables say of a pretraining corpus, and how well word frequencies alone find its words."""
    held_out = corpus.count_known("valid")
    n = np.array([held_out[token] for token in corpus.numbers])  # (V,)
    surprise = -np.log(corpus.counts / corpus.counts.sum())
    facts = {"corpus": corpus.name, "vocabulary": len(corpus.numbers), "majority": float(n[0] / n.sum())}
    facts |= {"clips": len(corpus.parts["train"].ids), "held_out": len(corpus.parts["valid"].ids)}
    return facts | {"unigram_perplexity": float(np.exp((n * surprise).sum() / n.sum()))}


def corpus_of(manifest, store, parts, modalities):
    """The Corpus of some parts {name: turns}, as far as the store and some modalities go."""
    found = {}
    for name, turns in parts.items():
        turns, _ = rows_of(store, turns)
        if not turns:
            raise UserError(f"{store.folder}: no clip of the {name} part could be read; see its problems.csv")
        ids, speakers = [turn.utterance_id for turn in turns], np.array([turn.speaker for turn in turns])
        found[name] = Part(ids, speakers, targets_of(manifest, turns))
    train = found["train"].ids
    there = [name for name, array in ARRAYS.items() if any(store.length(i, array) for i in train)]
    inputs = tuple(name for name in there if name in modalities)
    return Corpus(manifest.corpus, emotions_of(manifest), store, found, inputs, statistics(store, train))


def statistics(store, ids):
    """{"audio", "video": (mean (D,), sd (D,))} of every number of a step, over up to MEASURED of some clips.

    A number that never varies, as of a unit of VGG-16 that is never active, gets a deviation of 1.
    """
    found = {}
    for name in ("audio", "video"):
        count, total, squares = 0, 0.0, 0.0
        for clip_id in ids[:: -(-len(ids) // MEASURED)]:
            x = store.rows(clip_id, name).astype(np.float64)  # (S, D)
            count, total, squares = count + len(x), total + x.sum(0), squares + (x * x).sum(0)
        mean = total / max(1, count)
        sd = np.sqrt(np.maximum(0, squares / max(1, count) - mean**2))
        found[name] = mean.astype(np.float32), np.where(sd > 1e-4, sd, 1).astype(np.float32)
    return found


class Clips:
    """Clips of a part as a data set for `training`.

    corpus      Corpus. Audio and video become of zero mean and unit variance here, so that the zeros of
                padding and of masked words are what a model sees
    inputs      the modalities that its batches have; of the others no clip has a step
    max_s       seconds of a clip that are taken, so that one long clip does not fill the memory; 0 = all
    change      change(clip, random numbers) -> clip, such as one with masked words, or None
    words_from  another store to take the words from, such as recognised ones; a clip that it lacks has none
    """

    def __init__(self, corpus, part, inputs, max_s, change=None, words_from=None):
        part = corpus.parts[part]
        self.ids, self.labels = part.ids, part.targets
        self.corpus, self.store, self.inputs, self.change = corpus, corpus.store, inputs, change
        self.word_store = self.store if words_from is None else words_from
        self.max_s = max_s or 1e6
        self.step_s = {"audio": AUDIO_STEP_S, "video": self.store.meta["video_step_s"]}
        self.limits = {name: max(1, round(self.max_s / step_s)) for name, step_s in self.step_s.items()}
        rows = [self.store.positions[clip_id] for clip_id in self.ids]
        self.lengths = np.zeros(len(self.ids), np.int64)  # by which batches are made
        for name in inputs:
            n_steps = self.store.spans(ARRAYS[name])[1][rows]
            self.lengths += np.minimum(n_steps, self.limits.get(name, n_steps))

    def __len__(self):
        return len(self.ids)

    def words(self, index):
        """(tokens, their times (W, 2)) of a clip, without those that have no vector."""
        store, clip_id, found = self.word_store, self.ids[index], []
        if "text" in self.inputs and clip_id in store:
            times = store.rows(clip_id, "word_times").tolist()
            for word, (start, end) in zip(words_of(store, clip_id), times):
                known = [token for token in tokens_of(word) if token in self.corpus.vectors.row_of]
                if not start >= self.max_s:
                    found += [(token, end if token in MARKS else start, end) for token in known]
        return [x[0] for x in found], np.array([x[1:] for x in found], np.float32).reshape(-1, 2)

    def __getitem__(self, key):
        """key: (index, seed of what `change` draws, None = always the same) -> dict of a clip's arrays."""
        index, seed = key
        words, times = self.words(index)
        vectors, numbers = self.corpus.vectors, self.corpus.numbers
        rows = np.array([vectors.row_of[word] for word in words], np.int64)
        word_ids = np.array([numbers.get(word, -1) for word in words], np.int64)
        clip = {"text": vectors.vectors[rows], "word_ids": word_ids, "word_times": times}
        clip |= {"step_s": self.step_s, "labels": self.labels[index]}
        for name, (mean, sd) in self.corpus.stats.items():
            n_steps = self.limits[name] if name in self.inputs else 0
            clip[name] = np.array(self.store.rows(self.ids[index], name)[:n_steps], np.float32)
            clip[name] -= mean
            clip[name] /= sd
        return self.change(clip, np.random.default_rng(seed or (0, index))) if self.change else clip

    def collate(self, clips):
        """A batch of clips, padded to the longest and to one step at least.

        "text" (B, W, 300), "audio" (B, T_a, 200), "video" (B, T_v, 4096) float32, 0 where padded, with
        "text_length", "audio_length", "video_length" (B,), 0 = the clip lacks it; "labels" (B, E); of masked
        clips also "hidden" (B, H), the places of the hidden words, and "targets" (B, H), their numbers,
        NO_TARGET where padded.
        """
        batch = {"labels": torch.from_numpy(np.stack([clip["labels"] for clip in clips]))}
        for name in (*ARRAYS, "hidden", "targets"):
            if name in clips[0]:
                parts = [torch.from_numpy(clip[name]) for clip in clips]
                one = parts[0].new_zeros((1, *parts[0].shape[1:]))  # one step at least
                batch[name] = pad_sequence([*parts, one], True, NO_TARGET if name == "targets" else 0)[:-1]
        lengths = {f"{name}_length": torch.tensor([len(clip[name]) for clip in clips]) for name in ARRAYS}
        return batch | lengths
