//! The decoding errors, each with the clause of the specification that it breaks.

use std::fmt;

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
    ($($(#[$doc:meta])* $name:ident = $clause:literal, $text:literal;)*) => {
        /// A rule of the protocol that bytes can break.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Rule { $(#[doc = $text] $(#[$doc])* $name,)* }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Rule] = &[$(Rule::$name,)*];

            /// The clause of MQTT 5.0 where there is one, otherwise of MQTT 3.1.1 or 3.1, in parentheses.
            pub const fn clause(self) -> &'static str { match self { $(Rule::$name => $clause,)* } }

            /// A description of how the rule was broken.
            pub const fn text(self) -> &'static str { match self { $(Rule::$name => $text,)* } }
        }
    };
}

rules! {
    FirstPacketNotConnect = "MQTT-3.1.0-1", "the first packet is not CONNECT";
    FixedHeaderFlags = "MQTT-2.1.3-1", "reserved bits of the fixed header are not as prescribed";
    RemainingLength = "MQTT-1.5.5-1", "a variable byte integer has more than four bytes, or more than it needs";
    PacketLength = "MQTT-2.1.4", "a field goes past the end of the packet";
    TrailingBytes = "MQTT-3.1.3-1", "bytes are left over behind the last field";
    ReservedConnectFlag = "MQTT-3.1.2-3", "the reserved connect flag is set";
    WillFlagsWithoutWill = "MQTT-3.1.2-11", "will QoS or will retain is set without a will";
    WillQos = "MQTT-3.1.2-12", "will QoS is 3";
    PasswordWithoutUsername = "MQTT-3.1.2-22 (3.1.1)", "a password without a username, which only MQTT 5 allows";
    ClientIdRequired = "MQTT-3.1.3-8 (3.1.1)", "an empty client identifier where this MQTT version wants one";
    Utf8 = "MQTT-1.5.4-1", "a string is not well-formed UTF-8";
    NullCharacter = "MQTT-1.5.4-2", "a string contains U+0000";
    TopicName = "MQTT-4.7.1-1", "a topic name is empty or has wildcards";
    PropertyUnknown = "MQTT-2.2.2.2", "a property that this packet does not have";
    PropertyTwice = "MQTT-3.1.2.11", "a property is given twice";
    PropertyValue = "MQTT-3.1.2.11", "a property has a value it may not have";
    AuthDataWithoutMethod = "MQTT-3.1.2.11.10", "authentication data without an authentication method";
    PacketTypeReserved = "MQTT-2.1.2", "packet type 0 is reserved";
    AcknowledgeFlags = "MQTT-3.2.2-1", "reserved bits of the connect acknowledge flags are set";
    ReasonCode = "MQTT-3.2.2-8", "a reason code that this packet does not have";
}

impl Rule {
    /// Whether MQTT 5 calls the violation a protocol error (reason code 0x82) rather than a malformed packet (0x81).
    pub const fn is_protocol_error(self) -> bool {
        matches!(
            self,
            Rule::FirstPacketNotConnect | Rule::PropertyTwice | Rule::PropertyValue | Rule::AuthDataWithoutMethod
        )
    }
}

impl From<Rule> for Error {
    fn from(rule: Rule) -> Self {
        Error::Malformed(rule)
    }
}
