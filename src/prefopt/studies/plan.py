"""The runs that a study means. Each is named by everything that its result depends on, so nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import SHORTHAND, RunConfig, make
from ..errors import PrefoptError
from .config import MethodConfig, StudyConfig

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
VERSION = 1  # raised when the same run would be measured otherwise
QUIET = {"save_total_limit": 1, "disable_tqdm": True}  # of every run, unless the study says otherwise


@dataclass(frozen=True)
class PlannedRun:
    """One run: which line, setting, start, size and seed of the study it is, and its configuration less `output`."""

    label: str
    point: Mapping[str, Any]
    start: str
    size: int | None
    seed: int
    content: Mapping[str, Any]
    central: bool
    name: str  # of its folder
    start_name: str  # of what its start model said

    def config(self, output: str | Path) -> RunConfig:
        return make({**self.content, "output": str(output)})

    @property
    def title(self) -> str:
        """For people: `dpo beta=0.1, start sft, 512 rows, seed 0`."""
        point = " ".join(f"{key}={short(value)}" for key, value in self.point.items())
        rows = "" if self.size is None else f", {self.size} rows"
        return f"{self.label} {point}".strip() + f", start {self.start}{rows}, seed {self.seed}"

    @property
    def place(self) -> dict[str, Any]:
        """What names the run in the table."""
        own = {"label": self.label, "point": dict(self.point), "start": self.start, "size": self.size}
        return own | {"seed": self.seed, "central": self.central}


@dataclass
class Hashes:
    """Content hashes of what runs read, each computed once."""

    known: dict[str, str] = field(default_factory=dict)

    def of(self, path: str) -> str:
        """A file's bytes, a folder's files, or the name of what is not here (hub)."""
        if path not in self.known:
            place = Path(path).expanduser()
            files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
            self.known[path] = _hash(place, files) if files else path
        return self.known[path]


def plan(study: StudyConfig) -> list[PlannedRun]:
    """Every run of the study: the first seed first, and of it every method's central setting, so that a study that is
    stopped early has seen all methods."""
    hashes = Hashes()
    most = max(len(line.tried()) for line in study.methods.values())
    runs = [
        _run(study, hashes, label, line, number, start, size, seed)
        for seed in study.seeds
        for number in range(most)
        for start in study.starts
        for size in study.sizes
        for label, line in study.methods.items()
        if number < len(line.tried())
        and seed in (line.seeds or study.seeds)
        and (_main(study, start, size) or _further(study, label, number, start, size))
    ]
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        digest = run.name.rsplit("-", 1)[1]
        if digest in seen:
            raise PrefoptError(
                f"two runs of the study are the same: {seen[digest].title} and {run.title}; leave one out"
            )
        seen[digest] = run
    return runs


def _main(study: StudyConfig, start: str, size: int | None) -> bool:
    return start == study.main_start and size == study.sizes[0]


def _further(study: StudyConfig, label: str, number: int, start: str, size: int | None) -> bool:
    """Whether this setting of a line is tried from this start on this size, not both of which are the main ones."""
    if study.cross == "axes" and start != study.main_start and size != study.sizes[0]:
        return False
    return study.crosses(label) and (number == 0 or study.cross == "full")


def _run(
    study: StudyConfig,
    hashes: Hashes,
    label: str,
    line: MethodConfig,
    number: int,
    start: str,
    size: int | None,
    seed: int,
) -> PlannedRun:
    point = line.tried()[number]
    content = _shared(study, start)
    named = line.method if line.method is not None else label
    content["method"] = {"name": filled(named)} if isinstance(named, str) else filled(named)
    for key, value in {**line.settings, **point}.items():
        _lay(content, key, filled(value), f"methods.{label}")
    for key, value in (("data.limit", size), ("train.seed", seed)):
        if value is not None:
            _lay(content, key, value, f"methods.{label}")
    measured = _measured(study, hashes, content)
    name = f"{label}-{_digest(hashes, content, measured)}"
    start_name = f"{start}-{_hash_of([VERSION, content['model'], measured])}"
    return PlannedRun(label, point, start, size, seed, content, number == 0, name, start_name)


def _shared(study: StudyConfig, start: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in study.shared.items():
        value = filled(value)
        content[key] = {SHORTHAND[key]: value} if isinstance(value, str) and key in SHORTHAND else dict(value)
    if "data" not in content:
        raise PrefoptError("the study lacks `data`")
    for key in ("seed", "output_dir"):
        if key in content.get("train", {}):
            raise PrefoptError(
                f"train.{key} has no effect in a study: " + ("set `seeds`" if key == "seed" else "set `output`")
            )
    if "limit" in content["data"] and study.sizes != [None]:
        raise PrefoptError("data.limit has no effect beside `sizes`: they say how many rows are read")
    model = filled(study.starts[start])
    content["model"] = content.get("model", {}) | ({"path": model} if isinstance(model, str) else dict(model))
    content["train"] = QUIET | content.get("train", {})
    content["data"].pop("eval_path", None)  # the study measures; a run of it only trains
    if content["data"].get("eval_fraction"):
        content["train"].setdefault("eval_strategy", "no")
    return content


def _lay(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """`beta` is the method's, `train.learning_rate` the run's; a nested method's key is written `base.beta`."""
    first, *rest = key.split(".")
    path = [first, *rest] if rest and first in RunConfig.model_fields else ["method", first, *rest]
    if path[0] == "output" or (path[0] == "model" and path[1:] == ["path"]):
        raise PrefoptError(f"{where}: {key} cannot vary inside a method; {'set `starts`' if rest else 'set `output`'}")
    place = content
    for name in path[:-1]:
        inner = place.get(name)
        if isinstance(inner, str):  # a wrapped method that is only named
            inner = {"name": inner}
        if not isinstance(inner, dict | None):
            raise PrefoptError(f"{where}: {key} cannot be set: {name} is a value, not a section")
        place[name] = dict(inner or {})
        place = place[name]
    place[path[-1]] = value


