from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuclust.tables import prompt_text
from tests import hub

CASES = [
    ("plain text", "plain text"),
    (" = Robert Boulter = ", "[SECTION] Robert Boulter"),
    (" = A = \n = = B = = \n", "[SECTION] A > B"),
    (" = A = \n words here \n = = B = = \n more", "[SECTION] A | words here | [SECTION] B | more"),
    (" = A = \n one \n two", "[SECTION] A | one | two"),
    ("x = y and y = z", "x = y and y = z"),
    ("= not closed", "= not closed"),
    ("  spaces \n\n everywhere ", "spaces everywhere"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_texts_are_shown_on_one_line_with_their_sections(text: str, shown: str) -> None:
    assert prompt_text.show(text).text == shown


@given(st.text(alphabet="ab= \n\tß\U0001f600", max_size=40), st.data())
def test_words_are_found_again_where_they_are_shown(text: str, data: st.DataObject) -> None:
    shown = prompt_text.show(text)
    for start, place in zip(shown.starts, shown.places, strict=True):
        assert text[start] == shown.text[place]
    at = data.draw(st.integers(0, max(len(text) - 1, 0)))
    first, last = shown.span(at, min(at + 1, len(text)))
    assert 0 <= first <= last <= len(shown.text)
    word_start = max((s for s in shown.starts if s <= at), default=None)
    if word_start is not None and not any(c.isspace() for c in text[word_start : at + 1]):
        assert shown.text[first:last] == text[at]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    hub.build_tokenizer(folder, vocab=600)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def test_peak_spans_are_the_characters_of_the_token(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    lines = ["the ship sailed on  Tuesday", "naïve 😀 words"]
    ids = [np.asarray(i, np.int32) for i in tokenizer(lines, add_special_tokens=False)["input_ids"]]
    prompts = pd.DataFrame({"text": lines, "tokens": ids})
    rows = [(p, i) for p in range(2) for i in range(len(ids[p]))] + [(0, -1)]
    examples = pd.DataFrame(rows, columns=["prompt", "position"]).assign(feature=3, rank=range(len(rows)))
    spans = prompt_text.peak_spans(examples, prompts, tokenizer)
    for (p, i), start, stop in zip(rows[:-1], spans["start"], spans["stop"], strict=False):
        if start >= 0:
            spelled = tokenizer.decode([ids[p][i]]).strip()
            assert lines[p][start:stop] == spelled or "\ufffd" in spelled
    assert (spans["start"] >= 0).sum() >= len(rows) // 2
    assert spans.iloc[-1][["start", "stop"]].tolist() == [-1, -1]
    assert not caplog.records


TEXTS = {  # a text, and all words that tokens of it lie in
    "世界": ["世界"],
    "世 界 海": ["世", "界", "海"],
    "नमस्ते!": ["नमस्ते", "!"],
    "ภาษาไทย": ["ภาษา", "ไทย"],
    "nai\u0308ve ship": ["naïve", "ship"],
    "😀👩\u200d👧": ["😀", "👩\u200d👧"],
}


@functools.cache
def tokenizers() -> dict[str, Any]:
    """A token a byte, each in its own way: what it does with offsets is the library's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = {}
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for name, normalizer in (("byte-level", None), ("composed", normalizers.NFC()), ("decomposed", normalizers.NFD())):
        byte_level = Tokenizer(models.BPE(letters, []))
        byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=name != "byte-level")
        byte_level.decoder = decoders.ByteLevel()
        if normalizer is not None:
            byte_level.normalizer = normalizer
        made[name] = byte_level
    every = [f"<0x{i:02X}>" for i in range(256)]
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fallback = Tokenizer(models.BPE({t: i for i, t in enumerate(["<unk>", *every, "▁", "s"])}, [], unk_token="<unk>",
                                    byte_fallback=True))  # fmt: skip
    unigram = Tokenizer(
        models.Unigram([("<unk>", 0.0), *[(t, -5.0) for t in every], ("▁", -2.0), ("s", -1.0)], 0, True)
    )
    for name, model in (("byte fallback", fallback), ("unigram", unigram)):
        model.pre_tokenizer = pre_tokenizers.Metaspace()
        model.decoder = decoders.Sequence(decoder)
        made[name] = model
    return {name: PreTrainedTokenizerFast(tokenizer_object=model) for name, model in made.items()}


@pytest.mark.parametrize("kind", tokenizers())
def test_a_token_that_is_a_part_of_a_character_has_all_of_it(kind: str) -> None:
    tokenizer, text = tokenizers()[kind], "s 世界 e\u0301"
    ids = np.asarray(tokenizer([text], add_special_tokens=False)["input_ids"][0], np.int32)
    examples = pd.DataFrame({"prompt": 0, "position": range(len(ids))}).assign(feature=0, rank=range(len(ids)))
    spans = prompt_text.peak_spans(examples, pd.DataFrame({"text": [text], "tokens": [ids]}), tokenizer)
    cut = [text[a:b] for a, b in zip(spans["start"], spans["stop"], strict=True) if a >= 0]
    accented = {"byte-level": 3, "composed": 2, "decomposed": 3, "byte fallback": 3, "unigram": 3}[kind]
    assert cut == ["s", *["世"] * 3, *["界"] * 3, *["e\u0301"] * accented]


def test_tokens_of_the_vocabulary_are_told_apart() -> None:
    byte_level, fallback = tokenizers()["byte-level"], tokenizers()["byte fallback"]
    ids = byte_level.convert_tokens_to_ids(["ä", "¸", "A", "Ġ"])
    assert [prompt_text.spelled(i, byte_level) for i in ids] == ["\\xe4", "\\xb8", "A", " "]
    assert prompt_text.spelled(fallback.convert_tokens_to_ids("<0xE4>"), fallback) == "<0xE4>"


def test_prompts_that_read_otherwise_are_not_marked(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    prompts = pd.DataFrame({"text": ["the ship"], "tokens": [np.array([1, 2, 3], np.int32)]})
    examples = pd.DataFrame({"feature": [0], "rank": [0], "prompt": [0], "position": [1]})
    assert prompt_text.peak_spans(examples, prompts, tokenizer)[["start", "stop"]].to_numpy().tolist() == [[-1, -1]]
    assert "reads 1 prompts otherwise" in caplog.text

    class Slow:
        is_fast = False

    assert prompt_text.peak_spans(examples, prompts, Slow())["start"].tolist() == [-1]
    assert "gives no offsets" in caplog.text
