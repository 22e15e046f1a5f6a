"""Image examples: those that are trained on, and those that are held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import PrefoptError
from .config import DataConfig
from .example import Example
from .prepare import set_aside
from .source import read_image_examples


def read_split(data: DataConfig, needs: Iterable[str]) -> tuple[list[Example], list[Example], dict[str, Any]]:
    """Training examples, held-out ones (of `eval_path`, or the share `eval_fraction`), and the record of the rows.

    Raises PrefoptError by the rule for rows.
    """
    found, record = read_image_examples(data, needs_pairs=False, needs=needs)
    if data.eval_paths:
        held_out, record["eval_data"] = read_image_examples(data, needs_pairs=False, held_out=True, needs=needs)
        return found, held_out, record
    aside = [set_aside(data, e) for e in found]
    train, held_out = ([e for e, out in zip(found, aside, strict=True) if out is side] for side in (False, True))
    return train, held_out, record


def stop_if_empty(train: Sequence[Example], held_out: Sequence[Example], data: DataConfig, rows: int) -> None:
    """Raises PrefoptError where nothing is left on a side that should hold something."""
    wanted = {"train": train} | ({"eval": held_out} if data.eval_paths or data.eval_fraction else {})
    for name, part in wanted.items():
        if not part:
            raise PrefoptError(
                f"data: no example is left for {name} ({rows} rows were read); change data.eval_fraction or give more data"
            )
