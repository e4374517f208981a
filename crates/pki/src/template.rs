//! What the certificates say.

use std::net::IpAddr;

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CrlDistributionPoint, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::{Error, Init, Purpose, Request, Settings};

/// A clock that is a little behind is no reason to refuse a new certificate.
const BACKDATED: Duration = Duration::hours(1);
/// Upper bound of a common name [RFC 5280, appendix A.1].
const MAX_NAME_LEN: usize = 64;
/// Authority information access [RFC 5280, 4.2.2.1].
const AUTHORITY_INFO_ACCESS: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 1];
const OCSP: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 48, 1];
/// A responder's own certificate is not asked about [RFC 6960, 4.2.2.2.1].
const OCSP_NO_CHECK: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 48, 1, 5];

/// Of a root or an intermediate.
pub(crate) fn authority(name: &str, days: i64, constraints: BasicConstraints) -> Result<CertificateParams, Error> {
    let mut params = common(name, None, days)?;
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// The names that an authority may certify, if it is to be bound to some [RFC 5280, 4.2.1.10].
pub(crate) fn name_constraints(init: &Init) -> Result<Option<NameConstraints>, Error> {
    let dns = init.permit_dns.iter().map(|name| GeneralSubtree::DnsName(name.clone()));
    let mut permitted_subtrees: Vec<GeneralSubtree> = dns.collect();
    for network in &init.permit_ip {
        let subnet: Result<CidrSubnet, _> = network.parse();
        let subnet = subnet.map_err(|()| Error::Name(network.clone(), "a network is written 192.0.2.0/24"))?;
        permitted_subtrees.push(GeneralSubtree::IpAddress(subnet));
    }
    let constraints = NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() };
    Ok((!constraints.permitted_subtrees.is_empty()).then_some(constraints))
}

/// Of a server, a device or a responder.
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

/// Says where the certificate's revocation is published.
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

/// An address, a URI, a mail address, else a host name.
fn alternative_name(name: &str) -> Result<SanType, Error> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let ascii = name.try_into().map_err(|_| Error::Name(name.to_owned(), "an alternative name is ASCII"))?;
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
    // Unpredictable [CA/B baseline requirements, 7.1], positive, and never shorter than it looks.
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

/// Refuses names that would harm somebody who believes them.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let refuse = |why| Err(Error::Name(name.to_owned(), why));
    match name {
        "" => refuse("it is empty"),
        _ if name.chars().count() > MAX_NAME_LEN => refuse("a common name has at most 64 characters"),
        _ if name.chars().any(char::is_control) => refuse("it has control characters"),
        // In topic rules that a client ID is put into, they would match other devices' topics.
        _ if name.contains(['+', '#']) => refuse("`+` and `#` are wildcards in MQTT topics"),
        _ => Ok(()),
    }
}
