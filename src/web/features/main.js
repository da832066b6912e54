// Puts list and page together: address, keys, theme.
async function main() {
  const $ = (id) => document.getElementById(id), page = $("page"), root = document.documentElement;
  const index = await loadIndex(), { head } = index;
  document.title = head.title;
  $("name").textContent = head.title;
  $("about").textContent = head.about;
  $("about").title = head.about;

  let whole = true, current = -1, shown = null;
  const go = (id) => { location.hash = "#" + id; };
  const list = makeList(index, go);
  const view = {
    step: list.step, random: list.random, whole: () => whole, query: () => list.state.query,
    toggleWhole: () => { whole = !whole; repaint(); },
  };

  function repaint() {
    if (!shown) return;
    page.classList.toggle("short", !whole);
    page.replaceChildren(...renderFeature(index, shown, view));
    centre(page, whole);
  }

  async function show() {
    let id = Number.parseInt(location.hash.slice(1), 10);
    if (!(id >= 0 && id < index.n)) {
      if (!list.state.order.length) return welcome();
      id = list.state.order[0];
      history.replaceState(null, "", "#" + id);
    }
    current = id;
    document.body.classList.remove("browse");
    list.select(id);
    const feature = await loadFeature(index, id);
    if (current !== id) return;
    shown = feature;
    repaint();
    page.scrollTop = 0;
    document.title = `${id} · ${head.title}`;
    page.dataset.feature = id;
  }
  const welcome = () => page.replaceChildren(h("p", { class: "note" }, "No feature is alive in this index. Choose “all” to see the others."));

  addEventListener("hashchange", show);
  document.addEventListener("searched", repaint);
  $("theme").addEventListener("click", theme);
  $("help").addEventListener("click", () => $("keys").showModal());
  $("menu").addEventListener("click", () => document.body.classList.toggle("browse"));
  function theme() {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  }

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
    const search = $("search"), typing = event.target === search;
    if (typing && event.key === "Escape") {
      if (search.value) { search.value = ""; search.dispatchEvent(new Event("input")); } else search.blur();
    } else if (typing && (event.key === "Enter" || event.key === "ArrowDown")) {
      if (list.state.order.length) { search.blur(); go(list.state.order[0]); $("list").focus(); }
    } else if (typing || event.target.tagName === "SELECT") {
      return;
    } else {
      const keys = {
        "/": () => { search.focus(); search.select(); }, j: () => list.step(1), k: () => list.step(-1), ArrowDown: () => list.step(1),
        ArrowUp: () => list.step(-1), r: list.random, w: view.toggleWhole, t: theme, "?": () => $("keys").showModal(),
        Backspace: () => history.back(), PageDown: () => list.step(10), PageUp: () => list.step(-10),
      };
      // In the page itself arrows scroll.
      const scrolls = /^(Arrow|Page)/.test(event.key) && page.contains(event.target);
      if (scrolls || !(event.key in keys)) return;
      keys[event.key]();
    }
    event.preventDefault();
  });

  const tip = h("div", { class: "tip", hidden: "" });
  document.body.append(tip);
  page.addEventListener("mousemove", (event) => {
    const span = event.target.closest && event.target.closest("[data-v]");
    tip.hidden = !span;
    if (!span) return;
    tip.textContent = span.dataset.v;
    tip.style.left = Math.min(event.clientX + 12, innerWidth - 90) + "px";
    tip.style.top = event.clientY + 18 + "px";
  });
  page.addEventListener("mouseleave", () => { tip.hidden = true; });
  await show();
  root.dataset.ready = Math.round(performance.now());
  // The first search needs the text as one string; made now, nobody waits for it.
  (window.requestIdleCallback || setTimeout)(() => plainText(index));
}

main().catch((error) => {
  document.getElementById("page").textContent = "This page cannot be shown: " + error.message;
  console.error(error);
});
