"""Verbs about models that there are: `prefopt generate`, `prefopt eval`, `prefopt merge`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import DataKeys, Json, PromptOnly, Seed, User, UserPairs, data_config, out
from .errors import PrefoptError

OF_TEXTS = ("max_new_tokens", "temperature", "top_p", "top_k", "judge")
OF_PICTURES = ("steps", "guidance", "grid", "features", "negative", "user", "user_pairs", "prompt_only")


def generate(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="model folder (also an adapter's, or a run's) or hub name")],
    prompts: Annotated[str, typer.Option("--prompts", "-p", help="rows with a `prompt`, in any data layout")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="JSONL (text) or folder (images); given again, it goes on")
    ],
    overrides: DataKeys = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="samples for each prompt")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="text; the longest answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="text; 0 is greedy")] = 1.0,
    top_p: Annotated[float, typer.Option(help="text; the most likely tokens up to this probability")] = 1.0,
    top_k: Annotated[int, typer.Option(help="text; so many of the most likely tokens, 0 is all")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="images: sampler steps")] = 50,
    guidance: Annotated[float, typer.Option(min=0, help="images: classifier-free guidance, 1 is none")] = 7.5,
    seed: Seed = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="by default as the model's size allows")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="score the samples: the file is then a ranked-list data set (images: given several times, they vote)"
        ),
    ] = None,
    grid: Annotated[int, typer.Option(min=0, help="images: grid.png of the pictures of the first prompts")] = 8,
    negative: Annotated[
        str | None, typer.Option(help="images: a model whose network is the negative branch of guidance")
    ] = None,
    user: User = None,
    user_pairs: UserPairs = None,
    prompt_only: PromptOnly = False,
    limit: Annotated[int | None, typer.Option(min=1, help="only so many prompts, the first ones")] = None,
) -> None:
    """Sample from a model into a file that prefopt's own training reads.

    KEY=VALUE are of the data section (columns, system, thinking, ...); a run folder brings its own template keys.
    """
    from .models.text import model_kind
    from .rollout.verb import generate_images, generate_text, template_keys

    data = data_config(prompts, [*template_keys(Path(model)), *(overrides or [])])
    if limit:
        data = data.model_copy(update={"limit": limit})
    if model_kind(model) == "diffusion":
        from .rollout.images import ImageSampling

        _refuse(ctx, OF_TEXTS, f"{model} draws pictures")
        pictures = ImageSampling(steps, guidance, batch_size or 16)
        who = {"user": user, "user_pairs": user_pairs, "prompt_only": prompt_only}
        count = generate_images(model, data, output, number, seed, pictures, reward or (), negative, grid, **who)
    else:
        from .rollout.text import Sampling

        _refuse(ctx, OF_PICTURES, f"{model} is no diffusion model")
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, number, seed, batch_size)
        count = generate_text(model, data, output, sampling, _one(reward))
    out.print(f"{count} prompts sampled into {output}", soft_wrap=True)


def _refuse(ctx: typer.Context, names: Sequence[str], why: str) -> None:
    """Options that were given and would change nothing."""
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise PrefoptError(f"--{name.replace('_', '-')} has no effect: {why}")


def _one(reward: list[str] | None) -> str | None:
    """Texts are scored by one reward."""
    if len(reward or ()) > 1:
        raise PrefoptError(f"--reward is given {len(reward or ())} times; texts are scored by one")
    return reward[0] if reward else None


def eval_(
    ctx: typer.Context,
    run: Annotated[str, typer.Argument(help="run folder, or with --against any model")],
    against: Annotated[str | None, typer.Option(help="the model to compare with; default: the run's start")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="held-out data; default: the run's own")] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="module:function, file.py:function, reward model folder, or KIND:FOLDER of pictures, which take several"
        ),
    ] = None,
    features: Annotated[
        str | None, typer.Option(help="images: CLIPModel folder whose embeddings tell how diverse pictures are")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="module:function or file.py:function (prompts, a, b)")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="where to write; default: the run folder")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="how many different prompts")] = 128,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="samples for each prompt")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="text; the longest answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="text; 0 is greedy")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="images: sampler steps")] = 50,
    guidance: Annotated[float, typer.Option(min=0, help="images: classifier-free guidance, 1 is none")] = 7.5,
    negative: Annotated[
        str | None,
        typer.Option(help="images: a model as the negative branch of guidance; the run itself: its start guided by it"),
    ] = None,
    user: User = None,
    user_pairs: UserPairs = None,
    prompt_only: PromptOnly = False,
    as_json: Json = False,
) -> None:
    """Accuracy on held-out pairs, reward, KL, length, diversity and win rate against the starting model."""
    from .evaluation.run import evaluate, evaluate_run, kind_of_run
    from .evaluation.view import render_evaluation

    of_run = (Path(run) / "config.yaml").is_file() or Path(run).name.startswith("checkpoint-")
    kind = kind_of_run(Path(run)) if of_run else "text"
    options: dict[str, Any] = {"limit": limit}
    if kind == "diffusion":
        from .rollout.images import ImageSampling

        _refuse(ctx, OF_TEXTS, f"{run} draws pictures")
        options |= {"number": number, "sampling": ImageSampling(steps, guidance)}
        options |= {"negative": negative, "features": features}
        options |= {"user": user, "user_pairs": user_pairs, "prompt_only": prompt_only}
    elif kind == "clip":
        _refuse(ctx, (*OF_TEXTS, *OF_PICTURES, "number"), f"{run} is a preference model, which is told by its pairs")
        options |= {"judge": judge}
    else:
        from .rollout.text import Sampling

        _refuse(ctx, OF_PICTURES, f"{run} is no run of a diffusion model")
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, n=number)
        options |= {"judge": judge, "sampling": sampling}
    if of_run:
        if output is not None:
            raise PrefoptError("--output has no effect on a run folder: evaluation.json is written into it")
        found = evaluate_run(run, against=against, data=data, reward=reward, **options)
    else:
        if against is None or data is None or output is None:
            raise PrefoptError(f"{run} is not a run folder: give --against MODEL, --data FILE and --output FOLDER too")
        found = evaluate(run, against, data, output, reward=_one(reward), **options)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        out.print(render_evaluation(found))


def merge(
    base: Annotated[str, typer.Argument(help="pipeline folder or hub name whose weights are moved")],
    negative: Annotated[str, typer.Argument(help="the network of dislikes: a pipeline, a LoRA's or a run's folder")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a new pipeline folder")],
    positive: Annotated[str | None, typer.Option(help="the aligned model that will be guided")] = None,
    alpha: Annotated[float, typer.Option(help="share of the positive model's offset in the negative network")] = 1.0,
    beta: Annotated[float, typer.Option(help="share of the negative network's own offset")] = 1.0,
    guided: Annotated[
        bool, typer.Option("--guided", help="write a two-network pipeline: the positive model with the merged negative")
    ] = False,
) -> None:
    """Mix weights for two-network guidance: base + alpha (positive - base) + beta (negative - base)."""
    from .models.merging import merge_folders

    merge_folders(base, negative, output, positive=positive, alpha=alpha, beta=beta, guided=guided)
    how = f"prefopt.pipelines.load('{output}')" if guided else f"prefopt generate MODEL --negative {output}"
    out.print(f"merged into {output}; next: {how}", soft_wrap=True)
