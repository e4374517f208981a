//! MQTT 3.1, 3.1.1 and 5 as a gateway reads and writes them: all packets, topic names and topic filters.
//!
//! Enters: untrusted bytes. Leaves: borrowed views of them, packets to send, or an [`Error`] that names the broken rule.
//! It has no I/O and no clock, allocates nothing while decoding, and panics on no input.
//!
//! Decoding is incremental: pass all bytes that have arrived so far; `Ok(None)` means that more are needed. How the input
//! is split never changes the result.
//!
//! ```
//! use portcullis_wire::{Connect, Limits};
//!
//! let bytes = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04abcd\xc0\x00";
//! assert_eq!(Connect::decode(&bytes[..9], Limits::default()), Ok(None));
//! let (connect, used) = Connect::decode(bytes, Limits::default()).unwrap().unwrap();
//! assert_eq!((connect.client_id, used), ("abcd", 18)); // The PINGREQ behind it stays with the caller.
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod answer;
mod connect;
mod error;
mod frame;
mod packet;
mod property;
mod reader;
mod subscription;
mod topic;

pub use answer::{Connack, Disconnect, PINGREQ, Refusal};
pub use connect::{Connect, Limits, Version, Will};
pub use error::{Error, Rule};
pub use frame::{FixedHeader, MAX_REMAINING_LENGTH, PacketType, Scanner};
pub use packet::{Ack, Packet, Publish, PublishStart, Reasoned, Sender, head_len};
pub use property::{Properties, PropertiesBuf, Property, PropertyId, PropertyIter, Terms};
pub use subscription::{Suback, Subscribe, Subscription, Unsubscribe, encode_with_id, put_filter};
pub use topic::{TopicFilter, check_topic_name, topic_levels};
