//! The will of a session, kept for as long as it: a reload evaluates it again.

use std::fmt;

use portcullis_wire::Will;

use crate::policy::Message;

/// What rules are evaluated by for a will. Its size is bounded by that of CONNECT.
pub(super) struct WillFacts {
    pub(super) topic: Box<str>,
    qos: u8,
    retain: bool,
    pub(super) payload: Box<[u8]>,
    pub(super) response_topic: Option<Box<str>>,
}

impl WillFacts {
    /// Copies a will.
    pub(super) fn of(will: &Will<'_>) -> Self {
        Self {
            topic: will.topic.into(),
            qos: will.qos,
            retain: will.retain,
            payload: will.payload.into(),
            response_topic: will.properties.response_topic().map(Into::into),
        }
    }

    /// The will as a message.
    pub(super) fn message(&self) -> Message<'_> {
        let Self { topic, qos, retain, payload, response_topic } = self;
        Message {
            topic,
            qos: *qos,
            retain: *retain,
            payload_len: payload.len(),
            response_topic: response_topic.as_deref(),
        }
    }
}

/// Shows no content.
impl fmt::Debug for WillFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WillFacts({} bytes)", self.payload.len())
    }
}
