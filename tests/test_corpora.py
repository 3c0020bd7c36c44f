"""Readers on hand-written miniatures of the genuine layouts, and on real files where they are at hand."""

import csv
import os
import re
import unicodedata

import pytest
from conftest import shared_data
from miniature import write_iemocap, write_tone

from common import corpora
from common.corpora import meld, ravdess
from common.corpora.emodb import read as read_emodb
from common.corpora.iemocap import COUNTS as IEMOCAP_COUNTS
from common.corpora.iemocap import read as read_iemocap
from common.corpora.meld import read as read_meld
from common.corpora.own import read as read_folder
from common.corpora.ravdess import read as read_ravdess
from common.files import UserError


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory):
    return write_iemocap(tmp_path_factory.mktemp("raw") / "IEMOCAP_full_release")


def by_id(release):
    return {source.turn.utterance_id: source for source in release.turns}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


# ---- IEMOCAP ----------------------------------------------------------------------------------


def test_iemocap_turns_labels_and_speakers(iemocap):
    release = read_iemocap(iemocap, merge_excited=True, keep_brackets=True)
    turns = {name: source.turn for name, source in by_id(release).items()}
    assert len(turns) == 7 and not release.problems  # nothing from Attribute/, Categorical/ or ._ files
    assert {name: turn.label for name, turn in turns.items()} == {
        "Ses01F_impro01_F000": "neutral",
        "Ses01F_impro01_F001": "happy",
        "Ses01F_impro01_M000": "",
        "Ses03M_impro05a_F000": "sad",
        "Ses03M_impro05a_M000": "angry",
        "Ses03M_impro05b_M000": "",
        "Ses03F_script01_1b_F000": "happy",
    }
    assert (
        turns["Ses03M_impro05a_F000"].speaker == "Ses03F"
        and turns["Ses03M_impro05a_M000"].speaker == "Ses03M"
    )
    assert turns["Ses03F_script01_1b_F000"].extra["style"] == "scripted"
    assert turns["Ses03M_impro05b_M000"].extra["style"] == "improvised"
    assert turns["Ses01F_impro01_F001"].session == "Session1"


def test_iemocap_order_is_by_time_across_speakers(iemocap):
    release = read_iemocap(iemocap, True, True)
    order = sorted(
        (s.turn for s in release.turns if s.turn.dialogue_id == "Ses01F_impro01"), key=lambda t: t.turn
    )
    assert [t.utterance_id[-4:] for t in order] == ["F000", "M000", "F001"]
    assert [t.turn for t in order] == [0, 1, 2]


def test_iemocap_excited_left_out_when_not_merged(iemocap):
    turn = by_id(read_iemocap(iemocap, False, True))["Ses01F_impro01_F001"].turn
    assert (turn.label, turn.extra["raw_label"]) == ("", "exc")


def test_iemocap_text_and_ratings(iemocap):
    turns = by_id(read_iemocap(iemocap, True, True))
    assert turns["Ses01F_impro01_F001"].turn.text == "Well: yes [LAUGHTER] of course."
    assert turns["Ses03M_impro05a_F000"].turn.text == "A café."  # Latin-1
    extra = turns["Ses01F_impro01_F001"].turn.extra
    assert [extra[k] for k in ("valence", "activation", "dominance")] == [
        "5.0000",
        "1.0000",
        "3.0000",
    ]  # clipped
    plain = by_id(read_iemocap(iemocap, True, False))
    assert plain["Ses01F_impro01_F001"].turn.text == "Well: yes of course."


def test_iemocap_media(iemocap):
    turns = by_id(read_iemocap(iemocap, True, True))
    source = turns["Ses03M_impro05a_F000"]
    assert source.audio == iemocap / "Session3/sentences/wav/Ses03M_impro05a/Ses03M_impro05a_F000.wav"
    assert source.video == iemocap / "Session3/dialog/avi/DivX/Ses03M_impro05a.avi"
    assert source.video_span == (1.9, 3.0)
    # the marker wearer, whose letter is in the dialogue's name, is on the left
    assert source.half == "right" and turns["Ses03M_impro05a_M000"].half == "left"
    assert turns["Ses03F_script01_1b_F000"].half == "left"
    whole = by_id(read_iemocap(iemocap, crop_speaker=False))
    assert not whole["Ses03F_script01_1b_F000"].half and whole["Ses03F_script01_1b_F000"].video_span


