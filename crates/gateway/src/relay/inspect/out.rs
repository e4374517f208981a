//! Where the packets of one direction go: as long as nothing is changed, they are a part of the chunk that was read.

use crate::relay::codec::Injected;

/// The output of one call of the codec.
pub(super) struct Out<'c, 'i> {
    chunk: &'c [u8],
    /// How many bytes of the chunk are passed as they are, from its front.
    passed: usize,
    pub(super) injected: &'i mut Injected,
}

/// Bytes of the input.
#[derive(Clone, Copy)]
pub(super) struct Piece<'p> {
    pub(super) bytes: &'p [u8],
    /// Where they are in the chunk; `None`: not in it.
    pub(super) at: Option<usize>,
}

impl<'c, 'i> Out<'c, 'i> {
    pub(super) fn new(chunk: &'c [u8], injected: &'i mut Injected) -> Self {
        Self { chunk, passed: 0, injected }
    }

    /// Passes bytes of the input.
    #[inline]
    pub(super) fn pass(&mut self, piece: Piece<'_>) {
        if piece.at == Some(self.passed) && self.injected.forward.is_empty() {
            self.passed += piece.bytes.len();
        } else {
            self.injected.forward.extend_from_slice(piece.bytes);
        }
    }

    /// Where other bytes are written. What was passed so far may no longer be a part of the chunk alone: see
    /// [`Out::passed`].
    pub(super) fn write(&mut self) -> &mut Vec<u8> {
        if self.passed > 0 && self.injected.forward.is_empty() {
            let passed = self.chunk.get(..self.passed).unwrap_or_default();
            self.injected.forward.extend_from_slice(passed);
            self.passed = 0;
        }
        &mut self.injected.forward
    }

    /// Injects what was passed, too.
    pub(super) fn inject_all(self) {
        let passed = self.passed();
        self.injected.forward.splice(0..0, passed.iter().copied());
    }

    /// Whether there is any output.
    pub(super) fn has_any(&self) -> bool {
        self.passed > 0 || !self.injected.forward.is_empty()
    }

    /// The part of the chunk that is written as it is, in front of what is injected.
    pub(super) fn passed(&self) -> &'c [u8] {
        self.chunk.get(..self.passed).unwrap_or_default()
    }
}
