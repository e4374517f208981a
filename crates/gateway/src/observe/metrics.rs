//! Metrics for Prometheus. Enters: counts from sessions and gauges from maintenance. Leaves: OpenMetrics text. Labels are
//! bounded (listener, upstream, server, reason) and never contain a client's data. Handles are fetched once per listener
//! and server, so that counting takes no lock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use super::decisions::{ByDecision, Decisions};
use super::exceeded::{ByLimit, ExceededLimits};
use super::rate_limit::RateLimit;
use crate::outcome::{Outcome, Reject};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByListener {
    listener: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    listener: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    listener: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByServer {
    upstream: String,
    server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByServerResult {
    upstream: String,
    server: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLocalAddress {
    upstream: String,
    server: String,
    source_address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCertificate {
    /// The listener or upstream it belongs to.
    owner: String,
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByCrl {
    /// Its file or URL.
    crl: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByIssuer {
    issuer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDays {
    days: u32,
}

/// When a certificate expires.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Expiry {
    /// The listener or upstream it belongs to.
    pub owner: String,
    /// `server`, `client_ca`, `upstream` or `upstream_ca`.
    pub role: &'static str,
    /// The certificate's subject.
    pub subject: String,
    /// Seconds since 1970.
    pub not_after: i64,
}

#[derive(Debug, Default)]
struct CrlFamilies {
    this_update: Family<ByCrl, Gauge>,
    next_update: Family<ByCrl, Gauge>,
    entries: Family<ByCrl, Gauge>,
}

#[derive(Debug, Default)]
struct InventoryFamilies {
    by_issuer: Family<ByIssuer, Gauge>,
    expiring: Family<ByDays, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAuthenticator {
    authenticator: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAuthenticatorResult {
    authenticator: String,
    result: &'static str,
}

/// The metrics of one authentication service.
#[derive(Debug)]
pub(crate) struct ServiceMetrics {
    /// 0 while the circuit breaker is open.
    pub(crate) up: Gauge,
    /// Requests that were decided.
    pub(crate) answered: Counter,
    requests: Family<ByAuthenticatorResult, Counter>,
    authenticator: String,
    /// Limits how often failures are logged.
    pub(crate) warnings: RateLimit,
}

impl ServiceMetrics {
    /// Counts a request without a decision.
    pub(crate) fn failed(&self, result: &'static str) {
        let by = ByAuthenticatorResult { authenticator: self.authenticator.clone(), result };
        self.requests.get_or_create(&by).inc();
    }
}

#[derive(Debug, Default)]
struct ServiceFamilies {
    up: Family<ByAuthenticator, Gauge>,
    requests: Family<ByAuthenticatorResult, Counter>,
}

#[derive(Debug, Default)]
struct RegistryFamilies {
    devices: Family<ByAuthenticator, Gauge>,
    up: Family<ByAuthenticator, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    connections: Family<ByReason, Counter>,
    active: Family<ByListener, Gauge>,
    received: Family<ByListener, Counter>,
    sent: Family<ByListener, Counter>,
    handshakes: Family<ByKind, Counter>,
    handshake_failures: Family<ByReason, Counter>,
    handshake_seconds: Family<ByListener, Histogram, fn() -> Histogram>,
    servers: ServerFamilies,
    certificate_expiry: Family<ByCertificate, Gauge>,
    crls: CrlFamilies,
    inventory: InventoryFamilies,
    registries: RegistryFamilies,
    services: ServiceFamilies,
    topic_decisions: Family<ByDecision, Counter>,
    exceeded_limits: Family<ByLimit, Counter>,
    reloads: Family<ByResult, Counter>,
    access_lines_dropped: Gauge,
    log_lines_dropped: Gauge,
}

fn handshake_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 15))
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("portcullis");
        let r = &mut registry;
        let handshake_seconds: Family<_, _, fn() -> _> = Family::new_with_constructor(handshake_histogram);
        let about = "From accept to the end of the TLS handshake";
        r.register("tls_handshake_duration_seconds", about, handshake_seconds.clone());
        let metrics = Self {
            connections: add(r, "connections", "Connections ended, by reason"),
            active: add(r, "connections_active", "Connections open"),
            received: add(r, "received_bytes", "Application bytes from clients"),
            sent: add(r, "sent_bytes", "Application bytes to clients"),
            handshakes: add(r, "tls_handshakes", "TLS handshakes completed, full or resumed"),
            handshake_failures: add(r, "tls_handshake_failures", "TLS handshakes failed, by reason"),
            handshake_seconds,
            servers: ServerFamilies {
                active: add(r, "upstream_connections_active", "Sessions on a server"),
                up: add(r, "upstream_up", "1 if a server may be given sessions, else 0"),
                connects: add(r, "upstream_connects", "Connects to a server, by result"),
                local_ports: add(r, "upstream_local_ports_used", "Sessions on a server, by local address"),
            },
            certificate_expiry: add(
                r,
                "certificate_expiry_timestamp_seconds",
                "When the first certificate of an owner and role expires",
            ),
            crls: CrlFamilies {
                this_update: add(r, "crl_this_update_timestamp_seconds", "When a CRL was issued"),
                next_update: add(r, "crl_next_update_timestamp_seconds", "When a CRL expires"),
                entries: add(r, "crl_entries", "Certificates that a CRL revokes"),
            },
            inventory: InventoryFamilies {
                by_issuer: add(r, "device_certificates", "Connected devices with a certificate, by its issuer"),
                expiring: add(
                    r,
                    "device_certificates_expiring",
                    "Connected devices whose certificate expires within a number of days",
                ),
            },
            registries: RegistryFamilies {
                devices: add(r, "registry_devices", "Devices loaded from the registry"),
                up: add(
                    r,
                    "registry_up",
                    "Whether the registry's database is reachable and all its devices are loaded",
                ),
            },
            services: ServiceFamilies {
                up: add(r, "authentication_service_up", "0 while the circuit breaker of a service is open, else 1"),
                requests: add(r, "authentication_service_requests", "Requests to a service, by result"),
            },
            topic_decisions: add(r, "topic_decisions", "Decisions of topic policies, by rule, action and verdict"),
            exceeded_limits: add(r, "limits_exceeded", "Messages and filters denied, and delays, by limit"),
            reloads: add(r, "reloads", "Reloads of the configuration, by result"),
            access_lines_dropped: add(
                r,
                "access_log_dropped_lines",
                "Access lines lost since the log was opened, because the disk was too slow or full",
            ),
            log_lines_dropped: add(r, "log_dropped_lines", "Lines of the gateway's own log dropped"),
            registry: Registry::default(),
        };
        // From the start: an alert on the increase of a counter does not see the step from no value to 1.
        for result in ["ok", "failed"] {
            drop(metrics.reloads.get_or_create(&ByResult { result }));
        }
        let start: Gauge = add(r, "start_timestamp_seconds", "When the process started");
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs().cast_signed()));
        let version: Family<Vec<(&str, &str)>, Gauge> = add(r, "build_info", "1, labelled with the version");
        version.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))]).set(1);
        Self { registry, ..metrics }
    }
}

