"""Features and words of clips: against plain numpy and torch, stores cut short at any point, hand-made times."""

import csv
import math
import pickle
import shutil
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch
from conftest import shared_data
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models import vgg16
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from common.chochlakis.backbones import IMAGENET
from common.errors import UserError
from common.khare import features
from common.khare.features import (
    ClipFeatures,
    Clips,
    ClipStore,
    Extraction,
    FeatureStats,
    Recogniser,
    Source,
    Transcripts,
    WordsFile,
    english_rows,
    extract,
    filterbanks,
    find_row,
    load_vgg,
    mask_words,
    measure_stats,
    tidy_words,
    write_store,
)
from common.training import Recipe, StepKeys

RATE = 16000
SETTINGS = Extraction(rate_hz=RATE, fps=2, shard_clips=3, batch_frames=4, workers=0, max_problem_share=0.0)
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
    found = filterbanks(samples, RATE)
    n_steps = -(-len(expected) // 5)
    assert found.dtype == np.float32 and found.shape == (n_steps, 200)
    frames = found.reshape(-1, 40)
    np.testing.assert_allclose(frames[: len(expected)], expected, atol=2e-3)
    assert (frames[len(expected) :] == 0).all() and (frames[: len(expected)] != 0).any(1).all()


def test_a_click_lies_in_the_frame_of_its_time():
    for at in (0.005, 0.305, 0.995):
        samples = np.zeros(RATE, np.float32)
        samples[round(at * RATE)] = 0.5
        frames = filterbanks(samples, RATE).reshape(-1, 40).sum(1)
        assert frames.argmax() == int(at * 100)


def test_short_clips_and_silence_give_finite_steps():
    for n_samples in (1, 79, 399):
        assert filterbanks(noise(1, 1)[:n_samples], RATE).shape == (1, 200)
    assert np.isfinite(filterbanks(np.zeros(5000, np.float32), RATE)).all()


# ---- VGG-16 --------------------------------------------------------------------------------


def small_vgg(weights=None, init_weights=False):
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
    return load_vgg("", 32, 0, "cpu", "no")


def test_vgg_gives_fc7_after_the_relu_of_torchvisions_network(vgg):
    with torch.device("meta"):
        reference = vgg16(weights=None, init_weights=False).eval()
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


def test_vgg_from_a_file_or_a_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "vgg16", small_vgg)
    network = small_vgg()
    torch.save(network.state_dict(), tmp_path / "vgg.pth")
    pictures = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    loaded = load_vgg(tmp_path / "vgg.pth", 16, None, "cpu", "no")
    expected = features.VGG(network, 16, "", "cpu", "no")
    np.testing.assert_array_equal(loaded.features(pictures), expected.features(pictures))
    one, same, other = (load_vgg("", 16, seed, "cpu", "no") for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.features(pictures), same.features(pictures))
    assert not np.array_equal(one.features(pictures), other.features(pictures))
    assert one.identity() == same.identity() != other.identity() != loaded.identity()


def test_vgg_refuses_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "vgg16", small_vgg)
    state = small_vgg().state_dict()
    torch.save(
        {key: value for key, value in state.items() if key != "classifier.3.bias"}, tmp_path / "other.pth"
    )
    with pytest.raises(UserError, match=r"other\.pth: classifier\.3\.bias is missing.*torchvision's vgg16"):
        load_vgg(tmp_path / "other.pth", 16, None, "cpu", "no")
    with pytest.raises(UserError, match="no such file"):
        load_vgg(tmp_path / "absent.pth", 16, None, "cpu", "no")


# ---- Words ---------------------------------------------------------------------------------


