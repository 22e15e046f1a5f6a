"""The nouns: scores, responses, losses, methods; and that each refuses what it cannot do."""

from __future__ import annotations

import pytest
import torch
from toys import TOYS, reweighed, toy

from prefopt import (
    Loss,
    PrefoptError,
    Responses,
    Scores,
    annotated,
    compare,
    get_method,
    method,
    over_groups,
    over_pairs,
    over_responses,
    over_tokens,
    prefer,
    require,
    swap,
)
from prefopt.objectives.hyper import Fraction, Positive
from prefopt.objectives.words import bradley_terry, lambda_weight

F64 = torch.float64


def batch(rows: int = 4, width: int = 3, **more) -> Responses:
    g = torch.Generator().manual_seed(0)
    p, q = (-torch.rand(rows, width, generator=g, dtype=F64) for _ in range(2))
    return Responses.of(p, q, **({"pairs": "halves"} | more))


# ---- scores


def test_scores_drop_junk_once_and_for_all():
    values = torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), 3.0, 4.0]], requires_grad=True)
    s = Scores(values, torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 2.0]]))
    assert s.sum().tolist() == [3.0, 7.0]
    assert s.mean().tolist() == [1.5, 7 / 4]
    assert s.length.tolist() == [2.0, 4.0]
    assert s.each_mean().tolist() == [[1.0, 0.0, 2.0], [0.0, 1.5, 2.0]]
    assert s.position.tolist() == [[1, 1, 2], [0, 1, 2]]
    (s - s * 2 + s).sum().sum().backward()
    assert values.grad.isfinite().all()


def test_scores_where_segments_and_arithmetic():
    s = Scores(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1.0, 1.0, 1.0, 3.0]]))
    assert s.where(torch.tensor([[True, False, True, False]])).mean().tolist() == [2.5]
    parts = s.segments(torch.tensor([[1, 1, -1, 0]]), 3)
    assert parts.values.tolist() == [[8.0, 3.0, 0.0]]
    assert parts.count.tolist() == [[3.0, 2.0, 0.0]]
    assert (-(2 * s) + s).sum().tolist() == [-15.0]
    for combine in (lambda: s - parts, lambda: s + parts):
        with pytest.raises(PrefoptError, match=r"\[1, 4\] and \[1, 3\] do not stand at the same"):
            combine()


def test_half_precision_is_lifted_before_it_counts():
    n = 3001  # not a number of bfloat16
    s = Scores(torch.full((1, n), -0.01, dtype=torch.bfloat16), torch.ones(1, n, dtype=torch.bfloat16))
    assert s.length.item() == n
    r = Responses.of(torch.full((1, n), -30.0, dtype=torch.float16))
    assert r.policy.sum().item() == -30.0 * n  # beyond float16
    wide = Responses.of(torch.ones(2, 1, dtype=torch.bfloat16), mask=torch.full((2, 1), 16385.0))
    assert wide.policy.length.tolist() == [16385.0, 16385.0]


# ---- responses


def test_pairs_may_be_plain_numbers():
    w, l = batch(pairs=[(0, 3), (1, 2)]).pairs()
    r = batch()
    assert torch.equal(w.policy.sum(), r.policy.sum()[[0, 1]]) and torch.equal(l.policy.sum(), r.policy.sum()[[3, 2]])


