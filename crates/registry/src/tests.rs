//! Tests on SQLite. The interop tests cover PostgreSQL.

use std::os::unix::fs::PermissionsExt;

use super::*;
use serde_json::json;

async fn registry(dir: &tempfile::TempDir) -> Registry {
    let path = dir.path().join("devices.db").display().to_string();
    Registry::open(&Url::parse(&format!("sqlite:{path}"), str::to_owned).unwrap()).await.unwrap()
}

fn device(id: &str) -> Device {
    Device {
        state: State::Banned(1_900_000_000),
        groups: vec!["a".to_owned(), "b c".to_owned()],
        attributes: json!({ "site": "Köln", "floor": 3 }).as_object().unwrap().clone(),
        pins: vec!["0".repeat(64), "f".repeat(64)],
        psk: Some(Psk { identity: format!("psk of {id}"), key: hex::decode("0a".repeat(16)).unwrap().into() }),
        password_hash: Some(Hash("$argon2id$...".to_owned())),
        ..Device::new(id)
    }
}

#[tokio::test]
async fn what_is_put_in_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let one = device("one");
    registry.add(&[one.clone(), Device::new("two")], Existing::Refuse).await.unwrap();
    assert_eq!(registry.get("one").await.unwrap(), Some(one.clone()));
    assert_eq!(registry.list("").await.unwrap(), [one.clone(), Device::new("two")]);
    assert_eq!(registry.list("one").await.unwrap(), [Device::new("two")]);
    let changed = registry.change("two", |device| device.groups.push("x".to_owned())).await.unwrap();
    assert_eq!(registry.get("two").await.unwrap(), Some(changed));
    registry.remove("one").await.unwrap();
    assert_eq!(registry.get("one").await.unwrap(), None);
    registry.add(&[one], Existing::Refuse).await.unwrap();
    assert!(!format!("{:?}", registry.get("one").await).contains("argon2id"));
    let mode = std::fs::metadata(dir.path().join("devices.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the file contains keys");
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    registry.add(&[device("one")], Existing::Refuse).await.unwrap();
    let before = registry.head().await.unwrap().revision;
    assert!(matches!(
        registry.add(&[Device::new("new"), Device::new("one")], Existing::Refuse).await,
        Err(Error::Exists(_))
    ));
    assert_eq!(registry.get("new").await.unwrap(), None, "all or none");
    assert!(
        matches!(registry.add(&[device("two")], Existing::Refuse).await, Err(Error::Taken(_))),
        "the PSK identity of another device"
    );
    let pinned = Device { pins: device("one").pins, ..Device::new("two") };
    assert!(
        matches!(registry.add(&[pinned], Existing::Refuse).await, Err(Error::Taken(_))),
        "the pin of another device"
    );
    assert!(matches!(registry.change("two", |_| ()).await, Err(Error::Unknown(_))));
    assert!(matches!(registry.remove("two").await, Err(Error::Unknown(_))));
    let long = "x".repeat(300);
    let psk = |key: &str| Some(Psk { identity: "i".to_owned(), key: hex::decode(key).unwrap().into() });
    for wrong in [
        Device::new(""),
        Device::new(&long),
        Device::new("a\nb"),
        Device { pins: vec!["F".repeat(64)], ..Device::new("x") },
        Device { psk: psk("0102"), ..Device::new("x") },
        Device {
            attributes: serde_json::from_str(&format!("{{\"a\":{}{}}}", "[".repeat(20), "]".repeat(20))).unwrap(),
            ..Device::new("x")
        },
        Device { attributes: json!({ "a": "x".repeat(9000) }).as_object().unwrap().clone(), ..Device::new("x") },
    ] {
        assert!(
            matches!(registry.add(std::slice::from_ref(&wrong), Existing::Refuse).await, Err(Error::Invalid(_))),
            "{wrong:?}"
        );
    }
    assert_eq!(registry.head().await.unwrap().revision, before);
    let again = [Device::new("one"), Device::new("two")];
    assert_eq!(registry.add(&again, Existing::Skip).await.unwrap(), 1);
    assert_eq!(registry.get("one").await.unwrap(), Some(device("one")));
    assert_eq!(registry.add(&again, Existing::Replace).await.unwrap(), 2);
    assert_eq!(registry.get("one").await.unwrap(), Some(Device::new("one")));
}

