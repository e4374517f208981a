//! Devices as rows of the database: reads, writes and decodes them.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Map;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use zeroize::Zeroizing;

use crate::device::is_fingerprint;
use crate::{Change, Device, Error, Hash, Psk, State};

pub(crate) async fn read(connection: &mut AnyConnection, id: &str) -> Result<Option<Device>, Error> {
    let rows = sqlx::query("SELECT * FROM device WHERE id = $1").bind(id).fetch_all(&mut *connection).await?;
    let query = "SELECT device_id, fingerprint FROM pin WHERE device_id = $1";
    let pins = sqlx::query(query).bind(id).fetch_all(connection).await?;
    Ok(changes(&rows, &pins)?.into_iter().find_map(|change| change.device))
}

pub(crate) async fn write(
    connection: &mut AnyConnection,
    revision: i64,
    id: &str,
    device: Option<&Device>,
) -> Result<(), Error> {
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

pub(crate) fn pins_by_device(pins: &[AnyRow]) -> Result<HashMap<String, Vec<String>>, Error> {
    let mut pins_of: HashMap<String, Vec<String>> = HashMap::new();
    for row in pins {
        // A pin that cannot be decoded must not leave the device without one: it is kept, as one that is not valid.
        let pin = row.try_get("fingerprint").unwrap_or_default();
        pins_of.entry(row.try_get("device_id")?).or_default().push(pin);
    }
    Ok(pins_of)
}

pub(crate) fn changes(rows: &[AnyRow], pins: &[AnyRow]) -> Result<Vec<Change>, Error> {
    let mut pins_of = pins_by_device(pins)?;
    rows.iter().map(|row| change(row, &mut pins_of)).collect()
}

pub(crate) fn change(row: &AnyRow, pins_of: &mut HashMap<String, Vec<String>>) -> Result<Change, Error> {
    let id: String = row.try_get("id").map_err(|_| Error::Corrupt(String::new()))?;
    let revision = row.try_get("revision")?;
    let corrupt = || Error::Corrupt(id.clone());
    // A value of another type, which something else has written, concerns this device alone.
    let text = |column: &str| row.try_get::<Option<String>, _>(column).map_err(|_| corrupt());
    let state = match text("state")?.as_deref() {
        Some("enabled") => State::Enabled,
        Some("disabled") => State::Disabled,
        Some("banned") => {
            let until = row.try_get::<Option<i64>, _>("banned_until").map_err(|_| corrupt())?;
            State::Banned(until.unwrap_or(i64::MAX))
        }
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
    if !pins.iter().all(|pin| is_fingerprint(pin)) {
        return Err(corrupt());
    }
    let password_hash = text("password_hash")?.map(Hash);
    let device = Device { id: id.clone(), state, groups, attributes, pins, psk, password_hash };
    Ok(Change { revision, id, device: Some(device) })
}
