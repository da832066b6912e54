//! Training rows of a live model. A thread runs the model over chunk after chunk, as far ahead as the buffer holds;
//! the reader takes rows from the window at hand.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rayon::prelude::*;

use super::Shared;
use super::chunk::{Dealt, Rows};
use super::order::{Order, Window};
use super::text::interrupted;
use crate::base::rng::Permutation;
use crate::base::{Error, Progress, Result};
use crate::data::Sequence;
use crate::store::source::RowSource;

/// How often a waiting reader looks whether the user wants to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// Training rows, pass after pass.
pub struct LiveRows<'a> {
    shared: Arc<Shared>,
    progress: &'a dyn Progress,
    position: u64,
    open: Option<Open>,
    /// Parts of later windows, by pass and window.
    ahead: BTreeMap<(u64, usize), Vec<Rows>>,
    worker: Option<Worker>,
    /// The last chunk that came from the worker, by pass and number.
    arrived: Option<(u64, usize)>,
    /// The window that the rows in memory and the worker are for.
    expected: Option<(u64, usize)>,
    buffer: Arc<Buffer>,
}

/// The window at hand.
struct Open {
    window: Window,
    order: Permutation,
    parts: Vec<Rows>,
    /// Number of the first row of each part.
    starts: Vec<u64>,
}

/// The thread that runs the model, from one chunk on, to the end of time.
struct Worker {
    chunks: Receiver<Result<Chunk>>,
    thread: Option<JoinHandle<()>>,
    buffer: Arc<Buffer>,
}

/// A chunk as the model computed it.
struct Chunk {
    pass: u64,
    number: usize,
    parts: Vec<Rows>,
}

/// Counts the rows in memory, and lets the worker wait until there is room.
#[derive(Debug)]
struct Buffer {
    limit: u64,
    state: Mutex<Level>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Level {
    rows: u64,
    highest: u64,
    closed: bool,
}

impl Buffer {
    fn new(limit: u64) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    fn level(&self) -> MutexGuard<'_, Level> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for `rows` rows and takes it; false when the reader has gone.
    fn take(&self, rows: u64) -> bool {
        let full = |level: &mut Level| !level.closed && level.rows + rows > self.limit;
        let mut level = self.changed.wait_while(self.level(), full).unwrap_or_else(PoisonError::into_inner);
        level.rows += rows;
        level.highest = level.highest.max(level.rows);
        !level.closed
    }

