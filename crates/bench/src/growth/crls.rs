//! Numbers of entries of a CRL -> memory, start, the cost of a connect.

use super::{Bench, connect_cost, mib};
use crate::crl;
use crate::peers::More;
use crate::report::Family;

const SIZES: [usize; 4] = [1000, 100_000, 1_000_000, 10_000_000];
/// Of the serial numbers, in bytes: with longer ones, the longest CRL would exceed what the gateway reads from a file.
const SERIAL_LEN: usize = 7;

pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Family> {
    let mut family = Family::new("entries of the CRL");
    let pki = bench.dir.join("pki");
    let more = More { tls: "crl = [\"pki/root.crl\", \"pki/intermediate.crl\"]".to_owned(), ..More::default() };
    for size in bench.sizes(&SIZES) {
        eprintln!("a CRL of {size} entries");
        std::fs::write(pki.join("intermediate.crl"), crl::long(&pki, u32::try_from(size)?, SERIAL_LEN, &[])?.der())?;
        let proxy = bench.start(&more, size, &mut family).await?;
        family.add_total("greatest memory (RSS)", "MiB", size, mib(proxy.peak()?));
        family.add("full connect", "CPU µs", size, connect_cost(bench.load, &proxy).await?);
        proxy.stop().await?;
    }
    Ok(family)
}
