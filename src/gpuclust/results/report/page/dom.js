// Elements and numbers. Text is only ever set as text: nothing here parses HTML.

const $ = id => document.getElementById(id);

/** Makes an element: attributes and `on…` handlers by name, children as strings or elements. */
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const fill = (element, ...children) => element.replaceChildren(...children.flat(Infinity).filter(child => child));

const known = value => value !== null && value !== undefined && !Number.isNaN(value);
const count = n => Math.round(n).toLocaleString('en-US');
const share = x => !known(x) ? '–' : x > 0 && x < 0.001 ? '<0.1%' : `${(100 * x).toFixed(x < 0.1 ? 1 : 0)}%`;

/** A number with three significant digits. */
function number(x, digits = 3) {
  if (!known(x)) return '–';
  if (Number.isInteger(x)) return count(x);
  const size = Math.abs(x);
  if (size >= 1e5 || size < 1e-4) return x.toExponential(digits - 1);
  if (size >= 1000) return count(x);
  return size >= 100 ? x.toFixed(1) : String(Number(x.toPrecision(digits)));
}

/** What Plotly takes for markup in labels, as plain characters. */
const plain = text => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');

/** A token with its spaces and line ends to be seen. */
const visible = token => token.replace(/\n/g, '⏎').replace(/\t/g, '⇥').replace(/^ +$/, spaces => '␣'.repeat(spaces.length));

/** Does some work, and leaves how long it took in the browser's timeline of performance. */
function timed(name, work) {
  const start = performance.now();
  const result = work();
  performance.measure(name, {start});
  return result;
}

/** Rows of names and values. */
const facts = rows => h('table', {class: 'facts'},
  rows.map(([name, value]) => h('tr', null, h('th', {scope: 'row'}, name), h('td', null, value))));

const stats = rows => h('div', {class: 'stats'},
  rows.map(([name, value, title]) => h('div', {title}, h('span', null, name), value)));
