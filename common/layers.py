"""What the networks of several papers share: first weights, positions, and how weights are read.

B samples, S tokens, V of them visible, w width of a token.
"""

import hashlib
import math
import re
import zipfile
from pathlib import Path

import torch
from torch import nn

from common.files import UserError

TOKEN_STD = 0.02  # of trained vectors such as CLS and mask tokens, as in MAE (He et al. 2022)


def build(seed, make, *arguments):
    """make(*arguments), a network whose first weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*arguments)


def count_parameters(network):
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in network.parameters())


def initialise(module):
    """First weights of linear layers as in MAE: Glorot uniform, and no biases; for nn.Module.apply."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vectors(std, *shape):
    """Trained vectors that start from N(0, std^2)."""
    return nn.Parameter(std * torch.randn(*shape))


def sinusoidal(n_steps, width, device=None):
    """Position vectors (n_steps, width) of the Transformer (Vaswani et al. 2017, Sec. 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(n_steps, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)[:, :width]


def take(tokens, at):
    """Some tokens of each sample: tokens (B, S, w), at (B, V) -> (B, V, w)."""
    samples = torch.arange(len(tokens), device=at.device)[:, None]
    return tokens[samples, at]  # its gradient adds whole tokens; that of take_along_dim single numbers


def weights_hash(weights):
    """A short hash of weights {name: tensor}, in their order."""
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_checkpoint(path):
    """The dict in a .pth file; its tensors stay on disk until they are used, where the file's format allows.

    Raises UserError for a file that is absent, damaged, or holds objects besides tensors, whose loading could
    run any code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path of the checkpoint")
    try:
        content = torch.load(path, "cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # whatever torch.load makes of a damaged file
        if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            what = f"holds an object of {found[1]} besides tensors, and loading it could run any code"
            raise UserError(f"{path}: {what}; if you trust its source, save its weights alone") from error
        raise UserError(f"{path}: not a PyTorch checkpoint but {what_it_is(path, error)}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path}: holds a {kind}, not a dict of weights; name the authors' checkpoint")
    return content


def what_it_is(path, error):
    """What is wrong with a checkpoint's file, and what to do."""
    with open(path, "rb") as file:
        head = file.read(64).lstrip()
    if not head:
        return "an empty file; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file; run git lfs pull in its repository"
    if head.startswith(b"<"):
        return "a web page, not the file behind it; download it again"
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if inner := [name for name in names if name.endswith((".pth", ".pt", ".tar", ".bin"))]:
        return f"an archive that holds {inner[0]}; unzip it and name that file"
    return f"damaged ({str(error).strip().partition(chr(10))[0][:80]}); download it again"
