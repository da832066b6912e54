//! The page about an attribution graph: what a browser makes of it, at 50 and at 5,000 nodes.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use mechinterp::analysis::graph::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, LayerIndexes, Node, NodeKind, Verification,
    VerifiedNode,
};
use mechinterp::interop::neuronpedia::graph::{GraphState, Publication, read, write, write_features};
use mechinterp::web;

use crate::browser::{browser, open, with_reader};
use crate::dashboard::indexed;
use crate::fixture::Cli;

#[path = "graph_sample.rs"]
mod graph_sample;
use graph_sample::sample;

/// What a reader does, as a script: point at a node, open it, follow an edge, pin, group, name, prune, search, go to
/// bookmarks and broken addresses, save.
const READER: &str = include_str!("graph_reader.js");

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
    let state = GraphState { link_type: Some("input".into()), ..GraphState::default() };
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("graph-{n}.html"));
    let publication = Publication { graph: &graph, state: &state, slug: "sample", scan: None, created_ms: None };
    web::graph::write(&path, &publication, &indexes).unwrap();
    (graph, path)
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

fn drive(n: usize) -> Option<(Graph, Value, String)> {
    let browser = browser()?;
    let cli = Cli::new();
    let (graph, path) = page(n);
    let page = std::fs::read_to_string(path).unwrap();
    // As it is, with its policy.
    cli.write("plain.html", &page);
    let seen = open(browser, &cli, &cli.path("plain.html"));
    seen.is_quiet("plain.html");
    assert!(seen.document.contains("data-ready="), "the page did not get ready");
    let feature = serde_json::to_string(&known_feature(&graph, &indexes())).unwrap();
    cli.write("driven.html", with_reader(&page, &READER.replace("FEATURE", &format!("{feature:?}"))));
    let seen = open(browser, &cli, &cli.path("driven.html"));
    seen.is_quiet("driven.html");
    let notes = serde_json::from_str(&seen.note("seen")).unwrap();
    Some((graph, notes, seen.note("file")))
}

/// Addresses say how the page differs from its file, whose edges are those to a node.
fn addresses(notes: &Value) {
    let hash = notes["hash"].as_str().unwrap();
    let keys = ["pinnedIds=", "supernodes=", "clerps=", "pruningThreshold=", "linkType=both"];
    assert!(keys.iter().all(|key| hash.contains(key)), "{hash}");
    assert_eq!(notes["links_of_the_file"], "input");
    let [boxes, limit, link, heading, address] = [0, 1, 2, 3, 4].map(|i| &notes["bookmark"][i]);
    assert_eq!(json!([boxes, limit, link]), json!([0, "all", "input"]), "{notes:#}");
    assert!(heading != "named by me" && address.as_str().unwrap().starts_with("#clickedId="), "{notes:#}");
    let broken = notes["broken"].as_array().unwrap();
    assert_eq!(broken.len(), 4);
    for state in broken {
        assert_eq!(*state, json!([0, "all", "input", "Overview", ""]), "what is broken is passed over");
    }
    assert_eq!(notes["back"], true, "{notes:#}");
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
    assert_eq!(notes["group_named"], json!(["a \"group\"", true]), "n names the group that is chosen");
    assert_eq!(notes["undone"], true, "a name that stays is no change to take back: {notes:#}");
    assert_eq!(notes["named"], json!(["named by me", "rename"]));
    let [box_before, box_after, kept] = [0, 1, 2].map(|i| &notes["entered"][i]);
    assert!(box_before == box_after && *kept == false, "the focus stays on what is made anew: {notes:#}");
    assert_eq!(notes["pinned"], json!(["Unpin", "pin"]));
    addresses(notes);
    assert!(
        notes["pruned"][0] != notes["pruned"][1] && notes["pruned"][1].as_str().unwrap().contains(" of "),
        "{notes:#}"
    );
    at_least(&notes["found"], 1);
    assert_eq!(notes["nothing"], "0 nodes");
    assert!(notes["width"][0].as_u64() <= notes["width"][1].as_u64(), "nothing sticks out: {notes:#}");
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
fn numbers_that_are_none_are_said() {
    let Some(browser) = browser() else { return };
    let cli = Cli::new();
    let mut graph = sample(50, 7);
    graph.report.largest_row_error = f64::NAN;
    graph.report.unpruned_scores.completeness = f64::NAN;
    let state = GraphState::default();
    let publication = Publication { graph: &graph, state: &state, slug: "broken", scan: None, created_ms: None };
    web::graph::write(&cli.path("page.html"), &publication, &LayerIndexes::default()).unwrap();
    let seen = open(browser, &cli, &cli.path("page.html"));
    seen.is_quiet("page.html");
    for expected in ["completeness not a number", "pre-activation: not a number"] {
        assert!(seen.document.contains(expected), "'{expected}' is not on the page");
    }
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
    let shown =
        cli.run("graph show saved.json --html page.html --svg picture.svg --dot picture.dot --picture-nodes 50").ok();
    for expected in ["the capital of the state", "replacement 0.550", "strongest path to “ Austin”", "as it predicts"]
    {
        assert!(shown.contains(expected), "'{expected}' is not in {shown}");
    }
    let text = |name: &str| std::fs::read_to_string(cli.path(name)).unwrap();
    assert!(text("page.html").contains("id=\"block-graph\"") && text("picture.svg").starts_with("<?xml"));
    assert!(text("picture.dot").starts_with("digraph"));
    let named = |name: &str| text(name).contains("my own name");
    assert!(named("picture.svg") && named("picture.dot"), "names given on the page are drawn");
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
