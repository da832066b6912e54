// One feature's page.
function renderFeature(index, feature, view) {
  const { id } = feature, labels = index.head.labels[id] || [];
  const page = [h("div", { class: "title" }, h("h2", {}, `Feature ${id}`),
    h("div", { class: "nav" }, h("button", { type: "button", onclick: () => view.step(-1), "aria-label": "Previous" }, "‹"),
      h("button", { type: "button", onclick: () => view.step(1), "aria-label": "Next" }, "›"),
      h("button", { type: "button", onclick: () => view.random() }, "Random")))];
  if (labels.length) {
    page.push(h("ul", { class: "labels" }, ...labels.map((label) =>
      h("li", {}, label.text, h("small", {}, [label.method, label.model, label.author].filter(Boolean).join(" · "))))));
  }
  if (!index.count[id]) {
    page.push(h("p", { class: "note" }, `It never fires on the ${grouped(index.head.rows)} positions of this index.`));
  } else {
    page.push(facts(index, feature));
  }
  const row = (...cards) => cards.length && page.push(h("div", { class: "cards" }, ...cards));
  const spreads = [], related = [];
  if (feature.h) spreads.push(card("Activations", "where it fires, heights logarithmic", histogram(feature.h, 0, "a")));
  if (feature.l) spreads.push(card("Logits", "its direct effect on every token", histogram(feature.l.slice(1), feature.l[0], "b")));
  const first = spreads.length ? [h("div", { class: "stack" }, ...spreads)] : [];
  row(...first, ...(feature.p ? [logits(index, feature)] : []));
  if (feature.examples.length) page.push(strongest(index, feature, view));
  if (feature.c.length || feature.o.length) related.push(neighbours(index, feature));
  if (feature.a.length || (feature.u && feature.u.length)) related.push(neurons(index, feature));
  row(...related);
  if (feature.i.some(([, , , n]) => n > 0)) page.push(acrossRange(index, feature, view));
  return page;
}

function card(title, note, ...children) {
  return h("div", { class: "card" }, h("h3", {}, title, h("small", {}, note)), ...children);
}

function facts(index, { id, s }) {
  const fact = (value, name) => h("div", { class: "fact" }, h("b", {}, value), h("span", {}, name));
  const [sequences, std, skewness, kurtosis, least] = s;
  return h("div", { class: "facts" },
    fact(percent(index.density[id]), `of positions, ${grouped(index.count[id])}`),
    fact(grouped(sequences), "sequences"), fact(number(index.max[id]), "strongest"), fact(number(index.mean[id]), `mean, ± ${number(std)}`),
    fact(number(least), "weakest"), fact(number(skewness), "skewness"), fact(number(kurtosis), "excess kurtosis"));
}

// Bars on a logarithmic height: counts fall off fast, and the tail tells features apart. `bins` is a width and counts.
function histogram([width, ...counts], start, tone) {
  const w = 440, top = 6, base = 88, step = w / counts.length, tallest = Math.log1p(Math.max(...counts));
  const chart = svg("svg", { viewBox: `0 0 ${w} 112`, role: "img", preserveAspectRatio: "xMinYMid meet" });
  chart.append(svg("title", {}, `Histogram from ${number(start)} to ${number(start + width * counts.length)}`));
  counts.forEach((count, i) => {
    const height = count ? Math.max(1.5, Math.log1p(count) / tallest * (base - top)) : 0;
    const bar = svg("rect", { class: tone, x: i * step, y: base - height, width: Math.max(0.5, step - 0.6), height });
    bar.append(svg("title", {}, `${number(start + i * width)} to ${number(start + (i + 1) * width)}: ${grouped(count)}`));
    chart.append(bar);
  });
  chart.append(svg("line", { x1: 0, x2: w, y1: base + 0.5, y2: base + 0.5 }));
  const end = start + width * counts.length;
  const at = (value) => (value - start) / (end - start) * w;
  const ticks = start < 0 && end > 0 ? [start, 0, end] : [start, (start + end) / 2, end];
  ticks.forEach((tick, i) => chart.append(
    svg("text", { x: at(tick), y: 104, "text-anchor": ["start", "middle", "end"][i] }, number(tick))));
  return chart;
}

function logits(index, feature) {
  let normed = false;
  const side = (name, list, tone) => {
    const most = Math.max(...list.filter((_, i) => i % 2).map(Math.abs), 1e-9), rows = [];
    for (let i = 0; i < list.length; i += 2) {
      rows.push(h("tr", {}, h("td", { class: "meter", style: `--w:${100 * Math.abs(list[i + 1]) / most}%;--tone:${tone}` }, token(index.words[list[i]])),
        h("td", { class: "n" }, (list[i + 1] > 0 ? "+" : "") + number(list[i + 1]))));
    }
    return h("table", {}, h("caption", {}, name), h("tbody", {}, ...rows));
  };
  const body = h("div", { class: "two" });
  const fill = () => body.replaceChildren(
    side("raises", normed ? feature.pn : feature.p, "var(--bar)"), side("lowers", normed ? feature.nn : feature.n, "var(--cool)"));
  fill();
  const made = card("Next tokens", "direct effect of one unit", body);
  if (feature.pn) {
    const button = h("button", { type: "button", "aria-pressed": "false", title: "Through the gain of the model's final norm" }, "through the norm");
    button.addEventListener("click", () => { normed = !normed; button.setAttribute("aria-pressed", String(normed)); button.textContent = normed ? "as it is" : "through the norm"; fill(); });
    made.firstChild.append(button);
  }
  return made;
}

function neighbours(index, feature) {
  const row = (id, value, title) => h("tr", { title }, h("td", { class: "i" }, h("a", { href: "#" + id }, String(id))),
    h("td", {}, ...about(index, id)), h("td", { class: "n" }, value));
  const rows = (list, width, line) => {
    const all = [];
    for (let i = 0; i < Math.min(list.length, width * 8); i += width) all.push(line(...list.slice(i, i + width)));
    return h("tbody", {}, ...all);
  };
  const tables = [];
  if (feature.c.length) tables.push(h("table", {}, h("caption", {}, "writes alike (cosine of decoder rows)"),
    rows(feature.c, 2, (id, cosine) => row(id, two(cosine), ""))));
  if (feature.o.length) tables.push(h("table", {}, h("caption", {}, "fires together (Jaccard)"),
    rows(feature.o, 4, (id, jaccard, r, cosine) => row(id, two(jaccard), `correlation ${two(r)}, cosine ${two(cosine)}`))));
  return card("Related features", "", ...tables);
}

function about(index, id) {
  const label = index.head.labels[id];
  return label ? [label[0].text] : peaks(index, id, 3).flatMap((word) => [token(word), " "]);
}

function neurons(index, feature) {
  const table = (caption, list, width, line) => {
    const rows = [];
    for (let i = 0; i < Math.min(list.length, width * 8); i += width) rows.push(line(...list.slice(i, i + width)));
    return h("table", {}, h("caption", {}, caption), h("tbody", {}, ...rows));
  };
  const row = (name, value, note) => h("tr", {}, h("td", { class: "i" }, String(name)), h("td", { class: "n" }, value), h("td", { class: "n" }, note));
  const tables = [table("coordinates of its decoder row", feature.a, 3, (at, value, share) => row(at, number(value), percent(share)))];
  if (feature.u && feature.u.length) {
    tables.push(table(`neurons of ${index.head.neurons_of} that write alike (cosine)`, feature.u, 2, (at, cosine) => row(at, two(cosine), "")));
  }
  return card("Where it writes", "", ...tables);
}
