"""Figures 2-4 of Chochlakis et al. 2024, their numbers as tables, the 12 cases, and what goes beyond the paper.

`plan` lists every System that they need, once; 06 trains and tests them; `write` draws what they found. The paper gives
its results as curves alone, so that no number of it stands beside ours.
"""

from dataclasses import dataclass

import numpy as np

from common import metrics, plots
from common.chochlakis.mae import MODALITIES, overlap
from common.errors import UserError
from common.files import read_json
from common.results import Cell, score_cell

FIGURES = {"avid-cma": "fig_2", "crisscross": "fig_3"}
WHOLE = ("none", "audio", "video")  # ways to "impute" where nothing is lost
PAPER_CASES = {
    f"{corpus}, {backbone}, {head}"
    for corpus in ("cremad", "ravdess", "lombard")
    for backbone in FIGURES
    for head in ("linear", "gru")
}
PAPER_WINS = 10  # of these 12: all but CrissCross on RAVDESS (Section 4.3)
CASE_COLUMNS = {
    "levels that win": 0,
    "levels that tie": 0,
    "levels that lose": 0,
    "gain in accuracy, all levels": 2,
    "by speaker p": 4,
    "by ranges, lossy baseline": 0,
}  # and their digits
CASE_ORDER = (
    *list(CASE_COLUMNS)[:3],
    "by ranges",
    "by ranges, lossy baseline",
    "gain in accuracy, all levels",
    "by speaker p",
    "by speaker, Holm",
    "by test",
)
BARS = "Bars: sd; curves are set off sideways a little."
VERDICTS = {1: "wins", 0: "ties", -1: "loses"}
ALPHA = 0.05  # of the paired test


# ---- Systems -------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """A classifier, how lost clips are replaced before it, and what it was fine-tuned on.

    head     "linear" or "gru"
    imputer  "none" (nothing is lost), "audio", "video" (one modality alone, nothing of it lost), "backoff", "zeros",
             "mean", "last", "linear", "MAE", "curri-MAE"
    tuned    () = trained on whole features; "largest", "all", or shares of lost clips: then fine-tuned on imputed ones
    """

    head: str
    imputer: str
    tuned: tuple | str = ()

    def slug(self):
        """Name of its folder, such as curri-MAE_all"""
        tuned = self.tuned if isinstance(self.tuned, str) else "+".join(f"{share:g}" for share in self.tuned)
        return self.imputer + (f"_{tuned}" if tuned else "")

    def label(self):
        """Its name in the paper's figures, or in their manner."""
        names = {
            "none": "Pristine",
            "audio": "Audio only",
            "video": "Video only",
            "backoff": "Backoff",
            "zeros": "Regular",
            "mean": "Mean",
            "last": "Last clip",
            "linear": "Interpolation",
        }
        name = names.get(self.imputer, self.imputer)
        if isinstance(self.tuned, tuple):
            rates = "+".join(f"{100 * share:.0f} %" for share in self.tuned)
            return name + (f"-ft ({rates})" if rates else "")
        return name + {"largest": "-ft", "all": "-ft-all"}[self.tuned]


def plan(heads, mixtures, beyond):
    """Every System that the figures and tables need, each once; those that others start from come first."""
    systems = []
    for head in heads:
        systems += (
            curves_of(head)
            + (figure_4(mixtures) if head == "gru" else [])
            + (baselines(head) if beyond else [])
        )
    return sorted(
        dict.fromkeys(systems),
        key=lambda system: WHOLE.index(system.imputer) if system.imputer in WHOLE else len(WHOLE),
    )


def curves_of(head):
    """The curves of Figures 2 and 3 for one classifier."""
    own = (
        [System(head, "backoff")]
        if head == "linear"
        else [System(head, "zeros"), System(head, "zeros", "all")]
    )
    return [
        *(System(head, whole) for whole in WHOLE),
        *own,
        System(head, "curri-MAE"),
        System(head, "curri-MAE", "largest"),
        System(head, "curri-MAE", "all"),
    ]


def figure_4(mixtures):
    """The GRU, fine-tuned on imputations of the fixed-rate autoencoder at mixtures of rates, and of the other one."""
    shares = [tuple(float(share) for share in mixture.split("+")) for mixture in mixtures]
    return [
        *(System("gru", "MAE", mixture) for mixture in shares),
        System("gru", "MAE", "all"),
        System("gru", "curri-MAE", shares[-1]),
        System("gru", "curri-MAE", "all"),
    ]


