"""Flipped bits, cut and lost files: found before they are used, by whoever reads; made anew by the same command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

import gpuclust
from gpuclust import cli, configfile, schema, stage_table
from gpuclust.configfile import validate
from gpuclust.engine.execute import execute
from gpuclust.engine.reuse import link
from gpuclust.errors import CorruptDataError, GpuclustError, StoreError
from gpuclust.storage import checksums, store, verifying
from gpuclust.storage.record import write_record
from gpuclust.storage.run_folder import Folder, read_settings
from tests import tiny
from tests.test_folder import go

READERS = {
    schema.FEATURES: "features", schema.CLUSTERS: "clusters", schema.PROMPTS: "prompts", schema.EXAMPLES: "examples",
    schema.EXAMPLE_SPANS: "example_spans", schema.CLUSTER_SIMILARITY: "cluster_similarity",
    schema.THEMES: "themes",
    f"{schema.NEIGHBORS}/indices/c/0/0": "neighbors", f"{schema.EMBEDDING}/embedding/c/0/0": "embedding",
    f"{schema.CLUSTER_ACTIVATIONS}/activation/c/0/0": "cluster_activations",
    f"{schema.ACTIVATIONS}/feature/c/0": "activations",
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = tiny.build(tmp_path_factory.mktemp("tiny"))
    return found | {"quality": {"null": False, "decoder": False, "random_sets": 2}, "consensus": {"members": 1}}


@pytest.fixture(scope="module")
def original(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go(tmp_path_factory.mktemp("finished"), settings)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "out")
    return tmp_path / "out"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def stages(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / schema.RECORD).read_text())["stages"]
    return found


def test_every_file_but_shards_has_a_checksum_in_the_record(original: Path) -> None:
    known = {place for entry in stages(original).values() for place in entry["checksums"]}
    there = {path.relative_to(original).as_posix() for path in original.rglob("*") if path.is_file()}
    unknown = {place for place in there - known if not place.startswith(checksums.OWN)}
    assert unknown == {schema.CONFIG, schema.RECORD, schema.LOCK} & there
    assert known <= there


def test_a_stage_with_a_damaged_file_is_not_done(run: Path, original: Path) -> None:
    folder = Folder(run, gpuclust.open_run(run).config)
    tried = 0
    for name, entry in stages(run).items():
        files = stage_table.get(name).writes(gpuclust.open_run(run).config)
        assert folder.done(name, entry["key"], files)
        for place in entry["checksums"]:
            flip(run / place)
            assert not folder.done(name, entry["key"], files), place
            shutil.copy(original / place, run / place)
            assert folder.done(name, entry["key"], files), place
            tried += 1
    assert tried > 20


@pytest.mark.parametrize("place", READERS)
def test_no_reader_takes_a_damaged_file(place: str, run: Path) -> None:
    flip(run / place)
    opened = gpuclust.open_run(run)
    with pytest.raises(CorruptDataError, match=r"is not what the stage \w+ wrote: it fails its checksum"):
        getattr(opened, READERS[place])


def test_the_same_command_makes_anew_what_is_damaged(run: Path, original: Path, settings: dict[str, Any]) -> None:
    flip(run / schema.NEIGHBORS / "distances" / "c" / "0" / "0")
    flip(run / schema.CLUSTERS)
    go(run.parent, settings)
    before, after = stages(original), stages(run)
    assert before["select"] == after["select"]
    assert before["neighbors"]["finished"] <= after["neighbors"]["finished"]
    opened, was = gpuclust.open_run(run), gpuclust.open_run(original)
    np.testing.assert_array_equal(opened.neighbors["distances"], was.neighbors["distances"])
    assert opened.clusters.equals(was.clusters) or opened.clusters["size"].equals(was.clusters["size"])
    assert verifying.damages(run) == []


def spoil(file: Path, how: str) -> None:
    if how == "flipped":
        flip(file)
    elif how == "lost":
        file.unlink()
    elif how == "zeros":
        file.write_bytes(bytes(file.stat().st_size))
    else:
        file.write_bytes(file.read_bytes()[: -9 if how == "cut" else 0])


TEMPLATE = [
    f"{schema.ACTIVATIONS}/{name}" for name in ("zarr.json", "activations/zarr.json", "feature/c/0", "prompt/zarr.json")
]


@pytest.mark.parametrize("how", ["flipped", "empty"])
@pytest.mark.parametrize("place", [*TEMPLATE, f"{schema.SHARDS}/00001.json", schema.CONFIG])
def test_the_same_command_mends_what_a_run_is_read_by(
    place: str, how: str, run: Path, original: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Template, markers and configuration: refused by readers in one line, made anew, and no shard is lost by it."""
    spoil(run / place, how)
    if place in TEMPLATE:
        for command in (["export", str(run), str(run.parent / "copy")], ["verify", str(run)]):
            assert cli.main(command) == 1
        assert "Traceback" not in capsys.readouterr().err
        with pytest.raises(GpuclustError):
            _ = gpuclust.open_run(run).activations
    go(run.parent, settings)
    if place != f"{schema.SHARDS}/00001.json" or how in ("cut", "empty"):  # else verify compares it
        assert (run / place).read_bytes() == (original / place).read_bytes()
        assert verifying.damages(run) == []
    assert stages(run)["extract"].get("shards_computed", 0) <= max(1, stages(original)["extract"]["shards_computed"])
    np.testing.assert_array_equal(gpuclust.open_run(run).activations, gpuclust.open_run(original).activations)


