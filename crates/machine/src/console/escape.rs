//! The keys that are meant for the machine and not for the guest.

/// Ctrl-A.
const PREFIX: u8 = 1;

/// Finds Ctrl-A X and Ctrl-A Ctrl-A in what is typed.
#[derive(Debug, Default)]
pub(super) struct Escapes {
    /// The last byte was a Ctrl-A.
    armed: bool,
}

impl Escapes {
    /// Appends to `keys` what goes to the guest; true if the run is to end. Ctrl-A with a key that means
    /// nothing goes to nobody.
    pub(super) fn filter(&mut self, typed: &[u8], keys: &mut impl Extend<u8>) -> bool {
        for &byte in typed {
            match (std::mem::take(&mut self.armed), byte) {
                (true, b'x' | b'X') => return true,
                (false, PREFIX) => self.armed = true,
                (true, PREFIX) | (false, _) => keys.extend([byte]),
                (true, _) => {}
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut escapes, mut keys) = (Escapes::default(), Vec::new());
        let quit = pieces.iter().any(|piece| escapes.filter(piece, &mut keys));
        (keys, quit)
    }

    #[test]
    fn ctrl_a_x_quits_and_ctrl_a_twice_is_one() {
        assert_eq!(typed(&[b"ls\r"]), (b"ls\r".to_vec(), false));
        assert_eq!(typed(&[b"a\x01xb"]), (b"a".to_vec(), true));
        assert_eq!(typed(&[b"\x01", b"X"]), (vec![], true));
        assert_eq!(typed(&[b"\x01\x01x"]), (b"\x01x".to_vec(), false));
        assert_eq!(typed(&[b"\x01?x"]), (b"x".to_vec(), false));
    }
}
