"""The trainings of a script shared out to several processes or machines, each of which runs the script again.

What a script trains is kept on disk and never trained twice. A run with SHARE = "2/3" trains the second of three shares
and makes no tables; a run without it finds all of it done. JOBS starts such runs on one machine: small models leave
most of a GPU idle, and on a CPU two processes of one thread get further than one process of two.
"""

import os
import subprocess
import sys
import threading
import time

from common.errors import UserError

PARENT = "SHARES_PARENT"  # environment variable: the process that started this one


def read_share(text):
    """ "2/3" -> (1, 3): number of the share, from 0, and how many there are; "" -> (0, 1), everything.

    Raises UserError for anything else.
    """
    number, _, count = text.partition("/") if text else ("1", "", "1")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"SHARE={text}: write it as 2/3, the second of three shares")
    return int(number) - 1, int(count)


def run_shares(n_jobs):
    """Run this script again in n_jobs processes, each with another SHARE, print what they print, and wait for them.

    Raises UserError where one of them fails; the others are then ended, and what they finished is kept.
    """
    threads = max(1, (os.cpu_count() or 1) // n_jobs)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TQDM_DISABLE": "1",
        PARENT: str(os.getpid()),
    }
    jobs = [
        subprocess.Popen(
            [sys.executable, *sys.argv, f"--SHARE={i + 1}/{n_jobs}"],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
        )
        for i in range(n_jobs)
    ]
    readers = [threading.Thread(target=pass_on, args=(job.stdout,), daemon=True) for job in jobs]
    for reader in readers:
        reader.start()
    try:
        while any(job.poll() is None for job in jobs) and not any(job.returncode for job in jobs):
            time.sleep(0.1)
    finally:
        for job, reader in zip(jobs, readers):
            job.terminate()
            job.wait()
            reader.join(10)  # its own workers may outlive a job that was ended for a moment
    if any(job.returncode for job in jobs):
        raise UserError(f"JOBS={n_jobs}: a process failed, as it says above; what was finished is kept")


def pass_on(lines):
    """Print lines whole: two processes that write to one file at once would break each other's."""
    for line in lines:
        sys.stdout.write(line)
        sys.stdout.flush()


def end_with_parent(parent):
    """End this process when the one with the number `parent` that started it is gone: a killed one cannot do it."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def follow_parent():
    """`end_with_parent` in a process that `run_shares` started; nothing in others."""
    if PARENT in os.environ:
        end_with_parent(int(os.environ[PARENT]))
