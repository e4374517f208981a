//! A registry of devices in SQLite or PostgreSQL, with one schema for both: which devices may connect, their credentials,
//! groups and attributes. Enters: changes by operators. Leaves: devices, and the changes since a revision.
//!
//! Each change has a revision, and revisions become visible in order. A reader that remembers the last revision it has
//! seen can fetch all later changes.

mod device;

pub use device::{Device, Hash, Psk, State};

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Map;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgListener;
use sqlx::{AnyConnection, AnyPool, Connection, Row, SqlSafeStr};
use zeroize::Zeroizing;

/// The versions of the schema. The `migrate!` macro would build both database drivers a second time, as a build dependency.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "devices", include_str!("../migrations/0001_devices.sql")),
        migration(2, "identity", include_str!("../migrations/0002_identity.sql")),
    ])
});

/// The PostgreSQL notification channel: one notification per transaction that changes devices.
const CHANNEL: &str = "portcullis_device";
/// How long to wait for a database connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The size of the connection pool: one connection reads changes, the others write.
const MAX_CONNECTIONS: u32 = 4;
/// The largest number of devices that [`Registry::changes`] and [`Registry::list`] return.
pub const PAGE: usize = 1000;

/// A connection pool to a registry.
#[derive(Debug)]
pub struct Registry {
    pool: AnyPool,
    url: Url,
}

/// The location of a registry. `Debug` masks the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    text: Zeroizing<String>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
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

/// Why an operation on the registry failed.
#[derive(Debug)]
pub enum Error {
    /// The database cannot be reached, or a query failed.
    Database(sqlx::Error),
    /// The SQLite file cannot be opened or created.
    File(std::io::Error),
    /// The schema cannot be migrated.
    Schema(sqlx::migrate::MigrateError),
    /// A device with this ID already exists.
    Exists(String),
    /// No device has this ID.
    Unknown(String),
    /// Another device already has a value that must be unique.
    Taken(String),
    /// A field of the device is not valid.
    Invalid(String),
    /// The database record of this device cannot be decoded.
    Corrupt(String),
    /// The database has no tables of a registry.
    NotARegistry,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Database(_) => write!(f, "cannot access the registry database"),
            Error::File(_) => write!(f, "cannot open the registry file"),
            Error::Schema(_) => write!(f, "cannot migrate the schema of the registry database"),
            Error::Exists(id) => write!(f, "device `{id}` already exists"),
            Error::Unknown(id) => write!(f, "device `{id}` does not exist"),
            Error::Taken(what) | Error::Invalid(what) => write!(f, "{what}"),
            Error::NotARegistry => write!(f, "the database is not a device registry"),
            Error::Corrupt(id) => write!(f, "the database record of device `{id}` is corrupt"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Database(error) => Some(error),
            Error::File(error) => Some(error),
            Error::Schema(error) => Some(error),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Error::Database(error)
    }
}

/// What [`Registry::add`] does with a device that already exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fail, and change nothing.
    Refuse,
    /// Keep the existing device.
    Skip,
    /// Replace the existing device.
    Replace,
}

/// The state of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The revision of the last change.
    pub revision: i64,
    /// A random number; `None` for a registry that an older version has created.
    pub identity: Option<String>,
}

/// A changed device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision of its last change.
    pub revision: i64,
    /// The device ID.
    pub id: String,
    /// The device after the change; `None` if it was removed.
    pub device: Option<Device>,
}

