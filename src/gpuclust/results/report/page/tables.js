// Tables that sort and filter.

/**
 * A table with sortable heads. Columns: {name, title, value(row) to sort by, cell(row) to show, number, rare, words}.
 * Rows of which `last` is true come last until a head is clicked. Returns {filter(text)}.
 */
function sortable(table, columns, rows, {open, words, shown, sort, last}) {
  let [by, down] = sort, text = '', asked = false;
  const heads = columns.map((column, i) => h('th', {class: classes(column), scope: 'col', title: column.title},
    h('button', {type: 'button', onclick: () => {
      [by, down] = [i, by === i ? !down : Boolean(column.number)];
      asked = true;
      draw();
    }}, column.name)));
  const body = h('tbody');
  fill(table, h('thead', null, h('tr', null, heads)), body);

  function draw() {
    heads.forEach((head, i) => head.setAttribute('aria-sort', i === by ? (down ? 'descending' : 'ascending') : 'none'));
    const value = columns[by].value;
    const order = (x, y) => {
      if (!asked && last(x) !== last(y)) return last(x) - last(y);
      const [p, q] = [value(x), value(y)];
      if (!known(p) || !known(q)) return known(q) - known(p); // what is missing comes last
      return (typeof p === 'string' ? p.localeCompare(q) : p - q) * (down ? -1 : 1);
    };
    const wanted = text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter(row => wanted.every(word => words(row).includes(word))).sort(order);
    fill(body, found.map(row => h('tr', {class: 'pick', 'data-key': columns[0].value(row), onclick: () => open(row)},
      columns.map(column => h('td', {class: classes(column)}, column.cell(row))))));
    shown(found.length, rows.length);
  }
  draw();
  return {filter(value) { text = value; draw(); }, draw};
}

const classes = column => [column.number && 'n', column.rare && 'rare', column.words && 'words'].filter(Boolean).join(' ') || null;

let clusterTable = null;

function drawClusters() {
  const rows = clusters();
  const numeric = (key, name, heading, rare = true, show = number) =>
    ({name, title: heading, number: true, rare, value: row => row[key], cell: row => show(row[key])});
  const extra = ['stability', 'verdict', 'evidence'].filter(key => rows.some(row => known(row.more[key]))).map(key => ({
    name: key, title: 'from the quality checks', number: rows.every(row => typeof (row.more[key] ?? 0) === 'number'),
    value: row => row.more[key], cell: row => judged(row.more[key]),
  }));
  const columns = [
    {name: 'cluster', number: true, value: row => row.cluster, cell: row => clusterLink(row.cluster, false)},
    numeric('size', 'size', 'features', false),
    ...extra,
    {name: 'features peak at', title: 'words at which its features are strongest', words: true, value: row => title(row.cluster),
      cell: row => [row.name && h('b', null, `${row.name}: `), (row.tokens || []).slice(0, 7).join(' · ')]},
    {name: 'words of its prompts', title: 'words that mark the prompts on which it is strong', words: true,
      value: row => (row.keywords || []).join(' '), cell: row => (row.keywords || []).join(' ')},
    numeric('persistence', 'persist.', 'persistence: how long the cluster lasts as the density rises'),
    numeric('mean_activation', 'mean |a|', 'mean activation of its features over all prompts'),
    numeric('sparsity', 'sparsity', 'mean share of prompts on which its features are active'),
    numeric('decoder_cosine', 'decoder cos.', 'mean cosine between the decoder directions of its features'),
  ];
  clusterTable = sortable($('cluster-table'), columns, rows, {
    open: row => go(`c${row.cluster}`),
    words: wordsOf,
    shown: (found, all) => { $('shown').textContent = found === all ? `${count(all)} clusters` : `${count(found)} of ${count(all)} clusters`; },
    sort: [1, true],
    last: row => doubtful(row.cluster),
  });
  const judgedRows = rows.filter(row => known(row.more.verdict));
  if (judgedRows.length) {
    fill($('verdicts'), Object.entries(run.verdicts).map(([name, meaning]) => {
      const n = judgedRows.filter(row => row.more.verdict === name).length;
      return n ? h('div', null, h('dt', null, `${count(n)} ${name}`), h('dd', null, meaning)) : null;
    }));
  }
  $('filter').addEventListener('input', event => clusterTable.filter(event.target.value));
}

