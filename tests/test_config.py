from __future__ import annotations

import time
from pathlib import Path

import pytest

from gpuclust import cli, config, configfile
from gpuclust.errors import ConfigError


def test_defaults_are_the_demo() -> None:
    c = configfile.load()
    assert (c.model.name, c.sae.path, c.prompts[0].path) == ("demo", "demo", "demo")
    assert configfile.validate(c.resolved()) == c


def test_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("umap: {n_components: 3}\nprompts: [{path: a.txt}]\n")
    c = configfile.load(file, ["umap.min_dist=0", "prompts.0.limit=7", "hdbscan.cluster_selection_method=leaf"])
    assert (c.umap.n_components, c.umap.min_dist, c.prompts[0].limit) == (3, 0.0, 7)
    assert c.hdbscan.cluster_selection_method == "leaf"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("umap.n_component=5", r"unknown key umap.n_component \(did you mean umap.n_components\?\)"),
        ("min_cluster_size=5", r"did you mean hdbscan.min_cluster_size\?"),
        ("umap.n_components=0", r"umap.n_components is 0: .*greater than or equal to 1"),
        ("umap.metric=manhattan", r"umap.metric is 'manhattan'"),
        ("sae.release=x", "release and sae_id belong together|not both"),
        ("select.entropy_low=20", r"entropy_low \(20.0\) must be below entropy_high \(15.0\)"),
        ("device.memory=lots", "device.memory is 'lots': write a positive number and a unit"),
        ("neighbors.n_neighbors=5", r"n_neighbors \(5\) must be at least communities.shared_neighbors \(20\)"),
        (
            "neighbors.metric=dot",
            r"needs similarities \(cosine, correlation, partial_correlation, jaccard, dice, overlap, phi, npmi, lift"
            r"\), but the metric is dot",
        ),
        ("hdbscan.metric=cosine", "needs cluster.method=distances"),
        ("min_tokens=300", r"min_tokens \(300\) must not exceed max_tokens"),
        ("prompts=[]", "at least one source"),
        ("prompts.5.limit=1", "there is no"),
        ("umap", "write key=value"),
        ("n_neighbors=5", r"did you mean neighbors.n_neighbors or communities.n_neighbors or umap.n_neighbors\?"),
        ("umap.random_state=99999999999", r"umap.random_state is 99999999999: .*less than"),
        ("device.memory=1..5GB", r"device.memory is '1..5GB': write a positive number"),
        ("select.entropy_low=.nan", "select.entropy_low is nan: .*finite"),
        ("max_tokens=true", "max_tokens is true: it is no switch"),
        ("umap.n_neighbors=true", "n_neighbors is true: it is no switch"),
        ("umap=", "umap is None: settings with their values"),
        ("prompts=foo.txt", "prompts is 'foo.txt': a list of sources"),
        ("umap.metric=@x", "not valid YAML"),
        ("umap.n_components=2024-99-99", "not valid YAML"),
        ("umap.n_components=" + "9" * 5000, "not valid YAML"),
        ("umap.n_components=" + "9" * 4000, "n_components is 9+...9+: give a number below 9,223"),
        ('model.name="a\\ud800"', r"name is 'a\\ud800', with '\\ud800', which is no text: take it away"),
        ('prompts.0.path="a\\0"', r"path is 'a\\x00', with '\\x00', which is no text"),
    ],
)
def test_wrong_settings_name_the_fix(override: str, message: str) -> None:
    base = {"prompts": [{"path": "a.txt"}]}

    def applied() -> None:
        configfile.override(base, override)
        configfile.validate(base)

    with pytest.raises(ConfigError, match=message):
        applied()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "seed: 3\numap: {min_dist: 2024-99-99}",
            r"'2024-99-99' is no timestamp \(month must be.*in quotes.*\n.*line 2",
        ),
        ("seed: !!bool x", "'x' is no bool"),
        ("seed: 0x_", "'0x_' is no int"),
        ("seed: !!int", "'' is no int"),
        ("seed: !!timestamp x", "'x' is no timestamp"),
        ("seed: !!map 3", "not what its tag says"),
        ("seed: " + "9" * 5000, r"'99999.*' is no int \(Exceeds the limit"),
        ('seed: "\\UFFFFFFFF"', "not what its tag says|escape"),
    ],
)
def test_values_that_yaml_cannot_make_are_said(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        configfile.load(file)


def test_overrides_of_a_part_of_the_demo() -> None:
    c = configfile.load(overrides=["prompts.0.limit=9", "sae.hook_name=blocks.1.hook_mlp_out"])
    assert (c.prompts[0].limit, c.prompts[0].source_column, c.sae.path) == (9, "source", "demo")


def test_without_umap_the_metric_is_cosine() -> None:
    with pytest.raises(ConfigError, match="clusters on cosine distances, but the metric is euclidean"):
        configfile.load(overrides=["cluster.method=distances", "umap.metric=euclidean"])
    with pytest.raises(ConfigError, match=r"metric \(dot\) and umap.metric \(cosine\) differ: set only one"):
        configfile.load(overrides=["neighbors.metric=dot", "umap.metric=cosine"])


def test_null_is_the_name_of_a_check(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("quality: {null: false}\nmodel: {revision: null}\n")
    c = configfile.load(file)
    assert (c.quality.null, c.model.revision) == (False, None)


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"config is 'x.yaml': a Config or a mapping"):
        configfile.validate("x.yaml", where="config")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["[1, 2]", "umap: [", "just words", "umap: {}\nseed: 1\numap: {}"])
