//! What a listener does with packets after CONNECT: topic rules, mountpoint, stamps and limits. Enters: settings, then the
//! facts about a client at CONNECT. Leaves: the rules of its session, and CONNECT as they change it. Not here: packets
//! after CONNECT, which are the relay's.

use std::sync::Arc;

use portcullis_wire::{Connect, Properties, PropertiesBuf, PropertyId, Refusal, Terms, Version, Will, topic_levels};

use super::topics::{Denial, Message, TopicPolicy, TopicRules};
use crate::config::tables::{OnDeny, PacketLimits};
use crate::expr::{Expression, Template};
use crate::observe::{Action, Decisions, ExceededLimits, Limit, SessionInfo};
use crate::outcome::{Reject, note_detail};
use crate::peer::Facts;
use crate::util::clip::clip;

/// How many topic aliases the gateway accepts in each direction: it follows them, and each can be 64 KiB long.
pub(crate) const MAX_TOPIC_ALIASES: u16 = 10;
/// By how many bytes lengths in front of a packet, its properties and its topics can grow.
const LENGTHS: u32 = 8;
/// The longest topic, in bytes [MQTT-1.5.4].
pub(crate) const MAX_TOPIC_LEN: usize = u16::MAX as usize;

/// What a listener does with packets.
#[derive(Debug, Default)]
pub(crate) struct PacketPolicy {
    topics: Option<(Arc<TopicPolicy>, Arc<Decisions>)>,
    mountpoint: Option<Template>,
    stamps: Vec<(Box<str>, Expression)>,
    limits: PacketLimits,
    exceeded: Option<Arc<ExceededLimits>>,
}

/// What applies to the packets of one session.
#[derive(Debug, Default)]
pub(crate) struct PacketRules {
    /// `None`: every topic is allowed.
    pub(crate) topics: Option<TopicRules>,
    /// In front of every topic at the broker; may be empty.
    pub(crate) mountpoint: Box<str>,
    /// User properties that are added to messages of MQTT 5 clients, and replace theirs of the same names.
    pub(crate) stamps: Box<[(Box<str>, Box<str>)]>,
    pub(crate) limits: PacketLimits,
    /// Where exceeded limits are counted.
    exceeded: Option<Arc<ExceededLimits>>,
}

/// Why a will, or a limit in CONNECT, refuses the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WillRejection(Denial);

impl PacketPolicy {
    pub(crate) fn new(
        topics: Option<(Arc<TopicPolicy>, Arc<Decisions>)>,
        mountpoint: Option<Template>,
        stamps: Vec<(String, Expression)>,
        limits: PacketLimits,
        exceeded: ExceededLimits,
    ) -> Self {
        let stamps = stamps.into_iter().map(|(name, expression)| (name.into(), expression)).collect();
        Self { topics, mountpoint, stamps, limits, exceeded: Some(Arc::new(exceeded)) }
    }

    /// Whether packets have to be looked at.
    pub(crate) fn needs_packets(&self) -> bool {
        self.topics.is_some() || self.mountpoint.is_some() || !self.stamps.is_empty() || self.limits.is_any()
    }

    /// Whether a session that was not inspected cannot continue.
    pub(crate) fn binds_sessions(&self) -> bool {
        let is_enforced = self.topics.as_ref().is_some_and(|(policy, _)| policy.is_enforced());
        // Subscribers trust stamps.
        is_enforced || self.mountpoint.is_some() || !self.stamps.is_empty()
    }

