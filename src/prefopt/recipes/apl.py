"""APL (2402.08114): which prompts to sample, and which pairs to have labelled, is chosen by the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.example import Example
from ..methods.pairwise.dpo import dpo
from ..objectives.hyper import Share
from ..objectives.method import Method, require
from .sampling import Scorer, in_scored_rounds, ordered, sample, write_rows
from .stages import loaded
from .steps import Steps, recipe


@recipe(
    "apl",
    "2402.08114",
    ("prompts", "rollout.reward or rollout.judge"),
    ("rollout",),
    tags=("active", "sampler"),
    surveyed=True,
)
def apl(steps: Steps, *, base: Method = dpo(), acquired: Share = 0.5) -> str:
    """APL: of each round's prompts the share `acquired` with the largest predictive entropy -mean log pi(y), of their
    answers the two with the largest gap |h_a - h_b|, h = log pi(y)/pi_ref(y); only these pairs are labelled.

    base: the pairwise method of every round. The reference, in h too, is the first model; in the first round all gaps
    are 0 and the first two answers are taken.
    """
    rollout = steps.config.rollout
    require(rollout.reference == "start", "rollout.reference = round has no meaning for apl: its gaps would all be 0")

    def make(prompts: list[Any], score: Scorer, number: int, model: str, path: Path) -> None:
        rows = sample(steps, model, prompts, path.with_name("samples.jsonl"), rollout.samples_per_prompt, number)
        now, first = (sums(steps, m, rows) for m in (model, steps.config.model.path))
        chosen = uncertain(now, acquired)
        two = [widest(now[i] - first[i]) for i in chosen]
        asked = [(rows[i]["prompt"], [rows[i]["responses"][j] for j in p]) for i, p in zip(chosen, two, strict=True)]
        scores = score([x for x, _ in asked], [y for _, y in asked])
        write_rows(
            path, [ordered(x, y, s) for (x, y), s in zip(asked, scores, strict=True)], "raise rollout.temperature"
        )

    return in_scored_rounds(steps, base, make)


def uncertain(logps: Sequence[np.ndarray], share: float) -> list[int]:
    """Places of this share of prompts, those with the least mean log-probability of their own samples."""
    order = np.argsort([x.mean() for x in logps], kind="stable")
    return sorted(int(i) for i in order[: max(1, round(share * len(order)))])


def widest(h: np.ndarray) -> tuple[int, int]:
    """The two answers that the implicit rewards part most."""
    best, worst = int(h.argmax()), int(h.argmin())
    return (best, worst) if best != worst else (0, 1)


def sums(steps: Steps, model: str, rows: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """[samples] summed log-probabilities of every prompt's answers."""
    from ..data.encode import Encoder
    from ..models.text import load_tokenizer
    from ..rollout.numbers import token_numbers

    encoder = Encoder(load_tokenizer(model), steps.config.data)
    encoded = [encoder(Example(row["prompt"], tuple(row["responses"]))) for row in rows]
    found = token_numbers(loaded(steps, model), encoded, progress=False)
    return [np.array([float(x.astype("float64").sum()) for x in numbers["policy"]]) for numbers in found]
