//! What every other module stands on: errors, devices, seeded random streams, crash-safe directories, progress.

pub mod artifact;
pub mod device;
pub mod error;
pub mod guard;
pub mod mapped;
pub mod nearest;
pub mod number;
pub mod progress;
pub mod rng;
pub mod zip;

pub use artifact::{Artifact, RunRecord};
pub use device::{DeviceChoice, DtypeChoice};
pub use error::{Context, Error, Result};
pub use progress::{Progress, Silent, Unit};
