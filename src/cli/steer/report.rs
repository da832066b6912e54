//! What `steer` found, as JSON, as lines of a file, and on the terminal.

use std::path::Path;

use serde::Serialize;

use crate::analysis::Intervention;
use crate::analysis::steer::{Measures, ProbabilityChange, PromptSweep, SteerResult, Written, summary};
use crate::base::Result;
use crate::cli::render::{BOLD, DIM, GREEN, RED, Table, Ui, columns, paint, quoted, side_by_side, wrap};
use crate::data::Tokenizer;
use crate::web::steer_report::{self, PromptTexts, SteerReport, Step};
use crate::web::text::short;

use super::change::Operation;

/// Prompts whose texts are printed; of more, the table alone.
const PROMPTS_IN_FULL: usize = 4;

/// One prompt at one strength.
#[derive(Serialize)]
pub(super) struct One<'a> {
    prompt: &'a str,
    edits: Vec<String>,
    concepts: Vec<String>,
    unsteered: String,
    steered: String,
    gained: Vec<Change>,
    lost: Vec<Change>,
    result: &'a SteerResult,
}

#[derive(Serialize)]
struct Change {
    token: String,
    before: f32,
    after: f32,
}

impl<'a> One<'a> {
    pub(super) fn new(
        prompt: &'a str,
        edits: Vec<String>,
        concepts: Vec<String>,
        result: &'a SteerResult,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let change =
            |c: &ProbabilityChange| Change { token: tokenizer.piece(c.token), before: c.before, after: c.after };
        Ok(Self {
            prompt,
            edits,
            concepts,
            unsteered: tokenizer.decode(&result.unsteered)?,
            steered: tokenizer.decode(&result.steered)?,
            gained: result.gained.iter().map(change).collect(),
            lost: result.lost.iter().map(change).collect(),
            result,
        })
    }

    pub(super) fn print(&self, tokenizer: &Tokenizer, ui: &Ui) -> Result<()> {
        ui.out(format!("{} {}", paint(DIM, "prompt"), self.prompt))?;
        for (i, edit) in self.edits.iter().enumerate() {
            ui.out(format!("{} {edit}  {}", paint(DIM, "change"), paint(DIM, self.before(i, tokenizer))))?;
        }
        ui.out("")?;
        ui.out(side_by_side(("unsteered", &self.unsteered), ("steered", &self.steered), columns()))?;
        ui.out("")?;
        let rows = [("unsteered".to_owned(), &self.result.before), ("steered".to_owned(), &self.result.after)];
        ui.out(measures("text", &self.concepts, &rows))?;
        ui.out("")?;
        let mut table = Table::new(&["next token", ">before", ">after", ""]);
        for (list, style, arrow) in [(&self.gained, GREEN, "▲"), (&self.lost, RED, "▼")] {
            for change in list {
                table.row(vec![
                    paint(BOLD, quoted(&change.token)),
                    format!("{:.2} %", change.before * 100.0),
                    format!("{:.2} %", change.after * 100.0),
                    paint(style, arrow),
                ]);
            }
        }
        ui.out(table)
    }

    /// How much of what edit `i` turns there was on the prompt.
    fn before(&self, i: usize, tokenizer: &Tokenizer) -> String {
        let values = self.result.activations.iter().map(|row| row.get(i).copied().unwrap_or_default());
        match values.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) {
            Some((at, value)) if value > 0.0 => {
                let token = self.result.compared.get(at).map(|&t| quoted(&tokenizer.piece(t))).unwrap_or_default();
                format!("before: at most {value:.2} on the prompt, on {token}")
            }
            _ => "before: silent on the prompt".into(),
        }
    }
}

/// One text of a sweep.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    prompt_index: usize,
    prompt: String,
    /// Absent for the unsteered text, and where the operation has no strength.
    strength: Option<f32>,
    /// What was changed; nothing for the unsteered text.
    edits: Vec<String>,
    text: String,
    #[serde(flatten)]
    written: Written,
}

/// Several prompts or strengths.
#[derive(Debug, Serialize)]
pub(super) struct SweepReport {
    operation: &'static str,
    concepts: Vec<String>,
    /// The mean over prompts, unsteered first.
    strengths: Vec<Tried>,
    texts: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Tried {
    #[serde(skip)]
    label: String,
    strength: Option<f32>,
    edits: Vec<String>,
    #[serde(flatten)]
    measures: Measures,
}

impl SweepReport {
    pub(super) fn new(operation: &Operation, concepts: Vec<String>, interventions: &[Intervention]) -> Self {
        let unsteered =
            Tried { label: "unsteered".into(), strength: None, edits: Vec::new(), measures: Measures::default() };
        let steered = operation.strengths().into_iter().zip(interventions).map(|(strength, intervention)| Tried {
            label: strength.map_or_else(|| "steered".into(), |v| v.to_string()),
            strength,
            edits: intervention.describe(),
            measures: Measures::default(),
        });
        let strengths = std::iter::once(unsteered).chain(steered).collect();
        Self { operation: operation.title(), concepts, strengths, texts: Vec::new() }
    }

