"""The scorer of text: collates trees, and answers a method's questions with one forward for each layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..objectives.masks import GROUPS
from ..objectives.scores import Scores
from .base import Needs, Shapes, asked_of
from .batch import EXTRAS, Collator, TextBatch
from .entry import core, install
from .inside import group_numbers
from .kernel import Reference
from .reference import ReferenceModel

__all__ = ["TextBatch", "TextScorer", "core", "install"]

NUMBER_OF = {
    "policy": "logps",
    "entropy": "entropy",
    "log_collision": "log_collision",
    "token_kl": "token_kl",
    "reward": "reward",
}
"""Score name -> what the scoring entry calls it."""


OF_REFERENCE = frozenset({"reference_hidden", "activations", "activation_group"})
"""Features that the reference has to run for."""


def must_run(needs: Needs) -> bool:
    """Whether the reference has to be computed in the step: a store of log-probs does not know what is asked."""
    return "scores:token_kl" in needs or any(f"features:{name}" in needs for name in OF_REFERENCE)


def _wanted(name: str, spec: Mapping[str, Any]) -> str:
    """A feature of the reference as the scoring entry calls it."""
    of = spec.get("how", {}).get("of")
    return f"layers:{of or 'all'}" if name == "reference_hidden" else f"activations:{','.join(of or GROUPS)}"


def asked_sources(needs: Needs) -> set[str]:
    """Names of scores that only another model can give (`sources`)."""
    inside = [spec.get("asked", {}) for key, spec in needs.items() if key.startswith("extras:")]
    asked = {key.removeprefix("scores:") for of in (needs, *inside) for key in of if key.startswith("scores:")}
    return asked - {"reference", *NUMBER_OF}


class TextScorer:
    """Scores text batches with a model that `install` prepared.

    sources: name -> another frozen model's scores (see training/tasks/text_sources.py).
    needs: of the method (`Method.needs()`), or just which extras to collate. reference: None where the method has
    none. notes: annotations that the data holds, for `offers`. model: the policy, whose sizes features have; None where
    no features are asked for.
    """

    def __init__(
        self,
        needs: Needs | Iterable[str] = (),
        reference: ReferenceModel | None = None,
        notes: Iterable[str] = (),
        reward: bool = False,
        sources: Mapping[str, ReferenceModel] | None = None,
        model: nn.Module | None = None,
    ):
        extras = frozenset(key.removeprefix("extras:") for key in needs if key.startswith("extras:"))
        self.reference, self.notes, self.reward = reference, tuple(notes), reward
        self.sources = dict(sources or {})
        self.model = model
        self.collate = Collator(extras.intersection(EXTRAS), "features:graded_features" in needs)

    def offers(self) -> set[str]:
        scores = {"reward"} if self.reward else {"policy", "entropy", "log_collision"}
        if self.reference is not None:
            scores |= {"reference"} | ({"token_kl"} if self.reference.runs else set())
        scores |= set(self.sources)
        features = set() if self.model is None or self.reward else {"hidden", "graded_features"}
        if features and self.reference is not None and self.reference.runs:
            features |= OF_REFERENCE
        return (
            {f"scores:{s}" for s in scores}
            | {f"features:{f}" for f in features}
            | {f"extras:{e}" for e in EXTRAS}
            | {f"notes:{n}" for n in ("group", *self.notes)}
        )

    def shapes(self, needs: Needs) -> Shapes:
        """See `base.Scorer`."""
        return {
            key.removeprefix("features:"): self._shape(key.removeprefix("features:"), spec)
            for key, spec in needs.items()
            if key.startswith("features:")
        }

    def _shape(self, name: str, spec: Mapping[str, Any]) -> tuple[str | int, ...]:
        assert self.model is not None, "made with a model where features are asked for"
        how = spec.get("how", {})
        if name in ("hidden", "graded_features"):
            width = core(self.model).get_output_embeddings().in_features
            return ("R", "T", width) if name == "hidden" else ("R", int(spec["shape"].split()[1]), width)
        inner = core(self._reference().network(self.model))
        if name == "reference_hidden":
            return (
                "R",
                1 if how.get("of") == "last" else inner.config.num_hidden_layers,
                "T",
                inner.config.hidden_size,
            )
        hooks = len(group_numbers(inner, how.get("of", GROUPS)))
        return ("R", hooks, "T") if name == "activations" else (hooks,)

    def score(
        self, model: nn.Module, batch: TextBatch, needs: Needs, grad: bool = True
    ) -> dict[str, dict[str, Scores | Tensor]]:
        """See `base.Scorer`: {"responses": {"policy": Scores, ...}, "prompt": ...}."""
        asked = asked_of(needs, grad)
        features = {k.removeprefix("features:"): s for k, s in needs.items() if grad and k.startswith("features:")}
        found: dict[str, dict[str, Scores | Tensor]] = {}
        with contextlib.nullcontext() if grad else torch.no_grad():
            here = {name: names for name, names in asked.items() if name in batch.rows}
            found |= self._on(model, batch, here, features)
            for name, other in batch.apart.items():
                if name in asked:
                    found[name] = self._on(model, other, {"responses": asked[name]}, {})["responses"]
        if absent := [name for name in asked if name not in found]:
            raise PrefoptError(f"the batch was collated without '{absent[0]}'; it has {', '.join(found)}")
        return found

    def _on(
        self, model: nn.Module, batch: TextBatch, asked: Mapping[str, set[str]], features: Needs
    ) -> dict[str, dict[str, Scores | Tensor]]:
        """One forward over a layout for all row sets on it (and one of the reference, where it has to run)."""
        found: dict[str, dict[str, Scores | Tensor]] = {name: {} for name in asked}
        told = self._by_reference(model, batch, asked, features, found)
        want = {name: [NUMBER_OF[n] for n in sorted(names) if n in NUMBER_OF] for name, names in asked.items()}
        if "hidden" in features:
            want["responses"].append("own")
        graded = features.get("graded_features")
        if graded is not None:
            want["graded"] = [f"pooled:{graded.get('how', {}).get('pool', 'last')}"]
        want = {name: w for name, w in want.items() if w}
        if want:
            on = batch if graded is None else batch.graded
            assert on is not None, "collated with graded versions where they are asked for"
            values = model(tree=on.layout, rows={name: on.rows[name] for name in want}, want=want, reference=told)
            if graded is not None:
                f = values.pop("graded").popitem()[1]
                found["responses"]["graded_features"] = f.view(len(batch.rows["responses"].mask), -1, f.shape[-1])
            for name, answers in values.items():
                count = batch.rows[name].mask.float()
                for score, number in NUMBER_OF.items():
                    if number in answers:
                        x = answers[number]
                        found[name][score] = Scores(x, count if x.shape == count.shape else torch.ones_like(x))
                if "own" in answers:
                    found[name]["hidden"] = answers["own"]
        for source, reader in self.sources.items():
            named = [name for name, names in asked.items() if source in names]
            for name, scores in (reader.scores_of(model, batch, named) if named else {}).items():
                found[name][source] = scores
        return found

    def _by_reference(
        self,
        model: nn.Module,
        batch: TextBatch,
        asked: Mapping[str, set[str]],
        features: Needs,
        found: Mapping[str, dict[str, Scores | Tensor]],
    ) -> dict[str, Reference]:
        """Fills in what the reference says, with one forward at most; returns what the exact KL needs of it."""
        want: dict[str, list[str]] = {name: ["logps"] for name, names in asked.items() if "reference" in names}
        compared = [name for name, names in asked.items() if "token_kl" in names]
        for name in compared:
            want.setdefault(name, []).append("hidden")
        inside = {name: _wanted(name, spec) for name, spec in features.items() if name in OF_REFERENCE}
        if inside:
            want.setdefault("responses", []).extend(dict.fromkeys(inside.values()))
        if not want:
            return {}
        reference = self._reference()
        if not compared and not inside:
            for name, scores in reference.scores_of(model, batch, list(want)).items():
                found[name]["reference"] = scores
            return {}
        answers = reference.answers(model, batch, want)
        for name in want:
            if "logps" in want[name]:
                found[name]["reference"] = Scores(answers[name]["logps"], batch.rows[name].mask.float())
        for name, wanted in inside.items():
            x = answers["responses"][wanted]
            found["responses"][name] = (
                x if name != "activation_group" else self._groups(model, features[name], x.device)
            )
        head = reference.head() if compared else None
        return {name: Reference(answers[name]["hidden"], head) for name in compared}

    def _groups(self, model: nn.Module, spec: Mapping[str, Any], device: torch.device) -> Tensor:
        of = spec.get("how", {}).get("of", GROUPS)
        return torch.tensor(group_numbers(core(self._reference().network(model)), of), device=device)

    def _reference(self) -> ReferenceModel:
        if self.reference is None:
            raise PrefoptError("this method compares with a reference, and the scorer was made without one")
        return self.reference
