//! Linear probes: what a layer knows about a text, as far as a hyperplane can tell.
//!
//! ```text
//! labelled texts ──model──► rows at a hook ──pool over positions──► [n, d] ──fit──► direction, bias
//!                                                                       └──permuted labels──► control
//! ```
//!
//! A probe that does well shows that the label can be read off linearly, not that the model uses it. The control says
//! how much of the score the probe's own capacity explains: the same probe on permuted labels. Selectivity is the
//! difference of the two accuracies (Hewitt and Liang 2019, "Designing and Interpreting Probes with Control Tasks").
//! Steering with the direction is the test of use.

pub mod direction;
pub mod examples;
pub mod fit;
mod lbfgs;
pub mod linear;
pub mod logistic;
pub mod pool;
pub mod run;
pub mod score;
pub mod sparse;
pub mod split;

pub use direction::{Direction, DirectionSource};
pub use examples::{ExampleFields, Examples};
pub use fit::{FitSettings, Method};
pub use linear::Linear;
pub use pool::{PooledText, Position};
pub use run::{DenseProbe, Mistake, ProbeRun, ProbeSettings, SparseProbe, probe};
pub use score::Scores;
pub use split::Split;
