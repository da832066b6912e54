//! The page about an attribution graph: what a browser makes of it, at 50 and at 5,000 nodes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use mechinterp::analysis::graph::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, LayerIndexes, Node, NodeKind, Verification,
    VerifiedNode,
};
use mechinterp::interop::neuronpedia::graph::{GraphState, Publication, read, write, write_features};
use mechinterp::web;

use crate::dashboard::{browser, indexed, open};
use crate::fixture::Cli;

#[path = "graph_sample.rs"]
mod graph_sample;
use graph_sample::sample;

/// What a reader does, as a script: point at a node, open it, follow an edge, pin, group, name, prune, search, save.
const READER: &str = r##"<script>
addEventListener("load", async () => {
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms)), $ = (id) => document.getElementById(id), all = (css) => [...document.querySelectorAll(css)];
  const until = async (test) => { for (let i = 0; i < 800 && !test(); i++) await sleep(10); return test(); };
  const seen = { ready: Boolean(await until(() => document.documentElement.dataset.ready)) };
  seen.overview = [all("#panel h3").length, all(".path li").length, all(".scatter circle").length];
  seen.trust = $("trust").textContent;
  const grid = $("grid"), frame = $("over").getBoundingClientRect(), panel = () => document.querySelector("#panel h2").textContent;
  const at = (type, x, y, more) => grid.dispatchEvent(new PointerEvent(type, { clientX: x, clientY: y, bubbles: true, ...more }));
  const lit = () => Number($("over").dataset.edges) > 0;
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
  $("pin").click();
  await sleep(30);
  const first = $("panel").dataset.node;
  all("#panel .edge")[0].click();
  await until(() => $("panel").dataset.node !== first); await sleep(20);
  seen.followed = $("panel").dataset.node !== first;
  const key = async (key) => { document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })); await sleep(40); };
  await key("p");
  seen.boxes = all(".box").length;
  seen.links = all("#stage path").length;
  for (const box of all(".box")) box.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey: true }));
  for (const box of all(".box:not(.chosen)")) box.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey: true }));
  $("group").click();
  await until(() => document.querySelector("dialog.ask"));
  document.querySelector("dialog.ask input").value = "a \"group\"";
  document.querySelector("dialog.ask form").requestSubmit();
  await until(() => document.querySelector(".box.group"));
  seen.groups = all(".box.group").length;
  const feature = JSON.parse(FEATURE);
  location.hash = location.hash.replace(/clickedId=[^&]*/, "") + "&clickedId=" + feature;
  await until(() => $("panel").dataset.node === feature); await sleep(200);
  seen.examples = all("#panel .ex").length;
  seen.shaded = all("#panel .ex span[style]").length;
  await key("n");
  const input = document.querySelector(".rename"); input.value = "named by me";
  input.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  await sleep(40);
  seen.named = panel();
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
  // The page's clock runs ahead of whatever is read elsewhere, so the text is taken where it is handed over.
  let saved; const Real = Blob; window.Blob = function (parts, options) { saved = [parts.join(""), options.type]; return new Real(parts, options); };
  // A download would end the page before the notes are taken.
  HTMLAnchorElement.prototype.click = function () { seen.download = this.download; };
  $("save").click();
  seen.saved = saved[1];
  seen.width = [document.documentElement.scrollWidth, innerWidth];
  for (const [id, text] of [["file", saved[0]], ["seen", JSON.stringify(seen)]]) { const pre = document.createElement("pre"); pre.id = id; pre.textContent = text; document.body.append(pre); }
});
</script>"##;

/// Features of layer 1 that the index of the tests has.
fn with_known_features(mut graph: Graph) -> Graph {
    let mut next = 0;
    for node in &mut graph.nodes {
        if let NodeKind::Feature { layer: 1, feature, .. } = &mut node.kind {
            *feature = next % 160;
            next += 1;
        }
    }
    graph
}

fn indexes() -> LayerIndexes {
    LayerIndexes::open(&[indexed().path("index")]).unwrap()
}

