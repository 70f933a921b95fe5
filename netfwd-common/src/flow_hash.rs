//! A flow as sixteen bits, cheaply enough for a BPF program.

/// One step of a multiplicative hash: two instructions in BPF, and enough to spread flows over sockets, queues and source
/// ports.
#[inline(always)]
pub fn mix(hash: u64, word: u32) -> u64 {
    (hash ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The upper sixteen bits, to which every word has spread; 0 is kept for "no flow".
#[inline(always)]
pub fn fold(hash: u64) -> u16 {
    let folded = (hash >> 48) as u16;
    if folded == 0 { 1 } else { folded }
}
