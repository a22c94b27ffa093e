'use strict';

const COLOURS = 6;
const { runs, metrics } = report;
const byKey = Object.fromEntries(metrics.map((metric) => [metric.key, metric]));
const available = metrics.filter(({ key }) => runs.some((run) => `${key}_best` in run.tiles));
const colour = (r) => `run-${r % COLOURS}`;

// Scores: of each run, and their differences to the first one

// The PSNR of equal frames is infinite, which JSON has no number for
const score = (run, key, i) => run.scores[key][i] ?? Infinity;

const choices = metrics.flatMap((metric) => {
  const those = runs.filter((run) => metric.key in run.scores);
  const own = those.map((run) => ({ metric, signed: false,
    name: runs.length > 1 ? `${metric.label} of ${run.name}` : metric.label,
    value: (i) => score(run, metric.key, i) }));
  const differences = those.slice(1).map((run) => ({ metric, signed: true,
    name: `${metric.label}: ${those[0].name} − ${run.name}`,
    value: (i) => {
      const [a, b] = [score(those[0], metric.key, i), score(run, metric.key, i)];
      return a === b ? 0 : a - b;
    } }));
  return [...own, ...differences];
});

function formatScore(metric, value, signed = false) {
  const text = Number.isFinite(value) ? value.toFixed(metric.digits) : String(value);
  return text.replace('Infinity', '∞').replace('-', '−').replace(/^(?=\d)/, signed ? '+' : '');
}

// State

const state = { choice: choices[0], order: 'number', low: 0, high: 100, by: available[0]?.key,
  shown: new Set(['best', 'worst', 'random']), page: 0, list: [], linked: null };

// Range of the finite scores
function extent() {
  const values = [];
  for (let i = 0; i < report.videos; i += 1) values.push(state.choice.value(i));
  const finite = values.filter(Number.isFinite);
  return { values, low: finite.reduce((a, b) => Math.min(a, b), Infinity),
    high: finite.reduce((a, b) => Math.max(a, b), -Infinity) };
}

// Bound at a position of a range slider; at its ends, there is none
function bound(position, { low, high }) {
  if (position <= 0) return -Infinity;
  return position >= 100 ? Infinity : low + (position / 100) * (high - low);
}

// Filter and sort the videos
function arrange() {
  const range = extent();
  const [low, high] = [bound(state.low, range), bound(state.high, range)];
  state.list = [...range.values.keys()].filter(
    (i) => low <= range.values[i] && range.values[i] <= high);
  const sign = (state.order === 'best') === state.choice.metric.higher ? -1 : 1;
  if (state.order !== 'number') {
    const key = (i) => sign * range.values[i];
    state.list.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a - b));
  }
  drawRange(range, low, high);
}

// Controls

function option(group, name, label, checked, type, onChange) {
  const input = element('input', { type, name: group.id, value: name, checked });
  input.addEventListener('change', onChange);
  group.append(element('label', {}, input, element('span', { textContent: label })));
}

function buildControls() {
  $('score').append(...choices.map(
    ({ name }, k) => element('option', { value: k, textContent: name })));
  for (const { key, label } of available) {
    option($('by'), key, label, key === state.by, 'radio', () => chooseMetric(key));
  }
  $('by').parentElement.hidden = !available.length;
  const roles = new Map([['best', 'best'], ['worst', 'worst'], ['random', 'random'],
    ['cond_rec', 'reconstruction']]);
  if (!available.length) ['best', 'worst'].forEach((role) => roles.delete(role));
  if (!runs.some((run) => 'cond_rec' in run.tiles)) roles.delete('cond_rec');
  if (runs.every((run) => run.single)) roles.delete('random');
  $('shown').parentElement.hidden = roles.size === 0;
  for (const [role, label] of roles) {
    option($('shown'), role, label, state.shown.has(role), 'checkbox', ({ target }) => {
      if (target.checked) state.shown.add(role);
      else state.shown.delete(role);
      render();
    });
  }
  $('controls').addEventListener('submit', (event) => event.preventDefault());
  $('score').addEventListener('change', () => {
    Object.assign(state, { choice: choices[$('score').value], low: 0, high: 100 });
    update();
  });
  $('order').addEventListener('change', () => {
    state.order = $('order').value;
    update();
  });
  for (const end of ['low', 'high']) {
    $(end).addEventListener('input', () => {
      state[end] = Number($(end).value);
      if (state.low > state.high) {
        $(end).value = state[end] = end === 'low' ? state.high : state.low;
      }
      update();
    });
  }
  $('zoom').addEventListener('change', setZoom);
  $('previous').addEventListener('click', () => turn(-1));
  $('next').addEventListener('click', () => turn(1));
  $('page').addEventListener('change', () => turn(Number($('page').value) - state.page));
}

