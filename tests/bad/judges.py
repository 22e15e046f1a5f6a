"""Bad scorers and functions of the user's own: what judges, captions or embeds pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.bad import Place, Table
from tests.bad.images import CAPTION, pair
from tests.small_clip import save_clip

bad = Table()
FUNCTIONS = {
    "none": "return None",
    "raises": "raise RuntimeError('no weights here')",
    "short": "return [0.5] * (len(of) - 1)",
    "nan": "return [float('nan')] * len(of)",
    "words": "return ['good'] * len(of)",
}


def function(p: Place, body: str, arguments: str) -> str:
    return f"{p.file('own.py', f'def f({arguments}):{chr(10)}    {FUNCTIONS[body]}{chr(10)}')}:f"


def build(p: Place, what: str, *more: str, user: str | None = None, number: int = 2) -> list[str]:
    rows = [pair(p, n, **({} if user is None else {"user": user})) for n in range(number)]
    output = "users" if what == "users" else "made.jsonl"
    return ["data", "build", what, str(p.rows(*rows)), "-o", str(p.tmp.with_name(p.tmp.name + f"-{output}")), *more]


def own(what: str, name: str, arguments: str, option: tuple[str, ...], **how: Any) -> Callable[..., None]:
    """A case: the function `name` of these arguments, given to `prefopt data build WHAT` by the last of `option`."""

    def add(*words: str) -> None:
        def command(p: Place) -> list[str]:
            return build(p, what, *option, function(p, name, arguments), **how)

        command.__name__ = f"{what}_by_a_function_{name}"
        bad(*words)(command)

    return add


for name, words in {
    "none": ("must return a list of numbers", "NoneType"),
    "raises": ("failed with RuntimeError", "no weights here"),
    "short": ("returned 3 values for 4",),
    "nan": ("nan", "not finite"),
    "words": ("list of numbers", "good"),
}.items():
    own("labels", name, "prompts, of", ("--reward",))(*words)
CAPTIONS = ("--way", "c", "--captioner")
own("captions", "none", "of, prompts", CAPTIONS)("captioner", "NoneType", "list of 2 texts")
own("captions", "raises", "of, prompts", CAPTIONS)("captioner", "failed with RuntimeError", "no weights here")
USERS: dict[str, Any] = {"user": "anna", "number": 6}
own("users", "none", "of", ("--encoder",), **USERS)("encoder", "NoneType", "p lists of d")
own("users", "raises", "of", ("--encoder",), **USERS)("encoder", "failed with RuntimeError")


@bad("--way c has no use", "strength")
def captions_strength_of_nothing(p: Place) -> list[str]:
    return build(p, "captions", "--way", "c", "--captioner", function(p, "none", "a, b"), "--strength", "weak")


@bad("pickscore:./nowhere", "there is no folder")
def scorer_nowhere(p: Place) -> list[str]:
    return build(p, "labels", "--reward", "pickscore:./nowhere")


@bad("pikscore", "did you mean 'pickscore'")
def scorer_misspelt(p: Place) -> list[str]:
    return build(p, "labels", "--reward", "pikscore:folder")


def clip(p: Place, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A CLIPModel's folder whose weights are changed."""
    folder = save_clip(p.tmp / "clip")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@bad("hpsv2", "visual_projection", "not finite")
def scorer_damaged(p: Place) -> list[str]:
    return build(
        p, "labels", "--reward", f"hpsv2:{clip(p, lambda w: w['visual_projection.weight'].fill_(float('nan')))}"
    )


@bad("hpsv2", "other shapes", "config.json", "visual_projection")
def scorer_of_another_shape(p: Place) -> list[str]:
    return build(
        p, "labels", "--reward", f"hpsv2:{clip(p, lambda w: w.update({'visual_projection.weight': torch.zeros(3, 3)}))}"
    )


def judged(p: Place, method: str, name: str, arguments: str) -> list[str]:
    more = ("method.steps=4", "rollout.rounds=1", "rollout.prompts_per_round=1")
    own = f"rollout.reward={function(p, name, arguments)}"
    return p.train(*more, own, method=method, model=p.fixture("image_model"), data=p.rows({"prompt": CAPTION}))


for name, said in {"none": "must return one number", "short": "1 scores for 2", "raises": "failed with"}.items():

    def step_judge(p: Place, name: str = name) -> list[str]:
        return [*judged(p, "spo-step", name, "of, prompts, times"), "method.divert_start_step=1"]

    step_judge.__name__ = f"step_judge_{name}"
    bad("step judge", said)(step_judge)


@bad("reward", "nan", "not finite")
def reward_that_is_no_number(p: Place) -> list[str]:
    return judged(p, "d3po", "nan", "prompts, of")


@bad("both sides alike", "all 2 pairs", "--gap 0")
def labels_that_all_tie(p: Place) -> list[str]:
    return build(p, "labels", "--reward", f"{p.file('own.py', 'def f(prompts, of): return [1.0] * len(of)')}:f")
