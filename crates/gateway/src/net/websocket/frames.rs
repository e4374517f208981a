//! Frames from a client. Enters: bytes, split anywhere. Leaves: payloads, unmasked in place, and control frames; or a violation
//! of RFC 6455. Not here: sockets.

use std::fmt;
use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

/// The longest header: two bytes, eight of length, four of a mask [RFC 6455, 5.2].
const MAX_HEADER: usize = 14;
/// The longest payload of a control frame [RFC 6455, 5.5].
const MAX_CONTROL: u64 = 125;

/// Status codes of Close [RFC 6455, 7.4.1].
const PROTOCOL_ERROR: u16 = 1002;
const UNSUPPORTED_DATA: u16 = 1003;
const INVALID_PAYLOAD: u16 = 1007;

/// What a client has violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// The status code to close the connection with.
    pub code: u16,
    text: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

impl std::error::Error for Violation {}

const fn protocol_error(text: &'static str) -> Violation {
    Violation { code: PROTOCOL_ERROR, text }
}

/// What has been taken from the bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A piece of a frame.
    Read,
    /// A ping, which has to be answered with this payload.
    Ping(Box<[u8]>),
    /// Close, with a status code or without.
    Close(Option<u16>),
}

/// How far the frames have been received.
#[derive(Debug)]
pub(super) struct Frames {
    /// The header of the next frame, as far as it is here.
    header: [u8; MAX_HEADER],
    header_len: u8,
    /// The frame whose payload is being received.
    frame: Option<Frame>,
    /// A message has begun, and is not complete.
    is_fragmented: bool,
    /// The payload of a control frame.
    control: Vec<u8>,
}

#[derive(Debug)]
struct Frame {
    opcode: OpCode,
    is_final: bool,
    /// For the next byte of the payload.
    mask: [u8; 4],
    rest: u64,
}

impl Frames {
    pub(super) const fn new() -> Self {
        Self { header: [0; MAX_HEADER], header_len: 0, frame: None, is_fragmented: false, control: Vec::new() }
    }

    /// Takes the next piece of `bytes` from `read` on, and moves what belongs to messages to `kept`. Advances both.
    ///
    /// # Errors
    /// The client has violated the protocol. Nothing that follows has a meaning.
    pub(super) fn take(&mut self, bytes: &mut [u8], read: &mut usize, kept: &mut usize) -> Result<Event, Violation> {
        if self.frame.is_none() {
            self.take_header(bytes, read)?;
        }
        let Some(frame) = &mut self.frame else { return Ok(Event::Read) };
        let available = bytes.len() - *read;
        let len = usize::try_from(frame.rest).map_or(available, |rest| rest.min(available));
        let piece = *read..*read + len;
        unmask(&mut bytes[piece.clone()], &mut frame.mask);
        frame.rest -= len as u64;
        *read += len;
        if let OpCode::Control(_) = frame.opcode {
            self.control.extend_from_slice(&bytes[piece]);
        } else {
            bytes.copy_within(piece, *kept);
            *kept += len;
        }
        match self.frame.take_if(|frame| frame.rest == 0) {
            None => Ok(Event::Read),
            Some(frame) => self.end_frame(&frame),
        }
    }

    /// Takes bytes of a header, and begins the frame once it is complete.
    fn take_header(&mut self, bytes: &[u8], read: &mut usize) -> Result<(), Violation> {
        while let Some(byte) = bytes.get(*read) {
            let len = usize::from(self.header_len);
            self.header[len] = *byte;
            *read += 1;
            self.header_len += 1;
            if len > 0 && len + 1 == header_len(self.header[1]) {
                self.header_len = 0;
                self.frame = Some(self.begin_frame(&self.header[..=len])?);
                return Ok(());
            }
        }
        Ok(())
    }

