"""Fuse modalities and classify emotions, in the ways of two papers.

"babaali"  B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using
           Pretrained Transformers", Sections 3.3, 3.4, 4.2 and 4.3: features of text, speech and video that
           03 stored, concatenated, summed or multiplied, and given to an SVM, a small network and XGBoost.
"li"       J. Li, S. Wang, Y. Chao, X. Liu, H. Meng, "Context-aware Multimodal Fusion for Emotion
           Recognition", Interspeech 2022: all layers of WavLM and BERT, the text with its neighbours in the
           dialogue, fused by cross-modal attention; needs 01 only. Fusion and classifier (Sections 2.2, 2.3)
           are below; Section 2.1 is common/li/extractor.py, the training of Sections 2.4 and 3.2 and the
           DEVIATIONS are common/li/training.py.

    python 04_fuse_classify.py                             # both papers on IEMOCAP, after 01, 02 and 03
    python 04_fuse_classify.py --PAPERS=li                 # the second one, after 01
    python 04_fuse_classify.py --demo --PAPERS=babaali     # 20 s on 2 CPU cores
    python 04_fuse_classify.py --PAPERS=babaali --FEATURES_ROOT=my_features --OUT_OF_FOLD=false
    python 04_fuse_classify.py --PAPERS=babaali --CORPUS=my_clips/ --TRAINED_ON=iemocap   # after 03 with both

Reads <DATA_ROOT>/prepared/<corpus>/ and, for "babaali", <FEATURES_ROOT>.
Writes results/04_fuse_classify/<corpus>/: <paper>_table_*, <paper>_fig_*; predictions.csv and metrics.json of
"babaali", li_predictions.csv and li_metrics.json of "li"; log.jsonl, shared.

DEVIATIONS of "babaali"
1. The paper gives no settings of its classifiers. Here C, the network's epochs and XGBoost's rounds are
   chosen on the fold's validation speakers, then the classifier is fitted again on training and validation
   turns. Where SELECT_ON = "test" leaves no such speakers, every fourth training speaker chooses.
2. Vectors are fused as they are; the fused ones are standardised by the turns that fit the classifier.
3. Late fusion takes logits ("the classification results from the last layer"). An encoder is more certain of
   its own training turns than of new speakers; OUT_OF_FOLD adds, beside the paper's way, classifiers fitted
   on logits of encoders that saw neither the turn's session nor the test session (ten per modality).
4. A turn that a modality lacks gets that modality's training mean and is counted below the tables, so that
   every labelled turn is scored. The paper does not mention any.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xgboost
from sklearn.svm import SVC
from torch import nn
from torch.nn import functional as F

from common import splits
from common.babaali import prediction
from common.babaali import tables as babaali_tables
from common.babaali.baselines import baseline_vectors, linear_svm
from common.babaali.features import StoredFeatures, divide, features_folder, fill_absent, standardise
from common.babaali.tables import baseline, final_model
from common.comparison import Scores
from common.encoders import locate
from common.extraction import Extraction
from common.files import UserError
from common.jobs import side_by_side
from common.layers import sinusoidal
from common.li import tables as li_tables
from common.li.extractor import FeatureExtractor, average
from common.li.hidden_states import keep_states, read_utterances
from common.li.training import FROZEN, TUNED, Study, possible_systems, train_all
from common.manifest import read_manifest
from common.results import prediction_rows, start_run
from common.training import Recipe, make_accelerator

# fmt: off
# ---- Roots ---------------------------------------------------------------------------------
DATA_ROOT = "data"                # folder of corpora, checkpoints, features
RESULTS_ROOT = "results"          # tables and figures go to <RESULTS_ROOT>/04_fuse_classify/<corpus>/
RUN = ""                          # name of its folder; "" = the corpus and what differs from the preset
FEATURES_ROOT = ""                # of "babaali", then run alone: a folder per modality; "" = what 03 made
CHECKPOINTS = "hub"               # "hub", "local" (what 01 wrote), or a folder with one sub-folder per model

# ---- Corpus and protocol -------------------------------------------------------------------
PAPERS = ("babaali", "li")        # which to run, in this order
CORPUS = "iemocap"                # "iemocap", "ravdess", "emodb", "meld", or a folder with a manifest.csv
TRAINED_ON = ""                   # corpus of the models that decide, of "babaali"; "" = CORPUS
LABELS = ()                       # of CORPUS in its words, such as joy=happy,calm= (left out); () = equal
SEEDS = (0, 1, 2)                 # one full run each; tables show mean ± sd over them. Not in the papers
N_GROUPS = 5                      # folds, where the corpus has neither sessions nor an official split
N_RESAMPLES = 10000               # of speakers behind every interval; sign patterns of the permutation test

# ---- Babaali & Shayaninasab: protocol and fusion (Sec. 3.3) --------------------------------
VALIDATE_ON = "group"             # "group" or "speaker": who validates, as in 02. Not in the paper
SELECT_ON = "validation"          # "test" is the paper's protocol (optimistic), as in 02
TRAIN_ON_VALIDATION = True        # as in 02
MODALITIES = ("text", "audio", "video")              # those without features are left out, and said so
FUSIONS = ("concatenation", "sum", "product")        # sum and product need vectors of equal width
BASELINES = ()                    # rows beside, by a linear SVM: "words" (TF-IDF), or folders of features,
                                  # such as "ComParE_2016", which 03 --OPENSMILE makes. Not in the paper
OUT_OF_FOLD = True                # also fit late fusion on out-of-fold logits, which 02 and 03 must have made

# ---- Babaali & Shayaninasab: classifiers (Sec. 3.4); none of these values is in the paper --
CLASSIFIERS = ()                  # such as SVM,NN; () = all that CLASSIFY below names: SVM, NN, XGBoost
SVM_KERNEL = "rbf"                # of vectors of width D: "rbf", exp(-|a - b|^2 / D), or "linear", a b / D
SVM_C = (0.1, 1.0, 10.0)          # the best on validation speakers, the smallest of equals; of BASELINES too
NN_HIDDEN = 256                   # units of the two-layer network's first layer
NN_DROPOUT = 0.5                  # after the first layer
NN_LEARNING_RATE = 1e-3           # AdamW, weight decay 0.01
NN_BATCH_SIZE = 64                # turns per step
NN_EPOCHS = 60                    # at most; the epoch of the lowest validation loss is used
NN_PATIENCE = 8                   # epochs without a lower validation loss before the search stops
XGB_ROUNDS = 300                  # at most; the round of the lowest validation loss is used
XGB_PATIENCE = 10                 # rounds without a lower validation loss before the search stops
XGB_DEPTH = 4                     # depth of a tree
XGB_LEARNING_RATE = 0.3           # shrinkage of a tree
XGB_COLUMNS = 0.1                 # share of the features that a tree may use, at least 16 of them

# ---- Li et al.: systems and inputs (Sec. 2.1, 3.2) -----------------------------------------
SYSTEMS = ()                      # such as BERT+FC,MMT; () = all of Table 1, which BRANCHES below names;
                                  # those whose modality the corpus lacks are left out, and said so
AUDIO_MODEL = "microsoft/wavlm-large"    # Sec. 2.1
TEXT_MODEL = "bert-base-uncased"  # Sec. 2.1, 12 layers; cased or not is not in the paper
AUDIO_MAX_S = 5.0                 # seconds from the start of a turn (Sec. 3.2)
TEXT_MAX_TOKENS = 512             # of each utterance (Sec. 3.2)
CONTEXT_BEFORE = 4                # utterances of the dialogue before the target that its text sees (Sec. 3.2)
CONTEXT_AFTER = 4                 # ... and after it; 0 is what a live system could have (Sec. 3.2)

# ---- Li et al.: network (Sec. 2) -----------------------------------------------------------
WIDTH = 16                        # per step and modality after the projector (Sec. 2.1)
SE_REDUCTION = 0                  # of squeeze-and-excitation; 0 = the number of layers (Sec. 2.1)
LAYER_MERGE = "mean"              # "mean" of the calibrated layers, or "concatenate". Not in the paper
STANDARDISE = False               # by mean and sd in training: Whisper's states need it. Not in the paper
PROJECTOR_HIDDEN = 128            # units of the projector's first layer, 0 = a single layer. Not in the paper
HEADS = 1                         # of attention; Eq. 1 has one
BLOCKS = 1                        # Transformer blocks in a row. Not in the paper
FEED_FORWARD = 64                 # units of a block's feed-forward part, 4 x WIDTH. Not in the paper
NORM_FIRST = True                 # LayerNorm before attention, as in its reference [29], or after, as in [31]
CMT_RESIDUAL = True               # a cross-modal block adds its target to its output. Not in the paper
CLASSIFIER_HIDDEN = 64            # units of the classifier's first layer. Not in the paper
DROPOUT = 0.5                     # between every two modules (Sec. 3.2)
BLOCK_DROPOUT = 0.1               # inside a Transformer block. Not in the paper

# ---- Li et al.: training (Sec. 2.4 and 3.2) ------------------------------------------------
FROZEN_LEARNING_RATE = 1e-3       # AdamW, while the pretrained models are frozen
FINETUNE_LEARNING_RATE = 1e-5     # then
WEIGHT_DECAY = 1e-3               # of weight matrices
BATCH_SIZE = 32                   # turns per step
FINETUNED_PARTS = "bottom"        # "bottom": WavLM's CNN encoder and BERT's input embeddings (Sec. 2.4);
                                  # "all" weights; "none": only the frozen phase
FINETUNE_PATIENCE = 5             # epochs without a lower loss on the development speaker: fine-tuning starts
STOP_PATIENCE = 10                # ... and that end it
FROZEN_EPOCHS = 100               # at most. Not in the paper
FINETUNE_EPOCHS = 100             # at most. Not in the paper
KEEP_EPOCH = "last"               # test the weights of the "last" epoch (Sec. 3.2), or of the "best"

# ---- Beyond the paper ----------------------------------------------------------------------
BEYOND_PAPER = True               # also tests, subsets of modalities, styles, and what context is worth:
CONTEXT_SYSTEMS = ("BERT+FC", "BERT+TE")             # trained, frozen, with each of CONTEXT_SIZES; () = none
CONTEXT_SIZES = ("0+0", "1+0", "2+0", "4+0", "1+1", "2+2", "4+4")    # utterances before + after
CONTEXT_SEEDS = ()                # () = SEEDS; more of them where trainings differ by more than the gain
CONTEXT_EPOCHS = 0                # at most, 0 = FROZEN_EPOCHS

# ---- Machine -------------------------------------------------------------------------------
HIDDEN_STATES = "auto"            # of frozen models: kept on "disk", also on the "device", or always computed
                                  # "anew"; "auto": on disk, or anew where a GPU computes faster than it reads
CACHE_GB = 60.0                   # on disk at most; WavLM-Large's take 50 GB for IEMOCAP. Larger: anew
EVAL_BATCH_SIZE = 32              # turns per forward pass outside training; changes the speed, not the result
PRECISION = "auto"                # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"
DETERMINISTIC = True              # the same numbers again on the same machine; False is faster on a GPU
WORKERS = 4                       # processes that prepare batches, 0 = none
JOBS = 1                          # trainings side by side, each in a process of its own
TRACKER = ""                      # "tensorboard" (in data/models) or "wandb" sees every epoch; "" = none

# ---- Presets -------------------------------------------------------------------------------
DEMO = {"JOBS": 2, "CORPUS": "demo_iemocap", "SEEDS": (0,), "OUT_OF_FOLD": False, "NN_EPOCHS": 12,
        "NN_BATCH_SIZE": 128, "NN_LEARNING_RATE": 2e-3, "XGB_ROUNDS": 30,
        "CHECKPOINTS": "local", "WORKERS": 0, "AUDIO_MAX_S": 3.0, "DROPOUT": 0.2,
        "FROZEN_LEARNING_RATE": 3e-3, "FINETUNE_LEARNING_RATE": 1e-4, "FINETUNE_PATIENCE": 32,
        "STOP_PATIENCE": 40, "FROZEN_EPOCHS": 7, "FINETUNE_EPOCHS": 1, "CONTEXT_SYSTEMS": ("BERT+FC",),
        "CONTEXT_SIZES": ("0+0", "4+4"), "CONTEXT_SEEDS": (0, 1), "CONTEXT_EPOCHS": 18,
        "CONTEXT_BEFORE": 2, "CONTEXT_AFTER": 2, "RESULTS_ROOT": "results/mine"}
                                  # synthetic corpus, random weights; 14 steps an epoch, hence the patience
SCRATCH = {"SEEDS": (0,), "OUT_OF_FOLD": False, "CHECKPOINTS": "local", "WORKERS": 0, "DROPOUT": 0.3,
           "FINETUNED_PARTS": "all", "FINETUNE_LEARNING_RATE": 3e-4, "FROZEN_EPOCHS": 20,
           "FINETUNE_EPOCHS": 5}  # two CPU cores, from random weights: for what 01 to 03 made with --scratch
# fmt: on
SETTINGS = {}  # filled by settings.run: what this run used
SOURCE = Path(__file__).read_text(encoding="utf-8")


# ==== Babaali & Shayaninasab ================================================================
# ---- Fusion (Section 3.3) ------------------------------------------------------------------

FUSE = {
    "concatenation": lambda vectors: np.concatenate(vectors, axis=1),
    "sum": lambda vectors: np.sum(vectors, axis=0),
    "product": lambda vectors: np.prod(vectors, axis=0),
}


def fuse(vectors, fusion):
    """Join the modalities' vectors: {modality: (N, D_m)} -> (N, sum of D_m); sum and product: (N, D)."""
    if fusion != "concatenation" and len({x.shape[1] for x in vectors.values()}) > 1:
        widths = ", ".join(f"{m} {x.shape[1]}" for m, x in vectors.items())
        remedy = "set FUSIONS=concatenation, or extract features of equal width"
        raise UserError(f"FUSIONS={fusion}: needs vectors of equal width, but they are {widths}; {remedy}")
    return FUSE[fusion](list(vectors.values()))


