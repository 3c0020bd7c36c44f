"""Speech as codes: audio decoded and tokenised once, resumably, into one memory-mapped array of code indices.

Sadok et al. 2023 pretrain on the indices of a VQ-VAE's codebook, 64 per frame of 20 ms (Sec. 2.1). These take 3.2 kB
per second, so that 1,000 hours of speech are 11.5 GB: they are computed once, and pretraining never touches audio.
A store of codes is a folder:

    codes.u8        (N, 64) uint8, all frames of all clips, one clip after the other
    clips.csv       id,first_frame,frames,seconds,problem,remedy: one line per clip; 0 frames = it was left out
    problems.csv    the clips left out, with their files and what to do
    meta.json       identity and counts; "complete" is true when the last clip is in

N frames, T frames of a clip, B batch.
"""

import csv
import hashlib
import io
import json
import mmap
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.corpora.release import Problem
from common.errors import UserError
from common.files import free_bytes, make_folder, read_json, write_csv, write_json, writing
from common.media import AUDIO_FILES, MediaError, probe, read_audio

COLUMNS = ("id", "first_frame", "frames", "seconds", "problem", "remedy")
HEADER = ",".join(COLUMNS) + "\n"
COUNT_ALL = 20_000  # up to this many clips the length of each is read before tokenising starts ...
COUNT_SAMPLE = 2_000  # ... of more clips, that of so many, drawn at random
COUNT_THREADS = 16  # reading headers waits for the disk, not for a processor
PIECE_FRAMES = (
    6_000  # a longer clip (2 minutes) is never held as a whole, but read in pieces of so many frames
)
SLICE_FRAMES = 1_024  # of a batch, for one thread of a CPU
PREFETCH = 4  # clips that each worker reads ahead
MANY_PROBLEMS = 100  # with fewer, all clips are tried before a run is stopped for its problems


@dataclass
class Tokenising:
    """How clips become codes; the first six are part of a store's identity, the others concern the machine."""

    rate_hz: int
    hop: int  # samples between frames
    window: int  # samples under the window of a frame; shorter clips are left out
    codes_per_frame: int
    min_frames: int  # clips with fewer frames are left out
    silence_peak: float  # clips without a sample above this are left out, full scale = 1
    spectrogram: Callable  # samples (n,) -> power (1 + n // hop, bins), centred; of a module, for the workers
    max_problem_share: float  # stop where more than this share of the clips has to be left out
    batch_frames: int  # frames that the encoder gets at a time
    workers: int  # processes that decode and transform; 0 = this one
    device: str = "cpu"  # of the encoder

    def identity(self):
        """What the codes depend on, besides the clips and the encoder."""
        named = ("rate_hz", "hop", "window", "codes_per_frame", "min_frames", "silence_peak")
        return {name: getattr(self, name) for name in named}


@dataclass
class Clip:
    """One clip on its way to codes; `power` (T, bins) is None where it is left out or to be read in pieces."""

    id: str
    path: str
    n_frames: int = 0
    seconds: float = 0.0
    problem: str = ""
    remedy: str = ""
    peak: float = 0.0
    power: torch.Tensor | None = None