#[tokio::test]
async fn changes_are_told_since_a_number() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    assert_eq!(registry.changes(0).await.unwrap(), []);
    registry.add(&[Device::new("a"), device("b"), Device::new("c")], Existing::Refuse).await.unwrap();
    let all = registry.changes(0).await.unwrap();
    let seen: Vec<(i64, &str)> = all.iter().map(|change| (change.revision, change.id.as_str())).collect();
    assert_eq!(seen, [(1, "a"), (2, "b"), (3, "c")]);
    assert_eq!(all[1].device, Some(device("b")));
    registry.remove("b").await.unwrap();
    registry.change("a", |device| device.state = State::Disabled).await.unwrap();
    let since = registry.changes(3).await.unwrap();
    let seen: Vec<_> = since.iter().map(|change| (change.id.as_str(), change.device.is_some())).collect();
    assert_eq!(seen, [("b", false), ("a", true)]);
    assert_eq!(registry.changes(5).await.unwrap(), []);
    assert_eq!(registry.head().await.unwrap().revision, 5);
}

#[tokio::test]
async fn a_device_that_cannot_be_read_keeps_nobody_from_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    registry.add(&[Device::new("a"), Device::new("b"), Device::new("c")], Existing::Refuse).await.unwrap();
    for broken in
        ["attributes = '{'", "attributes = '{}', password_hash = x'00ff'", "password_hash = NULL, device_groups = 5"]
    {
        let query = sqlx::AssertSqlSafe(format!("UPDATE device SET {broken} WHERE id = 'b'"));
        sqlx::raw_sql(query).execute(&registry.pool).await.unwrap();
        let all = registry.changes(0).await.unwrap();
        let seen: Vec<_> = all.iter().map(|change| (change.id.as_str(), change.device.is_some())).collect();
        assert_eq!(seen, [("a", true), ("b", false), ("c", true)], "{broken}");
    }
    assert!(matches!(registry.get("b").await, Err(Error::Corrupt(_))));
    // Without its pin, any certificate would be that of the device.
    for pin in ["'zz'", "x'00ff'"] {
        let query = format!("DELETE FROM pin; INSERT INTO pin (fingerprint, device_id) VALUES ({pin}, 'c')");
        sqlx::raw_sql(sqlx::AssertSqlSafe(query)).execute(&registry.pool).await.unwrap();
        let all = registry.changes(0).await.unwrap();
        let seen: Vec<_> = all.iter().map(|change| (change.id.as_str(), change.device.is_some())).collect();
        assert_eq!(seen, [("a", true), ("b", false), ("c", false)], "{pin}");
    }
    sqlx::raw_sql("DELETE FROM pin").execute(&registry.pool).await.unwrap();
    registry.remove("b").await.unwrap();
    registry.add(&[Device::new("b")], Existing::Replace).await.unwrap();
    assert_eq!(registry.get("b").await.unwrap(), Some(Device::new("b")), "it can be added again");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("devices.db");
    for content in
        [&b"id,group\nthing001,pumps\n".repeat(100)[..], &[&b"SQLite format 3\0"[..], &[b'x'; 4096]].concat()]
    {
        std::fs::write(&path, content).unwrap();
        let url = Url::parse(&format!("sqlite:{}", path.display()), str::to_owned).unwrap();
        let opened = Registry::open(&url).await.map(drop);
        assert!(matches!(opened, Err(Error::NotADatabase)), "{opened:?}");
        let head = Registry::connect_lazy(&url).unwrap().head().await;
        assert!(matches!(head, Err(Error::NotADatabase)), "{head:?}");
    }
}

#[tokio::test]
async fn writers_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (registry(&dir).await, registry(&dir).await);
    let add = async |registry: &Registry, prefix: &str| {
        for n in 0..50 {
            registry.add(&[Device::new(format!("{prefix}{n}"))], Existing::Refuse).await.unwrap();
        }
    };
    tokio::join!(add(&one, "a"), add(&other, "b"));
    let revisions: Vec<i64> = one.changes(0).await.unwrap().iter().map(|change| change.revision).collect();
    assert_eq!(revisions, (1..=100).collect::<Vec<i64>>());
}

