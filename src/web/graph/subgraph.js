// Pinned nodes by themselves, groups as one, edges between them summed.
const WIDE = 148, HIGH = 38, GAP_X = 16, GAP_Y = 28;

// The boxes and the edges between them. An edge of several is the sum of its weights; its share is that of the inputs of
// all members of its target.
function subgraphOf(graph, state) {
  const { nodes } = graph, boxOf = new Map(), boxes = [];
  for (const node of nodes) {
    if (!state.pinned.has(node.i) || state.groupOf(node.i)) continue;
    boxOf.set(node.i, boxes.length);
    boxes.push({ id: node.id, members: [node.i], node, row: node.row, pos: node.pos });
  }
  state.groups.forEach((group, g) => {
    const mean = (of) => group.members.reduce((sum, i) => sum + nodes[i][of], 0) / group.members.length;
    for (const i of group.members) boxOf.set(i, boxes.length);
    boxes.push({ id: "group-" + g, members: group.members, group, row: mean("row"), pos: mean("pos") });
  });
  const sums = new Map();
  boxes.forEach((box, to) => {
    for (const i of box.members) for (const e of graph.inputs(i)) {
      const from = boxOf.get(graph.source[e]);
      if (from === undefined || from === to) continue;
      const key = from * boxes.length + to;
      const sum = sums.get(key) || { from, to, weight: 0, share: 0, edges: 0 };
      sum.weight += graph.weight[e]; sum.share += graph.share[e] / box.members.length * Math.sign(graph.weight[e]); sum.edges++;
      sums.set(key, sum);
    }
  });
  return { boxes, links: [...sums.values()].sort((a, b) => Math.abs(a.share) - Math.abs(b.share)) };
}

// Levels by the longest way from the bottom, then places in each level by position in the prompt.
function layLevels(sub, width) {
  const { boxes, links } = sub, order = boxes.map((_, i) => i).sort((a, b) => boxes[a].row - boxes[b].row), place = new Map(order.map((i, k) => [i, k]));
  for (const box of boxes) box.level = 0;
  const into = boxes.map(() => []);
  for (const link of links) if (place.get(link.from) < place.get(link.to)) into[link.to].push(link.from);
  for (const i of order) for (const from of into[i]) boxes[i].level = Math.max(boxes[i].level, boxes[from].level + 1);
  const top = Math.max(0, ...boxes.map((box) => box.level));
  for (const box of boxes) if (box.node && box.node.kind === "target") box.level = top;
  const levels = Array.from({ length: top + 1 }, () => []);
  for (const box of boxes) levels[box.level].push(box);
  const span = Math.max(1, ...boxes.map((box) => box.pos)), widest = Math.max(...levels.map((list) => list.length));
  const full = Math.max(width, widest * (WIDE + GAP_X) + GAP_X), room = full - WIDE - 2 * GAP_X;
  for (const list of levels) {
    list.sort((a, b) => a.pos - b.pos || a.row - b.row);
    let free = GAP_X + WIDE / 2;
    for (const box of list) { box.x = Math.max(free, GAP_X + WIDE / 2 + box.pos / span * room); free = box.x + WIDE + GAP_X; }
    let last = full - GAP_X - WIDE / 2;
    for (const box of [...list].reverse()) { box.x = Math.min(box.x, last); last = box.x - WIDE - GAP_X; }
  }
  return { width: full, height: (top + 1) * (HIGH + GAP_Y) + 20, y: (level) => 16 + HIGH / 2 + (top - level) * (HIGH + GAP_Y) };
}

