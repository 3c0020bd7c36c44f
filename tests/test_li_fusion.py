"""04 with PAPERS=li end to end on a few invented dialogues, its protocol (nothing learns from test labels),
how it resumes after a kill, and what it refuses."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pytest
from conftest import figures, load_script
from dialogues import CLASSES, MODELS, write_checkpoints, write_corpus
from safetensors.torch import load_file

from common import results, settings
from common.comparison import Scores
from common.extraction import Extraction
from common.files import UserError
from common.li import training
from common.li.tables import PAPER, name_of, note_of
from common.li.training import FROZEN, PHASES, TUNED, train_all, train_system
from common.manifest import Manifest, Turn, read_manifest, write_manifest
from common.splits import Fold
from common.training import best_weights, make_accelerator

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # see encoders.py

QUICK = (
    "--PAPERS=li",
    "--CORPUS=demo_iemocap",
    "--CHECKPOINTS=local",
    "--SEEDS=0",
    "--FROZEN_EPOCHS=2",
    "--FINETUNE_EPOCHS=1",
    "--N_RESAMPLES=100",
    "--PROJECTOR_HIDDEN=8",
    "--CONTEXT_BEFORE=1",
    "--CONTEXT_AFTER=1",
    "--CONTEXT_SYSTEMS=",
    "--WORKERS=0",
    "--PRECISION=no",
    "--AUDIO_MAX_S=0.6",
    "--BATCH_SIZE=8",
)
SYSTEMS = ("WavLM+TE", "BERT+TE", "LF", "MMT")
CONTEXTS = ("--CONTEXT_SYSTEMS=BERT+TE", "--CONTEXT_SIZES=0+0,1+0,1+1")
FOLDS = ("fold1", "fold2", "fold3")
BRANCHES = load_script("04_fuse_classify.py").BRANCHES


def load_04(root, *words):
    """04 with the constants of a command line."""
    script = load_script("04_fuse_classify.py")
    settings.apply(
        vars(script),
        [f"--DATA_ROOT={root}", f"--RESULTS_ROOT={root}/results", "--RUN=demo_iemocap", *QUICK, *words],
    )
    return script


def run_04(root, *words):
    """Run 04 for this paper and return its results folder."""
    with figures():  # test_demo_end_to_end.py has them drawn
        load_04(root, *words).main()
    return root / "results" / "04_fuse_classify" / "demo_iemocap"


def study_of(root, *words):
    """The Study of a command line, with its hidden states."""
    script, manifest = load_04(root, *words), read_manifest(root, "demo_iemocap")
    study = script.make_study(manifest)
    for utterances in study.utterances.values():
        folder = root / "cache" / "demo_iemocap"
        where = folder, script.CACHE_GB, script.HIDDEN_STATES
        script.keep_states(utterances, manifest, make_accelerator("no"), *where, Extraction(32))
    return study


def logits_of(outcome):
    return outcome["tests"]["test"]["outputs"]["logits"]


def prepare(root, **options):
    """A corpus and its checkpoints where 04 looks for them."""
    manifest = write_corpus(root, **options)
    write_checkpoints(root / "checkpoints" / manifest.corpus)
    return manifest


def read_table(folder, name):
    with open(folder / f"li_{name}.csv", encoding="utf-8") as file:
        return {(row["row"], row["column"]): row for row in csv.DictReader(file)}


def read_predictions(folder):
    """{system: {utterance_id: row}}"""
    found = {}
    with open(folder / "li_predictions.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["utterance_id"] not in found.setdefault(row["system"], {}), "predicted twice"
            found[row["system"]][row["utterance_id"]] = row
    return found


def right(rows):
    return np.array([row["y_true"] == row["y_pred"] for _, row in sorted(rows.items())], float)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    manifest = prepare(root)
    with pytest.MonkeyPatch.context() as patch:  # as if this were the release and all constants the paper's
        patch.setattr(results, "incomparable", lambda *run: "")
        return root, manifest, run_04(root, f"--SYSTEMS={','.join(SYSTEMS)}", *CONTEXTS)


# ---- What a run leaves ---------------------------------------------------------------------


def test_it_leaves_every_table_and_figure(finished):
    root, _, folder = finished
    expected = {
        f"li_{name}.{kind}"
        for kind in ("csv", "md")
        for name in ("table_1", "table_2", "table_tests", "table_context", "table_styles")
    }
    expected |= {
        "li_fig_4_confusion.png",
        "li_fig_4_confusion.pdf",
        "li_predictions.csv",
        "li_metrics.json",
        "log.jsonl",
        "index.html",
    }
    assert {path.name for path in folder.iterdir()} == expected
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    trained = [
        (r["system"], tuple(r["context"]), r["fold"], r["phase"]) for r in log if r["event"] == "trained"
    ]
    assert all(record["paper"] == "li" for record in log)
    assert sorted(set(trained)) == sorted(  # those of 1+1 serve the table of contexts too
        {(s, (1, 1), f, p) for s in SYSTEMS for f in FOLDS for p in PHASES}
        | {("BERT+TE", w, f, "frozen") for w in ((0, 0), (1, 0)) for f in FOLDS}
    )
    assert not list(root.rglob("last.pt")) and not list(root.rglob("fine-tuned/best.safetensors"))


def test_table_1_has_the_papers_numbers_beside_the_right_systems(finished):
    table = read_table(finished[2], "table_1")
    printed = {
        "3 WavLM+TE frozen, A": ("63.51", "64.67"),
        "4 WavLM+TE fine-tuned, A": ("67.99", "68.24"),
        "7 BERT+TE frozen, T": ("74.55", "76.41"),
        "8 BERT+TE fine-tuned, T": ("76.09", "76.57"),
        "15 LF frozen, A + T": ("79.91", "81.88"),
        "16 LF fine-tuned, A + T": ("79.91", "81.15"),
        "17 MMT frozen, A + T": ("78.58", "80.72"),
        "18 MMT fine-tuned, A + T": ("80.36", "81.7"),
    }
    assert {row for row, _ in table} == set(printed)
    for row, (wa, ua) in printed.items():
        assert (table[row, "WA"]["paper"], table[row, "UA"]["paper"]) == (wa, ua)
        assert (table[row, "WA"]["n"], table[row, "WA"]["n_runs"]) == ("42", "3")
        assert table[row, "weighted F1"]["paper"] == "" and table[row, "weighted F1"]["mean"]
    assert (
        "last epoch kept" in table[row, "WA"]["protocol"]
        and "3-fold by session" in table[row, "WA"]["protocol"]
    )
    assert "one validation speaker" in table[row, "WA"]["protocol"]


def test_the_systems_are_numbered_as_in_the_paper():
    """Table 1 of the paper, in its order: a number, a model, WA and UA."""
    scores = SimpleNamespace(source=SimpleNamespace(numbered=list(BRANCHES)))
    numbers = [name_of(scores, name, phase).split()[0] for name in BRANCHES for phase in PHASES]
    assert numbers == [str(i) for i in range(1, 19)] and PHASES == ("frozen", "fine-tuned")
    assert name_of(scores, "CMT(A→T)", "frozen") == "9 CMT(A→T) frozen"
    printed = [
        [PAPER["1", f"{name} {phase}", c] for name in BRANCHES for phase in PHASES] for c in ("WA", "UA")
    ]
    assert printed[0] == [
        *(66.15, 66.70, 63.51, 67.99, 74.33, 77.67, 74.55, 76.09, 67.76),
        *(68.07, 74.98, 77.75, 77.61, 79.80, 79.91, 79.91, 78.58, 80.36),
    ]
    assert printed[1] == [
        *(65.35, 66.71, 64.67, 68.24, 76.57, 78.76, 76.41, 76.57, 69.37),
        *(67.93, 76.85, 78.60, 77.85, 80.65, 81.88, 81.15, 80.72, 81.70),
    ]


def test_every_labelled_turn_is_predicted_once_and_scores_can_be_recounted(finished):
    _, manifest, folder = finished
    predictions, table = read_predictions(folder), read_table(folder, "table_1")
    assert len(predictions) == len(SYSTEMS) * 2 + 3
    labels = {turn.utterance_id: turn.label for turn in manifest.labelled}
    for system, rows in predictions.items():
        assert {i: row["y_true"] for i, row in rows.items()} == labels, system
        assert all(
            int(row["fold"][-1]) == int(i[4]) for i, row in rows.items()
        )  # session k is tested in fold k
    for name in SYSTEMS:
        for phase in PHASES:
            rows = predictions[f"{name} {phase}, context 1+1"]
            row = next(row for row, _ in table if f" {name} {phase}, " in row)
            folds = [[r for r in rows.values() if r["fold"] == fold] for fold in FOLDS]
            hits = [[r["y_true"] == r["y_pred"] for r in fold] for fold in folds]
            assert float(table[row, "WA"]["mean"]) == pytest.approx(
                100 * np.mean([np.mean(h) for h in hits]), abs=1e-4
            )
            recalls = [
                [
                    np.mean([r["y_pred"] == c for r in fold if r["y_true"] == c])
                    for c in {r["y_true"] for r in fold}
                ]
                for fold in folds
            ]
            assert float(table[row, "UA"]["mean"]) == pytest.approx(
                100 * np.mean([np.mean(r) for r in recalls]), abs=1e-4
            )


def test_table_2_compares_the_last_session_and_all_folds(finished):
    table, predictions = read_table(finished[2], "table_2"), read_predictions(finished[2])
    assert table["[23] Wu et al. 2021, Session 5", "WA"]["paper"] == "83.08"
    assert table["[19] Siriwardhana et al. 2020, 5-fold CV", "UA"]["paper"] == "75.46"
    assert ("[19] Siriwardhana et al. 2020, 5-fold CV", "WA") not in table
    assert all(row["mean"] == "" for (name, _), row in table.items() if name.startswith("["))
    session, folds = ("ours, 18 MMT fine-tuned, Session 5", "ours, 18 MMT fine-tuned, 5-fold CV")
    assert (table[session, "WA"]["paper"], table[folds, "UA"]["paper"]) == ("84.45", "81.7")
    assert table["ours, 15 LF frozen, Session 5", "UA"]["paper"] == "80.56"
    rows = {i: r for i, r in predictions["MMT fine-tuned, context 1+1"].items() if r["fold"] == "fold3"}
    assert float(table[session, "WA"]["mean"]) == pytest.approx(100 * right(rows).mean(), abs=1e-4)
    assert (table[session, "WA"]["n"], table[session, "WA"]["n_runs"], table[folds, "WA"]["n"]) == (
        "14",
        "1",
        "42",
    )
    one = read_table(finished[2], "table_1")["18 MMT fine-tuned, A + T", "WA"]
    assert table[folds, "WA"]["mean"] == one["mean"]


def test_gains_over_the_rivals_can_be_recounted(finished):
    table, predictions = read_table(finished[2], "table_tests"), read_predictions(finished[2])
    rows = {row for row, _ in table}
    for phase in PHASES:
        ours, rival = (right(predictions[f"{name} {phase}, context 1+1"]) for name in ("MMT", "LF"))
        gain = table[f"MMT against LF, {phase}", "gain in WA"]
        assert (
            float(gain["mean"]) == pytest.approx(100 * (ours - rival).mean(), abs=1e-4)
            and gain["unit"] == "points"
        )
        single = next(row for row in rows if row.startswith(f"MMT against the best single modality, {phase}"))
        counts = dict(
            part.rsplit(" ", 1) for part in single.split("development: ")[1].rstrip(")").split(", ")
        )
        assert (
            set(counts) <= {"WavLM+TE", "BERT+TE"} and sum(map(int, counts.values())) == 3
        )  # one choice per fold
    assert len(rows) == 4 and all(0 <= float(table[row, "by speaker, Holm"]["mean"]) <= 1 for row in rows)


def test_gains_of_context_can_be_recounted(finished):
    table, predictions = read_table(finished[2], "table_context"), read_predictions(finished[2])
    named = {"0 before, 0 after": "0+0", "1 before, 0 after (past only)": "1+0", "1 before, 1 after": "1+1"}
    assert {row for row, _ in table} == {f"BERT+TE: {text}" for text in named}
    base = right(predictions["BERT+TE frozen, context 0+0 (context sizes)"])
    for text, size in named.items():
        row, rows = f"BERT+TE: {text}", predictions[f"BERT+TE frozen, context {size} (context sizes)"]
        ours, folds = right(rows), np.array([r["fold"] for _, r in sorted(rows.items())])
        wa = np.mean([ours[folds == fold].mean() for fold in FOLDS])
        assert (
            float(table[row, "WA"]["mean"]) == pytest.approx(100 * wa, abs=1e-4)
            and table[row, "weighted F1"]["mean"]
        )
        if size == "0+0":
            assert (row, "gain in WA") not in table
        else:
            assert float(table[row, "gain in WA"]["mean"]) == pytest.approx(
                100 * (ours - base).mean(), abs=1e-4
            )
    assert "as in each row" in (finished[2] / "li_table_context.md").read_text()


def test_styles_are_scored_apart(finished):
    _, manifest, folder = finished
    table, predictions = (
        read_table(folder, "table_styles"),
        read_predictions(folder)["MMT frozen, context 1+1"],
    )
    styles = {turn.utterance_id: turn.extra["style"] for turn in manifest.labelled}
    for style in ("improvised", "scripted"):
        cell = table["17 MMT frozen", f"{style} WA"]
        folds = [
            [
                r["y_true"] == r["y_pred"]
                for i, r in predictions.items()
                if r["fold"] == fold and styles[i] == style
            ]
            for fold in FOLDS
        ]
        assert float(cell["mean"]) == pytest.approx(100 * np.mean([np.mean(f) for f in folds]), abs=1e-4)
        assert cell["n"] == "21" and cell["paper"] == ""
    assert len(table) == len(SYSTEMS) * 2 * 4


def test_metrics_name_what_was_run(finished):
    found = json.loads((finished[2] / "li_metrics.json").read_text())
    cell = found["metrics"]["li_table_1/17 MMT frozen, A + T/WA"]
    assert cell["paper"] == 78.58 and [run["fold"] for run in cell["per_run"]] == list(FOLDS)
    assert found["settings"]["FROZEN_EPOCHS"] == 2 and found["settings"]["KEEP_EPOCH"] == "last"


# ---- Going on ------------------------------------------------------------------------------


def forbid_training(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "start_network", forbidden)


def test_a_second_run_trains_nothing_and_gives_the_same_tables(finished, monkeypatch):
    root, _, folder = finished
    names = ("li_table_1.csv", "li_table_context.csv", "li_predictions.csv")
    before = {name: (folder / name).read_bytes() for name in names}
    forbid_training(monkeypatch)
    monkeypatch.setattr(results, "incomparable", lambda *run: "")
    run_04(root, f"--SYSTEMS={','.join(SYSTEMS)}", *CONTEXTS)
    assert {name: (folder / name).read_bytes() for name in names} == before
    with pytest.raises(AssertionError, match="trained again"):  # other settings, other models
        run_04(root, "--SYSTEMS=MMT", "--WIDTH=8", f"--RESULTS_ROOT={root}/other")


def test_a_training_that_was_sent_to_a_process_gives_the_same_outcome(finished, tmp_path):
    """As joblib sends it, with the network of the script."""
    prepare(tmp_path)
    task = study_of(tmp_path, "--SYSTEMS=BERT+TE"), "BERT+TE", (1, 1), [FROZEN], 0, 0
    function, task = cloudpickle.loads(cloudpickle.dumps((train_system, task)))
    two = function(*task)[FROZEN]
    part = "models/demo_iemocap/li/bert_te/1+1/seed0/fold1/frozen/outcome.json"
    assert logits_of(json.loads((finished[0] / part).read_text())) == logits_of(two)


def test_killed_after_the_frozen_phase_it_resumes(finished, tmp_path, monkeypatch):
    """The same outcome as the run that was not killed, without training the frozen phase again."""
    prepare(tmp_path)
    real, calls = training.start_network, []

    def killed(study, system, window, seed, phase, folder, train_ids):
        calls.append((folder.name, phase))
        if phase == TUNED and len(calls) == 2:
            raise KeyboardInterrupt
        return real(study, system, window, seed, phase, folder, train_ids)

    monkeypatch.setattr(training, "start_network", killed)
    with pytest.raises(KeyboardInterrupt):
        run_04(tmp_path, "--SYSTEMS=MMT")
    assert calls == [("fold1", FROZEN), ("fold1", TUNED)]
    run_04(tmp_path, "--SYSTEMS=MMT")
    assert calls[2:] == [("fold1", TUNED), *[(f, p) for f in FOLDS[1:] for p in PHASES]]
    for part in (f"{fold}/{phase}/outcome.json" for fold in FOLDS for phase in PHASES):
        roots = finished[0], tmp_path
        folder = "models/demo_iemocap/li/mmt/1+1/seed0"
        whole, resumed = (json.loads((root / folder / part).read_text()) for root in roots)
        assert logits_of(whole) == logits_of(resumed), part


def test_fine_tuning_starts_from_the_frozen_phase_and_counts_on(finished):
    folder = finished[0] / "models/demo_iemocap/li/mmt/1+1/seed0/fold1"
    frozen, tuned = (json.loads((folder / phase / "outcome.json").read_text()) for phase in PHASES)
    recipes = [outcome["history"]["identity"]["recipe"] for outcome in (frozen, tuned)]
    assert [r["learning_rate"] for r in recipes] == [1e-3, 1e-5]
    assert {r["weight_decay"] for r in recipes} == {1e-3} and [r["patience"] for r in recipes] == [5, 10]
    history = frozen["history"]
    assert [r["keep"] for r in recipes] == ["last", "last"]
    assert recipes[1]["best_before"] == history["best"] == min(e["valid_loss"] for e in history["log"])
    assert recipes[1]["epochs_since_best"] == history["epochs_since_best"]
    # One epoch at 1e-5 moves the logits a little from where the frozen phase left them, and does move them.
    before, after = (np.array(logits_of(outcome)) for outcome in (frozen, tuned))
    assert 1e-7 < np.abs(before - after).max() < 0.1 * np.abs(before).max()


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_epoch_that_is_kept_is_named_and_tested(tmp_path, keep):
    """At a rate that soon does harm, the last epoch is not the best; the tested weights' loss counts."""
    prepare(tmp_path)
    words = ["--SYSTEMS=BERT+FC", f"--KEEP_EPOCH={keep}", "--FROZEN_LEARNING_RATE=0.3", "--FROZEN_EPOCHS=3"]
    words += ["--FINETUNED_PARTS=none"]
    folder = run_04(tmp_path, *words)
    assert all(f"{keep} epoch kept" in row["protocol"] for row in read_table(folder, "table_1").values())
    outcomes = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("frozen/outcome.json"))]
    losses = [[entry["valid_loss"] for entry in outcome["history"]["log"]] for outcome in outcomes]
    assert len(losses) == 3 and any(min(found) < found[-1] for found in losses)
    run, study = SimpleNamespace(log=lambda record: None), study_of(tmp_path, *words)
    scores = train_all(study, ["BERT+FC"], [(1, 1)], [FROZEN], 10, 1, run)  # as trained above
    expected = [found[-1] if keep == "last" else min(found) for found in losses]
    assert scores.losses["BERT+FC", FROZEN, (1, 1)].tolist() == [expected]
    names = {path.name for path in folder.iterdir()}
    assert not {"li_table_2.md", "li_table_tests.md", "li_table_context.md"} & names


