"""The numbered scripts run in order as a newcomer would, on a small synthetic corpus."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, command, linked, load_script, prepare, rows, run, run_again, run_here

from common.manifest import Manifest
from common.store import Store

LI_SHORT = ["--SYSTEMS=WavLM+TE,BERT+FC,MMT", "--FROZEN_EPOCHS=2", "--FINETUNE_EPOCHS=1"]
LI_SHORT += ["--CONTEXT_EPOCHS=2"]
SHORT = ["--TEXT_EPOCHS=2,1,1", "--AUDIO_EPOCHS=1", "--VIDEO_EPOCHS=1", "--N_RESAMPLES=200", "--JOBS=1"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    run("01_prepare_data.py", folder, "--DEMO_SIZE=0.16")
    printed = run_again("02_finetune_unimodal.py", folder, *SHORT, drawn=True)
    assert "every labelled turn is tested exactly once; no speaker is in two parts" in printed
    run_again("03_extract_features.py", folder)
    run_again("04_fuse_classify.py", folder, "--N_RESAMPLES=200", *LI_SHORT, drawn=True)
    return folder


def results(folder, script):
    return folder / "results" / script / "demo_iemocap"


@pytest.mark.parametrize(
    "script, stems",
    [
        ("01_prepare_data", ["babaali_fig_1_labels"]),
        (
            "02_finetune_unimodal",
            [
                "babaali_fig_2_text_loss",
                "babaali_fig_3_speech_loss",
                "babaali_fig_4_video_loss",
                "babaali_fig_5_text_accuracy",
                "babaali_fig_6_speech_accuracy",
                "babaali_fig_7_video_accuracy",
            ],
        ),
        (
            "04_fuse_classify",
            [
                "babaali_fig_8_text",
                "babaali_fig_9_speech",
                "babaali_fig_10_video",
                "babaali_fig_11_fused",
                "babaali_fig_12_confusion",
                "li_fig_4_confusion",
            ],
        ),
    ],
)
def test_every_figure_is_there(demo, script, stems):
    for stem in stems:
        assert (results(demo, script) / f"{stem}.png").stat().st_size > 5000, stem
        assert (results(demo, script) / f"{stem}.pdf").stat().st_size > 2000, stem


@pytest.mark.parametrize(
    "script, stem",
    [("02_finetune_unimodal", f"babaali_table_{n}") for n in (1, 2, 3, 4)]
    + [("04_fuse_classify", f"babaali_table_{n}") for n in (5, 6, 7)]
    + [("04_fuse_classify", f"li_table_{n}") for n in (1, 2)],
)
def test_every_table_has_ours_and_no_number_of_the_paper(demo, script, stem):
    table = rows(results(demo, script) / f"{stem}.csv")
    assert {"row", "column", "paper", "mean", "sd", "ci_low", "ci_high", "n", "corpus", "protocol"} <= set(
        table[0]
    )
    assert all(line["corpus"] == "demo_iemocap" and not line["paper"] for line in table)
    scored = [line for line in table if line["ci_low"] and line["mean"]]
    assert scored and all(float(s["ci_low"]) <= float(s["ci_high"]) for s in scored)
    assert "Made by" in (results(demo, script) / f"{stem}.md").read_text()


def test_paper_numbers_stand_beside_the_right_rows():
    script, iemocap = load_script("02_finetune_unimodal.py"), Manifest("iemocap", ROOT, (), [])
    found = script.printed_figures(iemocap, "4", "bert-base-uncased")
    assert found == {"Loss": 1.27, "Accuracy": 67.5, "Runtime": 3.75}
    found = script.printed_figures(iemocap, "2", "ast-finetuned-audioset-10-10-0.4593")
    assert found == {"Loss": 3.07, "Accuracy": 61.0}  # 0.61 in the paper
    assert script.printed_figures(iemocap, "4", "best text model of each fold") == {}
    assert script.printed_figures(Manifest("ravdess", ROOT, (), []), "4", "bert-base-uncased") == {}


def test_every_labelled_turn_is_predicted_once_per_system(demo):
    manifest = rows(demo / "data" / "prepared" / "demo_iemocap" / "manifest.csv")
    labelled = {r["utterance_id"]: r["label"] for r in manifest if r["label"]}
    for script, name in (
        ("02_finetune_unimodal", "predictions"),
        ("04_fuse_classify", "predictions"),
        ("04_fuse_classify", "li_predictions"),
    ):
        predictions = rows(results(demo, script) / f"{name}.csv")
        for system, seed in {(p["system"], p["seed"]) for p in predictions}:
            own = [p for p in predictions if (p["system"], p["seed"]) == (system, seed)]
            assert sorted(p["utterance_id"] for p in own) == sorted(labelled), system
            assert all(p["y_true"] == labelled[p["utterance_id"]] for p in own)


def test_stores_hold_all_turns_and_name_their_speakers(demo):
    manifest = rows(demo / "data" / "prepared" / "demo_iemocap" / "manifest.csv")
    for modality in ("text", "audio", "video"):
        for k in range(1, 6):
            store = Store(demo / "data" / "features" / "demo_iemocap" / modality / "seed0" / f"fold{k}")
            assert sorted(store.ids) == sorted(r["utterance_id"] for r in manifest)
            assert np.isfinite(store["features"]).all() and store["logits"].shape[1] == 4
            parts = [set(store.meta[f"{p}_speakers"]) for p in ("train", "valid", "test")]
            assert (
                parts[2] == {f"Ses0{k}F", f"Ses0{k}M"}
                and not parts[0] & parts[1]
                and not (parts[0] | parts[1]) & parts[2]
            )


def test_metrics_record_how_they_were_made(demo):
    metrics = json.loads((results(demo, "02_finetune_unimodal") / "metrics.json").read_text())
    assert metrics["settings"]["TEXT_EPOCHS"] == [2, 1, 1] and metrics["versions"] and metrics["device"]
    assert str(demo) not in json.dumps(metrics).replace(json.dumps(metrics["settings"]), "").replace(
        metrics["command"], ""
    )


def test_a_second_run_does_nothing_again(demo):
    before = (results(demo, "02_finetune_unimodal") / "predictions.csv").read_bytes()
    printed = run_again("02_finetune_unimodal.py", demo, *SHORT)
    assert "accuracy: valid" not in printed and printed.count("recordings are there") == 4
    assert (results(demo, "02_finetune_unimodal") / "predictions.csv").read_bytes() == before
    printed = run_again("03_extract_features.py", demo).splitlines()
    assert sum("features of" in line and line.endswith("are there") for line in printed) == 15


def test_features_of_another_manifest_are_refused(demo, tmp_path):
    for part in ("prepared", "models"):
        shutil.copytree(demo / "data" / part, tmp_path / "data" / part)
    path = tmp_path / "data" / "prepared" / "demo_iemocap" / "manifest.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",happy,", ",,", 1), encoding="utf-8")
    assert "run 02_finetune_unimodal.py again" in run("03_extract_features.py", tmp_path, code=1)


def test_killed_training_resumes_to_the_same_predictions(demo, tmp_path):
    for part in ("prepared", "checkpoints"):
        shutil.copytree(demo / "data" / part, tmp_path / "data" / part)
    options = [*SHORT, "--MODALITIES=text", "--STAGES=folds"]
    words = command("02_finetune_unimodal.py", tmp_path, *options)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    for line in process.stdout:
        if "fold2 seed 0" in line:  # tested; the third fold begins
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (results(tmp_path, "02_finetune_unimodal") / "predictions.csv").exists()
    printed = run_again("02_finetune_unimodal.py", tmp_path, *options)
    assert printed.count("accuracy: valid") == 3

    def text_predictions(folder):
        found = rows(results(folder, "02_finetune_unimodal") / "predictions.csv")
        return [row for row in found if "bert" in row["system"]]

    assert text_predictions(tmp_path) == text_predictions(demo)


def test_each_fold_takes_the_best_candidate_on_its_validation_speakers(demo, tmp_path):
    (tmp_path / "data").mkdir()
    for part in ("prepared", "checkpoints"):
        (tmp_path / "data" / part).symlink_to(demo / "data" / part)
    options = ["--TEXT_MODELS=bert-base-uncased,distilbert-base-uncased", "--STAGES=folds"]
    more = ["--CHOSEN_MODELS=", "--MODALITIES=text", "--JOBS=2"]
    run_again("02_finetune_unimodal.py", tmp_path, *SHORT, *options, *more)
    for k in range(1, 6):
        fold = tmp_path / "data" / "models" / "demo_iemocap" / "text" / "seed0" / f"fold{k}"
        histories = {p.parent.name: json.loads(p.read_text())["history"] for p in fold.glob("*/outcome.json")}
        best = {name: history["best"] for name, history in histories.items()}
        chosen = json.loads((fold / "chosen.json").read_text())["model"]
        assert len(best) == 2 and best[chosen] == max(best.values())
    table = rows(results(tmp_path, "02_finetune_unimodal") / "babaali_table_4.csv")
    assert table[0]["row"] == "best text model of each fold"


def test_selecting_on_the_test_set_is_labelled(demo, tmp_path):
    for part in ("prepared", "checkpoints"):
        shutil.copytree(demo / "data" / part, tmp_path / "data" / part)
    run_again(
        "02_finetune_unimodal.py", tmp_path, *SHORT, "--MODALITIES=text", "--STAGES=folds", "--SELECT_ON=test"
    )
    table = rows(results(tmp_path, "02_finetune_unimodal") / "babaali_table_4.csv")
    assert all("TEST set" in line["protocol"] for line in table)


def test_out_of_fold(demo, tmp_path):
    for part in ("prepared", "checkpoints"):
        shutil.copytree(demo / "data" / part, tmp_path / "data" / part)
    run_again(
        "02_finetune_unimodal.py",
        tmp_path,
        *SHORT,
        "--TEXT_EPOCHS=1,1,1",
        "--MODALITIES=text,audio",
        "--FREEZE=text,audio",
        "--STAGES=folds",
        "--OUT_OF_FOLD=true",
    )
    run_again("03_extract_features.py", tmp_path)
    run_again(
        "04_fuse_classify.py",
        tmp_path,
        "--PAPERS=babaali",
        "--OUT_OF_FOLD=true",
        "--MODALITIES=text,audio",
        "--N_RESAMPLES=200",
    )
    out = [
        r["row"] + r["column"] for r in rows(results(tmp_path, "04_fuse_classify") / "babaali_table_6.csv")
    ]
    assert any("out-of-fold" in name.lower() or "out of fold" in name.lower() for name in out)


def test_test_turns_in_noise(demo, tmp_path):
    """Extracted apart from the clean ones, louder noise changes the features more; 04 scores them."""
    linked(demo, tmp_path, "models", "checkpoints", "prepared")
    shutil.copytree(demo / "data" / "features", tmp_path / "data" / "features")
    words = ["--MODALITIES=audio", "--NOISE_SNR_DB=40,-10"]
    run_here(tmp_path, *in_process("03_extract_features.py", tmp_path, *words))
    folder = tmp_path / "data" / "features" / "demo_iemocap"
    for k in range(1, 6):
        clean, faint, loud = (
            Store(folder / n / "seed0" / f"fold{k}") for n in ("audio", "audio_40dB", "audio_-10dB")
        )
        assert faint.ids == loud.ids and {i[:5] for i in faint.ids} == {f"Ses0{k}"}
        x = clean["features"][[clean.positions[i] for i in faint.ids]]
        changes = [np.abs(store["features"] - x).mean() for store in (faint, loud)]
        assert 0 < changes[0] < changes[1] / 2
    words = ["--PAPERS=babaali", "--N_RESAMPLES=200", "--CLASSIFIERS=SVM", "--FUSIONS=concatenation"]
    run_here(tmp_path, *in_process("04_fuse_classify.py", tmp_path, *words))
    table = rows(results(tmp_path, "04_fuse_classify") / "babaali_table_noise.csv")
    assert list(dict.fromkeys(r["row"] for r in table)) == ["40 dB", "-10 dB", "no noise added"]
    assert {r["column"] for r in table} == {"audio", "text+audio+video"}
    with pytest.raises(SystemExit, match="NOISE_SNR_DB=loud: give numbers of decibels"):
        run_here(tmp_path, *in_process("03_extract_features.py", tmp_path, "--NOISE_SNR_DB=loud"))


def in_process(script, folder, *words):
    """What run_here takes after the folder."""
    return script, *command(script, folder, *words)[2:]


def trained_on_demo(demo, folder, corpus, *options):
    """Run 03 and 04 on a prepared corpus with the models of the demo; returns the folder of 04's results."""
    for script, more in (
        ("03_extract_features.py", ()),
        ("04_fuse_classify.py", ("--PAPERS=babaali", *options)),
    ):
        words = [f"--CORPUS={corpus}", "--TRAINED_ON=demo_iemocap", *more]
        run_here(folder, *in_process(script, folder, *words))
    return folder / "results" / "04_fuse_classify" / Path(corpus).name


