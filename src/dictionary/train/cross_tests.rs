//! The joint step of a cross-layer transcoder against automatic differentiation of its loss.

use super::tests::{close, methods, same_figures};
use super::*;
use crate::base::DtypeChoice;
use crate::dictionary::train::settings::{TrainArchitecture, TrainSettings};
use crate::dictionary::train::step::Workspace;
use crate::dictionary::train::step::cross::{self, Layer};
use crate::ops::gemm::tests::{numbers, with_threads};

/// A layer with its rows.
struct Example {
    plan: TrainPlan,
    state: State,
    x: Vec<f32>,
    y: Vec<f32>,
}

/// `layers` layers of `f` features from rows of width `d` to rows of width `d_out`.
fn example(settings: &TrainSettings, layers: usize, (d, d_out): (usize, usize), f: usize, n: usize) -> Vec<Example> {
    let settings = TrainSettings { d_sae: Some(f), batch_size: n, steps: Some(10), ..settings.clone() };
    let layer = |i: usize| {
        let plan = settings.plan_transcoder(d, (d_out, layers - i), 1000).unwrap();
        let named = |len: usize, name: &str| numbers(len, &format!("{name} {i}"));
        let mut weights = Parameters::initial(plan.arch, plan.shape(), 0.5, named(d_out, "b_dec"), i as u64);
        weights.w_enc = named(f * d, "w_enc");
        weights.b_enc = named(f, "b_enc");
        for (name, own) in &mut weights.own {
            *own = named(f, name).iter().map(|x| x.abs()).collect();
        }
        let rows = |d: usize, name: &str| named(n * d, name).iter().map(|x| x * 3.0).collect();
        Example { plan, state: State::new(weights), x: rows(d, "x"), y: rows(d_out, "y") }
    };
    (0..layers).map(layer).collect()
}

impl Example {
    fn input<'a>(&'a self, dead: &'a [u32]) -> StepInput<'a> {
        StepInput { x: &self.x, target: Some(&self.y), coefficient: 0.7, exponent: 0.8, dead }
    }
}

/// Reports and gradients of all layers by the sparse step.
fn sparse(examples: &[Example], dead: &[u32], dtype: DtypeChoice) -> Vec<(BatchReport, Parameters)> {
    let mut workspaces: Vec<Workspace> = examples.iter().map(|e| Workspace::new(&e.state.weights, dtype)).collect();
    let mut layers: Vec<Layer<'_>> = examples
        .iter()
        .zip(&mut workspaces)
        .map(|(e, workspace)| Layer { state: &e.state, workspace, plan: &e.plan, input: e.input(dead) })
        .collect();
    let reports = cross::gradients(&mut layers);
    reports.into_iter().zip(workspaces.into_iter().map(|workspace| workspace.gradients)).collect()
}

