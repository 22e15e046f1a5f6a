"""sDPO (2403.19270): DPO on successive chunks of the data, each measured from the end of the one before."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..data.curriculum import parts
from ..data.example import Example
from ..files import write_atomically
from ..methods.pairwise.dpo import dpo
from ..objectives.method import Method, require
from .stages import check_stages, in_stages, text_only
from .steps import Steps, recipe


@recipe("sdpo", "2403.19270", ("pairs",), tags=("distinguishability", "dynamic"), surveyed=True)
def sdpo(
    steps: Steps,
    *,
    base: Method = dpo(),
    chunks: int | None = None,
    update_reference: bool = True,
    kl_prompts: int = 64,
) -> str:
    """sDPO: -log sigmoid(beta (h_w - h_l)), h = log pi(y)/pi_ref(y), chunk after chunk; pi_ref of a chunk = the model at
    the end of the chunk before.

    chunks: how many contiguous parts the rows are cut in, the larger ones first; none: one for each file of a list
    `data.path`. update_reference off: always the first model. base: any method.
    Optimiser and schedule restart with each chunk; `train.num_train_epochs` and `max_steps` are those of one chunk.
    stage-N/ hold each chunk's run and its KL to the first model, measured on kl_prompts prompts.
    """
    text_only(steps)
    check_stages(steps, base, update_reference, kl_prompts)
    paths = steps.config.data.paths
    require(
        chunks is None or chunks >= 2, f"method.chunks = {chunks}: must be 2 or more; one chunk is {base.name} itself"
    )
    require(
        chunks is not None or len(paths) > 1,
        "method.chunks says in how many parts the data are cut; or give data.path as a list of files, one for each",
    )
    if chunks is None:
        data: list[dict[str, Any]] = [{"path": path} for path in paths]
    else:
        data = _cut(steps, chunks)
    return in_stages(
        steps, base, data, _examples(steps.config), update_reference=update_reference, kl_prompts=kl_prompts
    )


def _cut(steps: Steps, chunks: int) -> list[dict[str, Any]]:
    """The rows as they are, in files of their own."""
    from ..data.readers import read_rows

    config = steps.config.data
    rows = list(islice(read_rows(config.paths, split=config.split, subset=config.subset), config.limit))
    require(len(rows) >= chunks, f"method.chunks = {chunks}: the data have {len(rows)} rows")
    faults = [row for row in rows if row.fault is not None]
    require(not faults, f"{faults[0].file} row {faults[0].row} {faults[0].fault}" if faults else "")

    def write(part: range, path: Path) -> None:
        write_atomically(path, "".join(json.dumps(dict(rows[i].values), ensure_ascii=False) + "\n" for i in part))

    keys: dict[str, Any] = {"limit": None, "split": "train", "subset": None}
    return [
        {"path": str(steps.make(f"stage-{n}/data.jsonl", partial(write, part))), **keys}
        for n, part in enumerate(parts(len(rows), chunks), 1)
    ]


def _examples(config: RunConfig) -> list[Example]:
    """Everything that can be read and learned from; the runs judge the rest."""
    from ..data.rule import Ledger
    from ..data.source import read_examples

    return list(read_examples(config.data, config.data.paths, Ledger()))
