"""One page per paper, results/<paper>.md, and the README's table of where the papers stand: `make readme`.

A page is made of the tables in results/, the DEVIATIONS in the docstrings of scripts, and the hand-written
results/<paper>_notes.md, which begins with a title and some facts:

    # Sadok et al. 2023
    scripts: 01_prepare_data.py 05_pretrain_vqmae.py (whose DEVIATIONS are quoted; also modules of common/)
    figure: 84.1 % on RAVDESS-Speech (what the paper reports)
    best: 05_pretrain_vqmae/ravdess_speech/sadok_table_1.csv | VQ-MAE-S-4, fine-tuned | accuracy
    apart: 4 of 12 blocks, 12 of 24 actors (what keeps the two from being comparable)

`best` names the cell of our best run on a genuine corpus, "none" where there is none. Then come sections:
what stands under a heading that names a corpus is put above the tables of that corpus, the rest first.
"""

import ast
import re
import sys
from collections import namedtuple
from pathlib import Path

from common.files import UserError, read_csv, write_text
from common.results import markdown

ROOT = Path(__file__).resolve().parent.parent
FACTS = ("scripts", "figure", "best", "apart")
LONGEST_TABLE = 2500  # letters of a table that stands on a page
Notes = namedtuple("Notes", "title facts sections")
STATUS = re.compile(r"(<!-- status -->\n).*?(<!-- end -->)", re.DOTALL)


def read_notes(path):
    """The Notes of a <paper>_notes.md: title, facts {name: text}, sections {heading: text}, "" = the first.

    UserError where a fact is missing.
    """
    head, *parts = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    title, *lines = head.strip().split("\n")
    facts = dict(re.findall(rf"^({'|'.join(FACTS)}): *(.+)$", head, re.MULTILINE))
    if absent := [name for name in FACTS if name not in facts]:
        raise UserError(f"{path}: lacks a line `{absent[0]}: ...` below its title")
    intro = "\n".join(line for line in lines if line.split(":")[0] not in FACTS)
    pairs = (part.partition("\n") for part in parts)
    sections = {"": intro.strip()} | {heading.strip(): text.strip() for heading, _, text in pairs}
    return Notes(title.strip("# "), facts, sections)


def make_pages(root):
    """The text of each page and of README.md, {path: text}; root holds scripts, README.md and results/."""
    results = root / "results"
    paths = sorted(results.glob("*_notes.md"))
    notes = {path.stem.removesuffix("_notes"): read_notes(path) for path in paths}
    made = {results / f"{paper}.md": page(root, paper, note) for paper, note in notes.items()}
    readme, table = root / "README.md", status(results, notes)
    made[readme] = STATUS.sub(lambda m: m[1] + table + m[2], readme.read_text(encoding="utf-8"))
    return made


def status(results, notes):
    """The README's table, a row per paper: its figure, our best genuine run, the corpus, what differs."""
    rows = [["paper", "script", "paper's figure", "our best genuine run", "on", "what keeps them apart"]]
    for paper, note in notes.items():
        scripts = " ".join(f"`{number}`" for number in re.findall(r"\b0\d", note.facts["scripts"]))
        ours, corpus = best(results, note.facts["best"])
        link = f"[{note.title.partition(':')[0]}](results/{paper}.md)"
        rows.append([link, scripts, note.facts["figure"], ours, corpus, note.facts["apart"]])
    return markdown(rows) + "\n"


def best(results, where):
    """(figure, corpus), as texts, of a cell "<csv> | <row> | <column>"; UserError where it is absent."""
    if where == "none":
        return "–", "–"
    path, row, column = (part.strip() for part in where.split("|"))
    found = [line for line in read_csv(results / path) if (line["row"], line["column"]) == (row, column)]
    if not found:
        raise UserError(f"{path}: no cell {row} | {column}; correct `best:` in the notes of its paper")
    mean, sd, unit = float(found[0]["mean"]), found[0]["sd"], found[0]["unit"]
    return f"{mean:.1f}" + (f" ± {float(sd):.1f}" if sd else "") + f" {unit}", found[0]["corpus"]