impl Registry {
    /// Creates a pool that connects on first use.
    ///
    /// # Errors
    /// The URL is not valid.
    pub fn connect_lazy(url: &Url) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let kind = url.kind;
        let pool = AnyPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if kind == Kind::Sqlite {
                        // No write-ahead log: one that is left behind would be applied to a file that an operator
                        // restores from a backup.
                        let pragmas =
                            "PRAGMA journal_mode = DELETE; PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON;";
                        sqlx::raw_sql(pragmas).execute(connection).await?;
                    }
                    Ok(())
                })
            })
            .connect_lazy_with(url.text.parse::<AnyConnectOptions>()?);
        Ok(Self { pool, url: url.clone() })
    }

    /// Connects and migrates the schema. Creates a missing SQLite file, with mode 0600.
    ///
    /// # Errors
    /// The file cannot be created, or the database cannot be reached or migrated.
    pub async fn open(url: &Url) -> Result<Self, Error> {
        if let Some(path) = url.path() {
            create(path).map_err(Error::File)?;
        }
        let registry = Self::connect_lazy(url)?;
        registry.migrate().await?;
        Ok(registry)
    }

    /// Closes all connections, and waits until they are closed.
    pub async fn close(self) {
        self.pool.close().await;
    }

    /// Migrates the schema to the latest version.
    ///
    /// # Errors
    /// The database cannot be reached or migrated.
    pub async fn migrate(&self) -> Result<(), Error> {
        // Checked first, because migrating requires more privileges than using the schema.
        let latest = MIGRATIONS.iter().map(|migration| migration.version).max();
        let query = sqlx::query("SELECT max(version) AS version FROM _sqlx_migrations WHERE success");
        let present = query.fetch_one(&self.pool).await.and_then(|row| row.try_get::<Option<i64>, _>("version"));
        if present.is_err() || present.is_ok_and(|present| present != latest) {
            MIGRATIONS.run(&self.pool).await.map_err(Error::Schema)?;
        }
        if self.head().await?.identity.is_some() {
            return Ok(());
        }
        let query = "INSERT INTO registry_identity (id, value) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";
        let identity = format!("{:032x}", rand::random::<u128>());
        sqlx::query(query).bind(identity).execute(&self.pool).await?;
        Ok(())
    }

    /// Checks that the database has the tables of a registry. Changes nothing.
    ///
    /// # Errors
    /// The database cannot be reached, or is no registry.
    pub async fn check(&self) -> Result<(), Error> {
        self.head().await.map(drop).map_err(|error| match error {
            Error::Database(sqlx::Error::Database(_) | sqlx::Error::RowNotFound) => Error::NotARegistry,
            error => error,
        })
    }

    /// Returns the device with this ID.
    ///
    /// # Errors
    /// A query failed, or the record is corrupt.
    pub async fn get(&self, id: &str) -> Result<Option<Device>, Error> {
        read(&mut *self.pool.acquire().await?, id).await
    }

    /// Lists devices in the order of their IDs, starting after the ID `after`; at most [`PAGE`].
    ///
    /// # Errors
    /// A query failed, or the record is corrupt.
    pub async fn list(&self, after: &str) -> Result<Vec<Device>, Error> {
        let mut connection = self.pool.acquire().await?;
        let query = "SELECT * FROM device WHERE id > $1 AND state <> 'removed' ORDER BY id LIMIT $2";
        let rows = sqlx::query(query).bind(after).bind(page()).fetch_all(&mut *connection).await?;
        let query = "SELECT device_id, fingerprint FROM pin WHERE device_id > $1 AND device_id <= $2";
        let last: String = rows.last().map_or(Ok(String::new()), |row| row.try_get("id"))?;
        let pins = sqlx::query(query).bind(after).bind(last).fetch_all(&mut *connection).await?;
        Ok(changes(&rows, &pins)?.into_iter().filter_map(|change| change.device).collect())
    }

    /// Adds devices in one transaction. Returns how many were written.
    ///
    /// # Errors
    /// A device exists and `existing` is [`Existing::Refuse`], a device is not valid, or a query failed. Nothing was
    /// written then.
    pub async fn add(&self, devices: &[Device], existing: Existing) -> Result<usize, Error> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let (first, mut written) = (take_revisions(&mut transaction, devices.len()).await?, 0);
        for (revision, device) in (first..).zip(devices) {
            if existing != Existing::Replace && read(&mut transaction, &device.id).await?.is_some() {
                match existing {
                    Existing::Skip => continue,
                    Existing::Refuse | Existing::Replace => return Err(Error::Exists(device.id.clone())),
                }
            }
            write(&mut transaction, revision, &device.id, Some(device)).await?;
            written += 1;
        }
        self.notify(&mut transaction).await?;
        transaction.commit().await?;
        Ok(written)
    }

    /// Changes a device. Returns the changed device.
    ///
    /// # Errors
    /// No device has this ID, the changed device is not valid, or a query failed.
    pub async fn change(&self, id: &str, change: impl FnOnce(&mut Device)) -> Result<Device, Error> {
        let changed = self.try_change(id, |device| {
            change(device);
            Ok(())
        });
        changed.await
    }

    /// Changes a device, or leaves it as it is if `change` returns an error: no other change comes between what it sees and
    /// what it writes. Returns the changed device.
    ///
    /// # Errors
    /// The error of `change`, no device has this ID, the changed device is not valid, or a query failed.
    pub async fn try_change(
        &self,
        id: &str,
        change: impl FnOnce(&mut Device) -> Result<(), Error>,
    ) -> Result<Device, Error> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let revision = take_revisions(&mut transaction, 1).await?;
        let device = read(&mut transaction, id).await?;
        let mut device = device.ok_or_else(|| Error::Unknown(id.to_owned()))?;
        change(&mut device)?;
        write(&mut transaction, revision, id, Some(&device)).await?;
        self.notify(&mut transaction).await?;
        transaction.commit().await?;
        Ok(device)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// No device has this ID, or a query failed.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let revision = take_revisions(&mut transaction, 1).await?;
        // Reads the ID only, so that a corrupt record can be removed, too.
        let query = "SELECT id FROM device WHERE id = $1 AND state <> 'removed'";
        if sqlx::query(query).bind(id).fetch_optional(&mut *transaction).await?.is_none() {
            return Err(Error::Unknown(id.to_owned()));
        }
        write(&mut transaction, revision, id, None).await?;
        self.notify(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Returns the changes after this revision, in order; at most [`PAGE`]. Revision 0 returns all devices. A corrupt record
    /// counts as removed.
    ///
    /// # Errors
    /// A query failed, or the record is corrupt.
    pub async fn changes(&self, since: i64) -> Result<Vec<Change>, Error> {
        let mut connection = self.pool.acquire().await?;
        // One snapshot for both queries: otherwise pins of a later change could end up in an earlier one.
        let mut transaction = connection.begin().await?;
        if self.url.kind == Kind::Postgres {
            let level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY";
            sqlx::raw_sql(level).execute(&mut *transaction).await?;
        }
        let query = "SELECT * FROM device WHERE revision > $1 ORDER BY revision LIMIT $2";
        let rows = sqlx::query(query).bind(since).bind(page()).fetch_all(&mut *transaction).await?;
        let Some(last) = rows.last() else { return Ok(Vec::new()) };
        let query = "SELECT device_id, fingerprint FROM pin JOIN device ON device.id = pin.device_id \
                     WHERE device.revision > $1 AND device.revision <= $2";
        let last: i64 = last.try_get("revision")?;
        let pins = sqlx::query(query).bind(since).bind(last).fetch_all(&mut *transaction).await?;
        // Fails closed for the corrupt record, and does not hide the changes of other devices.
        let readable = |(row, change): (&AnyRow, Result<Change, Error>)| match change {
            Err(Error::Corrupt(id)) => Ok(Change { revision: row.try_get("revision")?, id, device: None }),
            change => change,
        };
        let mut pins_of = pins_by_device(&pins)?;
        rows.iter().map(|row| (row, change(row, &mut pins_of))).map(readable).collect()
    }

    /// The revision of the last change, and what tells the database from others.
    ///
    /// # Errors
    /// A query failed.
    pub async fn head(&self) -> Result<Head, Error> {
        let row = match sqlx::query("SELECT value FROM revision WHERE id = 1").fetch_one(&self.pool).await {
            Err(sqlx::Error::PoolTimedOut) => return Err(self.why_unreachable().await.into()),
            row => row?,
        };
        let identity = sqlx::query("SELECT value FROM registry_identity WHERE id = 1").fetch_optional(&self.pool).await;
        let identity = match identity {
            Ok(row) => row.map(|row| row.try_get("value")).transpose()?,
            // A database from before there were identities.
            Err(sqlx::Error::Database(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Head { revision: row.try_get("value")?, identity })
    }

    /// Why no connection can be opened: the pool tries until its timeout, and then does not say.
    async fn why_unreachable(&self) -> sqlx::Error {
        let Ok(options) = self.url.text.parse::<AnyConnectOptions>() else { return sqlx::Error::PoolTimedOut };
        match tokio::time::timeout(CONNECT_TIMEOUT, AnyConnection::connect_with(&options)).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) => sqlx::Error::PoolTimedOut,
            Err(_) => sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()),
        }
    }

    /// Subscribes to change notifications. `None` for SQLite, which has none.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn listen(&self) -> Result<Option<Listening>, Error> {
        if self.url.kind == Kind::Sqlite {
            return Ok(None);
        }
        let mut listener = PgListener::connect(&self.url.text).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(Listening(listener)))
    }

    async fn notify(&self, connection: &mut AnyConnection) -> Result<(), Error> {
        if self.url.kind == Kind::Postgres {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("NOTIFY {CHANNEL}"))).execute(connection).await?;
        }
        Ok(())
    }
}

