//! Checks the server, or each node of a cluster, when a process starts: what can never work stops it, with what to change.

use redis::{ErrorKind, InfoDict, RedisError, aio::ConnectionLike};

use super::{
    access::{self, MissingAccess, NEEDED_IN_CLUSTER},
    client::cluster::NodeAddress,
    error_class::connect_error,
    server::{CLUSTER, NO_CLUSTER, ServerError, ServerInfo, ask_info, ask_version, check_info, check_server_on},
};
use crate::{Redis, StoreError, keys::TopicNames};

impl Redis {
    /// Checks the server when a process starts. An unavailable server may come later; one that can never work is
    /// refused. `extra` are calls that this service needs beside Galley's own, such as `SUBSCRIBE news`.
    ///
    /// # Errors
    /// The URL, the server or its settings must be changed first; the error says how.
    pub async fn check_at_start(&self, extra: &[String]) -> Result<(), ServerError> {
        let checked = match self.cluster() {
            None => self.check_alone(extra).await,
            Some(_) => self.check_all_nodes(extra).await,
        };
        match checked {
            Ok(server) => {
                tracing::info!(version = server.version, durability = server.durability.as_str(), "redis found");
                Ok(())
            }
            Err(ServerError::Store(error)) => {
                tracing::warn!(%error, "starting without redis");
                Ok(())
            }
            Err(unfit @ ServerError::Unsuitable(_)) => Err(unfit),
        }
    }

    /// On a connection of its own: the shared one is not told why it is refused, because at run time that may pass.
    async fn check_alone(&self, extra: &[String]) -> Result<ServerInfo, ServerError> {
        let mut connection = self.connect_alone().await.map_err(|error| self.connect_failure(error))?;
        let checked = check_all(&mut connection, extra, self.topics(), false).await;
        match self.sealer().check_keys(&mut connection).await {
            Err(error) if checked.is_ok() => Err(error),
            _ => checked,
        }
    }

    /// Every primary as one server is checked, and of replicas what they need to be primaries. A node that cannot be reached
    /// may come later.
    async fn check_all_nodes(&self, extra: &[String]) -> Result<ServerInfo, ServerError> {
        let of_node = |problem: ServerError, node: &NodeAddress| match problem {
            ServerError::Unsuitable(problem) => ServerError::Unsuitable(format!("{node}: {problem}")),
            other @ ServerError::Store(_) => other,
        };
        let nodes = self.servers().await.map_err(|error| self.connect_failure(error))?;
        let extra: Vec<String> =
            extra.iter().cloned().chain(NEEDED_IN_CLUSTER.iter().map(|call| (*call).to_owned())).collect();
        let mut checked = None;
        for node in nodes {
            let Some((address, _)) = node.node_of_cluster() else { continue };
            let found = match node.connect_alone().await {
                Ok(mut connection) => check_all(&mut connection, &extra, self.topics(), true).await,
                Err(error) => Err(self.connect_failure(error)),
            };
            match found.map_err(|error| of_node(error, address)) {
                Ok(server) => checked = Some(server),
                Err(error @ ServerError::Unsuitable(_)) => return Err(error),
                Err(ServerError::Store(error)) => tracing::warn!(%error, %address, "starting without this node"),
            }
        }
        let Some(cluster) = self.cluster() else { return self.check_server().await };
        for address in cluster.replicas() {
            let Ok(mut connection) = cluster.connection_for_question(&address).await else { continue };
            match check_replica(&mut connection).await {
                Err(error @ ServerError::Unsuitable(_)) => return Err(of_node(error, &address)),
                Ok(()) | Err(ServerError::Store(_)) => {}
            }
        }
        self.sealer().check_keys(&mut self.clone()).await?;
        let unreachable = || RedisError::from((ErrorKind::Io, "no node of the cluster can be reached"));
        checked.ok_or_else(|| StoreError::from(unreachable()).into())
    }

    /// Checks the primaries that can be reached. What an acknowledged write survives is what it survives at the worst of them.
    pub(super) async fn check_nodes(&self) -> Result<ServerInfo, ServerError> {
        let (mut worst, mut failure) = (None::<ServerInfo>, None);
        for node in self.servers().await.map_err(StoreError::from)? {
            match check_server_on(&mut node.clone(), true).await {
                Ok(server) => {
                    let is_worse = |known: &ServerInfo| server.durability.level() < known.durability.level();
                    if worst.as_ref().is_none_or(is_worse) {
                        worst = Some(server);
                    }
                }
                Err(error @ ServerError::Unsuitable(_)) => return Err(error),
                Err(error) => failure = Some(error),
            }
        }
        let unreachable = || StoreError::from(RedisError::from((ErrorKind::Io, "no node can be reached"))).into();
        worst.ok_or_else(|| failure.unwrap_or_else(unreachable))
    }