def test_junk_behind_the_mask_may_be_no_number():
    values, mask = torch.tensor([[1.0, float("nan")], [2.0, 3.0]]), torch.tensor([[1, 0], [1, 1]])
    assert Responses.of(values, mask=mask).policy.sum().tolist() == [1.0, 5.0]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: batch(mask=torch.tensor([[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]])), "response 1 has no position"),
        (lambda: batch(mask=torch.ones(4, 2)), r"are \[4, 3\], the mask is \[4, 2\]"),
        (lambda: batch(pairs="half"), "give .P, 2. row numbers, or 'halves'"),
        (lambda: batch(rows=5), "even number of responses, there are 5"),
        (lambda: Responses.of(pairs="halves"), "'halves' beside scores"),
        (
            lambda: Responses.of(torch.tensor([[0.0, 1.0], [2.0, float("nan")]])),
            r"response 1 has one that is not a number",
        ),
        (lambda: Responses.of(torch.zeros(2, 3, 4)), r"have shape \[2, 3, 4\]"),
        (lambda: get_method("dpo")(batch(pairs=torch.tensor([[0, 4]]))), "values 0..4, expected 0..3"),
        (lambda: get_method("dpo")(batch(pairs=torch.tensor([0, 1]))), r"shape \[2\], expected \[P 2\] = \[2, 2\]"),
        (lambda: get_method("dpo")(Responses.of(pairs=torch.tensor([[0, 1]]))), "no scores"),
        (lambda: get_method("kto")(Responses.of(label=torch.tensor([True]))), "no scores"),
        (lambda: get_method("dpo")(Responses.of(torch.zeros(2, 3), pairs="halves")), "Give `reference_logps`"),
        (
            lambda: get_method("dpo")(Responses.of(torch.zeros(2, 3), torch.zeros(2), pairs="halves")),
            "do not stand at the same",
        ),
        (lambda: get_method("kto")(batch(label=torch.tensor([1, 0, 1, 0]))), "true or false"),
        (lambda: get_method("kto")(batch(label=torch.ones(4, dtype=torch.bool))), "extra responses 'mismatched'"),
        (
            lambda: annotated(get_method("sft"), ["weight"]).needs(),
            "terms .* are nll .over tokens",
        ),
        (
            lambda: annotated(get_method("dpo"), ["weight"])(batch(weight=torch.ones(3))),
            r"'weight' has shape \[3\], expected \[P\] = \[2\]",
        ),
        (lambda: annotated(get_method("dpo"), ["weigth"]), "data.use: unknown annotation 'weigth'"),
        (lambda: annotated(get_method("kto"), ["margin"]).needs(), "no comparison to change"),
    ],
)
def test_refusals(made, says):
    with pytest.raises(PrefoptError, match=says):
        made()


def test_an_annotation_per_pair_without_pairs_is_refused_by_name():
    with pytest.raises(PrefoptError, match="needs the annotation 'pairs'"):
        annotated(get_method("dpo"), ["margin"])(
            Responses.of(torch.zeros(2, 3), torch.zeros(2, 3), margin=torch.ones(1))
        )


def test_views_index_what_belongs_to_rows_and_leave_what_belongs_to_pairs():
    r = batch(pairs=torch.tensor([[3, 0], [1, 2], [3, 1]]), a=torch.arange(4.0), b=torch.arange(3.0))
    w, l = r.pairs()
    assert w.note("a", "R").tolist() == [3.0, 1.0, 3.0]
    assert l.note("a", "R").tolist() == [0.0, 2.0, 1.0]
    assert w.note("b", "P").tolist() == [0.0, 1.0, 2.0]
    assert torch.equal(w.policy.values, r.policy.values[[3, 1, 3]])
    assert torch.equal(r.swapped().pairs()[0].policy.values, l.policy.values)
    assert r.chosen().rows.tolist() == [3, 1, 3]


def test_everything_is_a_constant_unless_asked_with_gradient():
    x = torch.rand(4, 3, dtype=F64, requires_grad=True)
    r = Responses.of(x, x, pairs="halves", features=x, old_logps=x, extras={"gold": Responses.of(x, x)})
    for of in (r, r.pairs()[0], r.extra("gold")):
        assert of.policy.values.requires_grad
        assert not of.reference.values.requires_grad
        assert not of.score("policy").values.requires_grad
    assert r.score("old", grad=True).values.requires_grad
    assert not r.note("features", "R T").requires_grad
    assert r.note("features", "R T", grad=True).requires_grad
    assert torch.equal(torch.autograd.grad(r.log_ratio.sum().sum(), x)[0], torch.ones(4, 3))