    /// Takes the texts of a prompt and gives their lines.
    pub(super) fn take(
        &mut self,
        prompt_index: usize,
        prompt: &str,
        texts: &PromptSweep,
        decode: impl Fn(&[u32]) -> Result<String>,
    ) -> Result<&[Line]> {
        let first = self.texts.len();
        for (step, written) in self.strengths.iter().zip(std::iter::once(&texts.unsteered).chain(&texts.steered)) {
            self.texts.push(Line {
                prompt_index,
                prompt: prompt.into(),
                strength: step.strength,
                edits: step.edits.clone(),
                text: decode(&written.tokens)?,
                written: written.clone(),
            });
        }
        Ok(self.texts.get(first..).unwrap_or_default())
    }

    pub(super) fn lines(&self) -> &[Line] {
        &self.texts
    }

    /// Computes the means over prompts.
    pub(super) fn finish(&mut self) {
        let n = self.strengths.len();
        for (i, step) in self.strengths.iter_mut().enumerate() {
            step.measures = summary(self.texts.iter().skip(i).step_by(n).map(|line| &line.written));
        }
    }

    pub(super) fn print(&self, ui: &Ui) -> Result<()> {
        let rows: Vec<(String, &Measures)> = self.strengths.iter().map(|s| (s.label.clone(), &s.measures)).collect();
        let prompts = self.texts.len() / self.strengths.len().max(1);
        if prompts > 1 {
            ui.out(paint(DIM, format!("mean over {prompts} prompts")))?;
        }
        ui.out(measures(self.operation, &self.concepts, &rows))?;
        ui.out(paint(DIM, wrap(steer_report::LEGEND, columns()).join("\n")))?;
        if prompts > PROMPTS_IN_FULL {
            ui.say("the texts of so many prompts are not printed: --out FILE.jsonl or --html FILE keeps them");
            return Ok(());
        }
        for lines in self.texts.chunks(self.strengths.len().max(1)) {
            let prompt = lines.first().map_or("", |line| line.prompt.as_str());
            ui.out(format!("\n{} {prompt}", paint(DIM, "prompt")))?;
            for (step, line) in self.strengths.iter().zip(lines) {
                let label = step.strength.map_or(step.label.clone(), |v| format!("{} {v}", self.operation));
                ui.out(format!("\n{}", paint(BOLD, label)))?;
                for line in wrap(line.text.trim(), columns().saturating_sub(2).max(20)) {
                    ui.out(format!("  {line}"))?;
                }
            }
        }
        Ok(())
    }

    /// What the page and the picture show.
    pub(super) fn page(&self, model: &str, sae: Option<&Path>) -> SteerReport {
        let n = self.strengths.len().max(1);
        let mut facts = vec![format!("model {}", short(model))];
        facts.extend(sae.map(|dir| format!("dictionary {}", short(&dir.to_string_lossy()))));
        facts.push(match self.texts.len() / n {
            1 => "1 prompt".into(),
            several => format!("{several} prompts"),
        });
        let steps = self.strengths.iter().map(|step| Step {
            label: step.label.clone(),
            value: step.strength.map(f64::from),
            measures: step.measures.clone(),
        });
        let prompts = self.texts.chunks(n).map(|lines| PromptTexts {
            prompt: lines.first().map(|line| line.prompt.clone()).unwrap_or_default(),
            texts: lines.iter().map(|line| (line.text.clone(), line.written.measures.clone())).collect(),
        });
        SteerReport {
            operation: self.operation.into(),
            concepts: self.concepts.clone(),
            facts,
            steps: steps.collect(),
            prompts: prompts.collect(),
        }
    }
}

/// The measures of several texts or strengths.
fn measures(first: &str, concepts: &[String], rows: &[(String, &Measures)]) -> Table {
    let names: Vec<String> = concepts.iter().map(|name| format!(">{name}")).collect();
    let mut head = vec![first];
    head.extend(names.iter().map(String::as_str));
    head.extend([">KL", ">perplexity", ">repetition"]);
    let mut table = Table::new(&head);
    for (label, measures) in rows {
        let mut cells = vec![paint(BOLD, label)];
        cells.extend(steer_report::figures(measures, concepts.len()));
        table.row(cells);
    }
    table
}
