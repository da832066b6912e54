//! The logit lens and logit attribution against TransformerLens (`tests/golden/make_circuits.py`), and `lens` as a
//! command.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use mechinterp::analysis::lens::{Component, LensSettings, attribute, logit_lens, streams};
use mechinterp::base::Silent;

use crate::fixture::{Cli, trained};
use crate::golden::open;

/// Checkpoints with values of TransformerLens.
pub(crate) const CIRCUITS: [&str; 3] = ["llama", "gpt2", "gemma2"];
/// Logits and their differences are of size one.
pub(crate) const TOLERANCE: f64 = 2e-5;

/// What TransformerLens computes on a checkpoint.
pub(crate) struct Circuits(HashMap<String, Tensor>);

impl Circuits {
    pub(crate) fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/circuits/{name}.safetensors"));
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    pub(crate) fn ids(&self, key: &str) -> Vec<u32> {
        self.0[key].to_dtype(DType::U32).unwrap().to_vec1().unwrap()
    }

    /// The values row by row; a vector is one row.
    pub(crate) fn rows(&self, key: &str) -> Vec<Vec<f32>> {
        let found = &self.0[key];
        let width = found.dims().last().copied().unwrap();
        found.reshape((found.elem_count() / width, width)).unwrap().to_vec2().unwrap()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }
}

#[track_caller]
pub(crate) fn assert_near(found: f64, expected: f32, what: &str) {
    let off = (found - f64::from(expected)).abs();
    assert!(off < TOLERANCE, "{what}: {found} for {expected}");
}

#[test]
fn the_logit_lens_reads_what_transformerlens_reads() {
    for name in CIRCUITS {
        let (model, golden) = (open(name), Circuits::open(name));
        let tokens = golden.ids("clean");
        let vocabulary: Vec<u32> = (0..model.config().vocab_size as u32).collect();
        let settings = LensSettings {
            points: streams(model.config(), true),
            positions: (0..tokens.len()).collect(),
            top: 3,
            watched: vocabulary,
        };
        let rows = logit_lens(&model, &tokens, &settings, &Silent).unwrap();
        assert_eq!(rows.len(), 1 + 2 * model.config().n_layers, "{name}");
        let log_softmax = |logits: &[f32]| -> Vec<f64> {
            let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            logits.iter().map(|x| f64::from(*x) - total).collect()
        };
        let end = golden.rows(&format!("lens.{}", rows.last().unwrap().point));
        let mut differs = 0;
        for row in &rows {
            let expected = golden.rows(&format!("lens.{}", row.point));
            for (position, cell) in row.cells.iter().enumerate() {
                let what = format!("{name} {} position {position}", row.point);
                let log_p = log_softmax(&expected[position]);
                for chance in &cell.watched {
                    assert_near(f64::from(chance.logit), expected[position][chance.token as usize], &what);
                    assert_near(chance.probability, log_p[chance.token as usize].exp() as f32, &what);
                }
                let best = (0..log_p.len()).max_by(|&a, &b| log_p[a].total_cmp(&log_p[b])).unwrap();
                assert_eq!((cell.top[0].token as usize, cell.watched[best].rank), (best, 1), "{what}");
                let log_end = log_softmax(&end[position]);
                let kl: f64 = log_end.iter().zip(&log_p).map(|(end, own)| end.exp() * (end - own)).sum();
                let entropy: f64 = -log_p.iter().map(|p| p.exp() * p).sum::<f64>();
                assert_near(cell.kl, kl as f32, &what);
                assert_near(cell.entropy, entropy as f32, &what);
                differs += usize::from(kl > 1e-3);
            }
        }
        assert!(differs > 10, "{name}: layers read differently");
    }
}

#[test]
fn logits_are_attributed_as_transformerlens_attributes_them() {
    for name in CIRCUITS {
        let (model, golden) = (open(name), Circuits::open(name));
        let (tokens, pair) = (golden.ids("clean"), golden.ids("pair"));
        let found = attribute(&model, &tokens, tokens.len() - 1, (pair[0], Some(pair[1])), None).unwrap();
        let total = golden.rows("attribution.total")[0][0];
        assert_near(found.capped.unwrap_or(found.logit), total, name);
        assert!(found.discrepancy.abs() < TOLERANCE, "{name}: remainder {}", found.discrepancy);
        let of = |choose: &dyn Fn(Component) -> bool| found.total(choose);
        for (key, component) in
            [("attribution.embed", Component::Embedding), ("attribution.pos_embed", Component::PositionEmbedding)]
        {
            if golden.has(key) {
                assert_near(of(&|c| c == component), golden.rows(key)[0][0], key);
            }
        }
        let (attention, mlp) = (golden.rows("attribution.attn"), golden.rows("attribution.mlp"));
        for layer in 0..model.config().n_layers {
            let what = format!("{name} layer {layer}");
            assert_near(of(&|c| c.layer() == Some(layer) && c.is_attention()), attention[0][layer], &what);
            assert_near(of(&|c| c == Component::Mlp { layer }), mlp[0][layer], &what);
            // TransformerLens has heads of models with a norm after attention before that norm.
            if golden.has("attribution.heads") {
                for (head, expected) in golden.rows("attribution.heads")[layer].iter().enumerate() {
                    assert_near(of(&|c| c == Component::Head { layer, head }), *expected, &what);
                }
            }
        }
    }
}

