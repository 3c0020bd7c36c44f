"""Prepare a corpus: one table of turns, 16 kHz mono audio and a muted video clip per turn.

Babaali et al., "Multi-Modal Emotion Recognition by Text, Speech and Video Using Pretrained Transformers",
Sec. 3.1 (data preparation) and Figure 1 (labels per session). IEMOCAP's dialogue videos are cut by the
annotation's times, sound is removed, and the clip is written as MP4.

    python 01_prepare_data.py                            # IEMOCAP in data/raw/IEMOCAP_full_release
    python 01_prepare_data.py --CORPUS=ravdess --CORPUS_ROOT=/where/it/is
    python 01_prepare_data.py --CORPUS=./my_corpus       # a folder with a manifest.csv (see README)
    python 01_prepare_data.py --CORPUS=mosei --MOSEI_FOLDS=/where/cmu_mosei_std_folds.py       # for 07
    python 01_prepare_data.py --CORPUS=voxceleb2               # for 05 and 07, of all speakers
    python 01_prepare_data.py --demo                     # a synthetic corpus in IEMOCAP's layout
    python 01_prepare_data.py --demo --CORPUS=demo_emodb       # or another of the synthetic ones, see CORPUS

Read where they lie: VoxCeleb2 (a thousand hours as wav would take 115 GB; its files are not even opened, so
lengths are not known), CREMA-D, Lombard GRID and AudioSet (06 needs sound up to 12 kHz), CMU-MOSEI (start_s
and end_s are times in the full recording); with MEDIA_IN_PLACE also RAVDESS.

Time on 2 CPU cores: RAVDESS speech of 12 actors 7 s, MELD's text 3 s, the names of VoxCeleb2's 1.1 million
clips 35 s, IEMOCAP by the rate of bench_cut_video.py 11 minutes. A killed or repeated run resumes.

Written to <DATA_ROOT>/prepared/<corpus>/: manifest.csv (all turns by dialogue and time; one outside the label
set has an empty label), classes.json, problems.csv; where recordings are copied media.jsonl (what
was made from which file), audio/<utterance>.wav, video/<utterance>.mp4; for CMU-MOSEI words.csv (the words of
a turn on its own clock).
Written to <RESULTS_ROOT>/01_prepare_data/<corpus>/: babaali_fig_1_labels.{png,pdf,csv}; to look at first,
data_table_overview.{csv,md} and data_fig_overview.{png,pdf}; metrics.json, log.jsonl.

DEVIATIONS
- The paper counts 5,532 turns in four classes. The release holds 5,531 (neutral 1708, happy 1636 with excited
  merged, angry 1103, sad 1084), as other public parsers find too; we report what is found.
- The paper keeps "the maximum possible quality" without saying how the clips are coded. Ours are H.264 at a
  constant, visually lossless quality; whole files that are H.264 already are copied without their sound.
- IEMOCAP's videos show both actors side by side. We keep the half of the one who speaks (CROP_SPEAKER); the
  paper does not say which part of the picture its model saw.
- Speech is brought to 16 kHz mono, the rate of the paper's speech models; IEMOCAP's sentences have it.
- Bracket tokens of the transcripts, such as [LAUGHTER], are kept (KEEP_BRACKETS); the paper is silent.
"""

from common import settings

if __name__ == "__main__":
    settings.parse(__file__)  # --help and refusals before the slow imports

import re
from collections import Counter
from pathlib import Path

import numpy as np

from common import corpora, demo, plots
from common.corpora import prepare
from common.files import UserError, file_hash, make_folder, read_json, write_csv
from common.manifest import Manifest, corpus_name, prepared_folder, write_manifest
from common.results import Cell, start_run
from common.splits import OFFICIAL

# fmt: off
# ---- Roots ----------------------------------------------------------------------------------
DATA_ROOT = "data"              # folder of corpora, checkpoints, features
RESULTS_ROOT = "results"        # tables and figures go to <RESULTS_ROOT>/<script>/<corpus>/
CORPUS_ROOT = ""                # the release as unpacked; "" = <DATA_ROOT>/raw/<its usual folder name>
MOSEI_FOLDS = ""                # CMU-MOSEI: the SDK's cmu_mosei_std_folds.py; "" = below CORPUS_ROOT

