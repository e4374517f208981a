//! OCSP requests and responses [RFC 6960]. Enters: a serial number and its issuer's certificate, then a response in DER.
//! Leaves: a request in DER, then the verified status. Not here: HTTP or caching.

use aws_lc_rs::{digest, rand};
use x509_cert::der::asn1::{Null, ObjectIdentifier, OctetString};
use x509_cert::der::{Any as DerAny, Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifier;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspRequest, OcspResponse, OcspResponseStatus, Request, TbsRequest,
};
use x509_parser::der_parser::asn1_rs::Any;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::Serial;
use super::signature::Signed;
use crate::util::clock::CLOCK_SKEW;

const SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");
const NO_CHECK: &str = "1.3.6.1.5.5.7.48.1.5";
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
/// The validity of a response without nextUpdate, in seconds.
const DEFAULT_VALIDITY: i64 = 300;
/// The limit of certificates read from one response.
const MAX_CERTIFICATES: usize = 4;

/// An OCSP request about one certificate.
pub(super) struct Query {
    id: CertId,
    nonce: OctetString,
    /// The request in DER.
    pub(super) der: Vec<u8>,
}

/// A verified OCSP response about one certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: OcspStatus,
    /// Seconds since 1970.
    pub(super) this_update: i64,
    /// Seconds since 1970. The response is out of date from then on.
    pub(super) next_update: i64,
    /// Whether the response has the request's nonce.
    pub(super) has_nonce: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OcspStatus {
    Good,
    Revoked,
    /// The responder does not know the certificate.
    Unknown,
}

impl Query {
    /// A request about the certificate with this serial number from the CA whose certificate is `issuer`, in DER. `None`
    /// if `issuer` cannot be parsed.
    pub(super) fn new(serial: &Serial, issuer: &[u8]) -> Option<Self> {
        let (_, issuer) = X509Certificate::from_der(issuer).ok()?;
        // Many responders support SHA-1 only. Here it identifies a certificate and proves nothing.
        let hash =
            |bytes: &[u8]| OctetString::new(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref()).ok();
        let id = CertId {
            hash_algorithm: AlgorithmIdentifier { oid: SHA_1, parameters: Some(DerAny::from(Null)) },
            issuer_name_hash: hash(issuer.subject().as_raw())?,
            issuer_key_hash: hash(&issuer.public_key().subject_public_key.data)?,
            serial_number: SerialNumber::new(serial.octets()).ok()?,
        };
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).ok()?;
        let nonce = OctetString::new(nonce).ok()?;
        let extension =
            Extension { extn_id: NONCE, critical: false, extn_value: OctetString::new(nonce.to_der().ok()?).ok()? };
        let request = Request { req_cert: id.clone(), single_request_extensions: None };
        let tbs_request = TbsRequest {
            request_list: vec![request],
            request_extensions: Some(vec![extension]),
            ..TbsRequest::default()
        };
        let der = OcspRequest { tbs_request, optional_signature: None }.to_der().ok()?;
        Some(Self { id, nonce, der })
    }

    /// Verifies a response: the issuer, or a responder that it delegated to, must have signed it. `now` is in seconds since
    /// 1970.
    ///
    /// # Errors
    /// Why the response is rejected.
    pub(super) fn answer(&self, der: &[u8], issuer: &[u8], now: i64) -> Result<Answer, String> {
        let response =
            OcspResponse::from_der(der).map_err(|error| format!("the response cannot be parsed: {error}"))?;
        if response.response_status != OcspResponseStatus::Successful {
            return Err(format!("the responder returned `{:?}`", response.response_status));
        }
        let bytes = response.response_bytes.filter(|bytes| bytes.response_type == BASIC);
        let bytes = bytes.ok_or("the response has an unknown type")?;
        let basic = bytes.response.as_bytes();
        let signed = Signed::from_der(basic).ok_or("the response cannot be parsed")?;
        let is_signed = signed.is_by(issuer)
            || certificates(signed.rest)
                .iter()
                .any(|signer| is_delegated_responder(signer, issuer, now) && signed.is_by(signer));
        if !is_signed {
            return Err("the response is not signed by the issuer or by a responder it delegated to".to_owned());
        }
        let response =
            BasicOcspResponse::from_der(basic).map_err(|error| format!("the response cannot be parsed: {error}"))?;
        let nonce = response.tbs_response_data.nonce();
        if nonce.as_ref().is_some_and(|nonce| nonce.0 != self.nonce) {
            return Err("the response has the nonce of another request".to_owned());
        }
        let single = response.tbs_response_data.responses.iter().find(|single| self.is_about(&single.cert_id));
        let single = single.ok_or("the response covers other certificates")?;
        let time = |time: &x509_ocsp::OcspGeneralizedTime| time.0.to_unix_duration().as_secs().cast_signed();
        let this_update = time(&single.this_update);
        let next_update = single.next_update.as_ref().map_or(this_update + DEFAULT_VALIDITY, time);
        if !is_fresh_at(this_update, next_update, now) {
            return Err("the response is out of date".to_owned());
        }
        let status = match single.cert_status {
            CertStatus::Good(_) => OcspStatus::Good,
            CertStatus::Revoked(_) => OcspStatus::Revoked,
            CertStatus::Unknown(_) => OcspStatus::Unknown,
        };
        Ok(Answer { status, this_update, next_update, has_nonce: nonce.is_some() })
    }

    fn is_about(&self, other: &CertId) -> bool {
        // The parameters of the hash algorithm are not compared: some responders write NULL, some leave them out.
        let id = &self.id;
        other.hash_algorithm.oid == id.hash_algorithm.oid
            && other.issuer_name_hash == id.issuer_name_hash
            && other.issuer_key_hash == id.issuer_key_hash
            && other.serial_number == id.serial_number
    }
}

