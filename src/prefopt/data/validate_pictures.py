"""What the doctor looks for in image rows beyond what training refuses: whole decoding, frames, sizes, lengths of captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from ..models.caption_length import longest, overlong
from .example import Example
from .images import Look, look_at

Remark = tuple[str, Literal["warn", "info"], str]  # title, severity, detail


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
            yield "captions that are cut", "warn", f"no text encoder reads more than {longest(self.tokenizers)} tokens"
