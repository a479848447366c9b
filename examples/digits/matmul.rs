//! Products of row-major matrices, in loops that the compiler turns into vector instructions.

/// `c += a * b` for `a` of `k` columns and `b` of `n`.
pub(crate) fn matmul(a: &[f32], b: &[f32], c: &mut [f32], k: usize, n: usize) {
    for (a, c) in a.chunks_exact(k).zip(c.chunks_exact_mut(n)) {
        add_scaled_rows(a.iter().copied(), b, c);
    }
}

/// `c += transpose(a) * b` for `a` of `k` columns and `b` of `n`.
pub(crate) fn matmul_transposed(a: &[f32], b: &[f32], c: &mut [f32], k: usize, n: usize) {
    for (column, c) in c.chunks_exact_mut(n).enumerate() {
        add_scaled_rows(a[column..].iter().step_by(k).copied(), b, c);
    }
}

/// Adds the rows of `b`, each scaled by its factor, to `c`. Four at a time, so that `c` is read and written once for
/// four rows.
fn add_scaled_rows(mut factors: impl Iterator<Item = f32>, b: &[f32], c: &mut [f32]) {
    let n = c.len();
    let fours = b.chunks_exact(4 * n);
    let rest = fours.remainder();
    for rows in fours {
        let [f0, f1, f2, f3] = std::array::from_fn(|_| factors.next().unwrap_or_default());
        let (b0, b1, b2, b3) = (&rows[..n], &rows[n..2 * n], &rows[2 * n..3 * n], &rows[3 * n..]);
        for ((((c, b0), b1), b2), b3) in c.iter_mut().zip(b0).zip(b1).zip(b2).zip(b3) {
            *c += f0 * b0 + f1 * b1 + f2 * b2 + f3 * b3;
        }
    }
    for (row, factor) in rest.chunks_exact(n).zip(factors) {
        for (c, b) in c.iter_mut().zip(row) {
            *c += factor * b;
        }
    }
}

/// The transpose of a matrix of `columns` columns.
pub(crate) fn transpose(a: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| a[column..].iter().step_by(columns).copied()).collect()
}
