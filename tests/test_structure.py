"""The rules of the house: what may import what, how long a script may be, and ruff."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

APART = ("common.corpora", "common.demo")
FILES = [*ROOT.glob("0*.py"), *(ROOT / "common").rglob("*.py")]
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
SCRIPTS = [name for name in MODULES if name[0].isdigit()]


def folder(module):
    """The folder of common/ that a module lies in, "common" for the shared ones, "" for a script."""
    parts = module.split(".")
    inner = len(parts) > 2 or module in MODULES and MODULES[module].name == "__init__.py"
    return "" if parts[0] != "common" else ".".join(parts[:2]) if inner else "common"


PAPERS = {folder(name) for name in MODULES} - {"", "common", *APART}


def imports(name):
    """The modules of common/ that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {target for target in found if target in MODULES and target not in ("common", name)}


def offenders(may_import):
    """Imports "a -> b" that are not allowed; may_import(folder of a, folder of b)."""
    pairs = [(name, target) for name in MODULES for target in sorted(imports(name))]
    return [f"{a} -> {b}" for a, b in pairs if not may_import(folder(a), folder(b))]


def test_a_papers_folder_imports_no_other_papers_folder():
    assert len(PAPERS) == 5
    assert offenders(lambda a, b: not (a in PAPERS and b in PAPERS and a != b)) == []


def test_shared_modules_import_shared_modules_only():
    assert offenders(lambda a, b: a != "common" or b == "common") == []


def test_corpora_and_demo_import_no_paper():
    assert offenders(lambda a, b: not (a in APART and b in PAPERS)) == []
    assert offenders(lambda a, b: not (a == "common.corpora" and b == "common.demo")) == []


def test_scripts_import_no_script():
    loaders = ("import_module", "spec_from_file_location", "run_path", "__import__")
    assert [(name, word) for name in SCRIPTS for word in loaders if word in MODULES[name].read_text()] == []


def private_uses(tree):
    """Names with a leading underscore that a module takes from another one of common/."""
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("common"):
            for alias in node.names:
                aliases.add(alias.asname or alias.name)
                if alias.name.startswith("_"):
                    yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                yield f"{node.value.id}.{node.attr}"


def test_no_private_name_is_used_across_modules():
    assert {name: found for name, tree in TREES.items() if (found := [*private_uses(tree)])} == {}


def test_a_papers_folder_has_at_most_five_files():
    counts = {paper: sum(folder(name) == paper and name != paper for name in MODULES) for paper in PAPERS}
    assert {paper: n for paper, n in counts.items() if n > 5} == {}


def n_lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_scripts_are_short():
    assert {name: n_lines(MODULES[name]) for name in SCRIPTS if n_lines(MODULES[name]) > 650} == {}


def test_the_readme_is_short():
    assert n_lines(ROOT / "README.md") <= 200


@pytest.mark.parametrize("words", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(words):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
