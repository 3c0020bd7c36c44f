"""Shared fixtures: scripts loaded by path, real recordings where they are at hand."""

import csv
import functools
import importlib.util
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never wait for a network
os.environ.setdefault("MPLBACKEND", "Agg")

from common import settings  # noqa: E402  common/ is found now
from common.files import UserError  # noqa: E402
from common.settings import overrides, read_constants  # noqa: E402


def load_script(name):
    """Import a numbered script by its path, with its default constants."""
    spec = importlib.util.spec_from_file_location("script_" + name[:2], ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(script, folder, *options):
    """The command that runs a numbered script's demo with data/ and results/ in a folder."""
    roots = [f"--DATA_ROOT={folder}/data", f"--RESULTS_ROOT={folder}/results"]
    jobs = [] if script[:2] in ("01", "03") else ["--JOBS=1"]  # every process would import torch
    return [
        sys.executable,
        str(ROOT / script),
        "--demo",
        *roots,
        *jobs,
        *with_run(script, "--demo", *options)[1:],
    ]


def with_run(script, *words):
    """The words with a RUN, so that results lie in a folder that is named by the corpus alone."""
    words = tuple(word for word in words if not word.startswith("--RUN="))
    try:
        source = (ROOT / script).read_text(encoding="utf-8")
        corpus = {"CORPUS": read_constants(source)[0]["CORPUS"].value, **overrides(source, words)}["CORPUS"]
    except UserError:
        return words  # the script will say so
    return words if script.startswith("01") else (*words, f"--RUN={Path(corpus).name.replace(':', '_')}")


def run(script, folder, *options, code=0):
    """Run it; returns what it printed, of a run that must fail (code) its errors."""
    done = subprocess.run(command(script, folder, *options), capture_output=True, text=True, cwd=folder)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr


CACHED = type(functools.cache(len))  # a function under functools.cache or lru_cache


def forget():
    """Clear what common/ has read and keeps: the next run may lie in another folder."""
    modules = [module for name, module in sys.modules.items() if name.startswith("common.")]
    for value in (value for module in modules for value in vars(module).values()):
        if isinstance(value, CACHED):
            value.cache_clear()


@contextmanager
def figures(drawn=False):
    """Figures are saved as empty files, or drawn, without the fonts that take half of the time in a PDF."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(matplotlib.rcParams, "pdf.fonttype", 3)
        if not drawn:
            patch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **how: Path(path).touch())
        yield


def run_here(folder, script, *words, drawn=False):
    """Run a script in this process, which has torch already; SystemExit where it would end with an error.

    drawn  whether figures are drawn, which takes a second each
    """
    forget()
    module, words = load_script(script), with_run(script, *words)
    with figures(drawn), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [script, *words])
        settings.run(module.main, vars(module), words)


def run_again(script, folder, *options, **how):
    """As `run`, but in this process, which saves the seconds of importing torch; returns what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        run_here(folder, script, *command(script, folder, *options)[2:], **how)
    return printed.getvalue()


# A process of its own without the seconds that importing takes: forked from one that has imported.
FRESH = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    auto = [f"transformers.models.auto.{name}_auto" for name in ("modeling", "image_processing")]
    FRESH.set_forkserver_preload(["accelerate", "torchaudio", "matplotlib.pyplot", "sklearn.svm", *auto])


def run_fresh(source, folder=ROOT):
    """Run Python source in a process of its own; returns what it printed. AssertionError where it fails."""
    with tempfile.TemporaryDirectory() as place:
        printed = Path(place) / "printed.txt"
        process = FRESH.Process(target=execute, args=(source, folder, printed))
        process.start()
        process.join()
        text = printed.read_text(encoding="utf-8")
    assert process.exitcode == 0, text[-3000:]
    return text


def execute(source, folder, printed):
    """What the process of `run_fresh` does; its output goes to a file."""
    os.chdir(folder)
    with open(printed, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "gpu")]
    exec(compile(source, "<test>", "exec"), {"__name__": "__main__"})


def prepare(folder, *options):
    """Run 01's demo with data/ and results/ in a folder."""
    script = "01_prepare_data.py"
    run_here(folder, script, *command(script, folder, "--WORKERS=1", "--WRITE_CHECKPOINTS=", *options)[2:])


def rows(path):
    """The lines of a CSV file as dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def linked(demo, folder, *parts):
    """A folder whose data has some parts of the demo's; what is written to others stays here."""
    (folder / "data").mkdir()
    for part in parts:
        (folder / "data" / part).symlink_to(demo / "data" / part)
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """For models so small that threads only wait for each other: two took 15 times as long on a busy CPU."""
    import torch  # slow to import, and not needed by every test

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shared_data(name):
    """The folder of real recordings `../shared/data/<name>`; skips the test where it is absent."""
    folder = ROOT.parent / "shared" / "data" / name
    if not folder.exists():
        pytest.skip(f"real recordings not at hand: ../shared/data/{name}")
    return folder
