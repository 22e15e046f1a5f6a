"""A text batch: packed trees, the rows that are scored on them, and what is known about the responses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.example import axes
from ..errors import PrefoptError
from .base import Draw
from .tree import Tree, plant

EXTRAS = ("prompt", "gold", "mismatched")
"""Row sets beside the responses: prompt and gold lie on the same trees, mismatched completions apart."""


@dataclass(frozen=True)
class Rows:
    """Token sequences to score: R rows of at most T tokens, K of all of them scored.

    All indices are flat and made by the collator, so that nothing in a step asks the device how many there are.
    """

    at: Tensor  # [R, T] long: position in the packed row whose hidden state predicts the token
    own: Tensor  # [R, T] long: position of the token itself
    target: Tensor  # [R, T] long: the token
    mask: Tensor  # [R, T] bool: scored
    index: Tensor  # [K] long: the scored places, flat in R * T
    last: Tensor  # [R] long: position of the row's last token (where a reward head reads)
    path: Tensor  # [R] long: which row of the plain layout holds it
    lengths: tuple[int, ...]  # tokens of each row, scored or not

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Rows:
        names = ("at", "own", "target", "mask", "index", "last", "path")
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=non_blocking) for n in names})

    def spread(self, values: Tensor) -> Tensor:
        """Numbers of the scored places [K, ...] -> [R, T, ...], zero elsewhere."""
        flat = values.new_zeros(self.mask.numel(), *values.shape[1:]).index_copy(0, self.index, values)
        return flat.view(*self.mask.shape, *values.shape[1:])


@dataclass
class TextBatch:
    """A collated micro-batch of text."""

    layout: Tree
    rows: dict[str, Rows]  # "responses" always; "prompt" and "gold" (one row per pair) where the method asks
    notes: dict[str, Tensor]  # "group" [R], "pairs" [P, 2], and the annotations of the data
    apart: dict[str, TextBatch] = field(default_factory=dict)  # "mismatched": its rows are called "responses"
    graded: TextBatch | None = None  # the same with graded versions of the responses: "graded", K rows a response
    keys: dict[str, list[str]] = field(default_factory=dict)  # row set -> content hash of each row
    filler: bool = False

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TextBatch:
        return replace(
            self,
            layout=self.layout.to(device, non_blocking),
            rows={k: v.to(device, non_blocking) for k, v in self.rows.items()},
            notes={k: v.to(device, non_blocking=non_blocking) for k, v in self.notes.items()},
            apart={k: v.to(device, non_blocking) for k, v in self.apart.items()},
            graded=self.graded and self.graded.to(device, non_blocking),
        )

    @property
    def size(self) -> int:
        """Tokens that a forward computes, prompts once."""
        return (self.graded or self).layout.input_ids.numel() + sum(b.size for b in self.apart.values())

    def counts(self) -> dict[str, Tensor]:
        """Row set -> [R, T] float, 1 where a token is scored."""
        apart = {name: batch.rows["responses"] for name, batch in self.apart.items()}
        return {name: rows.mask.float() for name, rows in (self.rows | apart).items()}


@dataclass(frozen=True)
class Collator:
    """Encoded examples -> TextBatch; runs in the workers of the data loader.

    extras: which of EXTRAS are wanted. graded: whether graded versions are.
    """

    extras: frozenset[str] = frozenset()
    graded: bool = False

    def __call__(self, draws: Sequence[Draw]) -> TextBatch:
        examples = [draw[0] for draw in draws]
        batch = self.on_trees(examples)
        if self.graded:
            batch.graded = self.on_trees(examples, graded=True)
        if "mismatched" in self.extras:
            swapped = [_Swapped(e.prompt_ids, p.response_ids, p.response_mask) for e, p in _partners(draws)]
            batch.apart["mismatched"] = Collator().on_trees(swapped)
        return batch

    def on_trees(self, examples: Sequence[Any], graded: bool = False) -> TextBatch:
        """One tree per example: its responses and, if wanted, its gold answer and graded versions as branches."""
        wanted, gold = self.extras | {"responses"}, "gold" in self.extras
        if gold and (bare := [e for e in examples if e.gold_ids is None]):
            raise PrefoptError(f"{origin(bare[0])}: has no gold answer; this method needs a column 'gold' in every row")
        others = [[*([e.gold_ids] if gold else []), *(_versions(e) if graded else [])] for e in examples]
        tree = plant([(e.prompt_ids, [*e.response_ids, *more]) for e, more in zip(examples, others, strict=True)])
        wanted |= {"graded"} if graded else set()
        order = ("responses", "prompt", "gold", "graded")
        lines: dict[str, list[_Line]] = {name: [] for name in order if name in wanted}
        path = 0
        for e, segment in zip(examples, tree.segments, strict=True):
            k = len(e.response_ids)
            for i in range(k):
                lines["responses"].append(
                    _Line.of_branch(e, segment, i, e.response_ids[i], e.response_mask[i], path + i)
                )
            for _ in e.pairs:
                if "prompt" in lines:
                    lines["prompt"].append(_Line.of_prompt(e, segment, path))
                if gold:
                    lines["gold"].append(_Line.of_branch(e, segment, k, e.gold_ids, e.gold_mask, path + k))
            if graded:
                lines["graded"] += _graded_lines(e, segment, lines["responses"][-k:], k + gold, path)
            path += max(1, len(segment.branches))
        rows = {name: _rows(x) for name, x in lines.items()}
        read = [t for r in rows.values() for t in (r.at.flatten()[r.index], r.own.flatten()[r.index], r.last)]
        needed = torch.cat(read).unique()
        keys = {name: [line.key for line in x] for name, x in lines.items()}
        return TextBatch(replace(tree, needed=needed), rows, collate_notes(examples), keys=keys)


def _versions(e: Any) -> list[list[int]]:
    """The graded versions that are texts of their own; level 0 is the response itself."""
    return [ids for levels in e.graded_ids for ids in levels if ids]


def _graded_lines(e: Any, segment: Any, own: Sequence[_Line], branch: int, path: int) -> Iterator[_Line]:
    """K lines for each response: versions of their own from `branch` on, else the response under another mask, or, for
    level 0 and levels that are not valid, the response."""
    for i, line in enumerate(own):
        for level, ids in enumerate(e.graded_ids[i]):
            kept = e.graded_mask[i][level] if e.graded_mask else None
            if ids:
                yield _Line.of_branch(e, segment, branch, ids, [1] * len(ids), path + branch)
                branch += 1
            else:
                yield line if not kept else replace(line, mask=kept)


def _partners(draws: Sequence[Draw]) -> list[tuple[Any, Any]]:
    """Each example with the one whose completions it borrows: the sampler's choice, else the next of the batch."""
    examples = [draw[0] for draw in draws]
    chosen = [draw[2] if len(draw) > 2 else None for draw in draws]
    if len(draws) < 2 and chosen[0] is None:
        raise PrefoptError(
            f"{origin(examples[0])}: mismatched completions need at least two examples in a batch; "
            "raise train.per_device_train_batch_size to 2 or more"
        )
    following = examples[1:] + examples[:1]
    return [(e, f if c is None else c) for e, f, c in zip(examples, following, chosen, strict=True)]


