"""New methods from old ones: another link, another comparison, annotations of the data applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..errors import PrefoptError
from .loss import Loss
from .method import Method
from .responses import Responses
from .words import soft


def swap(
    base: Method,
    *,
    link: Callable[[Tensor], Tensor] | None = None,
    compare: Callable[[Tensor], Tensor] | None = None,
) -> Method:
    """The same method with another reward link [R] -> [R], or another comparison [P] -> [P]."""

    def fn(r: Responses, **hyper: Any) -> Loss:
        out = base.fn(r if link is None else r.replace(link=link), **hyper)
        return out if compare is None else out.recompared(compare)

    return Method(base.name, fn, base.hyper)


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

    def fn(r: Responses, **hyper: Any) -> Loss:
        out = base.fn(r, **hyper)
        if "margin" in use:
            out = out.recompared(shift=r.note("margin", "P"))
        if "label_probability" in use:
            out = _softened(out, r.note("label_probability", "P"))
        if "weight" in use:
            over = "pairs" if any(t.over == "pairs" for t in out.terms.values()) else "responses"
            out = out.weighted(r.note("weight", "P" if over == "pairs" else "R"), over)
        return out

    return Method(base.name, fn, base.hyper) if use else base


def _softened(out: Loss, p: Tensor) -> Loss:
    if not any(t.compare for t in out.terms.values()):
        out.recompared()  # says that there is nothing to compare
    terms = {
        k: t if t.logit is None or t.compare is None else Loss(x=t).recompared(soft(t.compare, p)).terms["x"]
        for k, t in out.terms.items()
    }
    return out.replace(terms)
