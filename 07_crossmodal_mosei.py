"""Pretrain a cross-modal transformer on masked words with sound and picture, and fine-tune it to recognise emotions.

Paper: A. Khare, S. Parthasarathy, S. Sundaram, "Self-supervised learning with cross-modal transformers for emotion
recognition", IEEE SLT 2021: Tables 1 and 2, the ASR experiment of Section 4.1, the case studies of Section 4.2. The
model is common/khare/model.py, features and their store are common/khare/features.py, scores common/khare/metrics.py,
corpora and word vectors common/khare/data.py, tables common/khare/tables.py, figures common/khare/figures.py.

    python 07_crossmodal_mosei.py                   # after 01 --CORPUS=mosei, and voxceleb2 with --VOXCELEB2_VIDEO=true
    python 07_crossmodal_mosei.py --demo            # after 01 --demo --CORPUS=demo_mosei and demo_voxceleb2_av
    python 07_crossmodal_mosei.py --scratch --CORPUS=meld        # words of MELD alone, sizes for two CPU cores
    python 07_crossmodal_mosei.py --scratch --CORPUS=ravdess --PRETRAIN_CORPUS= --MODALITIES=audio --ANCHOR=audio
    python 07_crossmodal_mosei.py --FEATURES_ONLY=true && accelerate launch 07_crossmodal_mosei.py      # several GPUs

Three stages, each kept in <DATA_ROOT> and gone on with after a kill:
1. filterbanks, VGG-16 and words of all clips of both corpora, once     -> clips/<corpus>/khare
2. masked language model with full softmax and with NCE                 -> models/<pretraining corpus>/khare/<method>
3. fine-tuning of every row of a table with each of SEEDS               -> models/<corpus>/khare/<row>/seed<n>
Writes results/07_crossmodal_mosei/<corpus>/: khare_table_1, khare_table_2 (as in the paper), khare_table_asr and
khare_fig_cases (its Sections 4.1 and 4.2), khare_table_gain, khare_table_f1, khare_table_cost, khare_fig_pretraining
(beyond it); predictions.csv, metrics.json, log.jsonl.

DEVIATIONS and what the paper leaves open; constants in capitals
1. Transcripts of VoxCeleb2 and their times come from wav2vec 2.0, not from Kaldi's TDNN, so that MIN_SCORE, which
   chooses English clips, is on another scale than the paper's heuristic threshold.
2. Pictures are seen FPS times a second, and features are standardised by the training clips of each corpus; the paper
   says neither.
3. Schedule of [27], Adam with betas (0.9, 0.98) and eps 1e-9; its k (RATE_SCALE) and WARMUP_STEPS are not in the paper,
   nor are batch and dropout.
4. The held-out set of pretraining is HELD_OUT of its speakers. Clips of videos that MOSEI validates or tests on are
   left out: both corpora are from YouTube.
5. NCE draws NOISE_WORDS for every hidden word, as [22]; how many is not in the paper. Held-out loss is that of the full
   softmax for both, so that the two can be compared.
6. Fine-tuning: rate, epochs and batch are not in the paper; the epoch is chosen on dev, by the same mean of WA and F1
   that chooses among the initialisations. For pretrained models SEEDS vary the last layer, the order and the dropout;
   each pretraining is done once, with the first of them.
7. Words without a vector are left out (KEEP_UNKNOWN): "which we ignore". MAX_S cuts very long clips.
8. Not in the paper: means over all initialisations, paired intervals, macro and positive F1, models trained without a
   modality, and a variant with trained substitutes for missing modalities, which survives missing words.
9. Corpora with one label per clip (MELD, RAVDESS) are trained in the same way, as many yes-or-no emotions as classes;
   with PRETRAIN_CORPUS = CORPUS the masked language model sees its training part alone.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file

from common import splits
from common.errors import UserError
from common.files import hash_of, write_json
from common.khare import figures as khare_figures
from common.khare import metrics as khare_metrics
from common.khare import tables
from common.khare.data import (
    WORD_DIM,
    Part,
    Vectors,
    count_vocabulary,
    emotions_of,
    fold_of,
    modalities_of,
    only,
    open_words,
    other_turns,
    own_turns,
    protocol_text,
    sources_of,
    spoken_words,
    targets_of,
)
from common.khare.features import (
    AUDIO_DIM,
    VIDEO_DIM,
    Clips,
    Extraction,
    FeatureStats,
    english_rows,
    extract,
    load_vgg,
    mask_words,
    measure_stats,
)
from common.khare.model import (
    MODALITIES as ALL_MODALITIES,
)
from common.khare.model import (
    CrossModalTransformer,
    EmotionClassifier,
    MaskedLM,
    Noise,
    Sizes,
    balance,
    balanced_loss,
    drop_modalities,
    learning_rate,
)
from common.manifest import corpus_name, read_manifest
from common.results import start_run
from common.sadok.vqmae import build, count_parameters
from common.store import rows_of
from common.training import Recipe, best_weights, fit, kept_outcome, load_trained, make_accelerator, predict

# ---- Constants to tweak: corpora and protocol ----------------------------------------------
DATA_ROOT = "data"  # folder of corpora, clip features, models
RESULTS_ROOT = "results"  # tables and figures go to <RESULTS_ROOT>/07_crossmodal_mosei/<corpus>/
CORPUS = "mosei"  # "mosei", or any corpus that 01 has prepared
PRETRAIN_CORPUS = "voxceleb2"  # unlabelled clips (Sec. 3.1); CORPUS itself: its training part; "" = none
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)  # ten initialisations of every row (Sec. 4)
METHODS = ("softmax", "nce")  # pretraining with full softmax, with noise-contrastive estimation
EXTRA = True  # also models trained without a modality, with substitutes, with other anchors
CASES = ()  # clips of the case studies, such as HeZS2-Prhc[8] (Sec. 4.2); () = chosen by rule
N_GROUPS = 5  # groups of speakers, one tests, one validates, where a corpus has no official split
N_RESAMPLES = 10000  # of videos behind every interval

# ---- Features (Sec. 3.1) -------------------------------------------------------------------
MODALITIES = ("text", "audio", "video")  # that are used at all
TRANSCRIPTS = (
    "facebook/wav2vec2-large-960h"  # words of clips without a text: a CTC model (hub name or folder), a
)
# folder of <clip>.csv or .txt, or a csv utterance_id,word,start_s,end_s; "" = none
MIN_SCORE = -0.3  # English: mean log-probability of letters; transcripts without a score stay
ASR_TRANSCRIPTS = (
    "facebook/wav2vec2-large-960h"  # recognised words of the test clips (Sec. 4.1), as TRANSCRIPTS
)
GLOVE = "data/raw/glove.840B.300d.txt"  # "" = random vectors of words, where GloVe is not at hand
KEEP_UNKNOWN = False  # words without a vector: False leaves them out, True keeps them as zeros
VGG_WEIGHTS = ""  # file of torchvision's VGG-16; "" = torchvision downloads it
RANDOM_VGG = False  # random weights instead, where none are at hand
FRAME_SIZE = 0  # side of a picture in pixels; 0 = VGG-16's, 224
FPS = 2.0  # pictures per second. Not in the paper
RATE_HZ = 16000  # sampling rate
MAX_S = 60.0  # seconds of a clip that are taken; 0 = all
SHARD_CLIPS = 1000  # clips per file of the store: a kill loses one file
MAX_PROBLEM_SHARE = 0.05  # stop where more than this share of the clips cannot be read
FEATURES_ONLY = False  # True: stop when the features are there, before several processes train on them

# ---- Model (Sec. 2.1 and 3.1) --------------------------------------------------------------
ANCHOR = "text"  # modality that asks; masked words need text
WIDTH = 512  # of keys, queries and values
DEPTH = 4  # layers of every encoder
HEADS = 4  # of attention
FEED_FORWARD = 200  # units
DROPOUT = 0.1  # not in the paper
TERM_WEIGHTS = (0.33, 0.33, 0.33)  # w_1, w_2, w_3 of Eq. 5
N_SUBSTITUTES = 8  # trained vectors for a missing modality, in the variant that survives it
DROP_RATE = 0.3  # share of modalities that its training clips lose

# ---- Pretraining (Sec. 2.2 and 3.1) --------------------------------------------------------
HIDDEN_SHARE = 0.15  # of the words, with their audio and video
PRETRAIN_EPOCHS = 20  # of which the one with the least held-out loss is taken
PRETRAIN_BATCH = 64  # clips per step. Not in the paper
RATE_SCALE = 1.0  # k of [27]. Not in the paper
WARMUP_STEPS = 4000  # not in the paper
BETAS = (0.9, 0.98)  # of Adam ([27])
EPS = 1e-9  # of Adam ([27])
NOISE_WORDS = 25  # per hidden word. Not in the paper
SHARED_NOISE = False  # True: the same noise words for a whole batch, cheaper and noisier; then take 1,000
HELD_OUT = 0.05  # share of the speakers. Not in the paper

# ---- Fine-tuning (Sec. 3.1) ----------------------------------------------------------------
FINETUNE_RATE = 1e-4  # of Adam; rises over the first tenth, then falls to zero. Not in the paper
FINETUNE_EPOCHS = 20  # not in the paper
FINETUNE_BATCH = 32  # clips per step. Not in the paper

# ---- Machine -------------------------------------------------------------------------------
PRECISION = "auto"  # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"
WORKERS = 4  # threads that decode recordings, processes that prepare batches; 0 = none
VGG_BATCH = 64  # pictures per forward pass of VGG-16
EVAL_BATCH_SIZE = 64  # clips per forward pass outside training

# ---- Presets -------------------------------------------------------------------------------
DEMO = {
    "CORPUS": "demo_mosei",
    "PRETRAIN_CORPUS": "demo_voxceleb2_av",
    "SEEDS": (0, 1),
    "TRANSCRIPTS": "raw/demo_voxceleb2_av/words.csv",
    "MIN_SCORE": -0.5,
    "ASR_TRANSCRIPTS": "raw/demo_mosei/recognised_synthetic.csv",
    "GLOVE": "raw/demo_mosei/glove.demo.300d.txt",
    "RANDOM_VGG": True,
    "FRAME_SIZE": 32,
    "FPS": 1.0,
    "WIDTH": 64,
    "DEPTH": 1,
    "FEED_FORWARD": 64,
    "DROPOUT": 0.0,
    "N_SUBSTITUTES": 4,
    "PRETRAIN_EPOCHS": 60,
    "PRETRAIN_BATCH": 64,
    "RATE_SCALE": 0.5,
    "WARMUP_STEPS": 150,
    "HELD_OUT": 0.1,
    "FINETUNE_RATE": 5e-3,
    "FINETUNE_EPOCHS": 8,
    "FINETUNE_BATCH": 16,
    "N_RESAMPLES": 1000,
    "WORKERS": 0,
}  # synthetic corpora, a narrow model, VGG-16 with random weights
SCRATCH = {
    "PRETRAIN_CORPUS": "meld",
    "SEEDS": (0, 1, 2),
    "TRANSCRIPTS": "",
    "ASR_TRANSCRIPTS": "",
    "GLOVE": "",
    "RANDOM_VGG": True,
    "FRAME_SIZE": 64,
    "WIDTH": 128,
    "DEPTH": 2,
    "PRETRAIN_EPOCHS": 10,
    "RATE_SCALE": 0.25,
    "WARMUP_STEPS": 500,
    "FINETUNE_RATE": 3e-4,
    "FINETUNE_EPOCHS": 5,
    "FINETUNE_BATCH": 64,
    "WORKERS": 0,
}  # neither GloVe nor VGG-16 nor VoxCeleb2 at hand: sizes for two CPU cores
SETTINGS = {}  # filled by settings.run: what this run used


# ---- 1. Features (Section 3.1) -------------------------------------------------------------


def place_of(path):
    """A file that is looked for here, then in DATA_ROOT."""
    found = next((place for place in (Path(path), Path(DATA_ROOT) / path) if place.is_file()), None)
    if found is None:
        raise UserError(f"{path}: no such file, neither here nor in {DATA_ROOT}; correct the path")
    return found


@functools.cache
def vgg_of(device, precision):
    """VGG-16, loaded once for both corpora."""
    return load_vgg(VGG_WEIGHTS, FRAME_SIZE, 0 if RANDOM_VGG else None, device, precision)


def features_of(accelerator, manifest, turns, words):
    """The store of features and words of some turns of a corpus, made once; words: of clips that 01 has none of."""
    device, precision = str(accelerator.device), accelerator.mixed_precision
    with_video = "video" in MODALITIES
    sources = sources_of(manifest, turns, with_video)
    how = Extraction(RATE_HZ, FPS, SHARD_CLIPS, VGG_BATCH, WORKERS, MAX_PROBLEM_SHARE)
    with accelerator.main_process_first():
        vgg = vgg_of(device, precision) if with_video and any(source.video for source in sources) else None
        return extract(sources, words, vgg, Path(DATA_ROOT) / "clips" / manifest.corpus / "khare", {}, how)


def stats_of(accelerator, store, rows):
    """FeatureStats of some clips of a store, kept beside it."""
    path = store.folder / f"stats_{hash_of([store.meta, rows.tolist()])}.npz"
    with accelerator.main_process_first():
        if not path.exists():
            measure_stats(store, rows).save(path)
        return FeatureStats.load(path)


# ---- The study -----------------------------------------------------------------------------


@dataclass
class Outcome:
    """All initialisations of a Row: dev (S,) scores, and logits {condition: (S, N, E)} on the test part."""

    dev: list = field(default_factory=list)
    logits: dict = field(default_factory=dict)


class Study:
    """Clips, splits, word vectors and models of a run."""

    def __init__(self, c, accelerator, manifest, fold):
        self.c, self.accelerator, self.manifest, self.fold = c, accelerator, manifest, fold
        self.emotions, self.outcomes, self.pretrained, self.pretraining_facts = (
            emotions_of(manifest),
            {},
            {},
            {},
        )
        words = open_words(TRANSCRIPTS, DATA_ROOT, str(accelerator.device), accelerator.mixed_precision)
        self.store = features_of(accelerator, manifest, self.own_turns(), words)
        self.parts = {}
        for name in ("train", "valid", "test"):
            turns, rows = rows_of(self.store, getattr(fold, name))
            if not turns:
                raise UserError(
                    f"{self.store.folder}: no clip of the {name} part could be read; see its problems.csv"
                )
            self.parts[name] = Part(turns, rows, targets_of(manifest, turns))
        found = modalities_of(self.store, self.parts["train"].rows)
        self.present = tuple(name for name in found if name in MODALITIES)
        if ANCHOR not in self.present:
            raise UserError(
                f"ANCHOR={ANCHOR}: no training clip of {manifest.corpus} has {ANCHOR}, or MODALITIES "
                "leaves it out; choose another anchor"
            )
        self.unlabelled, self.pretrain_store = self.pretraining_clips(words)
        vgg_of.cache_clear()  # its weights take half a GB
        self.recognised = self.recognised_words()
        self.vectors = self.read_vectors()
        self.stats = stats_of(accelerator, self.store, self.parts["train"].rows)
        self.main_rows = [row for row in tables.plan(c, self.present) if tables.is_main(row, c, self.present)]

    def own_turns(self):
        """All turns of CORPUS that anything is trained or tested on, in the corpus' order."""
        wanted = {
            turn.utterance_id for part in (self.fold.train, self.fold.valid, self.fold.test) for turn in part
        }
        if PRETRAIN_CORPUS and corpus_name(PRETRAIN_CORPUS) == self.manifest.corpus:
            wanted |= {turn.utterance_id for turn in own_turns(self.manifest, self.fold)[0]}
        return [turn for turn in self.manifest.turns if turn.utterance_id in wanted]

    def pretraining_clips(self, words):
        """({"train", "valid": rows}, store) of PRETRAIN_CORPUS, English clips alone; (None, None) without one."""
        if not PRETRAIN_CORPUS:
            return None, None
        if corpus_name(PRETRAIN_CORPUS) == self.manifest.corpus:
            store, parts = self.store, own_turns(self.manifest, self.fold)
        else:
            manifest = read_manifest(DATA_ROOT, PRETRAIN_CORPUS)
            kept_out = {turn.dialogue_id for part in (self.fold.valid, self.fold.test) for turn in part}
            parts = other_turns(manifest, HELD_OUT, SEEDS[0], kept_out)
            order = {turn.utterance_id: i for i, turn in enumerate(manifest.turns)}
            turns = sorted(
                (turn for part in parts for turn in part), key=lambda turn: order[turn.utterance_id]
            )
            store = features_of(self.accelerator, manifest, turns, words)
        rows = {name: rows_of(store, turns)[1] for name, turns in zip(("train", "valid"), parts)}
        spoken = np.intersect1d(english_rows(store, MIN_SCORE), np.flatnonzero(store.n_words))
        rows = {name: np.intersect1d(own, spoken) for name, own in rows.items()}
        for name, own in rows.items():
            if not len(own):
                raise UserError(
                    f"PRETRAIN_CORPUS={PRETRAIN_CORPUS}: no clip with words is left to {name}; give "
                    "TRANSCRIPTS, or lower MIN_SCORE"
                )
        return rows, store

    def recognised_words(self):
        """{"store", "wer", "what"} of the recognised words of the test clips (Section 4.1), None without any."""
        if not ASR_TRANSCRIPTS or "text" not in self.present:
            return None
        words = open_words(
            ASR_TRANSCRIPTS, DATA_ROOT, str(self.accelerator.device), self.accelerator.mixed_precision
        )
        turns = self.parts["test"].turns
        if words.hears and not any(turn.audio or turn.video for turn in turns):
            print(
                f"  ASR_TRANSCRIPTS={ASR_TRANSCRIPTS}: no test clip has sound; the ASR experiment is left out"
            )
            return None
        store = recognise(self.accelerator, self.manifest, turns, words)
        ids = [turn.utterance_id for turn in turns]
        wer = khare_metrics.word_error_rate(spoken_words(self.store, ids), spoken_words(store, ids))
        print(f"  recognised words: word error rate {100 * wer:.1f} % (the paper: 29 %)")
        return {"store": store, "wer": wer, "what": f"words of {Path(ASR_TRANSCRIPTS).name}"}

    def read_vectors(self):
        """Vectors of all words, and what the masked language model predicts: words of pretraining's training clips."""
        stores = [
            self.store,
            *([self.pretrain_store] if self.pretrain_store not in (None, self.store) else []),
            *([self.recognised["store"]] if self.recognised else []),
        ]
        with self.accelerator.main_process_first():
            vectors = Vectors(stores, place_of(GLOVE) if GLOVE else "", Path(DATA_ROOT) / "cache" / "glove")
        print(f"  words     {vectors.note}")
        if self.unlabelled:
            self.vocabulary, self.counts = count_vocabulary(
                self.pretrain_store, self.unlabelled["train"], vectors
            )
            if not self.vocabulary:
                raise UserError(
                    f"PRETRAIN_CORPUS={PRETRAIN_CORPUS}: none of its words has a vector in {GLOVE}"
                )
            print(
                f"  vocabulary {len(self.vocabulary):,} words (the paper: 88,000), {self.counts.sum():,} running "
                f"words in {len(self.unlabelled['train']):,} clips of {corpus_name(PRETRAIN_CORPUS)}"
            )
        return vectors

    def clips(self, part, recognised=False):
        """The data set of a part of CORPUS."""
        part = self.parts[part]
        return Clips(
            self.store,
            part.rows,
            self.vectors.vectors,
            self.vectors.row_of,
            {},
            part.targets,
            self.stats,
            KEEP_UNKNOWN,
            MAX_S or None,
            self.recognised["store"] if recognised else None,
        )

    def folder(self, corpus):
        return Path(DATA_ROOT) / "models" / corpus_name(corpus) / "khare"


