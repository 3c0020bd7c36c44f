"""Sound, pictures and words of clips as numbers in a Store, computed once (Khare et al. 2021, Sec. 3.1).

For each clip the store has as many rows as it needs of every array:

    audio       (T_a, 200) float16   filterbanks; step k covers [0.05 k, 0.05 (k + 1)) seconds of the clip
    video       (T_v, 4096) float16  VGG-16; frame k covers [k / fps, (k + 1) / fps)
    words       (bytes,) uint8       its words as UTF-8, each followed by a newline
    word_times  (W, 2) float32       start and end of each in seconds; NaN = not known
    facts       (1, 3) float32       FACTS: seconds, the recogniser's score (NaN = none), and how many words
                                     were left out as not spoken within the clip
"""

import random
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from threading import Lock

import av
import numpy as np
import torch
from torch import nn
from torchaudio.compliance.kaldi import fbank
from torchvision.models import VGG16_Weights, vgg16

from common.extraction import extract
from common.files import UserError, check_finite, file_hash, hash_of
from common.khare.words import RATE_HZ, tidy_words
from common.layers import build, read_checkpoint
from common.media import MediaError, Silence, open_video, probe, read_audio
from common.pictures import IMAGENET, STAMP_TOLERANCE_S, count_frames, normalise_frames, read_pictures
from common.training import exact

N_BANDS, WINDOW_MS, HOP_MS, STACKED = 40, 25.0, 10.0, 5  # of the filterbank (Sec. 3.1)
AUDIO_DIM, VIDEO_DIM = N_BANDS * STACKED, 4096
AUDIO_STEP_S = STACKED * HOP_MS / 1000
VGG_SIZE = 224  # side in pixels of the pictures that VGG-16 was trained with
FULL_SCALE = 32768  # Kaldi reads 16-bit samples as whole numbers
EDGE_TOLERANCE = 1e-3  # of a step: times are rounded, and a part of a frame that short is none
MEASURED = 500  # clips by which the size of all is estimated
CLIP_BYTES, BYTES_PER_S = 200, 75  # of a clip in the index, of fast speech as words with times
ARRAYS = {"text": "word_times", "audio": "audio", "video": "video"}  # of a store, with a row per step
FACTS = ("seconds", "score", "words outside")


@dataclass(slots=True)
class Source:
    """A clip to be: where its sound, picture and words are; "" = none."""

    clip_id: str
    audio: str = ""  # "" = the sound of the video's container, where it has any
    video: str = ""
    start_s: float = 0.0  # where in both files it begins
    end_s: float | None = None  # where it ends, None = with the recording
    words: list | None = None  # [(word, start_s, end_s)] on its own clock; None = to be found


# ---- Audio: filterbank energies (Section 3.1) ----------------------------------------------


