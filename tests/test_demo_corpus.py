"""The synthetic corpus: the genuine layout, determinism, and faces that move with the right voice."""

import re
import sys

import av
import numpy as np
import pytest
import soundfile
from demo_corpora import file_bytes

from common import demo
from common.demo.espeak import load_espeak
from common.demo.iemocap import EMOTIONS, SESSIONS, next_emotion, plan_dialogue, write_demo_iemocap
from common.demo.text import all_sentences, fill, sentences
from common.files import UserError, read_json

N_DIALOGUES, N_TURNS = 2, 8  # per session, per dialogue: one dialogue of each marker wearer
# Both expressions fit every line of the genuine release (FORMATS.md, section 1).
UTTERANCE_ID = re.compile(r"^Ses0[1-5][FM]_(impro0\d[ab]?|script0\d_\d[b]?)_[FM]\d{3}$")
TURN_LINE = re.compile(
    r"^\[(\d+\.\d+) - (\d+\.\d+)\]\t(\S+)\t([a-z]{3})\t\[(\d+\.\d+), (\d+\.\d+), (\d+\.\d+)\]$"
)
LABELS = {"neu", "hap", "exc", "sad", "ang", "fru", "sur", "fea", "dis", "oth", "xxx"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "IEMOCAP_full_release"
    write_demo_iemocap(root, 5, N_DIALOGUES, N_TURNS, workers=0)
    return root


def evaluations(root):
    """Genuine EmoEvaluation files: AppleDouble twins start with a dot."""
    return sorted(root.glob("Session*/dialog/EmoEvaluation/Ses*.txt"))


def read_turns(path):
    """(start_s, end_s, utterance id, label) of each turn of one EmoEvaluation file, in the file's order."""
    lines = [line for line in path.read_text().splitlines() if re.match(r"^\[\d", line)]
    matches = [TURN_LINE.match(line) for line in lines]
    assert all(matches)
    return [(float(match[1]), float(match[2]), match[3], match[4]) for match in matches]


def dialogue_file(root, name, folder, suffix):
    return root / f"Session{name[4]}" / "dialog" / folder / f"{name}{suffix}"


def read_frames(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])


def test_layout_and_counts(corpus):
    assert len(evaluations(corpus)) == len(SESSIONS) * N_DIALOGUES
    for path in evaluations(corpus):
        name = path.stem
        turns = read_turns(path)
        assert len(turns) == N_TURNS
        assert all(UTTERANCE_ID.match(utterance) for _, _, utterance, _ in turns)
        assert {label for *_, label in turns} <= LABELS
        letters = [utterance.rsplit("_", 1)[1][0] for _, _, utterance, _ in turns]
        assert letters == sorted(letters)  # all F turns, then all M turns
        wavs = sorted((corpus / f"Session{name[4]}/sentences/wav" / name).glob("Ses*.wav"))
        assert [wav.stem for wav in wavs] == sorted(utterance for _, _, utterance, _ in turns)


def test_one_transcript_per_turn(corpus):
    for path in evaluations(corpus):
        lines = dialogue_file(corpus, path.stem, "transcriptions", ".txt").read_text().splitlines()
        pairs = [line.split("]:", 1) for line in lines if UTTERANCE_ID.match(line.split(" ")[0])]
        times = {head.split(" ")[0]: head.split(" [")[1] for head, _ in pairs}
        assert len(times) == len(pairs) == N_TURNS
        assert all(text.strip() for _, text in pairs)
        for start_s, end_s, utterance, _ in read_turns(path):
            assert times[utterance] == f"{start_s:08.4f}-{end_s:08.4f}"


def test_a_speaker_never_overlaps_herself(corpus):
    for path in evaluations(corpus):
        for letter in "FM":
            spans = sorted(turn[:2] for turn in read_turns(path) if turn[2].rsplit("_", 1)[1][0] == letter)
            assert all(end_s <= start_s for (_, end_s), (start_s, _) in zip(spans, spans[1:]))


def test_audio_format_and_duration(corpus):
    path = evaluations(corpus)[0]
    dialogue = soundfile.info(dialogue_file(corpus, path.stem, "wav", ".wav"))
    assert (dialogue.channels, dialogue.samplerate, dialogue.subtype) == (2, 16000, "PCM_16")
    for start_s, end_s, utterance, _ in read_turns(path):
        turn = soundfile.info(corpus / "Session1/sentences/wav" / path.stem / f"{utterance}.wav")
        assert (turn.channels, turn.samplerate, turn.subtype) == (1, 16000, "PCM_16")
        assert turn.duration == pytest.approx(end_s - start_s, abs=2e-4)


