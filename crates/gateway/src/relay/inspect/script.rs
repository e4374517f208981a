//! A codec without sockets, for tests and fuzzing: bytes in, bytes out.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use portcullis_wire::{Connect, FixedHeader, Limits, Packet, PacketType, Sender, Version, head_len};

use super::super::codec::{Codec, Direction, Ending, Injected};
use super::Inspect;
use crate::config::tables::Protocol;
use crate::observe::{Metrics, SessionInfo};
use crate::peer::{AuthAttributes, Facts, Peer};
use crate::policy::{ConnectScratch, PacketPolicy, PacketRules, TopicPolicy};

/// A session: its codec, and what both sides have received.
pub(crate) struct Script {
    pub(crate) codec: Box<Inspect>,
    pub(crate) at_broker: Vec<u8>,
    pub(crate) at_client: Vec<u8>,
    pub(crate) ending: Option<Ending>,
    #[cfg_attr(not(test), expect(dead_code, reason = "for reloads"))]
    connect: Vec<u8>,
    /// Bytes of the client and of the broker that are not read yet.
    unread: [Vec<u8>; 2],
}

impl Script {
    /// A client that sends `connect` to the first listener of a configuration.
    #[cfg(test)]
    pub(crate) fn new(configuration: &str, connect: &[u8]) -> Self {
        Self::with(rules(configuration, connect), connect)
    }

    /// A client with these rules.
    fn with(rules: Arc<PacketRules>, connect: &[u8]) -> Self {
        let (received, _) = Connect::decode(connect, Limits::default()).ok().flatten().expect("a CONNECT");
        let mut scratch = ConnectScratch::default();
        let info = SessionInfo::new(7, "l".into(), Protocol::Tcp, ([192, 0, 2, 1], 5).into());
        let sent = rules.apply(&received, &mut scratch, &info).expect("a will that is allowed");
        let mut at_broker = Vec::new();
        sent.encode(&mut at_broker).expect("a CONNECT that can be sent");
        let codec = Box::new(Inspect::new(rules, &received, &sent, info));
        Self {
            codec,
            at_broker,
            at_client: Vec::new(),
            ending: None,
            connect: connect.to_vec(),
            unread: Default::default(),
        }
    }

    /// The configuration is replaced.
    #[cfg(test)]
    pub(crate) fn reload(&mut self, configuration: &str) {
        self.set_rules(rules(configuration, &self.connect));
    }

    fn set_rules(&mut self, rules: Arc<PacketRules>) {
        if self.ending.is_none() {
            self.ending = self.codec.set_rules(rules).err();
        }
    }

    /// The client sends bytes.
    #[cfg(test)]
    pub(crate) fn client(&mut self, bytes: &[u8]) -> &mut Self {
        self.send(Direction::ToBroker, bytes);
        self
    }

    /// The broker sends bytes.
    #[cfg(test)]
    pub(crate) fn broker(&mut self, bytes: &[u8]) -> &mut Self {
        self.send(Direction::ToClient, bytes);
        self
    }

    /// Bytes arrive in this direction, and are read as the pump does it.
    pub(crate) fn send(&mut self, direction: Direction, chunk: &[u8]) {
        self.unread[direction as usize].extend_from_slice(chunk);
        let mut has_moved = true;
        while std::mem::take(&mut has_moved) && self.ending.is_none() {
            for direction in [direction, direction.reverse()] {
                if self.codec.has_work(direction) {
                    self.take(direction, b"");
                    has_moved = true;
                } else if self.codec.may_read(direction) && !self.unread[direction as usize].is_empty() {
                    let chunk = std::mem::take(&mut self.unread[direction as usize]);
                    self.take(direction, &chunk);
                    has_moved = true;
                }
            }
        }
    }

    fn take(&mut self, direction: Direction, chunk: &[u8]) {
        if self.ending.is_some() {
            return;
        }
        let mut injected = Injected::default();
        let taken = self.codec.take(direction, chunk, &mut injected).map(<[u8]>::to_vec);
        let (to, from) = match direction {
            Direction::ToBroker => (&mut self.at_broker, &mut self.at_client),
            Direction::ToClient => (&mut self.at_client, &mut self.at_broker),
        };
        match taken {
            Ok(passed) => to.extend(passed),
            Err(ending) => self.ending = Some(ending),
        }
        to.extend(injected.forward);
        from.extend(injected.reply);
    }

    /// What the broker has received since the last call.
    pub(crate) fn broker_got(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.at_broker)
    }

    /// What the client has received since the last call.
    #[cfg(test)]
    pub(crate) fn client_got(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.at_client)
    }
}

