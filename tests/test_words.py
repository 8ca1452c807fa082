"""Words of every script: the right cut of each is written down, not computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.tables import words

KEYWORDS = {
    "English": ("The ship's crew don’t trust state-of-the-art U.S. maps", "ship crew trust state art maps"),
    "French": ("l'homme qu'elle aime, aujourd'hui", "homme elle aime aujourd'hui"),
    "NFD": ("cafe\u0301 CAFE\u0301 café", "café café café"),
    "German": ("Straße", "straße"),
    "Greek": ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
    "Russian": ("Корабль вышел в море", "корабль вышел море"),
    "Hindi": ("हिन्दी में लिखे हुए शब्द", "हिन्दी लिखे हुए शब्द"),
    "Bengali": ("বাংলা ভাষা সুন্দর", "বাংলা ভাষা সুন্দর"),
    "Tamil": ("தமிழ் மொழி அழகானது", "தமிழ் மொழி அழகானது"),
    "Arabic": ("اللُّغَة العربية", "اللُّغَة العربية"),
    "Persian": ("می\u200cخواهم کتاب\u200cها", "می\u200cخواهم کتاب\u200cها"),
    "Hebrew": ('השפה העברית צה"ל', 'השפה העברית צה"ל'),
    "Thai": ("ภาษาไทยเป็นภาษาที่สวยงาม", "ภาษา ไทย เป็น ภาษา สวยงาม"),
    "Lao": ("ພາສາລາວເປັນພາສາທີ່ສວຍງາມ", "ພາສາ ລາວ ເປັນ ພາສາ ສວຍງາມ"),
    "Khmer": ("ភាសាខ្មែរជាភាសាផ្លូវការ", "ភាសាខ្មែរ ភាសាផ្លូវការ"),
    "Burmese": ("မြန်မာဘာသာစကားသည်လှပသည်", "မြန်မာဘာသာ စကား သည် လှပ သည်"),
    "Chinese": ("我们在北京大学学习自然语言。", "我们 北京 大学 学习 自然 语言"),
    "Chinese, traditional": ("貓喜歡吃魚", "貓 喜歡 吃 魚"),
    "Japanese": ("私は東京でラーメンを", "私 東京 ラーメン"),
    "Korean": ("한국어를 공부합니다", "한국어를 공부합니다"),
    "none": ("1984 12th foo_bar 👩\u200d👩\u200d👧 … ² ①", ""),
    "code": ("x" * 61 + " end.Harbor", "end harbor"),
}


@pytest.mark.parametrize("script", KEYWORDS)
def test_terms_are_the_words_of_a_script(script: str) -> None:
    text, expected = KEYWORDS[script]
    assert " ".join(words.terms(text)) == expected


def test_one_word_in_two_spellings_is_one() -> None:
    for a, b in [("cafe\u0301", "CAFÉ"), ("STRASSE", "straße"), ("ΟΔΟΣ", "οδος"), ("が", "か\u3099")]:
        assert words.folded(words.listed(a)) == words.folded(words.listed(b)), a
    for a, b in [("کتاب\u200cها", "کتابها"), ("²", "2"), ("e", "é"), ("क्ष", "क्\u200dष"), ("世", "界")]:
        assert words.folded(words.listed(a)) != words.folded(words.listed(b)), a
    assert words.listed("co\u00adoperate\u200e") == "cooperate"


FAMILY = "👩\u200d👩\u200d👧\u200d👦"
WHOLE = [
    ("abc", 1, 2, (1, 2)),
    ("cafe\u0301s", 3, 4, (3, 5)),
    ("cafe\u0301s", 4, 5, (3, 5)),
    (f"a{FAMILY}b", 3, 4, (1, 8)),
    ("🇩🇪🇫🇷🇮🇹" * 9, 15, 16, (14, 16)),  # flags, counted by twos from their first
    ("नमस्ते", 3, 4, (2, 6)),
    ("", 0, 0, (0, 0)),
    ("é", 0, 1, (0, 1)),
]


@pytest.mark.parametrize(("text", "start", "stop", "expected"), WHOLE)
def test_a_range_is_widened_to_whole_characters(text: str, start: int, stop: int, expected: tuple[int, int]) -> None:
    assert words.whole(text, start, stop) == expected


def test_a_text_is_cut_between_characters() -> None:
    text = f"a{FAMILY}b"
    assert [words.boundary(text, at) for at in range(len(text) + 2)] == [0, 1, 1, 1, 1, 1, 1, 1, 8, 9, 10]


@pytest.mark.parametrize(
    ("text", "start", "stop", "expected"),
    [
        ("the ship sailed", 4, 6, "ship"),
        ("the ship sailed", 3, 4, " "),
        ("the ship, sailed", 6, 9, "ship"),
        ("in the  harbour", 0, 6, "in the"),
        ("don't", 3, 4, "don't"),
        ("so -- it", 3, 5, "--"),
        ("我们在北京大学", 4, 5, "北京"),
        ("ภาษาไทย", 5, 6, "ไทย"),
        (f"a {FAMILY}", 2, 3, FAMILY),
        ("cafe\u0301", 0, 1, "caf\u00e9"),
        ("x" * 100, 7, 9, "xx"),
        ("", 0, 0, ""),
    ],
)
def test_the_word_at_a_token_is_whole(text: str, start: int, stop: int, expected: str) -> None:
    assert words.word_at(text, start, stop, words.segments(text)) == expected.strip()


@given(st.text(alphabet="ab' .世界ไท\u0e35\u0301\u200d👩🇩é\n", max_size=40), st.data())
def test_no_range_goes_wrong(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    first, last = words.whole(text, start, stop)
    assert 0 <= first <= start <= stop <= last <= len(text)
    assert words.whole(text, first, last) == (first, last)
    assert words.boundary(text, start) <= start
    words.word_at(text, start, stop, words.segments(text))
    assert all(words.terms(text))
    assert "".join(text[slice(*piece)] for piece in words.segments(text)) == text
