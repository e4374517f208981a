//! Numbers of devices in a registry -> memory, start, the cost of a connect, and how long it takes to disable a device.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::{Bench, connect_cost, mib};
use crate::load::{DEVICE, mqtt, session_as};
use crate::peers::{More, Proxy, errors, free_address};
use crate::report::Family;

const SIZES: [usize; 3] = [1000, 100_000, 1_000_000];
const DEADLINE: Duration = Duration::from_secs(900);
/// Between two looks at the metrics while the registry is loaded.
const PAUSE: Duration = Duration::from_millis(50);

pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Family> {
    let mut family = Family::new("devices in the registry");
    let database = bench.dir.join("devices.db");
    let url = format!("sqlite:{}", database.display());
    for size in bench.sizes(&SIZES) {
        eprintln!("{size} devices");
        let file = bench.dir.join("devices.csv");
        list(&file, size)?;
        let begin = Instant::now();
        device(bench.binary, &url, &["import", &file.display().to_string()]).await?;
        family.add_total("import", "s", size, begin.elapsed().as_secs_f64());

        let admin = free_address()?;
        let more = More {
            admin: Some(admin),
            listener: "authenticate = [\"fleet\"]".to_owned(),
            tables: format!(
                "[[authenticator]]\nname = \"fleet\"\nkind = \"registry\"\ndatabase = \"{url}\"\ndevice = 'cert.subject.cn'\n"
            ),
            ..More::default()
        };
        let (load, begin) = (bench.load, Instant::now());
        let proxy = Proxy::portcullis_with(bench.binary, bench.dir, load.broker.address, &more).await?;
        // The listener accepts before.
        while !is_loaded(admin, size).await? {
            ensure!(begin.elapsed() < DEADLINE, "the gateway does not load its registry:\n{}", errors(bench.dir));
            sleep(PAUSE).await;
        }
        family.add_total("start, until all are loaded", "s", size, begin.elapsed().as_secs_f64());
        family.add_total("memory (PSS)", "MiB", size, mib(proxy.pss()?));
        let (connector, connect) = (load.connector(), mqtt::connect(DEVICE));
        let mut session =
            session_as(&connector, proxy.address, &connect).await.context("the device is not admitted")?;
        family.add("full connect", "CPU µs", size, connect_cost(load, &proxy).await?);

        device(bench.binary, &url, &["disable", DEVICE]).await?;
        let begin = Instant::now();
        let mut buffer = [0; 16];
        let _ = timeout(DEADLINE, session.read(&mut buffer))
            .await
            .context("the session of a disabled device does not end")?;
        family.add("from a change to the end of the session", "ms", size, begin.elapsed().as_secs_f64() * 1e3);
        let again = session_as(&connector, proxy.address, &connect).await;
        ensure!(again.is_err(), "a disabled device is admitted");
        proxy.stop().await?;
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", database.display()));
        }
    }
    Ok(family)
}

/// A CSV file with the device that connects, and others.
fn list(file: &Path, size: usize) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    writeln!(out, "id,groups,site\n{DEVICE},pumps,lyon")?;
    for n in 1..size {
        writeln!(out, "other{n:07},pumps,lyon")?;
    }
    Ok(out.flush()?)
}

/// Whether the gateway has loaded so many devices, and is certain that there are no more.
async fn is_loaded(admin: SocketAddr, size: usize) -> anyhow::Result<bool> {
    // It listens later than the listener.
    let Ok(mut socket) = TcpStream::connect(admin).await else { return Ok(false) };
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut metrics = String::new();
    timeout(DEADLINE, socket.read_to_string(&mut metrics)).await.context("the admin interface does not answer")??;
    let is = |name: &str, value: &str| {
        let values = metrics.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
        values.eq([value])
    };
    Ok(is("portcullis_registry_up{", "1") && is("portcullis_registry_devices{", &size.to_string()))
}

async fn device(binary: &Path, url: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(binary);
    command.arg("device").args(arguments).args(["--database", url]).kill_on_drop(true);
    let output = timeout(DEADLINE, command.output()).await.context("the registry does not answer")??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
