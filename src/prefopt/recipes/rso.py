"""RSO (2309.06657): pairs of samples of the optimal policy, had from the first model by statistical rejection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..methods.pairwise.dpo import dpo
from ..objectives.hyper import Positive
from ..objectives.method import Method, require
from .sampling import (
    PAIRING,
    Scorer,
    all_prompts,
    check_rounds,
    check_scored,
    idle,
    ordered,
    sample,
    scorer,
    write_rows,
)
from .steps import Steps, recipe


@recipe(
    "rso",
    "2309.06657",
    ("prompts", "rollout.reward or rollout.judge"),
    ("rollout",),
    tags=("online", "sampler"),
    surveyed=True,
)
def rso(steps: Steps, *, base: Method = dpo(loss_type="hinge"), accepted: int = 4, temperature: Positive = 0.5) -> str:
    """RSO: a sample of the first model is accepted with probability exp((s - s_max)/temperature), s its score; DPO's hinge
    max(0, 1 - beta (h_w - h_l)) on pairs of accepted ones.

    accepted: how many of rollout.samples_per_prompt answers to each prompt are kept, drawn without replacement; they are
    paired at random and ordered by their scores. temperature: the paper's beta, of the policy that they are to come from.
    """
    check_rounds(steps, base)
    check_scored(steps)
    rollout = steps.config.rollout
    require(accepted >= 2, f"method.accepted = {accepted}: a pair needs two")
    require(
        accepted <= rollout.samples_per_prompt,
        f"method.accepted = {accepted} of rollout.samples_per_prompt = {rollout.samples_per_prompt}: draw more",
    )
    idle(steps, "rollout", ("rounds", "prompts_per_round", "reference"), "rso samples all prompts of the data once")
    idle(steps, "data", PAIRING, "rso makes the pairs")

    def load() -> tuple[list[Any], Scorer]:
        score = scorer(rollout)
        return all_prompts(steps), score

    def make(path: Path) -> None:
        prompts, score = load()
        rows = sample(
            steps, steps.config.model.path, prompts, path.with_name("samples.jsonl"), rollout.samples_per_prompt
        )
        scores = score([r["prompt"] for r in rows], [r["responses"] for r in rows])
        g, made = np.random.default_rng(steps.config.data.seed), []
        for row, values in zip(rows, scores, strict=True):
            kept = accept(values, accepted, temperature, g)
            for two in zip(kept[::2], kept[1::2], strict=False):
                made.append(ordered(row["prompt"], [row["responses"][i] for i in two], [values[i] for i in two]))
        write_rows(path, made, "raise rollout.temperature, or give another reward")

    if steps.checking:
        load()
    return steps.train("run", base, data=steps.written(steps.make("pairs.jsonl", make)))


def accept(scores: Sequence[float], number: int, temperature: float, g: np.random.Generator) -> list[int]:
    """Places of `number` samples of exp(score / temperature) times their own distribution, without replacement.

    The bound is the best score that is left (algorithm 1), so the best of them is always accepted at last.
    """
    left, kept = list(range(len(scores))), list[int]()
    while left and len(kept) < number:
        best = max(scores[i] for i in left)
        taken = [i for i in left if g.random() < math.exp((scores[i] - best) / temperature)]
        kept += [taken[j] for j in g.permutation(len(taken))]
        left = [i for i in left if i not in taken]
    return kept[:number]
