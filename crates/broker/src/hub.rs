//! The state that connections share: sessions with their subscriptions and queues, and retained messages. All of it is
//! bounded.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::v5::{Connect, RetainHandling, SubscribeAckReason, SubscriptionOptions};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::packets::READ_BUFFER;
use crate::topics::{is_filter, matches};

/// The largest packet that the broker accepts, in bytes.
pub(crate) const MAX_PACKET: u32 = 2 << 20;
/// How many messages may be unacknowledged in a session, in each direction.
pub(crate) const MAX_UNACKNOWLEDGED: u16 = 256;
/// The longest time that a session outlives its connection.
pub(crate) const MAX_KEPT: Duration = Duration::from_secs(3600);
const MAX_SESSIONS: usize = 4096;
/// How many filters a session may have, and a SUBSCRIBE or UNSUBSCRIBE may list.
pub(crate) const MAX_FILTERS: usize = 256;
const MAX_FILTER_BYTES: usize = 16 << 10;
const MAX_QUEUE: usize = 1000;
/// What a user property takes besides its texts, in bytes: two handles of shared buffers, and room for the list to grow.
const PAIR: usize = 128;
/// The size of all stored messages together, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// The state that all connections share.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    sessions: HashMap<Box<str>, Session>,
    retained: BTreeMap<Box<str>, Message>,
    /// The size of all stored messages, in bytes.
    bytes: usize,
    /// The number of the last connection.
    connections: u64,
}

#[derive(Debug)]
struct Session {
    /// The number of its current or last connection.
    connection: u64,
    /// When the session expires; `None` while a client is connected.
    expires: Option<Instant>,
    subscriptions: HashMap<Box<str>, Subscription>,
    queue: VecDeque<Message>,
    unacknowledged: BTreeMap<NonZeroU16, Message>,
    /// Packet identifiers of QoS 2 messages that the client has not released yet.
    unreleased: BTreeSet<NonZeroU16>,
    last_packet_id: u16,
    wake: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
struct Subscription {
    options: SubscriptionOptions,
    id: Option<NonZeroU32>,
}

/// A stored message. It gets its packet identifier when it is sent.
#[derive(Clone, Debug)]
struct Message {
    publish: Publish,
    /// When the message expires and is no longer delivered.
    expires: Option<Instant>,
}

/// A session's connection.
#[derive(Clone, Debug)]
pub(crate) struct Attached {
    pub(crate) client_id: Box<str>,
    pub(crate) connection: u64,
    /// Whether the connection resumes a session.
    pub(crate) is_present: bool,
    /// Notified when a message is queued, or when another connection takes the session over.
    pub(crate) wake: Arc<Notify>,
}

/// The next action of a connection.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Deliver(Box<Publish>),
    Wait,
    /// Another connection has taken the session over.
    TakenOver,
}

impl Hub {
    /// Creates or resumes a session, and ends its previous connection. Returns `None` if there are too many sessions.
    pub(crate) fn attach(&mut self, connect: &Connect) -> Option<Attached> {
        self.connections += 1;
        let connection = self.connections;
        let client_id: Box<str> = match &*connect.client_id {
            "" => format!("auto-{connection}").into(),
            sent => sent.into(),
        };
        let now = Instant::now();
        let expired = |session: &Session| session.expires.is_some_and(|expires| expires <= now);
        let ended: Vec<_> =
            self.sessions.iter().filter(|(_, session)| expired(session)).map(|(id, _)| id.clone()).collect();
        ended.iter().for_each(|id| self.remove(id));
        if let Some(session) = self.sessions.get(&client_id) {
            session.wake.notify_one();
            if connect.clean_start {
                self.remove(&client_id);
            }
        }
        let is_present = self.sessions.contains_key(&client_id);
        if !is_present && self.sessions.len() >= MAX_SESSIONS {
            // Sessions without a client make room for one that is here.
            let offline = self.sessions.iter().filter_map(|(id, session)| Some((session.expires?, id.clone())));
            let (_, first) = offline.min()?;
            self.remove(&first);
        }
        let session = self.sessions.entry(client_id.clone()).or_insert_with(Session::new);
        session.connection = connection;
        session.expires = None;
        session.wake = Arc::default();
        // Unacknowledged messages are sent again, before all others and in order [MQTT-4.4.0-1].
        for (id, mut message) in std::mem::take(&mut session.unacknowledged).into_iter().rev() {
            message.publish.dup = true;
            message.publish.packet_id = Some(id);
            session.queue.push_front(message);
        }
        Some(Attached { client_id, connection, is_present, wake: Arc::clone(&session.wake) })
    }

