//! The command line as values. The names and meanings are the peer's; the table tells which are
//! built, and one that is not is refused by name.

use crate::cgroup_props::{self, CgroupProps};
use crate::config;
use crate::external::{ExtUnixSk, External, InheritedFd};
use crate::table::{ROWS, Row, Take, Use};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Which executable reads the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// crust-dump.
    Dump,
    /// crust-restore.
    Restore,
}

impl Tool {
    /// The name of the executable.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Dump => "crust-dump",
            Tool::Restore => "crust-restore",
        }
    }

    fn use_of(self, row: &Row) -> Use {
        match self {
            Tool::Dump => row.dump,
            Tool::Restore => row.restore,
        }
    }
}

/// One `--cgroup-root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupRoot {
    /// The controller; `None` for all that no other option names.
    pub controller: Option<Vec<u8>>,
    /// The path in its hierarchy, without a slash at its end: empty for the root of it.
    pub path: Vec<u8>,
}

/// `--manage-cgroups`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupMode {
    /// Do not touch cgroups, restore tasks into ours.
    Ignore,
    /// Put tasks into existing cgroups, and do nothing to these.
    None,
    /// Set the properties of existing ones.
    Props,
    /// Make those that are missing, with their properties.
    Soft,
    /// Make all that is missing and set properties of all.
    Full,
    /// They must not exist.
    Strict,
}

/// `--network-lock`; the numbers are those of the inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkLock {
    /// By iptables.
    Iptables = 0,
    /// By nftables.
    Nftables = 1,
    /// Not at all.
    Skip = 2,
}

/// `--plan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The whole command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--tree`: the root to dump.
    pub tree: Option<i32>,
    /// `--images-dir`.
    pub images_dir: PathBuf,
    /// `--work-dir`, by default the images dir.
    pub work_dir: PathBuf,
    /// `--log-file`, joined to the work dir.
    pub log_file: Option<PathBuf>,
    /// `-v`: 0 to 4, by default 2.
    pub verbosity: u8,
    /// `--timeout`; 10 seconds by default, as the peer's, a day at most and for 0.
    pub timeout: Duration,
    /// `--status-fd`.
    pub status_fd: Option<i32>,
    /// `--display-stats`.
    pub display_stats: bool,
    /// `--action-script`, in order.
    pub action_scripts: Vec<PathBuf>,
    /// `--pidfile`, joined to the work dir.
    pub pidfile: Option<PathBuf>,
    /// `--leave-running`.
    pub leave_running: bool,
    /// `--leave-stopped`.
    pub leave_stopped: bool,
    /// `--restore-detached`.
    pub restore_detached: bool,
    /// `--restore-sibling`.
    pub restore_sibling: bool,
    /// `--shell-job`.
    pub shell_job: bool,
    /// `--plan`.
    pub plan: Option<PlanFormat>,
    /// `--check`: look and tell, touch nothing.
    pub check: bool,
    /// `--json`: reports and failures for programs.
    pub json: bool,
    /// `--digest`: a dump writes a manifest of hashes, a restore wants one.
    pub digest: bool,
    /// `--sync`: the images are on the disk when the dump says that it is done.
    pub sync: bool,
    /// `--progress-fd`.
    pub progress_fd: Option<i32>,
    /// `--unprivileged`: without root's capabilities; what that would lose is refused.
    pub unprivileged: bool,
    /// `--cpu-cap`: what of the processor must be as it was; `none` turns the check off.
    pub cpu_cap: Option<String>,
    /// `--ext-unix-sk`: which sockets outside may be peers of ours.
    pub ext_unix_sk: ExtUnixSk,
    /// `--file-validation`: build ids are compared, not only sizes.
    pub compare_build_ids: bool,
    /// `--force-irmap`.
    pub force_irmap: bool,
    /// `--irmap-scan-path`, in order.
    pub irmap_scan_paths: Vec<PathBuf>,
    /// `--external`.
    pub external: External,
    /// `--inherit-fd`, in order.
    pub inherit_fds: Vec<InheritedFd>,
    /// `--link-remap`.
    pub link_remap: bool,
    /// `--ghost-limit` in bytes; 1 MiB by default.
    pub ghost_limit: u64,
    /// `--file-locks`.
    pub file_locks: bool,
    /// `--tcp-established`.
    pub tcp_established: bool,
    /// `--tcp-close`.
    pub tcp_close: bool,
    /// `--skip-in-flight`.
    pub skip_in_flight: bool,
    /// `--network-lock`; nftables by default, which needs no program.
    pub network_lock: NetworkLock,
    /// `--manage-cgroups`; soft by default.
    pub manage_cgroups: CgroupMode,
    /// `--cgroup-root`, the last one of a controller counts.
    pub cgroup_roots: Vec<CgroupRoot>,
    /// `--cgroup-props`, `--cgroup-props-file`, `--cgroup-props-ignore-default`.
    pub cgroup_props: CgroupProps,
    /// `--cgroup-dump-controller`: only these are dumped, if there are any.
    pub cgroup_controllers: Vec<OsString>,
    /// `--cgroup-yard`: a directory with one of each hierarchy.
    pub cgroup_yard: Option<PathBuf>,
    /// `--freeze-cgroup`.
    pub freeze_cgroup: Option<PathBuf>,
    /// `--lsm-profile`: module and label.
    pub lsm_profile: Option<(String, String)>,
    /// `--pre-dump`.
    pub pre_dump: bool,
    /// `--pre-copy`: how many rounds at most, 0 without the option.
    pub pre_copy: u32,
    /// `--auto-dedup`.
    pub auto_dedup: bool,
    /// `--snapshot`: memory is copied from a copy-on-write copy, when the tree goes on already.
    pub snapshot: bool,
    /// `--track-mem`.
    pub track_mem: bool,
    /// `--prev-images-dir`, relative to the images dir as in the link that is made of it.
    pub prev_images_dir: Option<PathBuf>,
}

