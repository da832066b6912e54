//! Causal attention in one sweep: scores, mask, softmax and weighted values of 32 queries at a time, so that no matrix
//! of all scores is ever stored.

use std::ops::Range;

use super::bf16::{Kernel, Packed, Part, Rows, as_unset, panel};
use super::gemm::{Matrix, multiply_here};
use super::vector::{add_scaled, dot};
use super::{lanes, threads};

/// Queries of one task.
const QUERIES: usize = 32;
/// Queries up to which dot products beat packing the keys.
const FEW_QUERIES: usize = 4;

/// What attends to what. The last `s` of the `total` keys belong to the queries' own positions.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Queries `[b, s, H, h]`.
    pub q: &'a [f32],
    /// Keys `[b, S, K, h]`; query head `i` uses key head `i · K / H`.
    pub k: &'a [f32],
    /// Values `[b, S, K, h]`.
    pub v: &'a [f32],
    /// Sequences, `b`.
    pub sequences: usize,
    /// Query positions, `s`.
    pub positions: usize,
    /// Key positions, `S`.
    pub total: usize,
    /// Query heads, `H`.
    pub heads: usize,
    /// Key heads, `K`.
    pub kv_heads: usize,
    /// Width of a head, `h`.
    pub d_head: usize,
    /// Multiplies every score.
    pub scale: f32,
    /// `cap · tanh(score / cap)` after scaling.
    pub soft_cap: Option<f32>,
    /// Keys a query sees, itself included.
    pub window: Option<usize>,
    /// Added to the scores after that, `[H, S]`, for models with position biases (Press et al. 2022).
    pub bias: Option<&'a [f32]>,
    /// Whether products round their inputs to bf16.
    pub bf16: bool,
}

/// Keys and values of one head of one sequence, as products take them.
enum Memory {
    Packed { keys: Packed, values: Packed },
    InPlace,
}

/// One block of queries with the part of the result that it makes.
struct Task<'a> {
    sequence: usize,
    first: usize,
    out: &'a mut [f32],
}

/// Weighted values `[b, s, H, h]`: `softmax(scale · q kᵀ) v` over the keys that each query may see.
///
/// # Panics
/// When slices are shorter than their shapes: a defect of the caller.
pub fn attend(x: &Attention<'_>) -> Vec<f32> {
    let width = x.heads * x.d_head;
    assert_eq!(x.q.len(), x.sequences * x.positions * width, "queries [b, s, H, h]");
    assert_eq!(x.k.len(), x.sequences * x.total * x.kv_heads * x.d_head, "keys [b, S, K, h]");
    assert_eq!(x.v.len(), x.k.len(), "values [b, S, K, h]");
    assert!(x.positions <= x.total && x.heads.is_multiple_of(x.kv_heads), "queries among the keys");
    let mut out = vec![0.0; x.q.len()];
    if out.is_empty() {
        return out;
    }
    let packed = x.bf16 && x.positions > FEW_QUERIES;
    let memories = threads::map(threads::pieces(x.sequences * x.kv_heads, 1), |range| {
        range.map(|i| if packed { x.pack(i / x.kv_heads, i % x.kv_heads) } else { Memory::InPlace }).collect::<Vec<_>>()
    });
    let memories: Vec<Memory> = memories.into_iter().flatten().collect();
    let mut tasks: Vec<Task<'_>> = Vec::new();
    for (sequence, out) in out.chunks_exact_mut(x.positions * width).enumerate() {
        for (block, out) in out.chunks_mut(QUERIES * width).enumerate() {
            tasks.push(Task { sequence, first: block * QUERIES, out });
        }
    }
    threads::split_mut(&mut tasks, 1, |_, tasks| {
        for task in tasks {
            let memories = &memories[task.sequence * x.kv_heads..(task.sequence + 1) * x.kv_heads];
            if x.positions <= FEW_QUERIES {
                x.few(task);
            } else {
                x.block(task, memories);
            }
        }
    });
    out
}

