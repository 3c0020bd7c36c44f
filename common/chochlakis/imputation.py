"""What 06 does around its method: impute and classify in batches, measure errors; and what is not in the
paper (Chochlakis et al. 2024): clips lost in a row or at unequal rates, and two other ways to impute.

x (R, 2, N, D) features of R recordings, 2 modalities, N clips; hidden (M, R, 2, N) True where a clip is lost
under one of M masks; mean (2, D) of the training clips.
"""

import numpy as np
import torch
from torch.nn import functional as F

from common.chochlakis.tables import WHOLE, System, is_tested


def by_model(model, x, hidden, accelerator, batch_size):
    """Impute x under every mask of hidden by 06's autoencoder -> (M, R, 2, N, D)."""
    filled, lost = x.repeat(len(hidden), 1, 1, 1), hidden.flatten(0, 1)  # (M * R, ...)
    for at in torch.arange(len(filled)).split(batch_size):
        with accelerator.autocast():
            imputed = model.impute(filled[at].to(accelerator.device), lost[at].to(accelerator.device))
        filled[at] = imputed.to(filled)
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
    return together(part.x)[None] if imputer == "none" else part.x[None, :, ("audio", "video").index(imputer)]


@torch.no_grad()
def classify(model, x, batch_size):
    """The most likely class under a classifier, x (M, R, N, n) -> (M, R) array."""
    model.eval()
    rows, device = x.flatten(0, 1).split(batch_size), model.linear.weight.device
    labels = torch.cat([model.probabilities(some.to(device)).argmax(1) for some in rows])
    return labels.unflatten(0, x.shape[:2]).cpu().numpy()


def predict(train, test, classifiers, imputers, masks, backoff, batch_size):
    """Predictions for a test Part, and how far off what was imputed is.

    classifiers  {System: classifier}; imputers: {name: (x, hidden) -> x}; masks: {setting: hidden}; backoff:
                 06's
    Returns {(System, setting): (M, R)}, and {(imputer, k): [audio, video] in %} of k lost clips.
    """
    predicted, errors = {}, {}
    for system, model in classifiers.items():
        if system.imputer in WHOLE:
            predicted[system, ("level", 0)] = classify(model, whole(test, system.imputer), batch_size)
    for setting, hidden in masks.items():
        asked = [system for system in classifiers if is_tested(system, setting)]
        for name in dict.fromkeys(system.imputer for system in asked):
            if name == "backoff":
                probabilities = back_off(train, test, classifiers, hidden, backoff)
                predicted[System("linear", name), setting] = probabilities.argmax(2).numpy()
                continue
            x = impute(imputers[name], train, test, hidden)
            if setting[0] == "level":
                errors[name, setting[1]] = unexplained(train, test, x, hidden)
            for system in (system for system in asked if system.imputer == name):
                predicted[system, setting] = classify(classifiers[system], together(x), batch_size)
    return predicted, errors


@torch.no_grad()
def back_off(train, test, classifiers, hidden, backoff):
    """06's `backoff` (Section 3.5) on the three linear classifiers of whole recordings -> (M, R, C)."""
    clips = []
    for name in WHOLE:
        model = classifiers[System("linear", name)]
        logits = model(whole(test, name)[0].to(model.linear.weight.device))
        clips.append(logits.float().softmax(2).cpu())  # (R, N, C)
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


def masks_beyond(draw_masks, n, n_clips, n_masks, generator):
    """{setting: hidden}: ("burst", k), k neighbours, and ("unequal", k_audio, k_video); draw_masks: 06's."""
    masks = {}
    for k in range(1, n_clips):
        masks["burst", k] = draw_bursts(n, n_clips, k, n_masks, generator(1, k))
    for a, v in np.ndindex(n_clips, n_clips):
        masks["unequal", a, v] = draw_masks(n, n_clips, a, v, n_masks, generator(2, a, v))
    return masks


def draw_bursts(n_samples, n_clips, n_hidden, n_masks, generator):
    """Lose `n_hidden` neighbours of both modalities at once, at a random place -> hidden (M, R, 2, N) bool.

    Every place where they fit is equally likely, so that the first and the last clip are lost least often.
    """
    first = torch.randint(n_clips - n_hidden + 1, (n_masks, n_samples, 1, 1), generator=generator)
    place = torch.arange(n_clips) - first
    return ((place >= 0) & (place < n_hidden)).expand(-1, -1, 2, -1)


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


BEYOND = {"last": impute_last, "linear": impute_linear}
