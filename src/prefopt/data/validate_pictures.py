"""What the doctor looks for in image rows beyond what training refuses: whole decoding, frames, sizes, lengths of captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import PrefoptError, first_line
from .example import Example
from .images import Look, look_at

Remark = tuple[str, Literal["warn", "info"], str]  # title, severity, detail
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
LONGEST = {"tokenizer_3": 256}
"""Tokens that a pipeline gives to an encoder whose tokenizer would allow more (SD3's T5)."""


class Pictures:
    """Looks at the pictures and the caption of a row. tokenizers: of the pipeline that will be trained, by their names."""

    def __init__(self, tokenizers: dict[str, Any] | None = None):
        self.tokenizers = tokenizers or {}

    def decoded(self, example: Example) -> list[Look]:
        """Every picture of the row, decoded whole. Raises Unreadable."""
        return [look_at(response, Path(example.file).parent) for response in example.responses]

    def remarks(self, example: Example, looks: Sequence[Look]) -> Iterator[Remark]:
        """What is worth a word, though training goes on (or says for itself how)."""
        if any(look.moving for look in looks):
            yield "images of several frames", "warn", "only the first frame is read"
        sizes = list(dict.fromkeys(look.size for look in looks))
        if len(sizes) > 1:
            told = " and ".join(f"{w} x {h}" for w, h in sizes)
            yield "images of differing size", "warn", f"{told}; training wants denoising.mixed_sizes = resize for them"
        if any(looks[a].digest == looks[b].digest for a, b in example.pairs):
            yield "pairs of equal pictures", "warn", "the same picture under two names: there is nothing to prefer"
        if self.tokenizers and overlong([str(example.prompt), *example.captions], self.tokenizers):
            yield "captions that are cut", "warn", f"no text encoder reads more than {_limits(self.tokenizers)} tokens"


def overlong(captions: Sequence[str], tokenizers: dict[str, Any]) -> list[str]:
    """Those of the captions that none of the tokenizers' encoders reads to their end."""
    left = list(dict.fromkeys(captions))
    for name, words in tokenizers.items():
        if left:
            ids = words(left, truncation=False, verbose=False)["input_ids"]
            left = [caption for caption, each in zip(left, ids, strict=True) if len(each) > limit(name, words)]
    return left


def limit(name: str, words: Any) -> int:
    """Tokens that an encoder reads."""
    return min(words.model_max_length, LONGEST.get(name, words.model_max_length))


def _limits(tokenizers: dict[str, Any]) -> int:
    return max(limit(name, words) for name, words in tokenizers.items())


def pipeline_tokenizers(folder: Path) -> dict[str, Any]:
    """The tokenizers of a pipeline's folder, by their names."""
    from transformers import AutoTokenizer

    load: Callable[..., Any] = AutoTokenizer.from_pretrained
    try:
        return {name: load(folder / name) for name in TOKENIZERS if (folder / name).is_dir()}
    except (OSError, ValueError) as error:
        raise PrefoptError(f"{folder}: its tokenizer cannot be read ({first_line(error)})") from error