@dataclass(frozen=True)
class _Swapped:
    """A prompt with the completions of another example; nothing else is known about them."""

    prompt_ids: list[int]
    response_ids: list[list[int]]
    response_mask: list[list[int]]
    pairs: tuple = ()
    notes: Mapping[str, list] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    """One row, still as Python numbers: token j is predicted at `first` if j = 0, else at `start + j - 1`."""

    first: int
    start: int
    ids: Sequence[int]
    mask: Sequence[int]
    path: int
    key: str

    @staticmethod
    def of_branch(e: Any, s: Any, i: int, ids: Sequence[int], mask: Sequence[int], path: int) -> _Line:
        return _Line(s.start + s.prompt - 1, s.branch_start(i), ids, mask, path, content_key(e.prompt_ids, ids, mask))

    @staticmethod
    def of_prompt(e: Any, s: Any, path: int) -> _Line:
        """The prompt itself: nothing predicts its first token."""
        ids = e.prompt_ids
        return _Line(s.start, s.start + 1, ids[1:], [1] * (len(ids) - 1), path, content_key(ids[:1], ids[1:], None))


def _rows(lines: Sequence[_Line]) -> Rows:
    width = max([1, *(len(x.ids) for x in lines)])
    at, own, target = np.zeros((3, len(lines), width), dtype=np.int64)
    mask = np.zeros((len(lines), width), dtype=bool)
    for r, x in enumerate(lines):
        n = len(x.ids)
        if n:
            at[r, 0], at[r, 1:n] = x.first, np.arange(x.start, x.start + n - 1)
            own[r, :n] = np.arange(x.start, x.start + n)
            target[r, :n], mask[r, :n] = x.ids, x.mask
    last = torch.tensor([x.start + len(x.ids) - 1 for x in lines], dtype=torch.long)
    path = torch.tensor([x.path for x in lines], dtype=torch.long)
    index = torch.from_numpy(mask.reshape(-1).nonzero()[0])
    lengths = tuple(len(x.ids) for x in lines)
    where = torch.from_numpy(at), torch.from_numpy(own), torch.from_numpy(target), torch.from_numpy(mask)
    return Rows(*where, index, last, path, lengths)


