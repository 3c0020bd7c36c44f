"""Figures of 07: the case studies of Khare et al. 2021, Section 4.2, and how fast the pretrainings learn."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import send_to_device

from common import plots
from common.khare.tables import LABELS, RECOGNISED, named, names_of


def pretraining_figure(run, results):
    """Held-out loss and hidden words found of both pretrainings, by step and by second."""
    fig, grid = plots.plt.subplots(2, 2, figsize=(9.6, 6.4), sharex="col", sharey="row")
    facts = results.pretraining
    for i, (method, history) in enumerate(results.pretrained.items()):
        log = history["log"]
        clocks = [entry["step"] for entry in log], np.cumsum([entry["seconds"] for entry in log])
        look = {"color": plots.OKABE_ITO[i], "marker": plots.MARKERS[i], "markersize": 4}
        for (above, below), clock in zip(grid.T, clocks):
            above.plot(clock, [entry["valid_loss"] for entry in log], **look, label=LABELS[method])
            below.plot(clock, [100 * entry["valid_accuracy"] for entry in log], **look)
            below.axhline(100 * facts["majority"], color="black", linestyle=":", linewidth=1)
    grid[0, 0].legend()
    grid[0, 0].set(ylabel="held-out loss per hidden word (nats)")
    grid[1, 0].set(ylabel="hidden words found (%)", xlabel="step")
    grid[1, 1].set(xlabel="seconds")
    caption = (
        f"Masked language model on {facts['corpus']}, {facts['clips']:,} clips, a vocabulary of "
        f"{facts['vocabulary']:,} words; {facts['held_out']:,} held-out clips. The loss is that of the full "
        "softmax for both; seconds include its computation. Dotted: the most frequent word for all. Seed "
        f"{results.seeds[0]}; not in the paper."
    )
    run.figure(plots.save(fig, run.folder, "khare_fig_pretraining", caption))


# ---- Case studies (Section 4.2) ------------------------------------------------------------


@dataclass
class Case:
    """A test clip to look at: its number, and why it was chosen."""

    i: int
    reason: str = ""


def cases_figure(run, results, model, clips, named_cases):
    """For some clips: where the baseline looks, and what is predicted with and without each modality.

    model, clips  the baseline's best initialisation and the data set of the test part
    named_cases   ids of clips; [] = one for each modality, chosen by rule
    """
    ids = results.test.ids
    cases = [Case(ids.index(name)) for name in named_cases if name in ids] or chosen_cases(results)
    size = (13, 3.4 * len(cases))
    fig, grid = plots.plt.subplots(len(cases), 2, figsize=size, squeeze=False, width_ratios=(2.2, 1))
    for (left, right), case in zip(grid, cases):
        draw_attention(left, results, case, clips, attention_of(model, clips, case.i))
        image = draw_predictions(right, results, case)
    fig.colorbar(image, ax=grid[:, 1], label="probability", shrink=0.7)
    rule = "chosen by rule: for each modality the emotion whose probability falls most when it is taken away"
    caption = (
        f"Case studies, {run.corpus}: test clips {'as named' if named_cases else rule}. Left: attention "
        "of the baseline, mean over layers, heads and queries, as a multiple of equal attention: the anchor "
        f"({results.anchor}) to itself and to the others. Right: probabilities given these modalities alone, "
        "by the best initialisation of the baseline, of models with another anchor (without text the paper's "
        "has audio as anchor), and (*) of the one robust to missing modalities; framed: emotions that are "
        f"present. {len(results.test):,} test clips, seeds {', '.join(map(str, results.seeds))}."
    )
    run.figure(plots.save(fig, run.folder, "khare_fig_cases", caption))


def chosen_cases(results):
    """One Case for each modality, no clip twice."""
    found = [case for name in results.inputs if (case := case_of(results, name))] or [
        Case(0, "the first clip")
    ]
    return list({case.i: case for case in reversed(found)}.values())[::-1]


def case_of(results, lost):
    """The Case in which a modality tells most, None where no model was tested without it."""
    whole, rest = named(results.inputs), named(name for name in results.inputs if name != lost)
    rows = [row for row in results.outcomes if {whole, rest} <= set(results.conditions(row))]
    if not rows:
        return None
    k, true = results.best(rows[0]), results.test.targets
    having, without = (sigmoid(results.logits(rows[0], condition)[k]) for condition in (whole, rest))
    drop = np.where(true, having - without, -1.0)  # (N, E)
    turned = np.where((having > 0.5) & (without <= 0.5), drop, -1.0)  # first those that it alone makes right
    i, emotion = np.unravel_index(np.argmax(turned if turned.max() > 0 else drop), drop.shape)
    return Case(int(i), f"{results.emotions[emotion]} needs {lost}")


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, float)))


@torch.inference_mode()
def attention_of(model, clips, i):
    """{modality: weights (S,)} of a clip: how much its steps are looked at, 1 = as much as all others.

    A hook on every layer computes softmax(Q K^T / sqrt(d)) again, which the fused attention never holds.
    """
    encoder, seen = model.encoder, {}

    def hook(name):
        def look(layer, arguments, output):
            x, source, is_step = arguments
            q, k = (
                part.unflatten(2, (layer.heads, -1)).transpose(1, 2)
                for part in (layer.query(x), layer.key(source))
            )
            scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5  # (1, heads, S, S')
            weights = scores.masked_fill(~is_step[:, None, None], -torch.inf).softmax(3)
            seen.setdefault(name, []).append(weights.mean((0, 1, 2)))

        return look

    layers = [(encoder.anchor, layer) for layer in encoder.unimodal[encoder.anchor]]
    layers += [(name, layer) for name, encoder_of in encoder.cross.items() for layer in encoder_of]
    hooks = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    batch = send_to_device(clips.collate([clips[i, None]]), next(model.parameters()).device)
    model(batch)
    for each in hooks:
        each.remove()
    means = {name: torch.stack(weights).mean(0).cpu().numpy() for name, weights in seen.items()}
    steps = {name: int(batch[f"{name}_length"][0]) for name in means}
    return {name: (mean * steps[name])[: steps[name]] for name, mean in means.items() if steps[name]}


def draw_attention(axes, results, case, clips, weights):
    """Words as bars over their time, audio as a line, video as steps; on one axis in seconds."""
    if "text" in weights:
        words, spans = clips.words(case.i)
        if not np.isfinite(spans).all():
            spans = [(k, k + 1) for k in range(len(words))]
        for word, (start, end), weight in zip(words, spans, weights["text"]):
            look = {"align": "edge", "color": plots.OKABE_ITO[5], "edgecolor": "white"}
            axes.bar(start, weight, max(end - start, 0.02), **look)
            axes.text((start + end) / 2, 0.03, word, rotation=90, ha="center", va="bottom", fontsize=7)
    for name, colour, width in (("audio", plots.OKABE_ITO[3], 1.2), ("video", plots.OKABE_ITO[2], 2)):
        if name in weights:
            edges = np.arange(len(weights[name]) + 1) * clips.step_s[name]
            axes.stairs(weights[name], edges, baseline=None, color=colour, linewidth=width, label=name)
            axes.legend(loc="upper right")
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    present = names_of(results.emotions, results.test.targets[case.i]) or "none"
    title = f"{results.test.ids[case.i]}: {present}" + (f" ({case.reason})" if case.reason else "")
    axes.set(xlabel="time (s)", ylabel="attention (1 = equal)", title=title)


def draw_predictions(axes, results, case):
    """A map of probabilities, conditions by emotions; the emotions that are present are framed."""
    names, values = [], []
    for row in results.outcomes:
        if row.first == "scratch" and row.inputs == results.inputs:
            other = row.robust or row.anchor != results.anchor
            for condition in results.conditions(row):
                if condition == RECOGNISED or other and results.anchor in condition.split("+"):
                    continue  # of other models only what the baseline cannot do
                anchor = f" (anchor {row.anchor})" if row.anchor != results.anchor else ""
                names.append(condition.replace("+", " + ") + anchor + " *" * row.robust)
                values.append(sigmoid(results.logits(row, condition)[results.best(row), case.i]))
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(np.array(values)):
        colour = "white" if value < 0.55 else "black"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    for j in np.flatnonzero(results.test.targets[case.i]):
        frame = {"fill": False, "edgecolor": plots.OKABE_ITO[3], "linewidth": 2}
        axes.add_patch(plots.plt.Rectangle((j - 0.5, -0.5), 1, len(names), **frame))
    axes.set_xticks(range(len(results.emotions)), results.emotions, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    return image
