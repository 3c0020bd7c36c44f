"""Checkpoints with random weights for every architecture that the scripts fine-tune, each with its processor.

They stand in for the downloads from the Hugging Face hub; the Auto classes' `from_pretrained(folder)` loads
them without a network. What differs from the published configurations: see README.md.
"""

import json
import math
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers as hf
from tokenizers import normalizers, pre_tokenizers

from common.files import atomic_path, hash_of, make_folder, read_json, write_json

hf.utils.logging.disable_progress_bar()  # a bar per written shard would drown what 01 prints

# fmt: off
SIZES = {  # vocabulary: largest; tokens: longest text; wavlm_stride: 40 and 20 ms a step
    "tiny": {
        "hidden": 64, "layers": 2, "heads": 4, "vocabulary": 1000, "tokens": 128,
        "conv_dim": (10, 48, 64), "conv_kernel": (10, 32, 16), "conv_stride": (10, 16, 8),
        "conv_positions": 16,
        "wavlm_dim": (128, 64), "wavlm_kernel": (320, 8), "wavlm_stride": (160, 4),
        "mel_bins": 64, "mel_frames": 256, "mel_stride": 16,
        "image_px": 36, "patch_px": 12, "frames": 16, "tubelet": 4,
    },
    "small": {
        "hidden": 128, "layers": 4, "heads": 4, "vocabulary": 4000, "tokens": 256,
        "conv_dim": (10, 80, 128), "conv_kernel": (10, 64, 6), "conv_stride": (5, 32, 3),
        "wavlm_dim": (256, 128), "wavlm_kernel": (320, 4), "wavlm_stride": (160, 2), "conv_positions": 32,
        "mel_bins": 128, "mel_frames": 512, "mel_stride": 16,
        "image_px": 112, "patch_px": 16, "frames": 16, "tubelet": 4,
    },
}
# fmt: on
INITIALIZER_RANGE = 0.05  # published: 0.02, too faint a start for a hidden size of 64
DROPOUT = 0.1
AUDIO_RATE_HZ = 16000
LOWEST_HIGHEST_HZ = (80, 7000)  # centres of the filter banks that the waveform models start from, of 16 kHz
ENVELOPE_GAIN = 0.01  # see start_as_envelopes; at 0.001 a learning rate of 1e-4 harms it
SPECTROGRAM_MEAN, SPECTROGRAM_STD = -8.0, 4.0  # of the log-mel; AudioSet's are -4.27, 4.57


def write_checkpoints(folder, texts, size, seed):
    """Write folder/<last part of the hub name>/ of each architecture, unless they are there as asked for.

    texts  list of str, the transcripts on which the tokenisers are trained
    size   key of SIZES
    seed   int; the same seed and texts give the same weights and vocabularies
    """
    folder = make_folder(Path(folder))
    note = folder / "made_with.json"
    made_with = {"size": size, "dims": hash_of(SIZES[size]), "seed": seed}
    made_with |= {"texts": hash_of(texts), "models": list(makers())}
    if note.exists() and read_json(note) == made_with:
        return
    for number, (name, make) in enumerate(makers().items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * seed + number)  # transformers draws from torch's own
            model, processor = make(SIZES[size], texts)
        with atomic_path(folder / name) as temporary:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
    write_json(note, made_with)


def makers():
    """The function that makes each architecture, by the last part of its hub name."""
    return {  # a new one goes last: the position seeds the weights
        "bert-base-uncased": make_bert,
        "roberta-base": make_roberta,
        "distilbert-base-uncased": make_distilbert,
        "wav2vec2-base": partial(make_base, model_class=hf.Wav2Vec2Model, config_class=hf.Wav2Vec2Config),
        "hubert-base-ls960": partial(make_base, model_class=hf.HubertModel, config_class=hf.HubertConfig),
        "ast-finetuned-audioset-10-10-0.4593": make_ast,
        "videomae-base": make_videomae,
        "wavlm-large": make_wavlm,
    }


def encoder_shape(dims):
    """The arguments that most transformer configurations share."""
    size = {"hidden_size": dims["hidden"], "intermediate_size": 4 * dims["hidden"]}
    size |= {"num_hidden_layers": dims["layers"], "num_attention_heads": dims["heads"]}
    return size | {"initializer_range": INITIALIZER_RANGE}