def recognise(accelerator, manifest, turns, words):
    """A store of the same turns with the words of a recogniser or of other transcripts, and no pictures."""
    sources = sources_of(manifest, turns, with_video=False)
    for source in sources:
        source.words = None
    how = Extraction(RATE_HZ, FPS, SHARD_CLIPS, VGG_BATCH, WORKERS, MAX_PROBLEM_SHARE)
    with accelerator.main_process_first():
        return extract(
            sources, words, None, Path(DATA_ROOT) / "clips" / manifest.corpus / "khare_recognised", {}, how
        )


def new_encoder(anchor, survives=False):
    """A CrossModalTransformer of this run's sizes."""
    n_features = {"text": WORD_DIM, "audio": AUDIO_DIM, "video": VIDEO_DIM}
    return CrossModalTransformer(
        n_features,
        Sizes(WIDTH, DEPTH, HEADS, FEED_FORWARD, DROPOUT),
        anchor,
        TERM_WEIGHTS,
        N_SUBSTITUTES if survives else 0,
    )


def model_identity():
    """What all models depend on; JSON-ready."""
    return {
        "sizes": [WIDTH, DEPTH, HEADS, FEED_FORWARD, DROPOUT, *TERM_WEIGHTS],
        "keep_unknown": KEEP_UNKNOWN,
        "max_s": MAX_S,
    }


