//! Matrices as lists of rows, and the operations of the reference on them.

/// Rows of a matrix.
pub(super) type Matrix = Vec<Vec<f64>>;

pub(super) fn product(x: &Matrix, weight: &[f64], bias: &[f64]) -> Matrix {
    x.iter()
        .map(|x| {
            let rows = weight.chunks_exact(x.len());
            rows.zip(bias).map(|(w, b)| dot(x, w) + b).collect()
        })
        .collect()
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

pub(super) fn add_rows(x: &mut Matrix, y: &Matrix) {
    x.iter_mut().zip(y).for_each(|(x, y)| add(x, y));
}

pub(super) fn mean(x: &Matrix) -> Vec<f64> {
    let mut mean = vec![0.0; x.first().map_or(0, Vec::len)];
    x.iter().for_each(|row| add(&mut mean, row));
    mean.iter_mut().for_each(|v| *v /= x.len() as f64);
    mean
}

pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn gelu(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}
