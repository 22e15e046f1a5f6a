"""The written corpus of the reviews world: prompts, and reviews of every mood, manner, length and relevance."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from prefopt.worlds.reviews import lexicon as lx
from prefopt.worlds.reviews.grammar import RULES, Writer

MOODS = (-0.9, -0.7, -0.5, -0.2, 0.1, 0.4, 0.6, 0.8)
LENGTHS = {1: 0.07, 2: 0.31, 3: 0.37, 4: 0.25}
OPEN_PROMPT = re.compile(r"Review of the (\w+) '([^']+)'(?:, with a word on the (\w+))?:")


@dataclass(frozen=True)
class Film:
    """What a prompt names: the genre, the title and, in one prompt of four, a subject to talk about."""

    genre: str
    title: str
    subject: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt ends with a line break, so that its last token does not depend on the answer."""
        word = f", with a word on the {self.subject}" if self.subject else ""
        return f"Review of the {self.genre} '{self.title}'{word}:\n"

    @classmethod
    def of(cls, prompt: str) -> Film | None:
        """The film of a prompt, or None if the prompt has another form."""
        found = OPEN_PROMPT.search(prompt)
        return cls(*found.groups()) if found else None


def films(rng: random.Random, count: int, titles: list[str] | None = None) -> list[Film]:
    """`count` films with titles drawn from `titles` (all titles if None); the films differ from each other."""
    chosen: dict[Film, None] = {}
    titles = titles or list(RULES["title"])
    while len(chosen) < count:
        subject = rng.choice(list(lx.SUBJECTS)) if rng.random() < 0.25 else None
        chosen[Film(rng.choice(lx.GENRES), rng.choice(titles), subject)] = None
    return list(chosen)


def review(rng: random.Random, film: Film) -> str:
    """One review of the film: 1 to 4 sentences in a random mood and manner, now and then off the point."""
    told = film
    if rng.random() < 0.1:  # a critic who mixes up films
        told = films(rng, 1)[0]
    writer = Writer(rng, {"genre": told.genre, "title": told.title}, rng.choice(MOODS) + rng.uniform(-0.1, 0.1))
    manner = rng.choices((None, "polite", "rude"), (0.5, 0.25, 0.25))[0]
    count = rng.choices(list(LENGTHS), list(LENGTHS.values()))[0]
    plan = _plan(rng, count, manner)
    parts = []
    for rule in plan:
        address = manner if rule in ("REMARK", "VERDICT") and manner and rng.random() < 0.3 else None
        parts.append(_on_subject(writer, rng, rule, film, address))
    return " ".join(parts)


def _plan(rng: random.Random, count: int, manner: str | None) -> list[str]:
    """The rules of the sentences, in their order."""
    first = rng.choices(("OPENING", "SETTING", "REMARK"), (0.55, 0.25, 0.2))[0]
    plan = [first, *["REMARK"] * (count - 1)]
    if count > 1 and rng.random() < 0.5:
        plan[-1] = "VERDICT"
    if count > 1 and manner and rng.random() < 0.6:
        plan[rng.randrange(1, count)] = manner.upper()
    if count > 1 and rng.random() < 0.25:
        plan[rng.randrange(count)] = "DRIFT"
    return plan


def _on_subject(writer: Writer, rng: random.Random, rule: str, film: Film, address: str | None) -> str:
    """A sentence; a remark is tried a few times until it is on the subject that the prompt asked for."""
    tries = 6 if film.subject and rule == "REMARK" and rng.random() < 0.7 else 1
    before = set(writer.used)
    for _ in range(tries):
        writer.used = set(before)
        text = writer.sentence(rule, address)
        if film.subject and set(re.findall(r"\w+", text.lower())) & set(lx.SUBJECTS[film.subject]):
            break
    return text
