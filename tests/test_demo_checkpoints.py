"""The random checkpoints: they load through the Auto classes (offline: conftest.py) and repeat by seed."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoTokenizer

from common.demo.checkpoints import SIZES, makers, mel_filters, write_checkpoints
from common.demo.text import all_sentences, fill
from common.files import read_json, write_json

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # see encoders.py

SEED = 3
TEXT = ("bert-base-uncased", "roberta-base", "distilbert-base-uncased")
WAVEFORM = ("wav2vec2-base", "hubert-base-ls960", "wavlm-large")
SPECTROGRAM = "ast-finetuned-audioset-10-10-0.4593"
VIDEO = "videomae-base"


def sample_texts():
    rng = np.random.default_rng(0)
    return [fill(line, rng) for line in all_sentences()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoints(folder, sample_texts(), "tiny", SEED)
    names = {path.name for path in folder.iterdir()}
    assert names == {*TEXT, *WAVEFORM, SPECTROGRAM, VIDEO, "made_with.json"}
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


def test_wavlm_is_the_large_one_in_small(folder):
    """The published configuration, besides size, dropout and the convolutions' number and spacing."""
    extractor = AutoFeatureExtractor.from_pretrained(folder / "wavlm-large")
    model = AutoModel.from_pretrained(folder / "wavlm-large")
    config = model.config
    assert type(model).__name__ == "WavLMModel" and extractor.return_attention_mask and extractor.do_normalize
    assert config.do_stable_layer_norm and config.feat_extract_norm == "layer" and not config.conv_bias
    assert (config.num_buckets, config.max_bucket_distance, config.add_adapter) == (320, 800, False)
    assert (
        config.inputs_to_logits_ratio == 640
        and not AutoFeatureExtractor.from_pretrained(folder / "hubert-base-ls960").return_attention_mask
    )


@pytest.mark.parametrize("tone_hz", [200, 1000, 3000])
def test_wavlm_front_end_starts_as_band_envelopes(folder, tone_hz):
    """A tone shows in the band of its pitch at any phase; rectified cosines alone would miss some."""
    encoder = AutoModel.from_pretrained(folder / "wavlm-large").feature_extractor
    n_bands = SIZES["tiny"]["wavlm_dim"][0] // 4
    phases = torch.linspace(0, torch.pi, 9)[:, None]  # one phase per tone: it repeats in every step
    tones = torch.sin(2 * torch.pi * tone_hz * torch.arange(16000) / 16000 + phases)
    encoder.conv_layers[1].layer_norm = encoder.conv_layers[1].activation = torch.nn.Identity()
    with torch.no_grad():
        envelopes = encoder(tones)[:, :n_bands]  # (9, bands, T)
    nearest = torch.fft.rfft(mel_filters(n_bands, 320), 16000).abs()[:, tone_hz].argmax()
    top = envelopes[:, nearest]
    assert (envelopes.mean(dim=(0, 2)).argmax() - nearest).abs() <= 1
    assert top.max() < 1.5 * top.min() and (top > 3 * envelopes.mean(dim=1)).all()


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


@pytest.mark.parametrize("tone_hz", [200, 1000, 3000])
def test_waveform_front_end_starts_as_a_filter_bank(folder, tone_hz):
    """The first two convolutions filter the waveform at 8 kHz; a tone excites the filter of its pitch."""
    encoder = AutoModel.from_pretrained(folder / "wav2vec2-base").feature_extractor
    filters = mel_filters(SIZES["tiny"]["conv_dim"][1], 160, rate_hz=8000)
    wave = torch.sin(2 * torch.pi * tone_hz * torch.arange(16000) / 16000)[None, None]
    with torch.no_grad():
        bands = encoder.conv_layers[1].conv(encoder.conv_layers[0](wave))[0]  # (filters, T)
    halved = wave.unflatten(2, (-1, 2)).mean(3)
    expected = torch.nn.functional.conv1d(halved / halved.std(), filters[:, None], stride=80)[0]
    torch.testing.assert_close(bands, expected[:, : bands.shape[1]], atol=0.05, rtol=0.01)
    nearest = torch.fft.rfft(filters, 8000).abs()[:, tone_hz].argmax()  # 1 Hz a bin
    assert bands.square().mean(dim=1).argmax() == nearest


def test_same_seed_same_checkpoint(folder, tmp_path):
    write_checkpoints(tmp_path, sample_texts(), "tiny", SEED)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path


def test_small_size_runs():
    def made(name):
        return makers()[name](SIZES["small"], sample_texts())

    hubert, _ = made("hubert-base-ls960")
    assert hubert(torch.randn(1, 16000)).last_hidden_state.shape[2] == SIZES["small"]["hidden"]
    videomae, processor = made(VIDEO)
    batch = processor(list(np.zeros((16, 120, 160, 3), np.uint8)), return_tensors="pt")
    hidden = videomae(**batch).last_hidden_state
    assert hidden.shape[1] == SIZES["small"]["frames"] // SIZES["small"]["tubelet"] * (112 // 16) ** 2


def test_what_is_there_as_asked_for_is_kept(folder):
    """A folder that an earlier version wrote may lack an architecture, or know other words."""
    config, note = folder / "wavlm-large" / "config.json", read_json(folder / "made_with.json")
    config.unlink()
    write_checkpoints(folder, sample_texts(), "tiny", SEED)
    assert not config.exists()  # the note says that it is there
    write_json(folder / "made_with.json", note | {"models": note["models"][:-1]})
    write_checkpoints(folder, sample_texts(), "tiny", SEED)
    assert config.exists() and read_json(folder / "made_with.json") == note
    before = AutoModel.from_pretrained(folder / TEXT[0]).embeddings.word_embeddings.weight
    write_checkpoints(folder, sample_texts()[:20], "tiny", SEED + 1)
    after = AutoModel.from_pretrained(folder / TEXT[0]).embeddings.word_embeddings.weight
    assert before.shape[0] > after.shape[0] and not torch.equal(before[:20], after[:20])
