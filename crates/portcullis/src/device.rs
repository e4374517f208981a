//! `portcullis device`: changes the device registry. Secrets are printed only when they are generated.

use std::collections::HashSet;
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow};
use portcullis_gateway::PasswordHash;
use portcullis_gateway::config::registry_urls;
use portcullis_gateway::crypto::random_key;
use portcullis_gateway::peer::Certificate;
use portcullis_gateway::read_chain;
use portcullis_registry::{self as registry, Device, Error, Hash, PAGE, Psk, Registry, State, Url};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::{DatabaseArguments, DeviceArguments, DeviceCommand, DeviceProperties, DeviceState, Existing};
use crate::output::{complain, say};
use crate::passwd;
use crate::report::Failure;

/// An import reports progress after this many passwords: hashing one takes about 30 ms.
const PROGRESS: usize = 500;
/// An import of more devices than this takes long enough to announce it.
const BATCH: usize = 1000;

pub(crate) fn device(arguments: DeviceArguments) -> Result<(), Failure> {
    let DeviceArguments { database, command } = arguments;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio.block_on(async {
        let url = url(database)?;
        let may_create = matches!(command, DeviceCommand::Add { .. } | DeviceCommand::Import { .. });
        let only_reads = matches!(command, DeviceCommand::List { .. } | DeviceCommand::Show { .. });
        if let Some(path) = url.path().filter(|path| !may_create && !Path::new(path).exists()) {
            let hint = "`portcullis device add` creates it";
            return Err(Failure::hint(anyhow!("there is no registry at `{path}`"), hint));
        }
        let opened =
            if only_reads || !may_create { open_existing(&url, only_reads).await } else { Registry::open(&url).await };
        let registry = opened.map_err(|error| {
            let hint = match url.path() {
                Some(path) => {
                    format!("check that `{path}` is a registry and that its directory exists and is writable")
                }
                None => "check that PostgreSQL is reachable, and the user and password in the URL".to_owned(),
            };
            Failure::hint(error, hint)
        })?;
        run(&registry, command).await
    })
}

/// Opens a registry, but makes none of another database. Its schema is migrated only if something is to be changed.
async fn open_existing(url: &Url, only_reads: bool) -> Result<Registry, Error> {
    let registry = Registry::connect_lazy(url)?;
    registry.check().await?;
    if !only_reads {
        registry.migrate().await?;
    }
    Ok(registry)
}

/// Finds the registry: from `-c`, otherwise from `--database` or its environment variable.
fn url(arguments: DatabaseArguments) -> Result<Url, Failure> {
    let Some(path) = arguments.config else {
        let Some(text) = arguments.database else {
            let hint = "pass --database sqlite:devices.db or -c portcullis.toml, or set PORTCULLIS_DATABASE";
            return Err(Failure::hint(anyhow!("no registry specified"), hint));
        };
        return Url::parse(&text, str::to_owned).map_err(|problem| anyhow!("invalid registry URL: {problem}").into());
    };
    let mut urls = registry_urls(&path).map_err(|problems| Failure::Configuration(Box::new(problems)))?;
    match urls.len() {
        1 => Ok(urls.remove(0)),
        0 => {
            let error = anyhow!("`{}` has no [[authenticator]] of kind `registry`", path.display());
            Err(Failure::hint(error, "add one, or pass --database instead of -c"))
        }
        _ => {
            let error = anyhow!("`{}` has more than one registry", path.display());
            Err(Failure::hint(error, "choose one with --database instead of -c"))
        }
    }
}

