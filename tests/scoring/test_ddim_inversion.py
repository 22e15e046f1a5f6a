"""DDIM and ReNoise inversion against the equations of 2503.18454 and 2506.02698, written out row by row in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt import Responses, get_method
from prefopt.errors import PrefoptError
from prefopt.scoring.noising.ddim_inversion import DdimInversion
from prefopt.scoring.noising.forward import Forward
from prefopt.scoring.schedules import Schedule

from .test_denoising import ABAR, BOTH, Net, T, draws, scorer

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def ask(net, x, time, caption):
    """The network of the tests, in numpy: a factor for each channel, a little of the time and of the caption."""
    return x * net.factor.detach().numpy() + caption + time / 1000


def noise_in(prediction, answer, x, a):
    """The noise that an answer stands for."""
    if prediction == "epsilon":
        return answer
    if prediction == "v_prediction":
        return math.sqrt(a) * answer + math.sqrt(1 - a) * x
    return (x - math.sqrt(a) * answer) / math.sqrt(1 - a)


def level(s):
    return ABAR[s] if s >= 0 else ABAR[0]


def inverted(prediction, net, z0, tau, caption, n, eta=0.0, drawn=None, corrections=0, exact=False):
    """(x, y, calls) of one image."""
    r, x, calls = T // n, z0.copy(), 0
    origins = [1 - r + j * r for j in range(n)]
    made = [s for s in origins if s < tau]
    for j, s in enumerate(made):
        to = tau if exact and j == len(made) - 1 else s + r
        here, there = level(s), level(to)

        def moved(e, x=x, here=here, there=there):
            return math.sqrt(there) * (x - math.sqrt(1 - here) * e) / math.sqrt(here) + math.sqrt(1 - there) * e

        e = noise_in(prediction, ask(net, x, s, caption), x, here)
        calls += 1
        for _ in range(corrections):
            guess = moved(e)
            e = (e + noise_in(prediction, ask(net, guess, s, caption), guess, here)) / 2
            calls += 1
        x = moved(e)
        if eta:
            v = (1 - here) / (1 - there) * (1 - there / here)
            x = x + eta * math.sqrt(v) * drawn[j]
    return x, (x - math.sqrt(ABAR[tau]) * z0) / math.sqrt(1 - ABAR[tau]), calls


def error(prediction, net, z0, x, y, tau, caption):
    a = ABAR[tau]
    goal = {"epsilon": y, "v_prediction": math.sqrt(a) * y - math.sqrt(1 - a) * z0, "sample": z0}[prediction]
    return ((ask(net, x, tau, caption) - goal) ** 2).mean()


def at(s, indices, times):
    """A batch whose captions have these times."""
    batch = s.collate(draws(*indices))
    batch.t = batch.time = torch.tensor(times)
    found = s.schedule.level(batch.t)
    batch.signal, batch.sigma = found.signal, found.sigma
    return batch


WAYS = {
    "plain": DdimInversion(),
    "noisy": DdimInversion(steps=7, eta=0.3),
    "renoise": DdimInversion(steps=5, corrections=1),
    "thrice": DdimInversion(steps=4, corrections=3, eta=0.1),
    "exact": DdimInversion(steps=10, exact_tau=True, eta=0.2),
    "one": DdimInversion(steps=1),
    "many": DdimInversion(steps=1000, exact_tau=False),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", WAYS)
def test_every_pair_is_inverted_to_its_own_time(name, prediction):
    way, policy, times = WAYS[name], Net(0), [0, 1, 2, 101, 437, 999]
    times = times[:4] if name == "many" else times
    s = scorer(prediction, noising=way)
    batch = at(s, range(len(times)), times)
    found = s.score(policy, batch, BOTH)["responses"]
    for row, group in enumerate(batch.notes["group"].tolist()):
        z0, tau = batch.latents[row].double().numpy(), times[group]
        drawn = batch.drawn["inversion"][row].double().numpy() if way.eta else None
        caption = batch.condition["text"][group].double().numpy().mean()
        x, y, _ = inverted(
            prediction, policy, z0, tau, caption, way.steps, way.eta, drawn, way.corrections, way.exact_tau
        )
        for who, net in (("policy", policy), ("reference", s.reference)):
            wanted = error(prediction, net, z0, x, y, tau, caption)
            assert -found[who].mean()[row].item() == pytest.approx(wanted, rel=1e-10), (who, row, tau)


def test_the_policy_is_asked_only_for_rows_that_still_have_to_go():
    s, policy, times = scorer(noising=WAYS["renoise"]), Net(0), [0, 437, 999]
    batch = at(s, range(3), times)
    policy.rows.clear()
    s.score(policy, batch, {"scores:policy": {}})
    calls = [inverted("epsilon", policy, batch.latents[0].numpy(), tau, 0.0, 5, corrections=1)[2] for tau in times]
    assert sum(policy.rows) == 2 * sum(calls) + len(batch.latents)


def test_what_the_equations_say_of_the_grid():
    policy = Net(0)
    counts = {
        tau: inverted("epsilon", policy, np.zeros(1), tau, 0, 10)[2] for tau in (0, 1, 2, 101, 102, 801, 802, 999)
    }
    assert counts == {0: 1, 1: 1, 2: 2, 101: 2, 102: 3, 801: 9, 802: 10, 999: 10}
    schedule, times = scorer().schedule, torch.tensor([0, 437, 999])
    path = {s.origin: s.landing.tolist() for s in DdimInversion()._path(times, schedule)}
    assert list(path) == [-99, 1, 101, 201, 301, 401, 501, 601, 701, 801]
    assert (path[-99], path[1], path[401], path[501]) == ([1, 1, 1], [101, 101], [501, 501], [601])
    exact = {s.origin: s.landing.tolist() for s in DdimInversion(exact_tau=True)._path(times, schedule)}
    assert (exact[-99], exact[1], exact[401], exact[501], exact[801]) == (
        [0, 1, 1],
        [101, 101],
        [437, 501],
        [601],
        [999],
    )


def losses(way, method, **options):
    s, policy = scorer(noising=way), Net(0)
    batch = s.collate(draws(*range(6), **options))
    return get_method(**method)(Responses(s.score(policy, batch, BOTH)["responses"], batch.notes)).scalar.item()


def test_with_forward_noising_inpo_and_smpo_are_diffusion_dpo():
    plain = losses(Forward(), {"name": "diffusion-dpo", "beta": 3.0})
    assert losses(Forward(), {"name": "inpo", "beta": 3.0}) == plain
    hard = {"name": "smpo", "base": {"name": "diffusion-dpo", "beta": 3.0}, "gamma": 1.0}
    assert losses(DdimInversion(), {"name": "inpo", "beta": 3.0}) != plain
    scores = {"reward_score": (0.0, 1e6)}  # the pair is (1, 0): p = 1, so omega = gamma
    found = losses(Forward(), hard | {"reward_min": 0.0, "reward_max": 1.0}, **scores)
    assert found == pytest.approx(plain, rel=1e-12)


def test_inversion_shares_all_other_draws_with_forward_noising():
    plain, inverse = (
        scorer(noising=w, caption_dropout=0.4).collate(draws(*range(9))) for w in (Forward(), WAYS["noisy"])
    )
    for name in ("latents", "t", "noise"):
        assert torch.equal(getattr(plain, name), getattr(inverse, name))
    assert torch.equal(plain.condition["text"], inverse.condition["text"])
    drawn = inverse.drawn["inversion"]
    assert drawn.shape == (18, 7, 3, 4, 4)
    assert not torch.equal(drawn[0], drawn[1])  # winner and loser: each its own
    alone = scorer(noising=WAYS["noisy"], caption_dropout=0.4).collate(draws(4))
    assert torch.equal(alone.drawn["inversion"], drawn[8:10])


def test_without_eta_only_the_time_is_random():
    one = SimpleNamespace(**vars(draws(0)[0].example))
    one.std = torch.zeros_like(one.std)
    found = {}
    for name, way in (("ddim", DdimInversion()), ("noisy", DdimInversion(eta=0.1)), ("forward", Forward())):
        s = scorer(noising=way)
        values = []
        for epoch in (0, 1):
            batch = s.collate([draws(0)[0]._replace(example=one, epoch=epoch)])
            batch.t = batch.time = torch.tensor([500])
            lvl = s.schedule.level(batch.t)
            batch.signal, batch.sigma = lvl.signal, lvl.sigma
            values.append(s.score(Net(0), batch, BOTH)["responses"]["policy"].sum())
        found[name] = torch.equal(*values)
    assert found == {"ddim": True, "noisy": False, "forward": False}


def test_the_latent_is_a_constant():
    s, policy = scorer(noising=WAYS["renoise"]), Net(0)
    batch = at(s, [0], [437])
    score = s.score(policy, batch, {"scores:policy": {}})["responses"]["policy"].sum().sum()
    grad = torch.autograd.grad(score, policy.factor)[0]
    total = torch.zeros(3, 1, 1, dtype=torch.float64)
    for row in range(2):
        z0 = batch.latents[row].double().numpy()
        caption = batch.condition["text"][0].double().numpy().mean()
        x, y, _ = inverted("epsilon", policy, z0, 437, caption, 5, corrections=1)
        gap = torch.from_numpy(ask(policy, x, 437, caption) - y)
        total += (-2 * gap * torch.from_numpy(x)).sum((1, 2), keepdim=True)
    torch.testing.assert_close(grad, total)


def test_what_cannot_be_inverted_is_refused_with_the_reason():
    with pytest.raises(PrefoptError, match="this model is a flow model"):
        scorer("flow", noising=DdimInversion())
    with pytest.raises(PrefoptError, match=r"1001 steps: there must be 1 \.\. 1000"):
        scorer(noising=DdimInversion(steps=1001))
    with pytest.raises(PrefoptError, match="clip_sample"):
        DdimInversion().check(Schedule("epsilon", T, torch.from_numpy(ABAR), clips=True))
    Forward().check(Schedule("epsilon", T, torch.from_numpy(ABAR), clips=True))
    for wrong in ({"inversion_steps": 0}, {"inversion_eta": -0.1}, {"beta": 0}):
        with pytest.raises(PrefoptError, match=f"inpo.{next(iter(wrong))}|inversion_steps = 0"):
            get_method("inpo", **wrong)


def test_the_scheduler_says_whether_it_clips():
    from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

    assert Schedule.of(DDPMScheduler()).clips
    assert Schedule.of(DDIMScheduler(clip_sample=False, thresholding=True)).clips
    assert not Schedule.of(DDIMScheduler(clip_sample=False)).clips
    assert not Schedule.of(PNDMScheduler()).clips
