"""06 end to end on small synthetic corpora and on sound alone: every curve, nothing hidden seen, nothing
done twice."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_av_backbones as av
import torch
from conftest import command, linked, load_script, prepare, rows, run_again, run_here, shared_data

from common import settings, training
from common.chochlakis import imputation, tables
from common.chochlakis.clips import Part
from common.chochlakis.splits import OTHERS, draw_speakers, fold_of
from common.demo import SIZES as demo_sizes
from common.files import file_hash, make_folder
from common.manifest import Turn, read_manifest
from common.store import Store
from common.training import best_weights, make_accelerator

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
    "--CLASSIFIER_EPOCHS=3",
    "--FINETUNE_EPOCHS=3",
    "--CLASSIFIER_SEEDS=",
    "--N_MASKS=2",
    "--TRAIN_MASKS=2",
    "--N_RESAMPLES=100",
    "--WORKERS=1",
]
SHORT = [*NETWORKS, "--CURRICULUM_STEP=3"]
BACKBONES = {"avid-cma": "fig_2", "crisscross": "fig_3"}
N_SYSTEMS = 31  # of either backbone; tests/test_chochlakis_tables.py counts them
TEST_SPEAKERS, _ = draw_speakers([f"{1001 + i}" for i in range(7)], OTHERS[0])


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chochlakis")
    with pytest.MonkeyPatch.context() as patch:
        few = {"n_actors": (7, 1, 91), "clips_per_actor": (6, 1, 82)}
        patch.setitem(demo_sizes, "demo_cremad", few)
        patch.setitem(demo_sizes, "demo_audioset", {"n_clips": (6, 1, 20000)})
        prepare(folder, "--CORPUS=demo_cremad")
        prepare(folder, "--CORPUS=demo_audioset")
    # Damaged after 01 has accepted it.
    damaged(folder).write_bytes(b"FLV\x01\x05" + bytes(range(256)) * 8)
    (folder / "printed.txt").write_text(run_again(SCRIPT, folder, *SHORT, drawn=True))
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
        *(
            f"table_{what}_{name}"
            for what in ("fig_4", "imputation", "epochs", "baselines")
            for name in BACKBONES
        ),
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
        *(f"fig_{what}_{name}" for what in ("4", "baselines", "imputed") for name in BACKBONES),
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
        "MAE-ft (80 %)",
        "MAE-ft (40 %+80 %)",
        "MAE-ft-all",
        "curri-MAE-ft (40 %+80 %)",
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
    assert printed.count("1 of 42 recordings cannot be used (2.4%)") == 2
    for name in BACKBONES:
        store = Store(demo / "data" / "clips" / "demo_cremad" / f"{name}_5x0.4")
        (problem,) = rows(store.folder / "problems.csv")
        assert problem["utterance_id"] == damaged(demo).stem and problem["file"] == str(damaged(demo))
        assert len(store.ids) == 41 and damaged(demo).stem not in store.ids


# ---- Killed and repeated -------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run in the middle of a training."""


def test_killed_training_resumes_and_nothing_is_trained_twice(demo, tmp_path, capsys, monkeypatch):
    """One backbone without what is beyond the paper, which must find what the demo has found, never
    killed.
    """
    linked(demo, tmp_path, "prepared", "clips", "checkpoints")
    words = command(SCRIPT, tmp_path, *SHORT, "--BACKBONES=avid-cma", "--BEYOND_PAPER=False")[2:]
    end_epoch = training.Training.end_epoch

    def killed(self, *args):
        better = end_epoch(self, *args)
        if self.folder.name == "curri-MAE" and self.state.epoch == 5:
            self.save()  # as it does after a while
            raise Killed
        return better

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training.Training, "end_epoch", killed)
        run_here(tmp_path, SCRIPT, *words)
    capsys.readouterr()
    run_here(tmp_path, SCRIPT, *words)
    resumed = capsys.readouterr().out
    assert resumed.count(": already trained") == 1 and "pretrained: already trained" in resumed
    assert "curri-MAE: " in resumed and "after epoch 5" in resumed
    written = (results(tmp_path) / "predictions.csv").read_bytes()
    mine = rows(results(tmp_path) / "predictions.csv")
    systems = {line["system"] for line in mine}
    assert len(systems) == 20 and len(mine) == 20 * 11
    assert mine == [line for line in rows(results(demo) / "predictions.csv") if line["system"] in systems]

    run_here(tmp_path, SCRIPT, *words)
    again = capsys.readouterr().out
    assert again.count(": already trained") == 1 + 2 + 20 - 4  # four Systems share the others' classifiers
    assert "after epoch" not in again and "recordings are there" in again
    assert (results(tmp_path) / "predictions.csv").read_bytes() == written


