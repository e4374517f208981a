//! The location of a registry.

use std::fmt;

use zeroize::Zeroizing;

/// The location of a registry. `Debug` masks the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    pub(crate) text: Zeroizing<String>,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

impl std::hash::Hash for Url {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.as_str().hash(state);
    }
}

impl fmt::Debug for Url {
    /// Shows the kind of database only: the URL may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({:?})", self.kind)
    }
}

/// The parameters of a PostgreSQL URL that sqlx knows, by their names in libpq.
const POSTGRES_PARAMETERS: [&str; 11] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];

fn has_unknown_parameter(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query.split('#').next().unwrap_or_default());
    let mut names = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next());
    names.any(|name| name.is_none_or(|name| !POSTGRES_PARAMETERS.contains(&name)))
}

impl Url {
    /// Parses `sqlite:PATH`, in which `resolve` makes a relative path absolute, or `postgres://...`.
    ///
    /// # Errors
    /// Describes the problem without quoting the URL, which may contain a password.
    pub fn parse(text: &str, resolve: impl FnOnce(&str) -> String) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() || path.contains(['?', '#', '%']) {
                return Err("`sqlite:` needs a path without `?`, `#` and `%`".to_owned());
            }
            if path == ":memory:" {
                return Err("an in-memory registry cannot be shared with other processes: use a file".to_owned());
            }
            let path = resolve(path);
            if path.contains(['?', '#', '%']) {
                return Err("the directory of the registry must not have `?`, `#` or `%` in its name".to_owned());
            }
            return Ok(Self { text: Zeroizing::new(format!("sqlite://{path}")), kind: Kind::Sqlite });
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            // Before sqlx parses it: sqlx logs unknown parameters with their values.
            if has_unknown_parameter(text) {
                let known = POSTGRES_PARAMETERS.join(", ");
                return Err(format!("the PostgreSQL URL has an unknown parameter; it may have: {known}"));
            }
            text.parse::<sqlx::postgres::PgConnectOptions>()
                .map_err(|_| "the PostgreSQL URL is not valid".to_owned())?;
            return Ok(Self { text: Zeroizing::new(text.to_owned()), kind: Kind::Postgres });
        }
        Err("expected `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`".to_owned())
    }

    /// The path of the SQLite file; `None` for PostgreSQL.
    pub fn path(&self) -> Option<&str> {
        (self.kind == Kind::Sqlite).then(|| self.text.trim_start_matches("sqlite://"))
    }

    /// The database, for logs: the path of the SQLite file, or its kind.
    pub fn shown(&self) -> &str {
        self.path().unwrap_or("PostgreSQL")
    }

    /// Whether the connection goes to another machine without verifying that machine's certificate and name.
    pub fn is_unverified(&self) -> bool {
        if self.kind == Kind::Sqlite {
            return false;
        }
        let options = self.text.parse::<sqlx::postgres::PgConnectOptions>();
        options.is_ok_and(|options| {
            let host = options.get_host();
            let is_local = host.starts_with('/') || ["localhost", "127.0.0.1", "::1", "[::1]"].contains(&host);
            !is_local && !matches!(options.get_ssl_mode(), sqlx::postgres::PgSslMode::VerifyFull)
        })
    }
}
