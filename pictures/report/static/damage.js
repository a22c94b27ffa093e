'use strict';

// Pictures of predictions by iteration, from 0, and the picture of the network

const images = new Map();

function sprite(name, onLoad) {
  if (!images.has(name)) images.set(name, element('img', { src: `sprites/${name}.png` }));
  const image = images.get(name);
  if (image.complete) onLoad(image);
  else image.addEventListener('load', () => onLoad(image), { once: true });
}

const cells = ['damaged', 'truth', 'intact'].map((label) => (
  { label, image: null, ...cell(label, label) }));
const [damaged, truth, intact] = cells;
$('cells').append(...cells.map(({ figure }) => figure));

// The sprite of a prediction lacks the given frames
function drawCell(each, t) {
  const from = t < report.given ? truth : each;
  const tile = from === truth ? t : t - report.given;
  if (from.image) drawFrame(each.canvas, from.image, tile);
}
viewers.push((t) => cells.forEach((each) => drawCell(each, t)));

function load(each, name, isCurrent = () => true) {
  sprite(name, (image) => {
    if (!isCurrent()) return;
    each.image = image;
    cells.forEach((other) => drawCell(other, player.t));
  });
}

// The network: the intact one, with dots that stay visible when the picture is reduced

const network = { canvas: $('network'), image: element('img', { src: 'network.png' }), drawn: -1 };

function drawNetwork(iteration) {
  const { canvas, image } = network;
  if (!image.complete) return;
  const context = canvas.getContext('2d');
  if (network.drawn < 0 || network.drawn > iteration) {
    context.drawImage(image, 0, 0);
    network.drawn = -1;
  }
  const size = Math.max(1, Math.ceil(1.5 * (canvas.width / canvas.clientWidth)));
  context.fillStyle = '#f00';
  for (let i = network.drawn + 1; i <= iteration; i += 1) {
    for (const pixel of report.network.dots[i]) {
      context.fillRect((pixel % canvas.width) - (size >> 1),
        Math.floor(pixel / canvas.width) - (size >> 1), size, size);
    }
  }
  network.drawn = iteration;
}

// Iterations

const charts = report.panels.map(({ label, lines }) => new Chart($('curves'), {
  title: label, x: [1, report.iterations], xlabel: 'iteration', width: 560,
  lines: lines.map((line, k) => ({ ...line, colour: `run-${k}`, first: 1 })),
  format: (mean, half) => formatNumber(mean) + (half > 0 ? ` ± ${formatNumber(half)}` : ''),
  onPoint: (iteration) => damage.seek(iteration - 1) }));

const damage = new Player({
  n: report.iterations, first: 1, back: 'damage-back', play: 'damage-play',
  forward: 'damage-forward', slider: 'damage',
  onChange(i) {
    $('iteration').textContent = `iteration ${i + 1} of ${report.iterations}`;
    $('iteration').href = `#iteration-${i + 1}`;
    const share = Number((100 * report.share[i]).toPrecision(3));
    const count = report.damaged[i].toLocaleString('en');
    $('damaged').textContent = `${count} values damaged (${share}%)`;
    load(damaged, spriteName(i), () => damage.t === i);
    if (i + 1 < report.iterations) sprite(spriteName(i + 1), () => {});
    drawNetwork(i);
    charts.forEach((chart) => chart.point(i + 1));
  },
});

Object.assign(keys, {
  'Shift+ArrowLeft': () => damage.step(-1),
  'Shift+ArrowRight': () => damage.step(1),
  d: () => damage.toggle(),
});

// Links such as #iteration-17
function follow() {
  const match = location.hash.match(/^#iteration-(\d+)$/);
  const iteration = match ? Number(match[1]) : 1;
  damage.seek(Math.min(report.iterations, Math.max(1, iteration)) - 1);
}
window.addEventListener('hashchange', follow);
window.addEventListener('resize', () => {
  network.drawn = -1;
  drawNetwork(damage.t);
});
network.image.addEventListener('load', () => drawNetwork(damage.t));

load(truth, 'truth');
load(intact, spriteName(0));
follow();
start();
