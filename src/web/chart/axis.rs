//! Axes: from values to a range, round ticks and their labels.

use std::fmt::Write;

/// How values become positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// Evenly.
    #[default]
    Linear,
    /// By their logarithm; values of zero and below have no place.
    Log,
}

impl Scale {
    /// The coordinate of `value`, where it has one.
    pub(super) fn of(self, value: f64) -> Option<f64> {
        let coordinate = match self {
            Self::Linear => value,
            Self::Log if value > 0.0 => value.log10(),
            Self::Log => return None,
        };
        coordinate.is_finite().then_some(coordinate)
    }

    pub(super) fn inverse(self, coordinate: f64) -> f64 {
        match self {
            Self::Linear => coordinate,
            Self::Log => 10f64.powf(coordinate),
        }
    }
}

/// What an axis shows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Axis {
    /// What is measured, with its unit.
    pub label: String,
    /// Linear or logarithmic.
    pub scale: Scale,
    /// A value that the axis reaches in any case, such as zero.
    pub include: Option<f64>,
    /// Bounds that the axis does not pass although data do; what lies outside is cut off.
    pub within: Option<(f64, f64)>,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Log, ..Self::default() }
    }

    /// Linear while the largest value is less than thirty times the smallest positive one, else logarithmic.
    pub fn by_range(label: impl Into<String>, values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|v| v.is_finite() && *v > 0.0);
        let (lo, hi) = positive.fold((f64::INFINITY, 0f64), |(lo, hi), v| (lo.min(v), hi.max(v)));
        if hi > 30.0 * lo { Self::log(label) } else { Self::linear(label).including(0.0) }
    }

    /// With `value` in its range.
    #[must_use]
    pub fn including(mut self, value: f64) -> Self {
        self.include = Some(value);
        self
    }

    /// With what lies outside `lo` to `hi` cut off.
    #[must_use]
    pub fn within(mut self, lo: f64, hi: f64) -> Self {
        self.within = Some((lo, hi));
        self
    }
}

/// An axis with its range, in coordinates of its scale, and ticks in values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) scale: Scale,
    lo: f64,
    hi: f64,
    pub(super) ticks: Vec<(f64, String)>,
}

impl Span {
    /// The span of `values` with about `count` ticks; `round` extends it to whole ticks.
    pub(super) fn new(axis: &Axis, values: impl Iterator<Item = f64>, count: usize, round: bool) -> Self {
        let scale = axis.scale;
        let placed = values.chain(axis.include).filter_map(|value| scale.of(value));
        let (lo, hi) = placed.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
        let (mut lo, mut hi) = if lo <= hi { (lo, hi) } else { (0.0, 1.0) };
        if let Some((least, most)) = axis.within {
            lo = lo.max(scale.of(least).unwrap_or(lo));
            hi = hi.min(scale.of(most).unwrap_or(hi)).max(lo);
        }
        if hi - lo <= 1e-9 * lo.abs().max(hi.abs()) {
            // A constant still needs a range: a tenth of its size to each side.
            let half = if scale == Scale::Log { 0.5 } else { (lo.abs() * 0.1).max(1e-12) };
            let (least, most) = if lo == 0.0 && scale == Scale::Linear { (0.0, 1.0) } else { (lo - half, hi + half) };
            (lo, hi) = (least, most);
        }
        let marks = match scale {
            Scale::Linear => linear_marks(lo, hi, count),
            Scale::Log => log_marks(lo, hi, count),
        };
        if round {
            lo = marks.iter().copied().map(|m| scale.of(m).unwrap_or(lo)).filter(|m| *m <= lo).fold(lo, f64::min);
            hi = marks.iter().copied().map(|m| scale.of(m).unwrap_or(hi)).filter(|m| *m >= hi).fold(hi, f64::max);
        }
        let slack = 1e-9 * (hi - lo);
        let inside = |m: &f64| scale.of(*m).is_some_and(|c| c >= lo - slack && c <= hi + slack);
        let marks: Vec<f64> = marks.into_iter().filter(inside).collect();
        let labels = labels(scale, &marks);
        Self { scale, lo, hi, ticks: marks.into_iter().zip(labels).collect() }
    }

