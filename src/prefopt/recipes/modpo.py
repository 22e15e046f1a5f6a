"""MODPO (2310.03708): the loss, and its two steps with a sweep over weightings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..files import write_atomically
from ..methods.pairwise.dpo import dpo
from ..objectives.hyper import Positive
from ..objectives.loss import Loss, prefer
from ..objectives.method import Method, get_method, method, require
from ..objectives.responses import Responses
from ..objectives.words import comparison
from .steps import Steps, recipe


@method(
    "modpo", "2310.03708", beta="sum of log-ratios, over w[0]", tags=("multi_objective",), surveyed=True,
    family="pairwise",
)  # fmt: skip
def modpo(
    r: Responses,
    *,
    beta: Positive = 0.1,
    w: tuple[float, ...] = (0.5, 0.5),
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid",
) -> Loss:
    """-log sigmoid(R(y_w) - R(y_l)), R(y) = (beta log pi(y)/pi_ref(y) - sum_i w_i m_i(y)) / w_0.

    w_0 weighs the objective that labelled the pairs, w_1.. those whose rewards m_i(y) are the data's `margin_rewards`
    (each with its own scale: an implicit reward carries the beta of its training). w = (1,) is DPO.
    """
    require(len(w) > 0, "w is empty: give the weight of the objective that labelled the pairs, then the others'")
    require(w[0] > 0, f"w[0] = {w[0]:g}: the weight of the objective that labelled the pairs must be positive")

    def R(y: Responses) -> Tensor:
        own = beta * y.log_ratio.sum()
        if len(w) == 1:
            return own / w[0]
        m = y.note("margin_rewards", f"R {len(w) - 1}").to(own.dtype)
        return (own - m @ torch.tensor(w[1:], dtype=own.dtype, device=own.device)) / w[0]

    chosen, rejected = r.pairs()
    out = prefer(R(chosen), R(rejected), comparison(loss_type))
    if len(w) > 1:
        for side, y in (("chosen", chosen), ("rejected", rejected)):
            m = y.note("margin_rewards", f"R {len(w) - 1}")
            out.metrics.update({f"margin_rewards/{side}/{i + 1}": m[:, i] for i in range(len(w) - 1)})
    negative = torch.tensor(float(sum(x < 0 for x in w)))
    return out.replace(health={"negative_weights": negative} if negative else {})


@recipe(
    "modpo-sweep", "2310.03708", ("pairs of one objective", "method.margin_data or method.margins: the other objectives"),
    sections=("rollout",), tags=("multi_objective",), surveyed=True,
)  # fmt: skip
def modpo_sweep(
    steps: Steps,
    *,
    base: Method = modpo(),
    margin: Method = dpo(),
    margin_data: tuple[str, ...] = (),
    margins: tuple[str, ...] = (),
    weights: tuple[float, ...] = (0.1, 0.5, 0.9),
    shares: tuple[float, ...] | None = None,
    margin_train: dict[str, Any] | None = None,
    objectives: tuple[str, ...] = (),
) -> None:
    """MODPO's two steps, then one policy for each weight of the objective that labelled the pairs (data.path).

    margin_data: pairs of the other objectives; on each, `margin` is trained and becomes an implicit reward with its own
    beta. margins: rewards that exist, as `prefopt data build scores --add margin_rewards=` takes them.
    weights: w_0 of each policy; the others share 1 - w_0, equally or by `shares`. The policies are in w-0.1/, ...
    objectives: a reward for each objective, that of the pairs first: every policy is sampled as `rollout` says, and
    front.json and front.png hold the mean rewards and who is dominated.
    """
    config, others = steps.config, len(margin_data) + len(margins)
    require(others > 0, "method.margin_data or method.margins: give the other objectives; with none, train dpo")
    require("notes:margin_rewards" in base.needs(), f"method.base = {base.name}: it asks for no margins; take modpo")
    require(base.hyper["w"] == modpo().hyper["w"], "method.base.w has no effect: method.weights says the weights")
    require(
        not margin_data or ({"notes:pairs", "scores:reference"} <= set(margin.needs()) and "beta" in margin.hyper),
        f"method.margin = {margin.name}: an implicit reward is beta log pi/pi_ref of a method of pairs with both",
    )
    require(
        bool(weights) and all(0 < w <= 1 for w in weights) and len(set(weights)) == len(weights),
        f"method.weights = {weights}: must lie in (0, 1], each given once",
    )
    part = shares or (1 / others,) * others
    require(len(part) == others and abs(sum(part) - 1) < 1e-6, f"method.shares: {others} numbers that sum to 1")
    require(len(objectives) in (0, 1 + others), f"method.objectives: give {1 + others} rewards, or none")
    require(bool(objectives) or not config.given("rollout"), "rollout has no effect without method.objectives")
    specs, reference = [*margins], config.reference.path or config.model.path
    for i, path in reversed(list(enumerate(margin_data, 1))):
        folder = steps.train(f"margin-{i}", margin, data={"path": path, "eval_path": None}, train=margin_train)
        specs.insert(0, f"implicit:{folder},reference={reference},beta={margin.hyper['beta']}")
    data = steps.scored("scored", {"margin_rewards": specs})
    policies = {}
    for w in weights:
        made = get_method(**base.record() | {"w": (w, *((1 - w) * s for s in part))})
        policies[w] = steps.train(f"w-{w:g}", made, data=data)
    if objectives:
        steps.make("front.json", lambda path: _front(steps, policies, objectives, path))


def _front(steps: Steps, policies: Mapping[float, str], objectives: Sequence[str], path: Path) -> None:
    """Mean rewards of samples of every policy and of the start, and which policies no other dominates."""
    from ..data.source import read_prompts
    from ..models.text import load_text_model
    from ..rewards.load import load_reward
    from ..rollout.text import Sampling, generate, prompt_encoder

    config, r = steps.config, steps.config.rollout
    held_out = config.data.model_copy(update={"path": config.data.eval_path or config.data.path})
    prompts = [e.prompt for e in read_prompts(held_out)[0]][: r.prompts_per_round]
    sampling = Sampling(
        r.max_new_tokens, r.temperature, r.top_p, 0, r.samples_per_prompt, config.data.seed, r.batch_size
    )
    rewards = [load_reward(o) for o in objectives]

    def point(folder: str) -> list[float]:
        loaded = load_text_model(config.model.model_copy(update={"path": folder, "adapter": None}), trainable=False)
        encoder = prompt_encoder(loaded.tokenizer)
        groups = generate(loaded.model, loaded.tokenizer, prompts, sampling, encoder=encoder)
        flat = [(p, s.text) for p, group in zip(prompts, groups, strict=True) for s in group]
        return [float(np.mean(reward([p for p, _ in flat], [y for _, y in flat]))) for reward in rewards]

    found = {w: point(folder) for w, folder in policies.items()}
    rows = [
        {"w": w, "rewards": x, "dominated": any(_dominates(y, x) for y in found.values())} for w, x in found.items()
    ]
    start = point(config.model.path)
    _draw(rows, start, objectives, path.with_suffix(".png"))
    write_atomically(path, json.dumps({"objectives": objectives, "start": start, "policies": rows}, indent=1) + "\n")


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and list(a) != list(b)


def _draw(rows: Sequence[dict[str, Any]], start: Sequence[float], objectives: Sequence[str], path: Path) -> None:
    """The first two objectives against each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel=objectives[0], ylabel=objectives[1])
    axes.plot(*zip(*(row["rewards"][:2] for row in rows), strict=True), "-o", color="#1f6f8b")
    for row in rows:
        axes.annotate(
            f"w={row['w']:g}",
            (row["rewards"][0], row["rewards"][1]),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
        )
    axes.plot(*start[:2], "s", color="#444444")
    axes.annotate("start", (start[0], start[1]), xytext=(5, -10), textcoords="offset points", fontsize=8)
    figure.savefig(path, dpi=120)
