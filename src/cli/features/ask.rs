//! Answers from an index: pages, an overview, what a search found, what is like a feature.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::analysis::feature::search::{Found, search};
use crate::analysis::feature::{Choice, FeatureRecord, IndexFile, Query, SortBy, Summary, select};
use crate::base::Result;

use super::super::feature_page::{self, Shown};
use super::super::render::{BOLD, DIM, Table, Ui, paint, quoted};
use super::Args;

/// Features that a search or a list of neighbours shows when nobody says how many.
const SOME: usize = 10;

pub(super) fn show(args: &Args, index: &IndexFile, ui: &Ui) -> Result<()> {
    match (&args.ask.search, args.ask.like) {
        (Some(words), _) => found(args, index, words, ui),
        (None, Some(feature)) => like(args, index, feature, ui),
        (None, None) => pages(args, index, ui),
    }
}

impl Args {
    /// The conditions that were given, with nothing chosen yet.
    pub(super) fn query(&self, index: &IndexFile) -> Query {
        let ask = &self.ask;
        Query {
            choice: Choice::All,
            min_density: ask.min_density,
            max_density: ask.max_density,
            live: if ask.dead { Some(false) } else { ask.live.then_some(true) },
            among: ask.labelled.then(|| index.labels.features()),
            sort: ask.sort,
            limit: ask.limit,
        }
    }

    fn shown(&self) -> Shown {
        Shown { examples: self.ask.examples.min(self.top_k), intervals: self.ask.intervals }
    }
}

#[derive(Serialize)]
struct Report {
    d_sae: usize,
    dead_features: usize,
    features: Vec<FeatureRecord>,
}

/// Pages when some features were asked for, else an overview.
fn pages(args: &Args, index: &IndexFile, ui: &Ui) -> Result<()> {
    let ask = &args.ask;
    let choice = match (ask.random, ask.feature.is_empty()) {
        (Some(count), _) => Choice::Random { count, seed: ask.seed },
        (None, false) => Choice::Ids(ask.feature.clone()),
        (None, true) => Choice::All,
    };
    let chosen = select(index.summaries(), &Query { choice, ..args.query(index) })?;
    let narrowed = !ask.feature.is_empty() || ask.random.is_some() || ask.limit.is_some();
    if !narrowed && !ui.json() {
        let chosen = if ask.sort.is_none() { by_density(index.summaries(), &chosen) } else { chosen };
        return feature_page::overview(index, &chosen, ui);
    }
    let mut features = Vec::new();
    for feature in chosen {
        let mut record = index.record(feature)?;
        record.examples.truncate(args.top_k);
        if ui.json() {
            features.push(record);
        } else {
            feature_page::page(&record, index, args.shown(), ui)?;
        }
    }
    if ui.json() {
        let header = &index.header;
        ui.out_json(&Report { d_sae: header.d_sae, dead_features: header.dead_features, features })?;
    }
    Ok(())
}

/// The busiest first, which say most at a glance.
fn by_density(summaries: &[Summary], chosen: &[u32]) -> Vec<u32> {
    let query =
        Query { sort: Some(SortBy::Density), among: Some(chosen.iter().copied().collect()), ..Query::default() };
    select(summaries, &query).unwrap_or_else(|_| chosen.to_vec())
}

#[derive(Serialize)]
struct SearchReport<'a> {
    search: &'a str,
    /// How many match, shown or not.
    matching: usize,
    features: Vec<Hit>,
}

#[derive(Serialize)]
struct Hit {
    found: Found,
    #[serde(flatten)]
    record: FeatureRecord,
}

fn found(args: &Args, index: &IndexFile, words: &str, ui: &Ui) -> Result<()> {
    let allowed: BTreeSet<u32> =
        select(index.summaries(), &Query { limit: None, ..args.query(index) })?.into_iter().collect();
    let mut found = search(index, words)?;
    found.retain(|found| allowed.contains(&found.feature));
    let matching = found.len();
    found.truncate(args.ask.limit.unwrap_or(SOME));
    let mut features = Vec::new();
    for found in found {
        let mut record = index.record(found.feature)?;
        record.examples.truncate(args.top_k);
        features.push(Hit { found, record });
    }
    if ui.json() {
        return ui.out_json(&SearchReport { search: words, matching, features });
    }
    if features.is_empty() {
        return ui
            .out(format!("no feature has to do with “{words}”: neither labels, examples nor promoted tokens have it"));
    }
    for Hit { found, record } in &features {
        feature_page::hit(found, record, ui)?;
    }
    let shown = features.len();
    ui.out(paint(
        DIM,
        format!(
            "{shown} of {matching} features that have to do with “{words}”, by how much they do; --feature ID shows one"
        ),
    ))
}

