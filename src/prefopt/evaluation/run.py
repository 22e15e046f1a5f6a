"""`prefopt eval`: a finished run, or any two models, measured and written down."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prefopt.config import ModelConfig, RunConfig, make, read_yaml
from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoder
from prefopt.errors import PrefoptError
from prefopt.evaluation.heldout import HeldOut, held_out
from prefopt.evaluation.preference import accuracy, calibration_error, margin
from prefopt.evaluation.text import Evaluation, evaluate_text
from prefopt.files import write_atomically
from prefopt.models.text import load_text_model, load_tokenizer, model_kind
from prefopt.objectives.method import Method
from prefopt.rewards.judges import JudgeCache, load_judge
from prefopt.rewards.load import load_reward
from prefopt.rollout.images import ImageSampling
from prefopt.rollout.numbers import token_numbers
from prefopt.rollout.text import Sampling
from prefopt.training.run import make_method

log = logging.getLogger("prefopt")
Rewards = str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None
LIMIT = 128
SAMPLING = Sampling(n=4)


def evaluate_run(
    run: str | Path,
    *,
    against: str | None = None,
    data: str | None = None,
    reward: Rewards = None,
    judge: str | Callable[..., Any] | None = None,
    sampling: Sampling | ImageSampling | None = None,
    number: int = 4,
    limit: int | None = LIMIT,
    progress: bool = True,
    negative: str | None = None,
    features: str | None = None,
    user: str | None = None,
    user_pairs: str | None = None,
    prompt_only: bool = False,
) -> dict[str, Any]:
    """Evaluates a run folder, or one of its checkpoints, against its start model on its held-out data.

    `against` and `data` replace what the run's configuration says. sampling: of texts, or of pictures, of which `number`
    are drawn for each prompt. reward: of pictures several, in a list. negative, features, and for whom the pictures are
    (user, user_pairs, prompt_only): see `evaluate_image_run`. Writes evaluation.json and samples.jsonl into the folder and
    returns what evaluation.json holds. PrefoptError if the folder holds no trained model.
    """
    folder = Path(run).expanduser()
    config = run_config(folder)
    kind = model_kind(config.model.path)
    pictures: dict[str, Any] = {"negative": negative, "features": features}
    pictures |= {"user": user, "user_pairs": user_pairs, "prompt_only": prompt_only}
    if kind == "diffusion":
        from prefopt.evaluation.image_run import evaluate_image_run

        if judge is not None or isinstance(sampling, Sampling):
            raise PrefoptError(f"a judge and sampling of texts have no effect: {folder} draws pictures")
        return evaluate_image_run(
            folder, config, against, data, reward, limit, progress, sampling, number=number, **pictures
        )
    if any(pictures.values()) or isinstance(sampling, ImageSampling):
        raise PrefoptError(
            "sampling of pictures, negative networks, features and users are of diffusion models; "
            f"{config.model.path} is none"
        )
    reward = _single(reward)
    if kind == "clip":
        for what, value in {"reward": reward, "judge": judge, "against": against}.items():
            if value is not None:
                raise PrefoptError(f"{what} has no effect: {folder} is a preference model, which is told by its pairs")
        from prefopt.evaluation.preference_run import evaluate_preference_run

        return evaluate_preference_run(folder, config, data, limit, progress)
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise PrefoptError(f"{folder} holds no trained model yet: let the run finish, or name one of its checkpoints")
    where = config.data if data is None else elsewhere(config.data, data)
    method = make_method(config)
    policy = config.model.model_copy(update={"path": str(folder), "adapter": None, "revision": None})
    if "scores:reward" in method.needs():
        return _evaluate_reward_model(folder, policy, where, limit, progress)
    start = config.model.model_copy(update={"adapter": None} | ({"path": against} if against else {}))
    return _evaluate(policy, start, where, folder, reward, judge, method, sampling, limit, progress)


def _single(reward: Rewards) -> str | Callable[..., Any] | None:
    """Texts are scored by one reward."""
    if reward is None or isinstance(reward, str) or callable(reward):
        return reward
    if len(reward) > 1:
        raise PrefoptError(f"{len(reward)} rewards are given; only pictures are scored by several")
    return reward[0] if reward else None


def evaluate(
    model: str | Path,
    against: str | Path,
    data: str | DataConfig,
    output: str | Path,
    *,
    reward: str | Callable[..., Any] | None = None,
    judge: str | Callable[..., Any] | None = None,
    method: Method | None = None,
    sampling: Sampling | None = None,
    limit: int | None = LIMIT,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates any language model (folder, adapter folder or hub name) against another one; writes into `output`."""
    source = data if isinstance(data, DataConfig) else DataConfig(path=data, eval_path=data)
    sides = (ModelConfig(path=str(model)), ModelConfig(path=str(against)))
    return _evaluate(*sides, source, Path(output), reward, judge, method, sampling, limit, progress)


