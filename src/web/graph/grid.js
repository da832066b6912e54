// The picture. Nodes and faint edges are drawn once; what follows the pointer is drawn on a second canvas above.
const FAINT = 220;

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
    const style = getComputedStyle(document.documentElement);
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
  return { layout, draw, overlay, neighbour, reveal };
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
