//! What the scores of a graph mean, in words.

use super::types::{Graph, GraphScores, Node, NodeKind, Verification};

/// Errors of measured edges, relative to the strongest one into the same node, that rounding explains.
const EDGE_ERROR: f64 = 1e-2;

/// How far a graph is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// Most of the answer comes from outside of its features, or it predicts wrongly.
    Low,
    /// It shows a part of the answer.
    Part,
    /// It shows most of the answer.
    Good,
}

impl Trust {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Part => "part",
            Self::Good => "good",
        }
    }
}

/// How far `graph` is to be trusted, and why, in a few sentences.
///
/// Bounds: a replacement score below 1/2 says that errors, which have no meaning, weigh more than tokens; above 3/4 they
/// are a minor part. Under frozen attention and norms the graph is exact but for features that switch on or off: a
/// correlation of measured effects below 0.9 says that several do, below 0.6 that they decide the outcome.
pub fn trust(graph: &Graph) -> (Trust, String) {
    let scores = graph.overall_scores();
    let (by_score, what) = match scores.replacement {
        r if r >= 0.75 => (Trust::Good, "The features account for most of this answer"),
        r if r >= 0.5 => (Trust::Part, "The features account for a part of this answer"),
        _ => (
            Trust::Low,
            "Most of this answer comes from what the features leave over, so trust single paths rather than the whole",
        ),
    };
    let (tokens, errors) = (percent(scores.replacement), percent(1.0 - scores.replacement));
    let inputs = percent(scores.completeness);
    let mut words = format!(
        "{what}. Of the influence on it, {tokens} starts at tokens and {errors} at reconstruction errors; {inputs} of what \
         feeds the nodes is explained."
    );
    let Some(verification) = &graph.verification else {
        words.push_str(" Its predictions were not checked against interventions.");
        return (by_score, words);
    };
    let (by_test, tested) = verified(verification);
    words.push(' ');
    words.push_str(&tested);
    (by_score.min(by_test), words)
}

fn verified(found: &Verification) -> (Trust, String) {
    let effects = found.effects;
    let frozen = found.frozen_correlation.map(|r| match r {
        r if r >= 0.9 => (Trust::Good, format!("as it predicts (r = {}", correlation(r))),
        r if r >= 0.6 => (Trust::Part, format!("only roughly as it predicts (r = {}", correlation(r))),
        r => (Trust::Low, format!("otherwise than it predicts (r = {}", correlation(r))),
    });
    let free = found.free_correlation.map(|r| match r {
        r if r >= 0.8 => (Trust::Good, format!("in the free model too (r = {})", correlation(r))),
        r if r >= 0.4 => (Trust::Part, format!("in the free model roughly so (r = {})", correlation(r))),
        r => (Trust::Low, format!("in the free model it does not hold (r = {})", correlation(r))),
    });
    let over = format!("over {effects} effects");
    let (mut trust, mut words) = match (frozen, free) {
        (None, None) => (Trust::Good, "Too few effects were measured to compare them with its predictions.".to_owned()),
        (Some((trust, frozen)), free) => {
            let held = "attention, norms and errors held";
            let (by_free, free) = free.map_or((trust, String::new()), |(by_free, free)| (by_free, format!("; {free}")));
            (trust.min(by_free), format!("Taking nodes away changes its targets {frozen} {over}, {held}){free}."))
        }
        (None, Some((trust, free))) => (trust, format!("Taking nodes away changes its targets {free} {over}.")),
    };
    if let Some(error) = found.largest_edge_error.filter(|_| found.edges > 0) {
        let exact = error < EDGE_ERROR;
        trust = if exact { trust } else { Trust::Low };
        let off = if exact { "equal measured ones to" } else { "are off from measured ones by up to" };
        words = format!("{words} {} edges {off} {error:.0e}.", found.edges);
    }
    (trust, words)
}

impl Graph {
    /// What to call a node: the label of a feature or its number, `error`, or the text of a token or target in quotes.
    pub fn name(&self, node: &Node) -> String {
        match &node.kind {
            NodeKind::Feature { label: Some(label), .. } => one_line(label),
            NodeKind::Feature { feature, .. } => format!("feature {feature}"),
            NodeKind::Error { .. } => "error".into(),
            NodeKind::Token { .. } => self.token(node.position),
            NodeKind::Target { text, .. } => format!("“{}”", one_line(text)),
        }
    }

    /// The token at a position, in quotes.
    pub fn token(&self, position: usize) -> String {
        format!("“{}”", one_line(self.token_texts.get(position).map_or("", String::as_str)))
    }

