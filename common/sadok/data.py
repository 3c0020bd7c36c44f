"""What 05 works on: parts of prepared corpora, their folds, the speech of a pretraining, networks, rows."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common import splits
from common.files import UserError, faults_of
from common.layers import count_parameters
from common.manifest import prepared_folder, read_manifest

# ---- Corpora -------------------------------------------------------------------------------

PARTS = ("speech", "song", "disgust")
DISGUST = {"neu": "neutral", "hap": "happy", "ang": "angry", "dis": "disgusted"}  # Sec. 3.1.3


@functools.cache
def read_part(data_root, name):
    """The Manifest of a prepared corpus, or of a part of it such as "ravdess:song"; only turns with audio.

    Its corpus is named "ravdess_song", as a folder. Raises UserError where no turn is left.
    """
    base, _, part = name.partition(":")
    if part and part not in PARTS:
        raise UserError(f"{name}: unknown part; choose {', '.join(PARTS)} after the colon, or nothing")
    whole = read_manifest(data_root, base)
    turns, classes = [turn for turn in whole.turns if turn.audio], whole.classes
    if part in ("speech", "song"):
        turns = [turn for turn in turns if turn.extra.get("channel") == part]
        classes = tuple(label for label in classes if any(turn.label == label for turn in turns))
    elif part == "disgust":
        turns = [replace(turn, label=DISGUST.get(turn.extra.get("raw_label"), "")) for turn in turns]
        classes = tuple(DISGUST.values())
    if not turns:
        raise UserError(f"{whole.folder}/manifest.csv: no turn with audio for {name}; prepare it by 01")
    return replace(whole, corpus=name.replace(":", "_"), classes=classes, turns=turns)


class Corpus:
    """An emotional corpus: labelled turns with audio, and who trains, validates and tests."""

    def __init__(self, data_root, name, n_groups, validate_on, select_on, seeds, speaker_normalise):
        self.base, self.manifest = name.partition(":")[0], read_part(data_root, name)
        self.turns, self.name = self.manifest.labelled, self.manifest.corpus
        protocol = validate_on, select_on
        self.folds_of = {s: splits.make_folds(self.manifest, n_groups, *protocol, s) for s in seeds}
        self.folds = self.folds_of[seeds[0]]
        self.protocol = splits.protocol_text(self.manifest, self.folds, *protocol)
        classes = self.manifest.classes
        self.class_of = {turn.utterance_id: classes.index(turn.label) for turn in self.turns}
        self.speaker_of = {turn.utterance_id: turn.speaker for turn in self.turns}
        self.speaker_normalise = speaker_normalise
        self.folder = Path(data_root) / "models" / self.name / "sadok"

    def normalised(self, x, ids):
        """x (N, ...) of some turns; with SPEAKER_NORMALISE minus the mean of each speaker's rows.

        Of logits that a linear layer makes this is the same as of what the layer reads. No label is read.
        """
        x = np.array(x)
        if self.speaker_normalise:
            speakers = np.array([self.speaker_of[name] for name in ids])
            for speaker in set(speakers):
                x[speakers == speaker] -= x[speakers == speaker].mean(0)
        return x


def check_prepared(data_root, names):
    """UserError that names all corpora that a run needs and that are not prepared."""
    if faults := faults_of(functools.partial(read_part, data_root), names):
        raise UserError(f"{'; '.join(faults)}. Synthetic corpora: 01 --demo, then --demo here")


def read_corpora(corpus_of, first, others):
    """{name: corpus_of(name)}, of `others` those that are prepared and can be divided."""
    found = {first: corpus_of(first)}
    for name in others:
        try:
            found.setdefault(name, corpus_of(name))
        except UserError as error:
            print(f"  {name}: left out of Table 5: {error}")
    return found


# ---- Speech of a pretraining ---------------------------------------------------------------


@dataclass(frozen=True)
class Pretraining:
    """The unlabelled speech of a pretraining, without the speakers that the fold that it serves tests."""

    data_root: str
    corpora: tuple
    seed: int  # draws the held-out speakers, on which the pretraining is scored
    name: str = ""  # such as "without_fold2"; "" = nobody is left out
    left_out: frozenset = frozenset()  # (corpus, speaker)

    @property
    def folder(self):
        """<data_root>/models/voxceleb2/sadok, or .../ravdess+emodb/sadok/without_fold2"""
        return Path(self.data_root) / "models" / "+".join(self.corpora) / "sadok" / self.name

    def codes_folder(self, base):
        """<data_root>/codes/<base>/voxceleb2, or .../ravdess+emodb_without_fold2"""
        name = "+".join(self.corpora) + (f"_{self.name}" if self.name else "")
        return Path(self.data_root) / "codes" / base / name

    def identity(self):
        """What says which speech was read; JSON-ready."""
        manifests = {base: read_part(self.data_root, base).fingerprint() for base in self.corpora}
        return {"manifests": manifests, "left_out": sorted(self.left_out), "seed": self.seed}

    def checked(self, base, fold):
        """A fold of a corpus, whose test speakers it has not heard."""
        tested = {(base, turn.speaker) for turn in fold.test}
        assert base not in self.corpora or tested <= self.left_out
        return fold

    def turns(self):
        """(training, held-out) turns as (corpus, Turn); one speaker in 20 is held out."""
        turns = [(base, turn) for base in self.corpora for turn in read_part(self.data_root, base).turns]
        turns = [(base, turn) for base, turn in turns if (base, turn.speaker) not in self.left_out]
        speakers = sorted({(base, turn.speaker) for base, turn in turns})
        if len(speakers) < 2:
            names = ",".join(self.corpora)
            raise UserError(f"PRETRAIN_CORPORA={names}: {len(speakers)} speakers are left; two are needed")
        order = np.random.default_rng((self.seed, 5)).permutation(len(speakers))
        held_out = {speakers[i] for i in order[: max(1, len(speakers) // 20)]}
        parts = [], []
        for base, turn in turns:
            parts[(base, turn.speaker) in held_out].append((base, turn))
        return parts


def plan_pretrainings(corpora, everyone):
    """{(corpus, number of a fold): the Pretraining that serves it, without speakers whom the fold tests}.

    everyone  Pretraining that leaves nobody out: it serves corpora that it does not read
    Fold k of every corpus shares a pretraining, so that runs with another CORPUS or other TABLES do too.
    """
    shared = [c for c in corpora.values() if c.base in everyone.corpora]
    found = {}
    for name, corpus in corpora.items():
        for k in range(len(corpus.folds)):
            folds = [(c.base, c.folds[k]) for c in shared if k < len(c.folds)]
            tested = frozenset((base, turn.speaker) for base, fold in folds for turn in fold.test)
            without = replace(everyone, name=f"without_fold{k + 1}", left_out=tested)
            found[name, k] = without if corpus in shared else everyone
            found[name, k].turns()  # UserError where too few speakers are left
    return found


def stores_needed(corpora, serving):
    """(corpus, Pretraining) of all codes that a run reads; serving: from `plan_pretrainings`."""
    pairs = [(base, p) for (name, _), p in serving.items() for base in (*p.corpora, corpora[name].base)]
    return list(dict.fromkeys(pairs))


def audio_paths(data_root, turns):
    """The audio files of (corpus, Turn) pairs."""
    return [prepared_folder(data_root, base) / turn.audio for base, turn in turns]


# ---- Networks and rows ---------------------------------------------------------------------


def size_of(name, text):
    """A constant's "10x4" -> (10, 4)."""
    t, _, d = text.partition("x")
    if not (t.isdecimal() and d.isdecimal()):
        raise UserError(f"{name}={text}: write it as 10x4")
    return int(t), int(d)