def test_iemocap_missing_sessions_are_named(iemocap):
    notes = " | ".join(read_iemocap(iemocap, True, True).notes)
    assert "Session2, Session4, Session5" in notes and "1,811" in notes
    assert "Session1 turns: 3 (the full release has 1,819)" in notes


def test_iemocap_root_one_too_high_or_inside(iemocap, tmp_path):
    assert len(read_iemocap(iemocap.parent, True, True).turns) == 7
    for inside in (iemocap / "Session1", iemocap / "Session1" / "dialog" / "EmoEvaluation"):
        with pytest.raises(UserError, match=re.escape(f"set CORPUS_ROOT to {iemocap}")):
            read_iemocap(inside, True, True)
    with pytest.raises(UserError, match="no folders Session1 to Session5"):
        read_iemocap(tmp_path, True, True)
    with pytest.raises(UserError, match="no such folder"):
        read_iemocap(tmp_path / "absent", True, True)


def test_iemocap_without_video(tmp_path):
    release = read_iemocap(write_iemocap(tmp_path, video=False), True, True)
    assert all(source.video is None for source in release.turns)
    assert sum("no video in dialog/avi" in note for note in release.notes) == 2 and not release.problems
    touch(tmp_path, *(f"Session{k}/dialog/avi/DivX/._Ses0{k}F_impro01.avi" for k in (1, 2)))
    assert by_id(read_iemocap(tmp_path, True, True)) == by_id(release)


def test_iemocap_is_found_beside_features_of_others_and_further_below(tmp_path):
    touch(tmp_path, "above/IEMOCAP_features/Session1/a.npy")
    root = write_iemocap(tmp_path / "above" / "data" / "IEMOCAP_full_release")
    assert by_id(read_iemocap(tmp_path, True, True)) == by_id(read_iemocap(root, True, True))


def test_iemocap_damage_becomes_problems(tmp_path):
    root = write_iemocap(tmp_path, video=False)
    evaluation = root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    text = evaluation.read_text()
    evaluation.write_text(text + "\n[7.0 - 7.5]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]\n[8.1 - 9.")
    (root / "Session3/dialog/transcriptions/Ses03M_impro05b.txt").unlink()
    release = read_iemocap(root, True, True)
    assert len(release.turns) == 7
    assert [p.problem.split(";")[0] for p in release.problems] == [
        "turn listed twice",
        "not a line of EmoEvaluation",
        "transcript file missing",
    ]
    assert by_id(release)["Ses03M_impro05b_M000"].turn.text == ""


def test_iemocap_expected_counts_add_up():
    """The table of the release: 10,039 turns, 5,531 in four classes with excited merged."""
    total = {
        label: sum(row[label] for row in IEMOCAP_COUNTS.values()) for label in IEMOCAP_COUNTS["Session1"]
    }
    assert total["all"] == 10039
    assert (total["neu"], total["hap"] + total["exc"], total["ang"], total["sad"]) == (1708, 1636, 1103, 1084)


def test_full_release_is_recognised(tmp_path):
    """A release of the right size, made of labels only, is said to be the release."""
    for k, (session, row) in enumerate(IEMOCAP_COUNTS.items(), start=1):
        labels = [raw for raw, count in row.items() if raw != "all" for _ in range(count)]
        labels += ["xxx"] * (row["all"] - len(labels))
        folder = tmp_path / session / "dialog" / "EmoEvaluation"
        folder.mkdir(parents=True)
        for block in range(0, len(labels), 900):
            name = f"Ses0{k}F_script0{block // 900 + 1}_1"
            (folder / f"{name}.txt").write_text(
                "".join(
                    f"[{i}.0 - {i}.9]\t{name}_F{i:03d}\t{label}\t[2.5000, 2.5000, 2.5000]\n"
                    for i, label in enumerate(labels[block : block + 900])
                )
            )
    notes = read_iemocap(tmp_path, True, True).notes
    assert notes[-1] == (
        "all sessions turns: 10,039 (as in the release); labelled: 5,531 (as in the release), "
        "angry 1,103, happy 1,636, neutral 1,708, sad 1,084"
    )