def test_words_file(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text(
        'utterance_id,word,start_s,end_s\na,well,0.1,0.3\na,"one, two",0.3,0.5\n"b, c",so,,\n'
        '-d,"é ""x""",1,2\n',
        encoding="utf-8",
    )
    words = WordsFile(path)
    assert words.words("a", None, 1.0)[0] == [("well", 0.1, 0.3), ("one, two", 0.3, 0.5)]
    assert words.words("b, c", None, 1.0)[0] == [("so", None, None)]
    assert words.words("-d", None, 1.0)[0] == [('é "x"', 1.0, 2.0)]
    assert words.words("nobody", None, 1.0)[0] == [] and math.isnan(words.words("a", None, 1.0)[1])


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,word\n", "first line is not utterance_id,word"),
        ("", "first line is not"),
        ("utterance_id,word,start_s,end_s\na,x,0,1\nb,x,0,1\na,y,1,2\n", "words of a stand in two places"),
        ("utterance_id,word,start_s,end_s\na,x,soon,1\n", "a: 'x,soon,1' is not word,start_s,end_s"),
        ("utterance_id,word,start_s,end_s\na,x\n", "a: 'x' is not word,start_s,end_s"),
    ],
)
def test_words_file_refuses_what_it_cannot_read(tmp_path, text, message):
    (tmp_path / "words.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        WordsFile(tmp_path / "words.csv").words("a", None, 1.0)
    with pytest.raises(UserError, match="cannot be opened"):
        WordsFile(tmp_path / "absent.csv")


def test_transcripts_with_and_without_times(tmp_path):
    (tmp_path / "id1").mkdir()
    (tmp_path / "id1/a.txt").write_text("one two\nthree\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("word,start_s,end_s\nhi,0.5,0.75\n", encoding="utf-8")
    found = Transcripts(tmp_path)
    assert found.words("id1/a", None, 3.0)[0] == [
        ("one", None, None),
        ("two", None, None),
        ("three", None, None),
    ]
    assert found.words("b", None, 3.0)[0] == [("hi", 0.5, 0.75)] and found.words("c", None, 3.0)[0] == []
    with pytest.raises(UserError, match="no such folder"):
        Transcripts(tmp_path / "absent")


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
    """A wav2vec 2.0 with three letters and random weights, large enough that it says something."""
    folder = tmp_path_factory.mktemp("ctc")
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
    recogniser = Recogniser(ctc_folder, "cpu", "no")
    samples = noise(3, 2) * (1 + np.sin(np.arange(3 * RATE) / 700)).astype(np.float32)
    words, score = recogniser.words("a", samples, 3.0)
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


def test_recogniser_without_anything_to_hear(ctc_folder):
    recogniser = Recogniser(ctc_folder, "cpu", "no")
    for samples in (None, noise(0.02, 0)):
        words, score = recogniser.words("a", samples, 0.0)
        assert words == [] and math.isnan(score)
    with pytest.raises(UserError, match="cannot be loaded"):
        Recogniser(ctc_folder / "absent", "cpu", "no")


# ---- Recordings to a store -----------------------------------------------------------------


class Colours:
    """In place of VGG-16: the mean colour of a picture, in the first three of 4096 numbers; can be made to fail."""

    size, calls_left = 16, 10**9

    def identity(self):
        return {"vgg": "colours"}

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
    """Eight clips: of one long video with a wav, a video with sound, one without, a wav alone, words alone."""
    folder = tmp_path_factory.mktemp("corpus")
    soundfile.write(folder / "long.wav", noise(6, 1), RATE)
    soundfile.write(folder / "short.wav", noise(1.33, 2), RATE)
    long = {"audio": str(folder / "long.wav"), "video": write_video(folder / "long.mp4", 6)}
    return [
        Source("long[0]", **long, start_s=1.0, end_s=2.6, words=[("one", 0.0, 0.4), ("two", 0.5, 1.0)]),
        Source("long[1]", **long, start_s=-0.4, end_s=1.2, words=[("gone", -3.0, -2.0), ("two", 0.1, 0.3)]),
        Source("long[2]", **long, start_s=5.1, end_s=9.0, words=[]),
        Source("-spoken", video=write_video(folder / "spoken.mp4", 2, sound_s=2), words=[("hi", None, None)]),
        Source("silent", video=write_video(folder / "silent.mp4", 1.7), words=[("two", 0.2, 0.2)]),
        Source("heard", audio=str(folder / "short.wav")),
        Source("said, not heard", end_s=2.0, words=[("so", None, None), ("what", None, None)]),
        Source("long[3]", **long, words=[]),
    ]


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    return extract(corpus, None, Colours(), tmp_path_factory.mktemp("store") / "s", {}, SETTINGS)


def test_each_clip_has_its_own_sound_pictures_and_words(corpus, store):
    assert [str(x) for x in store.ids] == [source.clip_id for source in corpus] and len(store) == 8
    rows = {source.clip_id: store.row_of(source.clip_id) for source in corpus}
    samples = soundfile.read(corpus[0].audio, dtype="float32")[0]
    spans = {"long[0]": (1.0, 2.6), "long[1]": (0.0, 1.2), "long[2]": (5.1, 6.0), "long[3]": (0.0, 6.0)}
    for name, (start, end) in spans.items():
        expected = filterbanks(samples[round(start * RATE) : round(end * RATE)], RATE)
        np.testing.assert_array_equal(store.audio(rows[name]), expected.astype(np.float16))
        assert store.seconds[rows[name]] == pytest.approx(end - start, abs=1e-3)
        edges = np.append(np.arange(start, end - 1e-6, 0.5), end)
        shown = 20 + 2 * np.floor((edges[:-1] + edges[1:]) / 2 * 10 + 0.01)  # the newest picture by then
        np.testing.assert_allclose(
            store.video(rows[name])[:, :3].astype(float), shown[:, None].repeat(3, 1), atol=2
        )
    assert store.audio(rows["-spoken"]).shape[0] in (40, 41, 42) and len(store.video(rows["-spoken"])) in (
        4,
        5,
    )
    assert store.audio(rows["silent"]).shape == (0, 200) and store.video(rows["silent"]).shape == (4, 4096)
    assert store.audio(rows["heard"]).shape == (27, 200) and store.video(rows["heard"]).shape == (0, 4096)
    assert store.words(rows["long[0]"]) == [("one", 0.0, pytest.approx(0.4)), ("two", 0.5, 1.0)]
    assert [word for word, *_ in store.words(rows["long[1]"])] == ["two"] and store.words(
        rows["long[2]"]
    ) == []
    assert store.words(rows["said, not heard"]) == [("so", 0.0, 1.0), ("what", 1.0, 2.0)]
    assert (
        store.meta["without_audio"] == 2
        and store.meta["without_video"] == 2
        and store.meta["without_words"] == 3
    )
    assert store.meta["outside"] == 1 and store.meta["not_finite"] == 0
    assert store.vocabulary == ["two", "hi", "one", "so", "what"] and store.counts.tolist() == [3, 1, 1, 1, 1]


def test_sound_and_pictures_that_start_at_different_times(tmp_path):
    path = write_video(tmp_path / "late.mp4", 2, sound_s=2, late_s=1.0)
    clips = [
        Source("before", video=path, start_s=0.0, end_s=0.8),
        Source("across", video=path, start_s=0.5, end_s=2.5),
    ]
    found = extract(clips, None, Colours(), tmp_path / "s", {}, SETTINGS)
    assert found.audio_rows.tolist() == [16, pytest.approx(30, abs=2)]
    assert found.video_rows.tolist() == [0, 4]
    assert found.video(1)[:, 0].tolist() == pytest.approx([20, 24, 34, 44], abs=2)
    alone = extract(clips[:1], None, Colours(), tmp_path / "t", {}, SETTINGS)
    assert alone.video_rows.tolist() == [0] and alone.audio_rows.tolist() == [16]
    after = write_video(tmp_path / "after.mp4", 2, sound_s=1, sound_late_s=1.0)
    found = extract([Source("a", video=after)], None, Colours(), tmp_path / "v", {}, SETTINGS)
    steps = found.audio(0).astype(float).mean(1)
    assert (
        len(steps) in (40, 41, 42) and (steps[:18] < 0).all() and (steps[22:39] > 10).all()
    )  # silence before it
    longer = write_video(tmp_path / "longer.mp4", 1, sound_s=3)
    found = extract([Source("a", video=longer)], None, Colours(), tmp_path / "u", {}, SETTINGS)
    assert found.video_rows.tolist() == [2] and found.audio_rows[0] >= 59 and found.seconds[0] >= 2.99


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_killed_run_leaves_the_same_bytes(corpus, store, tmp_path, calls, capsys):
    vgg = Colours()
    vgg.calls_left = calls
    with pytest.raises(KeyboardInterrupt):
        extract(corpus, None, vgg, tmp_path / "s", {}, SETTINGS)
    with pytest.raises(UserError, match="unfinished"):
        ClipStore(tmp_path / "s")
    (tmp_path / "s/.shard_00001.77.tmp").mkdir()
    (tmp_path / "s/.shard_00001.77.tmp/audio.npy").write_bytes(b"half")
    again = extract(corpus, None, Colours(), tmp_path / "s", {}, replace(SETTINGS, workers=2))
    assert content(tmp_path / "s") == content(store.folder) and again.meta == store.meta
    assert ("going on" in capsys.readouterr().out) == (calls == 3)  # the first shard takes three calls
    vgg = Colours()
    vgg.calls_left = 0
    extract(corpus, None, vgg, tmp_path / "s", {}, SETTINGS)
    assert "already extracted" in capsys.readouterr().out


def test_another_identity_starts_over(corpus, store, tmp_path, capsys):
    shutil.copytree(store.folder, tmp_path / "s")
    other = extract(corpus[:2], None, Colours(), tmp_path / "s", {}, SETTINGS)
    assert "starting over" in capsys.readouterr().out
    assert len(other) == 2 and len(list((tmp_path / "s").glob("shard_*"))) == 1


def test_damaged_recordings_are_named_limited_and_tried_again(corpus, tmp_path, capsys):
    sources = [replace(source) for source in corpus]
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF, but no sound")
    sources[5].audio = str(broken)
    sources.append(Source("late", audio=corpus[5].audio, start_s=50.0, end_s=51.0))
    with pytest.raises(
        UserError, match=r"2 of 9 clips cannot be used, the first one: heard: .*broken\.wav: not a"
    ):
        extract(sources, None, Colours(), tmp_path / "s", {}, SETTINGS)
    lenient = replace(SETTINGS, max_problem_share=0.3)
    found = extract(sources, None, Colours(), tmp_path / "s", {}, lenient)
    assert len(found) == 7 and "left out: 2 clips" in capsys.readouterr().out
    with open(tmp_path / "s/problems.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["utterance_id"], row["shard"]) for row in rows] == [
        ("heard", "shard_00001"),
        ("late", "shard_00002"),
    ]
    assert "50.00" in rows[1]["problem"]
    np.testing.assert_array_equal(found.word_ids(found.row_of("said, not heard"))[1], [[0, 1], [1, 2]])
    soundfile.write(broken, noise(1, 0), RATE)
    shutil.rmtree(tmp_path / "s/shard_00001")
    found = extract(sources, None, Colours(), tmp_path / "s", {}, lenient)
    assert len(found) == 8 and found.audio(found.row_of("heard")).shape == (20, 200)
    np.testing.assert_array_equal(found.audio(0), ClipStore(tmp_path / "s").audio(0))


def test_a_clip_with_nothing_in_it_is_a_problem(tmp_path):
    with pytest.raises(UserError, match="1 of 1 clips cannot be used.*neither sound, picture nor words"):
        extract([Source("a")], None, None, tmp_path / "s", {}, replace(SETTINGS, max_problem_share=1.0))
    with pytest.raises(UserError, match="no clips"):
        extract([], None, None, tmp_path / "s", {}, SETTINGS)
    with pytest.raises(UserError, match="a: 2 clips have this id"):
        extract([Source("a"), Source("a")], None, None, tmp_path / "s", {}, SETTINGS)


def test_the_disk_is_asked_before_anything_is_written(corpus, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "free_bytes", lambda folder: 10**5)
    with pytest.raises(UserError, match="free; choose another DATA_ROOT"):
        extract(corpus, None, Colours(), tmp_path / "s", {}, SETTINGS)
    assert not (tmp_path / "s").exists()
    need = float(capsys.readouterr().out.partition(" h, ")[2].partition(" GB")[0]) * 1e9
    there = sum(len(data) for name, data in content(store.folder).items() if name.endswith("npy"))
    assert there < need < 2.5 * there  # long[2] claims three seconds that its files do not have


def test_words_of_a_recogniser_and_the_choice_of_english(corpus, ctc_folder, tmp_path, capsys):
    recogniser = Recogniser(ctc_folder, "cpu", "no")
    sources = [replace(source, words=None) for source in corpus[:6]]
    found = extract(sources, recogniser, None, tmp_path / "s", {}, replace(SETTINGS, max_problem_share=0.2))
    assert [str(x) for x in found.ids] == ["long[0]", "long[1]", "long[2]", "-spoken", "heard"]
    assert "1 x neither sound, picture nor words" in capsys.readouterr().out  # nobody looks at "silent"
    heard = found.row_of("heard")
    samples = soundfile.read(corpus[5].audio, dtype="float32")[0]
    words, score = recogniser.words("heard", samples, 1.33)
    assert [word for word, *_ in found.words(heard)] == [word for word, *_ in words] and words
    assert found.score[heard] == pytest.approx(score, abs=1e-4)
    found.score[0] = NAN
    rows = english_rows(found, found.score[heard] + 1e-3)
    assert heard not in rows and 0 in rows and (found.score[rows[1:]] > found.score[heard]).all()
    assert "clips" in capsys.readouterr().out
    with pytest.raises(ValueError, match="hears 16000 Hz"):
        extract(sources, recogniser, None, tmp_path / "t", {}, replace(SETTINGS, rate_hz=8000))


# ---- Reading -------------------------------------------------------------------------------


def made_up(n_clips=7, seed=0):
    """Clips of random numbers with 1 to 9 words of half a second from a vocabulary of four."""
    rng, clips = np.random.default_rng(seed), []
    for i in range(n_clips):
        n = 1 + 5 * i % 9
        words = [("abcd"[rng.integers(4)], 0.5 * k, 0.5 * k + 0.5) for k in range(n)]
        audio, video = rng.normal(3, 2, (10 * n, 200)), rng.normal(1, 4, (n, 4096))
        clips.append(ClipFeatures(f"clip {i}", n / 2, audio, video, words))
    return clips


def write(folder, clips, shard_clips=3):
    return write_store(clips, folder, {}, 0.05, 0.5, 200, 4096, shard_clips)


def test_a_store_of_ready_features_counts_what_is_not_finite(tmp_path):
    clips = made_up()
    clips[2].audio[3, :4] = NAN, np.inf, -np.inf, 1e6  # the last is too large for float16
    clips[4].audio, clips[5].video, clips[6].words = None, None, []
    found = write(tmp_path / "s", clips)
    assert (
        found.meta["not_finite"] == 4
        and (found.audio(2)[3, :4] == 0).all()
        and (found.audio(2)[3, 4:] != 0).all()
    )
    assert found.audio(4).shape == (0, 200) and found.video(5).shape == (0, 4096) and found.words(6) == []
    np.testing.assert_array_equal(found.video(6), clips[6].video.astype(np.float16))
    assert found.audio(0).dtype == found.video(0).dtype == np.float16


def test_a_store_is_mapped_and_not_loaded(tmp_path, monkeypatch):
    clips = made_up()
    found = write(tmp_path / "s", clips)
    monkeypatch.setattr(features, "MAX_OPEN", 2)
    for i in np.random.default_rng(0).permutation(np.tile(np.arange(7), 3)):
        np.testing.assert_array_equal(found.audio(i), np.asarray(clips[i].audio, np.float16))
        assert len(found._open) <= 2 and all(isinstance(x, np.memmap) for x in found._open.values())
    assert len(pickle.dumps(found)) < 500
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).video(5), found.video(5))
    (tmp_path / "s/shard_00001/audio.npy").unlink()
    with pytest.raises(UserError, match=r"shard_00001.audio\.npy: cannot be mapped"):
        ClipStore(tmp_path / "s").audio(4)


