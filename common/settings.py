"""Constants at the top of a script, made settable on the command line.

They are read from the source, so that `--help` and refusals come before torch is imported:

    if __name__ == "__main__":
        settings.parse(__file__)          # --help, unknown names and bad values end here
    ...
    if __name__ == "__main__":
        settings.run(main, globals())     # sets the constants, then runs main

`--NAME=value` overrides one constant and takes the type of its value in the source (tuples are
comma-separated). A constant that is a dict of overrides is a preset: `--demo` applies DEMO; what the
command line overrides wins over it.
"""

import ast
import difflib
import os
import re
import signal
import sys
import textwrap
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from common.files import REMEDIES, UserError

TINY = 5e-324  # the smallest number above 0
LIMITS = {  # of numbers, by name: lowest, highest; the first that fits holds
    r".*SEEDS?": (0, 2**32 - 1),
    r"(.*_)?(SHARE|PROBABILITY|DROPOUT|SMOOTHING|TOLERANCE|BETAS|HELD_OUT|DROP_RATE)|RATIOS?": (0, 1),
    r"WEIGHT_DECAY|GAMMA_.*|WORKERS|.*WARMUP_EPOCHS|CONTEXT_(BEFORE|AFTER)|VIDEO_CRF": (0, 1e6),
    r"MIN_SCORE": (-1e6, 0),
    r".*": (TINY, 1e6),  # and 0 where the comment says what it means: "0 = off"
}
CHOICES = {
    "FINETUNE_CROPS": ("first", "random"),
    "LOSS": ("asymmetric", "cross_entropy"),
    "PRECISION": ("auto", "no", "bf16", "fp16"),
    "SELECT_ON": ("validation", "test"),
    "TRACKER": ("", "tensorboard", "wandb"),
    "VALIDATE_ON": ("group", "speaker"),
}


@dataclass
class Constant:
    name: str
    value: object  # as written in the source
    comment: str  # beside the value, and indented on the lines below it
    block: str  # title of the last line "# ---- title ----" above it


