"""Tables 1 and 2 of Khare et al. 2021, the ASR experiment of Section 4.1, and what goes beyond them.

`plan` lists every Row, a model that is trained with several initialisations; `conditions` what it is tested on; 07 does
both; `write` makes the tables. Percent; the published numbers stand beside ours. The figures are khare_figures.py.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from common import metrics
from common.corpora import mosei
from common.khare import metrics as khare_metrics
from common.khare.data import is_multilabel
from common.results import Cell, score_cell

SCORES = ("WA", "F1")
RECOGNISED = "recognised"  # the condition of the ASR experiment
# Table 1: happy, sad, anger, surprise, disgust, fear, average.
PUBLISHED = {
    "M-ELMo + NN (A+T)": {
        "WA": (67.0, 63.1, 65.8, 63.8, 74.2, 63.2, 66.2),
        "F1": (65.2, 72.0, 74.7, 83.3, 81.7, 85.1, 77.0),
    },
    "Graph-MFN": {
        "WA": (66.3, 60.4, 62.6, 53.7, 69.1, 62.0, 62.3),
        "F1": (66.3, 66.9, 72.8, 85.5, 76.6, 89.9, 76.3),
    },
    "baseline": {
        "WA": (67.4, 64.6, 68.2, 62.9, 74.8, 61.5, 66.6),
        "F1": (67.1, 72.5, 74.7, 88.1, 82.4, 86.5, 78.5),
    },
    "pretrained, full softmax": {
        "WA": (68.1, 65.1, 67.0, 65.1, 74.5, 64.5, 67.4),
        "F1": (68.1, 72.1, 74.4, 88.0, 82.3, 86.4, 78.6),
    },
    "pretrained, NCE": {
        "WA": (68.1, 64.3, 67.3, 65.1, 73.6, 63.0, 66.9),
        "F1": (68.2, 72.4, 74.8, 87.7, 82.4, 86.6, 78.7),
    },
}
# Table 2: averages of the baseline with missing inputs.
ABLATION = {
    ("text",): (64.5, 76.7),
    ("text", "audio"): (65.3, 78.1),
    ("text", "video"): (65.3, 78.5),
    ("text", "audio", "video"): (66.6, 78.5),
}
PAPER_WER = 29.0  # of Section 4.1's commercial recogniser
LABELS = {"scratch": "baseline", "softmax": "pretrained, full softmax", "nce": "pretrained, NCE"}


# ---- Rows ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A model: where its weights come from, and what it is trained on.

    first     "scratch", or the pretraining: "softmax", "nce"
    inputs    modalities that it is trained on
    anchor    modality that asks
    survives  with substitutes for missing modalities, trained on clips that lose some (not in the paper)
    """

    first: str
    inputs: tuple
    anchor: str
    survives: bool = False

    def slug(self):
        """Name of its folder, such as scratch_text+audio_anchor-text."""
        return f"{self.first}_{'+'.join(self.inputs)}_anchor-{self.anchor}" + "_survives" * self.survives


def subsets(names, having=None):
    """All non-empty choices of some modalities, in the order of MODALITIES, small ones first; `having`: one of each."""
    return [
        chosen
        for n in range(1, len(names) + 1)
        for chosen in combinations(names, n)
        if having is None or having in chosen
    ]


def plan(c, present):
    """Every Row that the tables need, those of Table 1 first. present: the modalities that training clips have."""
    rows = [Row(first, present, c.ANCHOR) for first in ("scratch", *(c.METHODS if c.PRETRAIN_CORPUS else ()))]
    if c.EXTRA:
        rows += [Row("scratch", inputs, c.ANCHOR) for inputs in subsets(present, c.ANCHOR)[:-1]]
        rows += [Row("scratch", present, c.ANCHOR, True)] if len(present) > 1 else []
        rows += [Row("scratch", present, name) for name in present if name != c.ANCHOR]
    return rows


def is_main(row, c, present):
    """Whether a Row is one of Table 1's."""
    return row.inputs == present and row.anchor == c.ANCHOR and not row.survives


def conditions(row, c, present):
    """The sets of modalities that a Row is tested with; all that it was trained on comes last."""
    if row.survives:
        return subsets(present)
    if row.inputs == present and row.first == "scratch":
        return subsets(present, row.anchor)
    return [row.inputs]


# ---- Scores --------------------------------------------------------------------------------


def best_seed(study, row):
    """The number of the initialisation that the dev set chooses (Section 4)."""
    return int(np.argmax(study.outcomes[row].dev))


