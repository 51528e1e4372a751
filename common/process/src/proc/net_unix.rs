//! /proc/net/unix: the unix sockets of a network namespace, as unix_seq_show() of
//! net/unix/af_unix.c prints them. sock_diag tells more (peers, queues); this text is for kernels
//! without CONFIG_UNIX_DIAG.
//!
//! An abstract name is printed with every NUL as `@`, so a name with a real `@` inside cannot be
//! recovered from here, and a path with a newline breaks its line, which is then an error.

use super::text::{Line, ParseError, lines};

/// __SO_ACCEPTCON in the flags column: the socket listens.
const ACCEPTS: u32 = 1 << 16;

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocketLine {
    /// References; the socket's user is one.
    pub refcount: u32,
    /// Whether it listens.
    pub listening: bool,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub sock_type: u16,
    /// SS_* of include/uapi/linux/net.h: 1 unconnected, 3 connected.
    pub state: u8,
    /// Inode in sockfs; 0 for one that waits to be accepted.
    pub ino: u64,
    /// Bound name: a path, or with a leading `@` an abstract name. `None` when unbound.
    pub name: Option<Vec<u8>>,
}

/// Parses the whole of /proc/net/unix.
pub fn parse_net_unix(text: &[u8]) -> Result<Vec<UnixSocketLine>, ParseError> {
    lines("net/unix", text).skip(1).map(parse_socket).collect()
}

fn parse_socket(line: Line<'_>) -> Result<UnixSocketLine, ParseError> {
    let mut words = line.words();
    let address = words.word("address")?;
    if !address.ends_with(b":") {
        return Err(line.error("address"));
    }
    let refcount = words.hex("reference count")?;
    words.word("protocol")?;
    let flags: u32 = words.hex("flags")?;
    let sock_type = words.hex("type")?;
    let state = words.hex("state")?;
    let ino = words.decimal("inode")?;
    let rest = words.remainder();
    let name = if rest.is_empty() {
        None
    } else {
        Some(rest.to_vec())
    };
    Ok(UnixSocketLine {
        refcount,
        listening: flags & ACCEPTS != 0,
        sock_type,
        state,
        ino,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
Num       RefCount Protocol Flags    Type St Inode Path
00000000f795d4aa: 00000003 00000000 00000000 0001 03  1144
0000000029031a1c: 00000002 00000000 00010000 0001 01 10238 /run/my sock
ffff88003d7a1c00: 00000002 00000000 00000000 0002 01   987 @abs@tract
";

    #[test]
    fn sockets_of_several_kinds() -> Result<(), ParseError> {
        let all = parse_net_unix(TEXT)?;
        let [pair, listener, abstracted] = all.as_slice() else {
            panic!("three sockets, not {}", all.len());
        };
        assert_eq!((pair.ino, pair.state, &pair.name), (1144, 3, &None));
        assert!(listener.listening && !pair.listening);
        assert_eq!(listener.name.as_deref(), Some(&b"/run/my sock"[..]));
        assert_eq!(abstracted.sock_type as i32, libc::SOCK_DGRAM);
        assert_eq!(abstracted.name.as_deref(), Some(&b"@abs@tract"[..]));
        Ok(())
    }

    #[test]
    fn a_newline_in_a_name_is_an_error() {
        let text = [TEXT, b"tail of a name\n"].concat();
        let error = parse_net_unix(&text).err();
        assert_eq!(error.map(|e| (e.line, e.what)), Some((5, "address")));
    }

    #[test]
    fn our_own_sockets_parse() {
        let text = std::fs::read("/proc/net/unix").expect("/proc/net/unix is readable");
        parse_net_unix(&text).expect("the running kernel's format is known");
    }
}
