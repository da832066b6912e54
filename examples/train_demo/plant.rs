//! Concepts planted in the residual stream, so that the inside of the built-in model is known.
//!
//! ```text
//! blocks.1.hook_resid_post ≈ Σ direction[concept] over the concepts active there + direction[word]
//! ```
//!
//! Trained on next tokens alone, a model this small mixes its concepts, and nobody can say what a dictionary should have
//! found. So each concept of `demo::concepts` has a direction, and the distance of the stream from the sum of those
//! active is part of the loss. Words that name nothing have a direction of their own, for the blocks above need them.
//! The idea is that of `InterpBench` (Gupta et al. 2024, <https://arxiv.org/abs/2407.14494>): a model trained to have a
//! mechanism that is known beforehand. Whether the model's answers then depend on it is for interventions to show.

use std::collections::BTreeSet;

use candle_core::{DType, Device, Tensor, Var};
use mechinterp::base::Result;
use mechinterp::base::rng::stream;
use mechinterp::demo::{ConceptKind, Labeller, Vocabulary, World};
use rand::Rng;

/// Where the concepts are planted.
pub(super) const HOOK: &str = "blocks.1.hook_resid_post";
/// Length of the direction of a word that names nothing.
const WORD: f32 = 0.7;
/// Steps and rate of pushing the directions apart.
const SPREAD: (usize, f64) = (200, 0.05);

/// What the stream should hold.
pub(super) struct Plant {
    labeller: Labeller,
    /// `[concepts + words, d]`.
    directions: Vec<f32>,
    width: usize,
    /// For each token the direction of its word, if it names nothing.
    words: Vec<Option<usize>>,
}

impl Plant {
    pub(super) fn new(world: &World, vocabulary: &Vocabulary, width: usize, seed: u64) -> Result<Self> {
        let labeller = Labeller::new(world, vocabulary);
        let concepts = labeller.concepts().len();
        let names = labeller.concepts().iter().filter(|c| matches!(c.kind, ConceptKind::Entity(_)));
        let names: BTreeSet<u32> = names.flat_map(|c| &c.words).filter_map(|word| vocabulary.id(word)).collect();
        let mut used = concepts;
        let mut word = |token: u32| {
            let own = !names.contains(&token);
            used += usize::from(own);
            own.then(|| used - 1)
        };
        let words: Vec<Option<usize>> = (0..vocabulary.len() as u32).map(&mut word).collect();
        let directions = directions(used, width, seed)?;
        Ok(Self { labeller, directions, width, words })
    }

    /// Mean squared distance of the stream, `[batch, length, d]`, from what it should hold, over the mean square of that.
    pub(super) fn loss(&self, stream: &Tensor, inputs: &[u32], length: usize) -> Result<Tensor> {
        let mut target = vec![0.0; inputs.len() * self.width];
        for (row, tokens) in inputs.chunks_exact(length).enumerate() {
            let labels = self.labeller.label(tokens);
            for (i, &token) in tokens.iter().enumerate() {
                let here = &mut target[(row * length + i) * self.width..][..self.width];
                let mut add = |which: usize, scale: f32| {
                    let direction = &self.directions[which * self.width..][..self.width];
                    here.iter_mut().zip(direction).for_each(|(x, d)| *x += scale * d);
                };
                labels.at(i).iter().for_each(|&concept| add(concept as usize, 1.0));
                if let Some(word) = self.words[token as usize] {
                    add(word, WORD);
                }
            }
        }
        let shape = (inputs.len(), self.width);
        let target = Tensor::from_vec(target, shape, stream.device())?;
        let distance = (stream.reshape(shape)? - &target)?.sqr()?;
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
