"""02 and 03 on a few turns: frozen encoders, the last blocks alone, and what is refused before training."""

import shutil

import numpy as np
import pytest
import torch
from conftest import rows, run_here
from miniature import write_clip
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, WhisperFeatureExtractor

from common.demo.checkpoints import write_checkpoints
from common.encoders import load_backbone
from common.files import UserError, read_json
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
    return write_corpus(tmp_path_factory.mktemp("finetune"))


def write_corpus(folder):
    """Six speakers who say each of two sentences twice, in one picture, and the checkpoints; the folder."""
    turns, prepared = [], folder / "data" / "prepared" / "toy"
    for n in range(24):
        speaker, label = f"s{n % 6}", ("happy", "sad")[n // 6 % 2]
        turns.append(
            Turn(
                f"u{n:02d}",
                f"d{n}",
                0,
                speaker,
                "",
                0,
                0.5,
                WORDS[label],
                label,
                f"audio/u{n}.wav",
                "clip.mp4",
            )
        )
        samples = np.arange(8000 + 320 * (n % 5)) / 16000
        write_wav(prepared / f"audio/u{n}.wav", 0.5 * np.sin(2 * np.pi * TONES_HZ[label] * samples))
    write_clip(prepared / "clip.mp4")
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
    epochs = 12 if "--frozen" in options else 2
    options = [*options, f"--AUDIO_EPOCHS={epochs}", f"--TEXT_EPOCHS={epochs}"]
    run_02(corpus, tmp_path, *options, "--MODALITIES=text,audio")
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


def test_a_layer_is_chosen_on_the_validation_speakers_of_each_fold(corpus, tmp_path):
    """All four are trained; chosen.json names the one of the best validation accuracy, and 03 takes it."""
    run_02(corpus, tmp_path, "--frozen", "--AUDIO_LAYER=chosen", "--AUDIO_EPOCHS=6", "--MODALITIES=audio")
    for fold in (tmp_path / "data" / "models" / "toy" / "audio" / "seed0").glob("fold*"):
        names = sorted(path.parent.name for path in fold.glob("*/outcome.json"))
        assert names == [f"whisper-base_layer{i}" for i in range(4)]
        best = [read_json(fold / name / "outcome.json")["history"]["best"] for name in names]
        assert read_json(fold / "chosen.json")["model"] == names[int(np.argmax(best))]
    table = (tmp_path / "results" / "02_finetune_unimodal" / "toy" / "babaali_table_4.md").read_text()
    assert "Layers of audio chosen on validation: " in table
    run_here(tmp_path, "03_extract_features.py", *words(corpus, tmp_path, "--MODALITIES=audio"))


def broken(corpus, folder, change):
    """A copy of the tiny BERT whose weights are changed."""
    shutil.copytree(corpus / "checkpoints" / "bert-base-uncased", folder / "bert-base-uncased")
    path = folder / "bert-base-uncased" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})
    return str(folder / "bert-base-uncased")


def test_weights_that_are_missing_or_nan_are_refused_and_others_said_once(corpus, tmp_path, capsys):
    name = "encoder.layer.1.output.dense.weight"
    source = broken(corpus, tmp_path / "a", lambda weights: weights.pop(name))
    with pytest.raises(UserError, match=f"1 weights are missing .{name}"):
        load_backbone(source)
    source = broken(corpus, tmp_path / "b", lambda weights: weights[name].fill_(float("nan")))
    with pytest.raises(UserError, match=f"NaN or infinity in its weights .{name}"):
        load_backbone(source)
    capsys.readouterr()
    source = broken(corpus, tmp_path / "c", lambda weights: weights.update({"classifier.x": torch.zeros(1)}))
    load_backbone(source), load_backbone(source)
    printed = capsys.readouterr()
    assert printed.out.count("1 weights of other heads") == 1 and not printed.err
    source = broken(
        corpus, tmp_path / "d", lambda weights: [weights.pop(n) for n in [*weights] if "pooler" in n]
    )
    load_backbone(source)


@pytest.mark.parametrize(
    "option, line",
    [
        ("--AUDIO_MODELS=facebook/absent", "absent: no checkpoint there"),
        ("--AUDIO_LAYER=9", "AUDIO_LAYER=9: choose last, weighted, or a number from 0 to 3"),
        ("--AUDIO_LAYER=lasst", "AUDIO_LAYER=lasst"),
        ("--AUDIO_LAYER=chosen", "AUDIO_LAYER=chosen: only of a frozen encoder; add it to FREEZE"),
        ("--AUDIO_POOLING=max", "AUDIO_POOLING=max: choose from paper, cls, mean, attention"),
        ("--FREEZE=true", "FREEZE=true: choose from text, audio, video"),
        ("--STAGES=fold", "STAGES=fold: choose from choice, folds"),
    ],
)
def test_refusals_come_before_the_first_training(corpus, tmp_path, option, line, capsys):
    """A missing speech model is not found out after the text models were trained."""
    more = ["--CHOSEN_MODELS=absent,whisper-base,bert-base-uncased", "--MODALITIES=text,audio"]
    with pytest.raises(SystemExit) as end:
        run_02(corpus, tmp_path, *more, option)
    assert line in str(end.value) and "\n" not in str(end.value)
    assert not (tmp_path / "data" / "models").exists()


@pytest.mark.parametrize("value", [None, float("nan")], ids=["missing", "NaN"])
def test_bad_weights_of_one_model_are_refused_before_another_is_trained(corpus, tmp_path, value):
    """The text model is whole, and stands first."""
    name, folder = "encoder.layers.0.fc1.weight", tmp_path / "checkpoints"
    shutil.copytree(corpus / "checkpoints", folder)
    weights = load_file(folder / "whisper-base" / "model.safetensors")
    weights.pop(name) if value is None else weights[name].fill_(value)
    save_file(weights, folder / "whisper-base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit, match=rf"whisper-base: .* weights .*\({name}"):
        run_02(corpus, tmp_path, "--MODALITIES=text,audio", f"--CHECKPOINTS={folder}")
    assert not (tmp_path / "data" / "models").exists()


def test_the_choice_of_models_reads_no_chosen_models(corpus, tmp_path):
    options = [
        "--STAGES=choice",
        "--TEXT_MODELS=distilbert-base-uncased",
        "--MODALITIES=text",
        "--TEXT_EPOCHS=1",
    ]
    run_02(corpus, tmp_path, *options, "--CHOSEN_MODELS=bert-base-uncased")
    assert (tmp_path / "results").rglob("babaali_table_1.csv")
