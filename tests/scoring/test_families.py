"""Every family: the packed tree gives the log-probs and gradients of each response computed alone."""

from __future__ import annotations

import copy

import pytest
import torch

from prefopt.scoring import families
from prefopt.scoring.batch import Collator
from prefopt.scoring.text import install

from .tiny_text import FAMILIES, PLAIN, examples, make, plain_logps

LAYOUTS = [(name, small) for name in FAMILIES for small in (True, False)] + [(name, False) for name in PLAIN]


@pytest.mark.parametrize(("name", "small"), LAYOUTS)
def test_log_probs_and_gradients_equal_the_plain_computation(
    name: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees one by one, and padded side by side as small ones are."""
    monkeypatch.setattr(families, "SMALL_TREE", 128 if small else 0)
    policy = make(name)
    plain = copy.deepcopy(policy)
    install(policy)
    assert policy.tree_packed == (name in FAMILIES)
    some = examples()
    batch = Collator()([(e, 0) for e in some])

    packed = policy(tree=batch.layout, rows=batch.rows)["responses"]["logps"]
    alone = plain_logps(plain, some)
    for row, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-5, rtol=1e-5)

    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    (packed * weights).sum().backward()
    sum((w[: len(x)] * x).sum() for w, x in zip(weights, alone, strict=True)).backward()
    pairs = [(n, p.grad, q.grad) for (n, p), q in zip(policy.named_parameters(), plain.parameters(), strict=True)]
    assert any(g is not None and g.abs().sum() > 0 for _, g, _ in pairs)
    scale = max(g.abs().max() for _, _, g in pairs if g is not None)
    for parameter, got, expected in pairs:
        if expected is not None:
            worst = (got - expected).abs().max()
            assert worst <= 1e-5 * scale, f"gradient of {parameter} is off by {worst:.2g}, the largest is {scale:.2g}"
