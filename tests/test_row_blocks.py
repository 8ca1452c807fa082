"""Blocks of the store on a stand-in for a GPU: packed and expanded, or decoded, always what the host reads."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuclust.config_sections import StoreConfig
from gpuclust.errors import CorruptDataError
from gpuclust.hardware import backend
from gpuclust.storage import codec, codec_cuda, row_blocks, store
from tests import cuda_stub
from tests.strategies import activations, sae_like
from tests.test_store import make

CUDA = backend.Backend("cuda", "a stand-in")


@settings(max_examples=20)
@given(activations(signed=True), st.data())
def test_expansion_equals_decode(values: np.ndarray, data: st.DataObject) -> None:
    words, packed = codec.sections(codec.encode(values), values.size, values.itemsize)
    used, rows = data.draw(st.integers(1, values.shape[1])), data.draw(st.integers(1, values.shape[0]))
    expected = codec.decode(codec.encode(values), values.shape, values.dtype)[:rows, :used]
    out = np.full((rows, used), 7, values.dtype)
    codec_cuda.expand_host(words, packed, values.shape[1], out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.skipif(cuda_stub.COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_kernel_equals_its_twin(dtype: type, density: float) -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random((37, 29)) < density, rng.standard_normal((37, 29)), 0).astype(dtype)
    words, packed = codec.sections(codec.encode(values), values.size, values.itemsize)
    wide = np.full((30, 64), 7, dtype)
    expected = wide.copy()
    codec_cuda.expand_host(words, packed, 29, expected[:, 10:34])
    with cuda_stub.installed():
        import cupy

        out = cupy.asarray(wide)
        codec_cuda.expand(cupy.asarray(words), cupy.asarray(packed), 29, out[:, 10:34])
        np.testing.assert_array_equal(out.get(), expected)


@pytest.mark.parametrize("codec_name", ["bitmap", "zstd"])
@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("kept", [None, np.array([0, 3, 36])])
def test_blocks_are_what_the_host_reads(
    tmp_path: Path, codec_name: str, rows: int, kept: np.ndarray | None, caplog: pytest.LogCaptureFixture
) -> None:
    values = sae_like(53, 37)
    values[20:40] = 0  # a shard that Zarr does not hold packed values of
    path = make(tmp_path, values, StoreConfig(shard_prompts=20, chunk_prompts=8, chunk_features=16, codec=codec_name))
    first, stop = store.shard_ranges(path)[1][0], 53
    wanted = values if kept is None else values[:, kept]
    with cuda_stub.installed(), caplog.at_level(logging.INFO, "gpuclust"):
        for start in (0, first):
            seen = start
            for at, block in row_blocks.rows(path, rows, CUDA, start, stop, kept):
                assert at == seen
                assert isinstance(block, cuda_stub.Array)
                np.testing.assert_array_equal(block.get(), wanted[at : at + len(block)])
                seen += len(block)
            assert seen == 53
    packed = codec_name == "bitmap" and rows >= 8
    assert ("expanded on the GPU" if packed else "decoded on the host, because") in caplog.text


def test_damage_is_an_error_before_it_reaches_the_device(tmp_path: Path) -> None:
    path = make(tmp_path, sae_like(40, 20))
    file = path / "activations" / "c" / "1" / "0"
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    with (
        cuda_stub.installed(),
        pytest.raises(CorruptDataError, match=r"prompts 16 to 23 cannot be read: .*gpuclust verify"),
    ):
        list(row_blocks.rows(path, 100, CUDA))


def test_a_caller_may_stop_early(tmp_path: Path) -> None:
    path = make(tmp_path, sae_like(60, 20))
    with cuda_stub.installed():
        blocks = row_blocks.rows(path, 100, CUDA)
        next(blocks)
        blocks.close()
    assert any(name == "cupy.cuda.Stream.synchronize" for name, _, _ in cuda_stub.CALLS)
