"""04 with PAPERS=babaali end to end on synthetic stores, its protocol (nothing learns from test turns) and
what it refuses."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import figures, load_script
from sklearn.svm import SVC

from common import results, settings, splits
from common.babaali import prediction
from common.babaali.features import Parts, StoredFeatures, divide, standardise, without_rounding
from common.babaali.prediction import class_scores, tempered
from common.babaali.tables import reliability
from common.files import UserError
from common.manifest import Manifest, Turn, write_manifest
from common.store import StoreWriter

CLASSES = ("neutral", "happy", "angry", "sad")
QUICK = ("--SEEDS=0", "--NN_EPOCHS=3", "--NN_HIDDEN=16", "--XGB_ROUNDS=3", "--N_RESAMPLES=200")
TABLES = ("5", "6", "7", "sec4_3", "subsets", "tests", "groups", "calibration")
FIGURES = ("8_text", "9_speech", "10_video", "11_fused", "12_confusion", "calibration")


def make_corpus(root, corpus="demo_iemocap", per_speaker=8, split=None):
    """Ten speakers in five sessions (one group of actors and an official split where `split` is given)."""
    turns = []
    for s in range(10):
        for i in range(per_speaker):
            session = "" if split else f"Ses0{s // 2 + 1}"
            extra = {"split": split(i)} if split else {}
            turns.append(
                Turn(
                    f"s{s}_{i}", f"d{s}", i, f"s{s}", session, i, i + 1, "hello", CLASSES[i % 4], extra=extra
                )
            )
    manifest = Manifest(corpus, Path(root) / "prepared" / corpus, CLASSES, turns)
    write_manifest(manifest)
    return manifest


def vectors(manifest, width, strength, seed):
    """Gaussian class means; the labelled turns of the manifest in order. (N, width), (N, C) logits"""
    rng = np.random.default_rng(seed)
    means = strength * rng.normal(size=(len(CLASSES), width))
    y = np.array([CLASSES.index(turn.label) for turn in manifest.labelled])
    x = (means[y] + rng.normal(size=(len(y), width))).astype(np.float32)
    return x, (x @ means.T).astype(np.float32)


def make_store(folder, manifest, arrays, fold=None):
    meta = {"classes": list(CLASSES), "manifest": manifest.fingerprint()}
    if fold:
        parts = {"train": fold.train, "valid": fold.valid, "test": fold.test}
        meta |= {
            "fold": fold.name,
            "select_on": "validation",
            "validate_on": "group",
            **{f"{part}_speakers": splits.speakers_of(turns) for part, turns in parts.items()},
        }
    writer = StoreWriter(folder, meta)
    writer.add([turn.utterance_id for turn in manifest.labelled], arrays)
    writer.finish()


def make_stores(root, manifest, folds, widths=(6, 6, 6), corpus="demo_iemocap"):
    strengths = {"text": 0.9, "audio": 0.8, "video": 0.3}
    for (modality, strength), width in zip(strengths.items(), widths):
        for k, fold in enumerate(folds):
            features, logits = vectors(manifest, width, strength, [len(modality), ord(modality[0]), k])
            make_store(
                root / "features" / corpus / modality / "seed0" / fold.name,
                manifest,
                {"features": features, "logits": logits},
                fold,
            )


def run_04(root, *words, script=None):
    """Run 04 for this paper with a command line and return its results folder of demo_iemocap."""
    script = script or load_script("04_fuse_classify.py")
    roots = (
        f"--DATA_ROOT={root}",
        f"--RESULTS_ROOT={root}/results",
        "--CORPUS=demo_iemocap",
        "--RUN=demo_iemocap",
    )
    settings.apply(vars(script), [*roots, "--PAPERS=babaali", *QUICK, *words])
    with figures():  # test_demo_end_to_end.py has them drawn
        script.main()
    return root / "results" / "04_fuse_classify" / "demo_iemocap"


def script_with(*words):
    """04 with the constants of a command line."""
    script = load_script("04_fuse_classify.py")
    settings.apply(vars(script), words)
    return script


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    manifest = make_corpus(root)
    folds = splits.make_folds(manifest, 5, "group", "validation", 0)
    pairs = splits.make_folds(manifest, 5, "speaker", "validation", 0, leave_out=2)
    make_stores(root, manifest, folds + pairs)
    with pytest.MonkeyPatch.context() as patch:  # as if this were the release and all constants the paper's
        patch.setattr(results, "incomparable", lambda *run: "")
        return root, manifest, run_04(root)


def read_table(folder, name):
    with open(folder / f"babaali_table_{name}.csv", encoding="utf-8") as file:
        return {(row["row"], row["column"]): row for row in csv.DictReader(file)}


def test_it_leaves_every_table_and_figure(finished):
    folder = finished[2]
    expected = {f"babaali_table_{name}.{kind}" for name in TABLES for kind in ("csv", "md")}
    expected |= {f"babaali_fig_{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")}
    expected |= {"metrics.json", "log.jsonl", "predictions.csv", "index.html"}
    assert {path.name for path in folder.iterdir()} == expected


def test_tables_hold_the_papers_numbers_and_ours(finished):
    five, six = (read_table(finished[2], name) for name in "56")
    assert five["concatenation", "SVM"]["paper"] == "75.451" and six["sum", "average"]["paper"] == "72.47"
    assert five["product", "SVM"]["paper"] == "" and five["product", "SVM"]["mean"]
    assert six["concatenation, out of fold", "SVM"]["mean"]
    assert six["concatenation, out of fold", "SVM"]["paper"] == ""
    mean = np.mean([float(five["sum", name]["mean"]) for name in ("SVM", "NN", "XGBoost")])
    assert float(five["sum", "average"]["mean"]) == pytest.approx(mean, abs=1e-4)
    assert all(row["n"] == "80" and row["n_runs"] == "5" for row in five.values())
    assert len({row for row, _ in read_table(finished[2], "subsets")}) == 8
    assert read_table(finished[2], "7")["angry", "Recall"]["paper"] == "85.66"
    others = read_table(finished[2], "sec4_3")
    assert others["[2] Poria et al. 2018, with context", "accuracy"]["paper"] == "76.1"


def test_every_turn_is_predicted_once_and_the_accuracy_can_be_recounted(finished):
    _, manifest, folder = finished
    with open(folder / "predictions.csv", encoding="utf-8") as file:
        final = "early concatenation SVM text+audio+video"
        rows = [row for row in csv.DictReader(file) if row["system"] == final]
    assert sorted(row["utterance_id"] for row in rows) == sorted(t.utterance_id for t in manifest.labelled)
    right = {}
    for row in rows:
        right.setdefault(row["fold"], []).append(row["y_true"] == row["y_pred"])
    recounted = 100 * np.mean([np.mean(fold) for fold in right.values()])
    reported = float(read_table(folder, "5")["concatenation", "SVM"]["mean"])
    assert reported == pytest.approx(recounted, abs=1e-4)
    found = json.loads((folder / "metrics.json").read_text())["metrics"]["babaali_table_5/concatenation/SVM"]
    assert found["mean"] == pytest.approx(recounted) and len(found["per_run"]) == 5


def test_fusion_beats_its_weakest_modality_by_a_tested_margin(finished):
    tests = read_table(finished[2], "tests")
    gain = tests["video alone", "gain of the final model"]
    assert float(gain["ci_low"]) > 0
    assert float(tests["video alone", "by speaker, Holm"]["mean"]) < 0.05


def test_the_papers_selection_sets_training_speakers_aside():
    turns = [Turn(f"{s}", "d", 0, f"s{s}", "", 0, 1, label="sad") for s in range(10)]
    parts = divide(splits.Fold("fold1", turns[2:], turns[:2], turns[:2]), turns)
    assert parts.choose.tolist() == [2, 6] and parts.test.tolist() == [0, 1]
    assert sorted(parts.refit) == list(range(2, 10))
    parts = divide(splits.Fold("fold1", turns[4:], turns[2:4], turns[:2]), turns)
    assert parts.choose.tolist() == [2, 3] and parts.fit.tolist() == list(range(4, 10))


@pytest.mark.parametrize("name", ["SVM", "NN", "XGBoost"])
def test_nothing_learns_from_test_turns(name):
    classify = script_with(*QUICK, "--NN_EPOCHS=30", "--NN_BATCH_SIZE=8").CLASSIFY[name]
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = (2 * rng.normal(size=(3, 5))[y] + rng.normal(size=(120, 5))).astype(np.float32)
    parts = Parts(np.arange(60), np.arange(60, 80), np.arange(80), np.arange(80, 120))
    before, chosen = classify(x, y, parts, 0)
    altered_x, altered_y = x.copy(), y.copy()
    altered_y[80:] = 0  # the labels of all test turns
    altered_x[100:] += 1000  # the features of half of them
    after, chosen_again = classify(altered_x, altered_y, parts, 0)
    assert (before[:20] == after[:20]).all() and chosen == chosen_again
    assert np.mean(before == y[80:]) > 0.5
    altered_y[:80] = (y[:80] + 1) % 3  # the check can fail: other training labels, other answers
    assert (classify(x, altered_y, parts, 0)[0] != before).any()


@pytest.mark.parametrize("kernel, own", [("rbf", {"gamma": 1 / 4}), ("linear", {"C": 0.5})])
def test_the_svm_equals_scikit_learns_own_kernel(kernel, own):
    rng = np.random.default_rng(0)
    y, x = rng.integers(0, 3, 90), rng.normal(size=(90, 4))
    parts = Parts(np.arange(40), np.arange(40, 60), np.arange(60), np.arange(60, 90))
    z = (x - x[:60].mean(0)) / x[:60].std(0)
    expected = SVC(**{"C": 2.0, "kernel": kernel} | own).fit(z[:60], y[:60]).predict(z[60:])
    svm = script_with("--SVM_C=2.0", f"--SVM_KERNEL={kernel}").svm  # linear kernel values are divided by D
    assert (svm(x, y, parts, 0)[0] == expected).all()


def test_an_added_classifier_is_a_column_and_the_average_stays_the_papers(small):
    """One entry in CLASSIFY; it always says the first class."""
    script = load_script("04_fuse_classify.py")
    script.CLASSIFY["constant"] = lambda x, y, parts, seed: (np.zeros(len(parts.test), int), 0.0)
    folder = run_04(small[0], "--OUT_OF_FOLD=false", "--FUSIONS=sum", script=script)
    five = read_table(folder, "5")
    assert float(five["sum", "constant"]["mean"]) == 25
    mean = np.mean([float(five["sum", name]["mean"]) for name in ("SVM", "NN", "XGBoost")])
    assert float(five["sum", "average"]["mean"]) == pytest.approx(mean, abs=1e-4)
    folder = run_04(
        small[0], "--OUT_OF_FOLD=false", "--FUSIONS=sum", "--CLASSIFIERS=NN", "--BEYOND_PAPER=false"
    )
    assert {column for _, column in read_table(folder, "5")} == {"NN"}


def test_fusion_by_hand():
    arrays = {"text": np.array([[1.0, 2]]), "audio": np.array([[3.0, 4]]), "video": np.array([[5.0, 6]])}
    fuse = load_script("04_fuse_classify.py").fuse
    assert fuse(arrays, "concatenation").tolist() == [[1, 2, 3, 4, 5, 6]]
    assert fuse(arrays, "sum").tolist() == [[9, 12]]
    assert fuse(arrays, "product").tolist() == [[15, 48]]
    with pytest.raises(UserError, match="text 2, audio 3.*FUSIONS=concatenation"):
        fuse({"text": np.ones((1, 2)), "audio": np.ones((1, 3))}, "sum")


def test_out_of_fold_logits_come_from_encoders_that_saw_neither_group(tmp_path):
    manifest = make_corpus(tmp_path)
    folds = splits.make_folds(manifest, 5, "group", "validation", 0)
    marks = {}
    pairs = splits.make_folds(manifest, 5, "speaker", "validation", 0, leave_out=2)
    for number, fold in enumerate(folds + pairs):
        marks[fold.name] = number
        for modality in ("text", "audio"):
            array = np.full((len(manifest.labelled), 4), number, np.float32)
            make_store(
                tmp_path / "features" / "demo_iemocap" / modality / fold.name,
                manifest,
                {"features": array, "logits": array},
                fold,
            )
    root = tmp_path / "features" / "demo_iemocap"
    features = StoredFeatures(root, manifest, folds, {}, True, ("text", "audio", "video"))
    mixed = features.read(0, 1)["out-of-fold"]["text"][:, 0]
    for j, name in ((0, "out_1_2"), (1, "fold2"), (2, "out_2_3"), (4, "out_2_5")):
        assert set(mixed[divide(folds[j], manifest.labelled).test]) == {marks[name]}


def write_own(folder, turns, **arrays):
    """A user's features in the README's format: <name>.npy, a row per turn, and index.csv."""
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "index.csv").write_text("\n".join(["utterance_id", *(turn.utterance_id for turn in turns)]))


def test_features_from_elsewhere_without_folds_or_logits(tmp_path, capsys):
    manifest = make_corpus(tmp_path)
    own = tmp_path / "own"
    for modality, width in (("text", 5), ("audio", 7)):
        kept = manifest.labelled[:-3] if modality == "audio" else manifest.labelled
        x, _ = vectors(manifest, width, 0.9, width)
        write_own(own / modality, kept, features=x[: len(kept)])
    folder = run_04(tmp_path, f"--FEATURES_ROOT={own}", "--FUSIONS=concatenation")
    shown = capsys.readouterr().out
    assert "video: no features" in shown and "no Table 6" in shown and "pooled n = 80" in shown
    assert "3 turns lack audio" in (folder / "babaali_table_5.md").read_text()
    assert not (folder / "babaali_table_6.md").exists()


def test_an_official_split_with_one_modality(tmp_path, capsys):
    manifest = make_corpus(tmp_path, per_speaker=12, split=lambda i: ("train", "dev", "test")[i // 4])
    (fold,) = splits.make_folds(manifest, 5, "group", "validation", 0)
    x, logits = vectors(manifest, 6, 0.9, 1)
    make_store(
        tmp_path / "features" / "demo_iemocap" / "text" / "seed0" / "fold1",
        manifest,
        {"features": x, "logits": logits},
        fold,
    )
    folder = run_04(tmp_path)
    assert "pooled n = 40" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert {"babaali_table_7.md", "babaali_fig_8_text.png", "babaali_fig_12_confusion.pdf"} <= names
    assert not {"babaali_table_5.md", "babaali_table_6.md", "babaali_table_tests.md"} & names


@pytest.fixture
def small(tmp_path):
    manifest = make_corpus(tmp_path)
    folds = splits.make_folds(manifest, 5, "group", "validation", 0)
    make_stores(tmp_path, manifest, folds)
    return tmp_path, manifest, tmp_path / "features" / "demo_iemocap"


def spoil(array_path, change):
    array = np.load(array_path)
    np.save(array_path, change(array))


def nan_in_row_3(array):
    array[3, 0] = np.nan
    return array


def rename_ids(index):
    index.write_text(index.read_text().replace("s", "other_"))


def claim_another_manifest(meta):
    meta.write_text(re.sub('"manifest": "[0-9a-f]+"', '"manifest": "0123456789abcdef"', meta.read_text()))


def claim_to_have_seen(meta, speaker):
    meta.write_text(meta.read_text().replace('"train_speakers": [', f'"train_speakers": ["{speaker}", '))


@pytest.mark.parametrize(
    "break_it, words, remedy",
    [
        (lambda f: shutil.rmtree(f), (), "run 03_extract_features.py.*PAPERS=li"),
        (lambda f: shutil.rmtree(f / "audio" / "seed0" / "fold3"), (), "fold3: absent; run 03"),
        (lambda f: None, ("--OUT_OF_FOLD=true",), "out_1_2: absent; run 02 and 03 with OUT_OF_FOLD=true"),
        (lambda f: None, ("--SELECT_ON=test",), "made with SELECT_ON=validation"),
        (lambda f: None, ("--SEEDS=5",), "seed5/fold1: absent"),
        (
            lambda f: spoil(f / "text" / "seed0" / "fold1" / "features.npy", nan_in_row_3),
            (),
            "NaN or infinity",
        ),
        (lambda f: spoil(f / "text" / "seed0" / "fold1" / "features.npy", lambda a: a[:9]), (), "fewer rows"),
        (
            lambda f: spoil(f / "text" / "seed0" / "fold1" / "features.npy", lambda a: a[:, :2]),
            (),
            "equal width",
        ),
        (
            lambda f: rename_ids(f / "text" / "seed0" / "fold1" / "index.csv"),
            (),
            "utterance_id must be those",
        ),
        (
            lambda f: claim_to_have_seen(f / "text" / "seed0" / "fold1" / "meta.json", "s0"),
            (),
            "test speakers",
        ),
        (
            lambda f: claim_another_manifest(f / "text" / "seed0" / "fold1" / "meta.json"),
            (),
            "made from another manifest.csv than there is now; run 02 and 03 again",
        ),
        (lambda f: None, ("--FUSIONS=mean",), "FUSIONS=mean: choose from concatenation, sum, product"),
        (lambda f: None, ("--CLASSIFIERS=SVM,MLP",), "CLASSIFIERS=MLP: choose from SVM, NN, XGBoost"),
        (lambda f: None, ("--SVM_KERNEL=poly",), "SVM_KERNEL=poly: choose from rbf, linear"),
    ],
)
def test_bad_stores_end_with_one_line(small, break_it, words, remedy):
    root, _, features = small
    break_it(features)
    with pytest.raises(UserError, match=remedy) as caught:
        run_04(root, "--OUT_OF_FOLD=false", *words)
    assert "\n" not in str(caught.value)
    assert not list((root / "results").rglob("babaali_*"))


def test_rounding_of_a_network_counts_as_constant():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=50), 0.01 + 1e-6 * rng.normal(size=50), np.full(50, 0.3)], axis=1)
    x[7] = np.nan  # a turn that the modality lacks
    y = without_rounding(x, "no")
    assert np.isnan(y[7]).all() and np.array_equal(y[:, 0], x[:, 0], equal_nan=True)
    z = standardise(y[8:], np.arange(30))
    assert np.allclose(z[:, 0], (x[8:, 0] - x[8:38, 0].mean()) / x[8:38, 0].std()) and not z[:, 1:].any()


def test_rounding_fits_the_precision_of_the_network():
    x = np.stack([np.tile([-1.0, 1.0], 25), 0.5 + np.tile([-1e-3, 1e-3], 25)], axis=1)  # 1e-3: of fp16
    assert np.ptp(without_rounding(x, "no")[:, 1]) > 0
    assert np.ptp(without_rounding(x, "fp16")[:, 1]) == 0 and np.ptp(without_rounding(x, "bf16")[:, 0]) > 0


def test_columns_of_all_scales_count_in_a_users_table():
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * [1e-4, 1, 1e4, 0] + [0, 0, 1e5, 7]
    z = standardise(x.astype(np.float32), np.arange(50))
    assert np.allclose(z[:, :3].std(0), 1, atol=1e-3) and not z[:, 3].any()


def test_a_table_whose_signal_is_in_a_tiny_column_is_learnt(tmp_path, capsys):
    """A column of 1e-4 tells the class beside one of 1e4 that is noise."""
    turns, rng = make_corpus(tmp_path).labelled, np.random.default_rng(0)
    y = np.array([CLASSES.index(turn.label) for turn in turns])
    x = np.stack([1e-4 * y, 1e4 * rng.normal(size=len(y))], 1).astype(np.float32)
    write_own(tmp_path / "own" / "text", turns, features=x)
    results = run_04(tmp_path, f"--FEATURES_ROOT={tmp_path}/own", "--MODALITIES=text", "--OUT_OF_FOLD=false")
    assert float(read_table(results, "subsets")["text", "early WA"]["mean"]) > 90
    assert "text: not made by 03" in capsys.readouterr().out


def test_own_logits_of_other_classes_are_fused_and_have_no_calibration(tmp_path, capsys):
    """A user's model may know a class that this corpus lacks; with own features only this paper is run."""
    turns, rng = make_corpus(tmp_path).labelled, np.random.default_rng(0)
    y = np.array([CLASSES.index(turn.label) for turn in turns])
    logits = rng.normal(size=(len(y), len(CLASSES) + 1)).astype(np.float32)
    logits[np.arange(len(y)), y] += 5
    write_own(tmp_path / "own" / "text", turns, features=logits, logits=logits)
    own = (
        f"--FEATURES_ROOT={tmp_path}/own",
        "--MODALITIES=text",
        "--OUT_OF_FOLD=false",
        "--PAPERS=babaali,li",
    )
    results = run_04(tmp_path, *own)
    assert float(read_table(results, "subsets")["text", "late WA"]["mean"]) > 90
    rows = {row for row, _ in read_table(results, "calibration")}
    assert len(rows) == 1 and "softmax" not in rows.pop()
    page = (results / "babaali_table_calibration.md").read_text()
    assert "Logits of text are of other classes." in page
    said = capsys.readouterr().out
    assert "---- li ----" not in said and "second paper, which is left out" in said