def kind_of_run(folder: Path) -> str:
    """text, diffusion or clip."""
    return model_kind(run_config(folder).model.path)


def elsewhere(data: DataConfig, path: str) -> DataConfig:
    """The same data section for another file, all of it held out."""
    return data.model_copy(update={"path": path, "eval_path": path, "eval_fraction": 0.0})


def run_config(folder: Path) -> RunConfig:
    """The configuration of a run folder, of the run that a checkpoint belongs to, or of a recipe's last step."""
    for place in (folder, folder.parent) if folder.name.startswith("checkpoint-") else (folder,):
        if (place / "config.yaml").is_file():
            record = json.loads((place / "run.json").read_text()) if (place / "run.json").is_file() else {}
            if "plan" not in record:
                return make(read_yaml(place / "config.yaml"))
            if record.get("final") is None:
                raise PrefoptError(f"{folder} holds several models ({', '.join(record['plan'])}): name one of them")
            last = make(read_yaml(place / record["final"] / "config.yaml"))
            return last.model_copy(update={"model": last.model.model_copy(update={"path": _start(place)})})
    raise PrefoptError(f"{folder} holds no run (no config.yaml); give the output folder of prefopt train")


def _start(folder: Path) -> str:
    """What a recipe as a whole started from."""
    return make(read_yaml(folder / "config.yaml")).model.path


def _evaluate(
    policy: ModelConfig,
    start: ModelConfig,
    data: DataConfig,
    folder: Path,
    reward: str | Callable[..., Any] | None,
    judge: str | Callable[..., Any] | None,
    method: Method | None,
    sampling: Sampling | None,
    limit: int | None,
    progress: bool,
) -> dict[str, Any]:
    # everything that can be wrong is looked at before the first model is loaded
    rewards = None if reward is None else load_reward(reward, progress=progress)
    asked = None if judge is None else load_judge(judge)
    tokenizer = load_tokenizer(policy.path)
    encoder = Encoder(tokenizer, data)
    source = held_out(data, encoder, limit)
    found = evaluate_text(
        lambda: _loaded(policy),
        lambda: _loaded(start),
        tokenizer,
        prompts=source.prompts,
        pairs=source.pairs,
        reward=rewards,
        judge=asked,
        judge_cache=JudgeCache(folder / "judgments.sqlite") if asked is not None and not asked.fair else None,
        method=method,
        sampling=sampling or SAMPLING,
        encoder=encoder,
        progress=progress,
    )
    found.numbers["settings"] |= {"model": policy.path, "start": start.path}
    return _write(folder, found, source)


def _loaded(config: ModelConfig) -> torch.nn.Module:
    return load_text_model(config, trainable=False).model.to("cuda" if torch.cuda.is_available() else "cpu")


def _evaluate_reward_model(
    folder: Path, config: ModelConfig, data: DataConfig, limit: int | None, progress: bool
) -> dict[str, Any]:
    """A reward model writes nothing: it is measured by the pairs that it puts in order."""
    loaded = load_text_model(config, head="reward", trainable=False)
    source = held_out(data, Encoder(loaded.tokenizer, data), limit)
    if not source.pairs:
        paths = ", ".join(data.eval_paths or data.paths)
        raise PrefoptError(f"{paths}: a reward model is evaluated on pairs, and there are none")
    scores = token_numbers(loaded.model, source.pairs, ["reward"], progress=progress)
    sides: tuple[list[float], list[float]] = ([], [])
    for example, numbers in zip(source.pairs, scores, strict=True):
        for pair in example.pairs:
            for side, row in zip(sides, pair, strict=True):
                side.append(float(numbers["reward"][row][0]))
    measures = {"accuracy": accuracy, "margin": margin, "calibration_error": calibration_error}
    preference = {name: measure(*sides).to_json() for name, measure in measures.items()}
    settings = {"model": config.path, "pairs": len(sides[0])}
    return _write(folder, Evaluation({"settings": settings, "notes": [], "preference": preference}, []), source)


def _write(folder: Path, found: Evaluation, source: HeldOut) -> dict[str, Any]:
    numbers: Mapping[str, Any] = found.numbers
    numbers["notes"].extend(source.notes)
    numbers["settings"]["data"] = {k: v for k, v in source.record.items() if k != "dropped"}
    folder.mkdir(parents=True, exist_ok=True)
    if found.samples:
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.samples)
        write_atomically(folder / "samples.jsonl", rows)
    write_atomically(folder / "evaluation.json", json.dumps(numbers, indent=2, ensure_ascii=False) + "\n")
    return dict(numbers)
