//! Which features fire on a text.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::analysis::feature::{FiringFeature, IndexFile, OnText, Query, on_text, select};
use crate::base::{DtypeChoice, Error, Result};
use crate::dictionary::Dictionary;

use super::super::expect::{self, Given};
use super::super::feature_page::{one_line, percent, shaded};
use super::super::open::{self, Opened};
use super::super::render::{BOLD, DIM, GREEN, Table, Ui, paint, quoted};
use super::super::steer::MAX_NORM_KEY;
use super::super::{Common, expect::bos_of};
use super::Args;

/// Features that are shown when nobody says how many.
const SOME: usize = 12;
/// Features named beside each token.
const A_TOKEN: usize = 4;
/// Tokens shown before and after a feature's peak.
const AROUND: (usize, usize) = (16, 8);

/// With an index: what it says about features, and the dictionary and model it was made with unless others are named.
pub(super) fn with_index(args: &Args, index: &IndexFile, text: &str, common: &Common, ui: &Ui) -> Result<()> {
    let header = &index.header;
    let stored = header.dictionary.as_ref().map(PathBuf::from);
    let Some(sae) = args.sae.clone().or(stored.filter(|path| path.exists())) else {
        let found = header.dictionary.as_deref().map_or("none".to_owned(), |path| format!("none at {path}"));
        return Err(Error::flag("--sae", "the dictionary of the index", found, "name its directory"));
    };
    let dictionary = open::dictionary(&sae, ui)?;
    if dictionary.d_sae() != header.d_sae {
        return Err(Error::Mismatch {
            what: "dictionary and feature index",
            left: format!("{} has {} features", sae.display(), dictionary.d_sae()),
            right: format!("the index has {}", header.d_sae),
            remedy: "name the dictionary that the index was made of".into(),
        });
    }
    let model = args.model.clone().or_else(|| header.model_name.clone());
    show(args, &dictionary, model, Some(index), text, (common, ui))
}

/// With a dictionary, and what was made of it in this run, if anything was.
pub(super) fn with_dictionary(
    args: &Args,
    sae: &Path,
    index: Option<&IndexFile>,
    text: &str,
    common: &Common,
    ui: &Ui,
) -> Result<()> {
    let dictionary = open::dictionary(sae, ui)?;
    let own = || dictionary.config.metadata.model_name.clone();
    let model = args.model.clone().or_else(|| index.and_then(|index| index.header.model_name.clone())).or_else(own);
    show(args, &dictionary, model, index, text, (common, ui))
}

fn show(
    args: &Args,
    dictionary: &Dictionary,
    model: Option<String>,
    index: Option<&IndexFile>,
    text: &str,
    (common, ui): (&Common, &Ui),
) -> Result<()> {
    let name = model.ok_or_else(|| {
        Error::flag("--model", "a model beside --on", "none", "name the model that the dictionary was trained on")
    })?;
    let opened = open::open(&name, DtypeChoice::F32, common.device, ui)?;
    let bos = bos_of(dictionary);
    expect::check(dictionary, &Given::model(&name, bos, opened.model.config()), args.force, ui)?;
    let tokens = open::encode_prompt(&opened, text, bos)?;
    let filter = args.filter.settings();
    let limit = dictionary.config.metadata.extra.get(MAX_NORM_KEY).and_then(serde_json::Value::as_f64);
    let limit = limit.filter(|_| filter.max_norm_multiple.is_some());
    let special = opened.tokenizer.special_ids();
    let begins = opened.tokenizer.prefix(bos).is_some();
    let counts = |position: usize, token: u32, norm: f64| {
        // Without a special token in front the first position is text that someone asked about.
        let first = filter.skip_first && begins && position == 0;
        let special = filter.skip_special && special.contains(&token);
        !first && !special && limit.is_none_or(|limit| norm <= limit)
    };
    let summaries = index.map(IndexFile::summaries);
    let mut found = on_text(&opened.model, dictionary, &tokens, &counts, summaries)?;
    if let Some(index) = index {
        let allowed = select(index.summaries(), &Query { limit: None, ..args.query(index) })?;
        found.features.retain(|f| allowed.binary_search(&f.feature).is_ok());
    }
    let shown = args.ask.limit.unwrap_or(SOME);
    let answer = Answer { opened: &opened, index, found: &found, shown };
    if ui.json() { ui.out_json(&answer.report(text)) } else { answer.print(ui) }
}

struct Answer<'a> {
    opened: &'a Opened,
    index: Option<&'a IndexFile>,
    found: &'a OnText,
    shown: usize,
}