def test_unreadable_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"c.yaml"):
        configfile.load(file)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "values, aliases written out"),
        ("a: &a [*a]", "values, aliases written out"),
        ("umap: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("umap:\n" + "".join(" " * i + f"k{i}:\n" for i in range(1, 1000)), "100,000 at most"),
        ("".join(f"k{i}: 1\n" for i in range(100_000)), "100,000 at most"),
        ("".join(f"k{i}: 1\n" for i in range(5_000)), "unknown key k0.*and 4980 more"),
        ("base: {}\nquestions: {}\n", r"unknown key base \(of a sweep: gpuclust sweep FILE\)"),
        ("x: " + "y" * 2_000_000, "100,000 at most"),
        ("- " + ("[" * 300 + "]" * 300 + "\n- ") * 160, "nested too deeply: 50 levels at most"),
        ("[" + "[]," * 30_000 + "]", "more than 20,000 values"),
    ],
)
def test_bombs_are_one_short_error_at_once(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=message) as caught:
        configfile.load(file)
    assert len(str(caught.value)) < 10_000
    assert time.perf_counter() - start < 5  # unbounded without the limits


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000, "9", "-1"])
@pytest.mark.parametrize("key", ["prompts.{}", "prompts.{}.path"])
def test_what_is_no_number_of_a_source_is_refused(key: str, number: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no (section to set '|'.* to set a value in)") as caught:
        configfile.load(overrides=[f"{key.format(number)}=demo"])
    assert len(str(caught.value)) < 200


def test_aliases_are_read(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("umap: {n_neighbors: &n 7, n_components: *n}\n")
    assert configfile.load(file).umap.n_components == 7


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        configfile.load(tmp_path / "none.yaml")


@pytest.mark.parametrize(("text", "expected"), [("6GB", 6 * 10**9), ("1.5 GiB", 3 * 2**29), ("800mb", 8 * 10**8)])
def test_bytes(text: str, expected: int) -> None:
    assert config.parse_bytes(text) == expected


def test_every_field_is_described() -> None:
    for section in config.Config.model_fields.values():
        inner = section.annotation
        if isinstance(inner, type) and issubclass(inner, config.Section):
            assert all(field.description for field in inner.model_fields.values()), inner


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["cluster.method=umap", "communities.resolution=5"], "communities.resolution has no effect with"),
        (["cluster.method=distances", "consensus.members=3"], "consensus.members has no effect with"),
        (["dbscan.eps=0.3"], "dbscan.eps has no effect with cluster.method=communities: take it away, or set another"),
        (
            ["cluster.method=dbscan", "communities.resolution=5", "consensus.agreement=0.4", "dbscan.eps=0.3"],
            "communities.resolution, consensus.agreement have no effect with cluster.method=dbscan: take them away",
        ),
        (["cluster.method=umap", "consensus.members=3", "hdbscan.min_samples=4", "umap.n_epochs=9"], None),
        (["cluster.method=distances", "hdbscan.metric=euclidean"], None),
        (["communities.resolution=5", "hdbscan.min_samples=4", "umap.min_dist=0.1", "consensus.candidates=3"], None),
        (["cluster.method=dbscan", "dbscan.on=embedding"], None),
        ([], None),
    ],
)
def test_settings_that_have_no_effect_are_said_in_one_line(given: list[str], said: str | None) -> None:
    found = configfile.without_effect(configfile.load(overrides=given))
    assert found is None if said is None else found is not None and found.startswith(said)


def test_a_resolved_configuration_gives_no_defaults() -> None:
    resolved = configfile.validate(configfile.load(overrides=["cluster.method=distances"]).resolved())
    assert configfile.without_effect(resolved) is None


def test_commands_say_what_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    sizes = [f"plan.{name}" for name in ("d_in=16", "d_sae=500", "model_bytes=1MB")]
    given = ["run", "--plan", "--set", *sizes, "cluster.method=umap", "dbscan.eps=0.3", "communities.resolution=5"]
    assert cli.main(given) == 0
    lines = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    assert lines == [
        "communities.resolution, dbscan.eps have no effect with cluster.method=umap: take them away, or set another "
        "cluster.method"
    ]


def test_what_was_given_by_set_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"

    def refused(text: str, *overrides: str) -> str:
        file.write_text(text)
        with pytest.raises(ConfigError) as error:
            configfile.load(file, overrides)
        return str(error.value)

    stated = ("plan.d_in=1", "plan.d_sae=1")
    said = refused("seed: 1", *stated, "plan.model_bytes=much")
    assert said.startswith("--set 'plan.model_bytes=much': plan.model_bytes is 'much': write a positive number")
    said = refused("plan: {d_in: 1, d_sae: 1, model_bytes: much}", "seed=2")
    assert said.startswith(f"{file}: plan.model_bytes is 'much'")
    said = refused("seed: 1", *stated)  # of what is wrong together, all
    assert said.startswith("--set 'plan.d_in=1' 'plan.d_sae=1': plan: d_in, d_sae and model_bytes belong together")
    said = refused("seed: [1]", "n_prompts=x", "max_tokens=3")
    assert said.startswith(f"{file} and --set 'n_prompts=x': n_prompts is 'x': ")
    assert "; seed" in said
    with pytest.raises(ConfigError, match=r"^--set 'seed=x': seed is 'x'"):
        configfile.load(overrides=["n_prompts=3", "seed=x"])
    assert configfile.load(file, ["seed=3"]).seed == 3  # what is wrong in the file may be mended
