"""Rows to compare with: TF-IDF words and openSMILE's functionals under 04's folds."""

import sys

import numpy as np
import pytest
from conftest import load_script
from test_babaali_fusion import CLASSES, make_corpus, make_store, make_stores, read_table, run_04

from common import splits
from common.babaali.baselines import WORDS, baseline_vectors
from common.files import UserError
from common.manifest import write_manifest
from common.media import write_wav


def test_words_are_learnt_from_the_given_turns_alone(tmp_path):
    manifest = make_corpus(tmp_path)
    for i, turn in enumerate(manifest.turns):
        turn.text = "oh no !" if i < 40 else "fine unseen"
    fitted = baseline_vectors(WORDS, manifest, tmp_path, range(40))
    assert fitted.shape == (80, 5)  # oh, no, !, and two pairs; nothing of the other turns
    assert not fitted[40:].nnz


def test_a_feature_folder_is_scaled_by_the_given_turns_and_its_width(tmp_path):
    manifest = make_corpus(tmp_path)
    features = np.random.default_rng(0).normal(3, 2, (80, 4)).astype(np.float32)
    features[:, 0] *= 1e9  # openSMILE's functionals differ as much: no column is noise beside another
    make_store(tmp_path / "mine", manifest, {"features": features})
    x = baseline_vectors("mine", manifest, tmp_path, range(40))
    assert np.allclose(x[:40].mean(0), 0, atol=1e-5) and np.allclose(x[:40].std(0), 1 / 2, atol=1e-5)
    assert not np.allclose(x[40:].mean(0), 0, atol=1e-3)


def test_04_has_rows_and_paired_tests_for_baselines(tmp_path):
    manifest = make_corpus(tmp_path)
    for i, turn in enumerate(manifest.turns):  # words that give the label away in nine of ten turns
        turn.text = f"word{CLASSES.index(turn.label) if i % 10 else i % 4} again"
    write_manifest(manifest)
    folds = splits.make_folds(manifest, 5, "group", "validation", 0)
    make_stores(tmp_path, manifest, folds)
    folder = run_04(
        tmp_path, "--BASELINES=words", "--OUT_OF_FOLD=false", "--MODALITIES=audio", "--FUSIONS=sum"
    )
    accuracy = float(read_table(folder, "subsets")["words, linear SVM", "early WA"]["mean"])
    assert accuracy > 85
    assert ("words, linear SVM", "gain of the final model") in read_table(folder, "tests")


def test_no_text_is_said(tmp_path):
    manifest = make_corpus(tmp_path)
    for turn in manifest.turns:
        turn.text = ""
    with pytest.raises(UserError, match="BASELINES=words: demo_iemocap has no text"):
        baseline_vectors(WORDS, manifest, tmp_path, range(40))


@pytest.fixture
def extract_opensmile():
    return load_script("03_extract_features.py").extract_opensmile


def make_sounds(root):
    manifest = make_corpus(root, per_speaker=1)
    rng = np.random.default_rng(0)
    for turn in manifest.turns:
        turn.audio = f"{turn.utterance_id}.wav"
        write_wav(manifest.folder / turn.audio, 0.1 * rng.standard_normal(16000).astype(np.float32))
    return manifest


def test_opensmile_is_optional_and_its_absence_is_said(tmp_path, monkeypatch, extract_opensmile):
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(UserError, match="pip install opensmile"):
        extract_opensmile(make_sounds(tmp_path), "eGeMAPSv02", tmp_path, 0)


def test_opensmile_functionals_of_every_turn(tmp_path, extract_opensmile):
    opensmile = pytest.importorskip("opensmile", reason="optional package opensmile is not installed")
    manifest = make_sounds(tmp_path)
    with pytest.raises(UserError, match="OPENSMILE=egemaps: choose from"):
        extract_opensmile(manifest, "egemaps", tmp_path, 0)
    store = extract_opensmile(manifest, "eGeMAPSv02", tmp_path, 0)
    smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
    own = smile.process_file(str(manifest.folder / manifest.turns[3].audio)).to_numpy()
    assert np.allclose(store.rows(manifest.turns[3].utterance_id, "features"), own, atol=1e-3)