def test_clips_of_a_user_are_decided_by_the_models_of_the_demo(demo, tmp_path, capsys):
    """Three recordings without labels, one without words, none with a picture."""
    linked(demo, tmp_path, "models", "checkpoints")
    for part in ("prepared", "features"):
        shutil.copytree(demo / "data" / part, tmp_path / "data" / part)
    clips = tmp_path / "clips"
    clips.mkdir()
    recordings = sorted((demo / "data" / "prepared" / "demo_iemocap").rglob("*.wav"))[:3]
    for name, path in zip("abc", recordings, strict=True):
        shutil.copy(path, clips / f"{name}.wav")
    (clips / "a.txt").write_text("i hate this")
    (clips / "b.txt").write_text("i am so happy")
    prepare(tmp_path, f"--CORPUS={clips}/", "--MAX_PROBLEM_SHARE=1")
    folder = trained_on_demo(demo, tmp_path, f"{clips}/")
    printed = capsys.readouterr().out
    assert "video: clips has none; left out" in printed and "video: no features of clips" in printed
    assert "1 turns lack text" in printed and re.search(r"\n  a  \w+ 0\.\d\d", printed)
    found = rows(folder / "probabilities.csv")
    assert len(found) == 3 * 4 and {row["system"] for row in found} >= {"SVM on text + audio", "late fusion"}
    for row in found:
        shares = {name: float(row[name]) for name in ("angry", "happy", "neutral", "sad")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert shares[row["decision"]] == max(shares.values())
    assert {r["row"] for r in rows(folder / "babaali_table_clips.csv")} == {"a", "b", "c"}
    meta = (
        tmp_path / "data" / "features" / "clips_by_demo_iemocap" / "audio" / "seed0" / "fold1" / "meta.json"
    )
    meta.write_text(re.sub('"trained": "[0-9a-f]+"', '"trained": "0"', meta.read_text()))
    with pytest.raises(SystemExit, match="by another model than .*; run 03 again on both corpora"):
        words = [f"--CORPUS={clips}/", "--TRAINED_ON=demo_iemocap", "--PAPERS=babaali"]
        run_here(tmp_path, *in_process("04_fuse_classify.py", tmp_path, *words))
    assert (folder / "babaali_fig_clips.png").exists() and not (
        folder / "babaali_table_transfer.csv"
    ).exists()


def test_a_labelled_corpus_is_scored_by_the_models_of_another(demo, tmp_path, capsys):
    """The demo's own turns under other names of the classes: scored far above chance, and as train x test."""
    linked(demo, tmp_path, "models", "checkpoints")
    for part in ("prepared", "features"):
        shutil.copytree(demo / "data" / part, tmp_path / "data" / part)
    shutil.copytree(results(demo, "04_fuse_classify"), results(tmp_path, "04_fuse_classify"))
    other = tmp_path / "data" / "prepared" / "other"
    shutil.copytree(demo / "data" / "prepared" / "demo_iemocap", other)
    text = (other / "manifest.csv").read_text(encoding="utf-8")
    (other / "manifest.csv").write_text(text.replace(",happy,", ",joy,"), encoding="utf-8")
    about = json.loads((other / "classes.json").read_text())
    about |= {"corpus": "other", "classes": ["angry", "joy", "neutral", "sad"], "root": ""}
    (other / "classes.json").write_text(json.dumps(about))
    folder = trained_on_demo(demo, tmp_path, "other", "--LABELS=joy=happy,sad=")
    assert "joy is scored as happy" in capsys.readouterr().out
    table = {(r["row"], r["column"]): r for r in rows(folder / "babaali_table_transfer.csv")}
    found = table["SVM on text + audio + video", "accuracy"]
    assert int(found["n"]) == sum(r["label"] not in ("", "sad") for r in rows(other / "manifest.csv"))
    assert float(found["mean"]) > 50 and float(found["ci_low"]) <= float(
        found["mean"]
    )  # most were trained on
    note = (folder / "babaali_table_transfer.md").read_text()
    assert "left out: sad" in note and "other has no sad" in note
    pairs = {(r["row"], r["column"]) for r in rows(folder / "babaali_table_train_test.csv")}
    assert pairs == {("trained on demo_iemocap", f"tested on {name}") for name in ("demo_iemocap", "other")}
    with pytest.raises(SystemExit, match="LABELS=joy=hapy: other has .*; the models know angry, happy"):
        trained_on_demo(demo, tmp_path, "other", "--LABELS=joy=hapy")


@pytest.mark.parametrize(
    "script, options, words",
    [
        ("02_finetune_unimodal.py", ["--CORPUS=absent"], "01_prepare_data.py"),
        ("03_extract_features.py", ["--CORPUS=absent"], "01_prepare_data.py"),
        ("04_fuse_classify.py", ["--CORPUS=absent"], "01_prepare_data.py"),
        ("02_finetune_unimodal.py", ["--CHECKPOINTS=nowhere"], "no checkpoint there"),
        ("02_finetune_unimodal.py", ["--TEXT_EPOCHS="], "TEXT_EPOCHS"),
        ("03_extract_features.py", ["--SEEDS=7"], "run 02_finetune_unimodal.py first"),
        ("02_finetune_unimodal.py", ["--CHOSEN_MODELS=gpt"], "CHOSEN_MODELS"),
    ],
)
def test_bad_settings_end_in_one_line(demo, script, options, words):
    with pytest.raises(SystemExit) as end:
        run_here(demo, script, *command(script, demo, *options)[2:])
    message = str(end.value)
    assert message.startswith("error: ") and words in message and "\n" not in message


def test_results_that_cannot_be_written(demo, tmp_path):
    (tmp_path / "results").write_text("a file, not a folder")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "02_finetune_unimodal.py"),
            "--demo",
            f"--DATA_ROOT={demo}/data",
            f"--RESULTS_ROOT={tmp_path}/results",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1
        and "a file stands where a folder is needed" in done.stderr
        and "Traceback" not in done.stderr
    )
