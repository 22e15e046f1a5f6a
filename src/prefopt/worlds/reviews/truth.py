"""The exact rewards of the reviews world. Each takes (prompts, responses) and returns one number per response.

name         range     what it measures
reward       [0, 1]    fluency * (0.8 * (1 + sentiment) / 2 + 0.2 * (1 + topic) / 2): a review that likes its film, in
                       well-formed sentences that do not repeat themselves, about the film of the prompt
sentiment    [-1, 1]   sum of the valences of the distinct opinions / max(number of them, 2)
politeness   [-1, 1]   (courtesies - insults) / max(number of both, 2), each counted once
topic        [-1, 1]   mean of: title (right 1, none 0, wrong -1), genre (likewise), the share of sentences on the film
                       (all 1, none -1), and, if the prompt asks for a subject, whether it is mentioned (1 or -1)
brevity      [-1, 1]   1 - words / 30, at least -1; -1 for an empty response
fluency      [0, 1]    share of sentences that are well formed and new, divided by 1 + half the number of repeated
                       opinions and repeated subjects
length       >= 0      number of words

The headline reward cannot be had by shouting "wonderful": one opinion counts once and at least two are needed, the
same opinion or the same sentence again costs fluency, and words outside a sentence of the grammar cost fluency too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from prefopt.worlds.reviews import lexicon as lx
from prefopt.worlds.reviews.corpus import Film
from prefopt.worlds.reviews.grammar import RULES, base, sentences, well_formed

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]

TITLE = re.compile(r"'([^']+)'")
WORD = re.compile(r"[A-Za-z]+")
OPINIONS = {phrase: valence for rule in RULES.values() if isinstance(rule, dict) for phrase, valence in rule.items()}


def _any_of(phrases: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(phrases, key=len, reverse=True)
    return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b", re.IGNORECASE)


_BY_LOWER = {phrase.lower(): phrase for phrase in OPINIONS}
_OPINION = _any_of(list(OPINIONS))
_COURTESY = _any_of([*lx.POLITE, *lx.POLITE_SENTENCES])
_INSULT = _any_of([*lx.RUDE, *lx.RUDE_SENTENCES])
_SUBJECT = _any_of([*lx.SINGULAR, *lx.PLURAL])


def opinions(text: str) -> list[str]:
    """The opinions in a text, in order, as the lexicon writes them; titles are not read."""
    return [_BY_LOWER[found.lower()] for found in _OPINION.findall(TITLE.sub("", text))]


def _sentiment(_: str, response: str) -> float:
    distinct: dict[str, float] = {}
    for phrase in opinions(response):
        distinct.setdefault(base(phrase), OPINIONS[phrase])
    return sum(distinct.values()) / max(len(distinct), 2)


def _politeness(_: str, response: str) -> float:
    courtesies = len({found.lower() for found in _COURTESY.findall(response)})
    insults = len({found.lower() for found in _INSULT.findall(response)})
    return (courtesies - insults) / max(courtesies + insults, 2)


def _topic(prompt: str, response: str) -> float:
    parts = sentences(response)
    if not parts:
        return -1.0
    words = set(WORD.findall(TITLE.sub("", response).lower()))
    scores = [2 * sum(_on_film(part) for part in parts) / len(parts) - 1]
    film = Film.of(prompt)
    if film is not None:
        titles = set(TITLE.findall(response))
        genres = words & set(lx.GENRES)
        scores += [_right(titles, film.title), _right(genres, film.genre)]
        if film.subject is not None:
            scores.append(1.0 if words & set(lx.SUBJECTS.get(film.subject, ())) else -1.0)
    return sum(scores) / len(scores)


def _right(named: set[str], true: str) -> float:
    return 0.0 if not named else 1.0 if named == {true} else -1.0


def _on_film(sentence: str) -> bool:
    bare = sentence.rstrip(".!?").lower()
    if bare in lx.ASIDE:  # "it rained": not the film
        return False
    return bool(TITLE.search(sentence)) or bool(opinions(sentence)) or not lx.FILM_WORDS.isdisjoint(WORD.findall(bare))


def _fluency(_: str, response: str) -> float:
    parts = sentences(response)
    if not parts:
        return 0.0
    good = sum(well_formed(part) for part in set(parts))
    bare = TITLE.sub("", response)
    said = [base(phrase) for phrase in opinions(bare)]
    # subjects outside the opinions: "the story falls apart" judges the story, but as one opinion
    subjects = [found.lower() for found in _SUBJECT.findall(_OPINION.sub("", bare))]
    repeats = len(said) - len(set(said)) + len(subjects) - len(set(subjects))
    return good / len(parts) / (1 + repeats / 2)


def _brevity(_: str, response: str) -> float:
    words = len(WORD.findall(response))
    return max(-1.0, 1 - words / 30) if words else -1.0


def _length(_: str, response: str) -> float:
    return float(len(WORD.findall(response)))


def _reward(prompt: str, response: str) -> float:
    liking, on_topic = (1 + _sentiment(prompt, response)) / 2, (1 + _topic(prompt, response)) / 2
    return _fluency(prompt, response) * (0.8 * liking + 0.2 * on_topic)


def _all(score: Callable[[str, str], float], prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [score(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def reward(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The headline reward, in [0, 1]."""
    return _all(_reward, prompts, responses)


def sentiment(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """How much the review likes the film, in [-1, 1]."""
    return _all(_sentiment, prompts, responses)


def politeness(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Courtesies against insults, in [-1, 1]."""
    return _all(_politeness, prompts, responses)


def topic(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Whether the review is about the film of the prompt, in [-1, 1]; other prompts: about some film."""
    return _all(_topic, prompts, responses)


def brevity(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Short is good, in [-1, 1]."""
    return _all(_brevity, prompts, responses)


def fluency(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Well-formed sentences without repetition, in [0, 1]."""
    return _all(_fluency, prompts, responses)


def length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Number of words."""
    return _all(_length, prompts, responses)


OBJECTIVES: dict[str, Reward] = {
    "sentiment": sentiment,
    "politeness": politeness,
    "topic": topic,
    "brevity": brevity,
}


def objectives(prompts: Sequence[str], responses: Sequence[str]) -> dict[str, list[float]]:
    """Several objectives at once, by name."""
    return {name: score(prompts, responses) for name, score in OBJECTIVES.items()}
