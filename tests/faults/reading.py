"""Everything that reads a run: the properties of `open_run`, the commands; each with a digest of what it says."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.subject import Subject, differences, run_command

Read = Callable[[Path], str]


def digest(*values: Any) -> str:
    """Hash what a reader returned: tables, arrays, figures, cards, plain data."""
    return hashlib.sha256("\0".join(map(_text, values)).encode()).hexdigest()[:16]


def _text(value: Any) -> str:
    import numpy as np

    kind = type(value).__name__
    if kind == "DataFrame":
        return json.dumps({str(c): _plain(value[c].tolist()) for c in value}, default=str)
    if kind == "Series":
        return json.dumps(_plain(value.tolist()), default=str)
    if kind == "Dataset":
        return "".join(f"{name}{_text(value[name])}" for name in sorted(map(str, value.variables)))
    if kind == "DataArray":
        return f"{value.dims}{_text(value.values)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if kind == "Figure":
        return str(value.to_json())
    if kind == "Card":
        return _text(
            [value.title, value.row, value.facts, value.words, list(map(str, value.prompts)), value.link]
        ) + "".join(_text(table) for _, table in value.tables)
    if kind == "Config":
        return json.dumps(value.resolved(), sort_keys=True, default=str)
    if kind == "AnnData":
        return _text(value.X.toarray()) + _text(value.obs) + _text(value.var) + _text(value.obsp["distances"].toarray())
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value, sort_keys=True, default=str)


def _plain(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray | list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _properties() -> dict[str, Callable[[Any], Any]]:
    names = (
        "config", "record", "activations", "features", "clusters", "prompts", "examples", "example_spans",
        "cluster_similarity", "neighbors", "embedding", "cluster_activations", "neuronpedia_id",
    )  # fmt: skip
    found: dict[str, Callable[[Any], Any]] = {f".{name}": (lambda run, name=name: getattr(run, name)) for name in names}
    return found | {
        "repr": repr,
        ".map()": lambda run: run.map(),
        ".entropy_plot()": lambda run: run.entropy_plot(),
        ".cluster(0)": lambda run: run.cluster(0),
        ".feature(3)": lambda run: run.feature(3),
        ".to_anndata()": lambda run: run.to_anndata(),
    }


PROPERTIES = _properties()
RUN_AGAIN, MENDED = "run again", "verify, run again"
LEFT = "not looked at, verify finds it: "
COMMANDS = ("show", "show --cluster --feature", "report", "export", "compare", "verify", RUN_AGAIN, MENDED)


def properties(path: Path) -> Iterator[dict[str, Any]]:
    """Read each property of a run, opened anew for each; yield a row for it."""
    from gpuclust import open_run
    from gpuclust.errors import GpuclustError

    for name, get in PROPERTIES.items():
        try:
            yield {"reader": name, "kind": "ok", "digest": digest(get(open_run(path))), "said": ""}
        except GpuclustError as error:
            yield {"reader": name, "kind": "refused", "said": str(error)}
        except Exception:
            yield {"reader": name, "kind": "traceback", "said": _last(traceback.format_exc())}


def commands(subject: Subject, damaged: Path, names: tuple[str, ...] = COMMANDS) -> Iterator[dict[str, Any]]:
    """Run each command on a fresh copy of a damaged run at `subject.out`; yield a row for it."""
    for name in names:
        subject.wipe()
        shutil.copytree(damaged, subject.out, symlinks=True)
        yield command(subject, name)


def command(subject: Subject, name: str) -> dict[str, Any]:
    """Run one command on what is at `subject.out`."""
    from gpuclust import cli

    out, extra = subject.out, subject.work / "extra"
    arguments = {
        "show": ["show", out], "show --cluster --feature": ["show", out, "--cluster", 0, "--feature", 3],
        "report": ["report", out], "export": ["export", out, extra], "verify": ["verify", out],
        "compare": ["compare", subject.other, out, "--out", extra],
    }.get(name)  # fmt: skip
    if arguments is None:
        return _again(subject) if name == RUN_AGAIN else _mended(subject)
    code, text = captured(lambda: cli.main([str(one) for one in arguments]))
    row = {"reader": name, "kind": kind_of(code, text), "said": _last(text), "code": code}
    if row["kind"] == "ok":
        more: list[Any] = []
        if name == "export":
            more = _arrays(extra)
        elif name == "report":
            more = [hashlib.sha256((out / "report.html").read_bytes()).hexdigest()]
        elif name == "compare":
            more = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(extra.iterdir())]
        row["digest"] = digest(text, more)
    return row


def _arrays(store: Path) -> list[Any]:
    import zarr

    group = zarr.open_group(store, mode="r")
    return [json.dumps(dict(group.attrs), sort_keys=True), *(array[...] for _, array in sorted(group.arrays()))]


def _again(subject: Subject) -> dict[str, Any]:
    """The run's own command, twice if the first says that it is worth it; equal tables afterwards are a repair."""
    said = []
    for _ in range(2):
        code, text = captured(lambda: run_command(subject, subject.out))
        said.append(_last(text))
        if code != 1 or "Traceback (most recent call last)" in text:
            break
    from gpuclust import cli

    row: dict[str, Any] = {"reader": RUN_AGAIN, "kind": kind_of(code, text), "said": " / ".join(said), "code": code}
    if row["kind"] == "ok":
        try:
            unlike = list(differences(subject.finished, subject.out))
        except Exception as error:
            unlike = [f"what is left cannot be read: {type(error).__name__}: {str(error)[:300]}"]
        row["digest"] = "; ".join(unlike[:3])
        of_shards = ("activations.zarr/activations", "shards/", "what is left")
        if unlike and all(line.startswith(of_shards) for line in unlike):
            code, _ = captured(lambda: cli.main(["verify", str(subject.out)]))
            row["digest"] = f"{LEFT}{row['digest']}" if code == 1 else row["digest"]
    return row


def _mended(subject: Subject) -> dict[str, Any]:
    """What `verify` advises, the run's own command after it, and then `verify` again, which must be content."""
    from gpuclust import cli

    first, text = captured(lambda: cli.main(["verify", str(subject.out)]))
    if kind_of(first, text) == "traceback" or first == 2:
        return {"reader": MENDED, "kind": kind_of(first, text), "said": _last(text)}
    row = _again(subject) | {"reader": MENDED}
    if row["kind"] == "ok" and first == 1:
        code, text = captured(lambda: cli.main(["verify", str(subject.out)]))
        if code != 0:
            row["digest"] = f"verify still says: {_last(text)}; {row['digest']}"
    return row


def kind_of(code: object, text: str) -> str:
    """ok, refused or traceback."""
    if "Traceback (most recent call last)" in text or code not in (0, 1, 2):
        return "traceback"
    return "ok" if code == 0 else "refused"


def captured(work: Callable[[], object]) -> tuple[object, str]:
    """Run a function with all output to memory; its exit code, and the text."""
    text = io.StringIO()
    code: object
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = work()
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = "raised"
    return code, text.getvalue()


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = next((line for line in reversed(lines) if line.startswith("error:")), None)
    return (own or (lines[-1] if lines else ""))[:600].replace(os.getcwd(), ".")
