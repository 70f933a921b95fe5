//! Control messages (`cmsg(3)`) without pointers.
//!
//! The libc macros walk a `msghdr` by raw pointer. The layout itself is plain: a native-endian header of length, level
//! and type, the data, padding to the alignment of a `usize` (`__cmsg_nxthdr`, include/linux/socket.h). So messages are
//! built and read here as bytes, bounds-checked.

use std::mem::{offset_of, size_of};

const HEADER_LEN: usize = size_of::<libc::cmsghdr>();
const ALIGN: usize = size_of::<usize>();

/// Room for control messages, aligned as the kernel's own structures are.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Control<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Control<N> {
    /// No messages.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Appends a message. A message that finds no room is left out: `N` is chosen by the caller for what it sends.
    pub fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let end = self.len + HEADER_LEN + data.len();
        let Some(message) = self.bytes.get_mut(self.len..end) else {
            debug_assert!(false, "no room for a control message");
            return;
        };
        let (header, body) = message.split_at_mut(HEADER_LEN);
        put(header, offset_of!(libc::cmsghdr, cmsg_len), &(HEADER_LEN + data.len()).to_ne_bytes());
        put(header, offset_of!(libc::cmsghdr, cmsg_level), &level.to_ne_bytes());
        put(header, offset_of!(libc::cmsghdr, cmsg_type), &kind.to_ne_bytes());
        body.copy_from_slice(data);
        self.len = end.next_multiple_of(ALIGN).min(N);
    }

    /// The messages so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The whole room, for the kernel to write to.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The messages in the first `len` bytes, as the kernel reported them in `msg_controllen`.
    pub fn received(&self, len: usize) -> Messages<'_> {
        Messages { rest: self.bytes.get(..len).unwrap_or(&self.bytes) }
    }
}

impl<const N: usize> Default for Control<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// A control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Protocol level, such as `SOL_UDP`.
    pub level: i32,
    /// Type within the level.
    pub kind: i32,
    /// The data, padding removed.
    pub data: &'a [u8],
}

impl Message<'_> {
    /// The data as a number: the kernel writes some values as one byte (IP_TOS), some as `int` or `u16`.
    pub fn number(&self) -> Option<u32> {
        match *self.data {
            [byte] => Some(u32::from(byte)),
            [a, b] => Some(u32::from(u16::from_ne_bytes([a, b]))),
            [a, b, c, d, ..] => Some(u32::from_ne_bytes([a, b, c, d])),
            _ => None,
        }
    }
}

/// Iterates over received control messages.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.rest.get(..HEADER_LEN)?;
        let len = usize::from_ne_bytes(get(header, offset_of!(libc::cmsghdr, cmsg_len))?);
        let level = i32::from_ne_bytes(get(header, offset_of!(libc::cmsghdr, cmsg_level))?);
        let kind = i32::from_ne_bytes(get(header, offset_of!(libc::cmsghdr, cmsg_type))?);
        let data = self.rest.get(HEADER_LEN..len)?;
        self.rest = self.rest.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Message { level, kind, data })
    }
}

fn put(header: &mut [u8], offset: usize, value: &[u8]) {
    header[offset..offset + value.len()].copy_from_slice(value);
}

fn get<const N: usize>(header: &[u8], offset: usize) -> Option<[u8; N]> {
    header.get(offset..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_is_read_back() {
        let mut control = Control::<64>::new();
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &1400u16.to_ne_bytes());
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[3]);
        let len = control.as_bytes().len();
        let read: Vec<_> = control.received(len).map(|m| (m.level, m.kind, m.number())).collect();
        assert_eq!(read, [(libc::SOL_UDP, libc::UDP_SEGMENT, Some(1400)), (libc::IPPROTO_IP, libc::IP_TOS, Some(3))]);
    }

    #[test]
    fn a_length_beyond_the_room_ends_the_walk() {
        let mut control = Control::<32>::new();
        control.push(1, 2, &[0; 4]);
        control.room()[..8].copy_from_slice(&1000usize.to_ne_bytes());
        assert_eq!(control.received(32).count(), 0);
        control.room()[..8].copy_from_slice(&0usize.to_ne_bytes());
        assert_eq!(control.received(32).count(), 0);
    }

    #[test]
    fn the_last_message_may_lack_its_padding() {
        let mut control = Control::<18>::new();
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &[1, 0]);
        assert_eq!(control.as_bytes().len(), 18);
    }
}
