"""From rows to examples: the layout of a file, and the annotations that every layout may carry."""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from prefopt.data import dialects, fields
from prefopt.data.config import DataConfig
from prefopt.data.example import ASKED, Example
from prefopt.data.fields import Unreadable, short
from prefopt.data.layouts import LAYOUTS, Draft, Layout
from prefopt.data.messages import with_system
from prefopt.data.own_captions import CAPTION_COLUMNS, with_captions
from prefopt.data.readers import Row
from prefopt.data.row_fields import Fields, Modality, located, turns
from prefopt.data.side_notes import COLUMNS, read_side_notes
from prefopt.errors import PrefoptError

assert dialects  # imported for its registrations

LOOKED_AT = 64
"""Rows that `auto` looks at before it decides, so that one broken row does not decide for a file."""

_PAIR_NOTES = {
    "margin": fields.number,
    "gold_score": fields.number,
    "weight": fields.weight,
    "label_probability": fields.probability,
}
_SIDE_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
_SOURCES = ("chosen_source", "rejected_source")
_NAMED = {"annotator": ("annotator", "annotator_id"), "domain": ("domain",), "user": ("user", "user_id")}


def recognise(rows: Iterable[Row], config: DataConfig) -> tuple[Layout, Iterator[Row]]:
    """The layout of these rows, and the rows again from their start.

    Raises PrefoptError where no layout fits, naming the columns and what is known.
    """
    stream = iter(rows)
    head = list(islice(stream, LOOKED_AT))
    again = chain(head, stream)
    _check_columns(head, config)
    if config.layout != "auto":
        if config.layout not in LAYOUTS:
            raise PrefoptError(f"data.layout {config.layout!r} is unknown; known are auto, {', '.join(LAYOUTS)}")
        return LAYOUTS[config.layout], again
    votes = Counter(found.name for row in head if row.fault is None and (found := _fitting(rename(row, config))))
    if votes:
        return LAYOUTS[votes.most_common(1)[0][0]], again
    where = head[0].file if head else ", ".join(config.paths)
    if not head:
        raise PrefoptError(f"{where}: holds no rows")
    parsed = next((row for row in head if row.fault is None), None)
    if parsed is None:
        raise PrefoptError(f"{where}: no row can be read; row {head[0].row} {head[0].fault}")
    raise PrefoptError(
        f"{where}: the columns {', '.join(map(str, parsed.values)) or '(none)'} fit no known layout. Name their "
        "meaning with data.columns, e.g. data.columns.prompt=question; the layouts are: "
        + "; ".join(f"{x.name} ({', '.join(x.columns)})" for x in LAYOUTS.values())
    )


def _check_columns(head: list[Row], config: DataConfig) -> None:
    """Names in data.columns that are nearly right, or columns that no row has. (A method may ask for names of its own.)"""
    known = (
        {c for x in LAYOUTS.values() for c in x.columns} | set(_PAIR_NOTES) | {c for cs in _NAMED.values() for c in cs}
    )
    known |= (
        COLUMNS
        | CAPTION_COLUMNS
        | {c for cs in _SIDE_SCORES for c in cs}
        | {"degraded", "chosen_degraded", "rejected_degraded", "completion_degraded"}
        | {"scores", "ranks", "gold", "tools", "images", "videos", "system"}
    )
    there = list(dict.fromkeys(str(c) for row in head for c in row.values))
    for name, column in config.columns.items():
        if name not in known and (close := difflib.get_close_matches(name, known, 1, 0.8)):
            raise PrefoptError(f"data.columns.{name}: there is no such name; did you mean '{close[0]}'?")
        if there and column not in there:
            raise PrefoptError(
                f"data.columns.{name} = {column}: {head[0].file} has no such column; it has {', '.join(there)}"
            )


def _fitting(values: Mapping[str, Any]) -> Layout | None:
    return max((x for x in LAYOUTS.values() if x.fits(values)), key=lambda x: len(x.columns), default=None)


