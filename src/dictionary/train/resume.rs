//! Where a cut-off run goes on: the last step at which everything that is trained together was saved. A member of a
//! sweep whose loss left the finite numbers is marked by a file and waits for nobody.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::{self, Checkpoint};
use super::trainer::Seat;
use crate::base::artifact::{read_json, write_json};
use crate::base::{Error, Progress, Result};

/// The mark in the directory of a member that diverged.
const DIVERGED_FILE: &str = "diverged.json";

#[derive(Serialize, Deserialize)]
struct Diverged {
    /// The step that could not be taken.
    step: u64,
    /// What there was to say.
    why: String,
}

/// Marks the directory of a member that diverged at `step`.
pub(super) fn mark_diverged(dir: &Path, step: u64, why: &Error) -> Result<()> {
    write_json(&dir.join(DIVERGED_FILE), &Diverged { step, why: why.to_string() })
}

/// The step at which the member of `dir` diverged.
fn diverged_at(dir: &Path) -> Option<u64> {
    let path = dir.join(DIVERGED_FILE);
    path.exists().then(|| read_json::<Diverged>("mark of a diverged run", &path).ok().map(|mark| mark.step)).flatten()
}

/// How a seat goes on.
pub(super) enum Seated {
    /// From its checkpoint.
    At(Seat, Box<Checkpoint>),
    /// Not at all, since this step.
    Diverged(Seat, u64),
}

/// All `seats` at the newest step at which each that had not diverged has a checkpoint that reads; a damaged one is
/// passed over with a warning. `Err` gives the seats back where there is no such step. Checkpoints of later steps
/// are removed, so that the last ones of each stay those of the same steps.
///
/// # Errors
/// `Mismatch` when the run was started with another plan, `Io` when an old checkpoint cannot be removed.
pub(super) fn latest_common(seats: Vec<Seat>, progress: &dyn Progress) -> Result<Result<Vec<Seated>, Vec<Seat>>> {
    let saved: Vec<BTreeSet<u64>> = seats.iter().map(|seat| steps(&seat.dir)).collect();
    let diverged: Vec<Option<u64>> = seats.iter().map(|seat| diverged_at(&seat.dir)).collect();
    let all: BTreeSet<u64> = saved.iter().flatten().copied().collect();
    let gone = |at: &Option<u64>, step: u64| at.is_some_and(|at| at <= step);
    for &step in all.iter().rev() {
        let mut alive = saved.iter().zip(&diverged).filter(|(_, at)| !gone(at, step)).peekable();
        if alive.peek().is_none() || !alive.all(|(saved, _)| saved.contains(&step)) {
            continue;
        }
        let read = |(seat, at): (&Seat, &Option<u64>)| {
            if let Some(at) = at.filter(|_| gone(at, step)) {
                return Ok(Seated::Diverged(seat.clone(), at));
            }
            let checkpoint = checkpoint::open(&checkpoint::path(&seat.dir, step), &seat.plan)?;
            Ok(Seated::At(seat.clone(), Box::new(checkpoint)))
        };
        match seats.iter().zip(&diverged).map(read).collect::<Result<Vec<_>>>() {
            Ok(seated) => {
                forget_after(step, &seats)?;
                return Ok(Ok(seated));
            }
            Err(error @ Error::Mismatch { .. }) => return Err(error),
            Err(error) => progress.warn(&format!("passing over a checkpoint: {error}")),
        }
    }
    if !all.is_empty() {
        progress.warn("no checkpoint is whole; starting from the beginning");
    }
    forget_after(0, &seats)?;
    Ok(Err(seats))
}

/// The steps of the checkpoints under `dir`.
fn steps(dir: &Path) -> BTreeSet<u64> {
    let step = |path: &PathBuf| path.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok();
    checkpoint::existing(dir).iter().filter_map(step).collect()
}

/// Removes what was written after `step`.
fn forget_after(step: u64, seats: &[Seat]) -> Result<()> {
    for seat in seats {
        let later = steps(&seat.dir).into_iter().filter(|other| *other > step);
        let mark = diverged_at(&seat.dir).filter(|at| *at > step).map(|_| seat.dir.join(DIVERGED_FILE));
        for path in later.map(|step| checkpoint::path(&seat.dir, step)).chain(mark) {
            fs::remove_file(&path).map_err(Error::io("remove a checkpoint", &path))?;
        }
    }
    Ok(())
}