def tokenise(clips, encode, folder, identity, settings):
    """Tokenise clips into a store of codes, or go on with one that was interrupted; a finished one is only opened.

    For one process: where several train, the others wait.

    clips     list of (clip id, audio path), ids without line breaks, each once; the codes lie in this order
    encode    power (N, bins) float32 on settings.device -> codes (N, codes_per_frame) uint8, each frame by itself
    folder    where the store lies; what it holds of another identity is replaced
    identity  JSON-ready dict: what the codes depend on besides the ids of the clips and the settings, such as a
              hash of the VQ-VAE's weights
    settings  Tokenising
    Returns Codes. A run killed at any moment and started again leaves the same bytes as one that was not; clips
    that had a problem are tried again first.
    Raises UserError if the disk is too small, before anything is written, or if too many clips have problems.
    """
    folder, clips = Path(folder), [(clip_id, str(path)) for clip_id, path in clips]
    _check_ids(clips, folder)
    ids = hashlib.sha256("\n".join(clip_id for clip_id, _ in clips).encode()).hexdigest()
    identity = json.loads(json.dumps({**identity, **settings.identity(), "clip_ids": ids}, default=str))
    meta = _found_meta(folder)
    if meta.get("identity") == identity and meta.get("complete"):
        codes = Codes(folder)
        print(
            f"{folder}: already tokenised, {len(codes):,} clips, {codes.hours:.2f} h"
            + (
                f"; {meta['left_out']:,} left out, see problems.csv; delete the folder to try them again"
                if meta["left_out"]
                else ""
            )
        )
        return codes
    kept = meta.get("identity") == identity
    _announce(clips, folder, settings, kept)
    if meta and not kept:
        print(f"{folder}: was made from other clips, weights or settings; starting over")
    writer = _Writer(folder, identity, settings, kept)
    _run(clips, encode, writer, settings)
    writer.write_problems(clips)
    writer.check_problems(clips)
    writer.finish()
    return Codes(folder)


def _check_ids(clips, folder):
    if not clips:
        raise UserError(f"{folder}: there are no clips to tokenise; check the corpus and its selection")
    counts = Counter(clip_id for clip_id, _ in clips)
    twice, times = counts.most_common(1)[0]
    if times > 1:
        raise UserError(f"{twice}: {times} clips have this id; ids must differ")
    broken = next((clip_id for clip_id in counts if not clip_id or "\n" in clip_id or "\r" in clip_id), None)
    if broken is not None:
        raise UserError(f"{broken!r}: not an id of a clip; an id is one line and not empty")


def _found_meta(folder):
    """What meta.json says, {} where there is none or it is damaged."""
    try:
        return read_json(folder / "meta.json")
    except UserError:
        return {}


# ---- Counting ------------------------------------------------------------------------------


def header_seconds(path):
    """Length of a recording as its header states it; 0 for one that cannot be opened."""
    try:
        if Path(path).suffix.lower() in AUDIO_FILES:
            return soundfile.info(path).duration
        return probe(path).duration_s
    except (MediaError, soundfile.SoundFileError, OSError):
        return 0.0


def count_seconds(clips):
    """(seconds of audio in all clips, number of headers read for that): a random sample of many clips will do."""
    paths = [path for _, path in clips]
    if len(paths) > COUNT_ALL:
        sample = np.random.default_rng(0).choice(len(paths), COUNT_SAMPLE, replace=False)
        paths = [paths[i] for i in sample]
    with ThreadPoolExecutor(COUNT_THREADS) as pool:
        found = pool.map(header_seconds, paths)
        seconds = list(tqdm(found, total=len(paths), desc="counting", unit="clip", disable=None, leave=False))
    return sum(seconds) / len(paths) * len(clips), len(paths)


def _announce(clips, folder, settings, kept):
    """Print what there is to do and what it takes; UserError if the disk is too small."""
    seconds, n_counted = count_seconds(clips)
    n_frames = int(seconds * settings.rate_hz / settings.hop) + len(clips)
    need = n_frames * settings.codes_per_frame + sum(len(clip_id) + 32 for clip_id, _ in clips)
    there = sum(
        path.stat().st_size for path in (folder / "codes.u8", folder / "clips.csv") if kept and path.exists()
    )
    free = free_bytes(folder)
    print(
        f"tokenising {len(clips):,} clips into {folder.name}: {seconds / 3600:,.2f} h of audio"
        + (f" (estimated from {n_counted:,} of them)" if n_counted < len(clips) else "")
        + f", {n_frames:,} frames, {need / 1e9:.3f} GB"
        + (f", of which {there / 1e9:.3f} GB are there" if there else "")
        + f"; {free / 1e9:.1f} GB free",
        flush=True,
    )
    if need - there > free:
        raise UserError(
            f"{folder}: needs {(need - there) / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free; choose "
            "another DATA_ROOT or fewer clips"
        )


# ---- Reading one clip ----------------------------------------------------------------------


