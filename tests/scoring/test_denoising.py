"""Denoising scores against the card's equations, written out again in float64, and what a group shares."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt import Responses, get_method
from prefopt.errors import PrefoptError
from prefopt.models.diffusion import image_model, make_trainable
from prefopt.scoring.base import Draw
from prefopt.scoring.denoising import DenoisingScorer, adapters_off
from prefopt.scoring.noising import noising_for
from prefopt.scoring.schedules import Schedule
from prefopt.worlds.shapes.pipelines import tiny_pipeline

T = 1000
BETAS = np.linspace(math.sqrt(8.5e-4), math.sqrt(0.012), T) ** 2
ABAR = np.cumprod(1 - BETAS)
BOTH = {"scores:policy": {}, "scores:reference": {}}


class Net(torch.nn.Module):
    """A denoiser small enough to be written out: a factor per channel, a little of the time and of the caption."""

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.factor = torch.nn.Parameter(torch.randn(3, 1, 1, generator=g, dtype=dtype))
        self.rows = []

    def forward(self, x, time, encoder_hidden_states, return_dict):
        assert return_dict is False
        self.rows.append(len(x))
        bias = encoder_hidden_states.mean((1, 2)) + time.to(x.dtype) / 1000
        return (x * self.factor + bias[:, None, None, None],)


def frozen_net(seed=1):
    return Net(seed).requires_grad_(False)


def example(index, k=2, pairs=((1, 0),), held_out=False, views=1, **notes):
    g = torch.Generator().manual_seed(100 + index)
    return SimpleNamespace(
        index=index,
        mean=torch.randn(k, views, 3, 4, 4, generator=g),
        std=torch.rand(k, views, 3, 4, 4, generator=g),
        held_out=held_out,
        condition={"text": torch.randn(5, 6, generator=g)},
        pairs=pairs,
        notes=notes,
    )


def schedule(prediction):
    if prediction == "flow":
        return Schedule("flow", T)
    return Schedule(prediction, T, torch.from_numpy(ABAR))


def scorer(prediction="epsilon", **options):
    options = {"caption_dropout": 0.0, "reference": frozen_net()} | options
    return DenoisingScorer("sd", schedule(prediction), {"text": torch.zeros(5, 6)}, **options)


def draws(*indices, epoch=0, **options):
    return [Draw(example(i, **options), epoch) for i in indices]


def card(prediction, net, batch, row):
    """-(sum of squared errors) of one row, by the card's table, in plain numpy."""
    group = int(batch.notes["group"][row])
    z0, eps = batch.latents[row].double().numpy(), batch.noise[group].double().numpy()
    if prediction == "flow":
        s = float(batch.time[group]) / 1000
        zt, y, time = (1 - s) * z0 + s * eps, eps - z0, 1000 * s
    else:
        time = int(batch.time[group])
        a = ABAR[time]
        zt = math.sqrt(a) * z0 + math.sqrt(1 - a) * eps
        y = {"epsilon": eps, "sample": z0, "v_prediction": math.sqrt(a) * eps - math.sqrt(1 - a) * z0}[prediction]
    caption = batch.condition["text"][group].double().numpy().mean()
    answer = zt * net.factor.detach().numpy() + caption + time / 1000
    return -((answer - y) ** 2).sum()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_scores_are_the_cards_in_float64(prediction):
    s, policy = scorer(prediction), Net(0)
    batch = s.collate(draws(0, 1, 2, k=3))
    scores = s.score(policy, batch, BOTH)["responses"]
    for name, net in (("policy", policy), ("reference", s.reference)):
        expected = torch.tensor([card(prediction, net, batch, r) for r in range(9)])
        torch.testing.assert_close(scores[name].values[:, 0], expected, rtol=1e-12, atol=1e-12)
        assert (scores[name].count == 3 * 4 * 4).all()


def test_diffusion_dpo_on_these_scores_is_the_official_loss():
    s, policy = scorer(), Net(0)
    batch = s.collate(draws(0, 1, 2, 3))
    scores = s.score(policy, batch, BOTH)["responses"]
    loss = get_method("diffusion-dpo", beta=2.0, half_factor=0.5)(Responses(scores, batch.notes)).scalar
    n, total = 48, 0.0
    for w, l in batch.notes["pairs"].tolist():
        e = {
            (name, r): -card("epsilon", net, batch, r) / n
            for name, net in (("p", policy), ("r", s.reference))
            for r in (w, l)
        }
        margin = (e["r", w] - e["r", l]) - (e["p", w] - e["p", l])
        total += math.log1p(math.exp(-0.5 * 2.0 * margin)) / 4
    assert loss.item() == pytest.approx(total, rel=1e-12)
    plain = get_method("dpo", beta=0.5 * 2.0 / n)(Responses(scores, batch.notes)).scalar
    assert plain.item() == pytest.approx(total, rel=1e-12)  # dpo sums where diffusion-dpo takes means