async fn run(registry: &Registry, command: DeviceCommand) -> Result<(), Failure> {
    match command {
        DeviceCommand::Add { id, properties } => {
            let mut device = Device::new(id);
            apply(&mut device, properties)?;
            registry.add(std::slice::from_ref(&device), registry::Existing::Refuse).await.map_err(explain)?;
            say!("added {}", device.id);
        }
        DeviceCommand::Set { id, properties, remove_group, remove_attribute } => {
            let mut changed = Device::new("");
            apply(&mut changed, properties)?;
            let device = registry.change(&id, |device| {
                device.groups.extend(changed.groups);
                device.groups.retain(|group| !remove_group.contains(group));
                dedup(&mut device.groups);
                device.attributes.extend(changed.attributes);
                device.attributes.retain(|name, _| !remove_attribute.contains(name));
            });
            show(&device.await.map_err(explain)?);
        }
        DeviceCommand::List { group, state, json } => list(registry, group.as_deref(), state, json).await?,
        DeviceCommand::Show { id, json } => {
            let device = registry.get(&id).await?.ok_or_else(|| explain(Error::Unknown(id)))?;
            if json { say!("{}", describe(&device)) } else { show(&device) }
        }
        DeviceCommand::Enable { id } => set_state(registry, &id, State::Enabled).await?,
        DeviceCommand::Disable { id } => set_state(registry, &id, State::Disabled).await?,
        DeviceCommand::Ban { id, period } => {
            let until = now().saturating_add(i64::try_from(period.as_secs()).unwrap_or(i64::MAX));
            let ban = |device: &mut Device| {
                if device.state == State::Disabled {
                    return Err(Error::Invalid(format!("device `{}` is disabled and cannot be banned", device.id)));
                }
                device.state = State::Banned(until);
                Ok(())
            };
            match registry.try_change(&id, ban).await {
                Ok(device) => say!("{id}: {}", state_text(device.state)),
                Err(error @ Error::Invalid(_)) => {
                    let hint = format!(
                        "a ban expires and would re-enable the device; run `portcullis device enable {id}` first if you want that"
                    );
                    return Err(Failure::hint(error, hint));
                }
                Err(error) => return Err(explain(error)),
            }
        }
        DeviceCommand::Remove { id } => {
            registry.remove(&id).await.map_err(explain)?;
            say!("removed {id}");
        }
        DeviceCommand::Psk { id, identity, stdin, remove } => set_psk(registry, &id, identity, stdin, remove).await?,
        DeviceCommand::Password { id, remove } => {
            let hash =
                if remove { None } else { Some(Hash(passwd::hash(&passwd::ask(&format!("Password for {id}: "))?)?)) };
            registry.change(&id, |device| device.password_hash = hash).await.map_err(explain)?;
            say!("{id}: password {}", if remove { "removed" } else { "set" });
        }
        DeviceCommand::Pin { id, certificate, fingerprint, remove } => {
            let mut pins = fingerprint;
            for path in certificate {
                let chain = read_chain(&path).map_err(|complaint| anyhow!(complaint.message))?;
                let leaf = chain.first().and_then(|leaf| Certificate::from_der(leaf));
                let [_, key] = leaf
                    .with_context(|| format!("`{}` does not contain a certificate", path.display()))?
                    .fingerprints();
                pins.push(hex::encode(key));
            }
            let lower = |pins: Vec<String>| pins.into_iter().map(|pin| pin.replace(':', "").to_ascii_lowercase());
            let (pins, remove): (Vec<_>, HashSet<_>) = (lower(pins).collect(), lower(remove).collect());
            let device = registry.change(&id, |device| {
                device.pins.extend(pins);
                device.pins.retain(|pin| !remove.contains(pin));
                dedup(&mut device.pins);
            });
            show(&device.await.map_err(explain)?);
        }
        DeviceCommand::Import { file, existing } => import(registry, &file, existing).await?,
    }
    Ok(())
}

async fn set_state(registry: &Registry, id: &str, state: State) -> Result<(), Failure> {
    registry.change(id, |device| device.state = state).await.map_err(explain)?;
    say!("{id}: {}", state_text(state));
    Ok(())
}

async fn set_psk(
    registry: &Registry,
    id: &str,
    identity: Option<String>,
    stdin: bool,
    remove: bool,
) -> Result<(), Failure> {
    if remove {
        registry.change(id, |device| device.psk = None).await.map_err(explain)?;
        say!("{id}: pre-shared key removed");
        return Ok(());
    }
    let key = if stdin {
        secret_from_hex(&passwd::read_line()?).context("the key on standard input is not hexadecimal")?
    } else {
        random_key()
    };
    let identity = identity.unwrap_or_else(|| id.to_owned());
    let psk = Psk { identity: identity.clone(), key: key.clone() };
    registry.change(id, |device| device.psk = Some(psk)).await.map_err(explain)?;
    say!("identity: {identity}");
    if !stdin {
        // The only time that the key is printed.
        say!("key: {}", hex::encode(&key));
    }
    Ok(())
}

