"""Audio and video in and out, against known signals, frame-numbered videos and one real RAVDESS clip."""

import struct

import av
import numpy as np
import pytest
import soundfile
from conftest import shared_data
from miniature import HEIGHT, WIDTH, turn_lying, write_avi, write_clip, write_tone

from common.corpora.cut import Cut, copy_muted, cut_turns
from common.media import MediaError, open_video, probe, read_audio, read_frames, write_wav
from common.pictures import count_frames, read_pictures

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
    monkeypatch.setattr("torchaudio.functional.resample", lambda *_: pytest.fail("resampled"))
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


@pytest.mark.parametrize("named", ["a.wav", "a.mp3", "a.flac", "a.mp4"])
@pytest.mark.parametrize("content", ["wav", "mp3", "aac", "mp4", "flac"])
def test_sound_is_read_by_its_content_whatever_its_name(tmp_path, content, named):
    sound = 0.5 * np.sin(np.arange(48000) / 20)
    if content in ("wav", "mp3", "flac"):
        soundfile.write(tmp_path / f"b.{content}", sound, 48000)
    else:
        write_clip(tmp_path / f"b.{content}", stamps=(), sound=sound)
    (tmp_path / f"b.{content}").replace(tmp_path / named)
    found = read_audio(tmp_path / named)
    assert len(found) == pytest.approx(16000, abs=1500) and found.std() == pytest.approx(0.35, abs=0.02)
    assert probe(tmp_path / named).rate_hz == 48000
    if content != "aac":  # which states no length
        assert probe(tmp_path / named).duration_s == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("stated, samples", [(32000, 8000), (0, 16000), (0xFFFFFFFF, 16000)])
def test_wavs_that_were_cut_off_or_never_finished_give_what_is_there(tmp_path, stated, samples):
    write_tone(tmp_path / "a.wav", 1.0)
    whole, data = read_audio(tmp_path / "a.wav"), bytearray((tmp_path / "a.wav").read_bytes())
    data[4:8] = struct.pack("<I", stated and min(stated + 36, 0xFFFFFFFF))
    data[40:44] = struct.pack("<I", stated)
    (tmp_path / "a.wav").write_bytes(data[: 44 + 2 * samples])
    assert np.array_equal(read_audio(tmp_path / "a.wav"), whole[:samples])
    assert probe(tmp_path / "a.wav").duration_s == samples / 16000


def test_files_that_are_something_else_say_what_they_are(tmp_path):
    for start, what in ((b"<!DOCTYPE html>", "a web page"), (b"PK\3\4...", "a zip archive; unpack it")):
        (tmp_path / "a.wav").write_bytes(start)
        with pytest.raises(MediaError, match=what):
            read_audio(tmp_path / "a.wav")
    write_tone(tmp_path / "a.wav", 0.1)
    (tmp_path / "a.wav").replace(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"no video track in it \(WAV / WAVE.*\); name it as audio alone"):
        read_frames(tmp_path / "a.mp4")


def test_a_missing_track_is_said(tmp_path):
    sound = write_clip(tmp_path / "sound.mp4", stamps=(), sound=np.sin(np.arange(9999)))
    for read in (read_frames, count_frames, lambda path: pictures_of(path, [0.0])):
        with pytest.raises(MediaError, match="no video track in it .*; name it as audio alone"):
            read(sound)
    with pytest.raises(MediaError, match="no audio track in it .*; name it as video alone"):
        read_audio(write_clip(tmp_path / "mute.mp4"))


def test_a_cover_is_not_a_video(tmp_path):
    with av.open(str(tmp_path / "song.m4a"), "w", format="mp4") as container:
        track, cover = container.add_stream("aac", rate=16000, layout="mono"), container.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 8, 8, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24")))
        sound = np.sin(np.arange(16000, dtype=np.float32))[None]
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(sound[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    assert probe(tmp_path / "song.m4a").width == 0 and len(read_audio(tmp_path / "song.m4a")) > 15000
    with pytest.raises(MediaError, match="no video track"):
        read_frames(tmp_path / "song.m4a")


def test_sound_of_no_use_is_named(tmp_path):
    tone = 0.5 * np.sin(np.arange(16000) / 20)
    for samples, what in (
        (0 * tone, "silence"),
        (0 * tone + 0.3, "silence"),
        (np.stack([tone, -tone], 1), "its channels cancel each other"),
        (np.stack([tone, -0.99 * tone], 1), "its channels cancel each other"),
    ):
        soundfile.write(tmp_path / "a.wav", samples, 16000)
        with pytest.raises(MediaError, match=what):
            read_audio(tmp_path / "a.wav")
    for n in (2, 6):  # one channel of several is enough, and so are independent ones
        several = np.zeros((16000, n))
        several[:, 1] = tone
        noise = np.random.default_rng(0).normal(0, 0.1, (16000, n))
        for samples in (several, noise):
            soundfile.write(tmp_path / "a.wav", samples, 16000)
            assert read_audio(tmp_path / "a.wav") == pytest.approx(samples.mean(1), abs=1e-4)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "mpg"])
