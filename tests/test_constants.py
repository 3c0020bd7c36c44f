"""Nonsense for every constant of every script, on its demo: refused in one line that names it, or accepted.

What is accepted passes the command line (common/settings.py) and the script's own early checks.
"""

import pytest
import torch
from conftest import ROOT, load_script

from common import settings
from common.files import UserError

SCRIPTS = sorted(path.name for path in ROOT.glob("0*.py"))
# (script, constant, value) that end otherwise, each with its reason; to be mended, never added to in silence
KNOWN = {}


def nonsense(value):
    """Texts that a constant of this value's type is tried with."""
    if isinstance(value, bool):
        return ("", "perhaps", "2")
    if isinstance(value, tuple):
        item = value[0] if value else ""
        return ("", *nonsense(item), ",".join(map(str, (*value, *value[-1:]))))
    if isinstance(value, (int, float)):
        return ("", "0", "-1", "nan", "inf", "1e30", "999999", "0.5", "x")
    return ("", f"{value}x", "0", "-1", "a/b:c", value.upper())


def check(module):
    """What a script checks before anything slow."""
    if hasattr(module, "plan"):  # 05 checks the networks that its tables need
        planned, _ = module.plan()
        module.check_constants({row for rows in planned.values() for row in rows.values()})
    else:
        (getattr(module, "check_constants", None) or module.check_settings)()


def end(module, name, text):
    """How a value ends: "" where it is accepted, the message of a refusal, or what was raised instead."""
    try:
        settings.apply(vars(module), ["--demo", f"--{name}={text}"])
        check(module)
    except UserError as error:
        return "" if name in str(error) and "\n" not in str(error) else f"does not name it: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_nonsense_is_refused_by_name_or_works(script, monkeypatch, tmp_path, one_thread):
    monkeypatch.chdir(tmp_path)  # nothing is there to be found by chance
    for name in ("kaiming_uniform_", "xavier_uniform_", "uniform_"):  # networks without memory: half the time
        monkeypatch.setattr(torch.nn.init, name, lambda weight, *more, **how: weight)
    module, plain = load_script(script), settings.read_constants((ROOT / script).read_text("utf-8"))[0]
    before, wrong = dict(vars(module)), {}
    for name, constant in plain.items():
        for text in nonsense(constant.value):
            vars(module).update(before)
            if ended := end(module, name, text):
                wrong[script[:2], name, text] = ended
    assert {key: what for key, what in wrong.items() if key not in KNOWN} == {}
    assert [key for key in KNOWN if key[0] == script[:2] and key not in wrong] == []


@pytest.mark.parametrize(
    "word",
    "02 STAGES=fold, 02 MODALITIES=txt, 02 TEXT_POOLING=max, 02 AUDIO_LAYER=first, 03 MODALITIES=texts, "
    "04 CLASSIFIERS=SVN, 05 STRATEGY=rows, 06 BACKBONES=avid, 07 METHODS=nse".split(", "),
)
def test_misspelt_choices_are_refused(word):
    number, (name, _, text) = word[:2], word[3:].partition("=")
    script = next(script for script in SCRIPTS if script.startswith(number))
    module = load_script(script)
    settings.apply(vars(module), [f"--{name}={text}"])
    with pytest.raises(UserError, match=f"{name}={text}: choose"):
        check(module)


@pytest.mark.parametrize(
    "word", ["02 CHOSEN_MODELS=", "04 CONTEXT_SYSTEMS=", "05 BEYOND_PAPER=", "07 GLOVE="]
)
def test_what_means_something_is_not_refused(word):
    script = next(script for script in SCRIPTS if script.startswith(word[:2]))
    assert settings.overrides((ROOT / script).read_text("utf-8"), [f"--{word[3:]}"])[word[3:-1]] in ((), "")
