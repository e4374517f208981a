//! A registry of devices, in SQLite or PostgreSQL by one schema: who is let in, with what they prove themselves, and
//! what else is known of them. Enters: changes that people make. Leaves: devices, and what has changed since a number.
//!
//! Each change has a number, and numbers become visible in their order; so whoever remembers the last number it has seen
//! can ask for all that it has not.

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

/// The versions of the schema. Not by `migrate!`: the macro builds both databases a second time, for the compiler.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![migration(1, "devices", include_str!("../migrations/0001_devices.sql"))])
});

/// What PostgreSQL tells those who listen, whenever a device has changed.
const CHANNEL: &str = "portcullis_device";
/// For a connection to the database to be had.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections at once: one that follows, some that write.
const MAX_CONNECTIONS: u32 = 4;
/// Devices that [`Registry::changes`] returns at most.
pub const PAGE: usize = 1000;

/// A registry.
#[derive(Debug)]
pub struct Registry {
    pool: AnyPool,
    url: Url,
}

/// Where a registry is.
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
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({:?})", self.kind)
    }
}

impl Url {
    /// Reads `sqlite:PATH`, in which `resolve` makes a relative path absolute, or `postgres://...`.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it: there may be a password in it.
    pub fn parse(text: &str, resolve: impl FnOnce(&str) -> String) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() || path.contains(['?', '#', '%']) {
                return Err("a path is wanted after `sqlite:`, without `?`, `#` and `%`".to_owned());
            }
            if path == ":memory:" {
                return Err("a registry in memory would be nobody else's: name a file".to_owned());
            }
            let path = resolve(path);
            if path.contains(['?', '#', '%']) {
                return Err("the folder of the registry has a `?`, `#` or `%` in its name".to_owned());
            }
            return Ok(Self { text: Zeroizing::new(format!("sqlite://{path}")), kind: Kind::Sqlite });
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            text.parse::<sqlx::postgres::PgConnectOptions>()
                .map_err(|_| "this cannot be read as a PostgreSQL URL".to_owned())?;
            return Ok(Self { text: Zeroizing::new(text.to_owned()), kind: Kind::Postgres });
        }
        Err("a registry is `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/DATABASE`".to_owned())
    }

    /// The database's file, if it is one.
    pub fn path(&self) -> Option<&str> {
        (self.kind == Kind::Sqlite).then(|| self.text.trim_start_matches("sqlite://"))
    }

    /// Whether the connection goes to another machine without certainty that it is the right one.
    pub fn is_unverified(&self) -> bool {
        if self.kind == Kind::Sqlite || self.text.contains("sslmode=verify-full") {
            return false;
        }
        let options = self.text.parse::<sqlx::postgres::PgConnectOptions>();
        options.is_ok_and(|options| {
            let host = options.get_host();
            !(host.starts_with('/') || ["localhost", "127.0.0.1", "::1", "[::1]"].contains(&host))
        })
    }
}

/// Why something could not be done.
#[derive(Debug)]
pub enum Error {
    /// The database cannot be reached, or does not do what is asked.
    Database(sqlx::Error),
    /// The database's file cannot be opened.
    File(std::io::Error),
    /// Its schema cannot be brought up to date.
    Schema(sqlx::migrate::MigrateError),
    /// There is a device of this ID already.
    Exists(String),
    /// There is no device of this ID.
    Unknown(String),
    /// Something that has to be unique, another device has.
    Taken(String),
    /// The device cannot be kept.
    Invalid(String),
    /// What is in the database is no device.
    Corrupt(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Database(_) => write!(f, "the registry's database failed"),
            Error::File(_) => write!(f, "the registry's file cannot be opened"),
            Error::Schema(_) => write!(f, "the schema of the registry's database cannot be brought up to date"),
            Error::Exists(id) => write!(f, "there is a device `{id}` already"),
            Error::Unknown(id) => write!(f, "there is no device `{id}`"),
            Error::Taken(what) | Error::Invalid(what) => write!(f, "{what}"),
            Error::Corrupt(id) => write!(f, "what the database has of device `{id}` cannot be read"),
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

/// What becomes of a device that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Nothing is changed at all.
    Refuse,
    /// It stays as it is.
    Skip,
    /// It becomes the new one.
    Replace,
}

/// A device that has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The number of its last change.
    pub revision: i64,
    /// Its ID.
    pub id: String,
    /// What it is now; `None`: it was removed.
    pub device: Option<Device>,
}

