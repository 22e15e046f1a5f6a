"""Texts longer than a model has positions for: refused before training, where the model would stop in the middle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn

from ...data.store import EncodedDataset
from ...errors import PrefoptError
from ...scoring.entry import core

LEARNED = ("wpe", "embed_positions", "position_embeddings")  # what families call a table of learned positions


def learned_positions(model: nn.Module) -> int | None:
    """How many positions the model has a vector for; None where positions are computed, and only quality ends."""
    inner: Any = core(model)
    tables = [m for n, m in inner.named_modules() if n.split(".")[-1] in LEARNED and isinstance(m, nn.Embedding)]
    return int(inner.config.max_position_embeddings) if tables else None


def refuse_past_positions(model: nn.Module, sets: Iterable[EncodedDataset | None]) -> None:
    """PrefoptError naming the first row that is longer. Only trees that are longer as a whole are looked into."""
    limit = learned_positions(model)
    if limit is None:
        return
    for examples in sets:
        for i in np.flatnonzero(examples.tokens > limit) if examples is not None else ():
            e = examples[int(i)]  # type: ignore[index]
            length = len(e.prompt_ids) + max(map(len, [*e.response_ids, e.gold_ids or []]))
            if length > limit:
                raise PrefoptError(
                    f"{e.file} row {e.row}: prompt and response have {length} tokens, the model has {limit} positions; "
                    f"set data.max_length to {limit} or less"
                )
