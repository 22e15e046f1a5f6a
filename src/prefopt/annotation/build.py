"""`prefopt data build scores`: the rows of a data set with numbers about each response beside them.

Answers are kept by content ($PREFOPT_CACHE/scores), a chunk of rows at a time: a build that was stopped goes on, and one
with a further column computes only that. The file appears when it is whole; OUTPUT.job says what it was made from.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data.config import DataConfig
from ..data.example import Example
from ..data.interpret import Interpreter, recognise, rename
from ..data.latents import content_of
from ..data.messages import is_empty
from ..data.portable import portable
from ..data.readers import Row, content_hash, read_rows
from ..data.row_fields import Modality
from ..data.rule import Ledger, fit
from ..data.validate import guess_modality
from ..errors import PrefoptError
from ..files import cache_folder, write_atomically
from ..scoring.store import Store
from .measures import Entry, Known, LogProbability, Measure, same_tokenizer

log = logging.getLogger("prefopt")
CHUNK = 256
"""Rows whose answers are kept together."""
LISTED = ("margin_rewards", "reward_scores")
"""Columns that hold a list of numbers for each response."""
COLUMNS = {
    "score": "one reward; it orders the responses",
    "reward_score": "one reward (madpo)",
    "reward_scores": "a reward for each time it is given: reward models that vote (rankdpo)",
    "margin_rewards": "a reward for each time it is given, or implicit:RUN (modpo)",
    "sources": "a model for each time it is given: columns source_sums and source_counts (infifpo)",
}


def build_scores(
    data: DataConfig, add: Mapping[str, Sequence[str]], output: Path, *, held_out: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Write the rows of `data.path` (held_out: of `data.eval_path`) with further columns into the JSONL `output`.

    Responses are texts or pictures, as the first row has them. Models read with their own tokenizer and chat template,
    cut as `data` says (max_length, in their own tokens).
    add: column (of COLUMNS) -> specifications. A reward is a reward model's folder, module:function, file.py:function or
    a scorer of pictures (KIND:FOLDER); `implicit:RUN` (or implicit:MODEL,reference=FOLDER,beta=NUMBER) is
    beta (log pi - log pi_ref); a source is a model's folder. Beside a pair the columns are chosen_NAME and
    rejected_NAME, beside other responses NAME, a list.
    Returns the record that OUTPUT.job holds. PrefoptError before any model is asked for whatever is wrong with the data.
    """
    paths = data.eval_paths if held_out else data.paths
    modality = modality_of(data, paths)
    columns = plan(add, data, modality=modality)
    if output.suffix != ".jsonl":
        raise PrefoptError(f"output {output}: scored rows are written as .jsonl")
    ledger = _examined(data, paths, columns, modality)
    job = _Job(data, paths, columns, ledger.rows, progress, modality)
    stores = job.fill()
    record = job.record(add)
    note = output.with_name(output.name + ".job")
    if output.exists():
        known = json.loads(note.read_text()) if note.is_file() else {}
        if known.get("made_from") != record["made_from"]:
            raise PrefoptError(f"output {output} holds something else; nothing is overwritten: give a new file")
        return known
    output.parent.mkdir(parents=True, exist_ok=True)
    ledger.report(f"{', '.join(paths)}, written without scores")
    return job.write(output, note, stores, record)


def modality_of(data: DataConfig, paths: list[str]) -> Modality:
    """Whether the responses of these files are texts or pictures, by their first row."""
    _, rows = recognise(islice(read_rows(paths, split=data.split, subset=data.subset), 1), data)
    first = next(rows, None)
    return guess_modality(rename(first, data)) if first is not None else "text"


def plan(
    add: Mapping[str, Sequence[str]], data: DataConfig, partial: bool = False, modality: Modality = "text"
) -> dict[str, list[Entry]]:
    """Column -> its numbers. PrefoptError for an unknown column or specification. partial: some are not made yet."""
    if not add:
        raise PrefoptError(f"nothing to add: give --add NAME=WHAT; the names are {_known()}")
    reading = data.model_dump(include={"strings", "thinking", "max_length", "max_prompt_length", "truncation"})
    known, columns = Known(DataConfig(path="-", **reading), modality), {}
    for name, specs in add.items():
        key = f"--add {name}"
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, 1)
            raise PrefoptError(f"{key}: " + (f"did you mean '{close[0]}'?" if close else f"the names are {_known()}"))
        if not (specs or partial) or any(not s for s in specs):
            raise PrefoptError(f"{key}: give what computes it, {name}=WHAT")
        if name in ("score", "reward_score") and len(specs) > 1:
            raise PrefoptError(f"{key}: given {len(specs)} times; it is one number per response")
        if name == "sources":
            columns[name] = [Entry(s, (known.log_probability(s, key),)) for s in specs]
        else:
            columns[name] = [known.entry(s, key) for s in specs]
    return columns


