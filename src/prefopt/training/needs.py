"""What a method needs, in the words of the data package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.grading import Grading
from ..data.rule import CAPTIONS
from ..data.side_notes import how_to_give_note
from ..data.users import USER
from ..scoring.base import PREDICTED
from ..scoring.noising import noising_for


def data_needs(needs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """What the data has to hold, in the words of the data package."""
    wanted = {"gold"} if "extras:gold" in needs else set()
    wanted |= {"graded"} if "features:graded_features" in needs else set()
    wanted |= {USER} if "conditions:user" in needs else set()
    wanted |= set() if noising_for(needs).reads_images else {"prompts"}
    for key, spec in needs.items():
        kind, _, name = key.partition(":")
        if key == f"conditions:{CAPTIONS}":
            wanted.add(CAPTIONS)
        if key == "notes:label_probability" and spec.get("optional"):
            wanted.add("ties")
        if kind != "notes" or name in _MADE or spec.get("optional") or spec.get("fallback"):
            continue
        if name == "graded_valid":
            continue
        if spec.get("dtype") == "common step":
            wanted.add("common_steps")
        instead = spec.get("instead")
        wanted.add(f"{name}|{instead}" if instead else name)
    return wanted


def grading(needs: Mapping[str, Mapping[str, Any]]) -> Grading | None:
    """Which graded versions of the responses the data has to hold, if any; as many levels as are asked for."""
    spec = needs.get("features:graded_features")
    if spec is None:
        return None
    how: dict[str, Any] = {k: v for k, v in spec.get("how", {}).items() if k != "pool"}
    levels = int(spec["shape"].split()[1])
    evenly: dict[str, Any] = {"ratios": tuple(k / (levels - 1) for k in range(levels))}
    return Grading(**(evenly | how))


def how_to_give(need: str, kind: str) -> str:
    """What is lacking ("scores:reference", "notes:pairs [P 2]", see Method.missing) and what to do about it, in words."""
    asked, _, name = need.split(" ")[0].partition(":")
    if asked == "extras":
        return f"the {name} responses" + (": a column 'gold' in every row" if name == "gold" else "")
    if asked == "notes":
        return _NOTES.get(name) or f"the annotation '{name}': {how_to_give_note(name)}"
    if asked in ("generation", "turns"):
        return _GENERATED[asked]
    if asked == "conditions" and name == CAPTIONS:
        return "a caption of every response's own, which only pictures have"
    if asked == "conditions":
        return f"the condition '{name}' of every example, which this model or data does not have ({kind})"
    if asked == "noising":
        if name == PREDICTED:
            return "pictures predicted by a pipeline (sources.base), which only a CLIPModel is trained to judge"
        return f"inputs noised by '{name}', which this model does not have ({kind})"
    if asked == "features":
        return f"the feature '{name}', which {kind} models do not give"
    if kind == "text" and name not in _SCORES:
        return f"the scores '{name}' of another model: set sources.{name}.path to its folder (same tokenizer)"
    return _SCORES.get(name, f"the scores '{name}', which {kind} models do not give")


_MADE = ("group", "flow_signal")  # by the scorer, not by the data
_NOTES = {
    "flow_signal": "the share 1 - s of the image in what is seen, which only flow models have: beta_schedule = constant",
    "prompt_pairs": "the number of pairs of each prompt, which this kind of data does not count",
    "pairs": "pairs: rows with a chosen and a rejected answer, or ranked lists",
    "label": "labels: a column 'label' that says whether an answer is desirable, or pairs",
}
_GENERATED = {
    "generation": "a generator: it makes its own pictures of prompts, with a diffusers pipeline",
    "turns": "networks that are trained beside the model",
}
_SCORES = {
    "policy": "the log-probabilities of a language model: it is asked for them and for a reward head's score at once",
    "reference": "a reference model's scores",
    "token_kl": "the exact KL between whole distributions over a vocabulary, which only running text references give",
    "entropy": "the entropy of a distribution over a vocabulary, which only language models have",
    "log_collision": "the sum of squares of a distribution over a vocabulary, which only language models have",
    "reward": "the score of a reward head (text models get one) or of a preference model of pictures (a CLIPModel)",
}


def follows_pairs(needs: Mapping[str, Mapping[str, Any]]) -> bool:
    """Are chosen and rejected responses compared by what the policy says of them?"""
    return {"notes:pairs", "scores:policy"} <= set(needs)
