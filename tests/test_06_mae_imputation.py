"""06 end to end on small synthetic corpora and on sound alone: every curve, nothing hidden seen, nothing done twice."""

import itertools
import signal
import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import command, linked, load_script, prepare, rows, run, run_here, shared_data

from common import settings
from common.chochlakis import tables
from common.chochlakis.backbones import measure_stats
from common.chochlakis.data import Hiding, Imputed, Part, count_of, curriculum
from common.chochlakis.mae import AVMAE, Sizes
from common.chochlakis.splits import SHARES, SPLIT_SEED, draw_speakers, fold_of
from common.errors import UserError
from common.manifest import Turn, read_manifest
from common.store import open_store
from common.training import make_accelerator

pytest.importorskip("espeakng_loader")
SCRIPT = "06_mae_imputation.py"
NETWORKS = [
    "--BACKBONE_WIDTH=8",
    "--MAE_WIDTH=16",
    "--MAE_DEPTH=1",
    "--DECODER_WIDTH=16",
    "--GRU_WIDTH=8",
    "--SEEDS=0",
    "--PRETRAIN_EPOCHS=4",
    "--MAE_EPOCHS=12",
    "--HEAD_EPOCHS=3",
    "--N_MASKS=2",
    "--TRAIN_MASKS=2",
    "--N_RESAMPLES=100",
    "--WORKERS=1",
]
SHORT = [*NETWORKS, "--CURRICULUM_STEP=3"]
BACKBONES = {"avid-cma": "fig_2", "crisscross": "fig_3"}
N_SYSTEMS = 27  # of either backbone; tests/test_chochlakis_tables.py counts them
TEST_SPEAKERS, _ = draw_speakers([f"{1001 + i}" for i in range(7)], SHARES["cremad"], SPLIT_SEED)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chochlakis")
    prepare(folder, "--CORPUS=demo_cremad", "--DEMO_CREMAD_ACTORS=7", "--DEMO_CREMAD_CLIPS=6")
    prepare(folder, "--CORPUS=demo_audioset", "--DEMO_AUDIOSET_CLIPS=6")
    # Damaged after 01 has accepted it.
    damaged(folder).write_bytes(b"FLV\x01\x05" + bytes(range(256)) * 8)
    (folder / "printed.txt").write_text(run(SCRIPT, folder, *SHORT))
    return folder


def damaged(folder):
    """A video of a test speaker."""
    return min((folder / "data" / "raw" / "demo_cremad" / "VideoFlash").glob(f"{TEST_SPEAKERS[0]}_*.flv"))


def results(folder, corpus="demo_cremad"):
    return folder / "results" / "06_mae_imputation" / corpus


# ---- Tables, figures, predictions ----------------------------------------------------------


@pytest.mark.parametrize(
    "stem",
    [
        "table_fig_2",
        "table_fig_3",
        "table_cases",
        "table_cost",
        *(f"table_{what}_{name}" for what in ("fig_4", "imputation", "baselines") for name in BACKBONES),
    ],
)
def test_every_table_is_there(demo, stem):
    table = rows(results(demo) / f"chochlakis_{stem}.csv")
    assert table and all(np.isfinite(float(line["mean"])) for line in table)
    assert "Made by" in (results(demo) / f"chochlakis_{stem}.md").read_text()


@pytest.mark.parametrize(
    "stem",
    [
        *(f"{figure}_{name}" for name, figure in BACKBONES.items()),
        *(f"fig_{what}_{name}" for what in ("4", "baselines", "unequal", "bursts") for name in BACKBONES),
    ],
)
def test_every_figure_is_there(demo, stem):
    assert (results(demo) / f"chochlakis_{stem}.png").stat().st_size > 5000
    assert (results(demo) / f"chochlakis_{stem}.pdf").stat().st_size > 2000


LEVELS = [f"{percent} % lost" for percent in (20, 40, 60, 80)]
CURVES = {
    "linear": ["Backoff", "curri-MAE", "curri-MAE-ft", "curri-MAE-ft-all"],
    "gru": ["Regular", "Regular-ft-all", "curri-MAE", "curri-MAE-ft", "curri-MAE-ft-all"],
}


