//! The corpus of images that CRIU wrote (data/corpus): found, unpacked where its images expect
//! their files.

use crate::{
    build::{run, workspace},
    guest::Guest,
    sandbox::{GOLDEN, Sandbox},
};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A set of the corpus.
pub struct Recorded {
    /// Directory of the set: img, decode, pretty, x.
    pub dir: PathBuf,
    /// The program that was dumped.
    pub program: String,
}

/// The set `name` (`parent_chain/3` is the last level of the chain).
pub fn recorded(name: &str) -> Recorded {
    let program = match name {
        "format_v1_0" => "threads",
        "cgroup" | "cpuinfo" => "loop",
        _ if name.starts_with("parent_chain") => "mem_private",
        _ => name,
    };
    Recorded {
        dir: workspace().join("tests/data/corpus").join(name),
        program: program.to_owned(),
    }
}

impl Recorded {
    /// The images.
    pub fn images(&self) -> PathBuf {
        self.dir.join("img")
    }

    /// The pid of the root task: the file name of the lowest numbered mm image will not do (a
    /// child may be below), so the recorded JSON of pstree tells.
    pub fn root_pid(&self) -> Result<i32> {
        let path = self.dir.join("decode/pstree.img.json");
        let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let pid = json
            .pointer("/entries/0/pid")
            .and_then(serde_json::Value::as_i64);
        Ok(i32::try_from(pid.context("pstree has no first pid")?)?)
    }
}

impl Sandbox {
    /// Unpacks program and scratch directory of a set where its images have them. Gives the
    /// images, copied (a restore writes its statistics beside them), with the guest-to-be.
    pub fn unpack(&self, set: &Recorded) -> Result<(PathBuf, Guest)> {
        let corpus = workspace().join("tests/data/corpus");
        let bin = Path::new(GOLDEN).join("bin");
        let scratch = Path::new(GOLDEN).join(&set.program);
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(&scratch)?;
        let untar = |archive: &Path, to: &Path, members: &[&str]| {
            run(Command::new("tar")
                .arg("-C")
                .arg(to)
                .arg("-xf")
                .arg(archive)
                .args(members))
        };
        untar(
            &corpus.join("bin.tar.xz"),
            &bin,
            &[&format!("./{}", set.program)],
        )?;
        let packed = recorded(&set.program).dir.join("scratch.tar.gz");
        let own = set.dir.join("scratch.tar.gz");
        untar(if own.exists() { &own } else { &packed }, &scratch, &[])?;
        let images = self.copy_images(set)?;
        let out = scratch.join("out");
        let guest = Guest {
            name: set.program.clone(),
            pid: set.root_pid()?,
            out,
        };
        Ok((images, guest))
    }

    /// Copies the images of a set into the sandbox; the levels of a chain stay side by side.
    fn copy_images(&self, set: &Recorded) -> Result<PathBuf> {
        let copy = self.dir("recorded")?;
        let levels = set
            .dir
            .parent()
            .filter(|parent| parent.ends_with("parent_chain"));
        let from = levels.unwrap_or(&set.dir);
        run(Command::new("cp").arg("-r").arg(from).arg(&copy))?;
        let level = set
            .dir
            .strip_prefix(from.parent().context("a set has a parent directory")?)?;
        Ok(copy.join(level).join("img"))
    }
}
