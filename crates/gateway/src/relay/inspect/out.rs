//! Where the packets of one direction go: as long as nothing is changed, they are a part of the chunk that was read.

use portcullis_wire::{MAX_REMAINING_LENGTH, Publish, Version};

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

    /// Writes the head of a PUBLISH that differs from the received one, with `prefix` in front of its topic, unless the packet
    /// would be larger than `max`. Returns whether it is written.
    pub(super) fn write_head(
        &mut self,
        publish: &Publish<'_>,
        prefix: &str,
        payload_len: usize,
        version: Version,
        max: usize,
    ) -> bool {
        let fits = publish.packet_len(version, prefix, payload_len) <= max.min(MAX_REMAINING_LENGTH as usize);
        if fits {
            publish.encode_head(version, prefix, payload_len, self.write());
        }
        fits
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