def test_another_frozen_phase_asks_for_fine_tuning_again(tmp_path):
    """With KEEP_EPOCH=best nothing else in fine-tuning's recipe tells that it started from other weights."""
    prepare(tmp_path)
    tuned = []
    for rate in ("1e-3", "5e-3", "1e-3"):
        study = study_of(tmp_path, "--SYSTEMS=BERT+FC", "--KEEP_EPOCH=best", f"--FROZEN_LEARNING_RATE={rate}")
        tuned.append(logits_of(train_system(study, "BERT+FC", (1, 1), PHASES, 0, 0)[TUNED]))
    assert tuned[0] == tuned[2] and not np.allclose(tuned[0], tuned[1], atol=1e-3)


# ---- Protocol ------------------------------------------------------------------------------


def test_nothing_learns_from_the_labels_of_the_test_session(tmp_path):
    """Other labels of the tested session change no logit of its fold; those of a training session do."""
    manifest, logits = prepare(tmp_path), []
    for changed in ("", "Ses01", "Ses02"):
        turns = [replace(turn) for turn in manifest.turns]
        for turn in turns:
            if turn.session == changed and turn.label:
                turn.label = CLASSES[(CLASSES.index(turn.label) + 1) % 4]
        write_manifest(Manifest(manifest.corpus, manifest.folder, CLASSES, turns))
        study = study_of(tmp_path, "--SYSTEMS=MMT", "--CONTEXT_BEFORE=4", "--CONTEXT_AFTER=4")
        assert {turn.session for turn in study.folds[0][0].test} == {"Ses01"}
        outcome = train_system(study, "MMT", (4, 4), PHASES, 0, 0)
        logits.append(np.array([logits_of(outcome[phase]) for phase in PHASES]))
    assert np.array_equal(logits[0], logits[1]) and not np.allclose(logits[0], logits[2], atol=1e-3)