def _known() -> str:
    return "; ".join(f"{k} ({v})" for k, v in COLUMNS.items())


def examples(
    data: DataConfig, paths: list[str], ledger: Ledger, modality: Modality = "text"
) -> Iterator[tuple[Row, Example | None]]:
    """Every row, with its example unless it teaches nothing (or cannot be read, which the ledger knows)."""
    rows = read_rows(paths, split=data.split, subset=data.subset)
    layout, again = recognise(islice(rows, data.limit), data)
    interpret = Interpreter(layout, data, modality)
    for row in again:
        ledger.rows += 1
        example = None
        with ledger.row(row):
            made = interpret(row)
            fit(made, data, frozenset({"ties"}))  # what ties may be told apart by its scores
            example = made
        yield row, example


def _examined(data: DataConfig, paths: list[str], columns: Mapping[str, Any], modality: Modality) -> Ledger:
    """All rows read once, before any model is asked."""
    ledger, found = Ledger(), 0
    for row, example in examples(data, paths, ledger, modality):
        if example is None:
            continue
        found += 1
        for column in _names(example, columns):
            if row.values.get(column) is not None:
                raise PrefoptError(
                    f"{example.origin}: has a column '{column}' already: remove it, or leave it as it is"
                )
    ledger.stop_if_unreadable()
    if not found:
        raise PrefoptError(f"{', '.join(paths)}: no row has responses that could be scored")
    return ledger


def _names(example: Example, columns: Mapping[str, Any]) -> list[str]:
    flat = [c for name in columns for c in (("source_sums", "source_counts") if name == "sources" else (name,))]
    return [side for name in flat for side in _sides(example, name)]


def _sides(example: Example, name: str) -> tuple[str, ...]:
    """The columns of a note: one for each side of a pair, else one list."""
    if len(example.responses) == 2 and example.pairs == ((0, 1),):
        return f"chosen_{name}", f"rejected_{name}"
    return ("scores" if name == "score" else name,)


