"""Pools of candidates at every step, trajectories and verdicts: against the algorithm written out for one prompt."""

import math

import pytest
import torch

from prefopt import PrefoptError
from prefopt.rewards.load import load_reward
from prefopt.rollout.marks import read_marks, write_sheet
from prefopt.rollout.pools import Pools, pools
from prefopt.rollout.trajectories import Trajectories, roll_out, verdict, verdict_scores
from prefopt.scoring.schedules import Schedule
from prefopt.scoring.transitions import grid
from prefopt.worlds.words import sd_scheduler

SHAPE = (1, 2, 2)
SCHEDULE = Schedule.of(sd_scheduler())
ABAR = SCHEDULE.alphas_cumprod


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(x, t):
    return torch.tanh(0.8 * x + t.view(-1, 1, 1, 1) / 700)


def one(x, t):
    return net(x[None], torch.tensor([t]))[0]


def step(x, e, t, to, z):
    """Stochastic DDIM with eta = 1, one sample."""
    a, b = float(ABAR[t]), float(ABAR[to])
    sd = math.sqrt((1 - b) / (1 - a) * (1 - a / b))
    x0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
    return math.sqrt(b) * x0 + math.sqrt(1 - b - sd**2) * e + sd * z


def clean(x, e, t):
    return (x - math.sqrt(1 - float(ABAR[t])) * e) / math.sqrt(float(ABAR[t]))


def judged(x0, time):
    return float(3 * x0.sum() + time / 100)


def by_hand(how, start, noise, picks):
    """One prompt: [(scores, gap, [(state_w, next_w, state_l, next_l)])] of every pool."""
    g = grid(SCHEDULE, how.steps)
    t, to = g.t.tolist(), g.to.tolist()
    x = start
    for i in range(how.divert):
        x = step(x, one(x, t[i]), t[i], to[i], noise[i, 1][0])
    e, found = one(x, t[how.divert]), []
    for v in range(how.verdicts):
        first = how.divert + v * how.span
        paths, ends, said, scores = [], [], [], []
        for j in range(how.pool):
            here, told, path = x, e, []
            for i in range(first, first + how.span):
                told = told if i == first else one(here, t[i])
                there = step(here, told, t[i], to[i], noise[i, how.pool][j])
                path.append((here, there))
                here = there
            paths.append(path)
            ends.append(here)
            if first + how.span < how.steps:
                time = t[first + how.span]
                said.append(one(here, time))
                scores.append(judged(clean(here, said[-1], time), time))
            else:
                said.append(None)
                scores.append(judged(here, 0))
        w, l = scores.index(max(scores)), scores.index(min(scores))
        p = math.exp(scores[w]) / (math.exp(scores[w]) + math.exp(scores[l]))
        found.append((scores, p - (1 - p), [(*a, *b) for a, b in zip(paths[w], paths[l], strict=True)]))
        x, e = ends[w if how.best else picks[v]], said[w if how.best else picks[v]]
    return found


@pytest.mark.parametrize(
    "how",
    [
        Pools(pool=3, divert=2, steps=6),
        Pools(pool=2, divert=1, span=2, steps=7),
        Pools(pool=4, divert=0, steps=4, best=True),
    ],
)
def test_a_roll_out_of_pools_is_the_papers(how):
    n, k = 3, how.pool
    noise = {(i, m): numbers(n * m, *SHAPE, seed=100 * m + i) for i in range(how.steps) for m in (1, k)}
    picks = torch.randint(k, (how.verdicts, n), generator=torch.Generator().manual_seed(1))
    start = numbers(n, *SHAPE, seed=7)
    times, calls = [], []

    def judge(x, time):
        times.append(time)
        return torch.tensor([[judged(c, time) for c in row] for row in x], dtype=torch.float64)

    def answer(m):
        return lambda x, t: calls.append(len(x)) or net(x, t)

    g = grid(SCHEDULE, how.steps)
    found = pools(answer, SCHEDULE, g, how, start, lambda i, m: noise[i, m], judge, lambda v: picks[v])
    assert len(found) == how.verdicts
    ends = [how.divert + (v + 1) * how.span for v in range(how.verdicts)]
    assert times == [int(g.t[i]) if i < how.steps else 0 for i in ends]
    # every prediction is asked once: the judge's call is that of the next pool
    assert calls == [n] * (how.divert + 1) + [n * k] * (how.steps - how.divert - 1)
    for p in range(n):
        own = {(i, m): x[p * m : (p + 1) * m] for (i, m), x in noise.items()}
        for v, (scores, gap, path) in enumerate(by_hand(how, start[p], own, picks[:, p].tolist())):
            assert found[v].scores[p].tolist() == pytest.approx(scores)
            assert float(found[v].gap[p]) == pytest.approx(gap, abs=1e-9)
            for j, (state_w, next_w, state_l, next_l) in enumerate(path):
                torch.testing.assert_close(found[v].states[p, j], torch.stack([state_w, state_l]))
                torch.testing.assert_close(found[v].nexts[p, j], torch.stack([next_w, next_l]))
        if how.span == 1:  # winner and loser share their state
            assert all(torch.equal(f.states[p, 0, 0], f.states[p, 0, 1]) for f in found)


