//! A socket option that the standard library has no name for.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Has the kernel wake the reader of `socket` when `bytes` are there (or the peer has closed, or the receive buffer is
/// full), and not for each segment. The kernel clamps it to half of the largest receive buffer.
///
/// A reader that waits for more than will ever come waits for ever: keep it at or below the bytes still due.
///
/// # Errors
/// The errno of `setsockopt`.
pub(crate) fn set_receive_low_water(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX).max(1);
    let value_bytes = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `value_bytes` bytes from the address of `value`,
    // which is alive and exactly that long, and keeps no reference to it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const value).cast(),
            value_bytes,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn takes_a_socket_and_refuses_what_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        set_receive_low_water(&socket, 1 << 20).unwrap();
        set_receive_low_water(&socket, usize::MAX).unwrap();
        set_receive_low_water(&socket, 0).unwrap();
        let refused = set_receive_low_water(tempfile::tempfile().unwrap(), 1).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
