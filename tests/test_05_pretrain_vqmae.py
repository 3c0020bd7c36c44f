"""05 end to end on small synthetic corpora: every table, no leak into pretraining, nothing done twice."""

import json
import os
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import command, linked, load_script, rows, run

from common.sadok import tables as sadok_tables
from common.sadok.codes import open_codes

SIZES = {
    "demo_ravdess": ["--DEMO_ACTORS=6", "--DEMO_CLIPS_PER_EMOTION=1"],
    "demo_emodb": ["--DEMO_EMODB_CLIPS=14"],
    "demo_voxceleb2": ["--DEMO_VOXCELEB2_SPEAKERS=5", "--DEMO_VOXCELEB2_CLIPS=2"],
}
SHORT = [
    "--N_GROUPS=3",
    "--RATIOS=0.5,0.8",
    "--TOKEN_SIZES=10x8,20x16",
    "--VQVAE_EPOCHS=1",
    "--VQVAE_STEPS=8",
    "--VQVAE_CLIPS=4",
    "--VQVAE_FRAMES=8",
    "--PRETRAIN_EPOCHS=2",
    "--PRETRAIN_WARMUP=1",
    "--FINETUNE_EPOCHS=2",
    "--FINETUNE_WARMUP=1",
    "--JOBS=1",
    "--N_RESAMPLES=100",
    "--TABLE_5_CORPORA=demo_ravdess:speech,demo_ravdess:song,demo_iemocap,demo_emodb",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sadok")
    for corpus, size in SIZES.items():
        run("01_prepare_data.py", folder, f"--CORPUS={corpus}", "--WORKERS=1", *size)
    # One clip of each kind that 05 has to leave out; 01 has accepted them before they were damaged.
    clips = sorted((folder / "data" / "raw" / "demo_voxceleb2").rglob("*.m4a"))
    clips[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    printed = run("05_pretrain_vqmae.py", folder, "--MAX_PROBLEM_SHARE=0.2", *SHORT)
    assert "demo_iemocap: not prepared by 01, left out of Table 5" in printed
    (folder / "printed.txt").write_text(printed)
    return folder


def results(folder):
    return folder / "results" / "05_pretrain_vqmae" / "demo_ravdess_speech"


@pytest.mark.parametrize(
    "stem",
    [
        "table_1",
        "table_2",
        "table_3",
        "table_4",
        "table_5",
        "table_equal",
        "table_mean",
        "table_tests",
        "table_vqvae",
        "table_fig_2",
        "table_fig_3",
    ],
)
def test_every_table_is_there(demo, stem):
    table = rows(results(demo) / f"sadok_{stem}.csv")
    assert all(line["mean"] or line["paper"] for line in table)
    assert "Made by" in (results(demo) / f"sadok_{stem}.md").read_text()


def test_every_figure_and_something_to_listen_to(demo):
    for stem in ("sadok_fig_2_ratio", "sadok_fig_3_token_size", "sadok_fig_reconstruction"):
        assert (results(demo) / f"{stem}.png").stat().st_size > 5000
    assert len(list((demo / "data" / "listen" / "demo_ravdess_speech").glob("*.wav"))) == 4


def test_the_papers_numbers_stand_in_its_rows(demo):
    table = {
        (line["row"], line["column"]): line["paper"] for line in rows(results(demo) / "sadok_table_2.csv")
    }
    assert table["Random frequency masking (Patch-f)", "accuracy"] == "65.7"
    assert table["Random time masking (Patch-t)", "weighted F1"] == "68.7"
    table = {
        (line["row"], line["column"]): line["paper"] for line in rows(results(demo) / "sadok_table_5.csv")
    }
    assert table["VQ-MAE-S (Frame) + Query2Emo", "demo_emodb accuracy"] == "90.2"
    assert table["VQ-MAE-S (Patch-tf)", "demo_ravdess_song weighted F1"] == "84.0"
    assert table["Self-attention audio [26]", "demo_ravdess_speech accuracy"] == "58.3"


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
    assert len(store) == 9 and store.meta["left_out"] == 1
    (problem,) = rows(store.folder / "problems.csv")
    assert "git-lfs" in problem["problem"]


def test_the_authors_figure_is_never_below_a_folds_best_choice(demo):
    """The best test epoch is at least as good as the chosen one, on the same trainings."""
    metrics = json.loads((results(demo) / "metrics.json").read_text())["metrics"]
    for name, ours in metrics.items():
        if name.startswith("sadok_table_1") and name.endswith("/accuracy"):
            best = metrics[name.replace("/accuracy", "/accuracy, best TEST epoch")]
            assert all(
                b["value"] >= o["value"] - 1e-6 for b, o in zip(best["per_run"], ours["per_run"], strict=True)
            )


def test_a_second_run_does_nothing_again(demo):
    before = (results(demo) / "predictions.csv").read_bytes()
    printed = run("05_pretrain_vqmae.py", demo, "--MAX_PROBLEM_SHARE=0.2", *SHORT)
    assert "validation" not in printed.split("pooled n")[1] and "train loss" not in printed
    assert (results(demo) / "predictions.csv").read_bytes() == before


def test_killed_pretraining_goes_on_to_the_same_weights(demo, tmp_path):
    options = [*SHORT, "--MAX_PROBLEM_SHARE=0.2", "--TABLES=1", "--PRETRAIN_EPOCHS=4"]
    linked(demo, tmp_path, "prepared", "codes")
    process = subprocess.Popen(
        command("05_pretrain_vqmae.py", tmp_path, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    network = tmp_path / "data" / "models" / "demo_voxceleb2" / "sadok" / "patch-tf_0.8_10x8_e8_2_w64"
    while process.poll() is None and not (network / "last.pt").exists():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (network / "history.json").exists(), "killed too late to show anything"
    run("05_pretrain_vqmae.py", tmp_path, *options)
    resumed = (network / "best.safetensors").read_bytes()
    for path in sorted(network.iterdir()):
        path.unlink()
    run("05_pretrain_vqmae.py", tmp_path, *options)
    assert (network / "best.safetensors").read_bytes() == resumed


# ---- Without training ----------------------------------------------------------------------


@pytest.fixture
def script(demo):
    module = load_script("05_pretrain_vqmae.py")
    for name, value in {**module.DEMO, "DATA_ROOT": str(demo / "data"), "N_GROUPS": 3}.items():
        setattr(module, name, value)
    module.SETTINGS.update(
        {name: getattr(module, name) for name in dir(module) if name.isupper() and name != "SETTINGS"}
    )
    return module


def make_study(script, corpora, pretrain, leave_out="tested"):
    script.PRETRAIN_CORPORA, script.LEAVE_OUT = pretrain, leave_out
    c = SimpleNamespace(**script.SETTINGS)
    return script.Study(c, None, {name: script.Corpus(c, name) for name in corpora})


def test_pretraining_never_hears_the_speakers_that_a_fold_tests(script):
    study = make_study(
        script, ["demo_ravdess:speech", "demo_ravdess:song"], ("demo_ravdess", "demo_voxceleb2")
    )
    for corpus in study.corpora.values():
        for k, fold in enumerate(corpus.folds):
            part = study.part_of(corpus, k)
            heard = {(base, turn.speaker) for turns in study.pretraining_turns(part) for base, turn in turns}
            assert part == k and not heard & {("demo_ravdess", turn.speaker) for turn in fold.test}
            assert {base for base, _ in heard} == {"demo_ravdess", "demo_voxceleb2"}


def test_one_pretraining_serves_all_folds_where_nothing_is_left_out(script):
    study = make_study(script, ["demo_ravdess:speech"], ("demo_voxceleb2",))
    assert [study.part_of(corpus, k) for corpus in study.corpora.values() for k in range(3)] == ["all"] * 3
    study = make_study(script, ["demo_ravdess:speech"], ("demo_ravdess",), "nobody")
    assert study.part_of(study.corpora["demo_ravdess:speech"], 0) == "all"


def test_held_out_speakers_of_pretraining_are_not_trained_on(script):
    study = make_study(script, ["demo_ravdess:speech"], ("demo_voxceleb2",))
    train, aside = study.pretraining_turns("all")
    assert not {turn.speaker for _, turn in train} & {turn.speaker for _, turn in aside}
    assert len(train) + len(aside) == 10 and aside


def test_parts_of_a_corpus(script):
    song = script.read_part(script.DATA_ROOT, "demo_ravdess:song")
    assert len(song.classes) == 6 and {turn.extra["channel"] for turn in song.turns} == {"song"}
    with pytest.raises(script.UserError, match="unknown part"):
        script.read_part(script.DATA_ROOT, "demo_ravdess:dance")


def test_default_networks_have_the_papers_sizes():
    """Tables 3 and 4: 5, 20 and 80 million for e = 4, 8, 16; 12, 20, 25, 30 million by depth."""
    module = load_script("05_pretrain_vqmae.py")
    c = SimpleNamespace(**{name: getattr(module, name) for name in dir(module) if name.isupper()})
    entries = sadok_tables.plan(c, ("ravdess:speech",))
    for part, printed in (("3", sadok_tables.PAPER_TABLE_3), ("4", sadok_tables.PAPER_TABLE_4)):
        for entry, (millions, *_) in zip(
            [e for e in entries if e.part == part], printed.values(), strict=True
        ):
            counted = module.count_parameters(module.build_network(entry.row.network, None)) / 1e6
            assert abs(counted - millions) < max(0.55, 0.015 * millions), (entry.label, counted)
    frame, patch = ([e.row.network for e in entries if e.part == "equal"][i] for i in (1, 0))
    counts = [module.count_parameters(module.build_network(n, None)) for n in (frame, patch)]
    assert frame.strategy == "frame" and abs(counts[0] / counts[1] - 1) < 0.02


def test_plan_covers_what_the_paper_varies():
    module = load_script("05_pretrain_vqmae.py")
    c = SimpleNamespace(**{name: getattr(module, name) for name in dir(module) if name.isupper()})
    entries = sadok_tables.plan(c, ("ravdess:speech", "emodb"))
    count = {part: sum(e.part == part for e in entries) for part in sadok_tables.PARTS}
    assert count == {"1": 5, "2": 4, "3": 3, "4": 4, "5": 16, "fig2": 10, "fig3": 6, "equal": 2, "mean": 4}
    frames = {(e.row.network.t, e.row.network.d) for e in entries if e.row.network.strategy == "frame"}
    assert frames == {(1, 64)}
    assert np.isclose(sorted({e.row.network.ratio for e in entries}), [0.5, 0.6, 0.7, 0.8, 0.9]).all()


def test_tables_of_another_corpus_do_not_show_the_papers_ravdess_numbers():
    module = load_script("05_pretrain_vqmae.py")
    c = SimpleNamespace(**{name: getattr(module, name) for name in dir(module) if name.isupper()})
    for corpus, any_paper in (
        ("ravdess:speech", True),
        ("demo_ravdess:speech", True),
        ("ravdess:song", False),
        ("emodb", False),
    ):
        entries = sadok_tables.plan(c, (corpus,))
        assert any(entry.paper for entry in entries if entry.part != "5") is any_paper
        assert any(entry.paper for entry in entries if entry.part == "5")


def test_the_authors_protocol_as_a_whole(demo, tmp_path):
    """SELECT_ON = "test": what is reported is the best test epoch itself, and the table says so."""
    linked(demo, tmp_path, "prepared", "codes")
    run(
        "05_pretrain_vqmae.py",
        tmp_path,
        *SHORT,
        "--MAX_PROBLEM_SHARE=0.2",
        "--TABLES=1",
        "--SPECMAE=False",
        "--SELECT_ON=test",
    )
    table = rows(results(tmp_path) / "sadok_table_1.csv")
    assert len({line["row"] for line in table}) == 3
    found = {(line["row"], line["column"]): line for line in table}
    for row in {line["row"] for line in table}:
        assert found[row, "accuracy"]["mean"] == found[row, "accuracy, best TEST epoch"]["mean"]
        assert "TEST set" in found[row, "accuracy"]["protocol"]


def test_jobs_side_by_side_find_what_one_process_finds(demo, tmp_path):
    """JOBS = 2: two processes share the networks; the first run's predictions come out, and nothing is trained twice."""
    linked(demo, tmp_path, "prepared", "codes")
    options = [*SHORT, "--MAX_PROBLEM_SHARE=0.2", "--TABLES=1,2", "--SPECMAE=False"]
    printed = run("05_pretrain_vqmae.py", tmp_path, *options, "--JOBS=2")
    assert "share 1/2" in printed and "share 2/2" in printed
    trained = [line.split(" seed ")[0] for line in printed.splitlines() if " seed " in line]
    assert (
        len(trained) == len(set(trained)) == 3 * (3 + 3)
    )  # Table 1: three rows; Table 2: three more networks
    together = {
        (line["system"], line["utterance_id"]): line["y_pred"]
        for line in rows(results(tmp_path) / "predictions.csv")
    }
    alone = {
        (line["system"], line["utterance_id"]): line["y_pred"]
        for line in rows(results(demo) / "predictions.csv")
    }
    assert len(together) == 6 * len({name for _, name in together})
    assert (
        np.mean([alone[key] == value for key, value in together.items()]) > 0.98
    )  # the VQ-VAE is another one


def test_a_share_does_not_make_what_all_shares_need(demo, tmp_path):
    linked(demo, tmp_path, "prepared")
    options = [*SHORT, "--MAX_PROBLEM_SHARE=0.2", "--TABLES=1", "--SPECMAE=False"]
    printed = run("05_pretrain_vqmae.py", tmp_path, *options, "--SHARE=1/2", code=1)
    assert "first run with CODES_ONLY=true" in printed.strip().splitlines()[-1]
    assert (
        "validation"
        not in run("05_pretrain_vqmae.py", tmp_path, *options, "--CODES_ONLY=true").split("pooled n")[1]
    )
    printed = run("05_pretrain_vqmae.py", tmp_path, *options, "--SHARE=1/1")
    assert printed.count(" seed 0 ") == 9 and not results(tmp_path).joinpath("sadok_table_1.csv").exists()


def test_two_processes_by_accelerate_make_the_same_tables(demo, tmp_path):
    """What all processes have to do together, none leaves to the first; each turn is predicted once."""
    linked(demo, tmp_path, "prepared", "codes")
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    python, *words = command(
        "05_pretrain_vqmae.py", tmp_path, *SHORT, "--MAX_PROBLEM_SHARE=0.2", "--TABLES=1", "--SPECMAE=False"
    )
    done = subprocess.run(
        [python, *launch, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    alone = {
        (line["system"], line["utterance_id"])
        for line in rows(results(demo) / "predictions.csv")
        if line["system"].endswith("cls patch-tf_0.8_10x8_e8_2_w64")
    }
    together = [
        (line["system"], line["utterance_id"]) for line in rows(results(tmp_path) / "predictions.csv")
    ]
    assert sorted(together) == sorted(alone)


def test_a_failing_job_ends_the_run_with_one_line(demo, tmp_path):
    linked(demo, tmp_path, "prepared", "codes")
    (tmp_path / "data" / "models" / "demo_voxceleb2" / "sadok").mkdir(parents=True)
    (tmp_path / "data" / "models" / "demo_voxceleb2" / "sadok" / "frame_0.8_1x64_e8_2_w64").write_text(
        "in the way"
    )
    printed = run(
        "05_pretrain_vqmae.py", tmp_path, *SHORT, "--MAX_PROBLEM_SHARE=0.2", "--TABLES=2", "--JOBS=2", code=1
    )
    assert "JOBS=2: a process failed" in printed.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "option, told",
    [
        ("--SHARE=3/2", "the second of three shares"),
        ("--CORPUS=demo_ravdess:dance", "unknown part"),
        ("--TABLES=6", "choose among"),
        ("--LEAVE_OUT=all", "choose one of tested, nobody"),
        ("--STRATEGY=rows", "choose one of"),
        ("--TOKEN_SIZE=7x8", "does not divide"),
        ("--PRETRAIN_WARMUP=2", "must be shorter"),
        ("--CORPUS=emodb", "not prepared"),
    ],
)
def test_bad_constants_end_in_one_line(demo, option, told):
    printed = run(
        "05_pretrain_vqmae.py",
        demo,
        *SHORT,
        option,
        "--TABLES=1" if "TABLES" not in option else option,
        code=1,
    )
    assert told in printed.strip().splitlines()[-1]
