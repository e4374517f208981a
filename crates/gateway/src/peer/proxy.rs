//! What a load balancer in front of the gateway says of a client, in a header of the PROXY protocol.

/// The header of a connection.
#[derive(Clone, Debug)]
pub struct ProxyHeader {
    /// What it says of the client's certificate; `None`: nothing, or the listener does not use it.
    pub ssl: Option<ProxySsl>,
    /// The host name that the client requested.
    pub authority: Option<Box<str>>,
    /// The balancer's name of the connection: text, or else hexadecimal.
    pub unique_id: Option<Box<str>>,
}

/// The client's certificate, as the balancer that terminates TLS has verified it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySsl {
    /// Whether the client presented a certificate that the balancer verified.
    pub verified: bool,
    /// The common name of the certificate, if it was verified.
    pub cn: Option<Box<str>>,
}