def page(root, paper, note):
    """The page of a paper: notes, its numbers beside ours, tables and figures of each corpus, deviations."""
    results = root / "results"
    tables = sorted(results.glob(f"*/*/{paper}_table_*.md"))
    corpora = sorted({path.parent.name for path in tables}, key=lambda name: (name.startswith("demo"), name))
    parts = [f"# {note.title}", f"Made by `make readme` from the tables here and [notes]({paper}_notes.md)."]
    parts += [note.sections[""]]
    parts += [f"## {head}\n\n{text}" for head, text in note.sections.items() if head and head not in corpora]
    parts += ["## The paper's numbers and ours", comparison(results, paper)]
    for corpus in corpora:
        parts += [f"## {corpus}", note.sections.get(corpus, "")]
        parts += [inline(path, results) for path in tables if path.parent.name == corpus]
        figures = sorted(results.glob(f"*/{corpus}/{paper}_fig_*.png"))
        links = [f"[{p.stem.removeprefix(f'{paper}_fig_')}]({p.relative_to(results)})" for p in figures]
        parts += ["Figures:\n" + ",\n".join(links)] if links else []
    parts += ["## Where we deviate from the paper", "From the docstrings of the scripts."]
    for name in re.findall(r"\S+\.py", note.facts["scripts"]):
        text = deviations(root / name, paper)
        parts += [f"### {name}", text] if text else []
    return "\n\n".join(filter(None, parts)) + "\n"


def inline(path, results):
    """A table as it stands on a page: as a whole, or where it is long its title as a link."""
    text = path.read_text(encoding="utf-8").strip()
    if len(text) <= LONGEST_TABLE:
        return text
    title = text.partition("\n")[0].split("**")[1].rstrip(".")
    return f"[{title}]({path.relative_to(results)})"


def comparison(results, paper):
    """Each of the paper's numbers beside ours; tables hold it only where the two can be compared."""
    rows = [["table", "row", "column", "paper", "ours mean ± sd [95 % interval]", "gap", "corpus"]]
    for path in sorted(results.glob(f"*/*/{paper}_table_*.csv")):
        for line in read_csv(path):
            if line["paper"] and line["mean"]:
                name = f"[{path.stem.split('_table_')[1]}]({path.relative_to(results).with_suffix('.md')})"
                gap = f"{float(line['mean']) - float(line['paper']):+.2f}"
                cells = line["row"], line["column"], line["paper"], shown(line), gap, line["corpus"]
                rows.append([name, *cells])
    if len(rows) == 1:
        return "No run so far can be held against them: a complete genuine corpus and the paper's constants."
    return markdown(rows)


def shown(line):
    """A line of a table's csv as text: "75.42 ± 1.31 [72.10, 78.40] %"."""
    text = f"{float(line['mean']):.2f}" + (f" ± {float(line['sd']):.2f}" if line["sd"] else "")
    if line["ci_low"]:
        text += f" [{float(line['ci_low']):.2f}, {float(line['ci_high']):.2f}]"
    return f"{text} {line['unit']}".strip()


def deviations(script, paper):
    """What a docstring says below the line DEVIATIONS; a line `DEVIATIONS of "li"` is that paper's alone."""
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    found = [part for part in text.split("\n\n") if part.startswith("DEVIATIONS")]
    pairs = [part.replace("<", r"\<").partition("\n")[::2] for part in found]
    return "\n\n".join(text for head, text in pairs if '"' not in head or f'"{paper}"' in head)


def main(root):
    """Write the pages and the README that have changed."""
    for path, text in make_pages(root).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
            print(f"wrote {path.relative_to(root)}")


if __name__ == "__main__":
    try:
        main(ROOT)
    except UserError as error:
        sys.exit(f"error: {error}")
