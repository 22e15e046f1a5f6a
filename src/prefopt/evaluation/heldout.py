"""The prompts and pairs that a model is evaluated on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoded, Encoder
from prefopt.data.example import Example
from prefopt.data.prepare import prompt_key, set_aside
from prefopt.data.prepare_images import Pictures, read_pictures
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples
from prefopt.errors import PrefoptError


@dataclass(frozen=True)
class HeldOut:
    """Different `prompts`, tokenised `pairs`, the ledger's record of them, and a remark if the data was trained on."""

    prompts: list[Example]
    pairs: list[Encoded]
    record: dict[str, Any]
    notes: list[str]


def held_out(data: DataConfig, encoder: Encoder, limit: int | None = None) -> HeldOut:
    """The held-out part of a run's data: eval_path, or the share eval_fraction; lacking both, the data itself.

    At most `limit` different prompts and as many examples with pairs, the first ones. Any layout gives prompts; pairs
    come from those that hold some. Rows that cannot be read stop it, rows that teach nothing are dropped and counted.
    """
    prompts, ledger = prompts_held_out(data, limit)
    pairs: list[Encoded] = []
    if _holds_pairs(data):
        ledger = Ledger()
        for example in _inside(data, ledger, "pairs"):
            with ledger.row(example):
                pairs.append(encoder(example, len(pairs)))
            if len(pairs) == limit:
                break
        ledger.stop_if_unreadable()
    notes = []
    if not data.eval_paths and not data.eval_fraction:
        notes.append("The data names no held-out part (data.eval_path): if it was trained on, these numbers flatter.")
    return HeldOut(prompts, pairs, ledger.record(), notes)


def prompts_held_out(
    data: DataConfig, limit: int | None, modality: Literal["text", "image"] = "text"
) -> tuple[list[Example], Ledger]:
    """At most `limit` examples with different prompts of the held-out part, or of the data itself, the first ones; and what
    became of the rows. Raises PrefoptError by the rule for rows, and where there is no prompt."""
    prompts: dict[int, Example] = {}
    ledger = Ledger()
    for example in _inside(data, ledger, "prompts", modality):
        prompts.setdefault(prompt_key(example), example)
        if len(prompts) == limit:
            break
    ledger.stop_if_unreadable()
    if not prompts:
        raise PrefoptError(f"{', '.join(_paths(data))}: no prompt to evaluate on; {ledger.rows} rows were read")
    return list(prompts.values()), ledger


def pictures_held_out(
    data: DataConfig, other: str | None, needs: set[str], limit: int | None
) -> tuple[Pictures, list[str]]:
    """What a run of pictures is evaluated on (in `train`), and a remark if it was trained on: at most `limit` examples of
    `other`, else of the held-out part of the run's data, else of the data itself.

    Ties are dropped, whatever the run made of them, however many. Raises PrefoptError by the rule for rows.
    """
    share = 0.0 if other or data.eval_paths else data.eval_fraction
    update = {"path": [other] if other else _paths(data), "eval_path": None, "eval_fraction": share}
    update |= {"use": [], "top": None, "max_dropped": 1.0} | ({} if share else {"limit": limit})
    read = read_pictures(data.model_copy(update=update), needs)
    trained = not (other or data.eval_paths or share)
    notes = ["The pairs that were ordered are those of the training: these numbers flatter."] if trained else []
    own = slice(len(read.train), None) if share else slice(0, None)
    return Pictures([*read.train, *read.eval][own][:limit], [], read.record, read.users[own][:limit]), notes


def _holds_pairs(data: DataConfig) -> bool:
    """Whether the first row can be read as a pair or a list (prompts alone, demonstrations and labels cannot)."""
    ledger = Ledger()
    for _ in read_examples(data.model_copy(update={"limit": 1}), _paths(data), ledger, needs={"pairs"}):
        pass
    return not ledger.unreadable_count


def _inside(
    data: DataConfig, ledger: Ledger, need: str, modality: Literal["text", "image"] = "text"
) -> Iterator[Example]:
    for example in read_examples(data, _paths(data), ledger, needs={need}, modality=modality):
        if data.eval_paths or not data.eval_fraction or set_aside(data, example):
            yield example


def _paths(data: DataConfig) -> list[str]:
    return data.eval_paths or data.paths