def rename(row: Row, config: DataConfig) -> dict[str, Any]:
    """The row's values under their canonical names."""
    if not config.columns:
        return dict(row.values)
    taken = set(config.columns.values())
    values = {k: v for k, v in row.values.items() if k not in taken and k not in config.columns}
    return values | {name: row.values[column] for name, column in config.columns.items() if column in row.values}


@dataclass(frozen=True)
class Interpreter:
    """Makes examples of rows. `wanted` are names of further annotations that a method asks for; `graded`: whether it
    asks for graded versions; `captioned`: whether for a caption of every response.

    Raises Unreadable and TeachesNothing, which the caller collects.
    """

    layout: Layout
    config: DataConfig
    modality: Modality = "text"
    wanted: frozenset[str] = frozenset()
    graded: bool = False
    captioned: bool = False

    def __call__(self, row: Row) -> Example:
        if row.fault is not None:
            raise Unreadable(row.fault, "parse")
        for column in self.config.columns.values():
            if column not in row.values:
                raise Unreadable(f"{column!r} (named in data.columns) is missing", "missing")
        f = Fields(rename(row, self.config), row.base, self.modality)
        draft = self.layout.read(f)
        prompt, responses = _with_system(draft, self.config.system, f.text("system") if f.has("system") else None)
        made = Example(
            prompt,
            tuple(responses),
            tuple(draft.pairs),
            self._notes(f, draft),
            _gold(f, prompt),
            _tools(f),
            _images(f),
            _videos(f),
            draft.steps and tuple(map(tuple, draft.steps)),  # type: ignore[arg-type]
            _graded(f, draft) if self.graded else None,
            _object(f, "chat_template_kwargs"),
            remarks=draft.remarks,
            file=row.file,
            row=row.row,
        )
        return with_captions(made, f) if self.captioned else made

    def _notes(self, f: Fields, draft: Draft) -> dict[str, Any]:
        count = len(draft.responses)
        notes = dict(draft.notes)
        for name, read in _PAIR_NOTES.items():
            if f.has(name) and name not in notes:
                notes[name] = _per_pair(f.get(name), name, read, len(draft.pairs))
        for name, columns in _NAMED.items():
            column = next((c for c in columns if f.has(c)), None)
            if column:
                notes[name] = _per_pair(f.get(column), column, _label, len(draft.pairs))
        for columns in _SIDE_SCORES:
            if all(map(f.has, columns)) and count == 2:
                notes["score"] = [fields.number(f.get(c), c) for c in columns]
        if any(map(f.has, _SOURCES)) and len(draft.pairs) == 1:
            notes["scenario"] = [_scenario(f)]
        if f.modality == "image" and count == 1 and f.has("score"):
            notes["score"] = [fields.rating(f.get("score"), "score")]
        notes.update(_scores(f, count))
        if f.has("ranks"):
            notes["rank"] = [fields.number(r, "ranks") for r in f.items("ranks", count)]
        notes |= read_side_notes(f, draft.responses, self.wanted)
        for name in self.wanted - set(notes) - COLUMNS:
            if f.has(name):
                per_pair = name in ASKED and draft.pairs
                value = f.get(name)
                notes[name] = (
                    _per_pair(value, name, fields.number, len(draft.pairs)) if per_pair else _free(value, name, count)
                )
        return notes


def _with_system(draft: Draft, default: str | None, own: str | None) -> tuple[Any, list[Any]]:
    """A system message makes chat messages of strings: there is no other place for it."""
    system = own or default
    prompt, responses = draft.prompt, draft.responses
    if not system:
        return prompt, responses
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
        responses = [[{"role": "assistant", "content": r}] if isinstance(r, str) else r for r in responses]
    return with_system(prompt, system), responses


def _per_pair(value: Any, name: str, read: Any, pairs: int) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [read(v, name) for v in fields.items(value, name, pairs or None)]
    return [read(value, name)]


def _label(value: Any, name: str) -> str:
    if isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)):
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    raise Unreadable(f"{name!r} is {short(value)}, expected a name or a number")


