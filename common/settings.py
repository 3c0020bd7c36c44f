"""Constants at the top of a script, made settable on the command line.

They are read from the source, so that `--help` answers before torch is imported:

    from common import settings
    if __name__ == "__main__":
        settings.parse(__file__)          # --help, unknown names and bad values end here
    ...
    if __name__ == "__main__":
        settings.run(main, globals())     # sets the constants, then runs main

`--NAME=value` overrides one constant and takes the type of its value in the source (tuples are
comma-separated). A constant that is a dict of overrides is a preset: `--demo` applies DEMO; what the
command line overrides wins over it.
"""

import argparse
import ast
import difflib
import io
import re
import sys
import tokenize
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.errors import UserError
from common.files import REMEDIES

NAME = "[A-Z][A-Z0-9_]*"
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass
class Constant:
    name: str
    value: object  # as written in the source
    comment: str  # beside the value, and indented on the lines below it
    block: str  # the unindented comment above the first constant of its block


def read_constants(source):
    """All top-level `NAME = literal` assignments in upper case, with their comments, in order."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}

    def text(numbers):
        lines = (comments[n].string.strip("#- ") for n in numbers if n in comments)
        return " ".join(line for line in lines if not line.startswith("fmt: "))

    found, block = [], ""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not re.fullmatch(NAME, ast.unparse(node.targets[0])):
            continue
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue  # derived from others: not a setting
        first, last = node.lineno, node.end_lineno
        while first - 1 in comments and comments[first - 1].line.startswith("#"):
            first -= 1
        while last + 1 in comments and comments[last + 1].line.startswith("    "):
            last += 1
        block = text(range(first, node.lineno)) or block
        found.append(Constant(node.targets[0].id, value, text(range(node.lineno, last + 1)), block))
    return found


def split_presets(constants):
    """Separate presets (dicts keyed by the names of other constants) from plain constants."""
    names = {c.name for c in constants}
    dicts = {c.name: c for c in constants if isinstance(c.value, dict)}
    presets = {name: c for name, c in dicts.items() if c.value and set(c.value) <= names}
    return {c.name: c for c in constants if c.name not in dicts}, presets


def changed(source, values):
    """The constants of `values` that differ from a script's source, {name: the block where they stand}."""
    plain, _ = split_presets(read_constants(source))
    return {name: c.block for name, c in plain.items() if values.get(name, c.value) != c.value}


def convert(text, like, name):
    """Turn a command-line text into the type of `like`; UserError says what was expected."""
    try:
        if isinstance(like, bool):
            return TRUTH[text.lower()]
        if isinstance(like, tuple):
            item = like[0] if like else ""
            return tuple(convert(part.strip(), item, name) for part in text.split(",") if part.strip())
        if like is None:
            return None if text.lower() == "none" else ast.literal_eval(text)
        return type(like)(text)
    except (KeyError, ValueError, SyntaxError) as error:
        kind = "true or false" if isinstance(like, bool) else f"a value such as {like!r}"
        raise UserError(f"--{name}={text}: expected {kind}") from error


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"command line: {message}; write --NAME=value")


def make_parser(source):
    """A parser that knows the constants of a script; what it parses holds those that were given."""
    plain, presets = split_presets(read_constants(source))
    parser = Parser(
        description=ast.get_docstring(ast.parse(source)),
        usage="%(prog)s [--preset] [--NAME=value ...]",
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=6, width=110),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, c in presets.items():
        sets = ", ".join(f"{key}={value!r}" for key, value in c.value.items())
        text = f"{c.comment}. Sets {sets}".lstrip(". ").replace("%", "%%")
        parser.add_argument(f"--{name.lower()}", dest=name, action="store_true", help=text)
    blocks = dict.fromkeys(c.block for c in plain.values())
    groups = {block: parser.add_argument_group(block) for block in blocks}
    for name, c in plain.items():
        shown = ",".join(map(str, c.value)) if isinstance(c.value, tuple) else str(c.value)
        read = partial(convert, like=c.value, name=name)
        groups[c.block].add_argument(f"--{name}", metavar=shown, type=read, help=c.comment.replace("%", "%%"))
    return parser, presets


def overrides(source, argv):
    """The constants that `argv` changes, as name -> value.

    Raises UserError for an unknown name (with the nearest real one), a bad value or a stray word.
    """
    parser, presets = make_parser(source)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        names = {c.name: c.name.lower() if c.name in presets else c.name for c in read_constants(source)}
        word = unknown[0].lstrip("-").split("=")[0].upper()
        near = names[difflib.get_close_matches(word, names, n=1, cutoff=0.0)[0]]
        raise UserError(f"{unknown[0]}: no such constant; did you mean --{near}? (--help lists them all)")
    found = {}
    for name, preset in presets.items():
        found |= preset.value if name in given else {}
    return found | {name: value for name, value in vars(given).items() if name not in presets}


def parse(script):
    """Answer `--help` and refuse a bad command line, without importing what the script imports."""
    try:
        overrides(Path(script).read_text(encoding="utf-8"), sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")


def apply(module, argv):
    """Set a script's constants (a dict of its globals) from a command line; keep the values as SETTINGS."""
    source = Path(module["__file__"]).read_text(encoding="utf-8")
    module.update(overrides(source, argv))
    plain, _ = split_presets(read_constants(source))
    module["SETTINGS"] = {name: module[name] for name in plain}  # written beside the results
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
