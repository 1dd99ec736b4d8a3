//! The farfeed command.
fn main() {}
