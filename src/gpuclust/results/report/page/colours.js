// What the map can be coloured by. Each way has a name, marker(features) for Plotly, told(feature) and legend().

const SCALE = { // viridis, its ends moved away from the ground
  light: ['#440154', '#3b528b', '#21918c', '#5ec962', '#c8b900'],
  dark: ['#8a5fd0', '#4f7fd0', '#2fb0a5', '#7fd66b', '#fde725'],
};
const scale = () => SCALE[dark() ? 'dark' : 'light'];

function colourings() {
  const verdicts = Object.keys(run.verdicts), judged = clusters().some(row => known(row.more.verdict));
  const evidence = Object.keys(run.evidence), tried = clusters().some(row => known(row.more.evidence));
  const {themes} = run, ofTheme = f => clusterOf.get(a.label[f])?.theme ?? -1;
  const reasons = run.noise_reasons.map(text => text.split(':')[0]);
  return {
    cluster: byLabel('cluster', a.label, f => a.label[f] < 0 ? 0.45 : doubtful(a.label[f]) ? 0.2 : 0.85, null),
    ...(a.hdbscan_label && {hdbscan: byLabel('cluster of one UMAP and HDBSCAN', a.hdbscan_label, f => a.hdbscan_label[f] < 0 ? 0.3 : 0.85, f => clusterNumber(a.hdbscan_label[f]))}),
    ...(judged && {verdict: byCategory('verdict of the cluster', verdicts, f => verdicts.indexOf(clusterOf.get(a.label[f])?.more.verdict), 'noise')}),
    ...(tried && {evidence: byCategory('evidence for the cluster', evidence, f => evidence.indexOf(clusterOf.get(a.label[f])?.more.evidence), 'noise, or not tried', name => run.evidence_hues[name])}),
    ...(themes.length && {theme: byCategory('theme', themes.map(themeName), ofTheme, 'noise')}),
    ...(a.noise_reason && {noise: byCategory('why it is noise', reasons, f => a.noise_reason[f], 'in a cluster')}),
    entropy: byNumber('entropy', f => a.entropy[f]),
    sparsity: byNumber('sparsity', f => a.sparsity[f], true),
    quadrant: byCategory('quadrant', quadrantNames(), f => a.quadrant[f], 'none', name => run.quadrants[name]),
    ...sourceColourings(),
  };
}

/** By the sources of the strongest prompts of a feature: the source of most, and the share of each where they are few. */
function sourceColourings() {
  const shares = a.source_shares, n = run.coloured_sources.length;
  if (!shares) return {};
  const names = run.coloured_sources.map(s => run.sources[s]), place = new Map(run.coloured_sources.map((s, i) => [s, i]));
  const of = i => f => shares[f * n + i];
  return {
    source: {...byCategory('source of most of its strongest prompts', names, f => place.get(a.source_first[f]) ?? -1, 'other sources'),
      told: f => run.sources[a.source_first[f]] ?? 'none'},
    ...(run.n_sources === n && Object.fromEntries(names.map((name, i) =>
      [`source${i}`, {...byNumber(`share of its strongest prompts from ${name}`, of(i)), told: f => share(of(i)(f))}]))),
  };
}

/** Whether points are large enough for marks to be told apart; small ones are circles, which are drawn four times as fast. */
const marksShown = () => pointSize() >= 5;

const clusterNumber = c => c < 0 ? 'noise' : String(c);

function byLabel(name, labels, opacity, told) {
  return {
    name, told,
    marker: features => ({color: features.map(f => hue(labels[f])), symbol: marksShown() ? features.map(f => mark(labels[f])) : 'circle', opacity: features.map(opacity)}),
    legend() {
      const faded = !told && clusters().some(row => doubtful(row.cluster));
      const means = marksShown() ? 'colours and marks' : 'colours';
      const n = new Set(keptFeatures.map(f => labels[f]).filter(c => c >= 0)).size;
      return h('span', null, told ? `${count(n)} clusters, whose ${means} repeat; noise is grey. The names are those of the run's own clusters.`
        : `Clusters are told apart by ${means}, which repeat; noise is grey${faded ? '; clusters that are not found again or no better than random are faded' : ''}.`);
    },
  };
}

/** Categories by number; every other number is `rest`, in grey. */
function byCategory(name, names, of, rest, hueOf = (_, i) => i) {
  const colour = i => hue(names[i] === undefined ? -1 : hueOf(names[i], i));
  const shape = i => names[i] === undefined || !marksShown() ? 'circle' : run.marks[i % run.marks.length];
  return {
    name, told: f => names[of(f)] ?? rest,
    marker: features => ({color: features.map(f => colour(of(f))), symbol: marksShown() ? features.map(f => shape(of(f))) : 'circle',
      opacity: features.map(f => names[of(f)] === undefined ? 0.3 : 0.85)}),
    legend() {
      const sizes = new Map();
      for (const f of keptFeatures) sizes.set(names[of(f)], (sizes.get(names[of(f)]) || 0) + 1);
      return [...names.keys(), -1].filter(i => sizes.has(names[i])).map(i =>
        h('span', {class: 'chip'}, symbol(shape(i), colour(i)), `${names[i] ?? rest} (${count(sizes.get(names[i]))})`));
    },
  };
}

/** Numbers on a scale between those below and above which 2% of the features lie. */
function byNumber(name, value, log = false) {
  const place = f => log ? Math.log10(Math.max(value(f), 1e-9)) : value(f);
  const ends = () => {
    const sorted = Float64Array.from(keptFeatures, place).sort();
    return [0.02, 0.98].map(share => sorted[Math.floor(share * (sorted.length - 1))]);
  };
  return {
    name: log ? `${name} (log scale)` : name, told: f => number(value(f)),
    marker(features) {
      const [cmin, cmax] = ends();
      return {color: features.map(place), cmin, cmax, colorscale: scale().map((colour, i, all) => [i / (all.length - 1), colour]), opacity: 0.85};
    },
    legend() {
      const [low, high] = ends().map(end => number(log ? 10 ** end : end));
      return [h('span', null, `≤ ${low}`), h('span', {class: 'scale', style: `background: linear-gradient(to right, ${scale().join(', ')})`}), h('span', null, `≥ ${high}`)];
    },
  };
}