# ---- 2. Masked language model (Section 2.2) ------------------------------------------------


def pretrain(study, method):
    """The folder and history of a masked language model, trained first where it is not there."""
    accelerator, store, rows = study.accelerator, study.pretrain_store, study.unlabelled
    number = {word: i for i, word in enumerate(study.vocabulary)}
    stats = stats_of(accelerator, store, rows["train"])
    inputs = tuple(name for name in modalities_of(store, rows["train"]) if name in MODALITIES)
    data = {
        name: Clips(
            store,
            own,
            study.vectors.vectors,
            study.vectors.row_of,
            number,
            None,
            stats,
            KEEP_UNKNOWN,
            MAX_S or None,
        )
        for name, own in rows.items()
    }

    def make():
        return MaskedLM(
            new_encoder("text"),
            len(number),
            Noise(study.counts, NOISE_WORDS, SHARED_NOISE) if method == "nce" else None,
        )

    def loss(model, batch):
        batch = dict(batch)
        mask_words(batch, HIDDEN_SHARE, None)
        found = model(only(batch, inputs))
        return found["loss"], found["count"]

    peak = learning_rate(WARMUP_STEPS, RATE_SCALE, WIDTH, WARMUP_STEPS)
    recipe = Recipe(
        peak,
        PRETRAIN_EPOCHS,
        PRETRAIN_BATCH,
        0.0,
        "inverse_sqrt",
        betas=BETAS,
        select_by="loss",
        higher_is_better=False,
        seed=SEEDS[0],
        workers=WORKERS,
        warmup_steps=WARMUP_STEPS,
        eps=EPS,
    )
    identity = {
        **model_identity(),
        "method": [method, NOISE_WORDS, SHARED_NOISE] if method == "nce" else [method],
        "hidden": HIDDEN_SHARE,
        "store": hash_of(store.meta),
        "inputs": inputs,
        "rows": {name: hash_of(own.tolist()) for name, own in rows.items()},
        "vocabulary": hash_of([study.vocabulary, study.counts.tolist()]),
        "vectors": study.vectors.identity(store),
        "precision": accelerator.mixed_precision,
    }
    folder, model = study.folder(PRETRAIN_CORPUS) / method, build(SEEDS[0], make)
    history = fit(
        accelerator,
        model,
        loss,
        data["train"],
        lambda m: held_out_figures(accelerator, m, data["valid"], inputs),
        recipe,
        folder,
        identity,
        method,
        epoch_lines=False,
    )
    best = history["log"][history["best_epoch"] - 1]
    print(
        f"  pretrained {method:<8} {history['seconds']:7.1f} s  best epoch {history['best_epoch']:>3}  held-out loss "
        f"{best['valid_loss']:.3f}  hidden words found {100 * best['valid_accuracy']:.1f} %",
        flush=True,
    )
    study.pretrained[method] = folder, history
    note_pretraining(study, count_parameters(model))


