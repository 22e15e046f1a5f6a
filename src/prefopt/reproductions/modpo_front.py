"""MODPO's two steps on language models, beside a mixture of losses: the trained half of its reproduction."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bench import Bench
from .claim import Demand, Measurements

if TYPE_CHECKING:
    from ..worlds.rivals import Rivals

WEIGHTS = (0.1, 0.5, 0.9)
PAIRS, BATCH, EPOCHS, RATE, BETA = 6000, 64, 3, 1e-3, 0.1


def run(bench: Bench) -> dict[str, Any]:
    """One seed: `prefopt train modpo-sweep`, DPO on either objective, and DPO on both with weighted losses."""
    from ..worlds import rivals
    from .small import configuration

    world = rivals.build(bench.folder / "world", seed=bench.seed, pairs=PAIRS)
    numbers: dict[str, Any] = {
        "steps": rivals.steps_of(EPOCHS, PAIRS, BATCH), "learning_rate": RATE, "seed": bench.seed
    }  # fmt: skip
    dpo = {"name": "dpo", "beta": BETA}

    def sweep() -> dict[str, Any]:
        from ..config import make
        from ..recipes import load_all

        method = {"name": "modpo-sweep", "base": {"beta": BETA}, "margin": dpo, "weights": list(WEIGHTS)}
        method["margin_data"] = [str(world.changes)]
        content = configuration(rivals, world, method, batch=BATCH, **numbers)  # type: ignore[arg-type]
        folder = bench.folder / "runs" / "sweep"
        load_all()["modpo-sweep"].run(make({**content, "output": str(folder)}))
        policies = {f"modpo-{w:g}": folder / f"w-{w:g}" for w in WEIGHTS} | {"changes": folder / "margin-1"}
        return {name: look(place, world) for name, place in policies.items()}

    def alone() -> dict[str, float]:
        content = configuration(rivals, world, dpo, batch=BATCH, **numbers)  # type: ignore[arg-type]
        return look(bench.train("likes", content), world)

    def mixed(w: float) -> dict[str, float]:
        file = mixture(world, w, bench.folder / f"mixture-{w:g}.jsonl")
        data = {"data": {"path": str(file), "use": ["weight"]}}
        content = configuration(rivals, world, dpo, batch=2 * BATCH, sections=data, **numbers)  # type: ignore[arg-type]
        return look(bench.train(f"mixture-{w:g}", content), world)

    found = bench.once("front-sweep", sweep)
    found |= {"start": bench.once("front-start", lambda: look(world.model, world))}
    found |= {"likes": bench.once("front-likes", alone)}
    for w in WEIGHTS:
        found[f"mixture-{w:g}"] = bench.once(f"front-mixture-{w:g}", lambda w=w: mixed(w))  # type: ignore[misc]
    return {"front": found}


def mixture(world: Rivals, w: float, file: Path) -> Path:
    """The pairs of both objectives with weights of their losses: w L1 + (1 - w) L2."""
    with file.open("w", encoding="utf-8") as out:
        for source, weight in ((world.likes, 2 * w), (world.changes, 2 * (1 - w))):
            for line in source.read_text(encoding="utf-8").splitlines():
                out.write(json.dumps(json.loads(line) | {"weight": weight}) + "\n")
    return file


def look(folder: Path, world: Rivals) -> dict[str, float]:
    """Exact means over prompts: both rewards and KL to the start."""
    from ..worlds.rivals import all_rewards, everything
    from .small import load_model

    logp, start = (everything(load_model(place)[0]) for place in (folder, world.model))
    pi = logp.exp()
    r1, r2 = ((pi * r).sum(1).mean() for r in all_rewards())
    found = {"r1": r1, "r2": r2, "kl": (pi * (logp - start)).sum(1).mean()}
    return {name: float(value) for name, value in found.items()}


def least_step(m: Measurements) -> float:
    """How much the first reward rises, and the second falls, from one weighting to the next, at the least."""
    points = [m["front"][f"modpo-{w:g}"] for w in WEIGHTS]
    return min(min(b["r1"] - a["r1"], a["r2"] - b["r2"]) for a, b in itertools.pairwise(points))


def clear_of_mixture(m: Measurements) -> float:
    """The better of a MODPO point's two leads over a point of the mixture, the least over all couples: below zero, some
    point is dominated."""
    f = m["front"]
    couples = [(f[f"modpo-{w:g}"], f[f"mixture-{v:g}"]) for w in WEIGHTS for v in WEIGHTS]
    return min(max(a["r1"] - b["r1"], a["r2"] - b["r2"]) for a, b in couples)


def scalarised_lead(m: Measurements) -> float:
    """(r1 + r2) / 2 of MODPO with equal weights, less that of the better policy of one objective."""
    half = {name: (x["r1"] + x["r2"]) / 2 for name, x in m["front"].items()}
    return half["modpo-0.5"] - max(half["likes"], half["changes"])


DEMANDS = (
    Demand(
        "language models: least rise of r1, and fall of r2, from a weight of 0.1 to 0.5 to 0.9", least_step, least=1e-6
    ),
    Demand("language models: least lead, in the better reward, of a MODPO point over a point of the mixture",
           clear_of_mixture, least=0.0),
    Demand("language models: (r1 + r2) / 2 at weight 0.5 less that of the better DPO of one objective",
           scalarised_lead, least=1e-6),
)  # fmt: skip
