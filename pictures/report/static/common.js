'use strict';

// Content of the page: see pictures/report in the source code
const report = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);

// An element with properties, attributes (those with a dash, or of SVG) and children
function element(tag, properties = {}, ...children) {
  const node = tag.startsWith('svg:')
    ? document.createElementNS('http://www.w3.org/2000/svg', tag.slice(4))
    : document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node && !(node instanceof SVGElement)) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// A number that runs over 0, …, n - 1 as an animation, with its buttons and slider
class Player {
  constructor({ n, first = 0, back, play, forward, slider, onChange }) {
    Object.assign(this, { n, t: 0, fps: 5, timer: null, button: $(play), slider: $(slider), first,
      onChange });
    $(back).addEventListener('click', () => this.step(-1));
    $(forward).addEventListener('click', () => this.step(1));
    this.button.addEventListener('click', () => this.toggle());
    this.slider.addEventListener('input', () => this.seek(this.slider.value - first));
  }

  get playing() {
    return this.timer !== null;
  }

  show(t) {
    this.t = (t + this.n) % this.n;
    this.slider.value = this.t + this.first;
    this.onChange(this.t);
  }

  seek(t) {
    this.pause();
    this.show(t);
  }

  step(by) {
    this.seek(this.t + by);
  }

  play() {
    this.pause();
    this.timer = setInterval(() => document.hidden || this.show(this.t + 1), 1000 / this.fps);
    this.button.classList.add('playing');
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.classList.remove('playing');
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  set speed(fps) {
    this.fps = fps;
    if (this.playing) this.play();
  }
}

// Frames of sprite pictures

// Name of the sprite picture of a video or an iteration, from 0
const spriteName = (i) => String(i).padStart(5, '0');

// Canvas in which `drawFrame` shows frames, with a name below
function cell(label, description) {
  const canvas = element('canvas', { width: report.width, height: report.height,
    role: 'img', 'aria-label': description });
  const figure = element('figure', { className: 'cell' }, canvas,
    element('figcaption', { textContent: label }));
  return { figure, canvas };
}

function drawFrame(canvas, image, tile) {
  const { width, height, across } = report;
  const x = (tile % across) * width;
  const y = Math.floor(tile / across) * height;
  canvas.getContext('2d').drawImage(image, x, y, width, height, 0, 0, width, height);
}

// The player of frames

const viewers = []; // functions of t, called for each new frame

const player = new Player({
  n: report.frames, back: 'back', play: 'play', forward: 'forward', slider: 'scrub',
  onChange(t) {
    const phase = t < report.given ? 'given' : 'predicted';
    document.body.dataset.phase = phase;
    $('frame').textContent = `t = ${t} ${phase}`;
    $('scrub').setAttribute('aria-valuetext', `${t}, ${phase}`);
    viewers.forEach((view) => view(t));
  },
});

function changeSpeed(by) {
  const select = $('speed');
  const last = select.options.length - 1;
  select.selectedIndex = Math.min(last, Math.max(0, select.selectedIndex + by));
  player.speed = Number(select.value);
}
$('speed').addEventListener('change', () => changeSpeed(0));

// Actions by key, as listed on the page; scripts add theirs
const keys = {
  ' ': () => player.toggle(),
  ArrowLeft: () => player.step(-1),
  ArrowRight: () => player.step(1),
  Home: () => player.seek(0),
  End: () => player.seek(report.frames - 1),
  '-': () => changeSpeed(-1),
  '+': () => changeSpeed(1),
};

document.addEventListener('keydown', (event) => {
  const own = 'input:not([type=checkbox], [type=radio]), select, summary';
  const pressed = event.key === ' ' && event.target.matches('button, input');
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (pressed || event.target.matches(own)) return;
  const shift = event.shiftKey && event.key.startsWith('Arrow') ? 'Shift+' : '';
  const action = keys[shift + event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

// Motion starts by itself unless the reader prefers none
function start(t = report.given) {
  player.show(t);
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) player.play();
}