/// Registers a new metric.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, about: &str) -> M {
    let metric = M::default();
    registry.register(name, about, metric.clone());
    metric
}

impl Metrics {
    /// All metrics as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// The handles of a listener.
    pub fn listener(&self, name: &str) -> Arc<ListenerMetrics> {
        let by = ByListener { listener: name.to_owned() };
        let kind = |kind| self.handshakes.get_or_create_owned(&ByKind { listener: name.to_owned(), kind });
        Arc::new(ListenerMetrics {
            name: name.into(),
            active: self.active.get_or_create_owned(&by),
            received: self.received.get_or_create_owned(&by),
            sent: self.sent.get_or_create_owned(&by),
            handshakes_full: kind("full"),
            handshakes_resumed: kind("resumed"),
            handshake_seconds: self.handshake_seconds.get_or_create_owned(&by),
            upstream_warnings: RateLimit::default(),
            rejections: RateLimit::default(),
            connections: self.connections.clone(),
            handshake_failures: self.handshake_failures.clone(),
        })
    }

    /// The counters of a topic policy with this number of rules, at a listener.
    pub fn topic_decisions(&self, listener: &str, policy: &str, rules: usize) -> Decisions {
        Decisions::new(self.topic_decisions.clone(), listener, policy, rules)
    }

