"""Data for every method of the survey's benchmark: one set of samples, with a column for whatever a method reads."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from ..worlds.cache import World

STEP = 4  # letters of a step
MARKER = "[a-q]{1,4}"
"""Where steps begin, for methods that read steps: after every fourth letter."""


def lm_methods() -> dict[str, Mapping[str, Any]]:
    """Name -> needs of every registered method that trains a language model's probabilities."""
    from ..methods import load_all
    from ..objectives.method import METHODS
    from ..objectives.taxonomy import modality_of

    load_all()
    needs = {name: METHODS[name]().needs() for name in sorted(METHODS)}
    return {k: n for k, n in needs.items() if "lm" in modality_of(n, METHODS[k].family) and "scores:policy" in n}


def write_pairs(world: World, path: Path, own: bool, seed: int) -> Path:
    """The world's pairs with all columns; own: with a third answer, a sample of the start that belongs to no pair."""
    from ..worlds import copying, letters
    from .small import encode_pairs, load_model, look

    rows = read_jsonl(world.train)
    if own:
        said = letters.answers(*load_model(world.model), [r["prompt"] for r in rows], 1, copying.TOKENS, seed=seed)
        made = [
            {
                "prompt": r["prompt"],
                "responses": [r["chosen"], r["rejected"], group[0].text],
                "pairs": [[0, 1]],
                "on_policy": [0, 0, 1],
            }
            for r, group in zip(rows, said, strict=True)
            if group[0].text
        ]
    else:
        model, tokenizer = load_model(world.model)
        encoded = encode_pairs(tokenizer, copying, world.train)
        sums = [look(model, model, [(p, r[i]) for p, r in encoded]) for i in (0, 1)]
        counts = [[len(r[i]) for _, r in encoded] for i in (0, 1)]
        rng = random.Random(seed)  # noqa: S311
        made = [
            _columns(row, rng, [(float(s.start[i]), float(c[i])) for s, c in zip(sums, counts, strict=True)])
            for i, row in enumerate(rows)
        ]
    write_jsonl(path, made)
    return path


def _columns(row: Mapping[str, Any], rng: random.Random, start: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The row with what any method reads about it; start: log-probability and tokens of each side under the start."""
    from ..worlds.copying import noise

    own = rng.randrange(2)
    made: dict[str, Any] = dict(row) | {
        "label_probability": 0.9,
        "age": rng.random(),
        "annotator": f"a{rng.randrange(2)}",
    }
    made["wrong_step"] = _apart(row["chosen"], row["rejected"])
    for i, side in enumerate(("chosen", "rejected")):
        text, score = row[side], row[f"{side}_score"]
        made |= {
            f"{side}_reward_score": 4 * score,
            f"{side}_margin_rewards": [-len(text) / 16],
            f"{side}_source_sums": [start[i][0]],
            f"{side}_source_counts": [start[i][1]],
            f"{side}_cost": len(text) / 16 - 0.5,
            f"{side}_unsafe": float(noise([row["prompt"]], [text])[0] > 0.5),
            f"{side}_from_reference": float(i == own),
            f"{side}_degraded": [text, text[: -(-len(text) // 2)], text[: -(-len(text) // 4)]],
        }
    return made


def _apart(chosen: str, rejected: str) -> int:
    """Number of the first step in which two answers differ."""
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    return 1 + (min(len(chosen), len(rejected)) if shared is None else shared) // STEP


def data_of(needs: Mapping[str, Any], world: World, pairs: Path, sampled: Path) -> dict[str, Any]:
    """Keys of the data section for a method with these needs."""
    from ..worlds import copying

    section: dict[str, Any] = dict(copying.DATA)
    if "notes:step_index" in needs:
        section["step_marker"] = MARKER
    if "extras:gold" in needs:
        return section | {"path": str(world.lists), "pairing": "triple", "max_dropped": 0.5}
    if "notes:group" in needs:
        labels = {"list_labels": "minmax"} if "notes:value" in needs else {}
        return section | {"path": str(world.lists), "max_dropped": 0.5, **labels}
    return section | {"path": str(sampled if "notes:on_policy" in needs else pairs)}


def sources_of(needs: Mapping[str, Any], world: World, better: Path) -> dict[str, str]:
    """Models whose scores a method asks for: the start where it wants a bad one, else the model after DPO."""
    from ..scoring.text import asked_sources

    return {name: str(world.model if name == "negative" else better) for name in sorted(asked_sources(needs))}
