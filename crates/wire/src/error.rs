//! The decoding errors, each with the clause of the specification that it breaks.

use std::fmt;

use crate::Disconnect;

/// Why bytes cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The bytes break this rule of the protocol.
    Malformed(Rule),
    /// A protocol name or level that is not MQTT 3.1, 3.1.1 or 5 [MQTT-3.1.2-2].
    Unsupported,
    /// The packet is larger than the caller's limit, or than the protocol can express.
    TooLarge,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Malformed(rule) => write!(f, "{} [{}]", rule.text(), rule.clause()),
            Error::Unsupported => f.write_str("protocol name or level is not MQTT 3.1, 3.1.1 or 5 [MQTT-3.1.2-2]"),
            Error::TooLarge => f.write_str("packet is larger than allowed"),
        }
    }
}

impl std::error::Error for Error {}

macro_rules! rules {
    ($($name:ident = $clause:literal, $code:ident, $text:literal;)*) => {
        /// A rule of the protocol that bytes can break.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule { $(#[doc = $text] $name,)* }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)*];

            /// The clause of MQTT 5.0 where there is one, otherwise of MQTT 3.1.1 or 3.1, in parentheses.
            pub const fn clause(self) -> &'static str { match self { $(Rule::$name => $clause,)* } }

            /// The reason of a DISCONNECT because of it [MQTT-4.13.1].
            pub const fn disconnect(self) -> Disconnect { match self { $(Rule::$name => Disconnect::$code,)* } }

            /// A description of how the rule was broken.
            pub const fn text(self) -> &'static str { match self { $(Rule::$name => $text,)* } }
        }
    };
}

rules! {
    FirstPacketNotConnect = "MQTT-3.1.0-1", ProtocolError, "the first packet is not CONNECT";
    SecondConnect = "MQTT-3.1.0-2", ProtocolError, "a second CONNECT";
    WrongSender = "MQTT-2.1.2", ProtocolError, "a packet that only the other side may send";
    FixedHeaderFlags = "MQTT-2.1.3-1", Malformed, "reserved bits of the fixed header are not as prescribed";
    RemainingLength = "MQTT-1.5.5-1", Malformed, "a variable byte integer has more than four bytes, or more than it needs";
    PacketLength = "MQTT-2.1.4", Malformed, "a field goes past the end of the packet";
    TrailingBytes = "MQTT-2.1.4", Malformed, "bytes are left over behind the last field";
    PacketTypeReserved = "MQTT-2.1.2", Malformed, "a packet type that is reserved in this MQTT version";
    ReservedConnectFlag = "MQTT-3.1.2-3", Malformed, "the reserved connect flag is set";
    WillFlagsWithoutWill = "MQTT-3.1.2-11", Malformed, "will QoS or will retain is set without a will";
    WillQos = "MQTT-3.1.2-12", Malformed, "will QoS is 3";
    PasswordWithoutUsername = "MQTT-3.1.2-22 (3.1.1)", Malformed, "a password without a username, which only MQTT 5 allows";
    ClientIdRequired = "MQTT-3.1.3-8 (3.1.1)", Malformed, "an empty client identifier where this MQTT version wants one";
    Utf8 = "MQTT-1.5.4-1", Malformed, "a string is not well-formed UTF-8";
    NullCharacter = "MQTT-1.5.4-2", Malformed, "a string contains U+0000";
    TopicName = "MQTT-3.3.2-2", TopicNameInvalid, "a topic name is empty or has wildcards";
    TopicFilter = "MQTT-4.7.1", TopicFilterInvalid, "a topic filter is empty, or a wildcard in it does not stand alone in its level, or `#` not in the last one";
    SharedSubscription = "MQTT-4.8.2-1", TopicFilterInvalid, "a shared subscription has no share name, a share name with wildcards, or no filter";
    SharedNoLocal = "MQTT-3.8.3-4", ProtocolError, "a shared subscription has the option No Local";
    NoFilters = "MQTT-3.8.3-2", ProtocolError, "SUBSCRIBE without a topic filter";
    NothingToUnsubscribe = "MQTT-3.10.3-2", ProtocolError, "UNSUBSCRIBE without a topic filter";
    SubscriptionOptions = "MQTT-3.8.3-5", Malformed, "reserved bits of the subscription options are set";
    SubscriptionQos = "MQTT-3.8.3.1", ProtocolError, "a subscription has QoS 3 or retain handling 3";
    PublishQos = "MQTT-3.3.1-4", Malformed, "QoS is 3";
    DupAtQos0 = "MQTT-3.3.1-2", Malformed, "DUP is set at QoS 0";
    PacketIdZero = "MQTT-2.2.1-3", ProtocolError, "the packet identifier is 0";
    TopicAlias = "MQTT-3.3.2-8", TopicAliasInvalid, "the topic alias is 0, or above the maximum of the receiver";
    TopicAliasUnknown = "MQTT-3.3.2.3.4", ProtocolError, "neither a topic name nor a topic alias that stands for one";
    SubscriptionIdFromClient = "MQTT-3.3.4-6", ProtocolError, "PUBLISH of a client has a subscription identifier";
    PropertyUnknown = "MQTT-2.2.2.2", Malformed, "a property that this packet does not have";
    PropertyTwice = "MQTT-2.2.2.2", ProtocolError, "a property is given twice";
    PropertyValue = "MQTT-2.2.2.2", ProtocolError, "a property has a value it may not have";
    AuthDataWithoutMethod = "MQTT-3.1.2.11.10", ProtocolError, "authentication data without an authentication method";
    AuthMethodMissing = "MQTT-3.15.2.2.2", ProtocolError, "AUTH has no authentication method";
    AuthWithoutMethod = "MQTT-4.12.0-7", ProtocolError, "AUTH, although CONNECT has no authentication method";
    SessionExpiry = "MQTT-3.14.2.2.2", ProtocolError, "DISCONNECT sets a session expiry interval that it may not set";
    AcknowledgeFlags = "MQTT-3.2.2-1", Malformed, "reserved bits of the connect acknowledge flags are set";
    ReasonCode = "MQTT-2.4", ProtocolError, "a reason code that this packet does not have";
}

impl Rule {
    /// Whether MQTT 5 calls the violation a protocol error (reason code 0x82) rather than a malformed packet (0x81).
    pub const fn is_protocol_error(self) -> bool {
        matches!(self.disconnect(), Disconnect::ProtocolError)
    }
}

impl From<Rule> for Error {
    fn from(rule: Rule) -> Self {
        Error::Malformed(rule)
    }
}
