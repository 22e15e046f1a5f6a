"""What is found by asking: needs, what is missing, states and parameters, statistics of the step."""

from __future__ import annotations

import pytest
import torch
from from_needs import Made, Owner
from toys import TOYS, toy

from prefopt import (
    Loss,
    Method,
    PrefoptError,
    Responses,
    Scores,
    Update,
    get_method,
    over_pairs,
    over_responses,
    over_tokens,
)
from prefopt.objectives.hyper import Positive

F64 = torch.float64


def test_a_question_asked_twice_keeps_what_it_was_asked_with():
    @toy
    def twice(r: Responses, *, beta: Positive = 1.0) -> Loss:
        for _ in range(2):
            gold = r.extra("gold").policy
        moving = r.policy.sum()
        steady = r.score("policy").sum()  # the policy again, this time as a constant
        trust = r.note("trust", "R", default=lambda: torch.ones_like(steady))
        trust = trust + r.note("trust", "R")  # optional once, required once: required
        return Loss(a=over_tokens(-gold), b=over_responses(beta * trust * (moving - steady)))

    needs = twice().needs()
    assert needs["extras:gold"] == {"grad": True, "asked": {"scores:policy": {"grad": True}}}
    assert needs["scores:policy"] == {"grad": True}
    assert needs["notes:trust"] == {"shape": "R"}
    first_constant = get_method("dpo").needs()["scores:reference"]
    assert first_constant == {}


def test_pairs_are_needed_only_by_those_who_cannot_do_without():
    assert get_method("dpo").missing({"scores:policy", "scores:reference"}) == ["notes:pairs [P 2]"]
    assert get_method("sft").missing({"scores:policy"}) == []
    sided = TOYS["sided"]
    assert sided.missing({"scores:policy", "scores:reference", "notes:label"}) == []
    assert sided.missing({"scores:policy", "scores:reference", "notes:pairs"}) == []
    assert sided.missing({"scores:policy", "scores:reference"}) == ["notes:pairs [P 2]"]

    @toy
    def both(r: Responses, *, beta: Positive = 1.0) -> Loss:
        good, _ = r.sides()
        w, _ = r.pairs()
        return Loss(a=over_responses(beta * good.policy.sum()), b=over_pairs(w.policy.sum()))

    assert both().missing({"scores:policy", "notes:label"}) == ["notes:pairs [P 2]"]


def test_a_state_that_is_never_advanced_is_refused():
    @toy
    def frozen(r: Responses, *, beta: Positive = 1.0) -> Loss:
        return Loss(x=over_tokens(r.policy * beta * r.state("level", lambda: torch.ones((), dtype=F64))))

    with pytest.raises(PrefoptError, match="frozen: the state 'level' is asked for and never advanced"):
        frozen()

    @toy
    def unasked(r: Responses, *, beta: Positive = 1.0) -> Loss:
        u = Update(torch.ones(()), torch.ones(()), lambda old, s, n: s)
        return Loss(updates={"levle": u}, x=over_tokens(r.policy * beta))

    with pytest.raises(PrefoptError, match="unasked: updates has 'levle', which is no state"):
        unasked()

    @toy
    def forgetful(r: Responses, *, base: Method = TOYS["shifted"]) -> Loss:
        return base(r).replace(updates={})

    with pytest.raises(PrefoptError, match="the state 'base/mean' is asked for and never advanced"):
        forgetful()


def test_nested_states_live_apart():
    m = TOYS["reweighed(reweighed(shifted))"]
    g = torch.Generator().manual_seed(1)
    r = Responses.of(-torch.rand(8, 3, generator=g, dtype=F64), pairs="halves")
    made = Made(dict(r.notes), {"responses": dict(r.scores)})
    owner = Owner.of(m, made)
    assert set(owner.states.values) == {"level", "base/level", "base/base/mean"}
    made.scores["responses"]["policy"] = Scores(r.policy.values.clone().requires_grad_(), r.policy.count)
    before = {k: v.clone() for k, v in owner.states.values.items()}
    owner.step([[made]])
    after = owner.states.values
    assert all(not torch.equal(before[k], after[k]) for k in after)
    assert not torch.equal(after["level"], after["base/level"])  # rates differ


def test_state_and_parameters_are_handed_in_and_made_once():
    m = TOYS["judged"]
    batch = Responses.of(-torch.rand(4, 3), -torch.rand(4, 3), features=torch.rand(4, 3))
    with pytest.raises(PrefoptError, match=r"parameters 'net' do not exist yet: responses = method.init"):
        m(batch)
    r = m.init(batch)
    assert m.init(r).modules["net"] is r.modules["net"]


def test_a_step_mean_of_something_late_is_marked():
    assert "of_policy" not in get_method("kto").needs()["statistics:kl"]

    @toy
    def late(r: Responses, *, beta: Positive = 1.0) -> Loss:
        w, l = r.pairs()
        gap = w.log_ratio.sum() - l.log_ratio.sum()
        return Loss(x=over_pairs(beta * (gap - r.step_mean("gap", gap))))

    assert late().needs()["statistics:gap"] == {"of_policy": True}
