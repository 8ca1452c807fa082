"""`gpuclust validate --cause`: what is patched, against plain code; the test, on models whose truth is planted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import gpuclust
from gpuclust import schema, show
from gpuclust.compute import causal
from gpuclust.config import Config
from gpuclust.config_sections import ModelConfig
from gpuclust.configfile import validate as validated_config
from gpuclust.engine import cause_changes, cause_rows, causing, validating
from gpuclust.errors import ModelError
from gpuclust.extraction import encoders, patched
from gpuclust.results.run import Run
from gpuclust.validate import main
from tests import tiny

torch.set_num_threads(1)  # small products, beside other tests

# ---------------------------------------------------------------- a model whose truth is planted

WIDTH, READ, VOCABULARY, SIZE, N_OTHERS, LENGTH = 48, 12, 60, 6, 60, 20


class Hook:
    """As a HookPoint."""

    def __init__(self) -> None:
        self.functions: list[Callable[..., Any]] = []

    def add_hook(self, function: Callable[..., Any]) -> None:
        self.functions.append(function)

    def remove_hooks(self, _: str) -> None:
        self.functions.clear()

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        for function in self.functions:
            value = function(value, None)
        return value


class Planted:
    """Embeds tokens, and reads a subspace of what the hook holds, saturating."""

    def __init__(self, embedding: torch.Tensor, unembedding: torch.Tensor) -> None:
        self.embedding, self.unembedding, self.hook_dict = embedding, unembedding, {"hook": Hook()}
        self.rows = 0

    def __call__(self, ids: torch.Tensor, return_type: str | None = None, **_: Any) -> torch.Tensor:
        self.rows += len(ids)
        return torch.tanh(self.hook_dict["hook"](self.embedding[ids]) @ self.unembedding) * 3


class Dictionary:
    """An SAE that knows which features are active on a token by its embedding's length: a table, token to features."""

    def __init__(self, table: torch.Tensor, decoder: torch.Tensor, embedding: torch.Tensor) -> None:
        self.table, self.W_dec, self.embedding, self.cfg = table, decoder, embedding, SimpleNamespace()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.table[torch.cdist(x, self.embedding).argmin(-1)].clone()

    def decode(self, acts: torch.Tensor) -> torch.Tensor:
        return acts @ self.W_dec + 1


class Stored:
    """As the activations of a run, in float16."""

    def __init__(self, values: np.ndarray) -> None:
        self.all = values.astype(np.float16).astype(np.float32)

    def isel(self, prompt: Any, feature: Any) -> Any:
        return SimpleNamespace(values=self.all[prompt][:, feature])


def planted(seed: int, directions: str) -> tuple[cause_rows.Subject, Planted]:
    """Four clusters of SIZE features and others on a model that reads READ of WIDTH dimensions.

    `directions`: ``causes``, the first two write where the model reads and two where it does not; ``alike``, features
    of a cluster write in one direction, drawn as those of others are; ``any``, all features write anywhere; ``apart``,
    and each fires by itself.
    """
    random = np.random.default_rng(seed)
    n = 4 * SIZE + N_OTHERS
    basis = np.linalg.qr(random.standard_normal((WIDTH, WIDTH)))[0]
    unembedding = basis[:, :READ] @ random.standard_normal((READ, VOCABULARY)) / 2
    decoder = random.standard_normal((n, WIDTH))
    label = np.repeat([0, 1, 2, 3, -1], [SIZE] * 4 + [N_OTHERS])
    for cluster in range(4):
        own = label == cluster
        if directions == "causes":
            space = basis[:, :READ] if cluster < 2 else basis[:, READ:]
            decoder[own] = random.standard_normal((SIZE, space.shape[1])) @ space.T
        if directions == "alike":
            decoder[own] = random.standard_normal(WIDTH) + 0.2 * decoder[own]
    decoder *= 0.5 / np.linalg.norm(decoder, axis=1, keepdims=True)
    table = random.random((VOCABULARY, n)) < 0.1
    for cluster in range(4) if directions != "apart" else ():  # features of a cluster on the same tokens
        loud = random.random((VOCABULARY, 1)) < 0.15
        table[:, label == cluster] = (random.random((VOCABULARY, SIZE)) < 0.8) & loud
    table[np.arange(4), np.arange(4) * SIZE] = True
    values = torch.from_numpy(table * random.lognormal(0, 0.2, table.shape)).float()
    error = torch.from_numpy(random.standard_normal((VOCABULARY, WIDTH))).float() * 0.3
    rows = torch.from_numpy(decoder).float()
    embedding = values @ rows + error
    net = Planted(embedding, torch.from_numpy(unembedding).float())
    sae = Dictionary(values, rows, embedding)
    tokenizer = SimpleNamespace(bos_token_id=None, all_special_ids=[])
    model = patched.Patched(tokenizer, "hook", "hook", WIDTH, 99, VOCABULARY, "cpu", {}, net, sae)
    ids = random.integers(VOCABULARY, size=(40, LENGTH))
    acts = np.abs(values.numpy()[ids]).max(axis=1)
    run: Any = SimpleNamespace(
        config=Config(seed=seed),
        prompts=pd.DataFrame({"tokens": list(ids.astype(np.int32))}),
        path=Path("planted"),
        activations=Stored(acts),
    )
    times = (acts > 0).sum(axis=0)
    norm = acts.sum(axis=0) / np.maximum(times, 1) * np.linalg.norm(decoder, axis=1)
    prompt, place = np.nonzero(acts)
    top = (place, prompt, acts[prompt, place])
    return cause_rows.Subject(run, model, np.arange(n), label, times, norm, top), net


