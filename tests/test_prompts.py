from __future__ import annotations

import gzip
import json
import logging
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpuclust.config import Config
from gpuclust.config_sections import PromptSource
from gpuclust.configfile import validate
from gpuclust.errors import PromptsError
from gpuclust.extraction import prompts, texts


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
        ("p.jsonl", '{"text": "a"}\n' + "[" * 100_000, {}, "line 2 is not valid JSON: maximum recursion depth"),
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"text,author\nfoo one,bob,\nbar two,eve,\n", "more fields than its header names"),
        ("i.csv", b"text,author\nsaid this, and that,bob\nsaid, and not,eve\n", "more fields than its header names"),
        ("q.csv", b'text\n"a"b\n', "line 2 is no valid CSV"),
        ("t.csv", b"text,text\na,b\n", "has 2 columns 'text'; rename all but one"),
        ("2.jsonl", b'{"text": "a"}\n\n{"text": "b", "text": "c"}\n', r"line 3, row 2 has the key 'text' twice"),
        ("u.csv", "text\na\n".encode("utf-16-le"), "a third of it is NUL, as in UTF-16; convert it: data.decode"),
        ("b.jsonl", '{"text": "a"}\n'.encode("utf-16"), "line 1 is not UTF-8 text, but probably UTF-16: convert it"),
        ("8.txt", "caf\xe9 au lait".encode("latin-1"), r"invalid continuation byte at byte 3: b'caf\\xe9 au lait'\)"),
        ("z.jsonl", gzip.compress(b'{"text": "a"}\n', mtime=0), "gzip-compressed: unpack it first"),
        (
            "z.jsonl.gz",
            gzip.compress(b'{"text": "a"}\n', mtime=0),
            r"files of type .gz are not read; use .*: unpack it first",
        ),
        ("a.json", b'[{"text": "a"}]', "files of type .json are not read; .*: write one JSON object a line"),
        ("n.jsonl", b'{"text": ' + b'{"a": ' * 900 + b"1" + b"}" * 901, r"text is a dict, not text: \{'a': \{'a': "),
        ("s.jsonl", b'{"text": "a"}\n{"text": "lone \\ud83d half"}\n', r"row 2, text has half of a surrogate pair"),
        ("l.jsonl", b'{"text": ["a", "b"]}\n', r"row 1, text is a list, not text"),
        ("d.jsonl", b'{"text": {"x": 1}}\n', r"row 1, text is a dict, not text"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptsError, match=message):
        prompts.build(config({"path": str(tmp_path / name)}), Words())


EVERY = "".join(map(chr, [*range(1, 0xD800), *range(0xE000, 0x3000 + 0xE000), 0x1F600, 0x10FFFF]))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("text", ["a\0b", "\0", EVERY, "x" * 200_000, "a,b\n\r\n\r c", '"', "NA", "1", "nan", "None"])
def test_every_character_is_read_as_it_is(tmp_path: Path, suffix: str, text: str) -> None:
    path = tmp_path / f"p.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps({"text": text, "who": text}) + "\n")
    elif suffix == "parquet":
        pd.DataFrame({"text": [text], "who": [text]}).to_parquet(path)
    else:
        quoted = '"' + text.replace('"', '""') + '"'
        path.write_bytes(f"text,who\n{quoted},{quoted}\n".encode())
    source = PromptSource(path=str(path), source_column="who")
    assert list(prompts.read(source, 9)) == [(text, text)]


def test_numbers_are_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "n.jsonl"
    numbers = ["9" * 6000, "1.50", "1e400", "-0", "12345678901234567890.5"]
    path.write_text("".join(f'{{"text": {number}, "id": {"8" * 9000}}}\n' for number in numbers))
    assert [text for text, _ in prompts.read(PromptSource(path=str(path)), 9)] == numbers


