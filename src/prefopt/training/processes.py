"""Several processes, one decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from transformers import TrainingArguments

from ..errors import PrefoptError

T = TypeVar("T")


def decided_by_main(args: TrainingArguments, decide: Callable[[], T]) -> T:
    """`decide()` on the main process alone; all processes get its answer, or its PrefoptError."""
    answer: list[Any] = [None]
    if args.process_index == 0:
        try:
            answer = [("ok", decide())]
        except PrefoptError as e:
            answer = [("error", str(e))]
    if args.world_size > 1:
        dist.broadcast_object_list(answer, 0)
    kind, value = answer[0]
    if kind == "error":
        raise PrefoptError(value)
    return value


def on_all(args: TrainingArguments, act: Callable[[], T]) -> T:
    """`act()` on every process, which wait for each other; each gets its own answer, or the first PrefoptError of any."""
    answer: Any = None
    failed: PrefoptError | None = None
    try:
        answer = act()
    except PrefoptError as e:
        failed = e
    found: list[PrefoptError | None] = [failed]
    if args.world_size > 1:
        found = [None] * args.world_size
        dist.all_gather_object(found, failed)
    for error in found:
        if error is not None:
            raise error
    return answer
