// The page: what is open, search, keys, theme.

const dark = () => document.documentElement.dataset.theme === 'dark';

function say(text) { $('message').textContent = text; }

/** Opens a card; the address keeps it, so that the back button and a copied link work. */
function go(where) {
  if (location.hash.slice(1) === where) open();
  else location.hash = where;
}

function close() {
  $('card').classList.remove('open');
  unselect();
  if (addressed().kind) history.pushState(null, '', location.pathname + location.search);
  open();
}

/** What the address names: #f17, #c9 or #t2; #feature=17 and #cluster=9 are those of older reports. */
function addressed() {
  const [, name, digits] = location.hash.match(/^#(f|feature=|c|cluster=|t)(\d+)$/) || [];
  return {kind: name && {f: 'feature', c: 'cluster', t: 'theme'}[name[0]], id: Number(digits)};
}

/** Shows a card that no address names. */
function show(...card) {
  fill($('card'), ...card);
  $('card').classList.add('open');
  $('card').scrollTop = 0;
}

/** Shows what the address names. */
function open() {
  const {kind, id} = addressed(), exists = {feature: () => id < a.kept.length, cluster: () => clusterOf.has(id), theme: () => id < run.themes.length}[kind]?.();
  for (const row of document.querySelectorAll('#cluster-table tr.chosen')) row.classList.remove('chosen');
  say('');
  if (!exists) {
    fill($('card'), welcome());
    choose([]);
    return kind && say(`There is no ${kind} ${id}.`);
  }
  show({feature: featureCard, cluster: clusterCard, theme: themeCard}[kind](id));
  choose({feature: () => [id], cluster: () => members[id] || [], theme: () => run.themes[id].clusters.flatMap(c => members[c])}[kind]());
  if (kind === 'cluster') document.querySelector(`#cluster-table tr[data-key="${id}"]`)?.classList.add('chosen');
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $('theme').textContent = name === 'dark' ? '☀' : '☾';
}

function redraw() {
  for (const draw of Object.values(drawn)) draw();
  clusterTable?.draw();
  drawMomentTables();
  drawPairs();
  open();
}

function listen() {
  $('search').addEventListener('submit', event => { event.preventDefault(); search($('query').value); });
  $('theme').addEventListener('click', () => { setTheme(dark() ? 'light' : 'dark'); redraw(); });
  addEventListener('hashchange', open);
  addEventListener('popstate', open);
  addEventListener('keydown', event => {
    const typing = event.target.matches('input, select, textarea');
    if (event.key === '/' && !typing) { event.preventDefault(); $('query').focus(); }
    if (event.key === 'Escape' && (!typing || event.target.id === 'query')) close();
  });
  $('map').on('plotly_click', openPoint);
  $('map').on('plotly_selected', showSelection);
}

const openPoint = event => { const f = event.points[0]?.customdata; if (known(f)) go(`f${f}`); };

async function start() {
  const wished = matchMedia('(prefers-color-scheme: dark)');
  setTheme(wished.matches ? 'dark' : 'light');
  wished.addEventListener('change', event => { setTheme(event.matches ? 'dark' : 'light'); redraw(); });
  const begun = performance.now();
  await unpack();
  performance.measure('unpack', {start: begun});
  timed('tables', () => { drawRun(); drawClusters(); drawThemes(); drawMomentTables(); drawPairs(); drawAxes(); });
  drawColourings();
  drawn.map = drawMap;
  drawMap();
  watchMap();
  listen();
  onSight('moments', () => { drawMoments(); once('moments', 'plotly_click', openPoint); });
  if (run.n_clusters > 1) onSight('heat', drawHeat); else $('heat').remove();
  const clusterings = run.record.stages.cluster.members;
  if (clusterings > 1) {
    $('tree-of').textContent = `How the consensus came to the clusters: two features are the closer, the more of the ${clusterings} `
      + 'clusterings put them together. Noise joins last, at distance 1, and is not shown.';
  }
  if (a.tree_left) onSight('tree', () => {
    drawTree();
    once('tree', 'plotly_click', event => { if (event.points[0].customdata >= 0) go(`c${event.points[0].customdata}`); });
    once('tree', 'plotly_relayout', numberTree);
  });
  else $('tree-section').remove();
  open();
  document.documentElement.dataset.ready = 'true';
}

const heard = new Set();

function once(id, event, handler) {
  if (heard.has(id + event)) return;
  heard.add(id + event);
  $(id).on(event, handler);
}

start().catch(error => {
  say(`The report could not be drawn (${error.message}). A browser of 2023 or later is needed.`);
  console.error(error);
});
