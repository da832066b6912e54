//! The positions kept of one feature: the strongest, and some drawn at random from every interval of its activations.
//!
//! Each keeps the activations around it in a slot of one array a feature, so that a pass allocates only when a feature
//! gets an example more than it ever had.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::histogram::{Histogram, INTERVALS};

/// Slots that are made at a time.
pub(super) const SLOTS: usize = 8;

/// The positions shown around a peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Tokens before it.
    pub before: usize,
    /// Tokens after it.
    pub after: usize,
}

impl Window {
    /// The window around `position` in a sequence of `length` positions.
    pub fn around(self, position: usize, length: usize) -> Range<usize> {
        position.saturating_sub(self.before)..(position + self.after + 1).min(length)
    }

    /// The part of it that a sequence of `length` positions can fill.
    #[must_use]
    pub fn within(self, length: usize) -> Self {
        let most = length.saturating_sub(1);
        Self { before: self.before.min(most), after: self.after.min(most) }
    }

    /// Positions of the whole window.
    pub fn width(self) -> usize {
        self.before + self.after + 1
    }
}

/// The position and activation of each firing of one feature in one sequence, positions ascending.
pub type Firings = Vec<(u32, f32)>;

/// The `k` strongest firings of a sequence of `length` positions, strongest first, leaving out every position inside
/// the window of one already taken. Of equal values the earlier position wins. Reorders `firings`.
pub fn strongest_apart(firings: &mut [(u32, f32)], k: usize, window: Window, length: usize, taken: &mut Firings) {
    firings.sort_unstable_by(|a, b| b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0)));
    taken.clear();
    for &mut (position, value) in firings {
        if taken.len() == k {
            break;
        }
        let inside = |peak: &(u32, f32)| window.around(peak.0 as usize, length).contains(&(position as usize));
        if !taken.iter().any(inside) {
            taken.push((position, value));
        }
    }
}

/// One position where a feature fires.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Example {
    /// Activation at the position.
    pub value: f32,
    /// The sequence.
    pub sequence: u32,
    /// The position in it.
    pub position: u32,
    /// The lot by which it was drawn, the smaller the better; zero for the strongest.
    pub lot: u32,
    /// Which slot holds the activations around it.
    slot: u32,
}

impl Example {
    /// A position that has no slot yet.
    pub fn new(value: f32, sequence: u32, position: u32, lot: u32) -> Self {
        Self { value, sequence, position, lot, slot: 0 }
    }

    fn place(&self) -> (u32, u32) {
        (self.sequence, self.position)
    }
}

/// The examples of one feature.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    top: Vec<Example>,
    drawn: Vec<Example>,
    /// Lots below these are admitted; absent where an interval has room.
    limits: [Option<u32>; INTERVALS],
    /// Activations around the examples, a window for each slot.
    windows: Vec<f32>,
    free: Vec<u32>,
}

impl Examples {
    /// The strongest, strongest first; of equal ones the earlier.
    pub fn top(&self) -> &[Example] {
        &self.top
    }

    /// Those drawn, in no order that means anything.
    pub fn drawn(&self) -> &[Example] {
        &self.drawn
    }

    /// Activations around `example`, from `window.before` positions before it on; zero outside its sequence.
    pub fn around(&self, example: &Example, window: Window) -> &[f32] {
        let width = window.width();
        self.windows.get(example.slot as usize * width..(example.slot as usize + 1) * width).unwrap_or_default()
    }

    /// Whether an example of `value` would be among the `k` strongest. Examples arrive in the order of their rows, so
    /// one that only equals the weakest kept is the later and loses.
    pub fn admits(&self, value: f32, k: usize) -> bool {
        k > 0 && (self.top.len() < k || self.top.last().is_some_and(|last| value.abs() > last.value.abs()))
    }

    /// Puts an admitted example in its place and drops the weakest when there are more than `k`. `fill` writes the
    /// activations of its window, all zero before.
    pub fn insert(&mut self, mut example: Example, k: usize, window: Window, fill: impl FnOnce(&mut [f32])) {
        if self.top.len() >= k
            && let Some(weakest) = self.top.pop()
        {
            self.free.push(weakest.slot);
        }
        example.slot = self.slot(window, fill);
        let stronger = |kept: &Example| kept.value.abs().total_cmp(&example.value.abs());
        let earlier = |kept: &Example| example.place().cmp(&kept.place());
        let place = self.top.partition_point(|kept| stronger(kept).then(earlier(kept)).is_gt());
        self.top.insert(place, example);
    }