#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    tokens: Vec<String>,
    token_ids: &'a [u32],
    counted: &'a [bool],
    /// Features that fire, shown or not.
    firing: usize,
    features: Vec<Firing<'a>>,
    by_token: Vec<OnToken>,
}

#[derive(Serialize)]
struct Firing<'a> {
    #[serde(flatten)]
    on_text: &'a FiringFeature,
    label: Option<&'a str>,
    density: Option<f64>,
}

#[derive(Serialize)]
struct OnToken {
    position: usize,
    token: String,
    features: Vec<FeatureValue>,
}

#[derive(Serialize)]
struct FeatureValue {
    feature: u32,
    value: f32,
}

impl<'a> Answer<'a> {
    fn pieces(&self) -> Vec<String> {
        self.found.tokens.iter().map(|&token| self.opened.tokenizer.piece(token)).collect()
    }

    fn label(&self, feature: u32) -> Option<&'a str> {
        self.index.and_then(|index| index.labels.name(feature))
    }

    fn density(&self, feature: u32) -> Option<f64> {
        self.index.and_then(|index| index.summaries().get(feature as usize)).map(|summary| summary.density)
    }

    /// The features that fire most strongly at `position`, in the order of the answer: relative to their own maximum
    /// where that is known.
    fn at(&self, position: usize) -> Vec<FeatureValue> {
        let strength = |f: &FiringFeature| {
            let value = f.values[position].abs();
            f.share_of_max.map_or(value, |share| share * value / f.max.abs())
        };
        let mut here: Vec<&FiringFeature> = self.found.features.iter().filter(|f| f.values[position] != 0.0).collect();
        here.sort_by(|a, b| strength(b).total_cmp(&strength(a)).then(a.feature.cmp(&b.feature)));
        here.iter().take(A_TOKEN).map(|f| FeatureValue { feature: f.feature, value: f.values[position] }).collect()
    }

    fn report(&self, text: &'a str) -> Report<'a> {
        let pieces = self.pieces();
        let firing = |f: &'a FiringFeature| Firing {
            on_text: f,
            label: self.label(f.feature),
            density: self.density(f.feature),
        };
        let on_token = |(position, token): (usize, &String)| OnToken {
            position,
            token: token.clone(),
            features: self.at(position),
        };
        Report {
            text,
            by_token: pieces.iter().enumerate().map(on_token).collect(),
            tokens: pieces,
            token_ids: &self.found.tokens,
            counted: &self.found.counted,
            firing: self.found.features.len(),
            features: self.found.features.iter().take(self.shown).map(firing).collect(),
        }
    }

    fn print(&self, ui: &Ui) -> Result<()> {
        let (pieces, all) = (self.pieces(), &self.found.features);
        let order = if self.index.is_some() { "activation over the feature's maximum" } else { "activation" };
        let shown = all.len().min(self.shown);
        ui.out(format!("{} features fire on {} tokens; {shown} shown, by {order}\n", all.len(), pieces.len()))?;
        for f in all.iter().take(self.shown) {
            let mut figures = vec![format!("{:.2} at {}", f.max, quoted(&pieces[f.position]))];
            figures.extend(f.share_of_max.map(|share| format!("{:.0} % of its maximum", share * 100.0)));
            figures.extend(self.density(f.feature).map(|share| format!("fires on {} of positions", percent(share))));
            let figures = figures.join(", ");
            let name = self.label(f.feature).map(|label| format!("  {}", paint(GREEN.bold(), one_line(label))));
            let id = paint(BOLD, format!("{:>7}", f.feature));
            ui.out(format!("{id}{}  {}", name.unwrap_or_default(), paint(DIM, figures)))?;
            let window = f.position.saturating_sub(AROUND.0)..(f.position + AROUND.1 + 1).min(pieces.len());
            ui.out(format!("         {}", shaded(&pieces[window.clone()], &f.values[window], f.max)))?;
        }
        let mut table = Table::new(&[">", "token", "features, with activations"]);
        for (position, piece) in pieces.iter().enumerate() {
            let here = self.at(position);
            let list = here.iter().map(|v| {
                let name = self.label(v.feature).map(|label| format!(" {}", paint(GREEN, one_line(label))));
                format!("{}{} {}", v.feature, name.unwrap_or_default(), paint(DIM, format!("{:.2}", v.value)))
            });
            let list = if self.found.counted[position] {
                list.collect::<Vec<_>>().join("  ")
            } else {
                paint(DIM, "does not count")
            };
            table.row(vec![position.to_string(), quoted(piece), list]);
        }
        ui.out(format!("\n{table}"))
    }
}
