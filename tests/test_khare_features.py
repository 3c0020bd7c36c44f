"""Features and words of clips: against plain numpy and torch, stores cut short, hand-made times."""

import csv
import math
import shutil
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch
from conftest import shared_data
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import vgg16
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from common.extraction import Extraction
from common.files import UserError
from common.khare import data as khare_data
from common.khare import features
from common.khare import words as khare_words
from common.khare.data import NO_TARGET, Clips, Corpus, Part, statistics
from common.khare.features import VGG, Source, extract_clips, filterbanks
from common.khare.words import Recogniser, Transcripts, Vectors, WordsFile, is_there, open_words, tidy_words
from common.pictures import IMAGENET
from common.store import Store, StoreWriter
from common.training import Recipe, StepKeys

RATE = 16000
HOW = Extraction(batch=3, workers=0, max_problem_share=0.0)
NAN = float("nan")


def noise(seconds, seed):
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).clip(-1, 1).astype(np.float32)


# ---- Filterbanks ---------------------------------------------------------------------------


def plain_fbank(samples):
    """Kaldi's filterbank written out: one frame at a time, one band at a time."""
    samples = np.asarray(samples, np.float64) * 32768
    frames = []
    for k in range((len(samples) + 80) // 160):
        place = np.arange(400) + 160 * k + 80 - 200
        place = np.where(place < 0, -1 - place, place)  # mirrored at both ends
        place = np.where(place >= len(samples), 2 * len(samples) - 1 - place, place)
        x = samples[place]
        x = x - x.mean()
        x = x - 0.97 * np.concatenate([x[:1], x[:-1]])
        x = x * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
        power = np.abs(np.fft.rfft(x, 512)) ** 2
        edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 42)
        mel = 1127 * np.log(1 + np.arange(257) * 16000 / 512 / 700)
        rising, falling = (
            [(mel - edges[b]) / (edges[b + 1] - edges[b]) for b in range(40)],
            [(edges[b + 2] - mel) / (edges[b + 2] - edges[b + 1]) for b in range(40)],
        )
        bands = np.minimum(rising, falling).clip(0)[:, :256] @ power[:256]
        frames.append(np.log(np.maximum(bands, np.finfo(np.float32).eps)))
    return np.array(frames)  # (frames, 40)


@pytest.mark.parametrize("n_samples", [16000, 12345, 4079, 400])
def test_filterbanks_equal_a_plain_implementation(n_samples):
    samples = noise(1, 0)[:n_samples]
    expected = plain_fbank(samples)
    found = filterbanks(samples)
    n_steps = -(-len(expected) // 5)
    assert found.dtype == np.float32 and found.shape == (n_steps, 200)
    frames = found.reshape(-1, 40)
    np.testing.assert_allclose(frames[: len(expected)], expected, atol=2e-3)
    np.testing.assert_array_equal(
        frames[len(expected) :], frames[[len(expected) - 1] * (len(frames) - len(expected))]
    )


def test_a_click_lies_in_the_frame_of_its_time():
    for at in (0.005, 0.305, 0.995):
        samples = np.zeros(RATE, np.float32)
        samples[round(at * RATE)] = 0.5
        frames = filterbanks(samples).reshape(-1, 40).sum(1)
        assert frames.argmax() == int(at * 100)


def test_short_clips_and_silence_give_finite_steps():
    for n_samples in (1, 79, 399):
        assert filterbanks(noise(1, 1)[:n_samples]).shape == (1, 200)
    assert np.isfinite(filterbanks(np.zeros(5000, np.float32))).all()


# ---- VGG-16 --------------------------------------------------------------------------------


def small_vgg():
    """In place of torchvision's vgg16, which takes half a gigabyte: the same parts, 4096 numbers."""
    network = nn.Module()
    network.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    network.avgpool = nn.AdaptiveAvgPool2d(7)
    network.classifier = nn.Sequential(
        nn.Linear(196, 32),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(32, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 10),
    )
    return network


@pytest.fixture(scope="module")
def vgg():
    return VGG(None, 32, 4, "cpu")


def test_vgg_gives_fc7_after_the_relu_of_torchvisions_network(vgg):
    with torch.device("meta"):
        reference = vgg16().eval()
        reference.classifier[6] = nn.Identity()
    weights = zip(reference.state_dict(), vgg.network.parameters(), strict=True)
    reference.load_state_dict(dict(weights), assign=True)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET)
    x = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std
    seen = []
    reference.classifier[4].register_forward_hook(lambda *call: seen.append(call[2].clone()))
    with torch.no_grad():
        reference(x)
    found = vgg.features(pictures)
    assert found.shape == (3, 4096)
    np.testing.assert_allclose(found, seen[0].numpy(), rtol=1e-3, atol=1e-4)
    assert (seen[0] == 0).any() and seen[0].min() == 0


