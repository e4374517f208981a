//! The subscriptions of a session, and its requests that the broker has not answered. Enters: filters of SUBSCRIBE and
//! UNSUBSCRIBE as they are forwarded, then the broker's codes. Leaves: what the session holds, and the codes for the client.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::ops::Bound;

use portcullis_wire::TopicFilter;
use tokio::time::Instant;

/// The filters that one session holds, in bytes, whatever `max_subscriptions` is.
const MAX_HELD: usize = 1 << 20;
/// The filters and codes of requests that the broker has not answered, in bytes. Over it, the client is not read.
const MAX_PENDING: usize = 256 << 10;
/// One request, in bytes: some ten thousand filters.
const MAX_REQUEST: usize = 1 << 20;
/// What a filter or a request costs besides its text.
const OVERHEAD: usize = 64;
/// In place of the broker's code.
const ASKED: u8 = 0xff;
/// How many filters beginning with `$` are compared with the topic of a delivery.
const MAX_DOLLAR: usize = 100;

/// The subscriptions of a session.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// By filter, as the client names it. Without those that the broker has removed, or never granted.
    held: BTreeMap<Box<str>, Held>,
    held_size: usize,
    /// Those of them that begin with `$` behind the share name.
    dollar: BTreeSet<Box<str>>,
    /// The number of filters that count for `max_subscriptions`.
    counted: usize,
    /// In the order in which the broker answers. Clients that use an identifier twice have two requests of the same one.
    pending: VecDeque<(NonZeroU16, Request)>,
    pending_size: usize,
}

/// What is known of a filter.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// The broker's last answer about it.
    is_granted: bool,
    /// Requests about it that the broker has not answered, and how many of them are SUBSCRIBE.
    pending: u32,
    subscribes: u32,
    /// Whether the last of them is a SUBSCRIBE.
    is_wanted: bool,
}

impl Held {
    /// Whether the session holds it once the broker has granted every request.
    const fn counts(self) -> bool {
        if self.pending > 0 { self.is_wanted } else { self.is_granted }
    }

    /// Whether the broker may deliver messages because of it, now or soon.
    const fn may_deliver(self) -> bool {
        self.is_granted || self.subscribes > 0
    }
}

/// A SUBSCRIBE or UNSUBSCRIBE that the broker has not answered.
#[derive(Debug, Default)]
pub(super) struct Request {
    is_unsubscribe: bool,
    /// The gateway's code for each filter; [`ASKED`]: the broker's.
    codes: Vec<u8>,
    /// For each filter that the broker is asked about: the filter, and whether the request before wanted it.
    asked: Vec<(Box<str>, bool)>,
    size: usize,
}

/// How far the subscriptions of a session are compared with new rules.
#[derive(Debug)]
pub(super) struct Comparison {
    /// The last filter that was.
    pub(super) last: Box<str>,
    /// When the next ones are.
    pub(super) at: Instant,
}

impl Request {
    pub(super) fn new(is_unsubscribe: bool) -> Self {
        Self { is_unsubscribe, size: OVERHEAD, ..Self::default() }
    }

    /// Whether the broker may be asked about another filter.
    pub(super) fn has_room_for(&self, filter: &str) -> bool {
        self.size + OVERHEAD + filter.len() <= MAX_REQUEST
    }

    /// The gateway answers for this filter.
    pub(super) fn decide(&mut self, code: u8) {
        self.codes.push(code);
        self.size += 1;
    }

    /// The codes, if the gateway has answered for every filter.
    pub(super) fn is_decided(&self) -> bool {
        self.asked.is_empty()
    }

    /// The codes so far.
    pub(super) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// The broker answers for this filter.
    fn ask(&mut self, filter: &str, was_wanted: bool) {
        self.codes.push(ASKED);
        self.size += OVERHEAD + filter.len();
        self.asked.push((filter.into(), was_wanted));
    }
}

/// An acknowledgement of the broker has another number of codes than its request has filters [MQTT-3.8.4-6],
/// [MQTT-3.11.3-2].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WrongNumberOfCodes {
    /// How many filters the broker was asked about.
    pub(super) filters: usize,
}