# ---- Corpus and protocol --------------------------------------------------------------------
CORPUS = "iemocap"              # "iemocap", "ravdess", "emodb", "meld", "voxceleb2", "cremad", "lombard",
                                # "audioset", "mosei", a folder with a manifest.csv (./my_corpus), or
                                # synthetic: "demo_iemocap" (for 02 to 04), "demo_ravdess", "demo_emodb",
                                # "demo_voxceleb2" (05), "demo_cremad", "demo_ravdess_av", "demo_lombard",
                                # "demo_audioset" (06), "demo_mosei", "demo_voxceleb2_av" (07)
SEEDS = (0,)                    # the first one makes synthetic corpora and random checkpoints, and draws
                                # VoxCeleb2's speakers; nothing else here is random
MERGE_EXCITED_INTO_HAPPY = True # IEMOCAP: excited counts as happy. Paper: Sec. 3.1
KEEP_BRACKETS = True            # IEMOCAP: keep tokens such as [LAUGHTER] in the text. Not in the paper
CROP_SPEAKER = True             # IEMOCAP: keep the half of the split screen that shows the speaker; false:
                                # both actors. Not in the paper
RAVDESS_CHANNEL = "speech"      # RAVDESS: "speech", "song" or "both"
VOXCELEB2_SPEAKERS = 0          # VoxCeleb2: take this many speakers, drawn with the first seed; 0 = all.
                                # Sadok et al., Sec. 3.1.1: 2170 (about 1,000 h), which ones is not said

# ---- Media ----------------------------------------------------------------------------------
MEDIA_IN_PLACE = False          # name the recordings where they lie, with every rate and frame they have,
                                # instead of converting them: RAVDESS for 06. IEMOCAP must be cut
VIDEO_CRF = 18                  # H.264 constant rate factor, 0 (lossless) to 51: 18 is visually lossless.
                                # Paper, Sec. 3.1: "maximum possible quality"
MIN_TURN_S = 0.1                # audio shorter than this is left out and is a problem, seconds
MAX_PROBLEM_SHARE = 0.05        # stop where more than this share of the turns has a problem

# ---- Look at the data first -----------------------------------------------------------------
MAX_COMPARED = 20000            # recordings that are searched for copies of each other, 0 = none
MAX_SHOWN = 60                  # speakers in the figure, those with the most turns

# ---- Synthetic ------------------------------------------------------------------------------
DEMO_SIZE = 1.0                 # factor for the number of recordings of the synthetic corpora
WRITE_CHECKPOINTS = ""          # "tiny" or "small": also write models with random weights for every
                                # architecture to <DATA_ROOT>/checkpoints/<corpus>/, for the demo and for
                                # training from scratch; of the synthetic corpora demo_iemocap gets any

# ---- Machine --------------------------------------------------------------------------------
WORKERS = 4                     # threads that convert recordings, processes that make synthetic ones; 0: none

# ---- Presets --------------------------------------------------------------------------------
DEMO = {"CORPUS": "demo_iemocap", "RAVDESS_CHANNEL": "both", "WRITE_CHECKPOINTS": "tiny",
        "RESULTS_ROOT": "results/mine", "WORKERS": 2}
SCRATCH = {"WRITE_CHECKPOINTS": "small"}  # models for 02 --scratch
SETTINGS = {}                   # filled by settings.run: what this run used
# fmt: on


# ---- The release ------------------------------------------------------------------------------


def check_settings():
    """Refuse values that would fail only after minutes."""
    settings.check_choices(SETTINGS, {"WRITE_CHECKPOINTS": ("", "tiny", "small")})
    is_taken = "/" in CORPUS and corpus_name(CORPUS) in (*corpora.corpus_names(), *demo.SYNTHETIC)
    settings.refuse(
        (VIDEO_CRF > 51, f"VIDEO_CRF={VIDEO_CRF}: choose 0 (lossless) to 51"),
        (DEMO_SIZE > 100, f"DEMO_SIZE={DEMO_SIZE}: choose up to 100, 1 for the demo's own sizes"),
        (WORKERS > 256, f"WORKERS={WORKERS}: choose 0 to 256"),
        (is_taken, f"CORPUS={CORPUS}: a corpus known by name is called so; rename the folder"),
    )


