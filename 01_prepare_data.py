"""Prepare a corpus: one table of turns, 16 kHz mono audio and a muted video clip per turn.

Babaali et al., "Multi-Modal Emotion Recognition by Text, Speech and Video Using Pretrained Transformers",
Sec. 3.1 (data preparation) and Figure 1 (labels per session). IEMOCAP's dialogue videos are cut by the
annotation's times, the half of the split screen that shows the speaker is kept, sound is removed, and the
clip is written as MP4.

    python 01_prepare_data.py                            # IEMOCAP in data/raw/IEMOCAP_full_release
    python 01_prepare_data.py --CORPUS=ravdess --CORPUS_ROOT=/where/it/is
    python 01_prepare_data.py --CORPUS=./my_corpus       # a folder with a manifest.csv (see README)
    python 01_prepare_data.py --CORPUS=voxceleb2         # a table of clips that are read where they lie
    python 01_prepare_data.py --demo                     # a synthetic corpus in IEMOCAP's layout
    python 01_prepare_data.py --demo --CORPUS=demo_ravdess       # or demo_voxceleb2, demo_emodb: for 05
    python 01_prepare_data.py --CORPUS=cremad            # or lombard, audioset: read where they lie, for 06
    python 01_prepare_data.py --demo --CORPUS=demo_cremad        # or demo_ravdess_av, demo_lombard, demo_audioset
    python 01_prepare_data.py --CORPUS=mosei --MOSEI_FOLDS=/where/cmu_mosei_std_folds.py         # for 07
    python 01_prepare_data.py --CORPUS=voxceleb2 --VOXCELEB2_VIDEO=true                          # for 07
    python 01_prepare_data.py --demo --CORPUS=demo_mosei         # or demo_voxceleb2_av: for 07

VoxCeleb2, the corpus that Sadok et al. pretrain on, is not copied: a thousand hours as wav would take 115 GB, and
05 decodes each clip once. Its manifest names the recordings where they lie, and their lengths are not known yet.
CREMA-D, Lombard GRID and AudioSet, of Chochlakis et al., are not copied either, since 06 decodes each recording once
and AVID-CMA hears up to 12 kHz; their lengths are taken from the files' headers. MEDIA_IN_PLACE does so with RAVDESS.
CMU-MOSEI, of Khare et al., is not cut: a turn names its full recording, and its start_s and end_s are times in it.

Time on 2 CPU cores: RAVDESS speech of 12 actors (720 wav) 7 s, MELD's text 3 s, the demo 24 s, most of it
speaking and drawing, demo_ravdess 18 s, demo_emodb 11 s, demo_voxceleb2 14 s; demo_cremad, demo_ravdess_av,
demo_lombard and demo_audioset 10 to 15 s of one core each, demo_mosei and demo_voxceleb2_av 20 to 25 s of one core
each; the names of VoxCeleb2's 1.1 million clips in 35 s from a local disk. IEMOCAP was not at hand: by the rate of
bench_cut_video.py its 12.4 hours of turns take about 11 minutes. A killed or repeated run goes on from what is
finished.

Written to <DATA_ROOT>/prepared/<corpus>/: manifest.csv (all turns, sorted by dialogue and time; a turn
outside the label set has an empty label), classes.json, problems.csv, media.jsonl (what was made from which
file), audio/<utterance>.wav, video/<utterance>.mp4; only the first three where recordings stay where they are.
CMU-MOSEI also gets words.csv: every word of a turn with its times, on the clip's own clock.
Written to <RESULTS_ROOT>/01_prepare_data/<corpus>/: babaali_fig_1_labels.{png,pdf,csv}, metrics.json,
log.jsonl.

DEVIATIONS
- The paper counts 5,532 turns in four classes. The release holds 5,531 (neutral 1708, happy 1636 with excited
  merged, angry 1103, sad 1084), as other public parsers find too; we report what is found.
- The paper keeps "the maximum possible quality" without saying how the clips are coded. Ours are H.264 at a
  constant, visually lossless quality; whole files that are H.264 already are copied without their sound
  instead of being coded again.
- Speech is brought to 16 kHz mono, the rate of the paper's speech models; IEMOCAP's sentence files have it
  already.
- Bracket tokens of the transcripts, such as [LAUGHTER], are kept (KEEP_BRACKETS); the paper does not mention
  them.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals before the slow imports

import os
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from common import plots
from common.corpora import mosei
from common.corpora.prepare import LENGTH_TOLERANCE_S, MediaSettings, place_media, prepare_media
from common.corpora.readers import find_root, read_corpus
from common.corpora.release import Problem
from common.errors import UserError
from common.files import make_folder, read_json, write_csv, write_json
from common.manifest import Manifest, corpus_name, prepared_folder, write_manifest
from common.results import start_run
from common.splits import OFFICIAL

# ---- Constants to tweak -----------------------------------------------------------------------
DATA_ROOT = "data"  # folder of corpora, checkpoints, features
RESULTS_ROOT = "results"  # tables and figures go to <RESULTS_ROOT>/<script>/<corpus>/
CORPUS = "iemocap"  # "iemocap", "ravdess", "emodb", "meld", "voxceleb2", "cremad",
# "lombard", "audioset", "mosei", a folder with a manifest.csv, or synthetic:
# "demo_iemocap", "demo_ravdess", "demo_emodb", "demo_voxceleb2",
# "demo_cremad", "demo_ravdess_av", "demo_lombard", "demo_audioset",
# "demo_mosei", "demo_voxceleb2_av"
SEEDS = (0,)  # the first one makes the demo corpora and the random checkpoints, and draws
# VoxCeleb2's speakers; nothing else here is random
CORPUS_ROOT = ""  # the release as unpacked; "" = <DATA_ROOT>/raw/<its usual folder name>
MERGE_EXCITED_INTO_HAPPY = True  # IEMOCAP: excited counts as happy. Paper: Sec. 3.1
KEEP_BRACKETS = True  # IEMOCAP: keep tokens such as [LAUGHTER] in the text. Not in the paper
RAVDESS_CHANNEL = "speech"  # RAVDESS: "speech", "song" or "both"
VOXCELEB2_SPEAKERS = 0  # VoxCeleb2: take this many speakers, drawn with the first seed; 0 = all.
# Sadok et al., Sec. 3.1.1: 2170 (about 1,000 h), which ones is not said
VOXCELEB2_VIDEO = False  # VoxCeleb2: True also names the mp4 of each clip, for 07; 05 needs sound only
MOSEI_FOLDS = ""  # CMU-MOSEI: the official folds, the SDK's cmu_mosei_std_folds.py, a folder with
# standard_{train,valid,test}_fold.txt, or a csv; "" = below CORPUS_ROOT
MEDIA_IN_PLACE = False  # True: name the recordings where they lie instead of converting them, with
# every rate and frame they have: RAVDESS for 06. CREMA-D, Lombard GRID,
# AudioSet, VoxCeleb2 and CMU-MOSEI always stay where they are; IEMOCAP must
# be cut
RATE_HZ = 16000  # sampling rate of the prepared audio; the later scripts expect 16000
VIDEO_CRF = 18  # H.264 constant rate factor: 18 is visually lossless. Paper, Sec. 3.1:
# "maximum possible quality"
VIDEO_PRESET = "ultrafast"  # x264 preset, to "veryslow": speed against file size; at one CRF the
# quality is about the same
MIN_TURN_S = 0.1  # audio shorter than this is left out and is a problem, seconds
MAX_PROBLEM_SHARE = 0.05  # stop where more than this share of the turns has a problem
WORKERS = 0  # processes, 0 = one per core
WRITE_CHECKPOINTS = ""  # "" = none; "tiny" or "small": also write models with random weights for
# every architecture to <DATA_ROOT>/checkpoints/<corpus>/, for the demo
# and for training from scratch; of the synthetic corpora only
# demo_iemocap gets any
DEMO_DIALOGUES_PER_SESSION = 8  # size of the demo corpus, five sessions
DEMO_TURNS_PER_DIALOGUE = 18  # of which about a fifth lies outside the four classes
DEMO_ACTORS = 18  # of demo_ravdess, at most 24
DEMO_CLIPS_PER_EMOTION = 2  # of an actor in demo_ravdess, in speech and in song: 1 to 8
DEMO_EMODB_CLIPS = 18  # of each of the ten speakers of demo_emodb, at most 70
DEMO_VOXCELEB2_SPEAKERS = 40  # of demo_voxceleb2
DEMO_VOXCELEB2_CLIPS = 6  # of each of them, 4 to 8 s long
DEMO_CREMAD_ACTORS = 24  # of demo_cremad, at most 91
DEMO_CREMAD_CLIPS = 18  # of each of them, at most 82
DEMO_RAVDESS_AV_ACTORS = 8  # of demo_ravdess_av, at most 24
DEMO_RAVDESS_AV_CLIPS = 2  # of an actor per emotion: 1 to 8
DEMO_LOMBARD_TALKERS = 8  # of demo_lombard, at most 54
DEMO_LOMBARD_SENTENCES = 10  # of each of them, plain and again in noise, at most 50
DEMO_AUDIOSET_CLIPS = 120  # of demo_audioset
DEMO_MOSEI_VIDEOS = 80  # of demo_mosei, at least 8 for the three folds
DEMO_MOSEI_SEGMENTS = 8  # of each of them, on average, 1 to 8 s long
DEMO_VOXCELEB2_AV_SPEAKERS = 60  # of demo_voxceleb2_av
DEMO_VOXCELEB2_AV_CLIPS = 12  # of each of them, 2 to 8 s long
DEMO = {
    "CORPUS": "demo_iemocap",
    "RAVDESS_CHANNEL": "both",
    "WRITE_CHECKPOINTS": "tiny",
}  # all that --demo changes
SCRATCH = {"WRITE_CHECKPOINTS": "small"}  # all that --scratch changes: for 02 --scratch
SETTINGS = {}  # filled by settings.run: what this run used


# ---- The release ------------------------------------------------------------------------------

# The corpora that are written here, and whose layout they have.
SYNTHETIC = {
    "demo_iemocap": "IEMOCAP",
    "demo_ravdess": "RAVDESS",
    "demo_emodb": "EMO-DB",
    "demo_voxceleb2": "VoxCeleb2",
    "demo_cremad": "CREMA-D",
    "demo_ravdess_av": "RAVDESS",
    "demo_lombard": "Lombard GRID",
    "demo_audioset": "AudioSet",
    "demo_mosei": "CMU-MOSEI",
    "demo_voxceleb2_av": "VoxCeleb2",
}


def release_root():
    """The folder of the release; the demo's is written first where absent or made with other settings."""
    root = Path(CORPUS_ROOT) if CORPUS_ROOT else find_root(CORPUS, DATA_ROOT)
    if CORPUS in SYNTHETIC:
        write_demo(root)
    return root


