"""The grammar of reviews: one set of rules that both writes sentences and tells whether a sentence is well formed.

A rule is a choice: a list of phrases, or a dict from phrase to valence (an opinion). A phrase may hold slots `{rule}`;
`{~rule}` asks for an opinion of the opposite direction. The rules are not recursive.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from itertools import pairwise

from prefopt.worlds.reviews import lexicon as lx

SLOT = re.compile(r"\{(~?)(\w+)\}")
TOKEN = re.compile(r"'[^']+'|[A-Za-z]+|[^\sA-Za-z]")
SENTENCE = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")
VOWELS = "aeiou"
SILENT_H = ("honest", "hour")


def _adjective_phrases() -> dict[str, float]:
    phrases = dict(lx.ADJECTIVE) | lx.NEGATED
    for word, valence in lx.ADJECTIVE.items():
        for modifier, factor in lx.MODIFIERS[abs(valence)].items():
            phrases[f"{modifier} {word}"] = max(-1.0, min(1.0, round(factor * valence, 3)))
    return phrases


RULES: Mapping[str, list[str] | dict[str, float]] = {
    "genre": lx.GENRES,
    "asp": lx.SINGULAR,
    "asps": lx.PLURAL,
    "craft": lx.CRAFTS,
    "adj": lx.ADJECTIVE,
    "adjp": _adjective_phrases(),
    "verb": lx.VERB,
    "state": lx.STATE,
    "effect": lx.EFFECT,
    "clause": lx.CLAUSE,
    "verdict": lx.VERDICT,
    "adv": lx.ADVERBIAL,
    "person": lx.PERSON,
    "situation": lx.SITUATION,
    "name": lx.NAME,
    "company": lx.COMPANY,
    "relative": lx.RELATIVE,
    "errand": lx.ERRAND,
    "when": lx.WHEN,
    "OPENING": [
        "'{title}' is a {adj} {genre}.",
        "this is a {adj} {genre}.",
        "as a {genre}, '{title}' is {adjp}.",
        "I have rarely seen such a {adj} {genre}.",
        "what a {adj} {genre}!",
        "'{title}' {effect}.",
        "I {verb} '{title}'.",
        "I {verb} this {genre} from start to finish.",
        "with its {adj} {asp} and {adj} {asps}, this {genre} {effect}.",
        "{name} has made a {adj} {genre}.",
    ],
    "SETTING": [
        "I saw '{title}' {company}.",
        "I watched this {genre} {company}.",
        "'{title}' follows {person} who {situation}.",
        "this {genre} is about {person} who {situation}.",
        "in '{title}', {person} {situation}.",
        "{name} plays {person} who {situation}.",
    ],
    "REMARK": [
        "the {asp} is {adjp}.",
        "the {asp} was {adjp}.",
        "the {asps} are {adjp}.",
        "the {asps} were {adjp}.",
        "I {verb} the {asp}.",
        "I {verb} the {asp} and the {asps}.",
        "the {asp} left me {state}.",
        "the {asp} is {adjp} and the {asps} are {adjp}.",
        "the {asp} is {adjp}, but the {asp} is {~adjp}.",
        "although the {asps} are {~adjp}, the {asp} is {adjp}.",
        "{adv}, the {asp} is {adjp}.",
        "{adv}, the {asps} are {adjp}.",
        "{clause}.",
        "{clause}.",
        "{adv}, {clause}.",
        "the {craft} by {name} is {adjp}.",
        "{name} gives a {adj} performance.",
        "thanks to the {adj} {asp}, it {effect}.",
        "the {asp} of '{title}' is {adjp}.",
        "in '{title}', the {asps} are {adjp}.",
        "for a {genre}, the {asp} is {adjp}.",
    ],
    "VERDICT": ["{verdict}.", "{verdict}.", "{adv}, '{title}' {effect}.", "all in all, {verdict}."],
    "POLITE": [*(f"{s}." for s in lx.POLITE_SENTENCES)],
    "RUDE": [*(f"{s}." for s in lx.RUDE_SENTENCES), *(f"{s}!" for s in lx.RUDE_SENTENCES)],
    "DRIFT": ["{relative} {errand} {when}.", "{when}, {relative} {errand}.", *(f"{s}." for s in lx.ASIDE)],
    "title": [f"The {a} {n}" for a in lx.TITLE_ADJECTIVES for n in lx.TITLE_NOUNS],
}
SENTENCES = ("OPENING", "SETTING", "REMARK", "VERDICT", "POLITE", "RUDE", "DRIFT")
# A remark may follow a word of courtesy or a rude address: "If I may say so, the plot is thin."
ADDRESSES = {"polite": lx.POLITE, "rude": lx.RUDE}
ADDRESSED = ("REMARK", "VERDICT")
ONCE = frozenset(["asp", "asps", "craft", "adj", "adjp", "verb", "state", "effect", "clause", "verdict", "name", "adv"])


class Writer:
    """Expands rules at random, with opinions near a target valence and without saying the same thing twice."""

    def __init__(self, rng: random.Random, fixed: Mapping[str, str], target: float, spread: float = 0.25):
        """`fixed` gives the genre and the title; `target` is the valence in [-1, 1] around which opinions are drawn."""
        self.rng, self.fixed, self.target, self.spread = rng, fixed, target, spread
        self.used: set[str] = set()

    def sentence(self, rule: str, address: str | None = None) -> str:
        """One sentence of this rule, begun with an address ("polite" or "rude") if asked."""
        text = self._expand(self.rng.choice(list(RULES[rule])))
        if address:
            text = f"{self.rng.choice(ADDRESSES[address])}, {text}"
        text = re.sub(r"\ba (?=(\w+))", lambda m: "an " if _vowel(m.group(1)) else "a ", text)
        return text[0].upper() + text[1:]

    def _expand(self, phrase: str) -> str:
        return SLOT.sub(lambda slot: self._choose(slot.group(2), -1.0 if slot.group(1) else 1.0), phrase)

    def _choose(self, rule: str, sign: float) -> str:
        if rule in self.fixed:
            return self.fixed[rule]
        choices = RULES[rule]
        left = [c for c in choices if base(c) not in self.used] if rule in ONCE else list(choices)
        left = left or list(choices)
        if isinstance(choices, dict):
            aim = sign * self.target
            weights = [math.exp(-(((choices[c] - aim) / self.spread) ** 2) / 2) + 1e-6 for c in left]
            choice = self.rng.choices(left, weights)[0]
        else:
            choice = self.rng.choice(left)
        self.used.add(base(choice))
        return self._expand(choice)


def base(phrase: str) -> str:
    """What counts as saying the same thing: the adjective without its modifier, else the phrase."""
    last = phrase.split()[-1]
    return last if last in lx.ADJECTIVE else phrase


def _vowel(word: str) -> bool:
    return word[0].lower() in VOWELS or word.startswith(SILENT_H)


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def sentences(text: str) -> list[str]:
    """The sentences of a text; the last one may lack its full stop."""
    return [s.strip() for s in SENTENCE.findall(text) if s.strip()]


@lru_cache(maxsize=65536)
def well_formed(sentence: str) -> bool:
    """Whether the grammar can have written this sentence: words, order, capital, articles, spaces and full stop."""
    if not (sentence[:1].isupper() or sentence[:1] == "'"):
        return False
    tokens = TOKEN.findall(sentence)
    if re.sub(r" (?=[,.!?])", "", " ".join(tokens)) != sentence or not _articles_right(tokens):
        return False
    lowered = [tokens[0][0].lower() + tokens[0][1:], *tokens[1:]]
    return any(_parses(tuple("a" if t == "an" else t for t in version)) for version in (lowered, tokens))


def _articles_right(tokens: list[str]) -> bool:
    for article, word in pairwise(tokens):
        if article.lower() in ("a", "an") and _vowel(word) != (article.lower() == "an"):
            return False
    return True


def _parses(tokens: tuple[str, ...]) -> bool:
    starts: dict[int, tuple[str, ...]] = {0: SENTENCES}
    for addresses in ADDRESSES.values():
        for address in addresses:
            words = (*TOKEN.findall(address), ",")
            if tokens[: len(words)] == words:
                starts[len(words)] = ADDRESSED
    return any(len(tokens) in _ends(rule, tokens, at) for at, rules in starts.items() for rule in rules)


def _ends(rule: str, tokens: tuple[str, ...], at: int) -> set[int]:
    """Positions where a phrase of `rule` that begins at `at` can end."""
    if at >= len(tokens):
        return set()
    plain, slotted = _index(rule)
    found = {at + len(words) for words in plain.get(tokens[at], ()) if tokens[at : at + len(words)] == words}
    for symbols in slotted:
        places = {at}
        for symbol in symbols:
            places = {end for place in places for end in _step(symbol, tokens, place)}
            if not places:
                break
        found |= places
    return found


def _step(symbol: str, tokens: tuple[str, ...], at: int) -> set[int]:
    if symbol.startswith("{"):
        return _ends(symbol[1:-1], tokens, at)
    return {at + 1} if at < len(tokens) and tokens[at] == symbol else set()


@cache
def _index(rule: str) -> tuple[dict[str, list[tuple[str, ...]]], list[tuple[str, ...]]]:
    """The phrases of a rule as tokens: those without slots by their first word, and those with slots."""
    plain: dict[str, list[tuple[str, ...]]] = {}
    slotted = []
    for phrase in dict.fromkeys(RULES[rule]):
        phrase = re.sub(r"\ban (?=\w)", "a ", phrase.replace("{~", "{"))
        if rule == "title":  # a title is one token, in its quotes
            words: tuple[str, ...] = (f"'{phrase}'",)
        else:
            words = tuple(re.findall(r"\{\w+\}|[A-Za-z]+|[^\sA-Za-z]", phrase.replace("'{title}'", "{title}")))
        if any(w.startswith("{") for w in words):
            slotted.append(words)
        else:
            plain.setdefault(words[0], []).append(words)
    return plain, slotted
