//! `mechinterp heads`

use std::path::PathBuf;

use serde::Serialize;

use crate::analysis::heads::{HeadScores, HeadSettings, Score, head_scores, texts};
use crate::base::Result;
use crate::base::artifact::write_atomic;
use crate::web::heatmap::{Cell, Heatmap, Scale};
use crate::web::page;
use crate::web::text::short;

use super::open;
use super::prompts::ReadingArgs;
use super::render::{DIM, Table, Ui, columns, paint};
use super::{Common, Outcome, heatmap};

/// The kinds of heads, with what they attend to.
const KINDS: [(Kind, &str, &str); 3] = [
    (Kind::Induction, "induction", "to the token after the previous occurrence of the present one"),
    (Kind::Previous, "previous token", "to the token before"),
    (Kind::Duplicate, "duplicate token", "to the previous occurrence of the present token"),
];

/// Arguments of `heads`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Hugging Face directory, hub id, `.gguf` file, or `demo`.
    model: String,
    /// Random tokens, which are repeated once.
    #[arg(long, value_name = "N", default_value_t = 50)]
    length: usize,
    /// Texts to average over.
    #[arg(long, value_name = "N", default_value_t = 10)]
    texts: usize,
    /// Seed of the tokens.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Score by the share of a head's attention that goes where such a head looks, as TransformerLens' `detect_head`
    /// does, instead of the mean attention along the diagonal.
    #[arg(long)]
    share: bool,
    /// Heads to list of each kind.
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// Show scores of all heads, not the best alone.
    #[arg(long)]
    all: bool,
    /// Also write a page that opens offline.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Induction,
    Previous,
    Duplicate,
}

impl Kind {
    fn of(self, scores: &HeadScores) -> Score {
        match self {
            Self::Induction => scores.induction,
            Self::Previous => scores.previous,
            Self::Duplicate => scores.duplicate,
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    settings: &'a HeadSettings,
    texts: &'a [Vec<u32>],
    heads: &'a [HeadScores],
}

pub(super) fn run(args: Args, common: &Common, ui: &Ui) -> Result<Outcome> {
    if let Some(html) = &args.html {
        open::check_writable(html)?;
    }
    let opened = open::open(&args.model, args.reading.dtype, common.device, ui)?;
    let config = opened.model.config();
    let special = opened.tokenizer.special_ids();
    let size = opened.tokenizer.vocab_size().min(config.vocab_size) as u32;
    let bos = args.reading.bos();
    let settings = HeadSettings {
        length: args.length,
        texts: args.texts,
        seed: args.seed,
        bos: opened.tokenizer.prefix(bos),
        vocabulary: (0..size).filter(|id| !special.contains(id)).collect(),
    };
    let made = texts(&settings, config.context_length)?;
    let scores = head_scores(&opened.model, &made, settings.length, ui.progress())?;
    let maps = KINDS.map(|(kind, name, looks)| map(&scores, kind, (name, looks), args.share, config.n_heads));
    if let Some(html) = &args.html {
        let facts = [
            format!("{} texts of {} random tokens, twice", args.texts, args.length),
            format!("seed {}", args.seed),
            format!("{} layers of {} heads", config.n_layers, config.n_heads),
        ];
        let mut body = vec![page::header("mechinterp heads", short(&args.model), &facts)];
        body.extend(maps.iter().map(|map| page::section(&map.title, "", [map.framed()])));
        body.push(page::footer());
        write_atomic(html, page::html(&format!("Heads of {}", short(&args.model)), body).as_bytes())?;
        ui.say(format!("wrote {}", html.display()));
    }
    if ui.json() {
        ui.out_json(&Report { model: &args.model, settings: &settings, texts: &made, heads: &scores })?;
    } else {
        print(&args, &scores, &maps, ui)?;
    }
    Ok(Outcome::Done)
}

fn value(score: Score, share: bool) -> f64 {
    if share { score.share } else { score.stripe }
}

fn print(args: &Args, scores: &[HeadScores], maps: &[Heatmap], ui: &Ui) -> Result<()> {
    for map in maps {
        heatmap::show(map, columns(), ui)?;
        ui.out("")?;
    }
    let kinds = KINDS.map(|(kind, ..)| kind);
    let score = |head: &HeadScores, kind: Kind| format!("{:.3}", value(kind.of(head), args.share));
    if args.all {
        let mut table = Table::new(&["head", ">induction", ">previous token", ">duplicate token"]);
        for head in scores {
            let cells = kinds.map(|kind| score(head, kind));
            table.row([format!("{}.{}", head.layer, head.head)].into_iter().chain(cells).collect());
        }
        return ui.out(table);
    }
    let mut table = Table::new(&["kind", "head", ">score", "attends"]);
    for (kind, name, looks) in KINDS {
        let mut best: Vec<&HeadScores> = scores.iter().collect();
        best.sort_by(|a, b| value(kind.of(b), args.share).total_cmp(&value(kind.of(a), args.share)));
        for (i, head) in best.into_iter().take(args.top).enumerate() {
            let (name, looks) = if i == 0 { (name, looks) } else { ("", "") };
            let at = format!("{}.{}", head.layer, head.head);
            table.row(vec![name.into(), at, score(head, kind), paint(DIM, looks)]);
        }
    }
    ui.out(table)
}

fn map(scores: &[HeadScores], kind: Kind, (name, looks): (&str, &str), share: bool, n_heads: usize) -> Heatmap {
    let cell = |head: &HeadScores| {
        let score = kind.of(head);
        let own = value(score, share);
        Cell {
            value: Some(own),
            text: format!("{own:.2}"),
            details: format!(
                "head {}.{}\nmean attention along the diagonal {:.4}\nshare of all attention {:.4}",
                head.layer, head.head, score.stripe, score.share
            ),
        }
    };
    let measure = if share { "share of attention that goes" } else { "mean attention" };
    let rows = scores.chunks(n_heads.max(1));
    Heatmap {
        title: format!("{name} heads"),
        meaning: format!("{measure} {looks}"),
        x: "head".into(),
        y: "layer".into(),
        columns: (0..n_heads).map(|head| (head.to_string(), String::new())).collect(),
        rows: (0..rows.len()).map(|layer| layer.to_string()).collect(),
        cells: rows.map(|row| row.iter().map(cell).collect()).collect(),
        scale: Scale::Sequential { low: 0.0, high: 1.0 },
    }
}
