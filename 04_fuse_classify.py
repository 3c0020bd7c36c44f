"""Fuse modalities and classify emotions, in the ways of two papers.

"babaali"  B. Babaali, M. Shayaninasab, "Multi-Modal Emotion Recognition by Text, Speech and Video Using
           Pretrained Transformers": features of text, speech and video that 03 stored, fused and given to an
           SVM, a small network and XGBoost. Code and DEVIATIONS: common/babaali/fusion.py
"li"       J. Li, S. Wang, Y. Chao, X. Liu, H. Meng, "Context-aware Multimodal Fusion for Emotion
           Recognition": all layers of WavLM and BERT, the text with its neighbours in the dialogue, fused by
           cross-modal attention; needs 01 only. Code and DEVIATIONS: common/li/fusion.py, network: li_model.py

    python 04_fuse_classify.py                      # both papers on IEMOCAP, after 01, 02 and 03
    python 04_fuse_classify.py --PAPERS=li          # the second one, after 01
    python 04_fuse_classify.py --demo --PAPERS=babaali     # 20 s on 2 CPU cores
    python 04_fuse_classify.py --PAPERS=babaali --FEATURES_ROOT=my_features --OUT_OF_FOLD=false
                                                    # features from elsewhere

Reads <DATA_ROOT>/prepared/<corpus>/ and, for "babaali", <FEATURES_ROOT>.
Writes results/04_fuse_classify/<corpus>/: <paper>_table_*, <paper>_fig_*; predictions.csv and metrics.json of
"babaali", li_predictions.csv and li_metrics.json of "li"; log.jsonl, shared.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

from types import SimpleNamespace

from common.babaali import fusion as babaali_fusion
from common.errors import UserError
from common.li import fusion as li_fusion
from common.manifest import read_manifest

# ---- Constants to tweak: shared by both papers ---------------------------------------------
PAPERS = ("babaali", "li")  # which to run, in this order
DATA_ROOT = "data"  # folder of corpora, checkpoints, features
RESULTS_ROOT = "results"  # tables and figures go to <RESULTS_ROOT>/04_fuse_classify/<corpus>/
CORPUS = "iemocap"  # "iemocap", "ravdess", "emodb", "meld", or a folder with a manifest.csv
SEEDS = (0, 1, 2)  # one full run each; tables show mean ± sd over them. Not in the papers
N_GROUPS = 5  # folds, where the corpus has neither sessions nor an official split
N_RESAMPLES = 10000  # of speakers behind every interval; sign patterns of the permutation test

# ---- Babaali & Shayaninasab ----------------------------------------------------------------
FEATURES_ROOT = ""  # folder with one folder per modality; "" = <DATA_ROOT>/features/<corpus>
MODALITIES = ("text", "audio", "video")  # those without a folder of features are left out, and said so
FUSIONS = ("concatenation", "sum", "product")  # Sec. 3.3; sum and product need vectors of equal width
OUT_OF_FOLD = True  # also fit late fusion on out-of-fold logits, which 02 and 03 must have made

# Protocol, as in 02 and 03
VALIDATE_ON = "group"  # "group" or "speaker": who validates. Not in the paper
SELECT_ON = "validation"  # "test" is the paper's protocol (optimistic); tables name the one used

# Classifiers (Sec. 3.4); none of these values is in the paper
SVM_KERNEL = "rbf"  # "rbf", exp(-|a - b|^2 / D) of standardised vectors of width D, or "linear"
SVM_C = (0.1, 1.0, 10.0)  # the best on the validation speakers is used, the smallest of equals
NN_HIDDEN = 256  # units of the two-layer network's first layer
NN_DROPOUT = 0.5  # after the first layer
NN_LEARNING_RATE = 1e-3  # AdamW, weight decay 0.01
NN_BATCH = 64  # turns per step
NN_EPOCHS = 60  # at most; the epoch of the lowest validation loss is used
NN_PATIENCE = 8  # epochs without a lower validation loss before the search stops
XGB_ROUNDS = 300  # at most; the round of the lowest validation loss is used
XGB_PATIENCE = 10  # rounds without a lower validation loss before the search stops
XGB_DEPTH = 4  # depth of a tree
XGB_LEARNING_RATE = 0.3  # shrinkage of a tree
XGB_COLUMNS = 0.1  # share of the features that a tree may use, at least 16 of them
XGB_THREADS = 1  # CPU threads; two on cores that others use were 12 times slower than one

# ---- Li et al. -----------------------------------------------------------------------------
SYSTEMS = (
    "WavLM+FC",
    "WavLM+TE",
    "BERT+FC",
    "BERT+TE",
    "CMT(A→T)",
    "CMT(T→A)",
    "EF",
    "LF",
    "MMT",
)  # Table 1;
# those whose modality the corpus lacks are left out, and said so
CHECKPOINTS = "hub"  # "hub", "local" (what 01 wrote to <DATA_ROOT>/checkpoints/<corpus>), or a folder
# with one sub-folder per model
AUDIO_MODEL = "microsoft/wavlm-large"  # Sec. 2.1
TEXT_MODEL = "bert-base-uncased"  # Sec. 2.1, 12 layers; cased or not is not in the paper
AUDIO_MAX_S = 5.0  # seconds from the start of a turn (Sec. 3.2)
TEXT_MAX_TOKENS = 512  # of each utterance (Sec. 3.2)
CONTEXT_BEFORE = 4  # utterances of the dialogue before the target that its text sees (Sec. 3.2)
CONTEXT_AFTER = 4  # ... and after it; 0 is what a live system could have (Sec. 3.2)

# Network (Sec. 2)
WIDTH = 16  # per step and modality after the projector (Sec. 2.1)
SE_REDUCTION = 0  # of squeeze-and-excitation; 0 = the number of layers (Sec. 2.1)
LAYER_MERGE = "mean"  # "mean" of the calibrated layers, or "concatenate". Not in the paper
PROJECTOR_HIDDEN = 128  # units of the projector's first layer, 0 = a single layer. Not in the paper
CONTEXT_OVER = "utterances"  # the context convolution slides over "utterances" or "tokens". Not in the paper
HEADS = 1  # of attention; Eq. 1 has one
BLOCKS = 1  # Transformer blocks in a row. Not in the paper
FEED_FORWARD = 64  # units of a block's feed-forward part, 4 x WIDTH. Not in the paper
NORM_FIRST = True  # LayerNorm before attention, as in its reference [29], or after, as in [31]
CMT_RESIDUAL = True  # whether a cross-modal block adds its target to what it attends to. Not in the paper
CLASSIFIER_HIDDEN = 64  # units of the classifier's first layer. Not in the paper
DROPOUT = 0.5  # between every two modules (Sec. 3.2)
BLOCK_DROPOUT = 0.1  # inside a Transformer block. Not in the paper

# Training (Sec. 2.4 and 3.2)
FROZEN_LEARNING_RATE = 1e-3  # AdamW, while the pretrained models are frozen
FINETUNE_LEARNING_RATE = 1e-5  # then
WEIGHT_DECAY = 1e-3  # of weight matrices
BATCH_SIZE = 32  # turns per step
FINETUNED_PARTS = (
    "bottom"  # "bottom": WavLM's CNN encoder and BERT's input embeddings (Sec. 2.4); "all" weights;
)
# "none": only the frozen phase
FINETUNE_PATIENCE = 5  # epochs without a lower loss on the development speaker that start fine-tuning
STOP_PATIENCE = 10  # ... and that end it
MAX_EPOCHS = (100, 100)  # of the two phases at most. Not in the paper
KEEP_EPOCH = "last"  # the weights tested: of the "last" epoch (Sec. 3.2), or the "best" on development
DEVELOP_ON = "speaker"  # one random training "speaker" (Sec. 3.2), or the next "group" as in the first paper

# Beyond the paper: what context is worth
STUDY_SYSTEMS = ("BERT+FC", "BERT+TE")  # trained with each of STUDY_SIZES
STUDY_SIZES = ("0+0", "1+0", "2+0", "4+0", "1+1", "2+2", "4+4")  # utterances before + after
STUDY_PHASES = ("frozen",)  # "frozen", "fine-tuned"
STUDY_SEEDS = ()  # () = SEEDS; more of them where single trainings differ by more than the gain
STUDY_EPOCHS = 0  # of the frozen phase at most, 0 = as in MAX_EPOCHS

# Machine
HIDDEN_STATES = (
    "auto"  # frozen hidden states: kept in "memory", on "disk" (<DATA_ROOT>/cache), "recompute" at
)
# every step, or "auto": memory up to MEMORY_GB, disk up to DISK_GB, else recompute.
# WavLM-Large's are about 50 GB for IEMOCAP
MEMORY_GB = 8.0  # GB of memory that "auto" may take
DISK_GB = 30.0  # GB of disk that "auto" may take
KEEP_MODELS = False  # also keep fine-tuned weights, about 100 MB per system, fold and seed
EVAL_BATCH_SIZE = 32  # turns per forward pass outside training; changes the speed, not the result
PRECISION = "auto"  # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"
WORKERS = 4  # processes that prepare batches, 0 = none

# ---- Presets -------------------------------------------------------------------------------
DEMO = {
    "CORPUS": "demo_iemocap",
    "SEEDS": (0,),
    "OUT_OF_FOLD": False,
    "NN_EPOCHS": 30,
    "XGB_ROUNDS": 60,
    "CHECKPOINTS": "local",
    "WORKERS": 0,
    "DROPOUT": 0.3,
    "FROZEN_LEARNING_RATE": 2e-3,
    "FINETUNE_LEARNING_RATE": 1e-4,
    "FINETUNE_PATIENCE": 32,
    "STOP_PATIENCE": 40,
    "MAX_EPOCHS": (10, 1),
    "STUDY_SYSTEMS": ("BERT+FC",),
    "STUDY_SIZES": ("0+0", "4+0", "4+4"),
    "STUDY_SEEDS": (0, 1),
    "STUDY_EPOCHS": 24,
}
# synthetic corpus, tiny encoders with random weights; an epoch has 14 steps, hence
# the longer patience; the gain by context shows after some 300 steps
SCRATCH = {
    "SEEDS": (0,),
    "OUT_OF_FOLD": False,
    "CHECKPOINTS": "local",
    "WORKERS": 0,
    "FINETUNED_PARTS": "all",
    "FINETUNE_LEARNING_RATE": 3e-4,
    "DROPOUT": 0.3,
    "MAX_EPOCHS": (20, 5),
}  # for what 01, 02 and 03 made with
# --scratch: encoders with random weights, which fine-tuning trains whole
SETTINGS = {}  # filled by settings.run: what this run used


def main():
    run_paper = {"babaali": babaali_fusion.run, "li": li_fusion.run}
    unknown = [paper for paper in PAPERS if paper not in run_paper]
    if unknown or not PAPERS:
        raise UserError(f"PAPERS={','.join(unknown)}: choose from {', '.join(run_paper)}")
    manifest = read_manifest(DATA_ROOT, CORPUS)
    c = SimpleNamespace(**SETTINGS)
    for paper in PAPERS:
        print(f"---- {paper} (common/{paper}_fusion.py) ----")
        run_paper[paper](c, manifest)


if __name__ == "__main__":
    settings.run(main, globals())
