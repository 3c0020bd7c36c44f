"""One look for all figures: Okabe-Ito colours, readable sizes, caption beneath, reproducible files.

fig = learning_curves(curves, "training step", "cross-entropy")
save(fig, folder, "babaali_fig_2_text_loss", "Figure 2. ... n = 5,531; seeds 0, 1, 2.")
"""

import textwrap
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures go to files, also where there is no display

import matplotlib.pyplot as plt
import numpy as np

from common.files import atomic_path

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The colours that Babaali's Sec. 4.2 names (red, yellow, blue, green), in tones that differ for everyone.
EMOTIONS = {
    "angry": ("#D55E00", "^"),
    "happy": ("#F0C800", "o"),
    "neutral": ("#0072B2", "s"),
    "sad": ("#009E73", "D"),
}
STYLE = {
    "figure.figsize": (5.6, 4.2),
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}
CAPTION_SIZE = 8
plt.rcParams.update(STYLE)


def class_style(classes):
    """{class: (colour, marker)}: the paper's colours for its four emotions, what is left for the others."""
    taken = {part for name in classes if name in EMOTIONS for part in EMOTIONS[name]}
    colours = cycle(colour for colour in OKABE_ITO if colour not in taken)
    markers = cycle(marker for marker in MARKERS if marker not in taken)
    return {name: EMOTIONS[name] if name in EMOTIONS else (next(colours), next(markers)) for name in classes}


def save(fig, folder, stem, caption):
    """Write <stem>.png (150 dpi) and <stem>.pdf with the caption beneath, and close the figure.

    The files hold no dates, so the same figure gives the same bytes.
    """
    width = int(fig.get_figwidth() * 72 / (CAPTION_SIZE * 0.5))
    fig.text(0.01, -0.02, textwrap.fill(caption, width), ha="left", va="top", fontsize=CAPTION_SIZE)
    for suffix, dates in ((".png", {"Software": None}), (".pdf", {"CreationDate": None, "Producer": None})):
        with atomic_path(Path(folder) / f"{stem}{suffix}") as temporary:
            fig.savefig(temporary, dpi=150, bbox_inches="tight", metadata=dates)
    plt.close(fig)


def learning_curves(curves, xlabel, ylabel, chance=None):
    """One colour per fold; training as a thin solid line, validation dashed with markers.

    curves  {fold name: {"train": (x, y), "valid": (x, y)}} with equally long x and y; either may be absent
    chance  level drawn as a dotted line, in the unit of y
    """
    fig, axes = plt.subplots()
    for (name, parts), colour, marker in zip(curves.items(), cycle(OKABE_ITO), cycle(MARKERS)):
        if "train" in parts:
            axes.plot(*parts["train"], color=colour, alpha=0.8, linewidth=1, label=f"{name} train")
        if "valid" in parts:
            style = {"color": colour, "linestyle": "--", "marker": marker, "markersize": 4}
            axes.plot(*parts["valid"], **style, label=f"{name} validation")
    if chance is not None:
        axes.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(ncols=2)
    return fig


def grouped_bars(groups, series, ylabel):
    """Bars side by side in each of the groups named on the axis; series {class name: a value per group}."""
    fig, axes = plt.subplots(figsize=(max(5.6, 1.0 + 1.0 * len(groups)), 4.2))
    width = 0.8 / len(series)
    look = {"width": width, "edgecolor": "black", "linewidth": 0.4}
    for i, (name, (colour, _)) in enumerate(class_style(list(series)).items()):
        x = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        axes.bar(x, series[name], color=colour, label=name, **look)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylabel=ylabel)
    axes.legend(ncols=2)
    return fig
