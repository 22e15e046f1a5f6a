"""Truncated roll-outs against the paper's equations written out sample by sample in plain Python (2505.11777)."""

import math

import numpy as np
import pytest
import torch

from prefopt import Responses, get_method
from prefopt.errors import PrefoptError
from prefopt.scoring.noising.truncated_rollout import TruncatedRollout, noised_again, roll_out
from prefopt.scoring.schedules import Schedule

from .test_denoising import ABAR, T, draws, schedule, scorer

EPS = {
    "epsilon": lambda a, s, x, y: y,
    "v_prediction": lambda a, s, x, y: s * x + a * y,
    "sample": lambda a, s, x, y: (x - a * y) / s,
}


class Bent(torch.nn.Module):
    """A denoiser that is not linear, small enough to be written out again."""

    def __init__(self, seed: int):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.factor = torch.nn.Parameter(torch.randn(3, 1, 1, generator=g, dtype=torch.float64))

    def forward(self, x, time, encoder_hidden_states, return_dict):
        bias = encoder_hidden_states.mean((1, 2)) + time.to(x.dtype) / 1000
        return (torch.tanh(x * self.factor) + bias[:, None, None, None],)


def answer(factor, x, t, caption):
    return np.tanh(x * factor) + caption + t / 1000


def by_hand(prediction, way, student, teacher, z0, eps, z, place, moves, later, caption):
    """The loss of one sample, summed over its elements."""
    n, stride, w = way.grid, T // way.grid, way.guidance
    times = [(j + 1) * stride - 1 for j in range(n)]
    t, j, frozen = times[place], place, False
    x = math.sqrt(ABAR[t]) * z0 + math.sqrt(1 - ABAR[t]) * eps
    for i in range(moves + 1):
        a, s = math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[t])
        conditional, empty = (EPS[prediction](a, s, x, answer(teacher, x, t, c)) for c in (caption, 0.0))
        e = conditional + w * (conditional - empty)
        clean = (x - s * e) / a
        if i == moves or frozen:
            continue
        before = ABAR[times[j - 1]] if j > 0 else ABAR[0]
        x = math.sqrt(before) * clean + math.sqrt(1 - before) * e
        frozen, j, t = j == 0, max(j - 1, 0), max(t - stride, 0)
    now, then = math.sqrt(1 - ABAR[t]) / math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[later]) / math.sqrt(ABAR[later])
    a, s = math.sqrt(ABAR[later]), math.sqrt(1 - ABAR[later])
    seen = a * (x / math.sqrt(ABAR[t]) + math.sqrt(then**2 - now**2) * z)
    estimate = (seen - s * EPS[prediction](a, s, seen, answer(student, seen, later, caption))) / a
    gap = estimate - clean
    if way.huber_c is None:
        return (gap**2).sum()
    return (np.sqrt(gap**2 + way.huber_c**2) - way.huber_c).sum()


WAYS = {
    "as published": TruncatedRollout(),
    "for SDXL": TruncatedRollout(guidance=-5.0, huber_c=None),
    "with guidance": TruncatedRollout(guidance=1.5, evaluations=3, grid=10),
    "without": TruncatedRollout(guidance=0.0, evaluations=1),
    "from noise": TruncatedRollout(from_noise=True, random_moves=True),
}


@pytest.mark.parametrize("prediction", list(EPS))
@pytest.mark.parametrize("name", list(WAYS))
def test_values_and_gradients_are_the_papers(prediction, name):
    way, student, teacher = WAYS[name], Bent(0), Bent(1)
    s = scorer(prediction, noising=way, teacher=teacher, reference=None)
    batch = s.collate(draws(*range(6), k=1))
    scored = s.score(student, batch, {"scores:policy": {}})["responses"]["policy"]
    assert (scored.count == 48).all()

    def loss(factor):
        total = 0.0
        for r in range(6):
            drawn = {n: x[r] for n, x in batch.drawn.items()}
            caption = batch.condition["text"][r].double().mean().item()
            total += by_hand(
                prediction, way, factor, teacher.factor.detach().numpy(), batch.latents[r].double().numpy(),
                batch.noise[r].double().numpy(), drawn["noise_again"].double().numpy(), int(drawn["place"]),
                int(drawn["moves"]), int(drawn["later"]), caption,
            )  # fmt: skip
        return total / (6 * 48)

    found = get_method("self-npo")(Responses({"policy": scored}, batch.notes)).scalar
    factor = student.factor.detach().numpy()
    assert found.item() == pytest.approx(loss(factor), rel=1e-8)
    found.backward()
    for channel in range(3):
        step = np.zeros_like(factor)
        step[channel] = 1e-6
        slope = (loss(factor + step) - loss(factor - step)) / 2e-6
        assert student.factor.grad[channel].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert teacher.factor.grad is None


