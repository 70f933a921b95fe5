//! Keys, and how they are written: base64 in files (`wg genkey`), hex on the control socket.
//!
//! Invariants: a secret key lies in one place from the first byte that is read of it on, whatever holds it may grow or move;
//! there it is zeroed when it is dropped. Neither `Debug` nor any error shows one. Only [`SecretKey::to_hex`] writes one out,
//! for the control socket, into a buffer that is zeroed too. [`PresharedKey::bytes`] is a bare copy, for the protocol
//! library; whoever takes it has to wipe it.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gotatun::x25519;
use thiserror::Error;
use zeroize::Zeroizing;

/// Bytes of every key.
pub const KEY_LEN: usize = 32;

/// Text that is no key. It does not repeat the text, which may be most of a secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// Not 44 characters of base64.
    #[error("not a key: 44 characters of base64, as `wg genkey` prints them, are expected")]
    Base64,
    /// Not 64 hexadecimal digits.
    #[error("not a key: 64 hexadecimal digits are expected")]
    Hex,
}

/// A public key: a peer's identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_LEN]);

/// A key that nobody may see, of one of the two kinds that there are.
#[derive(Clone)]
pub struct SecretKey<Kind> {
    bytes: Secret,
    kind: PhantomData<Kind>,
}

/// A device's own key (Curve25519).
pub type PrivateKey = SecretKey<Private>;
/// A key shared with one peer beforehand. All zeroes means none, on the wire as on the control socket.
pub type PresharedKey = SecretKey<Preshared>;

/// The kind of [`PrivateKey`]s.
#[derive(Clone, Copy, Debug)]
pub enum Private {}
/// The kind of [`PresharedKey`]s.
#[derive(Clone, Copy, Debug)]
pub enum Preshared {}

/// What moves is the pointer.
type Secret = Box<Zeroizing<[u8; KEY_LEN]>>;

impl PublicKey {
    /// Reads base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        read_base64(text).map(|bytes| Self(**bytes))
    }

    /// Reads hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        read_hex(text).map(|bytes| Self(**bytes))
    }

    /// Whether it is a point of small order, such as all zeroes: what is agreed on with it is zero, which everybody knows,
    /// so everybody could pass for its owner. The kernel refuses (`mix_precomputed_dh`), the protocol library does not.
    pub fn has_small_order(&self) -> bool {
        // Whichever secret: all are multiples of the cofactor.
        let any = x25519::StaticSecret::from([1; KEY_LEN]);
        !any.diffie_hellman(&x25519::PublicKey::from(self.0)).was_contributory()
    }

    /// Lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        write_hex(&self.0).to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl<Kind> SecretKey<Kind> {
    /// A key from its bytes.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self::of(Box::new(Zeroizing::new(bytes)))
    }

    /// Reads base64.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        read_base64(text).map(Self::of)
    }

    /// Reads hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        read_hex(text).map(Self::of)
    }

    /// Lower-case hexadecimal digits, for the control socket only.
    pub fn to_hex(&self) -> Zeroizing<String> {
        write_hex(&self.bytes)
    }

    /// Whether all bytes are zero: on the control socket that takes the key away.
    pub fn is_zero(&self) -> bool {
        **self.bytes == [0; KEY_LEN]
    }

    fn of(bytes: Secret) -> Self {
        Self { bytes, kind: PhantomData }
    }
}

impl<Kind> fmt::Debug for SecretKey<Kind> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

impl PrivateKey {
    /// The public key that belongs to it.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    /// The same key in the form in which curve arithmetic takes it, which is how devices of the kernel's and of wireguard-go show
    /// it (`curve25519_clamp_secret`). `wg genkey` makes no others.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.bytes[0] &= 0b1111_1000;
        self.bytes[KEY_LEN - 1] = self.bytes[KEY_LEN - 1] & 0b0111_1111 | 0b0100_0000;
        self
    }

    /// The key as the protocol library takes it.
    pub(super) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(**self.bytes)
    }
}