def test_shards_of_other_settings_are_left_alone_where_the_template_is_damaged(
    run: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The extraction was stopped, its template is damaged, and the settings are others now."""
    record = json.loads((run / schema.RECORD).read_text())
    record["stages"] = {"prompts": record["stages"]["prompts"]}
    write_record(run / schema.RECORD, record)
    spoil(run / schema.ACTIVATIONS / "zarr.json", "empty")
    before = {file: file.read_bytes() for file in (run / schema.SHARDS).iterdir()}
    go(run.parent, settings | {"extract": {"aggregate": "mean"}}, code=2)
    assert "shards that were computed with other settings" in " ".join(capsys.readouterr().err.split())
    assert all(file.read_bytes() == content for file, content in before.items())
    go(run.parent, settings)
    assert stages(run)["extract"]["shards_computed"] == 0


@pytest.mark.parametrize("how", ["flip", "empty", "lost", "list"])
def test_a_damaged_record_is_said_and_begun_anew(
    how: str, run: Path, original: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Of a run whose record is damaged nothing is lost but time: its shards have markers of their own."""
    record = run / schema.RECORD
    if how == "flip":
        record.write_text(record.read_text().replace('"rows"', '"rovs"', 1))  # a name, which nobody asks for
    elif how == "list":
        record.write_text("[]")
    else:
        spoil(record, how)
    if how != "lost":
        with pytest.raises(CorruptDataError, match=r"run\.json is damaged"):
            _ = gpuclust.open_run(run).record
    go(run.parent, settings | {"umap": {"n_components": 4}}, code=2)  # another run's settings are refused as before
    assert "holds another run: umap.n_components is" in " ".join(capsys.readouterr().err.split())
    go(run.parent, settings)
    assert f"run.json is {'missing' if how == 'lost' else 'damaged'}" in caplog.text
    assert stages(run)["extract"]["shards_computed"] == 0
    for name in (schema.FEATURES, schema.CLUSTERS, schema.EXAMPLES):
        assert str(store.read_table(run / name).to_dict()) == str(store.read_table(original / name).to_dict()), name
    assert verifying.damages(run) == []


def test_a_lost_record_and_other_prompts_are_refused_before_anything_is_written(
    run: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """And where the prompts are put back, the run goes on."""
    file = Path(settings["prompts"][0]["path"])
    whole, before = file.read_text(), (run / schema.PROMPTS).read_bytes()
    (run / schema.RECORD).unlink()
    try:
        file.write_text(whole.replace("a", "b", 1))
        for _ in range(2):
            go(run.parent, settings, code=2)
            assert "computed with other prompts, and its run.json is lost" in " ".join(capsys.readouterr().err.split())
            assert (run / schema.PROMPTS).read_bytes() == before
    finally:
        file.write_text(whole)
    go(run.parent, settings)
    assert stages(run)["extract"]["shards_computed"] == 0


def test_an_imported_run_whose_record_is_lost_is_only_made_anew_from_its_own_cache(tmp_path: Path) -> None:
    import torch

    config = {"select": {"sparsity_max": 1.0}, "quality": {"null": False}, "consensus": {"members": 1}}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        acts = torch.randn(40, 64, generator=torch.Generator().manual_seed(ord(name))).relu()
        torch.save({"acts": acts, "prompts": [f"{name} {i}" for i in range(40)]}, tmp_path / name / "cache.pt")
    out = tmp_path / "out"
    gpuclust.import_cache(tmp_path / "a" / "cache.pt", out, config)
    before = (out / schema.PROMPTS).read_bytes()
    (out / schema.RECORD).unlink()
    with pytest.raises(StoreError, match="holds another cache's run"):
        gpuclust.import_cache(tmp_path / "b" / "cache.pt", out, config)
    assert (out / schema.PROMPTS).read_bytes() == before
    again = gpuclust.import_cache(tmp_path / "a" / "cache.pt", out, config)
    assert again.prompts["text"].iloc[0] == "a 0"


@pytest.mark.parametrize("how", ["flipped", "lost", "gone", "record"])
def test_activations_of_another_run_are_only_read(
    how: str, run: Path, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked = tmp_path / "two" / "out"
    linked.parent.mkdir()
    link(run, linked)
    shard = run / schema.ACTIVATIONS / "activations" / "c" / "1" / "0"
    if how == "gone":
        run.rename(tmp_path / "away")
    elif how == "record":
        (linked / schema.RECORD).unlink()
    else:
        spoil(shard, how)
        verifying.forget(linked, "extract")
    before = shard.read_bytes() if shard.exists() else None
    go(linked.parent, settings, code=0 if how == "record" else 2)
    if how != "record":
        said = " ".join(capsys.readouterr().err.split())
        assert "only reads the activations of" in said
        assert "Traceback" not in said
    assert (shard.read_bytes() if shard.exists() else None) == before
    assert (linked / schema.ACTIVATIONS).is_symlink()
    assert (linked / schema.SHARDS).is_symlink()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("config",), "x"), (("stages", "analyse", "checksums"), 5), (("stages", "extract", "key"), None),
        (("stages", "reduce", "files"), ["a"]), (("stages", "reduce", "files"), {"a": "b"}),
        (("stages", "prompts", "attributes"), []), (("stages", "prompts", "warnings"), 1),
        (("stages", "prompts", "versions"), "1"),
    ],
)  # fmt: skip
def test_a_record_that_was_edited_is_damaged(
    place: tuple[str, ...], value: Any, run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((run / schema.RECORD).read_text())
    record.pop("checksum")
    (run / schema.RECORD).write_text(json.dumps(record))  # as nothing in it says what it was
    assert cli.main(["verify", str(run)]) == 0
    inner = record
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (run / schema.RECORD).write_text(json.dumps(record))
    capsys.readouterr()
    for command in (["verify", str(run)], ["show", str(run)], ["report", str(run)]):
        assert cli.main(command) == 1
        assert "run.json is damaged: it holds no record of a run." in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", ["[" * 200_000, '{"stages": {"prompts": 5}}', '{"stages": 3}', "null"])
def test_a_record_that_is_none_is_damaged(content: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / schema.RECORD).write_text(content)
    assert cli.main(["verify", str(run)]) == 1
    assert "run.json is damaged" in " ".join(capsys.readouterr().err.split())
    (run / schema.RECORD).unlink()
    assert cli.main(["verify", str(run)]) == 1
    assert "run.json is missing. The run's own command begins it anew" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("seal", ["[" * 100_000, "{}", "[]", '"x"', "", "{", '{"a.npz": [1, 2]}'])
def test_what_is_sealed_is_only_what_its_seal_says(seal: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"abc")
    checksums.seal(tmp_path / "a.npz")
    assert checksums.sealed(tmp_path / "a.npz")
    (tmp_path / "a.npz.crc").write_text(seal)
    assert not checksums.sealed(tmp_path / "a.npz")


@pytest.mark.parametrize("how", ["cut", "empty", "lost", "zeros"])
def test_the_same_command_computes_a_shard_anew_that_is_not_whole(
    how: str, run: Path, original: Path, settings: dict[str, Any]
) -> None:
    place = f"{schema.ACTIVATIONS}/activations/c/1/0"
    spoil(run / place, how)
    with pytest.raises(CorruptDataError, match="c/1/0"):
        _ = gpuclust.open_run(run).activations
    assert cli.main(["export", str(run), str(run.parent / "copy")]) == 1
    if how == "zeros":  # of the same size, so that no resume sees it
        assert cli.main(["verify", str(run)]) == 1
    go(run.parent, settings)
    assert (run / place).read_bytes() == (original / place).read_bytes()
    assert stages(run)["extract"]["shards_computed"] == 1


@pytest.mark.parametrize(
    "content", ["[" * 5000, "a: !!bool x", "a: 2024-99-99", "a: 1\na: 2", "a: &a [*a]", "[]", "\0"]
)
def test_a_configuration_that_is_none_is_damaged(content: str, run: Path, tmp_path: Path) -> None:
    (run / schema.CONFIG).write_text(content)
    with pytest.raises(StoreError, match=r"config.yaml is damaged.*Restore it, or give another --out"):
        read_settings(run / schema.CONFIG)
    assert cli.main(["verify", str(run)]) == 1
    (run / schema.RECORD).unlink()
    assert cli.main(["verify", str(run)]) == 1


def test_a_configuration_with_every_default_written_out_is_read(tmp_path: Path) -> None:
    written = validate({"prompts": [{"path": f"{i}.txt"} for i in range(3000)]}).resolved()
    text = yaml.safe_dump(written, sort_keys=False)
    assert len(text) > configfile.LARGEST
    (tmp_path / "config.yaml").write_text(text)
    assert read_settings(tmp_path / "config.yaml") == written


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
@pytest.mark.parametrize("place", [schema.FEATURES, schema.CLUSTER_SIMILARITY, f"{schema.NEIGHBORS}/feature/c/0"])
def test_reports_cards_and_comparisons_take_nothing_damaged(
    place: str, how: str, run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run / place, how)
    before = (run / schema.REPORT).read_bytes()
    readers = [["report", str(run)]]
    if not place.startswith(schema.NEIGHBORS):
        readers.append(["show", str(run)])
    if place == schema.FEATURES:
        readers.append(["compare", str(run), str(original)])
    for command in readers:
        assert cli.main(command) == (2 if how == "lost" and not place.startswith(schema.NEIGHBORS) else 1), command
        said = " ".join(capsys.readouterr().err.split())
        assert said.startswith("error: "), said
        assert "The run's own command makes" in said, said
    assert (run / schema.REPORT).read_bytes() == before


@pytest.mark.parametrize("content", [None, "[" * 100_000])
def test_a_lost_marker_is_found_and_its_shard_computed_anew(
    run: Path, settings: dict[str, Any], content: str | None
) -> None:
    (run / schema.SHARDS / "00001.json").unlink()
    if content is not None:
        (run / schema.SHARDS / "00001.json").write_text(content)
    place = f"{schema.SHARDS}/00001.json" if content is None else f"{schema.ACTIVATIONS}/activations/c/1/0"
    assert [damage.place for damage in verifying.damages(run)] == [place]
    go(run.parent, settings)
    assert stages(run)["extract"]["shards_computed"] == 1
    assert verifying.damages(run) == []


@pytest.mark.parametrize("name", ["state", schema.SHARDS])
def test_a_file_in_the_way_of_a_folder_is_said(
    name: str, run: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / name)
    (run / name).write_text("a file")
    go(run.parent, settings, code=2)
    assert f"{run / name} is no folder, but one of that name is needed" in " ".join(capsys.readouterr().err.split())
    (run / name).unlink()
    go(run.parent, settings)
    assert verifying.damages(run) == []


def test_a_report_written_again_is_not_damaged(run: Path) -> None:
    (run / f"{schema.REPORT}.99999999.tmp").write_text("left by a killed process")
    assert cli.main(["report", str(run)]) == 0
    assert cli.main(["verify", str(run)]) == 0
    assert not list(run.glob("*.tmp"))


def test_a_damaged_configuration_is_said_by_verify_and_not_used(
    run: Path, original: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / schema.CONFIG).write_text("seed: 1\n")
    assert gpuclust.open_run(run).config == gpuclust.open_run(original).config
    assert cli.main(["verify", str(run)]) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert "configuration: config.yaml is not what run.json holds" in said
    assert cli.main(["report", str(run)]) == 0


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
def test_a_damaged_shard_is_found_and_computed_anew(
    how: str, run: Path, original: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{schema.ACTIVATIONS}/activations/c/1/0"
    if how == "flipped":
        flip(run / place)
    elif how == "cut":
        (run / place).write_bytes((run / place).read_bytes()[:-9])
    else:
        (run / place).unlink()
    assert cli.main(["verify", str(run)]) == 1
    said = " ".join("".join(capsys.readouterr()).split())
    assert f"extract: {place} the activations file does not match its checksum" in said
    assert (
        "1 file damaged. The run's own command makes anew what is damaged, in the stages extract, reduce, select"
        in said
    )
    go(run.parent, settings)
    assert (run / place).read_bytes() == (original / place).read_bytes()
    assert stages(run)["extract"]["shards_computed"] == 1
    assert cli.main(["verify", str(run)]) == 0
    assert "11 stages, nothing is damaged" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("how", ["lost", "empty"])
def test_a_run_whose_shard_is_gone_does_not_read_zeros(how: str, run: Path) -> None:
    file = run / schema.ACTIVATIONS / "activations" / "c" / "1" / "0"
    file.unlink() if how == "lost" else file.write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"c/1/0 is missing or empty. Run `gpuclust verify"):
        _ = gpuclust.open_run(run).activations


def test_a_stage_that_meets_a_damaged_shard_has_it_computed_anew_next_time(
    run: Path, original: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{schema.ACTIVATIONS}/activations/c/0/0"
    flip(run / place)
    (run / schema.NEIGHBORS / "zarr.json").unlink()
    go(run.parent, settings, code=1)
    assert "computes the shards anew that are damaged" in " ".join(capsys.readouterr().err.split())
    go(run.parent, settings)
    assert (run / place).read_bytes() == (original / place).read_bytes()
    assert list(stages(run)) == list(stage_table.NAMES)


def test_imported_activations_that_are_damaged_have_to_be_imported_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    values = torch.rand(80, 40)
    torch.save({"acts": values, "prompts": [f"prompt {i}" for i in range(80)]}, tmp_path / "cache.pt")
    config = {"cluster": {"method": "distances"}, "hdbscan": {"min_cluster_size": 3, "min_samples": 2}}
    config |= {"select": {"sparsity_max": 2.0}, "consensus": {"members": 1}, "quality": {"random_sets": 2}}
    run = gpuclust.import_cache(tmp_path / "cache.pt", tmp_path / "run", config, "threads").path
    assert cli.main(["verify", str(run)]) == 0
    flip(run / schema.ACTIVATIONS / "activations" / "c" / "0" / "0")
    assert cli.main(["verify", str(run)]) == 1
    assert "import them again" in " ".join(capsys.readouterr().err.split())


def test_a_run_on_activations_of_another_that_are_gone_says_so(run: Path) -> None:
    verifying.forget(run, "extract")
    config = gpuclust.open_run(run).config
    with pytest.raises(
        StoreError, match=r"has lost its activations: its record has no stage extract. Delete that folder"
    ):
        execute(config, Folder(run, config), "threads", Console(quiet=True), quiet=True, report=False, imported=True)


def test_what_is_no_run_cannot_be_verified(tmp_path: Path) -> None:
    assert cli.main(["verify", str(tmp_path)]) == 2
