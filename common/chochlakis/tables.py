"""Figures 2 to 4 of Chochlakis et al. 2024, their numbers as tables, and the cases that the paper counts.

`plan` lists every System that they need; 06 trains and tests them; `write` draws what they found. The paper
gives its results as curves alone, so that none of its numbers stands beside ours.

S seeds of autoencoders and classifiers, M masks, R test recordings, N clips, k of which are lost in either
modality.
"""

from collections import namedtuple
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

from common import metrics, plots
from common.chochlakis.backbones import MODALITIES
from common.metrics import cluster_bootstrap, gain
from common.panels import curve_panels
from common.results import Cell, prediction_rows

FIGURES = {"avid-cma": "2", "crisscross": "3"}
WHOLE = {"none": "Pristine", "audio": "Audio only", "video": "Video only"}  # nothing is lost of these
SIMPLE = dict(zeros="Regular", mean="Mean", last="Last clip", linear="Interpolation", ridge="Ridge")
LAST = "curri-MAE-last"  # curri-MAE of the last epoch, not of that with the lowest validation loss
NAMES = {**WHOLE, **SIMPLE, "backoff": "Backoff"}
TUNED = {"largest": "-ft", "all": "-ft-all"}
OURS = {"linear": "largest", "gru": "all"}  # levels on which each classifier is fine-tuned (Section 4.2)
VERDICTS = {1: "wins", 0: "ties", -1: "loses"}


# ---- Systems -------------------------------------------------------------------------------


# A classifier, "linear" or "gru"; how lost clips are replaced before it: one of WHOLE, "backoff", one of
# SIMPLE, "MAE", "curri-MAE", LAST; and what it was fine-tuned on: one of TUNED, or counts of lost clips such
# as "4+7", "" = it was not.
System = namedtuple("System", "classifier imputer tuned", defaults=[""])


def label(system, n_clips):
    """The name of a System in the paper's figures, or in their manner."""
    mixture = "+".join(percent(int(k), n_clips) for k in system.tuned.split("+") if k.isdigit())
    tuned = f"-ft ({mixture})" if mixture else TUNED.get(system.tuned, "")
    return NAMES.get(system.imputer, system.imputer) + tuned


def percent(k, n_clips):
    return f"{100 * k / n_clips:.0f} %"


def baseline(name):
    """What Section 3.5 compares a classifier with."""
    return System(name, "backoff") if name == "linear" else System(name, "zeros", "all")


def curves_of(name):
    """The Systems of Figures 2 and 3 for one classifier."""
    own = [baseline(name)] if name == "linear" else [System(name, "zeros"), baseline(name)]
    ours = [System(name, "curri-MAE", tuned) for tuned in ("", *TUNED)]
    return [*(System(name, whole) for whole in WHOLE), *own, *ours]


def figure_4(mixtures):
    """The GRU, fine-tuned on imputations of the fixed-rate autoencoder at mixtures of levels, and of ours."""
    fixed = [System("gru", "MAE", tuned) for tuned in (*mixtures, "all")]
    return [*fixed, System("gru", "curri-MAE", mixtures[-1]), System("gru", "curri-MAE", "all")]


def simple(name):
    """Simple ways to impute, each with a classifier that was fine-tuned as ours."""
    return [System(name, imputer, OURS[name]) for imputer in SIMPLE]


def plan(classifiers, mixtures, beyond):
    """Every System needed, once, those that others start from first."""
    systems = [system for name in classifiers for system in curves_of(name)]
    systems += figure_4(mixtures) if "gru" in classifiers else []
    for name in classifiers if beyond else ():
        systems += [*simple(name), System(name, LAST, OURS[name])]
    return sorted(dict.fromkeys(systems), key=lambda s: s.imputer not in WHOLE)


