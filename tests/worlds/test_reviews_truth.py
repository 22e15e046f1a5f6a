"""The grammar and the exact rewards of the reviews world: numbers worked out by hand, and attempts to cheat."""

import random

import pytest

from prefopt.worlds import reviews
from prefopt.worlds.reviews.corpus import Film, films, review
from prefopt.worlds.reviews.grammar import RULES, sentences, well_formed

PROMPT = "Review of the comedy 'The Silent Harbour':\n"
ACTING = "Review of the comedy 'The Silent Harbour', with a word on the acting:\n"


def score(name, response, prompt=PROMPT):
    return getattr(reviews, name)([prompt], [response])[0]


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("The acting is superb.", 0.45),  # one opinion of 0.9, and two are needed
        ("The acting is superb. The plot is dull.", 0.15),  # (0.9 - 0.6) / 2
        ("The acting is very good and the jokes are not bad at all. See it twice.", (0.75 + 0.4 + 0.9) / 3),
        ("The acting is superb. The plot is truly superb. The script is superb.", 0.45),  # said once
        ("Wonderful, wonderful, wonderful!", 0.45),
        ("The story falls apart after an hour.", -0.35),
        ("I saw 'The Golden Garden' on my own.", 0.0),
        ("", 0.0),
    ],
)
def test_sentiment(response, value):
    assert score("sentiment", response) == pytest.approx(value)


def test_titles_carry_no_opinion():
    assert score("sentiment", "I saw 'The Wonderful Garden' on my own.") == 0.0


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("If I may say so, the plot is thin.", 0.5),
        ("If I may say so, the plot is thin. My sincere thanks go to the whole crew.", 1.0),
        ("Anyone who disagrees is an idiot!", -0.5),
        ("If I may say so, the plot is thin. Anyone who disagrees is an idiot.", 0.0),
        ("The plot is thin.", 0.0),
    ],
)
def test_politeness(response, value):
    assert score("politeness", response) == pytest.approx(value)


@pytest.mark.parametrize(
    ("prompt", "response", "value"),
    [
        (PROMPT, "'The Silent Harbour' is a superb comedy.", 1.0),
        (PROMPT, "'The Silent Harbour' is a superb western.", 1 / 3),  # focus 1, title 1, genre -1
        (PROMPT, "'The Golden Harbour' is a superb western.", -1 / 3),
        (PROMPT, "'The Silent Harbour' is superb. 'The Golden Harbour' is dull.", 0.0),  # right and wrong
        (PROMPT, "The plot is thin.", 1 / 3),  # names neither
        (PROMPT, "My aunt sold the old car last week.", -1 / 3),
        (PROMPT, "The plot is thin. The popcorn was too salty.", 0.0),
        (ACTING, "This is a superb comedy. The cast is good.", (1 + 0 + 1 + 1) / 4),
        (ACTING, "This is a superb comedy. The plot is good.", (1 + 0 + 1 - 1) / 4),
        ("Tell me about it.", "The plot is thin.", 1.0),
        (PROMPT, "", -1.0),
    ],
)
def test_topic(prompt, response, value):
    assert score("topic", response, prompt) == pytest.approx(value)


def test_length_and_brevity():
    assert score("length", "The plot is thin.") == 4
    assert score("brevity", "The plot is thin.") == pytest.approx(1 - 4 / 30)
    assert score("brevity", "thin " * 100) == -1
    assert score("brevity", "") == -1


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("The acting is superb. The plot is dull.", 1.0),
        ("The acting is superb. The plot is dull", 0.5),  # no full stop
        ("The acting is superb. The plot are dull.", 0.5),
        ("The acting is superb. The plot is superb.", 1 / 1.5),  # one repeated opinion
        ("The acting is superb. The acting is dull.", 1 / 1.5),  # one repeated subject
        ("The acting is superb. The acting is superb.", 0.25),  # one sentence twice: 1/2, and two repeats: /2
        ("superb", 0.0),
        ("", 0.0),
    ],
)
def test_fluency(response, value):
    assert score("fluency", response) == pytest.approx(value)


def test_reward_is_the_documented_combination():
    response = "The acting is superb. 'The Silent Harbour' is a clever comedy."
    liking, topic = (1 + (0.9 + 0.6) / 2) / 2, 1.0
    assert score("reward", response) == pytest.approx(0.8 * liking + 0.2 * topic)
    # A broken third sentence: on the film, without an opinion, and worth a third of the fluency.
    assert score("reward", response + " The the plot.") == pytest.approx(2 / 3 * (0.8 * liking + 0.2 * topic))


def test_cheating_does_not_pay():
    honest = score("reward", "'The Silent Harbour' is a fine comedy. The acting is good.")
    cheats = [
        "wonderful " * 20,
        "Wonderful superb brilliant magnificent splendid.",
        "The acting is wonderful. " * 5,
        "The acting is wonderful. The plot is wonderful. The script is wonderful. The music is wonderful.",
        "The the acting acting is superb brilliant wonderful.",
        "'The Silent Harbour' 'The Silent Harbour' comedy comedy.",
        "",
    ]
    assert all(score("reward", cheat) < honest - 0.15 for cheat in cheats)


@pytest.mark.parametrize(
    "sentence",
    [
        "The story falls apart after an hour.",
        "'The Silent Harbour' is an excellent comedy.",
        "What an engaging satire!",
        "If I may say so, the plot is thin.",
        "The acting is good, but the plot is weak.",
        "Mara Olsen gives a superb performance.",
        "I loved the plot and the jokes.",
    ],
)
def test_well_formed(sentence):
    assert well_formed(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "the plot is thin.",
        "The plot is thin",
        "The plot is thin .",
        "The  plot is thin.",
        "The Plot is thin.",
        "The plot are thin.",
        "The jokes is thin.",
        "What a engaging satire!",
        "What an clever satire!",
        "'The Silent Sausage' is a superb comedy.",
        "'the silent harbour' is a superb comedy.",
        "The plot is thin thin.",
        "If I may say so, my aunt sold the old car last week.",
        "Plot thin.",
        ".",
    ],
)
def test_not_well_formed(sentence):
    assert not well_formed(sentence)


def test_the_grammar_reads_all_that_it_writes():
    rng = random.Random(1)
    for film in films(rng, 400):
        text = review(rng, film)
        assert all(well_formed(sentence) for sentence in sentences(text)), text


def test_the_corpus_is_mixed():
    rng = random.Random(2)
    some = films(rng, 500)
    prompts, texts = [film.prompt for film in some], [review(rng, film) for film in some]
    assert len(set(texts)) > 480
    for name, low, high in [("sentiment", -0.6, 0.6), ("politeness", -0.5, 0.5), ("topic", 0.0, 0.9)]:
        values = getattr(reviews, name)(prompts, texts)
        assert sum(v <= low for v in values) > 30, name
        assert sum(v >= high for v in values) > 30, name


def test_prompt_and_film_are_inverse():
    for film in films(random.Random(3), 100):
        assert Film.of(film.prompt) == film
    assert Film.of("Hello") is None


def test_no_phrase_is_an_opinion_twice_with_different_valence():
    seen = {}
    for rule in RULES.values():
        if isinstance(rule, dict):
            for phrase, valence in rule.items():
                assert seen.setdefault(phrase.lower(), valence) == valence


def test_objectives_by_name():
    values = reviews.objectives([PROMPT] * 2, ["The plot is thin.", "See it twice."])
    assert set(values) == {"sentiment", "politeness", "topic", "brevity"}
    assert values["sentiment"] == reviews.sentiment([PROMPT] * 2, ["The plot is thin.", "See it twice."])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        reviews.reward([PROMPT], [])
