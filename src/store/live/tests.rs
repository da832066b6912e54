use std::collections::BTreeSet;

use super::*;
use crate::base::Silent;
use crate::data::BosPolicy;
use crate::model::Site;
use crate::store::collect::tests::World;
use crate::store::{CacheReader, CacheSource, KeptRows, RowSource, collect};

const CONTEXT: usize = 16;

fn settings(buffer_rows: u64) -> LiveSettings {
    LiveSettings {
        hooks: vec![HookPoint::block(1, Site::ResidPost), HookPoint::block(0, Site::MlpPost)],
        pack: PackSettings { context_size: CONTEXT, bos: BosPolicy::Prepend },
        batch_size: 3,
        filter: FilterSettings::default(),
        held_out: 0.1,
        buffer_rows,
        dtype: DtypeChoice::F32,
        seed: 4,
        rows: None,
    }
}

/// A stream with the directory of its text.
struct Opened {
    live: Live,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for Opened {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

fn try_open(documents: usize, settings: &LiveSettings, progress: &dyn Progress) -> Result<Opened> {
    let World { dir, model, tokenizer, corpus } = World::new(documents);
    let live = Live::open(Arc::new(model), Arc::new(tokenizer), Arc::new(corpus), settings, progress)?;
    Ok(Opened { live, _dir: dir })
}

fn open(documents: usize, settings: &LiveSettings) -> Opened {
    try_open(documents, settings, &Silent).unwrap()
}

/// The next `n` rows, those of all hooks side by side, as bits.
fn read(source: &mut dyn RowSource, n: usize) -> Vec<Vec<u32>> {
    let widths = source.widths().to_vec();
    let mut out = vec![Vec::new(); widths.len()];
    source.next_batch(n, &mut out).unwrap();
    let row = |i: usize| {
        let parts = out.iter().zip(&widths).flat_map(|(values, w)| &values[i * w..(i + 1) * w]);
        parts.map(|x| x.to_bits()).collect()
    };
    (0..n).map(row).collect()
}

fn sorted(mut rows: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    rows.sort();
    rows
}

/// Whether rows are those of a cache: its batches begin elsewhere, and the model's last bits may depend on that.
fn close(found: &[Vec<u32>], expected: &[Vec<u32>]) -> bool {
    let near = |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).abs() < 1e-5;
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| a.iter().zip(b).all(near))
}

/// The sources of a cache of the same text, which `collect` wrote with the same batches.
fn cached(documents: usize, live: &Live) -> (CacheSource, CacheSource) {
    let world = World::new(documents);
    let summary = collect(&world.job("acts"), &Silent).unwrap();
    let reader = Arc::new(CacheReader::open(&summary.dir).unwrap());
    let (kept, _) = KeptRows::of_cache(&reader, 0, live.report.positions.settings, &Silent).unwrap();
    let kept = Arc::new(kept);
    let split = live.report.split;
    let training = CacheSource::training(reader.clone(), &[0, 1], kept.clone(), split, 0).unwrap();
    (training, CacheSource::held_out(reader, &[0, 1], kept, split).unwrap())
}

#[test]
fn a_pass_serves_the_rows_of_a_cache_in_another_order() {
    for buffer_rows in [1, 8 * 7 * CONTEXT as u64, 1 << 20] {
        let live = open(100, &settings(buffer_rows));
        let (mut from_cache, mut held_out) = cached(100, &live);
        let mut source = live.training(&Silent);
        assert_eq!((source.rows(), source.widths()), (from_cache.rows(), from_cache.widths()));
        let n = source.rows() as usize;
        let windows = live.shared.order.chunks();
        assert!(n > 500 && live.shared.order.whole_pass_in_a_window() == (buffer_rows == 1 << 20), "{windows} chunks");
        let (first, second) = (read(&mut source, n), read(&mut source, n));
        let expected = sorted(read(&mut from_cache, n));
        assert!(expected.iter().collect::<BTreeSet<_>>().len() > n / 2, "rows differ");
        assert!(close(&sorted(first.clone()), &expected) && close(&sorted(second.clone()), &expected), "{buffer_rows}");
        assert_ne!(first, second, "another order every pass");
        let mut text_order = live.held_out(&Silent).unwrap();
        let m = held_out.rows() as usize;
        assert_eq!(text_order.rows(), held_out.rows());
        assert!(m > 50 && close(&read(&mut text_order, m), &read(&mut held_out, m)));
        text_order.seek(0).unwrap();
        assert!(close(&read(&mut text_order, m + 2)[m..], &read(&mut held_out, 2)), "the next pass is the same");
    }
}

