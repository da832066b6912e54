//! Seeded attribution graphs of any size. Unit tests include this file too, so it takes its types from the module above.

use super::{
    Edge, Graph, GraphReport, GraphScores, GraphSettings, GraphSource, Node, NodeKind, Verification, VerifiedNode,
};

const WORDS: [&str; 12] =
    [" Texas", " capital", " \"city\"", " state", " say", "\n", " in", " Dallas", "<b>", " über", " 日本", " of"];

/// A stream of numbers below 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() * n as f64) as usize
    }
}

pub(crate) fn node(kind: NodeKind, position: usize) -> Node {
    Node { kind, position, influence: 0.0, cumulative_influence: None }
}

pub(crate) fn edge(source: usize, target: usize, weight: f32) -> Edge {
    Edge { source, target, weight, measured: None }
}

/// A graph of `nodes` and `edges` and nothing else of note.
pub(crate) fn graph_of(nodes: Vec<Node>, edges: Vec<Edge>) -> Graph {
    let positions = nodes.iter().map(|node| node.position + 1).max().unwrap_or(1);
    let n_layers = nodes.iter().filter_map(Node::layer).max().map_or(1, |last| last + 1);
    Graph {
        source: GraphSource {
            prompt: "the capital of the state containing Dallas is".into(),
            model: "org/some-model".into(),
            scan: "org/some-set".into(),
            cross_layer: false,
            settings: GraphSettings::default(),
        },
        tokens: (0..positions as u32).map(|i| 100 + i).collect(),
        token_texts: (0..positions).map(|i| WORDS[i % WORDS.len()].to_owned()).collect(),
        n_layers,
        nodes,
        edges,
        scores: GraphScores { replacement: 0.62, completeness: 0.85 },
        report: GraphReport::default(),
        verification: None,
    }
}

fn label(random: &mut Random) -> Option<String> {
    let named = random.next() < 0.6;
    named.then(|| format!("{} words{}", WORDS[random.below(WORDS.len())].trim(), WORDS[random.below(WORDS.len())]))
}

/// A graph of about `n` nodes: 12 positions and 26 layers, fewer where `n` is small, two targets, and from 8 inputs a node.
pub(crate) fn sample(n: usize, seed: u64) -> Graph {
    let mut random = Random(seed);
    let (positions, layers) = if n < 200 { (7, 8) } else { (12, 26) };
    let mut features: Vec<(usize, usize, u32)> = (0..n.saturating_sub(positions + 2) * 4 / 5)
        .map(|_| (random.below(layers), (random.next().sqrt() * positions as f64) as usize, random.below(16384) as u32))
        .collect();
    features.sort_unstable();
    features.dedup();
    let mut errors: Vec<(usize, usize)> =
        (0..(n / 5).min(layers * positions)).map(|_| (random.below(layers), random.below(positions))).collect();
    errors.sort_unstable();
    errors.dedup();
    let mut nodes: Vec<Node> = Vec::new();
    for (layer, position, feature) in features {
        let activation = (random.next() * 20.0) as f32;
        nodes.push(node(NodeKind::Feature { layer, feature, activation, label: label(&mut random) }, position));
    }
    nodes.extend(errors.into_iter().map(|(layer, position)| node(NodeKind::Error { layer }, position)));
    let first_token = nodes.len();
    nodes.extend((0..positions).map(|p| node(NodeKind::Token { token: 100 + p as u32 }, p)));
    for (token, against, probability) in [(2395, None, 0.61), (77, Some(9), 0.12)] {
        let text = if against.is_some() { " Dallas − Houston" } else { " Austin" };
        let value = 3.0 + probability;
        nodes.push(node(NodeKind::Target { token, against, text: text.into(), probability, value }, positions - 1));
    }
    let mut graph = graph_of(nodes, Vec::new());
    connect(&mut graph, first_token, &mut random);
    graph.n_layers = layers;
    rank(&mut graph, &mut random);
    measure(&mut graph, &mut random);
    graph
}