#[test]
fn urls() {
    let parse = |text: &str| Url::parse(text, |path| format!("/etc/{path}"));
    assert_eq!(parse("sqlite:a.db").unwrap().path(), Some("/etc/a.db"));
    for wrong in ["", "a.db", "sqlite:", "sqlite:a?mode=memory", "sqlite::memory:", "mysql://a/b"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    assert!(!parse("postgres://u:secret@localhost/d").unwrap().is_unverified());
    assert!(parse("postgres://u:secret@db.example.com/d").unwrap().is_unverified());
    assert!(!parse("postgres://u:secret@db.example.com/d?sslmode=verify-full").unwrap().is_unverified());
    assert!(!format!("{:?}", parse("postgres://u:secret@localhost/d")).contains("secret"));
    let unverified = "postgres://u:sslmode=verify-full@db.example.com/d?sslmode=disable";
    assert!(parse(unverified).unwrap().is_unverified());
    // sqlx would log the value of a parameter that it does not know.
    for unknown in ["pasword=secret", "user=a&secret", "%70assword=secret", "sslmode=require&Password=secret#x"] {
        let error = parse(&format!("postgres://db.example.com/d?{unknown}")).unwrap_err();
        assert!(error.contains("unknown parameter") && !error.contains("secret"), "{error}");
    }
}

#[test]
fn a_migration_that_was_released_does_not_change() {
    let checksums: Vec<_> = MIGRATIONS.iter().map(|migration| hex::encode(&migration.checksum[..8])).collect();
    assert_eq!(
        checksums,
        ["10e0d50e7593bc74", "4fe2b96d4b36ed01", "9b5e959da1d91c67"],
        "existing databases would fail to open"
    );
}

#[tokio::test]
async fn copies_that_were_changed_separately_have_different_tags() {
    let dir = tempfile::tempdir().unwrap();
    let original = registry(&dir).await;
    let first = original.head().await.unwrap();
    assert!(first.identity.is_some() && first.tag.is_some(), "{first:?}");
    original.add(&[Device::new("a"), Device::new("b")], Existing::Refuse).await.unwrap();
    let shared = original.head().await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("devices.db"), elsewhere.path().join("devices.db")).unwrap();
    let copy = registry(&elsewhere).await;
    assert_eq!(copy.head().await.unwrap(), shared);
    original.remove("a").await.unwrap();
    copy.remove("b").await.unwrap();
    let (original_head, copy_head) = (original.head().await.unwrap(), copy.head().await.unwrap());
    assert_eq!((original_head.revision, &original_head.identity), (copy_head.revision, &copy_head.identity));
    assert_ne!(original_head.tag, copy_head.tag);
    for registry in [&original, &copy] {
        assert_eq!(registry.tag(first.revision).await.unwrap(), first.tag);
        assert_eq!(registry.tag(1).await.unwrap(), None, "no transaction ended there");
        assert_eq!(registry.tag(shared.revision).await.unwrap(), shared.tag);
    }
}

#[tokio::test]
async fn a_registry_of_an_older_version_gets_its_identity_and_tag_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let opened = registry(&dir).await;
    opened.add(&[Device::new("a")], Existing::Refuse).await.unwrap();
    let identity = opened.head().await.unwrap().identity;
    sqlx::raw_sql("DROP TABLE revision_tag; DELETE FROM _sqlx_migrations WHERE version = 3")
        .execute(&opened.pool)
        .await
        .unwrap();
    assert_eq!(opened.head().await.unwrap(), Head { revision: 1, identity, tag: None });
    assert_eq!(opened.tag(1).await.unwrap(), None);
    sqlx::raw_sql("DROP TABLE registry_identity; DELETE FROM _sqlx_migrations WHERE version = 2")
        .execute(&opened.pool)
        .await
        .unwrap();
    assert_eq!(opened.head().await.unwrap(), Head { revision: 1, ..Head::default() });
    let head = registry(&dir).await.head().await.unwrap();
    assert!(head.identity.is_some() && head.tag.is_some(), "{head:?}");
}

#[tokio::test]
async fn tags_of_old_transactions_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) \
                INSERT INTO revision_tag SELECT i, 'x' FROM n; UPDATE revision SET value = 5000";
    sqlx::raw_sql(fill).execute(&registry.pool).await.unwrap();
    registry.add(&[Device::new("a")], Existing::Refuse).await.unwrap();
    let oldest = 5001 - TAGS + 1;
    assert_eq!(registry.tag(oldest - 1).await.unwrap(), None);
    assert_eq!(registry.tag(oldest).await.unwrap().as_deref(), Some("x"));
}
