"""One look for all figures: Okabe-Ito colours, readable sizes, caption beneath, reproducible files.

fig = confusion_map(counts, classes)
save(fig, folder, "babaali_fig_12_confusion", "Figure 12. ... n = 5,531; seeds 0, 1, 2.")
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
DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 3)))
DODGE = 0.035  # between the points of neighbouring curves, as a share of the step along x
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
    """Write <stem>.png (150 dpi) and <stem>.pdf with the caption beneath, close the figure, return the paths.

    The files hold no dates, so the same figure gives the same bytes.
    """
    width = int(fig.get_figwidth() * 72 / (CAPTION_SIZE * 0.5))
    fig.text(0.01, -0.02, textwrap.fill(caption, width), ha="left", va="top", fontsize=CAPTION_SIZE)
    dates = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Producer": None}}
    paths = [Path(folder) / f"{stem}{suffix}" for suffix in dates]
    for path in paths:
        with atomic_path(path) as temporary:
            fig.savefig(temporary, dpi=150, bbox_inches="tight", metadata=dates[path.suffix])
    plt.close(fig)
    return paths


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


def heat_map(axes, values, texts, rows, columns, limits, fontsize):
    """An image of values (R, C) on one scale, with texts {(i, j): text} in its cells; returns the image."""
    image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=limits[0], vmax=limits[1])
    for (i, j), text in texts.items():
        colour = "white" if values[i, j] < sum(limits) / 2 else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=fontsize, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    return image


def confusion_map(counts, classes):
    """Heat map of counts (C, C), true class by row: the colour and the second line of a cell are row %."""
    return confusion_grid({"": counts}, classes, 1)


def confusion_grid(panels, classes, n_columns):
    """Heat maps {title: counts (C, C)} in rows of n_columns, as `confusion_map` draws one."""
    n_rows, size = -(-len(panels) // n_columns), 2.4 + 0.75 * len(classes)
    figsize = (size * n_columns + 0.6, size * n_rows)
    fig, grid = plt.subplots(n_rows, n_columns, figsize=figsize, squeeze=False)
    for axes, (title, counts) in zip(grid.flat, panels.items()):
        counts = np.asarray(counts)
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        texts = {at: f"{n:,}\n{share[at]:.0f} %" for at, n in np.ndenumerate(counts)}
        image = heat_map(axes, share, texts, classes, classes, (0, 100), 8)
        plt.setp(axes.get_xticklabels(), rotation=45, ha="right")
        axes.set(title=title, xlabel="predicted class", ylabel="true class", aspect="equal")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    fig.colorbar(image, ax=fig.axes, label="share of the true class (%)", shrink=0.8 / n_rows)
    return fig


def value_map(values, row_label, column_label, value_label):
    """A map of values {(row, column): value}; combinations that were not tried stay white."""
    return value_maps({"": values}, row_label, column_label, value_label)


def value_maps(panels, row_label, column_label, value_label):
    """Maps side by side on one scale of colours, {title: values as for `value_map`}."""
    found = [value for values in panels.values() for value in values.values() if np.isfinite(value)]
    fig, grid = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.2), squeeze=False)
    for axes, (title, values) in zip(grid.flat, panels.items()):
        rows, columns = (sorted({key[i] for key in values}) for i in (0, 1))
        table = np.array([[values.get((r, c), np.nan) for c in columns] for r in rows], float)
        texts = {at: f"{value:.1f}" for at, value in np.ndenumerate(table) if np.isfinite(value)}
        limits = min(found), max(found)
        image = heat_map(axes, table, texts, rows, columns, limits, 10 if len(columns) < 8 else 7)
        axes.set(title=title, xlabel=column_label, ylabel=row_label)
    fig.colorbar(image, ax=grid, label=value_label)
    return fig


def scatter(points, labels, classes, xlabel, ylabel):
    """Points (N, 2) coloured and marked by their label; `labels` holds names out of `classes`."""
    fig, axes = plt.subplots()
    labels = np.asarray(labels)
    look = {"s": 16, "alpha": 0.75, "linewidths": 0.3, "edgecolors": "black"}
    for name, (colour, marker) in class_style(classes).items():
        chosen = labels == name
        label = f"{name} ({chosen.sum():,})"
        axes.scatter(*points[chosen].T, c=colour, marker=marker, label=label, **look)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend()
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


def curves(series, xlabel, ylabel, chance):
    """Lines with intervals: series {name: (x, y, low, high)} of equal lengths; chance: a dotted level."""
    return curve_panels({"": series}, xlabel, ylabel, chance)


def curve_panels(panels, xlabel, ylabel, chance):
    """Lines with intervals side by side, {title: series as for `curves`}; a name looks alike in all panels.

    What does not vary along x is a black broken line without markers. Names that are alike up to a comma have
    one colour, the second of them with open markers. Points of one panel stand a little beside each other.
    """
    varies = {}  # in the order of the legend
    for series in panels.values():
        for name, (_, y, _, _) in series.items():
            varies[name] = varies.get(name, False) or len(set(y)) > 1
    style = curve_styles(varies)
    is_beside = len(panels) > 1 or len(varies) > 5  # the legend then needs room beside the panels
    figsize = (5.6 * len(panels) + 2.6 * is_beside, 4.2)
    fig, grid = plt.subplots(1, len(panels), figsize=figsize, sharey=True, squeeze=False)
    handles = {}
    for axes, (title, series) in zip(grid.flat, panels.items()):
        moving = [name for name in series if varies[name]]
        for name, (x, y, low, high) in series.items():
            x, y = np.array(x, float), np.array(y, float)
            error = np.abs(np.array([low, high], float) - y) if varies[name] else None
            if varies[name] and len(x) > 1:
                x = x + (moving.index(name) - (len(moving) - 1) / 2) * DODGE * np.diff(x).min()
            handles[name] = axes.errorbar(x, y, error, capsize=3, label=name, **style[name])
        handles["chance"] = axes.axhline(chance, color="black", linestyle=":", linewidth=1, label="chance")
        axes.set(title=title, xlabel=xlabel)
    grid[0, 0].set_ylabel(ylabel)
    place, where = (fig, "outside right upper") if is_beside else (grid[0, 0], "best")
    place.legend(handles.values(), handles.keys(), loc=where, handlelength=3.5)
    return fig


def curve_styles(varies):
    """{name: how `curve_panels` draws it}, all different up to 32 that vary and 4 that do not.

    varies  {name: whether it varies along x}
    """
    levels = [name for name in varies if not varies[name]]
    plain = {"color": "black", "marker": ""}
    styles = {name: {**plain, "linestyle": dash} for name, dash in zip(levels, cycle(DASHES[1:]))}
    groups = {}
    for name in varies:
        if varies[name]:
            groups.setdefault(name.partition(", ")[0], []).append(name)
    for i, names in enumerate(groups.values()):
        for j, name in enumerate(names):
            colour = OKABE_ITO[i % len(OKABE_ITO)]
            styles[name] = {
                "color": colour,
                "marker": MARKERS[(i + i // len(MARKERS)) % len(MARKERS)],
                "markerfacecolor": "white" if j else colour,
                "linestyle": DASHES[(i // len(OKABE_ITO) + j) % len(DASHES)],
            }
    return styles


def spectrograms(panels, step_s, top_khz):
    """Spectrograms {title: (bins, frames) in dB} below each other on one scale; NaN stays white."""
    fig, grid = plt.subplots(len(panels), 1, figsize=(6.4, 1.9 * len(panels)), sharex=True, squeeze=False)
    top = max(np.nanmax(panel) for panel in panels.values())
    look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": top - 80, "vmax": top}
    for axes, (title, panel) in zip(grid.flat, panels.items()):
        image = axes.imshow(panel, extent=(0, panel.shape[1] * step_s, 0, top_khz), **look)
        axes.set(title=title, ylabel="frequency (kHz)")
        axes.grid(False)
    grid[-1, 0].set_xlabel("time (s)")
    fig.colorbar(image, ax=grid, label="power (dB)", shrink=0.6)
    return fig
