"""MADPO (2510.05342): weights from a reward model's margin raise the reward of DPO at equal beta and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import read_jsonl
from .bars import bars
from .bench import Bench
from .claim import Demand, Measurements, Reproduction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN: dict[str, Any] = {"steps": 400, "learning_rate": 1e-3, "batch": 64}
REWARD_TRAIN: dict[str, Any] = {"steps": 400, "learning_rate": 2e-3, "batch": 64}
RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "beta": 0.5},
    "madpo": {"name": "madpo", "tau": 4.0, "base": {"name": "dpo", "beta": 0.5}},
    "ipo": {"name": "ipo", "beta": 0.5, "normalise": "sum"},
    "dpo-0.25": {"name": "dpo", "beta": 0.25},
}


def run(bench: Bench) -> Measurements:
    """The exact check; a reward model from scratch, its scores of the pairs, and the policies."""
    from ..annotation.build import build_scores
    from ..config import make
    from ..worlds import language
    from . import small

    exact = bench.once("exact", exact_errors)
    world = language.build(seed=bench.seed, pairs=3000)

    def reward_model() -> dict[str, float]:
        fresh = bench.folder / "fresh"
        _untrained(world.model, fresh, bench.seed)
        content = small.configuration(language, world, {"name": "bt-reward"}, seed=bench.seed, **REWARD_TRAIN)
        folder = bench.train("reward", content | {"model": {"path": str(fresh)}})
        data = make(content | {"output": "-"}).data
        build_scores(data, {"reward_score": [str(folder)]}, bench.folder / "scored.jsonl", progress=False)
        heldout = data.model_copy(update={"path": str(world.heldout)})
        build_scores(heldout, {"reward_score": [str(folder)]}, bench.folder / "heldout.jsonl", progress=False)
        h, held = (_margins(bench.folder / f"{n}.jsonl") for n in ("scored", "heldout"))
        return {"std": float(h.std()), "train_accuracy": float((h > 0).mean()), "accuracy": float((held > 0).mean())}

    reward = bench.once("reward-model", reward_model)
    scored = {"data": {"path": str(bench.folder / "scored.jsonl")}}
    found = {
        name: small.run(bench, name, language, world, method, sections=scored, **TRAIN) for name, method in RUNS.items()
    }
    return {"exact": exact, "reward_model": reward, **found}


def exact_errors() -> dict[str, float]:
    """Both labels of a pair with probabilities sigmoid(+-h): where the expected loss is least, against c(|h|) h."""
    import torch

    from ..objectives.method import get_method
    from ..objectives.responses import Responses

    h = torch.linspace(-6.8, 6.8, 35, dtype=torch.float64)
    n, beta = len(h), 0.1
    rows = torch.arange(2 * n).view(2, n).T
    pairs, share = torch.cat([rows, rows.flip(1)]), torch.cat([torch.sigmoid(h), torch.sigmoid(-h)])
    zero = torch.zeros(n, dtype=torch.float64)
    errors = {}
    for name in ("madpo", "dpo"):
        method, x = get_method(name), (h / beta).clone()
        for _ in range(200):  # Newton on each pair's own convex loss
            x.requires_grad_()
            r = Responses.of(
                torch.cat([x, zero]),
                torch.zeros(2 * n, dtype=torch.float64),
                pairs=pairs,
                reward_score=torch.cat([h, zero]),
            )
            loss = (method(r).per("pairs") * share).sum()
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            (curve,) = torch.autograd.grad(slope.sum(), x)
            x = (x - (slope / curve).clamp(-20, 20)).detach()
        c = 0.5 + 1.5 / (1 + 2 * torch.exp(h.abs() - math.log(999)))
        errors[name] = float((beta * x - (c * h if name == "madpo" else h)).abs().max())
    return errors


def _untrained(model: Path, folder: Path, seed: int) -> None:
    """A network of the same size with fresh weights."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def _margins(file: Path) -> np.ndarray:
    rows = read_jsonl(file)
    return np.array([r["chosen_reward_score"] - r["rejected_reward_score"] for r in rows if "chosen_reward_score" in r])


def plot(seeds: Sequence[Measurements]) -> Figure:
    """Reward, KL and held-out accuracy of every run."""
    names = {"dpo": "DPO, β=.5", "madpo": "MADPO, β=.5", "ipo": "IPO, β=.5", "dpo-0.25": "DPO, β=.25"}
    panels = {"reward": "reward of samples", "kl": "KL to the start, nats", "accuracy": "held-out accuracy"}
    return bars(seeds, names, panels, {"dpo": "#c8553d", "madpo": "#1f6f8b", "ipo": "#8a8a3a"})


REPRODUCTION = Reproduction(
    slug="madpo",
    paper="2510.05342",
    claim="Weights from a reward model's margin raise the mean reward of DPO, and far above IPO's, at equal beta.",
    setting=(
        "Exactly: for pairs with known margin h and both labels at their probabilities the minimiser of the weighted loss "
        "is beta h_theta = c(|h|) h. World `language`, one for each seed: 3,000 pairs with Bradley-Terry labels; a reward "
        "model of the same size from fresh weights, 400 AdamW steps at rate 2e-3, scores them; DPO, IPO (sums) and MADPO "
        "(tau 4) take 400 steps of 64 pairs at rate 1e-3 with beta 0.5. DPO with half the beta is shown beside them."
    ),
    demands=(
        Demand("largest |beta h_theta - c(|h|) h| over h in [-6.8, 6.8]", lambda m: m["exact"]["madpo"], most=1e-3),
        Demand("largest |beta h_theta - h| of DPO", lambda m: m["exact"]["dpo"], most=1e-3),
        Demand(
            "reward of MADPO as a multiple of DPO's at the same beta and steps",
            lambda m: m["madpo"]["reward"] / m["dpo"]["reward"],
            least=1.05,
            over="mean",
        ),
        Demand(
            "reward of MADPO as a multiple of IPO's at the same beta",
            lambda m: m["madpo"]["reward"] / m["ipo"]["reward"],
            least=2.0,
            over="mean",
        ),
    ),
    settings={"runs": RUNS, "train": TRAIN, "reward_model": REWARD_TRAIN, "world": "language"},
    run=run,
    plot=plot,
    steps=2 + len(RUNS),
    remarks=(
        "MADPO moves further from its start than DPO at the same beta: no gain at equal KL is demanded, and DPO with half "
        "the beta is shown beside it.",
        "The paper: IMDb, Gemma-3-270m, ground-truth sentiment with label noise.",
    ),
)