impl Options {
    /// Whether the dump belongs to a chain of incremental ones.
    pub fn tracks_memory(&self) -> bool {
        self.pre_dump || self.track_mem || self.prev_images_dir.is_some()
    }
}

/// Why there are no options to go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Help or the version was asked for: print it and end well.
    Print(String),
    /// The command line is wrong: one sentence, exit status 2.
    Usage(String),
}

/// Parses a command line (without the program's name), the configuration files before it.
pub fn parse(
    tool: Tool,
    args: impl IntoIterator<Item = OsString>,
    defaults: &config::Defaults,
) -> Result<Options, Stop> {
    let args: Vec<OsString> = args.into_iter().collect();
    let given = matches(tool, args.clone())?;
    let configured = config::arguments(&given, defaults).map_err(Stop::Usage)?;
    if configured.is_empty() {
        return build(tool, &given);
    }
    // What comes later counts, so the command line has the last word.
    build(
        tool,
        &matches(tool, configured.into_iter().chain(args).collect())?,
    )
}

fn matches(tool: Tool, args: Vec<OsString>) -> Result<ArgMatches, Stop> {
    command(tool)
        .try_get_matches_from(args)
        .map_err(|error| match error.kind() {
            clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => {
                Stop::Print(error.to_string())
            }
            _ => Stop::Usage(first_line(&error.to_string())),
        })
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or("the command line is wrong");
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn command(tool: Tool) -> Command {
    let about = match tool {
        Tool::Dump => "Writes the state of a running process tree into images.",
        Tool::Restore => "Brings a process tree back from its images.",
    };
    let verbosity = Arg::new("verbosity")
        .short('v')
        .long("verbosity")
        .value_name("N");
    let mut command = Command::new(tool.name())
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .about(about)
        .no_binary_name(true)
        .infer_long_args(true)
        .args_override_self(true)
        .arg(
            Arg::new("version")
                .short('V')
                .long("version")
                .action(ArgAction::Version)
                .help("print the version"),
        )
        .arg(
            verbosity
                .num_args(0..=1)
                .action(ArgAction::Append)
                .allow_hyphen_values(false)
                .help("how much to log: 0 to 4 (default 2), or one more for each v"),
        );
    for row in ROWS {
        command = command.arg(arg_of(tool, row));
        if row.take == Take::Flag {
            let takes_back = format!("no-{}", row.long);
            let arg = Arg::new(takes_back.clone())
                .long(takes_back)
                .action(ArgAction::SetTrue);
            command = command.arg(arg.overrides_with(row.long).hide(true));
        }
    }
    command
}

fn arg_of(tool: Tool, row: &'static Row) -> Arg {
    let mut arg = Arg::new(row.long).long(row.long).help(row.help);
    arg = arg.hide(tool.use_of(row) != Use::Works);
    if let Some(letter) = row.short {
        arg = arg.short(letter);
    }
    match row.take {
        Take::Flag => arg.action(ArgAction::SetTrue),
        Take::One(name) => arg
            .value_name(name)
            .value_parser(clap::value_parser!(OsString)),
        Take::Optional(name, missing) => arg
            .value_name(name)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value(missing)
            .value_parser(clap::value_parser!(OsString)),
        Take::Many(name) => arg
            .value_name(name)
            .action(ArgAction::Append)
            .value_parser(clap::value_parser!(OsString)),
    }
}

fn build(tool: Tool, found: &ArgMatches) -> Result<Options, Stop> {
    refuse_unbuilt(tool, found)?;
    let given = Given(found);
    let images_dir = given
        .path("images-dir")
        .unwrap_or_else(|| PathBuf::from("."));
    let work_dir = given.path("work-dir").unwrap_or_else(|| images_dir.clone());
    let options = Options {
        tree: given.number("tree")?,
        log_file: given.path("log-file").map(|file| work_dir.join(file)),
        verbosity: verbosity(found)?,
        timeout: timeout(given.number("timeout")?),
        status_fd: given.number("status-fd")?,
        display_stats: given.flag("display-stats"),
        action_scripts: given
            .all("action-script")
            .into_iter()
            .map(PathBuf::from)
            .collect(),
        pidfile: given.path("pidfile").map(|file| work_dir.join(file)),
        leave_running: given.flag("leave-running"),
        leave_stopped: given.flag("leave-stopped"),
        restore_detached: given.flag("restore-detached"),
        restore_sibling: given.flag("restore-sibling"),
        shell_job: given.flag("shell-job"),
        plan: given.choice(
            "plan",
            &[("text", PlanFormat::Text), ("json", PlanFormat::Json)],
        )?,
        check: given.flag("check"),
        json: given.flag("json"),
        digest: given.flag("digest"),
        sync: given.flag("sync"),
        progress_fd: given.number("progress-fd")?,
        unprivileged: given.flag("unprivileged"),
        cpu_cap: given.text("cpu-cap")?,
        ext_unix_sk: ExtUnixSk::parse(given.text("ext-unix-sk")?).map_err(Stop::Usage)?,
        compare_build_ids: given
            .choice("file-validation", &[("filesize", false), ("buildid", true)])?
            .unwrap_or(true),
        force_irmap: given.flag("force-irmap"),
        irmap_scan_paths: given
            .all("irmap-scan-path")
            .into_iter()
            .map(PathBuf::from)
            .collect(),
        external: external(given.all("external"))?,
        inherit_fds: inherit_fds(given.all("inherit-fd"))?,
        link_remap: given.flag("link-remap"),
        ghost_limit: given.size("ghost-limit")?.unwrap_or(1 << 20),
        file_locks: given.flag("file-locks"),
        tcp_established: given.flag("tcp-established"),
        tcp_close: given.flag("tcp-close"),
        skip_in_flight: given.flag("skip-in-flight"),
        network_lock: given
            .choice("network-lock", NETWORK_LOCK)?
            .unwrap_or(NetworkLock::Nftables),
        manage_cgroups: given
            .choice("manage-cgroups", CGROUP_MODES)?
            .unwrap_or(CgroupMode::Soft),
        cgroup_roots: given
            .all("cgroup-root")
            .iter()
            .map(|text| cgroup_root(text.as_encoded_bytes()))
            .collect::<Result<_, _>>()?,
        cgroup_props: cgroup_props(&given)?,
        cgroup_controllers: given.all("cgroup-dump-controller"),
        cgroup_yard: given.path("cgroup-yard"),
        freeze_cgroup: given.path("freeze-cgroup"),
        lsm_profile: lsm_profile(&given)?,
        pre_dump: given.flag("pre-dump"),
        pre_copy: given.number("pre-copy")?.unwrap_or(0),
        auto_dedup: given.flag("auto-dedup"),
        snapshot: given.flag("snapshot"),
        track_mem: given.flag("track-mem"),
        prev_images_dir: given.path("prev-images-dir"),
        images_dir,
        work_dir,
    };
    match (tool, options.tree) {
        (Tool::Dump, None) => return usage("which task to dump is not said: give --tree PID"),
        (_, Some(pid)) if pid <= 0 => return usage(format!("--tree {pid} is not a process id")),
        _ => {}
    }
    if options.leave_running && options.leave_stopped {
        return usage("--leave-running and --leave-stopped contradict each other");
    }
    if options.restore_sibling && !options.restore_detached {
        return usage("--restore-sibling makes the root no child of ours: add --restore-detached");
    }
    check_incremental(&given, &options)?;
    Ok(options)
}

/// `apparmor:PROFILE` or `selinux:CONTEXT`.
fn lsm_profile(given: &Given<'_>) -> Result<Option<(String, String)>, Stop> {
    let Some(text) = given.text("lsm-profile")? else {
        return Ok(None);
    };
    match text.split_once(':') {
        Some((module @ ("apparmor" | "selinux"), label)) if !label.is_empty() => {
            Ok(Some((module.to_owned(), label.to_owned())))
        }
        _ => usage(format!(
            "--lsm-profile {text}: neither apparmor:PROFILE nor selinux:CONTEXT"
        )),
    }
}

fn cgroup_props(given: &Given<'_>) -> Result<CgroupProps, Stop> {
    let mut controllers = Vec::new();
    if let Some(file) = given.path("cgroup-props-file") {
        let shown = file.display();
        let read = std::fs::read_to_string(&file).map_err(|error| error.to_string());
        let parsed = read.and_then(|text| cgroup_props::parse(&text));
        let parsed =
            parsed.map_err(|why| Stop::Usage(format!("--cgroup-props-file {shown}: {why}")));
        controllers.extend(parsed?);
    }
    if let Some(text) = given.text("cgroup-props")? {
        let parsed = cgroup_props::parse(&text);
        controllers.extend(parsed.map_err(|why| Stop::Usage(format!("--cgroup-props: {why}")))?);
    }
    Ok(CgroupProps {
        ignore_default: given.flag("cgroup-props-ignore-default"),
        controllers,
    })
}

/// `[CONTROLLER:]/PATH`.
fn cgroup_root(text: &[u8]) -> Result<CgroupRoot, Stop> {
    let shown = String::from_utf8_lossy(text);
    let colon = text.windows(2).position(|two| two == b":/");
    let (controller, path) = match colon {
        Some(at) => (Some(text[..at].to_vec()), &text[at + 1..]),
        None => (None, text),
    };
    let climbs = path.split(|byte| *byte == b'/').any(|part| part == b"..");
    if !path.starts_with(b"/") || climbs || path.contains(&0) {
        return usage(format!(
            "--cgroup-root {shown}: not [CONTROLLER:]/PATH without .."
        ));
    }
    let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
    Ok(CgroupRoot { controller, path })
}

fn check_incremental(given: &Given<'_>, options: &Options) -> Result<(), Stop> {
    // We read pages, which is one of the peer's two ways; the images are the same.
    given.choice("pre-dump-mode", &[("splice", ()), ("read", ())])?;
    if options.pre_dump && options.leave_stopped {
        return usage("--pre-dump and --leave-stopped contradict each other");
    }
    if options.snapshot && (!options.leave_running || options.pre_dump) {
        return usage(
            "--snapshot lets the tree go on while its memory is copied: it needs --leave-running, \
             and a --pre-dump copies while the tree runs anyway",
        );
    }
    if options.pre_copy > 0 && (options.pre_dump || options.prev_images_dir.is_some()) {
        return usage(
            "--pre-copy makes a chain of its own: leave out --pre-dump, --prev-images-dir",
        );
    }
    Ok(())
}

/// Types of `--external` that some room knows.
const EXTERNAL_TYPES: [&str; 3] = ["file", "tty", "unix"];

fn external(given: Vec<OsString>) -> Result<External, Stop> {
    for resource in &given {
        let text = resource.to_string_lossy();
        match text.split_once('[') {
            Some((kind, _)) if EXTERNAL_TYPES.contains(&kind) => {}
            Some((kind, _)) => {
                return usage(format!("--external {kind}[...] is known but not built yet"));
            }
            None => return usage(format!("--external takes TYPE[ID], not '{text}'")),
        }
    }
    Ok(External::new(given))
}

fn inherit_fds(given: Vec<OsString>) -> Result<Vec<InheritedFd>, Stop> {
    let parsed: Result<Vec<_>, String> = given
        .iter()
        .map(|given| InheritedFd::parse(given))
        .collect();
    parsed.map_err(Stop::Usage)
}

const NETWORK_LOCK: &[(&str, NetworkLock)] = &[
    ("iptables", NetworkLock::Iptables),
    ("nftables", NetworkLock::Nftables),
    ("skip", NetworkLock::Skip),
];

const CGROUP_MODES: &[(&str, CgroupMode)] = &[
    ("ignore", CgroupMode::Ignore),
    ("none", CgroupMode::None),
    ("props", CgroupMode::Props),
    ("soft", CgroupMode::Soft),
    ("full", CgroupMode::Full),
    ("strict", CgroupMode::Strict),
];

fn usage<T>(sentence: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Usage(sentence.into()))
}