def held_out_figures(accelerator, model, dataset, inputs):
    """Loss per hidden word under the full softmax, and the share of words found; the masks are always the same."""

    def forward(model, batch):
        batch = dict(batch)
        mask_words(batch, HIDDEN_SHARE, torch.Generator().manual_seed(0))
        found, n = model(only(batch, inputs)), len(batch["text_length"])
        # One number per clip, as `predict` wants: the batch's sum shared out evenly.
        return {
            name: torch.as_tensor(found[name], dtype=torch.float32).reshape(1).expand(n) / n
            for name in ("loss", "right", "count")
        }

    sums = {
        name: float(values.sum())
        for name, values in predict(accelerator, model, forward, dataset, EVAL_BATCH_SIZE, WORKERS).items()
    }
    return {
        "loss": sums["loss"] / max(1.0, sums["count"]),
        "accuracy": sums["right"] / max(1.0, sums["count"]),
    }


def note_pretraining(study, n_parameters):
    """What the table of costs says beside the two trainings."""
    share = study.counts / study.counts.sum()
    held = count_vocabulary(study.pretrain_store, study.unlabelled["valid"], study.vectors)
    number = {word: i for i, word in enumerate(study.vocabulary)}
    known = [(number[word], count) for word, count in zip(*held) if word in number]
    places, counts = (np.array(column) for column in zip(*known)) if known else (np.zeros(1, int), np.ones(1))
    study.pretraining_facts = {
        "corpus": corpus_name(PRETRAIN_CORPUS),
        "clips": len(study.unlabelled["train"]),
        "held_out": len(study.unlabelled["valid"]),
        "vocabulary": len(study.vocabulary),
        "parameters": n_parameters,
        "majority": float(counts[places == 0].sum() / counts.sum()),
        "unigram_perplexity": float(np.exp(-(counts * np.log(share[places])).sum() / counts.sum())),
    }