# ---- Classifiers (Section 3.4) -------------------------------------------------------------
# Each takes x (N, D), y (N,) and the rows that `parts` names: it is fitted on `fit` while its settings are
# chosen by the score on `choose`, then fitted again on `refit`, which is both. Returns (class of every test
# turn, accuracy on the turns that chose).


def svm(x, y, parts, seed):
    """Support vector machine, its C chosen among SVM_C."""
    return svm_with_probabilities(x, y, parts)[0]


def svm_with_probabilities(x, y, parts):
    """(what `svm` returns, probabilities (n, C)); their temperature is fitted on the turns that chose C."""

    def fitted(z, rows, penalty):
        machine = SVC(C=penalty, kernel=SVM_KERNEL, gamma=1, decision_function_shape="ovo")
        return machine.fit(z[rows], y[rows])

    root_width = math.sqrt(x.shape[1])
    z = standardise(x, parts.fit) / root_width
    trials = [fitted(z, parts.fit, c) for c in SVM_C]
    accuracies = [machine.score(z[parts.choose], y[parts.choose]) for machine in trials]
    best = int(np.argmax(accuracies))
    scores = prediction.class_scores(trials[best], z[parts.choose])
    z = standardise(x, parts.refit) / root_width
    machine, z = fitted(z, parts.refit, SVM_C[best]), z[parts.test]
    p = prediction.tempered(scores, y[parts.choose], prediction.class_scores(machine, z))
    return (machine.predict(z), accuracies[best]), p