def test_equal_scores_give_no_gap_and_the_first_of_each():
    how = Pools(pool=3, divert=1, steps=3)
    found = pools(
        lambda m: net, SCHEDULE, grid(SCHEDULE, 3), how, numbers(2, *SHAPE), lambda i, m: numbers(2 * m, *SHAPE, seed=i),
        lambda x, time: torch.zeros(2, 3), lambda v: torch.zeros(2, dtype=torch.long),
    )  # fmt: skip
    assert [f.gap.tolist() for f in found] == [[0, 0]] * 2
    assert torch.equal(found[0].nexts[:, 0, 0], found[0].nexts[:, 0, 1])


def test_a_trajectory_is_every_state_of_the_sampler():
    g, start = grid(SCHEDULE, 5), numbers(2, *SHAPE)
    noise = [numbers(2, *SHAPE, seed=i) for i in range(5)]
    states = roll_out(net, SCHEDULE, g, start, noise, 1.0)
    assert states.shape == (2, 6, *SHAPE)
    for p in range(2):
        x = start[p]
        for i, (t, to) in enumerate(zip(g.t.tolist(), g.to.tolist(), strict=True)):
            torch.testing.assert_close(states[p, i], x)
            x = step(x, one(x, t), t, to, noise[i][p])
        torch.testing.assert_close(states[p, 5], x)


def test_verdicts_are_paretos():
    def of(a, b):
        return int(verdict(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)))

    assert [of([2.0], [1.0]), of([1.0], [2.0]), of([1.0], [1.0])] == [1, -1, 0]
    assert of([1.0, 2.0], [1.0, 1.0]) == 1
    assert of([1.0, 2.0], [2.0, 1.0]) == 0
    assert of([0.0, 0.0], [1.0, 1.0]) == -1
    with pytest.raises(PrefoptError, match=r"\[2\] and \[1\] numbers"):
        of([1.0, 2.0], [1.0])
    with pytest.raises(PrefoptError, match="missing"):
        of([math.nan], [1.0])


def test_one_reward_or_several_side_by_side():
    named = load_reward(lambda prompts, images: {"b": [1, 2], "a": [3, 4]})
    assert verdict_scores(named, ["x", "y"], [0, 1]).tolist() == [[3, 1], [4, 2]]
    headed = load_reward(lambda prompts, images: {"b": [1, 2], "reward": [3, 4]})
    assert verdict_scores(headed, ["x", "y"], [0, 1]).tolist() == [[3], [4]]


def test_a_part_of_the_steps_is_at_least_one():
    assert [Trajectories(steps=20, fraction=f).kept for f in (1.0, 0.5, 0.01)] == [20, 10, 1]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("picture,mark\na.png,1\n", "1 pictures have no mark, the first is b.png"),
        ("picture,mark\na.png,1\nb.png,high\n", "line 3, mark: 'high' is no number"),
        ("picture,mark\na.png,1\na.png,2\n", "line 3: 'a.png' stands there twice"),
        ("picture,mark\nc.png,1\n", "'c.png' is no picture"),
        ("picture\na.png\n", "needs the columns picture and mark"),
        ("", "needs the columns"),
    ],
)
def test_sheets_that_cannot_be_read_are_refused(tmp_path, text, match):
    (tmp_path / "marks.csv").write_text(text)
    with pytest.raises(PrefoptError, match=match):
        read_marks(tmp_path, ["a.png", "b.png"])


def test_sheets_are_averaged_and_mark_the_same_objectives(tmp_path):
    write_sheet(tmp_path, ["a.png", "b.png"], ["one, two", "three"])
    assert read_marks(tmp_path, ["a.png", "b.png"]) is None
    (tmp_path / "marks-1.csv").write_text("picture,prompt,x,y\na.png,p,1,2\nb.png,p,3,4\n")
    (tmp_path / "marks-2.csv").write_text("picture,x,y\nb.png,5,6\na.png,3,2\n")
    assert read_marks(tmp_path, ["a.png", "b.png"]).tolist() == [[2, 2], [4, 5]]
    (tmp_path / "marks-3.csv").write_text("picture,x\nb.png,5\na.png,3\n")
    with pytest.raises(PrefoptError, match="marks x, "):
        read_marks(tmp_path, ["a.png", "b.png"])
    (tmp_path / "marks-3.csv").write_text("picture,prompt,x,y\na.png,one, two,1,2\nb.png,three,3,4\n")
    with pytest.raises(PrefoptError, match="line 2: more fields than columns"):
        read_marks(tmp_path, ["a.png", "b.png"])
