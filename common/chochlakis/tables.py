"""Figures 2-4 of Chochlakis et al. 2024, their numbers as tables, the cases, and what goes beyond the paper.

`plan` lists every System that they need, once; 06 trains and tests them; `write` draws what they found. The
paper gives its results as curves alone, so that no number of it stands beside ours, but those of its costs.

S seeds, M masks, R test recordings, N clips. A setting of the masks is ("level", k), k of the N clips lost in
either modality; ("burst", k), k neighbours; ("unequal", k_audio, k_video).
"""

from dataclasses import dataclass, field

import numpy as np

from common import metrics, plots
from common.chochlakis.backbones import MODALITIES
from common.results import Cell, score_cell

FIGURES = {"avid-cma": "2", "crisscross": "3"}
WHOLE = {"none": "Pristine", "audio": "Audio only", "video": "Video only"}  # "imputers" where nothing is lost
NAMES = WHOLE | {
    "backoff": "Backoff",
    "zeros": "Regular",
    "mean": "Mean",
    "last": "Last clip",
    "linear": "Interpolation",
}
SIMPLE = ("zeros", "mean", "last", "linear")  # ways to impute of Section 3.5 and beyond
LOST = "lost clips of either modality (%)"
BARS = "Bars: sd; curves are set off sideways a little."
VERDICTS = {1: "wins", 0: "ties", -1: "loses"}


# ---- Systems -------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """A classifier, how lost clips are replaced before it, and what it was fine-tuned on.

    classifier  "linear" or "gru"
    imputer     "none" (nothing is lost), "audio", "video" (that alone, nothing of it lost), "backoff", one of
                SIMPLE, "MAE", "curri-MAE"
    tuned       () = trained on whole features; "largest", "all", or counts of lost clips: then fine-tuned on
                those
    """

    classifier: str
    imputer: str
    tuned: tuple | str = ()

    def slug(self):
        """Name of its folder, such as curri-MAE_all"""
        tuned = self.tuned if isinstance(self.tuned, str) else "+".join(map(str, self.tuned))
        return self.imputer + (f"_{tuned}" if tuned else "")

    def label(self, n_clips):
        """Its name in the paper's figures, or in their manner."""
        rates = "+".join(percent(k, n_clips) for k in self.tuned if isinstance(self.tuned, tuple))
        tuned = {"": "", "largest": "-ft", "all": "-ft-all"}.get(self.tuned or "", f"-ft ({rates})")
        return NAMES.get(self.imputer, self.imputer) + tuned


def percent(k, n_clips):
    return f"{100 * k / n_clips:.0f} %"


def curves_of(name):
    """The Systems of Figures 2 and 3 for one classifier."""
    own = (
        [System(name, "zeros"), System(name, "zeros", "all")] if name == "gru" else [System(name, "backoff")]
    )
    ours = [System(name, "curri-MAE", tuned) for tuned in ((), "largest", "all")]
    return [*(System(name, whole) for whole in WHOLE), *own, *ours]


def figure_4(mixtures):
    """The GRU, fine-tuned on imputations of the fixed-rate autoencoder at mixtures of levels, and of the other."""
    fixed = [System("gru", "MAE", tuned) for tuned in (*mixtures, "all")]
    return [*fixed, System("gru", "curri-MAE", mixtures[-1]), System("gru", "curri-MAE", "all")]


def simple(name):
    """Other ways to impute, each with a classifier that was fine-tuned as long as ours."""
    return [System(name, imputer, "all") for imputer in SIMPLE]