def test_a_group_shares_noise_time_and_caption_and_groups_do_not():
    s = scorer(caption_dropout=0.5)
    batch = s.collate(draws(*range(64)))
    assert batch.noise.shape == (64, 3, 4, 4)
    assert batch.latents.shape == (128, 3, 4, 4)
    assert batch.notes["group"].tolist() == [g for g in range(64) for _ in range(2)]
    assert len(set(batch.time.tolist())) > 40
    assert not torch.equal(batch.noise[0], batch.noise[1])
    dropped = (batch.condition["text"] == 0).all((1, 2))
    assert 15 < int(dropped.sum()) < 50
    assert batch.notes["pairs"].tolist() == [[2 * g + 1, 2 * g] for g in range(64)]


def test_latents_are_sampled_from_the_posterior_each_image_for_itself():
    s, one = scorer(), example(0)
    one.mean = one.mean[:1].expand(2, -1, -1, -1, -1)
    a, b = s.collate([Draw(one, 0)]).latents
    assert not torch.equal(a, b)
    again = s.collate([Draw(one, 1)]).latents
    assert not torch.equal(a, again[0])
    one.std = torch.zeros_like(one.std)
    torch.testing.assert_close(s.collate([Draw(one, 3)]).latents, one.mean[:, 0])


def test_draws_do_not_depend_on_the_batch_and_depend_on_epoch_and_seed():
    s = scorer(caption_dropout=0.3)
    together = s.collate(draws(3, 4, 5))
    alone = s.collate(draws(4))
    for name in ("noise", "time", "signal", "sigma"):
        assert torch.equal(getattr(together, name)[1], getattr(alone, name)[0])
    assert torch.equal(together.latents[2:4], alone.latents)
    assert torch.equal(together.condition["text"][1], alone.condition["text"][0])
    assert not torch.equal(s.collate(draws(4, epoch=1)).noise, alone.noise)
    assert not torch.equal(scorer(seed=1).collate(draws(4)).noise, alone.noise)


