"""The configuration of a run: YAML and dotted overrides, validated, every error naming its key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .data.config import DataConfig
from .errors import PrefoptError
from .objectives.hyper import Positive
from .train_keys import WITHOUT_EFFECT, train_types, train_value


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class AdapterConfig(Section):
    """A LoRA adapter (peft)."""

    r: int = Field(16, ge=1, description="rank")
    alpha: float = Field(32, gt=0, description="scale: alpha / r multiplies the update")
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] | None = Field(None, description="None: all linear layers but the head")
    use_rslora: bool = False
    use_dora: bool = False


class ModelConfig(Section):
    """What is trained."""

    path: str = Field(description="a transformers or diffusers folder, an adapter folder, or a hub name")
    adapter: AdapterConfig | None = Field(None, description="train a LoRA adapter instead of all weights")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field("float32", description="of the loaded weights")
    attention: str | None = Field(None, description="attention implementation of families on the plain path")
    disable_dropout: bool = Field(True, description="scores of policy and reference are comparable only without")
    revision: str | None = Field(None, description="of a hub name")

    @field_validator("adapter", mode="before")
    @classmethod
    def _bare_adapter(cls, value: Any) -> Any:
        return {} if value is True else None if value is False else value


class ReferenceConfig(Section):
    """What the policy is measured against, for methods with a reference."""

    kind: Literal["auto", "store", "adapter_off", "frozen"] = Field(
        "auto",
        description="store: per-token log-probs on disk; adapter_off: the policy without its adapter; frozen: a copy. "
        "auto takes adapter_off for adapters, else the store (text) or a copy (diffusion)",
    )
    path: str | None = Field(None, description="another model than the one that training starts from")
    mixup_alpha: float | None = Field(
        None,
        gt=0,
        le=1,
        description="the reference follows the policy (TR-DPO): ref <- a policy + (1 - a) ref; 1 (a copy) if only "
        "sync_steps is given",
    )
    sync_steps: int | None = Field(
        None, ge=1, description="optimiser steps from one such update to the next; 1 if only mixup_alpha is given"
    )

    @property
    def moves(self) -> bool:
        """Does the reference change during a run?"""
        return self.mixup_alpha is not None or self.sync_steps is not None


class SourceConfig(Section):
    """Another frozen model that the method asks for by a name of its own: of texts, or the pipeline `base` whose
    predictions a step-aware preference model judges."""

    path: str = Field(description="a transformers folder, an adapter folder, or a hub name; the policy's tokenizer")


class DenoisingConfig(Section):
    """Diffusion only."""

    resolution: int | None = Field(None, ge=8, description="of the training images; None: the model's own")
    caption_dropout: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of pairs whose caption is emptied, so guidance keeps working; None: 0.2, or what the method's "
        "way of noising has",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="what is saved is the running mean of the weights with this decay; None: the last weights",
    )
    random_flip: bool = Field(False, description="flip images horizontally at random, each on its own")
    flow_sampling: Literal["logit_normal", "uniform"] = Field("logit_normal", description="of flow times")
    flow_shift: Positive | None = Field(None, description="time shift of flow models; None: the scheduler's own")
    timesteps: Literal["all", "turbo", "refiner"] = Field(
        "all",
        description="turbo: the four of a distilled model, and a schedule that ends in pure noise; refiner: 0 .. 199",
    )
    shared_noise: bool = Field(
        True, description="false: chosen and rejected are noised each by its own draw (an ablation)"
    )
    bank: int | None = Field(
        None,
        ge=1,
        description="so many draws of time and noise for each example, used over and over; the reference's errors on them "
        "are computed once and kept on disk",
    )
    mixed_sizes: Literal["refuse", "resize"] = Field(
        "refuse", description="images of differing size for one prompt; resize: each is resized and cropped for itself"
    )


class RolloutConfig(Section):
    """Sampling inside online recipes."""

    rounds: int = Field(3, ge=1, description="rounds of sample, judge, pair, train")
    prompts_per_round: int = Field(256, ge=1)
    samples_per_prompt: int = Field(4, ge=2)
    max_new_tokens: int = Field(128, ge=1)
    temperature: Positive = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: int = Field(64, ge=1)
    reward: str | None = Field(None, description="module:function, file.py:function or a reward model's folder")
    judge: str | None = Field(None, description="module:function or file.py:function comparing two answers")
    reference: Literal["start", "round"] = Field("start", description="fixed, or moved to each round's start")


class DiagnosticsConfig(Section):
    """The three properties of DPO (2406.07327), followed while a pairwise method trains."""

    every: int = Field(0, ge=0, description="steps from one look to the next; 0: never")
    pairs: int = Field(64, ge=2, description="training pairs that are followed, drawn by train.seed")
    samples: int = Field(
        1, ge=0, description="text: unseen answers to each followed prompt, drawn from the model before the first step"
    )
    max_new_tokens: int = Field(128, ge=1, description="of such an answer")
    patience: int = Field(3, ge=1, description="looks in a row with a falling chosen side that count as degradation")


class RunConfig(Section):
    """One training run."""

    method: dict[str, Any]
    model: ModelConfig
    data: DataConfig
    train: dict[str, Any] = Field(default_factory=dict)
    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)  # type: ignore[arg-type]
    sources: dict[str, SourceConfig] = Field(default_factory=dict)  # name as the method asks for it -> model
    denoising: DenoisingConfig = Field(default_factory=DenoisingConfig)  # type: ignore[arg-type]
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)  # type: ignore[arg-type]
    diagnostics: DiagnosticsConfig = Field(default_factory=DiagnosticsConfig)  # type: ignore[arg-type]
    output: str

    @property
    def data_seed(self) -> int:
        """By which data are drawn: train.data_seed, or else train.seed."""
        given = self.train.get("data_seed")
        return int(self.train.get("seed", 0) if given is None else given)

    def given(self, section: str) -> set[str]:
        """Keys of a section that the user set to something else than their defaults."""
        value = getattr(self, section)
        return {k for k in value.model_fields_set if getattr(value, k) != type(value).model_fields[k].default}


SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "reference": ReferenceConfig,
    "denoising": DenoisingConfig,
    "rollout": RolloutConfig,
    "diagnostics": DiagnosticsConfig,
}


SHORTHAND = {"method": "name", "model": "path", "data": "path"}  # `data: pairs.jsonl` means data.path


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 5e-7 is a number (YAML 1.1 reads a text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """The value of an override, read as YAML."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError:
        return text


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file as plain data."""
    if not path.is_file():
        raise PrefoptError(f"no configuration file {path}")
    try:
        with path.open(encoding="utf-8") as file:  # the file itself: then errors name it
            content = yaml.load(file, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise PrefoptError(f"not valid YAML: {' '.join(str(e).replace(' ^', '').split())} ({path})") from None
    if not isinstance(content, dict):
        raise PrefoptError(f"{path} must hold sections (method, model, data, ...), it holds {type(content).__name__}")
    return content


def override(content: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`content` with `section.key=value` applied, later ones winning."""
    content = {k: dict(v) if isinstance(v, dict) else v for k, v in content.items()}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise PrefoptError(f"'{item}' is not an override: write section.key=value, e.g. train.learning_rate=1e-6")
        *sections, last = key.split(".")
        if not sections and last != "output":
            raise PrefoptError(f"'{key}' names no section{_suggest_section(last)}")
        place = content
        for i, name in enumerate(sections):
            if name not in place or place[name] is None:
                place[name] = {}
            elif isinstance(place[name], str) and i == 0 and name in SHORTHAND:
                place[name] = {SHORTHAND[name]: place[name]}
            if not isinstance(place[name], dict):
                raise PrefoptError(f"{'.'.join(sections[: i + 1])} is a value, not a section: {item} cannot be set")
            place = place[name]
        place[last] = parse_value(text)
    return content