def network(x, y, parts, seed):
    """Two-layer network, its number of epochs chosen."""
    z, target = torch.from_numpy(standardise(x, parts.fit)).float(), torch.from_numpy(y)
    losses, logits = [], []
    for model in train_network(z, target, parts.fit, NN_EPOCHS, seed):
        with torch.no_grad():
            logits.append(model(z[parts.choose]))
        losses.append(F.cross_entropy(logits[-1], target[parts.choose]).item())
        if len(losses) - np.argmin(losses) > NN_PATIENCE:
            break
    best = int(np.argmin(losses))
    accuracy = (logits[best].argmax(1) == target[parts.choose]).float().mean().item()
    z = torch.from_numpy(standardise(x, parts.refit)).float()
    *_, model = train_network(z, target, parts.refit, best + 1, seed)
    with torch.no_grad():
        return model(z[parts.test]).argmax(1).numpy(), accuracy


def train_network(z, target, rows, epochs, seed):
    """Train on some rows of z (N, D); give the model after every epoch, in evaluation mode."""
    z, target, n_classes = z[rows], target[rows], int(target.max()) + 1
    with torch.random.fork_rng(devices=[]):  # dropout and the first weights know no other generator
        torch.manual_seed(seed)
        first, last = nn.Linear(z.shape[1], NN_HIDDEN), nn.Linear(NN_HIDDEN, n_classes)
        model = nn.Sequential(first, nn.ReLU(), nn.Dropout(NN_DROPOUT), last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=NN_LEARNING_RATE, weight_decay=0.01, fused=True)
        for _ in range(epochs):
            model.train()
            for batch in torch.randperm(len(z)).split(NN_BATCH_SIZE):
                loss = F.cross_entropy(model(z[batch]), target[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            yield model.eval()


def boosted_trees(x, y, parts, seed):
    """XGBoost, its number of rounds chosen."""
    options = {"objective": "multi:softprob", "num_class": int(y.max()) + 1, "seed": seed}
    options |= {"max_depth": XGB_DEPTH, "eta": XGB_LEARNING_RATE}
    options["colsample_bytree"] = max(XGB_COLUMNS, min(1, 16 / x.shape[1]))
    options["nthread"] = 1  # two on cores that others use were 12 times slower
    rows = (parts.fit, parts.choose, parts.refit, parts.test)
    fit, choose, refit, test = (xgboost.DMatrix(x[part], y[part], nthread=1) for part in rows)
    stopping = {"evals": [(choose, "choose")], "early_stopping_rounds": XGB_PATIENCE, "verbose_eval": False}
    trial = xgboost.train(options, fit, XGB_ROUNDS, **stopping)
    chosen = trial.predict(choose, iteration_range=(0, trial.best_iteration + 1)).argmax(1)
    final = xgboost.train(options, refit, trial.best_iteration + 1)
    return final.predict(test).argmax(1), np.mean(chosen == y[parts.choose])


CLASSIFY = {"SVM": svm, "NN": network, "XGBoost": boosted_trees}


# ---- Cross-validation ----------------------------------------------------------------------


def test_fold(features, systems, seed, k):
    """Of the test turns: ({System: (labels (n,), accuracy that chose)}, probabilities (n, C))."""
    manifest, fold = features.manifest, features.folds[k]
    y = np.array([manifest.classes.index(turn.label) for turn in manifest.labelled])
    parts, found, final = divide(fold, manifest.labelled), {}, final_model(features.modalities)
    data = features.read(seed, k)
    for level in data:
        data[level] = {m: fill_absent(x, parts.fit) for m, x in data[level].items()}
    for system in systems:
        x = fuse({m: data[system.level][m] for m in system.modalities}, system.fusion)
        if system == final:
            found[system], p = svm_with_probabilities(x, y, parts)
        else:
            found[system] = CLASSIFY[system.classifier](x, y, parts, seed)
    for name in BASELINES:
        vectors = partial(baseline_vectors, name, manifest, features.root)
        found[baseline(name)] = linear_svm(vectors, y, parts, SVM_C)
    right = 100 * np.mean(found[final][0] == y[parts.test])
    print(f"seed {seed} {fold.name}: final model {right:.1f} %", flush=True)
    return found, p


def run_babaali(manifest):
    """The first paper: every fusion and classifier on every fold, Tables 5 to 7, Figures 8 to 12."""
    if TRAINED_ON:
        return run_trained_on(read_manifest(DATA_ROOT, TRAINED_ON), manifest)
    features = stored_features(manifest, OUT_OF_FOLD)
    folds = features.folds
    protocol = splits.protocol_text(manifest, folds, VALIDATE_ON, SELECT_ON)
    run = start_run(__file__, settings_of("babaali"), manifest, protocol)
    print(*splits.check_folds(folds, manifest), sep="\n")
    scores, classifiers = Scores(manifest, folds, SEEDS, N_RESAMPLES, features), list(CLASSIFIERS or CLASSIFY)
    systems = babaali_tables.list_systems(features, FUSIONS, classifiers)
    tasks = [(features, systems, seed, k) for seed in SEEDS for k in range(len(folds))]
    probabilities = np.full((len(SEEDS), len(manifest.labelled), len(manifest.classes)), np.nan)
    for (_, _, seed, k), (found, p) in zip(tasks, side_by_side(test_fold, tasks, JOBS)):
        probabilities[SEEDS.index(seed), scores.tested[k]] = p
        for system, (labels, accuracy) in found.items():
            scores.add(system, seed, k, labels, 1 - accuracy)
    scores.check()
    babaali_tables.write(scores, run, FUSIONS, classifiers, probabilities, BEYOND_PAPER)
    run.predictions(prediction_rows(scores.turns, scores.classes, scores.runs(), scores.predicted))
    run.finish(weights=features.weights(SEEDS[0]))


def stored_features(manifest, out_of_fold):
    """What 03 or the user stored of a corpus, and its folds."""
    folds = splits.make_folds(manifest, N_GROUPS, VALIDATE_ON, SELECT_ON, 0, 1, TRAIN_ON_VALIDATION)
    root = Path(FEATURES_ROOT or features_folder(DATA_ROOT, manifest.corpus))
    names = ("SELECT_ON", "VALIDATE_ON", "TRAIN_ON_VALIDATION")
    made_with = {name.lower(): SETTINGS[name] for name in names}
    return StoredFeatures(root, manifest, folds, made_with, out_of_fold, MODALITIES)


def run_trained_on(trained, manifest):
    """Decide the turns of a corpus by the SVMs of every seed and fold of another one, fitted anew."""
    features = stored_features(trained, False)
    protocol = f"the mean of the {len(features.folds)} fold models trained on {trained.corpus}"
    run = start_run(__file__, settings_of("babaali"), manifest, protocol)
    root = features_folder(DATA_ROOT, manifest.corpus, trained.corpus)
    other = prediction.stored_by(features, root, manifest, SEEDS)

    def probabilities(x, y, parts):
        return svm_with_probabilities(fuse(x, "concatenation"), y, parts)[1]

    found = prediction.decide(other, probabilities)
    prediction.write_probabilities(run, other, found)
    if manifest.labelled:
        prediction.write_scores(run, other, found, LABELS, N_RESAMPLES)
    run.finish(weights=features.weights(other.seeds[0]))


# ==== Li et al. =============================================================================
# B samples, T steps of a sequence, d = WIDTH. `visible` is True where a step is not padding.

# Table 1, Figure 3: a system is a list of branches (target, source), each of which ends in one vector. No
# source: the target is averaged over time as it is ("FC"); source = target: a Transformer encoder ("TE");
# else the cross-modal Transformer, CMT(source -> target). EF, LF and MMT concatenate two branches.
BRANCHES = {
    "WavLM+FC": [("audio", None)],
    "WavLM+TE": [("audio", "audio")],
    "BERT+FC": [("text", None)],
    "BERT+TE": [("text", "text")],
    "CMT(A→T)": [("text", "audio")],
    "CMT(T→A)": [("audio", "text")],
    "EF": [("audio", None), ("text", None)],
    "LF": [("audio", "audio"), ("text", "text")],
    "MMT": [("text", "audio"), ("audio", "text")],
}

# ---- Cross-modal fusion (Section 2.2) ------------------------------------------------------


class Block(nn.Module):
    """A Transformer block whose queries come from the target, keys and values from the source."""

    def __init__(self, residual):
        super().__init__()
        self.residual = residual
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        first, last = nn.Linear(WIDTH, FEED_FORWARD), nn.Linear(FEED_FORWARD, WIDTH)
        self.feed_forward = nn.Sequential(first, nn.ReLU(), last)
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(BLOCK_DROPOUT)

    def forward(self, target, source, source_visible):
        """target (B, T_t, d), source (B, T_s, d), source_visible (B, T_s) -> (B, T_t, d)."""
        own = target if self.residual else 0
        if NORM_FIRST:
            x = own + self.attend(self.norm_attention(target), self.norm_attention(source), source_visible)
            return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        x = self.norm_attention(own + self.attend(target, source, source_visible))
        return self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))

    def attend(self, target, source, source_visible):
        """Equation 1: softmax(Q_t K_s^T / sqrt(d_k)) V_s, its heads joined: (B, T_t, d)."""
        rows = self.query(target), self.key(source), self.value(source)
        q, k, v = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in rows)  # (B, heads, T, d / heads) each
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=source_visible[:, None, None])
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2)))