# ---- Masks and what they hide --------------------------------------------------------------


@pytest.fixture
def lab(demo, tmp_path):
    """The script with the demo's constants and all that it has trained, to be used in this process."""
    linked(demo, tmp_path, "prepared", "clips", "checkpoints", "models")
    script = load_script(SCRIPT)
    settings.apply(vars(script), command(SCRIPT, tmp_path, *SHORT)[2:])
    return script


def run_seed(script, seed=0):
    """What run_seed gives for AVID-CMA, from what the demo has extracted and trained."""
    manifest = read_manifest(script.DATA_ROOT, script.CORPUS)
    store = Store(f"{script.DATA_ROOT}/clips/demo_cremad/avid-cma_5x0.4")
    first = script.best_weights(f"{script.DATA_ROOT}/models/demo_audioset/chochlakis/avid-cma/pretrained")
    return script.run_seed("avid-cma", seed, store, fold_of(manifest, script.CORPUS), manifest.classes, first)


def test_no_prediction_depends_on_what_is_hidden(lab, monkeypatch):
    """The test part is changed before anything sees it, so that no statistic can carry a hidden clip
    either; at the level with most of them.
    """
    k, lab.N_MASKS, lab.CLASSIFIER_EPOCHS, draw = 4, 1, 1, lab.draw_test_masks
    monkeypatch.setattr(lab, "draw_test_masks", lambda n, n_clips: {k: draw(n, n_clips)[k]})
    read_part, generator = lab.read_part, torch.Generator().manual_seed(0)

    def predicted(change):
        def read_changed(store, turns, classes):
            part = read_part(store, turns, classes)
            if {turn.speaker for turn in turns} == set(TEST_SPEAKERS):
                hidden = draw(len(part), part.n_clips)[k][0]
                part.x = change(part.x, hidden[..., None])
            return part

        monkeypatch.setattr(lab, "read_part", read_changed)
        found = run_seed(lab)[1]
        return {system: labels for (system, n_lost), labels in found.items() if n_lost == k}

    real = predicted(lambda x, hidden: x)
    assert len(real) == 25
    changed = predicted(lambda x, hidden: torch.where(hidden, float("nan"), x))
    assert all(np.array_equal(real[system], changed[system]) for system in real)
    noise = predicted(
        lambda x, hidden: torch.where(hidden, x, 1e3 * torch.randn(x.shape, generator=generator))
    )
    assert not any(np.array_equal(real[system], noise[system]) for system in real)


# ---- Without training ----------------------------------------------------------------------


def part_of(n, n_clips, size, no_video=()):
    generator = torch.Generator().manual_seed(1)
    missing = torch.zeros(n, 2, n_clips, dtype=torch.bool)
    missing[list(no_video), 1] = True
    x = torch.randn(n, 2, n_clips, size, generator=generator) * ~missing[..., None]
    turns = [Turn(f"u{i}", "d", i, "s", "", 0.0, 1.0) for i in range(n)]
    return Part(turns, x, missing, torch.zeros(n, dtype=torch.int64), {})


def imputers(script, part):
    for name, value in {"MAE_WIDTH": 8, "MAE_HEADS": 2, "MAE_DEPTH": 1, "DECODER_WIDTH": 8}.items():
        setattr(script, name, value)
    script.DECODER_HEADS, script.DECODER_DEPTH = 2, 1
    model = script.AVMAE(part.x.shape[3]).eval()
    data = SimpleNamespace(train=part, seed=0, accelerator=make_accelerator("no"))
    return script.imputers_of(data, {"curri-MAE": model}), model


