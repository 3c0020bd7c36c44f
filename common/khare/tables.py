"""Tables 1 and 2 of Khare et al. 2021, the ASR experiment of Section 4.1, and what goes beyond them.

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
from common.khare.data import Corpus
from common.results import PREDICTION_COLUMNS, Cell, paper_figures

SCORES = {  # of confusion counts (..., C, C), true class by row
    **metrics.METRICS,
    "WA": metrics.unweighted_recall,
    "F1": metrics.weighted_f1,
    "positive F1": lambda counts: metrics.f1(counts)[..., 1],
}
MAIN = ("WA", "F1")  # the paper's
ALL = slice(None)  # emotions
RECOGNISED = "recognised"  # the condition of the ASR experiment
TFIDF = "TF-IDF words, linear"
LABELS = {"scratch": "baseline", "softmax": "pretrained, full softmax", "nce": "pretrained, NCE"}
PAPER = paper_figures(Path(__file__).with_name("paper.csv"))


# ---- Rows ----------------------------------------------------------------------------------


def named(condition):
    return "+".join(condition)


@dataclass(frozen=True)
class Row:
    """A model: where its weights come from, and what it is trained on."""

    first: str  # "scratch", or the pretraining: "softmax", "nce"
    inputs: tuple  # modalities that it is trained on
    anchor: str  # the query modality
    robust: bool = False  # with substitutes for missing modalities (not in the paper)

    def slug(self):
        """Name of its folder, such as scratch_text+audio_anchor-text."""
        return f"{self.first}_{named(self.inputs)}_anchor-{self.anchor}" + "_robust" * self.robust


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


# ---- Scores (Section 4) --------------------------------------------------------------------


def averaged(score, y_true, y_pred, n_classes=2):
    """One of SCORES, averaged over E tasks; y_true and y_pred (N, E) integers or bool."""
    counts = [metrics.confusion(*pair, n_classes) for pair in zip(y_true.T, y_pred.T)]  # (E, C, C)
    return float(SCORES[score](np.array(counts)).mean())


def selection_score(y_true, y_pred):
    """What chooses on dev (Sec. 4), of y_true and y_pred (N, E): the mean of average WA and average F1."""
    return sum(averaged(score, y_true, y_pred) for score in MAIN) / 2


def resampled(score, y_true, y_pred, videos, n_resamples, n_classes=2):
    """An average over S runs and E tasks, of y_pred (S, N, E), on resamples of whole videos and of runs (R,).

    Runs are drawn with replacement too, since others would have another mean; the factor makes up for what a
    bootstrap of few loses. The same videos and runs are drawn for each system.
    """
    n_runs, tasks = len(y_pred), np.tile(y_true.T, (len(y_pred), 1)).astype(int)  # (S * E, N)
    found = y_pred.swapaxes(1, 2).reshape(tasks.shape).astype(int)
    each = metrics.resampled(SCORES[score], tasks, found, videos, n_resamples, 0, n_classes)  # (R, S * E)
    each, equal = each.reshape(n_resamples, n_runs, -1).mean(-1), np.full(n_runs, 1 / n_runs)
    drawn = np.random.default_rng(1).multinomial(n_runs, equal, n_resamples) / n_runs  # (R, S)
    factor = (n_runs / max(1, n_runs - 1)) ** 0.5
    return (each * (equal + factor * (drawn - equal))).sum(1)


# ---- What was found ------------------------------------------------------------------------


@dataclass
class Results:
    """What the tables show."""

    corpus: Corpus  # whose test part was predicted
    anchor: str  # the query modality
    seeds: tuple
    n_resamples: int
    outcomes: dict  # {Row: what train_and_test found, by seed}
    pretrained: dict = field(default_factory=dict)  # {method: history of its training}
    pretraining: dict = field(default_factory=dict)  # data.vocabulary_facts
    recognised: tuple | None = None  # word error rate, whose words they are
    tfidf: np.ndarray | None = None  # data.tfidf_logits

    def __post_init__(self):
        self.emotions, self.inputs = self.corpus.emotions, self.corpus.inputs
        self.test, self.note = self.corpus.parts["test"], self.corpus.vectors.note

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

    def predicted(self, row, condition="", kind="mean"):
        """(S, N, E) bool, a probability above 0.5; kind "best": (1, N, E) of the chosen initialisation."""
        found = self.logits(row, condition or named(self.inputs)) > 0
        return found[[self.best(row)]] if kind == "best" else found

    def columns(self):
        """{"happy WA": ("WA", its column), ..., "average F1": ("F1", ALL)}."""
        places = {name: slice(i, i + 1) for i, name in enumerate(self.emotions)} | {"average": ALL}
        return {f"{name} {kind}": (kind, place) for name, place in places.items() for kind in MAIN}

    def paper(self, table, row):
        """{column: the paper's number} of a row of a table, {} for other emotions."""
        found = {c: value for (t, r, c), value in PAPER.items() if (t, r) == (table, row)}
        return found if self.emotions == mosei.EMOTIONS else {}

    def cells(self, label, predicted, columns, papers=None, theirs=None, classes=None):
        """Cells of a line: mean over runs and its interval; with `theirs`, paired differences, in points.

        predicted, theirs  (S, N, E)
        columns            {heading: (score, a slice of the emotions, whose scores are averaged)}
        classes            (N, 1), the class of each clip, in place of its emotions; predicted (S, N, 1)
        """
        y, n_classes = (self.test.targets, 2) if classes is None else (classes, len(self.emotions))
        unit, runs = "points" if theirs is not None else "%", [(seed, "test") for seed in self.seeds]
        cells = []
        for heading, (score, place) in columns.items():
            about = score, y[:, place], n_classes
            values, drawn = self.measured(predicted[..., place], *about)
            if theirs is not None:
                others = self.measured(theirs[..., place], *about)
                values, drawn = values - others[0], drawn - others[1]
            own, limits = runs if len(values) > 1 else [], np.quantile(drawn, [0.025, 0.975])
            paper = (papers or {}).get(heading)
            cells.append(Cell(label, heading, values.tolist(), own, paper, *limits, len(y), unit))
        return cells

    def measured(self, predicted, score, y, n_classes):
        """A score in % of each run (S,), and of their mean on resamples (R,); predicted (S, N, E)."""
        values = np.array([averaged(score, y, run, n_classes) for run in predicted])
        drawn = resampled(score, y, predicted, self.test.speakers, self.n_resamples, n_classes)
        return 100 * values, 100 * drawn

    def averages(self, label, row, condition, papers=None):
        """Average WA and F1 of a Row under a condition: the best initialisation, and the mean of all."""
        best, mean = ({name + more: (name, ALL) for name in MAIN} for more in ("", ", mean"))
        cells = self.cells(label, self.predicted(row, condition, "best"), best, papers)
        return cells + self.cells(label, self.predicted(row, condition), mean)

    def write(self, run, stem, title, cells, note=""):
        """One table, with what most of them say below it."""
        note += (
            f" WA = (TPR + TNR) / 2, F1 weighted by class size. Best: of {len(self.seeds)} initialisations "
            "that with the highest mean of average WA and F1 on dev, as in the paper; mean: over them all. "
            f"Intervals resample test videos, and the initialisations of a mean. {self.note}."
        )
        run.table(f"khare_table_{stem}", f"{title}, {run.corpus}", cells, note)


# ---- Tables --------------------------------------------------------------------------------


def write(run, results, multilabel):
    """All tables; multilabel: whether a clip can have several emotions."""
    corpus_table(run, results)
    table_1(run, results)
    if len(results.main) > 1:
        gain_table(run, results)
    if len(results.inputs) > 1:
        table_2(run, results)
    f1_table(run, results)
    if not multilabel:
        classes_table(run, results)
    if results.recognised:
        asr_table(run, results)
    if results.pretrained:
        cost_table(run, results)


def corpus_table(run, results):
    """Clips of each part, and how often each emotion is present, beside the paper's counts (Sec. 3.1)."""
    counts = {part: [len(own.targets), *own.targets.sum(0)] for part, own in results.corpus.parts.items()}
    counts["all"], cells = np.sum([*counts.values()], 0), []
    for i, row in enumerate(("clips", *results.emotions)):
        papers = results.paper("corpus", row)
        for column, n in counts.items():
            cells.append(Cell(row, column, [float(n[i])], paper=papers.get(column), unit="", digits=0))
    run.table("khare_table_corpus", f"Clips, {run.corpus}", cells)


def table_1(run, results):
    """Table 1: baseline and pretraining, each emotion, best of the initialisations and their mean."""
    cells = []
    for label in ("M-ELMo + NN (A+T)", "Graph-MFN"):
        cells += [Cell(label, name, paper=paper) for name, paper in results.paper("1", label).items()]
    for kind in ("best", "mean"):
        for row in results.main:
            label = LABELS[row.first]
            papers = results.paper("1", label) if kind == "best" else None
            found = results.predicted(row, kind=kind)
            cells += results.cells(f"{label}, {kind}", found, results.columns(), papers)
    if results.tfidf is not None:
        cells += results.cells(TFIDF, results.tfidf > 0, results.columns())
    results.write(run, "1", "Table 1. Emotion recognition", cells)


def gain_table(run, results):
    """What pretraining gains, paired: the same resamples of videos and initialisations for both systems."""
    cells, base, before = [], results.main[0], results.paper("1", LABELS["scratch"])
    for row in results.main[1:]:
        label = LABELS[row.first]
        papers = {c: round(x - before[c], 1) for c, x in results.paper("1", label).items()}
        for kind, paper in (("best", papers), ("mean", None)):
            found, theirs = (results.predicted(system, kind=kind) for system in (row, base))
            cells += results.cells(f"{label}, {kind}", found, results.columns(), paper, theirs)
    note = "Difference to the baseline in points, with its paired interval; paper: from its Table 1."
    results.write(run, "gain", "Gain by pretraining", cells, note)


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
    results.write(run, "2", "Table 2. Missing inputs", cells, note)


def f1_table(run, results):
    """F1 in three ways beside a classifier that finds nothing: weighted F1 flatters rare emotions."""
    columns = {kind: (kind, ALL) for kind in ("weighted F1", "macro F1", "positive F1")}
    found = {f"{LABELS[row.first]}, best": results.predicted(row, kind="best") for row in results.main}
    found["no emotion in any clip"] = np.zeros((1, *results.test.targets.shape), bool)
    cells = [cell for label, predicted in found.items() for cell in results.cells(label, predicted, columns)]
    note = "Weighted: mean of absent and present by size; macro: plain mean; positive: of present alone."
    results.write(run, "f1", "F1 in three ways", cells, note)


def classes_table(run, results):
    """Of a corpus with one label per clip: the most probable of all classes, as other classifiers choose.

    The loss is balanced (Sec. 3.1), as if each class were there in half of the clips: true odds are added.
    """
    share, y = results.corpus.parts["train"].targets.mean(0), results.test.targets.argmax(1)[:, None]
    logits = {row: results.logits(row, named(row.inputs)) for row in results.outcomes}  # (S, N, E)
    logits |= {} if results.tfidf is None else {TFIDF: results.tfidf}
    found = {row: (x + np.log(share / (1 - share))).argmax(2)[..., None] for row, x in logits.items()}
    cells, base = [], results.main[0]
    for row, classes in found.items():  # (S, N, 1)
        label, columns = row if row == TFIDF else row.slug(), {name: (name, ALL) for name in metrics.METRICS}
        cells += results.cells(label, classes, columns, classes=y)
    gains = {f"gain in {name}": (name, ALL) for name in metrics.METRICS}
    for row in results.main[1:]:
        label = f"{LABELS[row.first]} - {LABELS[base.first]}"
        cells += results.cells(label, found[row], gains, theirs=found[base], classes=y)
    note = (
        "Not in the paper. All initialisations; classes weigh as in the training part. Intervals resample "
        f"videos and initialisations. {metrics.chance_text(y[:, 0], len(results.emotions))} {results.note}."
    )
    run.table("khare_table_classes", f"The most probable class, {run.corpus}", cells, note)


def asr_table(run, results):
    """Section 4.1: the models of Table 1 on recognised instead of reference words."""
    cells, changes = [], {f"change in {score}": (score, ALL) for score in MAIN}
    for row in results.main:
        label = LABELS[row.first]
        cells += results.averages(f"{label}: reference", row, named(results.inputs))
        cells += results.averages(f"{label}: recognised", row, RECOGNISED)
        before, after = (results.predicted(row, condition, "best") for condition in ("", RECOGNISED))
        cells += results.cells(f"{label}: recognised", after, changes, None, before)
    wer, words = results.recognised
    paper = results.paper("asr", "words").get("word error rate")
    cells.append(Cell("words", "word error rate", [100 * wer], paper=paper, digits=1))
    note = f"Trained on reference transcripts, tested on {words}. Change: of the best, paired, in points."
    results.write(run, "asr", "Recognised words", cells, note)


def cost_table(run, results):
    """What the two pretrainings cost and how well they find hidden words."""
    cells, facts = [], results.pretraining
    for method, history in results.pretrained.items():
        log, label, best = history["log"], LABELS[method], history["log"][history["best_epoch"] - 1]
        seconds, loss = history["seconds"] / len(log), best["valid_loss"]
        cells.append(Cell(label, "an epoch", [seconds], unit="s"))
        cells.append(Cell(label, "best epoch", [history["best_epoch"]], unit="", digits=0))
        cells.append(Cell(label, "held-out loss", [loss], unit="", digits=3))
        cells.append(Cell(label, "perplexity", [float(np.exp(loss))], unit="", digits=1))
        cells.append(Cell(label, "hidden words found", [100 * best["valid_accuracy"]]))
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
                    labels = [names_of(results.emotions, x) for x in (test.targets[i], found[k, i])]
                    yield dict(zip(PREDICTION_COLUMNS, (clip_id, test.speakers[i], *system, *labels)))


def names_of(emotions, present):
    return "+".join(name for name, is_there in zip(emotions, present) if is_there)
