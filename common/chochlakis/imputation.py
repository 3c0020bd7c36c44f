"""What 06 does around its method: train, impute and classify in batches, measure errors; not in the paper
(Chochlakis et al. 2024), three other ways to impute.

x (R, 2, N, D) features of R recordings, 2 modalities, N clips; hidden (M, R, 2, N) True where a clip is lost
under one of M masks; mean (2, D) of the training clips.
"""

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from common.chochlakis.clips import generator_of
from common.chochlakis.tables import WHOLE, System
from common.training import Place, load_best, train_and_test

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


def train(data, name, model, task, batches, recipe, identity):
    """Train a model, or read it where it was trained before; returns it and its history.

    batches  what gives batches of the training and of the validation recordings, for `Batches`
    """
    parts = {"train": data.train, "valid": data.valid}
    identity |= {"model": str(model), "features": [part.identity() for part in parts.values()]}
    place = Place(data.folder / name, identity, f"{data.folder.name} {name}")
    sets = {part: Batches(len(parts[part]), batch_of) for part, batch_of in zip(parts, batches)}
    history = train_and_test(data.accelerator, task, sets, recipe, place, keep_weights=True)["history"]
    return load_best(model, place.folder).to(data.accelerator.device).eval(), history


# ---- Imputing and classifying --------------------------------------------------------------


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
    return together(part.x)[None] if imputer == "none" else part.x[None, :, ("audio", "video").index(imputer)]


def classes_of(logits):
    """The class of the largest mean probability over clips: logits (B, N, C) -> (B,)."""
    return logits.softmax(2).mean(1).argmax(1)


@torch.no_grad()
def classify(model, x, batch_size):
    """Classes of recordings under a classifier, x (M, R, N, n) -> (M, R) array."""
    rows, device = x.flatten(0, 1).split(batch_size), model.linear.weight.device
    labels = torch.cat([classes_of(model(some.to(device))) for some in rows])
    return labels.unflatten(0, x.shape[:2]).cpu().numpy()


def predict(train, test, classifiers, imputers, masks, backoff, batch_size):
    """Predictions for a test Part, and how far off what was imputed is.

    classifiers  {System: classifier}; imputers: {name: (x, hidden) -> x}; masks: {k: hidden} of k lost clips
    backoff      06's
    Returns {(System, k): (M, R)}, and {(imputer, k): [audio, video] in %}.
    """
    predicted, errors, lossy = {}, {}, {}
    for system, model in classifiers.items():
        if system.imputer in WHOLE:
            predicted[system, 0] = classify(model, whole(test, system.imputer), batch_size)
        else:
            lossy.setdefault(system.imputer, []).append(system)
    for k, hidden in masks.items():
        for name, systems in lossy.items():
            if name == "backoff":
                probabilities = back_off(train, test, classifiers, hidden, backoff)
                predicted[systems[0], k] = probabilities.argmax(2).numpy()
                continue
            x = impute(imputers[name], train, test, hidden)
            errors[name, k] = unexplained(train, test, x, hidden)
            for system in systems:
                predicted[system, k] = classify(classifiers[system], together(x), batch_size)
    return predicted, errors


@torch.no_grad()
def back_off(train, test, classifiers, hidden, backoff):
    """06's `backoff` (Section 3.5) on the three linear classifiers of whole recordings -> (M, R, C)."""
    clips = []
    for name in WHOLE:
        model = classifiers[System("linear", name)]
        logits = model(whole(test, name)[0].to(model.linear.weight.device))
        clips.append(logits.softmax(2).cpu())  # (R, N, C)
    prior = F.one_hot(train.labels, clips[0].shape[2]).float().mean(0)
    return backoff(*clips, hidden | test.missing, prior)


def unexplained(train, test, x, hidden):
    """Squared error of hidden clips imputed in x (M, R, 2, N, D), as a share of that of the training mean.

    Returns [audio, video] in %, the median over features; NaN where no clip of the modality is hidden.
    """
    lost, shares, mean = hidden & ~test.missing, [], train.mean()
    for m in range(2):
        at = lost[:, :, m]  # (M, R, N)
        real, imputed = test.x[:, m].expand(*at.shape, -1)[at], x[:, :, m][at]  # (clips, D)
        share = (imputed - real).square().sum(0) / (real - mean[m]).square().sum(0).clamp(min=1e-12)
        shares.append(100 * float(share.median()) if len(real) else float("nan"))
    return shares


# ---- Not in the paper ----------------------------------------------------------------------


def impute_last(x, hidden, mean):
    """The last clip that was seen of the modality, the next one before any was, the mean where none is."""
    return between(x, hidden, mean, torch.zeros_like)


def impute_linear(x, hidden, mean):
    """On a straight line in time between the neighbours that were seen, the nearest one at the ends."""
    return between(x, hidden, mean, lambda share: share)


def between(x, hidden, mean, weight):
    """Hidden clips from the visible ones before and after them -> (M, R, 2, N, D).

    weight  weight(share) is that of the clip after, where share is how far the clip is on the way to it
    """
    n_clips = hidden.shape[-1]
    place = torch.arange(n_clips)
    before = place.where(~hidden, -1).cummax(-1).values  # -1: none
    after = place.where(~hidden, n_clips).flip(-1).cummin(-1).values.flip(-1)  # N: none
    share = weight((place - before) / (after - before).clamp(min=1))[..., None]
    before, after = before.where(before >= 0, after), after.where(after < n_clips, before)
    x = x.expand(*hidden.shape, -1)  # (M, R, 2, N, D)
    first, second = (x.take_along_dim(at.clamp(0, n_clips - 1)[..., None], -2) for at in (before, after))
    line = torch.where(hidden.all(-1)[..., None, None], mean[:, None], torch.lerp(first, second, share))
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
    is_seen, line = ~hidden[..., None], impute_linear(x, hidden, mean)
    centre = torch.where(is_seen, x, 0.0).sum(-2) / is_seen.sum(-2).clamp(min=1)  # (M, R, 2, D)
    centre = torch.where(is_seen.any(-2), centre, mean).flatten(-2)[..., None, None, :]
    return torch.cat([line, centre.expand(*line.shape[:-1], -1)], -1)


def beyond_paper(train, hidden, mean):
    """{name: (x, hidden) -> x}: the last clip, a straight line, and a ridge regression."""
    last, linear = partial(impute_last, mean=mean), partial(impute_linear, mean=mean)
    return {"last": last, "linear": linear, "ridge": fit_ridge(train, hidden, mean)}
