"""What goes beyond Chochlakis et al. 2024: clips lost in a row, and two other ways to impute.

x (R, 2, N, D) features of R recordings, 2 modalities, N clips; hidden (M, R, 2, N) True where a clip is lost
under one of M masks; mean (2, D) of the training clips.
"""

import torch


def draw_bursts(n_samples, n_clips, n_hidden, n_masks, generator):
    """Lose clips as a network does: `n_hidden` neighbours of both modalities at once, at a random place.

    Every place where they fit is equally likely, so that the first and the last clip are lost least often.
    Returns hidden (M, R, 2, N) bool.
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


IMPUTERS = {"last": impute_last, "linear": impute_linear}
