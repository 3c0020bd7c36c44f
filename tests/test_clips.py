"""Clips against frame-numbered videos, known sounds, full decoding and one real RAVDESS recording; their
store."""

from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from av.video.reformatter import VideoReformatter
from conftest import shared_data
from PIL import Image

from common import media, pictures
from common.chochlakis.backbones import MODALITIES
from common.chochlakis.clips import Clips, clip_batches, clip_features, read_clips, read_part
from common.extraction import Extraction
from common.files import UserError
from common.manifest import Manifest, Turn
from common.media import MediaError
from common.pictures import central_square

WIDTH, HEIGHT, SIZE = 96, 64, 16
STEADY_MS = range(0, 2000, 40)  # 50 frames
UNSTEADY_MS = [
    0,
    33,
    67,
    100,
    260,
    270,
    300,
    310,
    420,
    500,
    733,
    740,
    900,
    1100,
    1140,
    1200,
    1377,
    1500,
    1950,
]
KIND = {"n_clips": 5, "clip_s": 0.4, "rate_hz": 24000, "size": SIZE}
FRAMES = 6  # round(0.4 * 16)


def gray(value):
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def write_video(path, times_ms=STEADY_MS, sound=None, codec="libx264", picture=None, sound_s=0.0):
    """A video whose frame i is gray, 10 + 4 * i, shown at times_ms[i]; sound (T, channels), 48 kHz, from
    sound_s.
    """
    if codec == "libx264" and codec not in av.codecs_available:
        pytest.skip("this FFmpeg has no libx264")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 8_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            layout = "stereo" if sound.shape[1] == 2 else "mono"
            track = container.add_stream("pcm_s16le", rate=48000, layout=layout)
            for start in range(0, len(sound), 1024):
                part = (sound[start : start + 1024] * 32768).astype(np.int16).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
                frame.pts, frame.sample_rate = round(sound_s * 48000) + start, 48000
                frame.time_base = Fraction(1, 48000)
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
        for i, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(i) if picture else gray(10 + 4 * i), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(seconds, hz=440, rate_hz=48000, level=0.5):
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def numbers(video):
    """Number of the frame that each picture (..., H, W, 3) shows."""
    return np.round((video.mean((-3, -2, -1)) - 10) / 4).astype(int)


def newest(times_ms, start_ms=0):
    """Numbers (5, FRAMES) of the newest frames by the times of the clips, the first before it is shown."""
    wanted_ms = np.arange(5)[:, None] * 400 + np.arange(FRAMES) * 1000 / 16 - start_ms
    return np.array(
        [[max((i for i, t in enumerate(times_ms) if t <= w), default=0) for w in row] for row in wanted_ms]
    )


# ---- Pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending, codec", [("mp4", "libx264"), ("mov", "mpeg4"), ("flv", "flv"), ("mp4", "mpeg4")]
)
@pytest.mark.parametrize("times_ms", [STEADY_MS, UNSTEADY_MS], ids=["steady", "unsteady"])
def test_frames_are_those_that_a_player_shows(tmp_path, ending, codec, times_ms):
    found = read_clips(None, write_video(tmp_path / f"v.{ending}", times_ms, codec=codec), **KIND)
    assert found.video.shape == (5, FRAMES, SIZE, SIZE, 3) and found.video.dtype == np.uint8
    assert np.array_equal(numbers(found.video), newest(times_ms))
    assert (
        found.video_s.any()
        and not found.audio_s.any()
        and not found.audio.any()
        and found.audio.shape == (5, 9600)
    )
    assert np.allclose(found.video_s[:4], 0.4, atol=1e-6) and found.video_s[4] > 0.3


def test_only_wanted_frames_are_scaled_and_decoding_ends_with_the_last_clip(tmp_path, monkeypatch):
    path = write_video(
        tmp_path / "long.mp4", range(0, 12000, 50), picture=lambda i: gray(i % 200), codec="mpeg4"
    )
    scale, scaled, decode, decoded = pictures.central_square, [], pictures.timed_frames, []
    monkeypatch.setattr(pictures, "central_square", lambda *args: scaled.append(1) or scale(*args))

    def counted(*args):
        for frame in decode(*args):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr(pictures, "timed_frames", counted)
    found = read_clips(None, path, **{**KIND, "n_clips": 2})
    assert len(scaled) == len({min(k, 15) for k in newest(range(0, 12000, 50))[:2].ravel()}) == 12
    assert len(decoded) == 0.8 / 0.05 + 1 and np.allclose(found.video_s, 0.4, atol=1e-6)


