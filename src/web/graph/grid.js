// The picture: layers upwards, tokens from left to right. Nodes and faint edges are drawn once; what follows the pointer
// is drawn on a second canvas above.
const LEFT = 40, RIGHT = 14, TOP = 34, FAINT = 220;

// Where everything goes: cells as wide and rows as high as their fullest one needs.
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

function outline(pen, kind, x, y, r) {
  pen.beginPath();
  if (kind === "feature") pen.arc(x, y, r, 0, 7);
  else if (kind === "error") { pen.moveTo(x, y - r * 1.25); pen.lineTo(x + r * 1.25, y); pen.lineTo(x, y + r * 1.25); pen.lineTo(x - r * 1.25, y); pen.closePath(); }
  else pen.rect(x - r, y - r, 2 * r, 2 * r);
}

function makeGrid(graph, state, open) {
  const $ = (id) => document.getElementById(id), box = $("grid"), sheet = $("sheet"), base = $("base"), over = $("over"), { nodes } = graph;
  const font = '12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif', ruler = document.createElement("canvas").getContext("2d");
  ruler.font = font;
  const measure = (text) => ruler.measureText(text).width;
  const most = Math.sqrt(nodes.reduce((top, node) => Math.max(top, node.influence), 1e-12));
  let at = null, colours = {}, ratio = 1;

  function pen(canvas) {
    ratio = devicePixelRatio || 1;
    const w = Math.round(at.width * ratio), h = Math.round(at.full * ratio);
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w; canvas.height = h;
      canvas.style.width = at.width + "px"; canvas.style.height = at.full + "px";
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, at.width, at.full);
    context.font = font;
    context.textBaseline = "middle";
    return context;
  }

  function layout() {
    const width = box.clientWidth, height = box.clientHeight;
    if (width < 80 || height < 60) return;
    at = layOut(graph, state, width, height, measure);
    sheet.style.height = at.full + "px";
    draw();
  }

  function draw() {
    if (!at) return;
    const begun = performance.now(), style = getComputedStyle(document.documentElement);
    for (const name of ["page", "card", "edge", "ink", "soft", "bar", "cool", "pin", "accent"]) colours[name] = style.getPropertyValue("--" + name).trim();
    const to = pen(base);
    frame(to);
    const limit = at.shown.length < 120 ? FAINT : Math.round(FAINT * 0.7);
    let drawn = 0;
    for (const e of faint) {
      if (!state.visible(graph.source[e]) || !state.visible(graph.target[e])) continue;
      stroke(to, e, 0.05 + 0.22 * graph.share[e]);
      if (++drawn >= limit) break;
    }
    for (const node of at.shown) if (node.kind !== "target") mark(to, node, null);
    for (const chip of at.chips) word(to, chip, null);
    overlay();
    document.documentElement.dataset.drawn = (performance.now() - begun).toFixed(1);
  }

  function frame(to) {
    const { tokens, own } = graph, bottom = at.y0[0];
    for (let i = 0; i < tokens.length; i += 2) {
      to.fillStyle = colours.page;
      to.fillRect(at.x0[i], TOP - 2, at.x0[i + 1] - at.x0[i], at.full - TOP);
    }
    to.strokeStyle = colours.edge;
    to.lineWidth = 1;
    to.fillStyle = colours.soft;
    to.textAlign = "right";
    let free = Infinity;
    for (let row = 1; row <= own.n_layers; row++) {
      const middle = (at.y0[row] + at.y0[row + 1]) / 2, line = Math.round(at.y0[row]) + 0.5;
      to.beginPath(); to.moveTo(LEFT, line); to.lineTo(at.width - RIGHT, line); to.stroke();
      if (middle > free - 12) continue;
      to.fillText("L" + (row - 1), LEFT - 8, middle);
      free = middle;
    }
    tokens.forEach((text, i) => {
      const x = (at.x0[i] + at.x0[i + 1]) / 2, label = plain(text);
      to.fillStyle = colours.ink;
      if (at.slanted) {
        to.save(); to.translate(x + 3, bottom + 7); to.rotate(-0.67); to.textAlign = "right";
        to.fillText(label.length > 16 ? label.slice(0, 15) + "…" : label, 0, 3); to.restore();
      } else { to.textAlign = "center"; to.fillText(label, x, bottom + 11); }
    });
  }

  function stroke(to, e, alpha, wide) {
    const s = graph.source[e], t = graph.target[e], x1 = at.px[s], y1 = at.py[s], x2 = at.px[t], y2 = at.py[t], bend = (y1 - y2) * 0.45;
    to.globalAlpha = Math.min(1, alpha);
    to.strokeStyle = graph.weight[e] < 0 ? colours.cool : colours.bar;
    to.lineWidth = wide || 0.7 + 3.5 * graph.share[e];
    to.beginPath(); to.moveTo(x1, y1); to.bezierCurveTo(x1, y1 - bend, x2, y2 + bend, x2, y2); to.stroke();
    to.globalAlpha = 1;
  }

  // `tone` is the sign of the edge that makes a node stand out.
  function mark(to, node, tone, share) {
    const x = at.px[node.i], y = at.py[node.i], r = node.kind === "token" ? Math.max(3.5, at.radius * 0.9) : at.radius, pinned = state.pinned.has(node.i);
    const dim = state.found && !state.found.has(node.i) && !tone;
    outline(to, node.kind, x, y, r);
    to.globalAlpha = dim ? 0.12 : 1;
    to.fillStyle = colours.card;
    to.fill();
    to.globalAlpha = dim ? 0.12 : tone ? 0.35 + 0.65 * Math.sqrt(share || 0) : pinned ? 0.9 : node.kind === "error" ? 0.12 : 0.1 + 0.75 * Math.sqrt(node.influence) / most;
    to.fillStyle = tone ? (tone < 0 ? colours.cool : colours.bar) : pinned ? colours.pin : colours.ink;
    to.fill();
    to.globalAlpha = dim ? 0.2 : node.kind === "error" && !tone ? 0.55 : 1;
    to.lineWidth = state.found && !dim ? 1.8 : r < 3 ? 0.6 : 1;
    to.strokeStyle = pinned ? colours.pin : state.found && !dim ? colours.accent : tone ? colours.ink : colours.soft;
    to.stroke();
    to.globalAlpha = 1;
  }

  function word(to, chip, tone) {
    const pinned = state.pinned.has(chip.node.i), current = chip.node.i === state.clicked;
    to.beginPath();
    to.roundRect(chip.x, 7, chip.w, 22, 6);
    to.fillStyle = colours.card;
    to.fill();
    to.globalAlpha = tone ? 0.4 : 0.1;
    to.fillStyle = tone ? (tone < 0 ? colours.cool : colours.bar) : colours.ink;
    to.fill();
    to.globalAlpha = 1;
    to.lineWidth = current || pinned ? 2 : 1;
    to.strokeStyle = pinned ? colours.pin : current ? colours.ink : colours.soft;
    to.stroke();
    to.fillStyle = colours.ink;
    to.textAlign = "center";
    to.fillText(chip.text, chip.x + chip.w / 2, 18.5);
  }

  // Edges of the node under the pointer, else of the one that is open.
  function overlay() {
    if (!at) return;
    const to = pen(over), i = state.hovered >= 0 ? state.hovered : state.clicked;
    over.dataset.edges = 0;
    if (i < 0 || !state.visible(i)) return;
    to.globalAlpha = 0.62;
    to.fillStyle = colours.card;
    to.fillRect(LEFT, 0, at.width - LEFT, at.y0[0] + 1);
    to.globalAlpha = 1;
    const linked = new Map(), way = wayThrough(graph, i);
    const draw = (list, other) => {
      for (let k = Math.min(list.length, 400) - 1; k >= 0; k--) {
        const e = list[k], j = other[e];
        if (!state.visible(j)) continue;
        stroke(to, e, 0.25 + 1.3 * Math.sqrt(graph.share[e]), 0.8 + 6 * graph.share[e]);
        linked.set(j, [Math.sign(graph.weight[e]) || 1, graph.share[e]]);
      }
    };
    if (state.link !== "output") draw(graph.inputs(i), graph.source);
    if (state.link !== "input") draw(graph.outputs(i), graph.target);
    over.dataset.edges = linked.size;
    to.setLineDash([5, 4]);
    for (const e of way) {
      const [s, t] = [graph.source[e], graph.target[e]];
      if (s === i || t === i || !state.visible(s) || !state.visible(t)) continue;
      stroke(to, e, 0.8, 1.4);
      for (const j of [s, t]) if (!linked.has(j) && j !== i) linked.set(j, [Math.sign(graph.weight[e]) || 1, 0.02]);
    }
    to.setLineDash([]);
    for (const [j, [tone, share]] of linked) if (nodes[j].kind !== "target") mark(to, nodes[j], tone, share);
    if (nodes[i].kind !== "target") {
      mark(to, nodes[i], null);
      outline(to, nodes[i].kind, at.px[i], at.py[i], at.radius + 3);
      to.lineWidth = 2;
      to.strokeStyle = colours.ink;
      to.stroke();
    }
    for (const chip of at.chips) if (linked.has(chip.node.i) || chip.node.i === i) word(to, chip, chip.node.i === i ? 0 : linked.get(chip.node.i)[0]);
  }

  // What is kept faint in the background: the edges that carry most of the influence.
  const { share, source, target } = graph, carried = (e) => share[e] * (nodes[target[e]].influence + nodes[target[e]].prob);
  const faint = [...graph.byShare].sort((a, b) => carried(b) - carried(a)).slice(0, 4 * FAINT);

  function find(event) {
    if (!at) return -1;
    const frame = over.getBoundingClientRect(), x = event.clientX - frame.left, y = event.clientY - frame.top;
    const chip = at.chips.find((chip) => x >= chip.x && x <= chip.x + chip.w && y >= 5 && y <= 31);
    if (chip) return chip.node.i;
    let best = -1, near = Math.max(9, at.radius + 5) ** 2;
    for (const node of at.shown) {
      if (node.kind === "target") continue;
      const d = (at.px[node.i] - x) ** 2 + (at.py[node.i] - y) ** 2;
      if (d < near) { near = d; best = node.i; }
    }
    return best;
  }

  // The nearest node that way; what lies straight ahead counts as nearer than what lies to the side.
  function neighbour(dx, dy) {
    const from = state.clicked;
    if (from < 0 || !at) return graph.order.at(-1) ?? -1;
    let best = -1, near = Infinity;
    for (const node of at.shown) {
      const x = at.px[node.i] - at.px[from], y = at.py[node.i] - at.py[from], ahead = x * dx + y * dy, aside = Math.abs(x * dy - y * dx);
      if (node.i === from || ahead < 1 || aside > 2.5 * ahead + 4) continue;
      const d = ahead + 2 * aside;
      if (d < near) { near = d; best = node.i; }
    }
    return best;
  }

  function reveal(i) {
    if (!at || i < 0) return;
    const y = at.py[i];
    if (y < box.scrollTop + 20) box.scrollTop = y - 40;
    else if (y > box.scrollTop + box.clientHeight - 30) box.scrollTop = y - box.clientHeight + 60;
  }

  box.addEventListener("pointermove", (event) => {
    const i = find(event);
    box.style.cursor = i >= 0 ? "pointer" : "";
    if (i !== state.hovered) { state.hovered = i; state.change("hover"); }
    tooltip(graph, state, i, event);
  });
  box.addEventListener("pointerleave", () => { state.hovered = -1; state.change("hover"); tooltip(graph, state, -1); });
  // Clicks come with whole coordinates: what was pointed at counts where they just miss.
  const clicked = (event) => { const i = find(event); return i >= 0 ? i : state.hovered; };
  box.addEventListener("click", (event) => { const i = clicked(event); if (event.shiftKey && i >= 0) state.pin([i], !state.pinned.has(i)); else open(i); });
  box.addEventListener("dblclick", (event) => { const i = clicked(event); if (i >= 0) state.pin([i], true); });
  new ResizeObserver(layout).observe(box);
  return { layout, draw, overlay, neighbour, reveal, placeOf: (i) => [at.px[i], at.py[i]] };
}

let tip;
function tooltip(graph, state, i, event) {
  if (!tip) { tip = h("div", { class: "tip", hidden: "" }); document.body.append(tip); }
  tip.hidden = i < 0;
  if (i < 0) return;
  const node = graph.nodes[i], lines = [placeOf(graph, node)];
  if (node.kind === "feature") lines[0] += ` · feature ${node.number} · activation ${number(node.activation)}`;
  if (node.influence) lines.push(`${percent(node.influence / graph.totalInfluence)} of all influence`);
  const open = state.clicked;
  if (open >= 0 && open !== i) {
    const e = [...graph.inputs(open)].find((e) => graph.source[e] === i), out = [...graph.outputs(open)].find((e) => graph.target[e] === i);
    if (e !== undefined) lines.push(`gives the open node ${signed(graph.weight[e])}, ${percent(graph.share[e])} of its inputs`);
    if (out !== undefined) lines.push(`gets ${signed(graph.weight[out])} from the open node`);
  }
  tip.replaceChildren(nameOf(graph, state, node), ...lines.map((line) => h("small", {}, line)));
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 6)) + "px";
  tip.style.top = (event.clientY + 20 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 20) + "px";
}
