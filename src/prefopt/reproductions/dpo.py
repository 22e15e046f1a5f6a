"""DPO (2305.18290, figure 2 left): its frontier of reward against KL lies above that of SFT on chosen answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.frontier import envelope
from .bench import Bench
from .claim import Demand, Measurements, Reproduction
from .measure import best, curve, frontier_point, least_lead, mean_lead

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of SFT
TRAIN: dict[str, Any] = {
    "learning_rate": 5e-4,  # of DPO
    "max_steps": 96,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "linear",
    "logging_steps": 12,
    "save_steps": 48,
}
SAMPLES = 4  # answers to each of the 256 held-out prompts


def run(bench: Bench) -> Measurements:
    """Build the seed's world, train every setting from its model, measure each on the held-out prompts."""
    from ..worlds import reviews

    world = bench.once("world", lambda: _world(bench.seed))

    def point(name: str, method: dict[str, Any], rate: float) -> dict[str, float]:
        content = {
            "method": method,
            "model": world["model"],
            "data": {"path": world["train"]},
            "train": {**TRAIN, "learning_rate": rate, "seed": bench.seed},
        }
        folder = bench.train(name, content)
        return measured(folder)

    def measured(folder: Path) -> dict[str, float]:
        paths = (folder, Path(world["model"]), Path(world["prompts"]))
        return frontier_point(*paths, reviews.reward, samples=SAMPLES, seed=bench.seed)

    def dpo(beta: float) -> dict[str, float]:
        name = f"dpo-{beta:g}"
        return {"beta": beta} | bench.once(
            name, lambda: point(name, {"name": "dpo", "beta": beta}, TRAIN["learning_rate"])
        )

    def sft(rate: float) -> dict[str, float]:
        name = f"sft-{rate:g}"
        return {"learning_rate": rate} | bench.once(name, lambda: point(name, {"name": "sft"}, rate))

    return {
        "start": bench.once("start", lambda: measured(Path(world["model"]))),
        "dpo": [dpo(beta) for beta in BETAS],
        "sft": [sft(rate) for rate in RATES],
    }


def _world(seed: int) -> dict[str, str]:
    from ..worlds import reviews

    world = reviews.build(seed=seed)
    return {"model": str(world.model), "train": str(world.train), "prompts": str(world.prompts)}


def plot(seeds: Sequence[Measurements]) -> Figure:
    """Reward against sqrt(KL), every run a point with its standard errors, and each seed's upper envelope."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, label, colour, key in (
        ("dpo", "DPO", "#1f6f8b", "beta"),
        ("sft", "SFT on chosen", "#c8553d", "learning_rate"),
    ):
        for number, seed in enumerate(seeds):
            _draw_seed(axes, seed, name, colour, key if number == 0 else None)
        written = "β" if key == "beta" else "learning rate"
        axes.plot([], [], "-o", color=colour, markersize=4, label=f"{label} ({written} at the points)")
    starts = [seed["start"]["reward"] for seed in seeds]
    axes.plot([0.0] * len(starts), starts, "s", color="#444444", markersize=5, label="start model", zorder=3)
    axes.set_xlabel("√KL from the start model (nats per answer)")
    axes.set_ylabel("true reward of samples")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def _draw_seed(axes: Axes, seed: Measurements, name: str, colour: str, key: str | None) -> None:
    """One method's points and envelope; `key` is written at the points."""
    frontier = envelope(curve(seed[name], seed["start"]))
    roots = [math.sqrt(kl) for kl, _ in frontier]
    axes.plot(roots, [reward for _, reward in frontier], color=colour, alpha=0.4, zorder=1)
    for point in seed[name]:
        place = (math.sqrt(max(point["kl"], 0.0)), point["reward"])
        wide = point["kl_se"] / (2 * max(place[0], 0.1))  # the standard error of a square root
        axes.errorbar(*place, point["reward_se"], wide, fmt="o", color=colour, markersize=4, linewidth=1, zorder=2)
        if key is not None:
            axes.annotate(f"{point[key]:g}", place, (4, -11), textcoords="offset points", fontsize=7, color=colour)


REPRODUCTION = Reproduction(
    slug="dpo",
    paper="2305.18290",
    claim="DPO's frontier of reward against KL lies above that of SFT on the chosen answers (figure 2, left).",
    setting=(
        "World `reviews`, one for each seed: its model writes short film reviews, and 2,048 pairs of its own samples "
        "are labelled by a Bradley-Terry judge of the true reward. DPO with five betas and SFT with four learning "
        "rates start from the same model and take the same number of steps on the same pairs. True reward (in [0, 1]) "
        "and KL (k1) come from four samples at temperature 1 to each of 256 held-out prompts."
    ),
    demands=(
        Demand(
            "DPO's reward above SFT's at matched sqrt(KL), averaged over the common range of KL",
            lambda m: mean_lead(m["dpo"], m["sft"], m["start"]),
            least=0.03,
        ),
        Demand(
            "the same difference where it is smallest in the common range (DPO dominates; -0.01 is about the noise)",
            lambda m: least_lead(m["dpo"], m["sft"], m["start"]),
            least=-0.01,
        ),
        Demand("best reward of DPO above the best of SFT", lambda m: best(m["dpo"]) - best(m["sft"]), least=0.05),
    ),
    settings={"betas": BETAS, "sft_learning_rates": RATES, "train": TRAIN, "samples": SAMPLES, "world": "reviews"},
    run=run,
    plot=plot,
    steps=2 + len(BETAS) + len(RATES),
    remarks=(
        "The paper's task is IMDb with GPT-2 large and a sentiment classifier; here the reward is known exactly.",
        "A pilot on seed 0, which is not judged, decided the number of steps, DPO's learning rate and the spread of "
        "betas and rates. There a point's reward had a standard error of 0.005: the least mean lead is about four "
        "times the error of a difference.",
    ),
)
