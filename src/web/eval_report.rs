//! The page about evaluated dictionaries: how well each reconstructs for how many active features, every figure with
//! its definition, and how features are spread.

use super::chart::{Axis, Group, Histogram, Point, Scatter, figure};
use super::markup::Element;
use super::page::{self, Card, Cell, Row};
use super::text::{kind, short, thousands};
use crate::analysis::eval::{DEFINITIONS, Definition, Evaluation, FeatureDetail};
use crate::dictionary::DictionaryConfig;

/// Figures that the comparison shows, with a short name.
pub const COMPARED: [(&str, &str); 9] = [
    ("l0", "L0"),
    ("explained_variance", "R²"),
    ("cossim", "cosine"),
    ("mse", "squared error"),
    ("l2_ratio", "norm ratio"),
    ("ce_loss_score", "loss recovered"),
    ("kl_div_score", "KL recovered"),
    ("frac_alive", "alive"),
    ("average_max_decoder_cosine_sim", "nearest twin"),
];

/// One dictionary with its figures.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    /// Its name in tables and pictures.
    pub name: &'a str,
    /// What it is.
    pub config: &'a DictionaryConfig,
    /// Its figures.
    pub evaluation: &'a Evaluation,
}

impl Measured<'_> {
    fn figure(&self, name: &str) -> Option<f64> {
        self.evaluation.metrics.get(name)
    }

    /// Share of features that never fire.
    pub fn dead(&self) -> f64 {
        1.0 - self.evaluation.metrics.misc_metrics.frac_alive
    }

    fn details(&self, of: impl Fn(&FeatureDetail) -> Option<f32>) -> Option<Vec<f64>> {
        let values: Vec<f64> = self.evaluation.details.iter().filter_map(of).map(f64::from).collect();
        (!values.is_empty()).then_some(values)
    }
}

/// The page. `facts` say what was measured on.
pub fn page(measured: &[Measured], facts: &[String]) -> String {
    let title = match measured {
        [one] => {
            let metadata = &one.config.metadata;
            let hook = metadata.hook_name.as_deref().unwrap_or(one.name);
            metadata.model_name.as_deref().map_or(hook.to_owned(), |model| format!("{hook} of {}", short(model)))
        }
        several => format!("{} dictionaries", several.len()),
    };
    let above = if let [one] = measured { format!("Evaluation · {}", one.name) } else { "Evaluation".into() };
    let mut body = vec![page::header(&above, &title, facts)];
    if let [one] = measured {
        body.push(page::cards(&cards(one)));
    } else {
        body.push(page::wide(picture(measured)));
        body.extend(recovered(measured).map(page::wide));
        let note = "The best figure of each column is marked. Sparsity is bought with error, so L0 has no best.";
        body.push(page::section("Comparison", note, [comparison(measured)]));
    }
    body.push(page::section("Features", "", [page::charts(histograms(measured))]));
    body.push(page::section("All figures", "Names and definitions are SAEBench's.", [figures(measured)]));
    body.push(page::footer());
    page::html(&title, body)
}

/// Explained variance against L0, a point a dictionary.
pub fn picture(measured: &[Measured]) -> Element {
    scatter(measured, "Explained variance against sparsity", "explained_variance", "R²")
}

/// Loss recovered against L0, where it was measured.
fn recovered(measured: &[Measured]) -> Option<Element> {
    let any = measured.iter().any(|m| m.figure("ce_loss_score").is_some());
    any.then(|| scatter(measured, "Loss recovered against sparsity", "ce_loss_score", "share of the loss recovered"))
}

fn scatter(measured: &[Measured], title: &str, name: &str, label: &str) -> Element {
    let mut groups: Vec<Group> = Vec::new();
    for dictionary in measured {
        let features = dictionary.config.d_sae;
        let point = Point {
            x: dictionary.figure("l0").unwrap_or(f64::NAN),
            y: dictionary.figure(name).unwrap_or(f64::NAN),
            label: dictionary.name.into(),
            details: format!("{} features, {:.1} % dead", thousands(features as u64), 100.0 * dictionary.dead()),
        };
        let kind = kind(dictionary.config);
        match groups.iter_mut().find(|group| group.name == kind) {
            Some(group) => group.points.push(point),
            None => groups.push(Group { name: kind.into(), points: vec![point] }),
        }
    }
    let l0 = groups.iter().flat_map(|g| &g.points).map(|p| p.x);
    let x = Axis::by_range("L0, active features a position", l0);
    // A dictionary that is worse than no dictionary at all would squeeze the others into a line.
    let y = Axis::linear(label).within(0.0, 1.0);
    Scatter { title: title.into(), x, y, groups, hint: Some("↖ better".into()), wide: true }.svg()
}

