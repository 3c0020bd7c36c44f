"""What the README says is what is there."""

import csv
import re
import subprocess

import pytest
from conftest import ROOT

from common.results import stale_tables

README = (ROOT / "README.md").read_text(encoding="utf-8")


def committed(path):
    """A file as committed: whoever ran `make demo` here has newer results than the README shows."""
    done = subprocess.run(["git", "-C", str(ROOT), "show", f"HEAD:{path}"], capture_output=True)
    if done.returncode:
        pytest.skip(f"not in a git commit: {path}")
    return done.stdout


def test_tables_equal_those_in_results(tmp_path):
    readme = committed("README.md")
    (tmp_path / "README.md").write_bytes(readme)
    names = re.findall(r"<!-- table: (\S+) -->", readme.decode())
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(committed(name))
    assert len(names) >= 8 and stale_tables(tmp_path / "README.md") == []


def test_context_is_worth_something_in_the_demo():
    """The demo's dialogues have emotional inertia: with four utterances on both sides the interval of the gain is above 0."""
    table = committed("results/04_fuse_classify/demo_iemocap/li_table_context.csv").decode().splitlines()
    gains = {line["row"]: line for line in csv.DictReader(table) if line["column"] == "gain in WA"}
    both = gains["BERT+FC frozen: 4 before, 4 after"]
    assert float(both["ci_low"]) > 0 and float(both["mean"]) >= 3


def test_masked_pretraining_is_worth_something_in_the_demo():
    """Read from the mean of all tokens: above 0 with its interval where the encoder is frozen, above 0 where it is not."""
    table = (
        committed("results/05_pretrain_vqmae/demo_ravdess_speech/sadok_table_tests.csv").decode().splitlines()
    )
    gains = {line["row"]: line for line in csv.DictReader(table) if line["column"] == "gain in accuracy"}
    assert float(gains["pretrained against not, mean of tokens, frozen"]["ci_low"]) > 0
    assert float(gains["pretrained against not, mean of tokens"]["mean"]) >= 3


def test_named_files_exist():
    named = set(re.findall(r"\((results/[^)]+)\)", README)) | set(
        re.findall(r"`((?:common|tests)/[\w/]+\.py)`", README)
    )
    assert len(named) >= 8 and [name for name in named if not (ROOT / name).exists()] == []


def test_commands_name_scripts_and_constants_that_exist():
    from common.settings import overrides

    found = re.findall(r"python (0\d_\w+\.py)([^\n`#&|<]*)", README)
    assert len(found) >= 8
    for script, options in found:
        overrides((ROOT / script).read_text(encoding="utf-8"), options.split())


def test_no_script_is_left_out_and_no_placeholder_left_in():
    assert all(f"`{path.name}`" in README for path in ROOT.glob("0*.py"))
    assert not re.search(r"[A-Z]+_(WORDS|MINUTES)\b", README)
