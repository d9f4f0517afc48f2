//! Cuts a tar stream into whole tar archives. Pure: bytes in, events out, no buffer beyond one header and its extensions.
//!
//! A backup comes as one tar of unknown size. Cut at file boundaries, with two zero blocks after each part, every part can be
//! unpacked on its own and in any order by any tar: so a restore can work on several at once, and a person needs no tool of ours.
//! A single file is never split; one that is larger than the target is a part by itself.

use bytes::{Bytes, BytesMut};

/// Bytes of a part, as far as file boundaries allow.
pub const PART_BYTES: u64 = 256 * 1024 * 1024;
/// A tar block.
const BLOCK: u64 = 512;
/// What ends an archive.
const END: &[u8] = &[0; 1024];
/// Longest extension headers in front of one file: paths are far shorter, and a stream out of step must not fill the memory.
const LONGEST_EXTENSION: u64 = 1024 * 1024;

/// The stream is no tar as `pg_basebackup` writes it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TarError {
    /// A header's checksum is wrong.
    #[error("the tar stream is damaged at byte {0}: a header's checksum is wrong")]
    Checksum(u64),
    /// A number in a header cannot be read.
    #[error("the tar stream is damaged at byte {0}: a size cannot be read")]
    Size(u64),
    /// An extension header is longer than any path.
    #[error("the tar stream is damaged at byte {0}: an extension header has {1} bytes")]
    Extension(u64, u64),
    /// There is something after the end.
    #[error("the tar stream goes on after its end, at byte {0}")]
    AfterEnd(u64),
    /// It ended before its end.
    #[error("the tar stream broke off after {0} bytes")]
    Truncated(u64),
    /// There is no file in it.
    #[error("the tar stream has no files")]
    Empty,
}

/// What happens on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A part begins.
    Begin,
    /// Bytes of the part.
    Data(Bytes),
    /// The part is whole.
    End,
    /// Content of a file that was asked for; it is in the part too.
    Watched {
        /// Its place in the list given to [`Cutter::new`].
        index: usize,
        /// Some of its bytes.
        data: Bytes,
    },
}

#[derive(Debug)]
enum State {
    /// Collecting a header.
    Header,
    /// Collecting an extension header's body, padded; `x` and `L` also say something about the next file.
    Extension { left: u64, body: u64, kind: u8, from: usize },
    /// Passing on a file's body: bytes of the file, then of padding.
    File { left: u64, padding: u64, watched: Option<usize> },
    /// After the first zero block.
    Ended,
}

/// Cuts one stream.
#[derive(Debug)]
pub struct Cutter {
    target: u64,
    watched: Vec<String>,
    state: State,
    /// The header that is being collected, after the extensions that belong to the next file.
    group: BytesMut,
    /// Where in `group` the current header begins.
    header_from: usize,
    /// Global extensions: they hold for all files after them, so every later part repeats them.
    globals: BytesMut,
    /// A size that an extension gives for the next file, and its name.
    next_size: Option<u64>,
    next_name: Option<String>,
    /// Bytes in the current part; None: no part is open.
    part: Option<u64>,
    position: u64,
    files: u64,
}

impl Cutter {
    /// Cuts into parts of about `target` bytes and reports the content of the files with these names.
    pub fn new(target: u64, watched: &[&str]) -> Self {
        Self {
            target,
            watched: watched.iter().map(ToString::to_string).collect(),
            state: State::Header,
            group: BytesMut::new(),
            header_from: 0,
            globals: BytesMut::new(),
            next_size: None,
            next_name: None,
            part: None,
            position: 0,
            files: 0,
        }
    }

