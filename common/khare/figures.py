"""Figures of 07: the case studies of Khare et al. 2021, Section 4.2, and what both pretrainings learn in what time."""

from dataclasses import dataclass

import numpy as np
import torch

from common import plots
from common.errors import UserError
from common.khare import tables
from common.khare.data import only
from common.training import to_device


def write(run, study, load_best):
    """Both figures. load_best: load_best(study, row) -> the model of a row's best initialisation."""
    if study.pretrained:
        pretraining_figure(run, study)
    cases_figure(run, study, load_best(study, study.main_rows[0]))


# ---- Pretraining ---------------------------------------------------------------------------


def pretraining_figure(run, study):
    """Held-out loss and hidden words found of both pretrainings, by step and by second."""
    fig, grid = plots.plt.subplots(2, 2, figsize=(9.6, 6.4), sharex="col", sharey="row")
    for i, (method, (_, history)) in enumerate(study.pretrained.items()):
        log = history["log"]
        clocks = [entry["step"] for entry in log], np.cumsum([entry["seconds"] for entry in log])
        for axes, clock in zip(grid.T, clocks):
            look = {"color": plots.OKABE_ITO[i], "marker": plots.MARKERS[i], "markersize": 4}
            axes[0].plot(clock, [entry["valid_loss"] for entry in log], **look, label=tables.LABELS[method])
            axes[1].plot(clock, [100 * entry["valid_accuracy"] for entry in log], **look)
            axes[1].axhline(
                100 * study.pretraining_facts["majority"], color="black", linestyle=":", linewidth=1
            )
    grid[0, 0].legend()
    grid[0, 0].set(ylabel="held-out loss per hidden word (nats)")
    grid[1, 0].set(ylabel="hidden words found (%)", xlabel="step")
    grid[1, 1].set(xlabel="seconds")
    facts = study.pretraining_facts
    run.figure(
        plots.save(
            fig,
            run.folder,
            "khare_fig_pretraining",
            f"Masked language model on {facts['corpus']}, {facts['clips']:,} clips, a vocabulary of "
            f"{facts['vocabulary']:,} words; {facts['held_out']:,} held-out clips. The loss is that of "
            "the full softmax for both; seconds include its computation. Dotted: the most frequent word "
            f"for all. Seed {study.c.SEEDS[0]}; not in the paper.",
        )
    )


# ---- Case studies (Section 4.2) ------------------------------------------------------------


@dataclass
class Case:
    """A test clip to look at: its number, and why it was chosen."""

    i: int
    reason: str


def cases_figure(run, study, model):
    """For chosen clips: where the baseline looks, and what is predicted with and without each modality."""
    cases = chosen_cases(study)
    fig, grid = plots.plt.subplots(
        len(cases), 2, figsize=(13, 3.4 * len(cases)), squeeze=False, width_ratios=(2.2, 1)
    )
    dataset = study.clips("test")
    for (left, right), case in zip(grid, cases):
        batch = to_device(dataset.collate([dataset[case.i, None]]), study.accelerator.device)
        draw_attention(left, study, case, batch, attention_of(model, batch, study.present))
        image = draw_predictions(right, study, case)
    fig.colorbar(image, ax=grid[:, 1], label="probability", shrink=0.7)
    how = (
        "named by CASES"
        if study.c.CASES
        else (
            "chosen by rule: for each modality the present emotion whose probability falls most when it is taken away"
        )
    )
    run.figure(
        plots.save(
            fig,
            run.folder,
            "khare_fig_cases",
            f"Case studies, {run.corpus}: test clips {how}. Left: attention of the baseline, mean over "
            "layers, heads and asking steps, as a multiple of equal attention: words to words, and the "
            f"anchor ({study.c.ANCHOR}) to the others. Right: probabilities given these modalities alone "
            "by the best initialisation of the baseline and, marked *, of the variant that survives "
            f"missing modalities; framed: emotions that are present. {len(study.parts['test']):,} test "
            f"clips, seeds {', '.join(map(str, study.c.SEEDS))}.",
        )
    )


def chosen_cases(study):
    """The Cases of CASES, or one for each modality; UserError for an id that is not in the test part."""
    ids = [turn.utterance_id for turn in study.parts["test"].turns]
    unknown = [name for name in study.c.CASES if name not in ids]
    if unknown:
        raise UserError(
            f"CASES={','.join(unknown)}: no such clip in the test part; ids are as in predictions.csv"
        )
    if study.c.CASES:
        return [Case(ids.index(name), "") for name in study.c.CASES]
    found = [case_of(study, name) for name in study.present]
    found = [case for case in found if case] or [Case(0, "the first test clip")]
    return list({case.i: case for case in reversed(found)}.values())[::-1]


