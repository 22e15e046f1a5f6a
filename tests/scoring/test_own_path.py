"""States of the policy's own path beside expert images: against a sampler written out step by step."""

import itertools
import math

import pytest
import torch

from prefopt.data.latents import EncodedImages
from prefopt.errors import PrefoptError
from prefopt.scoring.base import Draw
from prefopt.scoring.denoising import DenoisingScorer
from prefopt.scoring.noising import noising_for
from prefopt.scoring.noising.own_path import OwnPath
from prefopt.scoring.schedules import Schedule
from prefopt.worlds.words import sd_scheduler

SHAPE = (2, 3, 3)


class Net(torch.nn.Module):
    """Answers depend on input, time and caption; counts its calls."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.7, bias], dtype=torch.float64))
        self.calls = []

    def forward(self, noisy, time, encoder_hidden_states, return_dict):
        self.calls.append(len(noisy))
        said = encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1)
        return (torch.tanh(self.weight[0] * noisy + said + time.view(-1, 1, 1, 1) / 1000 + self.weight[1]),)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example(index, k=1, pairs=()):
    mean = numbers(k, 1, *SHAPE, seed=index)
    return EncodedImages(index, mean, torch.zeros_like(mean), {"text": numbers(2, 3, seed=50 + index)}, pairs, {})


def scorer(reference=None, prediction="epsilon", **how):
    schedule = Schedule.of(sd_scheduler(prediction))
    noising = noising_for({"noising:own_path": {"how": how}})
    more = {"teacher": Net(0.3).requires_grad_(False)} if how.get("refresh", 1) > 1 else {}
    return DenoisingScorer(
        "sd",
        schedule,
        {"text": numbers(2, 3, seed=99)},
        caption_dropout=0.0,
        reference=reference,
        noising=noising,
        **more,
    )


NEEDS = {
    "scores:policy": {"grad": True},
    "scores:reference": {},
    "noising:own_path": {},
    "extras:own": {"grad": True, "asked": {"scores:policy": {"grad": True}, "scores:reference": {}}},
}


def path_by_hand(net, start, t, text, abar, steps=20):
    """DDIM from the top of the grid through t, one sample, until its state at t and the answer there."""
    stride = 1000 // steps
    times = list(range(t, 1000, stride))[::-1]
    x = start.clone()
    for here, there in itertools.pairwise(times):
        e = net(x[None], torch.tensor([here]), text[None], False)[0][0]
        a, b = float(abar[here]), float(abar[there])
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e
    return x, net(x[None], torch.tensor([t]), text[None], False)[0][0]


def test_own_rows_are_states_of_the_path_with_its_own_predictions():
    policy, reference = Net(0.1), Net(0.4).requires_grad_(False)
    s = scorer(reference)
    batch = s.collate([Draw(example(i), epoch=i) for i in range(4)])
    assert {k: list(v.shape) for k, v in batch.counts().items()} == {"responses": [4, 1], "own": [4, 1]}
    found = s.score(policy, batch, NEEDS)
    abar = s.schedule.alphas_cumprod
    for i in range(4):
        start, t, text = batch.drawn["path_start"][i].double(), int(batch.t[i]), batch.condition["text"][i]
        with torch.no_grad():
            x, e = path_by_hand(policy, start, t, text, abar)
            ref = reference(x[None], torch.tensor([t]), text[None], False)[0][0]
        assert float(found["own"]["policy"].values[i]) == pytest.approx(
            0, abs=1e-9
        )  # its own prediction, at that very state
        assert float(found["own"]["reference"].values[i]) == pytest.approx(-float((ref - e).square().sum()), rel=1e-5)
        noisy = abar[t].sqrt() * batch.latents[i] + (1 - abar[t]).sqrt() * batch.noise[i]
        with torch.no_grad():
            said = policy(noisy[None], torch.tensor([t]), text[None], False)[0][0]
        error = -float((said - batch.noise[i]).square().sum())
        assert float(found["responses"]["policy"].values[i]) == pytest.approx(error, rel=1e-5)
    assert found["own"]["policy"].mean().shape == (4,)


def test_one_forward_of_each_network_with_gradient_in_both_halves():
    policy, reference = Net(0.1), Net(0.4).requires_grad_(False)
    s = scorer(reference, refresh=2)  # the snapshot is another network
    batch = s.collate([Draw(example(i)) for i in range(3)])
    found = s.score(policy, batch, NEEDS)
    assert policy.calls == [6]
    assert reference.calls == [6]
    for part in ("responses", "own"):
        (grad,) = torch.autograd.grad(found[part]["policy"].values.sum(), policy.weight, retain_graph=True)
        assert bool((grad != 0).all())
    assert not found["own"]["reference"].values.requires_grad


def test_the_times_are_all_visited_and_paths_start_at_the_top():
    how = OwnPath(steps=20)
    schedule = Schedule.of(sd_scheduler())
    t = torch.arange(1000)
    moves = how._moves(t, schedule)
    assert torch.equal(t + 50 * moves, 950 + t % 50)  # base times 0, 50, .. plus one offset of the path
    assert sorted(set(moves.tolist())) == list(range(20))
    odd = OwnPath(steps=30)._moves(t, schedule)
    assert int((t + 33 * odd).max()) == 999
    assert int((t + 33 * odd).min()) >= 999 - 33


def test_pairs_give_own_rows_to_their_better_images_only():
    s = scorer(Net().requires_grad_(False))
    batch = s.collate([Draw(example(0, 2, ((1, 0),))), Draw(example(1, 2, ((0, 1),)))])
    assert batch.imitated.tolist() == [1, 2]
    assert list(batch.counts()["own"].shape) == [2, 1]
    assert list(s.score(Net(), batch, NEEDS)["own"]["policy"].values.shape) == [2, 1]


def test_accumulation_changes_nothing():
    policy, s = Net(0.1), scorer(Net(0.4).requires_grad_(False))
    draws = [Draw(example(i)) for i in range(4)]
    whole = s.score(policy, s.collate(draws), NEEDS)
    each = [s.score(policy, s.collate([d]), NEEDS) for d in draws]
    for part in ("responses", "own"):
        for name in ("policy", "reference"):
            torch.testing.assert_close(whole[part][name].values, torch.cat([e[part][name].values for e in each]))


def test_the_snapshot_is_asked_in_evaluation_mode():
    class Noisy(Net):
        def forward(self, noisy, *args, **more):
            assert not self.training or torch.is_grad_enabled()
            return super().forward(noisy, *args, **more)

    policy = Noisy(0.1).train()
    s = scorer(Net().requires_grad_(False))
    s.score(policy, s.collate([Draw(example(0))]), NEEDS)
    assert policy.training


def test_guidance_of_the_sampler_is_one_unless_asked_for():
    found = []
    for guidance in (1.0, 3.0):
        policy = Net(0.1)
        s = scorer(Net(0.4).requires_grad_(False), guidance=guidance)
        found.append(s.score(policy, s.collate([Draw(example(2))]), NEEDS)["own"]["reference"].values)
    assert not torch.allclose(*found)


def test_flow_models_walk_too():
    schedule = Schedule("flow", 1000)
    how, policy = OwnPath(steps=4), lambda x, time, rows=None, empty=False: torch.ones_like(x)
    from prefopt.scoring.noising.base import Inputs
    from prefopt.scoring.schedules import Level

    s, start = torch.tensor([0.2, 0.9], dtype=torch.float64), numbers(2, *SHAPE)
    level = Level(1 - s, s, 1000 * s)
    x = Inputs(torch.zeros_like(start), start, level, s, {"path_start": start})
    made = how.beside(x, torch.arange(2), schedule, policy)
    torch.testing.assert_close(made.noisy[0], start[0] - 0.75)  # 0.95 -> 0.2 in three steps of 1/4 along v = 1
    torch.testing.assert_close(made.noisy[1], start[1])
    torch.testing.assert_close(made.time, 1000 * s)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(PrefoptError, match=r"steps = \d+ of the sampler"):
        OwnPath(steps=steps).check(Schedule.of(sd_scheduler()))
