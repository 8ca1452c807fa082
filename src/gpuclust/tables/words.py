"""Words of a text in any script: cut by Unicode's rules, and by ICU's dictionaries where a script puts no spaces.

ICU (the package icu4py) knows words of Chinese, Japanese, Thai, Lao, Khmer and Burmese. Scripts without spaces that it
has no dictionary for, such as Javanese and Tai Le, come out as whole clauses, and Tibetan as syllables.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

LONGEST = 60  # characters of a word; what is longer is code or data, and no word
NEAR = 32  # characters around a place at which a character may be several code points
# Letters that a keyword has at least, by their first code point; a vowel that is a mark is no letter. 3 keeps articles
# and the like out of alphabets, 2 those of Indic scripts; one ideograph or one syllable of Hangul is a word.
LETTERS_NEEDED = (
    (0x0000, 3), (0x0900, 2), (0x10A0, 3), (0x1100, 1), (0x1200, 2), (0x13A0, 3), (0x1700, 2), (0x1800, 3),
    (0x1900, 2), (0x1C80, 3), (0x2E80, 1), (0x3041, 3), (0x30A0, 2), (0x3100, 3), (0x3130, 1), (0x31F0, 2),
    (0x3200, 1), (0xA4D0, 3), (0xA800, 2), (0xAB30, 3), (0xABC0, 2), (0xAC00, 1), (0xFB00, 3), (0x11000, 2),
    (0x12000, 3), (0x20000, 1),
)  # fmt: skip
FROM, NEEDED = zip(*LETTERS_NEEDED, strict=True)
# Words of one character that mark nothing, as English stop words do: Chinese, Japanese, Korean
FUNCTION = frozenset(
    "的了在是我你他她它们們这這那哪有和與与就不人都一也很到说說要去会會着著没沒看好上下之其而或及且于於以为為被把对對从從"
    "中个個来來又还還给給让讓吧吗嗎呢啊最更只所者此但向"
    "이그저수것등및더안못또한두내네제나너좀잘다할된될때중의를을은는가에도로와과"
)
ENGLISH_NOT = re.compile(r".+n't")
# Articles and the like that French, Italian and Catalan put before a vowel
ELIDED = re.compile(r"^(?:[cdjlmnst]|(?:jus|lors|puis|quoi)?qu|(?:a|co|da|de|ne|que|su)ll|un)'(?=[aeiouyhà-öø-ÿœ])")
# What is not seen: soft hyphen, marks of direction, word joiner. Joiners (ZWJ, ZWNJ) change letters: they stay.
UNSEEN = dict.fromkeys((
    0xAD, 0x61C, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2065), *range(0x2066, 0x206A), 0xFEFF,
))  # fmt: skip
APOSTROPHES = {ord("’"): "'", ord("ʼ"): "'", ord("＇"): "'"}
WITHIN = frozenset("'·‧\u200c\u200d\"״׳")  # what is no letter and may stand between letters


def segments(text: str) -> list[tuple[int, int]]:
    """Cut a text at all boundaries of words; spaces and signs are segments too.

    Returns
    -------
    list of (int, int)
        First character and the one after the last, in order; together they are the text.
    """
    from icu4py.breakers import WordBreaker

    return _ranges(WordBreaker(text, "en"))


def _ranges(pieces: Iterable[str]) -> list[tuple[int, int]]:
    """Where pieces lie that together are a text. ICU's own offsets count UTF-16 units, in which an emoji is two."""
    return list(itertools.pairwise(itertools.accumulate(map(len, pieces), initial=0)))


def is_word(piece: str) -> bool:
    """Say whether a segment has letters or digits."""
    return any(map(str.isalnum, piece))


def whole(text: str, start: int, stop: int) -> tuple[int, int]:
    """Widen a range to whole characters as a reader sees them: with their accents, vowel signs and joined emoji.

    Parameters
    ----------
    text : str
    start, stop : int

    Examples
    --------
    >>> whole("cafe\\u0301", 4, 5)
    (3, 5)
    """
    if not text or start >= stop or text[max(start - 1, 0) : stop + 1].isascii():
        return start, stop
    from icu4py.breakers import CharacterBreaker

    low, high = max(start - NEAR, 0), stop + NEAR
    while low > 0 and not text[low].isalnum():  # never inside of flags or accents, however many
        low -= 1
    pieces = _ranges(CharacterBreaker(text[low:high], "en"))
    first = next(a for a, _ in reversed(pieces) if a <= start - low)
    return low + first, low + next((b for _, b in pieces if b >= stop - low), len(text) - low)


