// Names over the map: placed on boxes of the screen, most trusted first; zooming in shows more. Far out themes come first.

const LINE = 17; // pixels: height of a name
const FAR = 1.7; // zoom below which themes are named
let named = null; // {text, kind, x, y, width} of each theme and cluster, the first to be placed first
let awaited = false;

/** The name of a cluster on the map: its given name, or the first words at which its features peak. */
function shortName(row) {
  const tokens = (row.tokens || []).filter(token => /[\p{L}\p{N}]/u.test(token)).map(visible);
  const three = tokens.slice(0, 3).join(' · '), long = row.name || (three.length > 24 ? tokens.slice(0, 2).join(' · ') : three)
    || clusterName(row.cluster);
  const short = head(long, 28);
  return short.length < long.length ? `${short.trimEnd()}…` : short;
}

/** A member near the median of a cluster's members: where it lies in two places, one in the larger. */
function middle(features) {
  const median = values => Float64Array.from(features, f => values[f]).sort()[features.length >> 1];
  const x = median(a.x), y = median(a.y), far = f => (a.x[f] - x) ** 2 + (a.y[f] - y) ** 2;
  return features.reduce((f, g) => far(g) < far(f) ? g : f);
}

function collectNames() {
  const pen = document.createElement('canvas').getContext('2d');
  const width = (text, font) => { pen.font = `${font} ${FONT}`; return pen.measureText(text).width + 6; };
  const foundAgain = row => row.size * (row.more.stability ?? 1);
  const fine = clusters().filter(row => members[row.cluster]).map(row => {
    const text = shortName(row), faint = doubtful(row.cluster), f = middle(members[row.cluster]);
    return {cluster: row.cluster, text, kind: faint ? 'faint' : null, rank: foundAgain(row), x: a.x[f], y: a.y[f],
      width: width(text, `${faint ? 400 : 600} 12px`)};
  }).sort((p, q) => Boolean(p.kind) - Boolean(q.kind) || q.rank - p.rank);
  const coarse = run.themes.filter(theme => theme.doubtful < theme.clusters.length).map(theme => {
    const text = themeName(theme), f = middle(theme.clusters.flatMap(c => members[c]));
    return {theme: theme.theme, text, kind: 'theme', x: a.x[f], y: a.y[f], width: width(text, '700 15px')};
  });
  return {coarse, fine};
}

/** The words of a theme, as many as are short enough for the map. */
function themeName({theme, words}) {
  const short = words.map(visible).reduce((text, word) => !text ? word : text.length + word.length < 24 ? `${text} · ${word}` : text, '');
  return short ? head(short, 28) : `theme ${theme}`;
}

/**
 * Boxes {left, top, width} of the names that have room where a unit of x is `perX` pixels, the first names first. The
 * whole map is filled, not what is in sight: which names are there depends on the zoom alone, and moving changes none.
 */
function room(names, perX, perY) {
  const rows = new Map(), placed = []; // those placed, by row of the screen
  for (const name of names) {
    const left = name.x * perX - name.width / 2, top = -name.y * perY - LINE / 2, row = Math.floor(top / LINE);
    const near = [row - 1, row, row + 1].flatMap(r => rows.get(r) || []);
    if (near.some(o => Math.abs(o.top - top) < LINE && left < o.left + o.name.width && o.left < left + name.width)) continue;
    const box = {name, left, top};
    rows.set(row, [...(rows.get(row) || []), box]);
    placed.push(box);
  }
  return placed;
}

function placeNames() {
  awaited = false;
  named ||= collectNames();
  const {xaxis, yaxis} = $('map')._fullLayout, [x0, x1] = xaxis.range, [y0, y1] = yaxis.range;
  const far = (named.whole ||= x1 - x0) / (x1 - x0) < FAR; // whole: what was in sight at first
  const perX = xaxis._length / (x1 - x0), perY = yaxis._length / (y1 - y0);
  const frame = $('names').getBoundingClientRect(), buttons = $('map').querySelector('.modebar').getBoundingClientRect();
  const free = ({name, left, top}) => left >= 0 && top >= 0 && left + name.width <= xaxis._length && top + LINE <= yaxis._length
    && (left + xaxis._offset + name.width < buttons.left - frame.left || top + yaxis._offset > buttons.bottom - frame.top);
  const boxes = room(far ? [...named.coarse, ...named.fine] : named.fine, perX, perY).map(box => ({...box, left: box.left - x0 * perX, top: box.top + y1 * perY})).filter(free);
  boxes.forEach(({name, left, top}) => {
    name.element ||= h('span', {class: name.kind, 'data-cluster': name.cluster, 'data-theme': name.theme}, name.text);
    name.element.style.transform = `translate(${(left + xaxis._offset).toFixed(1)}px, ${(top + yaxis._offset).toFixed(1)}px)`;
  });
  fill($('names'), boxes.map(({name}) => name.element));
}

/** Places the names once more before the next picture. */
function moved() {
  if (awaited) return;
  awaited = true;
  requestAnimationFrame(() => timed('names', placeNames));
}

function watchMap() {
  for (const event of ['plotly_relayouting', 'plotly_afterplot']) $('map').on(event, moved);
  moved();
}
