"""Figures 2 to 4 of Chochlakis et al. 2024, their numbers as tables, the cases, and what is not in the paper.

`plan` lists every System that they need; 06 trains and tests them; `write` draws what they found. The paper
gives its results as curves alone, so that none of its numbers stands beside ours but those of costs.

S seeds, M masks, R test recordings, N clips. A setting of the masks is ("level", k), k of the N clips lost in
either modality; ("burst", k), k neighbours; ("unequal", k_audio, k_video).
"""

from dataclasses import dataclass, field

import numpy as np

from common import comparison, metrics, plots
from common.chochlakis.backbones import MODALITIES
from common.panels import curve_panels, value_maps
from common.results import Cell, prediction_rows, score_cell

FIGURES = {"avid-cma": "2", "crisscross": "3"}
WHOLE = {
    "none": "Pristine",
    "audio": "Audio only",
    "video": "Video only",
}  # nothing is lost of what they read
SIMPLE = {"zeros": "Regular", "mean": "Mean", "last": "Last clip", "linear": "Interpolation"}
NAMES = {**WHOLE, **SIMPLE, "backoff": "Backoff"}
VERDICTS = {1: "wins", 0: "ties", -1: "loses"}


# ---- Systems -------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """A classifier, how lost clips are replaced before it, and what it was fine-tuned on."""

    classifier: str  # "linear" or "gru"
    imputer: str  # one of WHOLE, "backoff", one of SIMPLE, "MAE", "curri-MAE"
    tuned: tuple | str = ()  # () = not at all; "largest", "all", or counts of lost clips

    def slug(self):
        """Name of its folder, such as linear_curri-MAE_all."""
        tuned = self.tuned if isinstance(self.tuned, str) else "+".join(map(str, self.tuned))
        return "_".join(filter(None, (self.classifier, self.imputer, tuned)))

    def label(self, n_clips):
        """Its name in the paper's figures, or in their manner."""
        name = NAMES.get(self.imputer, self.imputer)
        if isinstance(self.tuned, str):
            return name + {"largest": "-ft", "all": "-ft-all"}[self.tuned]
        return name + (f"-ft ({'+'.join(percent(k, n_clips) for k in self.tuned)})" if self.tuned else "")


def percent(k, n_clips):
    return f"{100 * k / n_clips:.0f} %"


def baseline(name):
    """What Section 3.5 compares a classifier with."""
    return System(name, "backoff") if name == "linear" else System(name, "zeros", "all")


def curves_of(name):
    """The Systems of Figures 2 and 3 for one classifier."""
    own = [baseline(name)] if name == "linear" else [System(name, "zeros"), baseline(name)]
    ours = [System(name, "curri-MAE", tuned) for tuned in ((), "largest", "all")]
    return [*(System(name, whole) for whole in WHOLE), *own, *ours]


def figure_4(mixtures):
    """The GRU, fine-tuned on imputations of the fixed-rate autoencoder at mixtures of levels, and of ours."""
    fixed = [System("gru", "MAE", tuned) for tuned in (*mixtures, "all")]
    return [*fixed, System("gru", "curri-MAE", mixtures[-1]), System("gru", "curri-MAE", "all")]


def simple(name):
    """Simple ways to impute, each with a classifier that was fine-tuned as long as ours."""
    return [System(name, imputer, "all") for imputer in SIMPLE]


def plan(classifiers, mixtures, beyond):
    """Every System needed, once: those that others start from first, and those of one input together."""
    systems = [system for name in classifiers for system in curves_of(name)]
    systems += figure_4(mixtures) if "gru" in classifiers else []
    systems += [system for name in classifiers for system in simple(name)] if beyond else []
    return sorted(dict.fromkeys(systems), key=lambda s: (s.imputer not in WHOLE, s.imputer, str(s.tuned)))


def is_tested(system, setting):
    """Whether a System is tested under some masks: all at equal levels, few on what is not in the paper."""
    if setting[0] == "level":
        return system.imputer not in WHOLE
    imputers = ("curri-MAE",) if setting[0] == "unequal" else ("zeros", "linear", "curri-MAE")
    return system.tuned == "all" and system.imputer in imputers


