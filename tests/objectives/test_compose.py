"""Links, length rules, token weights and comparisons across methods: what they are, where they reach, what is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from from_needs import Made, Owner, collate, examples, seen
from torch import Tensor

from prefopt import Method, PrefoptError, Responses, annotated, get_method, swap
from prefopt.methods import load_all
from prefopt.objectives.compose import joined, takes
from prefopt.objectives.method import METHODS, family
from prefopt.objectives.shape import KINDS, own
from prefopt.objectives.words import hinge

sys.path.append(str(Path(__file__).parents[1] / "methods"))
from by_hand import average, ratios, total
from ragged import Ragged, ragged

load_all()


def same(a: Method, b: Method, seed: int = 0) -> None:
    r = ragged(seed).responses()
    x, y = a(r).scalar, b(r).scalar
    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
    for g, h in zip(*(torch.autograd.grad(v, r.scores["policy"].values) for v in (x, y)), strict=True):
        torch.testing.assert_close(g, h, rtol=1e-11, atol=1e-12)


LD = {"name": "ld", "alpha": 0.3}
DECAY = {"name": "decay", "gamma": 0.8}


@pytest.mark.parametrize(
    ("composed", "known"),
    [
        (("dpo", {"beta": 0.4, "link": "jsd"}), ("f-dpo", {"beta": 0.4, "divergence": "jsd"})),
        (
            ("dpo", {"link": {"name": "alpha_divergence", "alpha": 0.3}}),
            ("f-dpo", {"divergence": "alpha_divergence", "alpha": 0.3}),
        ),
        (("dpo", {"beta": 2.0, "length": "mean"}), ("ln-dpo", {})),
        (("ln-dpo", {"beta": 0.1, "length": "sum"}), ("dpo", {})),
        (("dpo", {"length": LD}), ("ld-dpo", {"ld_alpha": 0.3, "reference": "both"})),
        (("ln-dpo", {"beta": 0.1, "length": LD}), ("ld-dpo", {"ld_alpha": 0.3, "reference": "both"})),
        (("dpo", {"token_weight": DECAY}), ("d2po", {"gamma": 0.8})),
        (("dpo", {"compare": "hinge"}), ("dpo", {"loss_type": "hinge"})),
        (("simpo", {"compare": "hinge"}), ("simpo", {"loss_type": "hinge"})),
        (
            ("dpo", {"compare": {"name": "robust", "label_smoothing": 0.2}}),
            ("dpo", {"loss_type": "robust", "label_smoothing": 0.2}),
        ),
        (
            ("dpo", {"beta": 1.0, "compare": {"name": "squared", "target": 2.5}}),
            ("ipo", {"beta": 0.2, "normalise": "sum"}),
        ),
        (("ipo", {"beta": 0.5, "length": "sum"}), ("ipo", {"beta": 0.5, "normalise": "sum"})),
        (
            ("cpo", {"beta": 2.0, "cpo_alpha": 0.0, "length": "mean"}),
            ("simpo", {"gamma_beta_ratio": 0.0}),
        ),
    ],
)  # fmt: skip
def test_a_composition_that_has_a_name_is_that_method(composed, known):
    for seed in (0, 1):
        same(get_method(composed[0], **composed[1]), get_method(known[0], **known[1]), seed)


def by_hand(b: Ragged, row: int, partner: int, entropy: Tensor | None = None) -> Tensor:
    """JSD link of the LD sum of log-ratios, each token weighed by 0.8^(t-1) (or by relative entropy)."""
    h, public = ratios(b, row), min(len(b.tokens("policy", row)), len(b.tokens("policy", partner)))
    w = [0.8**t for t in range(len(h))]
    if entropy is not None:
        mine = [entropy[row, t] for t in range(b.mask.shape[1]) if b.mask[row, t]]
        w = [x / (sum(mine) / len(mine)) for x in mine]
    R = total([k * (1.0 if t < public else 0.3) * x for t, (k, x) in enumerate(zip(w, h, strict=True))])
    return torch.log(2 * R.exp() / (1 + R.exp()))


@pytest.mark.parametrize("tokens", ["decay", "entropy"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_parts_at_once_one_token_at_a_time(tokens, seed):
    b = ragged(seed)
    entropy = torch.rand(b.mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    given = DECAY if tokens == "decay" else "entropy"
    m = get_method(
        "dpo", beta=0.7, link="jsd", length=LD, token_weight=given, compare={"name": "squared", "target": 1.5}
    )
    r = Responses.of(
        *(b.scores[k] for k in ("policy", "reference")), b.mask, torch.tensor(b.pairs), entropy_logps=entropy
    )
    h = entropy if tokens == "entropy" else None
    want = average([(0.7 * (by_hand(b, w, l, h) - by_hand(b, l, w, h)) - 1.5) ** 2 for w, l in b.pairs])
    torch.testing.assert_close(m(r).scalar, want, rtol=1e-12, atol=1e-12)
    got, expected = (torch.autograd.grad(x, b.policy)[0] for x in (m(r).scalar, want))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_the_link_is_taken_of_the_mean_where_the_length_rule_is_one():
    b = ragged(3)
    got = get_method("ln-dpo", beta=1.0, link="forward_kl")(b.responses()).rewards[0]
    want = torch.stack([-torch.exp(-average(ratios(b, w))) for w, _ in b.pairs])
    torch.testing.assert_close(got, want)


def test_a_wrapped_method_keeps_its_parts_and_its_neighbours_have_none():
    b = ragged(4)
    loss = get_method("lcpo", base={"name": "dpo", "beta": 1.0, "link": "jsd"})(b.responses())
    h = [torch.stack([total(ratios(b, p[i])) for p in b.pairs]) for i in (0, 1)]
    s = [torch.log(2 * x.exp() / (1 + x.exp())) for x in h]
    torch.testing.assert_close(loss.metrics["induced_logit"], s[0] - s[1])


def test_imitation_terms_are_not_rewards():
    """A mean over tokens stays what it is, whatever the tokens' weights in the reward."""
    r = ragged(5).responses()
    plain, weighed = (
        get_method("simpo", sft_weight=0.5),
        get_method("simpo", sft_weight=0.5, token_weight=DECAY, length=LD),
    )
    assert torch.equal(plain(r).terms["nll"].mean(), weighed(r).terms["nll"].mean())