def content_key(prompt: Sequence[int], response: Sequence[int], mask: Sequence[int] | None) -> str:
    """What a log-probability depends on beside the weights: the ids, and which of them are scored if not all."""
    digest = hashlib.blake2b(digest_size=20)
    parts = [prompt, response] + ([mask] if mask is not None and not all(mask) else [])
    for part in parts:
        digest.update(len(part).to_bytes(4, "little"))
        digest.update(np.asarray(part, dtype=np.int32).tobytes())
    return digest.hexdigest()


def collate_notes(examples: Sequence[Any]) -> dict[str, Tensor]:
    """Annotations side by side: per response and per pair simply one behind the other, pairs moved to row numbers."""
    sizes = [len(e.response_ids) for e in examples]
    offsets = np.cumsum([0, *sizes[:-1]])
    notes = {"group": torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))}
    pairs = [[int(a + o), int(b + o)] for e, o in zip(examples, offsets, strict=True) for a, b in e.pairs]
    if pairs:
        notes["pairs"] = torch.tensor(pairs)
    for name in dict.fromkeys(name for e in examples for name in e.notes):
        if bare := [e for e in examples if name not in e.notes]:
            raise PrefoptError(f"{origin(bare[0])}: has no '{name}', which other rows of the batch have")
        notes[name] = _tensor(name, [x for e in examples for x in e.notes[name]])
    return notes


def _tensor(name: str, values: list[Any]) -> Tensor:
    """Numbers, or lists of different lengths (steps), padded: 0 for a token's step, nan for a missing number."""
    if any(isinstance(v, (list, tuple, np.ndarray)) for v in values):
        rows = [_tensor(name, list(v)) for v in values]
        whole = (axes(name) or "").endswith("T") or not rows[0].is_floating_point()
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if whole else float("nan"))
    missing = [v is None for v in values]
    if any(missing):
        values = [float("nan") if v is None else float(v) for v in values]
    return torch.tensor(values, dtype=torch.float32 if any(isinstance(v, float) for v in values) else None)


def origin(example: Any) -> str:
    return f"{getattr(example, 'file', '') or 'data'} row {getattr(example, 'row', 0)}"
