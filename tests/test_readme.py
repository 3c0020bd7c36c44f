"""What the README and the pages say is what is there."""

import csv
import io
import re
import shlex
import subprocess
import tarfile

import pytest
from conftest import ROOT

from common import pages
from common.files import UserError
from common.settings import overrides

README = (ROOT / "README.md").read_text(encoding="utf-8")
BY_HAND = [*sorted((ROOT / "results").glob("*_notes.md")), *(ROOT / "results").glob("exercises.md")]
NOTES = """# Sadok et al. 2023
scripts: 05_x.py common/y.py
figure: 84.1 %
best: 05_x/ravdess/sadok_table_1.csv | fine-tuned | accuracy
apart: half of the blocks

What it is about.

## demo_toy
Of the demo.

## Failures
None known.
"""
TABLE = """row,column,unit,paper,mean,sd,ci_low,ci_high,n,n_runs,corpus,protocol,command
fine-tuned,accuracy,%,84.1,80.1,1.5,70,85,9,3,ravdess,p,c
frozen,accuracy,%,,50,,,,9,1,ravdess,p,c
"""


@pytest.fixture
def project(tmp_path):
    """A project with one paper, a genuine and a demo corpus, and stale pages."""
    files = {
        "README.md": "x\n<!-- status -->\nold\n<!-- end -->\ny\n",
        "05_x.py": '"""X.\n\nDEVIATIONS of "sadok"\n1. Its <own>.\n\nDEVIATIONS of "ok"\n1. Another.\n"""\n',
        "common/y.py": '"""About.\n\nDEVIATIONS\n1. Of a module.\n"""\n',
        "results/sadok_notes.md": NOTES,
        "results/05_x/demo_toy/sadok_table_1.md": "**Demo.**\n",
        "results/05_x/demo_toy/sadok_fig_2_x.png": "",
        "results/05_x/ravdess/sadok_table_1.md": "**Genuine.**\n",
        "results/05_x/ravdess/other_table_1.md": "**Of another paper.**\n",
        "results/05_x/ravdess/sadok_table_1.csv": TABLE,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_page_is_made_of_notes_tables_and_deviations(project, capsys):
    pages.main(project)
    text = (project / "results" / "sadok.md").read_text()
    marks = ["What it is about.", "## Failures", "| [1](05_x/ravdess/sadok_table_1.md) |", "## ravdess"]
    marks += ["**Genuine.**", "## demo_toy\n\nOf the demo.\n\n**Demo.**", "(05_x/demo_toy/sadok_fig_2_x.png)"]
    marks += ["### 05_x.py\n\n1. Its \\<own>.", "### common/y.py\n\n1. Of a module."]
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places) and "nother" not in text
    assert "| 84.1 | 80.10 ± 1.50 [70.00, 85.00] % | -4.00 | ravdess |" in text and "frozen" not in text
    readme = (project / "README.md").read_text()
    assert readme.startswith("x\n<!-- status -->\n| paper |") and readme.endswith("<!-- end -->\ny\n")
    row = "| [Sadok et al. 2023](results/sadok.md) | `05` | 84.1 % | 80.1 ± 1.5 % | ravdess | half of"
    assert row in readme
    capsys.readouterr()
    pages.main(project)
    assert capsys.readouterr().out == ""  # nothing changes a second time


@pytest.mark.parametrize(
    "old, new, words",
    [("apart:", "part:", "lacks a line `apart"), ("| fine-", "| coarse-", "no cell coarse-")],
)
def test_faulty_notes_are_one_line(project, old, new, words):
    (project / "results" / "sadok_notes.md").write_text(NOTES.replace(old, new))
    with pytest.raises(UserError, match=words):
        pages.make_pages(project)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The project as committed: whoever ran `make demo` here has newer results than the pages show."""
    folder = tmp_path_factory.mktemp("committed")
    done = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True)
    if done.returncode:
        pytest.skip("not in a git commit")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_pages_and_readme_equal_what_the_maker_makes(committed):
    made = pages.make_pages(committed)
    assert [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text] == []


def gains(path):
    """The cells of a table of gains, {row: cell}."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["column"].startswith("gain in ")]
    return {line["row"]: line for line in lines if "sessions" not in line["column"]}


def test_context_is_worth_something_in_the_demo(committed):
    """Its dialogues have emotional inertia: four utterances on both sides gain more than 0 (interval)."""
    table = gains(committed / "results/04_fuse_classify/demo_iemocap/li_table_context.csv")
    both = table["BERT+FC: 4 before, 4 after"]
    assert float(both["ci_low"]) > 0 and float(both["mean"]) >= 3


def test_masked_pretraining_is_worth_something_in_the_demo(committed):
    """Read from rows of tokens, frozen: the interval of the gain lies above 0, as that over CLS does."""
    table = gains(committed / "results/05_pretrain_vqmae/demo_ravdess_speech/sadok_table_tests.csv")
    for row in ("... rows of tokens, frozen", "rows of tokens against CLS"):
        assert float(table[row]["ci_low"]) > 0 and float(table[row]["mean"]) >= 5


def test_named_files_exist():
    named = re.findall(r"\((results/[^)]+)\)", README) + re.findall(
        r"`((?:common|tests)/[\w/]+\.py)`", README
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_commands_name_scripts_and_constants_that_exist():
    texts = [README, *(path.read_text(encoding="utf-8") for path in BY_HAND)]
    texts = [text.replace("\\\n", "") for text in texts]  # commands of several lines
    found = {pair for text in texts for pair in re.findall(r"python (0\d_\w+\.py)([^\n`#&|<]*)", text)}
    assert len(found) >= 8
    for script, options in sorted(found):
        overrides((ROOT / script).read_text(encoding="utf-8"), options.split())


def test_commands_beside_tables_are_still_understood(committed):
    found = set()
    for path in (committed / "results").glob("0*/*/*.md"):
        found |= set(re.findall(r"Made by `python (0\d_\w+\.py) ?([^`]*)`", path.read_text(encoding="utf-8")))
    assert len(found) >= 30
    for script, options in sorted(found):
        overrides((ROOT / script).read_text(encoding="utf-8"), shlex.split(options))


def test_no_script_is_left_out_and_no_placeholder_left_in():
    assert all(f"`{path.name}`" in README for path in ROOT.glob("0*.py"))
    assert not re.search(r"[A-Z]+_(WORDS|MINUTES)\b", README)