@pytest.mark.parametrize("stem", ["table_fig_2", "table_fig_3"])
def test_every_curve_of_the_papers_figures_is_a_row(demo, stem):
    found = [(line["row"], line["column"]) for line in rows(results(demo) / f"chochlakis_{stem}.csv")]
    whole = [
        (f"{head}: {name}", "none lost")
        for head in CURVES
        for name in ("Pristine", "Audio only", "Video only")
    ]
    assert sorted(found) == sorted(
        whole
        + [(f"{head}: {name}", level) for head, names in CURVES.items() for name in names for level in LEVELS]
    )


def test_every_curve_of_figure_4_is_a_row(demo):
    found = [
        (line["row"], line["column"]) for line in rows(results(demo) / "chochlakis_table_fig_4_avid-cma.csv")
    ]
    names = (
        "MAE-ft (40 %)",
        "MAE-ft (70 %)",
        "MAE-ft (40 %+70 %)",
        "MAE-ft-all",
        "curri-MAE-ft (40 %+70 %)",
        "curri-MAE-ft-all",
    )
    assert sorted(found) == sorted((f"gru: {name}", level) for name in names for level in LEVELS)


def test_every_test_recording_is_predicted_once_per_system(demo):
    manifest = rows(demo / "data" / "prepared" / "demo_cremad" / "manifest.csv")
    labels = {
        line["utterance_id"]: line["label"]
        for line in manifest
        if line["speaker"] in TEST_SPEAKERS and line["video"] != str(damaged(demo))
    }
    assert len(labels) == 11
    predictions = rows(results(demo) / "predictions.csv")
    of_system = {
        key: list(group) for key, group in itertools.groupby(predictions, key=lambda line: line["system"])
    }
    assert len(of_system) == len(BACKBONES) * N_SYSTEMS
    assert len(predictions) == 11 * len(of_system)
    for own in of_system.values():
        assert {line["utterance_id"]: line["y_true"] for line in own} == labels
    assert all(line["n"] in ("11", "") for path in results(demo).glob("*_table_*.csv") for line in rows(path))


def test_a_damaged_video_is_counted_reported_and_left_out(demo):
    printed = (demo / "printed.txt").read_text()
    assert printed.count("left out: 1 of 42 recordings (2.4%)") == 2
    for name in BACKBONES:
        store = open_store(demo / "data" / "clips" / "demo_cremad" / f"{name}_5x0.4")
        (problem,) = rows(store.folder / "problems.csv")
        assert problem["utterance_id"] == damaged(demo).stem and problem["file"] == str(damaged(demo))
        assert len(store.ids) == 41 and damaged(demo).stem not in store.ids


# ---- Killed and repeated -------------------------------------------------------------------


