"""SparsePO: masks, loss and gradients by scalars; ones are TDPO1; what dies, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from prefopt import PrefoptError, Responses, get_method

F64 = torch.float64
R, T, L, D, J = 6, 5, 3, 4, 5
LENGTHS = (5, 3, 4, 1, 2, 5)
PAIRS = [(0, 1), (3, 2), (4, 5)]
GROUP = [0, 0, 1, 2, 3]


def case(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    made = {k: -3 * torch.rand(R, T, generator=g, dtype=F64) for k in ("policy_logps", "reference_logps")}
    made["token_kl_logps"] = torch.rand(R, T, generator=g, dtype=F64)
    mask = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    for k in ("policy_logps", "token_kl_logps"):
        made[k] = torch.where(mask, made[k], torch.nan).requires_grad_()
    made["reference_hidden"] = torch.randn(R, L, T, D, generator=g, dtype=F64)
    made["activations"] = torch.randn(R, J, T, generator=g, dtype=F64)
    made["reference_hidden"][:, :, -1][~mask[:, -1]] = torch.nan  # junk where nothing is scored
    made["activation_group"] = torch.tensor(GROUP)
    return made | {"mask": mask.double(), "pairs": torch.tensor(PAIRS)}


def relu(x: Tensor) -> Tensor:
    return x if x > 0 else torch.zeros_like(x)


def all_layers(net: torch.nn.Module, H: Tensor) -> Tensor:
    """[L, D] at one position -> the mask there, one number after the other."""
    out = torch.zeros((), dtype=F64)
    for h, w, b, a in zip(H, net.w, net.b, net.mixer, strict=True):
        mean = sum(h) / D
        var = sum((x - mean) ** 2 for x in h) / D
        normed = [(x - mean) / torch.sqrt(var + 1e-5) * g + c for x, g, c in zip(h, net.norm.weight, net.norm.bias)]
        out = out + a * relu(sum(x * y for x, y in zip(normed, w)) + b)
    return relu(out)


def last_layer(net: torch.nn.Module, H: Tensor) -> Tensor:
    return relu(sum(x * y for x, y in zip(H[-1], net.w)) + net.b)


def by_activations(c: dict[str, Tensor], row: int, t: int, groups: list[int]) -> Tensor:
    n, means = LENGTHS[row], []
    for g in groups:
        hooks = []
        for j in [j for j in range(J) if GROUP[j] == g]:
            x = c["activations"][row, j, :n]
            low, high = min(x), max(x)
            hooks.append((x[t] - low) / (high - low) if high > low else torch.ones((), dtype=F64))
        means.append(sum(hooks) / len(hooks))
    return sum(means) / len(means)


def by_hand(c: dict[str, Tensor], mask_u, mask_d, beta: float, l1_u: float = 0.0, l1_d: float = 0.0) -> Tensor:
    def side(row: int) -> tuple[Tensor, Tensor, Tensor]:
        U = D_ = l1 = torch.zeros((), dtype=F64)
        for t in range(LENGTHS[row]):
            u, d = mask_u(row, t), mask_d(row, t)
            U = U + u * (c["policy_logps"][row, t] - c["reference_logps"][row, t])
            D_ = D_ + d * c["token_kl_logps"][row, t]
            l1 = l1 + l1_u * u + l1_d * d
        return U, D_, l1

    losses = []
    for w, l in PAIRS:
        (U_w, D_w, l1_w), (U_l, D_l, l1_l) = side(w), side(l)
        h = (U_w - U_l) - (D_l - D_w)
        losses.append(torch.log1p(torch.exp(-beta * h)) + l1_w + l1_l)
    return sum(losses) / len(losses)


def compare(kw: dict, hand) -> None:
    c = case()
    m = get_method("sparsepo", beta=0.7, **kw)
    torch.manual_seed(3)
    r = m.init(Responses.of(**c))
    nets = dict(r.modules)
    leaves = [c["policy_logps"], c["token_kl_logps"], *(p for n in nets.values() for p in n.parameters())]
    ours, theirs = m(r).scalar, hand(c, nets)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    a, b = (torch.autograd.grad(x, leaves, allow_unused=True) for x in (ours, theirs))
    for x, y in zip(a, b, strict=True):
        y = torch.zeros_like(x) if y is None else y
        torch.testing.assert_close(torch.nan_to_num(x), torch.nan_to_num(y), rtol=1e-9, atol=1e-12)


LEARNED = {
    "common": ({}, all_layers, 1, True, True),
    "common with L1": ({"l1_u": 0.03, "l1_d": 0.02}, all_layers, 1, True, True),
    "independent": ({"variant": "spo-independent", "l1_u": 0.03, "l1_d": 0.02}, all_layers, 2, True, True),
    "last layer": ({"mask_layers": "last", "l1_u": 0.03}, last_layer, 1, True, True),
    "official start": ({"mask_init": "official"}, all_layers, 1, True, True),
    "reward alone": ({"mask_on_kl": False, "l1_u": 0.03}, all_layers, 1, True, False),
    "KL alone": ({"mask_on_reward": False, "l1_d": 0.02}, all_layers, 1, False, True),
}


@pytest.mark.parametrize("name", LEARNED)
def test_learned_masks_are_those_of_the_equations(name: str) -> None:
    kw, net_of, number, on_u, on_d = LEARNED[name]

    def hand(c, nets):
        assert len(nets) == number
        u, d = nets.get("reward_mask"), nets.get("kl_mask", nets.get("reward_mask"))
        one = lambda row, t: torch.ones((), dtype=F64)
        of = lambda net: lambda row, t: net_of(net, c["reference_hidden"][row, :, t])
        half = 0.5 if on_u and on_d and number == 1 else 1.0
        l1 = {k: half * v for k, v in kw.items() if k.startswith("l1")}
        return by_hand(c, of(u) if on_u else one, of(d) if on_d else one, 0.7, **l1)

    compare(kw, hand)


@pytest.mark.parametrize("hooks", [["mlp", "attn", "resid", "logits"], ["mlp"], ["attn", "logits"]])
def test_masks_of_activations_are_those_of_the_equations(hooks: list[str]) -> None:
    groups = [["mlp", "attn", "resid", "logits"].index(h) for h in hooks]

    def hand(c, nets):
        assert not nets
        mask = lambda row, t: by_activations(c, row, t, groups)
        return by_hand(c, mask, mask, 0.7)

    compare({"variant": "mapo"} | ({"hooks": hooks} if len(hooks) < 4 else {}), hand)


def test_a_mask_of_ones_is_tdpo1_and_an_answer_of_one_token_has_a_mask_of_one() -> None:
    r = Responses.of(**case())
    ones, tdpo1 = get_method("sparsepo", variant="mapo", hooks=["uniform"]), get_method("tdpo", variant="tdpo1")
    torch.testing.assert_close(ones(r).scalar, tdpo1(r).scalar, rtol=0, atol=0)
    c = case()
    c["activations"] = torch.full_like(c["activations"], 2.5)  # constant: mask 1 throughout
    torch.testing.assert_close(get_method("sparsepo", variant="mapo")(Responses.of(**c)).scalar, tdpo1(r).scalar)


def test_dead_masks_are_reported_and_have_no_gradient() -> None:
    m = get_method("sparsepo")
    r = m.init(Responses.of(**case()))
    with torch.no_grad():
        r.modules["reward_mask"].mixer.fill_(-1.0)
    out = m(r)
    assert out.health["dead_masks"] == 1
    assert math.isclose(out.scalar.item(), math.log(2), abs_tol=1e-12)
    assert all((v == 100).all() for k, v in out.metrics.items() if k.startswith("sparsity"))
    for g in torch.autograd.grad(out.scalar, list(r.modules["reward_mask"].parameters())):
        assert not g.any()
    with torch.no_grad():
        r.modules["reward_mask"].mixer.fill_(1.0)
    assert m(r).health["dead_masks"] == 0


def test_weight_decay_of_the_masks_is_a_need_of_its_own() -> None:
    needs = get_method("sparsepo", variant="spo-independent", mask_weight_decay=0.05).needs()
    assert [needs[f"modules:{n}_mask"]["weight_decay"] for n in ("reward", "kl")] == [0.05, 0.05]
    assert "features:reference_hidden" not in get_method("sparsepo", variant="mapo").needs()


@pytest.mark.parametrize(
    ("kw", "why"),
    [
        ({"variant": "mapo", "l1_u": 0.1}, "not learned"),
        ({"mask_on_reward": False, "mask_on_kl": False}, "TDPO1"),
        ({"mask_on_kl": False, "l1_d": 0.1}, "no effect"),
        ({"variant": "mapo", "hooks": ["mlp", "uniform"]}, "uniform"),
        ({"variant": "mapo", "hooks": ["heads"]}, "must be one of mlp, attn"),
        ({"variant": "mapo", "hooks": []}, "at least one"),
        ({"hooks": ["mlp"]}, "no effect"),
        ({"variant": "mapo", "mask_weight_decay": 0.1}, "no effect"),
        ({"beta": 0}, "must be in"),
        ({"l1_u": -0.1}, "must be in"),
    ],
)
def test_refusals(kw: dict, why: str) -> None:
    with pytest.raises(PrefoptError, match=why):
        get_method("sparsepo", **kw)


def test_hidden_states_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    m = get_method("sparsepo")
    c = case()
    r = m.init(Responses.of(**c))
    broken = c["reference_hidden"].clone()
    broken[0, 0, 0, 0] = torch.inf
    with pytest.raises(PrefoptError, match="sparsepo: the feature 'reference_hidden' is not finite"):
        m(r.replace(notes={**r.notes, "reference_hidden": broken}))
    with pytest.raises(PrefoptError, match=r"feature 'reference_hidden' has shape \[6, 4, 5\]"):
        m(r.replace(notes={**r.notes, "reference_hidden": broken[:, 0].mT}))
    del c["reference_hidden"]
    with pytest.raises(PrefoptError, match="needs the feature 'reference_hidden'"):
        m.init(Responses.of(**c))