def test_repeated_frames_are_scaled_once(tmp_path, monkeypatch):
    scale, scaled = pictures.central_square, []
    monkeypatch.setattr(pictures, "central_square", lambda *args: scaled.append(1) or scale(*args))
    found = read_clips(None, write_video(tmp_path / "slow.mov", [0, 500, 900], codec="mpeg4"), **KIND)
    assert len(scaled) == 3 and np.array_equal(numbers(found.video), newest([0, 500, 900]))


def test_central_square_is_the_centre_as_pillow_scales_it():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(
        (640, 360), Image.BICUBIC
    )
    frame = av.VideoFrame.from_image(coarse).reformat(format="yuv420p")
    frame.colorspace = 1  # BT.709, as most cameras have it
    found = central_square(frame, 112, VideoReformatter())
    scaled = frame.to_image().resize((228, 128), Image.BILINEAR)  # AVID-CMA's order: scale, then crop
    reference = np.asarray(scaled.crop((58, 8, 170, 120)))
    assert found.shape == (112, 112, 3) and np.abs(found.astype(int) - reference).mean() < 2
    other = central_square(frame.reformat(format="yuv422p"), 112, VideoReformatter())
    assert np.abs(found.astype(int) - other).mean() < 2


def test_a_video_that_starts_late_keeps_to_the_clock_of_its_sound(tmp_path):
    late_ms = [t + 500 for t in STEADY_MS]
    path = write_video(tmp_path / "late.mov", late_ms, tone(2.0)[:, None], "mpeg4")
    found = read_clips(path, path, **{**KIND, "rate_hz": 48000})
    assert np.array_equal(numbers(found.video), newest(STEADY_MS, start_ms=500))
    assert np.allclose(found.video_s, [0, 0.3, 0.4, 0.4, 0.4], atol=0.01) and np.allclose(found.audio_s, 0.4)
    assert np.allclose(found.audio.ravel(), tone(2.0), atol=1e-4)


def test_a_sound_that_starts_late_is_preceded_by_silence(tmp_path):
    path = write_video(tmp_path / "late.mov", STEADY_MS, tone(1.5)[:, None], "mpeg4", sound_s=0.5)
    found = read_clips(path, path, **{**KIND, "rate_hz": 48000})
    assert np.array_equal(numbers(found.video), newest(STEADY_MS))
    assert np.allclose(found.audio.ravel(), np.pad(tone(1.5), (24000, 0)), atol=1e-4)
    assert np.allclose(found.audio_s, 0.4)


def test_a_video_that_starts_after_the_clips_is_none(tmp_path):
    path = write_video(tmp_path / "late.mov", [3000, 3040], tone(3.2)[:, None], "mpeg4")
    found = read_clips(path, path, **KIND)
    assert found.audio_s.any() and not found.video_s.any() and not found.video.any()


# ---- Sound ---------------------------------------------------------------------------------


def test_stereo_is_mixed_and_resampled_clip_by_clip(tmp_path):
    stereo = np.stack([tone(2.0), 0.2 * tone(2.0, 1000)], 1)
    path = write_video(tmp_path / "s.mov", STEADY_MS, stereo, "mpeg4")
    same = read_clips(path, path, **{**KIND, "rate_hz": 48000})
    assert np.allclose(same.audio.ravel(), stereo.mean(1), atol=1e-4)
    half = read_clips(path, path, **KIND)
    expected = (tone(2.0, 440, 24000) + 0.2 * tone(2.0, 1000, 24000)).reshape(5, 9600) / 2
    assert half.audio.shape == (5, 9600) and half.audio_s.any()
    assert np.abs(half.audio - expected)[:, 20:-20].max() < 2e-3  # the filter meets silence at the edges