def test_statistics_are_those_of_the_training_clips(tmp_path):
    clips = made_up()
    for clip in clips:
        clip.video[:, 7] = 0.25
    clips[3].audio = None
    found = write(tmp_path / "s", clips)
    stats = measure_stats(found, [5, 0, 3])
    audio = np.concatenate([found.audio(i).astype(float) for i in (0, 5)])
    video = np.concatenate([found.video(i).astype(float) for i in (0, 3, 5)])
    np.testing.assert_allclose(stats.audio_mean, audio.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats.audio_std, audio.std(0), rtol=1e-5)
    np.testing.assert_allclose(stats.video_mean, video.mean(0), rtol=1e-4, atol=1e-6)
    assert stats.video_std[7] == 1 and stats.video_std[8] == pytest.approx(video[:, 8].std(), rel=1e-5)
    stats.save(tmp_path / "stats.npz")
    again = FeatureStats.load(tmp_path / "stats.npz")
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(stats).items())
    (tmp_path / "stats.npz").write_bytes(b"half")
    with pytest.raises(UserError, match="not the statistics"):
        FeatureStats.load(tmp_path / "stats.npz")


def test_a_word_is_found_as_it_is_in_lower_case_or_bare():
    row_of = {"US": 0, "us": 1, "door": 2, "can't": 3, "...": 4}
    assert [
        find_row(word, row_of) for word in ("US", "Us", "Door!", "can't", "...", "“door”", "none", "")
    ] == [0, 1, 2, 3, 4, 2, -1, -1]


