"""XPO (2405.21046) as rounds: a sample of the policy against one of the reference, with optimism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..methods.pairwise.xpo import xpo
from ..objectives.method import Method, require
from .sampling import Scorer, idle, in_scored_rounds, ordered, sample, write_rows
from .steps import Steps, recipe


@recipe(
    "xpo-rounds",
    "2405.21046",
    ("prompts", "rollout.reward or rollout.judge"),
    ("rollout",),
    tags=("online", "sampler"),
    surveyed=True,
)
def xpo_rounds(steps: Steps, *, base: Method = xpo()) -> str:
    """XPO in rounds: one answer of the policy of the moment and one of the first model to each prompt, ordered by score;
    -log sigmoid(beta (h_w - h_l)) + alpha log pi(y~), y~ the first model's.

    base: xpo, or what else reads `from_reference`. The reference is the first model throughout.
    """
    require(
        "notes:from_reference" in base.needs(), f"method.base = {base.name}: it has no optimism; take xpo or online-dpo"
    )
    idle(steps, "rollout", ("samples_per_prompt",), "one answer of each model is compared")
    idle(steps, "rollout", ("reference",), "the reference whose answers are compared is the first model")

    def make(asked: list[Any], score: Scorer, number: int, model: str, path: Path) -> None:
        first = steps.config.model.path
        rows = [
            sample(steps, m, asked, path.with_name(f"{who}.jsonl"), 1, 2 * number + i)
            for i, (who, m) in enumerate((("policy", model), ("reference", first)))
        ]
        answers = [[a["responses"][0], b["responses"][0]] for a, b in zip(*rows, strict=True)]
        scores = score(asked, answers)
        made = [ordered(p, y, s, from_reference=(0, 1)) for p, y, s in zip(asked, answers, scores, strict=True)]
        write_rows(path, made, "raise rollout.temperature, or give another reward")

    return in_scored_rounds(steps, base, make)
