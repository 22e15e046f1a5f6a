"""Finite response spaces against closed forms, by hand and through the real trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from prefopt import PrefoptError, get_method
from prefopt.scoring.tabular import Choice, Table, TabularScorer, fit, pairs_of, probabilities, tilted
from prefopt.training.task import Task
from prefopt.training.trainer import Trainer

REFERENCE = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)


def sgd(rate: float):
    return lambda parameters: torch.optim.SGD(parameters, rate)


def test_every_score_of_a_response() -> None:
    torch.manual_seed(0)
    model = Table(torch.randn(3, 4, dtype=torch.float64))
    batch = pairs_of([0, 2], [1, 3], [2, 0])
    other = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    scorer = TabularScorer(REFERENCE, old=Table(other))
    needs = {f"scores:{s}": {} for s in ("policy", "reference", "entropy", "log_collision", "token_kl", "old")}
    assert set(needs) <= scorer.offers()
    found = {k: v.values[:, 0].tolist() for k, v in scorer.score(model, batch, needs)["responses"].items()}
    p = [[float(v.exp()) for v in row - row.logsumexp(-1)] for row in model.logits.detach()]
    q = REFERENCE.tolist()
    places = [(0, 1), (2, 3), (0, 2), (2, 0)]
    expected = {
        "policy": [np.log(p[x][y]) for x, y in places],
        "reference": [np.log(q[x][y]) for x, y in places],
        "entropy": [-sum(a * np.log(a) for a in p[x]) for x, _ in places],
        "log_collision": [np.log(sum(a * a for a in p[x])) for x, _ in places],
        "token_kl": [sum(a * np.log(a / b) for a, b in zip(q[x], p[x], strict=True)) for x, _ in places],
        "old": [float(other[x, y]) for x, y in places],
    }
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-12)


def test_dpo_on_soft_labels_of_all_pairs_finds_the_tilted_reference() -> None:
    """With Bradley-Terry labels of a reward, DPO's optimum is pi_ref exp(r / beta), whatever the start."""
    beta, reward = 0.5, torch.tensor([[0.0, 0.4, -0.3, 0.2]], dtype=torch.float64)
    places = [(i, j) for i in range(4) for j in range(4) if i != j]
    w, l = zip(*places, strict=True)
    batch = pairs_of([0] * len(w), w, l, weight=torch.sigmoid(reward[0, list(w)] - reward[0, list(l)]))
    from prefopt import annotated

    method = annotated(get_method("dpo", beta=beta), ["weight"])
    start = Table(torch.tensor([[0.3, -0.2, 0.1, 0.5]], dtype=torch.float64))
    found = fit(method, start, TabularScorer(REFERENCE[:1]), batch, 3000, sgd(4.0)).exp()
    torch.testing.assert_close(found, tilted(REFERENCE[:1], reward, beta), atol=1e-8, rtol=0)


def test_the_real_trainer_makes_the_same_steps(tmp_path: Path) -> None:
    method = get_method("dpo", beta=0.5)
    examples = [Choice(x, [x, x + 1], [[0, 1]]) for x in range(3)]

    class Listed(list):
        tokens = np.full(3, 2)

    def start() -> nn.Module:
        return Table(REFERENCE.log())

    model, scorer = start(), TabularScorer(REFERENCE)
    task = Task(model, Listed(examples), None, scorer, lambda *_: None, {"reference_is_start": True})
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=7, per_device_train_batch_size=3, learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no", report_to="none",
        remove_unused_columns=False, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    Trainer(task, method, args, 3).train()
    by_hand = fit(method, start(), scorer, pairs_of(range(3), range(3), range(1, 4)), 7, sgd(0.5))
    torch.testing.assert_close(torch.log_softmax(model(), -1).detach(), by_hand, atol=1e-12, rtol=0)
    assert not torch.allclose(by_hand.exp(), REFERENCE, atol=1e-2)


def test_what_cannot_be_a_table_is_refused() -> None:
    with pytest.raises(PrefoptError, match="pair 1: response 2 is both chosen and rejected"):
        pairs_of([0, 1], [0, 2], [1, 2])
    with pytest.raises(PrefoptError, match="2 prompts, 1 chosen"):
        pairs_of([0, 1], [0], [1])
    with pytest.raises(PrefoptError, match="every entry above 0"):
        probabilities(torch.tensor([[1.0, 0.0]]))
    with pytest.raises(PrefoptError, match="prompt 1 sum to 1.1"):
        TabularScorer(torch.tensor([[0.5, 0.5], [0.5, 0.6]]))
    with pytest.raises(PrefoptError, match="there are no scores 'reference'"):
        fit(get_method("dpo"), Table(REFERENCE), TabularScorer(), pairs_of([0], [0], [1]), 1, sgd(1.0))
