"""A pipeline whose one call with one step is one evaluation of its denoiser, for plain diffusers."""

from __future__ import annotations

from typing import Any

import torch

from ..scoring.schedules import Schedule


def one_step_scheduler(schedule: Schedule, at: int) -> Any:
    """A scheduler of the noise levels 0 .. `at`, with which `pipeline(prompt, num_inference_steps=1, guidance_scale=0)`
    asks the network once, at timestep `at`, and takes the clean latents that its answer stands for.

    It is a DDIMScheduler that starts from its last level, so more steps than one are possible, too.
    """
    from diffusers import DDIMScheduler

    assert schedule.alphas_cumprod is not None
    kept = schedule.alphas_cumprod[: at + 1]
    betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
    return DDIMScheduler(
        num_train_timesteps=at + 1,
        trained_betas=betas.tolist(),
        prediction_type=schedule.prediction,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # not read with this spacing; pipelines of Stable Diffusion insist on it
    )
