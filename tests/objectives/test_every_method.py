"""What must hold for every registered method, whatever it is: tested on batches made from its needs alone."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from every import ALL, EVERY, EVERY_WAY_OF_ALL, EXACT, optional
from from_needs import (
    TOYS_AND_METHODS,
    Made,
    Owner,
    collate,
    examples,
    gradients,
    loss_of,
    seen,
)

from prefopt import PrefoptError, Responses, get_method
from prefopt.objectives.hyper import describe
from prefopt.objectives.method import METHODS
from prefopt.objectives.probe import fingerprint
from prefopt.training.engine import Meter, measures


@EVERY
def test_only_what_is_asked_with_gradient_gets_one(m):
    of = examples(m, 4, seed=5)
    loss, _ = loss_of(m, collate(of))
    loss.scalar.backward()
    needs = m.needs()
    own = {k: s for k, s in needs.items() if k.startswith(("scores:", "features:"))}
    expected = {f"responses.{k.split(':', 1)[1]}" for k, s in own.items() if s.get("grad")}
    for key, spec in needs.items():
        if key.startswith("extras:") and spec.get("grad"):
            expected |= {f"{key[7:]}.{k[7:]}" for k, s in spec["asked"].items() if s.get("grad")}
    assert {k.split(".", 1)[1] for k in gradients(of)} == expected
    for e in of:  # nothing else ever had a gradient, the reference above all
        assert all(x.grad is None for _, x in e.leaves())


@EVERY_WAY_OF_ALL
def test_needs_are_exactly_the_questions_asked(m, sparse):
    asked: dict[str, bool] = {}

    @dataclasses.dataclass(frozen=True)
    class Listening(Responses):
        def _ask(self, kind, name, **spec):
            answer = super()._ask(kind, name, **spec)
            key = f"{kind}:{name}"
            if answer is not None or kind in (
                "states",
                "modules",
                "statistics",
                "noising",
                "conditions",
                "generation",
                "turns",
            ):
                asked[key] = asked.get(key, False) or bool(spec.get("grad"))
            return answer

    made = collate(examples(m, 3, sparse=sparse))
    owner = Owner.of(m, made)
    r = seen(made, states=owner.states.values, modules=owner.modules)
    m(Listening(**{f.name: getattr(r, f.name) for f in dataclasses.fields(Responses)}))
    needs = m.needs()
    left_out = ("optional", "instead") if sparse else ("fallback",)
    assert asked == {k: bool(s.get("grad")) for k, s in needs.items() if not any(s.get(x) for x in left_out)}


def splits(n: int) -> dict[str, list[list[list[int]]]]:
    """Processes -> micro-batches -> examples."""
    shuffled = random.Random(0).sample(range(n), n)
    return {
        "16x1": [[[i] for i in range(n)]],
        "4x4": [[list(range(i, i + 4)) for i in range(0, n, 4)]],
        "uneven": [[shuffled[:1], shuffled[1:3], shuffled[3:10], shuffled[10:]]],
        "two processes, uneven": [[shuffled[:2], shuffled[2:9]], [shuffled[9:15], shuffled[15:]]],
    }


@EVERY_WAY_OF_ALL
def test_a_step_does_not_depend_on_how_it_is_cut(m, sparse):
    """1 x 16 = 4 x 4 = 16 x 1 = uneven = two processes: loss, every gradient, state (over two steps)."""
    n = 16
    stateful = any(k.startswith("states:") for k in m.needs())
    steps = [examples(m, n, seed=s, sparse=sparse) for s in ((6, 7) if stateful else (6,))]

    def run(cut: list[list[list[int]]], fillers: int = 0) -> list[object]:
        owner = Owner.of(m, collate(steps[0][:3]))
        out: list[object] = []
        for of in steps:
            batches = [[collate([of[i] for i in part]) for part in process] for process in cut]
            for k in range(fillers):
                batches[k % len(batches)].append(dataclasses.replace(collate(of[: k + 1]), filler=True))
            out += [owner.step(batches), gradients(of), dict(owner.states.values)]
            out.append({k: p.grad for k, net in owner.modules.items() for p in net.parameters()})
        return out

    whole = run([[list(range(n))]])
    for name, cut in splits(n).items():
        torch.testing.assert_close(run(cut), whole, msg=lambda x: f"{name}: {x}", **EXACT)
    filled = run(splits(n)["two processes, uneven"], fillers=2)
    filled[1::4] = [{k: g for k, g in grads.items() if k in want} for grads, want in zip(filled[1::4], whole[1::4])]
    torch.testing.assert_close(filled, whole, **EXACT)
    for k, v in whole[2].items() if stateful else ():
        assert not torch.equal(v, whole[6][k]), f"the state {k} does not move"


@EVERY
def test_half_precision_inputs_are_lifted(m):
    of = examples(m, 5, seed=8)
    exact = loss_of(m, collate(of, dtype=torch.float32))[0].scalar
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.15)):
        loss = loss_of(m, collate(of, dtype=dtype))[0].scalar
        assert loss.dtype == torch.float32 or loss.dtype == torch.float64
        loss.backward()
        assert loss.isfinite()
        assert all(g.isfinite().all() for g in gradients(of).values())
        if exact.abs() < 20:  # a loss in the thousands is the difference of nearly equal errors
            assert abs(loss - exact) < tolerance * max(1.0, exact.abs().item())


EXTREMES = {
    "margins of 1e4": lambda x, g: torch.where(torch.rand(x.shape, generator=g) < 0.3, -1e4, x),
    "all certain": lambda x, g: torch.zeros_like(x),
    "all the same": lambda x, g: torch.full_like(x, -0.7),
    "one certain response": lambda x, g: torch.cat([torch.zeros_like(x[:1]), x[1:]]),
    "tiny": lambda x, g: torch.full_like(x, -1e-30),
}


@EVERY
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_stay_finite(m, extreme):
    g = torch.Generator().manual_seed(0)
    of = examples(m, 4, seed=9, one_token=extreme == "one certain response")
    for e in of:
        for named in e.scores.values():
            for k, x in named.items():
                named[k] = EXTREMES[extreme](x.detach(), g).requires_grad_()
    loss, _ = loss_of(m, collate(of, dtype=torch.float32))
    loss.scalar.backward()
    assert loss.scalar.isfinite()
    assert all(x.isfinite().all() for x in gradients(of).values())
    assert all(u.sum.isfinite().all() for u in loss.updates.values())


def test_all_labels_alike_make_no_nan():
    for name, m in TOYS_AND_METHODS.items():
        if "notes:label" not in m.needs():
            continue
        made = collate(examples(m, 4, seed=10, sparse=optional(m)))
        if "label" not in made.notes:  # asked only where there are no pairs, which another part needs
            continue
        for label in (True, False):
            alike = Made(made.notes | {"label": torch.full_like(made.notes["label"], label)}, made.scores)
            loss = loss_of(m, alike)[0]
            assert loss.scalar.isfinite(), name
            meter = Meter()
            meter.add(measures(seen(alike), loss))
            assert all(v == v for v in meter.flush().values()), name


@EVERY
def test_refusals_name_method_thing_and_remedy(m):
    made = collate(examples(m, 3))
    owner = Owner.of(m, made)
    m(seen(made, states=owner.states.values, modules=owner.modules))

    def refusal(notes=made.notes, scores=made.scores, features=made.features) -> str:
        with pytest.raises(PrefoptError) as e:
            m(seen(Made(notes, scores, features=features), states=owner.states.values, modules=owner.modules))
        assert str(e.value).startswith(f"{m.name}:")
        return str(e.value)

    for key, spec in m.needs().items():
        kind, name = key.split(":", 1)
        optional_here = any(spec.get(x) for x in ("optional", "instead", "fallback"))
        if kind == "scores":
            without = {k: v for k, v in made.scores["responses"].items() if k != name}
            message = refusal(scores=made.scores | {"responses": without})
            assert name in message or "no scores" in message
            assert f"{name}_logps" in message or "give policy_logps" in message
        if kind == "extras":
            message = refusal(scores={k: v for k, v in made.scores.items() if k != name})
            assert f"'{name}'" in message
            assert "the batch has" in message
        if kind == "features":
            message = refusal(features={k: v for k, v in made.features.items() if k != name})
            assert f"'{name}' [{spec['shape']}]" in message
            x = made.features[name]
            assert str([*x.shape, 1]) in refusal(features=made.features | {name: x[..., None]})
            if x.is_floating_point():
                assert "not finite" in refusal(features=made.features | {name: x / 0})
        if kind == "notes" and not optional_here:
            message = refusal(notes={k: v for k, v in made.notes.items() if k != name})
            assert f"'{name}' [{spec['shape']}]" in message
            assert "data.columns" in message
        if kind == "notes" and name in made.notes:
            x = made.notes[name]
            if "P" not in spec["shape"] or name != "pairs":  # one more row than there is
                message = refusal(notes=made.notes | {name: torch.cat([x, x[:1]])})
                assert f"'{name}' has shape {[len(x) + 1, *x.shape[1:]]}, expected [{spec['shape']}] = " in message
            message = refusal(notes=made.notes | {name: x[..., None]})
            assert str([*x.shape, 1]) in message
            if spec.get("dtype") == "bool":
                assert "true or false" in refusal(notes=made.notes | {name: x.int()})
            if spec.get("dtype") == "row":
                assert "0.." in refusal(notes=made.notes | {name: x + 1000})
            if "below" in spec:
                assert f"expected 0..{spec['below'] - 1}" in refusal(notes=made.notes | {name: x + spec["below"]})


@EVERY
def test_missing_speaks_before_the_start(m):
    needs = m.needs()
    assert m.missing(set(needs)) == []
    for key, spec in needs.items():
        required = not any(spec.get(x) for x in ("optional", "fallback")) and key.startswith(
            ("scores:", "notes:", "extras:", "features:", "noising:", "conditions:", "generation:", "turns:")
        )
        lacking = m.missing(set(needs) - {key} - {f"notes:{spec.get('instead')}"})
        if spec.get("instead") == "demonstrations":
            required = False
        assert bool(lacking) == required, key
        assert all(x.startswith(key) for x in lacking)


@pytest.mark.parametrize("m", ALL.values(), ids=ALL)
def test_initialisation_makes_what_is_owned_and_only_that(m):
    made = collate(examples(m, 2))
    r = m.init(seen(made))
    needs = m.needs()
    assert set(r.states) == {k.removeprefix("states:") for k in needs if k.startswith("states:")}
    assert set(r.modules) == {k.removeprefix("modules:") for k in needs if k.startswith("modules:")}
    assert set(m(r).updates) == set(r.states)


REGISTERED = {k: v for k, v in TOYS_AND_METHODS.items() if v.name in METHODS}


@pytest.mark.parametrize("m", REGISTERED.values(), ids=REGISTERED)
def test_a_record_makes_the_same_method_again(m):
    again = get_method(**m.record())
    assert again == m
    assert fingerprint(again) == fingerprint(m)


@pytest.mark.parametrize("name", sorted({m.name for m in REGISTERED.values()}))
def test_unknown_keys_are_refused_with_the_nearest(name):
    f = METHODS[name]
    for key in f.defaults:
        with pytest.raises(PrefoptError, match=f"{name} has no hyperparameter '{key}x'; did you mean '{key}'"):
            f(**{f"{key}x": 1.0})
    with pytest.raises(PrefoptError, match=f"{name} has no hyperparameter 'qqqq'; it has "):
        f(qqqq=1)


@pytest.mark.parametrize("name", sorted({m.name for m in REGISTERED.values()}))
def test_values_outside_their_type_are_refused(name):
    f = METHODS[name]
    for key, default in f.defaults.items():
        wrong = [None, [1], {"a": 1}, float("nan"), float("inf"), "no such value"]
        if "or none" in describe(f.hints[key]):  # an optional one
            wrong.remove(None)
        if not isinstance(default, bool):
            wrong.append(True)
        if "list of numbers" in describe(f.hints[key]):
            wrong.remove([1])
        for value in wrong:
            with pytest.raises(PrefoptError, match=f"^{name}.{key} = "):
                f(**{key: value})


@pytest.mark.parametrize("name", sorted({m.name for m in REGISTERED.values()}))
def test_every_method_says_where_it_is_from(name):
    f = METHODS[name]
    assert f.__doc__
    assert len(f.__doc__.splitlines()[0]) <= 120
    assert f.family in ("pairwise", "pointwise", "listwise", "token", "weighting", "diffusion", "reward", "rl")
    if "beta" in f.defaults:
        assert f.beta, "says in which units its beta is"