NULLABLE = pd.DataFrame(
    {
        "text": pd.array(["one two", pd.NA, "three"], dtype="string"),
        "number": pd.array([1, pd.NA, 3], dtype="Int64"),
        "date": pd.to_datetime(["2024-01-31 00:00", None, "2024-02-01 10:30"]),
        "kind": pd.Categorical(["a", None, "b"]),
    }
)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("text", ["one two", "p", "three"]),
        ("number", ["1", "p", "3"]),
        ("date", ["2024-01-31 00:00:00", "p", "2024-02-01 10:30:00"]),
        ("kind", ["a", "p", "b"]),
    ],
)
def test_nullable_columns_are_texts_and_sources(tmp_path: Path, column: str, expected: list[str]) -> None:
    path = tmp_path / "p.parquet"
    NULLABLE.to_parquet(path)
    found = list(prompts.read(PromptSource(path=str(path), column="text", source_column=column), 9))
    assert found == list(zip(["one two", "", "three"], expected, strict=True))
    texts = [text for text, _ in prompts.read(PromptSource(path=str(path), column=column), 9)]
    assert texts == ["" if text == "p" else text for text in expected]


ARROW = {
    "large strings": (pa.array(["a", None, "b"], pa.large_string()), ["a", "", "b"]),
    "a view": (pa.array(["a", None, "b"], pa.string_view()), ["a", "", "b"]),
    "a dictionary": (pa.array(["a", None, "b"]).dictionary_encode(), ["a", "", "b"]),
    "bytes": (pa.array([b"a", None, "é".encode()], pa.large_binary()), ["a", "", "é"]),
    "64 bits": (pa.array([2**64 - 1, None, 0], pa.uint64()), ["18446744073709551615", "", "0"]),
    "decimals": (pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)), ["1.50", ""]),
    "not a number": (pa.array([float("nan"), 2.5]), ["", "2.5"]),
    "days": (pa.array([0, None], pa.date32()), ["1970-01-01", ""]),
    "far days": (pa.array([3 * 10**11], pa.timestamp("s")), ["11476-08-15 05:20:00.000"]),
    "days out of range": (pa.array([10**15], pa.timestamp("s")), "a date is a value out of range: 10+, in rows 1 and"),
    "a list": (pa.array([["a"], None]), "row 1, text is a list, not text: \\['a'\\]. Write each out as one text"),
    "a struct": (pa.array([None, {"a": 1}]), "row 2, text is a dict, not text"),
    "latin bytes": (pa.array([b"caf\xe9"]), r"row 1, text is not UTF-8 text .*convert it: data.decode\(\"latin-1"),
    "infinity": (pa.array(["0.5", "inf"]).cast(pa.float64()), "row 2, text is inf, not text"),
}


@pytest.mark.parametrize("name", ARROW)
@pytest.mark.parametrize("as_source", [False, True])
def test_parquets_columns_of_any_type_are_text_or_refused(tmp_path: Path, name: str, as_source: bool) -> None:
    path = tmp_path / "p.parquet"
    array, expected = ARROW[name]
    columns = {"text": ["x"] * len(array), "who": array} if as_source else {"text": array, "who": ["x"] * len(array)}
    pq.write_table(pa.table(columns), path)
    source = PromptSource(path=str(path), source_column="who")
    if isinstance(expected, str):
        with pytest.raises(PromptsError, match=expected.replace(", text is", ", who is" if as_source else ", text is")):
            list(prompts.read(source, 9))
        return
    found = list(prompts.read(source, 9))
    assert [row[as_source] for row in found] == [value or ("p" if as_source else "") for value in expected]


def test_text_in_parquet_that_is_no_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": pa.array([b"fine", b"caf\xe9"]).view(pa.string())}), path)
    with pytest.raises(PromptsError, match="row 2, text is not UTF-8 text"):
        list(prompts.read(PromptSource(path=str(path)), 9))


NOTHINGS = [None, pd.NA, pd.NaT, float("nan"), np.datetime64("NaT"), np.float32("nan"), Decimal("NaN")]
NO_TEXTS = [10**5000, -float("inf"), np.float16("inf"), object(), len, {1}, (1,), np.arange(3), range(3)]


