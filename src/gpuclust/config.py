"""The configuration as a whole: what of its sections belongs together, and what follows from it.

`Config` is frozen; `Config.resolved` is what a run writes to ``config.yaml``. Its sections are in
`gpuclust.config_sections`; `gpuclust.configfile` makes it from a file and ``key=value`` texts.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from gpuclust.config_sections import (
    AnalyseConfig,
    ClusterConfig,
    CommunitiesConfig,
    ConsensusConfig,
    DbscanConfig,
    DeviceConfig,
    ExtractConfig,
    HdbscanConfig,
    ModelConfig,
    NeighborsConfig,
    PlanConfig,
    PromptSource,
    QualityConfig,
    SaeConfig,
    SchedulerConfig,
    SelectConfig,
    StoreConfig,
    UmapConfig,
    ValidationConfig,
)
from gpuclust.section import Section, parse_bytes

CORRECTED = "corrected_"  # before the name of a metric that is one less what chance leaves
CORRECTABLE = ("jaccard", "dice", "overlap")
# Metrics that look at when features are active, not how strongly
ACTIVITY = (*CORRECTABLE, *(CORRECTED + name for name in CORRECTABLE), "phi", "npmi", "lift")
SIMILARITIES = ("cosine", "correlation", "partial_correlation", *ACTIVITY)  # metrics that are 1 less a similarity
CORRELATIONS = ("correlation", "partial_correlation", "phi")
FROM_CHANCE = (*CORRELATIONS, *(name for name in ACTIVITY if name not in CORRECTABLE))  # 0 is what chance leaves
AGREEMENT = {"communities": 0.2, "umap": 0.5}
MEMBERS = {"communities": 16, "umap": 8}  # of communities, which take a hundredth of the time of a UMAP, more


class Config(Section):
    """Everything a run depends on.

    Examples
    --------
    >>> Config().umap.n_components
    10
    >>> Config(umap=UmapConfig(n_components=5)).n_neighbors
    80
    """

    model: ModelConfig = ModelConfig()
    sae: SaeConfig = SaeConfig(path="demo")
    prompts: tuple[PromptSource, ...] = (PromptSource(path="demo", source_column="source"),)
    n_prompts: Annotated[int, Field(ge=1, description="prompts used at most")] = 2000
    min_tokens: Annotated[int, Field(ge=1, description="shorter prompts are dropped; special tokens not counted")] = 1
    max_tokens: Annotated[int, Field(ge=1, description="longer prompts are cut; special tokens not counted")] = 250
    seed: Annotated[int, Field(ge=0, description="order of the prompts")] = 0
    deduplicate: Annotated[bool, Field(description="drop exact duplicates")] = True
    extract: ExtractConfig = ExtractConfig()
    store: StoreConfig = StoreConfig()
    select: SelectConfig = SelectConfig()
    neighbors: NeighborsConfig = NeighborsConfig()
    cluster: ClusterConfig = ClusterConfig()
    communities: CommunitiesConfig = CommunitiesConfig()
    dbscan: DbscanConfig = DbscanConfig()
    umap: UmapConfig = UmapConfig()
    hdbscan: HdbscanConfig = HdbscanConfig()
    consensus: ConsensusConfig = ConsensusConfig()
    quality: QualityConfig = QualityConfig()
    validation: ValidationConfig = ValidationConfig()
    analyse: AnalyseConfig = AnalyseConfig()
    device: DeviceConfig = DeviceConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    plan: PlanConfig = PlanConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if not self.prompts:
            raise ValueError("prompts: at least one source is needed")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")
        if self.communities.shared_neighbors in (1, 2):
            raise ValueError(
                f"communities.shared_neighbors ({self.communities.shared_neighbors}) must be 3 or more, or 0: a list "
                "holds the feature itself"
            )
        if self.n_neighbors < self._used_neighbors:
            name = max(self._users, key=lambda user: self._users[user])
            raise ValueError(
                f"neighbors.n_neighbors ({self.n_neighbors}) must be at least {name} ({self._used_neighbors})"
            )
        if None not in (self.neighbors.metric, self.umap.metric) and self.neighbors.metric != self.umap.metric:
            raise ValueError(
                f"neighbors.metric ({self.neighbors.metric}) and umap.metric ({self.umap.metric}) differ: set only one "
                "of them"
            )
        method = self.cluster.method
        if method == "distances" and self.metric != "cosine":
            raise ValueError(f"cluster.method=distances clusters on cosine distances, but the metric is {self.metric}")
        dense = "dbscan with dbscan.on=distances" if self.used_dbscan and self.tree_samples else method
        if dense not in ("umap", "dbscan") and self.metric not in SIMILARITIES:
            named = ", ".join(name for name in SIMILARITIES if not name.startswith(CORRECTED))
            raise ValueError(
                f"cluster.method={dense} needs similarities ({named}), but the metric is {self.metric}: set another "
                "metric, or cluster.method=umap"
            )
        if method != "distances" and self.hdbscan.metric == "cosine":
            raise ValueError(
                "hdbscan.metric=cosine needs cluster.method=distances: an embedding is clustered by euclidean"
            )
        if self.tree_samples and self.neighbors.method == "sketch":
            raise ValueError(f"cluster.method={dense} needs exact distances: set neighbors.method=exact or auto")
        if self.neighbors.method == "sketch" and self.metric in (*CORRELATIONS, *ACTIVITY):
            raise ValueError(f"neighbors.method=sketch has no {self.metric}: set the metric to cosine, or method=exact")
        if self.keeps_tokens and self.store.codec != "bitmap":
            raise ValueError(
                f"extract.rows={self.extract.rows} needs store.codec=bitmap, not {self.store.codec}: what fires on "
                "every token is written as sparse rows"
            )
        if self.keeps_tokens and self.neighbors.method == "sketch":
            raise ValueError(
                f"neighbors.method=sketch is of prompts, and extract.rows is {self.extract.rows}: set one of the two "
                "otherwise"
            )
        if self.keeps_tokens and self.metric == "partial_correlation":
            raise ValueError(
                f"partial_correlation takes out the length of prompts, and extract.rows is {self.extract.rows}: set "
                "neighbors.metric=correlation, or cosine"
            )
        if self.device.memory is not None:
            parse_bytes(self.device.memory)
        return self

    @property
    def keeps_tokens(self) -> bool:
        """Whether what fires on every token is kept beside the prompts' activations."""
        return self.extract.rows != "prompt"

    @property
    def used_window(self) -> int | None:
        """Tokens of a row; None where rows are prompts or tokens."""
        return self.extract.window if self.extract.rows == "window" else None

    @property
    def n_contexts(self) -> int:
        """Top contexts of a cluster; 0 where rows are prompts, which its strongest prompts tell of."""
        return self.analyse.top_contexts if self.keeps_tokens else 0

    @property
    def n_members(self) -> int:
        """Clusterings that the consensus is made of; 1 without a consensus."""
        return (self.consensus.members or MEMBERS[self.cluster.method]) if self.cluster.method in MEMBERS else 1

    @property
    def agreement(self) -> float:
        """Mean share of members that put a cluster's pairs together."""
        return self.consensus.agreement or AGREEMENT.get(self.cluster.method, 0.5)

    @property
    def used_communities(self) -> CommunitiesConfig | None:
        """The settings of communities where they are used."""
        return self.communities if self.cluster.method == "communities" else None

    @property
    def shared_neighbors(self) -> int:
        """Length of the lists by which communities compare features; 0 where by their own similarity.

        Features that fire often are near to everything by what does not know chance, as the cosine, and would be in
        every list.
        """
        given = self.communities.shared_neighbors
        return (20 if self.metric in FROM_CHANCE else 0) if given is None else given

    @property
    def graph_neighbors(self) -> int:
        """Neighbours of a feature in the graph of communities, itself included."""
        return self.communities.n_neighbors or (30 if self.shared_neighbors else 20)

    @property
    def used_dbscan(self) -> DbscanConfig | None:
        """The settings of DBSCAN where they are used."""
        return self.dbscan if self.cluster.method == "dbscan" else None

    @property
    def _users(self) -> dict[str, int]:
        """Neighbours that the map, which is there by every method, and the method where it takes some, use."""
        users = {"umap.n_neighbors": self.umap.n_neighbors}
        if self.cluster.method == "communities":
            if self.shared_neighbors:
                users["communities.shared_neighbors"] = self.shared_neighbors
            else:
                users["communities.n_neighbors"] = self.graph_neighbors
        if self.used_dbscan and self.tree_samples:
            users["dbscan.min_samples"] = self.dbscan.min_samples
        return users

    @property
    def _used_neighbors(self) -> int:
        return max(self._users.values())

    @property
    def n_neighbors(self) -> int:
        """Neighbours computed per feature, itself included, where there are so many features."""
        redrawn = self.cluster.method == "communities" or self.n_members > 1
        return self.neighbors.n_neighbors or self._used_neighbors * (self.consensus.candidates if redrawn else 1)

    @property
    def fewest_features(self) -> int:
        """The fewest kept features that every stage can work with."""
        return (
            max(
                self.neighbors.n_neighbors or self.umap.n_neighbors,
                self.hdbscan.min_samples,
                self.hdbscan.min_cluster_size,
                self.dbscan.min_samples if self.used_dbscan else 0,
            )
            + 1
        )

    @property
    def metric(self) -> str:
        """Metric between features; its name says so where it is less what chance leaves (`neighbors.corrected`)."""
        plain = self.cluster.method == "distances" or self.neighbors.method == "sketch"
        usual = "cosine" if plain else "partial_correlation" if self.extract.rows == "prompt" else "correlation"
        given = self.neighbors.metric or self.umap.metric or usual
        return CORRECTED + given if self.neighbors.corrected and given in CORRECTABLE else given

    @property
    def active_above(self) -> float | None:
        """``extract.activation_threshold`` where the metric looks at when features are active; else None."""
        return self.extract.activation_threshold if self.metric in ACTIVITY else None

    @property
    def tree_samples(self) -> int | None:
        """Other features of a core distance in the exact spanning tree of distances and dbscan; None without one."""
        if self.used_dbscan:  # 1 where no other is needed: no pair is nearer than its nearest
            return max(self.dbscan.min_samples - 1, 1) if self.dbscan.on == "distances" else None
        return self.hdbscan.min_samples if self.cluster.method == "distances" else None

    @property
    def halved(self) -> bool:
        """Whether each half of the prompts has neighbours of its own; a sketch has no Gram matrix that adds up."""
        return self.quality.halves and self.neighbors.method != "sketch"

    @property
    def copies_by(self) -> str | None:
        """What makes two features copies of each other: their direction, their column; None where none are sought."""
        if not self.quality.duplicates:
            return None
        scaled = self.metric in SIMILARITIES and not self.active_above  # above 0 a factor changes when they are active
        return "direction" if scaled else "column"

    @property
    def permuted(self) -> bool:
        """Whether permuted activations are clustered; a sketch has no Gram matrix of them."""
        return self.quality.null and self.neighbors.method != "sketch"

    @property
    def device_bytes(self) -> int | None:
        """``device.memory`` in bytes; None where it is not set."""
        return None if self.device.memory is None else parse_bytes(self.device.memory)

    def resolved(self) -> dict[str, Any]:
        """Return all fields as plain data, as written to ``config.yaml``."""
        return self.model_dump(mode="json")