/// A subscription to the change notifications of PostgreSQL.
#[derive(Debug)]
pub struct Listening(PgListener);

impl Listening {
    /// Waits for a notification. Also returns after the connection was lost and re-established, since notifications may
    /// have been missed.
    ///
    /// # Errors
    /// The connection was lost and cannot be re-established.
    pub async fn changed(&mut self) -> Result<(), Error> {
        // `None` means reconnected.
        Ok(self.0.try_recv().await.map(drop)?)
    }
}

fn create(path: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop),
    }
}

fn page() -> i64 {
    i64::try_from(PAGE).unwrap_or(i64::MAX)
}

/// Reserves `count` revisions and returns the first. The row lock serializes writers until their transactions end, so
/// revisions become visible in order.
async fn take_revisions(connection: &mut AnyConnection, count: usize) -> Result<i64, Error> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let query = "UPDATE revision SET value = value + $1 WHERE id = 1 RETURNING value";
    let row = sqlx::query(query).bind(count).fetch_one(connection).await?;
    Ok(row.try_get::<i64, _>("value")? - count + 1)
}

async fn read(connection: &mut AnyConnection, id: &str) -> Result<Option<Device>, Error> {
    let rows = sqlx::query("SELECT * FROM device WHERE id = $1").bind(id).fetch_all(&mut *connection).await?;
    let query = "SELECT device_id, fingerprint FROM pin WHERE device_id = $1";
    let pins = sqlx::query(query).bind(id).fetch_all(connection).await?;
    Ok(changes(&rows, &pins)?.into_iter().find_map(|change| change.device))
}