async fn list(registry: &Registry, group: Option<&str>, state: Option<DeviceState>, json: bool) -> Result<(), Failure> {
    let mut after = String::new();
    loop {
        let page = registry.list(&after).await?;
        for device in &page {
            let is_in_state = match (state, device.state.at(now())) {
                (None, _)
                | (Some(DeviceState::Enabled), State::Enabled)
                | (Some(DeviceState::Disabled), State::Disabled)
                | (Some(DeviceState::Banned), State::Banned(_)) => true,
                (Some(_), _) => false,
            };
            if !is_in_state || group.is_some_and(|group| !device.groups.iter().any(|other| other == group)) {
                continue;
            }
            if json {
                say!("{}", describe(device));
            } else {
                let credentials = credentials(device);
                let credentials = if credentials.is_empty() { "-".to_owned() } else { credentials.join(",") };
                let groups = if device.groups.is_empty() { "-".to_owned() } else { device.groups.join(",") };
                say!("{}\t{}\t{credentials}\t{groups}", device.id, state_text(device.state));
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after.clone_from(&last.id),
            _ => return Ok(()),
        }
    }
}

/// A device as JSON, without its secrets.
fn describe(device: &Device) -> Value {
    let (state, until) = match device.state.at(now()) {
        State::Enabled => ("enabled", None),
        State::Disabled => ("disabled", None),
        State::Banned(until) => ("banned", Some(until)),
    };
    json!({
        "id": device.id,
        "state": state,
        "banned_until": until,
        "groups": device.groups,
        "attributes": device.attributes,
        "pins": device.pins,
        "psk_identity": device.psk.as_ref().map(|psk| &psk.identity),
        "has_password": device.password_hash.is_some(),
    })
}

fn show(device: &Device) {
    say!("id:         {}", device.id);
    say!("state:      {}", state_text(device.state));
    say!("groups:     {}", device.groups.join(", "));
    for (name, value) in &device.attributes {
        say!("attribute:  {name} = {value}");
    }
    for pin in &device.pins {
        say!("pin:        {pin}");
    }
    if let Some(psk) = &device.psk {
        say!("psk:        {}", psk.identity);
    }
    if device.password_hash.is_some() {
        say!("password:   set");
    }
}

fn credentials(device: &Device) -> Vec<&'static str> {
    let kinds =
        [("pin", !device.pins.is_empty()), ("psk", device.psk.is_some()), ("password", device.password_hash.is_some())];
    kinds.into_iter().filter(|(_, is_set)| *is_set).map(|(kind, _)| kind).collect()
}

fn state_text(state: State) -> String {
    match state.at(now()) {
        State::Enabled => "enabled".to_owned(),
        State::Disabled => "disabled".to_owned(),
        State::Banned(until) => {
            let at = chrono::DateTime::from_timestamp(until, 0).map(|at| at.to_rfc3339());
            at.map_or_else(|| "banned".to_owned(), |at| format!("banned until {at}"))
        }
    }
}

/// Adds the groups and attributes of the command line to a device.
fn apply(device: &mut Device, properties: DeviceProperties) -> Result<(), Failure> {
    device.groups.extend(properties.group);
    dedup(&mut device.groups);
    for attribute in properties.attribute {
        let (name, value) = attribute.split_once('=').ok_or_else(|| {
            Failure::hint(
                anyhow!("attribute `{attribute}` is not of the form NAME=VALUE"),
                "example: --attribute site=lyon",
            )
        })?;
        device.attributes.insert(name.to_owned(), attribute_value(value));
    }
    Ok(())
}

/// Parses the value as JSON; anything else is text.
fn attribute_value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

async fn import(registry: &Registry, file: &Path, existing: Existing) -> Result<(), Failure> {
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot read `{}`", file.display()))?)
    };
    let devices = read_csv(input, &file.display().to_string())?;
    let existing = match existing {
        Existing::Refuse => registry::Existing::Refuse,
        Existing::Skip => registry::Existing::Skip,
        Existing::Replace => registry::Existing::Replace,
    };
    if devices.len() > BATCH && std::io::stderr().is_terminal() {
        complain!("importing {} devices in one transaction", devices.len());
    }
    let written = registry.add(&devices, existing).await.map_err(|error| match error {
        Error::Exists(_) => {
            Failure::hint(error, "use `--existing skip` to keep it, or `--existing replace` to overwrite it")
        }
        error => error.into(),
    })?;
    say!("imported {written} of {} devices", devices.len());
    Ok(())
}