def demo_writer():
    """(function that writes the synthetic corpus CORPUS, its arguments)."""
    from common.demo import av as demo_av
    from common.demo import iemocap as demo_iemocap
    from common.demo import mosei as demo_mosei
    from common.demo import speech as demo_speech  # here: no genuine corpus needs them

    write, sizes = {
        "demo_iemocap": (
            demo_iemocap.write_demo_iemocap,
            {
                "n_dialogues_per_session": DEMO_DIALOGUES_PER_SESSION,
                "turns_per_dialogue": DEMO_TURNS_PER_DIALOGUE,
            },
        ),
        "demo_ravdess": (
            demo_speech.write_demo_ravdess,
            {"n_actors": DEMO_ACTORS, "clips_per_emotion": DEMO_CLIPS_PER_EMOTION},
        ),
        "demo_emodb": (demo_speech.write_demo_emodb, {"clips_per_speaker": DEMO_EMODB_CLIPS}),
        "demo_voxceleb2": (
            demo_speech.write_demo_voxceleb2,
            {"n_speakers": DEMO_VOXCELEB2_SPEAKERS, "clips_per_speaker": DEMO_VOXCELEB2_CLIPS},
        ),
        "demo_cremad": (
            demo_av.write_demo_cremad,
            {"n_actors": DEMO_CREMAD_ACTORS, "clips_per_actor": DEMO_CREMAD_CLIPS},
        ),
        "demo_ravdess_av": (
            demo_av.write_demo_ravdess_av,
            {"n_actors": DEMO_RAVDESS_AV_ACTORS, "clips_per_emotion": DEMO_RAVDESS_AV_CLIPS},
        ),
        "demo_lombard": (
            demo_av.write_demo_lombard,
            {"n_talkers": DEMO_LOMBARD_TALKERS, "sentences_per_condition": DEMO_LOMBARD_SENTENCES},
        ),
        "demo_audioset": (demo_av.write_demo_audioset, {"n_clips": DEMO_AUDIOSET_CLIPS}),
        "demo_mosei": (
            demo_mosei.write_demo_mosei,
            {"n_videos": DEMO_MOSEI_VIDEOS, "segments_per_video": DEMO_MOSEI_SEGMENTS},
        ),
        "demo_voxceleb2_av": (
            demo_mosei.write_demo_voxceleb2_av,
            {"n_speakers": DEMO_VOXCELEB2_AV_SPEAKERS, "clips_per_speaker": DEMO_VOXCELEB2_AV_CLIPS},
        ),
    }[CORPUS]
    return write, {"seed": SEEDS[0], **sizes}


