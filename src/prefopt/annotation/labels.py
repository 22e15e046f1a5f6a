"""`prefopt data build labels`: pairs labelled anew by a scorer (AI feedback)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..data.config import DataConfig
from ..data.example import Example
from ..data.portable import portable
from ..data.rule import Ledger
from ..errors import PrefoptError
from .build import build_scores, examples, modality_of
from .growing import grow

STAYS, TURNED, TIE = KINDS = ("labels that stay", "labels turned round", "ties")


def build_labels(
    data: DataConfig, reward: str, output: Path, *, gap: float | None = None, progress: bool = True
) -> dict[str, Any]:
    """Write the pairs of `data` into the JSONL `output`, the response that `reward` scores higher as the chosen one.

    reward: as in `build_scores`; the scores stand beside the pairs (and, row by row, in OUTPUT.scored.jsonl). gap: pairs
    whose probabilities sigmoid(+-(s_w - s_l)) differ by no more are ties (label_probability 1/2), for methods that read
    ties; without it only equal scores tie, and are left out. Labels of the data, ties among them, are not looked at.
    Returns the record that OUTPUT.job holds, and under `told` how many labels are of each of KINDS.
    """
    if gap is not None and not 0 <= gap < 1:
        raise PrefoptError(f"--gap {gap}: must be in [0, 1)")
    scored = output.with_name(f"{output.stem}.scored.jsonl")
    build_scores(data, {"score": [reward]}, scored, progress=progress)
    reading = data.model_copy(update={"path": str(scored), "columns": {}, "layout": "auto", "limit": None})
    modality = modality_of(reading, [str(scored)])
    ledger = Ledger()
    found = [e for _, e in examples(reading, [str(scored)], ledger, modality) if e is not None]
    ledger.stop_if_unreadable()
    made = [_relabelled(e, gap, output.parent) for e in found]
    told = {kind: sum(kind == other for other, _ in made) for kind in KINDS}
    rows = [row for kind, row in made if kind != TIE or gap is not None]
    if found and not rows:
        raise PrefoptError(
            f"{reward} scores both sides alike in all {len(found)} pairs, so there is nothing to label; --gap 0 keeps ties"
        )
    job = {"scored": json.loads(scored.with_name(scored.name + ".job").read_text())["made_from"], "gap": gap}
    record = grow(output, job, rows, list, title="labels", progress=progress)
    return record | {"told": told}


def _relabelled(e: Example, gap: float | None, folder: Path) -> tuple[str, dict[str, Any]]:
    """What became of the label (of KINDS), and the row."""
    if len(e.responses) != 2 or len(e.pairs) != 1:
        raise PrefoptError(f"{e.origin}: holds {len(e.responses)} responses; labels are of pairs")
    scores = e.notes["score"]
    was = e.pairs[0]
    w, l = was if scores[was[0]] >= scores[was[1]] else was[::-1]
    ahead = math.tanh((scores[w] - scores[l]) / 2)  # the gap of the two probabilities
    tie = ahead <= gap if gap is not None else scores[w] == scores[l]
    sides = {
        "chosen": portable(e.responses[w], Path("/"), folder),
        "rejected": portable(e.responses[l], Path("/"), folder),
    }
    row = {"prompt": e.prompt, **sides, "chosen_score": scores[w], "rejected_score": scores[l]}
    row |= {} if gap is None else {"label_probability": 0.5 if tie else 1.0}
    return TIE if tie else STAYS if (w, l) == was else TURNED, row