def test_sound_that_starts_after_the_picture_keeps_its_offset(tmp_path, ending):
    codec = "mpeg1video" if ending == "mpg" else "mpeg4"
    sound = 0.5 * np.sin(np.arange(48000) / 20)
    found = read_audio(write_clip(tmp_path / f"a.{ending}", codec, sound=sound, late_s=0.4))
    loud = np.flatnonzero(abs(found) > 0.05)
    assert loud[0] / 16000 == pytest.approx(0.4, abs=0.025) and not found[:5900].any()
    whole = read_audio(tmp_path / f"a.{ending}", rate_hz=48000)
    assert np.array_equal(read_audio(tmp_path / f"a.{ending}", 0.7, 48000), whole[:33600])


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


def test_read_frames_up_to_an_end_and_scaled(tmp_path):
    path = write_avi(tmp_path / "a.avi", n_frames=30)
    frames, times_s = read_frames(path, end_s=0.5)
    assert np.allclose(times_s, np.arange(15) * FRAME_S)
    assert frames.shape == (15, HEIGHT, WIDTH, 3)
    assert read_frames(path, end_s=0.1, short_side=8)[0].shape == (3, 8, 12, 3)


def pictures_of(path, wanted_s):
    with open_video(path) as opened:
        return read_pictures(*opened, np.array(wanted_s), 1.0, 16)


def corners(frames):
    """R, r, B or b of the upper and lower left, upper and lower right corners: red or blue."""
    return "".join("RB"[int(frames[0][y, x, 2] > 125)] for x in (2, -3) for y in (2, -3))


@pytest.mark.parametrize(
    "matrix, shown, shape",
    [
        ((1, 0, 0, 1), "RBRB", (48, 64)),
        ((0, 1, -1, 0), "BBRR", (64, 48)),  # a quarter clockwise: what was above is right
        ((0, -1, 1, 0), "RRBB", (64, 48)),
        ((-1, 0, 0, -1), "BRBR", (48, 64)),
        ((1, 0, 0, -1), "BRBR", (48, 64)),  # mirrored
        ((0, 1, 1, 0), "RRBB", (64, 48)),
    ],
)
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_every_reader_turns_pictures_upright(tmp_path, matrix, shown, shape, codec):
    """01 copies H.264 with its matrix and encodes others anew; 02 and 03 read frames, 06 and 07 pictures."""
    path = turn_lying(write_clip(tmp_path / "phone.mp4", codec), *matrix)
    cut_turns(path, [Cut(tmp_path / "cut.mp4", 0.0, 0.5)], 10)
    copied = copy_muted(path, tmp_path / "copy.mp4")
    assert copied == (25 if codec == "libx264" else 0)
    for file in (path, tmp_path / "cut.mp4", tmp_path / "copy.mp4")[: 3 if copied else 2]:
        frames, _ = read_frames(file)
        assert frames.shape[1:3] == shape and corners(frames) == shown
        assert min(read_frames(file, short_side=24)[0].shape[1:3]) == 24
        pictures, *_ = pictures_of(file, [0.0, 0.3])
        assert corners(pictures) == shown


def test_mirrored_left_and_right(tmp_path):
    """Frame 12 is darker on its left half; a front camera's matrix mirrors it."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[:, :32] = 200
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    frames, _ = read_frames(turn_lying(tmp_path / "a.mp4", -1, 0, 0, 1))
    assert frames[0][:, :24].max() < 40 and frames[0][:, -24:].min() > 160


@pytest.mark.parametrize(
    "ending, codec, pixels, stamps",
    [
        ("mpg", "mpeg1video", "yuv420p", range(0, 1000, 40)),
        ("avi", "mpeg4", "yuv420p", range(0, 1000, 80)),  # 12.5 frames per second
        ("mp4", "libx264", "yuv420p10le", range(0, 1000, 40)),
        ("mp4", "libx264", "yuv420p", [0, 33, 67, 100, 260, 270, 300, 310, 420, 500, 733, 740, 900]),
    ],
)
def test_older_and_rarer_kinds_of_video_are_read(tmp_path, ending, codec, pixels, stamps):
    path = write_clip(tmp_path / f"a.{ending}", codec, stamps, pixels)
    frames, times_s = read_frames(path)
    assert np.allclose(times_s, np.array(stamps) / 1000, atol=1e-3) and corners(frames) == "RBRB"
    assert count_frames(path) == len(stamps) and frames.shape[1:3] == (48, 64)
    pictures, _, last_s = pictures_of(path, [0.0, 0.95])
    assert corners(pictures) == corners(pictures[1:]) == "RBRB" and last_s > times_s[-1]