@dataclass(frozen=True)
class Network:
    """A masked autoencoder to pretrain."""

    kind: str  # "vqmae", "specmae" (the authors') or "specmae-log"
    strategy: str  # of masking
    ratio: float  # share of hidden tokens
    n_frames: int  # T
    n_rows: int  # D' codes per frame, or D powers
    t: int  # frames per token
    d: int  # codes of a frame per token
    code_width: int  # e; 1 where powers are read as they are
    depth: int  # L, blocks of the encoder
    width: int  # units inside; 0 = t * d * e, which needs no projection

    @property
    def token_width(self):
        return self.t * self.d * self.code_width

    @property
    def units(self):
        return self.width or self.token_width

    @property
    def grid(self):
        """(n_t, n_d), tokens along time and frequency; UserError where t or d does not divide its side."""
        for size, total in ((self.t, self.n_frames), (self.d, self.n_rows)):
            if size < 1 or total % size:
                names = "N_FRAMES, TOKEN_SIZE, SPEC_PATCH, TOKEN_SIZES"
                raise UserError(f"{names}: {size} of {self.t}x{self.d} does not divide {total}")
        return self.n_frames // self.t, self.n_rows // self.d

    @property
    def n_tokens(self):
        return self.grid[0] * self.grid[1]

    def slug(self):
        """Name of its folder, such as patch-tf_0.8_10x4_e8_12"""
        is_vqmae = self.kind == "vqmae"
        name, embedding = (self.strategy, f"_e{self.code_width}") if is_vqmae else (self.kind, "")
        width = f"_w{self.width}" if self.width else ""
        return f"{name}_{self.ratio:g}_{self.t}x{self.d}{embedding}_{self.depth}{width}"


def check_network(row, heads, query_heads):
    """UserError where heads of attention do not divide the units of a row's network."""
    units = row.network.units
    if units % heads or row.head == "query2emo" and units % query_heads:
        raise UserError(f"HEADS={heads}, QUERY_HEADS={query_heads}: must divide WIDTH, SPEC_WIDTH or {units}")


def check_size(network, model):
    """UserError where a network cannot be meant."""
    if (n := count_parameters(model)) > 2e9 or network.n_tokens > 1e4:
        names = "N_FRAMES, TOKEN_SIZE, TOKEN_SIZES, CODE_WIDTH, CODE_WIDTHS, WIDTH, SPEC_WIDTH, MLP_RATIO"
        raise UserError(f"{names}: too large: {network.n_tokens:,} tokens, {n:.1e} parameters")


@dataclass(frozen=True)
class Row:
    """One line of a table: a network, pretrained or not, frozen or not, and its classification head."""

    network: Network
    pretrained: bool = True
    freeze: bool = False
    head: str = "cls"

    def slug(self):
        """finetuned_cls, frozen_cls; scratch_cls, random_cls: not pretrained, trained or frozen; svm."""
        if self.head == "svm":
            return "svm"
        ways = ("scratch", "random"), ("finetuned", "frozen")
        return f"{ways[self.pretrained][self.freeze]}_{self.head}"