@pytest.mark.parametrize("value", NOTHINGS)
def test_whatever_stands_for_nothing_is_no_text(value: Any) -> None:
    assert texts.storable(value, "here") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "True"), (np.bool_(False), "False"), (3, "3"), (np.int8(-3), "-3"), (0.5, "0.5"),
        (Decimal("1.50"), "1.50"),
        (date(2024, 1, 31), "2024-01-31"), (pd.Timestamp("2024-01-31"), "2024-01-31 00:00:00"), (bytearray(b"a"), "a"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (np.str_("a"), "a"), (memoryview(b"\xc3\xa9"), "é"),
    ],
)  # fmt: skip
def test_plain_values_are_text(value: Any, text: str) -> None:
    assert texts.storable(value, "here") == text


@pytest.mark.parametrize("value", NO_TEXTS, ids=lambda value: type(value).__name__)
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(PromptsError, match=r"^here is "):
        texts.storable(value, "here")


def test_sources_are_text_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    source = PromptSource(path=str(path), source_column="who")
    for value, words in {
        '["a"]': "line 1, row 1, who is a list, not text: \\['a'\\]",
        '{"a": 1}': "who is a dict, not text",
        '"\\ud800"': "who has half of a surrogate pair at character 0",
    }.items():
        path.write_text(f'{{"text": "a", "who": {value}}}\n')
        with pytest.raises(PromptsError, match=words):
            list(prompts.read(source, 9))
    path.write_text('{"text": "a", "who": ""}\n{"text": "b"}\n{"text": "c", "who": NaN}\n{"text": "d", "who": 3}\n')
    assert [label for _, label in prompts.read(source, 9)] == ["p", "p", "p", "3"]


def test_columns_are_looked_for_in_several_rows(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"body": "a"}\n' * 5 + '{"text": "b"}\n')
    prompts.check([PromptSource(path=str(path))])
    assert [text for text, _ in prompts.read(PromptSource(path=str(path)), 9)] == [None] * 5 + ["b"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(PromptsError, match="has 2 columns 'text'; rename all but one"):
        list(prompts.read(PromptSource(path=str(path)), 9))


def test_one_column_may_be_text_and_source(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "text.b": ["c", "d"]}), path)
    assert list(prompts.read(PromptSource(path=str(path), source_column="text"), 9)) == [("a", "a"), ("b", "b")]
    assert list(prompts.read(PromptSource(path=str(path), column="text.b"), 9)) == [("c", "p"), ("d", "p")]


HUBS = {
    "other columns": ({"a.jsonl": '{"text": "a"}\n', "b.jsonl": '{"body": "c"}\n'}, "b.jsonl has no column 'text'; it"),
    "a broken line": ({"a.jsonl": '{"text": "a"}\n{"text":\n'}, r"a.jsonl, line 2 is not valid JSON: .*'{\"text\":'"),
    "surrogates": ({"a.jsonl": '{"text": "\\ud800"}\n'}, "a.jsonl, line 1, row 1, text has half of a surrogate pair"),
    "latin-1": ({"a.txt": b"caf\xe9\n"}, "a.txt is not UTF-8 text"),
    "a deep line": ({"a.jsonl": "[" * 100_000}, "a.jsonl, line 1 is not valid JSON"),
    "no Parquet": ({"a.parquet": "x"}, "a.parquet is no valid Parquet file"),
    "empty": ({"a.jsonl": ""}, "cannot be loaded: "),
    "too large": ({"a.jsonl": '{"text": 1e400}\n'}, "too (big|large)"),
    "lists": ({"a.jsonl": '{"text": ["a"]}\n'}, "row 1, text is a list, not text"),
}


