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
  if (/^#(feature|cluster)=/.test(location.hash)) history.pushState(null, '', location.pathname + location.search);
  open();
}

/** Shows what the address names. */
function open() {
  const [, kind, digits] = location.hash.match(/^#(feature|cluster)=(\d+)$/) || [];
  const id = Number(digits), exists = kind === 'feature' ? id < a.kept.length : kind === 'cluster' && clusterOf.has(id);
  for (const row of document.querySelectorAll('#cluster-table tr.chosen')) row.classList.remove('chosen');
  if (!kind) {
    fill($('card'), welcome());
    choose([]);
    return;
  }
  if (!exists) return say(`There is no ${kind} ${digits}.`);
  say('');
  fill($('card'), kind === 'feature' ? featureCard(id) : clusterCard(id));
  $('card').classList.add('open');
  $('card').scrollTop = 0;
  choose(kind === 'feature' ? [id] : members[id] || []);
  if (kind === 'cluster') document.querySelector(`#cluster-table tr[data-key="${id}"]`)?.classList.add('chosen');
}

function search(text) {
  const wanted = text.trim(), cluster = wanted.match(/^c(?:luster)?\s*(\d+)$/i);
  if (!wanted) return;
  if (/^\d+$/.test(wanted)) {
    if (Number(wanted) >= a.kept.length) return say(`There is no feature ${wanted}; the last is ${a.kept.length - 1}.`);
    return go(`feature=${Number(wanted)}`);
  }
  if (cluster) {
    if (!clusterOf.has(Number(cluster[1]))) return say(`There is no cluster ${cluster[1]}; there are ${run.n_clusters}, from 0.`);
    return go(`cluster=${Number(cluster[1])}`);
  }
  $('filter').value = wanted;
  clusterTable.filter(wanted);
  $('clusters').scrollIntoView();
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
    if (event.target.matches('input, select, textarea')) return;
    if (event.key === '/') { event.preventDefault(); $('query').focus(); }
    if (event.key === 'Escape') close();
  });
  $('map').on('plotly_click', openPoint);
}

const openPoint = event => { const f = event.points[0]?.customdata; if (known(f)) go(`feature=${f}`); };

async function start() {
  const wished = matchMedia('(prefers-color-scheme: dark)');
  setTheme(wished.matches ? 'dark' : 'light');
  wished.addEventListener('change', event => { setTheme(event.matches ? 'dark' : 'light'); redraw(); });
  await unpack();
  drawRun();
  drawClusters();
  drawMomentTables();
  drawPairs();
  drawAxes();
  drawColourings();
  drawn.map = drawMap;
  drawMap();
  watchMap();
  listen();
  onSight('moments', () => { drawMoments(); once('moments', openPoint); });
  if (run.n_clusters > 1) onSight('heat', drawHeat); else $('heat').remove();
  const clusterings = run.record.stages.cluster.members;
  if (clusterings > 1) {
    $('tree-of').textContent = `How the consensus came to the clusters: two features are the closer, the more of the ${clusterings} `
      + 'clusterings put them together. Noise joins last, at distance 1, and is not shown.';
  }
  if (a.tree_left) onSight('tree', () => { drawTree(); once('tree', event => { if (event.points[0].customdata >= 0) go(`cluster=${event.points[0].customdata}`); }); });
  else $('tree-section').remove();
  open();
  document.documentElement.dataset.ready = 'true';
}

const heard = new Set();

function once(id, handler) {
  if (heard.has(id)) return;
  heard.add(id);
  $(id).on('plotly_click', handler);
}

start().catch(error => {
  say(`The report could not be drawn (${error.message}). A browser of 2023 or later is needed.`);
  console.error(error);
});
