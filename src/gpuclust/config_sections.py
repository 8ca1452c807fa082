"""The sections of the configuration: every setting with its unit, its default and what it is refused for by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gpuclust.section import LocalPath, Section, as_bytes, parse_bytes

Metric = Literal[
    "cosine", "correlation", "partial_correlation", "euclidean", "dot",
    "jaccard", "dice", "overlap", "phi", "npmi", "lift",
]  # fmt: skip
FARTHEST = 2  # cosine and correlation distance of opposites
DEMO = Path(__file__).parent / "demo"
DEMO_SAES = {"demo": "sae", "demo-2": "sae-2"}  # what sae.path names, of two seeds, and folders within DEMO


class ModelConfig(Section):
    """The language model."""

    name: LocalPath = Field("demo", description="hub id, local folder, or `demo` for the embedded model")
    loader: Literal["auto", "hooked", "bridge"] = Field(
        "auto", description="hooked: HookedTransformer; bridge: TransformerBridge, for all that transformers loads"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="dtype of the forward pass")
    processed: bool = Field(False, description="fold LayerNorm and centre weights (HookedTransformer.from_pretrained)")
    revision: str | None = Field(None, description="hub revision: a branch, tag or commit")


class SaeConfig(Section):
    """The sparse autoencoder: `release` and `sae_id` of SAELens, or a local folder `path`."""

    release: str | None = Field(None, description="SAELens release")
    sae_id: str | None = Field(None, description="SAE id within the release")
    path: LocalPath | None = Field(
        None,
        description="local folder with cfg.json and sae_weights.safetensors, or `demo`, or `demo-2` of another seed",
    )
    hook_name: str | None = Field(None, description="overrides the hook of the SAE's own metadata")

    @model_validator(mode="after")
    def _one_source(self) -> SaeConfig:
        if self.path is not None and (self.release is not None or self.sae_id is not None):
            raise ValueError("give either path or release + sae_id, not both")
        if self.path is None and (self.release is None) != (self.sae_id is None):
            raise ValueError("release and sae_id belong together; one of them is missing")
        return self

    @property
    def label(self) -> str:
        """What to call it."""
        return self.path or f"{self.release} / {self.sae_id}"


class PromptSource(Section):
    """One source of prompts: a hub dataset (`dataset`) or a local file (`path`)."""

    dataset: str | None = Field(None, description="hub dataset id")
    name: str | None = Field(None, description="configuration of the hub dataset")
    split: str = Field("train", description="split of the hub dataset")
    streaming: bool = Field(True, description="stream the hub dataset instead of downloading all of it")
    path: LocalPath | None = Field(
        None, description="local .txt (prompts between blank lines), .jsonl, .csv or .parquet file, or `demo`"
    )
    column: str = Field("text", description="column or key that holds the text (not used for .txt)")
    source_column: str | None = Field(None, description="column whose value becomes the prompt's `source`")
    limit: int | None = Field(None, ge=1, description="rows read at most; default all, or what n_prompts needs")
    label: str | None = Field(None, description="`source` of the prompts; default the dataset or file name")

    @model_validator(mode="after")
    def _one_source(self) -> PromptSource:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give exactly one of dataset (a hub id) and path (a local file)")
        return self


class ExtractConfig(Section):
    """From prompts to activations."""

    rows: Literal["prompt", "window", "token"] = Field(
        "prompt",
        description="what neighbours are computed over; windows and tokens keep what fires on every token, too",
    )
    window: int = Field(16, ge=1, description="tokens of a window; a prompt's last may have fewer")
    aggregate: Literal["max", "mean", "sum", "last"] = Field(
        "max", description="over the tokens of a prompt, and of a window"
    )
    prepend_bos: bool = Field(True, description="begin every prompt with the tokenizer's BOS token")
    exclude_special_tokens: bool = Field(True, description="leave special tokens out of the aggregate")
    batch_tokens: int = Field(4096, ge=1, description="tokens of a forward batch, padding included")
    activation_threshold: float = Field(0.0, ge=0, description="|a| above this counts as active")
    top_examples: int = Field(20, ge=1, description="strongest prompts kept per feature")


class StoreConfig(Section):
    """The chunked Zarr array of activations."""

    dtype: Literal["float16", "float32"] = Field("float16", description="stored dtype")
    shard_prompts: int = Field(512, ge=1, description="prompts of a shard: one Dask task, one file")
    chunk_prompts: int = Field(512, ge=1, description="prompts of a chunk within a shard")
    chunk_features: int = Field(8192, ge=1, description="features of a chunk within a shard")
    codec: Literal["bitmap", "zstd"] = Field("bitmap", description="zstd opens without gpuclust and is slower")


class SelectConfig(Section):
    """Which features are clustered. Bounds are strict."""

    entropy_low: float = Field(0.0, description="nats; kept above")
    entropy_high: float = Field(15.0, description="nats; kept below")
    sparsity_min: float = Field(0.005, description="share of prompts where active; kept above")
    sparsity_max: float = Field(0.5, description="share of prompts where active; kept below")
    min_active_prompts: int = Field(2, ge=0, description="prompts; kept at or above")

    @model_validator(mode="after")
    def _ordered(self) -> SelectConfig:
        for low, high in (("entropy_low", "entropy_high"), ("sparsity_min", "sparsity_max")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} ({getattr(self, low)}) must be below {high} ({getattr(self, high)})")
        return self


class NeighborsConfig(Section):
    """Nearest neighbours between features."""

    method: Literal["auto", "exact", "sketch"] = Field("auto", description="sketch: random projection of the prompts")
    n_neighbors: int | None = Field(
        None, ge=2, description="itself included; default what cluster.method and UMAP need"
    )
    metric: Metric | None = Field(
        None,
        description="default partial_correlation, given the prompts' length; cosine for a sketch and for "
        "cluster.method=distances",
    )
    corrected: bool = Field(
        True,
        description="jaccard, dice and overlap less what features as frequent have by chance: 0 is chance, 1 the most",
    )
    sketch_size: int = Field(1024, ge=2, description="dimensions of the sketch")


class ClusterConfig(Section):
    """How features are clustered. A map by UMAP and one clustering of an embedding by HDBSCAN are always there."""

    method: Literal["communities", "umap", "distances", "dbscan"] = Field(
        "communities",
        description="communities: of the mutual neighbour graph; umap: UMAP, then HDBSCAN; distances: HDBSCAN on "
        "exact cosine distances; dbscan: DBSCAN on exact distances or on the embedding",
    )


class CommunitiesConfig(Section):
    """Communities of the graph of mutual nearest neighbours."""

    n_neighbors: int | None = Field(
        None, ge=3, description="of a feature in the graph, the feature included; default: 30, or 20 without lists"
    )
    shared_neighbors: int | None = Field(
        None,
        ge=0,
        description="of the lists by which features are compared for the graph, the feature included; 0: no lists, by "
        "their own similarity; default: 20 of metrics that know chance (correlations, phi, npmi, lift, corrected "
        "ones), 0 of cosines and raw ones",
    )
    resolution: float | None = Field(
        None, gt=0, le=1e6, description="larger: more, smaller clusters; default: where what is found again says most"
    )
    correct_hubs: bool = Field(True, description="lower the similarity of features that are near to everything")


class DbscanConfig(Section):
    """DBSCAN: one density for all clusters. What is too small to be one, `hdbscan.min_cluster_size` says."""

    eps: float | None = Field(
        None,
        gt=0,
        description="distance within which features are neighbours, 1 - similarity or embedding units; default: the "
        "elbow of the sorted distances to the min_samples-th nearest",
    )
    min_samples: int = Field(10, ge=1, description="features within eps that make a core, the feature itself included")
    on: Literal["distances", "embedding"] = Field(
        "distances", description="exact distances, 1 - similarity, or UMAP's embedding"
    )

    @model_validator(mode="after")
    def _within(self) -> DbscanConfig:
        if self.on == "distances" and self.eps is not None and self.eps > FARTHEST:
            raise ValueError(
                f"eps ({self.eps:g}) is above {FARTHEST}, the largest cosine or correlation distance: everything would "
                "be one cluster; lower it, or set dbscan.on=embedding"
            )
        return self


class UmapConfig(Section):
    """The embedding."""

    n_components: int = Field(10, ge=1, description="dimensions of the embedding that is clustered")
    n_neighbors: int = Field(15, ge=2, description="neighbours, the feature itself included")
    min_dist: float = Field(0.0, ge=0, description="embedding units")
    metric: Metric | None = Field(None, description="between features; the same as neighbors.metric")
    n_epochs: int | None = Field(None, ge=1, description="default: UMAP's own")
    random_state: int = Field(42, ge=0, lt=2**31, description="seed of UMAP, of communities and of redrawn neighbours")

    @model_validator(mode="before")
    @classmethod
    def _no_switch(cls, data: Any) -> Any:
        if isinstance(data, dict) and "enabled" in data:
            raise ValueError(
                "umap.enabled is no more: set cluster.method=umap to cluster on the embedding, or "
                "cluster.method=distances for exact cosine distances (what enabled: false did)"
            )
        return data


class HdbscanConfig(Section):
    """The clustering."""

    min_cluster_size: int = Field(
        10, ge=2, description="features of a cluster by any method, exact duplicates counted once"
    )
    min_samples: int = Field(5, ge=1, description="neighbours of a core distance, the feature itself not counted")
    cluster_selection_epsilon: float = Field(0.01, ge=0, description="distance below which clusters are not split")
    cluster_selection_method: Literal["eom", "leaf"] = Field("eom", description="excess of mass, or leaves")
    metric: Literal["euclidean", "cosine"] | None = Field(
        None,
        description="default: euclidean on the embedding; without UMAP cosine, or euclidean of normalised features",
    )


class ConsensusConfig(Section):
    """Consensus of clusterings over redrawn neighbours; not used by cluster.method=distances and dbscan."""

    members: int | None = Field(
        None,
        ge=1,
        le=255,
        description="clusterings; 1 is a single one, without a consensus; default: communities 16, umap 8",
    )
    agreement: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="mean share of members that put a cluster's pairs together; default: communities 0.2, umap 0.5",
    )
    candidates: int = Field(4, ge=1, description="neighbours computed, as a multiple of those used")
    n_epochs: int | None = Field(200, ge=1, description="of every member but the first; null: as umap.n_epochs")


class QualityConfig(Section):
    """Checks on the clustering. Each repeats embedding and clustering; the summary says what was left out."""

    duplicates: bool = Field(True, description="exact duplicates are one point to the clustering; false: each its own")
    halves: bool = Field(True, description="cluster each half of the prompts, and compare")
    null: bool = Field(True, description="cluster activations permuted over prompts, feature by feature")
    hdbscan: bool = Field(True, description="cluster the halves by UMAP and HDBSCAN too, to compare")
    decoder: bool = Field(True, description="compare with the geometry of the SAE's decoder directions")
    seeds: int = Field(0, ge=0, description="further seeds of the whole clustering to compare with")
    random_sets: int = Field(50, ge=0, description="degree-matched random sets a cluster; 0 leaves them out")
    stable: float = Field(0.5, gt=0, le=1, description="mean best-match Jaccard index of a stable cluster")
    dbcv_features: int = Field(4096, ge=0, description="DBCV is left out above so many features: quadratic time")


class ValidationConfig(Section):
    """More than a clustering tells of its clusters, from the store; ``gpuclust validate`` adds what costs more."""

    prediction: bool = Field(True, description="held-out prediction by the features that share a cluster")
    levels: bool = Field(True, description="same token, near, or same prompt; of runs that keep tokens")
    draws: int = Field(8, ge=2, description="control clusterings")


class AnalyseConfig(Section):
    """The cluster tables."""

    top_prompts: int = Field(5, ge=1, description="prompts a cluster")
    top_contexts: int = Field(
        5, ge=0, description="tokens or windows a cluster where most of its features fire at once; not over prompts"
    )
    similarity_threshold: float = Field(0.5, ge=0, le=1, description="|correlation| shown in the report")
    keywords: int = Field(8, ge=0, description="keywords a cluster")
    promoted_tokens: int = Field(10, ge=0, description="output tokens a cluster; 0 leaves the language model unread")
    labeller: str | None = Field(
        None, description="names the clusters: `module:function`, or an entry point of the group `gpuclust.labels`"
    )


class DeviceConfig(Section):
    """Memory that a worker may use: of its GPU where it has one, else of the host."""

    memory: Annotated[str | None, BeforeValidator(as_bytes)] = Field(
        None,
        description='such as "6GB", or a number of bytes; default: on a GPU all that is free, on a CPU 60% of that',
    )


class PlanConfig(Section):
    """Shapes for ``--plan`` where the hub is out of reach; a run takes the real ones and ignores these."""

    d_in: int | None = Field(None, ge=1, description="width of the hook")
    d_sae: int | None = Field(None, ge=1, description="features of the SAE")
    model_bytes: Annotated[str | None, BeforeValidator(as_bytes)] = Field(
        None, description='weights up to the hook in model.dtype, such as "1.5GB"; a number from a million on is bytes'
    )

    @model_validator(mode="after")
    def _together(self) -> PlanConfig:
        if len({value is None for value in (self.d_in, self.d_sae, self.model_bytes)}) == 2:
            raise ValueError("d_in, d_sae and model_bytes belong together; give all three or none")
        if self.model_bytes is not None:
            parse_bytes(self.model_bytes, "plan.model_bytes")
        return self


class SchedulerConfig(Section):
    """Dask."""

    n_workers: int | None = Field(None, ge=1, description="workers of `local`; default one per four cores")
    timeout: float = Field(60.0, gt=0, description="seconds to wait for a scheduler or its workers")
