"""Diversity measures by hand, and BLEU against an independent formula."""

import math

import pytest

from prefopt.errors import PrefoptError
from prefopt.evaluation.diversity import bleu, distinct, diversity, ngram_entropy, self_bleu

FILM = ["the", "film", "was", "a", "long", "slow", "joy"]


def test_distinct_pools_the_samples_of_a_prompt():
    samples = [["a", "b", "a"], ["a", "b"]]
    assert distinct(samples, 1) == 2 / 5
    assert distinct(samples, 2) == 2 / 3  # ab, ba, ab
    assert distinct(samples, 3) == 1.0  # only the first sample is long enough
    assert math.isnan(distinct([["a"]], 2))


def test_entropy_by_hand():
    assert ngram_entropy([["a", "b"], ["a", "b"]], 1) == pytest.approx(math.log(2))
    assert ngram_entropy([["a", "a", "a"]], 1) == 0
    assert math.isnan(ngram_entropy([[]], 1))


def test_self_bleu_of_equal_and_disjoint_samples():
    assert self_bleu([FILM, FILM, FILM]) == pytest.approx(1.0)
    assert self_bleu([FILM, ["not", "one", "word", "in", "common", "here", "now"]]) == 0.0
    with pytest.raises(PrefoptError, match="at least 2"):
        self_bleu([FILM])


def test_bleu_by_hand():
    sample, reference = ["the", "cat", "sat", "on", "the", "mat"], ["the", "cat", "is", "on", "the", "mat"]
    # 1-grams 5/6 (two "the" in both), 2-grams 3/5, 3-grams 1/4, 4-grams none -> 0.1/3
    expected = (5 / 6 * 3 / 5 * 1 / 4 * 0.1 / 3) ** 0.25
    assert bleu(sample, [reference]) == pytest.approx(expected)


def test_bleu_clips_repeated_words_and_short_samples():
    assert bleu(["the", "the", "the", "the"], [["the", "cat"]]) == pytest.approx(
        (1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1) ** 0.25
    )
    # length 4 lies between references of 3 and 5: the shorter counts, so there is no brevity penalty
    references = [["a", "b", "c"], ["a", "b", "c", "d", "e"]]
    assert bleu(["a", "b", "c", "d"], references) == pytest.approx(1.0)
    assert bleu(["a", "b", "c", "d"], [["a", "b", "c", "d", "e"]]) == pytest.approx(math.exp(1 - 5 / 4))
    assert bleu([], [FILM]) == 0.0


def test_diversity_over_prompts():
    measures = diversity([[FILM, FILM], [FILM, ["a", "quite", "different", "text"]], [["short"]]])
    assert measures["self_bleu"].n == 2
    assert measures["self_bleu"].dropped == {"fewer than two samples": 1}
    assert measures["distinct_3"].dropped == {"no sample of 3 words": 1}
    assert measures["distinct_1"].value == pytest.approx((7 / 14 + 10 / 11 + 1) / 3)
    assert "self_bleu" not in diversity([[FILM]])
