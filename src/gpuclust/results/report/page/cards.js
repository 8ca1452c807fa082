// Cards: what is known of one feature, and of one cluster.

/** The mark of a cluster in its colour, as on the map. */
const glyph = c => symbol(mark(c), hue(c));

function symbol(shape, colour) {
  const shapes = {
    circle: 'M8 2a6 6 0 1 0 .01 0z', square: 'M2.5 2.5h11v11h-11z', diamond: 'M8 1l7 7-7 7-7-7z',
    cross: 'M5.5 2h5v3.5H14v5h-3.5V14h-5v-3.5H2v-5h3.5z', 'triangle-up': 'M8 1.5L15 14H1z',
    star: 'M8 .8l2.1 4.9 5.3.4-4 3.5 1.2 5.2L8 12l-4.6 2.8 1.2-5.2-4-3.5 5.3-.4z',
  };
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', shapes[shape]);
  path.setAttribute('fill', colour);
  svg.append(path);
  return svg;
}

function clusterLink(c, long = true) {
  const name = clusterName(c), words = long ? title(c) : '';
  if (c < 0) return h('span', {class: 'chip'}, glyph(c), name);
  return h('button', {class: 'link', type: 'button', onclick: event => { event.stopPropagation(); go(`c${c}`); }},
    h('span', {class: 'chip'}, glyph(c), name), words && ` ${words}`);
}

const featureLink = f => h('button', {class: 'link', type: 'button', onclick: () => go(`f${f}`)}, String(f));

const WINDOW = 170; // characters on either side of the peak that a card shows at first

/** A text with marked places [{start, stop, title}], in code points. */
function marked(text, marks) {
  const letters = /[\ud800-\udfff]/.test(text) ? Array.from(text) : text;
  const part = (from, to) => typeof letters === 'string' ? letters.slice(from, to) : letters.slice(from, to).join('');
  const children = [];
  let at = 0;
  for (const {start, stop, title: words} of marks.slice().sort((x, y) => x.start - y.start)) {
    if (start < at) continue;
    children.push(part(at, start), h('mark', {title: words}, part(start, stop)));
    at = stop;
  }
  return [...children, part(at, Infinity)];
}

/** Where to cut a text near `from` and `to`, outside of its peak: at a space close by, if any, and never inside a character. */
function cuts(letters, from, to, start, stop) {
  const near = 20, joined = i => /^[\p{M}\u200c\u200d\u{1f3fb}-\u{1f3ff}]/u.test(letters[i]) || letters[i - 1] === '\u200d';
  for (let i = from; from > 0 && i < Math.min(from + near, start); i++) if (letters[i - 1] === ' ') { from = i; break; }
  for (let i = to; to < letters.length && i > Math.max(to - near, stop); i--) if (letters[i] === ' ') { to = i; break; }
  while (from > 0 && from < letters.length && joined(from)) from--;
  while (to < letters.length && joined(to)) to++;
  return [from, to];
}

/** A prompt around its peak, whole on request. */
function context(row) {
  const size = /[\ud800-\udfff]/.test(row.text) ? Array.from(row.text).length : row.text.length;
  const letters = size === row.text.length ? row.text : Array.from(row.text);
  let from = Math.max(0, (row.start < 0 ? 0 : row.start) - WINDOW), to = Math.min(size, (row.start < 0 ? WINDOW : row.stop) + WINDOW);
  [from, to] = cuts(letters, from, to, row.start < 0 ? size : row.start, Math.max(row.stop, 0));
  const words = h('div');
  const show = (begin, end) => {
    const shift = row.start < 0 ? [] : [{start: row.start - begin, stop: row.stop - begin, title: 'the feature peaks here'}];
    fill(words, begin > 0 || row.before ? '… ' : '', marked(slice(row.text, begin, end), shift), end < size || row.after ? ' …' : '');
  };
  show(from, to);
  const more = from > 0 || to < size ? h('button', {class: 'link', type: 'button', onclick: event => {
    show(0, size);
    event.target.remove();
  }}, 'show all') : null;
  return h('div', {class: 'prompt'}, words,
    h('div', {class: 'about'}, h('span', null, `activation ${number(row.value)}`), h('span', null, `prompt ${row.prompt}`),
      run.n_sources > 1 && h('span', null, row.source), more));
}

