//! The content of certificates: validity, names, usages and extensions. Signs nothing.

use std::net::IpAddr;

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CrlDistributionPoint, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::types::Settings;
use crate::{Error, Init, Purpose, Request};

/// Certificates are backdated so that a device whose clock is slightly slow accepts a new one.
const BACKDATED: Duration = Duration::hours(1);
/// Upper bound of a common name [RFC 5280, appendix A.1].
const MAX_NAME_LEN: usize = 64;
/// Authority information access [RFC 5280, 4.2.2.1].
const AUTHORITY_INFO_ACCESS: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 1];
const OCSP: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 48, 1];
/// Tells clients not to check the revocation of the responder's own certificate [RFC 6960, 4.2.2.2.1].
const OCSP_NO_CHECK: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 5];

/// The parameters of a root or an intermediate.
pub(crate) fn authority(name: &str, days: i64, constraints: BasicConstraints) -> Result<CertificateParams, Error> {
    let mut params = common(name, None, days)?;
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The name constraints of the authority; `None` if it may certify any name [RFC 5280, 4.2.1.10].
pub(crate) fn name_constraints(init: &Init) -> Result<Option<NameConstraints>, Error> {
    let dns = init.permit_dns.iter().map(|name| GeneralSubtree::DnsName(name.clone()));
    let mut permitted_subtrees: Vec<GeneralSubtree> = dns.collect();
    for network in &init.permit_ip {
        let subnet: Result<CidrSubnet, _> = network.parse();
        let subnet = subnet
            .map_err(|()| Error::Name(network.clone(), "expected a network in CIDR notation, such as 192.0.2.0/24"))?;
        permitted_subtrees.push(GeneralSubtree::IpAddress(subnet));
    }
    let constraints = NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() };
    Ok((!constraints.permitted_subtrees.is_empty()).then_some(constraints))
}

/// The parameters of a server, device or OCSP responder certificate.
pub(crate) fn leaf(request: &Request, settings: &Settings) -> Result<CertificateParams, Error> {
    let mut params = common(&request.name, request.organization.as_deref(), i64::from(request.days))?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    for name in &request.names {
        params.subject_alt_names.push(alternative_name(name)?);
    }
    params.extended_key_usages = match &request.purpose {
        Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
        Purpose::Device => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Purpose::Ocsp => {
            params.custom_extensions.push(CustomExtension::from_oid_content(OCSP_NO_CHECK, vec![5, 0]));
            vec![ExtendedKeyUsagePurpose::OcspSigning]
        }
    };
    status(&mut params, settings, "intermediate.crl");
    Ok(params)
}

/// Adds where clients find the revocation status: the CRL distribution point and the OCSP responder.
pub(crate) fn status(params: &mut CertificateParams, settings: &Settings, crl: &str) {
    if let Some(url) = settings.crl(crl) {
        params.crl_distribution_points.push(CrlDistributionPoint { uris: vec![url] });
    }
    if let Some(url) = &settings.ocsp_url {
        let access = yasna::construct_der(|writer| {
            writer.write_sequence(|writer| {
                writer.next().write_sequence(|writer| {
                    writer.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(OCSP));
                    let url = |writer: yasna::DERWriter<'_>| writer.write_ia5_string(url);
                    writer.next().write_tagged_implicit(yasna::Tag::context(6), url);
                });
            });
        });
        params.custom_extensions.push(CustomExtension::from_oid_content(AUTHORITY_INFO_ACCESS, access));
    }
}

/// Classifies a name: an IP address, a URI (it has a `:`), an email address (it has an `@`), otherwise a host name.
fn alternative_name(name: &str) -> Result<SanType, Error> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let ascii =
        name.try_into().map_err(|_| Error::Name(name.to_owned(), "a subject alternative name must be ASCII"))?;
    Ok(match name {
        _ if name.contains(':') => SanType::URI(ascii),
        _ if name.contains('@') => SanType::Rfc822Name(ascii),
        _ => SanType::DnsName(ascii),
    })
}

fn common(name: &str, organization: Option<&str>, days: i64) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    // Unpredictable [CA/B baseline requirements, 7.1], positive, and always 16 bytes long.
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| Error::Make(rcgen::Error::RingUnspecified))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(days);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Rejects common names that would be unsafe where a client ID or a log line is built from them.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let reject = |why| Err(Error::Name(name.to_owned(), why));
    match name {
        "" => reject("it is empty"),
        _ if name.chars().count() > MAX_NAME_LEN => reject("a common name has at most 64 characters"),
        _ if name.chars().any(char::is_control) => reject("it contains control characters"),
        // In a topic rule that contains the client ID, a wildcard would match the topics of other devices.
        _ if name.contains(['+', '#']) => reject("`+` and `#` are wildcards in MQTT topics"),
        _ => Ok(()),
    }
}
