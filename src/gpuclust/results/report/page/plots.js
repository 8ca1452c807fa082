// Plots, drawn by Plotly.

// No button of Plotly's may send the plot anywhere.
const CONFIG = {responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: '',
  modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'toImage', 'sendChartToCloud']};
const drawn = {}; // functions that draw a plot again, by the id of its element
const webgl = (() => {
  try { return Boolean(document.createElement('canvas').getContext('webgl')); } catch { return false; }
})();
const POINTS = webgl ? 'scattergl' : 'scatter';

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const ground = () => getComputedStyle(document.documentElement).getPropertyValue('--bg').trim();
const ink = () => getComputedStyle(document.documentElement).getPropertyValue('--fg').trim();
const line = () => getComputedStyle(document.documentElement).getPropertyValue('--line').trim();

function layout(x, y, more = {}) {
  const axis = {gridcolor: line(), zeroline: false, linecolor: line(), automargin: true};
  return {
    paper_bgcolor: 'transparent', plot_bgcolor: 'transparent', font: {color: ink(), family: FONT, size: 12}, showlegend: false,
    margin: {l: 55, r: 12, t: 34, b: 45}, hovermode: 'closest',
    hoverlabel: {align: 'left', bgcolor: ground(), bordercolor: line(), font: {color: ink(), family: FONT, size: 13}},
    modebar: {bgcolor: 'transparent', color: ink(), activecolor: ink()}, ...more,
    xaxis: {...axis, ...x}, yaxis: {...axis, ...y},
  };
}

/** Draws a plot when it comes into sight, and again when the theme changes. */
function onSight(id, draw) {
  const seen = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    seen.disconnect();
    drawn[id] = draw;
    draw();
  }, {rootMargin: '300px'});
  seen.observe($(id));
}

const label = f => `feature ${f}${a.label[f] >= 0 ? ` · cluster ${a.label[f]}` : a.kept[f] ? ' · noise' : ' · not kept'}`;

function points(features, x, y, marker, name) {
  return {
    type: POINTS, mode: 'markers', name, x: features.map(f => x[f]), y: features.map(f => y[f]), customdata: features,
    text: features.map(label), hoverinfo: 'text', marker,
  };
}

// ------------------------------------------------------------------ entropy, varentropy, sparsity

const AXES = {entropy: 'entropy (nats)', varentropy: 'varentropy (nats²)', sparsity: 'sparsity (share of prompts, log scale)'};
const PAIRS = [['entropy', 'sparsity'], ['entropy', 'varentropy'], ['sparsity', 'varentropy']];
let pair = 0;

function thresholds() {
  const s = run.settings.select;
  return {entropy: [s.entropy_low, s.entropy_high], varentropy: [], sparsity: [s.sparsity_min, s.sparsity_max]};
}

function drawMoments() {
  const [x, y] = PAIRS[pair], split = pair > 0, names = split ? quadrantNames() : ['kept'], groups = names.map(() => []), out = [];
  for (let f = 0; f < a.kept.length; f++) {
    if (a.quadrant[f] !== 255) groups[split ? a.quadrant[f] : 0].push(f);
    else if (a.max[f] > 0) out.push(f);
  }
  const size = a.kept.length > 15000 ? 3 : 5;
  const traces = [points(out, a[x], a[y], {color: hue(-1), size: size - 1, opacity: 0.5, symbol: 'x-thin-open'}, 'not kept')];
  names.forEach((name, i) => traces.push(points(groups[i], a[x], a[y],
    {color: hue(split ? run.quadrants[name] : 0), symbol: run.marks[i], size, opacity: 0.65}, name)));
  for (const trace of traces) trace.text = trace.customdata.map(f => `${label(f)}<br>${trace.name}`);
  const range = {}, shapes = [];
  for (const [name, letter] of [[x, 'x'], [y, 'y']]) {
    let low = Infinity, high = -Infinity;
    for (let f = 0; f < a.kept.length; f++) {
      const v = a[name][f];
      if (a.max[f] > 0 && (name !== 'sparsity' || v > 0)) { low = Math.min(low, v); high = Math.max(high, v); }
    }
    const other = letter === 'x' ? 'y' : 'x', log = name === 'sparsity';
    const pad = log ? 0.1 : 0.04 * (high - low || 1);
    range[letter] = log ? [Math.log10(low) - pad, Math.log10(high) + pad] : [low - pad, high + pad];
    const rule = (value, dash) => shapes.push({type: 'line', [`${letter}0`]: value, [`${letter}1`]: value, [`${other}0`]: 0,
      [`${other}1`]: 1, [`${other}ref`]: 'paper', line: {color: ink(), width: 1, dash}, opacity: 0.7});
    if (split && known(run.medians[name])) rule(run.medians[name], 'dot');
    for (const value of thresholds()[name]) {
      const place = log ? Math.log10(Math.max(value, 1e-9)) : value;
      if (place > range[letter][0] && place < range[letter][1]) rule(value, 'dash');
    }
  }
  const axis = (name, letter) => ({title: {text: AXES[name]}, type: name === 'sparsity' ? 'log' : 'linear', range: range[letter],
    exponentformat: 'e', ...(name === 'sparsity' ? {dtick: 1} : {})});
  Plotly.react('moments', traces, layout(axis(x, 'x'), axis(y, 'y'), {shapes, dragmode: 'pan', uirevision: String(pair)}), CONFIG);
}

