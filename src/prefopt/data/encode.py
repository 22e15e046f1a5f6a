"""Examples to token ids: the boundary that generation sees, one BOS, one end token, masks, joint truncation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from prefopt.data.config import DataConfig
from prefopt.data.example import Example, Turns
from prefopt.data.fields import TeachesNothing, Unreadable, short
from prefopt.data.grading import Grading
from prefopt.data.levels import Level, grade_example, tell_apart
from prefopt.data.pairing import keep_responses
from prefopt.data.rule import IDENTICAL, only_pairs
from prefopt.data.split import NOTHING_SCORED, Piece, Split, split
from prefopt.data.templates import Templates
from prefopt.data.triples import GOLD_IS_CHOSEN
from prefopt.data.truncate import plan
from prefopt.errors import PrefoptError


@dataclass
class Encoded:
    """A tokenised example. `prompt_ids + response_ids[i]` is exactly what the model is fed.

    The prompt has at least one token and begins with the BOS token if the family has one; a response ends with exactly
    one end token (unless truncated), which is scored. Masks are 1 where a token is scored.
    """

    prompt_ids: list[int]
    response_ids: list[list[int]]
    response_mask: list[list[int]]
    pairs: list[list[int]] = field(default_factory=list)
    notes: dict[str, list[Any]] = field(default_factory=dict)
    gold_ids: list[int] | None = None
    gold_mask: list[int] | None = None
    graded_ids: list[list[list[int]]] = field(default_factory=list)  # response -> level -> ids; []: the response itself
    graded_mask: list[list[list[int]]] = field(default_factory=list)  # likewise -> tokens of the response that are left
    index: int = 0
    file: str = ""
    row: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the tree: the prompt once, all responses with the gold one, and graded versions."""
        graded = sum(len(ids) for levels in self.graded_ids for ids in levels)
        return len(self.prompt_ids) + sum(map(len, self.response_ids)) + len(self.gold_ids or ()) + graded