    fn connect_failure(&self, error: RedisError) -> ServerError {
        match self.connect_problem(&error) {
            Some(problem) => ServerError::Unsuitable(problem),
            None => StoreError::from(connect_error(error)).into(),
        }
    }

    /// Why the server refused a connection, if no time will change it.
    pub(super) fn connect_problem(&self, error: &RedisError) -> Option<String> {
        let text = error.to_string();
        let says = |words: &str| text.contains(words);
        if let Some(problem) = tls_problem(&text) {
            return Some(problem);
        }
        if error.kind() == ErrorKind::RESP3NotSupported || says("NOPROTO") {
            return Some(String::from("it is older than Redis 7.0: set redis.url to a server of version 7.0 or newer"));
        }
        if error.code() == Some("WRONGPASS") || error.kind() == ErrorKind::AuthenticationFailed || says("WRONGPASS") {
            let settings = self.credential_settings();
            return Some(format!("user or password is wrong: change them in {settings}"));
        }
        if error.code() == Some("NOAUTH") || says("called without any password configured") {
            let settings = self.credential_settings();
            return Some(format!(
                "the server and redis.url disagree on whether there is a password: change {settings}"
            ));
        }
        if says("not point to a sentinel") {
            return Some(String::from(
                "what answers there is no sentinel: set redis.url to redis://, or to addresses of sentinels",
            ));
        }
        if says("DB index is out of range") || says("invalid DB index") {
            let database = self.get_db();
            return Some(format!(
                "it has no database {database}: put a lower number behind the host in redis.url, or raise `databases` there"
            ));
        }
        if says("cluster support disabled") {
            return Some(NO_CLUSTER.to_owned());
        }
        if says("SELECT is not allowed in cluster mode") {
            return Some(CLUSTER.to_owned());
        }
        if error.code() == Some("NOPERM") {
            return Some(format!(
                "the user of redis.url may not connect ({text}): allow what docs/redis.md#permissions lists"
            ));
        }
        (error.kind() == ErrorKind::Parse)
            .then(|| String::from("what answers there is no Redis server: change host or port in redis.url"))
    }

    /// Where Galley's credentials are.
    fn credential_settings(&self) -> &'static str {
        if self.inner().address.has_sentinels() {
            "redis.url, or those of redis.sentinel_username and redis.sentinel_password"
        } else {
            "redis.url"
        }
    }
}

/// What is wrong with the certificates of either side, from the text of an error: it has no other form.
fn tls_problem(text: &str) -> Option<String> {
    let says = |words: &str| text.contains(words);
    if let Some((_, problem)) = text.split_once("invalid peer certificate: ") {
        return Some(if says("NotValidForName") || says("not valid for name") {
            format!(
                "its certificate has another name ({problem}): set redis.tls_server_name, or another host in redis.url"
            )
        } else {
            format!("its certificate is not trusted ({problem}): set redis.tls_ca_file to the authority that signed it")
        });
    }
    let alert = text.split_once("received fatal alert: ").map(|(_, alert)| alert);
    if let Some(alert) = alert {
        return Some(format!(
            "it refuses TLS with this client ({alert}): set redis.tls_cert_file and redis.tls_key_file to a certificate \
             that it trusts"
        ));
    }
    says("InvalidContentType").then(|| String::from("it does not speak TLS on this port: set redis.url to redis://"))
}

async fn check_all(
    connection: &mut impl ConnectionLike,
    extra: &[String],
    topics: &TopicNames,
    is_node: bool,
) -> Result<ServerInfo, ServerError> {
    ask_version(connection, is_node).await?;
    // Before the rest is asked, which needs permissions too
    check_access(connection, extra, topics).await?;
    check_server_on(connection, is_node).await
}

/// The version and the eviction policy: a replica may be a primary soon.
async fn check_replica(connection: &mut impl ConnectionLike) -> Result<(), ServerError> {
    let info = ask_info(connection, "default").await?.unwrap_or_else(|| InfoDict::new(""));
    let version = info.get("redis_version").unwrap_or_else(|| String::from("7.0"));
    check_info(version, &info, &std::collections::HashMap::new()).map(drop).map_err(ServerError::Unsuitable)
}

async fn check_access(
    connection: &mut impl ConnectionLike,
    extra: &[String],
    topics: &TopicNames,
) -> Result<(), ServerError> {
    let MissingAccess { needed, optional } =
        access::missing_access(connection, extra, topics).await.map_err(StoreError::from)?;
    if !optional.is_empty() {
        let without = optional.into_iter().collect::<Vec<_>>().join("; ");
        tracing::info!(event = "redis.limited", without, "the user of redis.url may not ask everything");
    }
    if needed.is_empty() {
        return Ok(());
    }
    let missing = needed.into_iter().collect::<Vec<_>>().join(", ");
    Err(ServerError::Unsuitable(format!(
        "the user of redis.url may not use {missing}: allow what docs/redis.md#permissions lists"
    )))
}
