// Where everything goes: layers upwards, tokens from left to right.
const LEFT = 40, RIGHT = 14, TOP = 34;

// Cells as wide and rows as high as their fullest one needs.
function layOut(graph, state, width, height, measure) {
  const { nodes, tokens, rows } = graph, columns = tokens.length, shown = nodes.filter((node) => state.visible(node.i));
  const cells = new Map();
  for (const node of shown) {
    if (node.kind === "target") continue;
    const key = node.row * columns + node.pos;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(node);
  }
  const inner = width - LEFT - RIGHT, labels = tokens.map((text) => measure(plain(text))), aspect = inner / columns / (height / rows);
  const wide = new Float64Array(columns).fill(0.9), high = new Float64Array(rows).fill(0.55);
  const across = (n) => Math.max(1, Math.min(n, Math.ceil(Math.sqrt(n * Math.min(6, Math.max(1.4, aspect))))));
  for (const [key, list] of cells) {
    const row = Math.floor(key / columns), column = key % columns, k = across(list.length);
    wide[column] = Math.max(wide[column], k + 0.9);
    high[row] = Math.max(high[row], Math.ceil(list.length / k) + 0.6);
  }
  high[0] = 1.4; high[rows - 1] = 0.2;
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const pitchX = inner / sum(wide), slanted = labels.some((w, i) => w + 6 > wide[i] * pitchX), bottom = slanted ? 14 + Math.min(70, Math.max(...labels) * 0.62) : 22;
  const pitchY = Math.max(5.5, (height - TOP - bottom) / sum(high)), full = Math.max(height, TOP + bottom + pitchY * sum(high));
  const radius = Math.max(1.7, Math.min(6.5, 0.44 * Math.min(pitchX, pitchY * 1.15)));
  const x0 = [], y0 = [];
  let x = LEFT, y = full - bottom;
  for (const w of wide) { x0.push(x); x += w * pitchX; }
  x0.push(x);
  for (const h of high) { y0.push(y); y -= h * pitchY; }
  y0.push(y);
  const px = new Float32Array(nodes.length), py = new Float32Array(nodes.length), step = Math.min(pitchX, radius * 2.9), rise = Math.min(pitchY, radius * 2.9);
  for (const [key, list] of cells) {
    const row = Math.floor(key / columns), column = key % columns, k = across(list.length), lines = Math.ceil(list.length / k);
    list.sort((a, b) => (a.kind === "error") - (b.kind === "error") || b.influence - a.influence);
    list.forEach((node, j) => {
      const line = Math.floor(j / k), inLine = Math.min(k, list.length - line * k);
      px[node.i] = (x0[column] + x0[column + 1]) / 2 + (j % k - (inLine - 1) / 2) * step;
      py[node.i] = (y0[row] + y0[row + 1]) / 2 + (line - (lines - 1) / 2) * rise;
    });
  }
  return { shown, px, py, x0, y0, radius, slanted, full, width, chips: chips(shown, measure, px, py, width) };
}

// Targets are words in a line at the top, the likeliest first, ending over the last token.
function chips(shown, measure, px, py, width) {
  const targets = shown.filter((node) => node.kind === "target").sort((a, b) => b.prob - a.prob).map((node) => {
    const text = `${plain(node.text)} ${chance(node.prob)}`;
    return { node, text, w: measure(text) + 16 };
  });
  const room = width - LEFT - RIGHT;
  while (targets.length > 1 && targets.reduce((sum, chip) => sum + chip.w + 6, 0) > room) {
    const longest = targets.reduce((a, b) => (b.w > a.w ? b : a));
    if (longest.text.length < 4) break;
    longest.text = longest.text.slice(0, -2) + "…";
    longest.w = measure(longest.text) + 16;
  }
  let x = Math.max(LEFT, width - RIGHT - targets.reduce((sum, chip) => sum + chip.w + 6, -6));
  for (const chip of targets) { chip.x = x; px[chip.node.i] = x + chip.w / 2; py[chip.node.i] = 18; x += chip.w + 6; }
  return targets;
}
