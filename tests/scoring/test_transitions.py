"""Transitions of the stochastic sampler: against float64 loops, against diffusers' DDIMScheduler, and what is refused."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from prefopt.errors import PrefoptError
from prefopt.rollout.walk import answers, sample, walk
from prefopt.scoring.conditioning import guided, predict
from prefopt.scoring.schedules import Schedule
from prefopt.scoring.transitions import clean_of, grid, log_density, transition

PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def scheduler(prediction="epsilon", **more):
    keys = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": prediction}
    return DDIMScheduler(**keys, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **more)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(prediction, abar, answer, x, t, to, eta):
    """The card's equations, one element at a time."""
    a, a_ = float(abar[t]), float(abar[to])
    sd = eta * math.sqrt((1 - a_) / (1 - a) * (1 - a / a_))
    mean = []
    for y, z in zip(answer.flatten().tolist(), x.flatten().tolist(), strict=True):
        if prediction == "epsilon":
            e, x0 = y, (z - math.sqrt(1 - a) * y) / math.sqrt(a)
        elif prediction == "v_prediction":
            e, x0 = math.sqrt(a) * y + math.sqrt(1 - a) * z, math.sqrt(a) * z - math.sqrt(1 - a) * y
        else:
            e, x0 = (z - math.sqrt(a) * y) / math.sqrt(1 - a), y
        mean.append(math.sqrt(a_) * x0 + math.sqrt(1 - a_ - sd * sd) * e)
    return mean, sd


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mean_deviation_and_density_are_the_equations(prediction, eta):
    schedule = Schedule.of(scheduler(prediction))
    t, to = torch.tensor([951, 401, 1]), torch.tensor([901, 201, 0])
    x, answer, then = (numbers(3, 2, 3, 3, seed=s) for s in range(3))
    made = transition(schedule, answer, x, t, to, eta)
    for n in range(3):
        mean, sd = by_hand(prediction, schedule.alphas_cumprod, answer[n], x[n], int(t[n]), int(to[n]), eta)
        assert made.mean[n].flatten().tolist() == pytest.approx(mean, rel=1e-12)
        assert float(made.sd[n]) == pytest.approx(sd, rel=1e-12)
        if eta:
            lp = sum(
                -((z - m) ** 2) / (2 * sd**2) - math.log(sd) - 0.5 * math.log(2 * math.pi)
                for z, m in zip(then[n].flatten().tolist(), mean, strict=True)
            )
            assert float(log_density(then, made.mean, made.sd)[n]) == pytest.approx(lp, rel=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_whole_walk_is_that_of_diffusers(prediction, eta):
    ddim = scheduler(prediction)
    ddim.set_timesteps(20)
    schedule = Schedule.of(ddim)
    steps = grid(schedule, 20)
    assert steps.t.tolist() == ddim.timesteps.tolist() == [951 - 50 * k for k in range(20)]
    net = lambda x, t: torch.tanh(x * (1 + t.view(-1, 1, 1, 1) / 1000))
    x = numbers(2, 1, 4, 4)
    noise = [numbers(2, 1, 4, 4, seed=10 + i) for i in range(20)]
    walked = list(walk(net, schedule, x, *steps, eta=eta, noise=lambda i: noise[i]))
    for i, t in enumerate(ddim.timesteps):
        out = ddim.step(net(x, t.expand(2)), int(t), x, eta=eta, variance_noise=noise[i] if eta else None)
        assert torch.equal(walked[i].t, t.expand(2))
        torch.testing.assert_close(walked[i].state, x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(walked[i].clean, out.pred_original_sample, rtol=1e-4, atol=1e-4)
        x = out.prev_sample
    torch.testing.assert_close(walked[-1].next, x, rtol=1e-5, atol=1e-5)


def test_the_cards_grid():
    schedule = Schedule.of(scheduler())
    assert grid(schedule, 6).t.tolist() == [831, 665, 499, 333, 167, 1]
    assert grid(schedule, 6).to.tolist() == [665, 499, 333, 167, 1, 0]
    assert grid(schedule, 1) == (torch.tensor([1]), torch.tensor([0]))


def test_every_sample_may_have_times_of_its_own_and_the_run_may_be_cut():
    schedule = Schedule.of(scheduler())
    net = lambda x, t: 0.3 * x + t.view(-1, 1, 1, 1) / 1000
    x = numbers(2, 1, 2, 2)
    t = torch.tensor([[950, 870], [900, 820], [850, 770]])
    together = list(walk(net, schedule, x, t[:2], t[1:]))
    for n in range(2):
        alone = walk(net, schedule, x[n : n + 1], t[:2, n], t[1:, n])
        first = next(alone)
        torch.testing.assert_close(first.next[0], together[0].next[n])
        torch.testing.assert_close(next(alone).next[0], together[1].next[n])
    assert torch.equal(together[1].state, together[0].next)


def test_deterministic_steps_of_a_flow_model_are_eulers():
    flow = Schedule("flow", 1000)
    x, v = numbers(2, 1, 2, 2), numbers(2, 1, 2, 2, seed=1)
    s, to = torch.tensor([0.9, 0.5], dtype=torch.float64), torch.tensor([0.7, 0.2], dtype=torch.float64)
    moved = transition(flow, v, x, s, to, 0.0)
    torch.testing.assert_close(moved.mean, x + (to - s).view(-1, 1, 1, 1) * v)
    torch.testing.assert_close(moved.clean, clean_of(flow, v, x, s))


def test_guidance_mixes_both_answers_and_carries_gradient_through_both(monkeypatch):
    seen = []

    def net(noisy, time, encoder_hidden_states, return_dict):
        seen.append(len(noisy))
        return (noisy * weight + encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1) * weight,)

    weight = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = weight
            self.forward = net

    module, x, t = Net(), numbers(3, 1, 2, 2), torch.tensor([5, 5, 5])
    condition, empty = {"text": numbers(3, 2, 2, seed=4)}, {"text": numbers(2, 2, seed=5)}
    out = guided(module, "sd", x, t, condition, empty, 5.0)
    free = predict(module, "sd", x, t, {"text": empty["text"].expand(3, 2, 2)})
    told = predict(module, "sd", x, t, condition)
    torch.testing.assert_close(out, free + 5 * (told - free))
    assert seen == [6, 3, 3]
    (grad,) = torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close(grad, out.sum().detach() / weight.detach())
    torch.testing.assert_close(guided(module, "sd", x, t, condition, empty, 1.0), told)
    said = answers(module, "sd", Schedule.of(scheduler()), condition, empty, 5.0)(x, t)
    torch.testing.assert_close(said, out.detach())


def test_a_sample_is_mean_plus_deviation_times_noise():
    schedule = Schedule.of(scheduler())
    x, y, z = (numbers(2, 1, 2, 2, seed=s) for s in range(3))
    moved = transition(schedule, y, x, torch.tensor([951, 1]), torch.tensor([901, 0]), 1.0)
    torch.testing.assert_close(sample(moved, z), moved.mean + moved.sd.view(-1, 1, 1, 1) * z)
    assert bool((moved.sd > 0).all())  # the last step too


@pytest.mark.parametrize("steps", [0, -1, 1000, 1001])
def test_grids_that_do_not_fit_are_refused(steps):
    with pytest.raises(PrefoptError, match=r"sampler steps do not fit .* Give 1 to 999 steps"):
        grid(Schedule.of(scheduler()), steps)


def test_what_has_no_density_is_refused():
    x, t = numbers(1, 1, 2, 2), torch.tensor([0.5], dtype=torch.float64)
    with pytest.raises(PrefoptError, match="no density"):
        transition(Schedule("flow", 1000), x, x, t, t / 2, 1.0)
    with pytest.raises(PrefoptError, match="no density"):
        grid(Schedule("flow", 1000), 10)
    diffusion = Schedule.of(scheduler())
    with pytest.raises(PrefoptError, match="eta"):
        transition(diffusion, x, x, torch.tensor([5]), torch.tensor([1]), -0.1)
    with pytest.raises(PrefoptError, match="does not go down"):
        transition(diffusion, x, x, torch.tensor([0]), torch.tensor([0]), 1.0)
    with pytest.raises(ValueError, match="noise"):
        list(walk(lambda x, t: x, diffusion, x, torch.tensor([5]), torch.tensor([1]), eta=1.0))
