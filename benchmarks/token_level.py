"""Memory of the token-level methods beside DPO's, each run in a fresh process: `python -m benchmarks.token_level`.

They compare whole distributions at every token, so their reference runs in the step; DPO's log-probabilities of the
reference come from its store. The limit is 1.5 times DPO's peak.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.__main__ import run
from benchmarks.material import SIZES, conversations, make_model, write_rows

LIMIT = 1.5
METHODS: dict[str, Any] = {
    "dpo": "dpo",
    "tdpo": "tdpo",
    "sparsepo": "sparsepo",
    "sparsepo, two masks": {"name": "sparsepo", "variant": "spo-independent"},
    "sparsepo, masks of activations": {"name": "sparsepo", "variant": "mapo"},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.token_level")
    options.add_argument("--steps", type=int, default=6, help="optimiser steps of each run; the first two warm up")
    options.add_argument("--batch", type=int, default=8, help="pairs a step")
    options.add_argument("--repeats", type=int, default=3, help="runs of each method; medians are shown")
    options.add_argument("--bf16", action="store_true", help="bf16 autocast (for a GPU)")
    options.add_argument("--size", default="head", choices=list(SIZES))
    asked = options.parse_args()
    out = Console()
    rows, source = conversations()
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder) / "model", Path(folder) / "pairs.jsonl"
        make_model(model, SIZES[asked.size], rows)
        write_rows(data, rows, AutoTokenizer.from_pretrained(model), asked.batch * asked.steps)
        job = {"tool": "prefopt", "model": str(model), "data": str(data)}
        job |= {"steps": asked.steps, "batch": asked.batch, "bf16": asked.bf16}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
        for repeat in range(asked.repeats):
            for name, method in METHODS.items():
                with out.status(f"{name}, run {repeat + 1}"):
                    found[name].append(run(Path(folder) / f"{name}-{repeat}", {**job, "method": method}))
    title = f"{SIZES[asked.size].title}; batch {asked.batch} pairs; {source}; {asked.repeats} runs each"
    sys.exit(not show(title, found, out))


def show(title: str, found: dict[str, list[dict[str, Any]]], out: Console) -> bool:
    """A row a method; whether all stay below the limit in either way of counting."""
    table = Table("", "s/step", "peak MB above the model", "x dpo", "peak MB of the process", "x dpo", title=title)
    usual = {k: median(found["dpo"], k) for k in ("memory", "whole")}
    fits = True
    for name, runs in found.items():
        seconds = statistics.median(x for r in runs for x in r["seconds"])
        cells = [f"{seconds:.3f}"]
        for kind, least in usual.items():
            peaks = [r[kind] / 2**20 for r in runs]
            ratio = median(runs, kind) / least
            fits &= ratio <= LIMIT
            cells += [f"{median(runs, kind) / 2**20:,.0f} ({min(peaks):,.0f} to {max(peaks):,.0f})", f"{ratio:.2f}"]
        table.add_row(name, *cells)
    out.print(table)
    return fits


def median(runs: list[dict[str, Any]], kind: str) -> float:
    return statistics.median(r[kind] for r in runs)


if __name__ == "__main__":
    main()
