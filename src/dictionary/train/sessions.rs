//! When and how fast a dictionary was trained. A run that was cut off and resumed has several sessions.
//!
//! Everything else in a dictionary's directory is the same to the byte however often its run was resumed; what depends
//! on the machine and the day is kept in this one file.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::base::Result;
use crate::base::artifact::{read_json, write_json};

/// The sessions of a run, in order.
pub const SESSIONS_FILE: &str = "sessions.json";

/// From the start of a process to its last checkpoint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Session {
    /// The command line.
    pub arguments: Vec<String>,
    /// Steps taken before it.
    pub from_step: u64,
    /// Steps taken at its last checkpoint.
    pub to_step: u64,
    /// Rows that it trained on.
    pub tokens: u64,
    /// Seconds of training, measurements and checkpoints included.
    pub seconds: f64,
}

impl Session {
    /// Reads the sessions of the dictionary in `dir`; none where it was trained by another program.
    ///
    /// # Errors
    /// `Malformed` when the file is damaged.
    pub fn read_all(dir: &Path) -> Result<Vec<Self>> {
        let path = dir.join(SESSIONS_FILE);
        if path.exists() { read_json("list of training sessions", &path) } else { Ok(Vec::new()) }
    }
}

/// The session at hand.
pub(super) struct Clock {
    begun: Instant,
    arguments: Vec<String>,
    from_step: u64,
    batch_size: u64,
}

impl Clock {
    pub(super) fn start(arguments: &[String], from_step: u64, batch_size: usize) -> Self {
        Self { begun: Instant::now(), arguments: arguments.to_vec(), from_step, batch_size: batch_size as u64 }
    }

    /// Writes the sessions so far into `dir`, this one up to `step`. Those whose work was lost are left out.
    pub(super) fn note(&self, dir: &Path, step: u64) -> Result<()> {
        // A damaged list is no reason to stop a run.
        let mut sessions = Session::read_all(dir).unwrap_or_default();
        sessions.retain(|session| session.from_step < self.from_step);
        sessions.push(Session {
            arguments: self.arguments.clone(),
            from_step: self.from_step,
            to_step: step,
            tokens: (step - self.from_step) * self.batch_size,
            seconds: self.begun.elapsed().as_secs_f64(),
        });
        write_json(&dir.join(SESSIONS_FILE), &sessions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_follow_each_other_and_lost_ones_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let clock = |from| Clock::start(&["mechinterp".into()], from, 10);
        let first = clock(0);
        first.note(dir.path(), 5).unwrap();
        first.note(dir.path(), 8).unwrap();
        clock(8).note(dir.path(), 9).unwrap();
        let spans = || {
            Session::read_all(dir.path())
                .unwrap()
                .iter()
                .map(|s| (s.from_step, s.to_step, s.tokens))
                .collect::<Vec<_>>()
        };
        assert_eq!(spans(), [(0, 8, 80), (8, 9, 10)]);
        // The second one's checkpoint was damaged, so the run goes on from the first one's.
        clock(8).note(dir.path(), 12).unwrap();
        assert_eq!(spans(), [(0, 8, 80), (8, 12, 40)]);
        std::fs::write(dir.path().join(SESSIONS_FILE), "nonsense").unwrap();
        clock(12).note(dir.path(), 13).unwrap();
        assert_eq!(spans(), [(12, 13, 10)]);
    }
}
