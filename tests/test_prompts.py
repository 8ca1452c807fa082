from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpuclust import prompts
from gpuclust.config import Config, PromptSource
from gpuclust.configfile import validate
from gpuclust.errors import PromptsError


class Words:
    """A tokenizer of words: ids are lengths of words."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


def config(*sources: dict[str, Any], **fields: Any) -> Config:
    return validate({"prompts": list(sources), **fields})


TEXTS = [f"prompt number {i} " + "word " * (i % 5) for i in range(40)]


@pytest.fixture(params=["txt", "jsonl", "csv", "parquet"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"p.{request.param}"
    texts = [text.strip() for text in TEXTS]
    table = pd.DataFrame({"text": texts, "origin": ["a", "b"] * 20})
    if request.param == "txt":
        path.write_text("\n\n".join(texts))
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    elif request.param == "csv":
        table.to_csv(path, index=False)
    else:
        table.to_parquet(path)
    return path


def test_every_format_gives_the_same_prompts(file: Path) -> None:
    table, warnings = prompts.build(config({"path": str(file)}, n_prompts=40), Words())
    assert warnings == []
    assert sorted(table["text"]) == sorted(text.strip() for text in TEXTS)
    assert table["prompt"].tolist() == list(range(40))
    assert (table["source"] == "p").all()
    assert table["n_tokens"].tolist() == [len(text.split()) for text in table["text"]]
    assert [len(tokens) for tokens in table["tokens"]] == table["n_tokens"].tolist()


def test_order_depends_on_the_seed_alone(file: Path) -> None:
    def texts(seed: int) -> list[str]:
        return prompts.build(config({"path": str(file)}, n_prompts=15, seed=seed), Words())[0]["text"].tolist()

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_fewer_prompts_are_the_first_of_more(file: Path) -> None:
    few, _ = prompts.build(config({"path": str(file)}, n_prompts=5), Words())
    many, _ = prompts.build(config({"path": str(file)}, n_prompts=20), Words())
    assert many["text"].tolist()[:5] == few["text"].tolist()
    assert prompts.digest(few) == prompts.digest(many.head(5)) != prompts.digest(many)


def test_blank_and_double_rows_go_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "p.jsonl"
    rows = ["one two three", " ", "one two three", "four five six", "", "short"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    with caplog.at_level(logging.INFO, logger="gpuclust"):
        table, warnings = prompts.build(config({"path": str(path)}, min_tokens=2, n_prompts=9), Words())
    assert sorted(table["text"]) == ["four five six", "one two three"]
    assert "2 blank dropped, 1 exact duplicates dropped" in caplog.text
    assert "1 under 2 tokens dropped" in caplog.text
    assert warnings == ["n_prompts is 9, but the data has 2 usable prompts; all of them are used"]
    both, _ = prompts.build(config({"path": str(path)}, deduplicate=False, n_prompts=4), Words())
    assert len(both) == 4


def test_long_prompts_are_read_up_to_max_tokens(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a bb ccc dddd eeeee")
    table, _ = prompts.build(config({"path": str(path)}, max_tokens=3, n_prompts=1), Words())
    np.testing.assert_array_equal(table["tokens"][0], [1, 2, 3])
    assert table["text"][0] == "a bb ccc dddd eeeee"


def test_sources_are_labelled(tmp_path: Path) -> None:
    for name in ("x", "y"):
        pd.DataFrame({"t": [f"{name} {i}" for i in range(5)], "who": list("abcde")}).to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    table, _ = prompts.build(
        config(
            {"path": str(tmp_path / "x.csv"), "column": "t", "label": "first"},
            {"path": str(tmp_path / "y.csv"), "column": "t", "source_column": "who", "limit": 2},
            n_prompts=7,
        ),
        Words(),
    )
    assert sorted(table["source"]) == ["a", "b", "first", "first", "first", "first", "first"]


@pytest.mark.parametrize(
    ("name", "content", "source", "message"),
    [
        ("p.csv", "a,b\n1,2\n", {}, r"has no column 'text'; it has a, b. Set prompts.column"),
        ("p.jsonl", '{"a": 1}\n', {}, "has no column 'text'"),
        ("p.csv", "text\nx\n", {"source_column": "who"}, "no column 'who'.*prompts.source_column"),
        ("p.csv", "", {}, "is empty"),
        ("p.txt", "\n\n", {}, "holds no text"),
        ("p.jsonl", "", {}, "holds no text"),
        ("p.jsonl", "{not json\n", {}, "line 1 is not valid JSON"),
        ("p.jsonl", "[1]\n", {}, "line 1 is a list"),
        ("p.txt", "caf\xe9".encode("latin-1"), {}, "is not UTF-8 text"),
        ("p.jsonl", b'{"text": "caf\xe9"}', {}, "is not UTF-8 text"),
        ("p.csv", 'text\n"a', {}, "no valid CSV"),
        ("p.parquet", "x", {}, "no valid Parquet"),
        ("p.docx", "x", {}, "files of type .docx are not read; use one of .txt"),
    ],
)
def test_bad_files_are_refused(
    tmp_path: Path, name: str, content: str | bytes, source: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PromptsError, match=message):
        prompts.build(config({"path": str(tmp_path / name), **source}), Words())


def test_missing_values_are_blanks(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pd.DataFrame({"text": ["one two", None, "three four"], "who": ["a", "b", None]}).to_parquet(path)
    table, _ = prompts.build(config({"path": str(path), "source_column": "who"}, n_prompts=2), Words())
    assert sorted(zip(table["text"], table["source"], strict=True)) == [("one two", "a"), ("three four", "p")]


def test_missing_file_and_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match="there is no prompt file"):
        prompts.build(config({"path": str(tmp_path / "none.txt")}), Words())
    (tmp_path / "p.txt").write_text("too short")
    with pytest.raises(PromptsError, match=r"no prompts are left: .*fewer than min_tokens=5"):
        prompts.build(config({"path": str(tmp_path / "p.txt")}, min_tokens=5), Words())


def test_a_source_is_a_dataset_or_a_file() -> None:
    with pytest.raises(ValueError, match="exactly one of dataset"):
        PromptSource()
