"""CMU-MOSEI's reader on small hand-made releases with every trap that the genuine one is known to have."""

import json
import os

import h5py
import numpy as np
import pytest
import soundfile
from conftest import load_script
from miniature import write_avi

from common import settings
from common.corpora import mosei
from common.corpora.mosei import (
    EMOTIONS,
    clip_words,
    read_csd,
    read_folds,
    read_words_csd,
    video_of,
)
from common.corpora.mosei import read as read_mosei
from common.files import UserError, read_csv
from common.manifest import read_manifest
from common.splits import has_official_split

# The videos of the miniature: an id that begins with -, a numeric one, one that ends with _, one in no fold.
DASH, NUMBER, UNDERSCORE, OUTSIDE = "--qXJuDtHP_", "10219", "abcdefghij_", "_outside-id"
FOLDS = {"train": [DASH, "not-there-1"], "valid": [NUMBER], "test": [UNDERSCORE]}
# Label rows by video: (start, end, sentiment, happy, sad, anger, surprise, disgust, fear), in no order.
ROWS = {
    DASH: [(5.0, 8.0, 1, 2 / 3, 0, 0, 0, 0, 0), (-0.25, 2.5, -1.5, 0, 1, 1 / 3, 0, 0, 0)],
    NUMBER: [(0.0, 4.0, 0, 0, 0, 0, 0, 0, 0)],
    UNDERSCORE: [(1.0, 2.0, 3, 3, 0, 0, 0, 0, 1 / 6), (1.0, 3.0, -3, 0, 0, 3, 0, 3, 0)],
    OUTSIDE: [(0.0, 1.0, 0, 0, 0, 0, 1, 0, 0)],
}
# The transcripts number clips in another order than the csd and print times with fewer digits.
TRANSCRIPTS = {
    DASH: "--qXJuDtHP____5___-0.25___2.5___So, it began.\n"
    "--qXJuDtHP____12___4.99___8.01___A line___with three.\n",
    NUMBER: "10219___0___0.0___4.0___Fine: it's 3___4.\n",
    UNDERSCORE: "abcdefghij____2___1.0___3.0___the long one\nabcdefghij____1___1.0___2.0___the short one\n",
    OUTSIDE: "_outside-id___0___0___1___oh\n",
}
WORDS = {
    DASH: [
        ("so", 0.0, 0.5),
        ("sp", 0.5, 0.9),
        ("it", 0.9, 1.2),
        ("began", 2.2, 2.7),
        ("late", 2.3, 3.3),
        ("a", 5.0, 6.0),
        ("line", 6.0, 9.0),
    ],
    NUMBER: [("caf\u00e9", 0.5, 1.0)],
    UNDERSCORE: [("the", 1.0, 1.5), ("one", 1.5, 2.0), ("more", 2.0, 2.8)],
}


