"""Cards: what is known of one cluster or one feature, for notebooks and the terminal."""

from __future__ import annotations

import json
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpuclust import schema
from gpuclust.errors import InputError
from gpuclust.formatting import plain
from gpuclust.results import noise
from gpuclust.results.figures import describe
from gpuclust.storage import validated
from gpuclust.tables import words
from gpuclust.tables.prompt_text import show
from gpuclust.terminal import visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

    from gpuclust.results.run import Run

NEURONPEDIA = "https://www.neuronpedia.org"
AROUND = 200  # characters on either side of a peak
WORDS_SHOWN = 8  # at which a feature peaks
FEATURES_SHOWN = 20  # features of a cluster that are listed
FIRING_SHOWN = 6  # features of a context
NEAREST_SHOWN = 10  # neighbours of a feature
DISTINCTIVE = "most distinctive prompts, by strength relative to the other clusters"
STRONGEST = "strongest prompts"
OTHERS = "strongest prompts that are not among these"
TOGETHER = {
    "token": "on the same token", "near": "within 16 tokens", "topic": "in the same prompt only",
    "none": "no more than matched features, on a token",
}  # fmt: skip
NUMBERS = ("persistence", "mean_activation", "max_activation", "std_activation", "sparsity")
# Columns that a cluster's card places itself, or leaves out; other numbers and words follow them.
PLACED = {
    *NUMBERS, "cluster", "size", "ratio", "name", "tree_node", "similarity_rank", "decoder_cosine",
    "decoder_cosine_random", "decoder_cosine_p",
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is shown; `marks` are (start, stop) in `text`, sorted."""

    text: str
    marks: Sequence[tuple[int, int]]
    about: str

    def parts(self) -> Iterator[tuple[str, bool]]:
        """Yield pieces of the text, and whether they are marked."""
        at = 0
        for start, stop in self.marks:
            if start >= at:
                yield self.text[at:start], False
                yield self.text[start:stop], True
                at = stop
        yield self.text[at:], False


@dataclass(frozen=True, repr=False)
class Card:
    """A cluster or a feature, shown as a table in Jupyter and in the terminal.

    Attributes
    ----------
    title : str
    row : Series
        Its row of ``clusters.parquet`` or ``features.parquet``.
    facts : list of (str, str)
    words : list of (str, list of str)
        Keywords, tokens …
    prompts : list of (str, list of Prompt)
        By what they were chosen, and the prompts.
    tables : list of (str, DataFrame)
        Features of a cluster, neighbours of a feature.
    link : str or None
        Neuronpedia's page, where the SAE has an id there.
    """

    title: str
    row: pd.Series[Any]
    facts: list[tuple[str, str]]
    words: list[tuple[str, list[str]]] = field(default_factory=list)
    prompts: list[tuple[str, list[Prompt]]] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    link: str | None = None

    def __repr__(self) -> str:
        return f"{self.title}\n" + "\n".join(f"  {name}: {value}" for name, value in self.facts)

    def _repr_html_(self) -> str:
        """What Jupyter shows. All text is escaped."""
        facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in self.facts)
        words = "".join(f"<p><b>{escape(name)}</b> {escape(' · '.join(found))}</p>" for name, found in self.words)
        prompts = "".join(
            f"<p><b>{escape(name)}</b></p>{''.join(map(_prompt_html, found))}" for name, found in self.prompts
        )
        tables = "".join(
            f"<p><b>{escape(name)}</b></p>{table.to_html(index=False, escape=True, border=0)}"
            for name, table in self.tables
        )
        link = f'<p><a href="{escape(self.link)}" rel="noopener">Neuronpedia</a></p>' if self.link else ""
        return (
            f'<div style="max-width:60rem"><h4>{escape(self.title)}</h4>{link}<table>{facts}</table>{words}'
            f"{prompts}{tables}</div>"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """What the terminal shows; without colours, what is marked stands in «»."""
        from rich.table import Table
        from rich.text import Text

        facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
        facts.add_column(style="dim")
        for name, value in self.facts:
            facts.add_row(name, Text(visible(value)))
        parts: list[RenderableType] = [Text(visible(self.title), style="bold"), facts]
        for name, found in self.words:
            parts.append(Text.assemble((f"{name}  ", "dim"), visible(" · ".join(found))))
        marks = "«{}»" if console.color_system is None else "{}"
        for name, chosen in self.prompts:
            parts.append(Text(f"\n{visible(name)}", style="bold"))
            for prompt in chosen:
                if not prompt.text:
                    parts.append(Text(visible(prompt.about), style="dim"))
                    continue
                text = Text("\n")
                for piece, marked in prompt.parts():
                    text.append(*((marks.format(visible(piece)), "bold reverse") if marked else (visible(piece), "")))
                parts += [text, Text(visible(prompt.about), style="dim")]
        for name, frame in self.tables:
            table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
            for column in frame.columns:
                numeric = pd.api.types.is_numeric_dtype(frame[column])
                table.add_column(str(column), justify="right" if numeric else "left")
            for row in frame.itertuples(index=False, name=None):
                table.add_row(*(Text(plain(value) if isinstance(value, float) else str(value)) for value in row))
            parts += [Text(f"\n{name}", style="bold"), table]
        if self.link:
            parts.append(Text(f"\n{self.link}"))
        yield from parts


def _prompt_html(prompt: Prompt) -> str:
    marked = (f"<mark>{escape(text)}</mark>" if is_marked else escape(text) for text, is_marked in prompt.parts())
    return f"<p>{''.join(marked)}{'<br>' if prompt.text else ''}<small>{escape(prompt.about)}</small></p>"


def cluster_card(run: Run, number: int) -> Card:
    """Describe a cluster of a run; see `Run.cluster`."""
    known = run.clusters[run.clusters["cluster"] != schema.NOISE].set_index("cluster", drop=False)
    if number not in known.index:
        raise InputError(f"{run.path} has no cluster {number}; it has {len(known)}, numbered from 0")
    row: Any = known.loc[number]
    facts = [("features", f"{row['size']:,} ({row['ratio']:.1%} of the kept)")]
    facts += [(name.replace("_", " "), plain(row[name])) for name in NUMBERS]
    if "decoder_cosine" in row and pd.notna(row["decoder_cosine"]):
        random = f"{plain(row['decoder_cosine_random'])} in random sets, p = {plain(row['decoder_cosine_p'])}"
        facts.append(("decoder cosine", f"{plain(row['decoder_cosine'])} ({random})"))
    others = [
        name for name in known.columns if name not in PLACED and isinstance(row[name], str | float | int | np.generic)
    ]
    facts += [(name.replace("_", " "), plain(row[name])) for name in others]
    facts += _validated(run, number)
    facts += [("sources", ", ".join(f"{s['source']} {s['share']:.0%}" for s in _listed(row.get("sources"))[:5]))]
    names = {"tokens": "peak at", "keywords": "words of its prompts", "promoted_tokens": "promotes"}
    words = [(name, [str(w) for w in _listed(row.get(column))]) for column, name in names.items()]
    own = _features_of(run, number)
    return Card(
        title=describe(row),
        row=row,
        facts=[(name, value) for name, value in facts if value],
        words=[(name, found) for name, found in words if found],
        prompts=_contexts(run, number, row["size"])
        + _cluster_prompts(_listed(row.get("distinctive_prompts")), _listed(row.get("top_prompts"))),
        tables=[(f"features ({min(len(own), FEATURES_SHOWN)} of {len(own)})", own.head(FEATURES_SHOWN))],
        link=quick_list(run.neuronpedia_id, own["feature"].tolist(), f"cluster {number}"),
    )


def feature_card(run: Run, number: int, n_prompts: int = 5) -> Card:
    """Describe a feature of a run; see `Run.feature`.

    Parameters
    ----------
    run : Run
    number : int
        The feature's, in the SAE.
    n_prompts : int
        Strongest prompts that are shown, at most.
    """
    features = run.features.set_index("feature", drop=False)
    if number not in features.index:
        raise InputError(f"{run.path} has no feature {number}; it has {len(features)}, numbered from 0")
    row: Any = features.loc[number]
    columns = ["entropy", "varentropy", "sparsity", "mean", "std", "max"]
    facts = [(name, plain(row[name])) for name in columns]
    facts.insert(0, ("active on", f"{row['n_active']:,} prompts"))
    tables = []
    if row["kept"]:
        cluster: Any = run.clusters.set_index("cluster", drop=False).loc[int(row["label"])]
        facts = [("in", describe(cluster)), *_verdict(cluster), ("probability", plain(row["probability"])),
                 ("quadrant", str(row["quadrant"])), *facts]  # fmt: skip
        if isinstance(reason := row.get("noise_reason"), str):
            known = noise.explained(run.config.hdbscan.min_cluster_size)
            facts.insert(1, ("why", known.get(reason, reason)))
        point = row.get("duplicate_of")
        if pd.notna(point):
            facts.insert(0, ("exact duplicate of", f"feature {point}, with whose neighbours it is clustered"))
        near = run.neighbors.sel(feature=number if pd.isna(point) else point)
        found = pd.DataFrame({"feature": near["indices"].values[1:], "distance": near["distances"].values[1:]})
        found["cluster"] = features["label"].reindex(found["feature"]).to_numpy()
        left = len(found) - NEAREST_SHOWN
        what = (
            f"{NEAREST_SHOWN} nearest features, {left:,} more in {schema.NEIGHBORS}" if left > 0 else "nearest features"
        )
        tables = [(what, found.head(NEAREST_SHOWN))]
    else:
        facts.insert(0, ("in", "no cluster: removed by the filter"))
    link = f"{NEURONPEDIA}/{run.neuronpedia_id}/{number}" if run.neuronpedia_id else None
    examples = run.examples[run.examples["feature"] == number]
    spans = run.example_spans.loc[examples.index]
    peaks = _peak_words(run, examples, spans)
    prompts = _examples(run, examples.head(n_prompts), spans.head(n_prompts))
    return Card(
        title=f"feature {number}",
        row=row,
        facts=facts,
        words=[(f"peaks in its {len(examples)} strongest prompts at", peaks)] if peaks else [],
        prompts=[(STRONGEST, prompts)] if prompts else [],
        tables=tables,
        link=link,
    )


def quick_list(neuronpedia_id: str | None, features: Sequence[int], name: str) -> str | None:
    """Return the address of a Neuronpedia quick list of features, or None where the SAE has no id there.

    Parameters
    ----------
    neuronpedia_id : str or None
        Model and SAE, such as ``pythia-70m/3-res-sm``.
    features : sequence of int
    name : str
        Of the list.

    Examples
    --------
    >>> urllib.parse.unquote(quick_list("pythia-70m/3-res-sm", [17], "mine"))[39:]
    '?name=mine&features=[{"modelId": "pythia-70m", "layer": "3-res-sm", "index": "17"}]'
    """
    model, slash, layer = (neuronpedia_id or "").partition("/")
    if not slash:
        return None
    rows = [{"modelId": model, "layer": layer, "index": str(feature)} for feature in features]
    return f"{NEURONPEDIA}/quick-list/?name={urllib.parse.quote(name)}&features={urllib.parse.quote(json.dumps(rows))}"


def _features_of(run: Run, number: int) -> pd.DataFrame:
    """The cluster's features, surest first."""
    mine = run.features[run.features["label"] == number]
    return mine.sort_values("probability", ascending=False)[["feature", "probability", "max", "sparsity", "entropy"]]


def _verdict(cluster: Any) -> list[tuple[str, str]]:
    """Whether its cluster holds; nothing for noise, and where that was not measured."""
    verdict, reason = cluster.get("verdict"), cluster.get("verdict_reason")
    if not isinstance(verdict, str):
        return []
    return [("verdict on that", f"{verdict}: {reason}" if isinstance(reason, str) else verdict)]


def _validated(run: Run, number: int) -> list[tuple[str, str]]:
    """What `gpuclust validate` found of a cluster, where it was run."""
    found = validated.read(run.path, run.record["stages"])
    if found is None:
        return []
    row: Any = found[0].set_index("cluster").loc[number]
    facts = []
    if pd.notna(row["prediction"]):
        random, words = plain(row["prediction_random"]), plain(row["prediction_words"])
        told = f"AUROC {plain(row['prediction'])} (random mates {random}; words, length and source alone {words})"
        facts.append(("told by mates in other prompts", told))
        given, by_chance = plain(row["prediction_given_words"]), plain(row["prediction_given_words_random"])
        facts.append(
            ("given these words", f"AUROC {given} (random mates {by_chance}; q = {plain(row['prediction_q'])})")
        )
    if pd.notna(row["level"]):
        name = {"token": "token", "near": "near", "topic": "prompt"}.get(row["level"], "token")
        excess = f"{plain(row[f'{name}_excess'])} times as often as random sets"
        interval = f"{plain(row[f'{name}_low'])} to {plain(row[f'{name}_high'])}"
        facts.append(("fire together", f"{TOGETHER[row['level']]}: {excess}, {interval}"))
    if pd.notna(row.get("cause_kl")):
        kl = [plain(row[f"cause_kl{end}"]) for end in ("", "_random", "_flipped", "_noise")]
        factor = found[1]["cause"]["amplify"]
        done = f"times {factor:g} in the model" if factor else "taken out of the model"
        told = f"KL {kl[0]} nats per active token (other features there {kl[1]}, flipped {kl[2]}, noise {kl[3]}"
        told += f"; q = {plain(row['cause_q'])})" if pd.notna(row["cause_q"]) else ")"
        facts.append((done, f"{told}, log-probability of the text {plain(row['cause_logprob'])}"))
        if pd.notna(row["cause_same_direction"]):
            others = plain(row["cause_same_direction_random"])
            told = f"cosine {plain(row['cause_same_direction'])} (other features {others})"
            facts.append(("single features change the output alike", told))
    return facts


def _contexts(run: Run, number: int, size: int) -> list[tuple[str, list[Prompt]]]:
    """Where most of its features fire at once, of a run whose rows are tokens or windows."""
    if schema.CONTEXTS not in run.record["stages"].get("analyse", {}).get("files", {}):
        return []
    shown = []
    for row in run.contexts[run.contexts["cluster"] == number].to_dict("records"):
        which = ", ".join(map(str, row["features"][:FIRING_SHOWN]))
        which += f" and {row['n_features'] - FIRING_SHOWN} more" * (row["n_features"] > FIRING_SHOWN)
        source = run.prompts["source"].iat[row["prompt"]]
        about = f"{row['n_features']} of {size} features: {which}; prompt {row['prompt']}, {source}"
        about += "" if row["text"] else f", {_by_number(row['position'], len(row['tokens']))}"
        marks = [(row["start"], row["stop"])] if row["start"] >= 0 else []
        shown.append(Prompt(row["text"], marks, about))
    return [(f"{run.config.extract.rows}s on which most of its features fire at once", shown)] if shown else []


def _by_number(position: int, n: int) -> str:
    """Which tokens a row has, where there is no text; between those of a window some may be left out."""
    return f"the token at position {position}" if n == 1 else f"{n} tokens from position {position} on"


def _cluster_prompts(distinctive: list[Any], strongest: list[Any]) -> list[tuple[str, list[Prompt]]]:
    """Both kinds, none twice: what is distinctive and among the strongest says so."""
    if not distinctive:
        return [(STRONGEST, [_cluster_prompt(prompt) for prompt in strongest])] if strongest else []
    both = {prompt["prompt"] for prompt in distinctive} & {prompt["prompt"] for prompt in strongest}
    first = [_cluster_prompt(prompt, ", among the strongest" * (prompt["prompt"] in both)) for prompt in distinctive]
    others = [_cluster_prompt(prompt) for prompt in strongest if prompt["prompt"] not in both]
    return [(DISTINCTIVE, first), *([(OTHERS, others)] if others else [])]


def _cluster_prompt(prompt: dict[str, Any], more: str = "") -> Prompt:
    marks = sorted((mark["start"], mark["stop"]) for mark in _listed(prompt.get("marks")))
    about = f"prompt {prompt['prompt']}, {prompt['source']}, mean |a| {plain(prompt['activation'])}{more}"
    return Prompt(prompt["text"], marks, about)


def _peak_words(run: Run, examples: pd.DataFrame, spans: pd.DataFrame) -> list[str]:
    """Words at which a feature peaks, and in how many of the prompts, most first; differences of case count as one."""
    found: Counter[str] = Counter()
    spelled: dict[str, str] = {}
    for prompt, start, stop in zip(examples["prompt"], spans["start"], spans["stop"], strict=True):
        text = str(run.prompts["text"].iat[prompt])
        if start >= 0 and (word := words.word_at(text, start, stop, words.segments(text))):
            found[words.folded(word)] += 1
            spelled.setdefault(words.folded(word), word)
    return [f"{spelled[word]} ({n})" for word, n in found.most_common(WORDS_SHOWN)]


def _examples(run: Run, examples: pd.DataFrame, spans: pd.DataFrame) -> list[Prompt]:
    """A feature's prompts, around their peaks."""
    prompts = []
    for row, start, stop in zip(examples.to_dict("records"), spans["start"], spans["stop"], strict=True):
        text, source = (str(run.prompts[name].iat[row["prompt"]]) for name in ("text", "source"))
        window = (max(0, start - AROUND), stop + AROUND) if start >= 0 else (0, 2 * AROUND)
        first, last = (words.boundary(text, at) for at in window)
        shown = show(text[first:last])
        lead, tail = "… " if first else "", " …" if last < len(text) else ""
        a, b = shown.span(start - first, stop - first)
        marks = [(a + len(lead), b + len(lead))] if start >= 0 else []
        about = f"prompt {row['prompt']}, {source}, activation {plain(row['value'])}"
        prompts.append(Prompt(f"{lead}{shown.text}{tail}", marks, about))
    return prompts


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | np.ndarray) else []
