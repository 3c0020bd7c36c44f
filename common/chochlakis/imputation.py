"""What 06 does around its method: train, impute and classify in batches, measure errors; not in the paper
(Chochlakis et al. 2024), three other ways to impute.

x (R, 2, N, D) features of R recordings, 2 modalities, N clips; hidden (M, R, 2, N) True where a clip is lost
under one of M masks; mean (2, D) of the training clips.
"""

import numpy as np
import torch

from common.chochlakis.backbones import MODALITIES
from common.chochlakis.clips import generator_of
from common.training import Place, Task, load_best, train_and_test

PENALTY = 0.01  # of ridge regression, as a share of the inputs' mean square; not tuned

# ---- Training ------------------------------------------------------------------------------


class Batches:
    """A data set: batch_of(rows (B,), epoch, generator) is the batch of some of n recordings."""

    def __init__(self, n, batch_of):
        self.lengths, self.batch_of = np.ones(n, np.uint8), batch_of

    def __getitem__(self, key):
        return key

    def collate(self, keys):
        rows, (seed, epoch, _) = torch.tensor([index for index, _ in keys]), keys[0][1] or (0, 0, 0)
        return self.batch_of(rows, epoch, generator_of(seed, epoch, int(rows[0])))


def train(data, name, model, loss, outputs, batches, recipe, identity):
    """Train a model, or read it where it was trained before; returns it.

    loss, outputs  of a Task; the mean of an output over the validation recordings chooses the epoch
    batches        what gives batches of the training and of the validation recordings, for `Batches`
    """

    def figures(found, _):
        return {name: values.mean(dtype=float) for name, values in found.items()}

    identity |= {"model": str(model), "features": [data.train.identity(), data.valid.identity()]}
    place = Place(data.folder / name, identity, f"{data.folder.name} {name}")
    sets = {"train": Batches(len(data.train), batches[0]), "valid": Batches(len(data.valid), batches[1])}
    task = Task(lambda: model, loss, outputs, figures)
    train_and_test(data.accelerator, task, sets, recipe, place, keep_weights=True)
    return load_best(model, place.folder).to(data.accelerator.device).eval()


# ---- Imputing and classifying --------------------------------------------------------------


def visible_first(hidden):
    """Where the visible clips are: at (..., V), in their order, of hidden (..., N).

    V >= 1 is the number of those that the modality with most of them has; where there are fewer, hidden clips
    follow. To be called on the CPU, since a GPU would have to be waited for.
    """
    n_most = max(1, int((~hidden).sum(-1).max()))
    return hidden.byte().argsort(dim=-1, stable=True)[..., :n_most]


def impute_by_model(accelerator, model, batch_size, x, hidden):
    """Impute x (R, 2, N, D) under every mask of hidden (M, R, 2, N) by an AVMAE -> (M, R, 2, N, D)."""
    filled, lost = x.repeat(len(hidden), 1, 1, 1), hidden.flatten(0, 1)  # (M * R, ...)
    for rows in torch.arange(len(filled)).split(batch_size):
        batch = filled[rows], lost[rows], visible_first(lost[rows])
        with accelerator.autocast():
            imputed = model.impute(*(tensor.to(accelerator.device) for tensor in batch))
        filled[rows] = imputed.to(filled)
    return filled.unflatten(0, hidden.shape[:2])


def impute(imputer, train, part, hidden):
    """Features (M, R, 2, N, D) of a Part with hidden clips imputed; those that were never there, too.

    A modality that no recording of the Part `train` has cannot be learned: its features are 0.
    """
    is_known = (~train.missing).any(2).any(0)  # (2,)
    return torch.where(is_known[:, None, None], imputer(part.x, hidden | part.missing), 0.0)


def together(x):
    """Audio and video of each clip side by side: (..., 2, N, D) -> (..., N, 2 D)."""
    return x.transpose(-3, -2).flatten(-2)


def whole(part, imputer):
    """Inputs of whole recordings: (1, R, N, 2 D) for "none", (1, R, N, D) for "audio" and "video" alone."""
    return together(part.x)[None] if imputer == "none" else part.x[None, :, MODALITIES.index(imputer)]