# ---- RAVDESS ----------------------------------------------------------------------------------


def test_ravdess_names(tmp_path):
    touch(
        tmp_path,
        "Actor_12/03-01-06-02-01-02-12.wav",
        "Actor_12/03-02-04-01-02-01-12.wav",
        "copy/Actor_12/03-01-06-02-01-02-12.wav",
        "Actor_12/01-01-06-02-01-02-12.mp4",
        "Actor_12/02-01-06-02-01-02-12.mp4",
        "Actor_12/._03-01-06-02-01-02-12.wav",
        "Actor_12/notes.wav",
    )
    release = read_ravdess(tmp_path, "speech")
    [source] = release.turns
    assert source.audio == tmp_path / "Actor_12/03-01-06-02-01-02-12.wav"
    assert source.video == tmp_path / "Actor_12/01-01-06-02-01-02-12.mp4"
    turn = source.turn
    assert (turn.label, turn.speaker, turn.text, turn.utterance_id) == (
        "fearful",
        "Actor_12",
        "Kids are talking by the door.",
        "01-06-02-01-02-12",
    )
    known = {"channel": "speech", "intensity": "strong", "statement": "01", "repetition": "02"}
    assert turn.extra == {**known, "gender": "female"}
    assert [p.file.rsplit("/", 1)[1] for p in release.problems] == ["notes.wav"]
    assert [s.turn.label for s in read_ravdess(tmp_path, "song").turns] == ["sad"]
    assert len(read_ravdess(tmp_path, "both").turns) == 2


def test_ravdess_audio_video_only_and_wrong_folder(tmp_path):
    touch(tmp_path, "Actor_01/01-01-03-01-02-01-01.mp4")
    [source] = read_ravdess(tmp_path, "speech").turns
    assert source.audio == source.video and source.turn.label == "happy"
    with pytest.raises(UserError, match="no RAVDESS files"):
        read_ravdess(tmp_path, "song")
    with pytest.raises(UserError, match="RAVDESS_CHANNEL=speach"):
        read_ravdess(tmp_path, "speach")


def test_ravdess_real_folder_is_half_of_the_release():
    release = read_ravdess(shared_data("ravdess"), "speech")
    assert len(release.turns) == 720 and not release.problems
    labels = [source.turn.label for source in release.turns]
    assert labels.count("neutral") == 48 and all(labels.count(c) == 96 for c in ravdess.CLASSES[1:])
    assert "the full release has 1,440" in release.notes[0] and "13, 14" in release.notes[1]


# ---- EMO-DB -----------------------------------------------------------------------------------


def test_emodb_german_letters(tmp_path):
    touch(tmp_path, "wav/03a01Fa.wav", "wav/16b10Ab.wav", "wav/03a01Fxx.wav", "wav/11a04Wc.wav")
    release = read_emodb(tmp_path)
    turns = {name: source.turn for name, source in by_id(release).items()}
    assert {name: turn.label for name, turn in turns.items()} == {
        "03a01Fa": "happiness",
        "16b10Ab": "fear",
        "11a04Wc": "anger",
    }
    assert (
        turns["11a04Wc"].text == "Heute abend könnte ich es ihm sagen." and turns["11a04Wc"].speaker == "11"
    )
    assert [p.file.rsplit("/", 1)[1] for p in release.problems] == ["03a01Fxx.wav"]
    assert len(read_emodb(tmp_path / "wav").turns) == 3
    with pytest.raises(UserError, match="no EMO-DB files"):
        read_emodb(touch(tmp_path, "empty/readme.txt") / "empty")


def test_emodb_by_speaker_beside_other_files(tmp_path):
    """As people pass it on; a copy in a nested folder counts once."""
    touch(tmp_path, "Speaker 03/03a01Fa.wav", "Speaker 16/16b10Ab.wav", "Speaker 16/old/03a01Fa.wav", "a.txt")
    sources = by_id(read_emodb(tmp_path))
    assert list(sources) == ["03a01Fa", "16b10Ab"]
    assert sources["03a01Fa"].audio == tmp_path / "Speaker 03/03a01Fa.wav"


