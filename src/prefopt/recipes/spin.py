"""SPIN (2401.01335): the data's answers against the policy's own, round after round."""

from __future__ import annotations

from pathlib import Path

from ..data.example import Example
from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method
from .sampling import PAIRING, check_rounds, drawn, enough, idle, in_rounds, pair, read_answers, sample, write_rows
from .steps import Steps, recipe


@recipe(
    "spin",
    "2401.01335",
    ("demonstrations, or pairs of which the chosen side is taken",),
    ("rollout",),
    tags=("self_play", "sampler"),
    surveyed=True,
)
def spin(steps: Steps, *, base: Method = dpo()) -> str:
    """SPIN: -log sigmoid(lam (h_t(y_data) - h_t(y_model))), h_t = log pi(y)/pi_t(y), y_model a sample of pi_t, the model at the
    start of round t; lam is beta of the base.

    Each round samples one answer to rollout.prompts_per_round prompts of the data, which loses against the data's own,
    and trains on these pairs with its start as the reference. base: any pairwise method.
    """
    check_rounds(steps, base)
    idle(steps, "rollout", ("reward", "judge", "samples_per_prompt"), "the data's answer wins against one sample")
    idle(steps, "rollout", ("reference",), "every round is measured from its start")
    idle(steps, "data", PAIRING, "spin pairs the data's answer with the policy's")

    def make(examples: list[Example], number: int, model: str, path: Path) -> None:
        chosen = drawn(steps, examples, number)
        best = [e.responses[e.pairs[0][0] if e.pairs else 0] for e in chosen]
        rows = sample(steps, model, [e.prompt for e in chosen], path.with_name("samples.jsonl"), 1, number)
        made = (pair(r["prompt"], y, r["responses"][0]) for r, y in zip(rows, best, strict=True))
        write_rows(path, made, "the policy writes what the data says")

    return in_rounds(steps, base, lambda: enough(steps, read_answers(steps, "pairs|demonstrations")), make, moving=True)
