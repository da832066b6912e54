// Puts picture, panel and subgraph together: address, search, slider, keys, saving.
async function main() {
  const $ = (id) => document.getElementById(id), root = document.documentElement;
  const [doc, extra] = await Promise.all([json("graph"), json("extra")]), graph = makeGraph(doc, extra), state = makeState(graph), { nodes } = graph;
  const fromAddress = () => state.load(Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
  fromAddress();
  header();

  const open = (i) => {
    // A group that was chosen to be looked at is not meant once something else is.
    const group = state.chosenGroup();
    if (group && !group.members.includes(i)) state.chosen.clear();
    state.clicked = i;
    state.change("open");
  };
  const grid = makeGrid(graph, state, open), panel = makePanel(graph, state, open), sub = makeSubgraph(graph, state, open);

  function header() {
    const { best, scores } = graph;
    document.title = extra.title;
    $("about").textContent = extra.about;
    $("title").replaceChildren(doc.metadata.prompt);
    if (best) $("title").append(h("span", { class: "answer" }, ` → ${plain(best.text)}`), h("small", {}, chance(best.prob)));
    const { verification: v } = graph.own, pill = (kind, text, title) => h("span", { class: "pill " + kind, title }, text);
    const pills = [pill("trust-" + extra.trust, `replacement ${two(scores.replacement)}`, "Share of the influence of tokens in that of tokens and errors"), pill("plain", `completeness ${two(scores.completeness)}`, "Share of the inputs of nodes that come from features and tokens")];
    if (v && v.frozen_correlation !== null) pills.push(pill("plain", `verified r = ${correlation(v.frozen_correlation)}`, `${v.effects} effects, attention, norms and errors held`));
    $("trust").replaceChildren(...pills, h("p", {}, extra.words));
  }

  let waiting, shown = -2;
  state.listen((what) => {
    if (what === "hover") { grid.overlay(); return; }
    if (what === "open") {
      if (state.clicked !== shown) { panel.render(); panel.top(); shown = state.clicked; }
      grid.layout(); grid.reveal(state.clicked); sub.render();
      $("live").textContent = state.clicked >= 0 ? fullName(graph, state, nodes[state.clicked]) : "Overview";
    } else if (what === "subgraph") { grid.layout(); sub.render(); panel.render(); }
    else if (what === "view") { grid.layout(); counts(); }
    $("undo").disabled = !state.canUndo();
    // Of a button that its own press disables or hides the focus would be lost.
    if (document.activeElement.disabled || !document.activeElement.getClientRects().length) $("grid").focus();
    clearTimeout(waiting);
    waiting = setTimeout(address, 120);
  });

  // The address holds what differs from the file. A file that names no end of edges means both.
  function address() {
    const words = new URLSearchParams(), now = state.params();
    for (const [key, value] of Object.entries(now)) {
      const text = key === "pinnedIds" ? value.join(",") : typeof value === "object" ? JSON.stringify(value) : String(value);
      const was = doc.qParams[key], before = key === "pinnedIds" ? (Array.isArray(was) ? was.join(",") : was) : typeof was === "object" ? JSON.stringify(was) : was === undefined ? "" : String(was);
      if (text !== before && !(key === "linkType" && text === "both" && !["input", "output"].includes(was))) words.set(key, text);
    }
    if (doc.qParams.pruningThreshold !== undefined && now.pruningThreshold === undefined) words.set("pruningThreshold", "1");
    if (doc.qParams.clerps !== undefined && now.clerps === undefined) words.set("clerps", "[]");
    history.replaceState(null, "", "#" + words);
  }
  addEventListener("hashchange", () => { fromAddress(); shown = -2; controls(); state.change("subgraph"); state.change("open"); });

  function save() {
    const text = JSON.stringify({ ...doc, qParams: state.params() }), url = URL.createObjectURL(new Blob([text + "\n"], { type: "application/json" }));
    const link = h("a", { href: url, download: doc.metadata.slug + ".json" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function counts() {
    const n = nodes.reduce((sum, node) => sum + state.visible(node.i), 0);
    $("count").textContent = n === nodes.length ? `${grouped(n)} nodes` : `${grouped(n)} of ${grouped(nodes.length)} nodes`;
    $("limit-text").textContent = state.limit >= 1 ? "all" : `≤ ${percent(state.limit)}`;
  }
  const top = state.top || 1;
  function controls() {
    $("limit").value = state.limit >= top ? 1000 : Math.round(1000 * state.limit / top);
    $("errors").checked = state.errors;
    for (const button of document.querySelectorAll("[data-link]")) button.setAttribute("aria-pressed", String(button.dataset.link === state.link));
    counts();
  }
  const slide = (value) => { state.limit = value >= 1000 ? 1 : Math.round(1000 * top * value / 1000) / 1000; state.change("view"); };
  $("limit").addEventListener("input", () => slide(Number($("limit").value)));
  $("errors").addEventListener("change", () => { state.errors = $("errors").checked; state.change("view"); });
  for (const button of document.querySelectorAll("[data-link]")) button.addEventListener("click", () => { state.link = button.dataset.link; controls(); state.change("view"); });

  // Words in names and tokens; L5 a layer, 5/1203 or 1203 a feature.
  function find() {
    const query = $("search").value.trim().toLowerCase(), layer = /^l(\d+)$/.exec(query), pair = /^(\d+)\/(\d+)$/.exec(query), words = query.split(/\s+/);
    state.found = null;
    $("found").replaceChildren();
    if (query) {
      const text = (node) => `${nameOf(graph, state, node)} ${node.label} ${graph.tokens[node.pos]} ${node.id}`.toLowerCase();
      const hits = nodes.filter((node) => state.visible(node.i) && (layer ? node.layer === Number(layer[1]) : pair ? node.layer === Number(pair[1]) && node.number === Number(pair[2])
        : /^\d+$/.test(query) ? node.number === Number(query) : words.every((word) => text(node).includes(word))));
      state.found = new Set(hits.map((node) => node.i));
      hits.sort((a, b) => b.influence - a.influence);
      $("found").append(h("div", { class: "note" }, `${grouped(hits.length)} ${hits.length === 1 ? "node" : "nodes"}`), ...hits.slice(0, 40).map((node) => h("button", { class: "edge", type: "button", style: "--w:0", onclick: () => { open(node.i); $("found").replaceChildren(); $("grid").focus(); } },
        glyph(node, state.pinned.has(node.i)), h("span", { class: "name" }, nameOf(graph, state, node), h("small", {}, placeOf(graph, node))), h("span", { class: "n" }, percent(node.influence / (graph.totalInfluence || 1))))));
    }
    grid.draw();
  }
  $("search").addEventListener("input", find);
  $("search").addEventListener("blur", () => setTimeout(() => { if (!$("found").contains(document.activeElement)) $("found").replaceChildren(); }, 150));

  const theme = () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    grid.draw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => grid.draw());
  $("save").addEventListener("click", save);
  $("undo").addEventListener("click", state.undo);
  $("theme").addEventListener("click", theme);
  $("help").addEventListener("click", () => $("keys").showModal());

  // The bar between picture and subgraph.
  const taller = (pixels) => { $("sub").style.height = Math.max(70, Math.min(innerHeight - 300, pixels)) + "px"; };
  let pulled = null;
  $("split").addEventListener("pointerdown", (event) => { pulled = event.clientY + $("sub").offsetHeight; $("split").setPointerCapture(event.pointerId); });
  $("split").addEventListener("pointermove", (event) => { if (pulled !== null) taller(pulled - event.clientY); });
  $("split").addEventListener("pointerup", () => { pulled = null; });
  $("split").addEventListener("keydown", (event) => { const by = { ArrowUp: 24, ArrowDown: -24 }[event.key]; if (by) { taller($("sub").offsetHeight + by); event.preventDefault(); event.stopPropagation(); } });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const search = $("search"), field = event.target.tagName;
    if (event.target === search) {
      if (event.key === "Escape") { search.value = ""; find(); search.blur(); } else if (event.key === "Enter") { document.querySelector("#found .edge")?.click(); $("grid").focus(); } else return;
      event.preventDefault();
      return;
    }
    if (field === "INPUT" && event.target.type !== "checkbox" || field === "SELECT") return;
    const go = (i) => { if (i >= 0 && i !== undefined) open(i); }, at = state.clicked, move = (dx, dy) => () => go(grid.neighbour(dx, dy));
    const best = (list, end) => () => { if (at >= 0) for (const e of list(at)) if (state.visible(end[e])) { go(end[e]); return; } };
    const keys = {
      i: best(graph.inputs, graph.source), o: best(graph.outputs, graph.target), p: () => at >= 0 && state.pin([at], !state.pinned.has(at)), g: sub.group, n: () => sub.renameChosen() || panel.startNaming(), z: state.undo, s: save, t: theme,
      e: () => { $("errors").click(); }, "/": () => { search.focus(); search.select(); }, "?": () => $("keys").showModal(), Escape: () => open(-1),
      "[": () => { $("limit").value = Number($("limit").value) - 20; slide(Number($("limit").value)); }, "]": () => { $("limit").value = Number($("limit").value) + 20; slide(Number($("limit").value)); },
    };
    // Where the panel is read, arrows scroll it.
    if (!document.activeElement.matches("#panel,#panel .part *")) Object.assign(keys, { ArrowLeft: move(-1, 0), ArrowRight: move(1, 0), ArrowUp: move(0, -1), ArrowDown: move(0, 1) });
    if (!(event.key in keys)) return;
    keys[event.key]();
    event.preventDefault();
  });

  controls();
  sub.render();
  panel.render();
  shown = state.clicked;
  grid.layout();
  grid.reveal(state.clicked);
  root.dataset.ready = Math.round(performance.now());
}

main().catch((error) => {
  document.getElementById("panel").textContent = "This page cannot be shown: " + error.message;
  console.error(error);
});
