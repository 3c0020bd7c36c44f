"""Tables 1 and 2 of Khare et al. 2021, the ASR experiment of Section 4.1, and what goes beyond them.

`plan` lists every Row, a model that is trained with several initialisations, `conditions` what it is tested
on; 07 does both, `write` makes the tables. Percent.

Emotions are not exclusive: each is a binary task of its own. WA is what the literature of CMU-MOSEI calls
weighted accuracy, (TP * N / P + TN) / (2 N) = (TPR + TNR) / 2 for P positive and N negative clips. Its F1 is
weighted by how often each class occurs, which flatters rare emotions: "no" for every clip has a high one.
N clips, E emotions, S initialisations, K videos, R resamples.
"""

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from common import metrics
from common.corpora import mosei
from common.khare.data import Part
from common.results import PREDICTION_COLUMNS, Cell, paper_figures, score_cells

SCORES = {  # of confusion counts (..., 2, 2), true class by row
    "WA": metrics.unweighted_recall,
    "F1": metrics.weighted_f1,
    "macro F1": metrics.macro_f1,
    "positive F1": lambda counts: metrics.f1(counts)[..., 1],
}
MAIN = ("WA", "F1")  # the paper's
RECOGNISED = "recognised"  # the condition of the ASR experiment
LABELS = {"scratch": "baseline", "softmax": "pretrained, full softmax", "nce": "pretrained, NCE"}
PAPER = paper_figures(Path(__file__).with_name("paper.csv"))


# ---- Rows ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A model: where its weights come from, and what it is trained on.

    first   "scratch", or the pretraining: "softmax", "nce"
    inputs  modalities that it is trained on
    anchor  the query modality
    robust  with substitutes for missing modalities, trained on clips that lose some (not in the paper)
    """

    first: str
    inputs: tuple
    anchor: str
    robust: bool = False

    def slug(self):
        """Name of its folder, such as scratch_text+audio_anchor-text."""
        return f"{self.first}_{'+'.join(self.inputs)}_anchor-{self.anchor}" + "_robust" * self.robust


def subsets(names, having=""):
    """All non-empty choices of some modalities, small ones first; `having`: one that each must have."""
    chosen = [some for n in range(1, len(names) + 1) for some in combinations(names, n)]
    return [some for some in chosen if not having or having in some]


def plan(inputs, anchor, methods, beyond_paper):
    """Every Row that the tables need, those of Table 1 first; inputs: modalities that training clips have."""
    rows = [Row(first, inputs, anchor) for first in ("scratch", *methods)]
    if beyond_paper:
        rows += [Row("scratch", some, anchor) for some in subsets(inputs, anchor)[:-1]]
        rows += [Row("scratch", inputs, name) for name in inputs if name != anchor]
        rows += [Row("scratch", inputs, anchor, robust=True)] if len(inputs) > 1 else []
    return rows


def conditions(row, inputs):
    """The sets of modalities that a Row is tested with; all that it was trained on comes last."""
    if row.robust:
        return subsets(inputs)
    return subsets(inputs, row.anchor) if row.inputs == inputs and row.first == "scratch" else [row.inputs]


def is_main(row, inputs, anchor):
    """Whether a Row is one of Table 1's."""
    return (row.inputs, row.anchor, row.robust) == (inputs, anchor, False)


def named(condition):
    return "+".join(condition)


# ---- Scores (Section 4) --------------------------------------------------------------------


def confusion(y_true, y_pred, member=None):
    """Counts (..., E, 2, 2) of true class (row) against predicted class of y_true (N, E), y_pred (..., N, E).

    member  (N,) number of each clip's video: then (K, ..., E, 2, 2), the counts of each video
    """
    y_true, y_pred = np.asarray(y_true, bool), np.asarray(y_pred, bool)
    videos = np.zeros(len(y_true), int) if member is None else member
    n_videos, n_emotions = videos.max(initial=0) + 1, y_true.shape[1]
    cell = (videos[:, None] * n_emotions + np.arange(n_emotions)) * 4 + 2 * y_true + y_pred  # (..., N, E)
    size = n_videos * n_emotions * 4
    counts = np.stack([np.bincount(run, minlength=size) for run in cell.reshape(-1, y_true.size)])
    counts = counts.reshape(*y_pred.shape[:-2], n_videos, n_emotions, 2, 2).astype(float)
    return counts[..., 0, :, :, :] if member is None else np.moveaxis(counts, y_pred.ndim - 2, 0)


def scores(counts):
    """All SCORES of counts (..., E, 2, 2): name -> (..., E + 1), the last one being the average."""
    found = {name: score(counts) for name, score in SCORES.items()}  # (..., E)
    return {name: np.concatenate([x, x.mean(-1, keepdims=True)], -1) for name, x in found.items()}


