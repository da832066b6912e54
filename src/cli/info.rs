//! `mechinterp info`

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::base::{Error, Result};
use crate::interop;
use crate::model::hook::Scope;
use crate::model::hook_page::LETTERS;
use crate::model::{HookPoint, ModelConfig, Site, weights};

use super::Outcome;
use super::architecture::{norm_name, peculiarities, position_name};
use super::open;
use super::render::{BOLD, DIM, Table, Ui, paint, thousands};

mod set;

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`; or a transcoder set, a directory or on the hub.
    model: String,
    /// Also say of every hook point what it is, and which other points this model lacks.
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
    peculiarities: Vec<Peculiarity>,
    hooks: Vec<HookRow>,
}

#[derive(Serialize)]
struct Peculiarity {
    what: &'static str,
    value: String,
}

#[derive(Serialize)]
struct HookRow {
    name: String,
    /// In numbers where the model fixes them.
    shape: String,
    /// In letters.
    axes: String,
    /// Values a token.
    width: Option<usize>,
    meaning: &'static str,
    /// Which models have the point.
    condition: &'static str,
}

pub(super) fn run(args: Args, ui: &Ui) -> Result<Outcome> {
    if interop::is_set(Path::new(&args.model)) {
        return set::run(&interop::open_set_with(&args.model, ui.progress())?, &args.model, ui);
    }
    let files = match open::locate(&args.model, ui) {
        Ok(files) => files,
        Err(error) if Path::new(&args.model).exists() => return Err(error),
        // On the hub a set has a name like a model's. Where it is neither, what was missing of a model is said.
        Err(error) => match interop::open_set_with(&args.model, ui.progress()) {
            Ok(set) => return set::run(&set, &args.model, ui),
            Err(Error::Missing { .. } | Error::Hub { .. } | Error::Flag { .. }) => return Err(error),
            Err(of_set) => return Err(of_set),
        },
    };
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
    let peculiarities = peculiarities(&config).into_iter().map(|(what, value)| Peculiarity { what, value }).collect();
    let report = Report {
        model: &args.model,
        parameters,
        weight_bytes,
        weight_dtypes: dtypes,
        weight_files: &files.weights,
        config: &config,
        peculiarities,
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
    let number = |letter: &str| value_of(letter, config).map_or(letter.to_owned(), |n| n.to_string());
    let axes = site.axes_in(config).to_string();
    let shape = axes
        .trim_matches(['[', ']'])
        .split(", ")
        .map(|axis| axis.split('·').map(number).collect::<Vec<_>>().join("·"))
        .collect::<Vec<_>>()
        .join(", ");
    HookRow {
        name,
        shape: format!("[{shape}]"),
        axes,
        width: site.width(config),
        meaning: site.meaning(),
        condition: site.condition(),
    }
}

fn print(report: &Report<'_>, explain: bool, ui: &Ui) -> Result<()> {
    ui.out(paint(BOLD, report.model))?;
    for (label, value) in architecture(report) {
        ui.out(format!("  {}{value}", paint(DIM, format!("{label:<12}"))))?;
    }
    ui.out("")?;
    if explain { print_hooks(report.config, ui) } else { print_short_hooks(report.config, ui) }
}

fn architecture(report: &Report<'_>) -> Vec<(&'static str, String)> {
    let c = report.config;
    let heads = if c.n_heads == c.n_key_value_heads {
        format!("{} heads of {}", c.n_heads, c.d_head)
    } else {
        format!("{} heads of {}, {} key-value heads", c.n_heads, c.d_head, c.n_key_value_heads)
    };
    let mlp = if c.mlp.gated { "gated MLP" } else { "MLP" };
    let weights = format!(
        "{:.1} MB in {} ({})",
        report.weight_bytes as f64 / 1e6,
        plural(report.weight_files.len(), "file"),
        report.weight_dtypes.join(", ")
    );
    let mut lines = vec![
        ("family", c.family.to_owned()),
        ("parameters", thousands(report.parameters)),
        ("weights", weights),
        ("layers", c.n_layers.to_string()),
        ("d_model", c.d_model.to_string()),
        ("attention", heads),
        (mlp, format!("{}{} wide, {}", experts(c), c.mlp.d_mlp, json_name(&c.mlp.activation))),
        ("norm", format!("{}, eps {:e}", norm_name(c.norm), c.norm.eps())),
        ("position", position_name(&c.position, c.d_head)),
        ("vocabulary", thousands(c.vocab_size as u64)),
        ("context", thousands(c.context_length as u64)),
    ];
    lines.extend(report.peculiarities.iter().map(|p| (p.what, p.value.clone())));
    lines
}

/// One row a site, with the layers that have it in braces.
fn print_short_hooks(config: &ModelConfig, ui: &Ui) -> Result<()> {
    let mut table = Table::new(&["hook point", "shape", ">values a token"]);
    for (name, site) in names(config) {
        let row = hook_row(name, site, config);
        table.row(vec![row.name, row.shape, row.width.map_or("-".to_owned(), |w| thousands(w as u64))]);
    }
    ui.out(table)?;
    ui.out(paint(DIM, "b sequences, s positions, S positions with cached ones; --hooks says what each point is"))
}

/// Every site with its shape in letters and numbers, meaning and condition, then those that the model lacks.
fn print_hooks(config: &ModelConfig, ui: &Ui) -> Result<()> {
    let mut table = Table::new(&["hook point", "axes", "shape", "what it is", "fires in"]);
    for (name, site) in names(config) {
        let HookRow { name, shape, axes, width: _, meaning, condition } = hook_row(name, site, config);
        let condition = if condition.is_empty() { "all models" } else { condition };
        table.row(vec![name, axes, shape, meaning.into(), condition.into()]);
    }
    ui.out(table)?;
    let lacking: Vec<Site> = Site::ALL.iter().copied().filter(|site| !site.exists_in(config)).collect();
    if !lacking.is_empty() {
        let mut table = Table::new(&["not in this model", "axes", "what it is", "fires in"]);
        for site in lacking {
            let cells =
                [site.name().to_owned(), site.axes().to_string(), site.meaning().into(), site.condition().into()];
            table.row(cells.to_vec());
        }
        ui.out("")?;
        ui.out(table)?;
    }
    ui.out("")?;
    for (letter, axis) in LETTERS {
        let number = value_of(letter, config).map_or(String::new(), |n| format!(" = {n}"));
        ui.out(paint(DIM, format!("{letter}{number}: {}", axis.replace('`', ""))))?;
    }
    Ok(())
}