#[derive(Serialize)]
struct LikeReport {
    feature: u32,
    label: Option<String>,
    like: Vec<Neighbour>,
}

/// A feature that is like another in one way or both.
#[derive(Serialize)]
struct Neighbour {
    feature: u32,
    label: Option<String>,
    /// Cosine of decoder rows, where it is among the nearest.
    cosine: Option<f32>,
    /// Share of positions where both fire, where it is among the most coactive.
    jaccard: Option<f32>,
    correlation: Option<f32>,
    density: f64,
    promoted: Vec<String>,
    peaks: Vec<String>,
}

/// In which ways two features are alike.
#[derive(Default)]
struct Ways {
    cosine: Option<f32>,
    jaccard: Option<f32>,
    correlation: Option<f32>,
}

fn like(args: &Args, index: &IndexFile, feature: u32, ui: &Ui) -> Result<()> {
    let record = index.record(feature)?;
    let mut ways: BTreeMap<u32, Ways> = BTreeMap::new();
    for near in &record.nearest {
        ways.entry(near.feature).or_default().cosine = Some(near.cosine);
    }
    for together in &record.coactive {
        let way = ways.entry(together.feature).or_default();
        way.jaccard = Some(together.jaccard);
        way.correlation = Some(together.correlation);
    }
    let allowed = select(index.summaries(), &Query { limit: None, ..args.query(index) })?;
    let allowed: BTreeSet<u32> = allowed.into_iter().collect();
    let mut like = Vec::new();
    for (other, Ways { cosine, jaccard, correlation }) in ways.into_iter().filter(|(f, _)| allowed.contains(f)) {
        let of_other = index.record(other)?;
        like.push(Neighbour {
            feature: other,
            label: index.labels.name(other).map(str::to_owned),
            cosine,
            jaccard,
            correlation,
            density: of_other.summary.density,
            promoted: of_other.promoted.iter().flatten().take(3).map(|t| t.text.clone()).collect(),
            peaks: feature_page::peaks(&of_other, 4),
        });
    }
    // Both say something, so a feature is ranked by whichever says more.
    let strength = |n: &Neighbour| n.cosine.unwrap_or(-1.0).max(n.jaccard.unwrap_or(-1.0));
    like.sort_by(|a, b| strength(b).total_cmp(&strength(a)).then(a.feature.cmp(&b.feature)));
    like.truncate(args.ask.limit.unwrap_or(2 * SOME));
    if ui.json() {
        return ui.out_json(&LikeReport { feature, label: index.labels.name(feature).map(str::to_owned), like });
    }
    feature_page::heading(&record, ui)?;
    let mut table =
        Table::new(&[">feature", ">cosine", ">fires with", ">correlation", ">fires on", "promotes", "strongest on"]);
    let number = |value: Option<f32>| value.map_or_else(|| "·".to_owned(), |value| format!("{value:.2}"));
    for neighbour in &like {
        let share = neighbour.jaccard.map_or_else(|| "·".to_owned(), |share| feature_page::percent(f64::from(share)));
        let words = |list: &[String]| list.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let name = neighbour.label.as_ref().map(|label| format!("{} ", paint(BOLD, label))).unwrap_or_default();
        table.row(vec![
            neighbour.feature.to_string(),
            number(neighbour.cosine),
            share,
            number(neighbour.correlation),
            feature_page::percent(neighbour.density),
            words(&neighbour.promoted),
            format!("{name}{}", words(&neighbour.peaks)),
        ]);
    }
    ui.out(table)?;
    ui.out(paint(
        DIM,
        "cosine: of the decoder rows; fires with: positions where both fire, of those where one does; · not among the nearest",
    ))
}