VECTORS = np.arange(1, 3 * 300 + 1, dtype=np.float32).reshape(3, 300)
ROW_OF = {"a": 2, "b": 0, "c": 1}  # d has no vector


def test_batches_are_padded_and_count_what_is_there(tmp_path):
    clips = made_up()
    clips[1].audio, clips[2].video, clips[3].words = None, None, []
    found = write(tmp_path / "s", clips)
    labels = np.arange(12).reshape(2, 6)
    data = Clips(found, [2, 1], VECTORS, ROW_OF, labels=labels)
    batch = data.collate([data[1, 0], data[0, 0]])
    n = [len(clips[1].words), len(clips[2].words)]
    assert batch["text"].shape == (2, max(n), 300) and batch["text_length"].tolist() == n
    assert batch["audio_length"].tolist() == [0, 10 * n[1]] and batch["video_length"].tolist() == [n[0], 0]
    assert batch["audio"].dtype == torch.float32 and batch["audio"].shape[1] == 10 * n[1]
    assert (batch["audio"][0] == 0).all()
    np.testing.assert_array_equal(batch["video"][0, : n[0]], found.video(1).astype(np.float32))
    ids = [ROW_OF.get(word, -1) for word, *_ in clips[1].words]
    assert batch["word_ids"][0, : n[0]].tolist() == ids and (batch["word_ids"][0, n[0] :] == -1).all()
    for k, i in enumerate(ids):
        np.testing.assert_array_equal(batch["text"][0, k], VECTORS[i] if i >= 0 else np.zeros(300))
    assert batch["word_start_s"][0, : n[0]].tolist() == [0.5 * k for k in range(n[0])]
    assert batch["word_end_s"].isnan().sum() == 2 * max(n) - sum(n)
    assert batch["labels"].tolist() == labels[::-1].tolist()
    assert data.lengths.tolist() == [11 * n[1], 2 * n[0]]
    empty = Clips(found, [3], VECTORS, ROW_OF)
    batch = empty.collate([empty[0, 0]])
    assert (
        batch["text"].shape == (1, 1, 300) and batch["text_length"].tolist() == [0] and "labels" not in batch
    )
    with pytest.raises(ValueError, match="2 labels for 1 clips"):
        Clips(found, [3], VECTORS, ROW_OF, labels=labels)


