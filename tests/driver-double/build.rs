//! Gives the library the name that the real one is looked for by: once it is loaded, by whatever path, a loader that asks for
//! `libcuda.so` is given this one.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