    /// Ends a connection and keeps its session for this long. Returns whether the connection still had the session.
    pub(crate) fn detach(&mut self, attached: &Attached, kept: Duration) -> bool {
        let Some(session) = self.session(attached) else { return false };
        session.expires = Some(Instant::now() + kept);
        if kept.is_zero() {
            self.remove(&attached.client_id);
        }
        true
    }

    /// Whether no client has connected to the session again.
    pub(crate) fn is_gone(&self, attached: &Attached) -> bool {
        let session = self.sessions.get(&attached.client_id);
        session.is_none_or(|session| session.connection == attached.connection && session.expires.is_some())
    }

    /// Counts a message that waits to be published. Returns its size for [`Hub::publish_delayed`]; `None` if the store is full.
    pub(crate) fn delay(&mut self, publish: &Publish) -> Option<usize> {
        let size = size_of_publish(publish);
        (self.bytes + size <= MAX_BYTES).then(|| self.bytes += size)?;
        Some(size)
    }

    /// Publishes a message that was delayed, unless a client has connected to the session again.
    pub(crate) fn publish_delayed(&mut self, from: &Attached, publish: Publish, size: usize) {
        self.bytes -= size;
        if self.is_gone(from) {
            self.publish(&from.client_id, publish);
        }
    }

    /// Returns the next message to send, while fewer than `receive_max` messages are unacknowledged.
    pub(crate) fn next(&mut self, attached: &Attached, receive_max: u16) -> Next {
        loop {
            let Some(session) = self.session(attached) else { return Next::TakenOver };
            let is_full = session.unacknowledged.len() >= usize::from(receive_max);
            if session.queue.front().is_none_or(|message| is_full && message.publish.qos != QoS::AtMostOnce) {
                return Next::Wait;
            }
            let Some(mut message) = session.queue.pop_front() else { return Next::Wait };
            if message.publish.qos == QoS::AtMostOnce {
                self.bytes -= size(&message);
            } else {
                let packet_id = message.publish.packet_id.unwrap_or_else(|| session.free_packet_id());
                message.publish.packet_id = Some(packet_id);
                session.unacknowledged.insert(packet_id, message.clone());
            }
            if message.reduce_expiry() {
                return Next::Deliver(Box::new(message.publish));
            }
            if let Some(packet_id) = message.publish.packet_id {
                self.acknowledge(attached, packet_id);
            }
        }
    }

    /// Removes a message that the client has acknowledged.
    pub(crate) fn acknowledge(&mut self, attached: &Attached, packet_id: NonZeroU16) {
        let Some(message) = self.session(attached).and_then(|session| session.unacknowledged.remove(&packet_id)) else {
            return;
        };
        self.bytes -= size(&message);
    }

    /// Records a QoS 2 message until its release. Returns `Some(true)` if it is new, `None` if there are too many.
    pub(crate) fn hold(&mut self, attached: &Attached, packet_id: NonZeroU16) -> Option<bool> {
        let unreleased = &mut self.session(attached)?.unreleased;
        let is_known = unreleased.contains(&packet_id);
        if !is_known && unreleased.len() >= usize::from(MAX_UNACKNOWLEDGED) {
            return None;
        }
        Some(unreleased.insert(packet_id))
    }

    /// Completes a QoS 2 message. Returns whether it was recorded.
    pub(crate) fn release(&mut self, attached: &Attached, packet_id: NonZeroU16) -> bool {
        self.session(attached).is_some_and(|session| session.unreleased.remove(&packet_id))
    }