    /// Whether `lot` would be among the smallest `n` of `interval`.
    pub fn draws(&self, interval: usize, lot: u32, n: usize) -> bool {
        n > 0 && self.limits[interval].is_none_or(|limit| lot < limit)
    }

    /// Adds an example that was drawn from `interval` and drops the one with the largest lot when there are more than
    /// `n` in it.
    pub fn insert_drawn(
        &mut self,
        mut example: Example,
        interval: usize,
        (histogram, n): (&Histogram, usize),
        window: Window,
        fill: impl FnOnce(&mut [f32]),
    ) {
        example.slot = self.slot(window, fill);
        self.drawn.push(example);
        self.trim(interval, histogram, n);
    }

    /// Sorts what was drawn into intervals that have moved.
    ///
    /// A position is drawn by lots from all that were seen since the bounds of its interval last moved, and from those
    /// drawn before that. Bounds follow the maximum, which soon stops growing.
    pub fn regroup(&mut self, histogram: &Histogram, n: usize) {
        for interval in 0..INTERVALS {
            self.trim(interval, histogram, n);
        }
    }

    /// Leaves at most `n` in `interval` and sets the limit of its lots.
    fn trim(&mut self, interval: usize, histogram: &Histogram, n: usize) {
        loop {
            let members = self.drawn.iter().enumerate().filter(|(_, e)| histogram.interval(e.value) == interval);
            let (mut count, mut worst) = (0, None);
            for (i, example) in members {
                count += 1;
                let key = (example.lot, example.place());
                if worst.is_none_or(|(_, found)| key > found) {
                    worst = Some((i, key));
                }
            }
            match worst {
                Some((i, _)) if count > n => {
                    let dropped = self.drawn.swap_remove(i);
                    self.free.push(dropped.slot);
                }
                Some((_, (lot, _))) if count == n => {
                    self.limits[interval] = Some(lot);
                    return;
                }
                _ => {
                    self.limits[interval] = None;
                    return;
                }
            }
        }
    }

    fn slot(&mut self, window: Window, fill: impl FnOnce(&mut [f32])) -> u32 {
        let width = window.width();
        let slot = self.free.pop().unwrap_or_else(|| {
            if self.windows.capacity() < self.windows.len() + width {
                self.windows.reserve_exact(SLOTS * width);
            }
            self.windows.resize(self.windows.len() + width, 0.0);
            (self.windows.len() / width - 1) as u32
        });
        if let Some(values) = self.windows.get_mut(slot as usize * width..(slot as usize + 1) * width) {
            values.fill(0.0);
            fill(values);
        }
        slot
    }

    /// Puts back examples that were saved: the strongest in their order, then those drawn in theirs, each with its
    /// window.
    pub(super) fn restore(
        top: Vec<(Example, Vec<f32>)>,
        drawn: Vec<(Example, Vec<f32>)>,
        (histogram, n): (&Histogram, usize),
        window: Window,
    ) -> Self {
        let mut restored = Self::default();
        for (list, is_top) in [(top, true), (drawn, false)] {
            for (mut example, values) in list {
                example.slot = restored.slot(window, |to| to.copy_from_slice(&values));
                if is_top { restored.top.push(example) } else { restored.drawn.push(example) }
            }
        }
        restored.regroup(histogram, n);
        restored
    }
}

/// Slots are a matter of history; examples and what is around them count.
impl PartialEq for Examples {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &[Example], b: &[Example]| {
            let width = |examples: &Self| examples.windows.len() / (examples.used_slots().max(1));
            a.len() == b.len()
                && a.iter().zip(b).all(|(x, y)| {
                    let key = |e: &Example| (e.value.to_bits(), e.sequence, e.position, e.lot);
                    let (wa, wb) = (width(self), width(other));
                    let values = |of: &Self, e: &Example, w: usize| -> Vec<f32> {
                        of.windows.get(e.slot as usize * w..(e.slot as usize + 1) * w).unwrap_or_default().to_vec()
                    };
                    key(x) == key(y) && values(self, x, wa) == values(other, y, wb)
                })
        };
        same(&self.top, &other.top) && same(&self.drawn, &other.drawn) && self.limits == other.limits
    }
}

