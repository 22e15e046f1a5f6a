"""Diffusers' Diffusion-DPO example (the same sequence of calls) and prefopt one after the other, each in a fresh process,
on the same pipeline with the proportions of Stable Diffusion 1.5, the same pairs, noise and adapter."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import run
from benchmarks.image_material import Share, make_pipeline, shares, write_pairs

EXAMPLE, CACHED, KEPT = "diffusers' example", "prefopt", "prefopt, bank"
CONTESTANTS: dict[str, dict[str, Any]] = {
    EXAMPLE: {"tool": "example"},
    CACHED: {"tool": "prefopt_images"},
    "prefopt, one pair at a time": {"tool": "prefopt_images", "train": {"token_budget": 2}},
    "prefopt, filling the bank": {"tool": "prefopt_images", "denoising": {"bank": 1}, "cache": "bank"},
    KEPT: {"tool": "prefopt_images", "denoising": {"bank": 1}, "cache": "bank"},
    "prefopt, bank, one pair at a time": {
        "tool": "prefopt_images", "denoising": {"bank": 1}, "cache": "bank", "train": {"token_budget": 2},
    },
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.images")
    options.add_argument("--steps", type=int, default=8, help="optimiser steps of each run; the first two warm up")
    options.add_argument("--batch", type=int, default=2, help="pairs a step")
    options.add_argument("--repeat", type=int, default=1, help="runs of each, the fastest of which counts")
    options.add_argument("--json", type=Path, help="write the figures there too")
    asked = options.parse_args()
    out = Console()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make_pipeline(place / "model")
        share = shares(place / "model")
        data = write_pairs(place, asked.steps * asked.batch)
        found: dict[str, Any] = {}
        for round_ in range(asked.repeat):
            for title, how in CONTESTANTS.items():
                with out.status(title):
                    answer = measured(place, f"{round_}-{list(CONTESTANTS).index(title)}", how, data, asked)
                if title not in found or answer["processor"] < found[title]["processor"]:
                    found[title] = answer
    print_table(found, share, asked, out)
    if asked.json:
        asked.json.write_text(json.dumps({"share": share._asdict(), "found": found}, indent=1))


def measured(place: Path, name: str, how: dict[str, Any], data: Path, asked: Any) -> dict[str, Any]:
    job = {"model": str(place / "model"), "data": str(data), "steps": asked.steps, "batch": asked.batch}
    job |= {"beta": 500.0, "rate": 1e-4, **how}
    if "cache" in job:
        job["cache"] = str(place / f"cache-{name.split('-')[0]}")
    answer = run(place / name, job)
    return answer | {key: statistics.median(answer[key]) for key in ("seconds", "processor")}


def print_table(found: dict[str, Any], share: Share, asked: Any, out: Console) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    table = Table(
        "", "s/step", "ratio", "processor s", "ratio", "peak MB", "ratio", "before the first step", "losses",
        title=f"{device}; batch {asked.batch} pairs; UNet {share.unet / 1e9:.1f} GFLOP an image, VAE encoder "
        f"{share.vae:.2f}, text encoder {share.text:.3f} of it", header_style="bold",
    )  # fmt: skip
    example = found[EXAMPLE]
    for name, x in found.items():
        ratio, work = (x[key] / example[key] for key in ("seconds", "processor"))
        room = x["memory"] / example["memory"]
        losses = " ".join(f"{v:.4f}" for v in x["losses"][:4])
        table.add_row(
            name, f"{x['seconds']:.3f}", f"{ratio:.2f}", f"{x['processor']:.3f}", f"{work:.2f}",
            f"{x['memory'] / 2**20:,.0f}", f"{room:.2f}", f"{x['prepare']:.1f} s", losses,
        )  # fmt: skip
    out.print(table)
    most = max(abs(a - b) for a, b in zip(example["losses"], found[CACHED]["losses"], strict=True))
    out.print(
        f"Largest difference of a loss between the example and prefopt: {most:.1e}. Peak: of the training steps above the "
        "loaded pipeline. one pair at a time: the same step in micro-batches. bank: the second run on a bank of fixed "
        "draws, in which the reference is asked no more."
    )


if __name__ == "__main__":
    main()
