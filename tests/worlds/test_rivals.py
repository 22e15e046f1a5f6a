"""The world of two conflicting rewards."""

from __future__ import annotations

import pytest
import torch

from prefopt.worlds import letters, rivals


def test_rivals_rewards_conflict_and_every_answer_is_written_down() -> None:
    assert rivals.likes(["p", "q", "t"], ["aaaaa", "ababa", "abcda"]) == [1.0, 0.4, 0.4]
    assert rivals.changes(["p"] * 3, ["aaaaa", "ababa", "aabbb"]) == [0.0, 1.0, 0.25]
    first, second = rivals.all_rewards()
    assert first.shape == second.shape == (6, 1024)
    place = int("01230", 4)  # abcda in the order of `everything`
    assert (float(first[0, place]), float(second[0, place])) == (0.4, 1.0)


def test_rivals_exact_probabilities_are_those_of_the_model() -> None:
    tokenizer = letters.letter_tokenizer(rivals.VOCABULARY, length=1 + rivals.TOKENS)
    torch.manual_seed(0)
    model = letters.new_model(tokenizer, rivals.SIZE).eval()
    letters.rule_out(model, range(4, len(rivals.VOCABULARY)))
    logp = rivals.everything(model)
    ids = torch.tensor([tokenizer("qabcda")["input_ids"]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits.double().log_softmax(-1)
    expected = sum(float(plain[0, i, ids[0, i + 1]]) for i in range(rivals.TOKENS))
    assert float(logp[1, int("01230", 4)]) == pytest.approx(expected, abs=1e-6)
    assert logp.exp().sum(1).tolist() == pytest.approx([1.0] * 6, abs=1e-6)  # nothing else ever comes
