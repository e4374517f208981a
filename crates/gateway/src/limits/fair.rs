//! Slots that clients of many networks share fairly: for handshakes, for verifying passwords, for requests to an authentication
//! service, and for a turn at a rate. Enters: the address of a client that needs a slot. Leaves: a slot, in fair order, or none
//! if too many wait.
//!
//! Networks take turns, so one that sends a thousand clients delays the others by one client at a time. The networks of a
//! network share its turns: of an IPv6 network with a /48 first its /56s, then their /64s take turns [RFC 6177, 2].

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::util::client_network::{ClientNetwork, path_of};

/// One network gets at most a quarter of what may wait (but see [`FairSlots::shared_by_all`]), and a quarter of all slots once half
/// of them are taken.
const SHARE: usize = 4;

/// Of clients that wait, those of the first class get a slot first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Begun,
    Known,
    Unknown,
}

const CLASSES: usize = 3;
/// Each such slot goes first to another class than the first, in turn, so that none is starved.
const TURN_OF_OTHERS: u8 = 8;
/// The least time between two searches for clients that have given up, if more than so many wait: each looks at all of them.
const CLEAN_EVERY: Duration = Duration::from_millis(100);
const FEW: usize = 256;

/// Slots that clients share.
#[derive(Clone, Debug)]
pub(crate) struct FairSlots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    slots: usize,
    max_waiting: usize,
    /// How many of those that wait may be of one network.
    max_of_network: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    taken_by: HashMap<ClientNetwork, usize>,
    /// By class.
    waiting: [Waiting; CLASSES],
    /// Counts the slots that were passed on.
    passed_on: u8,
    /// When clients that have given up were removed.
    cleaned_at: Option<Instant>,
}

type Waiting = Rotation<ClientNetwork, Rotation<u16, Rotation<u16, Line>>>;

/// A slot. Dropping it passes it on.
#[derive(Debug)]
#[must_use = "dropping it passes the slot on"]
pub(crate) struct Slot {
    inner: Arc<Inner>,
    network: ClientNetwork,
}

impl FairSlots {
    /// `slots` can be taken at once, and `max_waiting` clients may wait for one; at least one each.
    pub(crate) fn new(slots: usize, max_waiting: usize) -> Self {
        let (slots, max_waiting) = (slots.max(1), max_waiting.max(1));
        let max_of_network = max_waiting.div_ceil(SHARE);
        Self(Arc::new(Inner { slots, max_waiting, max_of_network, state: Mutex::default() }))
    }

    /// The same, where one network may use the whole queue: once it is full, the network with most clients makes room for
    /// others.
    pub(super) fn shared_by_all(self) -> Self {
        let Inner { slots, max_waiting, .. } = *self.0;
        Self(Arc::new(Inner { slots, max_waiting, max_of_network: max_waiting, state: Mutex::default() }))
    }

    /// Waits for a slot. The caller sets the deadline: a client that stops waiting loses its turn. `None`: too many
    /// clients wait, or too many of this network.
    pub(crate) async fn take(&self, address: IpAddr) -> Option<Slot> {
        self.take_as(address, || Class::Unknown).await
    }

    /// As [`take`](Self::take), with the client's class, which is only asked for if it has to wait.
    pub(super) async fn take_as(&self, address: IpAddr, class: impl FnOnce() -> Class) -> Option<Slot> {
        let path = path_of(address);
        if let Some(slot) = self.take_now(path.0) {
            return Some(slot);
        }
        let class = class();
        let granted = {
            let mut state = self.0.state.lock();
            if state.has_place(path.0, &self.0) {
                state.take(path.0);
                return Some(Slot { inner: Arc::clone(&self.0), network: path.0 });
            }
            state.wait(path, class, &self.0)?
        };
        granted.await.ok()
    }

    /// Whether clients wait for a slot.
    pub(super) fn has_waiting(&self) -> bool {
        self.0.state.lock().waiting() > 0
    }