def _scenario(f: Fields) -> str:
    """Whose samples the two sides of a pair are: "on-off" is a chosen answer of the model to be trained, another's below."""
    sides = [f.text(c) for c in _SOURCES]
    for side, column in zip(sides, _SOURCES, strict=True):
        if side not in ("on", "off"):
            raise Unreadable(f"{column!r} is {short(side)}, expected on (a sample of the model to be trained) or off")
    return "-".join(sides)


def _scores(f: Fields, count: int) -> dict[str, list[float]]:
    """`scores` as one list, as {objective: list} or as one object of objectives per response."""
    if not f.has("scores"):
        return {}
    given = f.get("scores")
    if isinstance(given, Mapping):
        return {
            f"scores/{n}": [fields.rating(s, f"scores.{n}") for s in fields.items(v, f"scores.{n}", count)]
            for n, v in given.items()
            if v is not None
        }
    given = fields.items(given, "scores", count)
    if given and all(isinstance(s, Mapping) for s in given):
        names = dict.fromkeys(n for s in given for n in s)
        return {f"scores/{n}": [fields.rating(s.get(n), f"scores.{n}") for s in given] for n in names}
    return {"score": [fields.rating(s, "scores") for s in given]}


def _free(value: Any, name: str, count: int) -> list[Any]:
    """An annotation that only one method knows: a number (per example), or a list of numbers."""
    if isinstance(value, (list, tuple)):
        return [_free(v, name, count) if isinstance(v, (list, tuple)) else fields.rating(v, name) for v in value]
    if isinstance(value, bool):
        return [float(value)]
    return [fields.rating(value, name)]


def _graded(f: Fields, draft: Draft) -> tuple[tuple[str, ...] | None, ...] | None:
    """Versions of each response with less and less of its content, in columns of their own; None where there are none."""
    if f.has("degraded"):
        given = f.items("degraded", len(draft.responses))
    else:
        names = [("chosen_degraded", "rejected_degraded"), ("completion_degraded",)]
        sides = next((x for x in names if len(x) == len(draft.responses) and any(map(f.has, x))), ())
        given = [f.get(name) for name in sides]
    return tuple(v and tuple(fields.text(t, "degraded") for t in fields.items(v, "degraded")) for v in given) or None


def _gold(f: Fields, prompt: Any) -> Any:
    if not f.has("gold"):
        return None
    if f.modality == "image":
        return located(f.get("gold"), f.base)
    gold = turns(f.get("gold"), "gold")
    if isinstance(prompt, str) and not isinstance(gold, str):
        raise Unreadable("'gold' is a list of messages while the prompt is text")
    return [{"role": "assistant", "content": gold}] if isinstance(gold, str) and not isinstance(prompt, str) else gold


def _tools(f: Fields) -> list[Any] | None:
    if not f.has("tools"):
        return None
    tools = f.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except ValueError as error:
            raise Unreadable(f"'tools' is no JSON: {short(tools)}") from error
    tools = fields.items(tools, "tools")
    for tool in tools:
        if not isinstance(tool, Mapping):
            raise Unreadable(f"'tools' holds {short(tool)}, expected an object with a function's name and parameters")
    return tools or None


def _images(f: Fields) -> tuple[Any, ...]:
    """Images that belong to the prompt: `images`, or a single `image` (of a text model)."""
    if f.modality == "image":
        return ()
    if f.has("images"):
        return tuple(located(v, f.base) for v in f.items("images"))
    return (located(f.get("image"), f.base),) if f.has("image") else ()


def _videos(f: Fields) -> tuple[str, ...]:
    given = f.items("videos") if f.has("videos") else [f.get("video")] if f.has("video") else []
    return tuple(str(f.base / fields.text(v, "videos")) for v in given)


def _object(f: Fields, name: str) -> Mapping[str, Any]:
    if not f.has(name):
        return {}
    if not isinstance(f.get(name), Mapping):
        raise Unreadable(f"{name!r} is {short(f.get(name))}, expected an object")
    return {k: v for k, v in f.get(name).items() if v is not None}
