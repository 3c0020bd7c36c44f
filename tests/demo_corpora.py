"""What tests of the synthetic corpora share; a table of sizes is {corpus: arguments of its write_demo_*}."""

from pathlib import Path


def write_all(module, root, sizes, workers=0):
    """Each corpus of a module in <root>/<corpus>, of seed 3; returns root."""
    for corpus, arguments in sizes.items():
        getattr(module, f"write_{corpus}")(root / corpus, 3, **arguments, workers=workers)
    return root


def planned(monkeypatch, module, corpus, seed, **sizes):
    """What a corpus would consist of, without speaking it."""
    found = []
    monkeypatch.setattr(module, "write_corpus", lambda root, items, *more: found.extend(items))
    getattr(module, f"write_{corpus}")(Path("unused"), seed, **sizes, workers=0)
    return found


def file_bytes(root):
    """{path: content} of all files, save the name of the folder itself where they mention it."""
    return {
        str(path.relative_to(root)): path.read_bytes().replace(str(root).encode(), b"")
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