impl Attention<'_> {
    fn pack(&self, sequence: usize, head: usize) -> Memory {
        let rows =
            |x: &[f32]| Rows::round_strided(&x[self.key(sequence, 0, head)..], self.total, self.d_head, self.row());
        Memory::Packed { keys: Packed::transposed(&rows(self.k)), values: Packed::of(&rows(self.v)) }
    }

    /// Floats from one key position to the next.
    fn row(&self) -> usize {
        self.kv_heads * self.d_head
    }

    /// Where a key begins.
    fn key(&self, sequence: usize, position: usize, head: usize) -> usize {
        ((sequence * self.total + position) * self.kv_heads + head) * self.d_head
    }

    /// The keys that query `i` sees.
    fn visible(&self, i: usize) -> Range<usize> {
        let own = self.total - self.positions + i;
        let first = self.window.map_or(0, |window| (own + 1).saturating_sub(window));
        first..own + 1
    }

    /// Scores of keys `first..` to unnormalised probabilities; returns their sum.
    fn weigh(&self, scores: &mut [f32], first: usize, head: usize) -> f32 {
        if let Some(cap) = self.soft_cap {
            lanes::soft_cap(scores, cap);
        }
        if let Some(bias) = self.bias {
            add_scaled(scores, 1.0, &bias[head * self.total + first..]);
        }
        lanes::exponentials(scores)
    }

    /// The task's queries, those of all heads that share a key head together: each key is loaded for all of them.
    fn block(&self, task: &mut Task<'_>, memories: &[Memory]) {
        let (width, group) = (self.heads * self.d_head, self.heads / self.kv_heads);
        let positions = task.out.len() / width;
        let rows = group * positions;
        // Parts of a packed product begin at whole tiles.
        let first = self.visible(task.first).start / QUERIES * QUERIES;
        let last = self.visible(task.first + positions - 1).end;
        let keys = last - first;
        let (mut scores, mut z) = (vec![0.0; rows * keys], vec![0.0; rows * self.d_head]);
        let mut pattern = Rows::unset(rows, last);
        for (kv_head, memory) in memories.iter().enumerate() {
            let queries = self.queries(task, kv_head * group..(kv_head + 1) * group);
            self.scores(&queries, (task.sequence, kv_head), memory, first..last, &mut scores);
            let mut sums = Vec::with_capacity(rows);
            for (i, row) in scores.chunks_exact_mut(keys).enumerate() {
                let seen = self.visible(task.first + i % positions);
                let (seen, start) = (seen.start - first..seen.end - first, seen.start);
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                sums.push(self.weigh(&mut row[seen], start, kv_head * group + i / positions));
            }
            match memory {
                Memory::Packed { values, .. } => {
                    for (i, row) in scores.chunks_exact(keys).enumerate() {
                        lanes::round(row, &mut pattern.row_mut(i)[first..]);
                    }
                    let part = Part { rows: 0..rows, columns: 0..self.d_head, k: first..last, cut: false };
                    panel(Kernel::best(), as_unset(&mut z), self.d_head, &pattern, values, part, false);
                }
                Memory::InPlace => {
                    let values = &self.v[self.key(task.sequence, first, kv_head)..];
                    let values = Matrix::strided(values, keys, self.d_head, self.row());
                    multiply_here(&mut z, Matrix::new(&scores, rows, keys), values, false);
                }
            }
            for ((i, z), sum) in z.chunks_exact(self.d_head).enumerate().zip(sums) {
                let at = (i % positions) * width + (kv_head * group + i / positions) * self.d_head;
                let factor = 1.0 / sum;
                task.out[at..at + self.d_head].iter_mut().zip(z).for_each(|(out, z)| *out = z * factor);
            }
        }
    }

    /// Scaled queries of some heads, head by head, `[heads · positions, h]`.
    fn queries(&self, task: &Task<'_>, heads: Range<usize>) -> Vec<f32> {
        let width = self.heads * self.d_head;
        let positions = task.out.len() / width;
        let start = (task.sequence * self.positions + task.first) * width;
        let mut queries = Vec::with_capacity(heads.len() * positions * self.d_head);
        for head in heads {
            for row in self.q[start..].chunks(width).take(positions) {
                queries.extend(row[head * self.d_head..][..self.d_head].iter().map(|q| q * self.scale));
            }
        }
        queries
    }

    /// Scores of scaled queries with keys of one head.
    fn scores(
        &self,
        queries: &[f32],
        (sequence, kv_head): (usize, usize),
        memory: &Memory,
        keys: Range<usize>,
        scores: &mut [f32],
    ) {
        let rows = queries.len() / self.d_head;
        match memory {
            Memory::Packed { keys: packed, .. } => {
                let queries = Rows::round(queries, rows, self.d_head);
                let part = Part { rows: 0..rows, columns: keys.clone(), k: 0..self.d_head, cut: false };
                panel(Kernel::best(), as_unset(scores), keys.len(), &queries, packed, part, false);
            }
            Memory::InPlace => {
                let right = &self.k[self.key(sequence, keys.start, kv_head)..];
                let right = Matrix::strided(right, keys.len(), self.d_head, self.row()).t();
                multiply_here(scores, Matrix::new(queries, rows, self.d_head), right, false);
            }
        }
    }

    /// One query after the other, by dot products.
    fn few(&self, task: &mut Task<'_>) {
        let width = self.heads * self.d_head;
        let mut scores = Vec::new();
        for (i, out) in task.out.chunks_exact_mut(width).enumerate() {
            let seen = self.visible(task.first + i);
            let query = &self.q[(task.sequence * self.positions + task.first + i) * width..][..width];
            for (head, (query, out)) in
                query.chunks_exact(self.d_head).zip(out.chunks_exact_mut(self.d_head)).enumerate()
            {
                let at = |j: usize| self.key(task.sequence, j, head * self.kv_heads / self.heads);
                scores.clear();
                scores.extend(seen.clone().map(|j| dot(query, &self.k[at(j)..][..self.d_head]) * self.scale));
                let sum = self.weigh(&mut scores, seen.start, head);
                for (j, score) in seen.clone().zip(&scores) {
                    add_scaled(out, *score, &self.v[at(j)..][..self.d_head]);
                }
                lanes::scale(out, 1.0 / sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::gemm::tests::numbers;

    /// What [`attend`] must equal, in f64.
    fn naive(x: &Attention<'_>) -> Vec<f64> {
        let mut out = Vec::new();
        for b in 0..x.sequences {
            for i in 0..x.positions {
                for head in 0..x.heads {
                    let kv = head / (x.heads / x.kv_heads);
                    let query = &x.q[((b * x.positions + i) * x.heads + head) * x.d_head..][..x.d_head];
                    let own = x.total - x.positions + i;
                    let seen: Vec<usize> =
                        (0..x.total).filter(|&j| j <= own && x.window.is_none_or(|w| j + w > own)).collect();
                    let score = |j: usize| {
                        let key = &x.k[((b * x.total + j) * x.kv_heads + kv) * x.d_head..][..x.d_head];
                        let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                        let scaled = dot * f64::from(x.scale);
                        let capped = x.soft_cap.map_or(scaled, |c| f64::from(c) * (scaled / f64::from(c)).tanh());
                        capped + x.bias.map_or(0.0, |bias| f64::from(bias[head * x.total + j]))
                    };
                    let weights: Vec<f64> = seen.iter().map(|&j| score(j).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..x.d_head {
                        let value = |j: usize| f64::from(x.v[((b * x.total + j) * x.kv_heads + kv) * x.d_head + d]);
                        out.push(seen.iter().zip(&weights).map(|(&j, w)| w * value(j)).sum::<f64>() / total);
                    }
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn the_sweep_equals_the_definition(
            sequences in 1usize..3, positions in 1usize..75, before in 0usize..40, group in 1usize..4,
            kv_heads in 1usize..3, d_head in 1usize..40, window in 0usize..50, extras in 0u8..4, bf16 in any::<bool>(),
        ) {
            let (total, heads) = (positions + before, group * kv_heads);
            let q = numbers(sequences * positions * heads * d_head, "q");
            let k = numbers(sequences * total * kv_heads * d_head, "k");
            let v = numbers(k.len(), "v");
            let bias = numbers(heads * total, "bias");
            let x = Attention {
                q: &q, k: &k, v: &v, sequences, positions, total, heads, kv_heads, d_head,
                scale: 0.7,
                soft_cap: (extras & 1 == 1).then_some(1.5),
                window: (window > 0).then_some(window),
                bias: (extras & 2 == 2).then_some(&bias),
                bf16,
            };
            let tolerance = if bf16 { 2e-2 } else { 2e-6 };
            for (fast, naive) in attend(&x).iter().zip(naive(&x)) {
                prop_assert!((f64::from(*fast) - naive).abs() < tolerance, "{fast} {naive}");
            }
        }
    }
}
