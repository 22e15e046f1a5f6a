"""The survey's vocabulary (2503.11701): where a method stands among all others, as a validated record.

The survey sorts methods by the part of the DPO loss that they change. Its names are used literally; `modality` and
`needs` are additions, and both are found, not declared: needs by asking the method (probe), modality from what its
questions can be answered on. A record holds, for every dimension, a list of leaves (a method may stand in several);
`constraint.safety` is true or false, `source` one word.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import PrefoptError

VERSION = "2503.11701"
Leaves = Sequence[str] | str | bool

VOCABULARY: dict[str, tuple[str, ...]] = {
    "data_strategy.quality": ("heterogeneity", "distinguishability", "noise", "none"),
    "data_strategy.feedback": ("pointwise", "pairwise", "listwise"),
    "data_strategy.granularity": ("token", "step", "sentence", "turn"),
    "learning_framework.paradigm": ("offline", "online", "active"),
    "learning_framework.objective": ("single", "multi_objective", "self_play"),
    "constraint.reference": ("static", "dynamic", "free"),
    "constraint.divergence": ("reverse_kl", "diversity", "generalization", "none"),
    "constraint.safety": ("true", "false"),
    "model_property": ("distribution_shift", "length_bias", "likelihood_collapse", "alignment_tax", "analysis"),
    "modality": ("lm", "vlm", "video_lm", "image_diffusion", "video_diffusion"),
    "needs": ("reference", "reward_model", "judge", "value_head", "sampler", "sandbox"),
    "source": ("survey", "assigned"),
}
DEFAULTS = ("quality.none", "pairwise", "sentence", "offline", "single", "static", "reverse_kl", "safety.false")
MAY_BE_EMPTY = ("model_property", "needs")
FOUND = ("modality", "needs", "source")  # by looking, not by tags


def names(dimension: str, leaf: str) -> list[str]:
    """How a leaf may be called: alone, after the last word of its dimension, or in full. Safety is true if named."""
    if dimension == "constraint.safety":
        return [f"safety.{leaf}", f"{dimension}.{leaf}"] + (["safety"] if leaf == "true" else [])
    return [leaf, f"{dimension.split('.')[-1]}.{leaf}", f"{dimension}.{leaf}"]


def resolve(tag: str) -> tuple[str, str]:
    """(dimension, leaf) of a tag. PrefoptError for an unknown tag (with the nearest) and for one that two share."""
    known: dict[str, list[tuple[str, str]]] = {}
    for dimension, leaves in VOCABULARY.items():
        for leaf in leaves:
            for name in names(dimension, leaf):
                if (dimension, leaf) not in known.setdefault(name, []):
                    known[name].append((dimension, leaf))
    found = known.get(tag, [])
    if len(found) > 1:
        choices = " or ".join(f"{d.split('.')[-1]}.{leaf}" for d, leaf in found)
        raise PrefoptError(f"the tag '{tag}' stands for several things: say {choices}")
    if not found:
        close = difflib.get_close_matches(tag, known, 1)
        short = [leaf for d, leaves in VOCABULARY.items() for leaf in leaves if leaf not in ("none", "true", "false")]
        hint = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(short)}, safety"
        raise PrefoptError(f"unknown tag '{tag}'{hint}")
    return found[0]


def place(
    tags: Sequence[str], needs: Iterable[str], modality: Iterable[str], surveyed: bool, who: str = "the method"
) -> dict[str, Leaves]:
    """The record made of tags that differ from the defaults, and of what was found; validated.

    A method without a reference is constrained by no divergence, unless a tag says otherwise.
    """
    given: dict[str, list[str]] = {d: [] for d in VOCABULARY}
    for dimension, leaf in check_tags(tags, who):
        given[dimension].append(leaf)
    free = given["constraint.reference"] == ["free"]
    for tag in DEFAULTS:
        dimension, leaf = resolve("divergence.none" if free and tag == "reverse_kl" else tag)
        given[dimension] = given[dimension] or [leaf]
    record: dict[str, Leaves] = {**given, "needs": _sorted("needs", needs), "modality": _sorted("modality", modality)}
    record |= {"constraint.safety": given["constraint.safety"] == ["true"]}
    record |= {"source": "survey" if surveyed else "assigned"}
    validate(record, who)
    return record


def check_tags(tags: Sequence[str], who: str, recipe: bool = False) -> list[tuple[str, str]]:
    """The tags as (dimension, leaf). PrefoptError if one is unknown, said twice, or of a dimension that is found."""
    try:
        found = [resolve(t) for t in tags]
    except PrefoptError as e:
        raise PrefoptError(f"{who}: {e}") from None
    for (dimension, leaf), tag in zip(found, tags, strict=True):
        if found.count((dimension, leaf)) > 1:
            raise PrefoptError(f"{who}: the tag '{tag}' is given twice")
        if dimension in FOUND and not (recipe and dimension == "needs"):
            raise PrefoptError(
                f"{who}: the tag '{tag}' is of '{dimension}', which is found, not declared: leave it out"
            )
    return found


def validate(record: Mapping[str, Leaves], who: str = "the record") -> None:
    """PrefoptError for a missing dimension, an unknown leaf, or a reference that does not fit the needs."""
    for dimension, leaves in VOCABULARY.items():
        given = _leaves(record[dimension]) if dimension in record else ()
        if dimension not in record or (not given and dimension not in MAY_BE_EMPTY):
            raise PrefoptError(f"{who}: the dimension '{dimension}' is missing; one of {', '.join(leaves)}")
        for leaf in given:
            if leaf not in leaves:
                close = difflib.get_close_matches(str(leaf), leaves, 1)
                hint = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(leaves)}"
                raise PrefoptError(f"{who}: unknown tag '{leaf}' of {dimension}{hint}")
    for dimension in record:
        if dimension not in VOCABULARY:
            raise PrefoptError(f"{who}: '{dimension}' is no dimension; there are {', '.join(VOCABULARY)}")
    free, asked = "free" in _leaves(record["constraint.reference"]), "reference" in _leaves(record["needs"])
    if free and asked:
        raise PrefoptError(f"{who}: tagged 'free', and it asks for a reference: remove the tag")
    if not free and not asked:
        raise PrefoptError(f"{who}: it asks for no reference, and is not tagged 'free': add the tag")


def matches(record: Mapping[str, Leaves], tags: Iterable[str]) -> bool:
    """Does the record carry all of these tags?"""
    return all(leaf in _leaves(record[dimension]) for dimension, leaf in map(resolve, tags))


def told(record: Mapping[str, Leaves], brief: bool = False) -> list[tuple[str, str]]:
    """(dimension, leaves in words) for printing; `brief`: only what differs from the defaults and was not found."""
    usual = set(map(resolve, DEFAULTS)) | {("constraint.divergence", "none")}
    rows = [(d, [x for x in _leaves(record[d]) if not (brief and (d in FOUND or (d, x) in usual))]) for d in VOCABULARY]
    named = {"true": "safety"} if brief else {}  # the one leaf that says nothing without its dimension
    return [(d, ", ".join(named.get(leaf, leaf) for leaf in x) or "-") for d, x in rows if x or not brief]


def needs_of(questions: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The vocabulary's `needs` in what a method asks (`Method.needs()`).

    reference: its scores, or the divergence from it. reward_model: what has `reward` in its name, unless it carries
    gradient (then it is the reward model that is trained). value_head: what is called `value`.
    """
    found = set()
    made = any(key.startswith("generation:") for key in questions)  # the policy's own, trained through a frozen reward
    for key, spec in questions.items():
        kind, _, name = key.partition(":")
        if kind in ("modules", "states"):  # the method's own, whatever it calls them
            continue
        words = set(name.replace("/", "_").split("_"))
        if key in ("scores:reference", "scores:token_kl", "features:reference_score"):
            found.add("reference")
        if words & {"reward", "rewards"} and (not spec.get("grad") or made):
            found.add("reward_model")
        if "value" in words and "notes" not in key:
            found.add("value_head")
        found |= needs_of(spec.get("asked", {}))
    return found


ANSWERED_ON_IMAGES = (
    "scores:policy",
    "scores:reference",
    "noising:",
    "conditions:",
    "notes:",
    "states:",
    "modules:",
    "statistics:",
)


def modality_of(questions: Mapping[str, Mapping[str, Any]], family: str) -> list[str]:
    """Where a method runs: on language models unless it is of the diffusion family; on images then, and where it
    asks only for policy, reference and annotations that know no token positions."""
    on_images = all(
        key.startswith(ANSWERED_ON_IMAGES) and "T" not in str(spec.get("shape", "")).split()
        for key, spec in questions.items()
    )
    on_images |= family == "diffusion"
    return ([] if family == "diffusion" else ["lm"]) + (["image_diffusion"] if on_images else [])


def _leaves(value: Leaves) -> Sequence[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    return [value] if isinstance(value, str) else value


def _sorted(dimension: str, leaves: Iterable[str]) -> list[str]:
    given = set(leaves)
    return [leaf for leaf in VOCABULARY[dimension] if leaf in given] + sorted(given - set(VOCABULARY[dimension]))
