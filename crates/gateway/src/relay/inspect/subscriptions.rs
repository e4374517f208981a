//! The subscriptions of a session, and its requests that the broker has not answered. Enters: filters of SUBSCRIBE and
//! UNSUBSCRIBE as they are forwarded, then the broker's codes. Leaves: what the session holds, and the codes for the client.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::ops::Bound;

use portcullis_wire::TopicFilter;

/// The filters that one session holds, in bytes, whatever `max_subscriptions` is.
const MAX_HELD: usize = 1 << 20;
/// The filters and codes of requests that the broker has not answered, in bytes. Over it, the client is not read.
const MAX_PENDING: usize = 256 << 10;
/// What a filter or a request costs besides its text.
const OVERHEAD: usize = 64;
/// In place of the broker's code.
const ASKED: u8 = 0xff;

/// The subscriptions of a session.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// As the client names them.
    held: BTreeSet<Box<str>>,
    held_size: usize,
    /// In the order in which the broker answers. Clients that use an identifier twice have two requests of the same one.
    pending: VecDeque<(NonZeroU16, Request)>,
    pending_size: usize,
}

/// A SUBSCRIBE or UNSUBSCRIBE that the broker has not answered.
#[derive(Debug, Default)]
pub(super) struct Request {
    is_unsubscribe: bool,
    /// The gateway's code for each filter; [`ASKED`]: the broker's.
    codes: Vec<u8>,
    /// For each filter that the broker is asked about: the filter, and whether the request changed what is held.
    asked: Vec<(Box<str>, bool)>,
    size: usize,
}

impl Request {
    pub(super) fn new(is_unsubscribe: bool) -> Self {
        Self { is_unsubscribe, size: OVERHEAD, ..Self::default() }
    }

    /// The gateway answers for this filter.
    pub(super) fn answer(&mut self, code: u8) {
        self.codes.push(code);
        self.size += 1;
    }

    /// The codes, if the gateway has answered for every filter.
    pub(super) fn is_answered(&self) -> bool {
        self.asked.is_empty()
    }

    /// The codes so far.
    pub(super) fn codes(&self) -> &[u8] {
        &self.codes
    }

    fn ask(&mut self, filter: &str, is_changed: bool) {
        self.codes.push(ASKED);
        self.size += OVERHEAD + filter.len();
        self.asked.push((filter.into(), is_changed));
    }
}

impl Subscriptions {
    /// Whether the session holds the filter.
    pub(super) fn holds(&self, filter: &str) -> bool {
        self.held.contains(filter)
    }