# ---- 3. Fine-tuning (Section 3.1) ----------------------------------------------------------


def classifier_of(study, row, seed):
    """A Row's model with fresh or pretrained weights."""
    model = build(seed, lambda: EmotionClassifier(new_encoder(row.anchor, row.survives), len(study.emotions)))
    if row.first != "scratch":
        weights = load_file(best_weights(study.pretrained[row.first][0]))
        load_trained(
            model.encoder,
            {
                name.removeprefix("encoder."): tensor
                for name, tensor in weights.items()
                if name.startswith("encoder.")
            },
        )
    return model


def finetune(study, row, seed):
    """Fine-tune a Row with one initialisation and test it; returns what is kept in test.json."""
    recipe = Recipe(
        FINETUNE_RATE,
        FINETUNE_EPOCHS,
        FINETUNE_BATCH,
        0.0,
        "linear",
        0.1,
        betas=BETAS,
        select_by="score",
        seed=seed,
        workers=WORKERS,
        eps=EPS,
    )
    before = study.pretrained[row.first][1]["identity"] if row.first != "scratch" else None
    identity = {
        **model_identity(),
        "row": json.loads(json.dumps(asdict(row))),
        "store": hash_of(study.store.meta),
        "before": hash_of(before),
        "emotions": list(study.emotions),
        "keeps": keeps_weights(study, row),
        "tested": ["+".join(inputs) for inputs in tables.conditions(row, study.c, study.present)],
        "parts": {
            name: hash_of([[turn.utterance_id for turn in part.turns], part.targets.tolist()])
            for name, part in study.parts.items()
        },
        "survives": [N_SUBSTITUTES, DROP_RATE] if row.survives else [],
        "vectors": study.vectors.identity(study.store),
        "precision": study.accelerator.mixed_precision,
        "recognised": hash_of(study.recognised["store"].meta) if hears_recognised(study, row) else "",
    }
    folder = study.folder(CORPUS) / row.slug() / f"seed{seed}"
    return kept_outcome(folder, recipe, identity) or train_and_test(study, row, recipe, folder, identity)