def selection_score(y_true, y_pred):
    """What chooses on dev (Sec. 4), of y_true and y_pred (N, E): the mean of average WA and average F1."""
    found = scores(confusion(y_true, y_pred))
    return (found["WA"][..., -1] + found["F1"][..., -1]) / 2


def resampled(y_true, y_pred, videos, n_resamples, seed=0):
    """Scores on resamples of whole videos, drawn with replacement: clips of one video are not independent.

    y_pred  (S, N, E): the scores of runs are averaged within each resample
    Returns name -> (R, E + 1). The same seed draws the same resamples, so that the difference of two systems'
    results is that of a paired bootstrap. {} with a single video.
    """
    names, member = np.unique(np.asarray(videos), return_inverse=True)
    if len(names) < 2:
        return {}
    counts = confusion(y_true, y_pred, member)  # (K, S, E, 2, 2)
    equal = np.full(len(names), 1 / len(names))
    draws = np.random.default_rng(seed).multinomial(len(names), equal, n_resamples).astype(float)
    return {name: x.mean(1) for name, x in scores(np.tensordot(draws, counts, 1)).items()}


def interval(values):
    """The 95 % percentile interval (low, high) of resampled scores (R,), in percent."""
    return 100 * np.quantile(values, [0.025, 0.975])


# ---- What was found ------------------------------------------------------------------------


@dataclass
class Results:
    """What the tables show."""

    emotions: tuple
    test: Part  # that is tested
    inputs: tuple  # modalities that training clips have
    anchor: str  # the query modality
    seeds: tuple
    n_resamples: int
    outcomes: dict  # {Row: what train_and_test found, by seed}
    pretrained: dict = field(default_factory=dict)  # {method: history of its training}
    pretraining: dict = field(default_factory=dict)  # data.vocabulary_facts
    recognised: tuple | None = None  # word error rate, whose words they are
    note: str = ""  # of the word vectors

    @property
    def main(self):
        """The Rows of Table 1."""
        return [row for row in self.outcomes if is_main(row, self.inputs, self.anchor)]

    def best(self, row):
        """The number of the initialisation that the dev set chooses (Section 4)."""
        return int(np.argmax([outcome["history"]["best"] for outcome in self.outcomes[row]]))

    def conditions(self, row):
        """Names of what a Row was tested on."""
        return list(self.outcomes[row][0]["tests"])

    def logits(self, row, condition):
        """(S, N, E) of all initialisations."""
        return np.array([outcome["tests"][condition]["outputs"]["logits"] for outcome in self.outcomes[row]])

    def predicted(self, row, condition, kind="mean"):
        """(S, N, E) bool; kind "best": (1, N, E) of the chosen initialisation. A probability above 0.5."""
        found = self.logits(row, condition) > 0
        return found[[self.best(row)]] if kind == "best" else found

    def columns(self, kinds=MAIN):
        """{"happy WA": ("WA", 0), ...}, the average last, whose number is -1."""
        places = {name: place for place, name in enumerate(self.emotions)} | {"average": -1}
        return {f"{name} {kind}": (kind, place) for name, place in places.items() for kind in kinds}

    def paper(self, table, row):
        """{column: the paper's number} of a row of a table, {} for other emotions."""
        found = {c: value for (t, r, c), value in PAPER.items() if (t, r) == (table, row)}
        return found if self.emotions == mosei.EMOTIONS else {}

    def cells(self, label, predicted, columns, papers=None, theirs=None):
        """Cells of a line: mean over runs and its interval; with `theirs`, paired differences, in points.

        predicted, theirs  (S, N, E)
        columns            {heading: (score, number of the emotion)}
        """
        y, videos = self.test.targets, self.test.speakers
        found, drawn = scores(confusion(y, predicted)), resampled(y, predicted, videos, self.n_resamples)
        if theirs is not None:
            base, other = scores(confusion(y, theirs)), resampled(y, theirs, videos, self.n_resamples)
            found = {name: found[name].mean(0, keepdims=True) - base[name].mean(0) for name in found}
            drawn = {name: drawn[name] - other[name] for name in drawn}
        runs = [(seed, "test") for seed in self.seeds] if len(predicted) > 1 and theirs is None else []
        cells = []
        for heading, (score, place) in columns.items():
            limits = interval(drawn[score][:, place]) if drawn else (None, None)
            values, paper = (100 * found[score][:, place]).tolist(), (papers or {}).get(heading)
            unit = "%" if theirs is None else "points"
            cells.append(Cell(label, heading, values, runs, paper, *limits, len(y), unit))
        return cells

    def averages(self, label, row, condition, papers=None):
        """Average WA and F1 of a Row under a condition: the best initialisation, and the mean of all."""
        best = self.predicted(row, condition, "best")
        cells = self.cells(label, best, {kind: (kind, -1) for kind in MAIN}, papers)
        every = self.predicted(row, condition)
        return cells + self.cells(label, every, {f"{kind}, mean": (kind, -1) for kind in MAIN})

    def caption(self):
        """What every table says."""
        counts = ", ".join(f"{n} {count:,}" for n, count in zip(self.emotions, self.test.targets.sum(0)))
        return (
            f"WA = (TPR + TNR) / 2, F1 weighted by class size. Best: of {len(self.seeds)} initialisations "
            "that with the highest mean of average WA and F1 on dev, as in the paper; mean: over them all. "
            f"Intervals resample test videos. Test clips with {counts}. {self.note}."
        )


