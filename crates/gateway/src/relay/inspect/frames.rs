//! Finds packets in the stream. Enters: bytes of one direction, split anywhere. Leaves: each packet once its head is complete,
//! payloads as they arrive, replies between packets. Nothing is collected but heads, and payloads that a schema has to see.

use portcullis_wire::{
    Ack, Disconnect, Error, FixedHeader, MAX_REMAINING_LENGTH, Packet, PacketType, PublishStart, Sender, head_len,
};
use tokio::time::Instant;

use super::out::{Out, Piece};
use super::{
    Direction, Ending, Inspect, MAX_HEAD, MAX_REPLIES, PROGRESS, PayloadMode, PendingAck, Position, WORK,
    rate_exceeded, too_large, violation,
};
use crate::observe::Limit;
use crate::outcome::CloseReason;

/// A PUBLISH of QoS 0 that was allowed, and passed as it is.
#[derive(Clone, Copy)]
struct Decided<'c> {
    /// Those of the fixed header.
    flags: u8,
    /// Its head behind the fixed header.
    head: &'c [u8],
    payload_len: usize,
}

impl Decided<'_> {
    /// The fixed header of the next packet, if all of that has arrived, and it is a PUBLISH that differs from this one in nothing
    /// that a decision depends on.
    #[inline]
    fn is_like(self, bytes: &[u8]) -> Option<FixedHeader> {
        let header = FixedHeader::decode(bytes).ok()??;
        if header.packet_type != PacketType::Publish || header.flags != self.flags || header.packet_len() > bytes.len()
        {
            return None;
        }
        let head_end = header.len + self.head.len();
        let payload_len = header.packet_len().checked_sub(head_end)?;
        let is_like = payload_len <= self.payload_len && bytes.get(header.len..head_end)? == self.head;
        is_like.then_some(header)
    }
}

impl Inspect {
    /// Finds packets, and decides about them. Returns how many bytes it has taken: all, unless the client is delayed.
    pub(super) fn run(
        &mut self,
        direction: Direction,
        input: &[u8],
        is_chunk: bool,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<usize, Ending> {
        let mut at = 0;
        // A client that sends many messages at once often sends them to one topic.
        let mut last: Option<Decided<'_>> = None;
        while at < input.len() {
            let flow = self.flow(direction);
            if flow.is_over {
                // Behind DISCONNECT nothing counts [MQTT-3.14.4-1].
                return Ok(input.len());
            }
            let rest = &input[at..];
            let piece = |len: usize| Piece { bytes: &rest[..len], at: is_chunk.then_some(at) };
            match flow.position {
                Position::Payload(left, mode) => {
                    let here = rest.len().min(left as usize);
                    match mode {
                        PayloadMode::Pass => out.pass(piece(here)),
                        PayloadMode::Drop => {}
                        PayloadMode::Collect => flow.head.extend_from_slice(&rest[..here]),
                    }
                    at += here;
                    flow.progress = flow.progress.saturating_add(here);
                    if direction == Direction::ToBroker && flow.progress >= PROGRESS {
                        flow.progress = 0;
                        self.keep_alive.packet(now);
                        if mode != PayloadMode::Pass {
                            self.ping(now, out);
                        }
                    }
                    let left = left - u32::try_from(here).unwrap_or(left);
                    self.flow(direction).position =
                        if left == 0 { Position::Head } else { Position::Payload(left, mode) };
                    if left == 0 {
                        self.end_payload(direction, mode, now, out)?;
                    }
                }
                Position::Head if flow.head.is_empty() => {
                    if let Some(header) = last.and_then(|last| last.is_like(rest)) {
                        if !self.admit(direction, header, now)? {
                            break;
                        }
                        self.flow(direction).tally.again();
                        out.pass(piece(header.packet_len()));
                        at += header.packet_len();
                        continue;
                    }
                    match self.measure(direction, rest)? {
                        Some((header, len)) if len <= rest.len() => {
                            if !self.admit(direction, header, now)? {
                                break;
                            }
                            let head = piece(len);
                            at += len;
                            self.flow(direction).is_passed_as_it_is = false;
                            self.packet(direction, header, head, now, out)?;
                            last = self.flow(direction).is_passed_as_it_is.then(|| Decided {
                                flags: header.flags,
                                head: &rest[header.len..len],
                                payload_len: header.packet_len() - len,
                            });
                        }
                        _ => {
                            self.flow(direction).head.extend_from_slice(rest);
                            at = input.len();
                        }
                    }
                }
                Position::Head => {
                    let mut head = std::mem::take(&mut flow.head);
                    let before = head.len();
                    head.extend_from_slice(rest);
                    match self.measure(direction, &head)? {
                        Some((header, len)) if len <= head.len() => {
                            let may_take = self.admit(direction, header, now)?;
                            head.truncate(if may_take { len } else { before });
                            if !may_take {
                                self.flow(direction).head = head;
                                break;
                            }
                            at += len.saturating_sub(before);
                            self.packet(direction, header, Piece { bytes: &head, at: None }, now, out)?;
                            self.skip(direction, before.saturating_sub(len));
                        }
                        _ => {
                            self.flow(direction).head = head;
                            at = input.len();
                        }
                    }
                }
            }
        }
        Ok(at)
    }

    /// Of a delivery that is withheld because its head is too large, so many more bytes have arrived already.
    pub(super) fn skip(&mut self, direction: Direction, len: usize) {
        if let Position::Payload(left, PayloadMode::Drop) = &mut self.flow(direction).position {
            *left -= u32::try_from(len).unwrap_or(0).min(*left - 1);
        }
    }

    /// The fixed header of the packet at the front of `bytes`, and the length of its head. `None`: more bytes are needed. Takes
    /// the same few steps whenever bytes arrive.
    pub(super) fn measure(&self, direction: Direction, bytes: &[u8]) -> Result<Option<(FixedHeader, usize)>, Ending> {
        let header = match FixedHeader::decode(bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(error) => return Err(violation(direction, None, error)),
        };
        let is_connack = header.packet_type == PacketType::Connack && direction == Direction::ToClient;
        if !is_connack || self.broker.has_answered {
            Packet::check_header(header, self.version, sender(direction))
                .map_err(|error| violation(direction, Some(header), error))?;
        }
        let max = self.max_packet.min(self.broker.max_packet);
        if direction == Direction::ToBroker && header.packet_len() > max {
            return Err(too_large(header, max));
        }
        match head_len(bytes, header, self.version).map_err(|error| violation(direction, Some(header), error))? {
            Some(len) if len > MAX_HEAD => match (direction, PublishStart::read(bytes, header)) {
                (Direction::ToBroker, _) => {
                    let detail = format!("{:?}: a head of {len} bytes, {MAX_HEAD} are allowed", header.packet_type);
                    Err(Ending::new(CloseReason::PacketTooLarge, Disconnect::PacketTooLarge, detail))
                }
                // What other clients publish must not end this session: it is withheld by what precedes the properties.
                (Direction::ToClient, Some(start)) if header.packet_type == PacketType::Publish => {
                    Ok(Some((header, start.len)))
                }
                (Direction::ToClient, _) => Err(violation(direction, Some(header), Error::TooLarge)),
            },
            len => Ok(len.map(|len| (header, len))),
        }
    }

    /// Whether the next packet may be taken now.
    pub(super) fn admit(&mut self, direction: Direction, header: FixedHeader, now: Instant) -> Result<bool, Ending> {
        if direction == Direction::ToClient {
            return Ok(true);
        }
        if self.must_wait() {
            return Ok(false);
        }
        if header.packet_type == PacketType::Subscribe && self.work.available(WORK, now) == 0 {
            self.throttle.pause_until(self.work.ready_at(WORK, WORK.burst / 10));
            return Ok(false);
        }
        if header.packet_type != PacketType::Publish {
            return Ok(true);
        }
        let may_take = self.throttle.take_message(&self.rules.limits, now).map_err(rate_exceeded)?;
        if !may_take {
            self.rules.count_exceeded(Limit::MessageRate, "", &self.info);
        }
        Ok(may_take)
    }

    /// Whether the client has to wait for the broker.
    pub(super) fn must_wait(&self) -> bool {
        self.subscriptions.is_full() || self.to_client.replies.len() > MAX_REPLIES
    }

    pub(super) fn packet(
        &mut self,
        direction: Direction,
        header: FixedHeader,
        head: Piece<'_>,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        match direction {
            Direction::ToBroker => self.packet_from_client(header, head, None, now, out),
            Direction::ToClient => self.packet_from_broker(header, head, now, out),
        }
    }

