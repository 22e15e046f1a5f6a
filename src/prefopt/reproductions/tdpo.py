"""TDPO (2404.11999): the sequential KL on rejected answers is held back, and diversity with it, at DPO's own beta."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .bench import Bench
from .claim import Demand, Measurements, Reproduction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETA = 0.1
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "beta": BETA},
    "dpo-beta-0.3": {"name": "dpo", "beta": 0.3},
    "dpo-beta-1": {"name": "dpo", "beta": 1.0},
    "tdpo1": {"name": "tdpo", "variant": "tdpo1", "beta": BETA},
    "tdpo2-alpha-0.2": {"name": "tdpo", "alpha": 0.2, "beta": BETA},
    "tdpo2": {"name": "tdpo", "alpha": 0.5, "beta": BETA},
}
TRAIN: dict[str, Any] = {"steps": 300, "learning_rate": 2e-3, "batch": 64}
ALPHAS = ("dpo", "tdpo2-alpha-0.2", "tdpo2")  # alpha 0, 0.2, 0.5


def run(bench: Bench) -> Measurements:
    """The toy language, its model as the start, and one run for each setting."""
    from ..worlds import language
    from . import small

    world = language.build(seed=bench.seed)
    start = bench.once("start", lambda: small.measure(world.model, language, world, seed=bench.seed))
    found = {name: small.run(bench, name, language, world, method, **TRAIN) for name, method in RUNS.items()}
    return {"start": start, **found}


def smallest_step(m: Measurements) -> float:
    """From alpha 0 over 0.2 to 0.5 SeqKL on rejected answers falls and entropy rises: the least of the four steps."""
    steps = []
    for a, b in itertools.pairwise(ALPHAS):
        steps += [m[a]["seq_kl_rejected"] - m[b]["seq_kl_rejected"], m[b]["entropy"] - m[a]["entropy"]]
    return min(steps)


STYLE = {"dpo": ("#c8553d", "o"), "tdpo1": ("#8a8a3a", "s"), "tdpo2": ("#1f6f8b", "o")}


def plot(seeds: Sequence[Measurements]) -> Figure:
    """Left: reward against KL. Right: what the two variants are about, SeqKL on rejected answers and entropy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, x, y in ((left, "kl", "reward"), (right, "seq_kl_rejected", "entropy")):
        for name in RUNS:
            _points(axes, seeds, name, x, y)
        axes.plot([m["start"][x] for m in seeds], [m["start"][y] for m in seeds], "s", color="#444444", markersize=4)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_xlabel("KL(policy ‖ start), nats per answer")
    left.set_ylabel("reward of samples")
    right.set_xscale("symlog", linthresh=1)
    right.set_xlabel("SeqKL(start ‖ policy) on rejected answers, nats")
    right.set_ylabel("entropy of samples, nats per token")
    for name, label in (("dpo", "DPO (β)"), ("tdpo1", "TDPO1"), ("tdpo2", "TDPO2 (α)")):
        left.plot([], [], STYLE[name][1], color=STYLE[name][0], markersize=4, label=label)
    left.plot([], [], "s", color="#444444", markersize=4, label="start model")
    figure.legend(frameon=False, loc="outside upper left", ncols=4, fontsize=8)
    return figure


def _points(axes: Axes, seeds: Sequence[Measurements], name: str, x: str, y: str) -> None:
    colour, mark = STYLE[name.split("-")[0]]
    xs, ys = ([m[name][key] for m in seeds] for key in (x, y))
    axes.plot(xs, ys, mark, color=colour, markersize=5, alpha=0.75)
    method = RUNS[name]
    text = "" if name == "tdpo1" else f"{method['alpha']:g}" if "alpha" in method else f"{method['beta']:g}"
    axes.annotate(text, (xs[0], ys[0]), (5, 4), textcoords="offset points", fontsize=7, color=colour)


REPRODUCTION = Reproduction(
    slug="tdpo",
    paper="2404.11999",
    claim=(
        "At equal beta and steps TDPO2 improves on its start while the sequential KL on rejected answers grows far "
        "more slowly than DPO's and generation stays more diverse."
    ),
    setting=(
        "World `language`, one for each seed: a one-block transformer writes six letters to a prompt of one; reward is "
        "good minus bad letters (at most 6); 4,000 pairs of its own samples are labelled by a Bradley-Terry judge. DPO, "
        "TDPO1 and TDPO2 start from its model and take 300 AdamW steps of 64 pairs at rate 2e-3, all with beta 0.1; "
        "reward, exact KL and entropy come from 1,536 fresh samples, SeqKL from 1,000 training pairs. DPO with beta 0.3 "
        "and 1 is shown beside them as the baseline with a tuned beta."
    ),
    demands=(
        Demand(
            "SeqKL on rejected answers of TDPO2 (alpha 0.5), as a share of DPO's",
            lambda m: m["tdpo2"]["seq_kl_rejected"] / m["dpo"]["seq_kl_rejected"],
            most=1 / 3,
        ),
        Demand(
            "entropy per token of TDPO2's samples above DPO's, in nats",
            lambda m: m["tdpo2"]["entropy"] - m["dpo"]["entropy"],
            least=0.5,
        ),
        Demand(
            "reward of TDPO2 above the start model's", lambda m: m["tdpo2"]["reward"] - m["start"]["reward"], least=0.8
        ),
        Demand(
            "from alpha 0 (DPO) over 0.2 to 0.5 SeqKL on rejected answers falls and entropy rises; the least of the steps",
            smallest_step,
            least=0.0,
        ),
    ),
    settings={"runs": RUNS, "train": TRAIN, "world": "language"},
    run=run,
    plot=plot,
    steps=1 + len(RUNS),
    remarks=(
        "The paper measures preference accuracy and entropy on Anthropic-HH and the frontier of reward against KL on "
        "IMDb. A better frontier is not demanded here: on this toy DPO with a larger beta (1) reaches about the reward "
        "of TDPO2 at about its KL, as the plot shows. What TDPO2 changes is how far rejected answers are pushed at a "
        "given beta.",
        "TDPO1 behaves like DPO here: nothing is demanded of it.",
    ),
)
