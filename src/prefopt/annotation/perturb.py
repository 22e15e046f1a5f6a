"""Perturbers of captions: the same sentence with other words, weaker or stronger.

Strengths are shares of changed words in percent, as the paraphraser of 2502.06023 counts them: weak 40, medium 60, strong
80, or a number of 0, 20, .., 100.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.stop_words import stop_words
from ..errors import PrefoptError, first_line
from ..rewards.callables import ask, load_function

Perturber = Callable[[Sequence[str]], list[str]]
STRENGTHS = {"weak": 40, "medium": 60, "strong": 80}
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
SENTENCES = 3  # that a paraphraser reads at once


def load_perturber(spec: Any, strength: str, texts: Sequence[str], seed: int = 0) -> Perturber:
    """The perturber that `spec` names at this strength; `texts` are those of the data, whose words the built-in one takes.

    spec: "words"; module:function, file.py:function or a function of (texts, strength), strength as it was given; the
    folder of a sequence-to-sequence paraphraser with control codes. Raises PrefoptError.
    """
    percent = amount(strength)
    function: Callable[[Sequence[str]], Any]
    if spec == "words":
        function, name = Words(texts, percent, seed), "words"
    elif isinstance(spec, str) and Path(spec).expanduser().is_dir():
        function, name = Paraphraser(Path(spec).expanduser(), percent, seed), spec
    else:
        name = spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
        own = spec if callable(spec) else load_function(spec, ("texts", "strength"), "perturber")
        function = lambda said: own(list(said), strength)  # noqa: E731
    who = f"perturber {name!r}"
    return lambda said: checked(ask(function, who, said), len(said), who)


def checked(answer: Any, count: int, who: str) -> list[str]:
    """As many texts as were asked for. Raises PrefoptError for None, a wrong number, and empty or other answers."""
    if answer is None or isinstance(answer, str) or not hasattr(answer, "__len__"):
        raise PrefoptError(f"{who} returned {type(answer).__name__}; it must return a list of {count} texts")
    if len(answer) != count:
        raise PrefoptError(f"{who} returned {len(answer)} texts for {count}; it must return one each")
    for i, text in enumerate(answer):
        if not isinstance(text, str) or not text.strip():
            raise PrefoptError(f"{who} returned {text!r} for number {i}; it must return a text that is not empty")
    return [text.strip() for text in answer]


def amount(strength: str) -> int:
    """Percent of changed words. Raises PrefoptError for an unknown strength."""
    if strength in STRENGTHS:
        return STRENGTHS[strength]
    if str(strength).isdigit() and int(strength) in range(0, 101, 20):
        return int(strength)
    raise PrefoptError(
        f"strength {strength!r} is unknown; there are {', '.join(STRENGTHS)}, and the numbers 0, 20, 40, 60, 80, 100"
    )


class Words:
    """Exchanges a share of the content words for other content words of the data, seeded by the text itself."""

    def __init__(self, texts: Sequence[str], percent: int, seed: int):
        self.stop = stop_words(None)
        self.percent, self.seed = percent, seed
        self.known = sorted({w.lower() for t in texts for w in WORD.findall(t) if w.lower() not in self.stop})
        if len(self.known) < 2:
            raise PrefoptError("perturber 'words': the data has fewer than two content words to exchange; give another")

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [self._changed(t) for t in texts]

    def _changed(self, text: str) -> str:
        digest = hashlib.sha256(f"{self.seed} {text}".encode()).digest()
        g = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        places = [m for m in WORD.finditer(text) if m[0].lower() not in self.stop]
        if not places or not self.percent:
            return text
        count = min(len(places), max(1, round(len(places) * self.percent / 100)))
        chosen = {places[i].start() for i in g.choice(len(places), count, replace=False)}
        out, end = [], 0
        for m in places:
            out.append(text[end : m.start()])
            out.append(self._other(m[0], g) if m.start() in chosen else m[0])
            end = m.end()
        return "".join([*out, text[end:]])

    def _other(self, word: str, g: np.random.Generator) -> str:
        others = [w for w in self.known if w != word.lower()]
        new = others[int(g.integers(len(others)))]
        return new.capitalize() if word[:1].isupper() else new


class Paraphraser:
    """A sequence-to-sequence model with control codes: "lexical = 100 - percent, order = 100 <sent> ... </sent>".

    Sampled with top-p 0.75, up to 256 tokens for each window of three sentences; order diversity 0.
    """

    def __init__(self, folder: Path, percent: int, seed: int):
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as e:
            raise PrefoptError(
                f"perturber {folder}: transformers cannot load it as a paraphraser: {first_line(e, 200)}"
            ) from None
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.percent, self.seed = percent, seed

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [self._rewritten(t) for t in texts]

    def _rewritten(self, text: str) -> str:
        import torch

        sentences = [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]
        said: list[str] = []
        with torch.random.fork_rng():
            digest = hashlib.sha256(f"{self.seed} {text}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "little"))
            for start in range(0, len(sentences), SENTENCES):
                said.append(self._asked(" ".join(said), " ".join(sentences[start : start + SENTENCES])))
        return " ".join(said)

    def _asked(self, before: str, window: str) -> str:
        import torch

        given = f"lexical = {100 - self.percent}, order = 100 {before} <sent> {window} </sent>"
        read = self.tokenizer(given, return_tensors="pt", truncation=True, max_length=512).to(self.model.device)
        with torch.no_grad():
            asked = {k: read[k] for k in ("input_ids", "attention_mask")}
            ids = self.model.generate(**asked, do_sample=True, top_p=0.75, max_new_tokens=256)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