def test_killed_training_goes_on_and_nothing_is_trained_twice(demo, tmp_path, capsys):
    """One backbone without what is beyond the paper, which must find what the demo has found, never killed."""
    linked(demo, tmp_path, "prepared", "clips", "checkpoints")
    options = [*SHORT, "--BACKBONES=avid-cma", "--BEYOND=False"]
    process = subprocess.Popen(
        command(SCRIPT, tmp_path, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    network = tmp_path / "data" / "models" / "demo_cremad" / "chochlakis" / "avid-cma" / "seed0" / "curri-MAE"
    while process.poll() is None and not (network / "last.pt").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (network / "history.json").exists(), "killed too late to show anything"
    resumed = run(SCRIPT, tmp_path, *options)
    assert "pretrained: already trained" in resumed and "curri-MAE: going on after epoch" in resumed
    written = (results(tmp_path) / "predictions.csv").read_bytes()
    mine = rows(results(tmp_path) / "predictions.csv")
    systems = {line["system"] for line in mine}
    assert len(systems) == 20 and len(mine) == 20 * 11
    assert mine == [line for line in rows(results(demo) / "predictions.csv") if line["system"] in systems]

    run_here(tmp_path, SCRIPT, *command(SCRIPT, tmp_path, *options)[2:])
    again = capsys.readouterr().out
    assert again.count(": already trained") == 1 + 2 + 20 - 4  # four Systems share the others' classifiers
    assert "going on after" not in again and "already extracted" in again
    assert (results(tmp_path) / "predictions.csv").read_bytes() == written


# ---- Masks and what they hide --------------------------------------------------------------


@pytest.fixture
def lab(demo, tmp_path):
    """The script with the demo's constants and all that it has trained, to be used in this process."""
    linked(demo, tmp_path, "prepared", "clips", "checkpoints", "models")
    script = load_script(SCRIPT)
    settings.apply(vars(script), command(SCRIPT, tmp_path, *SHORT)[2:])
    return script


def make_study(script, name):
    manifest, accelerator = read_manifest(script.DATA_ROOT, script.CORPUS), make_accelerator("no")
    fold = fold_of(manifest, script.CORPUS)
    unlabelled = read_manifest(script.DATA_ROOT, script.PRETRAIN_CORPUS)
    backbone = script.backbone_of(
        name, accelerator, *script.turns_to_measure(manifest, fold.train, unlabelled)
    )
    return script.Study(SimpleNamespace(**script.SETTINGS), accelerator, backbone, manifest, fold)


def predict(script, study, seed=0, systems=None):
    unlabelled = read_manifest(script.DATA_ROOT, script.PRETRAIN_CORPUS)
    script.run_seed(
        study,
        seed,
        script.pretrained_weights(study, unlabelled),
        systems or tables.plan(script.HEADS, script.MIXTURES, True),
    )
    return {key: np.concatenate(found) for key, found in study.predicted.items()}


def test_masks_are_exact_stored_and_shared(demo, lab):
    stored = np.load(demo / "data" / "masks" / "demo_cremad_5.npz")
    studies = [make_study(lab, name) for name in BACKBONES]
    assert [turn.utterance_id for turn in studies[0].test.turns] == stored["ids"].tolist()
    assert set(stored.files) - {"ids"} == {"_".join(map(str, setting)) for setting in studies[0].masks}
    for setting, hidden in studies[0].masks.items():
        assert torch.equal(hidden, studies[1].masks[setting])
        kept = np.unpackbits(stored["_".join(map(str, setting))], axis=-1, count=5)
        assert np.array_equal(kept, hidden.numpy()) and kept.shape == (2, 11, 2, 5)
        counts = setting[1:] if setting[0] == "unequal" else setting[1:] * 2
        assert (hidden.sum(3) == torch.tensor(counts)).all()
    assert not torch.equal(*studies[0].masks["level", 2])  # one mask and the other
    assert not torch.equal(studies[0].masks["level", 2], studies[0].masks["unequal", 2, 2])


def test_masks_are_the_same_for_all_seeds(lab):
    study = make_study(lab, "avid-cma")
    systems = [tables.System("gru", "none"), tables.System("gru", "zeros"), tables.System("gru", "curri-MAE")]
    for seed in (0, 1):
        predict(lab, study, seed, systems)
    for k in range(1, 5):
        zeros, ours = study.errors["zeros", k], study.errors["curri-MAE", k]
        assert zeros[0] == zeros[1] and ours[0] != ours[1]


@pytest.mark.parametrize("setting", [("level", 2), ("level", 4), ("burst", 3)])
def test_no_prediction_depends_on_what_is_hidden(lab, monkeypatch, setting):
    """The test part is changed before the Study sees it, so that no statistic can carry a hidden clip either."""
    lab.N_MASKS = 1
    read_part, generator = lab.read_part, torch.Generator().manual_seed(0)

    def predicted(change):
        def read_changed(store, turns, classes):
            part = read_part(store, turns, classes)
            if {turn.speaker for turn in turns} == set(TEST_SPEAKERS):
                hidden = lab.test_masks(part, part.n_clips)[setting][0]
                part.audio, part.video = (
                    change(x, hidden[:, m]) for m, x in enumerate((part.audio, part.video))
                )
            return part

        monkeypatch.setattr(lab, "read_part", read_changed)
        return {
            system: labels
            for (system, where), labels in predict(lab, make_study(lab, "avid-cma")).items()
            if where == setting
        }

    real = predicted(lambda x, hidden: x)
    assert len(real) == {"level": 21, "burst": 6}[setting[0]]
    for value in (float("nan"), 1e9):
        changed = predicted(lambda x, hidden, value=value: torch.where(hidden[..., None], value, x))
        assert all(np.array_equal(real[system], changed[system]) for system in real)
    noise = predicted(
        lambda x, hidden: torch.where(hidden[..., None], x, 1e3 * torch.randn(x.shape, generator=generator))
    )
    assert not any(np.array_equal(real[system], noise[system]) for system in real)


# ---- Without training ----------------------------------------------------------------------


def part_of(n, n_clips, size, no_video=()):
    generator = torch.Generator().manual_seed(1)
    missing = torch.zeros(n, 2, n_clips, dtype=torch.bool)
    missing[list(no_video), 1] = True
    audio, video = torch.randn(2, n, n_clips, size, generator=generator)
    video[list(no_video)] = 0
    turns = [Turn(f"u{i}", "d", i, "s", "", 0.0, 1.0) for i in range(n)]
    return Part(turns, audio, video, missing, torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize("imputer", ["curri-MAE", "zeros", "mean", "last", "linear"])
def test_a_modality_that_nobody_has_is_never_visible(imputer):
    """The autoencoder was trained with it hidden; a visible clip of zeros would be new to it."""
    script = load_script(SCRIPT)
    part, model = part_of(3, 4, 6, no_video=(0, 1, 2)), AVMAE(6, Sizes(8, 1, 1, 2, 8, 1, 2, 2)).eval()
    hidden = torch.rand(2, 3, 2, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    study = SimpleNamespace(
        mean=torch.stack([torch.ones(6), torch.zeros(6)]),
        is_known=torch.tensor([True, False]),
        autoencoders={"curri-MAE": model},
        accelerator=make_accelerator("no"),
    )
    audio, video = script.impute(study, imputer, part, hidden).chunk(2, -1)
    assert not video.any()
    lost = hidden.clone()
    lost[:, :, 1] = True
    nothing = torch.full_like(part.video, float("nan"))
    expected = {
        "curri-MAE": model.impute,
        **{name: lambda *x, name=name: script.IMPUTERS[name](*x, study.mean) for name in script.IMPUTERS},
    }[imputer](part.audio, nothing, lost)[0]
    assert torch.allclose(audio, expected, atol=1e-6)
    assert torch.equal(audio[~hidden[:, :, 0]], part.audio.expand(2, -1, -1, -1)[~hidden[:, :, 0]])


def test_a_recording_that_lacks_a_modality_gets_it_imputed_if_others_have_it():
    script = load_script(SCRIPT)
    part = part_of(3, 4, 6, no_video=(1,))
    study = SimpleNamespace(mean=torch.full((2, 6), 7.0), is_known=torch.tensor([True, True]))
    audio, video = script.impute(study, "mean", part, torch.zeros(1, 3, 2, 4, dtype=torch.bool)).chunk(2, -1)
    assert torch.equal(audio[0], part.audio) and torch.equal(video[0, [0, 2]], part.video[[0, 2]])
    assert (video[0, 1] == 7).all()


def test_counts_nearest_to_a_share():
    """Section 4.4: 70 % of ten clips are seven; of five, 3.5, halves upwards."""
    assert [count_of(0.7, 10), count_of(0.7, 5), count_of(0.4, 10), count_of(0.4, 5)] == [7, 4, 4, 2]
    assert [count_of(0.01, 10), count_of(0.99, 10), count_of(0.5, 5)] == [1, 9, 3]


def test_batches_follow_the_curriculum():
    part = part_of(6, 5, 2, no_video=(4,))
    batches = Hiding(part, curriculum(10, 5))
    for epoch, n_hidden in ((0, 1), (9, 1), (10, 2), (30, 4), (49, 4)):
        batch = batches.collate([(i, (0, epoch, i)) for i in (4, 2, 0)])
        assert (batch["hidden"].sum(2) == n_hidden).all()
        assert torch.equal(batch["audio"], part.audio[[4, 2, 0]])
        assert torch.equal(batch["missing"], part.missing[[4, 2, 0]]) and batch["missing"].any()
    hidden = [
        batches.collate([(i, (seed, epoch, i)) for i in (4, 2, 0)])["hidden"]
        for seed, epoch in ((0, 20), (0, 20), (1, 20), (0, 21))
    ]
    assert torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0], hidden[2]) and not torch.equal(hidden[0], hidden[3])


def test_a_classifier_sees_another_mask_in_every_epoch():
    x = torch.arange(3.0)[:, None, None, None].expand(3, 8, 2, 1)  # the number of the mask
    batches, labels = Imputed(x, torch.arange(8)), []
    seen = [batches.collate([(i, (0, epoch, i)) for i in range(8)]) for epoch in range(6)]
    assert all(batch["labels"].tolist() == list(range(8)) for batch in seen)
    labels = torch.stack([batch["x"][:, 0, 0] for batch in seen])  # (epochs, R)
    assert set(labels.flatten().tolist()) == {0, 1, 2} and not (labels == labels[0]).all()


def test_default_constants_are_the_papers():
    script = load_script(SCRIPT)
    c = {name: getattr(script, name) for name in dir(script) if name.isupper()}
    assert (c["PRETRAIN_EPOCHS"], c["PRETRAIN_RATE"], c["MAE_EPOCHS"], c["HEAD_RATE"], c["N_MASKS"]) == (
        50,
        1e-4,
        50,
        1e-3,
        10,
    )
    assert (c["N_CLIPS"], c["CLIP_S"], c["CURRICULUM_STEP"], c["MAE_RATE"]) == (0, 0, 0, 0)
    assert c["PAPER"] == {
        "cremad": (5, 0.4, 1e-4),
        "ravdess": (10, 0.4, 5e-4),
        "lombard": (5, 0.5, 1e-4),
        "audioset": (10, 0.5, 1e-4),
    }


def test_a_folder_as_corpus_keeps_its_features_below_data(lab, monkeypatch):
    """CORPUS may be a path, and N_CLIPS is of that corpus alone."""
    monkeypatch.setattr(
        lab, "extract", lambda manifest, turns, backbone, folder, identity, how: (folder, how.n_clips)
    )
    lab.CORPUS, lab.N_CLIPS = "/somewhere/else/mine", 7
    backbone = SimpleNamespace(name="avid-cma", identity=dict)
    folder, n_clips = lab.features_of(SimpleNamespace(corpus="mine"), [], backbone)
    assert str(folder) == f"{lab.DATA_ROOT}/clips/mine/avid-cma_7x0.4" and n_clips == 7
    assert lab.features_of(SimpleNamespace(corpus="demo_audioset"), [], backbone)[1] == 10


def test_other_labels_or_parts_are_trained_anew(lab):
    """The folders of models are the same, what is kept in them must not be taken for that of another split."""
    study = make_study(lab, "avid-cma")
    fold = fold_of(study.manifest, lab.CORPUS)
    moved = SimpleNamespace(train=[*fold.train, fold.valid[0]], valid=fold.valid[1:], test=fold.test)
    other = lab.Study(study.c, study.accelerator, study.backbone, study.manifest, moved)
    assert lab.mae_identity(other) != lab.mae_identity(study)
    fold.train[0].label = next(name for name in study.manifest.classes if name != fold.train[0].label)
    relabelled = lab.Study(study.c, study.accelerator, study.backbone, study.manifest, fold)
    assert lab.mae_identity(relabelled) != lab.mae_identity(study)


def test_what_is_learned_on_unlabelled_recordings_serves_every_corpus(lab):
    """With another training part, as of another corpus, backbones are the same, and all that rests on them is kept."""
    manifest, unlabelled = (read_manifest(lab.DATA_ROOT, name) for name in (lab.CORPUS, lab.PRETRAIN_CORPUS))
    few, accelerator = fold_of(manifest, lab.CORPUS).train[:1], make_accelerator("no")
    backbones = [
        lab.backbone_of("avid-cma", accelerator, *lab.turns_to_measure(manifest, train, unlabelled))
        for train in (few, fold_of(manifest, lab.CORPUS).train)
    ]
    assert backbones[0].identity() == backbones[1].identity()
    assert lab.turns_to_measure(manifest, few, None) == (manifest, few)


def test_statistics_of_spectrograms_need_audio(tmp_path):
    backbone = SimpleNamespace(name="avid-cma", device="cpu")
    with pytest.raises(UserError, match="no training recording has audio"):
        measure_stats(
            backbone, iter([(None, np.zeros((2, 6, 8, 8, 3), np.uint8))]), tmp_path / "new" / "s.npz"
        )
    measure_stats(
        backbone,
        iter([(None, None), (np.random.default_rng(0).normal(size=(2, 9600)), None)]),
        tmp_path / "new" / "s.npz",
    )
    assert np.load(tmp_path / "new" / "s.npz")["mean"].shape == (257,)


@pytest.mark.parametrize(
    "option, told",
    [
        ("--BACKBONES=resnet", "choose among avid-cma"),
        ("--BACKBONES=", "choose among"),
        ("--HEADS=svm", "choose among"),
        ("--BACKBONES=kinetics", "has no random weights"),
        ("--SEEDS=", "at least one"),
        ("--N_MASKS=0", "1 or more"),
        ("--MAE_EPOCHS=0", "1 or more"),
        ("--N_CLIPS=1", "2 clips or more"),
        ("--MIXTURES=0.4+x", "shares of the clips"),
        ("--MIXTURES=", "shares of the clips"),
        ("--PRETRAIN_CORPUS=demo_cremad", "holds the test recordings"),
        ("--PRETRAIN_CORPUS=audioset", "not prepared"),
        ("--CORPUS=lombard", "not prepared"),
        ("--CAVMAE_CHECKPOINT=no.pth", "no such file"),
        ("--MAE_HEADS=3", "do not divide"),
        ("--RANDOM_BACKBONES=False", "no such file"),
        ("--MAX_PROBLEM_SHARE=0", "cannot be used"),
    ],
)
def test_bad_constants_and_missing_files_end_in_one_line(demo, tmp_path, option, told):
    linked(demo, tmp_path, "prepared", "checkpoints", *["clips"] * ("SHARE" not in option))
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path, SCRIPT, *command(SCRIPT, tmp_path, *SHORT, option)[2:])
    message = ended.value.code  # Python prints it and exits with 1
    assert message.startswith("error: ") and told in message and "\n" not in message


# ---- Sound alone ---------------------------------------------------------------------------


def test_genuine_ravdess_without_any_video(tmp_path, capsys):
    """Four actors, one clip per emotion, in the documented way: `06 --scratch --CORPUS=ravdess`."""
    for path in sorted(shared_data("ravdess").glob("Actor_0[1-4]/*-01-01-01-??.wav")):
        (tmp_path / "raw" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / path.parent.name / path.name).symlink_to(path.resolve())

    prepare(tmp_path, "--CORPUS=ravdess", f"--CORPUS_ROOT={tmp_path}/raw", "--MEDIA_IN_PLACE=True")
    run_here(
        tmp_path,
        SCRIPT,
        "--scratch",
        "--CORPUS=ravdess",
        *command(SCRIPT, tmp_path, *NETWORKS)[3:],
        "--BACKBONES=avid-cma",
    )
    assert "without video: 32 of 32 recordings; its features are 0" in capsys.readouterr().out
    folder = results(tmp_path, "ravdess")
    table = rows(folder / "chochlakis_table_fig_2.csv")
    assert len({line["row"] for line in table}) == 15 and len({line["column"] for line in table}) == 10
    (video,) = (line for line in table if line["row"] == "linear: Video only")
    assert float(video["mean"]) == 12.5  # zeros: one class for all, of eight that are as frequent
    assert "8 test recordings, 8 of them without video" in (folder / "chochlakis_table_fig_2.md").read_text()
    imputed = rows(folder / "chochlakis_table_imputation_avid-cma.csv")
    assert imputed and not any(line["column"].startswith("video") for line in imputed)
    assert len(rows(folder / "predictions.csv")) == 8 * N_SYSTEMS