#[test]
fn a_window_mixes_rows_from_as_many_chunks_as_the_buffer_holds() {
    let live = open(100, &settings(8 * 3 * CONTEXT as u64));
    let order = &live.shared.order;
    assert!(order.chunks() > 16, "{}", order.chunks());
    let window = order.window_at(order.rows() / 2);
    let mut source = live.training(&Silent);
    source.seek(window.start).unwrap();
    let found: BTreeSet<Vec<u32>> = read(&mut source, window.rows as usize).into_iter().collect();
    let mut packer = live.shared.text.packer().unwrap();
    let mut share = Vec::new();
    for chunk in 0..order.chunks() {
        let sequences: Vec<Sequence> =
            packer.by_ref().take(live.shared.chunk_sequences as usize).map(|s| s.unwrap()).collect();
        let Shared { hooks, model, text, .. } = &*live.shared;
        let computed = hooks.compute(model, text, &sequences, 0).unwrap();
        let rows = (0..computed.fates.len()).map(|row| {
            let parts = (0..2).flat_map(|hook| hooks.row(&computed, hook, row));
            parts.map(|x| x.to_bits()).collect::<Vec<u32>>()
        });
        let count = rows.filter(|row| found.contains(row)).count();
        let inside = (Order::first_chunk(&window)..=window.last_chunk).contains(&chunk);
        assert!(count > 0 || !inside, "chunk {chunk}");
        share.push(count);
    }
    assert!(share.iter().max().unwrap() < &(found.len() / 2), "{share:?}");
}

#[test]
fn seeking_serves_what_reading_on_would_have() {
    for buffer_rows in [8 * 4 * CONTEXT as u64, 1 << 20] {
        let live = open(60, &settings(buffer_rows));
        let mut source = live.training(&Silent);
        let n = source.rows() as usize;
        let all = read(&mut source, 2 * n + 40);
        for position in [0, 5, n / 2, n - 1, n, n + n / 3, 2 * n + 3, 7] {
            source.seek(position as u64).unwrap();
            let again = [read(&mut source, 9), read(&mut source, 20)].concat();
            assert_eq!(again, all[position..position + 29], "{position} of {n}");
            let mut fresh = live.training(&Silent);
            fresh.seek(position as u64).unwrap();
            assert!(read(&mut fresh, 29) == again && fresh.position() == position as u64 + 29);
        }
        assert_eq!(source.position(), 36);
    }
}

#[test]
fn the_first_rows_are_read_again_without_running_the_model() {
    let live = open(300, &settings(8 * 4 * CONTEXT as u64));
    let mut source = live.training(&Silent);
    let cheap = source.cheap_rows() as usize;
    assert!(cheap > 100 && (cheap as u64) < source.rows() / 2, "{cheap}");
    let first = read(&mut source, cheap);
    let before = source.run_of_the_model();
    source.seek(0).unwrap();
    assert!(read(&mut source, cheap) == first && source.run_of_the_model() == before);
    read(&mut source, 1);
    source.seek(0).unwrap();
    assert!(read(&mut source, 5) == first[..5] && source.run_of_the_model() != before);
}

#[test]
fn the_buffer_holds_no_more_rows_than_it_may() {
    let limit = 8 * 4 * CONTEXT as u64;
    let live = open(300, &settings(limit));
    let mut source = live.training(&Silent);
    let n = source.rows();
    assert!(n > 5 * limit, "{n}");
    let mut highest = 0;
    for _ in 0..2 * n / 50 {
        read(&mut source, 50);
        highest = highest.max(source.highest_level());
    }
    assert!(highest <= limit && highest > limit / 2, "{highest} of {limit}");
}