impl Registry {
    /// A registry that is connected to when it is needed.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn connect_lazy(url: &Url) -> Result<Self, Error> {
        sqlx::any::install_default_drivers();
        let kind = url.kind;
        let pool = AnyPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(CONNECT_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if kind == Kind::Sqlite {
                        // One file, and no log beside it: such a log, left behind, would be taken for that of a file
                        // that somebody puts into the place.
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

    /// Connects, makes the database's file if it is one and not there (readable by its owner only), and brings the
    /// schema up to date.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn open(url: &Url) -> Result<Self, Error> {
        if let Some(path) = url.path() {
            create(path).map_err(Error::File)?;
        }
        let registry = Self::connect_lazy(url)?;
        registry.migrate().await?;
        Ok(registry)
    }

    /// Closes the connections, and waits until they are.
    pub async fn close(self) {
        self.pool.close().await;
    }

    /// Brings the schema up to date.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn migrate(&self) -> Result<(), Error> {
        // Asked first: to look after the schema takes more rights than to use it.
        let latest = MIGRATIONS.iter().map(|migration| migration.version).max();
        let query = sqlx::query("SELECT max(version) AS version FROM _sqlx_migrations WHERE success");
        let present = query.fetch_one(&self.pool).await.and_then(|row| row.try_get::<Option<i64>, _>("version"));
        if present.is_ok_and(|present| present == latest) {
            return Ok(());
        }
        MIGRATIONS.run(&self.pool).await.map_err(Error::Schema)
    }

    /// The device of this ID.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn get(&self, id: &str) -> Result<Option<Device>, Error> {
        read(&mut *self.pool.acquire().await?, id).await
    }

    /// Devices in the order of their IDs, from the one behind `after`; at most [`PAGE`].
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn list(&self, after: &str) -> Result<Vec<Device>, Error> {
        let mut connection = self.pool.acquire().await?;
        let query = "SELECT * FROM device WHERE id > $1 AND state <> 'removed' ORDER BY id LIMIT $2";
        let rows = sqlx::query(query).bind(after).bind(page()).fetch_all(&mut *connection).await?;
        let query = "SELECT device_id, fingerprint FROM pin WHERE device_id > $1 AND device_id <= $2";
        let last: String = rows.last().map_or(Ok(String::new()), |row| row.try_get("id"))?;
        let pins = sqlx::query(query).bind(after).bind(last).fetch_all(&mut *connection).await?;
        Ok(changes(&rows, &pins)?.into_iter().filter_map(|change| change.device).collect())
    }

    /// Adds devices, all of them or none; returns how many were written.
    ///
    /// # Errors
    /// One of them is there already and may not be, or cannot be kept; or the database failed.
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

    /// Changes a device; returns what it is then.
    ///
    /// # Errors
    /// There is none of this ID, it cannot be kept as it would be, or the database failed.
    pub async fn change(&self, id: &str, change: impl FnOnce(&mut Device)) -> Result<Device, Error> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let revision = take_revisions(&mut transaction, 1).await?;
        let device = read(&mut transaction, id).await?;
        let mut device = device.ok_or_else(|| Error::Unknown(id.to_owned()))?;
        change(&mut device);
        write(&mut transaction, revision, id, Some(&device)).await?;
        self.notify(&mut transaction).await?;
        transaction.commit().await?;
        Ok(device)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// There is none of this ID, or the database failed.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let mut connection = self.pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let revision = take_revisions(&mut transaction, 1).await?;
        // Not what it is: also what cannot be read can be removed.
        let query = "SELECT id FROM device WHERE id = $1 AND state <> 'removed'";
        if sqlx::query(query).bind(id).fetch_optional(&mut *transaction).await?.is_none() {
            return Err(Error::Unknown(id.to_owned()));
        }
        write(&mut transaction, revision, id, None).await?;
        self.notify(&mut transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// What has changed since the change of this number, in the order of changes; at most [`PAGE`]. From 0, all there is.
    /// A device that cannot be read counts as removed.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn changes(&self, since: i64) -> Result<Vec<Change>, Error> {
        let mut connection = self.pool.acquire().await?;
        // One moment's view: pins of a later change would be put to an earlier one.
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
        // One that cannot be read is as good as none, and keeps nobody from learning of the others.
        let readable = |(row, change): (&AnyRow, Result<Change, Error>)| match change {
            Err(Error::Corrupt(id)) => Ok(Change { revision: row.try_get("revision")?, id, device: None }),
            change => change,
        };
        let mut pins_of = pins_by_device(&pins)?;
        rows.iter().map(|row| (row, change(row, &mut pins_of))).map(readable).collect()
    }

    /// The number of the last change.
    ///
    /// # Errors
    /// The database cannot be asked.
    pub async fn revision(&self) -> Result<i64, Error> {
        let row = sqlx::query("SELECT value FROM revision WHERE id = 1").fetch_one(&self.pool).await?;
        Ok(row.try_get("value")?)
    }

    /// Who is told at once when something has changed; `None`: this kind of database tells nobody.
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

/// A connection on which the database says that something has changed.
#[derive(Debug)]
pub struct Listening(PgListener);

impl Listening {
    /// Waits until something has changed.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn changed(&mut self) -> Result<(), Error> {
        // `None`: it broke and is there again; something may have been missed.
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

/// Takes so many numbers; returns the first. Whoever has taken one is alone until the transaction ends.
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
            return Err(Error::Taken(format!("device `{other}` has the pre-shared key identity `{}`", psk.identity)));
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
            return Err(Error::Taken(format!("device `{other}` has the pin {pin}")));
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
