// The run's data: unpacked once, then read in place.

const TYPES = {uint8: Uint8Array, int8: Int8Array, int32: Int32Array, float32: Float32Array};
let run = {}; // plain data
let a = {}; // arrays, a value per feature, neighbour, context, node or pair
let keptFeatures = []; // their numbers
let keptRow = null; // row of each feature among the kept ones, -1
let members = []; // features of each cluster, strongest members first
let clusterOf = new Map(); // rows of the cluster table

async function unpack() {
  const text = $('data').textContent;
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const buffer = await new Response(stream).arrayBuffer();
  $('data').remove();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  run = header.data;
  for (const [name, {dtype, shape, offset}] of Object.entries(header.arrays)) {
    a[name] = new TYPES[dtype](buffer, 4 + length + offset, shape.reduce((x, y) => x * y, 1));
    a[name].width = shape[1];
  }
  index();
}

function index() {
  keptRow = new Int32Array(a.kept.length).fill(-1);
  for (let f = 0; f < a.kept.length; f++) {
    if (!a.kept[f]) continue;
    keptRow[f] = keptFeatures.push(f) - 1;
    if (a.label[f] >= 0) (members[a.label[f]] ||= []).push(f);
  }
  for (const list of members) list?.sort((f, g) => a.probability[g] - a.probability[f] || f - g);
  for (const cluster of run.clusters) clusterOf.set(cluster.cluster, cluster);
}

const clusters = () => run.clusters.filter(cluster => cluster.cluster >= 0);

/** The prompts in which a feature is strongest, with the place of the peak token. */
function contexts(feature) {
  if (!a.ctx_first) return [];
  const rows = [];
  for (let i = a.ctx_first[feature]; i < a.ctx_first[feature + 1]; i++) {
    const piece = a.ctx_piece[i], prompt = a.ctx_prompt[i], cut = a.piece_cut[piece];
    rows.push({
      prompt, value: a.ctx_value[i], text: run.pieces[piece], start: a.ctx_start[i], stop: a.ctx_stop[i],
      before: cut & 1, after: cut & 2, source: run.sources[a.prompt_source[prompt]],
    });
  }
  return rows;
}

/** Characters by code point, as the places of tokens count them. */
const slice = (text, start, stop) =>
  /[\ud800-\udfff]/.test(text) ? Array.from(text).slice(start, stop).join('') : text.slice(start, stop);

const SEGMENTS = {
  word: typeof Intl.Segmenter === 'function' && new Intl.Segmenter('en', {granularity: 'word'}),
  grapheme: typeof Intl.Segmenter === 'function' && new Intl.Segmenter('en', {granularity: 'grapheme'}),
};

/** The whole words that a token (in code points) touches, by Unicode's rules; a browser without them: letters around it. */
function wordAt(text, start, stop) {
  const before = slice(text, Math.max(0, start - 40), start), token = slice(text, start, stop), after = slice(text, stop, stop + 40);
  const near = before + token + after, end = before.length + token.length;
  if (!SEGMENTS.word) {
    const letters = /[\p{L}\p{M}]/u.test(token);
    return letters ? before.match(/[\p{L}\p{M}]*$/u)[0] + token + after.match(/^[\p{L}\p{M}]*/u)[0] : token;
  }
  const words = [...SEGMENTS.word.segment(near)].filter(s => s.isWordLike && s.index < end && s.index + s.segment.length > before.length);
  if (!words.length) return token;
  const last = words[words.length - 1];
  return near.slice(words[0].index, last.index + last.segment.length).normalize('NFC');
}

/** The first `n` characters of a text as a reader sees them: no emoji, accent or vowel sign is cut off. */
function head(text, n) {
  if (text.length <= n) return text;
  const characters = SEGMENTS.grapheme ? Array.from(SEGMENTS.grapheme.segment(text.slice(0, 8 * n)), s => s.segment) : Array.from(text);
  return characters.slice(0, n).join('');
}

/** The word at which a feature peaks in most of its prompts. */
function peak(feature) {
  const seen = new Map();
  for (const {text, start, stop} of contexts(feature)) {
    if (start < 0) continue;
    const word = wordAt(text, start, stop);
    seen.set(word, (seen.get(word) || 0) + 1);
  }
  return [...seen].sort((x, y) => y[1] - x[1])[0]?.[0] ?? '';
}

function neighbors(feature) {
  const row = keptRow[feature];
  if (row < 0 || !a.neighbor) return [];
  const width = a.neighbor.width;
  return Array.from({length: width}, (_, i) => ({feature: a.neighbor[row * width + i], distance: a.distance[row * width + i]}));
}

/** A short name of a cluster: its given name, or words at which its features peak. */
function title(cluster) {
  const row = clusterOf.get(cluster);
  if (cluster < 0) return 'noise';
  return row?.name || (row?.tokens || []).slice(0, 4).join(' · ') || (row?.keywords || []).slice(0, 4).join(' ') || '';
}

/** Whether a cluster's verdict is that chance may have made it. */
const doubtful = c => run.doubtful.includes(clusterOf.get(c)?.more.verdict);

const clusterName = c => c < 0 ? 'noise' : `c${c}`;
const hue = c => c < 0 ? (dark() ? '#6a6c74' : '#a9aab2') : run.hues[dark() ? 'dark' : 'light'][c % run.hues.light.length];
const mark = c => c < 0 ? 'circle' : run.marks[Math.floor(c / run.hues.light.length) % run.marks.length];
const quadrantNames = () => Object.keys(run.quadrants);