async fn write(connection: &mut AnyConnection, revision: i64, id: &str, device: Option<&Device>) -> Result<(), Error> {
    if let Some(device) = device {
        device.validate().map_err(|what| Error::Invalid(format!("device `{}`: {what}", id.escape_debug())))?;
    }
    let (state, until) = match device.map(|device| device.state) {
        Some(State::Enabled) => ("enabled", None),
        Some(State::Disabled) => ("disabled", None),
        Some(State::Banned(until)) => ("banned", Some(until)),
        None => ("removed", None),
    };
    let psk = device.and_then(|device| device.psk.as_ref());
    if let Some(psk) = psk {
        let query = "SELECT id FROM device WHERE psk_identity = $1 AND id <> $2";
        if let Some(row) = sqlx::query(query).bind(&psk.identity).bind(id).fetch_optional(&mut *connection).await? {
            let other: String = row.try_get("id")?;
            return Err(Error::Taken(format!("device `{other}` already has the PSK identity `{}`", psk.identity)));
        }
    }
    let groups = device.map(|device| device.groups.as_slice()).unwrap_or_default();
    let attributes = device.map(|device| device.attributes.clone()).unwrap_or_default();
    let json = |value: serde_json::Result<String>| value.map_err(|_| Error::Corrupt(id.to_owned()));
    let query = "INSERT INTO device (id, revision, state, banned_until, device_groups, attributes, psk_identity, psk_key, \
                 password_hash, changed_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
                 ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, state = excluded.state, \
                 banned_until = excluded.banned_until, device_groups = excluded.device_groups, \
                 attributes = excluded.attributes, psk_identity = excluded.psk_identity, psk_key = excluded.psk_key, \
                 password_hash = excluded.password_hash, changed_at = excluded.changed_at";
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    sqlx::query(query)
        .bind(id)
        .bind(revision)
        .bind(state)
        .bind(until)
        .bind(json(serde_json::to_string(groups))?)
        .bind(json(serde_json::to_string(&attributes))?)
        .bind(psk.map(|psk| psk.identity.as_str()))
        .bind(psk.map(|psk| hex::encode(&psk.key)))
        .bind(device.and_then(|device| device.password_hash.as_ref()).map(|hash| hash.0.as_str()))
        .bind(now)
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM pin WHERE device_id = $1").bind(id).execute(&mut *connection).await?;
    for pin in device.map(|device| device.pins.as_slice()).unwrap_or_default() {
        let query = "SELECT device_id FROM pin WHERE fingerprint = $1";
        if let Some(row) = sqlx::query(query).bind(pin).fetch_optional(&mut *connection).await? {
            let other: String = row.try_get("device_id")?;
            return Err(Error::Taken(format!("device `{other}` already has the pin `{pin}`")));
        }
        let query = "INSERT INTO pin (fingerprint, device_id) VALUES ($1, $2)";
        sqlx::query(query).bind(pin).bind(id).execute(&mut *connection).await?;
    }
    Ok(())
}

