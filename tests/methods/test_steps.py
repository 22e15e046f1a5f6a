"""D3PO and step-aware SPO on transition densities: the cards' equations in plain loops, their numbers and identities."""

import math

import pytest
import torch

from prefopt import PrefoptError, Responses, get_method

C = 0.1


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(policy, reference, beta, clip, h):
    """-log sigmoid(beta (h_0 log rho_0 + h_1 log rho_1)), one pair at a time, and its gradient by lp of the policy."""
    losses, gradient = [], torch.zeros_like(policy)
    n = len(h)
    for i, (h_0, h_1) in enumerate(h):
        logit, slopes = 0.0, []
        for side, sign in ((i, h_0), (n + i, h_1)):
            ratio = math.exp(policy[side] - reference[side])
            rho = ratio if clip is None else min(max(ratio, 1 - clip), 1 + clip)
            logit += sign * math.log(rho)
            slopes.append(sign * (1.0 if rho == ratio else 0.0))
        losses.append(math.log1p(math.exp(-beta * logit)))
        for side, slope in zip((i, n + i), slopes, strict=True):
            gradient[side] = -beta * slope / (1 + math.exp(beta * logit)) / n
    return losses, gradient


@pytest.mark.parametrize("clip", [0.1, 0.3, None])
@pytest.mark.parametrize(("name", "beta"), [("d3po", 0.1), ("d3po", 2.0), ("spo-step", 10.0), ("spo-step", 1.0)])
def test_loss_and_gradient_are_the_cards(name, beta, clip):
    policy, reference = (numbers(12, seed=s, scale=0.15).requires_grad_(s == 0) for s in range(2))
    loss = get_method(name, beta=beta, clip=clip)(Responses.of(policy, reference, pairs="halves"))
    losses, gradient = by_hand(policy.detach(), reference, beta, clip, [(1, -1)] * 6)
    assert float(loss.scalar.detach()) == pytest.approx(sum(losses) / 6, rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss.scalar, policy)[0], gradient, rtol=1e-10, atol=1e-14)


def test_a_density_is_averaged_over_elements_before_it_is_clipped():
    """Sums over C*H*W with a count: the ratio is that of the mean."""
    count = torch.full((4, 1), 64.0, dtype=torch.float64)
    policy, reference = (numbers(4, 1, seed=s, scale=4.0) for s in range(2))
    summed = Responses.of(policy, reference, mask=count, pairs="halves")
    mean = Responses.of(policy / 64, reference / 64, pairs="halves")
    m = get_method("d3po", beta=1.0)
    torch.testing.assert_close(m(summed).scalar, m(mean).scalar)


def test_ties_stay_in_the_mean_with_log_two_and_no_gradient():
    policy = numbers(8, scale=0.05).requires_grad_()
    tie = torch.tensor([False, True, False, True])
    loss = get_method("d3po")(Responses.of(policy, torch.zeros(8, dtype=torch.float64), pairs="halves", tie=tie))
    losses, gradient = by_hand(policy.detach(), torch.zeros(8), 0.1, C, [(1, -1), (0, 0), (1, -1), (0, 0)])
    assert losses[1] == pytest.approx(math.log(2))
    assert float(loss.scalar.detach()) == pytest.approx(sum(losses) / 4)
    torch.testing.assert_close(torch.autograd.grad(loss.scalar, policy)[0], gradient)


def test_the_cards_numbers():
    """The logit is at most beta (log 1.1 - log 0.9) = 0.0201, the loss within [0.683, 0.703]."""
    far = torch.tensor([5.0, -5.0], dtype=torch.float64)
    m = get_method("d3po")
    won = m(Responses.of(far, torch.zeros(2, dtype=torch.float64), pairs="halves"))
    lost = m(Responses.of(-far, torch.zeros(2, dtype=torch.float64), pairs="halves"))
    assert float(won.rewards[0] - won.rewards[1]) == pytest.approx(0.0201, abs=5e-5)
    assert float(won.scalar) == pytest.approx(0.683, abs=5e-4)
    assert float(lost.scalar) == pytest.approx(0.703, abs=5e-4)
    assert float(won.metrics["clipped"].mean()) == 1.0


def test_where_the_clamp_bites_the_gradient_is_zero_and_finite():
    policy = torch.tensor([0.2, 1000.0, -1000.0, 0.01], dtype=torch.float64, requires_grad=True)
    loss = get_method("d3po")(Responses.of(policy, torch.zeros(4, dtype=torch.float64), pairs="halves"))
    gradient = torch.autograd.grad(loss.scalar, policy)[0]
    assert gradient[:3].tolist() == [0, 0, 0]
    assert 0 < float(gradient[3]) < 0.1


def test_without_a_clip_it_is_dpo_on_mean_densities():
    policy, reference = (numbers(6, seed=s) for s in range(2))
    r = Responses.of(policy, reference, pairs="halves")
    torch.testing.assert_close(get_method("d3po", beta=0.3, clip=None)(r).scalar, get_method("dpo", beta=0.3)(r).scalar)