def read_clip(clip_id, path, settings):
    """A clip decoded, normalised by its peak and transformed, or the problem for which it is left out."""
    clip = Clip(clip_id, path)
    try:
        n_long = _long_samples(path, settings)
        if n_long:
            hop, spans = settings.hop, _spans(path, 1 + n_long // settings.hop, settings)
            clip.peak = max(
                _peak(samples[before * hop : (before + count) * hop]) for samples, before, count in spans
            )
            n_samples = n_long
        else:
            samples = read_audio(path, rate_hz=settings.rate_hz)  # (n,)
            clip.peak, n_samples = _peak(samples), len(samples)
    except MediaError as error:
        clip.problem, clip.remedy = error.reason, error.remedy
        return clip
    except (
        Exception
    ) as error:  # whatever a decoder makes of one damaged file in a million must not end the run
        clip.problem = f"cannot be read ({type(error).__name__}: {error})"
        clip.remedy = "download it again, or leave it out of the list of clips"
        return clip
    clip.seconds = n_samples / settings.rate_hz
    n_frames = 1 + n_samples // settings.hop
    if n_samples < settings.window or n_frames < settings.min_frames:
        shortest = max(settings.window, (settings.min_frames - 1) * settings.hop)
        clip.problem = f"too short: {clip.seconds:.3f} s, less than {shortest / settings.rate_hz:.3f} s"
    elif clip.peak <= settings.silence_peak:
        clip.problem = f"silence: no sample above {settings.silence_peak:g}"  # no emotion, and log of zero
    else:
        clip.n_frames = n_frames
        if n_frames <= PIECE_FRAMES:
            clip.power = settings.spectrogram(torch.from_numpy(samples / clip.peak))  # (T, bins)
    clip.remedy = "leave it out of the list of clips, or ignore" if clip.problem else ""
    return clip


def _peak(samples):
    return float(max(samples.max(initial=0.0), -samples.min(initial=0.0)))


def _long_samples(path, settings):
    """Samples at rate_hz of an audio file that is too long to be read whole; 0 for any other."""
    if Path(path).suffix.lower() not in AUDIO_FILES:
        return 0
    try:
        header = soundfile.info(path)
    except (soundfile.SoundFileError, OSError):
        return 0  # read_audio says what is wrong with it
    n_samples = -(-header.frames * settings.rate_hz // header.samplerate)
    return n_samples if n_samples > PIECE_FRAMES * settings.hop else 0


def _spans(path, n_frames, settings):
    """Yield (samples, before, count): a long recording in pieces of `count` frames, after `before` frames of margin.

    The margin on both sides is what lies under the windows of the outer frames, and a frame more for the filter of the
    resampler, so that a piece is what it would be within the whole recording.
    """
    rate_hz, hop = settings.rate_hz, settings.hop
    # A container is decoded from its start at each read: once, into memory.
    whole = None if Path(path).suffix.lower() in AUDIO_FILES else read_audio(path, rate_hz=rate_hz)
    margin = -(-settings.window // (2 * hop)) + 1
    for first in range(0, n_frames, PIECE_FRAMES):
        count, before = min(PIECE_FRAMES, n_frames - first), min(first, margin)
        start, stop = (first - before) * hop, (first + count + margin) * hop
        samples = (
            read_audio(path, start / rate_hz, stop / rate_hz, rate_hz) if whole is None else whole[start:stop]
        )
        yield samples, before, count


def power_pieces(clip, settings):
    """Yield the power of a clip (<= PIECE_FRAMES, bins) in pieces that join to what the whole clip would give."""
    if clip.power is not None:
        yield clip.power
        return
    for samples, before, count in _spans(clip.path, clip.n_frames, settings):
        power = settings.spectrogram(torch.from_numpy(samples / clip.peak))
        yield power[before : before + count]


class _Reading:
    """Dataset whose keys are (clip id, path): a worker gets its clips one by one, not a list of a million."""

    def __init__(self, settings):
        self.settings = settings

    def __getitem__(self, key):
        return read_clip(*key, self.settings)


def _as_is(clip):
    return clip


def _read_all(clips, settings):
    """Yield the Clip of each of `clips` in their order, read by the workers."""
    # Processes are spawned: one forked from a process that runs threads or a GPU can hang.
    how = {"multiprocessing_context": "spawn", "prefetch_factor": PREFETCH} if settings.workers else {}
    loader = DataLoader(
        _Reading(settings),
        sampler=clips,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=settings.workers,
        **how,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "WORKERS: a process that reads audio was killed, perhaps for lack of memory; choose fewer and "
            "run again, what is tokenised is kept"
        ) from error


# ---- Encoding and writing ------------------------------------------------------------------


def fills_group(held, n_frames, batch_frames):
    """Whether a clip of n_frames starts a new group after one that holds some frames."""
    return held > 0 and held + n_frames > batch_frames


def group_clips(clips, batch_frames):
    """Yield lists of consecutive clips that fill a batch of the encoder together; a longer clip is alone.

    The groups depend on the lengths of the clips alone. After a kill a run goes on at the start of a group, so that
    the encoder gets the same batches as without the kill: in other ones its sums may be rounded otherwise.
    """
    group, held = [], 0
    for clip in clips:
        if fills_group(held, clip.n_frames, batch_frames):
            yield group
            group, held = [], 0
        group.append(clip)
        held += clip.n_frames
    if group:
        yield group


def encode_group(group, encode, settings):
    """Codes (N, codes_per_frame) of the clips of a group, at most batch_frames at a time."""
    used = [clip for clip in group if clip.n_frames]
    n_frames = sum(clip.n_frames for clip in used)
    if len(used) > 1 and all(clip.power is not None for clip in used):
        pieces = [torch.cat([clip.power for clip in used])]
    else:
        pieces = (piece for clip in used for piece in power_pieces(clip, settings))
    codes = [np.zeros((0, settings.codes_per_frame), np.uint8)]
    with torch.inference_mode():
        codes += [
            encode(batch.to(settings.device)).cpu().numpy()
            for piece in pieces
            for batch in piece.split(settings.batch_frames)
        ]
    codes = np.concatenate(codes)
    if codes.dtype != np.uint8 or len(codes) != n_frames:
        raise ValueError(f"encode gave {codes.dtype} {codes.shape} for {n_frames} frames")
    return codes


@contextmanager
def on_all_cores(encode, device):
    """`encode` for a CPU: slices of a batch side by side, each on one thread; on another device as it is.

    The encoder's layers are so small that threads which share one of them mostly wait for each other: on two cores that
    other programs use too, two threads in one layer took five times as long as one. The slices are the same for any
    number of threads, and so are their sums.
    """
    if torch.device(device).type != "cpu":
        yield encode
        return

    def encode_slice(power):
        with torch.inference_mode():  # holds for one thread
            return encode(power)

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            yield lambda power: torch.cat(list(pool.map(encode_slice, power.split(SLICE_FRAMES))))
    finally:
        torch.set_num_threads(n_threads)


def _until_hopeless(clips, most):
    """The same clips, up to where more than `most` of them have a problem."""
    n_problems = 0
    for clip in clips:
        yield clip
        n_problems += bool(clip.problem)
        if n_problems > most:
            return


def _run(clips, encode, writer, settings):
    """Tokenise what the store does not hold yet."""
    todo = [clip for clip in clips if clip[0] in writer.problems]
    todo += [clip for clip in clips if clip[0] not in writer.done and clip[0] not in writer.problems]
    if writer.done:
        print(f"going on: {len(writer.done):,} clips are tokenised, {len(todo):,} are left")
    read = _until_hopeless(
        _read_all(todo, settings), max(MANY_PROBLEMS, settings.max_problem_share * len(clips))
    )
    seconds, started = 0.0, time.monotonic()
    with (
        on_all_cores(encode, settings.device) as encode_batch,
        tqdm(total=len(todo), desc="tokenising", unit="clip", disable=None, leave=False) as bar,
    ):
        for group in group_clips(read, settings.batch_frames):
            try:
                codes = encode_group(group, encode_batch, settings)
            except MediaError as error:  # a long file that could be read the first time
                raise UserError(f"{error}; the file has changed, run again") from error
            writer.add(group, codes)
            seconds += sum(clip.seconds for clip in group)
            bar.update(len(group))
            rate = seconds / (time.monotonic() - started)
            bar.set_postfix_str(f"{seconds / 3600:.2f} h, {rate:,.0f} s of audio per s")


class _Writer:
    """Appends groups of clips to a store; the index is written after the codes and decides what counts."""

    def __init__(self, folder, identity, settings, kept):
        self.folder, self.identity, self.settings = make_folder(folder), identity, settings
        self.codes_path, self.index_path = self.folder / "codes.u8", self.folder / "clips.csv"
        self.n_frames, self.done, self.problems = 0, set(), {}  # problems: id -> (problem, remedy)
        if kept and self.codes_path.exists() and self.index_path.exists() and self._has_header():
            self._cut_back()
        else:
            for name in ("meta.json", "codes.u8", "clips.csv", "problems.csv"):
                (self.folder / name).unlink(missing_ok=True)
            write_json(self.folder / "meta.json", {"identity": identity, "complete": False})
            with writing(self.folder):
                self.index_path.write_text(HEADER, encoding="utf-8")
                self.codes_path.touch()

    def _has_header(self):
        with open(self.index_path, "rb") as file:
            return file.read(len(HEADER)) == HEADER.encode()

    def _cut_back(self):
        """Cut both files back to the start of the last group, of which a part may be missing."""
        per_frame, limit = self.settings.codes_per_frame, self.settings.batch_frames
        n_there = self.codes_path.stat().st_size // per_frame
        end, total, held, group = len(HEADER), 0, 0, []
        for start, row in _index_rows(self.index_path):
            frames = int(row[2])
            if int(row[1]) != total or total + frames > n_there:
                break
            if fills_group(held, frames, limit):
                for clip in group:
                    self._count(*clip)
                end, self.n_frames, held, group = start, total, 0, []
            group.append((row[0], frames, row[4], row[5]))
            held, total = held + frames, total + frames
        os.truncate(self.index_path, end)
        os.truncate(self.codes_path, self.n_frames * per_frame)

    def _count(self, clip_id, n_frames, problem, remedy):
        if n_frames:
            self.done.add(clip_id)
            self.problems.pop(clip_id, None)
        else:
            self.problems[clip_id] = (problem, remedy)

    def add(self, group, codes):
        """Append the codes (N, codes_per_frame) of a group of clips, then its lines of the index."""
        with writing(self.codes_path), open(self.codes_path, "ab") as file:
            file.write(codes.tobytes())
        lines = io.StringIO()
        write = csv.writer(lines, lineterminator="\n").writerow
        for clip in group:
            problem, remedy = (" ".join(text.split()) for text in (clip.problem, clip.remedy))
            if clip.n_frames or clip.id not in self.problems:  # one that failed again has its line
                write((clip.id, self.n_frames, clip.n_frames, f"{clip.seconds:.4f}", problem, remedy))
            self.n_frames += clip.n_frames
            self._count(clip.id, clip.n_frames, problem, remedy)
        with writing(self.index_path), open(self.index_path, "ab") as file:
            file.write(lines.getvalue().encode())

    def write_problems(self, clips):
        """Write problems.csv in the order of the clips and print a summary."""
        path = self.folder / "problems.csv"
        rows = [
            Problem(clip_id, file, *self.problems[clip_id])
            for clip_id, file in clips
            if clip_id in self.problems
        ]
        write_csv(path, map(asdict, rows), ("utterance_id", "file", "problem", "remedy"))
        if rows:
            kinds = Counter(re.split("[;:(]", row.problem)[0].strip() for row in rows).most_common(4)
            print(
                f"left out: {len(rows):,} of {len(clips):,} clips ({len(rows) / len(clips):.1%}): "
                + ", ".join(f"{count:,} x {kind}" for kind, count in kinds)
                + f"; see {path}"
            )

    def check_problems(self, clips):
        """UserError if too many clips had to be left out; what is tokenised stays."""
        share, most = len(self.problems) / len(clips), self.settings.max_problem_share
        if share > most or not self.n_frames:
            clip_id, file = next(clip for clip in clips if clip[0] in self.problems)
            raise UserError(
                f"{self.folder / 'problems.csv'}: {len(self.problems):,} of {len(clips):,} clips cannot be "
                f"used, the first one: {file}: {self.problems[clip_id][0]}; mend them and run again (what "
                f"is tokenised is kept), or raise MAX_PROBLEM_SHARE ({most:g})"
            )

    def finish(self):
        """Mark the store complete."""
        framing = self.settings
        write_json(
            self.folder / "meta.json",
            {
                "identity": self.identity,
                "complete": True,
                "clips": len(self.done),
                "left_out": len(self.problems),
                "frames": self.n_frames,
                "codes_per_frame": framing.codes_per_frame,
                "hours": self.n_frames * framing.hop / framing.rate_hz / 3600,
                "made_with": {
                    "batch_frames": framing.batch_frames,
                    "device": str(framing.device),
                    "torch": torch.__version__,
                },
            },
        )


def _index_rows(path):
    """Yield (byte at which it starts, row) for the whole lines of clips.csv, up to one that is damaged."""
    with open(path, "rb") as file:
        start = len(next(file, b""))
        for line in file:
            row = line.decode(errors="replace").rstrip("\n")
            row = next(csv.reader([row]), []) if '"' in row else row.split(",")
            if not line.endswith(b"\n") or len(row) != len(COLUMNS) or not (row[1] + row[2]).isdecimal():
                return
            yield start, row
            start += len(line)


# ---- Reading codes -------------------------------------------------------------------------


class Codes:
    """A finished store, memory-mapped and read-only; it takes about 100 bytes of memory per clip.

    ids (n,) strings, first (n,) and n_frames (n,): clip i starts at frame first[i] of `data` (N, 64) uint8.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.meta = read_json(self.folder / "meta.json")
        if not self.meta.get("complete"):
            raise UserError(
                f"{self.folder}: unfinished; run the script that writes it again, it goes on where it stopped"
            )
        n, self.hours = self.meta["clips"], self.meta["hours"]
        self.ids = np.empty(n, np.dtypes.StringDType())  # one block of text instead of a million objects
        self.first, self.n_frames = np.empty(n, np.int64), np.empty(n, np.int32)
        self._read_index()
        shape = (self.meta["frames"], self.meta["codes_per_frame"])
        path = self.folder / "codes.u8"
        if not path.exists() or path.stat().st_size != shape[0] * shape[1]:
            raise UserError(
                f"{path}: not {shape[0]:,} frames of {shape[1]} bytes; delete the folder and tokenise again"
            )
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data = np.frombuffer(self._map, np.uint8).reshape(shape)
        if hasattr(mmap, "MADV_RANDOM"):  # else megabytes around each crop may be read from the disk with it
            self._map.madvise(mmap.MADV_RANDOM)
        self._rows = None

    def _read_index(self):
        row = end = 0
        for _, (clip_id, first, frames, *_) in _index_rows(self.folder / "clips.csv"):
            if frames != "0":
                if row < len(self.ids):
                    self.ids[row], self.first[row], self.n_frames[row] = clip_id, int(first), int(frames)
                row, end = row + 1, int(first) + int(frames)
        if row != len(self.ids) or end != self.meta["frames"]:
            raise UserError(
                f"{self.folder / 'clips.csv'}: {row:,} clips, meta.json says {len(self.ids):,}; delete the "
                "folder and tokenise again"
            )

    def __reduce__(self):
        return Codes, (self.folder,)  # a worker opens the files; pickled, the codes would be copied

    def __len__(self):
        return len(self.ids)

    def clip(self, i):
        """Codes of clip i, (T, 64) uint8, read from the disk as they are used."""
        return self.data[self.first[i] : self.first[i] + self.n_frames[i]]

    def fetch(self, first, n_frames):
        """Have the system read n_frames from each of the frames `first` on, all at once instead of one by one."""
        if hasattr(mmap, "MADV_WILLNEED"):
            per_frame = self.data.shape[1]
            for start in (first * per_frame).tolist():
                page = start - start % mmap.PAGESIZE
                self._map.madvise(mmap.MADV_WILLNEED, page, start + n_frames * per_frame - page)

    def row_of(self, clip_id):
        """The row of a clip; KeyError if it is not in the store, for example because it was left out."""
        if self._rows is None:
            self._rows = {str(name): row for row, name in enumerate(self.ids)}
        return self._rows[clip_id]

    def crop(self, i, n_frames, start):
        """Frames start ... start + n_frames of clip i, (n_frames, 64) uint8; after its end it begins again."""
        return self.clip(i)[np.arange(start, start + n_frames) % self.n_frames[i]]


def open_codes(folder):
    """Open a finished store of codes; UserError names what is wrong with it."""
    return Codes(folder)


class Crops:
    """Crops of equal length as a data set for training.fit and training.predict.

    parts     list of (Codes, rows): the clips to draw from, rows an array of their numbers
    n_frames  of a crop; shorter clips are repeated (the authors' wrap padding)
    random    True: from anywhere in the clip, the place depends on the key's seed alone; False: from its start
    labels    (n,) of all rows in the order of parts, None = none
    """

    def __init__(self, parts, n_frames, random, labels=None):
        self.stores, self.n_frames, self.random = [codes for codes, _ in parts], n_frames, random
        rows = [np.asarray(rows, np.int64) for _, rows in parts]
        self.store = np.repeat(np.arange(len(parts)), [len(r) for r in rows])  # (n,)
        self.first = np.concatenate([codes.first[r] for codes, r in zip(self.stores, rows)])  # (n,)
        self.available = np.concatenate([codes.n_frames[r] for codes, r in zip(self.stores, rows)])
        self.labels = None if labels is None else np.asarray(labels)
        if self.labels is not None and len(self.labels) != len(self.first):
            raise ValueError(f"{len(self.labels)} labels for {len(self.first)} clips")
        self.lengths = np.ones(len(self.first), np.uint8)  # all crops are equally long

    def __len__(self):
        return len(self.first)

    def __getitem__(self, key):
        """key: (index, seed) -> the key; all else is done once for the batch, in `collate`."""
        return key

    def collate(self, keys):
        """A batch: "codes" (B, n_frames, 64) uint8 and, where there are labels, "labels" (B,)."""
        index = np.array([i for i, _ in keys])
        start = np.zeros(len(index), np.int64)
        if self.random:
            start = random_starts(
                np.maximum(0, self.available[index] - self.n_frames), [seed for _, seed in keys]
            )
        first, available = self.first[index], self.available[index]
        frames = start[:, None] + np.arange(self.n_frames)  # (B, n_frames)
        short = available < self.n_frames
        frames[short] %= available[short, None]
        frames += first[:, None]
        codes = np.empty((*frames.shape, self.stores[0].data.shape[1]), np.uint8)
        for number in np.unique(self.store[index]):
            here = np.flatnonzero(self.store[index] == number)
            self.stores[number].fetch((first + start)[here], self.n_frames)
            codes[here] = self.stores[number].data.take(frames[here], axis=0)
        batch = {"codes": torch.from_numpy(codes)}
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[index])
        return batch


def random_starts(spare, seeds):
    """Numbers between 0 and spare (B,), both included, drawn from a hash of the seeds (B tuples of integers).

    The hash is the mixing function of SplitMix64 (Steele et al. 2014): a numpy generator per crop would take most of
    the time of a batch.
    """
    state = np.zeros(len(spare), np.uint64)
    for column in np.asarray(seeds, np.uint64).T:
        state = state + column + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state % (np.asarray(spare, np.uint64) + np.uint64(1))).astype(np.int64)
