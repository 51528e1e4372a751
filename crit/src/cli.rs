//! The command line: the verbs and options of CRIU's crit with their meanings, and ours.

use crate::color::When;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Reads, checks, queries and edits the images of checkpoints (CRIU's and crust's).
#[derive(Parser)]
#[command(name = "crit", version, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Colours: on a terminal and without NO_COLOR, always, or never
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub color: When,
    #[command(subcommand)]
    pub command: Option<Command>,
}

const AFTER_HELP: &str = "\
DIR is a directory of images; verbs that only read take a .tar, .tar.gz or .tar.zst of one too, such
as podman and CRI-O export. `crit VERB --help` has examples.

Exit status: 0 done; 1 failed, or check found errors; 2 wrong usage, or trouble in diff (1: the dumps
differ); 141 nobody reads the output.";

#[derive(Subcommand)]
pub enum Command {
    /// Turn an image into JSON
    #[command(after_help = "\
Examples:
  crit decode -i files.img | jq '.entries[0].reg.name'
  crit decode DIR | jq '.\"pstree.img\".entries[].pid'
  crit decode --ndjson DIR | grep eventfd")]
    Decode(Decode),
    /// Show an image as JSON for people
    Show(Show),
    /// Turn JSON into an image
    #[command(after_help = "\
Examples:
  crit decode -i fs-7.img | jq '.entries[0].umask = 63' | crit encode -o fs-7.img
  crit decode DIR | sed 's#/old/#/new/#g' | crit encode -o DIR2")]
    Encode(Encode),
    /// Tell the kind of an image and how many entries it has
    Info(Info),
    /// Explore an image directory
    X(Explore),
    /// Print a value of an image
    Get(Get),
    /// Change values of an image in place
    #[command(after_help = "\
Examples:
  crit set fs-7.img '[0].umask' 63
  crit set files.img '[id=3].reg.name' /tmp/new '[id=3].reg.pos' 0")]
    Set(Set),
    /// Take values out of an image
    Del(Del),
    /// Edit an image in $EDITOR as JSON
    Edit(Edit),
    /// Give a dump other pids, paths, addresses, ports or owners, everywhere they occur
    #[command(after_help = "\
Examples:
  crit remap DIR --pid 321=4711 --path /var/old=/var/new --out DIR2
  crit remap DIR --addr 10.0.0.1=10.0.0.2 --port 80=8080 --dry-run")]
    Remap(Remap),
    /// Tell whether the images of a dump fit together
    Check(Check),
    /// Ask a jq filter about a whole dump
    #[command(after_help = "\
The input is one object: tasks (each with ids, threads, creds, fds with their files, vmas with
theirs, runs of pages), files, sockets, remaps, mounts, and images by file name.

Examples:
  crit query DIR '.tasks[] | {pid, files: [.fds[].file.summary]}'
  crit query DIR -r '.tasks[] | select(.state == \"zombie\") | .pid'")]
    Query(Query),
    /// Apply a jq filter or rules to many images at once
    #[command(after_help = "\
All images change, or none. A filter or rule that changes nothing is an error.

Examples:
  crit transform DIR --on 'fs-*.img' '.entries[0].umask = 63'
  crit transform DIR --out DIR2 '(.entries[] | select(.reg?) | .reg.name) |= sub(\"^/a/\"; \"/b/\")'")]
    Transform(Transform),
    /// Read, search, write and export the memory of a dumped task
    #[command(after_help = "\
Examples:
  crit mem DIR -p 7 maps
  crit mem DIR -p 7 search --kind heap --regex 'pass(word|phrase)'
  crit mem DIR -p 7 read 0x7ffd1000 64 --hex
  crit mem DIR -p 7 write 0x7ffd1000 --text hello
  crit mem DIR -p 7 export --name '[stack]' -o stack")]
    Mem(Mem),
    /// Make a core file of a dumped task, for gdb
    #[command(after_help = "Example:\n  crit core DIR -p 7 -o core && gdb PROGRAM core")]
    Core(Core),
    /// Tell what two dumps differ in; exit status as diff(1)
    Diff(Diff),
    /// Merge an incremental dump and its parents into one whole dump
    Flatten(Flatten),
    /// Free pages of parent dumps that later dumps hold anew
    Dedup(Dedup),
    /// Make a copy of a dump without its memory, names and addresses
    Anonymize(Anonymize),
    /// Put a dump into one tar file
    Pack(Pack),
    /// Take the images out of a tar file, or of a container's checkpoint archive
    Unpack(Unpack),
    /// Print the completions of a shell
    Completions(Completions),
    /// Print the manual page
    Man(Man),
}

