"""f-DPO (2309.16240): mass-covering divergences keep more diversity at a reward near that of reverse KL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .bench import Bench
from .claim import Demand, Measurements, Reproduction
from .small import distinct, measure, run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS: dict[str, dict[str, Any]] = {
    "reverse-0.03": {"name": "f-dpo", "beta": 0.03},
    "reverse-0.1": {"name": "f-dpo", "beta": 0.1},
    "reverse-0.3": {"name": "f-dpo", "beta": 0.3},
    "jsd-0.1": {"name": "f-dpo", "beta": 0.1, "divergence": "jsd"},
    "alpha5-0.1": {"name": "f-dpo", "beta": 0.1, "divergence": "alpha_divergence", "alpha": 0.5},
    "alpha7-0.03": {"name": "f-dpo", "beta": 0.03, "divergence": "alpha_divergence", "alpha": 0.7},
    "forward-0.003": {"name": "f-dpo", "beta": 0.003, "divergence": "forward_kl"},
    "forward-0.01": {"name": "f-dpo", "beta": 0.01, "divergence": "forward_kl"},
    "forward-0.03": {"name": "f-dpo", "beta": 0.03, "divergence": "forward_kl"},
}
COLOURS = {
    "reverse": ("reverse KL (DPO)", "#1f6f8b"),
    "jsd": ("Jensen-Shannon", "#6b8e4e"),
    "alpha5": ("α = 0.5", "#b9a44c"),
    "alpha7": ("α = 0.7", "#d98b3a"),
    "forward": ("forward KL", "#c8553d"),
}
COVERING = ("forward-0.01", "alpha5-0.1", "alpha7-0.03")
TRAIN: dict[str, Any] = {"steps": 400, "learning_rate": 5e-4, "batch": 48}
WORLD: dict[str, Any] = {"layers": 1, "hidden": 48, "pairs": 1024}
EXACT: tuple[dict[str, Any], ...] = (
    {"divergence": "reverse_kl"},
    {"divergence": "forward_kl"},
    {"divergence": "jsd"},
    {"divergence": "alpha_divergence", "alpha": 0.5},
    {"divergence": "alpha_divergence", "alpha": 1e-3},
)


def go(bench: Bench) -> Measurements:
    """One seed: every divergence on the same pairs, and the optimum of each on a finite response space."""
    from ..worlds import copying

    world = copying.build(seed=bench.seed, **WORLD | copying.LENGTH_BIASED)
    start = bench.once("start", lambda: measure(world.model, copying, world, seed=bench.seed))
    found: dict[str, Any] = {}
    for name, method in RUNS.items():
        numbers = run(bench, name, copying, world, method, **TRAIN)
        folder = bench.folder / "runs" / name
        different = bench.once(f"{name}-distinct", partial(distinct, folder, copying, seed=bench.seed))
        found[name] = numbers | {"distinct": different}
    return found | {"start": start, "exact": bench.once("exact", lambda: exact(bench.seed))}


def exact(seed: int, beta: float = 0.5, responses: int = 6) -> dict[str, float]:
    """How far f'(pi/pi_ref) - r/beta is from a constant at the minimum of the population loss, the worst divergence;
    and how far the optimal probabilities of alpha = 0.001 are from those of reverse KL."""
    import torch

    from ..objectives import links
    from ..objectives.method import get_method
    from ..objectives.responses import Responses

    g = torch.Generator().manual_seed(seed)
    reference = torch.log_softmax(torch.randn(responses, generator=g, dtype=torch.float64), 0)
    reward = torch.randn(responses, generator=g, dtype=torch.float64)
    pairs = torch.tensor([(i, j) for i in range(responses) for j in range(responses) if i != j])
    share = torch.sigmoid(reward[pairs[:, 0]] - reward[pairs[:, 1]])

    def optimum(hyper: dict[str, Any]) -> torch.Tensor:
        logits = reference.clone().requires_grad_()
        m = get_method("f-dpo", beta=beta, **hyper)
        optimiser = torch.optim.LBFGS([logits], max_iter=4000, tolerance_grad=1e-12, tolerance_change=1e-16,
                                      history_size=20, line_search_fn="strong_wolfe")  # fmt: skip

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = m(Responses.of(torch.log_softmax(logits, 0), reference, pairs=pairs)).weighted(share).scalar
            value.backward()
            return value

        for _ in range(5):
            optimiser.step(loss)
        return torch.log_softmax(logits, 0).detach()

    worst, found = 0.0, []
    for hyper in EXACT:
        found.append(optimum(hyper))
        R, a = found[-1] - reference, hyper.get("alpha")
        s = links.alpha_divergence(R, a) if a else getattr(links, hyper["divergence"])(R)
        constant = s - reward / beta
        worst = max(worst, (constant.max() - constant.min()).item())
    return {"worst": worst, "small alpha": (found[-1].exp() - found[0].exp()).abs().max().item()}


def against(m: Measurements, key: str) -> list[float]:
    """A number of each mass-covering divergence, beside that of reverse KL: (theirs, reverse KL's)."""
    return [m[name][key] for name in COVERING]


def plot(seeds: Sequence[Measurements]) -> Figure:
    """True reward against the entropy of an answer, and against different answers; a point for each run and seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    panels = {"entropy_sum": "entropy of an answer (nats)", "distinct": "different answers among 256 to one prompt"}
    for axes, (key, title) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for start, (label, colour) in COLOURS.items():
            mine = [m[name] for m in seeds for name in RUNS if name.startswith(start)]
            axes.plot(
                [x[key] for x in mine], [x["covered"] for x in mine], "o", color=colour, markersize=5, label=label
            )
        if key == "entropy_sum":
            axes.plot([m["start"][key] for m in seeds], [m["start"]["covered"] for m in seeds], "s", color="#444444",
                      markersize=5, label="start model")  # fmt: skip
            axes.set_ylabel("true reward")
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=6, fontsize=8
    )
    return figure


REPRODUCTION = Reproduction(
    slug="f-dpo",
    paper="2309.16240",
    claim="Trained on the same preferences, mass-covering divergences (forward KL, alpha of 0.5 and more) keep answers more "
    "diverse than reverse KL does, at a reward near its.",
    setting=(
        "World `copying`, one for each seed (GPT-2 of one block, width 48): 1,024 pairs whose labels like coverage of the "
        "prompt and length, 400 steps of 48 pairs with AdamW at 5e-4. Every divergence has betas of its own scale (reverse "
        "and forward KL three each); the demands compare beta 0.1 of reverse KL (DPO) with 0.01 of forward KL, 0.1 of "
        "alpha 0.5 and 0.03 of alpha 0.7. Entropy: exact next-token entropy summed over an answer, 1,536 fresh samples; "
        "different answers: among 256 samples of one prompt, averaged over four. And exactly, without training: six "
        "responses with a known reward, the population loss minimised in double precision."
    ),
    demands=(
        Demand(
            "entropy of an answer above reverse KL's (nats), the lowest of forward KL and alpha 0.5, 0.7",
            lambda m: min(against(m, "entropy_sum")) - m["reverse-0.1"]["entropy_sum"],
            least=2.0,
        ),
        Demand(
            "different answers as a multiple of reverse KL's, the lowest of the three",
            lambda m: min(against(m, "distinct")) / m["reverse-0.1"]["distinct"],
            least=1.25,
        ),
        Demand(
            "true reward above the start's, the lowest of the three",
            lambda m: min(against(m, "covered")) - m["start"]["covered"],
            least=0.2,
        ),
        Demand(
            "true reward of reverse KL less that of forward KL",
            lambda m: m["reverse-0.1"]["covered"] - m["forward-0.01"]["covered"],
            least=-0.05,
        ),
        Demand(
            "exact optima: spread of f'(pi/pi_ref) - r/beta over responses, the worst divergence",
            lambda m: m["exact"]["worst"],
            most=1e-3,
        ),
        Demand(
            "exact optima: largest difference of a probability between alpha = 0.001 and reverse KL",
            lambda m: m["exact"]["small alpha"],
            most=1e-2,
        ),
    ),
    settings={"runs": RUNS, "train": TRAIN, "world": WORLD, "exact": EXACT},
    run=go,
    plot=plot,
    steps=2 + 2 * len(RUNS),
    remarks=(
        "The paper's tasks are IMDb sentiment and Anthropic HH; here the reward is known exactly.",
        "Equal care with betas is compared, not equal reward: the figure shows all points, since betas of different "
        "divergences are on different scales.",
        "What fails is the least of three ratios of different answers on seed 2: 1.22 for 1.25, counted on four prompts. "
        "Counted afterwards on 48 prompts they are 1.28, 1.26 and 1.27 there (1.71 and 1.63 or more on the other seeds), on "
        "four other prompts 1.22, 1.23 and 1.22: the claim is true of that seed too, as near to the bound as four prompts "
        "can tell. The count was not exchanged.",
    ),
)
