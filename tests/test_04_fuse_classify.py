"""Which paper 04 runs; each paper's own code has its own tests (test_babaali_fusion, test_li_*)."""

import dialogues
import pytest
from conftest import load_script
from safetensors.torch import load_file, save_file

from common import results, settings
from common.files import UserError
from common.manifest import Manifest, Turn, write_manifest


def load_04(root, *words):
    script = load_script("04_fuse_classify.py")
    settings.apply(vars(script), [f"--DATA_ROOT={root}", "--CORPUS=toy", *words])
    return script


@pytest.mark.parametrize(
    "words, named",
    [
        (("--PAPERS=babali",), "PAPERS=babali: choose from babaali, li"),
        (("--PAPERS=li,khare,babaali,sadok",), "PAPERS=khare: choose from babaali, li"),
        (("--PAPERS=",), "PAPERS=: must not be empty"),
    ],
)
def test_unknown_papers_are_refused_before_anything_runs(tmp_path, words, named):
    with pytest.raises(UserError) as caught:
        load_04(tmp_path, *words).main()
    assert str(caught.value) == named and not list(tmp_path.iterdir())


def test_a_constant_of_the_other_paper_stops_nobody(tmp_path):
    """Both are refused for want of a corpus, not for what they do not read."""
    for words in (
        ("--PAPERS=babaali", "--HEADS=7", "--SYSTEMS=none"),
        ("--PAPERS=li", "--FUSIONS=nothing"),
    ):
        with pytest.raises(UserError, match="the corpus is not prepared"):
            load_04(tmp_path, *words).main()


def test_papers_run_in_the_order_given_with_the_manifest(tmp_path, monkeypatch, capsys):
    turns = [Turn("u1", "d", 0, "s", "", 0, 1, label="sad")]
    write_manifest(Manifest("toy", tmp_path / "prepared" / "toy", ("sad",), turns))
    script, calls = load_04(tmp_path, "--PAPERS=li,babaali"), []
    monkeypatch.setattr(script, "make_study", lambda manifest: manifest)
    for paper in ("babaali", "li"):
        monkeypatch.setattr(
            script, f"run_{paper}", lambda m, p=paper: calls.append((p, m.turns[0].utterance_id))
        )
    script.main()
    assert calls == [("li", "u1"), ("babaali", "u1")]
    assert capsys.readouterr().out.splitlines() == ["---- li ----", "---- babaali ----"]


def test_nan_weights_of_the_second_paper_are_refused_before_the_first_begins(tmp_path, monkeypatch):
    manifest = dialogues.write_corpus(tmp_path, audio=False, corpus="toy")
    path = dialogues.write_checkpoints(tmp_path / "c") / "bert-base-uncased" / "model.safetensors"
    weights = load_file(path)
    weights["encoder.layer.0.output.dense.weight"].fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    script, begun = load_04(tmp_path, f"--CHECKPOINTS={tmp_path}/c"), []
    monkeypatch.setattr(script, "run_babaali", begun.append)
    with pytest.raises(UserError, match="bert-base-uncased: NaN or infinity in its weights .encoder.layer.0"):
        script.main()
    assert manifest.turns and not begun


def test_a_changed_constant_of_one_paper_does_not_hide_the_numbers_of_the_other(tmp_path):
    """Nor one of the machine those of either."""
    release = Manifest("toy", tmp_path, ("sad",), [], complete=True)
    for words, hidden in ((["--WIDTH=8"], "li"), (["--NN_HIDDEN=9"], "babaali"), (["--JOBS=2"], "")):
        script = load_04(tmp_path, *words)
        for paper in ("babaali", "li"):
            why = results.incomparable(script.SOURCE, script.settings_of(paper), release)
            assert bool(why) == (paper == hidden), (words, paper, why)