def filterbanks(samples):
    """40 log-filterbank energies every 10 ms, five of which make a step of 50 ms: (S,) -> (T_a, 200) float32.

    Those of Kaldi, as the paper's recogniser, computed by torchaudio without dither. Frame k is centred in
    [0.01 k, 0.01 (k + 1)) seconds (snip_edges False), and recordings are mirrored at both ends. The last step
    repeats the last frame; fewer samples (full scale = 1) than a window's are followed by silence.
    """
    window, hop = (round(RATE_HZ * ms / 1000) for ms in (WINDOW_MS, HOP_MS))
    n_frames = max(1, (len(samples) + hop // 2) // hop)
    samples = np.pad(samples, (0, max(0, window - len(samples)))).astype(np.float32)
    scaled, sizes = torch.from_numpy(samples)[None] * FULL_SCALE, {"num_mel_bins": N_BANDS, "dither": 0.0}
    sizes |= {"sample_frequency": RATE_HZ, "frame_length": WINDOW_MS, "frame_shift": HOP_MS}
    frames = fbank(scaled, snip_edges=False, **sizes)[:n_frames]  # (frames, 40)
    missing = -len(frames) % STACKED
    return torch.cat([frames, frames[-1:].expand(missing, -1)]).reshape(-1, AUDIO_DIM).numpy()  # (T_a, 200)


# ---- Video: VGG-16 (Section 3.1) -----------------------------------------------------------


class VGG:
    """VGG-16 up to the last layer of 4096 units, fc7, after the ReLU, as its classifier reads it.

    weights  file of torchvision's vgg16; "" = torchvision's own download (ImageNet); None = random
    size     side of a picture in pixels, 0 = 224. The last pooling gives fc6 the same 7 x 7 places for any
             size, so that the demo takes 32 px: 30 times as fast, and still 4096 numbers per frame
    batch    pictures per forward pass
    """

    def __init__(self, weights, size, batch, device):
        self.weights, self.size, self.batch, self.device = weights, size or VGG_SIZE, batch, device
        name = "random" if weights is None else file_hash(weights) if weights else "torchvision"
        self.identity = [name, self.size]

    @cached_property
    def network(self):
        """Loaded when it is first used."""
        network = build(0, vgg16)
        if self.weights is not None:
            network.load_state_dict(vgg_weights(self.weights), strict=False)
        parts = network.features, network.avgpool, nn.Flatten(), network.classifier[:5]
        network = nn.Sequential(*parts).eval().requires_grad_(False)
        return network.to(self.device, memory_format=torch.channels_last)

    @exact()
    @torch.inference_mode()
    def features(self, pictures):
        """pictures (B, size, size, 3) uint8 -> (B, 4096) float32 numpy."""
        found = [torch.zeros(0, VIDEO_DIM)]
        for some in torch.from_numpy(pictures).split(self.batch):
            x = normalise_frames(some.to(self.device)[:, None], *IMAGENET)[:, :, 0]  # (B, 3, size, size)
            found.append(self.network(x).float().cpu())
        return torch.cat(found).numpy()


def vgg_weights(path):
    """The tensors {name: tensor} of torchvision's VGG-16 from a file, or by its own download for ""."""
    official = VGG16_Weights.IMAGENET1K_V1
    try:
        state = read_checkpoint(path) if path else official.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        message = f"torchvision's VGG-16: cannot be downloaded ({error}); download {official.url} elsewhere"
        raise UserError(f"{message} and name the file as VGG_WEIGHTS") from error
    with torch.device("meta"):  # the classes of ImageNet are not needed, other files have others
        wanted = {key: x.shape for key, x in vgg16().state_dict().items() if "classifier.6" not in key}
    if bad := [key for key in wanted if getattr(state.get(key), "shape", None) != wanted[key]]:
        what = f"{bad[0]} is missing or has another shape, and so {len(bad)} of {len(wanted)} weights"
        raise UserError(f"{path}: {what}; name a file of torchvision's vgg16")
    check_finite(path, {key: state[key] for key in wanted})
    return {key: state[key].float() for key in wanted}


# ---- Recordings ----------------------------------------------------------------------------


class Recordings:
    """Reads clips; a recording is decoded once for all clips that are parts of it and follow each other.

    words  what gives words to clips that have none, or None
    size   side of the pictures in pixels, 0 = none are wanted
    """

    def __init__(self, sources, words, fps, size):
        self.words, self.fps, self.size = words, fps, size
        self.parts, self.decoded, self.recogniser = {}, {}, Lock()
        for _, same in groupby(sources, key=lambda source: (source.audio, source.video)):
            group, lock = list(same), Lock()
            if len(group) > 1:  # VoxCeleb2 has a million recordings of one clip each
                self.parts |= {source.clip_id: (group, lock) for source in group}

    def read(self, source):
        """The arrays of a clip for a store, with "pictures" (T_v, size, size, 3) uint8 instead of "video"."""
        group, lock = self.parts.get(source.clip_id, ([source], Lock()))
        with lock:
            if source.clip_id not in self.decoded:
                self.decoded.update(self.decode(group))
            samples, pictures, seconds = self.decoded.pop(source.clip_id)
        path, is_silent, score = source.video or source.audio, not len(samples) and not len(pictures), np.nan
        if is_silent and (source.audio or source.video and self.size):
            raise MediaError(path, f"nothing is recorded from {source.start_s:.2f} s on", "correct its times")
        words = source.words or []
        if source.words is None and self.words is not None:
            with self.recogniser:
                words, score = self.words.words(source.clip_id, samples)
        words, n_outside = tidy_words(words, seconds)
        if is_silent and not words:
            raise MediaError(path, "neither sound, picture nor words", "leave it out of the corpus")
        steps = filterbanks(samples) if len(samples) else np.zeros((0, AUDIO_DIM))
        text = "".join(f"{word}\n" for word, *_ in words).encode()
        return {
            "audio": steps.astype(np.float16),
            "pictures": pictures,
            "words": np.frombuffer(text, np.uint8),
            "word_times": np.array([times for _, *times in words], np.float32).reshape(-1, 2),
            "facts": np.array([[seconds, score, n_outside]], np.float32),
        }

    def decode(self, sources):
        """{clip_id: (samples, pictures, seconds)} of the clips of one recording."""
        track, clips = read_sound(sources), {}
        for source, (pictures, seen_s) in zip(sources, read_views(sources, self.fps, self.size)):
            end = len(track) if source.end_s is None else round(source.end_s * RATE_HZ)
            samples = track[round(source.start_s * RATE_HZ) : end]
            samples = samples if samples.any() else samples[:0]  # it may end before the sound starts
            seconds = max(seen_s, len(samples) / RATE_HZ)
            if source.end_s is not None:  # of text alone the length may be known
                seconds = min(seconds or source.end_s, source.end_s - source.start_s)
            clips[source.clip_id] = samples, pictures, seconds
        return clips


def read_sound(sources):
    """Samples (S,) of a recording up to the end of its last clip; S = 0 where there are none."""
    path, ends_s = sources[0].audio or sources[0].video, [source.end_s for source in sources]
    if path and (path != sources[0].video or probe(path).rate_hz):
        with suppress(Silence):
            return read_audio(path, None if None in ends_s else max(ends_s), RATE_HZ)
    return np.zeros(0, np.float32)


def read_views(sources, fps, size):
    """(pictures (T_v, size, size, 3) uint8, seconds) of each clip of a recording; 0 s without pictures.

    Frame k is what a player shows in the middle of [k / fps, (k + 1) / fps) of the clip, as far as that
    reaches; torchvision's crop for VGG-16, the central 224 of 256 pixels (`pictures.central_square`).
    """
    path, nothing = sources[0].video, [(np.zeros((0, size, size, 3), np.uint8), 0.0)] * len(sources)
    if not path or not size:
        return nothing
    with open_video(path) as (container, stream):
        rate = float(stream.average_rate or 25)
        whole_s = (container.duration or 0) / av.time_base or count_frames(path) / rate
        ends_s = [whole_s if source.end_s is None else min(source.end_s, whole_s) for source in sources]
        times_s = [middles(source.start_s, end, fps) for source, end in zip(sources, ends_s)]
        wanted_s = np.concatenate(times_s)
        if not len(wanted_s):
            return nothing
        order = np.argsort(wanted_s, kind="stable")
        pictures, first_s, shown_to_s = read_pictures(container, stream, wanted_s[order], max(ends_s), size)
    parts, found = np.split(np.argsort(order), np.cumsum([len(times) for times in times_s])[:-1]), []
    for source, part, times, end in zip(sources, parts, times_s, ends_s):
        # A clip that ends before the pictures start has none; one in which they start begins with the first.
        part = part[(times < shown_to_s + STAMP_TOLERANCE_S) & (end > first_s)]
        found.append((pictures[part], min(end, shown_to_s) - source.start_s if len(part) else 0.0))
    return found


def middles(start_s, end_s, fps):
    """The times (T_v,) in the middle of each frame of a clip; the last frame may be shorter."""
    n = max(0, np.ceil((end_s - start_s) * fps - EDGE_TOLERANCE))
    edges = np.minimum(start_s + np.arange(n + 1) / fps, end_s)
    return (edges[:-1] + edges[1:]) / 2


# ---- Clips to a store ----------------------------------------------------------------------


def extract_clips(sources, words, vgg, fps, folder, how):
    """The Store of features and words of clips, made once (Section 3.1); a run that was killed resumes.

    sources  list of Source; clips of the same files should follow each other
    words    what gives words to sources that have none of their own (words.open_words)
    vgg      VGG, None = no video; fps: pictures per second; how: extraction.Extraction
    """
    vgg = vgg if vgg and any(source.video for source in sources) else None
    recordings = Recordings(sources, words, fps, vgg.size if vgg else 0)
    identity = {"sources": hash_of([str(source) for source in sources]), "precision": "fp32 without TF32"}
    identity |= {"audio_step_s": AUDIO_STEP_S, "video_step_s": 1 / fps, "vgg": vgg and vgg.identity}
    identity |= {"words": words and words.identity, "version": 2}  # audio's last step repeats its last frame
    items, compute = {source.clip_id: source for source in sources}, partial(arrays_of, vgg=vgg)
    what, n_bytes = "filterbanks, pictures and words", needed_bytes(sources, fps if vgg else 0.0)
    store = extract(items, recordings.read, compute, folder, identity, how, what, n_bytes)
    lacks = [f"{(store.spans(array)[1] == 0).sum():,} without {name}" for name, array in ARRAYS.items()]
    seconds, _, outside = store["facts"].sum(0)
    print(f"  {seconds / 3600:,.2f} h; {', '.join(lacks)}; {outside:,.0f} words lay outside", flush=True)
    return store


def arrays_of(clips, vgg):
    """What a Store keeps of some clips: (arrays, rows of each)."""
    pictures = [clip.pop("pictures") for clip in clips]
    video = vgg.features(np.concatenate(pictures)) if vgg else np.zeros((0, VIDEO_DIM))
    arrays = {name: np.concatenate([clip[name] for clip in clips]) for name in clips[0]}
    rows = {name: [len(clip[name]) for clip in clips] for name in clips[0]}
    arrays["video"] = video.astype(np.float16)
    return arrays, rows | {"video": [len(seen) if vgg else 0 for seen in pictures]}


def needed_bytes(sources, fps):
    """Estimate of a store's size, by MEASURED of its clips that are drawn at random."""
    some = random.Random(0).sample(sources, min(len(sources), MEASURED))
    return sum(clip_bytes(source, fps) for source in some) / max(1, len(some)) * len(sources)


def clip_bytes(source, fps):
    """About what a clip takes; how long a whole recording is stands in its header."""
    seconds = source.end_s
    if seconds is None:
        seconds = 0.0
        with suppress(MediaError):  # it is named when its features are extracted
            seconds = probe(source.audio or source.video).duration_s
    seconds = max(0.0, seconds - source.start_s)
    audio = AUDIO_DIM * (seconds / AUDIO_STEP_S + 1) if source.audio or source.video else 0
    video = VIDEO_DIM * (seconds * fps + 1) if source.video and fps else 0
    return 2 * (audio + video) + seconds * BYTES_PER_S + CLIP_BYTES
