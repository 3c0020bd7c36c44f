"""Audio and video in and out, against known signals, frame-numbered videos and one real RAVDESS clip."""

import errno
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import shared_data
from miniature import HEIGHT, N_FRAMES, WIDTH, luma, write_avi, write_tone

from common import media
from common.errors import UserError
from common.media import Cut, MediaError, copy_muted, cut_turns, probe, read_audio, read_frames, write_wav

FRAME_S = 1001 / 30000
CODING = {"crf": 10, "preset": "ultrafast"}


def leftovers(folder):
    return [path.name for path in Path(folder).rglob("*") if ".tmp" in path.name]


# ---- Audio ------------------------------------------------------------------------------------


def test_read_audio_averages_channels_and_resamples(tmp_path):
    t = np.arange(48000) / 48000
    tone = np.sin(2 * np.pi * 440 * t)
    soundfile.write(str(tmp_path / "s.wav"), np.stack([0.8 * tone, 0.2 * tone], 1), 48000)
    samples = read_audio(tmp_path / "s.wav")
    assert samples.dtype == np.float32 and samples.shape == (16000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(samples - expected)[200:-200].max() < 0.01


def test_read_audio_span_equals_slice_and_end_is_clamped(tmp_path):
    write_tone(tmp_path / "a.wav", 2.0)
    whole = read_audio(tmp_path / "a.wav")
    assert np.array_equal(read_audio(tmp_path / "a.wav", 0.5, 1.25), whole[8000:20000])
    assert np.array_equal(read_audio(tmp_path / "a.wav", 1.5, 9.0), whole[24000:])
    with pytest.raises(MediaError, match="no audio samples from 3.00 s on"):
        read_audio(tmp_path / "a.wav", 3.0)


def test_write_wav_is_pcm16_mono_clipped_and_reads_back(tmp_path):
    samples = np.array([0.0, 0.5, -0.25, 2.0, -2.0], np.float32)
    write_wav(tmp_path / "deep" / "x.wav", samples)
    info = soundfile.info(str(tmp_path / "deep" / "x.wav"))
    assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
    assert np.allclose(read_audio(tmp_path / "deep" / "x.wav"), [0, 0.5, -0.25, 1, -1], atol=1e-4)


def damaged(folder):
    """{message: path} of recordings that cannot be used."""
    files = {
        "the file is empty": b"",
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "not a readable recording": b"RIFF\x00\x00\x00\x00WAVEgarbage and more garbage",
    }
    paths = {}
    for k, (message, data) in enumerate(files.items()):
        paths[message] = folder / f"{k}.wav"
        paths[message].write_bytes(data)
    soundfile.write(str(folder / "nan.wav"), np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    soundfile.write(str(folder / "none.wav"), np.zeros(0), 16000)
    return {
        **paths,
        "not finite": folder / "nan.wav",
        "no audio samples": folder / "none.wav",
        "No such file": folder / "absent.wav",
    }


def test_damaged_audio_says_what_is_wrong(tmp_path):
    for message, path in damaged(tmp_path).items():
        with pytest.raises(MediaError, match=message) as caught:
            read_audio(path)
        assert caught.value.path == path


def test_damaged_containers_say_what_is_wrong(tmp_path):
    (tmp_path / "no_moov.mp4").write_bytes(
        struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + b"\0\0\4\0mdat" + b"\1" * 99
    )
    for read in (read_audio, read_frames, probe):
        with pytest.raises(MediaError, match="not a readable recording"):
            read(tmp_path / "no_moov.mp4")
    with pytest.raises(MediaError, match="no audio track"):
        read_audio(write_avi(tmp_path / "silent.avi", n_frames=3))
    with pytest.raises(MediaError, match="no audio track|not a readable|no video track"):
        write_tone(tmp_path / "tone.wav", 0.1)
        read_frames(tmp_path / "tone.wav")


@pytest.mark.parametrize("rate_hz", [44101, 127_777, 2**31 - 1])
def test_odd_sampling_rates_are_refused_before_resampling(tmp_path, rate_hz, monkeypatch):
    """A damaged header: the filter for 44101 to 16000 Hz alone would take 2.8 GB."""
    monkeypatch.setattr(media, "resample", lambda *_: pytest.fail("resampled"))
    write_tone(tmp_path / "a.wav", 0.1, rate_hz=16000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[24:28] = struct.pack("<I", rate_hz)
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(MediaError, match=f"odd sampling rate \\({rate_hz} Hz"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 24000, 32000, 37800, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("wanted_hz", [16000, 24000])
def test_rates_that_recorders_have_are_read(tmp_path, rate_hz, wanted_hz):
    write_tone(tmp_path / "a.wav", 0.1, rate_hz=rate_hz)
    assert len(read_audio(tmp_path / "a.wav", rate_hz=wanted_hz)) == pytest.approx(0.1 * wanted_hz, abs=2)


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_probe_of_audio_files_is_by_their_header(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    soundfile.write(str(path), np.zeros((4410, 2)), 44100)
    info = probe(path)
    assert (info.duration_s, info.rate_hz, info.channels, info.width) == (0.1, 44100, 2, 0)
    for content, message in (
        (b"", "empty"),
        (b"version https://git-lfs", "git-lfs"),
        (b"noise", "not a readable"),
    ):
        path.write_bytes(content)
        with pytest.raises(MediaError, match=message):
            probe(path)


# ---- Video in ---------------------------------------------------------------------------------


def real_clip():
    return shared_data("ravdess_av") / "Actor_01" / "01-01-01-01-01-01-01.mp4"


def test_real_ravdess_clip_has_all_its_frames():
    """FFmpeg alone gives 98 frames: the file's edit list hides the last of the 99 that it states."""
    info = probe(real_clip())
    assert (info.width, info.height, info.n_frames, info.rate_hz) == (1280, 720, 99, 48000)
    assert info.fps == pytest.approx(30000 / 1001) and info.duration_s == pytest.approx(
        99 * FRAME_S, abs=1e-4
    )
    frames, times_s = read_frames(real_clip(), size=(72, 128))
    assert frames.shape == (99, 72, 128, 3) and frames.dtype == np.uint8
    assert np.allclose(times_s, np.arange(99) * FRAME_S, atol=1e-6)
    assert times_s[-1] + FRAME_S == pytest.approx(info.duration_s, abs=1e-4)
    # in the order of display each frame is closest to its neighbours, also at the end with its swapped stamps
    end = frames[-5:].astype(float)
    steps = [[np.abs(a - b).mean() for b in end] for a in end]
    assert all(steps[i][i + 1] == min(steps[i][i + 1 :]) for i in range(4))
    assert abs(len(read_audio(real_clip())) / 16000 - info.duration_s) < 0.02


def test_real_ravdess_clip_copied_without_sound(tmp_path):
    assert copy_muted(real_clip(), tmp_path / "copy.mp4") == 99
    assert probe(tmp_path / "copy.mp4").rate_hz == 0
    original, copy = (read_frames(path, size=(72, 128)) for path in (real_clip(), tmp_path / "copy.mp4"))
    assert np.array_equal(original[0], copy[0]) and np.allclose(original[1], copy[1], atol=1e-6)
    assert copy_muted(write_avi(tmp_path / "mpeg4.avi", n_frames=3), tmp_path / "no.mp4") == 0
    assert not (tmp_path / "no.mp4").exists()


def test_read_frames_span_and_even_sampling(tmp_path):
    path = write_avi(tmp_path / "a.avi", n_frames=60)
    frames, times_s = read_frames(path, start_s=0.5, end_s=1.0)
    assert np.allclose(times_s, np.arange(15, 30) * FRAME_S)
    assert frames.shape == (15, HEIGHT, WIDTH, 3)
    _, times_s = read_frames(path, n_frames=4, size=(8, 8))
    assert np.allclose(times_s, np.array([7, 22, 37, 52]) * FRAME_S)  # middles of quarters
    _, times_s = read_frames(write_avi(tmp_path / "b.avi", n_frames=2), n_frames=4)
    assert np.allclose(times_s, np.array([0, 0, 1, 1]) * FRAME_S)
    with pytest.raises(MediaError, match="no video frame"):
        read_frames(path, start_s=5.0)


# ---- Cutting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("b_frames", [0, 2])
def test_cut_turns_overlapping_halves(tmp_path, b_frames):
    """Every clip has exactly the frames whose time lies in [start, end), of its half, from time 0."""
    path = write_avi(tmp_path / "d.avi", b_frames=b_frames)
    cuts = [
        Cut(tmp_path / "b.mp4", 1.0, 2.5, "right"),
        Cut(tmp_path / "a.mp4", 0.5, 1.6, "left"),
        Cut(tmp_path / "c.mp4", 0.9, 1.2, "left"),
        Cut(tmp_path / "all.mp4"),
    ]
    results = cut_turns(path, cuts, **CODING)
    times = np.arange(N_FRAMES) * FRAME_S
    for cut, result in zip(cuts, results, strict=True):
        inside = np.flatnonzero((times >= (cut.start_s or 0)) & (times < (cut.end_s or 99)))
        assert result.n_frames == len(inside) and not result.problem
        assert result.seconds == pytest.approx(len(inside) * FRAME_S)
        frames, times_s = read_frames(cut.output)
        assert frames.shape[1:] == (HEIGHT, WIDTH // 2 if cut.half else WIDTH, 3)
        assert np.allclose(times_s, np.arange(len(inside)) * FRAME_S, atol=1e-4)
        expected = {"left": 20 + inside, "right": 220 - inside, "": 120 + 0 * inside}[cut.half]
        assert np.abs(luma(cut.output) - expected).max() < 1.5
        assert probe(cut.output).rate_hz == 0
    assert not leftovers(tmp_path)


def test_cut_turns_at_the_end_of_the_video(tmp_path):
    path = write_avi(tmp_path / "d.avi")  # 4.004 s
    cuts = [
        Cut(tmp_path / "a.mp4", 3.5, 4.05, "left"),
        Cut(tmp_path / "b.mp4", 3.5, 6.0, "left"),
        Cut(tmp_path / "c.mp4", 5.0, 6.0, "right"),
    ]
    near, past, beyond = cut_turns(path, cuts, **CODING)
    assert near.n_frames == past.n_frames == 15 and not near.problem
    assert past.problem == "clip to 6.00 s is past the end of the video at 4.00 s; cut there"
    assert beyond.n_frames == 0 and "the video ends at 4.00 s" in beyond.problem
    assert not (tmp_path / "c.mp4").exists()


def test_cut_turns_from_a_truncated_avi(tmp_path):
    path = write_avi(tmp_path / "d.avi")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    early, middle, late = cut_turns(
        path, [Cut(tmp_path / f"{k}.mp4", k, k + 1.0, "left") for k in (0, 1, 3)], **CODING
    )
    assert early.n_frames == 30 and not early.problem
    assert np.abs(luma(tmp_path / "0.mp4") - np.arange(20, 50)).max() < 1.5
    assert late.n_frames == 0 and "the video ends at" in late.problem
    (tmp_path / "head.avi").write_bytes(data[:100])
    with pytest.raises(MediaError, match="head.avi"):
        cut_turns(tmp_path / "head.avi", [Cut(tmp_path / "x.mp4", 0, 1)], **CODING)
    assert not leftovers(tmp_path)


def test_other_pixel_formats_and_odd_sizes_are_encoded(tmp_path):
    import av

    with av.open(str(tmp_path / "x.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 50, 33, "yuvj422p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((33, 50, 3), 90, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    [result] = cut_turns(tmp_path / "x.avi", [Cut(tmp_path / "y.mp4", 0, 1, "right")], **CODING)
    frames, _ = read_frames(tmp_path / "y.mp4")
    assert (
        result.n_frames == 5 and frames.shape == (5, 32, 24, 3) and np.abs(frames.astype(int) - 90).max() < 6
    )


def test_full_disk_leaves_no_clip(tmp_path, monkeypatch):
    """The last step of every write, the rename, is refused as by a full disk."""
    path = write_avi(tmp_path / "d.avi", n_frames=40)

    def refuse(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    cuts = [Cut(tmp_path / "a.mp4", 0.0, 0.5, "left"), Cut(tmp_path / "b.mp4", 0.2, 1.0, "left")]
    for write in (
        lambda: cut_turns(path, cuts, **CODING),
        lambda: write_wav(tmp_path / "a.wav", np.zeros(99)),
    ):
        with pytest.raises(UserError, match="the disk is full"):
            write()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.avi"]


def test_full_disk_while_encoding(tmp_path, monkeypatch):
    """FFmpeg's own refusal, from a device that is always full, is the same clear line."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    path = write_avi(tmp_path / "d.avi", n_frames=40)
    opened = media.av.open
    monkeypatch.setattr(
        media.av,
        "open",
        lambda file, *args, **kwargs: opened(
            "/dev/full" if args and args[0] == "w" else file, *args, **kwargs
        ),
    )
    with pytest.raises(UserError, match="the disk is full"):
        cut_turns(path, [Cut(tmp_path / "a.mp4", 0.0, 0.5, "left")], **CODING)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.avi"]
