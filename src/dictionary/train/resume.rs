//! Where a cut-off run goes on: the last step at which everything that is trained together was saved.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::checkpoint::{self, Checkpoint};
use super::trainer::Seat;
use crate::base::{Error, Progress, Result};

/// The checkpoints of all `seats` at the newest step at which each has one that reads; a damaged one is passed over
/// with a warning. Checkpoints of later steps are removed, so that the last ones of each stay those of the same steps.
///
/// # Errors
/// `Mismatch` when the run was started with another plan, `Io` when an old checkpoint cannot be removed.
pub(super) fn latest_common(seats: &[Seat], progress: &dyn Progress) -> Result<Option<Vec<Checkpoint>>> {
    let steps = |seat: &Seat| checkpoint::existing(&seat.dir).iter().filter_map(|p| step_of(p)).collect();
    let all: Vec<BTreeSet<u64>> = seats.iter().map(steps).collect();
    let Some((first, others)) = all.split_first() else { return Ok(None) };
    let common = first.iter().rev().copied().filter(|step| others.iter().all(|steps| steps.contains(step)));
    for step in common {
        let at_step = |seat: &Seat| checkpoint::open(&checkpoint::path(&seat.dir, step), &seat.plan);
        match seats.iter().map(at_step).collect::<Result<Vec<_>>>() {
            Ok(checkpoints) => {
                remove(seats, &all, |other| other > step)?;
                return Ok(Some(checkpoints));
            }
            Err(error @ Error::Mismatch { .. }) => return Err(error),
            Err(error) => progress.warn(&format!("passing over a checkpoint: {error}")),
        }
    }
    if all.iter().any(|steps| !steps.is_empty()) {
        progress.warn("no checkpoint is whole; starting from the beginning");
        remove(seats, &all, |_| true)?;
    }
    Ok(None)
}

fn remove(seats: &[Seat], steps: &[BTreeSet<u64>], which: impl Fn(u64) -> bool) -> Result<()> {
    for (seat, steps) in seats.iter().zip(steps) {
        for step in steps.iter().copied().filter(|step| which(*step)) {
            let path = checkpoint::path(&seat.dir, step);
            fs::remove_file(&path).map_err(Error::io("remove a checkpoint", &path))?;
        }
    }
    Ok(())
}

/// The step that a checkpoint's file name gives.
fn step_of(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok()
}