/// All that were given and are not built, in one sentence.
fn refuse_unbuilt(tool: Tool, found: &ArgMatches) -> Result<(), Stop> {
    let given = Given(found);
    let unbuilt: Vec<String> = ROWS
        .iter()
        .filter(|row| tool.use_of(row) == Use::NotYet && given.is_given(row))
        .map(|row| format!("--{}", row.long))
        .collect();
    match unbuilt.as_slice() {
        [] => Ok(()),
        [one] => usage(format!("option {one} is known but not built yet")),
        many => usage(format!(
            "options {} are known but not built yet",
            many.join(", ")
        )),
    }
}

/// `-v` adds one, `-vv` two, `-v3` and `-v 3` set it.
fn verbosity(found: &ArgMatches) -> Result<u8, Stop> {
    const DEFAULT: u8 = 2;
    const HIGHEST: u8 = 4;
    let mut level = DEFAULT;
    for occurrence in found
        .get_occurrences::<String>("verbosity")
        .into_iter()
        .flatten()
    {
        let text = occurrence.map(String::as_str).next().unwrap_or_default();
        level = if text.chars().all(|letter| letter == 'v') {
            level.saturating_add(1 + text.len() as u8)
        } else {
            match text.parse() {
                Ok(number) => number,
                Err(_) => return usage(format!("-v takes a number from 0 to 4, not '{text}'")),
            }
        };
    }
    Ok(level.min(HIGHEST))
}