# ---- Text -------------------------------------------------------------------------------------
def train_wordpiece(texts, size):
    """The vocabulary {piece: id} of a lower-casing WordPiece tokeniser with at most `size` pieces.

    It holds every character, alone and as a continuation, then the most frequent words. (The trainer of the
    tokenizers library breaks ties at random, so that its vocabulary differs from run to run.)
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    plain = [normalizer.normalize_str(text) for text in texts]
    words = Counter(word for text in plain for word, _ in splitter.pre_tokenize_str(text))
    characters = sorted({character for word in words for character in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *("##" + one for one in characters)]
    pieces += sorted(set(words) - set(pieces), key=lambda word: (-words[word], word))
    return {piece: index for index, piece in enumerate(pieces[:size])}


def train_byte_bpe(texts, size):
    """The vocabulary {piece: id} and the merges of a byte-level BPE tokeniser with at most `size` pieces."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    how = {"special_tokens": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "show_progress": False}
    how["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(vocab_size=size, **how))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def make_bert(dims, texts):
    vocabulary = train_wordpiece(texts, dims["vocabulary"])
    tokenizer = hf.BertTokenizer(vocab=vocabulary, model_max_length=dims["tokens"])
    return hf.BertModel(hf.BertConfig(**text_shape(dims, tokenizer))), tokenizer


def make_roberta(dims, texts):
    vocabulary, merges = train_byte_bpe(texts, dims["vocabulary"])
    tokenizer = hf.RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=dims["tokens"])
    shape = text_shape(dims, tokenizer) | {"type_vocab_size": 1}
    shape["max_position_embeddings"] += 2  # positions start after pad_token_id = 1
    return hf.RobertaModel(hf.RobertaConfig(**shape)), tokenizer


