"""What a method says about single training examples (`Loss.exports`), written to a file at the end of a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.utils import gather_object

from ..files import write_atomically
from ..objectives.loss import Loss
from ..objectives.probe import trace
from ..objectives.responses import Responses
from .sampler import Visit

if TYPE_CHECKING:
    from .trainer import Trainer

FILE = "examples.jsonl"


def export(trainer: Trainer, drawn: np.ndarray, folder: Path) -> dict[str, Any] | None:
    """One line for each pair (without pairs: each response) of the examples that training drew: file, row, numbers.

    The numbers are those of the finished policy and of the method's last state; they cost one pass without gradient.
    A method that exports nothing costs nothing (None). All processes must call it; the main one writes.
    """
    if not trace(trainer.method).loss.exports:
        return None
    args, train = trainer.args, trainer.task.train
    per_step = args.per_device_eval_batch_size * args.world_size
    sampler = Visit(train.tokens, np.asarray(drawn), per_step, args.process_index, args.world_size)
    loader = trainer._loader(train, sampler)
    rows: list[dict[str, Any]] = []
    for slots, (batch, r, loss) in zip(list(sampler), trainer.passes(loader), strict=True):
        if not batch.filler:
            rows += _rows([_origin(train, slot.index) for slot in slots], r, loss)
    if args.world_size > 1:
        rows = gather_object(rows)
    rows.sort(key=lambda x: (x["file"], x["row"], x.get("pair", x.get("response", 0))))
    if args.process_index == 0:
        write_atomically(folder / FILE, "".join(json.dumps(row) + "\n" for row in rows))
    return {"file": FILE, "rows": len(rows), "numbers": sorted(set(rows[0]) - {"file", "row", "pair", "response"})}


def _origin(examples: Any, index: int) -> dict[str, Any]:
    """Where an example comes from; data sets of images keep what was read beside what is trained on."""
    example = getattr(examples, "examples", examples)[index]
    return {"file": getattr(example, "file", ""), "row": getattr(example, "row", index)}


def _rows(origins: list[dict[str, Any]], r: Responses, loss: Loss) -> Iterator[dict[str, Any]]:
    """The batch's numbers beside where they come from; `group` says which example a pair or response is of."""
    paired = "pairs" in r.notes
    group = r.notes["group"][r.notes["pairs"][:, 0]] if paired else r.notes["group"]
    numbers = {name: x.detach().double().tolist() for name, x in loss.exports.items()}
    met: Counter[int] = Counter()
    for place, example in enumerate(group.tolist()):
        number = {"pair" if paired else "response": met[example]}
        met[example] += 1
        yield origins[example] | number | {name: round(x[place], 6) for name, x in numbers.items()}
