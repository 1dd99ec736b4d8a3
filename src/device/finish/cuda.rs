//! The steps on a GPU: kernels on the copy stream, behind the copies of their batch.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::Instant;

use super::{Arrangement, Finishing, Regions, Step, Turn, Widening, unprepared};
use crate::error::Result;
use crate::sys::cuda::{Argument, Context, DeviceMemory, Entered, Kernel, Module, launch};
use crate::sys::stream::RawStream;

/// Compiled from `kernels.cu`: `tests/kernels/compile.py` holds the two together.
const PTX: &CStr = match CStr::from_bytes_with_nul(concat!(include_str!("kernels.ptx"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => panic!("a zero within the text"),
};

/// Threads of a block.
const BLOCK: u32 = 256;

/// Blocks at most: eight on each of 128 multiprocessors, as many threads as those can have; each thread takes several turns where there
/// is more to do.
const BLOCKS_MAX: u64 = 1024;

/// Steps ready to be launched, in the order in which they were asked for.
#[derive(Default)]
pub(in crate::device) struct CudaSteps {
    steps: Vec<CudaStep>,
}

struct CudaStep {
    finishing: Finishing,
    kernel: Kernel,
    /// The table, where the step looks one up.
    table: Option<DeviceMemory>,
}

impl CudaSteps {
    /// Has the driver compile the kernels, and puts the tables on the device; waits for that, until `deadline`.
    pub(in crate::device) fn new(context: &Arc<Context>, steps: &[Finishing], deadline: Instant) -> Result<CudaSteps> {
        if steps.is_empty() {
            return Ok(CudaSteps::default());
        }
        let module = Module::new(context, PTX)?;
        let ready = |finishing: &Finishing| {
            let table = match &finishing.step {
                Step::LookUp { table, .. } => Some(DeviceMemory::of_bytes(context, table, deadline)?),
                _ => None,
            };
            Ok(CudaStep { kernel: module.kernel(kernel(finishing))?, finishing: finishing.clone(), table })
        };
        Ok(CudaSteps { steps: steps.iter().map(ready).collect::<Result<_>>()? })
    }

    /// Enqueues a step on what lies in `memory`, a slot's.
    pub(in crate::device) fn enqueue(
        &self,
        entered: &Entered<'_>,
        stream: &RawStream,
        memory: &DeviceMemory,
        turn: Turn,
    ) -> Result<()> {
        let CudaStep { finishing, kernel, table } = self.steps.get(turn.step).ok_or_else(|| unprepared(turn.step))?;
        let (Regions { raw, finished }, rows) = (finishing.regions(turn, memory.bytes())?, turn.rows);
        if raw.is_empty() {
            return Ok(());
        }
        let places = [Argument::memory(memory, raw)?, Argument::memory(memory, finished)?];
        let run = |units: u64, rest: &[Argument]| {
            let mut arguments = [Argument::u32(0); 8];
            let given = places.iter().chain(rest);
            let count = arguments.iter_mut().zip(given).map(|(place, argument)| *place = *argument).count();
            let blocks = units.div_ceil(u64::from(BLOCK)).clamp(1, BLOCKS_MAX) as u32;
            launch(entered, stream, kernel, [blocks, 1, 1], [BLOCK, 1, 1], &arguments[..count])
        };
        // Counts of pictures fit: `regions` has refused more elements than 31 bits can count.
        let counted = |count: usize| Argument::u32(count as u32);
        match &finishing.step {
            Step::Widen { widening, elements } => {
                let elements = (elements * rows) as u64;
                run(elements.div_ceil(16 / widening.bytes().1 as u64), &[Argument::u64(elements)])
            }
            Step::Planes { pictures, .. } => {
                let count = pictures.count * rows;
                let units = (count * pictures.pixels) as u64;
                run(units, &[counted(pictures.channels), counted(count), counted(pictures.pixels)])
            }
            Step::LookUp { table: host, pictures, arrangement, .. } => {
                let table = table.as_ref().ok_or_else(|| unprepared(turn.step))?;
                let (table, channels) = (Argument::memory(table, 0..host.len())?, counted(pictures.channels));
                let count = pictures.count * rows;
                let elements = count * pictures.pixels * pictures.channels;
                match arrangement {
                    Arrangement::ToChannelsFirst => {
                        let units = (count * pictures.pixels / 4) as u64;
                        run(units, &[table, channels, counted(count), counted(pictures.pixels)])
                    }
                    Arrangement::ChannelsLast => {
                        run(elements as u64 / 4, &[table, channels, counted(elements), counted(1)])
                    }
                    Arrangement::ChannelsFirst => {
                        run(elements as u64 / 4, &[table, channels, counted(elements), counted(pictures.pixels)])
                    }
                }
            }
        }
    }
}

/// The kernel of a step. Their arguments are written down in `kernels.cu`.
fn kernel(finishing: &Finishing) -> &'static CStr {
    match &finishing.step {
        Step::Widen { widening, .. } => match widening {
            Widening::U8ToI32 => c"farfeed_widen_u8_i32",
            Widening::U8ToI64 => c"farfeed_widen_u8_i64",
            Widening::U16ToI32 => c"farfeed_widen_u16_i32",
            Widening::U16ToI64 => c"farfeed_widen_u16_i64",
            Widening::U32ToI64 => c"farfeed_widen_u32_i64",
            Widening::I32ToI64 => c"farfeed_widen_i32_i64",
        },
        Step::Planes { element_bytes, .. } => match element_bytes {
            1 => c"farfeed_planes_1",
            2 => c"farfeed_planes_2",
            4 => c"farfeed_planes_4",
            _ => c"farfeed_planes_8",
        },
        Step::LookUp { real, arrangement, .. } => match (real.bytes(), arrangement) {
            (2, Arrangement::ToChannelsFirst) => c"farfeed_look_up_planes_2",
            (_, Arrangement::ToChannelsFirst) => c"farfeed_look_up_planes_4",
            (2, _) => c"farfeed_look_up_2",
            (_, _) => c"farfeed_look_up_4",
        },
    }
}