def test_scores_do_not_depend_on_the_batch_and_all_responses_go_in_one_call():
    s, net = scorer(), Net(0)
    whole = s.score(net, s.collate(draws(0, 1, 2, k=3)), BOTH)["responses"]["policy"].values
    assert net.rows == [9]
    parts = [s.score(net, s.collate(draws(i, k=3)), BOTH)["responses"]["policy"].values for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_each_image_has_its_own_view():
    s, one = scorer(), example(0, k=2, views=2)
    one.std = torch.zeros_like(one.std)
    seen = set()
    for epoch in range(40):
        latents = s.collate([Draw(one, epoch)]).latents
        seen.add(tuple(int(torch.equal(latents[i], one.mean[i, 1])) for i in range(2)))
    assert seen == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_held_out_captions_are_never_dropped():
    s = scorer(caption_dropout=1.0)
    assert (s.collate(draws(0)).condition["text"] == 0).all()
    kept = example(0, held_out=True)
    assert torch.equal(s.collate([Draw(kept, 0)]).condition["text"][0], kept.condition["text"])


def test_policy_has_gradient_and_reference_has_none():
    s, net = scorer(), Net(0)
    scores = s.score(net, s.collate(draws(0, 1)), BOTH)["responses"]
    assert not scores["reference"].values.requires_grad
    scores["policy"].sum().sum().backward()
    assert net.factor.grad.abs().sum() > 0
    assert s.score(net, s.collate(draws(0)), BOTH, grad=False) == {}
    assert set(s.score(net, s.collate(draws(0)), {"scores:policy": {}})["responses"]) == {"policy"}


def test_errors_are_summed_in_float32_when_the_network_is_half():
    net = Net(0, torch.bfloat16)
    s = scorer(reference=Net(1, torch.bfloat16).requires_grad_(False))
    assert s.score(net, s.collate(draws(0)), BOTH)["responses"]["policy"].values.dtype == torch.float32


def test_counts_are_those_of_the_scores_and_notes_travel():
    s = scorer(notes=["pairs", "margin", "score"])
    batch = s.collate(
        [Draw(example(0, margin=[0.5], score=[1.0, 2.0]), 0), Draw(example(1, margin=[2.0], score=[3.0, 4.0]), 0)]
    )
    assert batch.notes["margin"].tolist() == [0.5, 2.0]
    assert batch.notes["score"].tolist() == [1.0, 2.0, 3.0, 4.0]
    scored = s.score(Net(0), batch, BOTH)["responses"]["policy"]
    assert torch.equal(batch.counts()["responses"].double(), scored.count)
    assert {"scores:policy", "scores:reference", "notes:group", "notes:margin"} <= s.offers()
    assert dataclasses.replace(batch, filler=True).to("cpu").filler


def test_mismatched_images_stand_under_the_examples_own_caption_and_noise():
    s, net = scorer(), Net(0)
    batch = s.collate([Draw(example(i), 0, example(i + 10)) for i in range(3)])
    apart = batch.apart["mismatched"]
    assert torch.equal(apart.noise, batch.noise)
    assert torch.equal(apart.time, batch.time)
    assert torch.equal(apart.condition["text"], batch.condition["text"])
    assert not torch.equal(apart.latents, batch.latents)
    needs = {"scores:policy": {}, "extras:mismatched": {"asked": BOTH}}
    found = s.score(net, batch, needs, grad=False)
    assert set(found) == {"mismatched"}
    assert set(found["mismatched"]) == {"policy", "reference"}
    assert not found["mismatched"]["policy"].values.requires_grad
    assert card("epsilon", net, apart, 2) == pytest.approx(found["mismatched"]["policy"].values[2].item(), rel=1e-12)
    assert batch.counts()["mismatched"].shape == (6, 1)


def test_adapter_off_is_the_start_and_is_switched_on_again():
    model = image_model(tiny_pipeline("sd"))
    net = make_trainable(model, {"r": 2})
    one = SimpleNamespace(**vars(example(0)))
    one.mean, one.std = torch.randn(2, 1, 4, 8, 8), torch.zeros(2, 1, 4, 8, 8)
    one.condition = {k: v[0] for k, v in model.encode_captions(["a red circle in the upper left"]).items()}
    s = DenoisingScorer("sd", model.schedule, one.condition, caption_dropout=0.0)
    batch = s.collate([Draw(one, 0)])
    start = s.score(net, batch, BOTH)["responses"]
    assert torch.equal(start["policy"].values, start["reference"].values)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_()
    moved = s.score(net, batch, BOTH)["responses"]
    assert torch.equal(moved["reference"].values, start["reference"].values)
    assert not torch.allclose(moved["policy"].values, start["policy"].values)
    assert all(p.requires_grad == ("lora_" in name) for name, p in net.named_parameters())


def test_bad_input_is_refused():
    with pytest.raises(PrefoptError, match=r"caption_dropout 1.5"):
        scorer(caption_dropout=1.5)
    with pytest.raises(PrefoptError, match="reference network is trainable"):
        scorer(reference=Net(1))
    with pytest.raises(PrefoptError, match="no adapter to switch off"), adapters_off(Net(0)):
        pass
    with pytest.raises(PrefoptError, match="conditioned on pooled"):
        DenoisingScorer("sdxl", schedule("epsilon"), {"text": torch.zeros(5, 6)})
    lacking = scorer()
    one = example(3)
    del one.condition["text"]
    with pytest.raises(PrefoptError, match=r"example 3.*text"):
        lacking.collate([Draw(one, 0)])


def test_timesteps_outside_the_schedule_are_refused():
    for t in (-1, T):
        with pytest.raises(PrefoptError, match=r"0 .. 999"):
            schedule("epsilon").level(torch.tensor([3, t]))
    for s in (0.0, 1.0):
        with pytest.raises(PrefoptError, match=r"\(0, 1\)"):
            schedule("flow").level(torch.tensor([s], dtype=torch.float64))


def test_flow_times_follow_their_density_and_shift():
    def times(**options):
        g = torch.Generator().manual_seed(0)
        drawn = Schedule("flow", T, **options)
        return torch.stack([drawn.draw(g) for _ in range(4000)])

    uniform, normal = times(density="uniform"), times(density="logit_normal")
    assert float(uniform.std()) == pytest.approx(1 / math.sqrt(12), abs=0.01)
    assert float(torch.logit(normal).std()) == pytest.approx(1.0, abs=0.04)
    torch.testing.assert_close(times(density="uniform", shift=3.0), 3 * uniform / (1 + 2 * uniform))


def test_schedules_are_read_from_the_models_scheduler():
    import diffusers

    for cls in (diffusers.DDPMScheduler, diffusers.PNDMScheduler, diffusers.EulerDiscreteScheduler):
        made = cls(beta_start=8.5e-4, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=T)
        read = Schedule.of(made)
        assert read.prediction == "epsilon"
        np.testing.assert_allclose(read.alphas_cumprod.numpy(), ABAR, rtol=2e-5)
    flow = Schedule.of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert (flow.prediction, flow.shift, flow.alphas_cumprod) == ("flow", 3.0, None)
    with pytest.raises(PrefoptError, match="prediction_type 'nonsense'"):
        Schedule.of(diffusers.DDIMScheduler(prediction_type="nonsense"))
    with pytest.raises(PrefoptError, match="belongs to flow models"):
        schedule("epsilon").drawn_by("uniform", 1.0)
    with pytest.raises(PrefoptError, match="shift 0"):
        schedule("flow").drawn_by(shift=0.0)


# ------------------------------------------------------------------------------------------------ which times are drawn
def drawn_times(s, n=64):
    return set(s.collate(draws(*range(n))).t.tolist())


def test_turbo_draws_four_times_of_a_schedule_that_ends_in_noise():
    whole = schedule("epsilon")
    turbo = whole.limited("turbo")
    signal = np.sqrt(ABAR)
    wanted = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    np.testing.assert_allclose(turbo.alphas_cumprod.numpy(), wanted, rtol=1e-12, atol=1e-15)
    assert turbo.alphas_cumprod[-1] == 0 and turbo.alphas_cumprod[0] == whole.alphas_cumprod[0]
    s = DenoisingScorer("sd", turbo, {"text": torch.zeros(5, 6)}, reference=frozen_net())
    assert drawn_times(s) == {249, 499, 749, 999}
    assert s.caption_dropout == 0  # unless it is asked for
    batch = s.collate(draws(*range(16)))
    plain = scorer().collate(draws(*range(16)))
    assert batch.t.tolist() == [250 * (t % 4) + 249 for t in plain.t.tolist()]
    last = batch.t == 999
    assert bool(last.any()) and (batch.signal[last] == 0).all() and (batch.sigma[last] == 1).all()
    scores = s.score(Net(0), batch, BOTH)["responses"]["policy"].values
    assert torch.isfinite(scores).all()


def test_the_refiner_draws_the_last_fifth():
    refiner = schedule("v_prediction").limited("refiner")
    assert torch.equal(refiner.alphas_cumprod, schedule("v_prediction").alphas_cumprod)
    s = DenoisingScorer("sd", refiner, {"text": torch.zeros(5, 6)}, reference=frozen_net())
    found = drawn_times(s)
    assert max(found) < 200 and len(found) > 40
    assert s.caption_dropout == 0.2


def test_limited_times_are_those_of_a_thousand():
    assert schedule("flow").limited("all") == schedule("flow")
    for which, words in ((schedule("flow"), "a flow model"), (Schedule("epsilon", 50, torch.rand(50)), "50 timesteps")):
        with pytest.raises(PrefoptError, match=words):
            which.limited("turbo")


def test_flow_models_tell_how_much_of_the_image_is_seen():
    s = scorer("flow")
    batch = s.collate(draws(0, 1, 2))
    torch.testing.assert_close(batch.notes["flow_signal"], (1 - batch.t)[batch.notes["group"]])
    assert "notes:flow_signal" in s.offers() and "notes:flow_signal" not in scorer().offers()
    policy, scheduled = Net(0), {"beta": 2.0, "beta_schedule": "(1-s)^2"}
    scores = s.score(policy, batch, BOTH)["responses"]
    found = get_method("diffusion-dpo", **scheduled)(Responses(scores, batch.notes)).scalar.item()
    total = 0.0
    for group, (w, l) in enumerate(batch.notes["pairs"].tolist()):
        e = {
            (n, r): -card("flow", net, batch, r) / 48 for n, net in (("p", policy), ("r", s.reference)) for r in (w, l)
        }
        margin = (e["r", w] - e["r", l]) - (e["p", w] - e["p", l])
        total += math.log1p(math.exp(-((1 - float(batch.t[group])) ** 2) * margin)) / 3
    assert found == pytest.approx(total, rel=1e-10)


class Wrapped(torch.nn.Module):
    """What stands before a network where several processes train; counts how often it is called."""

    def __init__(self, net):
        super().__init__()
        self.module, self.calls = net, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("way", ["ddim_inversion", "own_path"])
def test_what_several_processes_wait_for_is_called_once(way):
    """Each of them asks its own bare network as often as its own images need; only the step's forward is in common."""
    s, wrapped = scorer(noising=noising_for({f"noising:{way}": {}})), Wrapped(Net(0))
    needs = BOTH | ({"extras:own": {"asked": BOTH}} if way == "own_path" else {})
    batch = s.collate(draws(0, 1))
    found = s.score(wrapped, batch, needs)
    assert wrapped.calls == 1 and len(wrapped.module.rows) > 2
    alone = s.score(wrapped.module, batch, needs)
    assert all(torch.equal(found[k][n].values, x.values) for k, scores in alone.items() for n, x in scores.items())
