//! Explicit congestion notification through a tunnel: RFC 6040, normal mode, decapsulation.
//!
//! A router on the underlay marks the outer header; if the mark were thrown away with it, the inner connection would never
//! learn of the congestion. So the outer field is folded into the inner one, which changes the inner header: the IPv4
//! header checksum is adjusted incrementally (RFC 1624), never computed anew, so that **a wrong checksum stays wrong**.

use netfwd_common::checksum::{Checksum, Sum};

use super::flow::Family;

/// The field's two bits.
pub const MASK: u8 = 0b11;
/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, ECT(1).
pub const ECT_1: u8 = 0b01;
/// ECN-capable, ECT(0).
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The inner field after decapsulation: RFC 6040 §4.2, figure 4. `None`: drop.
///
/// "If the inner ECN field is Not-ECT, the decapsulator MUST NOT propagate any other ECN codepoint onwards. […] If the
/// arriving outer is CE […] it MUST drop the packet."
pub const fn combine(inner: u8, outer: u8) -> Option<u8> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

/// Folds the outer field into the IP header at the start of `ip`; whether the packet may go on.
///
/// Bytes too short for a header are left alone: vetting refuses them.
#[inline]
#[must_use]
pub fn propagate(ip: &mut [u8], family: Family, outer: u8) -> bool {
    // By far the most common case changes nothing, whatever the inner field is.
    if outer & MASK == NOT_ECT {
        return true;
    }
    let Some(inner) = read(ip, family) else { return true };
    match combine(inner, outer) {
        None => false,
        Some(combined) => {
            if combined != inner {
                write(ip, family, combined);
            }
            true
        }
    }
}

/// The ECN field of an IP header.
fn read(ip: &[u8], family: Family) -> Option<u8> {
    match family {
        Family::V4 => ip.get(1).map(|tos| tos & MASK),
        // Traffic class: the low four bits of byte 0 and the high four of byte 1.
        Family::V6 => ip.get(1).map(|byte| byte >> 4 & MASK),
    }
}

fn write(ip: &mut [u8], family: Family, ecn: u8) {
    let Some(word) = ip.first_chunk_mut::<2>() else { return };
    let before = *word;
    match family {
        Family::V4 => word[1] = word[1] & !MASK | ecn,
        Family::V6 => word[1] = word[1] & !(MASK << 4) | ecn << 4,
    }
    let after = *word;
    if family == Family::V4
        && let Some(field) = ip.get_mut(10..12).and_then(|field| field.first_chunk_mut::<2>())
    {
        *field = adjusted(*field, before, after).to_bytes();
    }
}

/// RFC 1624 §3: HC' = ~(~HC + ~m + m').
fn adjusted(checksum: [u8; 2], before: [u8; 2], after: [u8; 2]) -> Checksum {
    let sum = Sum::ZERO.add(&checksum.map(|byte| !byte));
    sum.subtract(Sum::ZERO.add(&before)).add(&after).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_rfc_6040_section_4_2() {
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                assert_eq!(combine(inner, outer), expected, "inner {inner:#b} outer {outer:#b}");
            }
        }
    }

    fn ipv4(tos: u8, id: u16) -> [u8; 20] {
        let [a, b] = id.to_be_bytes();
        let mut header = [0x45, tos, 0, 100, a, b, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let checksum = Sum::ZERO.add(&header).checksum();
        header[10..12].copy_from_slice(&checksum.to_bytes());
        header
    }

    #[test]
    fn the_checksum_follows_the_field_for_every_id() {
        for id in 0..=u16::MAX {
            let mut header = ipv4(0xb8 | ECT_0, id);
            assert!(propagate(&mut header, Family::V4, CE));
            assert_eq!(header[1], 0xb8 | CE);
            assert!(Sum::ZERO.add(&header).is_valid(), "id {id}");
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong() {
        for damage in 1..=u16::MAX {
            let mut header = ipv4(ECT_0, 7);
            let field = u16::from_be_bytes([header[10], header[11]]) ^ damage;
            header[10..12].copy_from_slice(&field.to_be_bytes());
            // 0x0000 and 0xffff are one number in one's complement.
            let was_valid = Sum::ZERO.add(&header).is_valid();
            assert!(propagate(&mut header, Family::V4, CE));
            assert_eq!(Sum::ZERO.add(&header).is_valid(), was_valid, "damage {damage:#x}");
        }
    }

    #[test]
    fn ipv6_changes_nothing_but_the_field() {
        let mut header = [0x6a, 0x2b, 0xcd, 0xef];
        assert!(propagate(&mut header, Family::V6, CE));
        assert_eq!(header, [0x6a, 0x3b, 0xcd, 0xef]);
        assert!(!propagate(&mut [0x60, 0x0f, 0, 0], Family::V6, CE), "CE on a flow without ECN");
    }

    #[test]
    fn bytes_too_short_for_a_header_are_left_to_vetting() {
        assert!(propagate(&mut [], Family::V4, CE));
        assert!(propagate(&mut [0x45], Family::V4, CE));
        assert!(propagate(&mut [0x45, ECT_0], Family::V4, CE));
    }
}