    fn give_back(&self, rows: u64) {
        self.level().rows -= rows;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.level().closed = true;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.level().closed
    }
}

impl Worker {
    fn start(shared: &Arc<Shared>, buffer: &Arc<Buffer>, pass: u64, chunk: usize) -> Result<Self> {
        let (sender, chunks) = channel();
        let (shared, held) = (Arc::clone(shared), Arc::clone(buffer));
        let run = move || {
            if let Err(error) = produce(&shared, &held, &sender, pass, chunk) {
                // Without a reader nobody needs to know.
                drop(sender.send(Err(error)));
            }
        };
        let thread = std::thread::Builder::new().name("live model".into()).spawn(run).map_err(|source| Error::Io {
            action: "start the thread that runs the model",
            path: std::path::PathBuf::new(),
            source,
        })?;
        Ok(Self { chunks, thread: Some(thread), buffer: Arc::clone(buffer) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.buffer.close();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Computes the chunks from `chunk` of `pass` on, and those of later passes, until the reader has gone.
fn produce(
    shared: &Shared,
    buffer: &Buffer,
    chunks: &Sender<Result<Chunk>>,
    mut pass: u64,
    mut chunk: usize,
) -> Result<()> {
    loop {
        let mut packer = shared.text.packer()?;
        packer.skip_sequences(chunk as u64 * shared.chunk_sequences)?;
        for number in chunk..shared.order.chunks() {
            let deal = shared.order.deal(pass, number);
            if !buffer.take(deal.rows()) {
                return Ok(());
            }
            let first = number as u64 * shared.chunk_sequences;
            let end = (first + shared.chunk_sequences).min(shared.split.training().end);
            let mut dealt = Dealt::new(&shared.hooks, deal);
            let mut done = first;
            while done < end {
                if buffer.is_closed() {
                    return Ok(());
                }
                let wanted = (end - done).min(shared.batch_size as u64) as usize;
                let sequences: Vec<Sequence> = packer.by_ref().take(wanted).collect::<Result<_>>()?;
                if sequences.len() < wanted {
                    return Err(shrunk(end, done + sequences.len() as u64));
                }
                dealt.add(&shared.hooks.compute(&shared.model, &shared.text, &sequences, done)?)?;
                done += wanted as u64;
            }
            if chunks.send(Ok(Chunk { pass, number, parts: dealt.finish() })).is_err() {
                return Ok(());
            }
        }
        // One window that holds everything serves all passes.
        if shared.order.whole_pass_in_a_window() {
            return Ok(());
        }
        (pass, chunk) = (pass + 1, 0);
    }
}

fn shrunk(expected: u64, found: u64) -> Error {
    Error::Mismatch {
        what: "the text now and at the start of the run",
        left: format!("{expected} sequences at the start"),
        right: format!("{found} now"),
        remedy: "leave the files alone while a run goes on".into(),
    }
}

impl Open {
    fn new(order: &Order, window: Window, parts: Vec<Rows>) -> Result<Self> {
        let mut starts = Vec::with_capacity(parts.len());
        let (mut rows, mut left_out) = (0, 0);
        for part in &parts {
            starts.push(rows);
            rows += part.count as u64;
            left_out += part.left_out.len() as u64;
        }
        debug_assert_eq!(rows, window.rows);
        if left_out == rows {
            return Err(Error::Unsupported {
                what: "training on this text".into(),
                why: format!("all of {rows} consecutive rows have norms far above the median"),
                remedy: "raise --max-norm-multiple, or switch it off".into(),
            });
        }
        Ok(Self { order: order.within(&window), window, parts, starts })
    }

    /// The part, and the row of it, that the stream serves at `position` of this window.
    fn place(&self, position: u64) -> (usize, usize) {
        let mut number = self.order.at(position - self.window.start);
        loop {
            let part = self.starts.partition_point(|&start| start <= number) - 1;
            let row = (number - self.starts[part]) as usize;
            if self.parts[part].has(row) {
                return (part, row);
            }
            // Rows of a part lie in random order, so the next one is any other row of the same chunk.
            number = (number + 1) % self.window.rows;
        }
    }

    fn serves(&self, position: u64) -> bool {
        (self.window.start..self.window.start + self.window.rows).contains(&position)
    }
}

impl<'a> LiveRows<'a> {
    pub(super) fn new(shared: Arc<Shared>, progress: &'a dyn Progress) -> Self {
        let buffer = Arc::new(Buffer::new(shared.buffer_rows));
        Self {
            shared,
            progress,
            position: 0,
            open: None,
            ahead: BTreeMap::new(),
            worker: None,
            arrived: None,
            expected: None,
            buffer,
        }
    }

    /// Most rows that were in memory at once.
    #[cfg(test)]
    pub(super) fn highest_level(&self) -> u64 {
        self.buffer.level().highest
    }

    /// What tells one run of the model from another.
    #[cfg(test)]
    pub(super) fn run_of_the_model(&self) -> *const () {
        Arc::as_ptr(&self.buffer).cast()
    }

    /// The window that serves `position`, waiting for the model where it must.
    fn window(&mut self, position: u64) -> Result<&Open> {
        let open = match self.open.take() {
            Some(open) if open.serves(position) => open,
            Some(open) if self.shared.order.whole_pass_in_a_window() => {
                Open::new(&self.shared.order, self.shared.order.window_at(position), open.parts)?
            }
            open => {
                // Room for the worker before waiting for it.
                for part in open.into_iter().flat_map(|open| open.parts) {
                    self.buffer.give_back(part.count as u64);
                }
                let window = self.shared.order.window_at(position);
                let parts = self.receive(&window)?;
                Open::new(&self.shared.order, window, parts)?
            }
        };
        Ok(self.open.insert(open))
    }

    /// The parts of `window`.
    fn receive(&mut self, window: &Window) -> Result<Vec<Rows>> {
        let key = (window.pass, window.last_chunk);
        let worker = match (self.worker.take(), self.expected.take()) {
            (Some(worker), Some(expected)) if expected == key => worker,
            (worker, _) => {
                drop(worker);
                self.ahead.clear();
                self.arrived = None;
                self.buffer = Arc::new(Buffer::new(self.shared.buffer_rows));
                Worker::start(&self.shared, &self.buffer, window.pass, Order::first_chunk(window))?
            }
        };
        while self.arrived.is_none_or(|arrived| arrived < key) {
            let Chunk { pass, number, parts } = self.wait(&worker)?;
            self.arrived = Some((pass, number));
            for (part, rows) in parts.into_iter().enumerate() {
                let to = (pass, self.shared.order.window_of(number, part));
                if to < key {
                    self.buffer.give_back(rows.count as u64);
                } else {
                    self.ahead.entry(to).or_default().push(rows);
                }
            }
        }
        let after = self.shared.order.window_at(window.start + window.rows);
        self.expected = Some((after.pass, after.last_chunk));
        self.worker = Some(worker);
        Ok(self.ahead.remove(&key).unwrap_or_default())
    }

    /// The next chunk of the worker.
    fn wait(&self, worker: &Worker) -> Result<Chunk> {
        loop {
            match worker.chunks.recv_timeout(PATIENCE) {
                Ok(chunk) => return chunk,
                Err(RecvTimeoutError::Timeout) if self.progress.cancelled() => return Err(interrupted()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Unsupported {
                        what: "streaming rows".into(),
                        why: "the thread that runs the model died".into(),
                        remedy: "run again with --resume, and please report this".into(),
                    });
                }
            }
        }
    }
}

impl RowSource for LiveRows<'_> {
    fn widths(&self) -> &[usize] {
        &self.shared.hooks.widths
    }

    fn rows(&self) -> u64 {
        self.shared.order.rows()
    }

    /// Those of the first window, which stays until rows beyond it are read.
    fn cheap_rows(&self) -> u64 {
        self.shared.order.window_at(0).rows
    }

    fn next_batch(&mut self, n: usize, out: &mut [Vec<f32>]) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        for (out, width) in out.iter_mut().zip(&shared.hooks.widths) {
            out.clear();
            out.resize(n * width, 0.);
        }
        let mut done = 0;
        while done < n {
            let first = self.position;
            let open = self.window(first)?;
            let here = ((open.window.start + open.window.rows - first) as usize).min(n - done);
            let places: Vec<(usize, usize)> =
                (first..first + here as u64).into_par_iter().map(|position| open.place(position)).collect();
            for (hook, (out, &width)) in out.iter_mut().zip(&shared.hooks.widths).enumerate() {
                let rows = out[done * width..(done + here) * width].par_chunks_exact_mut(width);
                rows.with_min_len(64).zip(&places).for_each(|(out, &(part, row))| {
                    open.parts[part].values[hook].get(row * width, out);
                });
            }
            done += here;
            self.position += here as u64;
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
