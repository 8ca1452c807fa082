"""Whatever is given: taken, or refused with one GpuclustError, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from gpuclust import configfile
from gpuclust.config_sections import PromptSource
from gpuclust.errors import ActivationError, ConfigError, MemoryBudgetError, PromptsError
from gpuclust.extraction import prompts
from gpuclust.notebook_cache import read_cache
from gpuclust.results.inputs import as_activations
from tests import arrays
from tests.fuzzing import fuzz, one_error
from tests.strategies import JUNK, contents, settings_of_any_kind, tables_of_arrow


@fuzz(150)
@given(settings_of_any_kind())
@example({"n_prompts": 10**5000})
@example({10**5000: 1, "umap": {10**5000: 1}})
@example({"umap": [10**5000]})
@example({"model": {"name": "\ud800"}})
@example({"prompts": [{"path": "a", "label": "\ud800"}], "\ud800": 1})
@example({"prompts": [{"path": "a\0"}]})
def test_settings_are_taken_or_refused(data: dict[Any, Any]) -> None:
    with one_error(ConfigError):
        config = configfile.validate(data)
        assert configfile.validate(config.resolved()) == config
        text = yaml.safe_dump(config.resolved(), allow_unicode=True)
        assert configfile.validate(configfile.parse(text)) == config


@fuzz(60)
@given(settings_of_any_kind(plain=True), st.booleans())
def test_files_of_settings_are_taken_or_refused(tmp_path: Path, data: dict[Any, Any], unicode: bool) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(yaml.safe_dump(data, allow_unicode=unicode).encode(errors="surrogatepass"))
    with one_error(ConfigError):
        configfile.load(file)


WORDS = st.sampled_from([
    "umap", "umap:", "n_components", "min_dist", "prompts", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ",",
    "&a ", "*a", "? ", "<<: ", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!map ", "!!set ",
    "!!omap ", "!!python/name:os ", "!!str ", "!!null ", "| ", "> ", "%", "@", "`", "'", '"', "#", "\t", "\0",
    "é", "\ud800", '"\\ud800"', '"\\UFFFFFFFF"', "2024-99-99", "2024-01-01T00:00:00+99:99", "0x_", "0b", "1_0",
    "1:60", ".inf", ".nan", "1e999", "~", "=", "9" * 5000,
])  # fmt: skip
YAMLS = st.lists(WORDS, max_size=9).map("".join) | st.text(st.sampled_from("abu: -[]{},&*!'\"#\n\0é1.e"), max_size=30)


@fuzz(100)
@given(YAMLS | st.binary(max_size=40), st.lists(YAMLS, max_size=2))
def test_bytes_as_settings_are_taken_or_refused(tmp_path: Path, content: str | bytes, overrides: list[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    with one_error(ConfigError):
        configfile.load(file)
    with one_error(ConfigError):
        configfile.load(overrides=[f"umap.{text}" for text in overrides] + overrides)


def read(path: Path, column: str = "text", source_column: str | None = None) -> None:
    """Look at a file and read it, and what comes is text that a run can store."""
    source = PromptSource(path=str(path), column=column, source_column=source_column)
    prompts.check([source])
    for text, label in prompts.read(source, 9):
        assert text is None or isinstance(text, str)
        assert isinstance(label, str)
        assert label
        f"{text}{label}".encode()


@fuzz(150)
@given(
    contents(),
    st.sampled_from([".txt", ".jsonl", ".jsonl", ".jsonl", ".csv", ".parquet", ".gz", ""]),
    st.sampled_from([None, "source"]),
)
def test_bytes_as_prompts_are_taken_or_refused(
    tmp_path: Path, content: bytes, suffix: str, source_column: str | None
) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(content)
    with one_error(PromptsError):
        read(path, source_column=source_column)


@fuzz(100)
@given(tables_of_arrow(), st.sampled_from(["text", "source", ""]), st.sampled_from([None, "source", "text"]))
def test_tables_as_prompts_are_taken_or_refused(
    tmp_path: Path, table: pa.Table, column: str, source_column: str | None
) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(table, path)
    with one_error(PromptsError):
        read(path, column, source_column)


@fuzz(60)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_of_a_table_is_taken_or_refused(tmp_path: Path, place: int, bit: int) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"text": [f"prompt {i} é" for i in range(60)]}), path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    with one_error(PromptsError):
        read(path)


@fuzz(250)
@given(arrays.cases())
def test_arrays_are_taken_as_they_are_meant_or_refused(case: arrays.Case) -> None:
    with one_error((ActivationError, MemoryBudgetError)):
        got = as_activations(case.given)
        assert type(got) is np.ndarray
        assert got.dtype in (np.dtype("float16"), np.dtype("float32"), np.dtype("float64"))
        assert case.meant is not None, "this had to be refused"
        np.testing.assert_array_equal(got, case.meant)
        return
    if case.meant is not None:  # only values beyond what float64 can work with
        size = np.abs(case.meant).max(axis=0)
        assert ((size > 1e70) | ((size > 0) & (size < 1e-70))).any()


@fuzz(40)
@given(arrays.tensors() | JUNK.map(lambda value: arrays.Case(value, None)), JUNK, st.booleans())
def test_caches_are_taken_or_refused(tmp_path: Path, case: arrays.Case, texts: Any, fitting: bool) -> None:
    path = tmp_path / "cache.pt"
    if fitting and isinstance(case.given, torch.Tensor) and case.given.ndim:
        texts = [str(row) for row in range(len(case.given))]
    torch.save({"acts": case.given, "prompts": texts}, path)
    with one_error():
        found, prompts = read_cache(path)
        assert found.dtype in (np.float16, np.float32, np.float64)
        assert len(prompts) == len(found)
        np.testing.assert_array_equal(found, case.meant)
