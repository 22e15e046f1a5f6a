"""Training in stages, each from the end of the one before and measured from there (Curry-DPO, sDPO)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data.example import Example
from ..errors import PrefoptError
from ..files import write_atomically
from ..objectives.method import Method, require
from .steps import Steps

log = logging.getLogger("prefopt")


def check_stages(steps: Steps, base: Method, update_reference: bool, kl_prompts: int) -> None:
    """Rules between the configuration and stages with a reference of their own each."""
    needs, reference = base.needs(), steps.config.reference
    measured = bool({"scores:reference", "scores:token_kl"} & set(needs))
    require(measured or update_reference, f"method.update_reference has no effect: {base.name} uses no reference model")
    require(kl_prompts >= 0, f"method.kl_prompts = {kl_prompts}: must be 0 (nothing is measured) or more")
    require(
        not (update_reference and reference.path),
        f"reference.path = {reference.path}: every stage has a reference of its own, the end of the stage before; leave "
        "it out, or set method.update_reference=false",
    )
    require(
        reference.kind != "adapter_off",
        "reference.kind = adapter_off: from the second stage on the adapter is part of the reference; take auto",
    )


def in_stages(
    steps: Steps,
    base: Method,
    data: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    *,
    update_reference: bool,
    kl_prompts: int,
) -> str:
    """One ordinary run for each of `data` (keys of the data section), with a fresh optimiser and schedule, from the last
    one's model; returns the last model's folder.

    The reference is the model that the stage starts from, or with update_reference off always the first (or that of
    `reference.path`). Every stage leaves its divergence from the first model, on `kl_prompts` prompts of `examples`.
    """
    first = model = steps.config.model.path
    for number, keys in enumerate(data, 1):
        reference = model if update_reference else None if steps.config.reference.path else first
        model = steps.train(f"stage-{number}/run", base, model=model, data=keys, reference=reference)
        if kl_prompts:
            steps.make(f"stage-{number}/kl.json", partial(_drift, steps, model, examples, kl_prompts))
    return model


def _drift(steps: Steps, model: str, examples: Sequence[Example], count: int, path: Path) -> None:
    """KL(model || first model) in nats per answer, on the model's own answers: budgets of stages add up, and the last
    reference bounds only the last."""
    from ..data.encode import Encoder
    from ..data.fields import TeachesNothing
    from ..evaluation.divergence import kl_k1, kl_k3
    from ..models.text import load_tokenizer
    from ..rollout.numbers import answers, token_numbers
    from ..rollout.text import Sampling, encode_prompt, generate

    tokenizer = load_tokenizer(model)
    encoder = Encoder(tokenizer, steps.config.data)
    chosen = np.random.default_rng(0).permutation(len(examples))[:count]
    prompts, longest = [], 1
    for i in sorted(chosen):
        try:
            longest = max(longest, *map(len, encoder(examples[i]).response_ids))
        except TeachesNothing:  # over the limit: not trained on either
            continue
        prompts.append(examples[i])
    policy = loaded(steps, model)
    samples = generate(policy, tokenizer, prompts, Sampling(max_new_tokens=longest), encoder=encoder, progress=False)
    asked = [encode_prompt(encoder, p) for p in prompts]
    said = [answers(p, [s.token_ids for s in group]) for p, group in zip(asked, samples, strict=True)]
    after, before = (
        [row for numbers in token_numbers(look, said, progress=False) for row in numbers["policy"]]
        for look in (policy, loaded(steps, steps.config.model.path))
    )
    k1, k3 = kl_k1(after, before), kl_k3(after, before)
    kl = {"k1": k1.to_json(), "k3": k3.to_json(), "prompts": len(prompts)}
    write_atomically(path, json.dumps(kl, indent=2) + "\n")
    log.info("KL to the first model: %.3g nats an answer", k3.value)


def loaded(steps: Steps, path: str) -> Any:
    """A model to be read only, where the recipe's own would be loaded."""
    import torch

    from ..models.text import load_text_model

    config = steps.config.model.model_copy(update={"path": path, "adapter": None})
    return load_text_model(config, trainable=False).model.to("cuda" if torch.cuda.is_available() else "cpu")


def text_only(steps: Steps) -> None:
    """PrefoptError where the recipe was given an image model."""
    from ..models.text import model_kind

    if model_kind(steps.config.model.path) != "text":
        raise PrefoptError(f"{steps.recipe.name} trains text models; {steps.config.model.path} is a diffusion pipeline")
