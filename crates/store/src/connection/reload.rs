//! Files of certificates and keys that change while the process runs: new connections use new certificates, and what is
//! stored from then on is sealed with the new current key.

use std::sync::Weak;

use common::{
    reloadable::{FileWatch, record_reload},
    settings::{EncryptionSettings, Settings},
};

use super::{
    client::{Redis, RedisInner, cluster::Destination},
    server::ServerError,
};
use crate::{next_reconnect_delay, reconnect_delays, sealing::Sealer};

impl Redis {
    /// The client that the settings describe, with the keys that seal. Their files are followed as long as there is a
    /// handle.
    ///
    /// # Errors
    /// The URL or a file cannot be used.
    ///
    /// # Panics
    /// Outside a tokio runtime, as [`Redis::new`].
    pub fn from_settings(settings: &Settings) -> anyhow::Result<Self> {
        let interval = settings.reload.interval;
        let (redis, encryption) = (&settings.redis, &settings.encryption);
        let certificates = [&redis.tls_ca_file, &redis.tls_cert_file, &redis.tls_key_file];
        let has_certificates = certificates.iter().any(|path| path.is_some());
        // Before the files are read
        let certificates = FileWatch::new(certificates.into_iter().flatten().cloned(), interval);
        let keys = FileWatch::new(encryption.keys_file.clone(), interval);
        let redis = Self::new(redis)?.with_sealer(Sealer::from_settings(encryption)?);
        let weak = std::sync::Arc::downgrade(redis.arc());
        if has_certificates {
            tokio::spawn(follow_certificates(weak.clone(), certificates));
        }
        if redis.sealer().is_on() {
            tokio::spawn(follow_keys(weak, redis.sealer().clone(), encryption.clone(), keys));
        }
        Ok(redis)
    }
}

impl RedisInner {
    /// Reads the files of certificates again, for the connections that follow.
    fn read_certificates(&self) -> anyhow::Result<()> {
        self.address.replace(&Self::read_address(&self.settings, &self.destination)?)?;
        self.replace_pool()?;
        if let Destination::Cluster(cluster) = &self.destination {
            cluster.known_nodes().iter().try_for_each(|node| node.inner().read_certificates())?;
        }
        Ok(())
    }
}

async fn follow_certificates(redis: Weak<RedisInner>, mut files: FileWatch) {
    loop {
        files.changed().await;
        let Some(redis) = redis.upgrade() else { return };
        record_reload("redis.tls_ca_file", redis.read_certificates().map_err(|error| format!("{error:#}")));
    }
}

async fn follow_keys(redis: Weak<RedisInner>, sealer: Sealer, settings: EncryptionSettings, mut file: FileWatch) {
    loop {
        file.changed().await;
        let Some(inner) = redis.upgrade() else { return };
        let redis = Redis::without_keys(inner);
        record_reload("encryption.keys_file", replace_keys(&redis, &sealer, &settings).await);
    }
}

/// Uses the keys of the file, unless they could not open what is stored. While Redis is away nobody knows.
async fn replace_keys(redis: &Redis, sealer: &Sealer, settings: &EncryptionSettings) -> Result<(), String> {
    let read = Sealer::from_settings(settings).map_err(|error| error.to_string())?;
    let mut delays = reconnect_delays();
    loop {
        match read.check_keys(&mut redis.clone()).await {
            Ok(()) => return sealer.replace_keys(&read),
            Err(ServerError::Unsuitable(problem)) => return Err(problem),
            Err(ServerError::Store(_)) => tokio::time::sleep(next_reconnect_delay(&mut delays)).await,
        }
    }
}
