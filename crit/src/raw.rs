//! Files of a dump that are no images of messages: what they are instead.

use crust_image::Kind;
use crust_image::json::Error;
use crust_image::kind::Framing;
use std::path::Path;

/// The error for a file, with its name and, for a raw one, what it holds.
pub fn explain(error: Error, name: &str) -> anyhow::Error {
    if let Error::UnknownMagic(magic) = error {
        let why = match raw_kind(Path::new(name)) {
            Some(what) => format!("a raw file of a dump, not an image of messages: {what}"),
            None => "not the magic of an image; if it is a raw one (pages-*, tmpfs-*.tar.gz, route-*, ...) it has no JSON"
                .to_owned(),
        };
        return anyhow::anyhow!("{name}: unknown magic {magic:#x}\n{why}");
    }
    anyhow::Error::new(error).context(name.to_owned())
}

/// What a raw file holds, told by its name.
pub fn raw_kind(path: &Path) -> Option<&'static str> {
    let (kind, _) = Kind::of_file_name(path.file_name()?)?;
    if kind.spec().framing != Framing::Raw {
        return None;
    }
    Some(match kind {
        Kind::Pages => {
            "pages of memory, back to back (see the pagemap image that names it; `crit mem`)"
        }
        Kind::Ifaddr => "interface addresses, the output of `ip addr save`",
        Kind::Route => "IPv4 routes, the output of `ip route save`",
        Kind::Route6 => "IPv6 routes, the output of `ip -6 route save`",
        Kind::Rule => "routing rules, the output of `ip rule save`",
        Kind::Iptables => "IPv4 filter rules, the text of iptables-save",
        Kind::Ip6tables => "IPv6 filter rules, the text of ip6tables-save",
        Kind::Nftables => "the text of an nft ruleset",
        Kind::NetnsCt => "connection tracking entries, netlink messages back to back",
        Kind::NetnsExp => "connection tracking expectations, netlink messages back to back",
        Kind::TmpfsDev | Kind::TmpfsMnt => "the content of a tmpfs, a gzip tar",
        Kind::Digest => "the hashes of the images, JSON as it is (crust-dump --digest)",
        Kind::DigestPages => "the first 16 bytes of the hash of each page (crust-dump --digest)",
        _ => "foreign data",
    })
}
