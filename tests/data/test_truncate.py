"""Truncation of an example as a whole."""

from __future__ import annotations

from typing import Any

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoder
from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing
from prefopt.data.truncate import plan
from tests.data.families import tokenizer


def config(**options: Any) -> DataConfig:
    return DataConfig(path="none", **options)


def cut(prompt: int, responses: list[int], **options: Any) -> tuple[int, int, bool] | None:
    made = plan(prompt, responses, config(**options), bos=True)
    return made and (len(made.prompt(range(prompt))), made.room, made.one_side)


def test_the_prompt_gives_way_first_and_all_answers_have_one_room() -> None:
    assert cut(10, [5, 20], max_length=30) is None
    assert cut(20, [5, 20], max_length=30) == (15, 15, True)  # half of max_length stays
    assert cut(20, [5, 20], max_length=30, max_prompt_length=8) == (10, 20, False)
    assert cut(20, [40, 50], max_length=30, max_prompt_length=8) == (8, 22, False)
    assert cut(6, [5, 50], max_length=30, max_prompt_length=8) == (6, 24, True)
    assert cut(50, [5], max_length=None) is None
    assert cut(50, [5], max_length=None, max_prompt_length=20) == (20, 5, False)


def test_the_end_of_the_prompt_stays_behind_its_bos() -> None:
    made = plan(20, [20], config(max_length=30, max_prompt_length=8), bos=True)
    assert made
    assert made.prompt(range(20)) == [0, *range(11, 20)]
    made = plan(20, [20], config(max_length=30, max_prompt_length=8, truncation="keep_start"), bos=True)
    assert made
    assert made.prompt(range(20)) == list(range(10))
    made = plan(20, [20], config(max_length=30, max_prompt_length=8), bos=False)
    assert made
    assert made.prompt(range(20)) == list(range(10, 20))


def test_what_is_dropped() -> None:
    for prompt, responses, options in ((30, [5], {}), (40, [5], {"truncation": "drop"}), (90, [5], {})):
        with pytest.raises(TeachesNothing, match="a prompt over the limit"):
            cut(prompt, responses, max_length=30, **options)
    with pytest.raises(TeachesNothing, match="longer than max_length"):
        cut(20, [20], max_length=30, truncation="drop")


def test_never_empty_and_never_over_the_limit() -> None:
    for limit in (2, 3, 8, 30):
        for prompt in range(1, 40):
            for responses in ([1, 1], [1, 39], [39, 39]):
                try:
                    made = plan(prompt, responses, config(max_length=limit), bos=True)
                except TeachesNothing:
                    assert prompt >= limit or limit == 2
                    continue
                kept = prompt if made is None else len(made.prompt(range(prompt)))
                longest = max(responses) if made is None else min(max(responses), made.room)
                assert kept >= 1
                assert longest >= 1
                assert kept + longest <= limit


def test_encoded_examples_are_cut_together_and_counted() -> None:
    long = "the weather in Oslo is cold today and that is all there is to say " * 3
    encoder = Encoder(tokenizer("plain"), config(max_length=40, max_prompt_length=10))
    encoded = encoder(Example(long, (" Paris.", " " + long), ((0, 1),), gold=" gold " + long))
    assert (len(encoded.prompt_ids), len(encoded.response_ids[1]), len(encoded.gold_ids or ())) == (10, 30, 30)
    assert encoded.response_ids[0][-1] == encoder.eos
    assert encoded.response_ids[1][-1] != encoder.eos  # it does not end there, so it must not learn to
    assert encoded.prompt_ids[0] == encoder.bos
    assert encoder.counts["truncated prompts"] == encoder.counts["truncated on one side only"] == 1
    assert [len(m) for m in encoded.response_mask] == [len(r) for r in encoded.response_ids]


def test_answers_that_truncation_makes_equal_are_dropped() -> None:
    start = " the weather in Oslo is cold today and that is all there is to say"
    encoder = Encoder(tokenizer("plain"), config(max_length=12))
    with pytest.raises(TeachesNothing, match="identical answers after truncation"):
        encoder(Example("hello", (start + " a", start + " b"), ((0, 1),)))
    kept = encoder(
        Example("hello", (start + " a", start + " b", " no"), ((0, 1), (0, 2)), {"score": [3, 2, 1], "margin": [1, 2]})
    )
    assert (kept.pairs, kept.notes) == ([[0, 1]], {"score": [3, 1], "margin": [2]})
    assert len(kept.response_ids) == 2