def predictions(study, row, condition):
    """(S, N, E) bool of all initialisations on the test part."""
    return study.outcomes[row].logits[condition] > 0  # a probability above 0.5


def resampled(study, predicted):
    """{score: (R, E + 1)} on resamples of videos, {} where there is one video only."""
    test = study.parts["test"]
    if len(set(test.speakers)) < 2:
        return {}
    return khare_metrics.resampled(test.targets, predicted, test.speakers, study.c.N_RESAMPLES, 0)


def scores_of(study, predicted):
    """{score: (S, E + 1)} of predictions (S, N, E), in percent."""
    found = khare_metrics.scores(khare_metrics.confusion(study.parts["test"].targets, predicted))
    return {name: 100 * values for name, values in found.items()}


def cells_of(study, label, predicted, columns, papers=None):
    """Cells of one line: mean over runs and its interval.

    predicted  (S, N, E)
    columns    {heading: (score, place)}: which of khare_metrics.SCORES, and the number of the emotion, -1 = the average
    papers     {heading: published number}
    """
    found, drawn = scores_of(study, predicted), resampled(study, predicted)
    seeds = study.c.SEEDS if len(predicted) > 1 else ()
    cells = []
    for heading, (score, place) in columns.items():
        low, high = 100 * khare_metrics.interval(drawn[score][:, place]) if drawn else (None, None)
        cells.append(
            Cell(
                label,
                heading,
                found[score][:, place].tolist(),
                [(seed, "test") for seed in seeds],
                (papers or {}).get(heading),
                low,
                high,
                len(study.parts["test"]),
            )
        )
    return cells


def best_of(study, row, condition):
    """(1, N, E) predictions of the initialisation that dev chose."""
    k = best_seed(study, row)
    return predictions(study, row, condition)[k : k + 1]


def emotion_columns(study, scores=SCORES):
    """{"happy WA": ("WA", 0), ...}, the average last."""
    names = [*study.emotions, "average"]
    return {
        f"{name} {score}": (score, -1 if name == "average" else i)
        for i, name in enumerate(names)
        for score in scores
    }


def published(study, label):
    """{heading: number} of a row of Table 1, {} for other emotions."""
    if study.emotions != mosei.EMOTIONS or label not in PUBLISHED:
        return {}
    return {
        heading: PUBLISHED[label][score][place] for heading, (score, place) in emotion_columns(study).items()
    }


def note_of(study):
    """What every table says."""
    c, test = study.c, study.parts["test"]
    counts = ", ".join(f"{name} {n:,}" for name, n in zip(study.emotions, test.targets.sum(0)))
    return (
        f"WA = (TPR + TNR) / 2, F1 weighted by class size. Best: of {len(c.SEEDS)} initialisations the one with "
        f"the highest mean of average WA and F1 on dev, as in the paper; mean: over all of them. Test clips with "
        f"{counts}. {study.vectors.note}."
    )


# ---- Tables --------------------------------------------------------------------------------


def write(run, study):
    """All tables. study: Study of 07."""
    table_1(run, study)
    if len(study.main_rows) > 1:
        gain_table(run, study)
    if len(study.present) > 1:
        table_2(run, study)
    f1_table(run, study)
    if not is_multilabel(study.manifest):
        classes_table(run, study)
    if study.recognised is not None:
        asr_table(run, study)
    if study.pretrained:
        cost_table(run, study)


def table_1(run, study):
    """Table 1: baseline and pretraining, each emotion, best of the initialisations and their mean."""
    columns, cells = emotion_columns(study), []
    for label in ("M-ELMo + NN (A+T)", "Graph-MFN"):
        cells += [Cell(label, heading, paper=number) for heading, number in published(study, label).items()]
    for row in study.main_rows:
        label = LABELS[row.first]
        cells += cells_of(
            study, f"{label}, best", best_of(study, row, study.present), columns, published(study, label)
        )
    for row in study.main_rows:
        cells += cells_of(
            study, f"{LABELS[row.first]}, mean", predictions(study, row, study.present), columns
        )
    run.table("khare_table_1", f"Table 1. Emotion recognition, {run.corpus}", cells, note_of(study))


def gain_table(run, study):
    """What pretraining gains, paired: the same resamples of videos for both systems."""
    columns, cells = emotion_columns(study), []
    base = study.main_rows[0]
    for row in study.main_rows[1:]:
        for kind, of in (("best", best_of), ("mean", predictions)):
            ours, theirs = (of(study, system, study.present) for system in (row, base))
            cells += gain_cells(
                study,
                f"{LABELS[row.first]}, {kind}",
                ours,
                theirs,
                columns,
                published(study, LABELS[row.first]) if kind == "best" else {},
            )
    run.table(
        "khare_table_gain",
        f"Gain by pretraining, {run.corpus}",
        cells,
        f"Difference to the baseline in points, with the interval of the paired difference; paper: from its "
        f"Table 1. {note_of(study)}",
    )