    /// Bytes taken in.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Takes in bytes; what they lead to is added to `events`.
    ///
    /// # Errors
    /// When the stream is no tar. Nothing after that is meaningful.
    pub fn push(&mut self, mut input: Bytes, events: &mut Vec<Event>) -> Result<(), TarError> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header => {
                    let missing = BLOCK as usize - (self.group.len() - self.header_from);
                    let taken = input.split_to(missing.min(input.len()));
                    self.position += taken.len() as u64;
                    self.group.extend_from_slice(&taken);
                    if taken.len() == missing {
                        self.header(events)?;
                    }
                }
                State::Extension { left, .. } => {
                    let taken = input.split_to((*left).min(input.len() as u64) as usize);
                    *left -= taken.len() as u64;
                    self.position += taken.len() as u64;
                    self.group.extend_from_slice(&taken);
                    self.extension_if_whole();
                }
                State::File { left, padding, watched } => {
                    let is_body = *left > 0;
                    let from = if is_body { &mut *left } else { &mut *padding };
                    let taken = input.split_to((*from).min(input.len() as u64) as usize);
                    *from -= taken.len() as u64;
                    self.position += taken.len() as u64;
                    if let (Some(index), true) = (*watched, is_body) {
                        events.push(Event::Watched { index, data: taken.clone() });
                    }
                    if *left == 0 && *padding == 0 {
                        self.state = State::Header;
                    }
                    self.emit(taken, events);
                }
                State::Ended => {
                    if input.iter().any(|b| *b != 0) {
                        return Err(TarError::AfterEnd(self.position));
                    }
                    self.position += input.len() as u64;
                    input.clear();
                }
            }
        }
        Ok(())
    }

    /// The stream is over: ends the last part. Gives the number of files.
    ///
    /// # Errors
    /// When the stream broke off or had no files.
    pub fn finish(mut self, events: &mut Vec<Event>) -> Result<u64, TarError> {
        if !matches!(self.state, State::Ended) {
            return Err(TarError::Truncated(self.position));
        }
        if self.part.is_none() {
            return Err(TarError::Empty);
        }
        self.end_part(events);
        Ok(self.files)
    }

    fn emit(&mut self, bytes: Bytes, events: &mut Vec<Event>) {
        if let Some(part) = &mut self.part {
            *part += bytes.len() as u64;
        }
        events.push(Event::Data(bytes));
    }

    fn end_part(&mut self, events: &mut Vec<Event>) {
        events.push(Event::Data(Bytes::from_static(END)));
        events.push(Event::End);
        self.part = None;
    }

    fn header(&mut self, events: &mut Vec<Event>) -> Result<(), TarError> {
        let at = self.position - BLOCK;
        let header = &self.group[self.header_from..];
        if header.iter().all(|b| *b == 0) {
            self.state = State::Ended;
            return Ok(());
        }
        if !checksum_matches(header) {
            return Err(TarError::Checksum(at));
        }
        let size = number(&header[124..136]).ok_or(TarError::Size(at))?;
        let kind = header[156];
        if matches!(kind, b'x' | b'g' | b'L' | b'K') {
            if size > LONGEST_EXTENSION || self.group.len() as u64 > LONGEST_EXTENSION {
                return Err(TarError::Extension(at, size));
            }
            let from = self.header_from;
            self.state = State::Extension { left: padded(size), body: size, kind, from };
            self.extension_if_whole();
            return Ok(());
        }
        // Links, folders and devices have no body, whatever their size field says.
        let body = if matches!(kind, b'1'..=b'6') { 0 } else { self.next_size.unwrap_or(size) };
        let name = self.next_name.take().unwrap_or_else(|| name_of(header));
        self.next_size = None;
        let watched = self.watched.iter().position(|w| w == name.trim_start_matches("./"));
        self.files += 1;
        let group = self.group.split().freeze();
        self.header_from = 0;
        let whole = group.len() as u64 + padded(body);
        if self.part.is_some_and(|part| part + whole > self.target) {
            self.end_part(events);
        }
        if self.part.is_none() {
            self.part = Some(0);
            events.push(Event::Begin);
            if !self.globals.is_empty() {
                self.emit(Bytes::copy_from_slice(&self.globals), events);
            }
        }
        self.emit(group, events);
        if body > 0 {
            self.state = State::File { left: body, padding: padded(body) - body, watched };
        }
        Ok(())
    }

    fn extension_if_whole(&mut self) {
        let State::Extension { left: 0, body, kind, from } = self.state else { return };
        let data = &self.group[from + BLOCK as usize..from + BLOCK as usize + body as usize];
        match kind {
            b'x' => {
                for (key, value) in pax_records(data) {
                    match key {
                        "size" => self.next_size = value.parse().ok(),
                        "path" => self.next_name = Some(value.to_string()),
                        _ => {}
                    }
                }
            }
            b'L' => self.next_name = Some(text(data)),
            _ => {}
        }
        if kind == b'g' {
            let global = self.group.split_off(from);
            self.globals.extend_from_slice(&global);
            // In the part that is open it takes effect in its place, through the group of the next file.
            if self.part.is_some() {
                self.group.extend_from_slice(&global);
            }
        }
        self.header_from = self.group.len();
        self.state = State::Header;
    }
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK) * BLOCK
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn name_of(header: &[u8]) -> String {
    let (name, prefix) = (text(&header[0..100]), text(&header[345..500]));
    let ustar = header[257..262] == *b"ustar";
    if ustar && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
}

