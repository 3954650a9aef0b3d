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
//! | `login` | sessions of people who use the dashboard |
//! | `keys_file` | keys from settings and from a file |
//! | `subject` | checks what the path of a request names |

mod caller;
mod credential;
mod credentials;
mod key_watch;
mod keys_file;
mod login;
mod session;
mod subject;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_web::{
    HttpMessage,
    dev::ServiceRequest,
    http::{Method, header},
};
use anyhow::bail;
use common::{
    reloadable::FileWatch,
    settings::{AuthSettings, GatewaySettings, Settings},
    time::Millis,
};
use model::access::{Access, ApiKeyRecord, KeyCheck, KeyHash, KeyId, PresentedKey, Scope, Scopes};
use store::{
    Redis,
    api_keys::{ApiKeyCache, ApiKeys},
    connection::notifier::Notifier,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    caller::Caller,
    credentials::Credentials,
    keys_file::check_keys_file,
    session::{AccessEnd, StreamSession, while_admitted},
};
use self::{key_watch::KeyWatch, keys_file::KeysFile};
use crate::{
    dashboard,
    error::{ApiError, ErrorCode},
    key_usage::KeyUsage,
    routes::table::{Need, PathRules, RouteRule},
    tokens::{TokenRefusal, Tokens},
};

/// Who may use the gateway. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Auth(Arc<AuthInner>);

struct AuthInner {
    is_demanded: bool,
    session_time: Duration,
    open_metrics: bool,
    open_health: bool,
    keys_file: Arc<KeysFile>,
    keys: ApiKeys,
    cache: ApiKeyCache,
    tokens: Tokens,
    usage: KeyUsage,
    redis: Redis,
    everything: Arc<Access>,
    nothing: Arc<Access>,
}