@pytest.mark.parametrize("name", ["curri-MAE", "zeros", "mean", "last", "linear", "ridge"])
def test_a_modality_that_nobody_has_is_never_visible(name):
    """The autoencoder was trained with it hidden; a visible clip of zeros would be new to it."""
    script, part = load_script(SCRIPT), part_of(3, 4, 6, no_video=(0, 1, 2))
    hidden = torch.rand(2, 3, 2, 4, generator=torch.Generator().manual_seed(2)) < 0.5
    found, model = imputers(script, part)
    audio, video = imputation.impute(found[name], part, part, hidden).unbind(2)
    assert not video.any()
    nothing, lost = part.x.clone(), hidden.clone()
    nothing[:, 1], lost[:, :, 1] = float("nan"), True
    if name == "curri-MAE":
        expected = torch.stack([model.impute(nothing, mask, script.visible_first(mask)) for mask in lost])
        assert torch.allclose(audio, expected[:, :, 0], atol=1e-6)
    assert torch.isfinite(audio).all()
    assert torch.equal(audio[~hidden[:, :, 0]], part.x[:, 0].expand(2, -1, -1, -1)[~hidden[:, :, 0]])


def test_a_recording_that_lacks_a_modality_gets_it_imputed_if_others_have_it():
    script, part = load_script(SCRIPT), part_of(3, 4, 6, no_video=(1,))
    imputer, hidden = imputers(script, part)[0]["mean"], torch.zeros(1, 3, 2, 4, dtype=torch.bool)
    found = imputation.impute(imputer, part, part, hidden)[0]
    assert torch.equal(found[:, 0], part.x[:, 0]) and torch.equal(found[[0, 2], 1], part.x[[0, 2], 1])
    assert torch.allclose(found[1, 1], part.x[[0, 2], 1].mean((0, 1)))


def without_training(monkeypatch, script, seen):
    """Keep the training data sets by name in `seen`."""

    def train_and_test(accelerator, task, data, recipe, place, **options):
        seen[place.folder.name] = data["train"]
        return {"history": {}}

    monkeypatch.setattr(imputation, "train_and_test", train_and_test)
    for module in (imputation, script):
        monkeypatch.setattr(module, "load_best", lambda model, *place: model)


def test_batches_follow_the_curriculum_and_the_seed(monkeypatch, tmp_path):
    script, part, seen = load_script(SCRIPT), part_of(6, 5, 2, no_video=(4,)), {}
    vars(script).update(CAVMAE_CHECKPOINT="", MAE_EPOCHS=50, MAE_WIDTH=12, MAE_DEPTH=1, DECODER_WIDTH=16)
    without_training(monkeypatch, script, seen)
    data = script.Data(part, part, part, (), tmp_path / "seed0", 0, make_accelerator("no"))
    script.fine_tune_autoencoders(data, "")
    batches = seen["curri-MAE"]
    for epoch, n_hidden in ((0, 1), (9, 1), (10, 2), (30, 4), (49, 4)):
        batch = batches.collate([(i, (0, epoch, i)) for i in (4, 2, 0)])
        assert (batch["hidden"] & ~part.missing[[4, 2, 0]] == batch["learned"]).all()
        assert (batch["learned"].sum(2) == n_hidden).sum() == 5 and batch["hidden"][0, 1].all()
        assert torch.equal(batch["x"], part.x[[4, 2, 0]])
        assert torch.equal(batch["at"], script.visible_first(batch["hidden"]))
        fixed = seen["MAE"].collate([(i, (0, epoch, i)) for i in (4, 2, 0)])
        assert (fixed["learned"][1:].sum(2) == 4).all()  # the nearest to 70 % of five
    drawn = ((0, 20), (0, 20), (1, 20), (0, 21))
    hidden = [batches.collate([(i, (*key, i)) for i in (4, 2, 0)])["hidden"] for key in drawn]
    assert torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0], hidden[2]) and not torch.equal(hidden[0], hidden[3])


def test_a_classifier_is_trained_again_where_its_own_autoencoder_has_changed(monkeypatch, tmp_path):
    """That of the last epoch has weights of its own: the best ones may stay as they are."""
    script, identities = load_script(SCRIPT), []
    monkeypatch.setattr(imputation, "train", lambda *arguments: identities.append(arguments[-1]))
    files = {epoch: best_weights(tmp_path / "curri-MAE", epoch) for epoch in ("best", "last")}
    part = part_of(4, 2, 1)
    make_folder(tmp_path / "curri-MAE")
    for epoch, path in files.items():
        path.write_text(epoch)
    data = script.Data(part, part, part, ("a", "b"), tmp_path, 0, make_accelerator("no"))
    first, x = script.LinearClassifier(2, 2), torch.zeros(1, 4, 2, 2)
    for imputer in ("curri-MAE", tables.LAST, "zeros"):
        script.train_classifier(data, tables.System("linear", imputer, "all"), 0, first, (x, x))
    assert [identity["imputed_by"] for identity in identities] == [*map(file_hash, files.values()), ""]