    /// Where `value` lies between the ends, 0 to 1, or beyond them; `None` where it has no place.
    pub(super) fn share(&self, value: f64) -> Option<f64> {
        self.scale.of(value).map(|coordinate| (coordinate - self.lo) / (self.hi - self.lo))
    }
}

/// Multiples of a round step that enclose `lo` to `hi`.
fn linear_marks(lo: f64, hi: f64, count: usize) -> Vec<f64> {
    let step = round_step((hi - lo) / count.max(1) as f64);
    let (first, last) = ((lo / step + 1e-9).floor(), (hi / step - 1e-9).ceil());
    let n = (last - first).clamp(0.0, 1000.0) as i64;
    // The product of a whole number and a short decimal fraction may carry a last digit too many.
    (0..=n).map(|i| ((first + i as f64) * step * 1e12 / step).round() * step / 1e12).collect()
}

/// The smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// Powers of ten that enclose `lo` to `hi`, which are logarithms; with twos and fives where few fit.
fn log_marks(lo: f64, hi: f64, count: usize) -> Vec<f64> {
    let (first, last) = ((lo + 1e-9).floor() as i32, (hi - 1e-9).ceil() as i32);
    let decades = (last - first).max(1);
    let within: &[f64] = match decades {
        1 | 2 => &[1.0, 2.0, 5.0],
        3 if count > 4 => &[1.0, 3.0],
        _ => &[1.0],
    };
    let every = (decades as usize).div_ceil(count.max(1) + 1).max(1);
    let mut marks: Vec<f64> = (first..last)
        .step_by(every)
        .flat_map(|decade| within.iter().map(move |factor| factor * 10f64.powi(decade)))
        .chain([10f64.powi(last)])
        .collect();
    // The closest marks on both sides are enough.
    while marks.len() > 2 && marks[1].log10() <= lo + 1e-9 {
        marks.remove(0);
    }
    while marks.len() > 2 && marks[marks.len() - 2].log10() >= hi - 1e-9 {
        marks.pop();
    }
    marks
}

/// Labels of ticks, all with the same unit and number of decimals.
fn labels(scale: Scale, marks: &[f64]) -> Vec<String> {
    let (least, most) = (marks.first().copied().unwrap_or(0.0), marks.last().copied().unwrap_or(0.0));
    if scale == Scale::Log {
        let powers = least < 0.99e-3 || most > 1.01e5;
        return marks.iter().map(|m| if powers { power_of_ten(*m) } else { figure(*m) }).collect();
    }
    let largest = least.abs().max(most.abs());
    let step = marks.get(1).map_or(1.0, |second| second - least).abs();
    let (unit, suffix) = unit(largest);
    if largest > 0.0 && largest < 1e-3 {
        let power = largest.log10().floor();
        let scaled = |m: f64| round_to(m / 10f64.powf(power), 2);
        return marks
            .iter()
            .map(|m| if *m == 0.0 { "0".into() } else { format!("{}{}", scaled(*m), times_ten_to(power as i32)) })
            .collect();
    }
    let decimals = decimals_of(step / unit);
    marks.iter().map(|m| if *m == 0.0 { "0".into() } else { format!("{:.decimals$}{suffix}", m / unit) }).collect()
}

/// Decimals that a multiple of `step` needs.
fn decimals_of(step: f64) -> usize {
    (0..9).find(|&d| ((step * 10f64.powi(d)).round() / 10f64.powi(d) - step).abs() < 1e-6 * step).unwrap_or(9) as usize
}

fn unit(largest: f64) -> (f64, &'static str) {
    match largest {
        x if x >= 1e9 => (1e9, "B"),
        x if x >= 1e6 => (1e6, "M"),
        x if x >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    }
}

fn power_of_ten(value: f64) -> String {
    let exponent = (value.log10() + 1e-9).floor();
    let factor = round_to(value / 10f64.powf(exponent), 1);
    let power = times_ten_to(exponent as i32);
    if factor == "1" { power.trim_start_matches('×').into() } else { format!("{factor}{power}") }
}