class Transformer(nn.Module):
    """Blocks in a row: a Transformer encoder where source and target are one, else the cross-modal CMT."""

    def __init__(self, cross_modal):
        super().__init__()
        self.cross_modal = cross_modal
        self.blocks = nn.ModuleList(Block(CMT_RESIDUAL or not cross_modal) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH) if NORM_FIRST else nn.Identity()

    def forward(self, target, source, source_visible):
        """target (B, T_t, d), source (B, T_s, d), source_visible (B, T_s) -> (B, T_t, d)."""
        x, source = place(target), place(source)
        for block in self.blocks:
            x = block(x, source if self.cross_modal else x, source_visible)
        return self.norm(x)


def place(x):
    """Add positions to a sequence (B, T, d), scaled against them, as in the vanilla Transformer."""
    return math.sqrt(WIDTH) * x + sinusoidal(x.shape[1], WIDTH, x.device).to(x.dtype)


class FusionNetwork(nn.Module):
    """One of the systems of Table 1.

    name    key of BRANCHES
    shapes  {modality: (L, D)}, layers of the pretrained models and their width
    window  (utterances before, after) that the text sees
    """

    def __init__(self, name, shapes, window, n_classes):
        super().__init__()
        self.branches = BRANCHES[name]
        choices = WIDTH, SE_REDUCTION, LAYER_MERGE, PROJECTOR_HIDDEN, STANDARDISE
        extractors = {m: FeatureExtractor(m, shapes[m], window, *choices) for m in modalities_of(name)}
        self.extractors, self.transformers = nn.ModuleDict(extractors), nn.ModuleList()
        for target, source in self.branches:
            self.transformers.append(Transformer(source != target) if source else nn.Identity())
        self.dropout = nn.Dropout(DROPOUT)
        first = nn.Linear(WIDTH * len(self.branches), CLASSIFIER_HIDDEN)
        self.classifier = nn.Sequential(first, nn.ReLU(), nn.Linear(CLASSIFIER_HIDDEN, n_classes))  # Sec. 2.3

    def forward(self, batch):
        """batch: {modality: inputs of its FeatureExtractor, ...} -> logits (B, C)."""
        streams = {}
        for modality, extractor in self.extractors.items():
            x, visible = extractor(batch[modality])  # (B, T, d), (B, T)
            streams[modality] = self.dropout(x), visible
        pooled = []
        for (target, source), transformer in zip(self.branches, self.transformers):
            x, visible = streams[target]
            if source is not None:
                x = transformer(x, *streams[source])
            pooled.append(average(x, visible))  # (B, d)
        return self.classifier(self.dropout(torch.cat(pooled, 1)))


