"""Where a rendered conversation is cut: prompt, scored pieces, unscored pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.data.example import Example, Message, Turns
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.messages import said
from prefopt.data.templates import THINKING, Templates, check_reproduced, has_thinking, without_thinking

NOTHING_SCORED = "an answer without scored text"
_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


@dataclass(frozen=True)
class Piece:
    """A stretch of a response's text, scored or not."""

    text: str
    scored: bool


@dataclass(frozen=True)
class Split:
    """An example as text: the prompt as generation sees it, and each response as pieces after it.

    `moved` says that the template writes prompt and answer together otherwise than the prompt alone, so that the
    prompt ends earlier than generation's (at the longest common beginning). `wrapped`: rendered by a template.
    """

    prompt: str
    responses: list[list[Piece]]
    moved: bool
    wrapped: bool


def split(example: Example, responses: Sequence[Turns], templates: Templates) -> Split:
    """Renders prompt and responses. Raises Unreadable where the template refuses or loses something."""
    if not templates.wraps(example.prompt):
        return Split(str(example.prompt), [[Piece(str(r), True)] for r in responses], False, False)
    templates.check(example.tools)
    prompt = templates.conversation(example.prompt, "user")
    if prompt[-1]["role"] == "assistant":
        raise Unreadable("the prompt ends with an assistant's turn, so no answer can follow", "message")
    answers = [templates.conversation(r, "assistant") for r in responses]
    options = thinking_option(answers, templates.config.thinking) | dict(example.template_kwargs)
    view = _View(templates, example.tools, options)
    head = view.render(prompt, generation=True)
    wholes = []
    for answer in answers:
        whole = view.render([*prompt, *answer])
        check_reproduced(whole, answer)
        wholes.append(whole)
    shared = min((_common(head, w) for w in wholes), default=len(head))
    if shared < len(head):
        shared = _word_end(head, shared, templates.special_texts)
    flags = [[_trained(m) for m in r] if isinstance(r, list) else [True] for r in responses]
    pieces, exact = [], True
    for answer, whole, trained in zip(answers, wholes, flags, strict=True):
        spans, found = view.spans(prompt, answer, whole, shared, trained)
        exact &= found
        made = _pieces(whole, shared, spans, templates.config.thinking == "mask")
        if not any(p.text.removesuffix(templates.close[0]).strip() for p in made if p.scored):
            raise TeachesNothing(NOTHING_SCORED)
        pieces.append(made)
    return Split(head[:shared], pieces, shared < len(head) or not exact, True)


def thinking_option(answers: Sequence[Sequence[Message]], rule: str) -> dict[str, Any]:
    """Answers without thinking are asked for without it, so that no template makes them begin with an empty block.

    A prompt alone is asked without thinking where the rule is to strip it, else as the template likes.
    """
    thinks = any(has_thinking(a) for a in answers) if answers else rule != "strip"
    return {} if thinks else {"enable_thinking": False}


def _trained(message: Message) -> bool:
    return bool(message.get("train", message["role"] == "assistant"))


def _common(first: str, second: str) -> int:
    if second.startswith(first):
        return len(first)
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _word_end(text: str, position: int, specials: Sequence[str]) -> int:
    """The last place at or before `position` that is behind white space or a special token, where no token is cut."""
    ends = [i + len(t) for t in specials for i in [text.rfind(t, 0, position)] if i >= 0]
    space = max(text.rfind(" ", 0, position), text.rfind("\n", 0, position)) + 1
    return max([0, space, *ends])


@dataclass(frozen=True)
class _View:
    """The template with the options of one row."""

    templates: Templates
    tools: list[Any] | None
    options: Mapping[str, Any]

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        return self.templates.render(messages, tools=self.tools, generation=generation, options=self.options)

    def spans(
        self, prompt: list[Message], answer: list[Message], whole: str, start: int, trained: list[bool]
    ) -> tuple[list[tuple[int, int]], bool]:
        """[begin, end) of each scored turn in the whole text, end token included, and whether all were found exactly.

        A turn lies between the rendering of what precedes it (with the head of an answer) and the rendering that ends
        with it. Templates that write a turn otherwise once others follow (thinking left out) break this: there the
        turn is sought: from where its head ends to the next end token, or by its words.
        """
        spans, cursor, exact = [], start, True
        for j, message in enumerate(answer):
            until = whole if j == len(answer) - 1 else self._rendered(prompt, answer[: j + 1])
            begin = start if j == 0 else self._begin(prompt, answer[:j], message, whole)
            if until is not None and begin is not None and whole.startswith(until) and begin >= cursor:
                end = len(self._trimmed(until))
            else:
                exact = False
                begin, end = self._sought(
                    message, whole, cursor, start if j == 0 else self._head(prompt, answer[:j], whole)
                )
            if trained[j]:
                spans.append((begin, end))
            cursor = end
        return spans, exact

    def _rendered(self, prompt: list[Message], answer: list[Message], generation: bool = False) -> str | None:
        try:
            return self.render([*prompt, *answer], generation)
        except Unreadable:  # some templates refuse conversations that end here; the turn is sought instead
            return None

    def _begin(self, prompt: list[Message], before: list[Message], message: Message, whole: str) -> int | None:
        head = self._rendered(prompt, before, generation=message["role"] == "assistant")
        return len(head) if head is not None and whole.startswith(head) else None

    def _trimmed(self, text: str) -> str:
        """The text without what the template writes behind the end token of its last turn."""
        end, rest = self.templates.close
        if rest and text.endswith(end + rest):
            return text[: len(text) - len(rest)]
        return text if end and text.endswith(end) else text.rstrip()

    def _head(self, prompt: list[Message], before: list[Message], whole: str) -> int | None:
        """Where the whole text and the rendering before an answer begin to differ."""
        head = self._rendered(prompt, before, generation=True)
        return None if head is None else _word_end(whole, _common(head, whole), self.templates.special_texts)

    def _sought(self, message: Message, whole: str, cursor: int, head: int | None) -> tuple[int, int]:
        words, close = without_thinking(said(message)).strip(), self.templates.close[0]
        if close and head is not None and head >= cursor and message["role"] == "assistant":
            end = whole.find(close, head)
            if end >= 0 and words in whole[head:end]:
                return head, end + len(close)
        begin = whole.find(words, cursor) if words else -1
        if begin < 0:
            raise Unreadable(
                "the chat template does not reproduce a turn of a longer answer, so it cannot be scored", "message"
            )
        end = begin + len(words)
        return begin, end + len(close) if close and whole.startswith(close, end) else end


def _pieces(whole: str, start: int, spans: list[tuple[int, int]], mask_thinking: bool) -> list[Piece]:
    """Scored spans and what lies between; thinking blocks that are empty, or masked by the rule, are not scored."""
    result, cursor = [], start
    pattern = THINKING if mask_thinking else _EMPTY_THOUGHT
    for begin, end in spans:
        thought = pattern.match(whole, begin, end)
        begin = thought.end() if thought else begin
        result += [Piece(whole[cursor:begin], False), Piece(whole[begin:end], True)]
        cursor = end
    if not spans:
        result.append(Piece(whole[start:], False))
    return [p for p in result if p.text]