/// 0 is without end, as for the peer; nobody waits longer than a day, and no sum of times may
/// overflow.
fn timeout(seconds: Option<u64>) -> Duration {
    const DEFAULT: u64 = 10;
    const DAY: u64 = 24 * 60 * 60;
    Duration::from_secs(match seconds {
        None => DEFAULT,
        Some(0) => DAY,
        Some(seconds) => seconds.min(DAY),
    })
}

/// The options that were given.
struct Given<'m>(&'m ArgMatches);

impl Given<'_> {
    fn flag(&self, name: &str) -> bool {
        self.0.get_flag(name)
    }

    fn is_given(&self, row: &Row) -> bool {
        match row.take {
            Take::Flag => self.flag(row.long),
            _ => self.0.contains_id(row.long),
        }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get_one::<OsString>(name).map(PathBuf::from)
    }

    fn all(&self, name: &str) -> Vec<OsString> {
        self.0
            .get_many::<OsString>(name)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    fn text(&self, name: &str) -> Result<Option<String>, Stop> {
        match self.0.get_one::<OsString>(name) {
            None => Ok(None),
            Some(text) => match text.to_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => usage(format!(
                    "--{name}: '{}' is not text",
                    text.to_string_lossy()
                )),
            },
        }
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Stop> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => usage(format!("--{name} takes a number, not '{text}'")),
        }
    }

    fn size(&self, name: &str) -> Result<Option<u64>, Stop> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match parse_size(&text) {
            Some(size) => Ok(Some(size)),
            None => usage(format!(
                "--{name} takes a size as 4096, 16K, 1M or 2G, not '{text}'"
            )),
        }
    }

    fn choice<T: Copy>(&self, name: &str, values: &[(&str, T)]) -> Result<Option<T>, Stop> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match values.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let words: Vec<&str> = values.iter().map(|(word, _)| *word).collect();
                usage(format!(
                    "--{name} is one of {}, not '{text}'",
                    words.join(", ")
                ))
            }
        }
    }
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G']);
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(tool: Tool, line: &str) -> Result<Options, Stop> {
        let args = line.split_ascii_whitespace().map(OsString::from);
        parse(tool, args, &config::Defaults::none())
    }

    #[test]
    fn verbosity_has_four_spellings() {
        for (line, level) in [
            ("-t 3", 2),
            ("-v", 3),
            ("-vv", 4),
            ("-v4", 4),
            ("-v 4", 4),
            ("--verbosity=1", 1),
            ("-v0 -t 3", 0),
            ("-v -t 3", 3),
        ] {
            let options = parsed(Tool::Restore, line).expect(line);
            assert_eq!(options.verbosity, level, "{line}");
        }
    }

    #[test]
    fn letters_and_long_names_are_alike() {
        let short = parsed(Tool::Dump, "-t 12 -D imgs -W work -o dump.log -R -j").expect("short");
        let long = parsed(Tool::Dump, "--tree=12 --images-dir imgs --work-dir work --log-file dump.log --leave-running --shell-job").expect("long");
        assert_eq!(format!("{short:?}"), format!("{long:?}"));
        assert_eq!(short.log_file, Some(PathBuf::from("work/dump.log")));
    }

    #[test]
    fn a_no_form_takes_back() {
        assert!(
            !parsed(Tool::Dump, "-t 1 -R --no-leave-running")
                .expect("parses")
                .leave_running
        );
        assert!(
            parsed(Tool::Dump, "-t 1 --no-leave-running -R")
                .expect("parses")
                .leave_running
        );
    }

    #[test]
    fn an_option_that_is_not_built_is_refused_by_name() {
        let stop = parsed(Tool::Dump, "-t 1 --lazy-pages --empty-ns net").expect_err("refused");
        assert_eq!(
            stop,
            Stop::Usage("options --empty-ns, --lazy-pages are known but not built yet".into())
        );
    }

    #[test]
    fn what_only_the_other_tool_uses_is_accepted() {
        assert!(parsed(Tool::Dump, "-t 1 -d --pidfile p").is_ok());
        assert!(parsed(Tool::Restore, "-t 1 -R --link-remap").is_ok());
    }

    #[test]
    fn unknown_options_and_bad_values_are_usage_errors() {
        for line in [
            "--frobnicate",
            "",
            "-t 0",
            "-t x",
            "--manage-cgroups=sometimes",
            "--ghost-limit 1T",
            "-R -s",
            "-t 1 --pre-dump -s",
            "-t 1 --pre-copy 2 --prev-images-dir ../1",
            "-t 1 --pre-copy many",
            "-t 1 --snapshot",
            "-t 1 --snapshot -s",
            "-t 1 --snapshot -R --pre-dump",
            "-t 1 --pre-dump-mode quickly",
        ] {
            assert!(
                matches!(parsed(Tool::Dump, line), Err(Stop::Usage(_))),
                "{line}"
            );
        }
    }

    #[test]
    fn optional_values() {
        let options = parsed(Tool::Dump, "-t 1 --manage-cgroups").expect("parses");
        assert_eq!(options.manage_cgroups, CgroupMode::Soft);
        let options = parsed(Tool::Restore, "--plan=json --manage-cgroups=ignore").expect("parses");
        assert_eq!(
            (options.plan, options.manage_cgroups),
            (Some(PlanFormat::Json), CgroupMode::Ignore)
        );
    }

    #[test]
    fn timeouts_end() {
        let of = |line: &str| parsed(Tool::Dump, line).expect(line).timeout.as_secs();
        assert_eq!((of("-t 1"), of("-t 1 --timeout 3")), (10, 3));
        assert_eq!(
            of("-t 1 --timeout 0"),
            of(&format!("-t 1 --timeout {}", u64::MAX))
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("2M"), Some(2 << 20));
        assert_eq!(parse_size("99999999999G"), None);
        assert_eq!(parse_size("1KM"), None);
    }
}