/// The sites of a model, each under a name that covers all its layers.
fn names(config: &ModelConfig) -> Vec<(String, Site)> {
    let all = HookPoint::all(config);
    let named = Site::ALL.iter().filter(|site| site.exists_in(config)).map(|&site| {
        let layers: Vec<usize> = all.iter().filter(|p| p.site == site).filter_map(|p| p.layer).collect();
        let prefix = match (site.scope(), layers.as_slice()) {
            (Scope::Block, [first, .., last]) if last - first + 1 == layers.len() => {
                format!("blocks.{{{first}..{last}}}.")
            }
            (Scope::Block, [only]) => format!("blocks.{only}."),
            (Scope::Block, _) => {
                let listed: Vec<String> = layers.iter().map(ToString::to_string).collect();
                format!("blocks.{{{}}}.", listed.join(","))
            }
            _ => String::new(),
        };
        (format!("{prefix}{}", site.name()), site)
    });
    named.collect()
}

/// The number that a letter of a shape stands for, where the model fixes it.
fn value_of(letter: &str, config: &ModelConfig) -> Option<usize> {
    match letter {
        "d" => Some(config.d_model),
        "m" => Some(config.mlp.d_mlp),
        "v" => Some(config.vocab_size),
        "H" => Some(config.n_heads),
        "K" => Some(config.n_key_value_heads),
        "h" => Some(config.d_head),
        "E" => config.mlp.experts.map(|experts| experts.count),
        "k" => config.mlp.experts.map(|experts| experts.active),
        _ => None,
    }
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