def plan(classifiers, mixtures, beyond):
    """Every System that figures and tables need, once: those that others start from first, like inputs together."""
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
    """What all Systems of one backbone predicted, and what tables say of it."""

    name: str  # of the backbone
    test: object  # Part: the test recordings
    seeds: tuple
    predicted: dict  # {(System, setting): (S, M, R)}; ("level", 0) where nothing is lost
    errors: dict  # {(imputer, k): (S, 2) in %}
    n_classes: int
    n_resamples: int
    about: str  # what backbone and autoencoder are
    cells: dict = field(default_factory=dict)  # {System: its cells}, scored once for all that show them

    def __post_init__(self):
        self.n_clips, self.truth = self.test.n_clips, self.test.labels.numpy()
        self.levels = range(1, self.n_clips)

    def right(self, system, setting):
        """Which predictions are right, (S * M, R) bool."""
        found = self.predicted[system, ("level", 0) if system.imputer in WHOLE else setting]
        return found.reshape(-1, len(self.truth)) == self.truth

    def mean_and_sd(self, system, setting):
        """Of the accuracy in %, over masks and seeds."""
        accuracy = 100 * self.right(system, setting).mean(1)  # (S * M,)
        return float(accuracy.mean()), float(accuracy.std(ddof=1)) if len(accuracy) > 1 else 0.0

    def score(self, system, setting, column):
        """Accuracy as a Cell: mean and sd over masks and seeds, interval by speaker."""
        right = self.right(system, setting).astype(int)
        n_masks, every = len(right) // len(self.seeds), np.arange(len(self.truth))
        names = [(seed, f"mask {m + 1}") for seed in self.seeds for m in range(n_masks)]
        runs = {name: (slice(i, i + 1), every) for i, name in enumerate(names)}
        row = f"{system.classifier}: {system.label(self.n_clips)}"
        # Right or wrong is all that accuracy needs: 2 x 2 counts are resampled many times faster than C x C.
        data = np.ones_like(self.truth), right, self.test.speakers
        return score_cell(row, column, metrics.accuracy, *data, runs, self.n_resamples)

    def curve(self, system):
        """Cells of a System by level, a single one where nothing is lost."""
        if system not in self.cells:
            settings = {("level", k): f"{percent(k, self.n_clips)} lost" for k in self.levels}
            settings = {("level", 0): "none lost"} if system.imputer in WHOLE else settings
            self.cells[system] = [self.score(system, setting, name) for setting, name in settings.items()]
        return self.cells[system]

    def series(self, systems, kinds=("level",)):
        """{label: (x, y, low, high)} for plots.curve_panels: low and high are a standard deviation off."""
        series, names = {}, {"level": "scattered", "burst": "in a row"}
        for system in systems:
            for kind in kinds:
                mean, sd = np.array([self.mean_and_sd(system, (kind, k)) for k in self.levels]).T
                label = system.label(self.n_clips) + (f", {names[kind]}" if len(kinds) > 1 else "")
                series[label] = [100 * k / self.n_clips for k in self.levels], mean, mean - sd, mean + sd
        return series

    def chance(self):
        return 100 * metrics.chance(self.truth, self.n_classes)[0]

    def note(self, lost="as many lost of audio as of video, independently"):
        """What every table and figure says; lost: which clips are."""
        lacks = zip(self.test.missing.all(2).sum(0).tolist(), MODALITIES)
        without = "".join(f", {n:,} of them without {name}" for n, name in lacks if n)
        n_masks = next(iter(found.shape[1] for key, found in self.predicted.items() if key[1][1]))
        return (
            f"{self.name}, {self.about}; {self.n_clips} clips, {lost}; mean ± sd over {n_masks} masks of each "
            f"recording and seeds {', '.join(map(str, self.seeds))}, interval by speaker; {len(self.truth):,} test "
            f"recordings{without}; majority class {self.chance():.1f} %."
        )


# ---- Tables and figures --------------------------------------------------------------------


def write(run, outcomes, classifiers, mixtures, fixed, beyond):
    """All tables and figures, but costs. mixtures: counts of lost clips; fixed: that of the fixed-rate training"""
    for outcome in outcomes:
        number, name = FIGURES[outcome.name], outcome.name
        panels = {f"({a}) MAE + {c} and its baseline": curves_of(c) for a, c in zip("ab", classifiers)}
        show(
            run, outcome, f"fig_{number}", f"{number}_{name}", f"Figure {number}. Accuracy by dropout", panels
        )
        if "gru" in classifiers:
            about = (
                "GRU, fine-tuned on imputations of the autoencoder trained at a fixed rate (MAE: "
                f"{fixed} of {outcome.n_clips} clips) or with the curriculum, at mixtures of rates."
            )
            title, panels = "Figure 4. Curriculum and fixed rate", {"": figure_4(mixtures)}
            show(run, outcome, f"fig_4_{name}", f"4_{name}", title, panels, about)
        write_errors(run, outcome)
        if beyond:
            panels = {f"MAE + {c}": [*simple(c), System(c, "curri-MAE", "all")] for c in classifiers}
            title, name = "Simple ways to impute", f"baselines_{name}"
            show(run, outcome, name, name, title, panels, "Not in the paper.")
            draw_unequal(run, outcome, classifiers)
            draw_bursts(run, outcome, classifiers)
    write_cases(run, outcomes, classifiers)


