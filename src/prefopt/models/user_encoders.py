"""From a user's few pairs to an embedding: a vision-language model's hidden states, a function of your own, or a code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import PrefoptError

ONE_HOT = "one-hot"


class Shot(NamedTuple):
    """One choice that a user made. `first`: whether the chosen image is shown first, drawn at random for each shot."""

    prompt: str
    chosen: Any  # PIL images
    rejected: Any
    first: bool = True


class UserEncoder(Protocol):
    """Shots -> [p, d] tokens. `record()` is what makes the same encoder again."""

    def __call__(self, shots: Sequence[Shot]) -> Tensor: ...
    def record(self) -> dict[str, Any]: ...


@dataclass
class FunctionEncoder:
    """A user's function of shots (prompt, chosen, rejected, first) to d numbers, or p lists of them."""

    spec: str
    function: Callable[[Sequence[Shot]], Any] = field(init=False)

    def __post_init__(self) -> None:
        from ..rewards.callables import load_function

        self.function = load_function(self.spec, ("shots",), "encoder")

    def __call__(self, shots: Sequence[Shot]) -> Tensor:
        from ..rewards.callables import ask

        answer = ask(self.function, f"encoder {self.spec}", shots)
        try:
            x = torch.as_tensor(answer, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PrefoptError(
                f"encoder {self.spec}: answered {type(answer).__name__}, expected d finite numbers or p lists of d ({error})"
            ) from error
        x = x[None] if x.dim() == 1 else x
        if x.dim() != 2 or not x.numel() or not bool(torch.isfinite(x).all()):
            raise PrefoptError(
                f"encoder {self.spec}: answered {list(x.shape)}, expected d finite numbers or p lists of d"
            )
        return x

    def record(self) -> dict[str, Any]:
        return {"encoder": self.spec}


@dataclass
class VisionLanguageEncoder:
    """Hidden states of a frozen vision-language model (any image-text-to-text folder of transformers) that is shown a
    user's choices in one conversation: p states from the end of the text, of a layer in the middle.

    layer   which hidden states; None: the middle one
    tokens  p
    """

    path: str
    layer: int | None = None
    tokens: int = 8
    model: Any = field(init=False, repr=False)
    processor: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        local = Path(self.path).is_dir()
        try:
            self.processor = AutoProcessor.from_pretrained(self.path, local_files_only=local)
            self.model = AutoModelForImageTextToText.from_pretrained(self.path, local_files_only=local)
        except Exception as error:  # transformers raises a dozen types
            raise PrefoptError(
                f"encoder {self.path}: no image-text-to-text model can be loaded from it: {error}"
            ) from None
        self.model.requires_grad_(False).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        layers = self.model.config.get_text_config().num_hidden_layers
        self.layer = layers // 2 if self.layer is None else self.layer
        if not 0 <= self.layer <= layers:
            raise PrefoptError(f"encoder {self.path}: layer {self.layer}; there are hidden states 0 .. {layers}")
        if self.tokens < 1:
            raise PrefoptError(f"encoder {self.path}: tokens = {self.tokens} must be at least 1")

    @torch.no_grad()
    def __call__(self, shots: Sequence[Shot]) -> Tensor:
        content: list[dict[str, str]] = []
        images: list[Any] = []
        for shot in shots:
            pair = (shot.chosen, shot.rejected) if shot.first else (shot.rejected, shot.chosen)
            images += pair
            said = "first" if shot.first else "second"
            content += [
                {"type": "text", "text": f"Two images of: {shot.prompt}\n"},
                {"type": "image"},
                {"type": "image"},
            ]
            content += [{"type": "text", "text": f"\nThe user prefers the {said} image.\n"}]
        content += [{"type": "text", "text": "Describe what this user likes."}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=images, text=text, return_tensors="pt").to(self.model.device)
        states = self.model(**inputs, output_hidden_states=True).hidden_states[self.layer][0]
        if len(states) < self.tokens:
            raise PrefoptError(f"encoder {self.path}: {self.tokens} tokens are asked of a text of {len(states)}")
        return states[-self.tokens :].float().cpu()

    def record(self) -> dict[str, Any]:
        return {"encoder": self.path, "layer": self.layer, "tokens": self.tokens}


def user_encoder(encoder: str, layer: int | None = None, tokens: int | None = None) -> UserEncoder:
    """The encoder that a command or a table names. Raises PrefoptError for what cannot be loaded, and for `one-hot`,
    which embeds no examples."""
    if encoder == ONE_HOT:
        raise PrefoptError("one-hot users are codes of the users in the data: a new user has none")
    if ":" in encoder and not Path(encoder).exists():
        if layer is not None or tokens is not None:
            raise PrefoptError(f"--layer and --tokens have no effect on the function {encoder}")
        return FunctionEncoder(encoder)
    return VisionLanguageEncoder(encoder, layer, 8 if tokens is None else tokens)
