"""The step is counted before it is computed: totals, shares, states and metrics over micro-batches and processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from prefopt import (
    Loss,
    PrefoptError,
    Responses,
    Scores,
    Term,
    Update,
    get_method,
    over_pairs,
    over_responses,
    over_tokens,
)
from prefopt.objectives.hyper import Positive
from prefopt.objectives.method import Family, Method
from prefopt.training.engine import Counting, Meter, States, made_up, measures, part, plan, responses

F64 = torch.float64


@dataclass
class Batch:
    count: Tensor
    notes: dict[str, Tensor] = field(default_factory=dict)
    filler: bool = False
    extras: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device):
        return self

    def counts(self) -> dict[str, Tensor]:
        return {"responses": self.count} | self.extras


def batch(lengths: list[int], pairs=None, width: int = 5, **more) -> Batch:
    count = (torch.arange(width) < torch.tensor(lengths)[:, None]).double()
    return Batch(count, {"pairs": torch.tensor(pairs)} if pairs else {}, **more)


def make(fn) -> Method:
    return Family(fn.__name__, fn, "", "")()


def kept(m: Method, batches: list[Batch], **more):
    return plan(m, m.needs(), [(b, {}) for b in batches], {}, {}, **more)


def test_totals_are_counted_without_any_score():
    m = get_method("simpo", sft_weight=0.5)
    batches = [batch([3, 1, 5, 2], [[0, 1], [2, 3]]), batch([4, 1], [[0, 1]])]
    p = kept(m, batches)
    assert {k: v.item() for k, v in p.totals.items()} == {"preference": 3, "nll": 3 + 5 + 4}
    assert [r[0] for r in p.ready] == batches
    assert [{k: v.item() for k, v in r[2].items()} for r in p.ready] == [
        {"preference": 2, "nll": 8},
        {"preference": 1, "nll": 4},
    ]


def test_fillers_weigh_nothing_in_the_count():
    m = get_method("sft")
    p = kept(m, [batch([3, 4], [[0, 1]]), batch([5, 5], [[0, 1]], filler=True)])
    assert p.totals["nll"].item() == 3


def test_an_empty_process_and_an_empty_step():
    assert kept(get_method("sft"), []).totals == {}
    p = kept(get_method("sft"), [batch([3, 4], [[0, 1]], filler=True)])
    loss = get_method("sft")(Responses.of(torch.zeros(2, 5), pairs="halves"))
    assert part(get_method("sft"), loss, p.totals).isfinite()  # nothing counted: nothing divided by zero


def test_totals_are_summed_over_processes_in_one_reduction():
    calls = []

    def reduce(x: Tensor) -> Tensor:
        calls.append(x.clone())
        return 2 * x

    p = kept(get_method("cpo"), [batch([3, 2], [[0, 1]])], reduce=reduce)
    assert len(calls) == 1
    assert {k: v.item() for k, v in p.totals.items()} == {"preference": 2, "nll": 6}


def test_statistics_are_means_over_the_step_not_means_of_means():
    m = get_method("kto")
    g = torch.Generator().manual_seed(0)

    def early(n: int) -> dict[str, dict[str, Scores]]:
        both = [torch.rand(n, 5, generator=g, dtype=F64) for _ in range(2)]
        return {"mismatched": {k: Scores(v, torch.ones(n, 5)) for k, v in zip(("policy", "reference"), both)}}

    batches = []
    for n in (3, 1):
        b = batch([2] * n, extras={"mismatched": torch.ones(n, 5, dtype=F64)})
        b.notes["label"] = torch.ones(n, dtype=torch.bool)
        batches.append((b, early(n)))
    p = plan(m, m.needs(), batches, {}, {})
    each = torch.cat([k["mismatched"]["policy"].sum() - k["mismatched"]["reference"].sum() for _, k in batches])
    torch.testing.assert_close(p.statistics["kl"], each.mean(), rtol=1e-15, atol=0)  # not rounded to float32
    assert p.ready[0][1] is batches[0][1]


def test_made_up_scores_have_the_right_rows_and_leave_what_is_known():
    m = get_method("orpo")
    b = batch([3, 1], [[0, 1]], extras={"prompt": torch.ones(1, 4), "unasked": torch.ones(7, 2)})
    made = made_up(b, m.needs(), {})
    assert {k: set(v) for k, v in made.items()} == {"responses": {"policy"}, "prompt": {"policy"}, "unasked": set()}
    assert made["prompt"]["policy"].count.shape == (1, 4)
    known = Scores(torch.full((1, 4), -9.0), torch.ones(1, 4))
    assert made_up(b, m.needs(), {"prompt": {"policy": known}})["prompt"]["policy"] is known


def test_a_count_that_depends_on_scores_is_refused():
    @make
    def sneaky(r: Responses, *, beta: Positive = 1.0) -> Loss:
        x = r.policy.sum()
        return Loss(x=over_responses(beta * x, x > -1.5))

    b = batch([1, 1, 1])
    p = kept(sneaky, [b])
    r = responses(b, {"responses": {"policy": Scores(torch.full((3, 5), -2.0), b.count)}}, {}, {}, {})
    loss = sneaky(r)
    part(sneaky, loss, p.totals)
    with pytest.raises(PrefoptError, match="sneaky: the term 'x' is averaged over something that depends on scores"):
        part(sneaky, loss, p.totals, p.ready[0][2])


def test_a_term_that_appears_only_with_scores_is_refused():
    @make
    def shy(r: Responses, *, beta: Positive = 1.0) -> Loss:
        terms = {"x": over_tokens(beta * r.policy)}
        if (r.policy.values < -1.5).any():
            terms["y"] = over_responses(r.policy.sum())
        return Loss(**terms)

    b = batch([2, 2])
    p = kept(shy, [b])
    r = responses(b, {"responses": {"policy": Scores(torch.full((2, 5), -2.0), b.count)}}, {}, {}, {})
    with pytest.raises(PrefoptError, match="shy: the term 'y'"):
        part(shy, shy(r), p.totals, p.ready[0][2])


def test_a_step_mean_of_scores_that_come_too_late_is_refused():
    @make
    def late(r: Responses, *, beta: Positive = 1.0) -> Loss:
        h = r.log_ratio.sum()
        return Loss(x=over_responses(beta * (h - r.step_mean("centre", h))))

    assert late(Responses.of(torch.zeros(2, 3), torch.zeros(2, 3))).scalar.item() == 0  # alone, the batch is the step
    with pytest.raises(PrefoptError, match=r"late: the mean 'centre' .* extra without gradient"):
        kept(late, [batch([1, 2])])


def test_counting_runs_under_no_grad_and_hands_back_what_was_known():
    b = batch([2, 2], [[0, 1]])
    seen = Counting(scores={"policy": Scores(torch.ones(2, 5, requires_grad=True), b.count)}, notes=b.notes)
    mean = seen.step_mean("m", torch.tensor([1.0, 4.0]))
    assert mean.item() == 2.5
    assert seen.seen["m"].tolist() == [5.0, 2.0]


def test_the_count_keeps_no_graph_and_hears_every_term():
    graphs = []

    @make
    def either(r: Responses, *, beta: Positive = 1.0) -> Loss:
        graphs.append(torch.is_grad_enabled())
        terms = {"extra": over_responses(r.policy.sum())} if "flag" in r.notes else {}
        return Loss(x=over_tokens(beta * r.policy), **terms)

    needs = either.needs()
    graphs.clear()
    flagged = batch([2, 1])
    flagged.notes["flag"] = torch.ones(())
    p = plan(either, needs, [(flagged, {}), (batch([3, 3]), {})], {}, {})
    assert {k: v.item() for k, v in p.totals.items()} == {"x": 9, "extra": 2}
    assert graphs == [False, False]


def test_parts_add_up_to_the_loss_of_the_whole():
    m = get_method("cpo", cpo_alpha=0.7)
    g = torch.Generator().manual_seed(2)
    lengths, values = [3, 1, 5, 2, 4, 4], -torch.rand(6, 5, generator=g, dtype=F64)
    whole = m(Responses.of(values, mask=batch(lengths).count, pairs=torch.tensor([[0, 1], [2, 3], [4, 5]])))
    parts = []
    cuts = [batch(lengths[:2], [[0, 1]]), batch(lengths[2:], [[0, 1], [2, 3]])]
    p = kept(m, cuts)
    for b, x in zip(cuts, (values[:2], values[2:])):
        parts.append(part(m, m(responses(b, {"responses": {"policy": Scores(x, b.count)}}, {}, {}, {})), p.totals))
    torch.testing.assert_close(torch.stack(parts).sum(), whole.scalar, rtol=1e-14, atol=0)


# ---- state


def test_states_add_up_and_advance_once():
    states = States({"a": torch.tensor(1.0), "b": torch.tensor([1.0, 2.0])})
    calls = []

    def mean(old: Tensor, total: Tensor, n: Tensor) -> Tensor:
        calls.append(old.clone())
        return 0.5 * old + 0.5 * total / n

    for x in (2.0, 6.0):
        states.collect({"a": Update(torch.tensor(x, requires_grad=True), torch.tensor(1.0), mean)})
    states.collect({"a": Update(torch.tensor(100.0), torch.tensor(1.0), mean)}, weight=0.0)  # a filler
    assert states.values["a"].item() == 1.0  # read before the step
    states.advance()
    assert states.values["a"].item() == 0.5 + 0.5 * 4.0
    assert not states.values["a"].requires_grad
    assert len(calls) == 1
    assert states.values["b"].tolist() == [1.0, 2.0]
    states.advance()
    assert len(calls) == 1  # nothing is pending


def test_states_are_summed_over_processes_in_one_order():
    states = States({"z": torch.tensor(0.0), "a": torch.tensor(0.0)})
    reduced = []
    keep = lambda old, total, n: total / n
    states.collect({"z": Update(torch.tensor(1.0), torch.tensor(2.0), keep)})
    states.collect({"a": Update(torch.tensor(3.0), torch.tensor(4.0), keep)})
    states.advance(lambda x: reduced.append(x.item()) or 2 * x)
    assert reduced == [3.0, 4.0, 1.0, 2.0]  # sorted by name on every process
    assert states.values["a"].item() == 0.75


# ---- metrics


def test_metrics_are_means_over_everything_added():
    meter = Meter()
    meter.add({"x": torch.tensor([1.0, 2.0, 3.0]), "y": Term(torch.tensor([4.0, 4.0]), torch.tensor(4.0), "tokens")})
    meter.add({"x": torch.tensor([10.0]), "s": torch.tensor(7.0), "none": torch.zeros(0)})
    meter.add({"x": torch.tensor([999.0])}, weight=0.0)
    assert meter.flush() == {"x": 4.0, "y": 2.0, "s": 7.0}
    assert meter.flush() == {}


def test_metrics_are_reduced_once_over_processes():
    meter, calls = Meter(), []
    meter.add({"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([3.0])})
    other = torch.tensor([[5.0, 1.0], [6.0, 2.0]])  # another process: a, b as (sum, number)
    assert meter.flush(lambda x: calls.append(1) or x + other) == {"a": 4.0, "b": 9.0 / 4}
    assert calls == [1]


def test_metrics_of_unpaired_sides_do_not_depend_on_their_numbers():
    """As many good as bad rows by chance are still no pairs: the same names on every process and micro-batch."""
    names = set()
    for good in (1, 2, 3):
        r = Responses.of(torch.zeros(4, 2), label=torch.arange(4) < good)
        loss = Loss(rewards=(torch.ones(good), torch.zeros(4 - good)), x=over_responses(torch.ones(4)))
        names.add(frozenset(measures(r, loss)))
    assert names == {frozenset({"rewards/chosen", "rewards/rejected"})}


def test_metrics_of_labelled_rows_weigh_each_side_by_its_number():
    meter = Meter()
    for label, rewards in (([True, False, False], [1.0, 2.0, 4.0]), ([True, True, True], [5.0, 6.0, 7.0])):
        r = Responses.of(torch.zeros(3, 2), label=torch.tensor(label))
        meter.add(measures(r, Loss(rewards=torch.tensor(rewards), x=over_responses(torch.ones(3)))))
    assert meter.flush() == {"rewards/chosen": 19 / 4, "rewards/rejected": 3.0}


def test_metrics_of_rewards_per_response_follow_the_pairs():
    r = Responses.of(torch.zeros(3, 2), pairs=torch.tensor([[2, 0], [2, 1], [1, 1]]))  # won, lost, a tie
    loss = Loss(
        rewards=torch.tensor([1.0, 5.0, 3.0], requires_grad=True),
        metrics={"own": torch.tensor([2.0])},
        health={"dead": torch.tensor(1.0)},
        x=over_pairs(torch.ones(3)),
    )
    meter = Meter()
    found = measures(r, loss)
    meter.add(found)
    assert meter.flush() == {
        "own": 2.0,
        "health/dead": 1.0,
        "logps/chosen": 0.0,
        "logps/rejected": 0.0,
        "lengths/chosen": 2.0,
        "lengths/rejected": 2.0,
        "rewards/chosen": pytest.approx(11 / 3),
        "rewards/rejected": pytest.approx(11 / 3),
        "rewards/margins": 0.0,
        "rewards/accuracies": pytest.approx(1 / 3),
    }