def test_every_seed_draws_its_own_development_speakers_and_tests_the_same_turns(tmp_path):
    prepare(tmp_path)
    study = study_of(tmp_path, "--SYSTEMS=BERT+FC", "--SEEDS=0,1,2,3")
    tests = {tuple(t.utterance_id for f in folds for t in f.test) for folds in study.folds.values()}
    drawn = {tuple(f.valid[0].speaker for f in folds) for folds in study.folds.values()}
    assert len(tests) == 1 and len(drawn) > 1
    for folds in study.folds.values():
        assert all(len({t.speaker for t in f.valid}) == 1 for f in folds)


def test_the_best_of_some_systems_is_chosen_by_development_loss_alone():
    """One seed, two folds; one system is right wherever the other is wrong, which must not matter."""
    turns = [Turn(f"u{i}", "d", i, f"s{i}", "", 0, 1, label="xy"[i % 2]) for i in range(4)]
    folds = [Fold("fold1", turns[2:], [], turns[:2]), Fold("fold2", turns[:2], [], turns[2:])]
    scores = Scores(Manifest("toy", None, ("x", "y"), turns), folds, [0], 10, None)
    for k in range(2):
        scores.add("right", 0, k, [0, 1], (0.9, 0.2)[k])
        scores.add("wrong", 0, k, [1, 0], (0.5, 0.4)[k])
    found, wins = scores.best(["right", "wrong"])
    assert found.tolist() == [[1, 0, 0, 1]] and wins == {"right": 1, "wrong": 1}
    scores.check()
    with pytest.raises(AssertionError, match="in two test sets"):
        scores.add("right", 0, 1, [0, 1], 0.1)


