"""What 07 reads: parts of a prepared corpus, emotions, clips as a data set, statistics, vocabulary.

CMU-MOSEI has several emotions per clip and official folds. Any other prepared corpus has one label per clip,
which is one emotion of as many as it has classes, present or not; its folds are its official split, else by
speaker. B clips, W words, T_a audio steps, T_v video frames, E emotions; N clips of a part.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from common import splits
from common.corpora import mosei
from common.errors import UserError
from common.files import atomic_path, hash_of
from common.khare.features import ARRAYS, AUDIO_DIM, AUDIO_STEP_S, FACTS, VIDEO_DIM, Source
from common.khare.words import WORD_DIM, Vectors, word_form
from common.store import Store, rows_of

DIMS = {"text": WORD_DIM, "audio": AUDIO_DIM, "video": VIDEO_DIM}  # the modalities and their features
PAPER_CASES = ("HeZS2-Prhc[8]", "10219[11]", "-9y-fZ3swSY[1]")  # of Sec. 4.2: video[number in its transcript]


# ---- Emotions and parts --------------------------------------------------------------------


def is_multilabel(manifest):
    """Whether turns carry a score for each of MOSEI's emotions instead of one label."""
    return all(name in manifest.turns[0].extra for name in mosei.EMOTIONS)


def emotions_of(manifest):
    """Names (E,) of the emotions that are told apart."""
    return mosei.EMOTIONS if is_multilabel(manifest) else tuple(manifest.classes)


def targets_of(manifest, turns):
    """(N, E) bool: which emotions are present; of MOSEI those with a score above 0 (Sec. 3.1)."""
    several = is_multilabel(manifest)
    found = [mosei.emotions_of(turn) if several else [turn.label] for turn in turns]
    names = emotions_of(manifest)
    targets = [[name in present for name in names] for present in found]
    return np.array(targets, bool).reshape(len(turns), len(names))


def fold_of(manifest, n_groups):
    """The splits.Fold: official, else the last of n_groups groups of speakers tests, one validates."""
    if not is_multilabel(manifest):
        return splits.model_choice_split(manifest, n_groups)
    parts = [[turn for turn in manifest.turns if turn.extra.get("split") == name] for name in splits.OFFICIAL]
    empty = [name for name, turns in zip(splits.OFFICIAL, parts) if not turns]
    if empty:
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
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise UserError(f"CASES={','.join(unknown)}: no such clip in the test part; see predictions.csv")
    return [numbers[name] for name in names or PAPER_CASES if name in numbers]


# ---- Pretraining (Section 3.1) ------------------------------------------------------------


def own_turns(manifest, fold):
    """{"train", "valid": turns} of a corpus that is pretrained on itself: those of its train and dev parts.

    Turns without a label train too, but only of speakers (in an official split: of the part) of the fold's.
    """
    labelled = {turn.utterance_id for part in (fold.train, fold.valid, fold.test) for turn in part}
    rest = [turn for turn in manifest.turns if turn.utterance_id not in labelled]
    official, speakers = splits.has_official_split(manifest), set(splits.speakers_of(fold.train))
    more = [t for t in rest if (t.extra.get("split") == "train" if official else t.speaker in speakers)]
    return {"train": fold.train + more, "valid": fold.valid}


def other_turns(manifest, share, seed, fold):
    """{"train", "valid": turns} of another corpus to pretrain on, `share` of its speakers being held out.

    Only the development part of VoxCeleb2 is used (Sec. 3.1). Clips of videos that the fold validates or
    tests on are left out: VoxCeleb2 and CMU-MOSEI are both from YouTube, and their ids hold YouTube's.
    """
    tested = {turn.dialogue_id for part in (fold.valid, fold.test) for turn in part}
    turns = [turn for turn in manifest.turns if turn.extra.get("set") != "test"]
    kept = [turn for turn in turns if turn.dialogue_id.removeprefix(f"{turn.speaker}_") not in tested]
    n_test, n_same = len(manifest.turns) - len(turns), len(turns) - len(kept)
    if n_test or n_same:
        print(
            f"  {manifest.corpus}: left out {n_test:,} test clips, {n_same:,} of videos that validate or test"
        )
    speakers = splits.speakers_of(kept)
    if len(speakers) < 2:
        path = f"{manifest.folder}/manifest.csv"
        raise UserError(f"{path}: {len(speakers)} speakers to pretrain on; two are needed")
    n_held_out = min(max(1, round(share * len(speakers))), len(speakers) - 1)
    order = np.random.default_rng((seed, 7)).permutation(len(speakers))
    held_out = {speakers[i] for i in order[:n_held_out]}
    parts = {"train": [], "valid": []}
    for turn in kept:
        parts["valid" if turn.speaker in held_out else "train"].append(turn)
    return parts