def test_emodb_laryngograms_and_the_files_of_version_2(tmp_path):
    touch(tmp_path, "egg/03a01Fa.wav", "wav/03a01Fa.wav", "wav/03a01Faxx.wav", "wav/08b02Wbxx.wav")
    release = read_emodb(tmp_path)
    assert {name: source.audio for name, source in by_id(release).items()} == {
        "03a01Fa": tmp_path / "wav/03a01Fa.wav"
    }
    assert not release.problems and any("2 files that version 2.0 added" in note for note in release.notes)


def test_emodb_real_counts():
    release = read_emodb(shared_data("emodb"))
    assert release.notes == ["recordings: 535 (as in the release)"] and not release.problems
    assert release.complete and not read_ravdess(shared_data("ravdess"), "speech").complete


# ---- MELD -------------------------------------------------------------------------------------

MELD_HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
)


def test_meld_rows_and_clips(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}_sent_emo.csv").write_text(
            MELD_HEADER
            + '1,"Oh, he’s lost it.",Phoebe,sadness,negative,7,1,4,7,"0:10:44,769","00:10:46,146"\n'
            '2,Hm,Ross,joy,positive,7,2,4,7,"0:12:32,632","0:12:32,632"\n'
            "3,Bad,Ross,joy,positive,7,3,4,7,soon,later\n",
            encoding="utf-8",
        )
    touch(tmp_path, "MELD.Raw/train_splits/dia7_utt1.mp4", "MELD.Raw/train_splits/dia99_utt0.mp4")
    release = read_meld(tmp_path)
    turns = by_id(release)
    assert list(turns) == [f"{split}_dia0007_utt0{k}" for split in ("train", "test") for k in (1, 2)]
    first = turns["train_dia0007_utt01"]
    assert (first.turn.text, first.turn.label, first.turn.turn) == ("Oh, he’s lost it.", "sadness", 1)
    assert (first.turn.start_s, first.turn.end_s) == pytest.approx((644.769, 646.146))
    assert (
        first.turn.extra["split"] == "train"
        and first.video == tmp_path / "MELD.Raw/train_splits/dia7_utt1.mp4"
    )
    assert turns["test_dia0007_utt01"].video is None
    assert [p.problem[:10] for p in release.problems] == ["the csv gi", "row 3 cann"] * 2
    assert any("dev_sent_emo.csv is missing" in note for note in release.notes)
    assert sum("its turns have text only" in note for note in release.notes) == 1


def test_meld_clips_that_were_cut_again_twins_of_macos_and_rows_listed_twice(tmp_path):
    rows = [
        f'{n},it\x92s {word},Ross,joy,positive,0,{n},4,7,"0:10:44,7","0:10:46,1"\n'
        for n, word in ((0, "a"), (1, "b"))
    ]
    text = MELD_HEADER + "".join([*rows, rows[0].replace("a", "again")])
    (tmp_path / "test_sent_emo.csv").write_bytes(text.encode("latin-1"))
    clips = "meld.raw/output_repeated_splits_test"
    touch(tmp_path, f"__MACOSX/{clips}/._dia0_utt0.mp4", f"{clips}/dia0_utt0.mp4", f"{clips}/dia0_utt1.mp4")
    touch(tmp_path, f"{clips}/final_videos_testdia0_utt1.mp4")
    release = read_meld(tmp_path)
    assert [source.turn.text for source in release.turns] == ["it\x92s a", "it\x92s b"]
    names = [source.video.relative_to(tmp_path / clips).name for source in release.turns]
    assert names == ["dia0_utt0.mp4", "final_videos_testdia0_utt1.mp4"]
    assert any("the clips of 1 turns are those called final_videos_test" in note for note in release.notes)
    assert [p.problem for p in release.problems] == ["turn listed twice; the first is kept"]


def test_meld_real_tables():
    release = read_meld(shared_data("meld"))
    splits = [source.turn.extra["split"] for source in release.turns]
    assert {name: splits.count(name) for name in set(splits)} == {"train": 9989, "dev": 1109, "test": 2610}
    assert len({source.turn.dialogue_id for source in release.turns}) == 1038 + 114 + 280
    labels = [s.turn.label for s in release.turns if s.turn.extra["split"] == "test"]
    assert [labels.count(c) for c in meld.CLASSES] == [1256, 402, 281, 345, 208, 68, 50]
    assert [p.utterance_id for p in release.problems] == ["test_dia0155_utt03"]
    with pytest.raises(UserError, match="no train_sent_emo.csv"):
        read_meld(shared_data("emodb"))