def test_context_stays_within_a_part(tmp_path):
    """Where training and test speakers talk to each other, a test turn does not know the other's words."""
    manifest = prepare(tmp_path)
    for turn in manifest.turns:
        turn.session = ""
    write_manifest(manifest)
    study = study_of(tmp_path, "--SYSTEMS=BERT+FC", "--CONTEXT_BEFORE=4", "--CONTEXT_AFTER=4")
    speaker, n_none, n_cut = {turn.utterance_id: turn.speaker for turn in manifest.turns}, 0, 0
    for fold in study.folds[0]:
        test_speakers = {turn.speaker for turn in fold.test}
        for part in ("train", "valid", "test"):
            _, windows, cut = study.windows(fold, part, (4, 4))
            inside = {speaker[u] in test_speakers for window in windows for u in window if u}
            assert inside == {part == "test"}
            n_none, n_cut = (
                n_none + sum(u is None for w in windows for u in w),
                n_cut + cut * (part == "test"),
            )
    scores = Scores(manifest, study.folds[0], [0], 10, study)
    assert n_none > n_cut > 0 and f"{n_cut:,} neighbours lie across the border" in note_of(scores)


def test_an_official_split_and_a_corpus_without_audio(tmp_path, capsys):
    """As MELD: the same actors in all parts, dialogues whole in one; the paper has no figures of it."""
    manifest = write_corpus(tmp_path, audio=False, corpus="meld")
    for turn in manifest.turns:
        turn.session, turn.extra = (
            "",
            {"split": {"Ses01": "train", "Ses02": "dev", "Ses03": "test"}[turn.session]},
        )
    write_manifest(manifest)
    write_checkpoints(tmp_path / "checkpoints" / "meld")
    words = ("--CORPUS=meld", "--SYSTEMS=WavLM+FC,BERT+FC,MMT", "--FINETUNED_PARTS=none")
    folder = run_04(tmp_path, *words)
    shown = capsys.readouterr().out
    assert "WavLM+FC: needs audio; left out" in shown and "MMT: needs audio and text; left out" in shown
    table = read_table(folder, "table_1")
    assert {row for row, _ in table} == {"5 BERT+FC frozen, T"} and {column for _, column in table} == {
        "WA",
        "UA",
        "weighted F1",
    }
    assert all(row["paper"] == "" and row["n"] == "14" for row in table.values())
    assert "official train/dev/test split" in table["5 BERT+FC frozen, T", "WA"]["protocol"]
    assert not {"li_table_styles.md", "li_table_2.md"} & {path.name for path in folder.iterdir()}


