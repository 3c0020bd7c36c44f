"""05 end to end on small synthetic corpora: every table, no leak into pretraining, nothing done twice."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny_speech
import torch
from conftest import ROOT, command, linked, load_script, prepare, rows, run_again, run_here

from common import training
from common.files import UserError, read_json
from common.layers import count_parameters
from common.results import paper_figures
from common.sadok import data as sadok_data
from common.sadok import tables
from common.sadok.codes import open_codes

# Six actors with a clip per emotion, spoken and sung; seven speakers with one
SIZES = {"demo_ravdess": 0.11, "demo_voxceleb2": 0.03}
SHORT = [
    *("--N_FRAMES=40", "--RATIOS=0.5", "--DEPTHS=2", "--TOKEN_SIZES=20x8,20x16", "--JOBS=1"),
    *("--VQVAE_EPOCHS=1", "--VQVAE_STEPS=8", "--VQVAE_BATCH_SIZE=4", "--VQVAE_FRAMES=8"),
    *("--PRETRAIN_EPOCHS=1", "--PRETRAIN_WARMUP_EPOCHS=0", "--MAX_PROBLEM_SHARE=0.2"),
    *("--FINETUNE_EPOCHS=2", "--FINETUNE_WARMUP_EPOCHS=1", "--N_CODES=32", "--WIDTH=16", "--N_RESAMPLES=100"),
    "--TABLE_5_CORPORA=demo_ravdess:speech,demo_iemocap,demo_ravdess:song",
    "--BEYOND_PAPER=equal,mean,row",
]
FEW = ["--TABLES=1", "--BEYOND_PAPER=", "--SPECMAE=False"]
SCRIPT = "05_pretrain_vqmae.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sadok")
    for corpus, size in SIZES.items():
        prepare(folder, f"--CORPUS={corpus}", f"--DEMO_SIZE={size}")
    tiny_speech.write_corpus(folder, "tiny", 3, 2)
    # One clip that 05 has to leave out; 01 has accepted it before it was damaged.
    clips = sorted((folder / "data" / "raw" / "demo_voxceleb2").rglob("*.m4a"))
    clips[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    printed = run_again(SCRIPT, folder, *SHORT, drawn=True)
    assert "demo_iemocap: left out of Table 5" in printed
    return folder


def results(folder):
    return folder / "results" / "05_pretrain_vqmae" / "demo_ravdess_speech"


@pytest.mark.parametrize("part", "1 2 3 4 5 equal mean row tests codes fig_2 fig_3".split())
def test_every_table_is_there(demo, part):
    table = rows(results(demo) / f"sadok_table_{part}.csv")
    assert all(line["mean"] for line in table)
    assert "Made by" in (results(demo) / f"sadok_table_{part}.md").read_text()


def test_every_figure_and_something_to_listen_to(demo):
    for stem in ("sadok_fig_2_ratio", "sadok_fig_3_token_size", "sadok_fig_reconstruction"):
        assert (results(demo) / f"{stem}.png").stat().st_size > 5000
    assert len(list((demo / "data" / "listen" / "demo_ravdess_speech").glob("*.wav"))) == 4


def test_every_labelled_turn_is_predicted_once_per_row(demo):
    manifest = rows(demo / "data" / "prepared" / "demo_ravdess" / "manifest.csv")
    labelled = {line["utterance_id"]: line["label"] for line in manifest if line["channel"] == "speech"}
    predictions = rows(results(demo) / "predictions.csv")
    systems = {line["system"] for line in predictions}
    assert len(systems) >= 12
    for system in systems:
        own = [line for line in predictions if line["system"] == system]
        assert sorted(line["utterance_id"] for line in own) == sorted(labelled)
        assert all(line["y_true"] == labelled[line["utterance_id"]] for line in own)


def test_a_damaged_clip_is_counted_and_left_out(demo):
    store = open_codes(demo / "data" / "codes" / "demo_voxceleb2" / "demo_voxceleb2")
    assert len(store) == 6
    (problem,) = rows(store.folder / "problems.csv")
    assert "git-lfs" in problem["problem"]


def test_the_authors_figure_is_never_below_a_folds_best_choice(demo):
    """The best test epoch is at least as good as the chosen one, on the same trainings."""
    metrics = json.loads((results(demo) / "metrics.json").read_text())["metrics"]
    for name, ours in metrics.items():
        if name.startswith("sadok_table_1") and name.endswith("/accuracy"):
            best = metrics[name.replace("/accuracy", "/accuracy, best TEST epoch")]
            for b, o in zip(best["per_run"], ours["per_run"], strict=True):
                assert b["value"] >= o["value"] - 1e-6


def test_a_second_run_does_nothing_again(demo):
    before = (results(demo) / "predictions.csv").read_bytes()
    printed = run_again(SCRIPT, demo, *SHORT)
    assert "valid 0." not in printed and "train_loss" not in printed
    assert (results(demo) / "predictions.csv").read_bytes() == before


def test_the_authors_protocol_as_a_whole(demo, tmp_path):
    """SELECT_ON = "test": what is reported is the best test epoch itself, and the table says so."""
    linked(demo, tmp_path, "prepared", "codes")
    run_again(SCRIPT, tmp_path, *SHORT, *FEW, "--SELECT_ON=test")
    found = {(line["row"], line["column"]): line for line in rows(results(tmp_path) / "sadok_table_1.csv")}
    names = {row for row, _ in found}
    assert len(names) == 3 + 2  # with the two baselines
    for row in names:
        assert found[row, "accuracy"]["mean"] == found[row, "accuracy, best TEST epoch"]["mean"]
        assert "TEST set" in found[row, "accuracy"]["protocol"]


TINY = [*tiny_speech.options(), "--BEYOND_PAPER=", "--SPECMAE=false", "--RUN=tiny"]
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
LAUNCH += " --dynamo_backend no --main_process_port 0"


def tiny(folder):
    """A folder with two small corpora of tones."""
    tiny_speech.write_corpus(folder, "tiny", 3, 2)
    tiny_speech.write_corpus(folder, "speech", 2, 4)
    return folder


def test_jobs_side_by_side_find_what_one_process_finds(tmp_path, capsys):
    alone, together = tiny(tmp_path / "alone"), tmp_path / "together"
    run_here(alone, SCRIPT, *TINY, "--TABLES=1,2", "--PREPARE_ONLY=true")
    printed = capsys.readouterr().out
    assert "codes of tiny" in printed and "pretraining" not in printed
    assert not (alone / "data" / "models" / "tiny").exists()  # no fine-tuning
    shutil.copytree(alone, together)  # with the same VQ-VAE
    for folder, jobs in ((alone, 1), (together, 2)):  # processes that an earlier test began stay where it was
        run_here(folder, SCRIPT, *TINY, "--TABLES=1,2", f"--JOBS={jobs}", f"--DATA_ROOT={folder}/data")
    outcomes = [
        {path.relative_to(folder): read_json(path)["tests"]["test"]["outputs"]["logits"] for path in paths}
        for folder, paths in ((folder, folder.rglob("fold*/outcome.json")) for folder in (alone, together))
    ]
    assert len(outcomes[0]) == 3 * (3 + 3)  # folds; Table 1: three rows; Table 2: three networks more
    assert outcomes[0].keys() == outcomes[1].keys()
    for path, logits in outcomes[0].items():
        np.testing.assert_allclose(outcomes[1][path], logits, atol=1e-3)


def test_two_processes_by_accelerate_make_the_same_tables(tmp_path):
    """What all processes have to do together, none leaves to the first; each turn is predicted once."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    how = {"capture_output": True, "text": True, "cwd": tiny(tmp_path), "timeout": 300, "env": environment}
    words = [sys.executable, *LAUNCH.split(), ROOT / SCRIPT, *TINY, "--TABLES=1"]
    done = subprocess.run(words, **how)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = rows(tmp_path / "results" / SCRIPT[:-3] / "tiny" / "predictions.csv")
    systems = [f"{way}_cls patch-tf_0.5_10x32_e8_1_w16" for way in ("scratch", "frozen", "finetuned")]
    systems += ["svm patch-tf_0.5_10x32_e8_1_w16", "svm specmae_0.5_10x171_1_w16"]
    turns = [f"tiny_s{speaker}_{clip}" for speaker, clip in np.ndindex(3, 2)]
    pairs = sorted((line["system"], line["utterance_id"]) for line in found)
    assert pairs == sorted((system, turn) for system in systems for turn in turns)


