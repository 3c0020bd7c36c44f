"""Recordings to clips, and clips to features, which are stored once (Chochlakis et al. 2024, Sections 3.1 and 3.2).

A recording is cut into N clips of 400 or 500 ms that follow each other from its start without overlap. A frozen video
network and a frozen audio network turn every clip into one vector each; the masked autoencoder sees these alone. What
is hidden from it must not show in a neighbour, so nothing here is computed across clips: audio is resampled clip by
clip, and what lies beyond the end of a recording is silence and its last frame.

Every file is decoded once, from its start to the end of the last clip. Sound and picture of a container share a clock
that starts where the container does, as in a player; a sound file starts with its container.

N clips of a recording, S samples and F frames of a clip, B clips of a batch, D features.
"""

import re
import shutil
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from torchaudio.functional import resample
from tqdm import tqdm

from common import media
from common.corpora.release import Problem
from common.errors import UserError
from common.files import read_csv, read_json, write_csv, write_json
from common.media import MediaError, check_rate, probe, read_audio
from common.store import StoreWriter

CROP_SHARE = 224 / 256  # of the short side: AVID-CMA scales it to 256 pixels and takes the central 224 x 224
STAMP_TOLERANCE_S = 1e-3  # FLV and others round the times of frames to milliseconds
PAD_TOLERANCE_S = 1e-3  # a clip that lacks no more than this is whole
SWAPPED_STAMPS = 3  # at the end of RAVDESS's videos, stamps of neighbouring frames are swapped
DECODER_DELAY = 32  # packets that are read after the last clip; H.264 gives a frame up to 16 packets late
AHEAD = 2  # recordings that each worker decodes ahead of the backbone
MANY_PROBLEMS = 100  # with fewer, all recordings are tried before a run is stopped for its problems


@dataclass
class Clips:
    """The clips of one recording, and how many seconds of each are recorded, the rest being padding.

    audio (N, S) float32, video (N, F, H, W, 3) uint8 RGB; zeros where the recording lacks the modality altogether
    audio_s, video_s (N,) float32
    """

    audio: np.ndarray
    video: np.ndarray
    audio_s: np.ndarray
    video_s: np.ndarray

    @property
    def has_audio(self):
        return bool(self.audio_s.any())

    @property
    def has_video(self):
        return bool(self.video_s.any())


@dataclass
class Extraction:
    """How recordings become features; the first two are part of a store's identity, the others concern the machine."""

    n_clips: int  # N
    clip_s: float
    batch_clips: int  # clips that the backbone gets at a time, those of whole recordings
    workers: int  # threads that decode; 0 = decode and compute in turn
    max_problem_share: float  # stop where more than this share of the recordings has to be left out


# ---- One recording -------------------------------------------------------------------------


def read_clips(audio_path, video_path, n_clips, clip_s, rate_hz, fps, size):
    """Cut a recording into clips (Section 3.1), decoding it once.

    audio_path  audio file or container; None = the container of the video, where that has sound
    video_path  container; None = the recording has no video
    n_clips     N; clip n lasts from n * clip_s to (n + 1) * clip_s seconds
    rate_hz     sampling rate of the clips; S = round(clip_s * rate_hz)
    fps         frames per second of the clips, whatever the video's; F = round(clip_s * fps), at least 1. Each frame is
                what a player shows at that time, the newest by then, so that the video's rate may vary
    size        side of the frames in pixels, see `central_square`
    Returns Clips. Raises MediaError where there is no file, or one that cannot be used.
    """
    if not (audio_path or video_path):
        raise MediaError("", "neither audio nor video")
    n_samples, n_frames = round(clip_s * rate_hz), max(1, round(clip_s * fps))
    shape = (n_clips, n_frames, size, size, 3)
    video = (
        np.zeros(shape, np.uint8) if video_path else np.broadcast_to(np.uint8(0), shape)
    )  # that takes no memory
    clips = Clips(np.zeros((n_clips, n_samples), np.float32), video, *np.zeros((2, n_clips), np.float32))
    tracks = Tracks()
    if video_path:
        with media._open_video(video_path, 1) as (container, stream):
            tracks = find_tracks(container, video_path)
            wanted_s = np.arange(n_clips)[:, None] * clip_s + np.arange(n_frames) / fps  # (N, F)
            span_s = read_pictures(
                container,
                stream,
                tracks.video_start_s,
                wanted_s.ravel(),
                n_clips * clip_s,
                clips.video.reshape(-1, size, size, 3),
            )
        clips.video_s = covered_s(*span_s, n_clips, clip_s)
    own_file = audio_path and Path(audio_path) != Path(video_path or "")
    if own_file:
        tracks = Tracks(rate_hz=probe(audio_path).rate_hz)
    if own_file or tracks.rate_hz:
        path = audio_path or video_path
        start_s, seconds = tracks.audio_start_s, fill_audio(clips.audio, path, tracks, clip_s, rate_hz)
        clips.audio_s = covered_s(start_s, start_s + seconds, n_clips, clip_s)
    return clips


