//! Documents to batches.

use mechinterp::demo::corpus::Lesson;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Rows that each begin with a document and hold whole documents but for the last.
pub(super) struct Batches<I> {
    pub(super) lessons: I,
    pub(super) rng: ChaCha8Rng,
    pub(super) begin: u32,
    pub(super) end: u32,
}

impl<I: Iterator<Item = Lesson>> Batches<I> {
    /// Inputs and targets, row-major `[tokens / length, length]`, with the targets' weights.
    pub(super) fn next(&mut self, tokens: usize, length: usize, chance_weight: f32) -> (Vec<u32>, Vec<u32>, Vec<f32>) {
        let (mut inputs, mut targets, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..tokens / length {
            let (row, row_weights) = self.row(length + 1, chance_weight);
            inputs.extend_from_slice(&row[..length]);
            targets.extend_from_slice(&row[1..]);
            weights.extend_from_slice(&row_weights[1..]);
        }
        (inputs, targets, weights)
    }

    fn row(&mut self, length: usize, chance_weight: f32) -> (Vec<u32>, Vec<f32>) {
        let (mut row, mut weights) = (Vec::new(), Vec::new());
        while row.len() < length {
            let Some(lesson) = self.lessons.next() else { break };
            row.push(self.begin);
            row.extend(&lesson.tokens);
            weights.push(chance_weight);
            weights.extend(lesson.answers.iter().map(|&answer| if answer { 1.0 } else { chance_weight }));
            // Both ways of packing documents, with and without an end token, are familiar to the model.
            if self.rng.random_bool(0.5) {
                row.push(self.end);
                weights.push(chance_weight);
            }
        }
        row.truncate(length);
        weights.truncate(length);
        (row, weights)
    }
}