# ---- Scores --------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What all Systems of one backbone predicted."""

    name: str  # of the backbone
    settings: dict  # 06's constants
    test: object  # Part: the test recordings
    predicted: dict  # {(System, k): (S, M, R)}
    errors: dict  # {(imputer, k, modality): an error in % for each autoencoder}
    imputed: dict  # {"lost", imputer: (seeds, 2, N, D)}, the first recording, half of its clips imputed

    def __post_init__(self):
        self.score = cache(self.score)  # several tables ask for the same

    @property
    def runs(self):
        """The S (seed of the autoencoder, classifier)."""
        heads = [f"classifier {seed}" for seed in self.settings["CLASSIFIER_SEEDS"]] or [""]
        return list(product(self.settings["SEEDS"], heads))

    @property
    def levels(self):
        return range(1, self.test.n_clips)

    @property
    def chance(self):
        return 100 * float(self.test.labels.bincount().max()) / len(self.test)

    def cell(self, row, column, values, **more):
        """A Cell with a value for each of `runs`, or for each autoencoder."""
        runs = self.runs if len(values) == len(self.runs) else [(seed, "") for seed in self.settings["SEEDS"]]
        return Cell(row, column, values.tolist(), runs, n=len(self.test), **more)

    def right(self, system, k):
        """Which predictions are right, (S, M, R) 0 or 1."""
        return (self.predicted[system, k] == self.test.labels.numpy()).astype(int)

    def score(self, system, k):
        """Accuracy with k lost clips as a Cell: its sd is over masks, of means over seeds."""
        right, n_clips = self.right(system, k), self.test.n_clips
        bounds = self.interval(metrics.accuracy, np.ones_like(right[0, 0]), right)
        row = f"{system.classifier}: {label(system, n_clips)}"
        column = f"{percent(k, n_clips)} lost" if k else "none lost"
        if right.shape[1] == 1:
            return self.cell(row, column, 100 * right.mean((1, 2)), **bounds)
        runs = [("", f"mask {m + 1}") for m in range(right.shape[1])]
        return Cell(row, column, (100 * right.mean((0, 2))).tolist(), runs, **bounds, n=len(self.test))

    def interval(self, metric, *right):
        """Bounds in % of a metric of right decisions (..., R), speakers resampled."""
        right = [x.reshape(-1, len(self.test)) for x in right]
        bounds = cluster_bootstrap(metric, *right, self.test.speakers, self.settings["N_RESAMPLES"], 0, 2)
        return dict(zip(("low", "high"), 100 * np.array(bounds)))

    def scores(self, system):
        """The Cells of a System by level, or one where nothing is lost."""
        return [self.score(system, k) for other, k in self.predicted if other == system]

    def series(self, system):
        """(x, y, low, high) of curve_panels: by level, low and high a standard deviation over masks off."""
        x = [100 * k / self.test.n_clips for k in self.levels]
        y, sd = np.array([[cell.mean, cell.sd or 0.0] for cell in self.scores(system)]).T * np.ones(len(x))
        sd *= system.imputer not in WHOLE  # where nothing is lost it is over seeds
        return x, y, y - sd, y + sd

    def note(self):
        """What every table and figure says."""
        test, c, lacks = self.test, self.settings, self.test.missing.all(2).sum(0).tolist()
        without = "".join(f", {n:,} of them without {name}" for n, name in zip(lacks, MODALITIES) if n)
        weights = "random weights" if c["RANDOM_BACKBONES"] else "the authors' weights"
        seeds = {"seeds": c["SEEDS"], "classifiers": c["CLASSIFIER_SEEDS"]}
        seeds = [f"{name} {', '.join(map(str, numbers))}" for name, numbers in seeds.items() if numbers]
        return (
            f"{self.name}, {weights}; autoencoder first trained on {c['PRETRAIN_CORPUS'] or 'nothing else'}; "
            f"{test.n_clips} clips, as many lost of audio as of video, independently; means over "
            f"{' and '.join(seeds)}; {len(test):,} test recordings{without}; majority class "
            f"{self.chance:.1f} %."
        )


def outcomes_of(found, settings):
    """An Outcome per backbone of {(backbone, seed): what 06's run_seed gives}."""
    outcomes = []
    for name in settings["BACKBONES"]:
        (test, *_), *dicts = zip(*(found[name, seed] for seed in settings["SEEDS"]))
        joined = ({key: np.concatenate([x[key] for x in part]) for key in part[0]} for part in dicts)
        outcomes.append(Outcome(name, settings, test, *joined))
    return outcomes


# ---- Tables and figures --------------------------------------------------------------------