def modalities_of(name):
    """The modalities that a system of Table 1 reads, audio first."""
    return tuple(m for m in ("audio", "text") if any(m in branch for branch in BRANCHES[name]))


# ---- Training (Sections 2.4 and 3.2) -------------------------------------------------------


def cross_entropy(model, batch):
    """Sum of the cross-entropy over the batch, and its size (Sec. 2.4)."""
    return F.cross_entropy(model(batch).float(), batch["labels"], reduction="sum"), len(batch["labels"])


def recipe(learning_rate, epochs, patience):
    """AdamW at a constant rate until the development speaker's loss has not fallen for a while (Sec. 3.2)."""
    stop = {"select_by": "lowest loss", "patience": patience, "keep": KEEP_EPOCH, "clip_norm": 0.0}
    constant = {"schedule": "constant", "eval_batch_size": EVAL_BATCH_SIZE, "workers": WORKERS}
    return Recipe(learning_rate, epochs, BATCH_SIZE, WEIGHT_DECAY, **constant, **stop)


def make_study(manifest):
    """What every training of the second paper needs: systems, folds, inputs, network and recipes."""
    systems = possible_systems({s: modalities_of(s) for s in SYSTEMS or BRANCHES}, manifest)
    models = {"audio": (AUDIO_MODEL, AUDIO_MAX_S), "text": (TEXT_MODEL, TEXT_MAX_TOKENS)}
    utterances = {}
    for m in sorted({m for modalities in systems.values() for m in modalities}):
        source = locate(models[m][0], CHECKPOINTS, DATA_ROOT, manifest.corpus)
        utterances[m] = read_utterances(manifest, m, source, models[m][1])
    recipes = {FROZEN: recipe(FROZEN_LEARNING_RATE, FROZEN_EPOCHS, FINETUNE_PATIENCE)}
    if FINETUNED_PARTS != "none":
        recipes[TUNED] = recipe(FINETUNE_LEARNING_RATE, FINETUNE_EPOCHS, STOP_PATIENCE)
    return Study(
        manifest=manifest,
        systems=systems,
        numbered=list(BRANCHES),
        window=(CONTEXT_BEFORE, CONTEXT_AFTER),
        folds=development_folds(manifest, SEEDS),
        utterances=utterances,
        network=FusionNetwork,
        loss=cross_entropy,
        design=settings_in("Li et al.: network"),
        recipes=recipes,
        finetuned_parts=FINETUNED_PARTS,
        device=(PRECISION, DETERMINISTIC, TRACKER),
        folder=Path(DATA_ROOT) / "models" / manifest.corpus / "li",
    )


