"""Online DPO (2402.04792): rounds of sampling from the policy, scoring, pairing and training.

Each round samples several answers to fresh prompts from the policy of the moment, has a reward function (or a judge)
order them, makes a pair of the best and the worst of each prompt, and trains one pass of any pairwise method on the
pairs. The reference is the first start, or moves to each round's start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method
from .sampling import Scorer, in_scored_rounds, ordered, sample, write_rows
from .steps import Steps, recipe


@recipe(
    "online-dpo", "2402.04792", ("prompts", "rollout.reward or rollout.judge"), ("rollout",), tags=("online", "sampler")
)
def online_dpo(steps: Steps, *, base: Method = dpo()) -> str:
    """Online DPO: rounds of sampling from the policy of the moment, scoring, pairing and training.

    base: the pairwise method of every round, with its hyperparameters.
    round-N/ hold each round's samples, pairs and run.
    """

    def make(prompts: list[Any], score: Scorer, number: int, model: str, path: Path) -> None:
        samples = path.with_name("samples.jsonl")
        rows = sample(steps, model, prompts, samples, steps.config.rollout.samples_per_prompt, number)
        scores = score([r["prompt"] for r in rows], [r["responses"] for r in rows])
        ends = [(int(np.argmax(x)), int(np.argmin(x))) for x in scores]
        made = (
            ordered(row["prompt"], [row["responses"][i] for i in two], [values[i] for i in two])
            for row, values, two in zip(rows, scores, ends, strict=True)
        )
        write_rows(path, made, "raise rollout.temperature, or give another reward")

    return in_scored_rounds(steps, base, make)