def test_calibration_by_hand():
    """Ten turns at 0.8 of which 6 are right, ten at 0.55 that are all wrong."""
    p = np.repeat([[0.8, 0.2], [0.45, 0.55]], 10, axis=0)
    y = np.array([0] * 6 + [1] * 4 + [0] * 10)
    accuracy, confidence, error, curve = reliability(p, y)
    assert (accuracy, confidence) == pytest.approx((0.3, 0.675))
    assert error == pytest.approx(0.5 * (0.8 - 0.6) + 0.5 * 0.55)
    assert np.allclose(curve, [[0.55, 0.8], [0, 0.6]])


def test_probabilities_of_the_final_model_are_calibrated_on_speakers_it_has_not_seen(finished):
    table = read_table(finished[2], "calibration")
    system = "SVM on concatenated text + audio + video, temperature"
    assert {row for row, _ in table} == {system, "text, softmax", "audio, softmax", "video, softmax"}
    assert float(table[system, "calibration error"]["mean"]) < 20
    accuracy = float(read_table(finished[2], "5")["concatenation", "SVM"]["mean"])
    assert float(table[system, "accuracy"]["mean"]) == pytest.approx(accuracy, abs=3)
    accuracy = float(table["text, softmax", "accuracy"]["mean"])
    assert float(table["text, softmax", "mean confidence"]["mean"]) - accuracy == pytest.approx(
        float(table["text, softmax", "calibration error"]["mean"]), abs=15
    )