def test_a_classifier_sees_another_mask_in_every_epoch(monkeypatch, tmp_path):
    script, seen = load_script(SCRIPT), {}
    without_training(monkeypatch, script, seen)
    part = part_of(8, 2, 1)
    part.labels = torch.arange(8)
    x = torch.arange(3.0)[:, None, None, None].expand(3, 8, 2, 1)  # the number of the mask
    data = script.Data(part, part, part, tuple("abcdefgh"), tmp_path, 0, make_accelerator("no"))
    script.train_classifier(data, tables.System("linear", "none"), 0, None, (x, x))
    (train_set,) = seen.values()
    batches = [train_set.collate([(i, (0, epoch, i)) for i in range(8)]) for epoch in range(6)]
    assert all(batch["labels"].tolist() == list(range(8)) for batch in batches)
    masks = torch.stack([batch["x"][:, 0, 0] for batch in batches])  # (epochs, R)
    assert set(masks.flatten().tolist()) == {0, 1, 2} and not (masks == masks[0]).all()


def test_errors_of_imputation_by_hand():
    """Two hidden clips of audio: the mean is 2 and 0 off, the imputed ones 1 and 1; video hides nothing."""
    part = part_of(1, 4, 1)
    part.x[0, 0, :, 0] = torch.tensor([2.0, 0.0, -1.0, -1.0])
    hidden = torch.zeros(1, 1, 2, 4, dtype=torch.bool)
    hidden[..., 0, :2] = True
    imputed = part.x[None].clone()
    imputed[0, 0, 0, :2, 0] = torch.tensor([1.0, 1.0])
    assert imputation.unexplained(part, part, imputed, hidden) == {"audio": pytest.approx(50.0)}


def test_default_constants_are_the_papers():
    c = load_script(SCRIPT)
    assert (c.PRETRAIN_EPOCHS, c.PRETRAIN_LEARNING_RATE, c.MAE_EPOCHS, c.N_MASKS) == (50, 1e-4, 50, 10)
    assert (c.N_CLIPS, c.CLIP_S, c.CURRICULUM_STEP, c.MAE_LEARNING_RATE) == (0, 0, 0, 0)
    assert c.PAPER == {
        "cremad": (5, 0.4, 1e-4),
        "ravdess": (10, 0.4, 5e-4),
        "lombard": (5, 0.5, 1e-4),
        "audioset": (10, 0.5, 1e-4),
    }


def test_a_folder_as_corpus_keeps_its_features_below_data(lab, monkeypatch):
    """CORPUS may be a path, and N_CLIPS is of that corpus alone."""
    monkeypatch.setattr(lab, "clip_features", lambda *args: args[3:5])
    lab.CORPUS, lab.N_CLIPS = "/somewhere/else/mine", 7
    backbone = SimpleNamespace(name="avid-cma")
    folder, n_clips = lab.features_of(SimpleNamespace(corpus="mine"), [], backbone)
    assert str(folder) == f"{lab.DATA_ROOT}/clips/mine/avid-cma_7x0.4" and n_clips == 7
    assert lab.features_of(SimpleNamespace(corpus="demo_audioset"), [], backbone)[1] == 10


def test_seeds_side_by_side_find_what_they_find_in_turn(demo, tmp_path):
    """In processes of their own, to which the script's functions and constants travel."""
    linked(demo, tmp_path, "prepared", "clips", "checkpoints")
    pretrained = Path("data", "models", "demo_audioset")
    shutil.copytree(demo / pretrained, tmp_path / pretrained)
    options = [*SHORT, "--BEYOND_PAPER=False", "--CLASSIFIERS=linear", "--JOBS=2"]
    run_here(tmp_path, SCRIPT, *command(SCRIPT, tmp_path, *options)[2:])
    mine = rows(results(tmp_path) / "predictions.csv")
    systems = {line["system"] for line in mine}
    assert len(systems) == 2 * 7
    assert mine == [line for line in rows(results(demo) / "predictions.csv") if line["system"] in systems]