def covered_s(start_s, end_s, n_clips, clip_s):
    """Seconds of each clip (N,) that lie between start_s and end_s."""
    edges_s = np.clip(np.arange(n_clips + 1) * clip_s, start_s, max(start_s, end_s))
    return np.diff(edges_s).astype(np.float32)


@dataclass
class Tracks:
    """When the tracks of a container start, on the clock of its clips, and the sampling rate, 0 = no sound."""

    video_start_s: float = 0.0
    audio_start_s: float = 0.0
    rate_hz: int = 0


def find_tracks(container, path):
    """The Tracks of an open container."""
    if "ignore_editlist" in container.options:  # its times are then not those at which it is played
        with media._container(path) as played:
            return find_tracks(played, path)
    zero_s = (container.start_time or 0) / av.time_base
    starts_s = []
    for streams in (container.streams.video, container.streams.audio):
        known = streams and streams[0].start_time is not None
        starts_s.append(
            max(0.0, float(streams[0].start_time * streams[0].time_base) - zero_s) if known else 0.0
        )
    audio = container.streams.audio
    return Tracks(*starts_s, audio[0].rate or 0 if audio else 0)


# ---- Audio ---------------------------------------------------------------------------------


def fill_audio(audio, path, tracks, clip_s, rate_hz):
    """Write a recording's mono sound into audio (N, S), clip by clip; returns the seconds of it up to the last clip.

    Each clip is resampled by itself, so that the filter, which is half a millisecond long, does not carry sound over.
    """
    (n_clips, n_samples), source_hz = audio.shape, tracks.rate_hz
    first = round(tracks.audio_start_s * source_hz)
    end_s = n_clips * clip_s - tracks.audio_start_s
    if end_s <= 0:
        return 0.0
    samples = read_audio(path, 0.0, end_s, source_hz)  # (T,)
    check_rate(path, source_hz, rate_hz)
    pieces = np.zeros((n_clips, round(clip_s * source_hz)), np.float32)
    for n, piece in enumerate(pieces):
        start = round(n * clip_s * source_hz) - first  # negative: the sound starts later
        found = samples[max(0, start) : max(0, start + len(piece))]
        into = max(0, -start)
        piece[into : into + len(found)] = found
    if source_hz != rate_hz:
        pieces = resample(torch.from_numpy(pieces), source_hz, rate_hz).numpy()
    audio[:, : pieces.shape[1]] = pieces[:, :n_samples]
    return len(samples) / source_hz


# ---- Video ---------------------------------------------------------------------------------


