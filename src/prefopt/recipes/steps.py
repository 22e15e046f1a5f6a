"""What papers of several steps share: a folder with a part for each step, ordinary runs as steps, going on after a stop.

A recipe is a function under `@recipe`, handed `Steps` and its own hyperparameters as a method is handed `Responses`:

    @recipe("sft-then-dpo", paper="...", needs=("pairs",))
    def sft_then_dpo(steps: Steps, *, base: Method = dpo()) -> str:
        first = steps.train("sft", sft())
        return steps.train("preference", base, model=first)

It is run twice. The first time every step is only examined (`steps.checking`): its configuration is made and everything
that can be refused before the first step is. The second time each step is done, or skipped if it is finished on disk.
What it returns is the step whose model is the recipe's own (or None, if it ends in several).
"""

from __future__ import annotations

import fnmatch
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import RolloutConfig, RunConfig, SourceConfig
from ..errors import PrefoptError
from ..files import read_jsonl, write_atomically
from ..objectives.hyper import describe
from ..objectives.method import Family, Method
from ..training.needs import follows_pairs

if TYPE_CHECKING:  # a recipe is found and described without what training needs
    from ..training.folder import RunFolder
    from ..training.run import Outcome

RECIPES: dict[str, Recipe] = {}
BESIDE_A_MODEL = ("config.yaml", "run.json", "metrics.jsonl", "trainer_state.json", "checkpoint-*", "evaluation.json",
                  "samples.jsonl*", "judgments.sqlite*", "report.html", "runs", ".*")  # fmt: skip
log = logging.getLogger("prefopt")


@dataclass(frozen=True)
class Recipe:
    """Several steps under one name: `recipe.run(config)` as `train(config)` for a method."""

    family: Family  # name, hyperparameters, description: declared and checked as a method's
    needs: tuple[str, ...]  # what the configuration or the data must give, in words
    sections: tuple[str, ...]  # sections of the configuration that only this recipe reads

    @property
    def name(self) -> str:
        return self.family.name

    @property
    def paper(self) -> str:
        return self.family.paper

    def hyperparameters(self) -> list[dict[str, Any]]:
        """Name, default and values of each key of `method`, then of its own sections."""
        rows = []
        for key, value in self.family.defaults.items():
            default = value.record() if isinstance(value, Method) else value
            rows.append({"name": key, "default": default, "values": describe(self.family.hints[key])})
        for section in self.sections:
            for key, known in type(
                RunConfig.model_fields[section].get_default(call_default_factory=True)
            ).model_fields.items():
                rows.append({"name": f"{section}.{key}", "default": known.default, "values": known.description or ""})
        return rows

    def run(self, config: RunConfig, *, dry_run: bool = False) -> Outcome:
        """All steps as configured, in config.output. Stopped anywhere and started again it goes on, and ends as if it
        had not been stopped. PrefoptError before the first step for whatever can be known by then.
        """
        from ..training.folder import RunFolder
        from ..training.processes import decided_by_main
        from ..training.run import Outcome, arguments

        made = self.family(check=False, **{k: v for k, v in config.method.items() if k != "name"})
        config = config.model_copy(update={"method": made.record()})
        folder = RunFolder(config.output)
        plan = Steps(config, folder, self, checking=True)
        self.family.fn(plan, **made.hyper)
        plan.refuse_idle_sections()
        if dry_run:
            return Outcome(folder.path, f"dry run of {len(plan.done)} steps ({', '.join(plan.done)}): nothing was made")
        steps = Steps(config, folder, self, args=arguments(config))
        state = decided_by_main(steps.args, lambda: folder.claim(config))
        try:
            if state == "finished":
                return Outcome(folder.path, "was finished", record=folder.record)
            steps.on_main(lambda: folder.start(config, {"method": made.record(), "plan": plan.done}))
            final: Any = self.family.fn(steps, **made.hyper)
            steps.on_main(lambda: steps.close(final))
            return Outcome(folder.path, "finished", record=folder.record)
        finally:
            folder.release()