@dataclass
class Encoder:
    """Encodes examples with one tokenizer and one configuration; `counts` says what happened on the way.

    grading: which graded versions are made. common_steps: the responses of an example get equally many steps, later
    ones being merged into the last.
    counts: "seam merges" (responses that the tokenizer would have merged with what precedes them), "moved boundaries",
    "truncated prompts", "truncated responses", "truncated on one side only", "plain strings", "templated", "graded versions",
    "responses without graded versions", "answers of one step" (with common_steps).
    """

    tokenizer: Any
    config: DataConfig
    grading: Grading | None = None
    common_steps: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    @cached_property
    def templates(self) -> Templates:
        return Templates(self.tokenizer, self.config)

    @cached_property
    def bos(self) -> int | None:
        """The token that this tokenizer begins every sequence with, if it does."""
        first = self.tokenizer("a")["input_ids"][:1]
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and first == [bos] else None

    @cached_property
    def template_end(self) -> int | None:
        """The special token with which the template closes an answer."""
        ids = self._ids(self.templates.close[0]) if self.templates.close[0] else []
        return ids[-1] if ids and self.templates.close[0].endswith(tuple(self.templates.special_texts)) else None

    @cached_property
    def eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise PrefoptError("the tokenizer has no end token (eos_token), so no answer would ever end; set one")
        return int(self.tokenizer.eos_token_id)

    def prompt_ids(self, example: Example) -> list[int]:
        """A prompt as generation is to be fed with it."""
        return self._prompt(split(example, [], self.templates).prompt)

    def __call__(self, example: Example, index: int = 0) -> Encoded:
        """The example in tokens. Raises Unreadable and TeachesNothing, by the rule for rows."""
        if example.images or example.videos:
            raise Unreadable("has images or videos, which text models cannot see", "image")
        gold = [] if example.gold is None else [example.gold]
        levels = grade_example(example, self.grading) if self.grading else []
        turns: list[Turns] = [*example.responses, *gold, *(t for grades in levels for g in grades for t in g.turns)]
        text = split(example, turns, self.templates)
        prompt = self._prompt(text.prompt)
        if not prompt:
            raise TeachesNothing("an empty prompt")
        sides = [self._response(text, prompt, pieces) for pieces in text.responses]
        self.counts["templated" if text.wrapped else "plain strings"] += 1
        self.counts["moved boundaries"] += text.moved
        self.counts["seam merges"] += sum(s.merged for s in sides)
        k = len(example.responses)
        notes = {name: list(value) for name, value in example.notes.items()}
        if example.steps is not None:
            self.counts["answers of one step"] += sum(len(s) == 1 for s in example.steps) if self.common_steps else 0
            notes["step_index"] = [self._steps(text, prompt, i, sides[i], s) for i, s in enumerate(example.steps)]
        encoded = Encoded(
            prompt,
            [s.ids for s in sides[:k]],
            [s.mask for s in sides[:k]],
            [list(p) for p in example.pairs],
            notes,
            index=index,
            file=example.file,
            row=example.row,
        )
        if gold:
            encoded.gold_ids, encoded.gold_mask = sides[k].ids, sides[k].mask
            self.counts[GOLD_IS_CHOSEN] += any(sides[k].ids == sides[w].ids for w, _ in example.pairs)
        if levels:
            self._grade(encoded, levels, text, prompt, sides)
        return self._truncated(encoded, example)

    def _grade(
        self, e: Encoded, levels: Sequence[Sequence[Level]], text: Split, prompt: list[int], sides: Sequence[_Side]
    ) -> None:
        """Fills in ids of versions that are texts of their own, masks of those that are parts of the response."""
        made = iter(sides[len(e.response_ids) + (e.gold_ids is not None) :])
        e.graded_ids = [[next(made).ids if g.turns else [] for g in grades] for grades in levels]
        if self.grading is not None and self.grading.degrade == "hidden":
            e.graded_mask = [
                [self._left(text, prompt, i, sides[i], g) for g in grades] for i, grades in enumerate(levels)
            ]
        e.notes["graded_valid"] = [[int(g.valid) for g in grades] for grades in levels]
        without = [grades for grades in levels if grades[0].whole and not any(g.valid for g in grades)]
        self.counts["responses without graded versions"] += len(without)

    def _left(self, text: Split, prompt: list[int], i: int, side: _Side, level: Level) -> list[int]:
        """The response's mask without the tokens that hold any part of what is cut for this level."""
        said, mask = "".join(p.text for p in text.responses[i]), list(side.mask)
        for begin, end in level.spans_in(said):
            first, until = self._reach(text, prompt, said[:begin], side), self._reach(text, prompt, said[:end], side)
            until += until < len(self._beginning(text, prompt, said[:end], side))  # a token that goes on behind it
            mask[first:until] = [0] * (until - first)
        return mask

    def describe(self) -> dict[str, Any]:
        """How conversations are rendered and closed, for the record of a run."""
        end = self.template_end
        own = getattr(self.tokenizer, "chat_template", None) and self.config.chat_template is None
        return {
            "template": "plain" if self.templates.is_plain else "tokenizer" if own else "configured",
            "bos": None if self.bos is None else self.tokenizer.convert_ids_to_tokens(self.bos),
            "end": self.tokenizer.convert_ids_to_tokens(self.eos if end is None else end),
        }

    def _ids(self, text: str) -> list[int]:
        try:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
        except TypeError as error:  # half a character
            raise Unreadable(f"the tokenizer refuses the text {short(text)}") from error

    def _prompt(self, text: str) -> list[int]:
        """Ids of a text at the start of a sequence, with exactly one BOS if the family has one."""
        ids = self._ids(text)
        if self.bos is None:
            return ids
        start = 0
        while start < len(ids) and ids[start] == self.bos:
            start += 1
        return [self.bos, *ids[start:]]

    def _continued(self, text: str) -> list[int]:
        """Ids of a text in the middle of a sequence: after a special token, which nothing merges with."""
        anchor = self.tokenizer.eos_token
        ids = self._ids(f"{anchor}{text}")
        return ids[1:] if ids[:1] == [self.eos] else self._ids(text)

    def _response(self, text: Split, prompt: list[int], pieces: list[Piece]) -> _Side:
        """The response's tokens: those of the whole text where it splits at every boundary, else piece by piece."""
        sofar, done = text.prompt, len(prompt)
        whole = self._prompt(text.prompt + "".join(p.text for p in pieces))
        merged = whole[:done] != prompt
        parts: list[list[int]] = []
        for number, piece in enumerate(pieces):
            if merged:
                break
            sofar += piece.text
            reached = whole if number == len(pieces) - 1 else self._prompt(sofar)
            merged = whole[: len(reached)] != reached
            parts.append(whole[done : len(reached)])
            done = len(reached)
        if merged:
            parts = [self._continued(p.text) for p in pieces]
        ids = [i for part in parts for i in part]
        mask = [int(p.scored) for p, part in zip(pieces, parts, strict=True) for _ in part]
        self._end(ids, mask, text.wrapped)
        return _Side(ids, mask, merged)

    def _end(self, ids: list[int], mask: list[int], wrapped: bool) -> None:
        """Exactly one end token: the template's, else the tokenizer's; texts that bring their own keep one."""
        end = self.template_end if wrapped and self.template_end is not None else self.eos
        while len(ids) > 1 and ids[-1] in (end, self.eos) and ids[-2] in (end, self.eos):
            del ids[-2], mask[-2]
        if not ids or ids[-1] != end:
            if ids and ids[-1] == self.eos:
                ids[-1] = end
                return
            ids.append(end)
            mask.append(mask[-1] if mask else 1)

    def _steps(self, text: Split, prompt: list[int], i: int, side: _Side, steps: Sequence[str]) -> list[int]:
        """1-based step of each token; the end token belongs to the last step, a template's head to none."""
        said = "".join(p.text for p in text.responses[i])
        index = [0] * len(side.ids)
        cursor = done = 0
        for number, step in enumerate(steps, 1):
            begin = said.find(step.strip(), cursor)
            if begin < 0:
                raise Unreadable("the chat template does not reproduce the steps", "message")
            if number == 1 and begin > 0:
                done = self._reach(text, prompt, said[:begin], side)
            cursor = begin + len(step.strip())
            until = len(said) if number == len(steps) else said.find(steps[number].strip(), cursor)
            reached = len(side.ids) if number == len(steps) else self._reach(text, prompt, said[:until], side)
            index[done:reached] = [number] * (reached - done)
            done = reached
        return index

    def _beginning(self, text: Split, prompt: list[int], said: str, side: _Side) -> list[int]:
        """Tokens of a beginning of a response's text."""
        return self._continued(said) if side.merged else self._prompt(text.prompt + said)[len(prompt) :]

    def _reach(self, text: Split, prompt: list[int], said: str, side: _Side) -> int:
        """How many tokens of the response lie wholly inside this beginning of its text."""
        ids = self._beginning(text, prompt, said, side)
        return next(
            (n for n, (a, b) in enumerate(zip(ids, side.ids, strict=False)) if a != b), min(len(ids), len(side.ids))
        )

    def _truncated(self, e: Encoded, example: Example) -> Encoded:
        sides = [*e.response_ids, *([e.gold_ids] if e.gold_ids else [])]
        cut = plan(len(e.prompt_ids), [len(s) for s in sides], self.config, bos=self.bos is not None)
        if cut is None:
            return self._finished(e, example)
        e.prompt_ids = cut.prompt(e.prompt_ids)
        e.response_ids, e.response_mask = ([x[: cut.room] for x in xs] for xs in (e.response_ids, e.response_mask))
        if e.gold_ids and e.gold_mask:
            e.gold_ids, e.gold_mask = e.gold_ids[: cut.room], e.gold_mask[: cut.room]
        if "step_index" in e.notes:
            e.notes["step_index"] = [x[: cut.room] for x in e.notes["step_index"]]
        e.graded_ids, e.graded_mask = (
            [[x[: cut.room] for x in levels] for levels in found] for found in (e.graded_ids, e.graded_mask)
        )
        self.counts["truncated prompts"] += cut.prompt_cut
        self.counts["truncated responses"] += cut.responses_cut
        self.counts["truncated on one side only"] += cut.one_side
        return self._finished(e, example)

    def _finished(self, e: Encoded, example: Example) -> Encoded:
        """What is decided on the tokens that are left: common steps, versions that can be told apart, equal answers."""
        if self.common_steps and "step_index" in e.notes:
            last = max(1, min(max(x) for x in e.notes["step_index"]))
            e.notes["step_index"] = [[min(k, last) for k in x] for x in e.notes["step_index"]]
        if e.graded_ids:
            same = [tell_apart(e, i) for i in range(len(e.response_ids))]
            e.notes["graded_valid"] = same
            self.counts["graded versions"] += sum(map(sum, same))
        return self._distinct(e, example)

    def _distinct(self, e: Encoded, example: Example) -> Encoded:
        """Drops what truncation or the tokenizer made equal, and what nothing is scored of."""
        if not all(any(m) for m in [*e.response_mask, *([e.gold_mask] if e.gold_mask is not None else [])]):
            raise TeachesNothing(NOTHING_SCORED)
        alive = [i for i, (a, b) in enumerate(e.pairs) if e.response_ids[a] != e.response_ids[b]]
        if len(alive) == len(e.pairs):
            return e
        if not alive:
            raise TeachesNothing(f"{IDENTICAL} after truncation")
        kept = sorted({i for n in alive for i in e.pairs[n]})
        slim = keep_responses(only_pairs(example, alive), kept)
        steps = {n: [v[i] for i in kept] for n, v in e.notes.items() if n in ("step_index", "graded_valid")}
        e.pairs, e.notes = [list(p) for p in slim.pairs], {n: list(v) for n, v in slim.notes.items()} | steps
        e.response_ids, e.response_mask = [e.response_ids[i] for i in kept], [e.response_mask[i] for i in kept]
        e.graded_ids, e.graded_mask = ([x[i] for i in kept] if x else x for x in (e.graded_ids, e.graded_mask))
        return e


@dataclass(frozen=True)
class _Side:
    ids: list[int]
    mask: list[int]
    merged: bool