def test_options_of_the_data_set(tmp_path):
    clips = made_up()
    found = write(tmp_path / "s", clips)
    i = max(range(7), key=lambda i: sum(word == "d" for word, *_ in clips[i].words))
    spoken = [word for word, *_ in clips[i].words]
    assert "d" in spoken
    kept = Clips(found, [i], VECTORS, {**ROW_OF, "d": 1}, targets={"a": 7}, keep_unknown=False)
    assert kept.collate([kept[0, 0]])["word_ids"][0].tolist() == [7 if word == "a" else -1 for word in spoken]
    zeros = np.concatenate([VECTORS, np.zeros((1, 300))])
    known = Clips(found, [i], zeros, {**ROW_OF, "d": 3}, keep_unknown=False)
    assert known.collate([known[0, 0]])["text_length"].tolist() == [sum(word != "d" for word in spoken)]
    short = Clips(found, [i], VECTORS, ROW_OF, max_s=1.0)
    batch = short.collate([short[0, 0]])
    assert [batch[f"{x}_length"].item() for x in ("text", "audio", "video")] == [2, 20, 2] and short.lengths[
        0
    ] <= 30
    stats = FeatureStats(*(np.full(d, x, np.float32) for d in (200, 4096) for x in (3, 2)))
    scaled = Clips(found, [i, 0], VECTORS, ROW_OF, stats=stats)
    batch = scaled.collate([scaled[0, 0], scaled[1, 0]])
    np.testing.assert_allclose(batch["audio"][0], (found.audio(i).astype(np.float32) - 3) / 2, atol=1e-6)
    assert (batch["audio"][1, batch["audio_length"][1] :] == 0).all()
    others = write(tmp_path / "t", [ClipFeatures(f"clip {i}", 9.0, words=[("b", 0, 1)])])
    heard = Clips(found, [0, i], VECTORS, ROW_OF, words_from=others)
    batch = heard.collate([heard[0, 0], heard[1, 0]])
    assert batch["text_length"].tolist() == [0, 1] and batch["word_ids"].tolist() == [[-1], [0]]
    np.testing.assert_array_equal(
        batch["audio"][0, : batch["audio_length"][0]], found.audio(0).astype(np.float32)
    )


