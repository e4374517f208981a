//! The database of the device registry: outages, replacement, restores, and more devices than the replica holds.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use portcullis_registry::{Device, State};
use portcullis_testkit::{Broker, TestGateway, advance, connect_as, soon};

use crate::devices::{BOUND, LATER, REFUSED, add, plain, registry, table, with_password};

/// Overwrites a database with what is none. Returns its content.
fn make_unreadable(path: &Path) -> Vec<u8> {
    let kept = fs::read(path).unwrap();
    fs::write(path, [&b"SQLite format 3\0"[..], &[b'x'; 4096]].concat()).unwrap();
    kept
}

/// Reloads the configuration. A reload waits for the registry, but not for ever.
async fn reload_without_database(gateway: &TestGateway) {
    let passing = async {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            advance(Duration::from_millis(500));
        }
    };
    tokio::select! {
        reloaded = gateway.gateway.reload() => drop(reloaded.unwrap()),
        () = passing => {}
    }
}

#[tokio::test]
async fn an_outage_keeps_those_who_are_known() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let database = registry(dir.path()).await;
    add(&database, with_password("thing001")).await;
    let gateway = plain(dir.path(), &broker, "").await;
    assert_eq!(
        gateway.refusal(&connect_as("x", "stranger", b"secret")).await,
        REFUSED,
        "the replica is complete: the device does not exist"
    );
    let (path, away) = (dir.path().join("devices.db"), dir.path().join("away.db"));
    database.close().await;
    fs::rename(&path, &away).unwrap();
    // Until the gateway notices: then perhaps it is known by now.
    let mut refusals = 1;
    soon("an uncertain answer", async {
        loop {
            advance(Duration::from_secs(1));
            refusals += 1;
            match &*gateway.refusal(&connect_as("x", "stranger", b"secret")).await {
                LATER => break,
                answer => assert_eq!(answer, REFUSED),
            }
        }
    })
    .await;
    let line = gateway.lines(refusals).await.pop().unwrap();
    assert!(line.contains(" 503 ") && line.ends_with(" registry_unavailable"), "{line}");
    let _session = gateway.session(&broker, &connect_as("x", "thing001", b"secret")).await;
    assert_eq!(gateway.refusal(&connect_as("x", "thing001", b"wrong")).await, LATER, "the same answer for both");
    // Replaced by another database with fewer changes: the devices of the first one are gone.
    let (mut old, _connection) = gateway.session(&broker, &connect_as("x", "thing001", b"secret")).await;
    let fresh = tempfile::tempdir().unwrap();
    let other = registry(fresh.path()).await;
    add(&other, with_password("thing002")).await;
    other.close().await;
    fs::rename(fresh.path().join("devices.db"), &path).unwrap();
    old.read_to_end().await;
    let _session = gateway.session(&broker, &connect_as("x", "thing002", b"secret")).await;
    assert_eq!(gateway.refusal(&connect_as("x", "thing001", b"secret")).await, REFUSED);
}

#[tokio::test]
async fn a_reload_that_reads_the_registry_anew_drops_nobody() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let database = registry(dir.path()).await;
    add(&database, with_password("thing001")).await;
    let gateway = plain(dir.path(), &broker, "").await;
    let (mut client, mut at_broker) = gateway.session(&broker, &connect_as("x", "thing001", b"secret")).await;
    // Another replica, whose database cannot be read.
    database.close().await;
    let path = dir.path().join("devices.db");
    let kept = make_unreadable(&path);
    let text = fs::read_to_string(gateway.path()).unwrap();
    let text = text.split("[access_log]").next().unwrap();
    gateway.write(&text.replace("kind = \"registry\"", "kind = \"registry\"\nmax_devices = 10"));
    // A reload waits for the registry, but not for ever.
    reload_without_database(&gateway).await;
    gateway.gateway.run_maintenance().await;
    client.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
    fs::write(&path, kept).unwrap();
    // Once it has been read.
    let _other = gateway.session_at_last(&broker, &connect_as("x", "thing001", b"secret")).await;
    gateway.gateway.run_maintenance().await;
    client.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn more_devices_than_are_kept_are_refused_until_there_is_room() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = registry(dir.path()).await;
    add(&registry, with_password("one")).await;
    add(&registry, with_password("two")).await;
    let listener = TestGateway::LISTENER.replace("\"tls\"", "\"tcp\"");
    let (table, upstream) = (table(dir.path(), "max_devices = 1\n"), broker.upstream());
    let gateway = TestGateway::start(&format!("{listener}authenticate = [\"fleet\"]\n{upstream}{table}")).await;
    let _one = gateway.session(&broker, &connect_as("x", "one", b"secret")).await;
    assert_eq!(gateway.refusal(&connect_as("x", "two", b"secret")).await, LATER);
    registry.remove("one").await.unwrap();
    let _two = gateway.session_at_last(&broker, &connect_as("x", "two", b"secret")).await;
}