/// The same by automatic differentiation of the joint loss.
fn twin(examples: &[Example], dead: &[u32]) -> Vec<(BatchReport, Parameters)> {
    let device = Device::Cpu;
    let twins: Vec<DenseState> = examples.iter().map(|e| DenseState::upload(&e.state, &device).unwrap()).collect();
    let d_out = examples[0].state.weights.shape.d_out;
    let n = examples[0].x.len() / examples[0].plan.d_in;
    let inputs: Vec<(Tensor, Tensor, Tensor)> = examples
        .iter()
        .map(|e| {
            let x = Tensor::from_slice(&e.x, (n, e.plan.d_in), &device).unwrap();
            let y = Tensor::from_slice(&e.y, (n, d_out), &device).unwrap();
            (x, y, Tensor::zeros(e.state.weights.shape.decoder, DType::F32, &device).unwrap())
        })
        .collect();
    let batch = |i: usize, target: Tensor| {
        let weights = &twins[i].weights;
        let (w_enc, b_enc, w_dec) = (weights[0].as_tensor(), weights[1].as_tensor(), weights[2].as_tensor());
        let (x, _, zeros) = &inputs[i];
        let pre = x.matmul(&w_enc.t().unwrap()).unwrap().broadcast_add(b_enc).unwrap();
        let norms = w_dec.sqr().unwrap().sum(D::Minus1).unwrap().sqrt().unwrap();
        Batch { target, centered: x.clone(), pre, w_enc, b_enc, w_dec, b_dec: zeros, own: &weights[4..], norms, n }
    };
    let wide = |i: usize| Tensor::zeros((n, (examples.len() - i) * d_out), DType::F32, &device).unwrap();
    let codes: Vec<Tensor> = (0..examples.len())
        .map(|i| batch(i, wide(i)).forward(&examples[i].plan, examples[i].input(&[])).unwrap().z)
        .collect();
    let mut errors: Vec<Tensor> = Vec::new();
    for (l, (_, y, _)) in inputs.iter().enumerate() {
        let mut made = twins[l].weights[3].as_tensor().broadcast_sub(y).unwrap();
        for (i, z) in codes.iter().enumerate().take(l + 1) {
            let decoder = twins[i].weights[2].narrow(1, (l - i) * d_out, d_out).unwrap();
            made = (made + z.matmul(&decoder).unwrap()).unwrap();
        }
        errors.push(made);
    }
    let mut total = Tensor::zeros((), DType::F32, &device).unwrap();
    let mut losses = Vec::new();
    let mut fired = Vec::new();
    for (i, e) in examples.iter().enumerate() {
        let mse = (errors[i].sqr().unwrap().sum_all().unwrap() / n as f64).unwrap();
        // What the dead features are to reconstruct is what all features together leave over.
        let left = Tensor::cat(&errors[i..], 1).unwrap().neg().unwrap().detach();
        let decoded = codes[i].matmul(twins[i].weights[2].as_tensor()).unwrap().detach();
        let forward = batch(i, (left + decoded).unwrap()).forward(&e.plan, e.input(dead)).unwrap();
        let scalar = |t: &Tensor| f64::from(t.to_scalar::<f32>().unwrap());
        let mut loss = Loss { mse: scalar(&mse), ..Loss::default() };
        total = (total + mse).unwrap();
        if let Some(sparsity) = &forward.sparsity {
            loss.sparsity = scalar(sparsity);
            total = (total + (sparsity * 0.7).unwrap()).unwrap();
        }
        for term in &forward.auxiliary {
            loss.auxiliary += scalar(term);
            total = (total + term).unwrap();
        }
        losses.push(loss);
        fired.push(codes[i].ne(0f32).unwrap().to_dtype(DType::F32).unwrap().sum(0).unwrap().to_vec1::<f32>().unwrap());
    }
    let store = total.backward().unwrap();
    let mut found = Vec::new();
    for ((twin, loss), fired) in twins.iter().zip(losses).zip(fired) {
        let gradient = |w: &Var| store.get(w.as_tensor()).cloned().unwrap_or_else(|| w.zeros_like().unwrap());
        let gradients: Vec<Tensor> = twin.weights.iter().map(gradient).collect();
        let squared_gradient =
            gradients.iter().map(|g| f64::from(g.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())).sum();
        let l0 = fired.iter().map(|count| f64::from(*count)).sum::<f64>() / n as f64;
        let fired = fired.into_iter().map(|count| count as u32).collect();
        let report = BatchReport { loss, l0, fired, squared_gradient, least: None };
        found.push((report, twin.fetch(&gradients.iter().collect::<Vec<_>>()).unwrap()));
    }
    found
}

fn cross_layer_methods() -> Vec<TrainSettings> {
    let has = |s: &TrainSettings| !matches!(s.arch, TrainArchitecture::Gated | TrainArchitecture::Matryoshka);
    methods().into_iter().filter(has).collect()
}

#[test]
fn gradients_of_the_joint_loss_equal_automatic_differentiation() {
    for settings in cross_layer_methods() {
        for (layers, widths, f, n) in [(3, (7, 5), 13, 5), (2, (19, 24), 100, 131), (1, (9, 9), 40, 70)] {
            let examples = example(&settings, layers, widths, f, n);
            let dead: Vec<u32> = (0..f as u32).filter(|f| f % 5 == 2).collect();
            let (ours, theirs) = (sparse(&examples, &dead, DtypeChoice::F32), twin(&examples, &dead));
            for (layer, ((report, ours), (expected, theirs))) in ours.iter().zip(&theirs).enumerate() {
                same_figures(report, expected, 1e-4);
                assert_eq!(report.fired, expected.fired);
                for ((name, _, ours), (_, _, theirs)) in ours.tensors().into_iter().zip(theirs.tensors()) {
                    assert!(close(ours, theirs, 2e-4), "{name} of layer {layer} of {layers}, {:?}", settings.arch);
                    assert!(theirs.iter().any(|g| *g != 0.0), "{name} of layer {layer} has a gradient");
                }
            }
        }
    }
}

#[test]
fn bits_of_the_joint_step_do_not_depend_on_the_threads_and_bf16_points_where_f32_does() {
    for settings in cross_layer_methods() {
        let examples = example(&settings, 3, (40, 33), 90, 150);
        let gradients = |threads, dtype| with_threads(threads, || sparse(&examples, &[3, 8], dtype));
        assert_eq!(gradients(1, DtypeChoice::Bf16), gradients(2, DtypeChoice::Bf16));
        let (exact, rounded) = (gradients(2, DtypeChoice::F32), gradients(2, DtypeChoice::Bf16));
        for ((_, exact), (_, rounded)) in exact.iter().zip(&rounded) {
            for ((name, _, a), (_, _, b)) in exact.tensors().into_iter().zip(rounded.tensors()) {
                let cosine = crate::ops::dot(a, b) / (crate::ops::dot(a, a) * crate::ops::dot(b, b)).sqrt();
                assert!(cosine > 0.97, "{name} of {:?}: cosine {cosine}", settings.arch);
            }
        }
    }
}
