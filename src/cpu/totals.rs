use core::ops::Range;

use super::{
    memory::{Shared, Source, Span},
    parallel,
    simd::{Kernel, LANES, Simd, dispatch},
};

/// Sums that units of work leave, one row of them each, to be added up in the order of the units.
pub(super) struct Totals {
    parts: Vec<f32>,
    width: usize,
}

impl Totals {
    pub(super) fn new(units: usize, width: usize) -> Self {
        Self { parts: vec![0.0; units * width], width }
    }

    pub(super) fn shared(&mut self) -> Shared<'_, f32> {
        Shared::new(&mut self.parts)
    }

    /// The sum over some of the units of each column.
    pub(super) fn add_up(&self, units: Range<usize>) -> Vec<f64> {
        let parts = &self.parts[units.start * self.width..units.end * self.width];
        let mut totals = vec![0.0; self.width];
        /// Columns of a unit of this work.
        const COLUMNS: usize = 4096;
        let shared = Shared::new(&mut totals);
        parallel::for_each(self.width.div_ceil(COLUMNS), 4 * parts.len(), |unit| {
            let start = unit * COLUMNS;
            let len = COLUMNS.min(self.width - start);
            // SAFETY: each unit has columns of its own.
            let totals = unsafe { shared.target().slice(start, len) };
            dispatch(AddUp { parts, width: self.width, start, totals });
        });
        totals
    }
}

/// Adds up some of the columns.
struct AddUp<'a> {
    parts: &'a [f32],
    width: usize,
    start: usize,
    totals: &'a mut [f64],
}

impl Kernel for AddUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let parts = Source::new(self.parts);
        for row in (0..self.parts.len()).step_by(self.width) {
            let len = self.totals.len();
            let row = parts.run(row + self.start, len);
            for (i, totals) in self.totals.chunks_mut(LANES).enumerate() {
                let part = row.load::<S>(Span::new(i * LANES, totals.len(), len)).to_array();
                for (total, part) in totals.iter_mut().zip(part) {
                    *total += f64::from(part);
                }
            }
        }
    }
}
