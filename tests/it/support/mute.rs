//! Removes the messages of watch streams from a connection, and nothing else.

use std::collections::HashMap;

/// The client's bytes before its first frame.
const PREFACE: usize = 24;
/// Length (3 bytes), kind, flags, stream (4 bytes).
const HEADER: usize = 9;
const DATA: u8 = 0;
/// gRPC puts a flag and a length before each message.
const MESSAGE_HEADER: usize = 5;
/// The first bytes of a `WatchRequest`: one of its three fields, each a message. A `LeaseKeepAliveRequest` starts with
/// a number.
const WATCH_REQUEST: [u8; 3] = [0x0a, 0x12, 0x1a];
const END_STREAM: u8 = 1;

/// Both directions of one plain-text gRPC connection.
#[derive(Debug)]
pub(super) struct Muzzle {
    from_client: Frames,
    from_server: Frames,
    /// Whether a stream that its client has not ended carries watches.
    streams: HashMap<u32, bool>,
}

/// One direction, split into whole frames.
#[derive(Debug, Default)]
struct Frames {
    skip: usize,
    rest: Vec<u8>,
}

struct Frame {
    bytes: Vec<u8>,
}

impl Frame {
    fn is_data(&self) -> bool {
        self.bytes[3] == DATA
    }

    fn ends_stream(&self) -> bool {
        self.bytes[3] <= 1 && self.bytes[4] & END_STREAM != 0
    }

    fn stream(&self) -> u32 {
        u32::from_be_bytes([self.bytes[5] & 0x7f, self.bytes[6], self.bytes[7], self.bytes[8]])
    }
}

impl Frames {
    fn feed(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.rest.extend_from_slice(&bytes[skipped..]);
        let mut frames = Vec::new();
        while self.rest.len() >= HEADER {
            let h = &self.rest;
            let length = usize::from(h[0]) << 16 | usize::from(h[1]) << 8 | usize::from(h[2]);
            if self.rest.len() < HEADER + length {
                break;
            }
            let later = self.rest.split_off(HEADER + length);
            frames.push(Frame { bytes: std::mem::replace(&mut self.rest, later) });
        }
        frames
    }
}

impl Muzzle {
    pub(super) fn new() -> Self {
        let from_client = Frames { skip: PREFACE, rest: Vec::new() };
        Self { from_client, from_server: Frames::default(), streams: HashMap::new() }
    }

    pub(super) fn client_sent(&mut self, bytes: &[u8]) {
        for frame in self.from_client.feed(bytes) {
            let stream = frame.stream();
            if frame.ends_stream() {
                self.streams.remove(&stream);
            } else if frame.is_data()
                && let Some(first) = frame.bytes.get(HEADER + MESSAGE_HEADER)
            {
                self.streams.entry(stream).or_insert_with(|| WATCH_REQUEST.contains(first));
            }
        }
    }

    /// The bytes that the client gets.
    pub(super) fn server_sent(&mut self, bytes: &[u8], mute: bool) -> Vec<u8> {
        let mut heard = Vec::with_capacity(bytes.len());
        for frame in self.from_server.feed(bytes) {
            let silenced = mute && frame.is_data() && self.streams.get(&frame.stream()) == Some(&true);
            if !silenced {
                heard.extend_from_slice(&frame.bytes);
            }
        }
        heard
    }
}
