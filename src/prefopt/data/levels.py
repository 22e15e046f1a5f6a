"""Graded versions of an example's responses, from texts to what the encoder writes down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.data.example import Example, Turns
from prefopt.data.fields import Unreadable
from prefopt.data.grading import Grading, Span, distinct, grades
from prefopt.data.messages import said


@dataclass(frozen=True)
class Level:
    """One version of one response. `turns` holds it where it is a text of its own, and is empty otherwise; `cut` are
    the pieces of `whole`, the response's text, that it lacks."""

    valid: bool
    turns: tuple[Turns, ...] = ()
    whole: str = ""
    cut: tuple[Span, ...] = ()

    def spans_in(self, rendered: str) -> list[Span]:
        """Where the cut pieces lie in the rendered response."""
        words = self.whole.strip()
        shift = rendered.find(words) - (len(self.whole) - len(self.whole.lstrip()))
        return [(a + shift, b + shift) for a, b in self.cut] if words and words in rendered else []


def grade_example(example: Example, grading: Grading) -> list[list[Level]]:
    """Response -> levels. Those of the file where it has them, else made of key phrases; none is valid for responses
    that are not asked for, or not texts. Raises Unreadable for a file's list of another length."""
    asked = _asked(example, grading.sides)
    given = example.graded or (None,) * len(example.responses)
    found = []
    for i, (response, texts) in enumerate(zip(example.responses, given, strict=True)):
        text = said(response[-1]) if isinstance(response, list) and response else response
        if i not in asked or not isinstance(text, str) or not text.strip():
            found.append([Level(False)] * len(grading.ratios))
        elif texts is not None:
            if grading.degrade == "hidden":
                raise Unreadable(
                    "has graded versions as texts, and degrade = hidden leaves tokens of the answer itself out: set "
                    "method.degrade=text, or remove the columns"
                )
            found.append(_given(response, text, texts, grading))
        else:
            made = grades(text, grading.ratios, grading.stop)
            own = grading.degrade == "text"
            found.append(
                [
                    Level(g.valid, _turns(response, g.text) if own and g.valid and g.cut else (), text, g.cut)
                    for g in made
                ]
            )
    return found


def _given(response: Turns, text: str, texts: Sequence[str], grading: Grading) -> list[Level]:
    if len(texts) != len(grading.ratios):
        raise Unreadable(
            f"has {len(texts)} graded versions of an answer, and the method has {len(grading.ratios)} levels: give "
            "as many, the first being the answer itself"
        )
    if texts[0].strip() != text.strip():
        raise Unreadable("the first of its graded versions is not the answer itself")
    valid = distinct([t.strip() for t in texts])
    return [
        Level(v, _turns(response, t) if v and k else (), text)
        for k, (v, t) in enumerate(zip(valid, texts, strict=True))
    ]


def _turns(response: Turns, text: str) -> tuple[Turns, ...]:
    return (text if isinstance(response, str) else [*response[:-1], response[-1] | {"content": text}],)


def _asked(example: Example, sides: str) -> set[int]:
    """Which responses: all, those that win a pair (or are desirable), those that lose one."""
    if sides == "both":
        return set(range(len(example.responses)))
    place = 0 if sides == "chosen" else 1
    if "label" in example.notes and not example.pairs:
        return {i for i, good in enumerate(example.notes["label"]) if good == (place == 0)}
    return {pair[place] for pair in example.pairs}


def tell_apart(e: Any, i: int) -> list[int]:
    """Which levels of response i stay valid in tokens: truncation or the tokenizer may have made some equal."""
    valid = e.notes["graded_valid"][i]
    if e.graded_mask:
        versions = [tuple(mask) if any(mask) else () for mask in e.graded_mask[i]]
    else:
        versions = [tuple(ids or e.response_ids[i]) for ids in e.graded_ids[i]]
    apart = distinct([v if ok else () for v, ok in zip(versions, valid, strict=True)])
    return [int(x) for x in apart]
