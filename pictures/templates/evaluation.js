const { runs, metrics } = data;
const available = metrics.filter(({ key }) => runs.some((run) => `${key}_best` in run.tiles));

// Scores to sort by: those of each run, and their differences to the first one.
// The PSNR of equal frames is infinite, for which JSON has no number.
const score = (run, key, i) => run.scores[key][i] ?? Infinity;

const choices = metrics.flatMap(({ key, label, higher }) => {
  const those = runs.filter((run) => key in run.scores);
  const own = those.map((run) => ({ higher, value: (i) => score(run, key, i),
    name: runs.length > 1 ? `${label} of ${run.name}` : label }));
  const differences = those.slice(1).map((run) => ({ higher,
    name: `${label}: ${those[0].name} − ${run.name}`,
    value(i) {
      const [a, b] = [score(those[0], key, i), score(run, key, i)];
      return a === b ? 0 : a - b;
    } }));
  return [...own, ...differences];
});

// State of the page
let by = available[0]?.key;                        // metric that tells best from worst
const shown = new Set(['best', 'worst', 'random']);
let order = [];                                    // numbers of the videos, sorted
let first = 0;                                     // place of the first one shown
let linked = null;                                 // video of the address, as in #video-17

function sort() {
  const { value, higher } = choices[$('score').value];
  const direction = $('order').value;
  const sign = (direction === 'best') === higher ? -1 : 1;
  order = Array.from({ length: data.videos }, (_, i) => i);
  if (direction !== 'number') {
    const keys = order.map((i) => sign * value(i));
    order.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
  }
}

// Futures of a run to show: list of [label, role]
function roles(run) {
  if (run.single) return [['prediction', 'random_1']];
  const all = [['best', `${by}_best`], ['worst', `${by}_worst`],
    ...[1, 2, 3].map((k) => [`random ${k}`, `random_${k}`])];
  return all.filter(([label, role]) => shown.has(label.split(' ')[0]) && role in run.tiles);
}

// Number in the sprite picture of video i of the frame at time t
function tileOf(run, role, i) {
  const reconstructed = shown.has('cond_rec') && run.tiles.cond_rec;
  return (t) => {
    if (t >= data.given) return run.tiles[role][i] + t - data.given;
    return reconstructed ? run.tiles.cond_rec[i] + t : t;
  };
}

// A row with headings, and a row with frames: the truth, then the futures of each run
function article(i) {
  const row = (label, description, tile) => {
    const made = cell(label, `${data.names[i]}, ${description}`);
    cells.push({ view: made.view, tile });
    return made.figure;
  };
  const link = element('a', { href: `#video-${i}`, title: 'Link to this video' }, data.names[i]);
  const node = element('article', { id: `video-${i}`, className: i === linked ? 'linked' : '' },
    element('h3', {}, link),
    element('div', { className: 'cells' }, row('truth', 'truth', (t) => t)));
  for (const run of runs) {
    const title = element('span', { className: 'run' }, element('span', { className: 'dot' }),
      run.name);
    title.firstChild.style.background = run.colour;
    const scores = metrics.filter(({ key }) => key in run.scores).map(({ key, label, digits }) => (
      element('span', { className: key === by ? 'chosen' : '' },
        `${label} ${score(run, key, i).toFixed(digits).replace('Infinity', '∞')}`)));
    node.append(
      element('p', { className: 'heading' }, ...(runs.length > 1 ? [title] : []), ...scores),
      element('div', { className: 'cells' }, ...roles(run).map(
        ([label, role]) => row(label, `${run.name}, ${label}`, tileOf(run, role, i)))));
  }
  node.style.setProperty('--sheet', `url(sprites/${String(i).padStart(5, '0')}.png)`);
  return node;
}

function render() {
  cells = [];
  const last = Math.min(first + data.perPage, data.videos);
  $('videos').replaceChildren(...order.slice(first, last).map(article));
  $('page').value = first;
  $('previous').disabled = first === 0;
  $('next').disabled = last === data.videos;
  cells.forEach(({ view, tile }) => showFrame(view, tile(player.t)));
}

function turn(to) {
  first = to;
  render();
  $('pager').scrollIntoView();
}

// Links such as #video-17
function follow() {
  const match = location.hash.match(/^#video-(\d+)$/);
  linked = match && Number(match[1]);
  if (linked === null || linked >= data.videos) return;
  first = order.indexOf(linked) - (order.indexOf(linked) % data.perPage);
  render();
  $(`video-${linked}`).scrollIntoView({ block: 'center' });
}

// Controls

$('score').append(...choices.map(({ name }, k) => element('option', { value: k }, name)));
$('score').onchange = $('order').onchange = () => {
  sort();
  first = 0;
  render();
};

function option(type, group, value, label, checked, onchange) {
  $(group).append(element('label', {},
    element('input', { type, name: group, value, checked, onchange }), label));
}
for (const { key, label } of available) {
  option('radio', 'by', key, label, key === by, () => {
    by = key;
    render();
  });
}
$('by').hidden = !available.length;
const all = [['best', 'best'], ['worst', 'worst'], ['random', 'random'],
  ['cond_rec', 'reconstruction']];
for (const [key, label] of all) {
  const there = (run) => Object.keys(run.tiles).some((role) => role.includes(key))
    && (key !== 'random' || !run.single);
  if (runs.some(there)) {
    option('checkbox', 'shown', key, label, shown.has(key), ({ target }) => {
      shown[target.checked ? 'add' : 'delete'](key);
      render();
    });
  }
}
$('shown').hidden = $('shown').children.length === 1;
$('zoom').onchange = () => $('videos').style.setProperty('--zoom', $('zoom').value);

for (let k = 0; k < data.videos; k += data.perPage) {
  $('page').append(element('option', { value: k },
    `${k + 1}–${Math.min(k + data.perPage, data.videos)}`));
}
$('page').onchange = () => turn(Number($('page').value));
$('previous').onclick = () => turn(first - data.perPage);
$('next').onclick = () => turn(first + data.perPage);
window.onhashchange = follow;

sort();
render();
follow();
start();
