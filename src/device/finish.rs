//! What a dense column goes through between its copies and its hand-over: integers widened, pixels normalised or put in planes.
//!
//! The bytes travel as they were stored, and land in a region of the slot beside the one that they become. On a GPU a
//! kernel on the copy stream does it, before the batch's event; on the host device the copying thread. Both give the same bits: nothing
//! is computed there but places. What is computed, 256 values for each channel, is a table that both look up.

#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod host;
mod table;

use std::sync::Arc;

pub use table::Real;

use crate::error::{Error, Kind, Result};

/// Elements of a batch that one step of pictures takes, at most: kernels count them in 31 bits.
const PICTURE_ELEMENTS_MAX: usize = (1 << 31) - 1;

/// A step for one column: so many bytes of each row become so many others.
#[derive(Clone, Debug)]
pub struct Finishing {
    step: Step,
}

#[derive(Clone, Debug)]
enum Step {
    Widen { widening: Widening, elements: usize },
    Planes { element_bytes: usize, pictures: Pictures },
    LookUp { table: Arc<[u8]>, real: Real, pictures: Pictures, arrangement: Arrangement },
}

/// A step and what it is carried out on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its place in the list that [`Engine::prepare`](super::Engine::prepare) was given.
    pub step: usize,
    /// Offset in the slot of the rows as they travelled: a multiple of their elements' size.
    pub from: usize,
    /// Offset in the slot of what becomes of them, as well. The two regions do not overlap.
    pub to: usize,
    /// Rows.
    pub rows: usize,
}

/// From which integers to which. A value stays what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Widening {
    /// uint8 to int32.
    U8ToI32,
    /// uint8 to int64.
    U8ToI64,
    /// uint16 to int32.
    U16ToI32,
    /// uint16 to int64.
    U16ToI64,
    /// uint32 to int64.
    U32ToI64,
    /// int32 to int64.
    I32ToI64,
}

impl Widening {
    /// Bytes of an element before, and after.
    fn bytes(self) -> (usize, usize) {
        match self {
            Widening::U8ToI32 => (1, 4),
            Widening::U8ToI64 => (1, 8),
            Widening::U16ToI32 => (2, 4),
            Widening::U16ToI64 => (2, 8),
            Widening::U32ToI64 | Widening::I32ToI64 => (4, 8),
        }
    }
}

/// The pictures of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pictures {
    /// How many: 1, or the frames of a film.
    pub count: usize,
    /// Height × width.
    pub pixels: usize,
    /// Values of a pixel.
    pub channels: usize,
}

impl Pictures {
    fn elements(self) -> Option<usize> {
        self.count.checked_mul(self.pixels)?.checked_mul(self.channels)
    }
}

/// How the values of a picture lie before a step, and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// HWC, and so they stay.
    ChannelsLast,
    /// CHW, and so they stay.
    ChannelsFirst,
    /// HWC become CHW.
    ToChannelsFirst,
}

impl Finishing {
    /// Channels that a picture may have where its values are normalised: their tables take 64 MiB as float32.
    pub const CHANNELS_MAX: usize = 1 << 16;

    /// Makes `elements` integers of each row wider.
    pub fn widen(widening: Widening, elements: usize) -> Self {
        Finishing { step: Step::Widen { widening, elements } }
    }

    /// Puts pixels HWC into planes CHW; an element has 1, 2, 4 or 8 bytes.
    ///
    /// # Errors
    /// `Config` for elements of another size, and for pictures that are empty or too large.
    pub fn planes(element_bytes: usize, pictures: Pictures) -> Result<Self> {
        if !matches!(element_bytes, 1 | 2 | 4 | 8) {
            return Err(Error::new(Kind::Config, format!("elements of {element_bytes} bytes in planes")));
        }
        check(pictures)?;
        Ok(Finishing { step: Step::Planes { element_bytes, pictures } })
    }