def recipe(
    name: str,
    paper: str = "",
    needs: Sequence[str] = (),
    sections: Sequence[str] = (),
    tags: Sequence[str] = (),
    surveyed: bool = False,
) -> Callable[[Callable[..., str | None]], Recipe]:
    """Register a recipe. needs: in words, for the catalogue; sections: of the configuration that it alone reads;
    paper, tags, surveyed: as of a method."""

    def register(fn: Callable[..., str | None]) -> Recipe:
        family = Family(name, fn, paper, "", tags, surveyed)  # type: ignore[arg-type]
        RECIPES[name] = Recipe(family, tuple(needs), tuple(sections))
        return RECIPES[name]

    return register


@dataclass
class Steps:
    """The steps of one recipe's run. `done`: their names so far, in order, for the record and the logs."""

    config: RunConfig
    folder: RunFolder
    recipe: Recipe
    checking: bool = False
    args: Any = None  # transformers' arguments: which process this is
    done: list[str] = field(default_factory=list)
    _trained: list[str] = field(default_factory=list)
    _used: set[str] = field(default_factory=set)

    @property
    def path(self) -> Path:
        return self.folder.path

    # ---- steps

    def train(self, name: str, method: Method, **changes: Any) -> str:
        """An ordinary run of `method` in the folder NAME; returns the folder, which is also its model.

        changes: see `child`. A run that was stopped goes on; a finished one is not done again.
        """
        child = self.child(name, method, **changes)
        if self.checking:
            self._examine(child, method)
        else:
            from ..training.run import train

            log.info("step %s: %s", name, method.name)
            outcome = train(child)
            if outcome.status not in ("finished", "was finished"):
                raise PrefoptError(f"step '{name}' did not finish; start the same command again")
        self._trained.append(name)
        self._record(name)
        return child.output

    def make(self, name: str, write: Callable[[Path], Any]) -> Path:
        """The file NAME, written once by `write(path)`: whole or not at all (see files.write_atomically)."""
        path = self.path / name
        if not self.checking:

            def once() -> None:
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    log.info("step %s", name)
                    write(path)

            self.on_main(once)
        self._record(name)
        return path

    def child(
        self,
        name: str,
        method: Method,
        *,
        model: str | None = None,
        data: Mapping[str, Any] | None = None,
        reference: str | Mapping[str, Any] | None = None,
        sources: Mapping[str, str] | None = None,
        train: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """The recipe's configuration with another method, in the folder NAME.

        model: another start. data: keys of the data section that change (`written` gives those of a file that the
        recipe made). reference: what the step is measured against, by default its own start, or keys of the section
        that change. sources: name -> folder,
        over the configured ones. train: keys of the train section that change.
        The sections `reference`, `sources` and `diagnostics` reach those steps whose method has a use for them.
        """
        from ..training.effect import EVALUATION_KEYS

        config, needs = self.config, method.needs()
        start = model or config.model.path
        moved: dict[str, Any] = {s: _default(s) for s in ("rollout", "reference", "sources", "diagnostics")}
        if {"scores:reference", "scores:token_kl"} & set(needs):
            self._used.add("reference")
            keys = {"path": reference} if isinstance(reference, str) and reference != start else reference
            other = dict(keys) if isinstance(keys, Mapping) else {}
            moved["reference"] = config.reference.model_copy(update=other)
        if follows_pairs(needs):
            self._used.add("diagnostics")
            moved["diagnostics"] = config.diagnostics
        named = dict(config.sources) | {k: SourceConfig(path=v) for k, v in (sources or {}).items()}
        moved["sources"] = {k: v for k, v in named.items() if f"scores:{k}" in needs}
        self._used.update(["sources"] if moved["sources"] else [])
        read = config.data.model_copy(update=dict(data or {}))
        kept = config.train | dict(train or {})
        if not (read.eval_path or read.eval_fraction) and (config.data.eval_path or config.data.eval_fraction):
            kept = {
                k: v for k, v in kept.items() if k not in EVALUATION_KEYS
            }  # nothing is held out of this step's data
        return config.model_copy(
            update={
                "method": method.record(),
                "model": config.model.model_copy(update={"path": start}),
                "data": read,
                "train": kept,
                "output": str(self.path / name),
                **moved,
            }
        )

    def scored(self, name: str, add: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Keys of a data section that reads the recipe's own data with further columns (annotation/build.py).

        The files are NAME/train.jsonl and, with held-out data, NAME/eval.jsonl. A model among the specifications may be
        a step of this recipe.
        """
        from ..annotation.build import build_scores, plan

        data = self.config.data
        if self.checking:
            plan({k: [s for s in specs if str(self.path) not in s] for k, specs in add.items()}, data, partial=True)
        train = self.make(f"{name}/train.jsonl", lambda path: build_scores(data, add, path))
        keys: dict[str, Any] = {"path": str(train), "limit": None, "split": "train", "subset": None}
        if data.eval_path is not None:
            held_out = self.make(f"{name}/eval.jsonl", lambda path: build_scores(data, add, path, held_out=True))
            keys["eval_path"] = str(held_out)
        return keys

    def written(self, path: Path, eval_path: Path | None = None) -> dict[str, Any]:
        """Keys of a data section that reads a file which the recipe wrote: no layout, columns or split of the user's."""
        seed = self.config.data.seed if self.config.data.eval_fraction else 0
        keys: dict[str, Any] = {
            "path": str(path),
            "columns": {},
            "layout": "auto",
            "limit": None,
            "split": "train",
            "subset": None,
        }
        return keys | {"seed": seed} | ({} if eval_path is None else {"eval_path": str(eval_path)})

    def on_main(self, act: Callable[[], Any]) -> None:
        """On the main process alone; the others wait, and get its PrefoptError."""
        from ..training.processes import decided_by_main

        def silent() -> None:
            act()

        decided_by_main(self.args, silent)

    def _record(self, name: str) -> None:
        self.done.append(name)
        if not self.checking:
            self.on_main(lambda: self.folder.update(steps=self.done))

    # ---- before the first step

    def _examine(self, child: RunConfig, method: Method) -> None:
        from ..models.text import model_kind
        from ..training.effect import refuse_without_effect
        from ..training.run import arguments

        refuse_without_effect(child, method, model_kind(self.config.model.path))
        arguments(child)

    def refuse_idle_sections(self) -> None:
        """Sections that no step reads."""
        idle = {"rollout": "it trains offline", "reference": "no step uses a reference model",
                "sources": "no step asks for another model's scores",
                "diagnostics": "no step compares pairs by the policy's scores"}  # fmt: skip
        for section, why in idle.items():
            given = self.config.sources if section == "sources" else self.config.given(section)
            if given and section not in {*self._used, *self.recipe.sections}:
                raise PrefoptError(f"{section}.{min(given)} has no effect on {self.recipe.name}: {why}")

    # ---- after the last

    def close(self, final: str | None) -> None:
        """The final step's model as the folder's own, the logs of all steps in one file, and the last word."""
        if final is not None:
            _copy_model(Path(final), self.path)
        _join_metrics(self.path, self._trained)
        self.folder.finish(final=None if final is None else str(Path(final).relative_to(self.path)))


def _default(section: str) -> Any:
    return (
        RolloutConfig()
        if section == "rollout"
        else RunConfig.model_fields[section].get_default(call_default_factory=True)
    )


def _copy_model(source: Path, target: Path) -> None:
    """What a run saved as its model, without what it wrote beside it."""
    for item in sorted(source.iterdir()):
        if any(fnmatch.fnmatch(item.name, pattern) for pattern in BESIDE_A_MODEL):
            continue
        if item.is_dir():
            shutil.copytree(item, target / item.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(item, target / item.name)


def _join_metrics(folder: Path, parts: Sequence[str]) -> None:
    """The logs of all trained steps in one file, optimiser steps counted on, each row with its `part`."""
    lines, before = [], 0
    for part in parts:
        rows = read_jsonl(folder / part / "metrics.jsonl")
        lines += [json.dumps(row | {"step": row["step"] + before, "part": part}) + "\n" for row in rows]
        before += max((row["step"] for row in rows), default=0)
    write_atomically(folder / "metrics.jsonl", "".join(lines))