def write_demo(root):
    """Write the synthetic corpus, once per seed and size."""
    write, made_with = demo_writer()
    note = prepared_folder(DATA_ROOT, CORPUS) / "demo.json"
    if root.is_dir() and note.exists() and read_json(note) == made_with:
        return
    print(f"writing the synthetic corpus to {root} ...", flush=True)
    write(root, **made_with, workers=WORKERS or os.cpu_count() or 1)
    write_json(note, made_with)


def check_settings():
    """Refuse values that would fail only after minutes."""
    if not SEEDS:
        raise UserError("--SEEDS=: give at least one seed")
    if WRITE_CHECKPOINTS not in ("", "tiny", "small"):
        raise UserError(f"--WRITE_CHECKPOINTS={WRITE_CHECKPOINTS}: choose tiny, small or nothing")
    if not 0 <= VIDEO_CRF <= 51:
        raise UserError(f"--VIDEO_CRF={VIDEO_CRF}: choose 0 (lossless) to 51")
    if VIDEO_PRESET not in (
        "ultrafast",
        "superfast",
        "veryfast",
        "faster",
        "fast",
        "medium",
        "slow",
        "slower",
        "veryslow",
    ):
        raise UserError(f"--VIDEO_PRESET={VIDEO_PRESET}: choose one of x264's, ultrafast to veryslow")
    if not 0 <= MAX_PROBLEM_SHARE <= 1:
        raise UserError(f"--MAX_PROBLEM_SHARE={MAX_PROBLEM_SHARE}: a share lies between 0 and 1")
    if DEMO_MOSEI_VIDEOS < 8:
        raise UserError(f"--DEMO_MOSEI_VIDEOS={DEMO_MOSEI_VIDEOS}: choose at least 8, for three folds")
    if VOXCELEB2_SPEAKERS < 0:
        raise UserError(f"--VOXCELEB2_SPEAKERS={VOXCELEB2_SPEAKERS}: give a number of speakers, 0 for all")
    for name, value, highest in (
        ("DEMO_ACTORS", DEMO_ACTORS, 24),
        ("DEMO_CLIPS_PER_EMOTION", DEMO_CLIPS_PER_EMOTION, 8),
        ("DEMO_EMODB_CLIPS", DEMO_EMODB_CLIPS, 70),
        ("DEMO_VOXCELEB2_SPEAKERS", DEMO_VOXCELEB2_SPEAKERS, 10000),
        ("DEMO_VOXCELEB2_CLIPS", DEMO_VOXCELEB2_CLIPS, 10000),
        ("DEMO_CREMAD_ACTORS", DEMO_CREMAD_ACTORS, 91),
        ("DEMO_CREMAD_CLIPS", DEMO_CREMAD_CLIPS, 82),
        ("DEMO_RAVDESS_AV_ACTORS", DEMO_RAVDESS_AV_ACTORS, 24),
        ("DEMO_RAVDESS_AV_CLIPS", DEMO_RAVDESS_AV_CLIPS, 8),
        ("DEMO_LOMBARD_TALKERS", DEMO_LOMBARD_TALKERS, 54),
        ("DEMO_LOMBARD_SENTENCES", DEMO_LOMBARD_SENTENCES, 50),
        ("DEMO_AUDIOSET_CLIPS", DEMO_AUDIOSET_CLIPS, 20000),
        ("DEMO_MOSEI_VIDEOS", DEMO_MOSEI_VIDEOS, 10000),
        ("DEMO_MOSEI_SEGMENTS", DEMO_MOSEI_SEGMENTS, 100),
        ("DEMO_VOXCELEB2_AV_SPEAKERS", DEMO_VOXCELEB2_AV_SPEAKERS, 10000),
        ("DEMO_VOXCELEB2_AV_CLIPS", DEMO_VOXCELEB2_AV_CLIPS, 10000),
    ):
        if not 1 <= value <= highest:
            raise UserError(f"--{name}={value}: choose 1 to {highest}")