fn cards(one: &Measured) -> Vec<Card> {
    let mut cards = vec![
        Card {
            label: "Explained variance",
            value: value("explained_variance", one.figure("explained_variance")),
            note: format!(
                "R² over {} positions",
                thousands(one.evaluation.metrics.token_stats.total_tokens_eval_sparsity_variance)
            ),
        },
        Card { label: "L0", value: value("l0", one.figure("l0")), note: "active features a position".into() },
    ];
    if let Some(score) = one.figure("ce_loss_score") {
        let note = "of what zeroing the hook costs the model".into();
        cards.push(Card { label: "Loss recovered", value: value("ce_loss_score", Some(score)), note });
    }
    let dead = one.evaluation.metrics.misc_metrics.dead_features;
    let note = format!("{:.1} % of {} on this text", 100.0 * one.dead(), thousands(one.config.d_sae as u64));
    cards.push(Card { label: "Silent features", value: thousands(dead as u64), note });
    cards
}

fn comparison(measured: &[Measured]) -> Element {
    let shown = |name: &&(&str, &str)| measured.iter().any(|m| m.figure(name.0).is_some());
    let columns: Vec<&(&str, &str)> = COMPARED.iter().filter(shown).collect();
    let best: Vec<Vec<usize>> = columns.iter().map(|(name, _)| best(measured, name)).collect();
    let mut head = vec![Cell::text("dictionary"), Cell::text("architecture"), Cell::number("features", false)];
    head.extend(columns.iter().map(|(_, short)| Cell::number(*short, false)));
    let row = |(i, dictionary): (usize, &Measured)| {
        let features = thousands(dictionary.config.d_sae as u64);
        let mut cells = vec![Cell::text(kind(dictionary.config)), Cell::number(features, false)];
        let figures = columns.iter().zip(&best);
        cells.extend(
            figures.map(|((name, _), best)| Cell::number(value(name, dictionary.figure(name)), best.contains(&i))),
        );
        Row::Cells(dictionary.name.into(), cells)
    };
    page::table(&head, &measured.iter().enumerate().map(row).collect::<Vec<_>>())
}

/// Which dictionaries have the best figure called `name`.
pub fn best(measured: &[Measured], name: &str) -> Vec<usize> {
    let values: Vec<Option<f64>> = measured.iter().map(|m| m.figure(name)).collect();
    let definition = DEFINITIONS.iter().find(|d| d.name == name);
    definition.map_or(Vec::new(), |d| d.better.best(&values))
}

/// Every figure of every dictionary by category, with definitions.
fn figures(measured: &[Measured]) -> Element {
    let mut head = vec![Cell::text("figure")];
    head.extend(measured.iter().map(|m| Cell::number(m.name, false)));
    head.push(Cell::text("what it is"));
    let category = |name: &str| {
        let all = serde_json::to_value(measured.first()?.evaluation.metrics).ok()?;
        all.as_object()?
            .iter()
            .find(|(_, figures)| figures.get(name).is_some())
            .map(|(category, _)| category.replace('_', " "))
    };
    let (mut rows, mut current) = (Vec::new(), None);
    for Definition { name, meaning, .. } in DEFINITIONS {
        let values: Vec<Option<f64>> = measured.iter().map(|m| m.figure(name)).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        if category(name) != current {
            current = category(name);
            rows.extend(current.clone().map(Row::Group));
        }
        let best = best(measured, name);
        let mut cells: Vec<Cell> =
            values.iter().enumerate().map(|(i, v)| Cell::number(value(name, *v), best.contains(&i))).collect();
        cells.push(Cell { text: (*meaning).into(), class: "meaning" });
        rows.push(Row::Cells((*name).into(), cells));
    }
    page::table(&head, &rows)
}

/// A figure as tables show it.
pub fn value(name: &str, value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(n) if name.starts_with("total_") || name.ends_with("_features") => thousands(n as u64),
        Some(x) if x != 0.0 && x.abs() < 1e-3 => figure(x),
        Some(x) if x.abs() < 10.0 => format!("{x:.4}"),
        Some(x) if x.abs() < 1e4 => format!("{x:.1}"),
        Some(x) => figure(x),
    }
}

