// The graph: nodes, edges both ways, and what the reader made of it.
const KINDS = { "cross layer transcoder": "feature", "mlp reconstruction error": "error", embedding: "token", logit: "target" };

function makeGraph(doc, extra) {
  const own = doc.mechinterp, tokens = doc.metadata.prompt_tokens, byId = new Map();
  const nodes = doc.nodes.map((entry, i) => {
    const kind = KINDS[entry.feature_type], of = entry.mechinterp || {}, target = of.target || null;
    const layer = kind === "feature" || kind === "error" ? Number(entry.layer) : -1;
    byId.set(entry.node_id, i);
    return {
      i, kind, layer, id: entry.node_id, pos: entry.ctx_idx, key: entry.feature, number: kind === "feature" ? Number(entry.node_id.split("_")[1]) : -1,
      row: kind === "token" ? 0 : kind === "target" ? own.n_layers + 1 : layer + 1, label: kind === "feature" ? entry.clerp : "",
      activation: entry.activation, influence: of.influence || 0, rank: entry.influence ?? 0, prob: entry.token_prob, text: target ? target.text : "", value: target ? target.value : 0,
    };
  });
  const m = doc.links.length, source = new Int32Array(m), target = new Int32Array(m), weight = new Float32Array(m), measured = new Float32Array(m), share = new Float32Array(m);
  const inSum = new Float64Array(nodes.length);
  doc.links.forEach((link, e) => {
    source[e] = byId.get(link.source); target[e] = byId.get(link.target); weight[e] = link.weight; measured[e] = link.measured ?? NaN;
    inSum[target[e]] += Math.abs(link.weight);
  });
  for (let e = 0; e < m; e++) share[e] = inSum[target[e]] ? Math.abs(weight[e]) / inSum[target[e]] : 0;
  // Edges of each node, strongest first.
  const byShare = Uint32Array.from({ length: m }, (_, e) => e).sort((a, b) => share[b] - share[a]);
  const lists = (end) => {
    const first = new Int32Array(nodes.length + 1);
    for (let e = 0; e < m; e++) first[end[e] + 1]++;
    for (let i = 0; i < nodes.length; i++) first[i + 1] += first[i];
    const next = first.slice(), list = new Int32Array(m);
    for (const e of byShare) list[next[end[e]]++] = e;
    return (i) => list.subarray(first[i], first[i + 1]);
  };
  const graph = {
    doc, extra, own, tokens, nodes, byId, source, target, weight, measured, share, byShare, inputs: lists(target), outputs: lists(source),
    rows: own.n_layers + 2, totalInfluence: nodes.reduce((sum, node) => sum + node.influence, 0),
    order: nodes.map((node) => node.i).sort((a, b) => nodes[a].row - nodes[b].row),
    verified: new Map(),
  };
  // Of a node's effects that on the likeliest target.
  graph.best = nodes.filter((node) => node.kind === "target").sort((a, b) => b.prob - a.prob)[0];
  graph.checks = (own.verification ? own.verification.nodes : []).filter((v) => !graph.best || v.target === graph.best.i);
  for (const v of graph.checks) graph.verified.set(v.node, v);
  graph.scores = own.report.unpruned[0] ? own.report.unpruned_scores : own.scores;
  return graph;
}

