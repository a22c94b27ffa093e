'use strict';

const data = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// A number that runs over 0, …, n - 1 as an animation, with its buttons and slider
class Player {
  constructor(prefix, slider, first, n, onChange) {
    Object.assign(this, { n, first, onChange, t: 0, fps: 5, timer: null });
    [this.button, this.slider] = [$(`${prefix}play`), $(slider)];
    $(`${prefix}back`).onclick = () => this.seek(this.t - 1);
    $(`${prefix}forward`).onclick = () => this.seek(this.t + 1);
    this.button.onclick = () => (this.timer === null ? this.play() : this.pause());
    this.slider.oninput = () => this.seek(this.slider.value - first);
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
}

// A figure that shows frames of a sprite picture, the background of its view
function cell(label, description) {
  const view = element('div', { className: 'view', role: 'img', ariaLabel: description });
  return { view, figure: element('figure', {}, view, element('figcaption', {}, label)) };
}

function showFrame(view, tile) {
  const [x, y] = [tile % data.across, Math.floor(tile / data.across)];
  view.style.backgroundPosition = `calc(${-x} * var(--width) * var(--zoom)) `
    + `calc(${-y} * var(--height) * var(--zoom))`;
}

let cells = []; // on the page: {view, tile}, where tile is the number of the frame at time t

const player = new Player('', 'time', 0, data.frames, (t) => {
  const phase = t < data.given ? 'given' : 'predicted';
  document.body.className = phase;
  $('frame').textContent = `t = ${t} ${phase}`;
  cells.forEach(({ view, tile }) => showFrame(view, tile(t)));
});

$('speed').onchange = () => {
  player.fps = Number($('speed').value);
  if (player.timer !== null) player.play();
};

// Motion starts by itself unless the reader prefers none
function start() {
  player.show(data.given);
  if (!matchMedia('(prefers-reduced-motion: reduce)').matches) player.play();
}