def make(content: Mapping[str, Any]) -> RunConfig:
    """A validated configuration, or PrefoptError naming the key and the nearest valid name."""
    content = dict(content)
    for key in content:
        if key not in RunConfig.model_fields:
            raise PrefoptError(f"unknown section '{key}'{_closest(key, RunConfig.model_fields)}")
    for key, name in SHORTHAND.items():
        if isinstance(content.get(key), str):
            content[key] = {name: content[key]}
    for key in ("method", "model", "data", "output"):
        if content.get(key) in (None, {}):
            raise PrefoptError(f"the configuration lacks `{key}`")
    if not isinstance(content["method"], dict) or "name" not in content["method"]:
        raise PrefoptError("method needs a `name`")
    content["train"] = check_train(content.get("train") or {})
    for name, kind in SECTIONS.items():
        if content.get(name) is None:
            content.pop(name, None)
        elif not isinstance(content[name], dict):
            raise PrefoptError(f"{name} must be a section of keys, it is {content[name]!r}")
        else:
            _refuse_unknown(name, content[name], kind)
    content["sources"] = _sources(content.get("sources"))
    try:
        return RunConfig(**content)
    except ValidationError as e:
        raise PrefoptError(in_words(e)) from None


def _sources(content: Any) -> dict[str, Any]:
    """`sources: {NAME: FOLDER}` or `{NAME: {path: FOLDER}}`."""
    if not isinstance(content or {}, dict):
        raise PrefoptError(f"sources must be a section of names, each with a model's folder; it is {content!r}")
    named = {k: {"path": v} if isinstance(v, str) else v for k, v in (content or {}).items()}
    for name, value in named.items():
        if not isinstance(value, dict):
            raise PrefoptError(f"sources.{name} = {value!r}: must be a model's folder, or a section with its `path`")
        _refuse_unknown(f"sources.{name}", value, SourceConfig)
    return named


