"""Audio to codes: the same bytes however it is interrupted, every kind of bad input, crops against plain numpy."""

import csv
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, shared_data
from torch.utils.data import DataLoader

from common.errors import UserError
from common.sadok import codes as codes_module
from common.sadok.codes import (
    Codes,
    Crops,
    Tokenising,
    open_codes,
    power_pieces,
    random_starts,
    read_clip,
    tokenise,
)
from common.training import Recipe, StepKeys

HOP, WINDOW = 320, 1024


def spectrogram(samples):
    """Power (1 + n // 320, 513), silence before and after the clip."""
    frames = torch.nn.functional.pad(samples, (WINDOW // 2, WINDOW // 2)).unfold(0, WINDOW, HOP)
    return torch.fft.rfft(frames * torch.hann_window(WINDOW)).abs().square()


def encode(power):
    """Stand-in for the VQ-VAE: the level of 64 bands, in steps of 1 dB."""
    level = 10 * torch.log10(power[:, :512].reshape(-1, 64, 8).sum(2) + 1e-10)
    return level.round().add(128).clamp(0, 255).to(torch.uint8)


SETTINGS = Tokenising(
    rate_hz=16000,
    hop=HOP,
    window=WINDOW,
    codes_per_frame=64,
    min_frames=4,
    silence_peak=1e-4,
    spectrogram=spectrogram,
    max_problem_share=0.0,
    batch_frames=100,
    workers=0,
)
FILES = ("codes.u8", "clips.csv", "problems.csv", "meta.json")


def noise(n_samples, seed):
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).clip(-1, 1).astype(np.float32)


def write_corpus(folder, n_clips=12):
    """Clips of 0.3 to 1.6 s, so that some batches hold several and some clips fill more than one."""
    folder.mkdir(parents=True)
    clips = []
    for i in range(n_clips):
        path = folder / f"{i}.wav"
        soundfile.write(path, noise(4800 + 1500 * (7 * i % 12), i), 16000)
        clips.append((f"speaker {i % 3}, clip {i}", path))  # the comma is quoted in the index
    return clips


def make(clips, folder, encode=encode, identity=None, **changes):
    return tokenise(clips, encode, folder, identity or {"vqvae": "abc"}, replace(SETTINGS, **changes))


def contents(folder, names=FILES):
    return {name: (folder / name).read_bytes() for name in names}


def expected_codes(path):
    samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    return encode(spectrogram(samples / samples.abs().max())).numpy()


# ---- Content and order ---------------------------------------------------------------------


def test_codes_of_every_clip_in_the_order_of_the_list(tmp_path, capsys):
    clips = write_corpus(tmp_path / "wav")
    codes = make(clips, tmp_path / "codes")
    assert codes.ids.tolist() == [clip_id for clip_id, _ in clips] and len(codes) == 12
    for i, (clip_id, path) in enumerate(clips):
        expected = expected_codes(path)
        assert np.array_equal(codes.clip(i), expected) and codes.n_frames[i] == len(expected)
        assert codes.row_of(clip_id) == i
    n_frames = sum(map(int, codes.n_frames))
    seconds = sum(soundfile.info(path).duration for _, path in clips)
    said = capsys.readouterr().out
    assert f"tokenising 12 clips into codes: {seconds / 3600:.2f} h of audio" in said and "GB free" in said
    assert codes.meta["frames"] == n_frames == (tmp_path / "codes" / "codes.u8").stat().st_size // 64
    assert codes.meta["hours"] == pytest.approx(n_frames * 0.02 / 3600)
    before = contents(tmp_path / "codes")
    make(clips, tmp_path / "codes", encode=None)  # finished: nothing is read or encoded
    assert "already tokenised, 12 clips" in capsys.readouterr().out and contents(tmp_path / "codes") == before


def test_workers_and_batch_sizes_do_not_change_the_bytes(tmp_path):
    clips = write_corpus(tmp_path / "wav")
    data = ("codes.u8", "clips.csv", "problems.csv")
    make(clips, tmp_path / "a")
    for i, changes in enumerate([{"batch_frames": 7}, {"batch_frames": 10_000}, {"workers": 2}]):
        make(clips, tmp_path / f"b{i}", **changes)
        assert contents(tmp_path / f"b{i}", data) == contents(tmp_path / "a", data)


def test_the_encoder_gets_no_more_frames_than_it_may(tmp_path):
    sizes = []

    def watched(power):
        sizes.append(len(power))
        return encode(power)

    clips = write_corpus(tmp_path / "wav")
    make(clips, tmp_path / "codes", encode=watched, batch_frames=60)
    lengths = [1 + soundfile.info(path).frames // HOP for _, path in clips]
    assert max(sizes) <= 60 < max(lengths) and sum(sizes) == sum(lengths) and len(sizes) < len(clips) + 6


@pytest.mark.parametrize("n_threads", [1, 3])
def test_slices_on_several_threads_stay_in_order_and_the_thread_count_comes_back(monkeypatch, n_threads):
    monkeypatch.setattr(codes_module, "SLICE_FRAMES", 5)
    before, power, sizes = torch.get_num_threads(), torch.rand(32, 513), []
    torch.set_num_threads(n_threads)
    try:
        with codes_module.on_all_cores(
            lambda part: sizes.append(len(part)) or encode(part), "cpu"
        ) as encode_batch:
            assert torch.get_num_threads() == 1 and torch.equal(encode_batch(power), encode(power))
        assert torch.get_num_threads() == n_threads and sorted(sizes) == [2, 5, 5, 5, 5, 5, 5]
        with codes_module.on_all_cores(encode, "cuda") as encode_batch:
            assert encode_batch is encode
    finally:
        torch.set_num_threads(before)


def test_long_files_in_pieces_join_to_the_whole(tmp_path, monkeypatch):
    """A file that is read in pieces gives the same power, also where it is resampled and has two channels."""
    stereo = np.stack([noise(3 * 44100, 1), 0.5 * noise(3 * 44100, 2)], 1)
    soundfile.write(tmp_path / "long.wav", stereo, 44100, subtype="FLOAT")
    whole = read_clip("a", str(tmp_path / "long.wav"), SETTINGS)
    monkeypatch.setattr(codes_module, "PIECE_FRAMES", 40)
    clip = read_clip("a", str(tmp_path / "long.wav"), SETTINGS)
    pieces = list(power_pieces(clip, SETTINGS))
    assert clip.power is None and [len(piece) for piece in pieces] == [40, 40, 40, 31]
    assert clip.peak == pytest.approx(whole.peak, rel=1e-5) and clip.n_frames == whole.n_frames == 151
    assert torch.allclose(torch.cat(pieces), whole.power, rtol=1e-3, atol=1e-5)
    assert np.array_equal(
        make([("a", tmp_path / "long.wav")], tmp_path / "codes").clip(0), encode(torch.cat(pieces))
    )


# ---- Interrupted and gone on with ----------------------------------------------------------


class Killed(Exception):
    pass


def killed_at(n):
    """The stand-in encoder, which dies at its n-th batch."""
    calls = iter(range(n))

    def encode_some(power):
        if next(calls, None) is None:
            raise Killed
        return encode(power)

    return encode_some


def bad_clips(folder):
    """{start of the problem: (id, path)}: every kind of recording that cannot be tokenised."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "short.wav", noise(900, 0), 16000)
    soundfile.write(folder / "tiny.wav", noise(3, 0), 16000)
    soundfile.write(folder / "zero.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "faint.wav", noise(16000, 0) * 1e-5, 16000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", np.zeros(0), 16000)
    for value in ("nan", "inf"):
        soundfile.write(folder / f"{value}.wav", np.array([0.1, float(value)] * 800), 16000, subtype="FLOAT")
    (folder / "pointer.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (folder / "pointer.m4a").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "broken.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVEgarbage and more garbage")
    (folder / "broken.m4a").write_bytes(b"not a recording at all" * 9)
    kinds = {
        "short.wav": "too short: 0.056 s",
        "tiny.wav": "too short: 0.000 s",
        "zero.wav": "silence",
        "faint.wav": "silence",
        "none.wav": "no audio samples",
        "nan.wav": "samples that are not finite",
        "inf.wav": "samples that are not finite",
        "pointer.wav": "a git-lfs pointer",
        "pointer.m4a": "a git-lfs pointer",
        "empty.wav": "the file is empty",
        "broken.wav": "not a readable recording",
        "broken.m4a": "not a readable recording",
        "absent.wav": "No such file",
        "absent.m4a": "No such file",
    }
    return {name: (name, folder / name, problem) for name, problem in kinds.items()}


def mixed(folder):
    """Good and bad clips in turn."""
    good = write_corpus(folder / "good")
    bad = [clip[:2] for clip in bad_clips(folder / "bad").values()]
    return [clip for pair in zip(good, bad) for clip in pair] + bad[len(good) :]


@pytest.mark.parametrize("n_batches", [0, 1, 2, 4])
def test_killed_while_encoding_and_started_again_gives_the_same_bytes(tmp_path, n_batches):
    clips = mixed(tmp_path)
    make(clips, tmp_path / "whole", max_problem_share=0.9)
    with pytest.raises(Killed):
        make(clips, tmp_path / "cut", encode=killed_at(n_batches), max_problem_share=0.9)
    with pytest.raises(UserError, match="unfinished"):
        open_codes(tmp_path / "cut")
    if n_batches > 1:  # and once more
        with pytest.raises(Killed):
            make(clips, tmp_path / "cut", encode=killed_at(2), max_problem_share=0.9)
    make(clips, tmp_path / "cut", max_problem_share=0.9)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    "codes_cut, index_cut",
    [
        (0, 1),
        (0, 30),
        (0, 200),
        (1, 0),
        (64, 0),
        (5000, 0),
        (100, 100),
        (-77, 0),
        (-6400, 3),
        (10**9, 0),
        (0, 10**9),
    ],
)
def test_torn_tails_of_both_files_are_cut_back(tmp_path, codes_cut, index_cut):
    """A kill leaves any length of either file; a negative cut leaves codes that no index line names yet."""
    clips = mixed(tmp_path)
    make(clips, tmp_path / "whole", max_problem_share=0.9)
    with pytest.raises(Killed):
        make(clips, tmp_path / "cut", encode=killed_at(4), max_problem_share=0.9)
    for name, cut in (("codes.u8", codes_cut), ("clips.csv", index_cut)):
        path = tmp_path / "cut" / name
        data = path.read_bytes()
        path.write_bytes(data[: max(0, len(data) - cut)] + b"x" * -cut)
    make(clips, tmp_path / "cut", max_problem_share=0.9)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_going_on_after_a_kill_does_not_repeat_what_is_done(tmp_path, capsys, monkeypatch):
    clips = write_corpus(tmp_path / "wav")
    with pytest.raises(Killed):
        make(clips, tmp_path / "codes", encode=killed_at(5))
    read = []
    monkeypatch.setattr(codes_module, "read_clip", lambda *key: read.append(key[0]) or read_clip(*key))
    make(clips, tmp_path / "codes")
    n_done = len(clips) - len(read)
    assert n_done >= 3 and read == [clip_id for clip_id, _ in clips[n_done:]]
    assert f"going on: {n_done} clips are tokenised, {len(read)} are left" in capsys.readouterr().out


def test_the_encoder_gets_the_same_batches_after_a_kill(tmp_path):
    """Sums in other batches may be rounded otherwise, and then a code may be another one."""

    def level_in_batch(power):  # depends on the whole batch, which the real encoder does only by rounding
        return encode(power * power.sum())

    clips = write_corpus(tmp_path / "wav")
    make(clips, tmp_path / "whole", encode=level_in_batch)
    for n in (1, 3, 6):
        with pytest.raises(Killed):
            dying = killed_at(n)
            make(clips, tmp_path / f"cut{n}", encode=lambda power, dying=dying: dying(power * power.sum()))
        make(clips, tmp_path / f"cut{n}", encode=level_in_batch)
        assert contents(tmp_path / f"cut{n}") == contents(tmp_path / "whole")


def test_another_identity_or_list_of_clips_starts_over(tmp_path, capsys):
    clips = write_corpus(tmp_path / "wav")
    make(clips, tmp_path / "codes")
    for change in ({"identity": {"vqvae": "other"}}, {"min_frames": 30, "max_problem_share": 1.0}):
        capsys.readouterr()
        make(clips, tmp_path / "codes", **change)
        assert "starting over" in capsys.readouterr().out
    make(clips, tmp_path / "codes")
    capsys.readouterr()
    codes = make(clips[1:], tmp_path / "codes")
    assert "starting over" in capsys.readouterr().out and codes.ids.tolist() == [
        clip_id for clip_id, _ in clips[1:]
    ]
    (tmp_path / "codes" / "meta.json").write_text("{")  # damaged
    make(clips, tmp_path / "codes")
    make(clips, tmp_path / "fresh")
    assert contents(tmp_path / "codes") == contents(tmp_path / "fresh")


# ---- Bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_each_kind_of_bad_clip_is_reported_counted_and_left_out(tmp_path, capsys, workers):
    clips, bad = mixed(tmp_path), bad_clips(tmp_path / "bad")
    codes = make(clips, tmp_path / "codes", max_problem_share=0.9, workers=workers)
    assert codes.ids.tolist() == [clip_id for clip_id, _ in clips if clip_id not in bad]
    with open(tmp_path / "codes" / "problems.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["utterance_id"] for row in rows] == [clip_id for clip_id, _ in clips if clip_id in bad]
    for row in rows:
        _, path, problem = bad[row["utterance_id"]]
        assert row["file"] == str(path) and row["problem"].startswith(problem)
        assert row["remedy"] or problem in ("no audio samples", "samples that are not finite")
    said = capsys.readouterr().out
    assert (
        f"left out: {len(bad)} of {len(clips)} clips" in said and "4 x not a readable recording" not in said
    )
    assert codes.meta["left_out"] == len(bad) and codes.meta["clips"] == 12


def test_too_many_problems_stop_the_run_and_lose_nothing(tmp_path, capsys):
    clips = write_corpus(tmp_path / "wav")
    pointer = tmp_path / "wav" / "0.wav"
    audio = pointer.read_bytes()
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(
        UserError, match=r"1 of 12 clips cannot be used, the first one: .*0\.wav: a git-lfs pointer"
    ):
        make(clips, tmp_path / "codes", max_problem_share=0.05)
    pointer.write_bytes(audio)  # git lfs pull
    codes = make(clips, tmp_path / "codes", max_problem_share=0.05)
    assert "going on" in capsys.readouterr().out and len(codes) == 12
    for clip_id, path in clips:  # the mended one lies at another place
        assert np.array_equal(codes.clip(codes.row_of(clip_id)), expected_codes(path))
    assert (tmp_path / "codes" / "problems.csv").read_text().count("\n") == 1
    assert sorted(codes.first) == [sum(codes.n_frames[np.argsort(codes.first)][:i]) for i in range(12)]


def test_hopeless_lists_end_early_and_unusable_ones_say_so(tmp_path):
    clips = [(str(i), tmp_path / f"{i}.wav") for i in range(400)]
    soundfile.write(tmp_path / "399.wav", noise(16000, 0), 16000)
    with pytest.raises(UserError, match="101 of 400 clips cannot be used"):
        make(clips, tmp_path / "codes", max_problem_share=0.1)
    for i in range(399):  # all mended: one run is enough
        soundfile.write(tmp_path / f"{i}.wav", noise(1600, i), 16000)
    assert len(make(clips, tmp_path / "codes", max_problem_share=0.1)) == 400
    with pytest.raises(UserError, match="3 of 3 clips cannot be used"):
        make(
            [(str(i), tmp_path / f"absent{i}.wav") for i in range(3)],
            tmp_path / "none",
            max_problem_share=1.0,
        )
    for clips, message in [
        ([], "no clips"),
        ([("a", "x"), ("a", "y")], "a: 2 clips have this id"),
        ([("a\nb", "x")], "not an id"),
        ([("", "x")], "not an id"),
    ]:
        with pytest.raises(UserError, match=message):
            make(clips, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    clips = write_corpus(tmp_path / "wav")
    monkeypatch.setattr(codes_module, "free_bytes", lambda folder: 1000)
    with pytest.raises(UserError, match="GB are free"):
        make(clips, tmp_path / "deep" / "codes")
    assert not (tmp_path / "deep").exists()


def test_a_disk_that_fills_up_on_the_way_loses_nothing(tmp_path, monkeypatch):
    clips = write_corpus(tmp_path / "wav")
    make(clips, tmp_path / "whole")
    add, calls = codes_module._Writer.add, iter(range(3))

    def refuse(writer, group, codes):
        if next(calls, None) is None:
            with codes_module.writing(writer.codes_path), open(writer.codes_path, "ab") as file:
                file.write(b"x" * 777)  # a part of the codes
                raise OSError(28, "No space left on device", str(writer.codes_path))
        add(writer, group, codes)

    monkeypatch.setattr(codes_module._Writer, "add", refuse)
    with pytest.raises(UserError, match="the disk is full"):
        make(clips, tmp_path / "codes")
    monkeypatch.setattr(codes_module._Writer, "add", add)
    make(clips, tmp_path / "codes")
    assert contents(tmp_path / "codes") == contents(tmp_path / "whole")


def test_what_a_decoder_cannot_cope_with_is_a_problem_of_its_clip(tmp_path, monkeypatch):
    clips = write_corpus(tmp_path / "wav")

    def read_audio(path, *arguments, **options):
        if path.endswith("/3.wav"):
            raise ZeroDivisionError("odd file")
        return codes_module.soundfile.read(path, dtype="float32")[0]

    monkeypatch.setattr(codes_module, "read_audio", read_audio)
    assert len(make(clips, tmp_path / "codes", max_problem_share=0.1)) == 11
    assert "cannot be read (ZeroDivisionError: odd file)" in (tmp_path / "codes" / "problems.csv").read_text()


def write_m4a(path, samples, rate_hz):
    """AAC in an MP4 container; samples (channels, n)."""
    import av

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
    reference = read_clip("r", str(tmp_path / "mono16.wav"), SETTINGS)
    for name in ("x.wav", "x.m4a"):
        clip = read_clip(name, str(tmp_path / name), SETTINGS)
        assert not clip.problem and clip.seconds == pytest.approx(2.0, abs=0.05)
        assert (clip.power[10:90].argmax(1) == 64).all()
        assert torch.allclose(clip.power[10:90, 64], reference.power[10:90, 64], rtol=0.2)  # peak-normalised
    clips = [(name, tmp_path / name) for name in ("x.wav", "x.m4a", "mono16.wav")]
    codes = make(clips, tmp_path / "codes")
    assert len(codes) == 3 and codes_module.count_seconds(clips)[0] == pytest.approx(6.0, abs=0.1)


def test_many_clips_are_counted_from_a_sample(tmp_path, monkeypatch, capsys):
    clips = write_corpus(tmp_path / "wav")
    seconds = sum(soundfile.info(path).duration for _, path in clips)
    assert codes_module.count_seconds(clips) == (pytest.approx(seconds), 12)
    monkeypatch.setattr(codes_module, "COUNT_ALL", 11)
    monkeypatch.setattr(codes_module, "COUNT_SAMPLE", 7)
    estimate, counted = codes_module.count_seconds(clips)
    assert counted == 7 and estimate == pytest.approx(seconds, rel=0.4) and abs(estimate - seconds) > 1e-6
    make(clips, tmp_path / "codes")
    assert "(estimated from 7 of them)" in capsys.readouterr().out


def test_real_ravdess_clips(tmp_path):
    folder = shared_data("ravdess")
    paths = sorted((folder / "Actor_01").glob("*.wav"))[:6]
    codes = make([(path.stem, path) for path in paths], tmp_path / "codes")
    for i, path in enumerate(paths):
        assert codes.n_frames[i] == 1 + soundfile.info(path).frames // HOP
        assert np.array_equal(codes.clip(i), expected_codes(path))
    assert 3 < codes.hours * 3600 / len(paths) < 4.5


# ---- Reading codes -------------------------------------------------------------------------


def fake_store(folder, lengths, name="clip"):
    """A finished store; frame t of clip i holds (i, t, 0, 0 ...)."""
    folder.mkdir(parents=True)
    data = np.zeros((sum(lengths), 64), np.uint8)
    first = np.cumsum([0, *lengths])
    for i, n in enumerate(lengths):
        data[first[i] : first[i] + n, :2] = np.stack([np.full(n, i), np.arange(n) % 256], 1)
    data.tofile(folder / "codes.u8")
    lines = [f"{name}{i},{first[i]},{n},{n / 50:.4f},," for i, n in enumerate(lengths)]
    (folder / "clips.csv").write_text("\n".join(["id,first_frame,frames,seconds,problem,remedy", *lines, ""]))
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "complete": True,
                "clips": len(lengths),
                "frames": sum(lengths),
                "codes_per_frame": 64,
                "hours": 0.0,
                "left_out": 0,
            }
        )
    )
    return Codes(folder)


def test_crops_of_one_clip_and_wrap_padding(tmp_path):
    codes = fake_store(tmp_path / "s", [10, 3])
    assert codes.crop(0, 4, 2)[:, 1].tolist() == [2, 3, 4, 5]
    assert codes.crop(1, 8, 0)[:, :2].tolist() == [[1, t] for t in (0, 1, 2, 0, 1, 2, 0, 1)]
    assert codes.crop(0, 4, 8)[:, 1].tolist() == [8, 9, 0, 1]
    assert isinstance(codes.ids[0], str) and codes.ids[1] == "clip1" and codes.row_of("clip1") == 1
    with pytest.raises(KeyError):
        codes.row_of("absent")
    with pytest.raises(ValueError, match="read-only"):
        codes.clip(0)[0, 0] = 1


def test_damaged_stores_say_what_is_wrong(tmp_path):
    fake_store(tmp_path / "s", [10, 3])
    data, index = (tmp_path / "s" / "codes.u8").read_bytes(), (tmp_path / "s" / "clips.csv").read_text()
    (tmp_path / "s" / "codes.u8").write_bytes(data[:-1])
    with pytest.raises(UserError, match="codes.u8: not 13 frames of 64 bytes"):
        Codes(tmp_path / "s")
    (tmp_path / "s" / "codes.u8").write_bytes(data)
    for damaged in (index[:-1], index.replace("clip1,10", "clip1,x"), index + "clip2,13,4,0.08,,\n"):
        (tmp_path / "s" / "clips.csv").write_text(damaged)
        with pytest.raises(UserError, match="clips.csv"):
            Codes(tmp_path / "s")
    with pytest.raises(UserError, match="no such file"):
        Codes(tmp_path / "absent")


def test_pickled_codes_are_opened_again_not_copied(tmp_path):
    codes = fake_store(tmp_path / "s", [1000] * 20)
    pickled = pickle.dumps(codes)
    assert len(pickled) < 500 and np.array_equal(pickle.loads(pickled).clip(3), codes.clip(3))


def test_crops_equal_those_of_each_clip_over_several_stores(tmp_path):
    a, b = fake_store(tmp_path / "a", [250, 30, 999, 41]), fake_store(tmp_path / "b", [77, 200])
    crops = Crops([(a, [0, 2, 3]), (b, np.array([1, 0]))], 200, True, labels=[5, 6, 7, 8, 9])
    keys = [(i, (0, epoch, i)) for epoch in range(8) for i in (3, 1, 0, 4, 2)]
    batch = crops.collate([crops[key] for key in keys])
    assert batch["codes"].shape == (40, 200, 64) and batch["codes"].dtype == torch.uint8
    assert batch["labels"].tolist() == [8, 6, 5, 9, 7] * 8
    clips = [(a, 0), (a, 2), (a, 3), (b, 1), (b, 0)]
    starts = {i: set() for i in range(5)}
    for (i, seed), found in zip(keys, batch["codes"].numpy()):
        store, row = clips[i]
        start = int(random_starts([max(0, store.n_frames[row] - 200)], [seed])[0])
        assert np.array_equal(found, store.crop(row, 200, start))
        starts[i].add(start)
    assert len(starts[1]) >= 6 and starts[2] == starts[4] == {0} == starts[3] and max(starts[0]) <= 50
    assert torch.equal(crops.collate(keys[7:9])["codes"], batch["codes"][7:9])  # of its key alone
    first = Crops([(a, [0, 3])], 200, False).collate([(1, None), (0, None)])
    assert list(first) == ["codes"]
    assert np.array_equal(first["codes"], np.stack([a.crop(3, 200, 0), a.crop(0, 200, 0)]))
    with pytest.raises(ValueError, match="labels"):
        Crops([(a, [0, 3])], 200, False, labels=[1])


def test_random_starts_are_even_and_reach_both_ends():
    keys = [(seed, epoch, i) for seed in range(4) for epoch in range(50) for i in range(500)]
    counts = np.bincount(random_starts(np.full(len(keys), 99), keys), minlength=100)
    assert len(counts) == 100
    # chi-squared with 99 degrees of freedom: 99 on average, a standard deviation of 14
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * 14
    starts = random_starts(np.full(len(keys), 99), keys).reshape(4, 50, 500)
    for other in (
        starts[1:, :, :],
        starts[:, 1:, :],
        starts[:, :, 1:],
    ):  # neighbours in each number are unrelated
        same = starts[tuple(slice(0, n) for n in other.shape)] == other
        assert abs(same.mean() - 0.01) < 0.002
    assert random_starts(np.zeros(3), [(0, 0, i) for i in range(3)]).tolist() == [0, 0, 0]


def test_crops_feed_a_data_loader_as_training_does(tmp_path):
    codes = fake_store(tmp_path / "s", [300] * 20)
    crops = Crops([(codes, range(20))], 200, True)

    class OneProcess:
        process_index, num_processes = 0, 1

    recipe = Recipe(1e-3, 1, 8, seed=3)
    loader = DataLoader(crops, batch_sampler=StepKeys(crops, recipe, OneProcess), collate_fn=crops.collate)
    batches = [batch["codes"] for batch in loader]
    assert sorted(map(len, batches)) == [4, 8, 8]
    assert sorted(torch.cat(batches)[:, 0, 0].tolist()) == list(range(20))  # every clip once
    again = [batch["codes"] for batch in loader]
    assert all(torch.equal(x, y) for x, y in zip(batches, again))


# ---- Memory --------------------------------------------------------------------------------

LITTLE_MEMORY = """
import json, resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from common.sadok.codes import Codes, Crops
status = dict(line.split(":") for line in open("/proc/self/status"))
limit = int(status["VmData"].split()[0]) * 1024 + 100 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
codes = Codes(sys.argv[2])
crops = Crops([(codes, np.arange(len(codes)))], 200, True)
total = 0
for epoch in range(20):
    rows = np.random.default_rng(epoch).integers(len(codes), size=512)
    total += crops.collate([(int(i), (0, epoch, int(i))) for i in rows])["codes"].shape[0]
try:
    np.fromfile(codes.folder / "codes.u8", np.uint8)
    held = True
except MemoryError:
    held = False
anonymous = dict(line.split(":") for line in open("/proc/self/status"))["RssAnon"]
print(json.dumps({"crops": total, "fits": held, "anon_mb": int(anonymous.split()[0]) / 1024}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_random_crops_of_a_store_that_does_not_fit_into_memory(tmp_path):
    """2 GB of codes, a process that may take 100 MB more than its imports: crops work, holding the array does not."""
    n_clips, n_frames = 80_000, 400
    folder = tmp_path / "s"
    folder.mkdir()
    with open(folder / "codes.u8", "wb") as file:
        file.truncate(n_clips * n_frames * 64)  # sparse: takes no space on the disk
    lines = "".join(f"id{i:08}/x,{i * n_frames},{n_frames},8.0000,,\n" for i in range(n_clips))
    (folder / "clips.csv").write_text("id,first_frame,frames,seconds,problem,remedy\n" + lines)
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "complete": True,
                "clips": n_clips,
                "frames": n_clips * n_frames,
                "codes_per_frame": 64,
                "hours": 177.8,
                "left_out": 0,
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(ROOT), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["crops"] == 20 * 512 and not found["fits"]


def test_long_audio_is_tokenised_in_bounded_memory(tmp_path, monkeypatch):
    """Ten minutes as a whole would take 38 MB as samples and 62 MB as a spectrogram; in pieces of 20 s far less."""
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 16000, 1, "PCM_16") as file:
        for minute in range(10):
            file.write(noise(60 * 16000, minute))
    monkeypatch.setattr(codes_module, "PIECE_FRAMES", 1000)
    largest = 0

    def watched(power):
        nonlocal largest
        largest = max(largest, len(power))
        return encode(power)

    tracemalloc.start()  # numpy's memory: samples and codes
    codes = make([("long", tmp_path / "long.wav")], tmp_path / "codes", encode=watched, batch_frames=4000)
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert codes.n_frames[0] == 30_001 and largest == 1000 and peak_mb < 12
