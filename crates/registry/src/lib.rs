//! A registry of devices in SQLite or PostgreSQL, with one schema for both: which devices may connect, their credentials,
//! groups and attributes. Enters: changes by operators. Leaves: devices, and the changes since a revision.
//!
//! Each change has a revision, and revisions become visible in order. A reader that remembers the last revision it has
//! seen can fetch all later changes.

mod device;
mod rows;
mod url;

pub use device::{Device, Hash, Psk, State};
pub use url::Url;

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgListener;
use sqlx::{AnyConnection, AnyPool, Connection, Row, SqlSafeStr};

use rows::{change, changes, pins_by_device, read, write};
use url::Kind;

/// The versions of the schema. The `migrate!` macro would build both database drivers a second time, as a build dependency.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |version, description: &'static str, sql: &'static str| {
        Migration::new(version, description.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "devices", include_str!("../migrations/0001_devices.sql")),
        migration(2, "identity", include_str!("../migrations/0002_identity.sql")),
        migration(3, "revision tags", include_str!("../migrations/0003_revision_tags.sql")),
    ])
});

/// The PostgreSQL notification channel: one notification per transaction that changes devices.
const CHANNEL: &str = "portcullis_device";
/// How long to wait for a database connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The size of the connection pool: one connection reads changes, the others write.
const MAX_CONNECTIONS: u32 = 4;
/// The number of transactions that keep their tags. A gateway that is further behind reads everything anew.
const TAGS: i64 = 4096;
/// The largest number of devices that [`Registry::changes`] and [`Registry::list`] return.
pub const PAGE: usize = 1000;

/// Reads [`Head`], in one statement, so that all values are of one database and one moment: with all tables, and from
/// databases that older versions have created.
const HEAD_QUERIES: [&str; 3] = [
    "SELECT value AS revision, (SELECT value FROM registry_identity WHERE id = 1) AS identity, \
     (SELECT tag FROM revision_tag WHERE revision_tag.revision = revision.value) AS tag FROM revision WHERE id = 1",
    "SELECT value AS revision, (SELECT value FROM registry_identity WHERE id = 1) AS identity, \
     CAST(NULL AS TEXT) AS tag FROM revision WHERE id = 1",
    "SELECT value AS revision, CAST(NULL AS TEXT) AS identity, CAST(NULL AS TEXT) AS tag FROM revision WHERE id = 1",
];

/// A connection pool to a registry.
#[derive(Debug)]
pub struct Registry {
    pool: AnyPool,
    url: Url,
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
    /// The file is not an SQLite database, or it is damaged.
    NotADatabase,
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
            Error::NotADatabase => write!(f, "the file is not an SQLite database, or it is damaged"),
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
        if is_not_a_database(&error) { Error::NotADatabase } else { Error::Database(error) }
    }
}

/// Whether SQLite says that the file is not its own, or damaged. The codes of PostgreSQL have five characters.
fn is_not_a_database(error: &sqlx::Error) -> bool {
    const SQLITE_CORRUPT: &str = "11";
    const SQLITE_NOTADB: &str = "26";
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| [SQLITE_CORRUPT, SQLITE_NOTADB].contains(&&*code))
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The revision of the last change.
    pub revision: i64,
    /// A random number that tells this registry from others; `None` if an older version has created it.
    pub identity: Option<String>,
    /// The tag of the revision, see [`Registry::tag`].
    pub tag: Option<String>,
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
                        let pragmas = "PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON;";
                        sqlx::raw_sql(pragmas).execute(&mut *connection).await?;
                        // No write-ahead log: one that is left behind would be applied to a file that an operator
                        // restores from a backup. If the file is no database, the first query says so: an error
                        // here would make the pool try again until its timeout, and hide the reason.
                        let _ = sqlx::raw_sql("PRAGMA journal_mode = DELETE").execute(connection).await;
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

    /// Migrates the schema to the latest version, and gives the database an identity and its revision a tag if they lack.
    ///
    /// # Errors
    /// The database cannot be reached or migrated.
    pub async fn migrate(&self) -> Result<(), Error> {
        // Checked first, because migrating requires more privileges than using the schema.
        let latest = MIGRATIONS.iter().map(|migration| migration.version).max();
        let query = sqlx::query("SELECT max(version) AS version FROM _sqlx_migrations WHERE success");
        let present = query.fetch_one(&self.pool).await.and_then(|row| row.try_get::<Option<i64>, _>("version"));
        if let Err(error) = &present
            && is_not_a_database(error)
        {
            return Err(Error::NotADatabase);
        }
        if present.is_err() || present.is_ok_and(|present| present != latest) {
            MIGRATIONS.run(&self.pool).await.map_err(Error::Schema)?;
        }
        let head = self.head().await?;
        if head.identity.is_none() {
            let query = "INSERT INTO registry_identity (id, value) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";
            sqlx::query(query).bind(random()).execute(&self.pool).await?;
        }
        if head.tag.is_none() {
            let query = "INSERT INTO revision_tag (revision, tag) VALUES ($1, $2) ON CONFLICT (revision) DO NOTHING";
            sqlx::query(query).bind(head.revision).bind(random()).execute(&self.pool).await?;
        }
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
    /// A query failed.
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
        let mut result = Err(sqlx::Error::RowNotFound);
        for query in HEAD_QUERIES {
            result = sqlx::query(query).fetch_one(&self.pool).await;
            if !matches!(result, Err(sqlx::Error::Database(_))) {
                break;
            }
        }
        match result {
            Ok(row) => Ok(Head {
                revision: row.try_get("revision")?,
                identity: row.try_get("identity")?,
                tag: row.try_get("tag")?,
            }),
            Err(sqlx::Error::PoolTimedOut) => Err(self.why_unreachable().await.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// The random tag of a revision at which a recent transaction ended. Copies of a database that were changed separately
    /// have different tags at the same revision. `None`: no transaction ended there, too many have followed, or an older
    /// version wrote it.
    ///
    /// # Errors
    /// A query failed.
    pub async fn tag(&self, revision: i64) -> Result<Option<String>, Error> {
        let query = sqlx::query("SELECT tag FROM revision_tag WHERE revision = $1").bind(revision);
        match query.fetch_optional(&self.pool).await {
            Ok(row) => Ok(row.map(|row| row.try_get("tag")).transpose()?),
            // A database from before there were tags.
            Err(sqlx::Error::Database(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
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

/// A random number, in hexadecimal.
fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Reserves `count` revisions, tags the last, and returns the first. The row lock serializes writers until their
/// transactions end, so revisions become visible in order.
async fn take_revisions(connection: &mut AnyConnection, count: usize) -> Result<i64, Error> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let query = "UPDATE revision SET value = value + $1 WHERE id = 1 RETURNING value";
    let row = sqlx::query(query).bind(count).fetch_one(&mut *connection).await?;
    let last: i64 = row.try_get("value")?;
    if count > 0 {
        let query = "INSERT INTO revision_tag (revision, tag) VALUES ($1, $2)";
        sqlx::query(query).bind(last).bind(random()).execute(&mut *connection).await?;
        let query = "DELETE FROM revision_tag WHERE revision <= \
                     (SELECT revision FROM revision_tag ORDER BY revision DESC LIMIT 1 OFFSET $1)";
        sqlx::query(query).bind(TAGS).execute(connection).await?;
    }
    Ok(last - count + 1)
}

#[cfg(test)]
mod tests;