def test_renoising_agrees_with_the_forward_process():
    """Noised to t and then on to u: the moments are those of noising to u at once."""
    g = torch.Generator().manual_seed(0)
    abar = torch.from_numpy(ABAR)
    clean = torch.full((200_000, 1, 1, 1), 1.7, dtype=torch.float64)
    t, u = torch.full((len(clean),), 319), torch.full((len(clean),), 640)
    x = abar[319].sqrt() * clean + (1 - abar[319]).sqrt() * torch.randn(clean.shape, generator=g, dtype=torch.float64)
    again = noised_again(x, t, u, torch.randn(clean.shape, generator=g, dtype=torch.float64), abar)
    assert again.mean().item() == pytest.approx(1.7 * math.sqrt(ABAR[640]), abs=0.01)
    assert again.var().item() == pytest.approx(1 - ABAR[640], abs=0.01)


def test_where_it_stops_and_what_is_left_to_train():
    many = {name: scorer(noising=way, teacher=Bent(1), reference=None).collate(draws(*range(300), k=1)).drawn
            for name, way in WAYS.items()}  # fmt: skip
    published = many["as published"]
    assert set(published["place"].tolist()) == set(range(25))
    stop = ((published["place"] - 5 + 1) * 40 - 1).clamp(min=0)
    assert bool((published["later"] > stop).all() & (published["later"] < T).all())
    assert published["later"][stop == 0].min() < 100
    assert many["without"]["place"].max() == 23  # from the last time nothing later would be left
    assert set(many["from noise"]["place"].tolist()) == {24}
    assert many["from noise"]["moves"].min() == 5 and many["from noise"]["moves"].max() == 24
    assert many["from noise"]["later"].min() < 300
    fixed = scorer(noising=TruncatedRollout(from_noise=True), teacher=Bent(1), reference=None)
    assert fixed.collate(draws(*range(100), k=1)).drawn["later"].min() >= 800


def counted(calls):
    def estimates(x, t, rows):
        calls.append((t.tolist(), rows.tolist()))
        return x + 1, x * 0

    return estimates


def test_a_sample_does_not_depend_on_its_company():
    abar, start = torch.from_numpy(ABAR), torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    place, moves = torch.tensor([1, 20, 7]), torch.tensor([5, 5, 2])
    calls = []
    together = roll_out(counted(calls), start, place, moves, abar, 25)
    for r in range(3):
        alone = roll_out(counted([]), start[r : r + 1], place[r : r + 1], moves[r : r + 1], abar, 25)
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[r])
    assert together.t.tolist() == [0, 639, 239]
    assert [len(rows) for _, rows in calls] == [3, 3, 3, 1, 1, 1]  # who has stopped is not computed again


def test_the_official_codes_early_end():
    abar, start = torch.from_numpy(ABAR), torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    place, moves = torch.tensor([0, 1]), torch.tensor([5, 5])
    calls = []
    early = roll_out(counted(calls), start, place, moves, abar, 25, leave_early=True)
    assert [t for t, _ in calls] == [[39, 79], [0, 39]]
    assert early.t.tolist() == [0, 0]
    calls.clear()
    roll_out(counted(calls), start, place, moves, abar, 25)
    assert [t for t, _ in calls] == [[39, 79], [0, 39], [0]]


def test_only_what_has_weight_is_computed():
    for guidance, passes in {-1.0: {True}, 0.0: {False}, -5.0: {True, False}}.items():
        asked = []

        def ask(noisy, time, *, rows=None, empty=False, asked=asked):
            asked.append(empty)
            return noisy

        way = TruncatedRollout(guidance=guidance)
        s = scorer(noising=way, teacher=Bent(1), reference=None)
        batch = s.collate(draws(0, 1, k=1))
        way(s._inputs(batch, torch.float64), s.schedule, ask)
        assert set(asked) == passes


def test_what_cannot_be_rolled_out_is_refused():
    with pytest.raises(PrefoptError, match="grid of 30 times must divide the model's 1000"):
        TruncatedRollout(grid=30).check(schedule("epsilon"))
    with pytest.raises(PrefoptError, match="grid of 2000 times"):
        TruncatedRollout(grid=2000).check(schedule("epsilon"))
    with pytest.raises(PrefoptError, match="flow model"):
        TruncatedRollout().check(schedule("flow"))
    to_the_end = Schedule("epsilon", T, torch.from_numpy(np.append(ABAR[:-1], 0.0)))
    with pytest.raises(PrefoptError, match="ends in pure noise"):
        TruncatedRollout().check(to_the_end)
    with pytest.raises(PrefoptError, match="a teacher is needed"):
        scorer(noising=TruncatedRollout(), reference=None)
    for wrong in ({"evaluations": 0}, {"ema": 1.0}, {"huber_c": 0.0}, {"random_moves": False}, {"grid": 1},
                  {"loss_type": "l2", "huber_c": 0.1}, {"start": "noise", "evaluations": 1},
                  {"start": "noise", "evaluations": 26}):  # fmt: skip
        with pytest.raises(PrefoptError):
            get_method("self-npo", **wrong)