def english(store, parts, min_score):
    """Parts {name: turns} without clips that have no words, or whose words are not English (Section 3.1).

    min_score  mean log-probability; clips without a score stay. The paper's threshold, on another scale, left
               978 k of 1,092 k clips
    """
    score, found = store["facts"][:, FACTS.index("score")], {}
    kept, unknown = ~(score < min_score), np.isnan(score).sum()
    print(
        f"  {kept.sum():,} of {len(store):,} clips score {min_score:g} or more or have no score ({unknown:,})"
    )
    kept &= store.spans("word_times")[1] > 0
    for name, turns in parts.items():
        turns, rows = rows_of(store, turns)
        found[name] = [turn for turn, keep in zip(turns, kept[rows]) if keep]
        if not found[name]:
            what = f"MIN_SCORE={min_score:g}: no clip with words is left to {name} the masked language model"
            raise UserError(f"{what}; give TRANSCRIPTS, or lower MIN_SCORE")
    return found


# ---- Clips ---------------------------------------------------------------------------------


def sources_of(manifest, parts, with_video, with_words=True):
    """The Source of each turn of some parts, in the corpus' order: its span of the recording, and its words.

    These are words.csv (with times) where the corpus has one, else the turn's own text (without). A turn of a
    corpus that has neither, and all without `with_words`, are left to a recogniser or a transcript.
    """
    timed = mosei.read_words(manifest.folder) if (manifest.folder / "words.csv").exists() else None
    has_text, sources = any(turn.text for turn in manifest.turns), []
    wanted = {turn.utterance_id for turns in parts for turn in turns}
    for turn in manifest.turns:
        if turn.utterance_id not in wanted:
            continue
        start_s, end_s = mosei.recording_span(turn)
        if start_s is None:
            start_s, end_s = 0.0, None if turn.audio or turn.video else max(0.0, turn.duration_s)
        words = [(word, None, None) for word in turn.text.split()] if has_text else None
        if timed is not None:
            words = timed.get(turn.utterance_id, [])
        words = words if with_words else None
        audio, video = (str(manifest.path(path)) if path else "" for path in (turn.audio, turn.video))
        keeps_video = with_video or not audio  # else its sound would be lost with it
        sources.append(Source(turn.utterance_id, audio, video if keeps_video else "", start_s, end_s, words))
    return sources


def rows_at(store, name, i):
    """The rows of clip number i of a store."""
    first, count = (column[i] for column in store.spans(name))
    return store[name][first : first + count]


def words_at(store, i):
    """The words of clip number i of a store."""
    return rows_at(store, "words", i).tobytes().decode().split("\n")[:-1]


def words_of(store, clip_id):
    """The words of a clip in one spelling, for the word error rate; [] where the store lacks it."""
    words = words_at(store, store.row_of(clip_id)) if clip_id in store else []
    return [form for form in map(word_form, words) if form]


def count_words(store, rows=None):
    """How often each word occurs in some clips, as it is written."""
    counts = Counter()
    for i in range(len(store)) if rows is None else rows:
        counts.update(words_at(store, i))
    return counts


@dataclass
class Part:
    """Clips of one part of a split: their ids, positions in the store, speakers, and emotions (N, E) bool."""

    ids: list
    rows: np.ndarray
    speakers: np.ndarray
    targets: np.ndarray

    def __len__(self):
        return len(self.ids)


