//! Memory near a device, on machines with more than one NUMA node.

use std::ffi::c_int;
#[cfg(any(feature = "cuda", test))]
use std::{fs, path::Path};

use crate::error::{Error, Kind, Result};

/// Nodes that a mask has room for: as many as Linux knows by default on the largest machines.
const NODES_MAX: u32 = 1024;

/// Whether the machine has more than one node, so that nearness means something.
#[cfg(feature = "cuda")]
pub(crate) fn is_divided() -> bool {
    fs::read_to_string("/sys/devices/system/node/online").is_ok_and(|online| names_several(&online))
}

/// Whether a list of nodes, as `0` or `0-1,3`, has more than one.
#[cfg(any(feature = "cuda", test))]
fn names_several(nodes: &str) -> bool {
    nodes.trim().contains(['-', ','])
}

/// The node of the PCI slot `slot`, such as `0000:65:00.0`, if the system knows it.
#[cfg(any(feature = "cuda", test))]
pub(crate) fn node_of_pci(slot: &str) -> Option<u32> {
    let is_slot = !slot.is_empty() && slot.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
    // The driver writes it in capitals, the system does not.
    let place = Path::new("/sys/bus/pci/devices").join(slot.to_ascii_lowercase()).join("numa_node");
    // -1 where it does not know.
    fs::read_to_string(place).ok().filter(|_| is_slot)?.trim().parse().ok()
}

/// Has pages of the range that are not yet resident come from `node`, as long as it has any. What is resident stays where it is.
///
/// # Errors
/// `Unsupported` when the kernel does not do so: there is no such node, or it is not for this process.
pub(crate) fn prefer(address: usize, bytes: usize, node: u32) -> Result<()> {
    const MPOL_PREFERRED: c_int = 1;
    const WORD_BITS: u32 = u64::BITS;
    if node >= NODES_MAX {
        return Err(Error::new(Kind::Unsupported, format!("NUMA node {node}")));
    }
    let mut mask = [0u64; (NODES_MAX / WORD_BITS) as usize];
    mask[(node / WORD_BITS) as usize] = 1 << (node % WORD_BITS);
    // The kernel leaves the last bit it is told of out.
    let bits = u64::from(NODES_MAX) + 1;
    // SAFETY: `mbind(addr, len, mode, nodemask, maxnode, flags)` sets where pages of the range will come from, or refuses a range that
    // is not mapped; it changes no byte. The mask has that many bits, and is read before the call returns.
    let code = unsafe { libc::syscall(libc::SYS_mbind, address, bytes, MPOL_PREFERRED, mask.as_ptr(), bits, 0) };
    if code == 0 {
        return Ok(());
    }
    let errno = std::io::Error::last_os_error();
    Err(Error::new(Kind::Unsupported, format!("memory of NUMA node {node}")).source(errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::map::Map;

    #[test]
    fn lists_of_nodes_are_understood() {
        assert!(["0-1\n", "0,2", "1-3,5"].iter().all(|nodes| names_several(nodes)));
        assert!(!names_several("0\n") && !names_several(""));
    }

    #[test]
    fn a_slot_that_is_not_there_has_no_node() {
        for slot in ["", "FFFF:FF:1F.7", "../../../../../tmp"] {
            assert_eq!(node_of_pci(slot), None, "{slot}");
        }
    }

    /// What a machine with one node can show: its node is taken, or the kernel has no such call for us; others are refused.
    #[test]
    fn nodes_are_preferred_or_refused() {
        let map = Map::lazy(1 << 20).unwrap();
        if let Err(error) = prefer(map.address(), map.bytes(), 0) {
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        }
        for node in [NODES_MAX - 1, NODES_MAX, u32::MAX] {
            assert_eq!(prefer(map.address(), map.bytes(), node).unwrap_err().kind(), Kind::Unsupported);
        }
        let mut chunks = map.into_chunks(1 << 20);
        chunks[0].fill(1);
        assert!(chunks[0].iter().all(|byte| *byte == 1));
    }
}