function setZoom() {
  $('videos').style.setProperty('--width', `${report.width * $('zoom').value}px`);
}

function chooseMetric(key) {
  state.by = key;
  document.querySelector(`#by input[value=${key}]`).checked = true;
  render();
}

// Histogram of the scores, with the chosen range
function drawRange(range, low, high) {
  const { metric, signed } = state.choice;
  const bins = new Array(40).fill(0);
  const width = (range.high - range.low) / 40 || 1;
  const place = (v) => Math.min(39, Math.floor((v - range.low) / width));
  range.values.filter(Number.isFinite).forEach((v) => { bins[place(v)] += 1; });
  const most = Math.max(...bins, 1);
  $('histogram').replaceChildren(...bins.map((n, k) => {
    const height = n && Math.max(1.5, (40 * n) / most);
    const inside = state.low <= 2.5 * k + 1.25 && 2.5 * k + 1.25 <= state.high;
    return element('svg:rect', { x: 6 * k + 0.5, y: 40 - height, width: 5, height,
      class: inside ? 'inside' : 'outside' });
  }));
  const ends = [Math.max(low, range.low), Math.min(high, range.high)].map(
    (v) => formatScore(metric, v, signed));
  Object.assign($('low'), { value: state.low }).setAttribute('aria-valuetext', ends[0]);
  Object.assign($('high'), { value: state.high }).setAttribute('aria-valuetext', ends[1]);
  $('range').textContent = `${ends[0]} to ${ends[1]} ${metric.unit}`.trim();
}

// Pages

const pages = () => Math.max(1, Math.ceil(state.list.length / report.perPage));

function turn(by) {
  const page = Math.min(pages() - 1, Math.max(0, state.page + by));
  if (page === state.page) return;
  state.page = page;
  render();
  $('count').scrollIntoView({ block: 'start' });
}

function drawPager() {
  const [n, size] = [state.list.length, report.perPage];
  $('count').textContent = n === report.videos
    ? `${n.toLocaleString('en')} videos`
    : `${n.toLocaleString('en')} of ${report.videos.toLocaleString('en')} videos in this range`;
  $('page').replaceChildren(...Array.from({ length: pages() }, (_, k) => element('option', {
    value: k, selected: k === state.page,
    textContent: `${Math.min(n, k * size + 1)}–${Math.min(n, (k + 1) * size)}` })));
  $('previous').disabled = state.page === 0;
  $('next').disabled = state.page === pages() - 1;
}

// Videos

const loader = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const video = drawn.get(target);
    if (!video) continue;
    video.visible = isIntersecting;
    if (isIntersecting && !video.image) {
      video.image = element('img', { src: `sprites/${spriteName(video.i)}.png` });
      video.image.addEventListener('load', () => {
        target.classList.add('loaded');
        drawVideo(video, player.t);
      });
    }
    if (isIntersecting) drawVideo(video, player.t);
  }
}, { rootMargin: '300px' });

const drawn = new Map(); // by article: videos of this page

function drawVideo({ image, visible, cells }, t) {
  if (!visible || !image.complete) return;
  cells.forEach(({ canvas, tile }) => drawFrame(canvas, image, tile(t)));
}
viewers.push((t) => drawn.forEach((video) => drawVideo(video, t)));

// Futures of a run to show: list of [label, role]
function roles(run) {
  if (run.single) return [['prediction', 'random_1']];
  const random = ['random_1', 'random_2', 'random_3'].map((role, k) => [`random ${k + 1}`, role]);
  return [...['best', 'worst'].map((end) => [end, `${state.by}_${end}`]), ...random].filter(
    ([label, role]) => state.shown.has(label.split(' ')[0]) && role in run.tiles);
}

