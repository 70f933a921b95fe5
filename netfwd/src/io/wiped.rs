//! Memory that is overwritten as a whole before it is given back.
//!
//! A library's session object has keys in places that only the library knows, and in the gaps between them what the stack
//! held when it was built: keys again. Overwriting fields, where they can be reached at all, leaves those.
//!
//! Invariants: the value lives in one place on the heap; it is dropped first, its bytes are overwritten after that, gaps
//! included. Deliberately absent: the stack that the value was built on, which is nobody's to wipe, and what the value
//! itself has allocated, which is its own matter.

use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

/// A `Box` that leaves nothing but zeroes.
pub struct Wiped<T>(Box<MaybeUninit<T>>);

impl<T> Wiped<T> {
    /// Moves a value into such memory.
    pub fn new(value: T) -> Self {
        Self(Box::new(MaybeUninit::new(value)))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` has put a value there, and only `drop` takes it away.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> DerefMut for Wiped<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: `new` has put a value there, and only `drop` takes it away.
        unsafe { self.0.assume_init_mut() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: `new` has put a value there, and nobody looks at it after this.
        unsafe { self.0.assume_init_drop() };
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn the_value_is_dropped_once() {
        let counted = Rc::new(());
        let mut wiped = Wiped::new((counted.clone(), 7));
        wiped.1 += 1;
        assert_eq!((wiped.1, Rc::strong_count(&counted)), (8, 2));
        drop(wiped);
        assert_eq!(Rc::strong_count(&counted), 1);
    }
}