def boundary(text: str, at: int) -> int:
    """Return the last place, not after `at`, where a text can be cut between characters as a reader sees them.

    Examples
    --------
    >>> boundary("cafe\\u0301", 4)
    3
    """
    return whole(text, at, at + 1)[0] if 0 < at < len(text) else at


def word_at(text: str, start: int, stop: int, cut: list[tuple[int, int]]) -> str:
    """Return the whole words that a range of a text touches, without signs around them; a sign if it is nothing else.

    Parameters
    ----------
    text : str
    start, stop : int
        Such as a token's characters. A token of several words gives them all.
    cut : list of (int, int)
        The text's `segments`.

    Examples
    --------
    >>> text = "the naïve, ship"
    >>> word_at(text, 5, 10, segments(text))
    'naïve'
    """
    first = max(bisect.bisect_right(cut, start, key=lambda segment: segment[0]) - 1, 0)
    last = bisect.bisect_left(cut, stop, key=lambda segment: segment[0])
    touched = cut[first:last]
    found = [segment for segment in touched if is_word(text[slice(*segment)])] or touched
    if not found:
        return ""
    a, b = found[0][0], found[-1][1]
    if b - a > LONGEST:
        a, b = start, stop
    return listed(" ".join(text[a:b].split()))


def listed(word: str) -> str:
    """Return a word as it is listed: composed (NFC), without what is not seen; equal words are equal texts.

    Examples
    --------
    >>> listed("cafe\\u0301") == listed("caf\\u00e9")
    True
    """
    return unicodedata.normalize("NFC", word.translate(UNSEEN)).strip("\u200c")


@functools.lru_cache(maxsize=1 << 16)
def folded(word: str) -> str:
    """Return what words that differ in case or in composition only have in common (Unicode's canonical caseless form).

    Examples
    --------
    >>> folded("STRASSE") == folded("Straße")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", word).casefold())


def terms(text: str) -> Iterator[str]:
    """Yield the words of a text that can be keywords, in lower case: no digits, no stop words, none too short.

    Examples
    --------
    >>> list(terms("The ship's crew doesn't see l'eau, हिन्दी में, ภาษาไทย or 北京大学 in 2024."))
    ['ship', 'crew', 'eau', 'हिन्दी', 'ภาษา', 'ไทย', '北京', '大学']
    """
    for start, stop in segments(text):
        if stop - start <= LONGEST:
            yield from _terms_of(text[start:stop])


@functools.lru_cache(maxsize=1 << 16)  # few words are most of a text
def _terms_of(piece: str) -> tuple[str, ...]:
    if not is_word(piece) or any(_kind(c) == "N" or c == "_" for c in piece):
        return ()
    found = (ELIDED.sub("", part.lower()).removesuffix("'s") for part in _parts(piece))
    return tuple(word for word in found if _long_enough(word) and not _is_stop_word(word))


def _parts(piece: str) -> list[str]:
    """A segment without what is no letter: ICU takes "U.S" and "end.Next" for one word."""
    letters = "".join(
        c if c in WITHIN or _kind(c) in "LM" else " " for c in listed(piece).translate(APOSTROPHES)
    ).split()
    return [part.strip("'\"·‧") for part in letters]


@functools.cache
def _kind(character: str) -> str:
    """L letter, M mark, N number, and others."""
    return unicodedata.category(character)[0]


def _long_enough(word: str) -> bool:
    letters = [ord(c) for c in word if _kind(c) == "L"]
    return bool(letters) and len(letters) >= min(NEEDED[bisect.bisect_right(FROM, letter) - 1] for letter in letters)


def _is_stop_word(word: str) -> bool:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    if word in ENGLISH_STOP_WORDS or word in FUNCTION:
        return True
    return "'" in word and (ENGLISH_NOT.fullmatch(word) is not None or word.partition("'")[0] in ENGLISH_STOP_WORDS)