impl Subscriptions {
    /// Whether the session holds the filter.
    pub(super) fn holds(&self, filter: &str) -> bool {
        self.held.get(filter).is_some_and(|held| held.counts())
    }

    /// The number of filters that the session holds.
    pub(super) fn len(&self) -> usize {
        self.counted
    }

    /// The filters behind `after`, in their order, that the session holds, or may hold once the broker has answered.
    pub(super) fn filters(&self, after: &str) -> impl Iterator<Item = &str> {
        let behind = self.held.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        behind.filter(|(_, held)| held.may_deliver()).map(|(filter, _)| &**filter)
    }

    /// Whether the session holds a filter that matches a topic, which begins with `$`, by more than a leading wildcard. Of
    /// very many such filters, only the first are compared: the work is done for each delivery.
    pub(super) fn names(&self, topic: &str) -> bool {
        self.dollar.iter().take(MAX_DOLLAR).any(|filter| {
            let is_held = self.held.get(filter).is_some_and(|held| held.may_deliver());
            is_held && unshared(filter).is_some_and(|filter| filter.matches(topic))
        })
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
        self.ask(filter, true, request);
    }

    /// The broker is asked to remove a filter. It no longer counts at once, so that the client can replace it.
    pub(super) fn ask_to_remove(&mut self, filter: &str, request: &mut Request) {
        self.ask(filter, false, request);
    }

    fn ask(&mut self, filter: &str, is_wanted: bool, request: &mut Request) {
        let mut was_wanted = false;
        self.change(filter, |held| {
            was_wanted = held.is_wanted;
            held.pending += 1;
            held.subscribes += u32::from(is_wanted);
            held.is_wanted = is_wanted;
        });
        request.ask(filter, was_wanted);
    }

    /// Changes what is known of a filter, and forgets it if that is nothing.
    fn change(&mut self, filter: &str, change: impl FnOnce(&mut Held)) {
        let before = self.held.get(filter).copied();
        let mut held = before.unwrap_or_default();
        change(&mut held);
        self.counted += usize::from(held.counts());
        self.counted -= usize::from(before.is_some_and(Held::counts));
        let size = filter.len() + OVERHEAD;
        if held.pending == 0 && !held.is_granted {
            self.held.remove(filter);
            self.dollar.remove(filter);
            self.held_size -= if before.is_some() { size } else { 0 };
        } else if let Some(known) = self.held.get_mut(filter) {
            *known = held;
        } else {
            self.held.insert(filter.into(), held);
            if unshared(filter).is_some_and(|filter| filter.as_str().starts_with('$')) {
                self.dollar.insert(filter.into());
            }
            self.held_size += size;
        }
    }

    /// The request is forwarded.
    pub(super) fn wait_for(&mut self, id: NonZeroU16, request: Request) {
        self.pending_size += request.size;
        self.pending.push_back((id, request));
    }

    /// A request to add filters is not forwarded: the gateway answers `code` in place of the broker.
    pub(super) fn withdraw(&mut self, request: Request, code: u8) -> Request {
        // Backwards: a request can have the same filter more than once.
        for (filter, was_wanted) in request.asked.iter().rev() {
            self.change(filter, |held| {
                held.pending = held.pending.saturating_sub(1);
                held.subscribes = held.subscribes.saturating_sub(1);
                held.is_wanted = *was_wanted;
            });
        }
        let codes = request.codes.into_iter().map(|own| if own == ASKED { code } else { own });
        Request { codes: codes.collect(), asked: Vec::new(), ..request }
    }