/// The rules for a client of the first listener.
fn rules(configuration: &str, connect: &[u8]) -> Arc<PacketRules> {
    const FIRST: &str = "[[upstream]]\nname = \"u\"\nservers = [\"127.0.0.1:1\"]\n[[listener]]\nname = \"l\"\n\
                         bind = \"127.0.0.1:0\"\nupstream = \"u\"\nprotocol = \"tcp\"\n";
    let (mut settings, mut diagnostics) =
        crate::config::parse(Path::new("test.toml"), &format!("{FIRST}{configuration}"));
    let listener = settings.listeners.remove(0);
    let policy = settings.topic_policies.into_iter().find(|policy| listener.topics.as_ref() == Some(&policy.name));
    let topics = policy.map(|policy| {
        let policy = Arc::new(TopicPolicy::open(policy, &mut diagnostics).expect("a policy"));
        let decisions = Metrics::default().topic_decisions("l", policy.name(), policy.rules());
        (policy, Arc::new(decisions))
    });
    assert!(!diagnostics.has_errors(), "{}", diagnostics.render(false));
    let stamps = listener.stamps.into_iter().map(|(name, expression)| (name, expression.value)).collect();
    let exceeded = Metrics::default().exceeded_limits("l");
    let policy =
        PacketPolicy::new(topics, listener.mountpoint.map(|it| it.value), stamps, listener.limits.packets, exceeded);
    let (connect, _) = Connect::decode(connect, Limits::default()).ok().flatten().expect("a CONNECT");
    let peer = Peer::plain(([192, 0, 2, 1], 5).into());
    let facts = Facts { peer: &peer, listener: "l", mqtt: &connect, attributes: AuthAttributes::default(), now: 7 };
    policy.for_client(&facts).expect("rules").unwrap_or_default()
}

/// Two sessions that get the same bytes, one of them byte by byte, end alike; nothing that is denied reaches the broker or the
/// client. The input selects configuration and version, then has chunks: the direction and length in one byte, then the
/// bytes. A chunk without bytes reloads: to the client, with narrower rules, to the broker, with those of before.
pub(crate) fn check_session(input: &[u8]) {
    // Compiling a configuration takes longer than the rest.
    static RULES: OnceLock<Vec<[[Arc<PacketRules>; 2]; 2]>> = OnceLock::new();
    let Some((&selector, mut rest)) = input.split_first() else { return };
    let of_case = |case: &Case| {
        [CONNECT_V3, CONNECT_V5].map(|connect| [case.configuration, case.narrower].map(|it| rules(it, connect)))
    };
    let rules = RULES.get_or_init(|| CASES.iter().map(of_case).collect());
    let (index, version) = (usize::from(selector >> 1) % CASES.len(), usize::from(selector & 1));
    let (case, connect) = (&CASES[index], [CONNECT_V3, CONNECT_V5][version]);
    let [wide, narrow] = &rules[index][version];
    let client = || Script::with(Arc::clone(wide), connect);
    let (mut whole, mut split) = (client(), client());
    drop((whole.broker_got(), split.broker_got()));
    while let Some((&first, behind)) = rest.split_first() {
        let direction = if first & 0x80 == 0 { Direction::ToBroker } else { Direction::ToClient };
        let len = usize::from(first & 0x7f);
        let (chunk, behind) = behind.split_at(behind.len().min(len));
        if len == 0 {
            let rules = if direction == Direction::ToClient { narrow } else { wide };
            whole.set_rules(Arc::clone(rules));
            split.set_rules(Arc::clone(rules));
        }
        whole.send(direction, chunk);
        chunk.iter().for_each(|byte| split.send(direction, &[*byte]));
        rest = behind;
    }
    assert_eq!(whole.at_broker, split.at_broker, "at the broker");
    assert_eq!(whole.at_client, split.at_client, "at the client");
    let kind = |script: &Script| script.ending.as_ref().map(|ending| (ending.reason, ending.disconnect));
    assert_eq!(kind(&whole), kind(&split));
    let version = if selector & 1 == 0 { Version::V311 } else { Version::V5 };
    for seen in seen(&whole.at_broker, version, Sender::Client) {
        let is_allowed = match &seen {
            Seen::Message(topic, payload) => (case.may_publish)(topic, payload),
            Seen::Filter(filter) => (case.may_subscribe)(filter),
        };
        assert!(is_allowed, "{seen:?} reached the broker");
    }
    for seen in seen(&whole.at_client, version, Sender::Server) {
        let Seen::Message(topic, _) = &seen else { unreachable!("brokers send no SUBSCRIBE") };
        assert!((case.may_receive)(topic), "{seen:?} reached the client");
    }
}

/// A configuration, another one that allows less, and what may pass with both.
struct Case {
    configuration: &'static str,
    narrower: &'static str,
    may_publish: fn(&str, &[u8]) -> bool,
    may_subscribe: fn(&str) -> bool,
    may_receive: fn(&str) -> bool,
}

const CONNECT_V5: &[u8] = b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x05dev-1";
const CONNECT_V3: &[u8] = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05dev-1";

