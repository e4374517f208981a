//! What is counted: connects, messages, pings, each alone. Enters: a gateway, how many. Leaves: nothing, once the gateway has done
//! the work.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::DEADLINE;
use crate::load::mqtt::{PINGREQ, PINGRESP, TOPIC, publish};
use crate::load::{DEVICE, Load, Session, mqtt, session_as};
use crate::packets::inspected;
use crate::peers::{More, free_address, further_listener};

/// Topic rules of the listener that has some; the last of them decides.
const RULES: usize = 100;
/// Bytes of payload of a message.
const PAYLOAD: usize = 64;
/// How many of a unit are counted. Once a second, the gateway looks at its files and sessions, with 260 allocations: one of these
/// more or less must not count.
const CONNECTS: usize = 200;
const MESSAGES: usize = 10_000;

/// One thing that a gateway does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Full,
    Resumed,
    /// From the client to the broker, through the raw relay.
    Message,
    /// The same where topic rules decide.
    Inspected,
    Ping,
}

impl Unit {
    pub(super) const ALL: [Self; 5] = [Self::Full, Self::Resumed, Self::Message, Self::Inspected, Self::Ping];

    /// In the tables of ceilings.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Full => "full-connect",
            Self::Resumed => "resumed-connect",
            Self::Message => "message",
            Self::Inspected => "inspected-message",
            Self::Ping => "ping",
        }
    }

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Full => "full connect",
            Self::Resumed => "resumed connect",
            Self::Message => "64 B message to the broker",
            Self::Inspected => "64 B message that topic rules decide on",
            Self::Ping => "PINGREQ and PINGRESP",
        }
    }

    /// How many of them are counted.
    pub(super) const fn count(self) -> usize {
        match self {
            Self::Full | Self::Resumed => CONNECTS,
            Self::Message | Self::Inspected | Self::Ping => MESSAGES,
        }
    }
}

/// The load of a gateway, with a session on each of its listeners.
pub(super) struct Work<'a> {
    load: &'a Load,
    gateway: SocketAddr,
    message: Vec<u8>,
    raw: Session,
    inspected: Session,
}

/// The configuration: one worker, a listener without topic rules, and one with them, at the returned address.
pub(super) fn configuration() -> anyhow::Result<(More, SocketAddr)> {
    let address = free_address()?;
    let rules = inspected(RULES);
    let tables = further_listener("inspected", address, "brokers", &rules.listener) + &rules.tables;
    Ok((More { tables, is_single: true, ..More::default() }, address))
}

impl<'a> Work<'a> {
    /// Opens the sessions, and does everything once, so that what a process does once does not count.
    pub(super) async fn open(load: &'a Load, gateway: SocketAddr, inspecting: SocketAddr) -> anyhow::Result<Self> {
        const WARM_UP: usize = 5;
        let (connector, connect) = (load.connector(), mqtt::connect(DEVICE));
        let raw = session_as(&connector, gateway, &connect).await?;
        let inspected = session_as(&connector, inspecting, &connect).await?;
        let mut work = Self { load, gateway, message: publish(TOPIC, PAYLOAD), raw, inspected };
        for unit in Unit::ALL {
            work.run(unit, WARM_UP).await?;
        }
        Ok(work)
    }

    /// Does something `count` times: the next when the one before has arrived, so that nothing is done together.
    pub(super) async fn run(&mut self, unit: Unit, count: usize) -> anyhow::Result<()> {
        match unit {
            Unit::Full => {
                let resumed = self.load.connect_in_turn(self.gateway, count, false).await?;
                ensure!(resumed == 0, "{resumed} of {count} connects were resumed");
            }
            Unit::Resumed => {
                let resumed = self.load.connect_in_turn(self.gateway, count, true).await?;
                // The very first has no ticket.
                ensure!(resumed + 1 >= count, "{resumed} of {count} connects were resumed");
            }
            Unit::Message => messages(self.load, &mut self.raw, &self.message, count).await?,
            Unit::Inspected => messages(self.load, &mut self.inspected, &self.message, count).await?,
            Unit::Ping => pings(&mut self.raw, count).await?,
        }
        Ok(())
    }
}

async fn messages(load: &Load, session: &mut Session, message: &[u8], count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        let before = load.broker.received();
        session.write_all(message).await?;
        session.flush().await?;
        load.broker.wait_for(before, message.len()).await?;
    }
    Ok(())
}

async fn pings(session: &mut Session, count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        session.write_all(&PINGREQ).await?;
        session.flush().await?;
        let mut answer = [0; PINGRESP.len()];
        timeout(DEADLINE, session.read_exact(&mut answer)).await.context("no PINGRESP in time")??;
        ensure!(answer == PINGRESP, "something else than PINGRESP");
    }
    Ok(())
}