    /// Whether an expression uses this name.
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.topics.as_ref().is_some_and(|(policy, _)| policy.uses(name))
            || self.mountpoint.iter().flat_map(Template::expressions).any(|it| it.uses(name))
            || self.stamps.iter().any(|(_, expression)| expression.uses(name))
    }

    /// The rules for a client. `None`: its packets are not looked at.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`]: a mountpoint, a stamp, a condition or a rule that denies cannot be evaluated.
    pub(crate) fn for_client(&self, facts: &Facts<'_>) -> Result<Option<Arc<PacketRules>>, Reject> {
        if !self.needs_packets() {
            return Ok(None);
        }
        let mountpoint = self.mountpoint.as_ref().map(|template| template.evaluate(facts)).transpose();
        let mountpoint = mountpoint.map_err(|why| {
            note_detail(&format!("mountpoint: {why}"));
            Reject::ExpressionFailed
        })?;
        let stamp = |(name, expression): &(Box<str>, Expression)| {
            let value = expression.text(facts)?;
            if value.len() > MAX_TOPIC_LEN || value.contains('\0') {
                note_detail(&format!("`{expression}`: the value is no user property"));
                return Err(Reject::ExpressionFailed);
            }
            Ok((name.clone(), value.as_str().into()))
        };
        let topics = self.topics.as_ref().map(|(policy, decisions)| TopicRules::for_client(policy, decisions, facts));
        Ok(Some(Arc::new(PacketRules {
            topics: topics.transpose()?,
            mountpoint: mountpoint.unwrap_or_default().into(),
            stamps: self.stamps.iter().map(stamp).collect::<Result<_, _>>()?,
            limits: self.limits,
            exceeded: self.exceeded.clone(),
        })))
    }
}

/// Memory for what replaces parts of CONNECT.
#[derive(Debug, Default)]
pub(crate) struct ConnectScratch {
    properties: PropertiesBuf,
    will_topic: String,
    will_properties: PropertiesBuf,
}

