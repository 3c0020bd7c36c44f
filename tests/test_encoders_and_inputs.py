"""Encoders and inputs: padding changes nothing, what was saved is loaded, clips are the right frames."""

import copy

import numpy as np
import pytest
import torch
from conftest import load_script, shared_data
from networks import TINY_SPEECH
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperFeatureExtractor,
)

from common.encoders import (
    TurnEncoder,
    as_encoder,
    collate_waveforms,
    count_tokens,
    ignore_padding,
    input_shape,
    load_backbone,
    load_finetuned,
    load_processor,
    locate,
    save_finetuned,
    weights_fingerprint,
)
from common.files import UserError
from common.inputs import (
    Clipping,
    TurnInputs,
    choose_frames,
    collate_frames,
    decode_frames,
    decode_waveform,
    read_inputs,
)
from common.manifest import Manifest, Turn, write_manifest
from common.media import write_wav

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # see encoders.py


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    from common.demo.checkpoints import write_checkpoints

    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoints(
        folder, ["i am so happy today", "leave me alone", "what a sad day it is"] * 5, "tiny", 0
    )
    return folder


def audio_model(model_class, config_class):
    torch.manual_seed(0)
    return TurnEncoder(ignore_padding(model_class(config_class(**TINY_SPEECH))), "audio").eval()


def text_inputs(source, turns, classes):
    return TurnInputs(turns, classes, input_shape(source, "text"), load_processor(source, "text"), None)


@pytest.mark.parametrize(
    "classes", [(Wav2Vec2Model, Wav2Vec2Config), (HubertModel, HubertConfig), (WavLMModel, WavLMConfig)]
)
def test_waveforms_do_not_depend_on_their_batch(classes):
    model, extractor = audio_model(*classes), Wav2Vec2FeatureExtractor(return_attention_mask=False)
    waveforms = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in (9000, 16123, 30001)]
    together = model(collate_waveforms(extractor, waveforms))
    for row, waveform in zip(together, waveforms):
        alone = model(collate_waveforms(extractor, [waveform]))
        assert torch.allclose(row, alone[0], atol=1e-5)
        # and equals transformers' own model on the waveform without any padding
        values = torch.from_numpy((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7))[None]
        torch.manual_seed(0)
        plain = classes[0](classes[1](**TINY_SPEECH)).eval()(values).last_hidden_state.mean(1)
        assert torch.allclose(row, plain[0], atol=1e-5)


def wavlm(norm, stable):
    """A random WavLM whose norms and relative positions are as uneven as trained ones."""
    torch.manual_seed(0)
    model = WavLMModel(WavLMConfig(**TINY_SPEECH, feat_extract_norm=norm, do_stable_layer_norm=stable))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
        model.encoder.layers[0].attention.rel_attn_embed.weight.normal_()
    return ignore_padding(model).eval()


def hidden_layers(model, inputs):
    """All hidden layers (B, S, L, D) and how many tokens of each turn are not padding."""
    states = torch.stack(model(**inputs, output_hidden_states=True).hidden_states, dim=2)
    return states, count_tokens(model, "audio", states.shape[1], inputs)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("stable", [False, True])
