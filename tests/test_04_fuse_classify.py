"""Which paper 04 runs; each paper's own code has its own tests (test_babaali_fusion, test_li_fusion)."""

import pytest
from conftest import load_script

from common import settings
from common.babaali import fusion as babaali_fusion
from common.errors import UserError
from common.manifest import Manifest, Turn, write_manifest


def run_04(root, *words):
    script = load_script("04_fuse_classify.py")
    settings.apply(vars(script), [f"--DATA_ROOT={root}", "--CORPUS=toy", *words])
    script.main()


@pytest.mark.parametrize(
    "words, named",
    [
        (("--PAPERS=babali",), "PAPERS=babali: choose from babaali, li"),
        (("--PAPERS=li,khare,babaali,sadok",), "PAPERS=khare,sadok: choose from babaali, li"),
        (("--PAPERS=",), "PAPERS=: choose from babaali, li"),
    ],
)
def test_unknown_papers_are_refused_before_anything_runs(tmp_path, words, named):
    with pytest.raises(UserError) as caught:
        run_04(tmp_path, *words)
    assert str(caught.value) == named and not list(tmp_path.iterdir())


def test_a_paper_gets_the_constants_of_the_command_line_and_the_manifest(tmp_path, monkeypatch, capsys):
    write_manifest(
        Manifest(
            "toy", tmp_path / "prepared" / "toy", ("sad",), [Turn("u1", "d", 0, "s", "", 0, 1, label="sad")]
        )
    )
    calls = []
    monkeypatch.setattr(babaali_fusion, "run", lambda c, manifest: calls.append((c, manifest)))
    run_04(tmp_path, "--PAPERS=babaali", "--SVM_C=2,4", "--SEEDS=7")
    ((c, manifest),) = calls
    assert (c.SVM_C, c.SEEDS, c.NN_BATCH, c.CORPUS) == ((2.0, 4.0), (7,), 64, "toy")
    assert [turn.utterance_id for turn in manifest.turns] == ["u1"]
    assert "babaali" in capsys.readouterr().out.splitlines()[0]