def write(run, outcomes, classifiers, mixtures, beyond):
    """All tables and figures of results; mixtures: counts of lost clips of Figure 4."""
    for outcome in outcomes:
        number, name = FIGURES[outcome.name], outcome.name
        panels = {f"({a}) MAE + {c} and its baseline": curves_of(c) for a, c in zip("ab", classifiers)}
        stems = f"table_fig_{number}", f"fig_{number}_{name}"
        show(run, outcome, *stems, f"Figure {number}. Accuracy by level of dropout", panels)
        if "gru" in classifiers:
            about = "GRU, fine-tuned on imputations of the curriculum or of the fixed rate. "
            stems, panels = (f"table_fig_4_{name}", f"fig_4_{name}"), {"": figure_4(mixtures)}
            show(run, outcome, *stems, "Figure 4. Curriculum and fixed rate", panels, about)
        if beyond:
            ours = {c: System(c, "curri-MAE", OURS[c]) for c in classifiers}
            panels = {f"{c}{TUNED[OURS[c]]}": [*simple(c), ours[c]] for c in classifiers}
            stems = f"table_baselines_{name}", f"fig_baselines_{name}"
            show(run, outcome, *stems, "Simple ways to impute", panels, "Not in the paper. ", short=True)
            write_errors(run, outcome)
            write_epochs(run, outcome, classifiers)
        imputed_figure(run, outcome)
    write_cases(run, outcomes, classifiers)


def show(run, outcome, table, figure, title, panels, about="", short=False):
    """A table and a figure of panels {title: Systems}; short: the title says what they were fine-tuned on."""
    cells, series, about = [], {}, about + outcome.note()
    for name, systems in panels.items():
        names = [label(s._replace(tuned="") if short else s, outcome.test.n_clips) for s in systems]
        series[name] = dict(zip(names, map(outcome.series, systems)))
        cells += [cell for system in systems for cell in outcome.scores(system)]
    run.table(f"chochlakis_{table}", f"{title}, {outcome.name}, {run.corpus}", cells, about)
    drawn = curve_panels(series, "lost clips of either modality (%)", "accuracy (%)", outcome.chance)
    caption = f"{title}, {run.corpus}. {about} Bars: sd over masks."
    plots.save(drawn, run.folder, f"chochlakis_{figure}", caption)


def imputed_figure(run, outcome):
    """Beyond the paper: features of the first test recording, whole, with half of the clips lost, imputed."""
    x = outcome.test.x.numpy()  # (R, 2, N, D)
    mean, sd = (of(x, (0, 2))[:, None] for of in (np.mean, np.std))  # (2, 1, D)
    views = {"recorded": x[:1], **outcome.imputed}
    there = [i for i in range(len(MODALITIES)) if not outcome.test.missing[:, i].all()]
    fig, grid = plots.plt.subplots(len(views), len(there), figsize=(7, 1 + 0.7 * len(views)), squeeze=False)
    for line, (name, view) in zip(grid, views.items()):
        line[0].set_ylabel(name, rotation=0, ha="right")
        z = (view[0] - mean) / np.where(sd > 0, sd, 1)  # (2, N, D)
        for axes, i in zip(line, there):
            axes.imshow(z[i], aspect="auto", cmap="RdBu", vmin=-3, vmax=3, interpolation="nearest")
            axes.set(yticks=[], xlabel=f"features of {MODALITIES[i]}")
            axes.label_outer()
            axes.grid(False)
    who, stem = outcome.test.turns[0].utterance_id, f"chochlakis_fig_imputed_{outcome.name}"
    what = "A row is a clip; blue: above the feature's mean over the test part, red: below, by up to 3 sd."
    plots.save(fig, run.folder, stem, f"{who}, {run.corpus}, features by {outcome.name}, imputed. {what}")
    print(f"  look      {run.folder}/{stem}.png: a recording's features, lost and imputed")


def write_errors(run, outcome):
    """Beyond the paper: how much of what was lost each way to impute brings back."""
    cells = []
    for (imputer, k, modality), values in outcome.errors.items():
        cells.append(outcome.cell(imputer, f"{modality}, {percent(k, outcome.test.n_clips)} lost", values))
    about = (
        "Not in the paper. Squared error over hidden test clips, relative to that of the training mean, the "
        f"median of all features. {outcome.note()}"
    )
    title = f"Error of imputed features, {run.corpus}"
    run.table(f"chochlakis_table_imputation_{outcome.name}", title, cells, about)