PLAN = causing.Plan(np.arange(4), np.zeros(4), 16, 4, "")
TAKEN_OUT = causing.Cause(10_000)


def found(x: cause_rows.Subject, cause: causing.Cause = TAKEN_OUT) -> pd.DataFrame:
    """What is measured of the four clusters, and p."""
    meter = patched.Meter(cause.budget)
    null = causing._null(x, PLAN, cause, meter)
    assert len(null) == 16
    tried = [causing._tried(x, np.flatnonzero(x.label == cluster), cause, meter, [cluster]) for cluster in range(4)]
    table = pd.DataFrame(tried)
    return table.assign(cause_p=causal.chance(np.log(table["cause_excess"].to_numpy()), np.log(null)))


@pytest.mark.slow
def test_two_that_cause_are_told_from_two_that_do_not() -> None:
    """Over 20 seeds, of which each has two of both."""
    p = np.array([found(planted(seed, "causes")[0])["cause_p"] for seed in range(20)])
    assert (p[:, :2] < 0.05).mean() >= 0.95
    assert (p[:, 2:] < 0.05).mean() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("directions", "most"), [("apart", 9), ("any", 18), ("alike", 18)])
def test_chance_is_not_called_cause(directions: str, most: int) -> None:
    """80 clusters that act as others do: of random sets 5% have p below 0.05 (more than 9 of 80 with a chance of 0.8%).

    Of features that fire together, and write in few directions, more do, since random sets fire apart: what the guide
    says of it is held here.
    """
    p = np.concatenate([found(planted(100 + seed, directions)[0])["cause_p"] for seed in range(20)])
    assert (p < 0.05).sum() <= most
    assert 0.3 < (p < 0.5).mean() < 0.7


def test_what_is_measured_is_as_by_hand() -> None:
    x, net = planted(0, "causes")
    table = found(x, causing.Cause(10_000, amplify=2))
    own = np.flatnonzero(x.label == 0)
    rows = cause_rows.rows(x, own, patched.Meter(10))
    kl, told, flipped = [], [], []
    for row in rows:
        acts = x.model._sae.table[row.ids]
        at = np.flatnonzero((acts[:, own] > 0).any(1).numpy())
        assert row.at.tolist() == at.tolist()
        value = net.embedding[row.ids]
        written = acts[:, own] @ x.model._sae.W_dec[own]
        clean, doubled, without = (
            (torch.tanh(v @ net.unembedding) * 3).double().softmax(-1)
            for v in (value, value + written, value - written)
        )
        kl.append(sum(float((clean[t] * (clean[t] / doubled[t]).log()).sum()) for t in range(LENGTH)) / len(at))
        flipped.append(sum(float((clean[t] * (clean[t] / without[t]).log()).sum()) for t in range(LENGTH)) / len(at))
        told.append(
            sum(float((doubled[t, n] / clean[t, n]).log()) for t, n in enumerate(row.ids[1:].tolist())) / len(at)
        )
    np.testing.assert_allclose(table["cause_kl"][0], np.mean(kl), rtol=1e-4)
    np.testing.assert_allclose(table["cause_kl_flipped"][0], np.mean(flipped), rtol=1e-4)
    np.testing.assert_allclose(table["cause_logprob"][0], np.mean(told), rtol=1e-3)


