//! `mechinterp info`

use std::path::PathBuf;

use serde::Serialize;

use crate::base::Result;
use crate::model::hook::Scope;
use crate::model::{HookPoint, ModelConfig, Site, weights};

use super::Outcome;
use super::open;
use super::render::{BOLD, DIM, Table, Ui, paint, thousands};

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    model: String,
    /// Also list every hook point of every layer by its full name.
    #[arg(long)]
    hooks: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    parameters: u64,
    weight_bytes: u64,
    weight_dtypes: Vec<String>,
    weight_files: &'a [PathBuf],
    config: &'a ModelConfig,
    hooks: Vec<HookRow>,
}

#[derive(Serialize)]
struct HookRow {
    name: String,
    shape: String,
    width: Option<usize>,
}

pub(super) fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    let files = open::locate(&args.model, ui)?;
    let config = open::config(&files)?;
    let entries = weights::entries(&files.weights)?;
    let parameters = entries.iter().map(|entry| entry.shape.iter().map(|&d| d as u64).product::<u64>()).sum();
    let weight_bytes = entries.iter().map(|entry| entry.bytes).sum();
    let mut dtypes = Vec::new();
    for entry in entries {
        if !dtypes.contains(&entry.dtype) {
            dtypes.push(entry.dtype);
        }
    }
    let hooks = HookPoint::all(&config).into_iter().map(|p| hook_row(p.to_string(), p.site, &config)).collect();
    let report = Report {
        model: &args.model,
        parameters,
        weight_bytes,
        weight_dtypes: dtypes,
        weight_files: &files.weights,
        config: &config,
        hooks,
    };
    if ui.json() {
        ui.out_json(&report)?;
    } else {
        print(&report, args.hooks, ui)?;
    }
    Ok(Outcome::Done)
}

fn hook_row(name: String, site: Site, config: &ModelConfig) -> HookRow {
    let values = [
        ("d", config.d_model),
        ("m", config.mlp.d_mlp),
        ("v", config.vocab_size),
        ("H", config.n_heads),
        ("K", config.n_key_value_heads),
        ("h", config.d_head),
    ];
    let axes = site.axes().to_string();
    let shape = axes
        .trim_matches(['[', ']'])
        .split(", ")
        .map(|letter| values.iter().find(|(l, _)| *l == letter).map_or(letter.to_owned(), |(_, n)| n.to_string()))
        .collect::<Vec<_>>()
        .join(", ");
    HookRow { name, shape: format!("[{shape}]"), width: site.width(config) }
}

fn print(report: &Report<'_>, all_hooks: bool, ui: &Ui) -> Result<()> {
    let c = report.config;
    ui.out(paint(BOLD, report.model))?;
    let heads = if c.n_heads == c.n_key_value_heads {
        format!("{} heads of {}", c.n_heads, c.d_head)
    } else {
        format!("{} heads of {}, {} key-value heads", c.n_heads, c.d_head, c.n_key_value_heads)
    };
    let mlp = if c.mlp.gated { "gated MLP" } else { "MLP" };
    let lines = [
        ("family", c.family.to_owned()),
        ("parameters", thousands(report.parameters)),
        (
            "weights",
            format!(
                "{:.1} MB in {} ({})",
                report.weight_bytes as f64 / 1e6,
                plural(report.weight_files.len(), "file"),
                report.weight_dtypes.join(", ")
            ),
        ),
        ("layers", c.n_layers.to_string()),
        ("d_model", c.d_model.to_string()),
        ("attention", heads),
        (mlp, format!("{} wide, {}", c.mlp.d_mlp, json_name(&c.mlp.activation))),
        ("norm", format!("{}, eps {:e}", json_tag(&c.norm, "kind"), c.norm.eps())),
        ("position", json_tag(&c.position, "kind")),
        ("vocabulary", thousands(c.vocab_size as u64)),
        ("context", thousands(c.context_length as u64)),
    ];
    for (label, value) in lines {
        ui.out(format!("  {}{value}", paint(DIM, format!("{label:<12}"))))?;
    }
    ui.out("")?;
    let mut table = Table::new(&["hook point", "shape", ">values a token"]);
    let width = |w: Option<usize>| w.map_or("-".to_owned(), |w| thousands(w as u64));
    if all_hooks {
        for hook in &report.hooks {
            table.row(vec![hook.name.clone(), hook.shape.clone(), width(hook.width)]);
        }
    } else {
        let layers = format!("blocks.{{0..{}}}.", c.n_layers - 1);
        for &site in Site::ALL.iter().filter(|s| s.exists_in(c)) {
            let prefix = if site.scope() == Scope::Block { layers.as_str() } else { "" };
            let row = hook_row(format!("{prefix}{}", site.name()), site, c);
            table.row(vec![row.name, row.shape, width(row.width)]);
        }
    }
    ui.out(table)?;
    ui.out(paint(DIM, "b sequences, s positions, S positions with cached ones"))
}

fn plural(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// The name an enum serialises to.
fn json_name(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

/// The tag an enum serialises with.
fn json_tag(value: &impl Serialize, tag: &str) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.get(tag).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
}
