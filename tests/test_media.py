"""Audio and video in and out, against known signals, frame-numbered videos and one real RAVDESS clip."""

import struct

import numpy as np
import pytest
import soundfile
from conftest import shared_data
from miniature import HEIGHT, WIDTH, write_avi, write_tone

from common import media
from common.media import MediaError, probe, read_audio, read_frames, write_wav

FRAME_S = 1001 / 30000


# ---- Audio ------------------------------------------------------------------------------------


def test_read_audio_averages_channels_and_resamples(tmp_path):
    t = np.arange(48000) / 48000
    tone = np.sin(2 * np.pi * 440 * t)
    soundfile.write(str(tmp_path / "s.wav"), np.stack([0.8 * tone, 0.2 * tone], 1), 48000)
    samples = read_audio(tmp_path / "s.wav")
    assert samples.dtype == np.float32 and samples.shape == (16000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(samples - expected)[200:-200].max() < 0.01


def test_read_audio_up_to_an_end_equals_a_slice_and_the_end_is_clamped(tmp_path):
    write_tone(tmp_path / "a.wav", 2.0)
    whole = read_audio(tmp_path / "a.wav")
    assert len(whole) == 32000 and np.array_equal(read_audio(tmp_path / "a.wav", 1.25), whole[:20000])
    assert np.array_equal(read_audio(tmp_path / "a.wav", 9.0), whole)


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
    assert (info.duration_s, info.rate_hz, info.width) == (0.1, 44100, 0)
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
    frames, times_s = read_frames(real_clip(), short_side=72)
    assert frames.shape == (99, 72, 128, 3) and frames.dtype == np.uint8
    assert np.allclose(times_s, np.arange(99) * FRAME_S, atol=1e-6)
    assert times_s[-1] + FRAME_S == pytest.approx(info.duration_s, abs=1e-4)
    # in the order of display each frame is closest to its neighbours, also at the end with its swapped stamps
    end = frames[-5:].astype(float)
    steps = [[np.abs(a - b).mean() for b in end] for a in end]
    assert all(steps[i][i + 1] == min(steps[i][i + 1 :]) for i in range(4))
    assert abs(len(read_audio(real_clip())) / 16000 - info.duration_s) < 0.02


def test_read_frames_of_a_span_and_scaled(tmp_path):
    path = write_avi(tmp_path / "a.avi", n_frames=60)
    frames, times_s = read_frames(path, start_s=0.5, end_s=1.0)
    assert np.allclose(times_s, np.arange(15, 30) * FRAME_S)
    assert frames.shape == (15, HEIGHT, WIDTH, 3)
    assert read_frames(path, end_s=0.1, short_side=8)[0].shape == (3, 8, 12, 3)
    with pytest.raises(MediaError, match="no video frame"):
        read_frames(path, start_s=5.0)