def _measured(study: StudyConfig, hashes: Hashes, content: Mapping[str, Any]) -> list[Any]:
    """How a run is measured, and the bytes of everything that this reads."""
    evaluation = study.evaluation.model_dump(exclude={"data", "batch_size"})
    read = [content["model"]["path"], *_listed(evaluation_data(study).get("eval_path"))]
    for spec in (evaluation["reward"], evaluation["judge"]):
        read += [spec.split("#")[0].rpartition(":")[0] or spec] if spec else []
    return [evaluation, [hashes.of(path) for path in read]]


def _digest(hashes: Hashes, content: Mapping[str, Any], measured: list[Any]) -> str:
    """Names the result: the run's configuration, how it is measured, and the bytes of everything that both read."""
    depends = {
        **content,
        "model": {k: v for k, v in content["model"].items() if k != "path"},
        "data": {k: v for k, v in content["data"].items() if k != "path"},
        "train": {k: v for k, v in content["train"].items() if k not in QUIET},
    }
    read = [*_listed(content["data"].get("path")), str(content["method"]["name"])]
    return _hash_of([VERSION, _by_content(hashes, depends), [hashes.of(path) for path in read], measured])


def _by_content(hashes: Hashes, value: Any) -> Any:
    """`value` with every path in it that is there (of a source, a reference, a rollout's reward) as what it holds."""
    if isinstance(value, Mapping):
        return {key: _by_content(hashes, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(hashes, inner) for inner in value]
    if not isinstance(value, str) or os.sep not in value:
        return value
    path, _, name = value.rpartition(":") if value.rpartition(":")[0] else (value, "", "")
    return [hashes.of(path), name] if Path(path).expanduser().exists() else value


def _hash_of(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]


def evaluation_data(study: StudyConfig) -> dict[str, Any]:
    """The data section that all runs are measured on: the study's own reading of its held-out file."""
    shared = filled(study.shared["data"])
    data = {"path": shared} if isinstance(shared, str) else dict(shared)
    for key in ("limit", "use", "soft_labels"):
        data.pop(key, None)
    path = filled(study.evaluation.data) or data.get("eval_path")
    if path is not None:
        data |= {"path": path, "eval_path": path}
        data.pop("eval_fraction", None)
    return data


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else [str(v) for v in value]


def _hash(place: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(place)).encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def filled(value: Any) -> Any:
    """`value` with every $NAME in its texts replaced by the environment's; PrefoptError for one that is not set."""
    if isinstance(value, dict):
        return {key: filled(v) for key, v in value.items()}
    if isinstance(value, list):
        return [filled(v) for v in value]
    return VARIABLE.sub(_of_environment, value) if isinstance(value, str) else value


def _of_environment(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if name not in os.environ:
        raise PrefoptError(f"the study names ${name}, and the environment has no such variable: export {name}=...")
    return os.environ[name]


def short(value: Any) -> str:
    """A setting's value for people: 0.0005 and not 5e-04, a nested method by its name."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value.get("name", value)) if isinstance(value, dict) else str(value)
    return re.sub(r"e-0?", "e-", f"{value:.6g}")