def make_distilbert(dims, texts):
    vocabulary = train_wordpiece(texts, dims["vocabulary"])
    tokenizer = hf.DistilBertTokenizer(vocab=vocabulary, model_max_length=dims["tokens"])
    depth = {"n_layers": max(1, dims["layers"] // 2), "n_heads": dims["heads"]}  # distilled to half the depth
    width = {"dim": dims["hidden"], "hidden_dim": 4 * dims["hidden"], "initializer_range": INITIALIZER_RANGE}
    dropout = {"dropout": DROPOUT, "attention_dropout": DROPOUT}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": dims["tokens"]}
    return hf.DistilBertModel(hf.DistilBertConfig(**depth, **width, **dropout, **text)), tokenizer


def text_shape(dims, tokenizer):
    """The arguments that the configurations of BERT and RoBERTa share."""
    dropout = {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": dims["tokens"]}
    return encoder_shape(dims) | dropout | text


# ---- Speech -----------------------------------------------------------------------------------
def make_base(dims, _texts, model_class, config_class):
    """wav2vec 2.0 or HuBERT, whose published base models take no attention mask."""
    model = model_class(config_class(**waveform_shape(dims)))
    start_as_filter_bank(model.feature_extractor, dims)
    return model, hf.Wav2Vec2FeatureExtractor(return_attention_mask=False)


def make_wavlm(dims, _texts):
    """WavLM-Large in small; WavLM-Base has neither "layer" nor "stable" normalisation."""
    shape = waveform_shape(dims) | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
    shape |= {f"conv_{name}": dims[f"wavlm_{name}"] for name in ("dim", "kernel", "stride")}
    model = hf.WavLMModel(hf.WavLMConfig(**shape))
    start_as_envelopes(model.feature_extractor)
    return model, hf.Wav2Vec2FeatureExtractor(return_attention_mask=True)  # as published large models have it


def waveform_shape(dims):
    """The arguments that the configurations of wav2vec 2.0, HuBERT and WavLM share."""
    dropouts = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout")
    shape = encoder_shape(dims) | dict.fromkeys(dropouts, DROPOUT)
    shape |= {name: dims[name] for name in ("conv_dim", "conv_kernel", "conv_stride")}
    shape |= {"num_conv_pos_embeddings": dims["conv_positions"], "num_conv_pos_embedding_groups": 4}
    shape |= {"final_dropout": 0.0, "layerdrop": 0.0, "apply_spec_augment": False, "mask_time_prob": 0.0}
    return shape | {"feat_extract_norm": "group"}


def start_as_filter_bank(encoder, dims):
    """Set the weights (C_out, C_in, kernel) of the three convolutions of a wav2vec 2.0 or HuBERT encoder.

    The first convolution deals out the samples: two channels hold each phase of the waveform with both signs;
    with fewer channels than 2 * stride the mean of neighbours, a lower rate. Its group normalisation scales
    all of them alike, and GELU(x) - GELU(-x) = x lets the second convolution restore the waveform and filter
    it. The third one averages over time.
    """
    deal, filters, average = (layer.conv.weight.data for layer in encoder.conv_layers)
    n_phases = len(deal) // 2
    n_mean = dims["conv_stride"][0] // n_phases  # samples
    deal.zero_()
    for phase in range(n_phases):
        deal[2 * phase, 0, phase * n_mean : (phase + 1) * n_mean] = 1 / n_mean
        deal[2 * phase + 1] = -deal[2 * phase]
    n_filters, _, kernel = filters.shape
    waves = mel_filters(n_filters, kernel * n_phases, rate_hz=AUDIO_RATE_HZ // n_mean)
    waves = waves.reshape(n_filters, kernel, n_phases).transpose(1, 2)
    filters[:, 0::2], filters[:, 1::2] = waves, -waves
    average *= 0.1
    for channel in range(min(average.shape[:2])):
        average[channel, channel] += smoothing(average)


def start_as_envelopes(encoder):
    """Set the initial weights of the two convolutions of a WavLM-Large feature encoder.

    Its layer normalisation would bring samples dealt out as above to one size, so the filters come first: as
    cosine and sine with both signs, whose sum after GELU follows the band's envelope at any phase. The second
    convolution takes that sum and averages over time. The normalisation between divides by the level: filters
    as faint as ENVELOPE_GAIN leave soft speech the epsilon to divide by, which keeps some of the loudness.
    """
    filters, envelopes = (layer.conv.weight.data for layer in encoder.conv_layers)  # (C_out, C_in, kernel)
    n_bands, n_samples = filters.shape[0] // 4, filters.shape[2]
    cosines, sines = mel_filters(n_bands, n_samples), mel_filters(n_bands, n_samples, math.pi / 2)
    filters[:, 0] = ENVELOPE_GAIN * torch.cat([cosines, -cosines, sines, -sines])
    envelopes *= 0.1
    for band in range(n_bands):
        envelopes[band, band::n_bands] += smoothing(envelopes)


def smoothing(weight):
    """A window that averages over the kernel of a convolution with this weight; (kernel,)."""
    window = torch.hann_window(weight.shape[2] + 2)[1:-1]
    return window / window.sum()


def mel_filters(n_filters, n_samples, phase=0.0, rate_hz=AUDIO_RATE_HZ):
    """Windowed cosines (Gabor filters) at mel-spaced frequencies, louder upwards as speech gets softer there.

    phase  lag at the middle of the window in radians: 0 for cosines, pi / 2 for sines
    Returns a float32 tensor (n_filters, n_samples).
    """
    lowest_hz, highest_hz = LOWEST_HIGHEST_HZ[0], LOWEST_HIGHEST_HZ[1] * rate_hz / AUDIO_RATE_HZ
    low, high = (2595 * math.log10(1 + frequency_hz / 700) for frequency_hz in (lowest_hz, highest_hz))
    centres_hz = 700 * (10 ** (np.linspace(low, high, n_filters) / 2595) - 1)
    time_s = (np.arange(n_samples) - (n_samples - 1) / 2) / rate_hz
    waves = np.cos(2 * np.pi * np.outer(centres_hz, time_s) - phase) * np.hanning(n_samples + 2)[1:-1]
    waves *= ((1 + centres_hz / 500) / np.linalg.norm(waves, axis=1))[:, None]
    return torch.tensor(waves, dtype=torch.float32)


def make_ast(dims, _texts):
    size = {"num_mel_bins": dims["mel_bins"], "max_length": dims["mel_frames"]}
    processor = hf.ASTFeatureExtractor(mean=SPECTROGRAM_MEAN, std=SPECTROGRAM_STD, **size)
    stride = {"frequency_stride": dims["mel_stride"], "time_stride": dims["mel_stride"]}
    model = hf.ASTModel(hf.ASTConfig(**size, **stride, **encoder_shape(dims)))
    scale_patches(model)
    return model, processor


def scale_patches(model):
    """Give the patch projection of AST or VideoMAE weights of variance 1 / inputs: tokens of unit size."""
    weight = model.embeddings.patch_embeddings.projection.weight.data
    weight /= weight.std() * math.sqrt(weight[0].numel())


# ---- Video ------------------------------------------------------------------------------------
def make_videomae(dims, _texts):
    side = dims["image_px"]
    size, crop = {"shortest_edge": side}, {"height": side, "width": side}
    processor = hf.VideoMAEImageProcessor(size=size, crop_size=crop)
    shape = encoder_shape(dims) | {"image_size": side, "patch_size": dims["patch_px"]}
    shape |= {"num_frames": dims["frames"], "tubelet_size": dims["tubelet"]}
    model = hf.VideoMAEModel(hf.VideoMAEConfig(**shape))
    scale_patches(model)
    return model, processor