def test_features_that_write_alike_change_the_output_alike() -> None:
    table = found(planted(1, "alike")[0])
    assert (table["cause_same_direction"] > 0.6).all()
    assert (table["cause_same_direction"] > table["cause_same_direction_random"] + 0.3).all()


def test_passes_are_counted_and_never_more_than_may_be() -> None:
    x, net = planted(0, "causes")
    meter, own = patched.Meter(1000), np.arange(SIZE)
    causing._tried(x, own, TAKEN_OUT, meter, [0])
    assert net.rows == meter.spent == cause_changes.passes(np.array([SIZE]), 40)[0]
    causing._tried(x, own, TAKEN_OUT, meter, [0], alone=True)
    assert net.rows == meter.spent == cause_changes.passes(np.array([SIZE]), 40)[0] + cause_changes.null_passes(40)
    for most in (0, 3, 40):
        net.rows, meter = 0, patched.Meter(most)
        with pytest.raises(patched.OverspentError):
            causing._tried(x, own, TAKEN_OUT, meter, [0])
        assert net.rows == meter.spent <= most


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    x, net = planted(2, "causes")
    expected = found(x)
    own = type(net).__call__

    def narrow(self: Planted, ids: torch.Tensor, **more: Any) -> torch.Tensor:
        if len(ids) > 6:
            raise MemoryError
        return own(self, ids, **more)

    monkeypatch.setattr(Planted, "__call__", narrow)
    pd.testing.assert_frame_equal(found(x), expected, rtol=1e-4)
    assert "out of memory" in caplog.text


def test_activations_of_another_model_are_refused() -> None:
    x, _ = planted(0, "causes")
    run: Any = x.run
    assert cause_rows.rows(x, np.arange(SIZE), patched.Meter(10), check=True)
    run.activations = Stored(run.activations.all[::-1])
    with pytest.raises(ModelError, match="is not what the run was made with"):
        cause_rows.rows(x, np.arange(SIZE), patched.Meter(10), check=True)


