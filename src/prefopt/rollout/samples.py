"""A file of samples that grows chunk by chunk, and goes on where a stopped run left it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from prefopt.data.encode import Encoder
from prefopt.data.example import Example
from prefopt.errors import PrefoptError
from prefopt.rollout.text import Prompt, Sampling, generate

Scorer = Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]]


def generate_file(
    model: torch.nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    path: Path,
    sampling: Sampling | None = None,
    *,
    encoder: Encoder | None = None,
    identity: str = "",
    reward: Scorer | None = None,
    progress: bool = True,
) -> int:
    """Samples every prompt into `path`, one JSON line per prompt; returns how many prompts were sampled now.

    A row is {prompt, responses: [text], tokens: [count], finished: [bool]} and, with a `reward`, {scores: [float]}:
    the ranked-list layout, which `prefopt train` reads. Lines are appended whole. If `path` holds a part of the same
    job (same prompts, sampling and model `identity`), the job goes on after it; another job's file is never touched.
    """
    sampling = sampling or Sampling()
    job = _job(prompts, sampling, identity, reward)
    chunk = max(1, 4 * sampling.batch(model) // sampling.n)
    done = _resume(path, job, chunk, len(prompts))
    with tqdm(total=len(prompts), initial=done, desc="sampling", unit="prompt", delay=1, disable=not progress) as bar:
        for start in range(done, len(prompts), chunk):
            part = list(prompts[start : start + chunk])
            answers = generate(model, tokenizer, part, sampling, encoder=encoder, first=start, progress=False)
            rows: list[dict[str, Any]] = [
                {
                    "prompt": prompt.prompt if isinstance(prompt, Example) else prompt,
                    "responses": [a.text for a in group],
                    "tokens": [len(a.token_ids) for a in group],
                    "finished": [a.finished for a in group],
                }
                for prompt, group in zip(part, answers, strict=True)
            ]
            for row in rows:
                if reward is not None:
                    row["scores"] = list(reward([row["prompt"]] * len(row["responses"]), row["responses"]))
            append_rows(path, rows)
            bar.update(len(part))
    return len(prompts) - done


def _job(prompts: Sequence[Prompt], sampling: Sampling, identity: str, reward: Scorer | None) -> dict[str, Any]:
    settings = {k: v for k, v in asdict(sampling).items() if k != "batch_size"}  # the batch size changes no sample
    plain = [asdict(p) if isinstance(p, Example) else p for p in prompts]
    text = json.dumps(plain, ensure_ascii=False, sort_keys=True, default=str)
    return {
        "prompts": hashlib.sha256(text.encode()).hexdigest(),
        "sampling": settings,
        "model": identity,
        "reward": getattr(reward, "name", reward and repr(reward)),
    }


def _resume(path: Path, job: dict[str, Any], chunk: int, total: int) -> int:
    """Number of rows of this very job that `path` already holds. PrefoptError for another job's file."""
    note = path.with_name(path.name + ".job")
    if path.exists() and path.stat().st_size:
        known = json.loads(note.read_text()) if note.exists() else None
        if known != job:
            differing = (
                "it has no job note"
                if known is None
                else "differing: " + ", ".join(k for k in job if known.get(k) != job[k])
            )
            raise PrefoptError(f"{path} already holds samples of another job ({differing}); choose another output file")
        return whole_chunks(path, chunk, total)
    path.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(job))
    path.touch()
    return 0


def whole_chunks(path: Path, chunk: int, total: int) -> int:
    """Number of rows that `path` holds in whole chunks, or all `total`; what a crash left of another chunk is removed.

    Whole chunks, because the rounding of a model depends on the company in a batch: so a run that was stopped ends
    with the very samples of one that was not.
    """
    with path.open("r+b") as file:
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        done = len(lines) if len(lines) == total else len(lines) - len(lines) % chunk
        file.truncate(sum(map(len, lines[:done])))
    return done


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines at the end of a file, on the disk when it returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())