#[derive(Args)]
pub struct Flatten {
    /// The directory of the last dump
    pub dir: PathBuf,
    /// The new directory
    #[arg(short, long, value_name = "DIR2")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct Dedup {
    /// The directory of the last dump
    pub dir: PathBuf,
}

#[derive(Args)]
pub struct Anonymize {
    /// The image directory
    pub dir: PathBuf,
    /// The new directory
    #[arg(short, long, value_name = "DIR2")]
    pub out: PathBuf,
}

#[derive(Args)]
pub struct Pack {
    /// The image directory
    pub dir: PathBuf,
    /// The archive: .tar, .tar.zst or .tar.gz
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct Unpack {
    /// The archive
    pub archive: PathBuf,
    /// The new directory
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

#[derive(Args)]
pub struct Man {
    /// Write a page for each verb into this directory instead
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

#[derive(Args)]
pub struct Diff {
    /// An image directory
    pub left: PathBuf,
    /// Another
    pub right: PathBuf,
    /// The differences as JSON
    #[arg(long)]
    pub json: bool,
    /// Do not compare the content of pages
    #[arg(long)]
    pub no_pages: bool,
    /// Compare the statistics too
    #[arg(long)]
    pub stats: bool,
}

#[derive(Args)]
pub struct Core {
    /// The image directory
    pub dir: PathBuf,
    /// The task
    #[arg(short, long)]
    pub pid: u64,
    /// The core file
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(Args)]
pub struct Mem {
    /// The image directory
    pub dir: PathBuf,
    /// The task
    #[arg(short, long)]
    pub pid: u64,
    /// Where mapped files are looked for, for pages that were not dumped [default: /]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: MemVerb,
}

#[derive(Subcommand)]
pub enum MemVerb {
    /// List the areas
    Maps {
        #[command(flatten)]
        areas: Areas,
    },
    /// Print bytes
    Read {
        /// Decimal or 0x
        address: String,
        /// Bytes, decimal or 0x
        length: String,
        /// Raw bytes go there [default: stdout]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// As hex and text (the default on a terminal)
        #[arg(long)]
        hex: bool,
    },
    /// Find text, bytes or a regular expression in what was dumped
    Search(MemSearch),
    /// Change bytes
    Write(MemWrite),
    /// Write areas into a sparse file, and tell where each one is
    ///
    /// With --range the file is that range. Else the areas, all of them or those the filters leave,
    /// stand in it back to back. What was never touched is a hole; what is not in the dump and not
    /// to be had from a mapped file either is left out with a note.
    Export {
        #[command(flatten)]
        areas: Areas,
        /// The file, or a directory that exists: then a file for each area
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

/// Which areas.
#[derive(Args)]
pub struct Areas {
    /// Only areas with these rights, e.g. rw
    #[arg(long, value_name = "RIGHTS")]
    pub prot: Option<String>,
    /// Only areas of this kind; may be given several times
    #[arg(long, value_parser = ["heap", "stack", "anon", "file", "shared", "vdso", "kernel"])]
    pub kind: Vec<String>,
    /// Only areas in whose name this stands: a part of a path, [stack], ...
    #[arg(long, value_name = "TEXT")]
    pub name: Option<String>,
    /// Only START-END, in hex as maps shows it
    #[arg(long, value_name = "RANGE")]
    pub range: Option<String>,
}

#[derive(Args)]
pub struct MemSearch {
    /// Text, unless --hex or --regex
    pub pattern: String,
    /// The pattern is hex digits
    #[arg(long, conflicts_with = "regex")]
    pub hex: bool,
    /// The pattern is a regular expression over bytes
    #[arg(long)]
    pub regex: bool,
    #[command(flatten)]
    pub areas: Areas,
    /// In the mapped files too, where their pages were not dumped
    #[arg(long)]
    pub files: bool,
    /// Stop after so many
    #[arg(long)]
    pub max: Option<String>,
}

#[derive(Args)]
pub struct MemWrite {
    /// Decimal or 0x
    pub address: String,
    /// Bytes as hex digits
    #[arg(long, group = "bytes")]
    pub hex: Option<String>,
    /// Bytes as text
    #[arg(long, group = "bytes")]
    pub text: Option<String>,
    /// Bytes of a file
    #[arg(short, long, group = "bytes", value_name = "FILE")]
    pub input: Option<PathBuf>,
}

#[derive(Args)]
pub struct Check {
    /// The image directory
    pub dir: PathBuf,
    /// The findings as JSON
    #[arg(long)]
    pub json: bool,
    /// Only errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Fail on warnings too
    #[arg(long)]
    pub strict: bool,
}

#[derive(Args)]
pub struct Query {
    /// The image directory
    pub dir: PathBuf,
    /// E.g. '.tasks[] | {pid, files: [.fds[].file.summary]}'
    pub filter: String,
    /// Text without quotes and escapes
    #[arg(short, long)]
    pub raw: bool,
    /// One line for each value
    #[arg(short, long)]
    pub compact: bool,
}

#[derive(Args)]
pub struct Transform {
    /// The image directory
    pub dir: PathBuf,
    /// A jq filter from an image's JSON to the new one; $image is the file name
    pub filter: Option<String>,
    /// Rules instead: lines of PATTERN set PATH VALUE, PATTERN del PATH, PATTERN jq FILTER
    #[arg(long, value_name = "FILE", conflicts_with = "filter")]
    pub rules: Option<PathBuf>,
    /// Only images whose names fit, e.g. 'core-*.img' [default: all]
    #[arg(long, value_name = "PATTERN")]
    pub on: Vec<String>,
    /// Write a changed copy into this new directory, and leave DIR as it is
    #[arg(long, value_name = "DIR2")]
    pub out: Option<PathBuf>,
}

#[derive(Args)]
pub struct Remap {
    /// The image directory
    pub dir: PathBuf,
    /// Ids of processes, threads, groups and sessions, of dead processes too
    #[arg(long, value_name = "OLD=NEW")]
    pub pid: Vec<String>,
    /// Absolute paths, by whole components
    #[arg(long, value_name = "OLD=NEW")]
    pub path: Vec<String>,
    /// IP addresses of sockets
    #[arg(long, value_name = "OLD=NEW")]
    pub addr: Vec<String>,
    /// Ports of sockets; the other end too when its socket is in the dump
    #[arg(long, value_name = "OLD=NEW")]
    pub port: Vec<String>,
    /// User ids
    #[arg(long, value_name = "OLD=NEW")]
    pub uid: Vec<String>,
    /// Group ids
    #[arg(long, value_name = "OLD=NEW")]
    pub gid: Vec<String>,
    /// Write a changed copy into this new directory, and leave DIR as it is
    #[arg(long, value_name = "DIR2")]
    pub out: Option<PathBuf>,
    /// Only tell what would change
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Args)]
pub struct Get {
    /// The image, or ARCHIVE/NAME for one in an archive
    pub image: PathBuf,
    /// E.g. entries[0].reg.name, [id=3].type or [*].pid
    pub path: String,
    /// Text without quotes and escapes
    #[arg(short, long)]
    pub raw: bool,
    /// In the form for people
    #[arg(long)]
    pub pretty: bool,
}

#[derive(Args)]
pub struct Set {
    /// The image, which is replaced when all changes fit
    pub image: PathBuf,
    /// Pairs of a path and a value: JSON, or text
    #[arg(value_name = "PATH VALUE", required = true, num_args = 2.., allow_negative_numbers = true)]
    pub changes: Vec<String>,
}

#[derive(Args)]
pub struct Del {
    /// The image, which is replaced when what is left fits
    pub image: PathBuf,
    /// What is taken out, e.g. [id=3] or [0].reg.mnt_id
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<String>,
}

#[derive(Args)]
pub struct Edit {
    /// The image; the old one is kept as IMAGE~
    pub image: PathBuf,
}

#[derive(Args)]
pub struct Decode {
    /// Images, directories of them, or archives. Several images give one object with an image under
    /// each name, or, when -o names a directory that exists, a file NAME.json each
    #[arg(value_name = "FILES", conflicts_with = "input")]
    pub files: Vec<PathBuf>,
    /// One line for each entry, with the name of its image
    #[arg(long)]
    pub ndjson: bool,
    /// The image, or ARCHIVE/NAME for one in an archive [default: stdin]
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Where the JSON goes [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// For people: indented, with hex numbers, flag names and addresses
    #[arg(long)]
    pub pretty: bool,
    /// Leave payloads out
    #[arg(long)]
    pub nopl: bool,
    /// Add "image_version" to images of version 1.0, which encode then gives back
    #[arg(long)]
    pub keep_version: bool,
    /// Show messages whose required fields are missing too
    #[arg(long)]
    pub lenient: bool,
}

#[derive(Args)]
pub struct Show {
    /// The image, or ARCHIVE/NAME for one in an archive
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
    /// Leave payloads out
    #[arg(long)]
    pub nopl: bool,
    /// Show messages whose required fields are missing too
    #[arg(long)]
    pub lenient: bool,
}

#[derive(Args)]
pub struct Encode {
    /// Lines of decode --ndjson; the images go into the directory given with -o
    #[arg(long)]
    pub ndjson: bool,
    /// The JSON [default: stdin]
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// The image [default: stdout]. An existing one is replaced only when all went well. For JSON of
    /// several images a directory that exists
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The version of the image's head [default: the JSON's "image_version", else 1.1]
    #[arg(long, value_name = "VERSION", value_parser = ["1.0", "1.1"])]
    pub image_version: Option<String>,
}

#[derive(Args)]
pub struct Info {
    /// The image, or ARCHIVE/NAME for one in an archive
    #[arg(value_name = "FILE")]
    pub input: PathBuf,
}

#[derive(Args)]
pub struct Explore {
    /// The image directory, or an archive of one
    pub dir: PathBuf,
    /// What to show
    pub what: View,
    /// As JSON, with more in it
    #[arg(long)]
    pub json: bool,
    /// With states, threads and command lines (ps)
    #[arg(short, long)]
    pub long: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum View {
    /// The tree of tasks
    Ps,
    /// The descriptors of each task
    Fds,
    /// The memory areas of each task
    Mems,
    /// The pages of each task that were dumped
    Rss,
    /// The sockets
    Sk,
    /// The namespaces of each task
    Ns,
    /// The mounts of dumped mount namespaces
    Mounts,
    /// The credentials of each thread
    Creds,
    /// Timers of tasks and timerfds
    Timers,
    /// Files whose path no longer leads to them
    Remaps,
    /// What stats-dump and stats-restore tell
    Stats,
}

/// Writes the usage to stderr, for a call without a verb.
pub fn print_usage() {
    eprint!("{}", Arguments::command().render_help());
}
