"""The tiled head: values and gradients against log_softmax, whatever the tile, the dtype and who trains."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt import PrefoptError
from prefopt.scoring.kernel import Head, Reference, token_numbers

K, V, H = 13, 37, 6
WANT = ("logps", "entropy", "token_kl", "log_collision")
HEADS = [(1.0, None), (0.4, None), (1.0, 3.0), (2.5, 1.5)]


def inputs(k: int = K, dtype: torch.dtype = torch.float64, bias: bool = True, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(k, H, generator=g, dtype=dtype), torch.randn(V, H, generator=g, dtype=dtype)
    offset = torch.randn(V, generator=g, dtype=dtype) if bias else None
    return hidden, weight, offset, torch.randint(0, V, (k,), generator=g)


def plain(hidden: Tensor, head: Head, targets: Tensor, reference: Reference | None) -> dict[str, Tensor]:
    """The same numbers from whole logits."""

    def logps(hidden: Tensor, head: Head) -> Tensor:
        z = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
        z = z * head.scale
        return torch.log_softmax(z if head.cap is None else head.cap * torch.tanh(z / head.cap), -1)

    p = logps(hidden, head)
    out = {"logps": p.gather(1, targets[:, None])[:, 0], "entropy": -(p.exp() * p).sum(-1)}
    out["log_collision"] = p.exp().square().sum(-1).log()
    if reference is not None:
        q = logps(reference.hidden, reference.head)
        out["token_kl"] = (q.exp() * (q - p)).sum(-1)
    return out


def a_reference() -> Reference:
    hidden, weight, bias, _ = inputs(seed=5)
    return Reference(hidden, Head(weight, bias, 0.7, 4.0))


def a_float32_reference() -> Reference:
    hidden, weight, _, _ = inputs(dtype=torch.float32, seed=5)
    return Reference(hidden, Head(weight))


@pytest.mark.parametrize(("scale", "cap"), HEADS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trains", ["hidden", "head", "both"])
@pytest.mark.parametrize("want", [("logps",), WANT])
def test_values_and_gradients(scale: float, cap: float | None, bias: bool, trains: str, want: tuple[str, ...]) -> None:
    found = []
    for compute in ("plain", "tiled"):
        hidden, weight, offset, targets = inputs(bias=bias)
        leaves = {"hidden": [hidden], "head": [weight, offset], "both": [hidden, weight, offset]}[trains]
        leaves = [x.requires_grad_() for x in leaves if x is not None]
        head = Head(weight, offset, scale, cap)
        if compute == "plain":
            numbers = plain(hidden, head, targets, a_reference())
        else:
            numbers = token_numbers(hidden, head, targets, want, a_reference(), tile=4)
        weights = torch.linspace(-1, 2, K, dtype=torch.float64)
        loss = sum((i + 1) * (numbers[n] * weights.roll(i)).sum() for i, n in enumerate(want))
        found.append([numbers[n].detach() for n in want] + list(torch.autograd.grad(loss, leaves)))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradcheck(keep: int, frozen: bool) -> None:
    hidden, weight, bias, targets = inputs()
    leaves = [hidden.requires_grad_()] + ([] if frozen else [weight.requires_grad_(), bias.requires_grad_()])

    def numbers(*_: Tensor) -> Tensor:
        return token_numbers(hidden, Head(weight, bias, 1.3), targets, ("logps",), tile=5, keep_bytes=keep)["logps"]

    assert torch.autograd.gradcheck(numbers, leaves)


def test_the_tile_changes_nothing() -> None:
    hidden, weight, bias, targets = inputs(dtype=torch.float32)
    results = []
    for tile, keep in itertools.product((1, 3, K, 100), (0, 1 << 20)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        out = token_numbers(h, Head(w, bias), targets, WANT[:1], tile=tile, keep_bytes=keep)["logps"]
        (out * torch.arange(K)).sum().backward()
        results.append((out.detach(), h.grad, w.grad))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_no_token_at_all() -> None:
    hidden, weight, bias, targets = inputs(k=0, dtype=torch.float32)
    for trained in (hidden, weight):
        leaf = trained.clone().requires_grad_()
        head = Head(leaf if trained is weight else weight, bias)
        out = token_numbers(leaf if trained is hidden else hidden, head, targets)["logps"]
        assert out.shape == (0,)
        out.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.shape == trained.shape
        assert not leaf.grad.any()


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, bias, targets = inputs(dtype=torch.float32)
    for factor in (1e4, 1e-8):
        h = (hidden * factor).requires_grad_()
        out = token_numbers(h, Head(weight, bias), targets, ("logps", "entropy"))
        expected = plain(h.detach(), Head(weight, bias), targets, None)
        torch.testing.assert_close(out["logps"], expected["logps"], rtol=1e-5, atol=1e-5)
        (out["logps"].sum() + out["entropy"].sum()).backward()
        assert torch.isfinite(h.grad).all()


def test_a_second_backward_gives_the_same_gradient() -> None:
    """The kept probabilities are turned into the gradient in place: they must not be used twice."""
    hidden, weight, bias, targets = inputs()
    weight.requires_grad_()
    out = token_numbers(hidden, Head(weight, bias), targets)["logps"].sum()
    first, second = (torch.autograd.grad(out, weight, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [True, False])
def test_half_precision_and_autocast(dtype: torch.dtype, frozen: bool) -> None:
    hidden, weight, bias, targets = (x if x.dtype == torch.long else x.float() for x in inputs())
    expected = plain(hidden, Head(weight, bias), targets, None)["logps"]
    for autocast in (True, False):
        h = (hidden if autocast else hidden.to(dtype)).clone().requires_grad_()
        w = (weight if autocast else weight.to(dtype)).clone().requires_grad_(not frozen)
        with torch.autocast("cpu", dtype, enabled=autocast):
            out = token_numbers(h, Head(w, bias if autocast else bias.to(dtype)), targets)["logps"]
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected, atol=0.15, rtol=0.02)
        out.sum().backward()
        assert h.grad.dtype == h.dtype
        assert frozen or w.grad.dtype == w.dtype


class Biggest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation gave."""

    seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.seen = max(self.seen, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("trains", ["hidden", "head"])
@pytest.mark.parametrize(
    ("want", "keep", "most"), [(("logps",), 0, 8), (("logps",), 1 << 20, K), (("logps", "token_kl"), 1 << 20, 12)]
)
def test_no_tensor_of_tokens_by_vocabulary(trains: str, want: tuple[str, ...], keep: int, most: int) -> None:
    """Four rows at a time: their numbers and a spare tile, with the KL the reference's too. Only log-probabilities of a
    head that trains are kept whole, where the budget holds them."""
    hidden, weight, bias, targets = inputs(dtype=torch.float32)
    leaf = (hidden if trains == "hidden" else weight).requires_grad_()
    with Biggest() as biggest:
        told = token_numbers(hidden, Head(weight, bias), targets, want, a_float32_reference(), tile=4, keep_bytes=keep)
        sum(x.sum() for x in told.values()).backward()
    assert leaf.grad is not None
    assert biggest.seen == (8 if trains == "hidden" and most == K else most) * len(weight)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_gradient_of_the_kl_is_policy_minus_reference(frozen: bool, softcap: float | None) -> None:
    """d KL(ref || pi)/d logits = pi - ref at every position, whatever the tile; nothing reaches the reference."""
    hidden, weight, bias, targets = inputs()
    other = Reference(a_reference().hidden.requires_grad_(), a_reference().head)
    h, w = hidden.requires_grad_(), weight.requires_grad_(not frozen)
    kl = token_numbers(h, Head(w, bias, 1.0, softcap), targets, ("token_kl",), other, tile=5)["token_kl"]
    g = torch.linspace(-1, 2, K, dtype=torch.float64)
    kl.backward(g)
    z = hidden.detach() @ weight.detach().T + bias
    capped = z if softcap is None else softcap * torch.tanh(z / softcap)
    q = plain(other.hidden.detach(), other.head, targets, other)
    assert q["token_kl"].abs().max() < 1e-12
    refz = 4.0 * torch.tanh(0.7 * (other.hidden.detach() @ other.head.weight.T + other.head.bias) / 4.0)
    slope = g[:, None] * (torch.softmax(capped, -1) - torch.softmax(refz, -1))
    if softcap is not None:
        slope = slope * (1 - (capped / softcap) ** 2)
    torch.testing.assert_close(h.grad, slope @ weight.detach(), atol=1e-12, rtol=1e-10)
    assert other.hidden.grad is None
    if not frozen:
        torch.testing.assert_close(w.grad, slope.T @ hidden.detach(), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_word_of_probability_zero_counts_nothing(frozen: bool) -> None:
    """Words that a head forbids (a bias of minus infinity): 0 log 0 = 0 in KL, entropy and their gradients."""
    hidden, weight, bias, targets = inputs()
    targets = targets.clamp(min=4)
    mine, theirs = bias.clone(), bias.clone()
    mine[:2], theirs[:3] = -torch.inf, -torch.inf  # 0, 1 by both, 2 by the reference alone
    told = Reference(a_reference().hidden, Head(weight.detach().clone(), theirs))
    h, w = hidden.requires_grad_(), weight.requires_grad_(not frozen)
    out = token_numbers(h, Head(w, mine), targets, WANT, told, tile=4)
    p = torch.log_softmax(h @ w.T + mine, -1)
    q = torch.log_softmax(told.hidden @ told.head.weight.T + theirs, -1)
    kl = (q[:, 3:].exp() * (q[:, 3:] - p[:, 3:])).sum(-1)
    entropy = -(p[:, 2:].exp() * p[:, 2:]).sum(-1)
    torch.testing.assert_close(out["token_kl"], kl)
    torch.testing.assert_close(out["entropy"], entropy)
    collision = p[:, 2:].exp().square().sum(-1).log()
    torch.testing.assert_close(out["log_collision"], collision)
    leaves = [h] if frozen else [h, w]
    got = torch.autograd.grad(2 * out["token_kl"].sum() + (out["entropy"] + out["log_collision"]).sum(), leaves)
    for g, want in zip(got, torch.autograd.grad(2 * kl.sum() + (entropy + collision).sum(), leaves), strict=True):
        torch.testing.assert_close(g, want, atol=1e-12, rtol=1e-10)


def test_a_word_that_only_the_policy_forbids_makes_the_kl_infinite() -> None:
    hidden, weight, bias, targets = inputs()
    mine = bias.clone()
    mine[5] = -torch.inf
    kl = token_numbers(hidden, Head(weight, mine), targets, ("token_kl",), Reference(hidden, Head(weight, bias)))
    assert (kl["token_kl"] == torch.inf).all()


def test_a_reference_of_another_vocabulary_is_refused() -> None:
    hidden, weight, bias, targets = inputs()
    other = Reference(hidden, Head(weight[:-2], bias[:-2]))
    with pytest.raises(PrefoptError, match=f"vocabulary has {V} words, the reference's {V - 2}; .*reference.path"):
        token_numbers(hidden, Head(weight, bias), targets, ("token_kl",), other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_kl_over_a_large_vocabulary_and_in_half_precision(dtype: torch.dtype, frozen: bool) -> None:
    """Against float64 on the same (rounded) numbers; logits with a spread of tens underflow most of the vocabulary."""
    g = torch.Generator().manual_seed(1)
    k, v, width = 6, 60_000, 16
    h, ref = (3 * torch.randn(k, width, generator=g) for _ in range(2))
    w = torch.randn(v, width, generator=g)
    h, ref, w = (x.to(dtype) for x in (h, ref, w))
    targets = torch.randint(v, (k,), generator=g)
    found = []
    for precise in (True, False):
        a = (h.double() if precise else h.clone()).requires_grad_()
        b = (w.double() if precise else w.clone()).requires_grad_(not frozen)
        if precise:
            told = Reference(ref.double(), Head(w.double()))
            kl = plain(a, Head(b), targets, told)["token_kl"]
        else:
            kl = token_numbers(a, Head(b), targets, ("logps", "token_kl"), Reference(ref, Head(w)), tile=4)["token_kl"]
        grads = torch.autograd.grad((kl * torch.arange(1, k + 1)).sum(), [a] if frozen else [a, b])
        found.append([kl.detach().double(), *(x.double() for x in grads)])
    half = dtype == torch.bfloat16
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(
            got, want, rtol=0.05 if half else 1e-4, atol=(0.05 if half else 1e-4) * want.abs().max()
        )


def test_of_equal_models_the_kl_is_zero_in_every_precision() -> None:
    hidden, weight, bias, targets = (x if x.dtype == torch.long else x.float() for x in inputs())
    for dtype in (torch.float32, torch.bfloat16):
        h, head = hidden.to(dtype), Head(weight.to(dtype), bias.to(dtype))
        kl = token_numbers(h, head, targets, ("logps", "token_kl"), Reference(h, head))["token_kl"]
        assert not kl.any()
