//! The rules of docs/COALESCING.md, one named case each.

mod batch;
mod joining;
#[path = "../packets/mod.rs"]
mod packets;
mod refusing;
