//! What the norms of channels have in common.

use candle::{Result, Tensor};

use crate::op::{Call, Norm, Output, check_residual};

/// A tensor whose elements lie in order once its dimensions are put so.
struct Laid {
    tensor: Tensor,
    channels_last: bool,
}

/// The dimensions with that of the channels moved to the end.
fn to_last(rank: usize) -> Vec<usize> {
    [0].into_iter().chain(2..rank).chain([1]).collect()
}

/// And back.
fn from_last(rank: usize) -> Vec<usize> {
    [0, rank - 1].into_iter().chain(1..rank - 1).collect()
}

impl Laid {
    /// Channels last are taken as they lie; what is neither is copied.
    fn new(x: &Tensor) -> Result<Self> {
        if x.rank() > 2 && !x.is_contiguous() {
            let tensor = x.permute(to_last(x.rank()))?;
            if tensor.is_contiguous() {
                return Ok(Self { tensor, channels_last: true });
            }
        }
        Ok(Self { tensor: x.contiguous()?, channels_last: false })
    }

    /// A tensor of the same dimensions, laid the same way.
    fn like(&self, other: &Tensor) -> Result<Tensor> {
        match self.channels_last {
            true => other.permute(to_last(other.rank()))?.contiguous(),
            false => other.contiguous(),
        }
    }
}

/// More dimensions than warpnorm takes: those of positions become one.
const MANY: usize = 6;

/// The same elements in dimensions that warpnorm takes.
fn collapsed(laid: &Tensor, channels_last: bool) -> Result<Tensor> {
    match *laid.dims() {
        [samples, .., channels] if laid.rank() >= MANY && channels_last => {
            laid.reshape((samples, (), channels))
        }
        [samples, channels, ..] if laid.rank() >= MANY => laid.reshape((samples, channels, ())),
        _ => Ok(laid.clone()),
    }
}

/// `act(norm(x) + residual)`, laid as `x` is.
pub(crate) fn call(
    norm: Norm,
    x: &Tensor,
    residual: Option<&Tensor>,
    weight_and_bias: Option<(&Tensor, &Tensor)>,
) -> Result<Output> {
    if let Some(residual) = residual {
        check_residual(&norm, x, residual)?;
    }
    let laid = Laid::new(x)?;
    let seen = collapsed(&laid.tensor, laid.channels_last)?;
    let residual =
        residual.map(|residual| collapsed(&laid.like(residual)?, laid.channels_last)).transpose()?;
    let (weight, bias) = weight_and_bias.unzip();
    let [weight, bias] = [weight, bias].map(|param| param.map(Tensor::contiguous).transpose());
    let (weight, bias) = (weight?, bias?);
    let call = Call {
        norm,
        x: &seen,
        residual: residual.as_ref(),
        weight: weight.as_ref(),
        bias: bias.as_ref(),
        channels_last: laid.channels_last,
    };
    let Output { y, running } = call.apply()?;
    let y = if y.rank() == laid.tensor.rank() { y } else { y.reshape(laid.tensor.dims())? };
    let y = if laid.channels_last { y.permute(from_last(y.rank()))? } else { y };
    Ok(Output { y, running })
}