# ---- Bring your own ---------------------------------------------------------------------------


def write_rows(root, rows):
    root.mkdir(exist_ok=True)
    with open(root / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_folder_with_manifest(tmp_path):
    root = write_rows(
        tmp_path / "mine",
        [
            {
                "audio": "a/1.wav",
                "text": "Hi",
                "label": "sad",
                "speaker": "A",
                "dialogue_id": "d1",
                "start_s": "4",
                "end_s": "5.5",
                "split": "train",
                "mood": "low",
            },
            {
                "audio": "a/2.wav",
                "text": "Ho",
                "label": "glad",
                "speaker": "B",
                "dialogue_id": "d1",
                "start_s": "1",
                "end_s": "2",
                "split": "train",
                "mood": "",
            },
            {
                "audio": "",
                "text": "Hm",
                "label": "",
                "speaker": "B",
                "dialogue_id": "d2",
                "start_s": "",
                "end_s": "",
                "split": "test",
                "mood": "",
            },
        ],
    )
    release = corpora.reader_of(str(root) + "/").read(root)
    assert release.classes == ("glad", "sad")
    first, second, third = release.turns
    assert (first.turn.turn, second.turn.turn, third.turn.turn) == (1, 0, 0)
    assert first.audio == root / "a/1.wav" and third.audio is None
    assert first.turn.extra == {"split": "train", "mood": "low"}
    assert first.turn.utterance_id == "utt000001" and first.turn.duration_s == 1.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"audio": "/etc/passwd"}, r"manifest.csv:2: audio /etc/passwd is absolute; write it relative"),
        ({"audio": "C:\\x.wav"}, r"manifest.csv:2: audio C:\\x.wav is absolute"),
        ({"video": "../other/x.mp4"}, r"manifest.csv:2: video ../other/x.mp4 leaves the folder"),
        ({"video": "..\\other\\x.mp4"}, r"leaves the folder"),
        ({"audio": "link/x.wav"}, r"leaves the folder"),
        ({"speaker": ""}, r"manifest.csv:2: no speaker"),
        ({"utterance_id": "b"}, r"manifest.csv:3: utterance_id b is already on line 2"),
        (
            {"utterance_id": "B"},
            r"manifest.csv:3: utterance_id b is already on line 2, in upper or lower case",
        ),
        ({"utterance_id": "a/b"}, r"becomes a file name"),
        ({"start_s": "soon"}, r"manifest.csv:2: could not convert string to float: 'soon'"),
        ({"start_s": "0,5"}, r"manifest.csv:2: .*'0,5'; .*seconds such as 1.5"),
        ({"start_s": "-1"}, r"manifest.csv:2: start_s -1, end_s 0"),
        ({"turn": "1.5"}, r"manifest.csv:2: turn 1.5; turn is a whole number"),
        ({"turn": "inf"}, r"manifest.csv:2: turn inf; turn is a whole number"),
        ({"start_s": "2", "end_s": "1"}, r"manifest.csv:2: start_s 2, end_s 1.*the later one last"),
        ({"end_s": "1e300"}, r"manifest.csv:2: start_s 0, end_s 1e\+300"),
        ({"utterance_id": "a" * 200}, r"becomes a file name; use letters, .* at most 150 bytes"),
        ({"utterance_id": "漢" * 60}, r"becomes a file name; use letters, .* at most 150 bytes"),
        ({"split": "holdout"}, r"manifest.csv:2: split 'holdout'; write train, dev or test"),
    ],
)
def test_folder_manifest_refusals(tmp_path, change, message):
    row = {"utterance_id": "a", "audio": "x.wav", "video": "", "label": "sad", "speaker": "A", "start_s": "0"}
    row |= {"split": "train"} if "split" in change else {}
    row |= {"end_s": ""} | ({"turn": "0"} if "turn" in change else {})
    root = write_rows(tmp_path / "mine", [{**row, **change}, {**row, "utterance_id": "b"}])
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=message):
        read_folder(root)