function heading(name, previous, next) {
  return h('div', {class: 'top'}, h('h2', null, name), h('nav', {'aria-label': 'Neighbouring cards'},
    previous && h('button', {type: 'button', 'aria-label': 'previous', onclick: previous}, '‹'),
    next && h('button', {type: 'button', 'aria-label': 'next', onclick: next}, '›'),
    h('button', {type: 'button', class: 'close', 'aria-label': 'close', onclick: close}, '✕')));
}

const neuronpedia = path => `https://www.neuronpedia.org/${path}`;
const outward = (url, text) => h('p', null, h('a', {href: url, target: '_blank', rel: 'noopener noreferrer'}, text));

function featureCard(f) {
  const c = a.label[f], kept = a.kept[f], rows = contexts(f), near = neighbors(f);
  const last = a.kept.length - 1;
  return [
    heading(`Feature ${f}`, () => go(`f${f ? f - 1 : last}`), () => go(`f${f < last ? f + 1 : 0}`)),
    h('p', null, kept ? clusterLink(c) : h('span', {class: 'quiet'}, a.max[f] > 0 ? 'Removed by the filter: in no cluster.' : 'Never fires on these prompts.')),
    kept && c < 0 && run.noise_reasons[a.noise_reason?.[f]] && h('p', {class: 'quiet'}, `Noise: ${run.noise_reasons[a.noise_reason[f]]}.`),
    stats([
      kept && ['probability', number(a.probability[f]), 'of belonging to its cluster'],
      kept && ['outlier score', number(a.outlier_score?.[f]), 'GLOSH: 0 typical, 1 outlying'],
      kept && ['quadrant', quadrantNames()[a.quadrant[f]] || '–'],
      ['active on', `${count(a.n_active[f])} prompts`], ['sparsity', number(a.sparsity[f]), 'share of prompts on which it is active'],
      ['entropy', `${number(a.entropy[f])} nats`], ['varentropy', `${number(a.varentropy[f])} nats²`],
      ['mean |a|', number(a.mean[f])], ['std |a|', number(a.std[f])], ['max |a|', number(a.max[f])],
    ].filter(Boolean)),
    run.neuronpedia_id && outward(neuronpedia(`${run.neuronpedia_id}/${f}`), 'Neuronpedia'),
    h('h3', null, 'Strongest prompts'),
    rows.length ? rows.map(context) : h('p', {class: 'quiet'}, 'None are stored.'),
    near.length ? [h('h3', null, 'Nearest features'), h('table', null,
      h('thead', null, h('tr', null, h('th', {class: 'n'}, 'feature'), h('th', {class: 'n'}, 'distance'), h('th', null, 'cluster'), h('th', null, 'peaks at'))),
      h('tbody', null, near.map(({feature, distance}) => h('tr', null, h('td', {class: 'n'}, featureLink(feature)),
        h('td', {class: 'n'}, number(distance)), h('td', null, clusterLink(a.label[feature], false)), h('td', null, visible(peak(feature)))))))] : null,
  ];
}

const words = (name, about, list) => list?.length ? [h('h3', null, name), about && h('p', {class: 'quiet'}, about),
  h('ul', {class: 'tokens'}, list.map(word => h('li', null, visible(word))))] : null;

function promptList(name, about, rows) {
  return rows.length ? [h('h3', null, name), h('p', {class: 'quiet'}, about), rows.map(row => h('div', {class: 'prompt'},
    row.text && h('div', null, marked(row.text, row.marks.map(({start, stop, features}) =>
      ({start, stop, title: `${features} of its features peak${features === 1 ? 's' : ''} here`})))),
    h('div', {class: 'about'}, h('span', null, `mean |a| ${number(row.activation)}`), h('span', null, `prompt ${row.prompt}`),
      h('span', null, row.n_tokens >= 0 ? `${count(row.n_tokens)} tokens` : `${count(row.n_chars)} characters`),
      run.n_sources > 1 && h('span', null, row.source))))] : null;
}

const FIRING = 6; // features of a context that are listed at first