def hears_recognised(study, row):
    """Whether a Row is tested on recognised words too: those of Table 1 are."""
    return bool(study.recognised) and row in study.main_rows


def keeps_weights(study, row):
    """Whether a Row's models stay on the disk, for the case studies."""
    return row == study.main_rows[0]


def train_and_test(study, row, recipe, folder, identity):
    """One fine-tuning; the epoch and later the initialisation are chosen on dev, the test part chooses nothing."""
    accelerator, parts = study.accelerator, study.parts
    model, weights = (
        classifier_of(study, row, recipe.seed),
        balance(parts["train"].targets).to(accelerator.device),
    )
    data = {name: study.clips(name) for name in parts}

    def loss(model, batch):
        inputs = only(batch, row.inputs)
        if row.survives:  # from torch's own generator, which every step seeds
            inputs = drop_modalities(
                inputs, DROP_RATE, torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            )
        return balanced_loss(model(inputs), batch["labels"], weights), len(batch["labels"])

    def evaluate(model):
        found = logits_of(accelerator, model, data["valid"], row.inputs) > 0
        return {"score": float(khare_metrics.selection_score(parts["valid"].targets, found))}

    history = fit(
        accelerator,
        model,
        loss,
        data["train"],
        evaluate,
        recipe,
        folder,
        identity,
        row.slug(),
        epoch_lines=False,
    )
    tested = {
        "+".join(inputs): logits_of(accelerator, model, data["test"], inputs)
        for inputs in tables.conditions(row, study.c, study.present)
    }
    if hears_recognised(study, row):
        tested[tables.RECOGNISED] = logits_of(
            accelerator, model, study.clips("test", recognised=True), row.inputs
        )
    outcome = {
        "history": history,
        "ids": [turn.utterance_id for turn in parts["test"].turns],
        "logits": {name: np.round(logits.astype(float), 5).tolist() for name, logits in tested.items()},
    }
    if accelerator.is_main_process:
        write_json(folder / "test.json", outcome)
        if not keeps_weights(study, row):
            best_weights(folder).unlink()
    accelerator.wait_for_everyone()
    print(
        f"  {row.slug():<52} seed {recipe.seed} {history['seconds']:6.1f} s  best epoch {history['best_epoch']:>3}  "
        f"dev {100 * history['best']:5.1f}",
        flush=True,
    )
    return outcome