@pytest.mark.parametrize(
    "option, told",
    [
        ("--CORPUS=demo_ravdess:dance", "unknown part"),
        ("--CORPUS=emodb", "not prepared"),
        ("--TABLES=6", "no table 6; choose among"),
        ("--STRATEGY=rows", "STRATEGY=rows: choose from"),
        ("--TOKEN_SIZE=7x8", "does not divide"),
        ("--TOKEN_SIZE=10", "write it as 10x4"),
        ("--RATIO=1.5", "RATIO=1.5: give a number from 0 up to 1"),
        ("--RATIO=0.99", "RATIO, RATIOS: 0.99 hides"),
        ("--DEPTH=0", "DEPTH=0: "),
        ("--DEPTH=1000", "DEPTH.*at most 100 blocks"),
        ("--WIDTH=1000000", "WIDTH.*too large"),
        ("--N_FRAMES=1000000", "N_FRAMES.*too large"),
        ("--TOKEN_SIZE=10x5", "TOKEN_SIZE.*5 of 10x5 does not divide 64"),
        ("--BETAS=0.9", "BETAS: two numbers"),
        ("--LOSS=focal", "LOSS=focal: choose from"),
        ("--REFIT=true --SELECT_ON=test", "REFIT: would train on the test speakers"),
        ("--PRETRAIN_CORPORA=x,y", "x/manifest.csv: .*; .*y/manifest.csv: "),
        ("--HEADS=7", "HEADS=7, QUERY_HEADS=8: must divide"),
        ("--QUERY_HEADS=7", "QUERY_HEADS=7: must divide"),
        ("--PRETRAIN_WARMUP_EPOCHS=1", "PRETRAIN_WARMUP_EPOCHS: less than"),
    ],
)
def test_bad_constants_end_in_one_line_before_any_work(demo, option, told):
    words = command(SCRIPT, demo, *SHORT, *option.split())[2:]
    with pytest.raises(SystemExit, match="^error: .*" + told):
        run_here(demo, SCRIPT, *words)


