"""Figures of one or several panels: heat maps, curves with intervals; saved by `plots.save`."""

from itertools import cycle

import numpy as np

from common.plots import MARKERS, OKABE_ITO, plt

DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 3)))
DODGE = 0.035  # between the points of neighbouring curves, as a share of the step along x


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