@dataclass
class Corpus:
    """The features of a corpus and who trains on them.

    parts    {"train", "valid", "test": Part}, without "test" where nothing is tested
    inputs   the modalities that its training clips have
    stats    `statistics` of its training clips
    words    how often each word occurs in its store
    vectors  words.Vectors; vectors_id: a hash of those of its own words
    numbers  {word form: number} of the words that are predicted, the most frequent first, and counts (V,)
    """

    name: str
    store: Store
    parts: dict
    inputs: tuple
    stats: dict
    words: Counter
    vectors: Vectors | None = None
    vectors_id: str = ""
    numbers: dict = field(default_factory=dict)
    counts: np.ndarray | None = None

    def identity(self):
        """What trainings on it depend on; JSON-ready."""
        parts = {name: hash_of([part.ids, part.targets.tolist()]) for name, part in self.parts.items()}
        words = hash_of([self.numbers, self.counts.tolist()]), self.vectors_id, self.vectors.keep_unknown
        return [hash_of(self.store.meta), parts, words]

    def count_forms(self, part):
        """How often each word form with a vector occurs in a part."""
        found = Counter()
        for word, count in count_words(self.store, self.parts[part].rows).items():
            if word_form(word) in self.vectors.row_of:
                found[word_form(word)] += count
        return found


def give_vectors(corpora, recognised, glove, cache, keep_unknown):
    """Give Corpora the vectors of all their words, and the vocabulary of their training clips (Section 3.1).

    recognised  a store of more words, or None; the rest is for words.Vectors
    """
    counts = sum((corpus.words for corpus in corpora), count_words(recognised) if recognised else Counter())
    vectors = Vectors(counts, glove, cache, keep_unknown)
    print(f"  words     {vectors.note}")
    for corpus in corpora:
        corpus.vectors, corpus.vectors_id = vectors, vectors.identity(corpus.words)
        found = corpus.count_forms("train")
        order = sorted(found, key=lambda form: (-found[form], form))
        corpus.numbers = {form: number for number, form in enumerate(order)}
        corpus.counts = np.array([found[form] for form in order], np.int64)


def vocabulary_facts(corpus):
    """What tables say of a pretraining corpus, and how well word frequencies alone find its words."""
    held_out = corpus.count_forms("valid")
    n = np.array([held_out[form] for form in corpus.numbers])  # (V,)
    surprise = -np.log(corpus.counts / corpus.counts.sum())
    return {
        "corpus": corpus.name,
        "clips": len(corpus.parts["train"]),
        "held_out": len(corpus.parts["valid"]),
        "vocabulary": len(corpus.numbers),
        "majority": float(n[0] / n.sum()),
        "unigram_perplexity": float(np.exp((n * surprise).sum() / n.sum())),
    }


def corpus_of(manifest, store, parts, modalities):
    """The Corpus of some parts {name: turns}, as far as the store and some modalities go."""
    for name, turns in parts.items():
        turns, rows = rows_of(store, turns)
        if not turns:
            raise UserError(f"{store.folder}: no clip of the {name} part could be read; see its problems.csv")
        ids, speakers = [turn.utterance_id for turn in turns], np.array([turn.speaker for turn in turns])
        parts = parts | {name: Part(ids, rows, speakers, targets_of(manifest, turns))}
    train = parts["train"].rows
    there = [name for name in DIMS if store.spans(ARRAYS[name])[1][train].any()]
    inputs = tuple(name for name in there if name in modalities)
    return Corpus(manifest.corpus, store, parts, inputs, statistics(store, train), count_words(store))


def statistics(store, rows):
    """{"audio", "video": (mean (D,), sd (D,))} of every number of a step of some clips, kept with the store.

    A number that never varies, as of a unit of VGG-16 that is never active, gets a deviation of 1.
    """
    path = store.folder / f"stats_{hash_of([store.meta, rows.tolist()])}.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {name: tuple(kept[name]) for name in ("audio", "video")}
    except (OSError, ValueError, KeyError, EOFError):  # not there, or damaged
        found = {name: mean_and_sd(store, name, sorted(rows)) for name in ("audio", "video")}
    with atomic_path(path) as temporary:
        np.savez(temporary, **found)
    return found


def mean_and_sd(store, name, rows):
    count, total, squares = 0, np.zeros(DIMS[name]), np.zeros(DIMS[name])
    for i in rows:
        x = rows_at(store, name, i).astype(np.float64)
        count, total, squares = count + len(x), total + x.sum(0), squares + np.einsum("td,td->d", x, x)
    mean = total / max(1, count)
    sd = np.sqrt(np.maximum(0, squares / max(1, count) - mean**2))
    return mean.astype(np.float32), np.where(sd > 1e-4, sd, 1).astype(np.float32)