@pytest.mark.parametrize("rate_hz", [11025, 22050, 44100])
def test_other_sampling_rates_fill_the_clips(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", tone(2.0, rate_hz=rate_hz), rate_hz)
    found = read_clips(tmp_path / "a.wav", None, **KIND)
    assert (
        found.audio.shape == (5, 9600)
        and found.video.shape == (5, 0, SIZE, SIZE, 3)
        and not found.video_s.any()
    )
    assert np.abs(found.audio - tone(2.0, rate_hz=24000).reshape(5, 9600))[:, 30:-30].max() < 5e-3


def test_a_clip_holds_nothing_of_its_neighbours(tmp_path):
    rng = np.random.default_rng(0)
    before, noise = tone(2.0), rng.normal(0, 0.3, 19200).clip(-0.9, 0.9)
    after = before.copy()
    after[19200 : 2 * 19200] = noise  # clip 1
    found = []
    for name, samples in (("a.wav", before), ("b.wav", after)):
        soundfile.write(tmp_path / name, samples, 48000)
        found.append(read_clips(tmp_path / name, None, **KIND).audio)
    assert [np.array_equal(a, b) for a, b in zip(*found)] == [True, False, True, True, True]


def test_what_lies_beyond_the_end_is_silence_and_the_last_frame(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.9), 48000)
    path = write_video(tmp_path / "v.flv", range(0, 1000, 40), codec="flv")  # 25 frames, 1 s
    found = read_clips(tmp_path / "a.wav", path, **{**KIND, "rate_hz": 48000})
    assert (
        np.allclose(found.audio.ravel()[:43200], tone(0.9), atol=1e-4)
        and not found.audio.ravel()[43200:].any()
    )
    assert np.allclose(found.audio_s, [0.4, 0.4, 0.1, 0, 0], atol=1e-6)
    assert np.allclose(found.video_s, [0.4, 0.4, 0.2, 0, 0], atol=0.002)
    assert (
        np.array_equal(numbers(found.video), newest(range(0, 1000, 40)))
        and (numbers(found.video)[3:] == 24).all()
    )


def test_flv_without_sound_takes_the_wav(tmp_path):
    path = write_video(tmp_path / "v.flv", codec="flv")
    soundfile.write(tmp_path / "a.wav", tone(2.0), 48000)
    assert not read_clips(None, path, **KIND).audio_s.any()
    both = read_clips(tmp_path / "a.wav", path, **KIND)
    assert (
        both.audio_s.any() and both.video_s.any() and np.array_equal(numbers(both.video), newest(STEADY_MS))
    )
    assert np.array_equal(both.audio, read_clips(tmp_path / "a.wav", None, **KIND).audio)


def test_files_that_cannot_be_used_say_why(tmp_path):
    whole = write_video(tmp_path / "v.mov", codec="mpeg4").read_bytes()
    (tmp_path / "no_moov.mov").write_bytes(whole[: whole.index(b"moov") - 4])
    (tmp_path / "pointer.flv").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    )
    soundfile.write(tmp_path / "a.wav", tone(0.5), 48000)
    for paths, reason in (
        ((None, tmp_path / "no_moov.mov"), "not a readable recording"),
        ((tmp_path / "a.wav", tmp_path / "pointer.flv"), "git-lfs pointer"),
        ((None, tmp_path / "absent.mp4"), "No such file"),
        ((tmp_path / "pointer.flv", tmp_path / "v.mov"), "git-lfs pointer"),
        ((tmp_path / "v.mov", None), "no audio track"),
        ((None, tmp_path / "a.wav"), "no video track"),
        ((None, None), "neither sound nor picture"),
    ):
        with pytest.raises(MediaError, match=reason):
            read_clips(*paths, **KIND)


