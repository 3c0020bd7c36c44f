"""07 end to end on small synthetic and on real corpora: tables against scikit-learn, no test clip seen."""

import csv
import itertools
import json
import time
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import FRESH, command, execute, linked, load_script, prepare, rows, run_here, shared_data
from sklearn.metrics import balanced_accuracy_score, f1_score
from test_khare_features import small_vgg

from common import settings
from common.corpora import mosei
from common.khare import data as khare_data
from common.khare import tables as khare_tables
from common.manifest import read_manifest
from common.store import Store
from common.training import best_weights

pytest.importorskip("espeakng_loader")
pytestmark = pytest.mark.usefixtures("one_thread")
SCRIPT = "07_crossmodal_mosei.py"
SHORT = [
    "--SEEDS=0,1",
    "--WIDTH=16",
    "--HEADS=2",
    "--FEED_FORWARD=16",
    "--FPS=1",
    "--PRETRAIN_EPOCHS=3",
    "--WARMUP_STEPS=4",
    "--NOISE_WORDS=4",
    "--FINETUNE_EPOCHS=2",
    "--N_RESAMPLES=50",
    "--HELD_OUT=0.2",
    "--N_SUBSTITUTES=2",
]
MAIN = [f"{first}_text+audio+video_anchor-text" for first in ("scratch", "softmax", "nce")]
N_ROWS = 9


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("khare")
    for corpus in ("demo_mosei", "demo_voxceleb2_av"):
        prepare(folder, f"--CORPUS={corpus}", "--DEMO_SIZE=0.04")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.khare.features.vgg16", small_vgg)  # half a gigabyte of random numbers less
        run_here(folder, SCRIPT, *command(SCRIPT, folder, *SHORT)[2:], drawn=True)
    return folder


def results(folder, corpus="demo_mosei"):
    return folder / "results" / "07_crossmodal_mosei" / corpus


# ---- Tables against scikit-learn -----------------------------------------------------------


class Predicted:
    """predictions.csv as arrays: {(system, seed): (N, 6)} and the truth (N, 6)."""

    def __init__(self, folder):
        lines = rows(results(folder) / "predictions.csv")
        groups = itertools.groupby(lines, key=lambda line: (line["system"], int(line["seed"])))
        self.of, self.ids = {}, {}
        for key, group in groups:
            own = list(group)
            assert key not in self.of, "a system and seed in two places"
            self.ids[key] = [line["utterance_id"] for line in own]
            self.of[key], self.true = present(own, "y_pred"), present(own, "y_true")

    def seeds(self, system):
        return sorted(seed for name, seed in self.of if name == system)

    def score(self, system, seed, kind, place):
        return sklearn_score(self.true, self.of[system, seed], kind, place)


def present(lines, column):
    return np.array([[name in line[column].split("+") for name in mosei.EMOTIONS] for line in lines])


@pytest.mark.filterwarnings("ignore::UserWarning")  # a class that does not occur
def sklearn_score(true, found, kind, place):
    """WA or F1 in %, of an emotion or (-1) averaged over all."""

    def one(e):
        if kind == "WA":
            return balanced_accuracy_score(true[:, e], found[:, e])
        how = {"F1": "weighted", "weighted F1": "weighted", "macro F1": "macro", "positive F1": "binary"}[
            kind
        ]
        return f1_score(true[:, e], found[:, e], average=how, zero_division=0.0)

    return 100 * float(np.mean([one(e) for e in (range(6) if place == -1 else [place])]))


@pytest.fixture(scope="module")
def predicted(demo):
    return Predicted(demo)


def best_seed(demo, slug):
    """The seed whose dev score is highest, from what the trainings left."""
    folder = demo / "data" / "models" / "demo_mosei" / "khare" / slug
    dev = [
        json.loads((folder / f"seed{seed}" / "outcome.json").read_text())["history"]["best"]
        for seed in (0, 1)
    ]
    return int(np.argmax(dev))


