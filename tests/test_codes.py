"""Audio to codes, each frame by itself; every kind of bad clip; crops against plain numpy."""

import csv

import av
import numpy as np
import pytest
import soundfile
import torch
from conftest import forget, shared_data
from torch.utils.data import DataLoader

from common.extraction import Extraction
from common.files import UserError, make_folder
from common.manifest import Manifest, Turn, write_manifest
from common.sadok import codes as codes_module
from common.sadok import vqvae as vqvae_module
from common.sadok.codes import Crops, Powers, crops_of, extract_codes, open_codes
from common.sadok.data import Network, Pretraining, read_part
from common.sadok.vqvae import VQVAE, power_spectrogram, read_clip
from common.store import StoreWriter
from common.training import Recipe, StepKeys, best_weights

HOP = 320
NETWORK = Network("vqmae", "patch-tf", 0.5, 20, 64, 10, 8, 8, 2, 0)


def noise(n_samples, seed):
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).clip(-1, 1).astype(np.float32)


def random_vqvae(seed=0):
    torch.manual_seed(seed)
    model = VQVAE(256, 8).eval()
    model.codebook.vectors.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def vqvae():
    return random_vqvae()


def corpus(root, clips, weights=b"weights"):
    """A Pretraining on a prepared corpus "clips" of {id: path}, whose VQ-VAE is there."""
    turns = [
        Turn(name, name, 0, f"s{i}", "", 0.0, 0.0, audio=str(path))
        for i, (name, path) in enumerate(clips.items())
    ]
    write_manifest(Manifest("clips", make_folder(root / "prepared" / "clips"), (), turns))
    forget()
    pretraining = Pretraining(str(root), ("clips",), 0)
    make_folder(pretraining.folder / "vqvae")
    best_weights(pretraining.folder / "vqvae").write_bytes(weights)
    return pretraining


def extract(pretraining, vqvae, most=0.0, batch=64, workers=0):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes_module, "Extraction", lambda _, *more: Extraction(batch, *more))
        return extract_codes(pretraining, "clips", vqvae, workers, most)


def write_clips(folder, n_clips=6):
    """{id: path} of clips of 0.3 to 0.9 s."""
    make_folder(folder)
    clips = {f"clip {i}": folder / f"{i}.wav" for i in range(n_clips)}
    for i, path in enumerate(clips.values()):
        soundfile.write(path, noise(4800 + 1500 * (7 * i % 12), i), 16000)
    return clips


def expected_codes(path, vqvae):
    samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    return vqvae.encode(power_spectrogram(samples / samples.abs().max())).numpy()


# ---- Extraction ----------------------------------------------------------------------------


def test_codes_of_every_clip(tmp_path, vqvae, capsys):
    clips = write_clips(tmp_path / "wav")
    pretraining = corpus(tmp_path, clips)
    store = extract(pretraining, vqvae)
    assert store.ids == list(clips)
    for name, path in clips.items():
        assert np.array_equal(store.rows(name, "codes"), expected_codes(path, vqvae))
        assert store.length(name, "codes") == 1 + soundfile.info(path).frames // HOP
    assert "GB free" in capsys.readouterr().out
    before = (store.folder / "codes.npy").read_bytes()
    extract(pretraining, None)  # finished: nothing is read or encoded
    assert "are there" in capsys.readouterr().out and (store.folder / "codes.npy").read_bytes() == before


@pytest.mark.parametrize("how", [{"batch": 1}, {"batch": 4, "workers": 2}])
def test_codes_do_not_depend_on_the_clips_beside_them(tmp_path, vqvae, how):
    clips = write_clips(tmp_path / "wav")
    stores = [extract(corpus(tmp_path / str(i), clips), vqvae, **more) for i, more in enumerate(({}, how))]
    assert stores[0]["codes"].tobytes() == stores[1]["codes"].tobytes()


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, vqvae):
    class Killed(Exception):
        pass

    class Dying:
        n, mean = 0, torch.zeros(1)

        def encode(self, power):
            self.n += 1
            if self.n == 5:
                raise Killed
            return vqvae.encode(power)

    clips = write_clips(tmp_path / "wav")
    whole, cut = (corpus(tmp_path / name, clips) for name in ("whole", "cut"))
    with pytest.raises(Killed):
        extract(cut, Dying(), batch=2)
    with pytest.raises(UserError, match="unfinished"):
        open_codes(cut.codes_folder("clips"))
    stores = extract(whole, vqvae, batch=2), extract(cut, vqvae, batch=2)
    for name in ("codes.npy", "index.csv"):
        assert (stores[0].folder / name).read_bytes() == (stores[1].folder / name).read_bytes()


def test_another_vqvae_starts_over(tmp_path, vqvae):
    clips = write_clips(tmp_path / "wav")
    first = extract(corpus(tmp_path, clips), vqvae)["codes"].copy()
    second = extract(corpus(tmp_path, clips, b"other weights"), random_vqvae(1))["codes"]
    assert first.shape == second.shape and not np.array_equal(first, second)


