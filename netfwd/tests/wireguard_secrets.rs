//! No copy of a secret stays in memory that was given back, however often what holds it has grown, moved or been replaced.
//!
//! The allocator looks through every block before it frees it, and moves every block that grows. What registers and stacks
//! keep for a moment is not seen.

mod wireguard;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::{ptr, slice};

use netfwd::control::uapi::request::{Reader, Request};
use netfwd::control::uapi::response;
use netfwd::datapath::tunnel::wireguard::{DeviceUpdate, PeerUpdate, PresharedKey, PrivateKey, PublicKey};
use wireguard::End;
use zeroize::Zeroizing;

const PRIVATE: [u8; 32] = *b"\x10ne private key of 32 bytes...\x42!";
const PRESHARED: [u8; 32] = *b"\x11ne preshared key of 32 bytes\x01\x02\x03";

struct Searching;

thread_local! {
    static FOUND: Cell<u32> = const { Cell::new(0) };
}

/// Secrets as bytes, and as the control socket writes them.
const KEYS: [&[u8]; 4] = [&PRIVATE, &PRESHARED, &digits(&PRIVATE), &digits(&PRESHARED)];

const fn digits(key: &[u8; 32]) -> [u8; 64] {
    let mut digits = [0; 64];
    let mut at = 0;
    while at < 64 {
        let nibble = if at % 2 == 0 { key[at / 2] >> 4 } else { key[at / 2] & 15 };
        digits[at] = b"0123456789abcdef"[nibble as usize];
        at += 1;
    }
    digits
}

/// Counts the secrets in a block.
fn search(block: &[u8]) {
    for key in KEYS {
        let mut rest = block;
        loop {
            // SAFETY: both are valid for reads of their lengths.
            let at = unsafe { libc::memmem(rest.as_ptr().cast(), rest.len(), key.as_ptr().cast(), key.len()) };
            if at.is_null() {
                break;
            }
            FOUND.set(FOUND.get() + 1);
            rest = &rest[at.addr() - rest.as_ptr().addr() + key.len()..];
        }
    }
}

// SAFETY: memory is `System`'s, asked for and given back with the caller's own layouts.
unsafe impl GlobalAlloc for Searching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // All of it can be looked at later, whatever its owner has written.
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the block has that many bytes, was zeroed when it was made, and nobody else has it any more.
        search(unsafe { slice::from_raw_parts(pointer, layout.size()) });
        // SAFETY: `pointer` came from `System` with this `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size` is one that this alignment allows.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not zero, as the caller promises.
        let moved = unsafe { self.alloc(larger) };
        if !moved.is_null() {
            // SAFETY: both blocks are at least that long, and the new one is nobody else's.
            unsafe { ptr::copy_nonoverlapping(pointer, moved, layout.size().min(size)) };
            // SAFETY: the caller gives the old block back.
            unsafe { self.dealloc(pointer, layout) };
        }
        moved
    }
}

#[global_allocator]
static ALLOCATOR: Searching = Searching;

/// How many copies of secrets were left behind in `run`.
fn left_behind(run: impl FnOnce()) -> u32 {
    let before = FOUND.get();
    run();
    FOUND.get() - before
}

fn public(n: u16) -> PublicKey {
    let mut bytes = [9; 32];
    bytes[..2].copy_from_slice(&n.to_le_bytes());
    PublicKey(bytes)
}

/// A request with a preshared key for each of a hundred peers, read line by line.
fn request() -> DeviceUpdate {
    let line = |key: &str, value: &str| Zeroizing::new(format!("{key}={value}"));
    let mut reader = Reader::new(|_| None);
    let mut read = |line: &str| reader.line(line.as_bytes()).expect("a line");
    read("set=1");
    read(&line("private_key", &PrivateKey::from_bytes(PRIVATE).to_hex()));
    for n in 0..100 {
        read(&line("public_key", &public(n).to_hex()));
        read(&line("preshared_key", &PresharedKey::from_bytes(PRESHARED).to_hex()));
    }
    match read("") {
        Some(Ok(Request::Set(update))) => update,
        other => panic!("no request: {other:?}"),
    }
}

#[test]
fn the_search_finds_what_is_left_behind() {
    assert_eq!(left_behind(|| drop(PRIVATE.to_vec())), 1);
    assert_eq!(left_behind(|| drop(PresharedKey::from_bytes(PRESHARED).to_hex().to_string())), 1);
    let grows = || {
        let mut keys = vec![PRESHARED];
        keys.reserve_exact(10);
        keys.fill([0; 32]);
    };
    assert_eq!(left_behind(grows), 1);
}

#[test]
fn a_request_leaves_no_key_behind() {
    assert_eq!(left_behind(|| drop(request())), 0);
}

#[test]
fn a_device_leaves_no_key_behind() {
    let end = End::new(1);
    let configured = left_behind(|| {
        end.device.apply(&request());
        drop(response::device(&end.device.status()));
    });
    assert_eq!(configured, 0);
    let replaced = left_behind(|| {
        let private_key = Some(Some(PrivateKey::from_bytes([3; 32])));
        let preshared_key = Some(PresharedKey::from_bytes([0; 32]));
        let peers = vec![PeerUpdate { preshared_key, ..PeerUpdate::new(public(7)) }];
        end.device.apply(&DeviceUpdate { private_key, peers, ..DeviceUpdate::default() });
        end.device.apply(&DeviceUpdate { replace_peers: true, ..DeviceUpdate::default() });
    });
    assert_eq!(replaced, 0);
}

#[test]
fn a_session_leaves_no_key_behind() {
    let with_session = || {
        let mut ends = [End::with_key(1, PrivateKey::from_bytes(PRIVATE)), End::new(2)];
        let keys = [1, 0].map(|other: usize| ends[other].public_key());
        for (end, key) in ends.iter().zip(keys) {
            let preshared_key = Some(PresharedKey::from_bytes(PRESHARED));
            let peers = vec![PeerUpdate { preshared_key, ..PeerUpdate::new(key) }];
            end.device.apply(&DeviceUpdate { peers, ..DeviceUpdate::default() });
        }
        End::connect(&mut ends);
    };
    assert_eq!(left_behind(with_session), 0);
}