def show(run, outcome, table, figure, title, panels, about=""):
    """A table and a figure of panels {title: Systems}."""
    about = f"{about} {outcome.note()}".strip()
    cells = [cell for systems in panels.values() for s in systems for cell in outcome.curve(s)]
    run.table(f"chochlakis_table_{table}", f"{title}, {outcome.name}, {run.corpus}", cells, about)
    draw_curves(run, outcome, figure, title, {name: outcome.series(s) for name, s in panels.items()}, about)


def draw_curves(run, outcome, stem, title, panels, about):
    figure = plots.curve_panels(panels, LOST, "accuracy (%)", outcome.chance())
    caption = f"{title}, {run.corpus}. {about} {BARS}"
    run.figure(plots.save(figure, run.folder, f"chochlakis_fig_{stem}", caption))


def write_errors(run, outcome):
    """Beyond the paper: how much of what was lost each way to impute brings back."""
    cells = [
        Cell(
            imputer,
            f"{modality}, {percent(k, outcome.n_clips)} lost",
            found[:, m].tolist(),
            n=len(outcome.truth),
            digits=1,
        )
        for (imputer, k), found in outcome.errors.items()
        for m, modality in enumerate(MODALITIES)
        if not np.isnan(found[0, m])
    ]
    about = (
        "Not in the paper. Squared error over hidden test clips as a share of their squared distance from the training "
        f"mean, the median of all features: 100 % is no better than that mean. {outcome.note()}"
    )
    title = f"Error of imputed features, {run.corpus}"
    run.table(f"chochlakis_table_imputation_{outcome.name}", title, cells, about)


