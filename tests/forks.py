"""Commands and functions in processes of their own, several at once as torchrun starts them, killed when asked (SIGKILL).

`python -m tests.forks` imports everything once and forks for every job, so that a process costs no start; `Forks` is the
caller's side of it. A job is either a prefopt command or a function of a test module:

    argv       the command's arguments, or
    call       "module:function", called with `arguments`, strings
    processes  how many; more than one are the ranks of a group. If one fails, the others are killed
    cache      the prefopt cache of the job; None: that of the tests
    event      the process is killed at its n-th change of any file
    seconds    it is killed after so long
    out, err   files that stdout and stderr are added to
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LONGEST = 300  # seconds of a job
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


# ---- the caller's side


@dataclass(frozen=True)
class Done:
    """What became of a job."""

    code: int  # exit code of the first process that failed, -9 if it was killed; 0
    events: int  # changes of files that the first process made
    seconds: float
    stdout: str
    stderr: str


class Forks:
    """The process that forks, started with the first job."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.process: subprocess.Popen[str] | None = None

    def run(self, *argv: object, call: str | None = None, arguments: tuple[object, ...] = (), **more: Any) -> Done:
        """Waits for the end of one job; `more` as in the head of this file."""
        self.count += 1
        files = {name: self.folder / f"{self.count}.{name}" for name in ("out", "err")}
        job: dict[str, Any] = {"call": call, "arguments": list(map(str, arguments)), "argv": list(map(str, argv))}
        answer = self._ask(job | {k: str(v) for k, v in files.items()} | more)
        return Done(*answer, *(path.read_text(errors="replace") for path in files.values()))

    def _ask(self, job: dict[str, Any]) -> tuple[int, int, float]:
        if self.process is None:
            environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.process = subprocess.Popen([sys.executable, "-m", "tests.forks"], cwd=ROOT, env=environment, **pipes)
        p = self.process
        assert p.stdin is not None and p.stdout is not None
        print(json.dumps(job), file=p.stdin, flush=True)
        assert select.select([p.stdout], [], [], 2 * LONGEST)[0], f"no answer to {job}"
        line = p.stdout.readline()
        assert line, f"the process that forks ended with {p.wait()}"
        return tuple(json.loads(line))  # type: ignore[return-value]

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait(30)


# ---- the process that forks


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what an import prints is no answer
    os.dup2(2, 1)
    _import_all()
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)
    os._exit(0)  # seconds faster than to take apart what was imported


def _import_all() -> None:
    import datasets  # noqa: F401
    import diffusers
    import peft  # noqa: F401
    import torch
    import transformers

    import prefopt

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(prefopt.__path__, "prefopt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (
        "LlamaForCausalLM",
        "PreTrainedTokenizerFast",
        "CLIPModel",
        "CLIPTextModel",
        "CLIPTokenizer",
        "Trainer",
    ):
        getattr(transformers, name)  # these libraries import what is asked for
    for name in ("StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL", "DDIMScheduler"):
        getattr(diffusers, name)
    gc.freeze()  # every run ends in a collection, which would walk through the libraries


def _run(job: dict[str, Any]) -> tuple[int, int, float]:
    begun = time.monotonic()
    ranks = job.get("processes", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told, tell = os.pipe()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            os.close(told)
            if ranks > 1:
                group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
                os.environ |= {k: str(v) for k, v in group.items()}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            _be(job, tell if rank == 0 else None)
        children.append(child)
    os.close(tell)
    code = _wait(children, begun + job.get("seconds", LONGEST))
    with os.fdopen(told) as pipe:
        events = int(pipe.read() or 0)
    return code, events, time.monotonic() - begun


def _wait(children: list[int], end: float) -> int:
    """The exit code of the first that fails, or 0; the others are killed then, or all of them when their time is up."""
    failed = 0
    while children:
        for child in children[:]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                failed = failed or os.waitstatus_to_exitcode(status)
        if failed or time.monotonic() > end:
            for child in children:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return failed


def _be(job: dict[str, Any], tell: int | None) -> None:
    """The forked process, to its end."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if job.get("cache"):
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
    try:
        _do(job)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        if tell is not None:
            os.write(tell, str(count).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _do(job: dict[str, Any]) -> None:
    if job["call"]:
        module, function = job["call"].split(":")
        getattr(importlib.import_module(module), function)(*job["arguments"])
    else:
        from prefopt import cli

        sys.argv = ["prefopt", *job["argv"]]
        cli.main()


if __name__ == "__main__":
    main()
