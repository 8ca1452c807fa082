from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gpuclust import plan as planning_command
from gpuclust import run as command
from gpuclust.configfile import load, validate
from gpuclust.engine import planning
from gpuclust.errors import ConfigError, ModelError
from gpuclust.extraction import encoders, model_sizes, weights
from gpuclust.hardware import backend

STATED = {"d_in": 512, "d_sae": 32_768, "model_bytes": "0.15GB"}


def test_stated_shapes_need_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "describe", lambda config: pytest.fail("asked"))
    found = model_sizes.facts(validate({"plan": STATED}))
    assert (found["d_in"], found["d_sae"], found["model_bytes"]) == (512, 32_768, 150_000_000)
    assert found["sae_bytes"] == 4 * 512 * 32_768
    with pytest.raises(ConfigError, match="d_in, d_sae and model_bytes belong together"):
        validate({"plan": {"d_in": 512}})
    with pytest.raises(ConfigError, match=r"plan.model_bytes is 'much'"):
        validate({"plan": STATED | {"model_bytes": "much"}})


def test_out_of_reach_says_how_to_state_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(config: Any) -> Any:
        raise ModelError("cannot load the SAE")

    monkeypatch.setattr(encoders, "describe", unreachable)
    with pytest.raises(ModelError, match=r"cannot load the SAE. --plan also does with stated shapes: set plan.d_in"):
        model_sizes.facts(load())


def test_a_hub_out_of_reach_is_one_message(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import logging as hub_logging

    def unreachable(config: Any) -> Any:
        with weights.explained("the configuration of the SAE a b", "sae.path"):
            try:
                raise OfflineModeIsEnabled("no")
            except OfflineModeIsEnabled as error:
                for _ in range(5):
                    logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
                raise LocalEntryNotFoundError(
                    "An error happened. Please check your connection and try again"
                ) from error

    monkeypatch.setattr(encoders, "describe", unreachable)
    level = hub_logging.get_verbosity()
    assert planning_command.main(["--set", "sae.release=a", "sae.sae_id=b", "sae.path=null"]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert "cannot load the configuration of the SAE a b: the hub is out of reach. Set HF_HOME to a cache" in line
    assert line.endswith("such as --set plan.d_in=768 plan.d_sae=24576 plan.model_bytes=0.5GB")
    assert hub_logging.get_verbosity() == level


def test_bytes_of_the_model_have_a_unit_or_are_many() -> None:
    assert model_sizes.facts(validate({"plan": STATED | {"model_bytes": 500_000_000}}))["model_bytes"] == 500_000_000
    assert validate({"plan": STATED | {"model_bytes": 500_000_000}}).resolved()["plan"]["model_bytes"] == "500000000B"
    for bad in (5, 0.5, 1.5e9, -2):
        with pytest.raises(ConfigError, match=rf"plan.model_bytes is '{bad}': write a positive number and a unit"):
            validate({"plan": STATED | {"model_bytes": bad}})
    assert validate({"device": {"memory": 150_000_000}}).device_bytes == 150_000_000
    with pytest.raises(ConfigError, match=r"device.memory is '6': write a positive number and a unit, such as 6GB"):
        validate({"device": {"memory": 6}})


def test_shapes_of_the_demo_are_what_is_loaded() -> None:
    config = load()
    found, encoder = model_sizes.facts(config), encoders.load_encoder(config)
    assert (found["d_in"], found["d_sae"]) == (encoder.d_in, encoder.d_sae)
    assert encoder.model_bytes <= found["model_bytes"] < 1.3 * encoder.model_bytes
    assert found["sae_bytes"] == pytest.approx(encoder.sae_bytes, rel=0.02)


@pytest.mark.parametrize("name", ["pythia-70m", "llama-scope-131k"])
def test_configurations_are_planned_for_a_gpu_offline(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parent.parent / "configs" / f"{name}.yaml"
    arguments = ["--config", str(file), "--plan", "--scheduler", "local-cuda", "--set", "n_prompts=100000"]
    assert command.main([*arguments, "device.memory=6GB"]) == 0
    said = capsys.readouterr().out
    assert "GPU peak" in said
    assert "100,000 prompts" in said
    assert command.main([*arguments, "device.memory=1GB"]) == 2
    assert "stage extract needs" in capsys.readouterr().err
    assert command.main(arguments) == 2
    assert "needs a budget where there is no GPU: --set device.memory=6GB" in capsys.readouterr().err


def test_a_plan_where_there_is_a_gpu_takes_what_is_free(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usable = backend.CudaStatus(True, "1 CUDA device(s) and RAPIDS are there")
    monkeypatch.setattr(planning, "cuda_status", lambda: usable)
    monkeypatch.setattr(planning, "choose", lambda name: ("local-cuda", "there is one"))
    monkeypatch.setattr(planning, "free_bytes", lambda: 7 * 10**9)
    stated = [f"plan.{name}={value}" for name, value in STATED.items()]
    assert command.main(["--plan", "--set", *stated]) == 0
    assert "7.00 GB of its GPU" in " ".join(capsys.readouterr().out.split())