def case_of(study, lost):
    """The Case in which a modality tells most, None where no model was tested without it."""
    rest = tuple(name for name in study.present if name != lost)
    row = next(
        (
            row
            for row in study.outcomes
            if row.first == "scratch"
            and row.inputs == study.present
            and {rest, study.present} <= set(study.outcomes[row].logits)
        ),
        None,
    )
    if row is None:
        return None
    k, logits, true = tables.best_seed(study, row), study.outcomes[row].logits, study.parts["test"].targets
    whole, without = (sigmoid(logits[inputs][k]) for inputs in (study.present, rest))
    drop = np.where(true, whole - without, -1.0)  # (N, E)
    turned = np.where(
        (whole > 0.5) & (without <= 0.5), drop, -1.0
    )  # first those that are right with it alone
    i, emotion = np.unravel_index(np.argmax(turned if turned.max() > 0 else drop), drop.shape)
    return Case(int(i), f"{study.emotions[emotion]} needs {lost}")


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, float)))


@torch.no_grad()
def attention_of(model, batch, present):
    """{modality: weights (S,)} of one clip: how much its steps are looked at, 1 = as much as all others."""
    *_, attention = model.encoder(only(batch, present), return_attention=True)
    anchor, found = model.encoder.anchor, {}
    for name in present:
        weights = attention.get(name if name == anchor else f"{name}->{anchor}")
        if weights is not None and int(batch[f"{name}_length"][0]):
            steps = int(batch[f"{name}_length"][0])
            asking = max(1, int(batch[f"{anchor}_length"][0]))
            mean = weights[0, :, :, :asking, :steps].float().mean((0, 1, 2))  # (S,)
            found[name] = (mean * steps).cpu().numpy()
    return found


def draw_attention(axes, study, case, batch, weights):
    """Words as bars over their time, audio as a line, video as steps; on one axis in seconds."""
    turn = study.parts["test"].turns[case.i]
    if "text" in weights:
        words, spans = shown_words(study, case.i, len(weights["text"]))
        for word, (start, end), weight in zip(words, spans, weights["text"]):
            axes.bar(
                start,
                weight,
                max(end - start, 0.02),
                align="edge",
                color=plots.OKABE_ITO[5],
                edgecolor="white",
            )
            axes.text((start + end) / 2, 0.03, word, rotation=90, ha="center", va="bottom", fontsize=7)
    for name, colour in (("audio", plots.OKABE_ITO[3]), ("video", plots.OKABE_ITO[2])):
        if name in weights:
            step_s = float(batch[f"{name}_step_s"][0])
            edges = np.arange(len(weights[name]) + 1) * step_s
            axes.stairs(
                weights[name],
                edges,
                baseline=None,
                color=colour,
                linewidth=1.2 if name == "audio" else 2,
                label=name,
            )
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    present = tables.names_of(study, study.parts["test"].targets[case.i]) or "none"
    axes.set(
        xlabel="time (s)",
        ylabel="attention (1 = equal)",
        title=f"{turn.utterance_id}: {present}" + (f" ({case.reason})" if case.reason else ""),
    )
    if "audio" in weights or "video" in weights:
        axes.legend(loc="upper right")


def shown_words(study, i, n):
    """The n words that the model reads of test clip i, and their (start_s, end_s); evenly spaced where not known."""
    dataset = study.clips("test")
    item = dataset[i, None]
    words = [dataset.word_store.vocabulary[k] for k in item["words"]]
    known = np.isfinite(item["times"]).all()
    return words, item["times"] if known else [(k, k + 1) for k in range(n)]


def draw_predictions(axes, study, case):
    """A map of probabilities, conditions by emotions; the emotions that are present are framed."""
    rows, values = [], []
    for row, outcome in study.outcomes.items():
        if row.first == "scratch" and row.inputs == study.present and row.anchor == study.c.ANCHOR:
            k = tables.best_seed(study, row)
            for inputs, logits in outcome.logits.items():
                if isinstance(inputs, tuple) and not (row.survives and study.c.ANCHOR in inputs):
                    rows.append(" + ".join(inputs) + " *" * row.survives)
                    values.append(sigmoid(logits[k, case.i]))
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(np.array(values)):
        axes.text(
            j,
            i,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value < 0.55 else "black",
        )
    for j in np.flatnonzero(study.parts["test"].targets[case.i]):
        axes.add_patch(
            plots.plt.Rectangle(
                (j - 0.5, -0.5), 1, len(rows), fill=False, edgecolor=plots.OKABE_ITO[3], linewidth=2
            )
        )
    axes.set_xticks(range(len(study.emotions)), study.emotions, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    return image