def draw_unequal(run, outcome, classifiers):
    """Beyond the paper: other rates for audio than for video."""
    n, panels = outcome.n_clips, {}
    for name in classifiers:
        method, values = System(name, "curri-MAE", "all"), {}
        for audio, video in np.ndindex(n, n):
            found = outcome.mean_and_sd(method, ("unequal", audio, video))
            values[100 * audio // n, 100 * video // n] = found[0]
        panels[f"MAE + {name}"] = values
    figure = plots.value_maps(panels, "lost audio clips (%)", "lost video clips (%)", "accuracy (%)")
    about = outcome.note("lost of audio and of video, independently, as the axes say")
    caption = f"Unequal rates, {run.corpus}, curri-MAE-ft-all; not in the paper. {about}"
    run.figure(plots.save(figure, run.folder, f"chochlakis_fig_unequal_{outcome.name}", caption))


def draw_bursts(run, outcome, classifiers):
    """Beyond the paper: neighbouring clips of both modalities lost together, as when a network fails."""
    panels = {}
    for name in classifiers:
        systems = [System(name, imputer, "all") for imputer in ("zeros", "linear", "curri-MAE")]
        panels[f"MAE + {name}"] = outcome.series(systems, ("level", "burst"))
    title = "Clips lost at random places (solid), or neighbours and both modalities at once (broken lines)"
    about = f"Not in the paper. {outcome.note('as many lost of audio as of video')}"
    draw_curves(run, outcome, f"bursts_{outcome.name}", title, panels, about)


# ---- The cases -----------------------------------------------------------------------------


def write_cases(run, outcomes, classifiers):
    """Backbone x classifier: where the method wins, ties or loses, by the paper's rule and by speaker."""
    cells = [cell for outcome in outcomes for name in classifiers for cell in case(outcome, run.corpus, name)]
    run.table(
        "chochlakis_table_cases",
        "curri-MAE-ft-all against the best baseline",
        cells,
        "By level, the paper's rule: two results are equivalent where mean ± sd over masks overlap; the baseline is the "
        "best of backoff (linear) or Regular-ft-all (GRU) and of the unimodal classifiers, chosen level by level on the "
        'test part, in their favour. The latter lose nothing; "lossy baseline" leaves them out, as Section 3.5 does. '
        "A case is won by ranges where some level is won and none is lost, which the paper does not define. It counts "
        '10 wins in 12 cases, all but CrissCross on RAVDESS, and says of Figure 3a "not in Lombard and RAVDESS". The '
        "gain is over all levels and masks, with interval and permutation test by speaker.",
    )


def case(outcome, corpus, name):
    """The cells of one case: at how many levels the method wins, ties and loses, and its gain over all."""
    method, own = (
        System(name, "curri-MAE", "all"),
        System(name, *(["zeros", "all"] if name == "gru" else ["backoff"])),
    )
    strong, ours, theirs, signs, lossy = [own, System(name, "audio"), System(name, "video")], [], [], [], []
    for setting in (("level", k) for k in outcome.levels):
        found = {system: outcome.mean_and_sd(system, setting) for system in (method, *strong)}
        best = max(strong, key=lambda system, found=found: found[system][0])
        signs.append(compare(*found[method], *found[best]))
        lossy.append(compare(*found[method], *found[own]))
        ours.append(outcome.right(method, setting))  # (S * M, R)
        right = outcome.right(best, setting)
        theirs.append(np.repeat(right, len(ours[-1]) // len(right), 0))
    pair, speakers = (np.concatenate(ours), np.concatenate(theirs)), outcome.test.speakers
    gain, p = metrics.paired_permutation(*pair, speakers, outcome.n_resamples, 0)
    pair = (right.astype(int) for right in pair)
    low, high = metrics.cluster_bootstrap(metrics.gain, *pair, speakers, outcome.n_resamples, 0, n_classes=2)
    row, n = f"{corpus}, {outcome.name}, {name}", len(outcome.truth)
    counts = {f"levels that {word.removesuffix('s')}": signs.count(sign) for sign, word in VERDICTS.items()}
    cells = [Cell(row, column, [count], unit="", digits=0, n=n) for column, count in counts.items()]
    for column, found in (("by ranges", signs), ("by ranges, lossy baseline", lossy)):
        verdict = (found.count(1) > 0) - (found.count(-1) > 0)
        cells.append(Cell(row, column, [verdict], unit="", n=n, word=VERDICTS[verdict]))
    gain = Cell(row, "gain, all levels", [100 * gain], low=100 * low, high=100 * high, n=n, unit="points")
    return [*cells, gain, Cell(row, "by speaker p", [p], n=n, unit="", digits=4)]


def compare(mean_a, sd_a, mean_b, sd_b):
    """1, 0, -1: a wins, ties, loses; "equivalent when ranges overlap" (Sec. 4.3), mean ± sd, or just touch."""
    return 0 if abs(mean_a - mean_b) <= sd_a + sd_b else int(np.sign(mean_a - mean_b))


def write_costs(run, costs):
    """What an epoch of the autoencoder costs beside one of the backbone (Section 4.2: 14 times less).

    costs  {backbone: seconds of an epoch of the backbone, of the autoencoder, parameters of both, ms of a
           clip}
    """
    columns = (
        "backbone, an epoch",
        "autoencoder, an epoch",
        "ratio",
        "backbone",
        "autoencoder",
        "to impute one clip",
    )
    units = ("s", 1, None), ("s", 2, None), ("", 1, 14.0), ("M", 1, 25.0), ("M", 1, 180.0), ("ms", 2, None)
    cells = []
    for name, (backbone_s, epoch_s, n_backbone, n_autoencoder, ms) in costs.items():
        values = backbone_s, epoch_s, backbone_s / epoch_s, n_backbone / 1e6, n_autoencoder / 1e6, ms
        for column, value, (unit, digits, paper) in zip(columns, values, units):
            cells.append(Cell(name, column, [value], unit=unit, digits=digits, paper=paper))
    run.table(
        "chochlakis_table_cost",
        f"Cost of training, {run.corpus}",
        cells,
        "The backbone is never trained here: its epoch is forward and backward passes of a few batches of clips, times "
        "the clips of the training part, without decoding. The paper: 0.7 and 0.05 GPU hours on CREMA-D with decoding; "
        "its millions of parameters are perhaps units of 2^20.",
    )


def first_masks(outcomes):
    """{system: (S, R)} predictions under the first mask of the middle level, for predictions.csv."""
    found = {}
    for outcome in outcomes:
        k = outcome.n_clips // 2
        for (system, setting), labels in outcome.predicted.items():
            if setting in (("level", 0), ("level", k)):
                lost = f", {percent(k, outcome.n_clips)} lost" if setting[1] else ""
                name = f"{outcome.name} {system.classifier}: {system.label(outcome.n_clips)}{lost}"
                found[name] = labels[:, 0]
    return found