// What is pinned, grouped, named and looked at; every change is told to those who draw it.
function makeState(graph) {
  const { nodes, byId } = graph, listeners = [];
  const top = nodes.reduce((most, node) => Math.max(most, node.rank), 0);
  const fresh = () => ({ clicked: -1, pinned: new Set(), groups: [], names: new Map(), limit: 1, link: "both", chosen: new Set(), places: "" });
  const state = { ...fresh(), hovered: -1, errors: true, found: null };
  const past = [];
  const known = (ids) => ids.map((id) => byId.get(id)).filter((i) => i !== undefined);
  const parse = (value) => { if (typeof value !== "string") return value; try { return JSON.parse(value); } catch { return null; } };
  // Anyone may have written an address or a file: what is not of its kind there is passed over.
  const entries = (value) => { const list = parse(value); return Array.isArray(list) ? list.filter(Array.isArray) : null; };

  function read(params) {
    const { pinnedIds, pruningThreshold, clickedId, linkType, sg_pos } = params, groups = entries(params.supernodes), names = entries(params.clerps);
    const pinned = typeof pinnedIds === "string" ? pinnedIds.split(",") : pinnedIds, limit = parse(pruningThreshold);
    if (Array.isArray(pinned)) state.pinned = new Set(known(pinned));
    if (groups) {
      state.groups = groups.filter(([name]) => typeof name === "string").map(([name, ...ids]) => ({ name, members: known(ids) })).filter((group) => group.members.length);
      for (const group of state.groups) for (const i of group.members) state.pinned.add(i);
    }
    if (names) state.names = new Map(names.filter(([, text]) => typeof text === "string").map(([key, text]) => [String(key), text]));
    if (Number.isFinite(limit)) state.limit = Math.min(1, Math.max(0, limit));
    if (typeof clickedId === "string") state.clicked = byId.get(clickedId) ?? -1;
    if (["input", "output", "both"].includes(linkType)) state.link = linkType;
    if (typeof sg_pos === "string") state.places = sg_pos;
  }
  // What an address does not say is as it is in the file.
  function load(address) {
    Object.assign(state, fresh());
    read(graph.doc.qParams);
    read(address);
  }

  // `qParams` as circuit-tracer and Neuronpedia know them; names of features are text, because circuit-tracer parses them.
  function params() {
    const id = (i) => nodes[i].id;
    const out = {
      pinnedIds: [...state.pinned].map(id), supernodes: state.groups.map((group) => [group.name, ...group.members.map(id)]), linkType: state.link,
      clickedId: state.clicked >= 0 ? id(state.clicked) : "", sg_pos: state.places,
    };
    if (state.limit < 1) out.pruningThreshold = state.limit;
    if (state.names.size) out.clerps = JSON.stringify([...state.names]);
    return out;
  }

  function change(what) { for (const listener of listeners) listener(what); }
  // Changes of the subgraph and of names can be taken back; an edit that leaves all as it was is none.
  function edit(apply) {
    const was = { pinned: [...state.pinned], groups: structuredClone(state.groups), names: [...state.names], places: state.places }, before = JSON.stringify(params());
    apply();
    for (const group of state.groups) group.members = group.members.filter((i) => state.pinned.has(i));
    state.groups = state.groups.filter((group) => group.members.length);
    if (JSON.stringify(params()) !== before) past.push(was);
    if (past.length > 100) past.shift();
    change("subgraph");
  }
  function undo() {
    const last = past.pop();
    if (!last) return;
    Object.assign(state, { pinned: new Set(last.pinned), groups: last.groups, names: new Map(last.names), places: last.places });
    change("subgraph");
  }
  const groupOf = (i) => state.groups.find((group) => group.members.includes(i));
  const chosenGroup = () => state.groups.find((group) => group.members.length === state.chosen.size && group.members.every((i) => state.chosen.has(i)));
  Object.assign(state, {
    top, load, params, change, edit, undo, groupOf, chosenGroup, canUndo: () => past.length > 0, listen: (f) => listeners.push(f),
    visible: (i) => {
      const node = nodes[i];
      if (node.kind === "token" || node.kind === "target" || state.pinned.has(i) || i === state.clicked) return true;
      return node.rank <= state.limit + 1e-12 && (state.errors || node.kind !== "error");
    },
    pin: (list, on) => edit(() => { for (const i of list) if (on) state.pinned.add(i); else state.pinned.delete(i); state.places = ""; }),
    group: (list, name) => edit(() => {
      for (const i of list) { state.pinned.add(i); const old = groupOf(i); if (old) old.members = old.members.filter((j) => j !== i); }
      const same = state.groups.find((group) => group.name === name);
      if (same) same.members.push(...list); else state.groups.push({ name, members: [...list] });
      state.places = "";
    }),
    ungroup: (group) => edit(() => { state.groups = state.groups.filter((other) => other !== group); state.places = ""; }),
    rename: (node, text) => edit(() => { if (text && text !== node.label) state.names.set(String(node.key), text); else state.names.delete(String(node.key)); }),
  });
  return state;
}

// What a node is called, where it is, and its whole name for those who do not see the picture.
// A token among words: spaces show only where there is nothing else.
const plain = (text) => (text.trim() ? text.trim().replaceAll("\t", "⇥") : visible(text));
const nameOf = (graph, state, node) => {
  if (node.kind === "token") return `“${plain(graph.tokens[node.pos])}”`;
  if (node.kind === "target") return `“${plain(node.text)}”`;
  if (node.kind === "error") return "Error";
  return state.names.get(String(node.key)) || node.label || `Feature ${node.number}`;
};
function placeOf(graph, node) {
  const at = `“${plain(graph.tokens[node.pos])}”`;
  if (node.kind === "token") return `position ${node.pos}`;
  if (node.kind === "target") return `output, ${chance(node.prob)}`;
  return `L${node.layer} · ${at}`;
}
const fullName = (graph, state, node) => `${node.kind} ${nameOf(graph, state, node)}, ${placeOf(graph, node)}`;
const correlation = (r) => r.toFixed(r >= 0.995 ? 4 : 2);
// What is nearly certain is not certain.
const chance = (p) => (p >= 0.995 && p < 1 ? `${(100 * p).toFixed(p >= 0.9995 ? 2 : 1)} %` : percent(p));
const signed = (x) => (x > 0 ? "+" : "") + number(x);

// The strongest way through a node: from a token to it, and from it to a target, by the product of shares.
function wayThrough(graph, at) {
  const { order, nodes, inputs, outputs, share, source, target } = graph, way = new Set();
  const sweep = (list, edges, end, isEnd) => {
    const best = new Float64Array(nodes.length), via = new Int32Array(nodes.length).fill(-1);
    for (const i of list) {
      if (isEnd(nodes[i])) best[i] = nodes[i].kind === "target" ? Math.max(nodes[i].prob, 1e-9) : 1;
      for (const e of edges(i)) { const value = best[end[e]] * share[e]; if (value > best[i]) { best[i] = value; via[i] = e; } }
    }
    for (let i = at; via[i] >= 0; i = end[via[i]]) way.add(via[i]);
  };
  sweep(order, inputs, source, (node) => node.kind === "token");
  sweep([...order].reverse(), outputs, target, (node) => node.kind === "target");
  return way;
}