def development_folds(manifest, seeds):
    """{seed: folds}: each seed draws its own development speaker (Sec. 3.2); the test parts are the same."""
    return {seed: splits.make_folds(manifest, N_GROUPS, "speaker", "validation", seed) for seed in seeds}


def train_contexts(study, run):
    """Beyond the paper: CONTEXT_SYSTEMS with each of CONTEXT_SIZES, by epochs and seeds of their own."""
    systems = [system for system in CONTEXT_SYSTEMS if system in study.systems]
    turns, sizes = study.manifest.turns, [parse_size(text) for text in CONTEXT_SIZES]
    if len({turn.dialogue_id for turn in turns}) == len(turns) or not (systems and sizes):
        print("no table of context sizes: no dialogues, or nothing in CONTEXT_SYSTEMS and CONTEXT_SIZES")
        return None
    seeds, epochs = CONTEXT_SEEDS or SEEDS, CONTEXT_EPOCHS or FROZEN_EPOCHS
    if (seeds, epochs) != (SEEDS, FROZEN_EPOCHS):
        recipes = {FROZEN: replace(study.recipes[FROZEN], epochs=epochs)}
        folder, folds = study.folder.with_name("li_contexts"), development_folds(study.manifest, seeds)
        study = replace(study, folds=folds, recipes=recipes, folder=folder)
    scores = train_all(study, systems, sizes, [FROZEN], N_RESAMPLES, JOBS, run)
    how = f"{epochs} epochs at most, seeds {', '.join(map(str, seeds))}. "
    li_tables.context_table(scores, run, systems, sizes, how)
    return scores


