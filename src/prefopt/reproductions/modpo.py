"""MODPO (2310.03708): its optimum is that of the weighted rewards, exactly, where a mixture of DPO losses misses it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from . import modpo_front
from .bench import Bench
from .claim import Demand, Measurements, Reproduction

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

RESPONSES, BETA, STEPS, RATE = 32, 0.5, 4000, 0.02
WEIGHTS = (0.2, 0.5, 0.8)


def run(bench: Bench) -> Measurements:
    """A prompt with 32 responses, two conflicting rewards, every weighting trained to convergence; then a front of
    language models."""
    found = {f"w-{w:g}": bench.once(f"w-{w:g}", partial(weighting, bench.seed, w)) for w in WEIGHTS}
    return found | modpo_front.run(bench)


def weighting(seed: int, w: float) -> dict[str, Any]:
    """KL to the optimum, objective as a share of the best gain, and both rewards, of MODPO and of the mixture."""
    import torch

    from ..objectives.compose import annotated
    from ..objectives.method import get_method
    from ..scoring.tabular import Table, TabularScorer, fit, pairs_of, tilted

    r1, r2, reference = _world(seed)
    star = tilted(reference[None], (w * r1 + (1 - w) * r2)[None], BETA).log()[0]
    first, second = torch.triu_indices(RESPONSES, RESPONSES, 1)
    p1, p2 = (torch.sigmoid(r[first] - r[second]) for r in (r1, r2))

    def trained(method: dict[str, Any], label: Tensor) -> Tensor:
        """Population labels: both orders of every pair, each as often as Bradley-Terry has it."""
        margins = torch.cat([r2[first], r2[second]])[:, None]
        batch = pairs_of(
            [0] * len(first), first.tolist(), second.tolist(), label_probability=label, margin_rewards=margins
        )
        made = annotated(get_method(**method), ["label_probability"])
        policy = Table(reference.log()[None])
        return fit(made, policy, TabularScorer(reference[None]), batch, STEPS, lambda p: torch.optim.Adam(p, RATE))[0]

    def look(logp: Tensor) -> dict[str, float]:
        pi = logp.exp()
        numbers = {
            "kl": pi @ (logp - star),
            "r1": pi @ r1,
            "r2": pi @ r2,
            "objective": _objective(logp, reference, r1, r2, w),
        }
        return {k: float(v) for k, v in numbers.items()}

    return {
        "best": look(star),
        "start": look(reference.log()),
        "modpo": look(trained({"name": "modpo", "beta": BETA, "w": [w, 1 - w]}, p1)),
        "mixture": look(trained({"name": "dpo", "beta": BETA}, w * p1 + (1 - w) * p2)),
    }


def _world(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two rewards [32] that conflict, and a reference distribution."""
    import torch

    g = torch.Generator().manual_seed(seed)
    r1, other, logits = torch.randn(3, RESPONSES, generator=g, dtype=torch.float64)
    return r1, -0.7 * r1 + 0.7 * other, torch.softmax(logits, 0)


def _objective(logp: Tensor, reference: Tensor, r1: Tensor, r2: Tensor, w: float) -> Tensor:
    """E[w r1 + (1 - w) r2] - beta KL(pi || pi_ref)."""
    return logp.exp() @ (w * r1 + (1 - w) * r2 - BETA * (logp - reference.log()))


def gap(m: Measurements, name: str) -> float:
    """Largest relative shortfall of the objective against the closed form's."""
    return max((x["best"]["objective"] - x[name]["objective"]) / abs(x["best"]["objective"]) for x in weightings(m))


def weightings(m: Measurements) -> list[Any]:
    """The exact half: what was measured with each weight."""
    return [m[f"w-{w:g}"] for w in WEIGHTS]


