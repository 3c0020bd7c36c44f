"""Constants at the top of a script, made settable on the command line.

A script's constants are read from its source, so `--help` answers before torch is imported:

    from common import settings
    if __name__ == "__main__":
        settings.parse(__file__)          # --help, unknown names and bad values end here
    ...
    if __name__ == "__main__":
        settings.run(main, globals())     # sets the constants, then runs main

`--NAME=value` overrides one constant and takes the type of its value in the source (tuples are
comma-separated). A constant that is a dict of overrides is a preset: `--demo` applies DEMO.
An override on the command line wins over a preset, whatever their order.
"""

import argparse
import ast
import difflib
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError

APPLIED = "SETTINGS"  # the global that holds what a run used: name -> value, written beside its results


@dataclass
class Constant:
    name: str
    value: object  # as written in the source
    comment: str
    heading: str = ""  # the comment lines right above it


def read_constants(source):
    """All top-level `NAME = literal` assignments in upper case, with their comments, in order."""
    lines = source.splitlines()
    found = []
    for node in ast.parse(source).body:
        if not (
            isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)
        ):
            continue
        name = node.targets[0].id
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue  # derived from others: not a setting
        found.append(
            Constant(
                name,
                value,
                _comment(lines, node.end_lineno, node.end_col_offset),
                _heading(lines, node.lineno),
            )
        )
    return found


def _heading(lines, line):
    """The unindented comment lines right above a constant: the heading of the block that it begins."""
    parts = []
    while line > 1 and lines[line - 2].startswith("# "):
        line -= 1
        parts.insert(0, lines[line - 1].strip("#- "))
    return " ".join(parts)


def _comment(lines, end_line, end_column):
    """The comment after a value and the indented comment lines that continue it."""
    rest = lines[end_line - 1].encode()[end_column:].decode().strip()
    if not rest.startswith("#"):
        return ""
    parts = [rest.lstrip("# ")]
    for line in lines[end_line:]:
        if not re.match(r"\s{4,}#", line):
            break
        parts.append(line.strip().lstrip("# "))
    return " ".join(parts)


def split_presets(constants):
    """Separate presets (dicts keyed by the names of other constants) from plain constants."""
    names = {c.name for c in constants}
    presets = {
        c.name: c for c in constants if isinstance(c.value, dict) and c.value and set(c.value) <= names
    }
    plain = {c.name: c for c in constants if c.name not in presets and not isinstance(c.value, dict)}
    return plain, presets


def convert(text, like, name):
    """Turn a command-line text into the type of `like`; UserError says what was expected."""
    try:
        if isinstance(like, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                text.lower()
            ]
        if isinstance(like, (tuple, list)):
            item = like[0] if like else ""
            return tuple(convert(part.strip(), item, name) for part in text.split(",") if part.strip())
        if like is None:
            return None if text.lower() == "none" else ast.literal_eval(text)
        return type(like)(text)
    except (KeyError, ValueError, SyntaxError) as error:
        kind = "true or false" if isinstance(like, bool) else f"a value such as {like!r}"
        raise UserError(f"--{name}={text}: expected {kind}") from error


def overrides(source, argv):
    """The constants that `argv` changes, as name -> value.

    Raises UserError for an unknown name (with the nearest real one), a bad value or a stray word.
    """
    plain, presets = split_presets(read_constants(source))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in plain:
        parser.add_argument(f"--{name}")
    for name in presets:
        parser.add_argument(f"--{name.lower()}", action="store_true")
    parser.error = _refuse
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(_unknown(unknown[0], [*plain, *(name.lower() for name in presets)]))
    changed = {}
    for name, preset in presets.items():
        if getattr(given, name.lower()):
            changed.update(preset.value)
    for name, constant in plain.items():
        text = getattr(given, name)
        if text is not None:
            changed[name] = convert(text, constant.value, name)
    return changed


def _refuse(message):
    raise UserError(f"command line: {message}; write --NAME=value")


def _unknown(word, names):
    name = word.lstrip("-").split("=")[0]
    by_upper = {real.upper(): real for real in names}
    near = difflib.get_close_matches(name.upper(), by_upper, n=1, cutoff=0.0)
    return f"{word}: no such constant; did you mean --{by_upper[near[0]]}? (--help lists them all)"


def help_text(script, source):
    """The script's docstring and every constant with its default and comment."""
    plain, presets = split_presets(read_constants(source))
    lines = [
        (ast.get_docstring(ast.parse(source)) or "").strip(),
        "",
        f"usage: python {script} [--preset] [--NAME=value ...]",
        "",
    ]
    for name, preset in presets.items():
        changes = ", ".join(f"{key}={value!r}" for key, value in preset.value.items())
        lines += [f"  --{name.lower()}", *_indented(f"{preset.comment}. Sets {changes}".lstrip(". "))]
    for constant in plain.values():
        lines += ["", constant.heading] if constant.heading else []
        lines += [f"  --{constant.name}={_shown(constant.value)}", *_indented(constant.comment)]
    return "\n".join(lines)


def _indented(text):
    return textwrap.wrap(text, 100, initial_indent="      ", subsequent_indent="      ")


def _shown(value):
    return ",".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


def parse(script, argv=None):
    """Answer `--help` and refuse a bad command line, without importing what the script imports."""
    argv = sys.argv[1:] if argv is None else argv
    source = Path(script).read_text(encoding="utf-8")
    if "--help" in argv or "-h" in argv:
        print(help_text(Path(script).name, source))
        sys.exit(0)
    try:
        overrides(source, argv)
    except UserError as error:
        sys.exit(f"error: {error}")


def apply(module, argv):
    """Set a script's constants (a dict of its globals) from a command line; keep the values as SETTINGS."""
    source = Path(module["__file__"]).read_text(encoding="utf-8")
    module.update(overrides(source, argv))
    plain, _ = split_presets(read_constants(source))
    module[APPLIED] = {name: module[name] for name in plain}
    return module[APPLIED]


def run(main, module, argv=None):
    """Apply the command line and run `main`; a UserError or Ctrl-C ends with one line and a code that is not 0."""
    try:
        apply(module, sys.argv[1:] if argv is None else argv)
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to go on from the last saved state")
    except OSError as error:
        from common.files import REMEDIES

        if error.errno not in REMEDIES:
            raise
        sys.exit(f"error: {error.filename}: {REMEDIES[error.errno]}")
