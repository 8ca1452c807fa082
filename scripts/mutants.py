"""Does a test notice? Each mutant is one wrong line; the tests that should notice it run on a copy of the repository.

    python scripts/mutants.py [--only NAME ...] [--list] [--jobs N]

A mutant is *killed* when a test fails, it *survived* when all pass, and it is *broken* when the tests do not run, or
take too long. First the same tests run without any mutant: they must pass. Exit code 0: all were killed; 1: some were
not; 2: the list does not fit the code, or tests fail without a mutant.

To add a mutant, add a record to `MUTANTS`: `old` must be there exactly once in `file`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "tests", "configs", "pyproject.toml")
SECONDS = 600  # a mutant's tests may take, on a busy machine
ALL_SECONDS = 3600  # and all of them together, without a mutant
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"


@dataclass(frozen=True)
class Mutant:
    """One change that some test must notice.

    Attributes
    ----------
    name, why : str
        What `--only` takes, and what would be wrong.
    file : str
        Module of the package.
    old, new : str
        Text that is there once, and what takes its place.
    tests : str
        Test files, or tests of theirs, without the folder; parted by blanks.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    why: str

    @property
    def path(self) -> Path:
        return Path("src/gpuclust") / self.file


ARITHMETIC = "test_budget_arithmetic.py"


def constant(name: str, value: str, file: str = "hardware/budget.py", tests: str = ARITHMETIC) -> list[Mutant]:
    """A constant that is 0, and one that is 1."""
    why = f"{name} counts for nothing"
    return [Mutant(f"{name}={n}", file, f"\n{name} = {value}", f"\n{name} = {n}", tests, why) for n in (0, 1)]