#[tokio::test]
async fn devices_beyond_the_maximum_are_still_judged() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let registry = registry(dir.path()).await;
    let all = ["kept", "disabled", "removed", "changed", "stays"];
    for id in all {
        add(&registry, with_password(id)).await;
    }
    let gateway = plain(dir.path(), &broker, "").await;
    let mut sessions = Vec::new();
    for id in all {
        sessions.push(gateway.session(&broker, &connect_as(id, id, b"secret")).await);
    }
    let text = fs::read_to_string(gateway.path()).unwrap();
    let text = text.split("[access_log]").next().unwrap();
    gateway.write(&text.replace("kind = \"registry\"", "kind = \"registry\"\nmax_devices = 1"));
    gateway.gateway.reload().await.unwrap();
    assert_eq!(gateway.refusal(&connect_as("x", "stays", b"secret")).await, LATER);
    for (client, at_broker) in &mut sessions {
        client.write(b"\xc0\x00").await;
        at_broker.expect(b"\xc0\x00").await;
    }
    registry.change("disabled", |device| device.state = State::Disabled).await.unwrap();
    registry.remove("removed").await.unwrap();
    registry.change("changed", |device| device.password_hash = None).await.unwrap();
    for (index, reason) in [(1, "device_disabled"), (2, "device_removed"), (3, "device_changed")] {
        let begin = Instant::now();
        sessions[index].0.read_to_end().await;
        assert!(begin.elapsed() < BOUND, "{reason}: {:?}", begin.elapsed());
    }
    let lines = gateway.lines(4).await;
    for (id, reason) in [("disabled", "device_disabled"), ("removed", "device_removed"), ("changed", "device_changed")]
    {
        assert!(lines.iter().any(|line| line.ends_with(&format!(" {id} session_{reason}"))), "{lines:#?}");
    }
    let (client, at_broker) = &mut sessions[4];
    client.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
}

#[tokio::test]
async fn a_registry_that_answers_late_judges_all_that_stands_on_it() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let database = registry(dir.path()).await;
    add(&database, with_password("thing001")).await;
    let gateway = plain(dir.path(), &broker, "").await;
    let (mut client, mut at_broker) = gateway.session(&broker, &connect_as("x", "thing001", b"secret")).await;
    // Another registry, which cannot be read yet, and does not have the device.
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let other = registry(&elsewhere).await;
    add(&other, with_password("thing002")).await;
    other.close().await;
    let path = elsewhere.join("devices.db");
    let kept = make_unreadable(&path);
    let text = fs::read_to_string(gateway.path()).unwrap();
    let text = text.split("[access_log]").next().unwrap();
    gateway.write(&text.replace("/devices.db", "/elsewhere/devices.db"));
    reload_without_database(&gateway).await;
    gateway.gateway.run_maintenance().await;
    client.write(b"\xc0\x00").await;
    at_broker.expect(b"\xc0\x00").await;
    fs::write(&path, kept).unwrap();
    client.read_to_end().await;
    let lines = gateway.lines(1).await;
    assert!(lines[0].ends_with(" session_device_removed"), "{lines:?}");
}

#[tokio::test]
async fn a_registry_that_is_replaced_in_place_is_noticed_whatever_its_number() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
    let database = registry(dir.path()).await;
    add(&database, with_password("thing001")).await;
    let gateway = plain(dir.path(), &broker, "").await;
    let (mut old, _connection) = gateway.session(&broker, &connect_as("x", "thing001", b"secret")).await;
    let fresh = tempfile::tempdir().unwrap();
    let other = registry(fresh.path()).await;
    for id in ["thing002", "thing003", "thing004"] {
        add(&other, with_password(id)).await;
    }
    other.close().await;
    database.close().await;
    fs::write(dir.path().join("devices.db"), fs::read(fresh.path().join("devices.db")).unwrap()).unwrap();
    old.read_to_end().await;
    let _session = gateway.session(&broker, &connect_as("x", "thing002", b"secret")).await;
    assert_eq!(gateway.refusal(&connect_as("x", "thing001", b"secret")).await, REFUSED);
}

/// Copies a database over another one, as `cp` does: the file stays the same, and so do the connections to it.
fn copy_over(from: &Path, to: &Path) {
    fs::write(to, fs::read(from).unwrap()).unwrap();
}

#[tokio::test]
async fn a_copy_of_the_registry_that_was_changed_separately_takes_the_place_of_it() {
    // How many changes more than the original the copy has.
    for later in [0, 3] {
        let (dir, broker) = (tempfile::tempdir().unwrap(), Broker::start().await);
        let (path, elsewhere) = (dir.path().join("devices.db"), tempfile::tempdir().unwrap());
        let original = registry(dir.path()).await;
        for id in ["one", "two", "stays"] {
            add(&original, with_password(id)).await;
        }
        fs::copy(&path, elsewhere.path().join("devices.db")).unwrap();
        for _ in 0..2 {
            original.change("stays", |_| ()).await.unwrap();
        }
        let gateway = plain(dir.path(), &broker, "").await;
        let mut ended = Vec::new();
        for id in ["one", "two"] {
            ended.push(gateway.session(&broker, &connect_as(id, id, b"secret")).await);
        }
        let (mut client, mut at_broker) = gateway.session(&broker, &connect_as("x", "stays", b"secret")).await;
        let copy = registry(elsewhere.path()).await;
        for id in ["one", "two"] {
            copy.change(id, |device| device.state = State::Disabled).await.unwrap();
        }
        for number in 0..later {
            add(&copy, Device::new(format!("later{number}"))).await;
        }
        copy_over(&elsewhere.path().join("devices.db"), &path);
        for (session, _) in &mut ended {
            session.read_to_end().await;
        }
        for id in ["one", "two"] {
            assert_eq!(gateway.refusal(&connect_as("x", id, b"secret")).await, REFUSED, "{id}, {later} later changes");
        }
        client.write(b"\xc0\x00").await;
        at_broker.expect(b"\xc0\x00").await;
    }
}