def parse_size(text):
    """ "4+0" -> (4, 0): utterances before and after."""
    parts = text.split("+")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise UserError(f"CONTEXT_SIZES={text}: write utterances before and after, such as 4+4 or 4+0")
    return int(parts[0]), int(parts[1])


def run_li(study):
    """The second paper: hidden states, all systems on all folds and seeds, Tables 1 and 2, Figure 4."""
    accelerator, manifest = make_accelerator(PRECISION, DETERMINISTIC, TRACKER), study.manifest
    folds = study.folds[SEEDS[0]]
    protocol = splits.protocol_text(manifest, folds, "speaker", use="training stopped by the loss of")
    tuned = ", all weights fine-tuned" if FINETUNED_PARTS == "all" else ""
    protocol += f", {KEEP_EPOCH} epoch kept{tuned}"
    run = start_run(__file__, settings_of("li"), manifest, protocol, accelerator.device, paper="li")
    print(*splits.check_folds(folds, manifest), sep="\n")
    left, cache = CACHE_GB, Path(DATA_ROOT) / "cache" / manifest.corpus
    how = Extraction(EVAL_BATCH_SIZE, WORKERS, max_problem_share=0.5)  # what cannot be read is silence
    for utterances in reversed(study.utterances.values()):  # text first, since it is small
        left -= keep_states(utterances, manifest, accelerator, cache, left, HIDDEN_STATES, how)
    scores = train_all(study, [*study.systems], [study.window], [*study.recipes], N_RESAMPLES, JOBS, run)
    li_tables.table_1(scores, run)
    li_tables.table_2(scores, run)
    li_tables.figure_4(scores, run)
    if BEYOND_PAPER:
        li_tables.tests_table(scores, run)
        li_tables.styles_table(scores, run)
    contexts = train_contexts(study, run) if BEYOND_PAPER else None
    run.predictions(li_tables.named_predictions(scores, contexts))
    run.finish()


