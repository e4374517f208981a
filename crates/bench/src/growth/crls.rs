//! Numbers of entries of a CRL -> memory, start, the cost of a connect.

use super::{Bench, connect_cost, mib};
use crate::crl;
use crate::peers::{More, Proxy, free_address};
use crate::report::Family;
use crate::startup;

const SIZES: [u32; 4] = [1000, 100_000, 1_000_000, 10_000_000];
/// Of the serial numbers, in bytes: with longer ones, the longest CRL would exceed what the gateway reads from a file.
const SERIAL_LEN: usize = 7;

pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Family> {
    let mut family = Family::new("entries of the CRL");
    let (load, pki) = (bench.load, bench.dir.join("pki"));
    let more = More { tls: "crl = [\"pki/root.crl\", \"pki/intermediate.crl\"]".to_owned(), ..More::default() };
    for entries in SIZES {
        eprintln!("a CRL of {entries} entries");
        std::fs::write(pki.join("intermediate.crl"), crl::long(&pki, entries, SERIAL_LEN, &[])?.der())?;
        let size = usize::try_from(entries)?;
        let address = free_address()?;
        let command = more.write(bench.binary, bench.dir, address, load.broker.address)?;
        let start = startup::median(load, command, address)?;
        family.add("start", "ms", size, start);
        let proxy = Proxy::portcullis_with(bench.binary, bench.dir, load.broker.address, &more).await?;
        family.add("memory (PSS)", "MiB", size, mib(proxy.pss()?));
        family.add("greatest memory while it starts", "MiB", size, mib(proxy.peak()?));
        family.add("full connect", "CPU µs", size, connect_cost(load, &proxy).await?);
        proxy.stop().await?;
    }
    Ok(family)
}
