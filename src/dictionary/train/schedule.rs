//! Learning rate and penalty by step.

use super::settings::{Method, TrainPlan};

/// The learning rate decays to this share of its peak.
const FINAL_SHARE: f64 = 0.1;

/// Learning rate of step `t`, counted from 0: linear rise over the warm-up, constant, linear fall over the decay.
pub(super) fn learning_rate(plan: &TrainPlan, t: u64) -> f64 {
    let rise = match plan.lr_warm_up_steps {
        0 => 1.0,
        warm_up => ((t + 1) as f64 / warm_up as f64).min(1.0),
    };
    let into_decay = (t + 1).saturating_sub(plan.steps - plan.lr_decay_steps.min(plan.steps));
    let fall = match plan.lr_decay_steps {
        0 => 1.0,
        decay => 1.0 - (1.0 - FINAL_SHARE) * (into_decay as f64 / decay as f64).min(1.0),
    };
    plan.lr * rise * fall
}

/// Weight of the penalty at step `t`, counted from 0: linear rise from zero, then constant.
pub(super) fn coefficient(plan: &TrainPlan, t: u64) -> f64 {
    match plan.coefficient_warm_up_steps {
        0 => plan.coefficient,
        warm_up => plan.coefficient * (t as f64 / warm_up as f64).min(1.0),
    }
}

/// Times that the exponent moves while it is annealed.
const EXPONENTS: u64 = 10;

/// Exponent of the penalty at step `t`: 1 until the warm-up is over, then in [`EXPONENTS`] equal moves to its end,
/// which it reaches when the learning rate begins to fall.
pub(super) fn exponent(plan: &TrainPlan, t: u64) -> f64 {
    let Method::Relu { p_anneal: Some(end), .. } = plan.method else { return 1.0 };
    let first = plan.coefficient_warm_up_steps.max(plan.lr_warm_up_steps);
    let last = plan.steps.saturating_sub(plan.lr_decay_steps).max(first + 1);
    let moves = t.saturating_sub(first) * EXPONENTS / (last - first);
    1.0 + (end - 1.0) * moves.min(EXPONENTS) as f64 / EXPONENTS as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::train::TrainSettings;

    #[test]
    fn rates_rise_hold_and_fall() {
        let settings = TrainSettings {
            lr: 1.0,
            l1_coefficient: Some(4.0),
            steps: Some(100),
            lr_warm_up_steps: Some(10),
            lr_decay_steps: Some(20),
            l1_warm_up_steps: Some(8),
            ..TrainSettings::default()
        };
        let plan = settings.plan(8, 100).unwrap();
        let lr = |t| learning_rate(&plan, t);
        assert_eq!((lr(0), lr(9), lr(10), lr(79)), (0.1, 1.0, 1.0, 1.0));
        assert!(lr(80) < 1.0 && (lr(89) - 0.55).abs() < 1e-12 && (lr(99) - 0.1).abs() < 1e-12);
        let l1 = |t| coefficient(&plan, t);
        assert_eq!((l1(0), l1(4), l1(8), l1(99)), (0.0, 2.0, 4.0, 4.0));
        assert_eq!(exponent(&plan, 50), 1.0);
    }

    #[test]
    fn the_exponent_moves_down_in_steps() {
        let settings = TrainSettings {
            p_end: Some(0.5),
            steps: Some(100),
            lr_warm_up_steps: Some(10),
            lr_decay_steps: Some(20),
            l1_warm_up_steps: Some(20),
            ..TrainSettings::default()
        };
        let plan = settings.plan(8, 100).unwrap();
        let p: Vec<f64> = [0, 20, 25, 26, 50, 79, 80, 99].map(|t| exponent(&plan, t)).to_vec();
        assert_eq!(p, [1.0, 1.0, 1.0, 0.95, 0.75, 0.55, 0.5, 0.5]);
    }
}
