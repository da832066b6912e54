//! A linear classifier and the scaling of its inputs.

use rayon::prelude::*;

/// Rows `[n, d]` in f64, as solvers take them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    values: Vec<f64>,
    width: usize,
}

impl Rows {
    /// The rows of `values` `[.., width]` with the numbers `chosen`.
    pub fn select(values: &[f32], width: usize, chosen: &[usize]) -> Self {
        let mut selected = Vec::with_capacity(chosen.len() * width);
        for &row in chosen {
            selected.extend(values[row * width..][..width].iter().map(|&x| f64::from(x)));
        }
        Self { values: selected, width }
    }

    /// Rows that are in f64 already.
    pub fn new(values: Vec<f64>, width: usize) -> Self {
        debug_assert!(width > 0 && values.len().is_multiple_of(width));
        Self { values, width }
    }

    /// `n`.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// `d`.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Row by row.
    pub fn each(&self) -> std::slice::ChunksExact<'_, f64> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// All values, `[n · d]`.
    pub(super) fn values(&self) -> &[f64] {
        &self.values
    }
}

/// Mean and standard deviation of every coordinate (`n` in the denominator, a constant coordinate keeps its scale), as
/// scikit-learn's `StandardScaler`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scaler {
    mean: Vec<f64>,
    deviation: Vec<f64>,
}

impl Scaler {
    /// That of `rows`.
    pub fn of(rows: &Rows) -> Self {
        let (n, d) = (rows.len().max(1) as f64, rows.width());
        let mut mean = vec![0.0; d];
        for row in rows.each() {
            mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n);
        }
        let mut variance = vec![0.0; d];
        for row in rows.each() {
            variance.iter_mut().zip(row.iter().zip(&mean)).for_each(|(v, (x, m))| *v += (x - m) * (x - m) / n);
        }
        // A coordinate that varies by rounding alone is constant.
        let deviation = variance.iter().zip(&mean).map(|(v, m)| {
            let s = v.sqrt();
            if s > 1e-12 * m.abs() && s > 0.0 { s } else { 1.0 }
        });
        Self { deviation: deviation.collect(), mean }
    }

    /// Scales `rows` to mean 0 and deviation 1.
    pub fn apply(&self, rows: &mut Rows) {
        let Rows { values, width } = rows;
        for row in values.chunks_exact_mut((*width).max(1)) {
            for (x, (m, s)) in row.iter_mut().zip(self.mean.iter().zip(&self.deviation)) {
                *x = (*x - m) / s;
            }
        }
    }
}

/// `z = W x + b`. With one output the classes are `z ≤ 0` and `z > 0`; with several the largest output wins.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// `W`, `[outputs, d]`.
    pub weights: Vec<f64>,
    /// `b`, `[outputs]`.
    pub biases: Vec<f64>,
}

impl Linear {
    /// Number of outputs: one for two classes.
    pub fn outputs(&self) -> usize {
        self.biases.len()
    }

    /// The weights of output `o`, `[d]`.
    pub fn direction(&self, o: usize) -> &[f64] {
        let d = self.weights.len() / self.outputs().max(1);
        &self.weights[o * d..][..d]
    }

    /// `z` of every row, `[n, outputs]`.
    pub fn outputs_on(&self, rows: &Rows) -> Vec<f64> {
        let k = self.outputs();
        let mut all = vec![0.0; rows.len() * k];
        all.par_chunks_mut(k.max(1)).zip(rows.values().par_chunks_exact(rows.width().max(1))).for_each(|(z, row)| {
            for (o, z) in z.iter_mut().enumerate() {
                *z = dot(self.direction(o), row) + self.biases[o];
            }
        });
        all
    }

    /// The classifier that gives on raw rows what this one gives on rows scaled by `scaler`.
    #[must_use]
    pub fn unscaled(&self, scaler: &Scaler) -> Self {
        let Scaler { mean, deviation } = scaler;
        let weights: Vec<f64> = (0..self.outputs())
            .flat_map(|o| self.direction(o).iter().zip(deviation).map(|(w, s)| w / s).collect::<Vec<_>>())
            .collect();
        let d = mean.len();
        let biases = self.biases.iter().enumerate().map(|(o, b)| b - dot(&weights[o * d..][..d], mean)).collect();
        Self { weights, biases }
    }
}

/// `x · y`, in lanes that the compiler can keep in vector registers.
pub(super) fn dot(x: &[f64], y: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let (x_parts, y_parts) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let tail: f64 = x_parts.remainder().iter().zip(y_parts.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in x_parts.zip(y_parts) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// `y += a x`.
pub(super) fn add_scaled(y: &mut [f64], a: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_folds_into_the_weights() {
        let raw: Vec<f32> = (0..33).map(|i| ((i * 7) % 11) as f32 * 0.5 - 1.0).chain([4.0; 3]).collect();
        let rows = Rows::select(&raw, 3, &(0..12).collect::<Vec<_>>());
        let scaler = Scaler::of(&rows);
        let mut scaled = rows.clone();
        scaler.apply(&mut scaled);
        for coordinate in 0..3 {
            let column: Vec<f64> = scaled.each().map(|row| row[coordinate]).collect();
            assert!(column.iter().sum::<f64>().abs() < 1e-12);
            assert!((column.iter().map(|x| x * x).sum::<f64>() / 12.0 - 1.0).abs() < 1e-12);
        }
        let linear = Linear { weights: vec![1.0, -2.0, 0.5, 0.0, 3.0, 1.0], biases: vec![0.25, -1.0] };
        let (on_scaled, on_raw) = (linear.outputs_on(&scaled), linear.unscaled(&scaler).outputs_on(&rows));
        assert!(on_scaled.iter().zip(&on_raw).all(|(a, b)| (a - b).abs() < 1e-12));
        assert!(on_raw.iter().any(|z| z.abs() > 0.5));
    }

    #[test]
    fn a_constant_coordinate_keeps_its_scale() {
        let mut rows = Rows::new(vec![0.1, 1.0, 0.1, 3.0, 0.1, 8.0], 2);
        let scaler = Scaler::of(&rows);
        scaler.apply(&mut rows);
        assert!(rows.each().all(|row| row[0].abs() < 1e-15));
    }

    #[test]
    fn dot_takes_every_element() {
        for n in [0, 1, 7, 8, 9, 31] {
            let x: Vec<f64> = (0..n).map(f64::from).collect();
            assert_eq!(dot(&x, &x), x.iter().map(|x| x * x).sum::<f64>());
        }
    }
}