def test_recomputed_states_train_nearly_the_same(finished, tmp_path):
    """HIDDEN_STATES=anew against what the finished run kept: float32 instead of float16 on the way."""
    prepare(tmp_path)
    study = study_of(tmp_path, "--SYSTEMS=MMT", "--HIDDEN_STATES=anew")
    found = logits_of(train_system(study, "MMT", (1, 1), [FROZEN], 0, 0)[FROZEN])
    folder = "models/demo_iemocap/li/mmt/1+1/seed0/fold1/frozen"
    kept = logits_of(json.loads((finished[0] / folder / "outcome.json").read_text()))
    assert np.allclose(found, kept, atol=2e-2) and found != kept
    saved = load_file(best_weights(tmp_path / folder))
    assert "classifier.0.weight" in saved
    assert not [name for name in saved if ".backbone." in name and name.endswith("weight")]


def test_all_parts_can_be_fine_tuned(tmp_path):
    prepare(tmp_path)
    folder = run_04(tmp_path, "--SYSTEMS=BERT+FC", "--FINETUNED_PARTS=all", "--FROZEN_EPOCHS=1")
    assert all("all weights fine-tuned" in row["protocol"] for row in read_table(folder, "table_1").values())
    study, place = study_of(tmp_path, "--SYSTEMS=BERT+FC", "--FINETUNED_PARTS=all"), "bert_fc/1+1/seed0/fold1"
    model = training.start_network(study, "BERT+FC", (1, 1), 0, TUNED, study.folder / place)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("backbone.encoder.layer.1" in name for name in learning)