class Packets:
    """The packets of a video up to the end of the last clip, in place of the container when they are decoded.

    stamps  pts of the frames that they hold, sorted; None where a packet has none (AVI)
    wanted  pts of the frames that are looked at; None = all. The decoder passes over others from which no frame is
            predicted. This changes nothing in what is left: with two B-frames in a row, it is a third of the work
    """

    def __init__(self, container, stream, end):
        """end: time after the first frame from which on frames are of no use, in units of the stream's time base."""
        self.packets, self.wanted, first, n_late = [], None, None, 0
        try:
            for packet in container.demux(stream):
                self.packets.append(packet)
                first = packet.dts if first is None else first
                n_late += packet.dts is not None and packet.dts - first > end
                if n_late > DECODER_DELAY:
                    break
        except av.error.InvalidDataError:
            pass  # the container breaks off here: what came before counts
        self.n_frames = sum(1 for packet in self.packets if packet.size and not packet.is_discard)
        stamps = sorted(p.pts for p in self.packets if p.size and not p.is_discard and p.pts is not None)
        self.stamps = np.array(stamps) if stamps and len(stamps) == self.n_frames else None

    def demux(self, stream):
        """Yield the packets in the order of decoding, as a container would."""
        for packet in self.packets:
            needless = self.wanted is not None and packet.pts is not None and packet.pts not in self.wanted
            stream.codec_context.skip_frame = "NONREF" if needless else "DEFAULT"
            yield packet


def read_pictures(container, stream, start_s, wanted_s, end_s, pictures):
    """Write what a player shows at the wanted times into pictures (len(wanted_s), size, size, 3) uint8.

    start_s   when the first frame is shown
    wanted_s  times, sorted; before the first frame it is shown, after the last the last one
    end_s     end of the last clip: a video that starts later is not looked at
    Returns (start_s, when the last frame that was read ends). Raises MediaError where no frame can be decoded.
    """
    if start_s >= end_s:
        return start_s, start_s
    tick_s = float(stream.time_base)
    step_s = float(1 / stream.average_rate) if stream.average_rate else 0.0
    packets = Packets(container, stream, (end_s - start_s) / tick_s)
    if packets.stamps is None:
        last_s = start_s + (packets.n_frames - 1) * step_s
    else:
        times_s = start_s + (packets.stamps - packets.stamps[0]) * tick_s
        shown = np.searchsorted(times_s, wanted_s + STAMP_TOLERANCE_S, side="right") - 1
        packets.wanted = {
            *packets.stamps[shown.clip(min=0)].tolist(),
            *packets.stamps[-SWAPPED_STAMPS:].tolist(),
        }
        last_s = times_s[-1]
    scaler, previous = VideoReformatter(), None
    for k, frame in enumerate(frames_at(wanted_s, timed_frames(packets, stream, start_s, step_s))):
        if frame is None:
            raise MediaError(container.name, "no video frame could be decoded", "download it again")
        pictures[k] = (
            pictures[k - 1] if frame is previous else central_square(frame, pictures.shape[1], scaler)
        )
        previous = frame
    return start_s, last_s + step_s


def timed_frames(packets, stream, start_s, step_s):
    """Yield (frame, time_s) in the order of display, the first frame of the packets being shown at start_s."""
    tick_s = float(stream.time_base)
    for i, (frame, pts) in enumerate(media._timed_frames(packets, stream)):
        if i == 0 and packets.stamps is not None and frame.pts is not None:
            late_s = float((frame.pts - packets.stamps[0]) * tick_s)
            if late_s > 2 * step_s:  # frames at the start are damaged; less may be a swapped stamp
                start_s += late_s
        yield frame, start_s + pts * tick_s


def frames_at(wanted_s, frames):
    """For each of the sorted times yield the newest of (frame, time_s) by then, or the first; None = no frames."""
    held, k = None, 0
    for frame, time_s in frames:
        while held is not None and k < len(wanted_s) and wanted_s[k] + STAMP_TOLERANCE_S < time_s:
            yield held
            k += 1
        if k == len(wanted_s):
            return
        held = frame
    for _ in range(k, len(wanted_s)):
        yield held


