"""InfiFPO (2505.13878): a reference fused from experts makes preference learning robust to few and noisy pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .bars import bars
from .bench import Bench
from .claim import Demand, Measurements, Reproduction

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

WORLDS, PROMPTS, RESPONSES, FEATURES = 4, 60, 24, 24  # worlds: for each seed
STEPS, RATE, BETA, SHARPNESS = 300, 0.05, 2.5, 1.5
PAIRS, NOISES = (40, 200), (0.2, 0.0)
BETAS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.5)  # of every method: the best of them in each setting is its result
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo"},
    "average": {"name": "infifpo", "fusion": "average"},
    "infifpo": {"name": "infifpo"},
}
BAD: dict[str, dict[str, Any]] = {  # with a fourth source that has the rewards upside down
    "bad-clip": {"name": "infifpo", "beta": BETA},
    "bad-free": {"name": "infifpo", "beta": BETA, "clip": False},
}


def run(bench: Bench) -> Measurements:
    """Four log-linear worlds: expected true reward of every method, for few and more pairs, with and without noise."""
    found: dict[str, Any] = {}
    for pairs in PAIRS:
        for noise in NOISES:
            name = f"pairs-{pairs}-noise-{noise:g}"
            rows: list[dict[str, float]] = bench.once(name, partial(worlds, bench.seed, pairs, noise))
            found[name] = _best(rows)
    return found


def _best(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Means over worlds; of each method those of its best beta here, and how often InfiFPO's is above DPO's."""
    means = {k: float(np.mean([row[k] for row in rows])) for k in rows[0]}
    best = {m: max((f"{m}-{b:g}" for b in BETAS), key=means.__getitem__) for m in METHODS}
    found = {m: means[key] for m, key in best.items()} | {k: means[k] for k in ("start", *BAD)}
    wins = float(np.mean([row[best["infifpo"]] > row[best["dpo"]] for row in rows]))
    return {**found, "wins": wins, "betas": best, "all": means}


def worlds(seed: int, pairs: int, noise: float) -> list[dict[str, float]]:
    """`one` in every world of a seed."""
    return [one(100 * seed + i, pairs, noise) for i in range(WORLDS)]


def one(seed: int, pairs: int, noise: float) -> dict[str, float]:
    """Expected true reward, over all prompts, of each method trained on the same pairs."""
    import torch

    from ..objectives.method import get_method
    from ..scoring.tabular import TabularScorer, fit, pairs_of

    g = torch.Generator().manual_seed(seed)
    phi = torch.randn(PROMPTS, RESPONSES, FEATURES, generator=g, dtype=torch.float64) / FEATURES**0.5
    reward = phi @ (2 * torch.randn(FEATURES, generator=g, dtype=torch.float64))
    start = 0.3 * torch.randn(FEATURES, generator=g, dtype=torch.float64)
    pivot = torch.log_softmax(phi @ start, -1)
    experts = _experts(reward, g)
    x = torch.randint(PROMPTS, (pairs,), generator=g)
    order = torch.rand(pairs, RESPONSES, generator=g).argsort(1)
    a, b = order[:, 0], order[:, 1]
    right = (reward[x, a] > reward[x, b]) ^ (torch.rand(pairs, generator=g) < noise)
    w, l = torch.where(right, a, b), torch.where(right, b, a)

    def trained(method: dict[str, Any], sources: Tensor) -> float:
        sums = torch.cat([sources[:, x, w], sources[:, x, l]], 1).T
        batch = pairs_of(x.tolist(), w.tolist(), l.tolist(), source_sums=sums, source_counts=torch.ones_like(sums))
        policy = _linear(phi, start)
        logp = fit(
            get_method(**method), policy, TabularScorer(pivot.exp()), batch, STEPS, lambda p: torch.optim.Adam(p, RATE)
        )
        return float((logp.exp() * reward).sum(-1).mean())

    liar = torch.log_softmax(-SHARPNESS * reward, -1)[None]
    found = {"start": float((pivot.exp() * reward).sum(-1).mean())}
    found |= {f"{m}-{b:g}": trained(method | {"beta": b}, experts) for m, method in METHODS.items() for b in BETAS}
    return found | {name: trained(method, torch.cat([experts, liar])) for name, method in BAD.items()}


def _experts(reward: Tensor, g: Any) -> Tensor:
    """[3, prompts, responses] log-probabilities: each follows the reward on its third of the prompts, and nearly nothing
    elsewhere."""
    import torch

    third = torch.arange(PROMPTS) * 3 // PROMPTS
    made = []
    for i in range(3):
        noise = 0.1 * torch.randn(reward.shape, generator=g, dtype=torch.float64)
        made.append(torch.log_softmax(torch.where((third == i)[:, None], SHARPNESS * reward, noise), -1))
    return torch.stack(made)


