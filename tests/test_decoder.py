from __future__ import annotations

import itertools

import numpy as np
import pytest

from gpuclust.tables import decoder


@pytest.fixture(scope="module")
def unit() -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 8))
    rows[:6] = rows[0] + 0.1 * rng.normal(size=(6, 8))  # one bundle of directions
    rows[7] = 0
    return decoder.unit_rows(rows)


def test_unit_rows(unit: np.ndarray) -> None:
    norms = np.linalg.norm(unit, axis=1)
    np.testing.assert_allclose(np.delete(norms, 7), 1, rtol=1e-6)
    assert norms[7] == 0


@pytest.mark.parametrize("block", [8, 24, 1 << 24])
def test_cohesion_is_the_mean_over_pairs(unit: np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "BLOCK", block)
    members = [np.arange(6), np.arange(10, 16), np.array([5, 7, 40])]
    found = decoder.cohesion(unit, members, np.arange(60))
    for c, rows in enumerate(members):
        pairs = [float(unit[a] @ unit[b]) for a, b in itertools.combinations(rows, 2)]
        assert found["decoder_cosine"][c] == pytest.approx(np.mean(pairs), abs=1e-6)
    assert found["decoder_cosine_p"][0] == pytest.approx(1 / (1 + decoder.N_SETS))
    assert found["decoder_cosine_p"][1] > 0.02
    assert found["decoder_cosine_random"][0] == found["decoder_cosine_random"][1]  # drawn once for both


def test_random_sets_have_the_mean_cosine_of_all_pairs(unit: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "N_SETS", 4000)
    pool = np.arange(30)
    found = decoder.cohesion(unit, [np.arange(5)], pool)
    pairs = [float(unit[a] @ unit[b]) for a, b in itertools.combinations(pool, 2)]
    assert found["decoder_cosine_random"][0] == pytest.approx(np.mean(pairs), abs=0.01)


def test_promoted_tokens_are_the_largest_logits(unit: np.ndarray) -> None:
    w_u = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
    w_u[:, 9] = w_u[:, 4]  # a tie goes to the smaller id
    members = [np.arange(6), np.array([12])]
    found = decoder.promoted(unit, members, w_u, 5)
    for c, rows in enumerate(members):
        logits = unit[rows].mean(axis=0) @ w_u
        assert found[c].tolist() == np.lexsort((np.arange(50), -logits))[:5].tolist()
    assert decoder.promoted(unit, members, w_u, 99).shape == (2, 50)
