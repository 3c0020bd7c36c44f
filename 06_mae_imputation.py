"""Impute audio and video clips that got lost, by a masked autoencoder trained with a curriculum, and classify.

Paper: G. Chochlakis, C. Lavania, P. Mathur, K. J. Han, "Tackling missing modalities in audio-visual representation
learning using masked autoencoders", Interspeech 2024: Figures 2, 3 and 4. Clips and their features are common/chochlakis/clips.py,
the frozen backbones common/chochlakis/backbones.py, the masked autoencoder, the classifiers and the baselines
common/chochlakis/mae.py, the splits common/chochlakis/splits.py, tables and figures common/chochlakis/tables.py.

    python 06_mae_imputation.py --CORPUS=cremad     # and ravdess, lombard: each prepared by 01, and audioset first
    python 06_mae_imputation.py --demo              # after 01 --demo --CORPUS=demo_audioset and demo_cremad
    python 06_mae_imputation.py --scratch --CORPUS=ravdess      # without the authors' weights and without AudioSet

Stages, each kept in <DATA_ROOT> and gone on with after a kill, for each of BACKBONES:
1. features of all clips of PRETRAIN_CORPUS and CORPUS, once -> clips/<corpus>/<backbone>
2. masked autoencoder on PRETRAIN_CORPUS at a fixed rate     -> models/<pretraining corpus>/chochlakis/<backbone>
3. ... fine-tuned on CORPUS with the curriculum, and at the fixed rate for Figure 4
4. classifiers on whole features, then fine-tuned on imputed ones  -> models/<corpus>/chochlakis/<backbone>/seed<n>
Writes results/06_mae_imputation/<corpus>/: chochlakis_fig_2_avid-cma, chochlakis_fig_3_crisscross, chochlakis_fig_4 and
their numbers as tables; chochlakis_table_cases (where the method wins, ties or loses); beyond the paper
chochlakis_table_imputation, chochlakis_table_cost, chochlakis_fig_baselines, chochlakis_fig_unequal,
chochlakis_fig_bursts; predictions.csv, metrics.json, log.jsonl.

DEVIATIONS and what the paper leaves open; constants in capitals
1. One linear layer per modality leads into CAV-MAE's encoder and one out of its decoder, in place of those for patches.
   Targets are features less their mean and over their standard deviation, of training clips.
2. Clips follow each other from the start of a recording. What lies beyond its end is silence and its last frame.
3. The fixed rate of pretraining is 7 of 10 clips (Section 4.4 says 70 %); in 5 clips, 4 are nearest to 70 %.
4. Epochs of all trainings are chosen on validation speakers, by the loss over all levels and by accuracy; the paper
   says nothing of it. Splits: common/chochlakis/splits.py.
5. AdamW with CAV-MAE's settings. Batch, epochs of the heads, width of the GRU and the batch normalisation before it are
   not in the paper.
6. A head is fine-tuned on TRAIN_MASKS masks of each recording, imputed once; another one is drawn in every epoch.
7. CrissCross's networks pool their last maps by the mean, AVID-CMA's by the maximum, over time too, as their authors
   do: one vector of 512 per clip and modality. The paper says "virtually identical" of the two, and no more.
8. The masks of the test are drawn once, from MASK_SEED, and shared by all methods, backbones and seeds.
9. curri-MAE-ft is fine-tuned at the largest rate, -ft-all at all rates; the paper has the first for the linear
   classifier and the second for the GRU, here both have both.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals, before the slow imports

import re
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from common.chochlakis import tables
from common.chochlakis.backbones import (
    NAMES,
    load_backbone,
    measure_stats,
    random_checkpoints,
    training_seconds,
)
from common.chochlakis.clips import Extraction, clip_batches, extract
from common.chochlakis.data import (
    Hiding,
    Imputed,
    count_of,
    curriculum,
    draw_test_masks,
    generator_of,
    read_part,
    write_masks,
)
from common.chochlakis.mae import (
    AVMAE,
    GRUHead,
    LinearHead,
    Sizes,
    backoff,
    draw_mixture,
    impute_last,
    impute_linear,
    impute_mean,
    impute_zeros,
    load_cavmae,
)
from common.chochlakis.splits import corpus_of, fold_of, protocol_text
from common.errors import UserError
from common.files import hash_of
from common.manifest import corpus_name, read_manifest
from common.results import prediction_rows, start_run
from common.training import Recipe, best_weights, fit, load_trained, make_accelerator

# ---- Constants to tweak: corpora and protocol ----------------------------------------------
DATA_ROOT = "data"  # folder of corpora, clip features, models
RESULTS_ROOT = "results"  # tables and figures go to <RESULTS_ROOT>/06_mae_imputation/<corpus>/
CORPUS = "cremad"  # "cremad", "ravdess", "lombard", or a folder with a manifest.csv: prepared by 01
PRETRAIN_CORPUS = "audioset"  # unlabelled recordings (Sec. 3.3); "" = none
BACKBONES = ("avid-cma", "crisscross")  # Figures 2 and 3; "kinetics": torchvision's video network
SEEDS = (0, 1, 2)  # one autoencoder and one set of classifiers each. Not in the paper
N_MASKS = 10  # random masks of each test recording and level (Sec. 4.3)
MASK_SEED = 0  # draws them. Not in the paper
N_RESAMPLES = 10000  # of speakers behind every interval; sign patterns of the permutation test
BEYOND = True  # also what is not in the paper: other baselines, unequal rates, bursts, costs

# ---- Clips and backbones (Sec. 3.2 and 4.2) ------------------------------------------------
N_CLIPS = 0  # N; 0 = the paper's: 5 of CREMA-D and Lombard, 10 of RAVDESS and AudioSet
CLIP_S = 0.0  # seconds; 0 = the paper's: 0.4 of CREMA-D and RAVDESS, 0.5 of Lombard and AudioSet
AVID_CHECKPOINT = (
    "data/checkpoints/AVID-CMA_Audioset_InstX-N1024-PosW-N64-Top32_checkpoint.pth.tar"  # both nets
)
AVID_STATS = "data/checkpoints/audio-spectDB-24k-513-norm-stats.npz"  # "" = measured on PRETRAIN_CORPUS
CRISSCROSS_VIDEO = "data/checkpoints/vid_crisscross_audioset.pth.tar"  # the authors' file
CRISSCROSS_AUDIO = "data/checkpoints/aud_crisscross_audioset.pth.tar"  # the authors' file
KINETICS_VIDEO = ""  # "kinetics": file of torchvision's weights; "" = torchvision downloads them
RANDOM_BACKBONES = False  # where none are at hand: of random weights, calibrated on PRETRAIN_CORPUS. Where
# that is "", both this and AVID_STATS take training clips of CORPUS
BACKBONE_WIDTH = 64  # of the first layer; features have 8 times as many dimensions
FRAME_SIZE = 0  # side of a frame in pixels; 0 = the backbone's own, 224 or 112
ALLOW_PICKLE = False  # load checkpoints that hold more than tensors, which lets them run code
BACKBONE_BATCH = 64  # clips per forward pass of a backbone
MAX_PROBLEM_SHARE = 0.05  # stop where more than this share of the recordings cannot be read

# ---- Masked autoencoder (Sec. 3.3 and 4.2) -------------------------------------------------
CAVMAE_CHECKPOINT = "data/checkpoints/audio_model.21.pth"  # first weights; "" = random
MAE_WIDTH = 768  # CAV-MAE's
MAE_DEPTH = 11  # blocks of each modality; CAV-MAE's
MAE_JOINT_DEPTH = 1  # blocks of both together; CAV-MAE's
MAE_HEADS = 12  # CAV-MAE's
DECODER_WIDTH = 512  # CAV-MAE's
DECODER_DEPTH = 8  # CAV-MAE's
DECODER_HEADS = 16  # CAV-MAE's
MLP_RATIO = 4  # CAV-MAE's
FIXED_SHARE = 0.7  # of the clips, hidden in pretraining and by the fixed-rate autoencoder of Figure 4
PRETRAIN_EPOCHS = 50  # on PRETRAIN_CORPUS (Sec. 4.2)
PRETRAIN_RATE = 1e-4  # learning rate on PRETRAIN_CORPUS (Sec. 4.2)
MAE_EPOCHS = 50  # on CORPUS (Sec. 4.2)
MAE_RATE = 0.0  # 0 = the paper's: 5e-4 on RAVDESS, else 1e-4
CURRICULUM_STEP = 0  # epochs until one more clip is hidden; 0 = the paper's: 5 with 10 clips, else 10
MAE_BATCH = 64  # recordings per step. Not in the paper
BETAS = (0.95, 0.999)  # of AdamW (CAV-MAE's), of heads too
WEIGHT_DECAY = 5e-7  # CAV-MAE's

# ---- Classifiers (Sec. 3.4, 3.5 and 4.2) ---------------------------------------------------
HEADS = ("linear", "gru")  # Figures 2 and 3, (a) and (b)
GRU_WIDTH = 512  # not in the paper
HEAD_RATE = 1e-3  # learning rate (Sec. 4.2)
HEAD_EPOCHS = 30  # of training and of fine-tuning. Not in the paper
HEAD_BATCH = 64  # recordings per step. Not in the paper
TRAIN_MASKS = 5  # of each recording for fine-tuning. Not in the paper
MIXTURES = ("0.4", "0.7", "0.4+0.7")  # Figure 4: shares of hidden clips that a head is fine-tuned on

# ---- Machine -------------------------------------------------------------------------------
PRECISION = "auto"  # "auto" (bf16 or fp16 on a GPU), "no" (fp32), "bf16", "fp16"
WORKERS = 4  # threads that decode recordings, 0 = none
IMPUTE_BATCH = 512  # recordings per forward pass of the autoencoder outside training

# ---- Presets -------------------------------------------------------------------------------
DEMO = {
    "CORPUS": "demo_cremad",
    "PRETRAIN_CORPUS": "demo_audioset",
    "SEEDS": (0,),
    "N_RESAMPLES": 1000,
    "FRAME_SIZE": 48,
    "RANDOM_BACKBONES": True,
    "BACKBONE_WIDTH": 16,
    "CAVMAE_CHECKPOINT": "",
    "MAE_WIDTH": 64,
    "MAE_DEPTH": 2,
    "MAE_HEADS": 4,
    "DECODER_WIDTH": 64,
    "DECODER_DEPTH": 1,
    "DECODER_HEADS": 4,
    "PRETRAIN_RATE": 1e-3,
    "MAE_RATE": 1e-3,
    "MAE_BATCH": 32,
    "GRU_WIDTH": 64,
    "HEAD_BATCH": 32,
    "WORKERS": 2,
}  # synthetic corpora, narrow networks of random weights
SCRATCH = {
    "PRETRAIN_CORPUS": "",
    "FRAME_SIZE": 112,
    "RANDOM_BACKBONES": True,
    "BACKBONE_WIDTH": 8,
    "CAVMAE_CHECKPOINT": "",
    "MAE_WIDTH": 64,
    "MAE_DEPTH": 2,
    "MAE_HEADS": 4,
    "DECODER_WIDTH": 64,
    "DECODER_DEPTH": 1,
    "DECODER_HEADS": 4,
    "MAE_RATE": 1e-3,
    "MAE_BATCH": 16,
    "GRU_WIDTH": 64,
    "HEAD_BATCH": 16,
}  # neither weights nor AudioSet at hand: narrow networks of random weights
SETTINGS = {}  # filled by settings.run: what this run used

# The paper's clips (Sec. 4.2): number, seconds; and the autoencoder's learning rate.
PAPER = {
    "cremad": (5, 0.4, 1e-4),
    "ravdess": (10, 0.4, 5e-4),
    "lombard": (5, 0.5, 1e-4),
    "audioset": (10, 0.5, 1e-4),
}
IMPUTERS = {"zeros": impute_zeros, "mean": impute_mean, "last": impute_last, "linear": impute_linear}


# ---- 1. Features of clips (Sections 3.1 and 3.2) -------------------------------------------


def clips_of(corpus):
    """(number of clips, seconds of each) of a corpus."""
    n_clips, clip_s, _ = PAPER.get(corpus_of(corpus), PAPER["cremad"])
    return (N_CLIPS or n_clips, CLIP_S or clip_s) if corpus == corpus_name(CORPUS) else (n_clips, clip_s)


def extraction(corpus):
    return Extraction(*clips_of(corpus), BACKBONE_BATCH, WORKERS, MAX_PROBLEM_SHARE)


def checkpoints_of(name):
    """The files of a backbone as load_backbone takes them."""
    if name == "crisscross":
        return {"video_checkpoint": CRISSCROSS_VIDEO, "audio_checkpoint": CRISSCROSS_AUDIO, "audio_stats": ""}
    video = AVID_CHECKPOINT if name == "avid-cma" else KINETICS_VIDEO
    return {"video_checkpoint": video, "audio_checkpoint": AVID_CHECKPOINT, "audio_stats": AVID_STATS}


def turns_to_measure(manifest, train, unlabelled):
    """(manifest, turns) that statistics of backbones may be measured on: with those of PRETRAIN_CORPUS, its features
    and the autoencoder trained on them serve every CORPUS.
    """
    return (unlabelled, turns_with_media(unlabelled)) if unlabelled else (manifest, train)


def turns_with_media(manifest):
    return [turn for turn in manifest.turns if turn.audio or turn.video]


def backbone_of(name, accelerator, manifest, train):
    """A frozen Backbone; manifest, train: from `turns_to_measure`."""
    device, precision = str(accelerator.device), accelerator.mixed_precision
    load = {
        "name": name,
        "width": BACKBONE_WIDTH,
        "size": FRAME_SIZE,
        "device": device,
        "precision": precision,
    }
    files = random_files(load, manifest, train) if RANDOM_BACKBONES else checkpoints_of(name)
    backbone = load_backbone(**load, **files, random_seed=None, allow_pickle=ALLOW_PICKLE)
    print(*(f"  {line}" for line in backbone.report), sep="\n")
    if name != "crisscross" and backbone.audio_stats is None:
        path = Path(DATA_ROOT) / "models" / manifest.corpus / "chochlakis" / name / "spectrogram_stats.npz"
        measure_stats(backbone, some_batches(backbone, manifest, train), path)
    return backbone


def random_files(load, manifest, train):
    """Files in the authors' formats with random networks, calibrated on training clips; written once for these."""
    folder = (
        Path(DATA_ROOT)
        / "checkpoints"
        / manifest.corpus
        / "chochlakis"
        / (f"{load['name']}_{BACKBONE_WIDTH}_{FRAME_SIZE}_seed{SEEDS[0]}")
    )
    clips = hash_of(
        [clips_of(manifest.corpus), [[turn.utterance_id, turn.audio, turn.video] for turn in train]]
    )
    return random_checkpoints(
        folder, load, SEEDS[0], clips, lambda backbone: some_batches(backbone, manifest, train)
    )