def test_states_are_standardised_by_training_turns_alone(tmp_path):
    """Their steps get mean 0 and sd 1, and fine-tuning keeps the numbers of the frozen phase."""
    prepare(tmp_path)
    study = study_of(tmp_path, "--SYSTEMS=BERT+FC", "--STANDARDISE=true")
    train_system(study, "BERT+FC", (1, 1), [FROZEN], 0, 0)
    states, train = study.utterances["text"].states, study.folds[0][0].train
    steps = np.concatenate([states.rows(turn.utterance_id, "states") for turn in train]).astype(float)
    folder = study.folder / "bert_fc/1+1/seed0/fold1"
    network = training.start_network(study, "BERT+FC", (1, 1), 0, TUNED, folder)
    projector = network.extractors["text"].projector
    np.testing.assert_allclose(projector.mean, steps.mean(0), atol=1e-5)
    np.testing.assert_allclose(projector.sd, steps.std(0), rtol=1e-4)
    study = study_of(tmp_path, "--SYSTEMS=BERT+FC", "--STANDARDISE=true", "--HIDDEN_STATES=anew")
    with pytest.raises(UserError, match="STANDARDISE: .*set HIDDEN_STATES=disk"):
        train_system(study, "BERT+FC", (1, 1), [FROZEN], 0, 0)


