"""A study as the user writes it: what is shared by all runs, and what varies."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from ..config import RunConfig, Section, in_words, override, parse_value
from ..errors import PrefoptError
from ..objectives.hyper import Fraction, Positive

SHARED = tuple(name for name in RunConfig.model_fields if name not in ("method", "output"))
LABEL = re.compile(r"[\w.+-]+")


class MethodConfig(Section):
    """One line of the comparison: a method with the settings that are tried.

    A key of `grid` or `points` is a hyperparameter of the method (`beta`), or a dotted key of a run
    (`train.learning_rate`). The first value of each key (the first point) is the method's central setting.
    """

    method: str | dict[str, Any] | None = Field(None, description="a method, recipe or file.py; default: the label")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="key -> values; all combinations are run")
    points: list[dict[str, Any]] = Field(default_factory=list, description="or the settings one by one")
    settings: dict[str, Any] = Field(default_factory=dict, description="dotted keys that hold for all its runs")
    seeds: list[int] = Field(default_factory=list, description="fewer seeds, for a line that is dear; default: all")

    def tried(self) -> list[dict[str, Any]]:
        """Every setting, the central one first."""
        if self.points:
            return [dict(p) for p in self.points]
        return [dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values())]


class EvaluationConfig(Section):
    """How every run is measured: on the same prompts, with the same random numbers."""

    reward: str | None = Field(None, description="module:function, file.py:function or a reward model's folder")
    judge: str | None = Field(None, description="module:function or file.py:function comparing two answers")
    data: str | None = Field(None, description="held-out pairs or prompts; default: data.eval_path")
    limit: int = Field(128, ge=1, description="prompts, and held-out pairs")
    samples: int = Field(2, ge=1, description="answers to each prompt")
    max_new_tokens: int = Field(128, ge=1)
    temperature: float = Field(1.0, ge=0, description="1, or the KL is not that of the model")
    seed: int = 0
    batch_size: int | None = Field(None, ge=1, description="answers at once; default: as the model's size allows")


class StudyConfig(Section):
    """Methods x settings x starts x sizes x seeds. `shared` holds the sections of a run that do not vary."""

    name: str = "study"
    methods: dict[str, MethodConfig]
    starts: dict[str, str | dict[str, Any]] = Field(
        default_factory=dict, description="label -> start model (a path, or keys of `model`); the first is the main one"
    )
    sizes: list[int | None] = Field([None], description="rows of data, the first ones of the file; all: every row")
    seeds: list[int] = Field(default_factory=lambda: [0])
    cross: Literal["central", "axes", "full"] = Field(
        "central",
        description="central: further starts and sizes are tried with each method's central setting only; axes: further "
        "starts with the first size only, and further sizes from the first start; full: with all settings",
    )
    crossed: list[str] = Field(
        default_factory=list, description="the lines that are tried with further starts and sizes; default: all"
    )
    evaluation: EvaluationConfig
    thresholds: list[Positive] = Field(
        default_factory=lambda: [0.01, 0.02, 0.05, 0.1], description="d of the shares of runs within d of the best"
    )
    percentiles: list[Fraction] = Field(default_factory=lambda: [0.5, 0.25, 0.1], description="of the runs' scores")
    keep: Literal["numbers", "samples", "models"] = Field("numbers", description="what stays of a measured run")
    jobs: int = Field(1, ge=1, description="runs at once, each in a process of its own")
    output: str
    shared: dict[str, Any] = Field(default_factory=dict, exclude=True)

    @property
    def main_start(self) -> str:
        return next(iter(self.starts))

    def crosses(self, label: str) -> bool:
        """Whether this line is tried with further starts and sizes."""
        return not self.crossed or label in self.crossed

    @property
    def score(self) -> str:
        """What runs are ordered by: the reward, or the win rate against the start where there is only a judge."""
        return "reward" if self.evaluation.reward else "win_start"


def laid_over(content: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`content` with `key=value` and `section.key=value` applied, later ones winning."""
    content = dict(content)
    for item in overrides:
        key, equals, text = item.partition("=")
        if equals and "." not in key and key in StudyConfig.model_fields:
            content[key] = parse_value(text)
        else:
            content = override(content, [item])
    return content


def make_study(content: Mapping[str, Any]) -> StudyConfig:
    """A validated study, or PrefoptError naming the key and the nearest valid name."""
    own = [name for name in StudyConfig.model_fields if name != "shared"]
    _refuse_unknown(content, [*own, *SHARED], "", "key")
    study = {key: content[key] for key in own if content.get(key) is not None}
    study["shared"] = {key: content[key] for key in SHARED if content.get(key) is not None}
    for key in ("methods", "evaluation", "output"):
        if not study.get(key):
            raise PrefoptError(f"the study lacks `{key}`")
    study["methods"] = _methods(study["methods"])
    _refuse_section("evaluation", study["evaluation"], EvaluationConfig)
    study["starts"] = _starts(study.get("starts"), study["shared"])
    if "sizes" in study:
        study["sizes"] = [None if size == "all" else size for size in _listed("sizes", study["sizes"])]
    try:
        made = StudyConfig(**study)
    except ValidationError as e:
        raise PrefoptError(in_words(e)) from None
    _check(made)
    return made