def test_what_is_handed_in_is_what_is_read():
    r = batch()
    level = {"mean": torch.tensor(3.0, dtype=F64)}
    gap = 0.5 * (r.policy.sum()[:2] - r.policy.sum()[2:])
    torch.testing.assert_close(TOYS["shifted"](r.replace(states=level)).scalar, bradley_terry(gap - 3.0).mean())
    label = torch.tensor([True, False, True, True])
    x = batch(label=label, extras={"mismatched": batch(pairs=None)})
    at = [get_method("kto")(x.replace(statistics={"kl": torch.tensor(z, dtype=F64)})) for z in (0.0, 7.0, -7.0)]
    assert [loss.metrics["kl"].item() for loss in at] == [0.0, 7.0, 0.0]  # clamped after the mean of the step
    assert at[0].scalar.item() == at[2].scalar.item() != at[1].scalar.item()


def test_ragged_lists():
    r = batch(rows=6, group=torch.tensor([0, 0, 0, 1, 1, 2]))
    v = torch.tensor([1.0, 3.0, 3.0, 0.5, 0.7, 9.0])
    assert r.rank(v).tolist() == [3, 1, 2, 2, 1, 1]
    assert r.beats(v).nonzero().tolist() == [[1, 0], [2, 0], [4, 3]]
    term = over_groups(torch.where(r.same_group(), 1.0, torch.nan), r)  # junk between lists is not read
    assert term.values.tolist() == [9.0, 0.0, 0.0, 4.0, 0.0, 1.0]
    assert term.count.item() == 3
    gap = lambda_weight(v, r.rank(v))
    want = abs(2**1.0 - 2**3.0) * abs(1 / torch.log(torch.tensor(4.0)) - 1 / torch.log(torch.tensor(2.0)))
    assert gap[0, 1].item() == pytest.approx(want.item())
    assert torch.equal(gap, gap.T)
    assert not lambda_weight(v.clone().requires_grad_(), r.rank(v)).requires_grad


def test_sides_of_labelled_rows_and_of_pairs():
    label = torch.tensor([True, False, False, True])
    r = batch(pairs=None, label=label)
    good, bad = r.sides()
    assert (good.rows.tolist(), bad.rows.tolist()) == ([0, 3], [1, 2])
    assert batch(label=label).sides()[0].rows.tolist() == [0, 1]  # pairs speak first


# ---- losses


def test_a_pair_left_out_counts_nowhere_and_may_be_infinite():
    keep = torch.tensor([True, False, True])
    x = torch.tensor([1.0, float("inf"), 2.0], requires_grad=True)
    t = over_pairs(x, keep)
    assert t.mean().item() == 1.5
    assert torch.autograd.grad(t.mean(), x)[0].tolist() == [0.5, 0.0, 0.5]
    assert over_responses(x, ~keep & keep).mean().item() == 0.0  # nothing left: no NaN
    again = Loss(a=compare(torch.tensor([0.0, float("nan"), 1.0]), bradley_terry, keep)).recompared(shift=0.5)
    assert again.scalar.isfinite()
    assert again.terms["a"].count.item() == 2


def test_terms_that_are_no_terms_are_refused():
    with pytest.raises(PrefoptError, match="the loss term 'x' is a Tensor: say what it is averaged over"):
        Loss(x=torch.ones(3))

    @toy
    def bare(r: Responses, *, beta: Positive = 1.0):
        return r.policy.sum().mean() * beta

    with pytest.raises(PrefoptError, match="bare: must return a Loss"):
        bare()

    @toy
    def empty(r: Responses, *, beta: Positive = 1.0):
        return Loss(rewards=r.policy.sum())

    with pytest.raises(PrefoptError, match="empty: must return a Loss with at least one term"):
        empty()


