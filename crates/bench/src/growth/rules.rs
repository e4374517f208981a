//! Numbers of topic rules -> the cost of messages of which each has another topic than the one before.

use std::time::Duration;

use super::Bench;
use crate::load::mqtt::publish;
use crate::packets::inspected;
use crate::report::Family;
use crate::rows::floods::to_broker;
use crate::rows::{cpu_of, micros_each};

const SIZES: [usize; 3] = [10, 1000, 10_000];
/// Topics, which as many different rules decide on, as far as there are.
const TOPICS: usize = 200;
const CONNECTIONS: usize = 100;
const PACE: usize = 5000;
const DURATION: Duration = Duration::from_secs(3);

pub(super) async fn measure(bench: &Bench<'_>) -> anyhow::Result<Family> {
    let mut family = Family::new("topic rules");
    for size in bench.sizes(&SIZES) {
        eprintln!("{size} topic rules");
        let (load, more) = (bench.load, inspected(size));
        let proxy = bench.start(&more, size, &mut family).await?;
        let messages: Vec<Vec<u8>> = (0..TOPICS).map(|n| publish(&topic(n, size), 64)).collect();
        let mut sessions = load.settled(proxy.address, CONNECTIONS).await?;
        let (cpu, sent) = cpu_of(&proxy, load.paced(&mut sessions, &messages, PACE, DURATION)).await?;
        family.add("64 B message, paced", "CPU µs", size, micros_each(cpu, sent));
        drop(sessions);
        let batch = messages.concat();
        let each = batch.len() as f64 / messages.len() as f64;
        let flood = to_broker(load, &proxy, CONNECTIONS, batch, DURATION).await?;
        family.add("64 B message, flooding", "CPU ns", size, flood.nanos_per_byte() * each);
        proxy.stop().await?;
    }
    Ok(family)
}

/// What one of the rules of [`inspected`] allows, so that the rules are spread over their list.
fn topic(n: usize, rules: usize) -> String {
    format!("other/{}/{n}/x", 1 + n * (rules - 1) / TOPICS)
}