def _methods(given: Any) -> dict[str, Any]:
    if isinstance(given, list):
        given = dict.fromkeys(given)
    if not isinstance(given, dict):
        raise PrefoptError(f"methods must be a list of names, or label: settings; it is {given!r}")
    found: dict[str, Any] = {}
    for label, line in given.items():
        line = {} if line is None else line
        _refuse_section(f"methods.{label}", line, MethodConfig)
        found[str(label)] = line
    return found


def _starts(given: Any, shared: dict[str, Any]) -> dict[str, Any]:
    if given is not None and not isinstance(given, dict):
        raise PrefoptError(f"starts must be label: model; it is {given!r}")
    model = shared.get("model")
    path = model if isinstance(model, str) else (model or {}).get("path")
    if given:
        if path is not None:
            raise PrefoptError("model.path has no effect beside `starts`: name the model there")
        return {str(k): v for k, v in given.items()}
    if path is None:
        raise PrefoptError("the study lacks `model`, or `starts` with several models")
    shared["model"] = {k: v for k, v in model.items() if k != "path"} if isinstance(model, dict) else {}
    return {"start": str(path)}


def _check(study: StudyConfig) -> None:
    for what, labels in (("methods", study.methods), ("starts", study.starts)):
        for label in labels:
            if not LABEL.fullmatch(label):
                raise PrefoptError(f"{what}.{label}: a label is made of letters, digits, '.', '-', '_' and '+'")
    listed: dict[str, list[Any]] = {"sizes": study.sizes, "seeds": study.seeds, "crossed": study.crossed}
    for what, values in listed.items():
        if not values and what != "crossed":
            raise PrefoptError(f"{what} is empty: a grid with no runs compares nothing")
        if len(set(values)) < len(values):
            raise PrefoptError(f"{what} = {values}: names a value twice")
    if any(size is not None and size < 1 for size in study.sizes):
        raise PrefoptError(f"sizes = {study.sizes}: a size is at least 1 row, or `all`")
    if study.evaluation.reward is None and study.evaluation.judge is None:
        raise PrefoptError("evaluation needs a `reward` or a `judge`: there is nothing to compare runs by")
    _refuse_unknown(study.crossed, list(study.methods), "", "line of `crossed`")
    if study.crossed and len(study.starts) * len(study.sizes) == 1:
        raise PrefoptError("crossed has no effect with one start and one size; leave it out")
    for label, line in study.methods.items():
        _check_line(f"methods.{label}", line)
        if extra := [seed for seed in line.seeds if seed not in study.seeds]:
            raise PrefoptError(f"methods.{label}.seeds: {extra} not among seeds = {study.seeds}")


def _check_line(where: str, line: MethodConfig) -> None:
    if line.grid and line.points:
        raise PrefoptError(f"{where}: `grid` and `points` exclude each other; keep one")
    for key, values in line.grid.items():
        if not values:
            raise PrefoptError(f"{where}.grid.{key} is empty: a grid with no runs compares nothing")
    tried = [repr(sorted(point.items())) for point in line.tried()]
    if len(set(tried)) < len(tried):
        raise PrefoptError(f"{where}: the same setting is named twice")
    for point in line.points:
        if set(point) != set(line.points[0]):
            differing = ", ".join(sorted(set(point) ^ set(line.points[0])))
            raise PrefoptError(f"{where}.points: every point sets the same keys; {differing} is not in all of them")
    for key in {*line.settings} & {*line.tried()[0]}:
        raise PrefoptError(f"{where}: {key} is both in `settings` and varied; keep one")


def _listed(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise PrefoptError(f"{name} = {value!r}: must be a list")
    return value


def _refuse_section(where: str, content: Any, kind: Any) -> None:
    if not isinstance(content, dict):
        raise PrefoptError(f"{where} must be a section of keys, it is {content!r}")
    _refuse_unknown(content, list(kind.model_fields), where + ".", "key")


def _refuse_unknown(content: Iterable[str], known: list[str], prefix: str, what: str) -> None:
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1, cutoff=0.6)
            hint = f"did you mean '{prefix}{close[0]}'?" if close else f"there are {', '.join(sorted(known))}"
            raise PrefoptError(f"unknown {what} '{prefix}{key}'; {hint}")
