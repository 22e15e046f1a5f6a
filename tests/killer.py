"""Runs prefopt commands in processes that are killed (SIGKILL), at a chosen moment or at the n-th change of a file.

    python -m tests.killer jobs.json

A job is {"argv": [...], "cache": folder, "log": file, "event": n, "seconds": s}; instead of them "share" and "time" are
shares of what the first job, which is not killed, needed. Libraries are imported once; each job is a fork, so that a start
costs nothing. One line of JSON per job: {"code": exit code, -9 if killed;
"events": changes of files until the end; "seconds"}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from typing import Any

CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "sqlite3.connect",
    "shutil.rmtree",
    "tempfile.mkdtemp",
}


def main() -> None:
    import prefopt.cli
    import prefopt.recipes.online_dpo
    import prefopt.rollout.samples
    import prefopt.training.diffusion_task
    import prefopt.training.run
    import prefopt.training.text_task
    import prefopt.training.transition_task  # noqa: F401

    with open(sys.argv[1]) as f:
        jobs = json.load(f)
    whole: dict[str, Any] = {}
    for job in jobs:
        if "share" in job:
            job["event"] = max(1, round(job["share"] * whole["events"]))
        if "time" in job:
            job["seconds"] = job["time"] * whole["seconds"]
        found = run(job)
        whole = whole or found
        print(json.dumps(found), flush=True)


def run(job: dict[str, Any]) -> dict[str, Any]:
    told, tell = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(told)
        _command(job, tell)
    os.close(tell)
    if job.get("seconds") is not None:
        _kill_after(child, start + job["seconds"])
    _, status = os.waitpid(child, 0) if child not in _REAPED else (child, _REAPED.pop(child))
    with os.fdopen(told) as pipe:
        events = pipe.read()
    return {"code": os.waitstatus_to_exitcode(status), "events": int(events or 0), "seconds": time.monotonic() - start}


_REAPED: dict[int, int] = {}


def _kill_after(child: int, end: float) -> None:
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _REAPED[child] = status
            return
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)


def _command(job: dict[str, Any], tell: int) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["PREFOPT_CACHE"] = job["cache"]
    code, count = 1, 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if written or event in CHANGES:
            count += 1
            if count == job.get("event"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    from prefopt import cli

    sys.argv = ["prefopt", *job["argv"]]
    try:
        cli.main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        events = count
        os.write(tell, str(events).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