def test_avi_covers_the_dialogue(corpus):
    for path in evaluations(corpus)[:2]:
        with av.open(str(dialogue_file(corpus, path.stem, "avi/DivX", ".avi"))) as container:
            stream = container.streams.video[0]
            n_frames = sum(1 for _ in container.decode(stream))
            assert stream.codec_context.name == "mpeg4"
            duration_s = n_frames / float(stream.average_rate)
        assert duration_s >= max(end_s for _, end_s, _, _ in read_turns(path))


@pytest.mark.parametrize("wearer", ["F", "M"])
def test_the_marker_wearer_is_on_the_left(corpus, wearer):
    """The mouth of the half that shows the speaker changes more, in nearly every turn."""
    right = 0
    names = [path.stem for path in evaluations(corpus) if path.stem[5] == wearer]
    for name in names:
        frames = read_frames(dialogue_file(corpus, name, "avi/DivX", ".avi")).astype(float)
        half = frames.shape[2] // 2
        for start_s, end_s, utterance, _ in read_turns(dialogue_file(corpus, name, "EmoEvaluation", ".txt")):
            clip = frames[int(start_s * 15) + 2 : int(end_s * 15) - 1]
            mouths = clip[:, 80:108, 30:90], clip[:, 80:108, half + 30 : half + 90]
            left_change, right_change = (np.abs(np.diff(mouth, axis=0)).mean() for mouth in mouths)
            right += (left_change > right_change) == (utterance.rsplit("_", 1)[1][0] == wearer)
    assert right >= 0.85 * len(names) * N_TURNS


def test_same_seed_same_corpus(corpus, tmp_path):
    """To the byte, whatever the number of processes."""
    write_demo_iemocap(tmp_path / "again", 5, N_DIALOGUES, N_TURNS, workers=2)
    assert file_bytes(tmp_path / "again") == file_bytes(corpus)


def test_another_seed_another_corpus():
    first, second = (plan_dialogue(session=1, number=0, n_turns=N_TURNS, seed=seed) for seed in (5, 6))
    assert [turn.text for turn in first.turns] != [turn.text for turn in second.turns]


def test_every_choice_in_the_sentence_bank_can_be_filled():
    rng, lines = np.random.default_rng(0), all_sentences()
    assert len(set(lines)) == len(lines) >= 120 and set(EMOTIONS) < set(sentences())
    for line in lines:
        for _ in range(20):
            assert not re.search(r"[(){}|]", fill(line, rng))


def test_emotion_lasts():
    """With moods that say nothing, a turn repeats the speaker's last emotion well above chance."""
    rng = np.random.default_rng(0)
    last = {"F": "sad", "M": "sad"}
    drawn = [next_emotion(last, "F", np.full(4, 0.25), rng) for _ in range(2000)]
    assert np.mean([emotion == "sad" for emotion in drawn]) == pytest.approx(0.40 + 0.25 + 0.35 / 4, abs=0.03)


# ---- The entry points of common.demo ------------------------------------------------------------


def test_missing_espeak_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # import then fails
    with pytest.raises(UserError, match="espeakng-loader"):
        load_espeak.__wrapped__()


def test_sizes_scale_the_recordings_within_the_limits():
    for corpus in demo.SYNTHETIC:
        limits = demo.SIZES[corpus].values()
        for size, number in ((1.0, 0), (1e-6, 1), (1e9, 2)):
            found = demo.sizes(corpus, size).values()
            assert list(found) == [numbers[number] for numbers in limits]
    assert demo.sizes("demo_iemocap", 0.25) == {"n_dialogues_per_session": 4, "turns_per_dialogue": 9}
    assert demo.sizes("demo_audioset", 0.25) == {"n_clips": 24}


def test_a_corpus_is_written_once_per_seed_and_size(monkeypatch, tmp_path, capsys):
    written = []

    def write(root, seed, clips_per_speaker, workers):
        root.mkdir(exist_ok=True)
        written.append((seed, clips_per_speaker, workers))

    monkeypatch.setattr("common.demo.speech.write_demo_emodb", write)
    for seed, size, workers in ((0, 1.0, 2), (0, 1.0, None), (1, 1.0, None), (1, 0.5, 0)):
        demo.write("demo_emodb", tmp_path / "demo_emodb", seed, size, workers)
    assert written == [(0, 12, 2), (1, 12, None), (1, 6, 0)]
    assert read_json(tmp_path / "demo_emodb.json") == {
        "corpus": "demo_emodb",
        "seed": 1,
        "clips_per_speaker": 6,
    }
    assert capsys.readouterr().out.count("writing the synthetic corpus") == 3
    (tmp_path / "demo_emodb").rmdir()
    demo.write("demo_emodb", tmp_path / "demo_emodb", 1, 0.5)
    assert len(written) == 4


def test_every_corpus_has_a_writer():
    from common.demo import av, iemocap, mosei, speech

    writers = {name for module in (av, iemocap, mosei, speech) for name in vars(module)}
    assert {f"write_{corpus}" for corpus in demo.SIZES} < writers and set(demo.SIZES) == set(demo.SYNTHETIC)
