//! What is received.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use super::contender::KEY;
use crate::field::clients::BUCKET;
use crc_fast::CrcAlgorithm::Crc32Iscsi;

/// Writes noise of so many ranges to a server's root, to be found in a bucket too; gives the crc32c of each range.
pub(crate) fn write(root: &Path, ranges: usize, range_bytes: usize) -> Vec<u64> {
    let mut file = File::create(root.join(KEY)).unwrap();
    fs::create_dir(root.join(BUCKET)).unwrap();
    fs::hard_link(root.join(KEY), root.join(BUCKET).join(KEY)).unwrap();
    let mut range = vec![0; range_bytes];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut digests = Vec::new();
    for _ in 0..ranges {
        for word in range.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        digests.push(crc_fast::checksum(Crc32Iscsi, &range));
        file.write_all(&range).unwrap();
    }
    digests
}