/** Where most of a cluster's features fire at once: on a token, or within a window. */
function together(c) {
  const rows = clusterOf.get(c).contexts, size = members[c]?.length ?? 0, row = run.settings.extract.rows;
  if (!rows.length) return null;
  const firing = list => {
    const shown = n => list.slice(0, n).flatMap((f, i) => [i ? ', ' : '', featureLink(f)]);
    const span = h('span', null, shown(FIRING));
    if (list.length > FIRING) span.append(', ', h('button', {class: 'link', type: 'button', onclick: () => fill(span, shown(list.length))}, `${list.length - FIRING} more`));
    return span;
  };
  return [h('h3', null, 'Its features fire together'), h('p', {class: 'quiet'}, `The ${row}s on which most of them fire at once; of a prompt one at most.`),
    rows.map(({text, start, stop, prompt, position, n_tokens, n_features: n, features}) => h('div', {class: 'prompt'},
      text && h('div', null, marked(text, start < 0 ? [] : [{start, stop, title: `${n} of ${size} features fire ${row === 'token' ? 'on this token' : 'within this window'}`}])),
      h('div', {class: 'about'}, h('span', null, `${count(n)} of ${count(size)} features`), firing(features), h('span', null, `prompt ${prompt}`),
        !text && h('span', null, n_tokens === 1 ? `the token at position ${position}` : `${n_tokens} tokens from position ${position} on`),
        run.n_sources > 1 && h('span', null, run.sources[a.prompt_source[prompt]]))))];
}

const MEMBERS = 12;

function memberTable(c) {
  const list = members[c] || [], body = h('tbody'), peaks = list.some(peak); // of imported prompts there may be no words
  const show = n => fill(body, list.slice(0, n).map(f => h('tr', null, h('td', {class: 'n'}, featureLink(f)),
    h('td', {class: 'n'}, number(a.probability[f], 2)), h('td', {class: 'n'}, number(a.max[f])), peaks && h('td', null, visible(peak(f))))));
  show(MEMBERS);
  return [h('h3', null, `Its ${count(list.length)} features`), h('table', null, h('thead', null, h('tr', null,
    h('th', {class: 'n'}, 'feature'), h('th', {class: 'n'}, 'prob.'), h('th', {class: 'n'}, 'max |a|'), peaks && h('th', null, 'peaks at'))), body),
    list.length > MEMBERS && h('button', {type: 'button', onclick: event => { show(list.length); event.target.remove(); }}, `all ${count(list.length)}`)];
}

function quickList(c) {
  if (!run.neuronpedia_id?.includes('/')) return null;
  const [model, layer] = run.neuronpedia_id.split('/');
  const list = (members[c] || []).slice(0, 50).map(f => ({modelId: model, layer, index: String(f)}));
  const url = `${neuronpedia('quick-list/')}?name=${encodeURIComponent(`cluster ${c}`)}&features=${encodeURIComponent(JSON.stringify(list))}`;
  return outward(url, `Its ${list.length === members[c].length ? '' : `first ${list.length} `}features on Neuronpedia`);
}

function decoderText(row) {
  if (!known(row.decoder_cosine)) return null;
  const verdict = row.decoder_cosine_p <= 0.01 ? 'closer than random sets' : row.decoder_cosine_p <= 0.05 ? 'somewhat closer than random sets'
    : 'no closer than random sets';
  const silent = row.promoted_tokens?.length && !promotes(row) ? ' What their mean promotes says nothing and is not shown.' : '';
  return [h('h3', null, 'Decoder directions'), h('p', null, `Mean cosine ${number(row.decoder_cosine)} between its features; ${
    number(row.decoder_cosine_random)} in random sets of the same size: ${verdict} (p = ${number(row.decoder_cosine_p, 2)}).${silent}`)];
}

/** Whether the mean decoder direction is one: not where the directions are no closer than random sets. */
const promotes = row => !(row.decoder_cosine_p > 0.05);

function sourceList(row) {
  if (run.n_sources < 2 || !row.sources.length) return null;
  return [h('h3', null, 'Sources of its most distinctive prompts'), h('table', null,
    h('thead', null, h('tr', null, h('th', null, 'source'), h('th', {class: 'n'}, 'here'), h('th', {class: 'n'}, 'of all prompts'))),
    h('tbody', null, row.sources.map(s => h('tr', null, h('td', null, s.source), h('td', {class: 'n'}, share(s.share)), h('td', {class: 'n'}, share(s.overall)))))),
    row.more_sources > 0 && h('p', {class: 'quiet'}, `and ${count(row.more_sources)} more`)];
}

function correlated(c) {
  const rows = run.pairs.filter(([x, y]) => x === c || y === c).slice(0, 8);
  return rows.length ? [h('h3', null, 'Goes together with'), h('table', null, rows.map(([x, y, r]) =>
    h('tr', null, h('td', {class: 'n'}, (r > 0 ? '+' : '') + r.toFixed(2)), h('td', null, clusterLink(x === c ? y : x)))))] : null;
}

