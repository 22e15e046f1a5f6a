"""One-step generators: what their scorer answers, against the networks called by hand; where gradients go and where not."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefopt import PrefoptError, get_method
from prefopt.data.captions import EncodedPrompt
from prefopt.models.one_step import one_step_scheduler
from prefopt.scoring.base import Draw
from prefopt.scoring.one_step import OneStep, OneStepScorer
from prefopt.scoring.schedules import Level, Schedule
from prefopt.training.engine import responses
from prefopt.worlds import ring

ABAR = torch.linspace(0.999, 0.01, 100, dtype=torch.float64)
PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]


class Tiny(nn.Module):
    """A denoiser that reads its time and its caption."""

    def __init__(self, seed: int):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(3, 3, generator=g, dtype=torch.float64) / 2)
        self.bias = nn.Parameter(torch.randn(3, generator=g, dtype=torch.float64))

    def forward(self, noisy: Tensor, time: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        said = encoder_hidden_states.mean((1, 2))[:, None] * self.bias + torch.sin(time.double() / 50)[:, None]
        return (torch.tanh(torch.einsum("ij,njhw->nihw", self.weight, noisy) + said[:, :, None, None]),)


class SD3(Tiny):
    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        return_dict: bool,
    ) -> tuple[Tensor]:  # type: ignore[override]
        return super().forward(hidden_states, timestep, encoder_hidden_states, return_dict)


def scheduled(prediction: Any) -> Schedule:
    return Schedule(prediction, 100, None if prediction == "flow" else ABAR)


def made(prediction: str, how: OneStep | None = None, **more: Any) -> tuple[Any, OneStepScorer, dict[str, Any], Any]:
    """Generator, scorer, its networks, and a batch of four prompts."""
    schedule, how = scheduled(prediction), how or OneStep()
    kind: Any = "sd3" if prediction == "flow" else "sd"
    net = SD3 if prediction == "flow" else Tiny
    generator, networks = net(0), {"assistant": net(1), "reference": net(2).requires_grad_(False)}
    g = torch.Generator().manual_seed(9)
    said = [{"text": torch.randn(2, 4, generator=g).double(), "pooled": torch.randn(2, generator=g)} for _ in range(5)]
    level = how.generator_level(schedule)
    scorer = OneStepScorer(kind, schedule, (level, schedule.prediction), networks, (3, 2, 2), said[4], how=how, **more)
    batch = scorer.collate([Draw(EncodedPrompt(i, f"prompt {i}", said[i])) for i in range(4)])
    batch.start, batch.noise = batch.start.double(), batch.noise.double()
    return generator, scorer, networks, batch


def by_hand(prediction: str, generator: Any, networks: Any, batch: Any, empty: Tensor) -> dict[str, Tensor]:
    """Clean, noisy and the three scores, image by image, from the definitions of the four parameterisations."""

    def clean(out: Tensor, x: Tensor, a: float, s: float) -> Tensor:
        return {"epsilon": (x - s * out) / a if a else x, "v_prediction": a * x - s * out, "sample": out}.get(
            prediction, x - s * out
        )

    out: dict[str, list[Tensor]] = {
        k: [] for k in ("clean", "noisy", "assistant_score", "reference_score", "empty_score")
    }
    last = (0.0, 1.0, 100.0) if prediction == "flow" else (math.sqrt(0.01), math.sqrt(0.99), 99)

    def ask(net: Any, x: Tensor, time: float, text: Tensor) -> Tensor:
        args: Any = (x[None], torch.tensor([time], dtype=torch.float64), text[None])
        return (net(*args, None, False) if prediction == "flow" else net(*args, False))[0][0]

    for i in range(4):
        text = batch.condition["text"][i]
        x_0 = clean(ask(generator, batch.start[i], last[2], text), batch.start[i], *last[:2])
        a, s = float(batch.signal[i]), float(batch.sigma[i])
        x_t = a * x_0 + s * batch.noise[i]
        out["clean"].append(x_0.flatten())
        out["noisy"].append(x_t.flatten())
        for name, net, said in (
            ("assistant_score", networks["assistant"], text),
            ("reference_score", networks["reference"], text),
            ("empty_score", networks["reference"], empty),
        ):
            f = clean(ask(net, x_t, float(batch.time[i]), said), x_t, a, s)
            out[name].append(((a * f - x_t) / s**2).flatten())  # the score of a clean-image prediction
    return {k: torch.stack(v) for k, v in out.items()}


NEEDS = {
    f"features:{n}": {"grad": True} for n in ("clean", "noisy", "assistant_score", "reference_score", "empty_score")
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_scores_of_every_parameterisation(prediction: str) -> None:
    generator, scorer, networks, batch = made(prediction)
    found = scorer.score(generator, batch, NEEDS)["responses"]
    for name, expected in by_hand(prediction, generator, networks, batch, scorer.empty["text"]).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    "given", [{}, {"cfg": "outer"}, {"distance": "l2", "weight": "normalised"}, {"distance": "kl"}]
)
def test_the_gradient_reaches_the_generator_and_nobody_else(prediction: str, given: dict[str, Any]) -> None:
    """As if the definitions had been differentiated by hand; assistant and reference collect nothing."""
    rewarded = lambda images, prompts: torch.tanh(images).flatten(1).sum(1)
    generator, scorer, networks, batch = made(prediction, reward=rewarded, decode=lambda x: 2 * x)
    m = get_method("diff-instruct-star", **given)
    networks["assistant"].requires_grad_(False)  # as the trainer has it in this turn
    scored = scorer.score(generator, batch, m.turns()[""])
    m(responses(batch, scored, {}, {}, {})).scalar.backward()
    assert all(p.grad is None for net in networks.values() for p in net.parameters())
    found = [p.grad.clone() for p in generator.parameters()]

    generator.zero_grad()
    x = by_hand(prediction, generator, networks, batch, scorer.empty["text"])
    from prefopt import Responses

    reward = rewarded(2 * x["clean"].view_as(batch.start), [])
    again = Responses.of(reward_logps=reward, noise=batch.noise.flatten(1), sigma=batch.sigma, signal=batch.signal, **x)
    m(again).scalar.backward()
    for a, p in zip(found, generator.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-8)  # levels are float32 in a batch
        assert a.abs().max() > 0


def test_in_the_assistants_turn_fakes_are_constants() -> None:
    generator, scorer, networks, batch = made("epsilon")
    m = get_method("diff-instruct-star")
    scored = scorer.score(generator, batch, m.turns()["assistant"])
    assert set(scored["responses"]) == {"assistant_score"}  # the reference is not asked
    m(responses(batch, scored, {}, {}, {}, "assistant")).scalar.backward()
    assert all(p.grad is None for p in generator.parameters())
    x_0 = by_hand("epsilon", generator, networks, batch, scorer.empty["text"])["clean"].detach().view_as(batch.start)
    found = networks["assistant"].weight.grad.clone()
    networks["assistant"].zero_grad()
    a, s = (x[:, None, None, None] for x in (batch.signal, batch.sigma))
    guess = networks["assistant"](a * x_0 + s * batch.noise, batch.time, batch.condition["text"], False)[0]
    (guess - batch.noise).square().sum((1, 2, 3)).mean().backward()
    torch.testing.assert_close(found, networks["assistant"].weight.grad, rtol=1e-5, atol=1e-7)


def test_draws_belong_to_the_example_and_its_epoch() -> None:
    scorer = made("epsilon")[1]
    one = [EncodedPrompt(i, "", {"text": torch.zeros(2, 4)}) for i in range(3)]
    all_ = scorer.collate([Draw(p) for p in one])
    alone = scorer.collate([Draw(one[2])])
    for name in ("start", "noise", "sigma", "time"):
        assert torch.equal(getattr(all_, name)[2:], getattr(alone, name))
    assert not torch.equal(scorer.collate([Draw(one[2], epoch=1)]).start, alone.start)
    assert not torch.equal(all_.start, all_.noise)


@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_times_are_uniform_between_their_bounds(prediction: str) -> None:
    how, schedule, g = OneStep(low=0.2, high=0.6), scheduled(prediction), torch.Generator().manual_seed(0)
    drawn = torch.stack([how.drawn(schedule, g) for _ in range(4000)]).double()
    if prediction == "epsilon":
        assert (drawn.min(), drawn.max()) == (20, 59)  # the upper end is not drawn
        drawn = (drawn + 0.5) / 100
    assert drawn.min() >= 0.2
    assert drawn.max() <= 0.6
    assert drawn.mean().item() == pytest.approx(0.4, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.4 / math.sqrt(12), abs=0.005)


@pytest.mark.parametrize("at", [99, 40])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_saved_scheduler_makes_one_evaluation_of_one_step(prediction: Any, at: int) -> None:
    """Its one step takes z at time `at` to the clean latents that the answer stands for; and it is read back so."""
    schedule = scheduled(prediction)
    scheduler = one_step_scheduler(schedule, at)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [at]
    generator, scorer, _, batch = made(prediction, OneStep(at=at))
    x_0 = scorer.generate(generator, batch.start, batch.condition)
    answer = generator(batch.start, torch.full((4,), at), batch.condition["text"], False)[0]
    torch.testing.assert_close(scheduler.step(answer, at, batch.start).prev_sample, x_0, rtol=1e-4, atol=1e-5)
    assert float(scheduler.init_noise_sigma) == 1
    again = Schedule.of(scheduler)
    assert (again.prediction, again.steps) == (prediction, at + 1)
    torch.testing.assert_close(again.alphas_cumprod, ABAR[: at + 1], rtol=1e-4, atol=1e-6)
    assert OneStep().generator_level(again).time.tolist() == [at]


def test_what_cannot_be_asked_is_refused() -> None:
    zero = Schedule("epsilon", 100, torch.cat([ABAR[:-1], torch.zeros(1).double()]))
    with pytest.raises(PrefoptError, match="zero terminal SNR"):
        OneStep().generator_level(zero)
    assert OneStep(at=98).generator_level(zero).signal > 0
    with pytest.raises(PrefoptError, match="must be an integer in 0 .. 99"):
        OneStep(at=100).generator_level(zero)
    with pytest.raises(PrefoptError, match="no picture left"):
        OneStep(high=1.0).check(zero)
    with pytest.raises(PrefoptError, match="no timestep"):
        OneStep(low=0.5, high=0.501).check(zero)
    for how in (OneStep(low=0.0), OneStep(high=1.0)):
        with pytest.raises(PrefoptError, match="not defined"):
            how.check(scheduled("flow"))
    with pytest.raises(PrefoptError, match="generator_time = 3 has no effect"):
        OneStep(at=3).generator_level(scheduled("flow"))
    last = OneStep().generator_level(scheduled("epsilon"))
    with pytest.raises(PrefoptError, match="the empty caption: a sd model is conditioned on text"):
        OneStepScorer("sd", scheduled("epsilon"), (last, "epsilon"), {}, (1, 1, 1), {})


def test_the_rings_scores_are_the_derivatives_of_its_log_density() -> None:
    g = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(6, 2, generator=g, dtype=torch.float64)).requires_grad_()
    signal, sigma = torch.full((6,), 0.8).double(), torch.full((6,), 0.6).double()
    var = (0.8 * ring.DEVIATION) ** 2 + 0.36
    density = torch.logsumexp(-torch.cdist(x, 0.8 * ring.CENTRES.double()).square() / (2 * var), 1)
    (expected,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(ring.score(x.detach(), signal, sigma), expected)
    assert Level(*copy.copy(OneStep().generator_level(ring.schedule()))).time.tolist() == [999]
