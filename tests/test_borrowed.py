"""What gpuclust calls of packages that do not promise to keep it: the reason of every upper bound in pyproject.toml.

Each piece is called on a small input, as gpuclust calls it, and what is relied on is checked. A failure names the
package, its version, the piece, and what changed.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuclust.extraction import weights

ROOT = Path(__file__).parent.parent
POINTS = np.array([[0.0], [0.1], [0.3], [5.0], [5.1], [5.4]])
EDGES = np.array([[0, 1, 0.1], [3, 4, 0.1], [1, 2, 0.2], [4, 5, 0.3], [2, 3, 4.7]])  # their minimum spanning tree
NEAREST = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 4, 5], [4, 3, 5], [5, 4, 3]], np.int32)
DISTANCES = np.abs(POINTS[NEAREST, 0] - POINTS[NEAREST[:, :1], 0]).astype(np.float32)


def linkage() -> None:
    from hdbscan._hdbscan_linkage import label

    tree = label(EDGES)
    assert tree.shape == (5, 4)
    assert tree[:, 2].tolist() == EDGES[:, 2].tolist()
    assert tree[-1, 3] == 6


def tree_to_labels() -> None:
    from hdbscan._hdbscan_linkage import label
    from hdbscan.hdbscan_ import _tree_to_labels

    found = _tree_to_labels(None, label(EDGES), 3, "eom", cluster_selection_epsilon=0.0)
    labels, probabilities, persistence, condensed, tree = found
    assert sorted(set(labels[:3]) | set(labels[3:])) == [0, 1]
    assert len(set(labels[:3])) == len(set(labels[3:])) == 1
    assert (len(probabilities), len(persistence), len(tree)) == (6, 2, 5)
    assert condensed.dtype.names == ("parent", "child", "lambda_val", "child_size")


def condense() -> None:
    from hdbscan._hdbscan_linkage import label
    from hdbscan._hdbscan_tree import condense_tree, outlier_scores

    condensed = condense_tree(label(EDGES), 3)
    assert condensed.dtype.names == ("parent", "child", "lambda_val", "child_size")
    assert outlier_scores(condensed).shape == (6,)


def validity() -> None:
    from hdbscan.validity import validity_index

    score = validity_index(np.random.default_rng(0).normal(size=(8, 2)), np.repeat([0, 1], 4))
    assert -1 <= score <= 1


def umap_graph() -> None:
    from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

    random = np.random.RandomState(0)
    graph, _, _ = fuzzy_simplicial_set(
        np.empty((6, 1), np.float32), 3, random, "precomputed", knn_indices=NEAREST, knn_dists=DISTANCES
    )
    assert graph.shape == (6, 6)
    a, b = find_ab_params(1.0, 0.1)
    start = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    embedding, _ = simplicial_set_embedding(
        data=None, graph=graph, n_components=2, initial_alpha=1.0, a=a, b=b, gamma=1.0, negative_sample_rate=5,
        n_epochs=3, init=start, random_state=random, metric="precomputed", metric_kwds={}, densmap=False,
        densmap_kwds={}, output_dens=False,
    )  # fmt: skip
    assert embedding.shape == (6, 2)


def sae_configuration() -> None:
    from sae_lens.loading import pretrained_sae_loaders as loaders

    data = loaders.handle_config_defaulting(loaders.get_sae_lens_config_from_disk(weights.DEMO / "sae"))
    assert {"d_in", "d_sae", "metadata"} <= set(data)
    assert list(inspect.signature(loaders.load_sae_config_from_huggingface).parameters)[:2] == ["release", "sae_id"]


def sae_directory() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory, get_repo_id_and_folder_name

    release, sae_id = "pythia-70m-deduped-mlp-sm", "blocks.3.hook_mlp_out"
    assert sae_id in get_pretrained_saes_directory()[release].saes_map
    repository, folder = get_repo_id_and_folder_name(release, sae_id)
    assert "/" in repository
    assert folder


def model_names() -> None:
    from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS, make_model_alias_map

    assert "x".startswith(NEED_REMOTE_CODE_MODELS) is False
    assert make_model_alias_map()["pythia-70m-deduped"] == "EleutherAI/pythia-70m-deduped"


def hub_cache() -> None:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    assert HF_HUB_CACHE
    assert repo_folder_name(repo_id="a/b", repo_type="model") == "models--a--b"


def zarr_codec() -> None:
    from zarr.abc.codec import ArrayBytesCodec
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer
    from zarr.core.common import parse_named_configuration

    assert {"_decode_single", "_encode_single", "evolve_from_array_spec"} <= set(dir(ArrayBytesCodec))
    assert parse_named_configuration({"name": "x"}, "x", require_configuration=False)[0] == "x"
    assert {"shape", "dtype", "prototype"} <= set(inspect.signature(ArraySpec).parameters)
    assert hasattr(Buffer, "as_numpy_array")
    assert hasattr(NDBuffer, "from_numpy_array")


BORROWED: list[tuple[str, str, Callable[[], None]]] = [
    ("hdbscan", "hdbscan._hdbscan_linkage.label", linkage),
    ("hdbscan", "hdbscan.hdbscan_._tree_to_labels", tree_to_labels),
    ("hdbscan", "hdbscan._hdbscan_tree.condense_tree, outlier_scores", condense),
    ("hdbscan", "hdbscan.validity.validity_index", validity),
    ("umap-learn", "umap.umap_.{find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding}", umap_graph),
    ("sae-lens", "sae_lens.loading.pretrained_sae_loaders", sae_configuration),
    ("sae-lens", "sae_lens.loading.pretrained_saes_directory", sae_directory),
    ("transformer-lens", "transformer_lens.loading_from_pretrained", model_names),
    ("huggingface-hub", "huggingface_hub.file_download.repo_folder_name", hub_cache),
    ("zarr", "zarr.core.{array_spec, buffer, common}", zarr_codec),
]


@pytest.mark.parametrize(("package", "what", "check"), BORROWED, ids=[what for _, what, _ in BORROWED])
@pytest.mark.filterwarnings("default")
def test_what_is_borrowed_is_still_there(package: str, what: str, check: Callable[[], None]) -> None:
    try:
        check()
    except Exception as error:
        pytest.fail(f"{package} {version(package)} changed {what}: {type(error).__name__}: {error}")


def requirements() -> dict[str, str]:
    """Names and ranges of the dependencies in pyproject.toml."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found: list[Any] = [re.fullmatch(r"([\w-]+)(.*)", line) for line in lines]
    return {match[1]: match[2] for match in found}


def test_upper_bounds_are_just_where_something_is_borrowed() -> None:
    assert {name for name, span in requirements().items() if "<" in span} == {package for package, _, _ in BORROWED}


def test_every_package_that_is_imported_is_required_and_no_other() -> None:
    from importlib.metadata import packages_distributions

    imported = {
        match[1]
        for path in (ROOT / "src").rglob("*.py")
        for match in re.finditer(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
    }
    names = {
        module: [n for n in found if not n.endswith("-stubs")] for module, found in packages_distributions().items()
    }
    optional = {
        "cupy",
        "cupyx",
        "cuml",
        "rmm",
        "dask_cuda",
        "pynvml",
        "anndata",
        "h5py",
        "IPython",
        "anywidget",
        "ipywidgets",
    }
    needed = {names[module][0].lower().replace("_", "-") for module in imported - optional if names.get(module)}
    assert needed - {"gpuclust"} == set(requirements())