def test_no_hidden_state_of_wavlm_depends_on_the_batch(norm, stable):
    model = wavlm(norm, stable)
    assert len(model.feature_extractor.conv_layers) == 3 and model.config.num_hidden_layers == 2
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    samples = (9000, 6401, 30001, 100)  # a step is 10 + 5 * 7 + 40 * 7 = 325 samples; 0.4 s at least
    waveforms = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in samples]
    with torch.no_grad():
        together, counts = hidden_layers(model, collate_waveforms(extractor, waveforms))
        assert counts.tolist() == [(max(n, 6400) - 325) // 320 + 1 for n in samples]
        for row, waveform, n in zip(together, waveforms, counts):
            alone, n_alone = hidden_layers(model, collate_waveforms(extractor, [waveform]))
            assert n_alone.item() == n and alone.shape[2] == 3
            torch.testing.assert_close(row[:n], alone[0, :n], atol=1e-4, rtol=0)


def test_hooks_are_there_once_and_a_copy_has_its_own_weights(checkpoints):
    """TurnEncoder adds none to those of load_backbone; the hook reads the norm that it is called on."""
    backbone = load_backbone(str(checkpoints / "wav2vec2-base"))
    norm = backbone.feature_extractor.conv_layers[0].layer_norm
    for model in (backbone, TurnEncoder(backbone, "audio").backbone):
        assert len(model._forward_pre_hooks) == 1 and len(norm._forward_hooks) == 1
    inputs = collate_waveforms(
        Wav2Vec2FeatureExtractor(), [np.random.default_rng(0).normal(size=9000).astype(np.float32)]
    )
    twin = copy.deepcopy(backbone).eval()
    before = backbone.eval()(**inputs).last_hidden_state
    with torch.no_grad():
        twin.feature_extractor.conv_layers[0].layer_norm.weight.mul_(
            torch.linspace(0.1, 3, norm.num_channels)
        )
    assert torch.equal(backbone(**inputs).last_hidden_state, before)
    assert not torch.allclose(twin(**inputs).last_hidden_state, before, atol=1e-2)


def test_count_tokens_without_a_mask_counts_all():
    counts = count_tokens(None, "video", 7, {"pixel_values": torch.zeros(3, 2)})
    assert counts.tolist() == [7, 7, 7] and counts.dtype == torch.int64


@pytest.mark.parametrize(
    "name, part",
    [
        ("wavlm-large", "feature_extractor"),
        ("wav2vec2-base", "feature_extractor"),
        ("bert-base-uncased", "embeddings"),
    ],
)
def test_gradients_reach_the_part_that_is_fine_tuned(checkpoints, name, part):
    """Li et al., Sec. 2.4: only the CNN encoder or the input embeddings learn, behind frozen layers."""
    backbone = load_backbone(str(checkpoints / name)).eval().requires_grad_(False)
    getattr(backbone, part).requires_grad_(True)
    if part == "embeddings":
        inputs = dict(
            load_processor(str(checkpoints / name), "text")(
                ["so sad", "i am so happy today"], padding=True, return_tensors="pt"
            )
        )
    else:
        waveforms = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in (9000, 16000)]
        inputs = collate_waveforms(Wav2Vec2FeatureExtractor(), waveforms)
    backbone(**inputs).last_hidden_state.square()[..., :5].mean().backward()
    learning = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
    expected = {n for n, _ in backbone.named_parameters() if n.startswith(part)}
    assert set(learning) == expected
    assert all(torch.isfinite(grad).all() and grad.abs().max() > 0 for grad in learning.values())


def test_without_the_mask_padding_would_leak():
    """The reason for ignore_padding_in_group_norm: transformers' own first layer changes with the batch."""
    torch.manual_seed(0)
    plain = Wav2Vec2Model(Wav2Vec2Config(**TINY_SPEECH)).eval()
    batch = collate_waveforms(
        Wav2Vec2FeatureExtractor(),
        [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in (9000, 30001)],
    )
    short = {
        "input_values": batch["input_values"][:1, :9000],
        "attention_mask": batch["attention_mask"][:1, :9000],
    }
    n = plain._get_feat_extract_output_lengths(torch.tensor(9000))
    assert not torch.allclose(
        plain(**batch).last_hidden_state[0, :n], plain(**short).last_hidden_state[0], atol=1e-2
    )


def test_texts_do_not_depend_on_their_batch(checkpoints):
    for name in ("bert-base-uncased", "roberta-base", "distilbert-base-uncased"):
        source = str(checkpoints / name)
        model = TurnEncoder(load_backbone(source), "text").eval()
        texts = ["so sad", "i am so happy today, am i", "x"]
        turns = [Turn(str(i), "d", i, "s", "", 0, 1, text) for i, text in enumerate(texts)]
        data = text_inputs(source, turns, ("a",))
        together = model(data.collate([data[i, None] for i in range(3)])["inputs"])
        for i in range(3):
            alone = model(data.collate([data[i, None]])["inputs"])
            assert torch.allclose(together[i], alone[0], atol=1e-5)


SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, vocab_size=50)
TEXT_FAMILIES = {
    "bert": SMALL,  # MiniLM is one
    "distilbert": dict(dim=32, n_layers=3, n_heads=2, hidden_dim=32, vocab_size=50),
    "roberta": SMALL,
    "xlm-roberta": SMALL,
    "mpnet": SMALL,
    "electra": SMALL | {"embedding_size": 16},
    "deberta-v2": SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "t5": dict(d_model=32, d_kv=16, num_layers=3, num_heads=2, d_ff=32, vocab_size=50),
}
WHISPER = dict(
    d_model=32,
    encoder_layers=3,
    encoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_layers=1,
    vocab_size=50,
)
WHISPER |= dict(
    decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=16, pad_token_id=0, bos_token_id=0
)
WHISPER |= dict(eos_token_id=0, decoder_start_token_id=0)


def family(kind, **sizes):
    """A random encoder of a family, with weights as uneven as trained ones."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return as_encoder(model)


def text_batch(*lengths):
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, n in zip(ids, lengths):
        row[:n] = torch.randint(5, 50, (n,), generator=torch.Generator().manual_seed(n))
    pad = {"roberta": 1, "xlm-roberta": 1, "mpnet": 1}
    mask = (ids > 0).long()
    return lambda kind: {"input_ids": ids + pad.get(kind, 0) * (mask == 0), "attention_mask": mask}


def log_mel_batch(*samples):
    extractor = WhisperFeatureExtractor(feature_size=16)
    waveforms = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in samples]
    return collate_waveforms(extractor, waveforms)


def audio_batch(*samples):
    waveforms = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in samples]
    return collate_waveforms(Wav2Vec2FeatureExtractor(), waveforms)


FAMILIES = [*TEXT_FAMILIES, "whisper", "wav2vec2", "hubert", "wavlm", "wav2vec2 stable"]


def encoder_of(kind, **how):
    """A TurnEncoder of a family and a function that makes a batch of three lengths, or of one alone."""
    if kind in TEXT_FAMILIES:
        model, make = family(kind, **TEXT_FAMILIES[kind]), lambda *n: text_batch(*n)(kind)
        return TurnEncoder(model, "text", **how).eval(), make, (4, 9, 7)
    if kind == "whisper":
        return TurnEncoder(family(kind, **WHISPER), "audio", **how).eval(), log_mel_batch, (9000, 3201, 16000)
    stable = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"} if "stable" in kind else {}
    model = family(kind.split()[0], **TINY_SPEECH | {"num_hidden_layers": 3}, **stable)
    return TurnEncoder(model, "audio", **how).eval(), audio_batch, (9000, 30001, 16000)


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_no_encoder_depends_on_the_batch(kind, pooling):
    model, make, lengths = encoder_of(kind, pooling=pooling, layer="weighted")
    with torch.no_grad():
        together = model(make(*lengths))
        alone = torch.cat([model(make(n)) for n in lengths])
    assert together.std(0).mean() > 1e-3
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("how", [{"layer": "last"}, {"layer": "2"}, {"layer": "weighted"}])
@pytest.mark.parametrize("n_trained", [0, 2, 3])
def test_training_from_frozen_states_is_exact(kind, how, n_trained):
    """The last blocks on cached states give what the whole model gives, and the same gradients."""
    model, make, lengths = encoder_of(kind, n_trained=n_trained, pooling="mean", **how)
    batch = make(*lengths)
    if not model.is_cacheable:
        assert kind in ("deberta-v2", "t5", "wavlm")
        return
    with torch.no_grad():
        states, visible = model.frozen_states(batch)
        plain, make, _ = encoder_of(kind, pooling="mean", **how)
        torch.testing.assert_close(
            model({"states": states, "visible": visible}), plain(batch), atol=2e-5, rtol=1e-4
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return
    model({"states": states, "visible": visible}).square().sum().backward()
    cached = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert n_trained == 0 or any(name.startswith("backbone") for name in cached)
    model.zero_grad()
    model(batch).square().sum().backward()
    for name, gradient in cached.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-3, rtol=1e-3)


def test_the_first_frames_of_whisper_are_its_own():
    extractor = WhisperFeatureExtractor(feature_size=16)
    waveform = np.random.default_rng(0).normal(size=9000).astype(np.float32)
    ours, own = log_mel_batch(9000), extractor(waveform, sampling_rate=16000, return_tensors="pt")
    waveform = np.random.default_rng(9000).normal(size=9000).astype(np.float32)
    own = extractor(waveform, sampling_rate=16000, return_tensors="pt")["input_features"]
    assert ours["attention_mask"].shape == (1, 29) and ours["input_features"].shape == (
        1,
        16,
        58,
    )  # 9000 / 320
    torch.testing.assert_close(ours["input_features"], own[:, :, :58], atol=1e-5, rtol=0)
    assert log_mel_batch(31 * 16000)["attention_mask"].shape == (1, 1500)  # 30 s at most


def test_whisper_at_its_full_length_is_transformers_own():
    """With 30 s there is nothing to cut: the states are those of transformers' forward."""
    encoder = family("whisper", **WHISPER | {"max_source_positions": 20}).eval()
    x = torch.randn(2, 16, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = encoder(x, torch.ones(2, 20))
        own = encoder.encoder(x, output_hidden_states=True)
    for a, b in zip(ours.hidden_states, own.hidden_states, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_decoders_are_refused(kind, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{kind} is a decoder; name an encoder such as BERT") as error:
        input_shape(str(tmp_path), "text")
    assert "\n" not in str(error.value)


def test_what_is_frozen_runs_without_dropout():
    model, make, lengths = encoder_of("bert", n_trained=1)
    batch = make(*lengths)
    model.train()
    with torch.no_grad():
        first, second = (model.hidden(batch)[0] for _ in range(2))
    assert torch.equal(first[2], second[2]) and not torch.equal(first[3], second[3])
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("layer.2." in name for name in trained)


def test_a_saved_classifier_loads_as_it_was(checkpoints, tmp_path):
    source = str(checkpoints / "videomae-base")
    model = load_script("02_finetune_unimodal.py").EmotionClassifier(source, "video", 3).eval()
    processor, shape = load_processor(source, "video"), input_shape(source, "video")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "best.safetensors")
    about = {"modality": "video", "classes": ["a", "b", "c"], "source": source}
    save_finetuned(tmp_path, source, processor, {**about, "encoder": {"n_trained": None}})
    encoder, linear, description = load_finetuned(tmp_path)
    size = (shape.frames, shape.size, shape.size, 3)
    batch = collate_frames(processor, [np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)])
    assert torch.equal(model(batch), linear(encoder(batch))) and description["classes"] == ["a", "b", "c"]


def test_checkpoint_that_is_not_there(checkpoints):
    assert locate("facebook/wav2vec2-base", "hub", "data", "toy") == "facebook/wav2vec2-base"
    assert locate("facebook/wav2vec2-base", str(checkpoints), "", "") == str(checkpoints / "wav2vec2-base")
    with pytest.raises(UserError, match="WRITE_CHECKPOINTS"):
        locate("google/absent", "local", checkpoints, "toy")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_backbone(str(checkpoints / "absent"))


def test_weights_are_known_by_their_bytes(checkpoints, tmp_path):
    assert weights_fingerprint("facebook/wav2vec2-base") == "facebook/wav2vec2-base"
    for i, content in enumerate((b"one", b"one", b"two")):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "model.safetensors").write_bytes(content)
    found = [weights_fingerprint(str(tmp_path / str(i))) for i in range(3)]
    assert found[0] == found[1] != found[2]