def test_a_video_that_breaks_off_gives_what_decodes(tmp_path):
    path = write_video(
        tmp_path / "v.flv",
        codec="flv",
        picture=lambda i: np.random.default_rng(i).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    found = read_clips(None, path, **KIND)
    assert 0.8 < found.video_s.sum() < 1.2 and np.array_equal(found.video[3], found.video[4])


# ---- Genuine recordings --------------------------------------------------------------------


def test_real_ravdess_video_gives_the_clips_of_a_full_decode():
    path = shared_data("ravdess_av") / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    found = read_clips(path, path, 10, 0.4, 24000, 224)
    frame_s = 1001 / 30000
    with media.open_video(path) as (container, stream):
        shown = [frame for frame, _ in media.timed_frames(container.demux(stream), stream)]
    assert len(shown) == 99
    scaler = VideoReformatter()
    for n in range(10):
        for k in range(6):
            number = min(98, int((n * 0.4 + k / 16 + 1e-3) / frame_s))
            assert np.array_equal(found.video[n, k], central_square(shown[number], 224, scaler)), (n, k)
    whole = media.read_audio(path, rate_hz=24000)
    padded = np.pad(whole, (0, 96000 - len(whole))).reshape(10, 9600)
    assert np.abs(found.audio - padded)[:, 15:-15].max() < 1e-5
    assert np.allclose(found.video_s, [0.4] * 8 + [0.1033, 0], atol=1e-4) and found.audio_s[9] == 0


def test_every_picture_of_genuine_grid_clips_is_that_of_a_plain_decode():
    """MPEG-1 at 25 frames a second, whose clock does not begin at 0; the frames shown are found by hand."""
    files, scaler = sorted(shared_data("grid").glob("*.mpg")), VideoReformatter()
    assert len(files) == 8
    for path in files:
        clips = read_clips(path, path, 6, 0.5, 16000, 64)
        with av.open(str(path)) as container:
            frames = list(container.decode(container.streams.video[0]))
            start_s = container.start_time / av.time_base
        shown_s = np.array([frame.time - start_s for frame in frames])
        assert len(frames) == 75 and np.allclose(np.diff(shown_s), 0.04)
        for k, picture in enumerate(clips.video.reshape(-1, 64, 64, 3)):
            frame = frames[max(0, np.searchsorted(shown_s, k / 16 + 1e-3) - 1)]
            assert (picture == central_square(frame, 64, scaler)).all(), (path.name, k)
        assert clips.video_s.sum() == pytest.approx(3.0, abs=0.05) and clips.audio.std() > 0.001


def test_real_ravdess_sound_without_any_video(tmp_path):
    files = sorted((shared_data("ravdess") / "Actor_01").glob("*.wav"))[:12]
    corpus, turns = corpus_of(tmp_path, [(str(path), "") for path in files])
    seen = []
    store = features(corpus, turns, MeanBackbone(seen.append), tmp_path / "s")
    part = read_part(store, turns)
    assert (
        set(seen) == {"audio"}
        and len(part) == 12
        and part.missing.tolist() == [[[False] * 5, [True] * 5]] * 12
    )
    assert not part.x[:, 1].any() and part.x[:, 0].any(2).any(1).all()


# ---- The store -----------------------------------------------------------------------------


class MeanBackbone:
    """Features to be worked out by hand: means of the samples, of their squares, of the pixels by colour.

    A multiple of the number of clips in the batch is added, so that other batches can give other features.
    """

    rate_hz, size, dim = 24000, SIZE, 3

    def __init__(self, watch=lambda name: None, by_batch=0.0):
        self.watch, self.by_batch = watch, by_batch

    def identity(self):
        return {"by_batch": str(self.by_batch)}

    def __call__(self, name, clips):
        self.watch(name)
        x = torch.from_numpy(clips).float()
        if name == "audio":
            x = torch.stack([x.mean(1), x.square().mean(1), torch.ones(len(x))], 1)
        else:
            x = x.mean((1, 2, 3))
        return x + self.by_batch * len(x)


def features(corpus, turns, backbone, folder, n_clips=5, workers=0):
    return clip_features(corpus, turns, backbone, folder, n_clips, 0.4, Extraction(3, workers, 0.5))


def corpus_of(folder, paths):
    """A Manifest of turns u00, u01, ... with (audio, video), and the turns."""
    (folder / "manifest.csv").write_text("the fingerprint is taken of this")
    turns = [
        Turn(f"u{i:02}", "d", i, "s", "", 0.0, 0.0, label="sad", audio=str(a), video=str(v))
        for i, (a, v) in enumerate(paths)
    ]
    return Manifest("corpus", folder, (), turns), turns


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Eight recordings: wavs at a level of their own, and videos; number 2 is a pointer, 6 has sound
    alone.
    """
    folder, paths = tmp_path_factory.mktemp("recordings"), []
    for i in range(8):
        audio, video = folder / f"{i}.wav", folder / f"{i}.mov"
        soundfile.write(audio, (i + 1) / 16 + np.tile([0.001, -0.001], 24000), 24000)
        if i == 2:
            video.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        elif i != 6:
            write_video(video, range(0, 1000, 40), codec="mpeg4")
        paths.append((audio.name, "" if i == 6 else video.name))
    return corpus_of(folder, paths)


def test_features_are_those_worked_out_by_hand(tmp_path, recordings, capsys):
    corpus, turns = recordings
    store = features(corpus, turns, MeanBackbone(), tmp_path / "s", workers=2)
    assert store.ids == [f"u{i:02}" for i in (0, 1, 3, 4, 5, 6, 7)]
    for i in (0, 3, 7):
        level = (i + 1) / 16
        assert np.allclose(store.rows(f"u{i:02}", "audio"), [level, level**2, 1], atol=1e-4)
        expected = 10 + 4 * newest(range(0, 1000, 40)).mean(1)
        assert np.allclose(store.rows(f"u{i:02}", "video")[0].mean(1), expected, atol=1)
    assert np.isnan(store.rows("u06", "video")).all() and np.isfinite(store.rows("u06", "audio")).all()
    assert store["audio"].dtype == store["video"].dtype == np.float32
    said = capsys.readouterr().out
    assert "1 of 8 recordings cannot be used (12.5%): 1 × a git-lfs pointer" in said
    unused = MeanBackbone(lambda name: pytest.fail("a finished store was extracted again"))
    assert features(corpus, turns, unused, tmp_path / "s").ids == store.ids
    assert features(corpus, turns, MeanBackbone(), tmp_path / "s", n_clips=3)["audio"].shape == (7, 3, 3)


def test_a_part_has_its_turns_in_their_order(tmp_path, recordings):
    corpus, turns = recordings
    store = features(corpus, turns, MeanBackbone(), tmp_path / "s")
    part = read_part(store, turns[::-1], ("happy", "sad"))
    assert [turn.utterance_id for turn in part.turns] == store.ids[::-1] and part.x.shape == (7, 2, 5, 3)
    for row, turn in enumerate(part.turns):
        for m, name in enumerate(("audio", "video")):
            assert np.array_equal(part.x[row, m], np.nan_to_num(store.rows(turn.utterance_id, name)[0]))
    assert part.missing[1].tolist() == [[False] * 5, [True] * 5] and part.missing.sum() == 5
    assert part.labels.tolist() == [1] * 7 and read_part(store, turns).labels.tolist() == [-1] * 7
    seen = [part.x[:, 0].flatten(0, 1), part.x[[0, 2, 3, 4, 5, 6], 1].flatten(0, 1)]
    torch.testing.assert_close(part.mean(), torch.stack([x.mean(0) for x in seen]))
    some, other = (read_part(store, [part.turns[i] for i in at]) for at in ([3, 1], [1, 3]))
    assert torch.equal(some.x, part.x[[3, 1]]) and torch.equal(some.missing, part.missing[[3, 1]])
    identities = {part.identity(), some.identity(), other.identity()}
    assert len(identities) == 3 and read_part(store, turns[::-1]).identity() in identities
    with pytest.raises(UserError, match="none of the recordings could be read"):
        read_part(store, [turns[2]])


def test_features_that_are_not_finite_are_refused(tmp_path, recordings):
    corpus, turns = recordings
    with pytest.raises(UserError, match="the audio features hold NaN"):
        features(corpus, turns, MeanBackbone(by_batch=float("nan")), tmp_path / "s")


def test_features_depend_on_their_own_clip_alone(tmp_path):
    """Another sound in clip 1 and another picture in clip 3 change the features of these and of no other."""
    paths = []
    for i in range(2):
        sound, shown = tone(2.0), [10 + 4 * k for k in range(50)]
        if i:
            sound[19200 : 2 * 19200] *= -0.7
            shown[30:40] = [200] * 10  # 1.2 to 1.6 s
        soundfile.write(tmp_path / f"{i}.wav", sound, 48000)

        def picture(k, shown=shown):
            return gray(shown[k])

        # Lossless, so that coding does not carry a change over to later frames.
        video = write_video(tmp_path / f"{i}.mkv", codec="ffv1", picture=picture)
        paths.append((tmp_path / f"{i}.wav", video))
    corpus, turns = corpus_of(tmp_path, paths)
    store = features(corpus, turns, MeanBackbone(), tmp_path / "s")
    for name, changed in (("audio", 1), ("video", 3)):
        same = (store.rows("u00", name) == store.rows("u01", name))[0].all(1)
        assert same.tolist() == [n != changed for n in range(5)], name


def test_clip_batches_hold_whole_clips_alone(recordings):
    corpus, turns = recordings
    audio, video = (list(clip_batches(corpus, turns, MeanBackbone(), 5, 0.4, 15, m)) for m in MODALITIES)
    assert [len(x) for x in audio] == [10, 15, 10]  # 2 s of sound each, one recording left out
    assert [len(x) for x in video] == [4, 6, 2]  # 1 s of video: 2 whole clips each
    assert isinstance(read_clips(corpus.folder / "0.wav", None, **KIND), Clips)
    alone = corpus, [turns[6]], MeanBackbone(), 5, 0.4, 15
    assert [len(x) for x in clip_batches(*alone, "audio")] == [5] and not [*clip_batches(*alone, "video")]