def test_terms_join_scale_and_report():
    r = batch()
    a, b = over_tokens(r.policy), over_tokens(r.policy[torch.tensor([0])])
    joined = a + b
    assert joined.count.item() == 15
    torch.testing.assert_close(joined.mean(), (r.policy.values.sum() + r.policy.values[0].sum()) / 15)
    torch.testing.assert_close((2.0 * a).mean(), 2 * a.mean())
    loss = prefer(torch.ones(2), torch.zeros(2), margin=0.25, nll=0.5 * a)
    torch.testing.assert_close(loss.scalar, torch.nn.functional.softplus(torch.tensor(-0.75)).double() + 0.5 * a.mean())
    assert loss.others("pairs").keys() == {"nll"}
    both = Loss(a=over_pairs(torch.tensor([1.0, 2.0])), b=over_pairs(torch.tensor([10.0, 20.0])), c=a)
    assert both.per("pairs").tolist() == [11.0, 22.0]
    with pytest.raises(PrefoptError, match=r"needs a loss over groups; the terms .* preference .over pairs., nll"):
        loss.per("groups")


def test_recomparing_keeps_weights_scales_and_shifts():
    u = torch.tensor([0.3, -1.0])
    weighted = Loss(p=0.5 * compare(u, bradley_terry)).weighted(torch.tensor([2.0, 4.0]))
    want = bradley_terry(3 * u - 1) * torch.tensor([1.0, 2.0])
    assert torch.allclose(weighted.recompared(scale=3.0, shift=1.0).terms["p"].values, want)
    hinged = weighted.recompared(lambda x: (1 - x).clamp(min=0)).terms["p"].values
    assert torch.allclose(hinged, (1 - u) * torch.tensor([1.0, 2.0]))
    soft = annotated(get_method("dpo"), ["weight", "label_probability"])
    p, w = torch.tensor([0.9, 0.4], dtype=F64), torch.tensor([2.0, 3.0], dtype=F64)
    r = batch(label_probability=p, weight=w)
    h = 0.1 * r.log_ratio.sum()
    d = h[:2] - h[2:]
    torch.testing.assert_close(soft(r).scalar, (w * (p * bradley_terry(d) + (1 - p) * bradley_terry(-d))).mean())


def test_weights_of_a_pointwise_method_are_per_response():
    w = torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=F64)
    label = torch.tensor([True, False, True, True])
    r = batch(label=label, weight=w, extras={"mismatched": batch(pairs=None)})
    weighted, bare = annotated(get_method("kto"), ["weight"])(r), get_method("kto")(r)
    torch.testing.assert_close(weighted.scalar, (w * bare.terms["value"].values).sum() / 4)


# ---- methods


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(PrefoptError, match="no method 'simpp'; did you mean 'simpo'"):
        get_method("simpp")
    with pytest.raises(PrefoptError, match=r"There are .*dpo.*simpo"):
        get_method("zzzzzz")