def gain_cells(study, label, ours, theirs, columns, papers):
    """Cells of paired differences of (S, N, E) predictions, in points."""
    found, other = scores_of(study, ours), scores_of(study, theirs)
    drawn, other_drawn = resampled(study, ours), resampled(study, theirs)
    base, cells = published(study, "baseline"), []
    for heading, (score, place) in columns.items():
        low = high = None
        if drawn:
            low, high = 100 * khare_metrics.interval(drawn[score][:, place] - other_drawn[score][:, place])
        value = float(found[score][:, place].mean() - other[score][:, place].mean())
        paper = round(papers[heading] - base[heading], 1) if heading in papers else None
        cells.append(Cell(label, heading, [value], [], paper, low, high, len(study.parts["test"]), "points"))
    return cells


def average_cells(study, label, row, condition, paper=()):
    """Average WA and F1 of a Row under a condition: the best initialisation, and the mean of all."""
    papers = dict(zip(("WA", "F1"), paper)) if study.emotions == mosei.EMOTIONS else {}
    cells = cells_of(
        study, label, best_of(study, row, condition), {score: (score, -1) for score in SCORES}, papers
    )
    return cells + cells_of(
        study, label, predictions(study, row, condition), {f"{score}, mean": (score, -1) for score in SCORES}
    )


def table_2(run, study):
    """Table 2: the baseline with missing inputs; models trained without them; one that survives without the anchor."""
    c, cells = study.c, []
    for row in study.outcomes:
        for inputs in conditions(row, c, study.present):
            paper = ABLATION.get(inputs, ()) if is_main(row, c, study.present) and c.ANCHOR == "text" else ()
            label = table_2_label(row, inputs, c, study.present)
            if label:
                cells += average_cells(study, label, row, inputs, paper)
    run.table(
        "khare_table_2",
        f"Table 2. Missing inputs, {run.corpus}",
        cells,
        "Baseline: trained on all, the others are left out at test, as in the paper; without its anchor it has "
        "nothing to ask with. Trained on these: models that never had the others. Survives: trained vectors "
        f"stand in for a missing modality, and training clips lose theirs at a rate of {c.DROP_RATE:g}. Neither "
        "is in the paper. Anchor: the paper says that results with audio and video as anchors are similar, "
        f"without numbers. {note_of(study)}",
    )


def table_2_label(row, inputs, c, present):
    """The heading of a line of Table 2, "" for pretrained models."""
    names = " + ".join(inputs)
    if row.first != "scratch":
        return ""
    if row.survives:
        return f"survives: {names}"
    if row.anchor != c.ANCHOR:
        return f"anchor {row.anchor}: {names}"
    return f"baseline: {names}" if is_main(row, c, present) else f"trained on these: {names}"


def f1_table(run, study):
    """F1 in three ways beside a classifier that finds nothing: weighted F1 flatters rare emotions."""
    kinds, cells, test = ("F1", "macro F1", "positive F1"), [], study.parts["test"]
    for kind in kinds:
        columns = {
            heading.removesuffix(f" {kind}"): where
            for heading, where in emotion_columns(study, (kind,)).items()
        }
        name = "weighted F1" if kind == "F1" else kind
        for row in study.main_rows:
            cells += cells_of(
                study, f"{name}: {LABELS[row.first]}, best", best_of(study, row, study.present), columns
            )
        cells += cells_of(
            study, f"{name}: no emotion in any clip", np.zeros((1, *test.targets.shape), bool), columns
        )
    run.table(
        "khare_table_f1",
        f"F1 in three ways, {run.corpus}",
        cells,
        f"Weighted: mean over absent and present, by class size; macro: plain mean of the two; positive: of the "
        f"present class alone. Not in the paper. {note_of(study)}",
    )


