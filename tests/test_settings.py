"""Constants at the top of a script, overridden on the command line."""

import subprocess
import sys
import time

import pytest
from conftest import ROOT

from common import settings
from common.errors import UserError

SOURCE = '''"""What it does."""
# fmt: off
# ---- Training ----
RATE = 2e-5               # per step, Sec. 3.2
EPOCHS = (20, 20)         # one for each model,
                          # in their order
NAMES = ("text", "audio")

# Machine, or
# another one
ON = True                 # a switch
NOTHING = ()              # empty
DERIVED = RATE * 2
PAPER = {"BERT": 1.19}
DEMO = {"RATE": 1e-3, "EPOCHS": (3, 3)}     # small and quick
'''


def test_reads_constants_with_their_comments():
    found = {c.name: c for c in settings.read_constants(SOURCE)}
    assert found["RATE"].value == 2e-5 and found["RATE"].comment == "per step, Sec. 3.2"
    assert found["EPOCHS"].comment == "one for each model, in their order"
    assert "DERIVED" not in found
    blocks = {name: c.block for name, c in found.items()}
    assert blocks["RATE"] == blocks["NAMES"] == "Training" and blocks["ON"] == "Machine, or another one"


def test_changed_constants_are_told_with_their_block():
    assert settings.changed(SOURCE, {"RATE": 2e-5, "NAMES": (), "ON": False, "X": 1}) == {
        "NAMES": "Training",
        "ON": "Machine, or another one",
    }


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], {}),
        (["--demo"], {"RATE": 1e-3, "EPOCHS": (3, 3)}),
        (["--RATE=0.5", "--demo"], {"RATE": 0.5, "EPOCHS": (3, 3)}),
        (["--EPOCHS=1,2,3"], {"EPOCHS": (1, 2, 3)}),
        (["--NAMES=text", "--ON=false"], {"NAMES": ("text",), "ON": False}),
        (["--NOTHING=a, b"], {"NOTHING": ("a", "b")}),
        (["--NAMES="], {"NAMES": ()}),
    ],
)
def test_overrides_are_typed(argv, expected):
    assert settings.overrides(SOURCE, argv) == expected


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--EPOHCS=3"], ["--EPOHCS=3", "--EPOCHS"]),
        (["--dmo"], ["--demo"]),
        (["--RATE=fast"], ["--RATE=fast", "2e-05"]),
        (["--ON=maybe"], ["true or false"]),
        (["--PAPER=1"], ["no such constant"]),
        (["stray"], ["stray"]),
    ],
)
def test_refusals_name_the_remedy(argv, words):
    with pytest.raises(UserError) as error:
        settings.overrides(SOURCE, argv)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_run_applies_and_records(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SOURCE)
    module = {
        "__file__": str(script),
        "RATE": 2e-5,
        "EPOCHS": (20, 20),
        "NAMES": (),
        "ON": True,
        "NOTHING": (),
        "DEMO": {},
        "PAPER": {},
    }
    settings.run(lambda: None, module, ["--demo", "--ON=no"])
    assert module["RATE"] == 1e-3 and module["ON"] is False
    assert module["SETTINGS"] == {"RATE": 1e-3, "EPOCHS": (3, 3), "NAMES": (), "ON": False, "NOTHING": ()}


def test_user_errors_end_in_one_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SOURCE)

    def main():
        raise UserError("file.csv: is wrong; mend it")

    with pytest.raises(SystemExit) as stop:
        settings.run(
            main, {"__file__": str(script), "RATE": 1, "EPOCHS": 1, "NAMES": 1, "ON": 1, "NOTHING": 1}, []
        )
    assert stop.value.code == "error: file.csv: is wrong; mend it"


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("0*.py")))
def test_help_is_quick_and_complete(script):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / script), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and " torch\n" not in done.stderr, "help must not import torch"
    plain, presets = settings.split_presets(settings.read_constants((ROOT / script).read_text()))
    assert {"DATA_ROOT", "RESULTS_ROOT", "CORPUS", "SEEDS"} <= set(plain) and "DEMO" in presets
    assert all(f"--{name} " in done.stdout for name in plain)
    assert [c.name for c in plain.values() if not c.comment] == []
    assert time.monotonic() - started < 20
    wrong = subprocess.run([sys.executable, str(ROOT / script), "--SEED=1"], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.strip().count("\n") == 0 and "--SEEDS" in wrong.stderr