function drawThemes() {
  if (!run.themes.length) return $('themes').remove();
  $('themes-title').textContent = `${run.themes.length} themes: clusters that rise and fall together over the prompts`;
  fill($('themes-list'), h('p', {class: 'quiet'}, `For orientation.${themesTrusted()}`), run.themes.map(theme => h('details', null,
    h('summary', null, h('b', null, theme.words.map(visible).join(' · ') || `theme ${theme.theme}`),
      h('span', {class: 'quiet'}, ` ${count(theme.clusters.length)} clusters, ${count(theme.size)} features`)),
    h('table', null, h('tbody', null, ofTheme(theme))))));
}

const judged = value => typeof value === 'number' ? number(value) : known(value) ? String(value) : '–';

function drawPairs() {
  const shownOf = run.n_pairs > run.pairs.length ? `; the strongest ${run.pairs.length} are listed` : '';
  const heat = run.n_clusters > run.heat_clusters.length ? ` The heat map shows the ${run.heat_clusters.length} largest of ${run.n_clusters} clusters.` : '';
  $('similarity-text').textContent = 'Pearson correlation of the clusters’ activations over the prompts, ordered so that '
    + `clusters that go together are side by side.${heat} ${run.n_pairs ? count(run.n_pairs) : 'No'} pair${run.n_pairs === 1 ? '' : 's'} `
    + `with |r| above ${run.threshold}${shownOf}.`;
  if (!run.pairs.length) return;
  fill($('pairs'),
    h('thead', null, h('tr', null, h('th', {class: 'n'}, 'r'), h('th', null, 'cluster'), h('th', null, 'cluster'))),
    h('tbody', null, run.pairs.map(([x, y, r]) => h('tr', null, h('td', {class: 'n'}, (r > 0 ? '+' : '') + r.toFixed(3)),
      h('td', null, clusterLink(x)), h('td', null, clusterLink(y))))));
}

function drawRun() {
  const {record, settings} = run, stages = record.stages;
  const kept = a.kept.reduce((sum, x) => sum + x, 0), noise = clusterOf.get(-1)?.size || 0;
  const judged = Object.entries(record.stages.quality?.verdicts || {}).filter(([, n]) => n).map(([name, n]) => [count(n), `${n === 1 ? 'cluster' : 'clusters'} ${name}`]);
  const tiles = [
    [count(run.n_prompts), settings.extract.rows === 'prompt' ? 'prompts' : `prompts, compared over ${settings.extract.rows}s`], [count(kept), `of ${count(a.kept.length)} features kept`],
    ...(judged.length > 1 ? judged : [[count(run.n_clusters), judged.length && run.n_clusters > 1 ? judged[0][1].replace(' ', ', all ') : run.n_clusters === 1 ? 'cluster' : 'clusters']]),
    [share(noise / Math.max(kept, 1)), 'noise'],
  ];
  fill($('tiles'), tiles.map(([value, name]) => h('div', {class: 'tile'}, h('b', null, value), h('span', null, name))));
  $('headline').textContent = run.headline ? `${run.headline[0].toUpperCase()}${run.headline.slice(1)}.` : '';
  fill($('doubts'), run.doubts.map(text => h('p', {class: 'warn loud'}, text)));
  const told = new Set(run.doubts.map(text => `quality: ${text}`));
  fill($('warnings'), (record.warnings || []).filter(text => !told.has(text)).map(text => h('p', {class: 'warn'}, text)));
  const facts_ = [
    ['Model', `${run.model} (${run.loader})`], ['Hook', run.hook_name], ['SAE', run.sae],
    ['Prompts', `${count(run.n_prompts)}${stages.prompts.tokens ? `, ${count(stages.prompts.tokens)} tokens` : ''}, of ${
      settings.prompts.map(source => source.dataset || source.path).join(', ')}${run.n_sources > 1 ? `; ${count(run.n_sources)} sources` : ''}`],
    ['Features are compared over', comparedOver(stages, settings)],
    ['Aggregate over tokens', settings.extract.aggregate],
    ['Entries non-zero', share(stages.reduce.density)],
    ['Features that never fire', count(stages.reduce.dead_features)],
    ['Neighbours', `${stages.neighbors.method}, ${stages.neighbors.metric}`],
    ...clustering(stages, settings),
    ['Exact duplicates', known(stages.cluster.duplicates) ? `${count(stages.cluster.duplicates)} features, each clustered as the one that it copies` : 'not counted'],
    ['Scheduler', record.scheduler ? `${record.scheduler.name} on ${record.device}: ${record.scheduler.reason}` : '–'],
  ];
  for (const note of Object.values(stages).flatMap(stage => stage.notes || [])) facts_.push(['Note', note]);
  fill($('facts'), facts(facts_));
  const entries = Object.entries(stages), longest = Math.max(...entries.map(([, s]) => s.seconds || 0), 1e-9);
  const size = bytes => known(bytes) && bytes > 0 ? `${(bytes / 1e9).toFixed(2)} GB` : '–';
  fill($('stages'),
    h('thead', null, h('tr', null, ['stage', 'seconds', '', 'rows', 'largest process', 'projected'].map((name, i) =>
      h('th', {class: i && i !== 2 ? 'n' : i === 2 ? 'rare' : null}, name)))),
    h('tbody', null, entries.map(([name, s]) => h('tr', null, h('td', null, name),
      h('td', {class: 'n'}, known(s.seconds) ? s.seconds.toFixed(1) : '–'),
      h('td', {class: 'rare'}, h('span', {class: 'meter', style: `width:${(6 * (s.seconds || 0) / longest).toFixed(2)}rem`})),
      h('td', {class: 'n'}, known(s.rows) ? count(s.rows) : '–'),
      h('td', {class: 'n'}, size(Math.max(0, ...Object.values(s.peak_bytes || {})))),
      h('td', {class: 'n'}, size(s.projected_bytes))))));
  fill($('settings'), facts(flat(settings)));
  fill($('versions'), facts([...Object.entries(record.versions || {}), ['python', record.python || '–']]));
}