def baselines(head):
    """Not in the paper: other ways to impute, each with a classifier that was fine-tuned as long as ours."""
    return [System(head, imputer, "all") for imputer in ("zeros", "mean", "last", "linear")]


def strong_baselines(head):
    """What the method has to win against: that of Section 3.5, and classifiers of one modality, nothing of it lost."""
    own = System(head, "backoff") if head == "linear" else System(head, "zeros", "all")
    return [own, System(head, "audio"), System(head, "video")]


def is_tested(system, setting):
    """Whether a System is tested under a kind of masks: all at equal rates, few on what is not in the paper."""
    kinds = {
        "level": True,
        "burst": system.tuned == "all" and system.imputer in ("zeros", "linear", "curri-MAE"),
        "unequal": system.tuned == "all" and system.imputer == "curri-MAE",
    }
    return kinds[setting[0]]


# ---- Scores --------------------------------------------------------------------------------


def predictions(study, system, setting):
    """(seeds * masks, R) predicted classes; a System that nothing is hidden from has one for all settings."""
    key = ("level", 0) if system.imputer in WHOLE else setting
    return np.concatenate(study.predicted[system, key])  # (S * M, R)


def truth(study):
    return study.test.labels.numpy()


def score(study, system, setting, row, column):
    """Accuracy as a Cell: mean and sd over masks and seeds, interval by speaker."""
    predicted, y = predictions(study, system, setting), truth(study)
    n_masks, right = len(predicted) // len(study.c.SEEDS), (predicted == y).astype(int)
    runs = {
        (seed, f"mask {m + 1}"): (slice(i * n_masks + m, i * n_masks + m + 1), np.arange(len(y)))
        for i, seed in enumerate(study.c.SEEDS)
        for m in range(n_masks)
    }
    # Right or wrong is all that accuracy needs: counts of 2 x 2 are resampled many times faster than C x C.
    return score_cell(
        row, column, metrics.accuracy, np.ones_like(y), right, study.test.speakers, runs, study.c.N_RESAMPLES
    )


def mean_and_sd(study, system, setting):
    """Of the accuracy in %, over masks and seeds, without the interval that `score` takes longer for."""
    accuracy = 100 * (predictions(study, system, setting) == truth(study)).mean(1)  # (S * M,)
    return float(accuracy.mean()), float(accuracy.std(ddof=1)) if len(accuracy) > 1 else 0.0


def levels(study):
    return range(1, study.n_clips)


def percent(study, k):
    return f"{100 * k / study.n_clips:.0f} %"


def curve(study, system):
    """Cells of a System by level of dropout, a single one where nothing is hidden; scored once for all that show it."""
    if system not in study.curves:
        row = f"{system.head}: {system.label()}"
        study.curves[system] = (
            [score(study, system, ("level", 0), row, "none lost")]
            if system.imputer in WHOLE
            else [score(study, system, ("level", k), row, f"{percent(study, k)} lost") for k in levels(study)]
        )
    return study.curves[system]


def chance(study):
    return 100 * metrics.chance(truth(study), len(study.manifest.classes))[0]


def note_of(study, lost="as many lost of audio as of video, independently"):
    """What every table and figure says; lost: which clips are."""
    c, n = study.c, len(study.test)
    pretrained = (
        f"first trained on {c.PRETRAIN_CORPUS}" if c.PRETRAIN_CORPUS else "not pretrained on other recordings"
    )
    networks = (
        f"networks of random weights, calibrated on {c.PRETRAIN_CORPUS or 'training clips'}"
        if c.RANDOM_BACKBONES
        else "the authors' weights"
    )
    without = "".join(
        f", {int(lacks.sum()):,} of them without {name}"
        for lacks, name in zip(study.test.missing.all(2).T, MODALITIES)
        if lacks.any()
    )
    return (
        f"{study.name} ({networks}), autoencoder {pretrained}; {study.n_clips} clips, {lost}; "
        f"mean ± sd over {c.N_MASKS} masks of each recording and seeds {', '.join(map(str, c.SEEDS))}, interval by "
        f"speaker; {n:,} test recordings{without}; majority class {chance(study):.1f} %."
    )


