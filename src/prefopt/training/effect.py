"""Every key of a configuration changes something for this run, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..config import RunConfig
from ..data.config import DataConfig
from ..data.readers import is_saved_dataset
from ..data.reversal import without_reverse
from ..errors import PrefoptError
from ..objectives.method import Method
from ..scoring.base import PREDICTED
from ..scoring.text import asked_sources
from .needs import data_needs, follows_pairs, how_to_give
from .tasks.generations import generation_of

EVALUATION_KEYS = {
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps", "per_device_eval_batch_size",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "bf16_full_eval", "fp16_full_eval",
    "batch_eval_metrics", "eval_do_concat_batches", "eval_use_gather_object",
}  # fmt: skip
TEXT_ONLY_DATA = ("max_length", "max_prompt_length", "truncation", "strings", "chat_template", "system", "thinking")
TEXT_ONLY_MODEL = ("attention", "disable_dropout", "revision")
TEXT_ONLY_ADAPTER = ("use_rslora", "use_dora")

WHAT = {
    "text": "the model is a text model",
    "diffusion": "the model is a diffusion pipeline",
    "clip": "the model is a preference model of pictures",
}

Idle = Iterator[tuple[str, str]]  # (key, why it does nothing here)


def refuse_without_effect(config: RunConfig, method: Method, kind: str) -> None:
    """PrefoptError for the first key that would do nothing for this method and this kind of model."""
    for rules in (_model(config, kind), _data(config, method, kind), _sections(config, method, kind), _train(config)):
        for key, why in rules:
            raise PrefoptError(f"{key} has no effect: {why}")


def refuse_missing_sources(config: RunConfig, method: Method, kind: str) -> None:
    """PrefoptError for the first model that the method asks for and the configuration does not name."""
    if kind != "diffusion" and any(key.startswith("generation:") for key in method.needs()):
        raise PrefoptError(f"{method.name} on a {kind} model lacks {how_to_give('generation:', kind)}")
    if kind == "clip" and f"noising:{PREDICTED}" in method.needs() and "base" not in config.sources:
        raise PrefoptError(
            f"{method.name} lacks the pipeline whose predictions are judged: set sources.base.path to its folder"
        )
    for name in sorted(asked_sources(method.needs()) - set(config.sources)) if kind == "text" else ():
        raise PrefoptError(f"{method.name} lacks {how_to_give(f'scores:{name}', kind)}")


def _model(config: RunConfig, kind: str) -> Idle:
    if kind != "text":
        for key in TEXT_ONLY_MODEL:
            if key in config.given("model"):
                yield f"model.{key}", WHAT[kind]
        for key in TEXT_ONLY_ADAPTER if kind == "diffusion" else ():
            if config.model.adapter is not None and getattr(config.model.adapter, key):
                yield f"model.adapter.{key}", "the model is a diffusion pipeline"
    if kind == "text" and config.model.revision is not None and Path(config.model.path).expanduser().exists():
        yield "model.revision", f"{config.model.path} is a folder, not a hub name"


def _data(config: RunConfig, method: Method, kind: str) -> Idle:
    data, given, needs = config.data, config.given("data"), data_needs(method.needs())
    if kind == "text" and "top" in given:
        yield "data.top", "the data are texts"
    if kind != "text":
        for key in TEXT_ONLY_DATA:
            if key in given:
                yield f"data.{key}", "the data are images"
    ordered = any(n.startswith("pairs") or n == "label" for n in needs)
    for key in ("pairing", "chosen_rank", "objective", "soft_labels"):
        if key in given and not ordered:
            yield f"data.{key}", f"{method.name} makes no pairs"
    if data.users is not None and "conditions:user" not in method.needs():
        yield "data.users", f"{method.name} does not read who chose"
    if data.swap_preferences and (others := without_reverse(needs)):
        yield "data.swap_preferences", f"nobody can say what the reverse of '{others[0]}' is, which {method.name} reads"
    elif data.swap_preferences and not ordered and not needs & {"score", "rank", "reward_score", "win_probability"}:
        yield "data.swap_preferences", f"{method.name} reads no preferences"
    if data.soft_labels and "label_probability" not in {*data.use, *needs}:
        yield "data.soft_labels", "add label_probability to data.use, or take a method that reads it"
    paths = [*data.paths, *data.eval_paths]
    for key in ("list_labels", "score_range", "best_first"):
        if key in given and "value" not in needs:
            yield f"data.{key}", f"{method.name} takes no ranked lists with labels"
    if data.step_marker is not None and "step_index" not in needs:
        yield "data.step_marker", f"{method.name} knows no steps"
    if data.stop_words is not None and "graded" not in needs:
        yield "data.stop_words", f"{method.name} cuts no key phrases"
    if data.split != "train" and all(_is_plain(p) for p in paths):
        yield "data.split", "only datasets folders and hub data have splits"
    if data.subset is not None and all(Path(p).expanduser().exists() for p in paths):
        yield "data.subset", "only hub data have subsets"
    if data.seed and not data.eval_fraction:
        yield "data.seed", "nothing is drawn without data.eval_fraction (train.data_seed shuffles)"
    yield from _lengths(data)


def _is_plain(path: str) -> bool:
    place = Path(path).expanduser()
    return place.exists() and not (place.is_dir() and is_saved_dataset(place))


def _lengths(data: DataConfig) -> Idle:
    if data.truncation != "keep_end" and data.max_length is None and data.max_prompt_length is None:
        yield "data.truncation", "neither data.max_length nor data.max_prompt_length limits anything"
    if data.truncation == "drop" and data.max_length is not None and data.max_prompt_length is not None:
        yield "data.max_prompt_length", "data.truncation = drop cuts no prompt"


def _sections(config: RunConfig, method: Method, kind: str) -> Idle:
    needs = method.needs()
    if not {"scores:reference", "scores:token_kl", "features:reference_score"} & set(needs):
        for key in sorted(config.given("reference")):
            yield f"reference.{key}", f"{method.name} uses no reference model"
    yield from _generated(config, method)
    if kind != "diffusion":
        for key in sorted(config.given("denoising")):
            yield f"denoising.{key}", WHAT[kind]
    for name in config.sources:
        if kind == "diffusion" or (kind == "clip" and (name != "base" or f"noising:{PREDICTED}" not in needs)):
            yield f"sources.{name}", WHAT[kind]
        elif kind == "clip":
            continue
        elif name not in asked_sources(needs):
            asked = ", ".join(sorted(asked_sources(needs))) or "no other model's scores"
            own = "; reference.path names the reference" if name == "reference" else ""
            yield f"sources.{name}", f"{method.name} asks for {asked}{own}"
    way = generation_of(needs)
    for key in sorted(config.given("rollout") - (way.rollout if way else set())):
        why = (
            f"{method.name} does not ask it"
            if way
            else f"{method.name} trains offline; recipes such as online-dpo sample"
        )
        yield f"rollout.{key}", why
    yield from _diagnostics(config, method, kind)


def _generated(config: RunConfig, method: Method) -> Idle:
    """Where the policy makes its own pictures."""
    needs = method.needs()
    way = generation_of(needs)
    if way is None:
        return
    for key in sorted(config.given("denoising") - way.denoising):
        yield f"denoising.{key}", f"{method.name} reads prompts alone, and says itself how pictures are noised"
    for key in sorted(config.given("reference") - way.reference):
        yield f"reference.{key}", f"{method.name} keeps a frozen copy of its reference"
    for key in sorted(config.given("data") & {"eval_path", "eval_fraction"}) if not way.held_out else ():
        yield f"data.{key}", f"{method.name} learns from its own roll-outs; compare models with prefopt eval"
    if "generation:one_step" in needs and config.rollout.reward is not None and "scores:reward" not in needs:
        yield "rollout.reward", f"{method.name} asks for no reward with these settings (alpha_rew is 0)"


def _diagnostics(config: RunConfig, method: Method, kind: str) -> Idle:
    given = config.given("diagnostics")
    if given and not follows_pairs(method.needs()):
        yield f"diagnostics.{min(given)}", f"{method.name} compares no pairs of responses by the policy's scores"
    for key in sorted(given - {"every"}):
        if not config.diagnostics.every:
            yield f"diagnostics.{key}", "nothing is followed while diagnostics.every is 0"
    if kind == "diffusion":
        for key in sorted(given & {"samples", "max_new_tokens"}):
            yield f"diagnostics.{key}", "pictures are not drawn; the unseen ones are those of the held-out data"
    elif "max_new_tokens" in given and not config.diagnostics.samples:
        yield "diagnostics.max_new_tokens", "diagnostics.samples is 0"


def _train(config: RunConfig) -> Idle:
    if config.data.eval_path or config.data.eval_fraction:
        return
    for key in sorted(EVALUATION_KEYS & set(config.train)):
        if config.train[key] not in ("no", False, None):
            yield f"train.{key}", "there is no held-out data: set data.eval_path or data.eval_fraction"