/** The rows of the neighbours: prompts, or what they are cut into. */
function comparedOver(stages, {extract: {rows = 'prompt', window}}) {
  const n = stages.neighbors.observed?.whole;
  return `${known(n) ? `${count(n)} ` : ''}${rows}s${rows === 'window' ? ` of ${window} tokens` : ''}`;
}

/** How features were clustered, why some are noise, and what other prompts find again. */
function clustering(stages, settings) {
  const {cluster, quality = {}} = stages, method = settings.cluster?.method;
  if (!method) return []; // a run by an earlier version
  const resolution = known(cluster.resolution) ? `, resolution ${number(cluster.resolution)}` : '';
  const eps = known(cluster.eps) ? ` on the ${cluster.on}, eps ${number(cluster.eps)}` : '';
  const rows = [['Clusters', `${method}${resolution}${eps}${cluster.members > 1 ? `, consensus of ${cluster.members}` : ''}`]];
  const reasons = Object.entries(cluster.noise_reasons || {});
  if (reasons.length) rows.push(['Noise', reasons.map(([reason, n]) => `${count(n)} ${reason}`).join(', ')]);
  const again = found => `${share(found.found_again)} of the features (Jaccard index 0.5; ${share(found.found_again_75)} at 0.75)`;
  if (known(quality.halves?.found_again)) rows.push(['Found again in the other half of the prompts', again(quality.halves)]);
  const once = quality.hdbscan;
  if (known(once?.halves?.found_again)) {
    rows.push(['One UMAP and HDBSCAN', `${count(once.clusters)} clusters, ${share(once.noise)} noise; found again ${
      again(once.halves)}; agrees with the clusters to AMI ${number(once.ami)}`]);
  }
  return rows;
}

/** Nested settings as rows. */
function flat(value, prefix = '') {
  if (value === null || typeof value !== 'object') return [[prefix, value === null ? '–' : String(value)]];
  return Object.entries(value).flatMap(([key, inner]) => flat(inner, prefix ? `${prefix}.${key}` : key));
}

function drawMomentTables() {
  const names = quadrantNames(), sizes = names.map(() => 0);
  for (const q of a.quadrant) if (q < names.length) sizes[q]++;
  const meaning = {Flowing: 'low entropy, low varentropy', Careful: 'high entropy, low varentropy',
    Exploring: 'low entropy, high varentropy', Resampling: 'high entropy, high varentropy'};
  fill($('quadrants'), h('h3', null, 'Quadrants of the kept features'), h('table', null, names.map((name, i) => h('tr', null,
    h('td', null, h('span', {class: 'chip'}, symbol(run.marks[i], hue(run.quadrants[name])), name)), h('td', {class: 'quiet'}, meaning[name] || ''),
    h('td', {class: 'n'}, count(sizes[i]))))));
  const removed = Object.entries(run.record.stages.select.removed);
  fill($('filters'), h('h3', null, 'What the filter removes'), h('table', null, removed.map(([name, n]) => h('tr', null,
    h('td', null, name), h('td', {class: 'n'}, `${count(n)} of ${count(a.kept.length)}`)))),
    h('p', {class: 'quiet'}, 'Each threshold on its own; a feature may fail several.'));
}