@pytest.mark.parametrize(
    "option, told",
    [
        ("--BACKBONES=resnet", "choose from avid-cma"),
        ("--BACKBONES=", "must not be empty"),
        ("--CLASSIFIERS=svm", "choose from"),
        ("--SEEDS=", "must not be empty"),
        ("--N_MASKS=0", "above 0"),
        ("--MAE_EPOCHS=0", "above 0"),
        ("--N_CLIPS=1", "N_CLIPS=1: give 2 to 1,000"),
        ("--MIXTURES=0.4+x", "shares of the clips"),
        ("--MIXTURES=", "must not be empty"),
        ("--PRETRAIN_CORPUS=demo_cremad", "test recordings"),
        ("--PRETRAIN_CORPUS=audioset", "not prepared"),
        ("--CORPUS=lombard", "not prepared"),
        ("--CAVMAE_CHECKPOINT=no.pth", "no.pth (no such file)"),
        ("--MAE_HEADS=3", "MAE_HEADS=3: does not divide MAE_WIDTH"),
        ("--MAE_WIDTH=1000000", "MLP_RATIO: lower"),
        ("--BACKBONE_WIDTH=100000", "BACKBONE_WIDTH: give up to 4096"),
        ("--CLIP_S=0.01", "0.1 to 60 seconds"),
        ("--FRAME_SIZE=8", "give 0 or 32 to 1024"),
        ("--BETAS=0.9,1", "BETAS: give two numbers below 1"),
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


def test_weights_that_do_not_fit_are_refused_before_any_feature_is_computed(demo, tmp_path):
    """CAV-MAE's file, then a network of the second backbone."""
    linked(demo, tmp_path, "prepared")
    torch.save({"x": torch.ones(1)}, tmp_path / "cavmae.pth")
    paths = av.write_checkpoints(tmp_path / "authors", av.backbone_of("crisscross", 8))
    weights = torch.load(paths["audio"])
    next(iter(weights.values())).fill_(float("nan"))
    torch.save(weights, paths["audio"])
    files = [f"--CRISSCROSS_{part.upper()}={path}" for part, path in paths.items()]
    avid = av.write_checkpoints(tmp_path / "authors", av.backbone_of(width=8))
    files += [f"--AVID_CHECKPOINT={avid['audio']}", f"--AVID_STATS={avid['bins']}"]
    for options, told in (
        ([f"--CAVMAE_CHECKPOINT={tmp_path}/cavmae.pth"], "3 of 3 weights are absent"),
        (["--RANDOM_BACKBONES=False", *files], "NaN or infinity in its weights"),
    ):
        with pytest.raises(SystemExit, match=told):
            run_here(tmp_path, SCRIPT, *command(SCRIPT, tmp_path, *SHORT, *options)[2:])
    assert not (tmp_path / "data" / "clips").exists()


def test_everything_that_is_missing_is_named_at_once(tmp_path):
    options = "--CORPUS=lombard", "--PRETRAIN_CORPUS=audioset", f"--DATA_ROOT={tmp_path}"
    with pytest.raises(SystemExit) as ended:
        run_here(tmp_path, SCRIPT, *options)
    message = ended.value.code
    names = "AVID-CMA_Audioset", "norm-stats.npz", "vid_crisscross", "aud_crisscross", "audio_model.21.pth"
    assert all(f"{name}" in message for name in (*names, "lombard (not", "audioset (not", "--scratch"))
    assert "\n" not in message and not (tmp_path / "results").exists()


# ---- Sound alone ---------------------------------------------------------------------------


def test_genuine_ravdess_without_any_video(tmp_path):
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
    folder = results(tmp_path, "ravdess")
    table = rows(folder / "chochlakis_table_fig_2.csv")
    assert len({line["row"] for line in table}) == 15 and len({line["column"] for line in table}) == 10
    (video,) = (line for line in table if line["row"] == "linear: Video only")
    assert float(video["mean"]) == 12.5  # zeros: one class for all, of eight that are as frequent
    assert "8 test recordings, 8 of them without video" in (folder / "chochlakis_table_fig_2.md").read_text()
    imputed = rows(folder / "chochlakis_table_imputation_avid-cma.csv")
    assert imputed and not any(line["column"].startswith("video") for line in imputed)
    assert len(rows(folder / "predictions.csv")) == 8 * N_SYSTEMS