def test_parts_and_annotations_of_the_data_go_together():
    b = ragged(6)
    notes = {"weight": torch.rand(len(b.pairs), dtype=torch.float64), "margin": b.notes["margin"]}
    r = b.responses()
    r = r.replace(notes={**r.notes, **notes})
    m = annotated(get_method("dpo", beta=0.5, compare="hinge"), ["margin", "weight"])
    u = torch.stack([0.5 * (total(ratios(b, w)) - total(ratios(b, l))) for w, l in b.pairs]) - notes["margin"]
    torch.testing.assert_close(m(r).scalar, (notes["weight"] * (1 - u).clamp(min=0)).mean())


def test_own_functions_in_place_of_names():
    r = ragged(7).responses()
    m = swap(get_method("dpo", length="mean"), compare=hinge)
    torch.testing.assert_close(m(r).scalar, get_method("dpo", length="mean", compare="hinge")(r).scalar)


def test_a_record_makes_it_again_and_names_every_part():
    m = get_method("ipo", link="jsd", length=LD, token_weight="entropy", compare="hinge")
    assert m.record() == {
        "name": "ipo", "beta": 0.1, "normalise": "mean", "link": "jsd", "length": {"name": "ld", "alpha": 0.3},
        "token_weight": "entropy", "compare": "hinge",
    } | ({"normalise": "mean"})  # fmt: skip
    assert get_method(**m.record()) == m
    assert "scores:entropy" in m.needs()


REFUSED = [
    ("simpo", {"link": "jsd"}, "simpo.link = jsd: simpo has no reference, and a link is a function of the ratio"),
    ("simpo", {"length": "mean"}, "simpo.length = mean has no effect"),
    ("dpo", {"length": "sum"}, "dpo.length = sum has no effect"),
    ("dpo", {"link": "reverse_kl"}, "dpo.link = reverse_kl has no effect"),
    ("dpo", {"compare": "sigmoid"}, "dpo.compare = sigmoid has no effect"),
    ("dpo", {"length": {"name": "ld", "alpha": 1.0}}, "dpo.length = ld has no effect"),
    ("f-dpo", {"link": "jsd"}, "its divergence is its link"),
    ("ld-dpo", {"length": "mean"}, "has a length rule of its own"),
    ("orpo", {"length": "sum"}, "the average is a part of it"),
    ("bt-reward", {"length": "mean"}, "does not judge the likelihood"),
    ("kto", {"compare": "hinge"}, "there is no comparison to change"),
    ("kto", {"length": LD}, "judges a response without its partner"),
    ("sft", {"token_weight": DECAY}, "has no effect"),
    (
        "lcpo",
        {"compare": "hinge"},
        r"lcpo wraps another method; give it to that one, base: \{name: ..., compare: hinge\}",
    ),
    ("tdpo", {"link": "jsd"}, "also reads token_kl position by position"),
    ("dpo", {"link": "chi_squared"}, "dpo.link = 'chi_squared': must be one of reverse_kl, .*; its f' is finite"),
    ("dpo", {"link": "jsdd"}, "must be one of reverse_kl, forward_kl, jsd, alpha_divergence"),
    ("dpo", {"link": "alpha_divergence"}, r"alpha_divergence needs 'alpha' \(number in \(0, 1\)\)"),
    ("dpo", {"link": {"name": "alpha_divergence", "alpha": 2}}, r"dpo.link.alpha = 2: must be in \(0, 1\)"),
    ("dpo", {"length": {"name": "ld", "alpa": 0.5}}, "ld has no setting 'alpa'; did you mean 'alpha'"),
    ("dpo", {"length": {"alpha": 0.5}}, "must be a name, or a name with its settings"),
    ("dpo", {"token_weight": 3}, "must be a name, or a name with its settings"),
    ("dpo", {"compare": {"name": "hinge", "target": 1.0}}, "hinge has no setting 'target'; it has none"),
    (
        "dpo",
        {"loss_type": "hinge", "compare": {"name": "squared", "target": 1.0}},
        "dpo.loss_type = 'hinge' has no effect",
    ),
]