# ---- Tables --------------------------------------------------------------------------------


def write(run, results, multilabel):
    """All tables; multilabel: whether a clip can have several emotions."""
    wanted = {
        table_1: True,
        gain_table: len(results.main) > 1,
        table_2: len(results.inputs) > 1,
        f1_table: True,
        classes_table: not multilabel,
        asr_table: results.recognised,
        cost_table: results.pretrained,
    }
    for table in (table for table, is_wanted in wanted.items() if is_wanted):
        table(run, results)


def table_1(run, results):
    """Table 1: baseline and pretraining, each emotion, best of the initialisations and their mean."""
    cells, whole = [], named(results.inputs)
    for label in ("M-ELMo + NN (A+T)", "Graph-MFN"):
        papers = results.paper("1", label)
        cells += [Cell(label, heading, paper=papers[heading]) for heading in papers]
    for kind in ("best", "mean"):
        for row in results.main:
            label, found = LABELS[row.first], results.predicted(row, whole, kind)
            papers = results.paper("1", label) if kind == "best" else None
            cells += results.cells(f"{label}, {kind}", found, results.columns(), papers)
    run.table("khare_table_1", f"Table 1. Emotion recognition, {run.corpus}", cells, results.caption())


def gain_table(run, results):
    """What pretraining gains, paired: the same resamples of videos for both systems."""
    cells, whole, base = [], named(results.inputs), results.main[0]
    for row in results.main[1:]:
        label, before = LABELS[row.first], results.paper("1", LABELS["scratch"])
        papers = {c: round(x - before[c], 1) for c, x in results.paper("1", label).items()}
        for kind, paper in (("best", papers), ("mean", None)):
            found, theirs = (results.predicted(system, whole, kind) for system in (row, base))
            cells += results.cells(f"{label}, {kind}", found, results.columns(), paper, theirs)
    note = "Difference to the baseline in points, with its paired interval; paper: from its Table 1."
    title = f"Gain by pretraining, {run.corpus}"
    run.table("khare_table_gain", title, cells, f"{note} {results.caption()}")


def table_2(run, results):
    """Table 2: the baseline with missing inputs; models trained without them; models without text."""
    cells = []
    for row in results.outcomes:
        kind = "baseline" if row in results.main else "trained on these"
        kind = f"anchor {row.anchor}" if row.anchor != results.anchor else "robust" if row.robust else kind
        for condition in results.conditions(row):
            if row.first == "scratch" and condition != RECOGNISED:
                names = condition.replace("+", " + ")
                papers = results.paper("2", names) if kind == "baseline" and row.anchor == "text" else None
                cells += results.averages(f"{kind}: {names}", row, condition, papers)
    note = (
        "Baseline: trained on all, the others are left out at test, as in the paper; without its anchor, the "
        "query modality, nothing is left. Trained on these: models that never had the others. Anchor: alike "
        "in the paper, which has no numbers. Robust: trained vectors stand in for a missing "
        "modality, and training clips lose theirs at a rate of DROP_RATE; not in the paper."
    )
    title = f"Table 2. Missing inputs, {run.corpus}"
    run.table("khare_table_2", title, cells, f"{note} {results.caption()}")


def f1_table(run, results):
    """F1 in three ways beside a classifier that finds nothing: weighted F1 flatters rare emotions."""
    cells, never = [], np.zeros((1, *results.test.targets.shape), bool)
    for kind in ("F1", "macro F1", "positive F1"):
        columns = {c.removesuffix(f" {kind}"): where for c, where in results.columns((kind,)).items()}
        name = "weighted F1" if kind == "F1" else kind
        for row in results.main:
            found = results.predicted(row, named(results.inputs), "best")
            cells += results.cells(f"{name}: {LABELS[row.first]}, best", found, columns)
        cells += results.cells(f"{name}: no emotion in any clip", never, columns)
    note = (
        "Weighted: mean of absent and present by class size; macro: plain mean; positive: of present alone."
    )
    title = f"F1 in three ways, {run.corpus}"
    run.table("khare_table_f1", title, cells, f"{note} {results.caption()}")