def test_a_cluster_that_is_never_active_has_no_row() -> None:
    x, net = planted(0, "causes")
    x.model._sae.table[:, :SIZE] = 0
    assert causing._tried(x, np.arange(SIZE), TAKEN_OUT, patched.Meter(10), [0]) is None
    assert net.rows == cause_rows.PROMPTS
    assert causing._tried(x, np.array([], int), TAKEN_OUT, patched.Meter(10), [0]) is None


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("shape", [(30, 12), (8, 40)])
def test_a_turned_change_keeps_norms_and_angles(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    acts = random.lognormal(size=(shape[0], 5)) * (random.random((shape[0], 5)) < 0.5)
    change = acts @ random.standard_normal((5, shape[1]))
    to = random.standard_normal((6, shape[1]))
    turned = causal.turned(causal.parts(change), to)
    np.testing.assert_allclose(turned @ turned.T, change @ change.T, atol=1e-4)
    assert np.linalg.matrix_rank(np.concatenate([turned, to[:5]]), tol=1e-3) == 5
    one = causal.turned(causal.parts(np.outer(acts[:, 0], to[0])), to[1:2])
    unit = to[1] / np.linalg.norm(to[1])
    np.testing.assert_allclose(one, np.outer(acts[:, 0] * np.linalg.norm(to[0]), unit), atol=1e-4)


def test_controls_fire_and_write_about_as_much_and_are_no_mates() -> None:
    random = np.random.default_rng(0)
    times, norm = random.permutation(500), random.permutation(500) / 7
    own, others = np.arange(30), np.arange(30, 500)
    drawn = np.stack([causal.alike(own, others, times, norm, random) for _ in range(40)])
    assert drawn.min() >= 30
    assert all(len(set(one)) == 30 for one in drawn.tolist())
    by_chance = np.abs(times[own] - times[random.choice(others, (40, 30))]).mean()
    assert np.abs(times[own] - times[drawn]).mean() < by_chance / 3
    assert np.abs(norm[own] - norm[drawn]).mean() < by_chance / 7 / 3
    assert len(np.unique(drawn[:, 0])) > 5
    assert causal.alike(own, others[:2], times, norm, random).shape == (30,)


def test_other_features_are_taken_by_priority_and_made_as_long() -> None:
    from scipy.sparse import csr_array

    random = np.random.default_rng(0)
    dense = random.random((30, 12)) * (random.random((30, 12)) < 0.4)
    count, priority = random.integers(0, 5, 30), random.random(12)
    kept = causal.first(csr_array(dense), count, priority).toarray()
    for row, n, out in zip(dense, count, kept, strict=True):
        own = np.flatnonzero(row)
        own = own[np.argsort(priority[own])][:n]
        expected = np.zeros(12)
        expected[own] = row[own]
        np.testing.assert_array_equal(out, expected)
    like = random.standard_normal((30, 7))
    long = causal.as_long(np.vstack([np.zeros((1, 7)), like[::-1][1:]]), like)
    np.testing.assert_allclose(np.linalg.norm(long, axis=1)[1:], np.linalg.norm(like, axis=1)[1:], rtol=1e-5)
    assert not long[0].any()


def test_like_features_come_first() -> None:
    random = np.random.default_rng(0)
    times, norm = random.permutation(500), random.permutation(500)
    own = np.argsort(np.abs(times - 100) + np.abs(norm - 400))[:3]
    order = np.argsort(causal.priorities(own, times, norm, random))[:20]
    assert np.abs(times[order] - 100).mean() < 80
    assert np.abs(norm[order] - 400).mean() < 80
    again = np.argsort(causal.priorities(own, times, norm, random))[:20]
    assert set(again.tolist()) != set(order.tolist())


def test_the_chance_is_students() -> None:
    from scipy import stats

    null = np.random.default_rng(0).standard_normal(8)
    own = np.array([2.5, np.nan])
    # a new observation against a sample: the pooled two-sample t of one against eight
    expected = stats.ttest_ind(own[:1], null, alternative="greater").pvalue
    np.testing.assert_allclose(causal.chance(own, null), [expected, np.nan])
    assert causal.chance(np.zeros(1), np.zeros(8)) == 0.5


def test_cosines_are_of_pairs() -> None:
    shift = np.random.default_rng(0).standard_normal((4, 30))
    unit = shift / np.linalg.norm(shift, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(4) for j in range(i)]
    np.testing.assert_allclose(causal.same_direction(np.vstack([shift, np.zeros(30)])), np.mean(pairs))
    assert np.isnan(causal.same_direction(shift[:1]))


# ---------------------------------------------------------------- real models


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.build(tmp_path_factory.mktemp("tiny"))


def with_sae(settings: dict[str, Any], folder: Path, **changed: Any) -> Config:
    """The configuration with an SAE whose settings are others."""
    shutil.copytree(settings["sae"]["path"], folder)
    about = json.loads((folder / "cfg.json").read_text())
    about["metadata"] |= changed.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(about | changed))
    return validated_config({**settings, "sae": {"path": str(folder)}})


@pytest.mark.parametrize("scaling", ["none", "layer_norm", "constant_norm_rescale"])
def test_what_features_write_is_what_the_sae_without_them_leaves_out(
    settings: dict[str, Any], tmp_path: Path, scaling: str
) -> None:
    config = with_sae(settings, tmp_path / "sae", normalize_activations=scaling)
    model = patched.load_patched(config)
    ids = torch.arange(5, 17)
    residual = model.residual(ids)
    expected = encoders.load_encoder(config).residual(ids[None], torch.ones(1, 12))[0]
    torch.testing.assert_close(residual, expected)
    with torch.no_grad():
        acts = model.encode(residual)
    features = np.flatnonzero((acts > 0).any(0).numpy())[:4]
    scale = {
        "none": torch.ones(12, 1),
        "layer_norm": (residual - residual.mean(-1, keepdim=True)).std(-1, keepdim=True),
        "constant_norm_rescale": residual.norm(dim=-1, keepdim=True) / tiny.WIDTH**0.5,
    }[scaling]
    by_hand = acts[:, features] @ model._sae.W_dec[features] * scale
    np.testing.assert_allclose(model.written(residual, features), by_hand.numpy(), atol=1e-4)
    np.testing.assert_array_equal(model.directions(features), model._sae.W_dec[features].numpy())