/// Draws the inputs of every feature and target from what comes before it.
fn connect(graph: &mut Graph, first_token: usize, random: &mut Random) {
    let level = |node: &Node| match node.kind {
        NodeKind::Token { .. } => -1,
        NodeKind::Target { .. } => 1000,
        NodeKind::Feature { layer, .. } | NodeKind::Error { layer } => layer as i64,
    };
    for target in 0..graph.nodes.len() {
        let at = &graph.nodes[target];
        let (fan, tries) = match at.kind {
            NodeKind::Feature { .. } => (8, 40),
            NodeKind::Target { .. } => (40, 200),
            NodeKind::Error { .. } | NodeKind::Token { .. } => continue,
        };
        let mut sources = vec![first_token + at.position];
        for _ in 0..tries {
            let source = random.below(graph.nodes.len());
            let node = &graph.nodes[source];
            if level(node) < level(at) && node.position <= at.position && sources.len() < fan {
                sources.push(source);
            }
        }
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            let weight = (random.next().powi(3) * 6.0 - 0.8) as f32;
            graph.edges.push(edge(source, target, weight));
        }
    }
}

/// Gives the nodes influences that fall off fast, and the shares of those above each.
fn rank(graph: &mut Graph, random: &mut Random) {
    for node in &mut graph.nodes {
        if !matches!(node.kind, NodeKind::Target { .. }) {
            node.influence = random.next().powi(6) + 1e-4;
        }
    }
    let total: f64 = graph.nodes.iter().map(|node| node.influence).sum();
    let mut order: Vec<usize> = (0..graph.nodes.len()).collect();
    order.sort_by(|&a, &b| graph.nodes[b].influence.total_cmp(&graph.nodes[a].influence));
    let mut sum = 0.0;
    for i in order {
        sum += graph.nodes[i].influence;
        let target = matches!(graph.nodes[i].kind, NodeKind::Target { .. });
        graph.nodes[i].cumulative_influence = (!target).then_some(sum / total);
    }
}

/// What a verification would have found: close to the predictions.
fn measure(graph: &mut Graph, random: &mut Random) {
    for edge in graph.edges.iter_mut().step_by(7) {
        edge.measured = Some(edge.weight * (1.0 + (random.next() as f32 - 0.5) * 0.002));
    }
    let target = graph.nodes.len() - 2;
    let feature = |&i: &usize| matches!(graph.nodes[i].kind, NodeKind::Feature { .. });
    let mut features: Vec<usize> = (0..graph.nodes.len()).filter(feature).collect();
    features.sort_by(|&a, &b| graph.nodes[b].influence.total_cmp(&graph.nodes[a].influence));
    let nodes = features.into_iter().take(20).map(|node| {
        let predicted = random.next() * 4.0 - 1.0;
        let free = predicted * 0.8 + random.next() - 0.5;
        let frozen = predicted * (1.0 + random.next() * 1e-4);
        VerifiedNode { node, target, predicted, frozen, mlps: frozen * 0.95, free, switched: 0 }
    });
    let nodes: Vec<VerifiedNode> = nodes.collect();
    graph.report = GraphReport {
        active_features: graph.nodes.len() * 3,
        selected_features: graph.nodes.len() * 2,
        unpruned: (graph.nodes.len() * 2, graph.edges.len() * 5),
        unpruned_scores: GraphScores { replacement: 0.55, completeness: 0.8 },
        largest_row_error: 3.2e-6,
        seconds: 4.5,
    };
    graph.verification = Some(Verification {
        edges: graph.edges.iter().filter(|edge| edge.measured.is_some()).count(),
        largest_edge_error: Some(3e-6),
        effects: nodes.len(),
        frozen_correlation: Some(0.9997),
        mlp_correlation: Some(0.95),
        free_correlation: Some(0.83),
        nodes,
    });
}