# ---- Tables and figures --------------------------------------------------------------------


def write(run, studies):
    """All tables and figures. studies: {backbone: Study of 06}"""
    c = next(iter(studies.values())).c
    for name, study in studies.items():
        figures_2_and_3(run, study, FIGURES.get(name, f"fig_{name}"))
        if "gru" in c.HEADS:
            draw_figure_4(run, study)
        imputation_table(run, study)
        if c.BEYOND:
            baselines_figure(run, study)
            unequal_figure(run, study)
            bursts_figure(run, study)
    cases_table(run, studies)
    if c.BEYOND:
        cost_table(run, studies)


def as_series(study, systems):
    """{label: (x, y, low, high)} for plots.curve_panels: low and high are a standard deviation off, as in the paper."""
    series = {}
    x = [100 * k / study.n_clips for k in levels(study)]
    for system in systems:
        cells = curve(study, system)
        cells = cells if len(cells) == len(x) else cells * len(x)  # one cell where nothing is lost: a level
        y, sd = [cell.mean for cell in cells], [cell.sd or 0.0 for cell in cells]
        series[system.label()] = (x, y, [a - b for a, b in zip(y, sd)], [a + b for a, b in zip(y, sd)])
    return series


def figures_2_and_3(run, study, stem):
    """Accuracy by level of dropout, (a) linear classifier and (b) GRU, with all curves of the paper."""
    cells = [cell for head in study.c.HEADS for system in curves_of(head) for cell in curve(study, system)]
    number = stem.removeprefix("fig_")
    run.table(
        f"chochlakis_table_{stem}",
        f"Figure {number} in numbers, {study.name}, {run.corpus}",
        cells,
        note_of(study),
    )
    panels = {
        f"({letter}) MAE + {head} and its baseline": as_series(study, curves_of(head))
        for letter, head in zip("ab", study.c.HEADS)
    }
    figure = plots.curve_panels(panels, "lost clips of either modality (%)", "accuracy (%)", chance(study))
    run.figure(
        plots.save(
            figure,
            run.folder,
            f"chochlakis_{stem}_{study.name}",
            f"Figure {number}. Accuracy by level of dropout, {run.corpus}: {note_of(study)} {BARS}",
        )
    )


def draw_figure_4(run, study):
    """The curriculum against fixed-rate training of the autoencoder (Section 4.4)."""
    systems = figure_4(study.c.MIXTURES)
    cells = [cell for system in systems for cell in curve(study, system)]
    about = (
        f"{note_of(study)} GRU, fine-tuned on imputations of the autoencoder trained at a fixed rate (MAE: "
        f"{100 * study.c.FIXED_SHARE:.0f} % of the clips) or with the curriculum, at mixtures of rates."
    )
    run.table(f"chochlakis_table_fig_4_{study.name}", f"Figure 4 in numbers, {run.corpus}", cells, about)
    figure = plots.curve_panels(
        {"": as_series(study, systems)}, "lost clips of either modality (%)", "accuracy (%)", chance(study)
    )
    run.figure(
        plots.save(
            figure,
            run.folder,
            f"chochlakis_fig_4_{study.name}",
            f"Figure 4. Curriculum and fixed rate, {run.corpus}: {about} {BARS}",
        )
    )


def imputation_table(run, study):
    """Beyond the paper: how much of what was lost each way to impute brings back."""
    names = {
        "zeros": "zeros",
        "mean": "training mean",
        "last": "last clip",
        "linear": "interpolation",
        "MAE": "MAE, fixed rate",
        "curri-MAE": "MAE, curriculum",
    }
    cells = [
        Cell(
            names[imputer],
            f"{modality}, {percent(study, k)} lost",
            [pair[m] for pair in found],
            n=len(study.test),
            digits=1,
        )
        for (imputer, k), found in study.errors.items()
        for m, modality in enumerate(MODALITIES)
        if not np.isnan(found[0][m])
    ]
    run.table(
        f"chochlakis_table_imputation_{study.name}",
        f"Error of imputed features, {run.corpus}",
        cells,
        f"Not in the paper. Squared error over hidden test clips as a share of their squared distance from the "
        f"training mean, the median of all features: 100 % is no better than that mean. {note_of(study)}",
    )