def check_train(train: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `train`: transformers.TrainingArguments' own, less those without effect here."""
    if not isinstance(train, Mapping):
        raise PrefoptError(f"train must be a section of keys, it is {train!r}")
    if not train:
        return {}  # what knows of data alone does without transformers
    known = set(train_types())
    values = {}
    for key, value in train.items():
        if key in WITHOUT_EFFECT:
            raise PrefoptError(f"train.{key} has no effect in prefopt: {WITHOUT_EFFECT[key]}")
        if key not in known:
            raise PrefoptError(f"unknown key 'train.{key}'{_closest(key, known - set(WITHOUT_EFFECT), 'train.')}")
        values[key] = train_value(key, value)
    return values


def _refuse_unknown(section: str, content: Mapping[str, Any], kind: Any) -> None:
    for key, value in content.items():
        if key not in kind.model_fields:
            raise PrefoptError(f"unknown key '{section}.{key}'{_closest(key, kind.model_fields, section + '.')}")
        if kind is ModelConfig and key == "adapter" and isinstance(value, dict):
            _refuse_unknown("model.adapter", value, AdapterConfig)


def _closest(key: str, known: Iterable[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(key, list(known), 1, cutoff=0.6)
    if close:
        return f"; did you mean '{prefix}{close[0]}'?"
    elsewhere = _suggest_section(key)
    if elsewhere.startswith("; did") or len(list(known)) > 40:
        return elsewhere
    return f"; there are {', '.join(sorted(known))}"


def _suggest_section(key: str) -> str:
    """Where a key of this name lives."""
    homes = {name: list(kind.model_fields) for name, kind in SECTIONS.items()}
    homes["train"] = list(train_types())
    found = [f"{home}.{key}" for home, keys in homes.items() if key in keys and key not in WITHOUT_EFFECT]
    if not found:
        found = [f"{home}.{c}" for home, keys in homes.items() for c in difflib.get_close_matches(key, keys, 1, 0.8)]
    return f"; did you mean '{found[0]}'?" if found else ": write section.key=value (method.beta=0.1)"


def in_words(e: ValidationError) -> str:
    lines = []
    for error in e.errors():
        key = ".".join(str(x) for x in error["loc"] if not (isinstance(x, str) and x in ("str", "list[str]")))
        given = "" if error["type"] == "missing" else f" = {error['input']!r}"
        lines.append(f"{key or 'configuration'}{given}: {error['msg'].removeprefix('Value error, ')}")
    return "; ".join(dict.fromkeys(lines))


def dump(config: RunConfig) -> str:
    """The effective configuration as YAML: every key with the value that it had."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