#[test]
fn rows_of_large_norm_are_never_served_and_leave_no_gap() {
    let plain = open(100, &LiveSettings { filter: FilterSettings::NONE, ..settings(1 << 20) });
    // The norms of a tiny random model are alike, so a low multiple makes the rule bite.
    let filter = FilterSettings { max_norm_multiple: Some(1.05), ..FilterSettings::default() };
    let settings = LiveSettings { filter, ..settings(8 * 4 * CONTEXT as u64) };
    let live = open(100, &settings);
    let limits: Vec<f32> = live.shared.hooks.limits.iter().map(|limit| limit.unwrap()).collect();
    assert_eq!(live.report.median_norms.len(), 2);
    let norms = |row: &[u32]| -> Vec<f32> {
        let norm = |part: &[u32]| part.iter().map(|x| f32::from_bits(*x).powi(2)).sum::<f32>().sqrt();
        let (first, second) = row.split_at(8);
        vec![norm(first), norm(second)]
    };
    let small = |row: &Vec<u32>| norms(row).iter().zip(&limits).all(|(norm, limit)| *norm <= limit * 1.000_01);
    let everything = read(&mut plain.training(&Silent), plain.training(&Silent).rows() as usize);
    assert!(everything.iter().filter(|row| !small(row)).count() > 50);
    let mut source = live.training(&Silent);
    let n = source.rows() as usize;
    let rows = read(&mut source, n);
    assert!(rows.iter().all(small));
    let distinct = rows.iter().collect::<BTreeSet<_>>().len();
    assert!(distinct > 100 && distinct < n, "{distinct} of {n}: left-out rows are replaced by others");
    let held_out = read(&mut live.held_out(&Silent).unwrap(), 30);
    assert!(held_out.iter().all(small));
    let never = FilterSettings { max_norm_multiple: Some(1e-3), ..filter };
    let live = open(100, &LiveSettings { filter: never, ..settings });
    let mut out = vec![Vec::new(); 2];
    let error = live.training(&Silent).next_batch(1, &mut out).unwrap_err().to_string();
    assert!(error.contains("--max-norm-multiple"), "{error}");
    assert!(live.held_out(&Silent).unwrap().next_batch(1, &mut out).is_err());
}

#[test]
fn text_is_read_only_as_far_as_rows_are_wanted() {
    let all = open(100, &settings(1 << 20));
    let some = open(100, &LiveSettings { rows: Some(300), ..settings(1 << 20) });
    let rows = some.training(&Silent).rows();
    assert!((300..300 + CONTEXT as u64).contains(&rows), "{rows}");
    assert!(some.report.split.sequences < all.report.split.sequences && some.report.split.held_out > 0);
    assert!(some.report.to_string().starts_with("streaming "), "{}", some.report);
}

/// A user who wants to stop.
struct Stop;

impl Progress for Stop {
    fn begin(&self, _: &str, _: u64, _: Unit) {}
    fn set(&self, _: u64) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn line(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn end(&self) {}
    fn cancelled(&self) -> bool {
        true
    }
}

#[test]
fn waiting_for_the_model_ends_when_the_user_stops() {
    let live = open(3000, &settings(1 << 20));
    let mut out = vec![Vec::new(); 2];
    for source in [&mut live.training(&Stop) as &mut dyn RowSource, &mut live.held_out(&Stop).unwrap()] {
        assert!(matches!(source.next_batch(1, &mut out), Err(Error::Interrupted { .. })));
    }
    assert!(matches!(try_open(3000, &settings(1), &Stop), Err(Error::Interrupted { .. })));
}

type Change = fn(&mut LiveSettings);

#[test]
fn settings_that_make_no_sense_are_refused() {
    let changes: [(Change, &str); 8] = [
        (|s| s.pack.context_size = 64, "--context-size"),
        (|s| s.batch_size = 0, "--model-batch-size"),
        (|s| s.buffer_rows = 0, "--buffer-rows"),
        (|s| s.held_out = 1., "--held-out"),
        (|s| s.hooks.push(s.hooks[0]), "every hook once"),
        (|s| s.hooks.clear(), "at least one hook"),
        (|s| s.hooks = vec![HookPoint::block(7, Site::ResidPost)], "blocks.1.hook_resid_post"),
        (|s| s.hooks = vec![HookPoint::block(0, Site::AttnPattern)], "[b, H, s, S]"),
    ];
    let refusal = |documents, settings: &LiveSettings| {
        try_open(documents, settings, &Silent).err().map(|error| error.to_string()).unwrap_or_default()
    };
    for (change, expected) in changes {
        let mut settings = settings(100);
        change(&mut settings);
        let error = refusal(20, &settings);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let mut long = settings(100);
    long.pack.context_size = 32;
    assert!(refusal(1, &long).contains("smaller --context-size"));
}