MUTANTS = [
    # ------------------------------------------------------------ memory: constants of the projections
    *constant("PROCESS", "1_800_000_000"),
    *constant("PROCESS_CUDA", "3_000_000_000"),
    *constant("SLABS", "6 * 8 * (1 << 20)"),
    *constant("ENCODE", "3 * (256 << 20)"),
    *constant("DEVICE_ENCODE", "3 * (128 << 20)"),
    *constant("BACK", "2 * (128 << 20)"),
    *constant("MOMENT_SLABS", "4 * (128 << 20) + 9 * 8 * (1 << 22)"),
    *constant("SUMS", "2 * 8 * (1 << 22)"),
    Mutant("UMAP_WORK=0", "hardware/budget.py", "HDBSCAN_WORK = 300_000_000,", "HDBSCAN_WORK = 0,", ARITHMETIC,
           "no workspace"),
    Mutant("HDBSCAN_WORK=0", "hardware/budget.py", "300_000_000, 1_000_000_000", "300_000_000, 0", ARITHMETIC,
           "no workspace"),
    *constant("TILE", "4096"),
    *constant("MAX_ROWS", "2048"),
    *constant("PROFILE_ROWS", "4096"),
    *constant("PERMUTED_ROWS", "512"),
    *constant("CONSENSUS_PAIRS", "1 << 22"),
    Mutant("linked-all", "hardware/budget.py", "min(kept, LINKED)", "min(kept, LINKED) // 4",
           "test_budget_arithmetic.py", "nearly all features are linked at once"),
    Mutant("linked-parts", "compute/consensus.py", "np.bincount(group) > budget.LINKED", "np.bincount(group) > 1e9",
           "test_consensus.py", "what is too large to link is linked in parts"),
    *constant("FREE_SHARE", "0.6"),
    # ------------------------------------------------------------ memory: terms of the formulas
    Mutant("encoder-stays", "hardware/budget.py", "base = PROCESS + _weights(shapes)  # the", "base = PROCESS  # the",
           ARITHMETIC, "the weights that stay loaded are forgotten"),
    Mutant("tiles-of-groups", "hardware/budget.py", "per_pass * shapes.n_groups * tile * tile * 8\n",
           "per_pass * tile * tile * 8\n", ARITHMETIC, "every group of prompts has tiles"),
    Mutant("dense-views", "hardware/budget.py", "2 * shapes.n_views * kept", "2 * kept", ARITHMETIC,
           "every view has distances"),
    Mutant("unembedding", "hardware/budget.py", "whole * 3 // 2", "whole", ARITHMETIC, "the float32 unembedding"),
    Mutant("refuse-equal", "hardware/budget.py", "if stage.peak <= result.budget:", "if stage.peak < result.budget:",
           ARITHMETIC, "what just fits is allowed"),
    # ------------------------------------------------------------ reductions
    Mutant("active-at-threshold", "compute/reductions.py", "(magnitude > threshold)", "(magnitude >= threshold)",
           "test_reductions.py", "a value at the threshold is not active"),
    Mutant("m2-combine", "compute/reductions.py", "(n_a * n_b / (n_a + n_b))", "n_a", "test_reductions.py",
           "variance of cuts"),
    Mutant("varentropy-mean", "compute/reductions.py", "squares / n - (entropy / n) ** 2", "squares / n",
           "test_reductions.py", "a variance without its mean"),
    Mutant("std-n-1", "compute/reductions.py", 'xp.sqrt(xp.maximum(state["m2"], 0.0) / n)',
           'xp.sqrt(xp.maximum(state["m2"], 0.0) / max(n - 1, 1))', "test_reductions.py", "std is divided by n"),
    Mutant("entropy-log", "compute/reductions.py", 'log_total - state["sum_log"] / safe',
           'log_total - state["sum_log"]',
           "test_reductions.py", "entropy without its normalisation"),
    Mutant("examples-zeros", "compute/reductions.py", "keys = xp.where(magnitude > 0,",
           "keys = xp.where(magnitude >= 0,",
           "test_reductions.py", "a silent prompt is no example"),
    Mutant("examples-ties", "compute/reductions.py", "np.lexsort((prompt, -np.abs", "np.lexsort((-prompt, -np.abs",
           "test_edges.py", "the earlier of two equal prompts comes first"),
    Mutant("max-sign", "compute/reductions.py", "magnitude = xp.abs(activations[start : start + rows])",
           "magnitude = (activations[start : start + rows])", "test_edges.py", "moments are of abs(a)"),
    # ------------------------------------------------------------ gram, neighbours, topk
    Mutant("sparse-density", "compute/gram.py", "entries(chunk) < few", "entries(chunk) > few",
           "test_neighbors.py", "dense chunks take the dense product"),
    Mutant("combine-squares", "compute/gram.py", "first.squares += other.squares", "pass", "test_neighbors.py",
           "norms of all workers count"),
    Mutant("combine-prompts", "compute/gram.py", "first.n_prompts += other.n_prompts", "pass", "test_neighbors.py",
           "prompts of all workers count"),
    Mutant("weighted-sums", "compute/gram.py", "whole.sums += weight * gram.sums", "whole.sums += gram.sums",
           "test_edges.py", "a bootstrap's sums are weighted"),
    Mutant("weighted-squares", "compute/gram.py", "whole.squares += weight * gram.squares",
           "whole.squares += gram.squares",
           "test_edges.py", "a bootstrap's norms are weighted"),
    Mutant("weighted-prompts", "compute/gram.py", "whole.n_prompts += weight * gram.n_prompts",
           "whole.n_prompts += gram.n_prompts", "test_edges.py", "a bootstrap counts a prompt as often as drawn"),
    Mutant("group-zero", "compute/gram.py", "np.unique(codes[codes >= 0])",
           "np.unique(codes[codes > 0])", "test_neighbors.py",
           "group 0 is a group"),
    Mutant("zero-distance", "compute/neighbors.py", '"d": 1e-12', '"d": 0.0', "test_edges.py",
           "exact duplicates are at distance 0"),
    Mutant("itself", "compute/neighbors.py", "keys = xp.where(row == column, topk.NOTHING, keys)", "pass",
           "test_neighbors.py", "a feature is no neighbour of itself"),
    Mutant("dot-largest", "compute/neighbors.py", "result = largest - tile", "result = 1 - tile", "test_neighbors.py",
           "dot distances are from the largest norm"),
    Mutant("correlation-centred", "compute/neighbors.py", "squares_a - a[\"sums\"][:, None] ** 2 / n", "squares_a",
           "test_neighbors.py", "correlation divides by centred norms"),
    Mutant("silent-feature", "compute/neighbors.py", "xp.where(scale > 0, scale, 1), 0)",
           "xp.where(scale > 0, scale, 1), 1)",
           "test_neighbors.py", "a feature of zeros is far from all"),
    Mutant("sketch-scale", "compute/neighbors.py", "np.stack(rows) / np.sqrt(size)", "np.stack(rows)", "test_edges.py",
           "a sketch keeps inner products"),
    Mutant("sketch-seed", "compute/neighbors.py", "key=[seed, p]", "key=[0, p]", "test_edges.py",
           "a sketch has a seed"),
    Mutant("topk-sorted", "compute/topk.py", "return xp.sort(keys, axis=1)", "return keys", "test_topk.py",
           "nearest first"),
    Mutant("topk-ties", "compute/topk.py", "bits |= indices.astype(xp.uint64)",
           "bits |= xp.uint64(0xFFFF) - indices.astype(xp.uint64)",
           "test_topk.py test_neighbors.py", "ties go to the lower number"),
    # ------------------------------------------------------------ quality, checks
    Mutant("reuse-whole", "engine/reuse.py", 'if schema.SHARDS in entry.get("files", {}):', "if False:",
           "test_folder.py", "activations that are not whole are refused before anything is written"),
    Mutant("links-left", "storage/atomic.py", "if not path.parent.is_symlink()", "if True", "test_folder.py",
           "what another run is writing is left alone"),
    Mutant("links-left-inside", "storage/run_folder.py", "if (path / name).resolve().is_relative_to(path.resolve()):",
           "if True:", "test_folder.py", "what another run is writing is left alone"),
    Mutant("doubt", "compute/verdicts.py", "n_found >= FEW * n_clusters", "n_found > 0", "test_verdicts.py",
           "few that hold are said loudly"),
    Mutant("headline-first", "storage/run_folder.py", '{"headline": headline} | rest', "rest", "test_verdicts.py",
           "what a run is worth stands first in its record"),
    Mutant("names-overlap", "results/static_map.py", "any(box.overlaps(other) for other in taken)", "False",
           "test_static_map.py", "names on the map leave each other room"),
    Mutant("doubtful-named", "results/static_map.py", "sure = real[~doubtful]", "sure = real", "test_static_map.py",
           "clusters that are not found again have no name on the picture"),
    # ------------------------------------------------------------ activations that others wrote
    Mutant("import-first-feature", "extraction/latent_files.py",
           "_slice(part, own, length, part.first if relative else 0)", "_slice(part, own, length, 0)",
           "test_import_activations.py::test_the_cache_of_delphi_becomes_a_run_of_tokens",
           "features are counted from a file's first one"),
    Mutant("import-old-numbers", "extraction/latent_files.py", "    if not beyond:\n        return True",
           "    return True", "test_import_activations.py::test_rows_of_tokens_in_other_formats_are_the_same_run",
           "delphi's older files have the SAE's own numbers"),
    Mutant("import-slice-rows", "extraction/row_readers.py", "= row.min(), row.max() + 1", "= row.min(), row.max()",
           "test_import_activations.py::test_entries_in_any_order_are_read", "the last row of a slice is read"),
    Mutant("import-twice", "extraction/row_readers.py", "if len(twice := np.flatnonzero(np.diff(place) == 0)):",
           "if len(twice := np.flatnonzero(np.diff(place) < 0)):",
           "test_import_activations.py::test_what_is_wrong_is_said_before_anything_is_written",
           "a feature twice in a row is refused"),
    Mutant("import-zeros", "extraction/row_readers.py", "if not values.all():", "if values.size < 0:",
           "test_import_activations.py::test_every_format_is_read_as_the_dense_array", "a zero is no entry"),
    Mutant("import-chosen", "extraction/row_readers.py", "else found[own - begin]", "else found[: len(own)]",
           "test_import_activations.py::test_rows_of_tokens_in_other_formats_are_the_same_run",
           "rows that are no tokens are left out"),
    Mutant("import-pickles", "extraction/array_files.py",
           "held = np.load(path, allow_pickle=False)", "held = np.load(path, allow_pickle=True)",
           "test_import_activations.py::test_what_is_wrong_is_said_before_anything_is_written", "no pickle is loaded"),
    Mutant("import-left-out", "extraction/row_places.py", "(step < 0) | (step > 1)", "step < 0",
           "test_import_activations.py::test_what_is_wrong_is_said_before_anything_is_written",
           "no number of a prompt is left out"),
    Mutant("import-peaks", "engine/imported.py", "= found.places.position[own][row[chosen]]", "= row[chosen]",
           "test_import_activations.py::test_the_cache_of_delphi_becomes_a_run_of_tokens",
           "examples have places in their prompt"),
    Mutant("import-content", "engine/imported.py", "matters, digest.hexdigest())", "matters)",
           "test_import_activations.py::test_another_file_is_not_imported_into_the_same_folder",
           "another file is another run"),
    Mutant("import-refused-late", "engine/imported.py", "    if held and markers.begun_with",
           "    if not held and markers.begun_with",
           "test_import_activations.py::test_another_file_is_not_imported_into_the_same_folder",
           "shards of another file are left alone"),
    Mutant("import-resume", "engine/imported.py", "markers.shard_done(path, shards, index, key) is not None",
           "index >= 0", "test_import_activations.py::test_a_killed_import_goes_on", "whole shards stay"),
    Mutant("import-small", "engine/imported.py", "return Looked(key, entries, given - entries)",
           "return Looked(key, entries, 0)", "test_import_activations.py::test_what_is_too_small_is_counted",
           "what becomes zero is counted"),
    Mutant("import-reused-tokens", "engine/reuse.py", "if (run.path / schema.TOKENS).exists() else", "if not run else",
           "test_import_activations.py::test_tokens_are_kept_where_prompts_are_clustered",
           "imported tokens can be clustered later"),
    Mutant("windows-by-prompt", "compute/windows.py",
           "np.arange(len(prompt)) - np.repeat(begin, np.diff([*begin, len(prompt)]))",
           "np.arange(len(prompt))",
           "test_windows.py", "a window lies within one prompt"),
    Mutant("window-peak", "compute/windows.py", "(np.arange(len(place)), -np.abs(values), place)",
           "(np.arange(len(place)), -values, place)", "test_windows.py", "max is of abs(a)"),
    Mutant("rows-turned", "compute/windows.py", "(row[at] - begin[own[at]] + begun) %", "(row[at] - begin[own[at]]) %",
           "test_windows.py", "what fires at beginnings is together no more in permuted rows"),
    Mutant("rows-retried", "extraction/gathered_tokens.py", "        self._entries[prompt] = []\n",
           "        self._entries.setdefault(prompt, [])\n", "test_token_store.py",
           "a batch that is begun again replaces its tokens"),
    Mutant("rows-by-prompt", "engine/views.py", "token_rows.prompts_of(out, groups.rows, first, stop) - first",
           "token_rows.prompts_of(out, groups.rows, first, stop) * 0", "test_token_store.py",
           "tokens belong to the half of their prompt"),
    Mutant("tokens-marked", "storage/markers.py", "if tokens.exists() else files", "if False else files",
           "test_token_store.py", "a damaged shard of tokens is found"),
    Mutant("index-signed", "compute/inverted_index.py", "signed |= bool((part.data < 0).any())", "signed |= False",
           "test_inverted.py", "below 0 features have less in common than those that never fire together"),
    Mutant("pairs-both", "compute/inverted_pairs.py", "limits, c, high | np", "limits, i, high | np",
           "test_inverted.py", "a pair is of both features"),
    Mutant("pairs-slack", "compute/inverted_pairs.py", "np.float64(worst) - SLACK", "np.float64(worst) + 1e-3",
           "test_inverted.py", "what is as near as the last is compared exactly"),
    Mutant("pairs-takes-off", "compute/inverted_pairs.py", "and not side.lengths.any() and", "and",
           "test_inverted.py", "lengths may add to what two features have in common"),
    Mutant("pairs-emptied", "compute/inverted_pairs.py", "touched[:n] = np.arange(n)", "touched[:0] = np.arange(0)",
           "test_inverted.py", "where all are touched all are emptied"),
    Mutant("pairs-known", "compute/inverted_pairs.py", "1 - known[view][number[view][chosen]] - SLACK",
           "1 - known[view][number[view][chosen]] + 0.1", "test_inverted.py", "nearer than what is known is wanted"),
    Mutant("apart-reached", "compute/never_together.py", "np.isnan(far) | (far >= least)", "np.isnan(far)",
           "test_inverted.py", "features that never fire together may be nearer than what was found"),
    Mutant("apart-lengths", "compute/never_together.py", "_most(side.lengths * side.scale) +", "0 +",
           "test_inverted.py", "lengths tie features that never fire together"),
    Mutant("apart-signs", "compute/never_together.py", "+ _most(side.sums * side.scale / np.sqrt(side.n))", "",
           "test_inverted.py", "features above and below 0 have something in common where they never fire together"),
    Mutant("index-room", "engine/neighbor_route.py", "if needed > plan.room:", "if needed > 10**18:",
           "test_inverted.py", "an index without room is not begun"),
    Mutant("index-cost", "engine/neighbor_route.py", "if index > tiles:", "if index > 1e30:",
           "test_inverted.py", "dense rows go by tiles"),
    Mutant("index-sampled", "engine/neighbor_route.py", "self.of / max(self.n_rows, 1)", "1",
           "test_inverted.py", "a sample stands for all rows"),
    Mutant("index-layers", "engine/neighbor_route.py", "and len(groups.groups) > 1", "", "test_inverted.py",
           "one layer of groups does not overlap"),
    Mutant("contexts-peaks", "engine/token_contexts.py", 'if config.extract.aggregate == "max" else', "if True else",
           "test_contexts.py", "means of prompts are no maxima of rows"),
    Mutant("permuted-parts", "compute/windows.py", "seed + slab", "seed", "test_windows.py",
           "features of different parts are permuted alike"),
    Mutant("tokens-planned", "hardware/token_budget.py", "max(SHARE * n_features, FEWEST)", "FEWEST",
           "test_budget_arithmetic.py", "wide SAEs fire on more"),
    Mutant("inverted-index", "compute/sparse_gram.py", "value * others[q]", "others[q]",
           "test_token_store.py test_neighbors.py", "products of sparse rows"),
    Mutant("rows-errors", "engine/exact_pass.py", "np.append(view.weights, 0)[groups.groups].sum()",
           "len(groups.groups)", "test_token_store.py", "errors of a half are over its prompts"),
    Mutant("sweep-rows", "sweep/computation.py", "(request.active_above, request.rows)", "(request.active_above, None)",
           "test_sweep_rows.py", "neighbours of each kind of rows are a pass of their own"),
    Mutant("sweep-rows-named", "sweep/sharing.py", "[c.extract.rows, c.used_window] if", "[] if",
           "test_sweep_rows.py test_keys.py", "neighbours over other rows are other files"),
    Mutant("sweep-rows-counted", "sweep/computation.py", "own = self._counted[of.key, rows][chosen]",
           "own = self._counted[of.key, rows][:n]", "test_sweep_rows.py", "rows are those of the subset's prompts"),
    Mutant("sweep-rows-chance", "sweep/computation.py", "if (rows := _rows_of(trial)) is None:", "if True:",
           "test_sweep_rows.py", "of rows of tokens what leaves as much by chance is known, as in a run"),
    Mutant("contexts-by-count", "compute/top_rows.py", "np.lexsort((row, -score, -n_features, cluster))",
           "np.lexsort((row, -n_features, -score, cluster))", "test_contexts.py",
           "top contexts are where most features fire, then by score"),
    Mutant("contexts-scaled", "compute/top_rows.py", "astype(np.float64) / largest[column]", "astype(np.float64)",
           "test_contexts.py", "loud features do not rule the score of a context"),
    Mutant("contexts-a-prompt", "compute/top_rows.py", "    order = order[np.sort(firsts)]\n", "", "test_contexts.py",
           "a prompt has one of a cluster's contexts"),
    Mutant("contexts-threshold", "compute/top_rows.py", "fires = size > threshold", "fires = size > 0",
           "test_contexts.py", "a feature fires above the threshold"),
    Mutant("contexts-rows", "engine/token_contexts.py", "first += fired.shape[0]", "first += 0",
           "test_contexts.py", "rows of later shards are others"),
    Mutant("contexts-marked", "tables/context_table.py", "a + len(lead), b + len(lead)", "a, b", "test_contexts.py",
           "the mark of a context moves with the dots before it"),
    Mutant("contexts-card", "results/report/page/cards.js", "    together(c),\n", "", "test_contexts.py",
           "a cluster's card shows its top contexts"),
    Mutant("levels-pairs", "compute/levels.py", "(both.data**2 - squares.data) // 2",
           "both.data**2 // 2",
           "test_levels.py::test_pairs_are_those_of_loops",
           "a feature makes no pair with itself"),
    Mutant("levels-squares", "compute/levels.py", "_of(times, times.data**2) @",
           "_of(times, times.data) @",
           "test_levels.py::test_pairs_are_those_of_loops",
           "a feature that fires on several tokens makes no pair"),
    Mutant("levels-tokens", "compute/levels.py", "of_window, np.bincount(window))",
           "of_window, np.full(len(of_window), SPAN))",
           "test_levels.py::test_pairs_are_those_of_loops",
           "a prompt's last window is shorter"),
    Mutant("levels-windows", "compute/levels.py", "of_prompt, n_windows)",
           "of_prompt, n_windows * 0 + 1)",
           "test_levels.py::test_pairs_are_those_of_loops",
           "windows lie anywhere in their prompt"),
    Mutant("levels-independent", "compute/levels.py", "((fires @ own) ** 2 - fires**2 @ own) / 2",
           "(fires @ own) ** 2 / 2",
           "test_levels.py::test_excesses_and_intervals_are_those_of_loops",
           "of prompts, too, pairs are of two features"),
    Mutant("levels-zeros", "compute/levels.py", "(times.data != 0).astype",
           "np.ones(len(times.data)).astype",
           "test_levels.py::test_values_do_not_matter_and_stay",
           "an entry that is 0 does not fire"),
    Mutant("levels-groups", "compute/levels.py", "group = prompt % GROUPS",
           "group = prompt % 1",
           "test_levels.py::test_values_do_not_matter_and_stay",
           "prompts are left out group by group"),
    Mutant("levels-pieces", "compute/levels.py", 'edges[begin] + ENTRIES, "right"',
           'edges[begin] + ENTRIES * 10**6, "right"',
           "test_levels.py::test_memory_goes_by_entries", "memory is that of a piece"),
    Mutant("levels-left-out", "compute/levels.py", "1 - np.eye(GROUPS)[used]",
           "np.eye(GROUPS)[used]",
           "test_levels.py::test_excesses_and_intervals_are_those_of_loops",
           "the jackknife leaves a group out"),
    Mutant("levels-used", "compute/levels.py", "np.eye(GROUPS)[used]",
           "np.eye(GROUPS)",
           "test_levels.py::test_excesses_and_intervals_are_those_of_loops",
           "groups without prompts do not count"),
    Mutant("levels-jackknife", "compute/levels.py", "np.sqrt((n - 1) / n *",
           "np.sqrt(1 / n *",
           "test_levels.py::test_intervals_cover_what_independent_features_have",
           "values with a group left out differ little"),
    Mutant("levels-student", "compute/levels.py", "stdtrit(n - 1,",
           "stdtrit(10**6,",
           "test_levels.py::test_excesses_and_intervals_are_those_of_loops",
           "few groups make a wider interval"),
    Mutant("levels-controls", "compute/levels.py", "np.nansum(ratio[1:], axis=0)",
           "np.nansum(ratio, axis=0)",
           "test_levels.py::test_excesses_and_intervals_are_those_of_loops",
           "a cluster is no control of its own"),
    Mutant("levels-least", "compute/levels.py", "(excess >= LEAST) & ",
           "",
           "test_levels.py::test_the_word_is_the_finest_level_that_is_shown",
           "a level takes an excess that matters"),
    Mutant("levels-shown", "compute/levels.py", " & (low > 1)",
           "",
           "test_levels.py::test_the_word_is_the_finest_level_that_is_shown",
           "a level takes an interval above 1"),
    Mutant("levels-finest", "compute/levels.py", "reversed(LEVELS.items())",
           "LEVELS.items()",
           "test_levels.py::test_the_word_is_the_finest_level_that_is_shown",
           "the finest level is the word"),
    Mutant("controls-degree", "compute/controls.py", "order = np.argsort(degree, kind=\"stable\")\n    found",
           "order = np.arange(len(degree))\n    found", "test_levels.py::test_controls_fire_as_often",
           "controls fire about as often"),
    Mutant("controls-own", "compute/controls.py", "one[own] = own[_apart(labels[own], random)]",
           "one[own] = random.permutation(own)", "test_levels.py::test_controls_fire_as_often",
           "random mates are not a feature's own"),
    Mutant("prediction-itself", "compute/prediction.py", "score -= value\n", "score -= 0\n",
           "test_prediction.py::test_rows_are_counted_as_by_hand_a_feature_itself_left_out",
           "a feature does not tell of itself"),
    Mutant("prediction-t", "compute/prediction.py", "np.sqrt(1 + 1 / draws)", "np.sqrt(1 / draws)",
           "test_prediction.py::test_p_is_that_of_chance_where_nothing_is", "a control is as likely above the others"),
    Mutant("prediction-other-half", "engine/held_out.py", "np.flatnonzero(rows.half != half)",
           "np.flatnonzero(rows.half == half)",
           "test_validate.py::test_rows_are_those_that_the_clusters_were_not_chosen_from",
           "rows are not those that clusters were made from"),
    Mutant("prediction-ties", "compute/prediction.py", "np.cumsum(others, axis=-1) - others / 2",
           "np.cumsum(others, axis=-1)", "test_prediction.py::test_auroc_is_that_of_the_bins",
           "equal scores count half"),
    Mutant("prediction-strata", "compute/prediction.py", "said[row, feature] > edges[feature, stratum]",
           "said[row, feature] > edges[feature, 0] + 1e9", "test_prediction.py", "pairs are of one stratum"),
    Mutant("words-odds", "compute/prediction.py", "(n_rows - active + 2 * PRIOR)", "(n_rows + 2 * PRIOR)",
           "test_prediction.py::test_attributes_speak_as_naive_bayes_has_it",
           "odds are against rows where it is silent"),
    Mutant("validated-of", "storage/validated.py", "if facts.get(CLUSTERED) != _of(stages):", "if False:",
           "test_validate.py", "what was found of other clusters does not count"),
    Mutant("tiles-room", "hardware/budget.py", "room = max(room - beside(rows), 0)", "room = max(room, 0)",
           "test_budget_arithmetic.py", "tiles leave room for tokens and permuted prompts"),
    Mutant("little-found", "compute/verdicts.py", "share < LITTLE", "share < 0",
           "test_verdicts.py", "a warning where clusters found again hold few features"),
    Mutant("words-everywhere", "tables/keywords.py", "fewest <= EVERYWHERE * top.shape[0]", "fewest <= top.shape[0]",
           "test_keywords.py", "a word of all prompts marks no cluster"),
    Mutant("themes-centred", "compute/themes.py", "rows - rows.mean(axis=1, keepdims=True)", "rows", "test_themes.py",
           "what all clusters share makes no themes"),
    Mutant("themes-by-features", "compute/themes.py", "-np.bincount(found, sizes)", "-np.bincount(found)",
           "test_themes.py", "the largest theme has the most features"),
    Mutant("theme-words", "tables/theme_table.py", "doubtful[own]))]", "0 * doubtful[own]))]", "test_themes.py",
           "words of clusters that are not found again come last"),
    Mutant("half-correlations", "tables/profiles.py", "== number])", "== 0])", "test_profiles.py",
           "each half has correlations of its own"),
    Mutant("far-names", "results/report/page/names.js", "far ? [...named.coarse, ...named.fine] : named.fine",
           "named.fine", "test_report_themes.py", "far out themes are named"),
    Mutant("first-source", "results/report/content.py", "(of_source, -times, of_feature)",
           "(-times, of_source, of_feature)", "test_report_themes.py", "a feature's source is that of most examples"),
    Mutant("explored", "results/explorer.py", "trace.customdata[points.point_inds[0]]", "points.point_inds[0]",
           "test_explorer.py", "a click opens the card of the feature that was clicked"),
    Mutant("next-to-file", "config_paths.py", "[absolute(folder / given), absolute(given)]", "[absolute(given)]",
           "test_config_paths.py", "a relative path of a file is next to it"),
    Mutant("records-model", "config_paths.py", "        if key == MODEL:\n            return value\n", "",
           "test_config_paths.py", "an id of the hub in a run's record becomes no folder"),
    Mutant("rate-of-few", "engine/plan_time.py", "LEAST = 0.5", "LEAST = 0.0", "test_plan_time.py",
           "the last shard of a resumed extraction gives no rate"),
    Mutant("stages-read", "engine/plan_time.py",
           " and all(_same(read, config, there, extracted) for read in stage.reads)", "",
           "test_plan_time.py", "what reads another stage is not told by its own settings alone"),
    Mutant("plan-imported", "engine/planning.py", "model_sizes.facts(config) if there is None else",
           "model_sizes.facts(config) if True else",
           "test_imported_runs.py", "a plan on activations that are there asks no model how large they are"),
    Mutant("sweep-imported", "sweep/experiment.py", "if store.imported(path / schema.ACTIVATIONS):", "if False:",
           "test_imported_runs.py", "a sweep takes imported activations as they are"),
    Mutant("extraction-held", "engine/steps.py", 'if self.stage != "extract":', "if False:", "test_imported_runs.py",
           "memory of an extraction that is done is not asked for"),
    Mutant("contexts-by-number",
           "results/cards.py", 'f"the token at position {position}" if n == 1 else',
           'f"the token at position {position}" if True else',
           "test_imported_runs.py", "a window without text says how many tokens it has"),
    Mutant("reader-gone", "terminal.py", "            self.quiet = True\n", "            raise SystemExit(1)\n",
           "test_cli.py", "a reader that goes away ends no command"),
    Mutant("null-margin", "compute/verdicts.py", "NULL_MARGIN = 2.0", "NULL_MARGIN = 1.0", "test_validity.py",
           "twice the null's largest z is asked for"),
    Mutant("z-min", "compute/verdicts.py", "Z_MIN = 3.0", "Z_MIN = 1.0", "test_validity.py",
           "three standard deviations"),
    Mutant("strata", "compute/controls.py", "STRATA = 20", "STRATA = 1", "test_validity.py",
           "sets match in active prompts"),
    Mutant("rounding", "compute/validity.py", "ROUNDING = 1e-12", "ROUNDING = 0.0", "test_validity.py",
           "duplicates are at 0"),
    Mutant("stable-at-threshold", "compute/verdicts.py", "np.where(stability >= threshold",
           "np.where(stability > threshold",
           "test_edges.py", "at the threshold is stable"),
    Mutant("null-at-margin", "compute/verdicts.py", 'table["permutation_z"] <= reached',
           'table["permutation_z"] < reached',
           "test_edges.py", "what only reaches the null is not above it"),
    Mutant("chance-equal", "compute/verdicts.py", "lost = stability <= chance", "lost = stability < chance",
           "test_edges.py", "what only reaches chance is not above it"),
    Mutant("random-z-below", "compute/verdicts.py", 'table["random_z"] < Z_MIN', 'table["random_z"] < 0',
           "test_validity.py",
           "random sets decide too"),
    Mutant("chance-largest", "compute/validity.py", "largest: Array = np.max(drawn, axis=0)",
           "largest: Array = np.mean(drawn, axis=0)", "test_edges.py", "chance is the largest of the draws"),
    Mutant("spread-ddof", "compute/validity.py", "random.std(axis=1, ddof=1)", "random.std(axis=1, ddof=0)",
           "test_edges.py",
           "the spread of a sample"),
    Mutant("jaccard-union", "compute/validity.py", "np.maximum(sizes - shared, 1)", "np.maximum(sizes, 1)",
           "test_validity.py",
           "a union counts what is shared once"),
    Mutant("silhouette-own", "compute/validity.py", "found.own[features]) / np.maximum(sizes[own] - 1, 1)",
           "found.own[features]) / sizes[own]", "test_validity.py", "a feature is not compared with itself"),
    Mutant("chance-draws", "engine/quality_task.py", "CHANCE_DRAWS = 200", "CHANCE_DRAWS = 1", "test_checks_task.py",
           "chance is the largest of many draws"),
    Mutant("stability-halves", "engine/quality_task.py", "validity.best_match(labels, half) for half in halves",
           "validity.best_match(labels, half) for half in halves[:1]", "test_checks_task.py", "both halves count"),
    Mutant("null-z", "engine/quality_task.py", "np.full(len(size), float(max(reached, default=0)))",
           "np.full(len(size), 0.0)",
           "test_checks_task.py", "permuted activations are clustered to compare with"),
    Mutant("permuted-read", "engine/quality_task.py", "sums_within(read(config.seed)", "sums_within(read()",
           "test_checks_task.py", "the null's cohesion is of permuted activations"),
    Mutant("noise-share", "compute/measures.py", "float((labels < 0).mean())", "float((labels > 0).mean())",
           "test_checks_task.py", "noise is what has no cluster"),
    Mutant("purity-columns", "sweep/trials.py", "indices[:, : config.n_neighbors]", "indices",
           "test_sweep.py::test_settings_equal_separate_runs", "purity depends on what other settings need"),
    Mutant("recovered", "compute/measures.py", "(matched >= agreement.HALF)", "(matched > 0)",
           "test_sweep.py::test_measures_of_a_clustering", "found again means half of the features"),
    # ------------------------------------------------------------ communities, consensus, matching, select
    Mutant("mutual", "compute/communities.py", "directed.minimum(directed.T)", "directed.maximum(directed.T)",
           "test_communities.py", "each is among the nearest of the other"),
    Mutant("hubs", "compute/communities.py", "score = 2 * similarity - own[:, None] - own[near]", "score = similarity",
           "test_communities.py", "a hub is not what features are joined by"),
    Mutant("lists-compared", "compute/communities.py", "    if config.shared_neighbors:",
           "    if not config.shared_neighbors:",
           "test_shared_neighbors.py", "features are as similar as their lists are"),
    Mutant("stands-for-none", "compute/communities.py", "score[near == np.arange(len(near))[:, None]] = -np.inf",
           "pass", "test_communities.py", "a feature takes no place of its own neighbours"),
    Mutant("lists-of-length-1", "compute/shared_neighbors.py", "weights /= np.sqrt(", "weights /= 1 + 0 * np.sqrt(",
           "test_shared_neighbors.py", "a cosine does not grow with the list"),
    Mutant("lists-equal", "compute/shared_neighbors.py", "feature > chosen[taken - 1]", "feature < chosen[taken - 1]",
           "test_shared_neighbors.py", "of equal ones the first"),
    Mutant("tails", "compute/communities.py", "perturb(indices, distances, n_prompts, seed, TAILS, errors)",
           "perturb(indices, distances, n_prompts, seed, 1.0, errors)", "test_communities.py",
           "activations have heavy tails"),
    Mutant("drawn-once", "compute/controls.py", "while (twice :=", "while False and (twice :=",
           "test_validity.py", "a set holds a feature once"),
    Mutant("bits", "compute/validity.py", "said = -share * np.log2(np.where(sizes, share, 1))", "said = share",
           "test_doctests.py", "a few coarse clusters that are found again say little"),
    Mutant("pairs-of-draws", "compute/communities.py", "zip(found[::2], found[1::2], strict=True)",
           "zip(found[:1], found[1:2], strict=True)", "test_communities.py", "all draws are looked at"),
    Mutant("least-resolution", "compute/communities.py", "max(begin * factor, LEAST)", "begin * factor",
           "test_communities.py", "one community of everything is found again for nothing"),
    Mutant("by-chance", "compute/communities.py", "> ABOVE_CHANCE * by_chance * listed", "> 0 * by_chance * listed",
           "test_communities.py", "features of no group beside groups are one community every time"),
    Mutant("chance-again", "compute/communities.py", "known = bool(by_chance.any())", "known = False",
           "test_communities.py", "features may be above chance only with what is taken out"),
    Mutant("length-offset", "results/run.py", "long -= long.mean()", "pass",
           "test_communities.py", "small differences of large lengths are lost"),
    Mutant("side-by-side", "hardware/jit.py", 'kernel.targetoptions["nogil"] = True', "pass", "test_jit.py",
           "two UMAPs wait for each other"),
    Mutant("chance-nearest", "compute/communities.py", "share = listed / max", "share = near.shape[1] / max",
           "test_communities.py", "a small group may be of the very nearest"),
    Mutant("length-out", "compute/neighbors.py", 'tile = tile - a["by_length"][:, None] * b["by_length"][None, :]',
           "pass", "test_neighbors.py", "what two features owe to the prompts' length is no reason"),
    Mutant("length-left", "compute/neighbors.py", "left = squares - by_length**2", "left = squares",
           "test_neighbors.py", "a partial correlation has the residuals' variances"),
    Mutant("lengths-of-group", "compute/gram.py", "None if long is None else long[inside]", "long",
           "test_neighbors.py", "each group has its own prompts' lengths"),
    Mutant("activity-strict", "compute/association.py", "astype(xp.float64) > threshold",
           "astype(xp.float64) >= threshold", "test_association.py", "active is above the threshold, as in n_active"),
    Mutant("activity-wide", "compute/association.py", ".astype(xp.float64) > threshold",
           " > threshold", "test_association.py",
           "a threshold is not rounded to the stored type"),
    Mutant("activity-sizes", "compute/association.py", "xp.abs(chunk[start : start + rows])",
           "(chunk[start : start + rows])", "test_association.py", "negative activations are active, too"),
    Mutant("count-exact", "compute/gram.py", "xp.int32 if counts else xp.float32", "xp.float32", "test_association.py",
           "counts on a GPU are whole numbers"),
    Mutant("chance-out", "compute/association.py", "chance = _plain(plain, a * b / n, a, b, xp)",
           "chance = 0 * _plain(plain, a * b / n, a, b, xp)", "test_association.py", "chance is taken out"),
    Mutant("chance-most", "compute/association.py", "found - chance, 1 - chance, xp)",
           "found - chance, 1 + 0 * chance, xp)",
           "test_association.py", "what is corrected is a share of the most"),
    Mutant("never-together", "compute/association.py", "xp.where(a * b > 0, -1.0, 0.0)",
           "xp.where(a * b > 0, 0.0, 0.0)",
           "test_association.py", "npmi of what is never together is -1"),
    Mutant("errors-corrected", "compute/association.py", "(by_u - part * (e_u + e_x * v)) / left", "by_u / left",
           "test_association.py", "what chance leaves is estimated, too"),
    Mutant("errors-mean", "compute/association.py", "by_v**2 - mean**2", "by_v**2", "test_association.py",
           "an error is a standard deviation"),
    Mutant("errors-used", "compute/consensus.py", "/ np.sqrt(n_prompts) if errors is None else errors",
           "/ np.sqrt(n_prompts)", "test_consensus.py", "similarities are redrawn with errors that are known"),
    Mutant("errors-of-halves", "compute/communities.py", "errors * np.sqrt(HALVED)", "errors * 1",
           "test_communities.py", "a redrawn half has the error of half the prompts"),
    Mutant("errors-written", "engine/exact_pass.py", "whole if place is None else gram.chosen(whole, place)", "whole",
           "test_gram_pass.py", "errors are of the view's features"),
    Mutant("threshold-of-sweep", "sweep/sharing.py", "else [c.active_above]", "else []", "test_keys.py",
           "neighbours by counts depend on the threshold"),
    Mutant("kernels-kept", "hardware/jit.py", "kernel.enable_caching()", "pass", "test_jit.py",
           "umap-learn compiles for 10 seconds in every process"),
    Mutant("take-turns", "compute/communities.py", "with _ONE_AT_A_TIME:", "if _ONE_AT_A_TIME:",
           "test_communities.py", "the library's seed is the process's"),
    Mutant("nothing-in-common", "compute/consensus.py", "draw[similarity <= 0] = 0", "draw[similarity < 0] = 0",
           "test_communities.py", "chance makes no neighbours of what never fires together"),
    Mutant("small-group", "compute/communities.py", "np.where(small, schema.SMALL, schema.DISAGREE)",
           "np.where(~small, schema.SMALL, schema.DISAGREE)", "test_communities.py", "why a feature is noise"),
    Mutant("found-again", "compute/validity.py", "sizes[match >= least]", "sizes[match > least]", "test_doctests.py",
           "a Jaccard index of one half is enough"),
    Mutant("standard-error", "compute/consensus.py", "(1 - similarity**2) / np.sqrt(n_prompts)",
           "1 / np.sqrt(n_prompts)",
           "test_edges.py", "near pairs are redrawn less"),
    Mutant("one-draw-a-pair", "compute/consensus.py", "np.minimum(own, other) * size + np.maximum(own, other)",
           "own * size + other", "test_communities.py", "a pair is redrawn alike from both sides"),
    Mutant("agreement-ceil", "compute/consensus.py", "np.ceil(agreement * n_members - 1e-9)",
           "np.ceil(agreement * n_members + 1)",
           "test_consensus.py", "groups are what `agreement` connects"),
    Mutant("agreement-cut", "compute/consensus.py", "tree[tree[:, 2] <= 1 - agreement * certainty]",
           "tree[tree[:, 2] <= 1 - 0.9 * agreement * certainty]", "test_consensus.py", "the cut is at `agreement`"),
    Mutant("least-cluster", "compute/consensus.py", "np.flatnonzero(counts >= min_cluster_size)",
           "np.flatnonzero(counts > min_cluster_size)", "test_edges.py", "min_cluster_size is enough"),
    Mutant("member-seed", "compute/consensus.py", "seed = umap.random_state + number", "seed = umap.random_state + 1",
           "test_consensus.py", "every member has a seed of its own"),
    Mutant("needed-memory", "compute/consensus.py", "needed > allowed", "needed > 2 * allowed", "test_consensus.py",
           "a group that does not fit is refused"),
    Mutant("tenth", "compute/agreement.py", "HALF, TENTH = 0.5, 0.1", "HALF, TENTH = 0.5, 0.11", "test_agreement.py",
           "a tenth is a part"),
    Mutant("half", "compute/agreement.py", "HALF, TENTH = 0.5, 0.1", "HALF, TENTH = 0.55, 0.1", "test_edges.py",
           "half is enough"),
    Mutant("same-at-half", "compute/agreement.py", 'fate = "same" if best >= HALF', 'fate = "same" if best > HALF',
           "test_edges.py", "half is enough"),
    Mutant("vanished-at-half", "compute/agreement.py", "if noise + absent > HALF:", "if noise + absent >= HALF:",
           "test_edges.py", "just half has not vanished"),
    Mutant("relate-union", "compute/agreement.py", "common_b[None, :] - overlap", "common_b[None, :]",
           "test_agreement.py",
           "a union counts what is shared once"),
    Mutant("match-overlap", "compute/agreement.py", "jaccard[rows, columns] > 0", "jaccard[rows, columns] >= 0",
           "test_edges.py", "what shares nothing does not match"),
    Mutant("entropy-low", "compute/feature_filter.py", '"entropy"] > config.entropy_low',
           '"entropy"] >= config.entropy_low',
           "test_edges.py", "bounds are strict"),
    Mutant("entropy-high", "compute/feature_filter.py", '"entropy"] < config.entropy_high',
           '"entropy"] <= config.entropy_high',
           "test_edges.py", "bounds are strict"),
    Mutant("sparsity-min", "compute/feature_filter.py", '"sparsity"] > config.sparsity_min',
           '"sparsity"] >= config.sparsity_min',
           "test_edges.py", "bounds are strict"),
    Mutant("sparsity-max", "compute/feature_filter.py", '"sparsity"] < config.sparsity_max',
           '"sparsity"] <= config.sparsity_max',
           "test_edges.py", "bounds are strict"),
    Mutant("active-prompts", "compute/feature_filter.py", '"n_active"] >= config.min_active',
           '"n_active"] > config.min_active',
           "test_edges.py", "so many are enough"),
    Mutant("quadrant-median", "compute/feature_filter.py", 'high_h = (table["entropy"] >',
           'high_h = (table["entropy"] >=',
           "test_edges.py", "at the median is low"),
    # ------------------------------------------------------------ DBSCAN
    Mutant("core-itself", "compute/dbscan.py", "distances[:, config.dbscan.min_samples - 1] <=",
           "distances[:, config.dbscan.min_samples] <=", "test_dbscan.py", "min_samples counts the feature itself"),
    Mutant("nearest-core", "compute/dbscan.py", "np.argmax(beside[border], axis=1)",
           "least - 1 - np.argmax(beside[border][:, ::-1], axis=1)", "test_dbscan.py",
           "a border feature is with its nearest core"),
    Mutant("elbow-below", "compute/dbscan.py", "np.argmax((share - height)[::-1])",
           "np.argmax((height - share)[::-1])", "test_dbscan.py", "the elbow is below the chord"),
    Mutant("unrelated", "compute/dbscan.py", "elbow(k_distances[k_distances < UNRELATED])", "elbow(k_distances)",
           "test_dbscan.py", "what has nothing in common is no cluster"),
    Mutant("eps-of-the-whole", "sweep/trials.py", "config = dbscan.with_eps(config, part.eps)", "part.eps",
           "test_dbscan.py", "parts are clustered at the eps of the whole"),
    # ------------------------------------------------------------ store, shards, codec
    Mutant("marker-key", "storage/markers.py", 'if marker["key"] != key:', "if False:", "test_store.py",
           "a shard of other settings is made anew"),
    Mutant("marker-checksum", "storage/markers.py", 'if checksums.of_file(file) != marker["files"][name]:', "if False:",
           "test_store.py", "a damaged shard is made anew"),
    Mutant("float16-max", "storage/store.py", "if largest > FLOAT16_MAX:", "if largest > 2 * FLOAT16_MAX:",
           "test_store.py",
           "what float16 cannot hold is refused"),
    Mutant("missing-file", "storage/store.py", "                    _refuse_missing(array, path, start, end)\n", "",
           "test_shards.py", "a missing file is damage, not zeros"),
    Mutant("damaged-unlink", "storage/store.py", "file.unlink(missing_ok=True)", "pass", "test_shards.py",
           "damage does not stop its repair"),
    Mutant("template-once", "storage/store.py", "    if path.exists():\n        raise StoreError(f\"{path} exists",
           "    if False:\n        raise StoreError(f\"{path} exists", "test_store.py", "a store is not overwritten"),
    Mutant("index-checksum", "storage/shards.py",
           "google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], \"little\")",
           "False", "test_shards.py", "a damaged index is refused"),
    Mutant("chunk-checksum", "storage/codec.py", "if _crc(chunk) != crc:", "if False:", "test_codec.py",
           "a flipped bit is refused"),
    Mutant("bitmap-count", "storage/codec.py", "if marked != nonzero or", "if False and", "test_codec.py",
           "kernels check no bounds"),
    Mutant("chunk-size", "storage/codec.py", "if nonzero > count or chunk.size != whole:", "if nonzero > count:",
           "test_edges.py", "a truncated chunk is refused"),
    Mutant("bucket-count", "storage/codec_packed.py",
           "if marked != nonzero or (bits", "if (bits", "test_codec_packed.py::test_every_check_has_its_reason",
           "kernels check no bounds"),
    Mutant("bucket-end", "storage/codec_packed.py",
           "or (bits and int(buckets[-1]) >> (bits - 1) % 64)", "", "test_codec_packed.py",
           "a one past the last bucket is damage"),
    Mutant("bucket-order", "storage/codec_packed.py", "if not kernels.unpack(buckets, lows, positions) or",
           "kernels.unpack(buckets, lows, positions)\n    if", "test_codec_packed.py", "places ascend"),
    Mutant("bucket-width", "storage/codec_packed.py", "or (nonzero and int(positions[-1]) >= count)", "",
           "test_codec_packed.py", "no place is past the chunk's end"),
    Mutant("low-padding", "storage/codec_packed.py", "if lows[nonzero:].any():", "if False:", "test_codec_packed.py",
           "padding is zeros"),
    Mutant("value-padding", "storage/codec.py", "or chunk[end:].any() or", "or", "test_codec_packed.py",
           "padding is zeros"),
    Mutant("header-padding", "storage/codec.py", "if chunk[7] or chunk[24:28].any() or", "if", "test_codec_packed.py",
           "padding is zeros"),
    Mutant("stored-zero", "storage/codec.py", "or not packed.all()", "", "test_codec_packed.py",
           "a value that is stored is none that is not"),
    Mutant("low-of-a-bitmap", "storage/codec.py", " or (low and not in_buckets)", "", "test_codec_packed.py",
           "a bitmap has no low parts"),
    Mutant("smaller-layout", "storage/codec_packed.py", ">= 8 * -(-count // 64)", "> 8 * -(-count // 64)",
           "test_codec_packed.py", "a bitmap where both take the same: old bytes stay"),
    Mutant("csr-order", "storage/codec_packed.py", "if not (positions[1:] > positions[:-1]).all():", "if False:",
           "test_codec_packed.py", "columns ascend within a row"),
    Mutant("csr-columns", "storage/codec_packed.py", "<= int(indices.max()) < columns)", ")", "test_codec_packed.py",
           "a column past the last one is no entry of the next row"),
    Mutant("csr-zeros", "storage/codec.py", "if not packed.all():\n        positions, packed =",
           "if False:\n        positions, packed =", "test_codec_packed.py", "a zero is no entry"),
    Mutant("edge-features", "storage/sparse_rows.py", "if columns.size and columns.max() >= source.shape[1]:",
           "if False:", "test_sparse_rows.py", "SciPy checks no bounds"),
    Mutant("rows-by-features", "storage/sparse_rows.py", "        ends[piece.at] += lengths\n", "",
           "test_sparse_rows.py", "a row's entries of several chunks stand side by side"),
    # ------------------------------------------------------------ prompts, cluster, profiles, tiles
    Mutant("duplicate-source", "extraction/prompts.py", "zip(reversed(texts), reversed(sources), strict=True)",
           "zip(texts, sources, strict=True)", "test_edges.py", "a duplicate keeps its first source"),
    Mutant("blank", "extraction/prompts.py", "if not text.strip():", "if not text:", "test_prompts.py",
           "white space is blank"),
    Mutant("min-tokens", "extraction/prompts.py", "if len(ids) < config.min_tokens:",
           "if len(ids) <= config.min_tokens:",
           "test_edges.py", "min_tokens are enough"),
    Mutant("prompt-seed", "extraction/prompts.py", "default_rng(config.seed).permutation", "default_rng(0).permutation",
           "test_prompts.py", "the order has a seed"),
    Mutant("few-samples", "compute/clustering.py", "if size <= config.min_samples:", "if size < config.min_samples:",
           "test_edges.py", "min_samples others are needed"),
    Mutant("few-features", "compute/clustering.py", "if size < config.min_cluster_size:",
           "if size <= config.min_cluster_size:",
           "test_edges.py", "min_cluster_size features are enough"),
    Mutant("tree-parts", "compute/clustering.py", "if parts != 1:", "if parts > 2:", "test_clustering.py",
           "the library never returns from edges that do not span"),
    Mutant("outlier-limit", "compute/clustering.py", "outlier_scores(condensed), nan=1.0)",
           "outlier_scores(condensed), nan=0.0)",
           "test_edges.py", "beside duplicates the score is 1"),
    Mutant("chord", "compute/spanning_tree.py", "np.sqrt(2 * np.maximum(chords[:, 2], 0))",
           "np.sqrt(np.maximum(chords[:, 2], 0))",
           "test_spanning_tree.py", "chords are distances of unit vectors"),
    Mutant("spread-rounding", "tables/profiles.py", "spread > 1e-12 * np.abs(self.mean), spread, 0)",
           "spread > 0 * np.abs(self.mean), spread, 0)", "test_profiles.py", "rounding is no variation"),
    Mutant("profile-merge", "tables/profiles.py", "(self.n * n / total)", "(n / total)",
           "test_profiles.py",
           "means of blocks differ"),
    Mutant("permuted-blocks", "engine/prompt_rows.py", "first - first % size,", "first,", "test_gram_pass.py",
           "shares of workers do not change what is drawn"),
    Mutant("halves-seed", "compute/halves.py", "np.random.default_rng(seed).random(-(-n_prompts // 2)) < 0.5",
           "np.zeros(-(-n_prompts // 2), bool)", "test_doctests.py", "halves are random"),
    Mutant("tf-idf", "tables/keywords.py", "np.log1p(total.mean()", "np.log(total.mean()", "test_keywords.py",
           "the formula of the paper"),
    Mutant("decoder-p", "tables/decoder.py", "(1 + (drawn[size] >= own[c]).sum()) / (1 + N_SETS)",
           "(drawn[size] >= own[c]).sum() / N_SETS", "test_decoder.py", "a p value is never 0"),
    Mutant("words-utf16", "tables/words.py", "map(len, pieces)", "(len(p.encode('utf-16-le')) // 2 for p in pieces)",
           "test_words.py", "ICU counts an emoji as two"),
    Mutant("word-at", "tables/words.py", "bisect.bisect_right(cut, start,", "bisect.bisect_left(cut, start,",
           "test_words.py", "a token that begins its word"),
    Mutant("case-folding", "tables/words.py", ".casefold())", ".lower())", "test_words.py", "final sigma and sharp s"),
    Mutant("byte-of-several", "tables/prompt_text.py", "a += bisect.bisect_right(ends, before)", "a += 0",
           "test_prompt_text.py", "each byte of an unknown run is of its own character"),
    Mutant("part-of-a-character", "tables/prompt_text.py", "return words.whole(text, a, b)", "return a, b",
           "test_prompt_text.py", "an accent is no character"),
    # ------------------------------------------------------------ found by using it, 2026-11-27
    Mutant("no-worker", "engine/scheduler.py", "    if not found:\n        log.info", "    if False:\n        log.info",
           "test_scheduler.py", "no worker for a moment"),
    Mutant("names-of-axes", "results/inputs.py", "turned = names[0] == COLUMNS or names[1] == ROWS", "turned = False",
           "test_inputs.py", "names go before order"),
    Mutant("bounds-of-values", "results/inputs.py", "    if len(odd):", "    if False:", "test_inputs.py", "NaN"),
    Mutant("missing-na", "extraction/texts.py", "bool(pd.isna(value))", "bool(value != value)", "test_prompts.py",
           "pd.NA and NaT are missing"),
    Mutant("rows-looked-at", "extraction/prompt_files.py", "if len(waiting) == LOOKED or not", "if waiting or not",
           "test_prompts.py", "the first row may lack the column"),
    Mutant("numbers-as-written", "extraction/prompt_files.py", "parse_int=str, parse_float=str, ", "",
           "test_prompts.py", "1.50 is no 1.5"),
    Mutant("score-noise", "clusterer.py", "(means * sizes).sum() / self.kept_.sum()",
           "(means * sizes).sum() / sizes.sum()", "test_clusterer.py", "noise counts as 0"),
    Mutant("halves-apart", "results/feature_clusters.py", "np.flatnonzero(half == side)", "np.flatnonzero(half >= 0)",
           "test_feature_clusters.py", "both halves are all prompts"),
    Mutant("halves-warning", "results/feature_clusters.py", "if text is not None:", "if False:",
           "test_feature_clusters.py", "chance goes without a word"),
    Mutant("neighbors-of-graph", "results/parameters.py", '_put(data, {"communities": {"n_neighbors": n_neighbors}})',
           "pass", "test_feature_clusters.py", "only the map has them"),
    Mutant("float32-activations", "results/run.py",
           '(schema.ACTIVATIONS)["activations"].astype(np.float32, copy=False)',
           '(schema.ACTIVATIONS)["activations"]',
           "test_results_run.py", "means overflow"),
    Mutant("set-is-blamed", "configfile.py", "places, blamed = [], named or overrides", "places, blamed = [], []",
           "test_config.py", "the file is blamed"),
    Mutant("grams-memory", "results/run.py", "(n_kept, n_kept), 16,", "(1, 1), 16,", "test_inputs.py", "a MemoryError"),
    Mutant("checksum-resume", "storage/run_folder.py", "        return not bad", "        return True",
           "test_damage.py",
           "a damaged file is taken"),
    Mutant("checksum-reader", "storage/reading.py", "            self._check(name)", "            pass",
           "test_damage.py", "a damaged file is read"),
    Mutant("shard-zeros", "storage/reading.py", "            store.refuse_missing(self.run / name)", "            pass",
           "test_damage.py", "a lost shard reads as zeros"),
    Mutant("forgotten-stage", "storage/reading.py", "and stage not in stages:", "and False:", "test_damage.py",
           "a file that verify found damaged is read"),
    Mutant("template-back", "engine/steps.py", "(restored := store.restore(target, make)):", "(restored := []):",
           "test_damage.py", "a damaged template stays"),
    Mutant("shard-sizes", "storage/markers.py", "if name != \"states\" and size !=",
           "if name == \"none\" and size !=", "test_damage.py", "a resumed run takes a shard that is cut off"),
    Mutant("marker-unreadable", "storage/markers.py", "    except ValueError:\n        marker = None",
           "    except KeyError:\n        marker = None", "test_damage.py", "a damaged marker is a traceback"),
    Mutant("cached-is-free", "hardware/process.py", "limit - used + int(", "limit - used + 0 * int(", "test_limits.py",
           "a container's page cache counts as used"),
    Mutant("disk-rest", "engine/steps.py", "x.config, left - total[\"prompts\"], facts[\"d_sae\"],",
           "x.config, 0, facts[\"d_sae\"],", "test_limits.py", "a disk that fills up is met in the middle of a shard"),
    Mutant("home", "section.py", "return os.path.expanduser(text)", "return text", "test_places.py",
           "~ is a folder's name in a configuration"),
    Mutant("config-recorded", "storage/run_folder.py", "if \"config\" in self.record:", "if False:", "test_damage.py",
           "a damaged config.yaml ends a run"),
    Mutant("record-checksum", "storage/checksums.py", "and known != (found := _of_content(data))",
           "and not isinstance(found := known, int)", "test_damage.py", "a flipped bit in run.json is read"),
    Mutant("lost-prompts", "engine/tasks.py", "    if there != digest:", "    if False:", "test_damage.py",
           "a lost record lets other prompts overwrite those of the shards"),
    Mutant("only-read", "engine/steps.py", "    if not (path.is_symlink() or shards.is_symlink()):", "    if True:",
           "test_damage.py", "a run that reads another's activations writes there"),
    Mutant("record-lost", "storage/run_folder.py", "or (self.path / schema.CLUSTERS).exists()", "or False",
           "test_damage.py", "a run whose record is lost goes on with other settings"),
    Mutant("sealed", "storage/checksums.py", "bad = damaged(path.parent, known) if known", "bad = [] if known",
           "test_sweep.py::test_damage_in_a_sweep_is_found_and_made_anew", "what a sweep kept is used though damaged"),
    Mutant("all-else-equal", "sweep/effects.py", "if not others or known.empty:", "if True:", "test_effects.py",
           "a failed setting makes an effect of another field"),
    Mutant("large-is-better", "sweep/effects.py", "return self.difference.clear and not self.large",
           "return self.difference.clear", "test_effects.py", "one cluster of everything is called better"),
    Mutant("large-passed-over", "sweep/effects.py", "np.where(large, -np.inf, means)", "np.asarray(means)",
           "test_effects.py", "a large cluster hides which of the others is better"),
    Mutant("large-recommended", "sweep/effects.py", '(means["largest"] <= LARGEST)', "True",
           "test_effects.py", "one cluster of everything is recommended"),
    Mutant("finely-recommended", "sweep/effects.py", 'means["clusters"].between(clusters / 2, clusters * 2) if',
           'means["clusters"] >= 0 if',
           "test_effects.py", "few large clusters are recommended"),
    Mutant("least-difference", "sweep/effects.py", "and abs(self.value) >= LEAST", "",
           "test_effects.py", "a difference that matters to nobody is called clear"),
    Mutant("found-again-asked", "sweep/effects.py", 'OUTCOME = "found_again_halves"', 'OUTCOME = "ari_halves"',
           "test_effects.py test_answers.py", "noise buys the verdicts"),
    Mutant("between-common", "sweep/trials.py", "(one[common], other[common])", "(one, other)",
           "test_sweep.py::test_what_two_groups_find_again_is_asked_of_features_that_both_keep",
           "features that a group does not keep count as not found again"),
    Mutant("report-recorded", "report.py", "        record_anew(", "        (lambda *_: None)(",
           "test_damage.py", "a report written again is called damaged"),
    Mutant("other-shards", "storage/markers.py", "for marker in markers if isinstance(marker, dict)",
           "for marker in markers if marker is None", "test_damage.py",
           "shards of other settings are overwritten where the template is damaged"),
    Mutant("shard-anew", "engine/pipeline.py", '            self.folder.begin("extract")', "            pass",
           "test_damage.py", "a damaged shard is never computed anew"),
    Mutant("chosen-place", "compute/gram.py", "place[a:b] - edge", "place[a:b]", "test_gram_pass.py",
           "features of a later block"),
    Mutant("other-layers", "compute/gram.py", "for codes in own:", "for codes in own[:1]:", "test_gram_pass.py",
           "groups that share prompts"),
    Mutant("dense-room", "hardware/budget.py", "max(allowed - base - dense, 0)", "max(allowed - base, 0)",
           "test_sweep.py::test_memory_decides_how_often_the_store_is_read", "tiles take all the memory"),
    Mutant("control-sequences", "terminal.py", "super().render_str(visible(text), **kwargs)",
           "super().render_str(text, **kwargs)", "test_cli.py", "a text acts on the terminal, or is cut"),
    Mutant("unknown-ids", "extraction/prompts.py", ">= n_ids]", "> n_ids]",
           "test_run.py::test_a_token_that_the_model_does_not_know_is_refused_before_extraction", "the first unknown"),
    Mutant("half-written", "storage/atomic.py", "        remove(partial)\n\n\ndef remove",
           "        pass\n\n\ndef remove",
           "test_atomic.py", "leftovers"),
    Mutant("gemm-rows", "compute/gram.py", "range(0, len(a), GEMM_ROWS)", "range(0, len(a), len(a))",
           "test_edges.py", "products of more rows than tensor cores add up well"),
    # ------------------------------------------------------------ workers that die
    Mutant("cancelled-is-done", "sweep/computation.py", "    if future.cancelled():", "    if False:",
           "test_failures.py", "a sweep takes what a lost scheduler cancelled for done"),
    Mutant("waits-for-ever", "engine/failures.py", "elif now - since > timeout:", "elif False:", "test_failures.py",
           "nobody ends the wait for workers that stay away"),
    Mutant("exit-passes", "hardware/device.py", "    except BaseException as error:  # nobody",
           "    except OSError as error:  # nobody", "test_failures.py", "SystemExit of a task ends its worker"),
    Mutant("one-certificate", "engine/security.py", "        if needed:", "        if False:", "test_security.py",
           "a missing certificate is Dask's to tell"),
    Mutant("close-raises", "engine/failures.py",
           "        except Exception as error:\n            log.info(\"%s did not",
           "        except KeyError as error:\n            log.info(\"%s did not", "test_failures.py",
           "a finished run fails because its workers close slowly"),
]  # fmt: skip