impl PacketRules {
    /// Judges the will, and changes CONNECT: mountpoint and stamps of the will, the keep-alive and session expiry intervals,
    /// the largest topic alias.
    ///
    /// # Errors
    /// The will is denied.
    pub(crate) fn apply<'a>(
        &self,
        connect: &Connect<'a>,
        scratch: &'a mut ConnectScratch,
        info: &SessionInfo,
    ) -> Result<Connect<'a>, WillRejection> {
        let ConnectScratch { properties, will_topic, will_properties } = scratch;
        let mut changed = *connect;
        if connect.version == Version::V5 {
            changed.keep_alive = self.keep_alive(connect.keep_alive);
            changed.properties = self.adjust(&connect.properties, properties);
        }
        if let Some(will) = &connect.will {
            self.check_will(will, info)?;
            if !self.mountpoint.is_empty() {
                will_topic.push_str(&self.mountpoint);
                will_topic.push_str(will.topic);
            }
            let topic = if will_topic.is_empty() { will.topic } else { will_topic };
            let properties = match connect.version {
                Version::V5 => self.stamp(&will.properties, will_properties),
                Version::V31 | Version::V311 => will.properties,
            };
            changed.will = Some(Will { topic, properties, ..*will });
        }
        Ok(changed)
    }

    /// The keep-alive interval that applies to a client of MQTT 5, in seconds.
    pub(crate) fn keep_alive(&self, wanted: u16) -> u16 {
        match self.limits.max_keep_alive {
            Some(max) if wanted == 0 || wanted > max => max,
            _ => wanted,
        }
    }

    /// The properties of CONNECT with the limits that apply between the gateway and the broker.
    fn adjust<'a>(&self, properties: &Properties<'a>, scratch: &'a mut PropertiesBuf) -> Properties<'a> {
        let wanted = Terms::of(properties);
        // The broker counts the mountpoint, the client does not: what is too large without it is withheld on its way.
        let growth = match u32::try_from(2 * self.mountpoint.len()).unwrap_or(u32::MAX) {
            0 => 0,
            topics => topics.saturating_add(LENGTHS),
        };
        let max_expiry = self.limits.max_session_expiry.unwrap_or(u32::MAX);
        let terms = Terms {
            session_expiry_interval: wanted.session_expiry_interval.map(|seconds| seconds.min(max_expiry)),
            topic_alias_maximum: wanted.topic_alias_maximum.map(|maximum| maximum.min(MAX_TOPIC_ALIASES)),
            maximum_packet_size: wanted.maximum_packet_size.map(|size| size.saturating_add(growth)),
            ..wanted
        };
        if terms == wanted {
            return *properties;
        }
        scratch.copy_with(properties, terms);
        scratch.as_properties()
    }

    /// The properties of a PUBLISH or a will of MQTT 5 as the broker gets them: with the mountpoint in front of the response
    /// topic, and with stamps.
    pub(crate) fn stamp<'a>(&self, properties: &Properties<'a>, scratch: &'a mut PropertiesBuf) -> Properties<'a> {
        let response = properties.response_topic().filter(|_| !self.mountpoint.is_empty());
        if response.is_none() && self.stamps.is_empty() {
            return *properties;
        }
        scratch.clear();
        let is_stamp = |name: &str| self.stamps.iter().any(|(stamp, _)| **stamp == *name);
        scratch.extend(properties, |property| {
            response.is_some() && property.is(PropertyId::ResponseTopic)
                || property.user().is_some_and(|(name, _)| is_stamp(name))
        });
        if let Some(topic) = response {
            scratch.push_response_topic(&self.mountpoint, topic);
        }
        for (name, value) in &self.stamps {
            scratch.push_user(name, value);
        }
        scratch.as_properties()
    }

    /// Checks the number of levels of a topic name, or of a filter without its share name, and its length with the mountpoint.
    ///
    /// # Errors
    /// The limit that it exceeds.
    pub(crate) fn check_topic(&self, topic: &str) -> Result<(), Limit> {
        if self.mountpoint.len() + topic.len() > MAX_TOPIC_LEN {
            return Err(Limit::TopicLength);
        }
        match self.limits.max_topic_levels {
            Some(max) if topic_levels(topic) > max as usize => Err(Limit::TopicLevels),
            _ => Ok(()),
        }
    }

    /// Checks the topics of a PUBLISH or a will.
    ///
    /// # Errors
    /// The limit that one of them exceeds, and that one.
    pub(crate) fn check_topics<'t>(&self, topic: &'t str, response: Option<&'t str>) -> Result<(), (Limit, &'t str)> {
        self.check_topic(topic).map_err(|limit| (limit, topic))?;
        let Some(response) = response else { return Ok(()) };
        self.check_topic(response).map_err(|limit| (limit, response))
    }

    /// Counts and logs that a client exceeds a limit. `topic`: what is denied; empty if the client is delayed.
    pub(crate) fn count_exceeded(&self, limit: Limit, topic: &str, client: &SessionInfo) {
        self.exceeded.iter().for_each(|exceeded| exceeded.count(limit, topic, client));
    }

    /// What happened, if a PUBLISH that is denied ends the session. A policy that is not enforced ends none, also not for a
    /// limit.
    pub(crate) fn if_denial_ends(&self, detail: impl FnOnce() -> String) -> Option<String> {
        let enforced = self.topics.as_ref().filter(|topics| !topics.is_shadow());
        enforced.filter(|topics| topics.on_deny() == OnDeny::Disconnect).map(|_| detail())
    }

    fn check_will(&self, will: &Will<'_>, info: &SessionInfo) -> Result<(), WillRejection> {
        let response_topic = will.properties.response_topic();
        if let Err((limit, topic)) = self.check_topics(will.topic, response_topic) {
            self.count_exceeded(limit, topic, info);
            note_detail(&format!("will to `{}`: {}", clip(topic), Denial::TopicName.label()));
            return Err(WillRejection(Denial::TopicName));
        }
        let Some(topics) = &self.topics else { return Ok(()) };
        let payload_len = will.payload.len();
        let message = Message { topic: will.topic, qos: will.qos, retain: will.retain, payload_len, response_topic };
        let (mut decision, schema) = topics.publish(&message);
        if schema.is_some_and(|schema| !schema.accepts(will.payload)) {
            decision.result = Err(Denial::Schema);
        }
        let subject = decision.result.map_or_else(|denial| message.subject(denial), |()| will.topic);
        topics.count(Action::Publish, decision, subject, info);
        match decision.result {
            Err(denial) if !topics.is_shadow() => {
                note_detail(&format!("will to {}", topics.explain(decision, subject)));
                Err(WillRejection(denial))
            }
            _ => Ok(()),
        }
    }
}

impl WillRejection {
    /// What the client is told in CONNACK.
    pub(crate) const fn refusal(self) -> Refusal {
        match self.0 {
            Denial::Topic | Denial::ResponseTopic => Refusal::NotAuthorized,
            Denial::Qos => Refusal::QosNotSupported,
            Denial::Retain => Refusal::RetainNotSupported,
            Denial::PayloadSize | Denial::PacketSize => Refusal::PacketTooLarge,
            Denial::Work => Refusal::QuotaExceeded,
            Denial::Schema => Refusal::PayloadFormatInvalid,
            Denial::TopicName => Refusal::TopicNameInvalid,
        }
    }
}