# ==== Both ==================================================================================


def settings_in(block):
    """SETTINGS of the blocks of constants whose title begins so."""
    constants, _ = settings.read_constants(SOURCE)
    return {name: value for name, value in SETTINGS.items() if constants[name].block.startswith(block)}


def settings_of(paper):
    """SETTINGS without the constants of the other paper, which do not change this one's results."""
    other = settings_in({"babaali": "Li", "li": "Babaali"}[paper])
    return {name: value for name, value in SETTINGS.items() if name not in other}


def check_constants():
    """Refuse what would fail later or mean nothing."""
    choices = {
        "babaali": {"FUSIONS": FUSE, "CLASSIFIERS": CLASSIFY, "SVM_KERNEL": ("rbf", "linear")},
        "li": {
            **dict.fromkeys(("SYSTEMS", "CONTEXT_SYSTEMS"), BRANCHES),
            "LAYER_MERGE": ("mean", "concatenate"),
            "HIDDEN_STATES": ("auto", "disk", "device", "anew"),
            "FINETUNED_PARTS": ("bottom", "all", "none"),
            "KEEP_EPOCH": ("last", "best"),
        },
    }
    settings.check_choices(SETTINGS, {"PAPERS": tuple(choices)})
    for paper in PAPERS:
        settings.check_choices(SETTINGS, choices[paper])
    li, slips = "li" in PAPERS, [pair for pair in LABELS if "=" not in pair or not TRAINED_ON]
    other = TRAINED_ON and (FEATURES_ROOT or PAPERS != ("babaali",))
    patience = f"FINETUNE_PATIENCE={FINETUNE_PATIENCE}: must lie below STOP_PATIENCE={STOP_PATIENCE}"
    settings.refuse(
        (li and WIDTH % HEADS, f"HEADS={HEADS}: does not divide WIDTH={WIDTH}"),
        (li and FINETUNE_PATIENCE >= STOP_PATIENCE, patience),
        (li and HIDDEN_STATES == "device" and JOBS > 1, "HIDDEN_STATES=device: for one process, set JOBS=1"),
        (other, "TRAINED_ON: needs PAPERS=babaali and no FEATURES_ROOT"),
        (slips, f"LABELS={','.join(slips)}: write joy=happy,calm= and name TRAINED_ON"),
    )
    for text in CONTEXT_SIZES:
        parse_size(text)


def main():
    check_constants()
    manifest = read_manifest(DATA_ROOT, CORPUS)
    papers = ("babaali",) if FEATURES_ROOT and "babaali" in PAPERS else PAPERS
    if papers != PAPERS:
        print("FEATURES_ROOT has no part in the second paper, which is left out; --PAPERS=li runs it")
    study = make_study(manifest) if "li" in papers else None  # opens its models before anything slow
    for paper in papers:
        print(f"---- {paper} ----")
        run_babaali(manifest) if paper == "babaali" else run_li(study)


if __name__ == "__main__":
    settings.run(main, globals())
