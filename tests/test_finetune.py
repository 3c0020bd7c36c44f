"""02 and 03 on a few turns: frozen encoders, the last blocks alone, and what is refused before training."""

import numpy as np
import pytest
import torch
from conftest import rows, run_here
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor

from common.demo.checkpoints import write_checkpoints
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav
from common.store import Store

WORDS = {"happy": "i am so happy today", "sad": "what a sad day"}
TONES_HZ = {"happy": 900, "sad": 200}


def write_whisper(folder):
    torch.manual_seed(0)
    sizes = dict(
        d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1
    )
    sizes |= dict(decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=16, vocab_size=50, init_std=0.2)
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    AutoModel.from_config(AutoConfig.for_model("whisper", **sizes, **tokens)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six speakers who say each of two sentences twice, and the checkpoints."""
    folder = tmp_path_factory.mktemp("finetune")
    turns, prepared = [], folder / "data" / "prepared" / "toy"
    for n in range(24):
        speaker, label = f"s{n % 6}", ("happy", "sad")[n // 6 % 2]
        turns.append(
            Turn(f"u{n:02d}", f"d{n}", 0, speaker, "", 0, 0.5, WORDS[label], label, f"audio/u{n}.wav")
        )
        samples = np.arange(8000 + 320 * (n % 5)) / 16000
        write_wav(prepared / f"audio/u{n}.wav", 0.5 * np.sin(2 * np.pi * TONES_HZ[label] * samples))
    write_manifest(Manifest("toy", prepared, ("happy", "sad"), turns))
    write_checkpoints(folder / "checkpoints", list(WORDS.values()) * 5, "tiny", 0)
    write_whisper(folder / "checkpoints" / "whisper-base")
    return folder


def words(corpus, folder, *more):
    (folder / "data").mkdir(exist_ok=True)
    if not (folder / "data" / "prepared").exists():
        (folder / "data" / "prepared").symlink_to(corpus / "data" / "prepared")
    roots = [f"--DATA_ROOT={folder}/data", f"--RESULTS_ROOT={folder}/results"]
    return [*roots, "--CORPUS=toy", "--SEEDS=0", "--WORKERS=0", *more]


def run_02(corpus, folder, *more):
    options = [f"--CHECKPOINTS={corpus}/checkpoints", "--STAGES=folds", "--N_GROUPS=3", "--OUT_OF_FOLD=false"]
    options += ["--AUDIO_MODELS=openai/whisper-base", "--CHOSEN_MODELS=openai/whisper-base,bert-base-uncased"]
    options += ["--N_RESAMPLES=100", "--PRECISION=no"]
    run_here(folder, "02_finetune_unimodal.py", *words(corpus, folder, *options, *more))


@pytest.mark.parametrize(
    "options",
    [
        ["--frozen", "--AUDIO_LAYER=weighted", "--TEXT_LAYER=1"],
        ["--frozen", "--AUDIO_POOLING=attention", "--AUDIO_LAYER=1", "--TEXT_POOLING=mean"],
        ["--UNFREEZE_BLOCKS=1", "--AUDIO_LAYER=weighted", "--AUDIO_LEARNING_RATE=1e-3"],
    ],
)
def test_frozen_encoders_and_last_blocks(corpus, tmp_path, options, capsys):
    run_02(corpus, tmp_path, *options, "--AUDIO_EPOCHS=12", "--TEXT_EPOCHS=12", "--MODALITIES=text,audio")
    printed = capsys.readouterr().out
    assert printed.count("extracting states of") == 2  # once each for all folds
    best = tmp_path / "data" / "models" / "toy" / "audio" / "seed0" / "fold1" / "whisper-base"
    assert best.joinpath("best.safetensors").stat().st_size < 100_000  # what is frozen is not stored again
    run_here(tmp_path, "03_extract_features.py", *words(corpus, tmp_path))
    printed = capsys.readouterr().out
    assert printed.count("test decisions as in 02: 100.00%") == 6 and "extracting states" not in printed
    for modality, width in (("text", 64), ("audio", 32)):
        store = Store(tmp_path / "data" / "features" / "toy" / modality / "seed0" / "fold1")
        assert store["features"].shape == (24, width) and np.isfinite(store["features"]).all()
    table = rows(tmp_path / "results" / "02_finetune_unimodal" / "toy" / "babaali_table_4.csv")
    found = [float(r["mean"]) for r in table if r["column"] == "Accuracy" and "always" not in r["row"]]
    assert min(found) > 80 if "--frozen" in options else found