def write_epochs(run, outcome, classifiers):
    """Beyond the paper: does the autoencoder that reconstructs best also serve a classifier best?"""
    cells, levels = [], outcome.levels
    for system in (System(c, imputer, OURS[c]) for c in classifiers for imputer in ("curri-MAE", LAST)):
        row = f"{system.classifier}: {label(system, outcome.test.n_clips)}"
        accuracy = 100 * np.mean([outcome.right(system, k) for k in levels], (0, 2, 3))  # (S,)
        cells.append(outcome.cell(row, "accuracy", accuracy))
        for modality in (m for m in MODALITIES if (system.imputer, 1, m) in outcome.errors):
            error = np.mean([outcome.errors[system.imputer, k, modality] for k in levels], 0)  # (S,)
            cells.append(outcome.cell(row, f"error of {modality}", error))
    about = (
        "Not in the paper. curri-MAE is of the epoch with the lowest loss on validation speakers, curri-MAE-"
        f"last of the last epoch. Means over all levels; errors as in table_imputation. {outcome.note()}"
    )
    title = f"The autoencoder of the best and of the last epoch, {run.corpus}"
    run.table(f"chochlakis_table_epochs_{outcome.name}", title, cells, about)


def write_predictions(run, outcomes, fold, classes):
    """predictions.csv: those under the first mask of the middle level; fold: name of the split."""
    test, found = outcomes[0].test, {}
    for outcome in outcomes:
        for (system, k), labels in outcome.predicted.items():
            if k in (0, test.n_clips // 2):
                lost = f", {percent(k, test.n_clips)} lost" if k else ""
                name = f"{outcome.name} {system.classifier}: {label(system, test.n_clips)}{lost}"
                found[name] = labels[:, 0]  # (S, R)
    names = enumerate(f"{seed} {head}".strip() for seed, head in outcomes[0].runs)
    runs = {(name, fold): (slice(i, i + 1), range(len(test))) for i, name in names}
    run.predictions(prediction_rows(test.turns, classes, runs, found))


# ---- The cases -----------------------------------------------------------------------------


def write_cases(run, outcomes, classifiers):
    """Backbone x classifier: where the method wins, ties or loses, by the paper's rule and by speaker."""
    cells = [cell for o in outcomes for name in classifiers for cell in case(o, run.corpus, name)]
    about = (
        "curri-MAE-ft (linear) or -ft-all (GRU, Sec. 4.2) against the best of what loses the same clips, by "
        "level on the test part: the baseline of Section 3.5 and, beyond the paper, simple imputers. By "
        "ranges, the paper's rule: equal where mean ± sd over masks overlap; a case is won where a level is "
        "and none is lost. By speaker: where the interval of the gain is above 0. The paper counts 10 wins "
        'in 12, all but CrissCross on RAVDESS, but says of Figure 3a "not in Lombard and RAVDESS".'
    )
    run.table("chochlakis_table_cases", f"curri-MAE against the best baseline, {run.corpus}", cells, about)


def case(outcome, corpus, name):
    """The cells of one case: at how many levels the method wins, ties and loses, and its gain over all."""
    method, signs, pairs = System(name, "curri-MAE", OURS[name]), [], []
    rivals = [system for system in (baseline(name), *simple(name)) if (system, 1) in outcome.predicted]
    for k in outcome.levels:
        scores = {system: outcome.score(system, k) for system in rivals}
        best = max(rivals, key=lambda system, scores=scores: scores[system].mean)
        signs.append(compare(outcome.score(method, k), scores[best]))
        pairs.append((outcome.right(method, k), outcome.right(best, k)))
    ours, theirs = (np.concatenate(part, 1) for part in zip(*pairs))  # (S, levels * M, R)
    gains, n = 100 * (ours - theirs).mean((1, 2)), len(outcome.test)  # (S,)
    bounds = outcome.interval(gain, ours, theirs)
    by_ranges, row = (1 in signs) - (-1 in signs), f"{corpus}, {outcome.name}, {name}"
    by_speaker = int(bounds["low"] > 0) - int(bounds["high"] < 0)
    counts = {"win": signs.count(1), "tie": signs.count(0), "lose": signs.count(-1)}
    return [
        *(Cell(row, f"levels that {k}", [v], unit="", digits=0, n=n) for k, v in counts.items()),
        Cell(row, "by ranges", [by_ranges], unit="", n=n, word=VERDICTS[by_ranges]),
        outcome.cell(row, "gain, all levels", gains, **bounds, unit="points"),
        Cell(row, "by speaker", [by_speaker], unit="", n=n, word=VERDICTS[by_speaker]),
    ]


def compare(ours, theirs):
    """1, 0, -1: we win, tie, lose; "equivalent when ranges overlap" (Sec. 4.3), mean ± sd of two Cells."""
    difference = ours.mean - theirs.mean
    return 0 if abs(difference) <= (ours.sd or 0.0) + (theirs.sd or 0.0) else int(np.sign(difference))