def start(release, folder):
    """Print the corpus and what the reader noticed; returns the run and the manifest without media."""
    manifest = Manifest(
        corpus_name(CORPUS), folder, release.classes, [source.turn for source in release.turns]
    )
    run = start_run(__file__, SETTINGS, manifest, "turns as annotated, no split; needs no GPU")
    for note in (f"synthetic, in {SYNTHETIC[CORPUS]}'s layout",) if CORPUS in SYNTHETIC else release.notes:
        print(f"  release   {note}")
    if CORPUS == "iemocap" and MERGE_EXCITED_INTO_HAPPY:
        print("  paper     counts 5,532 labelled turns; see DEVIATIONS")
    if release.classes and len({source.turn.speaker for source in release.turns if source.turn.label}) < 2:
        print("  warning   only one speaker has labelled turns: no test on unseen speakers is possible")
    print(f"  will write {folder}/", flush=True)
    return run, manifest


# ---- Turns with their media -------------------------------------------------------------------


def make_media(release, folder):
    """{utterance_id: Outcome} of the prepared recordings, or of those that are read where they lie."""
    if not (release.media_in_place or MEDIA_IN_PLACE):
        settings_of_media = MediaSettings(folder, RATE_HZ, VIDEO_CRF, VIDEO_PRESET, MIN_TURN_S)
        return prepare_media(release.turns, settings_of_media, WORKERS)
    print("  media     not copied: the manifest names the recordings where they lie")
    if CORPUS in mosei.CORPORA:
        release.problems += mosei.check_recordings([source.turn for source in release.turns], RATE_HZ)
    outcomes = place_media(release.turns, RATE_HZ, MIN_TURN_S)
    report_lengths(outcomes)
    return outcomes


