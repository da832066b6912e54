// The graph as a whole: targets, strongest paths, the most influential nodes, predictions against measurements.
function overview(graph, state, { link, list, open, fact }) {
  const { nodes, own, extra } = graph, name = (i) => nameOf(graph, state, nodes[i]);
  const parts = [h("h2", {}, "Overview"), h("div", { class: "facts" },
    fact(two(graph.scores.replacement), "replacement score"), fact(two(graph.scores.completeness), "completeness"),
    fact(grouped(nodes.length), `nodes of ${grouped(own.report.unpruned[0] || nodes.length)}`), fact(grouped(graph.doc.links.length), `edges of ${grouped(own.report.unpruned[1] || graph.doc.links.length)}`))];
  const part = (title, note, ...children) => parts.push(h("div", { class: "part" }, h("h3", {}, title, h("small", {}, note)), ...children));
  const targets = nodes.filter((node) => node.kind === "target").sort((a, b) => b.prob - a.prob);
  part("Targets", "what is explained", h("div", { class: "card" }, ...targets.map((node) => link(node.i, signed(node.value), chance(node.prob), node.prob, "var(--bar)"))));
  for (const path of extra.paths) {
    const steps = path.nodes.map((i, k) => h("li", {}, h("button", { type: "button", onclick: () => open(i) }, name(i)), h("span", { class: "step" }, k ? `${signed(path.weights[k - 1])} · ${placeOf(graph, nodes[i])}` : placeOf(graph, nodes[i]))));
    part(`Strongest path ${path.through_features ? "through features " : ""}to ${name(path.nodes.at(-1))}`, `${percent(path.share)} of its input`, h("ol", { class: "card path" }, ...steps));
  }
  const ranked = nodes.filter((node) => node.influence > 0 && node.kind !== "target").sort((a, b) => b.influence - a.influence);
  const share = (node) => node.influence / (graph.totalInfluence || 1);
  if (ranked.length) part("Most influential", "share of all influence", list(ranked, (node) => link(node.i, percent(share(node)), "", node.influence / ranked[0].influence, "var(--soft)")));
  if (graph.checks.length) part("Predicted and measured", `effects on ${name(graph.best.i)}`, scatter(graph, open));
  const settings = own.settings, lines = [`${own.model || "an unnamed model"}, ${own.scan}`, `${grouped(own.report.selected_features)} of ${grouped(own.report.active_features)} active features traced`,
    `kept ${percent(settings.node_threshold)} of the influence of nodes, ${percent(settings.edge_threshold)} of edges`, `largest gap between a row's sum and its pre-activation: ${told(own.report.largest_row_error, (x) => x.toExponential(1))}`];
  if (own.report.active_features) part("How it was made", "", h("div", { class: "card pad note" }, ...lines.map((line) => h("div", {}, line))));
  return parts;
}

function scatter(graph, open) {
  const found = graph.checks, all = found.flatMap((v) => [v.predicted, v.frozen, v.free]), low = Math.min(0, ...all), high = Math.max(0, ...all), size = 300, pad = 30;
  const at = (x) => pad + (x - low) / (high - low || 1) * (size - 2 * pad), flip = (y) => size - at(y);
  const chart = svg("svg", { class: "scatter", viewBox: `0 0 ${size} ${size}`, role: "img" }, svg("title", {}, "Effects predicted by the graph and measured by intervention"),
    svg("line", { x1: at(low), x2: at(high), y1: flip(0), y2: flip(0) }), svg("line", { x1: at(0), x2: at(0), y1: flip(low), y2: flip(high) }), svg("line", { class: "same", x1: at(low), y1: flip(low), x2: at(high), y2: flip(high) }),
    svg("text", { x: size / 2, y: size - 6, "text-anchor": "middle" }, "predicted"), svg("text", { x: -size / 2, y: 12, "text-anchor": "middle", transform: "rotate(-90)" }, "measured"),
    svg("text", { x: at(high), y: size - 18, "text-anchor": "end" }, number(high)), svg("text", { x: at(low), y: size - 18 }, number(low)));
  for (const v of found) {
    for (const [kind, value] of [["free", v.free], ["frozen", v.frozen]]) {
      const dot = svg("circle", { class: kind, cx: at(v.predicted), cy: flip(value), r: 3.4 }, svg("title", {}, `${graph.nodes[v.node].id}: predicted ${signed(v.predicted)}, measured ${signed(v.frozen)} with attention, norms and errors held, ${signed(v.free)} in the free model`));
      dot.addEventListener("click", () => open(v.node));
      chart.append(dot);
    }
  }
  const { frozen_correlation: frozen, free_correlation: free } = graph.own.verification, r = (x) => (x === null ? "" : ` (r = ${correlation(x)})`);
  return h("div", { class: "card pad" }, chart, h("div", { class: "key" }, h("i", {}), "attention, norms and errors held" + r(frozen), h("i", { class: "free" }), "free model" + r(free)));
}

// A feature's record, of the index that the graph was shown with.
async function loadRecord(graph, key) {
  const chunk = graph.extra.features[key];
  if (chunk === undefined) return null;
  return (await json("f" + chunk))[key];
}

function recordParts(record, node) {
  const parts = [], part = (title, note, ...children) => parts.push(h("div", { class: "part" }, h("h3", {}, title, h("small", {}, note)), ...children));
  const side = (caption, rows, tone) => {
    const most = Math.max(...rows.map(([, x]) => Math.abs(x)), 1e-9);
    return h("table", {}, h("caption", {}, caption), h("tbody", {}, ...rows.slice(0, 8).map(([text, x]) => h("tr", { title: (x > 0 ? "+" : "") + x }, h("td", {}, token(text)), h("td", { class: "n" }, signed(x))))));
  };
  if (record.promoted || record.suppressed) part("Next tokens", "direct effect of one unit", h("div", { class: "card pad two" }, side("raises", record.promoted || []), side("lowers", record.suppressed || [])));
  if (record.examples.length) {
    part("Strongest examples", `on ${percent(record.density)} of positions, max ${number(record.max)}`, h("div", { class: "card" }, ...record.examples.map((example) => {
      const line = h("span", { class: "t" });
      example.tokens.forEach((word, k) => {
        const level = Math.min(1, Math.abs(example.values[k]) / (Math.abs(record.max) || 1)), shown = word.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "");
        if (!level && k !== example.peak) { line.append(shown); return; }
        const span = h("span", { title: number(example.values[k]) }, shown);
        span.style.background = `rgba(var(--heat),${(0.08 + 0.82 * level).toFixed(2)})`;
        if (level > 0.5) span.style.color = "#1b1206";
        if (k === example.peak) span.className = "peak";
        line.append(span);
      });
      return h("div", { class: "ex" }, h("span", { class: "v" }, number(example.value)), line);
    })));
  }
  return parts;
}