# ---- What is kept --------------------------------------------------------------------------


def test_what_was_made_of_another_manifest_or_otherwise_is_made_again(tmp_path):
    data = tmp_path / "data"

    def remade(*more):
        """The folders of trainings and codes that a run writes anew."""

        def stamps():
            paths = [*data.rglob("outcome.json"), *data.rglob("problems.csv")]
            return {path.parent.relative_to(data).as_posix(): path.stat().st_mtime_ns for path in paths}

        before = stamps()
        words = *tiny_speech.options(), "--RATIOS=0.5", "--TABLES=1", "--BEYOND_PAPER=", "--SPECMAE=false"
        run_here(tmp_path, SCRIPT, *words, *more)
        return {folder for folder, stamp in stamps().items() if before.get(folder) != stamp}

    tiny(tmp_path)
    everything = remade()
    assert len(everything) == 1 + 2 + 1 + 9  # VQ-VAE, codes, pretraining, three rows of three folds
    assert remade() == set()
    manifest = data / "prepared" / "tiny" / "manifest.csv"
    manifest.write_text(
        manifest.read_text().replace("low", "LOW").replace("high", "low").replace("LOW", "high")
    )
    of_labels = {folder for folder in everything if "tiny" in folder}
    assert remade() == of_labels and len(of_labels) == 1 + 9
    tiny_speech.write_corpus(tmp_path, "speech", 2, 5)
    assert remade() == everything
    assert remade("--VQVAE_STEPS=5") == everything


