// Search: a feature or cluster by its number, or words in clusters and at the peaks of features.

function search(text) {
  const wanted = text.trim(), [, kind, digits] = wanted.match(/^#?(c|cluster|f|feature)?\s*#?(\d+)$/i) || [];
  if (!wanted) return;
  if (!digits) return showFound(wanted);
  const n = Number(digits);
  if (kind && kind[0].toLowerCase() === 'c') {
    if (!members[n]) return say(`There is no cluster ${digits}; there are ${run.n_clusters}, from 0.`);
    return go(`c${n}`);
  }
  if (n >= a.kept.length) return say(`There is no feature ${digits}; the last is ${a.kept.length - 1}.`);
  go(`f${n}`);
}

function showFound(wanted) {
  const parts = wanted.toLowerCase().split(/\s+/);
  const found = clusters().filter(row => parts.every(part => spoken(row).includes(part)));
  const peaks = timed('search', () => peaksAt(wanted.toLowerCase())), features = [...peaks.keys()].sort((f, g) => peaks.get(g) - peaks.get(f) || f - g);
  if (!found.length && !features.length) return say(`Nothing matches "${wanted}".`);
  say('');
  show(
    heading(`“${wanted}”`),
    h('h3', null, `${count(found.length)} cluster${found.length === 1 ? '' : 's'} by their words`),
    h('table', null, h('tbody', null, found.slice(0, LISTED).map(row => h('tr', null, h('td', null, clusterLink(row.cluster)), h('td', {class: 'n'}, count(row.size)))))),
    firstOf(found.length),
    h('h3', null, `${count(features.length)} feature${features.length === 1 ? '' : 's'} that peak${features.length === 1 ? 's' : ''} there`),
    features.length ? featureTable(features, 'prompts', f => peaks.get(f)) : null, firstOf(features.length),
  );
}

/** The words of a cluster, and what the table's filter looks through, its number too. */
const spoken = row => [row.name || '', ...(row.tokens || []), ...(row.keywords || [])].join(' ').toLowerCase();
const wordsOf = row => `${row.cluster} c${row.cluster} ${spoken(row)}`;

/** In how many of its stored prompts each feature peaks within the words: found once a text, as many features share it. */
function peaksAt(wanted) {
  const found = new Map();
  if (!a.ctx_first) return found;
  const places = run.pieces.map(text => occurrences(text, wanted)), length = Array.from(wanted).length;
  for (let f = 0; f < a.kept.length; f++) {
    for (let i = a.ctx_first[f]; i < a.ctx_first[f + 1]; i++) {
      if (places[a.ctx_piece[i]].some(at => at < a.ctx_stop[i] && a.ctx_start[i] < at + length)) found.set(f, (found.get(f) || 0) + 1);
    }
  }
  return found;
}

/** Where words begin in a text, in code points. */
function occurrences(text, wanted) {
  const lower = text.toLowerCase(), found = [];
  const same = lower.length === text.length ? lower : Array.from(text, c => c.toLowerCase().length === c.length ? c.toLowerCase() : c).join(''); // places must stay
  const wide = /[\ud800-\udfff]/.test(text);
  for (let at = same.indexOf(wanted); at >= 0; at = same.indexOf(wanted, at + 1)) found.push(wide ? Array.from(same.slice(0, at)).length : at);
  return found;
}