def read_release():
    """(the Release that the corpus's reader found, its folder); a synthetic one is written first."""
    layout = demo.SYNTHETIC.get(CORPUS, CORPUS)
    reader, root = corpora.reader_of(layout), Path(CORPUS_ROOT)
    if CORPUS in demo.SYNTHETIC:
        root = Path(CORPUS_ROOT or f"{DATA_ROOT}/raw/{CORPUS}")
        demo.write(CORPUS, root, SEEDS[0], DEMO_SIZE, WORKERS)
    elif not CORPUS_ROOT:
        root = corpora.find_root(CORPUS, DATA_ROOT)
    options = {"ravdess": {"channel": RAVDESS_CHANNEL}, "mosei": {"folds": MOSEI_FOLDS}}
    options["iemocap"] = {"merge_excited": MERGE_EXCITED_INTO_HAPPY, "keep_brackets": KEEP_BRACKETS}
    options["iemocap"]["crop_speaker"] = CROP_SPEAKER
    options["voxceleb2"] = {"n_speakers": VOXCELEB2_SPEAKERS, "seed": SEEDS[0]}
    release = reader.read(root, **options.get(layout, {}))
    if not release.turns:
        odd = next((f" ({problem.file}: {problem.problem})" for problem in release.problems), "")
        raise UserError(f"{root}: not a turn can be read in it{odd}; compare it with the release")
    return release, root


def start(release, root):
    """Print the corpus and what the reader noticed; returns the run and the manifest without media."""
    folder, here = prepared_folder(DATA_ROOT, CORPUS), str(root.resolve())
    note = folder / "classes.json"
    before = read_json(note).get("root") if note.exists() else None
    if "/" in CORPUS and before and before != here:
        raise UserError(f"{folder}: holds the corpus of {before}; rename {root} or change DATA_ROOT")
    complete = release.complete
    if CORPUS in demo.SYNTHETIC:
        complete, release.notes = False, [f"synthetic, in the layout of {demo.SYNTHETIC[CORPUS]}"]
    turns = [source.turn for source in release.turns]
    manifest = Manifest(corpus_name(CORPUS), make_folder(folder), release.classes, turns, complete, here)
    run = start_run(__file__, SETTINGS, manifest, "turns as annotated, no split; needs no GPU")
    for line in release.notes:
        print(f"  release   {line}")
    if CORPUS == "iemocap" and MERGE_EXCITED_INTO_HAPPY:
        print("  paper     counts 5,532 labelled turns; see DEVIATIONS")
    if release.classes and len({turn.speaker for turn in manifest.labelled}) < 2:
        release.warnings.append("only one speaker has labelled turns: no test on unseen speakers is possible")
    for line in release.warnings:
        print(f"  warning   {line}")
    print(f"  will write {folder}/", flush=True)
    return run, manifest


# ---- Turns with their media -------------------------------------------------------------------


def make_media(release, folder):
    """{utterance_id: Outcome} of the prepared recordings, or of those that are read where they lie."""
    if not (release.media_in_place or MEDIA_IN_PLACE):
        coding = prepare.MediaSettings(folder, VIDEO_CRF, MIN_TURN_S)
        return prepare.prepare_media(release.turns, coding, WORKERS)
    part = next((s for s in release.turns if s.audio_span or s.video_span), None)
    if part and not release.media_in_place:
        what = f"{part.turn.utterance_id} is a part of a longer recording and must be cut"
        raise UserError(f"MEDIA_IN_PLACE: {what}; leave it false for this corpus")
    print("  media     not copied: the manifest names the recordings where they lie")
    return prepare.place_media(release.turns, MIN_TURN_S)


