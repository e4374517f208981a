//! Questions to OCSP responders and their answers [RFC 6960].

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
/// How long an answer holds that does not say how long, in seconds.
const DEFAULT_VALIDITY: i64 = 300;
/// Certificates that an answer brings at most.
const MAX_CERTIFICATES: usize = 4;

/// What is asked about one certificate.
pub(super) struct Question {
    id: CertId,
    nonce: OctetString,
    /// To be sent.
    pub(super) der: Vec<u8>,
}

/// What a responder said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: OcspStatus,
    /// Seconds since 1970.
    pub(super) this_update: i64,
    /// Seconds since 1970; from then on, the answer is none.
    pub(super) next_update: i64,
    /// Whether it was made for this question.
    pub(super) has_nonce: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OcspStatus {
    Good,
    Revoked,
    /// The responder does not know it.
    Unknown,
}

impl Question {
    /// About the certificate that `issuer`, a certificate in DER, gave this number. `None`: it cannot be asked.
    pub(super) fn about(serial: &Serial, issuer: &[u8]) -> Option<Self> {
        let (_, issuer) = X509Certificate::from_der(issuer).ok()?;
        // SHA-1 is what responders understand; as the name of a certificate it proves nothing.
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

    /// Reads an answer, which the issuer must have signed, or somebody it has certified to do so. `now` is in seconds
    /// since 1970.
    ///
    /// # Errors
    /// Why it is none, in a few words.
    pub(super) fn answer(&self, der: &[u8], issuer: &[u8], now: i64) -> Result<Answer, String> {
        let response = OcspResponse::from_der(der).map_err(|error| format!("the answer cannot be read: {error}"))?;
        if response.response_status != OcspResponseStatus::Successful {
            return Err(format!("the responder says {:?}", response.response_status));
        }
        let bytes = response.response_bytes.filter(|bytes| bytes.response_type == BASIC);
        let bytes = bytes.ok_or("the answer is of an unknown kind")?;
        let basic = bytes.response.as_bytes();
        let signed = Signed::from_der(basic).ok_or("the answer cannot be read")?;
        let is_signed = signed.is_by(issuer)
            || certificates(signed.rest).iter().any(|signer| may_answer(signer, issuer, now) && signed.is_by(signer));
        if !is_signed {
            return Err("the answer is not signed by the issuer, or for it".to_owned());
        }
        let response = BasicOcspResponse::from_der(basic).map_err(|error| format!("it cannot be read: {error}"))?;
        let nonce = response.tbs_response_data.nonce();
        if nonce.as_ref().is_some_and(|nonce| nonce.0 != self.nonce) {
            return Err("the answer is to another question".to_owned());
        }
        let single = response.tbs_response_data.responses.iter().find(|single| self.is_about(&single.cert_id));
        let single = single.ok_or("the answer is about other certificates")?;
        let time = |time: &x509_ocsp::OcspGeneralizedTime| time.0.to_unix_duration().as_secs().cast_signed();
        let this_update = time(&single.this_update);
        let next_update = single.next_update.as_ref().map_or(this_update + DEFAULT_VALIDITY, time);
        if !is_fresh_at(this_update, next_update, now) {
            return Err("the answer is out of date".to_owned());
        }
        let status = match single.cert_status {
            CertStatus::Good(_) => OcspStatus::Good,
            CertStatus::Revoked(_) => OcspStatus::Revoked,
            CertStatus::Unknown(_) => OcspStatus::Unknown,
        };
        Ok(Answer { status, this_update, next_update, has_nonce: nonce.is_some() })
    }

    fn is_about(&self, other: &CertId) -> bool {
        // Of the algorithm's parameters, some write NULL and some nothing.
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

/// The certificates that an answer brings, in DER.
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

/// Whether the issuer has certified this one to answer in its place [RFC 6960, 4.2.2.2]. One that would have to be asked
/// about itself is not believed: only those that the issuer exempts from that [RFC 6960, 4.2.2.2.1].
fn may_answer(signer: &[u8], issuer: &[u8], now: i64) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(signer) else { return false };
    let usage = certificate.extended_key_usage().ok().flatten();
    let validity = certificate.validity();
    let is_exempt = certificate.extensions().iter().any(|extension| extension.oid.to_id_string() == NO_CHECK);
    is_exempt
        && usage.is_some_and(|usage| usage.value.ocsp_signing)
        && (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
        && Signed::from_der(signer).is_some_and(|signed| signed.is_by(issuer))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenSSL's responder said, without a nonce, and the certificate of the issuer.
    const ANSWER: &[u8] = include_bytes!("../../tests/data/ocsp-answer.der");
    const ISSUER: &[u8] = include_bytes!("../../tests/data/ocsp-issuer.der");
    const SERIAL: [u8; 16] = 0x5D63_CD43_9E6E_EF18_C73C_685E_F5F2_AA7A_u128.to_be_bytes();
    /// When it was said.
    const THEN: i64 = 1_795_325_798;

    fn question(serial: &[u8]) -> Question {
        Question::about(&Serial::new(serial).unwrap(), ISSUER).unwrap()
    }

    #[test]
    fn an_answer_is_about_one_certificate_for_a_time() {
        let answer = question(&SERIAL).answer(ANSWER, ISSUER, THEN).unwrap();
        assert_eq!((answer.status, answer.has_nonce), (OcspStatus::Good, false));
        for (serial, issuer, now, why) in [
            (&SERIAL[1..], ISSUER, THEN, "about other certificates"),
            (&SERIAL[..], ISSUER, THEN - 3600, "out of date"),
            // The responder's own certificate ends before its answer does.
            (&SERIAL[..], ISSUER, answer.next_update, "not signed"),
            (&SERIAL[..], ANSWER, THEN, "not signed"),
        ] {
            let error = question(serial).answer(ANSWER, issuer, now).unwrap_err();
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
        let error = question(&SERIAL).answer(with_nonce, ISSUER, THEN + 7200).unwrap_err();
        assert!(error.contains("to another question"), "{error}");
    }

    #[test]
    fn an_answer_that_was_changed_says_nothing_else() {
        let question = question(&SERIAL);
        let honest = question.answer(ANSWER, ISSUER, THEN).unwrap();
        for place in 0..ANSWER.len() {
            assert!(question.answer(&ANSWER[..place], ISSUER, THEN).is_err(), "cut off at {place}");
            for bit in 0..8 {
                let mut changed = ANSWER.to_vec();
                changed[place] ^= 1 << bit;
                // Outside of what is signed, a change may be of no consequence.
                if let Ok(answer) = question.answer(&changed, ISSUER, THEN) {
                    assert_eq!(answer, honest, "{place}.{bit}");
                }
            }
        }
    }
}