@pytest.mark.parametrize("n_classes", [2, 4])
def test_scores_of_an_svm_decide_as_it_does_and_a_temperature_keeps_their_order(n_classes):
    rng = np.random.default_rng(0)
    y = rng.integers(0, n_classes, 200)
    x = rng.normal(size=(n_classes, 6))[y] + rng.normal(size=(200, 6))
    machine = SVC(decision_function_shape="ovo").fit(x[:100], y[:100])
    scores = class_scores(machine, x)
    assert np.mean(scores.argmax(1) == machine.predict(x)) > 0.95  # the machine counts votes
    p = tempered(scores[:100], y[:100], scores[100:])
    assert np.allclose(p.sum(1), 1) and (p.argmax(1) == scores[100:].argmax(1)).all()
    noise = tempered(scores[:100], rng.permutation(y[:100]), scores[100:])
    assert noise.max(1).mean() < p.max(1).mean() - 0.1  # who is often wrong is less certain


def test_results_by_speaker_and_gender(small):
    root, manifest, _ = small
    for turn in manifest.turns:
        turn.extra["gender"] = ("female", "male")[int(turn.speaker[1:]) % 2]
    write_manifest(manifest)
    features = root / "features" / "demo_iemocap"
    for meta in features.rglob("meta.json"):
        meta.write_text(
            re.sub('"manifest": "[0-9a-f]+"', f'"manifest": "{manifest.fingerprint()}"', meta.read_text())
        )
    table = read_table(run_04(root, "--OUT_OF_FOLD=false", "--FUSIONS=sum", "--CLASSIFIERS=SVM"), "groups")
    assert {row for row, _ in table} == {"female", "male", *(f"speaker s{i}" for i in range(10))}
    accuracy = {
        row: (float(cell["mean"]), int(cell["n"])) for (row, c), cell in table.items() if c == "accuracy"
    }
    assert accuracy["female"][1] == accuracy["male"][1] == 40 and accuracy["speaker s3"][1] == 8
    men = np.mean([accuracy[f"speaker s{i}"][0] for i in (1, 3, 5, 7, 9)])
    assert accuracy["male"][0] == pytest.approx(men, abs=0.01)


