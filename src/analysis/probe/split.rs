//! Texts to learn from and texts to test on.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use serde::Serialize;

use super::examples::Examples;
use crate::base::{Error, Result, rng};

/// Numbers of the texts of each part, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Split {
    /// To fit on.
    pub train: Vec<usize>,
    /// Held out.
    pub test: Vec<usize>,
}

impl Split {
    /// Holds out `share` of the texts of every class, or with groups as many whole groups as make up that share.
    ///
    /// # Errors
    /// `Flag` for a share that leaves nothing on one side, `Unsupported` when the groups leave a class without texts
    /// on one side.
    pub fn stratified(examples: &Examples, share: f64, seed: u64) -> Result<Self> {
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::flag("--test-share", "a share between 0 and 1", share, "0.25 is usual"));
        }
        let mut rng = rng::stream(seed, "probe split");
        let mut held = BTreeSet::new();
        for class in 0..examples.classes.len() {
            let own: Vec<usize> = (0..examples.labels.len()).filter(|&i| examples.labels[i] == class).collect();
            let wanted = ((own.len() as f64 * share).round() as usize).clamp(1, own.len().saturating_sub(1).max(1));
            let Some(groups) = &examples.groups else {
                let mut order = own;
                order.shuffle(&mut rng);
                held.extend(order.into_iter().take(wanted));
                continue;
            };
            // A group counts for the class of its first text, so that it is dealt once.
            let first = |i: &usize| groups.iter().position(|g| *g == groups[*i]) == Some(*i);
            let mut order: Vec<usize> = own.iter().copied().filter(first).map(|i| groups[i]).collect();
            order.shuffle(&mut rng);
            let mut taken = 0;
            for group in order.iter().take(order.len().saturating_sub(1)) {
                if taken >= wanted {
                    break;
                }
                let members = (0..groups.len()).filter(|&i| groups[i] == *group);
                let before = held.len();
                held.extend(members);
                taken += held.len() - before;
            }
        }
        let (test, train): (Vec<usize>, Vec<usize>) = (0..examples.labels.len()).partition(|i| held.contains(i));
        let split = Self { train, test };
        split.check(examples)?;
        Ok(split)
    }

    fn check(&self, examples: &Examples) -> Result<()> {
        for (part, indices) in [("to learn from", &self.train), ("to test on", &self.test)] {
            let present: BTreeSet<usize> = indices.iter().map(|&i| examples.labels[i]).collect();
            if let Some(missing) = (0..examples.classes.len()).find(|class| !present.contains(class)) {
                return Err(Error::Unsupported {
                    what: format!("holding out groups of '{}'", examples.classes[missing]),
                    why: format!("no text with that label is left {part}; its texts stand in too few groups"),
                    remedy: "give each label texts of two groups or more, or leave --group-field out".into(),
                });
            }
        }
        Ok(())
    }

    /// How often the most frequent class of the texts to learn from is right on those held out.
    pub fn majority_accuracy(&self, labels: &[usize], classes: usize) -> f64 {
        let count = |part: &[usize], class| part.iter().filter(|&&i| labels[i] == class).count();
        let most = (0..classes).max_by_key(|&class| (count(&self.train, class), classes - class));
        most.map_or(0.0, |class| count(&self.test, class) as f64 / self.test.len().max(1) as f64)
    }
}

/// `labels` dealt out anew to the same texts: what a control has to learn.
pub(super) fn permuted(labels: &[usize], seed: u64, control: usize) -> Vec<usize> {
    let mut labels = labels.to_vec();
    labels.shuffle(&mut rng::stream(seed, &format!("probe control {control}")));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(labels: Vec<usize>, groups: Option<Vec<usize>>) -> Examples {
        let n = labels.len();
        let classes = (0..=*labels.iter().max().unwrap()).map(|c| c.to_string()).collect();
        Examples { path: "x".into(), texts: vec![String::new(); n], lines: (1..=n).collect(), labels, classes, groups }
    }

    #[test]
    fn every_class_gives_its_share() {
        let examples = examples((0..100).map(|i| usize::from(i % 5 == 0)).collect(), None);
        let split = Split::stratified(&examples, 0.25, 3).unwrap();
        let ones = |part: &[usize]| part.iter().filter(|&&i| examples.labels[i] == 1).count();
        assert_eq!((split.train.len(), split.test.len(), ones(&split.test)), (75, 25, 5));
        assert_eq!(split.majority_accuracy(&examples.labels, 2), 0.8);
        assert_eq!(split, Split::stratified(&examples, 0.25, 3).unwrap());
        assert_ne!(split, Split::stratified(&examples, 0.25, 4).unwrap());
        for share in [0.0, 1.0, f64::NAN] {
            assert!(Split::stratified(&examples, share, 0).unwrap_err().to_string().contains("--test-share"));
        }
    }

    #[test]
    fn a_group_lies_on_one_side() {
        let groups: Vec<usize> = (0..80).map(|i| i / 4).collect();
        let grouped = examples((0..80).map(|i| (i / 4) % 2).collect(), Some(groups.clone()));
        let split = Split::stratified(&grouped, 0.3, 1).unwrap();
        let of = |part: &[usize]| part.iter().map(|&i| groups[i]).collect::<BTreeSet<_>>();
        assert!(of(&split.train).is_disjoint(&of(&split.test)));
        assert_eq!(split.test.len(), 24);
        let alone = examples((0..8).map(|i| i / 4).collect(), Some((0..8).map(|i| i / 4).collect()));
        let error = Split::stratified(&alone, 0.3, 1).unwrap_err().to_string();
        assert!(error.contains("--group-field"), "{error}");
    }

    #[test]
    fn a_control_has_the_same_labels_in_another_order() {
        let labels: Vec<usize> = (0..60).map(|i| i % 3).collect();
        let (a, b) = (permuted(&labels, 1, 0), permuted(&labels, 1, 1));
        assert!(a != labels && a != b);
        let sorted = |mut x: Vec<usize>| {
            x.sort_unstable();
            x
        };
        assert_eq!(sorted(a), sorted(labels));
    }
}