def logits_of(accelerator, model, dataset, inputs):
    """(N, E) logits of a data set, given these modalities alone."""
    return predict(
        accelerator, model, lambda m, batch: {"logits": m(only(batch, inputs))}, dataset, EVAL_BATCH_SIZE, 0
    )["logits"]


def run_row(study, run, row):
    """All initialisations of a Row. run: None in all processes but the first."""
    outcome = study.outcomes[row] = Outcome()
    for seed in SEEDS:
        kept = finetune(study, row, seed)
        outcome.dev.append(kept["history"]["best"])
        for name, logits in kept["logits"].items():
            condition = name if name == tables.RECOGNISED else tuple(name.split("+"))
            outcome.logits.setdefault(condition, []).append(logits)
        if run:
            run.log(
                {"event": "fine-tuned", "row": row.slug(), "seed": seed, "epochs": kept["history"]["log"]}
            )
    outcome.logits = {condition: np.array(found) for condition, found in outcome.logits.items()}


def load_best(study, row):
    """The model of a Row's best initialisation, for the case studies."""
    seed = SEEDS[tables.best_seed(study, row)]
    model = build(seed, lambda: EmotionClassifier(new_encoder(row.anchor, row.survives), len(study.emotions)))
    path = best_weights(study.folder(CORPUS) / row.slug() / f"seed{seed}")
    if not path.exists():
        raise UserError(f"{path}: no such file; delete its folder and run again, it is trained anew")
    load_trained(model, load_file(path))
    return model.to(study.accelerator.device).eval()