/// The columns of a CSV file that are not attributes.
const COLUMNS: [&str; 8] = ["id", "state", "groups", "pins", "psk_identity", "psk", "password_hash", "password"];

fn read_csv(input: impl Read, name: &str) -> Result<Vec<Device>, Failure> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(input);
    let columns = reader.headers().with_context(|| format!("`{name}` is not valid CSV"))?.clone();
    if !columns.iter().any(|column| column == "id") {
        let hint = "the first line must name the columns, for example: id,groups,psk,site";
        return Err(Failure::hint(anyhow!("`{name}` has no column `id`"), hint));
    }
    for column in &columns {
        // A misspelt `state` would enable devices that are to be disabled.
        let is_meant = |known: &&&str| {
            let distance = strsim::osa_distance(&column.to_ascii_lowercase(), known);
            distance == 0 || (distance == 1 && known.len() > 3)
        };
        if let Some(known) = COLUMNS.iter().find(is_meant).filter(|_| !COLUMNS.contains(&column)) {
            let hint = "columns of other names become attributes";
            return Err(Failure::hint(anyhow!("`{name}` has a column `{column}`: did you mean `{known}`?"), hint));
        }
    }
    let (mut devices, mut seen) = (Vec::new(), HashSet::new());
    for record in reader.records() {
        let record = record.with_context(|| format!("cannot read `{name}`"))?;
        let line = record.position().map_or(0, csv::Position::line);
        let device =
            device_of(&columns, &record).with_context(|| format!("invalid device on line {line} of `{name}`"))?;
        device.validate().map_err(|problem| anyhow!("invalid device on line {line} of `{name}`: {problem}"))?;
        if !seen.insert(device.id.clone()) {
            return Err(anyhow!("duplicate device `{}` on line {line} of `{name}`", device.id).into());
        }
        devices.push(device);
        if devices.len() % PROGRESS == 0 && columns.iter().any(|column| column == "password") {
            complain!("hashed {} passwords", devices.len());
        }
    }
    Ok(devices)
}

/// Reads a device from a line of the CSV file. Errors never quote a value: some are secrets.
fn device_of(columns: &csv::StringRecord, record: &csv::StringRecord) -> anyhow::Result<Device> {
    let mut device = Device::new("");
    let (mut identity, mut key) = (None, None);
    for (column, value) in columns.iter().zip(record).filter(|(_, value)| !value.is_empty()) {
        let list = || value.split(';').map(str::trim).filter(|item| !item.is_empty());
        match column {
            "id" => value.clone_into(&mut device.id),
            "state" => {
                device.state = match value {
                    "enabled" => State::Enabled,
                    "disabled" => State::Disabled,
                    _ => return Err(anyhow!("`state` must be `enabled` or `disabled`")),
                }
            }
            "groups" => device.groups = list().map(str::to_owned).collect(),
            "pins" => device.pins = list().map(|pin| pin.replace(':', "").to_ascii_lowercase()).collect(),
            "psk_identity" => identity = Some(value.to_owned()),
            "psk" => key = Some(secret_from_hex(value).context("`psk` is not hexadecimal")?),
            "password_hash" => {
                PasswordHash::parse(value).map_err(|problem| anyhow!("`password_hash`: {problem}"))?;
                device.password_hash = Some(Hash(value.to_owned()));
            }
            "password" => {
                let hash = PasswordHash::make(value.as_bytes()).map_err(|problem| anyhow!(problem))?;
                device.password_hash = Some(Hash(hash));
            }
            attribute => drop(device.attributes.insert(attribute.to_owned(), value.into())),
        }
    }
    device.psk = match (identity, key) {
        (identity, Some(key)) => Some(Psk { identity: identity.unwrap_or_else(|| device.id.clone()), key }),
        (None, None) => None,
        (Some(_), None) => return Err(anyhow!("`psk_identity` is set, but `psk` is missing")),
    };
    Ok(device)
}

fn secret_from_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    hex::decode(text).ok().map(Zeroizing::new)
}

/// Adds a hint to an error of the registry.
fn explain(error: Error) -> Failure {
    match &error {
        Error::Unknown(_) => Failure::hint(error, "`portcullis device list` shows all devices"),
        Error::Exists(id) => {
            let hint = format!("`portcullis device show {id}` shows it, `portcullis device set {id}` changes it");
            Failure::hint(error, hint)
        }
        _ => error.into(),
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}