const ASK: &str = "lens demo --prompt";

#[test]
fn the_lens_shows_where_an_answer_appears_and_what_makes_it() {
    let cli = Cli::new();
    let mut command = cli.command("lens demo --target Paris --against Tokyo --html lens.html --prompt");
    command.arg("the capital of France is");
    let shown = crate::fixture::end(command).ok();
    for expected in ["logit lens", "embed", "France", "Paris", "logit of “ Paris” less that of “ Tokyo”", "remainder"]
    {
        assert!(shown.contains(expected), "'{expected}' is not in {shown}");
    }
    let page = std::fs::read_to_string(cli.path("lens.html")).unwrap();
    assert!(page.contains("role=\"img\"") && page.contains("by head") && page.contains("This page loads nothing."));
    let json =
        cli.run_with("lens demo --json --target Paris --top 3 --mid --prompt", "the capital of France is").json();
    let report = &json[0];
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 9, "embedding, and the middle and end of four blocks");
    let last = layers.last().unwrap()["cells"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["top"][0]["token"], &last["target"]["rank"]), (&" Paris".into(), &1.into()));
    assert!(last["target"]["probability"].as_f64().unwrap() > 0.9 && last["kl"].as_f64().unwrap() < 1e-9);
    let first = &layers[0]["cells"].as_array().unwrap().last().unwrap()["target"];
    assert!(first["rank"].as_u64().unwrap() > 1, "the embedding does not know");
    let attribution = &report["attribution"];
    let sum: f64 = attribution["parts"].as_array().unwrap().iter().map(|part| part["value"].as_f64().unwrap()).sum();
    assert!((sum - attribution["logit"].as_f64().unwrap()).abs() < 1e-3);
    for show in ["probability", "rank", "logit", "entropy", "kl"] {
        let line = format!("lens demo --target Paris --show {show} --position -2,-1 --prompt");
        assert!(cli.run_with(&line, "the capital of France is").ok().contains("position") || show != "kl", "{show}");
    }
}

#[test]
fn features_of_a_dictionary_take_a_logit_apart() {
    let shared = trained();
    let json = shared.run_with("lens demo --sae sae --target Paris --json --prompt", "the capital of France is").json();
    let (found, features) = (&json[0]["attribution"], &json[0]["attribution"]["features"]);
    let parts = features["parts"].as_array().unwrap();
    assert!(!parts.is_empty() && features["point"] == crate::fixture::HOOK);
    let rest = ["bias", "error", "elsewhere"].map(|key| features[key].as_f64().unwrap());
    let sum: f64 = parts.iter().map(|part| part["value"].as_f64().unwrap()).chain(rest).sum();
    assert!((sum - found["logit"].as_f64().unwrap()).abs() < 1e-3, "{sum} {}", found["logit"]);
    let shown = shared.run_with("lens demo --sae sae --target Paris --prompt", "the capital of France is").ok();
    assert!(shown.contains("by features at") && shown.contains("elsewhere"), "{shown}");
}

#[test]
fn wrong_targets_positions_and_files_are_errors() {
    let cli = Cli::new();
    let wrong: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("--target Paris,Tokyo", &["--target", "single token", "“ Paris”"][..]),
        ("--target Xyzzy", &["--target", "'Xyzzy', which is 1 token", "<unk>"]),
        ("--target Paris --at 9", &["--at", "0 to 5", "“ France”"]),
        ("--target Paris --at all", &["--at", "one position", "6"]),
        ("--position Germany", &["--position", "'Germany'", "“ France”"]),
        ("--show rank", &["--show", "--target"]),
        ("--html nowhere/x.html", &["output directory", "nowhere"]),
        ("--target Paris --sae nowhere", &["nowhere"]),
    ]);
    for (flags, needles) in wrong {
        cli.run_with(&format!("lens demo {flags} --prompt"), "the capital of France is").error(needles);
    }
    cli.run_with(ASK, "").ok();
    cli.run("lens demo --against Tokyo --prompt x").error(&["--target"]);
}
