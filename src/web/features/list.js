// The list: filtered, searched, sorted, and drawn only where it is seen.
const ROW = 48, BINS = 12;

function makeList(index, open) {
  const $ = (id) => document.getElementById(id), list = $("list"), space = $("space");
  const state = { order: [], query: "", band: -1, selected: -1, note: "" };
  const rows = new Map();
  const labels = index.head.labels;
  const live = (id) => index.count[id] > 0;
  const bandOf = (id) => Math.min(BINS - 1, Math.max(0, Math.floor(-2 * Math.log10(index.density[id]))));
  const kinds = { live, all: () => true, dead: (id) => !live(id), labelled: (id) => id in labels };
  const orders = {
    index: (a, b) => a - b, density: (a, b) => index.density[b] - index.density[a] || a - b,
    rare: (a, b) => index.density[a] - index.density[b] || a - b,
    max: (a, b) => Math.abs(index.max[b]) - Math.abs(index.max[a]) || a - b,
    mean: (a, b) => index.mean[b] - index.mean[a] || a - b,
  };

  function update(keep) {
    const begun = performance.now();
    const kind = kinds[$("show").value], by = $("sort").value;
    const found = state.query ? search(index, state.query) : null;
    const order = [];
    for (let id = 0; id < index.n; id++) {
      if (found && !found.score[id]) continue;
      // A search or a number asked for shows what it found, alive or not.
      if (!kind(id) && !(found && found.score[id] >= 1e9)) continue;
      if (state.band >= 0 && (!live(id) || bandOf(id) !== state.band)) continue;
      order.push(id);
    }
    order.sort(found && by === "index" ? (a, b) => found.score[b] - found.score[a] || a - b : orders[by]);
    state.order = order;
    const took = performance.now() - begun, what = order.length === 1 ? "feature" : "features";
    $("found").textContent = found
      ? `${grouped(order.length)} ${what}${found.note} · ${took < 10 ? took.toFixed(1) : Math.round(took)} ms`
      : `${grouped(order.length)} ${what}`;
    $("sort").options[0].textContent = found ? "best match first" : "by number";
    space.style.height = order.length * ROW + "px";
    for (const row of rows.values()) row.remove();
    rows.clear();
    if (!keep) list.scrollTop = 0;
    draw();
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
    const last = Math.min(state.order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
    for (const [place, row] of rows) if (place < first || place >= last) { row.remove(); rows.delete(place); }
    for (let place = first; place < last; place++) {
      if (!rows.has(place)) { const row = item(state.order[place], place); rows.set(place, row); list.append(row); }
    }
    list.setAttribute("aria-activedescendant", document.getElementById("item-" + state.selected) ? "item-" + state.selected : "");
  }

  function item(id, place) {
    const figures = live(id) ? `${percent(index.density[id])} · max ${number(index.max[id])}` : "never fires";
    const words = id in labels
      ? h("div", { class: "words label" }, labels[id][0].text)
      : h("div", { class: "words" }, ...peaks(index, id, 5).flatMap((word) => [token(word), " "]));
    return h("div", {
      class: live(id) ? "item" : "item dead", id: "item-" + id, role: "option", "aria-selected": String(id === state.selected),
      "aria-setsize": state.order.length, "aria-posinset": place + 1, style: `top:${place * ROW}px`, onclick: () => open(id),
    }, h("div", { class: "top" }, h("span", { class: "id" }, String(id)), h("span", { class: "figures" }, figures)), words);
  }

  function select(id) {
    state.selected = id;
    for (const row of rows.values()) row.setAttribute("aria-selected", String(row.id === "item-" + id));
    const place = state.order.indexOf(id);
    if (place < 0) return;
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    draw();
  }

  function step(by) {
    if (!state.order.length) return;
    const place = state.order.indexOf(state.selected);
    open(state.order[place < 0 ? 0 : Math.min(state.order.length - 1, Math.max(0, place + by))]);
  }

  const random = () => state.order.length && open(state.order[Math.floor(Math.random() * state.order.length)]);

  // How often features fire, as buttons: bin 0 is above 30 % of positions, each next one half a decade rarer.
  function spread() {
    const counts = new Array(BINS).fill(0);
    for (let id = 0; id < index.n; id++) if (live(id)) counts[bandOf(id)]++;
    const tallest = Math.max(...counts, 1);
    $("spread").replaceChildren(...counts.map((count, band) => {
      const range = `${percent(10 ** (-(band + 1) / 2))} to ${percent(10 ** (-band / 2))} of positions`;
      const name = `${grouped(count)} features fire on ${range}`;
      return h("button", {
        type: "button", title: name, "aria-label": name, "aria-pressed": String(band === state.band),
        onclick: () => { state.band = state.band === band ? -1 : band; spread(); update(); },
      }, h("i", { style: `height:${Math.round(100 * Math.sqrt(count / tallest))}%` }));
    }).reverse());
    $("scale").replaceChildren(...["rare", "", "0.1 %", "", "always"].map((text) => h("span", {}, text)));
  }

  let waiting;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = $("search").value.trim(); update(); document.dispatchEvent(new Event("searched")); }, 70);
  });
  $("sort").addEventListener("change", () => update());
  $("show").addEventListener("change", () => update());
  list.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  new ResizeObserver(draw).observe(list);
  spread();
  update();
  return { select, step, random, state };
}

// The distinct tokens that a feature's strongest examples peak on.
function peaks(index, id, most) {
  const words = new Set();
  for (let i = index.first[id]; i < index.first[id] + index.top[id] && words.size < most; i++) {
    words.add(index.words[index.text[index.start[i] + index.peak[i]]]);
  }
  return [...words];
}
