"""The verbs about data: `prefopt data check`, `show` and `build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_common import DataKeys, DataPath, Json, Rows, Seed, data_config, out
from .errors import PrefoptError

data_app = typer.Typer(
    help="Look at preference data before a model does, and make what a method needs.", no_args_is_help=True
)
build_app = typer.Typer(help="Make data that a method needs of data that is there.", no_args_is_help=True)
data_app.add_typer(build_app, name="build")


@data_app.command()
def check(
    path: DataPath,
    overrides: DataKeys = None,
    method: Annotated[str | None, typer.Option("--method", help="also check what this method needs")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="its tokenizer finds overlong rows")] = None,
    as_json: Json = False,
) -> None:
    """Examine every row without loading a model; exit code 2 if training on them would not be sound."""
    from .data.validate import check_data
    from .data.validate_view import render_report

    found = check_data(data_config(path, overrides), needs=_data_needs(method), tokenizer=model)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        out.print(render_report(found))
    if not found.sound:
        raise typer.Exit(2)


@data_app.command()
def show(
    path: DataPath,
    model: Annotated[str, typer.Option("--model", "-m", help="model folder, for its tokenizer and template")],
    overrides: DataKeys = None,
    method: Annotated[str | None, typer.Option("--method", help="show the rows as this method reads them")] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="rows to show")] = 3,
) -> None:
    """Print what the model will see: tokens coloured by prompt, response and mask."""
    from .data.show import legend, show_examples
    from .models.text import load_tokenizer

    out.print(legend())
    data = data_config(path, overrides)
    for shown in show_examples(data, load_tokenizer(model), n=number, needs=_data_needs(method)):
        out.print(shown)


@build_app.command()
def scores(
    path: DataPath,
    output: Rows,
    add: Annotated[
        list[str],
        typer.Option(help="NAME=WHAT, once for each number: reward_score=REWARD, margin_rewards=REWARD (or implicit:RUN), "
                     "reward_scores=REWARD, sources=MODEL, score=REWARD; a REWARD is a reward model's folder, module:function, "
                     "file.py:function, or of pictures KIND:FOLDER (pickscore, hpsv2, clip-score, imagereward, aesthetic)"),
    ],
    overrides: DataKeys = None,
) -> None:  # fmt: skip
    """Add numbers about every response: of reward models, functions, implicit rewards, models with other tokenizers."""
    from .annotation.build import build_scores

    wanted: dict[str, list[str]] = {}
    for item in add:
        name, equals, what = item.partition("=")
        if not equals:
            raise PrefoptError(f"--add {item}: write NAME=WHAT, e.g. --add reward_score=path/to/reward-model")
        wanted.setdefault(name, []).append(what)
    record = build_scores(data_config(path, overrides), wanted, output)
    for name, found in record["statistics"].items():
        out.print(f"{name}: mean {found['mean']:.4g}, deviation {found['std']:.4g} over {found['numbers']} numbers")
    out.print(f"{record['rows']} rows in {output}, made from what {output.name}.job says", soft_wrap=True)


@build_app.command()
def users(
    path: Annotated[str, typer.Argument(help="pairs of images with a `user`: file, folder or hub name")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder; given again, an unfinished build goes on")],
    encoder: Annotated[
        str, typer.Option(help="vision-language model's folder, module:function, file.py:function, or one-hot")
    ],
    overrides: DataKeys = None,
    shots: Annotated[int, typer.Option(min=1, help="pairs behind an embedding")] = 4,
    draws: Annotated[int, typer.Option(min=1, help="embeddings of each user, each of other pairs")] = 4,
    layer: Annotated[int | None, typer.Option(min=0, help="whose hidden states; default: the middle one")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="hidden states taken from the end; default: 8")] = None,
    seed: Seed = 0,
) -> None:
    """Embed users by a few of their own pairs (PPD): a table for data.users. Users with too few pairs are left out."""
    from .annotation.users import build_users

    made = build_users(
        data_config(path, overrides), output, encoder, shots=shots, draws=draws, seed=seed, layer=layer, tokens=tokens
    )
    left_out = f"; {made['too_few']} with too few pairs left out" if made["too_few"] else ""
    told = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in made["told_apart"].items())
    out.print(f"{made['users']} users in {output}, {made['shape'][0]} x {made['shape'][1]} numbers each{left_out}")
    if told:
        out.print(f"told apart by their other draws: {told}", soft_wrap=True)


@build_app.command()
def lists(
    sources: Annotated[list[str], typer.Argument(help="outputs of prefopt generate, one for each model")],
    output: Rows,
) -> None:
    """Join what several models answered to the same prompts: one list of responses for each prompt."""
    from .annotation.joined import build_lists

    record = build_lists(sources, output)
    out.print(f"{record['rows']} lists in {output}", soft_wrap=True)


@build_app.command()
def labels(
    path: Annotated[str, typer.Argument(help="file, folder or hub name with pairs")],
    output: Rows,
    reward: Annotated[str, typer.Option(help="what labels: a scorer (KIND:FOLDER), a reward model, module:function")],
    overrides: DataKeys = None,
    gap: Annotated[
        float | None, typer.Option(help="pairs whose probabilities differ by no more are ties (default: equal scores)")
    ] = None,
) -> None:
    """Label pairs anew by a scorer (AI feedback); the labels of the data are not looked at."""
    from .annotation.labels import build_labels

    record = build_labels(data_config(path, overrides), reward, output, gap=gap)
    told = ", ".join(f"{n} {k}" for k, n in record.get("told", {}).items())
    out.print(f"{record['rows']} pairs in {output}" + (f" ({told})" if told else ""), soft_wrap=True)


@build_app.command()
def captions(
    path: Annotated[str, typer.Argument(help="file, folder or hub name with pairs of pictures")],
    output: Rows,
    way: Annotated[
        str, typer.Option(help="c: captions; p: the prompt and it perturbed; h: captions, the worse perturbed")
    ],
    overrides: DataKeys = None,
    captioner: Annotated[
        str | None, typer.Option(help="image-to-text model folder, or module:function (images, prompts)")
    ] = None,
    perturber: Annotated[
        str | None, typer.Option(help="words (default), paraphraser folder, or module:function (texts, strength)")
    ] = None,
    strength: Annotated[str | None, typer.Option(help="weak, medium (default), strong, or 0, 20, .., 100")] = None,
    seed: Seed = 0,
) -> None:
    """Write a caption for each picture of a pair, as DCPO needs them."""
    from .annotation.captions import build_captions

    of: dict[str, Any] = {
        "way": way,
        "captioner": captioner,
        "perturber": perturber,
        "strength": strength,
        "seed": seed,
    }
    record = build_captions(data_config(path, overrides), output, **of)
    out.print(f"{record['rows']} pairs with captions in {output}", soft_wrap=True)


def _data_needs(method: str | None) -> set[str]:
    if method is None:
        return set()
    from .objectives.method import get_method
    from .recipes import load_all
    from .training.needs import data_needs

    if recipe := load_all().get(method):
        raise PrefoptError(
            f"--method {method}: a recipe, whose steps make data of their own from {', '.join(recipe.needs)}; look at the "
            f"rows without --method, or examine all its steps with prefopt train {method} ... --dry-run"
        )
    return data_needs(get_method(method).needs())
