from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpuclust.compute import topk

VALUES = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(0, 3, width=16))


@given(VALUES, st.integers(1, 12))
def test_smallest_is_a_stable_sort(values: np.ndarray, k: int) -> None:
    keys = topk.smallest(topk.pack(values, np.arange(values.shape[1])), k)
    got, index = topk.unpack(keys)
    n = min(k, values.shape[1])
    order = np.argsort(values, axis=1, kind="stable")[:, :n]
    np.testing.assert_array_equal(index[:, :n], order)
    np.testing.assert_array_equal(got[:, :n], np.take_along_axis(values, order, axis=1))
    assert (keys[:, n:] == topk.NOTHING).all()
