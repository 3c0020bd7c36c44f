"""What the networks share: first weights, positions, and all that a file of weights can have wrong."""

import math
import zipfile

import pytest
import torch
from torch import nn

from common.files import UserError
from common.layers import (
    build,
    count_parameters,
    initialise,
    read_checkpoint,
    sinusoidal,
    take,
    vectors,
)


class Code:
    """Pickled, it would be imported and built on loading."""


def test_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, three = build(1, nn.Linear, 3, 4), build(1, nn.Linear, 3, 4), build(2, nn.Linear, 3, 4)
    assert torch.equal(one.weight, two.weight) and not torch.equal(one.weight, three.weight)
    assert torch.equal(torch.random.get_rng_state(), before) and count_parameters(one) == 16
    one.apply(initialise)
    assert not one.bias.any() and one.weight.abs().max() <= (6 / 7) ** 0.5
    assert vectors(0.5, 2000, 3).std().item() == pytest.approx(0.5, rel=0.05)


def test_positions_against_the_formula():
    found = sinusoidal(5, 6)
    for t in range(5):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            wanted = [math.sin(angle), math.cos(angle)]
            assert found[t, 2 * i : 2 * i + 2].tolist() == pytest.approx(wanted, abs=1e-6)


def test_take():
    tokens = torch.arange(12).view(2, 3, 2)
    assert take(tokens, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def broken(path, how):
    torch.save({"w": torch.ones(300)}, path)
    whole = path.read_bytes()
    if how == "archive":
        inner = path.rename(path.with_name("audio_model.21.pth"))
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(inner, inner.name)
    elif how == "code":
        torch.save({"w": Code()}, path)
    elif how == "list":
        torch.save([1, 2], path)
    else:
        content = {"truncated": whole[:900], "page": b"<!doctype html>", "empty": b""}
        path.write_bytes(content.get(how, b"version https://git-lfs.github.com/spec/v1"))


@pytest.mark.parametrize(
    "how, words",
    [
        ("archive", "an archive that holds audio_model.21.pth; unzip it and name that file"),
        ("code", "could run any code; if you trust its source, save its weights alone"),
        ("list", "holds a list, not a dict"),
        ("truncated", "damaged .*; download it again"),
        ("page", "a web page"),
        ("empty", "an empty file"),
        ("pointer", "git lfs pull"),
    ],
)
def test_a_file_that_is_no_checkpoint(tmp_path, how, words):
    path = tmp_path / "weights.pth"
    broken(path, how)
    with pytest.raises(UserError, match=words) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value) and "weights.pth" in str(caught.value)


def test_whole_checkpoints(tmp_path):
    for new in (True, False):
        torch.save({"w": torch.ones(2)}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
        assert read_checkpoint(tmp_path / "w.pth")["w"].tolist() == [1, 1]
    with pytest.raises(UserError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