class Clips:
    """Clips of a part as a data set for `training`.

    corpus      Corpus. Audio and video become of zero mean and unit variance here, so that the zeros of
                padding and of masked words are what a model sees
    inputs      the modalities that its batches have; of the others no clip has a step
    max_s       seconds of a clip that are taken, so that one long clip does not fill the memory; 0 = all
    words_from  another store to take the words from, such as recognised ones; a clip that it lacks has none
    """

    def __init__(self, corpus, part, inputs, max_s, words_from=None):
        part = corpus.parts[part]
        self.ids, self.rows, self.labels = part.ids, part.rows, part.targets
        self.corpus, self.store, self.inputs, self.max_s = corpus, corpus.store, inputs, max_s or float("inf")
        self.word_store, self.word_rows = self.store, self.rows
        if words_from is not None:
            rows = [words_from.row_of(i) if i in words_from else -1 for i in self.ids]
            self.word_store, self.word_rows = words_from, np.array(rows)
        self.step_s = {"audio": AUDIO_STEP_S, "video": self.store.meta["video_step_s"]}
        self.limits = {name: max_s and max(1, round(max_s / s)) or None for name, s in self.step_s.items()}
        n_words = np.append(self.word_store.spans("word_times")[1], 0)  # the last for those that it lacks
        counts = {"text": n_words[self.word_rows]}
        for name, limit in self.limits.items():
            counts[name] = self.store.spans(name)[1][self.rows].clip(max=limit)
        self.lengths = sum(counts[name] for name in inputs)  # by which batches are made

    def __len__(self):
        return len(self.rows)

    def words(self, index):
        """(words, their times (W, 2)) of a clip, without those that have no vector unless these are kept."""
        if "text" not in self.inputs or self.word_rows[index] < 0:
            return [], np.zeros((0, 2), np.float32)
        words = words_at(self.word_store, self.word_rows[index])
        times = rows_at(self.word_store, "word_times", self.word_rows[index])
        kept = ~(times[:, 0] >= self.max_s)
        if not self.corpus.vectors.keep_unknown:
            kept &= self.corpus.vectors.rows(words) >= 0
        return [word for word, keep in zip(words, kept) if keep], times[kept]

    def __getitem__(self, key):
        """key: (index, seed) -> dict of the arrays of one clip; nothing here is random."""
        words, times = self.words(key[0])
        word_ids = [self.corpus.numbers.get(word_form(word), -1) for word in words]
        item = {"text": self.corpus.vectors.of(words), "word_ids": np.array(word_ids, np.int64)}
        item |= {"word_start_s": times[:, 0], "word_end_s": times[:, 1], "labels": self.labels[key[0]]}
        for name, (mean, sd) in self.corpus.stats.items():
            steps = rows_at(self.store, name, self.rows[key[0]]) if name in self.inputs else ()
            steps = np.asarray(steps, np.float32).reshape(-1, DIMS[name])[: self.limits[name]]
            item[name] = (steps - mean) / sd
        return item

    def collate(self, items):
        """A batch of clips, padded to the longest and to one step at least.

        "text" (B, W, 300), "audio" (B, T_a, 200), "video" (B, T_v, 4096) float32, 0 where padded, with
        "text_length", "audio_length", "video_length" (B,), 0 = the clip lacks it; "word_ids" (B, W), -1 =
        outside the vocabulary or padded; "word_start_s", "word_end_s" (B, W), NaN where padded;
        "audio_step_s", "video_step_s" (B,); "labels" (B, E).
        """
        filling = {"word_ids": -1, "word_start_s": float("nan"), "word_end_s": float("nan")}
        batch = {"labels": torch.from_numpy(np.stack([item["labels"] for item in items]))}
        for name in (*DIMS, *filling):
            parts = [torch.from_numpy(np.asarray(item[name])) for item in items]
            batch[name] = padded(parts, filling.get(name, 0))
        for name in DIMS:
            batch[f"{name}_length"] = torch.tensor([len(item[name]) for item in items])
        for name, step_s in self.step_s.items():
            batch[f"{name}_step_s"] = torch.full((len(items),), step_s)
        return batch


def padded(parts, value):
    """Tensors (T, ...) -> (B, longest T and at least 1, ...)."""
    longest = max(1, *(len(part) for part in parts))
    batch = parts[0].new_full((len(parts), longest, *parts[0].shape[1:]), value)
    for row, part in zip(batch, parts):
        row[: len(part)] = part
    return batch
