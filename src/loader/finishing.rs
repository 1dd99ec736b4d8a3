//! What a column is made into on the device, as the user asks for it.

use crate::dataset::Dtype;
use crate::device::{Arrangement, Finishing, Pictures, Real, Widening};
use crate::error::{Error, Kind, Result};

/// Bytes made into reals: `(value / 255 - mean) / deviation`, channel by channel, as torchvision's `ToTensor` and `Normalize` do it, to the
/// last bit.
///
/// All of it is done in float32, each step rounded to nearest; what comes out is rounded once more where the type is shorter, to nearest
/// even.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalize {
    means: Vec<f32>,
    deviations: Vec<f32>,
    to: Dtype,
    channels_first: bool,
}

impl Normalize {
    /// A mean and a standard deviation for each channel, of values from 0 to 1; or one of each for all. What comes out is float32.
    pub fn new(means: &[f32], deviations: &[f32]) -> Self {
        Normalize { means: means.to_vec(), deviations: deviations.to_vec(), to: Dtype::F32, channels_first: false }
    }

    /// The three channels of ImageNet: means 0.485, 0.456, 0.406, deviations 0.229, 0.224, 0.225.
    pub fn imagenet() -> Self {
        Normalize::new(&[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225])
    }

    /// Only scaled, to values from 0 to 1.
    pub fn scaled() -> Self {
        Normalize::new(&[0.0], &[1.0])
    }

    /// What comes out: float32, float16 or bfloat16.
    #[must_use]
    pub fn to(mut self, dtype: Dtype) -> Self {
        self.to = dtype;
        self
    }

    /// The array has its channels first already: its shape ends in C, H, W instead of H, W, C.
    #[must_use]
    pub fn of_channels_first(mut self) -> Self {
        self.channels_first = true;
        self
    }

    /// The step for an array of this shape, with which its channels go first where `move_channels` is set.
    fn finishing(&self, shape: &[usize], move_channels: bool) -> Result<Finishing> {
        let real = match self.to {
            Dtype::F32 => Real::F32,
            Dtype::F16 => Real::F16,
            Dtype::BF16 => Real::BF16,
            other => {
                return Err(Error::new(Kind::Config, format!("normalised to {}", other.name()))
                    .advice("float32, float16 and bfloat16 can be had"));
            }
        };
        let one_for_all = self.means.len() == 1 && self.deviations.len() == 1;
        let (pictures, arrangement) = match (self.channels_first, move_channels) {
            (true, true) => {
                return Err(Error::new(Kind::Config, "channels that are first already cannot go there")
                    .advice("leave one of channels_first and Normalize::of_channels_first out"));
            }
            (false, true) => (pictures(shape)?, Arrangement::ToChannelsFirst),
            // Where all channels are treated alike it does not matter which is which.
            _ if one_for_all => {
                let pixels = elements(shape)?;
                (Pictures { count: 1, pixels, channels: 1 }, Arrangement::ChannelsLast)
            }
            (true, false) => (pictures(&channels_last(shape)?)?, Arrangement::ChannelsFirst),
            (false, false) => {
                let (channels, rest) = shape.split_last().ok_or_else(|| no_picture(shape))?;
                let pixels = elements(rest)?;
                (Pictures { count: 1, pixels, channels: *channels }, Arrangement::ChannelsLast)
            }
        };
        if one_for_all {
            // More than there can be are not made: what follows says so.
            let of_each = |values: &[f32]| values.repeat(pictures.channels.min(Finishing::CHANNELS_MAX));
            let (means, deviations) = (of_each(&self.means), of_each(&self.deviations));
            return Finishing::normalize(&means, &deviations, real, pictures, arrangement);
        }
        Finishing::normalize(&self.means, &self.deviations, real, pictures, arrangement)
            .map_err(|error| self.with_hint(error, shape, pictures.channels))
    }

    /// Says where channels are looked for, where there are as many in the other place as there are means.
    fn with_hint(&self, error: Error, shape: &[usize], channels: usize) -> Error {
        let is_first = matches!(shape, [.., first, _, _] if *first == self.means.len());
        if self.channels_first || !is_first || channels == self.means.len() {
            return error;
        }
        error.advice(
            "channels are the last extent of the shape; where they come first already, leave channels_first out and say so by \
             Normalize::of_channels_first (in Python Normalize(..., channels_first=True))",
        )
    }
}