def write_bad_clips(folder):
    """{id: (path, start of the problem)}: every kind of recording that has no codes."""
    make_folder(folder)
    soundfile.write(folder / "short.wav", noise(900, 0), 16000)
    soundfile.write(folder / "zero.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "faint.wav", noise(16000, 0) * 1e-5, 16000, subtype="FLOAT")
    soundfile.write(folder / "nan.wav", np.array([0.1, float("nan")] * 800), 16000, subtype="FLOAT")
    for name in ("pointer.wav", "pointer.m4a"):
        (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "broken.m4a").write_bytes(b"not a recording at all" * 9)
    problems = {
        "short.wav": "too short: 0.056 s",
        "zero.wav": "silence",
        "faint.wav": "silence",
        "nan.wav": "samples that are not finite",
        "pointer.wav": "a git-lfs pointer",
        "pointer.m4a": "a git-lfs pointer",
        "empty.wav": "the file is empty",
        "broken.m4a": "not a readable recording",
        "absent.wav": "No such file",
    }
    return {name: (folder / name, problem) for name, problem in problems.items()}


def test_each_kind_of_bad_clip_is_reported_and_left_out(tmp_path, vqvae):
    good, bad = write_clips(tmp_path / "good"), write_bad_clips(tmp_path / "bad")
    pretraining = corpus(tmp_path, good | {name: path for name, (path, _) in bad.items()})
    with pytest.raises(UserError, match="9 of 15 recordings cannot be used.*MAX_PROBLEM_SHARE"):
        extract(pretraining, vqvae, most=0.5)
    store = extract(pretraining, vqvae, most=0.9)
    assert set(store.ids) == set(good)
    with open(store.folder / "problems.csv", newline="") as file:
        found = {row["utterance_id"]: row for row in csv.DictReader(file)}
    assert set(found) == set(bad)
    for name, (path, problem) in bad.items():
        assert found[name]["file"] == str(path) and found[name]["problem"].startswith(problem)
    turns = [("clips", turn) for turn in read_part(str(tmp_path), "clips").turns]
    assert sorted(crops_of(NETWORK, turns, pretraining).ids) == sorted(good)


def write_m4a(path, samples, rate_hz):
    """AAC in an MP4 container; samples (channels, n)."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate_hz, layout="stereo")
        stream.bit_rate = 256_000
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), "fltp", "stereo")
        frame.rate = rate_hz
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_stereo_and_48_khz_wav_and_m4a_are_mixed_down_and_resampled(tmp_path):
    """A tone of 1 kHz stays in bin 64 (1000 Hz / 15.625 Hz), and the length in seconds stays."""
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * 48000) / 48000).astype(np.float32)
    stereo = np.stack([0.6 * tone, 0.2 * tone])
    soundfile.write(tmp_path / "x.wav", stereo.T, 48000)
    soundfile.write(tmp_path / "mono16.wav", tone[::3], 16000)
    write_m4a(tmp_path / "x.m4a", stereo, 48000)
    reference = power_spectrogram(read_clip(tmp_path / "mono16.wav"))
    for name in ("x.wav", "x.m4a"):
        samples = read_clip(tmp_path / name)
        power = power_spectrogram(samples)
        assert len(samples) / 16000 == pytest.approx(2.0, abs=0.05)
        assert (power[10:90].argmax(1) == 64).all()
        assert torch.allclose(power[10:90, 64], reference[10:90, 64], rtol=0.2)  # peak-normalised


def test_real_ravdess_clips(tmp_path, vqvae):
    paths = sorted((shared_data("ravdess") / "Actor_01").glob("*.wav"))[:3]
    store = extract(corpus(tmp_path, {path.stem: path for path in paths}), vqvae)
    for path in paths:
        assert np.array_equal(store.rows(path.stem, "codes"), expected_codes(path, vqvae))
        assert store.length(path.stem) == 1 + soundfile.info(path).frames // HOP


# ---- Crops ---------------------------------------------------------------------------------


def fake_store(folder, lengths):
    """A finished store; frame t of clip i holds (i, t, 0, 0 ...)."""
    writer = StoreWriter(folder, {})
    for i, n in enumerate(lengths):
        codes = np.zeros((n, 64), np.uint8)
        codes[:, 0], codes[:, 1] = i, np.arange(n) % 256
        writer.add([f"clip{i}"], {"codes": codes}, [n])
    return writer.finish()


def test_short_clips_are_repeated(tmp_path):
    store = fake_store(tmp_path / "s", [10, 3])
    crops = Crops([(store, "clip0"), (store, "clip1")], 8, random=False)
    batch = crops.collate([crops[i, None] for i in (1, 0)])
    assert batch["x"][:, :, :2].tolist() == [
        [[1, t] for t in (0, 1, 2, 0, 1, 2, 0, 1)],
        [[0, t] for t in range(8)],
    ]
    assert batch["labels"].tolist() == [0, 0]


def test_crops_equal_those_of_each_clip_over_several_stores(tmp_path):
    a, b = fake_store(tmp_path / "a", [250, 30, 230, 41]), fake_store(tmp_path / "b", [77, 200])
    clips = [(a, "clip0"), (b, "clip1"), (a, "clip2"), (a, "clip3"), (b, "clip0")]
    crops = Crops(clips, 200, True, labels=[5, 6, 7, 8, 9])
    keys = [(i, (0, epoch, i)) for epoch in range(8) for i in (3, 1, 0, 4, 2)]
    batch = crops.collate([crops[key] for key in keys])
    assert batch["x"].shape == (40, 200, 64) and batch["x"].dtype == torch.uint8
    assert batch["labels"].tolist() == [8, 6, 5, 9, 7] * 8
    starts = {i: set() for i in range(5)}
    for (i, _), found in zip(keys, batch["x"].numpy(), strict=True):
        store, name = clips[i]
        codes, start = store.rows(name, "codes"), int(found[0, 1])
        assert np.array_equal(found, codes[(start + np.arange(200)) % len(codes)])
        starts[i].add(start)
    assert starts[1] == starts[3] == starts[4] == {0} and len(starts[0]) >= 5 and max(starts[0]) <= 50
    assert max(starts[2]) <= 30
    again = crops.collate([crops[key] for key in keys[7:9]])
    assert torch.equal(again["x"], batch["x"][7:9])  # of its key alone


def test_random_crops_reach_both_ends(tmp_path):
    crops = Crops([(fake_store(tmp_path / "s", [14]), "clip0")], 10, True)
    starts = [int(crops[0, (0, epoch, 0)]["x"][0, 1]) for epoch in range(400)]
    assert np.bincount(starts, minlength=5).min() > 50  # 80 on average, a standard deviation of 8


def test_crops_of_spectrograms_are_those_of_the_same_frames(tmp_path, vqvae):
    clips = write_clips(tmp_path / "wav", 3)
    store = extract(corpus(tmp_path, clips), vqvae)
    pairs, paths = [(store, name) for name in clips], list(clips.values())
    for random in (False, True):
        powers, codes = Powers(paths, pairs, 12, random), Crops(pairs, 12, random)
        for i, path in enumerate(paths):
            key = i, (0, 1, i)
            assert torch.equal(vqvae.encode(powers[key]["x"]), codes[key]["x"])
            whole = power_spectrogram(read_clip(path))
            assert random or torch.equal(powers[key]["x"], whole[:12])
    assert powers.collate([powers[i, (0, 0, i)] for i in range(3)])["x"].shape == (3, 12, 513)


@pytest.mark.parametrize("workers", [0, 1])
def test_crops_feed_a_data_loader_as_training_does(tmp_path, workers):
    store = fake_store(tmp_path / "s", [300] * 20)
    crops = Crops([(store, name) for name in store.ids], 200, True)

    class OneProcess:
        process_index, num_processes = 0, 1

    keys = StepKeys(crops, Recipe(1e-3, 1, 8, seed=3), OneProcess)
    loader = DataLoader(crops, batch_sampler=keys, collate_fn=crops.collate, num_workers=workers)
    batches = [batch["x"] for batch in loader]
    assert sorted(map(len, batches)) == [4, 8, 8]
    assert sorted(torch.cat(batches)[:, 0, 0].tolist()) == list(range(20))  # every clip once
    assert all(torch.equal(x, batch["x"]) for x, batch in zip(batches, loader, strict=True))


def test_silence_is_judged_by_the_loudest_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(vqvae_module, "SILENCE_PEAK", 0.5)
    soundfile.write(tmp_path / "a.wav", np.r_[np.zeros(15999), 0.6], 16000)
    assert float(read_clip(tmp_path / "a.wav").max()) == 1.0


def test_guesses_of_codes_by_hand(monkeypatch):
    """Training speakers have code 3 in every row; held-out ones too in two frames, then code 9."""
    train, held_out = np.full((10, 64), 3, np.uint8), np.full((3, 64), 3, np.uint8)
    held_out[2] = 9
    clips = {"train": [train], "held out": [held_out]}

    class Speech:
        def turns(self):
            return ["train"], ["held out"]

    class Found:
        def __init__(self, turns):
            self.clips = clips[turns[0]]

        def __len__(self):
            return len(self.clips)

        def codes(self, index):
            return self.clips[index]

    monkeypatch.setattr(codes_module, "crops_of", lambda network, turns, pretraining: Found(turns))
    nats, copied = codes_module.guess_codes(None, Speech())
    often, never = np.log(11 / 266), np.log(1 / 266)  # one is added to the count of each of 256 codes
    assert nats == pytest.approx(-(2 * often + never) / 3) and copied == 0.5