def write_csd(path, root_name, entries, metadata=None):
    """entries: {entry: (features, intervals)}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for entry, (features, intervals) in entries.items():
            file[f"{root_name}/data/{entry}/features"] = features
            file[f"{root_name}/data/{entry}/intervals"] = intervals
        for key, value in (metadata or {}).items():
            file[f"{root_name}/metadata/{key}"] = np.array([value], dtype=h5py.string_dtype())


def label_entries(rows=ROWS):
    return {
        video: (np.array([row[2:] for row in own], np.float32), np.array([row[:2] for row in own]))
        for video, own in rows.items()
    }


def word_entries(words=WORDS):
    return {
        video: (np.array([[word.encode()] for word, _, _ in own]), np.array([times for _, *times in own]))
        for video, own in words.items()
    }


def write_folds(path, folds=FOLDS):
    path.write_text("".join(f"standard_{name}_fold={ids!r}\n" for name, ids in folds.items()))
    return path


def write_release(root, raw=True):
    write_csd(
        root / "labels" / "CMU_MOSEI_Labels.csd",
        "All Labels",
        label_entries(),
        {"computational sequence version": json.dumps(1.0), "uuid": "not JSON"},
    )
    write_csd(root / "languages" / "CMU_MOSEI_TimestampedWords.csd", "words", word_entries())
    write_folds(root / "cmu_mosei_std_folds.py")
    if raw:
        write_raw(root / "Raw")
    return root


def write_raw(raw):
    for video, text in TRANSCRIPTS.items():
        for folder, content in (("Segmented", text), ("Full", "the whole of it, no times\n")):
            path = raw / "Transcript" / folder / "Combined" / f"{video}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    for folder, names in (
        ("Audio/Full/WAV_16000", [f"{DASH}.wav", f"{NUMBER}.wav", "._10219.wav"]),
        ("Videos/Full/Combined", [f"{name}.mp4" for name in ROWS]),
        ("Videos/Segmented/Combined", [f"{DASH}_0.mp4", f"{DASH}.mp4", f"{UNDERSCORE}.mp4"]),
    ):
        (raw / folder).mkdir(parents=True)
        for name in names:
            (raw / folder / name).touch()


def sources_of(release):
    return {source.turn.utterance_id: source for source in release.turns}


def turns_of(release):
    return {source.turn.utterance_id: source.turn for source in release.turns}


# ---- Computational sequences ------------------------------------------------------------------


def test_the_root_name_is_the_first_key(tmp_path):
    write_csd(
        tmp_path / "CMU_MOSEI_COVAREP.csd",
        "COAVAREP",
        {"abc": (np.ones((2, 74)), np.array([[0, 1], [1, 2]]))},
        {"version": json.dumps({"a": [1]}), "text": "plain"},
    )
    [(entry, features, intervals)] = read_csd(tmp_path / "CMU_MOSEI_COVAREP.csd")
    assert entry == "abc" and features.shape == (2, 74) and intervals.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize(
    "entry, video",
    [
        ("abc", "abc"),
        ("abc[3]", "abc"),
        ("-a_b[12]", "-a_b"),
        ("10219[0]", "10219"),
        ("a[1][2]", "a[1]"),
        ("a[b]", "a[b]"),
    ],
)
def test_aligned_entries_are_stripped_at_the_last_bracket(entry, video):
    assert video_of(entry) == video


def test_words_are_bytes_or_text_and_silence_is_dropped(tmp_path):
    write_csd(
        tmp_path / "a.csd",
        "words",
        {
            **word_entries({"abc": [("two", 1.0, 2.0), ("sp", 0.5, 1.0), ("one", 0.0, 0.5)]}),
            "latin": (np.array([[b"caf\xe9"]]), np.array([[0, 1.0]])),
            "only silence": (np.array([[b"sp"]]), np.ones((1, 2))),
            "none": (np.empty((0, 1), "S3"), np.empty((0, 2))),
        },
    )
    with h5py.File(tmp_path / "a.csd", "a") as file:  # text of any length, as another writer makes it
        file["words/data/text/features"] = np.array(["x", "sp"], dtype=h5py.string_dtype())
        file["words/data/text/intervals"] = np.array([[0, 1.0], [1, 2]])
    words = read_words_csd(tmp_path / "a.csd")
    assert words["abc"] == [(0.0, 0.5, "one"), (1.0, 2.0, "two")]
    assert words["latin"] == [(0.0, 1.0, "caf\u00e9")] and words["text"] == [(0.0, 1.0, "x")]
    assert set(words) == {"abc", "latin", "text"}


def test_words_of_an_aligned_csd_count_once(tmp_path):
    write_csd(
        tmp_path / "a.csd",
        "words",
        word_entries(
            {"abc[10]": [("b", 1.0, 2.0), ("c", 2.0, 3.0)], "abc[2]": [("a", 0.0, 1.0), ("b", 1.0, 2.0)]}
        ),
    )
    assert [word for _, _, word in read_words_csd(tmp_path / "a.csd")["abc"]] == ["a", "b", "c"]


def test_damaged_csd_is_named_with_a_remedy(tmp_path):
    path = tmp_path / "CMU_MOSEI_Labels.csd"
    write_csd(path, "All Labels", {"abc": (np.random.default_rng(0).random((400, 7)), np.zeros((400, 2)))})
    whole = path.read_bytes()
    for content, what in (
        (b"", "empty, truncated or not HDF5"),
        (whole[: len(whole) // 2], "truncated"),
        (b"<html>404</html>", "not HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=what) as error:
            list(read_csd(path))
        line = str(error.value)
        assert str(path) in line and "download it again" in line and "\n" not in line
    with h5py.File(path, "w") as file:
        file["All Labels/metadata/x"] = 1
    with pytest.raises(UserError, match="not a csd"):
        list(read_csd(path))
    write_csd(path, "All Labels", {"abc": (np.zeros((3, 7)), np.zeros((2, 2)))})
    with pytest.raises(UserError, match="entry abc has 3 features and intervals of shape"):
        list(read_csd(path))


# ---- Folds ------------------------------------------------------------------------------------

EXPECTED_FOLDS = {DASH: "train", "not-there-1": "train", NUMBER: "dev", UNDERSCORE: "test"}


def test_folds_of_the_sdk_are_parsed_without_running_them(tmp_path):
    path = write_folds(tmp_path / "cmu_mosei_std_folds.py")
    path.write_text(f"import absent_module\nopen({str(tmp_path / 'ran')!r}, 'w')\n{path.read_text()}\n")
    assert read_folds(path) == EXPECTED_FOLDS and not (tmp_path / "ran").exists()
    path.write_text(path.read_text().replace("'10219'", "10219"))
    assert read_folds(path)["10219"] == "dev"  # an id is text, whatever it looks like


@pytest.mark.parametrize(
    "text, what",
    [
        ("standard_train_fold=['a']\nstandard_valid_fold=['b']\n", "no ids of the test fold"),
        (
            "standard_train_fold=['a']\nstandard_valid_fold=['b']\nstandard_test_fold=['a']\n",
            "video a is in train and in test",
        ),
        ("standard_train_fold=list('a')\n", "no ids of the train fold"),
        ("standard_train_fold=['a',\n", "no ids of the train fold"),
    ],
)
def test_folds_that_cannot_be_used(tmp_path, text, what):
    (tmp_path / "folds.py").write_text(text)
    with pytest.raises(UserError, match=what):
        read_folds(tmp_path / "folds.py")


def test_missing_or_foreign_folds_say_where_to_get_them(tmp_path):
    root = write_release(tmp_path / "mosei", raw=False)
    with pytest.raises(UserError, match="elsewhere.py: no such file; copy mmsdk/.*MOSEI_FOLDS"):
        read_mosei(root, str(tmp_path / "elsewhere.py"))
    write_folds(root / "cmu_mosei_std_folds.py", {"train": ["a"], "valid": ["b"], "test": ["c"]})
    with pytest.raises(UserError, match="none of the 6 segments is in the official folds"):
        read_mosei(root, "")
    (root / "cmu_mosei_std_folds.py").unlink()
    with pytest.raises(UserError, match="no official folds in it or below; copy mmsdk/"):
        read_mosei(root, "")


# ---- Segments ---------------------------------------------------------------------------------


def test_a_whole_release(tmp_path):
    root = write_release(tmp_path / "mosei")
    release = read_mosei(root, "")
    turns = turns_of(release)
    assert set(turns) == {
        f"{DASH}[0]",
        f"{DASH}[1]",
        f"{NUMBER}[0]",
        f"{UNDERSCORE}[0]",
        f"{UNDERSCORE}[1]",
        f"{OUTSIDE}[0]",
    }
    assert release.classes == () and release.media_in_place and not release.problems
    late, early = turns[f"{DASH}[0]"], turns[f"{DASH}[1]"]
    assert (early.start_s, early.end_s, early.turn) == (
        0.0,
        2.5,
        0,
    )  # clamped; first in time, second in the csd
    assert (late.start_s, late.end_s, late.turn) == (5.0, 8.0, 1)
    assert (late.speaker, late.dialogue_id, late.label, late.session) == (DASH, DASH, "", "")
    assert [late.extra[name] for name in ("sentiment", *EMOTIONS)] == [
        "1",
        "0.666667",
        "0",
        "0",
        "0",
        "0",
        "0",
    ]
    assert [early.extra[name] for name in ("sentiment", *EMOTIONS)] == [
        "-1.5",
        "0",
        "1",
        "0.333333",
        "0",
        "0",
        "0",
    ]
    assert mosei.emotions_of(late) == ["happy"] and mosei.emotions_of(early) == ["sad", "anger"]
    assert mosei.emotions_of(turns[f"{NUMBER}[0]"]) == []
    assert {turn.speaker: turn.extra["split"] for turn in turns.values()} == {
        DASH: "train",
        NUMBER: "dev",
        OUTSIDE: "",
        UNDERSCORE: "test",
    }
    assert late.extra["video_id"] == DASH


def test_transcripts_are_joined_by_time_not_by_index(tmp_path):
    turns = turns_of(read_mosei(write_release(tmp_path / "mosei"), ""))
    found = {name: (turn.extra["clip"], turn.text) for name, turn in turns.items()}
    assert found == {
        f"{DASH}[0]": ("12", "A line___with three."),
        f"{DASH}[1]": ("5", "So, it began."),
        f"{NUMBER}[0]": ("0", "Fine: it's 3___4."),
        f"{OUTSIDE}[0]": ("0", "oh"),
        f"{UNDERSCORE}[0]": ("1", "the short one"),
        f"{UNDERSCORE}[1]": ("2", "the long one"),  # they start together
    }


def test_a_row_without_a_line_at_its_times_takes_its_words(tmp_path):
    root = write_release(tmp_path / "mosei")
    path = root / "Raw" / "Transcript" / "Segmented" / "Combined" / f"{UNDERSCORE}.txt"
    path.write_text(
        TRANSCRIPTS[UNDERSCORE].replace("___1.0___3.0", "___1.0___3.06")
        + "no line\n"
        + f"{NUMBER}___3___1___2___of another video\n{UNDERSCORE}___4___1.0.0___2___no number\n"
    )
    release = read_mosei(root, "")
    assert turns_of(release)[f"{UNDERSCORE}[1]"].text == "the one more"
    assert turns_of(release)[f"{UNDERSCORE}[1]"].extra["clip"] == ""
    assert [problem.file.rsplit(":", 1)[-1] for problem in release.problems] == ["3", "4", "5", ""]
    assert release.problems[-1].utterance_id == f"{UNDERSCORE}[1]"


def test_words_are_on_the_clips_own_clock(tmp_path):
    release = read_mosei(write_release(tmp_path / "mosei"), "")
    words = {}
    rows, columns = release.tables["words.csv"]
    for row in rows:
        words.setdefault(row["utterance_id"], []).append((row["word"], row["start_s"], row["end_s"]))
    assert words[f"{DASH}[1]"] == [
        ("so", 0.0, 0.5),
        ("it", 0.9, 1.2),
        ("began", 2.2, 2.5),
    ]  # half or more is inside
    assert words[f"{DASH}[0]"] == [("a", 0.0, 1.0), ("line", 1.0, 3.0)]
    assert words[f"{UNDERSCORE}[0]"] == [("the", 0.0, 0.5), ("one", 0.5, 1.0)]
    assert f"{OUTSIDE}[0]" not in words and clip_words([], 0.0, 1.0) == []
    assert columns == ("utterance_id", "word", "start_s", "end_s")


def test_rows_that_cannot_be_used_are_left_out_and_said(tmp_path):
    root = write_release(tmp_path / "mosei", raw=False)
    good = (0.0, 1.0, 0, 0, 0, 0, 0, 0, 0)
    bad = [
        (2.0, 2.0, *good[2:]),
        (0.0, 1.0, np.nan, *good[3:]),
        (0.0, 1.0, 0, -1, *good[4:]),
        (-2.0, -1.0, *good[2:]),
        (0.0, 1.0, 3.5, *good[3:]),
        (0.0, np.inf, *good[2:]),
    ]
    write_csd(
        root / "labels" / "CMU_MOSEI_Labels.csd", "All Labels", label_entries({**ROWS, NUMBER: [good, *bad]})
    )
    release = read_mosei(root, "")
    assert [name for name in turns_of(release) if name.startswith(NUMBER)] == [f"{NUMBER}[0]"]
    assert sorted(problem.utterance_id for problem in release.problems) == [
        f"{NUMBER}[{k}]" for k in range(1, 7)
    ]


def test_labels_of_an_aligned_csd_and_of_another_number_of_columns(tmp_path):
    root = write_release(tmp_path / "mosei", raw=False)
    path = root / "labels" / "CMU_MOSEI_Labels.csd"
    rows = {f"{video}[{k}]": [row] for video, own in ROWS.items() for k, row in enumerate(own)}
    expected = turns_of(read_mosei(root, ""))
    write_csd(path, "All Labels", label_entries(rows))
    assert turns_of(read_mosei(root, "")) == expected
    write_csd(path, "Emotions", {NUMBER: (np.zeros((1, 6)), np.array([[0, 1.0]]))})
    with pytest.raises(UserError, match=r"entry 10219 has scores of shape \(1, 6\), not \(rows, 7\)"):
        read_mosei(root, "")


def test_files_are_found_by_name_wherever_they_are(tmp_path):
    root = write_release(tmp_path / "elsewhere", raw=False)
    outer = tmp_path / "outer"
    (outer / "deep" / ".hidden").mkdir(parents=True)
    (outer / "deep" / "link").symlink_to(root)
    (root / "back").symlink_to(outer)  # links may lead in circles
    (outer / "deep" / ".hidden" / "CMU_MOSEI_Labels.csd").write_text("not this one")
    (outer / "deep" / "._CMU_MOSEI_Labels.csd").write_text("nor this one")
    assert len(read_mosei(outer, "").turns) == 6
    for name, what in (
        ("CMU_MOSEI_TimestampedWords.csd", "no CMU_MOSEI_TimestampedWords.csd in it or below"),
        ("CMU_MOSEI_Labels.csd", "neither CMU_MOSEI_Labels.csd nor label tables"),
    ):
        next(root.rglob(name)).rename(tmp_path / name)
        with pytest.raises(UserError, match=what):
            read_mosei(root, "")
        (tmp_path / name).rename(root / name)
    with pytest.raises(UserError, match="no such folder"):
        read_mosei(tmp_path / "absent", "")


def test_counts_are_said_beside_the_releases_and_never_asserted(tmp_path):
    notes = "\n".join(read_mosei(write_release(tmp_path / "mosei"), "").notes)
    for line in (
        "train videos: 2 (the full release has 2,249); dev videos: 1 (the full release has 300); test videos",
        "test videos: 1 (the full release has 678)",
        "train segments: 2 (the full release has 16,327) of",
        "of 1 videos: happy 1, sad 1, anger 1, surprise 0, disgust 0, fear 0, none 0",
        "dev segments: 1 (the full release has 1,871)",
        "test segments: 2 (the full release has 4,662)",
        "in no fold: 1 segments of 1 videos",
        "1 segments start before their video does",
        "transcripts: 6 of 6",
        "4 videos: 2 wav, 4 mp4; sound from the mp4 of 2",
        "`label` stays empty",
    ):
        assert line in notes


# ---- The raw release --------------------------------------------------------------------------


def test_recordings_of_the_raw_release(tmp_path):
    root = write_release(tmp_path / "mosei")
    sources = sources_of(read_mosei(root, ""))
    wav, mp4 = root / "Raw" / "Audio" / "Full" / "WAV_16000", root / "Raw" / "Videos" / "Full" / "Combined"
    assert sources[f"{DASH}[0]"].audio == sources[f"{DASH}[1]"].audio == wav / f"{DASH}.wav"
    assert sources[f"{DASH}[0]"].video == mp4 / f"{DASH}.mp4"  # not the cut one of the same name
    assert sources[f"{UNDERSCORE}[0]"].audio == mp4 / f"{UNDERSCORE}.mp4"  # no wav: sound of the mp4
    assert sources[f"{DASH}[0]"].audio_span == sources[f"{DASH}[0]"].video_span == (5.0, 8.0)
    (mp4 / f"{UNDERSCORE}.mp4").unlink()
    (mp4 / f"{NUMBER}.mp4").unlink()
    release = read_mosei(root, "")
    assert [(p.file, p.problem.split(" of")[0]) for p in release.problems] == [
        (f"{NUMBER}.mp4", "no mp4"),
        (f"{UNDERSCORE}.mp4", "no recording"),
    ]
    source = sources_of(release)[f"{UNDERSCORE}[0]"]
    assert source.audio is source.video is None
    assert sources_of(release)[f"{NUMBER}[0]"].audio.name == "10219.wav"


def test_folders_above_the_release_do_not_count(tmp_path):
    release = read_mosei(write_release(tmp_path / "Segmented" / "mosei"), "")
    assert sum(source.video is not None for source in release.turns) == len(release.turns) > 0


def test_the_csd_files_alone_give_text_without_recordings(tmp_path):
    release = read_mosei(write_release(tmp_path / "mosei", raw=False), "")
    assert not release.problems and all(not source.audio and not source.video for source in release.turns)
    assert (
        turns_of(release)[f"{DASH}[1]"].text == "so it began"
        and turns_of(release)[f"{OUTSIDE}[0]"].text == ""
    )


def test_label_tables_where_there_is_no_labels_csd(tmp_path):
    root = write_release(tmp_path / "mosei")
    (root / "labels" / "CMU_MOSEI_Labels.csd").unlink()
    header = (
        "HITId,Input.VIDEO_ID,Input.CLIP,Answer.anger,Answer.disgust,Answer.fear,Answer.happiness,"
        "Answer.sadness,Answer.sentiment,Answer.surprise\n"
    )
    folder = root / "Raw" / "Labels"
    folder.mkdir()
    (folder / "batch1.csv").write_text(
        f"{header}1,http://host/{DASH},5,0,0,0,0,3,-1,0\n2,http://host/{DASH},5,1,0,0,0,0,-2,0\n"
        f"3,{NUMBER},0,0,0,0,0,0,0,0\n4,{UNDERSCORE},9,0,0,0,0,0,0,0\n5,{OUTSIDE},0,0,0,0,,0,0,0\n"
    )
    (folder / "batch2.csv").write_text(
        f"{header}6,http://host/{DASH},5,0,0,0,,0,0,2\n7,{UNDERSCORE},2,0,0,1,0,0,1,0\n"
    )
    (folder / "other.csv").write_text(f"a,b\n1,{'2' * 200_000}\n")  # longer than a cell may be
    release = read_mosei(root, "")
    turns = turns_of(release)
    assert set(turns) == {f"{DASH}[5]", f"{NUMBER}[0]", f"{UNDERSCORE}[2]"}  # numbered by clip
    turn = turns[f"{DASH}[5]"]
    assert [turn.extra[name] for name in ("sentiment", *EMOTIONS)] == [
        "-1",
        "0",
        "1",
        "0.333333",
        "0.666667",
        "0",
        "0",
    ]
    assert (turn.start_s, turn.end_s, turn.text, turn.extra["clip"]) == (0.0, 2.5, "So, it began.", "5")
    assert {(p.utterance_id, p.problem.split(";")[0]) for p in release.problems} == {
        (f"{UNDERSCORE}[9]", "no transcript line of this clip, so no times"),
        (f"{OUTSIDE}[0]", "a score or time is not a number"),
    }
    for name in ("batch1.csv", "batch2.csv"):
        text = (folder / name).read_text().replace("Answer.sentiment", "Answer.mood")
        (folder / name).write_text(text)
    assert {p.problem for p in read_mosei(root, "").problems if "[5]" in p.utterance_id} == {
        "a score or time is not a number; left out"
    }
    for path in (root / "Raw" / "Transcript").rglob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match="nor label tables .* and the transcripts with their times"):
        read_mosei(root, "")


# ---- 01 ---------------------------------------------------------------------------------------


def write_recordings(root):
    """A stereo wav that ends before a segment, a mono one too short, mp4s without sound, a damaged one."""
    raw = root / "Raw"
    soundfile.write(raw / "Audio" / "Full" / "WAV_16000" / f"{DASH}.wav", np.zeros((4 * 16000, 2)), 16000)
    soundfile.write(raw / "Audio" / "Full" / "WAV_16000" / f"{NUMBER}.wav", np.zeros(2 * 16000), 16000)
    for name in (DASH, NUMBER, OUTSIDE):
        write_avi(root / "a.avi", 200)
        os.replace(root / "a.avi", raw / "Videos" / "Full" / "Combined" / f"{name}.mp4")
    (raw / "Videos" / "Full" / "Combined" / f"{UNDERSCORE}.mp4").write_bytes(b"no video")


def test_01_prepares_it(tmp_path, capsys):
    root = write_release(tmp_path / "mosei")
    write_recordings(root)
    (root / "cmu_mosei_std_folds.py").rename(tmp_path / "folds.py")
    module = vars(load_script("01_prepare_data.py"))
    settings.run(
        module["main"],
        module,
        [
            "--CORPUS=mosei",
            f"--CORPUS_ROOT={root}",
            f"--DATA_ROOT={tmp_path / 'data'}",
            f"--RESULTS_ROOT={tmp_path / 'results'}",
            f"--MOSEI_FOLDS={tmp_path / 'folds.py'}",
            "--MAX_PROBLEM_SHARE=1",
        ],
    )
    printed = capsys.readouterr().out
    assert "train segments: 2 (the full release has 16,327)" in printed and "no Figure 1" not in printed
    manifest = read_manifest(tmp_path / "data", "mosei")
    turns = {turn.utterance_id: turn for turn in manifest.turns}
    assert (
        len(turns) == 6
        and manifest.labelled == []
        and manifest.classes == ()
        and has_official_split(manifest)
    )
    assert turns[f"{DASH}[0]"].extra["happy"] == "0.666667" and turns[f"{DASH}[0]"].start_s == 5.0
    assert turns[f"{NUMBER}[0]"].speaker == "10219"
    folder = tmp_path / "data" / "prepared" / "mosei"
    words = [row for row in read_csv(folder / "words.csv") if row["utterance_id"] == f"{DASH}[1]"]
    assert (words[0]["word"], words[0]["start_s"], words[0]["end_s"]) == ("so", "0.0", "0.5")
    problems = {
        (row["utterance_id"], row["file"].rsplit("/", 1)[-1]): row["problem"]
        for row in read_csv(folder / "problems.csv")
    }
    assert "segment ends at 4.00 s" in problems[f"{NUMBER}[0]", "10219.wav"]
    assert any(
        "no audio track" in problem for (_, name), problem in problems.items() if name == f"{OUTSIDE}.mp4"
    )
    assert turns[f"{OUTSIDE}[0]"].audio == "" and turns[f"{OUTSIDE}[0]"].video
    assert turns[f"{UNDERSCORE}[0]"].audio == turns[f"{UNDERSCORE}[0]"].video == ""
    assert turns[f"{DASH}[1]"].audio.endswith(".wav") and turns[f"{NUMBER}[0]"].audio
    assert turns[f"{DASH}[0]"].audio == "" and "lasts 4.00 s" in problems[f"{DASH}[0]", f"{DASH}.wav"]
    rows = read_csv(tmp_path / "results" / "01_prepare_data" / "mosei" / "babaali_fig_1_labels.csv")
    assert {(row["split"], row["label"]): row["turns"] for row in rows}["train", "happy"] == "1"
    assert list(dict.fromkeys(row["split"] for row in rows)) == ["train", "test"]


def test_a_segment_that_an_aligned_csd_lists_twice_is_left_out_and_named(tmp_path):
    root, entries = write_release(tmp_path, raw=False), label_entries()
    name, (scores, times) = next(iter(entries.items()))
    entries[f"{name}[0]"] = scores[:1], times[:1]
    write_csd(root / "labels" / "CMU_MOSEI_Labels.csd", "All Labels", entries)
    release = read_mosei(root)
    ids = [source.turn.utterance_id for source in release.turns]
    assert len(ids) == len(set(ids)) and f"{name}[0]" in ids
    told = [problem.utterance_id for problem in release.problems if "listed twice" in problem.problem]
    assert told == [f"{name}[0]"]
