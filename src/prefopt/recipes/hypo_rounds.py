"""HyPO (2406.01462) as rounds: offline pairs, and samples of the policy for its KL to the reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..data.example import Example
from ..methods.pairwise.hypo import hypo
from ..objectives.method import Method, require
from .sampling import check_rounds, idle, in_rounds, read_answers, sample, write_rows
from .steps import Steps, recipe


@recipe(
    "hypo-rounds",
    "2406.01462",
    ("pairs",),
    ("rollout",),
    tags=("online", "distribution_shift", "sampler"),
    surveyed=True,
)
def hypo_rounds(steps: Steps, *, base: Method = hypo()) -> str:
    """HyPO in rounds: -log sigmoid(beta (h_w - h_l)) + lam KL(pi || pi_ref), the KL on samples that are fresh every round.

    Every round goes over all pairs, each with one answer of the policy of the moment to its prompt. base: hypo, or what
    else reads `on_policy`. The reference is the first model, or with rollout.reference = round each round's start.
    """
    check_rounds(steps, base)
    require(
        "notes:on_policy" in base.needs(), f"method.base = {base.name}: it reads no samples of the policy; take hypo"
    )
    idle(steps, "rollout", ("reward", "judge"), "the pairs are the data's")
    idle(steps, "rollout", ("samples_per_prompt", "prompts_per_round"), "one answer to every prompt is sampled")
    idle(steps, "data", ("use", "soft_labels"), "rows are written with their answers alone")

    def make(examples: list[Example], number: int, model: str, path: Path) -> None:
        rows = sample(steps, model, [e.prompt for e in examples], path.with_name("samples.jsonl"), 1, number)
        made = [
            {
                "prompt": e.prompt,
                "responses": [*e.responses, row["responses"][0]],
                "pairs": [list(p) for p in e.pairs],
                "on_policy": [0] * len(e.responses) + [1],
            }
            for e, row in zip(examples, rows, strict=True)
            if row["responses"][0].strip()
        ]
        write_rows(path, made, "all samples are empty")

    return in_rounds(steps, base, partial(read_answers, steps, "pairs"), make, file="rows.jsonl")