class Copy:
    """A copy of the repository that tests run on; mutants come and go in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)

    def run(self, tests: list[str], seconds: int = SECONDS) -> tuple[int, str]:
        """Run tests; return pytest's exit code, -1 where they take too long, and the end of what it said."""
        environment = os.environ | {"PYTHONPATH": str(self.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += [str(self.folder / "tests" / test) for test in tests]
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return -1, f"more than {seconds} seconds"
        return done.returncode, (done.stdout + done.stderr)[-3000:]

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """Put a mutant in, run its tests, take it out; return the verdict and what the tests said."""
        path = self.folder / mutant.path
        before = path.read_text(encoding="utf8")
        path.write_text(before.replace(mutant.old, mutant.new), encoding="utf8")
        try:
            code, said = self.run(mutant.tests.split())
        finally:
            path.write_text(before, encoding="utf8")
        return {0: SURVIVED, 1: KILLED}.get(code, BROKEN), said


def check(mutants: list[Mutant]) -> list[str]:
    """What is wrong with a list of mutants."""
    wrong = []
    names = [mutant.name for mutant in mutants]
    wrong += [f"{name}: the name is there {names.count(name)} times" for name in dict.fromkeys(names)
              if names.count(name) > 1]  # fmt: skip
    for mutant in mutants:
        count = (ROOT / mutant.path).read_text(encoding="utf8").count(mutant.old)
        if count != 1:
            wrong.append(f"{mutant.name}: {mutant.path} holds its text {count} times, not once: {mutant.old!r}")
    return wrong


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants of these names")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, each on a copy of its own")
    options = parser.parse_args()
    if wrong := check(MUTANTS):
        print(*wrong, sep="\n", file=sys.stderr)
        return 2
    unknown = set(options.only or ()) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"there is no mutant {', '.join(sorted(unknown))}; --list names all", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in MUTANTS if not options.only or mutant.name in options.only]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:24} {mutant.file:16} {mutant.why}")
        return 0
    with tempfile.TemporaryDirectory(prefix="gpuclust-mutants-") as folder:
        copies = [Copy(Path(folder) / str(number)) for number in range(max(options.jobs, 1))]
        tests = sorted({test for mutant in chosen for test in mutant.tests.split()})
        code, said = copies[0].run(tests, ALL_SECONDS)
        if code != 0:
            print(said, f"these tests do not pass without a mutant: {' '.join(tests)}", sep="\n", file=sys.stderr)
            return 2
        free = list(copies)

        def judge(mutant: Mutant) -> tuple[str, str, float]:
            copy, started = free.pop(), time.perf_counter()
            try:
                return (*copy.judge(mutant), time.perf_counter() - started)
            finally:
                free.append(copy)

        found: dict[str, list[str]] = {KILLED: [], SURVIVED: [], BROKEN: []}
        with ThreadPoolExecutor(len(copies)) as pool:
            for mutant, (verdict, said, seconds) in zip(chosen, pool.map(judge, chosen), strict=True):
                found[verdict].append(mutant.name)
                print(f"{verdict:9} {mutant.name:24} {seconds:5.1f} s  {mutant.file}: {mutant.why}", flush=True)
                if verdict == BROKEN:
                    print(said)
    print(f"{len(found[KILLED])} of {len(chosen)} killed")
    for verdict in (SURVIVED, BROKEN):
        if found[verdict]:
            print(f"{len(found[verdict])} {verdict}: {', '.join(found[verdict])}")
    return 1 if found[SURVIVED] or found[BROKEN] else 0


if __name__ == "__main__":
    sys.exit(main())
