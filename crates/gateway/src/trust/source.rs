//! Where CRLs come from: files and URLs. A source keeps the last good lists until better ones are there.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::credential::{Key, Link};
use super::crl::Crl;
use super::issuers::{Issuer, Issuers};
use crate::files::Stamp;

/// Where lists are to be had.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Origin {
    File(PathBuf),
    /// `http` or `https`.
    Url(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => path.display().fmt(f),
            Origin::Url(url) => url.fmt(f),
        }
    }
}

/// The lists of one origin; shared by all listeners that name it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    lists: ArcSwap<Vec<Arc<Crl>>>,
    /// The file as it was last read, and what was wrong with it.
    last: Mutex<(Option<Stamp>, Option<String>)>,
}

/// What lists say of one certificate; what is further down counts more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// No list speaks for it.
    Unknown,
    /// Those that speak for it are out of date.
    Stale,
    Good,
    Revoked,
}

impl Source {
    pub(super) fn new(origin: Origin) -> Self {
        Self { origin, lists: ArcSwap::default(), last: Mutex::default() }
    }

    /// Reads the file again if it is not what it was. Returns the keys of certificates that are now revoked; `None` if
    /// nothing has changed.
    ///
    /// # Errors
    /// What is wrong with it; the last good lists stay.
    pub(super) fn read_if_changed(&self, issuers: &Issuers) -> Result<Option<Vec<Key>>, String> {
        let Origin::File(path) = &self.origin else { return Ok(None) };
        let stamp = Stamp::of(path);
        // Held while the file is read: who asks at the same time is to see what came of it.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 == stamp && stamp.is_some() {
            return Ok(None);
        }
        let bytes = std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()));
        let result = bytes.and_then(|bytes| self.replace(&bytes, issuers)).map(Some);
        *last = (stamp, result.as_ref().err().cloned());
        result
    }

    /// What was wrong with the file when it was last read.
    pub(super) fn problem(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Puts other lists in the place of those that are there. Returns the keys of certificates that are now revoked.
    ///
    /// # Errors
    /// The bytes are no lists, are signed by none of the authorities whose name they have, or are older than what they
    /// would replace; nothing was replaced.
    pub(super) fn replace(&self, bytes: &[u8], issuers: &Issuers) -> Result<Vec<Key>, String> {
        let lists: Vec<Arc<Crl>> =
            Crl::read(bytes).map_err(|what| format!("{}: {what}", self.origin))?.into_iter().map(Arc::new).collect();
        let known = issuers.all();
        let before = self.lists.load_full();
        for list in &lists {
            known.values().for_each(|issuer| list.learn(issuer));
            if list.is_disowned() {
                return Err(format!("{}: not signed by the authority whose name it has", self.origin));
            }
            let is_older = |other: &&Arc<Crl>| list.precedes(other);
            // Over plain HTTP, somebody on the way could send a list from before a revocation.
            if matches!(self.origin, Origin::Url(_)) && before.iter().any(|other| is_older(&other)) {
                return Err(format!("{}: older than the CRL that is there", self.origin));
            }
        }
        self.lists.store(Arc::new(lists));
        // An authority that was seen while the lists were being looked at is known now.
        issuers.all().values().for_each(|issuer| self.learn(issuer));
        Ok(self.lists.load().iter().flat_map(|list| list.newly_revoked(&before)).collect())
    }

    /// Finds out whether this authority has signed lists of this source.
    pub(super) fn learn(&self, issuer: &Issuer) {
        self.lists.load().iter().for_each(|list| list.learn(issuer));
    }

    pub(super) fn status(&self, link: &Link, is_authority: bool, now: i64) -> Status {
        let lists = self.lists.load();
        let speaking = lists.iter().filter(|list| list.covers(link, is_authority));
        let status = |list: &Arc<Crl>| match () {
            // That it is out of date does not give anybody back a certificate.
            () if list.revokes(&link.serial) => Status::Revoked,
            () if now >= list.next_update || now < list.this_update - super::CLOCK_SKEW => Status::Stale,
            () => Status::Good,
        };
        speaking.map(status).max().unwrap_or(Status::Unknown)
    }
}