function makeSubgraph(graph, state, open) {
  const $ = (id) => document.getElementById(id), stage = $("stage"), section = $("sub"), { nodes } = graph;
  let sub = null, size = null, lines = null;
  const nameOfBox = (box) => (box.group ? box.group.name : nameOf(graph, state, box.node));

  // Boxes are made anew: the focus goes to the one that has the node now.
  function render() {
    const had = sub && sub.boxes.find((box) => box.shape === document.activeElement), i = had && had.members.find((i) => state.pinned.has(i));
    draw();
    if (had) (i === undefined ? $("grid") : sub.boxes.find((box) => box.members.includes(i)).shape).focus({ preventScroll: true });
  }

  function draw() {
    section.classList.toggle("empty", !state.pinned.size);
    $("sub-note").textContent = state.pinned.size
      ? `${grouped(state.pinned.size)} pinned${state.groups.length ? `, ${state.groups.length} ${state.groups.length === 1 ? "group" : "groups"}` : ""}. Drag to move, Shift and click to choose several.`
      : "Pin nodes to see them by themselves: double-click one, or press p.";
    state.chosen = new Set([...state.chosen].filter((i) => state.pinned.has(i)));
    $("group").disabled = state.chosen.size < 1;
    $("group").textContent = state.chosen.size ? `Group ${state.chosen.size}` : "Group";
    if (!state.pinned.size) { stage.replaceChildren(); return; }
    sub = subgraphOf(graph, state);
    size = layLevels(sub, Math.max(320, stage.clientWidth - 2));
    sub.boxes.forEach((box) => { box.y = size.y(box.level); });
    restore();
    const height = Math.max(size.height, stage.clientHeight - 4, ...sub.boxes.map((box) => box.y + HIGH));
    lines = svg("g", {});
    stage.replaceChildren(svg("svg", { width: Math.max(size.width, ...sub.boxes.map((box) => box.x + WIDE / 2 + 4)), height, role: "group" }, lines, ...sub.boxes.map(card)));
    connect();
  }

  // Places are thousandths of the frame, two numbers a box; others' lists of another length are passed over.
  function restore() {
    const numbers = state.places.split(" ").filter(Boolean).map(Number);
    if (numbers.length !== 2 * sub.boxes.length || numbers.some(Number.isNaN)) return;
    sub.boxes.forEach((box, i) => { box.x = numbers[2 * i] / 1000 * size.width; box.y = numbers[2 * i + 1] / 1000 * size.height; });
  }
  function keep() {
    state.places = sub.boxes.flatMap((box) => [box.x / size.width, box.y / size.height]).map((x) => Math.round(1000 * x)).join(" ");
    state.change("places");
  }

  function connect() {
    lines.replaceChildren(...sub.links.filter((link) => Math.abs(link.share) >= 0.004).flatMap((link) => {
      const a = sub.boxes[link.from], b = sub.boxes[link.to], up = a.y > b.y ? -1 : 1, y1 = a.y + up * HIGH / 2, y2 = b.y - up * HIGH / 2, bend = (y2 - y1) * 0.45, strength = Math.min(1, Math.abs(link.share));
      const tone = link.weight < 0 ? "var(--cool)" : "var(--bar)", words = `${nameOfBox(a)} → ${nameOfBox(b)}: ${signed(link.weight)}, ${percent(strength)} of its inputs${link.edges > 1 ? `, ${link.edges} edges` : ""}`;
      const path = svg("path", { d: `M${a.x} ${y1}C${a.x} ${y1 + bend} ${b.x} ${y2 - bend} ${b.x} ${y2}`, stroke: tone, "stroke-width": (1 + 9 * strength).toFixed(1), "stroke-opacity": (0.3 + 0.6 * Math.sqrt(strength)).toFixed(2) }, svg("title", {}, words));
      const label = strength < 0.12 ? [] : [svg("text", { class: "weight", x: a.x + (b.x - a.x) * 0.62, y: y1 + (y2 - y1) * 0.6 + 4 }, signed(link.weight))];
      return [path, ...label];
    }));
  }

  function card(box) {
    const label = nameOfBox(box), where = box.group ? `${box.members.length} ${box.members.length === 1 ? "node" : "nodes"}` : placeOf(graph, box.node), short = (text, n) => (text.length > n ? text.slice(0, n - 1) + "…" : text);
    const chosen = box.members.every((i) => state.chosen.has(i)), current = box.members.includes(state.clicked);
    const node = svg("g", { class: `box ${box.group ? "group" : box.node.kind}${chosen ? " chosen" : ""}${current ? " current" : ""}`, tabindex: 0, role: "button", "aria-label": `${label}, ${where}`, "data-box": box.id },
      svg("rect", { x: -WIDE / 2, y: -HIGH / 2, width: WIDE, height: HIGH, rx: box.group ? 12 : box.node.kind === "feature" ? 9 : 3 }),
      svg("text", { y: -2 }, short(label, 22)), svg("text", { class: "small", y: 13 }, short(where, 26)), svg("title", {}, `${label}\n${where}`));
    box.shape = node;
    const move = () => node.setAttribute("transform", `translate(${box.x.toFixed(1)} ${box.y.toFixed(1)})`);
    move();
    let from = null, moved = false;
    node.addEventListener("pointerdown", (event) => { from = [event.clientX - box.x, event.clientY - box.y, event.clientX, event.clientY]; moved = false; node.setPointerCapture(event.pointerId); });
    node.addEventListener("pointermove", (event) => {
      if (!from || (!moved && Math.hypot(event.clientX - from[2], event.clientY - from[3]) < 4)) return;
      moved = true;
      box.x = Math.max(WIDE / 2, event.clientX - from[0]); box.y = Math.max(HIGH / 2, event.clientY - from[1]);
      move(); connect();
    });
    node.addEventListener("pointerup", () => { if (from && moved) keep(); from = null; });
    node.addEventListener("click", (event) => { if (!moved) choose(box, event); });
    node.addEventListener("dblclick", () => rename(box));
    node.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); choose(box, event); } });
    node.addEventListener("pointerenter", () => { if (!box.group) { state.hovered = box.members[0]; state.change("hover"); } });
    node.addEventListener("pointerleave", () => { state.hovered = -1; state.change("hover"); });
    return node;
  }

  function choose(box, event) {
    if (event.shiftKey || event.ctrlKey || event.metaKey) {
      const all = box.members.every((i) => state.chosen.has(i));
      for (const i of box.members) if (all) state.chosen.delete(i); else state.chosen.add(i);
      render();
      return;
    }
    state.chosen.clear();
    // A group opens on its most influential member.
    open(box.members.reduce((a, b) => (nodes[b].influence > nodes[a].influence ? b : a)));
    if (box.group) { state.chosen = new Set(box.members); render(); }
  }

  function rename(box) {
    if (!box.group) { open(box.members[0]); document.getElementById("rename")?.click(); return; }
    renameGroup(box.group);
  }
  async function renameGroup(group) {
    const text = await askName(group.name);
    if (text) state.edit(() => { group.name = text; });
  }
  // Whether there is one.
  function renameChosen() {
    const group = state.chosenGroup();
    if (group) renameGroup(group);
    return Boolean(group);
  }

  async function group() {
    const list = [...state.chosen], same = state.chosenGroup();
    if (!list.length) return;
    if (same) { state.chosen.clear(); state.ungroup(same); return; }
    const text = await askName(nameOf(graph, state, nodes[list.reduce((a, b) => (nodes[b].influence > nodes[a].influence ? b : a))]));
    if (text) { state.chosen.clear(); state.group(list, text); }
  }
  $("group").addEventListener("click", group);
  $("tidy").addEventListener("click", () => { state.places = ""; state.change("subgraph"); });
  $("clear").addEventListener("click", () => state.pin([...state.pinned], false));
  $("pin-top").addEventListener("click", () => state.pin(graph.extra.paths.flatMap((path) => path.nodes), true));
  new ResizeObserver(() => { if (state.pinned.size) render(); }).observe(stage);
  return { render, group, renameChosen };
}
