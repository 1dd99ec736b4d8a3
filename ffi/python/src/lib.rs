//! The Python package's extension module. It extracts arguments, detaches from the interpreter, calls the library and converts what comes back;
//! what it decides of its own is how Python waits (`waiting`), what a process may touch after a fork (`ours`), and how columns are
//! handed to other packages (`dlpack`).

mod batch;
mod command;
mod dlpack;
mod emulate;
mod errors;
mod finishing;
mod loader;
mod options;
mod ours;
mod report;
mod shards;
mod waiting;
mod weights;

/// farfeed's extension module: see the package `farfeed`.
#[pyo3::pymodule(gil_used = false)]
mod _farfeed {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::batch::{Batch, Ragged};
    #[pymodule_export]
    use crate::command::main;
    #[pymodule_export]
    use crate::dlpack::Column;
    #[pymodule_export]
    use crate::emulate::Server;
    #[pymodule_export]
    use crate::finishing::Normalize;
    #[pymodule_export]
    use crate::loader::{Epoch, Loader};
    #[pymodule_export]
    use crate::options::{Field, Retry, Shuffle, Skip, Tokens, array, bytes, float, int, json};
    #[pymodule_export]
    use crate::shards::{index_location, make_index, probe};

    #[pymodule_export]
    use crate::weights::load_safetensors;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