@torch.no_grad()
def probabilities(model, x):
    """Of the classes under a classifier, x (R, N, n) -> (R, N or 1, C)."""
    return model(x.to(model.linear.weight.device)).softmax(2).cpu()


def classify(models, x):
    """The classes of the largest mean probability over clips, x (M, R, N, n) -> (H, M, R) of H models."""
    found = [probabilities(model, x.flatten(0, 1)).mean(1).argmax(1) for model in models]  # (M * R,) each
    return torch.stack(found).unflatten(1, x.shape[:2]).numpy()


def unexplained(train, test, x, hidden):
    """Squared error of hidden clips imputed in x (M, R, 2, N, D), as a share of that of the training mean.

    Returns {"audio", "video": %}, the median over features, of the modalities that have hidden clips.
    """
    lost, shares, mean = hidden & ~test.missing, {}, train.mean()
    for m, name in enumerate(MODALITIES):
        at = lost[:, :, m]  # (M, R, N)
        real, imputed = test.x[:, m].expand(*at.shape, -1)[at], x[:, :, m][at]  # (clips, D)
        share = (imputed - real).square().sum(0) / (real - mean[m]).square().sum(0).clamp(min=1e-12)
        shares |= {name: 100 * float(share.median())} if len(real) else {}
    return shares


# ---- Not in the paper ----------------------------------------------------------------------


def impute_in_time(x, hidden, mean, share=1.0):
    """Hidden clips on a straight line between the visible ones before and after them -> (M, R, 2, N, D).

    It is the nearest one at the ends, and the mean where none is visible. With share=0 it is the last visible
    clip, or the next one before any was.
    """
    n_clips = hidden.shape[-1]
    place = torch.arange(n_clips)
    before = place.where(~hidden, -1).cummax(-1).values  # -1: none
    after = place.where(~hidden, n_clips).flip(-1).cummin(-1).values.flip(-1)  # N: none
    way = share * ((place - before) / (after - before).clamp(min=1))[..., None]
    before, after = before.where(before >= 0, after), after.where(after < n_clips, before)
    x = x.expand(*hidden.shape, -1)  # (M, R, 2, N, D)
    first, second = (x.take_along_dim(at.clamp(0, n_clips - 1)[..., None], -2) for at in (before, after))
    line = torch.where(hidden.all(-1)[..., None, None], mean[:, None], torch.lerp(first, second, way))
    return torch.where(hidden[..., None], line, x)


def fit_ridge(train, hidden, mean):
    """A linear regression to each clip from what is seen around it, in closed form: an imputer.

    It is fitted on the clips of a Part that hidden (M, R, 2, N) takes away. A clip's inputs, 3 D, are the
    straight line between its neighbours, and the means of the visible audio and of the visible video clips.
    """
    lost, weights = hidden | train.missing, []
    inputs = around(train.x, lost, mean)
    for m in range(2):
        at = (hidden & ~train.missing)[:, :, m]  # (M, R, N)
        a = (inputs[:, :, m] - mean[[m, 0, 1]].flatten())[at].double()  # (clips, 3 D)
        b = (train.x[:, m].expand(*at.shape, -1)[at] - mean[m]).double()  # (clips, D)
        square = a.T @ a
        penalty = PENALTY * square.diagonal().mean().clamp(min=1e-12) * torch.eye(len(square))
        weights.append(torch.linalg.solve(square + penalty, a.T @ b).float())

    def impute_ridge(x, hidden):
        found = around(x, hidden, mean)
        found = [(found[:, :, m] - mean[[m, 0, 1]].flatten()) @ w + mean[m] for m, w in enumerate(weights)]
        return torch.where(hidden[..., None], torch.stack(found, 2), x)

    return impute_ridge


def around(x, hidden, mean):
    """The inputs (M, R, 2, N, 3 D) of `fit_ridge`; the training mean where no clip of a modality is seen."""
    is_seen, line = ~hidden[..., None], impute_in_time(x, hidden, mean)
    centre = torch.where(is_seen, x, 0.0).sum(-2) / is_seen.sum(-2).clamp(min=1)  # (M, R, 2, D)
    centre = torch.where(is_seen.any(-2), centre, mean).flatten(-2)[..., None, None, :]
    return torch.cat([line, centre.expand(*line.shape[:-1], -1)], -1)
