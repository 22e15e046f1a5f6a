"""The scorer of text: collates trees, and answers a method's questions with one forward for each layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from ..errors import PrefoptError
from ..objectives.scores import Scores
from .base import Needs, asked_of
from .batch import EXTRAS, Collator, TextBatch
from .entry import core, install
from .reference import ReferenceModel

__all__ = ["TextBatch", "TextScorer", "core", "install"]

NUMBER_OF = {"policy": "logps", "entropy": "entropy", "token_kl": "token_kl", "reward": "reward"}
"""Score name -> what the scoring entry calls it."""


def asked_sources(needs: Needs) -> set[str]:
    """Names of scores that only another model can give (`sources`)."""
    inside = [spec.get("asked", {}) for key, spec in needs.items() if key.startswith("extras:")]
    asked = {key.removeprefix("scores:") for of in (needs, *inside) for key in of if key.startswith("scores:")}
    return asked - {"reference", *NUMBER_OF}


class TextScorer:
    """Scores text batches with a model that `install` prepared.

    sources: name -> another frozen model's scores (see training/text_sources.py).
    needs: of the method (`Method.needs()`), or just which extras to collate. reference: None where the method has
    none. notes: annotations that the data holds, for `offers`.
    """

    def __init__(
        self,
        needs: Needs | Iterable[str] = (),
        reference: ReferenceModel | None = None,
        notes: Iterable[str] = (),
        reward: bool = False,
        sources: Mapping[str, ReferenceModel] | None = None,
    ):
        extras = frozenset(key.removeprefix("extras:") for key in needs if key.startswith("extras:"))
        self.reference, self.notes, self.reward = reference, tuple(notes), reward
        self.sources = dict(sources or {})
        self.collate = Collator(extras.intersection(EXTRAS))

    def offers(self) -> set[str]:
        scores = {"reward"} if self.reward else {"policy", "entropy"}
        if self.reference is not None:
            scores |= {"reference"} | ({"token_kl"} if self.reference.runs else set())
        scores |= set(self.sources)
        return (
            {f"scores:{s}" for s in scores}
            | {f"extras:{e}" for e in EXTRAS}
            | {f"notes:{n}" for n in ("group", *self.notes)}
        )

    def score(
        self, model: nn.Module, batch: TextBatch, needs: Needs, grad: bool = True
    ) -> dict[str, dict[str, Scores]]:
        """See `base.Scorer`: {"responses": {"policy": Scores, ...}, "prompt": ...}."""
        asked = asked_of(needs, grad)
        found: dict[str, dict[str, Scores]] = {}
        with contextlib.nullcontext() if grad else torch.no_grad():
            here = {name: names for name, names in asked.items() if name in batch.rows}
            found |= self._on(model, batch, here)
            for name, other in batch.apart.items():
                if name in asked:
                    found[name] = self._on(model, other, {"responses": asked[name]})["responses"]
        if absent := [name for name in asked if name not in found]:
            raise PrefoptError(f"the batch was collated without '{absent[0]}'; it has {', '.join(found)}")
        return found

    def _on(self, model: nn.Module, batch: TextBatch, asked: Mapping[str, set[str]]) -> dict[str, dict[str, Scores]]:
        """One forward over a layout for all row sets on it (and one of the reference, where it has to run)."""
        referred = [name for name, names in asked.items() if "reference" in names]
        compared = [name for name, names in asked.items() if "token_kl" in names]
        told = self._reference().states(model, batch, compared) if compared else {}
        want = {name: tuple(NUMBER_OF[n] for n in sorted(names) if n in NUMBER_OF) for name, names in asked.items()}
        want = {name: w for name, w in want.items() if w}
        found: dict[str, dict[str, Scores]] = {name: {} for name in asked}
        if want:
            rows = {name: batch.rows[name] for name in want}
            values = model(tree=batch.layout, rows=rows, want=want, reference=told)
            for name, answers in values.items():
                count = batch.rows[name].mask.float()
                for score, number in NUMBER_OF.items():
                    if number in answers:
                        x = answers[number]
                        found[name][score] = Scores(x, count if x.shape == count.shape else torch.ones_like(x))
        if referred:
            for name, scores in self._reference().scores_of(model, batch, referred).items():
                found[name]["reference"] = scores
        for source, reader in self.sources.items():
            named = [name for name, names in asked.items() if source in names]
            for name, scores in (reader.scores_of(model, batch, named) if named else {}).items():
                found[name][source] = scores
        return found

    def _reference(self) -> ReferenceModel:
        if self.reference is None:
            raise PrefoptError("this method compares with a reference, and the scorer was made without one")
        return self.reference
