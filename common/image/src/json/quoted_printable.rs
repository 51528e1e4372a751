//! Quoted-printable as CRIU's crit writes the names of unix sockets (RFC 2045 section 6.7, with
//! that tool's rules for dots and line ends). A name is bytes and may begin with 0.

const LONGEST_LINE: usize = 76;

/// Bytes to text.
pub fn encode(data: &[u8]) -> String {
    let mut writer = Writer {
        out: Vec::new(),
        column: 0,
        crlf: lines_end_crlf(data),
    };
    let mut at = 0;
    while let Some(&byte) = data.get(at) {
        let next = data.get(at + 1).copied();
        let after = data.get(at + 2).copied();
        if byte == b'\n' || (byte == b'\r' && next == Some(b'\n')) {
            writer.line_end();
            at += if byte == b'\r' { 2 } else { 1 };
            continue;
        }
        let blank = byte == b' ' || byte == b'\t';
        let before_line_end = next == Some(b'\n') || (next == Some(b'\r') && after == Some(b'\n'));
        let lone_dot =
            byte == b'.' && writer.column == 0 && matches!(next, None | Some(0 | b'\n' | b'\r'));
        let literal = (33..=126).contains(&byte) && byte != b'=' || blank || byte == b'\r';
        if !literal || lone_dot || (blank && (next.is_none() || before_line_end)) {
            writer.hex(byte, next == Some(b'\n') && blank);
        } else {
            writer.plain(byte, next);
        }
        at += 1;
    }
    // Only ASCII was written.
    writer.out.into_iter().map(char::from).collect()
}

/// Bytes to one line that only one sequence of bytes gives: everything outside 33..126 is `=XX`.
pub fn encode_strictly(data: &[u8]) -> String {
    data.iter().fold(String::new(), |mut text, byte| {
        if (33..=126).contains(byte) && *byte != b'=' {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("={byte:02X}"));
        }
        text
    })
}

/// All line ends are written the way the first one was.
fn lines_end_crlf(data: &[u8]) -> bool {
    let first = data.iter().position(|byte| *byte == b'\n');
    first
        .and_then(|at| at.checked_sub(1))
        .and_then(|at| data.get(at))
        == Some(&b'\r')
}

struct Writer {
    out: Vec<u8>,
    column: usize,
    crlf: bool,
}

impl Writer {
    fn line_end(&mut self) {
        if self.crlf {
            self.out.push(b'\r');
        }
        self.out.push(b'\n');
        self.column = 0;
    }

    fn soft_break(&mut self) {
        self.out.push(b'=');
        self.line_end();
    }

    fn hex(&mut self, byte: u8, line_ends_next: bool) {
        if !line_ends_next && self.column + 3 >= LONGEST_LINE {
            self.soft_break();
        }
        self.out.extend(format!("={byte:02X}").bytes());
        self.column += 3;
    }

    fn plain(&mut self, byte: u8, next: Option<u8>) {
        let ends = matches!(next, None | Some(b'\n'));
        if !ends && self.column + 1 >= LONGEST_LINE {
            self.soft_break();
        }
        self.out.push(byte);
        self.column += 1;
    }
}

/// Text to bytes. `None` when the text is not ASCII.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() {
        return None;
    }
    let mut rest = text.as_bytes();
    let mut out = Vec::new();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'=' {
            out.push(byte);
            continue;
        }
        rest = match tail {
            [] => tail,
            [b'\n', after @ ..] | [b'\r', b'\n', after @ ..] => after,
            [b'=', after @ ..] => {
                out.push(b'=');
                after
            }
            [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                out.push(hex_digit(*high) << 4 | hex_digit(*low));
                after
            }
            _ => {
                out.push(b'=');
                tail
            }
        };
    }
    Some(out)
}

fn hex_digit(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abstract_names() {
        assert_eq!(encode(b"\0a=b"), "=00a=3Db");
        assert_eq!(encode(b"\x7f\xff a\t"), "=7F=FF a=09");
    }

    #[test]
    fn dots_and_line_ends() {
        assert_eq!(encode(b"."), "=2E");
        assert_eq!(encode(b".a\n."), ".a\n=2E");
        assert_eq!(encode(b"a \nb"), "a=20\nb");
        assert_eq!(encode(b"a\r\nb\nc"), "a\r\nb\r\nc");
        assert_eq!(encode(b"a\rb"), "a\rb");
    }

    #[test]
    fn long_lines_break_softly() {
        assert_eq!(
            encode(&[b'x'; 77]),
            format!("{}=\n{}", "x".repeat(75), "xx")
        );
        assert_eq!(encode(&[b'x'; 76]), "x".repeat(76));
        let zeros = encode(&[0; 30]);
        assert_eq!(zeros.lines().next().map(str::len), Some(76));
    }

    #[test]
    fn every_pair_of_bytes_comes_back() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let data = [first, second];
                let mixed_line_ends = data.contains(&b'\n');
                if !mixed_line_ends {
                    assert_eq!(decode(&encode(&data)).as_deref(), Some(&data[..]));
                }
            }
        }
    }

    #[test]
    fn loose_text_is_read_as_the_peer_reads_it() {
        for (text, bytes) in [
            ("=3d=3D", "=="),
            ("a=\nb", "ab"),
            ("=zz", "=zz"),
            ("a=", "a"),
            ("==", "="),
        ] {
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()), "{text:?}");
        }
        assert_eq!(decode("\u{e9}"), None);
    }
}
