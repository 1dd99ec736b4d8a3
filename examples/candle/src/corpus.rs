//! Real text, from what is in the repository: nothing is fetched.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::training::{BATCH, CONTEXT};

/// One token for each byte.
pub(crate) const VOCABULARY: usize = 256;

/// A token file (uint32, little-endian, no header) of farfeed's documentation, with as many tokens as `steps` batches have, and the one after them.
pub(crate) fn tokens(steps: usize) -> Result<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = markdown(&root.join("docs"))?;
    files.sort();
    files.push(root.join("README.md"));
    let text = files.iter().map(std::fs::read).collect::<std::io::Result<Vec<_>>>()?.concat();
    let wanted = steps * BATCH * CONTEXT + 1;
    let text = text.get(..wanted).ok_or(format!("the documentation has {} bytes of {wanted}", text.len()))?;
    Ok(text.iter().flat_map(|byte| u32::from(*byte).to_le_bytes()).collect())
}

fn markdown(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(markdown(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
    Ok(files)
}