def column_parts(column):
    emotion, score = column.split(" ", 1)
    return score, -1 if emotion == "average" else mosei.EMOTIONS.index(emotion)


def test_every_test_clip_is_predicted_once_per_system(demo, predicted):
    turns = read_manifest(demo / "data", "demo_mosei").turns
    test = {turn.utterance_id: mosei.emotions_of(turn) for turn in turns if turn.extra["split"] == "test"}
    assert test
    for ids in predicted.ids.values():
        assert sorted(ids) == sorted(test)
    key = next(iter(predicted.ids))
    assert [[name for name, there in zip(mosei.EMOTIONS, line) if there] for line in predicted.true] == [
        test[name] for name in predicted.ids[key]
    ]
    systems = {name for name, _ in predicted.of}
    assert len(systems) == 4 + 2 + 3 + 3 + 7 + 4 + 4  # conditions of the nine rows, ASR
    assert all(predicted.seeds(f"{slug}: text+audio+video") == [0, 1] for slug in MAIN)


def test_table_1_is_what_scikit_learn_finds(demo, predicted):
    table = rows(results(demo) / "khare_table_1.csv")
    ours = [line for line in table if line["mean"]]
    assert len(ours) == len(table) == 7 * 14
    assert {line["row"] for line in ours[-14:]} == {khare_tables.TFIDF}
    for line in ours[:-14]:
        label, kind = line["row"].rsplit(", ", 1)
        slug = MAIN[[*khare_tables.LABELS.values()].index(label)]
        score, place = column_parts(line["column"])
        seeds = [best_seed(demo, slug)] if kind == "best" else [0, 1]
        values = [predicted.score(f"{slug}: text+audio+video", seed, score, place) for seed in seeds]
        assert float(line["mean"]) == pytest.approx(np.mean(values), abs=1e-4)
        assert (line["sd"] != "") == (kind == "mean")
        if kind == "mean":
            assert float(line["sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-4)
        assert float(line["ci_low"]) <= float(line["mean"]) <= float(line["ci_high"])


def test_gains_are_differences_of_table_1(demo):
    table = {(line["row"], line["column"]): line for line in rows(results(demo) / "khare_table_1.csv")}
    gains = rows(results(demo) / "khare_table_gain.csv")
    assert len(gains) == 4 * 14
    for line in gains:
        base = table["baseline, " + line["row"].rsplit(", ", 1)[1], line["column"]]
        own = table[line["row"], line["column"]]
        assert float(line["mean"]) == pytest.approx(float(own["mean"]) - float(base["mean"]), abs=1e-4)


def test_table_2_is_what_scikit_learn_finds(demo, predicted):
    table, seen = rows(results(demo) / "khare_table_2.csv"), Counter()
    for line in table:
        kind, inputs = line["row"].split(": ")
        condition = inputs.replace(" + ", "+")
        slug = {
            "baseline": MAIN[0],
            "trained on these": f"scratch_{condition}_anchor-text",
            "robust": MAIN[0] + "_robust",
            "anchor audio": "scratch_text+audio+video_anchor-audio",
            "anchor video": "scratch_text+audio+video_anchor-video",
        }[kind]
        seen[kind] += 1
        if line["column"] in ("WA", "F1"):
            found = predicted.score(f"{slug}: {condition}", best_seed(demo, slug), line["column"], -1)
            assert float(line["mean"]) == pytest.approx(found, abs=1e-4), line["row"]
        assert not line["paper"]  # a synthetic corpus is not held against the paper
    assert seen == {
        "baseline": 16,
        "trained on these": 12,
        "robust": 28,
        "anchor audio": 16,
        "anchor video": 16,
    }


def test_f1_table_is_what_scikit_learn_finds(demo, predicted):
    table = rows(results(demo) / "khare_table_f1.csv")
    assert len(table) == 4 * 3
    for line in table:
        if line["row"] == "no emotion in any clip":
            found = sklearn_score(predicted.true, np.zeros_like(predicted.true), line["column"], -1)
        else:
            slug = MAIN[[*khare_tables.LABELS.values()].index(line["row"].removesuffix(", best"))]
            found = predicted.score(f"{slug}: text+audio+video", best_seed(demo, slug), line["column"], -1)
        assert float(line["mean"]) == pytest.approx(found, abs=1e-4)


def test_asr_table(demo, predicted):
    table = {(line["row"], line["column"]): line for line in rows(results(demo) / "khare_table_asr.csv")}
    for slug, label in zip(MAIN, khare_tables.LABELS.values()):
        seed = best_seed(demo, slug)
        for score in ("WA", "F1"):
            before, after = (
                predicted.score(f"{slug}: {condition}", seed, score, -1)
                for condition in ("text+audio+video", "recognised")
            )
            assert float(table[f"{label}: reference", score]["mean"]) == pytest.approx(before, abs=1e-4)
            assert float(table[f"{label}: recognised", score]["mean"]) == pytest.approx(after, abs=1e-4)
            assert float(table[f"{label}: recognised", f"change in {score}"]["mean"]) == pytest.approx(
                after - before, abs=1e-4
            )
    wer = table["words", "word error rate"]
    assert 15 < float(wer["mean"]) < 45


def test_costs_and_figures(demo):
    cost = {
        (line["row"], line["column"]): float(line["mean"])
        for line in rows(results(demo) / "khare_table_cost.csv")
    }
    for label in ("pretrained, full softmax", "pretrained, NCE"):
        assert cost[label, "perplexity"] == pytest.approx(np.exp(cost[label, "held-out loss"]), rel=1e-3)
        assert cost[label, "an epoch"] > 0 and 1 <= cost[label, "best epoch"] <= 3
    assert cost["word frequencies alone", "perplexity"] > 1
    for stem in ("khare_fig_cases", "khare_fig_pretraining"):
        assert (results(demo) / f"{stem}.png").stat().st_size > 10000
        assert (results(demo) / f"{stem}.pdf").stat().st_size > 5000


# ---- Nothing of the test is seen -----------------------------------------------------------


@pytest.fixture
def lab(demo, tmp_path):
    """The script with the demo's constants and all that it has trained, to be used in this process."""

    def load(*options):
        linked(demo, tmp_path, "prepared", "clips", "models", "raw")
        script = load_script(SCRIPT)
        settings.apply(vars(script), command(SCRIPT, tmp_path, *SHORT, *options)[2:])
        manifest = read_manifest(script.DATA_ROOT, script.CORPUS)
        fold = khare_data.fold_of(manifest, script.N_GROUPS)
        return script, *script.prepare(manifest, fold, "cpu")

    return load


def test_statistics_and_vocabulary_come_from_training_clips(lab):
    script, corpus, unlabelled, _ = lab()
    ids = corpus.parts["train"].ids
    audio = np.concatenate([corpus.store.rows(i, "audio") for i in ids]).astype(np.float64)
    assert np.allclose(corpus.stats["audio"][0], audio.mean(0), atol=1e-2)
    store, parts = unlabelled.store, unlabelled.parts
    words = khare_data.count_tokens(store, parts["train"].ids)
    words = {word: n for word, n in words.items() if word in unlabelled.vectors.row_of}
    assert dict(zip(unlabelled.numbers, unlabelled.counts.tolist())) == words
    assert unlabelled.counts.tolist() == sorted(words.values(), reverse=True)
    speakers = {name: set(part.speakers) for name, part in parts.items()}
    assert not speakers["train"] & speakers["valid"] and len(speakers["valid"]) == 2
    used = {i for part in parts.values() for i in part.ids}
    score = dict(zip(store.ids, store["facts"][:, 1]))
    assert all(score[i] >= script.MIN_SCORE for i in used)
    assert min(score.values()) < script.MIN_SCORE  # German clips are in the store


def test_a_corpus_that_is_pretrained_on_itself_hides_its_test_part(lab):
    _, corpus, unlabelled, _ = lab("--PRETRAIN_CORPUS=demo_mosei")
    own, used = corpus.parts, unlabelled.parts
    assert set(used) == {"train", "valid"} and used["train"].ids
    assert set(used["train"].ids) <= set(own["train"].ids) and set(used["valid"].ids) <= set(own["valid"].ids)
    words = {name: set(khare_data.count_tokens(corpus.store, part.ids)) for name, part in own.items()}
    assert not (words["test"] - words["train"]) & set(unlabelled.numbers)


def test_no_choice_looks_at_test_labels(lab, tmp_path):
    """With all test labels inverted the same epochs are found, in a training of its own."""
    script, corpus, _, recognised = lab()
    row = khare_tables.Row("scratch", corpus.inputs, "text")
    history = script.finetune(row, 0, corpus, recognised)["history"]
    corpus.parts["test"].targets = ~corpus.parts["test"].targets
    script.model_folder = lambda corpus, *names: tmp_path / "inverted" / names[-1]
    other = script.finetune(row, 0, corpus, recognised)["history"]

    def epochs(history):
        return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history["log"]]

    assert (tmp_path / "inverted").exists() and epochs(other) == epochs(history)


def test_pretrained_rows_start_from_the_pretrained_encoder(lab):
    script, corpus, _, _ = lab()
    for method in script.METHODS:
        folder = script.model_folder(script.PRETRAIN_CORPUS, method)
        weights = script.load_file(best_weights(folder))
        row = khare_tables.Row(method, corpus.inputs, "text")
        models = [script.build(seed, script.classifier, row, corpus, folder) for seed in (0, 1)]
        for model in models:
            for name, tensor in model.encoder.state_dict().items():
                assert torch.equal(tensor, weights[f"encoder.{name}"])
        assert not torch.equal(models[0].output.weight, models[1].output.weight)


# ---- Killed and repeated -------------------------------------------------------------------


def test_killed_run_goes_on_and_nothing_is_trained_twice(demo, tmp_path, capsys, monkeypatch):
    """Without what is beyond the paper; must find what the demo has found, never killed."""
    linked(demo, tmp_path, "prepared", "raw", "clips")
    options = [*SHORT, "--BEYOND_PAPER=False"]
    words = command(SCRIPT, tmp_path, *options)[2:]
    source = f"from conftest import run_here; run_here({str(tmp_path)!r}, {SCRIPT!r}, *{words})"
    process = FRESH.Process(target=execute, args=(source, tmp_path, tmp_path / "printed.txt"))
    process.start()
    network = tmp_path / "data" / "models" / "demo_voxceleb2_av" / "khare" / "nce"
    while process.is_alive() and not (network / "best.safetensors").exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert not (network / "outcome.json").exists(), "killed too late to show anything"
    run_here(tmp_path, SCRIPT, *words)
    resumed = capsys.readouterr().out
    assert "softmax: already trained" in resumed and resumed.count("recordings are there") == 3
    mine = (results(tmp_path) / "predictions.csv").read_text()
    systems = {line["system"] for line in rows(results(tmp_path) / "predictions.csv")}
    assert len(systems) == 4 + 2 + 3
    theirs = rows(results(demo) / "predictions.csv")
    assert rows(results(tmp_path) / "predictions.csv") == [
        line for line in theirs if line["system"] in systems
    ]
    table = rows(results(tmp_path) / "khare_table_1.csv")

    captions = []
    monkeypatch.setattr("common.plots.save", lambda *figure: captions.append(figure[-1]) or [])
    named = theirs[0]["utterance_id"]
    run_here(tmp_path, SCRIPT, *words, f"--CASES={named}")
    again = capsys.readouterr().out
    assert again.count(": already trained") == 2 + 3 * 2
    assert (results(tmp_path) / "predictions.csv").read_text() == mine
    cells = [line | {"command": ""} for line in rows(results(tmp_path) / "khare_table_1.csv")]
    assert cells == [line | {"command": ""} for line in table]
    assert "test clips as named" in captions[-1]


# ---- Constants -----------------------------------------------------------------------------


def test_default_constants_are_the_papers():
    script = load_script(SCRIPT)
    c = {name: getattr(script, name) for name in dir(script) if name.isupper()}
    assert (c["WIDTH"], c["DEPTH"], c["HEADS"], c["FEED_FORWARD"], c["ANCHOR"]) == (512, 4, 4, 200, "text")
    assert c["TERM_WEIGHTS"] == (0.33, 0.33, 0.33) and len(c["SEEDS"]) == 10
    assert (c["HIDDEN_SHARE"], c["PRETRAIN_EPOCHS"], c["BETAS"], c["EPS"]) == (0.15, 20, (0.9, 0.98), 1e-9)
    assert (c["CORPUS"], c["PRETRAIN_CORPUS"], c["FRAME_SIZE"]) == ("mosei", "voxceleb2", 0)


@pytest.mark.parametrize(
    "option, told",
    [
        ("--MODALITIES=text,smell", "MODALITIES=smell: choose from text"),
        ("--METHODS=", "METHODS=: must not be empty"),
        ("--ANCHOR=touch", "choose from text"),
        ("--ANCHOR=audio", "masked words need ANCHOR=text"),
        ("--SEEDS=0,-1", "SEEDS=0,-1"),
        ("--MIN_SCORE=nan", "MIN_SCORE=nan"),
        ("--DEPTH=100000", "would not fit"),
        ("--NOISE_WORDS=1000000", "NOISE_WORDS"),
        ("--BETAS=0.9", "two numbers below 1"),
        ("--FRAME_SIZE=8", "0 or 32 to 1024"),
        ("--WIDTH=31", "do not divide"),
        ("--MIN_SCORE=-0.0001", "no clip with words is left"),
        ("--CASES=nobody[1]", "no such clip in the test part"),
        ("--TERM_WEIGHTS=1", "three weights"),
        ("--FPS=0", "FPS=0"),
    ],
)
def test_bad_constants_and_missing_files_end_in_one_line(demo, tmp_path, option, told):
    linked(demo, tmp_path, "prepared", "clips", "raw", *["models"] * ("CASES" in option))
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path, SCRIPT, *command(SCRIPT, tmp_path, *SHORT, option)[2:])
    message = ended.value.code  # Python prints it and exits with 1
    assert message.startswith("error: ") and told in message and "\n" not in message


