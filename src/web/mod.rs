//! Pages for a browser: one file each, with nothing fetched from anywhere, that can be mailed or archived as it is.

mod application;
mod block;
pub mod chart;
pub mod eval_report;
pub mod features;
pub mod graph;
pub mod heatmap;
pub mod markup;
pub mod page;
pub mod steer_report;
pub mod text;
pub mod train_report;
