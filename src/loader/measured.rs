//! Batches under measurement: their digests, taken on the device.

use super::batch::Batch;
use super::column::Column;
use crate::device::RawStream;
use crate::device::measure::{Apparatus, Tally};
use crate::error::{Error, Kind, Result};

impl Batch {
    /// Has the device add the digest of a column's bytes to `place` of `tally`, in `stream`; of a ragged column those of all its values.
    /// The batch must be told of the stream: by [`Batch::wait_on`] before, or else by [`Batch::release`] after.
    ///
    /// # Errors
    /// `NotFound` for a name that was not asked for; `Config` for a place that there is not; `Device`.
    #[doc(hidden)]
    pub fn tally(
        &self,
        column: &str,
        apparatus: &Apparatus,
        stream: &RawStream,
        tally: &mut Tally,
        place: usize,
    ) -> Result<()> {
        let range = match self.layout(column) {
            Some(Column::Dense { at, len, .. }) => (*at, *len),
            Some(Column::Ragged { values_at, values_len, .. }) => (*values_at, *values_len),
            None => return Err(Error::new(Kind::NotFound, format!("no column '{column}'"))),
        };
        tally.add(apparatus, stream, &self.slot, range, place)
    }
}