def report_media(manifest):
    """Print how many turns have what, and the hours of audio."""
    turns = manifest.turns
    hours = sum(turn.duration_s for turn in turns if turn.audio) / 3600
    known = f" ({hours:.2f} h)" if hours else ""  # where recordings stay in place, nobody has read them yet
    text, audio, video = (sum(bool(getattr(t, kind)) for t in turns) for kind in ("text", "audio", "video"))
    what = f"{text:,} with text, {audio:,} with audio{known}, {video:,} with video"
    print(f"  prepared  {len(turns):,} turns in {len({t.dialogue_id for t in turns}):,} dialogues: {what}")


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


def figure_1(run, manifest, emotions):
    """Labels per session, as a figure and as the numbers drawn; a turn may have several of `emotions`."""
    classes, pairs = manifest.classes or emotions, [(turn, turn.label) for turn in manifest.labelled]
    if emotions:
        turns = [turn for split in OFFICIAL for turn in manifest.turns if turn.extra["split"] == split]
        pairs = [(turn, name) for turn in turns for name in emotions if float(turn.extra[name]) > 0]
    if not pairs:
        return print("  labels    this corpus has none: no Figure 1")
    name, key = group_of([turn for turn, _ in pairs])
    counts = Counter((key(turn), label) for turn, label in pairs)
    groups = list(dict.fromkeys(key(turn) for turn, _ in pairs))
    groups = groups if name == "split" else sorted(groups)
    rows = [{name: g, "label": label, "turns": counts[g, label]} for g in groups for label in classes]
    write_csv(run.folder / "babaali_fig_1_labels.csv", rows, (name, "label", "turns"))
    bars = {label: [counts[group, label] for group in groups] for label in classes}
    fig = plots.grouped_bars(groups, bars, "labelled turns")
    fig.axes[0].set_xlabel(name)
    fig.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)  # bars fill the axes
    if len(groups) > 8:
        fig.axes[0].tick_params(axis="x", rotation=90)
    n_labelled = len({turn.utterance_id for turn, _ in pairs})
    caption = (
        f"Figure 1. Labels per {name} of {manifest.corpus}: {n_labelled:,} labelled of "
        f"{len(manifest.turns):,} turns. Nothing here depends on a seed."
    )
    plots.save(fig, run.folder, "babaali_fig_1_labels", caption)


# ---- Look at the data first -------------------------------------------------------------------


def data_table(run, manifest):
    """Turns of each class: how many, how long, by whom, and what to look at twice. Not in the paper."""
    copies, cells = copies_of(manifest), []
    if copies:
        print(f"  warning   {len(copies)} recordings have the bytes of an earlier one, such as {min(copies)}")
    classes, labelled = manifest.classes, manifest.labelled
    groups = {label: [turn for turn in labelled if turn.label == label] for label in classes}
    if manifest.classes and len(manifest.labelled) < len(manifest.turns):
        groups["no label"] = [turn for turn in manifest.turns if not turn.label]
    for row, turns in {**groups, "all turns": manifest.turns}.items():
        seconds = [turn.duration_s for turn in turns if turn.duration_s > 0]
        known = [turn.gender for turn in turns if turn.gender]
        words = [len(turn.text.split()) for turn in turns if turn.text]
        told = [turn.extra.get("agreement") or "" for turn in turns]
        agreement = [float(text) for text in told if re.fullmatch(r"\d+\.?\d*", text)]  # or a user's words
        found = {
            ("turns", "", 0): len(turns),
            ("speakers", "", 0): len({turn.speaker for turn in turns}),
            ("median duration", "s", 1): np.median(seconds) if seconds else None,
            ("longest", "s", 1): max(seconds, default=None),
            ("median words", "", 0): np.median(words) if words else None,
            ("without text", "", 0): sum(not turn.text for turn in turns),
            ("repeated recordings", "", 0): sum(turn.utterance_id in copies for turn in turns),
            ("by women", "%", 0): 100 * known.count("female") / len(known) if known else None,
            ("raters who agree", "%", 0): 100 * np.mean(agreement) if agreement else None,
        }
        for (column, unit, digits), number in found.items():
            if number is not None:
                cells.append(Cell(row, column, [float(number)], unit=unit, digits=digits))
    note = (
        "Not in the paper. Repeated: the same bytes as an earlier recording, of the first "
        f"{MAX_COMPARED:,}. Raters who agree: with the label before classes are merged."
    )
    run.table("data_table_overview", "What the corpus holds", cells, note)


