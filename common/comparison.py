"""What systems predict of the same utterances; is one better than another, and could it be chance?"""

import numpy as np
from scipy.stats import binomtest

from common.metrics import chance_text, cluster_bootstrap, gain
from common.results import Cell, score_cells
from common.splits import has_sessions

EXACT_CLUSTERS = 12  # up to 2 ** 12 sign patterns are enumerated, beyond that they are drawn


def mcnemar(correct_a, correct_b):
    """Exact two-sided McNemar test of two classifiers on the same utterances; correct_a, correct_b (N,) bool.

    Returns p, of a split at least as uneven of the utterances that only one of them has right. It takes
    utterances for independent, so p is too small where speakers differ; `paired_permutation` does not.
    """
    only_a, only_b = np.sum(correct_a & ~correct_b), np.sum(~correct_a & correct_b)
    return binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0


def paired_permutation(correct_a, correct_b, clusters, n_resamples, seed):
    """Sign-flip test of the difference in accuracy that swaps the two classifiers for whole speakers.

    correct_a, correct_b  (N,) bool or 0/1, or (S, N) for S seeds, which are averaged
    clusters              (N,) speaker of each utterance
    n_resamples           sign patterns drawn where more than EXACT_CLUSTERS speakers forbid enumerating all
    Returns (difference in accuracy, two-sided p). With K speakers p cannot be below 2 / 2 ** K: 2/1024 for
    the ten of IEMOCAP, however clear the difference; below six speakers it never reaches 0.05.
    """
    better = np.atleast_2d(correct_a).astype(float).mean(0) - np.atleast_2d(correct_b).astype(float).mean(0)
    _, member = np.unique(clusters, return_inverse=True)
    per_cluster = np.bincount(member, weights=better)  # (K,)
    k = len(per_cluster)
    exact = k <= EXACT_CLUSTERS
    if exact:
        bits = np.arange(2**k)[:, None] >> np.arange(k) & 1
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (n_resamples, k))
    # Ties count as at least as large, whatever the rounding of the seeds' averages.
    as_large = np.abs((2 * bits - 1) @ per_cluster) >= abs(per_cluster.sum()) - 1e-9
    p = as_large.mean() if exact else (as_large.sum() + 1) / (n_resamples + 1)
    return float(better.mean()), float(p)


