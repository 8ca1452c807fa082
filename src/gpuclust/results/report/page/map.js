// The map: every kept feature a point, what it is coloured by, and rings around what is chosen.

let colouredBy = 'cluster';
let chosen = [];

function drawMap() {
  const kept = keptFeatures, noise = kept.filter(f => a.label[f] < 0), real = kept.filter(f => a.label[f] >= 0);
  const size = pointSize();
  const colouring = colourings()[colouredBy], {marker} = colouring;
  const titles = new Map(clusters().map(row => [row.cluster, plain(head(title(row.cluster), 60))]));
  const told = colouring.told ? f => `<br>${colouring.name}: ${plain(colouring.told(f))}` : () => '';
  const [outside, cloud] = timed('points', () => [
    points(noise, a.x, a.y, {...marker(noise), size: colouredBy === 'cluster' ? Math.max(size - 2, 2) : size}, 'noise'),
    points(real, a.x, a.y, {...marker(real), size, line: {width: 0}}, 'clusters'),
  ]);
  outside.text = noise.map(f => `${label(f)}${told(f)}`);
  cloud.text = real.map(f => `${label(f)}<br>${titles.get(a.label[f])}${told(f)}`);
  const bare = {showticklabels: false, showgrid: false, showline: false, ticks: ''};
  timed('Plotly: map', () => Plotly.react('map', [
    outside, cloud,
    {type: POINTS, mode: 'markers', ...ringed(), hoverinfo: 'skip', name: 'chosen',
      marker: {color: 'rgba(0,0,0,0)', size: size + 5, line: {width: ringWidth(), color: ink()}}},
  ], layout({...bare, range: extent(kept, a.x)}, {...bare, range: extent(kept, a.y), scaleanchor: 'x'},
    {margin: {l: 4, r: 4, t: 4, b: 4}, dragmode: 'pan', uirevision: 'map'}),
  {...CONFIG, scrollZoom: true, modeBarButtonsToRemove: CONFIG.modeBarButtonsToRemove.filter(name => !['select2d', 'lasso2d'].includes(name))}));
  fill($('legend'), colouring.legend());
}

/** Pixels across a point of a cluster. */
const pointSize = () => keptFeatures.length > 60000 ? 3 : keptFeatures.length > 15000 ? 4 : keptFeatures.length > 5000 ? 5 : 7;

/** Least and largest value, with a little room. */
function extent(features, values) {
  let low = Infinity, high = -Infinity;
  for (const f of features) { low = Math.min(low, values[f]); high = Math.max(high, values[f]); }
  const room = 0.03 * (high - low || 1);
  return [low - room, high + room];
}

const ringed = () => ({x: chosen.map(f => a.x[f]), y: chosen.map(f => a.y[f])});
const ringWidth = () => chosen.length > 1 ? 1 : 2.5;

/** Rings features on the map. */
function choose(features) {
  const there = features.filter(f => a.kept[f]);
  if (there.length === chosen.length && there.every((f, i) => f === chosen[i])) return; // all points are drawn anew
  chosen = there;
  const {x, y} = ringed();
  timed('Plotly: rings', () => Plotly.restyle('map', {x: [x], y: [y], 'marker.line.width': ringWidth()}, [2]));
}

function drawColourings() {
  const select = h('select', {onchange: event => { colouredBy = event.target.value; drawMap(); }},
    Object.entries(colourings()).map(([key, {name}]) => h('option', {value: key}, name)));
  fill($('colour-by'), h('label', null, 'Colour by ', select));
}