const fn is_fresh_at(this_update: i64, next_update: i64, now: i64) -> bool {
    this_update <= now + CLOCK_SKEW && now < next_update
}

/// The certificates in a response, in DER.
fn certificates(rest: &[u8]) -> Vec<&[u8]> {
    let list = Any::from_der(rest).ok().and_then(|(_, explicit)| Any::from_der(explicit.data).ok());
    let mut left = list.map_or(&[][..], |(_, list)| list.data);
    let mut found = Vec::new();
    while let (Ok((behind, _)), true) = (Any::from_der(left), found.len() < MAX_CERTIFICATES) {
        found.push(&left[..left.len() - behind.len()]);
        left = behind;
    }
    found
}

/// Whether the issuer delegated OCSP signing to this certificate [RFC 6960, 4.2.2.2]. Only certificates with the
/// extension id-pkix-ocsp-nocheck are accepted: the status of others would have to be checked first [RFC 6960,
/// 4.2.2.2.1].
fn is_delegated_responder(signer: &[u8], issuer: &[u8], now: i64) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(signer) else { return false };
    let usage = certificate.extended_key_usage().ok().flatten();
    let validity = certificate.validity();
    let is_exempt = certificate.extensions().iter().any(|extension| extension.oid.to_id_string() == NO_CHECK);
    is_exempt
        && usage.is_some_and(|usage| usage.value.ocsp_signing)
        && (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
        && Signed::from_der(signer).is_some_and(|signed| signed.is_by(issuer))
}

/// Reads a response as if its signature were valid, and as it is.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn fuzz(der: &[u8]) {
    let issuer = include_bytes!("../../tests/data/ocsp-issuer.der");
    let query = Serial::new(&[5]).and_then(|serial| Query::new(&serial, issuer));
    let answer = query.map(|query| query.answer(der, issuer, 1_795_325_798));
    assert!(answer.is_none_or(|answer| answer.is_err()), "the nonce is random");
    let Some(bytes) = OcspResponse::from_der(der).ok().and_then(|response| response.response_bytes) else { return };
    let basic = bytes.response.as_bytes();
    if let Some(signed) = Signed::from_der(basic) {
        let _ = certificates(signed.rest).iter().filter(|signer| is_delegated_responder(signer, issuer, 0)).count();
    }
    let _ = BasicOcspResponse::from_der(basic).map(|response| response.tbs_response_data.nonce());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A response of OpenSSL's responder without a nonce, and the issuer's certificate.
    const ANSWER: &[u8] = include_bytes!("../../tests/data/ocsp-answer.der");
    const ISSUER: &[u8] = include_bytes!("../../tests/data/ocsp-issuer.der");
    const SERIAL: [u8; 16] = 0x5D63_CD43_9E6E_EF18_C73C_685E_F5F2_AA7A_u128.to_be_bytes();
    /// When the response was produced.
    const THEN: i64 = 1_795_325_798;

    fn query(serial: &[u8]) -> Query {
        Query::new(&Serial::new(serial).unwrap(), ISSUER).unwrap()
    }

    #[test]
    fn an_answer_is_about_one_certificate_for_a_time() {
        let answer = query(&SERIAL).answer(ANSWER, ISSUER, THEN).unwrap();
        assert_eq!((answer.status, answer.has_nonce), (OcspStatus::Good, false));
        for (serial, issuer, now, why) in [
            (&SERIAL[1..], ISSUER, THEN, "covers other certificates"),
            (&SERIAL[..], ISSUER, THEN - 3600, "out of date"),
            // The responder's own certificate expires before its response.
            (&SERIAL[..], ISSUER, answer.next_update, "not signed"),
            (&SERIAL[..], ANSWER, THEN, "not signed"),
        ] {
            let error = query(serial).answer(ANSWER, issuer, now).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        for (this_update, next_update, now, is_fresh) in [
            (100, 200, 150, true),
            (100, 200, 199, true),
            (100, 200, 200, false),
            (1000, 2000, 500, false),
            (1000, 2000, 800, true),
        ] {
            assert_eq!(is_fresh_at(this_update, next_update, now), is_fresh, "{now}");
        }
    }

    #[test]
    fn an_answer_with_the_nonce_of_another_question_is_none() {
        let with_nonce = include_bytes!("../../tests/data/ocsp-answer-with-nonce.der");
        let error = query(&SERIAL).answer(with_nonce, ISSUER, THEN + 7200).unwrap_err();
        assert!(error.contains("nonce of another request"), "{error}");
    }

    #[test]
    fn an_answer_that_was_changed_says_nothing_else() {
        let query = query(&SERIAL);
        let honest = query.answer(ANSWER, ISSUER, THEN).unwrap();
        for position in 0..ANSWER.len() {
            assert!(query.answer(&ANSWER[..position], ISSUER, THEN).is_err(), "truncated at {position}");
            for bit in 0..8 {
                let mut changed = ANSWER.to_vec();
                changed[position] ^= 1 << bit;
                // A change outside the signed part may have no effect.
                if let Ok(answer) = query.answer(&changed, ISSUER, THEN) {
                    assert_eq!(answer, honest, "{position}.{bit}");
                }
            }
        }
    }
}
