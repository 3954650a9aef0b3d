//! Keys from settings: a file of keys, and the first key. The file is read again when it changes, also when it is part of a
//! mounted Secret, which is replaced as a whole, and on SIGHUP. A file that cannot be used changes nothing.

use std::{collections::HashMap, path::Path, sync::Arc};

use anyhow::{Context, anyhow};
use common::{
    config_file::{self, ConfigFileError, ConfigReader},
    reloadable::{self, FileWatch, ReloadOutcome, Reloadable, count_reload},
    settings::AuthSettings,
};
use model::access::{Access, ApiKey, ApiKeyRecord, KeyText};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use toml::Spanned;

/// Keys by their ids.
pub(super) type KeySet = HashMap<String, (ApiKeyRecord, Arc<Access>)>;

/// The keys of the settings.
pub(super) struct KeysFile {
    first_key: Option<ApiKeyRecord>,
    keys: Reloadable<KeySet>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFileText {
    #[serde(default)]
    keys: Vec<Spanned<KeyText>>,
}

impl KeysFile {
    /// Reads the keys.
    ///
    /// # Errors
    /// A file or key that cannot be used.
    pub(super) fn load(settings: &AuthSettings) -> anyhow::Result<Self> {
        let first_key = settings.first_key.as_ref().map(|text| {
            let key = ApiKey::parse(text);
            key.map(|key| first_key_record(&key))
                .ok_or_else(|| anyhow!("auth.first_key must be a key glk_<id>_<secret>"))
        });
        let first_key = first_key.transpose()?;
        let path = settings.keys_file.clone();
        let keys =
            Reloadable::load(path.as_deref(), |path| load(path, first_key.as_ref())).context("auth.keys_file")?;
        if path.is_none() {
            // Without a file nothing is read again
            keys.replace(with_first_key(KeySet::new(), first_key.as_ref()));
        }
        Ok(Self { first_key, keys })
    }

    /// The keys now.
    pub(super) fn current(&self) -> Arc<KeySet> {
        self.keys.current()
    }

    /// A notification of each change.
    pub(super) fn subscribe(&self) -> tokio::sync::watch::Receiver<Arc<KeySet>> {
        self.keys.subscribe()
    }

    fn reload(&self) {
        match self.keys.reload(|path, _| load(path, self.first_key.as_ref())) {
            ReloadOutcome::Reloaded(keys) => {
                count_reload("auth.keys_file", true);
                tracing::info!(event = "keys.reloaded", keys = keys.len(), "keys read again");
            }
            ReloadOutcome::Invalid(error) => {
                count_reload("auth.keys_file", false);
                tracing::error!(event = "keys.reload_failed", %error, "the keys stay as they were");
            }
            ReloadOutcome::NoFile => tracing::info!(event = "keys.no_file", "there is no file of keys to read again"),
        }
    }
}

/// Follows the file until `stop` is cancelled. From this call on, before the future is polled, SIGHUP no longer ends the
/// process.
pub(super) fn follow(keys: Arc<KeysFile>, mut file: FileWatch, stop: CancellationToken) -> impl Future<Output = ()> {
    let on_signal = keys.clone();
    let signals = reloadable::on_sighup(stop.clone(), move || on_signal.reload());
    let looks = async move {
        while stop.run_until_cancelled(file.changed()).await.is_some() {
            keys.reload();
        }
    };
    async move {
        tokio::join!(signals, looks);
    }
}

/// The number of keys in a file.
///
/// # Errors
/// A file that cannot be used.
pub(crate) fn check_keys_file(path: &Path) -> Result<usize, ConfigFileError> {
    load(path, None).map(|keys| keys.len())
}

/// Reads a file of keys.
fn load(path: &Path, first_key: Option<&ApiKeyRecord>) -> Result<KeySet, ConfigFileError> {
    config_file::load(path, "keys", |reader, text| with_first_key(read(reader, text), first_key))
}

fn read(reader: &mut ConfigReader<'_>, text: KeysFileText) -> KeySet {
    let mut keys = KeySet::new();
    for key in text.keys {
        let at = key.span().start;
        match key.get_ref().parse() {
            Ok(record) => {
                let id = record.id.to_string();
                if insert(&mut keys, record) {
                    reader.add_problem(at, format!("key {id} is there twice"));
                }
            }
            Err(problem) => reader.add_problem(at, problem),
        }
    }
    keys
}

fn with_first_key(mut keys: KeySet, first_key: Option<&ApiKeyRecord>) -> KeySet {
    if let Some(record) = first_key {
        insert(&mut keys, record.clone());
    }
    keys
}

fn insert(keys: &mut KeySet, record: ApiKeyRecord) -> bool {
    let access = Arc::new(record.access.clone());
    keys.insert(record.id.to_string(), (record, access)).is_some()
}

fn first_key_record(key: &ApiKey) -> ApiKeyRecord {
    let access = Access { id: key.id().to_string(), name: "auth.first_key".to_owned(), ..Access::everything() };
    ApiKeyRecord { id: key.id().clone(), access, hash: key.hash(), previous: None, created_at: None }
}
