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
    check_problems(folder, problems, len(ids), how.max_problem_share)
    return writer.finish()


def announce(writer, n_items, what, need_bytes):
    """Print what there is to do and what it takes; UserError if the disk is too small."""
    need = need_bytes - sum(path.stat().st_size for path in writer.folder.glob("*.npy"))
    free, resumed = free_bytes(writer.folder), f", {len(writer.done):,} are there" if writer.done else ""
    sizes = f"about {need_bytes / 1e9:.3f} GB{resumed}; {free / 1e9:.1f} GB free"
    print(f"extracting {what} of {n_items:,} recordings into {writer.folder}: {sizes}", flush=True)
    if need > free:
        raise UserError(
            f"{writer.folder}: needs {need / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free; "
            "choose another DATA_ROOT or fewer recordings"
        )


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


def check_problems(folder, problems, n_items, most):
    """Say how many recordings are left out, and why; UserError for more than a share `most` of them."""
    if not problems:
        return
    share, path = len(problems) / n_items, folder / "problems.csv"
    kinds = Counter(re.split("[;:(]", problem.problem)[0].strip() for problem in problems).most_common(4)
    listed = ", ".join(f"{count:,} x {kind}" for kind, count in kinds)
    first = next(p for p in problems if p.problem.startswith(kinds[0][0]))
    if share > most or len(problems) == n_items:
        raise UserError(
            f"{path}: {len(problems):,} of {n_items:,} recordings cannot be used ({listed}), such as "
            f"{first.file}: {first.problem}; {first.remedy or 'mend them'} and run again (what is there is "
            f"kept), or raise MAX_PROBLEM_SHARE ({most:g})"
        )
    print(f"  left out: {len(problems):,} of {n_items:,} recordings ({share:.1%}): {listed}; see {path}")
