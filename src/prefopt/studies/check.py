"""Everything that can be wrong with a study, looked at before its first run starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from .. import recipes
from ..config import RunConfig, make
from ..data.config import DataConfig
from ..data.prepare import prompt_key
from ..data.rule import Ledger
from ..data.source import read_examples
from ..data.validate import Report, check_data
from ..errors import PrefoptError
from ..models.text import model_kind
from ..rewards.judges import load_judge
from ..rewards.load import load_reward
from ..training.effect import refuse_without_effect
from ..training.needs import data_needs
from ..training.run import arguments, make_method
from .config import StudyConfig
from .plan import PlannedRun, evaluation_data


def check(study: StudyConfig, runs: Sequence[PlannedRun]) -> list[str]:
    """Makes every method and every run's configuration, and reads all data. Returns warnings.

    Raises PrefoptError, naming the run, for the first that could not be trained.
    """
    if study.evaluation.reward is not None:
        load_reward(study.evaluation.reward, progress=False)
    if study.evaluation.judge is not None:
        load_judge(study.evaluation.judge)
    reports: dict[str, Report] = {}
    seen: set[str] = set()
    for run in runs:
        like = json.dumps({**run.content, "train": {**run.content["train"], "seed": 0}}, sort_keys=True, default=str)
        if like not in seen:  # the seed makes no difference here
            seen.add(like)
            try:
                _check_run(study, run, reports)
            except PrefoptError as e:
                raise PrefoptError(f"{run.title}: {e}") from None
    held_out = evaluation_config(study)
    return [*_unequal(study), *_overlap(held_out, runs), *_doubts(study, held_out)]


def evaluation_config(study: StudyConfig) -> DataConfig:
    """The validated data section of the evaluation."""
    return make({"method": "sft", "model": "-", "data": evaluation_data(study), "output": "-"}).data


def _check_run(study: StudyConfig, run: PlannedRun, reports: dict[str, Report]) -> None:
    config = run.config(study.output)
    kind = model_kind(config.model.path)
    if kind != "text":
        raise PrefoptError(
            f"model.path = {config.model.path}: a study compares language models, this is a {kind} model"
        )
    recipe = recipes.load_all().get(config.method["name"])
    if recipe is not None:
        recipe.run(config, dry_run=True)
        return
    method = make_method(config)
    needs = method.needs()
    if "scores:reward" in needs:
        raise PrefoptError(
            f"{method.name} makes a reward model, which writes nothing; a study compares models that answer"
        )
    refuse_without_effect(config, method, kind)
    arguments(config)
    _check_data(config, data_needs(needs), run.size, reports)


def _check_data(config: RunConfig, needs: set[str], size: int | None, reports: dict[str, Report]) -> None:
    whole = config.data.model_copy(update={"limit": None})
    key = json.dumps([whole.model_dump(), sorted(needs)], default=str)
    if key not in reports:
        reports[key] = check_data(whole, needs=needs, progress=False)
    found = reports[key]
    if not found.sound:
        wrong = next((f for f in found.findings if f.severity == "error"), None)
        why = (
            "no row can be used"
            if wrong is None
            else f"{wrong.count} x {wrong.title} (rows {', '.join(wrong.rows[:8])})"
        )
        raise PrefoptError(f"{', '.join(whole.paths)}: {why} (prefopt data check says it in full)")
    if size is not None and size > found.rows:
        raise PrefoptError(f"sizes: {size} rows are asked for, and {', '.join(whole.paths)} has {found.rows}")


def _unequal(study: StudyConfig) -> Iterator[str]:
    """Best of k favours the bigger grid."""
    counts = {label: len(line.tried()) for label, line in study.methods.items()}
    if len(set(counts.values())) > 1:
        most, least = max(counts, key=lambda k: counts[k]), min(counts, key=lambda k: counts[k])
        yield (
            f"grids of unequal size: {most} is tried with {counts[most]} settings, {least} with {counts[least]}; "
            "the best of more tries is better by chance alone, so compare medians, or give each method as many"
        )
    seeds = {label: len(line.seeds or study.seeds) for label, line in study.methods.items()}
    if few := [label for label, count in seeds.items() if count < len(study.seeds)]:
        yield f"fewer than {len(study.seeds)} seeds: {', '.join(f'{label} {seeds[label]}' for label in few)}"


def _overlap(held_out: DataConfig, runs: Sequence[PlannedRun]) -> Iterator[str]:
    """Prompts that are measured on and trained on."""
    if held_out.eval_fraction and not held_out.eval_paths:
        return  # drawn apart by the prompt
    paths = held_out.eval_paths or held_out.paths
    tested = _prompts(held_out, paths)
    for training in {json.dumps(run.content["data"], sort_keys=True): run for run in runs}.values():
        data = training.config("-").data.model_copy(update={"limit": None})
        if shared := len(tested & _prompts(data, data.paths)):
            yield (
                f"{shared} of {len(tested)} prompts of {', '.join(paths)} are also in {', '.join(data.paths)}: "
                "measured on what was trained on, numbers flatter"
            )


def _prompts(data: DataConfig, paths: list[str]) -> set[int]:
    return {prompt_key(e) for e in read_examples(data, paths, Ledger(), needs={"prompts"})}


def _doubts(study: StudyConfig, held_out: DataConfig) -> Iterator[str]:
    if study.evaluation.temperature != 1:
        yield f"evaluation.temperature = {study.evaluation.temperature}: the KL describes these answers, not the model"
    if len(study.seeds) == 1:
        yield "one seed: differences between methods hold the chance of one order of the data"
    if len(study.sizes) > 1 and None not in study.sizes:
        yield "sizes: `all` is not among them, so the curves end before the data do"