    /// The scores before pruning, as circuit-tracer reports them; where they are not known, those of the graph itself.
    pub fn overall_scores(&self) -> GraphScores {
        if self.report.unpruned.0 > 0 { self.report.unpruned_scores } else { self.scores }
    }

    /// The sum of all influences, which shares are of; never zero.
    pub fn total_influence(&self) -> f64 {
        self.nodes.iter().map(|node| node.influence).sum::<f64>().max(f64::MIN_POSITIVE)
    }

    /// The targets, the likeliest first.
    pub fn ranked_targets(&self) -> Vec<usize> {
        let probability = |i: usize| match self.nodes.get(i).map(|node| &node.kind) {
            Some(NodeKind::Target { probability, .. }) => Some(*probability),
            _ => None,
        };
        let mut targets: Vec<usize> = (0..self.nodes.len()).filter(|&i| probability(i).is_some()).collect();
        targets.sort_by(|&a, &b| probability(b).unwrap_or_default().total_cmp(&probability(a).unwrap_or_default()));
        targets
    }

    /// The nodes of the largest influence, that one first, without targets.
    pub fn most_influential(&self, n: usize) -> Vec<usize> {
        let source =
            |i: &usize| !matches!(self.nodes[*i].kind, NodeKind::Target { .. }) && self.nodes[*i].influence > 0.0;
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(source).collect();
        order.sort_by(|&a, &b| self.nodes[b].influence.total_cmp(&self.nodes[a].influence));
        order.truncate(n);
        order
    }
}

/// Text without line breaks and other control characters.
fn one_line(text: &str) -> String {
    text.replace('\n', "↵").replace('\t', "⇥").chars().filter(|c| !c.is_control()).collect()
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// With more digits the nearer it is to 1.
fn correlation(r: f64) -> String {
    // Without the sign of a zero.
    let r = if r.abs() < 0.005 { 0.0 } else { r };
    if r >= 0.99995 {
        "1.0000".into()
    } else if r >= 0.995 {
        format!("{r:.4}")
    } else {
        format!("{r:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::graph::tests::sample;

    #[test]
    fn words_follow_the_scores() {
        let mut graph = sample(50, 1);
        graph.verification = None;
        for (replacement, expected) in [(0.2, Trust::Low), (0.6, Trust::Part), (0.9, Trust::Good)] {
            graph.report.unpruned_scores.replacement = replacement;
            let (found, words) = trust(&graph);
            assert_eq!(found, expected);
            assert!(words.contains("not checked") && words.contains(&percent(replacement)), "{words}");
        }
        let check = |frozen, free| {
            let nodes = Vec::new();
            let mut graph = graph.clone();
            let verification = Verification {
                effects: 30,
                frozen_correlation: frozen,
                free_correlation: free,
                nodes,
                ..Verification::default()
            };
            graph.verification = Some(verification);
            trust(&graph)
        };
        assert_eq!(check(Some(0.9999), Some(0.9)).0, Trust::Good);
        let (found, words) = check(Some(0.99991), Some(0.5));
        assert!(found == Trust::Part && words.contains("0.9999") && words.contains("roughly"), "{words}");
        let (found, words) = check(Some(0.88), Some(0.9));
        assert!(found == Trust::Part && words.contains("only roughly as it predicts"), "{words}");
        assert_eq!(check(Some(0.3), Some(0.9)).0, Trust::Low);
        assert_eq!(check(None, Some(0.1)).0, Trust::Low);
        assert_eq!(check(None, None).0, Trust::Good);
        let edges = |error| {
            let largest_edge_error = Some(error);
            let verification = Verification { edges: 9, largest_edge_error, ..Verification::default() };
            trust(&Graph { verification: Some(verification), ..graph.clone() })
        };
        assert!(edges(3e-6).1.contains("9 edges equal measured ones to 3e-6"));
        assert_eq!(edges(0.5).0, Trust::Low);
    }

    #[test]
    fn nodes_are_named_in_one_line_and_ranked() {
        let mut graph = sample(50, 1);
        graph.token_texts[2] = " a\nb\u{7}".into();
        assert_eq!(graph.token(2), "“ a↵b”");
        assert_eq!(graph.token(99), "“”");
        let names: Vec<String> = graph.ranked_targets().into_iter().map(|i| graph.name(&graph.nodes[i])).collect();
        assert_eq!(names, ["“ Austin”", "“ Dallas − Houston”"]);
        let top = graph.most_influential(8);
        assert!(top.len() == 8 && top.is_sorted_by(|a, b| graph.nodes[*a].influence >= graph.nodes[*b].influence));
    }
}