function clusterCard(c) {
  const row = clusterOf.get(c), {verdict, verdict_reason: why} = row.more;
  const more = Object.entries(row.more).filter(([name]) => !name.startsWith('verdict') && name !== 'evidence');
  const above = new Set(row.distinctive_prompts.map(({prompt}) => prompt));
  const strongest = row.top_prompts.filter(({prompt}) => !above.has(prompt)), again = row.top_prompts.length - strongest.length;
  return [
    heading(`Cluster ${c}`, () => go(`c${c ? c - 1 : run.n_clusters - 1}`), () => go(`c${(c + 1) % run.n_clusters}`)),
    h('p', null, h('span', {class: 'chip'}, glyph(c)), ' ', h('b', null, title(c))),
    known(verdict) && h('p', {class: doubtful(c) ? 'warn' : null}, h('b', null, verdict), known(why) ? `: ${why}.` : ''),
    stats([
      ['features', count(row.size)], ['of the kept', share(row.ratio)], ['persistence', number(row.persistence), 'how long it lasts as the density rises'],
      ['mean |a|', number(row.mean_activation)], ['std |a|', number(row.std_activation)], ['max |a|', number(row.max_activation)],
      ['sparsity', number(row.sparsity), 'mean share of prompts on which its features are active'],
      ...more.map(([name, value]) => [name.replaceAll('_', ' '), judged(value)]),
    ]),
    words('Features peak at', null, row.tokens),
    words('Words of its prompts', null, row.keywords),
    row.tried.length && [h('h3', null, 'What was tried on it'), row.tried.map(([name, text]) =>
      h('p', {class: 'tried'}, h('b', null, name), ` ${text}`))],
    together(c),
    memberTable(c), quickList(c),
    known(row.theme) && h('p', null, 'Its theme: ', themeLink(run.themes[row.theme])),
    promptList('Most distinctive prompts', 'Strongest relative to the other clusters; marked where its features peak.', row.distinctive_prompts),
    promptList('Strongest prompts', `By mean |a| of its features; long prompts come first.${again ? ` ${again} more ${again === 1 ? 'is' : 'are'} above.` : ''}`, strongest),
    correlated(c), sourceList(row), decoderText(row),
    promotes(row) && words('Output tokens promoted', 'By its mean decoder direction through the unembedding alone; in early layers this says little.',
      row.promoted_tokens?.filter(token => token.trim())),
  ];
}

const themeLink = ({theme, words: list}) => h('button', {class: 'link', type: 'button', onclick: () => go(`t${theme}`)},
  h('span', {class: 'chip'}, `t${theme}`), ` ${list.map(visible).join(' · ')}`);

const ofTheme = theme => theme.clusters.map(c => h('tr', null, h('td', null, clusterLink(c)),
  h('td', {class: 'n'}, count(clusterOf.get(c).size)), h('td', {class: 'quiet verdict'}, clusterOf.get(c).more.verdict || '')));

/** How far the themes can be trusted. */
const themesTrusted = () => known(run.themes_agree) ? ` Themes drawn from either half of the prompts agree to an adjusted Rand index of ${
  number(run.themes_agree, 2)} (1: the same, 0: chance).` : '';

function themeCard(t) {
  const theme = run.themes[t], n = run.themes.length;
  return [
    heading(`Theme ${t}`, () => go(`t${t ? t - 1 : n - 1}`), () => go(`t${(t + 1) % n}`)),
    h('p', null, h('b', null, theme.words.map(visible).join(' · '))),
    h('p', {class: 'quiet'}, `Clusters that rise and fall together over the prompts.${themesTrusted()}`),
    stats([['clusters', count(theme.clusters.length)], ['features', count(theme.size)]]),
    h('table', null, h('tbody', null, ofTheme(theme))),
  ];
}

function welcome() {
  const large = clusters().sort((x, y) => doubtful(x.cluster) - doubtful(y.cluster) || y.size - x.size).slice(0, 12);
  return [h('h2', null, 'Cards'), h('p', {class: 'quiet'}, 'Click a point on the map or a cluster to see it here.'),
    large.length ? [h('h3', null, 'Clusters to begin with'), h('table', null, large.map(row =>
      h('tr', null, h('td', null, clusterLink(row.cluster)), h('td', {class: 'n'}, count(row.size)))))]
      : h('p', null, 'There are no clusters: every kept feature is noise.')];
}