@dataclass
class _Job:
    """One build: rows read again for every measure, so that one model and one chunk are in memory."""

    data: DataConfig
    paths: list[str]
    columns: Mapping[str, list[Entry]]
    rows: int
    progress: bool
    modality: Modality = "text"
    sums: dict[str, list[float]] = field(default_factory=dict)  # of what was written, for the record

    def fill(self) -> dict[int, Store]:
        """Each measure's answers for all responses, in its store."""
        stores: dict[int, Store] = {}
        entries = [(f"--add {name}", e) for name, column in self.columns.items() for e in column]
        for key, entry in entries:
            fresh = [m for m in entry.measures if id(m) not in stores]
            for measure in fresh:
                measure.open()
            same_tokenizer(entry, key)
            for measure in fresh:
                stores[id(measure)] = Store(measure.identity, cache_folder("scores"))
                self._ask(measure, stores[id(measure)])
                measure.close()
        return stores

    def _ask(self, measure: Measure, store: Store) -> None:
        with tqdm(
            total=self.rows, desc=f"scores of {Path(measure.name).name}", unit="row", disable=not self.progress
        ) as bar:
            for chunk in _chunks(examples(self.data, self.paths, Ledger(), self.modality)):
                asked = [x for e in chunk if e is not None for x in _asked(e, isinstance(measure, LogProbability))]
                missing = store.missing(k for e in asked for k in self._keys(e))
                todo = [e for e in asked if missing.intersection(self._keys(e))]
                if todo:
                    answers = measure(todo)
                    flat = [
                        (k, a)
                        for e, one in zip(todo, answers, strict=True)
                        for k, a in zip(self._keys(e), one, strict=True)
                    ]
                    store.put({k: np.array(a, dtype=np.float32) for k, a in flat})
                bar.update(len(chunk))

    def record(self, add: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """What the file is made from: content of the data, how it is read, and the identity of every measure."""
        how = self.data.model_dump(
            include={"layout", "columns", "split", "subset", "limit", "strings", "system", "thinking"}
        )
        content = [content_hash(p, split=self.data.split, subset=self.data.subset) for p in self.paths]
        measures = {
            name: [{"spec": e.spec, "beta": e.beta, "identities": [m.identity for m in e.measures]} for e in column]
            for name, column in self.columns.items()
        }
        return {
            "made_from": {"content": content, "data": how, "columns": measures},
            "paths": self.paths,
            "add": {k: list(v) for k, v in add.items()},
        }

    def write(self, output: Path, note: Path, stores: Mapping[int, Store], record: dict[str, Any]) -> dict[str, Any]:
        """The rows with their columns; the file takes its name when it is whole, after its record."""
        half = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            with half.open("w", encoding="utf-8") as file:
                for row, example in examples(self.data, self.paths, Ledger(), self.modality):
                    kept = portable(dict(row.values), row.base, output.parent)
                    values = kept | ({} if example is None else self._columns(example, stores))
                    file.write(json.dumps(values, ensure_ascii=False, default=str) + "\n")
            told = {
                k: {"mean": float(np.mean(v)), "std": float(np.std(v)), "numbers": len(v)} for k, v in self.sums.items()
            }
            whole = record | {"rows": self.rows, "statistics": told}
            write_atomically(note, json.dumps(whole, indent=1) + "\n")
            os.replace(half, output)
            return whole
        finally:
            half.unlink(missing_ok=True)

    def _columns(self, example: Example, stores: Mapping[int, Store]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, entries in self.columns.items():
            whole = [self._answers(e, example, stores) for e in entries]  # entry -> response -> measure -> numbers
            if name == "sources":
                for note, at in (("source_sums", 0), ("source_counts", 1)):
                    numbers = [[w[i][0][at] for w in whole] for i in range(len(whole[0]))]
                    if example.gold is not None:
                        made[f"gold_{note}"] = numbers.pop()
                    made |= self._laid_out(example, note, numbers)
            else:
                values = [
                    [e.of(w[i]) for e, w in zip(entries, whole, strict=True)] for i in range(len(example.responses))
                ]
                made |= self._laid_out(example, name, values if name in LISTED else [v[0] for v in values])
        return made

    def _answers(self, entry: Entry, example: Example, stores: Mapping[int, Store]) -> list[list[list[float]]]:
        """Response (of log-probabilities the gold answer last) -> measure -> numbers."""
        found = []
        for measure in entry.measures:
            keys = [k for x in _asked(example, isinstance(measure, LogProbability)) for k in self._keys(x)]
            known = stores[id(measure)].get(keys)
            found.append([[float(v) for v in known[k]] for k in keys])
        return [list(one) for one in zip(*found, strict=True)]

    def _keys(self, example: Example) -> list[str]:
        """What an answer depends on beside the measure: prompt, tools and response (of a picture what it shows)."""
        start = json.dumps([example.prompt, example.tools, dict(example.template_kwargs)], sort_keys=True, default=str)
        said = [
            content_of(r, example) if self.modality == "image" else json.dumps(r, sort_keys=True, default=str).encode()
            for r in example.responses
        ]
        return [hashlib.blake2b(f"{start}\x1d".encode() + x, digest_size=20).hexdigest() for x in said]

    def _laid_out(self, example: Example, name: str, values: list[Any]) -> dict[str, Any]:
        self.sums.setdefault(name, []).extend(x for v in values for x in (v if isinstance(v, list) else [v]))
        said = [None if is_empty(r) else v for r, v in zip(example.responses, values, strict=True)]
        sides = _sides(example, name)
        return dict(zip(sides, said, strict=True)) if len(sides) == 2 else {sides[0]: said}


def _asked(example: Example, gold: bool) -> list[Example]:
    """The example, and its gold answer as an example of its own where that is scored too."""
    extra = (
        [replace(example, responses=(example.gold,), pairs=(), notes={})] if gold and example.gold is not None else []
    )
    return [example, *extra]


def _chunks(rows: Iterator[tuple[Row, Example | None]]) -> Iterator[list[Example | None]]:
    while chunk := [example for _, example in islice(rows, CHUNK)]:
        yield chunk
