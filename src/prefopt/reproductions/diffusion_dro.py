"""Diffusion-DRO (2510.18353): experts alone, ranked above the policy's own paths, lift the model towards them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import read_jsonl
from .bars import bars
from .bench import Bench
from .claim import Demand, Measurements, Reproduction
from .in_blobs import EACH, TRAIN, grid, look, world
from .measure_images import win_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE, UPDATES, BATCH, EXPERTS = 1e-4, 200, 64, 200
MARGINS = (0.001, 0.02, 0.2, 5.0)
DRO: dict[str, Any] = {"name": "diffusion-dro", "steps": 10}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"name": "sft"},
    "dpo": {"name": "diffusion-dpo", "beta": 2000.0},
    **{f"dro-{m:g}": DRO | {"margin": m} for m in MARGINS},
}
NAMES = {
    "base": "start",
    "sft": "SFT on the experts",
    "dpo": "Diffusion-DPO on pairs",
    **{f"dro-{m:g}": f"DRO, margin {m:g}" for m in MARGINS},
}
COLOURS = {"base": "#8a8a8a", "sft": "#c8553d", "dpo": "#dd9a86", "dro": "#1f6f8b"}


def run(bench: Bench) -> Measurements:
    """Tune the seed's model on its best pictures, and, for Diffusion-DPO, on all labelled pairs."""
    parts = bench.once("world", lambda: world(bench))

    def tune(name: str) -> dict[str, Any]:
        data = {"path": parts["train"]} | ({} if name == "dpo" else {"top": EXPERTS})
        train = {**TRAIN, "max_steps": UPDATES, "per_device_train_batch_size": BATCH, "learning_rate": RATE}
        train["seed"] = bench.seed
        folder = bench.train(name, {"method": RUNS[name], "model": parts["model"], "data": data, "train": train})
        rows = read_jsonl(folder / "metrics.jsonl")
        active = [row["active"] for row in rows if "active" in row]
        return {"rewards": look(bench, name, folder), "active": active}

    base = bench.once("base", lambda: look(bench, "base", Path(parts["model"])))
    found = {name: bench.once(name, partial(tune, name)) for name in RUNS}
    grid(bench.folder, NAMES)
    measured: dict[str, Any] = {"base": {"reward": float(np.mean(base)), "win_rate": 0.5}}
    measured["experts"] = {"reward": experts(Path(parts["train"]))}
    for name, x in found.items():
        measured[name] = {"reward": float(np.mean(x["rewards"])), "win_rate": win_rate(x["rewards"], base)}
        measured[name] |= {"active": [round(a, 3) for a in x["active"]]} if x["active"] else {}
    return measured


def experts(train: Path) -> float:
    """Mean reward of the pictures that become experts."""
    rows = read_jsonl(train)
    scores = [row[f"{side}_score"] for row in rows for side in ("chosen", "rejected")]
    return float(np.mean(sorted(scores)[-EXPERTS:]))


def share(m: Measurements, name: str) -> float:
    """How much of the way from the start to the experts is gone."""
    return (m[name]["reward"] - m["base"]["reward"]) / (m["experts"]["reward"] - m["base"]["reward"])


def best(m: Measurements) -> float:
    return max(share(m, f"dro-{margin:g}") for margin in MARGINS)


def plot(seeds: Sequence[Measurements]) -> Figure:
    """True reward and win rate over the start of all runs."""
    return bars(seeds, NAMES, {"reward": "true reward", "win_rate": "win rate over the start"}, COLOURS)


REPRODUCTION = Reproduction(
    slug="diffusion-dro",
    paper="2510.18353",
    claim="From expert pictures alone, with its own sampling paths as what is not to be reproduced, a model comes nearer to "
    "the experts and wins over its start; the hinge lets satisfied samples go.",
    setting=(
        f"World `blobs`, one for each seed. The {EXPERTS} best of 4,096 drawn blobs (by the true reward) are experts. "
        f"From one start, {UPDATES} updates of {BATCH} with rate {RATE:g}: Diffusion-DRO (paths of 10 steps, the "
        f"snapshot is the policy of the moment) with margins {', '.join(f'{m:g}' for m in MARGINS)}, SFT on the same "
        "experts, and Diffusion-DPO (beta 2000) on all 2,048 labelled pairs. Rewards are those of 512 pictures from "
        "equal noise."
    ),
    demands=(
        Demand("win rate over the start, margin 0.001", lambda m: m["dro-0.001"]["win_rate"], least=0.75),
        Demand("share of the way from start to experts, margin 0.001", lambda m: share(m, "dro-0.001"), least=0.25),
        Demand("share of active samples at the end, margin 0.001", lambda m: m["dro-0.001"]["active"][-1], most=0.99),
        Demand("share of the way, best margin, less that of SFT", lambda m: best(m) - share(m, "sft"), least=-0.03),
    ),
    settings={
        "runs": RUNS,
        "rate": RATE,
        "updates": UPDATES,
        "batch": BATCH,
        "experts": EXPERTS,
        "each": EACH,
        "world": "blobs",
    },
    run=run,
    plot=plot,
    steps=2 + len(RUNS),
    remarks=(
        "The paper compares on SD 1.5 with experts chosen by HPSv2; Diffusion-DPO is given here what it needs and DRO does "
        "not: labelled pairs of the same pictures.",
        "A trial in two dimensions saw DRO behind SFT at small margins, because errors of single samples are noisy there "
        "and the hinge throws away half of the signal; so the margin is swept, and what is demanded against SFT is only that "
        "the best margin is not worse.",
        "With the official snapshot (renewed after every update) the policy's own prediction is its goal, so the own half "
        "has error and gradient zero in every step: it acts through the hinge alone, by what the reference misses there. So "
        "a margin that never bites is SFT on the experts, number for number, and smaller ones are SFT with samples let go; "
        "a gradient through the own half needs method.refresh above 1, which was not run here.",
    ),
    keeps=("pictures.png",),
)