def classes_table(run, results):
    """Of a corpus with one label per clip: the most probable of all classes, as other classifiers choose."""
    y, cells = results.test.targets.argmax(1), []
    for row in results.outcomes:
        found = results.logits(row, named(row.inputs)).argmax(2)  # (S, N)
        every = {(seed, "test"): (slice(i, i + 1), np.arange(len(y))) for i, seed in enumerate(results.seeds)}
        cells += score_cells(
            row.slug(), metrics.METRICS, y, found, results.test.speakers, every, results.n_resamples
        )
    majority, equal = metrics.chance(y, len(results.emotions))
    note = (
        f"Not in the paper. All initialisations, none chosen; the loss is balanced. Chance "
        f"{100 * majority:.1f} % (majority class), {100 * equal:.1f} % (1 / C). {results.note}."
    )
    run.table("khare_table_classes", f"The most probable class, {run.corpus}", cells, note)


def asr_table(run, results):
    """Section 4.1: the models of Table 1 on recognised instead of reference words."""
    cells, whole = [], named(results.inputs)
    changes = {f"change in {kind}": (kind, -1) for kind in MAIN}
    for row in results.main:
        label = LABELS[row.first]
        cells += results.averages(f"{label}: reference", row, whole)
        cells += results.averages(f"{label}: recognised", row, RECOGNISED)
        after, before = (results.predicted(row, condition, "best") for condition in (RECOGNISED, whole))
        cells += results.cells(f"{label}: recognised", after, changes, None, before)
    wer, words = results.recognised
    paper = results.paper("asr", "words").get("word error rate")
    cells.append(Cell("words", "word error rate", [100 * wer], paper=paper, digits=1))
    note = f"Trained on reference transcripts, tested on {words}. Change: of the best, paired, in points."
    run.table("khare_table_asr", f"Recognised words, {run.corpus}", cells, f"{note} {results.caption()}")


def cost_table(run, results):
    """What the two pretrainings cost and how well they find hidden words."""
    cells, facts = [], results.pretraining
    for method, history in results.pretrained.items():
        log, best = history["log"], history["log"][history["best_epoch"] - 1]
        seconds = history["seconds"] / len(log)
        for column, value, unit, digits in (
            ("an epoch", seconds, "s", 2),
            ("a step", 1000 * seconds / history["steps_per_epoch"], "ms", 1),
            ("best epoch", history["best_epoch"], "", 0),
            ("held-out loss", best["valid_loss"], "", 3),
            ("perplexity", float(np.exp(best["valid_loss"])), "", 1),
            ("hidden words found", 100 * best["valid_accuracy"], "%", 2),
        ):
            cells.append(Cell(LABELS[method], column, [value], unit=unit, digits=digits))
    cells.append(Cell("always the most frequent word", "hidden words found", [100 * facts["majority"]]))
    perplexity = [facts["unigram_perplexity"]]
    cells.append(Cell("word frequencies alone", "perplexity", perplexity, unit="", digits=1))
    note = (
        f"{facts['clips']:,} clips, {facts['held_out']:,} held out; {facts['vocabulary']:,} words (paper: "
        f"88,000), {history['parameters'] / 1e6:.1f} million parameters with the output layer. Loss and "
        "perplexity are of the full softmax for both, per hidden word. An epoch includes its held-out loss."
    )
    run.table("khare_table_cost", f"Pretraining on {facts['corpus']}", cells, note)


def prediction_rows(results):
    """Rows of predictions.csv: all initialisations of Table 1, of other systems the one that dev chose.

    y_true and y_pred name the emotions, such as "happy+sad", "" = none.
    """
    test = results.test
    for row in results.outcomes:
        for condition in results.conditions(row):
            found = results.predicted(row, condition)
            every = row in results.main and condition == named(results.inputs)
            for k in range(len(found)) if every else [results.best(row)]:
                system = "test", results.seeds[k], f"{row.slug()}: {condition}"
                for i, clip_id in enumerate(test.ids):
                    names = (
                        names_of(results.emotions, present) for present in (test.targets[i], found[k, i])
                    )
                    yield dict(zip(PREDICTION_COLUMNS, (clip_id, test.speakers[i], *system, *names)))


def names_of(emotions, present):
    return "+".join(name for name, is_there in zip(emotions, present) if is_there)