def test_vgg_from_a_file_or_random(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "vgg16", small_vgg)
    network = small_vgg().eval()
    torch.save(network.state_dict(), tmp_path / "vgg.pth")
    pictures = np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    loaded, one, same = (
        VGG(str(tmp_path / "vgg.pth"), 16, 2, "cpu"),
        *(VGG(None, 16, n, "cpu") for n in (2, 5)),
    )
    parts = network.features, network.avgpool, nn.Flatten(), network.classifier[:5]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in IMAGENET)
    with torch.no_grad():
        expected = nn.Sequential(*parts)((torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std)
    np.testing.assert_allclose(loaded.features(pictures), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.features(pictures), same.features(pictures), rtol=1e-4, atol=1e-5)
    assert one.identity == same.identity != loaded.identity
    assert one.features(pictures[:0]).shape == (0, 4096)


def test_features_are_computed_without_tf32(vgg, monkeypatch):
    seen = []
    monkeypatch.setattr(features, "normalise_frames", lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    with pytest.raises(TypeError):
        vgg.features(np.zeros((1, 32, 32, 3), np.uint8))
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_vgg_refuses_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "vgg16", small_vgg)
    state = small_vgg().state_dict()
    del state["classifier.3.bias"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: classifier\.3\.bias is missing.*torchvision's vgg16"):
        features.vgg_weights(str(tmp_path / "other.pth"))


# ---- Words ---------------------------------------------------------------------------------


def test_words_file(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text(
        'utterance_id,word,start_s,end_s\na,well,0.1,0.3\na,"one, two",0.3,0.5\n"b, c",so,,\n'
        '-d,"é ""x""",1,2\n',
        encoding="utf-8",
    )
    words = WordsFile(path)
    assert words.words("a", None)[0] == [("well", 0.1, 0.3), ("one, two", 0.3, 0.5)]
    assert words.words("b, c", None)[0] == [("so", None, None)]
    assert words.words("-d", None)[0] == [('é "x"', 1.0, 2.0)]
    assert words.words("nobody", None)[0] == [] and math.isnan(words.words("a", None)[1])


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,word\n", "first line is not utterance_id,word"),
        ("", "first line is not"),
        ("utterance_id,word,start_s,end_s\na,x,0,1\nb,x,0,1\na,y,1,2\n", "words of a stand in two places"),
        ("utterance_id,word,start_s,end_s\na,x,0,1\na,x,soon,1\n", "words.csv:3: not utterance_id,word"),
        ("utterance_id,word,start_s,end_s\na,x\n", "words.csv:2: not utterance_id,word"),
    ],
)
def test_words_file_refuses_what_it_cannot_read(tmp_path, text, message):
    (tmp_path / "words.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        WordsFile(tmp_path / "words.csv")


def test_scores_of_words_become_one_of_their_clip(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("utterance_id,word,start_s,end_s,score\na,x,0,1,-0.5\na,y,1,2,\na,z,2,3,-0.1\nb,x,0,1,\n")
    assert WordsFile(path).words("a", None) == ([("x", 0, 1), ("y", 1, 2), ("z", 2, 3)], pytest.approx(-0.3))
    assert math.isnan(WordsFile(path).words("b", None)[1])


def test_where_words_come_from(tmp_path):
    (tmp_path / "words.csv").write_text("utterance_id,word,start_s,end_s\n")
    (tmp_path / "texts").mkdir()
    assert open_words("", tmp_path, "cpu") is None
    assert isinstance(open_words("words.csv", tmp_path, "cpu"), WordsFile)
    assert isinstance(open_words(str(tmp_path / "texts"), "/nowhere", "cpu"), Transcripts)
    with pytest.raises(UserError, match="cannot be loaded"):
        open_words("no/such/recogniser", tmp_path, "cpu")
    assert not is_there("other.csv", tmp_path) and not is_there("no/such/model", tmp_path)
    assert is_there("words.csv", tmp_path)


def test_transcripts_have_no_times(tmp_path):
    (tmp_path / "id1").mkdir()
    (tmp_path / "id1/a.txt").write_text("one two\nthree\n", encoding="utf-8")
    words = [("one", None, None), ("two", None, None), ("three", None, None)]
    assert Transcripts(tmp_path).words("id1/a", None)[0] == words
    assert Transcripts(tmp_path).words("c", None)[0] == []


@pytest.mark.parametrize(
    "words, seconds, expected, outside",
    [
        ([], 2.0, [], 0),
        ([("a", 0.5, 1.0), (" ", 0, 1), ("b", 0.1, 0.2)], 2.0, [("b", 0.1, 0.2), ("a", 0.5, 1.0)], 0),
        ([("a", -0.3, 0.1), ("b", 1.9, 2.6)], 2.0, [("a", 0.0, 0.1), ("b", 1.9, 2.0)], 0),  # across an edge
        ([("a", -0.3, -0.1), ("b", 2.2, 2.6), ("c", 1.0, 1.1)], 2.0, [("c", 1.0, 1.1)], 2),  # outside
        ([("a", 2.05, 2.2)], 2.0, [("a", 2.0, 2.0)], 0),  # rounded times
        (
            [("a", 1.0, 1.0), ("b", 1.2, 0.9), ("z", 0.0, 0.0)],
            2.0,
            [("z", 0, 0), ("a", 1.0, 1.0), ("b", 1.2, 1.2)],
            0,
        ),
        ([("a", None, None), ("b", None, None)], 3.0, [("a", 0.0, 1.5), ("b", 1.5, 3.0)], 0),  # spread evenly
        ([("a", 0.5, NAN), ("b", 0.7, 0.8)], 3.0, [("a", 0.0, 1.5), ("b", 1.5, 3.0)], 0),
        ([("a", 0.5, 0.7)], 0.0, [("a", 0.5, 0.7)], 0),
    ],
)  # of unknown length
def test_tidy_words(words, seconds, expected, outside):
    assert tidy_words(words, seconds) == (expected, outside)


def test_words_without_times_in_a_clip_of_unknown_length_have_none():
    ((word, start, end),) = tidy_words([("a", None, None)], 0.0)[0]
    assert word == "a" and math.isnan(start) and math.isnan(end)


LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"]


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory):
    return tiny_ctc(tmp_path_factory.mktemp("ctc"))


def tiny_ctc(folder):
    """A wav2vec 2.0 with three letters and random weights, large enough that it says something."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(
        str({x: i for i, x in enumerate(LETTERS)}).replace("'", '"'), encoding="utf-8"
    )
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    model = Wav2Vec2ForCTC(config)
    model.lm_head.weight.data.normal_(0, 2)
    model.lm_head.bias.data[1:4] = -100  # those that stand for no letter
    model.save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def test_recogniser_reads_letters_times_and_score_off_the_frames(ctc_folder):
    recogniser = Recogniser(ctc_folder, "cpu")
    samples = noise(3, 2) * (1 + np.sin(np.arange(3 * RATE) / 700)).astype(np.float32)
    words, score = recogniser.words("a", samples)
    model = Wav2Vec2ForCTC.from_pretrained(ctc_folder).eval()
    x = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None]
    with torch.no_grad():
        best, ids = model(x).logits[0].log_softmax(-1).max(-1)
    expected, ended = [], True  # CTC by hand: repeated letters are one, blanks are none, "|" ends a word
    for letter, run in groupby(range(len(ids)), key=lambda k: int(ids[k])):
        name, frames = LETTERS[letter], list(run)
        if name == "|":
            ended = True
        elif letter:
            word, start, _ = ("", frames[0], 0) if ended else expected.pop()
            expected.append((word + name.lower(), start, frames[-1] + 1))
            ended = False
    assert len(words) > 2 and [word for word, *_ in words] == [word for word, *_ in expected]
    np.testing.assert_allclose([word[1:] for word in words], np.array([word[1:] for word in expected]) * 0.02)
    assert score == pytest.approx(float(best[ids != 0].mean()), abs=1e-5) and score < 0


class FakePipeline:
    """What transformers' pipeline gives for Whisper; the chunks are those of a recording of RAVDESS."""

    def __init__(self, is_multilingual):
        self.model = nn.Linear(2, 2)  # anything that has weights
        timed = {"no_timestamps_token_id": 3, "is_multilingual": is_multilingual}
        self.model.generation_config = SimpleNamespace(**timed)

    def __call__(self, samples, return_timestamps, generate_kwargs):
        assert return_timestamps == "word"
        self.asked = generate_kwargs
        chunks = [{"text": " Kids", "timestamp": (0.0, 1.18)}, {"text": " door.", "timestamp": (1.94, None)}]
        return {"text": " Kids door.", "chunks": chunks}


@pytest.mark.parametrize("is_multilingual", [True, False])
def test_words_of_whisper(monkeypatch, tmp_path, is_multilingual):
    pipeline = FakePipeline(is_multilingual)
    monkeypatch.setattr(khare_words, "pipeline", lambda task, source, device, dtype: pipeline)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    recogniser = open_words(str(tmp_path), tmp_path, "cpu")
    words, score = recogniser.words("a", noise(3, 0))
    assert words == [("Kids", 0.0, 1.18), ("door.", 1.94, 3.0)] and math.isnan(score)
    assert pipeline.asked == ({"language": "en"} if is_multilingual else {})
    assert recogniser.words("a", noise(0.02, 0))[0] == []
    pipeline.model.generation_config.no_timestamps_token_id = None
    with pytest.raises(UserError, match="knows no times"):
        khare_words.WhisperRecogniser(tmp_path, "cpu")


def test_recogniser_without_anything_to_hear(ctc_folder):
    recogniser = Recogniser(ctc_folder, "cpu")
    for samples in (noise(1, 0)[:0], noise(0.02, 0)):
        words, score = recogniser.words("a", samples)
        assert words == [] and math.isnan(score)
    with pytest.raises(UserError, match="cannot be loaded"):
        Recogniser(ctc_folder / "absent", "cpu")


def test_a_model_that_was_not_trained_to_transcribe_or_is_nan_is_refused(ctc_folder, tmp_path):
    for change, told in ((lambda w: w.pop("lm_head.weight"), "lm_head.weight is missing"), (spoil, "NaN or")):
        shutil.copytree(ctc_folder, tmp_path / told[:3])
        path = tmp_path / told[:3] / "model.safetensors"
        change(weights := load_file(path))
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(UserError, match=told):
            Recogniser(path.parent, "cpu")


def spoil(weights):
    weights["lm_head.bias"][0] = float("nan")


# ---- Recordings to a store -----------------------------------------------------------------


class Colours:
    """In place of VGG-16: the mean colour of a picture in 3 of 4096 numbers; can be made to fail."""

    size, identity, calls_left = 16, "colours", 10**9

    def features(self, pictures):
        self.calls_left -= 1
        if self.calls_left < 0:
            raise KeyboardInterrupt
        found = np.zeros((len(pictures), 4096), np.float32)
        found[:, :3] = pictures.mean((1, 2))
        return found


def write_video(path, seconds, sound_s=0.0, rate=10, late_s=0.0, sound_late_s=0.0):
    """Grey pictures, 10 per second, lighter by 2 each, from late_s on; noise from sound_late_s on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1", "g": "5"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        track = container.add_stream("aac", rate=RATE, layout="mono") if sound_s else None
        for k in range(round(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 + 2 * k, np.uint8), format="rgb24")
            frame.pts = k + round(late_s * rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound_s:
            samples = noise(sound_s, 0)
            for start in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format="fltp", layout="mono"
                )
                frame.sample_rate, frame.pts = RATE, start + round(sound_late_s * RATE)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Eight clips: of a long video with a wav, a video with sound, one without, a wav alone, words alone."""
    folder = tmp_path_factory.mktemp("corpus")
    soundfile.write(folder / "long.wav", noise(6, 1), RATE)
    soundfile.write(folder / "short.wav", noise(1.33, 2), RATE)
    long = {"audio": str(folder / "long.wav"), "video": write_video(folder / "long.mp4", 6)}
    return [
        Source("long[0]", **long, start_s=1.0, end_s=2.6, words=[("one", 0.0, 0.4), ("two", 0.5, 1.0)]),
        Source("long[1]", **long, start_s=0.0, end_s=1.2, words=[("gone", -3.0, -2.0), ("two", 0.1, 0.3)]),
        Source("long[2]", **long, start_s=5.1, end_s=9.0, words=[]),
        Source("-spoken", video=write_video(folder / "spoken.mp4", 2, sound_s=2), words=[("hi", None, None)]),
        Source("silent", video=write_video(folder / "silent.mp4", 1.7), words=[("two", 0.2, 0.2)]),
        Source("heard", audio=str(folder / "short.wav")),
        Source("said, not heard", end_s=2.0, words=[("so", None, None), ("what", None, None)]),
        Source("long[3]", **long, words=[]),
    ]


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def extracted(sources, folder, words=None, vgg=None, how=HOW):
    return extract_clips(sources, words, vgg, 2, folder, how)


def words_of(store, name):
    times = store.rows(name, "word_times").tolist()
    return [(word, *time) for word, time in zip(khare_data.words_of(store, name), times, strict=True)]


def counts(store, name):
    return store.spans(name)[1].tolist()


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    return extracted(corpus, tmp_path_factory.mktemp("store") / "s", vgg=Colours())


def test_each_clip_has_its_own_sound_pictures_and_words(corpus, store):
    assert store.ids == [source.clip_id for source in corpus] and len(store) == 8
    samples = soundfile.read(corpus[0].audio, dtype="float32")[0]
    spans = {"long[0]": (1.0, 2.6), "long[1]": (0.0, 1.2), "long[2]": (5.1, 6.0), "long[3]": (0.0, 6.0)}
    for name, (start, end) in spans.items():
        expected = filterbanks(samples[round(start * RATE) : round(end * RATE)])
        np.testing.assert_array_equal(store.rows(name, "audio"), expected.astype(np.float16))
        assert store.rows(name, "facts")[0, 0] == pytest.approx(end - start, abs=1e-3)
        edges = np.append(np.arange(start, end - 1e-6, 0.5), end)
        shown = 20 + 2 * np.floor((edges[:-1] + edges[1:]) / 2 * 10 + 0.01)  # the newest picture by then
        found = store.rows(name, "video")[:, :3].astype(float)
        np.testing.assert_allclose(found, shown[:, None].repeat(3, 1), atol=2)
    assert store.length("-spoken", "audio") in (40, 41, 42) and store.length("-spoken", "video") in (4, 5)
    assert store.rows("silent", "audio").shape == (0, 200) and store.rows("silent", "video").shape == (
        4,
        4096,
    )
    assert store.rows("heard", "audio").shape == (27, 200) and store.rows("heard", "video").shape == (0, 4096)
    assert words_of(store, "long[0]") == [("one", 0.0, pytest.approx(0.4)), ("two", 0.5, 1.0)]
    assert [word for word, *_ in words_of(store, "long[1]")] == ["two"] and words_of(store, "long[2]") == []
    assert words_of(store, "said, not heard") == [("so", 0.0, 1.0), ("what", 1.0, 2.0)]
    assert store["facts"][:, 2].tolist() == [0, 1, 0, 0, 0, 0, 0, 0] and np.isnan(store["facts"][:, 1]).all()
    assert store["audio"].dtype == store["video"].dtype == np.float16


def test_sound_and_pictures_that_start_at_different_times(tmp_path):
    path = write_video(tmp_path / "late.mp4", 2, sound_s=2, late_s=1.0)
    clips = [
        Source("before", video=path, start_s=0.0, end_s=0.8),
        Source("across", video=path, start_s=0.5, end_s=2.5),
    ]
    found = extracted(clips, tmp_path / "s", vgg=Colours())
    assert counts(found, "audio") == [16, pytest.approx(30, abs=2)] and counts(found, "video") == [0, 4]
    assert found.rows("across", "video")[:, 0].tolist() == pytest.approx([20, 24, 34, 44], abs=2)
    alone = extracted(clips[:1], tmp_path / "t", vgg=Colours())
    assert counts(alone, "video") == [0] and counts(alone, "audio") == [16]
    after = write_video(tmp_path / "after.mp4", 2, sound_s=1, sound_late_s=1.0)
    found = extracted([Source("a", video=after)], tmp_path / "v", vgg=Colours())
    steps = found["audio"].astype(float).mean(1)
    silence, sound = steps[:18], steps[22:39]
    assert len(steps) in (40, 41, 42) and (silence < 0).all() and (sound > 10).all()
    longer = write_video(tmp_path / "longer.mp4", 1, sound_s=3)
    found = extracted([Source("a", video=longer)], tmp_path / "u", vgg=Colours())
    assert counts(found, "video") == [2] and counts(found, "audio")[0] >= 59 and found["facts"][0, 0] >= 2.99


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_killed_run_leaves_the_same_bytes(corpus, store, tmp_path, calls):
    vgg = Colours()
    vgg.calls_left = calls
    with pytest.raises(KeyboardInterrupt):
        extracted(corpus, tmp_path / "s", vgg=vgg)
    with pytest.raises(UserError, match="unfinished|no such|No such"):
        Store(tmp_path / "s")
    extracted(corpus, tmp_path / "s", vgg=Colours(), how=replace(HOW, workers=2))
    assert content(tmp_path / "s") == content(store.folder)
    vgg.calls_left = 0
    extracted(corpus, tmp_path / "s", vgg=vgg)  # is there


def test_another_identity_starts_over(corpus, store, tmp_path):
    shutil.copytree(store.folder, tmp_path / "s")
    assert len(extracted(corpus[:2], tmp_path / "s", vgg=Colours())) == 2
    changed = [replace(corpus[0], end_s=2.0), corpus[1]]
    assert counts(extracted(changed, tmp_path / "s", vgg=Colours()), "audio") == [20, 24]


def test_damaged_recordings_are_named_limited_and_tried_again(corpus, tmp_path):
    sources = [replace(source) for source in corpus]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, but no sound")
    sources[5].audio = str(broken)
    sources.append(Source("late", audio=corpus[5].audio, start_s=50.0, end_s=51.0))
    with pytest.raises(UserError, match="2 of 9 recordings cannot be used"):
        extracted(sources, tmp_path / "s", vgg=Colours())
    lenient = replace(HOW, max_problem_share=0.3)
    found = extracted(sources, tmp_path / "s", vgg=Colours(), how=lenient)
    assert len(found) == 7
    with open(tmp_path / "s/problems.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["utterance_id"] for row in rows] == ["heard", "late"] and "50.00" in rows[1]["problem"]
    assert "broken.wav" in rows[0]["file"]


def test_a_clip_with_nothing_in_it_is_a_problem(tmp_path):
    lenient = replace(HOW, max_problem_share=1.0)
    with pytest.raises(UserError, match="1 of 1 recordings cannot be used.*neither sound, picture nor words"):
        extracted([Source("a")], tmp_path / "s", how=lenient)


def test_the_disk_is_estimated(corpus, store):
    need = features.needed_bytes(corpus, 2)
    there = sum(len(data) for name, data in content(store.folder).items() if name.endswith("npy"))
    assert there < need < 2.5 * there  # long[2] claims three seconds that its files do not have


def test_words_of_a_recogniser(corpus, ctc_folder, tmp_path):
    recogniser = Recogniser(ctc_folder, "cpu")
    sources = [replace(source, words=None) for source in corpus[:6]]
    found = extracted(sources, tmp_path / "s", recogniser, how=replace(HOW, max_problem_share=0.2))
    assert found.ids == ["long[0]", "long[1]", "long[2]", "-spoken", "heard"]
    assert "neither sound, picture nor words" in found.problems["silent"].problem  # nobody looks at it
    samples = soundfile.read(corpus[5].audio, dtype="float32")[0]
    words, score = recogniser.words("heard", samples)
    assert [word for word, *_ in words_of(found, "heard")] == [word for word, *_ in words] and words
    assert found.rows("heard", "facts")[0, 1] == pytest.approx(score, abs=1e-4)


# ---- The data set --------------------------------------------------------------------------


def made_up(folder, n_clips=7, without=None, named="clip"):
    """A store of random numbers with 1 to 9 words of half a second from a vocabulary of four."""
    rng, writer = np.random.default_rng(0), StoreWriter(folder, {"video_step_s": 0.5})
    for i in range(n_clips):
        n = 1 + 5 * i % 9
        words = "".join(f"{'abcd'[rng.integers(4)]}\n" for _ in range(n))
        arrays = {
            "audio": rng.normal(3, 2, (10 * n, 200)).astype(np.float16),
            "video": rng.normal(1, 4, (n, 4096)).astype(np.float16),
            "words": np.frombuffer(words.encode(), np.uint8),
            "word_times": 0.5 * np.arange(n, dtype=np.float32)[:, None] + np.float32([0, 0.5]),
            "facts": np.float32([[n / 2, NAN, 0]]),
        }
        for name in (without or {}).get(i, ()):
            arrays[name] = arrays[name][:0]
        writer.add([f"{named} {i}"], arrays, {name: [len(array)] for name, array in arrays.items()})
    return writer.finish()


def test_statistics_are_those_of_the_training_clips(tmp_path, monkeypatch):
    store = made_up(tmp_path / "s", without={3: ["audio"]})
    np.load(store.folder / "video.npy", mmap_mode="r+")[:, 7] = 0.25
    store = Store(store.folder)
    found = statistics(store, [store.ids[i] for i in (5, 0, 3)])
    audio = np.concatenate([store.rows(store.ids[i], "audio").astype(float) for i in (0, 5)])
    video = np.concatenate([store.rows(store.ids[i], "video").astype(float) for i in (0, 3, 5)])
    np.testing.assert_allclose(found["audio"], [audio.mean(0), audio.std(0)], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["video"][0], video.mean(0), rtol=1e-4, atol=1e-6)
    assert found["video"][1][7] == 1 and found["video"][1][8] == pytest.approx(video[:, 8].std(), rel=1e-5)
    monkeypatch.setattr(khare_data, "MEASURED", 2)
    part = statistics(store, [store.ids[i] for i in (5, 1, 0)])  # every second one
    np.testing.assert_allclose(part["audio"], found["audio"], rtol=1e-6)


def corpus_of(store, rows, stats=(0, 1), labels=None):
    """A Corpus of one part whose words a, b and c have vectors, and of which a and b are predicted."""
    rows, vectors = np.array(rows), Vectors(Counter("abc"), "", None)
    labels = np.zeros((len(rows), 6), bool) if labels is None else labels
    part = Part([store.ids[i] for i in rows], rows.astype(str), labels)
    sizes = {"audio": 200, "video": 4096}
    stats = {name: tuple(np.full(n, x, np.float32) for x in stats) for name, n in sizes.items()}
    widths, about = {"text": 300, **sizes}, ("x", tuple("abcdef"), store, {"train": part})
    return Corpus(*about, tuple(widths), stats, vectors, {"a": 0, "b": 1}, widths=widths)


def batch_of(data, *order):
    return data.collate([data[i, None] for i in order])


def known_words(store, clip_id):
    """Without d, which has no vector."""
    return [word for word in khare_data.words_of(store, clip_id) if word != "d"]


def test_batches_are_padded_and_count_what_is_there(tmp_path):
    store = made_up(tmp_path / "s", without={1: ["audio"], 2: ["video"], 3: ["words", "word_times"]})
    corpus = corpus_of(store, [2, 1], labels=np.arange(12).reshape(2, 6) % 2 == 0)
    data, spoken = Clips(corpus, "train", corpus.inputs, 0), khare_data.words_of(store, store.ids[1])
    words, others = known_words(store, store.ids[1]), known_words(store, store.ids[2])
    assert len(others) < len(words) < len(spoken)
    batch = batch_of(data, 1, 0)
    assert batch["text"].shape == (2, len(words), 300)
    assert batch["text_length"].tolist() == [len(words), len(others)]
    assert batch["audio_length"].tolist() == [0, 20] and batch["video_length"].tolist() == [6, 0]
    assert batch["audio"].dtype == torch.float32 and batch["audio"].shape == (2, 20, 200)
    assert (batch["audio"][0] == 0).all()
    np.testing.assert_array_equal(batch["video"][0], store.rows(store.ids[1], "video").astype(np.float32))
    clip = data[1, None]
    assert clip["word_ids"].tolist() == [{"a": 0, "b": 1}.get(word, -1) for word in words]
    places = [k for k, word in enumerate(spoken) if word != "d"]
    assert clip["word_times"].tolist() == [[0.5 * k, 0.5 * k + 0.5] for k in places]
    assert (batch["text"][1, len(others) :] == 0).all()
    expected = corpus.vectors.vectors[["abc".index(word) for word in words]]
    np.testing.assert_array_equal(batch["text"][0], expected)
    assert batch["labels"].tolist() == corpus.parts["train"].targets[::-1].tolist()
    assert data.lengths.tolist() == [22, 12] and data.ids == ["clip 2", "clip 1"]
    empty = batch_of(Clips(corpus_of(store, [3]), "train", corpus.inputs, 0), 0)
    assert empty["text"].shape == (1, 1, 300) and empty["text_length"].tolist() == [0]


def test_modalities_that_are_left_out_have_no_step(tmp_path):
    corpus = corpus_of(made_up(tmp_path / "s"), [2, 1])
    data = Clips(corpus, "train", ("text", "video"), 0)
    batch = batch_of(data, 0, 1)
    assert batch["audio"].shape == (2, 1, 200) and (batch["audio"] == 0).all()
    assert batch["audio_length"].tolist() == [0, 0] and (batch["video_length"] > 0).all()
    assert data.lengths.tolist() == [4, 12]
    batch = batch_of(Clips(corpus, "train", ("audio",), 0), 0, 1)
    assert batch["text"].shape == (2, 1, 300) and batch["text_length"].tolist() == [0, 0]


def test_options_of_the_data_set(tmp_path):
    store, inputs = made_up(tmp_path / "s"), ("text", "audio", "video")
    short = Clips(corpus_of(store, [5]), "train", inputs, 1.0)
    batch, spoken = batch_of(short, 0), khare_data.words_of(store, store.ids[5])
    n_known = sum(word != "d" for word in spoken[:2])
    assert len(spoken) > 2 and [batch[f"{name}_length"].item() for name in inputs] == [n_known, 20, 2]
    assert short.lengths[0] <= 31
    batch = batch_of(Clips(corpus_of(store, [5, 0], stats=(3, 2)), "train", inputs, 0), 0, 1)
    expected = (store.rows(store.ids[5], "audio").astype(np.float32) - 3) / 2
    np.testing.assert_allclose(batch["audio"][0], expected, atol=1e-6)
    assert (batch["audio"][1, batch["audio_length"][1] :] == 0).all()
    others = made_up(tmp_path / "t", 1)
    heard = Clips(corpus_of(store, [3, 0]), "train", inputs, 0, words_from=others)
    batch, words = batch_of(heard, 0, 1), known_words(others, others.ids[0])
    assert batch["text_length"].tolist() == [0, len(words)] and heard.words(1)[0] == words
    assert batch["audio_length"].tolist() == store.spans("audio")[1][[3, 0]].tolist()


def test_what_is_drawn_depends_on_the_key_alone(tmp_path):
    """Not on the batch, the process that prepares it, or who was drawn before; without a seed on the clip."""
    corpus = corpus_of(made_up(tmp_path / "s"), np.arange(7))

    def change(clip, generator):
        hidden = generator.integers(0, 100, len(clip["text"]))
        return clip | {"hidden": hidden, "targets": hidden + 1}

    data = Clips(corpus, "train", corpus.inputs, 0, change)
    batch = data.collate([data[i, (3, 1, i)] for i in (4, 2)])
    n = [len(data[i, None]["text"]) for i in (4, 2)]
    for row, i in enumerate((4, 2)):
        alone = data.collate([data[i, (3, 1, i)]])
        assert batch["hidden"][row, : n[row]].tolist() == alone["hidden"][0].tolist()
        assert (batch["targets"][row, n[row] :] == NO_TARGET).all()
    assert data[4, (3, 2, 4)]["hidden"].tolist() != data[4, (3, 1, 4)]["hidden"].tolist()
    assert data[4, None]["hidden"].tolist() == data[4, None]["hidden"].tolist()


def test_the_loader_of_training_batches_by_length_in_several_processes(tmp_path):
    store = made_up(tmp_path / "s", 12)
    data = Clips(corpus_of(store, np.arange(12)), "train", ("audio",), 0)
    recipe, n_steps = Recipe(learning_rate=1.0, epochs=1, batch_size=4), store.spans("audio")[1]
    keys = StepKeys(data, recipe, SimpleNamespace(process_index=0, num_processes=1))
    batches = list(DataLoader(data, batch_sampler=keys, collate_fn=data.collate, num_workers=2))
    assert sorted(n for batch in batches for n in batch["audio_length"].tolist()) == sorted(n_steps)
    spread = [int(batch["audio_length"].max() - batch["audio_length"].min()) for batch in batches]
    assert sorted(spread) == sorted(int(x[-1] - x[0]) for x in np.sort(n_steps).reshape(3, 4))


# ---- Real recordings ---------------------------------------------------------------------------


def test_ravdess_sound_becomes_steps_of_fifty_milliseconds(tmp_path):
    paths = sorted(shared_data("ravdess").rglob("*.wav"))[:6]
    words = [("kids", None, None), ("door", None, None)]
    found = extracted([Source(path.stem, str(path), words=words) for path in paths], tmp_path / "s")
    for path in paths:
        samples, audio = soundfile.read(path, dtype="float32")[0], found.rows(path.stem, "audio")
        np.testing.assert_array_equal(audio, filterbanks(samples).astype(np.float16))
        assert len(audio) == -(-((len(samples) + 80) // 160) // 5)
        assert words_of(found, path.stem)[1][2] == pytest.approx(len(samples) / RATE, abs=1e-3)


def test_ravdess_video_is_seen_by_vgg16(tmp_path, vgg):
    path = str(next(shared_data("ravdess_av").rglob("*.mp4")))
    sources = [Source("whole", video=path), Source("part", video=path, start_s=1.0, end_s=2.0)]
    found = extracted(sources, tmp_path / "s", vgg=vgg)
    whole, part = (found.rows(name, "video").astype(float) for name in ("whole", "part"))
    assert whole.shape == (7, 4096) and counts(found, "audio")[0] in (66, 67) and (whole > 0).any(1).all()
    assert found["facts"][0, 0] == pytest.approx(3.3, abs=0.1)
    np.testing.assert_allclose(part, whole[2:4], atol=0.02)
