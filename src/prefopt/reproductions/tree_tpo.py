"""Tree TPO (2410.12854): ranking whole lists of step-wise answers beats learning from the best and worst alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import read_jsonl
from .bars import bars
from .bench import Bench
from .claim import Demand, Measurements, Reproduction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..worlds.chains import Chains

LIST = {"name": "tree-tpo", "beta": 1.0}
RUNS: dict[str, dict[str, Any]] = {
    **{f"dpo-{beta:g}": {"name": "dpo", "beta": beta} for beta in (0.1, 0.5, 1.0, 2.0)},
    "pairwise": LIST | {"list_loss": "pairwise", "adaptive_step_reward": False},
    "lambda": LIST | {"adaptive_step_reward": False},
    "adaptive": LIST,
}
WORLD: dict[str, Any] = {"lists": 300, "heldout": 300, "demonstrations": 4000, "fitted": 400}
TRAIN: dict[str, Any] = {"max_steps": 300, "learning_rate": 1e-4, "per_device_train_batch_size": 4}
SAMPLED = 4  # answers to each held-out prompt


def run(bench: Bench) -> Measurements:
    """The chains of one seed, a model after SFT, and one run for each method from it."""
    from ..worlds.chains import build
    from .small import CONSTANT_RATE, history

    world = build(bench.folder / "world", seed=bench.seed, **WORLD)
    found: dict[str, Any] = {"start": bench.once("start", lambda: measure(world.model, world, {}, bench.seed))}
    for name, method in RUNS.items():

        def work(name: str = name, method: Mapping[str, Any] = method) -> dict[str, float]:
            folder = bench.train(name, _configuration(world, method, bench.seed, CONSTANT_RATE))
            return measure(folder, world, method, bench.seed)

        found[name] = bench.once(name, work)
    rows = [row["ranking_accuracy"] for row in history(bench, "lambda")]
    found["rise"] = rows[-1] - rows[0]
    return found


def _configuration(world: Chains, method: Mapping[str, Any], seed: int, train: Mapping[str, Any]) -> dict[str, Any]:
    pairing = {"pairing": "best_worst"} if method["name"] == "dpo" else {}
    return {
        "method": dict(method),
        "model": {"path": str(world.model)},
        "data": {"path": str(world.train), **pairing},
        "train": {**train, **TRAIN, "logging_steps": 30, "seed": seed},
    }


def measure(folder: Path, world: Chains, method: Mapping[str, Any], seed: int) -> dict[str, float]:
    """`tau`: Kendall's, of implicit reward and true value on held-out lists, mean over lists (0 for the start);
    `accuracy`: share of right final results, `value`: share of right steps, of samples at temperature 1."""

    from ..worlds import letters
    from ..worlds.chains import ANSWER, right
    from .small import load_model

    rows = read_jsonl(world.heldout)
    model, tokenizer = load_model(folder)
    said = letters.answers(model, tokenizer, [r["prompt"] for r in rows], SAMPLED, ANSWER, seed=seed)
    pairs = [(s.text, "".join(right(r["prompt"]))) for r, group in zip(rows, said, strict=True) for s in group]
    found = {
        "accuracy": float(np.mean([a[-1:] == b[-1:] and len(a) == len(b) for a, b in pairs])),
        "value": float(np.mean([np.mean([x == y for x, y in zip(a[2::3].ljust(4), b[2::3])]) for a, b in pairs])),
    }
    rewards = implicit_rewards(model, tokenizer, world, method) if method else [[0.0] * 5] * len(rows)
    return found | {"tau": float(np.mean([kendall(s, r["values"]) for s, r in zip(rewards, rows, strict=True)]))}


def implicit_rewards(model: Any, tokenizer: Any, world: Chains, method: Mapping[str, Any]) -> list[list[float]]:
    """Each held-out list's rewards s_n as the trainer would compute them; DPO's are those of unweighted steps."""
    import torch

    from ..data.config import DataConfig
    from ..data.prepare import prepare_text
    from ..objectives.method import get_method
    from ..scoring.base import Draw
    from ..scoring.reference import FrozenReference
    from ..scoring.text import TextScorer, install
    from ..training.engine import responses
    from ..training.needs import data_needs
    from .small import load_model

    ranked = dict(method) if method["name"] == "tree-tpo" else LIST | {"adaptive_step_reward": False}
    made = get_method(**ranked)
    needs = made.needs()
    data = DataConfig(path=str(world.heldout), best_first="error", max_length=None)  # type: ignore[call-arg]
    held_out = prepare_text(data, tokenizer, needs=data_needs(needs), progress=False).train
    policy = install(model)
    scorer = TextScorer(needs, FrozenReference(load_model(world.model)[0]), model=policy)
    batch = scorer.collate([Draw(held_out[i]) for i in range(len(held_out))])
    with torch.no_grad():
        s = made(responses(batch, scorer.score(policy, batch, needs), {}, {}, {})).rewards
    assert isinstance(s, torch.Tensor)
    return [x.tolist() for x in s.view(len(held_out), -1)]


def kendall(rewards: Sequence[float], values: Sequence[float]) -> float:
    """Concordant less discordant pairs, divided by the pairs of different value."""
    pairs = [(i, j) for i in range(len(values)) for j in range(len(values)) if values[i] > values[j]]
    return float(np.mean([np.sign(rewards[i] - rewards[j]) for i, j in pairs]))


def best_dpo(m: Measurements, number: str) -> float:
    return max(m[name][number] for name in RUNS if name.startswith("dpo"))


def plot(seeds: Sequence[Measurements]) -> Figure:
    names = {"start": "start"} | {name: name.replace("dpo-", "DPO β ") for name in RUNS}
    panels = {"tau": "Kendall's τ, held-out lists", "accuracy": "right final results of samples"}
    return bars(
        seeds, names, panels, {"dpo": "#c8553d", "pairwise": "#1f6f8b", "lambda": "#1f6f8b", "adaptive": "#1f6f8b"}
    )


REPRODUCTION = Reproduction(
    slug="tree-tpo",
    paper="2410.12854",
    claim="Ranking the whole list orders held-out answers better than DPO on its best and worst, and answers better.",
    setting=(
        "Chains of four operations modulo ten, three letters a step. Lists of five answers: the right one, three that "
        "leave it at a random step, one wrong from the start; a noisy judge scores the share of right results. A GPT-2 "
        "of two blocks and width 96 after 400 batches of SFT on 4,000 right answers; then 300 updates of four lists "
        "with AdamW at 1e-4: DPO on the best and the worst answer with four betas (the best of them by either measure), "
        "and the list losses with beta 1. 300 held-out lists, four samples to each of their prompts."
    ),
    demands=(
        Demand(
            "tau of the pairwise list loss less DPO's", lambda m: m["pairwise"]["tau"] - best_dpo(m, "tau"), least=0.1
        ),
        Demand("tau of the lambda list loss less DPO's", lambda m: m["lambda"]["tau"] - best_dpo(m, "tau"), least=0.1),
        Demand(
            "right final results of the better list loss less DPO's",
            lambda m: max(m["pairwise"]["accuracy"], m["lambda"]["accuracy"]) - best_dpo(m, "accuracy"),
            least=0.02,
        ),
        Demand(
            "tau of the lambda loss less that of the pairwise one, without sign",
            lambda m: abs(m["lambda"]["tau"] - m["pairwise"]["tau"]),
            most=0.05,
        ),
        Demand(
            "tau with adaptive step rewards less without",
            lambda m: m["adaptive"]["tau"] - m["lambda"]["tau"],
            least=-0.02,
        ),
        Demand("rise of the share of rightly ordered pairs in training (lambda)", lambda m: m["rise"], least=0.05),
    ),
    settings={"runs": RUNS, "train": TRAIN, "world": WORLD, "sampled": SAMPLED},
    run=run,
    plot=plot,
    steps=1 + len(RUNS),
    remarks=(
        "The last demand is against the official code's wrapper, under which the ranking gets worse in training.",
        "The pilot (seed 0) fixed the start: 600 batches of SFT on 300 demonstrations leave 19 % of the samples right, "
        "600 on 4,000 98 % (no room), 400 on 4,000 62 %. How far a start gets by then differs between seeds.",
        "It fixed one rate for all methods: at 5e-4 every method's samples got worse than the start's (55 % right at the "
        "time; DPO 34 to 43 %, list losses 42 to 49 %), at 2e-4 DPO's did still, at 1e-4 the better betas kept it. DPO's "
        "grid was extended to beta 2, since 1 had been at its edge; of 0.2, 0.5 and 1 the list losses did best with 1; "
        "the lambda loss alone was also tried with 2 (tau 0.741 for 0.739).",
        "On the pilot the lead over DPO's tau was -0.01 to 0.08 (pairwise) and 0.03 to 0.11 (lambda) over four rates and "
        "three other starts (380 and 420 batches; 800 on 800 demonstrations); above 0.1 only at 2e-4 from the last, where "
        "all samples got worse. Where they did not, list losses were right at most 2 points more often. The bounds were "
        "left as they had been stated.",
        "How much a whole list says beside its best and worst depends on how many lists there are. Tried on the pilot's seed "
        "afterwards, with 100 lists instead of 300: tau above DPO's by 0.145 (pairwise) and 0.180 (lambda), right results "
        "0.017 more often; with 30 lists 0.045 and 0.106, and 0.033 less often. The judged setting was not exchanged.",
    ),
)
