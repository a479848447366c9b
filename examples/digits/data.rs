//! The images, and how they are split.

use crate::{layers::Batch, rng::Rng};

/// Pixels along an edge.
pub(crate) const SIDE: usize = 8;
pub(crate) const CLASSES: usize = 10;
const TRAIN: usize = 1347;
const SPLIT_SEED: u64 = 1797;

/// One handwritten digit: pixels from 0 to 1, and which digit it is.
pub(crate) struct Digit {
    pixels: Vec<f32>,
    class: usize,
}

/// The set in two parts, the same in every run.
pub(crate) struct Digits {
    pub(crate) train: Vec<Digit>,
    pub(crate) test: Vec<Digit>,
}

impl Digits {
    pub(crate) fn load() -> Self {
        let mut train: Vec<Digit> = include_str!("digits.csv").lines().map(Digit::parse).collect();
        // The file's order is not random: much of it counts from 0 to 9 again and again.
        Rng::new(SPLIT_SEED).shuffle(&mut train);
        let test = train.split_off(TRAIN);
        Self { train, test }
    }
}

impl Digit {
    /// Reads a line of the file: 64 gray levels from 0 to 16, then the class.
    fn parse(line: &str) -> Self {
        let values: Vec<u8> = line.split(',').map(|v| v.parse().expect("digits.csv holds numbers")).collect();
        let (class, pixels) = values.split_last().expect("digits.csv has no empty lines");
        assert_eq!(pixels.len(), SIDE * SIDE, "a line of digits.csv is one image and its class");
        Self { pixels: pixels.iter().map(|&v| f32::from(v) / 16.0).collect(), class: usize::from(*class) }
    }
}

/// Puts digits together as the network takes them.
pub(crate) fn batch<'a>(digits: impl IntoIterator<Item = &'a Digit>) -> (Batch, Vec<usize>) {
    let (mut data, mut classes) = (Vec::new(), Vec::new());
    for digit in digits {
        data.extend_from_slice(&digit.pixels);
        classes.push(digit.class);
    }
    let dims = [classes.len(), SIDE, SIDE, 1];
    (Batch { data, dims }, classes)
}