def test_refit_trains_on_validation_speakers_and_speaker_means_are_subtracted(tmp_path):
    """Beyond the paper: each against what an outcome says, by hand."""
    tiny_speech.write_corpus(tmp_path, "tiny", 3, 6)
    tiny_speech.write_corpus(tmp_path, "speech", 2, 4)
    words = [*tiny_speech.options(), "--TABLES=", "--BEYOND_PAPER=row", "--SPECMAE=false", "--RUN=tiny"]
    words += ["--FINETUNE_EPOCHS=3", "--FINETUNE_BATCH_SIZE=4", "--REFIT=true", "--SPEAKER_NORMALISE=true"]
    run_here(tmp_path, SCRIPT, *words)
    (folder,) = (tmp_path / "data/models/tiny/sadok").glob("*/finetuned_row/seed0")
    chosen = json.loads((folder / "fold1/outcome.json").read_text())["history"]
    again = json.loads((folder / "fold1_refit/outcome.json").read_text())
    assert len(again["history"]["log"]) == again["history"]["best_epoch"] == chosen["best_epoch"]
    steps = [history["steps_per_epoch"] for history in (chosen, again["history"])]
    assert steps == [2, 3]  # 6 and 12 clips in batches of 4: validation speakers are trained on
    test = again["tests"]["test"]
    logits = np.array(test["outputs"]["logits"])  # of one speaker
    decided = (logits - logits.mean(0)).argmax(1)
    results = tmp_path / "results" / SCRIPT[:-3] / "tiny"
    found = rows(results / "predictions.csv")
    found = {
        line["utterance_id"]: line["y_pred"] for line in found if line["system"].startswith("finetuned_row")
    }
    assert [found[name] for name in test["ids"]] == [("low", "high")[number] for number in decided]
    note = (results / "sadok_table_row.md").read_text()
    assert "Trained again on training and validation speakers" in note and "unlabelled speech is used" in note


# ---- Without training ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(demo):
    module = load_script(SCRIPT)
    for name, value in {**module.DEMO, "DATA_ROOT": str(demo / "data"), "N_GROUPS": 3}.items():
        setattr(module, name, value)
    return module


def serving(script, names, pretrain):
    """corpora {name: Corpus} and the Pretraining that serves each fold."""
    corpora = {name: script.corpus_of(name) for name in names}
    everyone = sadok_data.Pretraining(script.DATA_ROOT, pretrain, 0)
    return corpora, sadok_data.plan_pretrainings(corpora, everyone)


def test_pretraining_never_reads_the_speakers_that_a_fold_tests(script):
    names = ["demo_ravdess:speech", "demo_ravdess:song", "tiny"]
    corpora, found = serving(script, names, ("demo_ravdess", "demo_voxceleb2"))
    for name in names[:2]:
        for k, fold in enumerate(corpora[name].folds):
            read = {(base, turn.speaker) for turns in found[name, k].turns() for base, turn in turns}
            assert not read & {("demo_ravdess", turn.speaker) for turn in fold.test}
            assert {base for base, _ in read} == {"demo_ravdess", "demo_voxceleb2"}
            assert found[name, k].name == f"without_fold{k + 1}" == found[name, k].folder.name
    assert found["tiny", 0].left_out == frozenset()


def test_one_pretraining_serves_all_folds_where_nothing_is_left_out(script):
    _, found = serving(script, ["demo_ravdess:speech"], ("demo_voxceleb2",))
    assert len(found) == 3 and {pretraining.name for pretraining in found.values()} == {""}


def test_fine_tuning_refuses_a_pretraining_that_has_read_its_test_speakers(script, monkeypatch):
    monkeypatch.setattr(script, "PRETRAIN_CORPORA", ("demo_ravdess",))
    everyone = sadok_data.Pretraining(script.DATA_ROOT, ("demo_ravdess",), 0)
    row = next(iter(script.plan()[0]["1"].values()))
    with pytest.raises(AssertionError):
        script.finetune(row, "demo_ravdess:speech", 0, 0, everyone)


def test_killed_pretraining_resumes_to_the_same_weights(script, demo, tmp_path, monkeypatch):
    everyone = sadok_data.Pretraining(
        str(linked(demo, tmp_path, "prepared", "codes") / "data"), ("demo_voxceleb2",), 0
    )
    vqvae = sadok_data.Pretraining(script.DATA_ROOT, ("demo_voxceleb2",), 0).folder / "vqvae"
    shutil.copytree(vqvae, everyone.folder / "vqvae")
    recipe_of, predict, calls = script.recipe_of, training.predict, []
    monkeypatch.setattr(script, "PRETRAIN_EPOCHS", 4)
    monkeypatch.setattr(
        script, "recipe_of", lambda *words, **how: replace(recipe_of(*words, **how), save_every_s=0.0)
    )
    network = next(iter(script.plan()[0]["1"].values())).network
    folder = everyone.folder / network.slug()

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(*arguments)

    script.pretrain(network, everyone)
    whole = (folder / "best.safetensors").read_bytes()
    shutil.rmtree(folder)
    with monkeypatch.context() as patched:
        patched.setattr(training, "predict", killed)
        with pytest.raises(KeyboardInterrupt):
            script.pretrain(network, everyone)
    assert (folder / "last.pt").exists() and not (folder / "outcome.json").exists()
    script.pretrain(network, everyone)
    assert (folder / "best.safetensors").read_bytes() == whole


