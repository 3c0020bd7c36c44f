"""Clips cut from videos with numbered frames, in one pass, and what is left of them when something fails."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data
from miniature import HEIGHT, N_FRAMES, WIDTH, luma, write_avi

from common.corpora import cut as cut_module
from common.corpora.cut import Cut, copy_muted, cut_turns
from common.files import UserError
from common.media import MediaError, probe, read_frames, write_wav

FRAME_S = 1001 / 30000
CODING = {"crf": 10}


def leftovers(folder):
    return [path.name for path in Path(folder).rglob("*") if ".tmp" in path.name]


def test_real_ravdess_clip_copied_without_sound(tmp_path):
    clip = shared_data("ravdess_av") / "Actor_01" / "01-01-01-01-01-01-01.mp4"
    assert copy_muted(clip, tmp_path / "copy.mp4") == 99
    assert probe(tmp_path / "copy.mp4").rate_hz == 0
    original, copy = (read_frames(path, short_side=72) for path in (clip, tmp_path / "copy.mp4"))
    assert np.array_equal(original[0], copy[0]) and np.allclose(original[1], copy[1], atol=1e-6)
    assert copy_muted(write_avi(tmp_path / "mpeg4.avi", n_frames=3), tmp_path / "no.mp4") == 0
    assert not (tmp_path / "no.mp4").exists()


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
        inside = np.flatnonzero((times >= cut.start_s) & (times < cut.end_s))
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
    opened = cut_module.av.open
    monkeypatch.setattr(
        cut_module.av,
        "open",
        lambda file, *args, **kwargs: opened(
            "/dev/full" if args and args[0] == "w" else file, *args, **kwargs
        ),
    )
    with pytest.raises(UserError, match="the disk is full"):
        cut_turns(path, [Cut(tmp_path / "a.mp4", 0.0, 0.5, "left")], **CODING)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.avi"]