    fn take_now(&self, network: ClientNetwork) -> Option<Slot> {
        let mut state = self.0.state.lock();
        state.has_place(network, &self.0).then(|| {
            state.take(network);
            Slot { inner: Arc::clone(&self.0), network }
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut released = Some(self.network);
        loop {
            let next = {
                let mut state = self.inner.state.lock();
                released.take().into_iter().for_each(|network| state.release(network));
                state.next(&self.inner)
            };
            let Some((network, grant)) = next else { return };
            // Sent outside the lock: a slot that nobody receives is dropped, which takes the lock again.
            drop(grant.send(Slot { inner: Arc::clone(&self.inner), network }));
        }
    }
}

impl State {
    /// Whether a client of this network may take a slot now. No other client waits for it: a slot that is released is
    /// passed on under the same lock.
    fn has_place(&self, network: ClientNetwork, inner: &Inner) -> bool {
        let of_network = self.taken_by.get(&network).copied().unwrap_or(0);
        self.taken < inner.slots && (self.taken < inner.slots / 2 || of_network < inner.slots.div_ceil(SHARE))
    }

    fn take(&mut self, network: ClientNetwork) {
        self.taken += 1;
        *self.taken_by.entry(network).or_default() += 1;
    }

    fn release(&mut self, network: ClientNetwork) {
        self.taken -= 1;
        if let Entry::Occupied(mut taken) = self.taken_by.entry(network) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }

    fn wait(
        &mut self,
        path: (ClientNetwork, (u16, (u16, ()))),
        class: Class,
        inner: &Inner,
    ) -> Option<oneshot::Receiver<Slot>> {
        let network = path.0;
        let now = Instant::now();
        if (self.waiting() >= inner.max_waiting || self.waiting_of(network) >= inner.max_of_network)
            && (self.waiting() <= FEW || self.cleaned_at.is_none_or(|cleaned_at| now >= cleaned_at + CLEAN_EVERY))
        {
            self.waiting.iter_mut().for_each(Queue::remove_gone);
            self.cleaned_at = Some(now);
        }
        if self.waiting_of(network) >= inner.max_of_network {
            return None;
        }
        if self.waiting() >= inner.max_waiting {
            // Of the last class that is waiting, the network with most clients loses one, if it still has no fewer than the
            // newcomer's then. A newcomer of a class before takes its place.
            let last = self.waiting.iter().rposition(|waiting| waiting.len() > 0)?;
            let is_before = (class as usize) < last;
            let waiting = &mut self.waiting[last];
            if !is_before && (last < class as usize || waiting.longest()? < waiting.len_of(network) + 2) {
                return None;
            }
            waiting.remove_of_longest();
        }
        let (grant, receiver) = oneshot::channel();
        self.waiting[class as usize].push(path, grant);
        Some(receiver)
    }

    fn waiting(&self) -> usize {
        self.waiting.iter().map(Queue::len).sum()
    }

    fn waiting_of(&self, network: ClientNetwork) -> usize {
        self.waiting.iter().map(|waiting| waiting.len_of(network)).sum()
    }

    /// The client that gets the next slot, which is counted as taken.
    fn next(&mut self, inner: &Inner) -> Option<(ClientNetwork, Grant)> {
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut order: [usize; CLASSES] = std::array::from_fn(|class| class);
        if self.passed_on % TURN_OF_OTHERS == TURN_OF_OTHERS - 1 {
            order.rotate_left(1 + usize::from(self.passed_on / TURN_OF_OTHERS) % (CLASSES - 1));
        }
        let mut in_order = order.into_iter();
        let next = in_order.find_map(|class| waiting[class].pop_if(|network| self.has_place(*network, inner)));
        self.waiting = waiting;
        let (network, grant) = next?;
        self.passed_on = self.passed_on.wrapping_add(1);
        self.take(network);
        Some((network, grant))
    }
}

/// Hands a slot to a client that waits. Closed once the client has given up.
type Grant = oneshot::Sender<Slot>;

/// Clients that wait, some of which may have given up meanwhile.
trait Queue: Default {
    type Path;

    fn push(&mut self, path: Self::Path, grant: Grant);

    /// Removes the client whose turn it is.
    fn pop(&mut self) -> Option<Grant>;

    /// Removes one of those that came last.
    fn remove_of_longest(&mut self);

    /// Removes those that have given up.
    fn remove_gone(&mut self);

    fn len(&self) -> usize;
}

/// First come, first served.
#[derive(Debug, Default)]
struct Line(VecDeque<Grant>);

impl Queue for Line {
    type Path = ();

    fn push(&mut self, (): (), grant: Grant) {
        self.0.push_back(grant);
    }

    fn pop(&mut self) -> Option<Grant> {
        std::iter::from_fn(|| self.0.pop_front()).find(|grant| !grant.is_closed())
    }

    fn remove_of_longest(&mut self) {
        self.0.pop_back();
    }

    fn remove_gone(&mut self) {
        self.0.retain(|grant| !grant.is_closed());
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// Queues that take turns.
#[derive(Debug)]
struct Rotation<K, Q> {
    /// The queues with clients, in the order of their turns.
    order: VecDeque<K>,
    queues: HashMap<K, Q>,
    /// Their lengths, so that nobody has to look at all of them when all places are taken.
    by_len: BTreeSet<(usize, K)>,
    len: usize,
}

impl<K, Q> Default for Rotation<K, Q> {
    fn default() -> Self {
        Self { order: VecDeque::new(), queues: HashMap::new(), by_len: BTreeSet::new(), len: 0 }
    }
}

impl<K: Copy + Ord + Hash, Q: Queue> Rotation<K, Q> {
    fn len_of(&self, key: K) -> usize {
        self.queues.get(&key).map_or(0, Queue::len)
    }

    /// The length of the longest queue.
    fn longest(&self) -> Option<usize> {
        self.by_len.last().map(|(len, _)| *len)
    }

    /// Removes the client whose turn it is, of a queue that is `eligible`. That queue has its next turn after all others.
    fn pop_if(&mut self, eligible: impl Fn(&K) -> bool) -> Option<(K, Grant)> {
        loop {
            let position = self.order.iter().position(&eligible)?;
            let key = self.order.remove(position)?;
            let popped = self.change(key, Queue::pop);
            if self.queues.contains_key(&key) {
                self.order.push_back(key);
            }
            if let Some(grant) = popped {
                return Some((key, grant));
            }
        }
    }

    /// Changes one queue, and removes it if it is empty then.
    fn change<T>(&mut self, key: K, change: impl FnOnce(&mut Q) -> T) -> T {
        let queue = self.queues.entry(key).or_default();
        let before = queue.len();
        let result = change(queue);
        let after = queue.len();
        self.by_len.remove(&(before, key));
        if after == 0 {
            self.queues.remove(&key);
        } else {
            self.by_len.insert((after, key));
        }
        self.len = self.len - before + after;
        result
    }
}

impl<K: Copy + Ord + Hash, Q: Queue> Queue for Rotation<K, Q> {
    type Path = (K, Q::Path);

    fn push(&mut self, (key, rest): Self::Path, grant: Grant) {
        if !self.queues.contains_key(&key) {
            self.order.push_back(key);
        }
        self.change(key, |queue| queue.push(rest, grant));
    }

    fn pop(&mut self) -> Option<Grant> {
        self.pop_if(|_| true).map(|(_, grant)| grant)
    }

    fn remove_of_longest(&mut self) {
        let Some((_, key)) = self.by_len.last().copied() else { return };
        self.change(key, Queue::remove_of_longest);
        if !self.queues.contains_key(&key) {
            self.order.retain(|other| *other != key);
        }
    }

    fn remove_gone(&mut self) {
        self.queues.values_mut().for_each(Queue::remove_gone);
        self.queues.retain(|_, queue| queue.len() > 0);
        self.order.retain(|key| self.queues.contains_key(key));
        self.by_len = self.queues.iter().map(|(key, queue)| (queue.len(), *key)).collect();
        self.len = self.queues.values().map(Queue::len).sum();
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests;
