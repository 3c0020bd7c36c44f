"""Independent trainings side by side, in processes of this machine."""

import copyreg
import math
import os
import threading
import time
from datetime import timedelta
from importlib import import_module
from multiprocessing import current_process
from unittest import mock

import torch
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import process_executor

GB_PER_JOB = 20  # of a GPU's memory, for each of several trainings that share it

# A function that names torch and any attribute `classes` or `ops` takes these along; they cannot be pickled.
for module in (torch.classes, torch.ops):
    copyreg.pickle(type(module), lambda module: (import_module, (module.__name__,)))


def side_by_side(function, tasks, jobs):
    """[function(*task) for task in tasks], computed by `jobs` processes; with jobs=1 in this one.

    Each process has its share of the cores. What a task needs travels to it by value, a script's functions
    and constants too, so that a task holds names and settings and opens data and models itself. The first
    error ends all; what was finished is kept. The processes spread over the GPUs; where `accelerate launch`
    has started several there are no others.
    """
    is_launched = int(os.environ.get("WORLD_SIZE", 1)) > 1
    jobs = 1 if is_launched else min(jobs, len(tasks), places_on_gpus(jobs))
    if jobs <= 1:
        return progress((function(*task) for task in tasks), len(tasks))
    how = {"TQDM_DISABLE": "1"}  # bars would overwrite each other
    how["JOBS_PER_GPU"] = str(math.ceil(jobs / max(1, torch.cuda.device_count())))
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with mock.patch.dict(os.environ, how), parallel_config("loky", inner_max_num_threads=threads):
        parallel = Parallel(jobs, batch_size=1, return_as="generator")
        return progress(parallel(delayed(run_task)(os.getpid(), function, t) for t in tasks), len(tasks))


def progress(results, n):
    """The list of n results; after each prints "[3/18] finished, about 0:12:40 left"."""
    found, started, is_first = [], time.monotonic(), os.environ.get("RANK", "0") == "0"
    for result in results:
        found.append(result)
        seconds = (time.monotonic() - started) / len(found) * (n - len(found))
        left = timedelta(seconds=round(seconds))
        if n > 1 and is_first:
            print(f"  [{len(found)}/{n}] finished, about {left} left", flush=True)
    return found


def places_on_gpus(jobs):
    """How many of some jobs the GPUs have room for, at least one each; all of them without a GPU."""
    n_gpus = torch.cuda.device_count()
    gb = [torch.cuda.get_device_properties(i).total_memory / 1e9 for i in range(n_gpus)]
    places = sum(max(1, int(size / GB_PER_JOB)) for size in gb) if gb else jobs
    if places < jobs:
        print(f"JOBS={jobs}: {places} at a time, {GB_PER_JOB} GB each, have room on {n_gpus} GPU(s)")
    return min(places, jobs)


def run_task(parent, function, task):
    """function(*task), in a process that ends when its parent is gone."""
    end_with_parent(parent)
    if n_gpus := torch.cuda.device_count():
        number = current_process().name.rpartition("-")[2]  # of LokyProcess-1, -2, ...
        torch.cuda.set_device(int(number) % n_gpus)
    process_executor._MAX_MEMORY_LEAK_SIZE = float("inf")  # models grow it; a new process imports torch again
    return function(*task)


def end_with_parent(parent):
    """End this process when the one with the number `parent` that started it is gone: a killed one cannot."""
    if any(thread.name == "end_with_parent" for thread in threading.enumerate()):
        return

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()