    /// Subscribes, and queues the retained messages that match. Returns the granted QoS or the reason for the failure.
    pub(crate) fn subscribe(
        &mut self,
        attached: &Attached,
        filter: &str,
        mut options: SubscriptionOptions,
        id: Option<NonZeroU32>,
    ) -> SubscribeAckReason {
        if filter.starts_with("$share/") {
            return SubscribeAckReason::SharedSubscriptionNotSupported;
        }
        if !is_filter(filter) {
            return SubscribeAckReason::TopicFilterInvalid;
        }
        options.qos = options.qos.less_value(QoS::AtLeastOnce);
        let Some(session) = self.session(attached) else { return SubscribeAckReason::UnspecifiedError };
        let is_new = !session.subscriptions.contains_key(filter);
        let bytes: usize = session.subscriptions.keys().map(|filter| filter.len()).sum();
        if is_new && (session.subscriptions.len() >= MAX_FILTERS || bytes + filter.len() > MAX_FILTER_BYTES) {
            return SubscribeAckReason::QuotaExceeded;
        }
        let subscription = Subscription { options, id };
        session.subscriptions.insert(filter.into(), subscription);
        // [MQTT-3.3.1-9 to -11 (5)].
        let wants_retained = match options.retain_handling {
            RetainHandling::AtSubscribe => true,
            RetainHandling::AtSubscribeNew => is_new,
            RetainHandling::NoAtSubscribe => false,
        };
        if wants_retained {
            let free = MAX_QUEUE.saturating_sub(self.session(attached).map_or(0, |session| session.queue.len()));
            let retained = self.retained.iter().filter(|(topic, _)| matches(filter, topic));
            // What does not fit into the queue would be dropped: do not copy it first.
            let messages: Vec<Message> = retained.take(free).map(|(_, message)| message.clone()).collect();
            for mut message in messages {
                message.publish.qos = message.publish.qos.less_value(options.qos);
                message.identify(id.as_slice());
                self.enqueue(&attached.client_id, message);
            }
        }
        match options.qos {
            QoS::AtMostOnce => SubscribeAckReason::GrantedQos0,
            _ => SubscribeAckReason::GrantedQos1,
        }
    }

    /// Unsubscribes. Returns whether the subscription existed.
    pub(crate) fn unsubscribe(&mut self, attached: &Attached, filter: &str) -> bool {
        self.session(attached).is_some_and(|session| session.subscriptions.remove(filter).is_some())
    }

    /// Stores the message if it is to be retained, and queues it for all sessions with a matching subscription.
    pub(crate) fn publish(&mut self, from: &str, mut publish: Publish) {
        (publish.dup, publish.packet_id) = (false, None);
        let interval = publish.properties.as_ref().and_then(|properties| properties.message_expiry_interval);
        let expires = interval.map(|seconds| Instant::now() + Duration::from_secs(seconds.get().into()));
        let message = Message { publish, expires };
        if message.publish.retain {
            self.retain(&message);
        }
        let recipients = self.sessions.iter().filter_map(|(id, session)| {
            let mut message = message.clone();
            session.address(&mut message, id.as_ref() == from).then(|| (id.clone(), message))
        });
        let recipients: Vec<_> = recipients.collect();
        for (client_id, message) in recipients {
            self.enqueue(&client_id, message);
        }
    }

    fn retain(&mut self, message: &Message) {
        let topic: &str = &message.publish.topic;
        if let Some(old) = self.retained.remove(topic) {
            self.bytes -= size(&old);
        }
        // A retained message without a payload deletes the previous one [MQTT-3.3.1-10].
        if message.publish.payload.is_empty() {
            return;
        }
        if self.bytes + size(message) > MAX_BYTES {
            tracing::debug!(topic, "dropped a retained message: the store is full");
            return;
        }
        self.bytes += size(message);
        self.retained.insert(topic.into(), message.clone());
    }