def test_held_out_speakers_of_pretraining_are_not_trained_on(script):
    train, held_out = sadok_data.Pretraining(script.DATA_ROOT, ("demo_voxceleb2",), 0).turns()
    assert not {turn.speaker for _, turn in train} & {turn.speaker for _, turn in held_out}
    assert len(train) + len(held_out) == 7 and held_out


def test_parts_of_a_corpus(script):
    song = sadok_data.read_part(script.DATA_ROOT, "demo_ravdess:song")
    assert len(song.classes) == 6 and {turn.extra["channel"] for turn in song.turns} == {"song"}
    with pytest.raises(UserError, match="unknown part"):
        sadok_data.read_part(script.DATA_ROOT, "demo_ravdess:dance")


def test_default_networks_have_the_papers_sizes():
    """Tables 3 and 4: 5, 20 and 80 million for e = 4, 8, 16; 12, 20, 25, 30 million by depth."""
    module, paper = load_script(SCRIPT), paper_figures(tables.PAPER)
    planned, _ = module.plan()

    def millions(row):
        with torch.device("meta"):
            return count_parameters(module.build_network(row.network)) / 1e6

    for part in ("3", "4"):
        for label, row in list(planned[part].items())[:-2]:
            printed = paper[part, label, "ravdess_speech parameters"]
            assert abs(millions(row) - printed) < max(0.55, 0.015 * printed), label
    patch, frame, *_ = planned["equal"].values()
    assert frame.network.strategy == "frame" and abs(millions(frame) / millions(patch) - 1) < 0.02


def test_the_tables_compare_what_the_paper_varies():
    module = load_script(SCRIPT)
    planned, compared = module.plan()
    count = {part: len(labelled) - 2 for part, labelled in planned.items()}  # two baselines in each
    assert count == {
        "1": 5,
        "2": 4,
        "3": 3,
        "4": 4,
        "5": 8,
        "fig2": 10,
        "fig3": 6,
        "equal": 2,
        "mean": 4,
        "row": 4,
    }
    networks = [row.network for labelled in planned.values() for row in labelled.values()]
    assert {(n.t, n.d) for n in networks if n.strategy == "frame"} == {(1, 64)}
    assert sorted({n.ratio for n in networks}) == [0.5, 0.6, 0.7, 0.8, 0.9]
    done = {row for labelled in planned.values() for row in labelled.values()}
    assert all(pair[0] in done and pair[1] in done for pair in compared.values()) and len(compared) == 15


def test_the_papers_numbers_stand_in_our_rows():
    """Every number of paper.csv but other systems' belongs to a row that the default constants make."""
    planned, _ = load_script(SCRIPT).plan()
    for part, row, column in (paper := paper_figures(tables.PAPER)):
        assert row in planned[part] or "[" in row, (part, row, column)
    assert paper["2", "Patch-f", "ravdess_speech accuracy"] == 65.7
    assert paper["2", "Patch-t", "ravdess_speech weighted F1"] == 68.7
    assert paper["5", "VQ-MAE-S (Frame) + Query2Emo", "emodb accuracy"] == 90.2
    assert paper["5", "VQ-MAE-S (Patch-tf)", "ravdess_song weighted F1"] == 84.0
    assert paper["5", "Self-attention audio [26]", "ravdess_speech accuracy"] == 58.3
    assert len(paper) == 88


def test_an_added_masking_strategy_is_a_row_of_table_2(monkeypatch):
    module = load_script(SCRIPT)
    module.STRATEGIES["diagonal"] = lambda n_t, n_d, ratio, rng: np.eye(n_t, n_d, dtype=bool)
    row = module.plan()[0]["2"]["Diagonal"]
    assert module.random_masking(row.network, np.random.default_rng(0))[1].tolist() == [
        17 * i for i in range(16)
    ]
