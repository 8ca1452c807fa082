from __future__ import annotations

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


def test_prompts_that_read_otherwise_are_not_marked(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    prompts = pd.DataFrame({"text": ["the ship"], "tokens": [np.array([1, 2, 3], np.int32)]})
    examples = pd.DataFrame({"feature": [0], "rank": [0], "prompt": [0], "position": [1]})
    assert prompt_text.peak_spans(examples, prompts, tokenizer)[["start", "stop"]].to_numpy().tolist() == [[-1, -1]]
    assert "reads 1 prompts otherwise" in caplog.text

    class Slow:
        is_fast = False

    assert prompt_text.peak_spans(examples, prompts, Slow())["start"].tolist() == [-1]
    assert "gives no offsets" in caplog.text