# ---- Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (("--SYSTEMS=WavLM+RNN",), r"SYSTEMS=WavLM\+RNN: choose from WavLM\+FC"),
        (("--KEEP_EPOCH=first",), "KEEP_EPOCH=first: choose from last, best"),
        (("--CONTEXT_SIZES=4",), "CONTEXT_SIZES=4: write utterances before and after"),
        (("--CONTEXT_SIZES=4-4",), "CONTEXT_SIZES=4-4: write"),
        (("--CONTEXT_SYSTEMS=BERT",), "CONTEXT_SYSTEMS=BERT: choose from"),
        (("--FINETUNED_PARTS=top",), "FINETUNED_PARTS=top: choose from bottom, all, none"),
        (("--LAYER_MERGE=sum",), "LAYER_MERGE=sum: choose from mean, concatenate"),
        (("--HEADS=3",), "HEADS=3: does not divide WIDTH=16"),
        (("--CONTEXT_AFTER=-1",), "CONTEXT_AFTER=-1: give a number from 0"),
        (("--FINETUNE_PATIENCE=10",), "FINETUNE_PATIENCE=10: must lie below STOP_PATIENCE=10"),
        (("--FROZEN_EPOCHS=0",), "FROZEN_EPOCHS=0: give a number above 0"),
        (("--CONTEXT_EPOCHS=-1",), "CONTEXT_EPOCHS=-1: give a number"),
        (("--AUDIO_MODEL=facebook/absent",), "absent: no checkpoint there"),
    ],
)
def test_bad_values_end_with_one_line(finished, tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        run_04(finished[0], "--SYSTEMS=MMT", f"--RESULTS_ROOT={tmp_path}", *words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("li_*"))


def test_the_default_models_are_the_papers():
    script = load_script("04_fuse_classify.py")
    assert (script.AUDIO_MODEL, script.TEXT_MODEL) == ("microsoft/wavlm-large", "bert-base-uncased")
    assert {name.split("/")[-1] for name in (script.AUDIO_MODEL, script.TEXT_MODEL)} == set(MODELS.values())
    assert (script.WIDTH, script.SE_REDUCTION, script.CONTEXT_BEFORE, script.CONTEXT_AFTER) == (16, 0, 4, 4)
    assert (script.FROZEN_LEARNING_RATE, script.FINETUNE_LEARNING_RATE, script.WEIGHT_DECAY) == (
        1e-3,
        1e-5,
        1e-3,
    )
    assert (script.DROPOUT, script.BATCH_SIZE, script.AUDIO_MAX_S, script.TEXT_MAX_TOKENS) == (
        0.5,
        32,
        5.0,
        512,
    )
    assert (script.FINETUNE_PATIENCE, script.STOP_PATIENCE, script.KEEP_EPOCH) == (5, 10, "last")
    assert script.FINETUNED_PARTS == "bottom" and script.SYSTEMS == () and script.HEADS == 1