def baselines_figure(run, study):
    """Beyond the paper: simple ways to impute, with classifiers that were fine-tuned on them as long as ours."""
    every = {head: [*baselines(head), System(head, "curri-MAE", "all")] for head in study.c.HEADS}
    cells = [cell for systems in every.values() for system in systems for cell in curve(study, system)]
    run.table(
        f"chochlakis_table_baselines_{study.name}",
        f"Simple ways to impute, {run.corpus}",
        cells,
        f"Not in the paper. {note_of(study)}",
    )
    figure = plots.curve_panels(
        {f"MAE + {head}": as_series(study, systems) for head, systems in every.items()},
        "lost clips of either modality (%)",
        "accuracy (%)",
        chance(study),
    )
    run.figure(
        plots.save(
            figure,
            run.folder,
            f"chochlakis_fig_baselines_{study.name}",
            f"Simple ways to impute, {run.corpus}; not in the paper. {note_of(study)} {BARS}",
        )
    )


def unequal_figure(run, study):
    """Beyond the paper: other rates for audio than for video."""
    panels = {}
    for head in study.c.HEADS:
        method, panels[f"MAE + {head}"] = System(head, "curri-MAE", "all"), {}
        for audio in range(study.n_clips):
            for video in range(study.n_clips):
                rates = 100 * audio // study.n_clips, 100 * video // study.n_clips
                panels[f"MAE + {head}"][rates] = mean_and_sd(study, method, ("unequal", audio, video))[0]
    figure = plots.value_maps(panels, "lost audio clips (%)", "lost video clips (%)", "accuracy (%)")
    run.figure(
        plots.save(
            figure,
            run.folder,
            f"chochlakis_fig_unequal_{study.name}",
            f"Unequal rates, {run.corpus}, curri-MAE-ft-all; not in the paper. "
            f"{note_of(study, 'lost of audio and of video, independently, as the axes say')}",
        )
    )


def bursts_figure(run, study):
    """Beyond the paper: neighbouring clips of both modalities lost together, as when a network fails for a while."""
    panels, lost = {}, "as many lost of audio as of video"
    for head in study.c.HEADS:
        series = {}
        for system in (
            System(head, "zeros", "all"),
            System(head, "linear", "all"),
            System(head, "curri-MAE", "all"),
        ):
            for kind, name in (("level", "scattered"), ("burst", "in a row")):
                scores = [mean_and_sd(study, system, (kind, k)) for k in levels(study)]
                series[f"{system.label()}, {name}"] = (
                    [100 * k / study.n_clips for k in levels(study)],
                    [mean for mean, _ in scores],
                    [mean - sd for mean, sd in scores],
                    [mean + sd for mean, sd in scores],
                )
        panels[f"MAE + {head}"] = series
    figure = plots.curve_panels(panels, "lost clips of either modality (%)", "accuracy (%)", chance(study))
    run.figure(
        plots.save(
            figure,
            run.folder,
            f"chochlakis_fig_bursts_{study.name}",
            f"Clips lost at random places (solid), or neighbours and both modalities at once (broken "
            f"lines); {run.corpus}, not in the paper. {note_of(study, lost)} {BARS}",
        )
    )


# ---- The cases -----------------------------------------------------------------------------


def cases_table(run, studies):
    """Corpus x backbone x head: where the method wins, ties or loses, by the paper's rule and by a paired test.

    Cases of other corpora are those of their last run, as its metrics.json has them.
    """
    cells = [cell for study in studies.values() for head in study.c.HEADS for cell in case(study, head)]
    earlier, sources = earlier_cases(run)
    cells += earlier
    rows = list(dict.fromkeys(cell.row for cell in cells))
    cells += verdicts({(cell.row, cell.column): cell for cell in cells}, rows)
    cells.sort(key=lambda cell: CASE_ORDER.index(cell.column))  # rows stay as they are
    n_speakers = len(set(next(iter(studies.values())).test.speakers))
    others = " ".join(
        ["Rows of other corpora are of earlier runs:", "; ".join(sources) + "."]
        if sources
        else ["No results of other corpora are here yet."]
    )
    run.table(
        "chochlakis_table_cases",
        "curri-MAE-ft-all against the best baseline",
        cells,
        "By level, the paper's rule: two results are equivalent where mean ± sd over masks overlap; the baseline "
        "is the best of backoff (linear) or Regular-ft-all (GRU) and of the unimodal classifiers, chosen level "
        'by level on the test part, in their favour. The latter lose nothing; "lossy baseline" leaves them '
        "out, as Section 3.5 does, which may be what the paper counts. It does not say how levels make a case: "
        "here one is won by ranges where some level is won and none is lost, lost where some is lost and none "
        "won. The gain is over all levels and masks, with its interval and permutation test by speaker; a case "
        f"is won or lost by test where p is below {ALPHA:g} after Holm's correction over the rows of this table; "
        f"with the {n_speakers} test speakers of {run.corpus} p is at least {2 / 2 ** min(n_speakers, 30):.2g}. "
        f"The paper counts {PAPER_WINS} wins in {len(PAPER_CASES)} cases. {others}",
    )


