"""Figures of 07: the case studies of Khare et al. 2021, Section 4.2, and how fast the pretrainings learn."""

from functools import partial

import numpy as np
import torch
from accelerate.utils import send_to_device

from common import plots
from common.khare.tables import LABELS, RECOGNISED, named, names_of


def pretraining_figure(run, results):
    """Held-out loss of both pretrainings by second, a marker for each epoch."""
    facts, curves = results.pretraining, {}
    for method, history in results.pretrained.items():
        seconds, losses = zip(*((entry["seconds"], entry["valid_loss"]) for entry in history["log"]))
        curves[LABELS[method]] = {"valid": (np.cumsum(seconds), losses)}
    unigram = np.log(facts["unigram_perplexity"])
    fig = plots.learning_curves(curves, "seconds", "held-out loss per hidden word (nats)", unigram)
    caption = (
        f"Masked language model on {facts['corpus']}, {facts['clips']:,} clips, a vocabulary of "
        f"{facts['vocabulary']:,} words; {facts['held_out']:,} held-out clips, after each epoch. The loss is "
        "that of the full softmax for both; seconds include its computation. Chance: word frequencies alone. "
        f"Seed {results.seeds[0]}; not in the paper."
    )
    plots.save(fig, run.folder, "khare_fig_pretraining", caption)


def cases_figure(run, results, model, clips, named_cases):
    """For some clips: where the baseline looks, and what is predicted with and without each modality.

    model, clips  the baseline's best initialisation and the data set of the test part
    named_cases   ids of clips; [] = one for each modality, chosen by rule
    """
    ids = results.test.ids
    cases = {ids.index(name): "" for name in named_cases if name in ids} or chosen_cases(results)
    size = (13, 3.4 * len(cases))
    fig, grid = plots.plt.subplots(len(cases), 2, figsize=size, squeeze=False, width_ratios=(2.2, 1))
    for (left, right), (i, reason) in zip(grid, cases.items()):
        present = names_of(results.emotions, results.test.targets[i]) or "none"
        left.set_title(f"{ids[i]}: {present}{reason}")
        draw_attention(left, clips, i, attention_of(model, clips, i))
        image = draw_predictions(right, results, i)
    fig.colorbar(image, ax=grid[:, 1], label="probability", shrink=0.7)
    rule = "chosen by rule: for each modality the emotion whose probability falls most when it is taken away"
    caption = (
        f"Case studies, {run.corpus}: test clips {'as named' if named_cases else rule}. Left: attention "
        "of the baseline, mean over layers, heads and queries, as a multiple of equal attention: the anchor "
        f"({results.anchor}) to itself and to the others. Right: probabilities given these modalities alone, "
        "by the best initialisation of the baseline, of models with another anchor (without text the paper's "
        "has audio as anchor), and (*) of the one robust to missing modalities; framed: emotions that are "
        f"present. {len(ids):,} test clips, seeds {', '.join(map(str, results.seeds))}."
    )
    plots.save(fig, run.folder, "khare_fig_cases", caption)


def chosen_cases(results):
    """{number of a clip: why}: for each modality, where a present emotion loses most without it."""
    found, whole, present = {}, named(results.inputs), results.test.targets
    for lost in results.inputs:
        rest = named(name for name in results.inputs if name != lost)
        rows = [row for row in results.outcomes if {whole, rest} <= set(results.conditions(row))]
        for row in rows[:1]:
            fall = probabilities(results, row, whole) - probabilities(results, row, rest)  # (N, E)
            i, emotion = np.unravel_index(np.where(present, fall, -1.0).argmax(), fall.shape)
            found.setdefault(int(i), f" ({results.emotions[emotion]} needs {lost})")
    return found or {0: ""}


def probabilities(results, row, condition):
    """(N, E) of the initialisation that dev chose."""
    return 1 / (1 + np.exp(-results.logits(row, condition)[results.best(row)]))


@torch.inference_mode()
def attention_of(model, clips, i):
    """{modality: weights (S,)} of a clip: how much its steps are looked at, 1 = as much as all others.

    A hook on every layer computes softmax(Q K^T / sqrt(d)) again, which the fused attention never holds.
    """
    encoder, seen = model.encoder, {}

    def look(name, layer, arguments):
        x, source, is_step = arguments
        q, k = layer.split(layer.query(x)), layer.split(layer.key(source))
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5  # (1, heads, S, S')
        weights = scores.masked_fill(~is_step[:, None, None], -torch.inf).softmax(3)
        seen.setdefault(name, []).append(weights.mean((0, 1, 2)))

    layers, hooks = {encoder.anchor: encoder.unimodal[encoder.anchor], **encoder.cross}, []
    for name in layers:
        hooks += [layer.register_forward_pre_hook(partial(look, name)) for layer in layers[name]]
    batch = send_to_device(clips.collate([clips[i, None]]), next(model.parameters()).device)
    model(batch)
    for hook in hooks:
        hook.remove()
    means = {name: torch.stack(weights).mean(0).cpu().numpy() for name, weights in seen.items()}
    steps = {name: int(batch[f"{name}_length"][0]) for name in means}
    return {name: (mean * steps[name])[: steps[name]] for name, mean in means.items() if steps[name]}


def draw_attention(axes, clips, i, weights):
    """Words as bars over their time, audio as a line, video as steps; on one axis in seconds."""
    if "text" in weights:
        words, spans = clips.words(i)
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
    axes.set(xlabel="time (s)", ylabel="attention (1 = equal)")


def draw_predictions(axes, results, i):
    """A map of probabilities, conditions by emotions; the emotions that are present are framed."""
    names, values = [], []
    for model in results.outcomes:
        if model.first == "scratch" and model.inputs == results.inputs:
            other = model.robust or model.anchor != results.anchor
            for condition in results.conditions(model):
                if condition == RECOGNISED or other and results.anchor in condition.split("+"):
                    continue  # of other models only what the baseline cannot do
                anchor = f" (anchor {model.anchor})" if model.anchor != results.anchor else ""
                names.append(condition.replace("+", " + ") + anchor + " *" * model.robust)
                values.append(probabilities(results, model, condition)[i])
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, j), value in np.ndenumerate(np.array(values)):
        colour = "white" if value < 0.55 else "black"
        axes.text(j, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    for j in np.flatnonzero(results.test.targets[i]):
        frame = {"fill": False, "edgecolor": plots.OKABE_ITO[3], "linewidth": 2}
        axes.add_patch(plots.plt.Rectangle((j - 0.5, -0.5), 1, len(names), **frame))
    axes.set_xticks(range(len(results.emotions)), results.emotions, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    return image