def test_the_loader_of_training_batches_by_length_in_several_processes(tmp_path):
    found = write(tmp_path / "s", made_up(12))
    data = Clips(found, np.arange(12), VECTORS, ROW_OF)
    recipe = Recipe(learning_rate=1.0, epochs=1, batch_size=4)
    keys = StepKeys(data, recipe, SimpleNamespace(process_index=0, num_processes=1))
    batches = list(DataLoader(data, batch_sampler=keys, collate_fn=data.collate, num_workers=2))
    assert sorted(n for batch in batches for n in batch["audio_length"].tolist()) == sorted(found.audio_rows)
    spread = [int(batch["audio_length"].max() - batch["audio_length"].min()) for batch in batches]
    assert sorted(spread) == sorted(int(x[-1] - x[0]) for x in np.sort(found.audio_rows).reshape(3, 4))


# ---- Masked words --------------------------------------------------------------------------


def batch_of(words, n_audio=20, n_video=2, word_ids=None):
    """One clip with ones everywhere and words [(start_s, end_s)]."""
    times = torch.tensor(words, dtype=torch.float32).reshape(1, -1, 2)
    ids = torch.arange(len(words))[None] if word_ids is None else torch.tensor([word_ids])
    return {
        "text": torch.ones(1, len(words), 300),
        "audio": torch.ones(1, n_audio, 200),
        "video": torch.ones(1, n_video, 8),
        "word_ids": ids,
        "word_start_s": times[..., 0],
        "word_end_s": times[..., 1],
        "audio_step_s": torch.tensor([0.05]),
        "video_step_s": torch.tensor([0.5]),
    }