def some_batches(backbone, manifest, train):
    """Some 1,000 clips of training recordings, in batches."""
    some = train[:: max(1, len(train) // 256)]
    return islice(clip_batches(manifest, some, backbone, extraction(manifest.corpus)), 16)


def features_of(manifest, turns, backbone):
    """The store of clip features of a corpus under a backbone, and figures of its making."""
    n_clips, clip_s = clips_of(manifest.corpus)
    folder = Path(DATA_ROOT) / "clips" / manifest.corpus / f"{backbone.name}_{n_clips}x{clip_s:g}"
    return extract(manifest, turns, backbone, folder, backbone.identity(), extraction(manifest.corpus))


# ---- The study of one backbone -------------------------------------------------------------


class Study:
    """Features, autoencoders, classifiers and predictions of one backbone on CORPUS."""

    def __init__(self, c, accelerator, backbone, manifest, fold):
        self.c, self.accelerator, self.backbone, self.manifest = c, accelerator, backbone, manifest
        self.name = backbone.name
        turns = [turn for part in (fold.train, fold.valid, fold.test) for turn in part]
        store, self.extracted = features_of(manifest, turns, backbone)
        self.parts = {
            name: read_part(store, getattr(fold, name), manifest.classes)
            for name in ("train", "valid", "test")
        }
        self.features_hash = hash_of(
            {
                **store.meta,
                "parts": [
                    [(turn.utterance_id, turn.label) for turn in part.turns] for part in self.parts.values()
                ],
            }
        )
        self.folder = Path(DATA_ROOT) / "models" / manifest.corpus / "chochlakis" / self.name
        self.n_clips, self.test = self.parts["train"].n_clips, self.parts["test"]
        self.mean = self.parts["train"].mean  # (2, D)
        self.is_known = (~self.parts["train"].missing).any(0).any(1)  # (2,), by modality
        self.masks = test_masks(self.test, self.n_clips)
        self.autoencoders, self.heads, self.predicted, self.errors, self.seconds = {}, {}, {}, {}, {}
        self.curves = {}

    def levels(self, shares):
        """Counts of hidden clips of a System's `tuned`: "all", "largest", or shares of the clips."""
        if shares == "all":
            return tuple(range(1, self.n_clips))
        return (
            (self.n_clips - 1,)
            if shares == "largest"
            else tuple(count_of(share, self.n_clips) for share in shares)
        )


def test_masks(test, n_clips):
    """{setting: hidden (M, R, 2, N)}: the masks that all methods share, kept as <DATA_ROOT>/masks/<corpus>_<N>.npz."""
    masks = draw_test_masks(len(test), n_clips, N_MASKS, MASK_SEED, BEYOND)
    write_masks(Path(DATA_ROOT) / "masks" / f"{corpus_name(CORPUS)}_{n_clips}.npz", test.turns, masks)
    return masks


# ---- 2. and 3. Masked autoencoder (Section 3.3) --------------------------------------------


def new_autoencoder(size, seed):
    """An AVMAE with CAV-MAE's weights, or random ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AVMAE(
            size,
            Sizes(
                MAE_WIDTH,
                MAE_DEPTH,
                MAE_JOINT_DEPTH,
                MAE_HEADS,
                DECODER_WIDTH,
                DECODER_DEPTH,
                DECODER_HEADS,
                MLP_RATIO,
            ),
        )
    if CAVMAE_CHECKPOINT:
        print(f"  {load_cavmae(model, CAVMAE_CHECKPOINT)}")
    return model


def train_autoencoder(study, model, train, valid, levels_at, rate, epochs, seed, folder, identity):
    """Fit a masked autoencoder; the epoch is that of the least loss over all levels on the validation part."""
    accelerator = study.accelerator
    model.standardise(train.audio, train.video, train.missing)
    every_level = tuple(range(1, valid.n_clips))
    hidden = draw_mixture(len(valid), valid.n_clips, every_level, 1, generator_of(seed, 3))[0]

    def loss(model, batch):
        return model(**batch)["loss"] * len(batch["hidden"]), len(batch["hidden"])

    @torch.no_grad()
    def evaluate(model):
        model.eval()
        total = 0.0
        for rows in torch.arange(len(valid)).split(IMPUTE_BATCH):
            batch = (
                x[rows].to(accelerator.device) for x in (valid.audio, valid.video, hidden, valid.missing)
            )
            with accelerator.autocast():
                total += float(model(*batch)["loss"]) * len(rows)
        return {"loss": total / len(valid)}

    recipe = Recipe(
        rate,
        epochs,
        MAE_BATCH,
        WEIGHT_DECAY,
        "constant",
        betas=BETAS,
        clip_norm=0.0,
        select_by="loss",
        higher_is_better=False,
        seed=seed,
    )
    history = fit(
        accelerator,
        model,
        loss,
        Hiding(train, levels_at),
        evaluate,
        recipe,
        folder,
        identity,
        folder.name,
        epoch_lines=False,
    )
    print(
        f"  {study.name} {folder.parent.name} {folder.name:<10} {history['seconds']:7.1f} s  best epoch "
        f"{history['best_epoch']:>3}  validation loss {history['best']:.3f} (1 per modality: the mean feature)",
        flush=True,
    )
    return model.eval(), history


def mae_identity(study, **more):
    """What an autoencoder depends on besides its training; JSON-ready."""
    return {
        "features": study.features_hash,
        "sizes": [
            MAE_WIDTH,
            MAE_DEPTH,
            MAE_JOINT_DEPTH,
            MAE_HEADS,
            DECODER_WIDTH,
            DECODER_DEPTH,
            DECODER_HEADS,
            MLP_RATIO,
        ],
        "first": CAVMAE_CHECKPOINT,
        **more,
    }


def pretrained_weights(study, manifest):
    """(weights of the autoencoder pretrained on PRETRAIN_CORPUS or None, its identity); trained once per backbone."""
    if manifest is None:
        return None, None
    turns = turns_with_media(manifest)
    store, _ = features_of(manifest, turns, study.backbone)
    part = read_part(store, turns, ())
    aside = set(
        torch.randperm(len(part), generator=generator_of(SEEDS[0], 4))[: max(1, len(part) // 20)].tolist()
    )
    train, valid = (
        read_part(store, [turn for i, turn in enumerate(part.turns) if (i in aside) == held], ())
        for held in (False, True)
    )
    n_hidden = count_of(FIXED_SHARE, part.n_clips)
    folder = Path(DATA_ROOT) / "models" / manifest.corpus / "chochlakis" / study.name / "pretrained"
    identity = mae_identity(study, features=hash_of({**store.meta, "ids": store.ids}), hidden=n_hidden)
    _, history = train_autoencoder(
        study,
        new_autoencoder(part.size, SEEDS[0]),
        train,
        valid,
        lambda epoch: (n_hidden,),
        PRETRAIN_RATE,
        PRETRAIN_EPOCHS,
        SEEDS[0],
        folder,
        identity,
    )
    return load_file(best_weights(folder)), history["identity"]


def autoencoders_of(study, seed, first):
    """{"curri-MAE", "MAE": AVMAE} fine-tuned on CORPUS, with the curriculum and at the fixed rate (Section 4.4)."""
    n_clips, weights, identity = study.n_clips, *first
    step = CURRICULUM_STEP or (5 if n_clips == 10 else 10)
    fixed = count_of(FIXED_SHARE, n_clips)
    kinds = {"curri-MAE": curriculum(step, n_clips), "MAE": lambda epoch: (fixed,)}
    for name, levels_at in kinds.items():
        model = new_autoencoder(study.test.size, seed)
        if weights:
            load_trained(model, weights)
        train, valid = study.parts["train"], study.parts["valid"]
        study.autoencoders[name], history = train_autoencoder(
            study,
            model,
            train,
            valid,
            levels_at,
            MAE_RATE or PAPER.get(corpus_of(CORPUS), PAPER["cremad"])[2],
            MAE_EPOCHS,
            seed,
            study.folder / f"seed{seed}" / name,
            mae_identity(study, kind=[name, step, fixed], pretrained=hash_of(identity)),
        )
        study.seconds[name, seed] = history["seconds"] / len(history["log"]), history["identity"]


# ---- 4. Classifiers (Sections 3.4 and 3.5) -------------------------------------------------


def impute(study, imputer, part, hidden):
    """Features (M, R, N, 2 D) of a part with the hidden clips (M, R, 2, N) imputed; those that never were, too.

    A modality that no training recording has cannot be learned: its features are 0.
    """
    hidden = hidden | part.missing
    if imputer in IMPUTERS:
        found = IMPUTERS[imputer](part.audio, part.video, hidden, study.mean)
    else:
        model = study.autoencoders[imputer].to(study.accelerator.device)
        with study.accelerator.autocast():
            found = model.impute(part.audio, part.video, hidden, IMPUTE_BATCH)
    return torch.cat([x if known else torch.zeros_like(x) for x, known in zip(found, study.is_known)], -1)


def training_features(study, system, seed, name):
    """Features (M, R, N, n) that a System's classifier is trained ("train") or chosen ("valid") on."""
    part = study.parts[name]
    if system.imputer in ("audio", "video"):
        return getattr(part, system.imputer)[None]
    if not system.tuned:
        return torch.cat([part.audio, part.video], -1)[None]
    generator = generator_of(seed, 5, ("train", "valid").index(name))
    hidden = draw_mixture(len(part), study.n_clips, study.levels(system.tuned), TRAIN_MASKS, generator)
    return impute(study, system.imputer, part, hidden)


def new_head(kind, n_features, n_classes, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (
            LinearHead(n_features, n_classes)
            if kind == "linear"
            else GRUHead(n_features, GRU_WIDTH, n_classes)
        )


def head_of(study, system, seed, data):
    """The classifier of a System; a tuned one starts from that of whole features.

    data  {"train", "valid": features (M, R, N, n)}
    """
    train, valid = (Imputed(data[name], study.parts[name].labels) for name in ("train", "valid"))
    model = new_head(system.head, train.x.shape[-1], len(study.manifest.classes), seed)
    if system.tuned:
        model.load_state_dict(study.heads[tables.System(system.head, "none")].state_dict())

    def loss(model, batch):
        return model.loss(batch["x"], batch["labels"]) * len(batch["labels"]), len(batch["labels"])

    def evaluate(model):
        return {"accuracy": float((labels_of(study, model, valid.x) == valid.labels).float().mean())}

    recipe = Recipe(
        HEAD_RATE, HEAD_EPOCHS, HEAD_BATCH, WEIGHT_DECAY, "constant", betas=BETAS, clip_norm=0.0, seed=seed
    )
    name = f"{system.head}_{system.slug()}"
    identity = {
        "features": study.features_hash,
        "classes": list(study.manifest.classes),
        "gru_width": GRU_WIDTH,
        "tuned": system.tuned,
        "masks": TRAIN_MASKS,
        "imputer": system.imputer,
        "autoencoder": hash_of(study.seconds.get((system.imputer, seed), (0, ""))[1]),
    }
    fit(
        study.accelerator,
        model,
        loss,
        train,
        evaluate,
        recipe,
        study.folder / f"seed{seed}" / name,
        identity,
        name,
        epoch_lines=False,
    )
    return model.eval()


@torch.no_grad()
def labels_of(study, model, x):
    """The most likely class under a head, x (M, R, N, n) -> (M, R)."""
    model.eval()
    return torch.stack(
        [
            torch.cat(
                [
                    model.predict(rows.to(study.accelerator.device)).argmax(-1).cpu()
                    for rows in mask.split(IMPUTE_BATCH)
                ]
            )
            for mask in x
        ]
    )


def run_seed(study, seed, first, systems):
    """Train everything of a seed and predict the test part under every mask."""
    autoencoders_of(study, seed, first)
    for imputer in dict.fromkeys(system.imputer for system in systems):
        own = [system for system in systems if system.imputer == imputer]
        for tuned in dict.fromkeys(system.tuned for system in own):
            group = [system for system in own if system.tuned == tuned]
            if tuned or imputer in ("none", "audio", "video"):
                data = {name: training_features(study, group[0], seed, name) for name in ("train", "valid")}
                study.heads.update({system: head_of(study, system, seed, data) for system in group})
            else:
                study.heads.update(
                    {system: study.heads[tables.System(system.head, "none")] for system in group}
                )
        if imputer in ("none", "audio", "video"):
            x = training_features(study, own[0], seed, "test")
            for system in own:
                note(study, system, ("level", 0), labels_of(study, study.heads[system], x))
        elif imputer == "backoff":
            predict_backoff(study, own[0])
        else:
            predict_imputed(study, imputer, own)
    study.heads = {}


def note(study, system, setting, labels):
    """Keep predictions (M, R) of one seed."""
    study.predicted.setdefault((system, setting), []).append(labels.numpy())


def predict_imputed(study, imputer, systems):
    """Predictions of all Systems of one way to impute, under every mask; and how far off it is."""
    test = study.test
    for setting, hidden in study.masks.items():
        wanted = [system for system in systems if tables.is_tested(system, setting)]
        if not wanted:
            continue
        x = impute(study, imputer, test, hidden)
        for system in wanted:
            note(study, system, setting, labels_of(study, study.heads[system], x))
        if setting[0] == "level":
            study.errors.setdefault((imputer, setting[1]), []).append(unexplained(study, x, hidden))


def unexplained(study, x, hidden):
    """Share of the variance of hidden clips that imputation left, (audio, video) in %; 100 = the training mean."""
    shares = []
    for m, (found, real) in enumerate(zip(x.chunk(2, -1), (study.test.audio, study.test.video))):
        asked = (hidden & ~study.test.missing)[:, :, m]  # (M, R, N)
        real = real.expand_as(found)[asked]  # (clips, D)
        off, all_of_it = (found[asked] - real).square().sum(0), (real - study.mean[m]).square().sum(0)
        shares.append(100 * float((off / all_of_it.clamp(min=1e-12)).median()) if len(real) else float("nan"))
    return shares


@torch.no_grad()
def predict_backoff(study, system):
    """The linear classifier's baseline (Section 3.5): a unimodal classifier where only one modality is there."""
    test, device = study.test, study.accelerator.device
    both, audio, video = (
        study.heads[tables.System("linear", name)].clip_probabilities(x.to(device)).cpu()
        for name, x in (
            ("none", torch.cat([test.audio, test.video], -1)),
            ("audio", test.audio),
            ("video", test.video),
        )
    )
    prior = F.one_hot(study.parts["train"].labels, len(study.manifest.classes)).float().mean(0)
    for setting, hidden in study.masks.items():
        if not tables.is_tested(system, setting):
            continue
        note(study, system, setting, backoff(both, audio, video, hidden | test.missing, prior).argmax(-1))


# ---- Costs (Section 4.2) -------------------------------------------------------------------


def costs(study):
    """Seconds of an epoch of the backbone, were it trained, and of the autoencoder; both on this machine.

    The backbone's is measured in a few steps on clips of noise, its decoding in the extraction; neither is trained.
    """
    n_clips, clip_s = clips_of(study.manifest.corpus)
    n_trained = n_clips * len(study.parts["train"])
    return {
        "backbone": n_trained * training_seconds(study.backbone, clip_s, study.accelerator),
        "autoencoder": float(np.median([study.seconds["curri-MAE", seed][0] for seed in SEEDS])),
        "backbone_parameters": study.backbone.n_parameters,
        "autoencoder_parameters": sum(p.numel() for p in study.autoencoders["curri-MAE"].parameters()),
        "latency_ms": latency(study),
    }


def latency(study):
    """Milliseconds to impute one clip of one recording, the median of 20."""
    model, test, times = study.autoencoders["curri-MAE"], study.test, []
    hidden = torch.zeros(1, 2, study.n_clips, dtype=torch.bool)
    hidden[0, 0, -1] = True
    for _ in range(23):
        started = time.perf_counter()
        model.impute(test.audio[:1], test.video[:1], hidden)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times[3:]))


# ---- Main ----------------------------------------------------------------------------------


def check_constants():
    """Refuse what would fail after hours."""
    if set(BACKBONES) - set(NAMES) or not BACKBONES:
        raise UserError(f"BACKBONES={','.join(BACKBONES)}: choose among {', '.join(NAMES)}")
    if set(HEADS) - {"linear", "gru"} or not HEADS:
        raise UserError(f"HEADS={','.join(HEADS)}: choose among linear, gru")
    if RANDOM_BACKBONES and "kinetics" in BACKBONES:
        raise UserError(
            "BACKBONES=kinetics: has no random weights; set RANDOM_BACKBONES=False or leave it out"
        )
    if not SEEDS:
        raise UserError("SEEDS: give at least one")
    for name in (
        "N_MASKS",
        "TRAIN_MASKS",
        "N_RESAMPLES",
        "PRETRAIN_EPOCHS",
        "MAE_EPOCHS",
        "HEAD_EPOCHS",
        "BACKBONE_BATCH",
        "MAE_BATCH",
        "HEAD_BATCH",
        "IMPUTE_BATCH",
    ):
        if globals()[name] < 1:
            raise UserError(f"{name}={globals()[name]}: give 1 or more")
    if N_CLIPS < 0 or N_CLIPS == 1 or CLIP_S < 0:
        raise UserError(
            f"N_CLIPS={N_CLIPS} and CLIP_S={CLIP_S:g}: give 2 clips or more, or 0 for the paper's"
        )
    if not MIXTURES or not all(re.fullmatch(r"0?\.\d+(\+0?\.\d+)*", mixture) for mixture in MIXTURES):
        raise UserError(f"MIXTURES={','.join(MIXTURES)}: give shares of the clips, such as 0.4,0.4+0.7")
    if corpus_name(PRETRAIN_CORPUS) == corpus_name(CORPUS):
        raise UserError(
            f"PRETRAIN_CORPUS={PRETRAIN_CORPUS}: holds the test recordings of CORPUS; choose another, or "
            '"" for none'
        )
    if CAVMAE_CHECKPOINT and not Path(CAVMAE_CHECKPOINT).is_file():
        raise UserError(
            f'CAVMAE_CHECKPOINT={CAVMAE_CHECKPOINT}: no such file; give CAV-MAE\'s, or "" for none'
        )


def main():
    check_constants()
    c, accelerator = SimpleNamespace(**SETTINGS), make_accelerator(PRECISION)
    manifest = read_manifest(DATA_ROOT, CORPUS)
    unlabelled = read_manifest(DATA_ROOT, PRETRAIN_CORPUS) if PRETRAIN_CORPUS else None
    fold = fold_of(manifest, CORPUS)
    run = start_run(__file__, SETTINGS, manifest, protocol_text(manifest, CORPUS, fold), accelerator.device)
    studies, systems = {}, tables.plan(HEADS, MIXTURES, BEYOND)
    for name in BACKBONES:
        backbone = backbone_of(name, accelerator, *turns_to_measure(manifest, fold.train, unlabelled))
        study = studies[name] = Study(c, accelerator, backbone, manifest, fold)
        first = pretrained_weights(study, unlabelled)
        for seed in SEEDS:
            run_seed(study, seed, first, systems)
        if BEYOND:
            study.costs = costs(study)
    tables.write(run, studies)
    test = next(iter(studies.values())).test
    runs = {(seed, fold.name): (slice(i, i + 1), range(len(test))) for i, seed in enumerate(SEEDS)}
    run.predictions(prediction_rows(test.turns, manifest.classes, runs, tables.first_masks(studies)))
    run.finish()


if __name__ == "__main__":
    settings.run(main, globals())
