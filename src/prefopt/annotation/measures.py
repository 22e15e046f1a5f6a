"""What gives numbers to responses: a reward model or function, log-probabilities of a model, an implicit reward.

A measure is opened (which may load a model), asked chunk by chunk, and let go. Its `identity` names what it is, weights
and tokenizer included, so that answers can be kept by content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ..config import ModelConfig
from ..data.config import DataConfig
from ..data.encode import Encoder
from ..data.example import Example
from ..data.fields import TeachesNothing, Unreadable
from ..data.images import image_of
from ..data.messages import content
from ..data.row_fields import Modality
from ..data.truncate import PROMPT_OVER
from ..errors import PrefoptError

Answers = list[list[list[float]]]
"""Example -> response -> numbers."""


class Measure(Protocol):
    """Numbers of the responses of examples."""

    name: str
    identity: str

    def open(self) -> None: ...
    def __call__(self, examples: Sequence[Example]) -> Answers: ...
    def close(self) -> None: ...


@dataclass
class ByReward:
    """One number: a reward model's folder, module:function or file.py:function of (prompts, responses), or a scorer of
    pictures."""

    name: str
    reading: DataConfig
    modality: Modality = "text"
    identity: str = ""
    _reward: Any = None

    def open(self) -> None:
        from ..rewards.callables import source_hash
        from ..rewards.images import ImageScorer
        from ..rewards.load import load_reward
        from ..rewards.model import RewardModel
        from ..scoring.identity import identity_of

        self._reward = load_reward(self.name, progress=False)
        function = self._reward.function
        if isinstance(function, ImageScorer if self.modality == "text" else RewardModel):
            other = {"text": "pictures, and the responses are texts", "image": "texts, and the responses are pictures"}
            raise PrefoptError(f"{self.name} scores {other[self.modality]}")
        if isinstance(function, RewardModel):
            function.encoder = Encoder(function.encoder.tokenizer, self.reading)
            what = identity_of(function.model) + _words(function.encoder.tokenizer)
        elif isinstance(function, ImageScorer):
            what = function.identity
        else:
            what = f"{self.name} {source_hash(function)}"
        self.identity = _digest("reward", what, self._reward.objective, self.reading.model_dump())

    def __call__(self, examples: Sequence[Example]) -> Answers:
        whole = getattr(self._reward.function, "takes_messages", False)
        flat = [(e.prompt, self._shown(r, e, whole)) for e in examples for r in e.responses]
        values = iter(self._reward([p for p, _ in flat], [r for _, r in flat]))
        return [[[next(values)] for _ in e.responses] for e in examples]

    def _shown(self, response: Any, example: Example, whole: bool) -> Any:
        """A response as the reward takes it."""
        if self.modality == "image":
            return image_of(response, example)
        return response if whole else _said(response)

    def close(self) -> None:
        self._reward = None


@dataclass
class LogProbability:
    """Two numbers, the sum over a response's own tokens and how many they are, under a model's own tokenizer and chat
    template; its end token counts, the prompt does not."""

    name: str  # a model's folder, an adapter's or a run's
    reading: DataConfig  # how texts become its tokens
    key: str = "sources"  # what the folder was given as, for messages
    identity: str = ""
    _model: Any = None
    _encoder: Any = None

    def open(self) -> None:
        from ..models.text import load_text_model
        from ..scoring.identity import identity_of

        try:
            loaded = load_text_model(ModelConfig(path=self.name), trainable=False)
        except PrefoptError as e:
            raise PrefoptError(str(e).replace("model.path", self.key, 1)) from None
        self._model = loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder = Encoder(loaded.tokenizer, self.reading)
        how = self.reading.model_dump()
        self.identity = _digest("logps", identity_of(loaded.model), _words(loaded.tokenizer), how)

    @property
    def tokenizer(self) -> Any:
        return self._encoder.tokenizer

    def __call__(self, examples: Sequence[Example]) -> Answers:
        from ..rollout.numbers import token_numbers

        encoded = [_encoded(self._encoder, e, self.name) for e in examples]
        self._refuse_past_positions(examples, encoded)
        found = token_numbers(self._model, encoded, progress=False)
        return [[[float(x.sum(dtype="float64")), float(len(x))] for x in one["policy"]] for one in found]

    def _refuse_past_positions(self, examples: Sequence[Example], encoded: Sequence[Any]) -> None:
        from ..training.tasks.positions import learned_positions

        limit = learned_positions(self._model)
        for example, e in zip(examples, encoded, strict=True):
            length = len(e.prompt_ids) + max(map(len, e.response_ids))
            if limit is not None and length > limit:
                raise PrefoptError(
                    f"{example.origin}: cannot be scored by {self.name}: prompt and response are {length} of its tokens, "
                    f"and it has {limit} positions; set data.max_length to {limit} or less"
                )

    def close(self) -> None:
        self._model = None


def _said(response: Any) -> str:
    """What the assistant says in a response, as a function gets it."""
    if isinstance(response, str):
        return response
    return "\n".join(content(m) for m in response if m["role"] == "assistant")


_REMEDY = "its own tokens fill max_length; raise that, or say with max_prompt_length how far prompts may be cut"


def _encoded(encoder: Encoder, example: Example, name: str) -> Any:
    bare = replace(example, pairs=(), notes={}, gold=None, steps=None)
    try:
        return encoder(bare)
    except (Unreadable, TeachesNothing) as e:
        longer = f": {_REMEDY}" if str(e) == PROMPT_OVER else ""
        raise PrefoptError(f"{example.origin}: cannot be scored by {name}: {e}{longer}") from None


@dataclass(frozen=True)
class Entry:
    """One number of a column, from the answers of measures: a value itself, or beta (log pi - log pi_ref)."""

    spec: str
    measures: tuple[Measure, ...]
    beta: float | None = None

    def of(self, answers: Sequence[list[float]]) -> float:
        """The number of one response."""
        if self.beta is None:
            return answers[0][0]
        return self.beta * (answers[0][0] - answers[1][0])


@dataclass
class Known:
    """Measures by what they are asked for, so that one model is opened once whatever it is used for."""

    reading: DataConfig
    modality: Modality = "text"
    made: dict[tuple[str, str], Measure] = field(default_factory=dict)

    def reward(self, spec: str) -> Measure:
        return self.made.setdefault(("reward", spec), ByReward(spec, self.reading, self.modality))

    def log_probability(self, folder: str, key: str) -> Measure:
        if self.modality == "image":
            raise PrefoptError(f"{key} = {folder}: log-probabilities are of texts, and the responses are pictures")
        return self.made.setdefault(("logps", folder), LogProbability(folder, self.reading, key))

    def entry(self, spec: str, key: str) -> Entry:
        """A reward, or `implicit:MODEL[,reference=FOLDER][,beta=NUMBER]`."""
        if not spec.startswith("implicit:"):
            return Entry(spec, (self.reward(spec),))
        model, reference, beta = implicit(spec, key)
        pair = (self.log_probability(model, key), self.log_probability(reference, key))
        return Entry(spec, pair, beta)


def implicit(spec: str, key: str) -> tuple[str, str, float]:
    """(model, its reference, its beta) of an implicit reward; a run of prefopt knows its own."""
    model, *given = spec.removeprefix("implicit:").split(",")
    options = dict(item.partition("=")[::2] for item in given)
    if unknown := set(options) - {"reference", "beta"}:
        raise PrefoptError(f"{key} = {spec}: unknown '{min(unknown)}'; there are reference=FOLDER and beta=NUMBER")
    usual = {} if {"reference", "beta"} <= set(options) else _of_run(Path(model).expanduser())
    known = usual | options
    if lacking := [k for k in ("reference", "beta") if known.get(k) in (None, "")]:
        raise PrefoptError(
            f"{key} = {spec}: {model} is no run of prefopt that says its {' and '.join(lacking)}; an implicit reward is "
            f"beta (log pi - log pi_ref) with those of its own training: implicit:{model},reference=FOLDER,beta=NUMBER"
        )
    try:
        beta = float(known["beta"])
    except ValueError:
        raise PrefoptError(f"{key} = {spec}: beta = {known['beta']!r} is no number") from None
    if not 0 < beta < float("inf"):
        raise PrefoptError(f"{key} = {spec}: beta must be greater than 0")
    return model, str(known["reference"]), beta


def _of_run(folder: Path) -> dict[str, Any]:
    if not (folder / "config.yaml").is_file():
        return {}
    from ..evaluation.run import run_config

    config = run_config(folder)
    return {"reference": config.reference.path or config.model.path, "beta": config.method.get("beta")}


def same_tokenizer(entry: Entry, key: str) -> None:
    """An implicit reward is a sum over the same tokens of both models. (Both have been opened.)"""
    models = [m for m in entry.measures if isinstance(m, LogProbability)]
    words = [m.tokenizer.get_vocab() for m in models]
    if any(w != words[0] for w in words):
        names = " and its reference ".join(m.name for m in models)
        raise PrefoptError(f"{key} = {entry.spec}: {names} have other tokenizers than each other")


def _words(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return _digest(words, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
