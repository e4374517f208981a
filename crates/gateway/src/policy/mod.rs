//! The operator's policy: which clients are admitted, how CONNECT is rewritten, and what may be published and subscribed to.

mod connect;
mod packets;
mod token;
mod topics;

pub(crate) use connect::{Admission, Rewriting};
pub(crate) use packets::{ConnectScratch, MAX_TOPIC_ALIASES, MAX_TOPIC_LEN, PacketPolicy, PacketRules, WillRejection};
pub(crate) use token::Signer;
pub(crate) use topics::{Decision, Denial, Message, TopicPolicy, TopicRules};
