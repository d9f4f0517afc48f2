//! Lets the kubelet register the driver.
//!
//! The kubelet calls a plugin's registration socket with the socket's path as `:authority` (pkg/kubelet/pluginmanager dials without a
//! name; its CSI client says "localhost"). A path is no authority, and Rust's HTTP/2 refuses such requests before any service
//! sees them. So on that one socket the header's name is changed on its way in, from `:authority` to `host`, which may hold it.

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex},
    net::UnixStream,
};

/// What a client says first on an HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Larger frames need a setting that the server does not give.
const LARGEST_FRAME: usize = 1 << 20;
/// Indices of names in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
const HOST: usize = 38;

/// A connection as the server is to see it.
pub fn tolerant(stream: UnixStream) -> DuplexStream {
    let (near, far) = duplex(64 << 10);
    tokio::spawn(async move {
        let (read, mut write) = stream.into_split();
        let (mut answers, requests) = tokio::io::split(far);
        tokio::select! {
            result = forward(read, requests) => if let Err(error) = result { tracing::debug!(%error, "a kubelet's connection"); },
            _ = tokio::io::copy(&mut answers, &mut write) => {}
        }
    });
    near
}

async fn forward(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    loop {
        let mut header = [0; FRAME_HEADER];
        from.read_exact(&mut header).await?;
        let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
        if length > LARGEST_FRAME {
            return Err(std::io::Error::other("a frame that is too large"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        if header[3] == HEADERS {
            // What cannot be read is passed on as it is: refusing it is the server's business.
            payload = renamed(&payload, header[4]).unwrap_or(payload);
            let length = payload.len().to_be_bytes();
            header[..3].copy_from_slice(&length[length.len() - 3..]);
        }
        to.write_all(&header).await?;
        to.write_all(&payload).await?;
    }
}

/// The payload of a HEADERS frame with `:authority` renamed to `host`. `None`: it is not whole.
fn renamed(payload: &[u8], flags: u8) -> Option<Vec<u8>> {
    let padding = if flags & PADDED != 0 { usize::from(*payload.first()?) } else { 0 };
    let begin = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let end = payload.len().checked_sub(padding)?;
    let block = payload.get(begin..end)?;
    let mut out = payload[..begin].to_vec();
    let mut at = 0;
    while at < block.len() {
        let (kind, prefix) = match block[at] {
            b if b & 0x80 != 0 => (0x80, 7),
            b if b & 0x40 != 0 => (0x40, 6),
            b if b & 0x20 != 0 => (0x20, 5),
            b => (b & 0xf0, 4),
        };
        let start = at;
        let index = integer(block, &mut at, prefix)?;
        if kind == 0x80 || kind == 0x20 {
            out.extend_from_slice(&block[start..at]);
            continue;
        }
        if index == AUTHORITY {
            put_integer(&mut out, kind, prefix, HOST);
        } else {
            out.extend_from_slice(&block[start..at]);
        }
        let strings = at;
        if index == 0 {
            skip_string(block, &mut at)?;
        }
        skip_string(block, &mut at)?;
        out.extend_from_slice(&block[strings..at]);
    }
    out.extend_from_slice(&payload[end..]);
    Some(out)
}

/// HPACK's integer with a prefix of so many bits (RFC 7541, section 5.1).
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let limit = (1usize << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & limit;
    *at += 1;
    if value < limit {
        return Some(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_integer(out: &mut Vec<u8>, kind: u8, prefix: u32, value: usize) {
    let limit = (1usize << prefix) - 1;
    if value < limit {
        out.push(kind | u8::try_from(value).unwrap_or_default());
        return;
    }
    out.push(kind | u8::try_from(limit).unwrap_or_default());
    let mut rest = value - limit;
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap_or_default() | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap_or_default());
}

fn skip_string(block: &[u8], at: &mut usize) -> Option<()> {
    let length = integer(block, at, 7)?;
    *at = at.checked_add(length)?;
    (*at <= block.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `:method POST`, `:scheme http`, `:path /x` and `:authority a` as literals, with and without indexing, and a plain header.
    #[test]
    fn the_name_changes_and_nothing_else() {
        for (written, wanted) in [
            (vec![0x41, 1, b'a'], vec![0x66, 1, b'a']),
            (vec![0x01, 1, b'a'], vec![0x0f, 23, 1, b'a']),
            (vec![0x11, 1, b'a'], vec![0x1f, 23, 1, b'a']),
        ] {
            let around = |middle: &[u8]| {
                let mut block = vec![0x83, 0x86, 0x44, 2, b'/', b'x'];
                block.extend_from_slice(middle);
                block.extend_from_slice(&[0x40, 1, b'k', 1, b'v', 0xbe, 0x3f, 0xe1, 0x1f]);
                block
            };
            assert_eq!(renamed(&around(&written), 0x4), Some(around(&wanted)));
            let mut padded = vec![2, 0, 0, 0, 0, 1];
            padded.extend(around(&written));
            padded.extend([0, 0]);
            let mut expected = vec![2, 0, 0, 0, 0, 1];
            expected.extend(around(&wanted));
            expected.extend([0, 0]);
            assert_eq!(renamed(&padded, PADDED | PRIORITY | 0x4), Some(expected));
        }
    }

    #[test]
    fn what_is_cut_off_is_left_alone() {
        assert_eq!(renamed(&[0x41, 9, b'a'], 0x4), None);
        assert_eq!(renamed(&[0x7f], 0x4), None);
        assert_eq!(renamed(&[], PADDED), None);
        assert_eq!(renamed(&[5, 0x83], PADDED), None);
        assert_eq!(renamed(&[], 0x4), Some(vec![]));
    }

    #[test]
    fn integers_come_back() {
        for value in [0, 1, 14, 15, 38, 127, 128, 1337, 70_000] {
            let mut out = Vec::new();
            put_integer(&mut out, 0, 4, value);
            let mut at = 0;
            assert_eq!(integer(&out, &mut at, 4), Some(value));
            assert_eq!(at, out.len());
        }
    }
}
