//! A codec without sockets, for tests and fuzzing: bytes in, bytes out.

use std::path::Path;
use std::sync::Arc;

use portcullis_wire::{Connect, Limits};

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
    connect: Vec<u8>,
}

impl Script {
    /// A client that sends `connect` to the first listener of a configuration.
    pub(crate) fn new(configuration: &str, connect: &[u8]) -> Self {
        let rules = rules(configuration, connect);
        let (received, _) = Connect::decode(connect, Limits::default()).ok().flatten().expect("a CONNECT");
        let mut scratch = ConnectScratch::default();
        let info = SessionInfo::new(7, "l".into(), Protocol::Tcp, ([192, 0, 2, 1], 5).into());
        let sent = rules.apply(&received, &mut scratch, &info).expect("a will that is allowed");
        let mut at_broker = Vec::new();
        sent.encode(&mut at_broker).expect("a CONNECT that can be sent");
        let codec = Box::new(Inspect::new(rules, &received, &sent, info));
        Self { codec, at_broker, at_client: Vec::new(), ending: None, connect: connect.to_vec() }
    }

    /// The configuration is replaced.
    pub(crate) fn reload(&mut self, configuration: &str) {
        let rules = rules(configuration, &self.connect);
        if let Err(ending) = self.codec.set_rules(rules) {
            self.ending.get_or_insert(ending);
        }
    }

    /// The client sends bytes.
    pub(crate) fn client(&mut self, bytes: &[u8]) -> &mut Self {
        self.send(Direction::ToBroker, bytes);
        self
    }

    /// The broker sends bytes.
    pub(crate) fn broker(&mut self, bytes: &[u8]) -> &mut Self {
        self.send(Direction::ToClient, bytes);
        self
    }

    /// Bytes are read in this direction, as the pump does it.
    pub(crate) fn send(&mut self, direction: Direction, chunk: &[u8]) {
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
    let policy = PacketPolicy::new(topics, listener.mountpoint, stamps, listener.limits);
    let (connect, _) = Connect::decode(connect, Limits::default()).ok().flatten().expect("a CONNECT");
    let peer = Peer::plain(([192, 0, 2, 1], 5).into());
    let facts = Facts { peer: &peer, listener: "l", mqtt: &connect, attributes: AuthAttributes::default(), now: 7 };
    policy.for_client(&facts).expect("rules").unwrap_or_default()
}
