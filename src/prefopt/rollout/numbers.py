"""Per-token numbers of a model on given answers, by the same scorer as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from prefopt.data.encode import Encoded
from prefopt.objectives.scores import Scores
from prefopt.scoring.base import Draw, only, within
from prefopt.scoring.modes import inference
from prefopt.scoring.text import TextScorer, install

Numbers = dict[str, list[np.ndarray]]
"""Score name -> one array per response: its scored tokens (reward: a single number)."""


def answers(prompt_ids: list[int], response_ids: Sequence[list[int]], index: int = 0) -> Encoded:
    """Answers to one prompt, all of their tokens scored."""
    ids = [list(r) for r in response_ids]
    return Encoded(list(prompt_ids), ids, [[1] * len(r) for r in ids], index=index)


@torch.no_grad()
def token_numbers(
    model: torch.nn.Module,
    examples: Sequence[Encoded],
    names: Sequence[str] = ("policy",),
    *,
    tokens: int = 16384,
    progress: bool = True,
    description: str = "scoring",
) -> list[Numbers]:
    """`names` ("policy": log-probs at temperature 1; "entropy"; "reward") of every response, in the examples' order.

    Batches hold up to `tokens` tokens of similar examples, the longest first. The model's training mode is restored.
    """
    scorer = TextScorer(reward="reward" in names)
    needs: dict[str, dict[str, Any]] = {f"scores:{name}": {} for name in names}
    device = next(model.parameters()).device
    install(model)
    found: list[Numbers] = [{} for _ in examples]
    with inference(model), tqdm(total=len(found), desc=description, unit="ex", delay=1, disable=not progress) as bar:
        order = sorted(range(len(examples)), key=lambda i: -examples[i].tokens)
        for places in within([examples[i].tokens for i in order], tokens):
            part = [order[place] for place in places]
            batch = scorer.collate([Draw(examples[i]) for i in part]).to(device)
            scored = only(Scores, scorer.score(model, batch, needs)["responses"])
            for name in names:
                values, mask = scored[name].values.float().cpu().numpy(), scored[name].count.cpu().numpy() > 0
                rows = iter([v[m] for v, m in zip(values, mask, strict=True)])
                for i in part:
                    found[i][name] = [next(rows) for _ in examples[i].response_ids]
            bar.update(len(part))
    return found