    fn enqueue(&mut self, client_id: &str, message: Message) {
        let Some(session) = self.sessions.get_mut(client_id) else { return };
        // QoS 0 messages are not queued for disconnected clients.
        let is_offline_qos0 = session.expires.is_some() && message.publish.qos == QoS::AtMostOnce;
        if is_offline_qos0 || session.queue.len() >= MAX_QUEUE || self.bytes + size(&message) > MAX_BYTES {
            tracing::debug!(client_id, "dropped a message");
            return;
        }
        self.bytes += size(&message);
        session.queue.push_back(message);
        session.wake.notify_one();
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn session(&mut self, attached: &Attached) -> Option<&mut Session> {
        let session = self.sessions.get_mut(&attached.client_id);
        session.filter(|session| session.connection == attached.connection)
    }

    fn remove(&mut self, client_id: &str) {
        if let Some(session) = self.sessions.remove(client_id) {
            self.bytes -= session.queue.iter().chain(session.unacknowledged.values()).map(size).sum::<usize>();
        }
    }
}

impl Session {
    fn new() -> Self {
        Self {
            connection: 0,
            expires: None,
            subscriptions: HashMap::new(),
            queue: VecDeque::new(),
            unacknowledged: BTreeMap::new(),
            unreleased: BTreeSet::new(),
            last_packet_id: 0,
            wake: Arc::default(),
        }
    }

    /// Adapts a message to this session's subscriptions: QoS, retain flag and subscription identifiers. Returns whether any
    /// subscription matches.
    fn address(&self, message: &mut Message, is_own: bool) -> bool {
        let matching = || {
            let all = self.subscriptions.iter().filter(|(filter, _)| matches(filter, &message.publish.topic));
            all.map(|(_, subscription)| subscription).filter(|one| !(is_own && one.options.no_local))
        };
        let Some(qos) = matching().map(|one| one.options.qos).max() else { return false };
        let ids: Vec<NonZeroU32> = matching().filter_map(|one| one.id).collect();
        let keeps_retain = matching().any(|one| one.options.retain_as_published);
        message.publish.qos = message.publish.qos.less_value(qos);
        message.publish.retain &= keeps_retain;
        message.identify(&ids);
        true
    }

    /// Terminates because fewer than all identifiers are in use.
    fn free_packet_id(&mut self) -> NonZeroU16 {
        loop {
            self.last_packet_id = self.last_packet_id.wrapping_add(1);
            if let Some(id) = NonZeroU16::new(self.last_packet_id).filter(|id| !self.unacknowledged.contains_key(id)) {
                return id;
            }
        }
    }
}

impl Message {
    /// Says which subscriptions it is for [MQTT-3.3.4-3 (5)].
    fn identify(&mut self, ids: &[NonZeroU32]) {
        let properties = self.publish.properties.get_or_insert_default();
        properties.subscription_ids = ids.to_vec();
        properties.topic_alias = None;
    }

    /// Takes the time that it has waited from its interval [MQTT-3.3.2-6 (5)]. Returns whether some is left.
    fn reduce_expiry(&mut self) -> bool {
        let Some(expires) = self.expires else { return true };
        let left = expires.saturating_duration_since(Instant::now());
        let seconds = u32::try_from(left.as_secs() + u64::from(left.subsec_nanos() > 0)).unwrap_or(u32::MAX);
        self.publish.properties.get_or_insert_default().message_expiry_interval = NonZeroU32::new(seconds);
        !left.is_zero()
    }
}

fn size(message: &Message) -> usize {
    size_of_publish(&message.publish)
}

/// What a message keeps in memory at most: itself, its properties, and the read buffer that it came in.
fn size_of_publish(publish: &Publish) -> usize {
    let properties = publish.properties.as_ref().map_or(0, |properties| {
        let pairs = properties.user_properties.iter().map(|(name, value)| PAIR + name.len() + value.len());
        pairs.sum::<usize>()
            + properties.content_type.as_ref().map_or(0, |text| text.len())
            + properties.response_topic.as_ref().map_or(0, |text| text.len())
            + properties.correlation_data.as_ref().map_or(0, bytes::Bytes::len)
    });
    READ_BUFFER + publish.topic.len() + publish.payload.len() + properties
}
