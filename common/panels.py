"""Figures of one or several panels, {title: what it shows}: heat maps, curves with intervals; see `plots`."""

import numpy as np

from common.plots import MARKERS, OKABE_ITO, plt

DASHES = ("-", "--", "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5)))  # chance alone is dotted
DODGE = 0.035  # between the points of neighbouring curves, as a share of the step along x


def heat_maps(panels, labels, limits, size, n_columns):
    """Maps on one scale of colours, {title: (values (R, C), {(i, j): text}, names of rows, of columns)}.

    labels  of rows, columns and values; limits: of the scale; size: of a panel in inches
    """
    n_rows = -(-len(panels) // n_columns)
    figsize = (size[0] * n_columns, size[1] * n_rows)
    fig, grid = plt.subplots(n_rows, n_columns, figsize=figsize, squeeze=False)
    for axes, (title, (values, texts, rows, columns)) in zip(grid.flat, panels.items()):
        image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=limits[0], vmax=limits[1])
        for (i, j), text in texts.items():
            colour = "white" if values[i, j] < sum(limits) / 2 else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(columns)), columns, rotation=45 * isinstance(columns[0], str))
        axes.set_yticks(range(len(rows)), rows)
        axes.set(title=title, ylabel=labels[0], xlabel=labels[1])
        axes.grid(False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    fig.colorbar(image, ax=fig.axes, label=labels[2])
    return fig


def confusion_maps(panels, classes, n_columns=1):
    """Maps of counts (C, C), true class by row: the colour and the second line of a cell are row %."""
    maps, size = {}, 2.8 + 0.75 * len(classes)
    for title, counts in panels.items():
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        texts = {at: f"{n:,}\n{share[at]:.0f} %" for at, n in np.ndenumerate(counts)}
        maps[title] = share, texts, classes, classes
    labels = "true class", "predicted class", "share of the true class (%)"
    return heat_maps(maps, labels, (0, 100), (size, size - 0.4), n_columns)


def curve_panels(panels, xlabel, ylabel, chance):
    """Lines with bars side by side, {title: {name: (x, y, low, high)}}; chance: a dotted level.

    A name looks alike in all panels. Points of one panel stand a little beside each other.
    """
    n, handles, looks = len(panels), {}, curve_looks(panels)
    fig, grid = plt.subplots(1, n, figsize=(5.6 * n + 2.6, 4.2), sharey=True, squeeze=False)
    for axes, (title, series) in zip(grid.flat, panels.items()):
        handles["chance"] = axes.axhline(chance, color="black", linestyle=":", linewidth=1)
        for k, (name, (x, y, low, high)) in enumerate(series.items()):
            aside = DODGE * np.diff(x).min() if len(x) > 1 and len(set(y)) > 1 else 0.0
            error = np.abs(np.array([low, high], float) - y)
            x = np.array(x) + aside * (k - (len(series) - 1) / 2)
            bars = error if error.any() else None
            handles[name] = axes.errorbar(x, y, bars, capsize=3, label=name, **looks[name])
        axes.set(title=title, xlabel=xlabel)
    grid[0, 0].set_ylabel(ylabel)
    fig.legend(handles.values(), handles.keys(), loc="outside right upper", handlelength=3.5)
    return fig


def curve_looks(panels):
    """{name: how it is drawn}: alike up to a comma, the same colour; what does not vary along x is black."""
    groups = {"": []}
    for name, (_, y, _, _) in (item for series in panels.values() for item in series.items()):
        group = groups.setdefault(name.partition(", ")[0] if len(set(y)) > 1 else "", [])
        group += [] if name in group else [name]
    looks = {}
    for i, names in enumerate(groups.values(), -1):
        colour, marker = (OKABE_ITO[i % 8], MARKERS[i % 8]) if i >= 0 else ("black", "")
        for j, name in enumerate(names):
            dash = DASHES[(j + (i // 8 if i >= 0 else 1)) % len(DASHES)]
            looks[name] = {"color": colour, "marker": marker, "linestyle": dash}
    return looks