@pytest.mark.parametrize("streaming", [True, False])
def test_what_a_data_set_has_wrong_is_one_line(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, (files, words) in HUBS.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(PromptsError, match=words) as caught:
            list(prompts.read(PromptSource(dataset=str(folder), streaming=streaming), 9))
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 1500


def test_rows_of_a_data_set_may_lack_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"body": "a"}, {"text": "b", "who": None}, {"text": None}, *({"text": f"c {i}"} for i in range(9))]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    found = list(prompts.read(PromptSource(dataset="x", source_column="who"), 1))
    assert found == [(None, "x"), ("b", "x"), ("", "x"), ("c 0", "x"), ("c 1", "x"), ("c 2", "x")]


def test_bytes_are_text_where_they_are_utf8(tmp_path: Path) -> None:
    path = tmp_path / "b.parquet"
    pd.DataFrame({"text": ["né".encode(), b"plain"]}).to_parquet(path)
    assert [text for text, _ in prompts.read(PromptSource(path=str(path)), 9)] == ["né", "plain"]
    pd.DataFrame({"text": [b"\xff\xfe"]}).to_parquet(path)
    with pytest.raises(PromptsError, match="row 1, text is not UTF-8"):
        list(prompts.read(PromptSource(path=str(path)), 9))


@pytest.mark.parametrize("name", ["b.txt", "b.jsonl", "b.csv"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = {"b.txt": "one", "b.jsonl": '{"text": "one"}\n', "b.csv": "text\none\n"}[name]
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert [text for text, _ in prompts.read(PromptSource(path=str(tmp_path / name)), 9)] == ["one"]


def test_rows_without_the_column_are_said(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"text": "a b"}\n{"body": "c"}\n{"text": null}\n{"body": "d"}\n')
    table, warnings = prompts.build(config({"path": str(path)}, n_prompts=1), Words())
    assert table["text"].tolist() == ["a b"]
    assert warnings == [f"2 of 4 rows of {path} have no 'text'; they are left out"]


def test_a_file_of_lines_is_one_prompt_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one\n" * 20)
    with caplog.at_level(logging.WARNING, logger="gpuclust"):
        assert len(list(prompts.read(PromptSource(path=str(path)), 9))) == 1
    assert "no blank line: it is one prompt" in caplog.text


def test_files_are_looked_at_before_anything_is_loaded(file: Path, tmp_path: Path) -> None:
    source = PromptSource(path=str(file), column="words")
    if file.suffix == ".txt":
        prompts.check([source])
    else:
        with pytest.raises(PromptsError, match="has no column 'words'; it has text, origin"):
            prompts.check([source])
    file.write_bytes(b"")
    with pytest.raises(PromptsError, match="is empty"):
        prompts.check([source])
    with pytest.raises(PromptsError, match="there is no prompt file"):
        prompts.check([PromptSource(path=str(tmp_path / "none.txt"))])


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"text\ra\rb\r", ["a", "b"]),
        (b"text\r\na\r\nb\r\n", ["a", "b"]),
        (b"text\r\na\nb", ["a", "b"]),
        (b"text\r\r\na\r\r\n", ["a"]),  # as Windows writes \r\n in text mode
        (b'text\n"a\rb"\n"c\r\r\nd"\n', ["a\rb", "c\r\r\nd"]),
        (b'text\r"a\nb"\rc\r', ["a\nb", "c"]),
        (b"text\na\rb\nc\n", "line 2 has a carriage return"),
        (b"text\r\na\r\nb\rc\r\n", "line 3 has a carriage return"),
        (b"te\rxt\na\n", "line 1 has a carriage return"),
        (b"text\na\rb", "line 2 has a carriage return"),
    ],
)
def test_a_carriage_return_does_not_cut_a_text_in_two(content: bytes, texts: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    source = PromptSource(path=str(path), column="te" if content.startswith(b"te\r") else "text")
    if isinstance(texts, list):
        assert [text for text, _ in prompts.read(source, 9)] == texts
        return
    with pytest.raises(PromptsError, match=rf"p\.csv, {texts} \(\\r\) outside of quotes.*Put texts that hold line"):
        list(prompts.read(source, 9))
