//! What development needs and the product does not: network namespaces as a laboratory, and a load tool on plain sockets.
//!
//! The end-to-end tests use this library, and so do `cargo xtask run` and `cargo xtask bench`, so that a figure or a
//! failure seen by one can be repeated by the others. It depends on nothing of netfwd's, since it has to build on a
//! machine that cannot build the eBPF program yet.

pub mod interrupt;
pub mod lab;
pub mod load;
pub mod machine;