def classes_table(run, study):
    """Of a corpus with one label per clip: the most probable of all classes, to compare with other classifiers."""
    y, cells = study.parts["test"].targets.argmax(1), []
    for row in study.outcomes:
        found = study.outcomes[row].logits[row.inputs].argmax(2)  # (S, N)
        runs = {(seed, "test"): (slice(i, i + 1), np.arange(len(y))) for i, seed in enumerate(study.c.SEEDS)}
        for column, metric in (
            ("accuracy", metrics.accuracy),
            ("UAR", metrics.unweighted_recall),
            ("weighted F1", metrics.weighted_f1),
        ):
            cells.append(
                score_cell(
                    row.slug(),
                    column,
                    metric,
                    y,
                    found,
                    study.parts["test"].speakers,
                    runs,
                    study.c.N_RESAMPLES,
                )
            )
    majority, equal = metrics.chance(y, len(study.emotions))
    run.table(
        "khare_table_classes",
        f"The most probable class, {run.corpus}",
        cells,
        f"Not in the paper. All initialisations, none chosen. Chance {100 * majority:.1f} % (majority class), "
        f"{100 * equal:.1f} % (1 / C). {study.vectors.note}.",
    )


def asr_table(run, study):
    """Section 4.1: the models of Table 1 on recognised instead of reference words."""
    cells = []
    wer = Cell(
        "words",
        "word error rate",
        [100 * study.recognised["wer"]],
        paper=PAPER_WER if study.emotions == mosei.EMOTIONS else None,
        digits=1,
    )
    for row in study.main_rows:
        label = LABELS[row.first]
        cells += average_cells(study, f"{label}: reference", row, study.present)
        cells += average_cells(study, f"{label}: recognised", row, RECOGNISED)
        lost = gain_cells(
            study,
            f"{label}: recognised",
            best_of(study, row, RECOGNISED),
            best_of(study, row, study.present),
            {f"change in {s}": (s, -1) for s in SCORES},
            {},
        )
        cells += lost
    run.table(
        "khare_table_asr",
        f"Recognised words, {run.corpus}",
        [*cells, wer],
        f"Trained on reference transcripts, tested on {study.recognised['what']}; the paper observed no "
        f"degradation. Change: of the best, paired, in points. {note_of(study)}",
    )


def cost_table(run, study):
    """What the two pretrainings cost and how well they find hidden words."""
    cells = []
    for method, (_, history) in study.pretrained.items():
        row, log, best = LABELS[method], history["log"], history["log"][history["best_epoch"] - 1]
        seconds = history["seconds"] / len(log)
        for column, value, unit, digits in (
            ("an epoch", seconds, "s", 2),
            ("a step", 1000 * seconds / history["steps_per_epoch"], "ms", 1),
            ("best epoch", history["best_epoch"], "", 0),
            ("held-out loss", best["valid_loss"], "", 3),
            ("perplexity", float(np.exp(best["valid_loss"])), "", 1),
            ("hidden words found", 100 * best["valid_accuracy"], "%", 2),
        ):
            cells.append(Cell(row, column, [value], unit=unit, digits=digits))
    facts = study.pretraining_facts
    cells.append(Cell("always the most frequent word", "hidden words found", [100 * facts["majority"]]))
    cells.append(
        Cell("word frequencies alone", "perplexity", [facts["unigram_perplexity"]], unit="", digits=1)
    )
    run.table(
        "khare_table_cost",
        f"Pretraining on {facts['corpus']}",
        cells,
        f"{facts['clips']:,} clips, {facts['held_out']:,} held out; vocabulary {facts['vocabulary']:,} words "
        f"(the paper: 88,000), {facts['parameters'] / 1e6:.1f} million parameters with the output layer. Loss "
        "and perplexity are of the full softmax for both, per hidden word. An epoch includes its held-out loss.",
    )


# ---- predictions.csv -----------------------------------------------------------------------


def prediction_rows(study):
    """Rows of predictions.csv: all initialisations of Table 1, of other systems the one that dev chose.

    y_true and y_pred name the emotions, such as "happy+sad", "" = none.
    """
    for row, outcome in study.outcomes.items():
        for condition in outcome.logits:
            predicted = predictions(study, row, condition)
            name = condition if isinstance(condition, str) else "+".join(condition)
            whole = is_main(row, study.c, study.present) and condition == study.present
            for k in range(len(predicted)) if whole else [best_seed(study, row)]:
                for turn, true, found in zip(
                    study.parts["test"].turns, study.parts["test"].targets, predicted[k]
                ):
                    yield {
                        "utterance_id": turn.utterance_id,
                        "speaker": turn.speaker,
                        "fold": "test",
                        "seed": study.c.SEEDS[k],
                        "system": f"{row.slug()}: {name}",
                        "y_true": names_of(study, true),
                        "y_pred": names_of(study, found),
                    }


def names_of(study, present):
    return "+".join(name for name, is_there in zip(study.emotions, present) if is_there)