function drawAxes() {
  const buttons = PAIRS.map(([x, y], i) => h('button', {type: 'button', 'aria-pressed': String(i === pair), onclick: () => {
    pair = i;
    buttons.forEach((button, j) => button.setAttribute('aria-pressed', String(j === i)));
    drawMoments();
  }}, `${x} × ${y}`));
  fill($('axes'), buttons);
}

// ------------------------------------------------------------------ similarity and tree

function drawHeat() {
  const order = run.heat_clusters, n = order.length;
  const z = Array.from({length: n}, (_, i) => Array.from(a.heat.subarray(i * n, (i + 1) * n), v => v / 127));
  const names = order.map(clusterName), middle = dark() ? '#16171a' : '#ffffff';
  const ticks = n <= 45 ? {tickvals: names, ticktext: names, tickfont: {size: n > 28 ? 9 : 11}} : {showticklabels: false, ticks: ''};
  Plotly.react('heat', [{
    type: 'heatmap', x: names, y: names, z, zmin: -1, zmax: 1, hovertemplate: '%{y} and %{x}: r = %{z:.2f}<extra></extra>',
    colorscale: [[0, '#d95f02'], [0.5, middle], [1, '#1f78d1']], colorbar: {title: {text: 'r'}, thickness: 10, len: 0.6, outlinewidth: 0},
  }], layout({type: 'category', constrain: 'domain', showgrid: false, ...ticks},
    {type: 'category', scaleanchor: 'x', constrain: 'domain', autorange: 'reversed', showgrid: false, ...ticks},
    {margin: {l: 40, r: 8, t: 34, b: 40}}), CONFIG);
}

function drawTree() {
  const n = a.tree_left.length, rows = Array.from({length: n}, (_, i) => i);
  const far = i => Math.log10(a.tree_far[i]), near = i => Math.log10(a.tree_near[i]);
  const ticks = [];
  const low = Math.min(...rows.map(near)), high = Math.max(...rows.map(far));
  const step = high - low > 1.5 ? [1] : high - low > 0.6 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  for (let e = Math.floor(low) - 1; e <= Math.ceil(high); e++) {
    for (const m of step) { const t = Math.log10(m) + e; if (t > low - 0.05 && t < high + 0.05) ticks.push(t); }
  }
  const flat = i => far(i) - near(i) < (high - low) / 50; // a consensus' root, which only holds the noise
  const end = Math.max(...rows.filter(i => !flat(i)).map(i => a.tree_left[i] + a.tree_size[i]), 1);
  Plotly.react('tree', [{
    type: 'bar', x: rows.map(i => a.tree_left[i] + a.tree_size[i] / 2), width: rows.map(i => a.tree_size[i]),
    base: rows.map(near), y: rows.map(i => Math.max(far(i) - near(i), (high - low) / 400)), customdata: rows.map(i => a.tree_cluster[i]),
    marker: {color: rows.map(i => a.tree_cluster[i] < 0 ? (dark() ? '#45474e' : '#d5d6db') : hue(a.tree_cluster[i])),
      line: {width: 0.5, color: dark() ? '#16171a' : '#ffffff'}},
    text: rows.map(i => `${a.tree_cluster[i] < 0 ? 'group' : `cluster ${a.tree_cluster[i]}: ${plain(head(title(a.tree_cluster[i]), 60))}`}`
      + `<br>${count(a.tree_size[i])} features, distances ${number(a.tree_far[i])} to ${number(a.tree_near[i])}`),
    hoverinfo: 'text', textposition: 'none',
  }, {type: 'scatter', mode: 'text', x: [], y: [], text: [], hoverinfo: 'skip', textfont: {size: 10, color: dark() ? '#16171a' : '#ffffff'}}], layout({title: {text: 'features, side by side'}, showgrid: false, range: [-0.01 * end, 1.01 * end]},
    {title: {text: 'distance (1/λ, log scale)'}, tickvals: ticks, ticktext: ticks.map(t => number(10 ** t, 2))}, {bargap: 0}), CONFIG);
  numberTree();
}

/** Writes the numbers of clusters into the boxes of the tree that are wide enough at its zoom. */
function numberTree() {
  const {xaxis, yaxis} = $('tree')._fullLayout, pixels = ({range: [low, high], _length}) => _length / Math.abs(high - low);
  const top = i => Math.log10(a.tree_far[i]), bottom = i => Math.log10(a.tree_near[i]);
  const rows = Array.from(a.tree_left.keys()).filter(i => a.tree_cluster[i] >= 0
    && a.tree_size[i] * pixels(xaxis) > 6.2 * String(a.tree_cluster[i]).length && (top(i) - bottom(i)) * pixels(yaxis) > 12);
  Plotly.restyle('tree', {x: [rows.map(i => a.tree_left[i] + a.tree_size[i] / 2)], y: [rows.map(i => (top(i) + bottom(i)) / 2)],
    text: [rows.map(i => String(a.tree_cluster[i]))]}, [1]);
}
