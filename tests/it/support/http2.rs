//! As much of HTTP/2 as is needed to find the start of a unary call's answer.

use std::collections::HashSet;

/// The client's bytes before its first frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length (3 bytes), kind, flags, stream (4 bytes).
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// One direction of a connection, split into frames.
#[derive(Debug, Default)]
struct Frames {
    header: Vec<u8>,
    /// Bytes to skip before the next frame's header.
    skip: usize,
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Its start in the given bytes; 0 if it started before them.
    begin: usize,
}

impl Frames {
    /// The frames whose header ends within these bytes.
    fn feed(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            if self.skip > 0 {
                let step = self.skip.min(bytes.len() - at);
                self.skip -= step;
                at += step;
                continue;
            }
            self.header.push(bytes[at]);
            at += 1;
            if self.header.len() == HEADER {
                let h = std::mem::take(&mut self.header);
                self.skip = usize::from(h[0]) << 16 | usize::from(h[1]) << 8 | usize::from(h[2]);
                let stream = u32::from_be_bytes([h[5] & 0x7f, h[6], h[7], h[8]]);
                frames.push(Frame { kind: h[3], flags: h[4], stream, begin: at.saturating_sub(HEADER) });
            }
        }
        frames
    }
}

/// Both directions of one plain-text gRPC connection.
///
/// The client of a unary call ends its side of the stream with its first message; watch and keep-alive streams stay
/// open.
#[derive(Debug)]
pub(super) struct Calls {
    from_client: Frames,
    from_server: Frames,
    unanswered: HashSet<u32>,
}

impl Calls {
    pub(super) fn new() -> Self {
        let from_client = Frames { header: Vec::new(), skip: PREFACE.len() };
        Self { from_client, from_server: Frames::default(), unanswered: HashSet::new() }
    }

    pub(super) fn client_sent(&mut self, bytes: &[u8]) {
        for frame in self.from_client.feed(bytes) {
            if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
                self.unanswered.insert(frame.stream);
            }
        }
    }

    /// The position in these bytes at which the first answer to a unary call starts, if one does.
    pub(super) fn server_sent(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut first = None;
        for frame in self.from_server.feed(bytes) {
            if matches!(frame.kind, DATA | HEADERS) && self.unanswered.remove(&frame.stream) {
                first.get_or_insert(frame.begin);
            }
        }
        first
    }
}