@pytest.mark.parametrize(
    "start, end, audio, video",
    [
        (0.10, 0.20, [2, 3], [0]),  # from edge to edge
        (0.12, 0.21, [2, 3, 4], [0]),  # parts of steps are hidden as a whole
        (0.45, 0.55, [9, 10], [0, 1]),
        (0.0, 1.0, list(range(20)), [0, 1]),
        (0.33, 0.33, [6], [0]),
        (0.35, 0.35, [7], [0]),
        (0.0, 0.0, [0], [0]),
        (0.5, 0.5, [10], [1]),  # no length
        (0.15, 0.3, [3, 4, 5], [0]),
        (0.3, 0.35, [6], [0]),  # not exact in binary
        (0.98, 1.7, [19], [1]),
        (1.0, 1.2, [], []),
        (1.2, 1.5, [], []),
        (NAN, NAN, [], []),
    ],
)  # outside, unknown
def test_all_that_is_heard_and_seen_during_a_hidden_word_is_hidden(start, end, audio, video):
    batch = batch_of([(start, end)])
    hidden = mask_words(batch, 0.15, torch.Generator().manual_seed(0))
    assert hidden.tolist() == [[True]] and (batch["text"] == 0).all() and batch["hidden"] is hidden
    assert (batch["audio"][0] == 0).all(1).nonzero().flatten().tolist() == audio
    assert (batch["video"][0] == 0).all(1).nonzero().flatten().tolist() == video
    assert batch["audio_hidden"][0].nonzero().flatten().tolist() == audio
    assert set(batch["audio"].unique().tolist()) <= {0.0, 1.0}


