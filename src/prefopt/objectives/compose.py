"""New methods from old ones: another link, length rule, token weights or comparison; annotations of the data applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import PrefoptError
from .loss import Loss
from .method import Method
from .responses import Responses
from .shape import Part, Shape, make, own
from .words import soft


def compose(base: Method, given: Mapping[str, Any], check: bool = True) -> Method:
    """`base` with parts of other methods, as a configuration names them (see docs/composition.md).

    link: the divergence whose f'(ratio) is the reward. length: how a response's positions become one number.
    token_weight: how much each position counts. compare: what is done with the difference of two rewards.
    Raises PrefoptError with the reason where a part has no meaning for `base`, and where it changes nothing.
    """
    for kind in given:
        if held := next((k for k, v in base.hyper.items() if isinstance(v, Method)), None):
            raise PrefoptError(
                f"{base.name}.{kind}: {base.name} wraps another method; give it to that one, "
                f"{held}: {{name: ..., {kind}: {given[kind]}}}"
            )
    return joined(base, {k: make(k, v, base.name) for k, v in given.items()}, check)


def swap(
    base: Method,
    *,
    link: Callable[[Tensor], Tensor] | None = None,
    compare: Callable[[Tensor], Tensor] | None = None,
) -> Method:
    """The same method with a reward link [R] -> [R] or a comparison [P] -> [P] of the caller's own."""
    given = {"link": link, "compare": compare}
    return joined(base, {**base.parts, **{k: own(k, f) for k, f in given.items() if f is not None}}, check=False)


def joined(base: Method, parts: Mapping[str, Part], check: bool) -> Method:
    """`base` with these parts, refused where `check` finds that one cannot work or does not."""
    bare = replace(base, parts={}, shape=None)
    needs = bare.needs()
    for kind, part in parts.items() if check else ():
        if why := _obstacle(kind, needs):
            raise PrefoptError(f"{base.name}.{kind} = {part.name}: {base.name} {why}")
    made = _with(bare, parts, "scores:reference" in needs)
    if check:
        from .probe import fingerprint

        whole = fingerprint(made)
        for kind, part in parts.items():
            others = {k: p for k, p in parts.items() if k != kind}
            if fingerprint(_with(bare, others, made.shape is not None and made.shape.referenced)) == whole:
                raise PrefoptError(
                    f"{base.name}.{kind} = {part.name} has no effect: {base.name} has it already, or takes no such number "
                    "of a whole response"
                )
    return made


def _with(bare: Method, parts: Mapping[str, Part], referenced: bool) -> Method:
    applied = {k: p.apply for k, p in parts.items() if k != "compare"}
    return replace(bare, parts=dict(parts), shape=Shape(**applied, referenced=referenced) if applied else None)


def _obstacle(kind: str, needs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why the reward of a method with these needs cannot be changed, if it cannot."""
    if kind == "compare":
        return None  # the loss knows whether it compares
    if "scores:policy" not in needs:
        return "does not judge the likelihood of responses"
    if kind == "link" and "scores:reference" not in needs:
        return "has no reference, and a link is a function of the ratio to it"
    by_position = [k.partition(":")[2] for k, spec in needs.items() if _by_position(k, spec)]
    if by_position:
        return f"also reads {', '.join(by_position)} position by position, which the change would not reach"
    return None


def _by_position(key: str, spec: Mapping[str, Any]) -> bool:
    kind, _, name = key.partition(":")
    if kind == "scores":
        return name not in ("policy", "reference")
    return kind in ("modules", "features") or (kind == "notes" and "T" in str(spec.get("shape", "")).split())


TRIED: Mapping[str, tuple[Any, ...]] = {
    "link": ("jsd",),
    "length": ("mean", "sum"),
    "token_weight": ({"name": "decay", "gamma": 0.9},),
    "compare": ("hinge", "sigmoid"),
}


def takes(base: Method) -> dict[str, str]:
    """Kind of part -> "" where `base` takes such a part, else why it does not."""
    found = {}
    for kind, some in TRIED.items():
        reasons = []
        for given in some:
            try:
                compose(base, {kind: given})
            except PrefoptError as e:
                reasons.append(str(e))
        found[kind] = reasons[0] if len(reasons) == len(some) else ""
    return found


ANNOTATIONS = ("weight", "margin", "label_probability")


def annotated(base: Method, use: Sequence[str]) -> Method:
    """`base` with columns of the data applied to its loss.

    weight [P] (or [R] for a pointwise method) multiplies each example's loss; margin [P] is subtracted from
    the logit; label_probability p [P] makes the label soft: p how(u) + (1 - p) how(-u).
    A method without a comparison refuses margin and label_probability.
    """
    for name in use:
        if name not in ANNOTATIONS:
            raise PrefoptError(f"data.use: unknown annotation '{name}'; there are {', '.join(ANNOTATIONS)}")
    if not use:
        return base

    def finish(out: Loss, r: Responses) -> Loss:
        if base.finish is not None:
            out = base.finish(out, r)
        if "margin" in use:
            out = out.recompared(shift=r.note("margin", "P"))
        if "label_probability" in use:
            out = _softened(out, r.note("label_probability", "P"))
        if "weight" in use:
            over = "pairs" if any(t.over == "pairs" for t in out.terms.values()) else "responses"
            out = out.weighted(r.note("weight", "P" if over == "pairs" else "R"), over)
        return out

    return replace(base, finish=finish)


def _softened(out: Loss, p: Tensor) -> Loss:
    if not any(t.compare for t in out.terms.values()):
        out.recompared()  # says that there is nothing to compare
    terms = {
        k: t if t.logit is None or t.compare is None else Loss(x=t).recompared(soft(t.compare, p)).terms["x"]
        for k, t in out.terms.items()
    }
    return out.replace(terms)