def _linear(phi: Tensor, start: Tensor) -> Any:
    """A policy with logits phi(x, y) . theta."""
    import torch

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = torch.nn.Parameter(start.clone())

        def forward(self) -> Tensor:
            return phi @ self.theta

    return Linear()


def lead(m: Measurements, name: str, other: str, pairs: int, noise: float) -> float:
    """Relative lead of the expected reward, over the seed's worlds."""
    found = m[f"pairs-{pairs}-noise-{noise:g}"]
    return found[name] / found[other] - 1


def share_of_worlds(m: Measurements) -> float:
    """Share of the noisy worlds in which InfiFPO has the higher reward."""
    return float(np.mean([m[f"pairs-{p}-noise-0.2"]["wins"] for p in PAIRS]))


def plot(seeds: Sequence[Measurements]) -> Figure:
    """Expected reward of every method, with noise, few and more pairs, and without."""
    panels = {f"pairs-{p}-noise-{n:g}": f"{p} pairs, {n:.0%} flipped" for p in PAIRS for n in NOISES}
    names = {"start": "start", "dpo": "DPO", "average": "average", "infifpo": "InfiFPO", "bad-clip": "+ liar, clipped",
             "bad-free": "+ liar, free"}  # fmt: skip
    turned = [{name: {key: m[key][name] for key in panels} for name in names} for m in seeds]
    return bars(turned, names, panels, {"dpo": "#c8553d", "infifpo": "#1f6f8b", "average": "#7aa53c"})


REPRODUCTION = Reproduction(
    slug="infifpo",
    paper="2505.13878",
    claim=(
        "A reference fused from source models beats DPO where pairs are few and labels noisy; max-margin fusion beats the "
        "average by a little; clipping protects from bad sources."
    ),
    setting=(
        "Log-linear policies over 60 prompts with 24 responses each and a linear true reward, four worlds for each seed. "
        "Three experts follow the reward on a third of the prompts each and are near uniform elsewhere. 40 or 200 pairs, "
        "20 % of the labels flipped (or none); DPO, average fusion and clipped max-margin fusion start from the same weak "
        "policy and take 300 full-batch Adam steps, each with six betas, of which its best in each setting counts. "
        "Expected true reward over all prompts, exact. A fourth source with the rewards upside down tries the clipping."
    ),
    demands=(
        Demand("share of the noisy worlds in which InfiFPO has more reward than DPO", share_of_worlds, least=0.8),
        *(
            Demand(
                f"relative lead of InfiFPO's reward over DPO's, {p} pairs, 20 % flipped",
                partial(lead, name="infifpo", other="dpo", pairs=p, noise=0.2),
                least=0.15,
                over="mean",
            )
            for p in PAIRS
        ),
        *(
            Demand(
                f"relative lead of InfiFPO's reward over average fusion's, {p} pairs, 20 % flipped",
                partial(lead, name="infifpo", other="average", pairs=p, noise=0.2),
                least=0.0,
                over="mean",
            )
            for p in PAIRS
        ),
        Demand(
            "relative lead over DPO with clean labels, the lesser of 40 and 200 pairs",
            lambda m: min(lead(m, "infifpo", "dpo", p, 0.0) for p in PAIRS),
            least=-0.02,
            over="mean",
        ),
        Demand(
            "with the lying source: reward with clipping less that without, the lesser of 40 and 200 noisy pairs",
            lambda m: min(m[f"pairs-{p}-noise-0.2"]["bad-clip"] - m[f"pairs-{p}-noise-0.2"]["bad-free"] for p in PAIRS),
            least=0.0,
            over="mean",
        ),
    ),
    settings={
        "worlds": WORLDS,
        "sizes": [PROMPTS, RESPONSES, FEATURES],
        "steps": STEPS,
        "rate": RATE,
        "methods": METHODS | BAD,
        "betas": BETAS,
        "sharpness": SHARPNESS,
    },
    run=run,
    plot=plot,
    steps=len(PAIRS) * len(NOISES),
    remarks=(
        "A pilot on seed 0, which is not judged, decided that all methods get the same grid of betas: at InfiFPO's beta of 2.5 "
        "DPO is far below its best, and with DPO alone tuned the comparison would lean the other way.",
        "Six of seven demands are met. With 200 noisy pairs the lead over DPO at its own best beta (0.1 or 0.2) is 8 to 15 %, "
        "not the 15 % demanded; at equal beta it is 24 to 41 % with beta 0.5 and more above. The experts make InfiFPO "
        "insensitive to beta, which DPO is not.",
        "The paper fuses language models of 9 to 24 billion parameters. In a log-linear world a response is one token for "
        "every model, so length normalisation is not tried here; sources with other tokenizers are tried end to end in "
        "tests/annotation.",
    ),
)