def plot(seeds: Sequence[Measurements]) -> Figure:
    """The two rewards of every weighting. Above: the optimum, MODPO on it, the mixture off it; below: language models."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(seeds), 6.2), layout="constrained")
    marks = {
        "best": ("closed form", "o", "#444444"),
        "modpo": ("MODPO", "x", "#1f6f8b"),
        "mixture": ("w L1 + (1-w) L2", "+", "#c8553d"),
    }
    places = figure.subplots(2, len(seeds), squeeze=False)
    for number, (axes, m) in enumerate(zip(places[0], seeds, strict=True)):
        for name, (label, mark, colour) in marks.items():
            points = [(x[name]["r1"], x[name]["r2"]) for x in weightings(m)]
            face = "none" if mark == "o" else colour
            axes.scatter(*zip(*points, strict=True), marker=mark, s=60, facecolors=face, color=colour, label=label)
        axes.set_title(f"seed {number + 1}", fontsize=9)
    for axes, m in zip(places[1], seeds, strict=True):
        for name in ("modpo", "mixture"):
            points = [(x["r1"], x["r2"]) for k, x in m["front"].items() if k.startswith(name)]
            axes.plot(*zip(*points, strict=True), "-" + marks[name][1], color=marks[name][2], label=marks[name][0])
        ends = [m["front"][k] for k in ("likes", "changes")]
        axes.plot([x["r1"] for x in ends], [x["r2"] for x in ends], "^", color="#8a8a3a", label="DPO, one objective")
        axes.plot(m["front"]["start"]["r1"], m["front"]["start"]["r2"], "s", color="#444444", label="start")
    for axes in places.flat:
        axes.set_xlabel("mean r1")
        axes.set_ylabel("mean r2")
        axes.spines[["top", "right"]].set_visible(False)
    for row in places:
        row[0].legend(frameon=False, fontsize=7)
    return figure


REPRODUCTION = Reproduction(
    slug="modpo",
    paper="2310.03708",
    claim="MODPO reaches the optimum of the weighted rewards under the KL constraint, without RL; its policies form a front.",
    setting=(
        "One prompt with 32 responses and a policy of free logits, one for each seed; two conflicting rewards known "
        "exactly; population Bradley-Terry labels of the first, the second as margin reward; beta 0.5; w in {0.2, 0.5, "
        "0.8}; 4,000 Adam steps. Beside it DPO on the mixture w L1 + (1 - w) L2 of both objectives' labels, same beta, "
        "steps and start. Then language models (GPT-2 of two blocks and width 32, answers of five letters of four, all "
        "enumerated): r1 the share of the prompt's letter, r2 that of changing neighbours, 6,000 pairs of the model's "
        "samples for each. `prefopt train modpo-sweep`: DPO on the pairs of r2 is the implicit margin, then MODPO on those "
        "of r1 with w 0.1, 0.5 and 0.9; beside it DPO on either, and on both with weights w and 1 - w of the losses. "
        "Three epochs of 64 pairs (of each objective) with AdamW at 1e-3, beta 0.1."
    ),
    demands=(
        Demand(
            "largest KL(pi || pi*) of MODPO over the weightings",
            lambda m: max(x["modpo"]["kl"] for x in weightings(m)),
            most=0.01,
        ),
        Demand(
            "largest relative shortfall of MODPO's objective against the closed form",
            lambda m: gap(m, "modpo"),
            most=1e-3,
        ),
        Demand(
            "smallest lead of MODPO's objective over the mixture's",
            lambda m: min(x["modpo"]["objective"] - x["mixture"]["objective"] for x in weightings(m)),
            least=0.0,
        ),
        Demand(
            "smallest KL(pi || pi*) of the mixture, as a multiple of MODPO's",
            lambda m: min(x["mixture"]["kl"] / max(x["modpo"]["kl"], 1e-6) for x in weightings(m)),
            least=10.0,
        ),
        *modpo_front.DEMANDS,
    ),
    settings={
        "responses": RESPONSES,
        "beta": BETA,
        "weights": WEIGHTS,
        "steps": STEPS,
        "rate": RATE,
        "front": {
            "weights": modpo_front.WEIGHTS,
            "pairs": modpo_front.PAIRS,
            "batch": modpo_front.BATCH,
            "epochs": modpo_front.EPOCHS,
            "rate": modpo_front.RATE,
            "beta": modpo_front.BETA,
        },
    },
    run=run,
    plot=plot,
    steps=len(WEIGHTS) + 3 + len(modpo_front.WEIGHTS),
    remarks=(
        "The paper's fronts on safety alignment and long-form answers are of large language models, against RL; here the "
        "optimum itself is tried, where it is known, and a front of small models against a mixture of losses.",
    ),
)
