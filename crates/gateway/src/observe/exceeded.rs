//! Limits that clients exceed while they stay connected: what is denied because of them, and who is delayed. Enters: each
//! event. Leaves: counters, and a rate-limited log line. Limits that end sessions are in the access log instead.

use std::sync::OnceLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::SessionInfo;
use super::rate_limit::FairRateLimit;
use crate::util::clip::clip;

/// A limit that a client has exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `message_rate`: it is not read for a while.
    MessageRate,
    /// `byte_rate`: it is not read for a while.
    ByteRate,
    /// `max_topic_levels`: a topic or a filter is denied.
    TopicLevels,
    /// `max_subscriptions`, or 1 MiB of filters: a filter is denied.
    Subscriptions,
    /// A topic or a filter is longer than MQTT can express, with the mountpoint in front.
    TopicLength,
    /// A message is larger than the broker accepts, with what the gateway adds to it.
    PacketSize,
}

impl Limit {
    const ALL: usize = Self::PacketSize as usize + 1;

    /// As in the configuration, where it is one.
    const fn label(self) -> &'static str {
        match self {
            Self::MessageRate => "message_rate",
            Self::ByteRate => "byte_rate",
            Self::TopicLevels => "max_topic_levels",
            Self::Subscriptions => "max_subscriptions",
            Self::TopicLength => "topic_length",
            Self::PacketSize => "packet_size",
        }
    }

    const fn delays(self) -> bool {
        matches!(self, Self::MessageRate | Self::ByteRate)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByLimit {
    listener: String,
    limit: &'static str,
}

/// The counters of one listener. Each exists once it is used.
#[derive(Debug)]
pub struct ExceededLimits {
    listener: Box<str>,
    family: Family<ByLimit, Counter>,
    counters: [OnceLock<Counter>; Limit::ALL],
    lines: FairRateLimit,
}

impl ExceededLimits {
    pub(super) fn new(family: Family<ByLimit, Counter>, listener: &str) -> Self {
        Self { listener: listener.into(), family, counters: Default::default(), lines: FairRateLimit::default() }
    }

    /// Counts and logs that a client exceeds a limit. `topic`: what is denied; empty if the client is delayed.
    pub fn count(&self, limit: Limit, topic: &str, client: &SessionInfo) {
        let new = || {
            let by = ByLimit { listener: self.listener.to_string(), limit: limit.label() };
            self.family.get_or_create_owned(&by)
        };
        self.counters[limit as usize].get_or_init(new).inc();
        if limit.delays() {
            client.count_delay();
        } else {
            client.count_denial();
        }
        let suppressed = client.permit_line(&self.lines);
        if suppressed.is_none() && !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let (connection, client_id, remote) = (client.id, client.client_id(), client.address());
        let (listener, limit, topic, delays) = (&*self.listener, limit.label(), &*clip(topic), limit.delays());
        match suppressed {
            Some(suppressed) if delays => {
                tracing::info!(connection, listener, limit, client_id, %remote, suppressed, "delayed by a limit");
            }
            Some(suppressed) => {
                tracing::info!(connection, listener, limit, topic, client_id, %remote, suppressed, "denied by a limit");
            }
            None => tracing::debug!(connection, listener, limit, topic, client_id, %remote, "a limit is exceeded"),
        }
    }
}
