"""The one rule for rows: what cannot be read stops a run, what teaches nothing is dropped, counted and listed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from prefopt.data.config import DataConfig
from prefopt.data.example import Example, axes
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.lists import as_list, with_steps
from prefopt.data.messages import is_empty, same, text_of
from prefopt.data.pairing import keep_responses, pair_up, to_labelled
from prefopt.data.readers import Row
from prefopt.data.side_notes import how_to_give_note
from prefopt.data.triples import as_triple, check_order
from prefopt.data.votes import with_phi
from prefopt.errors import PrefoptError

log = logging.getLogger("prefopt.data")

LISTED = 8
"""Unreadable rows that are named in full; the rest is counted."""

RECORDED = 10_000
"""Row numbers that are kept per reason and file."""

EMPTY_ANSWER = "an empty answer"
EMPTY_PROMPT = "an empty prompt"
IDENTICAL = "identical answers"
TIE = "a tie"


@dataclass
class Ledger:
    """What became of the rows: how many were read, which could not be, which were dropped and why."""

    rows: int = 0
    unreadable: list[tuple[str, int, str]] = field(default_factory=list)  # the first LISTED
    unreadable_count: int = 0
    dropped: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # reason -> file -> rows
    dropped_counts: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def row(self, row: Row | Example) -> Iterator[None]:
        """Takes down what happens to one row."""
        try:
            yield
        except Unreadable as error:
            self.unreadable_count += 1
            if len(self.unreadable) < LISTED:
                self.unreadable.append((row.file, row.row, str(error)))
        except TeachesNothing as error:
            reason = str(error)
            self.dropped_counts[reason] += 1
            rows = self.dropped.setdefault(reason, {}).setdefault(row.file, [])
            if len(rows) < RECORDED:
                rows.append(row.row)

    @property
    def dropped_count(self) -> int:
        return sum(self.dropped_counts.values())

    def stop_if_unreadable(self) -> None:
        """Raises PrefoptError with the numbers of the rows that cannot be read."""
        if not self.unreadable_count:
            return
        lines, before = [], ""
        for file, row, why in self.unreadable:
            lines.append(f"  {file} row {row}: {why if why != before or len(why) < 80 else 'the same'}")
            before = why
        more = self.unreadable_count - len(lines)
        if more:
            lines.append(f"  and {more} more")
        raise PrefoptError(
            f"{self.unreadable_count} of {self.rows} rows cannot be read as what they claim to be:\n"
            + "\n".join(lines)
            + "\nMend or remove them (prefopt data check lists every finding), or map columns with data.columns"
        )

    def stop_if_too_many_dropped(self, limit: float) -> None:
        """Raises PrefoptError where more than this share of the rows was dropped, or all of them."""
        share = self.dropped_count / max(1, self.rows)
        if share <= limit and self.dropped_count < self.rows:
            return
        lines = [
            f"  {count} x {reason}: {rows_in_words(self.dropped[reason])}"
            for reason, count in self.dropped_counts.most_common()
        ]
        raise PrefoptError(
            f"{self.dropped_count} of {self.rows} rows teach nothing ({share:.1%}, data.max_dropped allows "
            f"{limit:.1%}):\n"
            + "\n".join(lines)
            + "\nMend the data, or raise data.max_dropped if this is as it should be"
        )

    def report(self, what: str) -> None:
        """Says in the log how many rows were dropped and why."""
        if self.dropped_counts:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.dropped_counts.most_common())
            log.warning("%s: %d of %d rows dropped: %s", what, self.dropped_count, self.rows, reasons)

    def record(self) -> dict[str, Any]:
        """Plain data for the record of a run."""
        return {
            "rows": self.rows,
            "kept": self.rows - self.unreadable_count - self.dropped_count,
            "dropped": {r: {"count": n, "rows": self.dropped[r]} for r, n in self.dropped_counts.most_common()},
        }


def refuse_one_class(labels: set[bool], paths: list[str]) -> None:
    """Raises PrefoptError where all responses are desirable, or none is: nothing says what to move away from."""
    if len(labels) == 1:
        kind, other = ("desirable", "undesirable") if labels == {True} else ("undesirable", "desirable")
        raise PrefoptError(
            f"{', '.join(paths)}: every response is {kind} ('label' is {str(labels == {True}).lower()} in all rows), and the "
            f"method learns from both kinds: add {other} ones, or train with sft"
        )


def class_counts(labels: Mapping[bool, int]) -> dict[str, int]:
    """How many responses are of each class, for the record; nothing where none has a label."""
    return {"desirable": labels.get(True, 0), "undesirable": labels.get(False, 0)} if labels else {}


def rows_in_words(files: dict[str, list[int]], most: int = 8) -> str:
    """The first rows of the first file, for a message."""
    file, rows = next(iter(files.items()))
    more = sum(map(len, files.values())) > most
    return f"{file} rows {', '.join(map(str, rows[:most]))}{', ...' if more else ''}"


PROMPT_PAIRS = "prompt_pairs"
"""How many pairs of the data have the prompt of this one: counted, not read."""
CAPTIONS = "captions"
NO_NOTES = {
    "pairs", "pairs|label", "pairs|demonstrations", "label", "gold", "prompts", "graded", "common_steps", "ties",
    PROMPT_PAIRS, CAPTIONS,
}  # fmt: skip
"""Needs that are no annotation of the same name."""


def with_prompt_pairs(examples: Sequence[Example]) -> list[Example]:
    """The examples with how many pairs their prompt has among them, for each of their pairs."""
    counts = Counter[str]()
    for e in examples:
        counts[str(e.prompt)] += len(e.pairs)
    return [replace(e, notes={**e.notes, PROMPT_PAIRS: [counts[str(e.prompt)]] * len(e.pairs)}) for e in examples]


def fit(example: Example, config: DataConfig, needs: frozenset[str]) -> Example:
    """The example as a method with these needs takes it; see `prepare_text` for their names.

    Raises Unreadable where it lacks what the method needs, TeachesNothing where nothing is left to learn.
    """
    if not text_of(example.prompt).strip() and not example.images:
        raise TeachesNothing(EMPTY_PROMPT)
    if "prompts" in needs:
        return replace(example, responses=(), pairs=(), steps=None, gold=None)
    if not example.responses:
        raise Unreadable("has a prompt and no response", "missing")
    pairwise = any(n.startswith("pairs") for n in needs) or "label" in needs
    if pairwise and (len(example.responses) > 1 or example.pairs):
        example = (as_triple if config.pairing == "triple" and not example.pairs else pair_up)(example, config)
    example = _without_lessonless(example, config, needs)
    if "ties" in needs and example.pairs and "label_probability" not in example.notes:
        example = replace(example, notes={**example.notes, "label_probability": [1.0] * len(example.pairs)})
    if "label" in needs:
        example = to_labelled(example)
    _check_kind(example, needs)
    if "phi" in needs:
        example = with_phi(example)
    if "value" in needs:
        example = as_list(example, config)
    if "step_index" in needs:
        example = with_steps(example, config.step_marker)
    for note in needs - NO_NOTES:
        if note != "step_index" and not set(note.split("|")) & set(example.notes):
            raise Unreadable(f"has no {note!r}, which the method needs: {how_to_give_note(note)}", "missing")
    if "gold" in needs:
        if example.gold is None:
            raise Unreadable("has no 'gold', which the method needs (ranked lists: data.pairing = triple)", "missing")
        if is_empty(example.gold):
            raise TeachesNothing(EMPTY_ANSWER)
        check_order(example)
    return example


def _check_kind(example: Example, needs: frozenset[str]) -> None:
    if "pairs" in needs and not example.pairs:
        kind = "an unpaired response with a label" if "label" in example.notes else "a single response"
        raise Unreadable(
            f"is {kind}, and the method compares pairs: use a method for unpaired data (kto), or give pairs", "missing"
        )
    if needs & {"label", "pairs|label"} and not example.pairs and "label" not in example.notes:
        raise Unreadable(
            "is a response without 'label', and the method needs desirable and undesirable ones", "missing"
        )


def _without_lessonless(example: Example, config: DataConfig, needs: frozenset[str]) -> Example:
    """Leaves out empty responses, pairs of identical ones and ties, and responses in no pair."""
    filled = [i for i, r in enumerate(example.responses) if not is_empty(r)]
    was_paired = bool(example.pairs)
    if was_paired:
        soft = "label_probability" in config.use or bool(needs & {"label_probability", "ties"})
        probability = example.notes.get("label_probability")
        alive, reason = [], EMPTY_ANSWER
        for number, (better, worse) in enumerate(example.pairs):
            if better not in filled or worse not in filled:
                reason = EMPTY_ANSWER
            elif same(example.responses[better], example.responses[worse]):
                reason = IDENTICAL
            elif not soft and probability is not None and probability[number] == 0.5:
                reason = TIE
            else:
                alive.append(number)
        if not alive:
            raise TeachesNothing(reason)
        example = only_pairs(example, alive)
        if needs & {"score", "rank", "on_policy"} or any(n.startswith("scores/") for n in needs):
            return keep_responses(example, filled)
        return keep_responses(example, sorted({i for p in example.pairs for i in p}))
    if not filled:
        raise TeachesNothing(EMPTY_ANSWER)
    if len(example.responses) > 1 and any(n.startswith("pairs") or n == "label" for n in needs):
        raise TeachesNothing(TIE)
    return keep_responses(example, filled)


def only_pairs(example: Example, alive: list[int]) -> Example:
    """The example with these of its pairs; notes per pair follow."""
    if len(alive) == len(example.pairs):
        return example
    notes = {
        n: [v[i] for i in alive] if (axes(n) or "").startswith("P") and len(v) == len(example.pairs) else v
        for n, v in example.notes.items()
    }
    return replace(example, pairs=tuple(example.pairs[i] for i in alive), notes=notes)
