'use strict';

// Height and margins of charts, in units of about a pixel
const CHART = { height: 230, left: 48, right: 14, top: 10, bottom: 28 };

// At most n + 1 round numbers from low to high
function ticks(low, high, n) {
  const rough = (high - low) / n;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((k) => k * power >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high * (1 + 1e-9) + 1e-12; k += 1) {
    found.push(Number((k * step).toPrecision(12)));
  }
  return found;
}

const compact = new Intl.NumberFormat('en', { maximumSignificantDigits: 4 });
const large = new Intl.NumberFormat('en', { notation: 'compact' });
const formatNumber = (v) => (Math.abs(v) >= 10000 ? large : compact).format(v);

// Texts of ticks, with equally many decimals
function formatTicks(values) {
  const texts = values.map(formatNumber);
  const decimals = Math.max(0, ...texts.map((text) => (text.split('.')[1] ?? '').length));
  return values.map((v, k) => (Math.abs(v) >= 10000 ? texts[k] : v.toFixed(decimals)));
}

// Curves against whole numbers, in bands, with a pointer at one of them.
class Chart {
  // title: text; lines: list of {name, colour (class), first (x of its first value), mean, half},
  // where null is no value; x: [first, last]; xlabel; given: x of the first predicted frame, if
  // there is one; format: function of (mean, half); width; onPoint: function of an x that is
  // pointed at
  constructor(parent, { title, lines, x, xlabel, given, format, width = 400, onPoint }) {
    Object.assign(this, { lines, x, format, box: { ...CHART, width } });
    this.svg = element('svg:svg', { viewBox: `0 0 ${width} ${CHART.height}`, role: 'img',
      'aria-label': `${title} against ${xlabel}` });
    this.values = lines.map(() => element('span', { className: 'value' }));
    const legend = lines.map(({ name, colour }, i) => element('li', {},
      element('span', { className: `dot ${colour}` }), `${name} `, this.values[i]));
    parent.append(element('figure', { className: 'chart' },
      element('figcaption', {}, element('strong', { textContent: title }),
        element('ul', { className: 'legend' }, ...legend)), this.svg));
    this.setScale();
    this.drawAxes(xlabel, given);
    lines.forEach((line) => this.drawLine(line));
    this.pointer = this.add('line', { class: 'pointer', y1: CHART.top,
      y2: CHART.height - CHART.bottom });
    this.marks = lines.map(({ colour }) => this.add('circle', { class: `mark ${colour}`, r: 4 }));
    this.listen(onPoint);
  }

  add(tag, attributes, ...children) {
    const node = element(`svg:${tag}`, attributes, ...children);
    this.svg.append(node);
    return node;
  }

  // Range of the values with a margin, and scales `px` and `py`
  setScale() {
    const ends = this.lines.flatMap(({ mean, half }) => mean.flatMap(
      (m, i) => (m === null ? [] : [m - (half[i] ?? 0), m + (half[i] ?? 0)])));
    let low = ends.reduce((a, b) => Math.min(a, b), Infinity);
    let high = ends.reduce((a, b) => Math.max(a, b), -Infinity);
    if (low > high) [low, high] = [0, 1];
    const margin = 0.06 * (high - low) || Math.abs(high) / 10 || 1;
    [this.low, this.high] = [low >= 0 && low < margin ? 0 : low - margin, high + margin];
    const { width, height, left, right, top, bottom } = this.box;
    const [first, last] = this.x;
    this.px = (x) => left + ((x - first) / Math.max(1, last - first)) * (width - left - right);
    this.py = (y) => height - bottom
      - ((y - this.low) / (this.high - this.low)) * (height - top - bottom);
  }

  drawAxes(xlabel, given) {
    const { width, height, left, right, top, bottom } = this.box;
    if (given !== undefined) {
      const end = this.px(given);
      this.add('rect', { class: 'given', x: left, y: top, width: end - left,
        height: height - top - bottom });
      this.add('line', { class: 'first', x1: end, x2: end, y1: top, y2: height - bottom });
    }
    const rows = ticks(this.low, this.high, 5);
    const texts = formatTicks(rows);
    rows.map(this.py).forEach((y, k) => {
      this.add('line', { class: 'grid', x1: left, x2: width - right, y1: y, y2: y });
      this.add('text', { x: left - 8, y: y + 4, 'text-anchor': 'end' }, texts[k]);
    });
    if (given !== undefined) {
      this.add('text', { class: 'given-label', x: (left + this.px(given)) / 2, y: top + 16,
        'text-anchor': 'middle' }, 'given');
    }
    const whole = ticks(...this.x, 6).filter(Number.isInteger);
    for (const x of whole) {
      this.add('text', { x: this.px(x), y: height - bottom + 16, 'text-anchor': 'middle' },
        formatNumber(x));
    }
    this.add('text', { class: 'axis', x: width - right, y: height - 1, 'text-anchor': 'end' },
      xlabel);
  }

  drawLine({ colour, first, mean, half }) {
    let part = [];
    const parts = [part];
    mean.forEach((m, i) => {
      if (m !== null) part.push([this.px(first + i), m, half[i] ?? 0]);
      else if (part.length) parts.push(part = []);
    });
    for (const points of parts.filter((p) => p.length)) {
      const upper = points.map(([x, m, h]) => `${x},${this.py(m + h)}`);
      const lower = points.map(([x, m, h]) => `${x},${this.py(m - h)}`).reverse();
      this.add('polygon', { class: `band ${colour}`, points: [...upper, ...lower].join(' ') });
      this.add('polyline', { class: `line ${colour}`,
        points: points.map(([x, m]) => `${x},${this.py(m)}`).join(' ') });
    }
  }

  // Move the pointer, and tell the values there
  point(x) {
    this.pointer.setAttribute('x1', this.px(x));
    this.pointer.setAttribute('x2', this.px(x));
    this.lines.forEach(({ first, mean, half }, i) => {
      const value = mean[x - first] ?? null;
      this.values[i].textContent = value === null ? '' : this.format(value, half[x - first]);
      this.marks[i].toggleAttribute('hidden', value === null);
      if (value !== null) {
        this.marks[i].setAttribute('cx', this.px(x));
        this.marks[i].setAttribute('cy', this.py(value));
      }
    });
  }

  listen(onPoint) {
    const [first, last] = this.x;
    const follow = (event) => {
      const box = this.svg.getBoundingClientRect();
      const { width, left, right } = this.box;
      const at = ((event.clientX - box.left) / box.width) * width;
      const share = (at - left) / (width - left - right);
      onPoint(Math.min(last, Math.max(first, Math.round(first + share * (last - first)))));
    };
    this.svg.addEventListener('pointerdown', (event) => {
      this.svg.setPointerCapture(event.pointerId);
      follow(event);
    });
    this.svg.addEventListener('pointermove', (event) => event.buttons && follow(event));
  }
}