    /// Applies the broker's answer. `of_broker`: its codes; `None`: an UNSUBACK before MQTT 5, which has none. Appends the
    /// codes for the client to `codes`. Returns whether they differ from the broker's.
    ///
    /// # Errors
    /// The broker has answered for more filters, or for fewer.
    pub(super) fn answered(
        &mut self,
        id: NonZeroU16,
        is_unsuback: bool,
        of_broker: Option<&[u8]>,
        codes: &mut Vec<u8>,
    ) -> Result<bool, WrongNumberOfCodes> {
        let is_asked = |(asked, request): &(_, Request)| *asked == id && request.is_unsubscribe == is_unsuback;
        let asked = self.pending.iter().position(is_asked).and_then(|index| self.pending.remove(index));
        let Some((_, request)) = asked else {
            codes.extend_from_slice(of_broker.unwrap_or_default());
            return Ok(false);
        };
        self.pending_size -= request.size;
        if of_broker.is_some_and(|codes| codes.len() != request.asked.len()) {
            return Err(WrongNumberOfCodes { filters: request.asked.len() });
        }
        let mut answers = of_broker.unwrap_or_default().iter().copied();
        let mut asked = request.asked.iter();
        let mut differs = false;
        for code in request.codes {
            if code != ASKED {
                differs = true;
                codes.push(code);
                continue;
            }
            let code = answers.next();
            codes.extend(code);
            let is_granted = code.is_none_or(|code| code < 0x80);
            let Some((filter, _)) = asked.next() else { continue };
            self.change(filter, |held| {
                held.pending = held.pending.saturating_sub(1);
                held.subscribes = held.subscribes.saturating_sub(u32::from(!is_unsuback));
                if is_granted {
                    held.is_granted = !is_unsuback;
                }
            });
        }
        Ok(differs)
    }
}

/// A filter without its share name.
fn unshared(filter: &str) -> Option<TopicFilter<'_>> {
    let filter = TopicFilter::new(filter).ok()?;
    Some(filter.shared().map_or(filter, |(_, shared)| shared))
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
                (Some(_), _) => request.decide(0x87),
                (None, false) => held.ask_to_add(filter, &mut request),
                (None, true) => held.ask_to_remove(filter, &mut request),
            }
        }
        held.wait_for(id(packet), request);
    }

    fn answered(held: &mut Subscriptions, packet: u16, is_unsuback: bool, codes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let of_broker = (!is_unsuback || !codes.is_empty()).then_some(codes);
        let differs = held.answered(id(packet), is_unsuback, of_broker, &mut out).unwrap();
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
        // Subscribed to and unsubscribed from before the broker answers, and the other way round.
        ask(&mut held, 4, false, &["brief"]);
        ask(&mut held, 5, true, &["brief", "twice"]);
        ask(&mut held, 6, false, &["twice"]);
        assert_eq!(held.len(), 3, "`brief` will be gone, `twice` there");
        answered(&mut held, 4, false, &[0]);
        answered(&mut held, 5, true, &[0, 0]);
        assert!(held.holds("twice") && !held.holds("brief"));
        answered(&mut held, 6, false, &[0]);
        assert_eq!((filters(&held), held.len()), (vec!["new", "ok", "twice"], 3));
    }

    #[test]
    fn a_request_that_is_withdrawn_changes_nothing() {
        let mut held = Subscriptions::default();
        ask(&mut held, 1, false, &["a"]);
        let mut request = Request::new(false);
        for filter in ["b", "a", "b"] {
            held.ask_to_add(filter, &mut request);
        }
        assert_eq!(held.len(), 2);
        assert_eq!(held.withdraw(request, 0x97).codes(), [0x97; 3]);
        assert_eq!((filters(&held), held.len()), (vec!["a"], 1));
        answered(&mut held, 1, false, &[0x80]);
        assert_eq!((filters(&held).len(), held.len(), held.held_size), (0, 0, 0));
    }

    #[test]
    fn an_answer_has_a_code_for_each_filter() {
        for codes in [&[][..], &[0], &[0, 0, 0]] {
            let mut held = Subscriptions::default();
            ask(&mut held, 1, false, &["a", "!b", "c"]);
            assert_eq!(
                held.answered(id(1), false, Some(codes), &mut Vec::new()),
                Err(WrongNumberOfCodes { filters: 2 })
            );
        }
    }

    #[test]
    fn a_filter_that_names_an_internal_topic_is_found_among_shared_ones() {
        let mut held = Subscriptions::default();
        for number in 0..300 {
            ask(&mut held, 1, false, &[&format!("$share/g/{number}")]);
            answered(&mut held, 1, false, &[0]);
        }
        assert!(!held.names("$x/1"));
        ask(&mut held, 1, false, &["$x/+"]);
        assert!(held.names("$x/1") && !held.names("$y/1"));
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
