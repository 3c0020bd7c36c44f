"""Recordings that are read once and stored: kills, problems, disks; and trainings side by side."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import jobs
from common.extraction import Extraction, extract
from common.files import UserError
from common.jobs import places_on_gpus, side_by_side
from common.media import MediaError
from common.store import Store, StoreWriter, rows_of

ITEMS = {f"u{i:02}": i for i in range(10)}


def read(i):
    if i == 3:
        raise MediaError("three.wav", "no audio samples", "download it again")
    if i == 7:
        raise ValueError("a decoder's surprise")
    return i


def compute(found):
    rows = {"x": [i % 3 for i in found], "y": [1] * len(found)}
    x = [np.full((i % 3, 2), i, np.float32) for i in found]
    return {"x": np.concatenate(x), "y": np.array(found, np.int16)}, rows


def run(folder, items=ITEMS, how=None, need=100, read=read, compute=compute):
    how = how or Extraction(batch=4, workers=2, max_problem_share=0.3)
    return extract(items, read, compute, folder, {"weights": "abc"}, how, "numbers", need)


def test_rows_and_problems(tmp_path, capsys):
    store = run(tmp_path / "s")
    assert store.ids == [name for name, i in ITEMS.items() if i not in (3, 7)]
    assert store.rows("u05", "x").tolist() == [[5, 5], [5, 5]] and store.length("u06", "x") == 0
    assert store.rows("u09", "y") == [9] and store.positions["u04"] == 3 and "u03" not in store
    assert store.problems["u03"].file == "three.wav" and "surprise" in store.problems["u07"].problem
    assert "0.000 GB" in capsys.readouterr().out
    assert (
        run(tmp_path / "s").ids == store.ids
        and "8 recordings are there, 2 left out" in capsys.readouterr().out
    )
    assert pickle.loads(pickle.dumps(store)).ids == store.ids and len(pickle.dumps(store)) < 500


@pytest.mark.parametrize("workers", [0, 3])
def test_a_killed_run_leaves_the_same_bytes(tmp_path, workers):
    how, whole = Extraction(4, workers, 0.3), run(tmp_path / "whole")

    def killed(found):
        if 8 in found:
            raise KeyboardInterrupt
        return compute(found)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", how=how, compute=killed)
    with pytest.raises(UserError, match="unfinished"):
        Store(tmp_path / "cut")
    with open(tmp_path / "cut" / "index.csv", "a") as file:
        file.write("u08,12")
    seen = []
    run(tmp_path / "cut", how=how, compute=lambda found: seen.extend(found) or compute(found))
    assert seen == [8, 9]
    for name in ("x.npy", "y.npy", "index.csv", "problems.csv", "meta.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole.folder / name).read_bytes()


def test_another_identity_starts_afresh(tmp_path):
    run(tmp_path / "s")
    assert run(tmp_path / "s", {"u01": 1}).ids == ["u01"]


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="needs .* GB more"):
        run(tmp_path / "s", need=1e18)
    with pytest.raises(UserError, match=r"three.wav: no audio samples \(download it again\)"):
        run(tmp_path / "s", {"u03": 3, "u01": 1})
    with pytest.raises(UserError, match="no recordings"):
        run(tmp_path / "s", {})
    with pytest.raises(UserError, match="not an id"):
        run(tmp_path / "s", {"a\nb": 1})


def test_an_id_with_commas_and_quotes(tmp_path):
    writer = StoreWriter(tmp_path / "s", {})
    writer.add(['a,"b"', "c"], {"x": np.arange(2)})
    assert writer.finish().ids == ['a,"b"', "c"]


def test_rows_of_keeps_the_order_of_the_turns(tmp_path):
    class Turn:
        def __init__(self, name):
            self.utterance_id = name

    turns, rows = rows_of(run(tmp_path / "s"), [Turn("u09"), Turn("u03"), Turn("u00")])
    assert [turn.utterance_id for turn in turns] == ["u09", "u00"] and rows.tolist() == [7, 0]


def square(x, fail=False):
    if fail:
        raise UserError(f"{x} is refused")
    return x * x


def test_side_by_side():
    tasks = [(i,) for i in range(5)]
    assert side_by_side(square, tasks, 1) == side_by_side(square, tasks, 2) == [0, 1, 4, 9, 16]
    with pytest.raises(UserError, match="[34] is refused"):
        side_by_side(square, [(3, True), (4, True)], 2)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_tasks_say_how_many_are_finished_and_the_time_left(n_jobs, capsys, monkeypatch):
    clock = iter(range(0, 1000, 100))  # seconds: the start, then a task finished every 100
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    side_by_side(square, [(i,) for i in range(3)], n_jobs)
    assert capsys.readouterr().out.splitlines() == [
        "  [1/3] finished, about 0:03:20 left",
        "  [2/3] finished, about 0:01:40 left",
        "  [3/3] finished, about 0:00:00 left",
    ]
    monkeypatch.setenv("RANK", "1")  # of several processes only the first speaks
    side_by_side(square, [(1,), (2,)], 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("gb, wanted", [([], 4), ([24], 1), ([80], 4), ([24, 24], 2), ([8], 1)])
def test_jobs_share_a_gpu_only_where_there_is_room(monkeypatch, gb, wanted, capsys):
    sizes = [SimpleNamespace(total_memory=size * 1e9) for size in gb]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gb))
    monkeypatch.setattr(torch.cuda, "get_device_properties", sizes.__getitem__)
    assert places_on_gpus(4) == wanted and ("have room" in capsys.readouterr().out) == (wanted < 4)


def test_processes_spread_over_the_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(jobs, "end_with_parent", lambda parent: None)
    for number in (1, 2, 3, 4):
        process = SimpleNamespace(name=f"LokyProcess-{number}")
        monkeypatch.setattr(jobs, "current_process", lambda process=process: process)
        jobs.run_task(0, square, (number,))
    assert chosen == [1, 0, 1, 0]