def report_lengths(outcomes):
    """Say where sound and picture of a turn are of different length; whether that is an error the release knows."""
    both = {name: (o.audio_s, o.video_s) for name, o in outcomes.items() if o.audio and o.video}
    apart = {name: pair for name, pair in both.items() if abs(pair[0] - pair[1]) > LENGTH_TOLERANCE_S}
    if apart:
        worst = max(apart, key=lambda name: abs(apart[name][0] - apart[name][1]))
        print(
            f"  lengths   sound and picture differ by more than {LENGTH_TOLERANCE_S} s in {len(apart):,} of "
            f"{len(both):,} turns, most in {worst}: {apart[worst][0]:.2f} s and {apart[worst][1]:.2f} s"
        )


def finish_turns(release, outcomes):
    """Fill in audio, video and missing times; returns all problems, of the reader and of the media."""
    problems = list(release.problems)
    has_text = any(source.turn.text for source in release.turns)
    for source in release.turns:
        turn, outcome = source.turn, outcomes.get(source.turn.utterance_id)
        if has_text and not turn.text:
            problems.append(
                Problem(
                    turn.utterance_id,
                    "",
                    "no transcript; kept with an empty text",
                    "add its line to the transcript, or ignore",
                )
            )
        if outcome:
            turn.audio, turn.video = outcome.audio, outcome.video
            if not source.times_known and (outcome.audio_s or outcome.video_s):
                turn.end_s = turn.start_s + round(outcome.audio_s or outcome.video_s, 4)
            problems += [Problem(**row) for row in outcome.problems]
    return problems