/// The page of a graph of about `n` nodes, kept where screenshots can be taken of it.
fn page(n: usize) -> (Graph, PathBuf) {
    let indexes = indexes();
    let mut graph = with_known_features(sample(n, 7));
    indexes.name(&mut graph).unwrap();
    let state = GraphState::default();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("graph-{n}.html"));
    let publication = Publication { graph: &graph, state: &state, slug: "sample", scan: None, created_ms: None };
    web::graph::write(&path, &publication, &indexes).unwrap();
    (graph, path)
}

fn unescaped(document: &str, id: &str) -> String {
    let start = format!("<pre id=\"{id}\">");
    let inner = document.split_once(&start).expect("the reader's notes").1.split_once("</pre>").unwrap().0;
    inner.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\u{a0}").replace("&amp;", "&")
}

/// A feature of layer 1 that fires somewhere.
fn known_feature(graph: &Graph, indexes: &LayerIndexes) -> String {
    let live = |layer, feature| indexes.record(layer, feature).unwrap().is_some_and(|r| !r.examples.is_empty());
    let found = graph
        .nodes
        .iter()
        .find(|node| matches!(node.kind, NodeKind::Feature { layer: 1, feature, .. } if live(1, feature)));
    found.expect("a live feature").id(graph.n_layers)
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn drive(n: usize) -> Option<(Graph, Value, String)> {
    let Some(browser) = browser() else {
        eprintln!("SKIPPED: no chromium on this machine to open pages with");
        return None;
    };
    let cli = Cli::new();
    let (graph, path) = page(n);
    let page = std::fs::read_to_string(path).unwrap();
    // As it is, with its policy.
    cli.write("plain.html", &page);
    let seen = open(browser, &cli, &cli.path("plain.html"));
    assert_eq!(seen.console, [""; 0]);
    assert!(seen.asked.is_empty(), "{:?}", seen.asked);
    assert!(seen.document.contains("data-ready="), "the page did not get ready");
    // The page's own policy forbids the reader.
    let (before, after) = page.split_once("<meta http-equiv").unwrap();
    let (_, after) = after.split_once("/>").unwrap();
    let feature = serde_json::to_string(&known_feature(&graph, &indexes())).unwrap();
    let reader = READER.replace("FEATURE", &format!("{feature:?}"));
    cli.write("driven.html", format!("{before}{}", after.replace("</body>", &format!("{reader}</body>"))));
    let seen = open(browser, &cli, &cli.path("driven.html"));
    assert_eq!(seen.console, [""; 0]);
    assert!(seen.asked.is_empty(), "{:?}", seen.asked);
    let notes = serde_json::from_str(&unescaped(&seen.document, "seen")).unwrap();
    Some((graph, notes, unescaped(&seen.document, "file")))
}

/// What holds at any size.
fn check(graph: &Graph, notes: &Value, file: &str) {
    let at_least = |value: &Value, least: u64| assert!(value.as_u64() >= Some(least), "{value} of {notes:#}");
    assert!(notes["ready"] == true && notes["followed"] == true, "{notes:#}");
    assert!(notes["before"] == false && notes["hovered"] == true, "edges are drawn for what is pointed at: {notes:#}");
    assert!(notes["tip"].as_str().unwrap().contains("of all influence"), "{notes:#}");
    assert!(notes["trust"].as_str().unwrap().contains("changes its targets as it predicts"), "{notes:#}");
    at_least(&notes["overview"][0], 5);
    at_least(&notes["overview"][1], 4);
    assert_eq!(notes["overview"][2], 40, "two dots for each verified node");
    at_least(&notes["inputs"], 1);
    assert_eq!((&notes["boxes"], &notes["groups"]), (&2.into(), &1.into()), "{notes:#}");
    at_least(&notes["links"], 1);
    assert!((1..=12).contains(&notes["examples"].as_u64().unwrap()), "examples stand there once: {notes:#}");
    at_least(&notes["shaded"], 1);
    assert_eq!(notes["named"], "named by me");
    assert!(
        notes["pruned"][0] != notes["pruned"][1] && notes["pruned"][1].as_str().unwrap().contains(" of "),
        "{notes:#}"
    );
    at_least(&notes["found"], 1);
    assert_eq!(notes["nothing"], "0 nodes");
    assert!(notes["width"][0].as_u64() <= notes["width"][1].as_u64(), "nothing sticks out: {notes:#}");
    let hash = notes["hash"].as_str().unwrap();
    assert!(["pinnedIds=", "supernodes=", "clerps=", "pruningThreshold="].iter().all(|k| hash.contains(k)), "{hash}");
    // What was saved is the graph with its state.
    assert_eq!((&notes["saved"], &notes["download"]), (&"application/json".into(), &"sample.json".into()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.json");
    std::fs::write(&path, file).unwrap();
    let saved = read(&path).unwrap();
    assert!(saved.graph == *graph, "the graph itself is as it was");
    let [group] = &saved.state.supernodes[..] else { panic!("{:?}", saved.state) };
    assert_eq!((group.name.as_str(), group.members.len(), saved.state.pinned.len()), ("a \"group\"", 2, 2));
    assert!(saved.state.pinned.contains(&notes["opened"].as_str().unwrap().to_owned()));
    assert_eq!(saved.state.clerps.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["named by me"]);
    assert!(saved.state.pruning_threshold.is_some_and(|t| t > 0.05 && t < 0.5), "{:?}", saved.state);
    assert_eq!(saved.state.clicked.as_deref(), notes["moved"].as_str());
}

#[test]
fn a_small_graph_is_read_pinned_grouped_pruned_and_saved() {
    let Some((graph, notes, file)) = drive(50) else { return };
    check(&graph, &notes, &file);
}

#[test]
fn a_graph_of_5000_nodes_is_read_as_a_small_one() {
    let Some((graph, notes, file)) = drive(5000) else { return };
    assert!(graph.nodes.len() > 4000 && graph.edges.len() > 20_000);
    check(&graph, &notes, &file);
}

#[test]
fn features_lie_beside_the_graph() {
    let cli = Cli::new();
    let graph = with_known_features(sample(50, 7));
    let scan = write_features(&cli.path(""), &graph, &indexes(), &mechinterp::base::Silent).unwrap();
    assert_eq!(scan.as_deref(), Some("./data/features/some-set"));
    let expected = graph.nodes.iter().filter(|n| matches!(n.kind, NodeKind::Feature { layer: 1, .. })).count();
    assert_eq!(std::fs::read_dir(cli.path("features/some-set")).unwrap().count(), expected, "only those of the graph");
}

#[test]
fn saved_graphs_are_shown_again_with_the_names_given_on_the_page() {
    let cli = Cli::new();
    let graph = with_known_features(sample(50, 7));
    let NodeKind::Feature { layer, feature, .. } = graph.nodes[0].kind else { panic!("features first") };
    let strongest = graph.nodes.iter().max_by(|a, b| a.influence.total_cmp(&b.influence)).unwrap();
    assert!(strongest.influence > 0.0);
    let pair = mechinterp::interop::neuronpedia::panel::pair(layer, feature);
    let state = GraphState { clerps: vec![(pair, "my own name".into())], ..GraphState::default() };
    let publication = Publication { graph: &graph, state: &state, slug: "saved", scan: None, created_ms: None };
    write(&cli.path("saved.json"), &publication).unwrap();
    let shown = cli.run("graph show saved.json --html page.html --svg picture.svg --dot picture.dot").ok();
    for expected in ["the capital of the state", "replacement 0.550", "strongest path to “ Austin”", "as it predicts"]
    {
        assert!(shown.contains(expected), "'{expected}' is not in {shown}");
    }
    let text = |name: &str| std::fs::read_to_string(cli.path(name)).unwrap();
    assert!(text("page.html").contains("id=\"block-graph\"") && text("picture.svg").starts_with("<?xml"));
    assert!(text("picture.dot").starts_with("digraph"));
    let json = cli.run("graph show saved.json --json").json();
    assert_eq!((&json["nodes"][0]["label"], &json["n_layers"]), (&"my own name".into(), &8.into()));
    // A file of circuit-tracer, whose gaps are said.
    let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/graph-json/circuit-tracer.json");
    let ended = cli.run(&format!("graph show {} --html foreign.html", foreign.display()));
    assert!(ended.stderr.contains("another program"), "{}", ended.stderr);
    assert!(ended.ok().contains("renamed"));
    cli.write("bad.json", "{}");
    cli.run("graph show bad.json").error(&["bad.json", "circuit-tracer"]);
    cli.run("graph show saved.json --html missing/page.html").error(&["missing"]);
}