/// The steps that were asked for; none by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Steps {
    pub(super) widen: Option<Dtype>,
    pub(super) channels_first: bool,
    pub(super) normalize: Option<Normalize>,
}

/// What a column is in the end, and the step that makes it.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub(super) finishing: Finishing,
    pub(super) dtype: Dtype,
    /// Of a row.
    pub(super) shape: Vec<usize>,
}

impl Steps {
    pub(super) fn is_none(&self) -> bool {
        *self == Steps::default()
    }

    /// What an array of this type and shape becomes; `None` where it stays as it is.
    pub(super) fn of_array(&self, dtype: Dtype, shape: &[usize]) -> Result<Option<Finished>> {
        let refused = |what: String, advice: &'static str| Err(Error::new(Kind::Config, what).advice(advice));
        if let Some(to) = self.widen {
            if self.channels_first || self.normalize.is_some() {
                let advice = "leave `widen` out: normalising takes uint8 as it is";
                return refused("widened and made into a picture".into(), advice);
            }
            let Some(widening) = widening(dtype, to) else {
                let advice = "uint8 and uint16 become int32 or int64, uint32 and int32 become int64";
                return refused(format!("{} cannot be widened to {}", dtype.name(), to.name()), advice);
            };
            let finishing = Finishing::widen(widening, elements(shape)?);
            return Ok(Some(Finished { finishing, dtype: to, shape: shape.to_vec() }));
        }
        let finished_shape = if self.channels_first { channels_first(shape)? } else { shape.to_vec() };
        match &self.normalize {
            Some(_) if dtype != Dtype::U8 => {
                refused(format!("{} cannot be normalised", dtype.name()), "only uint8 can: its values are looked up")
            }
            Some(normalize) => {
                let finishing = normalize.finishing(shape, self.channels_first)?;
                Ok(Some(Finished { finishing, dtype: normalize.to, shape: finished_shape }))
            }
            None if self.channels_first => {
                let finishing = Finishing::planes(dtype.bytes(), pictures(shape)?)?;
                Ok(Some(Finished { finishing, dtype, shape: finished_shape }))
            }
            None => Ok(None),
        }
    }
}

fn widening(from: Dtype, to: Dtype) -> Option<Widening> {
    Some(match (from, to) {
        (Dtype::U8, Dtype::I32) => Widening::U8ToI32,
        (Dtype::U8, Dtype::I64) => Widening::U8ToI64,
        (Dtype::U16, Dtype::I32) => Widening::U16ToI32,
        (Dtype::U16, Dtype::I64) => Widening::U16ToI64,
        (Dtype::U32, Dtype::I64) => Widening::U32ToI64,
        (Dtype::I32, Dtype::I64) => Widening::I32ToI64,
        _ => return None,
    })
}

fn elements(shape: &[usize]) -> Result<usize> {
    let product = shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent));
    product.ok_or_else(|| Error::new(Kind::Config, format!("an array of shape {shape:?}")))
}

/// The pictures of a shape that ends in H, W, C.
fn pictures(shape: &[usize]) -> Result<Pictures> {
    match shape {
        [rest @ .., height, width, channels] => {
            Ok(Pictures { count: elements(rest)?, pixels: elements(&[*height, *width])?, channels: *channels })
        }
        _ => Err(no_picture(shape)),
    }
}

/// [.., H, W, C] as [.., C, H, W].
fn channels_first(shape: &[usize]) -> Result<Vec<usize>> {
    let [rest @ .., height, width, channels] = shape else { return Err(no_picture(shape)) };
    Ok([rest, &[*channels, *height, *width]].concat())
}

/// [.., C, H, W] as [.., H, W, C].
fn channels_last(shape: &[usize]) -> Result<Vec<usize>> {
    let [rest @ .., channels, height, width] = shape else { return Err(no_picture(shape)) };
    Ok([rest, &[*height, *width, *channels]].concat())
}

fn no_picture(shape: &[usize]) -> Error {
    Error::new(Kind::Config, format!("an array of shape {shape:?} is no picture"))
        .advice("height, width and channels are its last three extents; give them, also where they are 1")
}