    /// The number of filters that the session holds.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// The filters that the session holds, or that it will hold again if the broker refuses to remove them, from `after` on.
    pub(super) fn filters(&self, after: &str) -> impl Iterator<Item = &str> {
        let unsubscribes = self.pending.iter().filter(|(_, request)| request.is_unsubscribe);
        let removed = unsubscribes.flat_map(|(_, request)| &request.asked).filter(|(_, is_changed)| *is_changed);
        let held = self.held.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)).map(|filter| &**filter);
        held.chain(removed.map(|(filter, _)| &**filter))
    }

    /// Whether the session holds a filter that matches a topic, which begins with `$`, by more than a leading wildcard.
    pub(super) fn names(&self, topic: &str) -> bool {
        let internal = self.held.range::<str, _>((Bound::Included("$"), Bound::Excluded("%")));
        let filters = internal.filter_map(|filter| TopicFilter::new(filter).ok());
        filters.map(|filter| filter.shared().map_or(filter, |(_, shared)| shared)).any(|filter| filter.matches(topic))
    }

    /// Whether there is room for the filter.
    pub(super) fn has_room_for(&self, filter: &str) -> bool {
        self.held_size + filter.len() + OVERHEAD <= MAX_HELD
    }

    /// Whether so much is unanswered that the client has to wait.
    pub(super) fn is_full(&self) -> bool {
        self.pending_size > MAX_PENDING
    }

    /// The broker is asked to add a filter. It counts at once, so that pipelined requests cannot exceed a limit.
    pub(super) fn ask_to_add(&mut self, filter: &str, request: &mut Request) {
        let is_new = self.add(filter.into());
        request.ask(filter, is_new);
    }

    /// The broker is asked to remove a filter.
    pub(super) fn ask_to_remove(&mut self, filter: &str, request: &mut Request) {
        let was_held = self.take(filter);
        request.ask(filter, was_held);
    }

    /// The request is forwarded.
    pub(super) fn wait_for(&mut self, id: NonZeroU16, request: Request) {
        self.pending_size += request.size;
        self.pending.push_back((id, request));
    }

    /// A request to add filters is not forwarded: the gateway answers `code` in place of the broker.
    pub(super) fn withdraw(&mut self, request: Request, code: u8) -> Request {
        let added = request.asked.iter().filter(|(_, is_changed)| *is_changed);
        for (filter, _) in added {
            self.take(filter);
        }
        let codes = request.codes.into_iter().map(|own| if own == ASKED { code } else { own });
        Request { codes: codes.collect(), asked: Vec::new(), ..request }
    }

    /// Applies the broker's answer. Appends the codes for the client to `codes`. Returns whether they differ from the
    /// broker's.
    pub(super) fn answered(
        &mut self,
        id: NonZeroU16,
        is_unsuback: bool,
        of_broker: &[u8],
        codes: &mut Vec<u8>,
    ) -> bool {
        let is_asked = |(asked, request): &(_, Request)| *asked == id && request.is_unsubscribe == is_unsuback;
        let asked = self.pending.iter().position(is_asked).and_then(|index| self.pending.remove(index));
        let Some((_, request)) = asked else {
            codes.extend_from_slice(of_broker);
            return false;
        };
        self.pending_size -= request.size;
        let mut of_broker = of_broker.iter().copied();
        let mut asked = request.asked.into_iter();
        let mut differs = false;
        for code in request.codes {
            if code != ASKED {
                differs = true;
                codes.push(code);
                continue;
            }
            // Before MQTT 5, UNSUBACK has no codes.
            let code = of_broker.next();
            codes.extend(code);
            let is_failure = code.is_some_and(|code| code >= 0x80);
            let Some((filter, is_changed)) = asked.next() else { continue };
            match (is_unsuback, is_failure) {
                (false, true) if is_changed => {
                    self.take(&filter);
                }
                // Another request for it may have failed meanwhile.
                (false, false) => {
                    self.add(filter);
                }
                (true, true) if is_changed => {
                    self.add(filter);
                }
                _ => {}
            }
        }
        differs
    }

    /// Returns whether it was not there.
    fn add(&mut self, filter: Box<str>) -> bool {
        let size = filter.len() + OVERHEAD;
        let is_new = self.held.insert(filter);
        if is_new {
            self.held_size += size;
        }
        is_new
    }

    /// Returns whether it was there.
    fn take(&mut self, filter: &str) -> bool {
        let was_held = self.held.remove(filter);
        if was_held {
            self.held_size -= filter.len() + OVERHEAD;
        }
        was_held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u16) -> NonZeroU16 {
        NonZeroU16::new(id).unwrap()
    }

    fn ask(held: &mut Subscriptions, packet: u16, is_unsubscribe: bool, filters: &[&str]) {
        let mut request = Request::new(is_unsubscribe);
        for filter in filters {
            match (filter.strip_prefix('!'), is_unsubscribe) {
                (Some(_), _) => request.answer(0x87),
                (None, false) => held.ask_to_add(filter, &mut request),
                (None, true) => held.ask_to_remove(filter, &mut request),
            }
        }
        held.wait_for(id(packet), request);
    }

    fn answered(held: &mut Subscriptions, packet: u16, is_unsuback: bool, codes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let differs = held.answered(id(packet), is_unsuback, codes, &mut out);
        (out, differs)
    }

    fn filters(held: &Subscriptions) -> Vec<&str> {
        held.filters("").collect()
    }

    #[test]
    fn codes_are_put_together_in_the_order_of_the_request() {
        let mut held = Subscriptions::default();
        ask(&mut held, 1, false, &["a", "!b", "c", "!d"]);
        assert_eq!(answered(&mut held, 1, false, &[1, 0x80]), (vec![1, 0x87, 0x80, 0x87], true));
        assert_eq!(filters(&held), ["a"]);
        ask(&mut held, 2, false, &["e"]);
        assert_eq!(answered(&mut held, 2, false, &[0]), (vec![0], false));
        assert_eq!(answered(&mut held, 2, false, &[0]), (vec![0], false), "nobody asked");
        assert_eq!((held.pending_size, held.len()), (0, 2));
    }

    #[test]
    fn what_the_broker_refuses_changes_nothing() {
        let mut held = Subscriptions::default();
        ask(&mut held, 1, false, &["a"]);
        answered(&mut held, 1, false, &[0]);
        ask(&mut held, 2, false, &["a"]);
        assert_eq!(answered(&mut held, 2, false, &[0x80]), (vec![0x80], false));
        assert_eq!(filters(&held), ["a"], "it was held before");
        ask(&mut held, 3, true, &["a", "b"]);
        assert_eq!((held.len(), filters(&held)), (0, vec!["a"]), "it may come back");
        assert_eq!(answered(&mut held, 3, true, &[0x87, 0x11]), (vec![0x87, 0x11], false));
        assert_eq!((held.len(), filters(&held)), (1, vec!["a"]));
        ask(&mut held, 4, true, &["a"]);
        assert_eq!(answered(&mut held, 4, true, &[]), (vec![], false), "before MQTT 5");
        assert_eq!(held.len(), 0);
        assert_eq!((held.held_size, held.pending_size), (0, 0));
    }

    #[test]
    fn each_answer_belongs_to_its_request_whatever_the_identifiers_are() {
        let mut held = Subscriptions::default();
        ask(&mut held, 1, false, &["ok", "refused"]);
        ask(&mut held, 1, true, &["other"]);
        ask(&mut held, 1, false, &["ok", "new"]);
        answered(&mut held, 1, false, &[0, 0x80]);
        answered(&mut held, 1, false, &[0, 0]);
        answered(&mut held, 1, true, &[0x11]);
        assert_eq!((filters(&held), held.pending_size), (vec!["new", "ok"], 0));
        // One filter, asked for twice, refused once.
        ask(&mut held, 2, false, &["twice"]);
        ask(&mut held, 3, false, &["twice"]);
        answered(&mut held, 2, false, &[0x80]);
        answered(&mut held, 3, false, &[0]);
        assert_eq!(filters(&held), ["new", "ok", "twice"]);
    }

    #[test]
    fn what_is_held_and_what_is_unanswered_is_bounded_in_bytes() {
        let (mut held, mut packet) = (Subscriptions::default(), 1);
        while !held.is_full() {
            ask(&mut held, packet, false, &[&format!("{packet}{}", "x".repeat(1000))]);
            packet += 1;
        }
        assert!(held.pending_size <= MAX_PENDING + 2 * (1000 + OVERHEAD + OVERHEAD));
        for packet in 1..packet {
            answered(&mut held, packet, false, &[0]);
        }
        assert_eq!(held.pending_size, 0);
        let mut count = 0;
        while held.has_room_for(&"y".repeat(1000)) {
            ask(&mut held, 1, false, &[&format!("{count}{}", "y".repeat(1000))]);
            answered(&mut held, 1, false, &[0]);
            count += 1;
        }
        assert!(held.held_size <= MAX_HELD + 2000, "{}", held.held_size);
    }
}