// Number in the sprite picture of video i of the frame at time t
function tileOf(run, role, i) {
  const { given } = report;
  const reconstructed = state.shown.has('cond_rec') && run.tiles.cond_rec;
  return (t) => {
    if (t >= given) return run.tiles[role][i] + t - given;
    return reconstructed ? run.tiles.cond_rec[i] + t : t;
  };
}

// Heading and frames of the futures of a run
function runColumn(run, r, i, cells) {
  const scores = metrics.filter(({ key }) => key in run.scores).map((metric) => element('span',
    { className: metric.key === state.by ? 'score chosen' : 'score' }, `${metric.label} `,
    element('b', { textContent: formatScore(metric, score(run, metric.key, i)) })));
  const figures = roles(run).map(([label, role]) => {
    const made = cell(label, `${report.names[i]}, ${run.name}, ${label}`);
    cells.push({ canvas: made.canvas, tile: tileOf(run, role, i) });
    return made.figure;
  });
  const dot = element('span', { className: `dot ${colour(r)}` });
  const title = runs.length > 1 ? [element('span', { className: 'run' }, dot, run.name)] : [];
  return [element('p', { className: 'heading' }, ...title, ...scores),
    element('div', { className: 'cells' }, ...figures)];
}

function videoArticle(i) {
  const cells = [];
  const truth = cell('truth', `${report.names[i]}, truth`);
  cells.push({ canvas: truth.canvas, tile: (t) => t });
  const link = element('a', { href: `#video-${i}`, title: 'Link to this video',
    textContent: report.names[i] });
  const article = element('article', { id: `video-${i}`, className: 'video' },
    element('h3', { className: 'heading' }, link),
    element('div', { className: 'cells' }, truth.figure),
    ...runs.flatMap((run, r) => runColumn(run, r, i, cells)));
  article.classList.toggle('linked', i === state.linked);
  drawn.set(article, { i, cells, visible: false, image: null });
  return article;
}

function render() {
  drawPager();
  loader.disconnect();
  drawn.clear();
  const from = state.page * report.perPage;
  const articles = state.list.slice(from, from + report.perPage).map(videoArticle);
  $('videos').replaceChildren(...articles);
  if (!articles.length) {
    $('videos').append(element('p', { className: 'note' }, 'No video has such a score.'));
  }
  articles.forEach((article) => loader.observe(article));
}

// Show the videos of another order, range or score, from the first page on
function update() {
  arrange();
  state.page = 0;
  render();
}

// Links such as #video-17
function follow() {
  const match = location.hash.match(/^#video-(\d+)$/);
  state.linked = match && Number(match[1]);
  if (state.linked === null || state.linked >= report.videos) return;
  if (!state.list.includes(state.linked)) {
    Object.assign(state, { low: 0, high: 100 });
    arrange();
  }
  state.page = Math.floor(state.list.indexOf(state.linked) / report.perPage);
  render();
  $(`video-${state.linked}`).scrollIntoView({ block: 'center' });
}
window.addEventListener('hashchange', follow);

// Curves

for (const metric of metrics) {
  const lines = runs.map((run, r) => ({ ...run.curves[metric.key], name: run.name,
    colour: colour(r), first: report.given })).filter(({ mean }) => mean);
  if (!lines.length) continue;
  const chart = new Chart(document.querySelector('#curves .charts'), {
    lines, x: [0, report.frames - 1], xlabel: 'frame t', given: report.given,
    title: metric.unit ? `${metric.label} (${metric.unit})` : metric.label,
    format: (mean, half) => `${mean.toFixed(metric.digits)} ± ${half.toFixed(metric.digits)}`,
    onPoint: (t) => player.seek(t) });
  viewers.push((t) => chart.point(t));
  $('curves').hidden = false;
}

// Keys

function next(list, item) {
  return list[(list.indexOf(item) + 1) % list.length];
}

Object.assign(keys, {
  p: () => turn(-1),
  n: () => turn(1),
  m: () => available.length && chooseMetric(next(available, byKey[state.by]).key),
  o: () => {
    $('order').value = state.order = next(['number', 'best', 'worst'], state.order);
    update();
  },
});

buildControls();
setZoom();
update();
follow();
start();
