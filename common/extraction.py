"""Read every recording once, compute what is kept of it, and store that: inputs, codes, states and features.

A recording that cannot be read is left out and named in problems.csv. A run that was killed resumes with the
first recordings that the store lacks, and leaves the same bytes as one that was not.
"""

import re
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from common.files import UserError, free_bytes, hash_of, write_csv
from common.manifest import Problem
from common.media import MediaError
from common.store import Store, StoreWriter

AHEAD = 2  # recordings that each worker reads ahead
MANY_PROBLEMS = 100  # with fewer, all recordings are tried before a run is stopped for its problems


@dataclass
class Extraction:
    """How recordings become rows of a store; nothing here changes what is stored."""

    batch: int = 64  # recordings that are computed together
    workers: int = 0  # threads that read; 0 = read and compute in turn
    max_problem_share: float = 0.05  # stop where more than this share of the recordings has to be left out


def extract(items, read, compute, folder, identity, how, what, need_bytes):
    """Write what is computed of some recordings into a Store, or resume one that was interrupted.

    items       {id: what `read` takes}, in the order of the store
    read        read(item) -> x, in a thread; MediaError, or what else a decoder raises, makes it a problem
    compute     compute(list of x) -> (arrays, rows) for StoreWriter.add
    identity    JSON-ready dict: what the content depends on besides the ids; another one starts afresh
    what        names the content in messages, such as "clip features"
    need_bytes  estimate of the whole store on disk
    For one process: where several train, the others wait. Returns the Store.
    Raises UserError if the disk is too small, before anything is written, or for too many problems.
    """
    folder, ids = Path(folder), list(items)
    if not ids:
        raise UserError(f"{what}: there are no recordings to extract; check the corpus and its selection")
    if broken := [name for name in ids if len(name.splitlines()) != 1]:
        raise UserError(f"{broken[0]!r}: not an id of a recording; an id is one line and not empty")
    writer = StoreWriter(folder, {**identity, "ids": hash_of(ids)})
    if writer.complete:
        store = Store(folder)
        left_out = f", {len(store.problems):,} left out, see problems.csv" if store.problems else ""
        print(f"{folder}: {what} of {len(store):,} recordings are there{left_out}", flush=True)
        return store
    announce(writer, len(ids), what, need_bytes)
    problems = write_missing(items, read, compute, writer, how, what)
    write_csv(folder / "problems.csv", map(asdict, problems), [f.name for f in fields(Problem)])
    most = min(how.max_problem_share, 1 - 1e-9)  # an empty store serves nobody
    check_problems(folder / "problems.csv", problems, ids, most)
    return writer.finish()


def announce(writer, n_items, what, need_bytes):
    """Print what there is to do and what it takes; UserError if the disk is too small."""
    need = need_bytes - sum(path.stat().st_size for path in writer.folder.glob("*.npy"))
    free, resumed = free_bytes(writer.folder), f", {len(writer.done):,} are there" if writer.done else ""
    sizes = f"about {need_bytes / 1e9:.3f} GB{resumed}; {free / 1e9:.1f} GB free"
    print(f"extracting {what} of {n_items:,} recordings into {writer.folder}: {sizes}", flush=True)
    if need > free:
        what = f"needs {need / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free"
        raise UserError(f"{writer.folder}: {what}; choose another DATA_ROOT or fewer recordings")


def write_missing(items, read, compute, writer, how, what):
    """Add to a store what it lacks; returns the Problems."""
    ids, problems, started = list(items), [], time.monotonic()
    groups = [ids[i : i + how.batch] for i in range(0, len(ids), how.batch)]
    groups = [missing for g in groups if (missing := [name for name in g if name not in writer.done])]
    n_left = sum(map(len, groups))
    most = max(MANY_PROBLEMS, how.max_problem_share * len(ids))
    found = read_ahead(read, [(name, items[name]) for group in groups for name in group], how.workers)
    with tqdm(total=n_left, desc=f"extracting {what}", disable=None, leave=False) as bar:
        for group in groups:
            results = [(name, next(found)) for name in group]
            problems += [x for _, x in results if isinstance(x, Problem)]
            if good := [(name, x) for name, x in results if not isinstance(x, Problem)]:
                writer.add([name for name, _ in good], *compute([x for _, x in good]))
            bar.update(len(group))
            if len(problems) > most:
                found.close()
                break
    seconds = time.monotonic() - started
    print(f"  {n_left:,} recordings in {seconds:.1f} s, {n_left / max(seconds, 1e-9):,.1f} per s", flush=True)
    return problems


def read_ahead(read, items, workers):
    """Yield read(item) or a Problem for all (id, item) in order; few results wait in memory."""
    waiting = deque()
    # Threads, not processes: decoders and torch work without Python's lock, and nothing is copied.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read_one, read, *item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def read_one(read, name, item):
    try:
        return read(item)
    except MediaError as error:
        return Problem(name, str(error.path), error.reason, error.remedy)
    except UserError:
        raise
    except Exception as error:  # whatever a decoder makes of one damaged file must not end the run
        reason = f"cannot be read ({type(error).__name__}: {error})"
        return Problem(name, str(item), reason, "download it again, or leave it out of the corpus")


def kind_of(problem):
    """The first words of a Problem, without its numbers."""
    return re.sub(r"[\d.]+", "…", re.split("[;:(]", problem.problem)[0].strip())


def check_problems(path, problems, ids, max_share, what="recordings cannot be used"):
    """Say how many of the ids have problems, and which; UserError for more than a share max_share of them.

    Each counts once, however many problems it has; so does a file that belongs to none of them.
    """
    if not problems:
        return
    affected, kinds = {p.utterance_id or p.file for p in problems}, Counter(map(kind_of, problems))
    n = len(affected.union(ids))
    listed = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common(4))
    told = f"{len(affected):,} of {n:,} {what}"
    if len(affected) > max_share * n:
        worst = next(p for p in problems if kind_of(p) == kinds.most_common(1)[0][0])
        own = f" ({worst.remedy})" if worst.remedy else ""
        such = f"{worst.file or worst.utterance_id}: {worst.problem}{own}"
        remedy = f"mend them and run again, or raise MAX_PROBLEM_SHARE ({max_share:g})"
        raise UserError(f"{path}: {told} ({listed}), such as {such}; {remedy}")
    print(f"  problems  {told} ({len(affected) / n:.1%}): {listed}; see {path}")
