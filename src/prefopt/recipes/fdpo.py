"""Filtered DPO (2404.13846): pairs whose chosen side the policy has outgrown are dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..data.example import Example
from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method, require
from .sampling import check_rounds, idle, in_rounds, pair, read_answers, sample, told, write_rows
from .steps import Steps, recipe

Reward = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]


@recipe(
    "fdpo", "2404.13846", ("pairs", "rollout.reward"), ("rollout",), tags=("distinguishability", "reward_model", "sampler"),
    surveyed=True,
)  # fmt: skip
def fdpo(steps: Steps, *, base: Method = dpo()) -> str:
    """fDPO: before every round a pair is dropped if reward(y) > reward(y_w), y a sample of the policy of the moment; then
    -log sigmoid(beta (h_w - h_l)) on what is left.

    Every round goes over all pairs of the data, and what was dropped may come back. The reference is the first model, or
    with rollout.reference = round each round's start. base: any pairwise method.
    """
    check_rounds(steps, base)
    rollout = steps.config.rollout
    require(rollout.reward is not None, "rollout.reward says whether a sample is better than the chosen side: set it")
    idle(steps, "rollout", ("judge",), "rollout.reward scores the answers")
    idle(steps, "rollout", ("samples_per_prompt", "prompts_per_round"), "one answer to every prompt is compared")
    idle(steps, "data", ("use", "soft_labels"), "rows are written with prompt, chosen and rejected alone")

    def load() -> tuple[list[Example], Reward]:
        from ..rewards.load import load_reward

        return read_answers(steps, "pairs"), load_reward(str(rollout.reward))

    def make(given: tuple[list[Example], Reward], number: int, model: str, path: Path) -> None:
        examples, reward = given
        rows = sample(steps, model, [e.prompt for e in examples], path.with_name("samples.jsonl"), 1, number)
        asked = [(e, w, l, row["responses"][0]) for e, row in zip(examples, rows, strict=True) for w, l in e.pairs]
        prompts = [e.prompt for e, *_ in asked]
        own, chosen = (
            reward(prompts, [y for *_, y in asked]),
            reward(prompts, [told(e.responses[w]) for e, w, *_ in asked]),
        )
        made = [
            pair(e.prompt, e.responses[w], e.responses[l]) if a <= b else None
            for (e, w, l, _), a, b in zip(asked, own, chosen, strict=True)
        ]
        write_rows(path, made, "the policy is better than all chosen sides by this reward: stop after fewer rounds")

    return in_rounds(steps, base, load, make)
