"""Shared fixtures: scripts loaded by path, real recordings where they are at hand."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")          # tests never wait for a network
os.environ.setdefault("MPLBACKEND", "Agg")


def load_script(name):
    """Import a numbered script by its path, with its default constants."""
    spec = importlib.util.spec_from_file_location("script_" + name[:2], ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shared_data(name):
    """The folder of real recordings `../shared/data/<name>`; skips the test, saying so, where it is absent."""
    folder = ROOT.parent / "shared" / "data" / name
    if not folder.exists():
        pytest.skip(f"real recordings not at hand: ../shared/data/{name}")
    return folder
