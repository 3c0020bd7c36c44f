"""What tests of the synthetic corpora share. `sizes` is {name: (function that writes the corpus, its arguments)}."""

from pathlib import Path


def write_all(root, sizes):
    """Each corpus in <root>/<name>, of seed 3; returns root."""
    for name, (write, arguments) in sizes.items():
        write(root / name, 3, **arguments, workers=2)
    return root


def planned(monkeypatch, module, sized, seed, **changes):
    """What a corpus of a module, one of the values of `sizes`, would consist of, without speaking it."""
    write, arguments = sized
    found = []
    monkeypatch.setattr(module, "write_corpus", lambda root, recordings, *more: found.extend(recordings))
    write(Path("unused"), seed, **{**arguments, **changes}, workers=1)
    return found


def file_bytes(root):
    """{path: content} of all files, save the name of the folder itself where they mention it."""
    return {
        str(path.relative_to(root)): path.read_bytes().replace(str(root).encode(), b"")
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