def show(value):
    """A value as it stands on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@cache
def read_constants(source):
    """All top-level `NAME = literal` in upper case and in order, as ({name: Constant}, {name: preset})."""
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not ast.unparse(node.targets[0]).isupper():
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue  # derived from others: not a setting
        above, below = lines[: node.lineno], lines[node.end_lineno :]
        more = next((i for i, line in enumerate(below) if not re.match(r"\s+#", line)), len(below))
        comments = (line.partition(" # ")[2] for line in lines[node.lineno - 1 : node.end_lineno + more])
        block = next((line.strip("# -") for line in reversed(above) if line.startswith("# ----")), "")
        name = node.targets[0].id
        found[name] = Constant(name, value, " ".join(" ".join(comments).split()), block)
    dicts = {name for name, c in found.items() if isinstance(c.value, dict)}
    presets = {n: found[n] for n in dicts if found[n].value and set(found[n].value) <= set(found)}
    return {name: c for name, c in found.items() if name not in dicts}, presets


def changed(source, values, argv=()):
    """The constants of `values` that are not as in a script's source, or in the preset that `argv` names.

    Returns {name: the block where it stands}.
    """
    plain, presets = read_constants(source)
    usual = {name: c.value for name, c in plain.items()}
    for name, preset in presets.items():
        usual |= preset.value if f"--{name.lower()}" in argv else {}
    return {name: c.block for name, c in plain.items() if values.get(name, usual[name]) != usual[name]}


def convert(text, like, name):
    """Turn a command-line text into the type of `like`; UserError says what was expected."""
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, tuple):
            item = like[0] if like else 0 if name.endswith("SEEDS") else ""
            return tuple(convert(part.strip(), item, name) for part in text.split(",") if part.strip())
        return type(like)(text)
    except (KeyError, ValueError) as error:
        kind = "true or false" if isinstance(like, bool) else f"a value such as {like!r}"
        raise UserError(f"--{name}={text}: expected {kind}") from error


def check(constant, value):
    """UserError where a value is nonsense for a constant, by LIMITS, CHOICES and its comment.

    A comment allows 0, "" or () by saying what it means, such as "0 = off".
    """
    name, items = constant.name, value if isinstance(value, tuple) else (value,)
    numbers = [item for item in items if type(item) in (int, float)]
    low, high = next(limits for pattern, limits in LIMITS.items() if re.fullmatch(pattern, name))
    empty = {"": '""', (): "()", 0: "0"}
    meant = {nothing for nothing in empty if f"{empty[nothing]} =" in constant.comment} | {constant.value}
    span = f"{'above 0' if low == TINY else f'from {low:,.0f}'} up to {high:,.0f}"
    faults = {
        "must not be empty": value in {"", ()} - meant,
        "one is given twice": len(set(items)) < len(items) and ("SEEDS" in name or not numbers),
        f"give a number {span}": [n for n in numbers if not low <= n <= high and n not in meant],
    }
    for fault in (fault for fault, is_wrong in faults.items() if is_wrong):
        raise UserError(f"{name}={show(value)}: {fault}")
    if name in CHOICES:
        check_choices({name: value}, CHOICES)


def check_choices(values, choices):
    """UserError where one of `values`, or an item of it, is none of its choices {name: choices}."""
    for name, value in values.items():
        for item in value if isinstance(value, tuple) else (value,):
            if name in choices and item not in choices[name]:
                raise UserError(f"{name}={item}: choose from {', '.join(choices[name])}")


def refuse(*faults):
    """UserError of the first fault (is_wrong, what to change) that is one."""
    for is_wrong, told in faults:
        if is_wrong:
            raise UserError(told)


def overrides(source, argv):
    """The constants that `argv` changes, as name -> value; UserError for an unknown name or a bad value."""
    plain, presets = read_constants(source)
    given = sorted({word for word in argv if word.removeprefix("--").upper() in presets})
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: give one of them")
    found = dict(presets[given[0][2:].upper()].value) if given else {}
    for word in (word for word in argv if word not in given):
        name, is_set, text = word.removeprefix("--").partition("=")
        if name not in plain:
            names = {name: name for name in plain} | {name: name.lower() for name in presets}
            near = names[difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.0)[0]]
            raise UserError(f"{word}: no such constant; did you mean --{near}? (--help lists them all)")
        if not is_set:
            raise UserError(f"--{name}: write --{name}=value")
        found[name] = convert(text, plain[name].value, name)
    for name, value in found.items():
        check(plain[name], value)
    return found


def help_text(source):
    """The script's docstring, presets, and constants by block."""
    plain, presets = read_constants(source)
    wrap = partial(textwrap.fill, width=110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines = [ast.get_docstring(ast.parse(source)), "", "options: --NAME=value, or a preset of several:"]
    for name, c in presets.items():
        sets = " ".join(f"--{key}={show(value)}" for key, value in c.value.items())
        lines += [f"  --{name.lower()}", wrap(f"{c.comment}. Sets {sets}")]
    for block in dict.fromkeys(c.block for c in plain.values()):
        lines += ["", f"{block}:"]
        for c in (c for c in plain.values() if c.block == block):
            lines += [f"  --{c.name}={show(c.value)}", wrap(c.comment)]
    return "\n".join(lines)


def parse(script):
    """Answer `--help` and refuse a bad command line, without importing what the script imports."""
    source = Path(script).read_text(encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # no letter that a terminal lacks ends a run
    os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:replace"  # of worker processes
    try:
        if "--help" in sys.argv:
            signal.signal(getattr(signal, "SIGPIPE", signal.SIGTERM), signal.SIG_DFL)  # `--help | head`
            sys.exit(print(help_text(source)))
        overrides(source, sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")


def apply(module, argv):
    """Set a script's constants (a dict of its globals) from a command line; keep the values as SETTINGS."""
    source = Path(module["__file__"]).read_text(encoding="utf-8")
    module.update(overrides(source, argv))
    module["SETTINGS"] = {name: module[name] for name in read_constants(source)[0]}  # kept with the results
    return module["SETTINGS"]


def run(main, module, argv=None):
    """Apply the command line and run `main`; a UserError or Ctrl-C ends with one line and a code not 0."""
    try:
        apply(module, sys.argv[1:] if argv is None else argv)
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to resume from the last saved state")
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        sys.exit(f"error: {error.filename}: {REMEDIES[error.errno]}")