def test_a_topk_decoder_that_divides_by_its_norms_has_unit_directions() -> None:
    import sae_lens

    sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=8, d_sae=12, k=3, rescale_acts_by_decoder_norm=True)).eval()
    torch.nn.init.normal_(sae.W_dec)
    sae.requires_grad_(False)
    model = patched.Patched(None, "", "", 8, 9, 9, "cpu", {}, None, sae)
    residual = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    acts = sae.encode(residual)
    features = np.arange(12)
    np.testing.assert_allclose(model.written(residual, features), acts.numpy() @ model.directions(features), atol=1e-5)


def test_the_output_is_that_of_transformers_with_the_change_put_in(settings: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    model = patched.load_patched(validated_config(settings))
    ids = torch.arange(5, 17)
    change = torch.randn(2, 12, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    change[0] = 0
    net = AutoModelForCausalLM.from_pretrained(settings["model"]["name"]).eval()

    def add(module: Any, args: Any, output: Any) -> Any:
        first = (output[0] if isinstance(output, tuple) else output) + change
        return (first, *output[1:]) if isinstance(output, tuple) else first

    net.gpt_neox.layers[1].register_forward_hook(add)
    with torch.no_grad():
        expected = net(ids.expand(2, -1)).logits
    torch.testing.assert_close(model.logits(ids, change), expected, atol=1e-4, rtol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(settings["model"]["name"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.logits(ids, change)[0], plain(ids[None]).logits[0], atol=1e-4, rtol=1e-4)


def test_a_transcoder_is_changed_where_it_writes(settings: dict[str, Any], tmp_path: Path) -> None:
    about = {"hook_name": "blocks.1.ln2.hook_normalized", "hook_name_out": "blocks.1.hook_mlp_out"}
    config = with_sae(settings, tmp_path / "sae", metadata=about)
    model = patched.load_patched(config)
    assert (model.reads, model.writes) == (about["hook_name"], about["hook_name_out"])
    clean = model.logits(torch.arange(5), torch.zeros(1, 5, tiny.WIDTH))
    assert not torch.equal(model.logits(torch.arange(5), torch.ones(1, 5, tiny.WIDTH)), clean)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("blocks.1.attn.hook_pattern", "a value for every pair of tokens"),
        ("blocks.1.attn.hook_attn_scores", "a value for every pair of tokens"),
        ("blocks.1.mlp.hook_post", "what features write has no place there"),
        ("blocks.1.hook_nowhere", "does not have"),
    ],
)
def test_hooks_that_cannot_be_changed_are_refused(
    settings: dict[str, Any], tmp_path: Path, hook: str, words: str
) -> None:
    config = with_sae(settings, tmp_path / "sae", metadata={"hook_name_out": hook})
    with pytest.raises(ModelError, match=words):
        patched.load_patched(config)


def test_an_sae_without_decoder_is_refused(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuclust.extraction import weights

    own = weights.load_sae

    def bare(config: Any) -> Any:
        sae, metadata = own(config)
        del sae.W_dec
        return sae, metadata

    monkeypatch.setattr(weights, "load_sae", bare)
    with pytest.raises(ModelError, match="no decoder"):
        patched.load_patched(validated_config(settings))


def test_a_hook_that_the_output_does_not_depend_on_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patched.Patched, "logits", lambda self, ids, changes: torch.zeros(2, 1, 5))
    with pytest.raises(ModelError, match="does not reach the output"):
        patched.load_patched(validated_config(settings))


# ---------------------------------------------------------------- the command


@pytest.fixture
def out(small_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_run, tmp_path / "out")
    return tmp_path / "out"


def test_the_command_says_what_it_costs_and_keeps_to_it(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = gpuclust.open_run(out)
    n = int((run.clusters["cluster"] >= 0).sum())
    assert n >= 2
    before = (out / schema.VALIDATION_FACTS).read_bytes()
    assert main([str(out), "--cause", "--plan"]) == 0
    assert "forward passes of one prompt a cluster" in " ".join(capsys.readouterr().out.split())
    assert (out / schema.VALIDATION_FACTS).read_bytes() == before
    planned = causing.plan(run, causing.Cause(0x7FFF))
    sets = causing.FEWEST * cause_changes.null_passes(len(run.prompts))
    budget = int(sets + planned.passes[0] + planned.passes[1] // 2)
    assert main([str(out), "--cause", "--budget", str(budget)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"the budget of {budget} reaches 1 of {n} clusters" in said
    assert "taken out at blocks.1.hook_resid_post" in said
    table = gpuclust.open_run(out).validation
    facts = json.loads((out / schema.VALIDATION_FACTS).read_text())["cause"]
    assert facts["passes"] <= budget
    assert facts["tried"] == table["cause_kl"].notna().sum() >= 1
    first = planned.clusters[0]
    table_of = run.clusters.set_index("cluster").drop(-1)
    rank = table_of["verdict"].map({"stable": 0, "fragile": 1}).fillna(2)[planned.clusters].to_numpy()
    assert (np.diff(rank) >= 0).all()  # those whose word it can change first, and of these the most stable
    assert all((np.diff(table_of["stability"][planned.clusters[rank == r]]) <= 0).all() for r in range(3))
    row = table.set_index("cluster").loc[first]
    assert row["cause_kl"] > 0
    assert row["cause_passes"] <= planned.passes[0]
    assert table["prediction"].notna().any()  # the run's own, which stays
    assert show.main([str(out), "--cluster", str(first)]) == 0
    assert "taken out of the model" in " ".join(capsys.readouterr().out.split())


def test_stable_clusters_come_first_and_doubtful_ones_last(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = gpuclust.open_run(out).clusters.head(5).assign(
        cluster=[-1, 0, 1, 2, 3], stability=[np.nan, 0.9, 0.2, 0.6, 0.3],
        verdict=[None, "no better than random", "stable", "stable", "fragile"],
    )  # fmt: skip
    monkeypatch.setattr(Run, "clusters", clusters)
    assert causing.plan(gpuclust.open_run(out), causing.Cause()).clusters.tolist() == [2, 1, 3, 0]


def test_what_is_amplified_is_no_test() -> None:
    values: dict[str, Any] = {"level": ["token"], "prediction_q": [0.01], "cause_q": [0.01]}
    empty = {name: [None] for name in schema.VALIDATION_COLUMNS}
    quality = pd.DataFrame({"verdict": ["stable"], "verdict_reason": ["as measured"]})
    words = [
        validating._judged(pd.DataFrame(empty | values), quality, amplified)["evidence"][0]
        for amplified in (False, True)
    ]
    assert words == ["real", "supported"]


def test_it_is_not_run_unless_asked_for(out: Path) -> None:
    facts = validating.validate(out)
    assert "cause" not in facts


def test_without_the_model_the_other_parts_still_run(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = gpuclust.open_run(out).config.model_copy(update={"model": ModelConfig(name=str(out / "gone"))})
    monkeypatch.setattr(Run, "config", gone)
    facts = validating.validate(out, ["prediction", "cause"])
    table = gpuclust.open_run(out).validation
    assert "gone" in facts["left_out"]["cause"]
    assert "left out cause" in caplog.text
    assert table["prediction"].notna().any()
    assert table["cause_kl"].isna().all()


@pytest.mark.parametrize("what", ["budget", "amplify", "without cause", "imported", "tokens"])
def test_what_cannot_be_done_is_refused(
    what: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--cause"]
    if what == "budget":
        told, words = [*told, "--budget", "5"], "random sets and the first cluster take up to"
    elif what == "amplify":
        told, words = [*told, "--amplify", "1"], "which changes nothing"
    elif what == "without cause":
        told, words = ["--budget", "500"], "are of --cause"
    elif what == "imported":
        folder = tmp_path / "imported"
        np.save(tmp_path / "a.npy", gpuclust.open_run(out).activations.values)
        gpuclust.import_activations(tmp_path / "a.npy", folder, {"select": {"sparsity_max": 1.01}})
        from gpuclust import run

        out, words = tmp_path / "of", "there is no model to run"
        assert run.main(["--reuse", str(folder), "--out", str(out), "--scheduler", "threads", "--quiet"]) == 0
    else:
        prompts = gpuclust.open_run(out).prompts
        prompts["tokens"] = prompts["tokens"].map(lambda ids: ids[:-1])
        monkeypatch.setattr(Run, "prompts", prompts)
        words = "they are not those of the run"
    assert main([str(out), *told]) == 2
    captured = capsys.readouterr()
    assert words in " ".join((captured.out + captured.err).split())