def test_overfits_eight_samples(checkpoints):
    script, source = load_script("02_finetune_unimodal.py"), str(checkpoints / "bert-base-uncased")
    script.DROPOUT = 0.0
    torch.manual_seed(0)
    model = script.EmotionClassifier(source, "text", 2)
    words = [("happy", "p"), ("sad", "n"), ("so happy", "p"), ("so sad", "n")] * 2
    turns = [Turn(str(i), "d", i, "s", "", 0, 1, f"{w} day", label) for i, (w, label) in enumerate(words)]
    data = text_inputs(source, turns, ("p", "n"))
    batch = data.collate([data[i, 0] for i in range(8)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        total, count = script.cross_entropy(model, batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert (total / count).item() < 0.05


def test_epochs_of_models_without_their_own_are_those_of_the_first():
    script = load_script("02_finetune_unimodal.py")
    script.TEXT_MODELS, script.TEXT_EPOCHS = ("a", "b", "c"), (3, 2)
    assert [script.recipe_of("text", model, 0).epochs for model in "abc"] == [3, 2, 3]


def test_choose_frames():
    assert list(choose_frames(5, 10)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert list(choose_frames(20, 10)) == list(range(5, 15))
    starts = {int(choose_frames(20, 10, np.random.default_rng(i))[0]) for i in range(200)}
    assert starts == set(range(11))


def test_clips_are_normalised():
    class Processor:
        image_mean, image_std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]

    clip = np.arange(2 * 2 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 3)
    pixels = collate_frames(Processor, [clip])["pixel_values"]  # (B, T, 3, H, W)
    assert pixels.shape == (1, 2, 3, 2, 4) and pixels[0, 1, 2, 0, 3] == clip[1, 0, 3, 2] / 255


def test_training_clips_vary_by_seed_only(checkpoints):
    source = str(checkpoints / "videomae-base")
    shape, processor = input_shape(source, "video"), load_processor(source, "video")

    class Store:
        def rows(self, utterance_id, name):
            frames = np.random.default_rng(0).integers(0, 255, (40, shape.size, shape.size, 3))
            return frames.astype(np.uint8)

    turns = [Turn("a", "d", 0, "s", "", 0, 1, label="x")]
    data = TurnInputs(turns, ("x",), shape, processor, Store(), mirror=0.5)
    plain = TurnInputs(turns, ("x",), shape, processor, Store())
    assert np.array_equal(data[0, (1, 2, 3)][0], data[0, (1, 2, 3)][0])
    assert len({data[0, (0, 0, i)][0].tobytes() for i in range(30)}) > 5
    pairs = [(data[0, (0, 0, i)][0], plain[0, (0, 0, i)][0]) for i in range(40)]
    mirrored = [not np.array_equal(*pair) for pair in pairs]
    assert all(np.array_equal(x[:, :, ::-1] if m else x, y) for m, (x, y) in zip(mirrored, pairs))
    assert 5 < sum(mirrored) < 35 and np.array_equal(data[0, None][0], plain[0, None][0])


def test_inputs_are_decoded_once_and_bad_files_left_out(checkpoints, tmp_path, capsys):
    folder = tmp_path / "prepared"
    rng = np.random.default_rng(0)
    turns = [Turn(f"u{i}", "d", i, "s", "", 0, 1.0, label="x", audio=f"audio/u{i}.wav") for i in range(4)]
    turns.append(Turn("u4", "d", 4, "s", "", 0, 1.0, text="no sound"))
    waves = [rng.uniform(-0.5, 0.5, 16000 * (i + 1)).astype(np.float32) for i in range(4)]
    for turn, wave in zip(turns, waves):
        write_wav(folder / turn.audio, wave)
    (folder / turns[2].audio).write_bytes(b"RIFF not a wave file")
    manifest = Manifest("toy", folder, ("x",), turns)
    write_manifest(manifest)
    source, clip = str(checkpoints / "wav2vec2-base"), Clipping(3.0, 3.0, 30.0, 4)
    inputs = read_inputs(manifest, "audio", source, clip, tmp_path, 0)
    assert inputs.ids == ["u0", "u1", "u3"] and inputs.lengths == [16000, 32000, 48000]
    assert list(inputs.store.problems) == ["u2"] and "1 of 4 recordings" in capsys.readouterr().out
    assert np.allclose(inputs[2, None][0], waves[3][:48000], atol=1e-4)
    assert np.array_equal(
        decode_waveform(folder / turns[0].audio, 0.5), inputs.store.rows("u0", "inputs")[:8000]
    )
    (folder / turns[0].audio).unlink()  # not read again
    again = read_inputs(manifest, "audio", source, clip, tmp_path, 0)
    assert again.of([*reversed(turns), turns[4]]).ids == ["u3", "u1", "u0"]


def test_real_video_gives_a_frame_per_step():
    video = shared_data("ravdess_av") / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    frames = decode_frames(video, step_s=4 / 30, n_frames=16, size=64, max_s=10.0)
    assert frames.shape == (24, 64, 64, 3) or frames.shape == (
        25,
        64,
        64,
        3,
    )  # 3.3 s at 7.5 frames per second
    assert frames.std() > 20 and len({f.tobytes() for f in frames}) > 20
    assert decode_frames(video, step_s=1.0, n_frames=16, size=64, max_s=10.0).shape[0] == 16
