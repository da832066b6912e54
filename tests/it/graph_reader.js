addEventListener("load", async () => {
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms)), $ = (id) => document.getElementById(id), all = (css) => [...document.querySelectorAll(css)];
  const until = async (test) => { for (let i = 0; i < 800 && !test(); i++) await sleep(10); return test(); };
  const seen = { ready: Boolean(await until(() => document.documentElement.dataset.ready)) };
  seen.overview = [all("#panel h3").length, all(".path li").length, all(".scatter circle").length];
  seen.trust = $("trust").textContent;
  const grid = $("grid"), frame = $("over").getBoundingClientRect(), panel = () => document.querySelector("#panel h2").textContent;
  const at = (type, x, y, more) => grid.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, bubbles: true, ...more }));
  const lit = () => Number($("over").dataset.edges) > 0;
  const link = () => document.querySelector("[data-link][aria-pressed=true]").dataset.link;
  seen.links_of_the_file = link();
  document.querySelector("[data-link=both]").click();
  seen.before = lit();
  let point = null;
  for (let y = Math.round(frame.top) + 60; y < frame.top + grid.clientHeight - 60 && !point; y += 4) for (let x = Math.round(frame.left) + 50; x < frame.right - 20; x += 4) {
    at("pointermove", x, y);
    if (!document.querySelector(".tip").hidden && document.querySelector(".tip").textContent.includes("activation")) { point = [x, y]; break; }
  }
  seen.tip = document.querySelector(".tip")?.textContent;
  seen.hovered = lit();
  at("click", ...point);
  await sleep(30);
  seen.opened = $("panel").dataset.node;
  seen.heading = panel();
  seen.inputs = all("#panel .edge").length;
  seen.measured = all("#panel .edge .m").length;
  $("pin").focus(); $("pin").click();
  await sleep(30);
  seen.pinned = [$("pin").textContent, document.activeElement.id];
  const first = $("panel").dataset.node;
  all("#panel .edge")[0].click();
  await until(() => $("panel").dataset.node !== first); await sleep(20);
  seen.followed = $("panel").dataset.node !== first;
  const key = async (key, on = document.body) => { on.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })); await sleep(40); };
  await key("p");
  seen.boxes = all(".box").length;
  seen.links = all("#stage path").length;
  const box = document.querySelector(".box");
  box.focus();
  await key("Enter", box);
  seen.entered = [box.dataset.box, document.activeElement.dataset.box, box.isConnected];
  for (const box of all(".box")) box.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey: true }));
  for (const box of all(".box:not(.chosen)")) box.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey: true }));
  const answer = async (text) => {
    if (!await until(() => document.querySelector("dialog.ask"))) return;
    document.querySelector("dialog.ask input").value = text;
    document.querySelector("dialog.ask form").requestSubmit();
    await until(() => !document.querySelector("dialog.ask")); await sleep(30);
  };
  $("group").click();
  await answer("first");
  seen.groups = all(".box.group").length;
  document.querySelector(".box.group").dispatchEvent(new MouseEvent("click", { bubbles: true }));
  const opened = panel();
  await key("n");
  await answer("a \"group\"");
  seen.group_named = [all(".box.group text")[0].textContent, panel() === opened];
  // The address is written a moment later.
  await sleep(250);
  const feature = JSON.parse(FEATURE);
  location.hash = location.hash.replace(/clickedId=[^&]*/, "") + "&clickedId=" + feature;
  await until(() => $("panel").dataset.node === feature); await sleep(200);
  seen.examples = all("#panel .ex").length;
  seen.shaded = all("#panel .ex span[style]").length;
  const unnamed = panel(), name = async (text) => {
    await key("n");
    const input = document.querySelector(".rename");
    if (text) input.value = text;
    await key("Enter", input);
  };
  await name("named by me");
  await name();
  $("undo").click();
  seen.undone = panel() === unnamed;
  await name("named by me");
  seen.named = [panel(), document.activeElement.id];
  $("search").value = "l3"; $("search").dispatchEvent(new Event("input"));
  seen.found = all("#found .edge").length;
  $("search").value = "qzxv"; $("search").dispatchEvent(new Event("input"));
  seen.nothing = $("found").textContent;
  $("search").value = ""; $("search").dispatchEvent(new Event("input"));
  await key("ArrowUp");
  seen.moved = $("panel").dataset.node;
  const count = $("count").textContent;
  $("limit").value = 300; $("limit").dispatchEvent(new Event("input"));
  seen.pruned = [count, $("count").textContent];
  await sleep(250);
  seen.hash = location.hash;
  const go = async (hash) => { location.hash = hash; await sleep(250); return [all(".box").length, $("limit-text").textContent, link(), panel(), location.hash]; };
  seen.bookmark = await go("#clickedId=" + feature);
  seen.broken = [];
  for (const words of ["supernodes=5&clerps=[1]&pruningThreshold=abc", "supernodes=[5,[6,7]]&clerps=[[1]]&pinnedIds=x", "supernodes={&clerps={}&clickedId=z", "%E0%A4%A"]) seen.broken.push(await go("#" + words));
  seen.back = (await go(seen.hash))[4] === seen.hash;
  // The page's clock runs ahead of whatever is read elsewhere, so the text is taken where it is handed over.
  let saved; const Real = Blob; window.Blob = function (parts, options) { saved = [parts.join(""), options.type]; return new Real(parts, options); };
  // A download would end the page before the notes are taken.
  HTMLAnchorElement.prototype.click = function () { seen.download = this.download; };
  $("save").click();
  seen.saved = saved[1];
  seen.width = [document.documentElement.scrollWidth, innerWidth];
  for (const [id, text] of [["file", saved[0]], ["seen", JSON.stringify(seen)]]) { const pre = document.createElement("pre"); pre.id = id; pre.textContent = text; document.body.append(pre); }
});
