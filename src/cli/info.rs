//! `mechinterp info`

use std::path::PathBuf;

use serde::Serialize;

use crate::base::Result;
use crate::base::mapped::Mapped;
use crate::model::hook::Scope;
use crate::model::{HookPoint, ModelConfig, Site};

use super::Outcome;
use super::open;
use super::render::{BOLD, DIM, Table, Ui, paint, thousands};

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, or `demo`.
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
    let (mut parameters, mut weight_bytes, mut dtypes) = (0u64, 0u64, Vec::new());
    for path in &files.weights {
        for (_, dtype, shape) in Mapped::open("model weights", path)?.entries()? {
            let count: usize = shape.iter().product();
            parameters += count as u64;
            weight_bytes += (count * dtype.bitsize() / 8) as u64;
            let name = format!("{dtype:?}").to_lowercase();
            if !dtypes.contains(&name) {
                dtypes.push(name);
            }
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
        ("E", config.mlp.experts.map_or(0, |e| e.count)),
        ("k", config.mlp.experts.map_or(0, |e| e.active)),
    ];
    let number =
        |letter: &str| values.iter().find(|(l, _)| *l == letter).map_or(letter.to_owned(), |(_, n)| n.to_string());
    let axes = site.axes_in(config).to_string();
    let shape = axes
        .trim_matches(['[', ']'])
        .split(", ")
        .map(|axis| axis.split('·').map(number).collect::<Vec<_>>().join("·"))
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
        (mlp, format!("{}{} wide, {}", experts(c), c.mlp.d_mlp, json_name(&c.mlp.activation))),
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

fn experts(config: &ModelConfig) -> String {
    config.mlp.experts.map_or(String::new(), |e| format!("{} of {} experts, each ", e.active, e.count))
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
