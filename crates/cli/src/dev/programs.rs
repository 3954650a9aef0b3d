//! Finding what to run: beside this program, or on PATH.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::failure::{CliError, CliResult};

/// The oldest Redis that Galley runs on.
const MIN_REDIS: u32 = 7;

/// A service of Galley.
pub(super) fn find_service(name: &str) -> CliResult<PathBuf> {
    let own = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let beside = own.and_then(|path| Some(path.parent()?.join(name))).filter(|path| is_program(path));
    beside.or_else(|| on_path(name)).ok_or_else(|| {
        CliError::failed(format!(
            "the program {name} is neither beside galley nor on PATH: install all of Galley in one folder, or build it with \
             `cargo build --release --workspace --bins`"
        ))
    })
}

/// A Redis server that is new enough.
pub(super) struct RedisProgram {
    pub(super) path: PathBuf,
}

impl RedisProgram {
    pub(super) fn find(given: Option<&Path>) -> CliResult<Self> {
        if let Some(path) = given {
            let found =
                if path.components().count() > 1 { Some(path.to_owned()) } else { path.to_str().and_then(on_path) };
            let found = found.filter(|path| is_program(path));
            let missing = || CliError::usage(format!("--redis-server: {} is no program", path.display()));
            return Ok(Self { path: found.ok_or_else(missing)? });
        }
        let found = ["redis-server", "valkey-server"].into_iter().filter_map(on_path);
        let mut old = None;
        for path in found {
            match major_version(&path) {
                Some(version) if version < MIN_REDIS => old = Some((path, version)),
                _ => return Ok(Self { path }),
            }
        }
        let problem = match old {
            Some((path, version)) => format!("{} is version {version}, and {MIN_REDIS} is needed", path.display()),
            None => "there is no redis-server on PATH".to_owned(),
        };
        Err(CliError::failed(format!("{problem}: {}", install_hint())))
    }
}

fn install_hint() -> &'static str {
    if cfg!(target_os = "macos") {
        "`brew install redis` installs one; or name a Redis that runs with --redis-url"
    } else {
        "`sudo apt-get install redis-server` (or `dnf install valkey`, `apk add redis`) installs one; or name a Redis that \
         runs with --redis-url"
    }
}

/// The number before the first dot in `Redis server v=7.0.15 sha=...`.
fn major_version(program: &Path) -> Option<u32> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, version) = text.split_once("v=")?;
    version.split('.').next()?.parse().ok()
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