def verdicts(found, rows):
    """Cells of the last columns, and of a last row that counts the cases that are won; found: {(row, column): Cell}."""
    tested, name, cells = (
        metrics.holm([found[row, "by speaker p"].mean for row in rows]),
        f"of {len(rows)} cases",
        [],
    )
    won = {
        "by ranges, lossy baseline": sum(found[row, "by ranges, lossy baseline"].mean > 0 for row in rows),
        "by ranges": 0,
        "by test": 0,
    }
    for row, p in zip(rows, tested):
        n, gain = (
            found[row, "gain in accuracy, all levels"].n,
            found[row, "gain in accuracy, all levels"].mean,
        )
        by_ranges = by_levels(found[row, "levels that win"].mean, found[row, "levels that lose"].mean)
        cells.append(Cell(row, "by speaker, Holm", [float(p)], n=n, unit="", digits=4))
        for column, verdict in (("by ranges", by_ranges), ("by test", int(np.sign(gain)) * int(p < ALPHA))):
            cells.append(Cell(row, column, [verdict], n=n, unit="", word=VERDICTS[verdict]))
            won[column] += verdict == 1
    paper = float(PAPER_WINS) if PAPER_CASES == set(rows) else None
    return cells + [
        Cell(
            name,
            column,
            [count],
            paper=paper if "ranges" in column else None,
            unit="",
            digits=0,
            word=f"wins in {count}",
        )
        for column, count in won.items()
    ]


def by_levels(n_won, n_lost):
    """1, 0, -1: a case is won where some level is and none is lost, lost the other way round."""
    return (n_won > 0) - (n_lost > 0)


def earlier_cases(run):
    """(Cells of the cases of other corpora, a line on each run that they are from); a demo's with a demo's alone."""
    cells, sources = [], []
    for path in sorted(run.folder.parent.glob("*/metrics.json")):
        corpus = path.parent.name
        if path.parent == run.folder or corpus.startswith("demo") != run.corpus.startswith("demo"):
            continue
        try:
            found = read_json(path)
        except UserError as error:
            print(f"  {error}; its cases are left out")
            continue
        # Its table also has what it had from others; what is asked for is its own, from a run that wrote all columns.
        own = list(
            dict.fromkeys(
                name.split("/")[1]
                for name in found["metrics"]
                if name.startswith(f"chochlakis_table_cases/{corpus}, ")
            )
        )
        own = [
            row
            for row in own
            if all(f"chochlakis_table_cases/{row}/{column}" in found["metrics"] for column in CASE_COLUMNS)
        ]
        for row in own:
            for column, digits in CASE_COLUMNS.items():
                metric = found["metrics"][f"chochlakis_table_cases/{row}/{column}"]
                word = VERDICTS[metric["mean"]] if column.startswith("by ranges") else ""
                cells.append(
                    Cell(
                        row,
                        column,
                        [metric["mean"]],
                        low=metric["ci_low"],
                        high=metric["ci_high"],
                        n=metric["n"],
                        unit=metric["unit"],
                        digits=digits,
                        word=word,
                    )
                )
        if own:
            changed = " with local changes" * bool(found["dirty"])
            seeds = ", ".join(map(str, found["settings"]["SEEDS"]))
            sources.append(
                f"{corpus} by `{found['command']}`, seeds {seeds}, "
                f"commit {str(found['commit'])[:10]}{changed}, {found['device']}"
            )
    return cells, sources


