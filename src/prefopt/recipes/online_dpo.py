"""Online DPO (2402.04792): rounds of sampling from the policy, scoring, pairing and training.

Each round samples several answers to fresh prompts from the policy of the moment, has a reward function (or a judge)
order them, makes a pair of the best and the worst of each prompt, and trains one pass of any pairwise method on the
pairs. The reference is the first start, or moves to each round's start.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method
from .sampling import (
    PAIRING,
    Scorer,
    check_rounds,
    check_scored,
    drawn,
    idle,
    in_rounds,
    ordered,
    prompts_and_scorer,
    sample,
    write_rows,
)
from .steps import Steps, recipe


@recipe(
    "online-dpo", "2402.04792", ("prompts", "rollout.reward or rollout.judge"), ("rollout",), tags=("online", "sampler")
)
def online_dpo(steps: Steps, *, base: Method = dpo()) -> str:
    """Online DPO: rounds of sampling from the policy of the moment, scoring, pairing and training.

    base: the pairwise method of every round, with its hyperparameters.
    round-N/ hold each round's samples, pairs and run.
    """
    check_rounds(steps, base)
    check_scored(steps)
    idle(steps, "data", PAIRING, "every round pairs its best answers with its worst")
    return in_rounds(steps, base, partial(prompts_and_scorer, steps), partial(_pairs, steps))


def _pairs(steps: Steps, given: tuple[list[Any], Scorer], number: int, start: str, path: Path) -> None:
    """One round's samples beside its pairs: the best against the worst answer of every prompt."""
    prompts, score = given
    asked = drawn(steps, prompts, number)
    rows = sample(steps, start, asked, path.with_name("samples.jsonl"), steps.config.rollout.samples_per_prompt, number)
    scores = score([r["prompt"] for r in rows], [r["responses"] for r in rows])
    ends = [(int(np.argmax(x)), int(np.argmin(x))) for x in scores]
    made = (
        ordered(row["prompt"], [row["responses"][i] for i in two], [values[i] for i in two])
        for row, values, two in zip(rows, scores, ends, strict=True)
    )
    write_rows(path, made, "raise rollout.temperature, or give another reward")