impl Auth {
    /// Reads the keys of the settings, and follows their file until `stop` is cancelled.
    ///
    /// # Errors
    /// A key or file that cannot be used.
    pub(crate) fn start(
        settings: &Settings,
        redis: &Redis,
        notifier: &Notifier,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let (interval, session_time) = (settings.reload.interval, settings.dashboard.session_time);
        let settings = &settings.auth;
        let keys = ApiKeys::new(redis);
        let file = FileWatch::new(settings.keys_file.clone(), interval);
        let keys_file = Arc::new(KeysFile::load(settings)?);
        let tokens = Tokens::start(&settings.tables, interval, stop.clone())?;
        tokio::spawn(keys_file::follow(keys_file.clone(), file, stop));
        Ok(Self(Arc::new(AuthInner {
            is_demanded: settings.is_demanded(),
            session_time,
            open_metrics: settings.open_metrics,
            open_health: settings.open_health,
            keys_file,
            cache: ApiKeyCache::start(&keys, notifier),
            keys,
            tokens,
            usage: KeyUsage::new(&settings.tables.limits),
            redis: redis.clone(),
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

    /// Whether requests need keys.
    pub(crate) fn is_demanded(&self) -> bool {
        self.0.is_demanded
    }

    /// Whether `/health/ready` may say why the gateway is not ready.
    pub(crate) fn shows_health(&self) -> bool {
        !self.0.is_demanded || self.0.open_health
    }

    /// Lets a request pass, or says why not. `rules` are those of its path, if the path exists.
    pub(crate) async fn admit(
        &self,
        request: &ServiceRequest,
        rules: Option<&'static PathRules>,
    ) -> Result<(), ApiError> {
        // The router answers 404 to an unknown path. A browser asks with OPTIONS what it may do, and sends no key
        let known = rules.filter(|_| request.method() != Method::OPTIONS);
        let rule = known.and_then(|rules| rules.of_method(request.method()));
        let access = match rule {
            _ if !self.0.is_demanded => self.0.everything.clone(),
            None => self.0.nothing.clone(),
            Some(rule) => match self.needed_scopes(rule) {
                Demand::Nothing => self.0.nothing.clone(),
                Demand::Nobody => Box::pin(self.authenticate_if_possible(request, rule)).await,
                Demand::Key(scopes) => {
                    // In boxes, so that the future of every request does not have the size of the largest of these
                    let (access, mut credentials) = Box::pin(self.authenticate(request, rule)).await?;
                    credentials.sender = Some(access.clone());
                    credentials.meter = self.0.usage.meter(&access);
                    let meter = credentials.meter.clone();
                    request.extensions_mut().insert(credentials);
                    if let Some(meter) = meter {
                        Box::pin(meter.count_request(&self.0.redis)).await?;
                        Box::pin(meter.count_body(&self.0.redis, declared_length(request))).await?;
                    }
                    if let Some(scope) = scopes.into_iter().flatten().find(|scope| !access.may(*scope)) {
                        return Err(ApiError::scope_required(scope));
                    }
                    if !access.is_unlimited() {
                        Box::pin(subject::check(request, rule, &access)).await?;
                    }
                    access
                }
            },
        };
        request.extensions_mut().insert(Caller::new(access, rules.map(|rules| rules.path)));
        Ok(())
    }

    fn needed_scopes(&self, rule: &RouteRule) -> Demand {
        match rule.need {
            Need::Nothing => Demand::Nothing,
            Need::Optional => Demand::Nobody,
            Need::Metrics if self.0.open_metrics => Demand::Nothing,
            Need::Health if self.0.open_health => Demand::Nothing,
            Need::AnyKey => Demand::Key([None; 2]),
            Need::Has(scope) => Demand::Key([Some(scope), None]),
            Need::Both(one, other) => Demand::Key([Some(one), Some(other)]),
            Need::Metrics | Need::Health => Demand::Key([Some(Scope::AdminRead), None]),
        }
    }

    /// The access of the sender of a request, and what it depends on.
    async fn authenticate(
        &self,
        request: &ServiceRequest,
        rule: &RouteRule,
    ) -> Result<(Arc<Access>, Credentials), ApiError> {
        let now = store::local_now();
        let credential = match credential::token_in_query(request, rule)? {
            Some(token) => return self.check_token(&token, now).await,
            None if dashboard::is_page(rule.path) && !request.headers().contains_key(header::AUTHORIZATION) => {
                return self.check_session(request.headers(), now).await;
            }
            None => credential::bearer(request.headers())?,
        };
        if Tokens::is_token(credential) {
            return self.check_token(credential, now).await;
        }
        let Some(presented) = PresentedKey::parse(credential) else { return Err(unknown_key()) };
        self.check_secret(presented.id(), presented.hash(), now).await
    }

    /// The access of a key whose secret has that hash.
    async fn check_secret(&self, id: &str, hash: KeyHash, now: Millis) -> Result<(Arc<Access>, Credentials), ApiError> {
        let access = self.check_key(id, &hash, now).await?;
        let watch = KeyWatch::new(self, id, Some(hash));
        Ok((access, Credentials { key: Some(watch), ..Credentials::default() }))
    }

    /// The access of a sender who needs none: with a key that is valid, what it allows.
    async fn authenticate_if_possible(&self, request: &ServiceRequest, rule: &RouteRule) -> Arc<Access> {
        match self.authenticate(request, rule).await {
            Ok((access, mut credentials)) => {
                credentials.sender = Some(access.clone());
                request.extensions_mut().insert(credentials);
                access
            }
            Err(_) => self.0.nothing.clone(),
        }
    }

    /// The access of a token. One that a gateway made holds only as long as the key that made it, and never allows more
    /// than that key does by now.
    async fn check_token(&self, token: &str, now: Millis) -> Result<(Arc<Access>, Credentials), ApiError> {
        let given = self.0.tokens.verify(token, now).await.map_err(|refusal| refused_token(&refusal))?;
        let maker = given.made_by.filter(|maker| is_key_id(maker));
        if let Some(maker) = &maker {
            let known = self.record_of(maker).await?.map(|(_, access)| access);
            let known = known.filter(|access| access.expires_at.is_none_or(|at| now < at));
            if !known.is_some_and(|access| access.covers(&given.access)) {
                return Err(refused_token(&TokenRefusal::MakerGone));
            }
        }
        let key = maker.map(|maker| KeyWatch::new(self, &maker, None));
        Ok((Arc::new(given.access), Credentials { key, signer: Some(given.signer), ..Credentials::default() }))
    }

    /// A key of the settings or of Redis.
    async fn record_of(&self, id: &str) -> Result<Option<(ApiKeyRecord, Arc<Access>)>, ApiError> {
        if let Some((record, access)) = self.0.keys_file.current().get(id) {
            return Ok(Some((record.clone(), access.clone())));
        }
        let cached = self.0.cache.get(id).await?;
        Ok(cached.map(|cached| (cached.record.clone(), cached.access.clone())))
    }

    /// Whether a key is gone or has expired, or a secret is no longer the key's. While Redis cannot say, it is not.
    async fn is_gone(&self, id: &str, hash: Option<&KeyHash>) -> bool {
        let now = store::local_now();
        match self.record_of(id).await {
            Ok(None) => true,
            Ok(Some((record, access))) => {
                access.expires_at.is_some_and(|at| now >= at)
                    || hash.is_some_and(|hash| record.check(hash, now) != KeyCheck::Valid)
            }
            Err(_) => false,
        }
    }

    /// Tells when keys have changed.
    fn key_changes(&self) -> impl Future<Output = ()> + use<> {
        let (mut file, stored) = (self.0.keys_file.subscribe(), self.0.cache.changed());
        async move {
            tokio::select! {
                _ = file.changed() => {}
                () = stored => {}
            }
        }
    }

    /// Verifies and makes tokens.
    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    async fn check_key(&self, id: &str, hash: &KeyHash, now: Millis) -> Result<Arc<Access>, ApiError> {
        if let Some((record, access)) = self.0.keys_file.current().get(id) {
            return accept(record.check(hash, now)).map(|()| access.clone());
        }
        let cached = self.0.cache.get(id).await?.ok_or_else(unknown_key)?;
        accept(cached.record.check(hash, now))?;
        self.0.cache.note_use(&cached, now);
        Ok(cached.access.clone())
    }
}

/// What a route demands under these settings.
enum Demand {
    Nothing,
    /// Nothing, and a key is welcome.
    Nobody,
    /// A key with these scopes.
    Key([Option<Scope>; 2]),
}

fn accept(check: KeyCheck) -> Result<(), ApiError> {
    match check {
        KeyCheck::Valid => Ok(()),
        KeyCheck::Expired => Err(ApiError::new(ErrorCode::InvalidKey, "the key has expired")),
        KeyCheck::Wrong => Err(unknown_key()),
    }
}

fn refused_token(refusal: &TokenRefusal) -> ApiError {
    match refusal {
        TokenRefusal::IssuerAway => ApiError::new(ErrorCode::IssuerUnavailable, refusal.to_string()),
        _ => ApiError::new(ErrorCode::InvalidToken, format!("this token is not accepted: {refusal}")),
    }
}

/// Whether a token says that a key made it, and not another token.
fn is_key_id(maker: &str) -> bool {
    !maker.contains(':')
}

fn unknown_key() -> ApiError {
    ApiError::new(ErrorCode::InvalidKey, "this key is not known here: it is wrong, revoked, or of another installation")
}

/// The length of a body that its head tells. Of others the length is counted when they are here.
fn declared_length(request: &ServiceRequest) -> u64 {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or_default()
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