/// A number in a header: octal digits, or big-endian after a set top bit where octal does not suffice.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let wide = field.iter().fold(0_u128, |all, byte| (all << 8) | u128::from(*byte));
        let value = wide & !(0x80_u128 << (8 * (field.len() - 1)));
        // More than any disk holds could only overflow sums later.
        return u64::try_from(value).ok().filter(|v| *v < 1 << 56);
    }
    let digits = text(field);
    let digits = digits.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn checksum_matches(header: &[u8]) -> bool {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) })
        .sum();
    number(&header[148..156]) == Some(sum)
}

/// Records of a pax header: `<length> <key>=<value>\n`.
fn pax_records(mut data: &[u8]) -> Vec<(&str, &str)> {
    let mut records = Vec::new();
    while let Some(space) = data.iter().position(|b| *b == b' ') {
        let length = std::str::from_utf8(&data[..space]).ok().and_then(|l| l.parse::<usize>().ok());
        let Some(length) = length.filter(|l| (space + 2..=data.len()).contains(l)) else { break };
        let record = std::str::from_utf8(&data[space + 1..length - 1]).ok();
        records.extend(record.and_then(|r| r.split_once('=')));
        data = &data[length..];
    }
    records
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One member as tar writes it.
    pub(crate) fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut header = vec![0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000600");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = kind;
        header[257..263].copy_from_slice(b"ustar\0");
        seal(&mut header);
        header.extend_from_slice(content);
        header.resize(512 + content.len().div_ceil(512) * 512, 0);
        header
    }

    fn seal(header: &mut [u8]) {
        header[148..156].fill(b' ');
        let sum: u64 = header[..512].iter().map(|b| u64::from(*b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }

    pub(crate) fn archive(members: &[Vec<u8>]) -> Vec<u8> {
        let mut all = members.concat();
        all.extend_from_slice(END);
        all
    }

    struct Cut {
        parts: Vec<Vec<u8>>,
        watched: Vec<Vec<u8>>,
        files: u64,
    }

    fn cut(input: &[u8], target: u64, step: usize, watched: &[&str]) -> Result<Cut, TarError> {
        let mut cutter = Cutter::new(target, watched);
        let mut events = Vec::new();
        for chunk in input.chunks(step) {
            cutter.push(Bytes::copy_from_slice(chunk), &mut events)?;
        }
        let files = cutter.finish(&mut events)?;
        let mut result = Cut { parts: Vec::new(), watched: vec![Vec::new(); watched.len()], files };
        let mut open = false;
        for event in events {
            match event {
                Event::Begin => {
                    assert!(!open);
                    open = true;
                    result.parts.push(Vec::new());
                }
                Event::Data(data) => {
                    assert!(open);
                    result.parts.last_mut().unwrap().extend_from_slice(&data);
                }
                Event::End => open = false,
                Event::Watched { index, data } => result.watched[index].extend_from_slice(&data),
            }
        }
        assert!(!open);
        Ok(result)
    }

    /// What a part holds besides its end.
    fn body(part: &[u8]) -> &[u8] {
        assert_eq!(part.len() % 512, 0);
        part.strip_suffix(END).unwrap()
    }

    #[test]
    fn parts_are_whole_archives_and_together_they_are_the_stream() {
        let members: Vec<Vec<u8>> =
            (0..20).map(|i| member(&format!("base/1/{i}"), b'0', &vec![i as u8; 700 * i])).collect();
        let cut = cut(&archive(&members), 8192, 777, &["base/1/3"]).unwrap();
        assert!(cut.parts.len() > 3);
        assert_eq!(cut.files, 20);
        let bodies: Vec<u8> = cut.parts.iter().flat_map(|p| body(p)).copied().collect();
        assert_eq!(bodies, members.concat());
        assert_eq!(cut.watched[0], vec![3; 2100]);
        for part in &cut.parts {
            // A part is larger than the target only when it is one file.
            assert!(body(part).len() <= 8192 || members.contains(&body(part).to_vec()));
        }
    }

    #[test]
    fn extension_headers_stay_with_their_file_and_may_name_it() {
        let pax = b"24 path=a/very/long/nam\n12 size=600\n";
        assert_eq!(pax_records(pax), [("path", "a/very/long/nam"), ("size", "600")]);
        let mut huge = member("x", b'0', &[1; 600]);
        // The header itself says zero: the extension counts.
        huge[124..135].copy_from_slice(b"00000000000");
        seal(&mut huge);
        let long = [member("pax", b'x', pax), huge].concat();
        let gnu = [member("././@LongLink", b'L', b"gnu/long\0"), member("g", b'0', b"12345")].concat();
        let first = member("first", b'0', &[0; 100]);
        let input = archive(&[first.clone(), long.clone(), gnu.clone()]);
        let cut = cut(&input, 1, 100, &["a/very/long/nam", "gnu/long"]).unwrap();
        assert_eq!(cut.parts.iter().map(|p| body(p).to_vec()).collect::<Vec<_>>(), [first, long, gnu]);
        assert_eq!(cut.watched, [vec![1; 600], b"12345".to_vec()]);
    }

    #[test]
    fn global_headers_are_repeated_in_every_part_after_them() {
        let global = member("global", b'g', b"18 comment=global\n");
        let (a, b) = (member("a", b'0', b"a"), member("b", b'5', b""));
        let first = cut(&archive(&[global.clone(), a.clone(), b.clone()]), 1, 512, &[]).unwrap();
        let expected = [[global.clone(), a.clone()].concat(), [global.clone(), b.clone()].concat()];
        assert_eq!(first.parts.iter().map(|p| body(p).to_vec()).collect::<Vec<_>>(), expected);
        // In the middle of one part it keeps its place.
        let later = cut(&archive(&[a.clone(), global.clone(), b.clone()]), 1 << 20, 512, &[]).unwrap();
        assert_eq!(body(&later.parts[0]), [a, global, b].concat());
    }

    #[test]
    fn a_stream_that_breaks_off_or_is_out_of_step_is_refused() {
        let whole = archive(&[member("a", b'0', &[7; 1000]), member("b", b'0', &[7; 10])]);
        for end in [0, 100, 512, 1000, 1536, 2560] {
            let error = cut(&whole[..end], 1 << 20, 100, &[]).map(|_| ()).unwrap_err();
            assert_eq!(error, TarError::Truncated(end as u64), "{end}");
        }
        let mut damaged = whole.clone();
        damaged[3] ^= 1;
        assert_eq!(cut(&damaged, 1 << 20, 100, &[]).map(|_| ()).unwrap_err(), TarError::Checksum(0));
        let mut longer = whole.clone();
        longer.push(1);
        assert!(matches!(cut(&longer, 1 << 20, 100, &[]).map(|_| ()), Err(TarError::AfterEnd(_))));
        assert_eq!(cut(END, 1 << 20, 100, &[]).map(|_| ()).unwrap_err(), TarError::Empty);
    }

    #[test]
    fn reads_sizes_that_octal_cannot_hold() {
        let mut field = [0_u8; 12];
        field[0] = 0x80;
        field[4..12].copy_from_slice(&(20_u64 << 30).to_be_bytes());
        assert_eq!(number(&field), Some(20 << 30));
        assert_eq!(number(b"00000001750\0"), Some(1000));
        assert_eq!(number(b"zzz"), None);
    }

    proptest! {
        #[test]
        fn any_files_in_any_steps_survive(
            sizes in prop::collection::vec(0_usize..5000, 1..30),
            target in 1_u64..20_000,
            step in 1_usize..3000,
        ) {
            let members: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(i, s)| member(&format!("f{i}"), b'0', &vec![i as u8; *s])).collect();
            let cut = cut(&archive(&members), target, step, &[]).unwrap();
            let bodies: Vec<u8> = cut.parts.iter().flat_map(|p| body(p)).copied().collect();
            prop_assert_eq!(bodies, members.concat());
        }

        #[test]
        fn no_input_makes_it_panic(input in prop::collection::vec(any::<u8>(), 0..3000)) {
            let _ = cut(&input, 1000, 512, &["x"]);
        }
    }
}
