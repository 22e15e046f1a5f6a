"""Common English words that carry no content, as key-phrase extraction takes them; `data.stop_words` replaces them."""

from __future__ import annotations

from pathlib import Path

from prefopt.errors import PrefoptError

_WORDS = """
a an the this that these those some any each every either neither both all another other such same own
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
herself it its itself they them their theirs themselves one ones who whom whose which what whatever whoever
someone somebody something anyone anybody anything everyone everybody everything nobody nothing none
and or but nor so yet if then else than because since while whereas although though unless until whether once
of in on at by for with without within from to into onto out off up down over under above below between among
through during before after about against across along around behind beside besides beyond near toward towards
upon per via as like unlike despite except
am is are was were be been being do does did doing done have has had having can could may might must shall should
will would ought need used let get gets got getting make makes made go goes going
not no yes never ever always often sometimes usually already still just only even also too very quite rather
really much many more most less least few several enough almost again further here there where when why how now
today soon later perhaps maybe well please
i'm i've i'd i'll you're you've you'd you'll he's he'd he'll she's she'd she'll it's it'll we're we've we'd we'll
they're they've they'd they'll that's there's here's what's who's let's isn't aren't wasn't weren't don't doesn't
didn't haven't hasn't hadn't can't cannot couldn't won't wouldn't shouldn't mustn't
"""
ENGLISH = frozenset(_WORDS.split())


def stop_words(path: str | None) -> frozenset[str]:
    """The English ones, or those of a text file (one or more to a line, any case). PrefoptError if it cannot be read."""
    if path is None:
        return ENGLISH
    try:
        return frozenset(Path(path).expanduser().read_text(encoding="utf-8").lower().split())
    except (OSError, UnicodeDecodeError) as error:
        raise PrefoptError(f"data.stop_words = {path}: cannot be read as text ({error})") from None