    /// The head of a PUBLISH is decided on; its payload follows.
    pub(super) fn begin_payload(
        &mut self,
        direction: Direction,
        len: usize,
        mode: PayloadMode,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        match u32::try_from(len).unwrap_or(MAX_REMAINING_LENGTH) {
            0 => self.end_payload(direction, mode, now, out),
            len => {
                self.flow(direction).position = Position::Payload(len, mode);
                Ok(())
            }
        }
    }

    /// A PUBLISH is complete.
    pub(super) fn end_payload(
        &mut self,
        direction: Direction,
        mode: PayloadMode,
        now: Instant,
        out: &mut Out<'_, '_>,
    ) -> Result<(), Ending> {
        if direction == Direction::ToBroker {
            self.keep_alive.packet(now);
        }
        match mode {
            PayloadMode::Pass => self.flush_replies(direction, out),
            PayloadMode::Drop => {
                if let Some(PendingAck { packet_type, packet_id, code }) = self.flow(direction).ack.take() {
                    let mut packet = Vec::with_capacity(8);
                    Ack::encode(packet_type, packet_id, self.version, code, &mut packet);
                    self.reply_to_sender(direction, &packet, out);
                }
            }
            PayloadMode::Collect => return self.collected(now, out),
        }
        Ok(())
    }

    /// Answers the sender of the bytes that move in `direction`, at the next packet boundary of the stream to it.
    pub(super) fn reply_to_sender(&mut self, direction: Direction, packet: &[u8], out: &mut Out<'_, '_>) {
        let is_connected = self.broker.has_answered;
        // Packets of the gateway's own, too, are no larger than the client accepts [MQTT-3.1.2-24].
        if direction == Direction::ToBroker && packet.len() > self.client.max_packet {
            return;
        }
        // Nothing follows a DISCONNECT [MQTT-3.14.4-1].
        if self.flow(direction.reverse()).is_over {
            return;
        }
        let back = self.flow(direction.reverse());
        if matches!(back.position, Position::Payload(_, PayloadMode::Pass)) || !is_connected {
            back.replies.extend_from_slice(packet);
        } else {
            out.injected.reply.extend_from_slice(packet);
        }
    }

    /// The stream that moves in `direction` is at a packet boundary: what waits for that is written.
    pub(super) fn flush_replies(&mut self, direction: Direction, out: &mut Out<'_, '_>) {
        let replies = std::mem::take(&mut self.flow(direction).replies);
        if !replies.is_empty() {
            out.write().extend_from_slice(&replies);
        }
    }
}

const fn sender(direction: Direction) -> Sender {
    match direction {
        Direction::ToBroker => Sender::Client,
        Direction::ToClient => Sender::Server,
    }
}
