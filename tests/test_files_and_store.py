"""Files that are whole or absent, and stores that go on where they stopped."""

import errno
from dataclasses import replace

import numpy as np
import pytest

from common import files
from common.files import UserError
from common.manifest import Manifest, Turn, read_manifest, write_manifest
from common.store import Store, StoreWriter


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a" / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError):
        with files.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("number, word", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission")])
def test_refused_writes_name_a_remedy(tmp_path, monkeypatch, number, word):
    def refuse(source, target):
        raise OSError(number, "refused", str(target))

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(UserError, match=word):
        files.write_json(tmp_path / "x.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        files.write_text(tmp_path / "results" / "x.txt", "")


def test_hashes_depend_on_content_alone(tmp_path):
    assert (
        files.hash_of({"a": 1, "b": (2, 3)})
        == files.hash_of({"b": [2, 3], "a": 1})
        != files.hash_of({"a": 1})
    )
    for name, text in (("x", "1"), ("y", "1"), ("z", "2")):
        files.write_text(tmp_path / name, text)
    x, y, z = (files.file_hash(tmp_path / name) for name in "xyz")
    assert x == y != z and len(x) == 16


def test_manifest_round_trip(tmp_path):
    turns = [
        Turn(
            "d1_F1", "d1", 1, "F", "S1", 2.5, 4.0, 'He said, "no"\nand left', "", extra={"raw_label": "fru"}
        ),
        Turn(
            "d1_M0",
            "d1",
            0,
            "M",
            "S1",
            0.25,
            1.0,
            "Ja, schön",
            "sad",
            "audio/d1_M0.wav",
            extra={"raw_label": "sad"},
        ),
    ]
    folder = tmp_path / "prepared" / "toy"
    write_manifest(Manifest("toy", folder, ("happy", "sad"), turns))
    found = read_manifest(tmp_path, "toy")
    assert (
        found.turns == [turns[1], turns[0]]
        and found.classes == ("happy", "sad")
        and found.labelled == [turns[1]]
    )
    before = found.fingerprint()
    found.turns[0].label = "happy"
    write_manifest(found)
    assert read_manifest(tmp_path, "toy").fingerprint() != before
    assert not found.complete and read_manifest(tmp_path, "elsewhere/toy").turns == found.turns
    write_manifest(replace(found, complete=True, root=str(tmp_path / "a" / "toy")))
    again = read_manifest(tmp_path, f"{tmp_path}/a/toy")
    assert again.complete and again.turns == found.turns
    with pytest.raises(UserError, match="prepared from .*/a/toy, not .*/b/toy"):
        read_manifest(tmp_path, f"{tmp_path}/b/toy")
    with pytest.raises(UserError, match="01_prepare_data.py"):
        read_manifest(tmp_path, "absent")


def write(folder, meta, parts):
    writer = StoreWriter(folder, meta)
    for ids, rows, array in parts:
        todo = [i for i in ids if i not in writer.done]
        if todo:
            writer.add(ids, {"x": array, "y": 2 * array}, rows)
    return writer


PARTS = [
    (["a", "b"], [2, 1], np.arange(12, dtype=np.float16).reshape(3, 2, 2)),
    (["c"], [2], np.ones((2, 2, 2), np.float16)),
]


def test_store_rows_and_plain_numpy(tmp_path):
    store = write(tmp_path / "s", {"k": (1, 2)}, PARTS).finish()
    assert store.ids == ["a", "b", "c"] and store.length("a") == 2
    assert np.array_equal(store.rows("b", "x"), PARTS[0][2][2:]) and np.array_equal(
        store.rows("c", "y"), 2 * PARTS[1][2]
    )
    assert np.array_equal(np.load(tmp_path / "s" / "x.npy"), np.concatenate([p[2] for p in PARTS]))


def test_killed_writer_goes_on_with_the_same_bytes(tmp_path):
    whole = write(tmp_path / "whole", {"k": 1}, PARTS).finish()
    writer = write(tmp_path / "cut", {"k": 1}, PARTS[:1])
    # The kill came after the arrays of the next part were written and in the middle of its index line.
    for name in ("x", "y"):
        with open(tmp_path / "cut" / f"{name}.npy", "ab") as file:
            file.write(b"123456789")
    with open(tmp_path / "cut" / "index.csv", "a") as file:
        file.write("c,3")
    del writer
    with pytest.raises(UserError, match="unfinished"):
        Store(tmp_path / "cut")
    again = write(tmp_path / "cut", {"k": 1}, PARTS).finish()
    assert again.ids == whole.ids
    assert all(
        (tmp_path / "cut" / f).read_bytes() == (tmp_path / "whole" / f).read_bytes()
        for f in ("x.npy", "y.npy", "index.csv")
    )


def test_other_meta_starts_afresh_and_same_meta_extends(tmp_path):
    write(tmp_path / "s", {"k": 1}, PARTS[:1]).finish()
    assert StoreWriter(tmp_path / "s", {"k": 1}).done == {"a", "b"}
    assert write(tmp_path / "s", {"k": 1}, PARTS).finish().ids == ["a", "b", "c"]
    assert StoreWriter(tmp_path / "s", {"k": 2}).done == set()


def test_stores_from_elsewhere(tmp_path):
    np.save(tmp_path / "features.npy", np.eye(3))
    (tmp_path / "index.csv").write_text("utterance_id\nu1\nu2\nu3\n")
    assert np.array_equal(Store(tmp_path).rows("u2", "features"), [[0, 1, 0]])
    (tmp_path / "index.csv").write_text("utterance_id\nu1\nu2\nu3\nu4\n")
    with pytest.raises(UserError, match="fewer rows"):
        Store(tmp_path)
    (tmp_path / "index.csv").write_text("name\nu1\n")
    with pytest.raises(UserError, match="utterance_id"):
        Store(tmp_path)
    (tmp_path / "index.csv").write_text("utterance_id\nu1\n")
    np.save(tmp_path / "features.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="plain numpy array"):
        Store(tmp_path)
