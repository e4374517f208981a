//! Parses PKCS#11 URIs [RFC 7512]. A PIN is never shown.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use cryptoki::types::AuthPin;
use percent_encoding::percent_decode_str;

use crate::UriError;

/// A PKCS#11 URI: the module, the token, the key and the PIN. Neither `Debug` nor `Display` shows the PIN.
#[derive(Clone)]
pub struct TokenUri {
    pub(crate) module: PathBuf,
    pub(crate) token: Option<String>,
    pub(crate) object: Option<String>,
    pub(crate) id: Option<Vec<u8>>,
    pub(crate) pin: Option<AuthPin>,
    /// A hash of module, token and PIN.
    pub(crate) pin_id: [u8; 32],
}

impl fmt::Debug for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenUri({self})")
    }
}

/// Shows token and object, not the PIN.
impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (token, object) = (self.token.as_deref().unwrap_or("*"), self.object.as_deref().unwrap_or("*"));
        write!(f, "pkcs11:token={token};object={object}")
    }
}

impl TokenUri {
    /// Parses a URI, and reads the file that its `pin-source` names; `resolve` makes relative paths absolute. The caller
    /// checks the scheme.
    ///
    /// # Errors
    /// The URI is malformed, has an unknown attribute, or names no key or no module; or the PIN file cannot be read.
    pub fn parse(text: &str, resolve: impl Fn(&Path) -> PathBuf) -> Result<Self, UriError> {
        let wrong = |what: &str| UriError(what.to_owned());
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let path = path.get("pkcs11:".len()..).unwrap_or_default().split(';').filter(|part| !part.is_empty());
        let query = query.split('&').filter(|part| !part.is_empty());
        let (mut token, mut object, mut id, mut module, mut pin) = (None, None, None, None, None);
        for attribute in path.chain(query) {
            let (name, value) = attribute.split_once('=').ok_or_else(|| wrong("has a part without `=`"))?;
            let bytes: Vec<u8> = percent_decode_str(value).collect();
            let text = || String::from_utf8(bytes.clone()).map_err(|_| wrong("has a value that is not UTF-8"));
            match name {
                "token" => token = Some(text()?),
                "object" => object = Some(text()?),
                "id" => id = Some(bytes),
                "type" if value == "private" => {}
                "module-path" => module = Some(PathBuf::from(text()?)),
                "pin-value" => pin = Some(text()?),
                "pin-source" => {
                    let source = text()?;
                    let file = resolve(Path::new(source.strip_prefix("file:").unwrap_or(&source)));
                    let read = std::fs::read_to_string(&file);
                    let read = read.map_err(|error| {
                        wrong(&format!("names the PIN file `{}`, which cannot be read: {error}", file.display()))
                    })?;
                    pin = Some(read.trim_end_matches(['\r', '\n']).to_owned());
                }
                other => return Err(wrong(&format!("has the unknown attribute `{other}`"))),
            }
        }
        if object.is_none() && id.is_none() {
            return Err(wrong("names no key: add `object` or `id`"));
        }
        let module = module.ok_or_else(|| wrong("names no module: add `module-path`"))?;
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(format!("{module:?} {token:?} ").as_bytes());
        hash.update(pin.as_deref().map_or(&[], str::as_bytes));
        let mut pin_id = [0; 32];
        pin_id.copy_from_slice(hash.finish().as_ref());
        Ok(Self { module, token, object, id, pin: pin.map(Into::into), pin_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TokenUri, String> {
        TokenUri::parse(text, ToOwned::to_owned).map_err(|error| error.to_string())
    }

    #[test]
    fn a_uri_says_what_is_meant_and_never_shows_its_pin() {
        let uri = parse("pkcs11:token=a%20b;object=k;id=%01%ff?module-path=/m.so&pin-value=hunter2").unwrap();
        assert_eq!((uri.token.as_deref(), uri.id.as_deref()), (Some("a b"), Some(&[1, 255][..])));
        assert!(!format!("{uri:?}{uri}").contains("hunter2"));
        for (wrong, why) in [
            ("pkcs11:token=t?module-path=/m.so", "names no key"),
            ("pkcs11:object=k", "names no module"),
            ("pkcs11:objekt=k?module-path=/m.so", "`objekt`"),
            ("pkcs11:object?module-path=/m.so", "without `=`"),
            ("pkcs11:object=k?module-path=/m.so&pin-source=/surely/not/there", "/surely/not/there"),
        ] {
            let message = parse(wrong).unwrap_err();
            assert!(message.contains(why), "{wrong}: {message}");
        }
    }
}
