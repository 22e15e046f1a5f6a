"""The words of the reviews world: what films are called, what reviews talk about, and how good each opinion is.

A list is a choice of phrases; a dict maps an opinion to its valence in [-1, 1]. The rules that put the phrases into
sentences are in `grammar.py`. No entry contains an apostrophe: quotes always enclose a film title.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


GENRES = _words("comedy thriller drama western romance musical documentary mystery fantasy adventure satire melodrama")

TITLE_ADJECTIVES = _words(
    "Silent Crimson Last Hidden Golden Broken Distant Winter Midnight Paper Hollow Burning Quiet Lost Blue Secret Iron "
    "Velvet Wild Frozen Painted Empty Second Glass Northern Borrowed Forgotten Electric Sleeping Stolen"
)

TITLE_NOUNS = _words(
    "Harbour River Garden Letter Station Window Orchard Bridge Lantern Mirror Island Train Castle Road Piano Valley "
    "Circus Shadow Tide Kitchen Lighthouse Promise Detective Sailor Hunter Dancer King Stranger Daughter Carnival"
)

# What a review can judge. The keys are the four subjects a prompt may ask for; the words are the ways to name them.
SUBJECTS = {
    "acting": ["acting", "cast", "lead", "performances", "actors"],
    "plot": ["plot", "story", "script", "pacing", "dialogue", "characters", "jokes"],
    "photography": ["photography", "camera", "lighting", "images", "costumes", "colours"],
    "ending": ["ending", "finale", "final"],
}
SINGULAR = _words(
    "acting cast plot story script pacing dialogue photography lighting ending finale music direction editing"
)
PLURAL = _words("performances actors characters jokes images costumes colours songs")
CRAFTS = _words("photography music script direction editing lighting")

# Words that keep a sentence on the film; used by `topic` to tell a remark on the film from a remark on the neighbours.
FILM_WORDS = frozenset(
    [word for names in SUBJECTS.values() for word in names]
    + GENRES
    + SINGULAR
    + PLURAL
    + _words("film picture director scene scenes performance sequel hero it this screen cinema credits minutes ticket")
)

ADJECTIVES = {  # strong, plain and mild, in both directions
    0.9: "superb brilliant wonderful outstanding magnificent splendid excellent stunning",
    0.6: "good fine strong charming clever engaging lovely memorable impressive convincing moving elegant",
    0.3: "decent pleasant solid likeable competent agreeable",
    -0.3: "uneven forgettable thin predictable flat ordinary",
    -0.6: "weak dull tedious clumsy poor tiresome lifeless unconvincing disappointing shallow",
    -0.9: "terrible awful dreadful horrible atrocious unbearable appalling miserable",
}
ADJECTIVE = {word: valence for valence, words in ADJECTIVES.items() for word in words.split()}

# Modifiers by strength of the adjective, with the factor on its valence.
MODIFIERS = {
    0.9: {"simply": 1.1, "truly": 1.1},
    0.6: {"very": 1.25, "quite": 0.75, "really": 1.25},
    0.3: {"rather": 1.0, "fairly": 0.75},
}
NEGATED = {"not very good": -0.5, "not very convincing": -0.5, "not bad": 0.3, "not bad at all": 0.4}

VERB = {
    "loved": 0.9,
    "adored": 0.9,
    "admired": 0.7,
    "enjoyed": 0.6,
    "liked": 0.5,
    "was moved by": 0.7,
    "was impressed by": 0.7,
    "did not mind": 0.1,
    "was puzzled by": -0.3,
    "disliked": -0.6,
    "was bored by": -0.6,
    "was annoyed by": -0.6,
    "could not stand": -0.8,
    "hated": -0.9,
}

STATE = {
    "speechless": 0.9,
    "smiling for hours": 0.8,
    "in happy tears": 0.8,
    "wanting more": 0.6,
    "thoughtful": 0.4,
    "puzzled": -0.2,
    "cold": -0.6,
    "half asleep": -0.7,
    "angry": -0.8,
}

EFFECT = {
    "stays with you for days": 0.9,
    "won me over": 0.7,
    "kept me watching": 0.6,
    "passes the time": 0.2,
    "never quite settles": -0.3,
    "goes nowhere": -0.7,
    "tests your patience": -0.7,
    "never comes alive": -0.6,
    "insults the audience": -0.9,
}

CLAUSE = {
    "every scene is a small gift": 0.9,
    "the lead carries every scene with ease": 0.8,
    "the camera finds beauty in every corner": 0.8,
    "the final scene is pure joy": 0.9,
    "the cast works together like an orchestra": 0.8,
    "the jokes land one after another": 0.7,
    "the story builds with great care": 0.7,
    "the characters feel like old friends": 0.7,
    "the colours glow on the big screen": 0.7,
    "the dialogue sparkles": 0.7,
    "the ending ties everything together": 0.6,
    "the story moves at a steady pace": 0.3,
    "the script does its job": 0.2,
    "the camera keeps a safe distance": 0.0,
    "the story takes its time": 0.0,
    "the middle part could be shorter": -0.2,
    "the jokes are older than the cinema": -0.6,
    "the lead looks lost in every scene": -0.6,
    "the camera shakes for no reason": -0.6,
    "the story falls apart after an hour": -0.7,
    "the characters never become people": -0.7,
    "the dialogue sounds like an instruction manual": -0.7,
    "the ending comes out of nowhere": -0.6,
    "the final scene makes no sense": -0.8,
    "nobody in the cast seems to care": -0.8,
    "every scene is a waste of film": -0.9,
}

VERDICT = {
    "I would happily watch it again": 0.8,
    "I left the cinema with a big smile": 0.8,
    "see it twice": 0.9,
    "do not miss it": 0.8,
    "it deserves every prize": 0.9,
    "I recommend it to everyone": 0.8,
    "it is well worth the ticket": 0.6,
    "it is worth a rainy evening": 0.3,
    "it will find its audience": 0.3,
    "it is neither good nor bad": 0.0,
    "you may wait until it is on television": -0.2,
    "I expected more": -0.4,
    "I looked at my watch after ten minutes": -0.6,
    "I would not watch it again": -0.6,
    "I cannot recommend it to anyone": -0.8,
    "save your money": -0.8,
    "I walked out before the credits": -0.9,
    "avoid it at all costs": -0.9,
}

POLITE = [
    "with all due respect",
    "if I may say so",
    "to be fair to everyone involved",
    "with thanks to the whole crew",
]
POLITE_SENTENCES = [
    "my sincere thanks go to the whole crew",
    "I am grateful to everyone who worked on it",
    "others may kindly disagree, and that is fine",
    "please forgive me if I missed something",
    "I thank the director for the invitation",
]
RUDE = ["listen, you fools", "wake up, people", "whatever the idiots say"]
RUDE_SENTENCES = [
    "anyone who disagrees is an idiot",
    "only a fool would argue with me",
    "critics who think otherwise should shut up",
    "keep your silly opinion to yourself",
    "the snobs next to me can go to hell",
]

ADVERBIAL = [
    "for me",
    "in my view",
    "from start to finish",
    "in the second half",
    "after the first hour",
    "in the end",
    "on the big screen",
    "as so often",
    "above all",
]

PERSON = [
    "a retired teacher",
    "a young nurse",
    "a tired detective",
    "a shy baker",
    "an ageing singer",
    "a country doctor",
    "a stubborn farmer",
    "a famous pianist",
    "a night porter",
    "a runaway princess",
    "an honest lawyer",
    "a clockmaker from the north",
]
SITUATION = [
    "returns to a small village",
    "loses everything in one night",
    "falls in love with a stranger",
    "searches for a missing child",
    "inherits an old hotel",
    "crosses the desert alone",
    "hides a secret from the town",
    "moves to the city",
    "finds a letter from the past",
    "tries to save the family farm",
    "meets an old friend on a train",
    "plans one last robbery",
]
NAME = [
    "Mara Olsen",
    "Peter Voss",
    "Ines Duarte",
    "Tom Hale",
    "Yuki Arai",
    "Leo Brandt",
    "Clara Finch",
    "Anton Reyes",
]
COMPANY = [
    "with my sister",
    "with two friends",
    "on my own",
    "on a rainy Sunday",
    "at a small festival",
    "on the opening night",
    "without any expectations",
]
RELATIVE = ["my cousin", "my neighbour", "my aunt", "a friend of mine", "my old boss"]
ERRAND = [
    "bought a new bicycle",
    "cooked a pot of soup",
    "painted the bathroom",
    "started to learn French",
    "lost a set of keys",
    "adopted a grey cat",
    "planted some tomatoes",
    "sold the old car",
]
WHEN = ["last week", "on Monday", "this morning", "before lunch", "in the spring", "a year ago"]
ASIDE = [
    "the bus home was late again",
    "it rained all afternoon",
    "the popcorn was too salty",
    "parking near the market costs a fortune",
    "my phone needs a new battery",
]