def test_folder_needs_speakers_and_may_lack_labels(tmp_path):
    with pytest.raises(UserError, match="lacks the column speaker"):
        read_folder(write_rows(tmp_path / "a", [{"audio": "x.wav", "label": "sad"}]))
    with pytest.raises(
        UserError, match="lacks the column text, audio or video; the columns are speaker, wav"
    ):
        read_folder(write_rows(tmp_path / "d", [{"speaker": "A", "wav": "x.wav"}]))
    release = read_folder(write_rows(tmp_path / "b", [{"speaker": "A", "label": "", "text": "oh"}]))
    assert release.classes == () and "no row has a label" in release.warnings[0]
    release = read_folder(write_rows(tmp_path / "c", [{"speaker": "A", "emotion": "sad", "text": "oh"}]))
    assert "no column label among speaker, emotion, text" in release.warnings[0]


def test_folder_rows_that_may_be_a_slip_are_named(tmp_path):
    rows = [
        {"speaker": "Anna", "label": "gl\u0075\u0308ck", "audio": "a.wav", "text": "nan", "turn": "1.0"},
        {"speaker": "anna", "label": "gl\u00fcck", "audio": "a.wav", "text": "hm", "turn": "2"},
    ]
    release = read_folder(write_rows(tmp_path / "mine", [{**row, "split": "Training"} for row in rows]))
    assert release.classes == ("gl\u00fcck",)  # one class, however the umlaut is coded
    assert [source.turn.extra["split"] for source in release.turns] == ["train", "train"]
    assert release.warnings == [
        "speakers that may be one: Anna 1, anna 1",
        "1 rows name a recording that another row has, with the same times",
        "1 texts are 'nan'; leave them empty",
    ]