fn pins_by_device(pins: &[AnyRow]) -> Result<HashMap<String, Vec<String>>, Error> {
    let mut pins_of: HashMap<String, Vec<String>> = HashMap::new();
    for row in pins {
        pins_of.entry(row.try_get("device_id")?).or_default().push(row.try_get("fingerprint")?);
    }
    Ok(pins_of)
}

fn changes(rows: &[AnyRow], pins: &[AnyRow]) -> Result<Vec<Change>, Error> {
    let mut pins_of = pins_by_device(pins)?;
    rows.iter().map(|row| change(row, &mut pins_of)).collect()
}

fn change(row: &AnyRow, pins_of: &mut HashMap<String, Vec<String>>) -> Result<Change, Error> {
    let id: String = row.try_get("id")?;
    let revision = row.try_get("revision")?;
    let corrupt = || Error::Corrupt(id.clone());
    let text = |column: &str| row.try_get::<Option<String>, _>(column);
    let state = match text("state")?.as_deref() {
        Some("enabled") => State::Enabled,
        Some("disabled") => State::Disabled,
        Some("banned") => State::Banned(row.try_get::<Option<i64>, _>("banned_until")?.unwrap_or(i64::MAX)),
        Some("removed") => return Ok(Change { revision, id, device: None }),
        _ => return Err(corrupt()),
    };
    let groups = serde_json::from_str(&text("device_groups")?.unwrap_or_default()).map_err(|_| corrupt())?;
    let attributes: Map<_, _> =
        serde_json::from_str(&text("attributes")?.unwrap_or_default()).map_err(|_| corrupt())?;
    let psk = match (text("psk_identity")?, text("psk_key")?.map(Zeroizing::new)) {
        (Some(identity), Some(key)) => {
            Some(Psk { identity, key: Zeroizing::new(hex::decode(key).map_err(|_| corrupt())?) })
        }
        _ => None,
    };
    let mut pins = pins_of.remove(&id).unwrap_or_default();
    pins.sort_unstable();
    let password_hash = text("password_hash")?.map(Hash);
    let device = Device { id: id.clone(), state, groups, attributes, pins, psk, password_hash };
    Ok(Change { revision, id, device: Some(device) })
}

#[cfg(test)]
mod tests;