def test_spo_is_d3po_with_its_own_beta_and_data():
    r = Responses.of(numbers(6, scale=0.1), numbers(6, seed=1, scale=0.1), pairs="halves")
    torch.testing.assert_close(get_method("spo-step", beta=0.5)(r).scalar, get_method("d3po", beta=0.5)(r).scalar)
    kinds = [next(k for k in get_method(n).needs() if "generation" in k) for n in ("d3po", "spo-step")]
    assert kinds == ["generation:trajectories", "generation:pools"]


def test_whole_trajectories_are_a_mean_over_pairs_and_steps():
    policy, reference = (numbers(4, 3, seed=s, scale=0.1) for s in range(2))
    whole = get_method("d3po", beta=1.0)(Responses.of(policy, reference, pairs="halves")).scalar
    each = [
        get_method("d3po", beta=1.0)(Responses.of(policy[:, i], reference[:, i], pairs="halves")).scalar
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(each).mean())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("d3po", "clip", 0.0), ("d3po", "clip", 1.0), ("d3po", "eta", 0.0), ("d3po", "beta", -1.0), ("d3po", "samples", 1),
     ("spo-step", "pool", 1), ("spo-step", "threshold", 1.0), ("spo-step", "divert_start_step", 19),
     ("spo-step", "inner_steps", 2), ("diffusion-dro", "margin", -0.1), ("diffusion-dro", "refresh", 0)],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(name, key, value):
    with pytest.raises(PrefoptError, match=key.split("_")[0]):
        get_method(name, **{key: value})


# ---- Diffusion-DRO


def dro_by_hand(expert, own, margin):
    """expert, own: (policy's error, reference's error) per sample, means over elements."""
    total = 0.0
    for (a, b), (c, d) in zip(expert, own, strict=True):
        total += max(0.0, (a - b) - (c - d) + margin)
    return total / len(expert)


@pytest.mark.parametrize("margin", [0.0, 0.001, 0.2])
def test_diffusion_dro_is_the_cards_hinge(margin):
    errors = numbers(4, 7, seed=3).square()  # policy and reference of experts, of own states
    own = Responses.of(policy_errors=errors[2].clone().requires_grad_(), reference_errors=errors[3])
    expert = errors[0].clone().requires_grad_()
    r = Responses.of(policy_errors=expert, reference_errors=errors[1], extras={"own": own})
    loss = get_method("diffusion-dro", margin=margin)(r)
    pairs = [list(zip(errors[i].tolist(), errors[i + 1].tolist(), strict=True)) for i in (0, 2)]
    assert float(loss.scalar.detach()) == pytest.approx(dro_by_hand(*pairs, margin), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss.scalar, expert)
    active = (errors[0] - errors[1] - errors[2] + errors[3] + margin) > 0
    torch.testing.assert_close(gradient, active.double() / 7)
    torch.testing.assert_close(loss.metrics["active"], active.double())


def test_diffusion_dro_at_its_start_is_supervised_fine_tuning():
    """policy = reference: loss = margin, the own half has no gradient, the expert's is that of its error."""
    errors = numbers(5).square()
    expert, zero = errors.clone().requires_grad_(), torch.zeros(5, dtype=torch.float64)
    own = Responses.of(policy_errors=zero.clone(), reference_errors=zero)
    loss = get_method("diffusion-dro", margin=0.02)(
        Responses.of(policy_errors=expert, reference_errors=errors, extras={"own": own})
    )
    assert float(loss.scalar.detach()) == pytest.approx(0.02)
    sft = get_method("sft")(Responses.of(policy_errors=expert, pairs=None))
    a, b = (torch.autograd.grad(x.scalar, expert)[0] for x in (loss, sft))
    torch.testing.assert_close(a, b)


def test_the_papers_form_differs_by_the_margin_alone():
    l_l, l_r, m = numbers(6), numbers(6, seed=1), 0.05
    paper = torch.maximum(torch.full_like(l_l, -m), -l_l + l_r).mean()
    card = (-l_l + l_r + m).clamp(min=0).mean()
    torch.testing.assert_close(paper, card - m)


@pytest.mark.parametrize("name", ["d3po", "spo-step"])
def test_steps_that_one_side_lacks_are_in_no_mean(name):
    """[4, 3] densities of two pairs; the second pair's loser has no third step, the first pair's winner no first."""
    policy, reference = (numbers(4, 3, seed=s, scale=0.1).requires_grad_(s == 0) for s in range(2))
    mask = torch.ones(4, 3, dtype=torch.float64)
    mask[3, 2] = mask[0, 0] = 0
    loss = get_method(name, beta=2.0)(Responses.of(policy, reference, mask=mask, pairs="halves"))
    shared = [(0, 1), (0, 2), (1, 0), (1, 1)]  # (pair, step)
    p, q = (torch.stack([x[side + i, t] for side in (0, 2) for i, t in shared]) for x in (policy.detach(), reference))
    losses, _ = by_hand(p, q, 2.0, C, [(1, -1)] * 4)
    assert float(loss.scalar.detach()) == pytest.approx(sum(losses) / 4, rel=1e-12)
    (slope,) = torch.autograd.grad(loss.scalar, policy)
    assert slope[0, 0] == slope[2, 0] == slope[1, 2] == slope[3, 2] == 0