    /// The counters of the limits of a listener.
    pub fn exceeded_limits(&self, listener: &str) -> ExceededLimits {
        ExceededLimits::new(self.exceeded_limits.clone(), listener)
    }

    /// The handles of an authentication service.
    pub(crate) fn service(&self, authenticator: &str) -> ServiceMetrics {
        let authenticator = authenticator.to_owned();
        let up = self.services.up.get_or_create_owned(&ByAuthenticator { authenticator: authenticator.clone() });
        let by = ByAuthenticatorResult { authenticator: authenticator.clone(), result: "answered" };
        ServiceMetrics {
            up,
            answered: self.services.requests.get_or_create_owned(&by),
            requests: self.services.requests.clone(),
            authenticator,
            warnings: RateLimit::default(),
        }
    }

    /// The handles of a server. Its series are removed when they are dropped.
    pub fn server(&self, upstream: &str, server: &str) -> ServerMetrics {
        let by = ByServer { upstream: upstream.to_owned(), server: server.to_owned() };
        let connects = |result| self.servers.connects.get_or_create_owned(&by.with(result));
        ServerMetrics {
            active: self.servers.active.get_or_create_owned(&by),
            up: self.servers.up.get_or_create_owned(&by),
            connected: connects(CONNECTED),
            failed: connects(FAILED),
            unanswered: connects(UNANSWERED),
            families: self.servers.clone(),
            by,
            local: Mutex::default(),
        }
    }

    /// Replaces the expiry times.
    pub fn set_certificate_expiry(&self, expiries: &[Expiry]) {
        self.certificate_expiry.clear();
        for Expiry { owner, role, not_after, .. } in expiries {
            let same = expiries.iter().filter(|other| other.owner == *owner && other.role == *role);
            let first = same.map(|other| other.not_after).min().unwrap_or(*not_after);
            let by = ByCertificate { owner: owner.clone(), role };
            self.certificate_expiry.get_or_create_owned(&by).set(first);
        }
    }

    /// Replaces the CRL gauges: file or URL, thisUpdate and nextUpdate in seconds since 1970, and the number of revoked
    /// certificates.
    pub fn set_crls(&self, crls: impl IntoIterator<Item = (String, i64, i64, usize)>) {
        let families = [&self.crls.this_update, &self.crls.next_update, &self.crls.entries];
        families.iter().for_each(|family| family.clear());
        for (crl, this_update, next_update, entries) in crls {
            let by = ByCrl { crl };
            let values = [this_update, next_update, i64::try_from(entries).unwrap_or(i64::MAX)];
            for (family, value) in families.iter().zip(values) {
                family.get_or_create_owned(&by).set(value);
            }
        }
    }

    /// Replaces the registry gauges: the authenticator's name, the number of loaded devices, and whether these are certain to
    /// be all.
    pub fn set_registries<'a>(&self, registries: impl IntoIterator<Item = (&'a str, usize, bool)>) {
        self.registries.devices.clear();
        self.registries.up.clear();
        for (authenticator, devices, is_up) in registries {
            let by = ByAuthenticator { authenticator: authenticator.to_owned() };
            let devices = i64::try_from(devices).unwrap_or(i64::MAX);
            self.registries.devices.get_or_create_owned(&by).set(devices);
            self.registries.up.get_or_create_owned(&by).set(is_up.into());
        }
    }

    /// Replaces the counts of connected devices: by the issuer of their certificates, and by the number of days within which
    /// these expire.
    pub fn set_inventory(&self, by_issuer: &[(String, usize)], expiring: &[(u32, usize)]) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.inventory.by_issuer.clear();
        for (issuer, count) in by_issuer {
            let by = ByIssuer { issuer: issuer.clone() };
            self.inventory.by_issuer.get_or_create_owned(&by).set(gauge(*count));
        }
        for (days, count) in expiring {
            self.inventory.expiring.get_or_create_owned(&ByDays { days: *days }).set(gauge(*count));
        }
    }

    /// Sets the number of dropped access log lines.
    pub fn set_access_log_dropped(&self, lines: u64) {
        self.access_lines_dropped.set(lines.try_into().unwrap_or(i64::MAX));
    }

    /// Sets the number of dropped lines of the gateway's own log.
    pub fn set_log_dropped(&self, lines: u64) {
        self.log_lines_dropped.set(lines.try_into().unwrap_or(i64::MAX));
    }

    /// Counts a reload.
    pub fn count_reload(&self, succeeded: bool) {
        self.reloads.get_or_create(&ByResult { result: if succeeded { "ok" } else { "failed" } }).inc();
    }
}

