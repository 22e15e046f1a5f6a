"""TRL's DPOTrainer and prefopt one after the other, each in a fresh process, on the same model and pairs."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.material import SIZES, conversations, make_model, write_rows

ROOT = Path(__file__).parents[1]
CONTESTANTS: dict[str, dict[str, Any]] = {
    "TRL, online reference": {"tool": "trl", "precomputed": False, "checkpointing": True},
    "TRL, precomputed reference": {"tool": "trl", "precomputed": True, "checkpointing": True},
    "TRL, precomputed, no checkpointing": {"tool": "trl", "precomputed": True, "checkpointing": False},
    "prefopt, lean": {"tool": "prefopt", "train": {"gradient_checkpointing": True, "token_budget": 512}},
    "prefopt": {"tool": "prefopt"},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks")
    options.add_argument("--steps", type=int, default=8, help="optimiser steps of each run; the first two warm up")
    options.add_argument("--batch", type=int, default=8, help="pairs a step")
    options.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    options.add_argument("--bf16", action="store_true", help="bf16 autocast for both (for a GPU)")
    options.add_argument("--json", type=Path, help="write the figures there too")
    asked = options.parse_args()
    out = Console()
    figures = {}
    with tempfile.TemporaryDirectory() as place:
        rows, source = conversations()
        for name in asked.sizes:
            figures[name] = compare(Path(place), name, rows, asked, out)
            print_table(SIZES[name].title, source, figures[name], asked, out)
    if not torch.cuda.is_available():
        out.print(
            "A CPU without Triton flatters prefopt: there TRL's log-prob kernel scores every position, prompt and padding "
            "included. On a GPU expect less; run this there before quoting a ratio."
        )
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1))


def compare(place: Path, name: str, rows: list[dict[str, str]], asked: Any, out: Console) -> dict[str, Any]:
    """Contestant -> {seconds, memory, prepare, losses, tokens per second}."""
    model, data = place / name, place / f"{name}.jsonl"
    make_model(model, SIZES[name], rows)
    tokens = write_rows(data, rows, AutoTokenizer.from_pretrained(model), asked.batch * asked.steps)
    per_step = tokens / asked.steps
    found = {}
    for title, how in CONTESTANTS.items():
        with out.status(f"{name}: {title}"):
            answer = run(
                place / f"{name}-{len(found)}", {**how, "model": str(model), "data": str(data), **settings(asked)}
            )
        seconds = statistics.median(answer["seconds"])
        found[title] = {**answer, "seconds": seconds, "tokens": per_step / seconds}
    return found


def settings(asked: Any) -> dict[str, Any]:
    return {"steps": asked.steps, "batch": asked.batch, "bf16": asked.bf16}


def run(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir()
    job |= {"folder": str(folder), "answer": str(folder / "answer.json")}
    (folder / "job.json").write_text(json.dumps(job))
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
        "PREFOPT_CACHE": job.get("cache") or str(folder / "cache"),  # nothing is warm unless it is asked for
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", f"benchmarks.run_{job['tool']}", str(folder / "job.json")]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job['tool']} failed:\n{done.stderr[-3000:]}")
    return json.loads((folder / "answer.json").read_text())


def print_table(title: str, source: str, found: dict[str, Any], asked: Any, out: Console) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    table = Table(
        "", "s/step", "useful tokens/s", "peak MB", "time", "memory", "losses of the first steps",
        title=f"{title}; {device}; batch {asked.batch} pairs; {source}", header_style="bold",
    )  # fmt: skip
    ours = found["prefopt"]
    for name, x in found.items():
        ratio, room = x["seconds"] / ours["seconds"], x["memory"] / ours["memory"]
        losses = " ".join(f"{v:.4f}" for v in x["losses"][:4])
        shown = ("", "") if name == "prefopt" else (f"{ratio:.2f} x", f"{room:.2f} x")
        table.add_row(name, f"{x['seconds']:.3f}", f"{x['tokens']:,.0f}", f"{x['memory'] / 2**20:,.0f}", *shown, losses)
    out.print(table)
    waits = ", ".join(f"{name} {x['prepare']:.1f} s" for name, x in found.items())
    out.print(
        f"before the first step: {waits}\n"
        "Time and memory: how many times prefopt's. Useful tokens: prompt and answer of both sides, without padding. "
        "lean: checkpointed activations, micro-batches of 512 tokens; the step is the same."
    )


if __name__ == "__main__":
    main()