def copies_of(manifest):
    """Ids of turns whose recording has the same bytes as an earlier one, of MAX_COMPARED recordings."""
    owners = Counter(turn.audio for turn in manifest.turns)  # several turns of one file are parts of it
    alone = [turn for turn in manifest.turns if turn.audio and owners[turn.audio] == 1][:MAX_COMPARED]
    alone = [turn for turn in alone if manifest.path(turn.audio).is_file()]  # read in place, it may be a link
    size = {turn.utterance_id: manifest.path(turn.audio).stat().st_size for turn in alone}
    common, seen, copies = Counter(size.values()), set(), set()
    for turn in (turn for turn in alone if common[size[turn.utterance_id]] > 1):
        content = file_hash(manifest.path(turn.audio))
        if content in seen:
            copies.add(turn.utterance_id)
        seen.add(content)
    return copies


def data_figure(run, manifest):
    """Durations, words, and labels per speaker. Not in the paper."""
    numbers = {
        "duration (s)": [round(turn.duration_s, 2) for turn in manifest.turns if turn.duration_s > 0],
        "words": [len(turn.text.split()) for turn in manifest.turns if turn.text],
    }
    numbers = {name: values for name, values in numbers.items() if values}
    n = 1 + len(numbers)
    fig, [[*grid, last]] = plots.plt.subplots(1, n, figsize=(2 + 3 * n, 3.6), squeeze=False)
    for axes, (name, values) in zip(grid, numbers.items()):
        axes.hist(values, bins=np.arange(max(values) + 2) - 0.5 if name == "words" else 30)
        axes.set(xlabel=name, ylabel="turns", yscale="log")  # a few very long ones are what to look for
    speakers = [name for name, _ in Counter(turn.speaker for turn in manifest.turns).most_common(MAX_SHOWN)]
    below = np.zeros(len(speakers))
    for label, (colour, _) in plots.class_style(manifest.classes or ("",)).items():
        counts = Counter(turn.speaker for turn in manifest.turns if turn.label == label)
        heights = [counts[speaker] for speaker in speakers]
        last.bar(range(len(speakers)), heights, bottom=below, color=colour, label=label or None)
        below += heights
    last.set(xlabel=f"speakers, by their turns (at most {MAX_SHOWN})", xticks=[])
    last.set_ylabel("labelled turns" if manifest.classes else "turns")
    if manifest.classes:
        fig.legend(loc="outside upper right", ncols=4)
    caption = f"{manifest.corpus}: {len(manifest.turns):,} turns, {len(manifest.labelled):,} labelled."
    plots.save(fig, run.folder, "data_fig_overview", caption)


# ---- Checkpoints ------------------------------------------------------------------------------


def write_checkpoints(manifest):
    """Random-weight models whose tokenisers know the corpus's words (those of an official training part)."""
    turns = [turn for turn in manifest.turns if turn.extra.get("split", "train") == "train"]
    folder = Path(DATA_ROOT) / "checkpoints" / manifest.corpus
    demo.write_checkpoints(folder, [turn.text for turn in turns if turn.text], WRITE_CHECKPOINTS, SEEDS[0])
    print(f"  models    {WRITE_CHECKPOINTS} ones with random weights in {folder}/")


def main():
    check_settings()
    release, root = read_release()
    run, manifest = start(release, root)
    outcomes = make_media(release, manifest.folder)
    problems = prepare.finish_turns(release, outcomes)
    prepare.report_problems(problems, release, manifest.folder, root, MAX_PROBLEM_SHARE)
    for name, (rows, columns) in release.tables.items():
        write_csv(manifest.folder / name, rows, columns)
    write_manifest(manifest)
    report_media(manifest)
    figure_1(run, manifest, release.emotions)
    data_table(run, manifest)
    data_figure(run, manifest)
    if WRITE_CHECKPOINTS and (CORPUS not in demo.SYNTHETIC or CORPUS == "demo_iemocap"):
        write_checkpoints(manifest)
    run.finish(turns=len(manifest.turns), labelled=len(manifest.labelled), problems=len(problems))


if __name__ == "__main__":
    settings.run(main, globals())
