//! Packets that are only parsed, as often as ordered: what `wire` alone costs.

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use portcullis_wire::{Connect, FixedHeader, Limits, Packet, Publish, Sender, Version, head_len};

use crate::load::{DEVICE, mqtt};

/// What to parse, and how often.
#[derive(Args)]
pub(crate) struct Parse {
    packet: Parsed,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Parsed {
    Connect,
    /// The head of a PUBLISH, as the relay parses it
    Publish,
}

/// Parses, and prints nothing.
pub(crate) fn parse(orders: &Parse) -> anyhow::Result<()> {
    let packet = match orders.packet {
        Parsed::Connect => mqtt::connect(DEVICE),
        Parsed::Publish => mqtt::publish(mqtt::TOPIC, 64),
    };
    let mut bytes = 0;
    for _ in 0..orders.count {
        // Otherwise, the compiler could parse once.
        let packet = std::hint::black_box(&packet[..]);
        bytes += match orders.packet {
            Parsed::Connect => Connect::decode(packet, Limits::default())?.context("CONNECT is incomplete")?.1,
            Parsed::Publish => publish(packet)?,
        };
    }
    ensure!(bytes >= orders.count, "nothing was parsed");
    Ok(())
}

/// Returns the length of the head.
fn publish(packet: &[u8]) -> anyhow::Result<usize> {
    let (version, sender) = (Version::V311, Sender::Client);
    let header = FixedHeader::decode(packet)?.context("PUBLISH is incomplete")?;
    Packet::check_header(header, version, sender)?;
    let len = head_len(packet, header, version)?.context("PUBLISH is incomplete")?;
    std::hint::black_box(Publish::decode(&packet[..len], header, version, sender)?);
    Ok(len)
}
