"""`prefopt data build lists`: what several models answered to the same prompts, as one list a prompt (Syn-Pic, 2410.18013)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.config import DataConfig
from ..data.messages import text_of
from ..data.portable import portable
from ..data.readers import content_hash
from ..data.rule import Ledger
from ..errors import PrefoptError
from .build import examples, modality_of
from .growing import grow

log = logging.getLogger("prefopt")


def build_lists(sources: Sequence[str], output: Path, *, progress: bool = True) -> dict[str, Any]:
    """Join the samples of several models (files or folders of `prefopt generate`) by their prompts into `output`.

    A row is {prompt, responses, generators}: all responses to the prompt, in the order of the sources. Prompts with fewer
    than two are left out and counted. PrefoptError for a single source, or sources that share no prompt.
    """
    if len(sources) < 2:
        raise PrefoptError("lists are joined from at least two sources: give the outputs of several generators")
    found: dict[str, dict[str, Any]] = {}
    kinds = set()
    for source in sources:
        data = DataConfig(path=source)  # type: ignore[call-arg]
        ledger = Ledger()
        kinds.add(modality := modality_of(data, [source]))
        for _, e in examples(data, [source], ledger, modality):
            if e is None:
                continue
            key = text_of(e.prompt)
            row = found.setdefault(key, {"prompt": e.prompt, "responses": [], "generators": []})
            row["responses"] += [portable(r, Path("/"), output.parent) for r in e.responses]
            row["generators"] += [source] * len(e.responses)
        ledger.stop_if_unreadable()
    if len(kinds) > 1:
        raise PrefoptError("some sources hold texts and others pictures; a list is of one kind")
    rows = [row for row in found.values() if len(row["responses"]) > 1 and len(set(row["generators"])) > 1]
    if not rows:
        raise PrefoptError(f"{', '.join(sources)}: they share no prompt")
    if len(rows) < len(found):
        log.warning("%d of %d prompts stand in one source only, and are left out", len(found) - len(rows), len(found))
    job = {"sources": list(sources), "content": [content_hash(s) for s in sources]}
    return grow(output, job, rows, list, title="lists", progress=progress)