def report_problems(problems, release, folder, root):
    """Write problems.csv and a one-line summary; UserError if too many turns are affected."""
    path = folder / "problems.csv"
    rows = [{**asdict(p), "file": p.file.removeprefix(f"{root}/")} for p in problems]
    write_csv(path, rows, ("utterance_id", "file", "problem", "remedy"))
    if not problems:
        return print(f"  problems  none; {path} is empty")
    kinds = Counter(re.sub(r"[\d.]+", "…", re.split("[;:(]", p.problem)[0].strip()) for p in problems)
    affected = len({p.utterance_id or p.file for p in problems})
    share = affected / len(release.turns)
    shown = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common(4))
    print(f"  problems  {len(problems):,} in {affected:,} turns or files ({share:.1%}): {shown}; see {path}")
    if share > MAX_PROBLEM_SHARE:
        (folder / "manifest.csv").unlink(missing_ok=True)
        raise UserError(
            f"{path}: {affected:,} of {len(release.turns):,} turns have problems, for example: "
            f"{problems[0].file}: {problems[0].problem} ({problems[0].remedy or 'no remedy known'}); mend "
            f"them or raise MAX_PROBLEM_SHARE ({MAX_PROBLEM_SHARE:g})"
        )


def report_media(manifest):
    """Print how many turns have what, and the hours of audio."""
    turns = manifest.turns
    hours = sum(turn.duration_s for turn in turns if turn.audio) / 3600
    known = f" ({hours:.2f} h)" if hours else ""  # where recordings stay in place, nobody has read them yet
    print(
        f"  prepared  {len(turns):,} turns in {len({t.dialogue_id for t in turns}):,} dialogues: "
        f"{sum(bool(t.text) for t in turns):,} with text, {sum(bool(t.audio) for t in turns):,} with audio"
        f"{known}, {sum(bool(t.video) for t in turns):,} with video"
    )


# ---- Figure 1 ---------------------------------------------------------------------------------


def group_of(turns):
    """(name, function): what Figure 1 counts by: session, else official split, else speaker, else all."""
    if any(turn.session for turn in turns):
        return "session", lambda turn: turn.session
    if any(turn.extra.get("split") for turn in turns):
        return "split", lambda turn: turn.extra.get("split", "")
    if len({turn.speaker for turn in turns}) <= 30:
        return "speaker", lambda turn: turn.speaker
    return "corpus", lambda turn: corpus_name(CORPUS)


def labels_of(manifest):
    """(class names, (turn, label) pairs); a turn of CMU-MOSEI's folds is in as many pairs as it has emotions."""
    if CORPUS not in mosei.CORPORA:
        return manifest.classes, [(turn, turn.label) for turn in manifest.labelled]
    turns = [turn for split in OFFICIAL for turn in manifest.turns if turn.extra["split"] == split]
    return mosei.EMOTIONS, [(turn, emotion) for turn in turns for emotion in mosei.emotions_of(turn)]


