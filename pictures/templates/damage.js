const name = (i) => `sprites/${String(i).padStart(5, '0')}.png`;
const sheets = { damaged: name(0), truth: 'sprites/truth.png', intact: name(0) };

cells = Object.entries(sheets).map(([label, sheet]) => {
  const made = cell(label, label);
  made.view.style.setProperty('--sheet', `url(${sheet})`);
  $('cells').append(made.figure);
  return { view: made.view, tile: (t) => t };
});

const damage = new Player('damage-', 'damage', 1, data.iterations, (i) => {
  $('iteration').textContent = `iteration ${i + 1} of ${data.iterations}`;
  $('iteration').href = `#iteration-${i + 1}`;
  $('damaged').textContent = data.captions[i];
  $('network').src = `sprites/network_${String(i).padStart(5, '0')}.png`;
  // A picture that is not loaded yet would show as a gap
  const sheet = element('img', { src: name(i) });
  sheet.onload = () => i === damage.t
    && cells[0].view.style.setProperty('--sheet', `url(${name(i)})`);
});

// Links such as #iteration-17
window.onhashchange = () => {
  const match = location.hash.match(/^#iteration-(\d+)$/);
  damage.seek(Math.min(data.iterations, Math.max(1, match ? Number(match[1]) : 1)) - 1);
};

window.onhashchange();
start();
