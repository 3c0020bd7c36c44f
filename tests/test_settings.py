"""Constants at the top of a script, overridden on the command line."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from common import settings
from common.files import UserError

SOURCE = '''"""What it does."""
# fmt: off
# ---- Training ----
RATE = 2e-5               # per step, Sec. 3.2
EPOCHS = (20, 20)         # one for each model,
                          # in their order
NAMES = ("text", "audio")
DROPOUT = 0.1
SEEDS = (0, 1)
SELECT_ON = "validation"
LIMIT = 4                 # of files, 0 = none, 10 at most

# ---- Machine ----
ON = True                 # a switch
NOTHING = ()              # empty
DERIVED = RATE * 2
PAPER = {"BERT": 1.19}
DEMO = {"RATE": 1e-3, "EPOCHS": (3, 3)}     # small and quick
SCRATCH = {"RATE": 1e-2}
'''


def test_reads_constants_with_their_comments():
    found, presets = settings.read_constants(SOURCE)
    assert found["RATE"].value == 2e-5 and found["RATE"].comment == "per step, Sec. 3.2"
    assert found["EPOCHS"].comment == "one for each model, in their order"
    assert not {"PAPER", "DEMO"} & set(found) and set(presets) == {"DEMO", "SCRATCH"}
    blocks = {name: c.block for name, c in found.items()}
    assert blocks["RATE"] == blocks["NAMES"] == "Training" and blocks["ON"] == "Machine"


def test_changed_constants_are_told_with_their_block():
    assert settings.changed(SOURCE, {"RATE": 2e-5, "NAMES": (), "ON": False, "X": 1}) == {
        "NAMES": "Training",
        "ON": "Machine",
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
        (["--NOTHING=", "--LIMIT=0", "--DROPOUT=0"], {"NOTHING": (), "LIMIT": 0, "DROPOUT": 0.0}),
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
        (["--EPOCHS", "3"], ["write --EPOCHS=value"]),
        (["--demo", "--scratch"], ["--demo and --scratch"]),
        (["--EPOCHS=3,0"], ["EPOCHS=3,0: give a number above 0 up to 1,000,000"]),
        (["--RATE=-1"], ["RATE=-1", "above 0"]),
        (["--RATE=nan"], ["RATE=nan"]),
        (["--RATE=1e30"], ["RATE=1e+30"]),
        (["--NAMES="], ["NAMES=: must not be empty"]),
        (["--NAMES=text,text"], ["NAMES=text,text", "twice"]),
        (["--DROPOUT=1.5"], ["DROPOUT=1.5", "from 0 up to 1"]),
        (["--SEEDS=1,1"], ["SEEDS=1,1", "twice"]),
        (["--SEEDS=-1"], ["SEEDS=-1"]),
        (["--SEEDS="], ["SEEDS=: must not be empty"]),
        (["--SELECT_ON=tests"], ["SELECT_ON=tests", "validation, test"]),
        (["stray"], ["stray"]),
    ],
)
def test_refusals_name_the_remedy(argv, words):
    with pytest.raises(UserError) as error:
        settings.overrides(SOURCE, argv)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def script_module(folder):
    """The globals of a script made of SOURCE."""
    (folder / "script.py").write_text(SOURCE)
    module = {"__file__": str(folder / "script.py")}
    exec(SOURCE, module)
    return module


def test_run_applies_and_records(tmp_path):
    module = script_module(tmp_path)
    settings.run(lambda: None, module, ["--demo", "--ON=False"])
    assert module["RATE"] == 1e-3 and module["ON"] is False
    assert module["SETTINGS"] == {name: module[name] for name in settings.read_constants(SOURCE)[0]}


def test_user_errors_end_in_one_line(tmp_path):
    def main():
        raise UserError("file.csv: is wrong; mend it")

    with pytest.raises(SystemExit) as stop:
        settings.run(main, script_module(tmp_path), [])
    assert stop.value.code == "error: file.csv: is wrong; mend it"


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("pipe", ["", "| head -1"])
def test_help_reaches_any_terminal(pipe):
    """Printed in ASCII, and into a pipe that closes early (more than it holds)."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    line = f"{sys.executable} {ROOT}/04_fuse_classify.py --help --help {pipe}"
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("Fuse") and ("?" in done.stdout) == (pipe == "")


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("0*.py")))
def test_help_is_quick_and_complete(script):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / script), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and " torch\n" not in done.stderr, "help must not import torch"
    plain, presets = settings.read_constants((ROOT / script).read_text(encoding="utf-8"))
    assert {"DATA_ROOT", "RESULTS_ROOT", "CORPUS", "SEEDS"} <= set(plain) and "DEMO" in presets
    assert all(f"--{name}=" in done.stdout for name in plain)
    assert [c.name for c in plain.values() if not (c.comment and c.block)] == []
    assert time.monotonic() - started < 20
    wrong = subprocess.run([sys.executable, str(ROOT / script), "--SEED=1"], capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.strip().count("\n") == 0 and "--SEEDS" in wrong.stderr
