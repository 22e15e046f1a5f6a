"""How much of a caption the text encoders of a pipeline read, told by its tokenizers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import PrefoptError, first_line

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
LONGEST = {"tokenizer_3": 256}
"""Tokens that a pipeline gives to an encoder whose tokenizer would allow more (SD3's T5)."""


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


def longest(tokenizers: dict[str, Any]) -> int:
    """Tokens that the best of the encoders reads."""
    return max(limit(name, words) for name, words in tokenizers.items())


def pipeline_tokenizers(folder: Path) -> dict[str, Any]:
    """The tokenizers of a pipeline's folder, by their names."""
    from transformers import AutoTokenizer

    load: Callable[..., Any] = AutoTokenizer.from_pretrained
    try:
        return {name: load(folder / name) for name in TOKENIZERS if (folder / name).is_dir()}
    except (OSError, ValueError) as error:
        raise PrefoptError(f"{folder}: its tokenizer cannot be read ({first_line(error)})") from error