# ---- Main ----------------------------------------------------------------------------------


def check_constants():
    """Refuse what would fail after hours."""
    for name, choices in (("MODALITIES", ALL_MODALITIES), ("METHODS", ("softmax", "nce"))):
        if set(globals()[name]) - set(choices) or not globals()[name]:
            raise UserError(f"{name}={','.join(globals()[name])}: choose among {', '.join(choices)}")
    if ANCHOR not in MODALITIES:
        raise UserError(f"ANCHOR={ANCHOR}: choose one of MODALITIES, {', '.join(MODALITIES)}")
    if PRETRAIN_CORPUS and ANCHOR != "text":
        raise UserError(
            f"ANCHOR={ANCHOR}: masked words are predicted by text; set PRETRAIN_CORPUS= or ANCHOR=text"
        )
    for name in (
        "N_RESAMPLES",
        "SHARD_CLIPS",
        "WIDTH",
        "DEPTH",
        "HEADS",
        "FEED_FORWARD",
        "N_SUBSTITUTES",
        "NOISE_WORDS",
        "PRETRAIN_EPOCHS",
        "PRETRAIN_BATCH",
        "WARMUP_STEPS",
        "FINETUNE_EPOCHS",
        "FINETUNE_BATCH",
        "VGG_BATCH",
        "EVAL_BATCH_SIZE",
        "RATE_HZ",
    ):
        if globals()[name] < 1:
            raise UserError(f"{name}={globals()[name]}: give 1 or more")
    for name in ("HIDDEN_SHARE", "HELD_OUT", "DROP_RATE"):
        if not 0 < globals()[name] < 1:
            raise UserError(f"{name}={globals()[name]:g}: a share between 0 and 1 is needed")
    if not SEEDS or FPS <= 0 or MAX_S < 0 or len(TERM_WEIGHTS) != 3 or not 0 <= DROPOUT < 1:
        raise UserError(
            "SEEDS, FPS, MAX_S, TERM_WEIGHTS or DROPOUT: give at least one seed, pictures per second above "
            "0, no negative length, three weights, and a dropout of 0 to 1"
        )
    if GLOVE:
        place_of(GLOVE)


def main():
    check_constants()
    c, accelerator = SimpleNamespace(**SETTINGS), make_accelerator(PRECISION)
    manifest = read_manifest(DATA_ROOT, CORPUS)
    fold = fold_of(manifest, N_GROUPS)
    is_main = accelerator.is_main_process
    protocol = protocol_text(manifest, N_GROUPS)
    run = start_run(__file__, SETTINGS, manifest, protocol, accelerator.device) if is_main else None
    print(*splits.check_folds([fold], manifest, None), sep="\n")
    study = Study(c, accelerator, manifest, fold)
    if FEATURES_ONLY:
        return
    for method in METHODS if PRETRAIN_CORPUS else ():
        pretrain(study, method)
    for row in tables.plan(c, study.present):
        run_row(study, run, row)
    if not is_main:
        return
    tables.write(run, study)
    khare_figures.write(run, study, load_best)
    run.predictions(tables.prediction_rows(study))
    run.finish()


if __name__ == "__main__":
    settings.run(main, globals())
