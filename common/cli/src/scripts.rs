//! Action scripts: programs that runtimes let us run at each stage.
//!
//! CRTOOLS_SCRIPT_ACTION names the stage, CRTOOLS_IMAGE_DIR the images, CRTOOLS_INIT_PID the root
//! task where there is one. A script that fails fails the run.

use crate::log::Log;
use crate::options::Options;
use anyhow::{Context, bail};
use std::process::{Command, Stdio};

/// The stages at which scripts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before the tree is frozen.
    PreDump,
    /// The network of the tree is to be locked.
    NetworkLock,
    /// All images are written, the tree is still frozen.
    PostDump,
    /// Before anything is forked.
    PreRestore,
    /// The namespaces are made, and empty.
    SetupNamespaces,
    /// The namespaces are filled.
    PostSetupNamespaces,
    /// Everything is in place, nothing runs yet.
    PostRestore,
    /// The network is to be unlocked.
    NetworkUnlock,
    /// Right before the tree goes on.
    PreResume,
    /// The tree goes on.
    PostResume,
}

impl Stage {
    /// The word in CRTOOLS_SCRIPT_ACTION.
    pub fn name(self) -> &'static str {
        match self {
            Stage::PreDump => "pre-dump",
            Stage::NetworkLock => "network-lock",
            Stage::PostDump => "post-dump",
            Stage::PreRestore => "pre-restore",
            Stage::SetupNamespaces => "setup-namespaces",
            Stage::PostSetupNamespaces => "post-setup-namespaces",
            Stage::PostRestore => "post-restore",
            Stage::NetworkUnlock => "network-unlock",
            Stage::PreResume => "pre-resume",
            Stage::PostResume => "post-resume",
        }
    }
}

/// Runs every script for a stage. `root` is the pid of the root task as scripts shall see it.
/// The caller must not have threads of a tree waiting on SIGCHLD: scripts are our children.
pub fn run(options: &Options, log: &Log, stage: Stage, root: Option<i32>) -> anyhow::Result<()> {
    // A script may be in another directory than we.
    let images_dir = options.images_dir.canonicalize();
    let images_dir = images_dir.unwrap_or_else(|_| options.images_dir.clone());
    for script in &options.action_scripts {
        log.info(format_args!(
            "Running {} script {}",
            stage.name(),
            script.display()
        ));
        let mut command = Command::new(script);
        command
            .stdin(Stdio::null())
            .env("CRTOOLS_SCRIPT_ACTION", stage.name())
            .env("CRTOOLS_IMAGE_DIR", &images_dir);
        if let Some(root) = root {
            command.env("CRTOOLS_INIT_PID", root.to_string());
        }
        let status = command
            .status()
            .with_context(|| format!("run the {} script {}", stage.name(), script.display()))?;
        if !status.success() {
            bail!(
                "the {} script {} failed: {status}",
                stage.name(),
                script.display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Defaults;
    use crate::options::{Tool, parse};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_script_sees_its_stage_and_may_fail_the_run() {
        let dir = std::env::temp_dir().join(format!("crust-scripts-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("make a directory");
        let script = dir.join("script");
        let text = format!(
            "#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR $CRTOOLS_INIT_PID >> {}/seen\n\
             test $CRTOOLS_SCRIPT_ACTION != post-dump\n",
            dir.display()
        );
        fs::write(&script, text).expect("write the script");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("chmod");
        let args = [
            "-D".into(),
            "imgs".into(),
            "--action-script".into(),
            script.into_os_string(),
        ];
        let options = parse(Tool::Restore, args, &Defaults::none()).expect("parses");
        let log = Log::nowhere();
        run(&options, &log, Stage::PreDump, Some(7)).expect("succeeds");
        let error = run(&options, &log, Stage::PostDump, None)
            .expect_err("fails")
            .to_string();
        assert!(
            error.contains("post-dump") && error.contains("exit status: 1"),
            "{error}"
        );
        let seen = fs::read_to_string(dir.join("seen")).expect("read what it saw");
        assert_eq!(seen, "pre-dump imgs 7\npost-dump imgs\n");
        fs::remove_dir_all(&dir).expect("remove");
    }
}