def central_square(frame, size, scaler):
    """The centre of a picture as (size, size, 3) uint8 RGB: a square of 224 / 256 of its short side, scaled (bilinear).

    AVID-CMA scales the short side to 256 pixels and crops 224 then. To crop first, at whole pixels of the picture that
    have their own colour, shifts the result by a third of a pixel at most at 720 lines and takes a third of the time.
    """
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        frame = frame.reformat(format="yuv420p")
    side = max(2, round(min(frame.width, frame.height) * CROP_SHARE / 2) * 2)
    x, y = (round((length - side) / 4) * 2 for length in (frame.width, frame.height))
    square = av.VideoFrame(side, side, frame.format.name)
    square.colorspace, square.color_range = frame.colorspace, frame.color_range
    for source, target, scale in zip(frame.planes, square.planes, (1, 2, 2), strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)
        into = np.frombuffer(target, np.uint8).reshape(target.height, target.line_size)
        into[:, : side // scale] = rows[y // scale : (y + side) // scale, x // scale : (x + side) // scale]
    # Without full chroma, FFmpeg takes short cuts that shift colours, and other ones for other sizes.
    bilinear = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT
    return scaler.reformat(square, size, size, "rgb24", interpolation=bilinear, threads=1).to_ndarray()


# ---- Recordings to a store of features -----------------------------------------------------


def read_turn(manifest, turn, backbone, settings):
    """The Clips of a turn, or the Problem for which it is left out."""
    audio, video = (manifest.path(name) if name else None for name in (turn.audio, turn.video))
    try:
        return read_clips(
            audio, video, settings.n_clips, settings.clip_s, backbone.rate_hz, backbone.fps, backbone.size
        )
    except MediaError as error:
        return Problem(turn.utterance_id, str(error.path), error.reason, error.remedy)
    except Exception as error:  # whatever a decoder makes of one damaged file must not end the run
        return Problem(
            turn.utterance_id,
            str(video or audio),
            f"cannot be read ({type(error).__name__}: {error})",
            "download it again, or leave it out of the corpus",
        )


def read_turns(manifest, turns, backbone, settings):
    """Yield (turn, Clips or Problem) of all turns in order; at most AHEAD * workers recordings wait in memory."""
    if not settings.workers:
        yield from ((turn, read_turn(manifest, turn, backbone, settings)) for turn in turns)
        return
    waiting = deque()
    # Threads, not processes: FFmpeg decodes and scales without Python's lock, and nothing is copied between processes.
    with ThreadPoolExecutor(settings.workers) as pool:
        try:
            for turn in turns:
                waiting.append((turn, pool.submit(read_turn, manifest, turn, backbone, settings)))
                if len(waiting) >= AHEAD * settings.workers:
                    turn, clips = waiting.popleft()
                    yield turn, clips.result()
            while waiting:
                turn, clips = waiting.popleft()
                yield turn, clips.result()
        finally:
            for _, clips in waiting:
                clips.cancel()


def read_groups(manifest, groups, backbone, settings):
    """Yield for each group of turns the list of their (turn, Clips or Problem)."""
    read = read_turns(manifest, [turn for group in groups for turn in group], backbone, settings)
    for group in groups:
        yield list(islice(read, len(group)))


def group_turns(turns, settings):
    """Lists of turns whose clips fill a batch of the backbone; recordings with more clips than that stay whole."""
    size = max(1, settings.batch_clips // settings.n_clips)
    return [turns[start : start + size] for start in range(0, len(turns), size)]


def clip_batches(manifest, turns, backbone, settings):
    """Yield (audio (B, S), video (B, F, H, W, 3)) of clips without padding, to measure statistics on training clips.

    The two come from the same recordings, but a clip may lack one of them. None stands for a modality that the whole
    batch lacks. Recordings with a problem are passed over.
    """
    whole_s = settings.clip_s - PAD_TOLERANCE_S
    for group in read_groups(manifest, group_turns(turns, settings), backbone, settings):
        found = [clips for _, clips in group if isinstance(clips, Clips)]
        audio = [clips.audio[clips.audio_s > whole_s] for clips in found]
        video = [clips.video[clips.video_s > whole_s] for clips in found]
        if any(map(len, audio + video)):
            yield tuple(np.concatenate(x) if any(map(len, x)) else None for x in (audio, video))


def extract(manifest, turns, backbone, folder, identity, settings):
    """Write the features of all clips of some recordings into a store (Section 3.2), or go on with one.

    turns      those of the manifest to take, each with audio, video or both
    backbone   has rate_hz, fps, size, dim, and features(audio (B, S) or None, video (B', F, H, W, 3) uint8 or None) ->
               audio (B, D), video (B', D), None for None; such as av_backbones.Backbone
    folder     where the store lies; what it holds of another identity is replaced
    identity   JSON-ready dict: what the features depend on besides the recordings and the clips, as a hash of weights
    settings   Extraction
    Returns (Store, dict of figures). The store has N rows for each recording: "audio" and "video" (N, D) float32,
    zeros where it lacks the modality, and "audio_s", "video_s" (N,), the seconds of each clip that are not padding. A
    run that was killed and is started again leaves the same bytes as one that was not. Recordings with a problem are
    named in problems.csv and left out; they are tried again until a run has got to its end.
    Raises UserError if the disk is too small, too many recordings have problems, or features are not finite.
    """
    folder = Path(folder)
    names = "\n".join(f"{turn.utterance_id}\t{turn.audio}\t{turn.video}" for turn in turns)
    meta = {
        **identity,
        "corpus": manifest.corpus,
        "recordings": sha256(names.encode()).hexdigest()[:16],
        "n_clips": settings.n_clips,
        "clip_s": settings.clip_s,
        **{name: getattr(backbone, name) for name in ("rate_hz", "fps", "size", "dim")},
    }
    there = (folder / "meta.json").exists()
    writer = StoreWriter(folder, meta)
    problems = read_problems(folder)
    if writer.complete and writer.done:
        print(
            f"{folder}: already extracted, {len(writer.done):,} recordings"
            + (
                f"; {len(problems):,} left out, see problems.csv; delete the folder to try them again"
                if problems
                else ""
            )
        )
    else:
        if there and not writer.done:
            print(f"{folder}: holds nothing of these recordings, clips and weights; starting over")
        figures = extract_missing(manifest, turns, backbone, writer, problems, settings)
        check_problems(folder, turns, problems, settings.max_problem_share)
        write_json(folder / "extraction.json", figures)
    store = writer.finish()
    counts = {"left_out": len(problems), **padding(store, settings)}
    print_padding(counts, settings)
    return store, {**read_json(folder / "extraction.json"), **counts}


def extract_missing(manifest, turns, backbone, writer, problems, settings):
    """Add to the store what it lacks, keeping `problems` {utterance_id: Problem} up to date; returns figures."""
    groups = missing_groups(group_turns(turns, settings), writer.done, problems)
    left = [turn for group in groups for turn in group]
    announce(writer, left, backbone, settings)
    n_done, recorded_s, backbone_s, started = len(writer.done), 0.0, 0.0, time.monotonic()
    with tqdm(total=len(left), desc="extracting", unit="recording", disable=None, leave=False) as bar:
        for group in read_groups(manifest, groups, backbone, settings):
            note_problems(writer.folder, group, problems)
            if len(problems) > max(MANY_PROBLEMS, settings.max_problem_share * len(turns)):
                break
            found = [(turn.utterance_id, clips) for turn, clips in group if isinstance(clips, Clips)]
            if found:
                before = time.monotonic()
                arrays = features_of(found, backbone)
                backbone_s += time.monotonic() - before
                add_new(writer, [utterance_id for utterance_id, _ in found], arrays)
                recorded_s += float(np.maximum(arrays["audio_s"], arrays["video_s"]).sum())
            bar.update(len(group))
            bar.set_postfix_str(f"{recorded_s / (time.monotonic() - started):,.1f} s of recording per s")
    seconds, n_new = time.monotonic() - started, len(writer.done) - n_done
    if n_new:
        print(
            f"extracted {n_new:,} recordings in {seconds:.1f} s: {recorded_s / seconds:,.1f} s of recording per s, "
            f"{n_new * settings.n_clips / seconds:,.1f} clips per s; the backbone took {backbone_s / seconds:.0%} of "
            "the time",
            flush=True,
        )
    return {"new": n_new, "recorded_s": recorded_s, "seconds": seconds, "backbone_s": backbone_s}


def missing_groups(groups, done, problems):
    """What is left of the groups: whole ones, since sums are rounded otherwise in other batches.

    Of a group from which only recordings with a problem are missing, these alone are tried again.
    """
    left = []
    for group in groups:
        missing = [turn for turn in group if turn.utterance_id not in done]
        if missing:
            left.append(missing if all(turn.utterance_id in problems for turn in missing) else group)
    return left


def announce(writer, turns, backbone, settings):
    """Print what there is to do and what it takes; UserError if the disk is too small."""
    need = len(turns) * (settings.n_clips * (2 * 4 * backbone.dim + 2 * 4) + 32)
    free = shutil.disk_usage(writer.folder).free
    one = settings.n_clips * max(1, round(settings.clip_s * backbone.fps)) * backbone.size**2 * 3
    # Decoded ahead, collected for a batch, and the batch itself.
    waiting = (AHEAD * settings.workers + 2 * max(1, settings.batch_clips // settings.n_clips)) * one
    print(
        f"extracting {len(turns):,} recordings x {settings.n_clips} clips of {settings.clip_s:g} s into "
        f"{writer.folder}: {need / 1e9:.3f} GB"
        + (f", {len(writer.done):,} are there" if writer.done else "")
        + f"; {free / 1e9:.1f} GB free; up to {waiting / 1e9:.2f} GB of memory for pictures",
        flush=True,
    )
    if need > free:
        raise UserError(
            f"{writer.folder}: needs {need / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free; choose "
            "another DATA_ROOT"
        )


def features_of(found, backbone):
    """What the store keeps of some recordings (utterance_id, Clips): {name: (recordings, N, ...)}."""
    n_clips, arrays = len(found[0][1].audio_s), {}
    modalities = ("audio", "video")
    has = {m: np.array([getattr(clips, f"has_{m}") for _, clips in found]) for m in modalities}
    inputs = {m: [getattr(clips, m) for _, clips in found if getattr(clips, f"has_{m}")] for m in modalities}
    batch = [torch.from_numpy(np.concatenate(inputs[m])) if inputs[m] else None for m in modalities]
    for m, output in zip(modalities, backbone.features(*batch)):
        arrays[m] = np.zeros((len(found), n_clips, backbone.dim), np.float32)
        if output is not None:
            arrays[m][has[m]] = output.float().cpu().numpy().reshape(-1, n_clips, backbone.dim)
        arrays[f"{m}_s"] = np.stack([getattr(clips, f"{m}_s") for _, clips in found])
        bad = ~np.isfinite(arrays[m]).all((1, 2))
        if bad.any():
            raise UserError(
                f"{found[bad.argmax()][0]}: its {m} features hold NaN or infinity; check the backbone's "
                "checkpoint and PRECISION, or leave the recording out"
            )
    return arrays


def add_new(writer, ids, arrays):
    """Append those recordings to the store that it lacks; arrays as `features_of` gives them."""
    new = [k for k, utterance_id in enumerate(ids) if utterance_id not in writer.done]
    if new:
        rows = {name: np.concatenate(array[new]) for name, array in arrays.items()}  # (recordings * N, ...)
        writer.add([ids[k] for k in new], rows, [arrays["audio_s"].shape[1]] * len(new))


# ---- What is amiss -------------------------------------------------------------------------

PROBLEM_COLUMNS = tuple(field.name for field in fields(Problem))


def read_problems(folder):
    """{utterance_id: Problem} as an earlier run left them, {} where it left none."""
    path = folder / "problems.csv"
    return {row["utterance_id"]: Problem(**row) for row in read_csv(path)} if path.exists() else {}


def note_problems(folder, group, problems):
    """Take what has become of a group of turns into `problems`, and write it down before their features are."""
    before = dict(problems)
    for turn, found in group:
        problems.pop(turn.utterance_id, None)
        if isinstance(found, Problem):
            problems[turn.utterance_id] = found
    if problems != before:
        write_csv(folder / "problems.csv", map(asdict, problems.values()), PROBLEM_COLUMNS)


def check_problems(folder, turns, problems, most):
    """Say how many recordings are left out; UserError for more than a share `most` of them."""
    if not problems:
        return
    share, path, first = len(problems) / len(turns), folder / "problems.csv", next(iter(problems.values()))
    if share > most or len(problems) == len(turns):
        raise UserError(
            f"{path}: {len(problems):,} of {len(turns):,} recordings cannot be used, the first one: "
            f"{first.file}: {first.problem}; mend them and run again (what is extracted is kept), or raise "
            f"MAX_PROBLEM_SHARE ({most:g})"
        )
    kinds = Counter(
        re.split("[;:(]", problem.problem)[0].strip() for problem in problems.values()
    ).most_common(4)
    print(
        f"left out: {len(problems):,} of {len(turns):,} recordings ({share:.1%}): "
        + ", ".join(f"{count:,} x {kind}" for kind, count in kinds)
        + f"; see {path}"
    )


def padding(store, settings):
    """Counts of recordings: shorter than their clips, without a modality; of clips: padded, all or in part."""
    seconds = {
        m: store[f"{m}_s"].reshape(-1, settings.n_clips) for m in ("audio", "video")
    }  # (recordings, N)
    whole_s = settings.clip_s - PAD_TOLERANCE_S
    counts = {
        "recordings": len(store.ids),
        "shorter": int((np.maximum(*seconds.values()) < whole_s).any(1).sum()),
    }
    for m, real_s in seconds.items():
        has = real_s.any(1)
        counts[f"without_{m}"] = int((~has).sum())
        counts[f"padded_{m}"] = int((real_s[has] == 0).sum())
        counts[f"partly_padded_{m}"] = int(((real_s > 0) & (real_s < whole_s)).sum())
    return counts


def print_padding(counts, settings):
    """Print what `padding` counts."""
    if counts["shorter"]:
        print(
            f"shorter than {settings.n_clips} x {settings.clip_s:g} s: {counts['shorter']:,} of "
            f"{counts['recordings']:,} recordings; silence in all of {counts['padded_audio']:,} clips and in part of "
            f"{counts['partly_padded_audio']:,}, the last frame in all of {counts['padded_video']:,} and in part of "
            f"{counts['partly_padded_video']:,}"
        )
    for m in ("audio", "video"):
        if counts[f"without_{m}"]:
            print(
                f"without {m}: {counts[f'without_{m}']:,} of {counts['recordings']:,} recordings; its features are 0"
            )


# ---- Reading a store -----------------------------------------------------------------------


@dataclass
class Features:
    """Features of R recordings: audio, video (R, N, D) float32; audio_s, video_s (R, N), seconds without padding."""

    turns: list
    audio: np.ndarray
    video: np.ndarray
    audio_s: np.ndarray
    video_s: np.ndarray

    @property
    def has_audio(self):
        """(R,) bool, False = the recording has none at all."""
        return self.audio_s.any(1)

    @property
    def has_video(self):
        return self.video_s.any(1)


def read_features(store, turns):
    """Features of those of the turns that the store has, in their order."""
    kept = [turn for turn in turns if turn.utterance_id in store.slices]
    first = np.array([store.slices[turn.utterance_id].start for turn in kept], np.int64)
    rows = first[:, None] + np.arange(store.meta["n_clips"])  # (R, N)
    return Features(kept, *(store[name][rows] for name in ("audio", "video", "audio_s", "video_s")))