/// Of one dictionary everything that is known of its features; of several the densities.
fn histograms(measured: &[Measured]) -> Vec<Element> {
    let density = |m: &Measured, title: String| {
        let densities = m.evaluation.details.iter().map(|d| d.feature_density);
        Histogram::new(title, Axis::log("share of positions on which a feature fires"), "features", densities).svg()
    };
    let [one] = measured else {
        return measured.iter().map(|m| density(m, format!("Density · {}", m.name))).collect();
    };
    let fires = one.evaluation.details.iter().map(|d| d.consistent_activation_heuristic);
    let firings = Axis::by_range("firings in a sequence in which it fires", fires.clone());
    let mut charts = vec![
        density(one, "Density".into()),
        Histogram::new("Firings", firings, "features", fires.filter(|n| *n > 0.0)).svg(),
    ];
    let of = |title: &str, label: &str, values: Option<Vec<f64>>| {
        values.map(|values| Histogram::new(title, Axis::linear(label), "features", values.into_iter()).svg())
    };
    charts.extend(of(
        "Nearest twins",
        "largest cosine to another decoder row",
        one.details(|d| d.max_decoder_cosine_sim),
    ));
    charts.extend(of(
        "Nearest readers",
        "largest cosine to another encoder column",
        one.details(|d| d.max_encoder_cosine_sim),
    ));
    let aligned = one.details(|d| d.encoder_decoder_cosine_sim);
    charts.extend(of("Encoder against decoder", "cosine of a feature's encoder column and decoder row", aligned));
    charts.extend(of("Encoder norms", "norm of an encoder column", one.details(|d| Some(d.encoder_norm))));
    charts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::eval::CoreMetrics;
    use crate::dictionary::metrics::Metrics;
    use crate::dictionary::{Architecture, SparseCodes};
    use crate::web::markup::tests::well_formed;

    fn evaluation(error: f32) -> Evaluation {
        let mut codes = SparseCodes::new(2);
        codes.push_row(&[0], &[1.0]);
        codes.push_row(&[0], &[2.0]);
        let mut sums = Metrics::new(2, 2);
        sums.add(&[1.0, 0.0, 0.0, 3.0], &[1.0, error, 0.0, 3.0], &codes).unwrap();
        let detail = |index| FeatureDetail {
            index,
            feature_density: 1.0 - index as f64,
            consistent_activation_heuristic: 2.0,
            encoder_bias: 0.0,
            encoder_norm: 1.0,
            encoder_decoder_cosine_sim: Some(0.5),
            max_decoder_cosine_sim: None,
            max_encoder_cosine_sim: Some(0.25),
        };
        Evaluation {
            metrics: CoreMetrics::new(&sums),
            all_positions: None,
            positions_left_out: 0,
            details: vec![detail(0), detail(1)],
        }
    }

    #[test]
    fn several_dictionaries_are_compared_and_the_best_is_marked() {
        let (good, poor) = (evaluation(0.1), evaluation(1.0));
        let config = DictionaryConfig::new(Architecture::Relu, 2, 2);
        let measured = [("<good>", &good), ("poor", &poor)].map(|(name, evaluation)| Measured {
            name,
            config: &config,
            evaluation,
        });
        let text = page(&measured, &["text.jsonl".into()]);
        let names = well_formed(text.strip_prefix("<!doctype html>").unwrap());
        assert_eq!(names.iter().filter(|n| *n == "figure").count(), 3, "one picture, two densities");
        assert!(text.contains("&lt;good&gt;") && !text.contains("<good>"));
        assert_eq!(best(&measured, "explained_variance"), [0]);
        assert!(best(&measured, "frac_alive").is_empty(), "equal");
        assert!(best(&measured, "l0").is_empty());
        let row = text.split("&lt;good&gt;</th>").nth(1).unwrap().split("</tr>").next().unwrap();
        assert!(row.contains("number best"), "{row}");
        assert!(text.contains("50.0 % dead"), "the tooltip of a point");
    }

    #[test]
    fn one_dictionary_shows_all_that_is_known_of_its_features() {
        let one = evaluation(0.5);
        let config = DictionaryConfig::new(Architecture::Relu, 2, 2);
        let text = page(&[Measured { name: "sae", config: &config, evaluation: &one }], &[]);
        well_formed(text.strip_prefix("<!doctype html>").unwrap());
        assert!(text.contains(">Encoder norms</text>") && !text.contains(">Nearest twins</text>"));
        assert!(text.contains("50.0 % of 2 on this text") && !text.contains("loss recovered"));
    }

    #[test]
    fn figures_are_short() {
        let shown = [("l0", Some(64.25)), ("dead_features", Some(4608.0)), ("mse", Some(2.5e5)), ("mse", None)];
        assert_eq!(shown.map(|(name, v)| value(name, v)), ["64.2", "4,608", "250k", "–"]);
    }
}