# ---- Scores --------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What all Systems of one backbone predicted."""

    name: str  # of the backbone
    test: object  # Part: the test recordings
    n_classes: int
    seeds: tuple
    n_resamples: int
    predicted: dict  # {(System, setting): (S, M, R)}; ("level", 0) where nothing is lost
    errors: dict  # {(imputer, k): (S, 2) in %}
    cost: tuple  # of the autoencoder: seconds of an epoch, parameters, seconds to impute a clip
    about: str  # what backbone and autoencoder are
    scored: dict = field(default_factory=dict)  # {(System, setting): Cell}

    def __post_init__(self):
        self.n_clips, self.truth = self.test.n_clips, self.test.labels.numpy()
        self.chance = 100 * metrics.chance(self.truth, self.n_classes)[0]

    def levels(self, kind="level"):
        return [(kind, k) for k in range(1, self.n_clips)]

    def right(self, system, setting):
        """Which predictions are right, (S * M, R) 0 or 1."""
        setting = ("level", 0) if system.imputer in WHOLE else setting
        found = self.predicted[system, setting]
        return (found.reshape(-1, len(self.truth)) == self.truth).astype(int)

    def score(self, system, setting):
        """Accuracy as a Cell: mean and sd over masks and seeds, interval by speaker."""
        setting = ("level", 0) if system.imputer in WHOLE else setting
        if (system, setting) not in self.scored:
            right, every = self.right(system, setting), np.arange(len(self.truth))
            names = [
                (seed, f"mask {m + 1}") for seed in self.seeds for m in range(len(right) // len(self.seeds))
            ]
            runs = {name: (slice(i, i + 1), every) for i, name in enumerate(names)}
            row = f"{system.classifier}: {system.label(self.n_clips)}"
            column = "none lost" if system.imputer in WHOLE else f"{percent(setting[1], self.n_clips)} lost"
            # Right or wrong is all that accuracy needs, and 2 x 2 counts are resampled faster than C x C.
            scored = np.ones_like(every), right, self.test.speakers, runs, self.n_resamples
            self.scored[system, setting] = score_cell(row, column, metrics.accuracy, *scored)
        return self.scored[system, setting]

    def series(self, system, kind="level"):
        """(x, y, low, high) of curve_panels: by level, low and high a standard deviation off."""
        cells = [self.score(system, setting) for setting in self.levels(kind)]
        y, sd = np.array([(cell.mean, cell.sd or 0.0) for cell in cells]).T
        return [100 * k / self.n_clips for _, k in self.levels()], y, y - sd, y + sd

    def note(self, lost="as many lost of audio as of video, independently"):
        """What every table and figure says; lost: which clips are."""
        lacks = zip(self.test.missing.all(2).sum(0).tolist(), MODALITIES)
        without = "".join(f", {n:,} of them without {name}" for n, name in lacks if n)
        return (
            f"{self.name}, {self.about}; {self.n_clips} clips, {lost}; mean ± sd over masks of recordings "
            f"and seeds {', '.join(map(str, self.seeds))}, interval by speaker; {len(self.truth):,} test "
            f"recordings{without}; majority class {self.chance:.1f} %."
        )


def outcomes_of(found, classes, settings):
    """An Outcome per backbone of {(backbone, seed): what 06's run_seed gives}; settings: 06's constants."""
    pretrained, outcomes = settings["PRETRAIN_CORPUS"], []
    about = f"random weights, calibrated on {pretrained or 'training clips'}"
    about = about if settings["RANDOM_BACKBONES"] else "the authors' weights"
    about += f"; autoencoder first trained on {pretrained or 'no other recordings'}"
    for name in settings["BACKBONES"]:
        (test, *_), predicted, errors, costs = zip(*(found[name, seed] for seed in settings["SEEDS"]))
        predicted = {key: np.stack([of_seed[key] for of_seed in predicted]) for key in predicted[0]}
        errors = {key: np.array([of_seed[key] for of_seed in errors]) for key in errors[0]}
        how = len(classes), settings["SEEDS"], settings["N_RESAMPLES"]
        outcomes.append(Outcome(name, test, *how, predicted, errors, np.median(costs, 0), about))
    return outcomes


# ---- Tables and figures --------------------------------------------------------------------


def write(run, outcomes, classifiers, mixtures, fixed, costs):
    """All tables and figures; mixtures, fixed: counts of lost clips of Figure 4.

    costs  {backbone: (seconds of its epoch, its parameters)}; {} = nothing beyond the paper
    """
    for outcome in outcomes:
        number, name = FIGURES[outcome.name], outcome.name
        panels = {f"({a}) MAE + {c} and its baseline": curves_of(c) for a, c in zip("ab", classifiers)}
        stems = f"table_fig_{number}", f"fig_{number}_{name}"
        show(run, outcome, *stems, f"Figure {number}. Accuracy by level of dropout", panels)
        if "gru" in classifiers:
            about = f"GRU, fine-tuned on imputations by autoencoders of {fixed} lost clips or the curriculum."
            stems, panels = (f"table_fig_4_{name}", f"fig_4_{name}"), {"": figure_4(mixtures)}
            show(run, outcome, *stems, "Figure 4. Curriculum and fixed rate", panels, about)
        write_errors(run, outcome)
        if costs:
            panels = {f"MAE + {c}": [*simple(c), System(c, "curri-MAE", "all")] for c in classifiers}
            stems = f"table_baselines_{name}", f"fig_baselines_{name}"
            show(run, outcome, *stems, "Simple ways to impute", panels, "Not in the paper.")
            draw_unequal(run, outcome, classifiers)
            draw_bursts(run, outcome, classifiers)
    write_cases(run, outcomes, classifiers)
    if costs:
        write_costs(run, {outcome.name: (*costs[outcome.name], *outcome.cost) for outcome in outcomes})


def show(run, outcome, table, figure, title, panels, about=""):
    """A table and a figure of panels {title: Systems}."""
    cells, series = [], {}
    for name, systems in panels.items():
        series[name] = {system.label(outcome.n_clips): outcome.series(system) for system in systems}
        for system in systems:
            levels = outcome.levels()[:1] if system.imputer in WHOLE else outcome.levels()
            cells += [outcome.score(system, setting) for setting in levels]
    about = f"{about} {outcome.note()}".strip()
    run.table(f"chochlakis_{table}", f"{title}, {outcome.name}, {run.corpus}", cells, about)
    draw_curves(run, outcome, figure, title, series, about)


def draw_curves(run, outcome, stem, title, panels, about):
    figure = curve_panels(panels, "lost clips of either modality (%)", "accuracy (%)", outcome.chance)
    caption = f"{title}, {run.corpus}. {about} Bars: sd; curves are set off sideways a little."
    run.figure(plots.save(figure, run.folder, f"chochlakis_{stem}", caption))


def write_errors(run, outcome):
    """Beyond the paper: how much of what was lost each way to impute brings back."""
    cells = []
    for (imputer, k), found in outcome.errors.items():
        for name, values in zip(MODALITIES, found.T):
            if not np.isnan(values[0]):
                column = f"{name}, {percent(k, outcome.n_clips)} lost"
                cells.append(Cell(imputer, column, values.tolist(), n=len(outcome.truth), digits=1))
    title = f"Error of imputed features, {run.corpus}"
    about = (
        "Not in the paper. Squared error over hidden test clips, relative to that of the training mean, the "
        f"median of all features. {outcome.note()}"
    )
    run.table(f"chochlakis_table_imputation_{outcome.name}", title, cells, about)


def draw_unequal(run, outcome, classifiers):
    """Beyond the paper: other rates for audio than for video."""
    n, panels = outcome.n_clips, {f"MAE + {name}": {} for name in classifiers}
    for name, (a, v) in ((name, rates) for name in classifiers for rates in np.ndindex(n, n)):
        cell = outcome.score(System(name, "curri-MAE", "all"), ("unequal", a, v))
        panels[f"MAE + {name}"][100 * a // n, 100 * v // n] = cell.mean
    figure = value_maps(panels, "lost audio clips (%)", "lost video clips (%)", "accuracy (%)")
    about = f"not in the paper. {outcome.note('lost of audio and of video as the axes say')}"
    caption = f"Unequal rates, {run.corpus}, curri-MAE-ft-all; {about}"
    run.figure(plots.save(figure, run.folder, f"chochlakis_fig_unequal_{outcome.name}", caption))


def draw_bursts(run, outcome, classifiers):
    """Beyond the paper: neighbouring clips of both modalities lost together, as when a network fails."""
    panels = {f"MAE + {name}": {} for name in classifiers}
    for name, imputer in (
        (name, imputer) for name in classifiers for imputer in ("zeros", "linear", "curri-MAE")
    ):
        system = System(name, imputer, "all")
        for kind, where in (("level", "scattered"), ("burst", "in a row")):
            panels[f"MAE + {name}"][f"{system.label(outcome.n_clips)}, {where}"] = outcome.series(
                system, kind
            )
    title = "Clips lost at random places (solid), or neighbours and both modalities at once (broken lines)"
    about = f"Not in the paper. {outcome.note('as many lost of audio as of video')}"
    draw_curves(run, outcome, f"fig_bursts_{outcome.name}", title, panels, about)


# ---- The cases -----------------------------------------------------------------------------


def write_cases(run, outcomes, classifiers):
    """Backbone x classifier: where the method wins, ties or loses, by the paper's rule and by speaker."""
    cells = [cell for outcome in outcomes for name in classifiers for cell in case(outcome, run.corpus, name)]
    about = (
        "By level, the paper's rule: results are equivalent where mean ± sd over masks overlap. The baseline "
        "is, level by level on the test part, the best of backoff (linear) or Regular-ft-all (GRU) and of "
        'the unimodal classifiers, which lose nothing; "lossy baseline" leaves them out as in Section 3.5. '
        "A case is won where some level is won and none lost. The paper counts 10 wins in 12 cases, all but "
        'CrissCross on RAVDESS, but of Figure 3a "not in Lombard and RAVDESS". The gain is over all levels.'
    )
    title = f"curri-MAE-ft-all against the best baseline, {run.corpus}"
    run.table("chochlakis_table_cases", title, cells, about)


def case(outcome, corpus, name):
    """The cells of one case: at how many levels the method wins, ties and loses, and its gain over all."""
    method, own = System(name, "curri-MAE", "all"), baseline(name)
    pairs, signs, lossy = [], [], []
    for setting in outcome.levels():
        strong = (own, System(name, "audio"), System(name, "video"))
        best = max(strong, key=lambda system, at=setting: outcome.score(system, at).mean)
        signs.append(compare(outcome.score(method, setting), outcome.score(best, setting)))
        lossy.append(compare(outcome.score(method, setting), outcome.score(own, setting)))
        ours, theirs = outcome.right(method, setting), outcome.right(best, setting)  # (S * M or S, R)
        pairs.append((ours, np.repeat(theirs, len(ours) // len(theirs), 0)))
    ours, theirs = (np.concatenate(part) for part in zip(*pairs))
    more = outcome.test.speakers, outcome.n_resamples
    gain, low, high, _, p = comparison.compare(np.ones_like(outcome.truth), ours, theirs, *more)
    row, n = f"{corpus}, {outcome.name}, {name}", len(outcome.truth)
    counts = {"win": signs.count(1), "tie": signs.count(0), "lose": signs.count(-1)}
    cells = [Cell(row, f"levels that {k}", [v], unit="", digits=0, n=n) for k, v in counts.items()]
    for column, found in (("by ranges", signs), ("by ranges, lossy baseline", lossy)):
        verdict = (1 in found) - (-1 in found)
        cells.append(Cell(row, column, [verdict], unit="", n=n, word=VERDICTS[verdict]))
    cells.append(
        Cell(row, "gain, all levels", [100 * gain], low=100 * low, high=100 * high, n=n, unit="points")
    )
    return [*cells, Cell(row, "by speaker p", [p], n=n, unit="", digits=4)]


def compare(ours, theirs):
    """1, 0, -1: we win, tie, lose; "equivalent when ranges overlap" (Sec. 4.3), mean ± sd of two Cells."""
    gain = ours.mean - theirs.mean
    return 0 if abs(gain) <= (ours.sd or 0.0) + (theirs.sd or 0.0) else int(np.sign(gain))


def write_costs(run, costs):
    """What an epoch of the autoencoder costs beside one of the backbone (Section 4.2).

    costs  {backbone: (seconds of its epoch, its parameters, both of the autoencoder, seconds to impute a
           clip)}
    """
    cells = []
    for name, (backbone_s, n_backbone, epoch_s, n_autoencoder, latency_s) in costs.items():
        cells += [
            Cell(name, "backbone, an epoch", [backbone_s], unit="s", digits=1),
            Cell(name, "autoencoder, an epoch", [epoch_s], unit="s"),
            Cell(name, "ratio", [backbone_s / epoch_s], unit="", digits=1, paper=14.0),
            Cell(name, "backbone", [n_backbone / 1e6], unit="M", digits=1, paper=25.0),
            Cell(name, "autoencoder", [n_autoencoder / 1e6], unit="M", digits=1, paper=180.0),
            Cell(name, "to impute one clip", [1000 * latency_s], unit="ms"),
        ]
    about = (
        "The backbone is never trained: its epoch is forward and backward passes of a few clips, times the "
        "clips of the training part, without decoding, which the paper's 0.7 and 0.05 GPU hours include."
    )
    run.table("chochlakis_table_cost", f"Cost of training, {run.corpus}", cells, about)


def write_predictions(run, outcomes, fold, classes):
    """predictions.csv: those under the first mask of the middle level; fold: name of the split."""
    test, seeds, found = outcomes[0].test, outcomes[0].seeds, {}
    for outcome in outcomes:
        for (system, (kind, k, *_)), labels in outcome.predicted.items():
            if kind == "level" and k in (0, outcome.n_clips // 2):
                lost = f", {percent(k, outcome.n_clips)} lost" if k else ""
                name = f"{outcome.name} {system.classifier}: {system.label(outcome.n_clips)}{lost}"
                found[name] = labels[:, 0]  # (S, R)
    runs = {(seed, fold): (slice(i, i + 1), range(len(test))) for i, seed in enumerate(seeds)}
    run.predictions(prediction_rows(test.turns, classes, runs, found))