@pytest.mark.parametrize(
    ("name", "hyper", "says"),
    [
        ("dpo", {"label_smoothing": 0.5}, r"dpo.label_smoothing = 0.5: must be in \[0, 0.5\)"),
        ("dpo", {"label_smoothing": -0.1}, r"must be in \[0, 0.5\)"),
        ("dpo", {"beta": 0}, r"dpo.beta = 0: must be in \(0, inf\)"),
        ("ipo", {"beta": -1.0}, r"must be in \(0, inf\)"),
        ("kto", {"desirable_weight": 0.0}, r"must be in \(0, inf\)"),
        ("slic", {"delta": -1.0}, r"must be in \[0, inf\)"),
        ("simpo", {"gamma_beta_ratio": -0.1}, r"must be in \[0, inf\)"),
        ("simpo", {"sft_weight": -1}, r"must be in \[0, inf\)"),
        ("diffusion-dpo", {"half_factor": 0}, r"must be in \(0, inf\)"),
        ("dpo", {"beta": "0.1"}, "must be a number"),
        ("dpo", {"beta": True}, "must be a number"),
        ("dpo", {"beta": float("inf")}, r"must be in \(0, inf\)"),
        ("slic", {"reg": float("nan")}, r"must be in \[0, inf\)"),
        ("dpo", {"loss_type": "sigmod"}, "must be one of sigmoid, robust, hinge"),
        ("bt-reward", {"use_margin": 1}, "must be true or false"),
        ("dpo", {"label_smoothing": 0.1, "loss_type": "hinge"}, "dpo.label_smoothing = 0.1 has no effect"),
        ("simpo", {"label_smoothing": 0.1, "loss_type": "hinge"}, "simpo.label_smoothing = 0.1 has no effect"),
        ("diffusion-dpo", {"half_factor": 1.0, "loss_type": "hinge"}, "diffusion-dpo.half_factor = 1.0 has no effect"),
        ("dpo", {"loss_type": "robust"}, "dpo.loss_type = 'robust' has no effect with the other settings"),
        ("ipo", {"label_smoothing": 0.1}, "ipo has no hyperparameter 'label_smoothing'"),
        ("kto", {"label_smoothing": 0.1}, "kto has no hyperparameter 'label_smoothing'"),
        ("orpo", {"label_smoothing": 0.1}, "orpo has no hyperparameter 'label_smoothing'"),
        ("sft", {"beta": 0.1}, "sft has no hyperparameter 'beta'; it has none"),
    ],
)
def test_hyperparameters_outside_their_type_or_without_effect(name, hyper, says):
    with pytest.raises(PrefoptError, match=says):
        get_method(name, **hyper)


def test_a_default_given_in_so_many_words_is_no_offence():
    get_method("dpo", loss_type="hinge", label_smoothing=0.0)
    get_method("dpo", loss_type="sigmoid", beta=0.1)
    assert reweighed(base="dpo") == TOYS["reweighed(dpo)"]  # a wrapper given its own default


@pytest.mark.parametrize("base", [3, None, {"bta": 0.1}, "dop", {"name": "dpo", "beta": -1.0}])
def test_a_wrapper_refuses_a_base_that_is_no_method(base):
    with pytest.raises(PrefoptError):
        reweighed(base=base)


def test_a_wrapper_refuses_a_base_that_it_cannot_wrap():
    with pytest.raises(PrefoptError, match=r"reweighed: .*needs a loss over pairs; the terms .* nll .over tokens"):
        reweighed(base="sft")
    with pytest.raises(PrefoptError, match="no comparison"):
        swap(get_method("sft"), compare=bradley_terry).needs()


def test_errors_of_a_wrapped_method_name_both():
    with pytest.raises(PrefoptError, match=r"^reweighed: dpo: needs scores 'reference'"):
        reweighed()(Responses.of(torch.zeros(2, 3), pairs="halves"))


def test_rules_between_keys_bite_when_the_method_is_made():
    @toy
    def ruled(r: Responses, *, low: Fraction = 0.2, high: Fraction = 0.8) -> Loss:
        require(low < high, f"low = {low:g} must be below high = {high:g}")
        return Loss(x=over_tokens(r.policy * (high - low)))

    assert ruled(low=0.5).hyper["low"] == 0.5
    with pytest.raises(PrefoptError, match=r"ruled: low = 0.9 must be below high = 0.8"):
        ruled(low=0.9)


def test_a_key_may_act_through_the_value_or_the_gradient_alone():
    @toy
    def graded(r: Responses, *, slope: Positive = 1.0, level: Positive = 1.0, unused: Positive = 1.0) -> Loss:
        still = r.score("policy").sum()  # the constant is asked first
        return Loss(x=over_responses(slope * (r.policy.sum() - still) + level))

    graded(slope=2.0)
    graded(level=2.0)
    with pytest.raises(PrefoptError, match=r"graded.unused = 2.0 has no effect"):
        graded(unused=2.0)


def test_two_methods_of_one_name_are_refused():
    with pytest.raises(PrefoptError, match="two methods are called 'dpo'"):

        @method("dpo")
        def other(r: Responses) -> Loss:
            return Loss(x=over_tokens(r.policy))