/// `×10⁻⁵`.
fn times_ten_to(exponent: i32) -> String {
    let mut text = String::from("×10");
    for c in exponent.to_string().chars() {
        text.push(match c {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            digit => char::from_u32('⁰' as u32 + digit.to_digit(10).unwrap_or(0)).unwrap_or(digit),
        });
    }
    text
}

/// `value` with at most `decimals` decimals and no zeros at the end.
fn round_to(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// A number for people: four digits that count, thousands and millions shortened.
pub fn figure(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "–".into();
    }
    if size == 0.0 {
        return "0".into();
    }
    if size < 1e-3 {
        let exponent = size.log10().floor();
        return format!("{}{}", round_to(value / 10f64.powf(exponent), 2), times_ten_to(exponent as i32));
    }
    let (unit, suffix) = unit(size);
    let scaled = value / unit;
    let decimals = (3 - scaled.abs().log10().floor() as i32).clamp(0, 6) as usize;
    let mut text = round_to(scaled, decimals);
    let _infallible = write!(text, "{suffix}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: &Axis, values: &[f64]) -> Vec<String> {
        Span::new(axis, values.iter().copied(), 5, true).ticks.into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        assert_eq!(ticks(&Axis::linear(""), &[0.463, 0.809]), ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]);
        assert_eq!(ticks(&Axis::linear(""), &[0.0, 3_002_368.0]), ["0", "1M", "2M", "3M", "4M"]);
        assert_eq!(ticks(&Axis::linear("").including(0.0), &[4e-4]), ["0", "1×10⁻⁴", "2×10⁻⁴", "3×10⁻⁴", "4×10⁻⁴"]);
        assert_eq!(ticks(&Axis::log(""), &[29.8, 2222.0]), ["10", "30", "100", "300", "1000", "3000"]);
        assert_eq!(ticks(&Axis::log(""), &[1.4, 7.0]), ["1", "2", "5", "10"]);
        assert_eq!(ticks(&Axis::log(""), &[2e-6, 0.3]), ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]);
        for (lo, hi) in [(0.1, 0.3), (-7.3, 19.0), (1e-7, 3e-7), (123_456.0, 123_500.0), (-1.0, -0.2)] {
            let span = Span::new(&Axis::linear(""), [lo, hi].into_iter(), 5, true);
            assert!(span.share(lo).unwrap() >= 0.0 && span.share(hi).unwrap() <= 1.0);
            assert!((3..=9).contains(&span.ticks.len()), "{lo} to {hi}: {:?}", span.ticks);
            let mut labels: Vec<&String> = span.ticks.iter().map(|t| &t.1).collect();
            labels.dedup();
            assert_eq!(labels.len(), span.ticks.len(), "{labels:?}");
        }
    }

    #[test]
    fn empty_constant_and_impossible_values_have_axes() {
        let span = |axis: &Axis, values: &[f64]| Span::new(axis, values.iter().copied(), 5, true);
        for axis in [Axis::linear(""), Axis::log("")] {
            for values in [&[][..], &[0.0], &[5.0, 5.0], &[-3.0], &[f64::NAN, f64::INFINITY], &[1e-300, 1e300]] {
                let span = span(&axis, values);
                assert!(span.lo < span.hi && span.lo.is_finite() && span.hi.is_finite(), "{axis:?} {values:?}");
                assert!(span.ticks.len() < 20 && span.share(f64::NAN).is_none());
            }
        }
        assert!(span(&Axis::log(""), &[1.0]).share(0.0).is_none());
        let cut = span(&Axis::linear("").within(0.0, 1.0), &[-300.0, 0.9]);
        assert!(cut.share(0.0) == Some(0.0) && cut.share(-1.0).unwrap() < 0.0, "{cut:?}");
    }

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 12345.0, 3_002_368.0, 0.80939, 29.785, 2.0e-5, -7.0, f64::NAN, 999.96, 4608.0].map(figure);
        assert_eq!(shown, ["0", "12.35k", "3.002M", "0.8094", "29.79", "2×10⁻⁵", "-7", "–", "1000", "4608"]);
    }
}
