//! Concepts planted in the residual stream, so that the inside of the built-in model is known.
//!
//! ```text
//! hook_embed               ≈ Σ direction[concept] over what the word names + direction[word]
//! blocks.1.hook_resid_post ≈ Σ direction[concept] over the concepts active there + direction[word], if it names nothing
//! ```
//!
//! Trained on next tokens alone, a model this small mixes its concepts, and nobody can say what a dictionary should have
//! found. So each concept of `demo::concepts` has a direction, and the distance of the stream from the sum of those
//! active is part of the loss. Words have a direction of their own, for the blocks above need them. What a sentence is
//! about is not in the embedding: that Marseille lies in France is for the blocks between the two points to work out.
//! The idea is that of `InterpBench` (Gupta et al. 2024, <https://arxiv.org/abs/2407.14494>): a model trained to have a
//! mechanism that is known beforehand. Whether the model's answers then depend on it is for interventions to show.

use candle_core::{DType, Device, Tensor, Var};
use mechinterp::base::Result;
use mechinterp::base::rng::stream;
use mechinterp::demo::{ConceptId, ConceptKind, Labeller, Vocabulary, World};
use rand::Rng;

/// Where words have what they name.
pub(super) const WORDS: &str = "hook_embed";
/// Where positions have what is known there.
pub(super) const SENTENCES: &str = "blocks.1.hook_resid_post";
/// Length of the direction of a word.
const WORD: f32 = 0.7;
/// Steps and rate of pushing the directions apart.
const SPREAD: (usize, f64) = (200, 0.05);

/// What the stream should hold.
pub(super) struct Plant {
    labeller: Labeller,
    /// `[concepts + words, d]`.
    directions: Vec<f32>,
    width: usize,
    /// For each token what its word names.
    named: Vec<Vec<ConceptId>>,
}

impl Plant {
    pub(super) fn new(world: &World, vocabulary: &Vocabulary, width: usize, seed: u64) -> Result<Self> {
        let labeller = Labeller::new(world, vocabulary);
        let mut named = vec![Vec::new(); vocabulary.len()];
        for (id, concept) in (0..).zip(labeller.concepts()) {
            let by_word = matches!(concept.kind, ConceptKind::Entity(_) | ConceptKind::Class | ConceptKind::Relation);
            for token in concept.words.iter().filter(|_| by_word).filter_map(|word| vocabulary.id(word)) {
                named[token as usize].push(id);
            }
        }
        let directions = directions(labeller.concepts().len() + vocabulary.len(), width, seed)?;
        Ok(Self { labeller, directions, width, named })
    }

    /// How far the embedding, `[batch, length, d]`, is from what words name.
    pub(super) fn of_words(&self, stream: &Tensor, inputs: &[u32]) -> Result<Tensor> {
        let mut target = Vec::with_capacity(inputs.len() * self.width);
        for &token in inputs {
            target.extend(self.sum(&self.named[token as usize], Some(token)));
        }
        self.distance(stream, target)
    }

    /// How far the stream, `[batch, length, d]`, is from what is known at each position.
    pub(super) fn of_sentences(&self, stream: &Tensor, inputs: &[u32], length: usize) -> Result<Tensor> {
        let mut target = Vec::with_capacity(inputs.len() * self.width);
        for tokens in inputs.chunks_exact(length) {
            let labels = self.labeller.label(tokens);
            for (i, &token) in tokens.iter().enumerate() {
                let names = self.named[token as usize].iter().map(|&id| &self.labeller.concepts()[id as usize]);
                let nothing = names.into_iter().all(|concept| concept.kind == ConceptKind::Relation);
                target.extend(self.sum(labels.at(i), nothing.then_some(token)));
            }
        }
        self.distance(stream, target)
    }

    /// The sum of directions, `[d]`.
    fn sum(&self, concepts: &[ConceptId], word: Option<u32>) -> Vec<f32> {
        let word = word.map(|token| (self.labeller.concepts().len() + token as usize, WORD));
        let mut sum = vec![0.0; self.width];
        for (which, scale) in concepts.iter().map(|&concept| (concept as usize, 1.0)).chain(word) {
            let direction = &self.directions[which * self.width..][..self.width];
            sum.iter_mut().zip(direction).for_each(|(x, d)| *x += scale * d);
        }
        sum
    }

    /// Mean squared distance over the mean square of the target.
    fn distance(&self, stream: &Tensor, target: Vec<f32>) -> Result<Tensor> {
        let target = Tensor::from_vec(target, ((), self.width), stream.device())?;
        let distance = (stream.reshape(target.shape())? - &target)?.sqr()?;
        Ok((distance.sum_all()? / target.sqr()?.sum_all()?)?)
    }
}

/// Unit vectors far from each other, `[n, d]`: random ones, pushed apart by descent on the fourth powers of their
/// cosines.
fn directions(n: usize, d: usize, seed: u64) -> Result<Vec<f32>> {
    let mut rng = stream(seed, "train-demo/directions");
    // A sum of uniform draws has no preferred axis worth speaking of.
    let draw = |rng: &mut rand_chacha::ChaCha8Rng| (0..12).map(|_| rng.random::<f32>() - 0.5).sum::<f32>();
    let values: Vec<f32> = (0..n * d).map(|_| draw(&mut rng)).collect();
    let unit = |x: &Tensor| -> Result<Tensor> { Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?)?) };
    let all = Var::from_tensor(&unit(&Tensor::from_vec(values, (n, d), &Device::Cpu)?)?)?;
    let (steps, rate) = SPREAD;
    for _ in 0..steps {
        let cosines = all.matmul(&all.t()?)?;
        // d/dx Σ cos⁴ is 8 cos³ · the others; the diagonal pulls along the vector itself, which `unit` undoes.
        let push = (&cosines * cosines.sqr()?)?.matmul(all.as_tensor())?;
        all.set(&unit(&(all.as_tensor() - (push * (rate * 8.0))?)?)?)?;
    }
    Ok(all.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