def figure_1(run, manifest):
    """Labels per session, as a figure and as the numbers drawn."""
    classes, labels = labels_of(manifest)
    if not labels:
        return print("  labels    this corpus has none: no Figure 1")
    turns = [turn for turn, _ in labels]
    name, key = group_of(turns)
    counts = Counter((key(turn), label) for turn, label in labels)
    groups = (
        list(dict.fromkeys(key(turn) for turn in turns))
        if name == "split"
        else sorted({group for group, _ in counts})
    )
    path = run.folder / "babaali_fig_1_labels.csv"
    write_csv(
        path,
        [
            {name: group, "label": label, "turns": counts[group, label]}
            for group in groups
            for label in classes
        ],
        (name, "label", "turns"),
    )
    fig = plots.grouped_bars(
        groups, {label: [counts[group, label] for group in groups] for label in classes}, "labelled turns"
    )
    fig.axes[0].set_xlabel(name)
    fig.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)  # bars fill the axes
    if len(groups) > 8:
        fig.axes[0].tick_params(axis="x", rotation=90)
    n_labelled = len({turn.utterance_id for turn in turns})
    caption = (
        f"Figure 1. Labels per {name} of {manifest.corpus}: {n_labelled:,} labelled of "
        f"{len(manifest.turns):,} turns. Nothing here depends on a seed."
    )
    run.figure([path, *plots.save(fig, run.folder, "babaali_fig_1_labels", caption)])


# ---- Checkpoints ------------------------------------------------------------------------------


def write_checkpoints(manifest):
    """Random-weight models whose tokenisers know the corpus's words (those of an official training part)."""
    from common.demo.checkpoints import makers  # imports transformers
    from common.demo.checkpoints import write_checkpoints as write

    texts = [
        turn.text for turn in manifest.turns if turn.text and turn.extra.get("split", "train") == "train"
    ]
    folder = Path(DATA_ROOT) / "checkpoints" / manifest.corpus
    made_with = {
        "size": WRITE_CHECKPOINTS,
        "seed": SEEDS[0],
        "texts": len(texts),
        "letters": sum(map(len, texts)),
        "models": list(makers()),  # a folder of an earlier version may lack some
    }
    note = folder / "made_with.json"
    if not (note.exists() and read_json(note) == made_with):
        write(folder, texts, WRITE_CHECKPOINTS, SEEDS[0])
        write_json(note, made_with)
    print(f"  models    {WRITE_CHECKPOINTS} ones with random weights in {folder}/")


def main():
    check_settings()
    root = release_root()
    release = read_corpus(
        CORPUS,
        root,
        merge_excited=MERGE_EXCITED_INTO_HAPPY,
        keep_brackets=KEEP_BRACKETS,
        channel=RAVDESS_CHANNEL,
        n_speakers=VOXCELEB2_SPEAKERS,
        seed=SEEDS[0],
        with_video=VOXCELEB2_VIDEO,
        folds=MOSEI_FOLDS,
    )
    folder = make_folder(prepared_folder(DATA_ROOT, CORPUS))
    run, manifest = start(release, folder)
    outcomes = make_media(release, folder)
    problems = finish_turns(release, outcomes)
    report_problems(problems, release, folder, root)
    if CORPUS in mosei.CORPORA:
        mosei.write_words(folder, release.words)
    write_manifest(manifest)
    report_media(manifest)
    figure_1(run, manifest)
    if WRITE_CHECKPOINTS and (CORPUS not in SYNTHETIC or CORPUS == "demo_iemocap"):
        write_checkpoints(manifest)
    run.finish(turns=len(manifest.turns), labelled=len(manifest.labelled), problems=len(problems))


if __name__ == "__main__":
    settings.run(main, globals())
