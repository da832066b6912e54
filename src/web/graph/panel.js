// The side panel: the graph as a whole, or one node with its inputs, outputs and examples.
const FEW = 14;

function glyph(node, pinned) {
  const on = pinned ? { class: "on" } : {};
  const shape = node.kind === "feature" ? svg("circle", { cx: 7, cy: 7, r: 5, ...on })
    : node.kind === "error" ? svg("path", { d: "M7 1 13 7 7 13 1 7Z", ...on }) : svg("rect", { x: 2, y: 2, width: 10, height: 10, ...on });
  return svg("svg", { class: "glyph", viewBox: "0 0 14 14", "aria-hidden": "true" }, shape);
}

function makePanel(graph, state, open) {
  const panel = document.getElementById("panel"), { nodes, extra, own } = graph, name = (i) => nameOf(graph, state, nodes[i]);
  let naming = false, renders = 0;

  function link(i, value, note, share, tone, more) {
    const node = nodes[i], side = state.groupOf(i), row = h("button", {
      class: state.pinned.has(i) ? "edge pinned" : "edge", type: "button", "data-node": node.id, style: `--w:${(100 * share).toFixed(1)}%;--tone:${tone}`,
      onclick: () => open(i), onpointerenter: () => { state.hovered = i; state.change("hover"); }, onpointerleave: () => { state.hovered = -1; state.change("hover"); },
    }, glyph(node, state.pinned.has(i)), h("span", { class: "name" }, name(i), h("small", {}, placeOf(graph, node) + (side ? ` · ${side.name}` : ""))), h("span", { class: "n" }, value, note ? h("small", {}, note) : ""));
    if (more) row.append(h("span", { class: "m" }, more));
    return row;
  }

  // Rows with the strongest first; the rest when it is asked for.
  function list(rows, make) {
    const card = h("div", { class: "card" });
    const fill = (n) => {
      card.replaceChildren(...rows.slice(0, n).map(make));
      if (n < rows.length) card.append(h("button", { class: "edge more", type: "button", onclick: () => { fill(n + 200); card.children[n].focus({ preventScroll: true }); } }, "", `${grouped(rows.length - n)} more`));
    };
    fill(FEW);
    return card;
  }

  function edges(title, note, list_, other) {
    const rows = [...list_];
    if (!rows.length) return [];
    const most = graph.share[rows.reduce((a, b) => (graph.share[b] > graph.share[a] ? b : a))];
    // Outputs are compared by their weights among each other: shares are of other nodes' inputs.
    const size = other === graph.target ? (e) => Math.abs(graph.weight[e]) : (e) => graph.share[e];
    rows.sort((a, b) => size(b) - size(a));
    const top = other === graph.target ? size(rows[0]) : most;
    const made = list(rows, (e) => link(other[e], signed(graph.weight[e]), percent(graph.share[e]), top ? size(e) / top : 0, graph.weight[e] < 0 ? "var(--cool)" : "var(--bar)",
      Number.isNaN(graph.measured[e]) ? "" : `measured ${signed(graph.measured[e])}`));
    return [h("div", { class: "part" }, h("h3", {}, title, h("small", {}, note)), made)];
  }

  const fact = (value, label) => h("div", { class: "fact" }, h("b", {}, value), h("span", {}, label));

  function heading(node) {
    if (naming && node.kind === "feature") {
      const input = h("input", { class: "rename", "aria-label": "Name of the feature", value: state.names.get(String(node.key)) || node.label, placeholder: `Feature ${node.number}` });
      const done = (keep) => { if (!naming) return; naming = false; if (keep) state.rename(node, input.value.trim()); else render(); };
      input.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key !== "Enter" && event.key !== "Escape") return;
        done(event.key === "Enter");
        document.getElementById("rename").focus();
      });
      input.addEventListener("blur", (event) => {
        done(true);
        // Where Tab led is made anew, too.
        if (event.relatedTarget && !event.relatedTarget.isConnected) document.getElementById(event.relatedTarget.id)?.focus();
      });
      setTimeout(() => { input.focus(); input.select(); });
      return input;
    }
    return h("h2", {}, name(node.i));
  }

  function actions(node) {
    const pinned = state.pinned.has(node.i), group = state.groupOf(node.i);
    const acts = [h("button", { id: "pin", type: "button", class: pinned ? "pinnedon" : "", "aria-pressed": String(pinned), onclick: () => state.pin([node.i], !pinned) }, pinned ? "Unpin" : "Pin")];
    if (node.kind === "feature") acts.push(h("button", { id: "rename", type: "button", onclick: startNaming }, "Rename"));
    const choose = h("select", { id: "node-group", "aria-label": "Group", onchange: () => {
      const value = choose.value;
      if (value === "+") askName("").then((text) => (text ? state.group([node.i], text) : render()));
      else if (value) state.group([node.i], value);
      else if (group) state.edit(() => { group.members = group.members.filter((i) => i !== node.i); });
    } }, h("option", { value: "" }, group ? "no group" : "Group…"), ...state.groups.map((g) => h("option", { value: g.name, ...(g === group ? { selected: "" } : {}) }, g.name)), h("option", { value: "+" }, "new group…"));
    acts.push(choose);
    const near = [...graph.inputs(node.i)].slice(0, 5).map((e) => graph.source[e]);
    if (near.length) acts.push(h("button", { id: "pin-near", type: "button", onclick: () => state.pin([node.i, ...near], true) }, "Pin with top inputs"));
    return h("div", { class: "acts" }, ...acts);
  }

  function startNaming() { naming = true; render(); }

  function facts(node) {
    const all = [];
    if (node.kind === "feature") all.push(fact(number(node.activation), "activation"));
    if (node.kind === "target") all.push(fact(chance(node.prob), "probability"), fact(number(node.value), "logits explained"));
    else all.push(fact(percent(node.influence / (graph.totalInfluence || 1)), "of all influence"), fact(node.rank ? percent(node.rank) : "–", "cumulative"));
    const found = graph.verified.get(node.i);
    if (found) all.push(fact(signed(found.predicted), `on ${nameOf(graph, state, graph.best)}, predicted`), fact(signed(found.frozen), "measured, held"), fact(signed(found.free), "measured, free"));
    return h("div", { class: "facts" }, ...all);
  }

  function about(node) {
    const kind = { feature: `Feature ${node.number} of layer ${node.layer}`, error: `What the dictionary of layer ${node.layer} leaves over`, token: `Token ${node.id.split("_")[1]} of the prompt`, target: node.id.includes("-") ? "A difference of two logits" : "A logit less the mean of all" }[node.kind];
    return h("p", { class: "where" }, kind, ", position ", String(node.pos), " ", token(graph.tokens[node.pos]));
  }

  async function feature(node) {
    const render = renders, record = await loadRecord(graph, node.key);
    // The panel may show another node by now, or this one anew.
    if (!record || render !== renders) return;
    panel.append(...recordParts(record, node));
    panel.dataset.feature = node.key;
  }

  // All is made anew: the focus goes to the like of what had it, else to the panel, but from the pointer to nothing, so
  // that arrow keys move on in the graph.
  function render() {
    const had = document.activeElement, inside = had !== panel && panel.contains(had), pointed = inside && !had.matches(":focus-visible");
    draw();
    if (!inside) return;
    const like = had.id ? document.getElementById(had.id) : had.dataset.node && panel.querySelector(`[data-node="${CSS.escape(had.dataset.node)}"]`);
    (like || (pointed ? document.body : panel)).focus({ preventScroll: true });
  }

  function draw() {
    delete panel.dataset.feature;
    renders++;
    const i = state.clicked;
    if (i < 0) { panel.replaceChildren(...overview(graph, state, { link, list, open, fact })); panel.dataset.node = ""; return; }
    const node = nodes[i], ins = graph.inputs(i), outs = graph.outputs(i);
    panel.replaceChildren(heading(node), about(node), actions(node), facts(node),
      ...edges("Inputs", node.kind === "target" ? "what raises and lowers it" : "what makes it fire", ins, graph.source),
      ...edges("Outputs", "what it acts on", outs, graph.target));
    if (node.kind === "feature") feature(node);
    panel.dataset.node = node.id;
  }
  return { render, startNaming: () => { if (state.clicked >= 0 && nodes[state.clicked].kind === "feature") startNaming(); }, top: () => { panel.scrollTop = 0; } };
}

// Asks for a name in a dialog of this page.
function askName(before) {
  return new Promise((done) => {
    const input = h("input", { value: before, "aria-label": "Name", placeholder: "Name of the group", class: "rename" });
    const form = h("form", { method: "dialog" }, h("h2", {}, "Name of the group"), input, h("p", { class: "acts" }, h("button", { class: "main" }, "Done"), h("button", { type: "button", onclick: () => { input.value = ""; box.close(); } }, "Cancel")));
    const box = h("dialog", { class: "ask" }, form);
    box.addEventListener("keydown", (event) => { event.stopPropagation(); if (event.key === "Escape") input.value = ""; });
    box.addEventListener("close", () => { box.remove(); done(input.value.trim()); });
    document.body.append(box);
    box.showModal();
    input.select();
  });
}