def test_noise_at_test_time_lowers_what_hears_it(small):
    """Stores of test turns in noise, as 03 writes them: features that are noise at 0 dB, as before at 20."""
    root, manifest, features = small
    rng = np.random.default_rng(0)
    for fold in splits.make_folds(manifest, 5, "group", "validation", 0):
        clean = features / "audio" / "seed0" / fold.name
        meta = clean / "meta.json"
        meta.write_text(
            meta.read_text().replace('"complete"', '"trained": "abc", "precision": "no", "complete"')
        )
        x = np.load(clean / "features.npy")
        rows = [i for i, turn in enumerate(manifest.labelled) if turn in fold.test]
        for name, noise in (("audio_20dB", 0), ("audio_0dB", 30)):
            writer = StoreWriter(features / name / "seed0" / fold.name, {"trained": "abc", "precision": "no"})
            noisy = (x[rows] + noise * rng.normal(size=x[rows].shape)).astype(np.float32)
            writer.add([manifest.labelled[i].utterance_id for i in rows], {"features": noisy})
            writer.finish()
    table = read_table(run_04(root, "--OUT_OF_FOLD=false", "--FUSIONS=sum", "--CLASSIFIERS=SVM"), "noise")
    accuracy = {row: float(cell["mean"]) for (row, column), cell in table.items() if column == "audio"}
    assert list(accuracy) == ["20 dB", "0 dB", "no noise added"]
    assert accuracy["20 dB"] == accuracy["no noise added"] > accuracy["0 dB"] + 10
    meta = features / "audio_0dB" / "seed0" / "fold1" / "meta.json"
    meta.write_text(meta.read_text().replace("abc", "def"))
    with pytest.raises(
        UserError, match="audio_0dB.*by another model than .*; run 03 with NOISE_SNR_DB again"
    ):
        run_04(root, "--OUT_OF_FOLD=false", "--FUSIONS=sum", "--CLASSIFIERS=SVM")


@pytest.mark.parametrize(
    "row, counts", [("audio", True), ("text + audio", True), ("eGeMAPSv02, linear SVM", False)]
)
def test_own_corpus_is_scored_by_its_modalities_and_not_by_a_baseline(row, counts):
    assert bool(re.fullmatch(prediction.SUBSET, row)) == counts