def case(study, head):
    """The cells of one case: at how many levels the method wins, ties and loses, and its gain over all of them."""
    row, n, ours, theirs, kinds = (
        f"{study.manifest.corpus}, {study.name}, {head}",
        len(study.test),
        [],
        [],
        [],
    )
    lossy = []
    for k in levels(study):
        method, baseline = System(head, "curri-MAE", "all"), best_baseline(study, head, k)
        for others, found in ((baseline, kinds), (strong_baselines(head)[0], lossy)):
            found.append(
                overlap(*mean_and_sd(study, method, ("level", k)), *mean_and_sd(study, others, ("level", k)))
            )
        ours.append(predictions(study, method, ("level", k)) == truth(study))  # (S * M, R)
        right = predictions(study, baseline, ("level", k)) == truth(study)
        theirs.append(np.repeat(right, len(ours[-1]) // len(right), 0))
    pair = np.concatenate(ours), np.concatenate(theirs)  # (levels * S * M, R) each
    verdict = by_levels(lossy.count("win"), lossy.count("loss"))
    gain, p = metrics.paired_permutation(*pair, study.test.speakers, study.c.N_RESAMPLES, 0)
    low, high = metrics.cluster_bootstrap(
        metrics.gain,
        *(right.astype(int) for right in pair),
        study.test.speakers,
        study.c.N_RESAMPLES,
        0,
        n_classes=2,
    )
    return [
        *(
            Cell(row, f"levels that {word}", [kinds.count(kind)], unit="", digits=0, n=n)
            for word, kind in (("win", "win"), ("tie", "tie"), ("lose", "loss"))
        ),
        Cell(
            row,
            "gain in accuracy, all levels",
            [100 * gain],
            low=100 * low,
            high=100 * high,
            n=n,
            unit="points",
        ),
        Cell(row, "by speaker p", [p], n=n, unit="", digits=4),
        Cell(row, "by ranges, lossy baseline", [verdict], n=n, unit="", digits=0, word=VERDICTS[verdict]),
    ]


def best_baseline(study, head, k):
    """Of the strong baselines, the System that is best at one level; the first of those that are as good."""
    return max(strong_baselines(head), key=lambda system: mean_and_sd(study, system, ("level", k))[0])


# ---- Costs ---------------------------------------------------------------------------------


def cost_table(run, studies):
    """What an epoch of the autoencoder costs beside one of the backbone (Section 4.2: 14 times less)."""
    cells = []
    for study in studies.values():
        found = study.costs
        extracted = study.extracted["seconds"] * len(study.parts["train"]) / max(1, study.extracted["new"])
        for column, value, unit, digits, paper in (
            ("backbone, an epoch", found["backbone"], "s", 1, None),
            ("decoding and features, once", extracted, "s", 1, None),
            ("autoencoder, an epoch", found["autoencoder"], "s", 2, None),
            ("ratio", found["backbone"] / found["autoencoder"], "", 1, 14.0),
            ("backbone", found["backbone_parameters"] / 1e6, "M", 1, 25.0),
            ("autoencoder", found["autoencoder_parameters"] / 1e6, "M", 1, 180.0),
            ("to impute one clip", found["latency_ms"], "ms", 2, None),
        ):
            cells.append(Cell(study.name, column, [value], unit=unit, digits=digits, paper=paper))
    run.table(
        "chochlakis_table_cost",
        f"Cost of training, {run.corpus}",
        cells,
        "The backbone is never trained here: its epoch is forward and backward passes of a few batches of clips, "
        "times the clips of the training part, without decoding. The paper: 0.7 and 0.05 GPU hours on CREMA-D "
        "with decoding, 25 and 180 million parameters (counted in units of 2^20: 25.3 and 181.3).",
    )


def first_masks(studies):
    """{system: (seeds, R)} predictions under the first mask of the middle level, for predictions.csv."""
    found = {}
    for study in studies.values():
        k = study.n_clips // 2
        for system, setting in study.predicted:
            if setting in (("level", 0), ("level", k)):
                lost = "" if setting[1] == 0 else f", {percent(study, k)} lost"
                found[f"{study.name} {system.head}: {system.label()}{lost}"] = np.stack(
                    [masks[0] for masks in study.predicted[system, setting]]
                )
    return found
