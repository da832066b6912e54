use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::super::panel::pair;
use super::*;
use crate::analysis::graph::tests::{edge, graph_of, node, sample};
use crate::analysis::graph::{Graph, NodeKind};

fn state(graph: &Graph) -> GraphState {
    let id = |i: usize| graph.nodes[i].id(graph.n_layers);
    GraphState {
        pinned: vec![id(0), id(3), id(5)],
        supernodes: vec![Supernode { name: "a \"group\", of, two".into(), members: vec![id(0), id(3)] }],
        clerps: vec![(pair(2, 7), "über <b>".into())],
        pruning_threshold: Some(0.725),
        clicked: Some(id(5)),
        link_type: Some("input".into()),
        positions: "1 2 3 4".into(),
    }
}

fn publish<'a>(graph: &'a Graph, state: &'a GraphState, slug: &'a str) -> Publication<'a> {
    Publication { graph, state, slug, scan: None, created_ms: Some(1_700_000_000_000) }
}

/// The graph of a JSON text.
fn read_text(text: impl AsRef<[u8]>) -> crate::base::Result<GraphFile> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("g.json");
    std::fs::write(&path, text).unwrap();
    read(&path)
}

fn written(graph: &Graph, state: &GraphState) -> Value {
    serde_json::from_slice(&to_json(&publish(graph, state, "g")).unwrap()).unwrap()
}

type Change<'a> = &'a dyn Fn(&mut Value);

#[test]
fn a_graph_comes_back_as_it_was() {
    for (n, seed) in [(50, 1), (5000, 2)] {
        let graph = sample(n, seed);
        let state = state(&graph);
        let file = read_text(to_json(&publish(&graph, &state, "g")).unwrap()).unwrap();
        assert!(file.graph == graph && file.state == state, "{n} nodes");
        assert_eq!((file.slug.as_str(), file.scan.as_str(), file.notes.len()), ("g", "org/some-set", 0));
        let empty = GraphState::default();
        assert_eq!(read_text(to_json(&publish(&graph, &empty, "g")).unwrap()).unwrap().state, empty);
    }
}

/// Checks `value` against the part of the published schema that says something: types and required keys.
fn check_schema(value: &Value) {
    let required = |value: &Value, keys: &[&str]| keys.iter().all(|key| value.get(key).is_some());
    assert!(required(value, &["metadata", "qParams", "nodes", "links"]));
    let metadata = &value["metadata"];
    assert!(["slug", "scan", "prompt"].iter().all(|key| metadata[key].is_string()));
    assert!(metadata["prompt_tokens"].as_array().unwrap().iter().all(Value::is_string));
    assert!(metadata["node_threshold"].is_number() && metadata["schema_version"] == 1);
    let params = &value["qParams"];
    assert!(params["pinnedIds"].as_array().unwrap().iter().all(Value::is_string) && params["supernodes"].is_array());
    assert!(["linkType", "clickedId", "sg_pos"].iter().all(|key| params[key].is_string()));
    for node in value["nodes"].as_array().unwrap() {
        let texts = ["node_id", "feature_type", "jsNodeId", "clerp", "layer"];
        assert!(texts.iter().all(|key| node[key].is_string()), "{node}");
        assert!(node["feature"].is_i64() && node["ctx_idx"].is_u64(), "{node}");
        assert!(["influence", "activation"].iter().all(|key| node[key].is_number() || node[key].is_null()));
        if node["feature_type"] == TARGET {
            assert!(node["clerp"].as_str().unwrap().contains("\" (p="), "the page takes the clerp apart: {node}");
        }
    }
    for link in value["links"].as_array().unwrap() {
        assert!(link["source"].is_string() && link["target"].is_string() && link["weight"].is_number(), "{link}");
    }
}