@pytest.mark.parametrize("on_disk, in_cell", [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_with_an_accent_is_found_in_either_spelling(tmp_path, on_disk, in_cell):
    audio, written = (unicodedata.normalize(form, "café.wav") for form in (on_disk, in_cell))
    root = write_rows(tmp_path / "mine", [{"audio": written, "label": "sad", "speaker": "A"}])
    (root / audio).touch()
    (turn,) = corpora.reader_of(f"{root}/").read(root).turns
    assert turn.audio == root / audio


def test_a_folder_of_recordings_in_other_formats_with_a_text_in_utf_16(tmp_path):
    touch(tmp_path, "anna/a.aiff", "anna/b.wma", "anna/c.AIF")
    (tmp_path / "anna/a.txt").write_bytes("Grüße".encode("utf-16"))
    assert [(s.turn.utterance_id, s.turn.text) for s in read_folder(tmp_path).turns] == [
        ("anna-a", "Grüße"),
        ("anna-b", ""),
        ("anna-c", ""),
    ]
    (tmp_path / ("n" * 200)).with_suffix(".wav").touch()
    with pytest.raises(UserError, match="a name of more than 150 bytes; shorten it"):
        read_folder(tmp_path)


def test_a_folder_of_recordings_needs_no_manifest(tmp_path):
    for name in ("anna/hi", "anna/both", "bob/hi"):
        write_tone(tmp_path / f"{name}.wav", 0.5)
    for name in ("anna/both.avi", "notes.docx", "anna/hi.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "anna" / "hi.txt").write_text("Hello\nthere \n", encoding="utf-8")
    turns = {source.turn.utterance_id: source for source in read_folder(tmp_path).turns}
    assert list(turns) == ["anna-both", "anna-hi", "bob-hi"]
    assert turns["anna-hi"].turn.text == "Hello there" and not turns["bob-hi"].turn.text
    assert turns["anna-hi"].turn.speaker == "anna" and not turns["anna-hi"].turn.label
    assert turns["anna-both"].audio.name == "both.wav" and turns["anna-both"].video.name == "both.avi"
    write_tone(tmp_path / "anna-hi.wav", 0.5)
    with pytest.raises(UserError, match="anna/hi and anna-hi would both be called anna-hi"):
        read_folder(tmp_path)
    (tmp_path / "anna-hi.wav").rename(tmp_path / "Bob-Hi.wav")  # one file on Windows and macOS
    with pytest.raises(UserError, match="bob/hi and Bob-Hi would both be called bob-hi"):
        read_folder(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="neither a manifest.csv nor recordings"):
        read_folder(tmp_path / "none")


ROW = {"utterance_id": "a", "speaker": "A", "label": "sad", "text": "Oh, no"}
TABLE = "utterance_id,speaker,label,text\na,A,sad,It\u2019s\nb,B,glad,Ho\n"


@pytest.mark.parametrize(
    "table, encoding",
    [
        (TABLE, "utf-8-sig"),
        (TABLE, "utf-16"),
        (TABLE.replace(",", ";"), "utf-8"),
        (TABLE.replace(",", "\t"), "utf-8"),
        (TABLE.replace(",", "|"), "utf-8"),
        ("sep=;\n" + TABLE.replace(",", ";"), "utf-8"),
        (TABLE.replace("\n", "\r\n"), "utf-8"),
        (TABLE.replace("\n", "\r"), "utf-8"),
        (TABLE.replace("speaker,label", "Speaker, Label "), "utf-8"),
        (TABLE + "\n,,,\n\n", "utf-8"),
        (TABLE.replace("\n", ",,\n"), "utf-8"),
    ],
)
def test_folder_tables_as_spreadsheets_write_them(tmp_path, table, encoding):
    (tmp_path / "manifest.csv").write_bytes(table.encode(encoding))
    release = read_folder(tmp_path)
    found = {name: (s.turn.speaker, s.turn.label, s.turn.text) for name, s in by_id(release).items()}
    assert found == {"a": ("A", "sad", "It\u2019s"), "b": ("B", "glad", "Ho")}
    assert release.turns[0].turn.extra == {} and not release.warnings


@pytest.mark.parametrize(
    "table, message",
    [
        (TABLE.replace("Ho", "Oh, no, never"), r"manifest.csv:3: 6 cells, the header has 4; put a text"),
        (TABLE.replace("sad", '"sa\nd"').replace("Ho", "Ho,x"), r"manifest.csv:4: 5 cells"),
        (TABLE.replace("Ho", "H\0o"), r"manifest.csv:3: holds a NUL"),
        (TABLE.replace("text", " Speaker"), r"manifest.csv:1: column speaker is there twice"),
        (TABLE.split("\n")[0], "has no rows"),
        ("", "has no rows"),
        (
            TABLE.replace("speaker", "who"),
            "manifest.csv:1: lacks the column speaker; the columns are utterance_id, who",
        ),
        ("# my table\n" + TABLE, "manifest.csv:1: lacks the column speaker; the columns are # my table"),
        (TABLE.replace("Ho", '"Ho'), "manifest.csv:3: a quotation mark is opened and not closed"),
    ],
)
def test_folder_tables_that_cannot_be_read(tmp_path, table, message):
    (tmp_path / "manifest.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        read_folder(tmp_path)
    (tmp_path / "manifest.csv").write_bytes("caf\u00e9".encode("cp1252"))
    with pytest.raises(UserError, match="save it as CSV in UTF-8"):
        read_folder(tmp_path)


def test_folder_labels_that_may_be_one_or_none(tmp_path):
    labels = ("angry", "Angry", "angry ", "very sad", "very_sad", "nan", "N/A", "", "?")
    rows = [{**ROW, "utterance_id": f"u{k}", "label": label} for k, label in enumerate(labels)]
    assert read_folder(write_rows(tmp_path / "mine", rows)).warnings == [
        "classes that may be one: Angry 1, angry 2",
        "classes that may be one: very sad 1, very_sad 1",
        "a class of this name may be an empty cell: N/A 1, nan 1; leave it empty if so",
    ]


def test_folder_names_with_a_blank_folders_and_pipes(tmp_path):
    touch(tmp_path / "mine", " a.wav", "b/c.wav")
    os.mkfifo(tmp_path / "mine" / "pipe.wav")
    [source] = read_folder(write_rows(tmp_path / "mine", [{**ROW, "audio": " a.wav"}])).turns
    assert source.audio == tmp_path / "mine" / " a.wav"
    for name in ("b", "pipe.wav"):
        with pytest.raises(UserError, match=f"manifest.csv:2: audio {name} is not a file but a folder"):
            read_folder(write_rows(tmp_path / "mine", [{**ROW, "audio": name}]))


def test_folder_rows_of_one_recording_all_need_their_times(tmp_path):
    write_tone(tmp_path / "long.wav", 4.0)
    for end_s in ("", "1"):  # of the first row; the others have none
        spans = {"a": (0, end_s), "b": (1, ""), "c": (2, "")}
        rows = [
            {**ROW, "utterance_id": n, "audio": "long.wav", "start_s": s, "end_s": e}
            for n, (s, e) in spans.items()
        ]
        with pytest.raises(UserError, match="long.wav: several rows name it, of which [ab] has no end_s"):
            read_folder(write_rows(tmp_path, rows))


def test_folder_manifest_in_capitals(tmp_path):
    (write_rows(tmp_path, [ROW]) / "manifest.csv").rename(tmp_path / "Manifest.CSV")
    assert [source.turn.label for source in read_folder(tmp_path).turns] == [ROW["label"]]


def test_folder_columns_of_empty_cells(tmp_path):
    """What pandas writes for no value is none, and an empty column of turns is no column."""
    rows = [
        {**ROW, "utterance_id": f"t{k}", "dialogue_id": "d", "turn": "", "session": "nan"} for k in (8, 9, 10)
    ]
    turns = [source.turn for source in read_folder(write_rows(tmp_path, rows)).turns]
    assert [(turn.turn, turn.session) for turn in turns] == [(0, ""), (1, ""), (2, "")]
    with pytest.raises(UserError, match="manifest.csv:3: no turn, though others have one"):
        read_folder(write_rows(tmp_path, [{**row, "turn": turn} for row, turn in zip(rows, ("0", "", "2"))]))
    with pytest.raises(UserError, match="manifest.csv:2: no speaker"):
        read_folder(write_rows(tmp_path, [{**ROW, "speaker": "nan"}]))


def test_folder_parts_of_longer_recordings(tmp_path):
    """By several rows of one file, or by its length; a turn's own file is whole."""
    for name, seconds in (("long", 4.0), ("one", 9.0), ("own", 1.5), ("other", 1.5)):
        write_tone(tmp_path / f"{name}.wav", seconds)
    spans = {
        "a": ("long", 0, 1),
        "b": ("long", 1, 4),
        "c": ("one", 2, 3.5),
        "d": ("own", 30, 31.5),
        "e": ("other", 0, 0),
    }
    rows = [
        {**ROW, "utterance_id": name, "audio": f"{file}.wav", "start_s": start_s, "end_s": end_s}
        for name, (file, start_s, end_s) in spans.items()
    ]
    release = read_folder(write_rows(tmp_path, rows))
    assert {name: source.audio_span for name, source in by_id(release).items()} == {
        "a": (0.0, 1.0),
        "b": (1.0, 4.0),
        "c": (2.0, 3.5),
        "d": None,
        "e": None,
    }
    assert release.notes == ["audio: 3 turns are parts of 2 longer recordings"]


# ---- By name ----------------------------------------------------------------------------------


def test_a_new_corpus_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "tiny.py").write_text(
        "from common.corpora.release import Release, by_stem, files_in, single\n"
        'FOLDERS = ("Tiny",)\n'
        "def read(root):\n"
        '    release = Release(("a", "b"))\n'
        '    for name, path in by_stem(files_in(root, ".wav")).items():\n'
        "        release.turns.append(single(name, name[0], path, label=name[1]))\n"
        '    release.expect(("recordings", len(release.turns), 2))\n'
        "    return release\n"
    )
    monkeypatch.setattr(corpora, "__path__", [*corpora.__path__, str(tmp_path)])
    touch(tmp_path / "raw" / "Tiny", "sa.wav", "tb.wav")
    assert "tiny" in corpora.corpus_names() and "own" not in corpora.corpus_names()
    release = corpora.reader_of("tiny").read(corpora.find_root("tiny", tmp_path))
    assert [source.turn.label for source in release.turns] == ["a", "b"] and release.complete


def test_find_root_by_name_folder_and_typo(tmp_path):
    assert corpora.find_root("iemocap", tmp_path) == tmp_path / "raw" / "IEMOCAP_full_release"
    (tmp_path / "raw" / "ravdess").mkdir(parents=True)
    assert corpora.find_root("ravdess", tmp_path).name == "ravdess"
    with pytest.raises(UserError, match="CORPUS=iemocp: choose one of audioset, cremad"):
        corpora.find_root("iemocp", tmp_path)
