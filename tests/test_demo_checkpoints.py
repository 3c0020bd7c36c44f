"""The random checkpoints: they load through the Auto classes (offline: conftest.py) and repeat by seed."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from common.demo_checkpoints import SIZES, mel_filters, write_checkpoints
from common.demo_sentences import SENTENCES, fill

SEED = 3
TEXT = ("bert-base-uncased", "roberta-base", "distilbert-base-uncased")
WAVEFORM = ("wav2vec2-base", "hubert-base-ls960")
SPECTROGRAM = "ast-finetuned-audioset-10-10-0.4593"
VIDEO = "videomae-base"


def sample_texts():
    rng = np.random.default_rng(0)
    return [fill(line, rng) for bank in SENTENCES.values() for line in bank]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    written = write_checkpoints(folder, sample_texts(), "tiny", SEED)
    assert written == [folder / path.name for path in written]
    assert sorted(path.name for path in written) == sorted([*TEXT, *WAVEFORM, SPECTROGRAM, VIDEO])
    return folder


@pytest.mark.parametrize("name", TEXT)
def test_text_checkpoints(folder, name):
    tokenizer = AutoTokenizer.from_pretrained(folder / name)
    batch = tokenizer(["I miss her so much.", "Zyx?"], padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder / name)(**batch).last_hidden_state
    assert hidden.shape == (*batch["input_ids"].shape, SIZES["tiny"]["hidden"])
    assert len(tokenizer) <= SIZES["tiny"]["vocabulary"]
    lower_cases = tokenizer("I MISS HER")["input_ids"] == tokenizer("i miss her")["input_ids"]
    assert lower_cases == (name != "roberta-base")
    words = tokenizer.decode(tokenizer("I miss her so much.")["input_ids"], skip_special_tokens=True)
    assert words.lower().replace(" .", ".").strip() == "i miss her so much."


@pytest.mark.parametrize("name", WAVEFORM)
def test_waveform_checkpoints(folder, name):
    extractor = AutoFeatureExtractor.from_pretrained(folder / name)
    model = AutoModel.from_pretrained(folder / name).eval()
    clip = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    hidden = model(**extractor(0.1 * clip, sampling_rate=16000, return_tensors="pt")).last_hidden_state
    loud = model(**extractor(0.5 * clip, sampling_rate=16000, return_tensors="pt")).last_hidden_state
    assert hidden.shape[1] == model._get_feat_extract_output_lengths(16000)
    torch.testing.assert_close(hidden, loud, atol=1e-3, rtol=1e-3)  # the extractor normalises each clip
    model.train()
    again = model(**extractor(0.1 * clip, sampling_rate=16000, return_tensors="pt")).last_hidden_state
    assert torch.isfinite(again).all()


def test_spectrogram_checkpoint(folder):
    extractor = AutoFeatureExtractor.from_pretrained(folder / SPECTROGRAM)
    batch = extractor(np.zeros(16000, np.float32), sampling_rate=16000, return_tensors="pt")
    dims = SIZES["tiny"]
    assert batch["input_values"].shape == (1, dims["mel_frames"], dims["mel_bins"])
    hidden = AutoModel.from_pretrained(folder / SPECTROGRAM)(**batch).last_hidden_state
    n_patches = (dims["mel_frames"] // 16) * (dims["mel_bins"] // 16)
    assert hidden.shape == (1, n_patches + 2, dims["hidden"])  # two more: class and distillation token


def test_video_checkpoint(folder):
    processor = AutoImageProcessor.from_pretrained(folder / VIDEO)
    frames = list(np.random.default_rng(0).integers(0, 256, (16, 120, 120, 3), dtype=np.uint8))
    batch = processor(frames, return_tensors="pt")
    side = SIZES["tiny"]["image_px"]
    assert batch["pixel_values"].shape == (1, 16, 3, side, side)
    hidden = AutoModel.from_pretrained(folder / VIDEO)(**batch).last_hidden_state
    assert hidden.shape[0] == 1 and hidden.shape[1] <= 200 and hidden.shape[2] == SIZES["tiny"]["hidden"]


@pytest.mark.parametrize("tone_hz", [200, 1000, 4000])
def test_waveform_front_end_starts_as_a_filter_bank(folder, tone_hz):
    """The first two convolutions equal filtering the waveform; a tone excites the filter of its pitch."""
    encoder = AutoModel.from_pretrained(folder / "wav2vec2-base").feature_extractor
    filters = mel_filters(SIZES["tiny"]["conv_dim"][1], 320)
    wave = torch.sin(2 * torch.pi * tone_hz * torch.arange(16000) / 16000)[None, None]
    with torch.no_grad():
        bands = encoder.conv_layers[1].conv(encoder.conv_layers[0](wave))[0]   # (filters, T)
    expected = torch.nn.functional.conv1d(wave / wave.std(), filters[:, None], stride=160)[0]
    torch.testing.assert_close(bands, expected[:, : bands.shape[1]], atol=0.05, rtol=0.01)
    nearest = torch.fft.rfft(filters, 16000).abs()[:, tone_hz].argmax()        # 1 Hz a bin
    assert bands.square().mean(dim=1).argmax() == nearest


def test_same_seed_same_checkpoint(folder, tmp_path):
    again = write_checkpoints(tmp_path / "again", sample_texts(), "tiny", SEED)
    for path in again:
        for file in path.iterdir():
            assert file.read_bytes() == (folder / path.name / file.name).read_bytes(), file
    other_paths = write_checkpoints(tmp_path / "other", sample_texts(), "tiny", SEED + 1)
    other = AutoModel.from_pretrained(other_paths[0])
    first = AutoModel.from_pretrained(again[0])
    assert not torch.equal(other.embeddings.word_embeddings.weight, first.embeddings.word_embeddings.weight)


def test_small_size_runs(tmp_path):
    paths = {path.name: path for path in write_checkpoints(tmp_path, sample_texts(), "small", 0)}
    model = AutoModel.from_pretrained(paths["hubert-base-ls960"])
    assert model(torch.randn(1, 16000)).last_hidden_state.shape[2] == SIZES["small"]["hidden"]
    processor = AutoImageProcessor.from_pretrained(paths[VIDEO])
    frames = list(np.zeros((16, 120, 160, 3), np.uint8))
    batch = processor(frames, return_tensors="pt")
    hidden = AutoModel.from_pretrained(paths[VIDEO])(**batch).last_hidden_state
    assert hidden.shape[1] == SIZES["small"]["frames"] // SIZES["small"]["tubelet"] * (112 // 16) ** 2
