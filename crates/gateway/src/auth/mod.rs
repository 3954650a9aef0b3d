//! Who sends a request, and whether it may.
//!
//! Every request passes [`Auth::admit`] before its body is read. It finds the key, compares it, checks the scope of the
//! route's entry in [`crate::routes::table`] and what the path names, and leaves an [`Access`] for the handler, which
//! reads it as [`Caller`]. What a request names in its query or body the handler checks itself.
//!
//! | file | what it does |
//! |---|---|
//! | `caller` | what a handler may ask about the sender |
//! | `credential` | reads `Authorization` |
//! | `keys_file` | keys from settings and from a file |
//! | `subject` | checks what the path of a request names |

mod caller;
mod credential;
mod keys_file;
mod subject;

use std::{net::SocketAddr, sync::Arc};

use actix_web::{HttpMessage, dev::ServiceRequest, http::Method};
use anyhow::bail;
use common::{
    settings::{AuthSettings, GatewaySettings},
    time::Millis,
};
use model::access::{Access, KeyCheck, KeyId, PresentedKey, Scope, Scopes};
use store::{
    Redis,
    api_keys::{ApiKeyCache, ApiKeys},
    connection::notifier::Notifier,
};
use tokio_util::sync::CancellationToken;

use self::keys_file::KeysFile;
pub(crate) use self::{caller::Caller, keys_file::check_keys_file};
use crate::{
    error::{ApiError, ErrorCode},
    routes::table::{Need, PathRules, RouteRule},
};

/// Who may use the gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Auth(Arc<AuthInner>);

struct AuthInner {
    is_demanded: bool,
    open_metrics: bool,
    open_health: bool,
    keys_file: Arc<KeysFile>,
    keys: ApiKeys,
    cache: ApiKeyCache,
    everything: Arc<Access>,
    nothing: Arc<Access>,
}

impl Auth {
    /// Reads the keys of the settings, and follows their file until `stop` is cancelled.
    ///
    /// # Errors
    /// A key or file that cannot be used.
    pub(crate) fn start(
        settings: &AuthSettings,
        redis: &Redis,
        notifier: &Notifier,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let keys = ApiKeys::new(redis);
        let keys_file = Arc::new(KeysFile::load(settings)?);
        tokio::spawn(keys_file::follow(keys_file.clone(), stop));
        Ok(Self(Arc::new(AuthInner {
            is_demanded: settings.is_demanded(),
            open_metrics: settings.open_metrics,
            open_health: settings.open_health,
            keys_file,
            cache: ApiKeyCache::start(&keys, notifier),
            keys,
            everything: Arc::new(Access::everything()),
            nothing: Arc::new(Access { scopes: Scopes::default(), ..Access::everything() }),
        })))
    }

    /// The keys in Redis.
    pub(crate) fn keys(&self) -> &ApiKeys {
        &self.0.keys
    }

    /// Uses no copy of a key that was changed here.
    pub(crate) fn forget_key(&self, id: &KeyId) {
        self.0.cache.forget_key(id);
    }

    /// Whether `/health/ready` may say why the gateway is not ready.
    pub(crate) fn shows_health(&self) -> bool {
        !self.0.is_demanded || self.0.open_health
    }

    /// Lets a request pass, or says why not. `rules` are those of its path, if the path exists.
    pub(crate) async fn admit(&self, request: &ServiceRequest, rules: Option<&PathRules>) -> Result<(), ApiError> {
        let rule = match rules {
            // A browser asks with OPTIONS what it may do, and sends no key
            Some(rules) if request.method() != Method::OPTIONS => rules.of_method(request.method()),
            Some(_) => None,
            None if request.match_pattern().is_some() => return Err(ApiError::internal("the route has no entry")),
            None => None,
        };
        let access = match rule {
            _ if !self.0.is_demanded => self.0.everything.clone(),
            None => self.0.nothing.clone(),
            Some(rule) => match self.needed_scope(rule) {
                Demand::Nothing => self.0.nothing.clone(),
                Demand::Key(scope) => {
                    let access = self.authenticate(request).await?;
                    if let Some(scope) = scope.filter(|scope| !access.may(*scope)) {
                        return Err(ApiError::scope_required(scope));
                    }
                    subject::check(request, rule, &access).await?;
                    access
                }
            },
        };
        request.extensions_mut().insert(Caller::new(access));
        Ok(())
    }

    fn needed_scope(&self, rule: &RouteRule) -> Demand {
        match rule.need {
            Need::Nothing => Demand::Nothing,
            Need::Metrics if self.0.open_metrics => Demand::Nothing,
            Need::Health if self.0.open_health => Demand::Nothing,
            Need::AnyKey => Demand::Key(None),
            Need::Has(scope) => Demand::Key(Some(scope)),
            Need::Metrics | Need::Health => Demand::Key(Some(Scope::AdminRead)),
        }
    }

    /// The access of the sender of a request.
    async fn authenticate(&self, request: &ServiceRequest) -> Result<Arc<Access>, ApiError> {
        let credential = credential::bearer(request.headers())?;
        let Some(presented) = PresentedKey::parse(credential) else { return Err(unknown_key()) };
        self.check_key(presented, store::local_now()).await
    }

    async fn check_key(&self, presented: PresentedKey<'_>, now: Millis) -> Result<Arc<Access>, ApiError> {
        let hash = presented.hash();
        if let Some((record, access)) = self.0.keys_file.current().get(presented.id()) {
            return accept(record.check(&hash, now)).map(|()| access.clone());
        }
        let cached = self.0.cache.get(presented.id()).await?.ok_or_else(unknown_key)?;
        accept(cached.record.check(&hash, now))?;
        self.0.cache.note_use(&cached, now);
        Ok(cached.access.clone())
    }
}

/// What a route demands under these settings.
enum Demand {
    Nothing,
    /// A key, with a scope or without.
    Key(Option<Scope>),
}

fn accept(check: KeyCheck) -> Result<(), ApiError> {
    match check {
        KeyCheck::Valid => Ok(()),
        KeyCheck::Expired => Err(ApiError::new(ErrorCode::InvalidKey, "the key has expired")),
        KeyCheck::Wrong => Err(unknown_key()),
    }
}

fn unknown_key() -> ApiError {
    ApiError::new(ErrorCode::InvalidKey, "this key is not known here: it is wrong, revoked, or of another installation")
}

/// Refuses to serve strangers without keys.
pub(crate) fn check_listen_address(gateway: &GatewaySettings, auth: &AuthSettings) -> anyhow::Result<()> {
    let is_open = !auth.is_demanded() && auth.mode != common::settings::AuthMode::None;
    if is_open && !is_loopback(gateway.listen) {
        bail!(
            "gateway.listen: {} can be reached from other machines, and no request would need a key. Make a key with \
             `gateway keys create --name admin --scopes admin:read,admin:write --file keys.toml` and set \
             GALLEY__AUTH__KEYS_FILE, or listen on 127.0.0.1. To serve everybody without keys, set \
             GALLEY__AUTH__MODE=none",
            gateway.listen
        );
    }
    Ok(())
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_served_without_keys() {
        for (address, is_ours) in [
            ("127.0.0.1:8080", true),
            ("127.1.2.3:1", true),
            ("[::1]:8080", true),
            ("[::ffff:127.0.0.1]:8080", true),
            ("0.0.0.0:8080", false),
            ("[::]:8080", false),
            ("10.0.0.1:8080", false),
            ("[::ffff:10.0.0.1]:8080", false),
        ] {
            assert_eq!(is_loopback(address.parse().expect("an address")), is_ours, "{address}");
        }
    }
}