    /// Makes `(value / 255 - mean) / deviation` of each byte, with the mean and deviation of its channel: in float32, each step rounded to
    /// nearest, as torchvision does it; then rounded to `real`, to nearest even.
    ///
    /// # Errors
    /// `Config` when there is not a mean and a deviation for each channel, when one is not finite or a deviation is 0, for more than
    /// [`Finishing::CHANNELS_MAX`] channels, and for pictures that are empty or too large.
    pub fn normalize(
        means: &[f32],
        deviations: &[f32],
        real: Real,
        pictures: Pictures,
        arrangement: Arrangement,
    ) -> Result<Self> {
        check(pictures)?;
        let Pictures { channels, .. } = pictures;
        if channels > Finishing::CHANNELS_MAX {
            let advice = format!("at most {} can be: each has a table", Finishing::CHANNELS_MAX);
            return Err(Error::new(Kind::Config, format!("{channels} channels normalised")).advice(advice));
        }
        if means.len() != channels || deviations.len() != channels {
            let (means, deviations) = (means.len(), deviations.len());
            let what = format!("{means} means and {deviations} deviations for {channels} channels");
            return Err(Error::new(Kind::Config, what).advice("give one of each per channel"));
        }
        let table = table::normalizing(means, deviations, real)?.into();
        Ok(Finishing { step: Step::LookUp { table, real, pictures, arrangement } })
    }

    /// Bytes of a row before.
    pub fn raw_bytes(&self) -> usize {
        let pictures = |pictures: &Pictures| pictures.count * pictures.pixels * pictures.channels;
        match &self.step {
            Step::Widen { widening, elements } => elements.saturating_mul(widening.bytes().0),
            Step::Planes { element_bytes, pictures: each } => pictures(each).saturating_mul(*element_bytes),
            Step::LookUp { pictures: each, .. } => pictures(each),
        }
    }

    /// Bytes of a row after.
    pub fn finished_bytes(&self) -> usize {
        match &self.step {
            Step::Widen { widening, elements } => elements.saturating_mul(widening.bytes().1),
            Step::Planes { .. } => self.raw_bytes(),
            Step::LookUp { real, .. } => self.raw_bytes().saturating_mul(real.bytes()),
        }
    }

    /// Rows that the step can take at a time.
    pub fn rows_max(&self) -> usize {
        match &self.step {
            Step::Widen { .. } => usize::MAX,
            Step::Planes { pictures, .. } | Step::LookUp { pictures, .. } => {
                PICTURE_ELEMENTS_MAX / (pictures.count * pictures.pixels * pictures.channels)
            }
        }
    }

    /// Bytes of an element before, and after.
    fn element_bytes(&self) -> (usize, usize) {
        match &self.step {
            Step::Widen { widening, .. } => widening.bytes(),
            Step::Planes { element_bytes, .. } => (*element_bytes, *element_bytes),
            Step::LookUp { real, .. } => (1, real.bytes()),
        }
    }

    /// Where a turn reads and where it writes, in a slot of `slot_bytes`.
    ///
    /// # Errors
    /// `Config` for regions that pass the slot's end, lie over each other or begin within an element, and for more rows than the step
    /// takes.
    fn regions(&self, turn: Turn, slot_bytes: usize) -> Result<Regions> {
        let Turn { from, to, rows, .. } = turn;
        let range = |at: usize, row: usize, element: usize| {
            let end = rows.checked_mul(row).and_then(|bytes| at.checked_add(bytes));
            end.filter(|end| *end <= slot_bytes && at.is_multiple_of(element)).map(|end| at..end)
        };
        let (before, after) = self.element_bytes();
        let (raw, finished) = (range(from, self.raw_bytes(), before), range(to, self.finished_bytes(), after));
        match (raw, finished) {
            (Some(raw), Some(finished))
                if rows <= self.rows_max() && (raw.end <= finished.start || finished.end <= raw.start) =>
            {
                Ok(Regions { raw, finished })
            }
            _ => {
                let what = format!("{rows} rows finished from {from} to {to} in a slot of {slot_bytes} bytes");
                Err(Error::new(Kind::Config, what))
            }
        }
    }
}

/// Two ranges of a slot that do not touch.
struct Regions {
    raw: std::ops::Range<usize>,
    finished: std::ops::Range<usize>,
}

/// The error for a step that an engine was not prepared for.
pub(super) fn unprepared(step: usize) -> Error {
    Error::new(Kind::Config, format!("the engine was not prepared for step {step}"))
}

fn check(pictures: Pictures) -> Result<()> {
    if pictures.elements().is_some_and(|elements| (1..=PICTURE_ELEMENTS_MAX).contains(&elements)) {
        return Ok(());
    }
    let Pictures { count, pixels, channels } = pictures;
    Err(Error::new(Kind::Config, format!("{count} pictures of {pixels} pixels with {channels} channels"))
        .advice("a row must have at least one element, and fewer than 2^31"))
}
