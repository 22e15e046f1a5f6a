"""The text modality: a language model (or a reward model on one), tokenised data, packed scoring, a reference."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...config import RunConfig
from ...data.encode import Encoder
from ...data.prepare import prepare_text
from ...errors import PrefoptError
from ...models.text import TextModel, load_text_model
from ...objectives.method import Method
from ...rollout.text import Sampling, continuations, end_tokens
from ...scoring.entry import head_of, install
from ...scoring.identity import identity_of
from ...scoring.reference import (
    AdapterOffReference,
    DrawSet,
    FrozenReference,
    ReferenceModel,
    StoredReference,
    adapter_off_obstacle,
)
from ...scoring.text import TextScorer, must_run
from ..needs import data_needs, grading
from ..sampler import Drawn, Part
from ..task import Task
from .following import following, kind_of_reference
from .positions import refuse_past_positions
from .text_sources import Sources, another_model

log = logging.getLogger("prefopt")


def text_task(config: RunConfig, method: Method) -> Task:
    """Model, data and scorer of a text run. Raises PrefoptError for whatever cannot be trained on."""
    needs = method.needs()
    reward = "scores:reward" in needs
    loaded = load_text_model(config.model, head="reward" if reward else "lm")
    prepared = prepare_text(config.data, loaded.tokenizer, needs=data_needs(needs), grading=grading(needs))
    model = install(loaded.model)
    refuse_past_positions(model, (prepared.train, prepared.eval))
    identity = identity_of(model)
    reference, live = _reference(config, loaded, needs)
    sources = Sources(config, loaded, _autocast(config))
    first = prepared.train[0]
    notes = [*first.notes, *(["pairs"] if first.pairs else [])]
    scorer = TextScorer(needs, reference, notes, reward, sources.stores, model)
    partners = "extras:mismatched" in needs
    collate = dataclasses.replace(scorer.collate, graded=False)  # what stores hold is not asked of graded versions

    def prepare(seen: np.ndarray) -> None:
        sets: list[DrawSet] = [Part(Drawn(prepared.train, partners, config.data_seed), seen)]
        if prepared.eval is not None:
            sets.append(Drawn(prepared.eval, partners, config.data_seed))
        if isinstance(reference, StoredReference):
            reference.prepare(live, collate, sets)
        sources.prepare(collate, sets, next(model.parameters()).device)

    record: dict[str, Any] = {
        "data": prepared.record,
        "model": {"path": config.model.path, "fingerprint": identity},
        "reference_is_start": reference is not None and config.reference.path is None,
    }
    if reference is not None:
        record["reference"] = {"kind": _kind_of(reference), "identity": reference.identity}
    if config.sources:
        record["sources"] = sources.record()
    moving = following(config.reference, reference.model, model) if isinstance(reference, FrozenReference) else {}
    save = _saver(loaded)
    data = (prepared.train, prepared.eval)

    def answer(examples: Sequence[Any], number: int, most: int, seed: int) -> list[list[list[int]]]:
        ends = end_tokens(model, Encoder(loaded.tokenizer, config.data))
        return continuations(model, [e.prompt_ids for e in examples], ends, Sampling(most, n=number, seed=seed))

    task = Task(model, *data, scorer, save, record, processing_class=loaded.tokenizer, prepare=prepare, moving=moving)
    return task if reward else dataclasses.replace(task, answer=answer)


def _reference(
    config: RunConfig, loaded: TextModel, needs: Mapping[str, Any]
) -> tuple[ReferenceModel | None, nn.Module]:
    """The reference, and the model that fills its store (None and the policy where the method has none)."""
    policy = loaded.model
    runs = must_run(needs)
    if "scores:reference" not in needs and not runs:
        return None, policy
    kind = kind_of_reference(config.reference)
    if runs and kind == "store":
        raise PrefoptError(
            "reference.kind = store: this method needs whole distributions or hidden states of the reference; take "
            "frozen, or train an adapter"
        )
    if config.reference.path is not None:
        if kind == "adapter_off":
            raise PrefoptError(
                "reference.kind = adapter_off has no effect with reference.path: the reference is that model"
            )
        other = another_model(config.reference.path, config, loaded, "reference.path")
        if "scores:token_kl" in needs:
            _refuse_other_words(policy, other, config.reference.path)
        if kind == "frozen" or runs:
            return FrozenReference(other), other
        return StoredReference(other, autocast=_autocast(config)), other
    if kind == "auto":
        legal = adapter_off_obstacle(policy) is None
        kind = "adapter_off" if legal else "frozen" if runs else "store"
        if config.model.adapter is not None and not legal:
            log.info("the reference is %s: %s", kind, adapter_off_obstacle(policy))
    if kind == "adapter_off":
        return AdapterOffReference(policy), policy
    if kind == "frozen":
        return FrozenReference.copy_of(policy, merged=config.reference.moves), policy
    return StoredReference(policy, autocast=_autocast(config)), policy


def _refuse_other_words(policy: nn.Module, other: nn.Module, path: str) -> None:
    words, others = (len(head_of(m).weight) for m in (policy, other))
    if words != others:
        raise PrefoptError(
            f"reference.path = {path}: its head knows {others} words, the policy's {words}; the exact KL needs whole "
            "distributions over the same ones"
        )


def _autocast(config: RunConfig) -> torch.dtype | None:
    """The dtype that the trainer's forwards run under: the stored reference must be computed under the same."""
    if config.train.get("bf16"):
        return torch.bfloat16
    return torch.float16 if config.train.get("fp16") else None


def _kind_of(reference: ReferenceModel) -> str:
    return {StoredReference: "store", AdapterOffReference: "adapter_off", FrozenReference: "frozen"}[type(reference)]


def _saver(loaded: TextModel) -> Any:
    def save(model: Any, folder: Path, weights: dict[str, Any] | None) -> None:
        model.save_pretrained(folder, state_dict=weights)  # a model, or an adapter with the name of its base
        loaded.tokenizer.save_pretrained(folder)

    return save