    fn begin_frame(&self, header: &[u8]) -> Result<Frame, Violation> {
        let parsed = FrameHeader::parse(&mut Cursor::new(header));
        let Ok(Some((FrameHeader { is_final, rsv1, rsv2, rsv3, opcode, mask }, len))) = parsed else {
            return Err(protocol_error("a frame has a reserved opcode"));
        };
        if rsv1 || rsv2 || rsv3 {
            return Err(protocol_error("a frame has reserved bits, and no extension was offered"));
        }
        let Some(mask) = mask else { return Err(protocol_error("a frame is not masked")) };
        let shortest = (FrameHeader { mask: Some(mask), ..FrameHeader::default() }).len(len);
        if len >> 63 != 0 || shortest != header.len() {
            return Err(protocol_error("the length of a frame is not encoded in the fewest bytes"));
        }
        match opcode {
            OpCode::Control(_) if !is_final => return Err(protocol_error("a control frame is fragmented")),
            OpCode::Control(_) if len > MAX_CONTROL => return Err(protocol_error("a control frame is too long")),
            OpCode::Data(Data::Continue) if !self.is_fragmented => {
                return Err(protocol_error("a continuation frame continues nothing"));
            }
            OpCode::Data(Data::Text | Data::Binary) if self.is_fragmented => {
                return Err(protocol_error("a message begins within another"));
            }
            OpCode::Data(Data::Text) => {
                // [MQTT-6.0.0-1]
                return Err(Violation { code: UNSUPPORTED_DATA, text: "a text frame: MQTT is sent in binary frames" });
            }
            OpCode::Control(_) | OpCode::Data(_) => {}
        }
        Ok(Frame { opcode, is_final, mask, rest: len })
    }

    fn end_frame(&mut self, frame: &Frame) -> Result<Event, Violation> {
        let payload = std::mem::take(&mut self.control);
        match frame.opcode {
            OpCode::Data(_) => self.is_fragmented = !frame.is_final,
            OpCode::Control(Control::Ping) => return Ok(Event::Ping(payload.into())),
            OpCode::Control(Control::Close) => return close_code(&payload).map(Event::Close),
            OpCode::Control(_) => {}
        }
        Ok(Event::Read)
    }
}

/// The length of a header with this second byte, and a mask.
const fn header_len(second: u8) -> usize {
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    mask + match second & 0x7F {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

/// The status code in the payload of Close.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(protocol_error("Close has half a status code")) };
    };
    let code = u16::from_be_bytes(*code);
    if !CloseCode::from(code).is_allowed() {
        return Err(protocol_error("Close has a status code that is not allowed"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Violation { code: INVALID_PAYLOAD, text: "the reason of Close is not UTF-8" });
    }
    Ok(Some(code))
}

/// Unmasks a piece of a payload, and turns the mask to the byte that follows [RFC 6455, 5.3].
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let (words, rest) = bytes.as_chunks_mut::<4>();
    let word_mask = u32::from_ne_bytes(*mask);
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ word_mask).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(*mask) {
        *byte ^= mask;
    }
    mask.rotate_left(rest.len());
}

/// However bytes are split, the same comes of them.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let all = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut frames, mut payload, mut events) = (Frames::new(), Vec::new(), Vec::new());
        for piece in pieces {
            let (mut piece, mut read, mut kept) = (piece.to_vec(), 0, 0);
            while read < piece.len() {
                let before = read;
                let taken = frames.take(&mut piece, &mut read, &mut kept);
                assert!(read > before && kept <= read);
                match taken {
                    Ok(Event::Read) => {}
                    Ok(event @ Event::Close(_)) => {
                        events.push(event);
                        payload.extend_from_slice(&piece[..kept]);
                        return (payload, events, None);
                    }
                    Ok(event) => events.push(event),
                    Err(violation) => return (payload, events, Some(violation)),
                }
            }
            assert!(frames.control.len() as u64 <= MAX_CONTROL);
            payload.extend_from_slice(&piece[..kept]);
        }
        (payload, events, None)
    };
    let (whole, events, violation) = all(&mut std::iter::once(bytes));
    let (split, other_events, other_violation) = all(&mut bytes.chunks(1));
    assert_eq!((&events, violation), (&other_events, other_violation));
    // What precedes a violation in one chunk is not passed on.
    assert!(if violation.is_some() { split.starts_with(&whole) } else { split == whole });
}