const CASES: &[Case] = &[
    Case {
        configuration: "topics = \"p\"\n[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\npublish = [\"a/#\"]\n\
                        subscribe = [\"a/+\"]\n",
        narrower: "topics = \"p\"\n[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\npublish = [\"a/b/#\"]\n\
                   subscribe = [\"a/b\"]\n",
        may_publish: |topic, _| topic == "a" || topic.starts_with("a/"),
        may_subscribe: |filter| filter.starts_with("a/") && filter.matches('/').count() == 1 && filter != "a/#",
        may_receive: |topic| topic.starts_with("a/") && topic.matches('/').count() == 1,
    },
    Case {
        configuration: "topics = \"p\"\nmountpoint = 'm/'\n[listener.publish]\nuser_properties = { by = '\"g\"' }\n\
                        [[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\neffect = \"deny\"\npublish = [\"b\"]\n\
                        subscribe = [\"b\"]\n[[topic_policy.rule]]\npublish = [\"#\"]\nsubscribe = [\"#\"]\n\
                        max_qos = 1\n",
        narrower: "topics = \"p\"\nmountpoint = 'm/'\n[[topic_policy]]\nname = \"p\"\non_deny = \"disconnect\"\n",
        may_publish: |topic, _| topic.starts_with("m/") && !topic.starts_with("m/$") && topic != "m/b",
        may_subscribe: |filter| {
            filter.starts_with("m/")
                && !matches!(filter, "m/b" | "m/#" | "m/+" | "m/b/#" | "m/+/#")
                && !filter.starts_with("m/$")
        },
        may_receive: |topic| topic != "b" && !topic.starts_with('$'),
    },
    Case {
        configuration: "[listener.limits]\nmax_topic_levels = 2\nmax_subscriptions = 2\nmax_packet_size = \"100\"\n",
        narrower: "[listener.limits]\nmax_topic_levels = 1\n",
        may_publish: |topic, _| topic.matches('/').count() <= 1,
        may_subscribe: |filter| filter.matches('/').count() <= 1,
        may_receive: |_| true,
    },
    // A payload that a schema has to see; a policy that ends the session; one that denies nothing.
    Case {
        configuration: concat!(
            "topics = \"p\"\n[[topic_policy]]\nname = \"p\"\non_deny = \"disconnect\"\n[[topic_policy.rule]]\n",
            "publish = [\"#\"]\nmax_payload = \"16\"\nschema = \"",
            env!("CARGO_MANIFEST_DIR"),
            "/tests/number.schema.json\"\n"
        ),
        narrower: "topics = \"p\"\n[[topic_policy]]\nname = \"p\"\n",
        may_publish: |topic, payload| {
            !topic.starts_with('$')
                && serde_json::from_slice::<serde_json::Value>(payload).is_ok_and(|it| it.is_number())
        },
        may_subscribe: |_| false,
        may_receive: |_| false,
    },
    Case {
        configuration: "topics = \"p\"\n[[topic_policy]]\nname = \"p\"\nmode = \"shadow\"\n",
        narrower: "topics = \"p\"\n[[topic_policy]]\nname = \"p\"\n[[topic_policy.rule]]\npublish = [\"a\"]\n",
        may_publish: |_, _| true,
        may_subscribe: |_| true,
        may_receive: |_| true,
    },
];

#[derive(Debug)]
enum Seen {
    /// Topic and payload, as far as it has come.
    Message(String, Vec<u8>),
    Filter(String),
}

/// The messages and filters in what one side has received, which is all valid. The last packet may be incomplete.
fn seen(mut stream: &[u8], version: Version, sender: Sender) -> Vec<Seen> {
    let mut found = Vec::new();
    let mut aliases = std::collections::BTreeMap::new();
    while let Ok(Some(header)) = FixedHeader::decode(stream) {
        let (packet, behind) = stream.split_at(stream.len().min(header.packet_len()));
        stream = behind;
        if header.packet_type == PacketType::Connack {
            continue;
        }
        Packet::check_header(header, version, sender).expect("a header that this side may send");
        let Some(head) = head_len(packet, header, version).expect("a head").and_then(|len| packet.get(..len)) else {
            break;
        };
        match Packet::decode(head, header, version, sender).expect("a valid packet") {
            Packet::Publish(publish) => {
                let alias = publish.properties.topic_alias();
                let topic = match alias {
                    Some(alias) if publish.topic.is_empty() => aliases[&alias],
                    Some(alias) => *aliases.entry(alias).insert_entry(publish.topic).get(),
                    None => publish.topic,
                };
                found.push(Seen::Message(topic.to_owned(), packet[head.len()..].to_vec()));
            }
            Packet::Subscribe(subscribe) => found.extend(subscribe.subscriptions().map(|wanted| {
                let filter = wanted.filter.shared().map_or(wanted.filter, |(_, filter)| filter);
                Seen::Filter(filter.as_str().to_owned())
            })),
            _ => {}
        }
    }
    found
}
