//! The command line: run the service, check its health, make a key without a running gateway.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use clap::{Args, Parser, Subcommand};
use common::{
    cli::{self, HealthAddress},
    settings::Settings,
    time,
};
use model::access::{ApiKey, KeyText};

use crate::{auth, startup};

/// Settings come from `config/default.toml`, the file named by `GALLEY_CONFIG` and `GALLEY__SECTION__KEY`.
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct GatewayCli {
    #[command(subcommand)]
    command: Option<GatewayCommand>,
}

/// What to do.
#[derive(Debug, Default, Subcommand)]
enum GatewayCommand {
    /// Run the service (the default).
    #[default]
    Run,
    /// Ask a running service on this machine whether it is ready; exit status 0 or 1.
    Healthcheck,
    /// Make keys without a running gateway.
    #[command(subcommand)]
    Keys(KeysCommand),
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key: its hash is added to a file for `auth.keys_file`, and the key alone is printed. It is not shown again.
    Create(CreateKey),
}

#[derive(Debug, Args)]
struct CreateKey {
    /// What to call it.
    #[arg(long)]
    name: String,
    /// What it may do: jobs:write, jobs:read, work, channels:publish, channels:subscribe, subscriptions, admin:read,
    /// admin:write.
    #[arg(long, value_delimiter = ',', required = true)]
    scopes: Vec<String>,
    /// The queues that it may use, with stars: orders.*. Without any, all queues.
    #[arg(long, value_delimiter = ',')]
    queues: Option<Vec<String>>,
    /// The channels that it may use, with stars. Without any, all channels.
    #[arg(long, value_delimiter = ',')]
    channels: Option<Vec<String>>,
    /// The namespace outside of which it sees and makes nothing.
    #[arg(long)]
    namespace: Option<String>,
    /// When it expires: 2030-01-31T12:00:00Z, or +P90D from now. Without it, never.
    #[arg(long, allow_hyphen_values = true)]
    expires_at: Option<String>,
    /// The file, which is made if it does not exist.
    #[arg(long)]
    file: PathBuf,
}

/// The whole life of the process.
pub(crate) async fn run() -> anyhow::Result<()> {
    match GatewayCli::parse().command.unwrap_or_default() {
        GatewayCommand::Run => {
            cli::serve("gateway", Settings::load()?, async |settings, signals| {
                startup::GatewayServer::build(settings).await?.run_until(signals).await
            })
            .await
        }
        GatewayCommand::Healthcheck => {
            let settings = Settings::load()?.gateway;
            cli::healthcheck(HealthAddress { listen: settings.listen, is_tls: settings.tls_cert_file.is_some() })
        }
        GatewayCommand::Keys(KeysCommand::Create(request)) => create_key(request),
    }
}

fn create_key(request: CreateKey) -> anyhow::Result<()> {
    let (key, now) = (ApiKey::generate(), store::local_now());
    let end = request.expires_at.as_deref().map(|text| time::parse_time(text, now)).transpose();
    let text = KeyText {
        queues: request.queues,
        channels: request.channels,
        namespace: request.namespace,
        expires_at: end.map_err(|error| anyhow!("expires_at {error}"))?.map(|end| time::format(end.at)),
        ..KeyText::new(&key, request.name, request.scopes, now)
    };
    text.parse().map_err(|problem| anyhow!(problem))?;
    add_to_file(&request.file, &text).with_context(|| request.file.display().to_string())?;
    writeln!(std::io::stdout(), "{}", key.expose()).context("the key was added to the file and cannot be printed")
}

/// Adds a key to a file. A reader sees the file as it was or as it is afterwards, and only its owner may read it. Two
/// commands at once add both keys.
fn add_to_file(path: &Path, key: &KeyText) -> anyhow::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let locked = File::open(folder)?;
    locked.lock()?;
    let before = match fs::read_to_string(&path) {
        Ok(text) => {
            auth::check_keys_file(&path)?;
            text
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let separator = if before.is_empty() || before.ends_with("\n\n") { "" } else { "\n" };
    let new = folder.join(format!(".{}.new", key.id));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file
        .write_all(format!("{before}{separator}{}", key_toml(key)?).as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, &path))
        .and_then(|()| locked.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    Ok(written?)
}

/// A key as TOML. Its texts hold no control characters, so that JSON writes them as TOML does.
fn key_toml(key: &KeyText) -> anyhow::Result<String> {
    let members = serde_json::to_value(key)?;
    let lines = members.as_object().into_iter().flatten().map(|(name, value)| format!("{name} = {value}\n"));
    Ok(format!("[[keys]]\n{}", lines.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn request(file: &Path, name: &str) -> CreateKey {
        CreateKey {
            name: name.to_owned(),
            scopes: vec!["jobs:write".to_owned(), "work".to_owned()],
            queues: Some(vec!["orders.*".to_owned()]),
            channels: None,
            namespace: None,
            expires_at: Some("+P1D".to_owned()),
            file: file.to_owned(),
        }
    }

    #[test]
    fn keys_are_added_to_a_file_that_only_its_owner_reads() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.toml");
        create_key(request(&file, "a \"quoted\" näme")).expect("a key");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
        create_key(request(&file, "second")).expect("a key");
        assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
        assert_eq!(auth::check_keys_file(&file).expect("a file of keys"), 2);
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing is left over");
        assert!(!fs::read_to_string(&file).expect("text").contains("glk_"), "no key");
    }

    #[test]
    fn a_file_that_cannot_be_used_stays_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.toml");
        fs::write(&file, "keys = 1").expect("a file");
        create_key(request(&file, "a")).expect_err("no keys");
        assert_eq!(fs::read_to_string(&file).expect("text"), "keys = 1");
        let mut wrong = request(&folder.path().join("new.toml"), "a");
        wrong.scopes = vec!["everything".to_owned()];
        create_key(wrong).expect_err("no scope");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