/// The metrics of one listener.
#[derive(Debug)]
pub struct ListenerMetrics {
    pub(crate) name: Arc<str>,
    pub(crate) active: Gauge<i64, AtomicI64>,
    pub(crate) received: Counter<u64, AtomicU64>,
    pub(crate) sent: Counter<u64, AtomicU64>,
    handshakes_full: Counter,
    handshakes_resumed: Counter,
    handshake_seconds: Histogram,
    pub(super) upstream_warnings: RateLimit,
    pub(super) rejections: RateLimit,
    connections: Family<ByReason, Counter>,
    handshake_failures: Family<ByReason, Counter>,
}

impl ListenerMetrics {
    /// Counts a completed TLS handshake that began at `since`.
    pub fn count_handshake(&self, resumed: bool, since: Instant) {
        if resumed {
            self.handshakes_resumed.inc()
        } else {
            self.handshakes_full.inc()
        };
        self.handshake_seconds.observe(since.elapsed().as_secs_f64());
    }

    pub(super) fn count_handshake_failure(&self, reject: Reject) {
        let by = ByReason { listener: self.name.to_string(), reason: reject.label() };
        self.handshake_failures.get_or_create(&by).inc();
    }

    pub(super) fn count_end(&self, outcome: Outcome) {
        let by = ByReason { listener: self.name.to_string(), reason: outcome.label() };
        self.connections.get_or_create(&by).inc();
    }
}

/// The metrics of one server.
#[derive(Debug)]
pub struct ServerMetrics {
    pub(crate) active: Gauge,
    pub(crate) up: Gauge,
    pub(crate) connected: Counter,
    pub(crate) failed: Counter,
    /// Connected, but the broker did not answer CONNECT, or not with MQTT.
    pub(crate) unanswered: Counter,
    families: ServerFamilies,
    by: ByServer,
    /// The local addresses of the last call of `set_local_ports`.
    local: Mutex<BTreeSet<IpAddr>>,
}

impl Drop for ServerMetrics {
    /// Removes the series when the last session on the server ends, if the server was removed from the configuration or from
    /// DNS.
    fn drop(&mut self) {
        self.families.active.remove(&self.by);
        self.families.up.remove(&self.by);
        self.set_local_ports(&BTreeMap::new());
        for result in [CONNECTED, FAILED, UNANSWERED] {
            self.families.connects.remove(&self.by.with(result));
        }
    }
}

const CONNECTED: &str = "ok";
const FAILED: &str = "failed";
const UNANSWERED: &str = "unanswered";

#[derive(Clone, Debug, Default)]
struct ServerFamilies {
    active: Family<ByServer, Gauge>,
    up: Family<ByServer, Gauge>,
    connects: Family<ByServerResult, Counter>,
    local_ports: Family<ByLocalAddress, Gauge>,
}

impl ServerMetrics {
    /// Replaces the number of connections from each local address.
    pub(crate) fn set_local_ports(&self, counts: &BTreeMap<IpAddr, u32>) {
        let mut local = self.local.lock();
        local.retain(|address| {
            let stays = counts.contains_key(address);
            if !stays {
                self.families.local_ports.remove(&self.by.from(*address));
            }
            stays
        });
        for (address, count) in counts {
            local.insert(*address);
            self.families.local_ports.get_or_create_owned(&self.by.from(*address)).set((*count).into());
        }
    }
}

impl ByServer {
    fn from(&self, address: IpAddr) -> ByLocalAddress {
        let (upstream, server) = (self.upstream.clone(), self.server.clone());
        ByLocalAddress { upstream, server, source_address: address.to_string() }
    }

    fn with(&self, result: &'static str) -> ByServerResult {
        ByServerResult { upstream: self.upstream.clone(), server: self.server.clone(), result }
    }
}
