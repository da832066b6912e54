// Examples: text with every token shaded by how strongly the feature fires on it.
function strongest(index, feature, view) {
  const top = index.top[feature.id];
  const toggle = h("button", { type: "button", onclick: view.toggleWhole }, view.whole() ? "one line each" : "whole");
  return h("div", { class: "part" },
    h("h3", {}, "Strongest examples", h("small", {}, `${top} of ${grouped(index.count[feature.id])}`), h("span", { class: "tools" }, toggle)),
    exampleRows(index, feature, feature.examples.slice(0, top), view));
}

// Examples from every tenth of its activations, the highest first; lists are made when they are opened.
function acrossRange(index, feature, view) {
  let at = index.top[feature.id];
  const parts = feature.i.filter(([, , , n]) => n > 0).map(([from, to, count, n]) => {
    const own = feature.examples.slice(at, at += n);
    const share = percent(count / index.count[feature.id]);
    const details = h("details", {}, h("summary", {}, h("b", {}, `${number(from)} to ${number(to)}`), ` ${share} of activations`));
    details.addEventListener("toggle", () => { details.append(exampleRows(index, feature, own, view)); centre(details, view.whole()); }, { once: true });
    return details;
  });
  const all = h("button", { type: "button", onclick: () => parts.forEach((part) => { part.open = true; }) }, "open all");
  return h("div", { class: "part" },
    h("h3", {}, "Across its range", h("small", {}, "drawn at random from tenths of its activations"), h("span", { class: "tools" }, all)), ...parts);
}

function exampleRows(index, feature, list, view) {
  return h("div", { class: "examples" }, ...list.map((example) => h("div", { class: "ex" },
    h("div", { class: "v" }, number(example.value)), exampleText(index, feature, example, view.query()))));
}

function exampleText(index, feature, { spot, value, levels }, query) {
  const from = index.start[spot], peak = index.peak[spot], most = Math.abs(index.max[feature.id]);
  const marks = query ? marked(index, from, levels.length, query) : null;
  const line = h("div", { class: "t" });
  for (let i = 0; i < levels.length; i++) {
    const word = index.words[index.text[from + i]], share = Math.abs(levels[i]) / 127, mark = marks && marks[i];
    const shown = word.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "");
    if (!share && !mark && shown === word) { line.append(word); continue; }
    const span = h("span", {}, mark ? h("mark", {}, shown) : shown);
    if (share) {
      span.style.background = `rgba(var(--heat),${(0.08 + 0.82 * share).toFixed(2)})`;
      if (share > 0.5) span.style.color = "#1b1206";
      span.dataset.v = i === peak ? number(value) : "≈ " + number(levels[i] / 127 * most);
    }
    if (i === peak) span.className = "peak";
    if (shown !== word) span.classList.add("ctl");
    line.append(span);
  }
  return line;
}

// In one line each, the strongest token stays in sight.
function centre(page, whole) {
  if (whole) return;
  for (const line of page.querySelectorAll(".ex .t")) {
    const peak = line.querySelector(".peak");
    if (peak) line.scrollLeft = Math.max(0, peak.offsetLeft - line.offsetLeft - line.clientWidth * 0.62);
  }
}