impl Examples {
    /// Memory in use beside the struct itself.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let examples = self.top.capacity() + self.drawn.capacity();
        examples * size_of::<Example>() + 4 * (self.windows.capacity() + self.free.capacity())
    }

    fn used_slots(&self) -> usize {
        self.top.len() + self.drawn.len() + self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { before: 1, after: 1 };

    #[test]
    fn neighbours_of_a_peak_give_way_and_equal_values_keep_their_order() {
        let window = Window { before: 2, after: 1 };
        let firings = [(0, 1.0), (2, 5.0), (3, 4.0), (4, 4.0), (6, 4.0), (9, 0.5)];
        let apart = |k, window, firings: &[(u32, f32)]| {
            let mut taken = Vec::new();
            strongest_apart(&mut firings.to_vec(), k, window, 10, &mut taken);
            taken
        };
        assert_eq!(apart(9, window, &firings), [(2, 5.0), (4, 4.0), (6, 4.0), (9, 0.5)]);
        assert_eq!(apart(2, window, &firings), [(2, 5.0), (4, 4.0)]);
        let alone = Window { before: 0, after: 0 };
        assert_eq!(apart(1, alone, &[(0, 1.0), (1, -3.0)]), [(1, -3.0)]);
    }

    #[test]
    fn the_strongest_stay_with_what_is_around_them() {
        let mut examples = Examples::default();
        for (position, value) in [(0, 1.0f32), (1, -3.0), (2, 2.0), (3, 2.0), (4, 0.5)] {
            if examples.admits(value, 2) {
                examples.insert(Example::new(value, 0, position, 0), 2, WINDOW, |to| to[1] = value);
            }
        }
        let kept: Vec<(u32, f32)> = examples.top().iter().map(|e| (e.position, e.value)).collect();
        assert_eq!(kept, [(1, -3.0), (2, 2.0)]);
        for example in examples.top() {
            assert_eq!(examples.around(example, WINDOW), [0.0, example.value, 0.0]);
        }
        assert_eq!(examples.windows.len(), 2 * WINDOW.width(), "slots are used again");
    }

    #[test]
    fn the_smallest_lots_of_every_interval_stay() {
        let (mut histogram, mut examples) = (Histogram::default(), Examples::default());
        let values: Vec<f32> = (1..=1000).map(|i| (i * 617 % 1000 + 1) as f32 / 100.0).collect();
        let lot = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761);
        histogram.add(10.01);
        for (i, &value) in values.iter().enumerate() {
            histogram.add(value);
            let interval = histogram.interval(value);
            if examples.draws(interval, lot(i), 3) {
                let example = Example::new(value, 0, i as u32, lot(i));
                examples.insert_drawn(example, interval, (&histogram, 3), WINDOW, |to| to[1] = value);
            }
        }
        for interval in 0..INTERVALS {
            let mut expected: Vec<usize> = (0..1000).filter(|&i| histogram.interval(values[i]) == interval).collect();
            expected.sort_by_key(|&i| lot(i));
            expected.truncate(3);
            let mut found: Vec<&Example> =
                examples.drawn().iter().filter(|e| histogram.interval(e.value) == interval).collect();
            found.sort_by_key(|e| e.lot);
            assert_eq!(found.iter().map(|e| e.position as usize).collect::<Vec<_>>(), expected, "interval {interval}");
            assert!(found.iter().all(|e| examples.around(e, WINDOW)[1] == e.value));
        }
        // A new maximum moves all bounds: the lower intervals take the place of the higher ones.
        histogram.add(40.0);
        examples.regroup(&histogram, 3);
        let of = |interval| examples.drawn().iter().filter(|e| histogram.interval(e.value) == interval).count();
        assert!((0..INTERVALS).all(|i| of(i) <= 3) && of(0) == 3 && of(9) == 0);
        let save = |list: &[Example]| -> Vec<(Example, Vec<f32>)> {
            list.iter().map(|e| (*e, examples.around(e, WINDOW).to_vec())).collect()
        };
        let back = Examples::restore(save(examples.top()), save(examples.drawn()), (&histogram, 3), WINDOW);
        assert!(back == examples);
    }
}
