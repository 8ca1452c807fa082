// What a lasso or a box on the map holds.

const LISTED = 200;

/** A table of features, of which the first are shown; `more(feature)` is a last cell. */
function featureTable(features, name, more) {
  return h('table', null,
    h('thead', null, h('tr', null, h('th', {class: 'n'}, 'feature'), h('th', null, 'cluster'), h('th', null, 'peaks at'), more && h('th', {class: 'n'}, name))),
    h('tbody', null, features.slice(0, LISTED).map(f => h('tr', null, h('td', {class: 'n'}, featureLink(f)),
      h('td', null, clusterLink(a.label[f], false)), h('td', null, visible(peak(f))), more && h('td', {class: 'n'}, more(f))))));
}

const firstOf = n => n > LISTED && h('p', {class: 'quiet'}, `The first ${LISTED} of ${count(n)}.`);

function showSelection(event) {
  const held = (event?.points || []).map(point => point.customdata).filter(known).sort((f, g) => f - g);
  if (!held.length) return;
  const sizes = new Map();
  for (const f of held) sizes.set(a.label[f], (sizes.get(a.label[f]) || 0) + 1);
  const largest = [...sizes].sort((x, y) => y[1] - x[1] || x[0] - y[0]);
  show(
    heading(`${count(held.length)} features`),
    h('p', null, 'Held by the lasso or box. ', h('button', {type: 'button', onclick: close}, 'let go')),
    h('h3', null, 'By cluster'),
    h('table', null, h('tbody', null, largest.slice(0, LISTED).map(([c, n]) => h('tr', null, h('td', null, clusterLink(c)),
      h('td', {class: 'n'}, `${count(n)} of ${count(c < 0 ? clusterOf.get(-1).size : members[c].length)}`))))),
    h('h3', null, 'Features'), featureTable(held), firstOf(held.length),
  );
}

/** Lets go of what a lasso or box holds. */
const unselect = () => $('map').layout.selections?.length && Plotly.update('map', {selectedpoints: [null]}, {selections: []}, [0, 1]);