def test_all_that_is_missing_is_listed_at_once(tmp_path):
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path, SCRIPT, f"--DATA_ROOT={tmp_path}", "--TRANSCRIPTS=a.csv", "--VGG_WEIGHTS=vgg.pth")
    named = [part.partition("=")[0] for part in ended.value.code.removeprefix("error: ").split("; ")]
    assert named[:4] == ["CORPUS", "PRETRAIN_CORPUS", "GLOVE", "TRANSCRIPTS"] and "VGG_WEIGHTS" in named
    assert "--scratch" in ended.value.code and "\n" not in ended.value.code


def test_weights_of_vgg_are_looked_at_before_anything_slow(demo, tmp_path, monkeypatch):
    linked(demo, tmp_path, "prepared", "raw")
    monkeypatch.setattr("common.khare.features.vgg16", small_vgg)
    state = small_vgg().state_dict()
    state["features.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "vgg.pth")
    options = "--RANDOM_VGG=False", f"--VGG_WEIGHTS={tmp_path}/vgg.pth"
    with pytest.raises(SystemExit, match="vgg.pth: NaN or infinity in its weights .features.0.weight"):
        run_here(tmp_path, SCRIPT, *command(SCRIPT, tmp_path, *SHORT, *options)[2:])
    assert not (tmp_path / "data" / "clips").exists()


def test_prepare_only(demo, tmp_path, capsys):
    linked(demo, tmp_path, "prepared", "clips", "raw")
    run_here(tmp_path, SCRIPT, *command(SCRIPT, tmp_path, *SHORT, "--PREPARE_ONLY=True")[2:])
    printed = capsys.readouterr().out
    assert "recordings are there" in printed and not (results(tmp_path) / "metrics.json").exists()


# ---- Real recordings and dialogues ---------------------------------------------------------

TINY = [
    "--SEEDS=0",
    "--WIDTH=16",
    "--DEPTH=1",
    "--FINETUNE_EPOCHS=1",
    "--N_RESAMPLES=20",
    "--PRETRAIN_EPOCHS=1",
    "--WARMUP_STEPS=5",
]


def test_words_of_meld(tmp_path):
    """A few dialogues of each part, in the documented way: `07 --scratch --CORPUS=meld`."""
    (tmp_path / "raw").mkdir()
    for path in shared_data("meld").glob("*_sent_emo.csv"):
        lines = rows(path)
        kept = [line for line in lines if int(line["Dialogue_ID"]) < 40]
        with open(tmp_path / "raw" / path.name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, kept[0])
            writer.writeheader()
            writer.writerows(kept)
    prepare(tmp_path, "--CORPUS=meld", f"--CORPUS_ROOT={tmp_path}/raw")
    run_here(tmp_path, SCRIPT, "--scratch", "--CORPUS=meld", *command(SCRIPT, tmp_path, *TINY)[3:])
    table = rows(results(tmp_path, "meld") / "khare_table_1.csv")
    assert {line["row"] for line in table} == {
        khare_tables.TFIDF,
        *(f"{label}, {kind}" for label in khare_tables.LABELS.values() for kind in ("best", "mean")),
    }
    assert not any(line["paper"] for line in table)
    assert not (results(tmp_path, "meld") / "khare_table_2.csv").exists()  # there is one modality
    predictions = rows(results(tmp_path, "meld") / "predictions.csv")
    n_test = sum(turn.extra["split"] == "test" for turn in read_manifest(tmp_path / "data", "meld").turns)
    assert len(predictions) == 3 * n_test
    store = Store(tmp_path / "data" / "clips" / "meld" / "khare")
    assert not len(store["audio"]) and len(store["word_times"])


def test_sound_of_ravdess(tmp_path):
    """Five actors, one clip per emotion: `07 --scratch --CORPUS=ravdess ... --ANCHOR=audio`."""
    for path in sorted(shared_data("ravdess").glob("Actor_0[1-5]/*-01-01-01-??.wav")):
        (tmp_path / "raw" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / path.parent.name / path.name).symlink_to(path.resolve())
    prepare(tmp_path, "--CORPUS=ravdess", f"--CORPUS_ROOT={tmp_path}/raw", "--MEDIA_IN_PLACE=True")
    run_here(
        tmp_path,
        SCRIPT,
        "--scratch",
        "--CORPUS=ravdess",
        *command(SCRIPT, tmp_path, *TINY)[3:],
        "--PRETRAIN_CORPUS=",
        "--MODALITIES=audio",
        "--ANCHOR=audio",
    )
    table = rows(results(tmp_path, "ravdess") / "khare_table_classes.csv")
    assert {line["row"] for line in table} == {"scratch_audio_anchor-audio"}
    store = Store(tmp_path / "data" / "clips" / "ravdess" / "khare")
    assert store.spans("audio")[1].all() and not len(store["video"])
    speakers = {line["speaker"] for line in rows(results(tmp_path, "ravdess") / "predictions.csv")}
    assert speakers == {"Actor_05"}