impl PresharedKey {
    /// The key as the protocol library takes it; all zeroes are no key.
    pub fn bytes(&self) -> Option<[u8; KEY_LEN]> {
        (!self.is_zero()).then(|| **self.bytes)
    }
}

fn read_base64(text: &str) -> Result<Secret, KeyError> {
    let mut bytes = Secret::default();
    match STANDARD.decode_slice(text, bytes.as_mut_slice()) {
        Ok(KEY_LEN) => Ok(bytes),
        _ => Err(KeyError::Base64),
    }
}

fn read_hex(text: &str) -> Result<Secret, KeyError> {
    let digits = text.as_bytes();
    if digits.len() != 2 * KEY_LEN {
        return Err(KeyError::Hex);
    }
    let mut bytes = Secret::default();
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Ok(bytes)
}

fn hex_digit(digit: u8) -> Result<u8, KeyError> {
    (digit as char).to_digit(16).map(|value| value as u8).ok_or(KeyError::Hex)
}

fn write_hex(bytes: &[u8; KEY_LEN]) -> Zeroizing<String> {
    // With its whole length reserved, the text never moves and leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_LEN));
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE64: &str = "WAmgVYXkbT2bCtdcDwolI88/iVi/aV3/PHcUBTQSYmo=";
    const HEX: &str = "5809a05585e46d3d9b0ad75c0f0a2523cf3f8958bf695dff3c7714053412626a";

    #[test]
    fn base64_and_hex_are_the_same_key() {
        assert_eq!(PrivateKey::from_base64(BASE64).unwrap().to_hex().as_str(), HEX);
        assert_eq!(PublicKey::from_base64(BASE64).unwrap(), PublicKey::from_hex(HEX).unwrap());
        assert_eq!(PublicKey::from_hex(HEX).unwrap().to_string(), BASE64);
    }

    #[test]
    fn text_of_another_length_or_alphabet_is_refused() {
        for text in ["", "AAAA", &BASE64[1..], &format!("{BASE64}A"), &BASE64.replace('=', "A")] {
            assert_eq!(PublicKey::from_base64(text).unwrap_err(), KeyError::Base64, "{text}");
        }
        for text in ["", &HEX[2..], &format!("{HEX}00"), &HEX.replace('5', "x"), &HEX.replace("58", "+8")] {
            assert_eq!(PublicKey::from_hex(text).unwrap_err(), KeyError::Hex, "{text}");
        }
    }

    #[test]
    fn a_key_that_leads_to_no_secret_is_known() {
        let low = |first: u8| PublicKey(std::array::from_fn(|at| if at == 0 { first } else { 0 }));
        // p + 1, which is 1.
        let one_again = PublicKey(std::array::from_fn(|at| match at {
            0 => 0xee,
            31 => 0x7f,
            _ => 0xff,
        }));
        assert!([low(0), low(1), one_again].iter().all(PublicKey::has_small_order));
        assert!(
            ![low(9), PrivateKey::from_base64(BASE64).unwrap().public_key()].iter().any(PublicKey::has_small_order)
        );
    }

    #[test]
    fn a_clamped_key_is_the_same_key() {
        for bytes in [[0xff; 32], [0; 32], std::array::from_fn(|at| (37 * at) as u8)] {
            let key = PrivateKey::from_bytes(bytes);
            let clamped = key.clone().clamped();
            assert_eq!(clamped.public_key(), key.public_key());
            assert_eq!(clamped.clone().clamped().to_hex(), clamped.to_hex());
        }
        let shown = PrivateKey::from_bytes([0xff; 32]).clamped().to_hex();
        assert_eq!(shown.as_str(), format!("f8{}7f", "ff".repeat(30)));
    }

    #[test]
    fn secrets_do_not_show() {
        assert_eq!(format!("{:?}", PrivateKey::from_hex(HEX).unwrap()), "SecretKey(…)");
        assert_eq!(format!("{:?}", PresharedKey::from_hex(HEX).unwrap()), "SecretKey(…)");
    }
}
