//! Whole runs: known features are found, cut-off runs end as whole ones do, failures are clear.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Device;
use rand::Rng;

use super::*;
use crate::base::rng::{self, Permutation};
use crate::base::{Artifact, Error, Progress, Result, Silent, Unit};
use crate::dictionary::{Metadata, io};
use crate::ops::gemm::tests::with_threads;
use crate::ops::{dot, squared_norm};
use crate::store::RowSource;

/// Rows of several hooks in memory, in another order each pass.
pub(super) struct Rows {
    pub(super) data: Vec<Vec<f32>>,
    pub(super) widths: Vec<usize>,
    pub(super) position: u64,
}

impl RowSource for Rows {
    fn widths(&self) -> &[usize] {
        &self.widths
    }

    fn rows(&self) -> u64 {
        (self.data[0].len() / self.widths[0]) as u64
    }

    fn next_batch(&mut self, n: usize, out: &mut [Vec<f32>]) -> Result<()> {
        out.iter_mut().for_each(Vec::clear);
        for _ in 0..n {
            let (pass, i) = (self.position / self.rows(), self.position % self.rows());
            let row = Permutation::new(self.rows(), pass, "rows").at(i) as usize;
            for ((out, data), d) in out.iter_mut().zip(&self.data).zip(&self.widths) {
                out.extend_from_slice(&data[row * d..(row + 1) * d]);
            }
            self.position += 1;
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.position
    }

    fn seek(&mut self, position: u64) -> Result<()> {
        self.position = position;
        Ok(())
    }
}

/// `n` rows that are sums of a few of `f` random unit directions, more directions than dimensions.
fn superposition(d: usize, f: usize, n: usize) -> (Vec<f32>, Rows) {
    let mut random = rng::stream(5, "superposition");
    let mut directions: Vec<f32> = (0..d * f).map(|_| random.random_range(-1.0..1.0)).collect();
    for row in directions.chunks_exact_mut(d) {
        let norm = squared_norm(row).sqrt();
        for x in row {
            *x /= norm;
        }
    }
    let mut data = vec![0.3; n * d];
    for row in data.chunks_exact_mut(d) {
        for direction in directions.chunks_exact(d) {
            if random.random_bool(0.04) {
                let size = random.random_range(2.0..6.0);
                row.iter_mut().zip(direction).for_each(|(x, w)| *x += size * w);
            }
        }
    }
    (directions, Rows { data: vec![data], widths: vec![d], position: 0 })
}

fn held_out(source: &Rows) -> Rows {
    let data = source.data[0][..300 * source.widths[0]].to_vec();
    Rows { data: vec![data], widths: source.widths.clone(), position: 0 }
}

fn run(source: &mut Rows, settings: &TrainSettings, out: &Artifact, progress: &dyn Progress) -> Result<TrainSummary> {
    let mut heldout = held_out(source);
    let metadata = Metadata { hook_name: Some("blocks.0.hook_resid_post".into()), ..Metadata::default() };
    let heldout = Some(&mut heldout as &mut dyn RowSource);
    train(TrainRun { source, heldout, settings, metadata, device: &Device::Cpu, out, progress })
}

/// Says that the user stopped when step `n` is done.
pub(super) struct StopAfter(AtomicU64);

impl StopAfter {
    pub(super) fn new(steps: u64) -> Self {
        Self(steps.into())
    }
}

impl Progress for StopAfter {
    fn begin(&self, _: &str, _: u64, _: Unit) {}
    fn set(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn warn(&self, text: &str) {
        assert!(text.contains("is given up"), "{text}");
    }
    fn end(&self) {}
    fn cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

fn small() -> TrainSettings {
    TrainSettings {
        d_sae: Some(100),
        lr: 1e-2,
        l1_coefficient: Some(30.0),
        l1_warm_up_steps: Some(1),
        batch_size: 16,
        steps: Some(40),
        dead_feature_window: Some(3),
        checkpoint_every: 9,
        log_every: 2,
        ..TrainSettings::default()
    }
}

/// Every architecture with settings for 64 directions of which 2.6 are present in a row, and the share of them that it
/// must find. Matryoshka's narrow level must do with fewer features than there are directions, all equally frequent, so
/// it mixes some of them; that is what nesting costs where the truth has no hierarchy.
fn learners() -> [(&'static str, TrainSettings, f32); 8] {
    use TrainArchitecture::{BatchTopK, Gated, JumpRelu, Matryoshka, TopK};
    let base = TrainSettings {
        d_sae: Some(96),
        lr: 3e-3,
        batch_size: 512,
        steps: Some(800),
        log_every: 100,
        eval_every: Some(800),
        ..TrainSettings::default()
    };
    let relu = TrainSettings { l1_coefficient: Some(1.0), ..base.clone() };
    let of = |arch| TrainSettings { arch, ..base.clone() };
    let tanh = Some(SparsityLoss::Tanh);
    [
        ("relu", relu.clone(), 0.9),
        ("p-annealed relu", TrainSettings { p_end: Some(0.5), ..relu.clone() }, 0.9),
        ("gated", TrainSettings { arch: Gated, ..relu }, 0.9),
        ("topk", TrainSettings { k: Some(4.0), ..of(TopK) }, 0.9),
        ("batchtopk", TrainSettings { k: Some(3.0), ..of(BatchTopK) }, 0.9),
        ("jumprelu", of(JumpRelu), 0.9),
        ("jumprelu with tanh", TrainSettings { jumprelu_sparsity_loss_mode: tanh, ..of(JumpRelu) }, 0.9),
        ("matryoshka", TrainSettings { k: Some(3.0), matryoshka_widths: Some(vec![72]), ..of(Matryoshka) }, 0.8),
    ]
}

#[test]
fn every_architecture_finds_known_features_in_superposition() {
    let (directions, mut source) = superposition(32, 64, 20_000);
    for (name, settings, least) in learners() {
        let tmp = tempfile::tempdir().unwrap();
        let out = Artifact::begin(&tmp.path().join("sae"), false).unwrap();
        let summary = run(&mut source, &settings, &out, &Silent).unwrap();
        let dictionary = io::read(out.dir()).unwrap();
        let best = |direction: &[f32]| {
            let cosine = |row: &[f32]| dot(row, direction) / squared_norm(row).sqrt().max(1e-9);
            dictionary.w_dec.chunks_exact(32).map(cosine).fold(0.0, f32::max)
        };
        let cosines: Vec<f32> = directions.chunks_exact(32).map(best).collect();
        let found = cosines.iter().filter(|cosine| **cosine >= 0.9).count() as f32 / cosines.len() as f32;
        let heldout = summary.heldout.unwrap();
        println!("{name}: {found} found, EV {}, L0 {}", heldout.explained_variance, heldout.l0);
        assert!(found >= least, "{name}: {found} of the directions found");
        assert!(heldout.explained_variance > 0.85 && heldout.l0 < 9.0, "{name}: {heldout:?}");
    }
}

#[test]
fn a_resumed_run_ends_as_an_uninterrupted_one() {
    let tmp = tempfile::tempdir().unwrap();
    let files = |dir: &Path| {
        ["sae_weights.safetensors", "sparsity.safetensors", "cfg.json", "metrics.jsonl"]
            .map(|name| std::fs::read(dir.join(name)).unwrap())
    };
    let whole_dir = Artifact::begin(&tmp.path().join("whole"), false).unwrap();
    let (_, mut source) = superposition(12, 24, 1000);
    let whole = run(&mut source, &small(), &whole_dir, &Silent).unwrap();
    assert!(whole.resampled > 0, "dead features are part of the test");
    for stop in [17, 18, 3] {
        let path = tmp.path().join(format!("cut at {stop}"));
        let (_, mut source) = superposition(12, 24, 1000);
        let cut = Artifact::begin(&path, false).unwrap();
        let error = run(&mut source, &small(), &cut, &StopAfter(stop.into())).unwrap_err();
        assert!(matches!(&error, Error::Interrupted { .. }) && error.to_string().contains("--resume"), "{error}");
        drop(cut);
        let resumed = Artifact::begin(&path, true).unwrap();
        let summary = with_threads(1, || run(&mut source, &small(), &resumed, &Silent)).unwrap();
        assert_eq!(summary, whole, "cut at {stop}");
        assert!(files(resumed.dir()) == files(whole_dir.dir()), "cut at {stop}");
    }
}

#[test]
fn a_run_that_died_goes_on_from_the_last_good_checkpoint() {
    let tmp = tempfile::tempdir().unwrap();
    let (_, mut source) = superposition(12, 24, 1000);
    let out = Artifact::begin(&tmp.path().join("sae"), false).unwrap();
    let whole = run(&mut source, &small(), &out, &Silent).unwrap();
    let metrics = std::fs::read(out.dir().join(METRICS_FILE)).unwrap();
    let mut checkpoints: Vec<_> =
        std::fs::read_dir(out.dir().join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    checkpoints.sort();
    assert_eq!(checkpoints.len(), 2);
    let bytes = std::fs::read(&checkpoints[1]).unwrap();
    std::fs::write(&checkpoints[1], &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(run(&mut source, &small(), &out, &Silent).unwrap(), whole);
    assert_eq!(std::fs::read(out.dir().join(METRICS_FILE)).unwrap(), metrics);
}

#[test]
fn other_settings_do_not_continue_a_run() {
    let tmp = tempfile::tempdir().unwrap();
    let (_, mut source) = superposition(12, 24, 1000);
    let out = Artifact::begin(&tmp.path().join("sae"), false).unwrap();
    run(&mut source, &small(), &out, &StopAfter(3.into())).unwrap_err();
    let error = run(&mut source, &TrainSettings { lr: 2e-2, ..small() }, &out, &Silent).unwrap_err().to_string();
    assert!(error.contains("lr 0.01 then") && error.contains("lr 0.02 now"), "{error}");
}

#[test]
fn a_diverging_run_says_what_to_do() {
    let tmp = tempfile::tempdir().unwrap();
    let (_, mut source) = superposition(12, 24, 1000);
    let out = Artifact::begin(&tmp.path().join("sae"), false).unwrap();
    let settings = TrainSettings { lr: 1e30, checkpoint_every: 1, ..small() };
    let error = run(&mut source, &settings, &out, &Silent).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { .. }) && error.to_string().contains("--lr"), "{error}");
}

#[test]
fn heldout_rows_of_another_width_are_refused_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let (_, mut source) = superposition(12, 24, 100);
    let (_, mut other) = superposition(10, 24, 100);
    let out = Artifact::begin(&tmp.path().join("sae"), false).unwrap();
    let error = train(TrainRun {
        source: &mut source,
        heldout: Some(&mut other),
        settings: &small(),
        metadata: Metadata::default(),
        device: &Device::Cpu,
        out: &out,
        progress: &Silent,
    });
    assert!(matches!(error, Err(Error::Mismatch { .. })));
}

fn members() -> Vec<Member> {
    let member = |name: &str, settings: TrainSettings| Member {
        name: name.into(),
        hook: 0,
        target: None,
        settings,
        metadata: Metadata { hook_name: Some("blocks.0.hook_resid_post".into()), ..Metadata::default() },
    };
    vec![
        member("sparse", TrainSettings { l1_coefficient: Some(60.0), ..small() }),
        member("wide", TrainSettings { d_sae: Some(150), seed: 7, log_every: 5, eval_every: Some(6), ..small() }),
    ]
}

fn run_sweep(
    source: &mut Rows,
    members: Vec<Member>,
    out: &Artifact,
    progress: &dyn Progress,
) -> Result<Vec<MemberEnd>> {
    let mut heldout = held_out(source);
    let heldout = Some(&mut heldout as &mut dyn RowSource);
    train_sweep(SweepRun { source, heldout, members, device: &Device::Cpu, out, progress })
}

#[test]
fn members_of_a_sweep_end_as_runs_of_their_own_also_when_cut_off() {
    let tmp = tempfile::tempdir().unwrap();
    let files = |dir: &Path| {
        ["sae_weights.safetensors", "sparsity.safetensors", "cfg.json", "metrics.jsonl"]
            .map(|name| std::fs::read(dir.join(name)).unwrap())
    };
    let (_, mut source) = superposition(12, 24, 1000);
    let alone: Vec<_> = members()
        .iter()
        .map(|member| {
            let out = Artifact::begin(&tmp.path().join(&member.name), false).unwrap();
            (run(&mut source, &member.settings, &out, &Silent).unwrap(), files(out.dir()))
        })
        .collect();
    assert!(alone[0].1 != alone[1].1 && alone[0].0.last != alone[1].0.last);
    let path = tmp.path().join("sweep");
    for stop in [5, 9, 11] {
        let out = Artifact::begin(&path, true).unwrap();
        let error = run_sweep(&mut source, members(), &out, &StopAfter(stop.into())).unwrap_err();
        assert!(matches!(&error, Error::Interrupted { .. }), "{error}");
        // A kill between the checkpoints of two members leaves one of them behind.
        let mut of_wide: Vec<_> =
            std::fs::read_dir(out.dir().join("wide/checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
        of_wide.sort();
        if of_wide.len() > 1 {
            std::fs::remove_file(&of_wide[1]).unwrap();
        }
    }
    let out = Artifact::begin(&path, true).unwrap();
    let summaries = run_sweep(&mut source, members(), &out, &Silent).unwrap();
    for ((member, (summary, contents)), found) in members().iter().zip(&alone).zip(&summaries) {
        assert_eq!(*found, MemberEnd::Trained(Box::new(summary.clone())), "{}", member.name);
        assert!(files(&out.dir().join(&member.name)) == *contents, "{}", member.name);
    }
    let log = std::fs::read_to_string(out.dir().join("wide/metrics.jsonl")).unwrap();
    let lines: Vec<MetricsLine> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let measured = |line: &&MetricsLine| line.heldout_l0.is_some();
    let steps: Vec<u64> = lines.iter().filter(measured).map(|line| line.step).collect();
    assert_eq!(steps, [6, 12, 18, 24, 30, 36, 40]);
}

#[test]
fn members_that_would_need_other_batches_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let (_, mut source) = superposition(12, 24, 1000);
    let out = Artifact::begin(&tmp.path().join("sweep"), false).unwrap();
    let mut others = members();
    others[1].settings.batch_size = 32;
    let error = run_sweep(&mut source, others, &out, &Silent).unwrap_err().to_string();
    assert!(error.contains("batch_size 16 in 'sparse'") && error.contains("32 in 'wide'"), "{error}");
    let error = run_sweep(&mut source, Vec::new(), &out, &Silent).unwrap_err().to_string();
    assert!(error.contains("at least one run"), "{error}");
}

#[test]
fn a_member_that_diverges_does_not_stop_the_others() {
    let tmp = tempfile::tempdir().unwrap();
    let (_, mut source) = superposition(12, 24, 1000);
    let mut with_a_bad_one = members();
    with_a_bad_one[1].settings.lr = 1e30;
    let whole = Artifact::begin(&tmp.path().join("whole"), false).unwrap();
    let expected = run_sweep(&mut source, with_a_bad_one.clone(), &whole, &Silent).unwrap();
    let MemberEnd::Diverged { diverged_at_step } = expected[1] else { panic!("{:?}", expected[1]) };
    assert!(diverged_at_step > 1 && matches!(expected[0], MemberEnd::Trained(_)));
    assert!(whole.dir().join("wide/diverged.json").exists() && !whole.dir().join("wide/cfg.json").exists());
    for stop in [1, 12] {
        let path = tmp.path().join(format!("cut at {stop}"));
        let cut = Artifact::begin(&path, false).unwrap();
        run_sweep(&mut source, with_a_bad_one.clone(), &cut, &StopAfter(stop.into())).unwrap_err();
        drop(cut);
        let cut = Artifact::begin(&path, true).unwrap();
        assert_eq!(run_sweep(&mut source, with_a_bad_one.clone(), &cut, &Silent).unwrap(), expected);
        let weights = |out: &Artifact| std::fs::read(out.dir().join("sparse/sae_weights.safetensors")).unwrap();
        assert!(weights(&cut) == weights(&whole));
    }
}