def holm(p_values):
    """Holm's step-down correction of a family of p-values (K,) -> (K,), in the order given."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    corrected = np.empty_like(p_values)
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)).clip(max=1)
    return corrected


def compare(y_true, ours, theirs, clusters, n_resamples):
    """Is one system better than another, by how much, and could it be chance?

    y_true, clusters  (N,); ours, theirs  (S, N) predictions of the same S seeds
    Returns (gain in accuracy, low, high, p of McNemar's test, p of swapping whole speakers). McNemar knows no
    seeds: the largest of their p-values is given.
    """
    a, b = ours == y_true, theirs == y_true
    difference, p_clusters = paired_permutation(a, b, clusters, n_resamples, 0)
    low, high = cluster_bootstrap(gain, a.astype(int), b.astype(int), clusters, n_resamples, 0, n_classes=2)
    return difference, low, high, max(mcnemar(*pair) for pair in zip(a, b)), p_clusters


def paired_test_cells(column, pairs, y_true, speakers, n_resamples, sessions=None):
    """A table of paired tests: (its cells, what to say beneath).

    column    heading of the gain; pairs: {row: (ours, theirs)}, each (S, N) predictions of the same S seeds
    y_true    (N,) integers; speakers, sessions (N,): of the scored turns alone; None = there are no sessions
    """
    by = {"speaker": speakers} if sessions is None else {"speaker": speakers, "session": sessions}
    found = {
        unit: np.array([compare(y_true, *pair, clusters, n_resamples) for pair in pairs.values()])
        for unit, clusters in by.items()
    }  # (rows, 5)
    p = {"McNemar p": found["speaker"][:, 3], "McNemar, Holm": holm(found["speaker"][:, 3])}
    p |= {"by speaker p": found["speaker"][:, 4], "by speaker, Holm": holm(found["speaker"][:, 4])}
    p |= {"by session p": found["session"][:, 4]} if "session" in by else {}
    cells, n = [], len(y_true)
    for j, row in enumerate(pairs):
        for unit, heading in zip(by, (column, f"{column}, sessions resampled")):
            gain, low, high = (100 * found[unit][j, :3]).tolist()
            cells.append(Cell(row, heading, [gain], low=low, high=high, n=n, unit="points"))
        cells += [Cell(row, name, [float(values[j])], n=n, unit="", digits=4) for name, values in p.items()]
    counts = {unit: len(set(clusters)) for unit, clusters in by.items()}
    least = {unit: f"{k} {unit}s give no p below {2 / 2 ** min(k, 30):.3g}" for unit, k in counts.items()}
    note = (
        "McNemar: exact, turns taken as independent, the largest p of the seeds. By speaker: whole speakers "
        f"swapped; {least['speaker']}. Holm: corrected over the rows of this table."
    )
    if "session" in by:
        note += (
            " Speakers of a session share dialogues and a model, so that tests by speaker reject too often. "
            f"By session: whole test groups are swapped and resampled; {least['session']}."
        )
    return cells, note


class Scores:
    """What systems predict of the labelled turns of a corpus on all folds and seeds, for cells and tests.

    source  whatever the makers of tables describe below them
    """

    def __init__(self, manifest, folds, seeds, n_resamples, source):
        self.n_resamples = n_resamples
        self.turns, self.classes = manifest.labelled, manifest.classes
        self.corpus, self.folds, self.seeds, self.source = manifest.corpus, folds, seeds, source
        self.y = np.array([self.classes.index(turn.label) for turn in self.turns])
        self.speakers = np.array([turn.speaker for turn in self.turns])
        self.sessions = np.array([turn.session for turn in self.turns]) if has_sessions(self.turns) else None
        row = {turn.utterance_id: i for i, turn in enumerate(self.turns)}
        self.tested = [np.array([row[turn.utterance_id] for turn in fold.test]) for fold in folds]
        self.scored = np.sort(np.concatenate(self.tested))
        self.predicted = {}  # system -> (seeds, N) class numbers, -1 where not scored
        self.losses = {}  # system -> (seeds, folds), on the turns that chose its settings

    def add(self, system, seed, k, labels, loss=np.nan):
        """Take in the classes (n,) of the test turns of fold k, -1 = none; loss: what `best` compares."""
        i, rows = self.seeds.index(seed), self.tested[k]
        predicted = self.predicted.setdefault(system, np.full((len(self.seeds), len(self.turns)), -1))
        assert (predicted[i, rows] == -1).all(), "a turn is in two test sets"
        predicted[i, rows] = labels
        self.losses.setdefault(system, np.zeros((len(self.seeds), len(self.folds))))[i, k] = loss

    def check(self):
        """Every labelled turn is scored exactly once by each system and seed."""
        for system, labels in self.predicted.items():
            assert (labels[:, self.scored] >= 0).all(), f"{system}: a labelled turn was not scored"
        once = f"once by each of {len(self.predicted)} systems and {len(self.seeds)} seed(s)"
        print(f"pooled n = {len(self.scored):,}: every labelled turn is scored exactly {once}")

    def runs(self, turns=None):
        """{(seed, fold): (rows of predictions, turns tested)}; turns: only these."""
        found, n = {}, len(self.seeds)
        for i, seed in enumerate(self.seeds):
            for fold, tested in zip(self.folds, self.tested):
                part = tested if turns is None else np.intersect1d(tested, turns)
                if len(part):
                    found[seed, fold.name] = slice(i, None, n), part
        return found

    def data(self, predictions, turns=None):
        """What score_cell takes, of predictions (seeds, N), or several below each other, of some turns."""
        runs, only = self.runs(turns), np.full_like(predictions, -1)
        for rows, tested in runs.values():
            only[rows, tested] = predictions[rows, tested]
        return self.y, only, self.speakers, runs, self.n_resamples

    def cells(self, row, metrics, predictions, turns=None, paper=None):
        """`score_cells` of predictions as in `data`."""
        return score_cells(row, metrics, *self.data(predictions, turns), paper=paper)

    def best(self, systems):
        """Predictions (seeds, N) of the system of the lowest loss on each fold, and {system: how often}."""
        losses = np.stack([self.losses[system] for system in systems])  # (systems, seeds, folds)
        predictions, wins = np.full_like(self.predicted[systems[0]], -1), dict.fromkeys(systems, 0)
        for i, k in np.ndindex(losses.shape[1:]):
            system = systems[int(losses[:, i, k].argmin())]
            predictions[i, self.tested[k]] = self.predicted[system][i, self.tested[k]]
            wins[system] += 1
        return predictions, {system: count for system, count in wins.items() if count}

    def pairs(self, pairs):
        """What paired_test_cells takes, of {row: (predictions, those of a rival)}."""
        rows = self.scored
        pairs = {name: (ours[:, rows], rival[:, rows]) for name, (ours, rival) in pairs.items()}
        sessions = None if self.sessions is None or len(self.folds) < 2 else self.sessions[rows]
        return pairs, self.y[rows], self.speakers[rows], self.n_resamples, sessions

    def chance(self):
        return chance_text(self.y[self.scored], len(self.classes))
