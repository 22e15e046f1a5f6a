"""Training of a one-step generator: it makes its own pictures of prompts, under scores of a reference and an assistant."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...config import RunConfig
from ...data.captions import prepare_prompts
from ...data.latents import fingerprint
from ...errors import PrefoptError
from ...models.diffusion import ImageModel, make_trainable, save_image_model
from ...models.one_step import one_step_scheduler
from ...objectives.method import Method
from ...rewards.differentiable import check_differentiable, load_differentiable
from ...scoring.moving import Moving
from ...scoring.one_step import OneStep, OneStepScorer
from ...scoring.schedules import Schedule
from ..task import Task
from ..turns import Turns
from .pipeline import Reference, adapter_of, encoded, opened, record_of, refuse_refiner, refuse_unlike, trainable

SAME_LEVELS = 1e-4  # how far two schedules that are written otherwise may differ


def one_step_task(config: RunConfig, method: Method) -> Task:
    """Generator, reference, assistant, prompts and reward. Raises PrefoptError for whatever cannot be trained on."""
    needs = method.needs()
    how = OneStep(**needs["generation:one_step"]["how"])
    model, other = opened(config), opened(config, config.reference.path)
    if config.reference.path is not None:
        _refuse_unlike(config, model, other)
    refuse_refiner(model)
    level = how.generator_level(model.schedule)
    reward = _reward(config, model) if "scores:reward" in needs else None
    data, empty = encoded(model, lambda: prepare_prompts(config.data, model))
    if reward is not None:
        pixels = (model.denoiser.config.in_channels if "vae" not in model.frozen else 3, *[model.resolution] * 2)
        captions = [str(e.prompt) for e in data.train.examples[:2]]
        check_differentiable(reward, str(config.rollout.reward), pixels, captions)
    start = fingerprint({"denoiser": model.denoiser})
    # is_start: false, for the generator is compared with nothing
    told = Reference("frozen", None, fingerprint({"denoiser": other.denoiser}), is_start=False)
    net = trainable(config, model)
    assistant, reference = _assistant(config, other)
    if config.train.get("gradient_checkpointing"):  # the trainer asks the policy alone
        for part in filter(None, (assistant, reference)):
            part.enable_gradient_checkpointing()  # type: ignore[operator]
    moving = _averaged(net, model, how, Turns.of(needs).round)
    scorer: Any = OneStepScorer(
        model.kind,
        other.schedule,
        (level, model.schedule.prediction),
        {"assistant": assistant, "reference": reference},
        model.latent_shape,
        empty,
        how=how,
        seed=config.data_seed,
        decode=lambda latents: model.decode_latents(latents).clamp(-1, 1),
        reward=reward,
    )
    record = record_of(config, model, start, data.record, told)
    record["model"]["generator_time"] = level.time.item()

    def save(_: nn.Module, folder: Path, weights: dict[str, Any] | None) -> None:
        _save(model, folder, int(level.time.item()), moving.get("ema"))

    trained: dict[str, nn.Module] = {"assistant": _trained(assistant)}
    return Task(net, data.train, data.eval, scorer, save, record, unit="images", moving=moving, networks=trained)


def _refuse_unlike(config: RunConfig, model: ImageModel, other: ImageModel) -> None:
    """Generator and reference read the same latents and captions, and count noise alike."""
    if _levels_differ(model.schedule, other.schedule):
        raise PrefoptError(
            f"reference.path = {config.reference.path}: it has other noise levels, or predicts {other.schedule.prediction} "
            f"where {config.model.path} predicts {model.schedule.prediction}: a generator is trained by the diffusion model "
            "that it was made of"
        )
    refuse_unlike(config, model, other)


def _levels_differ(a: Schedule, b: Schedule) -> bool:
    if a.prediction != b.prediction or a.alphas_cumprod is None or b.alphas_cumprod is None:
        return a.prediction != b.prediction
    both = min(len(a.alphas_cumprod), len(b.alphas_cumprod))
    return bool((a.alphas_cumprod[:both] - b.alphas_cumprod[:both]).abs().max() > SAME_LEVELS)


def _reward(config: RunConfig, model: ImageModel) -> Callable[[Tensor, list[str]], Tensor]:
    if config.rollout.reward is None:
        raise PrefoptError(
            "there is no reward: set rollout.reward to a function of pictures as a tensor (module:function, "
            "file.py:function) or a scorer (KIND:FOLDER), or method.alpha_rew to 0"
        )
    return load_differentiable(config.rollout.reward)


def _assistant(config: RunConfig, other: ImageModel) -> tuple[nn.Module, nn.Module | None]:
    """The assistant, which starts as the reference, and the reference: a copy, or the assistant without its adapter."""
    adapter = adapter_of(config)
    reference = copy.deepcopy(other.denoiser) if adapter is None else None
    return make_trainable(other, adapter), reference


def _trained(network: nn.Module) -> nn.ParameterDict:
    """What of a network is trained, under its names."""
    return nn.ParameterDict({n.replace(".", "|"): p for n, p in network.named_parameters() if p.requires_grad})


def _averaged(net: nn.Module, model: ImageModel, how: OneStep, every: int) -> dict[str, Moving]:
    """The generator's running mean, a network of its own without adapters."""
    if not how.ema:
        return {}
    mean = type(net).from_config(net.config)  # type: ignore[attr-defined]
    start = {name.replace(".base_layer.", "."): x for name, x in net.state_dict().items() if "lora_" not in name}
    mean.load_state_dict(start)
    mean.requires_grad_(False).eval().to(next(net.parameters()).device)
    return {"ema": Moving(mean, 1 - how.ema, every).check(net)}


def _save(model: ImageModel, folder: Path, at: int, ema: Moving | None) -> None:
    """A pipeline (its mean where there is one), or a LoRA with the scheduler beside it, that samples in one step."""
    if ema is not None:
        model.pipeline.register_modules(**{"transformer" if model.kind == "sd3" else "unet": ema.reference})
    for part in (model.denoiser, *model.frozen.values()):
        part.to("cpu")
    if model.schedule.alphas_cumprod is not None:
        model.pipeline.register_modules(scheduler=one_step_scheduler(model.schedule, at))
    save_image_model(model, folder)
    if getattr(model.denoiser, "peft_config", None):
        model.pipeline.scheduler.save_pretrained(folder / "scheduler")