@pytest.mark.parametrize(("name", "given", "says"), REFUSED, ids=[f"{n}-{g}" for n, g, _ in REFUSED])
def test_what_has_no_meaning_is_refused_with_the_reason(name, given, says):
    with pytest.raises(PrefoptError, match=says):
        get_method(name, **given)


def test_a_method_says_which_parts_it_takes():
    assert takes(get_method("dpo")) == {"link": "", "length": "", "token_weight": "", "compare": ""}
    kto = takes(get_method("kto"))
    assert [k for k, why in kto.items() if not why] == ["link", "length", "token_weight"]
    assert "no comparison to change" in kto["compare"]
    assert all("wraps another method" in why for why in takes(get_method("lcpo")).values())


# ---- every registered method: a part reaches all of its reward, or is refused


def takers(kind: str) -> dict[str, Method]:
    """The registered methods that take a part of this kind, bare."""
    some = {"link": "jsd", "length": LD, "token_weight": DECAY}[kind]
    found = {}
    for name in sorted(METHODS):
        for given in (some, *(["mean", "sum"] if kind == "length" else [])):
            try:
                get_method(name, **{kind: given})
            except PrefoptError:
                continue
            found[name] = family(name)()
            break
    return found


def scaled(made: Made, factor: Tensor | float | None) -> Made:
    """The batch with every score multiplied; None: divided by its response's length."""
    scores = {
        s: {k: x.like(x.values * factor if factor is not None else x.values / x.length[:, None]) for k, x in v.items()}
        for s, v in made.scores.items()
    }
    return dataclasses.replace(made, scores=scores)


def rewarding(m: Method, made: Made) -> dict[str, Tensor]:
    owner = Owner.of(m, made)
    loss = m(seen(made, states=owner.states.values, modules=owner.modules))
    return {k: t.values for k, t in loss.terms.items() if t.over in ("pairs", "responses", "groups")}


REACHED = [(kind, name, m) for kind in ("link", "length", "token_weight") for name, m in takers(kind).items()]


@pytest.mark.parametrize(("kind", "m"), [(k, m) for k, _, m in REACHED], ids=[f"{k}-{n}" for k, n, _ in REACHED])
def test_a_part_reaches_the_whole_reward(kind, m):
    """Twice the link (or every token's weight) is twice the numbers; the mean is the sum of numbers over their length."""
    made = collate(examples(m, 4, seed=3))
    if kind == "length":
        mean, whole = (joined(m, {"length": own("length", how)}, check=False) for how in ("mean", "sum"))
        left, right = rewarding(mean, made), rewarding(whole, scaled(made, None))
    else:
        twice = (lambda x: 2 * x) if kind == "link" else (lambda view, scores: torch.full_like(scores.values, 2.0))
        left, right = rewarding(joined(m, {kind: own(kind, twice)}, check=False), made), rewarding(m, scaled(made, 2.0))
    assert left
    for k, x in left.items():
        torch.testing.assert_close(x, right[k], rtol=1e-9, atol=1e-9, msg=f"{kind} does not reach all of {k}")


def test_the_kinds_are_no_method_keys():
    """A hyperparameter of such a name would shadow the part."""
    for f in METHODS.values():
        assert not set(KINDS) & set(f.defaults), f.name
