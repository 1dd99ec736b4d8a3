//! The least that reads a file over io_uring, and a socket option: the ceilings beside which stores are measured.
//!
//! For benchmarks only; a read that fails leaks its buffers.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::DerefMut;
use std::os::fd::{AsFd, AsRawFd};

use io_uring::{IoUring, opcode, types};

/// Reads blocks `0..blocks` of a file, one per buffer in flight, each `buffer.len()` bytes long; gives them to `each` in
/// the order of arrival, and the buffers back at the end.
///
/// # Errors
/// The kernel's, and `UnexpectedEof` for a block that is not whole.
pub fn read_blocks<B: DerefMut<Target = [u8]> + 'static>(
    file: &File,
    blocks: u64,
    buffers: Vec<B>,
    mut each: impl FnMut(u64, &[u8]),
) -> io::Result<Vec<B>> {
    // Never dropped while the kernel may write: on the way out through an error they are leaked.
    let mut buffers = ManuallyDrop::new(buffers);
    let mut uring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(buffers.len() as u32)
        .or_else(|_| IoUring::new(buffers.len() as u32))?;
    let mut block_of = vec![0u64; buffers.len()];
    let fd = types::Fd(file.as_raw_fd());
    let (mut next, mut ended) = (0, 0);
    let mut idle: Vec<usize> = (0..buffers.len()).rev().collect();
    while ended < blocks {
        while next < blocks {
            let Some(index) = idle.pop() else { break };
            let buffer = &mut *buffers[index];
            let offset = next * buffer.len() as u64;
            let entry = opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).offset(offset).build();
            block_of[index] = next;
            // SAFETY: the buffer is looked at again only after its completion, and not freed before that; `file` is
            // borrowed for as long; and there are never more entries than buffers, so there is room.
            unsafe { uring.submission().push(&entry.user_data(index as u64)) }.map_err(io::Error::other)?;
            next += 1;
        }
        uring.submit_and_wait(1)?;
        for entry in uring.completion() {
            let index = entry.user_data() as usize;
            let bytes = usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()))?;
            if bytes != buffers[index].len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(block_of[index], &buffers[index]);
            idle.push(index);
            ended += 1;
        }
    }
    Ok(ManuallyDrop::into_inner(buffers))
}

/// The socket option that the HTTP client's low wake-ups come from, for bare loops that are to have it too.
///
/// # Errors
/// The errno of `setsockopt`.
pub fn set_receive_low_water(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    super::socket::set_receive_low_water(socket, bytes)
}