def test_long_clips_have_exact_steps():
    times = [(0.05 * k, 0.05 * (k + 1)) for k in range(4000)]
    for k in (1, 799, 1999, 3999):
        batch = batch_of([times[k]], n_audio=4000)
        mask_words(batch, 1.0, None)
        assert batch["audio_hidden"][0].nonzero().flatten().tolist() == [k]


@pytest.mark.parametrize(
    "n_words, share, n_hidden",
    [(1, 0.15, 1), (3, 0.15, 1), (9, 0.15, 1), (10, 0.15, 2), (20, 0.15, 3), (100, 0.15, 15), (4, 1.0, 4)],
)
def test_the_share_of_hidden_words(n_words, share, n_hidden):
    batch = batch_of([(0.1 * k, 0.1 * k + 0.1) for k in range(n_words)], n_audio=2 * n_words, n_video=n_words)
    before = batch["text"]
    hidden = mask_words(batch, share, torch.Generator().manual_seed(1))
    assert hidden.sum() == n_hidden
    np.testing.assert_array_equal(batch["audio_hidden"][0].numpy(), hidden[0].numpy().repeat(2))
    np.testing.assert_array_equal((batch["text"][0] == 0).all(1), hidden[0])
    assert (before == 1).all()  # a step that is repeated after an out-of-memory error starts from it


def test_words_outside_the_vocabulary_and_padding_are_never_hidden():
    times = [(0.1 * k, 0.1 * k + 0.1) for k in range(6)]
    for seed in range(20):
        batch = batch_of(times, word_ids=[-1, 3, -1, -1, 5, -1])
        hidden = mask_words(batch, 0.5, torch.Generator().manual_seed(seed))
        assert hidden.sum() == 1 and hidden[0, [0, 2, 3, 5]].sum() == 0
    batch = batch_of(times, word_ids=[-1] * 6)
    assert mask_words(batch, 0.15, None).sum() == 0 and (batch["audio"] == 1).all()


def test_masks_depend_on_the_generator_alone_and_reach_every_word():
    def draw(seed):
        batch = batch_of([(0.1 * k, 0.1 * k + 0.1) for k in range(10)])
        return mask_words(batch, 0.15, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(4), draw(4))
    counts = sum(draw(seed)[0].int() for seed in range(500))
    assert counts.min() > 60 and counts.max() < 145  # 100 each, sd 9


# ---- Real recordings -----------------------------------------------------------------------


def test_ravdess_sound_becomes_steps_of_fifty_milliseconds(tmp_path):
    paths = sorted(shared_data("ravdess").rglob("*.wav"))[:6]
    sources = [
        Source(path.stem, str(path), words=[("kids", None, None), ("door", None, None)]) for path in paths
    ]
    found = extract(sources, None, None, tmp_path / "s", {}, SETTINGS)
    for i, path in enumerate(paths):
        samples = soundfile.read(path, dtype="float32")[0]
        np.testing.assert_array_equal(found.audio(i), filterbanks(samples, RATE).astype(np.float16))
        assert len(found.audio(i)) == -(-((len(samples) + 80) // 160) // 5)
        assert found.words(i)[1][2] == pytest.approx(len(samples) / RATE, abs=1e-3)
    assert found.meta["not_finite"] == 0


def test_ravdess_video_is_seen_by_vgg16(tmp_path, vgg):
    path = str(next(shared_data("ravdess_av").rglob("*.mp4")))
    found = extract(
        [Source("whole", video=path), Source("part", video=path, start_s=1.0, end_s=2.0)],
        None,
        vgg,
        tmp_path / "s",
        {},
        SETTINGS,
    )
    assert (
        found.video(0).shape == (7, 4096)
        and len(found.audio(0)) in (66, 67)
        and (found.video(0) > 0).any(1).all()
    )
    assert found.seconds[0] == pytest.approx(3.3, abs=0.1)
    np.testing.assert_allclose(found.video(1).astype(float), found.video(0)[2:4].astype(float), atol=0.02)