#[test]
fn the_file_is_what_the_schema_asks_for_and_ids_are_unique() {
    let graph = sample(600, 4);
    let value = written(&graph, &state(&graph));
    check_schema(&value);
    let ids: BTreeSet<&str> =
        value["nodes"].as_array().unwrap().iter().map(|n| n["node_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), graph.nodes.len());
    let links = value["links"].as_array().unwrap();
    assert!(
        links
            .iter()
            .all(|l| ids.contains(l["source"].as_str().unwrap()) && ids.contains(l["target"].as_str().unwrap()))
    );
    let NodeKind::Feature { layer, feature, .. } = graph.nodes[10].kind else { panic!("features first") };
    assert_eq!(value["nodes"][10]["feature"], pair(layer, feature));
    assert_eq!(value["nodes"][10]["node_id"], format!("{layer}_{feature}_{}", graph.nodes[10].position));
    // circuit-tracer's page parses the names of features out of a string.
    let clerps: Value = serde_json::from_str(value["qParams"]["clerps"].as_str().unwrap()).unwrap();
    assert_eq!(clerps, json!([[pair(2, 7).to_string(), "über <b>"]]));
    assert!(written(&graph, &GraphState::default())["qParams"].get("clerps").is_none());
}

#[test]
fn twins_and_edges_to_nowhere_are_not_written() {
    let twin = || node(NodeKind::Token { token: 3 }, 0);
    let error =
        to_json(&publish(&graph_of(vec![twin(), twin()], Vec::new()), &GraphState::default(), "g")).unwrap_err();
    assert!(error.to_string().contains("E_3_0"), "{error}");
    let error =
        to_json(&publish(&graph_of(vec![twin()], vec![edge(0, 4, 1.0)]), &GraphState::default(), "g")).unwrap_err();
    assert!(error.to_string().contains("node 4"), "{error}");
}

#[test]
fn graphs_of_a_directory_are_listed_once() {
    let dir = tempfile::tempdir().unwrap();
    let (graph, state) = (sample(50, 1), GraphState::default());
    for slug in ["a", "b", "a"] {
        write(&dir.path().join(format!("{slug}.json")), &publish(&graph, &state, slug)).unwrap();
    }
    let list: Value = serde_json::from_slice(&std::fs::read(dir.path().join("graph-metadata.json")).unwrap()).unwrap();
    let slugs: Vec<&str> = list["graphs"].as_array().unwrap().iter().map(|g| g["slug"].as_str().unwrap()).collect();
    assert_eq!(slugs, ["b", "a"]);
    assert_eq!(list["graphs"][0]["prompt_tokens"].as_array().unwrap().len(), graph.tokens.len());
    std::fs::write(dir.path().join("graph-metadata.json"), "[]").unwrap();
    let error = write(&dir.path().join("a.json"), &publish(&graph, &state, "a")).unwrap_err().to_string();
    assert!(error.contains("graph-metadata.json") && error.contains("graphs"), "{error}");
}

/// A file of circuit-tracer's models, written by `tests/graph_check.py --write`.
fn foreign() -> GraphFile {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/graph-json/circuit-tracer.json")).unwrap()
}

#[test]
fn a_graph_of_circuit_tracer_reads_although_errors_have_ids_of_features() {
    let GraphFile { graph, state, slug, scan, notes } = foreign();
    assert_eq!((slug.as_str(), scan.as_str(), graph.n_layers), ("golden", "org/set", 4));
    assert_eq!(graph.source.prompt, "<bos>a \"b\" c");
    assert_eq!(graph.tokens, [2, 10, 11, 12]);
    // Feature 2 of layer 0 and the error of layer 2, both at position 1, have one id.
    let place = |kind: &dyn Fn(&NodeKind) -> bool, position| {
        graph.nodes.iter().position(|n| kind(&n.kind) && n.position == position).unwrap()
    };
    let feature = place(&|kind| matches!(kind, NodeKind::Feature { layer: 0, feature: 2, .. }), 1);
    let error = place(&|kind| matches!(kind, NodeKind::Error { layer: 2 }), 1);
    let target = place(&|kind| matches!(kind, NodeKind::Target { .. }), 3);
    let weight =
        |source, target| graph.edges.iter().find(|e| e.source == source && e.target == target).map(|e| e.weight);
    assert_eq!((weight(feature, target), weight(error, target)), (Some(0.5), Some(-0.25)));
    let later = place(&|kind| matches!(kind, NodeKind::Feature { layer: 3, .. }), 2);
    assert_eq!((weight(feature, later), weight(error, later)), (None, Some(0.75)));
    let NodeKind::Target { token, against: None, text, probability, .. } = &graph.nodes[target].kind else { panic!() };
    assert_eq!((*token, text.as_str()), (77, " x\"y"));
    assert!((probability - 0.8).abs() < 1e-12);
    assert!(notes[0].contains("another program"), "{notes:?}");
    assert!(graph.scores.replacement > 0.0 && graph.scores.replacement < 1.0);
    // Pinned by the file's ids; what is not there is left out.
    assert_eq!(state.pinned, ["0_2_1", "E_10_1"]);
    assert_eq!(state.supernodes[0].members, ["3_9_2"]);
    assert_eq!((state.clerps.len(), state.pruning_threshold), (1, Some(0.6)));
    let mut named = graph;
    state.name(&mut named);
    assert!(named.nodes.iter().any(|n| matches!(&n.kind, NodeKind::Feature { label: Some(l), .. } if l == "renamed")));
}

#[test]
fn damage_is_named() {
    let graph = sample(50, 1);
    let whole = written(&graph, &GraphState::default());
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut value = whole.clone();
        change(&mut value);
        read_text(value.to_string()).unwrap_err().to_string()
    };
    let cases: [(Change<'_>, &str); 8] = [
        (&|v| drop(v.as_object_mut().unwrap().remove("nodes")), "nodes"),
        (&|v| v["nodes"][0]["feature_type"] = json!("lorsa"), "lorsa"),
        (&|v| v["nodes"][0]["ctx_idx"] = json!(99), "position 99"),
        (&|v| v["nodes"][0]["layer"] = json!("x"), "\"x\""),
        (&|v| v["links"][0]["source"] = json!("9_9_9"), "9_9_9"),
        (&|v| v["links"][0]["weight"] = json!("much"), "much"),
        (&|v| v["mechinterp"]["tokens"] = json!([1]), "mechinterp"),
        (&|v| v["mechinterp"]["verification"]["nodes"][0]["node"] = json!(10_000), "mechinterp"),
    ];
    for (change, expected) in cases {
        let error = broken(change);
        assert!(error.contains(expected) && error.contains("remedy"), "{expected}: {error}");
    }
    let error = read_text("{\"features\": [").unwrap_err().to_string();
    assert!(error.contains("circuit-tracer"), "{error}");
}

#[test]
fn states_of_the_address_bar_read() {
    let params = json!({
        "pinnedIds": "1_2_3,E_5_0", "supernodes": "[[\"x\",\"1_2_3\"]]", "linkType": null, "clickedId": "",
        "pruningThreshold": "0.4", "clerps": [["12", "twelve"]],
    });
    let state = GraphState::of_params(params.as_object().unwrap());
    assert_eq!(state.pinned, ["1_2_3", "E_5_0"]);
    assert_eq!(state.supernodes, [Supernode { name: "x".into(), members: vec!["1_2_3".into()] }]);
    assert_eq!((state.pruning_threshold, state.clerps), (Some(0.4), vec![(12, "twelve".to_owned())]));
    let nonsense = json!({"pinnedIds": 3, "supernodes": "[[", "clerps": "", "pruningThreshold": []});
    assert_eq!(GraphState::of_params(nonsense.as_object().unwrap()), GraphState::default());
}
